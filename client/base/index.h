/* A set of pointers that are found by a key inside what they point to: 8 bytes a slot, no node of its own.
 *
 * Ours and not uthash, because a folder of 100,000 documents has three such sets and uthash's handle takes 56 bytes an
 * item in each. Open addressing, linear probing, grown at 3/4. The caller locks. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct index {
	void **slots; /* owned; NULL while empty */
	size_t room, used;
	uint64_t (*hash)(const void *item);
};

#define INDEX(hash_fn) ((struct index){ .hash = (hash_fn) })

uint64_t index_hash_text(const char *text);
uint64_t index_hash_number(uint64_t n);

/* -ENOMEM: nothing changed. An item is put once. */
int index_put(struct index *ix, void *item);
/* The first item of that hash for which is_it(item, key); NULL: none. */
void *index_find(const struct index *ix, uint64_t hash, bool (*is_it)(const void *item, const void *key), const void *key);
/* All of them, one a call, when several have the same key: *way begins at 0. NULL: no more. No change meanwhile. */
void *index_find_next(const struct index *ix, uint64_t hash, bool (*is_it)(const void *item, const void *key), const void *key,
		      size_t *way);
/* Takes this very pointer out; not there: nothing. The item's key must be what it was when put. */
void index_remove(struct index *ix, const void *item);
/* Walks in no order: for (size_t at = 0; (item = index_next(ix, &at));). No change meanwhile. */
void *index_next(const struct index *ix, size_t *at);
void index_release(struct index *ix); /* the items stay the caller's */
