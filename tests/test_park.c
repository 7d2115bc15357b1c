/* Parked requests, with requests of our own in place of libfuse's: park.c asks them for two things alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "fs/park.h"

#define SOON_MS 50
#define LONG_MS 60000
#define NOT_YET 1000

/* ---- requests ---------------------------------------------------------------------------------------------- */

struct fuse_req {
	struct fuse_ctx ctx;
	pthread_mutex_t lock; /* as libfuse's: held while func runs */
	fuse_interrupt_func_t func;
	void *data;
	bool is_interrupted;
	_Atomic int resumed, how;
};

/* These two stand before libfuse's own. */
const struct fuse_ctx *fuse_req_ctx(fuse_req_t req)
{
	return &req->ctx;
}

void fuse_req_interrupt_func(fuse_req_t req, fuse_interrupt_func_t func, void *data)
{
	SCOPED_LOCK(&req->lock);
	req->func = func;
	req->data = data;
	if (req->is_interrupted && func)
		func(req, data);
}

static void interrupt(struct fuse_req *req)
{
	SCOPED_LOCK(&req->lock);
	req->is_interrupted = true;
	if (req->func)
		req->func(req, req->data);
}

static struct fuse_req *request(pid_t pid)
{
	struct fuse_req *r = calloc(1, sizeof(*r));
	assert_non_null(r);
	r->ctx.pid = pid;
	r->how = NOT_YET;
	pthread_mutex_init(&r->lock, NULL);
	return r;
}

static void request_free(struct fuse_req *r)
{
	pthread_mutex_destroy(&r->lock);
	free(r);
}

static void note(fuse_req_t req, void *arg, int how)
{
	(void)arg;
	atomic_store(&req->how, how);
	atomic_fetch_add(&req->resumed, 1);
}

static bool is_resumed_within(struct fuse_req *r, int64_t ms)
{
	for (int64_t end = clock_now_ms() + ms; clock_now_ms() < end; (void)usleep(1000))
		if (atomic_load(&r->resumed) > 0)
			return true;
	return false;
}

static int setup(void **state)
{
	*state = pool_new("resumed", 4);
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	pool_free(*state);
	return 0;
}

/* ---- tests ------------------------------------------------------------------------------------------------- */

static void a_waker_resumes_all_on_its_list_once_with_its_word_and_nobody_on_another(void **state)
{
	struct park *p = park_new(*state);
	struct wait_list mine = { NULL }, other = { NULL };
	struct fuse_req *r[3] = { request(0), request(0), request(0) };

	for (int i = 0; i < 3; i++)
		assert_int_equal(park_wait(p, i < 2 ? &mine : &other, r[i], clock_now_ms() + LONG_MS, note, NULL), 0);
	assert_false(wait_list_is_empty(p, &mine));
	park_wake(p, &mine, -EIO);
	assert_true(wait_list_is_empty(p, &mine));
	park_wake(p, &mine, 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(r[i]->resumed, 1);
		assert_int_equal(r[i]->how, -EIO);
		assert_null(r[i]->func);
	}
	assert_int_equal(r[2]->resumed, 0);
	park_free(p);
	assert_int_equal(r[2]->resumed, 1);
	assert_int_equal(r[2]->how, -ENOTCONN);
	for (int i = 0; i < 3; i++)
		request_free(r[i]);
}

static void a_deadline_resumes_with_ETIMEDOUT_and_not_before(void **state)
{
	struct park *p = park_new(*state);
	struct wait_list list = { NULL };
	struct fuse_req *late = request(0), *later = request(0);
	int64_t began = clock_now_ms();

	assert_int_equal(park_wait(p, &list, later, began + 4 * SOON_MS, note, NULL), 0);
	assert_int_equal(park_wait(p, &list, late, began + SOON_MS, note, NULL), 0);
	assert_true(is_resumed_within(late, LONG_MS));
	assert_true(clock_now_ms() - began >= SOON_MS);
	assert_int_equal(late->how, -ETIMEDOUT);
	assert_true(is_resumed_within(later, LONG_MS));
	assert_true(clock_now_ms() - began >= 4 * SOON_MS);
	assert_true(wait_list_is_empty(p, &list));
	park_wake(p, &list, 0);
	assert_int_equal(late->resumed + later->resumed, 2);
	park_free(p);
	request_free(late);
	request_free(later);
}

struct again {
	struct park *park;
	struct wait_list *list;
};

static void park_again(fuse_req_t req, void *arg, int how)
{
	struct again *a = arg;
	(void)how;
	assert_int_equal(park_wait(a->park, a->list, req, clock_now_ms() + LONG_MS, note, NULL), 0);
}

static void one_that_parks_itself_again_waits_for_the_next_wake(void **state)
{
	struct park *p = park_new(*state);
	struct wait_list list = { NULL };
	struct again again = { p, &list };
	struct fuse_req *r = request(0);

	assert_int_equal(park_wait(p, &list, r, clock_now_ms() + LONG_MS, park_again, &again), 0);
	park_wake(p, &list, 0);
	assert_int_equal(r->resumed, 0);
	park_wake(p, &list, 7);
	assert_int_equal(r->resumed, 1);
	assert_int_equal(r->how, 7);
	park_free(p);
	request_free(r);
}

/* A child that handles SIGALRM, and is stopped so that the signal stays pending. */
static pid_t stopped_child(void)
{
	int ready[2];
	char c;

	assert_int_equal(pipe(ready), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)signal(SIGALRM, (void (*)(int))_exit);
		if (write(ready[1], "", 1) == 1)
			for (;;)
				(void)pause();
		_exit(1);
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	(void)close(ready[0]);
	(void)close(ready[1]);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(waitpid(pid, NULL, WUNTRACED), pid);
	return pid;
}

static void a_signal_the_caller_handles_does_not_end_its_wait_and_its_death_does(void **state)
{
	struct park *p = park_new(*state);
	struct wait_list list = { NULL };
	pid_t pid = stopped_child();
	struct fuse_req *r = request(pid);

	assert_int_equal(park_wait(p, &list, r, clock_now_ms() + LONG_MS, note, NULL), 0);
	assert_int_equal(kill(pid, SIGALRM), 0);
	interrupt(r);
	assert_false(is_resumed_within(r, 400));
	/* The kernel does not interrupt a second time. */
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_true(is_resumed_within(r, 5000));
	assert_int_equal(r->how, -EINTR);
	assert_true(wait_list_is_empty(p, &list));
	park_free(p);
	assert_int_equal(r->resumed, 1);
	request_free(r);
}

static void one_interrupted_before_it_was_parked_is_looked_at_too(void **state)
{
	struct park *p = park_new(*state);
	struct wait_list list = { NULL };
	pid_t pid = stopped_child();
	struct fuse_req *r = request(pid);

	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	interrupt(r);
	assert_int_equal(park_wait(p, &list, r, clock_now_ms() + LONG_MS, note, NULL), 0);
	assert_true(is_resumed_within(r, 5000));
	assert_int_equal(r->how, -EINTR);
	park_free(p);
	request_free(r);
}

static void a_caller_of_another_pid_namespace_waits_on_after_an_interrupt(void **state)
{
	struct park *p = park_new(*state);
	struct wait_list list = { NULL };
	struct fuse_req *r = request(0);

	assert_int_equal(park_wait(p, &list, r, clock_now_ms() + 400, note, NULL), 0);
	interrupt(r);
	assert_false(is_resumed_within(r, 200));
	assert_true(is_resumed_within(r, LONG_MS));
	assert_int_equal(r->how, -ETIMEDOUT);
	park_free(p);
	request_free(r);
}

/* ---- races ------------------------------------------------------------------------------------------------- */

#define RACERS 3000

struct race {
	struct park *park;
	struct wait_list list;
	pthread_mutex_t lock; /* guards turn */
	int turn;
	_Atomic bool is_over;
	struct fuse_req *requests[RACERS];
};

static void *wake_and_wake(void *arg)
{
	struct race *race = arg;

	while (!atomic_load(&race->is_over)) {
		pthread_mutex_lock(&race->lock);
		race->turn++;
		pthread_mutex_unlock(&race->lock);
		park_wake(race->park, &race->list, 0);
	}
	return NULL;
}

static void *interrupt_all(void *arg)
{
	struct race *race = arg;
	for (int i = 0; i < RACERS; i++)
		interrupt(race->requests[i]);
	return NULL;
}

static void wakers_deadlines_and_interrupts_at_once_resume_each_exactly_once(void **state)
{
	struct race race = { .park = park_new(*state) };
	pthread_t wakers[2], interrupter;

	pthread_mutex_init(&race.lock, NULL);
	for (int i = 0; i < RACERS; i++)
		race.requests[i] = request(i % 3 ? 0 : getpid());
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&wakers[i], NULL, wake_and_wake, &race), 0);
	assert_int_equal(pthread_create(&interrupter, NULL, interrupt_all, &race), 0);
	for (int i = 0; i < RACERS; i++) {
		/* Under the lock that guards what is waited for: no wake slips in between. */
		pthread_mutex_lock(&race.lock);
		assert_int_equal(park_wait(race.park, &race.list, race.requests[i], clock_now_ms() + i % 5, note, NULL), 0);
		pthread_mutex_unlock(&race.lock);
	}
	for (int i = 0; i < RACERS; i++)
		assert_true(is_resumed_within(race.requests[i], LONG_MS));
	atomic_store(&race.is_over, true);
	for (int i = 0; i < 2; i++)
		(void)pthread_join(wakers[i], NULL);
	(void)pthread_join(interrupter, NULL);
	park_free(race.park);
	for (int i = 0; i < RACERS; i++) {
		assert_int_equal(race.requests[i]->resumed, 1);
		assert_true(race.requests[i]->how == 0 || race.requests[i]->how == -ETIMEDOUT);
		request_free(race.requests[i]);
	}
	pthread_mutex_destroy(&race.lock);
}

/* ---- whose a thread is ------------------------------------------------------------------------------------- */

static void *ask_for_own(void *arg)
{
	pid_t *ret = arg;
	*ret = park_tgid(gettid());
	return NULL;
}

static void a_threads_process_is_known_and_what_cannot_be_known_is_0(void **state)
{
	pthread_t thread;
	pid_t found = 0;
	(void)state;

	assert_int_equal(pthread_create(&thread, NULL, ask_for_own, &found), 0);
	(void)pthread_join(thread, NULL);
	assert_int_equal(found, getpid());
	assert_int_equal(park_tgid(0), 0);
	assert_int_equal(park_tgid(-1), 0);
	pid_t gone = fork();
	assert_true(gone >= 0);
	if (gone == 0)
		_exit(0);
	assert_int_equal(waitpid(gone, NULL, 0), gone);
	assert_int_equal(park_tgid(gone), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_waker_resumes_all_on_its_list_once_with_its_word_and_nobody_on_another, setup, teardown),
		cmocka_unit_test_setup_teardown(a_deadline_resumes_with_ETIMEDOUT_and_not_before, setup, teardown),
		cmocka_unit_test_setup_teardown(one_that_parks_itself_again_waits_for_the_next_wake, setup, teardown),
		cmocka_unit_test_setup_teardown(a_signal_the_caller_handles_does_not_end_its_wait_and_its_death_does, setup, teardown),
		cmocka_unit_test_setup_teardown(one_interrupted_before_it_was_parked_is_looked_at_too, setup, teardown),
		cmocka_unit_test_setup_teardown(a_caller_of_another_pid_namespace_waits_on_after_an_interrupt, setup, teardown),
		cmocka_unit_test_setup_teardown(wakers_deadlines_and_interrupts_at_once_resume_each_exactly_once, setup, teardown),
		cmocka_unit_test(a_threads_process_is_known_and_what_cannot_be_known_is_0),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
