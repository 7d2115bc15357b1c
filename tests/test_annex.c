/* What a folder shows, as bytes and back; and that nothing but just those bytes is believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/backend_impl.h"
#include "client/base/buf.h"
#include "client/base/cleanup.h"
#include "fs/annex.h"

enum { DOCUMENTS = 300, MARK = 12345 };

static struct listing *listing_of(int count)
{
	struct listing_builder *b = listing_builder_new(NULL);
	struct listing *l;
	char id[32], name[32];

	assert_non_null(b);
	for (int i = 0; i < count; i++) {
		(void)snprintf(id, sizeof(id), "id-%d", i);
		(void)snprintf(name, sizeof(name), "%d.pdf", i);
		const struct document d = { .id = id, .filename = name, .status = "uploaded", .size_bytes = 5, .created_ms = i,
					    .pages = -1, .parsing.updated_ms = -1 };
		assert_int_equal(listing_builder_add(b, &d, NULL), 0);
	}
	assert_int_equal(listing_builder_finish(b, 1, 1, &l), 0);
	return l;
}

static const struct known_entry others[] = {
	{ .ino = 77, .name = "mine.pdf", .document_id = "id-1", .mtime_ns = 5, .attached_wall_ms = 6, .was_there_before = true },
	{ .ino = 78, .name = "gone.pdf", .document_id = "elsewhere", .mtime_ns = -1, .learned_bytes = 9, .is_gone = true },
};

/* Every third rests. */
static void *pack(struct listing *l, size_t *ret_len)
{
	struct resting rest;
	void *bytes;

	assert_int_equal(resting_begin(&rest, l), 0);
	for (int i = 0; i < listing_count(l); i += 3)
		assert_int_equal(resting_note(&rest, i, (struct rest){ .ino = 5000 + (uint64_t)i, .is_saved = true }), 0);
	assert_int_equal(annex_pack(&rest, others, 2, MARK, &bytes, ret_len), 0);
	resting_release(&rest);
	return bytes;
}

static void write_down(void *arg, const struct known_entry *k)
{
	buf_addf(arg, "%d:%s:%s:%d:%d:%d:%d%d ", (int)k->ino, k->name, k->document_id, (int)k->mtime_ns, (int)k->attached_wall_ms,
		 (int)k->learned_bytes, k->was_there_before, k->is_gone);
}

static void what_was_packed_comes_back(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of(DOCUMENTS);
	CLEANUP(buf_release) struct buf told = BUF(10000);
	struct resting rest = { 0 };
	char name[32];
	size_t len;
	CLEANUP(text_release) char *bytes = pack(l, &len);

	(void)state;
	assert_int_equal(annex_unpack(bytes, len, l, MARK, &rest, write_down, &told), 0);
	assert_string_equal(buf_text(&told), "77:mine.pdf:id-1:5:6:0:10 78:gone.pdf:elsewhere:-1:0:9:01 ");
	for (int i = 0; i < DOCUMENTS; i++) {
		(void)snprintf(name, sizeof(name), "%d.pdf", i);
		assert_int_equal(resting_has(&rest, i), i % 3 == 0);
		assert_int_equal(resting_find_name(&rest, name), i % 3 ? -1 : i);
		assert_int_equal(resting_find_ino(&rest, 5000 + (uint64_t)i), i % 3 ? -1 : i);
		if (i % 3 == 0)
			assert_true(resting_get(&rest, i).is_saved && resting_get(&rest, i).lookups == 0);
	}
	resting_release(&rest);
}

static void of_another_mark_or_another_listing_it_is_of_no_use(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of(DOCUMENTS), *fewer = listing_of(DOCUMENTS - 1);
	CLEANUP(buf_release) struct buf told = BUF(10000);
	struct resting rest = { 0 };
	size_t len;
	CLEANUP(text_release) char *bytes = pack(l, &len);

	(void)state;
	assert_int_equal(annex_unpack(bytes, len, l, MARK + 1, &rest, write_down, &told), -ESTALE);
	assert_int_equal(annex_unpack(bytes, len, fewer, MARK, &rest, write_down, &told), -EBADMSG);
	assert_int_equal(told.len, 0);
	assert_null(rest.of);
}

static void no_damage_is_believed(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of(40);
	CLEANUP(buf_release) struct buf told = BUF(10000);
	struct resting rest = { 0 };
	size_t len;
	CLEANUP(text_release) char *bytes = pack(l, &len);

	(void)state;
	for (size_t i = 0; i < len; i++) {
		bytes[i] ^= 0x10;
		assert_true(annex_unpack(bytes, len, l, MARK, &rest, write_down, &told) < 0);
		bytes[i] ^= 0x10;
		CLEANUP(text_release) char *cut = malloc(i + 1); /* so that a step beyond its end is seen */
		memcpy(cut, bytes, i);
		assert_true(annex_unpack(cut, i, l, MARK, &rest, write_down, &told) < 0);
	}
	assert_int_equal(told.len, 0);
	assert_null(rest.of);
}

static void a_folder_that_shows_nothing_has_one_too(void **state)
{
	CLEANUP(listing_release) struct listing *l = listing_of(0);
	CLEANUP(buf_release) struct buf told = BUF(10000);
	struct resting rest;
	void *bytes;
	size_t len;

	(void)state;
	assert_int_equal(resting_begin(&rest, l), 0);
	assert_int_equal(annex_pack(&rest, NULL, 0, MARK, &bytes, &len), 0);
	resting_release(&rest);
	assert_int_equal(annex_unpack(bytes, len, l, MARK, &rest, write_down, &told), 0);
	assert_int_equal(told.len, 0);
	assert_int_equal(resting_find_name(&rest, "a.pdf"), -1);
	resting_release(&rest);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_packed_comes_back),
		cmocka_unit_test(of_another_mark_or_another_listing_it_is_of_no_use),
		cmocka_unit_test(no_damage_is_believed),
		cmocka_unit_test(a_folder_that_shows_nothing_has_one_too),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
