/* What is local, waits to be uploaded, or failed, and how far each file has come; knows no network.
 *
 * One row a file in state.db (table `file`; its own connection, WAL, synchronous=FULL). A call that returned 0 has
 * its effect after power loss; the order is: spool_sync() first, then the row, so that a row's bytes are whole.
 * Calls take as long as an fsync: worker threads. Any thread. A row that cannot be understood, or whose spool file
 * is missing or of another size, is moved to table `file_aside` with a log line; a spool file without a row is moved
 * to spool/aside/. One whose spool file cannot be looked at just now is passed over as it stands. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/backend.h"

struct queue;

enum file_kind {
	FILE_SCRATCH, /* stays here: a scratch name */
	FILE_PENDING, /* to be uploaded */
	FILE_FAILED,  /* finally refused; the bytes are kept for the user to decide */
};

struct queue_item {
	uint64_t ino;       /* the key */
	char *session_id;
	char *session_name; /* the folder's name as shown: what a lost session's files are kept under */
	char *name;
	uint64_t spool_id;
	int64_t size_bytes;
	char sha256[65];    /* "" for FILE_SCRATCH, and for a FILE_FAILED that was never whole */
	int64_t mtime_ns;
	enum file_kind kind;
	enum upload_step step;
	char *ticket; /* see struct upload */
	int64_t ticket_wall_ms;
	char *account;           /* whose upload it is: secret_fingerprint() */
	int attempts;            /* of the present step */
	int64_t queued_wall_ms;
	int64_t next_wall_ms;    /* not before */
	bool may_have_happened;  /* a step with effect was sent and its answer is not known: look before repeating */
	bool key_renewed;        /* went back to step 1 once after a refused key */
	char *known_id;          /* try to attach this document first; NULL: by transfer */
	char *known_session_id;  /* where it was seen; may be NULL */
	char *prior_ids;         /* documents of this hash in the session before it began, separated by spaces; NULL: not asked */
	char *supersedes_id;     /* a document of ours to detach once this one is attached */
	int error;               /* -errno of the last failure, 0 none */
	enum fault_kind fault;
	char *words;             /* why, in the service's own words; NULL */
};

void queue_item_release(struct queue_item *i);
int queue_item_copy(const struct queue_item *i, struct queue_item *ret);

/* dir: the state folder; its spool is dir/spool. */
int queue_open(const char *dir, struct buf *why, struct queue **ret);
void queue_close(struct queue *q);

/* Every sound row, oldest first; `item` is borrowed, and may be put back at once. The first load sets aside what is
 * damaged: before anybody writes, and with the state folder's lock held. */
int queue_load(struct queue *q, void (*each)(void *arg, const struct queue_item *item), void *arg);
int queue_put(struct queue *q, const struct queue_item *item); /* inserts or replaces by ino */
int queue_remove(struct queue *q, uint64_t ino);

/* Tells every other row of these bytes and this session that already has prior_ids of one more document that is not
 * its own. */
int queue_add_prior(struct queue *q, uint64_t but_ino, const char *session_id, const char *sha256,
		    const char *document_id);

/* Is there another file of these bytes, session and account at UPLOAD_STORED? 0, or -ENOENT. */
int queue_find_stored(struct queue *q, uint64_t but_ino, const char *session_id, const char *sha256,
		      const char *account);

/* Bytes this mount put into a workspace, for attaching them by id next time. -ENOENT. The caller frees. */
int queue_remember_hash(struct queue *q, const char *workspace_id, const char *sha256, const char *document_id,
			const char *session_id);
int queue_find_hash(struct queue *q, const char *workspace_id, const char *sha256, char **ret_document_id,
		    char **ret_session_id);
int queue_forget_hash(struct queue *q, const char *sha256, const char *document_id);
