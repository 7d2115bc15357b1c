/* The set of numbers, against a plain array that says what should be in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "client/base/index.h"
#include "client/base/slots.h"

enum { NUMBERS = 3000 };

/* What numbers stand for: their key, and whether they are in the set. */
struct owner {
	uint32_t keys[NUMBERS];
	bool is_in[NUMBERS];
};

static uint64_t hash_well(const void *owner, uint32_t number)
{
	return index_hash_number(((const struct owner *)owner)->keys[number]);
}

/* Eight homes for all, the last one near the end: long runs, also over the end, which removing has to mend. */
static uint64_t hash_badly(const void *owner, uint32_t number)
{
	return (uint64_t)(((const struct owner *)owner)->keys[number] % 8) * (UINT64_MAX / 7);
}

static bool is_key(const void *owner, uint32_t number, const void *key)
{
	return ((const struct owner *)owner)->keys[number] == *(const uint32_t *)key;
}

static void check_all(const struct slots *s, const struct owner *o, slots_hash *hash, uint32_t count)
{
	uint32_t in = 0;

	for (uint32_t i = 0; i < count; i++) {
		int64_t found = slots_find(s, o, hash(o, i), is_key, &o->keys[i]);
		assert_int_equal(found, o->is_in[i] ? (int64_t)i : -1);
		in += o->is_in[i];
	}
	assert_int_equal(s->used, in);
	assert_true(slots_are_sound(s, count));
}

static void put_and_remove_at_random(slots_hash *hash, uint32_t count, int turns)
{
	static struct owner o;
	struct slots s = { 0 };
	uint64_t random = 12345;

	o = (struct owner){ 0 };
	for (uint32_t i = 0; i < count; i++)
		o.keys[i] = i * 7;
	for (int turn = 0; turn < turns; turn++) {
		random = index_hash_number(random);
		uint32_t number = (uint32_t)(random % count);
		if (o.is_in[number])
			slots_remove(&s, &o, hash, number);
		else
			assert_int_equal(slots_put(&s, &o, hash, number), 0);
		o.is_in[number] = !o.is_in[number];
		if (turn % (turns / 10) == 0)
			check_all(&s, &o, hash, count);
	}
	check_all(&s, &o, hash, count);
	slots_release(&s);
}

static void what_was_put_is_found_and_what_was_removed_is_not(void **state)
{
	(void)state;
	put_and_remove_at_random(hash_well, NUMBERS, 40000);
}

static void colliding_numbers_are_told_apart_and_survive_each_others_removal(void **state)
{
	(void)state;
	put_and_remove_at_random(hash_badly, 200, 20000);
}

static void an_empty_set_finds_and_removes_nothing(void **state)
{
	static const struct owner o;
	struct slots s = { 0 };

	(void)state;
	assert_int_equal(slots_find(&s, &o, hash_well(&o, 0), is_key, &o.keys[0]), -1);
	slots_remove(&s, &o, hash_well, 0);
	assert_true(slots_are_sound(&s, 0));
}

static void a_set_made_for_so_many_does_not_grow(void **state)
{
	static struct owner o;
	struct slots s = { 0 };

	(void)state;
	assert_int_equal(slots_new(slots_room_for(NUMBERS), &s), 0);
	const uint32_t *at = s.at;
	for (uint32_t i = 0; i < NUMBERS; i++) {
		o.keys[i] = i;
		assert_int_equal(slots_put(&s, &o, hash_well, i), 0);
	}
	assert_ptr_equal(s.at, at);
	slots_release(&s);
}

static void a_copy_is_a_set_of_its_own(void **state)
{
	static struct owner o;
	struct slots s = { 0 }, copy = { 0 };

	(void)state;
	for (uint32_t i = 0; i < 100; i++) {
		o.keys[i] = i;
		o.is_in[i] = true;
		assert_int_equal(slots_put(&s, &o, hash_well, i), 0);
	}
	assert_int_equal(slots_copy(&s, &copy), 0);
	slots_remove(&s, &o, hash_well, 50);
	check_all(&copy, &o, hash_well, 100);
	slots_release(&s);
	check_all(&copy, &o, hash_well, 100);
	slots_release(&copy);
}

static void a_set_with_foreign_numbers_or_a_wrong_count_is_not_sound(void **state)
{
	static struct owner o;
	struct slots s = { 0 };

	(void)state;
	for (uint32_t i = 0; i < 10; i++) {
		o.keys[i] = i;
		assert_int_equal(slots_put(&s, &o, hash_well, i), 0);
	}
	assert_true(slots_are_sound(&s, 10));
	assert_false(slots_are_sound(&s, 9));
	s.used--;
	assert_false(slots_are_sound(&s, 10));
	slots_release(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_put_is_found_and_what_was_removed_is_not),
		cmocka_unit_test(colliding_numbers_are_told_apart_and_survive_each_others_removal),
		cmocka_unit_test(an_empty_set_finds_and_removes_nothing),
		cmocka_unit_test(a_set_made_for_so_many_does_not_grow),
		cmocka_unit_test(a_copy_is_a_set_of_its_own),
		cmocka_unit_test(a_set_with_foreign_numbers_or_a_wrong_count_is_not_sound),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
