/* Checked, typed reads from cJSON.
 *
 * A run of reads from one object is begun and ended; the first thing that is wrong is remembered and told once, by the
 * end. An explicit null counts as absent. Keys match exactly. Nothing here trusts the other side: a text of a wrong
 * type, an id beyond 2^53 or a nesting without end is an error, never an abort. Threads: any, each with its own
 * json_in. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/base/buf.h"

/* An id that came as a number needs room to become text. */
struct json_id {
	char text[24];
};

struct json_in {
	const cJSON *object;
	const char *what; /* "document"; a literal */
	bool failed;
	char why[160];
};

/* -EPROTO: not JSON from its first byte to its last. Bytes need no NUL behind them. */
int json_parse(const char *bytes, size_t len, cJSON **ret);

struct json_in json_in_begin(const cJSON *object, const char *what);
/* 0, or -EPROTO and a line in the log. */
int json_in_end(struct json_in *in);

/* Borrowed from the tree. */
const char *json_text(struct json_in *in, const char *key); /* absent: a fault */
const char *json_text_or(struct json_in *in, const char *key, const char *otherwise);
/* A text or a whole number, as text; borrowed from the tree or from room. Empty counts as absent. */
const char *json_id(struct json_in *in, const char *key, struct json_id *room);
const char *json_id_or(struct json_in *in, const char *key, struct json_id *room, const char *otherwise);
int64_t json_whole_or(struct json_in *in, const char *key, int64_t otherwise);
/* ISO 8601 as milliseconds since 1970. One that cannot be read counts as absent: a time is never worth a document. */
int64_t json_time_or(struct json_in *in, const char *key, int64_t otherwise);
/* An object or array, or NULL when absent. */
const cJSON *json_object_or_null(struct json_in *in, const char *key);
const cJSON *json_array_or_null(struct json_in *in, const char *key);

/* The same for the caller to keep: he frees it. NULL with the fault remembered. */
char *json_copy_text(struct json_in *in, const char *key);
char *json_copy_id(struct json_in *in, const char *key);

/* Appends the text as a JSON string, quotes and all; bytes that are not UTF-8 become U+FFFD. */
void json_add_quoted(struct buf *b, const char *text);

void json_release(cJSON **p); /* for CLEANUP */
