/* client/json.c and client/time.c by tables: what is read, what is refused, and that nothing aborts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/log.h"
#include "client/json.h"
#include "client/time.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static cJSON *parse(const char *text)
{
	cJSON *parsed = NULL;

	if (json_parse(text, strlen(text), &parsed) < 0)
		fail_msg("not JSON: %s", text);
	return parsed;
}

static void only_whole_json_is_parsed(void **state)
{
	static const struct { const char *text; bool is_json; } cases[] = {
		{ "{}", true },	    { " [1,2]\r\n", true }, { "\"x\"", true }, { "null", true }, { "", false },	 { "{", false },
		{ "{}x", false },   { "<html>", false },    { "{}{}", false }, { "[1,", false }, { "\"x", false },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(json_release) cJSON *parsed = NULL;
		/* A copy of exactly these bytes, so that a look past them is seen. */
		size_t len = strlen(cases[i].text);
		CLEANUP(text_release) char *bytes = malloc(len + 1);
		char *exact = malloc(len ? len : 1);

		assert_non_null(bytes);
		assert_non_null(exact);
		memcpy(exact, cases[i].text, len);
		int r = json_parse(exact, len, &parsed);
		free(exact);
		if ((r == 0) != cases[i].is_json)
			fail_msg("'%s': %d", cases[i].text, r);
	}
}

static void half_a_surrogate_pair_and_a_nul_hide_nothing(void **state)
{
	static const struct { const char *text, *value; } cases[] = {
		{ "[\"lone \\ud800.pdf\"]", "lone \xef\xbf\xbd.pdf" },
		{ "[\"low \\udc00\"]", "low \xef\xbf\xbd" },
		{ "[\"nul \\u0000 in\"]", "nul \xef\xbf\xbd in" },
		{ "[\"\\ud83d\\ude00\"]", "\xf0\x9f\x98\x80" }, /* a whole pair stays */
		{ "[\"\\ud83d\\ud83d\\ude00\"]", "\xef\xbf\xbd\xf0\x9f\x98\x80" },
		{ "[\"\\\\ud800\"]", "\\ud800" },		   /* a backslash, and then letters */
		{ "[\"\\u00e9\"]", "\xc3\xa9" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(json_release) cJSON *parsed = parse(cases[i].text);
		const char *value = cJSON_GetStringValue(cJSON_GetArrayItem(parsed, 0));
		if (!value || strcmp(value, cases[i].value) != 0)
			fail_msg("row %zu: '%s' was read as '%s'", i, cases[i].text, value ? value : "nothing");
	}
}

static void nesting_without_end_is_refused(void **state)
{
	static const char *const openers[] = { "[", "{\"a\":" };

	for (size_t i = 0; i < COUNT(openers); i++) {
		CLEANUP(buf_release) struct buf text = BUF(4000000);
		CLEANUP(json_release) cJSON *parsed = NULL;

		for (int j = 0; j < 200000; j++)
			buf_add(&text, openers[i]);
		assert_int_equal(json_parse(text.data, text.len, &parsed), -EPROTO);
	}
}

static void ids_are_kept_as_text_exactly(void **state)
{
	static const struct { const char *text, *id; } cases[] = {
		{ "{\"id\":\"abc\"}", "abc" },
		{ "{\"id\":7}", "7" },
		{ "{\"id\":0}", "0" },
		{ "{\"id\":-3}", "-3" },
		{ "{\"id\":9007199254740991}", "9007199254740991" },
		{ "{\"id\":9007199254740993}", NULL }, /* would silently become another one */
		{ "{\"id\":1e300}", NULL },
		{ "{\"id\":1.5}", NULL },
		{ "{\"id\":true}", NULL },
		{ "{\"id\":[]}", NULL },
		{ "{\"id\":\"\"}", NULL },
		{ "{\"id\":null}", NULL },
		{ "{\"ID\":\"abc\"}", NULL },
		{ "{}", NULL },
		{ "[]", NULL },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(json_release) cJSON *parsed = parse(cases[i].text);
		struct json_in in = json_in_begin(parsed, "test");
		struct json_id room;
		const char *id = json_id(&in, "id", &room);
		int r = json_in_end(&in);

		if (r != (cases[i].id ? 0 : -EPROTO) || (cases[i].id && strcmp(id, cases[i].id) != 0))
			fail_msg("%s: %d %s", cases[i].text, r, id ? id : "NULL");
	}
}

static void a_null_is_an_absence_and_another_type_a_fault(void **state)
{
	CLEANUP(json_release) cJSON *parsed = parse("{\"a\":null,\"b\":\"x\",\"c\":5,\"d\":\"nan\",\"e\":[],\"f\":{}}");
	struct json_in in = json_in_begin(parsed, "test");

	assert_string_equal(json_text_or(&in, "a", "none"), "none");
	assert_int_equal(json_whole_or(&in, "a", -1), -1);
	assert_int_equal(json_whole_or(&in, "c", -1), 5);
	assert_null(json_array_or_null(&in, "a"));
	assert_null(json_object_or_null(&in, "e")); /* PHP's empty object */
	assert_non_null(json_array_or_null(&in, "e"));
	assert_int_equal(json_time_or(&in, "d", 9), 9);
	assert_int_equal(json_in_end(&in), 0);
	assert_int_equal(json_whole_or(&in, "b", -1), -1);
	assert_int_equal(json_in_end(&in), -EPROTO);
	assert_non_null(strstr(in.why, "'b' is not a whole number"));
	assert_int_equal(json_whole_or(&in, "c", -1), -1); /* after a fault nothing is read */
}

static void what_is_quoted_is_read_back(void **state)
{
	static const struct { const char *text, *back; } cases[] = {
		{ "plain.pdf", "plain.pdf" },
		{ "a\"b\\c/d", "a\"b\\c/d" },
		{ "line\nbreak\ttab\x7f", "line\nbreak\ttab\x7f" },
		{ "M\xc3\xa4rz \xf0\x9f\x93\x84", "M\xc3\xa4rz \xf0\x9f\x93\x84" },
		{ "bad\xff\xc3", "bad\xef\xbf\xbd\xef\xbf\xbd" },
		{ "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" }, /* half a surrogate pair */
		{ "\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd" },		       /* a slash in disguise */
		{ "", "" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(buf_release) struct buf text = BUF(1000);

		json_add_quoted(&text, cases[i].text);
		CLEANUP(json_release) cJSON *parsed = parse(buf_text(&text));
		if (!cJSON_IsString(parsed) || strcmp(parsed->valuestring, cases[i].back) != 0)
			fail_msg("row %zu: %s", i, buf_text(&text));
	}
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(only_whole_json_is_parsed),
		TEST(half_a_surrogate_pair_and_a_nul_hide_nothing),
		TEST(nesting_without_end_is_refused),
		TEST(ids_are_kept_as_text_exactly),
		TEST(a_null_is_an_absence_and_another_type_a_fault),
		TEST(what_is_quoted_is_read_back),
	};

	log_open(LOG_LEVEL_ERROR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
