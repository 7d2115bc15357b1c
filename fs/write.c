/* The calls that change a local file: create, write, truncate, flush, fsync, release, copy_file_range.
 *
 * Bytes go straight into the spool on libfuse's thread; whatever syncs, hashes, clones or asks the service goes to a worker, with the
 * request in its hands. When an upload begins is decided in write_flush() and write_release(), see design "When it uploads". */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/mount_impl.h"

#define EMPTY_LIFE_MS 60000
#define AGAIN_MS 10000
/* A writer that sets the time after its close is still the writer. */
#define TIMES_AFTER_MS 60000
#define FOREVER_MS INT64_MAX
/* A file that has become so large in so little time is asked leave to be sent for before it is closed: the link lives for minutes, and
 * a slow writer would outlive it. */
#define AHEAD_BYTES (4 * 1024 * 1024)
#define AHEAD_WITHIN_MS 5000

struct handle *handle_new(struct mount *m)
{
	struct handle *h = calloc(1, sizeof(*h));
	if (!h)
		return NULL;
	h->fd = -1;
	h->text = BUF(64 * 1024 * 1024);
	pthread_mutex_init(&h->lock, NULL);
	SCOPED_LOCK(&m->handles_lock);
	h->next = m->handles;
	h->back = &m->handles;
	if (h->next)
		h->next->back = &h->next;
	m->handles = h;
	return h;
}

void handle_free(struct mount *m, struct handle *h)
{
	if (!h)
		return;
	pthread_mutex_lock(&m->handles_lock);
	*h->back = h->next;
	if (h->next)
		h->next->back = h->back;
	pthread_mutex_unlock(&m->handles_lock);
	pthread_mutex_lock(&m->tree.lock);
	if (h->entry)
		node_drop(&m->tree, &h->entry->node);
	snapshot_drop(h->snapshot);
	if (h->folder)
		node_drop(&m->tree, &h->folder->node);
	pthread_mutex_unlock(&m->tree.lock);
	fd_close(&h->fd);
	buf_release(&h->text);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

/* tree.lock held. */
static struct handle *open_writer(struct mount *m, fuse_req_t req, struct entry *e, struct fuse_file_info *fi)
{
	struct handle *h = handle_new(m);
	if (!h)
		return NULL;
	h->entry = e;
	node_hold(&e->node);
	h->is_writer = (fi->flags & O_ACCMODE) != O_RDONLY;
	h->is_append = (fi->flags & O_APPEND) != 0;
	h->holds_local = true;
	h->opener = park_tgid(fuse_req_ctx(req)->pid);
	e->local->handles++;
	e->local->writers += h->is_writer;
	e->local->closed_ms = 0;
	fi->fh = (uintptr_t)h;
	fi->direct_io = 1; /* no shared mmap whose pages would come after the close; ENOSPC at write */
	return h;
}

void write_create(struct mount *m, fuse_req_t req, struct folder *f, const char *name, struct fuse_file_info *fi)
{
	struct fuse_entry_param reply;
	struct spool *s = NULL;
	struct handle *h = NULL;
	struct entry *e = NULL;

	pthread_mutex_lock(&m->tree.lock);
	int r = local_check_name(m, f, name);
	if (r == 0 && folder_has(f, name))
		r = (fi->flags & O_EXCL) ? -EEXIST : -ESTALE; /* the kernel looks again, and opens it */
	pthread_mutex_unlock(&m->tree.lock);
	uint64_t ino = r == 0 ? state_next_ino(m->state) : 0;
	if (r == 0)
		r = ino ? spool_new(m->spool_dir, ino, m->caps->document_bytes_max, &s) : -EIO;
	if (r < 0) {
		fuse_reply_err(req, -r);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = local_new();
	if (!l)
		spool_unref(s);
	else
		l->spool = s;
	if (l && !folder_has(f, name))
		e = folder_add_entry(&m->tree, f, ino, name);
	if (e) {
		e->local = l;
		l = NULL;
		f->local_count++;
		h = open_writer(m, req, e, fi);
	}
	if (h) {
		node_count_lookup(&e->node);
		attr_fill_entry_param(m, &e->node, &reply);
	} else if (e) {
		local_drop(m, e);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!h) {
		if (l)
			spool_unlink(l->spool);
		local_free(l);
		fuse_reply_err(req, ENOMEM);
	} else if (fuse_reply_create(req, &reply, fi) == -ENOENT) {
		/* The caller is gone: nobody will release it. */
		pthread_mutex_lock(&m->tree.lock);
		tree_forget(&m->tree, ino, 1);
		pthread_mutex_unlock(&m->tree.lock);
		write_release(m, h);
	}
}

/* ---- versions ---------------------------------------------------------------------------------------------- */

/* The spool is one that may change; made so when it was sent already. Worker threads. */
static int begin_version(struct mount *m, struct entry *e, struct local *l, bool keeps_bytes)
{
	CLEANUP(spool_release) struct spool *old = NULL, *fresh = NULL;
	int r = keeps_bytes ? local_fill_copy(m, e) : 0;

	if (r < 0)
		return r;
	pthread_mutex_lock(&m->tree.lock);
	if (l->is_frozen)
		old = spool_ref(l->spool);
	pthread_mutex_unlock(&m->tree.lock);
	if (!old)
		return 0;
	uint64_t id = state_next_ino(m->state);
	if (id == 0)
		return -EIO;
	r = keeps_bytes ? spool_clone(old, id, &fresh)
			: spool_new(m->spool_dir, id, m->caps->document_bytes_max, &fresh);
	if (r < 0)
		return r;
	pthread_mutex_lock(&m->tree.lock);
	if (l->spool == old) {
		l->spool = fresh;
		fresh = NULL;
		l->is_frozen = false;
		spool_unref(old);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (fresh)
		spool_unlink(fresh); /* somebody else was faster */
	return 0;
}

/* tree.lock held. */
static bool needs_worker_to_change(const struct local *l)
{
	return l->is_frozen || l->copy_of;
}

struct change {
	struct mount *m;
	fuse_req_t req;
	struct handle *handle; /* NULL: by name */
	struct entry *entry;   /* held */
	struct local *local;   /* pinned */
	enum { CHANGE_WRITE, CHANGE_TRUNCATE, CHANGE_OPEN, CHANGE_REOPEN, CHANGE_ALLOCATE } kind;
	off_t offset;
	size_t len;
	int to_set;
	struct fuse_file_info fi;
	char *bytes;
};

static void change_free(struct change *c)
{
	pthread_mutex_lock(&c->m->tree.lock);
	local_unpin(c->entry, c->local);
	node_drop(&c->m->tree, &c->entry->node);
	pthread_mutex_unlock(&c->m->tree.lock);
	free(c->bytes);
	free(c);
}

static void close_later(struct mount *m, struct entry *e);

/* Has the workspace a document of this name that may be this one? Then its bytes are known, perhaps, and nothing is sent. */
static bool has_likeness(struct mount *m, const struct entry *e, int64_t size_bytes)
{
	const char *workspace = e->folder->session.workspace_id;

	for (struct folder *f = m->tree.first_folder; f && workspace; f = f->next_shown) {
		struct entry_view room;
		const struct entry *other;
		struct document d;
		if (f->session.workspace_id && strcmp(f->session.workspace_id, workspace) == 0 &&
		    (other = folder_look(f, e->name, &room)) && other != e && entry_document(other, &d) &&
		    d.size_bytes >= size_bytes)
			return true;
	}
	return false;
}

/* Asks for leave to send a file that is growing large, once. tree.lock held. */
static void sign_ahead(struct mount *m, struct entry *e)
{
	struct local *l = e->local;
	int64_t now = clock_now_ms(), size_bytes;

	if (!l || l->was_signed_ahead)
		return;
	if (!l->begun_ms)
		l->begun_ms = now;
	size_bytes = spool_size(l->spool);
	if (size_bytes < AHEAD_BYTES)
		return;
	l->was_signed_ahead = true;
	if (now - l->begun_ms < AHEAD_WITHIN_MS && m->options->settle_ms == 0 && e->is_shown &&
	    e->folder->kind == FOLDER_SESSION && !e->folder->is_gone && !l->is_submitted && !l->write_error &&
	    !name_is_scratch(m->rules, e->name) && !has_likeness(m, e, size_bytes))
		uploads_sign_ahead(m->uploads, e->node.ino, e->folder->session.id, e->name);
}

static void mark_changed(struct change *c)
{
	SCOPED_LOCK(&c->m->tree.lock);
	if (c->kind == CHANGE_WRITE)
		sign_ahead(c->m, c->entry);
	c->local->is_dirty = true;
	c->local->mtime_ns = clock_wall_ns();
	if (c->handle)
		c->handle->has_written = true;
	/* Cut or filled up by name, with nobody there who will close it. */
	if (c->kind == CHANGE_TRUNCATE && c->local->writers == 0 && local_wants_sending(c->m, c->entry))
		close_later(c->m, c->entry);
}

/* A write that failed, and what makes good for it. */
static void mind_gap(struct change *c, int r)
{
	struct local *l = c->local;
	int64_t start = c->offset, end = c->offset + (int64_t)c->len;

	SCOPED_LOCK(&c->m->tree.lock);
	if (r == 0 && !l->write_error)
		return;
	pid_t writer = park_tgid(fuse_req_ctx(c->req)->pid);
	if (r < 0 && c->kind == CHANGE_WRITE) {
		bool is_first = l->write_error == 0;
		l->gap_writer = is_first || writer == l->gap_writer ? writer : -1;
		l->gap_start = is_first || start < l->gap_start ? start : l->gap_start;
		l->gap_end = is_first || end > l->gap_end ? end : l->gap_end;
		l->write_error = r;
		if (c->handle)
			c->handle->has_written = true; /* its close has something to tell */
	} else if (r == 0) {
		/* Another program that writes there goes on where the first one gave up, (a; b) > file, and makes nothing good. */
		if (c->kind == CHANGE_WRITE && start <= l->gap_start && end > l->gap_start && writer == l->gap_writer)
			l->gap_start = end;
		else if ((c->kind == CHANGE_TRUNCATE || c->kind == CHANGE_OPEN) && start <= l->gap_start)
			l->gap_start = l->gap_end;
		if (l->gap_start >= l->gap_end)
			l->write_error = 0;
	}
}

static int change_spool(struct change *c)
{
	CLEANUP(spool_release) struct spool *s = NULL;
	struct mount *m = c->m;

	pthread_mutex_lock(&m->tree.lock);
	s = spool_ref(c->local->spool);
	pthread_mutex_unlock(&m->tree.lock);
	if (c->kind == CHANGE_TRUNCATE || c->kind == CHANGE_OPEN)
		return spool_truncate(s, c->offset);
	if (c->kind == CHANGE_ALLOCATE)
		return spool_allocate(s, c->offset, (int64_t)c->len);
	if (c->handle && c->handle->is_append)
		c->offset = spool_size(s);
	int r = spool_write(s, c->bytes, c->len, c->offset);
	if (r == -ENOSPC) {
		content_make_room(m->content, (int64_t)c->len); /* what is only remembered gives way to what is new */
		r = spool_write(s, c->bytes, c->len, c->offset);
	}
	return r;
}

static void reply_attr(struct mount *m, fuse_req_t req, struct node *n)
{
	struct fuse_entry_param p;
	pthread_mutex_lock(&m->tree.lock);
	attr_fill_entry_param(m, n, &p);
	pthread_mutex_unlock(&m->tree.lock);
	fuse_reply_attr(req, &p.attr, p.attr_timeout);
}

static void finish_open(struct mount *m, fuse_req_t req, struct entry *e, struct fuse_file_info *fi)
{
	pthread_mutex_lock(&m->tree.lock);
	bool has_bytes = e->local != NULL;
	struct handle *h = has_bytes ? open_writer(m, req, e, fi) : NULL;
	pthread_mutex_unlock(&m->tree.lock);
	if (!h)
		fuse_reply_err(req, has_bytes ? ENOMEM : EACCES);
	else if (fuse_reply_open(req, fi) == -ENOENT)
		write_release(m, h);
}

static void change_done(struct change *c, int r)
{
	if (r < 0)
		fuse_reply_err(c->req, -r);
	else if (c->kind == CHANGE_WRITE)
		fuse_reply_write(c->req, c->len);
	else if (c->kind == CHANGE_OPEN || c->kind == CHANGE_REOPEN)
		finish_open(c->m, c->req, c->entry, &c->fi);
	else if (c->kind == CHANGE_ALLOCATE)
		fuse_reply_err(c->req, 0);
	else
		reply_attr(c->m, c->req, &c->entry->node);
}

/* A file that is to rest before it is sent rests again: its writer is not done. */
static void hold_back(struct change *c)
{
	struct mount *m = c->m;

	SCOPED_LOCK(&m->rows_lock);
	pthread_mutex_lock(&m->tree.lock);
	bool is_held = c->local->is_submitted && c->entry->local == c->local;
	pthread_mutex_unlock(&m->tree.lock);
	if (!is_held || uploads_cancel(m->uploads, c->entry->node.ino, true) < 0)
		return; /* it is sent as it was, and once more when it is closed again */
	SCOPED_LOCK(&m->tree.lock);
	c->local->is_submitted = false;
	c->local->is_dirty = true;
}

static int change_on_worker(struct change *c)
{
	bool keeps_bytes = !((c->kind == CHANGE_TRUNCATE || c->kind == CHANGE_OPEN) && c->offset == 0);
	int r;

	if (c->kind == CHANGE_REOPEN || (c->kind == CHANGE_OPEN && c->m->options->settle_ms > 0))
		hold_back(c);
	if (c->kind == CHANGE_REOPEN)
		return 0;
	if (!keeps_bytes) { /* nobody needs the copy's bytes any more */
		SCOPED_LOCK(&c->m->tree.lock);
		listing_unref(c->local->copy_of);
		c->local->copy_of = NULL;
	}
	do {
		r = begin_version(c->m, c->entry, c->local, keeps_bytes);
		if (r == 0)
			r = change_spool(c);
	} while (r == -EROFS); /* sent by somebody else's close meanwhile */
	mind_gap(c, r);
	if (r == 0)
		mark_changed(c);
	return r;
}

static void change_job(void *arg)
{
	struct change *c = arg;

	change_done(c, change_on_worker(c));
	change_free(c);
}

/* Does it here when it costs nothing, else on a worker. bytes are borrowed. */
static void change(struct mount *m, struct change *c, const char *bytes)
{
	struct change *job = malloc(sizeof(*job));
	int r = -EROFS;

	pthread_mutex_lock(&m->tree.lock);
	struct local *l = job ? c->entry->local : NULL;
	bool waits = l && (needs_worker_to_change(l) || c->kind == CHANGE_REOPEN);
	if (l) {
		*job = *c;
		job->local = local_pin(c->entry);
		node_hold(&c->entry->node);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!l) {
		fuse_reply_err(c->req, job ? EACCES : ENOMEM);
		free(job);
		return;
	}
	job->bytes = (char *)bytes;
	if (!waits) {
		r = change_spool(job);
		if (r != -EROFS)
			mind_gap(job, r);
		if (r == 0)
			mark_changed(job);
	}
	job->bytes = NULL;
	if (r != -EROFS) { /* that one: it has just been sent, and a change is another version */
		change_done(job, r);
		change_free(job);
		return;
	}
	job->bytes = bytes ? malloc(job->len + 1) : NULL;
	if (job->bytes)
		memcpy(job->bytes, bytes, job->len);
	if ((bytes && !job->bytes) || pool_run(m->disk, change_job, job) < 0) {
		fuse_reply_err(job->req, ENOMEM);
		change_free(job);
	}
}

void write_open(struct mount *m, fuse_req_t req, struct entry *e, struct fuse_file_info *fi)
{
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	int error = 0;
	if (m->options->read_only)
		error = EROFS;
	else if (!e->is_shown && (!l || l->handles == 0))
		error = ESTALE; /* removed under another name: the kernel looks this one up again */
	else if (!l || l->counted_out)
		error = EACCES; /* documents are read-only */
	else if (l->kind == FILE_FAILED)
		error = -local_bring_home(m, e); /* written anew: that is a new try */
	bool is_held = !error && l->is_submitted && m->options->settle_ms > 0;
	pthread_mutex_unlock(&m->tree.lock);
	struct change c = {
		.m = m, .req = req, .entry = e, .kind = (fi->flags & O_TRUNC) ? CHANGE_OPEN : CHANGE_REOPEN, .fi = *fi
	};
	if (error)
		fuse_reply_err(req, error);
	else if (is_held || (fi->flags & O_TRUNC))
		change(m, &c, NULL);
	else
		finish_open(m, req, e, fi);
}

void write_bytes(struct mount *m, fuse_req_t req, struct handle *h, const char *bytes, size_t len, off_t offset)
{
	struct change c = {
		.m = m, .req = req, .handle = h, .entry = h->entry, .kind = CHANGE_WRITE, .offset = offset, .len = len
	};
	change(m, &c, bytes);
}

void write_allocate(struct mount *m, fuse_req_t req, struct handle *h, int mode, off_t offset, off_t len)
{
	struct change c = { .m = m,
			    .req = req,
			    .handle = h,
			    .entry = h->entry,
			    .kind = CHANGE_ALLOCATE,
			    .offset = offset,
			    .len = (size_t)len };
	if (mode != 0)
		fuse_reply_err(req, EOPNOTSUPP);
	else
		change(m, &c, NULL);
}

static int64_t now_or(int to_set, int now_flag, struct timespec t)
{
	return (to_set & now_flag) ? clock_wall_ns() : (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

struct time_job {
	struct mount *m;
	struct entry *entry;
};

static void save_time_job(void *arg)
{
	struct time_job *j = arg;
	folder_save_entry(j->m, j->entry);
	pthread_mutex_lock(&j->m->tree.lock);
	node_drop(&j->m->tree, &j->entry->node);
	pthread_mutex_unlock(&j->m->tree.lock);
	free(j);
}

void write_setattr(struct mount *m, fuse_req_t req, struct entry *e, const struct stat *attr, int to_set)
{
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	bool is_local = l && !l->counted_out;
	if (to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) {
		int64_t mtime_ns = now_or(to_set, FUSE_SET_ATTR_MTIME_NOW, attr->st_mtim);
		if (l)
			l->mtime_ns = mtime_ns;
		if (!is_local && e->past->attached_ms > 0 && clock_now_ms() - e->past->attached_ms < TIMES_AFTER_MS) {
			struct time_job *j = malloc(sizeof(*j));
			struct entry_past *past = entry_past(e);
			if (past)
				past->mtime_ns = mtime_ns;
			if (j) {
				*j = (struct time_job){ m, e };
				node_hold(&e->node);
				if (pool_run(m->disk, save_time_job, j) < 0) {
					node_drop(&m->tree, &e->node);
					free(j);
				}
			}
		}
	}
	bool truncates = (to_set & FUSE_SET_ATTR_SIZE) != 0;
	/* Making it as long as it is changes nothing, and some programs do it last. */
	if (truncates && is_local && !l->copy_of && spool_size(l->spool) == attr->st_size && attr->st_size > 0)
		truncates = false;
	int error = truncates && (!l || (l->counted_out && l->writers == 0)) ? EACCES : 0;
	pthread_mutex_unlock(&m->tree.lock);
	if (error) {
		fuse_reply_err(req, error);
	} else if (truncates) {
		struct change c = { .m = m,
				    .req = req,
				    .entry = e,
				    .kind = CHANGE_TRUNCATE,
				    .offset = attr->st_size,
				    .to_set = to_set };
		change(m, &c, NULL);
	} else {
		reply_attr(m, req, &e->node);
	}
}

/* ---- closing ----------------------------------------------------------------------------------------------- */

struct closing {
	struct mount *m;
	fuse_req_t req;      /* NULL: nobody waits (release) */
	struct entry *entry; /* held */
};

static void closing_free(struct closing *c)
{
	pthread_mutex_lock(&c->m->tree.lock);
	node_drop(&c->m->tree, &c->entry->node);
	pthread_mutex_unlock(&c->m->tree.lock);
	free(c);
}

static void closing_resume(fuse_req_t req, void *arg, int how)
{
	struct closing *c = arg;
	/* A file removed while it is being closed is not where its writer thinks. */
	fuse_reply_err(req, how == -ECANCELED ? EIO : -how);
	closing_free(c);
}

/* The verdict, now or when there is one. Takes c. */
static void await_verdict(struct closing *c)
{
	struct mount *m = c->m;

	pthread_mutex_lock(&m->tree.lock);
	struct local *l = c->entry->local;
	int verdict = l && l->has_verdict && !l->is_submitted ? l->verdict : 0;
	bool waits = l && (l->is_submitted || l->sends_again) && !(l->has_verdict && l->verdict < 0);
	if (l && l->is_submitted && l->has_verdict)
		verdict = l->verdict; /* it waits for the service, and this was said already */
	if (waits && park_wait(m->park, &l->closers, c->req, FOREVER_MS, closing_resume, c) < 0) {
		waits = false;
		verdict = -ENOMEM;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (waits)
		return;
	fuse_reply_err(c->req, -verdict);
	closing_free(c);
}

/* A whole document that copy_file_range put here: attached by its id, without its bytes. */
static int attach_copy(struct mount *m, struct entry *e)
{
	CLEANUP(listing_release) struct listing *from = NULL, *attached = NULL;
	CLEANUP(text_release) char *session_id = NULL, *from_id = NULL;
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + m->options->close_timeout_ms };
	struct document d;
	int at_document = 0;
	bool was_there = false;

	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	struct folder *f = e->folder;
	if (l && l->copy_of && e->is_shown) {
		from = listing_ref(l->copy_of);
		at_document = l->copy_at;
		from_id = l->copy_session_id ? strdup(l->copy_session_id) : NULL;
		session_id = strdup(f->session.id);
		listing_get(from, at_document, &d);
		was_there = folder_count_names(f, d.id) > 0;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!from)
		return -EAGAIN;
	if (!session_id || !from_id)
		return -ENOMEM;
	if (d.sha256)
		local_detach_wait(m, session_id, d.sha256);
	int r = backend_attach(m->backend, &call, session_id, from_id, &d.id, 1, &attached);
	if (r < 0 && call.fault.kind != FAULT_INVALID && call.fault.kind != FAULT_GONE && r != -EXDEV &&
	    r != -EOPNOTSUPP)
		return r;
	if (r < 0 || listing_count(attached) == 0) { /* not by id, then by its bytes */
		r = local_fill_copy(m, e);
		return r < 0 ? r : -EAGAIN;
	}
	pthread_mutex_lock(&m->tree.lock);
	if (!e->is_shown || e->local != l ||
	    l->copy_of != from) { /* removed, or read and changed meanwhile: its bytes decide */
		pthread_mutex_unlock(&m->tree.lock);
		return -EAGAIN;
	}
	r = local_become_document(m, e, attached, was_there);
	e->folder->local_count--;
	spool_unlink(l->spool);
	local_release(e); /* it never had bytes of its own: whoever has it open reads the document */
	notice_inode(m, e->node.ino);
	pthread_mutex_unlock(&m->tree.lock);
	folder_save_entry(m, e);
	(void)queue_remove(m->queue, e->node.ino); /* a row from an fsync, if any */
	return r;
}

static void close_later(struct mount *m, struct entry *e);
static struct closing *closing_new(struct mount *m, fuse_req_t req, struct entry *e);

/* tree.lock held. */
static bool is_left_behind(struct mount *m, const struct entry *e)
{
	return e->local && e->local->writers == 0 && !e->local->is_submitted && local_wants_sending(m, e);
}

static void send_again(void *arg)
{
	struct closing *c = arg;
	pthread_mutex_lock(&c->m->tree.lock);
	if (is_left_behind(c->m, c->entry))
		close_later(c->m, c->entry);
	pthread_mutex_unlock(&c->m->tree.lock);
	closing_free(c);
}

static void forget_again(void *arg)
{
	closing_free(arg);
}

/* It is whole and has its final name, but the disk, or the service for a copy, would not have it just now. */
static void try_again_later(struct mount *m, struct entry *e)
{
	SCOPED_LOCK(&m->tree.lock);
	struct closing *c = local_wants_sending(m, e) ? closing_new(m, NULL, e) : NULL;
	if (c && pool_run_later(m->disk, AGAIN_MS, send_again, forget_again, c) < 0) {
		node_drop(&m->tree, &e->node);
		free(c);
	}
}

static void close_job(void *arg)
{
	struct closing *c = arg;
	struct mount *m = c->m;
	bool waits = c->req && m->options->upload == UPLOAD_AT_CLOSE && m->options->settle_ms == 0;
	int64_t not_before = m->options->settle_ms > 0 ? clock_now_ms() + m->options->settle_ms : 0;

	int r = attach_copy(m, c->entry);
	if (r == -EAGAIN)
		r = local_submit(m, c->entry, NULL, NULL, waits, not_before);
	else if (r == 0)
		r = 1;
	if (r < 0)
		try_again_later(m, c->entry);
	if (!c->req) {
		if (r < 0)
			log_error("upload: a closed file could not be queued: %s", strerror(-r));
		closing_free(c);
	} else if (r < 0 || r == 1 || !waits) {
		fuse_reply_err(c->req, r < 0 ? -r : 0);
		closing_free(c);
	} else {
		await_verdict(c);
	}
}

/* tree.lock held. */
static struct closing *closing_new(struct mount *m, fuse_req_t req, struct entry *e)
{
	struct closing *c = malloc(sizeof(*c));
	if (!c)
		return NULL;
	*c = (struct closing){ m, req, e };
	node_hold(&e->node);
	return c;
}

/* What copies a document asks the service, others the disk. */
static struct pool *pool_for_close(struct mount *m, const struct entry *e)
{
	return e->local && e->local->copy_of ? m->calls : m->disk;
}

/* Sends it; nobody waits. tree.lock held. */
static void close_later(struct mount *m, struct entry *e)
{
	struct closing *c = closing_new(m, NULL, e);
	if (c && pool_run(pool_for_close(m, e), close_job, c) < 0) {
		node_drop(&m->tree, &e->node);
		free(c);
	}
}

void write_flush(struct mount *m, fuse_req_t req, struct handle *h)
{
	struct entry *e = h->entry;
	int verdict = 0;
	struct closing *c = NULL;
	struct pool *pool = NULL;

	if (!h->is_writer || !h->has_written) {
		/* Nothing of this one's; but a name truncated through another way may hold bytes. */
		pthread_mutex_lock(&m->tree.lock);
		bool is_dirty = h->is_writer && e->local && e->local->is_dirty && e->local->writers == 1;
		pthread_mutex_unlock(&m->tree.lock);
		if (!is_dirty) {
			fuse_reply_err(req, 0);
			return;
		}
	}
	pid_t closer = park_tgid(fuse_req_ctx(req)->pid);
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	bool is_other = closer && h->opener && closer != h->opener;
	bool sends = l && local_wants_sending(m, e) && !is_other;
	bool joins = l && !sends && !l->is_dirty && l->is_submitted && m->options->upload == UPLOAD_AT_CLOSE &&
		     m->options->settle_ms == 0;
	if (sends || joins) {
		c = closing_new(m, req, e);
		pool = pool_for_close(m, e);
	} else if (l && l->write_error)
		verdict = l->write_error;
	else if (l && l->has_verdict && !l->is_dirty)
		verdict = l->verdict; /* for a second closer of what failed already */
	pthread_mutex_unlock(&m->tree.lock);
	if (!sends && !joins)
		fuse_reply_err(req, -verdict);
	else if (!c)
		fuse_reply_err(req, ENOMEM);
	else if (joins)
		await_verdict(c);
	else if (pool_run(pool, close_job, c) < 0) {
		fuse_reply_err(req, ENOMEM);
		closing_free(c);
	}
}

struct empty_job {
	struct mount *m;
	struct entry *entry;
};

static void empty_free(void *arg)
{
	struct empty_job *j = arg;
	pthread_mutex_lock(&j->m->tree.lock);
	node_drop(&j->m->tree, &j->entry->node);
	pthread_mutex_unlock(&j->m->tree.lock);
	free(j);
}

/* A final name that is still empty a minute after its last close. */
static void empty_check(void *arg)
{
	struct empty_job *j = arg;
	pthread_mutex_lock(&j->m->tree.lock);
	struct entry *e = j->entry;
	struct local *l = e->local;
	if (e->is_shown && l && l->handles == 0 && !l->is_submitted && !l->copy_of && l->kind != FILE_FAILED &&
	    !entry_document_id(e) && spool_size(l->spool) == 0 && clock_now_ms() - l->closed_ms >= EMPTY_LIFE_MS &&
	    !name_is_scratch(j->m->rules, e->name))
		local_fail(j->m, e, -ENODATA, "the program wrote nothing");
	pthread_mutex_unlock(&j->m->tree.lock);
	empty_free(j);
}

/* The last writer of a file with a gap is gone: nobody will fill it. tree.lock held. */
static void give_up(struct mount *m, struct entry *e)
{
	struct local *l = e->local;
	char words[160];

	if (name_is_scratch(m->rules, e->name)) {
		local_save_later(m, e);
	} else if (l->is_submitted || entry_document_id(e)) {
		log_warning("upload: '%s' could not be written anew (%s); the version before stays", e->name,
			    strerror(-l->write_error));
		l->is_dirty = false;
		l->write_error = 0;
	} else {
		(void)snprintf(words, sizeof(words),
			       "%s while it was being written, so this is not the whole file: copy it in again",
			       l->write_error == -EFBIG ? "it became larger than the service takes"
			       : l->write_error == -ENOSPC || l->write_error == -EDQUOT ? "the disk was full"
											: strerror(-l->write_error));
		local_fail(m, e, l->write_error, words);
	}
}

void write_release(struct mount *m, struct handle *h)
{
	struct entry *e = h->entry;

	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local;
	if (l) {
		l->handles--;
		l->writers -= h->is_writer;
		if (l->writers == 0 && l->write_error && e->is_shown && l->kind != FILE_FAILED) {
			give_up(m, e);
		} else if (l->writers == 0 && local_wants_sending(m, e)) {
			close_later(m, e);
		} else if (l->writers == 0 && e->is_shown && !l->is_submitted && !l->has_row && !entry_document_id(e)) {
			local_save_later(m, e);
		}
		local_free_if_done(e);
		l = e->local;
	}
	if (l && l->handles == 0) {
		l->closed_ms = clock_now_ms();
		if (e->is_shown && !l->copy_of && spool_size(l->spool) == 0 && !name_is_scratch(m->rules, e->name)) {
			struct empty_job *j = malloc(sizeof(*j));
			if (j) {
				*j = (struct empty_job){ m, e };
				node_hold(&e->node);
				if (pool_run_later(m->disk, EMPTY_LIFE_MS + 100, empty_check, empty_free, j) < 0) {
					node_drop(&m->tree, &e->node);
					free(j);
				}
			}
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	handle_free(m, h);
}

static void fsync_job(void *arg)
{
	struct closing *c = arg;
	int r = local_save(c->m, c->entry);
	fuse_reply_err(c->req, -r);
	closing_free(c);
}

void write_fsync(struct mount *m, fuse_req_t req, struct handle *h)
{
	pthread_mutex_lock(&m->tree.lock);
	struct closing *c = h->entry->local ? closing_new(m, req, h->entry) : NULL;
	pthread_mutex_unlock(&m->tree.lock);
	if (!c) {
		fuse_reply_err(req, 0); /* a document is where it should be */
	} else if (pool_run(m->disk, fsync_job, c) < 0) {
		fuse_reply_err(req, ENOMEM);
		closing_free(c);
	}
}

/* ---- copying a document ------------------------------------------------------------------------------------ */

void write_copy_range(struct mount *m, fuse_req_t req, struct handle *in, off_t in_offset, struct handle *out,
		      off_t out_offset, size_t len)
{
	struct document d;
	size_t copied = 0;
	int error = EXDEV; /* the kernel, or the program, reads and writes then */

	pthread_mutex_lock(&m->tree.lock);
	struct entry *from = in->entry, *to = out->entry;
	struct local *l = to ? to->local : NULL;
	bool is_source = from && from != to && !from->local && entry_document(from, &d) && d.size_bytes > 0 && d.sha256;
	if (is_source && l && l->copy_of && in_offset == d.size_bytes) {
		error = 0; /* the end of it, asked for again */
	} else if (is_source && l && m->caps->attaches && out->is_writer && in_offset == 0 && out_offset == 0 &&
		   !l->copy_of && !l->is_frozen && spool_size(l->spool) == 0 && (uint64_t)d.size_bytes <= len &&
		   d.size_bytes <= INT32_MAX && !name_is_scratch(m->rules, to->name) &&
		   to->folder->kind == FOLDER_SESSION) {
		bool is_listed = from->document >= 0;
		l->copy_of = listing_ref(is_listed ? from->folder->listing : from->own);
		l->copy_at = is_listed ? from->document : from->own_at;
		l->copy_session_id = strdup(from->folder->session.id);
		if (l->copy_session_id) {
			l->is_dirty = out->has_written = true;
			l->mtime_ns = clock_wall_ns();
			copied = (size_t)d.size_bytes;
			error = 0;
		} else {
			listing_unref(l->copy_of);
			l->copy_of = NULL;
			error = ENOMEM;
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (error)
		fuse_reply_err(req, error);
	else
		fuse_reply_write(req, copied);
}
