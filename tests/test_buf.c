/* Text that grows: bounds, failures and escapes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "client/base/buf.h"
#include "client/base/cleanup.h"

static void an_empty_buffer_reads_as_empty_text(void **state)
{
	CLEANUP(buf_release) struct buf b = BUF(10);

	(void)state;
	assert_string_equal(buf_text(&b), "");
	char *taken = buf_take(&b);
	assert_string_equal(taken, "");
	free(taken);
}

static void text_may_be_as_long_as_the_bound(void **state)
{
	CLEANUP(buf_release) struct buf b = BUF(5);

	(void)state;
	buf_add(&b, "abc");
	buf_addf(&b, "%d", 12);
	assert_string_equal(buf_text(&b), "abc12");
}

static void one_byte_more_fails_and_changes_nothing(void **state)
{
	CLEANUP(buf_release) struct buf b = BUF(5);

	(void)state;
	buf_add(&b, "abcd");
	buf_add(&b, "ef");
	assert_null(buf_text(&b));
	assert_int_equal(b.len, 4);
	assert_string_equal(b.data, "abcd");
	buf_add(&b, "e"); /* would fit, but the text would have a hole */
	assert_null(buf_text(&b));
	assert_null(buf_take(&b));
}

static void a_failed_buffer_works_again_once_cleared(void **state)
{
	CLEANUP(buf_release) struct buf b = BUF(5);

	(void)state;
	buf_add(&b, "too long");
	buf_clear(&b);
	buf_add(&b, "short");
	assert_string_equal(buf_text(&b), "short");
}

static void a_long_formatted_text_is_added_whole(void **state)
{
	CLEANUP(buf_release) struct buf b = BUF(2000);
	char wide[1001];

	(void)state;
	memset(wide, 'x', 1000);
	wide[1000] = '\0';
	buf_addf(&b, "<%s>", wide);
	assert_int_equal(b.len, 1002);
	assert_int_equal(buf_text(&b)[1001], '>');
	buf_addf(&b, "<%s>", wide);
	assert_null(buf_text(&b));
	assert_int_equal(b.len, 1002);
}

static void only_unreserved_characters_stay_unescaped(void **state)
{
	static const struct {
		const char *text, *escaped;
	} cases[] = {
		{ "abc-._~XYZ09", "abc-._~XYZ09" },
		{ "a b/c", "a%20b%2Fc" },
		{ "../x?y=1&z#", "..%2Fx%3Fy%3D1%26z%23" },
		{ "\xc3\xa4\x7f\n", "%C3%A4%7F%0A" },
		{ "100%", "100%25" },
		{ "", "" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		CLEANUP(buf_release) struct buf b = BUF(100);
		buf_add_escaped(&b, cases[i].text);
		assert_string_equal(buf_text(&b), cases[i].escaped);
	}
}

static void half_an_escaped_text_is_never_left(void **state)
{
	CLEANUP(buf_release) struct buf b = BUF(8);

	(void)state;
	buf_add(&b, "/a/");
	buf_add_escaped(&b, "b c d");
	assert_null(buf_text(&b));
	assert_string_equal(b.data, "/a/");
}

static void bytes_with_zeroes_keep_their_length(void **state)
{
	CLEANUP(buf_release) struct buf b = BUF(100);

	(void)state;
	buf_add_bytes(&b, "a\0b", 3);
	buf_add_bytes(&b, NULL, 0);
	assert_int_equal(b.len, 3);
	assert_memory_equal(b.data, "a\0b", 4);
}

static void taken_text_is_no_longer_the_buffers(void **state)
{
	CLEANUP(buf_release) struct buf b = BUF(100);

	(void)state;
	buf_add(&b, "first");
	CLEANUP(text_release) char *first = buf_take(&b);
	buf_add(&b, "second");
	assert_string_equal(first, "first");
	assert_string_equal(buf_text(&b), "second");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_buffer_reads_as_empty_text),
		cmocka_unit_test(text_may_be_as_long_as_the_bound),
		cmocka_unit_test(one_byte_more_fails_and_changes_nothing),
		cmocka_unit_test(a_failed_buffer_works_again_once_cleared),
		cmocka_unit_test(a_long_formatted_text_is_added_whole),
		cmocka_unit_test(only_unreserved_characters_stay_unescaped),
		cmocka_unit_test(half_an_escaped_text_is_never_left),
		cmocka_unit_test(bytes_with_zeroes_keep_their_length),
		cmocka_unit_test(taken_text_is_no_longer_the_buffers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
