/* Worker threads; see pool.h.
 *
 * Delayed jobs wait in a list sorted by time. One idle worker (the keeper) sleeps until the first of them is due; all
 * others sleep until there is a job or they have been idle for long enough. With nothing queued and nothing due the
 * last worker ends, so an idle mount has no thread of ours that wakes. */
#include "client/base/pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/base/cleanup.h"

#define IDLE_MS 10000

struct job {
	struct job *next;
	pool_fn *fn, *drop;
	void *arg;
	int64_t due_ms; /* delayed jobs only */
};

struct pool {
	char name[16]; /* this and the next two are set once */
	int threads_max;
	int64_t idle_ms;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t work;  /* a job came, or it stops */
	pthread_cond_t timer; /* for the keeper: the first delayed job changed */
	pthread_cond_t ended; /* a thread has ended */
	struct job *first, **last;
	struct job *delayed; /* by due_ms, equal ones in the order they came */
	int threads, idle;   /* idle: those that wait on `work` */
	bool has_keeper, stops;
};

/* Condition variables here run on CLOCK_MONOTONIC: CLOCK_BOOTTIME is refused by pthread_condattr_setclock(). */
static int64_t now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t); /* can't fail for this clock */
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static struct timespec timespec_of(int64_t ms)
{
	return (struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
}

struct pool *pool_new(const char *name, int threads_max)
{
	struct pool *p = calloc(1, sizeof(*p));
	pthread_condattr_t attr;

	if (!p)
		return NULL;
	(void)snprintf(p->name, sizeof(p->name), "%s", name); /* cut to what a thread may be called */
	p->threads_max = threads_max > 0 ? threads_max : 1;
	p->idle_ms = IDLE_MS;
	p->last = &p->first;
	if (pthread_condattr_init(&attr) != 0) {
		free(p);
		return NULL;
	}
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC); /* a clock every Linux has */
	(void)pthread_mutex_init(&p->lock, NULL);                /* these three can't fail on Linux */
	(void)pthread_cond_init(&p->work, &attr);
	(void)pthread_cond_init(&p->timer, &attr);
	(void)pthread_cond_init(&p->ended, NULL);
	(void)pthread_condattr_destroy(&attr);
	return p;
}

static void queue_job(struct pool *p, struct job *j)
{
	j->next = NULL;
	*p->last = j;
	p->last = &j->next;
}

/* Returns when the next one is due, or -1. */
static int64_t queue_due(struct pool *p, int64_t now)
{
	while (p->delayed && p->delayed->due_ms <= now) {
		struct job *j = p->delayed;
		p->delayed = j->next;
		queue_job(p, j);
	}
	return p->delayed ? p->delayed->due_ms : -1;
}

static void *worker(void *arg);

static int thread_start(struct pool *p)
{
	pthread_attr_t attr;
	pthread_t thread;
	sigset_t all, before;

	if (pthread_attr_init(&attr) != 0)
		return -ENOMEM;
	(void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED); /* a valid state */
	/* Signals are the main thread's: a worker is born with all of them blocked. */
	(void)sigfillset(&all); /* can't fail, nor can the masks be set wrong */
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	int r = -pthread_create(&thread, &attr, worker, p);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	(void)pthread_attr_destroy(&attr);
	if (r == 0)
		p->threads++;
	return r;
}

void pool_set_idle(struct pool *p, int64_t idle_ms)
{
	p->idle_ms = idle_ms;
}

/* Somebody for the next job: an idle thread, or a new one while there may be more. With others at work a thread that
 * can't be started is no failure: they come to it. */
static int someone_for_jobs(struct pool *p)
{
	if (p->idle > 0) {
		pthread_cond_signal(&p->work);
		return 0;
	}
	if (p->has_keeper) {
		pthread_cond_signal(&p->timer);
		return 0;
	}
	if (p->threads >= p->threads_max)
		return 0;
	int r = thread_start(p);
	return r < 0 && p->threads == 0 ? r : 0;
}

/* Waits for something to do; false: this thread has to end. Holds the lock. */
static bool worker_wait(struct pool *p, int64_t idle_since)
{
	int64_t now = now_ms();
	int64_t due = queue_due(p, now);

	if (p->first)
		return true;
	if (p->stops)
		return false;
	if (due >= 0 && !p->has_keeper) {
		struct timespec until = timespec_of(due);
		p->has_keeper = true;
		(void)pthread_cond_timedwait(&p->timer, &p->lock, &until); /* whatever woke it, it looks again */
		p->has_keeper = false;
		return true;
	}
	if (now - idle_since >= p->idle_ms)
		return false;
	struct timespec until = timespec_of(idle_since + p->idle_ms);
	p->idle++;
	(void)pthread_cond_timedwait(&p->work, &p->lock, &until); /* the same */
	p->idle--;
	return true;
}

static void *worker(void *arg)
{
	struct pool *p = arg;
	int64_t idle_since = now_ms();

	(void)pthread_setname_np(pthread_self(), p->name); /* for people with a debugger alone */
	pthread_mutex_lock(&p->lock);
	while (worker_wait(p, idle_since)) {
		struct job *j = p->first;
		if (!j)
			continue;
		p->first = j->next;
		if (!p->first)
			p->last = &p->first;
		/* Another job behind this one, or times to be kept while this thread is away, need another thread. */
		if (p->first || (p->delayed && !p->has_keeper))
			(void)someone_for_jobs(p); /* this thread comes back to it otherwise */
		pthread_mutex_unlock(&p->lock);
		j->fn(j->arg);
		free(j);
		pthread_mutex_lock(&p->lock);
		idle_since = now_ms();
	}
	p->threads--;
	pthread_cond_broadcast(&p->ended);
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static struct job *job_new(pool_fn *fn, pool_fn *drop, void *arg)
{
	struct job *j = malloc(sizeof(*j));

	if (j)
		*j = (struct job){ .fn = fn, .drop = drop, .arg = arg };
	return j;
}

int pool_run(struct pool *p, pool_fn *fn, void *arg)
{
	struct job *j = job_new(fn, NULL, arg);

	if (!j)
		return -ENOMEM;
	SCOPED_LOCK(&p->lock);
	int r = p->stops ? -ESHUTDOWN : someone_for_jobs(p);
	if (r < 0) {
		free(j);
		return r == -ESHUTDOWN ? r : -ENOMEM;
	}
	queue_job(p, j);
	return 0;
}

int pool_run_later(struct pool *p, int64_t delay_ms, pool_fn *fn, pool_fn *drop, void *arg)
{
	struct job *j = job_new(fn, drop, arg);
	struct job **at;

	if (!j)
		return -ENOMEM;
	j->due_ms = now_ms() + (delay_ms > 0 ? delay_ms : 0);
	SCOPED_LOCK(&p->lock);
	/* Behind all threads at work the job waits for one of them, so only an empty pool needs a thread for sure. */
	int r = p->stops ? -ESHUTDOWN : someone_for_jobs(p);
	if (r < 0) {
		free(j);
		return r == -ESHUTDOWN ? r : -ENOMEM;
	}
	for (at = &p->delayed; *at && (*at)->due_ms <= j->due_ms;)
		at = &(*at)->next;
	j->next = *at;
	*at = j;
	/* Whoever keeps the times keeps them for the job that was the next until now. */
	if (p->delayed == j && p->has_keeper)
		pthread_cond_signal(&p->timer);
	return 0;
}

void pool_stop(struct pool *p)
{
	struct job *dropped;

	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stops = true;
	dropped = p->delayed;
	p->delayed = NULL;
	pthread_cond_broadcast(&p->work);
	pthread_cond_broadcast(&p->timer);
	while (p->threads > 0)
		pthread_cond_wait(&p->ended, &p->lock);
	pthread_mutex_unlock(&p->lock);
	while (dropped) {
		struct job *j = dropped;
		dropped = j->next;
		if (j->drop)
			j->drop(j->arg);
		free(j);
	}
}

void pool_free(struct pool *p)
{
	if (!p)
		return;
	pool_stop(p);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->timer);
	pthread_cond_destroy(&p->ended);
	free(p);
}
