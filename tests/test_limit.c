/* client/limit.c with a clock turned by hand; and once with many threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/limit.h"

static _Atomic int64_t hand_ms;

static int64_t hand_now_ms(void)
{
	return atomic_load(&hand_ms);
}

static struct limit *limit_of(int rate, const char *path)
{
	const struct limit_options options = { .rate = rate, .window_ms = 60000, .path = path, .now_ms = hand_now_ms,
					       .subject = "test" };
	struct limit *l = NULL;

	assert_int_equal(limit_new(&options, &l), 0);
	return l;
}

static void answered(struct limit *l, uint64_t place, int status, int64_t retry_after_ms)
{
	const struct limit_answer answer = { .status = status, .retry_after_ms = retry_after_ms, .limit = -1, .remaining = -1 };

	limit_answered(l, place, &answer);
}

/* Sends now, if that is allowed. */
static bool try(struct limit *l, enum urgency urgency)
{
	uint64_t place;
	int r = limit_take(l, urgency, hand_now_ms(), NULL, &place);

	if (r == 0)
		answered(l, place, 200, -1);
	return r == 0;
}

static int try_many(struct limit *l, enum urgency urgency, int count)
{
	int sent = 0;

	while (count-- > 0)
		sent += try(l, urgency);
	return sent;
}

static int setup(void **state)
{
	atomic_store(&hand_ms, 1000000);
	return 0;
}

static void a_window_is_never_exceeded(void **state)
{
	struct limit *l = limit_of(90, NULL);
	int64_t sent[2000];
	int count = 0;

	/* Every 50 ms for five minutes, somebody of each kind. */
	for (int i = 0; i < 6000; i++) {
		atomic_fetch_add(&hand_ms, 50);
		if (try(l, (enum urgency)(i % 4)))
			sent[count++] = hand_now_ms();
	}
	for (int i = 0; i + 90 < count; i++)
		assert_true(sent[i + 90] - sent[i] >= 60000);
	assert_in_range(count, 400, 540);
	limit_free(l);
}

static void background_gets_a_fifth_and_a_person_the_last_places(void **state)
{
	struct limit *l = limit_of(100, NULL);

	assert_int_equal(try_many(l, URGENCY_BACKGROUND, 100), 20);
	assert_int_equal(try_many(l, URGENCY_BEGIN, 50), 50);
	assert_int_equal(try_many(l, URGENCY_FINISH, 100), 25);
	assert_int_equal(try_many(l, URGENCY_PERSON, 100), 5);
	atomic_fetch_add(&hand_ms, 60001);
	assert_int_equal(try_many(l, URGENCY_PERSON, 200), 100);
	limit_free(l);
}

static void a_place_counts_until_a_window_after_its_answer(void **state)
{
	struct limit *l = limit_of(1, NULL);
	uint64_t place;

	assert_int_equal(limit_take(l, URGENCY_PERSON, hand_now_ms(), NULL, &place), 0);
	atomic_fetch_add(&hand_ms, 30000);
	answered(l, place, 200, -1);
	atomic_fetch_add(&hand_ms, 59999);
	assert_false(try(l, URGENCY_PERSON));
	atomic_fetch_add(&hand_ms, 2);
	assert_true(try(l, URGENCY_PERSON));
	limit_free(l);
}

static void a_429_stops_everybody_for_as_long_as_it_says(void **state)
{
	struct limit *l = limit_of(100, NULL);
	struct limit_view view;
	uint64_t place;

	assert_int_equal(limit_take(l, URGENCY_PERSON, hand_now_ms(), NULL, &place), 0);
	answered(l, place, 429, 7000);
	atomic_fetch_add(&hand_ms, 6900);
	assert_false(try(l, URGENCY_PERSON));
	limit_look(l, &view);
	assert_int_equal(view.pause_ms, 100);
	assert_int_equal(view.rate, 75);
	atomic_fetch_add(&hand_ms, 200);
	assert_true(try(l, URGENCY_PERSON));
	atomic_fetch_add(&hand_ms, 5 * 60 * 1000); /* and after a while all is as before */
	limit_look(l, &view);
	assert_int_equal(view.rate, 100);
	limit_free(l);
}

static void a_429_that_says_nothing_is_waited_out_longer_each_time(void **state)
{
	struct limit *l = limit_of(-1, NULL); /* pauses are kept even without a limit */
	int64_t least = 0;

	for (int i = 0; i < 10; i++) {
		struct limit_view view;
		uint64_t place;

		assert_int_equal(limit_take(l, URGENCY_PERSON, hand_now_ms(), NULL, &place), 0);
		answered(l, place, 429, -1);
		limit_look(l, &view);
		assert_in_range(view.pause_ms, 500, 60000);
		if (i == 9)
			least = view.pause_ms;
		atomic_fetch_add(&hand_ms, view.pause_ms);
	}
	assert_true(least >= 30000);
	limit_free(l);
}

static void what_the_service_says_of_its_limit_is_learned(void **state)
{
	struct limit *l = limit_of(100, NULL);
	const struct limit_answer answer = { .status = 200, .retry_after_ms = -1, .limit = 30, .remaining = 10 };
	uint64_t place;

	assert_int_equal(limit_take(l, URGENCY_PERSON, hand_now_ms(), NULL, &place), 0);
	limit_answered(l, place, &answer);
	/* 27 of 30; 19 requests are somebody else's, one is ours. */
	uint64_t places[100];
	int count = 0;
	while (limit_take(l, URGENCY_PERSON, hand_now_ms(), NULL, &places[count]) == 0)
		count++;
	assert_int_equal(count, 7);
	limit_free(l);
}

static void without_a_limit_nobody_waits(void **state)
{
	struct limit *l = limit_of(-1, NULL);

	assert_int_equal(try_many(l, URGENCY_BACKGROUND, 10000), 10000);
	limit_free(l);
}

static void a_window_is_shared_and_outlives_its_process(void **state)
{
	char path[] = "/tmp/test-limit-XXXXXX";
	int fd = mkstemp(path);
	struct limit *first = limit_of(10, path), *second = limit_of(10, path);

	assert_int_equal(try_many(first, URGENCY_PERSON, 6), 6);
	assert_int_equal(try_many(second, URGENCY_PERSON, 10), 4);
	limit_free(first);
	limit_free(second);
	struct limit *third = limit_of(10, path);
	assert_false(try(third, URGENCY_PERSON));
	atomic_fetch_add(&hand_ms, 60001);
	assert_int_equal(try_many(third, URGENCY_PERSON, 11), 10);
	limit_free(third);
	close(fd);
	unlink(path);
}

static void a_damaged_file_errs_on_the_side_of_waiting_and_never_for_long(void **state)
{
	char path[] = "/tmp/test-limit-XXXXXX";
	int fd = mkstemp(path);
	static const char rubbish[5000] = "rubbish";

	for (int i = 0; i < 2; i++) {
		struct limit *l = limit_of(10, path);

		assert_int_equal(try_many(l, URGENCY_PERSON, 10), 10);
		assert_int_equal(pwrite(fd, i ? (const void *)"\xff\xff\xff\xff\xff\xff\xff\x7f" : rubbish, 8, i ? 56 : 0), 8);
		if (i)
			assert_int_equal(ftruncate(fd, 100), 0);
		for (int minutes = 0; minutes < 16 && !try(l, URGENCY_PERSON); minutes++)
			atomic_fetch_add(&hand_ms, 60001);
		assert_true(try(l, URGENCY_PERSON));
		limit_free(l);
		atomic_fetch_add(&hand_ms, 16 * 60001);
	}
	close(fd);
	unlink(path);
}

static void a_stopped_process_with_the_lock_stops_nobody(void **state)
{
	char path[] = "/tmp/test-limit-XXXXXX";
	int fd = mkstemp(path), ready[2];

	assert_int_equal(pipe(ready), 0);
	struct limit *l = limit_of(10, path);
	pid_t child = fork();
	if (child == 0) {
		int held = open(path, O_RDWR);

		if (held < 0 || flock(held, LOCK_EX) < 0 || write(ready[1], "x", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	char c;
	assert_int_equal(read(ready[0], &c, 1), 1);
	assert_true(try(l, URGENCY_PERSON));
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	limit_free(l);
	close(fd);
	unlink(path);
}

/* ---- waiting, by a real clock ------------------------------------------------------------------------------- */

static struct limit *quick_limit(int rate, int window_ms)
{
	const struct limit_options options = { .rate = rate, .window_ms = window_ms, .subject = "test" };
	struct limit *l = NULL;

	assert_int_equal(limit_new(&options, &l), 0);
	return l;
}

struct waiting {
	struct limit *limit;
	enum urgency urgency;
	struct transfer transfer;
	int64_t deadline_ms, done_ms;
	int result;
	_Atomic int *order;
	int place_in_order;
};

static void *wait_in_line(void *arg)
{
	struct waiting *w = arg;
	uint64_t place;

	w->result = limit_take(w->limit, w->urgency, w->deadline_ms, &w->transfer, &place);
	w->done_ms = clock_now_ms();
	w->place_in_order = atomic_fetch_add(w->order, 1);
	if (w->result == 0)
		answered(w->limit, place, 200, -1);
	return NULL;
}

static void the_more_urgent_go_first(void **state)
{
	static const enum urgency urgencies[] = { URGENCY_BACKGROUND, URGENCY_BEGIN, URGENCY_PERSON, URGENCY_FINISH };
	static const int expected[] = { 3, 2, 0, 1 };
	struct limit *l = quick_limit(1, 300);
	_Atomic int order = 0;
	struct waiting waiting[4];
	pthread_t threads[4];
	uint64_t place;

	assert_int_equal(limit_take(l, URGENCY_PERSON, 0, NULL, &place), 0);
	for (int i = 0; i < 4; i++) {
		waiting[i] = (struct waiting){ .limit = l, .urgency = urgencies[i], .order = &order };
		assert_int_equal(pthread_create(&threads[i], NULL, wait_in_line, &waiting[i]), 0);
	}
	usleep(100000);
	for (int i = 0; i < 4; i++)
		assert_true(atomic_load(&waiting[i].transfer.waits_for_place));
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(waiting[i].result, 0);
		assert_int_equal(waiting[i].place_in_order, expected[i]);
		assert_false(atomic_load(&waiting[i].transfer.waits_for_place));
	}
	limit_free(l);
}

static void waiting_ends_at_the_deadline_and_when_cancelled(void **state)
{
	struct limit *l = quick_limit(1, 60000);
	_Atomic int order = 0;
	int64_t began_ms = clock_now_ms();
	struct waiting waiting[2] = {
		{ .limit = l, .order = &order, .deadline_ms = began_ms + 150 },
		{ .limit = l, .order = &order, .deadline_ms = began_ms + 60000 },
	};
	pthread_t threads[2];
	uint64_t place;

	assert_int_equal(limit_take(l, URGENCY_PERSON, 0, NULL, &place), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, wait_in_line, &waiting[i]), 0);
	usleep(50000);
	atomic_store(&waiting[1].transfer.cancelled, true);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(waiting[0].result, -EAGAIN);
	assert_in_range(waiting[0].done_ms - began_ms, 150, 1000);
	assert_int_equal(waiting[1].result, -ECANCELED);
	assert_in_range(waiting[1].done_ms - began_ms, 50, 1000);
	limit_free(l);
}

struct crowd {
	struct limit *limit;
	_Atomic int sent;
	int64_t until_ms;
};

static void *crowd_member(void *arg)
{
	struct crowd *c = arg;
	uint64_t place;

	while (limit_take(c->limit, URGENCY_BEGIN, c->until_ms, NULL, &place) == 0) {
		atomic_fetch_add(&c->sent, 1);
		answered(c->limit, place, 200, -1);
	}
	return NULL;
}

static void a_crowd_keeps_the_limit(void **state)
{
	struct crowd crowd = { .limit = quick_limit(20, 200), .until_ms = clock_now_ms() + 1000 };
	pthread_t threads[16];

	for (int i = 0; i < 16; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, crowd_member, &crowd), 0);
	for (int i = 0; i < 16; i++)
		pthread_join(threads[i], NULL);
	/* Six windows touch a second at most; one place in twenty is kept for people. */
	assert_in_range(atomic_load(&crowd.sent), 19, 6 * 19);
	limit_free(crowd.limit);
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_window_is_never_exceeded),
		TEST(background_gets_a_fifth_and_a_person_the_last_places),
		TEST(a_place_counts_until_a_window_after_its_answer),
		TEST(a_429_stops_everybody_for_as_long_as_it_says),
		TEST(a_429_that_says_nothing_is_waited_out_longer_each_time),
		TEST(what_the_service_says_of_its_limit_is_learned),
		TEST(without_a_limit_nobody_waits),
		TEST(a_window_is_shared_and_outlives_its_process),
		TEST(a_damaged_file_errs_on_the_side_of_waiting_and_never_for_long),
		TEST(a_stopped_process_with_the_lock_stops_nobody),
		TEST(the_more_urgent_go_first),
		TEST(waiting_ends_at_the_deadline_and_when_cancelled),
		TEST(a_crowd_keeps_the_limit),
	};

	log_open(LOG_LEVEL_ERROR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
