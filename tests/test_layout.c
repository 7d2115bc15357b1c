/* The names a folder shows: one for each document, unlike any other, and the same for ever. */
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
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "fs/layout.h"

#define FOLDER_INO 2000
#define CROWD 3000
#define CROWD_MS_MAX 20000 /* under a sanitizer; what is quadratic in names takes minutes */
#define IDS 40
#define ROUNDS 300

struct ground {
	struct tree tree;
	struct folder *folder;
	uint64_t ino;      /* the last one handed out */
	int64_t asked_ms;  /* of the next listing */
	bool settles;      /* what may go to rest does so after each listing */
};

static int setup_awake(void **state)
{
	static struct ground g;
	struct session s = { .id = (char *)"s1", .name = (char *)"Q1", .created_ms = -1, .updated_ms = -1 };

	g = (struct ground){ .ino = 3000, .asked_ms = 1000 };
	tree_init(&g.tree);
	g.folder = tree_add_folder(&g.tree, FOLDER_SESSION, FOLDER_INO, &s, "Q1", ORIGIN_ADDED);
	*state = &g;
	return g.folder ? 0 : -1;
}

static int setup(void **state)
{
	int r = setup_awake(state);

	((struct ground *)*state)->settles = true;
	return r;
}

static void settle(struct ground *g)
{
	bool is_more = g->settles;

	while (is_more)
		is_more = tree_settle(&g->tree);
}

/* How many shown names there are, awake and at rest. */
static int count_names(const struct ground *g)
{
	return (int)(g->folder->names.used + g->folder->at_rest.names.used);
}

static int teardown(void **state)
{
	struct ground *g = *state;
	/* Not only the tree's end: what is taken off is freed by itself. */
	tree_hide_folder(&g->tree, g->folder);
	assert_int_equal(g->tree.nodes.used, 0);
	tree_release(&g->tree);
	return 0;
}

static uint64_t next_ino(void *arg)
{
	struct ground *g = arg;
	return ++g->ino;
}

static uint64_t no_ino(void *arg)
{
	(void)arg;
	return 0;
}

/* ---- listings ---------------------------------------------------------------------------------------------- */

static struct listing_builder *begin(void)
{
	struct listing_builder *b = listing_builder_new(NULL);
	assert_non_null(b);
	return b;
}

static void put(struct listing_builder *b, const char *id, const char *title, int64_t created_ms, int64_t size_bytes, const char *sha256)
{
	struct document d = { .id = id, .filename = title, .status = "uploaded", .state = STATE_STORED, .sha256 = sha256,
			      .size_bytes = size_bytes, .created_ms = created_ms, .pages = -1, .parsing.updated_ms = -1 };
	assert_int_equal(listing_builder_add(b, &d, NULL), 0);
}

static struct listing *finish(struct ground *g, struct listing_builder *b)
{
	struct listing *l;
	assert_int_equal(listing_builder_finish(b, g->asked_ms++, 1000, &l), 0);
	return l;
}

/* Shows a listing, whose reference it takes; returns how many names appeared, and *ret_left how many went (may be NULL). */
static int apply(struct ground *g, struct listing *l, int *ret_left)
{
	struct layout_change c = { 0 };

	assert_int_equal(layout_apply(&g->tree, g->folder, l, next_ino, g, &c), 0);
	int appeared = c.appeared_count;
	if (ret_left)
		*ret_left = c.left_count;
	layout_release(&g->tree, &c);
	listing_unref(l);
	settle(g);
	return appeared;
}

static int apply_page(struct ground *g, struct listing *l)
{
	struct layout_change c = { 0 };

	assert_int_equal(layout_apply_page(&g->tree, g->folder, l, next_ino, g, &c), 0);
	int appeared = c.appeared_count;
	layout_release(&g->tree, &c);
	listing_unref(l);
	return appeared;
}

/* A listing of documents told as "id=title" in the order of their age, with titles that hold no '='. */
static struct listing *listing_of(struct ground *g, const char *const *texts)
{
	struct listing_builder *b = begin();
	for (int i = 0; texts[i]; i++) {
		const char *sign = strchr(texts[i], '=');
		CLEANUP(text_release) char *id = strndup(texts[i], (size_t)(sign - texts[i]));
		put(b, id, sign + 1, i + 1, 10, NULL);
	}
	return finish(g, b);
}
#define LISTING(...) listing_of(g, (const char *const[]){ __VA_ARGS__, NULL })

static struct entry *of(struct ground *g, const char *id)
{
	for (struct entry *e = folder_find_document(&g->tree, g->folder, id); e; e = e->same)
		if (e->is_shown)
			return e;
	return NULL;
}

static void check_name(struct ground *g, const char *id, const char *name)
{
	struct entry *e = of(g, id);
	assert_non_null(e);
	assert_string_equal(e->name, name);
	assert_ptr_equal(folder_find(&g->tree, g->folder, name), e);
}

static struct entry *add_local(struct ground *g, const char *name)
{
	struct entry *e = folder_add_entry(&g->tree, g->folder, next_ino(g), name);
	assert_non_null(e);
	e->local = local_new();
	assert_non_null(e->local);
	g->folder->local_count++;
	return e;
}

/* ---- names ------------------------------------------------------------------------------------------------- */

static void a_document_is_shown_under_its_title_made_safe(void **state)
{
	struct ground *g = *state;

	assert_int_equal(apply(g, LISTING("d1=invoice.pdf", "d2=a/b.pdf", "d3=", "d4=.."), NULL), 4);
	check_name(g, "d1", "invoice.pdf");
	check_name(g, "d2", "a_b.pdf");
	check_name(g, "d3", "unnamed");
	assert_int_equal(g->folder->shown_count, 4);
	assert_null(folder_find(&g->tree, g->folder, ".."));
}

static void of_two_equal_titles_the_older_keeps_the_plain_one_and_the_other_gets_a_part_of_its_id(void **state)
{
	struct ground *g = *state;
	struct listing_builder *b = begin();

	put(b, "aaaa-1111", "invoice.pdf", 200, 10, NULL);
	put(b, "bbbb-2222", "invoice.pdf", 100, 10, NULL);
	assert_int_equal(apply(g, finish(g, b), NULL), 2);
	check_name(g, "bbbb-2222", "invoice.pdf");
	check_name(g, "aaaa-1111", "invoice (1111).pdf");
}

static void a_name_once_shown_stays_when_an_older_document_of_that_title_comes(void **state)
{
	struct ground *g = *state;

	assert_int_equal(apply(g, LISTING("d2222=invoice.pdf"), NULL), 1);
	uint64_t ino = of(g, "d2222")->node.ino;
	assert_int_equal(apply(g, LISTING("d1111=invoice.pdf", "d2222=invoice.pdf"), NULL), 1);
	check_name(g, "d2222", "invoice.pdf");
	assert_int_equal(of(g, "d2222")->node.ino, ino);
	check_name(g, "d1111", "invoice (1111).pdf");
}

static void a_document_that_the_service_renames_keeps_the_name_it_has_here(void **state)
{
	struct ground *g = *state;

	assert_int_equal(apply(g, LISTING("d1=before.pdf"), NULL), 1);
	assert_int_equal(apply(g, LISTING("d1=after.pdf"), NULL), 0);
	check_name(g, "d1", "before.pdf");
}

static void ids_that_end_alike_are_told_apart_by_more_of_them(void **state)
{
	struct ground *g = *state;

	assert_int_equal(apply(g, LISTING("1-5555=a.pdf", "2-5555=a.pdf", "3-5555=a.pdf"), NULL), 3);
	check_name(g, "1-5555", "a.pdf");
	check_name(g, "2-5555", "a (5555).pdf");
	check_name(g, "3-5555", "a (35555).pdf");
}

static void a_name_that_a_file_has_down_to_the_whole_id_is_not_given_twice(void **state)
{
	struct ground *g = *state;
	struct entry *plain = add_local(g, "a.pdf"), *with_id = add_local(g, "a (7).pdf");

	assert_int_equal(apply(g, LISTING("7=a.pdf"), NULL), 1);
	assert_ptr_equal(folder_find(&g->tree, g->folder, "a.pdf"), plain);
	assert_ptr_equal(folder_find(&g->tree, g->folder, "a (7).pdf"), with_id);
	struct entry *e = of(g, "7");
	assert_non_null(e);
	assert_string_not_equal(e->name, "a.pdf");
	assert_string_not_equal(e->name, "a (7).pdf");
	assert_ptr_equal(folder_find(&g->tree, g->folder, e->name), e);
}

static void three_thousand_documents_of_one_title_have_three_thousand_names_for_good(void **state)
{
	struct ground *g = *state;
	static char *names[CROWD];
	char id[40];

	int64_t began_ms = clock_now_ms();
	for (int round = 0; round < 2; round++) {
		struct listing_builder *b = begin();
		for (int n = 0; n < CROWD; n++) {
			int i = round ? CROWD - 1 - n : n; /* the second time the other way round */
			(void)snprintf(id, sizeof(id), "%08x-0000-4000-8000-%012x", i * 2654435761U, i);
			put(b, id, "invoice.pdf", i, 10, NULL);
		}
		assert_int_equal(apply(g, finish(g, b), NULL), round ? 0 : CROWD);
		assert_int_equal(g->folder->shown_count, CROWD);
		assert_int_equal(count_names(g), CROWD);
		for (int i = 0; i < CROWD; i++) {
			(void)snprintf(id, sizeof(id), "%08x-0000-4000-8000-%012x", i * 2654435761U, i);
			struct entry *e = of(g, id);
			assert_non_null(e);
			assert_ptr_equal(folder_find(&g->tree, g->folder, e->name), e); /* nobody else's */
			assert_true(round == 0 || strcmp(e->name, names[i]) == 0);
			if (round == 0)
				names[i] = strdup(e->name);
		}
	}
	assert_true(clock_now_ms() - began_ms < CROWD_MS_MAX);
	for (int i = 0; i < CROWD; i++)
		free(names[i]);
}

/* ---- leaving and coming back ------------------------------------------------------------------------------- */

static void one_that_is_gone_and_back_has_its_name_and_its_inode_number_again(void **state)
{
	struct ground *g = *state;
	int left;

	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=b.pdf"), NULL), 2);
	uint64_t ino = of(g, "d1")->node.ino;
	assert_int_equal(apply(g, LISTING("d2=b.pdf"), &left), 0);
	assert_int_equal(left, 1);
	assert_null(folder_find(&g->tree, g->folder, "a.pdf"));
	assert_int_equal(g->folder->shown_count, 1);
	/* Nobody else has had the name meanwhile. */
	assert_int_equal(apply(g, LISTING("d2=b.pdf", "d3333=a.pdf"), NULL), 1);
	check_name(g, "d3333", "a (3333).pdf");
	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=b.pdf", "d3333=a.pdf"), NULL), 1);
	check_name(g, "d1", "a.pdf");
	assert_int_equal(of(g, "d1")->node.ino, ino);
}

static void one_whose_name_a_file_took_meanwhile_comes_back_under_another(void **state)
{
	struct ground *g = *state;

	assert_int_equal(apply(g, LISTING("d1111=a.pdf"), NULL), 1);
	assert_int_equal(apply(g, LISTING("d2222=b.pdf"), NULL), 1);
	struct entry *e = add_local(g, "a.pdf");
	assert_int_equal(apply(g, LISTING("d1111=a.pdf", "d2222=b.pdf"), NULL), 1);
	check_name(g, "d1111", "a (1111).pdf");
	assert_ptr_equal(folder_find(&g->tree, g->folder, "a.pdf"), e);
}

static void what_an_earlier_mount_showed_has_its_name_and_number_from_the_first_listing_on(void **state)
{
	struct ground *g = *state;

	assert_non_null(folder_add_hidden_entry(&g->tree, g->folder, 777777, "my name.pdf", "d1"));
	assert_non_null(folder_add_hidden_entry(&g->tree, g->folder, 777778, "document-2.pdf", "gone"));
	assert_int_equal(apply(g, LISTING("d1=document-1.pdf", "d2222=document-2.pdf"), NULL), 2);
	check_name(g, "d1", "my name.pdf");
	assert_int_equal(of(g, "d1")->node.ino, 777777);
	check_name(g, "d2222", "document-2 (2222).pdf"); /* the plain one is that of one that may come back */
}

static void a_document_with_two_names_shows_under_both_and_leaves_with_both(void **state)
{
	struct ground *g = *state;
	int left;

	assert_non_null(folder_add_hidden_entry(&g->tree, g->folder, 777777, "one.pdf", "d1"));
	assert_non_null(folder_add_hidden_entry(&g->tree, g->folder, 777778, "two.pdf", "d1"));
	assert_int_equal(apply(g, LISTING("d1=document-1.pdf"), NULL), 2);
	assert_int_equal(folder_count_names(g->folder, "d1"), 2);
	assert_non_null(folder_find(&g->tree, g->folder, "one.pdf"));
	assert_non_null(folder_find(&g->tree, g->folder, "two.pdf"));
	assert_int_equal(apply(g, LISTING("d2=other.pdf"), &left), 1);
	assert_int_equal(left, 2);
	assert_int_equal(folder_count_names(g->folder, "d1"), 0);
}

static void one_attached_here_after_the_listing_was_asked_for_stays(void **state)
{
	struct ground *g = *state;
	struct entry *e = folder_add_hidden_entry(&g->tree, g->folder, 777777, "new.pdf", "d9");
	int left;

	assert_non_null(e);
	assert_int_equal(folder_show_entry(&g->tree, e), 0);
	entry_past(e)->attached_ms = g->asked_ms + 1;
	assert_int_equal(apply(g, LISTING("d1=a.pdf"), &left), 1);
	assert_int_equal(left, 0);
	check_name(g, "d9", "new.pdf");
	g->asked_ms += 2;
	assert_int_equal(apply(g, LISTING("d1=a.pdf"), &left), 0);
	assert_int_equal(left, 1);
}

static void a_name_that_is_being_written_stays_when_the_document_it_wrote_first_leaves(void **state)
{
	struct ground *g = *state;
	int left;

	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=b.pdf"), NULL), 2);
	struct entry *e = of(g, "d1");
	e->local = local_new();
	assert_non_null(e->local);
	e->local->counted_out = e->local->is_dirty = true;
	assert_int_equal(apply(g, LISTING("d2=b.pdf"), &left), 0);
	assert_int_equal(left, 0);
	assert_ptr_equal(folder_find(&g->tree, g->folder, "a.pdf"), e);
}

static void what_was_withheld_is_shown_again_by_the_very_same_listing(void **state)
{
	struct ground *g = *state;
	struct listing *l = LISTING("d1=a.pdf", "d2222=b.pdf", "d3=c.pdf");

	assert_int_equal(apply(g, listing_ref(l), NULL), 3);
	for (int i = 1; i <= 3; i++)
		folder_hide_entry(&g->tree, of(g, i == 1 ? "d1" : i == 2 ? "d2222" : "d3"), true);
	assert_int_equal(g->folder->shown_count, 0);
	struct entry *e = add_local(g, "b.pdf"); /* whose name the folder had kept for a document of the listing */
	assert_int_equal(apply(g, l, NULL), 3);
	check_name(g, "d1", "a.pdf");
	check_name(g, "d3", "c.pdf");
	check_name(g, "d2222", "b (2222).pdf");
	assert_ptr_equal(folder_find(&g->tree, g->folder, "b.pdf"), e);
}

/* ---- files under way --------------------------------------------------------------------------------------- */

static void what_a_file_here_is_just_becoming_gets_no_second_name(void **state)
{
	struct ground *g = *state;
	static const char sha256[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
	struct entry *e = add_local(g, "mine.pdf");

	e->local->is_submitted = true;
	memcpy(e->local->sent_sha256, sha256, sizeof(sha256));
	for (int i = 0; i < 2; i++) {
		struct listing_builder *b = begin();
		put(b, "d1", "document-1.pdf", 1, 10, sha256);
		put(b, "d2", "document-2.pdf", 2, 10, NULL);
		struct listing *l = finish(g, b);
		assert_int_equal(i ? apply(g, l, NULL) : apply_page(g, l), i ? 0 : 1);
	}
	assert_null(of(g, "d1"));
	assert_true(g->folder->is_withheld);
	/* Nothing came of it: it was somebody else's. */
	e->local->is_submitted = false;
	struct listing_builder *b = begin();
	put(b, "d1", "document-1.pdf", 1, 10, sha256);
	put(b, "d2", "document-2.pdf", 2, 10, NULL);
	assert_int_equal(apply(g, finish(g, b), NULL), 1);
	check_name(g, "d1", "document-1.pdf");
}

/* ---- walks ------------------------------------------------------------------------------------------------- */

static void names_given_page_by_page_are_those_of_the_whole_listing(void **state)
{
	struct ground *g = *state;
	struct snapshot *s = folder_snapshot(g->folder, true);

	assert_int_equal(apply_page(g, LISTING("d1111=a.pdf", "d2222=a.pdf")), 2);
	assert_int_equal(s->count, 2);
	assert_int_equal(apply_page(g, LISTING("d2222=a.pdf", "d3333=b.pdf")), 1); /* pages may overlap */
	assert_int_equal(s->count, 3);
	uint64_t ino = of(g, "d2222")->node.ino;
	assert_int_equal(apply(g, LISTING("d1111=a.pdf", "d2222=a.pdf", "d3333=b.pdf"), NULL), 0);
	check_name(g, "d1111", "a.pdf");
	check_name(g, "d2222", "a (2222).pdf");
	assert_int_equal(of(g, "d2222")->node.ino, ino);
	assert_int_equal(s->count, 3);
	settle(g);
	assert_int_equal(g->folder->names.used, g->settles ? 1 : 3); /* the second a.pdf has a name of its own */
	s->is_growing = false; /* as the end of the walk does */
	snapshot_drop(s);
}

static void one_that_a_page_had_and_the_whole_has_not_leaves(void **state)
{
	struct ground *g = *state;
	int left;

	assert_int_equal(apply_page(g, LISTING("d1=a.pdf", "d2=b.pdf")), 2);
	assert_int_equal(apply(g, LISTING("d2=b.pdf"), &left), 0);
	assert_int_equal(left, 1);
	assert_null(folder_find(&g->tree, g->folder, "a.pdf"));
}

static void another_size_or_time_is_told_and_nothing_else_is(void **state)
{
	struct ground *g = *state;
	struct layout_change c = { 0 };
	struct listing_builder *b = begin();

	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=b.pdf"), NULL), 2);
	put(b, "d1", "a.pdf", 1, 10, NULL);
	put(b, "d2", "b.pdf", 2, 11, NULL);
	CLEANUP(listing_release) struct listing *l = finish(g, b);
	assert_int_equal(layout_apply(&g->tree, g->folder, l, next_ino, g, &c), 0);
	assert_int_equal(c.appeared_count + c.left_count, 0);
	assert_int_equal(c.altered_count, 1);
	assert_string_equal(c.altered[0]->name, "b.pdf");
	layout_release(&g->tree, &c);
}

static void without_an_inode_number_to_be_had_it_fails_and_the_next_time_shows_all(void **state)
{
	struct ground *g = *state;
	struct layout_change c = { 0 };
	CLEANUP(listing_release) struct listing *l = LISTING("d1=a.pdf", "d2=b.pdf");

	assert_true(layout_apply(&g->tree, g->folder, l, no_ino, g, &c) < 0);
	assert_int_equal(c.appeared_count, 0);
	layout_release(&g->tree, &c);
	assert_int_equal(apply(g, listing_ref(l), NULL), 2);
	check_name(g, "d1", "a.pdf");
}

/* ---- whatever comes ---------------------------------------------------------------------------------------- */

static void through_any_course_of_listings_a_document_has_one_name_and_nobody_else_ever_has_it(void **state)
{
	struct ground *g = *state;
	char *names[IDS] = { NULL };
	uint64_t inos[IDS] = { 0 };
	char id[16], title[16];

	srand(20241122);
	for (int round = 0; round < ROUNDS; round++) {
		struct listing_builder *b = begin();
		bool is_there[IDS], is_page = g->folder->listing == NULL && rand() % 2;
		for (int i = 0; i < IDS; i++) {
			is_there[i] = rand() % 3 > 0;
			(void)snprintf(id, sizeof(id), "d%04d", i * 7919 % 10000);
			(void)snprintf(title, sizeof(title), "%d.pdf", i % 5);
			if (is_there[i])
				put(b, id, title, rand() % 100, rand() % 3, NULL);
		}
		struct listing *l = finish(g, b);
		if (is_page)
			(void)apply_page(g, l);
		else
			(void)apply(g, l, NULL);
		int shown = 0;
		for (int i = 0; i < IDS; i++) {
			(void)snprintf(id, sizeof(id), "d%04d", i * 7919 % 10000);
			struct entry *e = of(g, id);
			assert_true(is_page || (e != NULL) == is_there[i]);
			if (!e)
				continue;
			shown++;
			assert_ptr_equal(folder_find(&g->tree, g->folder, e->name), e);
			assert_int_equal(folder_count_names(g->folder, id), 1);
			if (!names[i]) {
				names[i] = strdup(e->name);
				inos[i] = e->node.ino;
				for (int k = 0; k < IDS; k++)
					assert_true(k == i || !names[k] || strcmp(names[k], names[i]) != 0);
			}
			assert_string_equal(e->name, names[i]);
			assert_int_equal(e->node.ino, inos[i]);
		}
		assert_int_equal(g->folder->shown_count, shown);
		assert_int_equal(count_names(g), shown);
	}
	for (int i = 0; i < IDS; i++)
		free(names[i]);
}

/* ---- at rest ----------------------------------------------------------------------------------------------- */

static void what_is_nothing_but_a_document_under_its_title_rests_and_looks_the_same(void **state)
{
	struct ground *g = *state;
	struct entry_view room;

	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=a/b.pdf", "d3=a.pdf"), NULL), 3);
	assert_int_equal(g->folder->names.used, 1); /* the second a.pdf, under a name of its own */
	assert_int_equal(g->folder->shown_count, 3);
	assert_true(folder_has(g->folder, "a_b.pdf"));
	const struct entry *e = folder_look(g->folder, "a_b.pdf", &room);
	assert_ptr_equal(e, &room.entry);
	assert_string_equal(e->name, "a_b.pdf");
	assert_string_equal(entry_document_id(e), "d2");
	uint64_t ino = e->node.ino;
	assert_ptr_equal(tree_look(&g->tree, ino, &room), &room.entry.node);
	assert_string_equal(room.entry.name, "a_b.pdf");
	assert_int_equal(folder_count_names(g->folder, "d2"), 1);
	assert_true(folder_shows(g->folder, listing_find(g->folder->listing, "d2")));
	assert_int_equal(g->folder->names.used, 1); /* looking has woken nobody */
	struct entry *woken = folder_find(&g->tree, g->folder, "a_b.pdf");
	assert_int_equal(woken->node.ino, ino);
	assert_ptr_equal(tree_find(&g->tree, ino), &woken->node);
	assert_ptr_equal(folder_look(g->folder, "a_b.pdf", &room), woken);
	assert_int_equal(g->folder->shown_count, 3);
}

static void one_that_somebody_holds_stays_awake_and_rests_when_he_has_let_go(void **state)
{
	struct ground *g = *state;

	assert_int_equal(apply(g, LISTING("d1=a.pdf"), NULL), 1);
	assert_int_equal(g->folder->names.used, 0);
	struct entry *e = folder_find(&g->tree, g->folder, "a.pdf");
	node_hold(&e->node);
	settle(g);
	assert_ptr_equal(folder_find(&g->tree, g->folder, "a.pdf"), e);
	/* A later listing, and it still is the same. */
	assert_int_equal(apply(g, LISTING("d0=0.pdf", "d1=a.pdf"), NULL), 1);
	assert_ptr_equal(of(g, "d1"), e);
	assert_int_equal(e->document, 1);
	node_drop(&g->tree, &e->node);
	settle(g);
	assert_int_equal(g->folder->names.used, 0);
	assert_int_equal(g->folder->shown_count, 2);
}

static void what_the_kernel_knows_of_one_is_counted_whether_it_rests_or_not(void **state)
{
	struct ground *g = *state;
	struct entry_view room;

	assert_int_equal(apply(g, LISTING("d1=a.pdf"), NULL), 1);
	struct entry *view = folder_look(g->folder, "a.pdf", &room);
	uint64_t ino = view->node.ino;
	node_count_lookup(&view->node);
	node_count_lookup(&view->node);
	tree_forget(&g->tree, ino, 1);
	struct entry *e = folder_find(&g->tree, g->folder, "a.pdf");
	assert_int_equal(e->node.lookups, 1);
	node_count_lookup(&e->node);
	settle(g);
	assert_int_equal(folder_look(g->folder, "a.pdf", &room)->node.lookups, 2);
	/* What it knows does not go with the document. */
	assert_int_equal(apply(g, LISTING("d2=b.pdf"), NULL), 1);
	assert_non_null(tree_find(&g->tree, ino));
	tree_forget(&g->tree, ino, 2);
}

static void what_has_more_to_be_known_of_does_not_rest(void **state)
{
	struct ground *g = *state;

	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=b.pdf", "d3=c.pdf"), NULL), 3);
	entry_past(of(g, "d1"))->mtime_ns = 5;
	of(g, "d2")->was_there_before = true;
	settle(g);
	assert_int_equal(g->folder->names.used, 2);
	assert_int_equal(of(g, "d1")->past->mtime_ns, 5);
	assert_true(of(g, "d2")->was_there_before);
	/* Another name here than the service gives it. */
	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=b.pdf", "d3=other.pdf"), NULL), 0);
	assert_int_equal(g->folder->names.used, 3);
	check_name(g, "d3", "c.pdf");
}

static void a_folder_that_goes_takes_what_rests_in_it_along(void **state)
{
	struct ground *g = *state;
	struct entry_view room;

	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=b.pdf"), NULL), 2);
	uint64_t ino = folder_look(g->folder, "a.pdf", &room)->node.ino;
	node_hold(&g->folder->node);
	tree_hide_folder(&g->tree, g->folder);
	assert_null(tree_look(&g->tree, ino, &room));
	assert_null(folder_look(g->folder, "a.pdf", &room));
	assert_int_equal(g->folder->shown_count, 0);
	assert_int_equal(g->tree.spans.used, 0);
	node_drop(&g->tree, &g->folder->node);
	struct session s = { .id = (char *)"s1", .name = (char *)"Q1", .created_ms = -1, .updated_ms = -1 };
	g->folder = tree_add_folder(&g->tree, FOLDER_SESSION, FOLDER_INO, &s, "Q1", ORIGIN_ADDED);
	assert_non_null(g->folder);
}

static void a_number_is_found_whichever_of_several_folders_it_rests_in(void **state)
{
	struct ground *g = *state;
	struct folder *first = g->folder, *folders[5];
	struct entry_view room;
	char id[16], title[16];

	/* Inode numbers of all of them are mixed, several hundred of them. */
	for (int f = 0; f < 5; f++) {
		struct session s = { .id = title, .name = title, .created_ms = -1, .updated_ms = -1 };
		(void)snprintf(title, sizeof(title), "folder %d", f);
		folders[f] = tree_add_folder(&g->tree, FOLDER_SESSION, FOLDER_INO + 1 + (uint64_t)f, &s, title, ORIGIN_ADDED);
	}
	for (int round = 1; round <= 100; round++) {
		for (int f = 0; f < 5; f++) {
			struct listing_builder *b = begin();
			for (int i = 0; i < round; i++) {
				(void)snprintf(id, sizeof(id), "d%d-%d", f, i);
				(void)snprintf(title, sizeof(title), "%d.pdf", i);
				put(b, id, title, i, 10, NULL);
			}
			g->folder = folders[f];
			assert_int_equal(apply(g, finish(g, b), NULL), 1);
		}
	}
	for (int f = 0; f < 5; f++) {
		assert_int_equal(folders[f]->names.used, 0);
		for (int i = 0; i < 100; i++) {
			(void)snprintf(title, sizeof(title), "%d.pdf", i);
			uint64_t ino = folder_look(folders[f], title, &room)->node.ino;
			const struct node *n = tree_look(&g->tree, ino, &room);
			assert_non_null(n);
			assert_ptr_equal(room.entry.folder, folders[f]);
			assert_string_equal(room.entry.name, title);
		}
	}
	for (int f = 0; f < 5; f++)
		tree_hide_folder(&g->tree, folders[f]);
	g->folder = first;
}

static int count_seen(struct tree *t, const struct snapshot *s, struct folder *f, const char *name)
{
	struct entry_view room;
	int n = 0;

	for (int i = 0; i < s->count; i++) {
		const struct entry *e = snapshot_look(t, s, f, i, &room);
		n += e && (!name || strcmp(e->name, name) == 0);
	}
	return n;
}

static void a_reader_sees_each_name_once_whoever_wakes_or_rests_meanwhile(void **state)
{
	struct ground *g = *state;

	assert_int_equal(apply(g, LISTING("d1=a.pdf", "d2=b.pdf", "d3=c.pdf", "d4=d.pdf"), NULL), 4);
	struct entry *held = folder_find(&g->tree, g->folder, "d.pdf");
	node_hold(&held->node);
	struct snapshot *s = folder_snapshot(g->folder, false);
	assert_int_equal(count_seen(&g->tree, s, g->folder, NULL), 4);
	(void)folder_find(&g->tree, g->folder, "a.pdf"); /* awake from here on */
	node_drop(&g->tree, &held->node);
	assert_int_equal(count_seen(&g->tree, s, g->folder, "a.pdf"), 1);
	assert_int_equal(count_seen(&g->tree, s, g->folder, "d.pdf"), 1);
	settle(g);
	assert_int_equal(count_seen(&g->tree, s, g->folder, NULL), 4);
	/* Other places, one gone, one new: who began before sees what is left of what there was. */
	assert_int_equal(apply(g, LISTING("d0=0.pdf", "d4=d.pdf", "d1=a.pdf", "d2=b.pdf"), NULL), 1);
	assert_int_equal(count_seen(&g->tree, s, g->folder, NULL), 3);
	assert_int_equal(count_seen(&g->tree, s, g->folder, "c.pdf"), 0);
	snapshot_drop(s);
	s = folder_snapshot(g->folder, false);
	assert_int_equal(count_seen(&g->tree, s, g->folder, NULL), 4);
	snapshot_drop(s);
}

static void a_reader_goes_on_where_he_was_in_a_later_snapshot(void **state)
{
	struct ground *g = *state;
	struct entry_view room;
	CLEANUP(buf_release) struct buf names = BUF(400);

	assert_int_equal(apply(g, LISTING("d1=1.pdf", "d2=2.pdf", "d3=3.pdf", "d4=4.pdf", "d5=5.pdf"), NULL), 5);
	struct snapshot *s = folder_snapshot(g->folder, false);
	assert_int_equal(snapshot_seek(s, 2), 0);
	int64_t offset = snapshot_offset(s, 1); /* two were read */
	snapshot_drop(s);
	/* What he has read is gone, or is elsewhere, and others came before it in the listing. */
	assert_int_equal(apply(g, LISTING("d8=8.pdf", "d9=9.pdf", "d5=5.pdf", "d3=3.pdf", "d2=2.pdf", "d4=4.pdf"), NULL), 2);
	s = folder_snapshot(g->folder, false);
	for (int i = snapshot_seek(s, offset); i < s->count; i++)
		buf_addf(&names, "%s ", snapshot_look(&g->tree, s, g->folder, i, &room)->name);
	assert_string_equal(buf_text(&names), "3.pdf 4.pdf 5.pdf 8.pdf 9.pdf ");
	assert_int_equal(snapshot_seek(s, snapshot_offset(s, s->count - 1)), s->count);
	snapshot_drop(s);
}

static void what_is_remembered_comes_to_who_reads_a_walk_already(void **state)
{
	struct ground *g = *state;
	struct listing *l = LISTING("d1=a.pdf", "d2=b.pdf");
	struct snapshot *s = folder_snapshot(g->folder, true);
	struct resting rest;

	assert_int_equal(s->count, 0);
	assert_int_equal(resting_begin(&rest, l), 0);
	assert_int_equal(resting_put(&rest, 0, (struct rest){ .ino = 5001, .is_saved = true }), 0);
	folder_begin_listing(&g->tree, g->folder, &rest);
	assert_int_equal(count_seen(&g->tree, s, g->folder, NULL), 1);
	assert_int_equal(apply(g, l, NULL), 1);
	assert_int_equal(count_seen(&g->tree, s, g->folder, NULL), 2);
	(void)folder_find(&g->tree, g->folder, "a.pdf"); /* woken, it is no other */
	assert_int_equal(count_seen(&g->tree, s, g->folder, NULL), 2);
	/* Who asks for another kind of them has one of his own. */
	struct snapshot *sorted = folder_snapshot(g->folder, false);
	assert_ptr_not_equal(sorted, s);
	assert_int_equal(count_seen(&g->tree, sorted, g->folder, NULL), 2);
	snapshot_drop(sorted);
	s->is_growing = false;
	g->folder->snapshot = NULL;
	snapshot_drop(s);
	snapshot_drop(s);
}

static void a_remembered_listing_is_shown_with_what_rests_in_it(void **state)
{
	struct ground *g = *state;
	struct listing *l = LISTING("d1=a.pdf", "d2=b.pdf", "d3=c.pdf");
	struct resting rest;

	assert_non_null(folder_add_hidden_entry(&g->tree, g->folder, 777777, "mine.pdf", "d3"));
	assert_int_equal(resting_begin(&rest, l), 0);
	assert_int_equal(resting_put(&rest, 0, (struct rest){ .ino = 5001, .is_saved = true }), 0);
	assert_int_equal(resting_put(&rest, 1, (struct rest){ .ino = 5002, .is_saved = true }), 0);
	folder_begin_listing(&g->tree, g->folder, &rest);
	assert_int_equal(g->folder->shown_count, 2);
	assert_int_equal(apply(g, l, NULL), 1);
	check_name(g, "d1", "a.pdf");
	assert_int_equal(of(g, "d2")->node.ino, 5002);
	assert_true(of(g, "d2")->is_saved);
	check_name(g, "d3", "mine.pdf");
	assert_int_equal(of(g, "d3")->node.ino, 777777);
	resting_release(&rest);
}

/* Holds some of them at random, looks at others, and lets listings come in any order. */
static void through_any_course_numbers_and_names_stay_whoever_is_held_or_rests(void **state)
{
	struct ground *g = *state;
	struct entry *held[IDS] = { NULL };
	uint64_t inos[IDS] = { 0 };
	struct entry_view room;
	char id[16], title[16];

	srand(20260405);
	for (int round = 0; round < ROUNDS; round++) {
		struct listing_builder *b = begin();
		bool is_there[IDS];
		int shift = rand() % 3 ? 0 : rand() % IDS; /* mostly in the same places */
		for (int n = 0; n < IDS; n++) {
			int i = (n + shift) % IDS;
			is_there[i] = rand() % 8 > 0;
			(void)snprintf(id, sizeof(id), "d%04d", i);
			(void)snprintf(title, sizeof(title), "%d.pdf", i);
			if (is_there[i])
				put(b, id, title, i, rand() % 10 ? 10 : 11, NULL);
		}
		(void)apply(g, finish(g, b), NULL);
		int shown = 0;
		for (int i = 0; i < IDS; i++) {
			(void)snprintf(title, sizeof(title), "%d.pdf", i);
			const struct entry *e = folder_look(g->folder, title, &room);
			assert_true((e != NULL) == is_there[i]);
			shown += e != NULL;
			if (!e)
				continue;
			assert_true(!inos[i] || e->node.ino == inos[i]);
			inos[i] = e->node.ino;
			assert_int_equal(tree_look(&g->tree, inos[i], &room)->ino, inos[i]);
			if (held[i] && rand() % 2) {
				node_drop(&g->tree, &held[i]->node);
				held[i] = NULL;
			} else if (!held[i] && rand() % 4 == 0) {
				held[i] = (struct entry *)tree_find(&g->tree, inos[i]);
				node_hold(&held[i]->node);
			}
		}
		assert_int_equal(g->folder->shown_count, shown);
		assert_int_equal(count_names(g), shown);
	}
	for (int i = 0; i < IDS; i++)
		if (held[i])
			node_drop(&g->tree, &held[i]->node);
}

#define AWAKE(name) cmocka_unit_test_setup_teardown(name, setup_awake, teardown)
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_document_is_shown_under_its_title_made_safe),
		TEST(of_two_equal_titles_the_older_keeps_the_plain_one_and_the_other_gets_a_part_of_its_id),
		TEST(a_name_once_shown_stays_when_an_older_document_of_that_title_comes),
		TEST(a_document_that_the_service_renames_keeps_the_name_it_has_here),
		TEST(ids_that_end_alike_are_told_apart_by_more_of_them),
		TEST(a_name_that_a_file_has_down_to_the_whole_id_is_not_given_twice),
		TEST(three_thousand_documents_of_one_title_have_three_thousand_names_for_good),
		TEST(one_that_is_gone_and_back_has_its_name_and_its_inode_number_again),
		TEST(one_whose_name_a_file_took_meanwhile_comes_back_under_another),
		TEST(what_an_earlier_mount_showed_has_its_name_and_number_from_the_first_listing_on),
		TEST(a_document_with_two_names_shows_under_both_and_leaves_with_both),
		TEST(one_attached_here_after_the_listing_was_asked_for_stays),
		TEST(a_name_that_is_being_written_stays_when_the_document_it_wrote_first_leaves),
		TEST(what_was_withheld_is_shown_again_by_the_very_same_listing),
		TEST(what_a_file_here_is_just_becoming_gets_no_second_name),
		TEST(names_given_page_by_page_are_those_of_the_whole_listing),
		TEST(one_that_a_page_had_and_the_whole_has_not_leaves),
		TEST(another_size_or_time_is_told_and_nothing_else_is),
		TEST(without_an_inode_number_to_be_had_it_fails_and_the_next_time_shows_all),
		TEST(through_any_course_of_listings_a_document_has_one_name_and_nobody_else_ever_has_it),
		AWAKE(a_document_is_shown_under_its_title_made_safe),
		AWAKE(of_two_equal_titles_the_older_keeps_the_plain_one_and_the_other_gets_a_part_of_its_id),
		AWAKE(a_name_once_shown_stays_when_an_older_document_of_that_title_comes),
		AWAKE(a_document_that_the_service_renames_keeps_the_name_it_has_here),
		AWAKE(ids_that_end_alike_are_told_apart_by_more_of_them),
		AWAKE(a_name_that_a_file_has_down_to_the_whole_id_is_not_given_twice),
		AWAKE(three_thousand_documents_of_one_title_have_three_thousand_names_for_good),
		AWAKE(one_that_is_gone_and_back_has_its_name_and_its_inode_number_again),
		AWAKE(one_whose_name_a_file_took_meanwhile_comes_back_under_another),
		AWAKE(what_an_earlier_mount_showed_has_its_name_and_number_from_the_first_listing_on),
		AWAKE(a_document_with_two_names_shows_under_both_and_leaves_with_both),
		AWAKE(one_attached_here_after_the_listing_was_asked_for_stays),
		AWAKE(a_name_that_is_being_written_stays_when_the_document_it_wrote_first_leaves),
		AWAKE(what_was_withheld_is_shown_again_by_the_very_same_listing),
		AWAKE(what_a_file_here_is_just_becoming_gets_no_second_name),
		AWAKE(names_given_page_by_page_are_those_of_the_whole_listing),
		AWAKE(one_that_a_page_had_and_the_whole_has_not_leaves),
		AWAKE(another_size_or_time_is_told_and_nothing_else_is),
		AWAKE(without_an_inode_number_to_be_had_it_fails_and_the_next_time_shows_all),
		AWAKE(through_any_course_of_listings_a_document_has_one_name_and_nobody_else_ever_has_it),
		TEST(what_is_nothing_but_a_document_under_its_title_rests_and_looks_the_same),
		TEST(one_that_somebody_holds_stays_awake_and_rests_when_he_has_let_go),
		TEST(what_the_kernel_knows_of_one_is_counted_whether_it_rests_or_not),
		TEST(what_has_more_to_be_known_of_does_not_rest),
		TEST(a_folder_that_goes_takes_what_rests_in_it_along),
		TEST(a_number_is_found_whichever_of_several_folders_it_rests_in),
		TEST(a_reader_sees_each_name_once_whoever_wakes_or_rests_meanwhile),
		TEST(a_reader_goes_on_where_he_was_in_a_later_snapshot),
		TEST(what_is_remembered_comes_to_who_reads_a_walk_already),
		TEST(a_remembered_listing_is_shown_with_what_rests_in_it),
		TEST(through_any_course_numbers_and_names_stay_whoever_is_held_or_rests),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
