/* client/rossum*.c against the sandbox, whose switches are the places where the service's public sources disagree.
 *
 * The service's own page on uploads, and what holds each of its sentences: a test here, in sandbox/test_rossum_sandbox.c (s:)
 * or in mount/test_rossum.py (m:).
 *
 *   The upload object
 *     it has creator, created_at, email, organization      m: what_is_known_of_an_upload_is_in_its_attributes...
 *     documents; additional_documents, which may be null   each_dialect_of_a_task_is_understood, m: what_a_hook_adds_shows...
 *     annotations, which may be null                       each_dialect_of_a_task_is_understood
 *     basic authentication works for creating one          a_throttled_login_stops_no_upload
 *   Create
 *     into the queue of the query                          the_same_file_goes_into_two_queues_in_spite_of_a_retry
 *     it starts as importing                               an_upload_costs_few_requests
 *     several files may be sent (we send one: by decision) an_upload_costs_few_requests
 *     40 MB in all                                         what_is_too_large_is_not_sent, m: the_limit_of_forty_million_bytes...
 *     names are UTF-8                                      a_name_arrives_as_it_is
 *     as multipart, or as the body                         a_name_arrives_as_it_is (both forms)
 *     the name is that of the form's field                 a_name_arrives_as_it_is
 *     metadata becomes the annotation's                    metadata_and_values_go_along
 *     values initialise fields, as upload:NAME             metadata_and_values_go_along, values_of_a_queue_overrule_those_of_all
 *     the answer is a task's address, later the upload's   each_dialect_of_a_task_is_understood
 *   Create with a name
 *     the name in the path counts for a body alone         a_name_arrives_as_it_is (raw), m: the_raw_form_sends_the_bytes_alone...
 *   Retrieve
 *     by the id the task names                             a_way_followed_half_is_taken_up_by_another_process
 *     a task that failed has its words                     each_refusal_has_its_kind_and_its_words
 *   Codes: 400 401 403 404 409 413 429 500 502 503 504     each_code_of_the_upload_page_means_what_it_says */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/backend.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/rossum.h"
#include "tests/sandbox/sandbox.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

enum { OPTIONS_MAX = 8, QUEUE = 8199, HASTE = 10 /* the service is as much quicker */ };

struct place {
	struct sandbox *box;
	struct backend *b;
	char url[200];
	const char *token;          /* NULL: user and password */
	const char *user, *password;
	const char *options[OPTIONS_MAX][2];
	struct call call;
	struct transfer transfer;
};

static int read_credentials(void *arg, struct credentials *ret)
{
	const struct place *p = arg;

	*ret = (struct credentials){ 0 };
	if (p->token) {
		ret->token = secret_new(p->token);
		return ret->token ? 0 : -ENOENT;
	}
	ret->user = strdup(p->user);
	ret->password = secret_new(p->password);
	return ret->user && ret->password ? 0 : -ENOENT;
}

static const char *option(void *arg, const char *name, int nth)
{
	const struct place *p = arg;

	for (int i = 0; i < OPTIONS_MAX && p->options[i][0]; i++) {
		if (strcmp(p->options[i][0], name) == 0 && nth-- == 0)
			return p->options[i][1];
	}
	return NULL;
}

static int try_open(struct place *p, struct buf *why)
{
	const struct backend_config config = { .service = "rossum",
					       .url = p->url[0] ? p->url : NULL,
					       .read_credentials = read_credentials,
					       .option = option,
					       .arg = p,
					       .rate_per_min = -1,
					       .scratch_dir = "/tmp" };

	backend_close(p->b);
	p->b = NULL;
	int r = backend_open(&config, why, &p->b);
	if (r == 0)
		rossum_hasten(p->b, HASTE);
	return r;
}

static void reopen(struct place *p)
{
	CLEANUP(buf_release) struct buf why = BUF(1000);

	if (try_open(p, &why) < 0)
		fail_msg("%s", buf_text(&why));
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

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));
	const struct sandbox_options options = { 0 };

	log_open(LOG_LEVEL_ERROR, false);
	assert_int_equal(sandbox_start(&options, &p->box), 0);
	snprintf(p->url, sizeof(p->url), "%s/api/v1", sandbox_url(p->box, "rossum"));
	set(p, "rossum.task_ms", "20");
	set(p, "rossum.create_ms", "20");
	control(p, "/rossum/workspace", "{\"id\":70,\"name\":\"Prague\"}");
	control(p, "/rossum/queue", "{\"id\":8199,\"name\":\"Invoices\",\"workspace\":70}");
	control(p, "/rossum/user", "{\"username\":\"ann\",\"password\":\"correct horse\",\"queues\":\"all\"}");
	control(p, "/rossum/token", "{\"token\":\"token-one\",\"user\":\"ann\"}");
	p->token = "token-one";
	p->user = "ann";
	p->password = "correct horse";
	reopen(p);
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct place *p = *state;

	backend_close(p->b);
	sandbox_stop(p->box);
	free(p);
	return 0;
}

/* ---- helpers ------------------------------------------------------------------------------------------------- */

static struct call *call_of(struct place *p)
{
	memset(&p->transfer, 0, sizeof(p->transfer));
	p->call = (struct call){ .urgency = URGENCY_PERSON,
				 .deadline_ms = clock_now_ms() + 20000,
				 .transfer = &p->transfer };
	return &p->call;
}

static struct listing *list(struct place *p, struct listing *known)
{
	struct listing *l = NULL;
	struct call *call = call_of(p);
	call->deadline_ms += 120000; /* a sanitized sandbox on a busy machine makes 10,000 in its own time */
	int r = backend_list_documents(p->b, call, "8199", known, &l);

	if (r < 0)
		fail_msg("listing: %d, %s", r, p->call.fault.words);
	return l;
}

static void annotation(struct place *p, const char *further)
{
	CLEANUP(buf_release) struct buf json = BUF(4000);

	buf_addf(&json, "{\"queue\":8199,%s}", further);
	control(p, "/rossum/annotation", buf_text(&json));
}

static int find_name(struct listing *l, const char *name, struct document *ret)
{
	for (int i = 0; i < listing_count(l); i++) {
		listing_get(l, i, ret);
		if (strcmp(ret->filename, name) == 0)
			return i;
	}
	return -1;
}

static const char *extra_of(const struct document *doc, const char *name)
{
	for (int i = 0; i < DOCUMENT_EXTRA_MAX && doc->extra[i][0]; i++) {
		if (strcmp(doc->extra[i][0], name) == 0)
			return doc->extra[i][1];
	}
	return NULL;
}

static char *state_of_service(struct place *p)
{
	char *text = NULL;

	assert_int_equal(sandbox_control(p->box, "GET", "/state", NULL, &text), 200);
	return text;
}

static char *requests(struct place *p, const char *route)
{
	CLEANUP(buf_release) struct buf path = BUF(200);
	char *text = NULL;

	buf_addf(&path, "/requests?route=%s", route);
	if (sandbox_control(p->box, "GET", buf_text(&path), NULL, &text) != 200) {
		free(text);
		text = NULL;
		buf_clear(&path);
		buf_addf(&path, "{\"route\":\"%s\"}", route);
		assert_int_equal(sandbox_control(p->box, "GET", "/requests", buf_text(&path), &text), 200);
	}
	return text;
}

struct file {
	struct upload u;
	char text[300], sha256[65];
};

static void file_make(struct file *f, const char *name, const char *words)
{
	unsigned char hash[32];

	/* The service looks at the bytes before it looks at the name. */
	snprintf(f->text, sizeof(f->text), strstr(name, ".pdf") ? "%%PDF-1.4\n%s\n%%%%EOF\n" : "%s\n", words);
	assert_int_equal(EVP_Digest(f->text, strlen(f->text), hash, NULL, EVP_sha256(), NULL), 1);
	for (int i = 0; i < 32; i++)
		snprintf(f->sha256 + 2 * i, 3, "%02x", hash[i]);
	f->u = (struct upload){ .session_id = "8199",
				.name = name,
				.sha256 = f->sha256,
				.size_bytes = (int64_t)strlen(f->text),
				.fd = memfd_create("file", MFD_CLOEXEC) };
	assert_int_equal(pwrite(f->u.fd, f->text, strlen(f->text), 0), strlen(f->text));
}

static void file_end(struct file *f)
{
	free(f->u.ticket);
	listing_unref(f->u.document);
	close(f->u.fd);
	*f = (struct file){ .u.fd = -1 };
}

static int file_store(struct place *p, struct file *f)
{
	if (f->u.step == UPLOAD_SPOOLED)
		assert_int_equal(backend_upload_sign(p->b, call_of(p), &f->u), 0);
	return backend_upload_store(p->b, call_of(p), &f->u);
}

static int file_attach(struct place *p, struct file *f)
{
	struct upload *u = &f->u;
	int r = backend_upload_attach(p->b, call_of(p), &u, 1);

	return r < 0 ? r : u->error;
}

static void file_upload(struct place *p, struct file *f)
{
	int r = file_store(p, f);

	if (r < 0)
		fail_msg("storing '%s': %d, %s", f->u.name, r, p->call.fault.words);
	r = file_attach(p, f);
	if (r < 0)
		fail_msg("attaching '%s': %d, %s", f->u.name, r, f->u.fault.words);
}

static void fetch_text(struct place *p, const char *id, char ret[300])
{
	CLEANUP(fd_close) int fd = memfd_create("bytes", MFD_CLOEXEC);
	int r = backend_fetch_document(p->b, call_of(p), "8199", id, fd);

	if (r < 0)
		fail_msg("fetching %s: %d, %s", id, r, p->call.fault.words);
	ssize_t n = pread(fd, ret, 299, 0);
	assert_true(n >= 0);
	ret[n] = '\0';
}

/* ---- opening ------------------------------------------------------------------------------------------------- */

static void options_that_make_no_sense_are_told_at_the_start(void **state)
{
	struct place *p = *state;
	static char long_value[4000];
	static const struct {
		const char *options[2][2], *word;
	} cases[] = {
		{ { { "metadata", "novalue" } }, "KEY:VALUE" },
		{ { { "metadata", ":x" } }, "KEY:VALUE" },
		{ { { "metadata", "sessionfs:x" } }, "sessionfs" },
		{ { { "metadata", "a:1" }, { "metadata", "a:2" } }, "twice" },
		{ { { "metadata", long_value } }, "4096" },
		{ { { "values", "novalue" } }, "KEY:VALUE" },
		{ { { "upload_form", "zip" } }, "raw" },
		{ { { "upload_form", "raw" }, { "values", "a:b" } }, "raw" },
		{ { { "upload_form", "raw" }, { "metadata", "a:b" } }, "raw" },
	};

	memset(long_value, 'x', sizeof(long_value) - 1);
	long_value[1] = ':';
	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(buf_release) struct buf why = BUF(10000);

		memcpy(p->options, cases[i].options, sizeof(cases[i].options));
		assert_int_equal(try_open(p, &why), -EINVAL);
		if (!strstr(buf_text(&why), cases[i].word))
			fail_msg("case %zu: %s", i, buf_text(&why));
	}
	memset(p->options, 0, sizeof(p->options));
	p->url[0] = '\0';
	CLEANUP(buf_release) struct buf why = BUF(1000);
	assert_int_equal(try_open(p, &why), -EINVAL);
	assert_non_null(strstr(buf_text(&why), "url="));
}

/* ---- queues -------------------------------------------------------------------------------------------------- */

static void queues_are_told_apart_by_their_workspace(void **state)
{
	struct place *p = *state;
	CLEANUP(session_list_release) struct session_list found = { 0 };
	CLEANUP(session_release) struct session one = { 0 };

	control(p, "/rossum/workspace", "{\"id\":71,\"name\":\"London\"}");
	control(p, "/rossum/queue", "{\"id\":9,\"name\":\"Invoices\",\"workspace\":71}");
	control(p, "/rossum/queue", "{\"id\":10,\"name\":\"Going\",\"workspace\":null,\"status\":\"deletion_requested\"}");
	assert_int_equal(backend_list_sessions(p->b, call_of(p), &found), 0);
	assert_int_equal(found.count, 3);
	assert_int_equal(sandbox_count(p->box, "rossum_workspaces"), 1);
	assert_string_equal(found.items[0].id, "9"); /* by id */
	assert_string_equal(found.items[0].name, "Invoices");
	assert_string_equal(found.items[0].qualifier, "London");
	assert_string_equal(found.items[2].qualifier, "Prague");
	assert_null(found.items[1].qualifier);
	assert_true(found.items[1].is_closed);
	assert_false(found.items[0].is_closed);
	assert_int_equal(backend_get_session(p->b, call_of(p), "9", &one), 0);
	assert_string_equal(one.qualifier, "London");
}

static void the_workspaces_are_asked_for_where_two_queues_would_share_a_name(void **state)
{
	struct place *p = *state;
	static const struct { const char *name; bool asks; } cases[] = {
		{ "Receipts", false }, { "invoices", false }, { "Invoices 2", false }, { "A/B", false }, { "A_B", true },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(session_list_release) struct session_list found = { 0 };
		CLEANUP(buf_release) struct buf json = BUF(1000);

		reopen(p); /* one that knows no workspace yet */
		long before = sandbox_count(p->box, "rossum_workspaces");
		buf_addf(&json, "{\"name\":\"%s\",\"workspace\":70}", cases[i].name);
		control(p, "/rossum/queue", buf_text(&json));
		assert_int_equal(backend_list_sessions(p->b, call_of(p), &found), 0);
		assert_int_equal(found.count, i + 2);
		if ((sandbox_count(p->box, "rossum_workspaces") > before) != cases[i].asks)
			fail_msg("case %zu: '%s'", i, cases[i].name);
	}
}

static void only_named_queues_are_listed_if_any_are_named(void **state)
{
	struct place *p = *state;
	CLEANUP(session_list_release) struct session_list found = { 0 };

	control(p, "/rossum/queue", "{\"id\":9,\"name\":\"Receipts\",\"workspace\":70}");
	control(p, "/rossum/queue", "{\"id\":10,\"name\":\"Orders\",\"workspace\":70}");
	p->options[0][0] = p->options[1][0] = "queue";
	p->options[0][1] = "Orders";
	p->options[1][1] = "9";
	assert_int_equal(backend_list_sessions(p->b, call_of(p), &found), 0);
	assert_int_equal(found.count, 2);
	assert_string_equal(found.items[0].id, "9");
	assert_string_equal(found.items[1].id, "10");
}

static void queues_of_several_pages_are_all_there(void **state)
{
	struct place *p = *state;
	static const char *const nexts[] = { "pagination", "top", "both" };

	for (int i = 0; i < 250; i++) {
		char json[100];

		snprintf(json, sizeof(json), "{\"id\":%d,\"name\":\"q%d\",\"workspace\":70}", 1000 + i, i);
		control(p, "/rossum/queue", json);
	}
	for (size_t i = 0; i < COUNT(nexts); i++) {
		CLEANUP(session_list_release) struct session_list found = { 0 };

		set(p, "rossum.next", nexts[i]);
		assert_int_equal(backend_list_sessions(p->b, call_of(p), &found), 0);
		assert_int_equal(found.count, 251);
	}
}

static void a_page_that_fails_for_a_moment_does_not_end_the_list(void **state)
{
	struct place *p = *state;

	annotation(p, "\"count\":350,\"status\":\"to_review\",\"size\":10");
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_annotations\",\"nth\":3,\"times\":2,\"action\":\"status\",\"status\":502}"), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 350);
	assert_int_equal(sandbox_count(p->box, "rossum_annotations"), 6);
}

static void accepted_types_become_suffixes(void **state)
{
	struct place *p = *state;
	static const struct {
		const char *types, *formats;
	} cases[] = {
		{ "[]", NULL },
		{ "[\"application/pdf\"]", "pdf" },
		{ "[\"image/*\",\"application/pdf\"]", "pdf png jpg jpeg tiff bmp gif webp heic" },
		{ "[\"application/x-nobody-knows\"]", NULL },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(session_release) struct session s = { 0 };
		CLEANUP(buf_release) struct buf json = BUF(1000);

		buf_addf(&json, "{\"id\":8199,\"accepted_mime_types\":%s}", cases[i].types);
		control(p, "/rossum/queue", buf_text(&json));
		assert_int_equal(backend_get_session(p->b, call_of(p), "8199", &s), 0);
		if (cases[i].formats)
			assert_string_equal(s.formats, cases[i].formats);
		else
			assert_null(s.formats);
	}
}

static void the_id_of_a_queue_is_found_in_an_address(void **state)
{
	struct place *p = *state;
	static const struct {
		const char *text, *id;
	} cases[] = {
		{ "8199", "8199" },
		{ " 8199\n", "8199" },
		{ "https://example.rossum.app/api/v1/queues/8199", "8199" },
		{ "https://example.rossum.app/queues/8199/documents?page=2", "8199" },
		{ "https://example.rossum.app/api/v1/annotations/7", NULL },
		{ "12 monkeys", NULL },
		{ "8199abc", NULL },
		{ "queues/", NULL },
		{ "", NULL },
		{ "99999999-9999-4999-8999-999999999999", NULL },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CLEANUP(text_release) char *id = NULL;
		int r = backend_find_session_id(p->b, cases[i].text, &id);

		if (r != (cases[i].id ? 0 : -ENOENT) || (id && strcmp(id, cases[i].id) != 0))
			fail_msg("'%s': %d, %s", cases[i].text, r, id ? id : "none");
	}
}

/* ---- listings ------------------------------------------------------------------------------------------------ */

static void a_listing_is_whole_in_every_dialect(void **state)
{
	struct place *p = *state;
	static const struct {
		const char *name, *value;
	} cases[] = {
		{ "rossum.totals", "always" }, { "rossum.totals", "never" }, { "rossum.next", "top" },
		{ "rossum.next", "both" },     { "rossum.extra", "on" },     { "rossum.counts", "none" },
		{ "rossum.counts", "all" },    { "rossum.beyond", "404" },
	};

	annotation(p, "\"count\":250,\"text\":\"%PDF-1.4 x\"");
	for (size_t i = 0; i < COUNT(cases); i++) {
		set(p, cases[i].name, cases[i].value);
		control(p, "/requests/clear", NULL);
		CLEANUP(listing_release) struct listing *l = list(p, NULL);
		if (listing_count(l) != 250 || sandbox_count(p->box, NULL) != 3)
			fail_msg("%s=%s: %d documents in %ld requests", cases[i].name, cases[i].value, listing_count(l),
				 sandbox_count(p->box, NULL));
	}
}

static void what_is_not_to_be_shown_is_not(void **state)
{
	struct place *p = *state;
	static const struct {
		const char *status;
		int state; /* -1: hidden */
	} cases[] = {
		{ "created", -1 },
		{ "importing", STATE_PROCESSING },
		{ "failed_import", STATE_FAILED },
		{ "split", -1 },
		{ "to_review", STATE_READY },
		{ "reviewing", STATE_READY },
		{ "in_workflow", STATE_READY },
		{ "confirmed", STATE_READY },
		{ "rejected", STATE_READY },
		{ "exporting", STATE_READY },
		{ "exported", STATE_READY },
		{ "failed_export", STATE_READY },
		{ "postponed", STATE_READY },
		{ "deleted", -1 },
		{ "purged", -1 },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		char json[200];

		snprintf(json, sizeof(json), "\"filename\":\"%s.pdf\",\"text\":\"%%PDF %zu\",\"status\":\"%s\"", cases[i].status,
			 i, cases[i].status);
		annotation(p, json);
	}
	annotation(p, "\"filename\":\"odd.pdf\",\"text\":\"%PDF\",\"status_raw\":\"defrobnicated\"");
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	for (size_t i = 0; i < COUNT(cases); i++) {
		char name[40];
		struct document doc;

		snprintf(name, sizeof(name), "%s.pdf", cases[i].status);
		int at = find_name(l, name, &doc);
		if ((at < 0) != (cases[i].state < 0) || (at >= 0 && (int)doc.state != cases[i].state))
			fail_msg("%s: at %d, %s", cases[i].status, at, at < 0 ? "" : document_state_word(doc.state));
		if (at >= 0)
			assert_string_equal(doc.status, cases[i].status);
	}
	struct document odd;
	assert_true(find_name(l, "odd.pdf", &odd) >= 0);
	assert_string_equal(odd.status, "defrobnicated");
	assert_int_equal(odd.state, STATE_PROCESSING);
	assert_int_equal(listing_count(l), COUNT(cases) - 4 + 1);
}

static void bad_news_can_be_read(void **state)
{
	struct place *p = *state;
	struct document doc;

	annotation(p, "\"filename\":\"r.pdf\",\"text\":\"%PDF\",\"status\":\"rejected\",\"fields\":{\"messages\":[{\"type\":"
		      "\"error\",\"content\":\"not an invoice\"}]}");
	annotation(p, "\"filename\":\"e.pdf\",\"text\":\"%PDF\",\"status\":\"failed_export\",\"fields\":{\"messages\":[{"
		      "\"content\":\"SAP is down\"},7,null,\"and so are we\"]}");
	annotation(p, "\"filename\":\"i.pdf\",\"text\":\"%PDF\",\"status\":\"failed_import\"");
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_true(find_name(l, "r.pdf", &doc) >= 0);
	assert_string_equal(doc.error, "rejected: not an invoice");
	assert_true(find_name(l, "e.pdf", &doc) >= 0);
	assert_string_equal(doc.error, "the export failed: SAP is down: and so are we");
	assert_true(find_name(l, "i.pdf", &doc) >= 0);
	assert_string_equal(doc.error, "the import failed");
}

static void sizes_are_known_of_our_own_uploads_alone(void **state)
{
	struct place *p = *state;
	struct document doc;
	struct file ours, html;

	annotation(p, "\"filename\":\"theirs.pdf\",\"text\":\"%PDF\"");
	file_make(&ours, "ours.pdf", "x");
	file_make(&html, "page.html", "<b>x</b>"); /* sanitised on its way in */
	file_upload(p, &ours);
	file_upload(p, &html);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_true(find_name(l, "theirs.pdf", &doc) >= 0);
	assert_int_equal(doc.size_bytes, -1);
	assert_null(doc.sha256);
	assert_true(find_name(l, "page.html", &doc) >= 0);
	assert_int_equal(doc.size_bytes, -1);
	assert_null(doc.sha256);
	assert_true(find_name(l, "ours.pdf", &doc) >= 0);
	assert_int_equal(doc.size_bytes, ours.u.size_bytes);
	assert_string_equal(doc.sha256, ours.sha256);
	assert_string_equal(doc.mime, "application/pdf");
	assert_true(doc.created_ms > 0);
	assert_non_null(extra_of(&doc, "document"));
	assert_non_null(extra_of(&doc, "upload"));
	assert_non_null(extra_of(&doc, "creator"));
	file_end(&ours);
	file_end(&html);
}

static void metadata_that_lies_of_its_shape_is_not_believed(void **state)
{
	struct place *p = *state;
	static const char *const marks[] = {
		"7", "\"x\"", "[]", "{}", "{\"size\":-1,\"sha256\":\"%s\"}", "{\"size\":1e300,\"sha256\":\"%s\"}",
		"{\"size\":\"1\",\"sha256\":\"%s\"}", "{\"size\":5,\"sha256\":\"short\"}", "{\"size\":5}",
		"{\"size\":5,\"sha256\":\"%s\",\"name\":\"another.pdf\"}",
	};
	char hash[65];

	memset(hash, 'a', 64);
	hash[64] = '\0';
	for (size_t i = 0; i < COUNT(marks); i++) {
		CLEANUP(buf_release) struct buf json = BUF(2000);
		const char *at = strstr(marks[i], "%s");

		buf_addf(&json, "\"filename\":\"m%zu.pdf\",\"text\":\"%%PDF\",\"metadata\":{\"sessionfs\":", i);
		buf_add_bytes(&json, marks[i], at ? (size_t)(at - marks[i]) : strlen(marks[i]));
		buf_addf(&json, "%s%s}", at ? hash : "", at ? at + 2 : "");
		annotation(p, buf_text(&json));
	}
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), COUNT(marks));
	for (int i = 0; i < listing_count(l); i++) {
		struct document doc;

		listing_get(l, i, &doc);
		if (doc.size_bytes != -1 || doc.sha256)
			fail_msg("%s: size %lld", doc.filename, (long long)doc.size_bytes);
	}
}

static void an_unchanged_queue_costs_one_request(void **state)
{
	struct place *p = *state;

	annotation(p, "\"count\":250,\"text\":\"%PDF-1.4 x\"");
	annotation(p, "\"filename\":\"gone.pdf\",\"text\":\"%PDF\",\"status\":\"deleted\"");
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	control(p, "/requests/clear", NULL);
	CLEANUP(listing_release) struct listing *second = list(p, first);
	assert_int_equal(sandbox_count(p->box, NULL), 1);
	assert_true(listing_serial(first) == listing_serial(second));
	assert_true(listing_asked_ms(second) >= listing_asked_ms(first));
}

static void one_change_costs_few_requests(void **state)
{
	struct place *p = *state;
	struct document doc;

	annotation(p, "\"count\":450,\"text\":\"%PDF-1.4 x\"");
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	annotation(p, "\"id\":77,\"filename\":\"new.pdf\",\"text\":\"%PDF\"");
	control(p, "/requests/clear", NULL);
	CLEANUP(listing_release) struct listing *second = list(p, first);
	assert_int_equal(listing_count(second), 451);
	assert_true(find_name(second, "new.pdf", &doc) >= 0);
	assert_in_range(sandbox_count(p->box, NULL), 2, 3);
	assert_true(listing_serial(first) != listing_serial(second));

	control(p, "/rossum/annotation", "{\"id\":77,\"status\":\"deleted\"}");
	CLEANUP(listing_release) struct listing *third = list(p, second);
	assert_int_equal(listing_count(third), 450);
	assert_int_equal(find_name(third, "new.pdf", &doc), -1);
}

static void ten_thousand_documents_cost_a_hundred_requests(void **state)
{
	struct place *p = *state;

	annotation(p, "\"count\":10000,\"size\":1000");
	control(p, "/requests/clear", NULL);
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	assert_int_equal(listing_count(first), 10000);
	assert_int_equal(sandbox_count(p->box, NULL), 100);
	annotation(p, "\"filename\":\"new.pdf\",\"text\":\"%PDF\"");
	control(p, "/requests/clear", NULL);
	CLEANUP(listing_release) struct listing *second = list(p, first);
	assert_int_equal(listing_count(second), 10001);
	assert_in_range(sandbox_count(p->box, NULL), 2, 3);
}

static void an_old_document_that_changes_is_seen(void **state)
{
	struct place *p = *state;
	struct document doc;
	char json[100];

	annotation(p, "\"count\":350,\"text\":\"%PDF-1.4 x\"");
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	listing_get(first, 3, &doc);
	snprintf(json, sizeof(json), "{\"id\":%s,\"status\":\"exported\"}", doc.id);
	control(p, "/rossum/annotation", json);
	CLEANUP(listing_release) struct listing *second = list(p, first);
	listing_get(second, listing_find(second, doc.id), &doc);
	assert_string_equal(doc.status, "exported");
	assert_int_equal(listing_count(second), 350);
}

static void counts_that_disagree_with_the_list_are_given_up(void **state)
{
	struct place *p = *state;
	struct listing *known;

	annotation(p, "\"count\":150,\"text\":\"%PDF-1.4 x\"");
	control(p, "/rossum/queue", "{\"id\":8199,\"fields\":{\"counts\":{\"to_review\":3}}}");
	known = list(p, NULL);
	for (int i = 0; i < 4; i++) {
		struct listing *next;

		control(p, "/requests/clear", NULL);
		next = list(p, known);
		assert_int_equal(listing_count(next), 150);
		assert_true(listing_serial(next) == listing_serial(known));
		listing_unref(known);
		known = next;
	}
	assert_int_equal(sandbox_count(p->box, "rossum_queue"), 0);
	listing_unref(known);
}

static void what_slipped_between_two_pages_is_asked_for(void **state)
{
	struct place *p = *state;
	struct document doc;

	annotation(p, "\"count\":250,\"text\":\"%PDF-1.4 x\"");
	set(p, "rossum.counts", "none");
	CLEANUP(listing_release) struct listing *first = list(p, NULL);
	listing_get(first, 5, &doc);
	/* As it would be had an annotation left page 1 while page 2 was read. */
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_annotations\",\"action\":\"status\",\"status\":200,"
					       "\"body\":\"{\\\"pagination\\\":{\\\"next\\\":\\\"/api/v1/annotations?queue=8199&"
					       "sideload=documents&page_size=100&ordering=created_at&page=2\\\"},"
					       "\\\"results\\\":[]}\"}"),
			 0);
	CLEANUP(listing_release) struct listing *second = list(p, first);
	assert_int_equal(listing_count(second), 250);
	assert_true(listing_find(second, doc.id) >= 0);
}

static void a_page_at_another_host_is_not_asked_for(void **state)
{
	struct place *p = *state;
	struct listing *l = NULL;

	annotation(p, "\"count\":150,\"text\":\"%PDF-1.4 x\"");
	set(p, "rossum.foreign", "next");
	assert_int_equal(backend_list_documents(p->b, call_of(p), "8199", NULL, &l), -EPROTO);
	assert_non_null(strstr(p->call.fault.words, "address"));
	assert_int_equal(sandbox_count(p->box, NULL), 1);
}

static void an_empty_queue_is_told_from_none(void **state)
{
	struct place *p = *state;
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	struct listing *none = NULL;

	assert_int_equal(listing_count(l), 0);
	assert_int_equal(backend_list_documents(p->b, call_of(p), "4711", NULL, &none), -ENOENT);
	assert_int_equal(p->call.fault.kind, FAULT_GONE);
}

static void what_is_no_listing_is_refused_without_an_abort(void **state)
{
	struct place *p = *state;
	static const char *const bodies[] = {
		"{\"results\":[{\"id\":{},\"status\":\"x\"}]}",
		"{\"results\":[17]}",
		"{\"results\":{}}",
		"[[]]",
		"\"x\"",
		"17",
		"{\"results\":[{\"id\":1e300}]}",
		"{\"results\":[{\"id\":-5}]}",
		"{\"results\":[{\"id\":\"../../x\"}]}",
		"{\"results\":[{\"url\":\"https://h/annotations/x\"}]}",
		"{\"results\":[],\"pagination\":{\"next\":\"http://127.0.0.1:1/api/v1/annotations\"}}",
		"{\"results\":[],\"pagination\":{\"next\":\"//evil.example/api/v1/x\"}}",
		"{\"results\":[],\"pagination\":{\"next\":\"https://evil.example/api/v1/x\"}}",
		"{\"results\":[],\"pagination\":{\"next\":\"/elsewhere\"}}",
		"{\"results\":[],\"pagination\":{\"next\":\"/api/v1/a\\\\u000ab\"}}",
		"{",
		"<html>",
		"null",
		"",
	};

	for (size_t i = 0; i < COUNT(bodies); i++) {
		CLEANUP(buf_release) struct buf rule = BUF(2000);
		struct listing *l = NULL;

		buf_add(&rule, "{\"route\":\"rossum_annotations\",\"action\":\"status\",\"status\":200,\"body\":\"");
		for (const char *c = bodies[i]; *c; c++)
			buf_addf(&rule, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
		buf_add(&rule, "\"}");
		assert_int_equal(sandbox_fault(p->box, buf_text(&rule)), 0);
		int r = backend_list_documents(p->b, call_of(p), "8199", NULL, &l);
		if (r != -EPROTO || p->call.fault.kind != FAULT_AWAY)
			fail_msg("'%s': %d", bodies[i], r);
	}
}

static void odd_members_cost_no_document(void **state)
{
	struct place *p = *state;
	static const char body[] =
		"{\"results\":[{\"id\":\"12\",\"status\":7,\"document\":[],\"metadata\":7,\"messages\":{},\"pages\":{}},"
		"{\"url\":\"https://h/api/v1/annotations/13/\",\"status\":\"to_review\",\"document\":{\"id\":4},\"metadata\":[]},"
		"{\"id\":14,\"status\":\"to_review\",\"document\":\"https://other/v1/documents/5?x=1\"}],"
		"\"documents\":[7,{\"id\":5,\"original_file_name\":\"five.pdf\",\"created_at\":\"yesterday\",\"mime_type\":3},{\"id\":[]}]}";
	CLEANUP(buf_release) struct buf rule = BUF(4000);
	struct document doc;

	buf_add(&rule, "{\"route\":\"rossum_annotations\",\"action\":\"status\",\"status\":200,\"body\":\"");
	for (const char *c = body; *c; c++)
		buf_addf(&rule, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
	buf_add(&rule, "\"}");
	assert_int_equal(sandbox_fault(p->box, buf_text(&rule)), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 3);
	assert_true(listing_find(l, "12") >= 0 && listing_find(l, "13") >= 0);
	listing_get(l, listing_find(l, "14"), &doc);
	assert_string_equal(doc.filename, "five.pdf");
	assert_int_equal(doc.created_ms, -1);
}

static void pages_that_go_in_a_circle_end(void **state)
{
	struct place *p = *state;
	static const char rule[] =
		"{\"route\":\"rossum_queues\",\"times\":0,\"action\":\"status\",\"status\":200,\"body\":\"{\\\"results\\\":[],"
		"\\\"pagination\\\":{\\\"next\\\":\\\"/api/v1/queues?page=2\\\"}}\"}";
	struct session_list found = { 0 };

	assert_int_equal(sandbox_fault(p->box, rule), 0);
	assert_int_equal(backend_list_sessions(p->b, call_of(p), &found), -EPROTO);
	assert_true(sandbox_count(p->box, "rossum_queues") < 5);
}

/* ---- uploads ------------------------------------------------------------------------------------------------- */

static void a_name_arrives_as_it_is(void **state)
{
	struct place *p = *state;
	static const char *const names[] = { "plain.pdf", "faktura p\xc5\x99ijat\xc3\xa1.pdf", "a;b,c=d&e %41.pdf",
					     "\xe2\x82\xac 5.pdf" };
	static const char *const forms[] = { "multipart", "raw" };

	for (size_t f = 0; f < COUNT(forms); f++) {
		p->options[0][0] = "upload_form";
		p->options[0][1] = forms[f];
		reopen(p);
		for (size_t i = 0; i < COUNT(names); i++) {
			struct file file;
			struct document doc;
			char words[40];

			snprintf(words, sizeof(words), "%zu of %s", i, forms[f]);
			file_make(&file, names[i], words);
			file_upload(p, &file);
			listing_get(file.u.document, 0, &doc);
			assert_string_equal(doc.filename, names[i]);
			char back[300];
			fetch_text(p, doc.id, back);
			assert_string_equal(back, file.text);
			file_end(&file);
		}
	}
}

static void metadata_and_values_go_along(void **state)
{
	struct place *p = *state;
	struct file file;
	static const char *const given[][2] = { { "metadata", "project:Q1:late" },
						{ "metadata", "owner:\"Ann\"" },
						{ "values", "currency:eur" } };

	memcpy(p->options, given, sizeof(given));
	reopen(p);
	file_make(&file, "a.pdf", "x");
	file_upload(p, &file);
	CLEANUP(buf_release) struct buf json = BUF(100000);
	assert_int_equal(listing_read_json(file.u.document, 0, &json), 0);
	assert_non_null(strstr(buf_text(&json), "\"project\":\"Q1:late\""));
	assert_non_null(strstr(buf_text(&json), "\"owner\":\"\\\"Ann\\\"\""));
	assert_non_null(strstr(buf_text(&json), "\"sessionfs\":{"));
	CLEANUP(text_release) char *all = state_of_service(p);
	assert_non_null(strstr(all, "upload:currency"));
	file_end(&file);
}

static void an_upload_costs_few_requests(void **state)
{
	struct place *p = *state;
	struct file file;

	set(p, "rossum.task_ms", "0");
	set(p, "rossum.create_ms", "0");
	file_make(&file, "a.pdf", "x");
	file_upload(p, &file);
	assert_in_range(sandbox_count(p->box, NULL), 4, 4); /* the file, its task, its upload, its annotation */
	struct document doc;
	listing_get(file.u.document, 0, &doc);
	assert_int_equal(doc.state, STATE_PROCESSING); /* it counts as there while it is imported */
	file_end(&file);
}

static void each_dialect_of_a_task_is_understood(void **state)
{
	struct place *p = *state;
	static const struct {
		const char *name, *value;
	} cases[] = {
		{ "rossum.task_upload", "late" }, { "rossum.none", "empty" },       { "rossum.upload_order", "same" },
		{ "rossum.foreign", "task" },     { "rossum.foreign", "upload" },   { "rossum.create_ms", "150" },
		{ "rossum.task_ms", "150" },     { "rossum.hook_add", "^added" },  { "rossum.extra", "on" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct file file;
		struct document doc;
		char name[40];

		set(p, cases[i].name, cases[i].value);
		snprintf(name, sizeof(name), "added %zu.pdf", i);
		file_make(&file, name, name);
		file_upload(p, &file);
		listing_get(file.u.document, 0, &doc);
		assert_string_equal(doc.filename, name);
		file_end(&file);
	}
}

static void each_refusal_has_its_kind_and_its_words(void **state)
{
	struct place *p = *state;
	static const struct {
		const char *name, *value, *file, *words;
		enum fault_kind kind;
		int error;
	} cases[] = {
		{ "rossum.type", "400", "a.pptx", NULL, FAULT_INVALID, -EINVAL },
		{ "rossum.type", "task", "a.pptx", NULL, FAULT_INVALID, -EINVAL },
		{ "rossum.type", "attachment", "a.pptx", "mime_type", FAULT_INVALID, -EINVAL },
		{ "rossum.task_fail", "bad", "bad.pdf", "7c1e", FAULT_INVALID, -EINVAL },
		{ "rossum.max_bytes", "20", "big.pdf", NULL, FAULT_TOO_LARGE, -EFBIG },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct file file;

		set(p, cases[i].name, cases[i].value);
		file_make(&file, cases[i].file, "some words that are longer than nothing");
		int r = file_store(p, &file);
		struct fault f = p->call.fault;
		if (r == 0) {
			r = file_attach(p, &file);
			f = file.u.fault;
		}
		if (r != cases[i].error || f.kind != cases[i].kind || (cases[i].words && !strstr(f.words, cases[i].words)))
			fail_msg("%s=%s: %d, kind %d, %s", cases[i].name, cases[i].value, r, (int)f.kind, f.words);
		assert_true(f.words[0] != '\0');
		file_end(&file);
	}
}

static void each_code_of_the_upload_page_means_what_it_says(void **state)
{
	struct place *p = *state;
	static const struct {
		int status;
		enum fault_kind kind;
		int error;
		bool may_have_happened;
	} cases[] = {
		{ 400, FAULT_INVALID, -EINVAL, false },  { 401, FAULT_ACCOUNT, -EACCES, false },
		{ 403, FAULT_FORBIDDEN, -EACCES, false }, { 404, FAULT_GONE, -ENOENT, false },
		{ 409, FAULT_CONFLICT, -EBUSY, false },  { 413, FAULT_TOO_LARGE, -EFBIG, false },
		{ 429, FAULT_BUDGET, -EAGAIN, false },   { 500, FAULT_AWAY, -EIO, true },
		{ 502, FAULT_AWAY, -EIO, true },         { 503, FAULT_AWAY, -EIO, true },
		{ 504, FAULT_AWAY, -EIO, true },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct file file;
		char rule[300];

		reopen(p); /* what one of them leaves behind is not the next one's */
		snprintf(rule, sizeof(rule),
			 "{\"route\":\"rossum_upload\",\"times\":0,\"action\":\"status\",\"status\":%d,\"body\":{\"detail\":\"Said %d.\","
			 "\"code\":\"word\"}}",
			 cases[i].status, cases[i].status);
		assert_int_equal(sandbox_fault(p->box, rule), 0);
		file_make(&file, "a.pdf", "x");
		assert_int_equal(backend_upload_sign(p->b, call_of(p), &file.u), 0);
		struct call *call = call_of(p);
		call->deadline_ms = clock_now_ms() + 1500;
		int r = backend_upload_store(p->b, call, &file.u);
		const struct fault *f = &call->fault;
		if (r != cases[i].error || f->kind != cases[i].kind || f->may_have_happened != cases[i].may_have_happened)
			fail_msg("%d: %d, kind %d, %d, %s", cases[i].status, r, (int)f->kind, f->may_have_happened, f->words);
		snprintf(rule, sizeof(rule), "Said %d.", cases[i].status);
		if (cases[i].status != 429 && !strstr(f->words, rule))
			fail_msg("%d: %s", cases[i].status, f->words);
		assert_int_equal(file.u.step, UPLOAD_SIGNED);
		control(p, "/faults/clear", "{}");
		file_end(&file);
	}
	/* It was never sent twice on its own account, whatever was said. */
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 0);
}

static void values_of_a_queue_overrule_those_of_all(void **state)
{
	struct place *p = *state;
	static const char *const given[][2] = { { "values", "currency:eur" },
						{ "values", "unit:a/b:c" },
						{ "values", "Invoices/currency:usd" },
						{ "values", "9/currency:czk" },
						{ "values", "9/only:here" } };
	static const struct {
		const char *queue, *values;
	} cases[] = {
		{ "8199", "\"values\":{\"upload:unit\":\"a/b:c\",\"upload:currency\":\"usd\"}" },
		{ "9", "\"values\":{\"upload:unit\":\"a/b:c\",\"upload:currency\":\"czk\",\"upload:only\":\"here\"}" },
		{ "10", "\"values\":{\"upload:currency\":\"eur\",\"upload:unit\":\"a/b:c\"}" },
	};

	control(p, "/rossum/queue", "{\"id\":9,\"name\":\"Other\",\"workspace\":70}");
	control(p, "/rossum/queue", "{\"id\":10,\"name\":\"Third\",\"workspace\":70}");
	memcpy(p->options, given, sizeof(given));
	reopen(p);
	for (size_t i = 0; i < COUNT(cases); i++) {
		struct file file;

		file_make(&file, "a.pdf", cases[i].queue);
		file.u.session_id = cases[i].queue;
		file_upload(p, &file);
		CLEANUP(text_release) char *all = state_of_service(p);
		if (!strstr(all, cases[i].values))
			fail_msg("queue %s: %s", cases[i].queue, all);
		file_end(&file);
	}
	assert_in_range(sandbox_count(p->box, "rossum_queue"), 1, 3); /* a name is asked for once */
}

static void a_failed_import_is_a_refusal(void **state)
{
	struct place *p = *state;
	struct file file;

	set(p, "rossum.import_fail", "broken");
	set(p, "rossum.import_ms", "0");
	file_make(&file, "broken.pdf", "x");
	assert_int_equal(file_store(p, &file), 0);
	assert_int_equal(file_attach(p, &file), -EINVAL);
	assert_int_equal(file.u.fault.kind, FAULT_INVALID);
	assert_non_null(strstr(file.u.fault.words, "import failed"));
	file_end(&file);
}

static void what_a_hook_stopped_is_refused(void **state)
{
	struct place *p = *state;
	struct file file;

	set(p, "rossum.hook_prevent", "stop");
	file_make(&file, "stop.pdf", "x");
	assert_int_equal(file_store(p, &file), 0);
	assert_int_equal(file_attach(p, &file), -EINVAL);
	assert_int_equal(file.u.fault.kind, FAULT_INVALID);
	assert_non_null(strstr(file.u.fault.words, "hook"));
	file_end(&file);
}

static void what_stays_unborn_is_refused_after_a_while(void **state)
{
	struct place *p = *state;
	struct file file;
	struct upload *u = &file.u;
	char *ticket;

	set(p, "rossum.hook_prevent", "stop");
	set(p, "rossum.hook_leaves", "created");
	file_make(&file, "stop.pdf", "x");
	assert_int_equal(file_store(p, &file), 0);
	struct call *call = call_of(p);
	call->deadline_ms = clock_now_ms() + 1000;
	assert_int_equal(backend_upload_attach(p->b, call, &u, 1), -ETIMEDOUT);
	assert_int_equal(call->fault.kind, FAULT_AWAY);
	/* A minute later. */
	char *at = strstr(file.u.ticket, "\"taken\":");
	assert_non_null(at);
	assert_true(asprintf(&ticket, "%.*s\"taken\":%lld}", (int)(at - file.u.ticket), file.u.ticket,
			     (long long)clock_wall_ms() - 60000) > 0);
	free(file.u.ticket);
	file.u.ticket = ticket;
	assert_int_equal(file_attach(p, &file), -EINVAL);
	assert_int_equal(file.u.fault.kind, FAULT_INVALID);
	assert_non_null(strstr(file.u.fault.words, "hook"));
	file_end(&file);
}

static void what_is_too_large_is_not_sent(void **state)
{
	struct place *p = *state;
	struct file file;

	file_make(&file, "a.pdf", "x");
	file.u.size_bytes = 40000001;
	assert_int_equal(file_store(p, &file), -EFBIG);
	assert_int_equal(p->call.fault.kind, FAULT_TOO_LARGE);
	assert_int_equal(sandbox_count(p->box, NULL), 0);
	file_end(&file);
}

static void words_of_an_outage_are_quoted(void **state)
{
	struct place *p = *state;
	struct file file;

	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_upload\",\"action\":\"status\",\"status\":503,\"body\":{"
					       "\"detail\":\"Maintenance until noon.\",\"code\":\"service_unavailable\"}}"),
			 0);
	file_make(&file, "a.pdf", "x");
	assert_int_equal(file_store(p, &file), -EIO);
	assert_int_equal(p->call.fault.kind, FAULT_AWAY);
	assert_string_equal(p->call.fault.words, "Maintenance until noon.");
	file_end(&file);
}

static void errors_by_field_are_read_too(void **state)
{
	struct place *p = *state;
	struct file file;

	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_upload\",\"action\":\"status\",\"status\":400,\"body\":{"
					       "\"content\":[\"The file is empty.\"],\"queue\":\"Invalid.\"}}"),
			 0);
	file_make(&file, "a.pdf", "x");
	assert_int_equal(file_store(p, &file), -EINVAL);
	assert_string_equal(p->call.fault.words, "content: The file is empty. queue: Invalid.");
	file_end(&file);
}

static void an_upload_whose_answer_was_lost_is_found(void **state)
{
	struct place *p = *state;
	static const char *const forms[] = { "multipart", "raw" };

	for (size_t i = 0; i < COUNT(forms); i++) {
		struct file file;
		struct document doc;

		p->options[0][0] = "upload_form";
		p->options[0][1] = forms[i];
		reopen(p);
		annotation(p, "\"filename\":\"a.pdf\",\"text\":\"%PDF-1.4 of somebody else\"");
		CLEANUP(listing_release) struct listing *before = list(p, NULL);
		assert_int_equal(sandbox_fault(p->box, "{\"path\":\"/uploads\",\"method\":\"POST\",\"when\":\"after\",\"action\":"
						       "\"close\"}"),
				 0);
		file_make(&file, "a.pdf", forms[i]);
		assert_int_equal(file_store(p, &file), -EIO);
		assert_true(p->call.fault.may_have_happened);
		/* Its import has not even begun when we look: that takes time. */
		assert_int_equal(backend_upload_find(p->b, call_of(p), &file.u, NULL, 0), 0);
		assert_int_equal(file.u.step, UPLOAD_ATTACHED);
		listing_get(file.u.document, 0, &doc);
		assert_string_equal(doc.filename, "a.pdf");
		assert_int_equal(listing_find(before, doc.id), -1);
		file_end(&file);
	}
}

static void an_upload_that_never_arrived_is_surely_not_there(void **state)
{
	struct place *p = *state;
	struct file file, twin;

	file_make(&twin, "a.pdf", "same bytes");
	file_upload(p, &twin);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_upload\",\"when\":\"before\",\"action\":\"close\"}"), 0);
	file_make(&file, "a.pdf", "same bytes");
	assert_int_equal(file_store(p, &file), -EIO);
	int64_t began_ms = clock_now_ms();
	assert_int_equal(backend_upload_find(p->b, call_of(p), &file.u, NULL, 0), -ENOENT);
	assert_int_equal(p->call.fault.kind, FAULT_NONE);
	assert_in_range(clock_now_ms() - began_ms, 500, 15000); /* it waited for it to show */
	/* Only now, when it may have been taken once, the service is asked to refuse a second one. */
	file.u.is_retry = true;
	assert_int_equal(file_store(p, &file), -EBUSY);
	assert_int_equal(p->call.fault.kind, FAULT_CONFLICT);
	file_end(&file);
	file_end(&twin);
}

static void the_same_file_goes_into_two_queues_in_spite_of_a_retry(void **state)
{
	struct place *p = *state;
	struct file first, second;

	control(p, "/rossum/queue", "{\"id\":9,\"name\":\"Other\",\"workspace\":70}");
	file_make(&first, "a.pdf", "same bytes");
	first.u.session_id = "9";
	file_upload(p, &first);
	/* It was refused before it was looked at: nothing can have happened. */
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_upload\",\"action\":\"status\",\"status\":403,\"body\":{"
					       "\"detail\":\"No.\"}}"),
			 0);
	file_make(&second, "a.pdf", "same bytes");
	assert_int_equal(file_store(p, &second), -EACCES);
	second.u.is_retry = true;
	file_upload(p, &second);
	file_end(&first);
	file_end(&second);
}

static void a_task_that_is_gone_says_nothing_about_the_file(void **state)
{
	struct place *p = *state;
	struct file file;

	file_make(&file, "a.pdf", "x");
	assert_int_equal(file_store(p, &file), 0);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_task\",\"action\":\"status\",\"status\":404,\"body\":{"
					       "\"detail\":\"Not found.\"}}"),
			 0);
	assert_true(file_attach(p, &file) < 0);
	assert_int_equal(file.u.fault.kind, FAULT_KEY); /* and not that the queue is gone */
	assert_int_equal(backend_upload_find(p->b, call_of(p), &file.u, NULL, 0), 0);
	file_end(&file);
}

static void a_way_followed_half_is_taken_up_by_another_process(void **state)
{
	struct place *p = *state;
	struct file file;
	struct upload *u = &file.u;

	set(p, "rossum.create_ms", "1000");
	file_make(&file, "a.pdf", "x");
	assert_int_equal(file_store(p, &file), 0);
	struct call *call = call_of(p);
	call->deadline_ms = clock_now_ms() + 500;
	assert_int_equal(backend_upload_attach(p->b, call, &u, 1), -ETIMEDOUT);
	assert_non_null(strstr(file.u.ticket, "\"upload\""));
	reopen(p);
	control(p, "/requests/clear", NULL);
	assert_int_equal(file_attach(p, &file), 0);
	assert_int_equal(sandbox_count(p->box, "rossum_task"), 0);
	assert_int_equal(sandbox_count(p->box, "rossum_upload"), 0);
	file_end(&file);
}

/* ---- credentials --------------------------------------------------------------------------------------------- */

static void a_user_logs_in_once(void **state)
{
	struct place *p = *state;

	p->token = NULL;
	reopen(p);
	assert_int_equal(backend_check(p->b, call_of(p)), 0);
	listing_unref(list(p, NULL));
	assert_int_equal(sandbox_count(p->box, "rossum_login"), 1);
}

static void a_token_that_ended_is_made_anew(void **state)
{
	struct place *p = *state;
	static const char *const answers[] = { "401", "403" };

	p->token = NULL;
	for (size_t i = 0; i < COUNT(answers); i++) {
		struct file file;

		set(p, "rossum.expired", answers[i]);
		set(p, "rossum.login_rate", "off");
		reopen(p);
		control(p, "/requests/clear", NULL);
		listing_unref(list(p, NULL));
		control(p, "/rossum/revoke", "{}");
		usleep(2100 * 1000 / HASTE); /* one that is refused right after its login would be a reason not to log in */
		file_make(&file, "a.pdf", answers[i]);
		file_upload(p, &file);
		assert_int_equal(sandbox_count(p->box, "rossum_login"), 2);
		file_end(&file);
	}
}

static void a_missing_right_is_no_reason_to_log_in(void **state)
{
	struct place *p = *state;
	struct session s = { 0 };

	p->token = NULL;
	reopen(p);
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_queue\",\"times\":0,\"action\":\"status\",\"status\":403,"
					       "\"body\":{\"detail\":\"Not permitted.\"}}"),
			 0);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(backend_get_session(p->b, call_of(p), "8199", &s), -EACCES);
		assert_int_equal(p->call.fault.kind, FAULT_FORBIDDEN);
		assert_string_equal(p->call.fault.words, "Not permitted.");
	}
	assert_int_equal(sandbox_count(p->box, "rossum_login"), 1);
	assert_int_equal(sandbox_count(p->box, "rossum_user"), 1); /* asked once, then believed for a while */
}

static void a_token_that_is_no_more_holds_the_account(void **state)
{
	struct place *p = *state;
	static const char *const answers[] = { "401", "403" };

	control(p, "/rossum/revoke", "{}");
	log_open(LOG_LEVEL_ERROR, true); /* the refusal is worth an error, and this one is asked for */
	for (size_t i = 0; i < COUNT(answers); i++) {
		struct listing *l = NULL;

		set(p, "rossum.expired", answers[i]);
		reopen(p);
		assert_int_equal(backend_list_documents(p->b, call_of(p), "8199", NULL, &l), -EACCES);
		assert_int_equal(p->call.fault.kind, FAULT_ACCOUNT);
		assert_int_equal(backend_check(p->b, call_of(p)), -EACCES);
		assert_int_equal(p->call.fault.kind, FAULT_ACCOUNT);
	}
}

static void a_wrong_password_is_not_tried_again_and_again(void **state)
{
	struct place *p = *state;

	p->token = NULL;
	p->password = "wrong";
	reopen(p);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(backend_check(p->b, call_of(p)), -EACCES);
		assert_int_equal(p->call.fault.kind, FAULT_ACCOUNT);
		assert_true(p->call.fault.words[0] != '\0');
		assert_null(strstr(p->call.fault.words, "wrong"));
	}
	assert_int_equal(sandbox_count(p->box, "rossum_login"), 1);
	p->password = "correct horse"; /* another one is tried at once */
	assert_int_equal(backend_check(p->b, call_of(p)), 0);
}

static void a_throttled_login_stops_no_upload(void **state)
{
	struct place *p = *state;
	struct file file;

	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_login\",\"times\":0,\"action\":\"status\",\"status\":429,"
					       "\"headers\":{\"Retry-After\":\"60\"},\"body\":{\"detail\":\"Slow down.\"}}"),
			 0);
	p->token = NULL;
	reopen(p);
	file_make(&file, "a.pdf", "x");
	int64_t began_ms = clock_now_ms();
	assert_int_equal(file_store(p, &file), 0); /* by name and password: this route takes them */
	assert_in_range(clock_now_ms() - began_ms, 0, 5000);
	assert_true(file_attach(p, &file) < 0); /* the others do not */
	assert_int_equal(file.u.fault.kind, FAULT_BUDGET);
	assert_true(file.u.fault.retry_after_ms > 20000);
	struct file other;
	file_make(&other, "b.pdf", "y");
	assert_int_equal(file_store(p, &other), 0);
	assert_int_equal(sandbox_count(p->box, "rossum_login"), 1);
	assert_int_equal(sandbox_count(p->box, "rossum_upload"), 2);
	file_end(&file);
	file_end(&other);
}

struct crowd {
	struct place *p;
	int index, error;
};

static void *upload_one(void *arg)
{
	struct crowd *c = arg;
	struct place *p = c->p;
	struct file file;
	char name[30];

	snprintf(name, sizeof(name), "crowd %d.pdf", c->index);
	file_make(&file, name, name);
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + 30000 };
	struct upload *u = &file.u;

	c->error = backend_upload_sign(p->b, &call, u);
	if (c->error == 0)
		c->error = backend_upload_store(p->b, &call, u);
	if (c->error == 0)
		c->error = backend_upload_attach(p->b, &call, &u, 1);
	if (c->error == 0)
		c->error = u->error;
	file_end(&file);
	return NULL;
}

static void a_token_that_ends_amid_uploads_loses_and_doubles_none(void **state)
{
	enum { CROWD = 20 };
	struct place *p = *state;
	struct crowd crowd[CROWD];
	pthread_t threads[CROWD];

	p->token = NULL;
	reopen(p);
	assert_int_equal(backend_check(p->b, call_of(p)), 0);
	usleep(2100 * 1000 / HASTE);
	for (int i = 0; i < CROWD; i++) {
		crowd[i] = (struct crowd){ .p = p, .index = i };
		assert_int_equal(pthread_create(&threads[i], NULL, upload_one, &crowd[i]), 0);
		if (i == CROWD / 2)
			control(p, "/rossum/revoke", "{}");
	}
	for (int i = 0; i < CROWD; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(crowd[i].error, 0);
	}
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), CROWD);
	assert_int_equal(sandbox_count(p->box, "rossum_login"), 2); /* one for all */
}

static void a_limit_of_ten_a_second_is_never_met(void **state)
{
	struct place *p = *state;
	const struct backend_config config = { .service = "rossum",
					       .url = p->url,
					       .read_credentials = read_credentials,
					       .option = option,
					       .arg = p };
	CLEANUP(buf_release) struct buf why = BUF(1000);

	set(p, "rossum.rate", "10");
	backend_close(p->b);
	assert_int_equal(backend_open(&config, &why, &p->b), 0);
	int64_t began_ms = clock_now_ms();
	for (int i = 0; i < 30; i++)
		assert_int_equal(backend_check(p->b, call_of(p)), 0);
	assert_in_range(clock_now_ms() - began_ms, 2900, 6000);
	CLEANUP(text_release) char *counts = NULL;
	assert_int_equal(sandbox_control(p->box, "GET", "/requests/count", "{\"status\":429}", &counts), 200);
	assert_non_null(strstr(counts, "\"total\":0"));
}

/* ---- documents ----------------------------------------------------------------------------------------------- */

static void bytes_behind_a_redirect_come_without_the_token(void **state)
{
	struct place *p = *state;
	char back[300];

	annotation(p, "\"id\":5000101,\"filename\":\"a.pdf\",\"text\":\"%PDF these bytes\"");
	set(p, "rossum.redirect", "on");
	fetch_text(p, "5000101", back);
	assert_string_equal(back, "%PDF these bytes");
	CLEANUP(text_release) char *seen = requests(p, "rossum_elsewhere");
	assert_non_null(strstr(seen, "\"had_authorization\":false"));
	assert_null(strstr(seen, "\"had_authorization\":true"));
}

static void a_listed_document_is_read_in_one_request(void **state)
{
	struct place *p = *state;
	char back[300];

	annotation(p, "\"id\":5000101,\"filename\":\"a.pdf\",\"text\":\"%PDF these bytes\"");
	listing_unref(list(p, NULL));
	control(p, "/requests/clear", NULL);
	fetch_text(p, "5000101", back);
	assert_int_equal(sandbox_count(p->box, NULL), 1);
}

static void a_size_is_measured_with_and_without_being_told(void **state)
{
	struct place *p = *state;
	static const int sizes[] = { 1, 5000, 70000, 3000000 };
	static const char *const ways[][2] = { { "rossum.redirect", "off" }, { "rossum.redirect", "on" } };

	for (size_t i = 0; i < COUNT(sizes); i++) {
		char json[100];
		snprintf(json, sizeof(json), "\"id\":%zu,\"filename\":\"a.pdf\",\"size\":%d", 71 + i, sizes[i]);
		annotation(p, json);
	}
	for (size_t w = 0; w < COUNT(ways); w++) {
		set(p, ways[w][0], ways[w][1]);
		for (size_t i = 0; i < COUNT(sizes); i++) {
			char id[20];
			int64_t size = -1;
			snprintf(id, sizeof(id), "%zu", 71 + i);
			int r = backend_measure_document(p->b, call_of(p), "8199", id, &size);
			if (r != 0 || size != sizes[i])
				fail_msg("%s=%s: %d, %lld of %d, %s", ways[w][0], ways[w][1], r, (long long)size, sizes[i],
					 p->call.fault.words);
		}
	}
	int64_t size = -1;
	assert_int_equal(backend_measure_document(p->b, call_of(p), "8199", "7777", &size), -ENOENT);
	assert_int_equal(size, -1);
}

static void a_younger_document_has_not_the_size_of_what_was_uploaded(void **state)
{
	struct place *p = *state;
	struct file file;
	struct document doc;

	file_make(&file, "a.pdf", "as it was");
	file_upload(p, &file);
	listing_get(file.u.document, 0, &doc);
	assert_int_equal(doc.size_bytes, file.u.size_bytes);
	char json[200], old_bytes[40];
	snprintf(old_bytes, sizeof(old_bytes), "%s", document_bytes_id(&doc));
	assert_int_equal(sandbox_advance(p->box, 120000), 0);
	snprintf(json, sizeof(json), "{\"annotation\":%s,\"filename\":\"a.pdf\",\"text\":\"%%PDF-1.4 pages were turned\"}", doc.id);
	control(p, "/rossum/replace", json);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	listing_get(l, 0, &doc);
	assert_int_equal(doc.size_bytes, -1);
	assert_null(doc.sha256);
	assert_string_not_equal(document_bytes_id(&doc), old_bytes); /* nor are its bytes those that were kept */
	file_end(&file);
}

static void a_document_that_was_replaced_is_read_as_it_is(void **state)
{
	struct place *p = *state;
	char back[300];

	annotation(p, "\"id\":5000101,\"filename\":\"a.pdf\",\"text\":\"%PDF old\"");
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	control(p, "/rossum/replace", "{\"annotation\":5000101,\"text\":\"%PDF new\"}");
	CLEANUP(listing_release) struct listing *later = list(p, l);
	fetch_text(p, "5000101", back);
	assert_string_equal(back, "%PDF new");
	assert_true(listing_serial(l) != listing_serial(later));
}

static void a_purged_document_is_gone(void **state)
{
	struct place *p = *state;
	CLEANUP(fd_close) int fd = memfd_create("bytes", MFD_CLOEXEC);

	annotation(p, "\"id\":5000101,\"filename\":\"a.pdf\",\"text\":\"%PDF\",\"status\":\"purged\"");
	assert_int_equal(backend_fetch_document(p->b, call_of(p), "8199", "5000101", fd), -ENOENT);
	assert_int_equal(p->call.fault.kind, FAULT_GONE);
}

static void detaching_deletes_softly_and_only_here(void **state)
{
	struct place *p = *state;

	control(p, "/rossum/queue", "{\"id\":9,\"name\":\"Other\",\"workspace\":70}");
	annotation(p, "\"id\":5,\"filename\":\"a.pdf\",\"text\":\"%PDF\"");
	control(p, "/rossum/annotation", "{\"queue\":9,\"id\":6,\"filename\":\"b.pdf\",\"text\":\"%PDF\"}");
	assert_int_equal(backend_detach(p->b, call_of(p), "8199", "6"), -ENOENT); /* moved meanwhile, perhaps */
	assert_int_equal(backend_detach(p->b, call_of(p), "8199", "5"), 0);
	assert_int_equal(backend_detach(p->b, call_of(p), "8199", "5"), -ENOENT);
	assert_int_equal(sandbox_count(p->box, "rossum_forbidden"), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 0);
}

static void a_copy_whose_answer_was_lost_is_not_made_twice(void **state)
{
	struct place *p = *state;
	static const char *const ids[] = { "5" };
	CLEANUP(listing_release) struct listing *there = NULL;
	CLEANUP(listing_release) struct listing *all = NULL;

	control(p, "/rossum/queue", "{\"id\":9,\"name\":\"Other\",\"workspace\":70}");
	annotation(p, "\"id\":5,\"filename\":\"a.pdf\",\"text\":\"%PDF\"");
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_copy\",\"when\":\"after\",\"action\":\"close\"}"), 0);
	assert_int_equal(backend_attach(p->b, call_of(p), "9", "8199", ids, 1, &there), -EIO);
	assert_true(p->call.fault.may_have_happened);
	assert_int_equal(backend_attach(p->b, call_of(p), "9", "8199", ids, 1, &there), 0);
	assert_int_equal(listing_count(there), 1);
	assert_int_equal(backend_list_documents(p->b, call_of(p), "9", NULL, &all), 0);
	assert_int_equal(listing_count(all), 1);
}

static void a_copy_that_is_refused_cannot_be_made_from_there(void **state)
{
	struct place *p = *state;
	static const char *const ids[] = { "5" };
	struct listing *there = NULL;

	annotation(p, "\"id\":5,\"filename\":\"a.pdf\",\"text\":\"%PDF\"");
	assert_int_equal(sandbox_fault(p->box, "{\"route\":\"rossum_copy\",\"action\":\"status\",\"status\":400,\"body\":{"
					       "\"target_queue\":[\"Another organisation's.\"]}}"),
			 0);
	assert_int_equal(backend_attach(p->b, call_of(p), "8199", "8199", ids, 1, &there), -EXDEV);
}

static void the_account_is_described(void **state)
{
	struct place *p = *state;
	CLEANUP(buf_release) struct buf text = BUF(4000);

	assert_int_equal(backend_describe(p->b, call_of(p), &text), 0);
	assert_non_null(strstr(buf_text(&text), "for ann"));
	assert_non_null(strstr(buf_text(&text), "queues: 1 to be seen"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(options_that_make_no_sense_are_told_at_the_start),
		TEST(queues_are_told_apart_by_their_workspace),
		TEST(the_workspaces_are_asked_for_where_two_queues_would_share_a_name),
		TEST(only_named_queues_are_listed_if_any_are_named),
		TEST(queues_of_several_pages_are_all_there),
		TEST(a_page_that_fails_for_a_moment_does_not_end_the_list),
		TEST(accepted_types_become_suffixes),
		TEST(the_id_of_a_queue_is_found_in_an_address),
		TEST(a_listing_is_whole_in_every_dialect),
		TEST(what_is_not_to_be_shown_is_not),
		TEST(bad_news_can_be_read),
		TEST(sizes_are_known_of_our_own_uploads_alone),
		TEST(metadata_that_lies_of_its_shape_is_not_believed),
		TEST(an_unchanged_queue_costs_one_request),
		TEST(one_change_costs_few_requests),
		TEST(ten_thousand_documents_cost_a_hundred_requests),
		TEST(an_old_document_that_changes_is_seen),
		TEST(counts_that_disagree_with_the_list_are_given_up),
		TEST(what_slipped_between_two_pages_is_asked_for),
		TEST(a_page_at_another_host_is_not_asked_for),
		TEST(an_empty_queue_is_told_from_none),
		TEST(what_is_no_listing_is_refused_without_an_abort),
		TEST(odd_members_cost_no_document),
		TEST(pages_that_go_in_a_circle_end),
		TEST(a_name_arrives_as_it_is),
		TEST(metadata_and_values_go_along),
		TEST(values_of_a_queue_overrule_those_of_all),
		TEST(an_upload_costs_few_requests),
		TEST(each_dialect_of_a_task_is_understood),
		TEST(each_refusal_has_its_kind_and_its_words),
		TEST(each_code_of_the_upload_page_means_what_it_says),
		TEST(a_failed_import_is_a_refusal),
		TEST(what_a_hook_stopped_is_refused),
		TEST(what_stays_unborn_is_refused_after_a_while),
		TEST(what_is_too_large_is_not_sent),
		TEST(words_of_an_outage_are_quoted),
		TEST(errors_by_field_are_read_too),
		TEST(an_upload_whose_answer_was_lost_is_found),
		TEST(an_upload_that_never_arrived_is_surely_not_there),
		TEST(the_same_file_goes_into_two_queues_in_spite_of_a_retry),
		TEST(a_task_that_is_gone_says_nothing_about_the_file),
		TEST(a_way_followed_half_is_taken_up_by_another_process),
		TEST(a_user_logs_in_once),
		TEST(a_token_that_ended_is_made_anew),
		TEST(a_missing_right_is_no_reason_to_log_in),
		TEST(a_token_that_is_no_more_holds_the_account),
		TEST(a_wrong_password_is_not_tried_again_and_again),
		TEST(a_throttled_login_stops_no_upload),
		TEST(a_token_that_ends_amid_uploads_loses_and_doubles_none),
		TEST(a_limit_of_ten_a_second_is_never_met),
		TEST(bytes_behind_a_redirect_come_without_the_token),
		TEST(a_listed_document_is_read_in_one_request),
		TEST(a_size_is_measured_with_and_without_being_told),
		TEST(a_younger_document_has_not_the_size_of_what_was_uploaded),
		TEST(a_document_that_was_replaced_is_read_as_it_is),
		TEST(a_purged_document_is_gone),
		TEST(detaching_deletes_softly_and_only_here),
		TEST(a_copy_whose_answer_was_lost_is_not_made_twice),
		TEST(a_copy_that_is_refused_cannot_be_made_from_there),
		TEST(the_account_is_described),
	};

	return cmocka_run_group_tests_name("rossum", tests, NULL, NULL);
}
