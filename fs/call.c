/* Calls that ask the service, or the upload engine, for a change: mkdir, rmdir, unlink, link, rename, and looking a session up
 * by its id. Each is parked, done on a worker, and answered within a bound, since the kernel holds a folder's lock meanwhile. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/mount_impl.h"

#define RENAME_LOOK_MS 100 /* for the end of an upload whose last step was sent */

/* One such call under way. Everything is held until it is answered. */
struct change_call {
	struct mount *m;
	fuse_req_t req;
	struct folder *folder, *to; /* either may be NULL */
	struct entry *entry, *target;
	char *name, *new_name;
	unsigned flags;
	int64_t deadline_ms;
	struct wait_list wait; /* the request, while a worker is at it */
	int refs;              /* under tree.lock: the worker and the request */
	int error;
	bool is_done;
	bool is_answered;
	bool moves_on;        /* a rename: the upload it began has the next word */
	bool has_set_aside;   /* a rename: the target was on its way, and goes on should this fail */
	struct node *replied; /* held: what answer_entry() tells of */
	void (*answer)(struct change_call *c, fuse_req_t req, int error);
};

static void answer_error(struct change_call *c, fuse_req_t req, int error)
{
	(void)c;
	fuse_reply_err(req, -error);
}

static struct change_call *call_new(struct mount *m, fuse_req_t req, struct folder *f, struct folder *to,
				    struct entry *e, const char *name, const char *new_name)
{
	struct change_call *c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	*c = (struct change_call){ .m = m,
				   .answer = answer_error,
				   .req = req,
				   .folder = f,
				   .to = to,
				   .entry = e,
				   .refs = 1,
				   .name = name ? strdup(name) : NULL,
				   .new_name = new_name ? strdup(new_name) : NULL };
	if ((name && !c->name) || (new_name && !c->new_name)) {
		free(c->name);
		free(c->new_name);
		free(c);
		return NULL;
	}
	if (f) {
		node_hold(&f->node);
		f->locked_ops++;
	}
	if (to) {
		node_hold(&to->node);
		to->locked_ops++;
	}
	if (e)
		node_hold(&e->node);
	return c;
}

/* tree.lock held. */
static void call_drop(struct change_call *c)
{
	struct tree *t = &c->m->tree;
	if (--c->refs > 0)
		return;
	if (c->folder)
		node_drop(t, &c->folder->node);
	if (c->to)
		node_drop(t, &c->to->node);
	if (c->entry)
		node_drop(t, &c->entry->node);
	if (c->target)
		node_drop(t, &c->target->node);
	if (c->replied)
		node_drop(t, c->replied);
	free(c->name);
	free(c->new_name);
	free(c);
}

/* The request is answered: the kernel lets the folders go. */
static void unlock_folders(struct change_call *c)
{
	if (c->folder)
		c->folder->locked_ops--;
	if (c->to)
		c->to->locked_ops--;
}

static void call_resume(fuse_req_t req, void *arg, int how)
{
	struct change_call *c = arg;
	struct mount *m = c->m;

	pthread_mutex_lock(&m->tree.lock);
	int error = c->is_done ? c->error : how;
	c->is_answered = true;
	pthread_mutex_unlock(&m->tree.lock);
	c->answer(c, req, error);
	pthread_mutex_lock(&m->tree.lock);
	unlock_folders(c);
	call_drop(c);
	pthread_mutex_unlock(&m->tree.lock);
}

static void answer_entry(struct change_call *c, fuse_req_t req, int error)
{
	struct fuse_entry_param p;

	if (error) {
		fuse_reply_err(req, -error);
		return;
	}
	pthread_mutex_lock(&c->m->tree.lock);
	attr_fill_entry_param(c->m, c->replied, &p);
	node_count_lookup(c->replied);
	pthread_mutex_unlock(&c->m->tree.lock);
	if (fuse_reply_entry(req, &p) == -ENOENT) {
		SCOPED_LOCK(&c->m->tree.lock);
		tree_forget(&c->m->tree, p.ino, 1);
	}
}

/* The worker's last word. Takes the worker's share of c. */
static void call_done(struct change_call *c, int error)
{
	struct mount *m = c->m;
	pthread_mutex_lock(&m->tree.lock);
	c->error = error;
	c->is_done = true;
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &c->wait, 0);
	pthread_mutex_lock(&m->tree.lock);
	call_drop(c);
	pthread_mutex_unlock(&m->tree.lock);
}

/* Parks the request and lets a worker run fn(c). tree.lock held; c NULL: out of memory, answered by the caller's caller. */
static bool call_begin_with(struct change_call *c, pool_fn *fn, park_resume *resume, int64_t wait_ms)
{
	c->deadline_ms = clock_now_ms() + wait_ms;
	c->refs = 2;
	if (park_wait(c->m->park, &c->wait, c->req, c->deadline_ms, resume, c) < 0) {
		c->refs = 1;
		unlock_folders(c);
		call_drop(c);
		return false;
	}
	if (pool_run(c->m->calls, fn, c) < 0) {
		c->error = -ENOMEM;
		c->is_done = true;
		c->deadline_ms = 0;
		c->refs = 1; /* the request ends at its deadline with this error */
	}
	return true;
}

static bool call_begin(struct change_call *c, pool_fn *fn, void (*answer)(struct change_call *, fuse_req_t, int),
		       int64_t wait_ms)
{
	c->answer = answer;
	return call_begin_with(c, fn, call_resume, wait_ms);
}

/* The answer, if anybody still waits for it, is this node. tree.lock held. */
static void set_reply(struct change_call *c, struct node *n)
{
	node_hold(n);
	c->replied = n;
}

/* ---- mkdir, rmdir ------------------------------------------------------------------------------------------ */

static int find_template(struct mount *m, int64_t deadline_ms, char **ret)
{
	struct template_list all = { 0 };
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = deadline_ms };
	const char *wanted = m->options->template_name;

	pthread_mutex_lock(&m->tree.lock);
	*ret = m->template_id ? strdup(m->template_id) : NULL;
	pthread_mutex_unlock(&m->tree.lock);
	if (*ret)
		return 0;
	CLEANUP(text_release) char *id = NULL;
	if (backend_find_session_id(m->backend, wanted, &id) == 0 && strcmp(id, wanted) == 0) {
		*ret = strdup(wanted); /* an id is taken as it is */
		return *ret ? 0 : -ENOMEM;
	}
	int r = backend_list_templates(m->backend, &call, &all);
	if (r < 0)
		return r;
	for (int i = 0; i < all.count && !*ret; i++)
		if (strcmp(all.items[i].name, wanted) == 0)
			*ret = strdup(all.items[i].id);
	template_list_release(&all);
	if (!*ret) {
		log_error("mkdir: there is no template called '%s'", wanted);
		return -ENOENT;
	}
	pthread_mutex_lock(&m->tree.lock);
	if (!m->template_id)
		m->template_id = strdup(*ret);
	pthread_mutex_unlock(&m->tree.lock);
	return 0;
}

static void mkdir_job(void *arg)
{
	struct change_call *c = arg;
	struct mount *m = c->m;
	CLEANUP(text_release) char *template_id = NULL;
	CLEANUP(session_release) struct session s = { 0 };
	struct folder *f = NULL;

	int r = find_template(m, c->deadline_ms, &template_id);
	if (r == 0) {
		struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = c->deadline_ms };
		r = backend_create_session(m->backend, &call, template_id, c->name, &s);
	}
	if (r == 0)
		r = folder_add_session(m, &s, ORIGIN_CREATED, &f);
	if (r == 0) {
		pthread_mutex_lock(&m->tree.lock);
		/* A new session is empty: nobody has to ask. */
		f->entries_loaded = true;
		set_reply(c, &f->node);
		pthread_mutex_unlock(&m->tree.lock);
		log_info("session '%s' was made, %s", c->name, s.id);
	}
	call_done(c, r);
}

void call_mkdir(struct mount *m, fuse_req_t req, const char *name)
{
	int error = 0;

	pthread_mutex_lock(&m->tree.lock);
	if (m->options->read_only)
		error = EROFS;
	else if (!m->options->template_name || !m->caps->creates_sessions || name[0] == '.' ||
		 name_is_scratch(m->rules, name) || strcmp(name, "Not uploaded") == 0)
		error = EPERM; /* what a file manager makes for its trash, too */
	else if (name_check(name) < 0)
		error = -name_check(name);
	else if (tree_find_folder_named(&m->tree, name))
		error = EEXIST;
	if (!error) {
		struct change_call *c = call_new(m, req, NULL, NULL, NULL, name, NULL);
		if (!c || !call_begin(c, mkdir_job, answer_entry, WAIT_LOCKED_MS))
			error = ENOMEM;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (error)
		fuse_reply_err(req, error);
}

int folder_forget(struct mount *m, struct folder *f)
{
	struct known_session k;
	CLEANUP(text_release) char *id = NULL, *name = NULL;

	pthread_mutex_lock(&m->tree.lock);
	if (f->local_count > 0) {
		pthread_mutex_unlock(&m->tree.lock);
		return -ENOTEMPTY;
	}
	id = strdup(f->session.id);
	name = strdup(f->name);
	k = (struct known_session){ .id = id,
				    .ino = f->node.ino,
				    .name = name,
				    .server_name = f->session.name,
				    .created_ms = -1,
				    .updated_ms = -1,
				    .origin = f->origin,
				    .is_forgotten = true,
				    .account_saw_it = true };
	char *server_name = strdup(f->session.name ? f->session.name : "");
	k.server_name = server_name;
	if (id && name && server_name)
		tree_hide_folder(&m->tree, f);
	notice_entry(m, NULL, f->name);
	notice_inode(m, INO_ROOT);
	pthread_mutex_unlock(&m->tree.lock);
	int r = id && name && server_name ? state_save_session(m->state, m->account, &k) : -ENOMEM;
	backend_forget(m->backend, id);
	if (r == 0)
		log_info("session '%s' is not shown any more; nothing changed at the service", name);
	free(server_name);
	return r;
}

static void rmdir_job(void *arg)
{
	struct change_call *c = arg;
	call_done(c, folder_forget(c->m, c->folder));
}

void call_rmdir(struct mount *m, fuse_req_t req, const char *name)
{
	int error = 0;

	pthread_mutex_lock(&m->tree.lock);
	struct folder *f = tree_find_folder_named(&m->tree, name);
	if (m->options->read_only)
		error = EROFS;
	else if (!f)
		error = strcmp(name, ".sessionfs") == 0 ? EPERM : ENOENT;
	else if (m->caps->sessions == SESSIONS_LISTED)
		error = EPERM; /* the service's list would show it again */
	if (!error) {
		struct change_call *c = call_new(m, req, f, NULL, NULL, NULL, NULL);
		if (!c || !call_begin(c, rmdir_job, answer_error, WAIT_LOCKED_MS))
			error = ENOMEM;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (error)
		fuse_reply_err(req, error);
}

/* ---- unlink ------------------------------------------------------------------------------------------------ */

static void unlink_local_job(void *arg)
{
	struct change_call *c = arg;
	call_done(c, local_remove(c->m, c->entry));
}

static void unlink_document_job(void *arg)
{
	struct change_call *c = arg;
	struct mount *m = c->m;
	CLEANUP(text_release) char *id = NULL, *sha256 = NULL;

	pthread_mutex_lock(&m->tree.lock);
	struct entry *e = c->entry;
	const char *document_id = e->is_shown ? entry_document_id(e) : NULL;
	id = document_id ? strdup(document_id) : NULL;
	sha256 = id ? local_copy_sha256(c->folder, id) : NULL;
	/* Nor is it taken away from a file with its bytes that is on its way. */
	bool has_twin = m->caps->reuses_bytes && sha256 && local_has_twin(c->folder, e, sha256);
	bool is_last = id && folder_count_names(c->folder, id) == 1 && !has_twin;
	struct detaching detaching;
	if (is_last)
		local_detach_begin(m, &detaching, c->folder, sha256);
	pthread_mutex_unlock(&m->tree.lock);
	int r = id ? 0 : -ENOENT;
	if (is_last) {
		struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = c->deadline_ms };
		r = backend_detach(m->backend, &call, c->folder->session.id, id);
		if (r == -ENOENT && call.fault.kind == FAULT_GONE)
			r = 0;
	}
	pthread_mutex_lock(&m->tree.lock);
	uint64_t ino = e->node.ino;
	if (r == 0 && e->is_shown)
		folder_hide_entry(&m->tree, e, false);
	if (is_last)
		local_detach_end(m, &detaching);
	pthread_mutex_unlock(&m->tree.lock);
	if (r == 0) {
		(void)state_remove_entries(m->state, &ino, 1); /* its document is not there: nothing would show it */
		log_info("'%s' was removed%s", c->name,
			 is_last ? " from the session; the service keeps the document" : "");
	}
	call_done(c, r);
}

void call_unlink(struct mount *m, fuse_req_t req, struct folder *f, const char *name)
{
	int error = 0;
	pool_fn *job = NULL;

	pthread_mutex_lock(&m->tree.lock);
	struct entry *e = folder_find(&m->tree, f, name);
	if (!e)
		e = local_find_refused(m, f, name);
	if (!e) {
		error = folder_has(f, name) ? ENOMEM : ENOENT;
	} else if (m->options->read_only) {
		error = EROFS;
	} else if (e->local && !e->local->counted_out) {
		job = unlink_local_job; /* what is still local can always be removed */
	} else if ((error = -local_may_remove(m, e)) == 0) {
		job = unlink_document_job;
	}
	if (!error) {
		struct change_call *c = call_new(m, req, f, NULL, e, name, NULL);
		if (!c || !call_begin(c, job, answer_error, WAIT_LOCKED_MS))
			error = ENOMEM;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (error)
		fuse_reply_err(req, error);
}

/* ---- link: a document into another session ----------------------------------------------------------------- */

/* Attaches c->entry's document to the session of c->to. Worker threads. */
static int attach_document(struct change_call *c, struct listing **ret, bool *ret_was_there)
{
	struct mount *m = c->m;
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = c->deadline_ms };
	CLEANUP(text_release) char *id = NULL, *from = NULL, *to = NULL;

	pthread_mutex_lock(&m->tree.lock);
	const char *document_id = entry_document_id(c->entry);
	id = document_id ? strdup(document_id) : NULL;
	from = strdup(c->entry->folder->session.id);
	to = strdup(c->to->session.id);
	*ret_was_there = id && folder_count_names(c->to, id) > 0;
	pthread_mutex_unlock(&m->tree.lock);
	if (!id || !from || !to)
		return -ENOMEM;
	const char *ids[] = { id };
	int r = backend_attach(m->backend, &call, to, from, ids, 1, ret);
	if (r < 0)
		return call.fault.kind == FAULT_INVALID || r == -EOPNOTSUPP ? -EXDEV : r;
	return listing_count(*ret) > 0 ? 0 : -EPROTO;
}

static void link_job(void *arg)
{
	struct change_call *c = arg;
	struct mount *m = c->m;
	CLEANUP(listing_release) struct listing *attached = NULL;
	struct entry *e = NULL;
	bool was_there;

	int r = attach_document(c, &attached, &was_there);
	uint64_t ino = r == 0 ? state_next_ino(m->state) : 0;
	if (r == 0 && ino == 0)
		r = -EIO;
	pthread_mutex_lock(&m->tree.lock);
	if (r == 0 && folder_has(c->to, c->new_name))
		r = -EEXIST;
	if (r == 0)
		e = folder_add_entry(&m->tree, c->to, ino, c->new_name);
	if (e) {
		node_hold(&e->node);
		struct entry_past *past = entry_past(e);
		if (past)
			past->mtime_ns = c->entry->past->mtime_ns;
		r = past ? local_become_document(m, e, attached, was_there) : -ENOMEM;
		if (r == 0)
			set_reply(c, &e->node);
	} else if (r == 0) {
		r = -ENOMEM;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (e) {
		folder_save_entry(m, e);
		pthread_mutex_lock(&m->tree.lock);
		node_drop(&m->tree, &e->node);
		pthread_mutex_unlock(&m->tree.lock);
	}
	call_done(c, r);
}

void call_link(struct mount *m, fuse_req_t req, struct entry *e, struct folder *to, const char *name)
{
	pthread_mutex_lock(&m->tree.lock);
	int error = -local_check_name(m, to, name);
	if (!error &&
	    (!entry_document_id(e) || to->kind != FOLDER_SESSION || name_is_scratch(m->rules, name) || e->folder == to))
		error = EPERM;
	else if (!error && !m->caps->attaches)
		error = EXDEV;
	else if (!error && folder_has(to, name))
		error = EEXIST;
	if (!error) {
		struct change_call *c = call_new(m, req, NULL, to, e, NULL, name);
		if (!c || !call_begin(c, link_job, answer_entry, WAIT_LOCKED_MS))
			error = ENOMEM;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (error)
		fuse_reply_err(req, error);
}

/* ---- rename ------------------------------------------------------------------------------------------------ */

/* mv of a document into another session: attached there, then detached here. The inode goes along. */
static void move_document_job(void *arg)
{
	struct change_call *c = arg;
	struct mount *m = c->m;
	CLEANUP(listing_release) struct listing *attached = NULL;
	CLEANUP(text_release) char *id = NULL, *sha256 = NULL;
	struct entry *e = c->entry;
	bool was_there;

	int r = attach_document(c, &attached, &was_there);
	if (r < 0) {
		call_done(c, r);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	const char *document_id = entry_document_id(e);
	id = document_id ? strdup(document_id) : NULL;
	sha256 = id ? local_copy_sha256(c->folder, id) : NULL;
	r = e->is_shown && !folder_has(c->to, c->new_name) ? 0 : -EEXIST;
	if (r == 0)
		r = local_move_document(m, e, c->to, c->new_name, attached, was_there);
	pthread_mutex_unlock(&m->tree.lock);
	if (r == 0)
		folder_save_entry(m, e);
	if (r == 0 && id && local_detach(m, c->folder, id, sha256, c->deadline_ms) < 0)
		log_warning("mv: '%s' is in its new session, and could not be taken out of the old one", c->name);
	call_done(c, r);
}

/* The local file has its final name. tree.lock held. */
static int take_new_name(struct change_call *c)
{
	struct mount *m = c->m;
	struct entry *e = c->entry, *there = folder_find(&c->m->tree, c->to, c->new_name);
	struct folder *from = e->folder;

	if (there == e)
		return 0; /* local_event() was faster */
	if (!e->is_shown)
		return -ENOENT; /* removed meanwhile */
	if (!there && folder_has(c->to, c->new_name))
		return -ENOMEM; /* to wake it */
	if (there) {
		if (there->local && !there->local->counted_out && there->local->is_submitted)
			return -EBUSY;
		if (there->local && !there->local->counted_out)
			local_drop(m, there);
		else
			folder_hide_entry(&m->tree, there, false);
	}
	/* local_event() may have made it a document already, and did so where it still was. */
	CLEANUP(listing_release) struct listing *own = from != c->to && e->own ? listing_ref(e->own) : NULL;
	int r = own ? local_move_document(m, e, c->to, c->new_name, own, e->was_there_before)
		    : folder_rename_entry(&m->tree, e, c->to, c->new_name);
	if (r == 0 && e->local && !e->local->counted_out && from != c->to) {
		from->local_count--;
		c->to->local_count++;
	}
	if (r == 0 && e->local) {
		free(e->local->home_name);
		e->local->home_name = NULL;
		e->local->refused_ms = 0;
		if (!e->local->is_submitted)
			e->local->has_row = false; /* it tells the old name */
		if (e->local->kind == FILE_FAILED)
			e->local->kind = FILE_SCRATCH;
	}
	e->is_saved = false;
	return r;
}

/* At a rename EINVAL would read as "into itself". */
static int rename_error(int error)
{
	return error == -EINVAL ? -EBADMSG : error;
}

/* The local file that is renamed over stays until the rename has succeeded, and is not sent meanwhile. Worker threads. */
static int set_target_aside(struct change_call *c)
{
	struct mount *m = c->m;
	struct entry *there = c->target;
	int r = 0;

	pthread_mutex_lock(&m->rows_lock);
	pthread_mutex_lock(&m->tree.lock);
	bool is_sent = there->is_shown && there->local && there->local->is_submitted;
	struct local *l = is_sent ? local_pin(there) : NULL;
	pthread_mutex_unlock(&m->tree.lock);
	if (l) {
		r = uploads_cancel(m->uploads, there->node.ino, true);
		SCOPED_LOCK(&m->tree.lock);
		if (l->is_submitted && (r == 0 || r == -ENOENT)) {
			l->is_submitted = false;
			l->is_dirty = true;
			l->kind = FILE_SCRATCH;
			c->has_set_aside = true;
		}
	}
	pthread_mutex_unlock(&m->rows_lock);
	if (l && r == -EINPROGRESS)
		r = local_remove(m, there); /* too late: what comes of it is detached */
	else if (l && (r == 0 || r == -ENOENT))
		park_wake(m->park, &l->closers, -ECANCELED);
	if (l) {
		SCOPED_LOCK(&m->tree.lock);
		local_unpin(there, l);
	}
	return r == -ENOENT ? 0 : r;
}

/* The rename failed: what it was to replace goes on. tree.lock held. */
static void put_target_back(struct change_call *c)
{
	if (c->has_set_aside && c->target->is_shown && c->target->local)
		local_send_later(c->m, c->target);
	c->has_set_aside = false;
}

/* The rename's upload has an outcome, or is not waited for any longer: the names follow. 0 or what the caller is told. */
static int rename_settle(struct change_call *c, int how)
{
	struct mount *m = c->m;
	struct entry *e = c->entry;
	struct upload_view view = { 0 };
	int error = how;

	SCOPED_LOCK(&m->rows_lock);
	pthread_mutex_lock(&m->tree.lock);
	bool is_told = e->local && e->local->has_verdict && e->local->verdict < 0;
	if (is_told)
		error = e->local->verdict;
	else if (entry_document_id(e) && (!e->local || e->local->counted_out))
		error = 0; /* it is there */
	else if (how == -ENOTCONN)
		error = 0; /* the mount ends; the next one goes on under the new name */
	pthread_mutex_unlock(&m->tree.lock);
	if (!is_told && error == -ETIMEDOUT && uploads_view(m->uploads, e->node.ino, &view) == 0)
		error = view.error; /* 0: still moving: it goes on as in background mode */
	if (error) {
		/* The scratch name keeps its bytes, and nothing of this attempt may become a document behind the caller's back. */
		int r = uploads_cancel(m->uploads, e->node.ino, true);
		if (r < 0 && r != -ENOENT) {
			log_warning("rename: '%s' failed, but its last step %s", c->new_name,
				    r == -EINPROGRESS ? "had been sent: what came of it is looked up"
						      : "can't be stopped");
			error = 0;
		}
	}
	SCOPED_LOCK(&m->tree.lock);
	struct local *l = e->local;
	if (l)
		l->is_held_back = false;
	if (error == 0)
		error = take_new_name(c);
	if (error && l && !l->counted_out) {
		l->is_submitted = false;
		l->kind = FILE_SCRATCH;
		l->is_dirty = true; /* a rename may be tried again */
	}
	if (error)
		put_target_back(c);
	return error;
}

/* The same. One that failed did not happen, for the next mount either: the row gets its old name before the caller is told. */
static int rename_end(struct change_call *c, int how)
{
	int error = rename_settle(c, how);

	if (error && local_save(c->m, c->entry) < 0) {
		SCOPED_LOCK(&c->m->tree.lock);
		local_save_later(c->m, c->entry);
	}
	return error;
}

/* The upload that a rename began has a verdict, or its 15 seconds are over, or its caller was killed. */
static void rename_upload_resume(fuse_req_t req, void *arg, int how)
{
	struct change_call *c = arg;
	struct mount *m = c->m;

	int error = rename_end(c, how);
	pthread_mutex_lock(&m->tree.lock);
	bool is_document = error == 0 && entry_document_id(c->entry);
	pthread_mutex_unlock(&m->tree.lock);
	if (is_document)
		folder_save_entry(m, c->entry);
	fuse_reply_err(req, -rename_error(error));
	pthread_mutex_lock(&m->tree.lock);
	unlock_folders(c);
	call_drop(c);
	pthread_mutex_unlock(&m->tree.lock);
}

/* Is the document of these very bytes? tree.lock not held. */
static bool has_equal_bytes(struct mount *m, struct entry *local, const struct document *d)
{
	CLEANUP(spool_release) struct spool *s = NULL;
	char sha256[65];

	pthread_mutex_lock(&m->tree.lock);
	s = local->local ? spool_ref(local->local->spool) : NULL;
	pthread_mutex_unlock(&m->tree.lock);
	if (!s || !d->sha256 || (d->size_bytes >= 0 && d->size_bytes != spool_size(s)))
		return false;
	return spool_finish(s, sha256) == 0 && strcmp(sha256, d->sha256) == 0;
}

/* Over a document: equal bytes cost nothing, others need leave to remove. *ret_done: it is all done. */
static int rename_over_document(struct change_call *c, bool *ret_done)
{
	struct mount *m = c->m;
	CLEANUP(listing_release) struct listing *held = NULL;
	struct document d;
	int at = 0;

	pthread_mutex_lock(&m->tree.lock);
	struct entry *there = c->target;
	bool has_document = entry_document(there, &d);
	if (has_document) {
		held = listing_ref(there->document >= 0 ? there->folder->listing : there->own);
		at = there->document >= 0 ? there->document : there->own_at;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (has_document && has_equal_bytes(m, c->entry, &d)) {
		SCOPED_LOCK(&m->rows_lock);
		pthread_mutex_lock(&m->tree.lock);
		/* The name's inode is the renamed file's from now on, as the kernel has it; the document is the same. */
		struct entry *e = c->entry;
		struct folder *from = e->folder;
		const char *there_id = there->is_shown ? entry_document_id(there) : NULL;
		if (!there_id || strcmp(there_id, d.id) != 0 || !e->is_shown || !e->local || e->local->counted_out) {
			pthread_mutex_unlock(&m->tree.lock);
			return -EBUSY; /* somebody was faster */
		}
		int64_t attached_wall_ms = there->past->attached_wall_ms, attached_ms = there->past->attached_ms;
		struct entry_past *past = entry_past(e);
		if (!past) {
			pthread_mutex_unlock(&m->tree.lock);
			return -ENOMEM;
		}
		bool was_there = there->was_there_before;
		folder_hide_entry(&m->tree, there, false);
		int r = folder_rename_entry(&m->tree, e, c->to, c->new_name);
		if (r == 0) {
			from->local_count--;
			r = local_become_known(m, e, held, at);
			past->mtime_ns = e->local->mtime_ns;
			past->attached_wall_ms = attached_wall_ms;
			past->attached_ms = attached_ms;
			e->was_there_before = was_there;
			local_forget_bytes(m, e);
		}
		pthread_mutex_unlock(&m->tree.lock);
		if (r == 0)
			folder_save_entry(m, e);
		*ret_done = true;
		return r;
	}
	pthread_mutex_lock(&m->tree.lock);
	int r = local_may_remove(m, there);
	if (r < 0)
		r = -EEXIST;
	const char *id = entry_document_id(there);
	struct local *l = c->entry->local;
	if (r == 0 && (!l || l->counted_out)) {
		r = -EBUSY; /* it has become a document */
	} else if (r == 0 && id && folder_count_names(c->to, id) == 1 && !l->supersedes_id) {
		l->supersedes_id = strdup(id);
		r = l->supersedes_id ? 0 : -ENOMEM;
	}
	pthread_mutex_unlock(&m->tree.lock);
	return r;
}

/* A file under way takes its new name along until its last step is sent. Worker threads. */
static int rename_under_way(struct change_call *c)
{
	struct mount *m = c->m;
	struct entry *e = c->entry;
	CLEANUP(text_release) char *session_id = NULL, *session_name = NULL;
	bool becomes_scratch = name_is_scratch(m->rules, c->new_name);

	pthread_mutex_lock(&m->tree.lock);
	session_id = strdup(c->to->session.id);
	session_name = strdup(c->to->name);
	pthread_mutex_unlock(&m->tree.lock);
	if (!session_id || !session_name)
		return -ENOMEM;
	SCOPED_LOCK(&m->rows_lock);
	int r = becomes_scratch ? uploads_cancel(m->uploads, e->node.ino, true)
				: uploads_rename(m->uploads, e->node.ino, session_id, session_name, c->new_name);
	if (r == -EINPROGRESS || r == -ENOENT)
		return -EBUSY; /* it is a document now, or will be in a moment */
	if (r < 0)
		return r;
	SCOPED_LOCK(&m->tree.lock);
	if (becomes_scratch && e->local) {
		e->local->is_submitted = false;
		e->local->kind = FILE_SCRATCH;
		e->local->is_dirty = true;
	}
	return take_new_name(c);
}

static void rename_done(struct change_call *c, int r)
{
	if (r < 0) {
		SCOPED_LOCK(&c->m->tree.lock);
		put_target_back(c);
	}
	call_done(c, r);
}

static void rename_local_job(void *arg);

static void rename_give_up(void *arg)
{
	rename_done(arg, -EBUSY);
}

/* Its last step was sent under the old name: once it is a document it can be moved to another session as one. */
static bool rename_later(struct change_call *c)
{
	struct mount *m = c->m;

	pthread_mutex_lock(&m->tree.lock);
	bool can_wait = c->folder != c->to && c->to->kind == FOLDER_SESSION && m->options->remove == REMOVE_YES &&
			m->caps->attaches && !c->is_answered && clock_now_ms() < c->deadline_ms &&
			!name_is_scratch(m->rules, c->new_name);
	pthread_mutex_unlock(&m->tree.lock);
	return can_wait && pool_run_later(m->calls, RENAME_LOOK_MS, rename_local_job, rename_give_up, c) == 0;
}

/* It has become a document since the rename was begun. tree.lock held. */
static bool is_document_to_move(const struct change_call *c)
{
	const struct entry *e = c->entry;

	return c->folder != c->to && e->folder == c->folder && e->is_shown && (!e->local || e->local->counted_out) &&
	       entry_document_id(e) && c->to->kind == FOLDER_SESSION && c->m->options->remove == REMOVE_YES &&
	       c->m->caps->attaches && !c->is_answered && !folder_has(c->to, c->new_name);
}

static void rename_local_job(void *arg)
{
	struct change_call *c = arg;
	struct mount *m = c->m;
	struct entry *e = c->entry;
	bool is_done = false;
	int r = 0;

	pthread_mutex_lock(&m->tree.lock);
	bool moves = is_document_to_move(c);
	pthread_mutex_unlock(&m->tree.lock);
	if (moves) {
		move_document_job(c);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	bool is_over_local = c->target && c->target->local && !c->target->local->counted_out;
	bool is_under_way = e->local && e->local->is_submitted;
	pthread_mutex_unlock(&m->tree.lock);
	if (is_over_local)
		r = set_target_aside(c); /* a placeholder, or a file under way that is not wanted any more */
	pthread_mutex_lock(&m->tree.lock);
	bool is_over_document =
		c->target && c->target->is_shown && (!c->target->local || c->target->local->counted_out);
	pthread_mutex_unlock(&m->tree.lock);
	if (r == 0 && is_over_document)
		r = rename_over_document(c, &is_done);
	if (r == 0 && !is_done && is_under_way) {
		r = rename_under_way(c);
		if (r == -EBUSY && rename_later(c))
			return;
		is_done = true;
	}
	if (r < 0 || is_done) {
		rename_done(c, r);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = e->local ? local_pin(e) : NULL;
	/* A writer that still has it open sends it when it closes, and hears the verdict there. */
	bool sends = l && l->writers == 0 && spool_size(l->spool) > 0 && !name_is_scratch(m->rules, c->new_name);
	if (!sends) {
		r = take_new_name(c);
		if (r == 0 && l && !l->is_submitted) {
			l->is_dirty = true;
			local_save_later(m, e);
		}
		if (l)
			local_unpin(e, l);
		pthread_mutex_unlock(&m->tree.lock);
		rename_done(c, r);
		return;
	}
	l->is_held_back = true;
	pthread_mutex_unlock(&m->tree.lock);
	bool waits = m->options->upload == UPLOAD_AT_CLOSE && m->options->settle_ms == 0;
	int64_t not_before = m->options->settle_ms > 0 ? clock_now_ms() + m->options->settle_ms : 0;
	r = local_submit(m, e, c->to, c->new_name, waits, not_before);
	/* From the worker's wait to the upload's: the request is taken off the one and parked on the other. */
	pthread_mutex_lock(&m->tree.lock);
	bool is_late = c->is_answered;
	bool is_over = is_late || r < 0 || !waits;
	if (is_over)
		l->is_held_back = false;
	else
		c->moves_on = true;
	if (is_over && !is_late && r >= 0)
		r = take_new_name(c);
	local_unpin(e, l);
	pthread_mutex_unlock(&m->tree.lock);
	if (is_late)
		(void)rename_end(c, -ECANCELED); /* its caller has been told already that it failed */
	if (is_over) {
		rename_done(c, rename_error(r));
		return;
	}
	park_wake(m->park, &c->wait, 0);
	pthread_mutex_lock(&m->tree.lock);
	call_drop(c);
	pthread_mutex_unlock(&m->tree.lock);
}

/* The first wait of a local rename is over: either it is done, or the upload's verdict is waited for. */
static void rename_resume(fuse_req_t req, void *arg, int how)
{
	struct change_call *c = arg;
	struct mount *m = c->m;

	pthread_mutex_lock(&m->tree.lock);
	struct local *l = c->entry->local;
	if (c->moves_on && how == 0 && l && l->is_submitted && !(l->has_verdict && l->verdict < 0) &&
	    park_wait(m->park, &l->closers, req, c->deadline_ms, rename_upload_resume, c) == 0) {
		pthread_mutex_unlock(&m->tree.lock);
		return;
	}
	bool moves_on = c->moves_on;
	c->is_answered = true;
	int verdict = l && l->has_verdict ? l->verdict : 0;
	pthread_mutex_unlock(&m->tree.lock);
	if (moves_on)
		rename_upload_resume(req, c, how ? how : verdict);
	else
		call_resume(req, c, how);
}

void call_rename(struct mount *m, fuse_req_t req, struct folder *from, const char *name, struct folder *to,
		 const char *new_name, unsigned flags)
{
	int error = 0;
	bool answers = true;

	pthread_mutex_lock(&m->tree.lock);
	struct entry *e = folder_find(&m->tree, from, name), *there = folder_find(&m->tree, to, new_name);
	bool is_local = e && e->local && !e->local->counted_out;
	if (!e)
		error = folder_has(from, name) ? ENOMEM : ENOENT;
	else if (!there && folder_has(to, new_name))
		error = ENOMEM;
	else if (m->options->read_only)
		error = EROFS;
	else if (flags & ~(unsigned)RENAME_NOREPLACE)
		error = EINVAL;
	else if (there && there != e && (flags & RENAME_NOREPLACE))
		error = EEXIST;
	else if (there == e)
		answers = true; /* nothing to do */
	else if (!is_local && from == to)
		error = EPERM; /* the service cannot rename */
	else if (!is_local && (to->kind != FOLDER_SESSION || m->options->remove != REMOVE_YES))
		error = EPERM;
	else if (!is_local && !m->caps->attaches)
		error = EXDEV;
	else if (!is_local && there)
		error = EEXIST;
	else
		error = -local_check_name(m, to, new_name);
	if (!error && e != there) {
		struct change_call *c = call_new(m, req, from, to, e, name, new_name);
		if (c && is_local && there) {
			c->target = there;
			node_hold(&there->node);
		}
		if (c && is_local)
			answers = !call_begin_with(c, rename_local_job, rename_resume, WAIT_RENAME_MS);
		else if (c)
			answers = !call_begin(c, move_document_job, answer_error, WAIT_LOCKED_MS);
		if (answers)
			error = ENOMEM;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (answers)
		fuse_reply_err(req, error);
}

/* ---- a name in the root ------------------------------------------------------------------------------------ */

static void look_up_job(void *arg)
{
	struct change_call *c = arg;
	struct mount *m = c->m;
	CLEANUP(text_release) char *id = NULL, *target = NULL;
	int r = -ENOENT;

	if (backend_find_session_id(m->backend, c->name, &id) == 0 && strcmp(id, c->name) == 0) {
		pthread_mutex_lock(&m->tree.lock);
		struct folder *f = tree_find_folder(&m->tree, id);
		target = f ? strdup(f->name) : NULL;
		pthread_mutex_unlock(&m->tree.lock);
		r = target ? 0 : folder_look_up_session(m, id, &target);
	} else if (state_find_alias(m->state, c->name, &id) == 0) {
		SCOPED_LOCK(&m->tree.lock);
		struct folder *f = tree_find_folder(&m->tree, id);
		target = f ? strdup(f->name) : NULL;
		r = target ? 0 : -ENOENT;
	}
	if (r == 0) {
		uint64_t ino = state_next_ino(m->state);
		SCOPED_LOCK(&m->tree.lock);
		struct link *l = ino ? tree_add_link(&m->tree, ino, target) : NULL;
		if (l)
			set_reply(c, &l->node);
		else
			r = -ENOMEM;
	}
	call_done(c, r);
}

void call_look_up_root(struct mount *m, fuse_req_t req, const char *name)
{
	pthread_mutex_lock(&m->tree.lock);
	struct change_call *c = call_new(m, req, NULL, NULL, NULL, name, NULL);
	bool is_begun = c && call_begin(c, look_up_job, answer_entry, WAIT_COLD_MS);
	pthread_mutex_unlock(&m->tree.lock);
	if (!is_begun)
		fuse_reply_err(req, ENOMEM);
}
