/* Text -> value, with an expiry and a bound.
 *
 * When a put passes items_max or bytes_max, the least lately used go first; the newest always stays. What has expired is
 * no longer found by table_get(), but stays for table_find() until its place is needed. Times are the caller's, in
 * milliseconds. The caller locks. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct table;

/* value_free ends a value that is replaced, removed or given up. NULL: no memory. */
struct table *table_new(size_t items_max, size_t bytes_max, void (*value_free)(void *value));
void table_free(struct table *t); /* accepts NULL */

/* Takes value over, which counts as `bytes`. -ENOMEM: it stays the caller's, and what was under the key stays too. */
int table_put(struct table *t, const char *key, void *value, size_t bytes, int64_t expires_ms);
/* Borrowed until the next put, remove or clear; NULL: none, or expired. Counts as use. */
void *table_get(struct table *t, const char *key, int64_t now_ms);
/* The same for what may have expired; does not count as use. */
void *table_find(struct table *t, const char *key);
void table_remove(struct table *t, const char *key);
void table_clear(struct table *t);
/* Gives up the least lately used; false when there is none. */
bool table_drop_oldest(struct table *t);
size_t table_count(const struct table *t);
size_t table_bytes(const struct table *t);
