/* A backend in memory, for tests. It is a whole `struct backend`: use it with the backend_*() functions.
 *
 * It holds one account: sessions, and documents that may be in several of them. Uploads go sign -> store -> attach as with
 * a real service; equal bytes become one document when caps.reuses_bytes. What a test wants to go wrong it says beforehand:
 *
 *	struct backend *b = fake_backend_new(NULL);
 *	fake_add_session(b, "s1", "Q1");
 *	fake_fail(b, FAKE_LIST_DOCUMENTS, 2, &(struct fake_fault){ .kind = FAULT_AWAY, .http_status = 503 });
 *	...
 *	assert_int_equal(fake_calls(b, FAKE_LIST_DOCUMENTS), 3);
 *	backend_close(b);
 *
 * Threads: any, for all of it. It runs out of memory by assert(). Urgencies are not looked at; deadlines and
 * call->transfer->cancelled are, wherever a call waits (latency, hold). */
#pragma once

#include "client/backend.h"

enum fake_op {
	FAKE_CHECK,
	FAKE_DESCRIBE,
	FAKE_LIST_SESSIONS,
	FAKE_GET_SESSION,
	FAKE_LIST_TEMPLATES,
	FAKE_CREATE_SESSION,
	FAKE_LIST_DOCUMENTS,
	FAKE_FETCH_DOCUMENT,
	FAKE_ATTACH,
	FAKE_DETACH,
	FAKE_RUN,
	FAKE_UPLOAD_SIGN,
	FAKE_UPLOAD_STORE,
	FAKE_UPLOAD_ATTACH,
	FAKE_UPLOAD_FIND,
	FAKE_SWEEP, /* FAKE_LIST_DOCUMENTS with call->is_sweep */
	FAKE_OP_COUNT,
};

/* What fake_backend_new(NULL) can do: it lists and makes sessions, attaches (same id) and detaches, knows sizes and hashes,
 * reuses equal bytes, gives documents names of its own ("document-N.pdf"), attaches 10 uploads a request, lists 15
 * documents a page and hands over the session's record with them, and sees by the record alone whether they are as they were. Keys live a
 * day, documents have at most 40,000,000 bytes. */
struct backend_caps fake_caps(void);

/* caps NULL: fake_caps(). backend_close() ends it. There is one template, "t1" (workspace "w1"), and no session. */
struct backend *fake_backend_new(const struct backend_caps *caps);

/* ---- what is there ----------------------------------------------------------------------------------------- */

/* In workspace "w1"; by fake_add_session_in() in another: attaching across workspaces is -EXDEV. */
void fake_add_session(struct backend *b, const char *id, const char *name);
void fake_add_session_in(struct backend *b, const char *id, const char *name, const char *workspace_id);
void fake_rename_session(struct backend *b, const char *id, const char *name);
void fake_close_session(struct backend *b, const char *id);  /* is_closed from now on: uploads are FAULT_INVALID */
void fake_remove_session(struct backend *b, const char *id); /* asked for: FAULT_GONE */

/* A document somebody else put there, with the bytes of `text`; returns its id ("d1", "d2", ...), borrowed until
 * backend_close(). Never reuses. */
const char *fake_add_document(struct backend *b, const char *session_id, const char *name, const char *text);
/* `count` documents of no bytes, named by a format with one %d; for large folders. */
void fake_add_documents(struct backend *b, const char *session_id, const char *name_format, int count);
/* Out of the session; the document itself goes on existing. */
void fake_remove_document(struct backend *b, const char *session_id, const char *document_id);
/* The service's word and ours for it; error may be NULL. */
void fake_set_status(struct backend *b, const char *document_id, const char *status, enum document_state state,
		     const char *error);

int fake_document_count(struct backend *b, const char *session_id); /* -1: no such session */
/* The id of the nth document (from 0) in the session that has these bytes, or NULL; borrowed as above. */
const char *fake_document_with(struct backend *b, const char *session_id, const char *text, int nth);
/* The service's name for it, or NULL; borrowed until it changes. */
const char *fake_document_name(struct backend *b, const char *document_id);
int fake_run_count(struct backend *b, const char *session_id);

/* ---- what goes wrong --------------------------------------------------------------------------------------- */

struct fake_fault {
	enum fault_kind kind;   /* the errno follows from it, as backend.h says */
	int http_status;        /* 0: no answer */
	int64_t retry_after_ms; /* 0: not asked for */
	bool takes_effect;      /* it is done all the same: a lost answer. may_have_happened is set with it ... */
	bool is_denied;         /* ... but for this: a plain no, as to a request that was never looked at */
	bool may_have_happened; /* said although nothing was done */
	const char *words, *ability; /* borrowed until the fault is used up; NULL: "" */
	int error;              /* -errno, where that of the kind will not do; 0 */
};

/* The next `times` calls of op fail so (-1: all, until fake_heal()). Faults of one op queue up. For FAKE_UPLOAD_ATTACH
 * the whole request fails; for a single upload of a batch see fake_fail_upload(). */
void fake_fail(struct backend *b, enum fake_op op, int times, const struct fake_fault *fault);
/* Upload of that name fails by itself in each attach request, `times` times (-1: always), while its neighbours go on. With
 * is_guilty the whole request fails instead for as long as it is in it, telling nobody who was to blame. */
void fake_fail_upload(struct backend *b, const char *name, int times, bool is_guilty, const struct fake_fault *fault);
void fake_heal(struct backend *b); /* no more faults, holds or latencies */

/* Every ticket made so far is refused from now on (FAULT_KEY). */
void fake_expire_keys(struct backend *b);
/* A key that was attached once is refused when it comes again (FAULT_KEY). */
void fake_use_keys_up(struct backend *b);

/* Each call of op takes so long; a listing is as it was when the call began. */
void fake_latency(struct backend *b, enum fake_op op, int ms);

/* Calls of op stay inside: before anything is done (HOLD_BEFORE), or with it done and the answer on its way
 * (HOLD_AFTER: a listing as it was before). fake_let_go() lets all of them out and holds no more. */
enum fake_hold { HOLD_BEFORE, HOLD_AFTER };
void fake_hold(struct backend *b, enum fake_op op, enum fake_hold where);
void fake_let_go(struct backend *b, enum fake_op op);
/* Waits until `count` calls of op are held; false: not within 5 s. */
bool fake_wait_held(struct backend *b, enum fake_op op, int count);

/* ---- what was asked ---------------------------------------------------------------------------------------- */

int fake_calls(struct backend *b, enum fake_op op);       /* that began, refused ones too */
int fake_calls_total(struct backend *b);
int fake_running_max(struct backend *b, enum fake_op op); /* the most at one time */
int fake_batch_max(struct backend *b);                    /* the most uploads in one attach request */
int fake_known_calls(struct backend *b);                  /* listings asked for with a `known` */
int fake_learned(struct backend *b);                      /* calls of backend_learn_session() */
void fake_count_anew(struct backend *b);                  /* all counts to 0 */
