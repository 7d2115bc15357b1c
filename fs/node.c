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

/* So many inode numbers, from a multiple of it on, of which some rest in that folder. A folder's are mostly given one after the other. */
enum { SPAN_INOS = 1024 };

struct span {
	uint64_t first;
	struct folder *folder;
	uint32_t count; /* how many */
};

static uint64_t hash_span(const void *item)
{
	return index_hash_number(((const struct span *)item)->first);
}

static bool is_span(const void *item, const void *key)
{
	return ((const struct span *)item)->first == *(const uint64_t *)key;
}

void tree_init(struct tree *t)
{
	*t = (struct tree){ .nodes = INDEX(hash_node),
			    .spans = INDEX(hash_span),
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

/* What may go to rest is remembered in a list; the memory of a long one is given back. */
enum { IDLE_ROOM_KEPT = 4096, SETTLED_AT_ONCE = 1024 };

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

/* ---- memory ------------------------------------------------------------------------------------------------ */

static void entry_free(struct entry *e)
{
	local_free(e->local);
	entry_clear_id(e);
	listing_unref(e->own);
	if (e->past != &no_past)
		free((struct entry_past *)e->past);
	free(e->name);
	free(e);
}

static void folder_free(struct folder *f)
{
	session_release(&f->session);
	listing_unref(f->listing);
	resting_release(&f->at_rest);
	snapshot_drop(f->snapshot);
	index_release(&f->names);
	index_release(&f->hidden);
	index_release(&f->unlisted);
	free(f->name);
	free(f);
}

/* As the tree ends: everything goes, whoever held it. */
static void node_free(struct node *n)
{
	switch (n->kind) {
	case NODE_FOLDER:
		folder_free((struct folder *)n);
		break;
	case NODE_ENTRY:
		entry_free((struct entry *)n);
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

	for (size_t at = 0; (n = index_next(&t->nodes, &at));)
		node_free(n);
	struct span *span;
	for (size_t at = 0; (span = index_next(&t->spans, &at));)
		free(span);
	index_release(&t->spans);
	index_release(&t->nodes);
	index_release(&t->folder_ids);
	index_release(&t->folder_names);
	free(t->idle);
	pthread_mutex_destroy(&t->lock);
}

static struct node *find_awake(struct tree *t, uint64_t ino)
{
	if (ino == INO_ROOT)
		return &t->root;
	ino &= ~INO_REFUSED_BIT;
	return index_find(&t->nodes, index_hash_number(ino), is_ino, &ino);
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
	index_remove(&t->nodes, n);
	node_free(n);
	if (f)
		node_drop(t, &f->node);
}

/* Nothing but its folder's names holds it. */
static bool is_idle(const struct entry *e)
{
	return e->node.holds == 1 && e->is_shown && e->document >= 0 && !e->local;
}

/* Whether it does is seen when it is its turn. Without memory it stays awake. */
void entry_note_idle(struct tree *t, const struct entry *e)
{
	if (!is_idle(e))
		return;
	if (t->idle_count == t->idle_room) {
		size_t room = t->idle_room ? t->idle_room * 2 : 64;
		uint64_t *idle = realloc(t->idle, room * sizeof(*idle));
		if (!idle)
			return;
		t->idle = idle;
		t->idle_room = room;
	}
	t->idle[t->idle_count++] = e->node.ino;
}

void node_drop(struct tree *t, struct node *n)
{
	assert(n->holds > 0);
	n->holds--;
	if (n->kind == NODE_ENTRY)
		entry_note_idle(t, (struct entry *)n);
	node_free_if_unknown(t, n);
}

/* Not in the names yet. */
static struct entry *entry_new(struct tree *t, struct folder *f, uint64_t ino, const char *name)
{
	struct entry *e = malloc(sizeof(*e));
	if (!e)
		return NULL;
	*e = (struct entry){ .node = { .ino = ino, .kind = NODE_ENTRY, .holds = 1 },
			     .folder = f,
			     .name = strdup(name),
			     .document = -1,
			     .past = &no_past };
	if (!e->name || index_put(&t->nodes, &e->node) < 0) {
		entry_free(e);
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
	entry_free(e);
	node_drop(t, &f->node);
}

/* ---- rest -------------------------------------------------------------------------------------------------- */

/* The folder where that number rests, and as which of its documents. NULL: none. */
static struct folder *find_resting(const struct tree *t, uint64_t ino, int *ret_document)
{
	uint64_t first = ino / SPAN_INOS * SPAN_INOS, hash = index_hash_number(first);
	struct span *span;

	for (size_t at = 0; (span = index_find_next(&t->spans, hash, is_span, &first, &at));) {
		*ret_document = resting_find_ino(&span->folder->at_rest, ino);
		if (*ret_document >= 0)
			return span->folder;
	}
	return NULL;
}

static struct span *find_span(const struct tree *t, const struct folder *f, uint64_t ino)
{
	uint64_t first = ino / SPAN_INOS * SPAN_INOS, hash = index_hash_number(first);
	struct span *span;

	for (size_t at = 0; (span = index_find_next(&t->spans, hash, is_span, &first, &at));)
		if (span->folder == f)
			return span;
	return NULL;
}

/* *last: the one of the number before, mostly that of this one too; or NULL. */
static int span_add(struct tree *t, struct folder *f, uint64_t ino, struct span **last)
{
	struct span *span = *last && (*last)->first == ino / SPAN_INOS * SPAN_INOS ? *last : find_span(t, f, ino);

	if (!span) {
		span = malloc(sizeof(*span));
		if (!span)
			return -ENOMEM;
		*span = (struct span){ .first = ino / SPAN_INOS * SPAN_INOS, .folder = f };
		if (index_put(&t->spans, span) < 0) {
			free(span);
			return -ENOMEM;
		}
	}
	span->count++;
	*last = span;
	return 0;
}

static void span_drop(struct tree *t, struct folder *f, uint64_t ino)
{
	struct span *span = find_span(t, f, ino);

	if (!span || --span->count > 0)
		return;
	index_remove(&t->spans, span);
	free(span);
}

static void view_fill(struct folder *f, int i, struct entry_view *room)
{
	struct rest rest = resting_get(&f->at_rest, i);

	room->entry = (struct entry){
		.node = { .ino = rest.ino, .lookups = rest.lookups, .holds = 1, .kind = NODE_ENTRY },
		.folder = f,
		.name = (char *)resting_name(f->listing, i, room->name),
		.past = &no_past,
		.document = i,
		.is_shown = true,
		.is_saved = rest.is_saved,
		.is_view = true,
	};
}

struct entry *folder_wake(struct tree *t, struct folder *f, int i)
{
	char room[NAME_BYTES_MAX + 1];

	if (!resting_has(&f->at_rest, i))
		return resting_awake(&f->at_rest, i);
	struct rest rest = resting_get(&f->at_rest, i);
	struct entry *e = entry_new(t, f, rest.ino, resting_name(f->listing, i, room));
	if (!e)
		return NULL;
	if (index_put(&f->names, e) < 0) {
		entry_undo(t, e);
		return NULL;
	}
	resting_take(&f->at_rest, i);
	span_drop(t, f, rest.ino);
	e->node.lookups = rest.lookups;
	e->is_saved = rest.is_saved;
	e->is_shown = true;
	e->is_in_walk = f->snapshot && f->snapshot->is_growing; /* all that rest are in it */
	e->document = i;
	resting_set_awake(&f->at_rest, i, e);
	entry_note_idle(t, e);
	return e;
}

int folder_wake_all(struct tree *t, struct folder *f)
{
	int r = 0;

	for (int i = 0; f->listing && i < listing_count(f->listing); i++)
		if (resting_has(&f->at_rest, i) && !folder_wake(t, f, i))
			r = -ENOMEM;
	return r;
}

/* Is there nothing to know of it but what is known of one at rest? */
static bool is_plain(const struct entry *e)
{
	const struct folder *f = e->folder;
	char room[NAME_BYTES_MAX + 1];

	return e->is_shown && e->document >= 0 && !e->local && e->past == &no_past && !e->document_id && !e->own &&
	       !e->was_there_before && f->at_rest.of && resting_awake(&f->at_rest, e->document) == e && !e->same &&
	       strcmp(resting_name(f->listing, e->document, room), e->name) == 0;
}

static bool may_rest(const struct entry *e)
{
	return is_idle(e) && is_plain(e);
}

static void go_to_rest(struct tree *t, struct entry *e)
{
	struct folder *f = e->folder;
	struct rest rest = { .ino = e->node.ino, .lookups = e->node.lookups, .is_saved = e->is_saved };
	struct span *span = NULL;

	if (span_add(t, f, rest.ino, &span) < 0)
		return;
	if (resting_put(&f->at_rest, e->document, rest) < 0) {
		span_drop(t, f, rest.ino);
		return;
	}
	index_remove(&f->names, e);
	index_remove(&t->nodes, &e->node);
	entry_free(e);
	node_drop(t, &f->node);
}

bool tree_settle(struct tree *t)
{
	for (int i = 0; i < SETTLED_AT_ONCE && t->idle_count > 0; i++) {
		struct node *n = find_awake(t, t->idle[--t->idle_count]);
		if (n && n->kind == NODE_ENTRY && may_rest((struct entry *)n))
			go_to_rest(t, (struct entry *)n);
	}
	if (t->idle_count == 0 && t->idle_room > IDLE_ROOM_KEPT) {
		free(t->idle);
		t->idle = NULL;
		t->idle_room = 0;
	}
	return t->idle_count > 0;
}

struct node *tree_find(struct tree *t, uint64_t ino)
{
	struct node *n = find_awake(t, ino);
	int document;

	if (n)
		return n;
	struct folder *f = find_resting(t, ino & ~INO_REFUSED_BIT, &document);
	struct entry *e = f ? folder_wake(t, f, document) : NULL;
	return e ? &e->node : NULL;
}

struct node *tree_look(struct tree *t, uint64_t ino, struct entry_view *room)
{
	struct node *n = find_awake(t, ino);
	int document;

	if (n)
		return n;
	struct folder *f = find_resting(t, ino & ~INO_REFUSED_BIT, &document);
	if (!f)
		return NULL;
	view_fill(f, document, room);
	return &room->entry.node;
}

void node_count_lookup(struct node *n)
{
	struct entry *e = (struct entry *)n;

	if (n->kind == NODE_ENTRY && e->is_view)
		resting_count_lookup(&e->folder->at_rest, e->document);
	else if (n->lookups < UINT32_MAX)
		n->lookups++;
}

void tree_forget(struct tree *t, uint64_t ino, uint64_t count)
{
	struct node *n = (ino & INO_REFUSED_BIT) ? NULL : find_awake(t, ino);
	int document;

	if (!n) { /* at rest, or one of the fixed ones */
		struct folder *f = (ino & INO_REFUSED_BIT) ? NULL : find_resting(t, ino, &document);
		if (f)
			resting_forget(&f->at_rest, document, count);
		return;
	}
	if (n->lookups == UINT32_MAX)
		return; /* it was not counted any further: it stays */
	n->lookups -= count < n->lookups ? (uint32_t)count : n->lookups;
	node_free_if_unknown(t, n);
}

void folder_begin_listing(struct tree *t, struct folder *f, struct resting *rest)
{
	int n = listing_count(rest->of), count = 0, elsewhere;
	struct span *span = NULL;
	bool may_conflict = t->spans.used > 0;

	for (int i = 0; i < n; i++) {
		if (!resting_has(rest, i))
			continue;
		uint64_t ino = resting_get(rest, i).ino;
		/* Named anew, as one seen for the first time: a number is one file's, and without memory it can't be found by it. */
		if ((may_conflict && find_resting(t, ino, &elsewhere)) || span_add(t, f, ino, &span) < 0)
			resting_take(rest, i);
		else
			count++;
	}
	f->listing = listing_ref(rest->of);
	f->at_rest = *rest;
	*rest = (struct resting){ 0 };
	f->shown_count += count;
	if (f->snapshot && f->snapshot->is_growing)
		snapshot_add_resting(f->snapshot, f);
	if (count > 0) {
		folder_touch(f);
		folder_outdate_snapshot(f);
	}
}

int folder_copy_resting(const struct folder *f, struct resting *ret, void (*each)(void *arg, const struct entry *e),
			void *arg)
{
	struct resting copy;
	const struct entry *e;

	if (resting_begin(&copy, f->listing) < 0)
		return -ENOMEM;
	for (int i = 0; i < listing_count(f->listing); i++)
		if (resting_has(&f->at_rest, i))
			resting_note(&copy, i,
				     (struct rest){ .ino = resting_get(&f->at_rest, i).ino, .is_saved = true });
	for (size_t at = 0; (e = index_next(&f->names, &at));) {
		if (is_plain(e) &&
		    resting_note(&copy, e->document, (struct rest){ .ino = e->node.ino, .is_saved = true }) == 0)
			continue;
		if (entry_document_id(e))
			each(arg, e);
	}
	for (size_t at = 0; (e = index_next(&f->hidden, &at));)
		if (entry_document_id(e))
			each(arg, e);
	*ret = copy;
	return 0;
}

void folder_renew_listing(struct folder *f, struct listing *l)
{
	struct listing *old = f->listing;

	f->listing = listing_ref(l);
	resting_renew(&f->at_rest, l);
	listing_unref(old);
}

void folder_drop_resting(struct tree *t, struct folder *f, int i)
{
	span_drop(t, f, resting_get(&f->at_rest, i).ino);
	resting_take(&f->at_rest, i);
	f->shown_count--;
	folder_touch(f);
	folder_outdate_snapshot(f);
}

void folder_drop_all_resting(struct tree *t, struct folder *f)
{
	for (int i = 0; f->at_rest.of && i < listing_count(f->at_rest.of); i++) {
		if (!resting_has(&f->at_rest, i))
			continue;
		span_drop(t, f, resting_get(&f->at_rest, i).ino);
		f->shown_count--;
	}
	resting_release(&f->at_rest);
	folder_touch(f);
	folder_outdate_snapshot(f);
}

/* ---- folders ----------------------------------------------------------------------------------------------- */

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

void entry_leave_index(struct entry *e)
{
	struct folder *f = e->folder;

	if (e->document_id)
		index_remove(&f->unlisted, e);
	if (e->document < 0 || !f->at_rest.of)
		return;
	struct entry *before = resting_awake(&f->at_rest, e->document);
	if (before == e)
		resting_set_awake(&f->at_rest, e->document, e->same);
	while (before && before->same != e)
		before = before->same;
	if (before)
		before->same = e->same;
	e->same = NULL;
	e->document = -1;
}

/* A hidden entry that another one takes the name from. It keeps its document, and gets another name when it comes back. */
static void take_name_away(struct tree *t, struct entry *e)
{
	struct folder *f = e->folder;

	index_remove(&f->hidden, e);
	entry_leave_index(e);
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
	folder_drop_all_resting(t, f);
	listing_unref(f->listing);
	f->listing = NULL;
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

static struct entry *find_name(const struct folder *f, const char *name)
{
	return index_find(&f->names, index_hash_text(name), is_name, name);
}

struct entry *folder_find(struct tree *t, struct folder *f, const char *name)
{
	struct entry *e = find_name(f, name);
	int at = e ? -1 : resting_find_name(&f->at_rest, name);

	return at >= 0 ? folder_wake(t, f, at) : e;
}

struct entry *folder_look(struct folder *f, const char *name, struct entry_view *room)
{
	struct entry *e = find_name(f, name);
	int at = e ? -1 : resting_find_name(&f->at_rest, name);

	if (at < 0)
		return e;
	view_fill(f, at, room);
	return &room->entry;
}

bool folder_has(const struct folder *f, const char *name)
{
	return find_name(f, name) || resting_find_name(&f->at_rest, name) >= 0;
}

bool folder_shows(const struct folder *f, int i)
{
	if (resting_has(&f->at_rest, i))
		return true;
	for (const struct entry *e = resting_awake(&f->at_rest, i); e; e = e->same)
		if (e->is_shown)
			return true;
	return false;
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
	folder_outdate_snapshot(f);
	if (f->snapshot && f->snapshot->is_growing && !e->is_in_walk)
		e->is_in_walk = snapshot_add(f->snapshot, e->node.ino) ==
				0; /* without memory its readers miss a name, the next walk has it */
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
	folder_outdate_snapshot(f);
	if (keeps_name && index_put(&f->hidden, e) == 0)
		return; /* the folder's hold stays */
	entry_leave_index(e);
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
	free(old_name);
	node_hold(&to->node);
	if (reserved)
		take_name_away(t, reserved);
	from->shown_count--;
	to->shown_count++;
	folder_touch(from);
	folder_touch(to);
	folder_outdate_snapshot(from);
	folder_outdate_snapshot(to);
	node_drop(t, &from->node);
	return 0;
}

struct entry *folder_find_unlisted(const struct folder *f, const char *document_id)
{
	return index_find(&f->unlisted, index_hash_text(document_id), is_document, document_id);
}

struct entry *folder_find_document(struct tree *t, struct folder *f, const char *document_id)
{
	int at = f->listing ? listing_find(f->listing, document_id) : -1;
	struct entry *e = at >= 0 ? folder_wake(t, f, at) : NULL;

	return e ? e : folder_find_unlisted(f, document_id);
}

struct entry *folder_next_unlisted(const struct folder *f, const char *document_id, size_t *at)
{
	return index_find_next(&f->unlisted, index_hash_text(document_id), is_document, document_id, at);
}

int folder_count_names(const struct folder *f, const char *document_id)
{
	int at = f->listing ? listing_find(f->listing, document_id) : -1;
	int n = at >= 0 && resting_has(&f->at_rest, at);
	struct entry *e;

	if (at >= 0)
		for (e = resting_awake(&f->at_rest, at); e; e = e->same)
			n += e->is_shown;
	for (size_t i = 0; (e = folder_next_unlisted(f, document_id, &i));)
		n += e->is_shown;
	return n;
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
