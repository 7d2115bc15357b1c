/* One request to Rossum: the token it needs and what a refusal means, its answer as JSON, and the pages of a list. */
#include "client/rossum_impl.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/common.h"

enum {
	PAGES_MAX = 20000,         /* whatever `next` claims */
	PAGE_TRIES = 4,            /* more of a page, before all those before it were for nothing */
	PAGE_PAUSE_MS = 500,       /* before the first of them, then twice as long each time */
	PROVED_MS = 60 * 1000,     /* so long a token that was seen to work is not doubted for a 403 */
	LOGIN_AGAIN_MS = 2 * 1000, /* a token refused right after its login is not the token's fault */
	LOGIN_BACK_OFF_MS = 30 * 1000,
	LOGIN_BACK_OFF_MS_MAX = 15 * 60 * 1000,
};

/* ---- credentials ------------------------------------------------------------------------------------------- */

/* 0: a login may be tried. */
static int login_is_due(struct rossum *s, struct call *call, const char *account, bool anew)
{
	SCOPED_LOCK(&s->lock);
	const struct login *l = &s->login;
	int64_t now = clock_now_ms();

	if (strcmp(l->account, account) != 0)
		return 0;
	if (now < l->not_before_ms) {
		rossum_fail(call, l->is_throttled ? FAULT_BUDGET : FAULT_ACCOUNT, 0, l->words);
		call->fault.http_status = l->is_throttled ? 429 : 401;
		call->fault.retry_after_ms = l->not_before_ms - now;
		return l->is_throttled ? -EAGAIN : -EACCES;
	}
	/* A token that is refused as soon as it is made would have us log in for ever. */
	return anew && l->done_ms && now < l->done_ms + rossum_patience_ms(s, LOGIN_AGAIN_MS) ? -EACCES : 0;
}

bool login_is_throttled(struct rossum *s)
{
	SCOPED_LOCK(&s->lock);

	return s->login.is_throttled && clock_now_ms() < s->login.not_before_ms;
}

static void login_went_well(struct rossum *s, const char *account)
{
	SCOPED_LOCK(&s->lock);

	s->login = (struct login){ .done_ms = clock_now_ms() };
	snprintf(s->login.account, sizeof(s->login.account), "%s", account);
}

/* The login locks out whoever calls it eagerly, so we keep away from it for a growing time. */
static void login_failed(struct rossum *s, const char *account, const struct fault *f)
{
	SCOPED_LOCK(&s->lock);
	struct login *l = &s->login;
	int64_t pause_ms = LOGIN_BACK_OFF_MS;

	if (strcmp(l->account, account) != 0)
		*l = (struct login){ 0 };
	snprintf(l->account, sizeof(l->account), "%s", account);
	l->is_throttled = f->kind == FAULT_BUDGET;
	if (!l->is_throttled && f->kind != FAULT_ACCOUNT)
		return; /* it could not be asked: the next may */
	for (int i = 0; i < l->failures && pause_ms < LOGIN_BACK_OFF_MS_MAX; i++)
		pause_ms *= 2;
	if (pause_ms < f->retry_after_ms)
		pause_ms = f->retry_after_ms;
	if (pause_ms > LOGIN_BACK_OFF_MS_MAX)
		pause_ms = LOGIN_BACK_OFF_MS_MAX;
	l->failures++;
	l->not_before_ms = clock_now_ms() + pause_ms;
	snprintf(l->words, sizeof(l->words), "%s%.150s",
		 l->is_throttled ? "the login is throttled: " : "the login is refused: ", f->words);
	log_warning("rossum: %s; the next login is tried in %lld s", l->words, (long long)pause_ms / 1000);
}

static int send_login(struct rossum *s, struct call *call, const struct credentials *c, struct secret **ret)
{
	CLEANUP(buf_release) struct buf text = BUF(BODY_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;

	buf_add(&text, "{\"username\":");
	json_add_quoted(&text, c->user);
	buf_add(&text, ",\"password\":");
	json_add_quoted(&text, secret_reveal(c->password));
	buf_add(&text, "}");
	const struct http_request q = { .method = "POST",
					.path = "/auth/login",
					.body = buf_text(&text),
					.is_anonymous = true,
					.is_apart = true,
					.accepts_any = true };
	int r = q.body ? http_json(s->http, call, &q, &body) : call_no_memory(call);
	if (text.data)
		explicit_bzero(text.data, text.len);
	if (r < 0) {
		enum fault_kind kind = call->fault.kind;

		call->fault.may_have_happened = false;
		if (kind == FAULT_INVALID || kind == FAULT_FORBIDDEN) { /* 400: "unable to log in with these" */
			call->fault.kind = FAULT_ACCOUNT;
			r = -EACCES;
		}
		return r;
	}
	const char *key = rossum_text_of(body, "key");
	struct secret *token = key ? secret_new(key) : NULL;
	if (!token)
		return http_unreadable(s->http, call, &q, "the login's answer holds no key");
	*ret = token;
	return 0;
}

/* One login for all threads: http.c calls this for one of them at a time, and the others wait for its answer. */
int login_read_token(void *arg, struct call *call, bool anew, struct secret **ret)
{
	struct rossum *s = arg;
	CLEANUP(credentials_release) struct credentials c = { 0 };
	char account[65];
	int r = s->read_credentials(s->arg, &c);

	if (r < 0)
		return r;
	if (c.token) {
		*ret = c.token;
		c.token = NULL;
		return 0;
	}
	if (!c.user || !c.password)
		return -ENOKEY;
	secret_fingerprint(c.password, c.user, account);
	r = login_is_due(s, call, account, anew);
	if (r < 0)
		return r;
	r = send_login(s, call, &c, ret);
	if (r < 0)
		login_failed(s, account, &call->fault);
	else
		login_went_well(s, account);
	return r;
}

int login_basic_header(struct rossum *s, struct buf *ret)
{
	CLEANUP(credentials_release) struct credentials c = { 0 };
	CLEANUP(buf_release) struct buf pair = BUF(BODY_BYTES_MAX);
	CLEANUP(text_release) char *code = NULL;
	int r = s->read_credentials(s->arg, &c);

	if (r < 0)
		return r;
	if (c.token || !c.user || !c.password)
		return -ENOKEY;
	buf_addf(&pair, "%s:%s", c.user, secret_reveal(c.password));
	code = buf_text(&pair) ? malloc(pair.len / 3 * 4 + 8) : NULL;
	if (!code)
		return -ENOMEM;
	int len = EVP_EncodeBlock((unsigned char *)code, (const unsigned char *)pair.data, (int)pair.len);
	buf_addf(ret, "Authorization: Basic %s", code);
	explicit_bzero(pair.data, pair.len);
	explicit_bzero(code, (size_t)len);
	return buf_text(ret) ? 0 : -ENOMEM;
}

int rossum_fail(struct call *call, enum fault_kind kind, int error, const char *words)
{
	int status = call->fault.http_status;

	call_forget_fault(call);
	call->fault.kind = kind;
	call->fault.http_status = status;
	snprintf(call->fault.words, sizeof(call->fault.words), "%s", words);
	return error;
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

static bool token_was_proved(struct rossum *s, uint64_t number)
{
	SCOPED_LOCK(&s->lock);

	return s->proved_token == number && clock_now_ms() < s->proved_ms + PROVED_MS;
}

static void token_proved(struct rossum *s, uint64_t number)
{
	SCOPED_LOCK(&s->lock);

	s->proved_token = number;
	s->proved_ms = clock_now_ms();
}

const struct http_request rossum_user_request = { .method = "GET", .path = "/auth/user", .accepts_any = true };

/* A 403 means a missing right, or a token that has ended: whoever may do anything may ask who he is. 0: the right is
 * missing; 1: there is another token now; else there is none, and call->fault says so. */
static int doubt_token(struct rossum *s, struct call *call, uint64_t number)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	struct fault kept = call->fault;

	if (number == 0)
		number = http_token_number(s->http); /* it was the first that was sent */
	if (token_was_proved(s, number))
		return 0;
	int r = http_do(s->http, call, &rossum_user_request, &reply);
	uint64_t now = http_token_number(s->http);
	if (r == 0) {
		token_proved(s, now);
		call->fault = kept;
		return now != number;
	}
	if (call->fault.kind != FAULT_FORBIDDEN)
		return r;
	call_forget_fault(call);
	r = http_renew_token(s->http, call, now);
	if (r == 0)
		return 1;
	if (call->fault.kind == FAULT_NONE) {
		call->fault = kept;
		call->fault.kind = FAULT_ACCOUNT;
	}
	return r;
}

int rossum_ask(struct rossum *s, struct call *call, const struct http_request *q, struct http_reply *ret)
{
	uint64_t number = http_token_number(s->http);
	int r = http_do(s->http, call, q, ret);

	if (r == 0 || call->fault.kind != FAULT_FORBIDDEN || q->is_anonymous)
		return r;
	int doubted = doubt_token(s, call, number);
	if (doubted == 0)
		return r;
	http_reply_release(ret);
	return doubted < 0 ? doubted : http_do(s->http, call, q, ret);
}

int rossum_unreadable(struct rossum *s, struct call *call, const struct http_request *q, const char *why, int error)
{
	if (error == -ENOMEM)
		return call_no_memory(call);
	return http_unreadable(s->http, call, q, why);
}

int rossum_ask_json(struct rossum *s, struct call *call, const struct http_request *q, cJSON **ret)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };

	if (!q->path)
		return call_no_memory(call);
	int r = rossum_ask(s, call, q, &reply);
	if (r < 0)
		return r;
	if (json_parse(reply.body, reply.body_bytes, ret) == 0)
		return 0;
	call->fault.http_status = reply.status;
	return rossum_unreadable(s, call, q, "the answer is not JSON", -EPROTO);
}

int rossum_get_json(struct rossum *s, struct call *call, const char *path, cJSON **ret)
{
	const struct http_request q = { .method = "GET", .path = path };

	return rossum_ask_json(s, call, &q, ret);
}

static bool is_cancelled(struct rossum *s, const struct call *call)
{
	return atomic_load(&s->is_stopped) || (call->transfer && atomic_load(&call->transfer->cancelled));
}

int rossum_nap(struct rossum *s, struct call *call, int64_t ms, int64_t deadline_ms)
{
	const struct timespec slice = { .tv_nsec = (ms < 50 ? ms : 50) * 1000000 };
	int64_t until = clock_now_ms() + ms;

	for (int64_t now = clock_now_ms(); now < until; now = clock_now_ms()) {
		if (is_cancelled(s, call))
			return rossum_fail(call, FAULT_CANCELED, -ECANCELED, "");
		if (deadline_ms && now >= deadline_ms)
			return -ETIMEDOUT;
		(void)nanosleep(&slice, NULL); /* woken early, it looks early */
	}
	return 0;
}

void pages_release(struct pages *p)
{
	buf_release(&p->path);
	buf_release(&p->mark);
}

/* `next` stands in `pagination`, or beside it. NULL, or what is wrong with it. */
static const char *pages_turn(struct rossum *s, struct pages *p, const cJSON *body)
{
	const char *next = rossum_text_of(rossum_member(body, "pagination"), "next");
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);

	if (!next)
		next = rossum_text_of(body, "next");
	if (next && http_path_of(s->http, next, &path) < 0)
		return "its next page is at an address that is not the service's";
	if (next && (strcmp(path.data, buf_text(&p->path)) == 0 ||
		     (p->mark.len > 0 && strcmp(path.data, buf_text(&p->mark)) == 0)))
		return "its pages go round in a circle";
	buf_release(&p->path);
	p->path = path;
	path = BUF(PATH_BYTES_MAX);
	if (next && (p->asked & (p->asked - 1)) == 0) { /* ever farther apart, so that a circle of any size shows */
		buf_clear(&p->mark);
		buf_add(&p->mark, p->path.data);
	}
	return NULL;
}

/* One page of hundreds that is refused for the moment does not end the list. */
static int ask_page(struct rossum *s, struct call *call, const struct http_request *q, bool is_first, cJSON **ret)
{
	const enum fault_kind *kind = &call->fault.kind;
	int r = rossum_ask_json(s, call, q, ret);

	for (int i = 0; i < PAGE_TRIES && r < 0 && !is_first && (*kind == FAULT_AWAY || *kind == FAULT_BUDGET); i++) {
		int64_t pause_ms = rossum_patience_ms(s, (int64_t)PAGE_PAUSE_MS << i);
		if (call->deadline_ms && clock_now_ms() + pause_ms >= call->deadline_ms)
			break;
		int napped = rossum_nap(s, call, pause_ms, call->deadline_ms);
		if (napped == -ECANCELED)
			return napped;
		r = rossum_ask_json(s, call, q, ret);
	}
	return r;
}

int pages_next(struct rossum *s, struct call *call, struct pages *p, cJSON **ret, const cJSON **ret_results)
{
	CLEANUP(json_release) cJSON *body = NULL;

	if (p->path.len == 0 || p->asked >= PAGES_MAX)
		return 0;
	CLEANUP(text_release) char *path = strdup(p->path.data);
	const struct http_request q = { .method = "GET", .path = path };
	int r = ask_page(s, call, &q, p->asked == 0, &body);
	if (r < 0)
		return r;
	p->asked++;
	const cJSON *results = rossum_member(body, "results");
	if (!cJSON_IsArray(results))
		return rossum_unreadable(s, call, &q, "this is not a page of a list", -EPROTO);
	const char *why = pages_turn(s, p, body);
	if (why)
		return rossum_unreadable(s, call, &q, why, -EPROTO);
	if (call->transfer)
		atomic_store(&call->transfer->moved_ms, clock_now_ms());
	*ret = body;
	body = NULL;
	*ret_results = results;
	return 1;
}
