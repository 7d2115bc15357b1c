/* The names a session's folder shows; see layout.h. */
#include "fs/layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/name.h"

static int add(struct entry ***list, int *count, struct entry *e)
{
	if ((*count & (*count - 1)) == 0) { /* grows at each power of two */
		int room = *count ? *count * 2 : 1;
		struct entry **grown = realloc(*list, (size_t)room * sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		*list = grown;
	}
	node_hold(&e->node);
	(*list)[(*count)++] = e;
	return 0;
}

static void drop_all(struct tree *t, struct entry **list, int count)
{
	for (int i = 0; i < count; i++)
		node_drop(t, &list[i]->node);
	free(list);
}

void layout_release(struct tree *t, struct layout_change *c)
{
	drop_all(t, c->appeared, c->appeared_count);
	drop_all(t, c->left, c->left_count);
	drop_all(t, c->altered, c->altered_count);
	*c = (struct layout_change){ 0 };
}

static bool is_taken(const struct folder *f, const char *name)
{
	return folder_has(f, name) || folder_find_hidden(f, name);
}

static void choose_name(const struct folder *f, const struct document *d, char ret[NAME_BYTES_MAX + 1])
{
	char safe[NAME_BYTES_MAX + 1];

	name_make_safe(d->filename ? d->filename : "", safe);
	memcpy(ret, safe, sizeof(safe));
	for (int length = 4; is_taken(f, ret) && length <= 64; length += 4)
		name_tell_apart(safe, d->id, length, ret);
	for (unsigned n = 2; is_taken(f, ret); n++) { /* somebody called a file of his own just that */
		char id[64];
		(void)snprintf(id, sizeof(id), "%.40s%u", d->id,
			       n); /* a longer id has its beginning in it: n tells them apart */
		name_tell_apart(safe, id, 64, ret);
	}
}

/* The hashes of what is being sent from a folder; looked for once, since there may be as many names as documents. */
struct expected {
	const char **hashes; /* borrowed texts, owned array */
	int count;
};

/* Is it, by its bytes, what a file here is just becoming? Then that name is its name, and no other is given. */
static bool is_expected(const struct expected *x, const struct document *d)
{
	for (int i = 0; i < x->count && d->sha256; i++)
		if (strcmp(x->hashes[i], d->sha256) == 0)
			return true;
	return false;
}

/* Without memory a document may show under a second name for a while. */
static struct expected expected_find(const struct folder *f)
{
	struct expected x = { 0 };
	struct entry *e;
	int left = f->local_count;

	for (size_t at = 0; left > 0 && (e = index_next(&f->names, &at));) {
		left -= e->local != NULL;
		if (!e->local || !e->local->is_submitted)
			continue;
		if (!x.hashes)
			x.hashes = calloc((size_t)f->local_count + 1, sizeof(*x.hashes));
		if (x.hashes && x.count < f->local_count)
			x.hashes[x.count++] = e->local->sent_sha256;
	}
	return x;
}

static struct entry *add_named(struct tree *t, struct folder *f, const struct document *d,
			       uint64_t (*next_ino)(void *arg), void *arg)
{
	char name[NAME_BYTES_MAX + 1];

	choose_name(f, d, name);
	uint64_t ino = next_ino(arg);
	return ino ? folder_add_entry(t, f, ino, name) : NULL;
}

/* An entry that stood for an id by itself now stands for the listing's document i. */
static void bind(struct tree *t, struct folder *f, struct resting *documents, struct entry *e, int i)
{
	if (e->document_id)
		index_remove(&f->unlisted, e);
	entry_clear_id(e);
	listing_unref(e->own);
	e->own = NULL;
	e->document = i;
	e->same = resting_awake(documents, i);
	resting_set_awake(documents, i, e);
	entry_note_idle(t, e);
}

/* An entry whose document the new listing lacks. */
static int unbind(struct folder *f, struct entry *e, const char *id)
{
	e->document_id = strdup(id);
	e->document = -1;
	e->same = NULL;
	if (!e->document_id || index_put(&f->unlisted, e) < 0) {
		entry_clear_id(e);
		return -ENOMEM;
	}
	return 0;
}

struct newcomer {
	int index;
	int64_t created_ms;
	const char *id;
};

static int older_first(const void *a, const void *b)
{
	const struct newcomer *x = a, *y = b;
	if (x->created_ms != y->created_ms)
		return x->created_ms < y->created_ms ? -1 : 1;
	return strcmp(x->id, y->id);
}

/* Shows again what was gone, each under its old name when that is still free. -ENOENT: none of them is shown now. */
static int show_again(struct tree *t, struct folder *f, struct entry *chain, struct layout_change *c)
{
	bool is_any_shown = false;
	int r = 0;

	for (struct entry *e = chain; e && r == 0; e = e->same) {
		if (!e->is_shown && !folder_has(f, e->name)) {
			r = folder_show_entry(t, e);
			if (r == 0)
				r = add(&c->appeared, &c->appeared_count, e);
			e->is_saved = e->is_saved && !e->is_saved_gone;
		}
		is_any_shown |= e->is_shown;
	}
	return r < 0 ? r : is_any_shown ? 0 : -ENOENT;
}

static int add_newcomers(struct tree *t, struct folder *f, struct listing *l, struct newcomer *new, int count,
			 struct resting *documents, uint64_t (*next_ino)(void *arg), void *arg, struct layout_change *c)
{
	qsort(new, (size_t)count, sizeof(*new), older_first);
	for (int i = 0; i < count; i++) {
		struct document d;
		listing_get(l, new[i].index, &d);
		struct entry *e = add_named(t, f, &d, next_ino, arg);
		if (!e)
			return -ENOMEM;
		if (documents) {
			bind(t, f, documents, e, new[i].index);
		} else {
			e->own = listing_ref(l);
			e->own_at = new[i].index;
			e->document_id =
				(char *)d.id; /* until the walk is over: a copy of each would leave as many holes */
			e->borrows_id = true;
			if (index_put(&f->unlisted, e) < 0) {
				entry_clear_id(e);
				folder_hide_entry(t, e, false);
				return -ENOMEM;
			}
		}
		int r = add(&c->appeared, &c->appeared_count, e);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The same before a listing has the document: its entries are found by its id. */
static int show_unlisted(struct tree *t, struct folder *f, const char *id, struct layout_change *c)
{
	struct entry *e;
	int r = -ENOENT;

	for (size_t at = 0; (e = folder_next_unlisted(f, id, &at));) {
		int one = show_again(t, f, e, c);
		if (one == 0 || (one < 0 && one != -ENOENT))
			r = one;
	}
	return r;
}

int layout_apply_page(struct tree *t, struct folder *f, struct listing *page, uint64_t (*next_ino)(void *arg),
		      void *arg, struct layout_change *ret)
{
	struct layout_change c = { 0 };
	int n = listing_count(page), count = 0, r = 0;
	struct newcomer *new = calloc((size_t)n + 1, sizeof(*new));

	if (!new)
		return -ENOMEM;
	struct expected x = expected_find(f);
	for (int i = 0; i < n && r == 0; i++) {
		struct document d;
		listing_get(page, i, &d);
		int listed = f->listing ? listing_find(f->listing, d.id) : -1;
		if (listed >= 0 && resting_has(&f->at_rest, listed))
			continue;
		struct entry *e = folder_find_document(t, f, d.id);
		if (!e && is_expected(&x, &d))
			continue;
		if (!e) {
			new[count++] = (struct newcomer){ i, d.created_ms, d.id };
			continue;
		}
		if (e->document < 0 && !e->own) {
			e->own = listing_ref(page);
			e->own_at = i;
		}
		if (!e->is_shown && e->document < 0) {
			r = show_unlisted(t, f, d.id, &c);
			if (r == -ENOENT) {
				/* Its name is somebody else's by now: it gets a new one, as a newcomer does. */
				new[count++] = (struct newcomer){ i, d.created_ms, d.id };
				r = 0;
			}
		}
	}
	if (r == 0)
		r = add_newcomers(t, f, page, new, count, NULL, next_ino, arg, &c);
	free(x.hashes);
	free(new);
	*ret = c;
	return r;
}

/* A name under which something is being written stays, whatever became of the document it wrote first. */
static bool has_unsent_bytes(const struct entry *e)
{
	return e->local && (!e->local->counted_out || e->local->is_dirty);
}

/* Where the other listing has document i; mostly in the same place. -1: it has not. */
static int find_same(const struct listing *in, const struct listing *l, int i)
{
	const char *id, *filename, *there;

	if (!in)
		return -1;
	listing_get_names(l, i, &id, &filename);
	if (i < listing_count(in)) {
		listing_get_names(in, i, &there, &filename);
		if (strcmp(id, there) == 0)
			return i;
	}
	return listing_find(in, id);
}

static bool is_renamed(const struct listing *l, int i, const struct listing *old, int at)
{
	const char *id, *filename, *was;

	listing_get_names(l, i, &id, &filename);
	listing_get_names(old, at, &id, &was);
	return strcmp(filename, was) != 0;
}

static bool is_altered(const struct listing *l, int i, const struct listing *old, int at)
{
	struct document d, was;

	listing_get(l, i, &d);
	listing_get(old, at, &was);
	return d.size_bytes != was.size_bytes || d.created_ms != was.created_ms;
}

/* What goes on from one listing to the next. */
struct passage {
	struct tree *tree;
	struct folder *folder;
	struct listing *old, *new; /* old: NULL none */
	struct resting at_rest;    /* of the new one */
	struct layout_change change;
};

/* Without memory it is dropped: the next listing shows it, under a name given anew. */
static int wake_or_drop(struct passage *p, int at)
{
	if (folder_wake(p->tree, p->folder, at))
		return 0;
	folder_drop_resting(p->tree, p->folder, at);
	return -ENOMEM;
}

/* Those of document i of the new listing: who stays, and who comes back. */
static int pass(struct passage *p, int i)
{
	struct folder *f = p->folder;
	int at = find_same(p->old, p->new, i), r = 0;
	const char *id, *filename;
	struct entry *e;

	listing_get_names(p->new, i, &id, &filename);
	e = f->unlisted.used ? folder_find_unlisted(f, id) : NULL;
	bool is_other = at >= 0 && is_altered(p->new, i, p->old, at);
	if (at >= 0 && resting_has(&f->at_rest, at)) {
		if (!e && !is_other && !is_renamed(p->new, i, p->old, at)) {
			resting_carry(&p->at_rest, i, &f->at_rest, at);
			return 0;
		}
		/* A name once shown stays, whatever the service calls its document now. */
		r = wake_or_drop(p, at);
	}
	struct entry *awake = at >= 0 ? resting_awake(&f->at_rest, at) : NULL;
	if (awake) {
		resting_set_awake(&p->at_rest, i, awake);
		resting_set_awake(&f->at_rest, at, NULL);
		for (struct entry *own = awake; own; own = own->same) {
			own->document = i;
			if (is_other && own->is_shown && r == 0)
				r = add(&p->change.altered, &p->change.altered_count, own);
		}
	}
	for (; e; e = folder_find_unlisted(f, id))
		bind(p->tree, f, &p->at_rest, e, i);
	return r;
}

/* Those of document i of the old listing, which the new one lacks. One that this mount attached after the listing was asked for is there all
 * the same. */
static int pass_by(struct passage *p, int i)
{
	struct folder *f = p->folder;
	const char *id, *filename;
	int r = 0;

	if (resting_has(&f->at_rest, i) && find_same(p->new, p->old, i) >= 0)
		return 0; /* it was carried over */
	if (resting_has(&f->at_rest, i))
		r = wake_or_drop(p, i);
	struct entry *gone = resting_awake(&f->at_rest, i);
	listing_get_names(p->old, i, &id, &filename);
	for (struct entry *next; gone; gone = next) {
		next = gone->same;
		if (!gone->own && gone->is_shown) {
			gone->own = listing_ref(p->old);
			gone->own_at = i;
		}
		if (unbind(f, gone, id) < 0)
			r = -ENOMEM;
	}
	if (!resting_has(&f->at_rest, i))
		resting_set_awake(&f->at_rest, i, NULL);
	return r;
}

/* Names whose documents are not there any more are not shown, and stay theirs. */
static int leave(struct passage *p)
{
	struct folder *f = p->folder;
	struct layout_change *c = &p->change;
	struct entry *e;
	int r = 0;

	for (size_t at = 0; (e = index_next(&f->unlisted, &at));)
		if (e->is_shown && e->past->attached_ms <= listing_asked_ms(p->new) && !has_unsent_bytes(e) && r == 0)
			r = add(&c->left, &c->left_count, e);
	for (int i = 0; i < c->left_count; i++) {
		c->left[i]->is_saved = false;
		(void)entry_drop_own(c->left[i]); /* without memory it stays a little longer */
		folder_hide_entry(p->tree, c->left[i], true);
	}
	return r;
}

/* Who comes back is shown again; who is new chooses a name last, when it is known who keeps one. */
static int arrive(struct passage *p, struct newcomer *new, uint64_t (*next_ino)(void *arg), void *arg)
{
	struct folder *f = p->folder;
	struct expected x = expected_find(f);
	int n = listing_count(p->new), count = 0, r = 0;

	for (int i = 0; i < n && r == 0; i++) {
		struct document d;
		if (resting_has(&f->at_rest, i))
			continue;
		struct entry *awake = resting_awake(&f->at_rest, i);
		if (awake) {
			r = show_again(p->tree, f, awake, &p->change);
			if (r != -ENOENT)
				continue;
			r = 0;
		}
		listing_get(p->new, i, &d);
		if (is_expected(&x, &d)) {
			f->is_withheld = true; /* should nothing come of it, the next listing shows it */
			continue;
		}
		new[count++] = (struct newcomer){ i, d.created_ms, d.id };
	}
	if (r == 0)
		r = add_newcomers(p->tree, f, p->new, new, count, &f->at_rest, next_ino, arg, &p->change);
	free(x.hashes);
	return r;
}

/* From one listing to the next. */
static int pass_all(struct passage *p)
{
	struct folder *f = p->folder;
	int r = 0;

	for (int i = 0; i < listing_count(p->new); i++)
		if (pass(p, i) < 0)
			r = -ENOMEM;
	for (int i = 0; f->at_rest.of && i < listing_count(p->old); i++)
		if (pass_by(p, i) < 0)
			r = -ENOMEM;
	if (resting_carried(&p->at_rest, &f->at_rest) < 0) {
		folder_drop_all_resting(p->tree, f);
		r = -ENOMEM;
	}
	f->at_rest = p->at_rest;
	f->listing = listing_ref(p->new);
	listing_unref(p->old);
	return r;
}

/* The same listing once more: those that it has and that nobody stands for yet. */
static int bind_unlisted(struct passage *p)
{
	struct folder *f = p->folder;
	size_t count = 0;
	int r = 0;
	struct entry *e, **all = malloc((f->unlisted.used + 1) * sizeof(struct entry *));

	if (!all)
		return -ENOMEM;
	for (size_t at = 0; (e = index_next(&f->unlisted, &at));)
		all[count++] = e;
	for (size_t i = 0; i < count; i++) {
		int at = listing_find(p->new, all[i]->document_id);
		if (at >= 0 && resting_has(&f->at_rest, at) && wake_or_drop(p, at) < 0)
			r = -ENOMEM;
		if (at >= 0)
			bind(p->tree, f, &f->at_rest, all[i], at);
	}
	free(all);
	folder_renew_listing(f, p->new);
	return r;
}

int layout_apply(struct tree *t, struct folder *f, struct listing *l, uint64_t (*next_ino)(void *arg), void *arg,
		 struct layout_change *ret)
{
	struct passage p = { .tree = t, .folder = f, .old = f->listing, .new = l };
	bool is_same = f->at_rest.of && listing_serial(p.old) == listing_serial(l);
	struct newcomer *new = calloc((size_t)listing_count(l) + 1, sizeof(*new));

	if (!new || (!is_same && resting_begin(&p.at_rest, l) < 0)) {
		free(new);
		return -ENOMEM;
	}
	int r = is_same ? bind_unlisted(&p) : pass_all(&p);
	if (r == 0)
		r = leave(&p);
	if (f->unlisted.used == 0)
		index_release(&f->unlisted); /* during a first walk all were in it */
	if (r == 0)
		r = arrive(&p, new, next_ino, arg);
	free(new);
	*ret = p.change;
	return r;
}
