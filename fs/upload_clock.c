/* The clock: a thread of its own, so that blocked calls cannot hold it up. It ends pauses, and tells those who wait for
 * longer than the close timeout without progress. */
#include "fs/upload_impl.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "client/base/clock.h"
#include "client/base/log.h"

enum {
	AWAY_PATIENCE_MS = 2000, /* one attempt while the service is known to be away */
};

int64_t pause_here(const struct uploads *u, int64_t ms)
{
	return u->config.haste > 1 ? ms / u->config.haste : ms;
}

static struct timespec in_ms(int64_t ms)
{
	struct timespec until;

	(void)clock_gettime(CLOCK_MONOTONIC, &until); /* can't fail for this clock */
	until.tv_sec += ms / 1000;
	until.tv_nsec += ms % 1000 * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return until;
}

void changed_wait(struct uploads *u, int64_t ms)
{
	struct timespec until = in_ms(ms);

	(void)pthread_cond_timedwait(&u->changed, &u->lock, &until); /* whoever calls looks at the time */
}

/* Notes what moves: bytes, and a place in the limiter's line, which is nobody's failure. */
static void patrol_progress(struct uploads *u, struct job_list *list, int64_t now_ms)
{
	struct job *j;

	TAILQ_FOREACH (j, list, in_list) {
		if (!j->watch)
			continue;
		int64_t moved_ms = 0;
		if (atomic_load(&j->watch->waits_for_place))
			moved_ms = now_ms;
		else if (atomic_load(&j->watch->done_bytes) > 0)
			moved_ms = atomic_load(&j->watch->moved_ms);
		if (moved_ms > j->progress_ms && !job_goes_in_circles(j))
			j->progress_ms = moved_ms;
		if (moved_ms > u->moving_ms)
			u->moving_ms = moved_ms;
	}
}

/* What a waiting close has to be told now, or 0. */
static int patience_end(const struct uploads *u, const struct job *j, int64_t now_ms, const char **ret_words)
{
	int64_t since_ms = j->waiting_since_ms > j->progress_ms ? j->waiting_since_ms : j->progress_ms;
	bool is_in_call = j->place == PLACE_WORKER || j->place == PLACE_CALL;

	*ret_words = j->item.words;
	if (j->place == PLACE_ENDING || j->place == PLACE_FAILED || j->place == PLACE_GONE || j->is_settling)
		return 0;
	if (job_is_foreign(u, j)) {
		*ret_words = "it belongs to another account";
		return -EACCES;
	}
	if (u->is_drained) {
		*ret_words = "it waits for the next mount";
		return j->item.error ? j->item.error : -EIO;
	}
	if (u->account_is_held && !is_in_call && !j->is_free_to_go && u->probe != j) {
		*ret_words = u->account_words;
		return -EACCES;
	}
	if (j->place == PLACE_HELD) {
		*ret_words = "the session is gone";
		return -ENOENT;
	}
	/* A disk that is full twice is full for longer than anybody waits for it. */
	if ((u->is_away || j->failures_here > 1) && j->has_failed_since_wait)
		return j->item.error;
	/* Behind others it waits for them, and fails when they do; its own failures are its own. */
	if (!is_in_call && !j->has_failed_since_wait) {
		since_ms = u->progress_ms > since_ms ? u->progress_ms : since_ms;
		since_ms = u->moving_ms > since_ms ? u->moving_ms : since_ms;
	}
	if (now_ms - since_ms < (u->is_away ? AWAY_PATIENCE_MS : u->config.close_timeout_ms))
		return 0;
	if (j->item.error)
		return j->item.error;
	*ret_words = "the service does not answer in time";
	return -ETIMEDOUT;
}

/* One was told. When nothing went through since its trouble began, the service itself is away. */
static void patience_ended(struct uploads *u, struct job *j, int error)
{
	int64_t since_ms = j->waiting_since_ms;

	if (u->is_away || u->is_drained || j->failures_here > 0 || (error != -ETIMEDOUT && error != -EIO) ||
	    u->account_is_held)
		return;
	if (j->first_failure_ms > since_ms)
		since_ms = j->first_failure_ms;
	if (j->progress_ms > since_ms)
		since_ms = j->progress_ms;
	if (u->progress_ms > since_ms)
		return;
	log_warning("upload: the service is away; files wait");
	u->is_away = true;
	if (u->failures == 0 || j->item.step > u->trouble_step)
		u->trouble_step = j->item.step;
	u->failures++;
	probe_put_off(u, -1);
	gate_close(u);
}

/* What is told of a file somebody waits for. It needs no memory, as whoever waits has to hear even when there is none. */
struct notice {
	struct queue_item item; /* without what only the engine needs */
	char session_id[256], session_name[256], name[256], words[512];
};

static char *notice_text(char *room, size_t bytes, const char *text)
{
	(void)snprintf(room, bytes, "%s", text ? text : ""); /* names have 255 bytes; words are cut to what is shown */
	return text ? room : NULL;
}

static void notice_fill(struct notice *n, const struct queue_item *item, const char *words)
{
	n->item = *item;
	n->item.session_id = notice_text(n->session_id, sizeof(n->session_id), item->session_id);
	n->item.session_name = notice_text(n->session_name, sizeof(n->session_name), item->session_name);
	n->item.name = notice_text(n->name, sizeof(n->name), item->name);
	n->item.words = notice_text(n->words, sizeof(n->words), words);
	n->item.ticket = n->item.account = n->item.known_id = n->item.known_session_id = NULL;
	n->item.prior_ids = n->item.supersedes_id = NULL;
}

/* Gives the lock up. Returns whether somebody was told. */
static bool tell_one_waiting(struct uploads *u, int64_t now_ms)
{
	struct job *j;

	TAILQ_FOREACH (j, &u->waited, in_waited) {
		const char *words = NULL;
		int error = patience_end(u, j, now_ms, &words);
		if (error == 0 || j->is_telling)
			continue;
		struct notice notice;
		notice_fill(&notice, &j->item, words);
		if (!j->item.error && error != -ETIMEDOUT)
			j->item.error = error;
		patience_ended(u, j, error);
		job_wait(j, false);
		j->is_free_to_go = false;
		j->is_telling = true;
		j->refs++;
		pthread_mutex_unlock(&u->lock);
		u->config.event(u->config.arg, UPLOAD_WAITING, &notice.item, NULL, error, words ? notice.words : NULL);
		pthread_mutex_lock(&u->lock);
		j->is_telling = false;
		pthread_cond_broadcast(&u->changed);
		job_unref(j);
		return true;
	}
	return false;
}

static void tick_pauses(struct uploads *u, int64_t now_ms)
{
	struct job *next;

	for (struct job *j = TAILQ_FIRST(&u->paused); j && !u->is_draining; j = next) {
		next = TAILQ_NEXT(j, in_list);
		if (j->due_ms <= now_ms)
			job_ready(u, j);
	}
}

/* Rows the disk would not remove. Gives the lock up. */
static void tick_rows(struct uploads *u, int64_t now_ms)
{
	for (;;) {
		struct job *j = TAILQ_FIRST(&u->ending);
		if (!j || j->due_ms > now_ms || u->is_stopping)
			return;
		j->refs++;
		job_place(j, PLACE_ENDING, NULL);
		job_remove_row(u, j);
		job_unref(j);
	}
}

static int64_t tick_next(struct uploads *u, int64_t now_ms)
{
	int64_t at_ms = INT64_MAX;
	struct job *j;

	if (!TAILQ_EMPTY(&u->waited))
		at_ms = now_ms + PATROL_MS;
	if (u->must_look_again && now_ms + PAUSE_FIRST_MS < at_ms)
		at_ms = now_ms + PAUSE_FIRST_MS;
	if (!u->is_draining) {
		TAILQ_FOREACH (j, &u->paused, in_list) {
			if (j->due_ms < at_ms)
				at_ms = j->due_ms;
		}
	}
	TAILQ_FOREACH (j, &u->ending, in_list) {
		if (j->due_ms < at_ms)
			at_ms = j->due_ms;
	}
	/* One that is due already waits for a worker, who will see to it. */
	int64_t probe_ms = probe_due(u);
	return probe_ms > now_ms && probe_ms < at_ms ? probe_ms : at_ms;
}

/* Gives the lock up meanwhile. */
static void tick(struct uploads *u)
{
	struct line *l;
	int64_t now_ms = clock_now_ms();
	u->timer_ms = INT64_MAX;
	if (u->must_look_again) {
		u->must_look_again = false;
		for (size_t at = 0; (l = index_next(&u->lines, &at));)
			line_start(u, l);
	}
	tick_pauses(u, now_ms);
	tick_rows(u, now_ms);
	patrol_progress(u, &u->working, now_ms);
	patrol_progress(u, &u->calling, now_ms);
	while (!u->is_stopping && tell_one_waiting(u, clock_now_ms()))
		;
	turns_dispatch(u);
	now_ms = clock_now_ms();
	int64_t next_ms = tick_next(u, now_ms);
	if (next_ms != INT64_MAX)
		tick_at(u, next_ms > now_ms ? next_ms : now_ms + 1);
}

/* One job of its pool from the beginning to the end: a tick that needed memory could fail to come, and then nobody would
 * tell those who wait. */
void ticks_run(void *arg)
{
	struct uploads *u = arg;

	pthread_mutex_lock(&u->lock);
	while (!u->is_stopping) {
		int64_t left_ms = u->timer_ms == INT64_MAX ? INT64_MAX : u->timer_ms - clock_now_ms();
		struct timespec until = in_ms(left_ms > 0 && left_ms < DAY_MS ? left_ms : DAY_MS);
		if (left_ms <= 0)
			tick(u);
		else if (left_ms == INT64_MAX)
			pthread_cond_wait(&u->timer, &u->lock);
		else
			(void)pthread_cond_timedwait(&u->timer, &u->lock,
						     &until); /* whatever woke it, it looks again */
	}
	pthread_mutex_unlock(&u->lock);
}

void tick_at(struct uploads *u, int64_t at_ms)
{
	if (u->is_stopping || at_ms >= u->timer_ms)
		return;
	u->timer_ms = at_ms;
	pthread_cond_signal(&u->timer);
}

void tick_now(struct uploads *u)
{
	tick_at(u, clock_now_ms());
}

void tick_for_waiting(struct uploads *u)
{
	if (!TAILQ_EMPTY(&u->waited))
		tick_now(u);
}
