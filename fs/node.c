/* Node memory and the indexes that find it; see node.h. No network, no disk, no kernel. */
#include "fs/node.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/clock.h"

static uint64_t hash_node(const void *item)
{
	return index_hash_number(((const struct node *)item)->ino);
}

static bool is_ino(const void *item, const void *key)
{
	return ((const struct node *)item)->ino == *(const uint64_t *)key;
}

static uint64_t hash_name(const void *item)
{
	return index_hash_text(((const struct entry *)item)->name);
}

static bool is_name(const void *item, const void *key)
{
	return strcmp(((const struct entry *)item)->name, key) == 0;
}

static uint64_t hash_document(const void *item)
{
	return index_hash_text(((const struct entry *)item)->document_id);
}

static bool is_document(const void *item, const void *key)
{
	return strcmp(((const struct entry *)item)->document_id, key) == 0;
}

static uint64_t hash_folder_id(const void *item)
{
	return index_hash_text(((const struct folder *)item)->session.id);
}

static bool is_folder_id(const void *item, const void *key)
{
	return strcmp(((const struct folder *)item)->session.id, key) == 0;
}

static uint64_t hash_folder_name(const void *item)
{
	return index_hash_text(((const struct folder *)item)->name);
}

static bool is_folder_name(const void *item, const void *key)
{
	return strcmp(((const struct folder *)item)->name, key) == 0;
}

void tree_init(struct tree *t)
{
	*t = (struct tree){ .nodes = INDEX(hash_node),
			    .folder_ids = INDEX(hash_folder_id),
			    .folder_names = INDEX(hash_folder_name),
			    .root = { .ino = INO_ROOT, .holds = 1, .kind = NODE_ROOT } };
	t->last_folder = &t->first_folder;
	t->root_changed_wall_ms = clock_wall_ms();
	pthread_mutex_init(&t->lock, NULL);
}

struct local *local_new(void)
{
	struct local *l = calloc(1, sizeof(*l));
	if (l)
		l->mtime_ns = clock_wall_ns();
	return l;
}

void local_free(struct local *l)
{
	if (!l)
		return;
	spool_unref(l->spool);
	free(l->words);
	free(l->supersedes_id);
	listing_unref(l->copy_of);
	free(l->copy_session_id);
	free(l->home_name);
	free(l);
}

static const struct entry_past no_past = { .mtime_ns = -1 };

struct entry_past *entry_past(struct entry *e)
{
	if (e->past == &no_past) {
		struct entry_past *own = malloc(sizeof(*own));
		if (!own)
			return NULL;
		*own = no_past;
		e->past = own;
	}
	return (struct entry_past *)e->past;
}

void entry_clear_id(struct entry *e)
{
	if (!e->borrows_id)
		free(e->document_id);
	e->document_id = NULL;
	e->borrows_id = false;
}

int entry_drop_own(struct entry *e)
{
	char *id = e->borrows_id ? strdup(e->document_id) : NULL;

	if (e->borrows_id && !id)
		return -ENOMEM;
	if (id)
		e->document_id = id; /* the same text: indexes by it stay right */
	e->borrows_id = false;
	listing_unref(e->own);
	e->own = NULL;
	return 0;
}

/* ---- memory of entries ------------------------------------------------------------------------------------- */

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define IS_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED
#endif
#ifdef IS_SANITIZED
enum { HAS_BLOCKS = false }; /* each entry by itself, so that a use after its end is seen */
#else
enum { HAS_BLOCKS = true };
#endif

enum { BLOCK_BYTES = 64 * 1024 };

struct entry_block {
	struct entry_block *next;
	_Alignas(ENTRY_STEP_BYTES) char bytes[];
};

static size_t entry_bytes(const char *name)
{
	size_t bytes = offsetof(struct entry, first_name) + strlen(name) + 1;

	return bytes > sizeof(struct entry) ? bytes : sizeof(struct entry);
}

/* In steps; 0: too large for the blocks. */
static size_t size_of(size_t bytes)
{
	size_t n = (bytes + ENTRY_STEP_BYTES - 1) / ENTRY_STEP_BYTES;

	return HAS_BLOCKS && n < ENTRY_SIZES ? n : 0;
}

/* Zeroed, but for the name. */
static struct entry *entry_alloc(struct entry_blocks *b, const char *name)
{
	size_t bytes = entry_bytes(name), n = size_of(bytes);
	struct entry *e = NULL;

	if (n == 0) {
		e = malloc(bytes);
	} else if (b->spare[n]) {
		e = b->spare[n];
		b->spare[n] = *(void **)b->spare[n];
	} else {
		if (b->left_bytes < n * ENTRY_STEP_BYTES) {
			struct entry_block *block = malloc(BLOCK_BYTES);
			if (!block)
				return NULL;
			block->next = b->first; /* the rest of that one is lost: less than an entry */
			b->first = block;
			b->at = block->bytes;
			b->left_bytes = BLOCK_BYTES - offsetof(struct entry_block, bytes);
		}
		e = (struct entry *)(void *)b->at;
		b->at += n * ENTRY_STEP_BYTES;
		b->left_bytes -= n * ENTRY_STEP_BYTES;
	}
	if (!e)
		return NULL;
	memset(e, 0, sizeof(*e));
	memcpy(e->first_name, name, strlen(name) + 1);
	return e;
}

static void entry_give_back(struct entry_blocks *b, struct entry *e)
{
	size_t n = size_of(entry_bytes(e->first_name));

	if (n == 0) {
		free(e);
		return;
	}
	*(void **)e = b->spare[n];
	b->spare[n] = e;
}

static void blocks_release(struct entry_blocks *b)
{
	for (struct entry_block *next, *block = b->first; block; block = next) {
		next = block->next;
		free(block);
	}
	*b = (struct entry_blocks){ 0 };
}

static void free_name(struct entry *e, char *name)
{
	if (name != e->first_name)
		free(name);
}

static void entry_free(struct tree *t, struct entry *e)
{
	local_free(e->local);
	entry_clear_id(e);
	listing_unref(e->own);
	if (e->past != &no_past)
		free((struct entry_past *)e->past);
	free_name(e, e->name);
	entry_give_back(&t->blocks, e);
}

static void snapshot_release_items(struct tree *t, struct snapshot *s)
{
	for (int i = 0; i < s->count; i++)
		node_drop(t, &s->items[i]->node);
	free(s->items);
	free(s);
}

static void folder_free(struct folder *f)
{
	session_release(&f->session);
	listing_unref(f->listing);
	free(f->by_document);
	index_release(&f->names);
	index_release(&f->hidden);
	index_release(&f->unlisted);
	free(f->name);
	free(f);
}

/* As the tree ends: everything goes, whoever held it. */
static void node_free(struct tree *t, struct node *n)
{
	switch (n->kind) {
	case NODE_FOLDER:
		folder_free((struct folder *)n);
		break;
	case NODE_ENTRY:
		entry_free(t, (struct entry *)n);
		break;
	case NODE_LINK:
		free(((struct link *)n)->target);
		free(n);
		break;
	default:
		break; /* fixed nodes are not ours to free */
	}
}

void tree_release(struct tree *t)
{
	struct node *n;
	for (size_t at = 0; (n = index_next(&t->nodes, &at));) {
		if (n->kind == NODE_FOLDER) {
			struct snapshot *s = ((struct folder *)n)->snapshot;
			if (s) {
				free(s->items); /* the entries are freed below, whoever held them */
				free(s);
			}
		}
	}
	for (size_t at = 0; (n = index_next(&t->nodes, &at));)
		node_free(t, n);
	index_release(&t->nodes);
	index_release(&t->folder_ids);
	index_release(&t->folder_names);
	blocks_release(&t->blocks);
	pthread_mutex_destroy(&t->lock);
}

struct node *tree_find(struct tree *t, uint64_t ino)
{
	if (ino == INO_ROOT)
		return &t->root;
	ino &= ~INO_REFUSED_BIT;
	return index_find(&t->nodes, index_hash_number(ino), is_ino, &ino);
}

void node_count_lookup(struct node *n)
{
	if (n->lookups < UINT32_MAX)
		n->lookups++;
}

void node_hold(struct node *n)
{
	n->holds++;
}

static void node_free_if_unknown(struct tree *t, struct node *n)
{
	if (n->holds > 0 || n->lookups > 0 || n->kind == NODE_ROOT)
		return;
	/* An entry holds its folder, so that it never outlives it. */
	struct folder *f = n->kind == NODE_ENTRY ? ((struct entry *)n)->folder : NULL;
	struct snapshot *s = n->kind == NODE_FOLDER ? ((struct folder *)n)->snapshot : NULL;
	index_remove(&t->nodes, n);
	if (s)
		snapshot_drop(t, s);
	node_free(t, n);
	if (f)
		node_drop(t, &f->node);
}

void node_drop(struct tree *t, struct node *n)
{
	assert(n->holds > 0);
	n->holds--;
	node_free_if_unknown(t, n);
}

void tree_forget(struct tree *t, uint64_t ino, uint64_t count)
{
	struct node *n = (ino & INO_REFUSED_BIT) ? NULL : tree_find(t, ino);
	if (!n)
		return; /* one of the fixed ones */
	if (n->lookups == UINT32_MAX)
		return; /* it was not counted any further: it stays */
	n->lookups -= count < n->lookups ? (uint32_t)count : n->lookups;
	node_free_if_unknown(t, n);
}

struct folder *tree_find_folder(struct tree *t, const char *session_id)
{
	return index_find(&t->folder_ids, index_hash_text(session_id), is_folder_id, session_id);
}

struct folder *tree_find_folder_named(struct tree *t, const char *name)
{
	return index_find(&t->folder_names, index_hash_text(name), is_folder_name, name);
}

/* A folder that was taken off and that the kernel still knows is the same folder when it comes again. */
static struct folder *revive_folder(struct tree *t, uint64_t ino, const struct session *session, const char *name)
{
	struct node *n = tree_find(t, ino);
	struct folder *f = n && n->kind == NODE_FOLDER && !((struct folder *)n)->is_shown ? (struct folder *)n : NULL;
	struct session copy = { 0 };
	char *name_copy = f ? strdup(name) : NULL;

	if (!f || !name_copy || session_copy(session, &copy) < 0) {
		free(name_copy);
		return NULL;
	}
	char *id = f->session.id; /* its text stays where it is: it is read without the lock */
	f->session.id = copy.id;
	session_release(&f->session);
	f->session = copy;
	f->session.id = id;
	free(f->name);
	f->name = name_copy;
	f->is_gone = f->entries_loaded = f->was_recalled = false;
	f->refresh_error = 0;
	f->refreshed_ms = f->session_asked_ms = 0;
	node_hold(&f->node);
	return f;
}

static int put_folder(struct tree *t, struct folder *f)
{
	if (index_put(&t->folder_ids, f) < 0)
		return -ENOMEM;
	if (index_put(&t->folder_names, f) == 0)
		return 0;
	index_remove(&t->folder_ids, f);
	return -ENOMEM;
}

char *tree_rename_folder(struct tree *t, struct folder *f, char *name)
{
	char *old = f->name;

	index_remove(&t->folder_names, f);
	f->name = name;
	(void)index_put(&t->folder_names, f); /* into the room that was just left */
	t->root_shape++;
	return old;
}

struct folder *tree_add_folder(struct tree *t, enum folder_kind kind, uint64_t ino, const struct session *session,
			       const char *name, enum session_origin origin)
{
	struct folder *f = revive_folder(t, ino, session, name);
	if (f) {
		f->origin = origin;
	} else if (tree_find(t, ino)) {
		return NULL;
	} else {
		f = calloc(1, sizeof(*f));
		if (!f)
			return NULL;
		*f = (struct folder){ .node = { .ino = ino, .kind = NODE_FOLDER, .holds = 1 },
				      .kind = kind,
				      .origin = origin,
				      .names = INDEX(hash_name),
				      .hidden = INDEX(hash_name),
				      .unlisted = INDEX(hash_document) };
		f->name = strdup(name);
		if (!f->name || session_copy(session, &f->session) < 0 || index_put(&t->nodes, &f->node) < 0) {
			folder_free(f);
			return NULL;
		}
	}
	if (kind == FOLDER_SESSION && put_folder(t, f) < 0) {
		node_drop(t, &f->node);
		return NULL;
	}
	folder_touch(f);
	f->is_shown = true;
	if (kind == FOLDER_FAILED) {
		f->next_shown = t->first_failed;
		t->first_failed = f;
		return f;
	}
	*t->last_folder = f;
	f->back_shown = t->last_folder;
	t->last_folder = &f->next_shown;
	t->folder_count++;
	t->root_shape++;
	t->root_changed_wall_ms = clock_wall_ms();
	return f;
}

/* e stands for its document no longer. */
static void leave_index(struct folder *f, struct entry *e)
{
	if (e->document_id)
		index_remove(&f->unlisted, e);
	if (e->document < 0 || !f->by_document)
		return;
	struct entry **at = &f->by_document[e->document];
	while (*at && *at != e)
		at = &(*at)->same;
	if (*at)
		*at = e->same;
	e->same = NULL;
	e->document = -1;
}

/* A hidden entry that another one takes the name from. It keeps its document, and gets another name when it comes back. */
static void take_name_away(struct tree *t, struct entry *e)
{
	struct folder *f = e->folder;

	index_remove(&f->hidden, e);
	leave_index(f, e);
	node_drop(t, &e->node);
}

/* Nothing is shown or kept under any name here. What is open lives on without one. */
static void forget_entries(struct tree *t, struct folder *f)
{
	size_t count = f->names.used + f->hidden.used, n = 0;
	struct entry *e, **all = malloc((count + 1) * sizeof(*all));

	for (size_t at = 0; all && (e = index_next(&f->names, &at));)
		all[n++] = e;
	for (size_t at = 0; all && (e = index_next(&f->hidden, &at));)
		all[n++] = e;
	for (size_t i = 0; i < n; i++) {
		if (all[i]->is_shown)
			folder_hide_entry(t, all[i], false);
		else
			take_name_away(t, all[i]);
	}
	free(all); /* without memory they stay until the mount ends, seen by nobody */
	listing_unref(f->listing);
	f->listing = NULL;
	free(f->by_document);
	f->by_document = NULL;
}

void tree_hide_folder(struct tree *t, struct folder *f)
{
	struct folder **at = f->kind == FOLDER_FAILED ? &t->first_failed : f->back_shown;
	if (!f->is_shown)
		return;
	while (*at && *at != f)
		at = &(*at)->next_shown; /* failed ones are few; of the others it is the first */
	if (*at)
		*at = f->next_shown;
	if (f->kind == FOLDER_SESSION) {
		if (f->next_shown)
			f->next_shown->back_shown = at;
		else
			t->last_folder = at;
		index_remove(&t->folder_ids, f);
		index_remove(&t->folder_names, f);
	}
	f->next_shown = NULL;
	f->is_shown = false;
	forget_entries(t, f);
	if (f->kind == FOLDER_SESSION) {
		t->folder_count--;
		t->root_shape++;
		t->root_changed_wall_ms = clock_wall_ms();
	}
	node_drop(t, &f->node);
}

struct link *tree_add_link(struct tree *t, uint64_t ino, const char *target)
{
	struct link *l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	l->node = (struct node){ .ino = ino, .kind = NODE_LINK };
	l->target = strdup(target);
	if (!l->target || index_put(&t->nodes, &l->node) < 0) {
		free(l->target);
		free(l);
		return NULL;
	}
	return l;
}

void folder_touch(struct folder *f)
{
	int64_t now_ns = clock_wall_ns();

	f->shape++;
	f->changed_wall_ns = now_ns > f->changed_wall_ns ? now_ns : f->changed_wall_ns + 1;
}

static void forget_snapshot(struct tree *t, struct folder *f)
{
	struct snapshot *s = f->snapshot;
	if (!s || s->is_growing)
		return;
	f->snapshot = NULL;
	snapshot_drop(t, s);
}

static int snapshot_add(struct snapshot *s, struct entry *e)
{
	if (s->count == s->room) {
		int room = s->room ? s->room * 2 : 64;
		struct entry **items = realloc(s->items, (size_t)room * sizeof(*items));
		if (!items)
			return -ENOMEM;
		s->items = items;
		s->room = room;
	}
	node_hold(&e->node);
	s->items[s->count++] = e;
	return 0;
}

struct entry *folder_find(const struct folder *f, const char *name)
{
	return index_find(&f->names, index_hash_text(name), is_name, name);
}

struct entry *folder_find_hidden(const struct folder *f, const char *name)
{
	return index_find(&f->hidden, index_hash_text(name), is_name, name);
}

static void show(struct tree *t, struct folder *f, struct entry *e)
{
	e->is_shown = true;
	f->shown_count++;
	folder_touch(f);
	forget_snapshot(t, f);
	if (f->snapshot && f->snapshot->is_growing && !e->is_in_walk)
		e->is_in_walk = snapshot_add(f->snapshot, e) ==
				0; /* without memory its readers miss a name, the next walk has it */
}

/* Not in the names yet. */
static struct entry *entry_new(struct tree *t, struct folder *f, uint64_t ino, const char *name)
{
	struct entry *e = entry_alloc(&t->blocks, name);
	if (!e)
		return NULL;
	e->node = (struct node){ .ino = ino, .kind = NODE_ENTRY, .holds = 1 };
	e->folder = f;
	e->document = -1;
	e->past = &no_past;
	e->name = e->first_name;
	if (index_put(&t->nodes, &e->node) < 0) {
		entry_free(t, e);
		return NULL;
	}
	node_hold(&f->node);
	return e;
}

/* The opposite, for one that nobody has seen. */
static void entry_undo(struct tree *t, struct entry *e)
{
	struct folder *f = e->folder;
	index_remove(&t->nodes, &e->node);
	entry_free(t, e);
	node_drop(t, &f->node);
}

struct entry *folder_add_entry(struct tree *t, struct folder *f, uint64_t ino, const char *name)
{
	struct entry *e = entry_new(t, f, ino, name);
	if (!e)
		return NULL;
	if (index_put(&f->names, e) < 0) {
		entry_undo(t, e);
		return NULL;
	}
	struct entry *reserved = folder_find_hidden(f, name);
	if (reserved)
		take_name_away(t, reserved);
	show(t, f, e);
	return e;
}

struct entry *folder_add_hidden_entry(struct tree *t, struct folder *f, uint64_t ino, const char *name,
				      const char *document_id)
{
	struct entry *e = entry_new(t, f, ino, name);
	if (!e)
		return NULL;
	e->document_id = strdup(document_id);
	if (e->document_id && index_put(&f->hidden, e) == 0) {
		if (index_put(&f->unlisted, e) == 0)
			return e;
		index_remove(&f->hidden, e);
	}
	entry_undo(t, e);
	return NULL;
}

void folder_hide_entry(struct tree *t, struct entry *e, bool keeps_name)
{
	struct folder *f = e->folder;
	if (!e->is_shown)
		return;
	index_remove(&f->names, e);
	e->is_shown = false;
	f->shown_count--;
	folder_touch(f);
	forget_snapshot(t, f);
	if (keeps_name && index_put(&f->hidden, e) == 0)
		return; /* the folder's hold stays */
	leave_index(f, e);
	node_drop(t, &e->node);
}

int folder_show_entry(struct tree *t, struct entry *e)
{
	struct folder *f = e->folder;
	if (e->is_shown)
		return 0;
	if (index_put(&f->names, e) < 0)
		return -ENOMEM;
	index_remove(&f->hidden, e);
	show(t, f, e);
	return 0;
}

int folder_rename_entry(struct tree *t, struct entry *e, struct folder *to, const char *name)
{
	struct folder *from = e->folder;
	char *new_name = strdup(name), *old_name = e->name;
	struct entry *reserved = folder_find_hidden(to, name);

	if (!new_name)
		return -ENOMEM;
	index_remove(&from->names, e);
	e->name = new_name;
	e->folder = to;
	if (index_put(&to->names, e) < 0) {
		e->name = old_name;
		e->folder = from;
		(void)index_put(&from->names, e); /* there was room a moment ago */
		free(new_name);
		return -ENOMEM;
	}
	free_name(e, old_name);
	node_hold(&to->node);
	if (reserved)
		take_name_away(t, reserved);
	from->shown_count--;
	to->shown_count++;
	folder_touch(from);
	folder_touch(to);
	forget_snapshot(t, from);
	forget_snapshot(t, to);
	node_drop(t, &from->node);
	return 0;
}

struct entry *folder_find_document(const struct folder *f, const char *document_id)
{
	int at = f->listing ? listing_find(f->listing, document_id) : -1;
	if (at >= 0 && f->by_document[at])
		return f->by_document[at];
	return index_find(&f->unlisted, index_hash_text(document_id), is_document, document_id);
}

struct entry *folder_next_unlisted(const struct folder *f, const char *document_id, size_t *at)
{
	return index_find_next(&f->unlisted, index_hash_text(document_id), is_document, document_id, at);
}

int folder_count_names(const struct folder *f, const char *document_id)
{
	int n = 0, at = f->listing ? listing_find(f->listing, document_id) : -1;
	struct entry *e;

	if (at >= 0)
		for (e = f->by_document[at]; e; e = e->same)
			n += e->is_shown;
	for (size_t i = 0; (e = folder_next_unlisted(f, document_id, &i));)
		n += e->is_shown;
	return n;
}

struct snapshot *folder_snapshot(struct tree *t, struct folder *f, bool is_growing)
{
	if (is_growing)
		forget_snapshot(t, f); /* one of before the walk would be the same to its end */
	if (!f->snapshot) {
		struct snapshot *s = calloc(1, sizeof(*s));
		struct entry *e;
		if (!s)
			return NULL;
		*s = (struct snapshot){ .refs = 1, .is_growing = is_growing };
		s->room = f->shown_count + 1;
		s->items = malloc((size_t)s->room * sizeof(*s->items));
		if (!s->items) {
			free(s);
			return NULL;
		}
		for (size_t at = 0; (e = index_next(&f->names, &at));)
			if (snapshot_add(s, e) == 0)
				e->is_in_walk = is_growing;
		f->snapshot = s;
	}
	f->snapshot->refs++;
	return f->snapshot;
}

void folder_forget_snapshot(struct tree *t, struct folder *f)
{
	if (f->snapshot && f->snapshot->refs == 1)
		forget_snapshot(t, f);
}

void snapshot_drop(struct tree *t, struct snapshot *s)
{
	if (s && --s->refs == 0)
		snapshot_release_items(t, s);
}

bool entry_document(const struct entry *e, struct document *ret)
{
	if (e->document >= 0 && e->folder->listing) {
		listing_get(e->folder->listing, e->document, ret);
		return true;
	}
	if (e->own) {
		listing_get(e->own, e->own_at, ret);
		return true;
	}
	*ret = (struct document){ .id = e->document_id, .size_bytes = -1, .created_ms = -1, .pages = -1 };
	return false;
}

const char *entry_document_id(const struct entry *e)
{
	struct document d;
	if (e->document_id)
		return e->document_id;
	return entry_document(e, &d) ? d.id : NULL;
}

bool entry_is_local(const struct entry *e)
{
	return e->local && !entry_document_id(e);
}
