/* Listings that outlive us: session id -> listing, in SQLite under one folder, for one account at a time.
 *
 * Putting and forgetting are notes in memory, written by a thread of the store's own a little later; loading sees them at
 * once. What is remembered for an account (the keyed hash of a token) is not to be had by another one. It is a cache: what
 * is damaged or of another version is begun anew with a line in the log, and what can't be written is not remembered.
 * Whoever kills us loses the last seconds.
 *
 * Threads: any. store_load() waits for the disk, the others do not. */
#pragma once

#include <stdint.h>

#include "client/backend.h"

struct store;

struct store_options {
	const char *dir;     /* is there; nothing else uses listings.db and records/ in it */
	int64_t delay_ms;    /* how long a change waits for others to be written with; 0: 2 s, and more for large ones */
	int64_t bytes_max;   /* the oldest go first; 0: 512 MiB */
};

/* 0 or -errno: the folder can't be used (a reason is logged). */
int store_open(const struct store_options *options, struct store **ret);
/* Writes what waits. Accepts NULL. */
void store_close(struct store *s);

/* account: 64 hex digits; all three are copied or counted. One that is put again unchanged costs next to nothing. */
void store_put(struct store *s, const char *account, const char *session_id, struct listing *l);
/* session_id NULL: all of the account. */
void store_forget(struct store *s, const char *account, const char *session_id);
/* The listing with the age it has by the wall clock, as seen from now_ms. -ENOENT: none. */
int store_load(struct store *s, const char *account, const char *session_id, int64_t now_ms, struct listing **ret);
/* Waits until all that was put and forgotten before is on the disk. */
void store_flush(struct store *s);
