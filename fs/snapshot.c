/* The names of a folder for readdir; see node.h. No network, no disk, no kernel. */
#include <errno.h>
#include <stdlib.h>

#include "fs/node.h"

static void snapshot_free(struct snapshot *s)
{
	free(s->inos);
	free(s);
}

int snapshot_add(struct snapshot *s, uint64_t ino)
{
	if (s->count == s->room) {
		int room = s->room ? s->room * 2 : 64;
		uint64_t *inos = realloc(s->inos, (size_t)room * sizeof(*inos));
		if (!inos)
			return -ENOMEM;
		s->inos = inos;
		s->room = room;
	}
	s->inos[s->count++] = ino;
	return 0;
}

void snapshot_add_resting(struct snapshot *s, const struct folder *f)
{
	for (int i = 0; f->at_rest.of && i < listing_count(f->at_rest.of); i++)
		if (resting_has(&f->at_rest, i))
			(void)snapshot_add(s, resting_get(&f->at_rest, i).ino);
}

void snapshot_drop(struct snapshot *s)
{
	if (s && --s->refs == 0)
		snapshot_free(s);
}

void folder_outdate_snapshot(struct folder *f)
{
	struct snapshot *s = f->snapshot;
	if (!s || s->is_growing)
		return;
	f->snapshot = NULL;
	snapshot_drop(s);
}

static int compare_inos(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* Mostly they are, or the other way round. */
static void sort_inos(uint64_t *inos, int count)
{
	int rising = 0, falling = 0;

	for (int i = 1; i < count; i++) {
		rising += inos[i - 1] < inos[i];
		falling += inos[i - 1] > inos[i];
	}
	if (rising == 0)
		for (int i = 0, k = count - 1; i < k; i++, k--) {
			uint64_t ino = inos[i];
			inos[i] = inos[k];
			inos[k] = ino;
		}
	else if (falling > 0)
		qsort(inos, (size_t)count, sizeof(*inos), compare_inos);
}

static struct snapshot *snapshot_new(struct folder *f, bool is_growing)
{
	struct snapshot *s = calloc(1, sizeof(*s));
	struct entry *e;

	if (!s)
		return NULL;
	*s = (struct snapshot){ .refs = 1, .is_growing = is_growing, .is_as_they_came = is_growing };
	s->room = f->shown_count + 1;
	s->inos = malloc((size_t)s->room * sizeof(*s->inos));
	if (!s->inos) {
		free(s);
		return NULL;
	}
	snapshot_add_resting(s, f);
	for (size_t at = 0; (e = index_next(&f->names, &at));) {
		(void)snapshot_add(s, e->node.ino);
		if (is_growing)
			e->is_in_walk = true;
	}
	if (!is_growing)
		sort_inos(s->inos, s->count);
	return s;
}

struct snapshot *folder_snapshot(struct folder *f, bool is_growing)
{
	if (is_growing)
		folder_outdate_snapshot(f); /* one of before the walk would be the same to its end */
	if (f->snapshot && f->snapshot->is_growing && !is_growing)
		return snapshot_new(f, false); /* for this reader alone: his offsets are others */
	if (!f->snapshot)
		f->snapshot = snapshot_new(f, is_growing);
	if (f->snapshot)
		f->snapshot->refs++;
	return f->snapshot;
}

void folder_forget_snapshot(struct folder *f)
{
	if (f->snapshot && f->snapshot->refs == 1)
		folder_outdate_snapshot(f);
}

int snapshot_seek(const struct snapshot *s, int64_t offset)
{
	int first = 0, end = s->count;

	if (s->is_as_they_came)
		return offset - 2 < s->count ? (int)(offset - 2) : s->count;
	while (first < end) { /* the first number above it is not before `first`, and not behind `end` */
		int middle = first + (end - first) / 2;
		if (s->inos[middle] > (uint64_t)offset)
			end = middle;
		else
			first = middle + 1;
	}
	return first;
}

int64_t snapshot_offset(const struct snapshot *s, int i)
{
	return s->is_as_they_came ? i + 3 : (int64_t)s->inos[i];
}

struct entry *snapshot_look(struct tree *t, const struct snapshot *s, const struct folder *f, int i,
			    struct entry_view *room)
{
	struct node *n = tree_look(t, s->inos[i], room);
	struct entry *e = n && n->kind == NODE_ENTRY ? (struct entry *)n : NULL;

	return e && e->is_shown && e->folder == f ? e : NULL;
}
