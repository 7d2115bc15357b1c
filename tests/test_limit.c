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
	assert_in_range(view.rate, 70, 71);
	assert_int_equal(view.usual_rate, 100);
	atomic_fetch_add(&hand_ms, 200);
	assert_true(try(l, URGENCY_PERSON));
	atomic_fetch_add(&hand_ms, 6 * 60 * 1000); /* it rises ... */
	limit_look(l, &view);
	assert_in_range(view.rate, 78, 85);
	atomic_fetch_add(&hand_ms, 15 * 60 * 1000); /* and after a while all is as before */
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
	assert_int_equal(count, 8); /* a third is ours in any case */
	limit_free(l);
}

static void a_route_with_a_limit_of_its_own_slows_no_other(void **state)
{
	(void)state;
	struct limit *l = limit_of(90, NULL);
	uint64_t place;

	for (int i = 0; i < 40; i++) {
		const bool is_other = i % 2;
		const struct limit_answer answer = { .status = 200, .retry_after_ms = -1, .limit = is_other ? 10 : 100,
						     .remaining = is_other ? 0 : 99 - i };
		assert_int_equal(limit_take(l, URGENCY_PERSON, hand_now_ms(), NULL, &place), 0);
		limit_answered(l, place, &answer);
	}
	assert_true(try_many(l, URGENCY_PERSON, 100) >= 40);
	/* Once nobody says the larger one any more the smaller one holds. */
	hand_ms += 120000;
	assert_int_equal(limit_take(l, URGENCY_PERSON, hand_now_ms(), NULL, &place), 0);
	limit_answered(l, place, &(struct limit_answer){ .status = 200, .retry_after_ms = -1, .limit = 10, .remaining = 9 });
	assert_in_range(try_many(l, URGENCY_PERSON, 100), 1, 8);
	limit_free(l);
}

static void while_a_lesser_urgency_waits_its_share_is_kept(void **state)
{
	static const struct { enum urgency urgency; int share; } cases[] = {
		{ URGENCY_FINISH, 20 }, { URGENCY_BEGIN, 10 }, { URGENCY_BACKGROUND, 5 },
	};

	for (int i = 0; i < 3; i++) {
		struct limit *l = limit_of(100, NULL);
		int sent = 0;

		assert_int_equal(try_many(l, URGENCY_PERSON, 200), 100);
		/* People want all there is, for five minutes; somebody else wants something too. */
		for (int ms = 0; ms < 300000; ms += 100) {
			atomic_fetch_add(&hand_ms, 100);
			sent += try(l, cases[i].urgency);
			(void)try_many(l, URGENCY_PERSON, 5);
		}
		if (sent < 3 * cases[i].share) /* in the first minute there was nothing to keep */
			fail_msg("urgency %d: %d in five minutes", cases[i].urgency, sent);
		/* Nobody waits any more: nothing is kept. */
		atomic_fetch_add(&hand_ms, 65000);
		assert_int_equal(try_many(l, URGENCY_PERSON, 200), 100);
		limit_free(l);
	}
}

static void another_processs_people_do_not_starve_our_uploads(void **state)
{
	char path[] = "/tmp/test-limit-XXXXXX";
	int fd = mkstemp(path), sent = 0;
	struct limit *theirs = limit_of(100, path), *ours = limit_of(100, path);

	assert_int_equal(try_many(theirs, URGENCY_PERSON, 200), 100);
	for (int ms = 0; ms < 300000; ms += 250) {
		atomic_fetch_add(&hand_ms, 250);
		(void)try_many(theirs, URGENCY_PERSON, 5);
		sent += try(ours, URGENCY_FINISH);
	}
	assert_in_range(sent, 60, 120);
	limit_free(theirs);
	limit_free(ours);
	close(fd);
	unlink(path);
}

static void whatever_others_use_a_third_is_ours(void **state)
{
	struct limit *l = limit_of(100, NULL);
	const struct limit_answer answer = { .status = 200, .retry_after_ms = -1, .limit = 100, .remaining = 0 };
	uint64_t place;

	assert_int_equal(limit_take(l, URGENCY_PERSON, hand_now_ms(), NULL, &place), 0);
	limit_answered(l, place, &answer);
	assert_int_equal(try_many(l, URGENCY_PERSON, 100), 32);
	limit_free(l);
}

/* ---- an hour, simulated --------------------------------------------------------------------------------------- */

/* Each host has one mount. A request is a thing of some urgency that waits, is sent when the limit lets it, and counts
 * at the server when it arrives 50 ms later. */
enum { STEP_MS = 50, HOSTS_MAX = 3, WAITING_MAX = 4000, SERVER_RATE = 100, COPIES = 30, SESSIONS = 10, PAGES = 67 };

struct server {
	int64_t counted[SERVER_RATE]; /* the last of them, a ring */
	int count, refused;
	bool tells; /* X-RateLimit-* */
};

struct host {
	struct limit *limit;
	int64_t since[4][WAITING_MAX]; /* when each began to wait, oldest first */
	int waiting[4], under_way[4];
	int64_t sent_ms[4];
	uint64_t places[4];
	int answered, refused, done[4];
	int64_t delay_ms[4], delay_max_ms[4];
};

static void want(struct host *h, enum urgency u, int count)
{
	while (count-- > 0 && h->waiting[u] < WAITING_MAX)
		h->since[u][h->waiting[u]++] = hand_now_ms();
}

/* 0: taken; else what Retry-After says. */
static int64_t serve(struct server *s, int64_t now, int64_t *ret_remaining)
{
	int in_window = 0;
	int64_t oldest = now;

	for (int i = 0; i < SERVER_RATE && i < s->count; i++) {
		if (s->counted[i] > now - 60000) {
			in_window++;
			oldest = s->counted[i] < oldest ? s->counted[i] : oldest;
		}
	}
	if (in_window >= SERVER_RATE) {
		s->refused++;
		return (oldest + 60000 - now + 999) / 1000 * 1000;
	}
	s->counted[s->count++ % SERVER_RATE] = now;
	*ret_remaining = SERVER_RATE - in_window - 1;
	return 0;
}

/* One step of one host: of each urgency one request may be under way at a time here. */
static void step(struct host *h, struct server *s)
{
	for (int u = 0; u < 4; u++) {
		int64_t now = hand_now_ms();
		if (h->under_way[u] && now >= h->sent_ms[u] + STEP_MS) {
			int64_t remaining = -1, refused_ms = serve(s, now, &remaining);
			const struct limit_answer answer = { .status = refused_ms ? 429 : 200,
							     .retry_after_ms = refused_ms ? refused_ms : -1,
							     .limit = s->tells ? SERVER_RATE : -1,
							     .remaining = s->tells && !refused_ms ? remaining : -1 };
			limit_answered(h->limit, h->places[u], &answer);
			h->under_way[u] = 0;
			h->refused += refused_ms > 0;
			h->answered += refused_ms == 0;
			if (!refused_ms) {
				int64_t delay_ms = now - h->since[u][0];
				h->delay_ms[u] += delay_ms;
				h->delay_max_ms[u] = delay_ms > h->delay_max_ms[u] ? delay_ms : h->delay_max_ms[u];
				h->done[u]++;
				memmove(h->since[u], h->since[u] + 1, sizeof(h->since[u][0]) * (size_t)--h->waiting[u]);
				if (u == URGENCY_BEGIN)
					want(h, URGENCY_FINISH, 1); /* its bytes are there */
			}
		}
		if (!h->under_way[u] && h->waiting[u] &&
		    limit_take(h->limit, (enum urgency)u, now, NULL, &h->places[u]) == 0) {
			h->under_way[u] = 1;
			h->sent_ms[u] = now;
		}
	}
}

/* What the programs of one host ask for: every minute a listing of all sessions, which costs a walk each the first time and a
 * probe later; copies in the first ten minutes; and polling meanwhile. */
static void live(struct host *h, int64_t ms)
{
	if (ms == 0)
		want(h, URGENCY_PERSON, SESSIONS * PAGES);
	else if (ms % 60000 == 0 && h->waiting[URGENCY_PERSON] < SESSIONS)
		want(h, URGENCY_PERSON, SESSIONS);
	if (ms % 20000 == 10000 && ms < COPIES * 20000)
		want(h, URGENCY_BEGIN, 1);
	if (ms % 30000 == 0 && h->waiting[URGENCY_BACKGROUND] < SESSIONS)
		want(h, URGENCY_BACKGROUND, SESSIONS / 2);
}

static void simulate(struct host *hosts, int count, struct server *s)
{
	for (int i = 0; i < count; i++)
		hosts[i] = (struct host){ .limit = limit_of(90, NULL) };
	for (int64_t ms = 0; ms < 3600000; ms += STEP_MS) {
		for (int i = 0; i < count; i++)
			live(&hosts[i], ms);
		for (int i = 0; i < count; i++) /* nobody is always first */
			step(&hosts[(i + ms / STEP_MS) % count], s);
		atomic_fetch_add(&hand_ms, STEP_MS);
	}
	for (int i = 0; i < count; i++)
		limit_free(hosts[i].limit);
}

static void in_an_hour_of_one_host_no_429_is_seen_and_uploads_go_on(void **state)
{
	struct host *h = calloc(1, sizeof(*h));
	struct server s = { 0 };

	simulate(h, 1, &s);
	print_message("     an hour, one host: %d requests, %d refused; %d copies, a first step waited %.1f s on average (%.1f s at most), "
		      "a last one %.1f s (%.1f s)\n",
		      h->answered, s.refused, h->done[URGENCY_FINISH], h->delay_ms[URGENCY_BEGIN] / 1000.0 / COPIES,
		      h->delay_max_ms[URGENCY_BEGIN] / 1000.0, h->delay_ms[URGENCY_FINISH] / 1000.0 / COPIES,
		      h->delay_max_ms[URGENCY_FINISH] / 1000.0);
	assert_int_equal(s.refused, 0);
	assert_int_equal(h->done[URGENCY_FINISH], COPIES);
	assert_true(h->delay_max_ms[URGENCY_BEGIN] <= 61000 && h->delay_max_ms[URGENCY_FINISH] <= 61000);
	assert_true(h->done[URGENCY_PERSON] >= SESSIONS * PAGES + 40 * SESSIONS);
	free(h);
}

/* Three hosts that share nothing but the address, and all want more than there is. */
static void three_hosts_share_an_address(bool tells)
{
	struct host *hosts = calloc(HOSTS_MAX, sizeof(*hosts));
	struct server s = { .tells = tells };
	int least = INT32_MAX, total = 0;

	for (int i = 0; i < HOSTS_MAX; i++)
		hosts[i].limit = limit_of(90, NULL);
	for (int64_t ms = 0; ms < 3600000; ms += STEP_MS) {
		for (int i = 0; i < HOSTS_MAX; i++) {
			struct host *h = &hosts[(i + ms / STEP_MS) % HOSTS_MAX];
			if (h->waiting[URGENCY_PERSON] < 10 && ms >= 120000 * (h - hosts)) /* they begin at different times */
				want(h, URGENCY_PERSON, 100);
			step(h, &s);
		}
		atomic_fetch_add(&hand_ms, STEP_MS);
	}
	for (int i = 0; i < HOSTS_MAX; i++) {
		total += hosts[i].answered;
		least = hosts[i].answered < least ? hosts[i].answered : least;
		limit_free(hosts[i].limit);
	}
	print_message("     an hour, three hosts at one address%s: %d requests, %d refused (%.1f %%); the slowest host had %.0f %% of "
		      "the budget\n",
		      tells ? ", X-RateLimit-* told" : "", total, s.refused, 100.0 * s.refused / total, 100.0 * least / (60 * SERVER_RATE));
	assert_true(least * 4 >= 60 * SERVER_RATE);
	assert_true(s.refused * 50 <= total);
	free(hosts);
}

static void in_an_hour_of_three_hosts_few_429s_are_seen_and_the_slowest_has_a_quarter(void **state)
{
	three_hosts_share_an_address(false);
	three_hosts_share_an_address(true);
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
		TEST(a_route_with_a_limit_of_its_own_slows_no_other),
		TEST(while_a_lesser_urgency_waits_its_share_is_kept),
		TEST(another_processs_people_do_not_starve_our_uploads),
		TEST(whatever_others_use_a_third_is_ours),
		TEST(in_an_hour_of_one_host_no_429_is_seen_and_uploads_go_on),
		TEST(in_an_hour_of_three_hosts_few_429s_are_seen_and_the_slowest_has_a_quarter),
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
