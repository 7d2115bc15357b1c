/* Works the queue off; see upload.h.
 *
 * A file is a job. Where it stands says who may touch it:
 *
 *	            sign, send                  gathered per session             one call under way per session
 *	READY ----> WORKER ------------------> GATHERED ----------------------> CALL ----> ENDING
 *	  ^  ^        |                            (looks, shortcuts, attaches)   |
 *	  |  +--------+------------ PAUSED <--------------------------------------+
 *	  +------------------------ HELD (its session is gone, or it is another account's)
 *
 * Workers sign and send, a few at a time. What has to be asked of a session (is it there? attach by a known id; attach
 * what was sent) collects in the session's line, which asks one thing at a time: what comes meanwhile shares the next
 * request.
 *
 * While the service fails, a gate is closed: one job at a time goes through as a probe, with growing pauses, and the
 * first success at the step that failed opens it for all. The clock (a thread of its own, so that blocked calls cannot
 * hold it up) ends pauses, and tells those who wait for longer than the close timeout without progress. */
#include "fs/upload.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/queue.h>
#include <time.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/index.h"
#include "client/base/log.h"
#include "client/base/pool.h"

enum {
	LINES_MAX = 4,   /* sessions asked at one time */
	BATCH_MAX = 100, /* whatever a backend says */
	PAUSE_FIRST_MS = 1000,
	PAUSE_MAX_MS = 5 * 60 * 1000,
	PAUSE_WAITED_MS = 2000,  /* while somebody waits */
	PAUSE_LOCAL_MS = 5000,   /* our own disk or memory failed */
	AWAY_PATIENCE_MS = 2000, /* one attempt while the service is known to be away */
	ACCOUNT_PAUSE_MS = 60 * 1000,
	PROBE_AGAIN_MS = 5000, /* a new file may cause a probe, but no more often */
	REMOVE_AGAIN_MS = 60 * 1000,
	PATROL_MS = 200,                  /* while somebody waits */
	FAILURES_TO_CLOSE = 3,            /* in a row, before all wait for a probe */
	DRAIN_STILL_MS = 5000,            /* a drain ends when nothing has moved for so long */
	DRAIN_END_MS = 2000,              /* for cancelled calls to end */
	LINK_LIFETIME_MS = 4 * 60 * 1000, /* a signed link older than this is not tried */
	FINAL_TRIES = 10,
	CLAIMS_MAX = 256, /* of documents lately made, where equal bytes make two */
	AHEAD_MAX = 16,   /* links for files that are still being written */
	AHEAD_WAIT_MS = 2000,
};
static const int64_t DAY_MS = INT64_C(24) * 3600 * 1000;

/* ---- what an answer means for a file ------------------------------------------------------------------------ */

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

/* ---- what there is ----------------------------------------------------------------------------------------- */

enum place {
	PLACE_READY,  /* waits for its turn */
	PLACE_PAUSED, /* until due_ms */
	PLACE_HELD,
	PLACE_WORKER,   /* being signed or sent */
	PLACE_GATHERED, /* in its session's line */
	PLACE_CALL,     /* in its session's call */
	PLACE_ENDING,   /* its last event is told, its row goes */
	PLACE_FAILED,   /* refused for good */
	PLACE_LIMBO,    /* READY as soon as the worker that still has it lets go */
	PLACE_GONE,     /* out of the table, or about to be */
};

/* What a job needs next. */
enum action { ACTION_ASK_KNOWN, ACTION_SIGN, ACTION_STORE, ACTION_LOOK, ACTION_SHORTCUT, ACTION_ATTACH };

TAILQ_HEAD(job_list, job);

struct job {
	struct uploads *uploads; /* set once, as is item.ino */
	/* uploads->lock guards the rest. */
	int refs;      /* the table's, and one of each worker */
	int workers;   /* who has it in hand */
	unsigned turn; /* +1 each time a worker gets it */
	enum place place;
	struct job_list *list; /* that it is in; NULL: none */
	TAILQ_ENTRY(job) in_list;
	TAILQ_ENTRY(job) in_waited;
	struct line *line; /* of its session */

	struct queue_item item;
	uint64_t version, written; /* of item; equal: the row says the same */
	bool is_writing;           /* somebody writes or removes the row */
	bool is_telling;           /* an event about it, not its last, is being told */
	bool is_told;              /* its last event was */

	bool is_sent;      /* a step with effect is under way */
	bool is_unsure;    /* one was, and nobody knows whether it had its effect */
	bool is_retry;     /* the next step may have been tried before */
	bool is_conflict;  /* the service says it is there already */
	bool signs_again;  /* not there: nothing will come of this ticket */
	bool fails_then;   /* not there: it was refused for good */
	bool was_put_off;  /* the last step was tried, answered "not now", and not looked up since: what answers so may
			     stand behind the service */
	int vain_looks;    /* that found nothing, though something was sent */
	int failures_here; /* of our own disk or memory, in a row */
	bool restarts;     /* renamed to another type while a worker has it */
	bool cancel_asked, keeps_row;
	bool is_settling;   /* paused for `settle` */
	bool is_free_to_go; /* past the gate and the holds, for one attempt */
	int batch_max;      /* after a refused batch: with at most so many */

	struct transfer *watch; /* of the call it is in; NULL: none */
	bool somebody_waits, has_failed_since_wait;
	int64_t due_ms; /* PLACE_PAUSED */
	int64_t waiting_since_ms;
	int64_t progress_ms; /* bytes, or an answer */
	int64_t call_began_ms,
		progress_before_ms; /* so that bytes of a call that fails in the end are not progress for good */
	int64_t first_failure_ms;   /* 0: none */
};

/* What is to be asked of one session. */
struct line {
	struct uploads *uploads; /* these two are set once */
	char *session_id;
	int refs; /* its jobs, and the one that runs; uploads->lock guards this and the rest */
	struct job_list looks, shortcuts, attaches;
	struct job_list held; /* the session is gone */
	bool is_running;
	bool is_gone;
	int64_t probe_ms; /* when a job was last let through to a session that is gone */
};

/* A document that is some file's own. */
struct claim {
	char *session_id, *document_id;
	char sha256[65];
};

/* A signed link for a file that is still being written. */
struct ahead {
	struct uploads *uploads; /* these are set once */
	uint64_t ino;
	char *session_id, *name;
	struct transfer transfer;
	/* uploads->lock guards the rest. */
	bool is_asking, is_unwanted;
	char *ticket;
	int64_t ticket_wall_ms;
};

struct uploads {
	struct uploads_config config; /* these are set once; its texts are copies */
	const struct backend_caps *caps;
	struct pool *workers, *lines_pool, *clock;

	pthread_mutex_t lock;   /* guards what follows, the jobs and the lines; taken before a pool's own */
	pthread_cond_t changed; /* somebody waits for a row, an event, or the end of work */
	pthread_cond_t timer;   /* the clock waits for timer_ms, or for another */
	struct index jobs, lines;
	struct job_list ready_lines, ready_persons, ready_background;
	struct job_list paused, foreign, working, calling, ending, failed;
	struct job_list waited; /* by in_waited */
	int transfers;          /* workers at work */
	int busy;               /* workers and lines at work */
	bool is_draining, is_drained, is_stopping;
	bool must_look_again; /* a pool had no memory for a job */
	int64_t timer_ms;     /* the earliest tick to come; INT64_MAX: none */
	uint32_t random;
	struct claim claims[CLAIMS_MAX]; /* a ring */
	int next_claim;
	struct ahead *aheads[AHEAD_MAX];

	bool account_is_held;
	int64_t account_probe_ms, probe_last_ms;
	char account_words[200];

	bool gate_is_closed;
	bool is_away;                  /* a waiting close was told so; others need not wait as long */
	int failures;                  /* in a row */
	enum upload_step trouble_step; /* what has to succeed to open the gate */
	int probe_attempts;
	int64_t probe_at_ms;
	struct job *probe;   /* the one let through */
	int64_t progress_ms; /* the service answered anybody */
	int64_t moving_ms;   /* bytes moved, or the limiter's line did */
	int64_t last_done_ms;
};

static void dispatch(struct uploads *u);
static void job_ready(struct uploads *u, struct job *j);
static void tick_at(struct uploads *u, int64_t at_ms);
static void tick_for_waiting(struct uploads *u);
static void line_start(struct uploads *u, struct line *l);

/* How long a pause is here. */
static int64_t paced(const struct uploads *u, int64_t ms)
{
	return u->config.haste > 1 ? ms / u->config.haste : ms;
}

static uint32_t next_random(struct uploads *u)
{
	u->random = u->random * 1664525 + 1013904223; /* spreads retries; nothing depends on it */
	return u->random;
}

static bool is_blocked(const struct uploads *u)
{
	return u->account_is_held || u->gate_is_closed;
}

/* ---- lines and jobs ---------------------------------------------------------------------------------------- */

static uint64_t line_hash(const void *item)
{
	return index_hash_text(((const struct line *)item)->session_id);
}

static bool line_is(const void *item, const void *key)
{
	return strcmp(((const struct line *)item)->session_id, key) == 0;
}

/* A reference, or NULL without memory. */
static struct line *line_get(struct uploads *u, const char *session_id)
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

static void line_unref(struct uploads *u, struct line *l)
{
	if (!l || --l->refs > 0)
		return;
	index_remove(&u->lines, l);
	free(l->session_id);
	free(l);
}

static uint64_t job_hash(const void *item)
{
	return index_hash_number(((const struct job *)item)->item.ino);
}

static bool job_is(const void *item, const void *key)
{
	return ((const struct job *)item)->item.ino == *(const uint64_t *)key;
}

static struct job *job_find(struct uploads *u, uint64_t ino)
{
	return index_find(&u->jobs, index_hash_number(ino), job_is, &ino);
}

static void job_unref(struct job *j)
{
	if (--j->refs > 0)
		return;
	line_unref(j->uploads, j->line);
	queue_item_release(&j->item);
	free(j);
}

static void job_place(struct job *j, enum place place, struct job_list *list)
{
	struct uploads *u = j->uploads;

	if (j->list)
		TAILQ_REMOVE(j->list, j, in_list);
	j->list = list;
	if (list)
		TAILQ_INSERT_TAIL(list, j, in_list);
	j->place = place;
	if (u->probe == j && place != PLACE_WORKER && place != PLACE_GATHERED && place != PLACE_CALL)
		u->probe = NULL;
}

static void job_wait(struct job *j, bool somebody_waits)
{
	struct uploads *u = j->uploads;

	if (somebody_waits == j->somebody_waits)
		return;
	j->somebody_waits = somebody_waits;
	if (somebody_waits)
		TAILQ_INSERT_TAIL(&u->waited, j, in_waited);
	else
		TAILQ_REMOVE(&u->waited, j, in_waited);
}

/* Out of the table: whoever still has it in hand will see that it is gone. */
static void job_drop(struct uploads *u, struct job *j)
{
	job_wait(j, false);
	index_remove(&u->jobs, j);
	job_place(j, PLACE_GONE, NULL);
	pthread_cond_broadcast(&u->changed);
	job_unref(j);
}

static bool job_is_foreign(const struct uploads *u, const struct job *j)
{
	return strcmp(j->item.account, u->config.account) != 0;
}

/* A signed link lives for minutes, what was sent by it for as long as the service says. Was it old so long ago? */
static bool ticket_was_old(const struct uploads *u, const struct queue_item *item, int64_t ago_ms)
{
	int64_t life = item->step == UPLOAD_SIGNED && !u->caps->store_has_effect ? LINK_LIFETIME_MS : DAY_MS;
	int64_t age = clock_wall_ms() - ago_ms - item->ticket_wall_ms;

	if (u->caps->key_lifetime_ms > 0 && u->caps->key_lifetime_ms < life)
		life = u->caps->key_lifetime_ms;
	return age > life || age < -DAY_MS; /* a clock that jumped back says nothing */
}

/* May a document come, or have come, of what was sent already? */
static bool may_have_happened(const struct uploads *u, const struct job *j)
{
	return j->is_sent || j->is_unsure || (u->caps->store_has_effect && j->item.step == UPLOAD_STORED);
}

/* May a ticket that is refused have made its document before that? */
static bool may_be_used_up(const struct uploads *u, const struct job *j)
{
	return j->was_put_off || (u->caps->store_has_effect && j->item.step == UPLOAD_STORED);
}

/* The next thing is a look, after a crash too. */
static void item_unsure(struct job *j)
{
	j->is_unsure = j->item.may_have_happened = true;
	j->version++;
}

/* The last step fails each time and uses the key up: all is sent again and again, which is no progress. */
static bool goes_in_circles(const struct job *j)
{
	return j->vain_looks > 1;
}

static void item_back_to_spooled(struct job *j)
{
	j->item.step = UPLOAD_SPOOLED;
	free(j->item.ticket);
	j->item.ticket = NULL;
	j->item.attempts = 0;
	j->was_put_off = false;
	j->version++;
}

static enum action job_action(const struct uploads *u, const struct job *j)
{
	if (j->is_unsure)
		return ACTION_LOOK;
	if (!j->item.prior_ids)
		return ACTION_ASK_KNOWN;
	if (j->item.step == UPLOAD_STORED)
		return ACTION_ATTACH;
	if (j->item.step == UPLOAD_SIGNED)
		return ACTION_STORE;
	return j->item.known_id && u->caps->attaches ? ACTION_SHORTCUT : ACTION_SIGN;
}

static void ticket_check(const struct uploads *u, struct job *j)
{
	if (j->is_unsure || (j->item.step != UPLOAD_SIGNED && j->item.step != UPLOAD_STORED) ||
	    !ticket_was_old(u, &j->item, 0))
		return;
	if (may_be_used_up(u, j)) {
		item_unsure(j); /* it made the document already, perhaps */
		j->signs_again = true;
	} else {
		item_back_to_spooled(j);
	}
}

/* ---- rows -------------------------------------------------------------------------------------------------- */

/* Nobody writes the row any more. Holds the lock, and gives it up meanwhile. */
static void row_wait(struct uploads *u, const struct job *j)
{
	while (j->is_writing)
		pthread_cond_wait(&u->changed, &u->lock);
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

static void wait_for_change(struct uploads *u, int64_t ms)
{
	struct timespec until = in_ms(ms);

	(void)pthread_cond_timedwait(&u->changed, &u->lock, &until); /* whoever calls looks at the time */
}

static void row_let_go(struct uploads *u, struct job *j)
{
	j->is_writing = false;
	pthread_cond_broadcast(&u->changed);
}

/* Brings the row up to what the item says; gives the lock up meanwhile. One at a time, so that an older state can't
 * overwrite a newer one. -ECANCELED: the job is gone. */
static int row_write(struct uploads *u, struct job *j)
{
	CLEANUP(queue_item_release) struct queue_item copy = { 0 };

	row_wait(u, j);
	if (j->place == PLACE_GONE)
		return -ECANCELED;
	if (j->written == j->version)
		return 0;
	int r = queue_item_copy(&j->item, &copy);
	if (r < 0)
		return r;
	uint64_t version = j->version;
	j->is_writing = true;
	pthread_mutex_unlock(&u->lock);
	r = queue_put(u->config.queue, &copy);
	pthread_mutex_lock(&u->lock);
	if (r == 0) {
		j->written = version;
		j->failures_here = 0;
	}
	row_let_go(u, j);
	return j->place == PLACE_GONE ? -ECANCELED : r;
}

/* Takes the row out, or leaves it as that of a scratch file. The caller has claimed it (is_writing) and not the
 * lock. */
static int row_end(struct uploads *u, const struct job *j, bool keep)
{
	struct queue_item copy = j->item; /* borrows: nobody changes the item meanwhile */

	if (!keep)
		return queue_remove(u->config.queue, j->item.ino);
	copy.kind = FILE_SCRATCH;
	copy.step = UPLOAD_SPOOLED;
	copy.ticket = copy.known_id = copy.known_session_id = copy.prior_ids = copy.words = NULL;
	copy.sha256[0] = '\0';
	copy.attempts = copy.error = 0;
	copy.fault = FAULT_NONE;
	copy.may_have_happened = copy.key_renewed = false;
	return queue_put(u->config.queue, &copy);
}

/* ---- events ------------------------------------------------------------------------------------------------ */

/* Gives the lock up meanwhile. Attributes and caches alone depend on it, so without memory it is left out. */
static void tell_moved(struct uploads *u, struct job *j)
{
	CLEANUP(queue_item_release) struct queue_item copy = { 0 };

	if (j->place == PLACE_GONE || j->place == PLACE_ENDING || j->place == PLACE_FAILED || j->is_telling ||
	    queue_item_copy(&j->item, &copy) < 0)
		return;
	j->is_telling = true;
	pthread_mutex_unlock(&u->lock);
	u->config.event(u->config.arg, UPLOAD_MOVED, &copy, NULL, 0, NULL);
	pthread_mutex_lock(&u->lock);
	j->is_telling = false;
	pthread_cond_broadcast(&u->changed);
}

/* The job is PLACE_ENDING: nobody else changes its item, or tells of it once this has begun. Gives the lock up. */
static void tell_end(struct uploads *u, struct job *j, enum upload_event event, struct listing *document)
{
	job_wait(j, false);
	while (j->is_telling)
		pthread_cond_wait(&u->changed, &u->lock);
	j->is_told = event != UPLOAD_DONE; /* a canceled one had no row left to wait for, a refused one keeps it */
	pthread_mutex_unlock(&u->lock);
	u->config.event(u->config.arg, event, &j->item, document, event == UPLOAD_REFUSED ? j->item.error : 0,
			event == UPLOAD_REFUSED ? j->item.words : NULL);
	pthread_mutex_lock(&u->lock);
	j->is_told = true;
}

/* ---- ends -------------------------------------------------------------------------------------------------- */

static bool has_word(const char *words, const char *word)
{
	size_t len = strlen(word);

	for (const char *at = words; at && *at;) {
		size_t n = strcspn(at, " ");
		if (n == len && strncmp(at, word, len) == 0)
			return true;
		at += n;
		at += strspn(at, " ");
	}
	return false;
}

/* Another file with the same bytes for the same session that does not know yet that this document is not its own. */
static struct job *sibling_to_tell(struct uploads *u, const struct job *j, const char *document_id)
{
	struct job *other;

	for (size_t at = 0; (other = index_next(&u->jobs, &at));) {
		if (other != j && other->line == j->line && other->place != PLACE_ENDING && other->item.prior_ids &&
		    strcmp(other->item.sha256, j->item.sha256) == 0 && !has_word(other->item.prior_ids, document_id))
			return other;
	}
	return NULL;
}

static int prior_add(struct job *j, const char *document_id)
{
	struct buf ids = BUF(1 << 20);

	buf_addf(&ids, "%s%s%s", j->item.prior_ids, *j->item.prior_ids ? " " : "", document_id);
	char *text = buf_take(&ids);
	buf_release(&ids);
	if (!text)
		return -ENOMEM;
	free(j->item.prior_ids);
	j->item.prior_ids = text;
	j->version++;
	return 0;
}

static int claim_note(struct uploads *u, const struct job *j, const char *document_id)
{
	struct claim *c = &u->claims[u->next_claim++ % CLAIMS_MAX];

	free(c->session_id);
	free(c->document_id);
	c->session_id = strdup(j->item.session_id);
	c->document_id = strdup(document_id);
	memcpy(c->sha256, j->item.sha256, sizeof(c->sha256));
	return c->session_id && c->document_id ? 0 : -ENOMEM;
}

/* A file from before a restart may come when an equal one is done again already. */
static int claims_apply(const struct uploads *u, struct job *j)
{
	for (int i = 0; j->item.prior_ids && i < CLAIMS_MAX; i++) {
		const struct claim *c = &u->claims[i];
		if (c->session_id && c->document_id && strcmp(c->session_id, j->item.session_id) == 0 &&
		    strcmp(c->sha256, j->item.sha256) == 0 && !has_word(j->item.prior_ids, c->document_id) &&
		    prior_add(j, c->document_id) < 0)
			return -ENOMEM;
	}
	return 0;
}

/* Where equal bytes make two documents, looking for one must not find the other: written down before our row goes,
 * for the files at work, for those that are not taken up yet, and for those that are just coming. -errno: our row
 * has to stay. */
static int siblings_tell(struct uploads *u, const struct job *j, const char *document_id)
{
	struct job *other;

	if (u->caps->reuses_bytes)
		return 0;
	int r = claim_note(u, j, document_id);
	while (r == 0 && (other = sibling_to_tell(u, j, document_id))) {
		r = prior_add(other, document_id);
		if (r < 0)
			return r;
		/* Nobody can tell whose document it was: should there be no other, the other one's ticket may be
		 * used up. */
		if (other->is_unsure)
			other->signs_again = true;
		other->refs++;
		r = row_write(u, other);
		if (r == -ECANCELED)
			r = 0;
		job_unref(other);
	}
	if (r < 0)
		return r;
	pthread_mutex_unlock(&u->lock);
	/* Our item is nobody else's now. */
	r = queue_add_prior(u->config.queue, j->item.ino, j->item.session_id, j->item.sha256, document_id);
	pthread_mutex_lock(&u->lock);
	return r;
}

/* Takes out the row of a file that is at the service. Should the disk refuse, the row goes on saying that it may have
 * happened, so nothing is sent twice, and the clock tries again. */
static void job_remove_row(struct uploads *u, struct job *j)
{
	row_wait(u, j);
	if (j->place != PLACE_ENDING)
		return; /* replaced by a new version, which has the row now */
	j->is_writing = true;
	pthread_mutex_unlock(&u->lock);
	int r = row_end(u, j, false);
	pthread_mutex_lock(&u->lock);
	row_let_go(u, j);
	if (j->place != PLACE_ENDING)
		return;
	if (r == 0) {
		job_drop(u, j);
		return;
	}
	j->due_ms = clock_now_ms() + paced(u, REMOVE_AGAIN_MS);
	job_place(j, PLACE_ENDING, &u->ending);
	tick_at(u, j->due_ms);
}

/* It is there. Gives the lock up meanwhile. */
static void job_done(struct uploads *u, struct job *j, struct listing *document)
{
	struct document d;

	listing_get(document, 0, &d);
	j->is_sent = j->is_unsure = false;
	job_place(j, PLACE_ENDING, NULL);
	j->item.step = UPLOAD_ATTACHED;
	j->item.attempts = 0;
	j->item.error = 0;
	j->item.fault = FAULT_NONE;
	u->last_done_ms = clock_now_ms();
	log_info("upload: '%s/%s' is there", j->item.session_name ? j->item.session_name : j->item.session_id,
		 j->item.name);
	/* Those of equal bytes first. Should the disk refuse that, the row stays, and the next mount finds the
	 * document. */
	int r = siblings_tell(u, j, d.id);
	tell_end(u, j, UPLOAD_DONE, document);
	if (r == 0)
		job_remove_row(u, j);
}

/* Somebody asked for it and nothing had its effect. Gives the lock up meanwhile. */
static void job_end_canceled(struct uploads *u, struct job *j)
{
	j->is_sent = j->is_unsure = false;
	job_place(j, PLACE_ENDING, NULL);
	row_wait(u, j);
	j->is_writing = true;
	pthread_mutex_unlock(&u->lock);
	int r = row_end(u, j, j->keeps_row);
	pthread_mutex_lock(&u->lock);
	row_let_go(u, j);
	if (r < 0) {
		j->is_unsure = true; /* one look more, later, and then once again */
		j->due_ms = clock_now_ms() + paced(u, PAUSE_LOCAL_MS);
		job_place(j, PLACE_PAUSED, &u->paused);
		tick_at(u, j->due_ms);
		return;
	}
	tell_end(u, j, UPLOAD_CANCELED, NULL);
	if (j->place == PLACE_ENDING)
		job_drop(u, j);
}

/* Final; the item says why. Gives the lock up meanwhile. */
static void job_refuse(struct uploads *u, struct job *j)
{
	if (j->cancel_asked) {
		job_end_canceled(u, j);
		return;
	}
	j->is_sent = false;
	j->item.kind = FILE_FAILED;
	j->version++;
	job_place(j, PLACE_ENDING, NULL);
	(void)row_write(u, j); /* logged; after a restart it is tried, and refused, once more */
	tell_end(u, j, UPLOAD_REFUSED, NULL);
	if (j->place == PLACE_ENDING)
		job_place(j, PLACE_FAILED, &u->failed);
}

/* ---- the gate and the holds -------------------------------------------------------------------------------- */

static void list_ready(struct uploads *u, struct job_list *list)
{
	struct job *last = TAILQ_LAST(list, job_list), *next;

	/* Up to what is the last one now: some come back to the end of the same list. */
	for (struct job *j = TAILQ_FIRST(list); j; j = j == last ? NULL : next) {
		next = TAILQ_NEXT(j, in_list);
		if (!j->is_settling)
			job_ready(u, j);
	}
}

static void gate_open(struct uploads *u)
{
	u->failures = 0;
	u->trouble_step = UPLOAD_SPOOLED;
	u->probe_attempts = 0;
	u->is_away = false;
	if (!u->gate_is_closed)
		return;
	u->gate_is_closed = false;
	if (!u->account_is_held) {
		list_ready(u, &u->paused);
		list_ready(u, &u->ready_lines); /* into their lines; none comes back while nothing is blocked */
	}
}

/* What collects in the lines waits for its turn like all others. */
static void lines_recall(struct uploads *u)
{
	struct line *l;

	for (size_t at = 0; (l = index_next(&u->lines, &at));) {
		list_ready(u, &l->looks);
		list_ready(u, &l->shortcuts);
		list_ready(u, &l->attaches);
	}
}

/* A pause as it is here: short while somebody waits, and never shorter than the service asked for. */
static int64_t pause_for(const struct uploads *u, int64_t pause_ms, int64_t retry_after_ms, bool somebody_waits)
{
	if (somebody_waits && pause_ms > PAUSE_WAITED_MS)
		pause_ms = PAUSE_WAITED_MS;
	pause_ms = paced(u, pause_ms);
	return pause_ms < retry_after_ms ? retry_after_ms : pause_ms;
}

static void probe_put_off(struct uploads *u, int64_t retry_after_ms)
{
	int64_t pause = upload_pause_ms(++u->probe_attempts, -1, next_random(u));

	u->probe_at_ms = clock_now_ms() + pause_for(u, pause, retry_after_ms, !TAILQ_EMPTY(&u->waited));
	tick_at(u, u->probe_at_ms);
}

static void gate_close(struct uploads *u)
{
	if (u->gate_is_closed)
		return;
	u->gate_is_closed = true;
	log_warning("upload: the service keeps failing; one file at a time tries from now on");
	lines_recall(u);
}

/* The service failed at a step. */
static void service_failed(struct uploads *u, enum upload_step step, int64_t retry_after_ms)
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
		list_ready(u, &u->ready_lines);
}

/* The service answered at a step, be it with a refusal. */
static void service_answered(struct uploads *u, enum upload_step step, bool proves_account)
{
	u->progress_ms = clock_now_ms();
	if (proves_account)
		account_release(u);
	if (step >= u->trouble_step)
		gate_open(u);
}

static void account_hold(struct uploads *u, const struct fault *fault)
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

static void line_hold(struct uploads *u, struct line *l)
{
	if (!l->is_gone)
		log_error("upload: session %s is gone; its files wait", l->session_id);
	l->is_gone = true;
	l->probe_ms = clock_now_ms();
	list_ready(u, &l->looks);
	list_ready(u, &l->shortcuts);
	list_ready(u, &l->attaches);
	tick_for_waiting(u);
}

static void line_release(struct uploads *u, struct line *l)
{
	if (!l->is_gone)
		return;
	l->is_gone = false;
	list_ready(u, &l->held);
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

/* The job can go on: puts it where its next step begins. */
static void job_ready(struct uploads *u, struct job *j)
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
	else if (is_blocked(u) && !is_let_through)
		job_place(j, PLACE_READY, &u->ready_lines);
	else
		gather(u, j, action);
}

static void work(void *arg);

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

/* When the next probe may go; INT64_MAX: one is under way, or there is none to go. */
static int64_t probe_due(const struct uploads *u)
{
	bool has_ready =
		!TAILQ_EMPTY(&u->ready_lines) || !TAILQ_EMPTY(&u->ready_persons) || !TAILQ_EMPTY(&u->ready_background);

	if (!is_blocked(u) || !has_ready || u->probe || u->is_draining)
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
		u->probe_at_ms = now_ms + paced(u, PROBE_AGAIN_MS);
		u->account_probe_ms = now_ms + ACCOUNT_PAUSE_MS;
	}
	return j;
}

static struct job *ready_next(struct uploads *u, int64_t now_ms)
{
	struct job *j;

	if (is_blocked(u))
		return blocked_next(u, now_ms);
	j = TAILQ_FIRST(&u->ready_persons);
	if (j && has_slot(u, j))
		return j;
	j = TAILQ_FIRST(&u->ready_background);
	return j && has_slot(u, j) ? j : NULL;
}

/* Begins what can begin. */
static void dispatch(struct uploads *u)
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
		if (pool_run(u->workers, work, j) < 0) {
			if (u->probe == j)
				u->probe = NULL;
			u->must_look_again = true;
			tick_at(u, clock_now_ms() + paced(u, PAUSE_FIRST_MS));
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

/* When a call ended, and its luck: one for all files in it, so that they come back together and share the next call. */
struct moment {
	int64_t now_ms;
	uint32_t random;
};

static struct moment moment_now(struct uploads *u)
{
	return (struct moment){ clock_now_ms(), next_random(u) };
}

static void job_pause(struct uploads *u, struct job *j, int64_t now_ms, int64_t pause_ms)
{
	j->due_ms = now_ms + pause_ms;
	j->item.next_wall_ms = clock_wall_ms() + pause_ms;
	j->version++;
	job_place(j, PLACE_PAUSED, &u->paused);
	tick_at(u, j->due_ms);
}

/* ---- failures ---------------------------------------------------------------------------------------------- */

/* What was tried. */
enum trial { TRIAL_SIGN, TRIAL_STORE, TRIAL_ATTACH, TRIAL_SHORTCUT, TRIAL_LOOK };

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

static void item_blame(struct job *j, int error, enum fault_kind kind, const char *words)
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

/* Our own disk or memory: says nothing about the service or the file. Gives the lock up. */
static void job_failed_here(struct uploads *u, struct job *j, int error, const char *what)
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
		if (j->is_unsure || may_be_used_up(u, j)) {
			item_unsure(j);
			j->signs_again = true;
		} else {
			item_back_to_spooled(j);
			j->item.may_have_happened = false;
		}
		j->item.key_renewed = true;
		if (goes_in_circles(j))
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
		if (trial != TRIAL_LOOK && (j->is_unsure || (f->kind == FAULT_KEY && may_be_used_up(u, j)))) {
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

/* A call failed: what that says about the service, once however many files were in it. */
static void call_failed(struct uploads *u, enum trial trial, const struct fault *f)
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

/* A call for the job failed; it is nobody's but the caller's until this has put it somewhere. Gives the lock up. */
static void job_failed(struct uploads *u, struct job *j, enum trial trial, const struct fault *f, int error,
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
	if (j->cancel_asked && !may_have_happened(u, j) && m.next != MOVE_LOOK) {
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
	tell_moved(u, j);
}

/* A step succeeded. */
static void job_advance(struct uploads *u, struct job *j, enum upload_step from, enum upload_step to)
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
	if (!goes_in_circles(j)) {
		j->has_failed_since_wait = false;
		j->progress_ms = clock_now_ms();
	}
	service_answered(u, from, from != UPLOAD_SIGNED || u->caps->store_has_effect);
}

/* ---- asking the backend ------------------------------------------------------------------------------------ */

/* One file as the backend is shown it. Its texts are copies: a rename may change the job's meanwhile. */
struct errand {
	struct upload up;
	char *session_id, *name;
	char sha256[65];
};

static void errand_release(struct errand *e)
{
	free(e->session_id);
	free(e->name);
	free(e->up.ticket);
	listing_unref(e->up.document);
	*e = (struct errand){ 0 };
}

static int errand_fill(struct errand *e, const struct job *j)
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

static void ticket_take(struct job *j, struct errand *e)
{
	free(j->item.ticket);
	j->item.ticket = e->up.ticket;
	e->up.ticket = NULL;
	j->item.ticket_wall_ms = e->up.ticket_wall_ms ? e->up.ticket_wall_ms : clock_wall_ms();
}

/* ---- workers: sign and send -------------------------------------------------------------------------------- */

static bool worker_has(const struct job *j)
{
	return j->place == PLACE_WORKER;
}

/* Asks the owner once what is known of these bytes. Gives the lock up. */
static void work_ask_known(struct uploads *u, struct job *j)
{
	CLEANUP(text_release) char *session_id = strdup(j->item.session_id);
	char *known_id = NULL, *known_session_id = NULL, *prior_ids = NULL;
	char sha256[65];
	int64_t size_bytes = j->item.size_bytes;

	memcpy(sha256, j->item.sha256, sizeof(sha256));
	if (session_id && u->config.known) {
		pthread_mutex_unlock(&u->lock);
		u->config.known(u->config.arg, session_id, sha256, size_bytes, &known_id, &known_session_id,
				&prior_ids);
		pthread_mutex_lock(&u->lock);
	} else if (session_id) {
		prior_ids = strdup("");
	}
	if (worker_has(j) && prior_ids && strcmp(session_id, j->item.session_id) == 0) {
		free(j->item.prior_ids);
		j->item.prior_ids = prior_ids;
		prior_ids = NULL;
		j->version++;
		if (!j->item.known_id && known_id) {
			free(j->item.known_session_id);
			j->item.known_id = known_id;
			j->item.known_session_id = known_session_id;
			known_id = known_session_id = NULL;
		}
	} else if (worker_has(j) && !prior_ids) {
		job_failed_here(u, j, -ENOMEM, "no memory");
	}
	free(known_id);
	free(known_session_id);
	free(prior_ids);
}

/* The type it was signed for is no longer the file's. */
static void work_restart(struct uploads *u, struct job *j)
{
	j->restarts = false;
	item_back_to_spooled(j);
	job_ready(u, j);
}

static void progress_begin(struct job *j, struct transfer *watch)
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

static void call_begin(struct job *j, struct call *call, struct transfer *transfer, enum urgency urgency)
{
	*transfer = (struct transfer){ 0 };
	*call = (struct call){ .urgency = j->somebody_waits ? URGENCY_PERSON : urgency, .transfer = transfer };
	call->fault.retry_after_ms = -1;
	progress_begin(j, transfer);
}

/* ---- links asked for ahead --------------------------------------------------------------------------------- */

static const char *suffix_of(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot && dot != name ? dot : "";
}

static void ahead_free(struct ahead *a)
{
	if (!a)
		return;
	free(a->session_id);
	free(a->name);
	free(a->ticket);
	free(a);
}

static struct ahead **ahead_find(struct uploads *u, uint64_t ino)
{
	for (int i = 0; i < AHEAD_MAX; i++) {
		if (u->aheads[i] && u->aheads[i]->ino == ino)
			return &u->aheads[i];
	}
	return NULL;
}

/* Nobody uses it: freed now, or by the worker that asks. */
static void ahead_drop(struct ahead **at)
{
	if (!at)
		return;
	if ((*at)->is_asking) {
		(*at)->is_unwanted = true;
		atomic_store(&(*at)->transfer.cancelled, true);
	} else {
		ahead_free(*at);
	}
	*at = NULL;
}

/* A place for one more: an empty one, or that of the oldest which is not being asked for. */
static struct ahead **ahead_room(struct uploads *u)
{
	struct ahead **oldest = NULL;

	for (int i = 0; i < AHEAD_MAX; i++) {
		struct ahead **at = &u->aheads[i];
		if (!*at)
			return at;
		if (!(*at)->is_asking && (!oldest || (*at)->ticket_wall_ms < (*oldest)->ticket_wall_ms))
			oldest = at;
	}
	ahead_drop(oldest);
	return oldest;
}

/* Whatever goes wrong here is nobody's failure: the link is asked for once more when the file is complete. */
static void ahead_ask(void *arg)
{
	struct ahead *a = arg;
	struct uploads *u = a->uploads;
	struct call call = { .urgency = URGENCY_BACKGROUND,
			     .deadline_ms = clock_now_ms() + AHEAD_WAIT_MS,
			     .transfer = &a->transfer };
	struct upload up = { .session_id = a->session_id, .name = a->name, .sha256 = "", .fd = -1 };

	int r = backend_upload_sign(u->config.backend, &call, &up);
	pthread_mutex_lock(&u->lock);
	a->is_asking = false;
	if (r == 0 && !a->is_unwanted) {
		a->ticket = up.ticket;
		a->ticket_wall_ms = up.ticket_wall_ms;
		up.ticket = NULL;
	}
	free(up.ticket);
	if (a->is_unwanted)
		ahead_free(a);
	else if (r < 0)
		ahead_drop(ahead_find(u, a->ino));
	u->transfers--;
	u->busy--;
	pthread_cond_broadcast(&u->changed);
	dispatch(u);
	pthread_mutex_unlock(&u->lock);
}

void uploads_sign_ahead(struct uploads *u, uint64_t ino, const char *session_id, const char *name)
{
	SCOPED_LOCK(&u->lock);
	const struct line *l = index_find(&u->lines, index_hash_text(session_id), line_is, session_id);
	/* A failing service, or one that has enough to do, is not asked for what may not be needed. */
	if (is_blocked(u) || u->failures > 0 || u->is_draining || u->is_stopping || (l && l->is_gone) ||
	    u->transfers + 1 >= u->config.transfers_max || job_find(u, ino) || ahead_find(u, ino))
		return;
	struct ahead **at = ahead_room(u), *a = at ? calloc(1, sizeof(*a)) : NULL;
	if (!a)
		return;
	*a = (struct ahead){
		.uploads = u, .ino = ino, .session_id = strdup(session_id), .name = strdup(name), .is_asking = true
	};
	if (!a->session_id || !a->name || pool_run(u->workers, ahead_ask, a) < 0) {
		ahead_free(a);
		return;
	}
	*at = a;
	u->transfers++;
	u->busy++;
}

/* The link that was asked for while the file was written, if it will do: it is the job's then. One that is on its way is
 * waited for; one that still waits for its place is not, and is not sent. Gives the lock up. */
static bool ahead_take(struct uploads *u, struct job *j)
{
	int64_t until_ms = clock_now_ms() + AHEAD_WAIT_MS;
	struct ahead **at;

	while ((at = ahead_find(u, j->item.ino)) && (*at)->is_asking && !u->is_drained &&
	       !atomic_load(&(*at)->transfer.waits_for_place) && clock_now_ms() < until_ms) {
		wait_for_change(u, 20); /* it may get into the limiter's line yet, and nobody says so */
	}
	const struct ahead *a = at ? *at : NULL;
	bool will_do = a && !a->is_asking && worker_has(j) && !j->restarts && j->item.step == UPLOAD_SPOOLED &&
		       strcmp(a->session_id, j->item.session_id) == 0 &&
		       strcasecmp(suffix_of(a->name), suffix_of(j->item.name)) == 0;
	if (will_do) {
		struct queue_item link = { .step = UPLOAD_SIGNED, .ticket_wall_ms = a->ticket_wall_ms };
		will_do = !ticket_was_old(u, &link, 0);
	}
	if (will_do) {
		free(j->item.ticket);
		j->item.ticket = (*at)->ticket;
		j->item.ticket_wall_ms = (*at)->ticket_wall_ms;
		j->item.step = UPLOAD_SIGNED;
		j->version++;
		(*at)->ticket = NULL;
	}
	ahead_drop(at);
	return will_do;
}

/* ---- workers: sign and send, continued ----------------------------------------------------------------------- */

static void work_sign(struct uploads *u, struct job *j)
{
	CLEANUP(errand_release) struct errand e = { 0 };
	struct transfer transfer;
	struct call call;

	if (ahead_take(u, j) || !worker_has(j))
		return;
	int r = errand_fill(&e, j);

	if (r < 0) {
		job_failed_here(u, j, r, "no memory");
		return;
	}
	call_begin(j, &call, &transfer, URGENCY_BEGIN);
	pthread_mutex_unlock(&u->lock);
	r = backend_upload_sign(u->config.backend, &call, &e.up);
	pthread_mutex_lock(&u->lock);
	j->watch = NULL;
	if (r < 0)
		call_failed(u, TRIAL_SIGN, &call.fault);
	if (!worker_has(j))
		return;
	if (j->restarts) {
		work_restart(u, j);
	} else if (r < 0) {
		job_failed(u, j, TRIAL_SIGN, &call.fault, r, moment_now(u));
	} else {
		ticket_take(j, &e);
		job_advance(u, j, UPLOAD_SPOOLED,
			    UPLOAD_SIGNED); /* not written: a ticket that is lost costs one request */
		tell_moved(u, j);
	}
}

/* The bytes; refuses or pauses the job when they cannot be had. Gives the lock up. */
static int work_open(struct uploads *u, struct job *j, struct spool **ret)
{
	uint64_t id = j->item.spool_id;
	int64_t size_bytes = j->item.size_bytes;

	pthread_mutex_unlock(&u->lock);
	int r = spool_open(u->config.spool_dir, id, 0, size_bytes, ret);
	pthread_mutex_lock(&u->lock);
	if (r == 0 || !worker_has(j))
		return r;
	if (r == -ENOENT || r == -EIO) {
		log_error("upload: the local bytes of '%s' are missing or damaged", j->item.name);
		item_blame(j, -EIO, FAULT_NONE, "its local bytes are missing or damaged");
		job_refuse(u, j);
	} else {
		job_failed_here(u, j, r, "the local bytes cannot be opened");
	}
	return r;
}

static void work_store(struct uploads *u, struct job *j)
{
	CLEANUP(errand_release) struct errand e = { 0 };
	CLEANUP(spool_release) struct spool *spool = NULL;
	struct transfer transfer;
	struct call call;

	if (work_open(u, j, &spool) < 0 || !worker_has(j))
		return;
	if (u->caps->store_has_effect) {
		if (!j->item.may_have_happened)
			j->version++;
		j->item.may_have_happened = true;
		int r = row_write(u, j);
		if (!worker_has(j))
			return;
		if (r < 0) {
			job_failed_here(u, j, r, "the queue cannot be written");
			return;
		}
	}
	int r = errand_fill(&e, j);
	if (r < 0) {
		job_failed_here(u, j, r, "no memory");
		return;
	}
	e.up.fd = spool_fd(spool);
	call_begin(j, &call, &transfer, URGENCY_BEGIN);
	j->is_sent = u->caps->store_has_effect;
	pthread_mutex_unlock(&u->lock);
	r = backend_upload_store(u->config.backend, &call, &e.up);
	pthread_mutex_lock(&u->lock);
	j->watch = NULL;
	if (r < 0)
		call_failed(u, TRIAL_STORE, &call.fault);
	if (!worker_has(j))
		return;
	if (j->restarts) {
		work_restart(u, j);
		return;
	}
	j->is_sent = false;
	if (r < 0) {
		job_failed(u, j, TRIAL_STORE, &call.fault, r, moment_now(u));
		return;
	}
	ticket_take(j, &e);
	job_advance(u, j, UPLOAD_SIGNED, UPLOAD_STORED);
	/* One commit for two facts: it is stored, and its last step is about to be sent. */
	j->item.may_have_happened = !u->caps->store_has_effect;
	r = row_write(u, j);
	if (worker_has(j) && r < 0)
		job_failed_here(u, j, r, "the queue cannot be written");
	else
		tell_moved(u, j);
}

static void worker_let_go(struct uploads *u, struct job *j)
{
	if (--j->workers == 0 && j->place == PLACE_LIMBO)
		job_ready(u, j);
	job_unref(j);
}

static void work(void *arg)
{
	struct job *j = arg;
	struct uploads *u = j->uploads;

	pthread_mutex_lock(&u->lock);
	/* Once put elsewhere it may be in another worker's hands before we look again. */
	unsigned turn = j->turn;
	tell_moved(u, j);
	while (worker_has(j) && j->turn == turn) {
		if (u->is_stopping || u->is_drained) {
			job_ready(u, j);
			break;
		}
		switch (job_action(u, j)) {
		case ACTION_ASK_KNOWN:
			work_ask_known(u, j);
			break;
		case ACTION_SIGN:
			work_sign(u, j);
			break;
		case ACTION_STORE:
			work_store(u, j);
			break;
		case ACTION_LOOK:
		case ACTION_SHORTCUT:
		case ACTION_ATTACH:
			job_ready(u, j); /* the rest is its session's line */
			break;
		}
	}
	worker_let_go(u, j);
	u->transfers--;
	u->busy--;
	pthread_cond_broadcast(&u->changed);
	dispatch(u);
	pthread_mutex_unlock(&u->lock);
}

/* ---- lines: what is asked of a session --------------------------------------------------------------------- */

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
		progress_begin(j, &b->transfer);
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
		if (j->cancel_asked && !may_have_happened(u, j))
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
		if (j->cancel_asked && !may_have_happened(u, j))
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
		call_failed(u, TRIAL_ATTACH, &b->call.fault);
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
			call_failed(u, TRIAL_SHORTCUT, &b->call.fault);
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
	call_begin(j, &b->call, &b->transfer, URGENCY_FINISH);
	pthread_mutex_unlock(&u->lock);
	int r = backend_upload_find(u->config.backend, &b->call, &e->up, ids, n);
	pthread_mutex_lock(&u->lock);
	j->watch = NULL;
	free(ids);
	free(text);
	if (r == 0 || r == -ENOENT)
		service_answered(u, UPLOAD_SPOOLED, true);
	else
		call_failed(u, TRIAL_LOOK, &b->call.fault);
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
		call_failed(u, TRIAL_LOOK, &b->call.fault);
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
		if (u->caps->reuses_bytes || (!is_taken[i] && !has_word(j->item.prior_ids, d.id)))
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
			job_pause(u, b->jobs[i], clock_now_ms(), paced(u, PAUSE_FIRST_MS));
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
		dispatch(u);
	}
	l->is_running = false;
	line_unref(u, l);
	u->busy--;
	pthread_cond_broadcast(&u->changed);
	dispatch(u);
	pthread_mutex_unlock(&u->lock);
}

static void line_start(struct uploads *u, struct line *l)
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

/* ---- the clock --------------------------------------------------------------------------------------------- */

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
		if (moved_ms > j->progress_ms && !goes_in_circles(j))
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
	dispatch(u);
	now_ms = clock_now_ms();
	int64_t next_ms = tick_next(u, now_ms);
	if (next_ms != INT64_MAX)
		tick_at(u, next_ms > now_ms ? next_ms : now_ms + 1);
}

/* One job of its pool from the beginning to the end: a tick that needed memory could fail to come, and then nobody would
 * tell those who wait. */
static void clock_run(void *arg)
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

/* A tick no later than that. */
static void tick_at(struct uploads *u, int64_t at_ms)
{
	if (u->is_stopping || at_ms >= u->timer_ms)
		return;
	u->timer_ms = at_ms;
	pthread_cond_signal(&u->timer);
}

static void tick_now(struct uploads *u)
{
	tick_at(u, clock_now_ms());
}

/* Something happened that somebody waiting may have to be told. */
static void tick_for_waiting(struct uploads *u)
{
	if (!TAILQ_EMPTY(&u->waited))
		tick_now(u);
}

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
	    pool_run(u->clock, clock_run, u) < 0)
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
		wait_for_change(u, left_ms < PATROL_MS ? left_ms : PATROL_MS);
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
	wait_for_work(u, drain_ms, paced(u, DRAIN_STILL_MS));
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
	return !may_have_happened(j->uploads, j) && !j->cancel_asked && j->place != PLACE_WORKER &&
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
	if (is_blocked(u) && now_ms - u->probe_last_ms >= paced(u, PROBE_AGAIN_MS))
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
		dispatch(u); /* the credentials may be new: one asks */
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
	dispatch(u);
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
	dispatch(u);
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
	dispatch(u);
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
	} else if (may_have_happened(u, j) && j->item.kind != FILE_FAILED && !job_is_foreign(u, j)) {
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
		dispatch(u);
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
	return !may_have_happened(u, j) && !j->cancel_asked && j->place != PLACE_CALL && j->place != PLACE_ENDING;
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
	bool is_other_type = strcasecmp(suffix_of(j->item.name), suffix_of(n->name)) != 0;
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
	dispatch(u);
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
	return j->item.error || (is_blocked(u) && !j->is_settling) ? STATE_WAITING : STATE_QUEUED;
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
	list_ready(u, &u->paused);
	list_ready(u, &u->ready_lines);
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
	dispatch(u);
	return 0;
}

void uploads_service_answered(struct uploads *u)
{
	SCOPED_LOCK(&u->lock);

	u->is_away = false;
	if (!is_blocked(u) || u->probe)
		return;
	/* It answered a question, which proves neither the storage nor our right to upload: one file goes ahead at
	 * once, and takes the others along when it succeeds. */
	u->probe_at_ms = u->account_probe_ms = clock_now_ms();
	dispatch(u);
}
