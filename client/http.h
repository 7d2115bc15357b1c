/* One request in, one reply out: connections, time limits, credentials, redirects, status -> errno. All of curl is in
 * http.c.
 *
 * Two kinds of requests. One to the API goes to the configured address, carries the token, waits for its place in the
 * limit's line, and takes at most 60 s or until the call's deadline. One to storage goes to an address an answer named,
 * carries no token whatever happens, counts against no limit, and may last while bytes move.
 *
 * What went wrong stands in call->fault and in the log. Threads: any number at once. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/backend.h"
#include "client/limit.h"

struct http;

struct http_options {
	const char *subject;        /* "raydocs": begins log lines; a literal */
	const char *base_url;       /* https, or http to this very machine; no trailing slash needed */
	const char *cafile, *proxy; /* or NULL; copied */
	struct limit *limit;        /* borrowed; NULL: none */
	int64_t stall_ms;           /* no byte for so long ends a request; 0: 60 s */
	/* The token as it is now. `anew`: the one we have was refused. Called by one thread at a time, from inside a
	 * request; it may send requests of its own that are anonymous. */
	int (*read_token)(void *arg, struct call *call, bool anew, struct secret **ret);
	/* The service's own words from a refusal's body; NULL: none are read. */
	void (*read_words)(const cJSON *body, struct buf *ret);
	void *arg;
};

/* -EINVAL with a sentence in `why`. Sends nothing. */
int http_open(const struct http_options *options, struct buf *why, struct http **ret);
/* After the last request ended. */
void http_close(struct http *h);

/* Every request under way ends within a second, and each to come at once, with -ECANCELED. Any thread. */
void http_stop(struct http *h);

/* Bytes from a descriptor, from offset 0. The file is read with pread and must not change. */
struct http_source {
	int fd;
	int64_t size_bytes;
};

/* A part of multipart/form-data: a text, or the bytes of source under a file name. */
struct http_part {
	const char *name;
	const char *text;     /* or NULL */
	const char *filename; /* with source */
	const char *mime;     /* or NULL */
};

enum http_target { HTTP_API, HTTP_STORAGE };

struct http_request {
	enum http_target target;
	const char *method;
	const char *path;                 /* HTTP_API: under base_url, from its '/', escaped */
	const char *url;                  /* HTTP_STORAGE: the whole address; its query is never logged */
	const char *const *headers;       /* further "Name: value", ends with NULL; may be NULL */
	const char *body;                 /* JSON, or NULL */
	const struct http_source *source; /* the raw body, or the bytes of the part that has a file name */
	const struct http_part *parts;    /* ends with { NULL }; NULL: no form */
	int64_t answer_bytes_max;         /* 0: 64 MiB */
	const int *answer_fd;             /* the body of a 2xx goes there, from offset 0, as backend_fetch_document() has it; NULL: to memory */
	const char *ability;              /* what a 403 will mean is missing; NULL: not known */
	bool is_anonymous;                /* HTTP_API without a token */
	bool is_apart;                    /* HTTP_API with a limit of its own: its 429 slows nobody else, and is final */
	bool is_long;                     /* HTTP_API, yet bytes may take as long as they move */
	bool accepts_any;                 /* no log line for a refusal: the caller expects one */
	bool wants_size;                  /* of a 2xx only how many bytes it has: reply.size_bytes; they are read as far as need be */
};

struct http_reply {
	int status; /* 0: none */
	char *body; /* NUL behind it; "" when it went to a descriptor */
	size_t body_bytes;
	int64_t size_bytes; /* with wants_size */
	char *location; /* where the API's 3xx points to, whole and not followed; NULL: nowhere */
};

void http_reply_release(struct http_reply *r);

/* 0 for a 2xx. The reply is filled on failure as well, when there was one: a refusal's body tells more than a status.
 */
int http_do(struct http *h, struct call *call, const struct http_request *q, struct http_reply *ret);

/* The same, and the body as JSON; -EPROTO (FAULT_AWAY) when it is not. An empty body (204) leaves *ret NULL. */
int http_json(struct http *h, struct call *call, const struct http_request *q, cJSON **ret);

/* Sets the fault of an answer that came but cannot be understood, and returns -EPROTO. */
int http_unreadable(struct http *h, struct call *call, const struct http_request *q, const char *why);

/* Is this an address a request may go to: https, or http to this very machine? */
bool http_url_is_allowed(const char *url);

/* Appends the path (and query) of an address an answer named, as http_request.path takes it. -EINVAL: it is not of the
 * configured origin and below base_url, and so must not be sent the token. */
int http_path_of(struct http *h, const char *url, struct buf *ret);

/* The number of the token in use; 0 before the first. */
uint64_t http_token_number(struct http *h);
/* As if a 401 had refused the token of that number, for services that say it in other words. 0: there is another one
 * now; -EACCES: there is none. Sets call->fault when asking for one went wrong. */
int http_renew_token(struct http *h, struct call *call, uint64_t number);

/* ---- for tests: what to do after an attempt, pure ------------------------------------------------------------ */

struct http_attempt {
	int curl_code; /* CURLcode; 0: an answer came whole */
	int status;
	enum http_target target;
	bool is_get;
	bool is_anonymous;
	bool is_put;   /* to storage: repeating puts the same bytes in the same place */
	bool was_sent; /* at least a part of the request left us */
	bool was_cancelled;
	bool answer_too_large;
	int local_error;        /* -errno of our own descriptors; 0 */
	bool time_is_up;        /* the deadline, or no byte for too long */
	int attempts;           /* this one included */
	bool token_was_renewed; /* since the first attempt */
	bool was_put_off;       /* an earlier attempt was answered 429 */
	int64_t time_left_ms;   /* until the deadline; INT64_MAX none */
	int64_t retry_after_ms; /* -1: not said */
};

enum http_next { HTTP_DONE, HTTP_AGAIN, HTTP_RENEW_TOKEN, HTTP_WAIT_FOR_PLACE, HTTP_GIVE_UP };

struct http_verdict {
	enum http_next next;
	int error; /* what GIVE_UP means, and the others when nothing more can be done */
	enum fault_kind kind;
	bool may_have_happened;
};

struct http_verdict http_judge(const struct http_attempt *a);
