/* Nodes: how long they live, which names find them, and what a reader of a folder sees. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/node.h"

#define FOLDER_INO 2000
#define FIRST_INO 3000

static int setup(void **state)
{
	static struct tree t;
	tree_init(&t);
	*state = &t;
	return 0;
}

static int teardown(void **state)
{
	tree_release(*state);
	return 0;
}

static struct folder *add_folder(struct tree *t, uint64_t ino, const char *name)
{
	struct session s = { .id = (char *)name, .name = (char *)name, .created_ms = -1, .updated_ms = -1 };
	struct folder *f = tree_add_folder(t, FOLDER_SESSION, ino, &s, name, ORIGIN_ADDED);
	assert_non_null(f);
	return f;
}

static struct entry *add(struct tree *t, struct folder *f, uint64_t ino, const char *name)
{
	struct entry *e = folder_add_entry(t, f, ino, name);
	assert_non_null(e);
	return e;
}

/* ---- lives ------------------------------------------------------------------------------------------------- */

static void a_node_lives_while_its_folder_the_kernel_or_one_of_ours_has_it(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry *e = add(t, f, FIRST_INO, "a.pdf");

	assert_ptr_equal(tree_find(t, FIRST_INO), &e->node);
	e->node.lookups = 2;
	node_hold(&e->node);
	folder_hide_entry(t, e, false);
	assert_null(folder_find(t, f, "a.pdf"));
	tree_forget(t, FIRST_INO, 1);
	node_drop(t, &e->node);
	assert_ptr_equal(tree_find(t, FIRST_INO), &e->node);
	tree_forget(t, FIRST_INO, 1);
	assert_null(tree_find(t, FIRST_INO));
}

static void the_kernel_forgets_no_more_than_it_knows_and_never_what_is_shown(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry *e = add(t, f, FIRST_INO, "a.pdf");

	e->node.lookups = 1;
	tree_forget(t, FIRST_INO, 1000);
	assert_int_equal(e->node.lookups, 0);
	assert_ptr_equal(folder_find(t, f, "a.pdf"), e);
	tree_forget(t, INO_ROOT, 1);
	tree_forget(t, INO_CONTROL, 1);
	tree_forget(t, 99999, 1);
	assert_ptr_equal(tree_find(t, INO_ROOT), &t->root);
}

static void a_refused_name_finds_its_copy_and_counts_no_lookup(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry *e = add(t, f, FIRST_INO, "a.pdf");

	e->node.lookups = 1;
	assert_ptr_equal(tree_find(t, FIRST_INO | INO_REFUSED_BIT), &e->node);
	tree_forget(t, FIRST_INO | INO_REFUSED_BIT, 1);
	assert_int_equal(e->node.lookups, 1);
}

static void an_entry_never_outlives_its_folder(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry *open = add(t, f, FIRST_INO, "open.pdf"), *known = add(t, f, FIRST_INO + 1, "known.pdf");

	(void)add(t, f, FIRST_INO + 2, "other.pdf");
	node_hold(&open->node);
	known->node.lookups = 1;
	tree_hide_folder(t, f);
	assert_int_equal(t->folder_count, 0);
	assert_null(tree_find_folder(t, "Q1"));
	assert_null(tree_find(t, FIRST_INO + 2));
	assert_ptr_equal(open->folder, f);
	assert_string_equal(open->folder->name, "Q1");
	node_drop(t, &open->node);
	assert_ptr_equal(tree_find(t, FOLDER_INO), &f->node);
	tree_forget(t, FIRST_INO + 1, 1);
	assert_null(tree_find(t, FOLDER_INO));
}

static void a_folder_the_kernel_still_knows_comes_back_as_the_same_one_and_empty(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");

	(void)add(t, f, FIRST_INO, "a.pdf");
	f->node.lookups = 1;
	tree_hide_folder(t, f);
	assert_ptr_equal(add_folder(t, FOLDER_INO, "Q1"), f);
	assert_int_equal(f->shown_count, 0);
	assert_null(folder_find(t, f, "a.pdf"));
	assert_int_equal(f->node.lookups, 1);
	assert_int_equal(t->folder_count, 1);
	assert_ptr_equal(tree_find_folder_named(t, "Q1"), f);
}

static void a_link_goes_when_the_kernel_forgets_it(void **state)
{
	struct tree *t = *state;
	struct link *l = tree_add_link(t, FIRST_INO, "Q1 2024");

	assert_non_null(l);
	l->node.lookups = 1;
	assert_string_equal(l->target, "Q1 2024");
	tree_forget(t, FIRST_INO, 1);
	assert_null(tree_find(t, FIRST_INO));
}

static void of_a_thousand_folders_each_is_found_by_its_id_and_its_name_of_now(void **state)
{
	struct tree *t = *state;
	struct folder *all[1000];
	char text[32];

	for (int i = 0; i < 1000; i++) {
		(void)snprintf(text, sizeof(text), "session %d", i);
		all[i] = add_folder(t, (uint64_t)(5000 + i), text);
	}
	for (int i = 0; i < 1000; i += 3)
		tree_hide_folder(t, all[i]); /* nobody else has it: it is gone */
	for (int i = 1; i < 1000; i += 3) {
		(void)snprintf(text, sizeof(text), "renamed %d", i);
		free(tree_rename_folder(t, all[i], strdup(text)));
	}
	int count = 0, last = -1;
	for (struct folder *f = t->first_folder; f; f = f->next_shown, count++) {
		int i = (int)(f->node.ino - 5000);
		assert_true(i > last); /* in the order they came */
		last = i;
	}
	assert_int_equal(count, t->folder_count);
	assert_int_equal(count, 666);
	for (int i = 0; i < 1000; i++) {
		struct folder *wanted = i % 3 ? all[i] : NULL;
		(void)snprintf(text, sizeof(text), "session %d", i);
		assert_ptr_equal(tree_find_folder(t, text), wanted);
		assert_ptr_equal(tree_find_folder_named(t, text), i % 3 == 2 ? wanted : NULL);
		(void)snprintf(text, sizeof(text), "renamed %d", i);
		assert_ptr_equal(tree_find_folder_named(t, text), i % 3 == 1 ? wanted : NULL);
	}
	tree_hide_folder(t, all[998]);
	struct folder *added = add_folder(t, 9000, "last");
	assert_ptr_equal(tree_find_folder(t, "last"), added);
}

static void entries_with_names_of_every_length_come_and_go(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	char name[300];

	for (int i = 0; i < 3000; i++) { /* names of every length, and each gone again but the last hundred */
		(void)snprintf(name, sizeof(name), "%0*d", 1 + i % 255, i);
		struct entry *e = add(t, f, FIRST_INO + (uint64_t)i, name);
		assert_string_equal(e->name, name);
		assert_null(e->local);
		assert_int_equal(e->past->mtime_ns, -1);
		if (i % 2)
			entry_past(e)->mtime_ns = i;
		if (i % 5 == 0) {
			(void)snprintf(name, sizeof(name), "another %d", i);
			assert_int_equal(folder_rename_entry(t, e, f, name), 0);
		}
		if (i < 2900)
			folder_hide_entry(t, e, false);
	}
	for (int i = 2900; i < 3000; i++) {
		if (i % 5)
			(void)snprintf(name, sizeof(name), "%0*d", 1 + i % 255, i);
		else
			(void)snprintf(name, sizeof(name), "another %d", i);
		struct entry *e = folder_find(t, f, name);
		assert_non_null(e);
		assert_int_equal(e->past->mtime_ns, i % 2 ? i : -1);
	}
	assert_int_equal(f->shown_count, 100);
}

/* ---- names ------------------------------------------------------------------------------------------------- */

static void a_name_that_is_kept_is_not_shown_and_comes_back_with_its_entry(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry *e = add(t, f, FIRST_INO, "a.pdf");
	uint64_t shape = f->shape;

	folder_hide_entry(t, e, true);
	assert_null(folder_find(t, f, "a.pdf"));
	assert_ptr_equal(folder_find_hidden(f, "a.pdf"), e);
	assert_int_equal(f->shown_count, 0);
	assert_true(f->shape > shape);
	assert_int_equal(folder_show_entry(t, e), 0);
	assert_ptr_equal(folder_find(t, f, "a.pdf"), e);
	assert_null(folder_find_hidden(f, "a.pdf"));
	assert_int_equal(f->shown_count, 1);
}

static void a_new_file_takes_a_kept_name_over(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry *gone = folder_add_hidden_entry(t, f, FIRST_INO, "a.pdf", "d1");

	assert_non_null(gone);
	assert_ptr_equal(folder_find_document(t, f, "d1"), gone);
	assert_int_equal(folder_count_names(f, "d1"), 0);
	struct entry *e = add(t, f, FIRST_INO + 1, "a.pdf");
	assert_ptr_equal(folder_find(t, f, "a.pdf"), e);
	assert_null(folder_find_hidden(f, "a.pdf"));
	assert_null(folder_find_document(t, f, "d1"));
	assert_null(tree_find(t, FIRST_INO));
}

static void a_renamed_entry_is_found_under_its_new_name_alone_and_its_old_folder_can_go(void **state)
{
	struct tree *t = *state;
	struct folder *from = add_folder(t, FOLDER_INO, "Q1"), *to = add_folder(t, FOLDER_INO + 1, "Q2");
	struct entry *e = add(t, from, FIRST_INO, "a.pdf");
	struct entry *kept = folder_add_hidden_entry(t, to, FIRST_INO + 1, "b.pdf", "d1");

	assert_non_null(kept);
	assert_int_equal(folder_rename_entry(t, e, to, "b.pdf"), 0);
	assert_null(folder_find(t, from, "a.pdf"));
	assert_null(folder_find_hidden(to, "b.pdf"));
	assert_ptr_equal(folder_find(t, to, "b.pdf"), e);
	assert_int_equal(from->shown_count, 0);
	assert_int_equal(to->shown_count, 1);
	tree_hide_folder(t, from);
	assert_null(tree_find(t, FOLDER_INO));
	assert_ptr_equal(e->folder, to);
	assert_int_equal(e->node.ino, FIRST_INO);
}

static void an_entry_says_what_it_stands_for(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry *local = add(t, f, FIRST_INO, "a.pdf"), *gone = folder_add_hidden_entry(t, f, FIRST_INO + 1, "b.pdf", "d1");
	struct document d;

	local->local = local_new();
	assert_non_null(local->local);
	assert_true(entry_is_local(local));
	assert_null(entry_document_id(local));
	assert_false(entry_document(local, &d));
	assert_null(d.id);
	assert_non_null(gone);
	assert_false(entry_is_local(gone));
	assert_string_equal(entry_document_id(gone), "d1");
	assert_false(entry_document(gone, &d));
	assert_string_equal(d.id, "d1");
	assert_int_equal(d.size_bytes, -1);
}

/* ---- snapshots --------------------------------------------------------------------------------------------- */

static bool has(const struct snapshot *s, const struct entry *e)
{
	for (int i = 0; i < s->count; i++)
		if (s->inos[i] == e->node.ino)
			return true;
	return false;
}

static void a_snapshot_keeps_its_names_and_its_order_whatever_happens_to_the_folder(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry_view room;
	uint64_t before[100];
	char name[32];

	for (int i = 0; i < 100; i++) {
		(void)snprintf(name, sizeof(name), "%d.pdf", i);
		(void)add(t, f, FIRST_INO + (uint64_t)i, name);
	}
	struct snapshot *s = folder_snapshot(f, false);
	assert_int_equal(s->count, 100);
	assert_ptr_equal(folder_snapshot(f, false), s); /* nothing changed: the same for the next reader */
	snapshot_drop(s);
	memcpy(before, s->inos, sizeof(before));
	struct entry *fresh = add(t, f, FIRST_INO + 100, "new.pdf");
	for (int i = 0; i < 100; i += 2) {
		(void)snprintf(name, sizeof(name), "%d.pdf", i);
		folder_hide_entry(t, folder_find(t, f, name), false);
	}
	assert_int_equal(s->count, 100);
	assert_memory_equal(s->inos, before, sizeof(before));
	assert_null(snapshot_look(t, s, f, 0, &room));
	assert_string_equal(snapshot_look(t, s, f, 1, &room)->name, "1.pdf");
	struct snapshot *next = folder_snapshot(f, false);
	assert_ptr_not_equal(next, s);
	assert_int_equal(next->count, 51);
	assert_true(has(next, fresh));
	assert_null(tree_find(t, FIRST_INO)); /* a reader holds no names */
	snapshot_drop(s);
	snapshot_drop(next);
}

static void a_growing_snapshot_has_each_name_once_as_it_comes(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct entry *first = add(t, f, FIRST_INO, "a.pdf");
	struct snapshot *s = folder_snapshot(f, true);

	assert_int_equal(s->count, 1);
	assert_int_equal(s->inos[0], first->node.ino);
	struct entry *second = add(t, f, FIRST_INO + 1, "b.pdf");
	assert_int_equal(s->count, 2);
	assert_int_equal(s->inos[1], second->node.ino);
	folder_hide_entry(t, second, true);
	assert_int_equal(folder_show_entry(t, second), 0);
	assert_int_equal(s->count, 2);
	assert_ptr_equal(folder_snapshot(f, true), s);
	snapshot_drop(s);
	snapshot_drop(s);
}

/* A walk that failed left one; the readers of the next walk would see nothing of it. */
static void a_snapshot_of_before_the_walk_gives_way_to_one_that_grows(void **state)
{
	struct tree *t = *state;
	struct folder *f = add_folder(t, FOLDER_INO, "Q1");
	struct snapshot *old = folder_snapshot(f, false), *growing = folder_snapshot(f, true);

	assert_ptr_not_equal(old, growing);
	struct entry *e = add(t, f, FIRST_INO, "a.pdf");
	assert_int_equal(old->count, 0);
	assert_true(has(growing, e));
	snapshot_drop(old);
	snapshot_drop(growing);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_node_lives_while_its_folder_the_kernel_or_one_of_ours_has_it, setup, teardown),
		cmocka_unit_test_setup_teardown(the_kernel_forgets_no_more_than_it_knows_and_never_what_is_shown, setup, teardown),
		cmocka_unit_test_setup_teardown(a_refused_name_finds_its_copy_and_counts_no_lookup, setup, teardown),
		cmocka_unit_test_setup_teardown(an_entry_never_outlives_its_folder, setup, teardown),
		cmocka_unit_test_setup_teardown(a_folder_the_kernel_still_knows_comes_back_as_the_same_one_and_empty, setup, teardown),
		cmocka_unit_test_setup_teardown(a_link_goes_when_the_kernel_forgets_it, setup, teardown),
		cmocka_unit_test_setup_teardown(of_a_thousand_folders_each_is_found_by_its_id_and_its_name_of_now, setup, teardown),
		cmocka_unit_test_setup_teardown(entries_with_names_of_every_length_come_and_go, setup, teardown),
		cmocka_unit_test_setup_teardown(a_name_that_is_kept_is_not_shown_and_comes_back_with_its_entry, setup, teardown),
		cmocka_unit_test_setup_teardown(a_new_file_takes_a_kept_name_over, setup, teardown),
		cmocka_unit_test_setup_teardown(a_renamed_entry_is_found_under_its_new_name_alone_and_its_old_folder_can_go, setup, teardown),
		cmocka_unit_test_setup_teardown(an_entry_says_what_it_stands_for, setup, teardown),
		cmocka_unit_test_setup_teardown(a_snapshot_keeps_its_names_and_its_order_whatever_happens_to_the_folder, setup, teardown),
		cmocka_unit_test_setup_teardown(a_growing_snapshot_has_each_name_once_as_it_comes, setup, teardown),
		cmocka_unit_test_setup_teardown(a_snapshot_of_before_the_walk_gives_way_to_one_that_grows, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
