/* For authors of a backend: what to provide, and the helpers all of them share.
 *
 * A backend is one file, client/NAME.c, that ends in a `const struct backend_ops NAME_backend`, and its name in two
 * lists: the sources in client/meson.build and the table in client/backend.c. One that has grown has others beside it,
 * client/NAME_*.c, and a header for these alone. */
#pragma once

#include "client/backend.h"

struct backend_ops {
	const char *name;
	const struct backend_option *options; /* ends with { NULL } */
	/* As backend_open(); ret's first member is a struct backend, filled by backend.c afterwards. */
	int (*open)(const struct backend_config *config, struct buf *why, struct backend **ret);
	void (*close)(struct backend *b);
	/* An op that is missing answers -EOPNOTSUPP (recall: -EAGAIN; forget, learn, tell_state, stop: nothing). */
	int (*check)(struct backend *b, struct call *call);
	int (*describe)(struct backend *b, struct call *call, struct buf *ret);
	int (*list_sessions)(struct backend *b, struct call *call, struct session_list *ret);
	int (*get_session)(struct backend *b, struct call *call, const char *session_id, struct session *ret);
	void (*learn_session)(struct backend *b, const struct session *known);
	int (*list_templates)(struct backend *b, struct call *call, struct template_list *ret);
	int (*create_session)(struct backend *b, struct call *call, const char *template_id, const char *name,
			      struct session *ret);
	int (*find_session_id)(struct backend *b, const char *text, char **ret);
	int (*list_documents)(struct backend *b, struct call *call, const char *session_id, struct listing *known,
			      struct listing **ret);
	int (*recall_documents)(struct backend *b, const char *session_id, int64_t max_age_ms, struct listing **ret);
	void (*forget)(struct backend *b, const char *session_id);
	void (*tell_state)(struct backend *b, struct buf *ret);
	void (*account)(const struct backend *b, char ret[65]); /* for a backend around another one alone */
	void (*stop)(struct backend *b);
	int (*fetch_document)(struct backend *b, struct call *call, const char *session_id, const char *document_id,
			      int fd);
	int (*measure_document)(struct backend *b, struct call *call, const char *session_id, const char *document_id,
				int64_t *ret_bytes);
	int (*attach)(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
		      const char *const *document_ids, int count, struct listing **ret);
	int (*detach)(struct backend *b, struct call *call, const char *session_id, const char *document_id);
	int (*run)(struct backend *b, struct call *call, const char *session_id);
	int (*upload_sign)(struct backend *b, struct call *call, struct upload *u);
	int (*upload_store)(struct backend *b, struct call *call, struct upload *u);
	int (*upload_attach)(struct backend *b, struct call *call, struct upload *const *us, int count);
	int (*upload_find)(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids,
			   int not_count);
};

struct backend {
	const struct backend_ops *ops;
	struct backend_caps caps; /* set by open; constant afterwards */
	struct watch *watch;      /* backend.c's own: who reads credentials */
};

/* Building a listing. Not safe for two threads at a time. */
struct listing_builder;
/* scratch_dir: where the unlinked file for the JSON records goes; NULL keeps none. */
struct listing_builder *listing_builder_new(const char *scratch_dir);
/* Copies the document; a second one with the same id replaces the first in place. json (may be NULL) is its record.
 * doc->sha256 of another shape than 64 hex digits is dropped. */
int listing_builder_add(struct listing_builder *b, const struct document *doc, const char *json);
int listing_builder_count(const struct listing_builder *b);
/* Ends the builder, also on failure. asked_ms and as_of_wall_ms as listing_asked_ms() and ..._as_of_wall_ms(). */
int listing_builder_finish(struct listing_builder *b, int64_t asked_ms, int64_t as_of_wall_ms, struct listing **ret);
void listing_builder_free(struct listing_builder *b);
void listing_builder_release(struct listing_builder **b); /* for CLEANUP */

/* The same documents and serial, said again by the service at a later time. */
int listing_renew(struct listing *l, int64_t asked_ms, int64_t as_of_wall_ms, struct listing **ret);

/* ---- a listing on a disk --------------------------------------------------------------------------------------- */

/* As bytes that a later run reads back: for whoever remembers listings. Its records of JSON stay in a file of their own,
 * which gets a name and goes on growing with the listing's successors. 0 or -errno, as each function below. */
typedef int listing_put(void *arg, const void *bytes, size_t len);
typedef int listing_get_bytes(void *arg, void *bytes, size_t len);

enum { LISTING_JSON_NAME_BYTES = 33 };

size_t listing_packed_bytes(const struct listing *l);
int listing_pack(const struct listing *l, listing_put *put, void *arg);
/* Gives the file of JSON records a name in `dir`, which is of the scratch_dir's file system, unless it has one there.
 * ret_name "": there are none. Removing that name again is the caller's affair. */
int listing_keep_json(const struct listing *l, const char *dir, char ret_name[LISTING_JSON_NAME_BYTES]);

struct listing_source {
	size_t bytes; /* as listing_packed_bytes() was */
	listing_get_bytes *get; /* the next ones; called until all were had */
	void *arg;
	const char *json_dir, *json_name; /* as at listing_keep_json(); a file that is gone costs the records alone */
	int64_t asked_ms, as_of_wall_ms;  /* as listing_asked_ms() and ..._as_of_wall_ms() will tell */
};
/* -EBADMSG: damaged, or of another version. Nothing is believed that was not checked. It has a serial of its own. */
int listing_unpack(const struct listing_source *from, struct listing **ret);

/* "application/pdf" for "x.PDF"; "application/octet-stream" for the unknown. From one table in backend.c. */
const char *mime_by_name(const char *name);
