/* Files on their way: from the spool, through the queue and the upload engine, to a document; or to the failed folder.
 *
 * The engine knows a file by its inode number and says what became of it in local_event(); whoever waits for that (a close, a
 * rename, an unlink) is parked on local->closers and woken with 0 or -errno. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/mount_impl.h"

#define SCRATCH_ROW_DELAY_MS 1000
#define REFUSED_NAME_MS 60000
#define RECENT_MS (10 * 60 * 1000)
#define DETACH_WAIT_MS 10000
#define SPOOL_END_MS 2000
#define BUSY_MS_MAX 20000
#define CLOCKS_DIFFER_MS 60000
#define OTHER_NAMES_MAX 4
/* Among the documents before an upload: there may be others. No service's id. */
#define PRIOR_UNKNOWN "?"
#define REFUSED_TEXT_BYTES_MAX 16384
#define SCRATCH_LIFE_MS (7LL * 24 * 3600 * 1000)

/* ---- names that may be made -------------------------------------------------------------------------------- */

static void add_refused(struct mount *m, const struct folder *f, const char *name)
{
	CLEANUP(buf_release) struct buf text = BUF(REFUSED_TEXT_BYTES_MAX);
	const char *formats = f->session.formats ? f->session.formats : name_rules_formats(m->rules);

	buf_addf(&text, "%s/%s: the service does not take files of this kind. It takes: %s\n", f->name, name, formats);
	if (m->refused_text && strstr(m->refused_text, buf_text(&text) ? buf_text(&text) : ""))
		return;
	if (m->refused_text)
		buf_add(&text, m->refused_text); /* the newest first; what does not fit any more is cut off below */
	if (!buf_text(&text)) {
		buf_clear(&text);
		buf_addf(&text, "%s/%s: the service does not take files of this kind. It takes: %s\n", f->name, name,
			 formats);
	}
	free(m->refused_text);
	m->refused_text = buf_take(&text);
	m->refused_wall_ms = clock_wall_ms();
	log_warning("upload: '%s/%s' is refused: the service does not take files of this kind (it takes: %s)", f->name,
		    name, formats);
	notice_entry(m, NULL, "Not uploaded");
	notice_inode(m, INO_ROOT);
}

int local_check_name(struct mount *m, struct folder *f, const char *name)
{
	int r = name_check(name);

	if (r < 0)
		return r;
	if (m->options->read_only)
		return -EROFS;
	if (f->kind != FOLDER_SESSION)
		return -EPERM;
	if (f->is_gone)
		return -ENOENT;
	if (name_is_scratch(m->rules, name))
		return 0;
	if (f->session.is_closed)
		return -EROFS;
	if (!name_is_accepted(m->rules, f->session.formats, name)) {
		add_refused(m, f, name);
		return -EOPNOTSUPP;
	}
	return 0;
}

/* ---- rows -------------------------------------------------------------------------------------------------- */

/* What the queue keeps of e. tree.lock held; texts are copies. */
static int make_item(struct mount *m, const struct entry *e, const struct folder *f, const char *name,
		     enum file_kind kind, struct queue_item *ret)
{
	const struct local *l = e->local;
	*ret = (struct queue_item){ .ino = e->node.ino,
				    .session_id = strdup(f->session.id),
				    .session_name = strdup(f->name),
				    .name = strdup(name),
				    .spool_id = spool_id(l->spool),
				    .mtime_ns = l->mtime_ns,
				    .kind = kind,
				    .account = strdup(m->account),
				    .queued_wall_ms = clock_wall_ms(),
				    .error = l->write_error };
	if (l->supersedes_id)
		ret->supersedes_id = strdup(l->supersedes_id);
	if (ret->session_id && ret->session_name && ret->name && ret->account &&
	    (!l->supersedes_id || ret->supersedes_id))
		return 0;
	queue_item_release(ret);
	return -ENOMEM;
}

int local_save(struct mount *m, struct entry *e)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };
	CLEANUP(spool_release) struct spool *s = NULL;
	bool needs_row = false;

	pthread_mutex_lock(&m->tree.lock);
	if (e->local)
		s = spool_ref(e->local->spool);
	pthread_mutex_unlock(&m->tree.lock);
	int r = s ? spool_sync(s) : 0;
	if (!s || r < 0)
		return r;
	SCOPED_LOCK(&m->rows_lock); /* what is sent meanwhile has a row of its own, which must not be written over */
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	if (l && l->spool == s && e->is_shown && !l->is_submitted && !entry_document_id(e) && l->kind != FILE_FAILED) {
		needs_row = true;
		r = make_item(m, e, e->folder, e->name, FILE_SCRATCH, &item);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!needs_row || r < 0)
		return r;
	item.size_bytes = spool_size(s);
	r = queue_put(m->queue, &item);
	pthread_mutex_lock(&m->tree.lock);
	bool is_wanted = e->local && e->is_shown; /* it may have been removed meanwhile */
	if (is_wanted) {
		e->local->has_row = r == 0;
		e->local->saved_wall_ms = item.queued_wall_ms;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!is_wanted)
		(void)queue_remove(m->queue, item.ino);
	return r;
}

struct entry_job {
	struct mount *m;
	struct entry *entry; /* held */
};

static void entry_job_free(void *arg)
{
	struct entry_job *j = arg;
	pthread_mutex_lock(&j->m->tree.lock);
	node_drop(&j->m->tree, &j->entry->node);
	pthread_mutex_unlock(&j->m->tree.lock);
	free(j);
}

/* tree.lock held. */
static struct entry_job *entry_job_new(struct mount *m, struct entry *e)
{
	struct entry_job *j = malloc(sizeof(*j));
	if (!j)
		return NULL;
	*j = (struct entry_job){ m, e };
	node_hold(&e->node);
	return j;
}

static void save_job(void *arg)
{
	struct entry_job *j = arg;
	int r = local_save(j->m, j->entry);
	if (r < 0)
		log_warning("spool: a scratch file could not be saved for the next start: %s", strerror(-r));
	entry_job_free(j);
}

void local_save_later(struct mount *m, struct entry *e)
{
	struct entry_job *j = entry_job_new(m, e);
	/* Most scratch files are renamed or removed within moments, and need no row at all. */
	if (j && pool_run_later(m->disk, SCRATCH_ROW_DELAY_MS, save_job, entry_job_free, j) < 0) {
		node_drop(&m->tree, &e->node);
		free(j);
	}
}

void local_save_all(struct mount *m)
{
	struct entry **list = NULL;
	int count = 0;

	pthread_mutex_lock(&m->tree.lock);
	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown) {
		struct entry *e;
		for (size_t at = 0; f->local_count > 0 && (e = index_next(&f->names, &at));) {
			if (!e->local || e->local->has_row || e->local->is_submitted || entry_document_id(e))
				continue;
			struct entry **grown = realloc(list, (size_t)(count + 1) * sizeof(*list));
			if (!grown)
				continue;
			list = grown;
			list[count++] = e;
			node_hold(&e->node);
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	for (int i = 0; i < count; i++) {
		if (local_save(m, list[i]) < 0)
			log_warning("spool: '%s' could not be saved for the next start", list[i]->name);
		SCOPED_LOCK(&m->tree.lock);
		node_drop(&m->tree, &list[i]->node);
	}
	free(list);
}

struct drop_job {
	struct mount *m;
	uint64_t ino, sent_spool_id;
	struct spool *spool;
};

static void drop_run(void *arg)
{
	struct drop_job *j = arg;
	int r = uploads_cancel(j->m->uploads, j->ino, false); /* a failed file is still the engine's */
	if (r == -ENOENT)
		r = queue_remove(j->m->queue, j->ino); /* always: one may be on its way from local_save() */
	if (r < 0 && r != -EINPROGRESS)                /* that one ends its row itself */
		log_warning("queue: the row of a removed file stays; it is set aside at the next start");
	if (j->sent_spool_id && j->sent_spool_id != spool_id(j->spool))
		spool_unlink_id(j->m->spool_dir, j->sent_spool_id);
	spool_unlink(j->spool);
	spool_unref(j->spool);
	free(j);
}

/* tree.lock held. */
static void drop_later(struct mount *m, const struct entry *e)
{
	struct drop_job *j = malloc(sizeof(*j));
	if (!j)
		return;
	*j = (struct drop_job){ m, e->node.ino, e->local->sent_spool_id, spool_ref(e->local->spool) };
	if (pool_run(m->disk, drop_run, j) < 0) {
		spool_unref(j->spool);
		free(j);
	}
}

void local_drop(struct mount *m, struct entry *e)
{
	e->folder->local_count--;
	drop_later(m, e);
	folder_hide_entry(&m->tree, e, false);
}

int64_t local_expire(struct mount *m)
{
	int64_t now = clock_wall_ms(), next_ms = SCRATCH_LIFE_MS;
	SCOPED_LOCK(&m->rows_lock); /* nobody begins to send one meanwhile */
	SCOPED_LOCK(&m->tree.lock);

	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown) {
		struct entry *e, *due = NULL;
		do {
			due = NULL;
			for (size_t at = 0; f->local_count > 0 && !due && (e = index_next(&f->names, &at));) {
				struct local *l = e->local;
				if (!l || l->kind != FILE_SCRATCH || !l->has_row || l->handles > 0 || l->pins > 0 ||
				    l->is_submitted || l->is_held_back || l->counted_out ||
				    !name_is_scratch(m->rules, e->name))
					continue;
				if (l->saved_wall_ms == 0) /* the engine wrote its row, when it gave it back */
					l->saved_wall_ms = now;
				int64_t left_ms = l->saved_wall_ms + SCRATCH_LIFE_MS - now;
				if (left_ms <= 0)
					due = e;
				else if (left_ms < next_ms)
					next_ms = left_ms;
			}
			if (due) {
				log_info("spool: scratch file '%s' was last written a week ago and goes", due->name);
				notice_entry(m, f, due->name);
				local_drop(m, due);
			}
		} while (due);
	}
	return next_ms;
}

void local_free_if_done(struct entry *e)
{
	struct local *l = e->local;
	if (!l || !l->counted_out || l->is_dirty || l->is_submitted || l->handles > 0 || l->pins > 0)
		return;
	e->local = NULL;
	spool_unlink(l->spool); /* in the content cache, most times */
	local_free(l);
}

struct local *local_pin(struct entry *e)
{
	e->local->pins++;
	return e->local;
}

void local_unpin(struct entry *e, struct local *l)
{
	l->pins--;
	if (e->local == l)
		local_free_if_done(e);
	else if (l->pins == 0)
		local_free(l);
}

void local_release(struct entry *e)
{
	struct local *l = e->local;
	e->local = NULL;
	if (l->pins == 0)
		local_free(l);
}

int local_remove(struct mount *m, struct entry *e)
{
	struct tree *t = &m->tree;

	CLEANUP(text_release) char *old_id = NULL, *old_sha256 = NULL, *home_name = NULL;

	pthread_mutex_lock(&m->rows_lock);
	pthread_mutex_lock(&t->lock);
	struct folder *f = e->folder;
	bool is_local = e->local && !e->local->counted_out && e->is_shown;
	struct local *l = is_local ? local_pin(e) : NULL;
	bool is_submitted = is_local && l->is_submitted;
	if (is_submitted)
		l->is_unlinked = true;
	if (is_local && l->kind == FILE_FAILED && l->home_name)
		home_name = strdup(l->home_name);
	/* An earlier version that this open file sent goes along. */
	if (is_local && entry_document_id(e) && !e->was_there_before && m->options->remove != REMOVE_NO &&
	    m->caps->detaches && e->past->attached_ms > 0 && clock_now_ms() - e->past->attached_ms < RECENT_MS) {
		old_id = strdup(entry_document_id(e));
		old_sha256 = old_id ? local_copy_sha256(f, old_id) : NULL;
	}
	node_hold(&f->node);
	pthread_mutex_unlock(&t->lock);
	if (!is_local) {
		pthread_mutex_unlock(&m->rows_lock);
		pthread_mutex_lock(&t->lock);
		node_drop(t, &f->node);
		pthread_mutex_unlock(&t->lock);
		return -ENOENT;
	}
	int r = is_submitted ? uploads_cancel(m->uploads, e->node.ino, false) : 0;
	pthread_mutex_lock(&t->lock);
	if (r == -EINPROGRESS && l->is_submitted && e->is_shown) {
		/* Its last step was sent: the name goes now, and what comes of it is taken back when it is known. */
		node_hold(&e->node);
		l->is_taken_back = true;
		folder_hide_entry(t, e, false);
		r = 0;
	} else if ((r == 0 || r == -ENOENT) && e->is_shown && e->local == l && !l->counted_out) {
		l->is_submitted = l->is_unlinked = false;
		local_drop(m, e);
		r = 0;
	} else if (r == 0 || r == -ENOENT || r == -EINPROGRESS) {
		r = 0; /* local_event() has seen that it was unlinked, and took care of it */
	} else {
		l->is_unlinked = false;
	}
	pthread_mutex_unlock(&t->lock);
	pthread_mutex_unlock(&m->rows_lock);
	if (r == 0)
		park_wake(m->park, &l->closers, -ECANCELED);
	if (r == 0 && old_id && local_detach(m, f, old_id, old_sha256, clock_now_ms() + DETACH_WAIT_MS) < 0)
		log_warning("document %s, an earlier version of a removed file, could not be detached", old_id);
	pthread_mutex_lock(&t->lock);
	local_unpin(e, l);
	/* The kernel may remember the inode for long under another name; its room on the disk is free now. */
	if (e->local && !e->is_shown && !e->local->is_taken_back && !e->local->is_submitted && e->local->handles == 0 &&
	    e->local->pins == 0)
		local_release(e);
	struct folder *home = home_name ? tree_find_folder(t, f->session.id) : NULL;
	if (home)
		notice_entry(m, home, home_name); /* where it was refused the kernel still has it */
	node_drop(t, &f->node);
	pthread_mutex_unlock(&t->lock);
	return r;
}

bool local_wants_sending(struct mount *m, const struct entry *e)
{
	const struct local *l = e->local;
	if (!l || !e->is_shown || !l->is_dirty || l->write_error || name_is_scratch(m->rules, e->name))
		return false;
	return l->copy_of || spool_size(l->spool) > 0;
}

/* ---- sending ----------------------------------------------------------------------------------------------- */

/* The engine may still be at the last event of the version before: moments. */
static int submit(struct mount *m, const struct queue_item *item, bool somebody_waits, int64_t not_before_ms)
{
	static const struct timespec pause = { .tv_nsec = 5000000 };
	int64_t end_ms = clock_now_ms() + BUSY_MS_MAX;
	int r;

	while ((r = uploads_submit(m->uploads, item, somebody_waits, not_before_ms)) == -EBUSY &&
	       clock_now_ms() < end_ms)
		(void)nanosleep(&pause, NULL);
	return r;
}

/* Its bytes are a document's. tree.lock held. */
static void count_out(struct entry *e)
{
	if (e->local->counted_out)
		return;
	e->local->counted_out = true;
	e->folder->local_count--;
}

static bool is_being_detached(const struct mount *m, const char *session_id, const char *sha256)
{
	for (const struct detaching *d = m->detaching; d && m->caps->reuses_bytes; d = d->next)
		if (d->sha256 && strcmp(d->sha256, sha256) == 0 && strcmp(d->folder->session.id, session_id) == 0)
			return true;
	return false;
}

void local_detach_begin(struct mount *m, struct detaching *d, const struct folder *f, const char *sha256)
{
	*d = (struct detaching){ m->detaching, f, sha256 };
	m->detaching = d;
}

void local_detach_end(struct mount *m, struct detaching *d)
{
	struct detaching **at = &m->detaching;

	while (*at != d)
		at = &(*at)->next;
	*at = d->next;
}

/* A detach has a deadline, and so has this. */
void local_detach_wait(struct mount *m, const char *session_id, const char *sha256)
{
	static const struct timespec pause = { .tv_nsec = 20000000 };

	for (bool waits = true; waits;) {
		pthread_mutex_lock(&m->tree.lock);
		waits = is_being_detached(m, session_id, sha256);
		pthread_mutex_unlock(&m->tree.lock);
		if (waits)
			(void)nanosleep(&pause, NULL);
	}
}

/* Puts the version that item stands for into the engine, in place of the one before. l is pinned. As local_submit(). */
static int submit_version(struct mount *m, struct entry *e, struct local *l, struct queue_item *item, bool is_moved,
			  bool somebody_waits, int64_t not_before_ms)
{
	SCOPED_LOCK(&m->rows_lock);
	for (bool is_free = false; !is_free;) {
		pthread_mutex_lock(&m->tree.lock);
		bool is_wanted = e->is_shown && e->local == l, is_submitted = l->is_submitted;
		bool is_same = !is_moved && strcmp(l->sent_sha256, item->sha256) == 0;
		/* The version before this one is a document by now, of the same bytes. */
		bool is_there = is_wanted && !is_submitted && is_same && entry_document_id(e);
		/* What was written since is another version. */
		if (is_there && spool_id(l->spool) == item->spool_id) {
			l->is_dirty = false;
			count_out(e);
		}
		/* Another close was faster with what was written later: spools are numbered as they are made. */
		bool is_old = l->sent_spool_id > item->spool_id;
		pthread_mutex_unlock(&m->tree.lock);
		if (!is_wanted || is_there)
			return 1;
		if (is_old)
			return is_submitted ? 0 : 1;
		if (!is_submitted)
			break;
		if (is_same && uploads_join(m->uploads, item->ino) == 0) {
			SCOPED_LOCK(&m->tree.lock);
			if (spool_id(l->spool) == item->spool_id)
				l->is_dirty = false;
			return 0;
		}
		/* Its row stays until the next version's takes its place. */
		int r = uploads_cancel(m->uploads, item->ino, true);
		if (r < 0 && r != -EINPROGRESS && r != -ENOENT)
			return r;
		SCOPED_LOCK(&m->tree.lock);
		/* What was sent becomes a document first; then this version takes its place. local_event() may have been faster. */
		if (r == -EINPROGRESS && l->is_submitted) {
			l->sends_again = true;
			return 0;
		}
		is_free = r == 0 || (r == -ENOENT && l->is_submitted);
	}
	pthread_mutex_lock(&m->tree.lock);
	if (is_being_detached(m, item->session_id, item->sha256)) {
		pthread_mutex_unlock(&m->tree.lock);
		return -EALREADY;
	}
	/* What an open file sent may be superseded by its own successor. */
	const char *document_id = item->supersedes_id || e->was_there_before ? NULL : entry_document_id(e);
	if (document_id)
		item->supersedes_id = strdup(document_id);
	bool is_ready = !document_id || item->supersedes_id;
	uint64_t old_spool = l->sent_spool_id;
	const enum file_kind old_kind = l->kind;
	const bool had_row = l->has_row;
	if (is_ready) {
		l->is_submitted = l->has_row = true;
		if (spool_id(l->spool) == item->spool_id)
			l->is_dirty = false;
		l->kind = FILE_PENDING;
		l->has_verdict = false;
		l->sent_spool_id = item->spool_id;
		memcpy(l->sent_sha256, item->sha256, sizeof(l->sent_sha256));
		if (l->counted_out) {
			l->counted_out = false;
			e->folder->local_count++;
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	int r = is_ready ? submit(m, item, somebody_waits, not_before_ms) : -ENOMEM;
	if (r == 0) {
		if (old_spool && old_spool != item->spool_id)
			spool_unlink_id(m->spool_dir, old_spool);
		return 0;
	}
	log_error("queue: '%s' could not be queued: %s", item->name, strerror(-r));
	SCOPED_LOCK(&m->tree.lock);
	l->is_submitted = false;
	l->is_dirty = true;
	l->sent_spool_id = old_spool;
	if (is_moved) { /* then the rename fails, and this is what it was */
		l->kind = old_kind;
		l->has_row = had_row;
	}
	return r;
}

int local_submit(struct mount *m, struct entry *e, struct folder *to, const char *name, bool somebody_waits,
		 int64_t not_before_ms)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };
	CLEANUP(spool_release) struct spool *s = NULL;
	struct local *l = NULL;

	pthread_mutex_lock(&m->tree.lock);
	int r = e->local ? make_item(m, e, to ? to : e->folder, name ? name : e->name, FILE_PENDING, &item) : -ENOENT;
	if (r == 0 && e->local->write_error) {
		log_warning("upload: '%s' is not sent: it could not be written whole", item.name);
		r = -EIO;
	}
	if (r == 0) {
		l = local_pin(e);
		s = spool_ref(l->spool);
		l->is_frozen |= spool_size(s) > 0;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (r < 0)
		return r;
	if (spool_size(s) == 0) {
		r = 1;
	} else {
		spool_freeze(s);
		r = spool_sync(s);
		if (r == 0)
			r = spool_finish(s, item.sha256);
		if (r < 0)
			log_error("spool: '%s' could not be brought to disk: %s", item.name, strerror(-r));
		item.size_bytes = spool_size(s);
		while (r == 0 &&
		       (r = submit_version(m, e, l, &item, to != NULL, somebody_waits, not_before_ms)) == -EALREADY) {
			local_detach_wait(m, item.session_id, item.sha256);
			r = 0;
		}
	}
	SCOPED_LOCK(&m->tree.lock);
	local_unpin(e, l);
	return r;
}

/* ---- becoming a document ----------------------------------------------------------------------------------- */

static void leave_document(struct entry *e)
{
	entry_leave_index(e);
	entry_clear_id(e);
	listing_unref(e->own);
	e->own = NULL;
}

int local_become_known(struct mount *m, struct entry *e, struct listing *l, int at)
{
	struct document d;
	struct folder *f = e->folder;
	(void)m;

	listing_get(l, at, &d);
	char *id = strdup(d.id);
	if (!id)
		return -ENOMEM;
	leave_document(e);
	e->document_id = id;
	e->own = listing_ref(l);
	e->own_at = at;
	e->is_saved = false;
	if (index_put(&f->unlisted, e) < 0) {
		entry_clear_id(e);
		return -ENOMEM;
	}
	return 0;
}

/* Is the document there because this mount put it there? tree.lock held. */
static bool is_ours(const struct folder *f, const char *document_id)
{
	struct entry *e;
	int at = f->listing ? listing_find(f->listing, document_id) : -1;

	/* One at rest is not: nothing else is known of it. */
	for (e = at >= 0 ? resting_awake(&f->at_rest, at) : NULL; e; e = e->same)
		if (e->past->attached_wall_ms > 0 && !e->was_there_before)
			return true;
	for (size_t i = 0; (e = index_next(&f->unlisted, &i));)
		if (strcmp(e->document_id, document_id) == 0 && e->past->attached_wall_ms > 0 && !e->was_there_before)
			return true;
	return false;
}

int local_become_document(struct mount *m, struct entry *e, struct listing *document, bool was_there_before)
{
	struct document d;

	listing_get(document, 0, &d);
	was_there_before = was_there_before && !is_ours(e->folder, d.id); /* another name of what we brought */
	int r = local_become_known(m, e, document, 0);
	if (r < 0)
		return r;
	e->was_there_before = was_there_before;
	struct entry_past *past = entry_past(e);
	if (!past)
		return -ENOMEM;
	past->attached_wall_ms = clock_wall_ms();
	past->attached_ms = clock_now_ms();
	if (e->local)
		past->mtime_ns = e->local->mtime_ns;
	return 0;
}

int local_move_document(struct mount *m, struct entry *e, struct folder *to, const char *name, struct listing *attached,
			bool was_there)
{
	leave_document(e);
	int r = folder_rename_entry(&m->tree, e, to, name);
	return r < 0 ? r : local_become_document(m, e, attached, was_there);
}

void local_forget_bytes(struct mount *m, struct entry *e)
{
	struct local *l = e->local;

	drop_later(m, e);
	l->is_dirty = l->is_submitted = false;
	l->is_frozen = true;
	l->counted_out = true;
	local_free_if_done(e);
}

bool local_has_twin(struct folder *f, const struct entry *but, const char *sha256)
{
	struct entry *e;
	struct document d;
	for (size_t at = 0; (e = index_next(&f->names, &at));) {
		if (e == but || !e->local)
			continue;
		if (e->local->is_submitted && strcmp(e->local->sent_sha256, sha256) == 0)
			return true;
		if (!e->local->copy_of) /* one that is attached by its id, as soon as it is closed */
			continue;
		listing_get(e->local->copy_of, e->local->copy_at, &d);
		if (d.sha256 && strcmp(d.sha256, sha256) == 0)
			return true;
	}
	return false;
}

int local_detach(struct mount *m, struct folder *f, const char *document_id, const char *sha256, int64_t deadline_ms)
{
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = deadline_ms };

	pthread_mutex_lock(&m->tree.lock);
	bool may_be_its = sha256 && m->caps->reuses_bytes; /* else each upload is a document of its own */
	bool is_wanted = folder_count_names(f, document_id) > 0 || (may_be_its && local_has_twin(f, NULL, sha256));
	struct detaching detaching;
	if (!is_wanted)
		local_detach_begin(m, &detaching, f, sha256);
	pthread_mutex_unlock(&m->tree.lock);
	if (is_wanted)
		return 0;
	int r = backend_detach(m->backend, &call, f->session.id, document_id);
	SCOPED_LOCK(&m->tree.lock);
	local_detach_end(m, &detaching);
	return r == -ENOENT ? 0 : r;
}

char *local_copy_sha256(const struct folder *f, const char *document_id)
{
	struct document d = { 0 };
	int at = f->listing ? listing_find(f->listing, document_id) : -1;
	const struct entry *e = folder_find_unlisted(f, document_id);

	if (at >= 0)
		listing_get(f->listing, at, &d);
	else if (e)
		(void)entry_document(e, &d); /* false: its hash is not known */
	return d.sha256 ? strdup(d.sha256) : NULL;
}

int local_may_remove(struct mount *m, struct entry *e)
{
	if (m->options->read_only)
		return -EROFS;
	if (m->options->remove == REMOVE_YES && m->caps->detaches)
		return 0;
	const char *id = entry_document_id(e);
	bool is_one_of_several = id && folder_count_names(e->folder, id) > 1;
	if (m->options->remove == REMOVE_RECENT && m->caps->detaches && e->past->attached_wall_ms > 0 &&
	    (!e->was_there_before || is_one_of_several)) {
		int64_t age = clock_wall_ms() - e->past->attached_wall_ms;
		if (age >= 0 && age < RECENT_MS)
			return 0;
	}
	if (!m->removal_explained)
		log_warning("'%s' is not removed: remove=%s takes away %s; remove=yes allows it", e->name,
			    m->options->remove == REMOVE_NO ? "no" : "recent",
			    m->options->remove == REMOVE_NO ? "nothing"
							    : "only what this mount attached in the last 10 minutes");
	m->removal_explained = true;
	return -EPERM;
}

static bool has_word(const char *words, const char *word)
{
	size_t n = strlen(word);
	for (const char *at = words; at && (at = strstr(at, word)); at += n)
		if ((at == words || at[-1] == ' ') && (at[n] == '\0' || at[n] == ' '))
			return true;
	return false;
}

static void resend_job(void *arg)
{
	struct entry_job *j = arg;
	int r = local_submit(j->m, j->entry, NULL, NULL, true, 0);
	pthread_mutex_lock(&j->m->tree.lock);
	struct local *l = r != 0 && j->entry->local ? local_pin(j->entry) : NULL;
	pthread_mutex_unlock(&j->m->tree.lock);
	if (l) {
		park_wake(j->m->park, &l->closers, r < 0 ? r : 0);
		SCOPED_LOCK(&j->m->tree.lock);
		local_unpin(j->entry, l);
	}
	entry_job_free(j);
}

void local_send_later(struct mount *m, struct entry *e)
{
	struct entry_job *j = entry_job_new(m, e);
	if (j && pool_run(m->disk, resend_job, j) < 0) {
		node_drop(&m->tree, &e->node);
		free(j);
	}
}

struct spool_end {
	char *dir;
	uint64_t id;
};

static void spool_end_run(void *arg)
{
	struct spool_end *end = arg;
	spool_unlink_id(end->dir, end->id);
	free(end->dir);
	free(end);
}

/* The engine removes a file's row after its event: until then the bytes stay, or a crash between the two would leave a row
 * without them. */
static void unlink_spool_later(struct mount *m, uint64_t id)
{
	struct spool_end *end = malloc(sizeof(*end));

	if (!end)
		return; /* found without a row, and set aside, at the next start */
	*end = (struct spool_end){ strdup(m->spool_dir), id };
	if (!end->dir || pool_run_later(m->disk, SPOOL_END_MS, spool_end_run, spool_end_run, end) < 0)
		spool_end_run(end);
}

/* The spool's bytes are the document's in the content cache, too, so that reading it back asks nobody. */
static void keep_content(struct mount *m, struct spool *s, const struct document *d, const char *sha256)
{
	CLEANUP(buf_release) struct buf path = BUF(4096), second = BUF(4096);
	char key[129];

	read_content_key(d, key);
	spool_path(s, &path);
	if (buf_text(&path))
		buf_addf(&second, "%s.kept", buf_text(&path));
	/* Bytes that the service says it changed are fetched like any others. */
	if ((d->sha256 && strcmp(d->sha256, sha256) != 0) || !buf_text(&path) || !buf_text(&second) ||
	    link(buf_text(&path), buf_text(&second)) < 0)
		return;
	if (content_adopt(m->content, buf_text(&second), key) < 0)
		(void)unlink(buf_text(&second)); /* a second name of bytes that go anyway */
}

/* local_remove()'s hold of a file whose outcome was not known. The caller has one of its own. */
static void drop_taken_back(struct mount *m, struct entry *e)
{
	if (!e->local->is_taken_back)
		return;
	e->local->is_taken_back = false;
	node_drop(&m->tree, &e->node);
}

/* Was the document in the session before the upload began? tree.lock held. */
static bool was_there_before(const struct folder *f, const struct queue_item *item, const struct document *d)
{
	if (!item->prior_ids || is_ours(f, d->id))
		return false;
	/* When the session had not been listed by then: an old document may have been. */
	return has_word(item->prior_ids, d->id) || (has_word(item->prior_ids, PRIOR_UNKNOWN) && d->created_ms >= 0 &&
						    d->created_ms < item->queued_wall_ms - CLOCKS_DIFFER_MS);
}

/* A listing that was faster than the upload's answer showed the document under the service's own name: the user's is the one it keeps.
 * Returns how many inode numbers were filled in. tree.lock held. */
static int hide_other_names(struct mount *m, struct folder *f, struct entry *but, const char *id,
			    uint64_t inos[OTHER_NAMES_MAX])
{
	struct entry *others[OTHER_NAMES_MAX], *e;
	int n = 0, at = f->listing ? listing_find(f->listing, id) : -1;

	for (e = at >= 0 ? folder_wake(&m->tree, f, at) : NULL; e && n < OTHER_NAMES_MAX; e = e->same)
		if (e != but && !e->local && e->past->attached_wall_ms == 0 && e->is_shown)
			others[n++] = e;
	for (size_t i = 0; n < OTHER_NAMES_MAX && (e = index_next(&f->unlisted, &i));)
		if (e != but && !e->local && e->past->attached_wall_ms == 0 && e->is_shown &&
		    strcmp(e->document_id, id) == 0)
			others[n++] = e;
	for (int i = 0; i < n; i++) {
		inos[i] = others[i]->node.ino;
		notice_entry(m, f, others[i]->name);
		folder_hide_entry(&m->tree, others[i], false);
	}
	return n;
}

/* An upload that is there, and what has to follow once the tree is let go. */
struct arrival {
	struct folder *folder; /* held: where the file belongs */
	struct document d;     /* borrows from the answer */
	bool was_there;        /* the document was in the session before the upload began */
	bool was_unpacked;     /* an archive has become others, under names of their own: nothing stands for it */
	bool was_unlinked;     /* while its last step was under way */
	bool is_removed, sends_again;
	struct spool *sent;               /* the bytes that were sent, if the file still has them */
	char *old_id, *old_sha256;        /* the document it takes the place of */
	uint64_t hidden[OTHER_NAMES_MAX]; /* inode numbers of other names of it */
	int hidden_count;
};

static void arrival_release(struct arrival *a)
{
	spool_unref(a->sent);
	free(a->old_id);
	free(a->old_sha256);
}

/* tree.lock held. */
static void note_superseded(const struct entry *e, const struct queue_item *item, struct arrival *a)
{
	if (!item->supersedes_id || strcmp(item->supersedes_id, a->d.id) == 0)
		return;
	a->old_id = strdup(item->supersedes_id);
	a->old_sha256 = local_copy_sha256(e->folder, item->supersedes_id);
}

/* After a rename that its caller no longer waits for the file has its final name from now on. Returns the folder it is in.
 * tree.lock held. */
static struct folder *take_final_name(struct mount *m, struct entry *e, const struct queue_item *item)
{
	struct tree *t = &m->tree;
	struct folder *f = e->folder, *home = tree_find_folder(t, item->session_id);
	struct entry *there = home ? folder_find(t, home, item->name) : NULL;
	const char *there_id = there && there != e ? entry_document_id(there) : NULL;

	if (e->is_shown && there_id && item->supersedes_id && strcmp(there_id, item->supersedes_id) == 0)
		folder_hide_entry(t, there, false); /* it is replaced */
	if (!e->is_shown || !home || (home == f && strcmp(e->name, item->name) == 0) || folder_has(home, item->name))
		return f;
	CLEANUP(text_release) char *old_name = strdup(e->name);
	if (folder_rename_entry(t, e, home, item->name) < 0)
		return f;
	if (old_name)
		notice_entry(m, f, old_name);
	notice_entry(m, home, item->name);
	f->local_count--;
	home->local_count++;
	return home;
}

/* One that was removed meanwhile is in none of its folder's indexes, and must not come into one: it is freed soon.
 * tree.lock held. */
static void stand_for_document(struct mount *m, struct entry *e, const struct queue_item *item,
			       struct listing *document, struct arrival *a)
{
	bool was_ours = is_ours(a->folder, a->d.id);

	a->was_there = was_there_before(a->folder, item, &a->d);
	a->was_unpacked = document_extra(&a->d, "parent") != NULL;
	if (a->was_unpacked || !e->is_shown)
		return;
	(void)local_become_document(m, e, document, a->was_there); /* without memory the next listing names it */
	if (!a->was_there && !was_ours)
		a->hidden_count = hide_other_names(m, a->folder, e, a->d.id, a->hidden);
}

/* The local file has its verdict. tree.lock held. */
static void end_sending(struct entry *e, const struct queue_item *item, struct arrival *a)
{
	struct local *l = e->local;

	l->is_submitted = l->has_row = false;
	l->has_verdict = true;
	l->verdict = 0;
	free(l->words);
	l->words = NULL;
	free(l->supersedes_id);
	l->supersedes_id = NULL;
	a->sends_again = l->sends_again;
	l->sends_again = false;
	a->was_unlinked = l->is_unlinked;
	/* A document from here on, before any closer hears of it; unless another version has been begun. */
	if (!a->sends_again && !l->is_unlinked && !l->is_dirty && !a->was_unpacked)
		count_out(e);
	if (spool_id(l->spool) == item->spool_id)
		a->sent = spool_ref(l->spool);
}

/* A file that stands for nothing leaves; one that has changed meanwhile is sent again. tree.lock held. */
static void leave_or_go_on(struct mount *m, struct entry *e, struct arrival *a)
{
	bool has_dissolved = a->was_unpacked && !a->sends_again;

	if (has_dissolved) {
		notice_entry(m, a->folder, e->name);
		folder_refresh(m, a->folder, URGENCY_PERSON);
	}
	a->is_removed = a->was_unlinked || has_dissolved;
	if (a->is_removed) {
		a->folder->local_count--;
		folder_hide_entry(&m->tree, e, false);
		drop_taken_back(m, e);
	} else if (a->sends_again) {
		local_send_later(m, e);
	}
}

static void save_arrival(struct mount *m, struct entry *e, const struct queue_item *item, const struct arrival *a)
{
	if (!a->is_removed)
		folder_save_entry(m, e); /* durable before the queue's row goes */
	if (a->hidden_count > 0)
		(void)state_remove_entries(m->state, a->hidden,
					   a->hidden_count); /* logged there; they would be names of it, not shown */
	if (a->sent && !a->was_unpacked)
		keep_content(m, a->sent, &a->d, item->sha256);
	unlink_spool_later(m, item->spool_id);
}

/* What it takes the place of, and itself when it was removed meanwhile. */
static void detach_what_goes(struct mount *m, const struct queue_item *item, const struct arrival *a)
{
	if (a->old_id && local_detach(m, a->folder, a->old_id, a->old_sha256, clock_now_ms() + DETACH_WAIT_MS) < 0)
		log_warning("upload: '%s' was to take the place of document %s, which could not be detached",
			    item->name, a->old_id);
	if (a->was_unlinked && !a->was_there &&
	    local_detach(m, a->folder, a->d.id, item->sha256, clock_now_ms() + DETACH_WAIT_MS) < 0)
		log_warning("upload: '%s' was removed meanwhile, and document %s could not be detached", item->name,
			    a->d.id);
}

static void on_done(struct mount *m, struct entry *e, const struct queue_item *item, struct listing *document)
{
	CLEANUP(arrival_release) struct arrival a = { 0 };
	struct local *l = e->local;

	listing_get(document, 0, &a.d);
	pthread_mutex_lock(&m->tree.lock);
	note_superseded(e, item, &a);
	a.folder = take_final_name(m, e, item);
	node_hold(&a.folder->node);
	stand_for_document(m, e, item, document, &a);
	end_sending(e, item, &a);
	leave_or_go_on(m, e, &a);
	pthread_mutex_unlock(&m->tree.lock);

	save_arrival(m, e, item, &a);
	detach_what_goes(m, item, &a);
	log_info("upload: '%s/%s' is there as document %s", item->session_name ? item->session_name : item->session_id,
		 item->name, a.d.id);
	if (!a.sends_again)
		park_wake(m->park, &l->closers, 0);
	pthread_mutex_lock(&m->tree.lock);
	if (e->node.lookups > 0)
		notice_inode(m, e->node.ino);
	node_drop(&m->tree, &a.folder->node);
	pthread_mutex_unlock(&m->tree.lock);
}

/* ---- failing ----------------------------------------------------------------------------------------------- */

static struct folder *failed_folder(struct mount *m, struct folder *f)
{
	if (f->kind == FOLDER_FAILED)
		return f;
	for (struct folder *x = m->tree.first_failed; x; x = x->next_shown)
		if (strcmp(x->session.id, f->session.id) == 0)
			return x;
	uint64_t ino = state_next_ino(m->state);
	struct folder *x = ino ? tree_add_folder(&m->tree, FOLDER_FAILED, ino, &f->session, f->name, f->origin) : NULL;
	if (x) {
		notice_entry(m, NULL, "Not uploaded");
		notice_inode(m, INO_ROOT);
	}
	return x;
}

struct folder *local_home(struct mount *m, const struct entry *e)
{
	return tree_find_folder(&m->tree, e->folder->session.id);
}

int local_bring_home(struct mount *m, struct entry *e)
{
	struct local *l = e->local;
	struct folder *home = local_home(m, e), *from = e->folder;
	CLEANUP(text_release) char *name = strdup(l->home_name ? l->home_name : e->name);

	if (!home)
		return -ENOENT;
	if (!name)
		return -ENOMEM;
	if (from != home && folder_has(home, name))
		return -EEXIST;
	int r = from != home ? folder_rename_entry(&m->tree, e, home, name) : 0;
	if (r < 0)
		return r;
	if (from != home) {
		from->local_count--;
		home->local_count++;
	}
	l->kind = FILE_SCRATCH;
	l->is_dirty = true;
	l->refused_ms = 0;
	notice_entry(m, home, name);
	notice_inode(m, home->node.ino);
	return 0;
}

struct entry *local_find_refused(struct mount *m, struct folder *f, const char *name)
{
	int64_t now = clock_now_ms();
	if (f->kind != FOLDER_SESSION)
		return NULL;
	for (struct folder *x = m->tree.first_failed; x; x = x->next_shown) {
		struct entry *e;
		if (strcmp(x->session.id, f->session.id) != 0)
			continue;
		for (size_t at = 0; (e = index_next(&x->names, &at));)
			if (e->local && e->local->home_name && strcmp(e->local->home_name, name) == 0 &&
			    e->local->refused_ms > 0 && now - e->local->refused_ms < REFUSED_NAME_MS)
				return e;
	}
	return NULL;
}

struct refused_name {
	struct mount *m;
	uint64_t folder_ino;
	char *name;
};

static void refused_name_free(void *arg)
{
	struct refused_name *r = arg;
	free(r->name);
	free(r);
}

/* The minute is over: the kernel forgets that there was such a name. */
static void refused_name_end(void *arg)
{
	struct refused_name *r = arg;
	pthread_mutex_lock(&r->m->tree.lock);
	struct node *n = tree_find(&r->m->tree, r->folder_ino);
	if (n && n->kind == NODE_FOLDER)
		notice_entry(r->m, (struct folder *)n, r->name);
	pthread_mutex_unlock(&r->m->tree.lock);
	refused_name_free(r);
}

/* Moves a finally refused file into the failed folder. tree.lock held. */
static void move_to_failed(struct mount *m, struct entry *e)
{
	struct folder *from = e->folder, *to = failed_folder(m, from);
	char name[NAME_BYTES_MAX + 1], id[24];

	if (!to || to == from)
		return; /* it stays where it is, as failed */
	(void)snprintf(name, sizeof(name), "%s", e->name);
	(void)snprintf(id, sizeof(id), "%08" PRIx64, e->node.ino);
	for (int n = 4; folder_has(to, name) && n <= 16; n += 4)
		name_tell_apart(e->name, id, n, name);
	char *home_name = strdup(e->name);
	if (!home_name || folder_rename_entry(&m->tree, e, to, name) < 0) {
		free(home_name);
		return;
	}
	free(e->local->home_name);
	e->local->home_name = home_name;
	from->local_count--;
	to->local_count++;
	struct refused_name *r = calloc(1, sizeof(*r));
	if (r) {
		*r = (struct refused_name){ m, from->node.ino, strdup(home_name) };
		if (!r->name || pool_run_later(m->notices, REFUSED_NAME_MS, refused_name_end, refused_name_free, r) < 0)
			refused_name_free(r);
	}
	notice_inode(m, from->node.ino);
}

static void set_verdict(struct local *l, int error, const char *words)
{
	l->has_verdict = true;
	l->verdict = error;
	free(l->words);
	l->words = words ? strdup(words) : NULL;
}

static void save_failed_job(void *arg)
{
	struct entry_job *j = arg;
	struct mount *m = j->m;
	CLEANUP(queue_item_release) struct queue_item item = { 0 };
	int r = -ENOENT;

	pthread_mutex_lock(&m->tree.lock);
	struct entry *e = j->entry;
	struct local *l = e->local;
	if (l && e->is_shown) {
		r = make_item(m, e, e->folder, l->home_name ? l->home_name : e->name, FILE_FAILED, &item);
		item.size_bytes = spool_size(l->spool);
		item.error = l->verdict;
		item.words = l->words ? strdup(l->words) : NULL;
		l->has_row = true;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (r == 0 && queue_put(m->queue, &item) < 0)
		log_warning("queue: a failed file could not be kept for the next start");
	entry_job_free(j);
}

void local_fail(struct mount *m, struct entry *e, int error, const char *words)
{
	set_verdict(e->local, error, words);
	e->local->kind = FILE_FAILED;
	e->local->refused_ms = clock_now_ms();
	log_error("upload: '%s/%s' failed: %s", e->folder->name, e->name, words);
	move_to_failed(m, e);
	struct entry_job *j = entry_job_new(m, e);
	if (j && pool_run(m->disk, save_failed_job, j) < 0) {
		node_drop(&m->tree, &e->node);
		free(j);
	}
}

/* The engine has another version by now: whoever waits hears of that one. */
static bool is_overtaken(const struct local *l, const struct queue_item *item)
{
	return l->is_submitted && l->sent_spool_id != item->spool_id;
}

static void on_refused(struct mount *m, struct entry *e, const struct queue_item *item, int error, const char *words)
{
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	if (is_overtaken(l, item)) {
		pthread_mutex_unlock(&m->tree.lock);
		return;
	}
	l->is_submitted = false;
	set_verdict(l, error, words);
	if (l->is_unlinked) {
		local_drop(m, e);
		drop_taken_back(m, e);
	} else if (!l->is_held_back) {
		l->kind = FILE_FAILED;
		l->refused_ms = clock_now_ms();
		move_to_failed(m, e);
	}
	log_error("upload: '%s/%s' was refused for good: %s", item->session_name, item->name,
		  words ? words : strerror(-error));
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &l->closers, error);
}

static void on_waiting(struct mount *m, struct entry *e, const struct queue_item *item, int error, const char *words)
{
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	set_verdict(l, error, words);
	pthread_mutex_unlock(&m->tree.lock);
	log_warning("upload: '%s/%s' waits: %s", item->session_name, item->name, words ? words : strerror(-error));
	park_wake(m->park, &l->closers, error);
}

static void on_canceled(struct mount *m, struct entry *e, const struct queue_item *item)
{
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	if (is_overtaken(l, item)) {
		pthread_mutex_unlock(&m->tree.lock);
		return;
	}
	bool sends_again = l->sends_again;
	l->is_submitted = false;
	l->sends_again = false;
	if (l->is_unlinked) {
		local_drop(m, e);
		drop_taken_back(m, e);
	} else if (sends_again) {
		local_send_later(m, e);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!sends_again)
		park_wake(m->park, &l->closers, -ECANCELED);
}

void local_event(void *arg, enum upload_event event, const struct queue_item *item, struct listing *document, int error,
		 const char *words)
{
	struct mount *m = arg;

	pthread_mutex_lock(&m->tree.lock);
	struct node *n = tree_find(&m->tree, item->ino);
	struct entry *e = n && n->kind == NODE_ENTRY ? (struct entry *)n : NULL;
	struct local *l = e && e->local ? local_pin(e) : NULL;
	if (l)
		node_hold(&e->node);
	pthread_mutex_unlock(&m->tree.lock);
	if (!l) {
		if (event == UPLOAD_DONE)
			log_info("upload: '%s' is there, and no longer here", item->name);
		return;
	}
	switch (event) {
	case UPLOAD_DONE:
		on_done(m, e, item, document);
		break;
	case UPLOAD_REFUSED:
		on_refused(m, e, item, error, words);
		break;
	case UPLOAD_WAITING:
		on_waiting(m, e, item, error, words);
		break;
	case UPLOAD_CANCELED:
		on_canceled(m, e, item);
		break;
	case UPLOAD_MOVED:
		break; /* attributes are read when asked for */
	}
	pthread_mutex_lock(&m->tree.lock);
	local_unpin(e, l);
	node_drop(&m->tree, &e->node);
	pthread_mutex_unlock(&m->tree.lock);
}

/* ---- what is known already --------------------------------------------------------------------------------- */

static void note_prior(const char *id, struct buf *prior)
{
	if (prior->len > 0)
		buf_add(prior, " ");
	buf_add(prior, id);
}

/* What this mount brought is no reason to keep the same bytes, should their first name go while they are sent again. Where
 * that makes a second document, looking for it must not find the first. */
static bool is_prior(const struct mount *m, const struct folder *f, const char *document_id)
{
	return !m->caps->reuses_bytes || !is_ours(f, document_id);
}

static void note_known(struct mount *m, const struct folder *f, const struct document *d, char **ret_document_id,
		       char **ret_session_id)
{
	if (!m->caps->attaches || !m->caps->reuses_bytes || *ret_document_id)
		return;
	*ret_document_id = strdup(d->id);
	*ret_session_id = strdup(f->session.id);
}

void local_known(void *arg, const char *session_id, const char *sha256, int64_t size_bytes, char **ret_document_id,
		 char **ret_session_id, char **ret_prior_ids)
{
	struct mount *m = arg;
	CLEANUP(buf_release) struct buf prior = BUF(64 * 1024);
	CLEANUP(text_release) char *workspace = NULL;

	*ret_document_id = *ret_session_id = *ret_prior_ids = NULL;
	pthread_mutex_lock(&m->tree.lock);
	struct folder *mine = tree_find_folder(&m->tree, session_id);
	if (mine && mine->session.workspace_id)
		workspace = strdup(mine->session.workspace_id);
	if (!mine || !mine->listing)
		note_prior(PRIOR_UNKNOWN, &prior);
	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown) {
		bool is_reachable = f == mine || (mine && mine->session.workspace_id && f->session.workspace_id &&
						  strcmp(mine->session.workspace_id, f->session.workspace_id) == 0);
		struct document d;
		struct entry *e;
		int i = f->listing && is_reachable ? listing_find_bytes(f->listing, 0, sha256, size_bytes) : -1;
		for (; i >= 0; i = listing_find_bytes(f->listing, i + 1, sha256, size_bytes)) {
			listing_get(f->listing, i, &d);
			/* Nobody stands for what was detached since. */
			if (f == mine &&
			    (resting_awake(&f->at_rest, i) || resting_has(&f->at_rest, i) || f->is_withheld) &&
			    is_prior(m, f, d.id))
				note_prior(d.id, &prior);
			note_known(m, f, &d, ret_document_id, ret_session_id);
		}
		/* Attached by this mount, and no listing had it since. */
		for (size_t at = 0; is_reachable && (e = index_next(&f->unlisted, &at));) {
			if (!e->is_shown || !entry_document(e, &d) || !d.sha256 || strcmp(d.sha256, sha256) != 0)
				continue;
			if (f == mine && is_prior(m, f, d.id))
				note_prior(d.id, &prior);
			note_known(m, f, &d, ret_document_id, ret_session_id);
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!*ret_document_id && workspace && m->caps->attaches && m->caps->reuses_bytes)
		(void)queue_find_hash(m->queue, workspace, sha256, ret_document_id,
				      ret_session_id); /* not known: the three steps */
	*ret_prior_ids = buf_take(&prior);
}

int local_fill_copy(struct mount *m, struct entry *e)
{
	CLEANUP(listing_release) struct listing *from = NULL;
	CLEANUP(text_release) char *session_id = NULL;
	CLEANUP(spool_release) struct spool *s = NULL;
	CLEANUP(fd_close) int fd = -1;
	struct document d;
	static const size_t room = 1 << 20;
	int at_document = 0;

	pthread_mutex_lock(&m->tree.lock);
	if (e->local && e->local->copy_of) {
		from = listing_ref(e->local->copy_of);
		session_id = e->local->copy_session_id ? strdup(e->local->copy_session_id) : NULL;
		s = spool_ref(e->local->spool);
		at_document = e->local->copy_at;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!from)
		return 0;
	if (!session_id)
		return -ENOMEM;
	listing_get(from, at_document, &d);
	int r = read_fetch_now(m, session_id, &d, &fd);
	char *block = r == 0 ? malloc(room) : NULL;
	if (r == 0 && !block)
		r = -ENOMEM;
	SCOPED_LOCK(&m->fill_lock);
	pthread_mutex_lock(&m->tree.lock);
	bool is_wanted =
		e->local && e->local->copy_of == from; /* else it was filled meanwhile, and written to since, perhaps */
	pthread_mutex_unlock(&m->tree.lock);
	for (off_t at = 0; r == 0 && is_wanted;) {
		ssize_t n = pread(fd, block, room, at);
		if (n < 0)
			r = -errno;
		if (n <= 0)
			break;
		r = spool_write(s, block, (size_t)n, at);
		at += n;
	}
	free(block);
	pthread_mutex_lock(&m->tree.lock);
	if (r == 0 && e->local && e->local->copy_of == from) {
		listing_unref(e->local->copy_of);
		e->local->copy_of = NULL;
	}
	pthread_mutex_unlock(&m->tree.lock);
	return is_wanted ? r : 0;
}

/* ---- from an earlier run ----------------------------------------------------------------------------------- */

struct loading {
	struct mount *m;
	int error;
};

static struct folder *folder_of_item(struct mount *m, const struct queue_item *item)
{
	struct folder *f = tree_find_folder(&m->tree, item->session_id);
	if (f)
		return f;
	/* The session is not shown any more; its files are kept under its last name. */
	struct session s = { .id = item->session_id, .name = item->session_name, .created_ms = -1, .updated_ms = -1 };
	char name[NAME_BYTES_MAX + 1];
	name_make_safe(item->session_name ? item->session_name : "", name);
	for (int n = 4; tree_find_folder_named(&m->tree, name) && n <= 64; n += 4)
		name_tell_apart(item->session_name, item->session_id, n, name);
	uint64_t ino = state_next_ino(m->state);
	return ino ? tree_add_folder(&m->tree, FOLDER_SESSION, ino, &s, name, ORIGIN_LOOKED_UP) : NULL;
}

static void load_item(void *arg, const struct queue_item *item)
{
	struct loading *ld = arg;
	struct mount *m = ld->m;
	struct spool *s = NULL;

	if (item->kind == FILE_SCRATCH && name_is_scratch(m->rules, item->name) &&
	    clock_wall_ms() - item->queued_wall_ms > SCRATCH_LIFE_MS) { /* the writer's time may be years ago */
		log_info("spool: scratch file '%s' was last written a week ago and goes", item->name);
		spool_unlink_id(m->spool_dir, item->spool_id);
		(void)queue_remove(m->queue, item->ino);
		return;
	}
	int r = spool_open(m->spool_dir, item->spool_id, m->caps->document_bytes_max,
			   item->kind == FILE_SCRATCH ? -1 : item->size_bytes, &s);
	if (r < 0) {
		log_error("spool: the bytes of '%s' can't be opened: %s", item->name, strerror(-r));
		return;
	}
	SCOPED_LOCK(&m->tree.lock);
	struct folder *f = folder_of_item(m, item);
	if (f && item->kind == FILE_FAILED)
		f = failed_folder(m, f);
	char name[NAME_BYTES_MAX + 1], id[24];
	(void)snprintf(name, sizeof(name), "%s", item->name);
	(void)snprintf(id, sizeof(id), "%08" PRIx64, item->ino);
	for (int n = 4; f && folder_has(f, name) && n <= 16; n += 4)
		name_tell_apart(item->name, id, n, name);
	struct entry *e = f ? folder_add_entry(&m->tree, f, item->ino, name) : NULL;
	struct local *l = e ? local_new() : NULL;
	if (!l) {
		spool_unref(s);
		ld->error = -ENOMEM;
		return;
	}
	l->spool = s;
	l->kind = item->kind;
	l->has_row = true;
	l->saved_wall_ms = item->queued_wall_ms;
	l->is_submitted = item->kind == FILE_PENDING;
	l->mtime_ns = item->mtime_ns;
	l->words = item->words ? strdup(item->words) : NULL;
	if (item->error && item->sha256[0] == '\0' && spool_size(s) > 0) { /* not the engine's error: a write failed */
		l->write_error = item->error;
		l->gap_start = spool_size(s);
		l->gap_end = INT64_MAX;
	}
	if (item->kind == FILE_FAILED) {
		l->home_name = strdup(item->name);
		l->verdict = item->error;
	}
	if (item->kind != FILE_SCRATCH) {
		memcpy(l->sent_sha256, item->sha256, sizeof(l->sent_sha256));
		l->sent_spool_id = item->spool_id;
		l->is_frozen = true;
		spool_freeze(s);
	}
	e->local = l;
	f->local_count++;
}

int local_load(struct mount *m)
{
	struct loading ld = { m, 0 };
	int r = queue_load(m->queue, load_item, &ld);
	return r < 0 ? r : ld.error;
}

static void resume_item(void *arg, const struct queue_item *item)
{
	struct mount *m = arg;
	CLEANUP(queue_item_release) struct queue_item copy = { 0 };

	/* The mount is up by now: what was begun, sent or removed since the rows were read is no earlier run's. */
	struct upload_view view;
	if (item->kind != FILE_PENDING || uploads_view(m->uploads, item->ino, &view) == 0)
		return;
	pthread_mutex_lock(&m->tree.lock);
	const struct node *n = tree_find(&m->tree, item->ino);
	const struct local *l = n && n->kind == NODE_ENTRY ? ((const struct entry *)n)->local : NULL;
	bool is_waiting = l && l->is_submitted;
	pthread_mutex_unlock(&m->tree.lock);
	if (!is_waiting || queue_item_copy(item, &copy) < 0)
		return;
	if (strcmp(copy.account, m->account) != 0) {
		/* The token was changed. A session that this one may read is the same account's for our purposes. */
		pthread_mutex_lock(&m->tree.lock);
		struct folder *f = tree_find_folder(&m->tree, copy.session_id);
		bool is_ours = f && f->origin != ORIGIN_LOOKED_UP;
		pthread_mutex_unlock(&m->tree.lock);
		char *account = is_ours ? strdup(m->account) : NULL;
		if (account) {
			free(copy.account);
			copy.account = account;
		}
	}
	if (uploads_submit(m->uploads, &copy, false, 0) < 0)
		log_error("queue: '%s' could not be taken up again", copy.name);
}

void local_resume(struct mount *m)
{
	(void)queue_load(m->queue, resume_item, m); /* logged there */
}
