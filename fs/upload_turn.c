/* Whose turn it is.
 *
 * While the service fails, a gate is closed: one job at a time goes through as a probe, with growing pauses, and the
 * first success at the step that failed opens it for all. The account and a session can be held likewise. */
#include "fs/upload_impl.h"

#include <stdio.h>

#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/base/pool.h"

enum {
	PAUSE_WAITED_MS = 2000, /* while somebody waits */
	FAILURES_TO_CLOSE = 3,  /* in a row, before all wait for a probe */
};

static uint32_t next_random(struct uploads *u)
{
	u->random = u->random * 1664525 + 1013904223; /* spreads retries; nothing depends on it */
	return u->random;
}

bool turns_are_blocked(const struct uploads *u)
{
	return u->account_is_held || u->gate_is_closed;
}

/* ---- the gate and the holds -------------------------------------------------------------------------------- */

void jobs_ready(struct uploads *u, struct job_list *list)
{
	struct job *last = TAILQ_LAST(list, job_list), *next;

	/* Up to what is the last one now: some come back to the end of the same list. */
	for (struct job *j = TAILQ_FIRST(list); j; j = j == last ? NULL : next) {
		next = TAILQ_NEXT(j, in_list);
		if (!j->is_settling)
			job_ready(u, j);
	}
}

void gate_open(struct uploads *u)
{
	u->failures = 0;
	u->trouble_step = UPLOAD_SPOOLED;
	u->probe_attempts = 0;
	u->is_away = false;
	if (!u->gate_is_closed)
		return;
	u->gate_is_closed = false;
	if (!u->account_is_held) {
		jobs_ready(u, &u->paused);
		jobs_ready(u, &u->ready_lines); /* into their lines; none comes back while nothing is blocked */
	}
}

/* What collects in the lines waits for its turn like all others. */
static void lines_recall(struct uploads *u)
{
	struct line *l;

	for (size_t at = 0; (l = index_next(&u->lines, &at));) {
		jobs_ready(u, &l->looks);
		jobs_ready(u, &l->shortcuts);
		jobs_ready(u, &l->attaches);
	}
}

int64_t pause_for(const struct uploads *u, int64_t pause_ms, int64_t retry_after_ms, bool somebody_waits)
{
	if (somebody_waits && pause_ms > PAUSE_WAITED_MS)
		pause_ms = PAUSE_WAITED_MS;
	pause_ms = pause_here(u, pause_ms);
	return pause_ms < retry_after_ms ? retry_after_ms : pause_ms;
}

void probe_put_off(struct uploads *u, int64_t retry_after_ms)
{
	int64_t pause = upload_pause_ms(++u->probe_attempts, -1, next_random(u));

	u->probe_at_ms = clock_now_ms() + pause_for(u, pause, retry_after_ms, !TAILQ_EMPTY(&u->waited));
	tick_at(u, u->probe_at_ms);
}

void gate_close(struct uploads *u)
{
	if (u->gate_is_closed)
		return;
	u->gate_is_closed = true;
	log_warning("upload: the service keeps failing; one file at a time tries from now on");
	lines_recall(u);
}

void service_failed(struct uploads *u, enum upload_step step, int64_t retry_after_ms)
{
	if (step > u->trouble_step || u->failures == 0)
		u->trouble_step = step;
	u->failures++;
	if (u->gate_is_closed || u->failures >= FAILURES_TO_CLOSE)
		probe_put_off(u, retry_after_ms);
	if (u->failures >= FAILURES_TO_CLOSE)
		gate_close(u);
}

static void account_release(struct uploads *u)
{
	if (!u->account_is_held)
		return;
	u->account_is_held = false;
	log_info("upload: the credentials work again");
	if (!u->gate_is_closed)
		jobs_ready(u, &u->ready_lines);
}

void service_answered(struct uploads *u, enum upload_step step, bool proves_account)
{
	u->progress_ms = clock_now_ms();
	if (proves_account)
		account_release(u);
	if (step >= u->trouble_step)
		gate_open(u);
}

void account_hold(struct uploads *u, const struct fault *fault)
{
	if (!u->account_is_held)
		log_error("upload: the service refuses the credentials; files wait until they are renewed");
	u->account_is_held = true;
	u->account_probe_ms = clock_now_ms() + ACCOUNT_PAUSE_MS;
	(void)snprintf(u->account_words, sizeof(u->account_words), "the service refuses the credentials%s%.150s",
		       *fault->words ? ": " : "", fault->words); /* cut to what is shown */
	tick_at(u, u->account_probe_ms);
	lines_recall(u);
	tick_for_waiting(u);
}

void line_hold(struct uploads *u, struct line *l)
{
	if (!l->is_gone)
		log_error("upload: session %s is gone; its files wait", l->session_id);
	l->is_gone = true;
	l->probe_ms = clock_now_ms();
	jobs_ready(u, &l->looks);
	jobs_ready(u, &l->shortcuts);
	jobs_ready(u, &l->attaches);
	tick_for_waiting(u);
}

void line_release(struct uploads *u, struct line *l)
{
	if (!l->is_gone)
		return;
	l->is_gone = false;
	jobs_ready(u, &l->held);
}

/* ---- turns ------------------------------------------------------------------------------------------------- */

static void gather(struct uploads *u, struct job *j, enum action action)
{
	struct line *l = j->line;

	job_place(j, PLACE_GATHERED,
		  action == ACTION_LOOK       ? &l->looks
		  : action == ACTION_SHORTCUT ? &l->shortcuts
					      : &l->attaches);
	line_start(u, l);
}

static bool is_line_action(enum action action)
{
	return action == ACTION_LOOK || action == ACTION_SHORTCUT || action == ACTION_ATTACH;
}

void job_ready(struct uploads *u, struct job *j)
{
	bool is_let_through = j->is_free_to_go || u->probe == j;

	j->is_settling = false;
	if (job_is_foreign(u, j)) {
		job_place(j, PLACE_HELD, &u->foreign);
		return;
	}
	if (j->line->is_gone && !is_let_through) {
		job_place(j, PLACE_HELD, &j->line->held);
		return;
	}
	ticket_check(u, j);
	enum action action = job_action(u, j);
	if (!is_line_action(action))
		job_place(j, PLACE_READY, j->somebody_waits ? &u->ready_persons : &u->ready_background);
	else if (turns_are_blocked(u) && !is_let_through)
		job_place(j, PLACE_READY, &u->ready_lines);
	else
		gather(u, j, action);
}

static bool has_slot(const struct uploads *u, const struct job *j)
{
	/* One place is kept for people: a large upload in the background does not make them wait. */
	int max = u->config.transfers_max - (j->somebody_waits || u->config.transfers_max < 2 ? 0 : 1);

	return u->transfers < max;
}

static bool needs_slot(const struct uploads *u, const struct job *j)
{
	return !is_line_action(job_action(u, j));
}

static bool comes_before(const struct job *a, const struct job *b)
{
	if (!b || a->somebody_waits != b->somebody_waits)
		return !b || a->somebody_waits;
	return a->item.attempts < b->item.attempts; /* so that one that always fails does not keep the others out */
}

static struct job *probe_choose(struct uploads *u)
{
	struct job_list *const lists[] = { &u->ready_lines, &u->ready_persons, &u->ready_background };
	struct job *best = NULL, *j;

	for (int i = 0; i < 3; i++) {
		TAILQ_FOREACH (j, lists[i], in_list) {
			if (comes_before(j, best))
				best = j;
		}
	}
	return best && (!needs_slot(u, best) || has_slot(u, best)) ? best : NULL;
}

int64_t probe_due(const struct uploads *u)
{
	bool has_ready =
		!TAILQ_EMPTY(&u->ready_lines) || !TAILQ_EMPTY(&u->ready_persons) || !TAILQ_EMPTY(&u->ready_background);

	if (!turns_are_blocked(u) || !has_ready || u->probe || u->is_draining)
		return INT64_MAX;
	return u->account_is_held ? u->account_probe_ms : u->probe_at_ms;
}

/* The next job while the gate is closed or the account is held. */
static struct job *blocked_next(struct uploads *u, int64_t now_ms)
{
	struct job *j;

	TAILQ_FOREACH (j, &u->ready_persons, in_list) {
		if (j->is_free_to_go && has_slot(u, j))
			return j;
	}
	TAILQ_FOREACH (j, &u->ready_background, in_list) {
		if (j->is_free_to_go && has_slot(u, j))
			return j;
	}
	if (u->probe || now_ms < (u->account_is_held ? u->account_probe_ms : u->probe_at_ms))
		return NULL;
	j = probe_choose(u);
	if (j) {
		u->probe = j;
		u->probe_last_ms = now_ms;
		/* Until it has an outcome; should it end without one, the next comes after a while. */
		u->probe_at_ms = now_ms + pause_here(u, PROBE_AGAIN_MS);
		u->account_probe_ms = now_ms + ACCOUNT_PAUSE_MS;
	}
	return j;
}

static struct job *ready_next(struct uploads *u, int64_t now_ms)
{
	struct job *j;

	if (turns_are_blocked(u))
		return blocked_next(u, now_ms);
	j = TAILQ_FIRST(&u->ready_persons);
	if (j && has_slot(u, j))
		return j;
	j = TAILQ_FIRST(&u->ready_background);
	return j && has_slot(u, j) ? j : NULL;
}

void turns_dispatch(struct uploads *u)
{
	struct job *j;

	while (!u->is_draining && !u->is_stopping && (j = ready_next(u, clock_now_ms()))) {
		if (j->line->is_gone && !j->is_free_to_go) {
			job_place(j, PLACE_HELD, &j->line->held);
			continue;
		}
		if (!needs_slot(u, j)) {
			gather(u, j, job_action(u, j));
			continue;
		}
		if (pool_run(u->workers, work_run, j) < 0) {
			if (u->probe == j)
				u->probe = NULL;
			u->must_look_again = true;
			tick_at(u, clock_now_ms() + pause_here(u, PAUSE_FIRST_MS));
			return;
		}
		job_place(j, PLACE_WORKER, &u->working);
		j->refs++;
		j->workers++;
		j->turn++;
		u->transfers++;
		u->busy++;
	}
	int64_t probe_ms = probe_due(u);
	if (probe_ms > clock_now_ms())
		tick_at(u, probe_ms);
}

struct moment moment_now(struct uploads *u)
{
	return (struct moment){ clock_now_ms(), next_random(u) };
}

void job_pause(struct uploads *u, struct job *j, int64_t now_ms, int64_t pause_ms)
{
	j->due_ms = now_ms + pause_ms;
	j->item.next_wall_ms = clock_wall_ms() + pause_ms;
	j->version++;
	job_place(j, PLACE_PAUSED, &u->paused);
	tick_at(u, j->due_ms);
}
