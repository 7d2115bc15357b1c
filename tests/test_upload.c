/* fs/upload*.c against a backend in memory: what each answer means for a file, what shares a request, who is told
 * what. That nothing is lost or doubled across crashes is test_upload_crash.c's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/queue.h"
#include "fs/spool.h"
#include "fs/upload.h"
#include "tests/fake_backend.h"

/* ---- what an answer means for a file ------------------------------------------------------------------------ */

#define DAYS(n) (INT64_C(86400000) * (n))

static const struct {
	const char *row;
	struct fault fault;
	struct upload_circumstances at;
	enum next_move next;
	int error;
} rows[] = {
	{ "401 holds the account", { .kind = FAULT_ACCOUNT, .http_status = 401 }, { 0 }, MOVE_HOLD_ACCOUNT, -EACCES },
	{ "401 to a shortcut too",
	  { .kind = FAULT_ACCOUNT, .http_status = 401 },
	  { .by_known_id = true },
	  MOVE_HOLD_ACCOUNT,
	  -EACCES },
	{ "403 from the API is final",
	  { .kind = FAULT_FORBIDDEN, .http_status = 403 },
	  { .step = UPLOAD_STORED },
	  MOVE_FAIL,
	  -EACCES },
	{ "403 from storage signs again",
	  { .kind = FAULT_KEY, .http_status = 403 },
	  { .step = UPLOAD_SIGNED },
	  MOVE_SIGN_AGAIN,
	  -EINVAL },
	{ "422 on keys signs again",
	  { .kind = FAULT_KEY, .http_status = 422 },
	  { .step = UPLOAD_STORED },
	  MOVE_SIGN_AGAIN,
	  -EINVAL },
	{ "a second 422 on a fresh key is final",
	  { .kind = FAULT_KEY, .http_status = 422 },
	  { .step = UPLOAD_STORED, .key_renewed = true },
	  MOVE_FAIL,
	  -EINVAL },
	{ "an old key is no fresh one",
	  { .kind = FAULT_KEY, .http_status = 422 },
	  { .step = UPLOAD_STORED, .key_renewed = true, .ticket_is_old = true },
	  MOVE_SIGN_AGAIN,
	  -EINVAL },
	{ "400 to a shortcut forgets it",
	  { .kind = FAULT_INVALID, .http_status = 400 },
	  { .by_known_id = true },
	  MOVE_FORGET_SHORTCUT,
	  -EINVAL },
	{ "404 to a shortcut forgets it",
	  { .kind = FAULT_GONE, .http_status = 404 },
	  { .by_known_id = true },
	  MOVE_FORGET_SHORTCUT,
	  -ENOENT },
	{ "422 to a shortcut forgets it",
	  { .kind = FAULT_INVALID, .http_status = 422 },
	  { .by_known_id = true },
	  MOVE_FORGET_SHORTCUT,
	  -EINVAL },
	{ "404 holds the session",
	  { .kind = FAULT_GONE, .http_status = 404 },
	  { .step = UPLOAD_STORED },
	  MOVE_HOLD_SESSION,
	  -ENOENT },
	{ "408 is transient", { .kind = FAULT_AWAY, .http_status = 408 }, { 0 }, MOVE_RETRY, -ETIMEDOUT },
	{ "425 is transient", { .kind = FAULT_AWAY, .http_status = 425 }, { 0 }, MOVE_RETRY, -EIO },
	{ "429 is transient", { .kind = FAULT_BUDGET, .http_status = 429 }, { 0 }, MOVE_RETRY, -ETIMEDOUT },
	{ "no place in our limiter is transient", { .kind = FAULT_BUDGET }, { 0 }, MOVE_RETRY, -ETIMEDOUT },
	{ "500 is transient", { .kind = FAULT_AWAY, .http_status = 500 }, { 0 }, MOVE_RETRY, -EIO },
	{ "503 is transient", { .kind = FAULT_AWAY, .http_status = 503 }, { .attempts = 500 }, MOVE_RETRY, -EIO },
	{ "no connection is transient", { .kind = FAULT_AWAY }, { .error = -EIO }, MOVE_RETRY, -EIO },
	{ "a stall is transient", { .kind = FAULT_AWAY }, { .error = -ETIMEDOUT }, MOVE_RETRY, -ETIMEDOUT },
	{ "final after 3 days and 10 tries while others went",
	  { .kind = FAULT_AWAY, .http_status = 500 },
	  { .attempts = 10, .age_ms = DAYS(3), .others_went_through = true },
	  MOVE_FAIL,
	  -EIO },
	{ "not when no other went",
	  { .kind = FAULT_AWAY, .http_status = 500 },
	  { .attempts = 99, .age_ms = DAYS(30) },
	  MOVE_RETRY,
	  -EIO },
	{ "not after 9 tries",
	  { .kind = FAULT_AWAY, .http_status = 500 },
	  { .attempts = 9, .age_ms = DAYS(30), .others_went_through = true },
	  MOVE_RETRY,
	  -EIO },
	{ "not before 3 days",
	  { .kind = FAULT_AWAY, .http_status = 500 },
	  { .attempts = 99, .age_ms = DAYS(3) - 1, .others_went_through = true },
	  MOVE_RETRY,
	  -EIO },
	{ "409 is looked at",
	  { .kind = FAULT_CONFLICT, .http_status = 409 },
	  { .step = UPLOAD_STORED },
	  MOVE_LOOK,
	  -EBUSY },
	{ "413 is final",
	  { .kind = FAULT_TOO_LARGE, .http_status = 413 },
	  { .step = UPLOAD_SIGNED },
	  MOVE_FAIL,
	  -EFBIG },
	{ "other 4xx is final", { .kind = FAULT_INVALID, .http_status = 418 }, { 0 }, MOVE_FAIL, -EINVAL },
	{ "422 on the bytes is final",
	  { .kind = FAULT_INVALID, .http_status = 422 },
	  { .step = UPLOAD_STORED },
	  MOVE_FAIL,
	  -EINVAL },
};

static void each_answer_has_its_meaning(void **state)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct move m = upload_judge(&rows[i].fault, &rows[i].at);
		if (m.next != rows[i].next || m.error != rows[i].error)
			fail_msg("%s: move %d error %d", rows[i].row, m.next, m.error);
	}
}

static void pauses_double_up_to_five_minutes_with_jitter(void **state)
{
	for (int attempts = 0; attempts < 100; attempts++) {
		int64_t full = attempts < 1 ? 1000 : attempts > 9 ? 300000 : INT64_C(1000) << (attempts - 1);
		if (full > 300000)
			full = 300000;
		assert_int_equal(upload_pause_ms(attempts, -1, 0), full / 2);
		assert_in_range(upload_pause_ms(attempts, -1, UINT32_MAX), full - 1, full);
		assert_true(upload_pause_ms(attempts, -1, UINT32_MAX) < full);
	}
	assert_int_equal(upload_pause_ms(1, 40000, 7), 40000);
}

/* ---- a rig ------------------------------------------------------------------------------------------------- */

#define EVENTS_MAX 4096

struct told {
	uint64_t ino;
	enum upload_event event;
	int error;
	char document_id[40];
	char words[200];
};

static struct rig {
	char dir[64], spool_dir[80];
	struct backend *backend;
	struct queue *queue;
	struct uploads *uploads;
	int haste;
	pthread_mutex_t lock; /* guards what follows */
	struct told told[EVENTS_MAX];
	int count;
	char known_id[40]; /* what the owner knows of any bytes */
	char prior_ids[200];
	int known_asked;
	bool row_was_there; /* when the last DONE was told */
} rig;

struct row_search {
	uint64_t ino;
	bool is_there;
	struct queue_item item;
};

static void row_note(void *arg, const struct queue_item *item)
{
	struct row_search *s = arg;

	if (item->ino != s->ino)
		return;
	s->is_there = true;
	queue_item_release(&s->item);
	assert_int_equal(queue_item_copy(item, &s->item), 0);
}

static bool row_find(uint64_t ino, struct queue_item *ret)
{
	struct row_search s = { .ino = ino };

	assert_int_equal(queue_load(rig.queue, row_note, &s), 0);
	if (ret)
		*ret = s.item;
	else
		queue_item_release(&s.item);
	return s.is_there;
}

static void on_event(void *arg, enum upload_event event, const struct queue_item *item, struct listing *document,
		     int error, const char *words)
{
	bool is_there = event == UPLOAD_DONE && row_find(item->ino, NULL);
	SCOPED_LOCK(&rig.lock);

	if (rig.count == EVENTS_MAX)
		return;
	struct told *t = &rig.told[rig.count++];
	*t = (struct told){ .ino = item->ino, .event = event, .error = error };
	(void)snprintf(t->words, sizeof(t->words), "%s", words ? words : "");
	if (document) {
		struct document d;
		listing_get(document, 0, &d);
		(void)snprintf(t->document_id, sizeof(t->document_id), "%s", d.id);
		rig.row_was_there = is_there;
	}
}

static void on_known(void *arg, const char *session_id, const char *sha256, int64_t size_bytes, char **ret_document_id,
		     char **ret_session_id, char **ret_prior_ids)
{
	SCOPED_LOCK(&rig.lock);

	rig.known_asked++;
	if (rig.known_id[0])
		*ret_document_id = strdup(rig.known_id);
	*ret_prior_ids = strdup(rig.prior_ids);
}

static void engine_start(int64_t close_timeout_ms)
{
	struct uploads_config config = { .backend = rig.backend,
					 .queue = rig.queue,
					 .spool_dir = rig.spool_dir,
					 .account = "me",
					 .close_timeout_ms = close_timeout_ms,
					 .transfers_max = 4,
					 .haste = rig.haste,
					 .event = on_event,
					 .known = on_known };

	assert_int_equal(uploads_new(&config, &rig.uploads), 0);
}

static void rig_begin_with(const struct backend_caps *caps, int64_t close_timeout_ms)
{
	struct buf why = BUF(1000);

	memset(&rig, 0, sizeof(rig));
	(void)pthread_mutex_init(&rig.lock, NULL);
	rig.haste = 10;
	/* In memory where that can be had: nobody cuts the power here, and an fsync takes its time. */
	(void)snprintf(rig.dir, sizeof(rig.dir), "/dev/shm/test_upload.XXXXXX");
	if (!mkdtemp(rig.dir)) {
		(void)snprintf(rig.dir, sizeof(rig.dir), "/tmp/test_upload.XXXXXX");
		assert_non_null(mkdtemp(rig.dir));
	}
	(void)snprintf(rig.spool_dir, sizeof(rig.spool_dir), "%s/spool", rig.dir);
	rig.backend = fake_backend_new(caps);
	fake_add_session(rig.backend, "s1", "Q1");
	fake_add_session(rig.backend, "s2", "Q2");
	assert_int_equal(queue_open(rig.dir, &why, &rig.queue), 0);
	buf_release(&why);
	(void)row_find(1, NULL); /* the first load tidies up, and comes before anybody writes */
	engine_start(close_timeout_ms);
}

static void rig_begin(void)
{
	rig_begin_with(NULL, 60000);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return remove(path);
}

static void rig_end(void)
{
	uploads_free(rig.uploads);
	queue_close(rig.queue);
	backend_close(rig.backend);
	pthread_mutex_destroy(&rig.lock);
	(void)nftw(rig.dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void nap(int ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	(void)nanosleep(&t, NULL);
}

/* The first such event of that file, from the nth told on; -1: none yet. */
static int told_index(uint64_t ino, enum upload_event event, int from)
{
	SCOPED_LOCK(&rig.lock);

	for (int i = from; i < rig.count; i++) {
		if (rig.told[i].ino == ino && rig.told[i].event == event)
			return i;
	}
	return -1;
}

static bool was_told(uint64_t ino, enum upload_event event)
{
	return told_index(ino, event, 0) >= 0;
}

static struct told wait_told(uint64_t ino, enum upload_event event)
{
	int64_t until_ms = clock_now_ms() + 15000;
	int i;

	while ((i = told_index(ino, event, 0)) < 0) {
		if (clock_now_ms() > until_ms)
			fail_msg("file %d: event %d did not come", (int)ino, event);
		nap(2);
	}
	SCOPED_LOCK(&rig.lock);
	return rig.told[i];
}

static void forget_told(void)
{
	SCOPED_LOCK(&rig.lock);

	rig.count = 0;
}

static void make_item(uint64_t ino, const char *name, const char *text, struct queue_item *ret)
{
	struct spool *s = NULL;

	assert_int_equal(spool_new(rig.spool_dir, ino, 0, &s), 0);
	assert_int_equal(spool_write(s, text, strlen(text), 0), 0);
	assert_int_equal(spool_sync(s), 0);
	*ret = (struct queue_item){ .ino = ino,
				    .session_id = strdup("s1"),
				    .session_name = strdup("Q1"),
				    .name = strdup(name),
				    .spool_id = ino,
				    .size_bytes = spool_size(s),
				    .kind = FILE_PENDING,
				    .account = strdup("me"),
				    .queued_wall_ms = clock_wall_ms() };
	assert_int_equal(spool_finish(s, ret->sha256), 0);
	spool_freeze(s);
	spool_unref(s);
}

static void send_file(uint64_t ino, const char *name, const char *text, bool somebody_waits)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };

	make_item(ino, name, text, &item);
	assert_int_equal(uploads_submit(rig.uploads, &item, somebody_waits, 0), 0);
}

/* `count` files with bytes of their own, from `first` on. */
static void send_files(uint64_t first, int count, bool somebody_waits)
{
	for (int i = 0; i < count; i++) {
		char name[40], text[40];
		(void)snprintf(name, sizeof(name), "f%d.pdf", (int)first + i);
		(void)snprintf(text, sizeof(text), "bytes of %d", (int)first + i);
		send_file(first + (uint64_t)i, name, text, somebody_waits);
	}
}

static void wait_all_done(uint64_t first, int count)
{
	for (int i = 0; i < count; i++)
		(void)wait_told(first + (uint64_t)i, UPLOAD_DONE);
}

static void wait_row_gone(uint64_t ino)
{
	for (int i = 0; i < 2000 && row_find(ino, NULL); i++)
		nap(2);
	assert_false(row_find(ino, NULL));
}

static void wait_stored(uint64_t first, int count)
{
	struct upload_view v;

	for (int i = 0; i < count; i++) {
		for (int n = 0; uploads_view(rig.uploads, first + (uint64_t)i, &v) == 0 && v.step < UPLOAD_STORED;
		     n++) {
			assert_true(n < 5000);
			nap(2);
		}
	}
}

static const struct fake_fault away = { .kind = FAULT_AWAY, .http_status = 503, .words = "maintenance" };
static const struct fake_fault lost = { .kind = FAULT_AWAY, .takes_effect = true, .error = -ETIMEDOUT };
static const struct fake_fault lost_in_vain = { .kind = FAULT_AWAY, .may_have_happened = true, .error = -ETIMEDOUT };

/* ---- the way up -------------------------------------------------------------------------------------------- */

static void a_file_goes_up_in_three_requests(void **state)
{
	rig_begin();
	send_file(1, "a.pdf", "hello", true);
	struct told t = wait_told(1, UPLOAD_DONE);
	assert_string_equal(t.document_id, fake_document_with(rig.backend, "s1", "hello", 0));
	assert_int_equal(fake_calls_total(rig.backend), 3);
	assert_true(rig.row_was_there); /* it goes after the owner has made a record of his own */
	wait_row_gone(1);
	assert_int_equal(rig.known_asked, 1);
	rig_end();
}

static void what_is_stored_during_an_attach_shares_the_next(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_BEFORE);
	send_file(1, "a.pdf", "first", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_ATTACH, 1)); /* alone, and at once */
	send_files(2, 8, false);
	wait_stored(2, 8);
	fake_let_go(rig.backend, FAKE_UPLOAD_ATTACH);
	wait_all_done(1, 9);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 2);
	assert_int_equal(fake_batch_max(rig.backend), 8);
	assert_int_equal(fake_running_max(rig.backend, FAKE_UPLOAD_ATTACH), 1);
	rig_end();
}

static void transfers_run_beside_each_other_and_leave_a_place_for_people(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_files(1, 10, false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 3));
	nap(50);
	assert_int_equal(fake_running_max(rig.backend, FAKE_UPLOAD_STORE), 3);
	send_file(50, "person.pdf", "somebody waits", true);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 4));
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	(void)wait_told(50, UPLOAD_DONE);
	wait_all_done(1, 10);
	rig_end();
}

static void a_refused_batch_is_taken_apart(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_BEFORE);
	send_file(1, "a.pdf", "first", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_ATTACH, 1));
	fake_fail_upload(rig.backend, "f5.pdf", -1, true,
			 &(struct fake_fault){ .kind = FAULT_INVALID, .http_status = 422, .words = "no such format" });
	send_files(2, 8, false);
	wait_stored(2, 8);
	fake_let_go(rig.backend, FAKE_UPLOAD_ATTACH);
	struct told t = wait_told(5, UPLOAD_REFUSED);
	assert_int_equal(t.error, -EINVAL);
	assert_non_null(strstr(t.words, "no such format"));
	for (int i = 1; i <= 9; i++) {
		if (i != 5)
			(void)wait_told((uint64_t)i, UPLOAD_DONE);
	}
	assert_int_equal(fake_document_count(rig.backend, "s1"), 8);
	assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 2, 9);
	rig_end();
}

static void a_neighbour_that_is_told_to_ask_again_does_so_without_the_guilty(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_BEFORE);
	send_file(1, "a.pdf", "first", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_ATTACH, 1));
	fake_fail_upload(rig.backend, "f3.pdf", 1, false,
			 &(struct fake_fault){ .kind = FAULT_TOO_LARGE, .http_status = 413, .words = "too large" });
	send_files(2, 3, false);
	wait_stored(2, 3);
	fake_let_go(rig.backend, FAKE_UPLOAD_ATTACH);
	assert_int_equal(wait_told(3, UPLOAD_REFUSED).error, -EFBIG);
	(void)wait_told(2, UPLOAD_DONE);
	(void)wait_told(4, UPLOAD_DONE);
	rig_end();
}

/* ---- links asked for ahead --------------------------------------------------------------------------------- */

static void wait_calls(enum fake_op op, int count)
{
	for (int n = 0; fake_calls(rig.backend, op) < count; n++) {
		assert_true(n < 5000);
		nap(1);
	}
}

static void a_link_asked_for_ahead_is_the_one_that_is_used(void **state)
{
	rig_begin();
	uploads_sign_ahead(rig.uploads, 1, "s1", "a.pdf");
	uploads_sign_ahead(rig.uploads, 1, "s1", "a.pdf"); /* once is enough */
	wait_calls(FAKE_UPLOAD_SIGN, 1);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls_total(rig.backend), 3);
	rig_end();
}

static void a_link_that_is_on_its_way_is_waited_for(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_SIGN, HOLD_BEFORE);
	uploads_sign_ahead(rig.uploads, 1, "s1", "a.pdf");
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_SIGN, 1));
	send_file(1, "a.pdf", "hello", true);
	nap(50);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 1);
	fake_let_go(rig.backend, FAKE_UPLOAD_SIGN);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls_total(rig.backend), 3);
	rig_end();
}

/* What will not do, or did not come, has no effect but one request. */
static void a_link_that_will_not_do_is_thrown_away(void **state)
{
	enum { OTHER_TYPE, OTHER_SESSION, TOO_OLD, FAILED, FORGOTTEN, WAYS };

	for (int way = 0; way < WAYS; way++) {
		struct backend_caps caps = fake_caps();
		if (way == TOO_OLD)
			caps.key_lifetime_ms = 150;
		rig_begin_with(&caps, 60000);
		if (way == FAILED)
			fake_fail(rig.backend, FAKE_UPLOAD_SIGN, 1, &away);
		uploads_sign_ahead(rig.uploads, 1, way == OTHER_SESSION ? "s2" : "s1", way == OTHER_TYPE ? "a.png" : "a.pdf");
		wait_calls(FAKE_UPLOAD_SIGN, 1);
		if (way == TOO_OLD)
			nap(200);
		else
			nap(20);
		if (way == FORGOTTEN)
			assert_int_equal(uploads_cancel(rig.uploads, 1, false), -ENOENT);
		send_file(1, "a.pdf", "hello", true);
		(void)wait_told(1, UPLOAD_DONE);
		assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 2);
		assert_int_equal(fake_calls_total(rig.backend), 4);
		assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
		assert_false(was_told(1, UPLOAD_WAITING));
		rig_end();
	}
}

static void nothing_is_asked_ahead_of_people_or_of_a_failing_service(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_files(10, 3, false); /* all places but the one for people */
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 3));
	uploads_sign_ahead(rig.uploads, 1, "s1", "a.pdf");
	nap(30);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 3);
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	wait_all_done(10, 3);
	fake_fail(rig.backend, FAKE_UPLOAD_SIGN, -1, &(struct fake_fault){ .kind = FAULT_ACCOUNT, .http_status = 401 });
	send_file(20, "b.pdf", "other", true);
	(void)wait_told(20, UPLOAD_WAITING);
	fake_count_anew(rig.backend);
	uploads_sign_ahead(rig.uploads, 1, "s1", "a.pdf");
	nap(30);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 0);
	rig_end();
}

static void many_links_ahead_that_nobody_uses_take_bounded_room(void **state)
{
	rig_begin();
	for (int i = 0; i < 100; i++) {
		int before = fake_calls(rig.backend, FAKE_UPLOAD_SIGN);
		for (int n = 0; fake_calls(rig.backend, FAKE_UPLOAD_SIGN) == before; n++) {
			assert_true(n < 1000);
			uploads_sign_ahead(rig.uploads, 100 + (uint64_t)i, "s1", "a.pdf");
			nap(1);
		}
	}
	send_file(199, "z.pdf", "hello", true); /* the newest is there yet */
	(void)wait_told(199, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 100);
	send_file(100, "a.pdf", "world", true); /* the oldest is not */
	(void)wait_told(100, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 101);
	rig_end();
}

/* ---- shortcuts --------------------------------------------------------------------------------------------- */

static void known_bytes_are_attached_by_id_alone(void **state)
{
	rig_begin();
	(void)snprintf(rig.known_id, sizeof(rig.known_id), "%s",
		       fake_add_document(rig.backend, "s2", "x.pdf", "hello"));
	send_file(1, "a.pdf", "hello", true);
	struct told t = wait_told(1, UPLOAD_DONE);
	assert_string_equal(t.document_id, rig.known_id);
	assert_int_equal(fake_calls(rig.backend, FAKE_ATTACH), 1);
	assert_int_equal(fake_calls_total(rig.backend), 1);
	wait_row_gone(1);
	rig_end();
}

static void a_shortcut_that_is_refused_is_forgotten(void **state)
{
	static const struct fake_fault faults[] = { { .kind = FAULT_GONE, .http_status = 404 },
						    { .kind = FAULT_INVALID, .http_status = 422 },
						    { .kind = FAULT_INVALID, .http_status = 400 },
						    { .kind = FAULT_INVALID, .http_status = 422, .error = -EXDEV },
						    { .kind = FAULT_NONE + FAULT_GONE, .http_status = 404 } };

	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
		rig_begin();
		(void)snprintf(rig.known_id, sizeof(rig.known_id), "%s",
			       fake_add_document(rig.backend, "s2", "x.pdf", "hello"));
		fake_fail(rig.backend, FAKE_ATTACH, -1, &faults[i]);
		send_file(1, "a.pdf", "hello", true);
		(void)wait_told(1, UPLOAD_DONE);
		assert_int_equal(fake_calls(rig.backend, FAKE_ATTACH), 1);
		assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 1);
		rig_end();
	}
}

static void one_bad_shortcut_does_not_spoil_the_others(void **state)
{
	rig_begin();
	const char *good = fake_add_document(rig.backend, "s2", "x.pdf", "hello");
	(void)snprintf(rig.known_id, sizeof(rig.known_id), "%s", good);
	fake_hold(rig.backend, FAKE_ATTACH, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", false);
	assert_true(fake_wait_held(rig.backend, FAKE_ATTACH, 1));
	send_file(2, "b.pdf", "hello", false);
	send_file(3, "c.pdf", "hello", false);
	for (int i = 0; i < 2; i++)
		wait_told(2 + (uint64_t)i, UPLOAD_MOVED);
	nap(50);
	{
		SCOPED_LOCK(&rig.lock);
		(void)snprintf(rig.known_id, sizeof(rig.known_id), "no-such-document");
	}
	send_file(4, "d.pdf", "other", false);
	nap(50);
	fake_let_go(rig.backend, FAKE_ATTACH);
	wait_all_done(1, 4);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 1);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 2);
	rig_end();
}

static void copies_with_ids_of_their_own_are_asked_for_one_by_one(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.attach_keeps_id = caps.reuses_bytes = false;
	rig_begin_with(&caps, 60000);
	(void)snprintf(rig.known_id, sizeof(rig.known_id), "%s",
		       fake_add_document(rig.backend, "s2", "x.pdf", "hello"));
	send_file(1, "a.pdf", "hello", false);
	send_file(2, "b.pdf", "hello", false);
	wait_all_done(1, 2);
	assert_int_equal(fake_calls(rig.backend, FAKE_ATTACH), 2);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 2);
	rig_end();
}

/* ---- lost answers ------------------------------------------------------------------------------------------ */

static void a_lost_answer_is_looked_up_and_not_repeated(void **state)
{
	struct backend_caps caps = fake_caps();

	for (int reuses = 0; reuses < 2; reuses++) {
		caps.reuses_bytes = reuses;
		rig_begin_with(&caps, 60000);
		fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost);
		send_file(1, "a.pdf", "hello", true);
		(void)wait_told(1, UPLOAD_DONE);
		assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 1);
		assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_FIND), 1);
		assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
		rig_end();
	}
}

static void a_request_that_was_lost_itself_is_repeated_after_a_look(void **state)
{
	rig_begin();
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost_in_vain);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_FIND), 1);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 2);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	rig_end();
}

static void a_document_from_before_is_not_taken_for_ours(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.reuses_bytes = false;
	rig_begin_with(&caps, 60000);
	(void)snprintf(rig.prior_ids, sizeof(rig.prior_ids), "%s",
		       fake_add_document(rig.backend, "s1", "x.pdf", "hello"));
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost_in_vain);
	send_file(1, "a.pdf", "hello", true);
	struct told t = wait_told(1, UPLOAD_DONE);
	assert_string_not_equal(t.document_id, rig.prior_ids);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 2);
	rig_end();
}

static void equal_bytes_under_two_names_are_two_documents_even_when_answers_are_lost(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.reuses_bytes = false;
	caps.attach_batch_max = 1;
	rig_begin_with(&caps, 60000);
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost);
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost_in_vain);
	send_file(1, "a.pdf", "hello", false);
	send_file(2, "b.pdf", "hello", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 2)); /* both know of no document before */
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	wait_all_done(1, 2);
	assert_string_not_equal(wait_told(1, UPLOAD_DONE).document_id, wait_told(2, UPLOAD_DONE).document_id);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 2);
	rig_end();
}

static void a_lost_batch_is_looked_up_in_one_listing(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_BEFORE);
	send_file(1, "a.pdf", "first", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_ATTACH, 1));
	send_files(2, 8, false);
	wait_stored(2, 8);
	/* Faults are taken when the request goes on: the first for the one that is held. */
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost);
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost);
	fake_let_go(rig.backend, FAKE_UPLOAD_ATTACH);
	wait_all_done(1, 9);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 9);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 2);
	assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_FIND) + fake_calls(rig.backend, FAKE_LIST_DOCUMENTS), 1, 3);
	rig_end();
}

static void a_service_whose_store_has_effect_is_looked_at_before_a_second_store(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.reuses_bytes = caps.attach_keeps_id = false;
	caps.store_has_effect = true;
	rig_begin_with(&caps, 60000);
	fake_fail(rig.backend, FAKE_UPLOAD_STORE, 1, &lost);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_STORE), 1);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	rig_end();
}

/* A limit that is enforced behind the service: the answer is "too many requests", and it was done all the same. */
static const struct fake_fault limited = {
	.kind = FAULT_BUDGET, .http_status = 429, .takes_effect = true, .is_denied = true
};
static const struct fake_fault used_up = { .kind = FAULT_KEY, .http_status = 422, .words = "keys.0 is invalid" };
static const struct fake_fault not_there = { .kind = FAULT_GONE, .http_status = 200 };

static void a_limited_answer_to_what_took_effect_is_looked_up_when_the_key_is_used_up(void **state)
{
	struct backend_caps caps = fake_caps();

	for (int reuses = 0; reuses < 2; reuses++) {
		for (int times = 1; times < 4; times += 2) {
			caps.reuses_bytes = reuses;
			rig_begin_with(&caps, 60000);
			fake_use_keys_up(rig.backend);
			fake_fail_upload(rig.backend, "a.pdf", times, false, &limited);
			send_file(1, "a.pdf", "hello", true);
			(void)wait_told(1, UPLOAD_DONE);
			assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
			assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 1);
			assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_FIND), 1);
			rig_end();
		}
	}
}

static void resume_row(void *arg, const struct queue_item *item)
{
	assert_int_equal(uploads_submit(rig.uploads, item, false, 0), 0);
}

static void take_up_again(void)
{
	forget_told();
	engine_start(60000);
	assert_int_equal(queue_load(rig.queue, resume_row, NULL), 0);
}

static void wait_failed_once(uint64_t ino)
{
	struct upload_view v = { 0 };

	for (int n = 0; uploads_view(rig.uploads, ino, &v) == 0 && v.error == 0; n++) {
		assert_true(n < 5000);
		nap(2);
	}
	assert_true(v.error < 0);
}

/* The same, and the daemon ends while it is sent, before it is tried again, or while it is looked up. */
static void a_used_up_key_is_looked_up_after_a_restart_too(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.reuses_bytes = false;
	for (int end = 0; end < 3; end++) {
		rig_begin_with(&caps, 60000);
		fake_use_keys_up(rig.backend);
		fake_fail_upload(rig.backend, "a.pdf", 1, false, &limited);
		if (end == 0)
			fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_AFTER);
		else if (end == 2)
			fake_hold(rig.backend, FAKE_UPLOAD_FIND, HOLD_BEFORE);
		send_file(1, "a.pdf", "hello", true);
		if (end == 1)
			wait_failed_once(1);
		else
			assert_true(fake_wait_held(rig.backend, end == 0 ? FAKE_UPLOAD_ATTACH : FAKE_UPLOAD_FIND, 1));
		uploads_free(rig.uploads); /* cancels what is held */
		fake_heal(rig.backend);
		take_up_again();
		(void)wait_told(1, UPLOAD_DONE);
		assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
		wait_row_gone(1);
		rig_end();
	}
}

static void a_key_that_grew_old_after_a_limited_answer_is_looked_up_before_another_is_asked_for(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.reuses_bytes = false;
	caps.key_lifetime_ms = 300; /* shorter than the pause after the first failure */
	rig_begin_with(&caps, 60000);
	uploads_free(rig.uploads);
	rig.haste = 1;
	engine_start(60000);
	fake_use_keys_up(rig.backend);
	fake_fail_upload(rig.backend, "a.pdf", 1, false, &limited);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 1);
	rig_end();
}

static void a_look_that_found_nothing_does_not_vouch_for_what_is_sent_after_it(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.reuses_bytes = false;
	rig_begin_with(&caps, 60000);
	fake_use_keys_up(rig.backend);
	fake_fail_upload(rig.backend, "a.pdf", 1, false, &lost_in_vain);
	fake_fail_upload(rig.backend, "a.pdf", 1, false, &limited);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_FIND), 2);
	rig_end();
}

/* Look, refused key, look: it comes to an end, whichever step makes the document. */
static void a_key_that_is_refused_for_ever_comes_to_an_end(void **state)
{
	struct backend_caps caps = fake_caps();

	for (int kind = 0; kind < 4; kind++) {
		caps.reuses_bytes = caps.attach_keeps_id = kind & 1;
		caps.store_has_effect = kind & 2;
		rig_begin_with(&caps, 60000);
		fake_fail(rig.backend, FAKE_UPLOAD_FIND, -1, &not_there);
		fake_fail_upload(rig.backend, "a.pdf", 1, false, &limited);
		fake_fail_upload(rig.backend, "a.pdf", -1, false, &used_up);
		send_file(1, "a.pdf", "hello", true);
		struct told t = wait_told(1, UPLOAD_REFUSED);
		assert_int_equal(t.error, -EINVAL);
		assert_non_null(strstr(t.words, "keys.0 is invalid"));
		assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 2, 2);
		assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_STORE), 2, 2);
		assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_FIND), 1, 2);
		assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 3, 3);
		rig_end();
	}
}

/* The second key is refused too, and what was sent by it is there. */
static void what_came_of_a_second_refused_key_is_looked_up_before_it_is_a_failure(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.reuses_bytes = caps.attach_keeps_id = false;
	caps.store_has_effect = true;
	rig_begin_with(&caps, 60000);
	fake_fail(rig.backend, FAKE_UPLOAD_STORE, 1, &(struct fake_fault){ .kind = FAULT_KEY, .http_status = 403 });
	fake_fail_upload(rig.backend, "a.pdf", -1, false, &used_up);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	rig_end();
}

/* A link may end while its bytes move: the age it was used at counts, or a slow line sends them for ever. */
static void a_transfer_that_outlives_its_link_and_is_refused_twice_is_final(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.key_lifetime_ms = 100;
	rig_begin_with(&caps, 60000);
	fake_latency(rig.backend, FAKE_UPLOAD_STORE, 200);
	fake_fail(rig.backend, FAKE_UPLOAD_STORE, -1, &(struct fake_fault){ .kind = FAULT_KEY, .http_status = 403 });
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_REFUSED);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_STORE), 2);
	rig_end();
}

/* A second attach of the same id may be refused for being the second. */
static void a_shortcut_that_is_refused_after_a_limited_answer_is_looked_up(void **state)
{
	rig_begin();
	(void)snprintf(rig.known_id, sizeof(rig.known_id), "%s",
		       fake_add_document(rig.backend, "s2", "x.pdf", "hello"));
	fake_fail(rig.backend, FAKE_ATTACH, 1, &limited);
	fake_fail(rig.backend, FAKE_ATTACH, 1, &(struct fake_fault){ .kind = FAULT_INVALID, .http_status = 422 });
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 0);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	rig_end();
}

/* ---- refusals and holds ------------------------------------------------------------------------------------ */

static void a_forbidden_upload_names_the_ability_and_keeps_its_bytes(void **state)
{
	CLEANUP(queue_item_release) struct queue_item row = { 0 };
	struct upload_view v;
	int waiting, failed;

	rig_begin();
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1,
		  &(struct fake_fault){ .kind = FAULT_FORBIDDEN,
					.http_status = 403,
					.words = "This action is unauthorized.",
					.ability = "sessions-write" });
	send_file(1, "a.pdf", "hello", true);
	struct told t = wait_told(1, UPLOAD_REFUSED);
	assert_int_equal(t.error, -EACCES);
	assert_string_equal(t.words, "needs sessions-write: This action is unauthorized.");
	assert_true(row_find(1, &row));
	assert_int_equal(row.kind, FILE_FAILED);
	assert_int_equal(row.error, -EACCES);
	assert_string_equal(row.words, t.words);
	for (int i = 0; i < 500; i++) { /* the last event comes before the last look at it */
		assert_int_equal(uploads_view(rig.uploads, 1, &v), 0);
		uploads_count(rig.uploads, &waiting, &failed);
		if (failed)
			break;
		nap(2);
	}
	assert_int_equal(v.state, STATE_FAILED);
	assert_int_equal(waiting, 0);
	assert_int_equal(failed, 1);
	/* Asked for once more it begins from the beginning. */
	assert_int_equal(uploads_retry(rig.uploads, 1), 0);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 2);
	wait_row_gone(1);
	rig_end();
}

static void a_refused_key_is_renewed_once(void **state)
{
	static const struct fake_fault key = { .kind = FAULT_KEY, .http_status = 422, .words = "keys.0 is invalid" };

	rig_begin();
	fake_fail(rig.backend, FAKE_UPLOAD_STORE, 1, &(struct fake_fault){ .kind = FAULT_KEY, .http_status = 403 });
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 2);
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 2, &key);
	send_file(2, "b.pdf", "other", true);
	struct told t = wait_told(2, UPLOAD_REFUSED);
	assert_int_equal(t.error, -EINVAL);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 4);
	rig_end();
}

static void a_conflict_is_success_once_found(void **state)
{
	static const struct fake_fault conflict = { .kind = FAULT_CONFLICT, .http_status = 409 };

	rig_begin();
	(void)fake_add_document(rig.backend, "s1", "x.pdf", "hello");
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &conflict);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &conflict);
	send_file(2, "b.pdf", "other", true);
	assert_int_equal(wait_told(2, UPLOAD_REFUSED).error, -EBUSY);
	rig_end();
}

static void refused_credentials_hold_all_files_until_retry(void **state)
{
	struct upload_view v;

	rig_begin();
	fake_fail(rig.backend, FAKE_UPLOAD_SIGN, -1, &(struct fake_fault){ .kind = FAULT_ACCOUNT, .http_status = 401 });
	send_file(1, "a.pdf", "hello", true);
	assert_int_equal(wait_told(1, UPLOAD_WAITING).error, -EACCES);
	send_files(10, 20, false);
	nap(100);
	assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 1, 2);
	assert_int_equal(uploads_view(rig.uploads, 10, &v), 0);
	assert_int_equal(v.state, STATE_WAITING);
	assert_int_equal(v.error, -EACCES);
	fake_heal(rig.backend);
	assert_int_equal(uploads_retry(rig.uploads, 0), 0);
	(void)wait_told(1, UPLOAD_DONE);
	wait_all_done(10, 20);
	rig_end();
}

static void a_session_that_is_gone_holds_its_own_files_alone(void **state)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };
	struct upload_view v;

	rig_begin();
	fake_remove_session(rig.backend, "s1");
	send_file(1, "a.pdf", "hello", true);
	assert_int_equal(wait_told(1, UPLOAD_WAITING).error, -ENOENT);
	send_files(10, 10, false);
	nap(100);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 1);
	make_item(2, "b.pdf", "world", &item);
	free(item.session_id);
	item.session_id = strdup("s2");
	assert_int_equal(uploads_submit(rig.uploads, &item, true, 0), 0);
	(void)wait_told(2, UPLOAD_DONE);
	assert_int_equal(uploads_view(rig.uploads, 10, &v), 0);
	assert_int_equal(v.state, STATE_WAITING);
	assert_int_equal(v.error, -ENOENT);
	/* Moved to one that is there it goes on. */
	assert_int_equal(uploads_rename(rig.uploads, 10, "s2", "Q2", "f10.pdf"), 0);
	(void)wait_told(10, UPLOAD_DONE);
	rig_end();
}

static void another_accounts_files_wait_without_a_request(void **state)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };
	struct upload_view v;

	rig_begin();
	make_item(1, "a.pdf", "hello", &item);
	free(item.account);
	item.account = strdup("somebody else");
	assert_int_equal(uploads_submit(rig.uploads, &item, false, 0), 0);
	assert_int_equal(uploads_retry(rig.uploads, 0), 0);
	nap(50);
	assert_int_equal(fake_calls_total(rig.backend), 0);
	assert_int_equal(uploads_view(rig.uploads, 1, &v), 0);
	assert_int_equal(v.state, STATE_WAITING);
	assert_non_null(strstr(v.words, "another account"));
	rig_end();
}

static void bytes_that_vanished_are_a_refusal_and_no_endless_retry(void **state)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };

	rig_begin();
	make_item(1, "a.pdf", "hello", &item);
	spool_unlink_id(rig.spool_dir, 1);
	assert_int_equal(uploads_submit(rig.uploads, &item, true, 0), 0);
	assert_int_equal(wait_told(1, UPLOAD_REFUSED).error, -EIO);
	rig_end();
}

/* ---- trouble and patience ---------------------------------------------------------------------------------- */

static void short_trouble_is_not_told(void **state)
{
	rig_begin();
	fake_fail(rig.backend, FAKE_UPLOAD_SIGN, 1, &away);
	fake_fail(rig.backend, FAKE_UPLOAD_STORE, 1, &away);
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &away);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_DONE);
	assert_false(was_told(1, UPLOAD_WAITING));
	assert_int_equal(fake_calls_total(rig.backend), 6);
	rig_end();
}

static void a_failing_service_is_told_after_the_close_timeout_and_goes_on(void **state)
{
	rig_begin_with(NULL, 500);
	fake_fail(rig.backend, FAKE_UPLOAD_SIGN, -1, &away);
	int64_t since_ms = clock_now_ms();
	send_file(1, "a.pdf", "hello", true);
	struct told t = wait_told(1, UPLOAD_WAITING);
	assert_int_equal(t.error, -EIO);
	assert_non_null(strstr(t.words, "maintenance"));
	assert_true(clock_now_ms() - since_ms >= 400);
	fake_heal(rig.backend);
	(void)wait_told(1, UPLOAD_DONE);
	rig_end();
}

static void a_stall_is_a_timeout(void **state)
{
	rig_begin_with(NULL, 300);
	fake_hold(rig.backend, FAKE_UPLOAD_SIGN, HOLD_BEFORE);
	int64_t since_ms = clock_now_ms();
	send_file(1, "a.pdf", "hello", true);
	assert_int_equal(wait_told(1, UPLOAD_WAITING).error, -ETIMEDOUT);
	assert_true(clock_now_ms() - since_ms >= 250);
	fake_let_go(rig.backend, FAKE_UPLOAD_SIGN);
	(void)wait_told(1, UPLOAD_DONE); /* the same request, not a second one */
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 1);
	rig_end();
}

static void once_away_later_closes_make_one_attempt(void **state)
{
	rig_begin_with(NULL, 300);
	fake_fail(rig.backend, FAKE_UPLOAD_SIGN, -1, &away);
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_WAITING);
	int calls = fake_calls(rig.backend, FAKE_UPLOAD_SIGN);
	int64_t since_ms = clock_now_ms();
	send_file(2, "b.pdf", "world", true);
	assert_int_equal(wait_told(2, UPLOAD_WAITING).error, -EIO);
	assert_true(clock_now_ms() - since_ms < 700);
	assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_SIGN) - calls, 1, 2); /* and perhaps a probe */
	fake_heal(rig.backend);
	fake_hold(rig.backend, FAKE_UPLOAD_SIGN, HOLD_BEFORE);
	since_ms = clock_now_ms();
	send_file(3, "c.pdf", "!", true);
	assert_int_equal(wait_told(3, UPLOAD_WAITING).error, -ETIMEDOUT);
	fake_let_go(rig.backend, FAKE_UPLOAD_SIGN);
	wait_all_done(1, 3);
	/* One success, and a close has its whole time again. */
	fake_fail(rig.backend, FAKE_UPLOAD_SIGN, 1, &away);
	send_file(4, "d.pdf", "?", true);
	(void)wait_told(4, UPLOAD_DONE);
	assert_false(was_told(4, UPLOAD_WAITING));
	rig_end();
}

static void many_files_do_not_hammer_a_service_that_is_away(void **state)
{
	rig_begin();
	fake_fail(rig.backend, FAKE_UPLOAD_SIGN, -1, &away);
	send_files(1, 50, false);
	nap(500);
	/* The first few at once, then one at a time with growing pauses. */
	assert_in_range(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 3, 12);
	fake_heal(rig.backend);
	uploads_service_answered(rig.uploads);
	int64_t since_ms = clock_now_ms();
	wait_all_done(1, 50);
	assert_true(clock_now_ms() - since_ms < 5000); /* one success wakes all */
	rig_end();
}

static void one_bad_file_does_not_keep_the_others_out(void **state)
{
	rig_begin();
	fake_fail_upload(rig.backend, "bad.pdf", -1, false, &away);
	send_file(100, "bad.pdf", "poison", false);
	send_files(1, 20, false);
	wait_all_done(1, 20);
	assert_false(was_told(100, UPLOAD_DONE));
	rig_end();
}

static void those_in_line_wait_while_others_move(void **state)
{
	rig_begin_with(NULL, 600);
	fake_latency(rig.backend, FAKE_UPLOAD_ATTACH, 150); /* six or more of them */
	send_files(1, 60, true);
	wait_all_done(1, 60);
	for (int i = 1; i <= 60; i++)
		assert_false(was_told((uint64_t)i, UPLOAD_WAITING));
	rig_end();
}

static void who_joins_is_told_as_well(void **state)
{
	rig_begin_with(NULL, 200);
	assert_int_equal(uploads_join(rig.uploads, 1), -ENOENT);
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	nap(300);
	assert_false(was_told(1, UPLOAD_WAITING)); /* nobody waited */
	assert_int_equal(uploads_join(rig.uploads, 1), 0);
	(void)wait_told(1, UPLOAD_WAITING);
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	(void)wait_told(1, UPLOAD_DONE);
	rig_end();
}

static void settling_files_wait_for_their_time(void **state)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };

	rig_begin();
	make_item(1, "a.pdf", "hello", &item);
	assert_int_equal(uploads_submit(rig.uploads, &item, false, clock_now_ms() + 400), 0);
	nap(150);
	assert_int_equal(fake_calls_total(rig.backend), 0);
	(void)wait_told(1, UPLOAD_DONE);
	rig_end();
}

/* ---- changes of mind --------------------------------------------------------------------------------------- */

static void a_canceled_transfer_ends_and_leaves_nothing(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", true);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	assert_int_equal(uploads_cancel(rig.uploads, 1, false), 0);
	assert_false(row_find(1, NULL));
	assert_int_equal(uploads_cancel(rig.uploads, 1, false), -ENOENT);
	/* The same file again, while the old call may still be on its way out. */
	spool_unlink_id(rig.spool_dir, 1);
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	send_file(1, "a.pdf", "hello again", true);
	(void)wait_told(1, UPLOAD_DONE);
	nap(50);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	assert_false(was_told(1, UPLOAD_CANCELED));
	rig_end();
}

static void a_kept_row_is_a_scratch_files(void **state)
{
	CLEANUP(queue_item_release) struct queue_item row = { 0 };

	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_SIGN, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", true);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_SIGN, 1));
	assert_int_equal(uploads_cancel(rig.uploads, 1, true), 0);
	assert_true(row_find(1, &row));
	assert_int_equal(row.kind, FILE_SCRATCH);
	assert_string_equal(row.name, "a.pdf");
	fake_let_go(rig.backend, FAKE_UPLOAD_SIGN);
	nap(50);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 0);
	rig_end();
}

static void a_cancel_during_the_last_step_tells_how_it_ended(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_ATTACH, 1));
	assert_int_equal(uploads_cancel(rig.uploads, 1, false), -EINPROGRESS);
	assert_int_equal(uploads_rename(rig.uploads, 1, "s1", "Q1", "b.pdf"), -EINPROGRESS);
	fake_let_go(rig.backend, FAKE_UPLOAD_ATTACH);
	(void)wait_told(1, UPLOAD_DONE); /* it had happened */

	fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_BEFORE);
	send_file(2, "b.pdf", "world", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_ATTACH, 1));
	assert_int_equal(uploads_cancel(rig.uploads, 2, false), -EINPROGRESS);
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost_in_vain);
	fake_let_go(rig.backend, FAKE_UPLOAD_ATTACH);
	(void)wait_told(2, UPLOAD_CANCELED); /* it had not */
	assert_false(row_find(2, NULL));
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_FIND), 1);

	fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_BEFORE);
	send_file(3, "c.pdf", "!", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_ATTACH, 1));
	assert_int_equal(uploads_cancel(rig.uploads, 3, false), -EINPROGRESS);
	fake_fail(rig.backend, FAKE_UPLOAD_ATTACH, 1, &lost);
	fake_let_go(rig.backend, FAKE_UPLOAD_ATTACH);
	(void)wait_told(3, UPLOAD_DONE); /* it had, and the answer was lost */
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 3);
	rig_end();
}

static void a_rename_before_the_last_step_is_what_the_service_gets(void **state)
{
	CLEANUP(queue_item_release) struct queue_item row = { 0 };
	struct backend_caps caps = fake_caps();

	caps.keeps_names = true;
	rig_begin_with(&caps, 60000);
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	assert_int_equal(uploads_rename(rig.uploads, 1, "s2", "Q2", "b.pdf"), 0);
	assert_true(row_find(1, &row));
	assert_string_equal(row.name, "b.pdf");
	assert_string_equal(row.session_id, "s2");
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	struct told t = wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_document_count(rig.backend, "s2"), 1);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 0);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 1);
	assert_string_equal(fake_document_name(rig.backend, t.document_id), "b.pdf");
	rig_end();
}

static void another_type_is_signed_anew(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	assert_int_equal(uploads_rename(rig.uploads, 1, "s1", "Q1", "a.png"), 0);
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 2);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	rig_end();
}

static void a_failed_file_can_be_discarded(void **state)
{
	int waiting, failed;

	rig_begin();
	fake_fail(rig.backend, FAKE_UPLOAD_SIGN, 1, &(struct fake_fault){ .kind = FAULT_INVALID, .http_status = 422 });
	send_file(1, "a.pdf", "hello", true);
	(void)wait_told(1, UPLOAD_REFUSED);
	assert_int_equal(uploads_cancel(rig.uploads, 1, false), 0);
	assert_false(row_find(1, NULL));
	nap(20);
	uploads_count(rig.uploads, &waiting, &failed);
	assert_int_equal(failed, 0);
	rig_end();
}

/* ---- our own disk ------------------------------------------------------------------------------------------ */

static void sql(const char *text)
{
	char path[100];
	sqlite3 *db = NULL;

	(void)snprintf(path, sizeof(path), "%s/state.db", rig.dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_busy_timeout(db, 10000), SQLITE_OK);
	if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK)
		fail_msg("%s: %s", text, sqlite3_errmsg(db));
	(void)sqlite3_close(db);
}

#define REFUSE(when) "CREATE TRIGGER refuse BEFORE " when " ON file BEGIN SELECT RAISE(FAIL, 'the disk refuses'); END"

static void what_cannot_be_queued_is_told_at_once_and_not_begun(void **state)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };
	struct upload_view v;

	rig_begin();
	sql(REFUSE("INSERT"));
	make_item(1, "a.pdf", "hello", &item);
	assert_true(uploads_submit(rig.uploads, &item, true, 0) < 0);
	nap(30);
	assert_int_equal(fake_calls_total(rig.backend), 0);
	assert_int_equal(uploads_view(rig.uploads, 1, &v), -ENOENT);
	sql("DROP TRIGGER refuse");
	assert_int_equal(uploads_submit(rig.uploads, &item, true, 0), 0);
	(void)wait_told(1, UPLOAD_DONE);
	rig_end();
}

static void no_last_step_is_sent_that_the_row_does_not_know_of(void **state)
{
	rig_begin_with(NULL, 500);
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", true);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	sql(REFUSE("UPDATE"));
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	assert_int_equal(wait_told(1, UPLOAD_WAITING).error, -EIO);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 0);
	sql("DROP TRIGGER refuse");
	assert_int_equal(uploads_retry(rig.uploads, 0), 0);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_STORE), 1);
	rig_end();
}

static void who_waits_for_a_disk_that_refuses_is_told_soon(void **state)
{
	rig_begin(); /* a close would wait for a minute */
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", true);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	sql(REFUSE("UPDATE"));
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	struct told t = wait_told(1, UPLOAD_WAITING);
	assert_int_equal(t.error, -EIO);
	assert_non_null(strstr(t.words, "the queue cannot be written"));
	/* That is nothing the service did: the next one has its whole time, and goes through. */
	sql("DROP TRIGGER refuse");
	send_file(2, "b.pdf", "world", true);
	(void)wait_told(2, UPLOAD_DONE);
	(void)wait_told(1, UPLOAD_DONE);
	assert_false(was_told(2, UPLOAD_WAITING));
	rig_end();
}

static void a_row_that_will_not_go_sends_nothing_twice(void **state)
{
	int waiting, failed;

	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", true);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	sql(REFUSE("DELETE"));
	assert_true(uploads_cancel(rig.uploads, 1, false) < 0); /* it goes on */
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	(void)wait_told(1, UPLOAD_DONE);
	nap(50);
	uploads_count(rig.uploads, &waiting, &failed);
	assert_int_equal(waiting, 0);
	assert_true(row_find(1, NULL));
	uploads_free(rig.uploads);
	sql("DROP TRIGGER refuse");
	forget_told();
	engine_start(60000);
	CLEANUP(queue_item_release) struct queue_item row = { 0 };
	assert_true(row_find(1, &row));
	assert_int_equal(uploads_submit(rig.uploads, &row, false, 0), 0);
	(void)wait_told(1, UPLOAD_DONE);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH), 1);
	wait_row_gone(1);
	rig_end();
}

static void a_rename_the_disk_refuses_did_not_happen(void **state)
{
	struct backend_caps caps = fake_caps();

	caps.keeps_names = true;
	rig_begin_with(&caps, 60000);
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", true);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	sql(REFUSE("UPDATE"));
	assert_true(uploads_rename(rig.uploads, 1, "s2", "Q2", "b.pdf") < 0);
	sql("DROP TRIGGER refuse");
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	struct told t = wait_told(1, UPLOAD_DONE);
	assert_string_equal(fake_document_name(rig.backend, t.document_id), "a.pdf");
	assert_int_equal(fake_document_count(rig.backend, "s1"), 1);
	rig_end();
}

static void a_new_version_after_the_last_event_takes_the_row_over(void **state)
{
	rig_begin();
	for (int i = 0; i < 20; i++) {
		char text[40];
		(void)snprintf(text, sizeof(text), "version %d", i);
		forget_told();
		send_file(1, "a.pdf", text, true); /* -EBUSY would fail in here */
		(void)wait_told(1, UPLOAD_DONE);
		spool_unlink_id(rig.spool_dir, 1);
	}
	assert_int_equal(fake_document_count(rig.backend, "s1"), 20);
	wait_row_gone(1);
	rig_end();
}

/* ---- ends -------------------------------------------------------------------------------------------------- */

static void *let_stores_go_soon(void *arg)
{
	nap(100);
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	return NULL;
}

static void draining_finishes_what_is_under_way_and_counts_the_rest(void **state)
{
	pthread_t thread;

	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_files(1, 10, false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 3));
	assert_int_equal(pthread_create(&thread, NULL, let_stores_go_soon, NULL), 0);
	assert_int_equal(uploads_drain(rig.uploads, 20000), 7);
	(void)pthread_join(thread, NULL);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 3);
	uploads_free(rig.uploads);
	engine_start(60000);
	assert_int_equal(queue_load(rig.queue, resume_row, NULL), 0);
	wait_all_done(1, 10);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 10);
	rig_end();
}

static void a_drain_is_bounded_and_nobody_waits_for_ever(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_ATTACH, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", true);
	send_files(10, 3, true);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_ATTACH, 1));
	int64_t since_ms = clock_now_ms();
	assert_int_equal(uploads_drain(rig.uploads, 200), 4);
	assert_true(clock_now_ms() - since_ms < 1500);
	(void)wait_told(1, UPLOAD_WAITING);
	(void)wait_told(12, UPLOAD_WAITING);
	uploads_free(rig.uploads);
	fake_let_go(rig.backend, FAKE_UPLOAD_ATTACH);
	engine_start(60000);
	forget_told();
	assert_int_equal(queue_load(rig.queue, resume_row, NULL), 0);
	(void)wait_told(1, UPLOAD_DONE);
	wait_all_done(10, 3);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 4);
	rig_end();
}

static void a_drain_does_not_wait_for_what_stands_still(void **state)
{
	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	send_file(1, "a.pdf", "hello", false);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	int64_t since_ms = clock_now_ms();
	assert_int_equal(uploads_drain(rig.uploads, 600000), 1);
	assert_true(clock_now_ms() - since_ms < 60000);
	fake_heal(rig.backend);
	uploads_free(rig.uploads);
	take_up_again();
	(void)wait_told(1, UPLOAD_DONE);
	rig_end();
}

static void submitting_what_is_under_way_is_refused(void **state)
{
	CLEANUP(queue_item_release) struct queue_item item = { 0 };

	rig_begin();
	fake_hold(rig.backend, FAKE_UPLOAD_STORE, HOLD_BEFORE);
	make_item(1, "a.pdf", "hello", &item);
	assert_int_equal(uploads_submit(rig.uploads, &item, false, 0), 0);
	assert_true(fake_wait_held(rig.backend, FAKE_UPLOAD_STORE, 1));
	assert_int_equal(uploads_submit(rig.uploads, &item, false, 0), -EBUSY);
	item.kind = FILE_SCRATCH;
	assert_int_equal(uploads_submit(rig.uploads, &item, false, 0), -EINVAL);
	fake_let_go(rig.backend, FAKE_UPLOAD_STORE);
	(void)wait_told(1, UPLOAD_DONE);
	rig_end();
}

static void two_hundred_files_need_few_requests(void **state)
{
	rig_begin();
	fake_latency(rig.backend, FAKE_UPLOAD_ATTACH, 20);
	send_files(1, 200, false);
	wait_all_done(1, 200);
	assert_int_equal(fake_document_count(rig.backend, "s1"), 200);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_SIGN), 200);
	assert_int_equal(fake_calls(rig.backend, FAKE_UPLOAD_STORE), 200);
	assert_true(fake_calls(rig.backend, FAKE_UPLOAD_ATTACH) <= 120);
	rig_end();
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_answer_has_its_meaning),
		cmocka_unit_test(pauses_double_up_to_five_minutes_with_jitter),
		cmocka_unit_test(a_file_goes_up_in_three_requests),
		cmocka_unit_test(what_is_stored_during_an_attach_shares_the_next),
		cmocka_unit_test(transfers_run_beside_each_other_and_leave_a_place_for_people),
		cmocka_unit_test(a_refused_batch_is_taken_apart),
		cmocka_unit_test(a_neighbour_that_is_told_to_ask_again_does_so_without_the_guilty),
		cmocka_unit_test(a_link_asked_for_ahead_is_the_one_that_is_used),
		cmocka_unit_test(a_link_that_is_on_its_way_is_waited_for),
		cmocka_unit_test(a_link_that_will_not_do_is_thrown_away),
		cmocka_unit_test(nothing_is_asked_ahead_of_people_or_of_a_failing_service),
		cmocka_unit_test(many_links_ahead_that_nobody_uses_take_bounded_room),
		cmocka_unit_test(known_bytes_are_attached_by_id_alone),
		cmocka_unit_test(a_shortcut_that_is_refused_is_forgotten),
		cmocka_unit_test(one_bad_shortcut_does_not_spoil_the_others),
		cmocka_unit_test(copies_with_ids_of_their_own_are_asked_for_one_by_one),
		cmocka_unit_test(a_lost_answer_is_looked_up_and_not_repeated),
		cmocka_unit_test(a_request_that_was_lost_itself_is_repeated_after_a_look),
		cmocka_unit_test(a_document_from_before_is_not_taken_for_ours),
		cmocka_unit_test(equal_bytes_under_two_names_are_two_documents_even_when_answers_are_lost),
		cmocka_unit_test(a_lost_batch_is_looked_up_in_one_listing),
		cmocka_unit_test(a_service_whose_store_has_effect_is_looked_at_before_a_second_store),
		cmocka_unit_test(a_limited_answer_to_what_took_effect_is_looked_up_when_the_key_is_used_up),
		cmocka_unit_test(a_used_up_key_is_looked_up_after_a_restart_too),
		cmocka_unit_test(a_key_that_grew_old_after_a_limited_answer_is_looked_up_before_another_is_asked_for),
		cmocka_unit_test(a_look_that_found_nothing_does_not_vouch_for_what_is_sent_after_it),
		cmocka_unit_test(a_key_that_is_refused_for_ever_comes_to_an_end),
		cmocka_unit_test(what_came_of_a_second_refused_key_is_looked_up_before_it_is_a_failure),
		cmocka_unit_test(a_transfer_that_outlives_its_link_and_is_refused_twice_is_final),
		cmocka_unit_test(a_shortcut_that_is_refused_after_a_limited_answer_is_looked_up),
		cmocka_unit_test(a_forbidden_upload_names_the_ability_and_keeps_its_bytes),
		cmocka_unit_test(a_refused_key_is_renewed_once),
		cmocka_unit_test(a_conflict_is_success_once_found),
		cmocka_unit_test(refused_credentials_hold_all_files_until_retry),
		cmocka_unit_test(a_session_that_is_gone_holds_its_own_files_alone),
		cmocka_unit_test(another_accounts_files_wait_without_a_request),
		cmocka_unit_test(bytes_that_vanished_are_a_refusal_and_no_endless_retry),
		cmocka_unit_test(short_trouble_is_not_told),
		cmocka_unit_test(a_failing_service_is_told_after_the_close_timeout_and_goes_on),
		cmocka_unit_test(a_stall_is_a_timeout),
		cmocka_unit_test(once_away_later_closes_make_one_attempt),
		cmocka_unit_test(many_files_do_not_hammer_a_service_that_is_away),
		cmocka_unit_test(one_bad_file_does_not_keep_the_others_out),
		cmocka_unit_test(those_in_line_wait_while_others_move),
		cmocka_unit_test(who_joins_is_told_as_well),
		cmocka_unit_test(settling_files_wait_for_their_time),
		cmocka_unit_test(a_canceled_transfer_ends_and_leaves_nothing),
		cmocka_unit_test(a_kept_row_is_a_scratch_files),
		cmocka_unit_test(a_cancel_during_the_last_step_tells_how_it_ended),
		cmocka_unit_test(a_rename_before_the_last_step_is_what_the_service_gets),
		cmocka_unit_test(another_type_is_signed_anew),
		cmocka_unit_test(a_failed_file_can_be_discarded),
		cmocka_unit_test(what_cannot_be_queued_is_told_at_once_and_not_begun),
		cmocka_unit_test(no_last_step_is_sent_that_the_row_does_not_know_of),
		cmocka_unit_test(who_waits_for_a_disk_that_refuses_is_told_soon),
		cmocka_unit_test(a_row_that_will_not_go_sends_nothing_twice),
		cmocka_unit_test(a_rename_the_disk_refuses_did_not_happen),
		cmocka_unit_test(a_new_version_after_the_last_event_takes_the_row_over),
		cmocka_unit_test(draining_finishes_what_is_under_way_and_counts_the_rest),
		cmocka_unit_test(a_drain_is_bounded_and_nobody_waits_for_ever),
		cmocka_unit_test(a_drain_does_not_wait_for_what_stands_still),
		cmocka_unit_test(submitting_what_is_under_way_is_refused),
		cmocka_unit_test(two_hundred_files_need_few_requests),
	};

	log_open(LOG_LEVEL_ERROR, false);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
