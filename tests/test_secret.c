/* Secrets: what is taken for one, from where, and that nothing else gets out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "client/base/buf.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/base/secret.h"

static char dir[] = "/tmp/test_secret.XXXXXX";

static void path_of(const char *name, char ret[256])
{
	(void)snprintf(ret, 256, "%s/%s", dir, name);
}

static void write_file(const char *name, const void *bytes, size_t len, mode_t mode)
{
	char path[256];

	path_of(name, path);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), len);
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static int read_file(const char *name, const char *trusted, struct secret **ret)
{
	char path[256];

	path_of(name, path);
	return secret_read_file(path, trusted, ret);
}

static void white_space_at_the_ends_is_not_part_of_it(void **state)
{
	CLEANUP(secret_release) struct secret *s = secret_new(" \t s3cret token\r\n");

	(void)state;
	assert_string_equal(secret_reveal(s), "s3cret token");
}

static void nothing_and_control_characters_are_no_secret(void **state)
{
	(void)state;
	assert_null(secret_new(NULL));
	assert_null(secret_new(""));
	assert_null(secret_new(" \n\t "));
	assert_null(secret_new("two\nlines"));
	assert_null(secret_new("a\x7f" "b"));
	assert_null(secret_new("token\r\nX-Header: forged"));
}

static void a_copy_is_equal_and_another_is_not(void **state)
{
	CLEANUP(secret_release) struct secret *a = secret_new("one");
	CLEANUP(secret_release) struct secret *b = secret_copy(a);
	CLEANUP(secret_release) struct secret *c = secret_new("onE");
	CLEANUP(secret_release) struct secret *d = secret_new("one2");

	(void)state;
	assert_true(secret_is_equal(a, b));
	assert_ptr_not_equal(a, b);
	assert_false(secret_is_equal(a, c));
	assert_false(secret_is_equal(a, d));
	assert_false(secret_is_equal(a, NULL));
	assert_true(secret_is_equal(NULL, NULL));
	assert_null(secret_copy(NULL));
}

/* RFC 4231, test case 2. */
static void a_fingerprint_is_the_hmac_of_what_it_is_about(void **state)
{
	CLEANUP(secret_release) struct secret *s = secret_new("Jefe");
	char hex[65];

	(void)state;
	secret_fingerprint(s, "what do ya want for nothing?", hex);
	assert_string_equal(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
	secret_fingerprint(s, "something else", hex);
	assert_string_not_equal(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

static void a_file_only_we_can_read_is_taken(void **state)
{
	CLEANUP(secret_release) struct secret *s = NULL;

	(void)state;
	write_file("token", "abc123\n", 7, 0600);
	assert_int_equal(read_file("token", NULL, &s), 0);
	assert_string_equal(secret_reveal(s), "abc123");
}

static void a_file_that_others_can_read_is_refused(void **state)
{
	static const mode_t modes[] = { 0640, 0604, 0644, 0660 };

	(void)state;
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		struct secret *s = NULL;
		write_file("open", "abc123\n", 7, modes[i]);
		assert_int_equal(read_file("open", NULL, &s), -EACCES);
		assert_null(s);
	}
}

static void the_trusted_folder_is_exempt_but_no_way_leads_out_of_it(void **state)
{
	CLEANUP(secret_release) struct secret *s = NULL;
	struct secret *none = NULL;
	char trusted[256], other[256], link[256], out[512];

	(void)state;
	path_of("credentials", trusted);
	path_of("credentials-not", other);
	assert_int_equal(mkdir(trusted, 0700), 0);
	assert_int_equal(mkdir(other, 0700), 0);
	write_file("credentials/token", "abc123\n", 7, 0440);
	write_file("credentials-not/token", "abc123\n", 7, 0440);
	assert_int_equal(read_file("credentials/token", trusted, &s), 0);
	assert_int_equal(read_file("credentials-not/token", trusted, &none), -EACCES);
	path_of("credentials/link", link);
	(void)snprintf(out, sizeof(out), "%s/token", other);
	assert_int_equal(symlink(out, link), 0);
	assert_int_equal(read_file("credentials/link", trusted, &none), -EACCES);
	assert_int_equal(read_file("credentials/../credentials-not/token", trusted, &none), -EACCES);
}

static void what_holds_no_secret_is_invalid(void **state)
{
	struct secret *s = NULL;
	char path[256];

	(void)state;
	write_file("empty", "", 0, 0600);
	assert_int_equal(read_file("empty", NULL, &s), -EINVAL);
	write_file("binary", "a\0b", 3, 0600);
	assert_int_equal(read_file("binary", NULL, &s), -EINVAL);
	path_of("fifo", path);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(read_file("fifo", NULL, &s), -EINVAL);
	assert_int_equal(secret_read_file(dir, NULL, &s), -EINVAL);
	assert_int_equal(read_file("absent", NULL, &s), -ENOENT);
	assert_null(s);
}

static void a_file_has_at_most_64_kib(void **state)
{
	static char bytes[65537];
	CLEANUP(secret_release) struct secret *s = NULL;
	struct secret *none = NULL;

	(void)state;
	memset(bytes, 'x', sizeof(bytes));
	write_file("large", bytes, 65536, 0600);
	assert_int_equal(read_file("large", NULL, &s), 0);
	write_file("large", bytes, 65537, 0600);
	assert_int_equal(read_file("large", NULL, &none), -EFBIG);
}

static void a_commands_first_line_is_taken(void **state)
{
	CLEANUP(secret_release) struct secret *s = NULL;

	(void)state;
	assert_int_equal(secret_read_command("echo ' first '; echo second", &s), 0);
	assert_string_equal(secret_reveal(s), "first");
}

static void a_command_that_fails_or_says_nothing_is_an_error(void **state)
{
	struct secret *s = NULL;

	(void)state;
	assert_int_equal(secret_read_command("echo token; exit 3", &s), -EIO);
	assert_int_equal(secret_read_command("kill -9 $$", &s), -EIO);
	assert_int_equal(secret_read_command("true", &s), -EIO);
	assert_int_equal(secret_read_command("echo; echo token", &s), -EIO);
	assert_int_equal(secret_read_command("/no/such/program", &s), -EIO);
	assert_null(s);
}

static void a_command_is_not_waited_for_past_its_shell(void **state)
{
	CLEANUP(secret_release) struct secret *s = NULL;
	int64_t began_ms = clock_now_ms();

	(void)state;
	assert_int_equal(secret_read_command("sleep 5 2>/dev/null & echo token", &s), 0);
	assert_true(clock_now_ms() - began_ms < 3000);
}

static void much_output_does_not_block_a_command(void **state)
{
	CLEANUP(secret_release) struct secret *s = NULL;

	(void)state;
	assert_int_equal(secret_read_command("echo token; head -c 300000 /dev/zero", &s), 0);
	assert_string_equal(secret_reveal(s), "token");
}

static void a_command_is_not_told_our_own_secrets(void **state)
{
	CLEANUP(secret_release) struct secret *s = NULL;

	(void)state;
	assert_int_equal(setenv("SESSIONFS_TOKEN", "ours", 1), 0);
	assert_int_equal(setenv("SESSIONFS_PASSWORD", "ours", 1), 0);
	assert_int_equal(secret_read_command("echo \"<$SESSIONFS_TOKEN$SESSIONFS_PASSWORD>$PATH\"", &s), 0);
	assert_memory_equal(secret_reveal(s), "<>/", 3);
	unsetenv("SESSIONFS_TOKEN");
	unsetenv("SESSIONFS_PASSWORD");
}

static int make_dir(void **state)
{
	(void)state;
	log_open(LOG_LEVEL_ERROR, false);
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	static const char *const names[] = { "credentials/token", "credentials/link", "credentials-not/token",
					     "credentials",	  "credentials-not",  "token",
					     "open",		  "empty",	      "binary",
					     "fifo",		  "large",	      "" };

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		char path[256];
		path_of(names[i], path);
		(void)remove(path);
	}
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(white_space_at_the_ends_is_not_part_of_it),
		cmocka_unit_test(nothing_and_control_characters_are_no_secret),
		cmocka_unit_test(a_copy_is_equal_and_another_is_not),
		cmocka_unit_test(a_fingerprint_is_the_hmac_of_what_it_is_about),
		cmocka_unit_test(a_file_only_we_can_read_is_taken),
		cmocka_unit_test(a_file_that_others_can_read_is_refused),
		cmocka_unit_test(the_trusted_folder_is_exempt_but_no_way_leads_out_of_it),
		cmocka_unit_test(what_holds_no_secret_is_invalid),
		cmocka_unit_test(a_file_has_at_most_64_kib),
		cmocka_unit_test(a_commands_first_line_is_taken),
		cmocka_unit_test(a_command_that_fails_or_says_nothing_is_an_error),
		cmocka_unit_test(a_command_is_not_waited_for_past_its_shell),
		cmocka_unit_test(much_output_does_not_block_a_command),
		cmocka_unit_test(a_command_is_not_told_our_own_secrets),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
