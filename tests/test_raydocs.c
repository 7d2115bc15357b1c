/* client/raydocs.c against the sandbox, whose switches are the contradictions of the documentation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/backend.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "tests/sandbox/sandbox.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

struct place {
	struct sandbox *box;
	struct backend *b;
	char *session;
	const char *naming, *token;
	struct call call;
};

static int read_credentials(void *arg, struct credentials *ret)
{
	const struct place *p = arg;

	*ret = (struct credentials){ .token = secret_new(p->token) };
	return ret->token ? 0 : -ENOENT;
}

static const char *option(void *arg, const char *name, int nth)
{
	const struct place *p = arg;

	return strcmp(name, "naming") == 0 && nth == 0 ? p->naming : NULL;
}

static void backend_begin_with(struct place *p, const char *naming, int rate_per_min)
{
	struct backend_config config = { .service = "raydocs", .url = sandbox_url(p->box, "api"),
					 .read_credentials = read_credentials, .option = option, .arg = p,
					 .rate_per_min = rate_per_min, .scratch_dir = "/tmp" };
	CLEANUP(buf_release) struct buf why = BUF(1000);

	backend_close(p->b);
	p->naming = naming;
	assert_int_equal(backend_open(&config, &why, &p->b), 0);
}

static void backend_begin(struct place *p, const char *naming)
{
	backend_begin_with(p, naming, -1);
}

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));
	const struct sandbox_options options = { 0 };

	log_open(LOG_LEVEL_ERROR, false);
	p->token = "token-one";
	assert_int_equal(sandbox_start(&options, &p->box), 0);
	assert_int_equal(sandbox_add_token(p->box, p->token, NULL), 0);
	assert_int_equal(sandbox_add_session(p->box, "Q1", &p->session), 0);
	backend_begin(p, NULL);
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct place *p = *state;

	backend_close(p->b);
	sandbox_stop(p->box);
	free(p->session);
	free(p);
	return 0;
}

/* ---- helpers ------------------------------------------------------------------------------------------------- */

static struct call *call_of(struct place *p)
{
	p->call = (struct call){ .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + 20000 };
	return &p->call;
}

static void control(struct place *p, const char *path, const char *json)
{
	CLEANUP(text_release) char *answer = NULL;
	int status = sandbox_control(p->box, "POST", path, json, &answer);

	if (status != 200)
		fail_msg("POST %s %s: %d %s", path, json, status, answer ? answer : "");
}

static void set(struct place *p, const char *name, const char *value)
{
	assert_int_equal(sandbox_set(p->box, name, value), 0);
}

static struct listing *list(struct place *p, struct listing *known)
{
	struct listing *l = NULL;
	int r = backend_list_documents(p->b, call_of(p), p->session, known, &l);

	if (r < 0)
		fail_msg("listing: %d, %s", r, p->call.fault.words);
	return l;
}

struct file {
	struct upload u;
	char sha256[65];
};

static void file_make(struct place *p, struct file *f, const char *name, const char *text)
{
	unsigned char hash[32];
	CLEANUP(buf_release) struct buf bytes = BUF(100000);

	buf_addf(&bytes, "%%PDF-1.4\n%s\n%%%%EOF\n", text);
	assert_int_equal(EVP_Digest(bytes.data, bytes.len, hash, NULL, EVP_sha256(), NULL), 1);
	for (int i = 0; i < 32; i++)
		snprintf(f->sha256 + 2 * i, 3, "%02x", hash[i]);
	f->u = (struct upload){ .session_id = p->session, .name = name, .sha256 = f->sha256, .size_bytes = (int64_t)bytes.len,
				.step = UPLOAD_SPOOLED, .fd = memfd_create("file", MFD_CLOEXEC) };
	assert_int_equal(pwrite(f->u.fd, bytes.data, bytes.len, 0), bytes.len);
}

static void file_end(struct file *f)
{
	free(f->u.ticket);
	listing_unref(f->u.document);
	close(f->u.fd);
}

static void file_store(struct place *p, struct file *f)
{
	assert_int_equal(backend_upload_sign(p->b, call_of(p), &f->u), 0);
	assert_int_equal(f->u.step, UPLOAD_SIGNED);
	int r = backend_upload_store(p->b, call_of(p), &f->u);
	if (r < 0)
		fail_msg("storing: %d, %s", r, p->call.fault.words);
	assert_int_equal(f->u.step, UPLOAD_STORED);
}

static int file_attach(struct place *p, struct file *f)
{
	struct upload *u = &f->u;
	int r = backend_upload_attach(p->b, call_of(p), &u, 1);

	return r < 0 ? r : u->error;
}

static int file_upload(struct place *p, struct file *f)
{
	file_store(p, f);
	return file_attach(p, f);
}

static const char *name_of(struct listing *l, int i, struct document *room)
{
	listing_get(l, i, room);
	return room->filename;
}

/* ---- listings ------------------------------------------------------------------------------------------------ */

static void every_shape_of_a_listing_is_read(void **state)
{
	struct place *p = *state;
	static const struct { const char *name, *value; } cases[] = {
		{ "shape.documents", "schema" }, { "shape.documents", "prose" }, { "shape.documents", "bare" },
		{ "shape.documents", "nometa" }, { "shape.wrap", "data" }, { "shape.size", "meta" }, { "shape.size", "both" },
		{ "shape.ids", "uuid" }, { "shape.ids", "decimal" }, { "shape.mime", "mime_type" }, { "shape.mime", "none" },
		{ "shape.source", "nested" }, { "shape.source", "both" }, { "shape.source", "none" }, { "shape.times", "micros" },
		{ "shape.extra", "on" }, { "shape.nulls", "on" }, { "list.order", "newest" }, { "shape.status", "table" },
	};

	assert_int_equal(sandbox_add_documents(p->box, p->session, 20), 0);
	for (size_t i = 0; i < COUNT(cases); i++) {
		set(p, cases[i].name, cases[i].value);
		CLEANUP(listing_release) struct listing *l = list(p, NULL);
		struct document doc;
		int at = -1;

		if (listing_count(l) != 20)
			fail_msg("%s=%s: %d documents", cases[i].name, cases[i].value, listing_count(l));
		for (int j = 0; j < 20; j++) {
			if (strcmp(name_of(l, j, &doc), "document-000001.pdf") == 0)
				at = j;
		}
		if (at < 0)
			fail_msg("%s=%s: the first document is missing", cases[i].name, cases[i].value);
		listing_get(l, at, &doc);
		if (!doc.sha256 || doc.size_bytes <= 0 || strcmp(doc.mime, "application/pdf") != 0 || doc.created_ms <= 0)
			fail_msg("%s=%s: sha256 %s, size %lld, mime %s, created %lld", cases[i].name, cases[i].value, doc.sha256,
				 (long long)doc.size_bytes, doc.mime, (long long)doc.created_ms);
		control(p, "/reset", NULL);
		assert_int_equal(sandbox_add_token(p->box, p->token, NULL), 0);
		free(p->session);
		assert_int_equal(sandbox_add_session(p->box, "Q1", &p->session), 0);
		assert_int_equal(sandbox_add_documents(p->box, p->session, 20), 0);
	}
}

static void a_size_that_nobody_says_is_unknown(void **state)
{
	struct place *p = *state;
	struct document doc;

	set(p, "shape.size", "none");
	assert_int_equal(sandbox_add_documents(p->box, p->session, 1), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	listing_get(l, 0, &doc);
	assert_int_equal(doc.size_bytes, -1);
}

static void a_lying_last_page_ends_in_a_stop(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 20), 0);
	set(p, "list.last_page_add", "1000");
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 20);
	assert_true(sandbox_count(p->box, "list") < 10);
}

static void a_last_page_that_comes_too_early_does_not_end_the_list(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 100), 0);
	set(p, "list.last_page_add", "-4");
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 100);
}

static void a_lying_total_costs_a_look_at_the_record_once(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 20), 0);
	set(p, "list.total_add", "7");
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	assert_int_equal(listing_count(first), 20);
	assert_int_equal(sandbox_count(p->box, "list"), 3); /* it says that there is a third page */
	assert_int_equal(sandbox_count(p->box, "get_session"), 1);
	CLEANUP(listing_release) struct listing *second = list(p, NULL);
	assert_int_equal(sandbox_count(p->box, "list"), 5);
	assert_int_equal(sandbox_count(p->box, "get_session"), 1);
	assert_int_equal(listing_count(second), 20);
}

static void where_the_record_is_cut_a_lying_total_costs_a_second_walk_once(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 20), 0);
	set(p, "list.total_add", "7");
	set(p, "session.embed", "10");
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	assert_int_equal(listing_count(first), 20);
	assert_int_equal(sandbox_count(p->box, "list"), 6);
	CLEANUP(listing_release) struct listing *second = list(p, NULL);
	assert_int_equal(sandbox_count(p->box, "list"), 8);
	assert_int_equal(listing_count(second), 20);
}

static void a_list_without_order_is_complete_all_the_same(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 40), 0);
	set(p, "list.order", "random");
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 40);
}

static void where_nothing_names_all_a_torn_walk_drops_nobody_who_was_known(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 200), 0);
	CLEANUP(listing_release) struct listing *known = list(p, NULL);
	set(p, "list.order", "random");
	set(p, "session.embed", "none");
	CLEANUP(listing_release) struct listing *l = list(p, known);
	assert_int_equal(listing_count(l), 200);
}

static void pages_that_are_empty_against_their_own_total_drop_nobody(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 10), 0);
	CLEANUP(listing_release) struct listing *known = list(p, NULL);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"list\",\"times\":0,\"action\":\"status\",\"status\":200,\"body\":{\"data\":[],"
					       "\"meta\":{\"current_page\":1,\"last_page\":1,\"per_page\":15,\"total\":10}}}"), 0);
	CLEANUP(listing_release) struct listing *l = list(p, known);
	assert_int_equal(listing_count(l), 10);
}

struct seen {
	int pages, documents;
};

static void on_page(void *arg, const struct listing *page)
{
	struct seen *seen = arg;

	seen->pages++;
	seen->documents += listing_count(page);
}

static void pages_are_shown_as_they_come(void **state)
{
	struct place *p = *state;
	struct seen seen = { 0 };
	struct call *call = call_of(p);
	CLEANUP(listing_release) struct listing *l = NULL;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 40), 0);
	call->on_page = on_page;
	call->on_page_arg = &seen;
	assert_int_equal(backend_list_documents(p->b, call, p->session, NULL, &l), 0);
	assert_int_equal(seen.pages, 3);
	assert_int_equal(seen.documents, 40);
}

static void several_pages_are_under_way_at_a_time(void **state)
{
	struct place *p = *state;
	char before[30];

	assert_int_equal(sandbox_add_documents(p->box, p->session, 300), 0);
	set(p, "latency_ms", "50");
	int64_t began_ms = clock_now_ms();
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 300);
	assert_int_equal(sandbox_count(p->box, "list"), 20);
	assert_true(clock_now_ms() - began_ms < 1000); /* one after the other it would be more */
	for (int i = 0; i < 300; i++) { /* and yet in the server's order */
		struct document doc;

		snprintf(before, sizeof(before), "document-%06d.pdf", i + 1);
		assert_string_equal(name_of(l, i, &doc), before);
	}
}

static void *list_in_thread(void *arg)
{
	struct place *p = arg;
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + 1000 };
	CLEANUP(listing_release) struct listing *l = NULL;

	(void)backend_list_documents(p->b, &call, p->session, NULL, &l); /* its time is up before it is done */
	return NULL;
}

static void while_the_budget_is_short_a_walk_has_few_pages_in_line(void **state)
{
	struct place *p = *state;
	CLEANUP(buf_release) struct buf told = BUF(1000);
	pthread_t thread;
	int waiting = 0;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 900), 0);
	backend_begin_with(p, NULL, 20);
	for (int i = 0; i < 12; i++)
		assert_int_equal(backend_check(p->b, call_of(p)), 0);
	assert_int_equal(pthread_create(&thread, NULL, list_in_thread, p), 0);
	for (int i = 0; i < 100 && !waiting; i++) {
		(void)usleep(20000);
		buf_clear(&told);
		backend_tell_state(p->b, &told);
		const char *at = strstr(buf_text(&told), "used in this minute, ");
		waiting = at ? (int)strtol(at + strlen("used in this minute, "), NULL, 10) : 0;
	}
	assert_in_range(waiting, 1, 3);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

static void a_page_that_fails_fails_the_listing_and_ends_what_is_under_way(void **state)
{
	struct place *p = *state;
	struct listing *l = NULL;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 300), 0);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"list\",\"nth\":4,\"action\":\"status\",\"status\":500}"), 0);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"list\",\"nth\":5,\"times\":0,\"action\":\"stall\"}"), 0);
	int64_t began_ms = clock_now_ms();
	struct call *call = call_of(p);
	call->deadline_ms = began_ms + 3000;
	int r = backend_list_documents(p->b, call, p->session, NULL, &l);
	assert_true(r == -EIO || r == -ETIMEDOUT); /* whichever of the two met the page read first */
	assert_int_equal(p->call.fault.kind, FAULT_AWAY);
	assert_in_range(clock_now_ms() - began_ms, 0, 3500);
}

static void a_page_that_fails_for_a_moment_does_not_end_the_walk(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 100), 0);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"list\",\"nth\":4,\"times\":2,\"action\":\"status\",\"status\":502}"), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 100);
	assert_int_equal(sandbox_count(p->box, "list"), 9);
}

static void an_unchanged_session_costs_one_request(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 40), 0);
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	control(p, "/requests/clear", NULL);
	CLEANUP(listing_release) struct listing *second = list(p, first);
	assert_int_equal(sandbox_count(p->box, NULL), 1);
	assert_true(listing_serial(first) == listing_serial(second));
	assert_true(listing_asked_ms(second) >= listing_asked_ms(first));
}

/* Lists anew with what is known, and how many requests that took. */
static struct listing *refresh(struct place *p, struct listing *known, long *ret_requests)
{
	control(p, "/requests/clear", NULL);
	struct listing *l = list(p, known);
	*ret_requests = sandbox_count(p->box, NULL);
	return l;
}

static void set_status(struct place *p, const char *id, const char *status)
{
	char json[200];

	(void)snprintf(json, sizeof(json), "{\"id\":\"%s\",\"status\":\"%s\"}", id, status);
	control(p, "/document", json);
}

static void detach(struct place *p, const char *id)
{
	char json[200];

	(void)snprintf(json, sizeof(json), "{\"session\":\"%s\",\"document\":\"%s\"}", p->session, id);
	control(p, "/detach", json);
}

static const char *id_at(const struct listing *l, int i)
{
	struct document doc;

	listing_get(l, i, &doc);
	return doc.id; /* the listing's text */
}

/* The same documents in the same condition as a walk finds them. */
static void assert_true_to_the_service(struct place *p, const struct listing *l)
{
	set(p, "list.order", "oldest"); /* a walk through one that changes with each request can't be sound */
	CLEANUP(listing_release) struct listing *all = list(p, NULL);

	assert_int_equal(listing_count(l), listing_count(all));
	for (int i = 0; i < listing_count(all); i++) {
		struct document is, should;
		listing_get(all, i, &should);
		int at = listing_find(l, should.id);
		assert_true(at >= 0);
		listing_get(l, at, &is);
		assert_string_equal(is.filename, should.filename);
		assert_string_equal(is.status, should.status);
		assert_string_equal(is.sha256, should.sha256);
		assert_int_equal(is.size_bytes, should.size_bytes);
		assert_int_equal(is.state, should.state);
	}
}

static void one_new_document_costs_two_requests_in_whatever_order_they_come(void **state)
{
	static const char *const orders[] = { "oldest", "newest", "random" };
	struct place *p = *state;
	long requests;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 300), 0);
	for (size_t i = 0; i < COUNT(orders); i++) {
		CLEANUP(text_release) char *id = NULL;
		CLEANUP(listing_release) struct listing *first = list(p, NULL);
		set(p, "list.order", orders[i]);
		assert_int_equal(sandbox_add_document(p->box, p->session, "new.pdf", orders[i], 6, &id), 0);
		CLEANUP(listing_release) struct listing *second = refresh(p, first, &requests);
		assert_int_equal(requests, 2);
		assert_true(listing_find(second, id) >= 0);
		assert_true(listing_serial(first) != listing_serial(second));
		assert_true(listing_asked_ms(second) >= listing_asked_ms(first));
		assert_true_to_the_service(p, second);
	}
}

static void a_document_that_left_costs_two_requests(void **state)
{
	struct place *p = *state;
	long requests;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 300), 0);
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	detach(p, id_at(first, 150));
	CLEANUP(listing_release) struct listing *second = refresh(p, first, &requests);
	assert_int_equal(requests, 2);
	assert_int_equal(listing_find(second, id_at(first, 150)), -1);
	assert_true_to_the_service(p, second);
}

static void what_is_under_way_costs_its_own_requests_and_not_a_walk(void **state)
{
	struct place *p = *state;
	long requests;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 3000), 0);
	set(p, "list.per_page", "30");
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	CLEANUP(listing_release) struct listing *second = NULL, *third = NULL;
	for (int i = 0; i < 20; i++) /* dropped one after the other: they stand together */
		set_status(p, id_at(first, 2975 + i), "processing");
	second = refresh(p, first, &requests);
	print_message("     20 of 3,000 under way, together: %ld requests\n", requests);
	assert_in_range(requests, 2, 3);
	assert_true_to_the_service(p, second);
	for (int i = 0; i < 20; i++)
		set_status(p, id_at(first, 7 + 140 * i), "processing");
	third = refresh(p, second, &requests);
	print_message("     20 of 3,000 under way, apart: %ld requests\n", requests);
	assert_in_range(requests, 2, 21);
	assert_true_to_the_service(p, third);
}

static void where_most_has_changed_it_is_walked(void **state)
{
	struct place *p = *state;
	long requests;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 45), 0);
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	for (int i = 0; i < 45; i += 3)
		set_status(p, id_at(first, i), "failed");
	CLEANUP(listing_release) struct listing *second = refresh(p, first, &requests);
	assert_in_range(requests, 2, 4);
	assert_true_to_the_service(p, second);
}

static void behind_a_record_that_is_cut_the_ends_and_what_is_under_way_are_looked_at(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *id = NULL;
	long requests;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 300), 0);
	set(p, "session.embed", "100");
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	CLEANUP(listing_release) struct listing *second = NULL, *third = NULL, *fourth = NULL;
	set_status(p, id_at(first, 200), "processing");
	{
		struct call *call = call_of(p);
		call->is_sweep = true;
		assert_int_equal(backend_list_documents(p->b, call, p->session, first, &second), 0);
	}
	assert_int_equal(sandbox_add_document(p->box, p->session, "new.pdf", "new", 3, &id), 0);
	set_status(p, id_at(first, 200), "parsed");
	third = refresh(p, second, &requests);
	assert_in_range(requests, 4, 5); /* the record, a page, the ends, the one under way */
	assert_true_to_the_service(p, third);
	/* Nothing new at the ends, and one fewer: a walk. */
	detach(p, id_at(first, 250));
	fourth = refresh(p, third, &requests);
	assert_true(requests > 20);
	assert_true_to_the_service(p, fourth);
}

static void a_sweep_asks_for_all_and_finds_what_the_record_does_not_tell(void **state)
{
	struct place *p = *state;
	CLEANUP(listing_release) struct listing *second = NULL, *third = NULL;
	char json[200];

	assert_int_equal(sandbox_add_documents(p->box, p->session, 60), 0);
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	struct call *call = call_of(p);
	call->is_sweep = true;
	call->urgency = URGENCY_BACKGROUND;
	control(p, "/requests/clear", NULL);
	assert_int_equal(backend_list_documents(p->b, call, p->session, first, &second), 0);
	assert_int_equal(sandbox_count(p->box, "list"), 4);
	assert_true(listing_serial(second) == listing_serial(first));
	(void)snprintf(json, sizeof(json), "{\"id\":\"%s\",\"fields\":{\"mime\":\"x/y\"}}", id_at(first, 30));
	control(p, "/document", json);
	assert_int_equal(backend_list_documents(p->b, call, p->session, first, &third), 0);
	struct document doc;
	listing_get(third, 30, &doc);
	assert_string_equal(doc.mime, "x/y");
}

/* Whatever happens between two refreshes, the cheap one tells the truth. */
static void refreshes_are_true_through_any_course_of_changes(void **state)
{
	static const char *const orders[] = { "oldest", "newest", "random" };
	static const char *const statuses[] = { "uploaded", "processing", "processed", "failed" };
	struct place *p = *state;
	unsigned seed = 20261122;
	long requests, cheap = 0;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 90), 0);
	CLEANUP(listing_release) struct listing *known = list(p, NULL);
	for (int turn = 0; turn < 60; turn++) {
		set(p, "list.order", orders[rand_r(&seed) % 3]);
		for (int n = rand_r(&seed) % 5; n > 0; n--) {
			CLEANUP(text_release) char *id = NULL;
			const char *some = id_at(known, rand_r(&seed) % listing_count(known));
			char text[30], json[200];
			switch (rand_r(&seed) % 4) {
			case 0:
				(void)snprintf(text, sizeof(text), "bytes %u", rand_r(&seed));
				assert_int_equal(sandbox_add_document(p->box, p->session, "n.pdf", text, strlen(text), &id), 0);
				break;
			case 1:
				(void)snprintf(json, sizeof(json), "{\"session\":\"%s\",\"document\":\"%s\"}", p->session, some);
				(void)sandbox_control(p->box, "POST", "/detach", json, NULL); /* may have left already */
				break;
			case 2:
				set_status(p, some, statuses[rand_r(&seed) % 4]);
				break;
			default:
				(void)snprintf(json, sizeof(json), "{\"document\":\"%s\",\"name\":\"r%u.pdf\"}", some, rand_r(&seed) % 100);
				control(p, "/rename", json);
			}
		}
		struct listing *next = refresh(p, known, &requests);
		cheap += requests < 6;
		listing_unref(known);
		known = next;
		assert_true_to_the_service(p, known);
	}
	assert_true(cheap > 20);
}

static void a_record_that_names_fewer_documents_is_not_believed(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 40), 0);
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	set(p, "session.embed", "10");
	CLEANUP(listing_release) struct listing *second = list(p, first);
	assert_int_equal(listing_count(second), 40);
	assert_true(listing_serial(first) == listing_serial(second));
}

static void a_record_with_words_of_its_own_costs_one_walk(void **state)
{
	struct place *p = *state;
	CLEANUP(buf_release) struct buf rule = BUF(100000);
	long requests;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 60), 0);
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	for (int i = 0; i < 60; i++) {
		struct document d;
		listing_get(first, i, &d);
		set_status(p, d.id, "processed");
	}
	CLEANUP(listing_release) struct listing *processed = list(p, first);
	buf_addf(&rule, "{\"route\":\"get_session\",\"times\":0,\"action\":\"status\",\"status\":200,\"body\":{\"id\":\"%s\",\"name\":\"Q2\","
			"\"documents\":[", p->session);
	for (int i = 0; i < 60; i++) {
		struct document d;
		listing_get(processed, i, &d);
		buf_addf(&rule, "%s{\"id\":\"%s\",\"filename\":\"%s\",\"status\":\"ready\"}", i ? "," : "", d.id, d.filename);
	}
	buf_add(&rule, "]}}");
	assert_int_equal(sandbox_fault(p->box, buf_text(&rule)), 0);
	CLEANUP(listing_release) struct listing *second = refresh(p, processed, &requests);
	assert_int_equal(requests, 5);
	CLEANUP(listing_release) struct listing *third = refresh(p, second, &requests);
	assert_int_equal(requests, 1);
	assert_true(listing_serial(processed) == listing_serial(third));
}

static void on_named_session(void *arg, const struct session *session)
{
	char *name = arg;

	(void)snprintf(name, 40, "%s", session->name);
}

static void a_refresh_tells_the_name_of_the_session_too(void **state)
{
	struct place *p = *state;
	struct listing *l = NULL;
	char json[200], name[40] = "";

	assert_int_equal(sandbox_add_documents(p->box, p->session, 40), 0);
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	(void)snprintf(json, sizeof(json), "{\"session\":\"%s\",\"name\":\"Q2\"}", p->session);
	control(p, "/rename", json);
	struct call *call = call_of(p);
	call->on_session = on_named_session;
	call->on_session_arg = name;
	assert_int_equal(backend_list_documents(p->b, call, p->session, first, &l), 0);
	listing_unref(l);
	assert_string_equal(name, "Q2");
}

static void the_record_of_a_document_is_kept(void **state)
{
	struct place *p = *state;
	CLEANUP(buf_release) struct buf json = BUF(100000);

	assert_int_equal(sandbox_add_documents(p->box, p->session, 1), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_read_json(l, 0, &json), 0);
	assert_non_null(strstr(buf_text(&json), "\"filename\""));
}

static void states_follow_the_words_of_the_service(void **state)
{
	struct place *p = *state;
	static const struct { const char *status; enum document_state state; } cases[] = {
		{ "uploaded", STATE_STORED }, { "queued", STATE_PROCESSING }, { "pending", STATE_PROCESSING },
		{ "parsing", STATE_PROCESSING }, { "processing", STATE_PROCESSING }, { "parsed", STATE_READY },
		{ "processed", STATE_READY }, { "ready", STATE_READY }, { "failed", STATE_FAILED },
		{ "defrobnicated", STATE_PROCESSING },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(buf_release) struct buf json = BUF(1000);

		buf_addf(&json, "{\"session\":\"%s\",\"filename\":\"f%zu.pdf\",\"text\":\"%zu\",\"fields\":{\"status\":\"%s\"}}",
			 p->session, i, i, cases[i].status);
		control(p, "/document", buf_text(&json));
	}
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), COUNT(cases));
	for (int i = 0; i < listing_count(l); i++) {
		struct document doc;

		listing_get(l, i, &doc);
		size_t at = (size_t)atol(doc.filename + 1);
		assert_string_equal(doc.status, cases[at].status);
		if (doc.state != cases[at].state)
			fail_msg("'%s' is %s", doc.status, document_state_word(doc.state));
	}
}

static void what_is_no_document_is_refused_without_an_abort(void **state)
{
	struct place *p = *state;
	static const char *const bodies[] = {
		"{\"data\":[{\"id\":{},\"filename\":\"x\"}]}", "{\"data\":[17]}", "{\"data\":{}}", "[[]]", "\"x\"", "17",
		"{\"data\":[{\"id\":1e300,\"filename\":\"x\"}]}", "{\"data\":[{\"id\":\"a\",\"filename\":[]}]}",
		"{\"data\":[{\"id\":\"a\",\"parsings\":7}]}", "{\"data\":[{\"id\":\"a\",\"size\":\"many\"}]}", "{", "<html>", "null",
	};

	for (size_t i = 0; i < COUNT(bodies); i++) {
		CLEANUP(buf_release) struct buf rule = BUF(1000);
		struct listing *l = NULL;

		buf_add(&rule, "{\"route\":\"list\",\"action\":\"status\",\"status\":200,\"body\":\"");
		for (const char *c = bodies[i]; *c; c++)
			buf_addf(&rule, *c == '"' ? "\\%c" : "%c", *c);
		buf_add(&rule, "\"}");
		control(p, "/fault", buf_text(&rule));
		int r = backend_list_documents(p->b, call_of(p), p->session, NULL, &l);
		if (r != -EPROTO || p->call.fault.kind != FAULT_AWAY)
			fail_msg("%s: %d", bodies[i], r);
	}
}

static void a_session_that_is_gone_is_said_to_be(void **state)
{
	struct place *p = *state;
	struct listing *l = NULL;
	struct session s = { 0 };

	assert_int_equal(backend_list_documents(p->b, call_of(p), "20000000-0000-4000-8000-00000000dead", NULL, &l), -ENOENT);
	assert_int_equal(p->call.fault.kind, FAULT_GONE);
	assert_int_equal(backend_get_session(p->b, call_of(p), "../x", &s), -ENOENT);
	assert_int_equal(backend_get_session(p->b, call_of(p), "20000000-0000-4000-8000-00000000dead", &s), -ENOENT);
}

/* ---- sessions ------------------------------------------------------------------------------------------------ */

static void a_session_knows_its_workspace_by_its_template(void **state)
{
	struct place *p = *state;

	for (int i = 0; i < 2; i++) {
		CLEANUP(session_release) struct session s = { 0 };

		assert_int_equal(backend_get_session(p->b, call_of(p), p->session, &s), 0);
		assert_string_equal(s.name, "Q1");
		assert_string_equal(s.workspace_id, "7");
		assert_non_null(s.template_id);
		assert_true(s.created_ms > 0);
	}
	assert_int_equal(sandbox_count(p->box, "get_template"), 1);
}

/* The session's record; how many requests for templates that took. */
static long ask_session(struct place *p, const char *id, struct session *ret)
{
	control(p, "/requests/clear", NULL);
	assert_int_equal(backend_get_session(p->b, call_of(p), id, ret), 0);
	assert_int_equal(sandbox_count(p->box, "get_session"), 1);
	return sandbox_count(p->box, "get_template");
}

static void what_an_earlier_run_learned_of_a_session_is_not_asked_again(void **state)
{
	static const char other[] = "aaaaaaaa-0000-4000-8000-000000000001", moved[] = "aaaaaaaa-0000-4000-8000-000000000002";
	struct place *p = *state;
	CLEANUP(session_release) struct session first = { 0 }, again = { 0 }, sibling = { 0 }, stranger = { 0 }, later = { 0 };

	assert_int_equal(ask_session(p, p->session, &first), 1);
	backend_begin(p, NULL);
	backend_learn_session(p->b, &first);
	assert_int_equal(ask_session(p, p->session, &again), 0);
	assert_string_equal(again.workspace_id, "7");
	assert_string_equal(again.template_id, first.template_id);
	/* A new session of it may have to be told apart by the template's name, and one of another template has another workspace. */
	char json[300];
	(void)snprintf(json, sizeof(json), "{\"id\":\"%s\",\"name\":\"Q2\",\"template\":\"%s\"}", other, first.template_id);
	control(p, "/session", json);
	assert_int_equal(ask_session(p, other, &sibling), 1);
	assert_string_equal(sibling.workspace_id, "7");
	assert_string_equal(sibling.qualifier, first.qualifier);
	control(p, "/workspace", "{\"id\":8,\"name\":\"Other\"}");
	control(p, "/template", "{\"id\":\"bbbbbbbb-0000-4000-8000-000000000001\",\"name\":\"T2\",\"workspace\":8}");
	(void)snprintf(json, sizeof(json), "{\"id\":\"%s\",\"name\":\"Q3\",\"template\":\"%s\"}", moved,
		       "bbbbbbbb-0000-4000-8000-000000000001");
	control(p, "/session", json);
	free(again.id);
	again.id = strdup(moved); /* learned while it was of the first template */
	backend_learn_session(p->b, &again);
	assert_int_equal(ask_session(p, moved, &stranger), 1);
	assert_string_equal(stranger.workspace_id, "8");
	backend_forget(p->b, NULL);
	assert_int_equal(ask_session(p, p->session, &later), 1);
	assert_string_equal(later.workspace_id, "7");
}

static void a_workspace_that_nobody_told_is_asked_for_again(void **state)
{
	struct place *p = *state;
	CLEANUP(session_release) struct session first = { 0 }, again = { 0 };

	assert_int_equal(sandbox_add_token(p->box, "token-two", "sessions-read"), 0);
	p->token = "token-two";
	assert_int_equal(ask_session(p, p->session, &first), 1);
	assert_null(first.workspace_id);
	p->token = "token-one"; /* has the right */
	backend_begin(p, NULL);
	backend_learn_session(p->b, &first);
	assert_int_equal(ask_session(p, p->session, &again), 1);
	assert_string_equal(again.workspace_id, "7");
}

struct seen_session {
	int count;
	struct session last;
};

static void note_session(void *arg, const struct session *session)
{
	struct seen_session *seen = arg;

	seen->count++;
	session_release(&seen->last);
	assert_int_equal(session_copy(session, &seen->last), 0);
}

static void a_refresh_brings_the_sessions_record_along(void **state)
{
	struct place *p = *state;
	struct seen_session seen = { 0 };
	CLEANUP(session_release) struct session first = { 0 };

	assert_int_equal(sandbox_add_documents(p->box, p->session, 40), 0);
	CLEANUP(listing_release) struct listing *known = list(p, NULL);
	for (int i = 0; i < 3; i++) {
		CLEANUP(listing_release) struct listing *l = NULL;

		if (i == 1)
			assert_int_equal(backend_get_session(p->b, call_of(p), p->session, &first), 0);
		if (i == 2) {
			char json[200];
			(void)snprintf(json, sizeof(json), "{\"session\":\"%s\",\"name\":\"Renamed\"}", p->session);
			control(p, "/rename", json);
		}
		struct call *call = call_of(p);
		call->on_session = note_session;
		call->on_session_arg = &seen;
		control(p, "/requests/clear", NULL);
		assert_int_equal(backend_list_documents(p->b, call, p->session, known, &l), 0);
		assert_int_equal(sandbox_count(p->box, NULL), 1);
		/* Its workspace is not asked for on the way: it is told once it is known. */
		assert_int_equal(seen.count, i + 1);
		assert_true((seen.last.workspace_id != NULL) == (i > 0));
	}
	assert_string_equal(seen.last.name, "Renamed");
	assert_string_equal(seen.last.workspace_id, "7");
	session_release(&seen.last);
}

static void note_same(void *arg, struct listing *renewed)
{
	*(struct listing **)arg = listing_ref(renewed);
}

/* What a session's record tells of a listing of it: the same said again, or NULL. */
static struct listing *same_by_record(struct place *p, struct listing *known)
{
	CLEANUP(session_release) struct session s = { 0 };
	struct listing *same = NULL;
	struct call *call = call_of(p);

	call->known = known;
	call->on_same = note_same;
	call->on_same_arg = &same;
	control(p, "/requests/clear", NULL);
	assert_int_equal(backend_get_session(p->b, call, p->session, &s), 0);
	assert_int_equal(sandbox_count(p->box, "list"), 0);
	assert_int_equal(sandbox_count(p->box, "get_document"), 0);
	return same;
}

static void a_sessions_record_tells_whether_a_listing_of_several_pages_still_holds(void **state)
{
	struct place *p = *state;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 15), 0);
	CLEANUP(listing_release) struct listing *small = list(p, NULL);
	assert_null(same_by_record(p, small)); /* what fits into one page is asked in full */
	assert_int_equal(sandbox_add_documents(p->box, p->session, 25), 0);
	assert_null(same_by_record(p, NULL));
	for (int i = 0; i < 3; i++) {
		CLEANUP(listing_release) struct listing *known = list(p, NULL);
		CLEANUP(listing_release) struct listing *same = same_by_record(p, known);

		assert_non_null(same);
		assert_true(listing_serial(same) == listing_serial(known));
		assert_true(listing_asked_ms(same) >= listing_asked_ms(known));
		if (i == 0)
			assert_int_equal(sandbox_add_documents(p->box, p->session, 1), 0);
		else if (i == 1)
			detach(p, id_at(known, 3));
		else
			set_status(p, id_at(known, 3), "failed");
		CLEANUP(listing_release) struct listing *changed = same_by_record(p, known);
		assert_null(changed);
	}
}

static void a_missing_right_to_templates_leaves_the_workspace_unknown(void **state)
{
	struct place *p = *state;
	CLEANUP(session_release) struct session s = { 0 };

	assert_int_equal(sandbox_add_token(p->box, "token-two", "sessions-read"), 0);
	p->token = "token-two";
	assert_int_equal(backend_get_session(p->b, call_of(p), p->session, &s), 0);
	assert_null(s.workspace_id);
}

static void sessions_are_guessed_with_three_requests_at_most(void **state)
{
	struct place *p = *state;
	struct session_list none = { 0 };

	assert_int_equal(backend_list_sessions(p->b, call_of(p), &none), -EOPNOTSUPP);
	assert_true(sandbox_count(p->box, NULL) <= 3);
	static const char *const names[] = { "sessions.list", "sessions.of_workspace" };
	for (size_t i = 0; i < COUNT(names); i++) {
		CLEANUP(session_list_release) struct session_list found = { 0 };

		set(p, names[i], "on");
		assert_int_equal(backend_list_sessions(p->b, call_of(p), &found), 0);
		assert_int_equal(found.count, 1);
		assert_string_equal(found.items[0].id, p->session);
		set(p, names[i], "off");
	}
}

static void templates_are_listed_with_their_workspaces(void **state)
{
	struct place *p = *state;
	CLEANUP(template_list_release) struct template_list found = { 0 };

	for (int i = 0; i < 20; i++) {
		char json[100];

		snprintf(json, sizeof(json), "{\"name\":\"T%d\",\"workspace\":7}", i);
		control(p, "/template", json);
	}
	assert_int_equal(backend_list_templates(p->b, call_of(p), &found), 0);
	assert_int_equal(found.count, 21);
	assert_string_equal(found.items[0].workspace_id, "7");
	assert_string_equal(found.items[0].workspace_name, "Accounts payable");
}

static void a_session_can_be_made(void **state)
{
	struct place *p = *state;
	CLEANUP(session_release) struct session first = { 0 };
	CLEANUP(session_release) struct session made = { 0 };

	assert_int_equal(backend_get_session(p->b, call_of(p), p->session, &first), 0);
	assert_int_equal(backend_create_session(p->b, call_of(p), first.template_id, "M\xc3\xa4rz \"24\"/7", &made), 0);
	assert_string_equal(made.name, "M\xc3\xa4rz \"24\"/7");
	assert_string_equal(made.workspace_id, "7");
	assert_int_equal(backend_create_session(p->b, call_of(p), NULL, "x", &made), -EINVAL);
}

static void an_id_is_found_in_a_pasted_address(void **state)
{
	struct place *p = *state;
	static const struct { const char *text, *id; } cases[] = {
		{ "20000000-0000-4000-8000-000000000001", "20000000-0000-4000-8000-000000000001" },
		{ "https://app.example/w/30000000-0000-4000-8000-000000000009/sessions/20000000-0000-4000-8000-00000000ABCD?x=1",
		  "20000000-0000-4000-8000-00000000abcd" },
		{ "https://app.example/sessions/20000000-0000-4000-8000-000000000001/documents/30000000-0000-4000-8000-000000000002",
		  "20000000-0000-4000-8000-000000000001" },
		{ "see <20000000-0000-4000-8000-000000000001>.", "20000000-0000-4000-8000-000000000001" },
		{ "x20000000-0000-4000-8000-000000000001", NULL },
		{ "20000000-0000-4000-8000-0000000000012", NULL },
		{ "", NULL },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(text_release) char *id = NULL;
		int r = backend_find_session_id(p->b, cases[i].text, &id);

		if (r != (cases[i].id ? 0 : -ENOENT) || (cases[i].id && strcmp(id, cases[i].id) != 0))
			fail_msg("'%s': %d %s", cases[i].text, r, id ? id : "");
	}
}

/* ---- documents ----------------------------------------------------------------------------------------------- */

static void bytes_come_without_the_token(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *id = NULL;
	CLEANUP(text_release) char *log = NULL;
	CLEANUP(fd_close) int fd = memfd_create("bytes", MFD_CLOEXEC);
	char bytes[20] = "";

	assert_int_equal(sandbox_add_document(p->box, p->session, "a.pdf", "%PDF-1.4 hello", 14, &id), 0);
	set(p, "storage.redirect", "on");
	assert_int_equal(backend_fetch_document(p->b, call_of(p), p->session, id, fd), 0);
	assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), 14);
	assert_memory_equal(bytes, "%PDF-1.4 hello", 14);
	assert_int_equal(sandbox_control(p->box, "GET", "/requests?route=download", NULL, &log), 200);
	assert_non_null(strstr(log, "\"had_authorization\":false"));
	assert_null(strstr(log, "\"had_authorization\":true"));
}

static void an_ended_link_is_asked_for_anew_once(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *id = NULL;
	CLEANUP(fd_close) int fd = memfd_create("bytes", MFD_CLOEXEC);

	assert_int_equal(sandbox_add_document(p->box, p->session, "a.pdf", "%PDF-1.4 hello", 14, &id), 0);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"download\",\"action\":\"status\",\"status\":403,\"body\":\"<Error/>\"}"), 0);
	assert_int_equal(backend_fetch_document(p->b, call_of(p), p->session, id, fd), 0);
	assert_int_equal(sandbox_count(p->box, "link"), 2);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"download\",\"times\":0,\"action\":\"status\",\"status\":403}"), 0);
	assert_int_equal(backend_fetch_document(p->b, call_of(p), p->session, id, fd), -EACCES);
	assert_int_equal(p->call.fault.kind, FAULT_KEY);
	assert_int_equal(sandbox_count(p->box, "link"), 4);
}

static void a_document_is_attached_and_detached_by_id(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *id = NULL;
	CLEANUP(text_release) char *other = NULL;
	CLEANUP(listing_release) struct listing *there = NULL;
	struct document doc;

	assert_int_equal(sandbox_add_document(p->box, p->session, "a.pdf", "%PDF-1.4 hello", 14, &id), 0);
	assert_int_equal(sandbox_add_session(p->box, "Q2", &other), 0);
	const char *ids[] = { id };
	assert_int_equal(backend_attach(p->b, call_of(p), other, p->session, ids, 1, &there), 0);
	assert_int_equal(listing_count(there), 1);
	listing_get(there, 0, &doc);
	assert_string_equal(doc.id, id);
	assert_string_equal(doc.filename, "a.pdf");
	assert_int_equal(backend_detach(p->b, call_of(p), other, id), 0);
	assert_int_equal(backend_detach(p->b, call_of(p), other, id), -ENOENT);
}

static void attaching_across_workspaces_is_exdev(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *id = NULL;
	struct listing *there = NULL;

	control(p, "/workspace", "{\"id\":8,\"name\":\"Other\",\"members\":[\"demo\"]}");
	control(p, "/template", "{\"id\":\"10000000-0000-4000-8000-0000000000aa\",\"name\":\"T\",\"workspace\":8}");
	control(p, "/session", "{\"id\":\"20000000-0000-4000-8000-0000000000aa\",\"name\":\"S\",\"template\":\"10000000-0000-4000-8000-0000000000aa\"}");
	assert_int_equal(sandbox_add_document(p->box, p->session, "a.pdf", "%PDF-1.4 hello", 14, &id), 0);
	const char *ids[] = { id };
	assert_int_equal(backend_attach(p->b, call_of(p), "20000000-0000-4000-8000-0000000000aa", p->session, ids, 1, &there), -EXDEV);
}

static void a_run_is_asked_for_once(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *id = NULL;

	assert_int_equal(backend_run(p->b, call_of(p), p->session), -EINVAL); /* nothing in it */
	assert_true(strlen(p->call.fault.words) > 0);
	assert_int_equal(sandbox_add_document(p->box, p->session, "a.pdf", "%PDF-1.4 hello", 14, &id), 0);
	assert_int_equal(backend_run(p->b, call_of(p), p->session), 0);
}

/* ---- uploads ------------------------------------------------------------------------------------------------- */

static void a_file_becomes_a_document_whatever_the_answers_look_like(void **state)
{
	struct place *p = *state;
	static const struct { const char *name, *value; } cases[] = {
		{ "sign.status", "201" }, { "sign.headers", "list" }, { "sign.headers", "empty" }, { "sign.acl", "on" },
		{ "sign.content_type", "required" }, { "sign.key", "name" }, { "upload.status", "201" }, { "shape.wrap", "data" },
		{ "shape.nulls", "on" }, { "shape.ids", "uuid" }, { "shape.extra", "on" }, { "upload.names", "none" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct file f;
		char text[50];

		set(p, cases[i].name, cases[i].value);
		snprintf(text, sizeof(text), "case %zu", i);
		file_make(p, &f, "invoice.pdf", text);
		int r = file_upload(p, &f);
		if (r < 0)
			fail_msg("%s=%s: %d, %s", cases[i].name, cases[i].value, r, f.u.fault.words);
		assert_int_equal(f.u.step, UPLOAD_ATTACHED);
		assert_int_equal(listing_count(f.u.document), 1);
		file_end(&f);
	}
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), COUNT(cases));
}

static void a_stored_ticket_holds_no_signed_address(void **state)
{
	struct place *p = *state;
	struct file f;

	file_make(p, &f, "invoice.pdf", "x");
	assert_int_equal(backend_upload_sign(p->b, call_of(p), &f.u), 0);
	assert_non_null(strstr(f.u.ticket, "http"));
	assert_int_equal(backend_upload_store(p->b, call_of(p), &f.u), 0);
	assert_null(strstr(f.u.ticket, "http"));
	assert_null(strchr(f.u.ticket, '\n'));
	file_end(&f);
}

static void a_link_that_grew_old_is_renewed_on_the_way(void **state)
{
	struct place *p = *state;
	struct file f;

	file_make(p, &f, "invoice.pdf", "x");
	assert_int_equal(backend_upload_sign(p->b, call_of(p), &f.u), 0);
	assert_int_equal(sandbox_advance(p->box, 6 * 60 * 1000), 0);
	f.u.ticket_wall_ms -= 6 * 60 * 1000;
	assert_int_equal(backend_upload_store(p->b, call_of(p), &f.u), 0);
	assert_int_equal(file_attach(p, &f), 0);
	file_end(&f);
}

static void storage_that_refuses_a_link_wants_another_key(void **state)
{
	struct place *p = *state;
	struct file f;

	file_make(p, &f, "invoice.pdf", "x");
	assert_int_equal(backend_upload_sign(p->b, call_of(p), &f.u), 0);
	assert_int_equal(sandbox_advance(p->box, 6 * 60 * 1000), 0);
	assert_int_equal(backend_upload_store(p->b, call_of(p), &f.u), -EACCES);
	assert_int_equal(p->call.fault.kind, FAULT_KEY);
	assert_int_equal(f.u.step, UPLOAD_SIGNED);
	file_end(&f);
}

static void a_batch_is_matched_by_hash_whatever_its_order(void **state)
{
	struct place *p = *state;
	struct file files[5];
	struct upload *us[5];

	set(p, "upload.order", "reverse");
	for (int i = 0; i < 5; i++) {
		char text[20];

		snprintf(text, sizeof(text), "file %d", i);
		file_make(p, &files[i], "invoice.pdf", text);
		file_store(p, &files[i]);
		us[i] = &files[i].u;
	}
	assert_int_equal(backend_upload_attach(p->b, call_of(p), us, 5), 0);
	assert_int_equal(sandbox_count(p->box, "upload"), 1);
	for (int i = 0; i < 5; i++) {
		struct document doc;

		assert_int_equal(us[i]->error, 0);
		listing_get(us[i]->document, 0, &doc);
		assert_string_equal(doc.sha256, files[i].sha256);
		file_end(&files[i]);
	}
}

static void a_refused_key_blames_its_own_upload_alone(void **state)
{
	struct place *p = *state;
	struct file files[3];
	struct upload *us[3];

	for (int i = 0; i < 3; i++) {
		char text[20];

		snprintf(text, sizeof(text), "file %d", i);
		file_make(p, &files[i], "invoice.pdf", text);
		file_store(p, &files[i]);
		us[i] = &files[i].u;
	}
	free(us[1]->ticket);
	us[1]->ticket = strdup("{\"key\":\"tmp/never\"}");
	assert_int_equal(backend_upload_attach(p->b, call_of(p), us, 3), 0);
	assert_int_equal(us[0]->error, -EAGAIN);
	assert_int_equal(us[0]->fault.kind, FAULT_NONE);
	assert_int_equal(us[1]->fault.kind, FAULT_KEY);
	assert_true(strlen(us[1]->fault.words) > 0);
	assert_int_equal(us[2]->error, -EAGAIN);
	struct upload *rest[] = { us[0], us[2] };
	assert_int_equal(backend_upload_attach(p->b, call_of(p), rest, 2), 0);
	assert_int_equal(us[0]->error, 0);
	assert_int_equal(us[2]->error, 0);
	for (int i = 0; i < 3; i++)
		file_end(&files[i]);
}

static void what_a_refused_batch_took_all_the_same_is_seen(void **state)
{
	struct place *p = *state;
	struct file files[3];
	struct upload *us[3];

	set(p, "upload.partial", "on");
	set(p, "dedup", "off"); /* a second attempt would make a second document */
	for (int i = 0; i < 3; i++) {
		char text[20];

		snprintf(text, sizeof(text), "file %d", i);
		file_make(p, &files[i], "invoice.pdf", text);
		file_store(p, &files[i]);
		us[i] = &files[i].u;
	}
	free(us[1]->ticket);
	us[1]->ticket = strdup("{\"key\":\"tmp/never\"}");
	assert_int_equal(backend_upload_attach(p->b, call_of(p), us, 3), 0);
	assert_int_equal(us[0]->error, 0);
	assert_int_equal(us[0]->step, UPLOAD_ATTACHED);
	assert_int_equal(us[1]->fault.kind, FAULT_KEY);
	assert_int_equal(us[2]->error, 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 2);
	for (int i = 0; i < 3; i++)
		file_end(&files[i]);
}

static void a_refused_batch_that_names_nobody_is_to_be_split(void **state)
{
	struct place *p = *state;
	struct file files[2];
	struct upload *us[2];

	for (int i = 0; i < 2; i++) {
		file_make(p, &files[i], "invoice.pdf", i ? "b" : "a");
		file_store(p, &files[i]);
		us[i] = &files[i].u;
	}
	static const char rule[] = "{\"route\":\"upload\",\"action\":\"status\",\"status\":422,\"body\":{\"message\":\"No.\"}}";
	assert_int_equal(sandbox_fault(p->box, rule), 0);
	assert_int_equal(backend_upload_attach(p->b, call_of(p), us, 2), -EAGAIN);
	assert_int_equal(us[0]->fault.kind, FAULT_NONE);
	assert_int_equal(us[1]->error, -EAGAIN);
	assert_int_equal(sandbox_fault(p->box, rule), 0);
	assert_int_equal(backend_upload_attach(p->b, call_of(p), us, 1), -EINVAL);
	assert_int_equal(us[0]->fault.kind, FAULT_INVALID);
	assert_string_equal(us[0]->fault.words, "No.");
	for (int i = 0; i < 2; i++)
		file_end(&files[i]);
}

static void a_lost_last_answer_may_have_had_its_effect_and_is_found(void **state)
{
	struct place *p = *state;
	struct file f;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 30), 0);
	file_make(p, &f, "invoice.pdf", "x");
	file_store(p, &f);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"upload\",\"when\":\"after\",\"action\":\"close\"}"), 0);
	assert_int_equal(file_attach(p, &f), -EIO);
	assert_int_equal(f.u.fault.kind, FAULT_AWAY);
	assert_true(f.u.fault.may_have_happened);
	assert_int_equal(sandbox_count(p->box, "upload"), 1); /* not repeated behind our back */
	f.u.is_retry = true;
	assert_int_equal(backend_upload_find(p->b, call_of(p), &f.u, NULL, 0), 0);
	assert_int_equal(f.u.step, UPLOAD_ATTACHED);
	file_end(&f);
}

static void what_is_not_there_is_not_found(void **state)
{
	struct place *p = *state;
	struct file f;

	assert_int_equal(sandbox_add_documents(p->box, p->session, 30), 0);
	file_make(p, &f, "invoice.pdf", "x");
	assert_int_equal(backend_upload_find(p->b, call_of(p), &f.u, NULL, 0), -ENOENT);
	assert_int_equal(p->call.fault.kind, FAULT_NONE);
	f.u.session_id = "20000000-0000-4000-8000-00000000dead";
	assert_int_equal(backend_upload_find(p->b, call_of(p), &f.u, NULL, 0), -ENOENT);
	assert_int_equal(p->call.fault.kind, FAULT_GONE);
	file_end(&f);
}

static void an_answer_without_documents_is_looked_for(void **state)
{
	struct place *p = *state;
	struct file f;

	file_make(p, &f, "invoice.pdf", "x");
	file_store(p, &f);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"upload\",\"when\":\"after\",\"action\":\"status\",\"status\":200,\"body\":{}}"), 0);
	assert_int_equal(file_attach(p, &f), 0);
	assert_int_equal(f.u.step, UPLOAD_ATTACHED);
	file_end(&f);
}

static void a_missing_right_is_named(void **state)
{
	struct place *p = *state;
	struct file f;

	assert_int_equal(sandbox_add_token(p->box, "token-two", "sessions-read"), 0);
	p->token = "token-two";
	file_make(p, &f, "invoice.pdf", "x");
	file_store(p, &f);
	assert_int_equal(file_attach(p, &f), -EACCES);
	assert_int_equal(f.u.fault.kind, FAULT_FORBIDDEN);
	assert_string_equal(f.u.fault.ability, "sessions-write");
	file_end(&f);
}

static const char *uploaded_name(struct place *p, const char *name, const char *text, char room[100])
{
	struct document doc;
	struct file f;

	file_make(p, &f, name, text);
	int r = file_upload(p, &f);
	if (r < 0)
		fail_msg("%s: %d, %s", name, r, f.u.fault.words);
	listing_get(f.u.document, 0, &doc);
	snprintf(room, 100, "%s", doc.filename);
	file_end(&f);
	return room;
}

static void by_way_of_the_workspace_the_name_is_kept(void **state)
{
	struct place *p = *state;
	char room[100];

	backend_begin(p, "workspace");
	assert_string_equal(uploaded_name(p, "M\xc3\xa4rz.pdf", "one", room), "M\xc3\xa4rz.pdf");
	assert_int_equal(sandbox_count(p->box, "upload"), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 1);
}

static void auto_changes_over_once_it_has_seen_a_name_lost(void **state)
{
	struct place *p = *state;
	char room[100];

	assert_string_not_equal(uploaded_name(p, "one.pdf", "one", room), "one.pdf");
	assert_string_equal(uploaded_name(p, "two.pdf", "two", room), "two.pdf");
	assert_int_equal(sandbox_count(p->box, "upload"), 1);
	assert_int_equal(sandbox_count(p->box, "create_document"), 1);
}

static void auto_goes_back_where_the_token_may_not(void **state)
{
	struct place *p = *state;
	char room[100];

	assert_int_equal(sandbox_add_token(p->box, "token-two", "sessions-read,sessions-write,templates-read"), 0);
	p->token = "token-two";
	for (int i = 0; i < 3; i++) {
		snprintf(room, sizeof(room), "%d", i);
		(void)uploaded_name(p, "one.pdf", room, room);
	}
	assert_int_equal(sandbox_count(p->box, "upload"), 3);
	assert_int_equal(sandbox_count(p->box, "create_document"), 1);
}

static void a_key_used_up_by_a_lost_answer_is_no_second_document(void **state)
{
	struct place *p = *state;
	struct file f;

	backend_begin(p, "workspace");
	file_make(p, &f, "one.pdf", "x");
	file_store(p, &f);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"create_document\",\"when\":\"after\",\"action\":\"close\"}"), 0);
	assert_int_equal(file_attach(p, &f), -EIO);
	assert_true(f.u.fault.may_have_happened);
	f.u.is_retry = true;
	assert_int_equal(backend_upload_find(p->b, call_of(p), &f.u, NULL, 0), -ENOENT); /* made, not attached */
	assert_int_equal(file_attach(p, &f), -EINVAL);
	assert_int_equal(f.u.fault.kind, FAULT_KEY); /* sign again with the same bytes */
	f.u.step = UPLOAD_SPOOLED;
	assert_int_equal(file_upload(p, &f), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 1);
	file_end(&f);
}

static void between_the_two_halves_of_the_last_step_the_id_is_kept(void **state)
{
	struct place *p = *state;
	struct file f;

	backend_begin(p, "workspace");
	file_make(p, &f, "one.pdf", "x");
	file_store(p, &f);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"attach\",\"action\":\"status\",\"status\":503}"), 0);
	assert_int_equal(file_attach(p, &f), -EIO);
	assert_non_null(strstr(f.u.ticket, "document_id"));
	backend_begin(p, "session"); /* also after a restart with another way of naming */
	assert_int_equal(file_attach(p, &f), 0);
	assert_int_equal(sandbox_count(p->box, "create_document"), 1);
	file_end(&f);
}

/* ---- checking ------------------------------------------------------------------------------------------------ */

static void a_token_is_checked_by_what_the_service_says_of_it(void **state)
{
	struct place *p = *state;
	CLEANUP(buf_release) struct buf text = BUF(10000);

	assert_int_equal(backend_check(p->b, call_of(p)), 0);
	assert_int_equal(backend_describe(p->b, call_of(p), &text), 0);
	assert_non_null(strstr(buf_text(&text), "sessions-read: works"));
	assert_int_equal(sandbox_add_token(p->box, "token-two", "sessions-read"), 0);
	p->token = "token-two";
	backend_begin(p, NULL);
	assert_int_equal(backend_check(p->b, call_of(p)), 0); /* 403 proves it as well */
	p->token = "token-wrong";
	backend_begin(p, NULL);
	log_open(LOG_LEVEL_ERROR, true);
	assert_int_equal(backend_check(p->b, call_of(p)), -EACCES);
	assert_int_equal(p->call.fault.kind, FAULT_ACCOUNT);
	assert_int_equal(sandbox_control(p->box, "POST", "/down", "{}", NULL), 200);
	assert_true(backend_check(p->b, call_of(p)) < 0);
	assert_int_equal(p->call.fault.kind, FAULT_AWAY);
}

static void a_wrong_configuration_is_told_in_a_sentence(void **state)
{
	struct place *p = *state;
	static const struct { const char *url, *naming, *part; } cases[] = {
		{ "http://api.example.com", NULL, "plain http" },
		{ "ftp://127.0.0.1", NULL, "neither https nor http" },
		{ "https://u:p@api.example.com", NULL, "no user name" },
		{ "https://api.example.com?x=1", NULL, "no user name" },
		{ "nonsense at all", NULL, "not an address" },
		{ "http://127.0.0.1.example.com", NULL, "plain http" },
		{ NULL, "sometimes", "naming is" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct backend_config config = { .service = "raydocs", .url = cases[i].url, .option = option, .arg = p,
						 .read_credentials = read_credentials };
		CLEANUP(buf_release) struct buf why = BUF(1000);
		struct backend *b = NULL;

		p->naming = cases[i].naming;
		if (backend_open(&config, &why, &b) != -EINVAL || !strstr(buf_text(&why), cases[i].part))
			fail_msg("%s: '%s'", cases[i].url, buf_text(&why));
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_shape_of_a_listing_is_read),
		TEST(a_size_that_nobody_says_is_unknown),
		TEST(a_lying_last_page_ends_in_a_stop),
		TEST(a_last_page_that_comes_too_early_does_not_end_the_list),
		TEST(a_lying_total_costs_a_look_at_the_record_once),
		TEST(where_the_record_is_cut_a_lying_total_costs_a_second_walk_once),
		TEST(a_list_without_order_is_complete_all_the_same),
		TEST(where_nothing_names_all_a_torn_walk_drops_nobody_who_was_known),
		TEST(pages_that_are_empty_against_their_own_total_drop_nobody),
		TEST(pages_are_shown_as_they_come),
		TEST(several_pages_are_under_way_at_a_time),
		TEST(while_the_budget_is_short_a_walk_has_few_pages_in_line),
		TEST(a_page_that_fails_fails_the_listing_and_ends_what_is_under_way),
		TEST(a_page_that_fails_for_a_moment_does_not_end_the_walk),
		TEST(an_unchanged_session_costs_one_request),
		TEST(one_new_document_costs_two_requests_in_whatever_order_they_come),
		TEST(a_document_that_left_costs_two_requests),
		TEST(what_is_under_way_costs_its_own_requests_and_not_a_walk),
		TEST(where_most_has_changed_it_is_walked),
		TEST(behind_a_record_that_is_cut_the_ends_and_what_is_under_way_are_looked_at),
		TEST(a_sweep_asks_for_all_and_finds_what_the_record_does_not_tell),
		TEST(refreshes_are_true_through_any_course_of_changes),
		TEST(a_record_that_names_fewer_documents_is_not_believed),
		TEST(a_record_with_words_of_its_own_costs_one_walk),
		TEST(a_refresh_tells_the_name_of_the_session_too),
		TEST(the_record_of_a_document_is_kept),
		TEST(states_follow_the_words_of_the_service),
		TEST(what_is_no_document_is_refused_without_an_abort),
		TEST(a_session_that_is_gone_is_said_to_be),
		TEST(a_session_knows_its_workspace_by_its_template),
		TEST(what_an_earlier_run_learned_of_a_session_is_not_asked_again),
		TEST(a_workspace_that_nobody_told_is_asked_for_again),
		TEST(a_refresh_brings_the_sessions_record_along),
		TEST(a_sessions_record_tells_whether_a_listing_of_several_pages_still_holds),
		TEST(a_missing_right_to_templates_leaves_the_workspace_unknown),
		TEST(sessions_are_guessed_with_three_requests_at_most),
		TEST(templates_are_listed_with_their_workspaces),
		TEST(a_session_can_be_made),
		TEST(an_id_is_found_in_a_pasted_address),
		TEST(bytes_come_without_the_token),
		TEST(an_ended_link_is_asked_for_anew_once),
		TEST(a_document_is_attached_and_detached_by_id),
		TEST(attaching_across_workspaces_is_exdev),
		TEST(a_run_is_asked_for_once),
		TEST(a_file_becomes_a_document_whatever_the_answers_look_like),
		TEST(a_stored_ticket_holds_no_signed_address),
		TEST(a_link_that_grew_old_is_renewed_on_the_way),
		TEST(storage_that_refuses_a_link_wants_another_key),
		TEST(a_batch_is_matched_by_hash_whatever_its_order),
		TEST(a_refused_key_blames_its_own_upload_alone),
		TEST(what_a_refused_batch_took_all_the_same_is_seen),
		TEST(a_refused_batch_that_names_nobody_is_to_be_split),
		TEST(a_lost_last_answer_may_have_had_its_effect_and_is_found),
		TEST(what_is_not_there_is_not_found),
		TEST(an_answer_without_documents_is_looked_for),
		TEST(a_missing_right_is_named),
		TEST(by_way_of_the_workspace_the_name_is_kept),
		TEST(auto_changes_over_once_it_has_seen_a_name_lost),
		TEST(auto_goes_back_where_the_token_may_not),
		TEST(a_key_used_up_by_a_lost_answer_is_no_second_document),
		TEST(between_the_two_halves_of_the_last_step_the_id_is_kept),
		TEST(a_token_is_checked_by_what_the_service_says_of_it),
		TEST(a_wrong_configuration_is_told_in_a_sentence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
