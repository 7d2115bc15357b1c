/* Who may send a request when; see limit.h. Knows no HTTP: it is told what came back.
 *
 * The window is an array of the requests that still count, newest last, in one file shared by this user's processes.
 * The file is read, judged and written back under flock(2) for each request: at a hundred requests a minute that is
 * nothing, and with pread/pwrite nobody who cuts the file short can kill us, as he could with a mapping.
 *
 * Nobody starves: of each urgency the first in line looks for a place, the more urgent before the others, and what a
 * lesser urgency is sure of (sure_share) is left to it while somebody of it waits, in whichever process.
 *
 * Times in the file are CLOCK_BOOTTIME; the boot's id and `wall_minus_now_ms` beside them carry them across a reboot.
 */
#include "client/limit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

#define MAGIC UINT64_C(0x32746d696c736673) /* "sfslimt2" */

enum {
	LOOK_MS = 100,         /* how often one in line looks whether he was cancelled */
	LOOK_SOON_MS = 20,     /* ... while somebody more urgent is about to be sent */
	LOOK_LONG_MS = 1000,   /* ... when nobody can cancel him: for other processes' pauses */
	PAUSE_FIRST_MS = 1000, /* after a 429 that does not say how long */
	PAUSE_MS_MAX = 60 * 1000,
	RETRY_AFTER_MS_MAX = 15 * 60 * 1000, /* a server that asks for more is asked again then */
	LOWERED_MS_MAX = 60 * 60 * 1000,     /* longer than it takes to come back from any lowering */
	LOWER_TO_PERCENT = 70,               /* by each 429 ... */
	LOWEST_PART = 4,                     /* ... but not below this part of the rate ... */
	RAISE_PART = 60, /* ... and up again by this part of it a window: so that several behind one address
					    come to equal shares, and meet the limit seldom */
	LOCK_TRIES = 50,
	LOCK_TRY_MS = 2,            /* a stopped process must not stop us */
	FOREIGN_MS_MAX = 10 * 1000, /* how long we believe an answer about others; then one request asks anew */
	BACKGROUND_SHARE = 5,
	PERSON_SHARE = 20,
	OWN_SHARE =
		3, /* of the rate, that we take whatever others behind our address use: they will give way as well */
	WANTED_MS = 3000, /* somebody who waited so short ago is taken to wait still */
	WANTED_STEP_MS = 500,
};

/* What each urgency is sure of while somebody of it waits, as parts of the rate; a person has the rest. */
static const int sure_share[] = {
	[URGENCY_PERSON] = 0, [URGENCY_FINISH] = 5, [URGENCY_BEGIN] = 10, [URGENCY_BACKGROUND] = 20
};

enum { URGENCY_COUNT = sizeof(sure_share) / sizeof(sure_share[0]) };

/* One request that counts. */
struct place {
	int64_t at_ms;   /* sent, or answered once it is */
	uint32_t number; /* of its process's limit */
	uint16_t owner;  /* tells processes apart */
	uint16_t urgency;
};

/* What the file begins with; `count` places follow. */
struct shared {
	uint64_t magic;
	char boot_id[40];
	int64_t wall_minus_now_ms;
	int64_t paused_until_ms;
	int64_t lowered_ms;               /* when the rate became lowered_rate; from there it rises again */
	int64_t wanted_ms[URGENCY_COUNT]; /* when somebody, of any process, waited last */
	int32_t lowered_rate;
	int32_t strikes; /* 429s in a row that did not say how long */
	int32_t count;
	int32_t reserved;
};

struct waiter {
	enum urgency urgency;
	uint64_t arrival;
	struct waiter *next;
};

struct limit {
	int rate;
	int64_t window_ms;
	int64_t (*now_ms)(void);
	const char *subject;
	int fd; /* of the shared file, or -1 */
	char boot_id[40];
	uint16_t owner;
	pthread_mutex_t lock; /* guards what follows; the file's own lock is taken inside it */
	pthread_cond_t moved; /* the head of the line has changed, or its time may have come */
	struct waiter *line;  /* by urgency, then arrival */
	uint64_t arrivals;
	bool is_stopped;
	uint32_t numbers;
	int64_t learned_limit; /* X-RateLimit-Limit: the largest of a window, since some routes may have one of their own; -1 */
	int64_t learned_ms; /* when it was said last */
	int64_t foreign;    /* requests in the server's window that are nobody's of ours */
	int64_t foreign_until_ms;
	bool file_is_locked;
	struct shared shared; /* as last read; the truth when there is no file */
	struct place places[LIMIT_RATE_MAX];
};

/* ---- the shared file --------------------------------------------------------------------------------------- */

static bool read_all(int fd, void *to, size_t bytes, off_t at)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n = pread(fd, (char *)to + done, bytes - done, at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static bool write_all(int fd, const void *from, size_t bytes, off_t at)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n = pwrite(fd, (const char *)from + done, bytes - done, at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static int64_t clamp(int64_t value, int64_t least, int64_t most)
{
	return value < least ? least : value > most ? most : value;
}

/* What another boot, another clock or a damaged disk left behind becomes something we could have written. Whatever
 * looks like the future counts as just sent: that errs on the side of waiting. */
static void make_sound(struct limit *l, int64_t now, int64_t wall_minus_now)
{
	struct shared *s = &l->shared;
	int64_t shift = s->wall_minus_now_ms - wall_minus_now;

	if (strncmp(s->boot_id, l->boot_id, sizeof(s->boot_id)) == 0)
		shift = 0;
	s->paused_until_ms = clamp(s->paused_until_ms + shift, 0, now + RETRY_AFTER_MS_MAX);
	s->lowered_ms = clamp(s->lowered_ms + shift, now - LOWERED_MS_MAX, now);
	for (int i = 0; i < URGENCY_COUNT; i++)
		s->wanted_ms[i] = clamp(s->wanted_ms[i] + shift, INT64_MIN / 2, now);
	s->lowered_rate = (int32_t)clamp(s->lowered_rate, 1, LIMIT_RATE_MAX);
	s->strikes = (int32_t)clamp(s->strikes, 0, 16);
	for (int i = 0; i < s->count; i++)
		l->places[i].at_ms = clamp(l->places[i].at_ms + shift, INT64_MIN / 2, now);
	s->wall_minus_now_ms = wall_minus_now;
	memcpy(s->boot_id, l->boot_id, sizeof(s->boot_id));
}

static void forget_all(struct limit *l, int64_t wall_minus_now)
{
	l->shared =
		(struct shared){ .magic = MAGIC, .lowered_rate = LIMIT_RATE_MAX, .wall_minus_now_ms = wall_minus_now };
	for (int i = 0; i < URGENCY_COUNT; i++)
		l->shared.wanted_ms[i] = INT64_MIN / 2;
}

/* Requests older than the window count no longer. */
static void drop_old(struct limit *l, int64_t now)
{
	int kept = 0;

	for (int i = 0; i < l->shared.count; i++) {
		if (l->places[i].at_ms > now - l->window_ms)
			l->places[kept++] = l->places[i];
	}
	l->shared.count = kept;
}

static bool lock_file(int fd)
{
	const struct timespec pause = { .tv_nsec = LOCK_TRY_MS * 1000000 };

	for (int i = 0; i < LOCK_TRIES; i++) {
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			return true;
		(void)nanosleep(&pause, NULL);
	}
	return false;
}

/* Reads the window as it is now, with the file locked until shared_end(). Without the file we go by what we know. */
static void shared_begin(struct limit *l, int64_t now)
{
	int64_t wall_minus_now = clock_wall_ms() - now;
	struct shared read;

	l->file_is_locked = l->fd >= 0 && lock_file(l->fd);
	if (l->file_is_locked) {
		if (!read_all(l->fd, &read, sizeof(read), 0) || read.magic != MAGIC || read.count < 0 ||
		    read.count > LIMIT_RATE_MAX ||
		    !read_all(l->fd, l->places, sizeof(l->places[0]) * (size_t)read.count, sizeof(read)))
			forget_all(l, wall_minus_now);
		else
			l->shared = read;
		make_sound(l, now, wall_minus_now);
	}
	drop_old(l, now);
}

static void shared_end(struct limit *l, bool changed)
{
	if (!l->file_is_locked)
		return;
	if (changed &&
	    (!write_all(l->fd, l->places, sizeof(l->places[0]) * (size_t)l->shared.count, sizeof(l->shared)) ||
	     !write_all(l->fd, &l->shared, sizeof(l->shared), 0)))
		log_debug("%s: the shared count of requests could not be written: %s", l->subject, strerror(errno));
	(void)flock(l->fd, LOCK_UN); /* fails only for a descriptor that is none */
	l->file_is_locked = false;
}

/* ---- judging ----------------------------------------------------------------------------------------------- */

/* What it would be had no 429 come. */
static int usual_rate(const struct limit *l)
{
	int64_t rate = l->rate;

	if (rate < 0)
		return -1;
	if (l->learned_limit > 0 && l->learned_limit < rate)
		rate = l->learned_limit * 9 / 10;
	return rate < 1 ? 1 : (int)rate;
}

static int effective_rate(const struct limit *l, int64_t now)
{
	int usual = usual_rate(l);
	int64_t raised = clamp(now - l->shared.lowered_ms, 0, LOWERED_MS_MAX) * usual / RAISE_PART / l->window_ms;

	if (usual < 0 || l->shared.lowered_rate + raised >= usual)
		return usual;
	return (int)(l->shared.lowered_rate + raised);
}

/* When the nth oldest place that counts leaves the window. Places are in the order of their times: they are appended,
 * and move to the end when they are stamped anew. */
static int64_t leaves_at(const struct limit *l, int nth, bool background_only)
{
	for (int i = 0; i < l->shared.count; i++) {
		if (background_only && l->places[i].urgency != URGENCY_BACKGROUND)
			continue;
		if (nth-- == 0)
			return l->places[i].at_ms + l->window_ms;
	}
	return 0;
}

static int count_of(const struct limit *l, enum urgency urgency)
{
	int count = 0;

	for (int i = 0; i < l->shared.count; i++)
		count += l->places[i].urgency == urgency;
	return count;
}

/* Of what is kept for urgencies below this one, the part they have not used, where somebody waits for it. */
static int kept_for_lesser(const struct limit *l, enum urgency urgency, int rate, int64_t now)
{
	int kept = 0;

	for (int u = (int)urgency + 1; u < URGENCY_COUNT; u++) {
		int share = rate / sure_share[u] > 0 ? rate / sure_share[u] : 1;
		int used = now - l->shared.wanted_ms[u] < WANTED_MS ? count_of(l, (enum urgency)u) : share;
		kept += used < share ? share - used : 0;
	}
	return kept < rate / 2 ? kept : rate / 2; /* of a very small rate */
}

/* 0: may be sent now; else the time to look again. */
static int64_t ready_at(const struct limit *l, enum urgency urgency, int64_t now)
{
	int rate = effective_rate(l, now);
	int64_t room;

	if (now < l->shared.paused_until_ms)
		return l->shared.paused_until_ms;
	if (rate < 0)
		return 0;
	room = urgency == URGENCY_PERSON ? rate : rate - rate / PERSON_SHARE;
	room -= kept_for_lesser(l, urgency, rate, now);
	if (now < l->foreign_until_ms && l->foreign > 0) {
		int64_t own = usual_rate(l) / OWN_SHARE;
		room = room - l->foreign > own ? room - l->foreign : room < own ? room : own;
	}
	if (room < 1)
		room = 1;
	if (l->shared.count >= room)
		return leaves_at(l, (int)(l->shared.count - room), false);
	if (urgency != URGENCY_BACKGROUND)
		return 0;
	int background = count_of(l, URGENCY_BACKGROUND);
	int background_max = rate / BACKGROUND_SHARE > 0 ? rate / BACKGROUND_SHARE : 1;
	return background < background_max ? 0 : leaves_at(l, background - background_max, true);
}

/* Does somebody of this process stand before those of this urgency, and might be sent now? */
static bool stands_back(const struct limit *l, enum urgency urgency, int64_t now)
{
	for (const struct waiter *w = l->line; w && w->urgency < urgency; w = w->next) {
		if (ready_at(l, w->urgency, now) == 0)
			return true;
	}
	return false;
}

/* ---- the line ---------------------------------------------------------------------------------------------- */

static void join(struct limit *l, struct waiter *w)
{
	struct waiter **at = &l->line;

	w->arrival = ++l->arrivals;
	while (*at && (*at)->urgency <= w->urgency)
		at = &(*at)->next;
	w->next = *at;
	*at = w;
}

static void leave(struct limit *l, struct waiter *w)
{
	struct waiter **at = &l->line;

	while (*at != w)
		at = &(*at)->next;
	*at = w->next;
	pthread_cond_broadcast(&l->moved);
}

/* Sends now if the window allows it. Otherwise *ret_again_ms is when to look again. */
static bool try_place(struct limit *l, enum urgency urgency, uint64_t *ret_place, int64_t *ret_again_ms)
{
	int64_t now = l->now_ms();
	bool may_send, counts, wants;

	shared_begin(l, now);
	*ret_again_ms = ready_at(l, urgency, now);
	may_send = *ret_again_ms == 0 && !stands_back(l, urgency, now);
	if (*ret_again_ms == 0 && !may_send) {
		*ret_again_ms = now + LOOK_SOON_MS;
		pthread_cond_broadcast(&l->moved); /* he may not know it yet */
	}
	counts = may_send && l->rate >= 0; /* an unlimited one would only grow the file */
	wants = !may_send && now - l->shared.wanted_ms[urgency] >= WANTED_STEP_MS;
	if (wants)
		l->shared.wanted_ms[urgency] = now;
	if (counts) {
		l->places[l->shared.count++] = (struct place){
			.at_ms = now, .number = ++l->numbers, .owner = l->owner, .urgency = (uint16_t)urgency
		};
		*ret_place = l->numbers;
	} else if (may_send) {
		*ret_place = 0;
	}
	shared_end(l, counts || wants);
	return may_send;
}

/* Of those who are as urgent, the one who came first. */
static bool is_first(const struct limit *l, const struct waiter *w)
{
	const struct waiter *first = l->line;

	while (first && first->urgency < w->urgency)
		first = first->next;
	return first == w;
}

/* Lets go of the lock for at most ms. */
static void wait_ms(struct limit *l, int64_t ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += ms % 1000 * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	(void)pthread_cond_timedwait(&l->moved, &l->lock, &until); /* either way we look again */
}

static int wait_for_place(struct limit *l, struct waiter *w, int64_t deadline_ms, struct transfer *transfer,
			  uint64_t *ret_place)
{
	for (;;) {
		int64_t now = l->now_ms(), again_ms = now + LOOK_LONG_MS;

		if (l->is_stopped || (transfer && atomic_load(&transfer->cancelled)))
			return -ECANCELED;
		if (is_first(l, w) && try_place(l, w->urgency, ret_place, &again_ms))
			return 0;
		if (deadline_ms != 0 && now >= deadline_ms)
			return -EAGAIN;
		if (transfer)
			atomic_store(&transfer->waits_for_place, true);
		if (deadline_ms != 0 && again_ms > deadline_ms)
			again_ms = deadline_ms;
		wait_ms(l, clamp(again_ms - now, 1, transfer ? LOOK_MS : LOOK_LONG_MS));
	}
}

void limit_stop(struct limit *l)
{
	SCOPED_LOCK(&l->lock);
	l->is_stopped = true;
	pthread_cond_broadcast(&l->moved);
}

int limit_take(struct limit *l, enum urgency urgency, int64_t deadline_ms, struct transfer *transfer,
	       uint64_t *ret_place)
{
	struct waiter w = { .urgency = urgency };
	SCOPED_LOCK(&l->lock);

	join(l, &w);
	int r = wait_for_place(l, &w, deadline_ms, transfer, ret_place);
	leave(l, &w);
	if (transfer)
		atomic_store(&transfer->waits_for_place, false);
	return r;
}

/* ---- answers ----------------------------------------------------------------------------------------------- */

/* The other side counted this request somewhere between its sending and now. */
static void restamp(struct limit *l, uint64_t number, int64_t now)
{
	for (int i = l->shared.count - 1; i >= 0; i--) {
		struct place p = l->places[i];

		if (number == 0 || p.number != (uint32_t)number || p.owner != l->owner)
			continue;
		p.at_ms = now;
		memmove(&l->places[i], &l->places[i + 1], sizeof(p) * (size_t)(l->shared.count - 1 - i));
		l->places[l->shared.count - 1] = p;
		return;
	}
	/* It took longer than a window; it counts all the same. */
	if (number != 0 && l->shared.count < LIMIT_RATE_MAX)
		l->places[l->shared.count++] =
			(struct place){ .at_ms = now, .number = (uint32_t)number, .owner = l->owner };
}

static int64_t random_below(int64_t bound)
{
	uint32_t n = 0;

	(void)!getrandom(&n, sizeof(n), GRND_NONBLOCK); /* none: no jitter */
	return n % bound;
}

static void pause_everybody(struct limit *l, int64_t retry_after_ms, int64_t now)
{
	struct shared *s = &l->shared;
	int64_t pause_ms = retry_after_ms;
	int rate = effective_rate(l, now);
	/* Several that were under way are refused together: that is one event. */
	bool is_known = now < s->paused_until_ms;

	if (pause_ms < 0 && is_known)
		return;
	if (pause_ms < 0) {
		pause_ms = PAUSE_FIRST_MS;
		for (int i = 0; i < s->strikes && pause_ms < PAUSE_MS_MAX; i++)
			pause_ms *= 2;
		pause_ms = clamp(pause_ms, 0, PAUSE_MS_MAX);
		/* Half of it to all of it, so that not everybody behind one address comes back at once. */
		pause_ms = pause_ms / 2 + random_below(pause_ms / 2 + 1);
		s->strikes++;
	}
	pause_ms = clamp(pause_ms, PAUSE_FIRST_MS / 2, RETRY_AFTER_MS_MAX);
	if (!is_known && rate > 0) {
		int usual = usual_rate(l);
		s->lowered_rate = (int32_t)clamp((int64_t)rate * LOWER_TO_PERCENT / 100,
						 clamp(usual / LOWEST_PART, 1, usual), LIMIT_RATE_MAX);
		s->lowered_ms = now;
		log_warning("%s: the service says there were too many requests; nothing is sent for %lld ms, then at "
			    "most %d a window",
			    l->subject, (long long)pause_ms, s->lowered_rate);
	}
	if (now + pause_ms > s->paused_until_ms)
		s->paused_until_ms = now + pause_ms;
}

void limit_answered(struct limit *l, uint64_t place, const struct limit_answer *answer)
{
	SCOPED_LOCK(&l->lock);
	int64_t now = l->now_ms();

	shared_begin(l, now);
	restamp(l, place, now);
	if (answer->status == 429)
		pause_everybody(l, answer->retry_after_ms, now);
	else if (answer->status > 0 && now >= l->shared.paused_until_ms)
		l->shared.strikes = 0;
	if (answer->limit > 0 && (answer->limit >= l->learned_limit || now - l->learned_ms >= l->window_ms)) {
		l->learned_limit = answer->limit;
		l->learned_ms = now;
	}
	if (answer->limit > 0 && answer->limit == l->learned_limit && answer->remaining >= 0 && answer->status != 429) {
		/* Others behind our address use the same window. Ours may have been counted in an earlier one: then
		 * this comes out too small, never too large. */
		l->foreign = clamp(answer->limit - answer->remaining - l->shared.count, 0, answer->limit);
		l->foreign_until_ms = now + clamp(l->window_ms, 0, FOREIGN_MS_MAX);
	}
	shared_end(l, true);
	pthread_cond_broadcast(&l->moved);
}

void limit_look(struct limit *l, struct limit_view *ret)
{
	SCOPED_LOCK(&l->lock);
	int64_t now = l->now_ms();
	struct limit_view view = { 0 };

	shared_begin(l, now);
	view.rate = effective_rate(l, now);
	view.usual_rate = usual_rate(l);
	view.foreign = now < l->foreign_until_ms ? (int)l->foreign : 0;
	view.used = l->shared.count;
	view.free_ms = view.used > 0 ? leaves_at(l, 0, false) - now : 0;
	view.pause_ms = now < l->shared.paused_until_ms ? l->shared.paused_until_ms - now : 0;
	shared_end(l, false);
	for (const struct waiter *w = l->line; w; w = w->next)
		view.waiting++;
	*ret = view;
}

/* ---- birth and death --------------------------------------------------------------------------------------- */

static void read_boot_id(char ret[40])
{
	CLEANUP(fd_close) int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	memset(ret, 0, 40);
	if (fd >= 0 && read(fd, ret, 36) < 36)
		memset(ret, 0, 40);
}

static int open_shared(const char *path, const char *subject)
{
	struct stat st;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid())
		return fd;
	log_warning("%s: requests are counted for this process alone, '%s' cannot be used: %s", subject, path,
		    fd < 0 ? strerror(errno) : "it is not a file of this user");
	fd_close(&fd);
	return -1;
}

int limit_new(const struct limit_options *options, struct limit **ret)
{
	struct limit *l = calloc(1, sizeof(*l));
	pthread_condattr_t attr;

	if (!l)
		return -ENOMEM;
	l->rate = options->rate > LIMIT_RATE_MAX ? LIMIT_RATE_MAX : options->rate;
	l->window_ms = options->window_ms;
	l->now_ms = options->now_ms ? options->now_ms : clock_now_ms;
	l->subject = options->subject;
	l->learned_limit = -1;
	l->owner = (uint16_t)(getpid() ^ (clock_wall_ns() >> 10));
	l->fd = options->path ? open_shared(options->path, l->subject) : -1;
	read_boot_id(l->boot_id);
	forget_all(l, 0);
	pthread_mutex_init(&l->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->moved, &attr);
	pthread_condattr_destroy(&attr);
	*ret = l;
	return 0;
}

void limit_free(struct limit *l)
{
	if (!l)
		return;
	fd_close(&l->fd);
	pthread_cond_destroy(&l->moved);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
