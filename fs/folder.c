/* What the folders of sessions list, and how that is kept up to date.
 *
 * At most one flight a folder is under way, on a pool of its own; who wants its outcome waits on folder->waiters. A flight's pages
 * are shown as they arrive. Names are saved in the state before the flight counts as ended. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/base/memory.h"
#include "fs/annex.h"
#include "fs/layout.h"
#include "fs/mount_impl.h"

/* After a flight that failed nobody waits for another one so soon. */
#define FAILED_PAUSE_MS 5000
/* A session's own record (its name) is asked for so often. */
#define SESSION_TTL_MS 600000
/* 100,000 documents are 75 minutes at 90 requests each, and three times that where three share them. */
#define WALK_MS_MAX (12LL * 60 * 60 * 1000)
#define NOTICE_RETRY_MS 50
/* During a walk names are saved so often. */
#define SAVE_MS 2000
#define SAVED_TEXTS_MAX (512UL * 1024 * 1024)
/* So many documents at once leave holes worth giving back. */
#define TRIM_COUNT 1000
/* A folder is asked about in the background so long after its last use; never more often than this, and more and more seldom, up to so
 * many times its first pause, as long as nothing changes. */
#define USED_LATELY_MS (10 * 60 * 1000)
#define POLL_MS_MIN 10000
#define POLL_SLOWER_MAX 16

/* ---- notices ----------------------------------------------------------------------------------------------- */

struct notice {
	struct mount *m;
	uint64_t ino; /* the folder's, when name is set */
	char *name;   /* NULL: the inode itself */
};

static void notice_free(void *arg)
{
	struct notice *n = arg;
	free(n->name);
	free(n);
}

static void notice_send(void *arg)
{
	struct notice *n = arg;
	struct mount *m = n->m;
	struct entry_view room;

	pthread_mutex_lock(&m->tree.lock);
	const struct node *node = tree_look(&m->tree, n->ino, &room);
	/* The kernel holds the folder's lock as long as such a request is under way, and a notice about a name wants it too: it would not
	 * only wait here, but keep whoever comes behind it waiting. */
	int locked_ops = !node                       ? 0
			 : node->kind == NODE_ROOT   ? m->tree.root_locked_ops
			 : node->kind == NODE_FOLDER ? ((const struct folder *)node)->locked_ops
						     : 0;
	bool is_locked = n->name && locked_ops > 0;
	bool is_served = m->is_served;
	pthread_mutex_unlock(&m->tree.lock);
	if (is_locked && pool_run_later(m->notices, NOTICE_RETRY_MS, notice_send, notice_free, n) == 0)
		return;
	if (is_served && n->name)
		(void)fuse_lowlevel_notify_inval_entry(m->fuse, n->ino, n->name,
						       strlen(n->name)); /* not known there: fine */
	else if (is_served)
		(void)fuse_lowlevel_notify_inval_inode(m->fuse, n->ino, -1, 0);
	notice_free(n);
}

static void notice_add(struct mount *m, uint64_t ino, const char *name)
{
	struct notice *n = calloc(1, sizeof(*n));
	if (!n)
		return; /* the kernel's own timeouts end it */
	n->m = m;
	n->ino = ino;
	n->name = name ? strdup(name) : NULL;
	if ((name && !n->name) || pool_run(m->notices, notice_send, n) < 0)
		notice_free(n);
}

void notice_entry(struct mount *m, struct folder *f, const char *name)
{
	notice_add(m, f ? f->node.ino : INO_ROOT, name);
}

void notice_inode(struct mount *m, uint64_t ino)
{
	notice_add(m, ino, NULL);
}

/* tree.lock held. */
static void tell_kernel(struct mount *m, struct folder *f, const struct layout_change *c)
{
	for (int i = 0; i < c->left_count; i++)
		if (c->left[i]->node.lookups > 0)
			notice_entry(m, f, c->left[i]->name);
	for (int i = 0; i < c->altered_count; i++)
		if (c->altered[i]->node.lookups > 0)
			notice_inode(m, c->altered[i]->node.ino);
	if (f->gave_negatives && c->appeared_count > 0) {
		for (int i = 0; i < c->appeared_count; i++)
			notice_entry(m, f, c->appeared[i]->name);
	}
	if (c->left_count + c->appeared_count > 0 && f->node.lookups > 0)
		notice_inode(m, f->node.ino);
}

/* ---- saving names ------------------------------------------------------------------------------------------ */

/* Of one session. The texts stand in one piece, since there may be 100,000 of them: items[].name and document_id are where they begin in
 * there until save() puts the addresses. */
struct saving {
	struct known_entry *items;
	struct saved_texts {
		size_t name, id; /* in texts; id: SIZE_MAX none */
	} * at;
	struct buf texts;
	int count, room;
};

static void saving_release(struct saving *s)
{
	buf_release(&s->texts);
	free(s->at);
	free(s->items);
}

static size_t saving_text(struct saving *s, const char *text)
{
	size_t at = s->texts.len;

	if (!text)
		return SIZE_MAX;
	buf_add_bytes(&s->texts, text, strlen(text) + 1);
	return at;
}

static int saving_put(struct saving *s, const struct known_entry *k)
{
	if (s->count == s->room) {
		int room = s->room ? s->room * 2 : 32;
		struct known_entry *items = realloc(s->items, (size_t)room * sizeof(*items));
		if (!items)
			return -ENOMEM;
		s->items = items;
		struct saved_texts *at = realloc(s->at, (size_t)room * sizeof(*at));
		if (!at)
			return -ENOMEM;
		s->at = at;
		s->room = room;
		if (!s->texts.bytes_max)
			s->texts = BUF(SAVED_TEXTS_MAX);
	}
	size_t before = s->texts.len;
	struct saved_texts at = { saving_text(s, k->name), saving_text(s, k->document_id) };
	if (s->texts.failed) {
		s->texts.failed = false; /* what is whole stays */
		s->texts.len = before;
		return -ENOMEM;
	}
	s->at[s->count] = at;
	s->items[s->count++] = *k;
	return 0;
}

/* tree.lock held. */
static int saving_note(struct saving *s, const struct entry *e)
{
	return saving_put(s, &(struct known_entry){ .ino = e->node.ino,
						    .name = e->name,
						    .document_id = entry_document_id(e),
						    .mtime_ns = e->past->mtime_ns,
						    .attached_wall_ms = e->past->attached_wall_ms,
						    .was_there_before = e->was_there_before,
						    .is_gone = !e->is_shown,
						    .learned_bytes = e->past->learned_bytes });
}

/* The state is going to have it. tree.lock held. */
static int saving_add(struct saving *s, struct entry *e)
{
	int r = saving_note(s, e);

	if (r == 0) {
		e->is_saved = true;
		e->is_saved_gone = !e->is_shown;
	}
	return r;
}

/* The texts move no more. */
static void saving_end(struct saving *s)
{
	for (int i = 0; i < s->count; i++) {
		s->items[i].name = s->texts.data + s->at[i].name;
		s->items[i].document_id = s->at[i].id != SIZE_MAX ? s->texts.data + s->at[i].id : NULL;
	}
}

/* mark: of state_save_entries(). */
static void save(struct mount *m, const char *session_id, struct saving *s, const struct state_mark *mark)
{
	if (s->count == 0)
		return;
	saving_end(s);
	int r = state_save_entries(m->state, session_id, s->items, s->count, mark);
	if (r < 0)
		log_warning("state: %d names of session %s could not be saved (%s): after a remount they may be others",
			    s->count, session_id, strerror(-r));
}

void folder_save_entry(struct mount *m, struct entry *e)
{
	CLEANUP(saving_release) struct saving s = { 0 };
	CLEANUP(text_release) char *id = NULL;

	pthread_mutex_lock(&m->tree.lock);
	int r = saving_add(&s, e);
	id = strdup(e->folder->session.id);
	pthread_mutex_unlock(&m->tree.lock);
	if (r == 0 && id)
		save(m, id, &s, NULL);
}

/* ---- flights ----------------------------------------------------------------------------------------------- */

struct flight {
	struct mount *m;
	struct folder *folder; /* held */
	enum urgency urgency;
	struct transfer transfer; /* tells whether it stands in our own line */
	bool recalls;
	bool is_hurried;  /* somebody waits by now for what was begun in the background; under tree.lock */
	bool lacks_annex; /* what is shown is not beside the listing on the disk */
	int64_t asked_ms; /* clock_now_ms() when the service began to be asked */
	int64_t saved_ms; /* and when names were saved last; 0: the first page's are at once */
	struct saving saving;
};

static uint64_t next_ino(void *arg)
{
	struct mount *m = arg;
	return state_next_ino(m->state);
}

/* tree.lock held. */
static void show_change(struct flight *fl, struct layout_change *c)
{
	for (int i = 0; i < c->appeared_count; i++)
		if (!c->appeared[i]->is_saved)
			(void)saving_add(&fl->saving, c->appeared[i]); /* not saved: named anew after a remount */
	for (int i = 0; i < c->left_count; i++)
		if (!c->left[i]->is_saved)
			(void)saving_add(&fl->saving, c->left[i]);
	tell_kernel(fl->m, fl->folder, c);
	layout_release(&fl->m->tree, c);
}

static void on_page(void *arg, const struct listing *page)
{
	struct flight *fl = arg;
	struct mount *m = fl->m;
	struct layout_change c = { 0 };

	pthread_mutex_lock(&m->tree.lock);
	fl->folder->has_heard = true;
	if (fl->folder->is_shown)
		(void)layout_apply_page(&m->tree, fl->folder, (struct listing *)page, next_ino, m,
					&c); /* the whole follows */
	show_change(fl, &c);
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &fl->folder->waiters, 0);
	/* A long walk is not all that a crash takes: a name that was seen stays its document's. */
	if (clock_now_ms() - fl->saved_ms < SAVE_MS)
		return;
	save(m, fl->folder->session.id, &fl->saving, NULL);
	saving_release(&fl->saving);
	fl->saving = (struct saving){ 0 };
	fl->saved_ms = clock_now_ms();
}

/* What the state remembers of a folder's names, as it is loaded: what may rest in what was listed before is at rest already. */
struct loading {
	struct mount *m;
	struct folder *folder;
	struct resting rest; /* of nothing: no listing is remembered */
	struct saving others;
};

static bool rests(struct loading *l, const struct known_entry *k)
{
	char room[NAME_BYTES_MAX + 1];
	int i = l->rest.of && k->document_id ? listing_find(l->rest.of, k->document_id) : -1;

	if (i < 0 || k->is_gone || k->was_there_before || k->mtime_ns >= 0 || k->attached_wall_ms > 0 ||
	    k->learned_bytes > 0 || resting_has(&l->rest, i) || strcmp(resting_name(l->rest.of, i, room), k->name) != 0)
		return false;
	/* Inode numbers are told apart in the table that this comes from. */
	return resting_find_name(&l->rest, k->name) < 0 &&
	       resting_put(&l->rest, i, (struct rest){ .ino = k->ino, .is_saved = true }) == 0;
}

static void load_other(struct loading *l, const struct known_entry *k)
{
	struct tree *t = &l->m->tree;
	struct folder *f = l->folder;
	SCOPED_LOCK(&t->lock);

	if (!k->document_id || tree_find(t, k->ino) || folder_has(f, k->name) || folder_find_hidden(f, k->name))
		return; /* local ones come from the queue; a name in use has been taken over */
	struct entry *e = folder_add_hidden_entry(t, f, k->ino, k->name, k->document_id);
	if (!e)
		return;
	struct entry_past *past =
		k->mtime_ns >= 0 || k->attached_wall_ms > 0 || k->learned_bytes > 0 ? entry_past(e) : NULL;
	if (past) {
		past->mtime_ns = k->mtime_ns;
		past->attached_wall_ms = k->attached_wall_ms;
		past->learned_bytes = k->learned_bytes;
	}
	e->was_there_before = k->was_there_before;
	e->is_saved = true;
	e->is_saved_gone = k->is_gone;
}

/* Under the state's lock: the tree's comes before that. */
static void note_loaded(void *arg, const struct known_entry *k)
{
	struct loading *l = arg;

	if (!rests(l, k))
		(void)saving_put(&l->others, k); /* without memory it is named anew */
}

/* From what is kept beside the listing: those that rest do so already. */
static void note_kept(void *arg, const struct known_entry *k)
{
	(void)saving_put(&((struct loading *)arg)->others, k);
}

/* What came into the tree before, or meanwhile, goes first. tree.lock held. */
static void drop_conflicts(struct mount *m, struct folder *f, struct resting *rest)
{
	struct node *n;
	struct entry *e;
	int i;

	for (size_t at = 0; (n = index_next(&m->tree.nodes, &at));)
		if ((i = resting_find_ino(rest, n->ino)) >= 0)
			resting_take(rest, i);
	for (size_t at = 0; (e = index_next(&f->names, &at));)
		if ((i = resting_find_name(rest, e->name)) >= 0)
			resting_take(rest, i);
	for (size_t at = 0; (e = index_next(&f->hidden, &at));)
		if ((i = resting_find_name(rest, e->name)) >= 0)
			resting_take(rest, i);
}

/* From what is kept beside the listing, if that is how the state still has it. */
static bool load_annex(struct loading *l, struct listing *found)
{
	size_t len;
	CLEANUP(text_release) char *bytes = listing_take_annex(found, &len);
	int64_t mark = bytes ? state_mark(l->m->state, l->folder->session.id) : 0;

	return mark != 0 && annex_unpack(bytes, len, found, mark, &l->rest, note_kept, l) == 0;
}

/* Names that were shown before this mount began. With `found`, what was listed then, most come to rest in *ret_rest. true: all that it had
 * to know stood beside the listing. */
static bool load_names(struct mount *m, struct folder *f, struct listing *found, struct resting *ret_rest)
{
	struct loading l = { .m = m, .folder = f };

	pthread_mutex_lock(&m->tree.lock);
	bool is_loaded = f->entries_loaded;
	f->entries_loaded = true;
	pthread_mutex_unlock(&m->tree.lock);
	if (is_loaded)
		return false;
	bool had_annex = found && load_annex(&l, found);
	if (found && !had_annex)
		(void)resting_begin(&l.rest, found); /* without memory they are entries */
	if (!had_annex)
		(void)state_load_entries(m->state, f->session.id, note_loaded,
					 &l); /* logged there; names are given anew */
	saving_end(&l.others);
	for (int i = 0; i < l.others.count; i++)
		load_other(&l, &l.others.items[i]);
	saving_release(&l.others);
	if (ret_rest)
		*ret_rest = l.rest;
	return had_annex;
}

static void on_session(void *arg, const struct session *s)
{
	struct flight *fl = arg;
	folder_take_session(fl->m, fl->folder, s);
}

/* A listing that was refused is no longer served. Without memory some of it goes on being shown until it can be had. tree.lock held. */
static void stop_showing(struct mount *m, struct folder *f)
{
	size_t count = 0;

	f->is_withheld = true;
	(void)folder_wake_all(&m->tree, f);
	struct entry *e, **all = malloc((f->names.used + 1) * sizeof(struct entry *));
	for (size_t at = 0; all && (e = index_next(&f->names, &at));)
		if (!entry_is_local(e) && !e->local)
			all[count++] = e;
	for (size_t i = 0; i < count; i++) {
		if (all[i]->node.lookups > 0)
			notice_entry(m, f, all[i]->name);
		folder_hide_entry(&m->tree, all[i], true);
	}
	free(all);
}

/* The session is gone: its folder leaves, unless something waits for it. tree.lock held. */
void folder_leave(struct mount *m, struct folder *f)
{
	f->is_gone = true;
	stop_showing(m, f);
	if (f->local_count > 0 || !f->is_shown)
		return;
	log_info("session %s ('%s') is gone from the service", f->session.id, f->name);
	m->sessions_lack_some |= f->origin == ORIGIN_CONFIGURED;
	notice_entry(m, NULL, f->name);
	tree_hide_folder(&m->tree, f);
}

/* What was listed before this mount began is shown while the service is asked. */
static void recall(struct flight *fl)
{
	struct mount *m = fl->m;
	struct folder *f = fl->folder;
	CLEANUP(listing_release) struct listing *found = NULL;
	struct layout_change c = { 0 };
	struct resting rest = { 0 };

	if (backend_recall_documents(m->backend, f->session.id, INT64_MAX, &found) < 0)
		found = NULL;
	fl->lacks_annex = !load_names(m, f, found, &rest);
	pthread_mutex_lock(&m->tree.lock);
	if (found && f->is_shown && !f->listing) {
		drop_conflicts(m, f, &rest);
		if (rest.of)
			folder_begin_listing(&m->tree, f, &rest);
		if (f->shown_count > 0 && f->node.lookups > 0)
			notice_inode(m, f->node.ino); /* its time is another */
		f->is_withheld |=
			layout_apply(&m->tree, f, found, next_ino, m, &c) < 0; /* the answer under way shows the rest */
		show_change(fl, &c);
	}
	f->is_recalling = false;
	pthread_mutex_unlock(&m->tree.lock);
	resting_release(&rest);
	park_wake(m->park, &f->waiters, 0);
}

/* A flight begun in the background was called off because somebody waits for it now. */
static bool is_hurried(struct flight *fl)
{
	SCOPED_LOCK(&fl->m->tree.lock);
	return fl->is_hurried && !fl->m->is_ending;
}

static bool processes_any(const struct listing *l)
{
	struct document d;

	for (int i = 0; i < listing_count(l); i++) {
		listing_get(l, i, &d);
		if (d.state == STATE_PROCESSING)
			return true;
	}
	return false;
}

/* When it is to be asked about again without anybody looking. tree.lock held. */
static void plan_poll(struct mount *m, struct folder *f, bool has_changed)
{
	int64_t first_ms = m->options->ttl_ms > POLL_MS_MIN ? m->options->ttl_ms : POLL_MS_MIN;

	if (has_changed || f->poll_pause_ms < first_ms)
		f->poll_pause_ms = first_ms;
	else if (f->poll_pause_ms < first_ms * POLL_SLOWER_MAX)
		f->poll_pause_ms *= 2;
	f->poll_ms = clock_now_ms() + f->poll_pause_ms;
	folders_poll_later(m);
}

/* The session's own record, where no listing brought it along. */
static void ask_session(struct mount *m, struct folder *f)
{
	CLEANUP(session_release) struct session s = { 0 };
	struct call call = { .urgency = URGENCY_BACKGROUND, .deadline_ms = clock_now_ms() + WAIT_COLD_MS };

	if (backend_get_session(m->backend, &call, f->session.id, &s) == 0)
		folder_take_session(m, f, &s);
	else
		f->session_asked_ms = clock_now_ms(); /* later again; nothing depends on it */
}

/* The names that were handed out as they came are all there are; error: 0 or why not. tree.lock held. */
static void end_walk(struct folder *f, int error)
{
	struct snapshot *s = f->snapshot;
	struct entry *e;

	if (!s || !s->is_growing)
		return;
	for (size_t at = 0; (e = index_next(&f->names, &at));)
		e->is_in_walk = false;
	for (size_t at = 0; (e = index_next(&f->hidden, &at));)
		e->is_in_walk = false;
	s->is_growing = false;
	s->error = error;
	f->snapshot = NULL;
	snapshot_drop(s);
}

static void note_other(void *arg, const struct entry *e)
{
	struct saving *others = arg;

	(void)saving_note(others, e); /* one that is missing is named anew */
}

/* What is shown of a listing is kept beside it. */
struct keeping {
	struct listing *listing; /* counted; NULL: nothing is kept */
	struct resting rest;
	struct saving others;
	struct state_mark mark;
};

/* tree.lock not held. */
static void keeping_begin(struct flight *fl, struct keeping *ret)
{
	struct mount *m = fl->m;
	struct folder *f = fl->folder;

	if (!fl->lacks_annex)
		return;
	ret->mark.before = state_mark(m->state, f->session.id);
	ret->mark.after = fl->saving.count > 0 ? clock_wall_ns() : ret->mark.before;
	SCOPED_LOCK(&m->tree.lock);
	if (!f->listing || ret->mark.after == 0)
		return;
	if (folder_copy_resting(f, &ret->rest, note_other, &ret->others) == 0)
		ret->listing = listing_ref(f->listing);
}

static void keeping_end(struct keeping *k)
{
	void *annex;
	size_t len;

	if (k->listing) {
		saving_end(&k->others);
		if (annex_pack(&k->rest, k->others.items, k->others.count, k->mark.after, &annex, &len) == 0)
			listing_set_annex(k->listing, annex, len); /* else it is read from the state */
	}
	resting_release(&k->rest);
	saving_release(&k->others);
	listing_unref(k->listing);
}

void folders_settle(struct mount *m)
{
	bool is_more = true;
	int times = 0;

	for (; is_more; times++) {
		SCOPED_LOCK(&m->tree.lock);
		is_more = tree_settle(&m->tree);
	}
	if (times > 1)
		memory_give_back();
}

/* Asks the service, and once more when somebody waits by now for what was begun in the background. */
static int ask(struct flight *fl, struct listing *known, struct fault *ret_fault, struct listing **ret)
{
	struct mount *m = fl->m;
	int64_t deadline_ms = clock_now_ms() + WALK_MS_MAX;
	int r;

	do {
		pthread_mutex_lock(&m->tree.lock);
		fl->asked_ms = clock_now_ms();
		if (fl->is_hurried) {
			fl->is_hurried = false;
			fl->urgency = URGENCY_PERSON;
			atomic_store(&fl->transfer.cancelled, false);
		}
		pthread_mutex_unlock(&m->tree.lock);
		struct call call = { .urgency = fl->urgency,
				     .deadline_ms = deadline_ms,
				     .on_page = known ? NULL : on_page,
				     .on_page_arg = fl,
				     .on_session = on_session,
				     .on_session_arg = fl,
				     .transfer = &fl->transfer };
		r = backend_list_documents(m->backend, &call, fl->folder->session.id, known, ret);
		*ret_fault = call.fault;
	} while (r == -ECANCELED && is_hurried(fl));
	return r;
}

/* Shows what the service answered: r and `found`, or r and the fault. tree.lock held. */
static int show_answer(struct flight *fl, struct listing *found, int r, const struct fault *fault)
{
	struct mount *m = fl->m;
	struct folder *f = fl->folder;
	struct layout_change c = { 0 };

	if (!f->is_shown)
		r = -ENOENT; /* taken off meanwhile */
	bool was_withheld = f->is_withheld;
	f->is_withheld &= r < 0;
	if (r == 0 &&
	    (!f->listing || listing_serial(f->listing) != listing_serial(found) || !f->at_rest.of || was_withheld)) {
		r = layout_apply(&m->tree, f, found, next_ino, m, &c);
		f->is_withheld |= r < 0;
		show_change(fl, &c);
	} else if (r == 0) { /* the same documents, said again */
		folder_renew_listing(f, found);
	} else if (r == -ENOENT && fault->kind == FAULT_GONE) {
		folder_leave(m, f);
	} else if (r == -EACCES) {
		stop_showing(m, f);
	}
	if (r == 0)
		f->is_gone = false;
	return r;
}

static void flight_run(void *arg)
{
	struct flight *fl = arg;
	struct mount *m = fl->m;
	struct folder *f = fl->folder;
	CLEANUP(listing_release) struct listing *found = NULL, *known = NULL;
	struct keeping keeping = { 0 };
	struct fault fault = { 0 };

	if (fl->recalls)
		recall(fl);
	else
		(void)load_names(m, f, NULL, NULL);
	pthread_mutex_lock(&m->tree.lock);
	known = f->listing ? listing_ref(f->listing) : NULL;
	bool asks_session = known && clock_now_ms() - f->session_asked_ms > SESSION_TTL_MS;
	if (!known && !(f->snapshot && f->snapshot->is_growing)) {
		struct snapshot *s = folder_snapshot(f, true);
		snapshot_drop(s); /* the folder's own reference stays */
	}
	f->flight = fl;
	f->has_heard = false;
	pthread_mutex_unlock(&m->tree.lock);
	int r = ask(fl, known, &fault, &found);
	if (r == 0)
		uploads_service_answered(m->uploads);
	bool has_changed = r == 0 && (!known || listing_serial(known) != listing_serial(found));
	bool has_processing = has_changed && processes_any(found);

	pthread_mutex_lock(&m->tree.lock);
	r = show_answer(fl, found, r, &fault);
	f->refresh_error = r;
	f->refreshed_ms = clock_now_ms();
	f->is_refreshing = false;
	f->flight = NULL;
	if (r == 0 && f->forgotten_ms > fl->asked_ms) { /* it was asked before somebody wanted it anew */
		folder_age(f);
		folder_refresh(m, f, URGENCY_PERSON);
	}
	if (r == 0)
		learn_wake(m);
	if (has_changed)
		f->has_processing = has_processing;
	plan_poll(m, f, has_changed);
	end_walk(f, r);
	pthread_mutex_unlock(&m->tree.lock);
	folders_settle(m); /* a large listing has woken many */
	bool is_large = fl->saving.count >= TRIM_COUNT || (r == 0 && listing_count(found) >= TRIM_COUNT);
	fl->lacks_annex |= has_changed || fl->saving.count > 0;
	keeping_begin(fl, &keeping);
	save(m, f->session.id, &fl->saving, &keeping.mark);
	park_wake(m->park, &f->waiters, 0);
	keeping_end(&keeping);
	if (r == 0 && asks_session && clock_now_ms() - f->session_asked_ms > SESSION_TTL_MS)
		ask_session(m, f);
	pthread_mutex_lock(&m->tree.lock);
	node_drop(&m->tree, &f->node);
	pthread_mutex_unlock(&m->tree.lock);
	saving_release(&fl->saving);
	free(fl);
	if (is_large)
		memory_give_back(); /* what reading the pages took */
}

void folder_age(struct folder *f)
{
	f->forgotten_ms = clock_now_ms();
	f->session_asked_ms = 0;
	if (f->refreshed_ms > 0 && f->listing) {
		f->refreshed_ms = 1; /* long ago */
		f->refresh_error = 0;
	} else {
		f->refreshed_ms = 0;
	}
}

void folder_refresh(struct mount *m, struct folder *f, enum urgency urgency)
{
	if (f->is_refreshing && urgency == URGENCY_PERSON && f->flight && f->flight->urgency == URGENCY_BACKGROUND &&
	    !f->flight->is_hurried) {
		/* What waits in the background's line is asked anew in the people's. */
		f->flight->is_hurried = true;
		atomic_store(&f->flight->transfer.cancelled, true);
	}
	if (f->is_refreshing || f->kind != FOLDER_SESSION || m->is_ending)
		return;
	struct flight *fl = calloc(1, sizeof(*fl));
	if (!fl)
		return;
	*fl = (struct flight){ .m = m, .folder = f, .urgency = urgency, .recalls = !f->was_recalled };
	f->is_refreshing = f->was_recalled = true;
	f->is_recalling = fl->recalls;
	node_hold(&f->node);
	if (pool_run(m->flights, flight_run, fl) < 0) {
		f->is_refreshing = f->is_recalling = f->was_recalled = false;
		node_drop(&m->tree, &f->node);
		free(fl);
	}
}

/* ---- polling ----------------------------------------------------------------------------------------------- */

/* Something is under way in it, or somebody looked at it lately. tree.lock held. */
static bool is_of_interest(const struct folder *f, int64_t now)
{
	return f->kind == FOLDER_SESSION && f->listing && !f->is_gone && f->poll_ms > 0 &&
	       ((f->used_ms > 0 && now - f->used_ms < USED_LATELY_MS) || f->has_processing);
}

static void poll_job(void *arg)
{
	struct mount *m = arg;
	int64_t now = clock_now_ms();
	SCOPED_LOCK(&m->tree.lock);

	if (m->poll_planned_ms == 0 || m->poll_planned_ms > now)
		return; /* an earlier one took the place of this timer, and there is another for what is planned now */
	m->poll_planned_ms = 0;
	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown)
		if (is_of_interest(f, now) && f->poll_ms <= now)
			folder_refresh(m, f, URGENCY_BACKGROUND);
	folders_poll_later(m);
}

void folders_poll_later(struct mount *m)
{
	int64_t now = clock_now_ms(), next_ms = INT64_MAX;

	if (m->is_ending)
		return;
	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown)
		if (is_of_interest(f, now) && !f->is_refreshing && f->poll_ms < next_ms)
			next_ms = f->poll_ms;
	if (next_ms == INT64_MAX)
		return; /* the end of a flight, or the next look at a folder, plans again */
	int64_t pause_ms = next_ms - now > 1000 ? next_ms - now : 1000;
	if (m->poll_planned_ms == 0 || m->poll_planned_ms > now + pause_ms)
		m->poll_planned_ms = pool_run_later(m->calls, pause_ms, poll_job, NULL, m) == 0 ? now + pause_ms : 0;
}

bool folder_lacks_budget(const struct folder *f)
{
	if (f->listing)
		return false;
	if (f->is_refreshing)
		return f->flight && !f->has_heard && atomic_load(&f->flight->transfer.waits_for_place);
	return f->refresh_error == -EAGAIN;
}

enum freshness folder_freshness(struct mount *m, struct folder *f, int64_t since_ms, int *ret_error)
{
	int64_t now = clock_now_ms(), age = now - f->refreshed_ms;

	*ret_error = 0;
	if (f->kind == FOLDER_FAILED)
		return LISTING_FRESH;
	bool was_forgotten = now - f->used_ms >= USED_LATELY_MS;
	f->used_ms = now;
	if (was_forgotten)
		folders_poll_later(m);
	if (f->refreshed_ms == 0 && f->listing && f->is_refreshing) /* remembered from before this mount */
		return now - listing_asked_ms(f->listing) < m->options->stale_ms ? LISTING_FRESH : LISTING_STALE;
	if (f->refreshed_ms == 0)
		return LISTING_COLD;
	if (f->refresh_error == 0)
		return age < m->options->ttl_ms || (since_ms > 0 && f->refreshed_ms >= since_ms) ? LISTING_FRESH
												 : LISTING_STALE;
	if ((f->refresh_error == -EACCES || f->is_gone) && age < m->options->ttl_ms) {
		*ret_error = f->refresh_error;
		return LISTING_REFUSED;
	}
	if (!f->listing || f->is_gone || f->refresh_error == -EACCES) {
		if (age >= FAILED_PAUSE_MS)
			return LISTING_COLD;
		*ret_error = f->refresh_error;
		return LISTING_REFUSED;
	}
	/* The service is away: the old answer is served, and asking is paused, up to `stale`. */
	if (now - listing_asked_ms(f->listing) >= m->options->stale_ms) {
		*ret_error = f->refresh_error;
		return age >= FAILED_PAUSE_MS ? LISTING_COLD : LISTING_REFUSED;
	}
	return age < FAILED_PAUSE_MS ? LISTING_FRESH : LISTING_STALE;
}
