/* Who stands for each of a listing's documents in a folder: nobody, the first of its entries that are awake, or one name at rest.
 *
 * At rest is a document of which the folder has nothing to know but the inode number: its name is the service's title made safe, and nobody has
 * it in hand. A folder may show 100,000 of those: each is a word here and a place in two tables, some 20 bytes, where an entry in the tree takes
 * two hundred.
 *
 * Documents are told by their place in one listing. The tree's lock guards it; one that no folder has yet is its maker's. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/backend.h"
#include "client/base/slots.h"
#include "fs/name.h"

struct resting {
	struct listing *of; /* counted; NULL: nothing rests */
	uint64_t *words;    /* of each of its documents: 0 nobody, odd: one at rest, else where its first entry is */
	struct slots names, inos;
	bool was_moved;     /* resting_carry() gave one another place */
};

enum { RESTING_BIT = 1 };

/* What is known of one. */
struct rest {
	uint64_t ino;
	uint32_t lookups; /* the kernel's count; UINT32_MAX: it was not counted any further */
	bool is_saved;    /* the state has it as it is */
};

struct entry;

/* Nobody stands for what is in `of` yet. -ENOMEM. */
int resting_begin(struct resting *r, struct listing *of);
void resting_release(struct resting *r);
/* A listing of the same documents in the same places takes the other's. */
void resting_renew(struct resting *r, struct listing *of);

/* NULL: nobody stands for it, or it is at rest. */
struct entry *resting_awake(const struct resting *r, int i);
/* Of one that is not at rest. NULL: nobody stands for it. */
void resting_set_awake(struct resting *r, int i, struct entry *first);
static inline bool resting_has(const struct resting *r, int i) /* loops over 100,000 ask */
{
	return r->words && (r->words[i] & RESTING_BIT);
}
/* Of one that is at rest. */
struct rest resting_get(const struct resting *r, int i);
/* The name document i would rest under: borrowed from the listing, or in `room`. */
const char *resting_name(const struct listing *of, int i, char room[NAME_BYTES_MAX + 1]);
int resting_find_name(const struct resting *r, const char *name); /* the place, or -1 */
int resting_find_ino(const struct resting *r, uint64_t ino);

/* Its name and its inode number are nobody else's; an entry does not stand for it any more. -ENOMEM, -ERANGE (the number is too large): nothing
 * changed. */
int resting_put(struct resting *r, int i, struct rest rest);
/* The same without a place in the tables: resting_build_tables() gives all of them theirs. -ERANGE. */
int resting_note(struct resting *r, int i, struct rest rest);
/* Nobody stands for it then. */
void resting_take(struct resting *r, int i);
void resting_count_lookup(struct resting *r, int i);
void resting_forget(struct resting *r, int i, uint64_t count);

/* From one listing to the next: document i of `to` is the one that is document `at` of `from`, under the same name. Once all were carried or
 * taken from `from`, resting_carried() ends it and empties `from`. -ENOMEM: none is at rest in `to`, `from` is as it was. */
void resting_carry(struct resting *to, int i, const struct resting *from, int at);
int resting_carried(struct resting *to, struct resting *from);

/* Both tables anew, from the words. -ENOMEM: there are none. */
int resting_build_tables(struct resting *r);
/* Nobody is awake in it, and both tables hold those at rest and nobody else: of one that was read from a disk. */
bool resting_is_sound(const struct resting *r);
