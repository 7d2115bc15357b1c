/* fs/queue.c: what was put is there after a restart, as it was; what is damaged is set aside and nothing else
 * suffers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/buf.h"
#include "client/base/cleanup.h"
#include "client/base/log.h"
#include "fs/queue.h"

#define HASH "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static char dir[64];

static int make_dir(void **state)
{
	(void)snprintf(dir, sizeof(dir), "/tmp/test_queue.XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return remove(path);
}

static int remove_dir(void **state)
{
	return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static struct queue *open_queue(void)
{
	CLEANUP(buf_release) struct buf why = BUF(1000);
	struct queue *q = NULL;

	if (queue_open(dir, &why, &q) < 0)
		fail_msg("%s", buf_text(&why));
	return q;
}

static void make_bytes(uint64_t id, size_t size)
{
	static const char zeros[1000];
	char path[128];

	(void)snprintf(path, sizeof(path), "%s/spool/%" PRIu64, dir, id);
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, zeros, size), size);
	(void)close(fd);
}

static bool is_there(const char *name)
{
	char path[128];

	(void)snprintf(path, sizeof(path), "%s/%s", dir, name);
	return access(path, F_OK) == 0;
}

static struct queue_item item_of(uint64_t ino, enum file_kind kind)
{
	struct queue_item i = { .ino = ino,
				.session_id = "s1",
				.session_name = "Q1",
				.name = "a.pdf",
				.spool_id = ino,
				.size_bytes = 5,
				.kind = kind,
				.account = "me",
				.queued_wall_ms = 1000 };

	(void)snprintf(i.sha256, sizeof(i.sha256), "%s", kind == FILE_SCRATCH ? "" : HASH);
	return i;
}

struct loaded {
	struct queue_item items[20];
	int count;
};

static void note(void *arg, const struct queue_item *item)
{
	struct loaded *l = arg;

	assert_true(l->count < 20);
	assert_int_equal(queue_item_copy(item, &l->items[l->count++]), 0);
}

static void loaded_release(struct loaded *l)
{
	for (int i = 0; i < l->count; i++)
		queue_item_release(&l->items[i]);
	l->count = 0;
}

static void load(struct queue *q, struct loaded *ret)
{
	loaded_release(ret);
	assert_int_equal(queue_load(q, note, ret), 0);
}

/* SQL beside the queue, as damage would do it. */
static void sql(const char *text)
{
	char path[128];
	sqlite3 *db = NULL;

	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK)
		fail_msg("%s: %s", text, sqlite3_errmsg(db));
	(void)sqlite3_close(db);
}

static int sql_count(const char *text)
{
	char path[128];
	sqlite3 *db = NULL;
	sqlite3_stmt *s = NULL;

	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, text, -1, &s, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(s), SQLITE_ROW);
	int n = sqlite3_column_int(s, 0);
	(void)sqlite3_finalize(s);
	(void)sqlite3_close(db);
	return n;
}

static void all_that_was_put_comes_back(void **state)
{
	CLEANUP(loaded_release) struct loaded l = { 0 };
	struct queue *q = open_queue();
	struct queue_item i = item_of(UINT64_MAX, FILE_PENDING);

	i.mtime_ns = -7;
	i.step = UPLOAD_STORED;
	i.ticket = "key 'with' \"quotes\"";
	i.ticket_wall_ms = 12;
	i.attempts = 3;
	i.next_wall_ms = 34;
	i.may_have_happened = i.key_renewed = true;
	i.known_id = "d1";
	i.known_session_id = "s2";
	i.prior_ids = "";
	i.supersedes_id = "d0";
	i.error = -EIO;
	i.fault = FAULT_AWAY;
	i.words = "503: maintenance";
	make_bytes(UINT64_MAX, 5);
	assert_int_equal(queue_put(q, &i), 0);
	queue_close(q);
	q = open_queue();
	load(q, &l);
	assert_int_equal(l.count, 1);
	const struct queue_item *b = &l.items[0];
	assert_true(b->ino == UINT64_MAX && b->spool_id == UINT64_MAX);
	assert_string_equal(b->session_id, "s1");
	assert_string_equal(b->session_name, "Q1");
	assert_string_equal(b->name, "a.pdf");
	assert_int_equal(b->size_bytes, 5);
	assert_string_equal(b->sha256, HASH);
	assert_int_equal(b->mtime_ns, -7);
	assert_int_equal(b->kind, FILE_PENDING);
	assert_int_equal(b->step, UPLOAD_STORED);
	assert_string_equal(b->ticket, i.ticket);
	assert_int_equal(b->ticket_wall_ms, 12);
	assert_string_equal(b->account, "me");
	assert_int_equal(b->attempts, 3);
	assert_int_equal(b->queued_wall_ms, 1000);
	assert_int_equal(b->next_wall_ms, 34);
	assert_true(b->may_have_happened && b->key_renewed);
	assert_string_equal(b->known_id, "d1");
	assert_string_equal(b->known_session_id, "s2");
	assert_string_equal(b->prior_ids, ""); /* known to be none, which is not the same as unknown */
	assert_string_equal(b->supersedes_id, "d0");
	assert_int_equal(b->error, -EIO);
	assert_int_equal(b->fault, FAULT_AWAY);
	assert_string_equal(b->words, i.words);
	queue_close(q);
}

static void what_was_null_stays_null(void **state)
{
	CLEANUP(loaded_release) struct loaded l = { 0 };
	struct queue *q = open_queue();
	struct queue_item i = item_of(2000, FILE_PENDING);

	make_bytes(2000, 5);
	assert_int_equal(queue_put(q, &i), 0);
	load(q, &l);
	assert_int_equal(l.count, 1);
	assert_null(l.items[0].ticket);
	assert_null(l.items[0].prior_ids);
	assert_null(l.items[0].words);
	queue_close(q);
}

static void the_oldest_comes_first_and_a_put_replaces(void **state)
{
	CLEANUP(loaded_release) struct loaded l = { 0 };
	struct queue *q = open_queue();
	struct queue_item young = item_of(2001, FILE_PENDING), old = item_of(2002, FILE_PENDING);

	make_bytes(2001, 5);
	make_bytes(2002, 5);
	young.queued_wall_ms = 2000;
	assert_int_equal(queue_put(q, &young), 0);
	assert_int_equal(queue_put(q, &old), 0);
	young.name = "b.pdf";
	assert_int_equal(queue_put(q, &young), 0);
	load(q, &l);
	assert_int_equal(l.count, 2);
	assert_int_equal(l.items[0].ino, 2002);
	assert_string_equal(l.items[1].name, "b.pdf");
	assert_int_equal(queue_remove(q, 2002), 0);
	assert_int_equal(queue_remove(q, 2002), 0);
	load(q, &l);
	assert_int_equal(l.count, 1);
	queue_close(q);
}

static void each_damage_is_set_aside_and_nothing_else(void **state)
{
	static const char *const damages[] = {
		"UPDATE file SET name = 'a/b' WHERE ino = 2001",
		"UPDATE file SET name = '..' WHERE ino = 2001",
		"UPDATE file SET name = '' WHERE ino = 2001",
		"UPDATE file SET name = NULL WHERE ino = 2001",
		"UPDATE file SET name = x'00ff' WHERE ino = 2001",
		"UPDATE file SET name = 'a' || char(0) || 'b' WHERE ino = 2001",
		"UPDATE file SET session_id = NULL WHERE ino = 2001",
		"UPDATE file SET session_id = '../x' WHERE ino = 2001",
		"UPDATE file SET kind = 'strange' WHERE ino = 2001",
		"UPDATE file SET kind = 7 WHERE ino = 2001",
		"UPDATE file SET step = NULL WHERE ino = 2001",
		"UPDATE file SET fault = 'bad' WHERE ino = 2001",
		"UPDATE file SET size_bytes = -1 WHERE ino = 2001",
		"UPDATE file SET size_bytes = 6 WHERE ino = 2001",
		"UPDATE file SET size_bytes = 'many' WHERE ino = 2001",
		"UPDATE file SET sha256 = 'xyz' WHERE ino = 2001",
		"UPDATE file SET sha256 = '' WHERE ino = 2001",
		"UPDATE file SET sha256 = upper(sha256) WHERE ino = 2001",
		"UPDATE file SET spool_id = 999 WHERE ino = 2001",
		"UPDATE file SET attempts = -3 WHERE ino = 2001",
		"UPDATE file SET may_have_happened = 2 WHERE ino = 2001",
		"UPDATE file SET error = 5 WHERE ino = 2001",
	};

	for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
		CLEANUP(loaded_release) struct loaded l = { 0 };
		struct queue *q = open_queue();
		struct queue_item a = item_of(2001, FILE_PENDING), b = item_of(2002, FILE_PENDING);
		make_bytes(2001, 5);
		make_bytes(2002, 5);
		assert_int_equal(queue_put(q, &a), 0);
		assert_int_equal(queue_put(q, &b), 0);
		queue_close(q);
		sql(damages[i]);
		q = open_queue();
		load(q, &l);
		if (l.count != 1 || l.items[0].ino != 2002)
			fail_msg("%s: not set aside", damages[i]);
		assert_int_equal(sql_count("SELECT count(*) FROM file_aside"), (int)i + 1);
		assert_int_equal(sql_count("SELECT count(*) FROM file"), 1);
		assert_true(is_there("spool/aside/2001"));
		assert_false(is_there("spool/2001"));
		assert_true(is_there("spool/2002"));
		queue_close(q);
	}
}

static void a_missing_file_sets_its_row_aside(void **state)
{
	CLEANUP(loaded_release) struct loaded l = { 0 };
	struct queue *q = open_queue();
	struct queue_item a = item_of(2001, FILE_PENDING);

	assert_int_equal(queue_put(q, &a), 0);
	load(q, &l);
	assert_int_equal(l.count, 0);
	assert_int_equal(sql_count("SELECT count(*) FROM file_aside WHERE ino = 2001 AND why LIKE '%missing%'"), 1);
	queue_close(q);
}

static void a_scratch_file_may_have_grown_since(void **state)
{
	CLEANUP(loaded_release) struct loaded l = { 0 };
	struct queue *q = open_queue();
	struct queue_item a = item_of(2001, FILE_SCRATCH);

	make_bytes(2001, 77);
	assert_int_equal(queue_put(q, &a), 0);
	load(q, &l);
	assert_int_equal(l.count, 1);
	assert_int_equal(l.items[0].size_bytes, 77);
	queue_close(q);
}

static void bytes_without_a_row_are_set_aside_once_before_anybody_writes(void **state)
{
	CLEANUP(loaded_release) struct loaded l = { 0 };
	struct queue *q = open_queue();

	make_bytes(3000, 5);
	make_bytes(3001, 0);
	load(q, &l);
	assert_true(is_there("spool/aside/3000"));
	assert_false(is_there("spool/3000"));
	assert_false(is_there("spool/3001")); /* nothing to lose */
	make_bytes(3002, 5);
	load(q, &l);
	assert_true(is_there("spool/3002")); /* one just being made */
	queue_close(q);
}

static struct queue *put_back_into;

static void put_back(void *arg, const struct queue_item *item)
{
	assert_int_equal(queue_put(put_back_into, item), 0);
	++*(int *)arg;
}

static void what_is_loaded_can_be_put_back_at_once(void **state)
{
	struct queue *q = open_queue();
	int count = 0;

	for (uint64_t ino = 2001; ino < 2011; ino++) {
		struct queue_item i = item_of(ino, FILE_PENDING);
		make_bytes(ino, 5);
		assert_int_equal(queue_put(q, &i), 0);
	}
	put_back_into = q;
	assert_int_equal(queue_load(q, put_back, &count), 0);
	assert_int_equal(count, 10);
	queue_close(q);
}

static void a_row_put_as_it_stands_writes_nothing(void **state)
{
	struct queue *q = open_queue();
	struct queue_item i = item_of(2001, FILE_PENDING);
	struct stat before, after;
	char path[128];

	(void)snprintf(path, sizeof(path), "%s/state.db-wal", dir);
	assert_int_equal(queue_put(q, &i), 0);
	assert_int_equal(stat(path, &before), 0);
	for (int n = 0; n < 100; n++)
		assert_int_equal(queue_put(q, &i), 0);
	assert_int_equal(stat(path, &after), 0);
	assert_int_equal(after.st_size, before.st_size);
	i.words = "new";
	assert_int_equal(queue_put(q, &i), 0);
	assert_int_equal(stat(path, &after), 0);
	assert_true(after.st_size > before.st_size || after.st_mtim.tv_nsec != before.st_mtim.tv_nsec);
	queue_close(q);
}

static void hashes_are_remembered_by_workspace(void **state)
{
	struct queue *q = open_queue();
	char *document_id = NULL, *session_id = NULL;

	assert_int_equal(queue_find_hash(q, "w1", HASH, &document_id, &session_id), -ENOENT);
	assert_int_equal(queue_remember_hash(q, "w1", HASH, "d1", "s1"), 0);
	assert_int_equal(queue_remember_hash(q, "w1", HASH, "d2", NULL), 0);
	assert_int_equal(queue_find_hash(q, "w2", HASH, &document_id, &session_id), -ENOENT);
	queue_close(q);
	q = open_queue();
	assert_int_equal(queue_find_hash(q, "w1", HASH, &document_id, &session_id), 0);
	assert_string_equal(document_id, "d2");
	assert_null(session_id);
	free(document_id);
	assert_int_equal(queue_forget_hash(q, HASH, "d1"), 0); /* another document's: stays */
	assert_int_equal(queue_find_hash(q, "w1", HASH, &document_id, &session_id), 0);
	free(document_id);
	assert_int_equal(queue_forget_hash(q, HASH, "d2"), 0);
	assert_int_equal(queue_find_hash(q, "w1", HASH, &document_id, &session_id), -ENOENT);
	queue_close(q);
}

static void files_of_equal_bytes_are_told_of_a_document_once(void **state)
{
	CLEANUP(loaded_release) struct loaded l = { 0 };
	struct queue *q = open_queue();
	struct queue_item mine = item_of(2001, FILE_PENDING), other = item_of(2002, FILE_PENDING),
			  elsewhere = item_of(2003, FILE_PENDING), unasked = item_of(2004, FILE_PENDING);

	for (uint64_t ino = 2001; ino <= 2004; ino++)
		make_bytes(ino, 5);
	mine.prior_ids = other.prior_ids = elsewhere.prior_ids = "";
	elsewhere.session_id = "s2";
	assert_int_equal(queue_put(q, &mine), 0);
	assert_int_equal(queue_put(q, &other), 0);
	assert_int_equal(queue_put(q, &elsewhere), 0);
	assert_int_equal(queue_put(q, &unasked), 0);
	assert_int_equal(queue_add_prior(q, 2001, "s1", HASH, "d1"), 0);
	assert_int_equal(queue_add_prior(q, 2001, "s1", HASH, "d1"), 0);
	assert_int_equal(queue_add_prior(q, 2001, "s1", HASH, "d10"), 0);
	load(q, &l);
	assert_int_equal(l.count, 4);
	assert_string_equal(l.items[0].prior_ids, "");
	assert_string_equal(l.items[1].prior_ids, "d1 d10");
	assert_string_equal(l.items[2].prior_ids, "");
	assert_null(l.items[3].prior_ids); /* it will ask, and hear of them */
	assert_int_equal(queue_find_stored(q, 2001, "s1", HASH, "me"), -ENOENT);
	other.step = UPLOAD_STORED;
	assert_int_equal(queue_put(q, &other), 0);
	assert_int_equal(queue_find_stored(q, 2001, "s1", HASH, "me"), 0);
	assert_int_equal(queue_find_stored(q, 2002, "s1", HASH, "me"), -ENOENT);
	assert_int_equal(queue_find_stored(q, 2001, "s1", HASH, "you"), -ENOENT);
	queue_close(q);
}

static void a_database_that_is_none_is_told_in_a_sentence(void **state)
{
	CLEANUP(buf_release) struct buf why = BUF(1000);
	struct queue *q = NULL;
	char path[128];

	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	for (int i = 0; i < 1000; i++)
		(void)fputs("this is no database\n", f);
	(void)fclose(f);
	assert_true(queue_open(dir, &why, &q) < 0);
	assert_null(q);
	assert_non_null(strstr(buf_text(&why), "state.db"));
}

struct hammer {
	struct queue *q;
	uint64_t first;
};

static void *hammer(void *arg)
{
	const struct hammer *h = arg;

	for (uint64_t i = 0; i < 25; i++) {
		struct queue_item item = item_of(h->first + i, FILE_PENDING);
		assert_int_equal(queue_put(h->q, &item), 0);
		item.attempts = 1;
		assert_int_equal(queue_put(h->q, &item), 0);
		if (i % 2)
			assert_int_equal(queue_remove(h->q, item.ino), 0);
	}
	return NULL;
}

static void many_threads_may_put_at_once(void **state)
{
	struct queue *q = open_queue();
	struct hammer h[4];
	pthread_t t[4];

	for (int i = 0; i < 4; i++) {
		h[i] = (struct hammer){ q, 5000 + 100 * (uint64_t)i };
		assert_int_equal(pthread_create(&t[i], NULL, hammer, &h[i]), 0);
	}
	for (int i = 0; i < 4; i++)
		(void)pthread_join(t[i], NULL);
	assert_int_equal(sql_count("SELECT count(*) FROM file"), 4 * 13);
	queue_close(q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(all_that_was_put_comes_back, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(what_was_null_stays_null, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(the_oldest_comes_first_and_a_put_replaces, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(each_damage_is_set_aside_and_nothing_else, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_missing_file_sets_its_row_aside, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_scratch_file_may_have_grown_since, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(bytes_without_a_row_are_set_aside_once_before_anybody_writes, make_dir,
						remove_dir),
		cmocka_unit_test_setup_teardown(what_is_loaded_can_be_put_back_at_once, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_row_put_as_it_stands_writes_nothing, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(hashes_are_remembered_by_workspace, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(files_of_equal_bytes_are_told_of_a_document_once, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(a_database_that_is_none_is_told_in_a_sentence, make_dir, remove_dir),
		cmocka_unit_test_setup_teardown(many_threads_may_put_at_once, make_dir, remove_dir),
	};

	log_open(LOG_LEVEL_ERROR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
