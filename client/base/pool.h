/* Worker threads for whatever may block: network calls, fsync, SQLite. libfuse's threads never run such work.
 *
 * Jobs of one pool run in the order they came, on at most `threads` threads, which start when needed and end after
 * 10 s without work (an idle mount wakes nobody). */
#pragma once

#include <stdint.h>

struct pool;
typedef void pool_fn(void *arg);

struct pool *pool_new(const char *name, int threads_max);
/* Other than 10 s; before the first job. */
void pool_set_idle(struct pool *p, int64_t idle_ms);

/* Runs fn(arg) on a worker. -ENOMEM or -ESHUTDOWN: then nothing runs and arg stays the caller's. */
int pool_run(struct pool *p, pool_fn *fn, void *arg);

/* The same, not before now + delay_ms. Jobs still waiting for their time when the pool stops are dropped through
 * drop(arg) (may be NULL). */
int pool_run_later(struct pool *p, int64_t delay_ms, pool_fn *fn, pool_fn *drop, void *arg);

/* Takes no more jobs (-ESHUTDOWN); waits for those that run and those queued without delay, and drops those that wait for their time.
 * Accepts NULL. */
void pool_stop(struct pool *p);
/* Stops it if it was not, and frees it. Accepts NULL. */
void pool_free(struct pool *p);
