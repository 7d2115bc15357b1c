#ifndef SESSIONFS_TESTS_SANDBOX_CORE_H
#define SESSIONFS_TESTS_SANDBOX_CORE_H

/* For authors of a service in the sandbox. A service is one `struct service` in sandbox.c's table: its origins,
 * its switches, its control paths and its state. Listeners, TLS, clock, faults, log and saving are the core's.
 *
 * One lock guards all state, the core's and the services'. It is held in every callback below unless its line
 * says otherwise, and never while a request stalls or bytes move. */

#include "tests/sandbox/content.h"

#include <cjson/cJSON.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define CLEANUP(release) __attribute__((cleanup(release)))
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static inline void text_free(char **p)
{
	free(*p);
}

static inline void json_free(cJSON **p)
{
	cJSON_Delete(*p);
}

static inline void lock_release(pthread_mutex_t **l)
{
	pthread_mutex_unlock(*l);
}

static inline pthread_mutex_t *lock_take(pthread_mutex_t *l)
{
	pthread_mutex_lock(l);
	return l;
}

#define SCOPED_LOCK(l) CLEANUP(lock_release) pthread_mutex_t *scoped_lock_ __attribute__((unused)) = lock_take(l)

struct sandbox;
struct header {
	char *name, *value;
	struct header *next;
};

/* What a request is answered with. Everything in it is owned by the request. */
struct answer {
	int status; /* 0: none yet; ANSWER_NONE: the connection is closed without one */
	char *body;
	size_t body_bytes;
	struct content_reader *content; /* instead of body: length_bytes from from_byte on */
	int64_t from_byte, length_bytes;
	struct header *headers;
};
#define ANSWER_NONE (-1)

/* One request, from its headers to the end of its answer. */
struct request {
	struct sandbox *sandbox;
	void *state; /* the service's */
	const char *method;
	char *path;           /* percent-decoded, without query */
	char *raw_path;       /* as it came, without query */
	char *raw_query;      /* "" if none */
	const char *route;    /* what route() said */
	const char *base_url; /* of the origin asked */
	char *body;           /* NUL behind it; NULL for origins that take the body themselves */
	size_t body_bytes;
	int64_t length_bytes; /* Content-Length; -1: absent or unreadable */
	struct answer answer;
	void *own;       /* the service's, released in release() */
	char client[64]; /* address */
};

/* Borrowed until the request ends; NULL if absent. */
const char *request_header(const struct request *q, const char *name);
int request_header_count(const struct request *q, const char *name);
void request_each_header(const struct request *q, void (*visit)(void *cls, const char *name, const char *value),
			 void *cls);
/* Decoded; the caller frees it. NULL if absent. */
char *request_query(const struct request *q, const char *name);

void answer_header(struct answer *a, const char *name, const char *value);
/* Takes the JSON. */
void answer_json(struct answer *a, int status, cJSON *body);
void answer_text(struct answer *a, int status, const char *type, const char *body);

struct origin_ops {
	const char *name;
	size_t port_offset; /* of its int in struct sandbox_options */
	/* Says what is asked for, before the body is read: a name that lasts, for log, counts and faults. */
	const char *(*route)(struct request *q);
	/* Optional. An answer set here means: refused, body unwanted. */
	void (*begin)(struct request *q);
	/* Optional, without the lock: takes the body as it comes; 0 or -errno, which becomes a 500. Without it the
	 * body is gathered, up to body_bytes_max, and a longer one is answered with 413. */
	int (*body)(struct request *q, const char *bytes, size_t count);
	size_t body_bytes_max;
	/* Sets q->answer. */
	void (*handle)(struct request *q);
	/* Optional, without the lock: q is about to go, answered or not. */
	void (*release)(struct request *q);
};

/* A knob. allowed: "a|b|c", or "number", or "text"; several forms as "all|none|number". */
struct switch_def {
	const char *name, *initial, *allowed, *help;
};

/* Names of switches are literals of ours; an unknown one is a mistake of ours. */
const char *switch_text(struct sandbox *s, const char *name);
bool switch_is(struct sandbox *s, const char *name, const char *value);
bool switch_on(struct sandbox *s, const char *name);
int64_t switch_number(struct sandbox *s, const char *name, int64_t otherwise);

struct control_op {
	const char *method, *path;
	const char *fields; /* " a b c ": the fields it takes; others are refused */
	/* in is an object, never NULL (a GET's query comes as texts). *ret may be set, or stays NULL for {}. Returns
	 * 200, 400, 404. */
	int (*run)(void *state, const cJSON *in, cJSON **ret);
};

struct service {
	const char *name;
	const struct origin_ops *const *origins;
	size_t origin_count;
	const struct switch_def *switches;
	size_t switch_count;
	const struct control_op *controls;
	size_t control_count;
	const char *const *routes; /* ends with NULL; for --help */
	void *(*open)(struct sandbox *s);
	void (*close)(void *state);
	void (*reset)(void *state);
	cJSON *(*save)(void *state);
	void (*load)(void *state, const cJSON *saved);
	cJSON *(*describe)(void *state, const cJSON *in);                       /* its part of GET /state */
	const struct content *(*content)(void *state, const char *document_id); /* NULL: none */
};

/* Sets {"message": text} and returns status, for control ops. */
int control_refuse(cJSON **ret, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));

int64_t sandbox_now_ms(struct sandbox *s);
void sandbox_changed(struct sandbox *s);    /* what is saved has changed */
const char *sandbox_dir(struct sandbox *s); /* for files of the service's own; temporary without state_dir */
const unsigned char *sandbox_secret(struct sandbox *s);     /* 32 bytes, lasting as the state does */
bool sandbox_chance(struct sandbox *s, double probability); /* seeded */
uint64_t sandbox_random(struct sandbox *s);

/* Counts the request against its client's limit; true: admitted. ret_left, ret_retry_s may be NULL. */
bool sandbox_admit(struct sandbox *s, const char *client, int64_t limit, int64_t *ret_left, int64_t *ret_retry_s);

/* "2026-03-01T09:00:00Z", with micros "….123000Z". The caller frees it. */
char *time_text(int64_t ms, bool micros);
char *uuid_new(void);
char *url_decode(const char *text, bool plus_is_space);
char *url_encode(const char *text, bool keeps_slash);
bool uuid_is_valid(const char *text);
char *text_copy(const char *text);
char *text_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *json_text(const cJSON *object, const char *key, const char *otherwise);
int64_t json_number(const cJSON *object, const char *key, int64_t otherwise);
bool json_bool(const cJSON *object, const char *key, bool otherwise);
const cJSON *json_get(const cJSON *object, const char *key);

extern const struct service raydocs_service, rossum_service;

#endif
