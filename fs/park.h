/* Parked requests: a FUSE request that has to wait is put aside with a deadline and taken up again by whoever did the work, so
 * that no libfuse thread ever waits.
 *
 * A parked request is resumed exactly once: woken (how = 0 or what the waker says), at its deadline (-ETIMEDOUT), or because
 * its caller was killed (-EINTR). resume() runs on the waker's thread or on the park's own pool, never with a lock held, and ends the
 * request with a fuse_reply_*() or parks it again.
 *
 * A killed caller: after FUSE_INTERRUPT the caller's pending signals are looked at, and only a deadly one ends the wait; a handled one
 * (SIGALRM in Python, SIGURG in Go) does not. The kernel interrupts a request once at the most, so from then on the caller is looked at
 * ten times a second. A caller in another pid namespace (pid 0) can't be looked at and waits on. */
#pragma once

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/base/pool.h"

struct park;

/* Requests that wait for the same thing. Zeroes are an empty list. Guarded by the park's lock. */
struct parked;
struct wait_list {
	struct parked *first;
};

typedef void park_resume(fuse_req_t req, void *arg, int how);

struct park *park_new(struct pool *pool);
/* Resumes whoever still waits with -ENOTCONN, on this thread. Nobody parks any more by then. Accepts NULL. */
void park_free(struct park *p);

/* Puts req on the list until deadline_ms (clock_now_ms() scale). To be called under the lock that guards what is waited for, so that no wake
 * slips in between the look and the wait; resume() never runs on this thread. On -ENOMEM nothing was parked. The list must
 * outlive the wait. */
int park_wait(struct park *p, struct wait_list *list, fuse_req_t req, int64_t deadline_ms, park_resume *resume, void *arg);

/* Resumes all on the list with `how`, on this thread. May be called with no lock held only. */
void park_wake(struct park *p, struct wait_list *list, int how);

bool wait_list_is_empty(struct park *p, struct wait_list *list);

/* The thread-group id behind a request's pid, or 0 when it can't be known. */
pid_t park_tgid(pid_t tid);
