/* fs/socket.c: a line gets its answer, whoever else is being answered, and nobody listening is told apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/clock.h"
#include "fs/socket.h"

static char dir[512];

static int begin(void **state)
{
	(void)snprintf(dir, sizeof(dir), "/tmp/test_socket.XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_one(const char *name, const struct stat *st, int kind, struct FTW *at)
{
	return remove(name);
}

static int end(void **state)
{
	dir[strlen("/tmp/test_socket.XXXXXX")] = '\0';
	return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* "say X" gives X back, "slow" waits, "fail" fails, "much" is long, "nothing" says nothing. */
static int handle(void *arg, const char *line, struct buf *answer)
{
	if (strcmp(line, "fail") == 0)
		return -ENOSPC;
	if (strcmp(line, "refuse") == 0) {
		buf_add(answer, "error because\n");
		return -EPERM;
	}
	if (strcmp(line, "slow") == 0)
		(void)usleep(500 * 1000);
	if (strcmp(line, "nothing") == 0)
		return 0;
	buf_addf(answer, "ok\n%s\n", line);
	for (int i = 0; strcmp(line, "much") == 0 && i < 100000; i++)
		buf_add(answer, "0123456789");
	return 0;
}

static struct socket_server *serve(void)
{
	struct socket_server *s = NULL;

	assert_int_equal(socket_serve(dir, handle, NULL, &s), 0);
	return s;
}

static void assert_answer(const char *line, const char *expected)
{
	struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);

	assert_int_equal(socket_ask(dir, line, &answer), 0);
	assert_string_equal(buf_text(&answer), expected);
	buf_release(&answer);
}

static void a_line_gets_its_answer(void **state)
{
	struct socket_server *s = serve();
	struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);

	assert_answer("add 8c1f", "ok\nadd 8c1f\n");
	assert_answer("refresh Q1/\xc3\xbc", "ok\nrefresh Q1/\xc3\xbc\n");
	assert_answer("fail", "error No space left on device\n");
	assert_answer("refuse", "error because\n");
	assert_int_equal(socket_ask(dir, "much", &answer), 0);
	assert_int_equal(answer.len, 8 + 1000000);
	buf_clear(&answer);
	assert_int_equal(socket_ask(dir, "nothing", &answer), -EPIPE);
	buf_release(&answer);
	socket_close(s);
}

static void what_is_not_a_line_is_not_sent(void **state)
{
	static char too_long[SOCKET_LINE_BYTES_MAX + 2];
	struct socket_server *s = serve();
	struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);

	memset(too_long, 'x', sizeof(too_long) - 1);
	assert_int_equal(socket_ask(dir, "a\nb", &answer), -EINVAL);
	assert_int_equal(socket_ask(dir, "", &answer), -EINVAL);
	assert_int_equal(socket_ask(dir, too_long, &answer), -EINVAL);
	too_long[SOCKET_LINE_BYTES_MAX] = '\0';
	assert_int_equal(socket_ask(dir, too_long, &answer), 0);
	buf_release(&answer);
	socket_close(s);
}

static void nobody_listening_is_told_apart(void **state)
{
	struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);
	char path[600];
	struct stat st;

	assert_int_equal(socket_ask(dir, "status", &answer), -ENOENT);
	struct socket_server *s = serve();
	(void)snprintf(path, sizeof(path), "%s/control.sock", dir);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_answer("status", "ok\nstatus\n");
	socket_close(s);
	assert_int_equal(socket_ask(dir, "status", &answer), -ENOENT);

	pid_t pid = fork();
	if (pid == 0) {
		(void)serve();
		_exit(0); /* as if killed: the socket's file stays */
	}
	(void)waitpid(pid, NULL, 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(socket_ask(dir, "status", &answer), -ENOENT);
	s = serve();
	assert_answer("status", "ok\nstatus\n");
	socket_close(s);
	buf_release(&answer);
}

static void a_folder_deeper_than_an_address_may_be_serves_too(void **state)
{
	size_t len = strlen(dir);
	struct stat st;

	for (int i = 0; i < 4; i++) {
		dir[len++] = '/';
		memset(dir + len, 'a' + i, 40);
		len += 40;
		dir[len] = '\0';
		assert_int_equal(mkdir(dir, 0700), 0);
	}
	struct socket_server *s = serve();
	assert_answer("status", "ok\nstatus\n");
	socket_close(s);
	char path[600];
	(void)snprintf(path, sizeof(path), "%s/control.sock", dir);
	assert_int_not_equal(stat(path, &st), 0);
}

static void *ask_slow(void *arg)
{
	assert_answer("slow", "ok\nslow\n");
	return NULL;
}

static void a_slow_answer_holds_up_no_other(void **state)
{
	struct socket_server *s = serve();
	pthread_t threads[3];
	int64_t begun_ms = clock_now_ms();

	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_slow, NULL), 0);
	(void)usleep(50 * 1000);
	assert_answer("status", "ok\nstatus\n");
	assert_true(clock_now_ms() - begun_ms < 400);
	for (int i = 0; i < 3; i++)
		(void)pthread_join(threads[i], NULL);
	socket_close(s);
	socket_close(NULL);
}

static void closing_waits_for_the_answer_that_is_under_way(void **state)
{
	struct socket_server *s = serve();
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, ask_slow, NULL), 0);
	(void)usleep(150 * 1000);
	socket_close(s);
	(void)pthread_join(thread, NULL);
}

static void an_asker_that_goes_away_harms_nobody(void **state)
{
	struct socket_server *s = serve();

	for (int i = 0; i < 5; i++) {
		struct sockaddr_un address = { .sun_family = AF_UNIX };
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);
		(void)snprintf(address.sun_path, sizeof(address.sun_path), "%.80s/control.sock", dir);
		assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
		if (i > 0)
			assert_int_equal(send(fd, i > 2 ? "much\n" : "mu", i > 2 ? 5 : 2, MSG_NOSIGNAL), i > 2 ? 5 : 2);
		close(fd);
	}
	assert_answer("status", "ok\nstatus\n");
	socket_close(s);
}

int main(void)
{
#define EACH(test) cmocka_unit_test_setup_teardown(test, begin, end)
	const struct CMUnitTest tests[] = {
		EACH(a_line_gets_its_answer),
		EACH(what_is_not_a_line_is_not_sent),
		EACH(nobody_listening_is_told_apart),
		EACH(a_folder_deeper_than_an_address_may_be_serves_too),
		EACH(a_slow_answer_holds_up_no_other),
		EACH(closing_waits_for_the_answer_that_is_under_way),
		EACH(an_asker_that_goes_away_harms_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
