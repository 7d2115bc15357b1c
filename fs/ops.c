/* The kernel's side: one short function per FUSE operation (find, ask, reply), and their table at the end. What has to wait is
 * parked; the work is done in the files named in mount_impl.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/base/metrics.h"
#include "fs/mount_impl.h"

#define XATTR_LIST_BYTES_MAX (64 * 1024)
#define READ_BYTES_MAX (4 * 1024 * 1024)

static struct mount *mount_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

static struct handle *handle_of(const struct fuse_file_info *fi)
{
	return (struct handle *)(uintptr_t)fi->fh;
}

/* tree.lock held. */
static struct folder *find_folder(struct mount *m, fuse_ino_t ino)
{
	struct node *n = tree_find(&m->tree, ino);
	return n && n->kind == NODE_FOLDER ? (struct folder *)n : NULL;
}

static struct entry *find_entry(struct mount *m, fuse_ino_t ino)
{
	struct node *n = tree_find(&m->tree, ino);
	return n && n->kind == NODE_ENTRY ? (struct entry *)n : NULL;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct mount *m = userdata;

	conn->max_write = 256 * 1024; /* each thread has a buffer of this size, and cp writes 128 KiB */
	conn->time_gran = 1;
	/* One of the two questions that `ls -l` asks of each entry is then answered from the kernel's cache. */
	if ((conn->capable & FUSE_CAP_POSIX_ACL) && !m->options->noxattr)
		conn->want |= FUSE_CAP_POSIX_ACL;
	conn->want &= ~(unsigned)FUSE_CAP_WRITEBACK_CACHE;
	conn->want |= conn->capable & FUSE_CAP_SPLICE_WRITE; /* what is read goes from its file to the kernel past us */
}

/* ---- look-ups ---------------------------------------------------------------------------------------------- */

struct look {
	struct mount *m;
	struct folder *folder; /* held; NULL: the root */
	char *name;
	int64_t began_ms, deadline_ms;
	bool holds_lock; /* parked: counted in its folder's locked_ops until it is answered */
};

static int *locked_ops(struct look *l)
{
	return l->folder ? &l->folder->locked_ops : &l->m->tree.root_locked_ops;
}

/* Its request is parked from here on, or will be again. tree.lock held. */
static void look_hold(struct look *l)
{
	if (!l->holds_lock)
		++*locked_ops(l);
	l->holds_lock = true;
}

/* Its request is answered. */
static void look_free(struct look *l)
{
	pthread_mutex_lock(&l->m->tree.lock);
	if (l->holds_lock)
		--*locked_ops(l);
	if (l->folder)
		node_drop(&l->m->tree, &l->folder->node);
	pthread_mutex_unlock(&l->m->tree.lock);
	free(l->name);
	free(l);
}

static void reply_entry(struct mount *m, fuse_req_t req, const struct fuse_entry_param *p)
{
	if (fuse_reply_entry(req, p) == -ENOENT && p->ino) {
		SCOPED_LOCK(&m->tree.lock);
		tree_forget(&m->tree, p->ino, 1);
	}
}

/* Fills the reply for a name of ours. tree.lock held. */
static void fill_own(struct mount *m, uint64_t ino, struct fuse_entry_param *ret)
{
	struct entry_view room;
	struct node *n = tree_look(&m->tree, ino, &room);
	*ret = (struct fuse_entry_param){ .ino = ino };
	if (n) {
		attr_fill_entry_param(m, n, ret);
		node_count_lookup(n);
		ret->entry_timeout = 0; /* it comes and goes */
	} else {
		(void)control_attr(m, ino, &ret->attr);
	}
}

static void reply_nothing(fuse_req_t req, double timeout_s)
{
	struct fuse_entry_param none = { .entry_timeout = timeout_s };
	fuse_reply_entry(req, &none);
}

/* What is decided about a name without waiting. */
enum verdict { FOUND, NOT_THERE, NOT_THERE_NOW, UNDECIDED, REFUSED };

/* tree.lock held. *ret_timeout_s: how long NOT_THERE holds. */
static enum verdict look_in_folder(struct mount *m, struct folder *f, const char *name, int64_t since_ms,
				   struct fuse_entry_param *ret, double *ret_timeout_s, int *ret_error)
{
	uint64_t why = control_find_why(f, name);
	if (why) {
		fill_own(m, why, ret);
		return FOUND;
	}
	struct entry_view room;
	struct entry *e = folder_look(f, name, &room);
	enum freshness fresh = folder_freshness(m, f, since_ms, ret_error);
	if (e && (fresh != LISTING_REFUSED || e->local)) {
		attr_fill_entry_param(m, &e->node, ret);
		node_count_lookup(&e->node);
		if (f->kind == FOLDER_FAILED)
			ret->entry_timeout = 0;
		return FOUND;
	}
	if ((e = local_find_refused(m, f, name))) {
		/* For a minute a program that cleans up after itself finds what it made; under another inode number than the failed copy, or mv
		 * would not move that one back here. */
		attr_fill_entry_param(m, &e->node, ret);
		ret->ino = ret->attr.st_ino = e->node.ino | INO_REFUSED_BIT;
		ret->entry_timeout = 1.0;
		return FOUND;
	}
	if (f->kind == FOLDER_FAILED)
		return NOT_THERE_NOW;
	if (name_is_scratch(m->rules, name))
		return NOT_THERE_NOW; /* never a document; asking for it costs nothing */
	if (fresh == LISTING_REFUSED)
		return REFUSED;
	if (fresh == LISTING_FRESH) {
		int64_t left_ms = m->options->ttl_ms - (clock_now_ms() - f->refreshed_ms);
		*ret_timeout_s = left_ms > 0 ? (double)left_ms / 1000 : 0;
		f->gave_negatives = true;
		return NOT_THERE;
	}
	return UNDECIDED;
}

static void look_resume(fuse_req_t req, void *arg, int how);

/* Takes l. */
static void look(fuse_req_t req, struct look *l, int how)
{
	struct mount *m = l->m;
	struct folder *f = l->folder;
	struct fuse_entry_param p = { 0 };
	double timeout_s = 0;
	int error = 0;

	pthread_mutex_lock(&m->tree.lock);
	enum verdict v = look_in_folder(m, f, l->name, l->began_ms, &p, &timeout_s, &error);
	if (v == UNDECIDED && how == 0) {
		folder_refresh(m, f, URGENCY_PERSON);
		if (l->deadline_ms == 0)
			l->deadline_ms = clock_now_ms() + (f->listing ? WAIT_REFRESH_MS : WAIT_COLD_MS);
		if (f->is_refreshing)
			look_hold(l);
		if (f->is_refreshing && park_wait(m->park, &f->waiters, req, l->deadline_ms, look_resume, l) == 0) {
			pthread_mutex_unlock(&m->tree.lock);
			return;
		}
	}
	bool lacks_budget = folder_lacks_budget(f);
	pthread_mutex_unlock(&m->tree.lock);
	if (v == FOUND)
		reply_entry(m, req, &p);
	else if (v == NOT_THERE)
		reply_nothing(req, timeout_s);
	else if (how == -EINTR)
		fuse_reply_err(req, EINTR);
	else if (v == REFUSED && (error == -EACCES || error == -ENOENT))
		fuse_reply_err(req, -error);
	else if ((v == UNDECIDED || v == REFUSED) && lacks_budget)
		fuse_reply_err(req, EAGAIN); /* the listing has not begun: nothing at all is known */
	else
		fuse_reply_err(req, ENOENT); /* not decided, and not cached: copying in works at once */
	look_free(l);
}

static void look_resume(fuse_req_t req, void *arg, int how)
{
	look(req, arg, how);
}

static void look_in_root(fuse_req_t req, struct look *l, int how);

static void look_in_root_resume(fuse_req_t req, void *arg, int how)
{
	look_in_root(req, arg, how == 0 ? 1 : how);
}

/* Takes l. how: 0 the first time. */
static void look_in_root(fuse_req_t req, struct look *l, int how)
{
	struct mount *m = l->m;
	struct fuse_entry_param p = { 0 };
	enum verdict v = UNDECIDED;

	pthread_mutex_lock(&m->tree.lock);
	uint64_t own = control_find(m, INO_ROOT, l->name);
	struct folder *f = tree_find_folder_named(&m->tree, l->name);
	if (own) {
		fill_own(m, own, &p);
		v = FOUND;
	} else if (f) {
		attr_fill_entry_param(m, &f->node, &p);
		node_count_lookup(&f->node);
		v = FOUND;
	} else if (l->name[0] == '.' || name_is_scratch(m->rules, l->name) || strcmp(l->name, NAME_FAILED_LINK) == 0 ||
		   strcmp(l->name, NAME_HINT) == 0) {
		v = NOT_THERE_NOW; /* what file managers probe for */
	} else if (how == 0) {
		folders_refresh(m);
		if (m->sessions_refreshing)
			look_hold(l);
		if (m->sessions_refreshing &&
		    park_wait(m->park, &m->session_waiters, req,
			      clock_now_ms() + (m->sessions_asked ? WAIT_REFRESH_MS : WAIT_COLD_MS),
			      look_in_root_resume, l) == 0) {
			pthread_mutex_unlock(&m->tree.lock);
			return;
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (v == FOUND)
		reply_entry(m, req, &p);
	else if (v == NOT_THERE_NOW)
		fuse_reply_err(req, ENOENT);
	else if (how == -EINTR)
		fuse_reply_err(req, EINTR);
	else
		call_look_up_root(m, req, l->name); /* a session's id, or the name it had */
	look_free(l);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct mount *m = mount_of(req);
	struct fuse_entry_param p = { 0 };
	struct look *l = NULL;

	if (strlen(name) > NAME_BYTES_MAX) {
		fuse_reply_err(req, ENAMETOOLONG);
		return;
	}
	if (control_is_folder(parent)) {
		pthread_mutex_lock(&m->tree.lock);
		uint64_t own = control_find(m, parent, name);
		if (own)
			fill_own(m, own, &p);
		pthread_mutex_unlock(&m->tree.lock);
		if (own)
			reply_entry(m, req, &p);
		else
			fuse_reply_err(req, ENOENT);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	(void)tree_settle(&m->tree);
	struct folder *f = find_folder(m, parent);
	if (f || parent == INO_ROOT)
		l = calloc(1, sizeof(*l));
	if (l) {
		*l = (struct look){ .m = m, .folder = f, .name = strdup(name), .began_ms = clock_now_ms() };
		if (f)
			node_hold(&f->node);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!l || !l->name) {
		fuse_reply_err(req, l ? ENOMEM : f || parent == INO_ROOT ? ENOMEM : ENOTDIR);
		if (l)
			look_free(l);
	} else if (f) {
		look(req, l, 0);
	} else {
		look_in_root(req, l, 0);
	}
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
	struct mount *m = mount_of(req);
	pthread_mutex_lock(&m->tree.lock);
	tree_forget(&m->tree, ino, count);
	pthread_mutex_unlock(&m->tree.lock);
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	struct mount *m = mount_of(req);
	pthread_mutex_lock(&m->tree.lock);
	for (size_t i = 0; i < count; i++)
		tree_forget(&m->tree, forgets[i].ino, forgets[i].nlookup);
	pthread_mutex_unlock(&m->tree.lock);
	fuse_reply_none(req);
}

/* ---- attributes -------------------------------------------------------------------------------------------- */

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct mount *m = mount_of(req);
	struct fuse_entry_param p = { 0 };
	struct entry_view room;
	int error = 0;
	(void)fi;

	pthread_mutex_lock(&m->tree.lock);
	struct node *n = tree_look(&m->tree, ino, &room);
	if (n) {
		attr_fill_entry_param(m, n, &p);
		p.attr.st_ino = ino;
	} else if (!control_attr(m, ino, &p.attr)) {
		error = ENOENT;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (error)
		fuse_reply_err(req, error);
	else
		fuse_reply_attr(req, &p.attr, p.attr_timeout);
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	struct mount *m = mount_of(req);

	pthread_mutex_lock(&m->tree.lock);
	(void)tree_settle(&m->tree);
	struct entry *e = find_entry(m, ino);
	if (e)
		node_hold(&e->node);
	bool is_read_only = m->options->read_only;
	pthread_mutex_unlock(&m->tree.lock);
	if (is_read_only)
		fuse_reply_err(req, EROFS);
	else if (e)
		write_setattr(m, req, e, attr, to_set);
	else if (to_set & FUSE_SET_ATTR_SIZE)
		fuse_reply_err(req, EACCES);
	else
		op_getattr(req, ino, fi); /* accepted, and nothing changes */
	if (e) {
		pthread_mutex_lock(&m->tree.lock);
		node_drop(&m->tree, &e->node);
		pthread_mutex_unlock(&m->tree.lock);
	}
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	/* Large constants: a file manager refuses to copy to where nothing is free, and the service tells no quota. */
	struct statvfs st = { .f_bsize = 128 * 1024,
			      .f_frsize = 4096,
			      .f_blocks = 1ULL << 36,
			      .f_bfree = 1ULL << 36,
			      .f_bavail = 1ULL << 36,
			      .f_files = 1ULL << 32,
			      .f_ffree = 1ULL << 32,
			      .f_favail = 1ULL << 32,
			      .f_namemax = NAME_BYTES_MAX };
	(void)ino;
	fuse_reply_statfs(req, &st);
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	struct mount *m = mount_of(req);
	CLEANUP(text_release) char *target = NULL;

	pthread_mutex_lock(&m->tree.lock);
	struct node *n = tree_find(&m->tree, ino);
	const char *text = n && n->kind == NODE_LINK ? ((struct link *)n)->target : control_link(ino);
	target = text ? strdup(text) : NULL;
	pthread_mutex_unlock(&m->tree.lock);
	if (target)
		fuse_reply_readlink(req, target);
	else
		fuse_reply_err(req, EINVAL);
}

/* ---- extended attributes ----------------------------------------------------------------------------------- */

struct xattr {
	struct mount *m;
	uint64_t ino;
	char *name; /* NULL: the list */
	size_t size;
};

static void reply_xattr(fuse_req_t req, const struct buf *b, size_t size)
{
	if (!buf_text(b))
		fuse_reply_err(req, E2BIG);
	else if (size == 0)
		fuse_reply_xattr(req, b->len);
	else if (b->len > size)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, b->data ? b->data : "", b->len);
}

static void xattr_resume(fuse_req_t req, void *arg, int how);

/* Takes x unless it is the caller's own (is_own). how 1: nobody waits any more. */
static bool xattr_answer(fuse_req_t req, struct xattr *x, int how)
{
	struct mount *m = x->m;
	CLEANUP(buf_release) struct buf value = BUF(XATTR_LIST_BYTES_MAX);
	int r = 0, error = 0;

	pthread_mutex_lock(&m->tree.lock);
	struct entry_view room;
	struct node *n = tree_look(&m->tree, x->ino, &room);
	struct folder *f = !n                       ? NULL
			   : n->kind == NODE_FOLDER ? (struct folder *)n
			   : n->kind == NODE_ENTRY  ? ((struct entry *)n)->folder
						    : NULL;
	bool is_local = n && n->kind == NODE_ENTRY && entry_is_local((struct entry *)n);
	/* What a session's folder is (its id, its template) does not hang on its listing. */
	bool is_known = n && n->kind == NODE_FOLDER && x->name && !f->listing && attr_get(m, n, x->name, &value) == 0;
	buf_clear(&value);
	if (f && f->kind == FOLDER_SESSION && !is_local && !is_known && how == 0) {
		enum freshness fresh = folder_freshness(m, f, 0, &error);
		if (fresh == LISTING_REFUSED && error == -EACCES)
			r = error;
		if (fresh == LISTING_STALE || fresh == LISTING_COLD)
			folder_refresh(m, f, URGENCY_PERSON);
		if ((fresh == LISTING_STALE || fresh == LISTING_COLD) && f->is_refreshing) {
			struct xattr *copy = malloc(sizeof(*copy));
			if (copy) {
				*copy = *x;
				copy->name = x->name ? strdup(x->name) : NULL;
				if (park_wait(m->park, &f->waiters, req, clock_now_ms() + WAIT_REFRESH_MS, xattr_resume,
					      copy) == 0) {
					pthread_mutex_unlock(&m->tree.lock);
					return false;
				}
				free(copy->name);
				free(copy);
			}
		}
	}
	if (!n && !control_is_file(x->ino) && !control_is_folder(x->ino))
		r = -ENOENT;
	else if (r == 0 && x->name)
		r = n ? attr_get(m, n, x->name, &value) : -ENODATA;
	else if (r == 0 && n)
		attr_list(m, n, &value);
	pthread_mutex_unlock(&m->tree.lock);
	if (how == -EINTR)
		fuse_reply_err(req, EINTR);
	else if (r < 0)
		fuse_reply_err(req, -r);
	else
		reply_xattr(req, &value, x->size);
	return true;
}

static void xattr_resume(fuse_req_t req, void *arg, int how)
{
	struct xattr *x = arg;
	(void)xattr_answer(req, x, how == 0 ? 1 : how); /* not parked again */
	free(x->name);
	free(x);
}

/* Names that a file system has or has not as a whole. To this answer ls(1) stops asking for security.selinux on the device at its first entry,
 * where it would go on for each after ENODATA. */
static bool is_for_kernel(const char *name)
{
	return strncmp(name, "security.", 9) == 0 || strncmp(name, "trusted.", 8) == 0;
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct mount *m = mount_of(req);
	struct xattr x = { m, ino, (char *)name, size };

	if (m->options->noxattr)
		fuse_reply_err(req, ENOSYS);     /* the kernel asks no more */
	else if (strncmp(name, "user.", 5) != 0) /* each `ls -l` asks two of these of each entry: before any lock */
		fuse_reply_err(req, is_for_kernel(name) ? EOPNOTSUPP : ENODATA);
	else
		(void)xattr_answer(req, &x, 0);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	struct mount *m = mount_of(req);
	struct xattr x = { m, ino, NULL, size };

	if (m->options->noxattr)
		fuse_reply_err(req, ENOSYS);
	else
		(void)xattr_answer(req, &x, 0);
}

static void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
	(void)ino, (void)name, (void)value, (void)size, (void)flags;
	fuse_reply_err(req, EOPNOTSUPP);
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	(void)ino, (void)name;
	fuse_reply_err(req, EOPNOTSUPP);
}

/* ---- folders ----------------------------------------------------------------------------------------------- */

/* A name in a folder of ours, packed into handle->text. */
struct packed {
	uint64_t ino;
	uint32_t mode, bytes; /* of the whole record */
	char name[];
};

static void pack_name(void *arg, const char *name, uint64_t ino, mode_t mode)
{
	struct buf *b = arg;
	size_t len = strlen(name) + 1, whole = (sizeof(struct packed) + len + 7) & ~(size_t)7;
	struct packed head = { ino, mode, (uint32_t)whole };
	static const char zeroes[8];
	buf_add_bytes(b, &head, sizeof(head));
	buf_add_bytes(b, name, len);
	buf_add_bytes(b, zeroes, whole - sizeof(head) - len);
}

static void pack_failed(struct folder *f, struct buf *b)
{
	char name[NAME_BYTES_MAX + 16];
	struct entry *e;
	for (size_t at = 0; (e = index_next(&f->names, &at));) {
		pack_name(b, e->name, e->node.ino, S_IFREG);
		(void)snprintf(name, sizeof(name), "%s.why.txt", e->name);
		if (strlen(name) <= NAME_BYTES_MAX)
			pack_name(b, name, e->node.ino | INO_WHY_BIT, S_IFREG);
	}
}

struct opening {
	struct mount *m;
	struct fuse_file_info fi;
	struct handle *handle;
	int64_t began_ms, deadline_ms;
};

static void opendir_resume(fuse_req_t req, void *arg, int how);

/* Takes o. */
static void opendir_go_on(fuse_req_t req, struct opening *o, int how)
{
	struct mount *m = o->m;
	struct handle *h = o->handle;
	struct folder *f = h->folder;
	int error = 0, refused = 0;

	pthread_mutex_lock(&m->tree.lock);
	if (f && f->kind == FOLDER_SESSION) {
		enum freshness fresh = folder_freshness(m, f, o->began_ms, &refused);
		if (o->deadline_ms == 0)
			metrics_count_answer(METRICS_LISTINGS, fresh == LISTING_FRESH);
		if (fresh == LISTING_REFUSED && (refused == -EACCES || refused == -ENOENT))
			error = -refused;
		else if (fresh == LISTING_REFUSED)
			h->error = refused; /* what is local is shown, and then that it is not all */
		if (fresh == LISTING_STALE || fresh == LISTING_COLD)
			folder_refresh(m, f, URGENCY_PERSON);
		if (o->deadline_ms == 0)
			o->deadline_ms = clock_now_ms() + WAIT_REFRESH_MS;
		/* What the disk remembers of it is looked at first, be it that only its record is asked for as yet. */
		bool may_recall = f->is_recalling || !f->was_recalled;
		if ((fresh == LISTING_STALE || (fresh == LISTING_COLD && may_recall)) && f->is_refreshing && how == 0 &&
		    park_wait(m->park, &f->waiters, req, o->deadline_ms, opendir_resume, o) == 0) {
			pthread_mutex_unlock(&m->tree.lock);
			return;
		}
		/* While the first walk is under way names are handed out as they come. Other snapshots are made when they are read: mostly
		 * the kernel remembers the names. */
		bool is_growing = fresh == LISTING_COLD && f->is_refreshing;
		if (!error && is_growing)
			h->snapshot = folder_snapshot(f, true);
		if (!error && is_growing && !h->snapshot)
			error = ENOMEM;
		if (!error && fresh == LISTING_COLD && !f->is_refreshing)
			error = EIO; /* the mount is ending, or memory is */
		if (!error && !h->error && !is_growing && !(f->snapshot && f->snapshot->is_growing)) {
			o->fi.cache_readdir = 1;
			o->fi.keep_cache = f->cached_shape == f->shape;
			f->cached_shape = f->shape;
		}
	} else if (f) {
		pack_failed(f, &h->text);
	} else {
		if (h->ino == INO_ROOT) {
			folders_refresh_names(m);
			folders_refresh(m);
			if (o->deadline_ms == 0)
				o->deadline_ms = clock_now_ms() + (m->sessions_asked ? WAIT_REFRESH_MS : WAIT_COLD_MS);
			/* Until the service has said something what is remembered is shown at once. */
			bool waits =
				m->sessions_refreshing && how == 0 && (m->is_verified || m->tree.folder_count == 0);
			if (waits &&
			    park_wait(m->park, &m->session_waiters, req, o->deadline_ms, opendir_resume, o) == 0) {
				pthread_mutex_unlock(&m->tree.lock);
				return;
			}
		}
		control_list(m, h->ino, pack_name, &h->text);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (how == -EINTR)
		error = EINTR;
	if (error) {
		fuse_reply_err(req, error);
		handle_free(m, h);
	} else if (fuse_reply_open(req, &o->fi) == -ENOENT) {
		handle_free(m, h);
	}
	free(o);
}

static void opendir_resume(fuse_req_t req, void *arg, int how)
{
	opendir_go_on(req, arg, how);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct mount *m = mount_of(req);
	struct opening *o = calloc(1, sizeof(*o));
	struct handle *h = handle_new(m);

	if (!o || !h) {
		free(o);
		handle_free(m, h);
		fuse_reply_err(req, ENOMEM);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	(void)tree_settle(&m->tree);
	h->ino = ino;
	h->folder = find_folder(m, ino);
	if (h->folder)
		node_hold(&h->folder->node);
	bool is_ours = h->folder || control_is_folder(ino) || ino == INO_ROOT;
	pthread_mutex_unlock(&m->tree.lock);
	fi->fh = (uintptr_t)h;
	*o = (struct opening){ .m = m, .fi = *fi, .handle = h, .began_ms = clock_now_ms() };
	if (is_ours) {
		opendir_go_on(req, o, 0);
	} else {
		fuse_reply_err(req, ENOTDIR);
		handle_free(m, h);
		free(o);
	}
}

struct listing_reply {
	fuse_req_t req;
	char *data;
	size_t used, size;
	bool is_plus;
};

/* false: it does not fit any more. */
static bool add_entry(struct listing_reply *r, const char *name, const struct fuse_entry_param *p, off_t next)
{
	size_t left = r->size - r->used;
	size_t n = r->is_plus ? fuse_add_direntry_plus(r->req, r->data + r->used, left, name, p, next)
			      : fuse_add_direntry(r->req, r->data + r->used, left, name, &p->attr, next);
	if (n > left)
		return false;
	r->used += n;
	return true;
}

/* "." and ".." are not looked up: their inode number in the reply is 0. */
static bool add_dots(struct listing_reply *r, uint64_t ino, off_t *at)
{
	for (; *at < 2; (*at)++) {
		struct fuse_entry_param p = { .attr = { .st_ino = *at == 0 ? ino : INO_ROOT, .st_mode = S_IFDIR } };
		if (!add_entry(r, *at == 0 ? "." : "..", &p, *at + 1))
			return false;
	}
	return true;
}

/* A name that libraries pass over, its inode number being 0: the kernel lets go of the folder, which it locks while a reader waits, and the
 * reader asks again at once. */
static void add_nothing(struct listing_reply *r, off_t at)
{
	struct fuse_entry_param p = { .attr = { .st_ino = 0, .st_mode = S_IFDIR } };

	(void)add_entry(r, ".", &p, at);
}

/* tree.lock held. */
static void add_snapshot(struct mount *m, struct listing_reply *r, struct handle *h, off_t at)
{
	const struct snapshot *s = h->snapshot;
	struct entry_view room;

	for (int i = snapshot_seek(s, at); i < s->count; i++) {
		struct entry *e = snapshot_look(&m->tree, s, h->folder, i, &room);
		struct fuse_entry_param p;
		if (!e)
			continue;
		if (r->is_plus)
			attr_fill_entry_param(m, &e->node, &p);
		else
			p = (struct fuse_entry_param){ .attr = { .st_ino = e->node.ino, .st_mode = S_IFREG } };
		if (!add_entry(r, e->name, &p, snapshot_offset(s, i)))
			return;
		if (r->is_plus)
			node_count_lookup(&e->node);
	}
}

/* tree.lock held. */
static void add_packed(struct mount *m, struct listing_reply *r, struct handle *h, off_t at)
{
	off_t i = 2;
	for (size_t offset = 0; offset < h->text.len; i++) {
		const struct packed *item = (const struct packed *)(h->text.data + offset);
		offset += item->bytes;
		if (i < at)
			continue;
		struct node *n = tree_find(&m->tree, item->ino);
		struct fuse_entry_param p = { .attr = { .st_ino = item->ino, .st_mode = item->mode } };
		if (n && r->is_plus)
			attr_fill_entry_param(m, n, &p);
		if (!add_entry(r, item->name, &p, i + 1))
			return;
		if (n && r->is_plus)
			node_count_lookup(n);
	}
}

struct reading_dir {
	struct mount *m;
	struct handle *handle;
	size_t size;
	off_t at;
	bool is_plus;
};

static void readdir_answer(fuse_req_t req, struct reading_dir *d, int how);

static void readdir_resume(fuse_req_t req, void *arg, int how)
{
	struct reading_dir *d = arg;
	struct mount *m = d->m;
	struct folder *f = d->handle->folder;

	pthread_mutex_lock(&m->tree.lock);
	node_hold(&f->node); /* once it is answered the handle may go */
	pthread_mutex_unlock(&m->tree.lock);
	readdir_answer(req, d, how);
	pthread_mutex_lock(&m->tree.lock);
	f->locked_ops--;
	node_drop(&m->tree, &f->node);
	pthread_mutex_unlock(&m->tree.lock);
	free(d);
}

static void readdir_answer(fuse_req_t req, struct reading_dir *d, int how)
{
	struct mount *m = d->m;
	struct handle *h = d->handle;
	struct listing_reply r = { .req = req, .size = d->size, .is_plus = d->is_plus, .data = malloc(d->size) };
	off_t at = d->at;
	int error = r.data ? 0 : ENOMEM;
	bool is_parked = false;
	int64_t now = clock_now_ms();

	pthread_mutex_lock(&m->tree.lock);
	bool is_session = h->folder && h->folder->kind == FOLDER_SESSION;
	if (is_session && at == 0 && h->was_read && !h->snapshot->is_growing && !h->snapshot->error) {
		snapshot_drop(h->snapshot); /* from the start again: what is there now */
		h->snapshot = NULL;
	}
	if (!error && is_session && !h->snapshot && !(h->snapshot = folder_snapshot(h->folder, false)))
		error = ENOMEM;
	h->was_read = h->snapshot != NULL;
	if (!error && add_dots(&r, h->ino, &at)) {
		if (h->snapshot)
			add_snapshot(m, &r, h, at);
		else
			add_packed(m, &r, h, at);
	}
	if (r.used > 0)
		h->silent_ms = 0;
	else if (h->silent_ms == 0)
		h->silent_ms = now;
	if (!error && r.used == 0 && h->snapshot && h->snapshot->is_growing && how == 0) {
		struct reading_dir *again = malloc(sizeof(*again));
		folder_refresh(m, h->folder, URGENCY_PERSON); /* the walk, if it is not under way */
		if (again) {
			*again = *d;
			is_parked = park_wait(m->park, &h->folder->waiters, req, now + WAIT_READDIR_MS, readdir_resume,
					      again) == 0;
			h->folder->locked_ops += is_parked;
		}
		if (!is_parked)
			free(again);
	} else if (!error && r.used == 0 && how == -ETIMEDOUT && now - h->silent_ms < WAIT_PAGE_MS) {
		add_nothing(&r, at);
	} else if (!error && r.used == 0 && how < 0) {
		error = -how;
	} else if (!error && r.used == 0 && h->snapshot && (h->snapshot->error || h->error)) {
		/* The first walk ended early: what it brought was handed out, and the reader is told that it is not all. */
		error = h->error ? -h->error : -h->snapshot->error;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (is_parked) {
		free(r.data);
		return;
	}
	if (error)
		fuse_reply_err(req, error);
	else
		fuse_reply_buf(req, r.data, r.used);
	free(r.data);
}

static void read_dir(fuse_req_t req, size_t size, off_t at, struct fuse_file_info *fi, bool is_plus)
{
	struct reading_dir d = { mount_of(req), handle_of(fi), size > READ_BYTES_MAX ? READ_BYTES_MAX : size, at,
				 is_plus };
	readdir_answer(req, &d, 0);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t at, struct fuse_file_info *fi)
{
	(void)ino;
	read_dir(req, size, at, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t at, struct fuse_file_info *fi)
{
	(void)ino;
	read_dir(req, size, at, fi, true);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct mount *m = mount_of(req);
	struct handle *h = handle_of(fi);
	(void)ino;

	pthread_mutex_lock(&m->tree.lock);
	snapshot_drop(h->snapshot);
	h->snapshot = NULL;
	if (h->folder)
		folder_forget_snapshot(h->folder);
	pthread_mutex_unlock(&m->tree.lock);
	handle_free(m, h);
	fuse_reply_err(req, 0);
	folders_settle(m); /* the last reader of a first walk held all that it brought */
}

/* ---- files ------------------------------------------------------------------------------------------------- */

static void open_text(struct mount *m, fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct handle *h = handle_new(m);

	if (!h || (fi->flags & O_ACCMODE) != O_RDONLY) {
		handle_free(m, h);
		fuse_reply_err(req, h ? EACCES : ENOMEM);
		return;
	}
	h->ino = ino;
	pthread_mutex_lock(&m->tree.lock);
	control_read(m, ino, &h->text);
	pthread_mutex_unlock(&m->tree.lock);
	fi->fh = (uintptr_t)h;
	fi->direct_io = 1; /* the text of this open, whatever size it had before */
	if (fuse_reply_open(req, fi) == -ENOENT)
		handle_free(m, h);
}

struct first_open {
	struct mount *m;
	struct fuse_file_info fi;
	struct handle *handle;
};

/* A document of unknown size is here now. */
static void opened_unknown(fuse_req_t req, void *arg, int error, int fd, bool is_whole)
{
	struct first_open *o = arg;
	struct stat st;
	(void)is_whole; /* that is what was asked for */

	if (!error && fstat(fd, &st) == 0) {
		SCOPED_LOCK(&o->m->tree.lock);
		learn_note(o->m, o->handle->entry, st.st_size);
	}
	if (error) {
		fuse_reply_err(req, -error);
		handle_free(o->m, o->handle);
	} else {
		o->handle->fd = fd;
		o->fi.direct_io = 1;
		if (fuse_reply_open(req, &o->fi) == -ENOENT)
			handle_free(o->m, o->handle);
	}
	free(o);
}

/* e is held; the handle takes a hold of its own. */
static void open_for_reading(struct mount *m, fuse_req_t req, struct entry *e, struct fuse_file_info *fi)
{
	struct document d;
	struct handle *h = handle_new(m);

	if (!h) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	h->entry = e;
	node_hold(&e->node);
	if (e->local) {
		e->local->handles++;
		fi->direct_io = e->local->writers > 0;
	}
	bool is_unknown = !e->local && entry_document(e, &d) && d.size_bytes < 0 && e->past->learned_bytes == 0;
	fi->keep_cache = !e->local; /* a document never changes under its id */
	fi->fh = (uintptr_t)h;
	h->holds_local = e->local != NULL;
	pthread_mutex_unlock(&m->tree.lock);
	struct first_open *o = is_unknown ? malloc(sizeof(*o)) : NULL;
	if (is_unknown && o) {
		*o = (struct first_open){ m, *fi, h };
		read_want(m, req, e, INT64_MAX, opened_unknown, o);
	} else if (is_unknown) {
		fuse_reply_err(req, ENOMEM);
		handle_free(m, h);
	} else if (fuse_reply_open(req, fi) == -ENOENT) {
		if (h->holds_local)
			write_release(m, h);
		else
			handle_free(m, h);
	}
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct mount *m = mount_of(req);

	if (control_is_file(ino)) {
		open_text(m, req, ino, fi);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	(void)tree_settle(&m->tree);
	struct entry *e = find_entry(m, ino);
	if (e)
		node_hold(&e->node);
	pthread_mutex_unlock(&m->tree.lock);
	if (!e) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	if ((fi->flags & O_ACCMODE) != O_RDONLY || (fi->flags & O_TRUNC))
		write_open(m, req, e, fi);
	else
		open_for_reading(m, req, e, fi);
	pthread_mutex_lock(&m->tree.lock);
	node_drop(&m->tree, &e->node);
	pthread_mutex_unlock(&m->tree.lock);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	struct mount *m = mount_of(req);
	(void)mode;

	pthread_mutex_lock(&m->tree.lock);
	struct folder *f = find_folder(m, parent);
	if (f)
		node_hold(&f->node);
	pthread_mutex_unlock(&m->tree.lock);
	if (!f) {
		fuse_reply_err(req, EPERM); /* the root and our own folders hold no files of yours */
		return;
	}
	write_create(m, req, f, name, fi);
	pthread_mutex_lock(&m->tree.lock);
	node_drop(&m->tree, &f->node);
	pthread_mutex_unlock(&m->tree.lock);
}

static void reply_fd(fuse_req_t req, int fd, size_t size, off_t offset)
{
	struct fuse_bufvec v = FUSE_BUFVEC_INIT(size);
	v.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK | FUSE_BUF_FD_RETRY;
	v.buf[0].fd = fd;
	v.buf[0].pos = offset;
	fuse_reply_data(req, &v, 0);
}

struct reading {
	struct mount *m;
	struct handle *handle;
	struct entry *entry; /* held */
	size_t size;
	off_t offset;
};

static void reading_free(struct reading *r)
{
	pthread_mutex_lock(&r->m->tree.lock);
	node_drop(&r->m->tree, &r->entry->node);
	pthread_mutex_unlock(&r->m->tree.lock);
	free(r);
}

static void read_document_ready(fuse_req_t req, void *arg, int error, int fd, bool is_whole)
{
	struct reading *r = arg;
	struct handle *h = r->handle;

	pthread_mutex_lock(&h->lock);
	if (!error && is_whole) {
		if (h->fd < 0)
			h->fd = fd;
		else
			(void)close(fd); /* read from alone */
		fd = h->fd;
	}
	if (h->error) /* what it has read before was wrong */
		error = h->error;
	pthread_mutex_unlock(&h->lock);
	if (error)
		fuse_reply_err(req, -error);
	else
		reply_fd(req, fd, r->size, r->offset);
	reading_free(r);
}

static void read_spool(fuse_req_t req, struct spool *s, size_t size, off_t offset)
{
	char *data = malloc(size);
	ssize_t n = data ? spool_read(s, data, size, offset) : -ENOMEM;
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_buf(req, data, (size_t)n);
	free(data);
}

/* The bytes of a copied document are wanted before its close. */
static void read_copy_job(void *arg)
{
	struct reading *r = ((void **)arg)[0];
	fuse_req_t req = ((void **)arg)[1];
	struct mount *m = r->m;
	struct spool *s = NULL;

	free(arg);
	int error = local_fill_copy(m, r->entry);
	pthread_mutex_lock(&m->tree.lock);
	if (!error && r->entry->local)
		s = spool_ref(r->entry->local->spool);
	pthread_mutex_unlock(&m->tree.lock);
	if (s)
		read_spool(req, s, r->size, r->offset);
	else
		fuse_reply_err(req, error ? -error : EIO);
	spool_unref(s);
	reading_free(r);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	struct mount *m = mount_of(req);
	struct handle *h = handle_of(fi);
	CLEANUP(spool_release) struct spool *s = NULL;
	bool is_copy = false;
	(void)ino;

	if (size > READ_BYTES_MAX)
		size = READ_BYTES_MAX;
	if (!h->entry) {
		size_t left = (size_t)offset < h->text.len ? h->text.len - (size_t)offset : 0;
		size_t n = left < size ? left : size;
		char *copy = malloc(n + 1); /* once it is answered the handle may be released, on another thread */
		if (copy && n > 0)
			memcpy(copy, h->text.data + offset, n);
		if (copy)
			fuse_reply_buf(req, copy, n);
		else
			fuse_reply_err(req, ENOMEM);
		free(copy);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	struct local *l = h->entry->local;
	if (l) {
		is_copy = l->copy_of != NULL;
		s = spool_ref(l->spool);
	}
	struct reading *r = !s || is_copy ? malloc(sizeof(*r)) : NULL;
	if (r) {
		*r = (struct reading){ m, h, h->entry, size, offset };
		node_hold(&h->entry->node);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (s && !is_copy) {
		read_spool(req, s, size, offset);
		return;
	}
	if (!r) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	if (is_copy) {
		void **pair = malloc(2 * sizeof(*pair));
		if (pair) {
			pair[0] = r;
			pair[1] = req;
			if (pool_run(m->fetches, read_copy_job, pair) == 0)
				return;
		}
		free(pair);
		fuse_reply_err(req, ENOMEM);
		reading_free(r);
		return;
	}
	pthread_mutex_lock(&h->lock);
	int fd = h->fd, error = h->error;
	pthread_mutex_unlock(&h->lock);
	if (error || fd >= 0) {
		if (error)
			fuse_reply_err(req, -error);
		else
			reply_fd(req, fd, size, offset);
		reading_free(r);
	} else {
		read_want(m, req, h->entry, offset + (int64_t)size, read_document_ready, r);
	}
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *bytes, size_t size, off_t offset,
		     struct fuse_file_info *fi)
{
	(void)ino;
	write_bytes(mount_of(req), req, handle_of(fi), bytes, size, offset);
}

static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct handle *h = handle_of(fi);
	(void)ino;
	if (h->entry)
		write_flush(mount_of(req), req, h);
	else
		fuse_reply_err(req, 0);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct mount *m = mount_of(req);
	struct handle *h = handle_of(fi);
	(void)ino;
	if (h->is_writer || h->holds_local)
		write_release(m, h);
	else
		handle_free(m, h);
	fuse_reply_err(req, 0);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct handle *h = handle_of(fi);
	(void)ino, (void)datasync;
	if (h->entry)
		write_fsync(mount_of(req), req, h);
	else
		fuse_reply_err(req, 0);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino, (void)datasync, (void)fi;
	fuse_reply_err(req, 0); /* names are durable when an operation on them has returned */
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t len, struct fuse_file_info *fi)
{
	(void)ino;
	write_allocate(mount_of(req), req, handle_of(fi), mode, offset, len);
}

static void op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in, struct fuse_file_info *fi_in,
			       fuse_ino_t ino_out, off_t off_out, struct fuse_file_info *fi_out, size_t len, int flags)
{
	(void)ino_in, (void)ino_out, (void)flags;
	write_copy_range(mount_of(req), req, handle_of(fi_in), off_in, handle_of(fi_out), off_out, len);
}

/* ---- names ------------------------------------------------------------------------------------------------- */

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	(void)mode;
	if (parent == INO_ROOT)
		call_mkdir(mount_of(req), req, name);
	else
		fuse_reply_err(req, EPERM); /* a session has no folders */
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	if (parent == INO_ROOT)
		call_rmdir(mount_of(req), req, name);
	else
		fuse_reply_err(req, EPERM);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct mount *m = mount_of(req);

	pthread_mutex_lock(&m->tree.lock);
	struct folder *f = find_folder(m, parent);
	if (f)
		node_hold(&f->node);
	bool is_refused_text = parent == INO_FAILED && strcmp(name, "refused.txt") == 0;
	bool is_why = f && control_find_why(f, name);
	if (is_refused_text) {
		free(m->refused_text);
		m->refused_text = NULL;
		notice_entry(m, NULL, NAME_FAILED_LINK);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (is_refused_text || is_why)
		fuse_reply_err(req, 0); /* the reason goes with its file */
	else if (f)
		call_unlink(m, req, f, name);
	else
		fuse_reply_err(req, EPERM);
	if (f) {
		pthread_mutex_lock(&m->tree.lock);
		node_drop(&m->tree, &f->node);
		pthread_mutex_unlock(&m->tree.lock);
	}
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
		      unsigned flags)
{
	struct mount *m = mount_of(req);

	pthread_mutex_lock(&m->tree.lock);
	struct folder *from = find_folder(m, parent), *to = find_folder(m, new_parent);
	if (from)
		node_hold(&from->node);
	if (to)
		node_hold(&to->node);
	pthread_mutex_unlock(&m->tree.lock);
	if (from && to)
		call_rename(m, req, from, name, to, new_name, flags);
	else
		fuse_reply_err(req, EPERM);
	pthread_mutex_lock(&m->tree.lock);
	if (from)
		node_drop(&m->tree, &from->node);
	if (to)
		node_drop(&m->tree, &to->node);
	pthread_mutex_unlock(&m->tree.lock);
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name)
{
	struct mount *m = mount_of(req);

	pthread_mutex_lock(&m->tree.lock);
	struct entry *e = find_entry(m, ino);
	struct folder *to = find_folder(m, new_parent);
	if (e && to) {
		node_hold(&e->node);
		node_hold(&to->node);
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!e || !to) {
		fuse_reply_err(req, EPERM);
		return;
	}
	call_link(m, req, e, to, new_name);
	pthread_mutex_lock(&m->tree.lock);
	node_drop(&m->tree, &e->node);
	node_drop(&m->tree, &to->node);
	pthread_mutex_unlock(&m->tree.lock);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	(void)target, (void)parent, (void)name;
	fuse_reply_err(req, EPERM);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev)
{
	(void)parent, (void)name, (void)mode, (void)dev;
	fuse_reply_err(req, EPERM);
}

const struct fuse_lowlevel_ops mount_ops = {
	.init = op_init,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.statfs = op_statfs,
	.readlink = op_readlink,
	.getxattr = op_getxattr,
	.listxattr = op_listxattr,
	.setxattr = op_setxattr,
	.removexattr = op_removexattr,
	.opendir = op_opendir,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.releasedir = op_releasedir,
	.fsyncdir = op_fsyncdir,
	.open = op_open,
	.create = op_create,
	.read = op_read,
	.write = op_write,
	.flush = op_flush,
	.release = op_release,
	.fsync = op_fsync,
	.fallocate = op_fallocate,
	.copy_file_range = op_copy_file_range,
	.mkdir = op_mkdir,
	.rmdir = op_rmdir,
	.unlink = op_unlink,
	.rename = op_rename,
	.link = op_link,
	.symlink = op_symlink,
	.mknod = op_mknod,
};
