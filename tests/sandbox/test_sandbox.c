/* The sandbox refuses what the documentation refuses. Each test asks a fresh one over HTTP, as a client would, but with
 * no line of our client in it. */
#include "tests/sandbox/sandbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <curl/curl.h>
#include <ftw.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TOKEN "rd_live_test"
#define PDF "%PDF-1.4 "

struct fixture {
	struct sandbox *sandbox;
	char *session; /* one, empty */
};

struct reply {
	CURLcode code;
	long status;
	char body[65536];
	size_t body_bytes;
	cJSON *json; /* NULL: none */
	char headers[4096];
};

static size_t take_body(char *bytes, size_t size, size_t count, void *cls)
{
	struct reply *r = cls;
	size_t n = size * count, room = sizeof r->body - 1 - r->body_bytes;
	memcpy(r->body + r->body_bytes, bytes, n < room ? n : room);
	r->body_bytes += n < room ? n : room;
	return n;
}

static size_t take_header(char *bytes, size_t size, size_t count, void *cls)
{
	struct reply *r = cls;
	size_t have = strlen(r->headers), n = size * count;
	if (have + n < sizeof r->headers)
		memcpy(r->headers + have, bytes, n);
	return n;
}

struct wish {
	const char *method, *url, *body, *token, *cafile;
	const char *headers[6];
	size_t body_bytes; /* 0: of the text */
	long timeout_ms;
};

static void ask(const struct wish *w, struct reply *ret)
{
	CURL *c = curl_easy_init();
	struct curl_slist *headers = NULL;
	char authorization[200];
	memset(ret, 0, sizeof *ret);
	if (w->token != NULL) {
		snprintf(authorization, sizeof authorization, "Authorization: Bearer %s", w->token);
		headers = curl_slist_append(headers, authorization);
	}
	for (size_t i = 0; i < 6 && w->headers[i] != NULL; i++)
		headers = curl_slist_append(headers, w->headers[i]);
	headers = curl_slist_append(headers, "Expect:");
	curl_easy_setopt(c, CURLOPT_URL, w->url);
	curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, w->method);
	curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
	if (w->body != NULL) {
		curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE, (long)(w->body_bytes > 0 ? w->body_bytes : strlen(w->body)));
		curl_easy_setopt(c, CURLOPT_POSTFIELDS, w->body);
	}
	if (strcmp(w->method, "HEAD") == 0)
		curl_easy_setopt(c, CURLOPT_NOBODY, 1L);
	if (w->cafile != NULL)
		curl_easy_setopt(c, CURLOPT_CAINFO, w->cafile);
	curl_easy_setopt(c, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, w->timeout_ms > 0 ? w->timeout_ms : 20000L);
	curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_body);
	curl_easy_setopt(c, CURLOPT_WRITEDATA, ret);
	curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, take_header);
	curl_easy_setopt(c, CURLOPT_HEADERDATA, ret);
	ret->code = curl_easy_perform(c);
	curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &ret->status);
	ret->json = cJSON_Parse(ret->body);
	curl_slist_free_all(headers);
	curl_easy_cleanup(c);
}

/* One call of the API; returns the status, or -1 when there was no whole answer. */
static long call(struct fixture *f, const char *token, const char *method, const char *path, const char *body,
		 struct reply *ret)
{
	char url[600];
	snprintf(url, sizeof url, "%s%s", sandbox_url(f->sandbox, "api"), path);
	struct wish w = { .method = method,
			  .url = url,
			  .body = body,
			  .token = token,
			  .headers = { "Accept: application/json",
				       body != NULL ? "Content-Type: application/json" : NULL } };
	ask(&w, ret);
	return ret->code == CURLE_OK ? ret->status : -1;
}

static long call_status(struct fixture *f, const char *token, const char *method, const char *path, const char *body)
{
	struct reply r;
	long status = call(f, token, method, path, body, &r);
	cJSON_Delete(r.json);
	return status;
}

static const char *text_at(const cJSON *json, const char *key)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
	return cJSON_IsString(item) ? item->valuestring : "";
}

static int number_at(const cJSON *json, const char *key)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
	return cJSON_IsNumber(item) ? item->valueint : -1;
}

static const cJSON *at(const cJSON *json, const char *key)
{
	return cJSON_GetObjectItemCaseSensitive(json, key);
}

struct signed_put {
	char url[1200], key[200];
};

static struct signed_put sign(struct fixture *f, const char *content_type)
{
	struct signed_put p;
	struct reply r;
	char body[200];
	snprintf(body, sizeof body, "{\"content_type\":\"%s\",\"visibility\":\"private\"}", content_type);
	assert_int_equal(call(f, TOKEN, "POST", "/vapor/signed-storage-url", body, &r), 200);
	snprintf(p.url, sizeof p.url, "%s", text_at(r.json, "url"));
	snprintf(p.key, sizeof p.key, "%s", text_at(r.json, "key"));
	cJSON_Delete(r.json);
	return p;
}

static long put(const char *url, const char *bytes, const char *header, const char *header2, struct reply *ret)
{
	struct wish w = { .method = "PUT", .url = url, .body = bytes, .headers = { header, header2 } };
	ask(&w, ret);
	cJSON_Delete(ret->json);
	ret->json = NULL;
	return ret->code == CURLE_OK ? ret->status : -1;
}

#define TYPE_PDF "Content-Type: application/pdf"

static long put_pdf(struct fixture *f, const char *bytes, struct signed_put *ret)
{
	struct reply r;
	(void)f;
	*ret = sign(f, "application/pdf");
	return put(ret->url, bytes, TYPE_PDF, NULL, &r);
}

static long upload_key(struct fixture *f, const char *key, struct reply *ret)
{
	char path[200], body[300];
	snprintf(path, sizeof path, "/extractions/sessions/%s/documents/upload", f->session);
	snprintf(body, sizeof body, "{\"keys\":[\"%s\"]}", key);
	return call(f, TOKEN, "POST", path, body, ret);
}

/* The three steps; the caller frees the id. */
static char *upload(struct fixture *f, const char *bytes)
{
	struct signed_put p;
	struct reply r;
	assert_int_equal(put_pdf(f, bytes, &p), 200);
	assert_int_equal(upload_key(f, p.key, &r), 200);
	char *id = strdup(text_at(cJSON_GetArrayItem(at(r.json, "data"), 0), "id"));
	cJSON_Delete(r.json);
	return id;
}

static int documents_in_session(struct fixture *f)
{
	char path[200];
	struct reply r;
	snprintf(path, sizeof path, "/extractions/sessions/%s/documents", f->session);
	assert_int_equal(call(f, TOKEN, "GET", path, NULL, &r), 200);
	int total = number_at(at(r.json, "meta"), "total");
	cJSON_Delete(r.json);
	return total;
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct sandbox_options options = { 0 };
	assert_non_null(f);
	assert_int_equal(sandbox_start(&options, &f->sandbox), 0);
	assert_int_equal(sandbox_add_token(f->sandbox, TOKEN, NULL), 0);
	assert_int_equal(sandbox_add_session(f->sandbox, "Q1", &f->session), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	sandbox_stop(f->sandbox);
	free(f->session);
	free(f);
	return 0;
}

/* --- Who may --- */

static void a_wrong_missing_revoked_or_expired_token_is_401(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 200);
	assert_int_equal(call(f, NULL, "GET", "/workspaces", NULL, &r), 401);
	assert_string_equal(text_at(r.json, "message"), "Unauthenticated.");
	cJSON_Delete(r.json);
	assert_int_equal(call_status(f, "wrong", "GET", "/workspaces", NULL), 401);
	assert_int_equal(
		sandbox_control(f->sandbox, "POST", "/token", "{\"token\":\"brief\",\"expires_in_ms\":5000}", NULL),
		200);
	assert_int_equal(call_status(f, "brief", "GET", "/workspaces", NULL), 200);
	assert_int_equal(sandbox_advance(f->sandbox, 5001), 0);
	assert_int_equal(call_status(f, "brief", "GET", "/workspaces", NULL), 401);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/revoke", "{\"token\":\"" TOKEN "\"}", NULL), 200);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 401);
}

static void each_route_asks_for_its_ability(void **state)
{
	struct fixture *f = *state;
	char document[80], session[80], library[80];
	char *id = upload(f, PDF "x");
	snprintf(session, sizeof session, "/extractions/sessions/%s", f->session);
	snprintf(document, sizeof document, "/extractions/documents/%s/url", id);
	snprintf(library, sizeof library, "/workspaces/7/documents/%s/url", id);
	const struct {
		const char *abilities, *method, *path;
		long status;
	} cases[] = {
		{ "sessions-read", "GET", session, 200 },
		{ "sessions-write", "GET", session, 403 },
		{ "sessions-read", "GET", document, 200 },
		{ "documents-read", "GET", document, 403 },
		{ "documents-read,workspaces-read", "GET", library, 200 },
		{ "documents-read", "GET", library, 403 }, /* both are asked for */
		{ "workspaces-read", "GET", "/workspaces", 200 },
		{ "sessions-read", "GET", "/workspaces", 403 },
		{ "templates-read", "GET", "/workspaces/7/extractions/templates", 200 },
		{ "workspaces-read", "GET", "/workspaces/7/extractions/templates", 403 },
		{ "documents-write", "GET", "/workspaces/7/documents", 403 },
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct reply r;
		assert_int_equal(sandbox_add_token(f->sandbox, "limited", cases[i].abilities), 0);
		if (call(f, "limited", cases[i].method, cases[i].path, NULL, &r) != cases[i].status)
			fail_msg("%s with %s: %ld", cases[i].path, cases[i].abilities, r.status);
		if (cases[i].status == 403)
			assert_string_equal(text_at(r.json, "message"), "This action is unauthorized.");
		cJSON_Delete(r.json);
	}
	assert_int_equal(sandbox_add_token(f->sandbox, "nothing", ""), 0);
	assert_int_equal(call_status(f, "nothing", "POST", "/vapor/signed-storage-url", "{}"), 200); /* asks for none */
	free(id);
}

static void what_is_not_yours_is_not_there(void **state)
{
	struct fixture *f = *state;
	char path[100];
	snprintf(path, sizeof path, "/extractions/sessions/%s", f->session);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/token", "{\"token\":\"other\",\"user\":\"eve\"}", NULL),
			 200);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/workspace", "{\"id\":9,\"name\":\"B\"}", NULL), 200);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/token", "{\"token\":\"nine\",\"workspace\":9}", NULL),
			 200);
	assert_int_equal(call_status(f, "other", "GET", path, NULL), 404);
	assert_int_equal(call_status(f, "nine", "GET", path, NULL), 404);
	assert_int_equal(call_status(f, "nine", "GET", "/workspaces/9/documents", NULL), 200);
	assert_int_equal(call_status(f, "nine", "GET", "/workspaces/7/documents", NULL), 404);
	assert_int_equal(
		call_status(f, TOKEN, "GET", "/extractions/sessions/20000000-0000-4000-8000-000000000001", NULL), 404);
	assert_int_equal(call_status(f, TOKEN, "GET", "/extractions/sessions", NULL),
			 405); /* nobody documents a list */
	assert_int_equal(call_status(f, TOKEN, "PATCH", path, NULL), 405);
	assert_int_equal(call_status(f, TOKEN, "GET", "/nowhere", NULL), 404);
	assert_int_equal(sandbox_set(f->sandbox, "sessions.list", "on"), 0);
	assert_int_equal(call_status(f, TOKEN, "GET", "/extractions/sessions", NULL), 200);
}

/* --- Bodies --- */

static void a_bad_body_is_400_or_422(void **state)
{
	struct fixture *f = *state;
	char path[100], attach[100];
	snprintf(path, sizeof path, "/extractions/sessions/%s/documents/upload", f->session);
	snprintf(attach, sizeof attach, "/extractions/sessions/%s/documents/attach", f->session);
	const struct {
		const char *path, *body;
		long status;
	} cases[] = {
		{ path, "{", 400 },
		{ path, "{} x", 400 },
		{ path, "[]", 422 },
		{ path, "{}", 422 },
		{ path, "{\"keys\":[]}", 422 },
		{ path, "{\"keys\":\"k\"}", 422 },
		{ path, "{\"keys\":[7]}", 422 },
		{ path, "{\"keys\":[\"tmp/none\"]}", 422 },
		{ attach, "{\"document_ids\":[\"x\"]}", 422 },
		{ attach, "{\"document_ids\":[\"30000000-0000-4000-8000-000000000001\"]}", 422 },
		{ "/extractions/sessions", "{\"name\":\"n\"}", 422 },
		{ "/extractions/sessions", "{\"extraction_template_id\":\"10000000-0000-4000-8000-000000000009\"}",
		  422 },
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct reply r;
		if (call(f, TOKEN, "POST", cases[i].path, cases[i].body, &r) != cases[i].status)
			fail_msg("%s: %ld %s", cases[i].body, r.status, r.body);
		if (cases[i].status == 422)
			assert_true(cJSON_IsObject(at(r.json, "errors")));
		cJSON_Delete(r.json);
	}
	struct reply r;
	assert_int_equal(upload_key(f, "tmp/none", &r), 422);
	assert_true(cJSON_IsArray(at(at(r.json, "errors"), "keys.0")));
	cJSON_Delete(r.json);
	char url[300];
	snprintf(url, sizeof url, "%s/vapor/signed-storage-url", sandbox_url(f->sandbox, "api"));
	struct wish form = {
		.method = "POST", .url = url, .body = "{}", .token = TOKEN, .headers = { "Content-Type: text/plain" }
	};
	ask(&form, &r);
	assert_int_equal(r.status, 422);
	cJSON_Delete(r.json);
}

static void a_key_works_once_and_only_when_something_was_put(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	struct signed_put p = sign(f, "application/pdf");
	assert_int_equal(upload_key(f, p.key, &r), 422); /* nothing was PUT */
	cJSON_Delete(r.json);
	assert_int_equal(put(p.url, PDF "1", TYPE_PDF, NULL, &r), 200);
	assert_int_equal(put(p.url, PDF "2", TYPE_PDF, NULL, &r), 200); /* again before use: the later bytes */
	assert_int_equal(upload_key(f, p.key, &r), 200);
	assert_int_equal(number_at(cJSON_GetArrayItem(at(r.json, "data"), 0), "size"), 10);
	assert_string_equal(text_at(cJSON_GetArrayItem(at(r.json, "data"), 0), "status"), "uploaded");
	cJSON_Delete(r.json);
	assert_int_equal(upload_key(f, p.key, &r), 422);
	cJSON_Delete(r.json);
	assert_int_equal(documents_in_session(f), 1);
}

static void one_bad_key_refuses_the_whole_call(void **state)
{
	struct fixture *f = *state;
	struct signed_put p;
	struct reply r;
	char path[100], body[400];
	assert_int_equal(put_pdf(f, PDF "1", &p), 200);
	snprintf(path, sizeof path, "/extractions/sessions/%s/documents/upload", f->session);
	snprintf(body, sizeof body, "{\"keys\":[\"%s\",\"tmp/none\"]}", p.key);
	assert_int_equal(call(f, TOKEN, "POST", path, body, &r), 422);
	assert_null(at(at(r.json, "errors"), "keys.0"));
	assert_non_null(at(at(r.json, "errors"), "keys.1"));
	cJSON_Delete(r.json);
	assert_int_equal(documents_in_session(f), 0);
	assert_int_equal(upload_key(f, p.key, &r), 200); /* not used up by the refused call */
	cJSON_Delete(r.json);
}

static void a_format_nobody_lists_is_refused_at_the_third_step(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	struct signed_put p = sign(f, "text/plain");
	assert_int_equal(put(p.url, "hello", "Content-Type: text/plain", NULL, &r), 200);
	assert_int_equal(upload_key(f, p.key, &r), 422);
	cJSON_Delete(r.json);
	p = sign(f, "application/octet-stream");
	assert_int_equal(put(p.url, PDF, "Content-Type: application/octet-stream", NULL, &r), 200);
	assert_int_equal(upload_key(f, p.key, &r), 200); /* its first bytes tell */
	cJSON_Delete(r.json);
}

static void equal_bytes_are_one_document(void **state)
{
	struct fixture *f = *state;
	char *first = upload(f, PDF "same"), *second = upload(f, PDF "same"), *other = upload(f, PDF "other");
	assert_string_equal(first, second);
	assert_string_not_equal(first, other);
	assert_int_equal(documents_in_session(f), 2);

	struct signed_put p;
	struct reply r;
	char body[400];
	assert_int_equal(put_pdf(f, PDF "same", &p), 200);
	snprintf(body, sizeof body, "{\"key\":\"%s\",\"filename\":\"new name.pdf\"}", p.key);
	assert_int_equal(call(f, TOKEN, "POST", "/workspaces/7/documents", body, &r), 200);
	assert_string_equal(text_at(at(r.json, "document"), "id"), first);
	assert_string_not_equal(text_at(at(r.json, "document"), "filename"), "new name.pdf");
	assert_true(cJSON_IsTrue(at(at(r.json, "dedup"), "reused")));
	cJSON_Delete(r.json);
	assert_int_equal(put_pdf(f, PDF "third", &p), 200);
	snprintf(body, sizeof body, "{\"key\":\"%s\",\"filename\":\"new name.pdf\"}", p.key);
	assert_int_equal(call(f, TOKEN, "POST", "/workspaces/7/documents", body, &r), 201);
	assert_string_equal(text_at(at(r.json, "document"), "filename"), "new name.pdf");
	cJSON_Delete(r.json);
	assert_int_equal(documents_in_session(f), 2); /* the library is not the session */
	free(first);
	free(second);
	free(other);
}

static void detaching_keeps_the_document_and_attaching_brings_it_back(void **state)
{
	struct fixture *f = *state;
	char *id = upload(f, PDF "x");
	char path[200], attach[200], body[200], other_body[400];
	struct reply r;
	snprintf(path, sizeof path, "/extractions/sessions/%s/documents/%s", f->session, id);
	snprintf(attach, sizeof attach, "/extractions/sessions/%s/documents/attach", f->session);
	snprintf(body, sizeof body, "{\"document_ids\":[\"%s\"]}", id);
	assert_int_equal(call_status(f, TOKEN, "DELETE", path, NULL), 204);
	assert_int_equal(call_status(f, TOKEN, "DELETE", path, NULL), 404);
	assert_int_equal(documents_in_session(f), 0);
	assert_int_equal(call_status(f, TOKEN, "POST", attach, body), 200);
	assert_int_equal(call_status(f, TOKEN, "POST", attach, body), 200);
	assert_int_equal(documents_in_session(f), 1);

	char *json = NULL;
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/workspace", "{\"id\":9}", NULL), 200);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/document", "{\"workspace\":9}", &json), 200);
	cJSON *made = cJSON_Parse(json);
	snprintf(other_body, sizeof other_body, "{\"document_ids\":[\"%s\"]}", text_at(made, "id"));
	assert_int_equal(call(f, TOKEN, "POST", attach, other_body, &r), 422);
	assert_non_null(at(at(r.json, "errors"), "document_ids.0"));
	cJSON_Delete(r.json);
	cJSON_Delete(made);
	free(json);
	free(id);
}

/* --- Storage --- */

static void storage_takes_what_was_signed_and_nothing_else(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	struct signed_put p = sign(f, "application/pdf");
	assert_int_equal(put(p.url, PDF, TYPE_PDF, "Authorization: Bearer " TOKEN, &r), 400);
	assert_non_null(strstr(r.body, "<Code>InvalidArgument</Code>"));
	assert_int_equal(put(p.url, PDF, "Content-Type: image/png", NULL, &r), 403);
	assert_non_null(strstr(r.body, "<Code>SignatureDoesNotMatch</Code>"));
	assert_int_equal(put(p.url, PDF, "Content-Type:", NULL, &r), 403);
	assert_int_equal(put(p.url, PDF, TYPE_PDF, "x-amz-acl: private", &r), 403);
	assert_int_equal(put(p.url, PDF, TYPE_PDF, "Transfer-Encoding: chunked", &r), 501);
	assert_int_equal(put(p.url, PDF, TYPE_PDF, "Host: 127.0.0.1:9", &r), 403);
	char other[1300];
	snprintf(other, sizeof other, "%s&x=1", p.url);
	assert_int_equal(put(other, PDF, TYPE_PDF, NULL, &r), 403);
	struct wish head = { .method = "HEAD", .url = p.url };
	ask(&head, &r);
	assert_int_equal(r.status, 403);
	assert_int_equal(upload_key(f, p.key, &r), 422); /* none of those left anything */
	cJSON_Delete(r.json);

	assert_int_equal(sandbox_set(f->sandbox, "sign.acl", "on"), 0);
	p = sign(f, "application/pdf");
	assert_int_equal(put(p.url, PDF, TYPE_PDF, NULL, &r), 403);
	assert_int_equal(put(p.url, PDF, TYPE_PDF, "x-amz-acl: private", &r), 200);
}

static void an_upload_link_ends_after_five_minutes(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	struct signed_put p = sign(f, "application/pdf");
	assert_int_equal(sandbox_advance(f->sandbox, 297000), 0);
	assert_int_equal(put(p.url, PDF, TYPE_PDF, NULL, &r), 200);
	assert_int_equal(sandbox_advance(f->sandbox, 3000), 0);
	assert_int_equal(put(p.url, PDF, TYPE_PDF, NULL, &r), 403);
	assert_non_null(strstr(r.body, "Request has expired"));
}

static void a_download_link_serves_ranges_and_ends_after_ten_minutes(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	char path[100], url[1200];
	char *id = upload(f, PDF "0123456789");
	snprintf(path, sizeof path, "/extractions/documents/%s/url", id);
	assert_int_equal(call(f, TOKEN, "GET", path, NULL, &r), 200);
	snprintf(url, sizeof url, "%s", text_at(r.json, "url"));
	cJSON_Delete(r.json);
	const struct {
		const char *range, *body;
		long status;
	} cases[] = {
		{ NULL, PDF "0123456789", 200 },
		{ "Range: bytes=9-11", "012", 206 },
		{ "Range: bytes=17-", "89", 206 },
		{ "Range: bytes=-3", "789", 206 },
		{ "Range: bytes=18-900", "9", 206 },
		{ "Range: bytes=19-", NULL, 416 },
		{ "Range: lines=1-", PDF "0123456789", 200 },
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct wish w = { .method = "GET", .url = url, .headers = { cases[i].range } };
		ask(&w, &r);
		if (r.status != cases[i].status || (cases[i].body != NULL && strcmp(r.body, cases[i].body) != 0))
			fail_msg("%s: %ld '%s'", cases[i].range, r.status, r.body);
		cJSON_Delete(r.json);
	}
	struct wish with_token = { .method = "GET", .url = url, .token = TOKEN };
	ask(&with_token, &r);
	assert_int_equal(r.status, 400);
	assert_int_equal(sandbox_advance(f->sandbox, 600000), 0);
	struct wish late = { .method = "GET", .url = url };
	ask(&late, &r);
	assert_int_equal(r.status, 403);
	free(id);
}

static void a_cut_upload_stores_nothing(void **state)
{
	struct fixture *f = *state;
	struct signed_put p = sign(f, "application/pdf");
	struct reply r;
	/* A length beyond what is sent: curl waits, gives up and closes. */
	struct wish w = { .method = "PUT",
			  .url = p.url,
			  .body = PDF,
			  .headers = { TYPE_PDF, "Content-Length: 5000" },
			  .timeout_ms = 500 };
	ask(&w, &r);
	assert_int_not_equal(r.code, CURLE_OK);
	assert_int_equal(upload_key(f, p.key, &r), 422);
	cJSON_Delete(r.json);
}

/* --- Lists --- */

static void a_long_listing_comes_in_pages_without_gaps(void **state)
{
	struct fixture *f = *state;
	char path[200], last[80] = "";
	struct reply r;
	assert_int_equal(sandbox_add_documents(f->sandbox, f->session, 47), 0);
	int seen = 0;
	for (int page = 1; page <= 4; page++) {
		snprintf(path, sizeof path, "/extractions/sessions/%s/documents?page=%d", f->session, page);
		assert_int_equal(call(f, TOKEN, "GET", path, NULL, &r), 200);
		assert_int_equal(number_at(at(r.json, "meta"), "last_page"), 4);
		assert_int_equal(number_at(at(r.json, "meta"), "total"), 47);
		const cJSON *one;
		cJSON_ArrayForEach (one, at(r.json, "data")) {
			assert_true(strcmp(text_at(one, "filename"), last) > 0);
			snprintf(last, sizeof last, "%s", text_at(one, "filename"));
			seen++;
		}
		cJSON_Delete(r.json);
	}
	assert_int_equal(seen, 47);
	snprintf(path, sizeof path, "/extractions/sessions/%s/documents?page=9", f->session);
	assert_int_equal(call(f, TOKEN, "GET", path, NULL, &r), 200);
	assert_int_equal(cJSON_GetArraySize(at(r.json, "data")), 0);
	cJSON_Delete(r.json);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces/7/documents?per_page=101", NULL), 422);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces/7/documents?sort=color", NULL), 422);
	assert_int_equal(
		call_status(f, TOKEN, "GET", "/workspaces/7/documents?per_page=100&sort=size&order=desc", NULL), 200);
}

static void a_generated_document_is_what_its_record_says(void **state)
{
	struct fixture *f = *state;
	static const int sizes[] = { 0, 1, 40, 700, 900, 5000, 60000 };
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		char wish[200], path[200], sha256[80], *json = NULL;
		struct reply r;
		snprintf(wish, sizeof wish, "{\"session\":\"%s\",\"size\":%d}", f->session, sizes[i]);
		assert_int_equal(sandbox_control(f->sandbox, "POST", "/document", wish, &json), 200);
		cJSON *made = cJSON_Parse(json);
		snprintf(path, sizeof path, "/extractions/documents/%s", text_at(made, "id"));
		assert_int_equal(call(f, TOKEN, "GET", path, NULL, &r), 200);
		assert_int_equal(number_at(r.json, "size"), sizes[i]);
		snprintf(sha256, sizeof sha256, "%s", text_at(r.json, "sha256"));
		cJSON_Delete(r.json);
		snprintf(path, sizeof path, "%s/document/%s/content", sandbox_url(f->sandbox, "control"),
			 text_at(made, "id"));
		struct wish w = { .method = "GET", .url = path };
		ask(&w, &r);
		assert_int_equal(r.body_bytes, sizes[i]);
		unsigned char digest[32];
		char hex[65];
		SHA256((const unsigned char *)r.body, r.body_bytes, digest);
		for (int k = 0; k < 32; k++)
			snprintf(hex + 2 * k, 3, "%02x", digest[k]);
		assert_string_equal(hex, sha256);
		cJSON_Delete(r.json);
		cJSON_Delete(made);
		free(json);
	}
}

static void the_shape_follows_its_switch(void **state)
{
	struct fixture *f = *state;
	char list[200];
	struct reply r;
	free(upload(f, PDF "x"));
	snprintf(list, sizeof list, "/extractions/sessions/%s/documents", f->session);
	assert_int_equal(sandbox_set(f->sandbox, "shape.documents", "bare"), 0);
	assert_int_equal(sandbox_set(f->sandbox, "shape.size", "meta"), 0);
	assert_int_equal(sandbox_set(f->sandbox, "shape.ids", "decimal"), 0);
	assert_int_equal(sandbox_set(f->sandbox, "shape.mime", "mime_type"), 0);
	assert_int_equal(sandbox_set(f->sandbox, "shape.workspaces", "bare"), 0);
	assert_int_equal(call(f, TOKEN, "GET", list, NULL, &r), 200);
	const cJSON *one = cJSON_GetArrayItem(r.json, 0);
	assert_int_equal(number_at(at(one, "meta"), "file_size"), 10);
	assert_null(at(one, "size"));
	assert_string_equal(text_at(one, "workspace_id"), "7");
	assert_string_equal(text_at(one, "mime_type"), "application/pdf");
	cJSON_Delete(r.json);
	assert_int_equal(call(f, TOKEN, "GET", "/workspaces", NULL, &r), 200);
	assert_true(cJSON_IsArray(r.json));
	cJSON_Delete(r.json);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/set", "{\"shape.size\":\"huge\"}", NULL), 400);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/set", "{\"shape.sise\":\"meta\"}", NULL), 400);
}

/* --- Time --- */

static const char *document_status(struct fixture *f, const char *id, char ret[40])
{
	char path[200];
	struct reply r;
	snprintf(path, sizeof path, "/extractions/documents/%s", id);
	assert_int_equal(call(f, TOKEN, "GET", path, NULL, &r), 200);
	snprintf(ret, 40, "%s", text_at(r.json, "status"));
	cJSON_Delete(r.json);
	return ret;
}

static void nothing_is_parsed_unasked_and_a_run_goes_by_the_clock(void **state)
{
	struct fixture *f = *state;
	char path[200], result[200], status[40];
	struct reply r;
	snprintf(path, sizeof path, "/extractions/sessions/%s/results", f->session);
	assert_int_equal(call_status(f, TOKEN, "POST", path, NULL), 422); /* no documents */
	char *id = upload(f, PDF "x");
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/clock", "{\"freeze\":true}", NULL), 200);
	assert_int_equal(sandbox_advance(f->sandbox, 86400000), 0);
	assert_string_equal(document_status(f, id, status), "uploaded");
	assert_int_equal(call(f, TOKEN, "POST", path, NULL, &r), 201);
	assert_string_equal(text_at(r.json, "status"), "parsing_pending");
	snprintf(result, sizeof result, "/extractions/results/%s", text_at(r.json, "id"));
	cJSON_Delete(r.json);
	assert_string_equal(document_status(f, id, status), "queued");
	assert_int_equal(sandbox_advance(f->sandbox, 500), 0);
	assert_string_equal(document_status(f, id, status), "parsing");
	assert_int_equal(sandbox_advance(f->sandbox, 1500), 0);
	assert_string_equal(document_status(f, id, status), "processed");
	assert_int_equal(call(f, TOKEN, "GET", result, NULL, &r), 200);
	assert_string_equal(text_at(r.json, "status"), "processing");
	assert_true(cJSON_IsNull(at(r.json, "data")));
	cJSON_Delete(r.json);
	assert_int_equal(sandbox_advance(f->sandbox, 1000), 0);
	assert_int_equal(call(f, TOKEN, "GET", result, NULL, &r), 200);
	assert_string_equal(text_at(r.json, "status"), "completed");
	assert_true(cJSON_IsObject(at(r.json, "data")));
	cJSON_Delete(r.json);
	char excel[250];
	snprintf(excel, sizeof excel, "%s/export/excel", result);
	assert_int_equal(call(f, TOKEN, "GET", excel, NULL, &r), 200);
	assert_memory_equal(r.body, "PK\3\4", 4);
	cJSON_Delete(r.json);
	free(id);
}

static void a_document_can_be_made_to_fail(void **state)
{
	struct fixture *f = *state;
	char path[200], status[40];
	snprintf(path, sizeof path, "/extractions/sessions/%s/results", f->session);
	assert_int_equal(sandbox_set(f->sandbox, "parse.fail", "^document-"), 0);
	char *id = upload(f, PDF "x");
	assert_int_equal(call_status(f, TOKEN, "POST", path, NULL), 201);
	assert_int_equal(sandbox_advance(f->sandbox, 10000), 0);
	assert_string_equal(document_status(f, id, status), "failed");
	free(id);
}

static void the_limit_slides(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/clock", "{\"freeze\":true}", NULL), 200);
	assert_int_equal(sandbox_set(f->sandbox, "rate.limit", "5"), 0);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 200);
		assert_int_equal(sandbox_advance(f->sandbox, 10000), 0);
	}
	assert_int_equal(call(f, TOKEN, "GET", "/workspaces", NULL, &r), 429);
	assert_non_null(strcasestr(r.headers, "Retry-After: 10\r\n"));
	cJSON_Delete(r.json);
	assert_int_equal(sandbox_advance(f->sandbox, 10000), 0);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 200);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 429);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/limit/clear", NULL, NULL), 200);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 200);
}

/* --- Faults --- */

static void a_fault_before_does_nothing_and_one_after_has_done_it(void **state)
{
	struct fixture *f = *state;
	struct signed_put p;
	struct reply r;
	assert_int_equal(put_pdf(f, PDF "1", &p), 200);
	assert_int_equal(
		sandbox_fault(f->sandbox, "{\"route\":\"upload\",\"status\":503,\"headers\":{\"Retry-After\":\"7\"}}"),
		0);
	assert_int_equal(upload_key(f, p.key, &r), 503);
	assert_non_null(strcasestr(r.headers, "Retry-After: 7\r\n"));
	cJSON_Delete(r.json);
	assert_int_equal(documents_in_session(f), 0);
	assert_int_equal(sandbox_fault(f->sandbox, "{\"route\":\"upload\",\"action\":\"close\",\"when\":\"after\"}"),
			 0);
	assert_int_equal(upload_key(f, p.key, &r), -1);
	cJSON_Delete(r.json);
	assert_int_equal(documents_in_session(f), 1);
	assert_int_equal(upload_key(f, p.key, &r), 422); /* done, though nobody was told */
	cJSON_Delete(r.json);
}

static void a_fault_strikes_the_nth_request_so_many_times(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(sandbox_fault(f->sandbox,
				       "{\"method\":\"GET\",\"path\":\"^/work\",\"nth\":2,\"times\":2,\"status\":500}"),
			 0);
	static const long expected[] = { 200, 500, 500, 200 };
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), expected[i]);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/fault", "{\"route\":\"no such\",\"status\":500}", NULL),
			 400);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/fault", "{\"statsu\":500}", NULL), 400);
}

static void an_answer_can_be_cut_garbled_or_slow(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	assert_int_equal(sandbox_fault(f->sandbox, "{\"route\":\"workspaces\",\"action\":\"truncate\",\"bytes\":9}"),
			 0);
	assert_int_equal(call(f, TOKEN, "GET", "/workspaces", NULL, &r), -1);
	assert_int_equal(r.body_bytes, 9);
	cJSON_Delete(r.json);
	assert_int_equal(sandbox_fault(f->sandbox, "{\"route\":\"workspaces\",\"action\":\"garble\"}"), 0);
	assert_int_equal(call(f, TOKEN, "GET", "/workspaces", NULL, &r), 200);
	assert_null(r.json);
	assert_int_equal(sandbox_fault(f->sandbox,
				       "{\"route\":\"workspaces\",\"action\":\"slow_response\",\"bytes_per_s\":400}"),
			 0);
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 200);
	clock_gettime(CLOCK_MONOTONIC, &to);
	assert_true((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000 > 150);
}

static void a_connection_can_be_closed_or_reset(void **state)
{
	struct fixture *f = *state;
	static const struct {
		const char *rule;
		CURLcode code;
	} cases[] = {
		{ "{\"action\":\"close\",\"when\":\"unread\"}", CURLE_GOT_NOTHING },
		{ "{\"action\":\"close\"}", CURLE_GOT_NOTHING },
		{ "{\"action\":\"close\",\"reset\":true}", CURLE_RECV_ERROR },
		{ "{\"action\":\"close\",\"reset\":true,\"when\":\"after\"}", CURLE_RECV_ERROR },
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct reply r;
		assert_int_equal(sandbox_fault(f->sandbox, cases[i].rule), 0);
		(void)call(f, TOKEN, "GET", "/workspaces", NULL, &r); /* never a whole answer */
		if (r.code != cases[i].code)
			fail_msg("%s: %s", cases[i].rule, curl_easy_strerror(r.code));
		cJSON_Delete(r.json);
	}
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 200);
}

struct staller {
	struct fixture *f;
	long status;
};

static void *run_staller(void *cls)
{
	struct staller *s = cls;
	s->status = call_status(s->f, TOKEN, "GET", "/workspaces", NULL);
	return NULL;
}

static void two_hundred_stalled_requests_hold_up_nobody(void **state)
{
	struct fixture *f = *state;
	static pthread_t threads[200];
	static struct staller stallers[200];
	assert_int_equal(sandbox_fault(f->sandbox, "{\"route\":\"workspaces\",\"action\":\"stall\",\"times\":0}"), 0);
	for (int i = 0; i < 200; i++) {
		stallers[i].f = f;
		assert_int_equal(pthread_create(&threads[i], NULL, run_staller, &stallers[i]), 0);
	}
	while (sandbox_count(f->sandbox, "workspaces") < 200)
		usleep(1000);
	assert_int_equal(documents_in_session(f), 0);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/faults/clear", NULL, NULL), 200);
	for (int i = 0; i < 200; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(stallers[i].status, 200);
	}
}

static void down_refuses_and_up_is_the_same_address(void **state)
{
	struct fixture *f = *state;
	struct reply r;
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/down", "{\"origins\":[\"api\"]}", NULL), 200);
	assert_int_equal(call(f, TOKEN, "GET", "/workspaces", NULL, &r), -1);
	assert_int_equal(r.code, CURLE_COULDNT_CONNECT);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/up", NULL, NULL), 200);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 200);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/down", "{\"how\":\"blackhole\"}", NULL), 200);
	char url[200];
	snprintf(url, sizeof url, "%s/workspaces", sandbox_url(f->sandbox, "api"));
	struct wish w = { .method = "GET", .url = url, .token = TOKEN, .timeout_ms = 300 };
	ask(&w, &r);
	assert_int_equal(r.code, CURLE_OPERATION_TIMEDOUT);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/up", NULL, NULL), 200);
	assert_int_equal(call_status(f, TOKEN, "GET", "/workspaces", NULL), 200);
}

static void the_log_tells_of_a_token_but_never_the_token(void **state)
{
	struct fixture *f = *state;
	char *json = NULL;
	free(upload(f, PDF "x"));
	assert_int_equal(sandbox_control(f->sandbox, "GET", "/requests", NULL, &json), 200);
	assert_null(strstr(json, TOKEN));
	assert_null(strstr(json, "X-Amz-Signature"));
	cJSON *all = cJSON_Parse(json);
	assert_int_equal(cJSON_GetArraySize(at(all, "requests")), 3);
	const cJSON *one;
	cJSON_ArrayForEach (one, at(all, "requests"))
		assert_int_equal(cJSON_IsTrue(at(one, "had_authorization")),
				 strcmp(text_at(one, "origin"), "api") == 0);
	cJSON_Delete(all);
	free(json);
	assert_int_equal(sandbox_count(f->sandbox, "sign"), 1);
	assert_int_equal(sandbox_count(f->sandbox, NULL), 3);
	assert_int_equal(sandbox_control(f->sandbox, "POST", "/requests/clear", NULL, NULL), 200);
	assert_int_equal(sandbox_count(f->sandbox, NULL), 0);
}

/* --- What lasts --- */

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	(void)st, (void)kind, (void)at;
	return remove(path);
}

static void state_survives_a_restart(void **state)
{
	char dir[] = "/tmp/sessionfs-sandbox-test-XXXXXX";
	struct fixture f = { 0 };
	(void)state;
	assert_non_null(mkdtemp(dir));
	struct sandbox_options options = { .state_dir = dir };
	assert_int_equal(sandbox_start(&options, &f.sandbox), 0);
	assert_int_equal(sandbox_add_token(f.sandbox, TOKEN, NULL), 0);
	assert_int_equal(sandbox_add_session(f.sandbox, "Q1", &f.session), 0);
	char *id = upload(&f, PDF "lasting");
	assert_int_equal(sandbox_add_documents(f.sandbox, f.session, 3), 0);
	struct signed_put p;
	assert_int_equal(put_pdf(&f, PDF "waiting", &p), 200);
	sandbox_stop(f.sandbox);

	assert_int_equal(sandbox_start(&options, &f.sandbox), 0);
	assert_int_equal(documents_in_session(&f), 4);
	struct reply r;
	assert_int_equal(upload_key(&f, p.key, &r), 200);
	cJSON_Delete(r.json);
	char path[200], url[1200];
	snprintf(path, sizeof path, "/extractions/documents/%s/url", id);
	assert_int_equal(call(&f, TOKEN, "GET", path, NULL, &r), 200);
	snprintf(url, sizeof url, "%s", text_at(r.json, "url"));
	cJSON_Delete(r.json);
	struct wish w = { .method = "GET", .url = url };
	ask(&w, &r);
	assert_string_equal(r.body, PDF "lasting");
	cJSON_Delete(r.json);
	sandbox_stop(f.sandbox);
	free(f.session);
	free(id);
	assert_int_equal(nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static void tls_is_answered_with_a_certificate_of_its_own(void **state)
{
	struct sandbox *s = NULL;
	struct sandbox_options options = { .tls = true };
	struct reply r;
	char url[200];
	(void)state;
	assert_int_equal(sandbox_start(&options, &s), 0);
	assert_int_equal(sandbox_add_token(s, TOKEN, NULL), 0);
	assert_int_equal(sandbox_add_session(s, "Q1", NULL), 0);
	snprintf(url, sizeof url, "%s/workspaces", sandbox_url(s, "api"));
	assert_memory_equal(url, "https://", 8);
	struct wish w = { .method = "GET", .url = url, .token = TOKEN, .cafile = sandbox_cert_file(s) };
	ask(&w, &r);
	assert_int_equal(r.status, 200);
	cJSON_Delete(r.json);
	w.cafile = "/etc/ssl/certs/ca-certificates.crt";
	ask(&w, &r);
	assert_int_not_equal(r.code, CURLE_OK);
	sandbox_stop(s);
}

int main(void)
{
#define FRESH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		FRESH(a_wrong_missing_revoked_or_expired_token_is_401),
		FRESH(each_route_asks_for_its_ability),
		FRESH(what_is_not_yours_is_not_there),
		FRESH(a_bad_body_is_400_or_422),
		FRESH(a_key_works_once_and_only_when_something_was_put),
		FRESH(one_bad_key_refuses_the_whole_call),
		FRESH(a_format_nobody_lists_is_refused_at_the_third_step),
		FRESH(equal_bytes_are_one_document),
		FRESH(detaching_keeps_the_document_and_attaching_brings_it_back),
		FRESH(storage_takes_what_was_signed_and_nothing_else),
		FRESH(an_upload_link_ends_after_five_minutes),
		FRESH(a_download_link_serves_ranges_and_ends_after_ten_minutes),
		FRESH(a_cut_upload_stores_nothing),
		FRESH(a_long_listing_comes_in_pages_without_gaps),
		FRESH(a_generated_document_is_what_its_record_says),
		FRESH(the_shape_follows_its_switch),
		FRESH(nothing_is_parsed_unasked_and_a_run_goes_by_the_clock),
		FRESH(a_document_can_be_made_to_fail),
		FRESH(the_limit_slides),
		FRESH(a_fault_before_does_nothing_and_one_after_has_done_it),
		FRESH(a_fault_strikes_the_nth_request_so_many_times),
		FRESH(an_answer_can_be_cut_garbled_or_slow),
		FRESH(a_connection_can_be_closed_or_reset),
		FRESH(two_hundred_stalled_requests_hold_up_nobody),
		FRESH(down_refuses_and_up_is_the_same_address),
		FRESH(the_log_tells_of_a_token_but_never_the_token),
		cmocka_unit_test(state_survives_a_restart),
		cmocka_unit_test(tls_is_answered_with_a_certificate_of_its_own),
	};
	curl_global_init(CURL_GLOBAL_ALL);
	return cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
}
