/* A file system whose power can be cut: it forgets what was not fsynced. In the manner of LazyFS, but whole in memory, so
 * that what is durable is known to the byte.
 *
 * Each file has its bytes as they are and its bytes as a disk would have them; fsync and fdatasync make them equal. Each
 * folder has its names twice likewise: making, renaming and removing one goes into a log, and becomes durable with an fsync
 * of the folder, or, with --entries=file (as ext4 and XFS do it), with an fsync of the file as well.
 *
 *     powercut MOUNTPOINT [--entries=dir|file] [--fsync-ms=N] [--lies]
 *
 * With --lies fsync says yes and does nothing, so that a test can see that it would notice.
 *
 * It is driven over standard input, a line each, and answers each with a line:
 *     cut [SEED]     the power is gone: nothing is answered any more. Says "cut FILES NAMES": how many files' bytes and how
 *                    many changes of names were not durable. Without a SEED all of that is lost; with one, what a disk may have
 *                    got to by itself is not: some 4 KiB pages, some sizes, and the first few of the changes of names.
 *     arm N [SEED]   cut as the Nth change or fsync from now arrives. Answers with "armed", and with "cut ..." when it comes.
 *     boot           mounts what is durable. Whoever still waits for an answer gets an error first, so kill them before. Says "up".
 *     sync           all there is becomes durable. Says "synced".
 * It says "up" at its start, and ends with its input.
 *
 * One thread, for while the power is cut nothing may happen: then it reads commands alone. */
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	LINE_BYTES_MAX = 200,
	NODES_MAX = 1 << 20,
};

struct bytes {
	char *at;
	size_t len, room;
};

struct name {
	char *text;
	struct node *node;
};

struct names {
	struct name *items;
	int count;
};

struct node {
	fuse_ino_t ino; /* its place in `nodes`, plus 1 */
	mode_t mode;    /* this, its owner and its times are durable at once: nobody here relies on them */
	uid_t uid;
	gid_t gid;
	struct timespec mtime;
	int links;
	uint64_t lookups;
	bool is_dirty;              /* the bytes differ */
	struct bytes live, durable; /* of a file */
	struct names live_names, durable_names; /* of a folder */
};

/* A name made (from is NULL), removed (to is NULL), or moved; not durable yet. */
struct change {
	struct node *from, *to, *node;
	char *from_name, *to_name;
};

static struct {
	struct node **nodes;
	size_t node_count;
	struct change *changes;
	int change_count;
	const char *mountpoint;
	bool file_brings_name; /* --entries=file */
	bool lies;
	long fsync_ms;
	bool is_cut;
	long armed; /* 0: not; else the so manieth change cuts */
	uint64_t seed;
} fs;

static void *check(void *memory)
{
	if (!memory) {
		fputs("powercut: out of memory\n", stderr);
		exit(1);
	}
	return memory;
}

static uint64_t next_random(void)
{
	fs.seed += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */
	uint64_t z = fs.seed;
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

/* ---- bytes ------------------------------------------------------------------------------------------------- */

static void bytes_resize(struct bytes *b, size_t len)
{
	if (len > b->room) {
		b->room = len < 2 * b->room ? 2 * b->room : len;
		b->at = check(realloc(b->at, b->room));
	}
	if (len > b->len)
		memset(b->at + b->len, 0, len - b->len);
	b->len = len;
}

static void bytes_copy(struct bytes *to, const struct bytes *from)
{
	bytes_resize(to, from->len);
	if (from->len > 0)
		memcpy(to->at, from->at, from->len);
}

/* Some pages and perhaps the size got to the disk without an fsync. */
static void bytes_copy_some(struct bytes *to, const struct bytes *from)
{
	if (next_random() % 2)
		bytes_resize(to, from->len);
	for (size_t at = 0; at < from->len && at < to->len; at += PAGE) {
		size_t end = at + PAGE;
		if (end > from->len)
			end = from->len;
		if (end > to->len)
			end = to->len;
		if (next_random() % 2)
			memcpy(to->at + at, from->at + at, end - at);
	}
}

/* ---- names ------------------------------------------------------------------------------------------------- */

static struct name *names_find(const struct names *n, const char *text)
{
	for (int i = 0; i < n->count; i++)
		if (strcmp(n->items[i].text, text) == 0)
			return &n->items[i];
	return NULL;
}

static void names_put(struct names *n, const char *text, struct node *node)
{
	struct name *found = names_find(n, text);

	if (found) {
		found->node = node;
		return;
	}
	n->items = check(realloc(n->items, (size_t)(n->count + 1) * sizeof(*n->items)));
	n->items[n->count++] = (struct name){ check(strdup(text)), node };
}

static void names_remove(struct names *n, const char *text, const struct node *node)
{
	struct name *found = names_find(n, text);

	if (!found || found->node != node)
		return;
	free(found->text);
	*found = n->items[--n->count];
}

static void names_copy(struct names *to, const struct names *from)
{
	for (int i = 0; i < to->count; i++)
		free(to->items[i].text);
	to->count = 0;
	for (int i = 0; i < from->count; i++)
		names_put(to, from->items[i].text, from->items[i].node);
}

/* ---- nodes ------------------------------------------------------------------------------------------------- */

static struct node *node_new(mode_t mode)
{
	struct node *n = check(calloc(1, sizeof(*n)));

	fs.nodes = check(realloc(fs.nodes, (fs.node_count + 1) * sizeof(struct node *)));
	fs.nodes[fs.node_count++] = n;
	n->ino = fs.node_count;
	n->mode = mode;
	n->uid = getuid();
	n->gid = getgid();
	clock_gettime(CLOCK_REALTIME, &n->mtime);
	return n;
}

static struct node *node_of(fuse_ino_t ino)
{
	return fs.nodes[ino - 1];
}

static struct stat node_stat(const struct node *n)
{
	return (struct stat){ .st_ino = n->ino, .st_mode = n->mode, .st_nlink = S_ISDIR(n->mode) ? 2 : (nlink_t)n->links,
			      .st_uid = n->uid, .st_gid = n->gid, .st_size = (off_t)n->live.len, .st_blksize = PAGE,
			      .st_blocks = (blkcnt_t)((n->live.len + 511) / 512), .st_mtim = n->mtime, .st_ctim = n->mtime,
			      .st_atim = n->mtime };
}

static void node_sync(struct node *n)
{
	if (n->is_dirty)
		bytes_copy(&n->durable, &n->live);
	n->is_dirty = false;
}

/* ---- changes of names -------------------------------------------------------------------------------------- */

static void change_add(struct node *from, const char *from_name, struct node *to, const char *to_name, struct node *node)
{
	if (from)
		names_remove(&from->live_names, from_name, node);
	if (to)
		names_put(&to->live_names, to_name, node);
	fs.changes = check(realloc(fs.changes, (size_t)(fs.change_count + 1) * sizeof(*fs.changes)));
	fs.changes[fs.change_count++] = (struct change){ from, to, node, from ? check(strdup(from_name)) : NULL,
							 to ? check(strdup(to_name)) : NULL };
}

static void change_release(struct change *c)
{
	free(c->from_name);
	free(c->to_name);
}

static void change_keep(struct change *c)
{
	if (c->from)
		names_remove(&c->from->durable_names, c->from_name, c->node);
	if (c->to)
		names_put(&c->to->durable_names, c->to_name, c->node);
	change_release(c);
}

/* What concerns the folder, or the file, becomes durable, in its order. */
static void changes_keep(const struct node *about)
{
	int left = 0;

	for (int i = 0; i < fs.change_count; i++) {
		struct change *c = &fs.changes[i];
		if (!about || c->from == about || c->to == about || c->node == about)
			change_keep(c);
		else
			fs.changes[left++] = *c;
	}
	fs.change_count = left;
}

static void sync_all(void)
{
	for (size_t i = 0; i < fs.node_count; i++)
		node_sync(fs.nodes[i]);
	changes_keep(NULL);
}

/* ---- the power --------------------------------------------------------------------------------------------- */

static void cut(void)
{
	int files = 0, names = fs.change_count, kept = 0;

	if (fs.seed != 0 && names > 0)
		kept = (int)(next_random() % ((uint64_t)names + 1));
	for (size_t i = 0; i < fs.node_count; i++) {
		struct node *n = fs.nodes[i];
		if (!n->is_dirty)
			continue;
		files++;
		if (fs.seed != 0)
			bytes_copy_some(&n->durable, &n->live);
	}
	for (int i = 0; i < names; i++) {
		if (i < kept)
			change_keep(&fs.changes[i]);
		else
			change_release(&fs.changes[i]);
	}
	fs.change_count = 0;
	fs.is_cut = true;
	fs.armed = 0;
	printf("cut %d %d\n", files, names);
}

/* What is durable is all there is. */
static void come_up(void)
{
	for (size_t i = 0; i < fs.node_count; i++) {
		struct node *n = fs.nodes[i];
		bytes_copy(&n->live, &n->durable);
		names_copy(&n->live_names, &n->durable_names);
		n->is_dirty = false;
		n->lookups = 0;
		n->links = 0;
	}
	for (size_t i = 0; i < fs.node_count; i++)
		for (int k = 0; k < fs.nodes[i]->live_names.count; k++)
			fs.nodes[i]->live_names.items[k].node->links++;
	fs.is_cut = false;
}

/* Before each change: true when the power goes now, and the request stays without an answer. */
static bool power_goes(fuse_req_t req)
{
	if (fs.armed > 0 && --fs.armed == 0)
		cut();
	if (fs.is_cut)
		fuse_reply_none(req);
	return fs.is_cut;
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

static void reply_entry(fuse_req_t req, struct node *n, struct fuse_file_info *fi)
{
	struct fuse_entry_param e = { .ino = n->ino, .attr = node_stat(n), .attr_timeout = 1, .entry_timeout = 1 };

	n->lookups++;
	if (fi)
		fuse_reply_create(req, &e, fi);
	else
		fuse_reply_entry(req, &e);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct name *found = names_find(&node_of(parent)->live_names, name);

	if (found)
		reply_entry(req, found->node, NULL);
	else
		fuse_reply_err(req, ENOENT);
}

/* Bytes that nobody can reach any more. */
static void node_settle(struct node *n)
{
	bool is_wanted = n->links > 0 || n->lookups > 0 || n->durable.len > 0 || n->ino == FUSE_ROOT_ID;

	if (is_wanted || !S_ISREG(n->mode))
		return;
	free(n->live.at);
	n->live = (struct bytes){ 0 };
	n->is_dirty = false;
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
	struct node *n = node_of(ino);

	n->lookups = n->lookups > count ? n->lookups - count : 0;
	node_settle(n);
	fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st = node_stat(node_of(ino));

	(void)fi;
	fuse_reply_attr(req, &st, 1);
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *to, int what, struct fuse_file_info *fi)
{
	struct node *n = node_of(ino);

	(void)fi;
	if (power_goes(req))
		return;
	if (what & FUSE_SET_ATTR_MODE)
		n->mode = (n->mode & S_IFMT) | (to->st_mode & 07777);
	if (what & FUSE_SET_ATTR_UID)
		n->uid = to->st_uid;
	if (what & FUSE_SET_ATTR_GID)
		n->gid = to->st_gid;
	if (what & FUSE_SET_ATTR_MTIME)
		n->mtime = to->st_mtim;
	if (what & FUSE_SET_ATTR_SIZE) {
		bytes_resize(&n->live, (size_t)to->st_size);
		n->is_dirty = true;
	}
	struct stat st = node_stat(n);
	fuse_reply_attr(req, &st, 1);
}

static struct node *make(struct node *parent, const char *name, mode_t mode)
{
	struct node *n = node_new(mode);

	n->links = 1;
	change_add(NULL, NULL, parent, name, n);
	return n;
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	if (power_goes(req))
		return;
	if (fs.node_count >= NODES_MAX)
		fuse_reply_err(req, ENOSPC);
	else
		reply_entry(req, make(node_of(parent), name, S_IFDIR | (mode & 07777)), NULL);
}

/* Sockets, most of all: the kernel itself makes them work. */
static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	(void)rdev;
	if (power_goes(req))
		return;
	if (fs.node_count >= NODES_MAX)
		fuse_reply_err(req, ENOSPC);
	else
		reply_entry(req, make(node_of(parent), name, mode), NULL);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	if (power_goes(req))
		return;
	if (fs.node_count >= NODES_MAX)
		fuse_reply_err(req, ENOSPC);
	else
		reply_entry(req, make(node_of(parent), name, S_IFREG | (mode & 07777)), fi);
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	struct node *n = node_of(ino);

	if (power_goes(req))
		return;
	n->links++;
	change_add(NULL, NULL, node_of(parent), name, n);
	reply_entry(req, n, NULL);
}

static void op_remove(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct node *dir = node_of(parent);
	struct name *found = names_find(&dir->live_names, name);

	if (power_goes(req))
		return;
	if (!found || found->node->live_names.count > 0) {
		fuse_reply_err(req, found ? ENOTEMPTY : ENOENT);
		return;
	}
	struct node *n = found->node;
	n->links--;
	change_add(dir, name, NULL, NULL, n);
	node_settle(n);
	fuse_reply_err(req, 0);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
		      unsigned int flags)
{
	struct node *dir = node_of(parent), *to = node_of(new_parent);
	struct name *found = names_find(&dir->live_names, name), *over = names_find(&to->live_names, new_name);

	if (power_goes(req))
		return;
	if (flags & ~(unsigned int)RENAME_NOREPLACE) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if (!found || (over && (flags & RENAME_NOREPLACE)) || (over && over->node->live_names.count > 0)) {
		fuse_reply_err(req, !found ? ENOENT : flags & RENAME_NOREPLACE ? EEXIST : ENOTEMPTY);
		return;
	}
	struct node *n = found->node;
	if (over && over->node != n)
		over->node->links--;
	if (!over || over->node != n)
		change_add(dir, name, to, new_name, n);
	fuse_reply_err(req, 0);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct node *n = node_of(ino);

	if (fi->flags & O_TRUNC) {
		bytes_resize(&n->live, 0);
		n->is_dirty = true;
	}
	fi->keep_cache = 1; /* the kernel is the only one who changes it */
	fuse_reply_open(req, fi);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	struct node *n = node_of(ino);
	size_t at = (size_t)offset;

	(void)fi;
	if (at >= n->live.len)
		fuse_reply_buf(req, NULL, 0);
	else
		fuse_reply_buf(req, n->live.at + at, size < n->live.len - at ? size : n->live.len - at);
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *bytes, size_t size, off_t offset, struct fuse_file_info *fi)
{
	struct node *n = node_of(ino);
	size_t end = (size_t)offset + size;

	(void)fi;
	if (power_goes(req))
		return;
	if (end > n->live.len)
		bytes_resize(&n->live, end);
	memcpy(n->live.at + offset, bytes, size);
	n->is_dirty = true;
	clock_gettime(CLOCK_REALTIME, &n->mtime);
	fuse_reply_write(req, size);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t len, struct fuse_file_info *fi)
{
	struct node *n = node_of(ino);
	size_t end = (size_t)(offset + len);

	(void)fi;
	if (power_goes(req))
		return;
	if (mode != 0) {
		fuse_reply_err(req, EOPNOTSUPP);
		return;
	}
	if (end > n->live.len) {
		bytes_resize(&n->live, end);
		n->is_dirty = true;
	}
	fuse_reply_err(req, 0);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct node *n = node_of(ino);

	(void)fi;
	(void)datasync; /* a size that is needed to read the bytes is data */
	if (power_goes(req))
		return;
	if (fs.fsync_ms > 0)
		usleep((useconds_t)fs.fsync_ms * 1000);
	if (fs.lies) {
		fuse_reply_err(req, 0);
		return;
	}
	if (S_ISDIR(n->mode)) {
		changes_keep(n);
	} else {
		node_sync(n);
		if (fs.file_brings_name)
			changes_keep(n);
	}
	fuse_reply_err(req, 0);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	const struct names *names = &node_of(ino)->live_names;
	char *out = check(malloc(size));
	size_t len = 0;

	(void)fi;
	for (int i = (int)offset; i < names->count + 2; i++) {
		const char *text = i == 0 ? "." : i == 1 ? ".." : names->items[i - 2].text;
		struct stat st = node_stat(i < 2 ? node_of(ino) : names->items[i - 2].node);
		size_t n = fuse_add_direntry(req, out + len, size - len, text, &st, i + 1);
		if (n > size - len)
			break;
		len += n;
	}
	fuse_reply_buf(req, out, len);
	free(out);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct statvfs st = { .f_bsize = PAGE, .f_frsize = PAGE, .f_blocks = 1 << 20, .f_bfree = 1 << 19, .f_bavail = 1 << 19,
			      .f_files = NODES_MAX, .f_ffree = NODES_MAX / 2, .f_favail = NODES_MAX / 2, .f_namemax = 255 };

	(void)ino;
	fuse_reply_statfs(req, &st);
}

static const struct fuse_lowlevel_ops operations = {
	.lookup = op_lookup,
	.forget = op_forget,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.mkdir = op_mkdir,
	.mknod = op_mknod,
	.create = op_create,
	.link = op_link,
	.unlink = op_remove,
	.rmdir = op_remove,
	.rename = op_rename,
	.open = op_open,
	.read = op_read,
	.write = op_write,
	.fallocate = op_fallocate,
	.fsync = op_fsync,
	.fsyncdir = op_fsync,
	.readdir = op_readdir,
	.statfs = op_statfs,
};

/* ---- commands ---------------------------------------------------------------------------------------------- */

static struct fuse_session *mount_it(void)
{
	char *words[] = { "powercut", "-o", "fsname=powercut,default_permissions,allow_other", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, words);
	struct fuse_session *session = fuse_session_new(&args, &operations, sizeof(operations), NULL);

	if (!session || fuse_session_mount(session, fs.mountpoint) < 0) {
		fprintf(stderr, "powercut: cannot mount at %s\n", fs.mountpoint);
		exit(1);
	}
	fuse_opt_free_args(&args);
	puts("up");
	return session;
}

/* Closes our end first: whoever waits for an answer has an error now. */
static void unmount_it(struct fuse_session *session)
{
	fuse_session_unmount(session);
	fuse_session_destroy(session);
}

static void command(const char *line, struct fuse_session **session)
{
	long number = 0;
	uint64_t seed = 0;

	if (sscanf(line, "arm %ld %" SCNu64, &number, &seed) >= 1) {
		fs.seed = seed;
		fs.armed = number;
		puts("armed");
	} else if (strncmp(line, "cut", 3) == 0) {
		(void)sscanf(line, "cut %" SCNu64, &fs.seed);
		if (!fs.is_cut)
			cut();
	} else if (strcmp(line, "boot") == 0) {
		unmount_it(*session);
		come_up();
		*session = mount_it();
	} else if (strcmp(line, "sync") == 0) {
		sync_all();
		puts("synced");
	} else {
		fprintf(stderr, "powercut: what is '%s'?\n", line);
	}
}

/* Runs each whole line of the input. False at its end. */
static bool read_commands(struct fuse_session **session)
{
	static char text[LINE_BYTES_MAX];
	static size_t len;
	ssize_t n = read(STDIN_FILENO, text + len, sizeof(text) - len);
	char *end;

	if (n <= 0)
		return false;
	len += (size_t)n;
	while ((end = memchr(text, '\n', len))) {
		*end++ = '\0';
		command(text, session);
		len -= (size_t)(end - text);
		memmove(text, end, len);
	}
	return len < sizeof(text);
}

int main(int argc, char **argv)
{
	struct fuse_buf request = { 0 };

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--entries=file") == 0)
			fs.file_brings_name = true;
		else if (strcmp(argv[i], "--entries=dir") == 0)
			fs.file_brings_name = false;
		else if (strcmp(argv[i], "--lies") == 0)
			fs.lies = true;
		else if (sscanf(argv[i], "--fsync-ms=%ld", &fs.fsync_ms) != 1)
			fs.mountpoint = argv[i];
	}
	if (!fs.mountpoint) {
		fputs("usage: powercut MOUNTPOINT [--entries=dir|file] [--fsync-ms=N] [--lies]\n", stderr);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	node_new(S_IFDIR | 0755);
	struct fuse_session *session = mount_it();
	for (;;) {
		struct pollfd fds[2] = { { STDIN_FILENO, POLLIN, 0 }, { fuse_session_fd(session), POLLIN, 0 } };
		if (poll(fds, fs.is_cut ? 1 : 2, -1) < 0 && errno != EINTR)
			break;
		if (fds[0].revents && !read_commands(&session))
			break;
		if (fs.is_cut || fds[0].revents || !fds[1].revents)
			continue;
		int r = fuse_session_receive_buf(session, &request);
		if (r == -EINTR || r == -EAGAIN)
			continue;
		if (r <= 0)
			break; /* unmounted by somebody else */
		fuse_session_process_buf(session, &request);
	}
	unmount_it(session);
	free(request.mem);
	return 0;
}
