/* The pool: order, bounds, times, and that nothing queued is lost when it ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/pool.h"

/* One thread's worth of notes: which job ran when. */
struct notes {
	pthread_mutex_t lock;
	int order[1000];
	int64_t when_ms[1000];
	int count, running, running_max, dropped;
};

struct job {
	struct notes *notes;
	int number;
	int lasts_ms;
};

static struct notes notes_new(void)
{
	return (struct notes){ .lock = PTHREAD_MUTEX_INITIALIZER };
}

static void run_job(void *arg)
{
	struct job *j = arg;

	{
		SCOPED_LOCK(&j->notes->lock);
		j->notes->order[j->notes->count] = j->number;
		j->notes->when_ms[j->notes->count++] = clock_now_ms();
		if (++j->notes->running > j->notes->running_max)
			j->notes->running_max = j->notes->running;
	}
	if (j->lasts_ms)
		(void)usleep((useconds_t)j->lasts_ms * 1000);
	{
		SCOPED_LOCK(&j->notes->lock);
		j->notes->running--;
	}
	free(j);
}

static void drop_job(void *arg)
{
	struct job *j = arg;

	{
		SCOPED_LOCK(&j->notes->lock);
		j->notes->dropped++;
	}
	free(j);
}

static struct job *job_new(struct notes *n, int number, int lasts_ms)
{
	struct job *j = malloc(sizeof(*j));

	assert_non_null(j);
	*j = (struct job){ n, number, lasts_ms };
	return j;
}

static int count_of(struct notes *n)
{
	SCOPED_LOCK(&n->lock);

	return n->count;
}

static bool wait_for_count(struct notes *n, int count, int ms)
{
	for (int64_t until_ms = clock_now_ms() + ms; clock_now_ms() < until_ms; (void)usleep(1000)) {
		if (count_of(n) >= count)
			return true;
	}
	return false;
}

static int thread_count(void)
{
	DIR *d = opendir("/proc/self/task");
	int count = -2; /* "." and ".." */

	assert_non_null(d);
	while (readdir(d))
		count++;
	(void)closedir(d);
	return count;
}

static void one_threads_jobs_run_in_the_order_they_came(void **state)
{
	struct notes n = notes_new();
	struct pool *p = pool_new("order", 1);

	(void)state;
	for (int i = 0; i < 500; i++)
		assert_int_equal(pool_run(p, run_job, job_new(&n, i, 0)), 0);
	pool_free(p);
	assert_int_equal(n.count, 500);
	for (int i = 0; i < 500; i++)
		assert_int_equal(n.order[i], i);
}

static void jobs_run_at_once_but_never_more_than_the_bound(void **state)
{
	struct notes n = notes_new();
	struct pool *p = pool_new("bound", 4);

	(void)state;
	for (int i = 0; i < 16; i++)
		assert_int_equal(pool_run(p, run_job, job_new(&n, i, 30)), 0);
	pool_free(p);
	assert_int_equal(n.count, 16);
	assert_int_equal(n.running_max, 4);
}

static void freeing_waits_for_what_is_queued_and_drops_what_is_not_due(void **state)
{
	struct notes n = notes_new();
	struct pool *p = pool_new("end", 2);

	(void)state;
	for (int i = 0; i < 10; i++)
		assert_int_equal(pool_run(p, run_job, job_new(&n, i, 10)), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pool_run_later(p, 60000, run_job, drop_job, job_new(&n, 100 + i, 0)), 0);
	int64_t began_ms = clock_now_ms();
	pool_free(p);
	assert_true(clock_now_ms() - began_ms < 5000);
	assert_int_equal(n.count, 10);
	assert_int_equal(n.dropped, 3);
}

static void delayed_jobs_run_in_the_order_of_their_times_and_never_early(void **state)
{
	static const int delays_ms[] = { 120, 40, 80, 40, 0 };
	static const int order[] = { 4, 1, 3, 2, 0 };
	struct notes n = notes_new();
	struct pool *p = pool_new("later", 1);
	int64_t began_ms = clock_now_ms();

	(void)state;
	for (int i = 0; i < 5; i++)
		assert_int_equal(pool_run_later(p, delays_ms[i], run_job, drop_job, job_new(&n, i, 0)), 0);
	assert_true(wait_for_count(&n, 5, 5000));
	for (int i = 0; i < 5; i++) {
		assert_int_equal(n.order[i], order[i]);
		assert_true(n.when_ms[i] - began_ms >= delays_ms[order[i]] - 1);
	}
	pool_free(p);
	assert_int_equal(n.dropped, 0);
}

static void a_delayed_job_is_not_held_up_by_a_long_one_while_there_are_threads(void **state)
{
	struct notes n = notes_new();
	struct pool *p = pool_new("long", 2);
	int64_t began_ms = clock_now_ms();

	(void)state;
	assert_int_equal(pool_run_later(p, 50, run_job, drop_job, job_new(&n, 1, 0)), 0);
	assert_int_equal(pool_run(p, run_job, job_new(&n, 0, 1500)), 0);
	assert_true(wait_for_count(&n, 2, 5000));
	assert_true(clock_now_ms() - began_ms < 1200);
	pool_free(p);
}

static void a_job_wakes_the_thread_that_waits_for_a_later_one(void **state)
{
	struct notes n = notes_new();
	struct pool *p = pool_new("wake", 1);
	int64_t began_ms = clock_now_ms();

	(void)state;
	assert_int_equal(pool_run_later(p, 60000, run_job, drop_job, job_new(&n, 9, 0)), 0);
	(void)usleep(20000); /* it sleeps by now */
	assert_int_equal(pool_run(p, run_job, job_new(&n, 1, 0)), 0);
	assert_int_equal(pool_run_later(p, 30, run_job, drop_job, job_new(&n, 2, 0)), 0);
	assert_true(wait_for_count(&n, 2, 5000));
	assert_int_equal(n.order[0], 1);
	assert_int_equal(n.order[1], 2);
	assert_true(clock_now_ms() - began_ms < 3000);
	pool_free(p);
	assert_int_equal(n.dropped, 1);
}

struct chain {
	struct pool *pool;
	atomic_int left;
	atomic_int refused;
};

static void run_chain(void *arg)
{
	struct chain *c = arg;

	(void)usleep(5000);
	if (atomic_fetch_sub(&c->left, 1) > 1 && pool_run(c->pool, run_chain, c) == -ESHUTDOWN)
		atomic_fetch_add(&c->refused, 1);
}

/* One thread keeps the time of the later job, and another is idle: that one being woken does not tell the first. */
static void a_job_due_sooner_is_not_kept_waiting_by_one_due_later(void **state)
{
	struct notes n = notes_new();
	struct pool *p = pool_new("test", 2);

	for (int i = 0; i < 2; i++)
		assert_int_equal(pool_run(p, run_job, job_new(&n, i, 50)), 0);
	(void)usleep(150000);
	assert_int_equal(count_of(&n), 2); /* two idle threads */
	assert_int_equal(pool_run_later(p, 60000, run_job, drop_job, job_new(&n, 9, 0)), 0);
	(void)usleep(50000); /* one of them keeps its time */
	assert_int_equal(pool_run_later(p, 50, run_job, drop_job, job_new(&n, 2, 0)), 0);
	for (int i = 0; i < 400 && count_of(&n) < 3; i++)
		(void)usleep(10000);
	assert_int_equal(count_of(&n), 3);
	pool_free(p);
	assert_int_equal(n.dropped, 1);
}

static void a_job_may_queue_another_until_the_pool_ends(void **state)
{
	struct chain c = { .pool = pool_new("chain", 2) };

	(void)state;
	atomic_init(&c.left, 1000);
	assert_int_equal(pool_run(c.pool, run_chain, &c), 0);
	(void)usleep(50000);
	pool_free(c.pool);
	assert_int_equal(atomic_load(&c.refused), 1);
	assert_true(atomic_load(&c.left) < 1000);
}

static int thread_count_alone; /* before any test: a sanitizer may have one of its own */

/* false: it took longer than ms. */
static bool wait_for_threads(int count, int64_t ms)
{
	for (int64_t end = clock_now_ms() + ms; thread_count() != count; (void)usleep(20000))
		if (clock_now_ms() > end)
			return false;
	return true;
}

static void threads_start_when_needed_and_end_when_they_were_idle_long_enough(void **state)
{
	struct notes n = notes_new();
	(void)state;
	assert_true(wait_for_threads(thread_count_alone, 30000)); /* those of the tests before have ended */
	int before = thread_count();
	struct pool *p = pool_new("idle", 3);

	pool_set_idle(p, 1500);
	assert_int_equal(thread_count(), before);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pool_run(p, run_job, job_new(&n, i, 50)), 0);
	assert_true(wait_for_count(&n, 3, 30000));
	int64_t idle_since_ms = clock_now_ms();
	assert_int_equal(thread_count(), before + 3);
	assert_true(wait_for_threads(before, 60000));
	assert_true(clock_now_ms() - idle_since_ms >= 1400);
	assert_int_equal(pool_run(p, run_job, job_new(&n, 4, 0)), 0);
	assert_true(wait_for_count(&n, 4, 5000));
	pool_free(p);
}

struct feeder {
	struct pool *pool;
	struct notes *notes;
};

static void *feed(void *arg)
{
	struct feeder *f = arg;

	for (int i = 0; i < 100; i++) {
		if (i % 3 == 0)
			assert_int_equal(pool_run_later(f->pool, i % 7, run_job, drop_job, job_new(f->notes, i, 0)), 0);
		else
			assert_int_equal(pool_run(f->pool, run_job, job_new(f->notes, i, 0)), 0);
	}
	return NULL;
}

static void many_threads_may_queue_at_once(void **state)
{
	struct notes n = notes_new();
	struct feeder f = { pool_new("many", 4), &n };
	pthread_t threads[8];

	(void)state;
	for (int i = 0; i < 8; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, feed, &f), 0);
	for (int i = 0; i < 8; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_true(wait_for_count(&n, 800, 10000));
	pool_free(f.pool);
	assert_int_equal(n.count, 800);
	assert_int_equal(n.dropped, 0);
}

static void *end_at_once(void *arg)
{
	return arg;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_threads_jobs_run_in_the_order_they_came),
		cmocka_unit_test(jobs_run_at_once_but_never_more_than_the_bound),
		cmocka_unit_test(freeing_waits_for_what_is_queued_and_drops_what_is_not_due),
		cmocka_unit_test(delayed_jobs_run_in_the_order_of_their_times_and_never_early),
		cmocka_unit_test(a_delayed_job_is_not_held_up_by_a_long_one_while_there_are_threads),
		cmocka_unit_test(a_job_wakes_the_thread_that_waits_for_a_later_one),
		cmocka_unit_test(a_job_due_sooner_is_not_kept_waiting_by_one_due_later),
		cmocka_unit_test(a_job_may_queue_another_until_the_pool_ends),
		cmocka_unit_test(many_threads_may_queue_at_once),
		cmocka_unit_test(threads_start_when_needed_and_end_when_they_were_idle_long_enough),
	};

	pthread_t first;
	if (pthread_create(&first, NULL, end_at_once, NULL) == 0) /* ThreadSanitizer begins its own with the first */
		pthread_join(first, NULL);
	thread_count_alone = thread_count();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
