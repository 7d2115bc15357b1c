/* A set of pointers, found by key; see index.h.
 *
 * Removing moves later items of the same run back instead of leaving marks, so a set that changes for weeks stays as
 * quick as a new one. */
#include "client/base/index.h"

#include <errno.h>
#include <stdlib.h>

enum { ROOM_FIRST = 16, ROOM_KEPT = 1024 /* what it does not get smaller than */ };

static size_t home_of(uint64_t hash, size_t room)
{
	return (size_t)(((hash >> 32) * room) >> 32);
}

static size_t next_of(size_t at, size_t room)
{
	return at + 1 == room ? 0 : at + 1;
}

/* How far it is from one slot on to another. */
static size_t way(size_t from, size_t to, size_t room)
{
	return to >= from ? to - from : to + room - from;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdu;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53u;
	return x ^ (x >> 33);
}

uint64_t index_hash_text(const char *text)
{
	uint64_t h = 0xcbf29ce484222325u;

	for (; *text; text++)
		h = (h ^ (unsigned char)*text) * 0x100000001b3u;
	return mix(h); /* linear probing wants all bits stirred */
}

uint64_t index_hash_number(uint64_t n)
{
	return mix(n + 0x9e3779b97f4a7c15u);
}

static void place(void **slots, size_t room, uint64_t hash, void *item)
{
	size_t at = home_of(hash, room);

	while (slots[at])
		at = next_of(at, room);
	slots[at] = item;
}

static int resize(struct index *ix, size_t room)
{
	void **slots = calloc(room, sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	for (size_t i = 0; i < ix->room; i++) {
		if (ix->slots[i])
			place(slots, room, ix->hash(ix->slots[i]), ix->slots[i]);
	}
	free(ix->slots);
	ix->slots = slots;
	ix->room = room;
	return 0;
}

int index_put(struct index *ix, void *item)
{
	if (ix->used + 1 > ix->room / 4 * 3) {
		size_t room =
			ix->room + ix->room / 2; /* by halves: doubling leaves more than half of it empty at times */
		if (resize(ix, room < ROOM_FIRST ? ROOM_FIRST : room) < 0)
			return -ENOMEM;
	}
	place(ix->slots, ix->room, ix->hash(item), item);
	ix->used++;
	return 0;
}

void *index_find(const struct index *ix, uint64_t hash, bool (*is_it)(const void *item, const void *key),
		 const void *key)
{
	if (!ix->used)
		return NULL;
	for (size_t at = home_of(hash, ix->room); ix->slots[at]; at = next_of(at, ix->room)) {
		if (is_it(ix->slots[at], key))
			return ix->slots[at];
	}
	return NULL;
}

void *index_find_next(const struct index *ix, uint64_t hash, bool (*is_it)(const void *item, const void *key),
		      const void *key, size_t *way_at)
{
	while (ix->used) {
		size_t at = home_of(hash, ix->room) + (*way_at)++;
		void *item = ix->slots[at >= ix->room ? at - ix->room : at];
		if (!item || is_it(item, key))
			return item;
	}
	return NULL;
}

void index_remove(struct index *ix, const void *item)
{
	if (!ix->used)
		return;
	size_t room = ix->room, hole = home_of(ix->hash(item), room);
	while (ix->slots[hole] && ix->slots[hole] != item)
		hole = next_of(hole, room);
	if (!ix->slots[hole])
		return;
	ix->slots[hole] = NULL;
	ix->used--;
	for (size_t at = next_of(hole, room); ix->slots[at]; at = next_of(at, room)) {
		size_t home = home_of(ix->hash(ix->slots[at]), room);
		/* It may move when the hole lies on the way from its home to where it is. */
		if (way(home, at, room) >= way(hole, at, room)) {
			ix->slots[hole] = ix->slots[at];
			ix->slots[at] = NULL;
			hole = at;
		}
	}
	if (room > ROOM_KEPT && ix->used < room / 8)
		(void)resize(ix, room / 4); /* without memory it stays as it is */
}

void *index_next(const struct index *ix, size_t *at)
{
	while (*at < ix->room) {
		void *item = ix->slots[(*at)++];
		if (item)
			return item;
	}
	return NULL;
}

void index_release(struct index *ix)
{
	free(ix->slots);
	*ix = INDEX(ix->hash);
}
