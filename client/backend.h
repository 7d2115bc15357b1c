/* What a document service can do for us, whichever it is. Authors of one read backend_impl.h as well.
 *
 * Calls are made on worker threads, never on a libfuse thread, and from any number of them at once: they block until the
 * server answers or the call's time is up. The exceptions say so: backend_caps() and listing_*() answer from memory.
 *
 * They return 0 or -errno, and what went wrong stands in call->fault:
 *   -ENOENT gone  -EACCES refused  -EINVAL not accepted  -EFBIG too large  -EBUSY conflict  -EXDEV not from there to here
 *   -EAGAIN no budget  -ETIMEDOUT no answer in time  -EPROTO an unreadable one  -ECANCELED we gave up
 *   -EOPNOTSUPP the service lacks it  -EIO the rest
 * The reason is logged by then; callers pass the number on and add nothing. Outputs are written on success alone, and
 * belong to the caller, who ends them as each type says. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/base/buf.h"
#include "client/base/secret.h"

struct backend;
struct listing;
struct session;

/* ---- one call ---------------------------------------------------------------------------------------------- */

/* Who waits, and so who goes first when the service's budget is short. */
enum urgency {
	URGENCY_PERSON,     /* somebody waits in a system call */
	URGENCY_FINISH,     /* an upload's last step: its bytes are there, its key grows old */
	URGENCY_BEGIN,      /* an upload's first step */
	URGENCY_BACKGROUND, /* polling, sweeps */
};

/* What a refusal means, in words that hold for every service. upload_step.c's table of what follows is keyed by it. */
enum fault_kind {
	FAULT_NONE,
	FAULT_ACCOUNT,   /* 401, after the credentials were read anew */
	FAULT_FORBIDDEN, /* 403: an ability or a right is missing */
	FAULT_GONE,      /* 404, 410: not there, or not ours */
	FAULT_INVALID,   /* 400, 422 and other 4xx: it will not be better next time */
	FAULT_KEY,       /* storage refused the signed link, or the service the key: sign again */
	FAULT_TOO_LARGE, /* 413 */
	FAULT_CONFLICT,  /* 409 */
	FAULT_BUDGET,    /* 429, or our own limiter had no place before the deadline */
	FAULT_AWAY,      /* 408, 425, 5xx, no connection, an answer cut short or unreadable */
	FAULT_CANCELED,  /* call->transfer->cancelled was set */
};

/* Written by the call; zeroed by its beginning. */
struct fault {
	enum fault_kind kind;
	int http_status;        /* 0: no answer */
	int64_t retry_after_ms; /* as the server asked; -1: it did not */
	bool may_have_happened; /* the request may have taken effect although no good answer came */
	char words[400];        /* the service's own words, cut; "" when it had none */
	char ability[48];       /* what the token lacks, such as "sessions-write"; "" unless FAULT_FORBIDDEN */
};

/* How far a long transfer has come. Shared by the caller and the call. */
struct transfer {
	_Atomic int64_t done_bytes;
	_Atomic int64_t moved_ms;     /* clock_now_ms() when bytes moved last */
	_Atomic bool waits_for_place; /* in the limiter's line: not the service's failure */
	_Atomic bool cancelled;       /* set by the caller; the call ends soon with -ECANCELED */
};

struct call {
	enum urgency urgency;
	int64_t deadline_ms;       /* clock_now_ms() scale; 0: the call's own bound (60 s; transfers: while bytes move) */
	struct transfer *transfer; /* may be NULL */
	bool is_sweep;             /* a listing is to be asked for in full, `known` notwithstanding: a cheap refresh does not see all */
	/* May be NULL. A listing walk hands over each page as it arrives; `page` is borrowed for the call of it. */
	void (*on_page)(void *arg, const struct listing *page);
	void *on_page_arg;
	/* May be NULL. A call that happens to see the session's own record hands it over; borrowed likewise. */
	void (*on_session)(void *arg, const struct session *session);
	void *on_session_arg;
	/* May be NULL. Bytes of a document have come: transfer->done_bytes tells how many stand there by now, and can be read. */
	void (*on_bytes)(void *arg);
	void *on_bytes_arg;
	/* May be NULL, both; for backend_get_session(). What the caller knows of the session's documents: a record that shows them as they
	 * were hands over the same listing, said again. Both borrowed likewise. */
	struct listing *known;
	void (*on_same)(void *arg, struct listing *renewed);
	void *on_same_arg;
	struct fault fault; /* out */
};

/* ---- sessions ---------------------------------------------------------------------------------------------- */

struct session {
	char *id;        /* opaque; safe in a path of ours ([A-Za-z0-9-]) */
	char *name;      /* as the server has it: may repeat, may hold '/'; "" when it has none */
	char *qualifier; /* tells equal names apart before an id has to (a workspace's name); NULL: none */
	char *template_id;
	char *workspace_id; /* NULL: not known yet */
	char *status;       /* the server's word; NULL: none */
	char *formats;      /* accepted suffixes, "pdf png"; NULL: the service's */
	int64_t created_ms; /* since 1970; -1: unknown */
	int64_t updated_ms;
	bool is_closed; /* takes no uploads now */
};

void session_release(struct session *s);
int session_copy(const struct session *s, struct session *ret);

struct session_list {
	struct session *items;
	int count;
};

void session_list_release(struct session_list *l);

/* What a new session is made from. */
struct template {
	char *id, *name, *workspace_id, *workspace_name; /* the last two may be NULL */
};

struct template_list {
	struct template *items;
	int count;
};

void template_list_release(struct template_list *l);

/* ---- documents --------------------------------------------------------------------------------------------- */

/* The words of user.sessionfs.state. The first four are for local files and never come from a backend. */
enum document_state {
	STATE_LOCAL,
	STATE_QUEUED,
	STATE_UPLOADING,
	STATE_WAITING,
	STATE_STORED,     /* at the service, nobody has asked for parsing */
	STATE_PROCESSING, /* under way; also a status nobody foresaw */
	STATE_READY,
	STATE_FAILED,
};

const char *document_state_word(enum document_state s);

enum { DOCUMENT_EXTRA_MAX = 6 };

/* A view of one document: texts are borrowed from the listing that filled it. NULL: the service did not say. */
struct document {
	const char *id;       /* the service's; opaque */
	const char *filename; /* as the service has it: may repeat, may hold '/', may be invalid UTF-8 or "" */
	const char *status;   /* the service's own word */
	enum document_state state;
	const char *sha256; /* 64 lower-case hex digits */
	int64_t size_bytes; /* -1: unknown */
	int64_t created_ms; /* since 1970; -1: unknown */
	const char *mime;
	const char *source, *source_url; /* the url without its query */
	const char *workspace_id;
	int pages; /* -1: unknown */
	const char *error;
	struct {
		const char *status, *version, *config;
		int64_t updated_ms; /* -1: unknown */
	} parsing;                  /* the newest one */
	const char *extra[DOCUMENT_EXTRA_MAX][2]; /* a service's further attributes, { "upload", "123" }; ends at { NULL } */
	char sha256_text[65]; /* room for sha256; not for readers */
};

/* Two of the further attributes mean the same wherever they are met: "parent", the id of what it was taken out of, such as an archive
 * (the answer to an upload that names one tells that the file became others, under names of their own), and "document", the id of its
 * bytes where the document can be given others. */
const char *document_extra(const struct document *d, const char *name); /* NULL: it has none */
/* What its bytes never change under. */
const char *document_bytes_id(const struct document *d);

/* The documents of one session as they were at one moment, in the server's order; immutable, counted, shared by
 * threads. A listing holds each id once. */
struct listing *listing_ref(struct listing *l);
void listing_unref(struct listing *l);
void listing_release(struct listing **l); /* for CLEANUP */
int listing_count(const struct listing *l);
/* Fills ret for 0 <= i < count; borrowed until the listing's last unref. */
void listing_get(const struct listing *l, int i, struct document *ret);
/* The same for its id and filename alone: several times quicker. */
void listing_get_names(const struct listing *l, int i, const char **ret_id, const char **ret_filename);
/* All that is told of them is equal. */
bool document_is_equal(const struct document *a, const struct document *b);
/* The index of an id, or -1. */
int listing_find(const struct listing *l, const char *id);
/* The first index from `from` on whose document has these bytes; it may have no size. -1: none. Looks at all, at some 20 ns each. */
int listing_find_bytes(const struct listing *l, int from, const char *sha256, int64_t size_bytes);
int64_t listing_asked_ms(const struct listing *l);      /* clock_now_ms() when the first request for it was sent */
int64_t listing_as_of_wall_ms(const struct listing *l); /* when the service last said so */
/* A number no other listing of this process has; equal numbers: the same documents in the same condition. */
uint64_t listing_serial(const struct listing *l);
/* The service's whole record of document i as JSON, from disk. -ENODATA when it was not kept. */
int listing_read_json(const struct listing *l, int i, struct buf *ret);
/* An annex is bytes of whoever shows a listing, known to him alone: whoever keeps the listing on a disk keeps them beside it, and what comes back
 * from there has them again. A listing said again shares them; a patched one has none. Any thread. */
void listing_set_annex(struct listing *l, void *bytes, size_t len); /* takes over bytes; NULL: none */
void *listing_take_annex(struct listing *l, size_t *ret_len);       /* the caller's then; NULL: there is none */
/* A new listing: all of l but the ids in `without`, then the documents of `with` (either may be NULL/0). */
int listing_patch(struct listing *l, const char *const *without, int without_count, struct listing *with, struct listing **ret);

/* ---- opening one ------------------------------------------------------------------------------------------- */

struct credentials {
	struct secret *token;    /* or NULL */
	char *user;              /* or NULL; with password */
	struct secret *password; /* or NULL */
};

void credentials_release(struct credentials *c);

/* A service's own option, as in the option table of fs/options.c. */
struct backend_option {
	const char *name;
	const char *value_word; /* for the help text: "ID", "KEY:VALUE" */
	const char *default_text;
	const char *help;
	bool is_repeatable;
};

struct backend_config {
	const char *service; /* a name in the table of backends */
	const char *url;     /* NULL: the service's own */
	/* Reads the credentials anew, each time it is called; any thread. */
	int (*read_credentials)(void *arg, struct credentials *ret);
	/* The nth value (from 0) of one of the backend's own options, or NULL. Borrowed while the backend lives. */
	const char *(*option)(void *arg, const char *name, int nth);
	void *arg; /* for both */
	int rate_per_min;         /* 0: 90 % of the documented limit; -1: no limit of ours */
	const char *cafile;       /* NULL: the system's */
	const char *proxy;        /* NULL: the environment's */
	const char *scratch_dir;  /* where unlinked temporary files may be made */
	const char *limit_path;   /* a file shared by this user's mounts of the same service; NULL: count alone */
};

/* Opens the backend of config->service; asks no server. On failure `why` says in one sentence what is wrong with the
 * configuration (-EINVAL), without a full stop. config is copied but for what its comments say. */
int backend_open(const struct backend_config *config, struct buf *why, struct backend **ret);
void backend_close(struct backend *b);

/* The names of all services, ends with NULL; and one's options, end with { NULL }. NULL for an unknown service. */
const char *const *backend_services(void);
const struct backend_option *backend_options(const char *service);

/* ---- what it can do ---------------------------------------------------------------------------------------- */

enum session_listing { SESSIONS_LISTED, SESSIONS_GUESSED, SESSIONS_NEVER };

struct backend_caps {
	const char *service;             /* "raydocs" */
	const char *title;               /* "Raydocs" */
	const char *token_help;          /* where to make a token and which rights to tick: a sentence */
	const char *default_url;         /* NULL: has to be configured */
	const char *formats;             /* accepted suffixes in lower case: "pdf docx png" */
	int64_t document_bytes_max;      /* 0: unknown */
	enum session_listing sessions;   /* is there a list of sessions? GUESSED: a few undocumented routes may be tried */
	bool creates_sessions;
	bool attaches;                   /* a document can be put into a second session without its bytes */
	bool attach_keeps_id;            /* ... and has the same id there */
	bool detaches;
	bool knows_sizes, knows_hashes;  /* in listings */
	bool keeps_names;                /* gives an uploaded document the name we say */
	bool reuses_bytes;               /* equal bytes become one document, whatever the name */
	bool store_has_effect;           /* UPLOAD_STORED may already have made the document */
	int attach_batch_max;            /* uploads per backend_upload_attach() */
	int64_t key_lifetime_ms;         /* a ticket older than this is signed anew */
	int rate_per_min;                /* as documented */
	int folder_page;                 /* documents per listing request */
};

const struct backend_caps *backend_caps(const struct backend *b);

/* ---- calls ------------------------------------------------------------------------------------------------- */

/* The cheapest request that proves the credentials, for whoever wants to know nothing else. -EACCES with FAULT_ACCOUNT: refused. Any
 * other answer of the service proves them. */
int backend_check(struct backend *b, struct call *call);

/* Lines "what: how it went" about credentials, rights seen to work, limits; for people. Errors as backend_check(). */
int backend_describe(struct backend *b, struct call *call, struct buf *ret);

/* All sessions the account can see. -EOPNOTSUPP when the service does not offer it (a guess that failed is that too). */
int backend_list_sessions(struct backend *b, struct call *call, struct session_list *ret);
int backend_get_session(struct backend *b, struct call *call, const char *session_id, struct session *ret);
/* What an earlier run was told of a session, for the same account: of that, what stays as it is for as long as the session is made from
 * the same template is not asked for again. Copied; asks nobody. */
void backend_learn_session(struct backend *b, const struct session *known);
int backend_list_templates(struct backend *b, struct call *call, struct template_list *ret);
int backend_create_session(struct backend *b, struct call *call, const char *template_id, const char *name,
			   struct session *ret);

/* The id of a session somewhere in a text (a pasted address), or -ENOENT. Asks nobody. */
int backend_find_session_id(struct backend *b, const char *text, char **ret);

/* The documents of a session. `known` (may be NULL, borrowed) is what the caller has from before: a backend may use it to
 * ask for less. When nothing changed the answer has known's serial. */
int backend_list_documents(struct backend *b, struct call *call, const char *session_id, struct listing *known,
			   struct listing **ret);

/* What is remembered, without asking the service; it may wait for a local disk. -EAGAIN: nothing, or older than max_age_ms
 * (-1: whatever is still served; INT64_MAX: however old, as at a start). A backend that remembers nothing always says so.
 * -ENOENT: known to be gone. */
int backend_recall_documents(struct backend *b, const char *session_id, int64_t max_age_ms, struct listing **ret);

/* Forget what is remembered of one session (NULL: all). */
void backend_forget(struct backend *b, const char *session_id);

/* The fingerprint of the credentials last read, over the service's address: 64 hex digits; "" before the first reading.
 * From memory; any thread. What is remembered for one account is not another's. */
void backend_account(const struct backend *b, char ret[65]);

/* How its requests stand (a line or two for people): the limit, a pause, a change of ways. From memory; any thread. */
void backend_tell_state(struct backend *b, struct buf *ret);

/* Ends every call under way, within a second, and each one to come, with -ECANCELED: the mount is ending. */
void backend_stop(struct backend *b);

/* All bytes of a document into fd, from its offset 0 on; the caller checks the hash. With on_bytes they may be read as they come: the first
 * transfer->done_bytes, those of an earlier call that failed as well (0: none), are not changed again, neither by another attempt nor by
 * another call. -ESTALE: the service has others now. */
int backend_fetch_document(struct backend *b, struct call *call, const char *session_id, const char *document_id, int fd);

/* The size of a document that listings tell none of, for less than its bytes where the service lets us. -EOPNOTSUPP: they tell it. */
int backend_measure_document(struct backend *b, struct call *call, const char *session_id, const char *document_id, int64_t *ret_bytes);

/* Puts documents of from_session (NULL: not known) into a session by id; ret: the documents as they are there, in the
 * order asked where the service tells. -EXDEV: the service cannot attach from there. */
int backend_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
		   const char *const *document_ids, int count, struct listing **ret);
int backend_detach(struct backend *b, struct call *call, const char *session_id, const char *document_id);

/* Asks for the session's documents to be parsed and extracted. */
int backend_run(struct backend *b, struct call *call, const char *session_id);

/* ---- uploading --------------------------------------------------------------------------------------------- */

/* An upload goes through these in order; one call moves it one step. What a backend must know later it writes into the
 * ticket, a line of text the caller keeps with the file (also across a restart) and never reads. */
enum upload_step { UPLOAD_SPOOLED, UPLOAD_SIGNED, UPLOAD_STORED, UPLOAD_ATTACHED };

struct upload {
	/* in; borrowed for the call */
	const char *session_id;
	const char *name;   /* the final name, UTF-8 */
	const char *sha256; /* 64 hex digits */
	int64_t size_bytes;
	int fd; /* the bytes, from offset 0; needed for the step to STORED only */
	bool is_retry; /* this step may have been tried before: the backend may ask the service to refuse a second one */
	/* in and out */
	enum upload_step step;
	char *ticket;              /* malloc'ed or NULL; replaced by the backend */
	int64_t ticket_wall_ms;    /* when the ticket was made */
	/* out, of backend_upload_attach() */
	int error;                 /* 0 or -errno for this one */
	struct fault fault;
	struct listing *document;  /* holds one document; the caller unrefs it */
};

/* SPOOLED -> SIGNED: leave to send bytes. May be asked for while they are still being written: then sha256 is "", size_bytes 0,
 * and a backend that has to know them fails. */
int backend_upload_sign(struct backend *b, struct call *call, struct upload *u);
/* SIGNED -> STORED: sends the bytes, with call->transfer moving. */
int backend_upload_store(struct backend *b, struct call *call, struct upload *u);
/* STORED -> ATTACHED for 1..caps.attach_batch_max uploads of one session in one request. Returns 0 when each upload's
 * `error` tells how it went (they may differ), else what holds for all, and `error` is set to it as well. */
int backend_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count);
/* Is it there already? Searches the session for what an earlier attempt may have made. 0: u->document is it and the step
 * is ATTACHED; -ENOENT: surely not there. Never from memory. `not_ids` are documents known to have been there before the
 * first attempt: in a service that makes a second document of equal bytes they are not ours. */
int backend_upload_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids, int not_count);
