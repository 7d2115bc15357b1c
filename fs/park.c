/* Parked requests; see park.h. One thread watches deadlines and interrupted callers, and sleeps without a bound when nothing is
 * parked. */
#include "fs/park.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

#define INTERRUPTED_LOOK_MS 100

struct parked {
	struct parked *next, **back;         /* in its wait_list; back NULL: taken off */
	struct parked *all_next, **all_back; /* in the park */
	struct park *park;
	fuse_req_t req;
	pid_t pid;
	int64_t deadline_ms;
	bool is_interrupted;
	bool is_armed; /* its interrupt function is set: it may be resumed */
	bool is_woken; /* woken before it was armed: the watcher resumes it with woken_how */
	int woken_how;
	park_resume *resume;
	void *arg;
};

struct park {
	struct pool *pool;
	pthread_t watcher;
	pthread_mutex_t lock; /* guards what follows, and every wait_list */
	pthread_cond_t changed;
	struct parked *all;
	int64_t sleeps_until_ms; /* the watcher, when it sleeps; INT64_MAX: until it is called */
	bool stops;
};

static bool status_field(const char *text, const char *name, uint64_t *ret, int base)
{
	const char *at = strstr(text, name);
	if (!at)
		return false;
	*ret = strtoull(at + strlen(name), NULL, base);
	return true;
}

static bool read_status(pid_t tid, char *text, size_t room)
{
	char path[64];
	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
	FILE *f = fopen(path, "re");
	if (!f)
		return false;
	size_t n = fread(text, 1, room - 1, f);
	text[n] = '\0';
	(void)fclose(f); /* only read from */
	return n > 0;
}

pid_t park_tgid(pid_t tid)
{
	char text[4096];
	uint64_t tgid = 0;

	if (tid <= 0 || !read_status(tid, text, sizeof(text)) || !status_field(text, "\nTgid:", &tgid, 10))
		return 0;
	return (pid_t)tgid;
}

/* Signals whose default action neither ends nor dumps the process. */
static bool is_harmless_by_default(int sig)
{
	return sig == SIGCHLD || sig == SIGCONT || sig == SIGURG || sig == SIGWINCH || sig == SIGSTOP ||
	       sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU;
}

/* Is a signal pending that will end the caller? One that is gone altogether counts as killed. */
static bool caller_is_dying(pid_t tid)
{
	char text[4096];
	uint64_t thread = 0, process = 0, blocked = 0, ignored = 0, caught = 0;

	if (tid <= 0)
		return false;
	if (!read_status(tid, text, sizeof(text)))
		return true;
	(void)status_field(text, "\nSigPnd:", &thread, 16); /* absent: as none */
	(void)status_field(text, "\nShdPnd:", &process, 16);
	(void)status_field(text, "\nSigBlk:", &blocked, 16);
	(void)status_field(text, "\nSigIgn:", &ignored, 16);
	(void)status_field(text, "\nSigCgt:", &caught, 16);
	uint64_t pending = thread | process;
	if (pending & (1ULL << (SIGKILL - 1)))
		return true;
	pending &= ~(blocked | ignored | caught);
	for (int sig = 1; sig < 64; sig++)
		if ((pending & (1ULL << (sig - 1))) && !is_harmless_by_default(sig))
			return true;
	return false;
}

/* Takes it off both lists. The park's lock is held. */
static void take_off(struct parked *w)
{
	if (w->back) {
		*w->back = w->next;
		if (w->next)
			w->next->back = w->back;
		w->back = NULL;
	}
	*w->all_back = w->all_next;
	if (w->all_next)
		w->all_next->all_back = w->all_back;
}

/* w is on no list any more and belongs to us alone. Disarming waits for an interrupt function that is running now. */
static void resume(struct parked *w, int how)
{
	fuse_req_t req = w->req;
	park_resume *fn = w->resume;
	void *arg = w->arg;

	fuse_req_interrupt_func(req, NULL, NULL);
	free(w);
	fn(req, arg, how);
}

struct late {
	struct parked *w;
	int how;
};

static void resume_late(void *arg)
{
	struct late *l = arg;
	resume(l->w, l->how);
	free(l);
}

/* From the watcher: on the pool, since resume() may take its time and the next deadline is near. */
static void resume_on_pool(struct park *p, struct parked *w, int how)
{
	struct late *l = malloc(sizeof(*l));
	if (l) {
		*l = (struct late){ w, how };
		if (pool_run(p->pool, resume_late, l) == 0)
			return;
		free(l);
	}
	resume(w, how);
}

/* Called by libfuse with the request locked: only notes it down. */
static void on_interrupt(fuse_req_t req, void *data)
{
	struct parked *w = data;
	struct park *p = w->park;
	(void)req;

	SCOPED_LOCK(&p->lock);
	w->is_interrupted = true;
	pthread_cond_signal(&p->changed);
}

static void *watch(void *arg)
{
	struct park *p = arg;

	pthread_mutex_lock(&p->lock);
	while (!p->stops) {
		int64_t now = clock_now_ms(), next = INT64_MAX;
		struct parked *due = NULL;
		int how = 0;
		for (struct parked *w = p->all; w && !due; w = w->all_next) {
			if (!w->is_armed)
				continue; /* park_wait() looks at its deadline itself */
			if (w->is_woken) {
				due = w;
				how = w->woken_how;
			} else if (w->is_interrupted && caller_is_dying(w->pid)) {
				due = w;
				how = -EINTR;
			} else if (w->deadline_ms <= now) {
				due = w;
				how = -ETIMEDOUT;
			} else {
				int64_t look = w->is_interrupted ? now + INTERRUPTED_LOOK_MS : w->deadline_ms;
				if (w->deadline_ms < look)
					look = w->deadline_ms;
				if (look < next)
					next = look;
			}
		}
		if (due) {
			take_off(due);
			pthread_mutex_unlock(&p->lock);
			resume_on_pool(p, due, how);
			pthread_mutex_lock(&p->lock);
			continue;
		}
		p->sleeps_until_ms = next;
		if (next == INT64_MAX) {
			pthread_cond_wait(&p->changed, &p->lock);
		} else {
			struct timespec until;
			clock_gettime(CLOCK_MONOTONIC, &until);
			int64_t wait_ms = next > now ? next - now : 1;
			until.tv_sec += wait_ms / 1000;
			until.tv_nsec += (wait_ms % 1000) * 1000000;
			if (until.tv_nsec >= 1000000000) {
				until.tv_sec++;
				until.tv_nsec -= 1000000000;
			}
			pthread_cond_timedwait(&p->changed, &p->lock, &until);
		}
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

struct park *park_new(struct pool *pool)
{
	struct park *p = calloc(1, sizeof(*p));
	if (!p)
		return NULL;
	p->pool = pool;
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->changed, &attr);
	pthread_condattr_destroy(&attr);
	if (pthread_create(&p->watcher, NULL, watch, p) != 0) {
		pthread_cond_destroy(&p->changed);
		pthread_mutex_destroy(&p->lock);
		free(p);
		return NULL;
	}
	return p;
}

void park_free(struct park *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stops = true;
	pthread_cond_signal(&p->changed);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->watcher, NULL);
	/* Whoever still waits hears that the mount has ended. */
	for (struct parked *w; (w = p->all) != NULL;) {
		take_off(w);
		resume(w, -ENOTCONN);
	}
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

int park_wait(struct park *p, struct wait_list *list, fuse_req_t req, int64_t deadline_ms, park_resume *fn, void *arg)
{
	struct parked *w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	*w = (struct parked){ .park = p,
			      .req = req,
			      .pid = fuse_req_ctx(req)->pid,
			      .deadline_ms = deadline_ms,
			      .resume = fn,
			      .arg = arg };
	pthread_mutex_lock(&p->lock);
	w->next = list->first;
	w->back = &list->first;
	if (w->next)
		w->next->back = &w->next;
	list->first = w;
	w->all_next = p->all;
	w->all_back = &p->all;
	if (w->all_next)
		w->all_next->all_back = &w->all_next;
	p->all = w;
	pthread_mutex_unlock(&p->lock);

	/* Not under our lock: libfuse holds the request's lock when it calls on_interrupt(), which takes ours. */
	fuse_req_interrupt_func(req, on_interrupt, w);

	pthread_mutex_lock(&p->lock);
	w->is_armed = true;
	if (w->is_woken || w->is_interrupted || deadline_ms < p->sleeps_until_ms)
		pthread_cond_signal(
			&p->changed); /* woken meanwhile: the watcher resumes it, our caller may hold a lock */
	pthread_mutex_unlock(&p->lock);
	return 0;
}

void park_wake(struct park *p, struct wait_list *list, int how)
{
	/* Only those that wait now: one that parks itself again waits for the next time. */
	struct wait_list mine = { NULL };

	pthread_mutex_lock(&p->lock);
	mine.first = list->first;
	list->first = NULL;
	if (mine.first)
		mine.first->back = &mine.first;
	for (struct parked *w; (w = mine.first) != NULL;) {
		if (w->is_armed) {
			take_off(w);
			pthread_mutex_unlock(&p->lock);
			resume(w, how);
			pthread_mutex_lock(&p->lock);
		} else {
			/* Its own thread is still arming it; the watcher takes it from there. */
			mine.first = w->next;
			if (w->next)
				w->next->back = &mine.first;
			w->back = NULL;
			w->is_woken = true;
			w->woken_how = how;
		}
	}
	pthread_mutex_unlock(&p->lock);
}

bool wait_list_is_empty(struct park *p, struct wait_list *list)
{
	SCOPED_LOCK(&p->lock);
	return list->first == NULL;
}
