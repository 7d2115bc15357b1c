/* The floor for any userspace filesystem: folders of N documents answered from memory, with what sessionfs asks of the kernel (readdirplus,
 * long timeouts, POSIX_ACL with default_permissions, extended attributes that are answered) and nothing behind it. The time a program takes
 * here is the kernel's and libfuse's; whatever sessionfs takes beyond it is its own.
 *
 *     floor MOUNTPOINT N FILE-BYTES [FOLDERS]
 *                                        serves MOUNTPOINT/d/invoice-000001.pdf ..., and MOUNTPOINT/big.bin of that many bytes, or so many
 *                                        folders S0001 ... of N documents each
 *     floor --stat DIR                   a stat(2) of each name in DIR, as fast as that goes
 *     floor --attribute FILE NAME SECONDS  asks for it a thousand times a second and prints the median and the 99th percentile of how long
 *                                        an answer took, and the longest, in microseconds
 *     floor --fill DIR N                 the same names and attributes in another file system (tmpfs) */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "fs/wire.h"

enum { INO_BIG = 3, FOLDER_SHIFT = 32, NAME_BYTES = 64, REPLY_BYTES_MAX = 1 << 20, SAMPLES_MAX = 1 << 20, ASKED_EVERY_NS = 1000000 };

#define TIMEOUT_S 3600.0

static long count, folder_count = 1;
static off_t big_bytes;

/* As many as a document of the sandbox has, and as long. */
static const struct { const char *name, *value; } attributes[] = {
	{ "user.sessionfs.status", "parsed" },
	{ "user.sessionfs.state", "ready" },
	{ "user.sessionfs.id", "3f2c9a10-5b7e-4e0f-9f43-0123456789ab" },
	{ "user.sessionfs.filename", "invoice-000001.pdf" },
	{ "user.sessionfs.sha256", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" },
	{ "user.sessionfs.mime", "application/pdf" },
	{ "user.sessionfs.size", "48213" },
	{ "user.sessionfs.created", "2026-01-01T00:00:00Z" },
	{ "user.sessionfs.pages", "2" },
	{ "user.sessionfs.source", "upload" },
	{ "user.sessionfs.parsing.status", "parsed" },
	{ "user.sessionfs.parsing.updated", "2026-01-01T00:00:00Z" },
	{ "user.sessionfs.parsing.version", "1.4.2" },
	{ "user.sessionfs.parsing.config", "9f86d081884c7d65" },
	{ "user.sessionfs.workspace", "7b0e8b6a-1111-4222-8333-0123456789ab" },
	{ "user.sessionfs.as_of", "2026-01-01T00:00:00Z" },
	{ "user.mime_type", "application/pdf" },
};
enum { ATTRIBUTE_COUNT = sizeof(attributes) / sizeof(attributes[0]) };

static void name_of(long i, char ret[NAME_BYTES])
{
	(void)snprintf(ret, NAME_BYTES, "invoice-%06ld.pdf", i + 1);
}

static void folder_name_of(long i, char ret[NAME_BYTES])
{
	if (folder_count == 1)
		(void)snprintf(ret, NAME_BYTES, "d");
	else
		(void)snprintf(ret, NAME_BYTES, "S%04ld", i + 1);
}

/* Of folder i, and of the nth document in the folder of that inode. */
static fuse_ino_t folder_ino(long i)
{
	return (fuse_ino_t)(i + 1) << FOLDER_SHIFT;
}

static fuse_ino_t document_ino(fuse_ino_t folder, long n)
{
	return folder + (fuse_ino_t)n + 1;
}

static bool is_document(fuse_ino_t ino)
{
	return (uint32_t)ino != 0 && ino > UINT32_MAX;
}

static void fill(fuse_ino_t ino, struct fuse_entry_param *ret)
{
	bool is_folder = ino != INO_BIG && !is_document(ino);

	*ret = (struct fuse_entry_param){ .ino = ino, .attr_timeout = TIMEOUT_S, .entry_timeout = TIMEOUT_S };
	ret->attr = (struct stat){ .st_ino = ino, .st_nlink = is_folder ? 2 : 1, .st_mode = is_folder ? S_IFDIR | 0755 : S_IFREG | 0444,
				   .st_size = is_folder ? 0 : ino == INO_BIG ? big_bytes : 48213, .st_blksize = 128 * 1024 };
	ret->attr.st_blocks = (ret->attr.st_size + 511) / 512;
	ret->attr.st_mtim.tv_sec = ret->attr.st_ctim.tv_sec = ret->attr.st_atim.tv_sec = 1767225600;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	(void)userdata;
	conn->want |= conn->capable & (FUSE_CAP_POSIX_ACL | FUSE_CAP_PARALLEL_DIROPS);
	conn->time_gran = 1;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param p;
	long i;
	fuse_ino_t ino = 0;

	if (parent == FUSE_ROOT_ID && strcmp(name, "big.bin") == 0)
		ino = INO_BIG;
	else if (parent == FUSE_ROOT_ID && folder_count == 1 && strcmp(name, "d") == 0)
		ino = folder_ino(0);
	else if (parent == FUSE_ROOT_ID && sscanf(name, "S%ld", &i) == 1 && i >= 1 && i <= folder_count)
		ino = folder_ino(i - 1);
	else if (parent != FUSE_ROOT_ID && sscanf(name, "invoice-%ld.pdf", &i) == 1 && i >= 1 && i <= count)
		ino = document_ino(parent, i - 1);
	fill(ino, &p);
	if (ino)
		fuse_reply_entry(req, &p);
	else
		fuse_reply_err(req, ENOENT);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fuse_entry_param p;
	(void)fi;

	fill(ino, &p);
	fuse_reply_attr(req, &p.attr, TIMEOUT_S);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fi->cache_readdir = fi->keep_cache = 1;
	fuse_reply_open(req, fi);
}

static void read_dir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t at, bool is_plus)
{
	char *data = malloc(size < REPLY_BYTES_MAX ? size : REPLY_BYTES_MAX), name[NAME_BYTES];
	size_t used = 0;
	bool is_root = ino == FUSE_ROOT_ID;

	for (off_t i = at; i < (is_root ? folder_count : count); i++) {
		struct fuse_entry_param p;
		fill(is_root ? folder_ino(i) : document_ino(ino, i), &p);
		if (is_root)
			folder_name_of(i, name);
		else
			name_of(i, name);
		size_t n = is_plus ? fuse_add_direntry_plus(req, data + used, size - used, name, &p, i + 1)
				   : fuse_add_direntry(req, data + used, size - used, name, &p.attr, i + 1);
		if (n > size - used)
			break;
		used += n;
	}
	fuse_reply_buf(req, data, used);
	free(data);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t at, struct fuse_file_info *fi)
{
	(void)fi;
	read_dir(req, ino, size, at, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t at, struct fuse_file_info *fi)
{
	(void)fi;
	read_dir(req, ino, size, at, true);
}

static void reply_bytes(fuse_req_t req, const char *bytes, size_t len, size_t size)
{
	if (size == 0)
		fuse_reply_xattr(req, len);
	else if (len > size)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, bytes, len);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	for (int i = 0; i < ATTRIBUTE_COUNT && is_document(ino); i++) {
		if (strcmp(attributes[i].name, name) == 0) {
			reply_bytes(req, attributes[i].value, strlen(attributes[i].value), size);
			return;
		}
	}
	/* As sessionfs does: to this one ls(1) stops asking for security.selinux, where after ENODATA it asks of each entry. */
	fuse_reply_err(req, strncmp(name, "security.", 9) == 0 || strncmp(name, "trusted.", 8) == 0 ? EOPNOTSUPP : ENODATA);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	char text[1024];
	size_t len = 0;

	for (int i = 0; i < ATTRIBUTE_COUNT && is_document(ino); i++) {
		size_t n = strlen(attributes[i].name) + 1;
		memcpy(text + len, attributes[i].name, n);
		len += n;
	}
	reply_bytes(req, text, len, size);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fi->keep_cache = 1;
	fuse_reply_open(req, fi);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	static char zeroes[REPLY_BYTES_MAX];
	off_t left = ino == INO_BIG && offset < big_bytes ? big_bytes - offset : 0;
	(void)fi;

	size = size < sizeof(zeroes) ? size : sizeof(zeroes);
	fuse_reply_buf(req, zeroes, (off_t)size < left ? size : (size_t)left);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
	(void)ino, (void)n;
	fuse_reply_none(req);
}

static const struct fuse_lowlevel_ops ops = {
	.init = op_init, .lookup = op_lookup, .getattr = op_getattr, .opendir = op_opendir, .readdir = op_readdir, .forget = op_forget,
	.readdirplus = op_readdirplus, .getxattr = op_getxattr, .listxattr = op_listxattr, .open = op_open, .read = op_read,
};

static int serve(const char *path)
{
	char *argv[] = { "floor", "-odefault_permissions,fsname=floor", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(2, argv);
	struct fuse_session *s = fuse_session_new(&args, &ops, sizeof(ops), NULL);
	struct fuse_loop_config *config = fuse_loop_cfg_create();

	if (!s || !config || fuse_set_signal_handlers(s) != 0 || fuse_session_mount(s, path) != 0)
		return 1;
	(void)wire_allow_parallel(s); /* as sessionfs does */
	fuse_loop_cfg_set_max_threads(config, 16);
	fuse_loop_cfg_set_idle_threads(config, 16);
	int r = fuse_session_loop_mt(s, config);
	fuse_session_unmount(s);
	fuse_session_destroy(s);
	fuse_loop_cfg_destroy(config);
	return r < 0;
}

static int stat_all(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	struct stat st;
	long failed = 0;

	while (d && (e = readdir(d)))
		failed += fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0;
	return !d || failed || closedir(d) < 0;
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int is_longer(const void *a, const void *b)
{
	int64_t one = *(const int64_t *)a, other = *(const int64_t *)b;

	return (one > other) - (one < other);
}

static int time_attribute(const char *path, const char *name, long seconds)
{
	const struct timespec pause = { .tv_nsec = ASKED_EVERY_NS };
	int64_t end = now_ns() + seconds * INT64_C(1000000000), *took = calloc(SAMPLES_MAX, sizeof(*took));
	size_t n = 0;
	char value[1024];

	for (int64_t began = 0; took && n < SAMPLES_MAX && began < end;) {
		began = now_ns();
		if (getxattr(path, name, value, sizeof(value)) < 0) {
			perror(path);
			free(took);
			return 1;
		}
		/* Who would have asked meanwhile, had we not been waiting, would have waited for the rest of it. */
		for (int64_t left = now_ns() - began; left > 0 && n < SAMPLES_MAX; left -= ASKED_EVERY_NS)
			took[n++] = left;
		(void)nanosleep(&pause, NULL); /* so as not to be the load itself */
	}
	if (!took || n == 0)
		return 1;
	qsort(took, n, sizeof(*took), is_longer);
	printf("%.1f %.1f %.1f\n", (double)took[n / 2] / 1000, (double)took[n * 99 / 100] / 1000, (double)took[n - 1] / 1000);
	free(took);
	return 0;
}

static int fill_folder(const char *path, long n)
{
	char name[NAME_BYTES];
	int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	for (long i = 0; dir >= 0 && i < n; i++) {
		name_of(i, name);
		int fd = openat(dir, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
		if (fd < 0)
			return 1;
		for (int k = 0; k < ATTRIBUTE_COUNT; k++)
			(void)fsetxattr(fd, attributes[k].name, attributes[k].value, strlen(attributes[k].value), 0); /* tmpfs may not take them */
		(void)close(fd);
	}
	return dir < 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "--stat") == 0)
		return stat_all(argv[2]);
	if (argc == 4 && strcmp(argv[1], "--fill") == 0)
		return fill_folder(argv[2], strtol(argv[3], NULL, 10));
	if (argc == 5 && strcmp(argv[1], "--attribute") == 0)
		return time_attribute(argv[2], argv[3], strtol(argv[4], NULL, 10));
	if (argc != 4 && argc != 5) {
		(void)fputs("usage: floor MOUNTPOINT N FILE-BYTES [FOLDERS] | --stat DIR | --attribute FILE NAME SECONDS | --fill DIR N\n", stderr);
		return 2;
	}
	count = strtol(argv[2], NULL, 10);
	big_bytes = strtoll(argv[3], NULL, 10);
	folder_count = argc == 5 ? strtol(argv[4], NULL, 10) : 1;
	return serve(argv[1]);
}
