/* The sandbox's Rossum refuses what the documentation refuses. Each test asks a fresh one over HTTP, as a client would,
 * but with no line of our client in it. */
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
#include <openssl/sha.h>
#include <unistd.h>
#include <zlib.h>

#define TOKEN "rossum-test"
#define BEARER "Authorization: Bearer " TOKEN
#define JSON_TYPE "Content-Type: application/json"
#define RAW_TYPE "Content-Type: application/octet-stream"
#define FORM_TYPE "Content-Type: multipart/form-data; boundary=XX"
#define QUEUE "8199"
#define PDF "%PDF-1.4 "

struct fixture {
	struct sandbox *sandbox;
};

struct reply {
	CURLcode code;
	long status;
	char *body;
	size_t body_bytes;
	cJSON *json; /* NULL: none */
	char headers[4096];
};

static void reply_release(struct reply *r)
{
	free(r->body);
	cJSON_Delete(r->json);
	*r = (struct reply){ 0 };
}

#define REPLY __attribute__((cleanup(reply_release))) struct reply

static size_t take_body(char *bytes, size_t size, size_t count, void *cls)
{
	struct reply *r = cls;
	size_t n = size * count;
	r->body = realloc(r->body, r->body_bytes + n + 1);
	assert_non_null(r->body);
	memcpy(r->body + r->body_bytes, bytes, n);
	r->body_bytes += n;
	r->body[r->body_bytes] = 0;
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
	const char *method, *path; /* path: behind the base, or a whole URL */
	const char *body;
	size_t body_bytes; /* 0: of the text */
	const char *headers[5];
};

/* Returns the status, or -1 when there was no whole answer. *ret is fresh; the caller releases it. */
static long ask(struct fixture *f, struct wish w, struct reply *ret)
{
	CURL *c = curl_easy_init();
	struct curl_slist *headers = NULL;
	char url[2048];
	memset(ret, 0, sizeof *ret);
	snprintf(url, sizeof url, "%s%s%s", strstr(w.path, "://") != NULL ? "" : sandbox_url(f->sandbox, "rossum"),
		 strstr(w.path, "://") != NULL ? "" : "/api/v1", w.path);
	for (size_t i = 0; i < 5 && w.headers[i] != NULL; i++)
		headers = curl_slist_append(headers, w.headers[i]);
	headers = curl_slist_append(headers, "Expect:");
	curl_easy_setopt(c, CURLOPT_URL, url);
	curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
	if (w.body != NULL) {
		curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE,
				 (curl_off_t)(w.body_bytes > 0 ? w.body_bytes : strlen(w.body)));
		curl_easy_setopt(c, CURLOPT_POSTFIELDS, w.body);
	} else if (strcmp(w.method, "POST") == 0) {
		curl_easy_setopt(c, CURLOPT_POSTFIELDS, "");
		headers = curl_slist_append(headers, "Content-Type:");
	}
	curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, w.method);
	curl_easy_setopt(c, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, 20000L);
	curl_easy_setopt(c, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_body);
	curl_easy_setopt(c, CURLOPT_WRITEDATA, ret);
	curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, take_header);
	curl_easy_setopt(c, CURLOPT_HEADERDATA, ret);
	ret->code = curl_easy_perform(c);
	curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &ret->status);
	ret->json = ret->body == NULL ? NULL : cJSON_Parse(ret->body);
	curl_slist_free_all(headers);
	curl_easy_cleanup(c);
	return ret->code == CURLE_OK ? ret->status : -1;
}

static long get(struct fixture *f, const char *path, struct reply *ret)
{
	return ask(f, (struct wish){ .method = "GET", .path = path, .headers = { BEARER } }, ret);
}

static long get_status(struct fixture *f, const char *path)
{
	REPLY r;
	return get(f, path, &r);
}

/* json NULL: no body. */
static long send_json(struct fixture *f, const char *method, const char *path, const char *json, struct reply *ret)
{
	return ask(f,
		   (struct wish){ .method = method,
				  .path = path,
				  .body = json,
				  .headers = { BEARER, json != NULL ? JSON_TYPE : NULL } },
		   ret);
}

static long send_status(struct fixture *f, const char *method, const char *path, const char *json)
{
	REPLY r;
	return send_json(f, method, path, json, &r);
}

static long post_file(struct fixture *f, const char *path, const char *type, const char *body, struct reply *ret)
{
	return ask(f, (struct wish){ .method = "POST", .path = path, .body = body, .headers = { BEARER, type } }, ret);
}

static long post_status(struct fixture *f, const char *path, const char *type, const char *body)
{
	REPLY r;
	return post_file(f, path, type, body, &r);
}

static const cJSON *at(const cJSON *json, const char *key)
{
	return cJSON_GetObjectItemCaseSensitive(json, key);
}

static const char *text_at(const cJSON *json, const char *key)
{
	const cJSON *item = at(json, key);
	return cJSON_IsString(item) ? item->valuestring : "";
}

static int number_at(const cJSON *json, const char *key)
{
	const cJSON *item = at(json, key);
	return cJSON_IsNumber(item) ? item->valueint : -1;
}

static bool is_null_at(const cJSON *json, const char *key)
{
	return cJSON_IsNull(at(json, key));
}

static const cJSON *nth(const cJSON *list, int i)
{
	return cJSON_GetArrayItem(list, i);
}

static void order(struct fixture *f, const char *path, const char *json)
{
	char *said = NULL;
	if (sandbox_control(f->sandbox, "POST", path, json, &said) != 200)
		fail_msg("%s: %s", path, said);
	free(said);
}

/* The sandbox's view; the caller deletes it. */
static cJSON *state_of(struct fixture *f)
{
	char *said = NULL;
	assert_int_equal(sandbox_control(f->sandbox, "GET", "/state", NULL, &said), 200);
	cJSON *all = cJSON_Parse(said);
	cJSON *part = cJSON_DetachItemFromObjectCaseSensitive(all, "rossum");
	free(said);
	cJSON_Delete(all);
	assert_non_null(part);
	return part;
}

static int annotations_there(struct fixture *f)
{
	cJSON *s = state_of(f);
	int n = cJSON_GetArraySize(at(nth(at(s, "queues"), 0), "annotations"));
	cJSON_Delete(s);
	return n;
}

static int state_number(struct fixture *f, const char *key)
{
	cJSON *s = state_of(f);
	int n = number_at(s, key);
	cJSON_Delete(s);
	return n;
}

/* One part of a form with boundary XX. */
#define PART(disposition, bytes) "--XX\r\nContent-Disposition: form-data; " disposition "\r\n\r\n" bytes "\r\n"
#define FILE_PART(filename, bytes) PART("name=\"content\"; filename=\"" filename "\"", bytes)
#define END "--XX--\r\n"
#define UPLOADS "/uploads?queue=" QUEUE

/* Uploads by form and returns the task's number. */
static long upload(struct fixture *f, const char *form)
{
	REPLY r;
	assert_int_equal(post_file(f, UPLOADS, FORM_TYPE, form, &r), 202);
	const char *url = text_at(r.json, "url");
	return strtol(strrchr(url, '/') + 1, NULL, 10);
}

/* The upload object of a task that is to succeed. */
static void follow(struct fixture *f, long task, struct reply *ret)
{
	char path[100];
	assert_int_equal(sandbox_advance(f->sandbox, 60000), 0);
	snprintf(path, sizeof path, "/tasks/%ld?no_redirect=true", task);
	REPLY r;
	assert_int_equal(get(f, path, &r), 200);
	assert_string_equal(text_at(r.json, "status"), "succeeded");
	assert_string_equal(text_at(r.json, "result_url"), text_at(at(r.json, "content"), "upload"));
	assert_int_equal(get(f, text_at(r.json, "result_url"), ret), 200);
}

/* The document of an upload with one file, after its import. */
static void upload_one(struct fixture *f, const char *form, struct reply *ret_document)
{
	REPLY u;
	follow(f, upload(f, form), &u);
	assert_int_equal(cJSON_GetArraySize(at(u.json, "documents")), 1);
	assert_int_equal(get(f, nth(at(u.json, "documents"), 0)->valuestring, ret_document), 200);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct sandbox_options options = { 0 };
	assert_non_null(f);
	assert_int_equal(sandbox_start(&options, &f->sandbox), 0);
	order(f, "/clock", "{\"freeze\":true}");
	order(f, "/rossum/workspace", "{\"id\":70,\"name\":\"Prague\"}");
	order(f, "/rossum/queue", "{\"id\":8199,\"name\":\"Invoices\",\"workspace\":70}");
	order(f, "/rossum/user", "{\"username\":\"demo\",\"password\":\"p:w\"}");
	order(f, "/rossum/token", "{\"token\":\"" TOKEN "\",\"user\":\"demo\"}");
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	sandbox_stop(f->sandbox);
	free(f);
	return 0;
}

/* --- Who may --- */

static long get_as(struct fixture *f, const char *path, const char *authorization)
{
	REPLY r;
	return ask(f, (struct wish){ .method = "GET", .path = path, .headers = { authorization } }, &r);
}

static long upload_as(struct fixture *f, const char *path, const char *type, const char *body,
		      const char *authorization)
{
	REPLY r;
	return ask(f, (struct wish){ .method = "POST", .path = path, .body = body, .headers = { type, authorization } },
		   &r);
}

#define BASIC "Authorization: Basic ZGVtbzpwOnc="           /* demo:p:w */
#define BASIC_WRONG "Authorization: Basic ZGVtbzp3cm9uZw==" /* demo:wrong */

static void a_token_is_taken_in_both_schemes_and_its_absence_is_403(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(get_as(f, "/auth/user", BEARER), 200);
	assert_int_equal(get_as(f, "/auth/user", "Authorization: Token " TOKEN), 200);
	assert_int_equal(get_as(f, "/auth/user", "Authorization: Bearer no-such"), 401);
	assert_int_equal(get_as(f, "/auth/user", NULL), 403);
	assert_int_equal(get_as(f, "/auth/user", "Authorization: " TOKEN), 403);
	sandbox_set(f->sandbox, "rossum.anonymous", "401");
	assert_int_equal(get_as(f, "/auth/user", NULL), 401);
}

static void a_token_ends_by_the_clock_or_by_logout(void **state)
{
	struct fixture *f = *state;
	order(f, "/rossum/token", "{\"token\":\"short\",\"expires_in_ms\":1000}");
	assert_int_equal(get_as(f, "/auth/user", "Authorization: Bearer short"), 200);
	sandbox_advance(f->sandbox, 1000);
	assert_int_equal(get_as(f, "/auth/user", "Authorization: Bearer short"), 401);
	sandbox_set(f->sandbox, "rossum.expired", "403");
	assert_int_equal(get_as(f, "/auth/user", "Authorization: Bearer short"), 403);
	assert_int_equal(get_as(f, "/auth/user", "Authorization: Bearer no-such"), 401);
	assert_int_equal(send_status(f, "POST", "/auth/logout", NULL), 200);
	assert_int_equal(get_as(f, "/auth/user", BEARER), 403);
}

static void a_password_is_taken_for_uploads_alone(void **state)
{
	struct fixture *f = *state;
	static const char form[] = FILE_PART("a.pdf", PDF) END;
	assert_int_equal(upload_as(f, UPLOADS, FORM_TYPE, form, BASIC), 202);
	assert_int_equal(upload_as(f, "/uploads/a.pdf?queue=" QUEUE, RAW_TYPE, PDF, BASIC), 202);
	assert_int_equal(upload_as(f, UPLOADS, FORM_TYPE, form, BASIC_WRONG), 401);
	assert_int_equal(upload_as(f, UPLOADS, FORM_TYPE, form, NULL), 403);
	static const char *const paths[] = { "/queues",     "/queues/" QUEUE, "/annotations?queue=" QUEUE,
					     "/tasks/91",   "/uploads/345",   "/documents/7000201/content",
					     "/workspaces", "/auth/user" };
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
		assert_int_equal(get_as(f, paths[i], BASIC), 403);
}

static long log_in(struct fixture *f, const char *type, const char *body, struct reply *ret)
{
	return ask(f, (struct wish){ .method = "POST", .path = "/auth/login", .body = body, .headers = { type } }, ret);
}

static long log_in_status(struct fixture *f, const char *type, const char *body)
{
	REPLY r;
	return log_in(f, type, body, &r);
}

#define LOGIN_FORM "Content-Type: application/x-www-form-urlencoded"

static void a_login_gives_a_token_that_lasts_as_long_as_was_said(void **state)
{
	struct fixture *f = *state;
	REPLY r, again;
	char header[200];
	assert_int_equal(log_in(f, JSON_TYPE, "{\"username\":\"demo\",\"password\":\"p:w\"}", &r), 200);
	snprintf(header, sizeof header, "Authorization: Bearer %s", text_at(r.json, "key"));
	sandbox_advance(f->sandbox, 583199999);
	assert_int_equal(get_as(f, "/auth/user", header), 200);
	sandbox_advance(f->sandbox, 1);
	assert_int_equal(get_as(f, "/auth/user", header), 401);
	assert_int_equal(log_in(f, LOGIN_FORM, "username=demo&password=p%3Aw&max_token_lifetime_s=5", &again), 200);
	snprintf(header, sizeof header, "Authorization: Bearer %s", text_at(again.json, "key"));
	sandbox_advance(f->sandbox, 5000);
	assert_int_equal(get_as(f, "/auth/user", header), 401);
}

static void a_bad_login_is_refused(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(log_in_status(f, JSON_TYPE, "{\"username\":\"demo\",\"password\":\"no\"}"), 401);
	assert_int_equal(log_in_status(f, JSON_TYPE, "{\"username\":\"demo\"}"), 400);
	assert_int_equal(log_in_status(f, JSON_TYPE, "{\"username\":\"demo\",\"password\":\"p:w\",\"x\":1}"), 400);
	assert_int_equal(log_in_status(f, JSON_TYPE, "{\"username\""), 400);
	assert_int_equal(log_in_status(f, "Content-Type: text/plain", "username=demo&password=p%3Aw"), 500);
	assert_int_equal(log_in_status(f, LOGIN_FORM, "username=demo&password=p%3Aw&max_token_lifetime_s=583201"), 400);
	assert_int_equal(log_in_status(f, LOGIN_FORM, "username=demo&password=p%3Aw&max_token_lifetime_s=0"), 400);
}

static void logins_have_a_throttle_of_their_own(void **state)
{
	struct fixture *f = *state;
	REPLY r;
	for (int i = 0; i < 10; i++)
		assert_int_equal(log_in_status(f, LOGIN_FORM, "username=demo&password=no"), 401);
	assert_int_equal(log_in(f, LOGIN_FORM, "username=demo&password=p%3Aw", &r), 429);
	assert_non_null(strstr(r.headers, "Retry-After: 60"));
	assert_int_equal(get_status(f, "/auth/user"), 200);
	sandbox_advance(f->sandbox, 60000);
	assert_int_equal(log_in_status(f, LOGIN_FORM, "username=demo&password=p%3Aw"), 200);
}

static void a_token_is_traded_for_another(void **state)
{
	struct fixture *f = *state;
	REPLY r;
	char header[200];
	assert_int_equal(send_json(f, "POST", "/auth/token", "{\"max_token_lifetime_s\":10}", &r), 200);
	snprintf(header, sizeof header, "Authorization: Bearer %s", text_at(r.json, "key"));
	assert_int_equal(get_as(f, "/auth/user", header), 200);
	assert_int_equal(send_status(f, "POST", "/auth/token", "{\"scope\":\"approval\"}"), 400);
}

static void a_user_sees_their_own_queues(void **state)
{
	struct fixture *f = *state;
	REPLY r;
	order(f, "/rossum/queue", "{\"id\":8200,\"name\":\"Invoices\",\"workspace\":70}");
	order(f, "/rossum/user", "{\"username\":\"annotator\",\"queues\":[8200]}");
	order(f, "/rossum/token", "{\"token\":\"theirs\",\"user\":\"annotator\"}");
	order(f, "/rossum/annotation", "{\"id\":5000101,\"queue\":8199,\"filename\":\"a.pdf\"}");
	static const char theirs[] = "Authorization: Bearer theirs";
	assert_int_equal(ask(f, (struct wish){ .method = "GET", .path = "/queues", .headers = { theirs } }, &r), 200);
	assert_int_equal(cJSON_GetArraySize(at(r.json, "results")), 1);
	assert_int_equal(get_as(f, "/queues/8200", theirs), 200);
	assert_int_equal(get_as(f, "/queues/8199", theirs), 404);
	assert_int_equal(get_as(f, "/annotations/5000101", theirs), 404);
	assert_int_equal(upload_as(f, UPLOADS, FORM_TYPE, FILE_PART("a.pdf", PDF) END, theirs), 404);
}

/* --- Lists --- */

static void a_listing_is_walked_by_next_and_tells_no_totals_unasked(void **state)
{
	struct fixture *f = *state;
	order(f, "/rossum/annotation", "{\"queue\":8199,\"count\":250}");
	char url[600] = "/annotations?queue=" QUEUE "&sideload=documents&page_size=100&ordering=created_at";
	int found = 0, pages = 0;
	char *seen = calloc(251, 1);
	while (*url != 0) {
		REPLY r;
		assert_int_equal(get(f, url, &r), 200);
		assert_null(at(at(r.json, "pagination"), "total"));
		assert_null(at(r.json, "next"));
		assert_int_equal(cJSON_GetArraySize(at(r.json, "documents")),
				 cJSON_GetArraySize(at(r.json, "results")));
		const cJSON *one;
		cJSON_ArrayForEach (one, at(r.json, "results")) {
			int n = number_at(one, "id") - 5000100;
			assert_in_range(n, 1, 250);
			assert_int_equal(seen[n], 0);
			seen[n] = 1;
			found++;
		}
		pages++;
		snprintf(url, sizeof url, "%s", text_at(at(r.json, "pagination"), "next"));
	}
	free(seen);
	assert_int_equal(found, 250);
	assert_int_equal(pages, 3);
	REPLY r;
	assert_int_equal(get(f, "/annotations?queue=" QUEUE "&include_total=true", &r), 200);
	assert_int_equal(number_at(at(r.json, "pagination"), "total"), 250);
	assert_int_equal(number_at(at(r.json, "pagination"), "total_pages"), 13);
	assert_int_equal(cJSON_GetArraySize(at(r.json, "results")), 20);
}

static void ten_thousand_are_listed_in_a_hundred_requests(void **state)
{
	struct fixture *f = *state;
	order(f, "/rossum/annotation", "{\"queue\":8199,\"count\":10000}");
	char url[600] = "/annotations?queue=" QUEUE "&sideload=documents&page_size=100&ordering=created_at";
	int pages = 0, found = 0;
	for (; *url != 0; pages++) {
		REPLY r;
		assert_int_equal(get(f, url, &r), 200);
		found += cJSON_GetArraySize(at(r.json, "results"));
		snprintf(url, sizeof url, "%s", text_at(at(r.json, "pagination"), "next"));
	}
	assert_int_equal(pages, 100);
	assert_int_equal(found, 10000);
	assert_int_equal(sandbox_count(f->sandbox, "rossum_annotations"), 100);
}

static void next_stands_where_the_switch_says(void **state)
{
	struct fixture *f = *state;
	REPLY top, both;
	order(f, "/rossum/annotation", "{\"queue\":8199,\"count\":3}");
	sandbox_set(f->sandbox, "rossum.next", "top");
	assert_int_equal(get(f, "/annotations?page_size=2", &top), 200);
	assert_non_null(strstr(text_at(top.json, "next"), "page=2"));
	assert_null(at(at(top.json, "pagination"), "next"));
	sandbox_set(f->sandbox, "rossum.next", "both");
	sandbox_set(f->sandbox, "rossum.totals", "always");
	assert_int_equal(get(f, "/annotations?page_size=2&page=2", &both), 200);
	assert_true(is_null_at(both.json, "next"));
	assert_true(is_null_at(at(both.json, "pagination"), "next"));
	assert_non_null(strstr(text_at(both.json, "previous"), "page=1"));
	assert_int_equal(number_at(at(both.json, "pagination"), "total"), 3);
}

static void a_query_nobody_documents_is_refused(void **state)
{
	struct fixture *f = *state;
	static const char *const bad[] = {
		"/annotations?page_size=101",
		"/annotations?page_size=0",
		"/annotations?page=0",
		"/annotations?ordering=id",
		"/annotations?status=sleeping",
		"/annotations?quueue=1",
		"/annotations?sideload=bytes",
		"/annotations?sideload=content",
		"/annotations?queue=Invoices",
		"/annotations?queue=1&queue=2",
		"/queues?ordering=size",
		"/queues?page_size=1000",
		"/documents?queue=8199",
		"/queues/8199?sideload=documents",
		"/annotations?modified_at_after=noon",
	};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		if (get_status(f, bad[i]) != 400)
			fail_msg("%s was let through", bad[i]);
	assert_int_equal(get_status(f, "/annotations/?queue=8199"), 404);
	assert_int_equal(get_status(f, "/queues/"), 404);
	assert_int_equal(get_status(f, "/queues/Invoices"), 404);
	assert_int_equal(send_status(f, "POST", "/queues", "{}"), 405);
	assert_int_equal(get_status(f, "/nowhere"), 404);
}

static void queues_and_workspaces_are_listed_in_order(void **state)
{
	struct fixture *f = *state;
	REPLY names, one, queue, workspace;
	order(f, "/rossum/workspace", "{\"id\":71,\"name\":\"London\"}");
	order(f, "/rossum/queue",
	      "{\"id\":8200,\"name\":\"Bills\",\"workspace\":71,\"accepted_mime_types\":[\"image/*\"]}");
	order(f, "/rossum/queue", "{\"id\":8201,\"name\":\"Invoices\",\"workspace\":null}");
	assert_int_equal(get(f, "/queues?ordering=name,-id", &names), 200);
	assert_int_equal(number_at(nth(at(names.json, "results"), 0), "id"), 8200);
	assert_int_equal(number_at(nth(at(names.json, "results"), 1), "id"), 8201);
	assert_int_equal(number_at(nth(at(names.json, "results"), 2), "id"), 8199);
	assert_true(is_null_at(nth(at(names.json, "results"), 1), "workspace"));
	assert_int_equal(get(f, "/queues?page_size=1&ordering=id&page=2", &one), 200);
	assert_int_equal(number_at(nth(at(one.json, "results"), 0), "id"), 8200);
	assert_int_equal(get(f, "/queues/8200", &queue), 200);
	assert_string_equal(nth(at(at(queue.json, "settings"), "accepted_mime_types"), 0)->valuestring, "image/*");
	assert_int_equal(get(f, text_at(queue.json, "workspace"), &workspace), 200);
	assert_string_equal(text_at(workspace.json, "name"), "London");
}

static void every_status_can_be_set_counted_and_asked_for(void **state)
{
	struct fixture *f = *state;
	static const char *const words[] = { "created",   "importing",     "failed_import", "split",    "to_review",
					     "reviewing", "in_workflow",   "confirmed",     "rejected", "exporting",
					     "exported",  "failed_export", "postponed",     "deleted",  "purged" };
	for (size_t i = 0; i < 15; i++) {
		char json[200], path[200];
		REPLY r;
		snprintf(json, sizeof json, "{\"queue\":8199,\"filename\":\"%s.pdf\",\"status\":\"%s\"}", words[i],
			 words[i]);
		order(f, "/rossum/annotation", json);
		sandbox_advance(f->sandbox, 3600000);
		snprintf(path, sizeof path, "/annotations?queue=" QUEUE "&status=%s", words[i]);
		assert_int_equal(get(f, path, &r), 200);
		assert_int_equal(cJSON_GetArraySize(at(r.json, "results")), 1);
		assert_string_equal(text_at(nth(at(r.json, "results"), 0), "status"), words[i]);
	}
	REPLY all, queue, two, most;
	assert_int_equal(get(f, "/annotations?queue=" QUEUE, &all), 200); /* no status is left out unasked */
	assert_int_equal(cJSON_GetArraySize(at(all.json, "results")), 15);
	assert_int_equal(get(f, "/annotations?queue=" QUEUE "&status=exported,deleted", &two), 200);
	assert_int_equal(cJSON_GetArraySize(at(two.json, "results")), 2);
	assert_int_equal(get(f, "/queues/" QUEUE, &most), 200);
	assert_int_equal(number_at(at(most.json, "counts"), "to_review"), 1);
	assert_null(at(at(most.json, "counts"), "in_workflow"));
	sandbox_set(f->sandbox, "rossum.counts", "all");
	assert_int_equal(get(f, "/queues/" QUEUE, &queue), 200);
	for (size_t i = 0; i < 15; i++)
		assert_int_equal(number_at(at(queue.json, "counts"), words[i]), 1);
}

/* --- Uploads --- */

static void an_upload_goes_from_task_to_annotation_by_the_clock(void **state)
{
	struct fixture *f = *state;
	REPLY running, redirect, empty, done, listed, importing, imported;
	long task = upload(f, FILE_PART("r\xc3\xa9sum\xc3\xa9 \\\"a\\\".pdf", PDF)
				      PART("name=\"metadata\"", "{\"sessionfs\":{\"size\":9}}")
					      PART("name=\"values\"", "{\"upload:unit\":\"Sales\"}") END);
	char path[100], upload_url[300];
	snprintf(path, sizeof path, "/tasks/%ld", task);
	assert_int_equal(get(f, path, &running), 200);
	assert_string_equal(text_at(running.json, "status"), "running");
	snprintf(upload_url, sizeof upload_url, "%s", text_at(at(running.json, "content"), "upload"));
	assert_int_equal(get_status(f, upload_url), 404);
	sandbox_advance(f->sandbox, 200);
	assert_int_equal(get(f, path, &redirect), 303);
	assert_non_null(strstr(redirect.headers, upload_url));
	assert_int_equal(get(f, upload_url, &empty), 200);
	assert_true(is_null_at(empty.json, "annotations"));
	assert_true(is_null_at(empty.json, "additional_documents"));
	assert_int_equal(get(f, "/annotations?queue=" QUEUE, &listed), 200);
	assert_int_equal(cJSON_GetArraySize(at(listed.json, "results")), 0);
	sandbox_advance(f->sandbox, 200);
	assert_int_equal(get(f, upload_url, &done), 200);
	const char *annotation = nth(at(done.json, "annotations"), 0)->valuestring;
	assert_int_equal(get(f, annotation, &importing), 200);
	assert_string_equal(text_at(importing.json, "status"), "importing");
	assert_int_equal(number_at(at(at(importing.json, "metadata"), "sessionfs"), "size"), 9);
	sandbox_advance(f->sandbox, 1000);
	assert_int_equal(get(f, annotation, &imported), 200);
	assert_string_equal(text_at(imported.json, "status"), "to_review");
	assert_true(is_null_at(imported.json, "modified_at"));
	REPLY document, bytes;
	assert_int_equal(get(f, text_at(imported.json, "document"), &document), 200);
	assert_string_equal(text_at(document.json, "original_file_name"), "r\xc3\xa9sum\xc3\xa9 \"a\".pdf");
	assert_string_equal(text_at(document.json, "mime_type"), "application/pdf");
	assert_null(at(document.json, "size"));
	assert_int_equal(get(f, text_at(document.json, "content"), &bytes), 200);
	assert_string_equal(bytes.body, PDF);
}

static void a_raw_body_takes_its_name_from_the_path_or_the_header(void **state)
{
	struct fixture *f = *state;
	static const struct {
		const char *path, *header, *name; /* name NULL: refused */
	} cases[] = {
		{ "/uploads/r%C3%A9sum%C3%A9.pdf?queue=" QUEUE, NULL, "r\xc3\xa9sum\xc3\xa9.pdf" },
		{ "/uploads/a%2Fb.pdf?queue=" QUEUE, NULL, "a/b.pdf" },
		{ "/uploads/100%25%3F.pdf?queue=" QUEUE, NULL, "100%?.pdf" },
		{ "/uploads/%FF.pdf?queue=" QUEUE, NULL, NULL },
		{ "/uploads/a%00b.pdf?queue=" QUEUE, NULL, NULL },
		{ UPLOADS, "Content-Disposition: attachment; filename=\"a b.pdf\"", "a b.pdf" },
		{ UPLOADS, "Content-Disposition: attachment; filename*=utf-8''r%C3%A9sum%C3%A9.pdf",
		  "r\xc3\xa9sum\xc3\xa9.pdf" },
		{ UPLOADS, "Content-Disposition: attachment; filename=\"r\xc3\xa9sum\xc3\xa9.pdf\"", NULL },
		{ UPLOADS, "Content-Disposition: attachment; filename*=latin1''x.pdf", NULL },
		{ UPLOADS, "Content-Disposition: attachment", NULL },
		{ UPLOADS, NULL, NULL },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		REPLY r = { 0 }, u = { 0 }, d = { 0 };
		long status = ask(f,
				  (struct wish){ .method = "POST",
						 .path = cases[i].path,
						 .body = PDF,
						 .headers = { BEARER, RAW_TYPE, cases[i].header } },
				  &r);
		if (status != (cases[i].name == NULL ? 400 : 202))
			fail_msg("case %zu: %ld", i, status);
		if (cases[i].name == NULL)
			continue;
		follow(f, strtol(strrchr(text_at(r.json, "url"), '/') + 1, NULL, 10), &u);
		assert_int_equal(get(f, nth(at(u.json, "documents"), 0)->valuestring, &d), 200);
		assert_string_equal(text_at(d.json, "original_file_name"), cases[i].name);
	}
}

static void a_malformed_form_is_refused_and_leaves_nothing(void **state)
{
	struct fixture *f = *state;
	static const struct {
		const char *what, *body;
	} cases[] = {
		{ "no file", PART("name=\"metadata\"", "{}") END },
		{ "a file without a name", PART("name=\"content\"", PDF) END },
		{ "metadata with a filename",
		  FILE_PART("a.pdf", PDF) PART("name=\"metadata\"; filename=\"m.json\"", "{}") END },
		{ "values with a filename",
		  FILE_PART("a.pdf", PDF) PART("name=\"values\"; filename=\"v.json\"", "{}") END },
		{ "metadata that is no JSON", FILE_PART("a.pdf", PDF) PART("name=\"metadata\"", "size=9") END },
		{ "metadata that is no object", FILE_PART("a.pdf", PDF) PART("name=\"metadata\"", "[1]") END },
		{ "metadata twice",
		  FILE_PART("a.pdf", PDF) PART("name=\"metadata\"", "{}") PART("name=\"metadata\"", "{}") END },
		{ "values without the prefix",
		  FILE_PART("a.pdf", PDF) PART("name=\"values\"", "{\"unit\":\"S\"}") END },
		{ "a part nobody knows", FILE_PART("a.pdf", PDF) PART("name=\"file\"", "x") END },
		{ "filename*", PART("name=\"content\"; filename*=utf-8''a.pdf", PDF) END },
		{ "a name that is no UTF-8", FILE_PART("\xff.pdf", PDF) END },
		{ "no last boundary", FILE_PART("a.pdf", PDF) },
		{ "no boundary at all", PDF },
		{ "an empty file", FILE_PART("a.pdf", "") END },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (post_status(f, UPLOADS, FORM_TYPE, cases[i].body) != 400)
			fail_msg("%s was let through", cases[i].what);
	REPLY r;
	assert_int_equal(post_file(f, UPLOADS, FORM_TYPE, cases[2].body, &r), 400);
	assert_string_equal(nth(at(r.json, "metadata"), 0)->valuestring, "Value must be valid JSON.");
	assert_int_equal(state_number(f, "upload_count"), 0);
	assert_int_equal(state_number(f, "task_count"), 0);
	assert_int_equal(post_status(f, UPLOADS, "Content-Type: multipart/form-data", cases[0].body), 400);
}

static void metadata_is_limited_to_four_kilobytes(void **state)
{
	struct fixture *f = *state;
	for (int over = 0; over < 2; over++) {
		char padding[4200], form[5000];
		memset(padding, 'x', sizeof padding);
		snprintf(form, sizeof form,
			 "%s--XX\r\nContent-Disposition: form-data; name=\"metadata\"\r\n\r\n{\"k\":\"%.*s\"}\r\n%s",
			 FILE_PART("a.pdf", PDF), 4096 - 8 + over, padding, END);
		assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, form), over ? 400 : 202);
	}
}

static void a_wrong_content_type_is_500_and_a_wrong_queue_404_or_400(void **state)
{
	struct fixture *f = *state;
	static const char form[] = FILE_PART("a.pdf", PDF) END;
	assert_int_equal(post_status(f, "/uploads/a.pdf?queue=" QUEUE, "Content-Type: application/pdf", PDF), 500);
	assert_int_equal(post_status(f, UPLOADS, JSON_TYPE, "{}"), 500);
	assert_int_equal(post_status(f, "/uploads", FORM_TYPE, form), 400);
	assert_int_equal(post_status(f, "/uploads?queue=1", FORM_TYPE, form), 404);
	assert_int_equal(post_status(f, "/uploads?queue=Invoices", FORM_TYPE, form), 400);
	assert_int_equal(post_status(f, UPLOADS "&reject_identical=maybe", FORM_TYPE, form), 400);
	assert_int_equal(post_status(f, UPLOADS "&name=x", FORM_TYPE, form), 400);
	order(f, "/rossum/queue", "{\"id\":8199,\"status\":\"deletion_requested\"}");
	assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, form), 400);
	sandbox_set(f->sandbox, "rossum.inactive", "409");
	assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, form), 409);
	assert_int_equal(state_number(f, "task_count"), 0);
}

static void several_files_are_one_task_and_come_in_no_order(void **state)
{
	struct fixture *f = *state;
	REPLY u, first, d;
	follow(f,
	       upload(f, FILE_PART("one.pdf", PDF "1") FILE_PART("two.pdf", PDF "2") FILE_PART("one.pdf", PDF "3") END),
	       &u);
	assert_int_equal(cJSON_GetArraySize(at(u.json, "documents")), 3);
	assert_int_equal(cJSON_GetArraySize(at(u.json, "annotations")), 3);
	assert_int_equal(get(f, nth(at(u.json, "annotations"), 0)->valuestring, &first), 200);
	assert_int_equal(get(f, text_at(first.json, "document"), &d), 200);
	assert_string_equal(text_at(d.json, "url"), nth(at(u.json, "documents"), 2)->valuestring);
	assert_int_equal(state_number(f, "task_count"), 1);
}

static void forty_megabytes_are_the_limit(void **state)
{
	struct fixture *f = *state;
	static const char head[] =
		"--XX\r\nContent-Disposition: form-data; name=\"content\"; filename=\"a.pdf\"\r\n\r\n";
	static const char tail[] = "\r\n" END;
	enum { LIMIT = 40000000 };
	char *body = calloc(LIMIT + 1 + sizeof head + sizeof tail, 1);
	assert_non_null(body);
	for (size_t over = 0; over < 2; over++) {
		REPLY r, raw;
		size_t bytes = LIMIT + over;
		memcpy(body, head, sizeof head - 1);
		memset(body + sizeof head - 1, 'x', bytes);
		memcpy(body + sizeof head - 1 + bytes, tail, sizeof tail - 1);
		struct wish w = { .method = "POST",
				  .path = UPLOADS,
				  .body = body,
				  .body_bytes = sizeof head - 1 + bytes + sizeof tail - 1,
				  .headers = { BEARER, FORM_TYPE } };
		assert_int_equal(ask(f, w, &r), over ? 413 : 202);
		w.path = "/uploads/a.pdf?queue=" QUEUE;
		w.body_bytes = bytes;
		w.headers[1] = RAW_TYPE;
		assert_int_equal(ask(f, w, &raw), over ? 413 : 202);
		if (over)
			assert_string_equal(text_at(raw.json, "code"), "payload_too_large");
	}
	free(body);
}

/* The boundary's own beginning, again and again, however the pieces fall. */
static void bytes_that_look_like_a_boundary_stay_bytes(void **state)
{
	struct fixture *f = *state;
	static const char head[] =
		"--XX\r\nContent-Disposition: form-data; name=\"content\"; filename=\"a.pdf\"\r\n\r\n";
	static const char near[] = "\r\n--X\r\r\n-\r\n--Y";
	static const char tail[] = "\r\n" END;
	enum { TIMES = 40000 };
	size_t inner = (sizeof near - 1) * TIMES, total = sizeof head - 1 + inner + sizeof tail - 1;
	char *body = malloc(total);
	assert_non_null(body);
	memcpy(body, head, sizeof head - 1);
	for (size_t i = 0; i < TIMES; i++)
		memcpy(body + sizeof head - 1 + i * (sizeof near - 1), near, sizeof near - 1);
	memcpy(body + sizeof head - 1 + inner, tail, sizeof tail - 1);
	REPLY r, u, d, bytes;
	struct wish w = {
		.method = "POST", .path = UPLOADS, .body = body, .body_bytes = total, .headers = { BEARER, FORM_TYPE }
	};
	assert_int_equal(ask(f, w, &r), 202);
	follow(f, strtol(strrchr(text_at(r.json, "url"), '/') + 1, NULL, 10), &u);
	assert_int_equal(get(f, nth(at(u.json, "documents"), 0)->valuestring, &d), 200);
	assert_int_equal(get(f, text_at(d.json, "content"), &bytes), 200);
	assert_int_equal(bytes.body_bytes, inner);
	assert_memory_equal(bytes.body, body + sizeof head - 1, inner);
	free(body);
}

static void the_same_name_and_bytes_are_refused_on_request(void **state)
{
	struct fixture *f = *state;
	static const char form[] = FILE_PART("a.pdf", PDF) END, other_name[] = FILE_PART("b.pdf", PDF) END;
	static const char once[] = UPLOADS "&reject_identical=true";
	order(f, "/rossum/queue", "{\"id\":8200,\"name\":\"Other\"}");
	assert_int_equal(post_status(f, once, FORM_TYPE, form), 202);
	assert_int_equal(post_status(f, once, FORM_TYPE, form), 409); /* its task still runs */
	assert_int_equal(post_status(f, "/uploads?queue=8200&reject_identical=true", FORM_TYPE, form), 409);
	assert_int_equal(post_status(f, once, FORM_TYPE, other_name), 202);
	assert_int_equal(post_status(f, once, FORM_TYPE, FILE_PART("a.pdf", PDF "2") END), 202);
	assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, form), 202);
	assert_int_equal(post_status(f, once, FORM_TYPE, FILE_PART("c.pdf", PDF) FILE_PART("d.pdf", PDF) END), 400);
	order(f, "/rossum/annotation", "{\"id\":5000102,\"status\":\"deleted\"}");
	assert_int_equal(post_status(f, once, FORM_TYPE, other_name), 202);
	order(f, "/rossum/annotation", "{\"queue\":8199,\"filename\":\"made.pdf\",\"text\":\"" PDF "\"}");
	assert_int_equal(post_status(f, once, FORM_TYPE, FILE_PART("made.pdf", PDF) END), 409);
}

static void a_task_can_fail_and_is_gone_after_six_hours(void **state)
{
	struct fixture *f = *state;
	REPLY r, u;
	char path[100];
	sandbox_set(f->sandbox, "rossum.task_fail", "^bad");
	long task = upload(f, FILE_PART("bad.pdf", PDF) END);
	sandbox_advance(f->sandbox, 60000);
	snprintf(path, sizeof path, "/tasks/%ld", task);
	assert_int_equal(get(f, path, &r), 200);
	assert_string_equal(text_at(r.json, "status"), "failed");
	assert_string_equal(text_at(r.json, "detail"), "Something went wrong (error 7c1e).");
	assert_true(is_null_at(r.json, "content"));
	assert_int_equal(annotations_there(f), 0);
	task = upload(f, FILE_PART("good.pdf", PDF) END);
	follow(f, task, &u);
	sandbox_advance(f->sandbox, 6 * 3600000);
	snprintf(path, sizeof path, "/tasks/%ld?no_redirect=true", task);
	assert_int_equal(get_status(f, path), 404);
	assert_int_equal(get_status(f, text_at(u.json, "url")), 200);
	assert_int_equal(get_status(f, "/tasks/91?no_redirect=perhaps"), 400);
}

static void an_import_can_fail_be_stopped_or_bring_more(void **state)
{
	struct fixture *f = *state;
	REPLY failed, a, stopped, stuck, b, more, added;
	sandbox_set(f->sandbox, "rossum.import_fail", "^broken");
	sandbox_set(f->sandbox, "rossum.hook_prevent", "^stop");
	sandbox_set(f->sandbox, "rossum.hook_add", "^letter");
	follow(f, upload(f, FILE_PART("broken.pdf", PDF) END), &failed);
	assert_int_equal(get(f, nth(at(failed.json, "annotations"), 0)->valuestring, &a), 200);
	assert_string_equal(text_at(a.json, "status"), "failed_import");
	follow(f, upload(f, FILE_PART("stop.pdf", PDF) END), &stopped);
	assert_true(is_null_at(stopped.json, "annotations"));
	sandbox_set(f->sandbox, "rossum.hook_leaves", "created");
	follow(f, upload(f, FILE_PART("stop.pdf", PDF) END), &stuck);
	sandbox_advance(f->sandbox, 3600000);
	assert_int_equal(get(f, nth(at(stuck.json, "annotations"), 0)->valuestring, &b), 200);
	assert_string_equal(text_at(b.json, "status"), "created");
	follow(f, upload(f, FILE_PART("letter.pdf", PDF) END), &more);
	assert_int_equal(cJSON_GetArraySize(at(more.json, "documents")), 1);
	assert_int_equal(cJSON_GetArraySize(at(more.json, "annotations")), 2);
	assert_int_equal(get(f, nth(at(more.json, "additional_documents"), 0)->valuestring, &added), 200);
	assert_string_equal(text_at(added.json, "attachment_status"), "hook_additional_file");
	assert_string_equal(text_at(added.json, "original_file_name"), "cover of letter.pdf.pdf");
}

static void a_type_the_queue_does_not_take_shows_in_three_ways(void **state)
{
	struct fixture *f = *state;
	static const char slides[] = FILE_PART("slides.pptx", "PK\3\4 slides") END;
	static const char picture[] = FILE_PART("a.png", "\x89PNG") END,
			  program[] = FILE_PART("a.pdf", "MZ program") END;
	REPLY d, list, insecure, r;
	upload_one(f, slides, &d);
	assert_string_equal(text_at(d.json, "attachment_status"), "filtered_by_queue_mime_type");
	assert_int_equal(cJSON_GetArraySize(at(d.json, "annotations")), 0);
	assert_int_equal(get(f, "/documents?attachment_status=filtered_by_queue_mime_type", &list), 200);
	assert_int_equal(cJSON_GetArraySize(at(list.json, "results")), 1);
	upload_one(f, program, &insecure);
	assert_string_equal(text_at(insecure.json, "attachment_status"), "filtered_by_insecure_mime_type");
	assert_int_equal(annotations_there(f), 0);
	sandbox_set(f->sandbox, "rossum.type", "400");
	assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, slides), 400);
	sandbox_set(f->sandbox, "rossum.type", "task");
	char path[100];
	snprintf(path, sizeof path, "/tasks/%ld", upload(f, slides));
	sandbox_advance(f->sandbox, 60000);
	assert_int_equal(get(f, path, &r), 200);
	assert_string_equal(text_at(r.json, "status"), "failed");
	sandbox_set(f->sandbox, "rossum.type", "400");
	order(f, "/rossum/queue", "{\"id\":8199,\"accepted_mime_types\":[\"image/*\"]}");
	assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, FILE_PART("a.pdf", PDF) END), 400);
	assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, picture), 202);
	static const char text[] = FILE_PART("a.txt", "text") END;
	order(f, "/rossum/queue", "{\"id\":8199,\"accepted_mime_types\":[\"text/plain\"]}");
	assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, text), 400);
	sandbox_set(f->sandbox, "rossum.type_hook", "on");
	assert_int_equal(post_status(f, UPLOADS, FORM_TYPE, text), 202);
}

static void html_does_not_come_back_as_it_was_sent(void **state)
{
	struct fixture *f = *state;
	REPLY d, bytes;
	upload_one(f, FILE_PART("a.html", "<p>a<script>evil()</script>b</p>") END, &d);
	assert_int_equal(get(f, text_at(d.json, "content"), &bytes), 200);
	assert_null(strstr(bytes.body, "evil"));
	assert_non_null(strstr(bytes.body, "<p>ab</p>"));
	assert_int_equal(post_status(f, UPLOADS "&reject_identical=true", FORM_TYPE,
				     FILE_PART("a.html", "<p>a<script>evil()</script>b</p>") END),
			 409);
}

static size_t put_le(char *to, size_t n, int bytes)
{
	for (int i = 0; i < bytes; i++)
		to[i] = (char)(n >> (8 * i));
	return (size_t)bytes;
}

/* A stored archive of two files; flags as in its headers. Returns its size. */
static size_t make_zip(char *out, const char *const names[2], const char *const texts[2], int flags)
{
	size_t n = 0, local[2], start;
	for (int pass = 0; pass < 2; pass++) {
		start = n;
		for (int i = 0; i < 2; i++) {
			size_t bytes = strlen(texts[i]), crc = crc32(0, (const Bytef *)texts[i], (uInt)bytes);
			if (pass == 0)
				local[i] = n;
			memcpy(out + n, pass == 0 ? "PK\3\4" : "PK\1\2", 4);
			n += 4;
			n += pass == 1 ? put_le(out + n, 20, 2) : 0;
			n += put_le(out + n, 20, 2);
			n += put_le(out + n, (size_t)flags, 2);
			n += put_le(out + n, 0, 6); /* stored; no time */
			n += put_le(out + n, crc, 4);
			n += put_le(out + n, bytes, 4);
			n += put_le(out + n, bytes, 4);
			n += put_le(out + n, strlen(names[i]), 2);
			n += put_le(out + n, 0, 2);
			n += pass == 1 ? put_le(out + n, 0, 8) + put_le(out + n + 8, 0, 2) : 0;
			n += pass == 1 ? put_le(out + n, local[i], 4) : 0;
			memcpy(out + n, names[i], strlen(names[i]));
			n += strlen(names[i]);
			if (pass == 0)
				memcpy(out + n, texts[i], bytes);
			n += pass == 0 ? bytes : 0;
		}
	}
	size_t end = n;
	memcpy(out + n, "PK\5\6\0\0\0\0", 8);
	n += 8;
	n += put_le(out + n, 2, 2);
	n += put_le(out + n, 2, 2);
	n += put_le(out + n, end - start, 4);
	n += put_le(out + n, start, 4);
	n += put_le(out + n, 0, 2);
	return n;
}

static void upload_zip(struct fixture *f, const char *zip, size_t bytes, struct reply *ret_upload)
{
	REPLY r;
	struct wish w = { .method = "POST",
			  .path = "/uploads/all.zip?queue=" QUEUE,
			  .body = zip,
			  .body_bytes = bytes,
			  .headers = { BEARER, RAW_TYPE } };
	assert_int_equal(ask(f, w, &r), 202);
	follow(f, strtol(strrchr(text_at(r.json, "url"), '/') + 1, NULL, 10), ret_upload);
}

static void an_archive_becomes_its_files(void **state)
{
	struct fixture *f = *state;
	static const char *const names[] = { "in/one.pdf", "in/two.pdf" }, *const texts[] = { PDF "1", PDF "2" };
	char zip[2000];
	REPLY u, archive, members, locked, broken, d;
	size_t bytes = make_zip(zip, names, texts, 0);
	upload_zip(f, zip, bytes, &u);
	assert_int_equal(cJSON_GetArraySize(at(u.json, "documents")), 1);
	assert_int_equal(cJSON_GetArraySize(at(u.json, "annotations")), 2);
	assert_int_equal(get(f, nth(at(u.json, "documents"), 0)->valuestring, &archive), 200);
	assert_string_equal(text_at(archive.json, "attachment_status"), "extracted_archive");
	char path[100];
	snprintf(path, sizeof path, "/documents?ordering=original_file_name&parent=%d", number_at(archive.json, "id"));
	assert_int_equal(get(f, path, &members), 200);
	assert_int_equal(cJSON_GetArraySize(at(members.json, "results")), 2);
	assert_string_equal(text_at(nth(at(members.json, "results"), 1), "original_file_name"), "two.pdf");
	bytes = make_zip(zip, names, texts, 1);
	upload_zip(f, zip, bytes, &locked);
	assert_true(is_null_at(locked.json, "annotations"));
	assert_int_equal(get(f, nth(at(locked.json, "documents"), 0)->valuestring, &d), 200);
	assert_string_equal(text_at(d.json, "attachment_status"), "password_protected_archive");
	bytes = make_zip(zip, names, texts, 0);
	*strstr(zip + 30, "%PDF") = 'x'; /* the sum no longer fits */
	upload_zip(f, zip, bytes, &broken);
	assert_true(is_null_at(broken.json, "annotations"));
}

/* --- What is there --- */

static void content_comes_whole_unless_ranges_are_switched_on(void **state)
{
	struct fixture *f = *state;
	order(f, "/rossum/annotation", "{\"queue\":8199,\"filename\":\"a.pdf\",\"text\":\"0123456789\"}");
	REPLY whole, part, past, redirect, elsewhere, leak;
	struct wish w = { .method = "GET",
			  .path = "/documents/7000201/content",
			  .headers = { BEARER, "Range: bytes=2-4" } };
	assert_int_equal(ask(f, w, &whole), 200);
	assert_string_equal(whole.body, "0123456789");
	sandbox_set(f->sandbox, "rossum.range", "on");
	assert_int_equal(ask(f, w, &part), 206);
	assert_string_equal(part.body, "234");
	assert_non_null(strstr(part.headers, "Content-Range: bytes 2-4/10"));
	w.headers[1] = "Range: bytes=10-";
	assert_int_equal(ask(f, w, &past), 416);
	sandbox_set(f->sandbox, "rossum.redirect", "on");
	assert_int_equal(get(f, "/documents/7000201/content", &redirect), 302);
	char url[300];
	const char *to = strstr(redirect.headers, "Location: ");
	assert_non_null(to);
	assert_int_equal(sscanf(to, "Location: %299s", url), 1);
	assert_non_null(strstr(url, "://localhost:"));
	assert_int_equal(ask(f, (struct wish){ .method = "GET", .path = url }, &elsewhere), 200);
	assert_int_equal(state_number(f, "leaks"), 0);
	assert_int_equal(get(f, url, &leak), 400);
	assert_int_equal(state_number(f, "leaks"), 1);
}

static void a_token_sent_to_another_host_is_seen(void **state)
{
	struct fixture *f = *state;
	order(f, "/rossum/annotation", "{\"queue\":8199,\"count\":3}");
	sandbox_set(f->sandbox, "rossum.foreign", "next");
	REPLY r;
	assert_int_equal(get(f, "/annotations?page_size=2", &r), 200);
	const char *next = text_at(at(r.json, "pagination"), "next");
	assert_non_null(strstr(next, "://localhost:"));
	assert_int_equal(state_number(f, "leaks"), 0);
	assert_int_equal(get_status(f, next), 200);
	assert_int_equal(state_number(f, "leaks"), 1);
}

static void a_purge_leaves_a_record_without_name_and_bytes(void **state)
{
	struct fixture *f = *state;
	order(f, "/rossum/annotation", "{\"id\":5000101,\"queue\":8199,\"filename\":\"a.pdf\",\"text\":\"x\"}");
	order(f, "/rossum/annotation", "{\"id\":5000101,\"status\":\"purged\"}");
	REPLY a, d;
	assert_int_equal(get(f, "/annotations/5000101", &a), 200);
	assert_string_equal(text_at(a.json, "status"), "purged");
	assert_int_equal(get(f, text_at(a.json, "document"), &d), 200);
	assert_true(is_null_at(d.json, "original_file_name"));
	assert_true(is_null_at(d.json, "content"));
	assert_int_equal(get_status(f, "/documents/7000201/content"), 404);
	assert_int_equal(send_status(f, "POST", "/annotations/5000101/delete", NULL), 409);
	assert_int_equal(send_status(f, "PATCH", "/annotations/5000101", "{\"status\":\"to_review\"}"), 409);
}

static void deleting_is_soft_and_not_for_what_is_held(void **state)
{
	struct fixture *f = *state;
	REPLY a;
	order(f, "/rossum/annotation", "{\"id\":5000101,\"queue\":8199,\"filename\":\"a.pdf\"}");
	order(f, "/rossum/annotation",
	      "{\"id\":5000102,\"queue\":8199,\"filename\":\"b.pdf\",\"status\":\"reviewing\"}");
	assert_int_equal(send_status(f, "POST", "/annotations/5000101/delete", NULL), 204);
	assert_int_equal(get(f, "/annotations/5000101", &a), 200);
	assert_string_equal(text_at(a.json, "status"), "deleted");
	assert_false(is_null_at(a.json, "deleted_at"));
	assert_int_equal(get_status(f, "/documents/7000201/content"), 200);
	assert_int_equal(send_status(f, "POST", "/annotations/5000102/delete", NULL), 409);
	assert_int_equal(send_status(f, "POST", "/annotations/1/delete", NULL), 404);
}

static void what_is_internal_or_final_is_refused_and_counted(void **state)
{
	struct fixture *f = *state;
	order(f, "/rossum/annotation", "{\"id\":5000101,\"queue\":8199,\"filename\":\"a.pdf\"}");
	assert_int_equal(send_status(f, "DELETE", "/annotations/5000101", NULL), 403);
	assert_int_equal(send_status(f, "DELETE", "/documents/7000201", NULL), 403);
	assert_int_equal(send_status(f, "DELETE", "/queues/" QUEUE, NULL), 403);
	assert_int_equal(send_status(f, "POST", "/annotations/purge_deleted", "{\"annotations\":[]}"), 403);
	assert_int_equal(state_number(f, "forbidden"), 4);
	assert_int_equal(sandbox_count(f->sandbox, "rossum_forbidden"), 4);
	assert_int_equal(annotations_there(f), 1);
}

static void an_annotation_is_copied_into_a_queue_named_by_its_url(void **state)
{
	struct fixture *f = *state;
	REPLY r, a, d;
	char body[300];
	order(f, "/rossum/queue", "{\"id\":8200,\"name\":\"Other\"}");
	order(f, "/rossum/annotation",
	      "{\"id\":5000101,\"queue\":8199,\"filename\":\"a.pdf\",\"status\":\"exported\",\"metadata\":{\"k\":1}}");
	assert_int_equal(send_status(f, "POST", "/annotations/5000101/copy", "{\"target_queue\":8200}"), 400);
	assert_int_equal(send_status(f, "POST", "/annotations/5000101/copy",
				     "{\"target_queue\":\"http://other.example/api/v1/queues/8200\"}"),
			 400);
	snprintf(body, sizeof body, "{\"target_queue\":\"%s/api/v1/queues/8200\"}", sandbox_url(f->sandbox, "rossum"));
	assert_int_equal(send_json(f, "POST", "/annotations/5000101/copy", body, &r), 200);
	assert_int_equal(get(f, text_at(r.json, "annotation"), &a), 200);
	assert_string_equal(text_at(a.json, "status"), "exported");
	assert_int_equal(number_at(at(a.json, "metadata"), "k"), 1);
	assert_int_equal(get(f, text_at(a.json, "document"), &d), 200);
	assert_int_equal(cJSON_GetArraySize(at(d.json, "annotations")), 2);
}

static void a_patch_changes_status_metadata_and_queue(void **state)
{
	struct fixture *f = *state;
	REPLY a, moved;
	char body[300];
	order(f, "/rossum/queue", "{\"id\":8200,\"name\":\"Other\"}");
	order(f, "/rossum/annotation", "{\"id\":5000101,\"queue\":8199,\"filename\":\"a.pdf\"}");
	assert_int_equal(send_json(f, "PATCH", "/annotations/5000101", "{\"metadata\":{\"k\":2}}", &a), 200);
	assert_int_equal(number_at(at(a.json, "metadata"), "k"), 2);
	assert_false(is_null_at(a.json, "modified_at"));
	assert_int_equal(send_status(f, "PATCH", "/annotations/5000101", "{\"status\":\"sleeping\"}"), 400);
	assert_int_equal(send_status(f, "PATCH", "/annotations/5000101", "{\"status\":\"purged\"}"), 400);
	snprintf(body, sizeof body, "{\"queue\":\"%s/api/v1/queues/8200\"}", sandbox_url(f->sandbox, "rossum"));
	assert_int_equal(send_json(f, "PATCH", "/annotations/5000101", body, &moved), 200);
	assert_non_null(strstr(text_at(moved.json, "queue"), "/queues/8200"));
	assert_int_equal(send_status(f, "PATCH", "/documents/7000201", "{\"original_file_name\":\"b.pdf\"}"), 400);
}

static void shapes_nobody_foresaw_can_be_ordered(void **state)
{
	struct fixture *f = *state;
	REPLY a, d;
	order(f, "/rossum/annotation",
	      "{\"id\":5000101,\"queue\":8199,\"filename\":\"a.pdf\",\"status_raw\":\"teleported\",\"fields\":{\"id\":"
	      "\"x\"},\"without\":[\"queue\"],\"document_fields\":{\"original_file_name\":null}}");
	assert_int_equal(get(f, "/annotations/5000101", &a), 200);
	assert_string_equal(text_at(a.json, "status"), "teleported");
	assert_string_equal(text_at(a.json, "id"), "x");
	assert_null(at(a.json, "queue"));
	assert_int_equal(get(f, "/documents/7000201", &d), 200);
	assert_true(is_null_at(d.json, "original_file_name"));
}

/* --- Limits and faults --- */

static void ten_requests_a_second_and_no_more(void **state)
{
	struct fixture *f = *state;
	REPLY r;
	sandbox_set(f->sandbox, "rossum.rate", "10");
	for (int i = 0; i < 10; i++)
		assert_int_equal(get_status(f, "/auth/user"), 200);
	assert_int_equal(get(f, "/auth/user", &r), 429);
	assert_non_null(strstr(r.headers, "Retry-After: 1"));
	assert_string_equal(text_at(r.json, "code"), "rate_limited");
	sandbox_advance(f->sandbox, 1000);
	assert_int_equal(get_status(f, "/auth/user"), 200);
}

static void a_fault_can_be_a_503_with_its_detail_or_a_lost_answer(void **state)
{
	struct fixture *f = *state;
	REPLY r, lost;
	static const char form[] = FILE_PART("a.pdf", PDF) END;
	assert_int_equal(sandbox_fault(f->sandbox, "{\"origin\":\"rossum\",\"route\":\"rossum_upload\",\"status\":503,"
						   "\"body\":{\"detail\":\"Back soon.\",\"code\":"
						   "\"service_unavailable\"}}"),
			 0);
	assert_int_equal(post_file(f, UPLOADS, FORM_TYPE, form, &r), 503);
	assert_string_equal(text_at(r.json, "detail"), "Back soon.");
	assert_int_equal(annotations_there(f), 0);
	assert_int_equal(
		sandbox_fault(f->sandbox, "{\"route\":\"rossum_upload\",\"action\":\"close\",\"when\":\"after\"}"), 0);
	assert_int_equal(post_file(f, UPLOADS, FORM_TYPE, form, &lost), -1);
	assert_int_equal(annotations_there(f), 1);
	assert_int_equal(post_status(f, UPLOADS "&reject_identical=true", FORM_TYPE, form), 409);
}

static void a_restart_keeps_it_all(void **state)
{
	char dir[] = "/tmp/test-rossum-sandbox-XXXXXX";
	struct fixture f = { 0 };
	struct sandbox_options options = { .state_dir = mkdtemp(dir) };
	REPLY a, d, bytes;
	(void)state;
	assert_int_equal(sandbox_start(&options, &f.sandbox), 0);
	order(&f, "/rossum/queue", "{\"id\":8199,\"name\":\"Invoices\"}");
	order(&f, "/rossum/token", "{\"token\":\"" TOKEN "\"}");
	upload(&f, FILE_PART("a.pdf", PDF) PART("name=\"metadata\"", "{\"k\":1}") END);
	sandbox_stop(f.sandbox);
	assert_int_equal(sandbox_start(&options, &f.sandbox), 0);
	sandbox_advance(f.sandbox, 60000);
	assert_int_equal(get(&f, "/annotations/5000101", &a), 200);
	assert_string_equal(text_at(a.json, "status"), "to_review");
	assert_int_equal(number_at(at(a.json, "metadata"), "k"), 1);
	assert_int_equal(get_status(&f, "/uploads/345"), 200);
	assert_int_equal(get(&f, text_at(a.json, "document"), &d), 200);
	assert_int_equal(get(&f, text_at(d.json, "content"), &bytes), 200);
	assert_string_equal(bytes.body, PDF);
	order(&f, "/reset", NULL);
	assert_int_equal(get_status(&f, "/auth/user"), 401);
	sandbox_stop(f.sandbox);
	char path[100];
	static const char *const left[] = { "state.json", "rossum", "objects", "blobs" };
	for (size_t i = 0; i < 4; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, left[i]);
		assert_int_equal(i == 0 ? unlink(path) : rmdir(path), 0); /* a reset left no file behind */
	}
	rmdir(dir);
}

static void the_demo_has_two_queues_of_one_name(void **state)
{
	struct fixture *f = *state;
	char *token = NULL, *text = NULL, header[200];
	REPLY r;
	order(f, "/reset", NULL);
	assert_int_equal(sandbox_seed_rossum_demo(f->sandbox, &token, &text), 0);
	snprintf(header, sizeof header, "Authorization: Bearer %s", token);
	assert_int_equal(
		ask(f, (struct wish){ .method = "GET", .path = "/queues?name=Invoices", .headers = { header } }, &r),
		200);
	assert_int_equal(cJSON_GetArraySize(at(r.json, "results")), 2);
	char *again = NULL, *same = NULL;
	assert_int_equal(sandbox_seed_rossum_demo(f->sandbox, &again, &same), 0);
	assert_string_equal(token, again);
	assert_string_equal(text, same);
	free(token);
	free(text);
	free(again);
	free(same);
}

int main(void)
{
#define FRESH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		FRESH(a_token_is_taken_in_both_schemes_and_its_absence_is_403),
		FRESH(a_token_ends_by_the_clock_or_by_logout),
		FRESH(a_password_is_taken_for_uploads_alone),
		FRESH(a_login_gives_a_token_that_lasts_as_long_as_was_said),
		FRESH(a_bad_login_is_refused),
		FRESH(logins_have_a_throttle_of_their_own),
		FRESH(a_token_is_traded_for_another),
		FRESH(a_user_sees_their_own_queues),
		FRESH(a_listing_is_walked_by_next_and_tells_no_totals_unasked),
		FRESH(ten_thousand_are_listed_in_a_hundred_requests),
		FRESH(next_stands_where_the_switch_says),
		FRESH(a_query_nobody_documents_is_refused),
		FRESH(queues_and_workspaces_are_listed_in_order),
		FRESH(every_status_can_be_set_counted_and_asked_for),
		FRESH(an_upload_goes_from_task_to_annotation_by_the_clock),
		FRESH(a_raw_body_takes_its_name_from_the_path_or_the_header),
		FRESH(a_malformed_form_is_refused_and_leaves_nothing),
		FRESH(metadata_is_limited_to_four_kilobytes),
		FRESH(a_wrong_content_type_is_500_and_a_wrong_queue_404_or_400),
		FRESH(several_files_are_one_task_and_come_in_no_order),
		FRESH(forty_megabytes_are_the_limit),
		FRESH(bytes_that_look_like_a_boundary_stay_bytes),
		FRESH(the_same_name_and_bytes_are_refused_on_request),
		FRESH(a_task_can_fail_and_is_gone_after_six_hours),
		FRESH(an_import_can_fail_be_stopped_or_bring_more),
		FRESH(a_type_the_queue_does_not_take_shows_in_three_ways),
		FRESH(html_does_not_come_back_as_it_was_sent),
		FRESH(an_archive_becomes_its_files),
		FRESH(content_comes_whole_unless_ranges_are_switched_on),
		FRESH(a_token_sent_to_another_host_is_seen),
		FRESH(a_purge_leaves_a_record_without_name_and_bytes),
		FRESH(deleting_is_soft_and_not_for_what_is_held),
		FRESH(what_is_internal_or_final_is_refused_and_counted),
		FRESH(an_annotation_is_copied_into_a_queue_named_by_its_url),
		FRESH(a_patch_changes_status_metadata_and_queue),
		FRESH(shapes_nobody_foresaw_can_be_ordered),
		FRESH(ten_requests_a_second_and_no_more),
		FRESH(a_fault_can_be_a_503_with_its_detail_or_a_lost_answer),
		cmocka_unit_test(a_restart_keeps_it_all),
		FRESH(the_demo_has_two_queues_of_one_name),
	};
	curl_global_init(CURL_GLOBAL_ALL);
	return cmocka_run_group_tests_name("rossum sandbox", tests, NULL, NULL);
}
