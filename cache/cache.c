/* A backend that remembers another backend's answers; see cache.h.
 *
 * A question goes out as a flight, on a thread of its own, so that nobody's deadline but its own ends it. Whoever wants
 * the answer waits at the flight and hands himself its pages meanwhile.
 *
 *   caller --> remembered and fresh? --> yes: done
 *                    | no
 *              flight for it? -- no: begin one --> [pool] ask inner --> apply what was written meanwhile --> remember
 *                    |                                                                                         |
 *                  wait <----------------------------------- answer, or the caller's deadline -----------------'
 *
 * Listings go to the disk (store.h) as they are remembered, and come back from it when memory has none.
 *
 * A refresh asks for what changed. What that cannot see a sweep finds: one session at a time, in the background, for all
 * of it; what was refreshed meanwhile stays.
 *
 * A write tells every flight about its session (a patch in the flight's journal, or "worthless") and changes what is
 * remembered. Both orders come out right: a flight that lands later applies its journal, and a write that finds the
 * memory newer patches that. */
#include "cache/cache.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/store.h"
#include "cache/table.h"
#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/memory.h"
#include "client/base/pool.h"

#define LISTINGS_MAX 1024
#define SESSIONS_MAX 65536
#define LISTINGS_BYTES_MAX (256 << 20)
#define DOCUMENT_BYTES 150 /* about what a listing takes for one */
#define FLIGHTS_MAX 64     /* threads; more flights wait for one */
#define FLIGHT_MS 60000    /* what a backend gives a call without a deadline */
#define ASKED_AGAIN_MAX 3
/* A listing that is refreshed by what changed is asked for in full after so long in use, and so much more for each of its
 * documents: a sweep takes a twentieth of what the service allows us at the most. */
#define SWEEP_MS 3600000
#define SWEEP_DOCUMENT_MS 700
#define SWEEP_AGAIN_MS 1200000        /* after one that failed, so that other sessions have a turn */
#define SWEEP_MS_MAX (24 * 3600000LL) /* how long one may take */
#define TRIM_COUNT 20000              /* documents */
#define LOOK_MS 50                    /* between looks whether a caller gave up */
#define ACCOUNT_BYTES 65

enum flight_kind { FLIGHT_DOCUMENTS, FLIGHT_SESSION, FLIGHT_SESSIONS };

/* A write that a flight's answer may not know of. */
struct patch {
	struct patch *next;
	char *without;        /* a document taken out, or NULL */
	struct listing *with; /* documents put in, or NULL; counted */
};

/* A caller at a flight, on its own stack. */
struct waiter {
	struct waiter *next;
	uint64_t page_next; /* the number of the page it has not seen */
	bool wants_pages;
};

struct flight {
	struct flight *next;
	struct cache *cache;
	enum flight_kind kind; /* this, session_id and urgency are set once */
	char *session_id;      /* NULL for FLIGHT_SESSIONS */
	enum urgency urgency;
	int64_t deadline_ms;
	bool hands_pages;
	bool is_sweep;            /* asks for all in the background, for memory alone: nobody joins it */
	struct transfer transfer; /* atomics */
	/* guarded by the cache's lock: */
	int refs;
	bool is_forgotten; /* nobody joins it, and it is not remembered */
	bool is_worthless; /* to be asked again */
	bool is_done;
	int64_t asked_ms;            /* by the cache's now_ms */
	uint64_t number;             /* of the last time it was asked */
	char account[ACCOUNT_BYTES]; /* that asked */
	bool knew;                   /* asked with what was known, and so perhaps not for all */
	struct patch *journal, **journal_end;
	struct waiter *waiters;
	struct listing **pages; /* those somebody has not seen yet */
	int page_count, page_room;
	uint64_t page_first; /* the number of pages[0] */
	bool has_seen_session;
	struct session seen_session; /* that call->on_session told */
	struct listing *same;        /* that call->on_same told: what was remembered, as it still is ... */
	bool is_overtaken;           /* ... unless a write came since it was asked */
	/* the answer, once is_done: */
	int error;
	struct fault fault;
	struct listing *listing;
	struct session session;
	struct session_list sessions;
};

/* What is remembered of a session's documents. */
struct remembered {
	struct listing *listing; /* NULL: the session is gone */
	int64_t asked_ms;
	uint64_t number;   /* of the question: a later one's answer is not replaced by an earlier one's */
	int64_t walked_ms; /* when it was last asked for in full */
	bool is_doubted;   /* a write came after it whose outcome is unknown */
};

struct remembered_session {
	struct session session; /* id NULL: gone */
	int64_t asked_ms;
	uint64_t number;
};

/* Somebody reads a listing from the disk, on his stack. */
struct reading {
	struct reading *next;
	const char *session_id;
};

struct cache {
	struct backend self;   /* this, inner, pool and the options are set once */
	struct backend *inner; /* owned */
	struct pool *pool;
	struct store *store;         /* NULL: nothing outlives us; called with and without the lock */
	char account[ACCOUNT_BYTES]; /* until the inner backend knows better */
	int64_t ttl_ms, stale_ms;
	int64_t (*now_ms)(void);
	pthread_mutex_t lock;   /* guards what follows */
	pthread_cond_t changed; /* something of a flight */
	struct table *listings; /* session id -> struct remembered */
	struct table *sessions; /* session id -> struct remembered_session */
	struct session_list list;
	bool has_list;
	int64_t list_asked_ms;
	uint64_t list_number;
	struct flight *flights;
	struct reading *readings; /* one of a session at a time */
	uint64_t asked;           /* counts questions */
	uint64_t
		forgotten; /* counts what was forgotten: what was read from the disk before is not taken for remembered */
	bool sweeps;       /* one session at a time */
	bool closes;
};

static const struct backend_ops cache_ops;

static struct cache *cache_from(struct backend *b)
{
	assert(b->ops == &cache_ops);
	return (struct cache *)b;
}

/* ---- what is remembered (the lock is held) ------------------------------------------------------------------- */

static void remembered_free(void *value)
{
	struct remembered *m = value;

	listing_unref(m->listing);
	free(m);
}

static void remembered_session_free(void *value)
{
	struct remembered_session *m = value;

	session_release(&m->session);
	free(m);
}

static size_t listing_bytes(const struct listing *l)
{
	return sizeof(struct remembered) + (l ? (size_t)listing_count(l) * DOCUMENT_BYTES : 0);
}

static int64_t served_until(const struct cache *c, bool is_there, int64_t asked_ms)
{
	return asked_ms + (is_there && c->stale_ms > c->ttl_ms ? c->stale_ms : c->ttl_ms);
}

/* Whose credentials are in use. */
static void account_of(const struct cache *c, char ret[ACCOUNT_BYTES])
{
	backend_account(c->inner, ret);
	if (!ret[0])
		memcpy(ret, c->account, ACCOUNT_BYTES);
}

static void store_remembered(struct cache *c, const char *session_id, struct listing *l)
{
	char account[ACCOUNT_BYTES];

	if (!c->store)
		return;
	account_of(c, account);
	if (l)
		store_put(c->store, account, session_id, l);
	else
		store_forget(c->store, account, session_id);
}

/* Without memory to remember it, it is forgotten: that costs a request and tells nobody anything wrong. */
static void remember(struct cache *c, const char *session_id, const struct remembered *what)
{
	struct remembered *m = malloc(sizeof(*m));

	if (m) {
		*m = *what;
		(void)listing_ref(m->listing);
		if (table_put(c->listings, session_id, m, listing_bytes(m->listing),
			      served_until(c, m->listing, m->asked_ms)) == 0)
			return;
		remembered_free(m);
	}
	table_remove(c->listings, session_id);
}

/* s NULL: it is gone. An answer to a later question stays. */
static void remember_session(struct cache *c, const char *session_id, const struct session *s, int64_t asked_ms,
			     uint64_t number)
{
	const struct remembered_session *old = table_find(c->sessions, session_id);

	if (old && old->number > number)
		return;
	struct remembered_session *m = calloc(1, sizeof(*m));
	if (m && (!s || session_copy(s, &m->session) == 0)) {
		m->asked_ms = asked_ms;
		m->number = number;
		if (table_put(c->sessions, session_id, m, 0, asked_ms + c->ttl_ms) == 0)
			return;
		session_release(&m->session);
	}
	free(m);
	table_remove(c->sessions, session_id);
}

static void forget_list(struct cache *c)
{
	session_list_release(&c->list);
	c->has_list = false;
}

/* The list shows what a single answer said later: a session that is gone, or has another name now. */
static void update_list(struct cache *c, const char *session_id, const struct session *s)
{
	for (int i = 0; i < c->list.count; i++) {
		struct session *item = &c->list.items[i];
		struct session copy = { 0 };
		if (strcmp(item->id, session_id) != 0)
			continue;
		if (s && session_copy(s, &copy) < 0)
			return; /* the old one goes on until its ttl */
		session_release(item);
		if (s) {
			*item = copy;
			return;
		}
		memmove(item, item + 1, (size_t)(c->list.count - i - 1) * sizeof(*item));
		c->list.count--;
		return;
	}
}

static void remember_gone(struct cache *c, const char *session_id, int64_t asked_ms, uint64_t number)
{
	const struct remembered *old = table_find(c->listings, session_id);

	if (!old || old->number <= number) {
		remember(c, session_id, &(struct remembered){ .asked_ms = asked_ms, .number = number });
		store_remembered(c, session_id, NULL);
		c->forgotten++;
	}
	remember_session(c, session_id, NULL, asked_ms, number);
	update_list(c, session_id, NULL);
}

static void forget_session(struct cache *c, const char *session_id)
{
	table_remove(c->listings, session_id);
	table_remove(c->sessions, session_id);
	forget_list(c);
	store_remembered(c, session_id, NULL);
	c->forgotten++;
}

static void forget_all(struct cache *c)
{
	char account[ACCOUNT_BYTES];

	table_clear(c->listings);
	table_clear(c->sessions);
	forget_list(c);
	c->forgotten++;
	if (!c->store)
		return;
	/* A token that was refused may have been read since the one that listed. */
	account_of(c, account);
	store_forget(c->store, account, NULL);
	if (strcmp(account, c->account) != 0)
		store_forget(c->store, c->account, NULL);
}

/* Lock held. */
static struct reading **find_reading(struct cache *c, const char *session_id)
{
	struct reading **at = &c->readings;

	while (*at && strcmp((*at)->session_id, session_id) != 0)
		at = &(*at)->next;
	return at;
}

/* What the disk has of a session that memory has nothing of. Worker threads; the lock is not held. */
static void recollect(struct cache *c, const char *session_id)
{
	CLEANUP(listing_release) struct listing *found = NULL;
	struct reading mine = { .session_id = session_id };
	char account[ACCOUNT_BYTES];

	if (!c->store)
		return;
	pthread_mutex_lock(&c->lock);
	/* Reading a large one takes long, and is not done twice at a time. */
	while (!table_find(c->listings, session_id) && *find_reading(c, session_id))
		(void)pthread_cond_wait(&c->changed, &c->lock);
	if (table_find(c->listings, session_id)) {
		pthread_mutex_unlock(&c->lock);
		return;
	}
	uint64_t forgotten = c->forgotten;
	account_of(c, account);
	mine.next = c->readings;
	c->readings = &mine;
	pthread_mutex_unlock(&c->lock);
	int r = store_load(c->store, account, session_id, c->now_ms(), &found); /* -ENOENT, or told there */
	SCOPED_LOCK(&c->lock);
	*find_reading(c, session_id) = mine.next;
	pthread_cond_broadcast(&c->changed);
	if (r == 0 && c->forgotten == forgotten && !table_find(c->listings, session_id))
		remember(c, session_id,
			 &(struct remembered){ .listing = found,
					       .asked_ms = listing_asked_ms(found),
					       .walked_ms = c->now_ms(), /* as far as we know */
					       .is_doubted = true });
}

static bool session_list_copy(const struct session_list *from, struct session_list *ret)
{
	CLEANUP(session_list_release) struct session_list copy = { 0 };

	copy.items = calloc((size_t)from->count + 1, sizeof(*copy.items));
	if (!copy.items)
		return false;
	for (; copy.count < from->count; copy.count++) {
		if (session_copy(&from->items[copy.count], &copy.items[copy.count]) < 0)
			return false;
	}
	*ret = copy;
	copy = (struct session_list){ 0 };
	return true;
}

/* ---- patches ------------------------------------------------------------------------------------------------ */

static void patch_free(struct patch *p)
{
	listing_unref(p->with);
	free(p->without);
	free(p);
}

static void patches_free(struct patch *list)
{
	while (list) {
		struct patch *p = list;
		list = p->next;
		patch_free(p);
	}
}

static struct patch *patch_new(const char *without, struct listing *with)
{
	struct patch *p = calloc(1, sizeof(*p));

	if (p && without) {
		p->without = strdup(without);
		if (!p->without) {
			free(p);
			return NULL;
		}
	}
	if (p)
		p->with = listing_ref(with);
	return p;
}

/* Applies a write to a listing in the caller's hands. Of the write's documents only those the listing lacks: what it has
 * it was told no earlier. */
static int patch_overtaken(const struct patch *p, struct listing **l)
{
	CLEANUP(listing_release) struct listing *lacking = NULL;
	struct listing *patched = NULL;
	const char *without[] = { p->without };
	int with_count = p->with ? listing_count(p->with) : 0;
	const char **had = calloc((size_t)with_count + 1, sizeof(*had));
	int had_count = 0, r = 0;

	if (!had)
		return -ENOMEM;
	for (int i = 0; i < with_count; i++) {
		struct document d;
		listing_get(p->with, i, &d);
		if (listing_find(*l, d.id) >= 0)
			had[had_count++] = d.id;
	}
	if (had_count < with_count)
		r = listing_patch(p->with, had, had_count, NULL, &lacking);
	free(had);
	if (r < 0 || (!lacking && !(p->without && listing_find(*l, p->without) >= 0)))
		return r;
	r = listing_patch(*l, without, p->without ? 1 : 0, lacking, &patched);
	if (r < 0)
		return r;
	listing_unref(*l);
	*l = patched;
	return 0;
}

/* ---- flights ------------------------------------------------------------------------------------------------ */

/* Lock held. */
static void flight_unref(struct flight *f)
{
	struct cache *c = f->cache;

	if (--f->refs > 0)
		return;
	for (struct flight **at = &c->flights; *at; at = &(*at)->next) {
		if (*at == f) {
			*at = f->next;
			break;
		}
	}
	patches_free(f->journal);
	for (int i = 0; i < f->page_count; i++)
		listing_unref(f->pages[i]);
	free(f->pages);
	session_release(&f->seen_session);
	listing_unref(f->same);
	listing_unref(f->listing);
	session_release(&f->session);
	session_list_release(&f->sessions);
	free(f->session_id);
	free(f);
}

static bool flight_is_about(const struct flight *f, const char *session_id)
{
	return f->session_id && strcmp(f->session_id, session_id) == 0;
}

/* Lock held. */
static struct flight *flight_find(struct cache *c, enum flight_kind kind, const char *session_id, enum urgency urgency)
{
	for (struct flight *f = c->flights; f; f = f->next) {
		if (f->kind == kind && !f->is_done && !f->is_forgotten && !f->is_sweep && f->urgency <= urgency &&
		    (kind == FLIGHT_SESSIONS || flight_is_about(f, session_id)))
			return f;
	}
	return NULL;
}

static struct flight *flight_new(struct cache *c, enum flight_kind kind, const char *session_id,
				 const struct call *call)
{
	struct flight *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->session_id = session_id ? strdup(session_id) : NULL;
	if (session_id && !f->session_id) {
		free(f);
		return NULL;
	}
	f->cache = c;
	f->kind = kind;
	f->urgency = call->urgency;
	/* A caller with much time gives it to the flight; one with little does not end it. */
	f->deadline_ms = call->deadline_ms > clock_now_ms() + FLIGHT_MS ? call->deadline_ms : 0;
	f->hands_pages = call->on_page;
	f->journal_end = &f->journal;
	f->next = c->flights;
	c->flights = f;
	return f;
}

static bool page_is_wanted(const struct flight *f)
{
	for (const struct waiter *w = f->waiters; w; w = w->next) {
		if (w->wants_pages)
			return true;
	}
	return false;
}

static void flight_on_page(void *arg, const struct listing *page)
{
	struct flight *f = arg;
	SCOPED_LOCK(&f->cache->lock);

	if (!page_is_wanted(f))
		return;
	if (f->page_count == f->page_room) {
		int room = f->page_room ? f->page_room * 2 : 16;
		struct listing **pages = realloc(f->pages, (size_t)room * sizeof(struct listing *));
		if (!pages)
			return; /* pages are a foretaste: the answer has them all */
		f->pages = pages;
		f->page_room = room;
	}
	f->pages[f->page_count++] = listing_ref((struct listing *)page); /* counting changes no document */
	pthread_cond_broadcast(&f->cache->changed);
}

static void flight_on_session(void *arg, const struct session *session)
{
	struct flight *f = arg;
	struct session copy = { 0 };
	SCOPED_LOCK(&f->cache->lock);

	if (!session->id || !flight_is_about(f, session->id))
		return;
	if (!f->is_forgotten) {
		remember_session(f->cache, session->id, session, f->asked_ms, f->number);
		update_list(f->cache, session->id, session);
	}
	if (session_copy(session, &copy) < 0)
		return; /* a foretaste as well */
	session_release(&f->seen_session);
	f->seen_session = copy;
	f->has_seen_session = true;
	pthread_cond_broadcast(&f->cache->changed);
}

static void flight_on_same(void *arg, struct listing *renewed)
{
	struct flight *f = arg;
	SCOPED_LOCK(&f->cache->lock);

	listing_unref(f->same);
	f->same = listing_ref(renewed);
}

/* Pages everybody has seen are given up. */
static void drop_seen_pages(struct flight *f)
{
	uint64_t needed = f->page_first + (uint64_t)f->page_count;

	for (const struct waiter *w = f->waiters; w; w = w->next) {
		if (w->wants_pages && w->page_next < needed)
			needed = w->page_next;
	}
	int count = (int)(needed - f->page_first);
	if (!count)
		return;
	for (int i = 0; i < count; i++)
		listing_unref(f->pages[i]);
	f->page_count -= count;
	memmove(f->pages, f->pages + count, (size_t)f->page_count * sizeof(struct listing *));
	f->page_first = needed;
}

/* Hands the caller what he has not seen yet; true when it gave up the lock for that. */
static bool waiter_serve(struct flight *f, struct waiter *w, struct call *call, bool *has_session)
{
	struct cache *c = f->cache;

	if (w->wants_pages && w->page_next < f->page_first + (uint64_t)f->page_count) {
		CLEANUP(listing_release)
		struct listing *page = listing_ref(f->pages[w->page_next - f->page_first]);
		w->page_next++;
		drop_seen_pages(f);
		pthread_mutex_unlock(&c->lock);
		call->on_page(call->on_page_arg, page);
		pthread_mutex_lock(&c->lock);
		return true;
	}
	if (call->on_session && !*has_session && f->has_seen_session) {
		CLEANUP(session_release) struct session seen = { 0 };
		*has_session = true;
		if (session_copy(&f->seen_session, &seen) < 0)
			return false;
		pthread_mutex_unlock(&c->lock);
		call->on_session(call->on_session_arg, &seen);
		pthread_mutex_lock(&c->lock);
		return true;
	}
	return false;
}

static int give_up(const struct flight *f, struct call *call, bool is_cancelled)
{
	if (is_cancelled) {
		call->fault.kind = FAULT_CANCELED;
		return -ECANCELED;
	}
	/* It may still stand in our own line: then nobody is away. */
	if (atomic_load(&f->transfer.waits_for_place)) {
		call->fault.kind = FAULT_BUDGET;
		(void)snprintf(call->fault.words, sizeof(call->fault.words), "too many requests are waiting");
		return -EAGAIN;
	}
	call->fault.kind = FAULT_AWAY;
	(void)snprintf(call->fault.words, sizeof(call->fault.words), "no answer in time; it is still awaited");
	return -ETIMEDOUT;
}

/* Sleeps until something changed, but not past the deadline, and not for long when the caller may cancel. */
static void wait_a_while(struct cache *c, const struct call *call, int64_t now_ms)
{
	int64_t wait_ms = call->deadline_ms ? call->deadline_ms - now_ms : INT64_MAX;
	struct timespec t;

	if (call->transfer && wait_ms > LOOK_MS)
		wait_ms = LOOK_MS;
	if (wait_ms > 3600000) {
		(void)pthread_cond_wait(&c->changed, &c->lock);
		return;
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &t); /* can't fail for this clock */
	t.tv_sec += wait_ms / 1000;
	t.tv_nsec += wait_ms % 1000 * 1000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_nsec -= 1000000000;
		t.tv_sec++;
	}
	(void)pthread_cond_timedwait(&c->changed, &c->lock, &t); /* whatever woke us, we look again */
}

/* Lock held; given up meanwhile. 0: the flight is done, its answer is in it. */
static int flight_wait(struct flight *f, struct call *call)
{
	struct waiter w = { .next = f->waiters, .page_next = f->page_first, .wants_pages = call->on_page };
	bool has_session = false;
	int r = 0;

	f->waiters = &w;
	for (;;) {
		if (waiter_serve(f, &w, call, &has_session))
			continue;
		if (f->is_done)
			break;
		bool is_cancelled = call->transfer && atomic_load(&call->transfer->cancelled);
		int64_t now_ms = clock_now_ms();
		if (is_cancelled || (call->deadline_ms && now_ms >= call->deadline_ms)) {
			r = give_up(f, call, is_cancelled);
			break;
		}
		if (call->transfer) /* what holds the flight up holds its callers up */
			atomic_store(&call->transfer->waits_for_place, atomic_load(&f->transfer.waits_for_place));
		wait_a_while(f->cache, call, now_ms);
	}
	if (call->transfer)
		atomic_store(&call->transfer->waits_for_place, false);
	for (struct waiter **at = &f->waiters; *at; at = &(*at)->next) {
		if (*at == &w) {
			*at = w.next;
			break;
		}
	}
	drop_seen_pages(f);
	return r;
}

/* ---- asking ------------------------------------------------------------------------------------------------- */

/* What came back, before it is the flight's. */
struct answer {
	int error;
	struct fault fault;
	struct listing *listing;
	struct session session;
	struct session_list sessions;
};

static void answer_release(struct answer *a)
{
	listing_release(&a->listing);
	session_release(&a->session);
	session_list_release(&a->sessions);
}

static struct listing *flight_prepare(struct flight *f)
{
	struct cache *c = f->cache;
	SCOPED_LOCK(&c->lock);

	patches_free(f->journal);
	f->journal = NULL;
	f->journal_end = &f->journal;
	f->is_worthless = false;
	f->asked_ms = c->now_ms();
	f->number = ++c->asked;
	account_of(c, f->account);
	f->is_overtaken = false;
	listing_release(&f->same);
	if (f->kind == FLIGHT_SESSIONS)
		return NULL;
	const struct remembered *m = table_find(c->listings, f->session_id);
	f->knew = m && m->listing;
	return m ? listing_ref(m->listing) : NULL;
}

static void flight_ask(struct flight *f, struct listing *known, struct answer *ret)
{
	struct backend *inner = f->cache->inner;
	struct call call = {
		.urgency = f->urgency,
		.deadline_ms = f->deadline_ms,
		.transfer = &f->transfer,
		.is_sweep = f->is_sweep,
		.on_page = f->hands_pages ? flight_on_page : NULL,
		.on_page_arg = f,
		.on_session = f->kind == FLIGHT_DOCUMENTS ? flight_on_session : NULL,
		.on_session_arg = f,
		.known = f->kind == FLIGHT_SESSION ? known : NULL,
		.on_same = f->kind == FLIGHT_SESSION ? flight_on_same : NULL,
		.on_same_arg = f,
	};

	if (f->kind == FLIGHT_DOCUMENTS)
		ret->error = backend_list_documents(inner, &call, f->session_id, known, &ret->listing);
	else if (f->kind == FLIGHT_SESSION)
		ret->error = backend_get_session(inner, &call, f->session_id, &ret->session);
	else
		ret->error = backend_list_sessions(inner, &call, &ret->sessions);
	ret->fault = call.fault;
}

/* Lock held. A session's record has shown that the listing we have of it holds: that is as fresh now as the record, if
 * it still is the one that was asked about. */
static void remember_same(struct flight *f)
{
	struct cache *c = f->cache;
	const struct remembered *m = table_find(c->listings, f->session_id);
	char account[ACCOUNT_BYTES];

	if (!f->same || f->is_overtaken || !m || !m->listing || m->number > f->number ||
	    listing_serial(m->listing) != listing_serial(f->same))
		return;
	remember(c, f->session_id,
		 &(struct remembered){
			 .listing = f->same, .asked_ms = f->asked_ms, .walked_ms = m->walked_ms, .number = f->number });
	account_of(c, account);
	if (strcmp(account, f->account) == 0)
		store_remembered(c, f->session_id, f->same);
}

/* Lock held. What an answer, good or bad, makes us remember. */
static void flight_remember(struct flight *f, const struct answer *a)
{
	struct cache *c = f->cache;

	if (a->error < 0 && a->fault.kind == FAULT_ACCOUNT) {
		forget_all(c);
	} else if (a->error < 0 && a->fault.kind == FAULT_FORBIDDEN) {
		if (f->kind == FLIGHT_SESSIONS)
			forget_list(c);
		else
			forget_session(c, f->session_id);
	} else if (f->is_forgotten) {
		return;
	} else if (a->error < 0) {
		if (a->fault.kind == FAULT_GONE && f->kind != FLIGHT_SESSIONS && !f->is_worthless)
			remember_gone(c, f->session_id, f->asked_ms, f->number);
	} else if (f->kind == FLIGHT_DOCUMENTS) {
		const struct remembered *old = table_find(c->listings, f->session_id);
		if (!old || old->number <= f->number) {
			char account[ACCOUNT_BYTES];
			bool is_partial = f->knew && !f->is_sweep;
			remember(c, f->session_id,
				 &(struct remembered){ .listing = a->listing,
						       .asked_ms = f->asked_ms,
						       .walked_ms = is_partial && old ? old->walked_ms : f->asked_ms,
						       .number = f->number,
						       .is_doubted = f->is_worthless });
			account_of(c, account);
			if (strcmp(account, f->account) == 0)
				store_remembered(c, f->session_id, a->listing);
		}
	} else if (f->kind == FLIGHT_SESSION) {
		remember_session(c, f->session_id, &a->session, f->asked_ms, f->number);
		update_list(c, f->session_id, &a->session);
		remember_same(f);
	} else if (!f->is_worthless && (!c->has_list || c->list_number <= f->number)) {
		struct session_list copy = { 0 };
		forget_list(c);
		if (session_list_copy(&a->sessions, &copy)) {
			c->list = copy;
			c->has_list = true;
			c->list_asked_ms = f->asked_ms;
			c->list_number = f->number;
		}
		for (int i = 0; i < a->sessions.count; i++)
			remember_session(c, a->sessions.items[i].id, &a->sessions.items[i], f->asked_ms, f->number);
	}
}

/* Tries to end the flight with this answer: NULL when it has, else the writes that overtook it, to be applied first. */
static struct patch *flight_land(struct flight *f, struct answer *a)
{
	struct cache *c = f->cache;
	SCOPED_LOCK(&c->lock);
	struct patch *overtaken_by = f->journal;

	if (overtaken_by && f->kind == FLIGHT_DOCUMENTS && a->listing) {
		f->journal = NULL;
		f->journal_end = &f->journal;
		return overtaken_by;
	}
	if (overtaken_by)
		f->is_worthless = true; /* gone, but for a document we have just put there? */
	flight_remember(f, a);
	f->error = a->error;
	f->fault = a->fault;
	f->listing = a->listing;
	f->session = a->session;
	f->sessions = a->sessions;
	f->is_done = true;
	*a = (struct answer){ 0 }; /* the flight's now */
	pthread_cond_broadcast(&c->changed);
	flight_unref(f);
	return NULL;
}

static bool flight_has_to_ask_again(struct flight *f, const struct answer *a)
{
	SCOPED_LOCK(&f->cache->lock);

	return f->is_worthless && !f->cache->closes && (a->error == 0 || a->fault.kind == FAULT_GONE);
}

static void flight_doubt(struct flight *f)
{
	SCOPED_LOCK(&f->cache->lock);

	f->is_worthless = true;
}

static struct listing *replace_remembered(struct cache *c, const char *session_id, const struct listing *old,
					  struct listing *patched);

/* ---- sweeps -------------------------------------------------------------------------------------------------- */

static bool holds_equal(const struct listing *l, const struct document *d)
{
	struct document other;
	int at = listing_find(l, d->id);

	if (at < 0)
		return false;
	listing_get(l, at, &other);
	return document_is_equal(&other, d);
}

/* A sweep took its time, and what is remembered went on meanwhile. Where that is as it was when the sweep began, the
 * sweep knows better. */
static int merge_swept(struct listing *began, struct listing *swept, struct listing *now, struct listing **ret)
{
	CLEANUP(listing_release) struct listing *news = NULL;
	int count = listing_count(now), swept_count = listing_count(swept), gone = 0, old = 0, r;
	const char **without = calloc((size_t)count + 1, sizeof(*without));
	const char **not_news = calloc((size_t)swept_count + 1, sizeof(*not_news));
	struct document d;

	for (int i = 0; without && not_news && i < count; i++) {
		listing_get(now, i, &d);
		if (listing_find(swept, d.id) < 0 && holds_equal(began, &d))
			without[gone++] = d.id;
	}
	for (int i = 0; without && not_news && i < swept_count; i++) {
		listing_get(swept, i, &d);
		int at = listing_find(now, d.id);
		struct document is;
		if (at >= 0)
			listing_get(now, at, &is);
		bool is_news =
			at < 0 ? listing_find(began, d.id) < 0 : holds_equal(began, &is) && !document_is_equal(&is, &d);
		if (!is_news)
			not_news[old++] = d.id;
	}
	r = without && not_news ? listing_patch(swept, not_news, old, NULL, &news) : -ENOMEM;
	if (r == 0 && gone == 0 && listing_count(news) == 0)
		*ret = listing_ref(now);
	else if (r == 0)
		r = listing_patch(now, without, gone, news, ret);
	free(without);
	free(not_news);
	return r;
}

/* What is remembered now when it is newer than the sweep; NULL: it is not. */
static struct listing *newer_than(struct flight *f)
{
	SCOPED_LOCK(&f->cache->lock);
	const struct remembered *m = table_find(f->cache->listings, f->session_id);

	return m && m->listing && m->number > f->number ? listing_ref(m->listing) : NULL;
}

static int64_t swept_every_ms(const struct listing *l)
{
	return SWEEP_MS + (int64_t)listing_count(l) * SWEEP_DOCUMENT_MS;
}

static void sweep_put_off(struct flight *f)
{
	struct cache *c = f->cache;
	SCOPED_LOCK(&c->lock);
	struct remembered *m = table_find(c->listings, f->session_id);

	if (m && m->listing)
		m->walked_ms = c->now_ms() - swept_every_ms(m->listing) + SWEEP_AGAIN_MS;
}

/* Makes the sweep's answer one that may be remembered as it is, or sees to that itself. */
static void sweep_land(struct flight *f, struct listing *began, const struct answer *a)
{
	struct cache *c = f->cache;
	struct listing *now = a->error == 0 && began ? newer_than(f) : NULL;

	if (a->error < 0)
		sweep_put_off(f);
	if (!now)
		return;
	while (now) {
		CLEANUP(listing_release) struct listing *merged = NULL;
		struct listing *next = NULL;
		if (merge_swept(began, a->listing, now, &merged) == 0)
			next = replace_remembered(c, f->session_id, now, merged);
		listing_unref(now);
		now = next;
	}
	SCOPED_LOCK(&c->lock);
	struct remembered *m = table_find(c->listings, f->session_id);
	if (m)
		m->walked_ms = f->asked_ms;
	f->is_forgotten = true; /* it is in what is remembered */
}

static void flight_run(void *arg);

/* Lock held. Begins a sweep of what was just refreshed, if it is time for one. */
static void sweep_when_due(struct cache *c, const char *session_id)
{
	const struct remembered *m = table_find(c->listings, session_id);
	const struct call call = { .urgency = URGENCY_BACKGROUND, .deadline_ms = clock_now_ms() + SWEEP_MS_MAX };

	if (!m || !m->listing || c->sweeps || c->closes || listing_count(m->listing) <= c->self.caps.folder_page ||
	    c->now_ms() - m->walked_ms < swept_every_ms(m->listing))
		return;
	struct flight *f = flight_new(c, FLIGHT_DOCUMENTS, session_id, &call);
	if (!f)
		return; /* another time */
	f->is_sweep = true;
	f->refs = 1;
	if (pool_run(c->pool, flight_run, f) < 0)
		flight_unref(f);
	else
		c->sweeps = true;
}

/* What reading the answer about a very large session took would stay resident for ever otherwise. */
static void trim_after(const struct listing *known)
{
	if (known && listing_count(known) > TRIM_COUNT)
		memory_give_back();
}

static void flight_run(void *arg)
{
	struct flight *f = arg;
	struct cache *c = f->cache;
	CLEANUP(answer_release) struct answer a = { 0 };
	CLEANUP(listing_release) struct listing *known = NULL;
	CLEANUP(text_release) char *swept_next = NULL;
	bool is_sweep = f->is_sweep;
	struct patch *overtaken_by;

	if (f->kind == FLIGHT_DOCUMENTS)
		recollect(c, f->session_id);
	for (int again = 0;; again++) {
		known = flight_prepare(f);
		flight_ask(f, known, &a);
		if (again >= ASKED_AGAIN_MAX || !flight_has_to_ask_again(f, &a))
			break;
		answer_release(&a);
		a = (struct answer){ 0 };
		listing_release(&known);
	}
	if (is_sweep)
		sweep_land(f, known, &a);
	else if (f->kind == FLIGHT_DOCUMENTS && known && a.error == 0)
		swept_next = strdup(f->session_id); /* the flight ends when it has landed */
	while ((overtaken_by = flight_land(f, &a))) {
		for (const struct patch *p = overtaken_by; p; p = p->next) {
			if (patch_overtaken(p, &a.listing) < 0)
				flight_doubt(f); /* without our own write it must not count as fresh */
		}
		patches_free(overtaken_by);
	}
	answer_release(&a);
	a = (struct answer){ 0 };
	trim_after(known);
	SCOPED_LOCK(&c->lock);
	if (is_sweep)
		c->sweeps = false;
	if (swept_next)
		sweep_when_due(c, swept_next);
}

/* Joins the flight for this question or begins one, and waits for it. On success the caller holds *ret, and ends it with
 * flight_leave(). */
static int flight_take(struct cache *c, enum flight_kind kind, const char *session_id, struct call *call,
		       struct flight **ret)
{
	bool is_new = false;

	pthread_mutex_lock(&c->lock);
	struct flight *f = flight_find(c, kind, session_id, call->urgency);
	if (!f) {
		f = flight_new(c, kind, session_id, call);
		if (!f) {
			pthread_mutex_unlock(&c->lock);
			return -ENOMEM;
		}
		f->refs = 1; /* its own, until it has landed */
		is_new = true;
	}
	f->refs++;
	if (is_new && pool_run(c->pool, flight_run, f) < 0) {
		/* No thread to be had: on this one, then. */
		pthread_mutex_unlock(&c->lock);
		flight_run(f);
		pthread_mutex_lock(&c->lock);
	}
	int r = flight_wait(f, call);
	if (r == 0 && f->error < 0) {
		r = f->error;
		call->fault = f->fault;
	}
	if (r < 0)
		flight_unref(f);
	else
		*ret = f;
	pthread_mutex_unlock(&c->lock);
	return r;
}

static void flight_leave(struct flight *f)
{
	SCOPED_LOCK(&f->cache->lock);

	flight_unref(f);
}

/* ---- what a write tells ------------------------------------------------------------------------------------- */

/* Whatever was asked before now does not know how this write ended. */
static void doubt_session(struct cache *c, const char *session_id)
{
	SCOPED_LOCK(&c->lock);
	struct remembered *m = table_find(c->listings, session_id);

	if (m)
		m->is_doubted = true;
	for (struct flight *f = c->flights; f; f = f->next) {
		if (f->is_done || !flight_is_about(f, session_id))
			continue;
		f->is_overtaken = true;
		if (f->kind == FLIGHT_DOCUMENTS)
			f->is_worthless = true;
	}
}

/* Into the journals, and out comes what is remembered now, or NULL. */
static struct listing *tell_flights(struct cache *c, const char *session_id, const char *without, struct listing *with)
{
	SCOPED_LOCK(&c->lock);
	const struct remembered *m = table_find(c->listings, session_id);

	for (struct flight *f = c->flights; f; f = f->next) {
		if (f->is_done || !flight_is_about(f, session_id))
			continue;
		f->is_overtaken = true;
		if (f->kind != FLIGHT_DOCUMENTS)
			continue;
		struct patch *p = patch_new(without, with);
		if (!p) {
			f->is_worthless = true;
			continue;
		}
		*f->journal_end = p;
		f->journal_end = &p->next;
	}
	if (m && !m->listing) /* gone? We have just written there */
		table_remove(c->listings, session_id);
	return m && m->listing ? listing_ref(m->listing) : NULL;
}

/* Puts `patched` in the place of `old`. When another came there meanwhile: that one, for the next try; else NULL. */
static struct listing *replace_remembered(struct cache *c, const char *session_id, const struct listing *old,
					  struct listing *patched)
{
	SCOPED_LOCK(&c->lock);
	const struct remembered *m = table_find(c->listings, session_id);

	if (!m || !m->listing)
		return NULL;
	if (m->listing != old)
		return listing_ref(m->listing);
	struct remembered changed = *m;
	changed.listing = patched;
	remember(c, session_id, &changed);
	store_remembered(c, session_id, patched);
	return NULL;
}

/* The service said yes: documents are out of the session, or in it. The copying is done without the lock. */
static void note_written(struct cache *c, const char *session_id, const char *without, struct listing *with)
{
	const char *list[] = { without };

	recollect(c, session_id); /* or it would come back later as it was before */
	struct listing *old = tell_flights(c, session_id, without, with);

	while (old) {
		CLEANUP(listing_release) struct listing *patched = NULL;
		struct listing *next = NULL;
		if (listing_patch(old, list, without ? 1 : 0, with, &patched) == 0)
			next = replace_remembered(c, session_id, old, patched);
		else
			doubt_session(c, session_id);
		listing_unref(old);
		old = next;
	}
}

static void note_account(struct cache *c, const struct fault *fault)
{
	if (fault->kind != FAULT_ACCOUNT)
		return;
	SCOPED_LOCK(&c->lock);
	forget_all(c);
}

/* A write to a session failed. */
static void note_failed(struct cache *c, const char *session_id, const struct fault *fault)
{
	note_account(c, fault);
	/* 404: what we showed is not so, only we can't tell whether the session or the document is gone. */
	if (fault->may_have_happened || fault->kind == FAULT_GONE)
		doubt_session(c, session_id);
}

/* ---- the calls it answers itself ----------------------------------------------------------------------------- */

enum memory { MEMORY_HAS, MEMORY_GONE, MEMORY_LACKS };

static int is_gone(struct call *call)
{
	call->fault.kind = FAULT_GONE;
	call->fault.http_status = 404; /* as it was answered then, or was said another way */
	(void)snprintf(call->fault.words, sizeof(call->fault.words), "not there when last asked for");
	return -ENOENT;
}

static enum memory recall_fresh(struct cache *c, const char *session_id, struct listing **ret)
{
	SCOPED_LOCK(&c->lock);
	int64_t now_ms = c->now_ms();
	const struct remembered *m = table_get(c->listings, session_id, now_ms);

	if (!m || m->is_doubted || now_ms - m->asked_ms >= c->ttl_ms)
		return MEMORY_LACKS;
	if (!m->listing)
		return MEMORY_GONE;
	*ret = listing_ref(m->listing);
	return MEMORY_HAS;
}

/* The session's record is on its way, and may show that a long listing is as it was: to ask at the same time would be to
 * ask twice. */
static int await_record(struct cache *c, const char *session_id, struct call *call)
{
	SCOPED_LOCK(&c->lock);
	const struct remembered *m = table_find(c->listings, session_id);
	struct flight *f = flight_find(c, FLIGHT_SESSION, session_id, call->urgency);

	if (!f || !f->knew || !m || !m->listing || listing_count(m->listing) <= c->self.caps.folder_page ||
	    flight_find(c, FLIGHT_DOCUMENTS, session_id, call->urgency))
		return 0;
	f->refs++;
	int r = flight_wait(f, call);
	flight_unref(f);
	return r;
}

static int cache_list_documents(struct backend *b, struct call *call, const char *session_id, struct listing *known,
				struct listing **ret)
{
	struct cache *c = cache_from(b);
	struct flight *f = NULL;

	(void)known; /* what we remember is what we told the caller, or newer */
	enum memory memory = recall_fresh(c, session_id, ret);
	if (memory == MEMORY_LACKS) {
		int r = await_record(c, session_id, call);
		if (r < 0)
			return r;
		memory = recall_fresh(c, session_id, ret);
	}
	if (memory != MEMORY_LACKS)
		return memory == MEMORY_HAS ? 0 : is_gone(call);
	int r = flight_take(c, FLIGHT_DOCUMENTS, session_id, call, &f);
	if (r < 0)
		return r;
	*ret = listing_ref(f->listing);
	flight_leave(f);
	return 0;
}

static int recall_documents(struct cache *c, const char *session_id, int64_t max_age_ms, struct listing **ret)
{
	SCOPED_LOCK(&c->lock);
	int64_t now_ms = c->now_ms();
	bool is_served = table_get(c->listings, session_id, now_ms) != NULL;
	const struct remembered *m = table_find(c->listings, session_id);

	if (!m || (!is_served && (max_age_ms != INT64_MAX || !m->listing)))
		return -EAGAIN;
	if (max_age_ms >= 0 && max_age_ms != INT64_MAX && (m->is_doubted || now_ms - m->asked_ms > max_age_ms))
		return -EAGAIN;
	if (!m->listing)
		return -ENOENT;
	*ret = listing_ref(m->listing);
	return 0;
}

static int cache_recall_documents(struct backend *b, const char *session_id, int64_t max_age_ms, struct listing **ret)
{
	struct cache *c = cache_from(b);

	recollect(c, session_id);
	return recall_documents(c, session_id, max_age_ms, ret);
}

static enum memory recall_session(struct cache *c, const char *session_id, struct session *ret)
{
	SCOPED_LOCK(&c->lock);
	const struct remembered_session *m = table_get(c->sessions, session_id, c->now_ms());

	if (!m)
		return MEMORY_LACKS;
	if (!m->session.id)
		return MEMORY_GONE;
	return session_copy(&m->session, ret) == 0 ? MEMORY_HAS : MEMORY_LACKS;
}

static int cache_get_session(struct backend *b, struct call *call, const char *session_id, struct session *ret)
{
	struct cache *c = cache_from(b);
	struct flight *f = NULL;

	enum memory memory = recall_session(c, session_id, ret);
	if (memory != MEMORY_LACKS)
		return memory == MEMORY_HAS ? 0 : is_gone(call);
	int r = flight_take(c, FLIGHT_SESSION, session_id, call, &f);
	if (r < 0)
		return r;
	r = session_copy(&f->session, ret);
	flight_leave(f);
	return r;
}

static bool recall_list(struct cache *c, struct session_list *ret)
{
	SCOPED_LOCK(&c->lock);

	return c->has_list && c->now_ms() - c->list_asked_ms < c->ttl_ms && session_list_copy(&c->list, ret);
}

static int cache_list_sessions(struct backend *b, struct call *call, struct session_list *ret)
{
	struct cache *c = cache_from(b);
	struct flight *f = NULL;

	if (recall_list(c, ret))
		return 0;
	int r = flight_take(c, FLIGHT_SESSIONS, NULL, call, &f);
	if (r < 0)
		return r;
	r = session_list_copy(&f->sessions, ret) ? 0 : -ENOMEM;
	flight_leave(f);
	return r;
}

static void cache_forget(struct backend *b, const char *session_id)
{
	struct cache *c = cache_from(b);

	{
		SCOPED_LOCK(&c->lock);
		if (session_id)
			forget_session(c, session_id);
		else
			forget_all(c);
		for (struct flight *f = c->flights; f; f = f->next) {
			if (!session_id || f->kind == FLIGHT_SESSIONS || flight_is_about(f, session_id))
				f->is_forgotten = true;
		}
	}
	backend_forget(c->inner, session_id);
}

static void cache_tell_state(struct backend *b, struct buf *ret)
{
	backend_tell_state(cache_from(b)->inner, ret);
}

static void cache_stop(struct backend *b)
{
	backend_stop(cache_from(b)->inner);
}

/* ---- the calls it passes on ----------------------------------------------------------------------------------- */

static int cache_check(struct backend *b, struct call *call)
{
	struct cache *c = cache_from(b);
	int r = backend_check(c->inner, call);

	if (r < 0)
		note_account(c, &call->fault);
	return r;
}

static int cache_describe(struct backend *b, struct call *call, struct buf *ret)
{
	struct cache *c = cache_from(b);
	int r = backend_describe(c->inner, call, ret);

	if (r < 0)
		note_account(c, &call->fault);
	return r;
}

static void cache_learn_session(struct backend *b, const struct session *known)
{
	backend_learn_session(cache_from(b)->inner, known);
}

static int cache_list_templates(struct backend *b, struct call *call, struct template_list *ret)
{
	struct cache *c = cache_from(b);
	int r = backend_list_templates(c->inner, call, ret);

	if (r < 0)
		note_account(c, &call->fault);
	return r;
}

/* A list that was asked for before the session was made may lack it: it is asked again. */
static void note_created(struct cache *c, const struct session *s)
{
	SCOPED_LOCK(&c->lock);

	for (struct flight *f = c->flights; f; f = f->next) {
		if (f->kind == FLIGHT_SESSIONS && !f->is_done)
			f->is_worthless = true;
	}
	forget_list(c); /* one request, after an act of a person's */
	if (s) {
		table_remove(c->listings, s->id);
		remember_session(c, s->id, s, c->now_ms(), ++c->asked);
	}
}

static int cache_create_session(struct backend *b, struct call *call, const char *template_id, const char *name,
				struct session *ret)
{
	struct cache *c = cache_from(b);
	int r = backend_create_session(c->inner, call, template_id, name, ret);

	if (r == 0)
		note_created(c, ret);
	else if (call->fault.may_have_happened)
		note_created(c, NULL);
	if (r < 0)
		note_account(c, &call->fault);
	return r;
}

static int cache_find_session_id(struct backend *b, const char *text, char **ret)
{
	return backend_find_session_id(cache_from(b)->inner, text, ret);
}

static int cache_fetch_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
				int fd)
{
	struct cache *c = cache_from(b);
	int r = backend_fetch_document(c->inner, call, session_id, document_id, fd);

	if (r < 0)
		note_failed(c, session_id, &call->fault);
	return r;
}

static int cache_measure_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
				  int64_t *ret_bytes)
{
	struct cache *c = cache_from(b);
	int r = backend_measure_document(c->inner, call, session_id, document_id, ret_bytes);

	if (r < 0)
		note_failed(c, session_id, &call->fault);
	return r;
}

static int cache_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
			const char *const *document_ids, int count, struct listing **ret)
{
	struct cache *c = cache_from(b);
	int r = backend_attach(c->inner, call, session_id, from_session_id, document_ids, count, ret);

	if (r == 0)
		note_written(c, session_id, NULL, *ret);
	else
		note_failed(c, session_id, &call->fault);
	return r;
}

static int cache_detach(struct backend *b, struct call *call, const char *session_id, const char *document_id)
{
	struct cache *c = cache_from(b);
	int r = backend_detach(c->inner, call, session_id, document_id);

	if (r == 0 || call->fault.kind == FAULT_GONE)
		note_written(c, session_id, document_id, NULL);
	if (r < 0)
		note_failed(c, session_id, &call->fault);
	return r;
}

static int cache_run(struct backend *b, struct call *call, const char *session_id)
{
	struct cache *c = cache_from(b);
	int r = backend_run(c->inner, call, session_id);

	if (r == 0)
		doubt_session(c, session_id); /* its documents have other states now */
	else
		note_failed(c, session_id, &call->fault);
	return r;
}

static int cache_upload_sign(struct backend *b, struct call *call, struct upload *u)
{
	struct cache *c = cache_from(b);
	int r = backend_upload_sign(c->inner, call, u);

	if (r < 0)
		note_account(c, &call->fault);
	return r;
}

static int cache_upload_store(struct backend *b, struct call *call, struct upload *u)
{
	struct cache *c = cache_from(b);
	int r = backend_upload_store(c->inner, call, u);

	if (r < 0)
		note_account(c, &call->fault);
	/* Where storing makes the document, the attach that follows a success tells us which. */
	if (r < 0 && call->fault.may_have_happened && c->self.caps.store_has_effect)
		doubt_session(c, u->session_id);
	return r;
}

/* All the documents a request made as one listing, so that a large one is copied once; NULL: none, or no memory. */
static struct listing *attached_of(struct upload *const *us, int count, bool *ret_lacks)
{
	CLEANUP(listing_release) struct listing *all = NULL;

	for (int i = 0; i < count; i++) {
		struct listing *more = NULL;
		if (us[i]->error < 0 || !us[i]->document)
			continue;
		if (!all)
			all = listing_ref(us[i]->document);
		else if (listing_patch(all, NULL, 0, us[i]->document, &more) < 0)
			*ret_lacks = true;
		if (more) {
			listing_unref(all);
			all = more;
		}
	}
	return listing_ref(all);
}

static int cache_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count)
{
	struct cache *c = cache_from(b);
	const char *session_id = us[0]->session_id;
	bool is_unknown = false;
	int r = backend_upload_attach(c->inner, call, us, count);

	if (r < 0) {
		note_failed(c, session_id, &call->fault);
		return r;
	}
	CLEANUP(listing_release) struct listing *attached = attached_of(us, count, &is_unknown);
	if (attached)
		note_written(c, session_id, NULL, attached);
	for (int i = 0; i < count; i++) {
		if (us[i]->error < 0)
			note_failed(c, session_id, &us[i]->fault);
	}
	if (is_unknown)
		doubt_session(c, session_id);
	return 0;
}

static int cache_upload_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids,
			     int not_count)
{
	struct cache *c = cache_from(b);
	int r = backend_upload_find(c->inner, call, u, not_ids, not_count);

	if (r == 0 && u->document)
		note_written(c, u->session_id, NULL, u->document);
	if (r < 0)
		note_account(c, &call->fault);
	return r;
}

/* ---- beginning and end --------------------------------------------------------------------------------------- */

static void cache_free(struct cache *c)
{
	pool_free(c->pool);
	store_close(c->store);
	table_free(c->listings);
	table_free(c->sessions);
	session_list_release(&c->list);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->changed);
	free(c);
}

static void cache_close(struct backend *b)
{
	struct cache *c = cache_from(b);
	struct backend *inner = c->inner;

	pthread_mutex_lock(&c->lock);
	c->closes = true;
	for (struct flight *f = c->flights; f; f = f->next)
		atomic_store(&f->transfer.cancelled, true);
	pthread_mutex_unlock(&c->lock);
	cache_free(c);
	backend_close(inner);
}

static void cache_account(const struct backend *b, char ret[65])
{
	account_of((const struct cache *)b, ret);
}

static const struct backend_ops cache_ops = {
	.name = "cache",
	.account = cache_account,
	.close = cache_close,
	.check = cache_check,
	.describe = cache_describe,
	.list_sessions = cache_list_sessions,
	.get_session = cache_get_session,
	.learn_session = cache_learn_session,
	.list_templates = cache_list_templates,
	.create_session = cache_create_session,
	.find_session_id = cache_find_session_id,
	.list_documents = cache_list_documents,
	.recall_documents = cache_recall_documents,
	.forget = cache_forget,
	.tell_state = cache_tell_state,
	.stop = cache_stop,
	.fetch_document = cache_fetch_document,
	.measure_document = cache_measure_document,
	.attach = cache_attach,
	.detach = cache_detach,
	.run = cache_run,
	.upload_sign = cache_upload_sign,
	.upload_store = cache_upload_store,
	.upload_attach = cache_upload_attach,
	.upload_find = cache_upload_find,
};

int cache_wrap(struct backend *inner, const struct cache_options *options, struct backend **ret)
{
	struct cache *c = calloc(1, sizeof(*c));
	pthread_condattr_t attr;

	if (!c)
		return -ENOMEM;
	if (pthread_condattr_init(&attr) != 0) {
		free(c);
		return -ENOMEM;
	}
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC); /* a clock every Linux has */
	(void)pthread_mutex_init(&c->lock, NULL);                /* these can't fail on Linux */
	(void)pthread_cond_init(&c->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	c->self.ops = &cache_ops;
	c->self.caps = *backend_caps(inner);
	c->inner = inner;
	c->ttl_ms = options->ttl_ms;
	c->stale_ms = options->stale_ms;
	c->now_ms = options->now_ms ? options->now_ms : clock_now_ms;
	c->pool = pool_new("cache", FLIGHTS_MAX);
	c->listings =
		table_new(options->listings_max > 0 ? (size_t)options->listings_max : LISTINGS_MAX,
			  options->bytes_max > 0 ? (size_t)options->bytes_max : LISTINGS_BYTES_MAX, remembered_free);
	c->sessions = table_new(SESSIONS_MAX, SIZE_MAX, remembered_session_free);
	if (!c->pool || !c->listings || !c->sessions) {
		cache_free(c);
		return -ENOMEM;
	}
	if (options->dir && options->account && options->account[0]) {
		(void)snprintf(c->account, sizeof(c->account), "%s", options->account);
		/* Without it we remember while we live; the log says why. */
		(void)store_open(&(struct store_options){ .dir = options->dir }, &c->store);
	}
	*ret = &c->self;
	return 0;
}
