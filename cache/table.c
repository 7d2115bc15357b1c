/* A hash set of entries, which also stand in a ring from the most to the least lately used. */
#include "cache/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/index.h"

struct entry {
	struct entry *newer, *older;
	void *value;
	size_t bytes;
	int64_t expires_ms;
	char key[];
};

struct table {
	struct index by_key;
	struct entry *newest, *oldest;
	size_t items_max, bytes_max, bytes;
	void (*value_free)(void *value);
};

static uint64_t hash_entry(const void *item)
{
	return index_hash_text(((const struct entry *)item)->key);
}

static bool is_entry(const void *item, const void *key)
{
	return strcmp(((const struct entry *)item)->key, key) == 0;
}

struct table *table_new(size_t items_max, size_t bytes_max, void (*value_free)(void *value))
{
	struct table *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->by_key = INDEX(hash_entry);
	t->items_max = items_max;
	t->bytes_max = bytes_max;
	t->value_free = value_free;
	return t;
}

static struct entry *entry_find(const struct table *t, const char *key)
{
	return index_find(&t->by_key, index_hash_text(key), is_entry, key);
}

static void entry_unlink(struct table *t, struct entry *e)
{
	*(e->newer ? &e->newer->older : &t->newest) = e->older;
	*(e->older ? &e->older->newer : &t->oldest) = e->newer;
}

static void entry_link(struct table *t, struct entry *e)
{
	e->newer = NULL;
	e->older = t->newest;
	*(t->newest ? &t->newest->newer : &t->oldest) = e;
	t->newest = e;
}

static void entry_drop(struct table *t, struct entry *e)
{
	index_remove(&t->by_key, e);
	entry_unlink(t, e);
	t->bytes -= e->bytes;
	t->value_free(e->value);
	free(e);
}

int table_put(struct table *t, const char *key, void *value, size_t bytes, int64_t expires_ms)
{
	struct entry *e = entry_find(t, key);

	if (e) {
		void *old = e->value;
		t->bytes += bytes - e->bytes;
		e->value = value;
		e->bytes = bytes;
		e->expires_ms = expires_ms;
		entry_unlink(t, e);
		entry_link(t, e);
		if (old != value)
			t->value_free(old);
	} else {
		size_t key_bytes = strlen(key) + 1;
		e = malloc(sizeof(*e) + key_bytes);
		if (!e)
			return -ENOMEM;
		*e = (struct entry){ .value = value, .bytes = bytes, .expires_ms = expires_ms };
		memcpy(e->key, key, key_bytes);
		if (index_put(&t->by_key, e) < 0) {
			free(e);
			return -ENOMEM;
		}
		entry_link(t, e);
		t->bytes += bytes;
	}
	while (t->oldest != e && (t->by_key.used > t->items_max || t->bytes > t->bytes_max))
		entry_drop(t, t->oldest);
	return 0;
}

void *table_get(struct table *t, const char *key, int64_t now_ms)
{
	struct entry *e = entry_find(t, key);

	if (!e || now_ms >= e->expires_ms)
		return NULL;
	if (e != t->newest) {
		entry_unlink(t, e);
		entry_link(t, e);
	}
	return e->value;
}

void *table_find(struct table *t, const char *key)
{
	struct entry *e = entry_find(t, key);

	return e ? e->value : NULL;
}

void table_remove(struct table *t, const char *key)
{
	struct entry *e = entry_find(t, key);

	if (e)
		entry_drop(t, e);
}

bool table_drop_oldest(struct table *t)
{
	if (!t->oldest)
		return false;
	entry_drop(t, t->oldest);
	return true;
}

void table_clear(struct table *t)
{
	while (table_drop_oldest(t))
		continue;
}

size_t table_count(const struct table *t)
{
	return t->by_key.used;
}

size_t table_bytes(const struct table *t)
{
	return t->bytes;
}

void table_free(struct table *t)
{
	if (!t)
		return;
	table_clear(t);
	index_release(&t->by_key);
	free(t);
}
