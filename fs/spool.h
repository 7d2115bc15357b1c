/* The local bytes of one version of one file: a file of ours in state_dir/spool, named by its id in decimal.
 *
 * SHA-256 runs along while bytes come in order; a write elsewhere or a truncate makes spool_finish() read the file
 * again. Writing, truncating and hashing lock the spool itself; a frozen one refuses to change (-EROFS), so that an
 * upload may read it without a lock. Counted: ref/unref from any thread; the descriptor closes with the last one,
 * the file stays until spool_unlink(). fsync and cloning block: worker threads. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "client/base/buf.h"

struct spool;

/* Makes dir (0700). */
int spool_dir_make(const char *dir);

/* size_bytes_max: what the service takes (0: any); a write or truncate past it is -EFBIG and changes nothing. */
int spool_new(const char *dir, uint64_t id, int64_t size_bytes_max, struct spool **ret);
/* One from before a restart. -ENOENT; -EIO when its size is not `size_bytes` (-1: any will do). */
int spool_open(const char *dir, uint64_t id, int64_t size_bytes_max, int64_t size_bytes, struct spool **ret);
/* A new one with the bytes of `from` (reflink where the file system can). */
int spool_clone(struct spool *from, uint64_t id, struct spool **ret);

struct spool *spool_ref(struct spool *s);
void spool_unref(struct spool *s);
void spool_release(struct spool **s); /* for CLEANUP */

uint64_t spool_id(const struct spool *s);
int spool_fd(const struct spool *s); /* borrowed while a reference is held */
int64_t spool_size(struct spool *s);

/* All or -errno (-ENOSPC, -EFBIG, -EDQUOT, -EROFS). A short write has changed nothing the size shows. */
int spool_write(struct spool *s, const void *bytes, size_t len, int64_t offset);
ssize_t spool_read(struct spool *s, void *bytes, size_t len, int64_t offset);
int spool_truncate(struct spool *s, int64_t size_bytes);
/* As fallocate(2) with mode 0: room, and the size grows. */
int spool_allocate(struct spool *s, int64_t offset, int64_t len);

/* The bytes are on the disk, and so is the file's name in its folder. */
int spool_sync(struct spool *s);
/* The hash of what is in it now. */
int spool_finish(struct spool *s, char ret_sha256[65]);
void spool_freeze(struct spool *s);

void spool_unlink(struct spool *s);
void spool_unlink_id(const char *dir, uint64_t id);
/* Where the file is, for adopting it elsewhere. */
void spool_path(const struct spool *s, struct buf *ret);
/* Calls each(arg, id) for every file in dir; others are left alone. */
int spool_dir_walk(const char *dir, void (*each)(void *arg, uint64_t id), void *arg);
