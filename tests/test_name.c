/* fs/name.c by tables: what a title becomes, what is scratch, what is accepted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/buf.h"
#include "fs/name.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct name_rules *rules(const char *ignore, const char *formats)
{
	struct name_rules *r = NULL;

	assert_int_equal(name_rules_new(ignore, "pdf docx doc png jpg jpeg tiff pptx", formats, NULL, &r), 0);
	return r;
}

/* ---- titles ------------------------------------------------------------------------------------------------ */

static void a_title_becomes_a_safe_name(void **state)
{
	static const struct {
		const char *title, *name;
	} cases[] = {
		{ "invoice.pdf", "invoice.pdf" },
		{ "a/b.pdf", "a_b.pdf" },
		{ "..", "_.." }, /* never a way out of the folder */
		{ ".", "_." },
		{ "", "unnamed" },
		{ "...", "_..." },
		{ "../../etc/passwd", "_.._.._etc_passwd" },
		{ ".sessionfs", "_.sessionfs" },
		{ ".results", "_.results" },
		{ ".text", "_.text" },
		{ ".texts", "_.texts" }, /* a hidden name would not be seen */
		{ "a\nb.pdf", "a_b.pdf" },
		{ "a\x7f.pdf", "a_.pdf" },
		{ "a\xc2\x85z", "a_z" }, /* U+0085, a C1 control */
		{ "a\xe2\x80\xae"
		  "fdp.exe",
		  "a_fdp.exe" }, /* U+202E turns what follows around */
		{ "a\xe2\x80\x8f.pdf", "a_.pdf" },
		{ "a\xe2\x81\xa6.pdf", "a_.pdf" },
		{ "a\xff.pdf", "a_.pdf" },
		{ "a\xc0\xaf.pdf", "a__.pdf" },      /* an overlong '/' */
		{ "a\xed\xa0\x80.pdf", "a___.pdf" }, /* a surrogate */
		{ "a\xf4\x90\x80\x80.pdf", "a____.pdf" },
		{ "a\xe2\x82", "a__" }, /* ends inside a character */
		{ "Z\xc3\xbcrich \xe2\x82\xac.pdf", "Z\xc3\xbcrich \xe2\x82\xac.pdf" },
		{ "\xf0\x9f\x98\x80.png", "\xf0\x9f\x98\x80.png" },
		{ " a b ", " a b " },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		char name[NAME_BYTES_MAX + 1];
		name_make_safe(cases[i].title, name);
		assert_true(!name_is_safe(cases[i].title) || strcmp(name, cases[i].title) == 0);
		if (strcmp(name, cases[i].name) != 0)
			fail_msg("row %zu: '%s' became '%s', not '%s'", i, cases[i].title, name, cases[i].name);
	}
}

static void a_long_title_is_cut_between_characters_and_keeps_its_extension(void **state)
{
	char title[1200], name[NAME_BYTES_MAX + 1];

	for (size_t i = 0; i + 2 < 700; i += 2)
		memcpy(title + i, "\xc3\xbc", 3);
	memcpy(title + 698, ".pdf", 5);
	name_make_safe(title, name);
	assert_int_equal(strlen(name), 254); /* 125 characters of two bytes, and ".pdf" */
	assert_string_equal(name + 250, ".pdf");
	assert_int_equal(name_check(name), 0);

	memset(title, 'x', sizeof(title));
	title[sizeof(title) - 1] = '\0';
	name_make_safe(title, name);
	assert_int_equal(strlen(name), 255);

	memset(title, 'x', 255);
	title[255] = '\0';
	name_make_safe(title, name);
	assert_string_equal(name, title);
}

static void whatever_the_bytes_the_name_is_sound_and_stays_when_made_safe_again(void **state)
{
	static const char *const bits[] = { ".",        "/",           "..", ".pdf",  "\xe2\x80\xae",
					    "\xc3\xbc", "\xff",        "\n", ".text", "\xf0\x9f\x98\x80",
					    " ",        "\xed\xa0\x80" };
	uint32_t seed = 20240229;

	for (int round = 0; round < 20000; round++) {
		char title[1500], once[NAME_BYTES_MAX + 1], twice[NAME_BYTES_MAX + 1], apart[NAME_BYTES_MAX + 1];
		size_t len = 0, want;
		seed = seed * 1664525 + 1013904223;
		want = (seed >> 8) % (round % 10 == 0 ? 1400 : 40);
		while (len < want) {
			seed = seed * 1664525 + 1013904223;
			if (seed >> 31) {
				const char *bit = bits[(seed >> 8) % COUNT(bits)];
				memcpy(title + len, bit, strlen(bit));
				len += strlen(bit);
			} else {
				char c = (char)(seed >> 16);
				title[len++] = c ? c : 'x';
			}
		}
		title[len] = '\0';
		name_make_safe(title, once);
		name_make_safe(once, twice);
		if (name_check(once) != 0 || strlen(once) < 1 || strchr(once, '/'))
			fail_msg("round %d made '%s'", round, once);
		if (strcmp(once, twice) != 0)
			fail_msg("round %d: '%s' became '%s' the second time", round, once, twice);
		name_tell_apart(once, "3f2c-99", round % 70, apart);
		if (name_check(apart) != 0)
			fail_msg("round %d told apart as '%s'", round, apart);
		name_qualify(once, title, apart);
		if (name_check(apart) != 0)
			fail_msg("round %d qualified as '%s'", round, apart);
	}
}

static void equal_names_are_told_apart_by_the_end_of_the_id(void **state)
{
	static const struct {
		const char *name, *id;
		int length;
		const char *told;
	} cases[] = {
		{ "a.pdf", "0b7e-3f2c", 4, "a (3f2c).pdf" },
		{ "a.pdf", "0b7e-3f2c", 6, "a (7e3f2c).pdf" },
		{ "a", "0b7e3f2c", 4, "a (3f2c)" },
		{ "Q1 v2.0 final", "ab12", 4, "Q1 v2.0 final (ab12)" },
		{ ".pdf", "ab12", 4, ".pdf (ab12)" },
		{ "a.tar.gz", "ab12", 2, "a.tar (12).gz" },
		{ "a.pdf", "7", 8, "a (7).pdf" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		char told[NAME_BYTES_MAX + 1];
		name_tell_apart(cases[i].name, cases[i].id, cases[i].length, told);
		if (strcmp(told, cases[i].told) != 0)
			fail_msg("row %zu: '%s', not '%s'", i, told, cases[i].told);
	}
}

static void a_full_name_makes_room_for_what_tells_it_apart(void **state)
{
	char name[NAME_BYTES_MAX + 1], told[NAME_BYTES_MAX + 1];

	memset(name, 'x', 251);
	memcpy(name + 251, ".pdf", 5);
	name_tell_apart(name, "3f2c", 4, told);
	assert_int_equal(strlen(told), 255);
	assert_string_equal(told + 255 - 11, " (3f2c).pdf");
}

static void a_qualifier_stands_behind_the_name_and_is_made_safe(void **state)
{
	char told[NAME_BYTES_MAX + 1];

	name_qualify("Supplier bills", "Accounts", told);
	assert_string_equal(told, "Supplier bills (Accounts)");
	name_qualify("Supplier v1.2", "a/b", told);
	assert_string_equal(told, "Supplier v1.2 (a_b)");
}

static void a_users_name_is_refused_only_for_what_a_folder_cannot_show(void **state)
{
	static const struct {
		const char *name;
		int error;
	} cases[] = {
		{ "a.pdf", 0 },      { ".hidden", 0 },     { "Z\xc3\xbcrich.pdf", 0 },
		{ "", -EINVAL },     { ".", -EINVAL },     { "..", -EINVAL },
		{ "a\nb", -EINVAL }, { "a\xff", -EINVAL }, { "a\xe2\x80\xae", -EINVAL },
		{ "a/b", -EINVAL },
	};
	char long_one[300];

	for (size_t i = 0; i < COUNT(cases); i++) {
		if (name_check(cases[i].name) != cases[i].error)
			fail_msg("row %zu: '%s' gives %d", i, cases[i].name, name_check(cases[i].name));
	}
	memset(long_one, 'x', sizeof(long_one));
	long_one[255] = '\0';
	assert_int_equal(name_check(long_one), 0);
	long_one[255] = 'x';
	long_one[256] = '\0';
	assert_int_equal(name_check(long_one), -ENAMETOOLONG);
}

/* ---- scratch ----------------------------------------------------------------------------------------------- */

/* Each scratch row has a twin that is none. */
static const struct {
	const char *name;
	bool is_scratch;
} scratch_cases[] = {
	{ ".invoice", true },
	{ ".invoice.pdf", false },
	{ ".bashrc.conf", true },
	{ ".a.TIF", false },
	{ ".pdf", true },
	{ "a.pdf", false },
	{ ".x.pdf.QvTzAb", true },
	{ "x.pdf.QvTzAb", false }, /* rsync's, and one that only looks like it */
	{ ".invoice.pdf.a1B2c3", true },
	{ ".invoice.a1B2c3.pdf", false },
	{ ".goutputstream-ABC123", true },
	{ "goutputstream-ABC123.pdf", false },
	{ ".goutputstream-ABC.pdf", true },
	{ ".goutput.pdf", false },
	{ "._invoice.pdf", true },
	{ "_invoice.pdf", false },
	{ ".~invoice.pdf", true },
	{ "~invoice.pdf", false },
	{ ".#invoice.pdf", true },
	{ "#invoice.pdf", false },
	{ "invoice.pdf.part", true },
	{ "part.pdf", false },
	{ "invoice.pdf.partial", true },
	{ "partial.pdf", false },
	{ "invoice.pdf.partial~", true },
	{ "partial~.pdf", false },
	{ "invoice.pdf.crdownload", true },
	{ "crdownload.pdf", false },
	{ "invoice.pdf.CRDOWNLOAD", true },
	{ "invoice.pdf.download", true },
	{ "download.pdf", false },
	{ "invoice.pdf.filepart", true },
	{ "filepart.pdf", false },
	{ "invoice.tmp", true },
	{ "tmp.pdf", false },
	{ "lu12345abc.tmp", true },
	{ "lu12345abc.pdf", false },
	{ "~WRD0001.tmp", true },
	{ "invoice.pdf~", true },
	{ "a~b.pdf", false },
	{ "~$voice.docx", true },
	{ "$voice.docx", false },
	{ ".~lock.invoice.docx#", true },
	{ "lock.invoice.docx", false },
	{ "#invoice.pdf#", true },
	{ ".invoice.pdf.swp", true },
	{ "invoice.swap.pdf", false },
	{ "invoice.pdf.swo", true },
	{ "4913", true },
	{ "4913.pdf", false },
	{ "sedAbC123", true },
	{ "sedan.pdf", false },
	{ "sedAbC.pdf", false },
	{ "sedAbC1234", false },
	{ "tmpabc_1", true },
	{ "tmpabc.pdf", false },
	{ "Thumbs.db", true },
	{ "Thumbs.pdf", false },
	{ "thumbs.db", true },
	{ "desktop.ini", true },
	{ "desktop.pdf", false },
	{ "autorun.inf", true },
	{ "AUTORUN.INF", true },
	{ "autorun.pdf", false },
	{ "__MACOSX", true },
	{ "__MACOSX.pdf", false },
	{ "@eaDir", true },
	{ "@eaDir.pdf", false },
	{ ".DS_Store", true },
	{ "DS_Store.pdf", false },
	{ ".AppleDouble", true },
	{ ".Spotlight-V100", true },
	{ ".Trashes", true },
	{ ".fseventsd", true },
	{ ".localized", true },
	{ ".TemporaryItems", true },
	{ ".Trash-1000", true },
	{ ".directory", true },
	{ ".hidden", true },
	{ ".stfolder", true },
	{ ".stversions", true },
	{ ".fuse_hidden0000000100000001", true },
	{ ".nfs00000000012345", true },
	{ ".syncthing.invoice.pdf.tmp", true },
	{ ".com.google.Chrome.a1B2c3", true },
	{ "notes.xyz", false }, /* refused for its format, which is another answer than scratch */
	{ "README", false },
};

static void names_of_programs_at_work_are_scratch_and_their_twins_are_not(void **state)
{
	struct name_rules *r = rules(NULL, NULL);

	for (size_t i = 0; i < COUNT(scratch_cases); i++) {
		if (name_is_scratch(r, scratch_cases[i].name) != scratch_cases[i].is_scratch)
			fail_msg("'%s' is%s scratch", scratch_cases[i].name, scratch_cases[i].is_scratch ? " not" : "");
	}
	name_rules_free(r);
}

static void where_any_format_is_taken_scratch_stays_scratch(void **state)
{
	struct name_rules *r = rules(NULL, "any");

	assert_true(name_is_scratch(r, ".invoice.pdf.a1B2c3"));
	assert_true(name_is_scratch(r, ".bashrc"));
	assert_true(name_is_scratch(r, "a.part"));
	assert_false(name_is_scratch(r, ".invoice.xyz"));
	assert_false(name_is_scratch(r, "README"));
	name_rules_free(r);
}

static void ignore_adds_patterns_and_only_those(void **state)
{
	struct name_rules *r = rules("draft-*:*.bak *.pdf.lock", NULL);

	assert_true(name_is_scratch(r, "draft-1.pdf"));
	assert_true(name_is_scratch(r, "a.bak"));
	assert_true(name_is_scratch(r, "a.pdf.lock"));
	assert_false(name_is_scratch(r, "a-draft.pdf"));
	assert_false(name_is_scratch(r, "a.pdf"));
	name_rules_free(r);
	r = rules("", NULL);
	assert_false(name_is_scratch(r, "draft-1.pdf"));
	name_rules_free(r);
}

/* ---- formats ----------------------------------------------------------------------------------------------- */

static void a_suffix_is_accepted_as_the_service_and_the_user_say(void **state)
{
	static const struct {
		const char *formats, *session_formats, *name;
		bool is_accepted;
	} cases[] = {
		{ NULL, NULL, "a.pdf", true },
		{ NULL, NULL, "a.PDF", true },
		{ NULL, NULL, "a.tif", true },
		{ NULL, NULL, "a.TIFF", true },
		{ NULL, NULL, "a.xlsx", false },
		{ NULL, NULL, "a", false },
		{ NULL, NULL, "a.", false },
		{ NULL, NULL, ".pdf", false },
		{ NULL, NULL, "pdf", false },
		{ NULL, NULL, "a.pdf.zip", false },
		{ "+xlsx,-doc", NULL, "a.xlsx", true },
		{ "+xlsx,-doc", NULL, "a.doc", false },
		{ "+xlsx,-doc", NULL, "a.docx", true },
		{ "-tiff", NULL, "a.tif", false },
		{ "pdf,png", NULL, "a.png", true },
		{ "pdf,png", NULL, "a.docx", false },
		{ "any", NULL, "a.xyz", true },
		{ "any", NULL, "README", true },
		{ NULL, "xml", "a.xml", true },
		{ NULL, "xml", "a.pdf", false },
		{ "+csv", "xml", "a.csv", true },
		{ "pdf", "xml", "a.xml", false },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct name_rules *r = rules(NULL, cases[i].formats);
		if (name_is_accepted(r, cases[i].session_formats, cases[i].name) != cases[i].is_accepted)
			fail_msg("row %zu: '%s'", i, cases[i].name);
		name_rules_free(r);
	}
}

static void the_formats_are_told_as_they_are_in_force(void **state)
{
	struct name_rules *r = rules(NULL, "+xlsx,-doc,+pdf");

	assert_string_equal(name_rules_formats(r), "pdf docx png jpg jpeg tiff pptx xlsx");
	name_rules_free(r);
	r = rules(NULL, ".PDF");
	assert_string_equal(name_rules_formats(r), "pdf");
	name_rules_free(r);
}

static void formats_that_make_no_sense_are_refused_in_a_sentence(void **state)
{
	static const char *const wrong[] = { "+", "p/f", "pdf,+doc", "abcdefghijklmnop" };

	for (size_t i = 0; i < COUNT(wrong); i++) {
		struct name_rules *r = NULL;
		struct buf why = BUF(500);
		assert_int_equal(name_rules_new(NULL, "pdf", wrong[i], &why, &r), -EINVAL);
		assert_null(r);
		assert_non_null(strstr(buf_text(&why), "formats: "));
		buf_release(&why);
		assert_int_equal(name_rules_new(NULL, "pdf", wrong[i], NULL, &r), -EINVAL);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_title_becomes_a_safe_name),
		cmocka_unit_test(a_long_title_is_cut_between_characters_and_keeps_its_extension),
		cmocka_unit_test(whatever_the_bytes_the_name_is_sound_and_stays_when_made_safe_again),
		cmocka_unit_test(equal_names_are_told_apart_by_the_end_of_the_id),
		cmocka_unit_test(a_full_name_makes_room_for_what_tells_it_apart),
		cmocka_unit_test(a_qualifier_stands_behind_the_name_and_is_made_safe),
		cmocka_unit_test(a_users_name_is_refused_only_for_what_a_folder_cannot_show),
		cmocka_unit_test(names_of_programs_at_work_are_scratch_and_their_twins_are_not),
		cmocka_unit_test(where_any_format_is_taken_scratch_stays_scratch),
		cmocka_unit_test(ignore_adds_patterns_and_only_those),
		cmocka_unit_test(a_suffix_is_accepted_as_the_service_and_the_user_say),
		cmocka_unit_test(the_formats_are_told_as_they_are_in_force),
		cmocka_unit_test(formats_that_make_no_sense_are_refused_in_a_sentence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
