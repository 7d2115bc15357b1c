/* The cache against a backend in memory and a clock turned by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cache/cache.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "tests/fake_backend.h"

#define TTL_MS 30000
#define STALE_MS 3600000

static _Atomic int64_t hand_ms; /* of the clock */

static int64_t turned_ms(void)
{
	return atomic_load(&hand_ms);
}

static void turn(int64_t ms)
{
	atomic_fetch_add(&hand_ms, ms);
}

struct setting {
	struct backend *fake, *cache;
};

static struct setting set_up_with(const struct backend_caps *caps, const struct cache_options *options)
{
	struct setting s = { .fake = fake_backend_new(caps) };

	atomic_store(&hand_ms, 1000000);
	fake_add_session(s.fake, "s1", "Q1");
	fake_add_session(s.fake, "s2", "Q2");
	fake_add_document(s.fake, "s1", "one.pdf", "one");
	assert_int_equal(cache_wrap(s.fake, options, &s.cache), 0);
	return s;
}

static struct setting set_up(void)
{
	return set_up_with(NULL, &(struct cache_options){ .ttl_ms = TTL_MS, .stale_ms = STALE_MS, .now_ms = turned_ms });
}

static void set_down(struct setting *s)
{
	backend_close(s->cache); /* closes the fake as well */
}

/* How many documents the session has by the cache's word, or -errno. */
static int list(const struct setting *s, const char *session_id)
{
	CLEANUP(listing_release) struct listing *l = NULL;
	struct call call = { .urgency = URGENCY_PERSON };
	int r = backend_list_documents(s->cache, &call, session_id, NULL, &l);

	return r < 0 ? r : listing_count(l);
}

static int recall(const struct setting *s, const char *session_id, int64_t max_age_ms)
{
	CLEANUP(listing_release) struct listing *l = NULL;
	int r = backend_recall_documents(s->cache, session_id, max_age_ms, &l);

	return r < 0 ? r : listing_count(l);
}

static int listed(const struct setting *s)
{
	return fake_calls(s->fake, FAKE_LIST_DOCUMENTS);
}

static int attach(const struct setting *s, const char *session_id, const char *document_id)
{
	CLEANUP(listing_release) struct listing *l = NULL;
	struct call call = { .urgency = URGENCY_PERSON };

	return backend_attach(s->cache, &call, session_id, NULL, &document_id, 1, &l);
}

static int detach(const struct setting *s, const char *session_id, const char *document_id)
{
	struct call call = { .urgency = URGENCY_PERSON };

	return backend_detach(s->cache, &call, session_id, document_id);
}

/* A document that can be attached: it is in s2. */
static const char *spare(const struct setting *s, const char *text)
{
	return fake_add_document(s->fake, "s2", "spare.pdf", text);
}

static int scratch_file(void)
{
	char path[] = "/tmp/test_cache.XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	(void)unlink(path);
	return fd;
}

static void assert_session(const struct setting *s, const char *id, const char *name)
{
	CLEANUP(session_release) struct session session = { 0 };
	struct call call = { 0 };

	assert_int_equal(backend_get_session(s->cache, &call, id, &session), 0);
	assert_string_equal(session.name, name);
}

/* ---- somebody else who lists -------------------------------------------------------------------------------- */

struct other {
	struct setting *setting;
	const char *session_id;
	struct call call;
	pthread_t thread;
	int result;
	int pages, documents;
	bool on_own_thread;
	bool asks_session; /* for its record alone */
	char session_name[32];
};

static void count_page(void *arg, const struct listing *page)
{
	struct other *o = arg;

	o->pages++;
	o->documents += listing_count(page);
	o->on_own_thread = pthread_equal(pthread_self(), o->thread);
}

static void *run_other(void *arg)
{
	struct other *o = arg;
	CLEANUP(listing_release) struct listing *l = NULL;
	CLEANUP(session_release) struct session session = { 0 };
	int r = o->asks_session ? backend_get_session(o->setting->cache, &o->call, o->session_id, &session)
				: backend_list_documents(o->setting->cache, &o->call, o->session_id, NULL, &l);

	o->result = r < 0 || !l ? r : listing_count(l);
	return NULL;
}

static void begin(struct other *o, struct setting *s)
{
	o->setting = s;
	o->session_id = "s1";
	assert_int_equal(pthread_create(&o->thread, NULL, run_other, o), 0);
}

static int end(struct other *o)
{
	assert_int_equal(pthread_join(o->thread, NULL), 0);
	return o->result;
}

/* Holds a listing of s1 on its way back, asked for by `o`. */
static void begin_held(struct other *o, struct setting *s)
{
	fake_hold(s->fake, FAKE_LIST_DOCUMENTS, HOLD_AFTER);
	begin(o, s);
	assert_true(fake_wait_held(s->fake, FAKE_LIST_DOCUMENTS, 1));
}

/* ---- how long --------------------------------------------------------------------------------------------- */

static void a_listing_younger_than_its_ttl_is_not_asked_for(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	turn(TTL_MS - 1);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void a_listing_older_than_its_ttl_is_asked_for_again(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	fake_add_document(s.fake, "s1", "two.pdf", "two");
	turn(TTL_MS);
	assert_int_equal(list(&s, "s1"), 2);
	assert_int_equal(listed(&s), 2);
	set_down(&s);
}

static void an_unchanged_listing_keeps_its_serial_and_is_asked_for_with_what_is_known(void **state)
{
	struct setting s = set_up();
	CLEANUP(listing_release) struct listing *first = NULL;
	CLEANUP(listing_release) struct listing *second = NULL;
	struct call call = { 0 };

	(void)state;
	assert_int_equal(backend_list_documents(s.cache, &call, "s1", NULL, &first), 0);
	assert_int_equal(fake_known_calls(s.fake), 0);
	turn(2 * STALE_MS); /* however old */
	assert_int_equal(backend_list_documents(s.cache, &call, "s1", NULL, &second), 0);
	assert_int_equal(fake_known_calls(s.fake), 1);
	assert_true(listing_serial(first) == listing_serial(second));
	set_down(&s);
}

static void recall_tells_what_is_remembered_and_how_old_it_may_be(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(recall(&s, "s1", -1), -EAGAIN);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(recall(&s, "s1", 0), 1);
	turn(TTL_MS + 5000);
	assert_int_equal(recall(&s, "s1", TTL_MS + 5000), 1);
	assert_int_equal(recall(&s, "s1", TTL_MS + 4999), -EAGAIN);
	assert_int_equal(recall(&s, "s1", -1), 1);
	assert_int_equal(recall(&s, "s2", -1), -EAGAIN);
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void the_service_away_is_bridged_by_recall_up_to_stale(void **state)
{
	struct setting s = set_up();
	struct call call = { 0 };
	struct listing *l = NULL;

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	turn(TTL_MS);
	fake_fail(s.fake, FAKE_LIST_DOCUMENTS, -1,
		  &(struct fake_fault){ .kind = FAULT_AWAY, .http_status = 503, .words = "down", .retry_after_ms = 7 });
	assert_int_equal(backend_list_documents(s.cache, &call, "s1", NULL, &l), -EIO);
	assert_int_equal(call.fault.kind, FAULT_AWAY);
	assert_int_equal(call.fault.http_status, 503);
	assert_int_equal(call.fault.retry_after_ms, 7);
	assert_string_equal(call.fault.words, "down");
	turn(STALE_MS - TTL_MS - 1);
	assert_int_equal(recall(&s, "s1", -1), 1);
	turn(1);
	assert_int_equal(recall(&s, "s1", -1), -EAGAIN);
	set_down(&s);
}

static void a_session_that_is_gone_is_remembered_as_gone_for_its_ttl(void **state)
{
	struct setting s = set_up();
	struct call call = { 0 };
	struct session session = { 0 };

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	fake_remove_session(s.fake, "s1");
	turn(TTL_MS);
	assert_int_equal(list(&s, "s1"), -ENOENT);
	assert_int_equal(recall(&s, "s1", -1), -ENOENT);
	assert_int_equal(list(&s, "s1"), -ENOENT);
	assert_int_equal(listed(&s), 2);
	assert_int_equal(backend_get_session(s.cache, &call, "s1", &session), -ENOENT);
	assert_int_equal(call.fault.kind, FAULT_GONE);
	assert_int_equal(fake_calls(s.fake, FAKE_GET_SESSION), 0);
	turn(TTL_MS);
	assert_int_equal(recall(&s, "s1", -1), -EAGAIN);
	fake_add_session(s.fake, "s1", "Back");
	assert_int_equal(list(&s, "s1"), 0);
	set_down(&s);
}

static void a_401_forgets_everything_and_a_403_what_was_asked_about(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(list(&s, "s2"), 0);
	turn(TTL_MS);
	fake_fail(s.fake, FAKE_LIST_DOCUMENTS, 1, &(struct fake_fault){ .kind = FAULT_FORBIDDEN, .http_status = 403 });
	assert_int_equal(list(&s, "s1"), -EACCES);
	assert_int_equal(recall(&s, "s1", -1), -EAGAIN);
	assert_int_equal(recall(&s, "s2", -1), 0);
	fake_fail(s.fake, FAKE_UPLOAD_SIGN, 1, &(struct fake_fault){ .kind = FAULT_ACCOUNT, .http_status = 401 });
	struct call call = { 0 };
	struct upload u = { .session_id = "s1", .name = "x.pdf", .sha256 = "x", .fd = -1 };
	assert_int_equal(backend_upload_sign(s.cache, &call, &u), -EACCES);
	assert_int_equal(recall(&s, "s2", -1), -EAGAIN);
	set_down(&s);
}

static void at_most_listings_max_listings_are_remembered(void **state)
{
	struct setting s = set_up_with(NULL, &(struct cache_options){ .ttl_ms = TTL_MS,
								      .stale_ms = STALE_MS,
								      .listings_max = 2,
								      .now_ms = turned_ms });

	(void)state;
	fake_add_session(s.fake, "s3", "Q3");
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(list(&s, "s2"), 0);
	assert_int_equal(recall(&s, "s1", -1), 1); /* a use */
	assert_int_equal(list(&s, "s3"), 0);
	assert_int_equal(recall(&s, "s1", -1), 1);
	assert_int_equal(recall(&s, "s2", -1), -EAGAIN);
	assert_int_equal(recall(&s, "s3", -1), 0);
	set_down(&s);
}

/* ---- flights ------------------------------------------------------------------------------------------------ */

static void callers_of_one_listing_share_one_request(void **state)
{
	struct setting s = set_up();
	struct other others[8] = { 0 };

	(void)state;
	begin_held(&others[0], &s);
	for (int i = 1; i < 8; i++)
		begin(&others[i], &s);
	(void)usleep(50000);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	for (int i = 0; i < 8; i++)
		assert_int_equal(end(&others[i]), 1);
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void callers_of_one_listing_share_its_failure(void **state)
{
	struct setting s = set_up();
	struct other others[3] = { 0 };

	(void)state;
	fake_hold(s.fake, FAKE_LIST_DOCUMENTS, HOLD_BEFORE);
	fake_fail(s.fake, FAKE_LIST_DOCUMENTS, 1, &(struct fake_fault){ .kind = FAULT_BUDGET, .http_status = 429 });
	for (int i = 0; i < 3; i++)
		begin(&others[i], &s);
	assert_true(fake_wait_held(s.fake, FAKE_LIST_DOCUMENTS, 1));
	(void)usleep(50000);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(end(&others[i]), -EAGAIN);
		assert_int_equal(others[i].call.fault.http_status, 429);
	}
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void recall_does_not_wait_for_a_flight(void **state)
{
	struct setting s = set_up();
	struct other o = { 0 };

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	turn(TTL_MS);
	begin_held(&o, &s);
	assert_int_equal(recall(&s, "s1", -1), 1);
	assert_int_equal(recall(&s, "s1", TTL_MS - 1), -EAGAIN);
	assert_int_equal(recall(&s, "s2", -1), -EAGAIN);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&o), 1);
	set_down(&s);
}

static void a_caller_who_leaves_at_his_deadline_does_not_end_the_flight(void **state)
{
	struct setting s = set_up();
	struct other first = { .call.deadline_ms = clock_now_ms() + 100 };
	struct other second = { .call.deadline_ms = clock_now_ms() + 10000 };

	(void)state;
	begin_held(&first, &s); /* it is he who began it */
	begin(&second, &s);
	assert_int_equal(end(&first), -ETIMEDOUT);
	assert_int_equal(first.call.fault.kind, FAULT_AWAY);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&second), 1);
	assert_int_equal(listed(&s), 1);
	assert_int_equal(recall(&s, "s1", 0), 1);
	set_down(&s);
}

static void an_answer_nobody_waited_for_is_remembered(void **state)
{
	struct setting s = set_up();
	struct other o = { .call.deadline_ms = clock_now_ms() + 50 };

	(void)state;
	begin_held(&o, &s);
	assert_int_equal(end(&o), -ETIMEDOUT);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	for (int i = 0; i < 1000 && recall(&s, "s1", 0) < 0; i++)
		(void)usleep(5000);
	assert_int_equal(recall(&s, "s1", 0), 1);
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void a_caller_who_cancels_is_let_go(void **state)
{
	struct setting s = set_up();
	struct transfer transfer = { 0 };
	struct other o = { .call.transfer = &transfer };

	(void)state;
	begin_held(&o, &s);
	atomic_store(&transfer.cancelled, true);
	assert_int_equal(end(&o), -ECANCELED);
	assert_int_equal(o.call.fault.kind, FAULT_CANCELED);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	set_down(&s);
}

static void a_person_does_not_wait_for_a_flight_in_the_background(void **state)
{
	struct setting s = set_up();
	struct other background = { .call.urgency = URGENCY_BACKGROUND };
	struct other person = { .call.urgency = URGENCY_PERSON };
	struct other third = { .call.urgency = URGENCY_BACKGROUND };

	(void)state;
	begin_held(&background, &s);
	begin(&person, &s);
	assert_true(fake_wait_held(s.fake, FAKE_LIST_DOCUMENTS, 2));
	begin(&third, &s); /* this one joins */
	(void)usleep(50000);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&background), 1);
	assert_int_equal(end(&person), 1);
	assert_int_equal(end(&third), 1);
	assert_int_equal(listed(&s), 2);
	set_down(&s);
}

static void pages_come_to_the_caller_and_to_who_joined_on_their_own_threads(void **state)
{
	struct setting s = set_up();
	struct other first = { .call = { .on_page = count_page, .on_page_arg = &first } };
	struct other second = { .call = { .on_page = count_page, .on_page_arg = &second } };
	struct other silent = { 0 };

	(void)state;
	fake_add_documents(s.fake, "s1", "x%d.pdf", 39); /* with the one there: 3 pages of 15 */
	begin_held(&first, &s);
	begin(&second, &s);
	begin(&silent, &s);
	(void)usleep(50000);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&first), 40);
	assert_int_equal(end(&second), 40);
	assert_int_equal(end(&silent), 40);
	assert_int_equal(first.pages, 3);
	assert_int_equal(first.documents, 40);
	assert_int_equal(second.pages, 3);
	assert_int_equal(second.documents, 40);
	assert_true(first.on_own_thread && second.on_own_thread);
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void note_session(void *arg, const struct session *session)
{
	struct other *o = arg;

	(void)snprintf(o->session_name, sizeof(o->session_name), "%s", session->name);
}

static void a_sessions_record_seen_on_the_way_is_handed_over_and_remembered(void **state)
{
	struct setting s = set_up();
	struct other first = { .call = { .on_session = note_session, .on_session_arg = &first } };
	struct other second = { .call = { .on_session = note_session, .on_session_arg = &second } };

	(void)state;
	assert_session(&s, "s1", "Q1");
	fake_rename_session(s.fake, "s1", "New");
	begin_held(&first, &s);
	begin(&second, &s);
	(void)usleep(50000);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&first), 1);
	assert_int_equal(end(&second), 1);
	assert_string_equal(first.session_name, "New");
	assert_string_equal(second.session_name, "New");
	assert_session(&s, "s1", "New");
	assert_int_equal(fake_calls(s.fake, FAKE_GET_SESSION), 1);
	set_down(&s);
}

static void a_sessions_record_that_shows_no_change_is_the_listings_refresh_too(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	turn(TTL_MS);
	assert_session(&s, "s1", "Q1");
	turn(TTL_MS - 1);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(listed(&s), 1);
	turn(1); /* and no longer than from then on */
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(listed(&s), 2);
	set_down(&s);
}

static void a_sessions_record_that_shows_a_change_refreshes_nothing(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	turn(TTL_MS);
	fake_add_document(s.fake, "s1", "two.pdf", "two");
	assert_session(&s, "s1", "Q1");
	assert_int_equal(list(&s, "s1"), 2);
	assert_int_equal(listed(&s), 2);
	set_down(&s);
}

/* Holds the record of s1 on its way back, asked for by `o`. */
static void begin_held_record(struct other *o, struct setting *s)
{
	o->asks_session = true;
	fake_hold(s->fake, FAKE_GET_SESSION, HOLD_AFTER);
	begin(o, s);
	assert_true(fake_wait_held(s->fake, FAKE_GET_SESSION, 1));
}

static void a_record_overtaken_by_a_write_refreshes_nothing(void **state)
{
	(void)state;
	for (int i = 0; i < 3; i++) {
		struct setting s = set_up();
		struct other o = { 0 };
		const char *id = spare(&s, "two");
		assert_int_equal(list(&s, "s1"), 1);
		turn(TTL_MS);
		begin_held_record(&o, &s);
		if (i == 1) /* of unknown outcome */
			fake_fail(s.fake, FAKE_ATTACH, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .takes_effect = true });
		assert_int_equal(attach(&s, "s1", id), i == 1 ? -EIO : 0);
		if (i == 2)
			assert_int_equal(detach(&s, "s1", id), 0);
		fake_let_go(s.fake, FAKE_GET_SESSION);
		assert_int_equal(end(&o), 0);
		assert_int_equal(list(&s, "s1"), i == 2 ? 1 : 2);
		assert_int_equal(listed(&s), 2);
		set_down(&s);
	}
}

static void a_long_listing_waits_for_a_record_on_its_way_that_may_refresh_it(void **state)
{
	(void)state;
	for (int i = 0; i < 3; i++) {
		struct setting s = set_up();
		struct other record = { .call.urgency = i == 2 ? URGENCY_BACKGROUND : URGENCY_PERSON }, o = { 0 };
		fake_add_documents(s.fake, "s1", "long-%d.pdf", 20);
		assert_int_equal(list(&s, "s1"), 21);
		turn(TTL_MS);
		if (i == 1)
			fake_add_document(s.fake, "s1", "new.pdf", "new");
		begin_held_record(&record, &s);
		begin(&o, &s);
		if (i < 2)
			(void)usleep(50000);
		else /* one in the background keeps nobody waiting */
			assert_int_equal(end(&o), 21);
		fake_let_go(s.fake, FAKE_GET_SESSION);
		assert_int_equal(end(&record), 0);
		if (i < 2)
			assert_int_equal(end(&o), i == 0 ? 21 : 22);
		assert_int_equal(listed(&s), i == 0 ? 1 : 2);
		set_down(&s);
	}
}

static void one_page_does_not_wait_for_a_record(void **state)
{
	struct setting s = set_up();
	struct other record = { 0 };

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	turn(TTL_MS);
	begin_held_record(&record, &s);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(listed(&s), 2);
	fake_let_go(s.fake, FAKE_GET_SESSION);
	assert_int_equal(end(&record), 0);
	set_down(&s);
}

static void closing_ends_flights_that_nobody_waits_for(void **state)
{
	struct setting s = set_up();
	struct other o = { .call.deadline_ms = clock_now_ms() + 50 };
	int64_t began_ms = clock_now_ms();

	(void)state;
	begin_held(&o, &s);
	assert_int_equal(end(&o), -ETIMEDOUT);
	set_down(&s);
	assert_true(clock_now_ms() - began_ms < 5000);
}

/* ---- what we wrote ------------------------------------------------------------------------------------------ */

static void what_we_attach_and_detach_shows_at_once(void **state)
{
	struct setting s = set_up();
	const char *id = spare(&s, "two");

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(attach(&s, "s1", id), 0);
	assert_int_equal(recall(&s, "s1", 0), 2);
	assert_int_equal(list(&s, "s1"), 2);
	assert_int_equal(detach(&s, "s1", id), 0);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void a_refused_write_changes_nothing(void **state)
{
	struct setting s = set_up();
	const char *id = spare(&s, "two");

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	fake_fail(s.fake, FAKE_ATTACH, 1, &(struct fake_fault){ .kind = FAULT_INVALID, .http_status = 422 });
	assert_int_equal(attach(&s, "s1", id), -EINVAL);
	assert_int_equal(recall(&s, "s1", 0), 1);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void a_listing_overtaken_by_an_attach_shows_the_document(void **state)
{
	struct setting s = set_up();
	struct other o = { 0 };
	const char *id = spare(&s, "two");

	(void)state;
	begin_held(&o, &s);
	assert_int_equal(attach(&s, "s1", id), 0);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&o), 2);
	assert_int_equal(recall(&s, "s1", 0), 2);
	assert_int_equal(listed(&s), 1); /* at no price */
	set_down(&s);
}

static void a_listing_overtaken_by_a_detach_does_not_bring_the_document_back(void **state)
{
	struct setting s = set_up();
	struct other o = { 0 };

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	turn(TTL_MS);
	begin_held(&o, &s);
	assert_int_equal(detach(&s, "s1", "d1"), 0);
	assert_int_equal(recall(&s, "s1", -1), 0);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&o), 0);
	assert_int_equal(recall(&s, "s1", 0), 0);
	set_down(&s);
}

static void writes_that_overtake_are_applied_in_their_order(void **state)
{
	struct setting s = set_up();
	struct other o = { 0 };
	const char *id = spare(&s, "two");

	(void)state;
	begin_held(&o, &s);
	assert_int_equal(attach(&s, "s1", id), 0);
	assert_int_equal(detach(&s, "s1", "d1"), 0);
	assert_int_equal(detach(&s, "s1", id), 0);
	assert_int_equal(attach(&s, "s1", "d1"), 0);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&o), 1);
	set_down(&s);
}

static void a_listing_overtaken_by_a_write_of_unknown_outcome_is_asked_for_again(void **state)
{
	struct setting s = set_up();
	struct other o = { 0 };
	const char *id = spare(&s, "two");

	(void)state;
	begin_held(&o, &s);
	fake_fail(s.fake, FAKE_ATTACH, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .takes_effect = true });
	assert_int_equal(attach(&s, "s1", id), -EIO);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&o), 2);
	assert_int_equal(listed(&s), 2);
	assert_int_equal(list(&s, "s1"), 2);
	assert_int_equal(listed(&s), 2);
	set_down(&s);
}

static void a_listing_in_flight_does_not_mind_writes_elsewhere(void **state)
{
	struct setting s = set_up();
	struct other o = { 0 };
	const char *id = spare(&s, "two");

	(void)state;
	begin_held(&o, &s);
	fake_fail(s.fake, FAKE_DETACH, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .takes_effect = true });
	assert_int_equal(detach(&s, "s2", id), -EIO);
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&o), 1);
	assert_int_equal(listed(&s), 1);
	set_down(&s);
}

static void after_a_write_of_unknown_outcome_memory_is_no_longer_fresh(void **state)
{
	struct setting s = set_up();
	const char *id = spare(&s, "two");

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	fake_fail(s.fake, FAKE_ATTACH, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .takes_effect = true });
	assert_int_equal(attach(&s, "s1", id), -EIO);
	assert_int_equal(recall(&s, "s1", TTL_MS), -EAGAIN);
	assert_int_equal(recall(&s, "s1", -1), 1); /* rather than nothing */
	assert_int_equal(list(&s, "s1"), 2);
	assert_int_equal(recall(&s, "s1", TTL_MS), 2);
	set_down(&s);
}

static void asking_again_ends_also_when_every_answer_is_overtaken(void **state)
{
	struct setting s = set_up();
	struct other o = { 0 };

	(void)state;
	begin_held(&o, &s);
	for (int i = 1; i < 10; i++) {
		if (!fake_wait_held(s.fake, FAKE_LIST_DOCUMENTS, 1))
			break; /* asked again, and through, before it could be held: not overtaken this time */
		fake_fail(s.fake, FAKE_DETACH, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .may_have_happened = true });
		assert_int_equal(detach(&s, "s1", "d1"), -EIO);
		fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
		fake_hold(s.fake, FAKE_LIST_DOCUMENTS, HOLD_AFTER);
		(void)usleep(20000);
		if (listed(&s) == 4)
			break;
	}
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&o), 1);
	assert_true(listed(&s) <= 4);
	set_down(&s);
}

static void uploads_show_at_once_and_their_batch_is_one_request(void **state)
{
	struct setting s = set_up();
	struct upload uploads[3];
	struct upload *us[3];
	struct call call = { 0 };
	int fd = scratch_file();

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	for (int i = 0; i < 3; i++) {
		uploads[i] = (struct upload){
			.session_id = "s1", .name = i == 1 ? "bad.pdf" : "good.pdf", .sha256 = "", .size_bytes = i + 1, .fd = fd
		};
		us[i] = &uploads[i];
		assert_int_equal(ftruncate(fd, i + 1), 0);
		assert_int_equal(backend_upload_sign(s.cache, &call, us[i]), 0);
		assert_int_equal(backend_upload_store(s.cache, &call, us[i]), 0);
	}
	fake_fail_upload(s.fake, "bad.pdf", 1, false, &(struct fake_fault){ .kind = FAULT_INVALID, .http_status = 422 });
	assert_int_equal(backend_upload_attach(s.cache, &call, us, 3), 0);
	assert_int_equal(uploads[0].error, 0);
	assert_int_equal(uploads[1].error, -EINVAL);
	assert_int_equal(uploads[2].error, 0);
	assert_int_equal(recall(&s, "s1", 0), 3);
	assert_int_equal(fake_calls(s.fake, FAKE_UPLOAD_ATTACH), 1);

	/* One whose answer is lost: looked for, found, and shown. */
	struct upload *bad = us[1];
	fake_fail(s.fake, FAKE_UPLOAD_ATTACH, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .takes_effect = true });
	assert_int_equal(backend_upload_attach(s.cache, &call, &bad, 1), -EIO);
	assert_true(bad->fault.may_have_happened);
	assert_int_equal(recall(&s, "s1", 0), -EAGAIN);
	bad->sha256 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"; /* of two zeroes */
	assert_int_equal(backend_upload_find(s.cache, &call, bad, NULL, 0), 0);
	assert_int_equal(recall(&s, "s1", -1), 4);
	assert_int_equal(list(&s, "s1"), 4);
	for (int i = 0; i < 3; i++) {
		listing_release(&uploads[i].document);
		free(uploads[i].ticket);
	}
	close(fd);
	set_down(&s);
}

static void storing_where_it_has_effect_makes_memory_doubtful_when_its_answer_is_lost(void **state)
{
	struct backend_caps caps = fake_caps();
	struct call call = { 0 };
	int fd = scratch_file();
	struct upload u = { .session_id = "s1", .name = "x.pdf", .sha256 = "", .size_bytes = 1, .fd = fd };

	(void)state;
	caps.store_has_effect = true;
	struct setting s = set_up_with(
		&caps, &(struct cache_options){ .ttl_ms = TTL_MS, .stale_ms = STALE_MS, .now_ms = turned_ms });
	assert_int_equal(ftruncate(fd, 1), 0);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(backend_upload_sign(s.cache, &call, &u), 0);
	fake_fail(s.fake, FAKE_UPLOAD_STORE, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .takes_effect = true });
	assert_int_equal(backend_upload_store(s.cache, &call, &u), -EIO);
	assert_int_equal(list(&s, "s1"), 2);
	assert_int_equal(listed(&s), 2);
	free(u.ticket);
	close(fd);
	set_down(&s);
}

static void a_run_makes_the_states_doubtful(void **state)
{
	struct setting s = set_up();
	struct call call = { 0 };

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(backend_run(s.cache, &call, "s1"), 0);
	assert_int_equal(fake_run_count(s.fake, "s1"), 1);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(listed(&s), 2);
	set_down(&s);
}

/* ---- forgetting --------------------------------------------------------------------------------------------- */

static void what_is_forgotten_is_asked_for_again(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(list(&s, "s2"), 0);
	backend_forget(s.cache, "s1");
	assert_int_equal(recall(&s, "s1", -1), -EAGAIN);
	assert_int_equal(recall(&s, "s2", -1), 0);
	backend_forget(s.cache, NULL);
	assert_int_equal(recall(&s, "s2", -1), -EAGAIN);
	set_down(&s);
}

static void a_question_from_before_forgetting_is_neither_joined_nor_remembered(void **state)
{
	struct setting s = set_up();
	struct other before = { 0 }, after = { 0 };

	(void)state;
	begin_held(&before, &s);
	fake_add_document(s.fake, "s1", "two.pdf", "two");
	backend_forget(s.cache, "s1");
	begin(&after, &s);
	assert_true(fake_wait_held(s.fake, FAKE_LIST_DOCUMENTS, 2));
	fake_let_go(s.fake, FAKE_LIST_DOCUMENTS);
	assert_int_equal(end(&before), 1);
	assert_int_equal(end(&after), 2);
	assert_int_equal(recall(&s, "s1", 0), 2);
	set_down(&s);
}

/* ---- sessions ----------------------------------------------------------------------------------------------- */

static int count_sessions(const struct setting *s)
{
	CLEANUP(session_list_release) struct session_list l = { 0 };
	struct call call = { 0 };
	int r = backend_list_sessions(s->cache, &call, &l);

	return r < 0 ? r : l.count;
}

static void sessions_and_their_list_are_remembered_for_their_ttl(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(count_sessions(&s), 2);
	assert_int_equal(count_sessions(&s), 2);
	assert_session(&s, "s1", "Q1"); /* the list told */
	fake_rename_session(s.fake, "s1", "New");
	assert_session(&s, "s1", "Q1");
	assert_int_equal(fake_calls(s.fake, FAKE_LIST_SESSIONS), 1);
	assert_int_equal(fake_calls(s.fake, FAKE_GET_SESSION), 0);
	turn(TTL_MS);
	assert_session(&s, "s1", "New");
	assert_int_equal(count_sessions(&s), 2);
	assert_int_equal(fake_calls(s.fake, FAKE_LIST_SESSIONS), 2);
	assert_int_equal(fake_calls(s.fake, FAKE_GET_SESSION), 1);
	set_down(&s);
}

static void a_session_that_is_seen_to_be_gone_leaves_the_list(void **state)
{
	struct setting s = set_up();

	(void)state;
	assert_int_equal(count_sessions(&s), 2);
	fake_remove_session(s.fake, "s2");
	assert_int_equal(list(&s, "s2"), -ENOENT);
	assert_int_equal(count_sessions(&s), 1);
	assert_int_equal(fake_calls(s.fake, FAKE_LIST_SESSIONS), 1);
	set_down(&s);
}

static int create(const struct setting *s)
{
	CLEANUP(session_release) struct session made = { 0 };
	struct call call = { 0 };

	return backend_create_session(s->cache, &call, "t1", "Made", &made);
}

static void *count_in_thread(void *arg)
{
	struct other *o = arg;

	o->result = count_sessions(o->setting);
	return NULL;
}

static void a_session_we_made_is_in_the_list_also_when_that_was_asked_for_before(void **state)
{
	struct setting s = set_up();
	struct other o = { .setting = &s };

	(void)state;
	assert_int_equal(count_sessions(&s), 2);
	assert_int_equal(create(&s), 0);
	assert_int_equal(count_sessions(&s), 3);
	assert_session(&s, "made-1", "Made");
	assert_int_equal(fake_calls(s.fake, FAKE_GET_SESSION), 0);
	turn(TTL_MS);
	fake_hold(s.fake, FAKE_LIST_SESSIONS, HOLD_AFTER);
	assert_int_equal(pthread_create(&o.thread, NULL, count_in_thread, &o), 0);
	assert_true(fake_wait_held(s.fake, FAKE_LIST_SESSIONS, 1));
	assert_int_equal(create(&s), 0);
	fake_let_go(s.fake, FAKE_LIST_SESSIONS);
	assert_int_equal(end(&o), 4);
	set_down(&s);
}

/* ---- the rest ----------------------------------------------------------------------------------------------- */

static void all_else_is_the_inner_backends(void **state)
{
	struct setting s = set_up();
	struct call call = { 0 };
	CLEANUP(template_list_release) struct template_list templates = { 0 };
	CLEANUP(buf_release) struct buf text = BUF(1000);
	CLEANUP(text_release) char *id = NULL;
	char bytes[4] = "";
	int fd = scratch_file();

	(void)state;
	assert_string_equal(backend_caps(s.cache)->service, "fake");
	assert_int_equal(backend_check(s.cache, &call), 0);
	assert_int_equal(backend_describe(s.cache, &call, &text), 0);
	assert_int_equal(backend_list_templates(s.cache, &call, &templates), 0);
	assert_int_equal(templates.count, 1);
	assert_int_equal(backend_find_session_id(s.cache, "https://x/s2/docs", &id), 0);
	assert_string_equal(id, "s2");
	assert_int_equal(backend_fetch_document(s.cache, &call, "s1", "d1", fd), 0);
	assert_int_equal(pread(fd, bytes, 3, 0), 3);
	assert_string_equal(bytes, "one");
	fake_fail(s.fake, FAKE_CHECK, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .words = "no" });
	assert_int_equal(backend_check(s.cache, &call), -EIO);
	assert_string_equal(call.fault.words, "no");
	backend_learn_session(s.cache, &(struct session){ .id = "s1" });
	assert_int_equal(fake_learned(s.fake), 1);
	close(fd);
	set_down(&s);
}

/* ---- sweeps -------------------------------------------------------------------------------------------------- */

#define HOUR_MS 3600000

/* 20 documents: more than a page. */
static struct setting set_up_large(void)
{
	struct setting s = set_up();

	fake_add_documents(s.fake, "s1", "large-%d.pdf", 20);
	assert_int_equal(list(&s, "s1"), 21);
	return s;
}

static bool wait_for_sweeps(const struct setting *s, int count)
{
	for (int i = 0; i < 1000 && fake_calls(s->fake, FAKE_SWEEP) < count; i++)
		(void)usleep(5000);
	return fake_calls(s->fake, FAKE_SWEEP) == count;
}

static void a_listing_in_use_is_swept_an_hour_after_it_was_last_asked_for_in_full(void **state)
{
	struct setting s = set_up_large();

	for (int i = 0; i < 3; i++) {
		turn(TTL_MS + 1);
		assert_int_equal(list(&s, "s1"), 21);
	}
	assert_int_equal(fake_calls(s.fake, FAKE_SWEEP), 0);
	turn(HOUR_MS + 60000);
	assert_int_equal(fake_calls(s.fake, FAKE_SWEEP), 0); /* not in use */
	assert_int_equal(list(&s, "s1"), 21);
	assert_true(wait_for_sweeps(&s, 1));
	turn(TTL_MS + 1);
	assert_int_equal(list(&s, "s1"), 21);
	turn(TTL_MS + 1);
	assert_int_equal(list(&s, "s1"), 21);
	assert_true(wait_for_sweeps(&s, 1)); /* and not again so soon */
	set_down(&s);
}

static void a_sweep_that_fails_gives_others_a_turn(void **state)
{
	struct setting s = set_up_large();
	const struct fake_fault away = { .kind = FAULT_AWAY };

	fake_add_session(s.fake, "s9", "Other");
	fake_add_documents(s.fake, "s9", "other-%d.pdf", 30);
	assert_int_equal(list(&s, "s9"), 30);
	fake_fail(s.fake, FAKE_SWEEP, 1, &away);
	turn(2 * HOUR_MS);
	assert_int_equal(list(&s, "s1"), 21);
	assert_true(wait_for_sweeps(&s, 1));
	(void)usleep(50000);
	turn(TTL_MS + 1);
	assert_int_equal(list(&s, "s1"), 21);
	assert_int_equal(list(&s, "s9"), 30);
	assert_true(wait_for_sweeps(&s, 2));
	(void)usleep(50000);
	turn(HOUR_MS / 2);
	assert_int_equal(list(&s, "s9"), 30); /* it had its own */
	(void)usleep(50000);
	assert_true(wait_for_sweeps(&s, 2));
	assert_int_equal(list(&s, "s1"), 21);
	assert_true(wait_for_sweeps(&s, 3));
	set_down(&s);
}

static void one_page_is_never_swept(void **state)
{
	struct setting s = set_up();

	assert_int_equal(list(&s, "s1"), 1);
	turn(10 * HOUR_MS);
	assert_int_equal(list(&s, "s1"), 1);
	(void)usleep(20000);
	assert_int_equal(fake_calls(s.fake, FAKE_SWEEP), 0);
	set_down(&s);
}

static void what_was_refreshed_and_written_during_a_sweep_stays(void **state)
{
	struct setting s = set_up_large();
	const char *mine = spare(&s, "mine");
	const char *seen = fake_document_with(s.fake, "s1", "one", 0);
	CLEANUP(listing_release) struct listing *l = NULL;
	struct document d;

	fake_hold(s.fake, FAKE_SWEEP, HOLD_AFTER); /* it has seen things as they are now */
	turn(2 * HOUR_MS);
	assert_int_equal(list(&s, "s1"), 21);
	assert_true(fake_wait_held(s.fake, FAKE_SWEEP, 1));
	/* Nobody waits for it, or joins it in the background either. */
	const char *theirs = fake_add_document(s.fake, "s1", "theirs.pdf", "theirs");
	fake_set_status(s.fake, seen, "failed", STATE_FAILED, NULL);
	turn(TTL_MS + 1);
	assert_int_equal(list(&s, "s1"), 22);
	assert_int_equal(attach(&s, "s1", mine), 0);
	assert_int_equal(recall(&s, "s1", TTL_MS), 23);
	fake_let_go(s.fake, FAKE_SWEEP);
	for (int i = 0; i < 200; i++) { /* whenever it lands */
		assert_int_equal(recall(&s, "s1", TTL_MS), 23);
		(void)usleep(1000);
	}
	assert_int_equal(backend_recall_documents(s.cache, "s1", TTL_MS, &l), 0);
	assert_true(listing_find(l, mine) >= 0 && listing_find(l, theirs) >= 0);
	listing_get(l, listing_find(l, seen), &d);
	assert_string_equal(d.status, "failed");
	set_down(&s);
}

static void closing_ends_a_sweep(void **state)
{
	struct setting s = set_up_large();

	fake_hold(s.fake, FAKE_SWEEP, HOLD_BEFORE);
	turn(2 * HOUR_MS);
	assert_int_equal(list(&s, "s1"), 21);
	assert_true(fake_wait_held(s.fake, FAKE_SWEEP, 1));
	set_down(&s);
}

/* ---- the disk ------------------------------------------------------------------------------------------------ */

static const char me[] = "1111111111111111111111111111111111111111111111111111111111111111";
static const char another[] = "2222222222222222222222222222222222222222222222222222222222222222";

static void make_dir(char ret[64])
{
	(void)snprintf(ret, 64, "/tmp/sessionfs-test-cache-XXXXXX");
	assert_non_null(mkdtemp(ret));
}

static void remove_dir(const char *dir)
{
	static const char *const names[] = { "listings.db", "listings.db-wal", "listings.db-shm", "records" };
	char records[128];

	(void)snprintf(records, sizeof(records), "%s/records", dir);
	DIR *d = opendir(records);
	for (struct dirent *e; d && (e = readdir(d));)
		(void)unlinkat(dirfd(d), e->d_name, 0); /* but for "." and ".." */
	if (d)
		(void)closedir(d);
	for (int i = 0; i < 4; i++) {
		char path[128];
		(void)snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		(void)remove(path); /* not all of them need to be there */
	}
	assert_int_equal(rmdir(dir), 0);
}

/* A cache whose listings outlive it, around a service that has as many documents in s1 as are asked for. */
static struct setting set_up_in(const char *dir, const char *account, int documents)
{
	struct setting s = set_up_with(NULL, &(struct cache_options){ .ttl_ms = TTL_MS, .stale_ms = STALE_MS,
								      .now_ms = turned_ms, .dir = dir,
								      .account = account });

	for (int i = 1; i < documents; i++)
		fake_add_document(s.fake, "s1", "more.pdf", "more");
	return s;
}

static void a_listing_is_recalled_by_the_next_run_before_anything_is_asked(void **state)
{
	char dir[64];

	make_dir(dir);
	struct setting s = set_up_in(dir, me, 1);
	assert_int_equal(list(&s, "s1"), 1);
	set_down(&s);
	s = set_up_in(dir, me, 2);
	assert_int_equal(recall(&s, "s2", INT64_MAX), -EAGAIN);
	assert_int_equal(recall(&s, "s1", TTL_MS), -EAGAIN); /* not as something fresh */
	assert_int_equal(recall(&s, "s1", -1), 1);
	assert_int_equal(recall(&s, "s1", INT64_MAX), 1);
	assert_int_equal(listed(&s), 0);
	/* Asked for, it is asked for with what is known. */
	assert_int_equal(list(&s, "s1"), 2);
	assert_int_equal(fake_known_calls(s.fake), 1);
	assert_int_equal(recall(&s, "s1", TTL_MS), 2);
	set_down(&s);
	remove_dir(dir);
}

static void one_recalled_that_the_sessions_record_shows_unchanged_is_not_asked_for(void **state)
{
	char dir[64];

	(void)state;
	make_dir(dir);
	for (int i = 0; i < 3; i++) {
		struct setting s = set_up_in(dir, me, i < 2 ? 1 : 2);
		if (i > 0)
			assert_int_equal(recall(&s, "s1", INT64_MAX), 1);
		assert_session(&s, "s1", "Q1");
		assert_int_equal(list(&s, "s1"), i < 2 ? 1 : 2);
		assert_int_equal(listed(&s), i != 1);
		set_down(&s);
	}
	remove_dir(dir);
}

static void one_from_the_disk_is_recalled_up_to_stale_and_at_a_start_however_old(void **state)
{
	char dir[64];

	make_dir(dir);
	struct setting s = set_up_in(dir, me, 1);
	assert_int_equal(list(&s, "s1"), 1);
	set_down(&s);
	s = set_up_in(dir, me, 1);
	assert_int_equal(recall(&s, "s1", -1), 1);
	turn(STALE_MS - 1000);
	assert_int_equal(recall(&s, "s1", -1), 1);
	turn(1001);
	assert_int_equal(recall(&s, "s1", -1), -EAGAIN);
	assert_int_equal(recall(&s, "s1", INT64_MAX), 1);
	set_down(&s);
	remove_dir(dir);
}

static void another_account_recalls_nothing(void **state)
{
	char dir[64];

	make_dir(dir);
	struct setting s = set_up_in(dir, me, 1);
	assert_int_equal(list(&s, "s1"), 1);
	set_down(&s);
	s = set_up_in(dir, another, 1);
	assert_int_equal(recall(&s, "s1", INT64_MAX), -EAGAIN);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(fake_known_calls(s.fake), 0);
	set_down(&s);
	remove_dir(dir);
}

static void what_a_refusal_made_us_forget_is_forgotten_on_the_disk_too(void **state)
{
	static const struct fake_fault refusals[] = {
		{ .kind = FAULT_ACCOUNT, .http_status = 401 },
		{ .kind = FAULT_FORBIDDEN, .http_status = 403 },
		{ .kind = FAULT_GONE, .http_status = 404 },
	};

	for (int i = 0; i < 3; i++) {
		char dir[64];
		make_dir(dir);
		struct setting s = set_up_in(dir, me, 1);
		assert_int_equal(list(&s, "s1"), 1);
		assert_int_equal(list(&s, "s2"), 0);
		set_down(&s);
		s = set_up_in(dir, me, 1);
		fake_fail(s.fake, FAKE_LIST_DOCUMENTS, 1, &refusals[i]);
		assert_true(list(&s, "s1") < 0);
		set_down(&s);
		s = set_up_in(dir, me, 1);
		assert_int_equal(recall(&s, "s1", INT64_MAX), -EAGAIN);
		assert_int_equal(recall(&s, "s2", INT64_MAX), i == 0 ? -EAGAIN : 0);
		set_down(&s);
		remove_dir(dir);
	}
}

static void the_service_away_leaves_the_disk_alone(void **state)
{
	char dir[64];

	make_dir(dir);
	struct setting s = set_up_in(dir, me, 1);
	assert_int_equal(list(&s, "s1"), 1);
	set_down(&s);
	s = set_up_in(dir, me, 1);
	fake_fail(s.fake, FAKE_LIST_DOCUMENTS, 1, &(struct fake_fault){ .kind = FAULT_AWAY, .http_status = 503 });
	assert_int_equal(list(&s, "s1"), -EIO);
	assert_int_equal(recall(&s, "s1", -1), 1);
	set_down(&s);
	s = set_up_in(dir, me, 1);
	assert_int_equal(recall(&s, "s1", -1), 1);
	set_down(&s);
	remove_dir(dir);
}

static void a_write_before_anything_was_recalled_shows_in_what_is_recalled(void **state)
{
	char dir[64];

	make_dir(dir);
	struct setting s = set_up_in(dir, me, 1);
	assert_int_equal(list(&s, "s1"), 1);
	set_down(&s);
	s = set_up_in(dir, me, 1);
	assert_int_equal(attach(&s, "s1", spare(&s, "new")), 0);
	assert_int_equal(recall(&s, "s1", -1), 2);
	set_down(&s);
	s = set_up_in(dir, me, 1);
	assert_int_equal(recall(&s, "s1", -1), 2); /* and the write went to the disk */
	set_down(&s);
	remove_dir(dir);
}

static void what_is_forgotten_on_request_is_not_recalled_from_the_disk(void **state)
{
	char dir[64];

	make_dir(dir);
	struct setting s = set_up_in(dir, me, 1);
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(list(&s, "s2"), 0);
	backend_forget(s.cache, "s1");
	assert_int_equal(recall(&s, "s1", INT64_MAX), -EAGAIN);
	assert_int_equal(recall(&s, "s2", INT64_MAX), 0);
	backend_forget(s.cache, NULL);
	assert_int_equal(recall(&s, "s2", INT64_MAX), -EAGAIN);
	set_down(&s);
	s = set_up_in(dir, me, 1);
	assert_int_equal(recall(&s, "s1", INT64_MAX), -EAGAIN);
	assert_int_equal(recall(&s, "s2", INT64_MAX), -EAGAIN);
	set_down(&s);
	remove_dir(dir);
}

static void more_listings_than_memory_holds_are_on_the_disk(void **state)
{
	char dir[64];

	make_dir(dir);
	struct setting s = set_up_with(NULL, &(struct cache_options){ .ttl_ms = TTL_MS, .stale_ms = STALE_MS,
								      .now_ms = turned_ms, .dir = dir, .account = me,
								      .listings_max = 1 });
	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(list(&s, "s2"), 0);
	assert_int_equal(recall(&s, "s1", -1), 1);
	assert_int_equal(listed(&s), 2);
	set_down(&s);
	remove_dir(dir);
}

static void a_folder_that_cant_be_used_costs_memory_nothing(void **state)
{
	struct setting s = set_up_in("/no/such/folder", me, 1);

	assert_int_equal(list(&s, "s1"), 1);
	assert_int_equal(recall(&s, "s1", -1), 1);
	set_down(&s);
}

static void ask_record(const struct setting *s)
{
	CLEANUP(session_release) struct session session = { 0 };
	struct call call = { 0 };

	(void)backend_get_session(s->cache, &call, "s1", &session);
}

/* Everybody does everything for a while; afterwards memory and truth must be the same. */
static void *meddle(void *arg)
{
	struct other *o = arg;
	const struct setting *s = o->setting;
	unsigned random = (unsigned)(uintptr_t)o->call.on_page_arg;

	for (int i = 0; i < 150; i++) {
		random = random * 1103515245u + 12345u;
		char id[16];
		(void)snprintf(id, sizeof(id), "d%u", 2 + (random >> 16) % 20);
		switch ((random >> 8) % 9) {
		case 0:
			(void)attach(s, "s1", id);
			break;
		case 1:
			(void)detach(s, "s1", id);
			break;
		case 2:
			turn(TTL_MS);
			break;
		case 3:
			if (i % 10 == 0)
				backend_forget(s->cache, i % 20 ? "s1" : NULL);
			break;
		case 4:
			(void)count_sessions(s);
			break;
		case 5:
			(void)recall(s, "s1", -1);
			break;
		case 6:
			ask_record(s);
			break;
		default:
			(void)list(s, "s1");
		}
	}
	return NULL;
}

static void after_any_muddle_memory_tells_the_truth(void **state)
{
	struct setting s = set_up();
	struct other others[6] = { 0 };

	(void)state;
	for (int i = 0; i < 20; i++) {
		char text[32];
		(void)snprintf(text, sizeof(text), "text %d", i);
		(void)spare(&s, text);
	}
	fake_latency(s.fake, FAKE_LIST_DOCUMENTS, 3);
	fake_latency(s.fake, FAKE_GET_SESSION, 2);
	for (int i = 0; i < 6; i++) {
		others[i].setting = &s;
		others[i].call.on_page_arg = (void *)(uintptr_t)(i * 7919 + 1);
		assert_int_equal(pthread_create(&others[i].thread, NULL, meddle, &others[i]), 0);
	}
	for (int i = 0; i < 6; i++)
		assert_int_equal(pthread_join(others[i].thread, NULL), 0);
	/* Each document was written by several threads at once, where the order of answers says nothing; ask once, and
	 * then write each once more, one after another, with listings under way all the time. */
	backend_forget(s.cache, "s1");
	assert_int_equal(list(&s, "s1"), fake_document_count(s.fake, "s1"));
	for (int i = 0; i < 40; i++) {
		char id[16];
		struct other o = { 0 }, record = { .asks_session = true };
		(void)snprintf(id, sizeof(id), "d%d", 2 + i % 20);
		turn(TTL_MS);
		begin(&o, &s);
		begin(&record, &s);
		if (i % 3)
			(void)attach(&s, "s1", id);
		else
			(void)detach(&s, "s1", id);
		assert_int_equal(recall(&s, "s1", -1), fake_document_count(s.fake, "s1"));
		assert_true(end(&o) >= 0);
		assert_int_equal(end(&record), 0);
		assert_int_equal(list(&s, "s1"), fake_document_count(s.fake, "s1"));
	}
	set_down(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_listing_younger_than_its_ttl_is_not_asked_for),
		cmocka_unit_test(a_listing_older_than_its_ttl_is_asked_for_again),
		cmocka_unit_test(an_unchanged_listing_keeps_its_serial_and_is_asked_for_with_what_is_known),
		cmocka_unit_test(recall_tells_what_is_remembered_and_how_old_it_may_be),
		cmocka_unit_test(the_service_away_is_bridged_by_recall_up_to_stale),
		cmocka_unit_test(a_session_that_is_gone_is_remembered_as_gone_for_its_ttl),
		cmocka_unit_test(a_401_forgets_everything_and_a_403_what_was_asked_about),
		cmocka_unit_test(at_most_listings_max_listings_are_remembered),
		cmocka_unit_test(callers_of_one_listing_share_one_request),
		cmocka_unit_test(callers_of_one_listing_share_its_failure),
		cmocka_unit_test(recall_does_not_wait_for_a_flight),
		cmocka_unit_test(a_caller_who_leaves_at_his_deadline_does_not_end_the_flight),
		cmocka_unit_test(an_answer_nobody_waited_for_is_remembered),
		cmocka_unit_test(a_caller_who_cancels_is_let_go),
		cmocka_unit_test(a_person_does_not_wait_for_a_flight_in_the_background),
		cmocka_unit_test(pages_come_to_the_caller_and_to_who_joined_on_their_own_threads),
		cmocka_unit_test(a_sessions_record_seen_on_the_way_is_handed_over_and_remembered),
		cmocka_unit_test(a_sessions_record_that_shows_no_change_is_the_listings_refresh_too),
		cmocka_unit_test(a_sessions_record_that_shows_a_change_refreshes_nothing),
		cmocka_unit_test(a_record_overtaken_by_a_write_refreshes_nothing),
		cmocka_unit_test(a_long_listing_waits_for_a_record_on_its_way_that_may_refresh_it),
		cmocka_unit_test(one_page_does_not_wait_for_a_record),
		cmocka_unit_test(closing_ends_flights_that_nobody_waits_for),
		cmocka_unit_test(what_we_attach_and_detach_shows_at_once),
		cmocka_unit_test(a_refused_write_changes_nothing),
		cmocka_unit_test(a_listing_overtaken_by_an_attach_shows_the_document),
		cmocka_unit_test(a_listing_overtaken_by_a_detach_does_not_bring_the_document_back),
		cmocka_unit_test(writes_that_overtake_are_applied_in_their_order),
		cmocka_unit_test(a_listing_overtaken_by_a_write_of_unknown_outcome_is_asked_for_again),
		cmocka_unit_test(a_listing_in_flight_does_not_mind_writes_elsewhere),
		cmocka_unit_test(after_a_write_of_unknown_outcome_memory_is_no_longer_fresh),
		cmocka_unit_test(asking_again_ends_also_when_every_answer_is_overtaken),
		cmocka_unit_test(uploads_show_at_once_and_their_batch_is_one_request),
		cmocka_unit_test(storing_where_it_has_effect_makes_memory_doubtful_when_its_answer_is_lost),
		cmocka_unit_test(a_run_makes_the_states_doubtful),
		cmocka_unit_test(what_is_forgotten_is_asked_for_again),
		cmocka_unit_test(a_question_from_before_forgetting_is_neither_joined_nor_remembered),
		cmocka_unit_test(sessions_and_their_list_are_remembered_for_their_ttl),
		cmocka_unit_test(a_session_that_is_seen_to_be_gone_leaves_the_list),
		cmocka_unit_test(a_session_we_made_is_in_the_list_also_when_that_was_asked_for_before),
		cmocka_unit_test(all_else_is_the_inner_backends),
		cmocka_unit_test(a_listing_is_recalled_by_the_next_run_before_anything_is_asked),
		cmocka_unit_test(one_recalled_that_the_sessions_record_shows_unchanged_is_not_asked_for),
		cmocka_unit_test(one_from_the_disk_is_recalled_up_to_stale_and_at_a_start_however_old),
		cmocka_unit_test(another_account_recalls_nothing),
		cmocka_unit_test(what_a_refusal_made_us_forget_is_forgotten_on_the_disk_too),
		cmocka_unit_test(the_service_away_leaves_the_disk_alone),
		cmocka_unit_test(a_write_before_anything_was_recalled_shows_in_what_is_recalled),
		cmocka_unit_test(what_is_forgotten_on_request_is_not_recalled_from_the_disk),
		cmocka_unit_test(more_listings_than_memory_holds_are_on_the_disk),
		cmocka_unit_test(a_folder_that_cant_be_used_costs_memory_nothing),
		cmocka_unit_test(a_listing_in_use_is_swept_an_hour_after_it_was_last_asked_for_in_full),
		cmocka_unit_test(one_page_is_never_swept),
		cmocka_unit_test(a_sweep_that_fails_gives_others_a_turn),
		cmocka_unit_test(what_was_refreshed_and_written_during_a_sweep_stays),
		cmocka_unit_test(closing_ends_a_sweep),
		cmocka_unit_test(after_any_muddle_memory_tells_the_truth),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
