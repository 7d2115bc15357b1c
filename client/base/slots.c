/* A set of numbers found by what they stand for; see slots.h. */
#include "client/base/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int slots_new(uint32_t room, struct slots *ret)
{
	uint32_t *at = calloc(room, SLOT_BYTES);

	if (!at)
		return -ENOMEM;
	*ret = (struct slots){ at, (uint8_t *)(at + room), room, 0 };
	return 0;
}

uint32_t slots_room_for(uint32_t count)
{
	return (count + 1) / 3 * 4 + 16;
}

static uint32_t home_of(const struct slots *s, uint64_t hash)
{
	return (uint32_t)(((hash >> 32) * s->room) >> 32);
}

static uint32_t next_of(const struct slots *s, uint32_t at)
{
	return at + 1 == s->room ? 0 : at + 1;
}

/* How many steps it is from one to the other. */
static uint32_t way(const struct slots *s, uint32_t from, uint32_t to)
{
	return to >= from ? to - from : to + s->room - from;
}

static uint8_t tag_of(uint64_t hash)
{
	return (uint8_t)hash ? (uint8_t)hash : 1;
}

static void place(struct slots *s, uint64_t hash, uint32_t number)
{
	uint32_t at = home_of(s, hash);

	while (s->tags[at])
		at = next_of(s, at);
	s->at[at] = number;
	s->tags[at] = tag_of(hash);
	s->used++;
}

int slots_put(struct slots *s, const void *owner, slots_hash *hash, uint32_t number)
{
	if (s->used + 1 > s->room / 4 * 3) {
		struct slots bigger = { 0 };
		if (slots_new(s->room + s->room / 2 + 16, &bigger) < 0)
			return -ENOMEM;
		for (uint32_t at = 0; at < s->room; at++) {
			if (s->tags[at])
				place(&bigger, hash(owner, s->at[at]), s->at[at]);
		}
		free(s->at);
		*s = bigger;
	}
	place(s, hash(owner, number), number);
	return 0;
}

int64_t slots_find(const struct slots *s, const void *owner, uint64_t hash, slots_is_it *is_it, const void *key)
{
	if (!s->used)
		return -1;
	for (uint32_t at = home_of(s, hash); s->tags[at]; at = next_of(s, at)) {
		if (s->tags[at] == tag_of(hash) && is_it(owner, s->at[at], key))
			return s->at[at];
	}
	return -1;
}

void slots_remove(struct slots *s, const void *owner, slots_hash *hash, uint32_t number)
{
	if (!s->used)
		return;
	uint32_t hole = home_of(s, hash(owner, number));
	while (s->tags[hole] && s->at[hole] != number)
		hole = next_of(s, hole);
	if (!s->tags[hole])
		return;
	s->tags[hole] = 0;
	s->used--;
	for (uint32_t at = next_of(s, hole); s->tags[at]; at = next_of(s, at)) {
		uint32_t home = home_of(s, hash(owner, s->at[at]));
		/* It may move when the hole lies on the way from its home to where it is. */
		if (way(s, home, at) >= way(s, hole, at)) {
			s->at[hole] = s->at[at];
			s->tags[hole] = s->tags[at];
			s->tags[at] = 0;
			hole = at;
		}
	}
}

int slots_copy(const struct slots *s, struct slots *ret)
{
	struct slots copy = { 0 };

	if (s->room && slots_new(s->room, &copy) < 0)
		return -ENOMEM;
	if (s->room)
		memcpy(copy.at, s->at, (size_t)s->room * SLOT_BYTES);
	copy.used = s->used;
	*ret = copy;
	return 0;
}

bool slots_are_sound(const struct slots *s, uint32_t bound)
{
	uint32_t used = 0;

	for (uint32_t i = 0; i < s->room; i++) {
		if (s->tags[i] && s->at[i] >= bound)
			return false;
		used += s->tags[i] != 0;
	}
	return used == s->used && (!s->room || used < s->room); /* a free one ends each search */
}

void slots_release(struct slots *s)
{
	free(s->at);
	*s = (struct slots){ 0 };
}
