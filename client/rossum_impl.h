/* The inside of the Rossum backend, for the files that make it up; rossum.c says what is where.
 *
 * struct rossum has one lock, for what is remembered. It is a leaf: held for a look or a note, never while something is
 * asked; so nothing below is called with it. Any thread may call everything. JSON and texts read from it are borrowed from
 * the tree they stand in. Errors are those of backend.h, with call->fault filled by then. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "client/backend_impl.h"
#include "client/base/buf.h"
#include "client/http.h"
#include "client/json.h"
#include "client/limit.h"

enum {
	PATH_BYTES_MAX = 8 * 1024,
	BODY_BYTES_MAX = 64 * 1024,
	METADATA_BYTES_MAX = 4096, /* of an annotation, as the service counts */
	TROUBLE_BYTES = 400,
	PAGE = 100,               /* the most a page may hold */
	SKEW_MS = 10 * 60 * 1000, /* between the service's clock and ours */
	LINKS = 32768,            /* the largest queue that costs no second request a document */
	IDS_MAX = 100,
	NONCE_BYTES = 33,
};

#define DOCUMENT_BYTES_MAX INT64_C(40000000) /* "40 MB": the smaller of its two meanings */

/* What we learned of an annotation and would otherwise ask again: which document it shows, which upload it came of. */
struct link {
	uint64_t annotation, document, upload; /* 0: none */
};

/* An upload that was sent, so that whoever looks for it knows how long it may take to show. */
struct attempt {
	struct attempt *next;
	char nonce[NONCE_BYTES];
	int64_t sent_ms, settles_ms;
	bool is_in_doubt; /* it may have been taken although no good answer came */
};

struct named {
	struct named *next;
	char *id, *name;
};

/* When a queue was walked whole, and whether its counts can be trusted. */
struct memo {
	struct memo *next;
	char *queue_id;
	int64_t walked_ms;
	int misled;
};

/* A copy whose answer was lost. */
struct doubt {
	struct doubt *next;
	char *queue_id, *annotation_id;
	int64_t asked_wall_ms;
};

struct login {
	char account[65]; /* whose login the rest is about */
	int failures;
	int64_t not_before_ms, done_ms;
	bool is_throttled; /* it was refused for being asked too often, not for what it said */
	char words[200];
};

/* A field's initial value: values=[QUEUE/]KEY:VALUE. */
struct value {
	char *queue; /* id or name; NULL: all */
	char *key, *text;
};

struct rossum {
	struct backend self;
	struct http *http;
	struct limit *limit;
	char *base_url; /* without a slash at its end */
	char *scratch_dir;
	char *metadata; /* further members for the metadata, `,"key":"value"`...; "" */
	struct value *values;
	int value_count;
	bool is_raw; /* upload_form=raw */
	int (*read_credentials)(void *arg, struct credentials *ret);
	const char *(*option)(void *arg, const char *name, int nth);
	void *arg;
	int64_t began_ms;
	int haste; /* 1, but in tests */
	atomic_bool is_stopped;

	pthread_mutex_t lock; /* guards what follows */
	struct link *links;   /* LINKS of them, by annotation; a later one takes an earlier one's place */
	struct attempt *attempts;
	struct named *workspaces, *queues; /* the latter as far as values= asks for names */
	struct memo *memos;
	struct doubt *doubts;
	struct login login;
	uint64_t proved_token; /* the number of a token that /auth/user took */
	int64_t proved_ms;
};

static inline struct rossum *rossum_from(struct backend *b)
{
	return (struct rossum *)b;
}

/* A time we give the service, as long as it is here. */
int64_t rossum_patience_ms(const struct rossum *s, int64_t ms);

/* ---- rossum_read.c: answers -------------------------------------------------------------------------------- */

/* Members nobody depends on are read without complaint: what has an unforeseen type counts as absent. */
const cJSON *rossum_member(const cJSON *object, const char *key);
const char *rossum_text_of(const cJSON *object, const char *key); /* NULL: none, or empty */
int64_t rossum_time_of(const cJSON *object, const char *key);     /* -1: none */
/* Can this be an id? Those of the service are numbers. */
bool rossum_is_digits(const char *text);

/* Objects name each other by whole addresses, and never twice in the same spelling: the id is the last segment. NULL:
 * there is none. room is borrowed from. */
const char *rossum_ref_text(const char *url, struct json_id *room);
/* An address or a bare id, as an id; NULL: neither. */
const char *rossum_ref_of(const cJSON *item, struct json_id *room);
const char *rossum_ref_in(const cJSON *object, const char *key, struct json_id *room);
const char *rossum_own_id(const cJSON *object, struct json_id *room);
/* The segment before the id: "tasks" of ".../tasks/91". */
bool rossum_ref_is(const char *url, const char *kind);

/* For struct http_options: why something was refused. */
void rossum_read_words(const cJSON *body, struct buf *ret);

/* What is not to be shown: superseded, taken away, or never begun. */
bool rossum_status_is_hidden(const char *status);
bool rossum_is_hidden(const cJSON *annotation);
bool rossum_has_status(const cJSON *annotation, const char *status);

/* What we wrote into the metadata of our own uploads: the service itself tells no size and no hash. */
struct mark {
	const char *sha256, *name, *nonce; /* the first is 64 hex digits; the others may be NULL */
	int64_t size_bytes;
};
bool rossum_read_mark(const cJSON *annotation, struct mark *ret);
bool rossum_is_html(const char *name, const char *mime);

/* upload_id NULL: as it was. */
void link_note(struct rossum *s, const char *annotation_id, const char *document_id, const char *upload_id);
/* What is known; NULL: it is not. */
void link_look(struct rossum *s, const char *annotation_id, struct json_id *document_room, struct json_id *upload_room,
	       const char **ret_document, const char **ret_upload);

/* What a view of a document borrows from besides the JSON. */
struct document_room {
	struct json_id id, document, upload, creator, email, organization, parent;
	char trouble[TROUBLE_BYTES];
};
/* An annotation and the document it shows (NULL: not sent along). Borrowed from both and room. */
int rossum_read_document(struct rossum *s, const cJSON *annotation, const cJSON *document, struct document *ret,
			 struct document_room *room);
int rossum_add_document(struct rossum *s, struct listing_builder *builder, const cJSON *annotation, const cJSON *document,
			bool keeps_json);
/* A listing of its own for one document. */
int rossum_one_document(struct rossum *s, const cJSON *annotation, const cJSON *document, int64_t asked_ms,
			struct listing **ret);

/* The documents that came along with a page of annotations, by id. */
struct sideload {
	struct sideloaded {
		struct json_id id;
		const cJSON *item;
	} * items;
	size_t count;
};
int sideload_read(const cJSON *body, struct sideload *ret); /* borrows from body */
void sideload_release(struct sideload *l);
/* The one an annotation shows; NULL: it did not come along. */
const cJSON *sideload_find(const struct sideload *l, const cJSON *annotation);

/* ---- rossum_request.c: one request ------------------------------------------------------------------------- */

/* For struct http_options; arg: a struct rossum. */
int login_read_token(void *arg, struct call *call, bool anew, struct secret **ret);
bool login_is_throttled(struct rossum *s);
/* "Authorization: Basic ..." for the one request that takes it. -ENOKEY: there is no password. */
int login_basic_header(struct rossum *s, struct buf *ret);

/* Sets call->fault; returns error. */
int rossum_fail(struct call *call, enum fault_kind kind, int error, const char *words);
/* An answer of a shape we cannot use is as good as none: GETs may be asked again, writes have to be looked for. */
int rossum_unreadable(struct rossum *s, struct call *call, const struct http_request *q, const char *why, int error);

extern const struct http_request rossum_user_request; /* who am I? */
int rossum_ask(struct rossum *s, struct call *call, const struct http_request *q, struct http_reply *ret);
int rossum_ask_json(struct rossum *s, struct call *call, const struct http_request *q, cJSON **ret);
int rossum_get_json(struct rossum *s, struct call *call, const char *path, cJSON **ret); /* path NULL: no memory */
/* Sleeps, unless the caller gives up or the time is up. */
int rossum_nap(struct rossum *s, struct call *call, int64_t ms, int64_t deadline_ms);

/* A list, page by page. Pages are never counted: some servers tell no total, and those who do change under our feet. */
struct pages {
	struct buf path; /* to ask next; empty: the end */
	struct buf mark; /* an earlier one: whoever comes by it again walks in a circle */
	int asked;
};
#define PAGES                                                                                                          \
	{                                                                                                              \
		.path = BUF(PATH_BYTES_MAX), .mark = BUF(PATH_BYTES_MAX)                                               \
	}
/* 1: a page, of which *ret_results is the list; 0: the end. */
int pages_next(struct rossum *s, struct call *call, struct pages *p, cJSON **ret, const cJSON **ret_results);
void pages_release(struct pages *p);

/* ---- rossum_queue.c: queues -------------------------------------------------------------------------------- */

/* list: s->workspaces or s->queues. */
void named_note(struct rossum *s, struct named **list, const cJSON *item);
/* false: nobody has told. */
bool named_look(struct rossum *s, struct named *const *list, const char *id, char **ret_name);
int rossum_get_queue_json(struct rossum *s, struct call *call, const char *queue_id, cJSON **ret);
int rossum_read_queue(const cJSON *item, struct session *ret);
int rossum_get_session(struct backend *b, struct call *call, const char *session_id, struct session *ret);
int rossum_list_sessions(struct backend *b, struct call *call, struct session_list *ret);
int rossum_find_session_id(struct backend *b, const char *text, char **ret);

/* ---- rossum_listing.c: what is in a queue ------------------------------------------------------------------ */

const char *rossum_annotations_path(struct buf *path, const char *queue_id, const char *further);
/* The annotations of these ids, as pages do. *ret_documents borrows from *ret. */
int rossum_get_annotations(struct rossum *s, struct call *call, const char *queue_id, const char *ids, cJSON **ret,
			   const cJSON **ret_results, struct sideload *ret_documents);
int rossum_list_documents(struct backend *b, struct call *call, const char *session_id, struct listing *known,
			  struct listing **ret);

/* ---- rossum_document.c: one document ----------------------------------------------------------------------- */

/* What is wanted of a document: its bytes, or (fd NULL) how many there are. */
struct content {
	const int *fd;
	int64_t size_bytes; /* out */
};
int rossum_get_content(struct rossum *s, struct call *call, const char *document_id, struct content *c);
int rossum_fetch_document(struct backend *b, struct call *call, const char *session_id, const char *document_id, int fd);
int rossum_measure_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
			    int64_t *ret_bytes);
int rossum_detach(struct backend *b, struct call *call, const char *session_id, const char *document_id);
int rossum_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
		  const char *const *document_ids, int count, struct listing **ret);

/* ---- rossum_upload.c: the steps of an upload --------------------------------------------------------------- */

int rossum_upload_sign(struct backend *b, struct call *call, struct upload *u);
int rossum_upload_store(struct backend *b, struct call *call, struct upload *u);
int rossum_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count);
int rossum_upload_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids, int not_count);
