/* The fault injector; see fail_once.h.
 *
 * A failing call does what a bad day does: a write leaves half of its bytes, an fsync and a rename say EIO, an open
 * says that there are no descriptors left. Blocks are written down with the address that asked for them, so that a
 * plain build finds leaks on the way of each failure, too. */
#include "tests/fail_once.h"

#include <assert.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What stays broken once it broke: memory comes back, a full disk does not. */
enum kind { KIND_MEMORY, KIND_DISK };

static struct {
	_Atomic bool is_armed;
	_Atomic long points[2], fails;
	enum fail_once_of of; /* this and the next two are set before it is armed */
	long nth;
	bool stays;
	_Atomic int kind; /* of the first that failed; -1: none did */
	const char *_Atomic what;
	void *_Atomic where;
} fault;

static _Thread_local int spared;

void fail_once_spare(void)
{
	spared++;
}

void fail_once_spare_end(void)
{
	spared--;
}

static bool fails(enum fail_once_of of, enum kind kind, const char *what, void *where)
{
	if (!fault.is_armed || spared > 0)
		return false;
	long n = atomic_fetch_add(&fault.points[of], 1) + 1;
	if (of == fault.of && n == fault.nth) {
		fault.what = what;
		fault.where = where;
		fault.kind = (int)kind;
	} else if (!fault.stays || (int)kind != fault.kind) {
		return false;
	}
	atomic_fetch_add(&fault.fails, 1);
	return true;
}

/* One number or another, by chance as it were. */
static int one_of(int a, int b)
{
	return fault.nth % 2 ? a : b;
}

#define FAILS(kind, name) fails(FAIL_OURS, kind, name, __builtin_return_address(0))
#define DATABASE_FAILS(kind, name) fails(FAIL_DATABASE, kind, name, __builtin_return_address(0))

/* ---- blocks ------------------------------------------------------------------------------------------------ */

enum { BLOCKS_MAX = 1 << 16 }; /* a power of two, far above what one run holds */

static struct block {
	void *at, *where;
	bool is_spared;
} blocks[BLOCKS_MAX];
static _Atomic int block_count; /* read without the lock: none, most times */
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;

static size_t block_home(const void *at)
{
	return ((uintptr_t)at >> 4) * 0x9e3779b97f4a7c15u >> 48;
}

static void *note(void *at, void *where)
{
	if (!at || !fault.is_armed)
		return at;
	pthread_mutex_lock(&blocks_lock);
	assert(block_count < BLOCKS_MAX / 2);
	size_t i = block_home(at);
	while (blocks[i].at)
		i = (i + 1) % BLOCKS_MAX;
	blocks[i] = (struct block){ at, where, spared > 0 };
	block_count++;
	pthread_mutex_unlock(&blocks_lock);
	return at;
}

static void forget(const void *at)
{
	if (!at || block_count == 0)
		return;
	pthread_mutex_lock(&blocks_lock);
	size_t hole = block_home(at);
	while (blocks[hole].at && blocks[hole].at != at)
		hole = (hole + 1) % BLOCKS_MAX;
	if (blocks[hole].at) {
		blocks[hole].at = NULL;
		block_count--;
		/* What stands behind it moves up, so that it is still found. */
		for (size_t i = (hole + 1) % BLOCKS_MAX; blocks[i].at; i = (i + 1) % BLOCKS_MAX) {
			size_t home = block_home(blocks[i].at);
			if ((i - home) % BLOCKS_MAX >= (i - hole) % BLOCKS_MAX) {
				blocks[hole] = blocks[i];
				blocks[i].at = NULL;
				hole = i;
			}
		}
	}
	pthread_mutex_unlock(&blocks_lock);
}

static void tell_address(void *where, char *ret, size_t bytes)
{
	Dl_info info;

	if (dladdr(where, &info) && info.dli_fbase)
		(void)snprintf(ret, bytes, "%#lx", (unsigned long)((uintptr_t)where - (uintptr_t)info.dli_fbase - 1));
	else
		(void)snprintf(ret, bytes, "%p", where);
}

long fail_once_blocks(char *ret_where, size_t bytes)
{
	long n = 0;

	pthread_mutex_lock(&blocks_lock);
	for (int i = 0; i < BLOCKS_MAX; i++) {
		if (!blocks[i].at || blocks[i].is_spared)
			continue;
		if (n++ == 0)
			tell_address(blocks[i].where, ret_where, bytes);
	}
	pthread_mutex_unlock(&blocks_lock);
	return n;
}

/* ---- arming ------------------------------------------------------------------------------------------------ */

void fail_once_arm(enum fail_once_of of, long nth, bool stays)
{
	pthread_mutex_lock(&blocks_lock);
	memset(blocks, 0, sizeof(blocks));
	block_count = 0;
	pthread_mutex_unlock(&blocks_lock);
	fault.points[FAIL_OURS] = fault.points[FAIL_DATABASE] = fault.fails = 0;
	fault.of = of;
	fault.nth = nth;
	fault.stays = stays;
	fault.kind = -1;
	fault.what = NULL;
	fault.is_armed = true;
}

void fail_once_disarm(void)
{
	fault.is_armed = false;
}

long fail_once_points(enum fail_once_of of)
{
	return fault.points[of];
}

long fail_once_fails(void)
{
	return fault.fails;
}

void fail_once_tell(char *ret, size_t bytes)
{
	char where[40];

	tell_address(fault.where, where, sizeof(where));
	(void)snprintf(ret, bytes, "%s from %s", fault.what ? fault.what : "nothing", where);
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

#define WRAPPED(type, name, ...)                                                                                       \
	type __real_##name(__VA_ARGS__);                                                                               \
	type __wrap_##name(__VA_ARGS__);                                                                               \
	type __wrap_##name(__VA_ARGS__)

WRAPPED(void *, malloc, size_t bytes)
{
	if (FAILS(KIND_MEMORY, "malloc")) {
		errno = ENOMEM;
		return NULL;
	}
	return note(__real_malloc(bytes), __builtin_return_address(0));
}

WRAPPED(void *, calloc, size_t count, size_t bytes)
{
	if (FAILS(KIND_MEMORY, "calloc")) {
		errno = ENOMEM;
		return NULL;
	}
	return note(__real_calloc(count, bytes), __builtin_return_address(0));
}

WRAPPED(void, free, void *at)
{
	forget(at);
	__real_free(at);
}

WRAPPED(void *, realloc, void *at, size_t bytes)
{
	if (FAILS(KIND_MEMORY, "realloc")) {
		errno = ENOMEM;
		return NULL;
	}
	uintptr_t before = (uintptr_t)at;
	void *fresh = __real_realloc(at, bytes);
	if (fresh) {
		forget((const void *)before);
		note(fresh, __builtin_return_address(0));
	}
	return fresh;
}

WRAPPED(char *, strdup, const char *text)
{
	if (FAILS(KIND_MEMORY, "strdup")) {
		errno = ENOMEM;
		return NULL;
	}
	return note(__real_strdup(text), __builtin_return_address(0));
}

WRAPPED(int, pthread_create, pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	return FAILS(KIND_MEMORY, "pthread_create") ? EAGAIN : __real_pthread_create(thread, attr, fn, arg);
}

/* ---- files ------------------------------------------------------------------------------------------------- */

/* A function of files that is called with and without the 64 behind its name, and fails with an errno. */
#define FILE_CALL(type, name, error, parameters, arguments)                                                            \
	type __real_##name parameters;                                                                                 \
	type __wrap_##name parameters;                                                                                 \
	type __wrap_##name parameters                                                                                  \
	{                                                                                                              \
		if (FAILS(KIND_DISK, #name)) {                                                                         \
			errno = error;                                                                                 \
			return (type)-1;                                                                               \
		}                                                                                                      \
		return __real_##name arguments;                                                                        \
	}

FILE_CALL(int, fsync, EIO, (int fd), (fd))
FILE_CALL(int, rename, one_of(EIO, ENOSPC), (const char *from, const char *to), (from, to))
FILE_CALL(int, renameat, one_of(EIO, ENOSPC), (int at, const char *from, int to_at, const char *to),
	  (at, from, to_at, to))
FILE_CALL(int, mkdir, one_of(ENOSPC, EIO), (const char *path, mode_t mode), (path, mode))
FILE_CALL(int, unlink, EIO, (const char *path), (path))
FILE_CALL(int, unlinkat, EIO, (int at, const char *path, int flags), (at, path, flags))
FILE_CALL(int, ftruncate, one_of(EIO, ENOSPC), (int fd, off_t len), (fd, len))
FILE_CALL(int, ftruncate64, one_of(EIO, ENOSPC), (int fd, off64_t len), (fd, len))
FILE_CALL(int, fallocate64, ENOSPC, (int fd, int mode, off64_t at, off64_t len), (fd, mode, at, len))
FILE_CALL(int, fallocate, ENOSPC, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
FILE_CALL(int, lstat64, one_of(EIO, ENOMEM), (const char *path, struct stat64 *st), (path, st))
FILE_CALL(int, lstat, one_of(EIO, ENOMEM), (const char *path, struct stat *st), (path, st))
FILE_CALL(int, stat64, one_of(EIO, ENOMEM), (const char *path, struct stat64 *st), (path, st))
FILE_CALL(int, stat, one_of(EIO, ENOMEM), (const char *path, struct stat *st), (path, st))
FILE_CALL(int, fstat64, EIO, (int fd, struct stat64 *st), (fd, st))
FILE_CALL(int, fstat, EIO, (int fd, struct stat *st), (fd, st))
FILE_CALL(int, fstatat64, EIO, (int at, const char *path, struct stat64 *st, int flags), (at, path, st, flags))
FILE_CALL(int, fstatat, EIO, (int at, const char *path, struct stat *st, int flags), (at, path, st, flags))
FILE_CALL(ssize_t, pread64, EIO, (int fd, void *to, size_t len, off64_t at), (fd, to, len, at))
FILE_CALL(ssize_t, pread, EIO, (int fd, void *to, size_t len, off_t at), (fd, to, len, at))
FILE_CALL(ssize_t, copy_file_range, one_of(ENOSPC, EIO),
	  (int from, off64_t *at, int to, off64_t *to_at, size_t len, unsigned flags),
	  (from, at, to, to_at, len, flags))

ssize_t __real_pwrite(int fd, const void *bytes, size_t len, off_t at);
ssize_t __wrap_pwrite(int fd, const void *bytes, size_t len, off_t at);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t len, off64_t at);

static ssize_t write_half(int fd, const void *bytes, size_t len, off_t at)
{
	(void)!__real_pwrite(fd, bytes, len / 2, at); /* the more the better, and none is as good */
	errno = one_of(ENOSPC, EIO);
	return -1;
}

ssize_t __wrap_pwrite(int fd, const void *bytes, size_t len, off_t at)
{
	return FAILS(KIND_DISK, "pwrite") ? write_half(fd, bytes, len, at) : __real_pwrite(fd, bytes, len, at);
}

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t len, off64_t at)
{
	return FAILS(KIND_DISK, "pwrite") ? write_half(fd, bytes, len, at) : __real_pwrite(fd, bytes, len, at);
}

WRAPPED(DIR *, fdopendir, int fd)
{
	if (FAILS(KIND_DISK, "fdopendir")) {
		errno = ENOMEM;
		return NULL;
	}
	return __real_fdopendir(fd);
}

/* With a mode whether it is read or not: a register more. */
#define OPEN_CALL(name)                                                                                                \
	int __real_##name(const char *path, int flags, ...);                                                           \
	int __wrap_##name(const char *path, int flags, mode_t mode);                                                   \
	int __wrap_##name(const char *path, int flags, mode_t mode)                                                    \
	{                                                                                                              \
		if (FAILS(KIND_DISK, #name)) {                                                                         \
			errno = one_of(EMFILE, EIO);                                                                   \
			return -1;                                                                                     \
		}                                                                                                      \
		return __real_##name(path, flags, mode);                                                               \
	}
OPEN_CALL(open)
OPEN_CALL(open64)

#define OPENAT_CALL(name)                                                                                              \
	int __real_##name(int at, const char *path, int flags, ...);                                                   \
	int __wrap_##name(int at, const char *path, int flags, mode_t mode);                                           \
	int __wrap_##name(int at, const char *path, int flags, mode_t mode)                                            \
	{                                                                                                              \
		if (FAILS(KIND_DISK, #name)) {                                                                         \
			errno = one_of(EMFILE, ENOSPC);                                                                \
			return -1;                                                                                     \
		}                                                                                                      \
		return __real_##name(at, path, flags, mode);                                                           \
	}
OPENAT_CALL(openat)
OPENAT_CALL(openat64)

/* Locks alone are asked for by it here. */
#define LOCK_CALL(name)                                                                                                \
	int __real_##name(int fd, int command, ...);                                                                   \
	int __wrap_##name(int fd, int command, void *arg);                                                             \
	int __wrap_##name(int fd, int command, void *arg)                                                              \
	{                                                                                                              \
		if (FAILS(KIND_DISK, #name)) {                                                                         \
			errno = ENOLCK;                                                                                \
			return -1;                                                                                     \
		}                                                                                                      \
		return __real_##name(fd, command, arg);                                                                \
	}
LOCK_CALL(fcntl)
LOCK_CALL(fcntl64)

WRAPPED(DIR *, opendir, const char *path)
{
	if (FAILS(KIND_DISK, "opendir")) {
		errno = one_of(EMFILE, ENOMEM);
		return NULL;
	}
	return __real_opendir(path);
}

#define READDIR_CALL(type, name)                                                                                       \
	WRAPPED(type, name, DIR *dir)                                                                                  \
	{                                                                                                              \
		if (FAILS(KIND_DISK, #name)) {                                                                         \
			errno = EIO;                                                                                   \
			return NULL;                                                                                   \
		}                                                                                                      \
		return __real_##name(dir);                                                                             \
	}
READDIR_CALL(struct dirent *, readdir)
READDIR_CALL(struct dirent64 *, readdir64)

/* ---- hashes: OpenSSL allocates for each of these ------------------------------------------------------------- */

WRAPPED(EVP_MD_CTX *, EVP_MD_CTX_new, void)
{
	return FAILS(KIND_MEMORY, "EVP_MD_CTX_new") ? NULL : __real_EVP_MD_CTX_new();
}

WRAPPED(int, EVP_DigestInit_ex, EVP_MD_CTX *ctx, const EVP_MD *type, ENGINE *engine)
{
	return FAILS(KIND_MEMORY, "EVP_DigestInit_ex") ? 0 : __real_EVP_DigestInit_ex(ctx, type, engine);
}

WRAPPED(int, EVP_DigestUpdate, EVP_MD_CTX *ctx, const void *bytes, size_t len)
{
	if (!FAILS(KIND_MEMORY, "EVP_DigestUpdate"))
		return __real_EVP_DigestUpdate(ctx, bytes, len);
	(void)__real_EVP_DigestUpdate(ctx, bytes, len / 2); /* nobody said that it did nothing */
	return 0;
}

WRAPPED(int, EVP_MD_CTX_copy_ex, EVP_MD_CTX *to, const EVP_MD_CTX *from)
{
	return FAILS(KIND_MEMORY, "EVP_MD_CTX_copy_ex") ? 0 : __real_EVP_MD_CTX_copy_ex(to, from);
}

WRAPPED(int, EVP_DigestFinal_ex, EVP_MD_CTX *ctx, unsigned char *to, unsigned int *len)
{
	return FAILS(KIND_MEMORY, "EVP_DigestFinal_ex") ? 0 : __real_EVP_DigestFinal_ex(ctx, to, len);
}

/* ---- SQLite's calls ------------------------------------------------------------------------------------------ */

WRAPPED(int, sqlite3_step, sqlite3_stmt *s)
{
	return FAILS(KIND_DISK, "sqlite3_step") ? one_of(SQLITE_FULL, SQLITE_IOERR) : __real_sqlite3_step(s);
}

WRAPPED(int, sqlite3_prepare_v2, sqlite3 *db, const char *sql, int bytes, sqlite3_stmt **ret, const char **tail)
{
	return FAILS(KIND_MEMORY, "sqlite3_prepare_v2") ? SQLITE_NOMEM
							: __real_sqlite3_prepare_v2(db, sql, bytes, ret, tail);
}

WRAPPED(int, sqlite3_prepare_v3, sqlite3 *db, const char *sql, int bytes, unsigned flags, sqlite3_stmt **ret,
	const char **tail)
{
	return FAILS(KIND_MEMORY, "sqlite3_prepare_v3") ? SQLITE_NOMEM
							: __real_sqlite3_prepare_v3(db, sql, bytes, flags, ret, tail);
}

WRAPPED(int, sqlite3_exec, sqlite3 *db, const char *sql, int (*each)(void *, int, char **, char **), void *arg,
	char **ret_words)
{
	return FAILS(KIND_DISK, "sqlite3_exec") ? one_of(SQLITE_FULL, SQLITE_IOERR)
						: __real_sqlite3_exec(db, sql, each, arg, ret_words);
}

WRAPPED(int, sqlite3_bind_text, sqlite3_stmt *s, int at, const char *text, int bytes, void (*end)(void *))
{
	return FAILS(KIND_MEMORY, "sqlite3_bind_text") ? SQLITE_NOMEM
						       : __real_sqlite3_bind_text(s, at, text, bytes, end);
}

/* ---- SQLite's memory ----------------------------------------------------------------------------------------- */

static sqlite3_mem_methods real_memory;

static void *database_malloc(int bytes)
{
	return DATABASE_FAILS(KIND_MEMORY, "SQLite's malloc") ? NULL : real_memory.xMalloc(bytes);
}

static void *database_realloc(void *at, int bytes)
{
	return DATABASE_FAILS(KIND_MEMORY, "SQLite's realloc") ? NULL : real_memory.xRealloc(at, bytes);
}

/* ---- SQLite's disk ------------------------------------------------------------------------------------------- */

static sqlite3_vfs *real_vfs, our_vfs;
static sqlite3_io_methods our_methods;

/* Behind it stands the real one. */
struct database_file {
	sqlite3_file base;
};

static sqlite3_file *real_file(sqlite3_file *f)
{
	return (sqlite3_file *)((char *)f + ((sizeof(struct database_file) + 15) & ~(size_t)15));
}

static int file_close(sqlite3_file *f)
{
	return real_file(f)->pMethods->xClose(real_file(f));
}

static int file_read(sqlite3_file *f, void *to, int bytes, sqlite3_int64 at)
{
	if (DATABASE_FAILS(KIND_DISK, "SQLite's read"))
		return SQLITE_IOERR_READ;
	return real_file(f)->pMethods->xRead(real_file(f), to, bytes, at);
}

static int file_write(sqlite3_file *f, const void *from, int bytes, sqlite3_int64 at)
{
	if (!DATABASE_FAILS(KIND_DISK, "SQLite's write"))
		return real_file(f)->pMethods->xWrite(real_file(f), from, bytes, at);
	(void)real_file(f)->pMethods->xWrite(real_file(f), from, bytes / 2, at);
	return one_of(SQLITE_FULL, SQLITE_IOERR_WRITE);
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 bytes)
{
	if (DATABASE_FAILS(KIND_DISK, "SQLite's truncate"))
		return SQLITE_IOERR_TRUNCATE;
	return real_file(f)->pMethods->xTruncate(real_file(f), bytes);
}

static int file_sync(sqlite3_file *f, int flags)
{
	if (DATABASE_FAILS(KIND_DISK, "SQLite's sync"))
		return SQLITE_IOERR_FSYNC;
	return real_file(f)->pMethods->xSync(real_file(f), flags);
}

static int file_size(sqlite3_file *f, sqlite3_int64 *ret)
{
	if (DATABASE_FAILS(KIND_DISK, "SQLite's stat"))
		return SQLITE_IOERR_FSTAT;
	return real_file(f)->pMethods->xFileSize(real_file(f), ret);
}

static int file_lock(sqlite3_file *f, int level)
{
	if (DATABASE_FAILS(KIND_DISK, "SQLite's lock"))
		return SQLITE_IOERR_LOCK;
	return real_file(f)->pMethods->xLock(real_file(f), level);
}

static int file_unlock(sqlite3_file *f, int level)
{
	return real_file(f)->pMethods->xUnlock(real_file(f), level);
}

static int file_check_lock(sqlite3_file *f, int *ret)
{
	return real_file(f)->pMethods->xCheckReservedLock(real_file(f), ret);
}

static int file_control(sqlite3_file *f, int op, void *arg)
{
	return real_file(f)->pMethods->xFileControl(real_file(f), op, arg);
}

static int file_sector(sqlite3_file *f)
{
	return real_file(f)->pMethods->xSectorSize(real_file(f));
}

static int file_character(sqlite3_file *f)
{
	return real_file(f)->pMethods->xDeviceCharacteristics(real_file(f));
}

static int file_shm_map(sqlite3_file *f, int page, int bytes, int extend, void volatile **ret)
{
	if (DATABASE_FAILS(KIND_DISK, "SQLite's mmap"))
		return one_of(SQLITE_IOERR_SHMMAP, SQLITE_IOERR_SHMSIZE);
	return real_file(f)->pMethods->xShmMap(real_file(f), page, bytes, extend, ret);
}

static int file_shm_lock(sqlite3_file *f, int at, int n, int flags)
{
	return real_file(f)->pMethods->xShmLock(real_file(f), at, n, flags);
}

static void file_shm_barrier(sqlite3_file *f)
{
	real_file(f)->pMethods->xShmBarrier(real_file(f));
}

static int file_shm_unmap(sqlite3_file *f, int deletes)
{
	return real_file(f)->pMethods->xShmUnmap(real_file(f), deletes);
}

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *ret_flags)
{
	f->pMethods = NULL;
	if (DATABASE_FAILS(KIND_DISK, "SQLite's open"))
		return SQLITE_CANTOPEN;
	int e = real_vfs->xOpen(real_vfs, name, real_file(f), flags, ret_flags);
	if (e == SQLITE_OK)
		f->pMethods = &our_methods;
	return e;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_dir)
{
	if (DATABASE_FAILS(KIND_DISK, "SQLite's unlink"))
		return SQLITE_IOERR_DELETE;
	return real_vfs->xDelete(real_vfs, name, sync_dir);
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *ret)
{
	if (DATABASE_FAILS(KIND_DISK, "SQLite's access"))
		return SQLITE_IOERR_ACCESS;
	return real_vfs->xAccess(real_vfs, name, flags, ret);
}

void fail_once_install(void)
{
	sqlite3_mem_methods memory;
	int e = sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real_memory);

	assert(e == SQLITE_OK);
	memory = real_memory;
	memory.xMalloc = database_malloc;
	memory.xRealloc = database_realloc;
	e = sqlite3_config(SQLITE_CONFIG_MALLOC, &memory);
	assert(e == SQLITE_OK);
	real_vfs = sqlite3_vfs_find(NULL);
	assert(real_vfs);
	our_methods = (sqlite3_io_methods){ .iVersion = 2,
					    .xClose = file_close,
					    .xRead = file_read,
					    .xWrite = file_write,
					    .xTruncate = file_truncate,
					    .xSync = file_sync,
					    .xFileSize = file_size,
					    .xLock = file_lock,
					    .xUnlock = file_unlock,
					    .xCheckReservedLock = file_check_lock,
					    .xFileControl = file_control,
					    .xSectorSize = file_sector,
					    .xDeviceCharacteristics = file_character,
					    .xShmMap = file_shm_map,
					    .xShmLock = file_shm_lock,
					    .xShmBarrier = file_shm_barrier,
					    .xShmUnmap = file_shm_unmap };
	our_vfs = *real_vfs;
	our_vfs.pNext = NULL;
	our_vfs.zName = "fail_once";
	our_vfs.szOsFile = (int)((sizeof(struct database_file) + 15) & ~(size_t)15) + real_vfs->szOsFile;
	our_vfs.xOpen = vfs_open;
	our_vfs.xDelete = vfs_delete;
	our_vfs.xAccess = vfs_access;
	e = sqlite3_vfs_register(&our_vfs, 1);
	assert(e == SQLITE_OK);
	(void)e;
}
