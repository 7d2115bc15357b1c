/* One step of a job against the service: how it is asked, and what each answer means for the file. */
#include "fs/upload_impl.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

enum {
	PAUSE_MAX_MS = 5 * 60 * 1000,
	FINAL_TRIES = 10,
};

/* ---- what an answer means for a file ----------------------------------------------------------------------- */

static struct move judge_transient(const struct fault *fault, const struct upload_circumstances *at)
{
	bool is_timeout = fault->kind == FAULT_BUDGET || fault->http_status == 408 || at->error == -ETIMEDOUT;
	bool is_final = at->attempts >= FINAL_TRIES && at->age_ms >= 3 * DAY_MS && at->others_went_through;

	return (struct move){ is_final ? MOVE_FAIL : MOVE_RETRY, is_timeout ? -ETIMEDOUT : -EIO };
}

struct move upload_judge(const struct fault *fault, const struct upload_circumstances *at)
{
	switch (fault->kind) {
	case FAULT_ACCOUNT:
		return (struct move){ MOVE_HOLD_ACCOUNT, -EACCES };
	case FAULT_FORBIDDEN:
		return (struct move){ MOVE_FAIL, -EACCES };
	case FAULT_GONE:
		if (at->by_known_id)
			return (struct move){ MOVE_FORGET_SHORTCUT, -ENOENT };
		return (struct move){ MOVE_HOLD_SESSION, -ENOENT };
	case FAULT_INVALID:
		return (struct move){ at->by_known_id ? MOVE_FORGET_SHORTCUT : MOVE_FAIL, -EINVAL };
	case FAULT_KEY:
		if (at->by_known_id)
			return (struct move){ MOVE_FORGET_SHORTCUT, -EINVAL };
		return (struct move){ at->key_renewed && !at->ticket_is_old ? MOVE_FAIL : MOVE_SIGN_AGAIN, -EINVAL };
	case FAULT_TOO_LARGE:
		return (struct move){ MOVE_FAIL, -EFBIG };
	case FAULT_CONFLICT:
		return (struct move){ MOVE_LOOK, -EBUSY };
	case FAULT_NONE:
		/* No refusal of the service. What it lacks it will lack next time too. */
		if (at->error == -EOPNOTSUPP || at->error == -EXDEV)
			return (struct move){ at->by_known_id ? MOVE_FORGET_SHORTCUT : MOVE_FAIL, -EINVAL };
		return judge_transient(fault, at);
	case FAULT_BUDGET:
	case FAULT_AWAY:
	case FAULT_CANCELED:
		break;
	}
	return judge_transient(fault, at);
}

int64_t upload_pause_ms(int attempts, int64_t retry_after_ms, uint32_t random)
{
	int64_t pause = PAUSE_FIRST_MS;

	for (int i = 1; i < attempts && pause < PAUSE_MAX_MS; i++)
		pause *= 2;
	if (pause > PAUSE_MAX_MS)
		pause = PAUSE_MAX_MS;
	pause = pause / 2 + (int64_t)((uint64_t)(pause / 2) * random >> 32);
	return pause < retry_after_ms ? retry_after_ms : pause;
}

/* ---- failures ---------------------------------------------------------------------------------------------- */

/* The step whose success shows that this works again. */
static enum upload_step trial_step(enum trial t)
{
	switch (t) {
	case TRIAL_STORE:
		return UPLOAD_SIGNED;
	case TRIAL_ATTACH:
	case TRIAL_SHORTCUT:
		return UPLOAD_STORED;
	case TRIAL_SIGN:
	case TRIAL_LOOK:
		break;
	}
	return UPLOAD_SPOOLED;
}

void item_blame(struct job *j, int error, enum fault_kind kind, const char *words)
{
	char *copy = strdup(words);

	j->item.error = error;
	j->item.fault = kind;
	if (copy) {
		free(j->item.words);
		j->item.words = copy;
	}
	j->version++;
	j->has_failed_since_wait = true;
	if (!j->first_failure_ms)
		j->first_failure_ms = clock_now_ms();
}

/* A sentence on why, as attributes and people are told it. */
static void fault_describe(const struct fault *f, const struct move *m, struct buf *ret)
{
	if (f->kind == FAULT_FORBIDDEN && *f->ability)
		buf_addf(ret, "needs %s", f->ability);
	else if (m->next == MOVE_HOLD_ACCOUNT)
		buf_add(ret, "the service refuses the credentials");
	else if (m->next == MOVE_HOLD_SESSION)
		buf_add(ret, "the session is gone");
	else if (f->http_status > 0)
		buf_addf(ret, "the service answers %d", f->http_status);
	else if (f->kind == FAULT_BUDGET)
		buf_add(ret, "no request was left within the rate limit");
	else
		buf_add(ret, m->error == -ETIMEDOUT ? "the service does not answer in time"
						    : "the service cannot be reached");
	if (*f->words)
		buf_addf(ret, ": %s", f->words);
}

void job_failed_here(struct uploads *u, struct job *j, int error, const char *what)
{
	CLEANUP(buf_release) struct buf words = BUF(200);

	if (j->place == PLACE_GONE)
		return;
	j->is_sent = false;
	j->is_free_to_go = false;
	j->failures_here++;
	buf_addf(&words, "%s: %s", what, strerror(-error));
	item_blame(j, error == -ENOSPC ? error : -EIO, FAULT_NONE, buf_text(&words) ? buf_text(&words) : what);
	job_pause(u, j, clock_now_ms(), pause_for(u, PAUSE_LOCAL_MS, -1, j->somebody_waits));
}

static void shortcut_forget(struct uploads *u, struct job *j, bool is_wrong)
{
	char *known_id = j->item.known_id;

	j->item.known_id = NULL;
	free(j->item.known_session_id);
	j->item.known_session_id = NULL;
	/* To be the second of its kind may be why it was refused. */
	j->is_unsure = j->is_unsure || j->was_put_off;
	j->was_put_off = false;
	j->item.may_have_happened = j->is_unsure;
	j->item.attempts = 0;
	j->version++;
	if (is_wrong && known_id) {
		char sha256[65];
		memcpy(sha256, j->item.sha256, sizeof(sha256));
		pthread_mutex_unlock(&u->lock);
		(void)queue_forget_hash(u->config.queue, sha256, known_id); /* logged; costs a vain request some day */
		pthread_mutex_lock(&u->lock);
	}
	free(known_id);
	if (j->place == PLACE_CALL)
		job_ready(u, j);
}

static struct move job_judge(const struct uploads *u, const struct job *j, enum trial trial, const struct fault *f,
			     int error)
{
	int tries = j->item.attempts > j->vain_looks ? j->item.attempts : j->vain_looks;
	struct upload_circumstances at = {
		.step = j->item.step,
		.by_known_id = trial == TRIAL_SHORTCUT,
		.key_renewed = j->item.key_renewed,
		/* When it was used: one that ended while its bytes were on their way was fresh. */
		.ticket_is_old = j->item.ticket && ticket_was_old(u, &j->item, clock_now_ms() - j->call_began_ms),
		.attempts = tries + 1,
		.age_ms = clock_wall_ms() - j->item.queued_wall_ms,
		.others_went_through = j->first_failure_ms && u->last_done_ms > j->first_failure_ms,
		.error = error,
	};

	if (trial == TRIAL_SHORTCUT && error == -EXDEV)
		return (struct move){ MOVE_FORGET_SHORTCUT, -EXDEV };
	struct move m = upload_judge(f, &at);
	/* A look that is refused says nothing about the file, whose last step may have had its effect. */
	if (trial == TRIAL_LOOK && m.next != MOVE_HOLD_ACCOUNT && f->kind != FAULT_FORBIDDEN)
		m.next = MOVE_RETRY;
	return m;
}

static bool is_failure_of_service(const struct fault *f)
{
	/* No answer and no budget: our own limiter had no place, which is nobody's failure. */
	return f->kind == FAULT_AWAY || (f->kind == FAULT_BUDGET && f->http_status != 0);
}

static void job_apply(struct uploads *u, struct job *j, enum trial trial, const struct fault *f, struct move m,
		      struct moment when)
{
	switch (m.next) {
	case MOVE_RETRY: {
		int64_t pause = upload_pause_ms(++j->item.attempts, -1, when.random);
		j->is_retry = true;
		job_pause(u, j, when.now_ms, pause_for(u, pause, f->retry_after_ms, j->somebody_waits));
		if (u->gate_is_closed)
			job_ready(u, j); /* the gate has a clock of its own */
		break;
	}
	case MOVE_HOLD_ACCOUNT:
		account_hold(u, f);
		job_ready(u, j);
		break;
	case MOVE_HOLD_SESSION:
		line_hold(u, j->line);
		job_ready(u, j);
		break;
	case MOVE_SIGN_AGAIN:
		/* A key that is refused when it is tried again may be what an earlier try used up, whatever was
		 * answered to that. This ends: the look that follows does not forget that the key was renewed, so the
		 * next refusal is final, after one look more. */
		if (j->is_unsure || job_may_be_used_up(u, j)) {
			item_unsure(j);
			j->signs_again = true;
		} else {
			item_back_to_spooled(j);
			j->item.may_have_happened = false;
		}
		j->item.key_renewed = true;
		if (job_goes_in_circles(j))
			job_pause(u, j, when.now_ms,
				  pause_for(u, upload_pause_ms(j->vain_looks, -1, when.random), -1, j->somebody_waits));
		else
			job_ready(u, j);
		break;
	case MOVE_FORGET_SHORTCUT:
		shortcut_forget(u, j, m.error != -EXDEV);
		break;
	case MOVE_LOOK:
		item_unsure(j);
		j->is_conflict = true;
		job_ready(u, j);
		break;
	case MOVE_FAIL:
		/* So may the second key be, and what else is refused when it comes again. */
		if (trial != TRIAL_LOOK && (j->is_unsure || (f->kind == FAULT_KEY && job_may_be_used_up(u, j)))) {
			item_unsure(j);
			j->fails_then = true;
			job_ready(u, j);
			break;
		}
		log_warning("upload: '%s' is refused: %s", j->item.name,
			    j->item.words ? j->item.words : strerror(-m.error));
		job_refuse(u, j);
		break;
	}
}

void trial_failed(struct uploads *u, enum trial trial, const struct fault *f)
{
	if (is_failure_of_service(f))
		service_failed(u, trial_step(trial), f->retry_after_ms);
	else if (f->http_status != 0 && f->kind != FAULT_BUDGET && f->kind != FAULT_ACCOUNT &&
		 f->kind != FAULT_CANCELED)
		service_answered(u, trial_step(trial), trial != TRIAL_STORE || u->caps->store_has_effect);
}

/* The time in which a failed call moved does not count as failing, and no more than that. */
static void progress_take_back(struct job *j)
{
	int64_t moved_ms = j->progress_ms > j->call_began_ms ? j->progress_ms - j->call_began_ms : 0;

	j->progress_ms = j->progress_before_ms + moved_ms;
}

void job_failed(struct uploads *u, struct job *j, enum trial trial, const struct fault *f, int error,
		struct moment when)
{
	/* Where the store makes the document, attaching only asks what became of it. */
	bool has_effect = trial == TRIAL_SHORTCUT || trial == (u->caps->store_has_effect ? TRIAL_STORE : TRIAL_ATTACH);
	bool is_canceled = f->kind == FAULT_CANCELED || error == -ECANCELED;
	struct move m = job_judge(u, j, trial, f, error);

	j->is_sent = false;
	if (u->probe == j || j->is_free_to_go)
		j->is_free_to_go = false;
	if (has_effect) {
		j->is_unsure = f->may_have_happened;
		if (j->item.may_have_happened != j->is_unsure)
			j->version++;
		j->item.may_have_happened = j->is_unsure;
		j->was_put_off = j->was_put_off || (m.next == MOVE_RETRY && f->http_status != 0);
	}
	if (is_canceled && (u->is_draining || u->is_stopping) && !j->cancel_asked) {
		j->is_retry = true;
		job_ready(u, j);
		return;
	}
	progress_take_back(j);
	if (j->cancel_asked && !job_may_have_happened(u, j) && m.next != MOVE_LOOK) {
		job_end_canceled(u, j);
		return;
	}
	CLEANUP(buf_release) struct buf words = BUF(500);
	fault_describe(f, &m, &words);
	if (!j->fails_then) /* whose reason is known, whatever the look for it meets */
		item_blame(j, m.error, f->kind, buf_text(&words) ? buf_text(&words) : f->words);
	if (f->kind == FAULT_BUDGET && f->http_status == 0) {
		j->has_failed_since_wait = false; /* our own limiter had no place */
		j->progress_ms = clock_now_ms();
	}
	job_apply(u, j, trial, f, m, when);
	tick_for_waiting(u);
	if (j->place != PLACE_GONE && j->place != PLACE_ENDING)
		(void)row_write(u, j); /* logged; what it lacks is written before the next step with effect */
	job_tell_moved(u, j);
}

void job_advance(struct uploads *u, struct job *j, enum upload_step from, enum upload_step to)
{
	j->item.step = to;
	j->item.attempts = 0;
	j->item.error = 0;
	j->item.fault = FAULT_NONE;
	free(j->item.words);
	j->item.words = NULL;
	j->item.next_wall_ms = 0;
	j->version++;
	j->is_retry = j->was_put_off = false;
	if (!job_goes_in_circles(j)) {
		j->has_failed_since_wait = false;
		j->progress_ms = clock_now_ms();
	}
	service_answered(u, from, from != UPLOAD_SIGNED || u->caps->store_has_effect);
}

/* ---- asking the backend ------------------------------------------------------------------------------------ */

void errand_release(struct errand *e)
{
	free(e->session_id);
	free(e->name);
	free(e->up.ticket);
	listing_unref(e->up.document);
	*e = (struct errand){ 0 };
}

int errand_fill(struct errand *e, const struct job *j)
{
	const struct queue_item *i = &j->item;

	*e = (struct errand){ .session_id = strdup(i->session_id), .name = strdup(i->name) };
	memcpy(e->sha256, i->sha256, sizeof(e->sha256));
	e->up = (struct upload){
		.session_id = e->session_id,
		.name = e->name,
		.sha256 = e->sha256,
		.size_bytes = i->size_bytes,
		.fd = -1,
		.is_retry = j->is_retry || i->attempts > 0,
		.step = i->step,
		.ticket = i->ticket ? strdup(i->ticket) : NULL,
		.ticket_wall_ms = i->ticket_wall_ms,
	};
	if (e->session_id && e->name && (!i->ticket || e->up.ticket))
		return 0;
	errand_release(e);
	return -ENOMEM;
}

void ticket_take(struct job *j, struct errand *e)
{
	free(j->item.ticket);
	j->item.ticket = e->up.ticket;
	e->up.ticket = NULL;
	j->item.ticket_wall_ms = e->up.ticket_wall_ms ? e->up.ticket_wall_ms : clock_wall_ms();
}

void job_progress_begin(struct job *j, struct transfer *watch)
{
	int64_t now_ms = clock_now_ms();

	j->watch = watch;
	j->call_began_ms = now_ms;
	if (!j->has_failed_since_wait)
		j->progress_ms = now_ms; /* it waited for its turn until now */
	if (j->progress_ms < j->waiting_since_ms)
		j->progress_ms = j->waiting_since_ms;
	j->progress_before_ms = j->progress_ms;
}

void job_call_begin(struct job *j, struct call *call, struct transfer *transfer, enum urgency urgency)
{
	*transfer = (struct transfer){ 0 };
	*call = (struct call){ .urgency = j->somebody_waits ? URGENCY_PERSON : urgency, .transfer = transfer };
	call->fault.retry_after_ms = -1;
	job_progress_begin(j, transfer);
}
