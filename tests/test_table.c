/* The table: expiry, bounds, and that each value ends exactly once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cache/table.h"

static int values_alive;

static char *value(const char *text)
{
	char *copy = strdup(text);

	assert_non_null(copy);
	values_alive++;
	return copy;
}

static void value_free(void *v)
{
	values_alive--;
	free(v);
}

static void put(struct table *t, const char *key, const char *text, size_t bytes, int64_t expires_ms)
{
	assert_int_equal(table_put(t, key, value(text), bytes, expires_ms), 0);
}

static void assert_has(struct table *t, const char *key, const char *text)
{
	const char *found = table_find(t, key);

	if (text)
		assert_string_equal(found, text);
	else
		assert_null(found);
}

static void a_value_is_found_until_it_expires(void **state)
{
	struct table *t = table_new(10, 1000, value_free);

	(void)state;
	put(t, "a", "1", 0, 100);
	assert_string_equal(table_get(t, "a", 99), "1");
	assert_null(table_get(t, "a", 100));
	assert_has(t, "a", "1");
	assert_null(table_get(t, "b", 0));
	table_free(t);
	assert_int_equal(values_alive, 0);
}

static void putting_again_replaces_value_bytes_and_expiry(void **state)
{
	struct table *t = table_new(10, 1000, value_free);

	(void)state;
	put(t, "a", "1", 400, 100);
	put(t, "a", "2", 10, 200);
	assert_int_equal(values_alive, 1);
	assert_int_equal(table_count(t), 1);
	assert_int_equal(table_bytes(t), 10);
	assert_string_equal(table_get(t, "a", 150), "2");
	table_free(t);
	assert_int_equal(values_alive, 0);
}

static void the_least_lately_used_goes_first(void **state)
{
	struct table *t = table_new(3, 1000, value_free);

	(void)state;
	put(t, "a", "1", 0, 100);
	put(t, "b", "2", 0, 100);
	put(t, "c", "3", 0, 100);
	assert_non_null(table_get(t, "a", 0));
	assert_non_null(table_find(t, "b")); /* which is no use */
	put(t, "d", "4", 0, 100);
	assert_has(t, "b", NULL);
	assert_has(t, "a", "1");
	put(t, "c", "5", 0, 100);
	put(t, "e", "6", 0, 100);
	assert_has(t, "a", NULL);
	assert_has(t, "c", "5");
	assert_int_equal(values_alive, 3);
	table_free(t);
}

static void the_bound_in_bytes_holds_but_the_newest_stays(void **state)
{
	struct table *t = table_new(10, 100, value_free);

	(void)state;
	put(t, "a", "1", 60, 100);
	put(t, "b", "2", 40, 100);
	assert_int_equal(table_count(t), 2);
	put(t, "c", "3", 1, 100);
	assert_has(t, "a", NULL);
	assert_int_equal(table_bytes(t), 41);
	put(t, "d", "4", 500, 100);
	assert_int_equal(table_count(t), 1);
	assert_has(t, "d", "4");
	put(t, "e", "5", 10, 100);
	assert_has(t, "d", NULL);
	assert_has(t, "e", "5");
	table_free(t);
	assert_int_equal(values_alive, 0);
}

static void removing_ends_the_value_and_only_that_one(void **state)
{
	struct table *t = table_new(10, 100, value_free);

	(void)state;
	put(t, "a", "1", 10, 100);
	put(t, "b", "2", 10, 100);
	put(t, "c", "3", 10, 100);
	table_remove(t, "b");
	table_remove(t, "b");
	table_remove(t, "x");
	assert_int_equal(values_alive, 2);
	assert_int_equal(table_bytes(t), 20);
	assert_true(table_drop_oldest(t));
	assert_has(t, "a", NULL);
	assert_has(t, "c", "3");
	table_clear(t);
	assert_int_equal(values_alive, 0);
	assert_int_equal(table_bytes(t), 0);
	assert_false(table_drop_oldest(t));
	put(t, "a", "1", 10, 100);
	assert_has(t, "a", "1");
	table_free(t);
	table_free(NULL);
}

static void many_keys_keep_their_values(void **state)
{
	struct table *t = table_new(2000, SIZE_MAX, value_free);

	(void)state;
	for (int i = 0; i < 5000; i++) {
		char key[16];
		(void)snprintf(key, sizeof(key), "%d", i);
		put(t, key, key, 1, 100);
	}
	assert_int_equal(table_count(t), 2000);
	for (int i = 0; i < 5000; i++) {
		char key[16];
		(void)snprintf(key, sizeof(key), "%d", i);
		assert_has(t, key, i < 3000 ? NULL : key);
	}
	table_free(t);
	assert_int_equal(values_alive, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_value_is_found_until_it_expires),
		cmocka_unit_test(putting_again_replaces_value_bytes_and_expiry),
		cmocka_unit_test(the_least_lately_used_goes_first),
		cmocka_unit_test(the_bound_in_bytes_holds_but_the_newest_stays),
		cmocka_unit_test(removing_ends_the_value_and_only_that_one),
		cmocka_unit_test(many_keys_keep_their_values),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
