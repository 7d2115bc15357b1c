/* client/http.c: the verdicts by a table, the rest against the sandbox and its faults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/http.h"
#include "client/json.h"
#include "tests/sandbox/sandbox.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- verdicts ------------------------------------------------------------------------------------------------ */

static void each_attempt_has_its_verdict(void **state)
{
	enum { GET = 1, PUT = 2, POST = 4 }; /* PUT: to storage */
	static const struct {
		int kinds; /* of request, for which the row holds */
		enum http_target target;
		int status, curl_code;
		enum http_next next;
		int error;
		enum fault_kind kind;
		bool may_have_happened;
	} rows[] = {
		{ GET | POST, HTTP_API, 200, 0, HTTP_DONE, 0, FAULT_NONE, false },
		{ POST, HTTP_API, 201, 0, HTTP_DONE, 0, FAULT_NONE, false },
		{ POST, HTTP_API, 204, 0, HTTP_DONE, 0, FAULT_NONE, false },
		{ GET | POST, HTTP_API, 302, 0, HTTP_GIVE_UP, -EPROTO, FAULT_AWAY, false },
		{ GET | POST, HTTP_API, 400, 0, HTTP_GIVE_UP, -EINVAL, FAULT_INVALID, false },
		{ GET | POST, HTTP_API, 401, 0, HTTP_RENEW_TOKEN, -EACCES, FAULT_ACCOUNT, false },
		{ GET | POST, HTTP_API, 403, 0, HTTP_GIVE_UP, -EACCES, FAULT_FORBIDDEN, false },
		{ GET | POST, HTTP_API, 404, 0, HTTP_GIVE_UP, -ENOENT, FAULT_GONE, false },
		{ GET | POST, HTTP_API, 405, 0, HTTP_GIVE_UP, -EINVAL, FAULT_INVALID, false },
		{ GET | POST, HTTP_API, 408, 0, HTTP_GIVE_UP, -ETIMEDOUT, FAULT_AWAY, false },
		{ GET | POST, HTTP_API, 409, 0, HTTP_GIVE_UP, -EBUSY, FAULT_CONFLICT, false },
		{ GET | POST, HTTP_API, 410, 0, HTTP_GIVE_UP, -ENOENT, FAULT_GONE, false },
		{ GET | POST, HTTP_API, 413, 0, HTTP_GIVE_UP, -EFBIG, FAULT_TOO_LARGE, false },
		{ GET | POST, HTTP_API, 422, 0, HTTP_GIVE_UP, -EINVAL, FAULT_INVALID, false },
		{ GET | POST, HTTP_API, 425, 0, HTTP_GIVE_UP, -EIO, FAULT_AWAY, false },
		{ GET | POST, HTTP_API, 429, 0, HTTP_WAIT_FOR_PLACE, -EAGAIN, FAULT_BUDGET, false },
		{ GET, HTTP_API, 500, 0, HTTP_GIVE_UP, -EIO, FAULT_AWAY, false },
		{ POST, HTTP_API, 500, 0, HTTP_GIVE_UP, -EIO, FAULT_AWAY, true },
		{ POST, HTTP_API, 503, 0, HTTP_GIVE_UP, -EIO, FAULT_AWAY, true },
		{ GET, HTTP_API, 0, CURLE_GOT_NOTHING, HTTP_AGAIN, -EIO, FAULT_AWAY, false },
		{ GET, HTTP_API, 200, CURLE_PARTIAL_FILE, HTTP_AGAIN, -EIO, FAULT_AWAY, false },
		{ POST, HTTP_API, 0, CURLE_GOT_NOTHING, HTTP_GIVE_UP, -EIO, FAULT_AWAY, true },
		{ POST, HTTP_API, 200, CURLE_PARTIAL_FILE, HTTP_GIVE_UP, -EIO, FAULT_AWAY, true },
		{ POST, HTTP_API, 0, CURLE_SEND_FAIL_REWIND, HTTP_GIVE_UP, -EIO, FAULT_AWAY, true },
		{ GET, HTTP_API, 0, CURLE_PEER_FAILED_VERIFICATION, HTTP_GIVE_UP, -EIO, FAULT_AWAY, false },
		{ GET, HTTP_API, 0, CURLE_COULDNT_RESOLVE_HOST, HTTP_GIVE_UP, -EIO, FAULT_AWAY, false },
		{ GET, HTTP_API, 0, CURLE_OPERATION_TIMEDOUT, HTTP_GIVE_UP, -ETIMEDOUT, FAULT_AWAY, false },
		{ POST, HTTP_API, 0, CURLE_OPERATION_TIMEDOUT, HTTP_GIVE_UP, -ETIMEDOUT, FAULT_AWAY, true },
		{ GET | PUT, HTTP_STORAGE, 200, 0, HTTP_DONE, 0, FAULT_NONE, false },
		{ GET | PUT, HTTP_STORAGE, 400, 0, HTTP_GIVE_UP, -EACCES, FAULT_KEY, false },
		{ GET | PUT, HTTP_STORAGE, 401, 0, HTTP_GIVE_UP, -EACCES, FAULT_KEY, false },
		{ GET | PUT, HTTP_STORAGE, 403, 0, HTTP_GIVE_UP, -EACCES, FAULT_KEY, false },
		{ GET, HTTP_STORAGE, 404, 0, HTTP_GIVE_UP, -ENOENT, FAULT_GONE, false },
		{ PUT, HTTP_STORAGE, 404, 0, HTTP_GIVE_UP, -EACCES, FAULT_KEY, false },
		{ PUT, HTTP_STORAGE, 413, 0, HTTP_GIVE_UP, -EFBIG, FAULT_TOO_LARGE, false },
		{ GET | PUT, HTTP_STORAGE, 429, 0, HTTP_GIVE_UP, -EAGAIN, FAULT_BUDGET, false },
		{ GET | PUT, HTTP_STORAGE, 503, 0, HTTP_GIVE_UP, -EIO, FAULT_AWAY, false },
		{ PUT, HTTP_STORAGE, 0, CURLE_SEND_ERROR, HTTP_GIVE_UP, -EIO, FAULT_AWAY, false },
		{ GET, HTTP_STORAGE, 0, CURLE_RECV_ERROR, HTTP_AGAIN, -EIO, FAULT_AWAY, false },
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		for (int kind = GET; kind <= POST; kind *= 2) {
			const struct http_attempt a = { .target = rows[i].target, .status = rows[i].status,
							.curl_code = rows[i].curl_code, .is_get = kind == GET, .is_put = kind == PUT,
							.was_sent = true, .attempts = 1, .time_left_ms = 10000, .retry_after_ms = -1 };
			struct http_verdict v = http_judge(&a);

			if ((rows[i].kinds & kind) && (v.next != rows[i].next || v.error != rows[i].error || v.kind != rows[i].kind ||
						       v.may_have_happened != rows[i].may_have_happened))
				fail_msg("row %zu (%d, curl %d): next %d, error %d, kind %d, may %d", i, rows[i].status,
					 rows[i].curl_code, v.next, v.error, v.kind, v.may_have_happened);
		}
	}
}

static struct http_attempt attempt(void)
{
	return (struct http_attempt){ .target = HTTP_API, .was_sent = true, .attempts = 1, .time_left_ms = 10000, .retry_after_ms = -1 };
}

static void circumstances_change_a_verdict(void **state)
{
	struct http_attempt a = attempt();

	a.status = 401;
	a.token_was_renewed = true;
	assert_int_equal(http_judge(&a).next, HTTP_GIVE_UP);
	a = attempt();
	a.status = 401;
	a.is_anonymous = true;
	assert_int_equal(http_judge(&a).next, HTTP_GIVE_UP);
	a = attempt();
	a.status = 429;
	a.retry_after_ms = 20000; /* later than anybody waits */
	assert_int_equal(http_judge(&a).next, HTTP_GIVE_UP);
	/* Refused when it came again: the first one may have been done, whatever was answered. */
	a = attempt();
	a.status = 422;
	a.attempts = 2;
	a.was_put_off = true;
	assert_true(http_judge(&a).may_have_happened);
	a.status = 409;
	assert_true(http_judge(&a).may_have_happened);
	a.status = 429;
	assert_false(http_judge(&a).may_have_happened);
	a.status = 422;
	a.is_get = true;
	assert_false(http_judge(&a).may_have_happened);
	a = attempt();
	a.curl_code = CURLE_COULDNT_CONNECT;
	a.was_sent = false;
	assert_false(http_judge(&a).may_have_happened);
	a = attempt();
	a.is_get = true;
	a.curl_code = CURLE_GOT_NOTHING;
	a.attempts = 2;
	assert_int_equal(http_judge(&a).next, HTTP_GIVE_UP);
	a.attempts = 1;
	a.time_left_ms = 10;
	assert_int_equal(http_judge(&a).next, HTTP_GIVE_UP);
	a = attempt();
	a.was_cancelled = true;
	a.curl_code = CURLE_ABORTED_BY_CALLBACK;
	assert_int_equal(http_judge(&a).error, -ECANCELED);
	assert_true(http_judge(&a).may_have_happened);
	a = attempt();
	a.answer_too_large = true;
	a.curl_code = CURLE_WRITE_ERROR;
	assert_int_equal(http_judge(&a).error, -EPROTO);
	a = attempt();
	a.local_error = -ENOSPC;
	a.curl_code = CURLE_WRITE_ERROR;
	assert_int_equal(http_judge(&a).error, -ENOSPC);
	assert_int_equal(http_judge(&a).kind, FAULT_NONE);
}

static void plain_http_is_for_this_machine_alone(void **state)
{
	static const struct { const char *url; bool is_allowed; } cases[] = {
		{ "https://api.example.com", true },	     { "https://api.example.com:8443/x?y=z", true },
		{ "http://127.0.0.1:8080/x", true },	     { "http://127.9.9.9/", true },
		{ "http://localhost:1", true },		     { "http://[::1]:1/", true },
		{ "http://api.example.com", false },	     { "http://127.0.0.1.example.com/", false },
		{ "http://localhost.example.com/", false },  { "http://[::2]/", false },
		{ "http://10.0.0.1/", false },		     { "ftp://127.0.0.1/", false },
		{ "file:///etc/passwd", false },	     { "", false },
		{ "/path", false },			     { "http://127.0.0.1@example.com/", false },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		if (http_url_is_allowed(cases[i].url) != cases[i].is_allowed)
			fail_msg("%s", cases[i].url);
	}
}

/* ---- a service ----------------------------------------------------------------------------------------------- */

struct place {
	struct sandbox *box;
	struct limit *limit;
	struct http *http;
	char *session;
	const char *_Atomic token;
	atomic_int reads;
	struct call call;
	struct transfer transfer;
};

static int read_token(void *arg, struct call *call, bool anew, struct secret **ret)
{
	struct place *p = arg;

	atomic_fetch_add(&p->reads, 1);
	*ret = secret_new(atomic_load(&p->token));
	return *ret ? 0 : -ENOENT;
}

static void read_words(const cJSON *body, struct buf *ret)
{
	const cJSON *message = cJSON_GetObjectItemCaseSensitive(body, "message");

	if (cJSON_IsString(message))
		buf_add(ret, message->valuestring);
}

static struct http *http_of(struct place *p, const char *cafile)
{
	const struct http_options options = { .subject = "test", .base_url = sandbox_url(p->box, "api"), .cafile = cafile,
					      .limit = p->limit, .stall_ms = 700, .read_token = read_token,
					      .read_words = read_words, .arg = p };
	CLEANUP(buf_release) struct buf why = BUF(1000);
	struct http *h = NULL;

	if (http_open(&options, &why, &h) < 0)
		fail_msg("%s", buf_text(&why));
	return h;
}

static void begin(struct place *p, const struct sandbox_options *options)
{
	const struct limit_options limit = { .rate = -1, .window_ms = 60000, .subject = "test" };

	atomic_store(&p->token, "token-one");
	assert_int_equal(sandbox_start(options, &p->box), 0);
	assert_int_equal(sandbox_add_token(p->box, "token-one", NULL), 0);
	assert_int_equal(sandbox_add_session(p->box, "Q1", &p->session), 0);
	assert_int_equal(limit_new(&limit, &p->limit), 0);
	p->http = http_of(p, sandbox_cert_file(p->box));
}

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));
	const struct sandbox_options options = { 0 };

	begin(p, &options);
	*state = p;
	return 0;
}

static int setup_tls(void **state)
{
	struct place *p = calloc(1, sizeof(*p));
	const struct sandbox_options options = { .tls = true };

	begin(p, &options);
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct place *p = *state;

	http_close(p->http);
	limit_free(p->limit);
	sandbox_stop(p->box);
	free(p->session);
	free(p);
	return 0;
}

static struct call *call_of(struct place *p, int ms)
{
	memset(&p->transfer, 0, sizeof(p->transfer));
	p->call = (struct call){ .urgency = URGENCY_PERSON, .deadline_ms = ms ? clock_now_ms() + ms : 0, .transfer = &p->transfer };
	return &p->call;
}

static const struct http_request get_workspaces = { .method = "GET", .path = "/workspaces", .ability = "workspaces-read" };
static const struct http_request post_sign = { .method = "POST", .path = "/vapor/signed-storage-url",
					       .body = "{\"content_type\":\"application/pdf\",\"visibility\":\"private\"}" };

static int get(struct place *p, int ms)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };

	return http_do(p->http, call_of(p, ms), &get_workspaces, &reply);
}

static int post(struct place *p, int ms)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };

	return http_do(p->http, call_of(p, ms), &post_sign, &reply);
}

static void fault(struct place *p, const char *rule)
{
	assert_int_equal(sandbox_fault(p->box, rule), 0);
}

static void a_reply_is_json_or_said_not_to_be(void **state)
{
	struct place *p = *state;
	CLEANUP(json_release) cJSON *body = NULL;

	assert_int_equal(http_json(p->http, call_of(p, 5000), &get_workspaces, &body), 0);
	assert_true(cJSON_IsObject(body));
	fault(p, "{\"route\":\"workspaces\",\"action\":\"garble\"}");
	assert_int_equal(http_json(p->http, call_of(p, 5000), &get_workspaces, &body), -EPROTO);
	assert_int_equal(p->call.fault.kind, FAULT_AWAY);
	assert_false(p->call.fault.may_have_happened);
}

static void a_refusal_speaks_in_the_words_of_the_service(void **state)
{
	struct place *p = *state;

	fault(p, "{\"route\":\"workspaces\",\"action\":\"status\",\"status\":403,\"body\":{\"message\":\"Not\\nyou.\"}}");
	assert_int_equal(get(p, 5000), -EACCES);
	assert_int_equal(p->call.fault.kind, FAULT_FORBIDDEN);
	assert_int_equal(p->call.fault.http_status, 403);
	assert_string_equal(p->call.fault.words, "Not you."); /* one line */
	assert_string_equal(p->call.fault.ability, "workspaces-read");
	assert_int_equal(p->call.fault.retry_after_ms, -1);
}

static void a_broken_get_is_sent_once_more_and_a_broken_post_is_not(void **state)
{
	struct place *p = *state;
	static const char *const whens[] = { "unread", "before", "after" };

	for (size_t i = 0; i < COUNT(whens); i++) {
		char rule[200];

		sandbox_control(p->box, "POST", "/requests/clear", NULL, NULL);
		snprintf(rule, sizeof(rule), "{\"route\":\"workspaces\",\"when\":\"%s\",\"action\":\"close\"}", whens[i]);
		fault(p, rule);
		assert_int_equal(get(p, 5000), 0);
		assert_true(sandbox_count(p->box, "workspaces") <= 2);
		/* The connection is an old one by now: curl would repeat it, were it let. */
		snprintf(rule, sizeof(rule), "{\"route\":\"sign\",\"when\":\"%s\",\"action\":\"close\"}", whens[i]);
		fault(p, rule);
		int r = post(p, 5000);
		if (r != -EIO || sandbox_count(p->box, "sign") != 1 || !p->call.fault.may_have_happened)
			fail_msg("%s: %d, %ld requests, may have happened %d", whens[i], r, sandbox_count(p->box, "sign"),
				 p->call.fault.may_have_happened);
	}
}

static void a_cut_answer_is_no_answer(void **state)
{
	struct place *p = *state;

	fault(p, "{\"route\":\"workspaces\",\"times\":0,\"action\":\"truncate\",\"bytes\":10}");
	assert_int_equal(get(p, 5000), -EIO);
	assert_int_equal(sandbox_count(p->box, "workspaces"), 2);
}

static void an_answer_larger_than_agreed_is_refused(void **state)
{
	struct place *p = *state;
	struct http_request q = get_workspaces;
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };

	q.answer_bytes_max = 20;
	assert_int_equal(http_do(p->http, call_of(p, 5000), &q, &reply), -EPROTO);
	assert_int_equal(reply.body_bytes, 0);
	assert_string_equal(p->call.fault.words, "the answer is too large");
}

static void time_ends_at_the_deadline_or_where_nothing_moves(void **state)
{
	struct place *p = *state;
	int64_t began_ms = clock_now_ms();

	fault(p, "{\"route\":\"workspaces\",\"times\":0,\"action\":\"stall\"}");
	assert_int_equal(get(p, 300), -ETIMEDOUT);
	assert_in_range(clock_now_ms() - began_ms, 300, 600);
	began_ms = clock_now_ms();
	assert_int_equal(get(p, 0), -ETIMEDOUT);
	assert_in_range(clock_now_ms() - began_ms, 700, 1400);
	assert_int_equal(p->call.fault.kind, FAULT_AWAY);
}

static void *cancel_soon(void *arg)
{
	struct place *p = arg;

	usleep(150000);
	atomic_store(&p->transfer.cancelled, true);
	return NULL;
}

static void a_cancelled_call_ends_within_a_blink(void **state)
{
	struct place *p = *state;
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	pthread_t thread;

	fault(p, "{\"route\":\"workspaces\",\"times\":0,\"action\":\"stall\"}");
	struct call *call = call_of(p, 10000);
	int64_t began_ms = clock_now_ms();
	assert_int_equal(pthread_create(&thread, NULL, cancel_soon, p), 0);
	assert_int_equal(http_do(p->http, call, &get_workspaces, &reply), -ECANCELED);
	assert_in_range(clock_now_ms() - began_ms, 100, 350);
	assert_int_equal(call->fault.kind, FAULT_CANCELED);
	pthread_join(thread, NULL);
}

static void too_many_requests_are_waited_out(void **state)
{
	struct place *p = *state;
	int64_t began_ms = clock_now_ms();
	static const char rule[] = "{\"route\":\"workspaces\",\"action\":\"status\",\"status\":429,\"headers\":{\"Retry-After\":\"1\"}}";

	fault(p, rule);
	assert_int_equal(get(p, 10000), 0);
	assert_in_range(clock_now_ms() - began_ms, 900, 2000);
	fault(p, rule);
	assert_int_equal(get(p, 500), -EAGAIN); /* that would take longer than there is */
	assert_int_equal(p->call.fault.kind, FAULT_BUDGET);
	assert_int_equal(p->call.fault.retry_after_ms, 1000);
}

static void a_new_token_is_used_without_a_word(void **state)
{
	struct place *p = *state;

	assert_int_equal(get(p, 5000), 0);
	assert_int_equal(atomic_load(&p->reads), 1);
	assert_int_equal(sandbox_add_token(p->box, "token-two", NULL), 0);
	assert_int_equal(sandbox_control(p->box, "POST", "/revoke", "{\"token\":\"token-one\"}", NULL), 200);
	atomic_store(&p->token, "token-two");
	assert_int_equal(get(p, 5000), 0);
	assert_int_equal(atomic_load(&p->reads), 2);
}

static void a_refused_token_is_read_anew_once_and_then_believed(void **state)
{
	struct place *p = *state;

	log_open(LOG_LEVEL_ERROR, true);
	atomic_store(&p->token, "token-wrong");
	for (int i = 0; i < 5; i++) {
		assert_int_equal(get(p, 5000), -EACCES);
		assert_int_equal(p->call.fault.kind, FAULT_ACCOUNT);
		assert_int_equal(p->call.fault.http_status, 401);
	}
	assert_int_equal(atomic_load(&p->reads), 2); /* and not for each of the five */
	log_open(LOG_LEVEL_ERROR, false);
}

static void *get_often(void *arg)
{
	struct place *p = arg;
	intptr_t failed = 0;

	for (int i = 0; i < 20; i++) {
		struct transfer transfer = { 0 };
		struct call call = { .deadline_ms = clock_now_ms() + 10000, .transfer = &transfer };
		CLEANUP(http_reply_release) struct http_reply reply = { 0 };

		failed += http_do(p->http, &call, i % 2 ? &post_sign : &get_workspaces, &reply) != 0;
	}
	return (void *)failed;
}

static void threads_share_what_there_is(void **state)
{
	struct place *p = *state;
	pthread_t threads[8];

	for (int i = 0; i < 8; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, get_often, p), 0);
	usleep(20000);
	assert_int_equal(sandbox_add_token(p->box, "token-two", NULL), 0);
	atomic_store(&p->token, "token-two");
	assert_int_equal(sandbox_control(p->box, "POST", "/revoke", "{\"token\":\"token-one\"}", NULL), 200);
	for (int i = 0; i < 8; i++) {
		void *failed;

		pthread_join(threads[i], &failed);
		assert_null(failed);
	}
	assert_in_range(atomic_load(&p->reads), 1, 3);
}

static void the_certificate_has_to_be_right(void **state)
{
	struct place *p = *state;
	struct http *distrusting;

	assert_int_equal(get(p, 30000), 0);
	distrusting = http_of(p, NULL);
	struct http *trusting = p->http;
	p->http = distrusting;
	assert_int_equal(get(p, 30000), -EIO);
	assert_int_equal(p->call.fault.kind, FAULT_AWAY);
	assert_int_equal(atomic_load(&p->reads), 2);
	assert_int_equal(sandbox_count(p->box, "workspaces"), 1); /* it never heard of us */
	http_close(distrusting);
	p->http = trusting;
}

/* ---- storage ------------------------------------------------------------------------------------------------- */

/* A signed address, and its one header. */
static char *signed_url(struct place *p, char **ret_key)
{
	CLEANUP(json_release) cJSON *body = NULL;

	assert_int_equal(http_json(p->http, call_of(p, 5000), &post_sign, &body), 0);
	*ret_key = strdup(cJSON_GetObjectItem(body, "key")->valuestring);
	return strdup(cJSON_GetObjectItem(body, "url")->valuestring);
}

static int filled_file(size_t bytes)
{
	int fd = memfd_create("file", MFD_CLOEXEC);
	CLEANUP(text_release) char *text = malloc(bytes);

	assert_non_null(text);
	for (size_t i = 0; i < bytes; i++)
		text[i] = (char)(i * 7 + i / 1000);
	memcpy(text, "%PDF-1.4\n", 9);
	assert_int_equal(pwrite(fd, text, bytes, 0), bytes);
	return fd;
}

static const char *const pdf_header[] = { "Content-Type: application/pdf", NULL };

static void bytes_go_to_storage_without_the_token_and_show_their_progress(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *key = NULL;
	CLEANUP(text_release) char *url = signed_url(p, &key);
	CLEANUP(text_release) char *log = NULL;
	CLEANUP(fd_close) int fd = filled_file(3000000);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	const struct http_source source = { fd, 3000000 };
	const struct http_request q = { .target = HTTP_STORAGE, .method = "PUT", .url = url, .source = &source, .headers = pdf_header };

	assert_int_equal(http_do(p->http, call_of(p, 0), &q, &reply), 0);
	assert_int_equal(atomic_load(&p->transfer.done_bytes), 3000000);
	assert_true(atomic_load(&p->transfer.moved_ms) > 0);
	assert_int_equal(sandbox_control(p->box, "GET", "/requests?route=put", NULL, &log), 200);
	assert_non_null(strstr(log, "\"had_authorization\":false"));
	assert_null(strstr(log, "100-continue"));
}

static void a_file_that_became_shorter_is_not_sent(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *key = NULL;
	CLEANUP(text_release) char *url = signed_url(p, &key);
	CLEANUP(fd_close) int fd = filled_file(1000);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	const struct http_source source = { fd, 2000 };
	const struct http_request q = { .target = HTTP_STORAGE, .method = "PUT", .url = url, .source = &source, .headers = pdf_header };

	log_open(LOG_LEVEL_ERROR, true);
	assert_int_equal(http_do(p->http, call_of(p, 5000), &q, &reply), -EIO);
	assert_int_equal(p->call.fault.kind, FAULT_NONE); /* ours, not the service's */
	log_open(LOG_LEVEL_ERROR, false);
}

static void a_slow_transfer_lasts_while_its_bytes_move(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *key = NULL;
	CLEANUP(text_release) char *url = signed_url(p, &key);
	CLEANUP(fd_close) int fd = filled_file(200000);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	const struct http_source source = { fd, 200000 };
	const struct http_request q = { .target = HTTP_STORAGE, .method = "PUT", .url = url, .source = &source, .headers = pdf_header };

	fault(p, "{\"route\":\"put\",\"action\":\"stall\"}");
	assert_int_equal(http_do(p->http, call_of(p, 0), &q, &reply), -ETIMEDOUT); /* 700 ms without a byte */
	assert_int_equal(p->call.fault.kind, FAULT_AWAY);
	assert_false(p->call.fault.may_have_happened); /* the same bytes in the same place */
}

static int send_it(struct place *p, const struct http_request *q)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };

	return http_do(p->http, call_of(p, 5000), q, &reply);
}

static void an_endless_redirect_ends(void **state)
{
	struct place *p = *state;
	CLEANUP(text_release) char *id = NULL;
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(fd_close) int fd = memfd_create("bytes", MFD_CLOEXEC);
	char path[200];
	struct http_request q = { .method = "GET", .path = path };

	assert_int_equal(sandbox_add_document(p->box, p->session, "a.pdf", "%PDF-1.4 hello", 14, &id), 0);
	snprintf(path, sizeof(path), "/extractions/documents/%s/url", id);
	assert_int_equal(http_json(p->http, call_of(p, 5000), &q, &body), 0);
	q = (struct http_request){ .target = HTTP_STORAGE, .method = "GET", .answer_fd = &fd,
				   .url = cJSON_GetObjectItem(body, "url")->valuestring };
	fault(p, "{\"route\":\"download\",\"times\":0,\"action\":\"status\",\"status\":302,\"headers\":{\"Location\":\"?again\"}}");
	assert_int_equal(send_it(p, &q), -EIO);
	assert_true(sandbox_count(p->box, NULL) < 10);
	assert_int_equal(sandbox_control(p->box, "POST", "/faults/clear", NULL, NULL), 200);
	/* A cut download begins anew and leaves nothing of the first attempt. */
	fault(p, "{\"route\":\"download\",\"action\":\"truncate\",\"bytes\":5}");
	assert_int_equal(send_it(p, &q), 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), 14);
	/* Nothing is sent in the clear because an answer says so. */
	q.url = "http://storage.example.com/x";
	assert_int_equal(send_it(p, &q), -EINVAL);
	fault(p, "{\"route\":\"download\",\"action\":\"status\",\"status\":302,\"headers\":{\"Location\":\"http://storage.example.com/x\"}}");
	q.url = cJSON_GetObjectItem(body, "url")->valuestring;
	assert_int_equal(send_it(p, &q), -EIO);
}

/* ---- downloads that are read as they come --------------------------------------------------------------------- */

#define DOCUMENT_BYTES 300000

struct download {
	struct place *p;
	struct http_request q;
	cJSON *link; /* owned */
	char *id;    /* owned */
	int fd;      /* owned */
	int64_t told_bytes;
};

static void on_bytes(void *arg)
{
	struct download *d = arg;
	struct stat st;

	assert_int_equal(fstat(d->fd, &st), 0);
	assert_true(d->p->transfer.done_bytes > d->told_bytes);
	assert_true(d->p->transfer.done_bytes <= st.st_size);
	d->told_bytes = d->p->transfer.done_bytes;
}

static char *document_bytes(void)
{
	char *bytes = malloc(DOCUMENT_BYTES);

	for (int i = 0; i < DOCUMENT_BYTES; i++)
		bytes[i] = (char)(i * 7 + i / 251);
	return bytes;
}

static void download_begin(struct place *p, struct download *d)
{
	CLEANUP(text_release) char *bytes = document_bytes();
	char path[200];
	const struct http_request q = { .method = "GET", .path = path };

	*d = (struct download){ .p = p, .fd = memfd_create("bytes", MFD_CLOEXEC) };
	assert_int_equal(sandbox_add_document(p->box, p->session, "a.pdf", bytes, DOCUMENT_BYTES, &d->id), 0);
	snprintf(path, sizeof(path), "/extractions/documents/%s/url", d->id);
	assert_int_equal(http_json(p->http, call_of(p, 5000), &q, &d->link), 0);
	d->q = (struct http_request){ .target = HTTP_STORAGE, .method = "GET", .answer_fd = &d->fd,
				      .url = cJSON_GetObjectItem(d->link, "url")->valuestring };
	assert_int_equal(sandbox_control(p->box, "POST", "/requests/clear", NULL, NULL), 200);
}

static int download(struct download *d)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	int64_t kept = d->p->transfer.done_bytes;
	struct call *call = call_of(d->p, 5000);

	d->p->transfer.done_bytes = kept;
	call->transfer = &d->p->transfer;
	call->on_bytes = on_bytes;
	call->on_bytes_arg = d;
	d->told_bytes = d->p->transfer.done_bytes;
	return http_do(d->p->http, call, &d->q, &reply);
}

static void download_end(struct download *d)
{
	cJSON_Delete(d->link);
	free(d->id);
	close(d->fd);
}

static void assert_is_document(struct download *d, int64_t bytes)
{
	CLEANUP(text_release) char *right = document_bytes(), *found = malloc(DOCUMENT_BYTES);

	assert_int_equal(pread(d->fd, found, DOCUMENT_BYTES, 0), bytes);
	assert_memory_equal(found, right, bytes);
}

static void what_came_before_the_cut_is_kept_and_the_rest_asked_for(void **state)
{
	static const struct {
		const char *range; /* does storage know them? */
		int cut_at;
		int parts; /* requests that were answered with a part */
	} rows[] = { { "on", 200000, 1 }, { "off", 200000, 0 }, { "on", 1000, 0 }, { "off", 1000, 0 } };
	struct place *p = *state;

	for (size_t i = 0; i < COUNT(rows); i++) {
		CLEANUP(download_end) struct download d;
		CLEANUP(text_release) char *seen = NULL;
		char rule[100];

		p->transfer.done_bytes = 0;
		download_begin(p, &d);
		assert_int_equal(sandbox_set(p->box, "storage.range", rows[i].range), 0);
		snprintf(rule, sizeof(rule), "{\"route\":\"download\",\"action\":\"truncate\",\"bytes\":%d}", rows[i].cut_at);
		fault(p, rule);
		assert_int_equal(download(&d), 0);
		assert_is_document(&d, DOCUMENT_BYTES);
		assert_int_equal(d.told_bytes, DOCUMENT_BYTES);
		assert_int_equal(sandbox_control(p->box, "GET", "/requests", NULL, &seen), 200);
		int parts = 0;
		for (const char *at = seen; (at = strstr(at, "\"status\":206")); at++)
			parts++;
		if (parts != rows[i].parts)
			fail_msg("row %zu: %d parts: %s", i, parts, seen);
	}
}

static void bytes_that_may_have_been_read_are_never_changed(void **state)
{
	static const struct {
		const char *range;
		int kept, wrong_at; /* -1: none is */
		int result;
	} rows[] = {
		{ "on", 200000, -1, 0 },       { "off", 200000, -1, 0 },      { "on", 200000, 199999, -ESTALE },
		{ "off", 200000, 0, -ESTALE }, { "on", 1000, 0, -ESTALE },    { "on", DOCUMENT_BYTES, -1, 0 },
		{ "off", DOCUMENT_BYTES, -1, 0 }, { "on", DOCUMENT_BYTES + 1, -1, -ESTALE },
		{ "off", DOCUMENT_BYTES + 1, -1, -ESTALE }, { "on", 2 * DOCUMENT_BYTES, -1, -ESTALE },
	};
	struct place *p = *state;

	for (size_t i = 0; i < COUNT(rows); i++) {
		CLEANUP(download_end) struct download d;
		CLEANUP(text_release) char *before = calloc(1, 2 * DOCUMENT_BYTES), *right = document_bytes(),
					   *after = malloc(2 * DOCUMENT_BYTES);
		int kept = rows[i].kept;

		download_begin(p, &d);
		assert_int_equal(sandbox_set(p->box, "storage.range", rows[i].range), 0);
		memcpy(before, right, kept < DOCUMENT_BYTES ? kept : DOCUMENT_BYTES);
		if (rows[i].wrong_at >= 0)
			before[rows[i].wrong_at]++;
		assert_int_equal(pwrite(d.fd, before, kept, 0), kept);
		p->transfer.done_bytes = kept;
		int r = download(&d);
		if (r != rows[i].result)
			fail_msg("row %zu: %d", i, r);
		assert_int_equal(pread(d.fd, after, kept, 0), kept);
		assert_memory_equal(before, after, kept);
		if (r == 0)
			assert_is_document(&d, DOCUMENT_BYTES);
	}
}

static void a_part_that_nobody_asked_for_is_no_document(void **state)
{
	struct place *p = *state;
	CLEANUP(download_end) struct download d;

	download_begin(p, &d);
	fault(p, "{\"route\":\"download\",\"action\":\"status\",\"status\":206,\"body\":\"%PDF\","
		 "\"headers\":{\"Content-Range\":\"bytes 100-103/300000\"}}");
	assert_int_equal(download(&d), -EIO);
	assert_int_equal(p->transfer.done_bytes, 0);
	/* From the right place, but not to the end. */
	CLEANUP(text_release) char *right = document_bytes();
	assert_int_equal(pwrite(d.fd, right, 200000, 0), 200000);
	p->transfer.done_bytes = 200000;
	fault(p, "{\"route\":\"download\",\"action\":\"status\",\"status\":206,\"body\":\"%PDF\","
		 "\"headers\":{\"Content-Range\":\"bytes 134464-134467/300000\"}}");
	assert_int_equal(download(&d), -EIO);
	assert_int_equal(p->transfer.done_bytes, 200000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_attempt_has_its_verdict),
		cmocka_unit_test(circumstances_change_a_verdict),
		cmocka_unit_test(plain_http_is_for_this_machine_alone),
		TEST(a_reply_is_json_or_said_not_to_be),
		TEST(a_refusal_speaks_in_the_words_of_the_service),
		TEST(a_broken_get_is_sent_once_more_and_a_broken_post_is_not),
		TEST(a_cut_answer_is_no_answer),
		TEST(an_answer_larger_than_agreed_is_refused),
		TEST(time_ends_at_the_deadline_or_where_nothing_moves),
		TEST(a_cancelled_call_ends_within_a_blink),
		TEST(too_many_requests_are_waited_out),
		TEST(a_new_token_is_used_without_a_word),
		TEST(a_refused_token_is_read_anew_once_and_then_believed),
		TEST(threads_share_what_there_is),
		cmocka_unit_test_setup_teardown(the_certificate_has_to_be_right, setup_tls, teardown),
		TEST(bytes_go_to_storage_without_the_token_and_show_their_progress),
		TEST(a_file_that_became_shorter_is_not_sent),
		TEST(a_slow_transfer_lasts_while_its_bytes_move),
		TEST(an_endless_redirect_ends),
		TEST(what_came_before_the_cut_is_kept_and_the_rest_asked_for),
		TEST(bytes_that_may_have_been_read_are_never_changed),
		TEST(a_part_that_nobody_asked_for_is_no_document),
	};

	log_open(LOG_LEVEL_ERROR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
