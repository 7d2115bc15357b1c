/* The engine's public side; see upload.h. What it is made of, and who may touch what, is in upload_impl.h:
 *
 *	upload.c        beginning and end; what callers ask of a file: submit, join, cancel, rename, view, retry
 *	upload_job.c    a file as a job: its item, its row in the queue, what is told of it, and its end
 *	upload_turn.c   whose turn it is: the gate, the holds, the probes
 *	upload_step.c   one step of a job: how the backend is asked, and the table of what its answers mean
 *	upload_work.c   the workers: sign and send
 *	upload_ahead.c  links asked for while a file is still being written
 *	upload_line.c   what is asked of one session, and what shares a request
 *	upload_clock.c  the end of pauses, and of the patience of those who wait */
#include "fs/upload_impl.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/index.h"
#include "client/base/pool.h"

enum {
	LINES_MAX = 4,         /* sessions asked at one time */
	DRAIN_STILL_MS = 5000, /* a drain ends when nothing has moved for so long */
	DRAIN_END_MS = 2000,   /* for cancelled calls to end */
};

/* ---- beginning and end ------------------------------------------------------------------------------------- */

static void uploads_release(struct uploads **u)
{
	uploads_free(*u);
	*u = NULL;
}

int uploads_new(const struct uploads_config *config, struct uploads **ret)
{
	CLEANUP(uploads_release) struct uploads *u = calloc(1, sizeof(*u));
	pthread_condattr_t attr;

	if (!u)
		return -ENOMEM;
	u->config = *config;
	u->config.spool_dir = strdup(config->spool_dir);
	u->config.account = strdup(config->account);
	if (u->config.transfers_max < 1)
		u->config.transfers_max = 1;
	u->caps = backend_caps(config->backend);
	u->jobs = INDEX(job_hash);
	u->lines = INDEX(line_hash);
	struct job_list *const lists[] = { &u->ready_lines, &u->ready_persons, &u->ready_background, &u->paused,
					   &u->foreign,     &u->working,       &u->calling,          &u->ending,
					   &u->failed,      &u->waited };
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		TAILQ_INIT(lists[i]);
	u->timer_ms = INT64_MAX;
	u->random = (uint32_t)clock_wall_ns();
	u->progress_ms = clock_now_ms();
	(void)pthread_mutex_init(&u->lock, NULL); /* these can't fail on Linux */
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&u->changed, &attr);
	(void)pthread_cond_init(&u->timer, &attr);
	(void)pthread_condattr_destroy(&attr);
	u->workers = pool_new("upload", u->config.transfers_max);
	u->lines_pool = pool_new("upload-line", LINES_MAX);
	u->clock = pool_new("upload-clock", 1);
	if (!u->config.spool_dir || !u->config.account || !u->workers || !u->lines_pool || !u->clock ||
	    pool_run(u->clock, ticks_run, u) < 0)
		return -ENOMEM;
	*ret = u;
	u = NULL;
	return 0;
}

static void cancel_calls(struct uploads *u)
{
	struct job_list *const lists[] = { &u->working, &u->calling };
	struct job *j;

	for (int i = 0; i < 2; i++) {
		TAILQ_FOREACH (j, lists[i], in_list) {
			if (j->watch)
				atomic_store(&j->watch->cancelled, true);
		}
	}
	for (int i = 0; i < AHEAD_MAX; i++) {
		if (u->aheads[i])
			atomic_store(&u->aheads[i]->transfer.cancelled, true);
	}
}

/* When bytes moved last. A place in the limiter's line is nothing to end a mount late for. */
static int64_t bytes_moved_ms(const struct uploads *u)
{
	const struct job_list *const lists[] = { &u->working, &u->calling };
	const struct job *j;
	int64_t last_ms = 0;

	for (int i = 0; i < 2; i++) {
		TAILQ_FOREACH (j, lists[i], in_list) {
			if (j->watch && atomic_load(&j->watch->done_bytes) > 0 &&
			    atomic_load(&j->watch->moved_ms) > last_ms)
				last_ms = atomic_load(&j->watch->moved_ms);
		}
	}
	return last_ms;
}

/* Until nobody works any more, nothing has moved for still_ms, or the time is up. */
static void wait_for_work(struct uploads *u, int64_t ms, int64_t still_ms)
{
	int64_t began_ms = clock_now_ms();

	while (u->busy > 0) {
		int64_t now_ms = clock_now_ms(), moved_ms = bytes_moved_ms(u);
		if (u->progress_ms > moved_ms)
			moved_ms = u->progress_ms;
		if (began_ms > moved_ms)
			moved_ms = began_ms;
		int64_t left_ms = began_ms + ms - now_ms, patience_ms = moved_ms + still_ms - now_ms;
		if (patience_ms < left_ms)
			left_ms = patience_ms;
		if (left_ms <= 0)
			return;
		changed_wait(u, left_ms < PATROL_MS ? left_ms : PATROL_MS);
	}
}

static int count_waiting(struct uploads *u)
{
	struct job *j;
	int n = 0;

	for (size_t at = 0; (j = index_next(&u->jobs, &at));)
		n += j->place != PLACE_ENDING && j->place != PLACE_FAILED && j->place != PLACE_GONE;
	return n;
}

int uploads_drain(struct uploads *u, int64_t drain_ms)
{
	pthread_mutex_lock(&u->lock);
	u->is_draining = true;
	wait_for_work(u, drain_ms, pause_here(u, DRAIN_STILL_MS));
	u->is_drained = true; /* lines begin nothing more either */
	cancel_calls(u);
	wait_for_work(u, DRAIN_END_MS, DRAIN_END_MS);
	tick_now(u);
	int n = count_waiting(u);
	pthread_mutex_unlock(&u->lock);
	return n;
}

void uploads_free(struct uploads *u)
{
	struct job *j;

	if (!u)
		return;
	pthread_mutex_lock(&u->lock);
	u->is_stopping = u->is_drained = u->is_draining = true;
	cancel_calls(u);
	pthread_cond_signal(&u->timer);
	pthread_mutex_unlock(&u->lock);
	pool_free(u->workers);
	pool_free(u->lines_pool);
	pool_free(u->clock);
	/* Of files that are there: their bytes go too, and the next mount would take the rows for damaged ones. */
	TAILQ_FOREACH (j, &u->ending, in_list)
		(void)row_end(u, j, false); /* logged */
	for (size_t at = 0; (j = index_next(&u->jobs, &at)); at = 0)
		job_drop(u, j);
	index_release(&u->jobs);
	index_release(&u->lines);
	pthread_mutex_destroy(&u->lock);
	pthread_cond_destroy(&u->changed);
	pthread_cond_destroy(&u->timer);
	for (int i = 0; i < CLAIMS_MAX; i++) {
		free(u->claims[i].session_id);
		free(u->claims[i].document_id);
	}
	for (int i = 0; i < AHEAD_MAX; i++)
		ahead_free(u->aheads[i]);
	free((char *)u->config.spool_dir); /* our copies */
	free((char *)u->config.account);
	free(u);
}

/* ---- calls ------------------------------------------------------------------------------------------------- */

static int job_new(struct uploads *u, const struct queue_item *item, struct job **ret)
{
	struct job *j = calloc(1, sizeof(*j));
	int r = j ? queue_item_copy(item, &j->item) : -ENOMEM;

	if (r == 0 && !j->item.account) {
		j->item.account = strdup(u->config.account);
		r = j->item.account ? 0 : -ENOMEM;
	}
	if (r < 0) {
		if (j)
			queue_item_release(&j->item);
		free(j);
		return r;
	}
	j->uploads = u;
	j->refs = 1;
	j->place = PLACE_LIMBO;
	j->is_unsure = j->item.may_have_happened && j->item.kind == FILE_PENDING;
	j->was_put_off = j->item.attempts > 0 && (j->item.step == UPLOAD_STORED || j->item.known_id);
	*ret = j;
	return 0;
}

/* May another version take its place? */
static bool is_replaceable(const struct job *j)
{
	if (j->place == PLACE_ENDING)
		return true; /* its last event is being told, or was */
	return !job_may_have_happened(j->uploads, j) && !j->cancel_asked && j->place != PLACE_WORKER &&
	       j->place != PLACE_CALL;
}

static void job_begin(struct uploads *u, struct job *j, bool somebody_waits, int64_t not_before_ms)
{
	int64_t now_ms = clock_now_ms();
	/* From before a restart: what settled goes on settling; what was paused for a failure is tried now. */
	int64_t settle_ms = j->item.attempts == 0 && j->item.error == 0 ? j->item.next_wall_ms - clock_wall_ms() : 0;

	if (not_before_ms > now_ms)
		settle_ms = not_before_ms - now_ms;
	j->waiting_since_ms = j->progress_ms = now_ms;
	job_wait(j, somebody_waits || j->somebody_waits);
	somebody_waits = j->somebody_waits; /* somebody may have joined while the row was written */
	/* Known to be away: one attempt for who waits. A new file may prompt a probe, but not each one. */
	j->is_free_to_go = somebody_waits && u->is_away && !u->account_is_held;
	if (turns_are_blocked(u) && now_ms - u->probe_last_ms >= pause_here(u, PROBE_AGAIN_MS))
		u->probe_at_ms = u->account_probe_ms = now_ms;
	if (j->item.fault == FAULT_GONE && !somebody_waits && !j->line->is_gone) {
		j->line->is_gone = true; /* as it was before the restart; one asks for all */
		j->line->probe_ms = 0;
	}
	if (j->line->is_gone && (somebody_waits || now_ms - j->line->probe_ms >= ACCOUNT_PAUSE_MS)) {
		j->line->probe_ms = now_ms;
		j->is_free_to_go = true;
	}
	if (settle_ms > 0 && settle_ms <= DAY_MS) {
		job_place(j, PLACE_PAUSED, &u->paused);
		j->is_settling = true;
		j->due_ms = now_ms + settle_ms;
		tick_at(u, j->due_ms);
	} else {
		job_ready(u, j);
	}
	if (u->account_is_held && somebody_waits)
		turns_dispatch(u); /* the credentials may be new: one asks */
	if (somebody_waits)
		tick_now(u);
}

static bool item_is_sound(const struct queue_item *i)
{
	return i->session_id && i->name && *i->name && i->kind != FILE_SCRATCH && strlen(i->sha256) == 64 &&
	       i->step != UPLOAD_ATTACHED;
}

/* Puts j into the table in place of `old` (NULL: none), whose row it is about to replace. */
static int table_replace(struct uploads *u, struct job *old, struct job *j)
{
	if (old)
		index_remove(&u->jobs, old);
	int r = index_put(&u->jobs, j);
	if (r < 0 && old)
		(void)index_put(&u->jobs, old); /* the room it had is there */
	return r;
}

/* The new version could not be written: the old one, if any, is what there is. */
static void table_put_back(struct uploads *u, struct job *old, enum place place, struct job_list *list, struct job *j)
{
	job_wait(j, false);
	job_place(j, PLACE_GONE, NULL);
	index_remove(&u->jobs, j);
	job_unref(j);
	if (!old)
		return;
	(void)index_put(&u->jobs, old); /* as above */
	if (place == PLACE_ENDING && old->is_told && old->item.kind != FILE_FAILED) {
		list = &u->ending; /* who was about to remove its row may have given up */
		old->due_ms = clock_now_ms() + REMOVE_AGAIN_MS;
		tick_at(u, old->due_ms);
	}
	job_place(old, place, list);
}

/* Writes the row of a job that nobody works on yet, and begins. Holds the lock, and gives it up meanwhile. */
static int submit(struct uploads *u, struct job *j, const struct queue_item *item, bool somebody_waits,
		  int64_t not_before_ms)
{
	struct job *old = job_find(u, item->ino);

	if (old && !is_replaceable(old))
		return -EBUSY;
	int r = table_replace(u, old, j);
	if (r < 0)
		return r;
	/* The old one leaves first, so that nobody writes its row over the new one; its row stays until that is
	 * there. */
	enum place old_place = old ? old->place : PLACE_GONE;
	struct job_list *old_list = old ? old->list : NULL;
	j->refs++;
	j->is_writing = true;
	if (old) {
		job_place(old, PLACE_GONE, NULL);
		row_wait(u, old);
	}
	pthread_mutex_unlock(&u->lock);
	r = queue_put(u->config.queue, item);
	pthread_mutex_lock(&u->lock);
	row_let_go(u, j);
	if (r < 0) {
		table_put_back(u, old, old_place, old_list, j);
		return r;
	}
	if (old)
		job_drop(u, old);
	if (j->item.kind == FILE_FAILED)
		job_place(j, PLACE_FAILED, &u->failed);
	else
		job_begin(u, j, somebody_waits, not_before_ms);
	turns_dispatch(u);
	if (u->is_drained)
		tick_now(u);
	return 0;
}

int uploads_submit(struct uploads *u, const struct queue_item *item, bool somebody_waits, int64_t not_before_ms)
{
	CLEANUP(queue_item_release) struct queue_item row = { 0 };
	struct job *j = NULL;

	if (!item_is_sound(item))
		return -EINVAL;
	int r = job_new(u, item, &j);
	if (r < 0)
		return r;
	if (not_before_ms > clock_now_ms())
		j->item.next_wall_ms = clock_wall_ms() + (not_before_ms - clock_now_ms());
	SCOPED_LOCK(&u->lock);
	j->line = line_get(u, item->session_id);
	if (!j->line)
		r = -ENOMEM;
	if (r == 0)
		r = claims_apply(u, j);
	if (r == 0)
		r = queue_item_copy(&j->item, &row); /* a rename may change the job's while its row is written */
	j->written = j->version;
	if (r == 0)
		r = submit(u, j, &row, somebody_waits, not_before_ms);
	job_unref(j); /* the table has its own */
	return r;
}

int uploads_join(struct uploads *u, uint64_t ino)
{
	SCOPED_LOCK(&u->lock);
	struct job *j = job_find(u, ino);

	if (!j || j->place == PLACE_ENDING || j->place == PLACE_FAILED || j->place == PLACE_GONE || j->cancel_asked)
		return -ENOENT;
	j->waiting_since_ms = clock_now_ms();
	j->has_failed_since_wait = false;
	job_wait(j, true);
	if (u->is_away)
		j->is_free_to_go = true;
	if (j->place == PLACE_READY || (j->place == PLACE_PAUSED && !j->is_settling))
		job_ready(u, j); /* somebody waits: a long pause ends */
	turns_dispatch(u);
	tick_now(u);
	return 0;
}

/* It was sent: asks what became of it as soon as it can. */
static int cancel_later(struct uploads *u, struct job *j, bool keep)
{
	j->cancel_asked = true;
	j->keeps_row = keep;
	if (j->place == PLACE_WORKER && j->watch)
		atomic_store(&j->watch->cancelled, true); /* a store with effect: the bytes need not all go */
	if (j->place == PLACE_PAUSED || j->place == PLACE_HELD)
		job_ready(u, j);
	turns_dispatch(u);
	return -EINPROGRESS;
}

int uploads_cancel(struct uploads *u, uint64_t ino, bool keep)
{
	pthread_mutex_lock(&u->lock);
	struct job *j;
	int r = -ENOENT;

	ahead_drop(ahead_find(u, ino));
	/* Whoever writes the row is waited for, and may have changed everything. */
	while ((j = job_find(u, ino)) && j->is_writing) {
		j->refs++;
		row_wait(u, j);
		job_unref(j);
	}
	if (!j || j->place == PLACE_GONE || (j->place == PLACE_ENDING && j->is_told && j->item.kind != FILE_FAILED)) {
		r = -ENOENT;
	} else if (j->place == PLACE_ENDING && j->item.kind != FILE_FAILED) {
		r = -EINPROGRESS;
	} else if (job_may_have_happened(u, j) && j->item.kind != FILE_FAILED && !job_is_foreign(u, j)) {
		r = cancel_later(u, j, keep);
	} else {
		bool was_failed = j->item.kind == FILE_FAILED;
		if (j->watch)
			atomic_store(&j->watch->cancelled, true);
		job_place(j, PLACE_GONE, NULL); /* whoever has it in hand lets go of it from now on */
		j->is_writing = true;
		j->refs++;
		pthread_mutex_unlock(&u->lock);
		r = row_end(u, j, keep);
		pthread_mutex_lock(&u->lock);
		row_let_go(u, j);
		if (r == 0) {
			job_drop(u, j);
		} else if (was_failed) {
			job_place(j, PLACE_FAILED, &u->failed);
		} else {
			job_place(j, PLACE_LIMBO, NULL);
			if (j->workers == 0)
				job_ready(u, j);
		}
		job_unref(j);
		turns_dispatch(u);
	}
	pthread_mutex_unlock(&u->lock);
	return r;
}

/* Puts the job into another session's line. */
static int job_move_line(struct uploads *u, struct job *j, const char *session_id)
{
	struct line *to = line_get(u, session_id);

	if (!to)
		return -ENOMEM;
	line_unref(u, j->line);
	j->line = to;
	free(j->item.prior_ids); /* of the old session: asked anew */
	j->item.prior_ids = NULL;
	return 0;
}

static bool can_be_renamed(const struct uploads *u, const struct job *j)
{
	if (j->item.kind == FILE_FAILED)
		return true;
	return !job_may_have_happened(u, j) && !j->cancel_asked && j->place != PLACE_CALL && j->place != PLACE_ENDING;
}

/* Three texts that change places with the item's. */
struct new_name {
	char *session_id, *session_name, *name;
};

static void new_name_release(struct new_name *n)
{
	free(n->session_id);
	free(n->session_name);
	free(n->name);
}

static void text_swap(char **a, char **b)
{
	char *t = *a;

	*a = *b;
	*b = t;
}

/* What follows goes by the new name; n holds the old one afterwards. */
static int job_rename(struct uploads *u, struct job *j, struct new_name *n)
{
	bool is_other_session = strcmp(j->item.session_id, n->session_id) != 0;
	bool is_other_type = strcasecmp(upload_suffix(j->item.name), upload_suffix(n->name)) != 0;
	bool moves =
		j->place == PLACE_READY || j->place == PLACE_GATHERED || (j->place == PLACE_HELD && is_other_session);

	if (moves)
		job_place(j, PLACE_LIMBO, NULL); /* out of its old session's line, before that may end */
	int r = is_other_session ? job_move_line(u, j, n->session_id) : 0;
	if (r < 0) {
		if (moves)
			job_ready(u, j);
		return r;
	}
	text_swap(&j->item.session_id, &n->session_id);
	text_swap(&j->item.session_name, &n->session_name);
	text_swap(&j->item.name, &n->name);
	j->version++;
	if (is_other_type && j->place == PLACE_WORKER) {
		j->restarts = true;
		if (j->watch)
			atomic_store(&j->watch->cancelled, true);
	} else if (is_other_type && j->item.step != UPLOAD_SPOOLED) {
		item_back_to_spooled(j); /* it was signed for the other type */
		j->item.may_have_happened = false;
	}
	if (moves)
		job_ready(u, j);
	return 0;
}

int uploads_rename(struct uploads *u, uint64_t ino, const char *session_id, const char *session_name, const char *name)
{
	CLEANUP(new_name_release)
	struct new_name n = { strdup(session_id), session_name ? strdup(session_name) : NULL, strdup(name) };

	if (!n.session_id || !n.name || (session_name && !n.session_name))
		return -ENOMEM;
	SCOPED_LOCK(&u->lock);
	struct job *j = job_find(u, ino);
	if (!j || j->place == PLACE_GONE)
		return -ENOENT;
	if (!can_be_renamed(u, j))
		return -EINPROGRESS;
	int r = job_rename(u, j, &n);
	if (r < 0)
		return r;
	/* The name is what the user saw succeed: on the disk before we say so. */
	j->refs++;
	r = row_write(u, j);
	if (r == -ECANCELED)
		r = -ENOENT;
	else if (r < 0 && can_be_renamed(u, j))
		(void)job_rename(u, j, &n); /* back; without memory for that it goes by the new name */
	else if (r < 0)
		r = 0; /* its last step is on its way, under the new name */
	job_unref(j);
	turns_dispatch(u);
	return r;
}

static enum document_state job_state(const struct uploads *u, const struct job *j)
{
	switch (j->place) {
	case PLACE_FAILED:
		return STATE_FAILED;
	case PLACE_WORKER:
	case PLACE_GATHERED:
	case PLACE_CALL:
	case PLACE_ENDING:
	case PLACE_GONE:
		return j->item.kind == FILE_FAILED ? STATE_FAILED : STATE_UPLOADING;
	case PLACE_HELD:
		return STATE_WAITING;
	case PLACE_READY:
	case PLACE_LIMBO:
	case PLACE_PAUSED:
		break;
	}
	return j->item.error || (turns_are_blocked(u) && !j->is_settling) ? STATE_WAITING : STATE_QUEUED;
}

int uploads_view(struct uploads *u, uint64_t ino, struct upload_view *ret)
{
	SCOPED_LOCK(&u->lock);
	const struct job *j = job_find(u, ino);
	const char *words;

	if (!j)
		return -ENOENT;
	*ret = (struct upload_view){
		.state = job_state(u, j),
		.step = j->item.step,
		.size_bytes = j->item.size_bytes,
		.moved_ms = j->progress_ms,
		.error = j->item.error,
	};
	words = j->item.words;
	if (j->item.step >= UPLOAD_STORED)
		ret->done_bytes = j->item.size_bytes;
	else if (j->watch && j->item.step == UPLOAD_SIGNED)
		ret->done_bytes = atomic_load(&j->watch->done_bytes);
	if (j->watch && atomic_load(&j->watch->moved_ms) > ret->moved_ms)
		ret->moved_ms = atomic_load(&j->watch->moved_ms);
	if (job_is_foreign(u, j) && j->place == PLACE_HELD) {
		ret->error = -EACCES;
		words = "it belongs to another account";
	} else if (u->account_is_held && j->place == PLACE_READY) {
		ret->error = -EACCES;
		words = u->account_words;
	} else if (j->place == PLACE_HELD) {
		ret->error = -ENOENT;
		words = "the session is gone";
	}
	(void)snprintf(ret->words, sizeof(ret->words), "%s", words ? words : ""); /* cut to what is shown */
	return 0;
}

void uploads_count(struct uploads *u, int *ret_waiting, int *ret_failed)
{
	SCOPED_LOCK(&u->lock);
	struct job *j;
	int failed = 0;

	TAILQ_FOREACH (j, &u->failed, in_list)
		failed++;
	*ret_waiting = count_waiting(u);
	*ret_failed = failed;
}

/* A refused one from the beginning. Its row follows before anything is sent. */
static void job_begin_anew(struct uploads *u, struct job *j)
{
	j->item.kind = FILE_PENDING;
	item_back_to_spooled(j);
	j->item.error = 0;
	j->item.fault = FAULT_NONE;
	free(j->item.words);
	j->item.words = NULL;
	j->item.key_renewed = false;
	j->item.queued_wall_ms = clock_wall_ms();
	j->is_unsure = j->item.may_have_happened;
	j->is_conflict = j->signs_again = j->fails_then = j->was_put_off = j->is_told = false;
	j->first_failure_ms = 0;
	j->batch_max = 0;
	if (!j->is_unsure) {
		free(j->item.prior_ids);
		j->item.prior_ids = NULL;
	}
	job_ready(u, j);
}

static void retry_all(struct uploads *u)
{
	struct line *l;

	u->account_is_held = false;
	u->gate_is_closed = u->is_away = false;
	gate_open(u);
	for (size_t at = 0; (l = index_next(&u->lines, &at));)
		line_release(u, l);
	jobs_ready(u, &u->paused);
	jobs_ready(u, &u->ready_lines);
	while (!TAILQ_EMPTY(&u->failed))
		job_begin_anew(u, TAILQ_FIRST(&u->failed));
}

int uploads_retry(struct uploads *u, uint64_t ino)
{
	SCOPED_LOCK(&u->lock);

	if (ino == 0) {
		retry_all(u);
	} else {
		struct job *j = job_find(u, ino);
		if (!j || j->place == PLACE_GONE)
			return -ENOENT;
		j->is_free_to_go = true;
		if (j->place == PLACE_FAILED)
			job_begin_anew(u, j);
		else if (j->place == PLACE_PAUSED || j->place == PLACE_READY || j->place == PLACE_HELD)
			job_ready(u, j);
	}
	turns_dispatch(u);
	return 0;
}

void uploads_service_answered(struct uploads *u)
{
	SCOPED_LOCK(&u->lock);

	u->is_away = false;
	if (!turns_are_blocked(u) || u->probe)
		return;
	/* It answered a question, which proves neither the storage nor our right to upload: one file goes ahead at
	 * once, and takes the others along when it succeeds. */
	u->probe_at_ms = u->account_probe_ms = clock_now_ms();
	turns_dispatch(u);
}
