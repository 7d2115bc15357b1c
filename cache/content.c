/* Documents' bytes on disk; see content.h.
 *
 * A file is called KEY.LENGTH. After a power loss a renamed file may be shorter than it was (no file system shows more
 * than was written), so at the next start one that has not the length its name tells is removed; that spares an fsync for
 * each document read. What is being written is called .new-NUMBER-ROOM. When a file was used last is its access time. */
#include "cache/content.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "cache/table.h"
#include "client/base/buf.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

#define KEY_BYTES_MAX 128
#define NAME_BYTES (KEY_BYTES_MAX + 24)
#define NEW_PREFIX ".new-"
#define TOUCH_MS 60000 /* access times are for the next mount: a minute is near enough */

struct content {
	int dir; /* this and bytes_max are set once */
	int64_t bytes_max;
	pthread_mutex_t lock; /* guards what follows */
	struct table *files;  /* key -> struct file; giving one up removes it from the disk */
	int64_t begun_bytes;  /* room for what is being written */
	uint64_t begun;       /* numbers the names */
	bool closes;
};

struct file {
	struct content *content;
	int64_t bytes;
	int64_t touched_ms;
	bool was_replaced; /* the file of that name is another's now */
	char name[];
};

static void file_free(void *value)
{
	struct file *f = value;

	if (!f->content->closes && !f->was_replaced && unlinkat(f->content->dir, f->name, 0) < 0 && errno != ENOENT)
		log_warning("content: %s can't be removed: %s", f->name, strerror(errno));
	free(f);
}

/* ---- names -------------------------------------------------------------------------------------------------- */

static bool key_is_sound(const char *key)
{
	size_t len = strspn(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-");

	return len > 0 && len <= KEY_BYTES_MAX && key[len] == '\0';
}

/* The number a text consists of; -1 when it is none. */
static int64_t read_number(const char *text)
{
	char *end = NULL;

	if (text[0] < '0' || text[0] > '9')
		return -1;
	errno = 0;
	long long n = strtoll(text, &end, 10);
	return errno || *end ? -1 : n;
}

/* "KEY.LENGTH" -> the length, and KEY; -1: not one of ours. */
static int64_t read_name(const char *name, char ret_key[NAME_BYTES])
{
	const char *dot = strchr(name, '.');

	if (!dot || dot - name > KEY_BYTES_MAX)
		return -1;
	memcpy(ret_key, name, (size_t)(dot - name));
	ret_key[dot - name] = '\0';
	return key_is_sound(ret_key) ? read_number(dot + 1) : -1;
}

/* How much room was set aside for what is written under this name. */
static int64_t room_of(const char *name)
{
	int64_t room = read_number(strrchr(name, '-') + 1);

	return room > 0 ? room : 0;
}

/* ---- the index ---------------------------------------------------------------------------------------------- */

/* Lock held. The file stands on the disk already; one of the same name stood there under the same key. */
static int file_put(struct content *c, const char *key, const char *name, int64_t bytes, int64_t touched_ms)
{
	size_t name_bytes = strlen(name) + 1;
	struct file *f = malloc(sizeof(*f) + name_bytes);
	struct file *old = table_find(c->files, key);

	if (!f)
		return -ENOMEM;
	*f = (struct file){ .content = c, .bytes = bytes, .touched_ms = touched_ms };
	memcpy(f->name, name, name_bytes);
	if (old)
		old->was_replaced = strcmp(old->name, name) == 0;
	int r = table_put(c->files, key, f, (size_t)bytes, INT64_MAX);
	if (r < 0)
		free(f);
	return r;
}

static bool fits(const struct content *c)
{
	return (int64_t)table_bytes(c->files) + c->begun_bytes <= c->bytes_max;
}

/* The one used last stays: whoever has just fetched it is about to open it. */
static void keep_bound(struct content *c)
{
	while (!fits(c) && table_count(c->files) > 1)
		(void)table_drop_oldest(c->files);
}

/* A file found at the start. */
struct found {
	char name[NAME_BYTES];
	char key[NAME_BYTES];
	int64_t bytes;
	int64_t used_ns;
};

static int64_t ns_of(struct timespec t)
{
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int by_use(const void *a, const void *b)
{
	const struct found *x = a, *y = b;

	return (x->used_ns > y->used_ns) - (x->used_ns < y->used_ns);
}

/* True: *ret is a whole file of ours. What a crash left is removed; what is not ours stays. */
static bool look_at(struct content *c, const char *name, struct found *ret)
{
	struct stat st;

	if (strncmp(name, NEW_PREFIX, strlen(NEW_PREFIX)) == 0) {
		(void)unlinkat(c->dir, name, 0); /* at worst it takes its room until the next start */
		return false;
	}
	ret->bytes = strlen(name) < NAME_BYTES ? read_name(name, ret->key) : -1;
	if (ret->bytes < 0 || fstatat(c->dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
		return false;
	if (st.st_size != ret->bytes) {
		(void)unlinkat(c->dir, name, 0); /* it is not served in any case */
		return false;
	}
	ret->used_ns = ns_of(st.st_atim) > ns_of(st.st_mtim) ? ns_of(st.st_atim) : ns_of(st.st_mtim);
	memcpy(ret->name, name, strlen(name) + 1);
	return true;
}

static int scan(struct content *c)
{
	int fd = openat(c->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct found *found = NULL;
	size_t count = 0, room = 0;
	int r = 0;

	if (!d) {
		r = -errno;
		fd_close(&fd);
		return r;
	}
	for (const struct dirent *e; r == 0 && (e = readdir(d));) {
		if (count == room) {
			room = room ? room * 2 : 64;
			struct found *more = realloc(found, room * sizeof(*found));
			if (!more) {
				r = -ENOMEM;
				break;
			}
			found = more;
		}
		count += look_at(c, e->d_name, &found[count]);
	}
	(void)closedir(d); /* only read from */
	if (count)
		qsort(found, count, sizeof(*found), by_use);
	for (size_t i = 0; r == 0 && i < count; i++)
		r = file_put(c, found[i].key, found[i].name, found[i].bytes, 0);
	free(found);
	return r;
}

/* ---- beginning and end -------------------------------------------------------------------------------------- */

void content_close(struct content *c)
{
	if (!c)
		return;
	c->closes = true;
	table_free(c->files);
	fd_close(&c->dir);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

int content_open(const char *dir, int64_t bytes_max, struct content **ret)
{
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	CLEANUP(fd_close) int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	struct content *c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	(void)pthread_mutex_init(&c->lock, NULL); /* can't fail on Linux */
	c->dir = fd;
	fd = -1;
	c->bytes_max = bytes_max > 0 ? bytes_max : 0;
	c->files = table_new(SIZE_MAX, (size_t)c->bytes_max, file_free);
	int r = c->files ? scan(c) : -ENOMEM;
	if (r < 0) {
		content_close(c);
		return r;
	}
	*ret = c;
	return 0;
}

/* ---- reading ------------------------------------------------------------------------------------------------ */

int content_get(struct content *c, const char *key)
{
	if (!key_is_sound(key))
		return -EINVAL;
	SCOPED_LOCK(&c->lock);
	struct file *f = table_get(c->files, key, 0);
	if (!f)
		return -ENOENT;
	int fd = openat(c->dir, f->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0) {
		int r = -errno;
		if (r == -ENOENT)
			table_remove(c->files, key); /* somebody cleaned up by hand */
		return r;
	}
	int64_t now_ms = clock_now_ms();
	if (!f->touched_ms || now_ms - f->touched_ms >= TOUCH_MS) {
		const struct timespec times[2] = { { .tv_nsec = UTIME_NOW }, { .tv_nsec = UTIME_OMIT } };
		(void)futimens(fd, times); /* the order of going is only an estimate */
		f->touched_ms = now_ms;
	}
	return fd;
}

/* ---- writing ------------------------------------------------------------------------------------------------ */

/* Room on the disk as well as under the bound. A file system that can't set it aside finds out when it is written. */
static int reserve(struct content *c, int fd, int64_t bytes)
{
	while (bytes > 0 && fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, bytes) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != ENOSPC && errno != EDQUOT)
			return 0;
		if (!table_drop_oldest(c->files))
			return -ENOSPC;
	}
	return 0;
}

int content_begin(struct content *c, int64_t size_bytes_or_0, char **ret_name, int *ret_fd)
{
	CLEANUP(buf_release) struct buf name = BUF(NAME_BYTES);
	int64_t room = size_bytes_or_0 > 0 && size_bytes_or_0 <= c->bytes_max ? size_bytes_or_0 : 0;
	SCOPED_LOCK(&c->lock);

	buf_addf(&name, NEW_PREFIX "%llu-%lld", (unsigned long long)++c->begun, (long long)room);
	CLEANUP(text_release) char *text = buf_take(&name);
	if (!text)
		return -ENOMEM;
	CLEANUP(fd_close) int fd = openat(c->dir, text, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	while (fd < 0 && (errno == ENOSPC || errno == EDQUOT) && table_drop_oldest(c->files))
		fd = openat(c->dir, text, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	c->begun_bytes += room;
	keep_bound(c);
	int r = reserve(c, fd, size_bytes_or_0);
	if (r < 0) {
		c->begun_bytes -= room;
		(void)unlinkat(c->dir, text, 0); /* empty, and removed at the next start */
		return r;
	}
	*ret_name = text;
	*ret_fd = fd;
	text = NULL;
	fd = -1;
	return 0;
}

void content_abandon(struct content *c, char *name)
{
	CLEANUP(text_release) char *text = name;
	SCOPED_LOCK(&c->lock);

	c->begun_bytes -= room_of(text);
	(void)unlinkat(c->dir, text, 0); /* removed at the next start, if not now */
}

/* Lock held. Renames what stands at (dir, path) to its name under key and takes it into the index. */
static int move_in(struct content *c, int dir, const char *path, const char *key)
{
	CLEANUP(buf_release) struct buf name = BUF(NAME_BYTES);
	struct stat st;

	if (fstatat(dir, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	buf_addf(&name, "%s.%lld", key, (long long)st.st_size);
	if (!buf_text(&name))
		return -ENOMEM;
	if (renameat(dir, path, c->dir, buf_text(&name)) < 0)
		return -errno;
	int r = file_put(c, key, buf_text(&name), st.st_size, 0);
	if (r < 0) {
		(void)unlinkat(c->dir, buf_text(&name), 0); /* not known, so not counted, so not kept */
		table_remove(c->files, key);
		return r;
	}
	keep_bound(c);
	return 0;
}

int content_commit(struct content *c, char *name, const char *key)
{
	CLEANUP(text_release) char *text = name;
	SCOPED_LOCK(&c->lock);

	c->begun_bytes -= room_of(text);
	int r = key_is_sound(key) ? move_in(c, c->dir, text, key) : -EINVAL;
	if (r < 0)
		(void)unlinkat(c->dir, text, 0); /* it may be gone already */
	return r;
}

int content_adopt(struct content *c, const char *path, const char *key)
{
	if (!key_is_sound(key))
		return -EINVAL;
	SCOPED_LOCK(&c->lock);
	return move_in(c, AT_FDCWD, path, key);
}

void content_forget(struct content *c, const char *key)
{
	SCOPED_LOCK(&c->lock);

	table_remove(c->files, key);
}

void content_make_room(struct content *c, int64_t bytes)
{
	struct statvfs fs;
	SCOPED_LOCK(&c->lock);

	while (fstatvfs(c->dir, &fs) == 0 && (int64_t)(fs.f_bavail * fs.f_frsize) < bytes &&
	       table_drop_oldest(c->files))
		continue;
}
