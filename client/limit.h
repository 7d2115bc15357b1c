/* Who may send a request when: never more than `rate` in any sliding window, people before polling.
 *
 * The window is shared, through a small locked file, by every process of this user that talks to the same service, and
 * outlives them; so a restart cannot spend a budget twice. A request counts from when it is sent until one window after
 * its answer came: that is what makes the other side's window hold as well, wherever between the two it counted.
 *
 * A 429 in spite of our count means others behind the same address: it lowers the rate, which then rises again slowly.
 *
 * Pure but for its clock: `now_ms` is asked and may be turned by hand. Threads: any. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/backend.h"

struct limit;

struct limit_options {
	int rate; /* requests in a window; -1: no limit of ours (a 429's pause is kept all the same) */
	int64_t window_ms;
	const char *path;        /* NULL: count alone */
	int64_t (*now_ms)(void); /* NULL: clock_now_ms */
	const char *subject;     /* begins log lines; a literal */
};

enum { LIMIT_RATE_MAX = 4000 };

/* A path that cannot be used is no failure: a line in the log, and we count alone. -ENOMEM. */
int limit_new(const struct limit_options *options, struct limit **ret);
void limit_free(struct limit *l);

/* Waits for a place in the order of urgency, then arrival; but while somebody waits, FINISH is sure of a fifth of the
 * window, BEGIN of a tenth and BACKGROUND of a twentieth. BACKGROUND gets at most a fifth, and a twentieth is kept for
 * PERSON alone. transfer may be NULL; its waits_for_place is set meanwhile. deadline_ms is on
 * now_ms's scale, 0 none. 0: send, then say so with limit_answered(). -EAGAIN: no place before the deadline.
 * -ECANCELED. */
int limit_take(struct limit *l, enum urgency urgency, int64_t deadline_ms, struct transfer *transfer,
	       uint64_t *ret_place);

/* Whoever is in line leaves it with -ECANCELED, and so does everybody who comes. */
void limit_stop(struct limit *l);

/* What came back of that place. */
struct limit_answer {
	int status;               /* 0: none */
	int64_t retry_after_ms;   /* -1: not said */
	int64_t limit, remaining; /* X-RateLimit-*; -1: not said */
};
void limit_answered(struct limit *l, uint64_t place, const struct limit_answer *answer);

/* How it stands, for people. */
struct limit_view {
	int rate;         /* places in a window, as they are now; -1: unlimited */
	int usual_rate;   /* without the 429 that lowered it */
	int foreign;      /* places others behind our address use, as the service last told */
	int used;         /* of them, by all processes */
	int waiting;      /* callers in line, of this process */
	int64_t pause_ms; /* nobody sends for so long; 0 */
	int64_t free_ms;  /* until the oldest of the used places is free again; 0: none is used */
};
void limit_look(struct limit *l, struct limit_view *ret);
