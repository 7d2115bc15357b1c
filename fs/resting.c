/* Documents at rest; see resting.h. No network, no disk, no kernel. */
#include "fs/resting.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/index.h"

/* A word of one at rest: an inode number, the kernel's lookups, and two flags. */
enum { IS_AT_REST = RESTING_BIT, IS_SAVED = 2, LOOKUPS_SHIFT = 2, LOOKUPS_MAX = 0xffff, INO_SHIFT = 18 };
#define INO_MAX (UINT64_MAX >> INO_SHIFT)

static uint64_t word_of(struct rest rest)
{
	uint64_t lookups = rest.lookups < LOOKUPS_MAX ? rest.lookups : LOOKUPS_MAX;

	return rest.ino << INO_SHIFT | lookups << LOOKUPS_SHIFT | (rest.is_saved ? IS_SAVED : 0) | IS_AT_REST;
}

static uint32_t lookups_of(uint64_t word)
{
	uint32_t lookups = word >> LOOKUPS_SHIFT & LOOKUPS_MAX;

	return lookups == LOOKUPS_MAX ? UINT32_MAX : lookups;
}

const char *resting_name(const struct listing *of, int i, char room[NAME_BYTES_MAX + 1])
{
	const char *id, *filename;

	listing_get_names(of, i, &id, &filename);
	if (name_is_safe(filename))
		return filename;
	name_make_safe(filename, room);
	return room;
}

static uint64_t hash_name(const void *owner, uint32_t i)
{
	char room[NAME_BYTES_MAX + 1];

	return index_hash_text(resting_name(((const struct resting *)owner)->of, (int)i, room));
}

static bool is_name(const void *owner, uint32_t i, const void *key)
{
	char room[NAME_BYTES_MAX + 1];

	return strcmp(resting_name(((const struct resting *)owner)->of, (int)i, room), key) == 0;
}

static uint64_t hash_ino(const void *owner, uint32_t i)
{
	return index_hash_number(((const struct resting *)owner)->words[i] >> INO_SHIFT);
}

static bool is_ino(const void *owner, uint32_t i, const void *key)
{
	return ((const struct resting *)owner)->words[i] >> INO_SHIFT == *(const uint64_t *)key;
}

int resting_begin(struct resting *r, struct listing *of)
{
	uint64_t *words = calloc((size_t)listing_count(of) + 1, sizeof(*words));

	if (!words)
		return -ENOMEM;
	*r = (struct resting){ .of = listing_ref(of), .words = words };
	return 0;
}

void resting_release(struct resting *r)
{
	listing_unref(r->of);
	free(r->words);
	slots_release(&r->names);
	slots_release(&r->inos);
	*r = (struct resting){ 0 };
}

void resting_renew(struct resting *r, struct listing *of)
{
	if (!r->of)
		return;
	struct listing *old = r->of;
	r->of = listing_ref(of);
	listing_unref(old);
}

struct entry *resting_awake(const struct resting *r, int i)
{
	return r->words && !(r->words[i] & IS_AT_REST) ? (struct entry *)(uintptr_t)r->words[i] : NULL;
}

void resting_set_awake(struct resting *r, int i, struct entry *first)
{
	assert(!resting_has(r, i) && ((uintptr_t)first & IS_AT_REST) == 0);
	r->words[i] = (uintptr_t)first;
}

struct rest resting_get(const struct resting *r, int i)
{
	return (struct rest){ .ino = r->words[i] >> INO_SHIFT,
			      .lookups = lookups_of(r->words[i]),
			      .is_saved = r->words[i] & IS_SAVED };
}

int resting_find_name(const struct resting *r, const char *name)
{
	return r->names.used ? (int)slots_find(&r->names, r, index_hash_text(name), is_name, name) : -1;
}

int resting_find_ino(const struct resting *r, uint64_t ino)
{
	return r->inos.used ? (int)slots_find(&r->inos, r, index_hash_number(ino), is_ino, &ino) : -1;
}

int resting_put(struct resting *r, int i, struct rest rest)
{
	uint32_t room = slots_room_for((uint32_t)listing_count(r->of)); /* once for all: most will rest */

	if (rest.ino > INO_MAX)
		return -ERANGE;
	if ((!r->names.room && slots_new(room, &r->names) < 0) || (!r->inos.room && slots_new(room, &r->inos) < 0))
		return -ENOMEM;
	uint64_t before = r->words[i];
	r->words[i] = word_of(rest);
	if (slots_put(&r->names, r, hash_name, (uint32_t)i) == 0) {
		if (slots_put(&r->inos, r, hash_ino, (uint32_t)i) == 0)
			return 0;
		slots_remove(&r->names, r, hash_name, (uint32_t)i);
	}
	r->words[i] = before;
	return -ENOMEM;
}

int resting_note(struct resting *r, int i, struct rest rest)
{
	if (rest.ino > INO_MAX)
		return -ERANGE;
	r->words[i] = word_of(rest);
	return 0;
}

void resting_take(struct resting *r, int i)
{
	slots_remove(&r->names, r, hash_name, (uint32_t)i);
	slots_remove(&r->inos, r, hash_ino, (uint32_t)i);
	r->words[i] = 0;
}

static void set_lookups(struct resting *r, int i, uint64_t lookups)
{
	r->words[i] &= ~((uint64_t)LOOKUPS_MAX << LOOKUPS_SHIFT);
	r->words[i] |= lookups << LOOKUPS_SHIFT;
}

void resting_count_lookup(struct resting *r, int i)
{
	uint32_t lookups = lookups_of(r->words[i]);

	if (lookups != UINT32_MAX)
		set_lookups(r, i, lookups + 1); /* LOOKUPS_MAX: no further */
}

void resting_forget(struct resting *r, int i, uint64_t count)
{
	uint32_t lookups = lookups_of(r->words[i]);

	if (lookups != UINT32_MAX)
		set_lookups(r, i, count < lookups ? lookups - count : 0);
}

void resting_carry(struct resting *to, int i, const struct resting *from, int at)
{
	to->words[i] = from->words[at];
	to->was_moved |= i != at;
}

static uint32_t count_resting(const struct resting *r)
{
	uint32_t count = 0;

	for (int i = 0; i < listing_count(r->of); i++)
		count += resting_has(r, i);
	return count;
}

int resting_build_tables(struct resting *r)
{
	int n = listing_count(r->of);
	uint32_t count = count_resting(r);

	slots_release(&r->names);
	slots_release(&r->inos);
	if (slots_new(slots_room_for(count), &r->names) < 0)
		return -ENOMEM;
	if (slots_new(slots_room_for(count), &r->inos) < 0) {
		slots_release(&r->names);
		return -ENOMEM;
	}
	for (int i = 0; i < n; i++) {
		if (!resting_has(r, i))
			continue;
		(void)slots_put(&r->names, r, hash_name, (uint32_t)i); /* there is room */
		(void)slots_put(&r->inos, r, hash_ino, (uint32_t)i);
	}
	return 0;
}

int resting_carried(struct resting *to, struct resting *from)
{
	if (to->was_moved && resting_build_tables(to) < 0) {
		for (int i = 0; i < listing_count(to->of); i++)
			if (resting_has(to, i))
				to->words[i] = 0;
		to->was_moved = false;
		return -ENOMEM;
	}
	if (!to->was_moved) {
		to->names = from->names;
		to->inos = from->inos;
		from->names = from->inos = (struct slots){ 0 };
	}
	to->was_moved = false;
	resting_release(from);
	return 0;
}

static bool holds_resting_alone(const struct resting *r, const struct slots *s)
{
	for (uint32_t at = 0; at < s->room; at++)
		if (s->tags[at] && !resting_has(r, (int)s->at[at]))
			return false;
	return true;
}

bool resting_is_sound(const struct resting *r)
{
	uint32_t n = (uint32_t)listing_count(r->of), count = count_resting(r);

	for (uint32_t i = 0; i < n; i++)
		if (r->words[i] && !resting_has(r, (int)i))
			return false;
	return r->names.used == count && r->inos.used == count && slots_are_sound(&r->names, n) &&
	       slots_are_sound(&r->inos, n) && holds_resting_alone(r, &r->names) && holds_resting_alone(r, &r->inos);
}
