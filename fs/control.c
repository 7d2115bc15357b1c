/* The mount's own files: .sessionfs with its texts, the failed folder, the two visible names in the root. All of them are made from
 * memory when they are looked at; the tree's lock is held throughout. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/metrics.h"
#include "fs/mount_impl.h"

enum { INO_SESSIONS = INO_CONTROL_FIRST_FILE, INO_STATUS, INO_STATUS_JSON, INO_REFUSED, INO_METRICS };

#define TEXT_BYTES_MAX (16 * 1024 * 1024)
#define WHY_SUFFIX ".why.txt"

static const struct own_name {
	uint64_t parent;
	const char *name;
	uint64_t ino;
	mode_t mode;
	bool is_listed;
} own_names[] = {
	{ INO_ROOT, ".sessionfs", INO_CONTROL, S_IFDIR, false },
	{ INO_ROOT, NAME_FAILED_LINK, INO_FAILED_LINK, S_IFLNK, true },
	{ INO_ROOT, NAME_HINT, INO_HINT, S_IFREG, true },
	{ INO_CONTROL, "failed", INO_FAILED, S_IFDIR, true },
	{ INO_CONTROL, "sessions", INO_SESSIONS, S_IFREG, true },
	{ INO_CONTROL, "status", INO_STATUS, S_IFREG, true },
	{ INO_CONTROL, "status.json", INO_STATUS_JSON, S_IFREG, true },
	{ INO_CONTROL, "metrics", INO_METRICS, S_IFREG, true },
	{ INO_FAILED, "refused.txt", INO_REFUSED, S_IFREG, true },
};
#define OWN_COUNT (sizeof(own_names) / sizeof(own_names[0]))

bool control_has_failed(struct mount *m)
{
	if (m->refused_text)
		return true;
	for (struct folder *f = m->tree.first_failed; f; f = f->next_shown)
		if (f->shown_count > 0)
			return true;
	return false;
}

static bool has_listed_folder(struct mount *m)
{
	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown)
		if (f->origin != ORIGIN_LOOKED_UP)
			return true;
	return false;
}

/* Names that come and go. */
static bool is_there(struct mount *m, uint64_t ino)
{
	if (ino == INO_FAILED_LINK)
		return control_has_failed(m);
	if (ino == INO_HINT)
		return !has_listed_folder(m);
	if (ino == INO_REFUSED)
		return m->refused_text != NULL;
	return true;
}

uint64_t control_find(struct mount *m, uint64_t parent, const char *name)
{
	for (size_t i = 0; i < OWN_COUNT; i++)
		if (own_names[i].parent == parent && strcmp(own_names[i].name, name) == 0)
			return is_there(m, own_names[i].ino) ? own_names[i].ino : 0;
	if (parent != INO_FAILED)
		return 0;
	for (struct folder *f = m->tree.first_failed; f; f = f->next_shown)
		if (f->shown_count > 0 && strcmp(f->name, name) == 0)
			return f->node.ino;
	return 0;
}

uint64_t control_find_why(struct folder *f, const char *name)
{
	size_t len = strlen(name), tail = sizeof(WHY_SUFFIX) - 1;
	if (f->kind != FOLDER_FAILED || len <= tail || strcmp(name + len - tail, WHY_SUFFIX) != 0)
		return 0;
	CLEANUP(text_release) char *base = strndup(name, len - tail);
	struct entry_view room;
	const struct entry *e = base ? folder_look(f, base, &room) : NULL;
	return e ? e->node.ino | INO_WHY_BIT : 0;
}

void control_list(struct mount *m, uint64_t parent, control_add *add, void *arg)
{
	for (size_t i = 0; i < OWN_COUNT; i++)
		if (own_names[i].parent == parent &&
		    (own_names[i].is_listed || (m->options->views_listed && parent == INO_ROOT)) &&
		    is_there(m, own_names[i].ino))
			add(arg, own_names[i].name, own_names[i].ino, own_names[i].mode);
	if (parent == INO_FAILED)
		for (struct folder *f = m->tree.first_failed; f; f = f->next_shown)
			if (f->shown_count > 0)
				add(arg, f->name, f->node.ino, S_IFDIR);
	if (parent == INO_ROOT)
		for (struct folder *f = m->tree.first_folder; f; f = f->next_shown)
			if (f->origin != ORIGIN_LOOKED_UP)
				add(arg, f->name, f->node.ino, S_IFDIR);
}

static const struct own_name *find_own(uint64_t ino)
{
	for (size_t i = 0; i < OWN_COUNT; i++)
		if (own_names[i].ino == ino)
			return &own_names[i];
	return NULL;
}

bool control_is_folder(uint64_t ino)
{
	const struct own_name *n = find_own(ino);
	return n && n->mode == S_IFDIR;
}

bool control_is_file(uint64_t ino)
{
	const struct own_name *n = find_own(ino);
	return (ino & INO_WHY_BIT) || (n && n->mode == S_IFREG);
}

const char *control_link(uint64_t ino)
{
	return ino == INO_FAILED_LINK ? ".sessionfs/failed" : NULL;
}

/* ---- texts ------------------------------------------------------------------------------------------------- */

static void add_json_text(struct buf *b, const char *text)
{
	buf_add(b, "\"");
	for (const unsigned char *p = (const unsigned char *)(text ? text : ""); *p; p++) {
		if (*p == '"' || *p == '\\')
			buf_addf(b, "\\%c", *p);
		else if (*p < 0x20)
			buf_addf(b, "\\u%04x", *p);
		else
			buf_add_bytes(b, p, 1);
	}
	buf_add(b, "\"");
}

enum standing { STANDS_WAITING, STANDS_FAILED, STANDS_SCRATCH, STANDS_NOT };

static enum standing standing(struct mount *m, const struct entry *e)
{
	const struct local *l = e->local;
	if (!l || !e->is_shown || (l->counted_out && !l->is_dirty))
		return STANDS_NOT;
	if (l->kind == FILE_FAILED)
		return STANDS_FAILED;
	if (l->is_submitted || (l->is_dirty && !name_is_scratch(m->rules, e->name)))
		return STANDS_WAITING;
	return l->copy_of || spool_size(l->spool) > 0 ? STANDS_SCRATCH : STANDS_NOT;
}

typedef void each_local(void *arg, struct entry *e, enum standing s);

static void walk_locals(struct mount *m, each_local *each, void *arg)
{
	struct folder *first[] = { m->tree.first_folder, m->tree.first_failed };
	for (int i = 0; i < 2; i++) {
		for (struct folder *f = first[i]; f; f = f->next_shown) {
			struct entry *e;
			for (size_t at = 0; f->local_count > 0 && (e = index_next(&f->names, &at));) {
				enum standing s = standing(m, e);
				if (s != STANDS_NOT)
					each(arg, e, s);
			}
		}
	}
}

struct counts {
	int n[STANDS_NOT];
};

static void count_one(void *arg, struct entry *e, enum standing s)
{
	struct counts *c = arg;
	(void)e;
	c->n[s]++;
}

void control_count(struct mount *m, int *ret_waiting, int *ret_failed, int *ret_scratch)
{
	struct counts c = { { 0 } };
	walk_locals(m, count_one, &c);
	*ret_waiting = c.n[STANDS_WAITING];
	*ret_failed = c.n[STANDS_FAILED];
	*ret_scratch = c.n[STANDS_SCRATCH];
}

struct writing {
	struct mount *m;
	struct buf *to;
	bool is_json;
	int written;
};

static void write_one(void *arg, struct entry *e, enum standing s)
{
	struct writing *w = arg;
	CLEANUP(buf_release) struct buf state = BUF(64), progress = BUF(64), error = BUF(2048);

	(void)attr_get(w->m, &e->node, "user.sessionfs.state", &state); /* absent: an empty text */
	(void)attr_get(w->m, &e->node, "user.sessionfs.progress", &progress);
	(void)attr_get(w->m, &e->node, "user.sessionfs.error", &error);
	if (w->is_json) {
		buf_add(w->to, w->written++ ? ",\n    {\"session\": " : "\n    {\"session\": ");
		add_json_text(w->to, e->folder->name);
		buf_add(w->to, ", \"name\": ");
		add_json_text(w->to, e->name);
		buf_add(w->to, ", \"state\": ");
		add_json_text(w->to, buf_text(&state));
		buf_addf(w->to, ", \"size\": %" PRId64, spool_size(e->local->spool));
		if (progress.len > 0) {
			buf_add(w->to, ", \"progress\": ");
			add_json_text(w->to, buf_text(&progress));
		}
		if (error.len > 0) {
			buf_add(w->to, ", \"error\": ");
			add_json_text(w->to, buf_text(&error));
		}
		buf_add(w->to, "}");
		return;
	}
	buf_addf(w->to, "  %-10s %s/%s", s == STANDS_FAILED ? "failed" : buf_text(&state), e->folder->name, e->name);
	if (progress.len > 0)
		buf_addf(w->to, "  %s", buf_text(&progress));
	if (error.len > 0)
		buf_addf(w->to, "  (%s)", buf_text(&error));
	buf_add(w->to, "\n");
}

void control_status(struct mount *m, bool json, struct buf *ret)
{
	int waiting, failed, scratch;
	struct writing w = { m, ret, json, 0 };

	control_count(m, &waiting, &failed, &scratch);
	const char *account = m->verify_error == -EACCES ? "refused" : m->is_verified ? "in order" : "not verified yet";
	if (json) {
		buf_add(ret, "{\n  \"service\": ");
		add_json_text(ret, m->caps->title);
		buf_add(ret, ",\n  \"account\": ");
		add_json_text(ret, account);
		buf_addf(ret, ",\n  \"waiting\": %d,\n  \"failed\": %d,\n  \"scratch\": %d,\n  \"files\": [", waiting,
			 failed, scratch);
		walk_locals(m, write_one, &w);
		buf_add(ret, w.written ? "\n  ]\n}\n" : "]\n}\n");
		return;
	}
	buf_addf(ret, "service: %s\naccount: %s\n", m->caps->title, account);
	buf_addf(ret, "waiting: %d\nfailed: %d\nscratch: %d\n", waiting, failed, scratch);
	backend_tell_state(m->backend, ret);
	walk_locals(m, write_one, &w);
}

/* How many local files are in which state; scratch files are local. */
struct depths {
	struct mount *m;
	int by_state[STATE_FAILED + 1];
};

static void count_depth(void *arg, struct entry *e, enum standing s)
{
	struct depths *d = arg;
	struct upload_view view;
	enum document_state state = s == STANDS_FAILED    ? STATE_FAILED
				    : s == STANDS_SCRATCH ? STATE_LOCAL
							  : STATE_QUEUED;

	if (s == STANDS_WAITING && e->local->is_submitted && uploads_view(d->m->uploads, e->node.ino, &view) == 0)
		state = view.state;
	d->by_state[state]++;
}

static void add_metrics(struct mount *m, struct buf *ret)
{
	static const enum document_state states[] = { STATE_LOCAL, STATE_QUEUED, STATE_UPLOADING, STATE_WAITING,
						      STATE_FAILED };
	struct depths d = { .m = m };
	int sessions = 0;
	long long documents = 0;

	walk_locals(m, count_depth, &d);
	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown) {
		sessions += f->origin != ORIGIN_LOOKED_UP;
		documents += f->listing ? listing_count(f->listing) : 0;
	}
	buf_add(ret, "# HELP sessionfs_files Local files that are not at the service, by user.sessionfs.state.\n"
		     "# TYPE sessionfs_files gauge\n");
	for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
		buf_addf(ret, "sessionfs_files{state=\"%s\"} %d\n", document_state_word(states[i]),
			 d.by_state[states[i]]);
	buf_addf(ret,
		 "# HELP sessionfs_sessions Folders in the root.\n# TYPE sessionfs_sessions gauge\nsessionfs_sessions "
		 "%d\n"
		 "# HELP sessionfs_documents Documents in the listings that are remembered.\n# TYPE "
		 "sessionfs_documents gauge\n"
		 "sessionfs_documents %lld\n"
		 "# HELP sessionfs_account_refused Does the service refuse the token?\n# TYPE "
		 "sessionfs_account_refused gauge\n"
		 "sessionfs_account_refused %d\n",
		 sessions, documents, m->verify_error == -EACCES);
	metrics_print(ret);
}

static void add_sessions(struct mount *m, struct buf *ret)
{
	buf_add(ret, "# The sessions of this mount, as they can stand in a configuration.\n");
	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown)
		if (f->origin != ORIGIN_LOOKED_UP)
			buf_addf(ret, "# %s\nsession=%s\n", f->name, f->session.id);
}

static void add_why(struct mount *m, uint64_t ino, struct buf *ret)
{
	struct node *n = tree_find(&m->tree, ino & ~INO_WHY_BIT);
	struct entry *e = n && n->kind == NODE_ENTRY ? (struct entry *)n : NULL;
	char when[40] = "";
	time_t at = (time_t)(clock_wall_ms() / 1000);
	struct tm tm;

	if (!e || !e->local)
		return;
	if (e->local->refused_ms > 0)
		at -= (time_t)((clock_now_ms() - e->local->refused_ms) / 1000);
	if (localtime_r(&at, &tm))
		(void)strftime(when, sizeof(when), "%Y-%m-%d %H:%M", &tm);
	const char *name = e->local->home_name ? e->local->home_name : e->name;
	buf_addf(ret, "%s was not uploaded to %s.\n", name, e->folder->name);
	if (e->local->refused_ms > 0)
		buf_addf(ret, "When: %s\n", when);
	buf_addf(ret, "Why: %s\n", e->local->words ? e->local->words : strerror(-e->local->verdict));
	if (e->local->write_error)
		buf_add(ret, "To try again, copy the file in from where it came. To discard this part of it, delete it "
			     "here.\n");
	else
		buf_addf(ret, "To try again, move the file back into the folder '%s'. To discard it, delete it here.\n",
			 e->folder->name);
}

void control_read(struct mount *m, uint64_t ino, struct buf *ret)
{
	if (ino & INO_WHY_BIT)
		add_why(m, ino, ret);
	else if (ino == INO_SESSIONS)
		add_sessions(m, ret);
	else if (ino == INO_STATUS || ino == INO_STATUS_JSON)
		control_status(m, ino == INO_STATUS_JSON, ret);
	else if (ino == INO_METRICS)
		add_metrics(m, ret);
	else if (ino == INO_REFUSED && m->refused_text)
		buf_add(ret, m->refused_text);
	else if (ino == INO_HINT)
		buf_addf(ret,
			 "This folder shows no session yet.\n\n"
			 "To show one, copy its address from the dashboard of %s and type\n\n"
			 "    sessionfs add %s ADDRESS\n\n"
			 "The folder appears here at once.\n",
			 m->caps->title, m->options->source);
}

bool control_attr(struct mount *m, uint64_t ino, struct stat *ret)
{
	CLEANUP(buf_release) struct buf text = BUF(TEXT_BYTES_MAX);
	const struct own_name *n = find_own(ino);

	if (!n && !(ino & INO_WHY_BIT))
		return false;
	ret->st_ino = ino;
	ret->st_nlink = 1;
	ret->st_uid = m->options->uid;
	ret->st_gid = m->options->gid;
	ret->st_mtim.tv_sec = ret->st_ctim.tv_sec = ret->st_atim.tv_sec = (time_t)(clock_wall_ms() / 1000);
	if (n && n->mode == S_IFDIR) {
		ret->st_mode = S_IFDIR | ((ino == INO_FAILED ? 0777 : 0555) & ~m->umask);
		ret->st_nlink = 2;
	} else if (n && n->mode == S_IFLNK) {
		ret->st_mode = S_IFLNK | 0777;
		ret->st_size = (off_t)strlen(control_link(ino));
	} else {
		control_read(m, ino, &text);
		ret->st_mode = S_IFREG | (0444 & ~m->umask);
		ret->st_size = (off_t)text.len;
	}
	return true;
}
