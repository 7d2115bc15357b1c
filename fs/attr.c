/* What stat(2) and getfattr(1) show of a node. From memory alone; the tree's lock is held throughout. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "fs/mount_impl.h"

#define PREFIX "user.sessionfs."

static struct timespec time_of_ms(int64_t ms)
{
	return (struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
}

static struct timespec time_of_ns(int64_t ns)
{
	return (struct timespec){ .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
}

static void set_times(struct stat *st, struct timespec when)
{
	st->st_mtim = st->st_ctim = st->st_atim = when;
}

/* false: it may have another size soon, without anybody changing it here. */
static bool fill_entry(struct mount *m, const struct entry *e, struct stat *ret)
{
	struct document d, copied;
	bool has_document = entry_document(e, &d);
	int64_t size = -1, mtime_ns = e->past->mtime_ns, created_ms = m->started_wall_ms;
	bool is_at_rest = !e->local;

	if (e->local) {
		ret->st_mode = S_IFREG | (0666 & ~m->umask);
		mtime_ns = e->local->mtime_ns;
		if (!e->local->copy_of) {
			size = spool_size(e->local->spool);
		} else {
			listing_get(e->local->copy_of, e->local->copy_at, &copied);
			size = copied.size_bytes;
		}
	} else {
		ret->st_mode = S_IFREG | (0444 & ~m->umask);
		size = has_document && d.size_bytes >= 0 ? d.size_bytes : e->past->learned_bytes;
		is_at_rest = !has_document || d.size_bytes >= 0 || e->past->learned_bytes > 0;
	}
	if (has_document && d.created_ms >= 0)
		created_ms = d.created_ms;
	ret->st_size = size >= 0 ? size : 0;
	ret->st_blocks = (ret->st_size + 511) / 512;
	ret->st_blksize = 128 * 1024;
	if (mtime_ns >= 0)
		set_times(ret, time_of_ns(mtime_ns));
	else
		set_times(ret, time_of_ms(created_ms));
	return is_at_rest;
}

/* false: as of fill_entry(). */
static bool fill(struct mount *m, const struct node *n, struct stat *ret)
{
	bool is_at_rest = true;

	*ret = (struct stat){ .st_ino = n->ino, .st_nlink = 1, .st_uid = m->options->uid, .st_gid = m->options->gid };
	switch ((enum node_kind)n->kind) {
	case NODE_ROOT:
		ret->st_mode = S_IFDIR | (0777 & ~m->umask);
		ret->st_nlink = 2 + (nlink_t)m->tree.folder_count;
		set_times(ret, time_of_ms(m->tree.root_changed_wall_ms));
		break;
	case NODE_FOLDER:
		ret->st_mode = S_IFDIR | (0777 & ~m->umask);
		ret->st_nlink = 2;
		set_times(ret, time_of_ns(((const struct folder *)n)->changed_wall_ns));
		break;
	case NODE_ENTRY:
		is_at_rest = fill_entry(m, (const struct entry *)n, ret);
		break;
	case NODE_LINK:
		ret->st_mode = S_IFLNK | 0777;
		ret->st_size = (off_t)strlen(((const struct link *)n)->target);
		set_times(ret, time_of_ms(m->started_wall_ms));
		break;
	case NODE_CONTROL:
	case NODE_FILE:
		(void)control_attr(m, n->ino, ret); /* it is one of ours */
		break;
	}
	return is_at_rest;
}

void attr_fill_entry_param(struct mount *m, struct node *n, struct fuse_entry_param *ret)
{
	*ret = (struct fuse_entry_param){ .ino = n->ino,
					  .attr_timeout = REST_TIMEOUT_S,
					  .entry_timeout = REST_TIMEOUT_S };
	/* A file being written changes by itself; one of unknown size is learned about later. */
	if (!fill(m, n, &ret->attr))
		ret->attr_timeout = 0;
	if (n->kind == NODE_CONTROL || n->kind == NODE_FILE || n->kind == NODE_LINK)
		ret->attr_timeout = ret->entry_timeout = 0;
}

/* ---- attributes -------------------------------------------------------------------------------------------- */

static void add_time(struct buf *b, int64_t ms)
{
	char text[40];
	struct tm tm;
	time_t s = (time_t)(ms / 1000);
	if (gmtime_r(&s, &tm) && strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm) > 0)
		buf_add(b, text);
}

static int add_text(struct buf *b, const char *text)
{
	if (!text || !*text)
		return -ENODATA;
	buf_add(b, text);
	return 0;
}

static enum document_state entry_state(struct mount *m, const struct entry *e, struct upload_view *view, bool *has_view)
{
	struct document d;

	*has_view = false;
	if (e->local && !(entry_document_id(e) && !e->local->is_dirty && !e->local->is_submitted)) {
		if (e->local->is_submitted && uploads_view(m->uploads, e->node.ino, view) == 0) {
			*has_view = true;
			return view->state;
		}
		if (e->local->kind == FILE_FAILED)
			return STATE_FAILED;
		return e->local->kind == FILE_PENDING && e->local->has_row ? STATE_QUEUED : STATE_LOCAL;
	}
	return entry_document(e, &d) ? d.state : STATE_STORED;
}

static int get_parsing(const struct document *d, const char *what, struct buf *ret)
{
	if (strcmp(what, "status") == 0)
		return add_text(ret, d->parsing.status);
	if (strcmp(what, "version") == 0)
		return add_text(ret, d->parsing.version);
	if (strcmp(what, "config") == 0)
		return add_text(ret, d->parsing.config);
	if (strcmp(what, "updated") != 0 || d->parsing.updated_ms < 0)
		return -ENODATA;
	add_time(ret, d->parsing.updated_ms);
	return 0;
}

static int get_number(struct buf *ret, int64_t n)
{
	if (n < 0)
		return -ENODATA;
	buf_addf(ret, "%" PRId64, n);
	return 0;
}

/* The index and listing behind a document's JSON record. */
static int get_json(const struct entry *e, struct buf *ret)
{
	if (e->document >= 0 && e->folder->listing)
		return listing_read_json(e->folder->listing, e->document, ret);
	return e->own ? listing_read_json(e->own, e->own_at, ret) : -ENODATA;
}

static int get_of_document(const struct entry *e, const struct document *d, const char *name, struct buf *ret)
{
	if (strcmp(name, "status") == 0)
		return add_text(ret, d->status);
	if (strcmp(name, "filename") == 0)
		return add_text(ret, d->filename);
	if (strcmp(name, "sha256") == 0)
		return add_text(ret, d->sha256);
	if (strcmp(name, "mime") == 0)
		return add_text(ret, d->mime);
	if (strcmp(name, "size") == 0)
		return get_number(ret, d->size_bytes < 0 && e->past->learned_bytes > 0 ? e->past->learned_bytes
										       : d->size_bytes);
	if (strcmp(name, "pages") == 0)
		return get_number(ret, d->pages);
	if (strcmp(name, "source") == 0)
		return add_text(ret, d->source);
	if (strcmp(name, "source.url") == 0)
		return add_text(ret, d->source_url);
	if (strcmp(name, "workspace") == 0)
		return add_text(ret, d->workspace_id);
	if (strcmp(name, "error") == 0)
		return add_text(ret, d->error);
	if (strcmp(name, "json") == 0)
		return get_json(e, ret);
	if (strncmp(name, "parsing.", 8) == 0)
		return get_parsing(d, name + 8, ret);
	if (strcmp(name, "created") == 0 && d->created_ms >= 0) {
		add_time(ret, d->created_ms);
		return 0;
	}
	return add_text(ret, document_extra(d, name));
}

static int get_of_entry(struct mount *m, const struct entry *e, const char *name, struct buf *ret)
{
	struct document d;
	struct upload_view view;
	bool has_view = false;
	bool has_document = entry_document(e, &d);
	enum document_state state = e->local       ? entry_state(m, e, &view, &has_view)
				    : has_document ? d.state
						   : STATE_STORED;

	if (strcmp(name, "state") == 0)
		return add_text(ret, document_state_word(state));
	if (strcmp(name, "id") == 0)
		return add_text(ret, e->document_id ? e->document_id : d.id);
	if (strcmp(name, "as_of") == 0) {
		const struct listing *l = e->document >= 0 ? e->folder->listing : e->own;
		if (!l)
			return -ENODATA;
		add_time(ret, listing_as_of_wall_ms(l));
		return 0;
	}
	if (strcmp(name, "progress") == 0) {
		if (!has_view || state != STATE_UPLOADING || view.size_bytes <= 0)
			return -ENODATA;
		buf_addf(ret, "%d%%", (int)(view.done_bytes * 100 / view.size_bytes));
		return 0;
	}
	if (strcmp(name, "error") == 0 && e->local && !has_document)
		return add_text(ret, has_view && view.words[0] ? view.words : e->local->words);
	if (strcmp(name, "size") == 0 && e->local && !has_document)
		return get_number(ret, spool_size(e->local->spool));
	return has_document ? get_of_document(e, &d, name, ret) : -ENODATA;
}

/* What is shown in a session's folder, by state, each document once however many names it has. An own write counts from the moment it is
 * done. Counted anew when the listing or the names are others: a folder's attributes are read together. */
static void count_states(struct folder *f)
{
	struct folder_counts now = { .serial = listing_serial(f->listing),
				     .shape = f->shape,
				     .unlisted = f->unlisted.used,
				     .locals = f->local_count,
				     .is_counted = true };
	struct document d;
	struct entry *e;

	if (f->counts.is_counted && f->counts.serial == now.serial && f->counts.shape == now.shape &&
	    f->counts.unlisted == now.unlisted && f->counts.locals == now.locals)
		return;
	for (int i = 0; i < listing_count(f->listing); i++) {
		if (!folder_shows(f, i))
			continue; /* removed here, or not shown yet */
		listing_get(f->listing, i, &d);
		now.documents++;
		now.by_state[d.state]++;
	}
	for (size_t at = 0; (e = index_next(&f->unlisted, &at));) {
		int listed = listing_find(f->listing, e->document_id);
		if (!e->is_shown || folder_find_unlisted(f, e->document_id) != e ||
		    (listed >= 0 && folder_shows(f, listed)))
			continue;
		now.documents++;
		now.by_state[entry_document(e, &d) ? d.state : STATE_STORED]++;
	}
	f->counts = now;
}

static int get_of_folder(struct folder *f, const char *name, struct buf *ret)
{
	if (strcmp(name, "id") == 0)
		return add_text(ret, f->session.id);
	if (f->kind != FOLDER_SESSION)
		return -ENODATA;
	if (strcmp(name, "template") == 0)
		return add_text(ret, f->session.template_id);
	if (strcmp(name, "workspace") == 0)
		return add_text(ret, f->session.workspace_id);
	if (strcmp(name, "status") == 0)
		return add_text(ret, f->session.status);
	if (!f->listing)
		return -ENODATA;
	if (strcmp(name, "as_of") == 0) {
		add_time(ret, listing_as_of_wall_ms(f->listing));
		return 0;
	}
	count_states(f);
	if (strcmp(name, "documents") == 0)
		return get_number(ret, f->counts.documents);
	if (strcmp(name, "ready") == 0)
		return get_number(ret, f->counts.by_state[STATE_READY]);
	if (strcmp(name, "processing") == 0)
		return get_number(ret, f->counts.by_state[STATE_PROCESSING]);
	if (strcmp(name, "failed") == 0)
		return get_number(ret, f->counts.by_state[STATE_FAILED]);
	return -ENODATA;
}

int attr_get(struct mount *m, struct node *n, const char *name, struct buf *ret)
{
	int r = -ENODATA;

	if (n->kind == NODE_ENTRY && strcmp(name, "user.mime_type") == 0)
		r = get_of_entry(m, (struct entry *)n, "mime", ret);
	else if (strncmp(name, PREFIX, sizeof(PREFIX) - 1) != 0)
		return -ENODATA;
	else if (strcmp(name, PREFIX "control") == 0)
		r = add_text(ret, state_dir(m->state)); /* where the commands find this mount; not listed */
	else if (n->kind == NODE_ENTRY)
		r = get_of_entry(m, (struct entry *)n, name + sizeof(PREFIX) - 1, ret);
	else if (n->kind == NODE_FOLDER)
		r = get_of_folder((struct folder *)n, name + sizeof(PREFIX) - 1, ret);
	if (r == 0 && !buf_text(ret))
		return -ENOMEM;
	return r;
}

static const char *const entry_names[] = { "status",
					   "state",
					   "id",
					   "filename",
					   "sha256",
					   "mime",
					   "size",
					   "created",
					   "pages",
					   "source",
					   "source.url",
					   "workspace",
					   "parsing.status",
					   "parsing.updated",
					   "parsing.version",
					   "parsing.config",
					   "error",
					   "progress",
					   "as_of",
					   NULL };
static const char *const folder_names[] = { "id",    "template",   "workspace", "status", "documents",
					    "ready", "processing", "failed",    "as_of",  NULL };

static bool has_text(const char *text)
{
	return text && *text;
}

/* The same for a document without local bytes, which most are: getfattr -d asks for the list of each twice, and the values one by one. */
static void list_document(const struct entry *e, const struct document *d, struct buf *ret)
{
	const struct {
		const char *name;
		bool is_there;
	} all[] = {
		{ "status", has_text(d->status) },
		{ "state", true },
		{ "id", has_text(d->id) },
		{ "filename", has_text(d->filename) },
		{ "sha256", has_text(d->sha256) },
		{ "mime", has_text(d->mime) },
		{ "size", d->size_bytes >= 0 || e->past->learned_bytes > 0 },
		{ "created", d->created_ms >= 0 },
		{ "pages", d->pages >= 0 },
		{ "source", has_text(d->source) },
		{ "source.url", has_text(d->source_url) },
		{ "workspace", has_text(d->workspace_id) },
		{ "parsing.status", has_text(d->parsing.status) },
		{ "parsing.updated", d->parsing.updated_ms >= 0 },
		{ "parsing.version", has_text(d->parsing.version) },
		{ "parsing.config", has_text(d->parsing.config) },
		{ "error", has_text(d->error) },
		{ "as_of", e->document >= 0 || e->own },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (!all[i].is_there)
			continue;
		buf_add(ret, PREFIX);
		buf_add_bytes(ret, all[i].name, strlen(all[i].name) + 1);
	}
	for (int i = 0; i < DOCUMENT_EXTRA_MAX && d->extra[i][0]; i++) {
		if (!has_text(d->extra[i][1]))
			continue;
		buf_add(ret, PREFIX);
		buf_add_bytes(ret, d->extra[i][0], strlen(d->extra[i][0]) + 1);
	}
	if (has_text(d->mime))
		buf_add_bytes(ret, "user.mime_type", sizeof("user.mime_type"));
}

void attr_list(struct mount *m, struct node *n, struct buf *ret)
{
	CLEANUP(buf_release) struct buf value = BUF(64 * 1024);
	const char *const *names = n->kind == NODE_ENTRY ? entry_names : n->kind == NODE_FOLDER ? folder_names : NULL;
	char name[128];
	struct document d;

	if (n->kind == NODE_ENTRY && !((struct entry *)n)->local && entry_document((struct entry *)n, &d)) {
		list_document((struct entry *)n, &d, ret);
		return;
	}
	for (int i = 0; names && names[i]; i++) {
		int len = snprintf(name, sizeof(name), PREFIX "%s", names[i]);
		buf_clear(&value);
		if (attr_get(m, n, name, &value) == 0)
			buf_add_bytes(ret, name, (size_t)len + 1);
	}
	if (n->kind != NODE_ENTRY)
		return;
	if (entry_document((struct entry *)n, &d))
		for (int i = 0; i < DOCUMENT_EXTRA_MAX && d.extra[i][0]; i++) {
			int len = snprintf(name, sizeof(name), PREFIX "%s", d.extra[i][0]);
			if (d.extra[i][1])
				buf_add_bytes(ret, name, (size_t)len + 1);
		}
	buf_clear(&value);
	if (attr_get(m, n, "user.mime_type", &value) == 0)
		buf_add_bytes(ret, "user.mime_type", sizeof("user.mime_type"));
}
