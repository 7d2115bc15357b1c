/* Listings: what goes in comes out, whatever it is; patches and renewals; and what a document costs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/sum.h"
#include "client/base/clock.h"

#define HASH "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const struct document bare = {
	.id = "d1", .size_bytes = -1, .created_ms = -1, .pages = -1, .parsing.updated_ms = -1
};

static void add(struct listing_builder *b, const char *id, const char *filename, const char *status, const char *json)
{
	struct document d = bare;

	d.id = id;
	d.filename = filename;
	d.status = status;
	d.state = STATE_READY;
	assert_int_equal(listing_builder_add(b, &d, json), 0);
}

static struct listing *finish(struct listing_builder *b)
{
	struct listing *l = NULL;

	assert_int_equal(listing_builder_finish(b, 1000, 2000, &l), 0);
	return l;
}

/* "a b c": three documents of these ids, with JSON when there is a place for it. */
static struct listing *listing_of(const char *ids, const char *status, const char *scratch_dir)
{
	struct listing_builder *b = listing_builder_new(scratch_dir);
	CLEANUP(text_release) char *copy = strdup(ids);
	char *rest = NULL;

	for (char *id = strtok_r(copy, " ", &rest); id; id = strtok_r(NULL, " ", &rest)) {
		char json[64];
		(void)snprintf(json, sizeof(json), "{\"id\":\"%s\",\"status\":\"%s\"}", id, status);
		add(b, id, "x.pdf", status, json);
	}
	return finish(b);
}

static void assert_ids(const struct listing *l, const char *ids)
{
	char have[1000] = "";

	for (int i = 0; i < listing_count(l); i++) {
		struct document d;
		size_t len = strlen(have);
		listing_get(l, i, &d);
		const char *id, *filename;
		listing_get_names(l, i, &id, &filename);
		assert_string_equal(id, d.id);
		assert_string_equal(filename, d.filename);
		(void)snprintf(have + len, sizeof(have) - len, "%s%s", i ? " " : "", d.id);
		assert_int_equal(listing_find(l, d.id), i);
	}
	assert_string_equal(have, ids);
}

static void assert_json(const struct listing *l, const char *id, const char *json)
{
	CLEANUP(buf_release) struct buf b = BUF(1000);
	int i = listing_find(l, id);

	assert_true(i >= 0);
	assert_int_equal(listing_read_json(l, i, &b), 0);
	assert_string_equal(buf_text(&b), json);
}

static void assert_text(const char *have, const char *want)
{
	if (want)
		assert_string_equal(have, want);
	else
		assert_null(have);
}

static void all_of_a_document_comes_back(void **state)
{
	struct listing_builder *b = listing_builder_new(NULL);
	struct document d;
	const struct document full = {
		.id = "3fa85f64-5717-4562-b3fc-2c963f66afa6",
		.filename = "a/b \xff\n.pdf",
		.status = "completed",
		.state = STATE_FAILED,
		.sha256 = HASH,
		.size_bytes = INT64_MAX,
		.created_ms = -5000,
		.mime = "application/pdf",
		.source = "api",
		.source_url = "https://example.org/a",
		.workspace_id = "w",
		.pages = 12,
		.error = "it broke",
		.parsing = { "done", "v2", "c0ffee", 1700000000000 },
		.extra = { { "upload", "123" }, { "queue", "7" }, { "k", "" }, { "fourth", "4" }, { "fifth", "5" },
			   { "last", "x" } },
	};

	(void)state;
	assert_int_equal(listing_builder_add(b, &full, NULL), 0);
	CLEANUP(listing_release) struct listing *l = finish(b);
	listing_get(l, 0, &d);
	assert_string_equal(d.id, full.id);
	assert_string_equal(d.filename, full.filename);
	assert_string_equal(d.status, full.status);
	assert_int_equal(d.state, full.state);
	assert_string_equal(d.sha256, HASH);
	assert_true(d.size_bytes == full.size_bytes && d.created_ms == full.created_ms && d.pages == 12);
	assert_string_equal(d.mime, full.mime);
	assert_string_equal(d.source, full.source);
	assert_string_equal(d.source_url, full.source_url);
	assert_string_equal(d.workspace_id, full.workspace_id);
	assert_string_equal(d.error, full.error);
	assert_string_equal(d.parsing.status, "done");
	assert_string_equal(d.parsing.version, "v2");
	assert_string_equal(d.parsing.config, "c0ffee");
	assert_true(d.parsing.updated_ms == 1700000000000);
	for (int i = 0; i < DOCUMENT_EXTRA_MAX; i++) {
		assert_string_equal(d.extra[i][0], full.extra[i][0]);
		assert_string_equal(d.extra[i][1], full.extra[i][1]);
	}
	assert_true(listing_asked_ms(l) == 1000 && listing_as_of_wall_ms(l) == 2000);
}

static void what_was_not_said_is_absent_and_not_empty(void **state)
{
	struct listing_builder *b = listing_builder_new(NULL);
	struct document d;

	(void)state;
	assert_int_equal(listing_builder_add(b, &bare, NULL), 0);
	CLEANUP(listing_release) struct listing *l = finish(b);
	listing_get(l, 0, &d);
	assert_string_equal(d.filename, ""); /* the one text that is always there */
	assert_text(d.status, NULL);
	assert_text(d.sha256, NULL);
	assert_text(d.mime, NULL);
	assert_text(d.source, NULL);
	assert_text(d.source_url, NULL);
	assert_text(d.workspace_id, NULL);
	assert_text(d.error, NULL);
	assert_text(d.parsing.status, NULL);
	assert_text(d.extra[0][0], NULL);
	assert_true(d.size_bytes == -1 && d.created_ms == -1 && d.pages == -1 && d.parsing.updated_ms == -1);
}

static void an_empty_word_is_not_an_absent_one(void **state)
{
	struct listing_builder *b = listing_builder_new(NULL);
	struct document d = bare;

	(void)state;
	d.status = "";
	d.size_bytes = 0;
	d.pages = 0;
	d.error = "";
	assert_int_equal(listing_builder_add(b, &d, NULL), 0);
	CLEANUP(listing_release) struct listing *l = finish(b);
	listing_get(l, 0, &d);
	assert_text(d.status, "");
	assert_text(d.error, "");
	assert_text(d.mime, NULL);
	assert_true(d.size_bytes == 0 && d.pages == 0);
}

static void only_64_hex_digits_are_a_hash(void **state)
{
	static const struct {
		const char *given, *shown;
	} cases[] = {
		{ HASH, HASH },
		{ "0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF", HASH },
		{ "", NULL },
		{ "0123", NULL },
		{ HASH "0", NULL },
		{ "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdeg", NULL },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct listing_builder *b = listing_builder_new(NULL);
		struct document d = bare;
		d.sha256 = cases[i].given;
		assert_int_equal(listing_builder_add(b, &d, NULL), 0);
		CLEANUP(listing_release) struct listing *l = finish(b);
		listing_get(l, 0, &d);
		assert_text(d.sha256, cases[i].shown);
		assert_string_equal(d.id, "d1");
	}
}

static void a_document_without_an_id_is_refused_and_the_others_stay(void **state)
{
	struct listing_builder *b = listing_builder_new(NULL);
	struct document d = bare;

	(void)state;
	add(b, "a", "x", "s", NULL);
	d.id = NULL;
	assert_int_equal(listing_builder_add(b, &d, NULL), -EINVAL);
	d.id = "";
	assert_int_equal(listing_builder_add(b, &d, NULL), -EINVAL);
	CLEANUP(listing_release) struct listing *l = finish(b);
	assert_ids(l, "a");
}

static void the_second_of_an_id_takes_the_firsts_place(void **state)
{
	struct listing_builder *b = listing_builder_new(NULL);
	struct document d;

	(void)state;
	add(b, "a", "first", "one", NULL);
	add(b, "b", "other", "one", NULL);
	add(b, "a", "second", "two", NULL);
	assert_int_equal(listing_builder_count(b), 2);
	CLEANUP(listing_release) struct listing *l = finish(b);
	assert_ids(l, "a b");
	listing_get(l, 0, &d);
	assert_string_equal(d.filename, "second");
	assert_string_equal(d.status, "two");
}

static void an_id_that_is_not_there_is_not_found(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of("a b c", "s", NULL);
	CLEANUP(listing_release) struct listing *none = listing_of("", "s", NULL);

	(void)state;
	assert_int_equal(listing_find(l, "d"), -1);
	assert_int_equal(listing_find(l, ""), -1);
	assert_int_equal(listing_find(none, "a"), -1);
	assert_int_equal(listing_count(none), 0);
}

static void each_listing_has_a_serial_of_its_own_but_a_renewal(void **state)
{
	CLEANUP(listing_release) struct listing *a = listing_of("a", "s", NULL);
	CLEANUP(listing_release) struct listing *b = listing_of("a", "s", NULL);
	CLEANUP(listing_release) struct listing *renewed = NULL;
	CLEANUP(listing_release) struct listing *patched = NULL;

	(void)state;
	assert_true(listing_serial(a) != listing_serial(b));
	assert_int_equal(listing_renew(a, 5000, 6000, &renewed), 0);
	assert_true(listing_serial(a) == listing_serial(renewed));
	assert_true(listing_asked_ms(renewed) == 5000 && listing_as_of_wall_ms(renewed) == 6000);
	assert_int_equal(listing_patch(a, NULL, 0, b, &patched), 0);
	assert_true(listing_serial(patched) != listing_serial(a) && listing_serial(patched) != listing_serial(b));
	assert_true(listing_asked_ms(patched) == 1000 && listing_as_of_wall_ms(patched) == 2000);
}

static void documents_are_found_by_their_bytes(void **state)
{
	struct listing_builder *b = listing_builder_new(NULL);
	static const char one[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
	static const char other[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddee00";
	const struct {
		const char *id, *sha256;
		int64_t size_bytes;
	} rows[] = { { "a", one, 5 }, { "b", NULL, 5 }, { "c", other, 5 }, { "d", one, 6 }, { "e", one, -1 } };

	(void)state;
	for (int i = 0; i < 5; i++) {
		const struct document d = { .id = rows[i].id, .filename = "x.pdf", .status = "s", .sha256 = rows[i].sha256,
					    .size_bytes = rows[i].size_bytes, .created_ms = i, .pages = -1,
					    .parsing.updated_ms = -1 };
		assert_int_equal(listing_builder_add(b, &d, NULL), 0);
	}
	CLEANUP(listing_release) struct listing *l = finish(b);
	assert_int_equal(listing_find_bytes(l, 0, one, 5), 0);
	assert_int_equal(listing_find_bytes(l, 1, one, 5), 4);
	assert_int_equal(listing_find_bytes(l, 5, one, 5), -1);
	assert_int_equal(listing_find_bytes(l, 0, one, 6), 3);
	assert_int_equal(listing_find_bytes(l, 0, other, 5), 2);
	assert_int_equal(listing_find_bytes(l, 0, "", 5), -1);
}

static void an_annex_is_shared_by_renewals_and_not_by_patches(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of("a b", "new", NULL);
	CLEANUP(listing_release) struct listing *renewed = NULL, *patched = NULL;
	const char *without[] = { "a" };
	size_t len = 0;

	(void)state;
	listing_set_annex(l, strdup("old"), 4);
	listing_set_annex(l, strdup("text"), 5);
	assert_int_equal(listing_renew(l, 1, 2, &renewed), 0);
	assert_int_equal(listing_patch(l, without, 1, NULL, &patched), 0);
	assert_null(listing_take_annex(patched, &len));
	CLEANUP(text_release) char *annex = listing_take_annex(renewed, &len);
	assert_string_equal(annex, "text");
	assert_int_equal(len, 5);
	assert_null(listing_take_annex(l, &len));
}

static void a_renewal_outlives_what_it_renewed(void **state)
{
	struct listing *l = listing_of("a b", "s", "/tmp");
	CLEANUP(listing_release) struct listing *renewed = NULL;

	(void)state;
	assert_int_equal(listing_renew(l, 1, 2, &renewed), 0);
	listing_unref(l);
	assert_ids(renewed, "a b");
	assert_json(renewed, "b", "{\"id\":\"b\",\"status\":\"s\"}");
}

static void patches_come_out_as_their_table_says(void **state)
{
	static const struct {
		const char *have, *without, *with, *want;
	} cases[] = {
		{ "a b c", "", "", "a b c" },
		{ "a b c", "b", "", "a c" },
		{ "a b c", "x", "", "a b c" },
		{ "a b c", "", "d e", "a b c d e" },
		{ "a b c", "a c", "d", "b d" },
		{ "a b c", "", "b", "a b c" },  /* in its place */
		{ "a b c", "b", "b", "a c b" }, /* taken out, then put in */
		{ "a b c", "a b c", "", "" },
		{ "", "a", "", "" },
		{ "", "", "a b", "a b" },
		{ "a", "a a", "b b", "b" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		CLEANUP(listing_release) struct listing *l = listing_of(cases[i].have, "old", "/tmp");
		CLEANUP(listing_release) struct listing *with = listing_of(cases[i].with, "new", "/tmp");
		CLEANUP(listing_release) struct listing *patched = NULL;
		CLEANUP(text_release) char *copy = strdup(cases[i].without);
		const char *without[10];
		int count = 0;
		char *rest = NULL;
		for (char *id = strtok_r(copy, " ", &rest); id; id = strtok_r(NULL, " ", &rest))
			without[count++] = id;
		assert_int_equal(listing_patch(l, without, count, with, &patched), 0);
		assert_ids(patched, cases[i].want);
		assert_ids(l, cases[i].have); /* the old one is as it was */
		for (int j = 0; j < listing_count(patched); j++) {
			struct document d;
			listing_get(patched, j, &d);
			assert_string_equal(d.status, listing_find(with, d.id) >= 0 ? "new" : "old");
		}
	}
}

static void json_comes_back_also_through_patches_of_other_files(void **state)
{
	struct listing *l = listing_of("a b", "old", "/tmp");
	struct listing *with = listing_of("b c", "new", "/tmp");
	struct listing *patched = NULL;
	CLEANUP(listing_release) struct listing *again = NULL;
	const char *without[] = { "a" };

	(void)state;
	assert_int_equal(listing_patch(l, NULL, 0, with, &patched), 0);
	listing_unref(l);
	listing_unref(with);
	assert_json(patched, "a", "{\"id\":\"a\",\"status\":\"old\"}");
	assert_json(patched, "b", "{\"id\":\"b\",\"status\":\"new\"}");
	assert_int_equal(listing_patch(patched, without, 1, NULL, &again), 0);
	listing_unref(patched);
	assert_json(again, "b", "{\"id\":\"b\",\"status\":\"new\"}");
	assert_json(again, "c", "{\"id\":\"c\",\"status\":\"new\"}");
}

static void json_not_kept_is_no_data(void **state)
{
	CLEANUP(listing_release) struct listing *nowhere = listing_of("a", "s", NULL);
	CLEANUP(listing_release) struct listing *bad_dir = listing_of("a", "s", "/no/such/folder");
	struct listing_builder *b = listing_builder_new("/tmp");
	CLEANUP(buf_release) struct buf json = BUF(1000);

	(void)state;
	assert_int_equal(listing_read_json(nowhere, 0, &json), -ENODATA);
	assert_int_equal(listing_read_json(bad_dir, 0, &json), -ENODATA);
	add(b, "with", "x", "s", "{}");
	add(b, "without", "x", "s", NULL);
	CLEANUP(listing_release) struct listing *l = finish(b);
	assert_int_equal(listing_read_json(l, 1, &json), -ENODATA);
	assert_json(l, "with", "{}");
}

static void large_json_passes_the_writers_buffer(void **state)
{
	struct listing_builder *b = listing_builder_new("/tmp");
	static char json[300001];
	CLEANUP(buf_release) struct buf read = BUF(400000);

	(void)state;
	for (int i = 0; i < 5; i++) {
		char id[16];
		(void)snprintf(id, sizeof(id), "d%d", i);
		memset(json, 'a' + i, sizeof(json) - 1);
		add(b, id, "x", "s", json);
	}
	CLEANUP(listing_release) struct listing *l = finish(b);
	for (int i = 0; i < 5; i++) {
		buf_clear(&read);
		assert_int_equal(listing_read_json(l, i, &read), 0);
		assert_int_equal(read.len, 300000);
		assert_int_equal(buf_text(&read)[0], 'a' + i);
		assert_int_equal(buf_text(&read)[299999], 'a' + i);
	}
}

static int open_files(void)
{
	DIR *d = opendir("/proc/self/fd");
	int count = 0;

	assert_non_null(d);
	while (readdir(d))
		count++;
	(void)closedir(d);
	return count;
}

static void a_thousand_patches_hold_one_file(void **state)
{
	struct listing *l = listing_of("first", "s", "/tmp");
	int before = open_files();

	(void)state;
	for (int i = 0; i < 1000; i++) {
		char id[16];
		struct listing *patched = NULL;
		(void)snprintf(id, sizeof(id), "d%d", i % 300); /* most are replaced several times */
		CLEANUP(listing_release) struct listing *with = listing_of(id, "s", "/tmp");
		assert_int_equal(listing_patch(l, NULL, 0, with, &patched), 0);
		listing_unref(l);
		l = patched;
	}
	assert_int_equal(open_files(), before);
	assert_int_equal(listing_count(l), 301);
	assert_json(l, "d299", "{\"id\":\"d299\",\"status\":\"s\"}");
	listing_unref(l);
	assert_int_equal(open_files(), before - 1);
}

/* ---- on a disk ---------------------------------------------------------------------------------------------- */

static const char *json_dir(void)
{
	static char dir[] = "/tmp/sessionfs-test-listing-XXXXXX";
	static bool is_made;

	if (!is_made)
		assert_non_null(mkdtemp(dir));
	is_made = true;
	return dir;
}

static int remove_json_dir(void **state)
{
	DIR *d = opendir(json_dir());

	(void)state;
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		(void)unlinkat(dirfd(d), e->d_name, 0); /* but for "." and ".." */
	(void)closedir(d);
	return rmdir(json_dir());
}

static int put_bytes(void *arg, const void *bytes, size_t len)
{
	buf_add_bytes(arg, bytes, len);
	return 0;
}

static struct buf packed(const struct listing *l)
{
	struct buf b = BUF(64 << 20);

	assert_int_equal(listing_pack(l, put_bytes, &b), 0);
	assert_int_equal(b.len, listing_packed_bytes(l));
	return b;
}

struct bytes {
	const char *at;
	size_t left;
};

static int get_bytes(void *arg, void *to, size_t len)
{
	struct bytes *b = arg;

	if (len > b->left)
		return -ENODATA;
	memcpy(to, b->at, len);
	b->at += len;
	b->left -= len;
	return 0;
}

static int unpack_as(const struct buf *from, size_t bytes, const char *json_name, struct listing **ret)
{
	struct bytes b = { from->data, from->len };
	const struct listing_source source = { .bytes = bytes, .get = get_bytes, .arg = &b, .json_dir = json_dir(),
					       .json_name = json_name, .asked_ms = 77, .as_of_wall_ms = 88 };

	return listing_unpack(&source, ret);
}

static struct listing *unpack(const struct buf *from, const char *json_name)
{
	struct listing *l = NULL;

	assert_int_equal(unpack_as(from, from->len, json_name, &l), 0);
	return l;
}

static void a_listing_comes_back_from_its_bytes(void **state)
{
	CLEANUP(listing_release) struct listing *first = listing_of("a b c d", "s", json_dir());
	CLEANUP(listing_release) struct listing *with = listing_of("b e", "new", json_dir());
	CLEANUP(listing_release) struct listing *l = NULL, *patched = NULL;
	const char *without[] = { "d" };
	char name[LISTING_JSON_NAME_BYTES];
	struct document d;

	(void)state;
	assert_int_equal(listing_patch(first, without, 1, with, &l), 0);
	assert_int_equal(listing_keep_json(l, json_dir(), name), 0);
	CLEANUP(buf_release) struct buf b = packed(l);
	uint64_t serial = listing_serial(l);
	listing_release(&l);
	listing_release(&first);
	l = unpack(&b, name);
	assert_ids(l, "a b c e");
	assert_json(l, "a", "{\"id\":\"a\",\"status\":\"s\"}");
	assert_json(l, "b", "{\"id\":\"b\",\"status\":\"new\"}");
	assert_true(listing_asked_ms(l) == 77 && listing_as_of_wall_ms(l) == 88 && listing_serial(l) != serial);
	listing_get(l, 1, &d);
	assert_string_equal(d.status, "new");
	assert_int_equal(d.state, STATE_READY);
	/* And it is one like any other. */
	CLEANUP(listing_release) struct listing *more = listing_of("f", "s", json_dir());
	assert_int_equal(listing_patch(l, NULL, 0, more, &patched), 0);
	assert_ids(patched, "a b c e f");
	assert_json(patched, "f", "{\"id\":\"f\",\"status\":\"s\"}");
	assert_json(patched, "c", "{\"id\":\"c\",\"status\":\"s\"}");
}

static void an_empty_listing_comes_back_too(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of("", "s", NULL);
	CLEANUP(buf_release) struct buf b = packed(l);
	CLEANUP(listing_release) struct listing *again = unpack(&b, "");
	char name[LISTING_JSON_NAME_BYTES] = "x";

	(void)state;
	assert_ids(again, "");
	assert_int_equal(listing_find(again, "a"), -1);
	assert_int_equal(listing_keep_json(again, json_dir(), name), 0);
	assert_string_equal(name, "");
}

static void a_file_of_records_keeps_its_name_and_gets_another_when_that_was_removed(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of("a", "s", json_dir());
	char first[LISTING_JSON_NAME_BYTES], second[LISTING_JSON_NAME_BYTES], path[200];

	(void)state;
	assert_int_equal(listing_keep_json(l, json_dir(), first), 0);
	assert_int_equal(listing_keep_json(l, json_dir(), second), 0);
	assert_string_equal(first, second);
	(void)snprintf(path, sizeof(path), "%s/%s", json_dir(), first);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(listing_keep_json(l, json_dir(), second), 0);
	assert_string_not_equal(first, second);
	CLEANUP(buf_release) struct buf b = packed(l);
	CLEANUP(listing_release) struct listing *again = unpack(&b, second);
	assert_json(again, "a", "{\"id\":\"a\",\"status\":\"s\"}");
}

static void without_its_file_a_listing_has_lost_its_records_alone(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of("a b", "s", json_dir());
	CLEANUP(listing_release) struct listing *with = listing_of("b", "new", json_dir());
	CLEANUP(buf_release) struct buf b = packed(l), json = BUF(1000);
	CLEANUP(listing_release) struct listing *again = unpack(&b, "00000000000000000000000000000000");
	CLEANUP(listing_release) struct listing *patched = NULL;

	(void)state;
	assert_ids(again, "a b");
	assert_int_equal(listing_read_json(again, 0, &json), -ENODATA);
	/* What comes later stands where no lost one is taken for it. */
	assert_int_equal(listing_patch(again, NULL, 0, with, &patched), 0);
	assert_int_equal(listing_read_json(patched, 0, &json), -ENODATA);
	assert_json(patched, "b", "{\"id\":\"b\",\"status\":\"new\"}");
}

static void damaged_bytes_are_told_and_not_believed(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of("a b c", "s", json_dir());
	CLEANUP(buf_release) struct buf b = packed(l);
	struct listing *ret = NULL;

	(void)state;
	for (size_t i = 0; i < b.len; i++) {
		for (int bit = 0; bit < 8; bit++) {
			b.data[i] = (char)(b.data[i] ^ 1 << bit);
			assert_int_equal(unpack_as(&b, b.len, "", &ret), -EBADMSG);
			b.data[i] = (char)(b.data[i] ^ 1 << bit);
		}
	}
	for (size_t bytes = 0; bytes < b.len; bytes++)
		assert_int_equal(unpack_as(&b, bytes, "", &ret), -EBADMSG);
	assert_int_equal(unpack_as(&b, b.len + 1, "", &ret), -EBADMSG);
	b.len--; /* the bytes end early */
	assert_int_equal(unpack_as(&b, b.len + 1, "", &ret), -ENODATA);
	b.len++;
	CLEANUP(listing_release) struct listing *again = unpack(&b, "");
	assert_ids(again, "a b c");
}

struct head {
	uint64_t magic;
	uint32_t version, count;
	uint64_t probe_hash, arena_bytes, words_bytes, dead_bytes;
	int64_t json_end;
	uint32_t kind_count, id_room, id_used, word_room, word_used, kind_room, kind_used, reserved;
	uint64_t sum;
};

static void mend_sum(struct buf *b)
{
	struct head h;
	size_t at = sizeof(h);

	memcpy(&h, b->data, sizeof(h));
	const size_t lens[] = { h.arena_bytes, h.words_bytes, h.count * 4UL, h.kind_count * 32UL,
				h.id_room * 5UL, h.word_room * 5UL, h.kind_room * 5UL };
	h.sum = 0;
	uint64_t sum = sum_bytes(h.magic, &h, sizeof(h));
	for (int i = 0; i < 7; i++) {
		if (lens[i] > b->len - at)
			return; /* it will be told by that alone */
		sum = sum_bytes(sum, b->data + at, lens[i]);
		at += lens[i];
	}
	h.sum = sum;
	memcpy(b->data, &h, sizeof(h));
}

static int read_everything(struct listing *l)
{
	CLEANUP(listing_release) struct listing *with = listing_of("a zz", "s", NULL);
	CLEANUP(listing_release) struct listing *patched = NULL;
	int letters = 0;

	for (int i = 0; i < listing_count(l); i++) {
		CLEANUP(buf_release) struct buf json = BUF(1000);
		struct document d;
		listing_get(l, i, &d);
		const char *id, *filename;
		listing_get_names(l, i, &id, &filename);
		assert_string_equal(id, d.id);
		assert_string_equal(filename, d.filename);
		letters += (int)(strlen(d.id) + strlen(d.filename) + (d.status ? strlen(d.status) : 0) +
				 (d.mime ? strlen(d.mime) : 0) + strlen(document_state_word(d.state)));
		letters += listing_find(l, d.id) + listing_read_json(l, i, &json);
	}
	(void)listing_patch(l, (const char *[]){ "b" }, 1, with, &patched);
	return letters;
}

static void damage_with_a_sum_that_fits_does_no_harm_either(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of("a b c d e f", "some", json_dir());
	CLEANUP(buf_release) struct buf b = packed(l);
	CLEANUP(text_release) char *good = malloc(b.len);
	unsigned seed = 20261122;
	int believed = 0, told = 0;

	(void)state;
	mend_sum(&b); /* changes nothing: the test's sum is the listing's */
	memcpy(good, b.data, b.len);
	for (int i = 0; i < 20000; i++) {
		CLEANUP(listing_release) struct listing *again = NULL;
		memcpy(b.data, good, b.len);
		for (int n = rand_r(&seed) % 3; n >= 0; n--)
			b.data[(size_t)rand_r(&seed) % b.len] = (char)(rand_r(&seed) % 4 ? rand_r(&seed) : 0);
		mend_sum(&b);
		int r = unpack_as(&b, b.len, "", &again);
		assert_true(r == 0 || r == -EBADMSG);
		if (r == 0)
			(void)read_everything(again);
		*(r == 0 ? &believed : &told) += 1;
	}
	assert_true(believed > 1000 && told > 1000);
}

/* mallinfo2() knows nothing under a sanitizer, and an allocation is not what it is. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED 1
#endif
#endif

static void a_document_takes_at_most_140_bytes_in_memory(void **state)
{
#ifdef IS_SANITIZED
	(void)state;
	skip();
#else
	enum { COUNT = 100000 };
	struct mallinfo2 before = mallinfo2();
	struct listing_builder *b = listing_builder_new("/tmp");

	(void)state;
	for (int i = 0; i < COUNT; i++) {
		char id[37], name[32], hash[65];
		(void)snprintf(id, sizeof(id), "%08x-5717-4562-b3fc-2c963f66afa6", (unsigned)i * 2654435761u);
		(void)snprintf(name, sizeof(name), "invoice_2024_%07d.pdf", i);
		(void)snprintf(hash, sizeof(hash), "%064x", (unsigned)i);
		struct document d = {
			.id = id,
			.filename = name,
			.status = i % 3 ? "uploaded" : "processing",
			.state = STATE_STORED,
			.sha256 = hash,
			.size_bytes = 100000 + i,
			.created_ms = 1700000000000 + i * 1000LL,
			.mime = "application/pdf",
			.source = "api",
			.workspace_id = "0d0a5d3e-5717-4562-b3fc-2c963f66afa6",
			.pages = i % 40,
			.parsing = { "completed", "v3", "c0ffee", 1700000005000 + i * 1000LL },
		};
		assert_int_equal(listing_builder_add(b, &d, "{\"a\":1}"), 0);
	}
	CLEANUP(listing_release) struct listing *l = finish(b);
	assert_non_null(l);
	struct mallinfo2 after = mallinfo2();
	size_t used = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
	print_message("%.1f bytes a document\n", (double)used / COUNT);
	assert_true(used / COUNT <= 140);
	CLEANUP(buf_release) struct buf bytes = packed(l);
	int64_t begun_ns = clock_wall_ns();
	CLEANUP(listing_release) struct listing *again = unpack(&bytes, "");
	print_message("     100,000 documents: read back in %.1f ms\n", (double)(clock_wall_ns() - begun_ns) / 1e6);
	assert_int_equal(listing_count(again), COUNT);
#endif
}

struct reader {
	struct listing *listing;
};

static void *read_all(void *arg)
{
	struct reader *r = arg;

	for (int turn = 0; turn < 50; turn++) {
		CLEANUP(listing_release) struct listing *l = listing_ref(r->listing);
		CLEANUP(listing_release) struct listing *with = listing_of("new", "s", "/tmp");
		CLEANUP(listing_release) struct listing *patched = NULL;
		assert_ids(l, "a b c");
		assert_json(l, "c", "{\"id\":\"c\",\"status\":\"s\"}");
		assert_int_equal(listing_patch(l, NULL, 0, with, &patched), 0);
		assert_json(patched, "new", "{\"id\":\"new\",\"status\":\"s\"}");
	}
	return NULL;
}

static void threads_may_read_and_patch_one_listing(void **state)
{
	struct reader r = { listing_of("a b c", "s", "/tmp") };
	pthread_t threads[4];

	(void)state;
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_all, &r), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	listing_unref(r.listing);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_of_a_document_comes_back),
		cmocka_unit_test(what_was_not_said_is_absent_and_not_empty),
		cmocka_unit_test(an_empty_word_is_not_an_absent_one),
		cmocka_unit_test(only_64_hex_digits_are_a_hash),
		cmocka_unit_test(a_document_without_an_id_is_refused_and_the_others_stay),
		cmocka_unit_test(the_second_of_an_id_takes_the_firsts_place),
		cmocka_unit_test(an_id_that_is_not_there_is_not_found),
		cmocka_unit_test(each_listing_has_a_serial_of_its_own_but_a_renewal),
		cmocka_unit_test(documents_are_found_by_their_bytes),
		cmocka_unit_test(an_annex_is_shared_by_renewals_and_not_by_patches),
		cmocka_unit_test(a_renewal_outlives_what_it_renewed),
		cmocka_unit_test(patches_come_out_as_their_table_says),
		cmocka_unit_test(json_comes_back_also_through_patches_of_other_files),
		cmocka_unit_test(json_not_kept_is_no_data),
		cmocka_unit_test(large_json_passes_the_writers_buffer),
		cmocka_unit_test(a_thousand_patches_hold_one_file),
		cmocka_unit_test(a_listing_comes_back_from_its_bytes),
		cmocka_unit_test(an_empty_listing_comes_back_too),
		cmocka_unit_test(a_file_of_records_keeps_its_name_and_gets_another_when_that_was_removed),
		cmocka_unit_test(without_its_file_a_listing_has_lost_its_records_alone),
		cmocka_unit_test(damaged_bytes_are_told_and_not_believed),
		cmocka_unit_test(damage_with_a_sum_that_fits_does_no_harm_either),
		cmocka_unit_test(a_document_takes_at_most_140_bytes_in_memory),
		cmocka_unit_test(threads_may_read_and_patch_one_listing),
	};

	return cmocka_run_group_tests(tests, NULL, remove_json_dir);
}
