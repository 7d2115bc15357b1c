/* Content on disk: bounds, what a crash leaves, and that nobody who reads is disturbed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cache/content.h"
#include "client/base/cleanup.h"

static char top[64], dir[96];

static int make_dir(void **state)
{
	(void)state;
	(void)snprintf(top, sizeof(top), "/tmp/test_content.XXXXXX");
	if (!mkdtemp(top))
		return -1;
	(void)snprintf(dir, sizeof(dir), "%s/content", top);
	return 0;
}

static void path_in(const char *folder, const char *name, char ret[512])
{
	(void)snprintf(ret, 512, "%s/%s", folder, name);
}

static void remove_all(const char *folder)
{
	DIR *d = opendir(folder);
	char path[512];

	for (const struct dirent *e; d && (e = readdir(d));) {
		path_in(folder, e->d_name, path);
		(void)unlink(path);
	}
	if (d)
		(void)closedir(d);
	(void)rmdir(folder);
}

static int remove_dir(void **state)
{
	(void)state;
	remove_all(dir);
	remove_all(top);
	return 0;
}

static int files_in_dir(void)
{
	DIR *d = opendir(dir);
	int count = -2; /* "." and ".." */

	assert_non_null(d);
	while (readdir(d))
		count++;
	(void)closedir(d);
	return count;
}

static struct content *open_content(int64_t bytes_max)
{
	struct content *c = NULL;

	assert_int_equal(content_open(dir, bytes_max, &c), 0);
	return c;
}

static void fill(int fd, char with, int bytes)
{
	char block[1000];

	memset(block, with, sizeof(block));
	for (int done = 0; done < bytes;) {
		int n = bytes - done < (int)sizeof(block) ? bytes - done : (int)sizeof(block);
		assert_int_equal(write(fd, block, (size_t)n), n);
		done += n;
	}
}

static void put(struct content *c, const char *key, char with, int bytes)
{
	char *name = NULL;
	CLEANUP(fd_close) int fd = -1;

	assert_int_equal(content_begin(c, bytes, &name, &fd), 0);
	fill(fd, with, bytes);
	assert_int_equal(content_commit(c, name, key), 0);
}

/* with 0: it must not be there. */
static void assert_content(struct content *c, const char *key, char with, int bytes)
{
	CLEANUP(fd_close) int fd = content_get(c, key);
	struct stat st;
	char first = 0;

	if (!with) {
		assert_int_equal(fd, -ENOENT);
		return;
	}
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, bytes);
	assert_int_equal(pread(fd, &first, 1, bytes - 1), 1);
	assert_int_equal(first, with);
}

static void what_was_committed_is_there_also_after_a_remount(void **state)
{
	struct content *c = open_content(10000);
	struct stat st;

	(void)state;
	assert_int_equal(stat(dir, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	put(c, "abc-1", 'a', 100);
	assert_content(c, "abc-1", 'a', 100);
	assert_content(c, "abc-2", 0, 0);
	content_close(c);
	c = open_content(10000);
	assert_content(c, "abc-1", 'a', 100);
	content_close(c);
}

static void nothing_is_visible_before_the_commit_nor_after_abandoning(void **state)
{
	struct content *c = open_content(10000);
	char *name = NULL;
	CLEANUP(fd_close) int fd = -1;

	(void)state;
	assert_int_equal(content_begin(c, 100, &name, &fd), 0);
	fill(fd, 'a', 100);
	assert_content(c, "k", 0, 0);
	content_abandon(c, name);
	assert_content(c, "k", 0, 0);
	assert_int_equal(files_in_dir(), 0);
	char byte;
	assert_int_equal(pread(fd, &byte, 1, 99), 1); /* the descriptor is still ours */
	content_close(c);
}

static void the_least_lately_used_goes_when_the_bound_is_passed(void **state)
{
	struct content *c = open_content(300);

	(void)state;
	put(c, "a", 'a', 100);
	put(c, "b", 'b', 100);
	put(c, "c", 'c', 100);
	assert_content(c, "a", 'a', 100);
	put(c, "d", 'd', 100);
	assert_content(c, "b", 0, 0);
	assert_content(c, "a", 'a', 100);
	assert_content(c, "c", 'c', 100);
	assert_int_equal(files_in_dir(), 3);
	put(c, "e", 'e', 250);
	assert_int_equal(files_in_dir(), 1);
	content_close(c);
}

static void what_is_being_written_counts_against_the_bound(void **state)
{
	struct content *c = open_content(300);
	char *names[2];
	int fds[2];

	(void)state;
	put(c, "a", 'a', 100);
	put(c, "z", 'z', 100);
	assert_int_equal(content_begin(c, 100, &names[0], &fds[0]), 0);
	assert_content(c, "a", 'a', 100);
	assert_content(c, "z", 'z', 100);
	assert_int_equal(content_begin(c, 100, &names[1], &fds[1]), 0);
	assert_content(c, "a", 0, 0);
	assert_content(c, "z", 'z', 100);
	content_abandon(c, names[0]);
	content_abandon(c, names[1]);
	put(c, "b", 'b', 150);
	put(c, "c", 'c', 150); /* the room is free again */
	assert_content(c, "b", 'b', 150);
	close(fds[0]);
	close(fds[1]);
	content_close(c);
}

static void one_larger_than_the_bound_stays_until_the_next_one_comes(void **state)
{
	struct content *c = open_content(300);

	(void)state;
	put(c, "a", 'a', 100);
	put(c, "x", 'x', 1000);
	assert_content(c, "x", 'x', 1000);
	assert_content(c, "a", 0, 0);
	put(c, "b", 'b', 100);
	assert_content(c, "x", 0, 0);
	assert_content(c, "b", 'b', 100);
	assert_int_equal(files_in_dir(), 1);
	content_close(c);
}

static void what_a_caller_has_open_stays_readable(void **state)
{
	struct content *c = open_content(300);
	char bytes[100];

	(void)state;
	put(c, "a", 'a', 100);
	put(c, "b", 'b', 100);
	CLEANUP(fd_close) int a = content_get(c, "a");
	CLEANUP(fd_close) int b = content_get(c, "b");
	content_forget(c, "a");
	put(c, "c", 'c', 300);
	assert_content(c, "a", 0, 0);
	assert_content(c, "b", 0, 0);
	assert_int_equal(pread(a, bytes, 100, 0), 100);
	assert_int_equal(bytes[99], 'a');
	assert_int_equal(pread(b, bytes, 100, 0), 100);
	assert_int_equal(bytes[99], 'b');
	content_close(c);
}

static void the_same_key_again_replaces(void **state)
{
	struct content *c = open_content(300);

	(void)state;
	put(c, "a", 'a', 100);
	put(c, "a", 'b', 100); /* of the same length: the same file name */
	assert_content(c, "a", 'b', 100);
	put(c, "a", 'c', 50);
	assert_content(c, "a", 'c', 50);
	assert_int_equal(files_in_dir(), 1);
	put(c, "b", 'd', 250);
	assert_content(c, "a", 'c', 50); /* 300 in all: the replaced ones count no more */
	content_close(c);
}

static void write_file(const char *folder, const char *name, char with, int bytes)
{
	char path[512];

	path_in(folder, name, path);
	CLEANUP(fd_close) int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0);
	fill(fd, with, bytes);
}

static void what_a_crash_left_is_removed_and_strangers_are_not(void **state)
{
	struct content *c = open_content(10000);

	(void)state;
	put(c, "whole", 'w', 100);
	content_close(c);
	write_file(dir, ".new-7-100", 'x', 40);
	write_file(dir, "cut.100", 'x', 40);    /* shorter than its name tells */
	write_file(dir, "grown.100", 'x', 140); /* or longer */
	write_file(dir, "README", 'x', 10);
	write_file(dir, "a.b.c", 'x', 10);
	c = open_content(10000);
	assert_content(c, "whole", 'w', 100);
	assert_content(c, "cut", 0, 0);
	assert_content(c, "grown", 0, 0);
	assert_int_equal(files_in_dir(), 3);
	content_close(c);
}

static void the_order_of_use_survives_a_remount(void **state)
{
	static const char *const names[] = { "a.100", "b.100", "c.100" };
	struct content *c = open_content(10000);

	(void)state;
	put(c, "a", 'a', 100);
	put(c, "b", 'b', 100);
	put(c, "c", 'c', 100);
	content_close(c);
	for (int i = 0; i < 3; i++) {
		const struct timespec times[2] = { { .tv_sec = 1000 + (i + 1) % 3 }, { .tv_sec = 500 } };
		char path[512];
		path_in(dir, names[i], path);
		assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
	}
	c = open_content(10000);
	assert_content(c, "a", 'a', 100); /* touches it: c, b, a */
	content_close(c);
	c = open_content(200); /* a smaller bound by now */
	assert_content(c, "c", 0, 0);
	assert_content(c, "a", 'a', 100);
	assert_content(c, "b", 'b', 100);
	content_close(c);
}

static void a_file_is_adopted_by_rename(void **state)
{
	struct content *c = open_content(300);
	char path[512], other[] = "/dev/shm/test_content.XXXXXX";
	struct stat before, after;

	(void)state;
	write_file(top, "spooled", 's', 100);
	path_in(top, "spooled", path);
	assert_int_equal(stat(path, &before), 0);
	assert_int_equal(content_adopt(c, path, "s"), 0);
	assert_int_equal(access(path, F_OK), -1);
	CLEANUP(fd_close) int fd = content_get(c, "s");
	assert_int_equal(fstat(fd, &after), 0);
	assert_true(before.st_ino == after.st_ino);
	assert_int_equal(content_adopt(c, path, "s"), -ENOENT);
	assert_content(c, "s", 's', 100);

	int foreign = mkstemp(other);
	struct stat here;
	if (foreign >= 0 && fstat(foreign, &after) == 0 && stat(dir, &here) == 0 && after.st_dev != here.st_dev) {
		assert_int_equal(content_adopt(c, other, "f"), -EXDEV);
		assert_int_equal(access(other, F_OK), 0);
	}
	if (foreign >= 0) {
		(void)unlink(other);
		(void)close(foreign);
	}
	content_close(c);
}

static void a_key_of_another_shape_is_invalid(void **state)
{
	static const char *const keys[] = { "", ".", "..", "a/b", "../a", "a.b", "a b", "\xc3\xa4" };
	struct content *c = open_content(300);
	char long_key[130], *name = NULL;
	CLEANUP(fd_close) int fd = -1;

	(void)state;
	memset(long_key, 'a', 129);
	long_key[129] = '\0';
	assert_int_equal(content_get(c, long_key), -EINVAL);
	long_key[128] = '\0';
	assert_int_equal(content_get(c, long_key), -ENOENT);
	put(c, long_key, 'a', 10);
	assert_content(c, long_key, 'a', 10);
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		assert_int_equal(content_get(c, keys[i]), -EINVAL);
		assert_int_equal(content_adopt(c, "/tmp/x", keys[i]), -EINVAL);
	}
	assert_int_equal(content_begin(c, 10, &name, &fd), 0);
	assert_int_equal(content_commit(c, name, "../evil"), -EINVAL);
	assert_int_equal(files_in_dir(), 1);
	content_close(c);
}

static void room_is_made_until_there_is_enough_or_nothing_left(void **state)
{
	struct content *c = open_content(10000);

	(void)state;
	put(c, "a", 'a', 100);
	content_make_room(c, 1);
	assert_content(c, "a", 'a', 100);
	content_make_room(c, INT64_MAX);
	assert_content(c, "a", 0, 0);
	assert_int_equal(files_in_dir(), 0);
	content_close(c);
}

static void one_cleaned_up_by_hand_is_simply_not_there(void **state)
{
	struct content *c = open_content(10000);
	char path[512];

	(void)state;
	put(c, "a", 'a', 100);
	path_in(dir, "a.100", path);
	assert_int_equal(unlink(path), 0);
	assert_content(c, "a", 0, 0);
	put(c, "a", 'b', 100);
	assert_content(c, "a", 'b', 100);
	content_close(c);
}

static void a_folder_that_cannot_be_made_is_an_error(void **state)
{
	struct content *c = NULL;

	(void)state;
	assert_int_equal(content_open("/no/such/parent/content", 100, &c), -ENOENT);
	write_file(top, "content", 'x', 1);
	assert_int_equal(content_open(dir, 100, &c), -ENOTDIR);
	(void)unlink(dir);
	assert_null(c);
	content_close(NULL);
}

static void *work(void *arg)
{
	struct content *c = arg;

	for (int i = 0; i < 200; i++) {
		char key[8];
		(void)snprintf(key, sizeof(key), "k%d", i % 17);
		int fd = content_get(c, key);
		if (fd >= 0)
			(void)close(fd);
		else
			put(c, key, 'x', 50);
		if (i % 13 == 0)
			content_forget(c, key);
	}
	return NULL;
}

static void threads_do_not_disturb_each_other(void **state)
{
	struct content *c = open_content(400);
	pthread_t threads[4];

	(void)state;
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, work, c), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_true(files_in_dir() <= 8);
	content_close(c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_dir, remove_dir)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_was_committed_is_there_also_after_a_remount),
		TEST(nothing_is_visible_before_the_commit_nor_after_abandoning),
		TEST(the_least_lately_used_goes_when_the_bound_is_passed),
		TEST(what_is_being_written_counts_against_the_bound),
		TEST(one_larger_than_the_bound_stays_until_the_next_one_comes),
		TEST(what_a_caller_has_open_stays_readable),
		TEST(the_same_key_again_replaces),
		TEST(what_a_crash_left_is_removed_and_strangers_are_not),
		TEST(the_order_of_use_survives_a_remount),
		TEST(a_file_is_adopted_by_rename),
		TEST(a_key_of_another_shape_is_invalid),
		TEST(room_is_made_until_there_is_enough_or_nothing_left),
		TEST(one_cleaned_up_by_hand_is_simply_not_there),
		TEST(a_folder_that_cannot_be_made_is_an_error),
		TEST(threads_do_not_disturb_each_other),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
