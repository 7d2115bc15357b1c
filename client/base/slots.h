/* A set of 32-bit numbers that are found by what they stand for in something of their owner's: 5 bytes a slot.
 *
 * What a number stands for (a record, a text, an inode number) is the owner's affair: he hashes it and compares it. Each slot has a
 * tag, a byte of the hash, so that probing seldom looks there: that is a cache miss each. Open addressing, linear probing, grown by
 * halves at 3/4. The caller locks. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct slots {
	uint32_t *at;  /* owned; the tags stand behind the numbers */
	uint8_t *tags; /* borrowed from there; 0: empty */
	uint32_t room, used;
};

enum { SLOT_BYTES = sizeof(uint32_t) + sizeof(uint8_t) };

typedef uint64_t slots_hash(const void *owner, uint32_t number);
typedef bool slots_is_it(const void *owner, uint32_t number, const void *key);

/* An empty set with so many slots. -ENOMEM. */
int slots_new(uint32_t room, struct slots *ret);
/* The room for so many numbers without growing. */
uint32_t slots_room_for(uint32_t count);
/* -ENOMEM: nothing changed. A number is put once. */
int slots_put(struct slots *s, const void *owner, slots_hash *hash, uint32_t number);
/* The first number of that hash for which is_it(owner, number, key); -1: none. */
int64_t slots_find(const struct slots *s, const void *owner, uint64_t hash, slots_is_it *is_it, const void *key);
/* Takes this very number out; not there: nothing. What it stands for must be what it was when put. */
void slots_remove(struct slots *s, const void *owner, slots_hash *hash, uint32_t number);
int slots_copy(const struct slots *s, struct slots *ret);
/* Does it hold numbers below `bound` alone, and as many as it says? For one that was read from a disk. */
bool slots_are_sound(const struct slots *s, uint32_t bound);
void slots_release(struct slots *s);
