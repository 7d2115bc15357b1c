/* The set of pointers, against a plain array that says what should be in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "client/base/cleanup.h"
#include "client/base/index.h"

#define ITEMS 3000

struct item {
	uint32_t number;
	bool is_in;
};

static uint64_t hash_of(uint32_t number)
{
	return index_hash_number(number);
}

static uint64_t hash_well(const void *item)
{
	return hash_of(((const struct item *)item)->number);
}

/* Eight homes for all, the last one near the end: long runs, also over the end, which removing has to mend. */
static uint64_t hash_badly(const void *item)
{
	return (uint64_t)(((const struct item *)item)->number % 8) * (UINT64_MAX / 7);
}

static bool is_number(const void *item, const void *key)
{
	return ((const struct item *)item)->number == *(const uint32_t *)key;
}

static void check_all(const struct index *ix, const struct item *items, int count)
{
	size_t in = 0, walked = 0, at = 0;

	for (int i = 0; i < count; i++) {
		const struct item *found = index_find(ix, ix->hash(&items[i]), is_number, &items[i].number);
		assert_ptr_equal(found, items[i].is_in ? &items[i] : NULL);
		in += items[i].is_in;
	}
	for (const struct item *item; (item = index_next(ix, &at)); walked++)
		assert_true(item->is_in);
	assert_int_equal(walked, in);
	assert_int_equal(ix->used, in);
}

static void put_and_remove_at_random(uint64_t (*hash)(const void *item), int count, int turns)
{
	CLEANUP(index_release) struct index ix = INDEX(hash);
	static struct item items[ITEMS];
	uint64_t random = 12345;

	for (int i = 0; i < count; i++)
		items[i] = (struct item){ .number = (uint32_t)i };
	for (int turn = 0; turn < turns; turn++) {
		random = index_hash_number(random);
		struct item *item = &items[random % (uint64_t)count];
		if (item->is_in)
			index_remove(&ix, item);
		else
			assert_int_equal(index_put(&ix, item), 0);
		item->is_in = !item->is_in;
		if (turn % (turns / 10) == 0)
			check_all(&ix, items, count);
	}
	check_all(&ix, items, count);
}

static void what_was_put_is_found_and_what_was_removed_is_not(void **state)
{
	(void)state;
	put_and_remove_at_random(hash_well, ITEMS, 40000);
}

static void colliding_items_are_told_apart_and_survive_each_others_removal(void **state)
{
	(void)state;
	put_and_remove_at_random(hash_badly, 200, 20000);
}

static void a_set_that_was_large_gives_its_room_back(void **state)
{
	CLEANUP(index_release) struct index ix = INDEX(hash_well);
	static struct item items[ITEMS];
	size_t most;

	(void)state;
	for (int i = 0; i < ITEMS; i++) {
		items[i] = (struct item){ .number = (uint32_t)i, .is_in = true };
		assert_int_equal(index_put(&ix, &items[i]), 0);
	}
	most = ix.room;
	for (int i = 10; i < ITEMS; i++) {
		items[i].is_in = false;
		index_remove(&ix, &items[i]);
	}
	assert_true(ix.room < most / 2);
	check_all(&ix, items, ITEMS);
}

static void an_empty_set_finds_and_removes_nothing(void **state)
{
	CLEANUP(index_release) struct index ix = INDEX(hash_well);
	struct item item = { .number = 1 };
	size_t at = 0;

	(void)state;
	assert_null(index_find(&ix, hash_well(&item), is_number, &item.number));
	index_remove(&ix, &item);
	assert_null(index_next(&ix, &at));
}

static void removing_takes_this_pointer_and_not_its_equal(void **state)
{
	CLEANUP(index_release) struct index ix = INDEX(hash_well);
	struct item a = { .number = 7 }, b = { .number = 7 };

	(void)state;
	assert_int_equal(index_put(&ix, &a), 0);
	index_remove(&ix, &b);
	assert_int_equal(ix.used, 1);
	assert_ptr_equal(index_find(&ix, hash_well(&b), is_number, &b.number), &a);
}

static void texts_that_differ_little_hash_apart(void **state)
{
	uint32_t homes[256] = { 0 };
	uint32_t most = 0;

	(void)state;
	for (int i = 0; i < 25600; i++) {
		char name[32];
		(void)snprintf(name, sizeof(name), "invoice_%05d.pdf", i);
		uint32_t n = ++homes[index_hash_text(name) & 255];
		most = n > most ? n : most;
	}
	assert_true(most < 200); /* 100 on average */
}

static void every_item_of_one_key_is_found_once(void **state)
{
	struct index ix = INDEX(hash_badly);
	static struct item items[400]; /* number: which of ten keys */
	int seen[10] = { 0 };

	(void)state;
	for (int i = 0; i < 400; i++) {
		items[i] = (struct item){ .number = (uint32_t)(i % 10) };
		assert_int_equal(index_put(&ix, &items[i]), 0);
	}
	for (uint32_t key = 0; key < 10; key++) {
		struct item probe = { .number = key }, *found;
		for (size_t way = 0; (found = index_find_next(&ix, hash_badly(&probe), is_number, &key, &way));) {
			assert_int_equal(found->number, key);
			assert_false(found->is_in);
			found->is_in = true;
			seen[key]++;
		}
		assert_int_equal(seen[key], 40);
	}
	uint32_t none = 77;
	size_t way = 0;
	assert_null(index_find_next(&ix, hash_badly(&items[0]), is_number, &none, &way));
	index_release(&ix);
	way = 0;
	assert_null(index_find_next(&ix, 1, is_number, &none, &way));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_put_is_found_and_what_was_removed_is_not),
		cmocka_unit_test(colliding_items_are_told_apart_and_survive_each_others_removal),
		cmocka_unit_test(a_set_that_was_large_gives_its_room_back),
		cmocka_unit_test(an_empty_set_finds_and_removes_nothing),
		cmocka_unit_test(removing_takes_this_pointer_and_not_its_equal),
		cmocka_unit_test(every_item_of_one_key_is_found_once),
		cmocka_unit_test(texts_that_differ_little_hash_apart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
