/* The folders of sessions: which there are, what they list, and how that is kept up to date.
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
/* ... and when the root is listed, so often and for so many at once. */
#define NAMES_TTL_MS 60000
#define NAMES_AT_ONCE 8
/* 100,000 documents are 75 minutes at 90 requests each, and three times that where three share them. */
#define WALK_MS_MAX (12LL * 60 * 60 * 1000)
#define DISCOVERY_REMEMBERED_MS (7LL * 24 * 3600 * 1000)
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

static bool root_name_is_taken(struct mount *m, const char *name, const char *but_id)
{
	struct folder *f = tree_find_folder_named(&m->tree, name);
	return f && strcmp(f->session.id, but_id) != 0;
}

/* A name for a session in the root. tree.lock held. */
static void choose_folder_name(struct mount *m, const struct session *s, char ret[NAME_BYTES_MAX + 1])
{
	char safe[NAME_BYTES_MAX + 1];

	name_make_safe(s->name ? s->name : "", safe);
	memcpy(ret, safe, sizeof(safe));
	if (root_name_is_taken(m, ret, s->id) && s->qualifier)
		name_qualify(safe, s->qualifier, ret);
	for (int n = 4; root_name_is_taken(m, ret, s->id) && n <= 64; n += 4)
		name_tell_apart(safe, s->id, n, ret);
}

/* The session's record as the service has it now. */
static bool is_equal_text(const char *a, const char *b)
{
	return strcmp(a ? a : "", b ? b : "") == 0;
}

static bool is_equal_session(const struct session *a, const struct session *b)
{
	return is_equal_text(a->name, b->name) && is_equal_text(a->status, b->status) &&
	       is_equal_text(a->formats, b->formats) && is_equal_text(a->template_id, b->template_id) &&
	       (!b->workspace_id || is_equal_text(a->workspace_id, b->workspace_id)) && a->is_closed == b->is_closed &&
	       a->updated_ms == b->updated_ms;
}

/* The folder has the record now. Returns the name it had when that changed (the caller's), else NULL. tree.lock held. */
static char *take_session(struct mount *m, struct folder *f, struct session *fresh)
{
	char name[NAME_BYTES_MAX + 1];
	char *old_name = NULL, *new_name;
	struct session was = f->session;

	if (f->is_shown && !is_equal_text(f->session.name, fresh->name)) {
		choose_folder_name(m, fresh, name);
		new_name = strcmp(name, f->name) != 0 ? strdup(name) : NULL;
		if (new_name) {
			old_name = tree_rename_folder(&m->tree, f, new_name);
			notice_entry(m, NULL, old_name);
			notice_inode(m, INO_ROOT);
		}
	}
	/* The id's text stays where it is: it is read without the lock. */
	f->session = *fresh;
	f->session.id = was.id;
	was.id = fresh->id;
	if (!f->session.workspace_id) {
		f->session.workspace_id = was.workspace_id;
		was.workspace_id = NULL;
	}
	session_release(&was);
	*fresh = (struct session){ 0 };
	return old_name;
}

static void apply_session(struct mount *m, struct folder *f, const struct session *s)
{
	CLEANUP(session_release) struct session fresh = { 0 }, kept = { 0 };
	CLEANUP(text_release) char *old_name = NULL, *name = NULL, *alias = NULL;
	struct known_session k = { .ino = f->node.ino, .account_saw_it = true };

	if (session_copy(s, &fresh) < 0 || session_copy(s, &kept) < 0)
		return;
	pthread_mutex_lock(&m->tree.lock);
	f->session_asked_ms = clock_now_ms();
	if (is_equal_session(&f->session, s)) {
		pthread_mutex_unlock(&m->tree.lock);
		return;
	}
	bool is_renamed = f->is_shown && !is_equal_text(f->session.name, s->name);
	alias = is_renamed ? strdup(f->name) : NULL;
	pthread_mutex_unlock(&m->tree.lock);
	/* Before the new name shows: whoever types the old one right then, or after a crash, is still led there. One that is not needed in the
	 * end stands for the same folder, and a folder's own name goes before it. */
	if (alias)
		(void)state_save_alias(m->state, kept.id, alias); /* logged there */
	pthread_mutex_lock(&m->tree.lock);
	old_name = take_session(m, f, &fresh);
	name = strdup(f->name);
	k.origin = f->origin;
	pthread_mutex_unlock(&m->tree.lock);
	k.id = kept.id;
	k.name = name;
	k.server_name = kept.name;
	k.template_id = kept.template_id;
	k.workspace_id = kept.workspace_id;
	k.status = kept.status;
	k.formats = kept.formats;
	k.created_ms = kept.created_ms;
	k.updated_ms = kept.updated_ms;
	k.is_forgotten = k.origin == ORIGIN_LOOKED_UP;
	if (name && kept.name)
		(void)state_save_session(m->state, m->account, &k); /* logged there */
	if (old_name) {
		if (!is_equal_text(alias, old_name))
			(void)state_save_alias(m->state, kept.id, old_name); /* it changed once more meanwhile */
		log_info("session %s is called '%s' now, and answers to '%s' too", kept.id, name ? name : "", old_name);
	}
}

static void on_session(void *arg, const struct session *s)
{
	struct flight *fl = arg;
	apply_session(fl->m, fl->folder, s);
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
static void leave_if_gone(struct mount *m, struct folder *f)
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

struct naming {
	struct mount *m;
	struct folder *folder; /* held */
};

static void naming_job(void *arg)
{
	struct naming *n = arg;
	struct mount *m = n->m;
	struct folder *f = n->folder;
	struct session s = { 0 };
	struct call call = { .urgency = URGENCY_BACKGROUND, .deadline_ms = clock_now_ms() + WAIT_COLD_MS };

	int r = backend_get_session(m->backend, &call, f->session.id, &s);
	if (r == 0)
		apply_session(m, f, &s);
	session_release(&s);
	pthread_mutex_lock(&m->tree.lock);
	f->session_asked_ms = clock_now_ms();
	f->is_refreshing = false;
	m->names_asked--;
	if (r == -ENOENT && call.fault.kind == FAULT_GONE)
		leave_if_gone(m, f);
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &f->waiters, 0);
	pthread_mutex_lock(&m->tree.lock);
	node_drop(&m->tree, &f->node);
	pthread_mutex_unlock(&m->tree.lock);
	free(n);
}

void folders_refresh_names(struct mount *m)
{
	int64_t now = clock_now_ms(), ttl_ms = m->options->ttl_ms > NAMES_TTL_MS ? m->options->ttl_ms : NAMES_TTL_MS;

	for (struct folder *f = m->tree.first_folder; f && m->names_asked < NAMES_AT_ONCE && m->is_verified;
	     f = f->next_shown) {
		if (f->is_refreshing || f->origin == ORIGIN_LOOKED_UP || now - f->session_asked_ms < ttl_ms ||
		    m->caps->sessions == SESSIONS_LISTED)
			continue;
		struct naming *n = malloc(sizeof(*n));
		if (!n)
			return;
		*n = (struct naming){ m, f };
		node_hold(&f->node);
		f->is_refreshing = true; /* a flight changes the session's record too, and there is one at a time */
		m->names_asked++;
		if (pool_run(m->flights, naming_job, n) < 0) {
			m->names_asked--;
			f->is_refreshing = false;
			node_drop(&m->tree, &f->node);
			free(n);
		}
	}
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
		apply_session(m, f, &s);
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
		leave_if_gone(m, f);
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

/* ---- sessions ---------------------------------------------------------------------------------------------- */

int folder_add_session(struct mount *m, const struct session *session, enum session_origin origin, struct folder **ret)
{
	char name[NAME_BYTES_MAX + 1];
	CLEANUP(text_release) char *name_copy = NULL;
	uint64_t ino = 0;
	CLEANUP(known_session_release) struct known_session before = { 0 };
	struct known_session *all = NULL;
	int count = 0;

	pthread_mutex_lock(&m->tree.lock);
	struct folder *shown = tree_find_folder(&m->tree, session->id);
	if (shown && (shown->origin == ORIGIN_LOOKED_UP) != (origin == ORIGIN_LOOKED_UP) && origin != ORIGIN_LOOKED_UP)
		shown = NULL;
	if (shown)
		node_hold(&shown->node);
	pthread_mutex_unlock(&m->tree.lock);
	if (shown) {
		apply_session(m, shown, session);
		pthread_mutex_lock(&m->tree.lock);
		node_drop(&m->tree, &shown->node); /* its place in the root holds it */
		pthread_mutex_unlock(&m->tree.lock);
		*ret = shown;
		return 0;
	}
	/* One that was here before has its inode number and its name again. */
	if (state_load_sessions(m->state, m->account, &all, &count) == 0) {
		for (int i = 0; i < count; i++) {
			if (strcmp(all[i].id, session->id) == 0) {
				before = all[i];
				all[i] = (struct known_session){ 0 };
			}
			known_session_release(&all[i]);
		}
		free(all);
	}
	ino = before.ino ? before.ino : state_next_ino(m->state);
	if (ino == 0)
		return -EIO;
	pthread_mutex_lock(&m->tree.lock);
	struct folder *f = tree_find_folder(&m->tree, session->id);
	if (!f) {
		choose_folder_name(m, session, name);
		if (before.name && before.server_name &&
		    strcmp(before.server_name, session->name ? session->name : "") == 0 &&
		    !root_name_is_taken(m, before.name, session->id))
			(void)snprintf(name, sizeof(name), "%s", before.name);
		f = tree_add_folder(&m->tree, FOLDER_SESSION, ino, session, name, origin);
		if (f) {
			f->session_asked_ms = clock_now_ms();
			notice_entry(m, NULL, name);
			notice_inode(m, INO_ROOT);
		}
	}
	if (f && f->origin == ORIGIN_LOOKED_UP && origin != ORIGIN_LOOKED_UP) {
		f->origin = origin;
		m->tree.root_shape++;
		notice_inode(m, INO_ROOT);
	}
	name_copy = f ? strdup(f->name) : NULL;
	if (f) {
		ino = f->node.ino;
		origin = f->origin;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!f || !name_copy)
		return -ENOMEM;
	struct known_session k = { .id = session->id,
				   .ino = ino,
				   .name = name_copy,
				   .server_name = session->name,
				   .template_id = session->template_id,
				   .workspace_id = session->workspace_id,
				   .status = session->status,
				   .formats = session->formats,
				   .created_ms = session->created_ms,
				   .updated_ms = session->updated_ms,
				   .origin = origin,
				   .account_saw_it = true,
				   .is_forgotten = origin == ORIGIN_LOOKED_UP };
	int r = state_save_session(m->state, m->account, &k);
	if (r < 0)
		log_warning("state: session %s could not be saved (%s): after a remount it has to be added again",
			    session->id, strerror(-r));
	*ret = f;
	return 0;
}

int folders_load(struct mount *m)
{
	struct known_session *all = NULL;
	int count = 0, r = state_load_sessions(m->state, m->account, &all, &count);

	if (r < 0)
		return r;
	for (int i = 0; i < count; i++) {
		struct known_session *k = &all[i];
		if (!k->is_forgotten && k->account_saw_it) {
			struct session s = { .id = k->id,
					     .name = k->server_name,
					     .template_id = k->template_id,
					     .workspace_id = k->workspace_id,
					     .status = k->status,
					     .formats = k->formats,
					     .created_ms = k->created_ms,
					     .updated_ms = k->updated_ms };
			SCOPED_LOCK(&m->tree.lock);
			if (!tree_find_folder(&m->tree, k->id) && !tree_find_folder_named(&m->tree, k->name) &&
			    !tree_add_folder(&m->tree, FOLDER_SESSION, k->ino, &s, k->name, k->origin))
				r = -ENOMEM;
		}
		known_session_release(k);
	}
	free(all);
	return r;
}

int folder_look_up_session(struct mount *m, const char *id, char **ret_name)
{
	struct session s = { 0 };
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + WAIT_COLD_MS };
	struct folder *f;

	int r = backend_get_session(m->backend, &call, id, &s);
	if (r == 0)
		r = folder_add_session(m, &s, ORIGIN_LOOKED_UP, &f);
	session_release(&s);
	if (r < 0)
		return r;
	SCOPED_LOCK(&m->tree.lock);
	*ret_name = strdup(f->name);
	return *ret_name ? 0 : -ENOMEM;
}

static bool is_known(struct mount *m, const char *id)
{
	SCOPED_LOCK(&m->tree.lock);
	return tree_find_folder(&m->tree, id) != NULL;
}

/* Was it taken off by hand since? Then the configuration brings it back at the next start, and not before. */
static bool was_taken_off(struct mount *m, const char *id)
{
	struct known_session *all = NULL;
	int count = 0;
	bool found = false;

	if (state_load_sessions(m->state, m->account, &all, &count) < 0)
		return false;
	for (int i = 0; i < count; i++) {
		found |= strcmp(all[i].id, id) == 0 && all[i].is_forgotten;
		known_session_release(&all[i]);
	}
	free(all);
	return found;
}

/* The sessions that are named in the configuration and not known yet. false: some could not be had. */
static bool ask_configured(struct mount *m, bool is_first)
{
	bool has_all = true;

	for (int i = 0; i < m->options->sessions.count; i++) {
		CLEANUP(text_release) char *id = NULL;
		CLEANUP(session_release) struct session s = { 0 };
		struct folder *f;
		struct call call = { .urgency = is_first ? URGENCY_PERSON : URGENCY_BACKGROUND,
				     .deadline_ms = clock_now_ms() + 30000 };

		if (backend_find_session_id(m->backend, m->options->sessions.items[i], &id) < 0) {
			if (is_first)
				log_error("session=%s: there is no session id in this", m->options->sessions.items[i]);
			continue;
		}
		if (is_known(m, id) || (!is_first && was_taken_off(m, id)))
			continue;
		int r = backend_get_session(m->backend, &call, id, &s);
		if (r == 0)
			r = folder_add_session(m, &s, ORIGIN_CONFIGURED, &f);
		if (r == -ENOENT && is_first)
			log_warning("session %s is not there, or not for this token", id);
		has_all &= r == 0;
	}
	return has_all;
}

/* Where the service has a list, a folder that it lacks leaves, unless something waits for it. */
static void hide_unlisted(struct mount *m, const struct session_list *all)
{
	SCOPED_LOCK(&m->tree.lock);
	for (struct folder *next, *f = m->tree.first_folder; f; f = next) {
		bool is_listed = false;
		next = f->next_shown;
		for (int i = 0; i < all->count && !is_listed; i++)
			is_listed = strcmp(all->items[i].id, f->session.id) == 0;
		if (is_listed || f->origin == ORIGIN_LOOKED_UP || f->local_count > 0)
			continue;
		notice_entry(m, NULL, f->name);
		notice_inode(m, INO_ROOT);
		tree_hide_folder(&m->tree, f);
	}
}

/* Asks for the list of all sessions, where there is one or where one may be guessed. */
static void ask_list(struct mount *m)
{
	struct session_list all = { 0 };
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + 30000 };
	struct folder *f;

	int r = backend_list_sessions(m->backend, &call, &all);
	if (m->caps->sessions == SESSIONS_GUESSED && (r == 0 || r == -EOPNOTSUPP)) {
		char when[32];
		(void)snprintf(when, sizeof(when), "%lld %d", (long long)clock_wall_ms(), r == 0);
		(void)state_set(m->state, "discovered", when); /* else it is tried again next time */
	}
	if (r < 0)
		return;
	for (int i = 0; i < all.count; i++)
		if (folder_add_session(m, &all.items[i],
				       m->caps->sessions == SESSIONS_LISTED ? ORIGIN_LISTED : ORIGIN_DISCOVERED,
				       &f) < 0)
			break;
	if (m->caps->sessions == SESSIONS_LISTED)
		hide_unlisted(m, &all);
	session_list_release(&all);
}

static bool wants_discovery(struct mount *m)
{
	CLEANUP(text_release) char *text = NULL;
	long long when = 0;
	int found = 0;

	if (m->options->discover == DISCOVER_NO)
		return false;
	pthread_mutex_lock(&m->tree.lock);
	bool has_folders = m->tree.folder_count > 0;
	pthread_mutex_unlock(&m->tree.lock);
	if (m->options->discover == DISCOVER_AUTO && (has_folders || m->options->sessions.count > 0))
		return false;
	/* A guess that failed is not repeated for a week; one that went well is. */
	if (state_get(m->state, "discovered", &text) == 0 && sscanf(text, "%lld %d", &when, &found) == 2 && !found &&
	    clock_wall_ms() - when < DISCOVERY_REMEMBERED_MS)
		return false;
	return true;
}

void folders_ask(struct mount *m)
{
	pthread_mutex_lock(&m->tree.lock);
	bool is_first = !m->sessions_asked;
	pthread_mutex_unlock(&m->tree.lock);
	bool has_all = ask_configured(m, is_first);
	if (m->caps->sessions == SESSIONS_LISTED ||
	    (m->caps->sessions == SESSIONS_GUESSED && is_first && wants_discovery(m)))
		ask_list(m);
	pthread_mutex_lock(&m->tree.lock);
	m->sessions_lack_some = !has_all;
	m->sessions_asked = true;
	m->sessions_refreshing = false;
	m->sessions_refreshed_ms = clock_now_ms();
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &m->session_waiters, 0);
}

static void ask_job(void *arg)
{
	folders_ask(arg);
}

void folders_refresh(struct mount *m)
{
	int64_t age = clock_now_ms() - m->sessions_refreshed_ms;
	bool is_listed = m->caps->sessions == SESSIONS_LISTED;
	bool is_due = !m->sessions_asked || (is_listed && age >= m->options->ttl_ms) ||
		      (m->sessions_lack_some && age >= NAMES_TTL_MS);

	if (m->sessions_refreshing || m->is_ending || !is_due)
		return;
	m->sessions_refreshing = true;
	if (pool_run(m->calls, ask_job, m) < 0)
		m->sessions_refreshing = false;
}
