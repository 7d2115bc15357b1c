/* The inside of the upload engine, for the files that make it up; upload.c says what is where.
 *
 * A file is a job. Where it stands (enum place) says who may touch it:
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
 * One lock, uploads->lock, guards all jobs and lines. It is taken after whatever locks a caller holds and before a pool's
 * own, and is not held while the backend or one of uploads_config's two functions is called, a row written, or a spool opened.
 * Whatever follows is called with it, unless its comment says otherwise. Who gives it up meanwhile may find anything
 * changed afterwards: the job canceled (PLACE_GONE), replaced, or put elsewhere. So whoever has a job in hand holds a
 * reference, and looks at its place again.
 *
 * The table owns a reference to each job, and a job one to its session's line. A job's row is written by one at a time
 * (is_writing). Its item changes under the lock, and not while its last event is told, which borrows it. */
#pragma once

#include <pthread.h>
#include <sys/queue.h>

#include "client/base/index.h"
#include "fs/upload.h"

#define DAY_MS (INT64_C(24) * 3600 * 1000)

enum {
	PAUSE_FIRST_MS = 1000,
	PAUSE_LOCAL_MS = 5000,         /* our own disk or memory failed */
	ACCOUNT_PAUSE_MS = 60 * 1000,
	PROBE_AGAIN_MS = 5000,         /* a new file may cause a probe, but no more often */
	REMOVE_AGAIN_MS = 60 * 1000,
	PATROL_MS = 200,               /* while somebody waits */
	CLAIMS_MAX = 256,              /* of documents lately made, where equal bytes make two */
	AHEAD_MAX = 16,                /* links for files that are still being written */
};

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

/* ---- upload_job.c: a file as a job ------------------------------------------------------------------------- */

uint64_t job_hash(const void *item);
struct job *job_find(struct uploads *u, uint64_t ino); /* NULL: there is none */
void job_unref(struct job *j);
/* Puts it into a list (NULL: none) and out of the one it was in. */
void job_place(struct job *j, enum place place, struct job_list *list);
void job_wait(struct job *j, bool somebody_waits);
/* Out of the table: whoever still has it in hand will see that it is gone. */
void job_drop(struct uploads *u, struct job *j);
bool job_is_foreign(const struct uploads *u, const struct job *j);
enum action job_action(const struct uploads *u, const struct job *j);

/* A signed link lives for minutes, what was sent by it for as long as the service says. Was it old so long ago? */
bool ticket_was_old(const struct uploads *u, const struct queue_item *item, int64_t ago_ms);
/* Back to SPOOLED, or to a look, with one that is too old to be tried. */
void ticket_check(const struct uploads *u, struct job *j);
/* May a document come, or have come, of what was sent already? */
bool job_may_have_happened(const struct uploads *u, const struct job *j);
/* May a ticket that is refused have made its document before that? */
bool job_may_be_used_up(const struct uploads *u, const struct job *j);
/* The last step fails each time and uses the key up: all is sent again and again, which is no progress. */
bool job_goes_in_circles(const struct job *j);
/* The next thing is a look, after a crash too. */
void item_unsure(struct job *j);
void item_back_to_spooled(struct job *j);
/* Is the document in this list of prior_ids? NULL: in none. */
bool prior_has(const char *prior_ids, const char *document_id);

/* Nobody writes the row any more. Gives the lock up meanwhile. */
void row_wait(struct uploads *u, const struct job *j);
/* Whoever set is_writing is done. */
void row_let_go(struct uploads *u, struct job *j);
/* Brings the row up to what the item says; gives the lock up meanwhile. One at a time, so that an older state can't
 * overwrite a newer one. -ECANCELED: the job is gone. */
int row_write(struct uploads *u, struct job *j);
/* Takes the row out, or leaves it as that of a scratch file. The caller has claimed it (is_writing) and not the
 * lock. */
int row_end(struct uploads *u, const struct job *j, bool keep);

/* Gives the lock up meanwhile. Attributes and caches alone depend on it, so without memory it is left out. */
void job_tell_moved(struct uploads *u, struct job *j);

/* A file from before a restart may come when an equal one is done again already. */
int claims_apply(const struct uploads *u, struct job *j);
/* It is there. Gives the lock up meanwhile. */
void job_done(struct uploads *u, struct job *j, struct listing *document);
/* Takes out the row of a file that is at the service. Should the disk refuse, the row goes on saying that it may have
 * happened, so nothing is sent twice, and the clock tries again. Gives the lock up meanwhile. */
void job_remove_row(struct uploads *u, struct job *j);
/* Somebody asked for it and nothing had its effect. Gives the lock up meanwhile. */
void job_end_canceled(struct uploads *u, struct job *j);
/* Final; the item says why. Gives the lock up meanwhile. */
void job_refuse(struct uploads *u, struct job *j);

/* ---- upload_turn.c: whose turn it is ----------------------------------------------------------------------- */

/* When a call ended, and its luck: one for all files in it, so that they come back together and share the next call. */
struct moment {
	int64_t now_ms;
	uint32_t random;
};
struct moment moment_now(struct uploads *u);

bool turns_are_blocked(const struct uploads *u); /* the gate is closed, or the account held */
/* The service failed at a step. */
void service_failed(struct uploads *u, enum upload_step step, int64_t retry_after_ms);
/* The service answered at a step, be it with a refusal. */
void service_answered(struct uploads *u, enum upload_step step, bool proves_account);
void gate_open(struct uploads *u);
void gate_close(struct uploads *u);
void probe_put_off(struct uploads *u, int64_t retry_after_ms);
/* When the next probe may go; INT64_MAX: one is under way, or there is none to go. */
int64_t probe_due(const struct uploads *u);
void account_hold(struct uploads *u, const struct fault *fault);
void line_hold(struct uploads *u, struct line *l); /* the session is gone */
void line_release(struct uploads *u, struct line *l);

/* The job can go on: puts it where its next step begins. */
void job_ready(struct uploads *u, struct job *j);
void jobs_ready(struct uploads *u, struct job_list *list); /* all that are in it, but those that settle */
void job_pause(struct uploads *u, struct job *j, int64_t now_ms, int64_t pause_ms);
/* A pause as it is here: short while somebody waits, and never shorter than the service asked for. */
int64_t pause_for(const struct uploads *u, int64_t pause_ms, int64_t retry_after_ms, bool somebody_waits);
/* Begins what can begin. */
void turns_dispatch(struct uploads *u);

/* ---- upload_step.c: one step ------------------------------------------------------------------------------- */

/* One file as the backend is shown it. Its texts are copies: a rename may change the job's meanwhile. */
struct errand {
	struct upload up;
	char *session_id, *name;
	char sha256[65];
};
int errand_fill(struct errand *e, const struct job *j);
void errand_release(struct errand *e);
/* The ticket the backend wrote is the job's. */
void ticket_take(struct job *j, struct errand *e);

/* Before a call for this job alone: fills call and transfer. Its end sets watch to NULL. */
void job_call_begin(struct job *j, struct call *call, struct transfer *transfer, enum urgency urgency);
/* The same for each job of a call that several share. */
void job_progress_begin(struct job *j, struct transfer *watch);

/* What was tried. */
enum trial { TRIAL_SIGN, TRIAL_STORE, TRIAL_ATTACH, TRIAL_SHORTCUT, TRIAL_LOOK };
/* A call failed: what that says about the service, once however many files were in it. */
void trial_failed(struct uploads *u, enum trial trial, const struct fault *f);
/* A call for the job failed; it is nobody's but the caller's until this has put it somewhere. Gives the lock up. */
void job_failed(struct uploads *u, struct job *j, enum trial trial, const struct fault *f, int error,
		struct moment when);
/* Our own disk or memory: says nothing about the service or the file. Gives the lock up. */
void job_failed_here(struct uploads *u, struct job *j, int error, const char *what);
void item_blame(struct job *j, int error, enum fault_kind kind, const char *words);
/* A step succeeded. */
void job_advance(struct uploads *u, struct job *j, enum upload_step from, enum upload_step to);

/* ---- upload_work.c: the workers ---------------------------------------------------------------------------- */

void work_run(void *arg); /* a pool's job; arg: a struct job, counted in refs and workers. Takes the lock itself */
bool worker_has(const struct job *j);
/* One worker or line less has it in hand. */
void worker_let_go(struct uploads *u, struct job *j);

/* ---- upload_ahead.c: links asked for ahead ----------------------------------------------------------------- */

struct ahead **ahead_find(struct uploads *u, uint64_t ino); /* its place in u->aheads, or NULL */
/* The link that was asked for while the file was written, if it will do: it is the job's then. One that is on its way is
 * waited for; one that still waits for its place is not, and is not sent. Gives the lock up. */
bool ahead_take(struct uploads *u, struct job *j);
/* Nobody uses it: freed now, or by the worker that asks. at: NULL, or from ahead_find(). */
void ahead_drop(struct ahead **at);
void ahead_free(struct ahead *a);
const char *upload_suffix(const char *name); /* ".pdf", or "" */

/* ---- upload_line.c: what is asked of a session ------------------------------------------------------------- */

uint64_t line_hash(const void *item);
bool line_is(const void *item, const void *key);
/* A reference, or NULL without memory. */
struct line *line_get(struct uploads *u, const char *session_id);
void line_unref(struct uploads *u, struct line *l);
/* Runs it, on a thread of its own, unless it runs or has nothing to ask. */
void line_start(struct uploads *u, struct line *l);

/* ---- upload_clock.c: pauses and patience ------------------------------------------------------------------- */

void ticks_run(void *arg); /* the one job of u->clock; takes the lock itself */
/* A tick no later than that. */
void tick_at(struct uploads *u, int64_t at_ms);
void tick_now(struct uploads *u);
/* Something happened that somebody waiting may have to be told. */
void tick_for_waiting(struct uploads *u);
/* Until u->changed is signaled, or the time is up. Gives the lock up meanwhile. */
void changed_wait(struct uploads *u, int64_t ms);
/* How long a pause is here. */
int64_t pause_here(const struct uploads *u, int64_t ms);
