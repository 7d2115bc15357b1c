/* Works the queue off through the backend: one file from SPOOLED to ATTACHED, exactly once, whatever fails between.
 *
 * Knows no FUSE and no folder: it is handed queue items and tells what became of them. Each step is written to the
 * queue before the next begins; before a step that has an effect is sent, the row says so (may_have_happened), and
 * after a lost answer backend_upload_find() looks before anything is repeated. Files for one session that are STORED
 * while its attach call is under way go into the next one together; a refused batch is taken apart until the guilty one
 * is found.
 *
 * Threads: uploads_*() from any, none of them waits for the network (drain and free: for what is under way,
 * bounded); submit, cancel and rename wait for the disk. Events come on the engine's own threads, with no lock held,
 * and never from within a call; those of one file come one after the other. */
#pragma once

#include "client/backend.h"
#include "fs/queue.h"
#include "fs/spool.h"

struct uploads;

/* What a fault at a step means for the file, a row for each kind of answer. Pure. */
enum next_move {
	MOVE_RETRY,         /* transient: again after a pause */
	MOVE_HOLD_ACCOUNT,  /* nothing of this account goes on until the credentials change or somebody says retry */
	MOVE_HOLD_SESSION,  /* nothing for this session goes on */
	MOVE_SIGN_AGAIN,    /* back to SPOOLED with the same bytes, once */
	MOVE_FORGET_SHORTCUT, /* forget the known id, do the three steps */
	MOVE_LOOK,          /* ask whether it is there already; not there: final -EBUSY when it was a conflict */
	MOVE_FAIL,          /* final */
};

struct move {
	enum next_move next;
	int error; /* what a waiting close is told: -EACCES, -EINVAL, -EFBIG, -ENOENT, -EBUSY, -ETIMEDOUT, -EIO */
};

struct upload_circumstances {
	enum upload_step step;    /* the step the file is in, that the failed call should have left */
	bool by_known_id;         /* the call was backend_attach() by a known id */
	bool key_renewed;         /* signed again already */
	bool ticket_is_old;       /* older than caps.key_lifetime_ms, or a day */
	int attempts;             /* of this step, this one included */
	int64_t age_ms;           /* since the file was queued */
	bool others_went_through; /* other files were uploaded since */
	int error;                /* what the call returned: tells a timeout from a refused connection */
};
struct move upload_judge(const struct fault *fault, const struct upload_circumstances *at);
/* 1 s doubling to 5 min with jitter in [0.5, 1.0) from `random`, never less than retry_after_ms. */
int64_t upload_pause_ms(int attempts, int64_t retry_after_ms, uint32_t random);

/* How a file is doing. */
struct upload_view {
	enum document_state state; /* STATE_QUEUED, STATE_UPLOADING, STATE_WAITING, STATE_FAILED */
	enum upload_step step;
	int64_t done_bytes, size_bytes;
	int64_t moved_ms;     /* when bytes, or an answer, last moved it */
	int error;            /* the last failure; 0: none so far */
	char words[512];      /* "" or why, a sentence */
};

enum upload_event {
	UPLOAD_DONE,    /* document: what it became there */
	UPLOAD_REFUSED, /* final: error and words; the row is FILE_FAILED */
	UPLOAD_WAITING, /* transient for longer than close_timeout (or the service is known to be away): a waiting close
	                   is told `error` now, the file goes on in the background. Its item names the file and holds
	                   neither ticket nor ids of documents */
	UPLOAD_MOVED,   /* state or step changed; for attributes and caches */
	UPLOAD_CANCELED, /* only after uploads_cancel() said -EINPROGRESS: it turned out that nothing had its effect */
};

struct uploads_config {
	struct backend *backend;  /* borrowed */
	struct queue *queue;      /* borrowed */
	const char *spool_dir;
	const char *account;
	int64_t close_timeout_ms;
	int transfers_max;        /* PUTs at a time */
	int haste;                /* for tests: pauses are so many times shorter; 0: as they are */
	/* item is borrowed; document (UPLOAD_DONE) too: ref what is kept. */
	void (*event)(void *arg, enum upload_event event, const struct queue_item *item, struct listing *document,
		      int error, const char *words);
	/* Does the workspace of that session hold these bytes already, as far as anybody here knows? Fills malloc'ed
	 * ids or leaves NULL; fills prior_ids (documents with this hash in the session now), "" none, NULL no memory:
	 * then it is asked again later. Called once when a file begins. */
	void (*known)(void *arg, const char *session_id, const char *sha256, int64_t size_bytes, char **ret_document_id,
		      char **ret_session_id, char **ret_prior_ids);
	void *arg;
};

int uploads_new(const struct uploads_config *config, struct uploads **ret);

/* A file that is still being written will be large: asks for leave to send it, if that costs nobody a place in line, so
 * that its submitting need not. Used when the file is submitted in time under a name of the same type; has no effect
 * otherwise, whatever comes of it. uploads_cancel() forgets it. Does not block. */
void uploads_sign_ahead(struct uploads *u, uint64_t ino, const char *session_id, const char *name);

/* Begins (or takes up again) a file: writes its row, then works on it. somebody_waits: a close is waiting (URGENCY
 * and the UPLOAD_WAITING event apply). The item's spool must be synced and frozen. A file already there under this
 * ino is replaced: the old attempt must have been canceled, or have had its last event (-EBUSY). not_before_ms
 * (clock_now_ms scale, 0: now) is for `settle`. A FILE_FAILED item is taken in as it is, to be viewed, counted, and
 * begun anew by uploads_retry(). */
int uploads_submit(struct uploads *u, const struct queue_item *item, bool somebody_waits, int64_t not_before_ms);

/* Somebody begins to wait for a file that is already being worked on (equal bytes again). -ENOENT: not there. */
int uploads_join(struct uploads *u, uint64_t ino);

/* Stops working on a file. 0: nothing had its effect and nothing will; the row is gone (keep: it stays, as
 * FILE_SCRATCH under its name), and no event follows. -EINPROGRESS: the last step was sent; it is looked up, not
 * repeated, and DONE or CANCELED follows. -ENOENT. Another error is the disk's: the file goes on. A FILE_FAILED one
 * is discarded likewise. */
int uploads_cancel(struct uploads *u, uint64_t ino, bool keep);

/* A new name or session before the last step was sent. -EINPROGRESS: it was. */
int uploads_rename(struct uploads *u, uint64_t ino, const char *session_id, const char *session_name, const char *name);

/* -ENOENT */
int uploads_view(struct uploads *u, uint64_t ino, struct upload_view *ret);
/* Files not yet at the service; how many of them failed for good. */
void uploads_count(struct uploads *u, int *ret_waiting, int *ret_failed);

/* Ends holds and pauses: the credentials changed, or somebody said so. ino 0: all. A FILE_FAILED one begins anew. */
int uploads_retry(struct uploads *u, uint64_t ino);
/* The service has answered somebody else's request: it is no longer away. */
void uploads_service_answered(struct uploads *u);

/* Lets what is under way finish, for at most drain_ms, and for 5 s in which no byte moves and the service answers nothing:
 * it is safe in the queue. Begins nothing new. Returns how many still wait. */
int uploads_drain(struct uploads *u, int64_t drain_ms);
void uploads_free(struct uploads *u);
