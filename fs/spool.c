/* The local bytes of one file; see spool.h.
 *
 * The hash always covers the first hash_at bytes of the file: a write right there carries it on, one further out
 * leaves it, one before it starts it over. So spool_finish() has only to read what is missing, and does so in
 * pieces, without keeping writers out for the length of a large file. */
#include "fs/spool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/log.h"

#define PATH_BYTES_MAX 4096
#define PIECE_BYTES (256 * 1024)

struct spool {
	_Atomic int refs;
	uint64_t id; /* this and the next three are set once */
	char *dir;
	int fd;
	int64_t size_bytes_max;
	_Atomic int64_t size_bytes; /* written under the lock; read without it, so that no reader waits for a writer */
	pthread_mutex_t lock;       /* guards what follows, and all changes of the file */
	EVP_MD_CTX *hash;           /* of the first hash_at bytes */
	int64_t hash_at;
	bool is_frozen;
	bool is_dirty;       /* changed since the last fsync began */
	bool is_name_synced; /* the folder was synced since the file was made */
	int sync_error;      /* an fsync that failed once proves nothing when it succeeds later */
};

static void path_of(const char *dir, uint64_t id, struct buf *ret)
{
	buf_addf(ret, "%s/%" PRIu64, dir, id);
}

int spool_dir_make(const char *dir)
{
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	return 0;
}

static struct spool *spool_make(const char *dir, uint64_t id, int64_t size_bytes_max)
{
	struct spool *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->dir = strdup(dir);
	s->hash = EVP_MD_CTX_new();
	if (!s->dir || !s->hash || EVP_DigestInit_ex(s->hash, EVP_sha256(), NULL) != 1) {
		free(s->dir);
		EVP_MD_CTX_free(s->hash);
		free(s);
		return NULL;
	}
	atomic_init(&s->refs, 1);
	atomic_init(&s->size_bytes, 0);
	s->id = id;
	s->fd = -1;
	s->size_bytes_max = size_bytes_max;
	s->is_dirty = true;
	(void)pthread_mutex_init(&s->lock, NULL); /* can't fail on Linux */
	return s;
}

static int spool_open_file(struct spool *s, int flags)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);

	path_of(s->dir, s->id, &path);
	if (!buf_text(&path))
		return -ENAMETOOLONG;
	s->fd = open(buf_text(&path), flags | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
	return s->fd < 0 ? -errno : 0;
}

int spool_new(const char *dir, uint64_t id, int64_t size_bytes_max, struct spool **ret)
{
	CLEANUP(spool_release) struct spool *s = spool_make(dir, id, size_bytes_max);

	if (!s)
		return -ENOMEM;
	int r = spool_open_file(s, O_CREAT | O_EXCL);
	if (r < 0)
		return r;
	*ret = s;
	s = NULL;
	return 0;
}

int spool_open(const char *dir, uint64_t id, int64_t size_bytes_max, int64_t size_bytes, struct spool **ret)
{
	CLEANUP(spool_release) struct spool *s = spool_make(dir, id, size_bytes_max);
	struct stat st;

	if (!s)
		return -ENOMEM;
	int r = spool_open_file(s, 0);
	if (r < 0)
		return r;
	if (fstat(s->fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || (size_bytes >= 0 && st.st_size != size_bytes))
		return -EIO;
	atomic_store(&s->size_bytes, st.st_size);
	*ret = s;
	s = NULL;
	return 0;
}

struct spool *spool_ref(struct spool *s)
{
	atomic_fetch_add(&s->refs, 1);
	return s;
}

void spool_unref(struct spool *s)
{
	if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
		return;
	if (s->fd >= 0)
		(void)close(s->fd); /* what has to last was synced, and that was checked */
	EVP_MD_CTX_free(s->hash);
	pthread_mutex_destroy(&s->lock);
	free(s->dir);
	free(s);
}

void spool_release(struct spool **s)
{
	spool_unref(*s);
	*s = NULL;
}

uint64_t spool_id(const struct spool *s)
{
	return s->id;
}

int spool_fd(const struct spool *s)
{
	return s->fd;
}

int64_t spool_size(struct spool *s)
{
	return atomic_load(&s->size_bytes);
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

/* Holds the lock. */
static void hash_start_over(struct spool *s)
{
	s->hash_at = 0;
	/* A context that was begun once can be begun again; should it fail all the same, spool_finish() sees it too. */
	(void)EVP_DigestInit_ex(s->hash, EVP_sha256(), NULL);
}

/* len bytes at offset are new. Holds the lock. */
static void hash_note(struct spool *s, const void *bytes, size_t len, int64_t offset)
{
	if (offset < s->hash_at)
		hash_start_over(s);
	if (offset != s->hash_at)
		return;
	if (EVP_DigestUpdate(s->hash, bytes, len) == 1)
		s->hash_at += (int64_t)len;
	else
		hash_start_over(s);
}

/* Is a file that ends there allowed? */
static int check_end(const struct spool *s, int64_t offset, int64_t len)
{
	if (s->is_frozen)
		return -EROFS;
	if (offset < 0 || len < 0)
		return -EINVAL;
	if (len > INT64_MAX - offset || (s->size_bytes_max > 0 && offset + len > s->size_bytes_max))
		return -EFBIG;
	return 0;
}

/* Takes back what a failed write or allocation added at the end. Holds the lock. */
static void size_restore(struct spool *s)
{
	while (ftruncate(s->fd, atomic_load(&s->size_bytes)) < 0) {
		if (errno == EINTR)
			continue;
		log_error("spool: file %" PRIu64 " cannot be cut back to its size: %s", s->id, strerror(errno));
		return;
	}
}

int spool_write(struct spool *s, const void *bytes, size_t len, int64_t offset)
{
	size_t done = 0;

	if (len > (size_t)INT64_MAX)
		return -EFBIG;
	SCOPED_LOCK(&s->lock);
	int r = check_end(s, offset, (int64_t)len);
	if (r < 0)
		return r;
	if (len == 0)
		return 0;
	s->is_dirty = true;
	while (done < len) {
		ssize_t n = pwrite(s->fd, (const char *)bytes + done, len - done, offset + (int64_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			r = n < 0 ? -errno : -ENOSPC;
			if (offset < s->hash_at)
				hash_start_over(s); /* some bytes in the middle may be new */
			size_restore(s);
			return r;
		}
		done += (size_t)n;
	}
	hash_note(s, bytes, len, offset);
	if (offset + (int64_t)len > atomic_load(&s->size_bytes))
		atomic_store(&s->size_bytes, offset + (int64_t)len);
	return 0;
}

ssize_t spool_read(struct spool *s, void *bytes, size_t len, int64_t offset)
{
	int64_t size_bytes = atomic_load(&s->size_bytes);
	size_t done = 0;

	if (offset < 0)
		return -EINVAL;
	if (offset >= size_bytes)
		return 0;
	if ((int64_t)len > size_bytes - offset || len > (size_t)INT64_MAX)
		len = (size_t)(size_bytes - offset);
	while (done < len) {
		ssize_t n = pread(s->fd, (char *)bytes + done, len - done, offset + (int64_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int spool_truncate(struct spool *s, int64_t size_bytes)
{
	SCOPED_LOCK(&s->lock);
	int r = check_end(s, 0, size_bytes);
	if (r < 0)
		return r;
	s->is_dirty = true;
	while (ftruncate(s->fd, size_bytes) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	if (size_bytes < s->hash_at)
		hash_start_over(s);
	atomic_store(&s->size_bytes, size_bytes);
	return 0;
}

int spool_allocate(struct spool *s, int64_t offset, int64_t len)
{
	if (len <= 0)
		return -EINVAL;
	SCOPED_LOCK(&s->lock);
	int r = check_end(s, offset, len);
	if (r < 0)
		return r;
	s->is_dirty = true;
	while (fallocate(s->fd, 0, offset, len) < 0) {
		if (errno == EINTR)
			continue;
		r = -errno;
		size_restore(s);
		return r;
	}
	if (offset + len > atomic_load(&s->size_bytes))
		atomic_store(&s->size_bytes, offset + len);
	return 0;
}

void spool_freeze(struct spool *s)
{
	SCOPED_LOCK(&s->lock);
	s->is_frozen = true;
}

/* ---- the disk and the hash --------------------------------------------------------------------------------- */

static int fsync_whole(int fd)
{
	while (fsync(fd) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static int dir_sync(const char *dir)
{
	CLEANUP(fd_close) int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? -errno : fsync_whole(fd);
}

int spool_sync(struct spool *s)
{
	pthread_mutex_lock(&s->lock);
	bool is_dirty = s->is_dirty, is_named = s->is_name_synced;
	int r = s->sync_error;
	s->is_dirty = false; /* a write that comes from here on needs another fsync */
	pthread_mutex_unlock(&s->lock);
	if (r < 0)
		return r;
	if (is_dirty)
		r = fsync_whole(s->fd);
	int r_bytes = r;
	if (r == 0 && !is_named)
		r = dir_sync(s->dir);
	SCOPED_LOCK(&s->lock);
	if (r_bytes < 0) {
		s->sync_error = r_bytes;
		log_error("spool: file %" PRIu64 " cannot be put on the disk: %s", s->id, strerror(-r_bytes));
	}
	if (r < 0)
		s->is_dirty = true;
	else
		s->is_name_synced = true;
	return r;
}

static int hash_text(EVP_MD_CTX *so_far, char ret_sha256[65])
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	EVP_MD_CTX *copy = EVP_MD_CTX_new();
	unsigned int len = 0;
	bool is_done = copy && EVP_MD_CTX_copy_ex(copy, so_far) == 1 && EVP_DigestFinal_ex(copy, digest, &len) == 1 &&
		       len == 32;

	EVP_MD_CTX_free(copy);
	if (!is_done)
		return -ENOMEM;
	for (int i = 0; i < 32; i++)
		(void)snprintf(ret_sha256 + 2 * i, 3, "%02x", digest[i]); /* always two digits and a NUL */
	return 0;
}

/* 1: there is more to read. Holds the lock. */
static int hash_go_on(struct spool *s, unsigned char *piece)
{
	int64_t left = atomic_load(&s->size_bytes) - s->hash_at;

	if (left <= 0)
		return 0;
	ssize_t n = pread(s->fd, piece, left < PIECE_BYTES ? (size_t)left : PIECE_BYTES, s->hash_at);
	if (n < 0)
		return errno == EINTR ? 1 : -errno;
	if (n == 0)
		return -EIO; /* somebody else cut the file */
	if (EVP_DigestUpdate(s->hash, piece, (size_t)n) != 1) {
		hash_start_over(s);
		return -EIO;
	}
	s->hash_at += n;
	return 1;
}

int spool_finish(struct spool *s, char ret_sha256[65])
{
	unsigned char *piece = NULL;

	for (;;) {
		pthread_mutex_lock(&s->lock);
		int r = 0;
		if (s->hash_at < atomic_load(&s->size_bytes)) {
			if (!piece)
				piece = malloc(PIECE_BYTES);
			r = piece ? hash_go_on(s, piece) : -ENOMEM;
		}
		if (r == 0)
			r = hash_text(s->hash, ret_sha256);
		pthread_mutex_unlock(&s->lock);
		if (r <= 0) {
			free(piece);
			return r;
		}
	}
}

/* ---- copies and the folder --------------------------------------------------------------------------------- */

static int copy_by_hand(int from, int to, int64_t at, int64_t size_bytes)
{
	unsigned char *piece = malloc(PIECE_BYTES);
	int r = piece ? 0 : -ENOMEM;

	while (r == 0 && at < size_bytes) {
		ssize_t n = pread(from, piece, PIECE_BYTES, at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			r = n < 0 ? -errno : -EIO;
			break;
		}
		for (ssize_t done = 0; done < n;) {
			ssize_t w = pwrite(to, piece + done, (size_t)(n - done), at + done);
			if (w < 0 && errno == EINTR)
				continue;
			if (w <= 0) {
				r = w < 0 ? -errno : -ENOSPC;
				break;
			}
			done += w;
		}
		at += n;
	}
	free(piece);
	return r;
}

static int copy_bytes(int from, int to, int64_t size_bytes)
{
	off_t in = 0, out = 0;

	if (ioctl(to, FICLONE, from) == 0)
		return 0;
	while (out < size_bytes) {
		ssize_t n = copy_file_range(from, &in, to, &out, (size_t)(size_bytes - out), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == ENOSPC)
			return -ENOSPC;
		if (n <= 0) /* not on this file system */
			return copy_by_hand(from, to, out, size_bytes);
	}
	return 0;
}

/* Holds from's lock. */
static int clone_into(struct spool *from, struct spool *to)
{
	int64_t size_bytes = atomic_load(&from->size_bytes);
	int r = copy_bytes(from->fd, to->fd, size_bytes);

	if (r < 0)
		return r;
	if (EVP_MD_CTX_copy_ex(to->hash, from->hash) == 1)
		to->hash_at = from->hash_at;
	else
		hash_start_over(to);
	atomic_store(&to->size_bytes, size_bytes);
	return 0;
}

int spool_clone(struct spool *from, uint64_t id, struct spool **ret)
{
	CLEANUP(spool_release) struct spool *to = NULL;
	int r = spool_new(from->dir, id, from->size_bytes_max, &to);

	if (r < 0)
		return r;
	pthread_mutex_lock(&from->lock); /* its writers wait: half of a write must not get into the copy */
	r = clone_into(from, to);
	pthread_mutex_unlock(&from->lock);
	if (r < 0) {
		spool_unlink(to);
		return r;
	}
	*ret = to;
	to = NULL;
	return 0;
}

void spool_unlink_id(const char *dir, uint64_t id)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);

	path_of(dir, id, &path);
	if (!buf_text(&path) || (unlink(buf_text(&path)) < 0 && errno != ENOENT))
		log_warning("spool: file %" PRIu64 " cannot be removed: %s", id,
			    buf_text(&path) ? strerror(errno) : "no memory");
}

void spool_unlink(struct spool *s)
{
	spool_unlink_id(s->dir, s->id);
}

void spool_path(const struct spool *s, struct buf *ret)
{
	path_of(s->dir, s->id, ret);
}

/* "17" and nothing that only looks like it: "017", "+17", "17x". */
static bool id_parse(const char *name, uint64_t *ret)
{
	char *end = NULL;

	if (name[0] < '1' || name[0] > '9')
		return false;
	errno = 0;
	unsigned long long id = strtoull(name, &end, 10);
	if (errno != 0 || *end != '\0')
		return false;
	*ret = id;
	return true;
}

int spool_dir_walk(const char *dir, void (*each)(void *arg, uint64_t id), void *arg)
{
	DIR *d = opendir(dir);
	int r = 0;

	if (!d)
		return -errno;
	for (;;) {
		uint64_t id;
		struct stat st;
		errno = 0;
		struct dirent *e = readdir(d);
		if (!e) {
			r = -errno;
			break;
		}
		if (id_parse(e->d_name, &id) && fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		    S_ISREG(st.st_mode))
			each(arg, id);
	}
	(void)closedir(d); /* only read from */
	return r;
}
