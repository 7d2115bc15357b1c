/* Listings on the disk: they come back with their age, for their account alone, and damage is begun anew. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/store.h"
#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

static const char me[] = "1111111111111111111111111111111111111111111111111111111111111111";
static const char another[] = "2222222222222222222222222222222222222222222222222222222222222222";

struct place {
	char dir[64];
	struct store *store;
};

static void open_again(struct place *p, int64_t delay_ms, int64_t bytes_max)
{
	const struct store_options options = { .dir = p->dir, .delay_ms = delay_ms, .bytes_max = bytes_max };

	store_close(p->store);
	p->store = NULL;
	assert_int_equal(store_open(&options, &p->store), 0);
}

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));

	(void)snprintf(p->dir, sizeof(p->dir), "/tmp/sessionfs-test-store-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	*state = p;
	open_again(p, 0, 0);
	return 0;
}

static void empty_folder(const char *dir)
{
	DIR *d = opendir(dir);

	for (struct dirent *e; d && (e = readdir(d));)
		(void)unlinkat(dirfd(d), e->d_name, 0); /* folders refuse */
	if (d)
		(void)closedir(d);
}

static int teardown(void **state)
{
	struct place *p = *state;
	char records[96];

	store_close(p->store);
	(void)snprintf(records, sizeof(records), "%s/records", p->dir);
	empty_folder(records);
	(void)rmdir(records);
	empty_folder(p->dir);
	assert_int_equal(rmdir(p->dir), 0); /* nothing else was left there */
	free(p);
	return 0;
}

/* count documents "d0", ... with a record each. */
static struct listing *listing_of(const struct place *p, int count, const char *status, int64_t as_of_wall_ms)
{
	struct listing_builder *b = listing_builder_new(p->dir);
	struct listing *l = NULL;

	for (int i = 0; i < count; i++) {
		char id[16], json[64];
		(void)snprintf(id, sizeof(id), "d%d", i);
		(void)snprintf(json, sizeof(json), "{\"id\":\"%s\",\"status\":\"%s\"}", id, status);
		const struct document d = { .id = id, .filename = "x.pdf", .status = status, .size_bytes = i,
					    .created_ms = -1, .pages = -1, .parsing.updated_ms = -1 };
		assert_int_equal(listing_builder_add(b, &d, json), 0);
	}
	assert_int_equal(listing_builder_finish(b, 5, as_of_wall_ms, &l), 0);
	return l;
}

static void put(struct place *p, const char *account, const char *session_id, int count, const char *status)
{
	CLEANUP(listing_release) struct listing *l = listing_of(p, count, status, clock_wall_ms());

	store_put(p->store, account, session_id, l);
}

static void assert_there(struct place *p, const char *account, const char *session_id, int count, const char *status)
{
	CLEANUP(listing_release) struct listing *l = NULL;
	CLEANUP(buf_release) struct buf json = BUF(1000);
	char expected[64];
	struct document d;

	assert_int_equal(store_load(p->store, account, session_id, 1000000, &l), 0);
	assert_int_equal(listing_count(l), count);
	listing_get(l, count - 1, &d);
	assert_string_equal(d.status, status);
	assert_int_equal(d.size_bytes, count - 1);
	assert_int_equal(listing_read_json(l, count - 1, &json), 0);
	(void)snprintf(expected, sizeof(expected), "{\"id\":\"d%d\",\"status\":\"%s\"}", count - 1, status);
	assert_string_equal(buf_text(&json), expected);
}

static void assert_not_there(struct place *p, const char *account, const char *session_id)
{
	struct listing *l = NULL;

	assert_int_equal(store_load(p->store, account, session_id, 1000000, &l), -ENOENT);
}

static int count_records(const struct place *p)
{
	char records[96];
	int count = 0;

	(void)snprintf(records, sizeof(records), "%s/records", p->dir);
	DIR *d = opendir(records);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		count += e->d_name[0] != '.';
	(void)closedir(d);
	return count;
}

static void a_listing_outlives_its_store(void **state)
{
	struct place *p = *state;

	put(p, me, "s1", 3, "ready");
	assert_there(p, me, "s1", 3, "ready"); /* not yet written */
	store_flush(p->store);
	assert_there(p, me, "s1", 3, "ready"); /* from the disk */
	put(p, me, "s2", 1, "ready");
	open_again(p, 0, 0);
	assert_there(p, me, "s1", 3, "ready");
	assert_there(p, me, "s2", 1, "ready"); /* the end wrote what waited */
	assert_not_there(p, me, "s3");
}

static void what_is_put_is_written_without_being_asked(void **state)
{
	struct place *p = *state;
	CLEANUP(listing_release) struct listing *l = NULL;
	struct place other = *p;
	int r = -ENOENT;

	open_again(p, 1, 0);
	put(p, me, "s1", 3, "ready");
	other.store = NULL;
	open_again(&other, 0, 0); /* knows the disk alone */
	for (int i = 0; i < 1000 && r == -ENOENT; i++) {
		(void)usleep(5000);
		r = store_load(other.store, me, "s1", 1, &l);
	}
	assert_int_equal(r, 0);
	assert_int_equal(listing_count(l), 3);
	store_close(other.store);
}

static void the_age_is_told_by_the_wall_clock(void **state)
{
	struct place *p = *state;
	int64_t as_of_ms = clock_wall_ms() - 3600000;
	CLEANUP(listing_release) struct listing *l = listing_of(p, 2, "ready", as_of_ms), *loaded = NULL, *renewed = NULL;

	store_put(p->store, me, "s1", l);
	open_again(p, 0, 0);
	assert_int_equal(store_load(p->store, me, "s1", 7200000, &loaded), 0);
	assert_int_equal(listing_as_of_wall_ms(loaded), as_of_ms);
	assert_in_range(listing_asked_ms(loaded), 3600000 - 60000, 3600000);
	/* One from the future was asked just now. */
	assert_int_equal(listing_renew(l, 5, clock_wall_ms() + 3600000, &renewed), 0);
	listing_release(&loaded);
	store_put(p->store, me, "s1", renewed);
	open_again(p, 0, 0);
	assert_int_equal(store_load(p->store, me, "s1", 7200000, &loaded), 0);
	assert_int_equal(listing_asked_ms(loaded), 7200000);
}

static int64_t database_bytes(const struct place *p)
{
	static const char *const tails[] = { "", "-wal" };
	int64_t bytes = 0;

	for (int i = 0; i < 2; i++) {
		char path[128];
		struct stat st;
		(void)snprintf(path, sizeof(path), "%s/listings.db%s", p->dir, tails[i]);
		if (stat(path, &st) == 0)
			bytes += st.st_size;
	}
	return bytes;
}

static void the_same_said_again_costs_a_time_and_no_listing(void **state)
{
	struct place *p = *state;
	CLEANUP(listing_release) struct listing *l = listing_of(p, 20000, "ready", 1000), *renewed = NULL, *loaded = NULL;

	store_put(p->store, me, "s1", l);
	store_flush(p->store);
	int64_t before = database_bytes(p);
	assert_true(before > 20000 * 10);
	for (int i = 0; i < 3; i++) {
		listing_release(&renewed);
		assert_int_equal(listing_renew(l, 5, 2000 + i, &renewed), 0);
		store_put(p->store, me, "s1", renewed);
		store_flush(p->store);
	}
	assert_true(database_bytes(p) - before < 20000 * 10);
	open_again(p, 0, 0);
	assert_int_equal(store_load(p->store, me, "s1", 1, &loaded), 0);
	assert_int_equal(listing_as_of_wall_ms(loaded), 2002);
}

static void set_annex(struct listing *l, const char *text)
{
	listing_set_annex(l, strdup(text), strlen(text) + 1);
}

/* text NULL: it has none. */
static void assert_annex(struct place *p, const char *session_id, const char *text)
{
	CLEANUP(listing_release) struct listing *l = NULL;
	size_t len;

	open_again(p, 0, 0);
	assert_int_equal(store_load(p->store, me, session_id, 1000000, &l), 0);
	CLEANUP(text_release) char *annex = listing_take_annex(l, &len);
	if (!text) {
		assert_null(annex);
		return;
	}
	assert_non_null(annex);
	assert_int_equal(len, strlen(text) + 1);
	assert_string_equal(annex, text);
}

static void an_annex_comes_back_with_its_listing_and_goes_with_it(void **state)
{
	struct place *p = *state;
	CLEANUP(listing_release) struct listing *l = listing_of(p, 3, "uploaded", clock_wall_ms());
	size_t len;

	set_annex(l, "first");
	store_put(p->store, me, "S", l);
	put(p, me, "T", 3, "uploaded");
	assert_annex(p, "S", "first");
	assert_annex(p, "T", NULL);
	assert_null(listing_take_annex(l, &len)); /* written, it takes no memory */
	/* One that came when its listing was on the disk already goes there with the next time it is said. */
	store_put(p->store, me, "S", l);
	store_flush(p->store);
	set_annex(l, "second");
	store_put(p->store, me, "S", l);
	assert_annex(p, "S", "second");
	/* What was shown of an older listing is not shown of a newer one. */
	put(p, me, "S", 4, "uploaded");
	assert_annex(p, "S", NULL);
}

static void another_account_finds_nothing(void **state)
{
	struct place *p = *state;

	put(p, me, "s1", 3, "mine");
	assert_not_there(p, another, "s1");
	store_flush(p->store);
	assert_not_there(p, another, "s1");
	put(p, another, "s1", 2, "theirs");
	store_flush(p->store);
	assert_there(p, me, "s1", 3, "mine");
	assert_there(p, another, "s1", 2, "theirs");
	store_forget(p->store, another, NULL);
	assert_not_there(p, another, "s1");
	open_again(p, 0, 0);
	assert_not_there(p, another, "s1");
	assert_there(p, me, "s1", 3, "mine");
}

static void two_accounts_may_be_forgotten_in_one_breath(void **state)
{
	struct place *p = *state;

	for (int i = 0; i < 20; i++) {
		put(p, me, "s1", 3, "mine");
		put(p, another, "s2", 2, "theirs");
		store_flush(p->store);
		store_forget(p->store, me, NULL);
		store_forget(p->store, another, NULL);
		open_again(p, 0, 0);
		assert_not_there(p, me, "s1");
		assert_not_there(p, another, "s2");
	}
}

static void what_is_forgotten_is_gone_at_once_and_for_good(void **state)
{
	struct place *p = *state;

	put(p, me, "s1", 3, "ready");
	put(p, me, "s2", 3, "ready");
	store_flush(p->store);
	put(p, me, "s1", 4, "ready"); /* waits */
	store_forget(p->store, me, "s1");
	assert_not_there(p, me, "s1");
	open_again(p, 0, 0);
	assert_not_there(p, me, "s1");
	assert_there(p, me, "s2", 3, "ready");
	store_forget(p->store, me, NULL);
	assert_not_there(p, me, "s2");
	put(p, me, "s2", 5, "anew"); /* after it */
	assert_there(p, me, "s2", 5, "anew");
	open_again(p, 0, 0);
	assert_there(p, me, "s2", 5, "anew");
	assert_int_equal(count_records(p), 1);
}

static void records_of_listings_that_are_no_more_are_removed(void **state)
{
	struct place *p = *state;

	for (int i = 1; i < 10; i++) {
		put(p, me, "s1", i, "ready"); /* each with a file of its own */
		store_flush(p->store);
		assert_int_equal(count_records(p), 1);
		assert_there(p, me, "s1", i, "ready");
	}
	store_forget(p->store, me, "s1");
	store_flush(p->store);
	assert_int_equal(count_records(p), 0);
}

static void the_oldest_go_when_there_is_no_room(void **state)
{
	struct place *p = *state;
	char id[16];

	open_again(p, 0, 100000);
	for (int i = 0; i < 20; i++) {
		CLEANUP(listing_release) struct listing *l = listing_of(p, 200, "ready", 1000 + i);
		(void)snprintf(id, sizeof(id), "s%d", i);
		store_put(p->store, me, id, l);
		store_flush(p->store);
	}
	assert_not_there(p, me, "s0");
	assert_there(p, me, "s19", 200, "ready");
	assert_in_range(count_records(p), 2, 10);
	/* One that is larger than all the room stays until the next. */
	put(p, me, "large", 5000, "ready");
	open_again(p, 0, 100000);
	assert_there(p, me, "large", 5000, "ready");
	assert_not_there(p, me, "s19");
}

static void write_at(const struct place *p, const char *name, off_t at, const char *bytes, size_t len)
{
	char path[128];

	(void)snprintf(path, sizeof(path), "%s/%s", p->dir, name);
	CLEANUP(fd_close) int fd = open(path, O_WRONLY);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, bytes, len, at), (ssize_t)len);
}

static void a_database_that_is_none_is_begun_anew(void **state)
{
	struct place *p = *state;

	put(p, me, "s1", 3, "ready");
	store_close(p->store);
	p->store = NULL;
	write_at(p, "listings.db", 0, "this is not a database at all, and never was one", 48);
	open_again(p, 0, 0);
	assert_not_there(p, me, "s1");
	put(p, me, "s1", 4, "ready");
	open_again(p, 0, 0);
	assert_there(p, me, "s1", 4, "ready");
}

static void exec(const struct place *p, const char *sql)
{
	char path[128];
	sqlite3 *db = NULL;

	(void)snprintf(path, sizeof(path), "%s/listings.db", p->dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void another_version_is_begun_anew(void **state)
{
	struct place *p = *state;

	put(p, me, "s1", 3, "ready");
	store_close(p->store);
	p->store = NULL;
	exec(p, "PRAGMA user_version=77");
	open_again(p, 0, 0);
	assert_not_there(p, me, "s1");
	put(p, me, "s1", 4, "ready");
	assert_there(p, me, "s1", 4, "ready");
}

static void a_damaged_listing_is_not_shown_and_the_others_stay(void **state)
{
	struct place *p = *state;

	put(p, me, "s1", 3, "ready");
	put(p, me, "s2", 3, "ready");
	put(p, me, "s3", 3, "ready");
	store_flush(p->store);
	exec(p, "UPDATE content SET bytes = zeroblob(length(bytes)) WHERE id = (SELECT id FROM listing WHERE session = 's1')");
	exec(p, "DELETE FROM content WHERE id = (SELECT id FROM listing WHERE session = 's3')");
	assert_not_there(p, me, "s1");
	assert_not_there(p, me, "s3");
	assert_there(p, me, "s2", 3, "ready");
	put(p, me, "s1", 4, "anew");
	open_again(p, 0, 0);
	assert_there(p, me, "s1", 4, "anew");
}

static void damage_anywhere_in_the_file_is_survived(void **state)
{
	struct place *p = *state;
	unsigned seed = 4711;
	char path[128], noise[512];
	int lost = 0;

	for (int turn = 0; turn < 15; turn++) {
		struct stat st;
		for (int i = 0; i < 5; i++) {
			char id[16];
			(void)snprintf(id, sizeof(id), "s%d", i);
			put(p, me, id, 100, "ready");
		}
		store_close(p->store);
		p->store = NULL;
		(void)snprintf(path, sizeof(path), "%s/listings.db", p->dir);
		assert_int_equal(stat(path, &st), 0);
		for (size_t i = 0; i < sizeof(noise); i++)
			noise[i] = (char)rand_r(&seed);
		write_at(p, "listings.db", rand_r(&seed) % (st.st_size - (off_t)sizeof(noise)), noise, sizeof(noise));
		open_again(p, 0, 0);
		for (int i = 0; i < 5; i++) {
			CLEANUP(listing_release) struct listing *l = NULL;
			char id[16];
			(void)snprintf(id, sizeof(id), "s%d", i);
			int r = store_load(p->store, me, id, 1, &l);
			assert_true(r == -ENOENT || (r == 0 && listing_count(l) == 100));
			lost += r < 0;
		}
		put(p, me, "after", 7, "ready");
		store_flush(p->store); /* may find the damage and begin anew, which loses it */
		put(p, me, "after", 8, "ready");
		store_flush(p->store);
		assert_there(p, me, "after", 8, "ready");
	}
	assert_true(lost > 0);
}

static void a_folder_that_cant_be_used_is_told(void **state)
{
	struct store *s = NULL;

	(void)state;
	assert_true(store_open(&(struct store_options){ .dir = "/no/such/folder" }, &s) < 0);
	assert_null(s);
}

static void *work(void *arg)
{
	struct place *p = arg;
	unsigned seed = (unsigned)(uintptr_t)&seed;

	for (int i = 0; i < 60; i++) {
		CLEANUP(listing_release) struct listing *l = NULL;
		char id[16];
		(void)snprintf(id, sizeof(id), "s%d", rand_r(&seed) % 3);
		switch (rand_r(&seed) % 8) {
		case 0:
			store_forget(p->store, me, rand_r(&seed) % 4 ? id : NULL);
			break;
		case 1:
			store_flush(p->store);
			break;
		case 2:
		case 3:
			put(p, me, id, 1 + rand_r(&seed) % 50, "ready");
			break;
		default: {
			int r = store_load(p->store, me, id, 1, &l);
			assert_true(r == 0 || r == -ENOENT);
		}
		}
	}
	return NULL;
}

static void threads_may_do_all_of_it_at_once(void **state)
{
	struct place *p = *state;
	pthread_t threads[4];

	open_again(p, 1, 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, work, p), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	put(p, me, "s1", 9, "last");
	open_again(p, 0, 0);
	assert_there(p, me, "s1", 9, "last");
	store_forget(p->store, me, NULL);
	store_flush(p->store);
	assert_int_equal(count_records(p), 0);
}

static void a_large_listing_is_read_back_quickly(void **state)
{
	struct place *p = *state;
	CLEANUP(listing_release) struct listing *l = NULL;

	put(p, me, "s1", 100000, "ready");
	int64_t begun_ns = clock_wall_ns();
	store_flush(p->store);
	int64_t written_ns = clock_wall_ns();
	open_again(p, 0, 0);
	int64_t opened_ns = clock_wall_ns();
	assert_int_equal(store_load(p->store, me, "s1", 1, &l), 0);
	print_message("     100,000 documents: written in %.1f ms, a store opened and closed in %.1f ms, read back in %.1f ms\n",
		      (double)(written_ns - begun_ns) / 1e6, (double)(opened_ns - written_ns) / 1e6,
		      (double)(clock_wall_ns() - opened_ns) / 1e6);
	assert_int_equal(listing_count(l), 100000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_listing_outlives_its_store, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_put_is_written_without_being_asked, setup, teardown),
		cmocka_unit_test_setup_teardown(the_age_is_told_by_the_wall_clock, setup, teardown),
		cmocka_unit_test_setup_teardown(the_same_said_again_costs_a_time_and_no_listing, setup, teardown),
		cmocka_unit_test_setup_teardown(an_annex_comes_back_with_its_listing_and_goes_with_it, setup, teardown),
		cmocka_unit_test_setup_teardown(another_account_finds_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(two_accounts_may_be_forgotten_in_one_breath, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_forgotten_is_gone_at_once_and_for_good, setup, teardown),
		cmocka_unit_test_setup_teardown(records_of_listings_that_are_no_more_are_removed, setup, teardown),
		cmocka_unit_test_setup_teardown(the_oldest_go_when_there_is_no_room, setup, teardown),
		cmocka_unit_test_setup_teardown(a_database_that_is_none_is_begun_anew, setup, teardown),
		cmocka_unit_test_setup_teardown(another_version_is_begun_anew, setup, teardown),
		cmocka_unit_test_setup_teardown(a_damaged_listing_is_not_shown_and_the_others_stay, setup, teardown),
		cmocka_unit_test_setup_teardown(damage_anywhere_in_the_file_is_survived, setup, teardown),
		cmocka_unit_test(a_folder_that_cant_be_used_is_told),
		cmocka_unit_test_setup_teardown(threads_may_do_all_of_it_at_once, setup, teardown),
		cmocka_unit_test_setup_teardown(a_large_listing_is_read_back_quickly, setup, teardown),
	};

	log_open(LOG_LEVEL_ERROR, false); /* the warnings are what these tests ask for */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
