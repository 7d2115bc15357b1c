/* The log: one line an event, whatever stands in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "client/base/log.h"

static char said[8192];

/* Stderr into a file, and back. */
static int divert(int *ret_kept)
{
	char path[] = "/tmp/test_log.XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	(void)unlink(path);
	*ret_kept = dup(STDERR_FILENO);
	assert_true(*ret_kept >= 0);
	assert_true(dup2(fd, STDERR_FILENO) >= 0);
	return fd;
}

static void restore(int fd, int kept)
{
	ssize_t n = pread(fd, said, sizeof(said) - 1, 0);

	assert_true(dup2(kept, STDERR_FILENO) >= 0);
	(void)close(kept);
	(void)close(fd);
	assert_true(n >= 0);
	said[n] = '\0';
}

static void a_line_tells_its_level_and_ends(void **state)
{
	int kept, fd = divert(&kept);

	(void)state;
	log_open(LOG_LEVEL_DEBUG, false);
	errno = EBUSY;
	log_error("a: %d", 1);
	log_warning("b: %s", "two");
	log_info("c");
	log_debug("d");
	int after = errno;
	restore(fd, kept);
	assert_string_equal(said, "error: a: 1\nwarning: b: two\ninfo: c\ndebug: d\n");
	assert_int_equal(after, EBUSY);
}

static void what_is_more_detailed_than_asked_for_is_not_said(void **state)
{
	int kept, fd = divert(&kept);

	(void)state;
	log_open(LOG_LEVEL_WARNING, false);
	log_info("a");
	log_debug("b");
	log_warning("c");
	restore(fd, kept);
	assert_string_equal(said, "warning: c\n");
	assert_true(log_is_on(LOG_LEVEL_ERROR) && log_is_on(LOG_LEVEL_WARNING));
	assert_false(log_is_on(LOG_LEVEL_INFO));
}

static void nothing_a_server_sends_makes_a_second_line_or_reaches_the_terminal(void **state)
{
	int kept, fd = divert(&kept);

	(void)state;
	log_open(LOG_LEVEL_INFO, false);
	log_info("upload: %s", "a\nerror: forged\r\x1b[2J\x7f\xc2\x9b\xc3\xa4");
	restore(fd, kept);
	assert_string_equal(said, "info: upload: a?error: forged??[2J???\xc3\xa4\n");
}

static void a_long_line_is_cut_and_stays_one_line(void **state)
{
	static char text[5000];
	int kept, fd = divert(&kept);

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	log_open(LOG_LEVEL_INFO, false);
	log_info("%s", text);
	log_info("next");
	restore(fd, kept);
	assert_true(strlen(said) < 2200);
	assert_non_null(strstr(said, "x\ninfo: next\n"));
}

static void only_the_four_words_are_levels(void **state)
{
	enum log_level level = LOG_LEVEL_ERROR;

	(void)state;
	assert_true(log_level_parse("debug", &level));
	assert_int_equal(level, LOG_LEVEL_DEBUG);
	assert_true(log_level_parse("error", &level));
	assert_int_equal(level, LOG_LEVEL_ERROR);
	assert_false(log_level_parse("Debug", &level));
	assert_false(log_level_parse("", &level));
	assert_false(log_level_parse("debug ", &level));
	assert_int_equal(level, LOG_LEVEL_ERROR);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_line_tells_its_level_and_ends),
		cmocka_unit_test(what_is_more_detailed_than_asked_for_is_not_said),
		cmocka_unit_test(nothing_a_server_sends_makes_a_second_line_or_reaches_the_terminal),
		cmocka_unit_test(a_long_line_is_cut_and_stays_one_line),
		cmocka_unit_test(only_the_four_words_are_levels),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
