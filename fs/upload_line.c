/* What has to be asked of a session: is it there? attach by a known id; attach what was sent. It collects in the session's
 * line, which asks one thing at a time: what comes meanwhile shares the next request. */
#include "fs/upload_impl.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/index.h"
#include "client/base/pool.h"

enum {
	BATCH_MAX = 100, /* whatever a backend says */
};

uint64_t line_hash(const void *item)
{
	return index_hash_text(((const struct line *)item)->session_id);
}

bool line_is(const void *item, const void *key)
{
	return strcmp(((const struct line *)item)->session_id, key) == 0;
}

struct line *line_get(struct uploads *u, const char *session_id)
{
	struct line *l = index_find(&u->lines, index_hash_text(session_id), line_is, session_id);

	if (l) {
		l->refs++;
		return l;
	}
	l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	l->uploads = u;
	l->refs = 1;
	TAILQ_INIT(&l->looks);
	TAILQ_INIT(&l->shortcuts);
	TAILQ_INIT(&l->attaches);
	TAILQ_INIT(&l->held);
	l->session_id = strdup(session_id);
	if (!l->session_id || index_put(&u->lines, l) < 0) {
		free(l->session_id);
		free(l);
		return NULL;
	}
	return l;
}

void line_unref(struct uploads *u, struct line *l)
{
	if (!l || --l->refs > 0)
		return;
	index_remove(&u->lines, l);
	free(l->session_id);
	free(l);
}

/* ---- what is asked of a session ---------------------------------------------------------------------------- */

/* Jobs in one call. */
struct batch {
	struct job *jobs[BATCH_MAX];
	struct errand errands[BATCH_MAX];
	int count;
	struct call call;
	struct transfer transfer;
};

static void batch_release(struct batch **b)
{
	if (!*b)
		return;
	for (int i = 0; i < BATCH_MAX; i++)
		errand_release(&(*b)->errands[i]);
	free(*b);
	*b = NULL;
}

static void job_take(struct uploads *u, struct job *j)
{
	job_place(j, PLACE_CALL, &u->calling);
	j->refs++;
	j->workers++;
}

/* The first of the list, and as many of the next as one call may hold. */
static void batch_take(struct uploads *u, struct batch *b, struct job_list *list, int max)
{
	struct job *j;

	if (max > BATCH_MAX)
		max = BATCH_MAX;
	if (max < 1)
		max = 1;
	while ((j = TAILQ_FIRST(list)) && b->count < max) {
		if (j->batch_max > 0 && j->batch_max < max) {
			max = j->batch_max;
			if (b->count >= max)
				break;
		}
		job_take(u, j);
		b->jobs[b->count++] = j;
	}
}

/* Takes jobs[at] out of the batch: it has been put elsewhere, or is gone. */
static void batch_leave_out(struct uploads *u, struct batch *b, int at)
{
	worker_let_go(u, b->jobs[at]);
	errand_release(&b->errands[at]);
	b->count--;
	memmove(&b->jobs[at], &b->jobs[at + 1], (size_t)(b->count - at) * sizeof(*b->jobs));
	memmove(&b->errands[at], &b->errands[at + 1], (size_t)(b->count - at) * sizeof(*b->errands));
	b->errands[b->count] = (struct errand){ 0 };
}

/* The rows say that it may have happened, before it can. Gives the lock up. */
static void batch_write(struct uploads *u, struct batch *b, bool has_effect)
{
	for (int i = 0; i < b->count;) {
		struct job *j = b->jobs[i];
		if (has_effect && !j->item.may_have_happened) {
			j->item.may_have_happened = true;
			j->version++;
		}
		int r = row_write(u, j);
		if (j->place == PLACE_CALL && r == 0)
			r = errand_fill(&b->errands[i], j);
		if (j->place == PLACE_CALL && r == 0) {
			i++;
			continue;
		}
		if (j->place == PLACE_CALL)
			job_failed_here(u, j, r, "the queue cannot be written");
		batch_leave_out(u, b, i);
	}
	/* Canceled meanwhile, while another one's row was written. */
	for (int i = b->count - 1; i >= 0; i--) {
		if (b->jobs[i]->place != PLACE_CALL)
			batch_leave_out(u, b, i);
	}
}

static void batch_call_begin(struct batch *b, bool has_effect)
{
	b->transfer = (struct transfer){ 0 };
	b->call = (struct call){ .urgency = URGENCY_FINISH, .transfer = &b->transfer };
	b->call.fault.retry_after_ms = -1;
	for (int i = 0; i < b->count; i++) {
		struct job *j = b->jobs[i];
		job_progress_begin(j, &b->transfer);
		j->is_sent = has_effect;
		if (j->somebody_waits)
			b->call.urgency = URGENCY_PERSON;
	}
}

static void batch_call_end(struct batch *b)
{
	for (int i = 0; i < b->count; i++)
		b->jobs[i]->watch = NULL;
}

/* One of the batch was guilty, and nobody says which: all again, in halves. Alone nobody is innocent. */
static void batch_split(struct uploads *u, struct batch *b)
{
	for (int i = 0; i < b->count; i++) {
		struct job *j = b->jobs[i];
		j->batch_max = b->count / 2;
		j->is_sent = false;
		if (j->cancel_asked && !job_may_have_happened(u, j))
			job_end_canceled(u, j);
		else
			job_ready(u, j);
	}
}

/* May the refusal of a whole batch be the fault of one in it? */
static bool is_fault_of_one(enum fault_kind kind)
{
	return kind == FAULT_INVALID || kind == FAULT_KEY || kind == FAULT_TOO_LARGE || kind == FAULT_CONFLICT;
}

static bool is_innocent(const struct errand *e)
{
	return e->up.error == -EAGAIN && e->up.fault.kind == FAULT_NONE;
}

/* Gives the lock up. */
static void attach_end_one(struct uploads *u, struct batch *b, int i, int r, struct moment when)
{
	struct job *j = b->jobs[i];
	struct errand *e = &b->errands[i];
	struct fault silence = { .kind = FAULT_AWAY, .retry_after_ms = -1, .may_have_happened = true };

	if (e->up.ticket)
		ticket_take(j, e);
	if (r < 0) {
		job_failed(u, j, TRIAL_ATTACH, &b->call.fault, r, when);
	} else if (e->up.error < 0 && is_innocent(e) && b->count > 1) {
		/* Something in its request was refused, but not this one: again, without the guilty. */
		j->is_sent = false;
		if (j->cancel_asked && !job_may_have_happened(u, j))
			job_end_canceled(u, j);
		else
			job_ready(u, j);
	} else if (e->up.error < 0) {
		job_failed(u, j, TRIAL_ATTACH, &e->up.fault, e->up.error, when);
	} else if (!e->up.document || listing_count(e->up.document) < 1) {
		job_failed(u, j, TRIAL_ATTACH, &silence, -EPROTO, when); /* a yes that names no document is looked up */
	} else {
		line_release(u, j->line);
		job_done(u, j, e->up.document);
	}
}

static void line_attach(struct uploads *u, struct line *l, struct batch *b)
{
	struct upload *ups[BATCH_MAX];
	int innocent = 0;

	batch_take(u, b, &l->attaches, u->caps->attach_batch_max);
	batch_write(u, b, !u->caps->store_has_effect);
	if (b->count == 0)
		return;
	batch_call_begin(b, !u->caps->store_has_effect);
	for (int i = 0; i < b->count; i++)
		ups[i] = &b->errands[i].up;
	pthread_mutex_unlock(&u->lock);
	int r = backend_upload_attach(u->config.backend, &b->call, ups, b->count);
	pthread_mutex_lock(&u->lock);
	batch_call_end(b);
	if (r < 0)
		trial_failed(u, TRIAL_ATTACH, &b->call.fault);
	else
		service_answered(u, UPLOAD_STORED, true);
	for (int i = 0; i < b->count; i++)
		innocent += r == 0 && b->errands[i].up.error < 0 && is_innocent(&b->errands[i]);
	if (b->count > 1 && (innocent == b->count || (r < 0 && is_fault_of_one(b->call.fault.kind)))) {
		batch_split(u, b);
		return;
	}
	struct moment when = moment_now(u);
	for (int i = 0; i < b->count; i++)
		attach_end_one(u, b, i, r, when);
}

/* A listing of document i alone. */
static int list_one(struct listing *l, int at, struct listing **ret)
{
	int count = listing_count(l), n = 0;
	struct document d;

	if (count == 1) {
		*ret = listing_ref(l);
		return 0;
	}
	const char **others = malloc((size_t)count * sizeof(*others));
	if (!others)
		return -ENOMEM;
	for (int i = 0; i < count; i++) {
		listing_get(l, i, &d);
		if (i != at)
			others[n++] = d.id;
	}
	int r = listing_patch(l, others, n, NULL, ret);
	free(others);
	return r;
}

/* Gives the lock up. */
static void shortcut_end_one(struct uploads *u, struct batch *b, int i, struct listing *answer)
{
	CLEANUP(listing_release) struct listing *one = NULL;
	struct fault silence = { .kind = FAULT_AWAY, .retry_after_ms = -1, .may_have_happened = true };
	struct job *j = b->jobs[i];
	/* A copy with an id of its own was asked for alone. */
	int at = u->caps->attach_keeps_id     ? listing_find(answer, j->item.known_id)
		 : listing_count(answer) == 1 ? 0
					      : -1;

	if (at >= 0 && list_one(answer, at, &one) == 0) {
		line_release(u, j->line);
		job_done(u, j, one);
		return;
	}
	job_failed(u, j, TRIAL_SHORTCUT, &silence, -EPROTO, moment_now(u)); /* as above */
}

static void line_shortcuts(struct uploads *u, struct line *l, struct batch *b)
{
	CLEANUP(listing_release) struct listing *answer = NULL;
	char *ids[BATCH_MAX], *from = NULL;
	int count = 0;
	bool is_one_source = true, has_memory = true;

	batch_take(u, b, &l->shortcuts, u->caps->attach_keeps_id ? u->caps->attach_batch_max : 1);
	batch_write(u, b, true);
	if (b->count == 0)
		return;
	for (int i = 0; i < b->count; i++) {
		const struct queue_item *item = &b->jobs[i]->item, *first = &b->jobs[0]->item;
		bool is_new = true;
		for (int k = 0; k < count; k++)
			is_new &= strcmp(ids[k], item->known_id) != 0; /* the same bytes under two names */
		if (is_new && !(ids[count++] = strdup(item->known_id))) {
			count--;
			has_memory = false;
			break;
		}
		is_one_source &= first->known_session_id && item->known_session_id &&
				 strcmp(first->known_session_id, item->known_session_id) == 0;
	}
	if (is_one_source && b->jobs[0]->item.known_session_id)
		from = strdup(b->jobs[0]->item.known_session_id); /* a hint: NULL is allowed */
	int r = -ENOMEM;
	if (has_memory) {
		batch_call_begin(b, true);
		pthread_mutex_unlock(&u->lock);
		r = backend_attach(u->config.backend, &b->call, l->session_id, from, (const char *const *)ids, count,
				   &answer);
		pthread_mutex_lock(&u->lock);
		batch_call_end(b);
		if (r < 0)
			trial_failed(u, TRIAL_SHORTCUT, &b->call.fault);
		else
			service_answered(u, UPLOAD_STORED, true);
	}
	while (count > 0)
		free(ids[--count]);
	free(from);
	if (has_memory && r < 0 && b->count > 1 &&
	    (r == -EXDEV || b->call.fault.kind == FAULT_GONE || is_fault_of_one(b->call.fault.kind))) {
		batch_split(u, b);
		return;
	}
	struct moment when = moment_now(u);
	for (int i = 0; i < b->count; i++) {
		if (!has_memory)
			job_failed_here(u, b->jobs[i], r, "no memory");
		else if (r < 0)
			job_failed(u, b->jobs[i], TRIAL_SHORTCUT, &b->call.fault, r, when);
		else
			shortcut_end_one(u, b, i, answer);
	}
}

/* ---- is it there already? ---------------------------------------------------------------------------------- */

/* Surely not there: what was sent had no effect. Gives the lock up. */
static void look_found_nothing(struct uploads *u, struct job *j)
{
	j->is_unsure = j->item.may_have_happened = j->was_put_off = false;
	j->is_retry = true;
	/* What was sent may have used the key up, though the session shows nothing yet: a refusal of it is not the
	 * second one. */
	if (!j->signs_again && !j->fails_then)
		j->item.key_renewed = false;
	j->vain_looks++;
	j->version++;
	if (j->cancel_asked) {
		job_end_canceled(u, j);
		return;
	}
	if (j->fails_then) {
		j->fails_then = false;
		job_refuse(u, j);
		return;
	}
	if (j->signs_again) {
		j->signs_again = j->is_conflict = j->is_retry = false;
		item_back_to_spooled(j);
	}
	if (j->is_conflict) {
		item_blame(j, -EBUSY, FAULT_CONFLICT, "the service says that it is there already, but it is not");
		job_refuse(u, j);
		return;
	}
	job_ready(u, j);
}

/* prior_ids as a list; the texts are one copy, in *ret_text. */
static int prior_split(const char *prior_ids, char **ret_text, const char ***ret_ids)
{
	char *text = strdup(prior_ids ? prior_ids : ""), *save = NULL;
	const char **ids = text ? malloc((strlen(text) / 2 + 1) * sizeof(*ids)) : NULL;
	int n = 0;

	if (!ids) {
		free(text);
		return -ENOMEM;
	}
	for (char *id = strtok_r(text, " ", &save); id; id = strtok_r(NULL, " ", &save))
		ids[n++] = id;
	*ret_text = text;
	*ret_ids = ids;
	return n;
}

/* Asks for one file by itself. Gives the lock up. */
static void look_for_one(struct uploads *u, struct batch *b, int i)
{
	struct job *j = b->jobs[i];
	struct errand *e = &b->errands[i];
	char *text = NULL;
	const char **ids = NULL;
	int n = prior_split(u->caps->reuses_bytes ? "" : j->item.prior_ids, &text, &ids);

	if (n < 0) {
		job_failed_here(u, j, n, "no memory");
		return;
	}
	job_call_begin(j, &b->call, &b->transfer, URGENCY_FINISH);
	pthread_mutex_unlock(&u->lock);
	int r = backend_upload_find(u->config.backend, &b->call, &e->up, ids, n);
	pthread_mutex_lock(&u->lock);
	j->watch = NULL;
	free(ids);
	free(text);
	if (r == 0 || r == -ENOENT)
		service_answered(u, UPLOAD_SPOOLED, true);
	else
		trial_failed(u, TRIAL_LOOK, &b->call.fault);
	if (r == 0 && e->up.document && listing_count(e->up.document) > 0) {
		line_release(u, j->line);
		job_done(u, j, e->up.document);
	} else if (r == -ENOENT) {
		look_found_nothing(u, j);
	} else {
		job_failed(u, j, TRIAL_LOOK, &b->call.fault, r < 0 ? r : -EPROTO, moment_now(u));
	}
}

/* One listing that was asked for after now, for all of the batch. Gives the lock up. */
static int look_list(struct uploads *u, struct line *l, struct batch *b, struct listing **ret)
{
	int64_t since_ms = clock_now_ms();
	int r = 0;

	batch_call_begin(b, false);
	pthread_mutex_unlock(&u->lock);
	for (int tries = 0; tries < 2; tries++) {
		struct listing *found = NULL;
		backend_forget(u->config.backend, l->session_id); /* nothing from memory will do */
		r = backend_list_documents(u->config.backend, &b->call, l->session_id, NULL, &found);
		if (r < 0)
			break;
		if (listing_asked_ms(found) >= since_ms) {
			*ret = found;
			break;
		}
		listing_unref(found); /* it joined one that was under way */
		r = -ESTALE;
	}
	pthread_mutex_lock(&u->lock);
	batch_call_end(b);
	if (r == 0 || r == -ENOENT)
		service_answered(u, UPLOAD_SPOOLED, true);
	else
		trial_failed(u, TRIAL_LOOK, &b->call.fault);
	return r;
}

/* The index of the job's document in a fresh listing. -ENOENT: surely none; -EAGAIN: the listing does not tell. */
static int look_in_listing(const struct uploads *u, struct listing *l, const struct job *j, const bool *is_taken)
{
	bool tells_all = true;

	for (int i = 0; i < listing_count(l); i++) {
		struct document d;
		listing_get(l, i, &d);
		tells_all &= d.sha256 != NULL;
		if (!d.sha256 || strcmp(d.sha256, j->item.sha256) != 0)
			continue;
		if (u->caps->reuses_bytes || (!is_taken[i] && !prior_has(j->item.prior_ids, d.id)))
			return i;
	}
	return tells_all ? -ENOENT : -EAGAIN;
}

static void look_for_all(struct uploads *u, struct batch *b, struct listing *found)
{
	bool *is_taken = calloc((size_t)listing_count(found) + 1, sizeof(*is_taken));

	for (int i = 0; i < b->count; i++) {
		CLEANUP(listing_release) struct listing *one = NULL;
		struct job *j = b->jobs[i];
		int at = is_taken ? look_in_listing(u, found, j, is_taken) : -EAGAIN;
		if (at >= 0 && list_one(found, at, &one) < 0)
			at = -EAGAIN;
		if (at >= 0) {
			is_taken[at] = true;
			line_release(u, j->line);
			job_done(u, j, one);
		} else if (at == -ENOENT) {
			look_found_nothing(u, j);
		} else {
			look_for_one(u, b, i);
		}
	}
	free(is_taken);
}

/* Where storing makes the document, equal bytes that were stored, or are just being, have one that a look would take
 * for ours. Its ticket tells which, so that one goes first. Gives the lock up. */
static bool look_has_to_wait(struct uploads *u, const struct job *j)
{
	struct job *other;

	/* One that is stored itself, and asks because its ticket is dead, would wait for its like for ever. */
	if (u->caps->reuses_bytes || !u->caps->store_has_effect || j->item.step == UPLOAD_STORED)
		return false;
	for (size_t at = 0; (other = index_next(&u->jobs, &at));) {
		if (other != j && other->line == j->line && other->is_sent &&
		    strcmp(other->item.sha256, j->item.sha256) == 0)
			return true;
	}
	struct queue_item key = { .ino = j->item.ino };
	memcpy(key.sha256, j->item.sha256, sizeof(key.sha256));
	pthread_mutex_unlock(&u->lock);
	/* The rows too: one may not be taken up yet. The disk's refusal is a reason to wait. */
	int r = queue_find_stored(u->config.queue, key.ino, j->line->session_id, key.sha256, u->config.account);
	pthread_mutex_lock(&u->lock);
	return r != -ENOENT;
}

static void line_looks(struct uploads *u, struct line *l, struct batch *b)
{
	CLEANUP(listing_release) struct listing *found = NULL;

	batch_take(u, b, &l->looks, BATCH_MAX);
	for (int i = 0; i < b->count;) {
		bool has_to_wait = look_has_to_wait(u, b->jobs[i]);
		int r = has_to_wait ? 0 : errand_fill(&b->errands[i], b->jobs[i]);
		if (r == 0 && !has_to_wait) {
			i++;
			continue;
		}
		if (has_to_wait)
			job_pause(u, b->jobs[i], clock_now_ms(), pause_here(u, PAUSE_FIRST_MS));
		else
			job_failed_here(u, b->jobs[i], r, "no memory");
		batch_leave_out(u, b, i);
	}
	if (b->count == 0)
		return;
	int r = b->count > 1 && u->caps->knows_hashes ? look_list(u, l, b, &found) : -ESTALE;
	if (r == 0) {
		look_for_all(u, b, found);
	} else if (r == -ESTALE) {
		for (int i = 0; i < b->count; i++)
			look_for_one(u, b, i);
	} else {
		struct moment when = moment_now(u);
		struct fault fault = b->call.fault;
		for (int i = 0; i < b->count; i++) {
			if (r == -ENOENT)
				look_found_nothing(u, b->jobs[i]); /* nor is the session */
			else
				job_failed(u, b->jobs[i], TRIAL_LOOK, &fault, r, when);
		}
	}
}

/* ---- running ----------------------------------------------------------------------------------------------- */

static bool line_has_work(const struct line *l)
{
	return !TAILQ_EMPTY(&l->looks) || !TAILQ_EMPTY(&l->shortcuts) || !TAILQ_EMPTY(&l->attaches);
}

static void line_run(void *arg)
{
	struct line *l = arg;
	struct uploads *u = l->uploads;

	pthread_mutex_lock(&u->lock);
	while (line_has_work(l) && !u->is_stopping && !u->is_drained) {
		CLEANUP(batch_release) struct batch *b = calloc(1, sizeof(*b));
		if (!b) {
			u->must_look_again = true;
			tick_at(u, clock_now_ms() + PAUSE_FIRST_MS);
			break;
		}
		if (!TAILQ_EMPTY(&l->looks))
			line_looks(u, l, b);
		else if (!TAILQ_EMPTY(&l->shortcuts))
			line_shortcuts(u, l, b);
		else
			line_attach(u, l, b);
		while (b->count > 0)
			batch_leave_out(u, b, b->count - 1);
		turns_dispatch(u);
	}
	l->is_running = false;
	line_unref(u, l);
	u->busy--;
	pthread_cond_broadcast(&u->changed);
	turns_dispatch(u);
	pthread_mutex_unlock(&u->lock);
}

void line_start(struct uploads *u, struct line *l)
{
	if (l->is_running || !line_has_work(l) || u->is_stopping || u->is_drained)
		return;
	if (pool_run(u->lines_pool, line_run, l) < 0) {
		u->must_look_again = true;
		tick_at(u, clock_now_ms() + PAUSE_FIRST_MS);
		return;
	}
	l->is_running = true;
	l->refs++;
	u->busy++;
}
