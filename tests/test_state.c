/* fs/state.c: what was saved is there after a restart, numbers never come twice, and the lock knows who has the folder.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/state.h"

static char dir[64];

static int make_dir(void **state)
{
	(void)snprintf(dir, sizeof(dir), "/tmp/test_state.XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return remove(path);
}

static int remove_dir(void **state)
{
	return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static struct state *open_state(void)
{
	struct buf why = BUF(1000);
	struct state *s = NULL;

	if (state_open(dir, "/mnt/x", 0, &why, &s) < 0)
		fail_msg("%s", buf_text(&why));
	buf_release(&why);
	return s;
}

static struct state *reopen(struct state *s)
{
	state_close(s);
	return open_state();
}

static void file_path(const char *name, char ret[128])
{
	(void)snprintf(ret, 128, "%s/%s", dir, name);
}

static int count_files(const char *beginning)
{
	DIR *d = opendir(dir);
	int count = 0;

	for (struct dirent *e; (e = readdir(d));)
		count += strncmp(e->d_name, beginning, strlen(beginning)) == 0;
	closedir(d);
	return count;
}

/* ---- facts ------------------------------------------------------------------------------------------------- */

static void a_fact_outlives_us_and_an_unknown_one_is_not_there(void **state)
{
	struct state *s = open_state();
	char *value = NULL;

	assert_int_equal(state_get(s, "naming", &value), -ENOENT);
	assert_null(value);
	assert_int_equal(state_set(s, "naming", "session"), 0);
	assert_int_equal(state_set(s, "naming", "workspace"), 0);
	s = reopen(s);
	assert_int_equal(state_get(s, "naming", &value), 0);
	assert_string_equal(value, "workspace");
	free(value);
	value = NULL;
	assert_int_equal(state_get(s, "namin", &value), -ENOENT);
	state_close(s);
}

/* ---- inode numbers ----------------------------------------------------------------------------------------- */

static void an_inode_number_never_comes_twice(void **state)
{
	struct state *s = open_state();
	uint64_t last = 1000;

	for (int i = 0; i < 10000; i++) {
		uint64_t ino = state_next_ino(s);
		assert_true(ino > last);
		last = ino;
	}
	s = reopen(s);
	assert_true(state_next_ino(s) > last);
	char *value = NULL; /* a caller's own key of that name is another one */
	assert_int_equal(state_set(s, "next ino", "5"), 0);
	assert_int_equal(state_get(s, "next ino", &value), 0);
	free(value);
	s = reopen(s);
	assert_true(state_next_ino(s) > last);
	state_close(s);
}

struct taker {
	struct state *state;
	uint64_t inos[6000];
};

static void *take_many(void *arg)
{
	struct taker *t = arg;

	for (int i = 0; i < 6000; i++)
		t->inos[i] = state_next_ino(t->state);
	return NULL;
}

static int compare_inos(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void threads_that_take_numbers_share_none(void **state)
{
	static struct taker takers[4];
	static uint64_t all[4 * 6000];
	pthread_t threads[4];
	struct state *s = open_state();

	for (int i = 0; i < 4; i++) {
		takers[i].state = s;
		assert_int_equal(pthread_create(&threads[i], NULL, take_many, &takers[i]), 0);
	}
	for (int i = 0; i < 200; i++)
		assert_int_equal(state_set(s, "busy", "yes"), 0);
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		memcpy(all + i * 6000, takers[i].inos, sizeof(takers[i].inos));
	}
	qsort(all, 4 * 6000, sizeof(all[0]), compare_inos);
	assert_true(all[0] > 1000);
	for (int i = 1; i < 4 * 6000; i++)
		assert_true(all[i] > all[i - 1]);
	state_close(s);
}

/* ---- sessions ---------------------------------------------------------------------------------------------- */

static void release_sessions(struct known_session *list, int count)
{
	for (int i = 0; i < count; i++)
		known_session_release(&list[i]);
	free(list);
}

static void a_session_is_remembered_whole_and_seen_by_its_account_alone(void **state)
{
	struct state *s = open_state();
	struct known_session *list = NULL;
	int count = -1;
	struct known_session k = {
		.id = "8c1f",
		.ino = 5001,
		.name = "Q1",
		.server_name = "Q/1",
		.template_id = "t",
		.workspace_id = NULL,
		.status = "open",
		.formats = "pdf",
		.created_ms = 17,
		.updated_ms = -1,
		.origin = ORIGIN_CREATED,
		.is_forgotten = false,
		.account_saw_it = true,
	};
	struct known_session other = {
		.id = "9d", .ino = 5000, .name = "Q2", .origin = ORIGIN_ADDED, .is_forgotten = true
	};

	assert_int_equal(state_load_sessions(s, "A", &list, &count), 0);
	assert_int_equal(count, 0);
	free(list);
	assert_int_equal(state_save_session(s, "A", &k), 0);
	assert_int_equal(state_save_session(s, "A", &other), 0);
	s = reopen(s);
	assert_int_equal(state_load_sessions(s, "A", &list, &count), 0);
	assert_int_equal(count, 2);
	assert_string_equal(list[0].id, "9d");
	assert_true(list[0].is_forgotten);
	assert_false(list[0].account_saw_it);
	assert_string_equal(list[0].server_name, "");
	assert_string_equal(list[1].id, "8c1f");
	assert_int_equal(list[1].ino, 5001);
	assert_string_equal(list[1].name, "Q1");
	assert_string_equal(list[1].server_name, "Q/1");
	assert_string_equal(list[1].template_id, "t");
	assert_null(list[1].workspace_id);
	assert_string_equal(list[1].status, "open");
	assert_string_equal(list[1].formats, "pdf");
	assert_int_equal(list[1].created_ms, 17);
	assert_int_equal(list[1].updated_ms, -1);
	assert_int_equal(list[1].origin, ORIGIN_CREATED);
	assert_false(list[1].is_forgotten);
	assert_true(list[1].account_saw_it);
	release_sessions(list, count);

	assert_int_equal(state_load_sessions(s, "B", &list, &count), 0);
	assert_int_equal(count, 2);
	assert_false(list[1].account_saw_it);
	release_sessions(list, count);

	k.name = "Q1 renamed";
	assert_int_equal(state_save_session(s, "B", &k), 0); /* B sees it too; A's sight stays */
	k.account_saw_it = false;
	assert_int_equal(state_save_session(s, "A", &k), 0); /* and ends */
	assert_int_equal(state_load_sessions(s, "B", &list, &count), 0);
	assert_true(list[1].account_saw_it);
	assert_string_equal(list[1].name, "Q1 renamed");
	release_sessions(list, count);
	assert_int_equal(state_load_sessions(s, "A", &list, &count), 0);
	assert_false(list[1].account_saw_it);
	release_sessions(list, count);
	state_close(s);
}

static void an_old_name_leads_to_the_session_that_had_it_last(void **state)
{
	struct state *s = open_state();
	char *id = NULL;

	assert_int_equal(state_find_alias(s, "Old", &id), -ENOENT);
	assert_int_equal(state_save_alias(s, "one", "Old"), 0);
	assert_int_equal(state_save_alias(s, "one", "Older"), 0);
	assert_int_equal(state_save_alias(s, "two", "Old"), 0);
	s = reopen(s);
	assert_int_equal(state_find_alias(s, "Old", &id), 0);
	assert_string_equal(id, "two");
	free(id);
	assert_int_equal(state_find_alias(s, "Older", &id), 0);
	assert_string_equal(id, "one");
	free(id);
	assert_int_equal(state_find_alias(s, "old", &id), -ENOENT);
	state_close(s);
}

/* ---- entries ----------------------------------------------------------------------------------------------- */

/* "5:a.pdf:d1 7:b.pdf:- " */
static void write_down(void *arg, const struct known_entry *e)
{
	buf_addf(arg, "%llu:%s:%s:%lld:%lld:%d%d ", (unsigned long long)e->ino, e->name,
		 e->document_id ? e->document_id : "-", (long long)e->mtime_ns, (long long)e->attached_wall_ms,
		 e->was_there_before, e->is_gone);
}

static void assert_entries(struct state *s, const char *session_id, const char *expected)
{
	struct buf text = BUF(100000);

	assert_int_equal(state_load_entries(s, session_id, write_down, &text), 0);
	assert_string_equal(buf_text(&text), expected);
	buf_release(&text);
}

static void entries_are_kept_by_number_and_a_name_has_one_owner(void **state)
{
	struct state *s = open_state();
	const struct known_entry first[] = {
		{ .ino = 7, .name = "b.pdf", .mtime_ns = 12345678901234567, .attached_wall_ms = 9 },
		{ .ino = 5, .name = "a.pdf", .document_id = "d1", .mtime_ns = -1, .was_there_before = true },
	};
	const struct known_entry taken = {
		.ino = 9, .name = "a.pdf", .document_id = "d2", .mtime_ns = -1, .is_gone = true
	};
	const struct known_entry renamed = { .ino = 7, .name = "c.pdf", .document_id = "d7", .mtime_ns = 1 };

	assert_int_equal(state_save_entries(s, "S", first, 2, NULL), 0);
	assert_int_equal(state_save_entries(s, "S", NULL, 0, NULL), 0);
	assert_int_equal(state_save_entries(s, "T", &(struct known_entry){ .ino = 6, .name = "a.pdf" }, 1, NULL), 0);
	s = reopen(s);
	assert_entries(s, "S", "5:a.pdf:d1:-1:0:10 7:b.pdf:-:12345678901234567:9:00 ");
	assert_entries(s, "T", "6:a.pdf:-:0:0:00 ");
	assert_entries(s, "U", "");
	assert_int_equal(state_save_entries(s, "S", &taken, 1, NULL),
			 0); /* takes the name from 5, and from no other session */
	assert_int_equal(state_save_entries(s, "S", &renamed, 1, NULL), 0);
	s = reopen(s);
	assert_entries(s, "S", "7:c.pdf:d7:1:0:00 9:a.pdf:d2:-1:0:01 ");
	assert_entries(s, "T", "6:a.pdf:-:0:0:00 ");
	assert_int_equal(state_remove_entries(s, (const uint64_t[]){ 7, 12345 }, 2), 0);
	assert_entries(s, "S", "9:a.pdf:d2:-1:0:01 ");
	state_close(s);
}

static void each_change_of_a_sessions_entries_has_a_mark_of_its_own(void **state)
{
	struct state *s = open_state();
	const struct known_entry a = { .ino = 5, .name = "a.pdf", .mtime_ns = -1 }, b = { .ino = 6, .name = "b.pdf" };
	struct state_mark mine = { .before = 0, .after = 77 };

	(void)state;
	assert_int_equal(state_mark(s, "S"), 0);
	assert_int_equal(state_save_entries(s, "S", &a, 1, &mine), 0);
	assert_int_equal(state_mark(s, "S"), 77);
	assert_int_equal(state_save_entries(s, "T", &b, 1, NULL), 0);
	s = reopen(s);
	assert_int_equal(state_mark(s, "S"), 77); /* another session's are another matter */
	assert_int_not_equal(state_mark(s, "T"), 0);
	assert_int_equal(state_save_entries(s, "S", &a, 1, NULL), 0);
	int64_t second = state_mark(s, "S");
	assert_int_not_equal(second, 77);
	/* Somebody was faster: it is not what the caller thinks. */
	mine = (struct state_mark){ .before = 77, .after = 78 };
	assert_int_equal(state_save_entries(s, "S", &a, 1, &mine), 0);
	assert_int_not_equal(state_mark(s, "S"), 78);
	assert_int_not_equal(state_mark(s, "S"), second);
	mine = (struct state_mark){ .before = state_mark(s, "S"), .after = 79 };
	assert_int_equal(state_save_entries(s, "S", &a, 1, &mine), 0);
	assert_int_equal(state_mark(s, "S"), 79);
	/* One that goes to another session changes what is left behind. */
	assert_int_equal(state_save_entries(s, "T", &a, 1, NULL), 0);
	int64_t left = state_mark(s, "S");
	assert_int_not_equal(left, 79);
	assert_int_equal(state_remove_entries(s, (const uint64_t[]){ 5 }, 1), 0);
	assert_int_equal(state_mark(s, "S"), left);
	assert_int_equal(state_save_entries(s, "S", &a, 1, NULL), 0);
	left = state_mark(s, "S");
	assert_int_equal(state_remove_entries(s, (const uint64_t[]){ 5 }, 1), 0);
	assert_int_not_equal(state_mark(s, "S"), left);
	state_close(s);
}

static void many_entries_are_saved_in_one_go(void **state)
{
	static struct known_entry entries[2000];
	static char names[2000][16];
	struct state *s = open_state();
	struct buf text = BUF(1000000);

	for (int i = 0; i < 2000; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "%d.pdf", i);
		entries[i] = (struct known_entry){ .ino = 5000 + (uint64_t)i, .name = names[i], .mtime_ns = -1 };
	}
	assert_int_equal(state_save_entries(s, "S", entries, 2000, NULL), 0);
	assert_int_equal(state_load_entries(s, "S", write_down, &text), 0);
	int count = 0;
	for (const char *c = buf_text(&text); *c; c++)
		count += *c == ' ';
	assert_int_equal(count, 2000);
	buf_release(&text);
	state_close(s);
}

/* ---- the lock ---------------------------------------------------------------------------------------------- */

static void a_folder_in_use_is_refused_with_the_name_of_who_has_it(void **state)
{
	struct state *s = open_state(), *second = NULL;
	struct buf why = BUF(1000);
	char expected[100];

	assert_int_equal(state_open(dir, "/mnt/y", 200, &why, &second), -EBUSY);
	assert_null(second);
	(void)snprintf(expected, sizeof(expected), "/mnt/x is in use by process %ld", (long)getpid());
	assert_string_equal(buf_text(&why), expected);
	buf_release(&why);
	state_close(s);
	s = open_state();
	state_close(s);
}

static void the_owner_can_be_read_while_there_is_one(void **state)
{
	char *owner = NULL;

	assert_int_equal(state_read_owner(dir, &owner), -ENOENT);
	struct state *s = open_state();
	assert_int_equal(state_read_owner(dir, &owner), 0);
	assert_string_equal(owner, "/mnt/x");
	free(owner);
	owner = NULL;
	state_close(s);
	assert_int_equal(state_read_owner(dir, &owner), -ENOENT);
	assert_null(owner);
}

static void a_mounted_owner_is_not_waited_for(void **state)
{
	struct buf why = BUF(1000);
	struct state *s = NULL, *second = NULL;
	int64_t begun_ms = clock_now_ms();

	assert_int_equal(state_open(dir, "/proc", 0, &why, &s), 0); /* something that is mounted everywhere */
	assert_int_equal(state_open(dir, "/mnt/y", 5000, &why, &second), -EBUSY);
	assert_true(clock_now_ms() - begun_ms < 900);
	buf_release(&why);
	state_close(s);
}

/* Has the folder in a process of its own until it is asked to stop. */
static pid_t start_owner(bool drains, bool stops)
{
	int ready[2];
	char c;

	assert_int_equal(pipe(ready), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		sigset_t stop;
		int number;
		(void)sigemptyset(&stop);
		(void)sigaddset(&stop, SIGTERM);
		(void)sigprocmask(SIG_BLOCK, &stop, NULL);
		struct state *s = open_state();
		if (drains)
			state_set_draining(s);
		(void)!write(ready[1], "x", 1);
		(void)sigwait(&stop, &number);
		while (!stops)
			(void)pause();
		state_close(s);
		_exit(0);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	return pid;
}

static void a_draining_owner_is_asked_to_stop_and_waited_for(void **state)
{
	pid_t pid = start_owner(true, true);
	struct buf why = BUF(1000);
	struct state *s = NULL;
	int status;

	assert_int_equal(state_open(dir, "/mnt/y", 5000, &why, &s), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	buf_release(&why);
	state_close(s);
}

static void a_draining_owner_that_does_not_stop_is_waited_for_within_bounds(void **state)
{
	pid_t pid = start_owner(true, false);
	struct buf why = BUF(1000);
	struct state *s = NULL;
	int64_t begun_ms = clock_now_ms();

	assert_int_equal(state_open(dir, "/mnt/y", 300, &why, &s), -EBUSY);
	assert_true(clock_now_ms() - begun_ms >= 300);
	assert_true(clock_now_ms() - begun_ms < 3000);
	assert_non_null(strstr(buf_text(&why), "still finishes its uploads"));
	buf_release(&why);
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
}

static void an_owner_that_does_not_drain_is_left_alone(void **state)
{
	pid_t pid = start_owner(false, true);
	struct buf why = BUF(1000);
	struct state *s = NULL;

	assert_int_equal(state_open(dir, "/mnt/y", 300, &why, &s), -EBUSY);
	assert_int_equal(kill(pid, 0), 0);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0); /* nobody asked it to stop */
	buf_release(&why);
	(void)kill(pid, SIGTERM);
	(void)waitpid(pid, NULL, 0);
}

static void a_killed_owner_leaves_its_work_and_no_lock(void **state)
{
	pid_t pid = fork();

	if (pid == 0) {
		struct state *s = open_state();
		_exit(state_set(s, "k", "v") == 0 && state_next_ino(s) ? 0 : 1); /* without closing anything */
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	struct state *s = open_state();
	char *value = NULL;
	assert_int_equal(state_get(s, "k", &value), 0);
	assert_string_equal(value, "v");
	free(value);
	assert_true(state_next_ino(s) >= 4096 + 4096); /* the block it had begun is not given out again */
	state_close(s);
}

static void after_daemonizing_the_lock_tells_the_new_process(void **state)
{
	struct state *s = open_state();
	char path[128], text[100] = "";
	int fd;

	file_path("lock", path);
	assert_int_equal(truncate(path, 0), 0);
	assert_int_equal(state_renew_owner(s), 0);
	fd = open(path, O_RDONLY);
	assert_true(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	assert_int_equal(strtol(text, NULL, 10), getpid());
	assert_non_null(strstr(text, "/mnt/x\n"));
	state_close(s);
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 0); /* it ended properly */
}

/* ---- beside, folders, damage ------------------------------------------------------------------------------- */

static void a_reader_beside_a_running_mount_sees_what_it_wrote(void **state)
{
	struct buf why = BUF(1000);
	struct state *beside = NULL;
	char *value = NULL;

	assert_int_equal(state_open_beside(dir, &why, &beside), -ENOENT);
	struct state *s = open_state();
	assert_int_equal(state_set(s, "k", "v"), 0);
	assert_int_equal(state_open_beside(dir, &why, &beside), 0);
	assert_int_equal(state_get(beside, "k", &value), 0);
	assert_string_equal(value, "v");
	free(value);
	assert_int_not_equal(state_set(beside, "k", "w"), 0);
	assert_int_equal(state_set(s, "k", "w"), 0);
	assert_int_equal(state_get(beside, "k", &value), 0);
	assert_string_equal(value, "w");
	free(value);
	state_close(beside);
	state_close(s);
	buf_release(&why);
}

static void the_folder_is_made_with_its_parents_for_us_alone(void **state)
{
	struct buf why = BUF(1000);
	struct state *s = NULL;
	char path[128];
	struct stat st;

	file_path("a/b", path);
	assert_int_equal(state_open(path, "/mnt/x", 0, &why, &s), 0);
	assert_string_equal(state_dir(s), path);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	state_close(s);
	file_path("a/b/lock/c", path);
	assert_int_equal(state_open(path, "/mnt/x", 0, &why, &s), -ENOTDIR);
	assert_non_null(strstr(buf_text(&why), "cannot be made"));
	assert_int_equal(state_open("relative", "/mnt/x", 0, &why, &s), -EINVAL);
	buf_release(&why);
}

static void overwrite(const char *name, off_t from, size_t len, off_t cut_at)
{
	char path[128], junk[512];
	file_path(name, path);
	int fd = open(path, O_WRONLY | O_CREAT, 0600);

	assert_true(fd >= 0);
	memset(junk, 0x5a, sizeof(junk));
	for (size_t at = 0; at < len; at += sizeof(junk))
		assert_int_equal(pwrite(fd, junk, sizeof(junk), from + (off_t)at), sizeof(junk));
	if (cut_at >= 0)
		assert_int_equal(ftruncate(fd, cut_at), 0);
	close(fd);
}

static void assert_begun_anew(uint64_t last_ino)
{
	char *value = NULL;
	struct state *s = open_state();

	assert_int_equal(count_files("state.db.damaged-"), 1);
	assert_int_equal(state_get(s, "k", &value), -ENOENT);
	assert_int_equal(state_set(s, "k", "v"), 0);
	assert_true(state_next_ino(s) > last_ino);
	s = reopen(s);
	assert_int_equal(state_get(s, "k", &value), 0);
	free(value);
	assert_int_equal(count_files("state.db.damaged-"), 1);
	state_close(s);
}

static uint64_t fill_state(void)
{
	struct state *s = open_state();
	uint64_t last = 0;

	for (int i = 0; i < 500; i++) {
		char name[16];
		last = state_next_ino(s);
		(void)snprintf(name, sizeof(name), "%d.pdf", i);
		assert_int_equal(state_save_entries(s, "S", &(struct known_entry){ .ino = last, .name = name }, 1, NULL), 0);
	}
	assert_int_equal(state_set(s, "k", "old"), 0);
	state_close(s);
	return last;
}

static void a_file_of_garbage_is_set_aside_and_no_number_comes_again(void **state)
{
	uint64_t last = fill_state();

	overwrite("state.db", 0, 8192, -1);
	assert_begun_anew(last);
}

static void a_truncated_file_is_set_aside(void **state)
{
	uint64_t last = fill_state();

	overwrite("state.db", 0, 0, 8192);
	assert_begun_anew(last);
}

static void after_a_crash_damage_inside_is_found(void **state)
{
	uint64_t last = fill_state();

	overwrite("state.db", 16384, 8192, -1);
	overwrite("lock", 0, 512, -1); /* as an owner leaves it that was killed */
	assert_begun_anew(last);
}

static void a_sound_file_is_not_set_aside_after_a_crash(void **state)
{
	(void)fill_state();
	overwrite("lock", 0, 512, -1);
	struct state *s = open_state();
	char *value = NULL;
	assert_int_equal(state_get(s, "k", &value), 0);
	assert_string_equal(value, "old");
	free(value);
	assert_int_equal(count_files("state.db.damaged-"), 0);
	state_close(s);
}

static void a_lost_database_beside_a_spool_gives_no_old_number(void **state)
{
	char path[128];
	uint64_t last = fill_state();

	file_path("spool", path);
	assert_int_equal(mkdir(path, 0700), 0);
	file_path("state.db", path);
	assert_int_equal(unlink(path), 0);
	struct state *s = open_state();
	assert_true(state_next_ino(s) > last);
	state_close(s);
}

int main(void)
{
#define EACH(test) cmocka_unit_test_setup_teardown(test, make_dir, remove_dir)
	const struct CMUnitTest tests[] = {
		EACH(a_fact_outlives_us_and_an_unknown_one_is_not_there),
		EACH(an_inode_number_never_comes_twice),
		EACH(threads_that_take_numbers_share_none),
		EACH(a_session_is_remembered_whole_and_seen_by_its_account_alone),
		EACH(an_old_name_leads_to_the_session_that_had_it_last),
		EACH(entries_are_kept_by_number_and_a_name_has_one_owner),
		EACH(each_change_of_a_sessions_entries_has_a_mark_of_its_own),
		EACH(many_entries_are_saved_in_one_go),
		EACH(a_folder_in_use_is_refused_with_the_name_of_who_has_it),
		EACH(the_owner_can_be_read_while_there_is_one),
		EACH(a_mounted_owner_is_not_waited_for),
		EACH(a_draining_owner_is_asked_to_stop_and_waited_for),
		EACH(a_draining_owner_that_does_not_stop_is_waited_for_within_bounds),
		EACH(an_owner_that_does_not_drain_is_left_alone),
		EACH(a_killed_owner_leaves_its_work_and_no_lock),
		EACH(after_daemonizing_the_lock_tells_the_new_process),
		EACH(a_reader_beside_a_running_mount_sees_what_it_wrote),
		EACH(the_folder_is_made_with_its_parents_for_us_alone),
		EACH(a_file_of_garbage_is_set_aside_and_no_number_comes_again),
		EACH(a_truncated_file_is_set_aside),
		EACH(after_a_crash_damage_inside_is_found),
		EACH(a_sound_file_is_not_set_aside_after_a_crash),
		EACH(a_lost_database_beside_a_spool_gives_no_old_number),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
