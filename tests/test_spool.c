/* fs/spool.c: bytes and their hash agree whatever the order of writes; what fails changes nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/log.h"
#include "fs/spool.h"

static char dir[64];

static int make_dir(void **state)
{
	(void)snprintf(dir, sizeof(dir), "/tmp/test_spool.XXXXXX");
	return mkdtemp(dir) && spool_dir_make(dir) == 0 ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return remove(path);
}

static int remove_dir(void **state)
{
	return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void hash_of(const void *bytes, size_t len, char ret[65])
{
	unsigned char sum[EVP_MAX_MD_SIZE];
	unsigned int n = 0;

	assert_int_equal(EVP_Digest(bytes, len, sum, &n, EVP_sha256(), NULL), 1);
	for (unsigned int i = 0; i < 32; i++)
		(void)snprintf(ret + 2 * i, 3, "%02x", sum[i]);
}

static struct spool *new_spool(uint64_t id)
{
	struct spool *s = NULL;

	assert_int_equal(spool_new(dir, id, 0, &s), 0);
	return s;
}

/* The spool holds these bytes, and says their hash. */
static void assert_holds(struct spool *s, const char *bytes, size_t len)
{
	char want[65], have[65];
	char *back = malloc(len + 1);

	assert_int_equal(spool_size(s), len);
	assert_int_equal(spool_read(s, back, len + 1, 0), len);
	assert_memory_equal(back, bytes, len);
	hash_of(bytes, len, want);
	assert_int_equal(spool_finish(s, have), 0);
	assert_string_equal(have, want);
	free(back);
}

static void bytes_in_order_are_hashed_as_they_come(void **state)
{
	CLEANUP(spool_release) struct spool *s = new_spool(1);

	assert_holds(s, "", 0);
	assert_int_equal(spool_write(s, "hello ", 6, 0), 0);
	assert_holds(s, "hello ", 6);
	assert_int_equal(spool_write(s, "world", 5, 6), 0);
	assert_holds(s, "hello world", 11);
}

static void bytes_out_of_order_are_hashed_all_the_same(void **state)
{
	CLEANUP(spool_release) struct spool *s = new_spool(1);

	assert_int_equal(spool_write(s, "world", 5, 6), 0);
	assert_holds(s, "\0\0\0\0\0\0world", 11);
	assert_int_equal(spool_write(s, "hello ", 6, 0), 0);
	assert_holds(s, "hello world", 11);
	assert_int_equal(spool_write(s, "J", 1, 0), 0);
	assert_holds(s, "Jello world", 11);
	assert_int_equal(spool_truncate(s, 5), 0);
	assert_holds(s, "Jello", 5);
	assert_int_equal(spool_truncate(s, 7), 0);
	assert_holds(s, "Jello\0\0", 7);
	assert_int_equal(spool_truncate(s, 0), 0);
	assert_holds(s, "", 0);
}

static void random_writes_agree_with_a_plain_file(void **state)
{
	enum { ROOM = 60000 };
	static char plain[ROOM], piece[3000];
	unsigned seed = 4711;
	size_t len = 0;
	CLEANUP(spool_release) struct spool *s = new_spool(1);

	for (int i = 0; i < 400; i++) {
		size_t at = (size_t)rand_r(&seed) % (ROOM - sizeof(piece)), n = (size_t)rand_r(&seed) % sizeof(piece);
		if (rand_r(&seed) % 3 == 0)
			at = len < ROOM - sizeof(piece) ? len : 0;
		memset(piece, 'a' + i % 26, n);
		if (rand_r(&seed) % 20 == 0) {
			assert_int_equal(spool_truncate(s, (int64_t)at), 0);
			if (at < len)
				memset(plain + at, 0, len - at);
			len = at;
			continue;
		}
		assert_int_equal(spool_write(s, piece, n, (int64_t)at), 0);
		memcpy(plain + at, piece, n);
		if (n && at + n > len)
			len = at + n;
		if (i % 25 == 0)
			assert_holds(s, plain, len);
	}
	assert_holds(s, plain, len);
}

static void a_write_past_the_limit_changes_nothing(void **state)
{
	CLEANUP(spool_release) struct spool *s = NULL;

	assert_int_equal(spool_new(dir, 1, 10, &s), 0);
	assert_int_equal(spool_write(s, "12345678", 8, 0), 0);
	assert_int_equal(spool_write(s, "9ab", 3, 8), -EFBIG);
	assert_int_equal(spool_truncate(s, 11), -EFBIG);
	assert_int_equal(spool_allocate(s, 5, 6), -EFBIG);
	assert_int_equal(spool_write(s, "x", 1, INT64_MAX), -EFBIG);
	assert_int_equal(spool_write(s, "x", 1, -1), -EINVAL);
	assert_holds(s, "12345678", 8);
	assert_int_equal(spool_write(s, "9a", 2, 8), 0);
	assert_holds(s, "123456789a", 10);
}

/* A file system that is full in the middle of a write: RLIMIT_FSIZE makes pwrite come short, and then fail. */
static void half_a_write_is_not_seen(void **state)
{
	static char bytes[64 * 1024];
	struct rlimit before, small = { 0 };
	CLEANUP(spool_release) struct spool *s = new_spool(1);
	struct stat st;

	memset(bytes, 'x', sizeof(bytes));
	assert_int_equal(spool_write(s, bytes, 1000, 0), 0);
	(void)signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = before;
	small.rlim_cur = 5000;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	int r = spool_write(s, bytes, sizeof(bytes), 1000);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_int_equal(r, -EFBIG);
	assert_int_equal(fstat(spool_fd(s), &st), 0);
	assert_int_equal(st.st_size, 1000);
	assert_holds(s, bytes, 1000);
	assert_int_equal(spool_write(s, bytes, 500, 1000), 0);
	assert_holds(s, bytes, 1500);
}

static void a_full_disk_is_told_at_the_write(void **state)
{
	/* /dev/full for want of a small file system: what pwrite says reaches the writer. */
	CLEANUP(spool_release) struct spool *s = new_spool(1);
	int full = open("/dev/full", O_RDWR | O_CLOEXEC);

	if (full < 0)
		skip();
	assert_true(dup2(full, spool_fd(s)) >= 0);
	(void)close(full);
	assert_int_equal(spool_write(s, "x", 1, 0), -ENOSPC);
	assert_int_equal(spool_size(s), 0);
}

static void a_frozen_spool_refuses_to_change(void **state)
{
	CLEANUP(spool_release) struct spool *s = new_spool(1);

	assert_int_equal(spool_write(s, "hello", 5, 0), 0);
	spool_freeze(s);
	assert_int_equal(spool_write(s, "x", 1, 0), -EROFS);
	assert_int_equal(spool_truncate(s, 0), -EROFS);
	assert_int_equal(spool_allocate(s, 0, 100), -EROFS);
	assert_holds(s, "hello", 5);
	assert_int_equal(spool_sync(s), 0);
}

static void a_clone_goes_its_own_way(void **state)
{
	CLEANUP(spool_release) struct spool *s = new_spool(1);
	CLEANUP(spool_release) struct spool *copy = NULL;

	assert_int_equal(spool_write(s, "hello", 5, 0), 0);
	spool_freeze(s);
	assert_int_equal(spool_clone(s, 2, &copy), 0);
	assert_int_equal(spool_id(copy), 2);
	assert_holds(copy, "hello", 5);
	assert_int_equal(spool_write(copy, " world", 6, 5), 0);
	assert_holds(copy, "hello world", 11);
	assert_holds(s, "hello", 5);
	assert_int_equal(spool_clone(s, 2, &copy), -EEXIST);
}

static void one_from_before_a_restart_is_the_same(void **state)
{
	struct spool *s = new_spool(7);

	assert_int_equal(spool_write(s, "hello", 5, 0), 0);
	assert_int_equal(spool_sync(s), 0);
	spool_unref(s);
	assert_int_equal(spool_open(dir, 7, 0, 4, &s), -EIO);
	assert_int_equal(spool_open(dir, 8, 0, -1, &s), -ENOENT);
	assert_int_equal(spool_open(dir, 7, 0, 5, &s), 0);
	assert_holds(s, "hello", 5);
	assert_int_equal(spool_write(s, "!", 1, 5), 0);
	assert_holds(s, "hello!", 6);
	spool_unlink(s);
	assert_holds(s, "hello!", 6); /* the bytes live as long as somebody has them open */
	spool_unref(s);
	assert_int_equal(spool_open(dir, 7, 0, -1, &s), -ENOENT);
}

static void room_can_be_had_ahead(void **state)
{
	CLEANUP(spool_release) struct spool *s = new_spool(1);
	int r = spool_allocate(s, 0, 10);

	if (r == -EOPNOTSUPP)
		skip();
	assert_int_equal(r, 0);
	assert_holds(s, "\0\0\0\0\0\0\0\0\0\0", 10);
	assert_int_equal(spool_write(s, "hello", 5, 0), 0);
	assert_holds(s, "hello\0\0\0\0\0", 10);
	assert_int_equal(spool_allocate(s, 0, 0), -EINVAL);
}

struct seen {
	uint64_t ids[10];
	int count;
};

static void see(void *arg, uint64_t id)
{
	struct seen *seen = arg;

	assert_true(seen->count < 10);
	seen->ids[seen->count++] = id;
}

static void a_walk_sees_spool_files_alone(void **state)
{
	static const char *const others[] = { "0", "007", "12x", "x", "99999999999999999999999", "+5", " 6" };
	struct seen seen = { 0 };
	char path[128];

	spool_unref(new_spool(5));
	spool_unref(new_spool(UINT64_MAX));
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", dir, others[i]);
		(void)close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	}
	(void)snprintf(path, sizeof(path), "%s/77", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(spool_dir_walk(dir, see, &seen), 0);
	assert_int_equal(seen.count, 2);
	assert_true((seen.ids[0] == 5 && seen.ids[1] == UINT64_MAX) || (seen.ids[1] == 5 && seen.ids[0] == UINT64_MAX));
	assert_int_equal(spool_dir_walk("/nonexistent/folder", see, &seen), -ENOENT);
}

static void nobody_else_can_read_it(void **state)
{
	CLEANUP(spool_release) struct spool *s = new_spool(1);
	struct stat st;

	assert_int_equal(fstat(spool_fd(s), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
}

static void *write_much(void *arg)
{
	struct spool *s = arg;
	static char bytes[10000];

	for (int i = 0; i < 200; i++)
		assert_int_equal(spool_write(s, bytes, sizeof(bytes), (int64_t)i * 10000), 0);
	return NULL;
}

static void hashing_beside_a_writer_ends_right(void **state)
{
	CLEANUP(spool_release) struct spool *s = new_spool(1);
	char *zeros = calloc(200, 10000);
	char sha256[65];
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, write_much, s), 0);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(spool_finish(s, sha256), 0);
		assert_int_equal(spool_sync(s), 0);
	}
	(void)pthread_join(t, NULL);
	assert_holds(s, zeros, 2000000);
	free(zeros);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(bytes_in_order_are_hashed_as_they_come, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(bytes_out_of_order_are_hashed_all_the_same, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(random_writes_agree_with_a_plain_file, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_write_past_the_limit_changes_nothing, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(half_a_write_is_not_seen, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_full_disk_is_told_at_the_write, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_frozen_spool_refuses_to_change, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_clone_goes_its_own_way, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(one_from_before_a_restart_is_the_same, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(room_can_be_had_ahead, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_walk_sees_spool_files_alone, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(nobody_else_can_read_it, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(hashing_beside_a_writer_ends_right, make_dir, remove_dir),
	};

	log_open(LOG_LEVEL_ERROR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
