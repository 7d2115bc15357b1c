/* The ground the services stand on: listeners, requests from first byte to last, clock, faults, limits, log, switches,
 * saving, and the control origin. Knows no service but by the table below.
 *
 * Each connection has a thread of its own, so that a request may simply sleep: a stall, a throttle and a
 * latency hold up nobody else. */
#include "tests/sandbox/sandbox.h"
#include "tests/sandbox/core.h"

#include <arpa/inet.h>
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <regex.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <uthash.h>

static const struct service *const services[] = { &raydocs_service, &rossum_service };

#define ORIGINS_MAX 8
#define LOG_MAX 200000
#define CONNECTIONS_MAX 8000
#define THREAD_STACK_BYTES (512 * 1024)
#define DISCARD_BYTES_MAX (8 << 20) /* a refused body up to this is read to its end, so that the refusal arrives */
#define LIMIT_WINDOW_MS 60000

struct origin {
	const struct origin_ops *ops;
	struct sandbox *sandbox;
	const struct service *service; /* NULL: control */
	void *state;
	int port;
	char url[64];
	struct MHD_Daemon *daemon; /* NULL: down; guarded by listeners_lock */
	int spare_socket;          /* keeps the port ours while nobody listens on it */
	unsigned drops;            /* +1 per down, which ends the requests under way; guarded by lock */
	bool blackhole;            /* guarded by lock */
};

struct knob {
	const struct switch_def *def;
	char *value;
	UT_hash_handle hh;
};

enum moment { UNREAD, BEFORE, AFTER };
enum action { PASS, STATUS, CLOSE, STALL, TRUNCATE, GARBLE, SLOW_RESPONSE, SLOW_REQUEST };
static const char *const moment_names[] = { "unread", "before", "after" };
static const char *const action_names[] = { "none",     "status", "close",         "stall",
					    "truncate", "garble", "slow_response", "slow_request" };

struct deed {
	enum action action;
	enum moment when;
	int64_t ms;    /* -1: until freed */
	int64_t bytes; /* truncate: of the body; slow: per second */
	int status;
	char *body;
	cJSON *headers;
	bool reset;
};

struct fault {
	struct deed deed;
	char *origin, *method, *route, *path;
	regex_t path_regex;
	int64_t nth, times; /* still to pass over; still to do, -1: for ever */
	double probability;
	int64_t seen;
	cJSON *rule; /* as it was given */
	struct fault *next;
};

struct entry {
	int64_t number, started_ms, finished_ms, bytes;
	const char *origin, *route;
	char *method, *path, *query, *headers;
	bool had_authorization, is_done;
	int status; /* 0 while under way and where none was given */
};

struct count {
	const char *route;
	long value;
	UT_hash_handle hh;
};

struct visitor {
	char *client;
	int64_t *times;
	size_t count, room;
	UT_hash_handle hh;
};

struct sandbox {
	struct origin origins[ORIGINS_MAX];
	size_t origin_count;
	void *states[COUNT_OF(services)];
	char *dir, *cert_file;
	bool dir_is_temporary;
	char *tls_cert, *tls_key;
	unsigned char secret[32];
	long rate, rossum_rate, latency_ms; /* as started with */
	pthread_mutex_t listeners_lock; /* taken before lock, never inside it */
	pthread_t saver;
	bool has_saver;

	pthread_mutex_t lock; /* guards what follows, and the services' states */
	pthread_cond_t wake;  /* stopping, a drop, a clear: whoever waits looks again */
	bool stopping;
	unsigned clears;
	struct knob *knobs;
	struct fault *faults;
	struct entry *log;
	size_t log_count, log_room;
	int64_t next_number;
	struct count *counts;
	struct visitor *visitors;
	uint64_t random;
	int64_t clock_base_ms, clock_offset_ms, frozen_ms; /* wall time at monotonic 0; frozen_ms -1: running */
	bool is_changed;
	int64_t save_cost_ms;
};

struct exchange {
	struct request q; /* first: a request is its exchange */
	struct origin *origin;
	struct MHD_Connection *connection;
	bool is_begun, is_refused, is_overlong;
	int64_t number, read_bytes, body_started_ms;
	struct deed deed;
	unsigned drops, clears;
};

/* --- Small things --- */

static int64_t monotonic_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void *allocate(size_t bytes)
{
	void *p = calloc(1, bytes);
	if (p == NULL)
		abort(); /* a test's helper has nothing better to do */
	return p;
}

char *text_copy(const char *text)
{
	char *copy = text == NULL ? NULL : strdup(text);
	if (text != NULL && copy == NULL)
		abort();
	return copy;
}

char *text_format(const char *format, ...)
{
	char *text = NULL;
	va_list args;
	va_start(args, format);
	if (vasprintf(&text, format, args) < 0)
		abort();
	va_end(args);
	return text;
}

char *time_text(int64_t ms, bool micros)
{
	time_t seconds = (time_t)(ms / 1000);
	struct tm t;
	char text[40];
	gmtime_r(&seconds, &t);
	strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &t);
	if (micros)
		return text_format("%s.%06dZ", text, (int)(ms % 1000) * 1000);
	return text_format("%sZ", text);
}

char *uuid_new(void)
{
	unsigned char b[16];
	char hex[33];
	RAND_bytes(b, sizeof b);
	b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
	b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
	bytes_to_hex(b, sizeof b, hex);
	return text_format("%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

bool uuid_is_valid(const char *text)
{
	for (int i = 0; i < 36; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		if (dash ? text[i] != '-' : strchr("0123456789abcdefABCDEF", text[i]) == NULL || text[i] == 0)
			return false;
	}
	return text[36] == 0;
}

const cJSON *json_get(const cJSON *object, const char *key)
{
	return cJSON_GetObjectItemCaseSensitive(object, key);
}

const char *json_text(const cJSON *object, const char *key, const char *otherwise)
{
	const cJSON *item = json_get(object, key);
	return cJSON_IsString(item) ? item->valuestring : otherwise;
}

int64_t json_number(const cJSON *object, const char *key, int64_t otherwise)
{
	const cJSON *item = json_get(object, key);
	if (cJSON_IsNumber(item))
		return (int64_t)item->valuedouble;
	return cJSON_IsString(item) ? strtoll(item->valuestring, NULL, 10) : otherwise;
}

bool json_bool(const cJSON *object, const char *key, bool otherwise)
{
	const cJSON *item = json_get(object, key);
	return cJSON_IsBool(item) ? cJSON_IsTrue(item) : otherwise;
}

int control_refuse(cJSON **ret, int status, const char *format, ...)
{
	char *text = NULL;
	va_list args;
	va_start(args, format);
	if (vasprintf(&text, format, args) < 0)
		abort();
	va_end(args);
	cJSON_Delete(*ret);
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "message", text);
	free(text);
	return status;
}

static char *read_whole_file(const char *path)
{
	FILE *f = fopen(path, "re");
	if (f == NULL)
		return NULL;
	char *text = NULL;
	size_t room = 0;
	ssize_t n = getdelim(&text, &room, EOF, f);
	fclose(f);
	if (n < 0) {
		free(text);
		return NULL;
	}
	return text;
}

char *url_decode(const char *text, bool plus_is_space)
{
	char *out = allocate(strlen(text) + 1), *to = out;
	for (const char *at = text; *at != 0; at++) {
		unsigned byte;
		if (*at == '%' && strspn(at + 1, "0123456789abcdefABCDEF") >= 2 && sscanf(at + 1, "%2x", &byte) == 1) {
			*to++ = (char)byte;
			at += 2;
		} else {
			*to++ = *at == '+' && plus_is_space ? ' ' : *at;
		}
	}
	return out;
}

char *url_encode(const char *text, bool keeps_slash)
{
	char *out = allocate(strlen(text) * 3 + 1), *to = out;
	for (const char *at = text; *at != 0; at++) {
		bool plain = (*at >= '0' && *at <= '9') || (*at >= 'A' && *at <= 'Z') || (*at >= 'a' && *at <= 'z') ||
			     strchr("-._~", *at) != NULL || (*at == '/' && keeps_slash);
		if (plain)
			*to++ = *at;
		else
			to += snprintf(to, 4, "%%%02X", (unsigned char)*at);
	}
	return out;
}

/* --- Clock, chance, switches: the lock is held --- */

int64_t sandbox_now_ms(struct sandbox *s)
{
	return s->frozen_ms >= 0 ? s->frozen_ms : s->clock_base_ms + monotonic_ms() + s->clock_offset_ms;
}

uint64_t sandbox_random(struct sandbox *s)
{
	uint64_t x = s->random += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

bool sandbox_chance(struct sandbox *s, double probability)
{
	return (double)(sandbox_random(s) >> 11) / 9007199254740992.0 < probability;
}

void sandbox_changed(struct sandbox *s)
{
	s->is_changed = true;
}

const char *sandbox_dir(struct sandbox *s)
{
	return s->dir;
}

const unsigned char *sandbox_secret(struct sandbox *s)
{
	return s->secret;
}

static const struct switch_def core_switches[] = {
	{ "latency_ms", "0", "number", "before each answer of a service" },
	{ "seed", "1", "number", "of probabilities and random orders" },
};

const char *switch_text(struct sandbox *s, const char *name)
{
	struct knob *k = NULL;
	HASH_FIND_STR(s->knobs, name, k);
	assert(k != NULL);
	return k->value;
}

bool switch_is(struct sandbox *s, const char *name, const char *value)
{
	return strcmp(switch_text(s, name), value) == 0;
}

bool switch_on(struct sandbox *s, const char *name)
{
	return switch_is(s, name, "on");
}

int64_t switch_number(struct sandbox *s, const char *name, int64_t otherwise)
{
	const char *text = switch_text(s, name);
	char *end = NULL;
	long long n = strtoll(text, &end, 10);
	return *text == 0 || *end != 0 ? otherwise : n;
}

static bool value_is_allowed(const char *allowed, const char *value)
{
	char *list = text_copy(allowed);
	bool ok = false;
	char *rest = list;
	for (char *one = strsep(&rest, "|"); one != NULL; one = strsep(&rest, "|")) {
		char *end = NULL;
		if (strcmp(one, "number") == 0)
			ok |= *value != 0 && (strtoll(value, &end, 10), *end == 0);
		else
			ok |= strcmp(one, "text") == 0 || strcmp(one, value) == 0;
	}
	free(list);
	return ok;
}

static void knobs_add(struct sandbox *s, const struct switch_def *defs, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		assert(value_is_allowed(defs[i].allowed, defs[i].initial));
		struct knob *k = allocate(sizeof *k);
		k->def = &defs[i];
		k->value = text_copy(defs[i].initial);
		HASH_ADD_KEYPTR(hh, s->knobs, k->def->name, strlen(k->def->name), k);
	}
}

/* NULL or what is wrong, for the caller to free. */
static char *knob_set(struct sandbox *s, const char *name, const cJSON *value)
{
	struct knob *k = NULL;
	HASH_FIND_STR(s->knobs, name, k);
	if (k == NULL)
		return text_format("no switch '%s'", name);
	CLEANUP(text_free) char *text = NULL;
	if (cJSON_IsBool(value))
		text = text_copy(cJSON_IsTrue(value) ? "on" : "off");
	else if (cJSON_IsNumber(value))
		text = text_format("%lld", (long long)value->valuedouble);
	else
		text = text_copy(cJSON_IsString(value) ? value->valuestring : "?");
	if (!value_is_allowed(k->def->allowed, text))
		return text_format("'%s' may be %s, not '%s'", name, k->def->allowed, text);
	free(k->value);
	k->value = text;
	text = NULL;
	if (strcmp(name, "seed") == 0)
		s->random = (uint64_t)switch_number(s, "seed", 1);
	s->is_changed = true;
	return NULL;
}

/* --- Saving --- */

static void save_state(struct sandbox *s)
{
	s->is_changed = false;
	if (s->dir_is_temporary)
		return;
	int64_t began_ms = monotonic_ms();
	CLEANUP(json_free) cJSON *all = cJSON_CreateObject();
	char secret[65];
	bytes_to_hex(s->secret, sizeof s->secret, secret);
	cJSON_AddStringToObject(all, "secret", secret);
	cJSON_AddNumberToObject(all, "clock_offset_ms", (double)s->clock_offset_ms);
	cJSON_AddNumberToObject(all, "frozen_ms", (double)s->frozen_ms);
	cJSON *set = cJSON_AddObjectToObject(all, "switches");
	for (struct knob *k = s->knobs; k != NULL; k = k->hh.next)
		if (strcmp(k->value, k->def->initial) != 0)
			cJSON_AddStringToObject(set, k->def->name, k->value);
	for (size_t i = 0; i < COUNT_OF(services); i++)
		cJSON_AddItemToObject(all, services[i]->name, services[i]->save(s->states[i]));

	CLEANUP(text_free) char *text = cJSON_PrintUnformatted(all);
	CLEANUP(text_free) char *fresh = text_format("%s/state.json.new", s->dir);
	CLEANUP(text_free) char *path = text_format("%s/state.json", s->dir);
	FILE *f = fopen(fresh, "we");
	bool ok = f != NULL && text != NULL && fputs(text, f) >= 0;
	ok = f != NULL && fclose(f) == 0 && ok;
	if (!ok || rename(fresh, path) < 0)
		fprintf(stderr, "sandbox: cannot save %s: %s\n", path, strerror(errno));
	s->save_cost_ms = monotonic_ms() - began_ms;
}

/* A small state is saved before the answer goes out; a large one would make each answer slow, and is left to
 * the saver's rounds. */
static void save_if_cheap(struct sandbox *s)
{
	if (s->is_changed && s->save_cost_ms < 20)
		save_state(s);
}

static void wait_until(struct sandbox *s, int64_t deadline_ms)
{
	struct timespec t = { .tv_sec = deadline_ms / 1000, .tv_nsec = deadline_ms % 1000 * 1000000 };
	pthread_cond_timedwait(&s->wake, &s->lock, &t);
}

static void *run_saver(void *cls)
{
	struct sandbox *s = cls;
	SCOPED_LOCK(&s->lock);
	while (!s->stopping) {
		wait_until(s, monotonic_ms() + 1000);
		if (s->is_changed)
			save_state(s);
	}
	return NULL;
}

static int load_state(struct sandbox *s)
{
	CLEANUP(text_free) char *path = text_format("%s/state.json", s->dir);
	CLEANUP(text_free) char *text = read_whole_file(path);
	if (text == NULL)
		return access(path, F_OK) == 0 ? -EIO : 0;
	CLEANUP(json_free) cJSON *all = cJSON_Parse(text);
	if (all == NULL) {
		fprintf(stderr, "sandbox: %s is not JSON\n", path);
		return -EINVAL;
	}
	const char *secret = json_text(all, "secret", "");
	for (size_t i = 0; i < sizeof s->secret && strlen(secret) == 64; i++)
		sscanf(secret + 2 * i, "%2hhx", &s->secret[i]);
	s->clock_offset_ms = json_number(all, "clock_offset_ms", 0);
	s->frozen_ms = json_number(all, "frozen_ms", -1);
	const cJSON *one;
	cJSON_ArrayForEach (one, json_get(all, "switches")) {
		CLEANUP(text_free) char *wrong = knob_set(s, one->string, one);
		if (wrong != NULL)
			fprintf(stderr, "sandbox: %s: %s\n", path, wrong);
	}
	for (size_t i = 0; i < COUNT_OF(services); i++)
		services[i]->load(s->states[i], json_get(all, services[i]->name));
	s->is_changed = false;
	return 0;
}

/* --- Limits --- */

bool sandbox_admit(struct sandbox *s, const char *client, int64_t limit, int64_t *ret_left, int64_t *ret_retry_s)
{
	int64_t now = sandbox_now_ms(s);
	struct visitor *v = NULL;
	HASH_FIND_STR(s->visitors, client, v);
	if (v == NULL) {
		v = allocate(sizeof *v);
		v->client = text_copy(client);
		HASH_ADD_KEYPTR(hh, s->visitors, v->client, strlen(v->client), v);
	}
	size_t gone = 0;
	while (gone < v->count && v->times[gone] <= now - LIMIT_WINDOW_MS)
		gone++;
	v->count -= gone;
	if (gone > 0)
		memmove(v->times, v->times + gone, v->count * sizeof *v->times);
	bool admitted = (int64_t)v->count < limit;
	if (admitted) {
		if (v->count == v->room) {
			v->room = v->room * 2 + 64;
			v->times = realloc(v->times, v->room * sizeof *v->times);
			if (v->times == NULL)
				abort();
		}
		v->times[v->count++] = now;
	}
	if (ret_left != NULL)
		*ret_left = admitted ? limit - (int64_t)v->count : 0;
	if (ret_retry_s != NULL)
		*ret_retry_s = v->count == 0 ? 60 : (v->times[0] + LIMIT_WINDOW_MS - now + 999) / 1000;
	return admitted;
}

static void forget_visitors(struct sandbox *s)
{
	struct visitor *v, *next;
	HASH_ITER (hh, s->visitors, v, next) {
		HASH_DEL(s->visitors, v);
		free(v->client);
		free(v->times);
		free(v);
	}
}

/* --- The request log --- */

static void entry_release(struct entry *e)
{
	free(e->method);
	free(e->path);
	free(e->query);
	free(e->headers);
}

static struct entry *log_find(struct sandbox *s, int64_t number)
{
	if (s->log_count == 0 || number < s->log[0].number)
		return NULL;
	size_t at = (size_t)(number - s->log[0].number);
	return at < s->log_count ? &s->log[at] : NULL;
}

static int64_t log_begin(struct exchange *x)
{
	static const char *const told[] = { "Content-Type", "Content-Length", "Expect", "Transfer-Encoding",
					    "User-Agent",   "Accept",         "Range",  "Host",
					    "x-amz-acl" };
	struct sandbox *s = x->q.sandbox;
	if (s->log_count == LOG_MAX) {
		for (size_t i = 0; i < LOG_MAX / 2; i++)
			entry_release(&s->log[i]);
		memmove(s->log, s->log + LOG_MAX / 2, (LOG_MAX - LOG_MAX / 2) * sizeof *s->log);
		s->log_count -= LOG_MAX / 2;
	}
	if (s->log_count == s->log_room) {
		s->log_room = s->log_room * 2 + 256;
		s->log = realloc(s->log, s->log_room * sizeof *s->log);
		if (s->log == NULL)
			abort();
	}
	CLEANUP(json_free) cJSON *headers = cJSON_CreateObject();
	for (size_t i = 0; i < COUNT_OF(told); i++) {
		const char *value = request_header(&x->q, told[i]);
		if (value != NULL)
			cJSON_AddStringToObject(headers, told[i], value);
	}
	s->log[s->log_count++] = (struct entry){
		.number = ++s->next_number,
		.started_ms = sandbox_now_ms(s),
		.origin = x->origin->ops->name,
		.route = x->q.route,
		.method = text_copy(x->q.method),
		.path = text_copy(x->q.raw_path),
		/* A signature is as good as a token for as long as it lives. */
		.query = text_copy(strstr(x->q.raw_query, "Signature=") != NULL ? "(signed)" : x->q.raw_query),
		.headers = cJSON_PrintUnformatted(headers),
		.had_authorization = request_header(&x->q, "Authorization") != NULL,
	};
	struct count *c = NULL;
	HASH_FIND_STR(s->counts, x->q.route, c);
	if (c == NULL) {
		c = allocate(sizeof *c);
		c->route = x->q.route;
		HASH_ADD_KEYPTR(hh, s->counts, c->route, strlen(c->route), c);
	}
	c->value++;
	return s->next_number;
}

static void log_end(struct exchange *x, int status)
{
	SCOPED_LOCK(&x->q.sandbox->lock);
	struct entry *e = log_find(x->q.sandbox, x->number);
	if (e == NULL)
		return;
	e->status = status;
	e->bytes = x->read_bytes;
	e->is_done = true;
	e->finished_ms = sandbox_now_ms(x->q.sandbox);
}

static void log_clear(struct sandbox *s)
{
	for (size_t i = 0; i < s->log_count; i++)
		entry_release(&s->log[i]);
	s->log_count = 0;
	struct count *c, *next;
	HASH_ITER (hh, s->counts, c, next) {
		HASH_DEL(s->counts, c);
		free(c);
	}
}

/* --- Faults --- */

static void deed_release(struct deed *d)
{
	free(d->body);
	cJSON_Delete(d->headers);
	*d = (struct deed){ 0 };
}

static void fault_free(struct fault *f)
{
	deed_release(&f->deed);
	free(f->origin);
	free(f->method);
	free(f->route);
	if (f->path != NULL)
		regfree(&f->path_regex);
	free(f->path);
	cJSON_Delete(f->rule);
	free(f);
}

static void faults_clear(struct sandbox *s)
{
	while (s->faults != NULL) {
		struct fault *f = s->faults;
		s->faults = f->next;
		fault_free(f);
	}
	s->clears++;
	pthread_cond_broadcast(&s->wake);
}

static bool equal_or_any(const char *wanted, const char *got)
{
	return wanted == NULL || strcmp(wanted, got) == 0;
}

static void pick_fault(struct exchange *x)
{
	for (struct fault *f = x->q.sandbox->faults; f != NULL; f = f->next) {
		if (!equal_or_any(f->origin, x->origin->ops->name) || !equal_or_any(f->method, x->q.method) ||
		    !equal_or_any(f->route, x->q.route) ||
		    (f->path != NULL && regexec(&f->path_regex, x->q.raw_path, 0, NULL, 0) != 0))
			continue;
		if (++f->seen < f->nth || f->times == 0 || !sandbox_chance(x->q.sandbox, f->probability))
			continue;
		if (f->times > 0)
			f->times--;
		x->deed = f->deed;
		x->deed.body = text_copy(f->deed.body);
		x->deed.headers = cJSON_Duplicate(f->deed.headers, true);
		return;
	}
}

static int find_name(const char *const *names, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(names[i], name) == 0)
			return (int)i;
	return -1;
}

static bool route_exists(const char *route)
{
	for (size_t i = 0; i < COUNT_OF(services); i++)
		for (const char *const *at = services[i]->routes; *at != NULL; at++)
			if (strcmp(*at, route) == 0)
				return true;
	return false;
}

static int add_fault(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	int action = find_name(action_names, COUNT_OF(action_names), json_text(in, "action", "status"));
	int when = find_name(moment_names, COUNT_OF(moment_names), json_text(in, "when", "before"));
	const char *path = json_text(in, "path", NULL), *route = json_text(in, "route", NULL);
	if (action < 0 || when < 0)
		return control_refuse(ret, 400, "no such action or moment");
	if (route != NULL && !route_exists(route))
		return control_refuse(ret, 400, "no route '%s'", route);
	if (action == STATUS && json_number(in, "status", 0) < 200)
		return control_refuse(ret, 400, "action 'status' needs a status");
	struct fault *f = allocate(sizeof *f);
	if (path != NULL && regcomp(&f->path_regex, path, REG_EXTENDED | REG_NOSUB) != 0) {
		free(f);
		return control_refuse(ret, 400, "path is no extended regular expression");
	}
	f->path = text_copy(path);
	f->route = text_copy(route);
	f->origin = text_copy(json_text(in, "origin", NULL));
	f->method = text_copy(json_text(in, "method", NULL));
	f->nth = json_number(in, "nth", 1);
	f->times = json_number(in, "times", 1);
	if (f->times == 0)
		f->times = -1;
	const cJSON *probability = json_get(in, "probability");
	f->probability = cJSON_IsNumber(probability) ? probability->valuedouble : 1;
	const cJSON *body = json_get(in, "body");
	f->deed = (struct deed){
		.action = (enum action)action,
		.when = (enum moment)when,
		.ms = json_number(in, "ms", -1),
		.bytes = json_number(in, action == TRUNCATE ? "bytes" : "bytes_per_s", action == TRUNCATE ? 0 : 1000),
		.status = (int)json_number(in, "status", 500),
		.body = cJSON_IsString(body) ? text_copy(body->valuestring)
			: body != NULL       ? cJSON_PrintUnformatted(body)
					     : NULL,
		.headers = cJSON_Duplicate(json_get(in, "headers"), true),
		.reset = json_bool(in, "reset", false),
	};
	f->rule = cJSON_Duplicate(in, true);
	struct fault **end = &s->faults;
	while (*end != NULL)
		end = &(*end)->next;
	*end = f;
	return 200;
}

/* --- Requests --- */

const char *request_header(const struct request *q, const char *name)
{
	return MHD_lookup_connection_value(((const struct exchange *)q)->connection, MHD_HEADER_KIND, name);
}

struct header_walk {
	const char *name;
	int count;
	void (*visit)(void *cls, const char *name, const char *value);
	void *cls;
};

static enum MHD_Result walk_header(void *cls, enum MHD_ValueKind kind, const char *key, const char *value)
{
	struct header_walk *w = cls;
	(void)kind;
	if (w->name != NULL && strcasecmp(w->name, key) == 0)
		w->count++;
	if (w->visit != NULL)
		w->visit(w->cls, key, value == NULL ? "" : value);
	return MHD_YES;
}

int request_header_count(const struct request *q, const char *name)
{
	struct header_walk w = { .name = name };
	MHD_get_connection_values(((const struct exchange *)q)->connection, MHD_HEADER_KIND, walk_header, &w);
	return w.count;
}

void request_each_header(const struct request *q, void (*visit)(void *cls, const char *name, const char *value),
			 void *cls)
{
	struct header_walk w = { .visit = visit, .cls = cls };
	MHD_get_connection_values(((const struct exchange *)q)->connection, MHD_HEADER_KIND, walk_header, &w);
}

char *request_query(const struct request *q, const char *name)
{
	CLEANUP(text_free) char *all = text_copy(q->raw_query);
	char *rest = all;
	for (char *pair = strsep(&rest, "&"); pair != NULL; pair = strsep(&rest, "&")) {
		char *value = pair;
		CLEANUP(text_free) char *key = url_decode(strsep(&value, "="), true);
		if (strcmp(key, name) == 0)
			return url_decode(value == NULL ? "" : value, true);
	}
	return NULL;
}

void answer_header(struct answer *a, const char *name, const char *value)
{
	struct header *h = allocate(sizeof *h);
	h->name = text_copy(name);
	h->value = text_copy(value);
	h->next = a->headers;
	a->headers = h;
}

void answer_text(struct answer *a, int status, const char *type, const char *body)
{
	a->status = status;
	free(a->body);
	a->body = text_copy(body);
	a->body_bytes = strlen(body);
	answer_header(a, "Content-Type", type);
}

void answer_json(struct answer *a, int status, cJSON *body)
{
	CLEANUP(text_free) char *text = cJSON_PrintUnformatted(body);
	cJSON_Delete(body);
	answer_text(a, status, "application/json", text == NULL ? "null" : text);
}

static void answer_release(struct answer *a)
{
	free(a->body);
	content_close(a->content);
	while (a->headers != NULL) {
		struct header *h = a->headers;
		a->headers = h->next;
		free(h->name);
		free(h->value);
		free(h);
	}
	*a = (struct answer){ 0 };
}

static bool client_has_left(struct exchange *x)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct pollfd p = { .fd = info == NULL ? -1 : info->connect_fd, .events = POLLRDHUP };
	return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

/* False: the connection is to be closed, for the sandbox stops, the origin went down or the client left. */
static bool request_wait(struct exchange *x, int64_t ms, bool is_stall)
{
	struct sandbox *s = x->q.sandbox;
	int64_t end_ms = ms < 0 ? INT64_MAX : monotonic_ms() + ms;
	SCOPED_LOCK(&s->lock);
	while (!s->stopping && x->origin->drops == x->drops) {
		int64_t now_ms = monotonic_ms();
		if (now_ms >= end_ms || (is_stall && s->clears != x->clears))
			return true;
		if (is_stall && client_has_left(x))
			return false;
		wait_until(s, end_ms - now_ms > 100 ? now_ms + 100 : end_ms);
	}
	return false;
}

struct stream {
	struct exchange *exchange;
	struct answer *answer;
	int64_t total, cut, per_second, started_ms; /* cut -1, per_second 0: none */
};

static ssize_t stream_read(void *cls, uint64_t pos, char *buf, size_t room)
{
	struct stream *t = cls;
	int64_t at = (int64_t)pos, n = (int64_t)room;
	if (t->cut >= 0 && at >= t->cut)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	if (at >= t->total)
		return MHD_CONTENT_READER_END_OF_STREAM;
	int64_t end = t->cut >= 0 && t->cut < t->total ? t->cut : t->total;
	if (n > end - at)
		n = end - at;
	if (t->per_second > 0) {
		int64_t step = t->per_second / 20 + 1;
		if (n > step)
			n = step;
		int64_t due_ms = t->started_ms + (at + n) * 1000 / t->per_second;
		if (!request_wait(t->exchange, due_ms - monotonic_ms() > 0 ? due_ms - monotonic_ms() : 0, false))
			return MHD_CONTENT_READER_END_WITH_ERROR;
	}
	if (t->answer->content == NULL) {
		memcpy(buf, t->answer->body + at, (size_t)n);
		return (ssize_t)n;
	}
	long got = content_read(t->answer->content, t->answer->from_byte + at, buf, (size_t)n);
	return got <= 0 ? MHD_CONTENT_READER_END_WITH_ERROR : got;
}

static enum MHD_Result send_answer(struct exchange *x)
{
	struct answer *a = &x->q.answer;
	if (a->content == NULL && a->body == NULL) {
		a->body = text_copy("");
		a->body_bytes = 0;
	}
	if (x->deed.action == GARBLE && a->body != NULL)
		a->body_bytes = a->body_bytes > 1 ? a->body_bytes * 2 / 3 : 0;
	struct stream *t = allocate(sizeof *t);
	*t = (struct stream){
		.exchange = x,
		.answer = a,
		.total = a->content != NULL ? a->length_bytes : (int64_t)a->body_bytes,
		.cut = x->deed.action == TRUNCATE ? x->deed.bytes : -1,
		.per_second = x->deed.action == SLOW_RESPONSE ? x->deed.bytes : 0,
		.started_ms = monotonic_ms(),
	};
	struct MHD_Response *response;
	if (a->content != NULL || t->cut >= 0 || t->per_second > 0) {
		response = MHD_create_response_from_callback((uint64_t)t->total, 65536, stream_read, t, free);
	} else {
		response = MHD_create_response_from_buffer(a->body_bytes, a->body, MHD_RESPMEM_MUST_COPY);
		free(t);
	}
	for (struct header *h = a->headers; h != NULL; h = h->next)
		MHD_add_response_header(response, h->name, h->value);
	char date[64];
	struct tm tm;
	pthread_mutex_lock(&x->q.sandbox->lock);
	time_t now = (time_t)(sandbox_now_ms(x->q.sandbox) / 1000);
	pthread_mutex_unlock(&x->q.sandbox->lock);
	strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &tm));
	MHD_add_response_header(response, "Date", date);
	log_end(x, a->status);
	enum MHD_Result r = MHD_queue_response(x->connection, (unsigned)a->status, response);
	MHD_destroy_response(response);
	return r;
}

static enum MHD_Result drop(struct exchange *x, bool reset)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	/* The server says goodbye before it closes, whatever SO_LINGER says; to be rude the socket is unconnected. */
	struct sockaddr nobody = { .sa_family = AF_UNSPEC };
	if (reset && info != NULL)
		(void)connect(info->connect_fd, &nobody, sizeof nobody); /* else it is only closed */
	return MHD_NO; /* which closes the connection; request_done() writes the log */
}

enum verdict { GO_ON, SEND, DROP };

static enum verdict act(struct exchange *x, enum moment when)
{
	struct deed *d = &x->deed;
	if (d->when != when)
		return GO_ON;
	if (d->action == STALL)
		return request_wait(x, d->ms, true) ? GO_ON : DROP;
	if (d->action == CLOSE)
		return DROP;
	if (d->action != STATUS)
		return GO_ON;
	answer_release(&x->q.answer);
	CLEANUP(text_free) char *plain = text_format("{\"message\":\"Fault %d, as ordered.\"}", d->status);
	const char *body = d->body != NULL ? d->body : d->status == 204 ? "" : plain;
	bool typed = false;
	const cJSON *h;
	cJSON_ArrayForEach (h, d->headers) {
		CLEANUP(text_free)
		char *value = cJSON_IsString(h) ? text_copy(h->valuestring) : cJSON_PrintUnformatted(h);
		answer_header(&x->q.answer, h->string, value);
		typed |= strcasecmp(h->string, "Content-Type") == 0;
	}
	if (typed || *body == 0) {
		x->q.answer.status = d->status;
		x->q.answer.body = text_copy(body);
		x->q.answer.body_bytes = strlen(body);
	} else {
		answer_text(&x->q.answer, d->status, *body == '<' ? "text/html" : "application/json", body);
	}
	return SEND;
}

static void *request_new(void *cls, const char *uri, struct MHD_Connection *connection)
{
	struct exchange *x = allocate(sizeof *x);
	x->origin = cls;
	x->connection = connection;
	x->q.sandbox = x->origin->sandbox;
	x->q.state = x->origin->state;
	x->q.base_url = x->origin->url;
	const char *query = strchr(uri, '?');
	x->q.raw_path = query == NULL ? text_copy(uri) : strndup(uri, (size_t)(query - uri));
	x->q.raw_query = text_copy(query == NULL ? "" : query + 1);
	x->q.path = url_decode(x->q.raw_path, false);
	return x;
}

static void request_done(void *cls, struct MHD_Connection *connection, void **own, enum MHD_RequestTerminationCode code)
{
	struct exchange *x = *own;
	(void)cls;
	(void)connection;
	(void)code;
	if (x == NULL)
		return;
	*own = NULL;
	pthread_mutex_lock(&x->q.sandbox->lock);
	struct entry *e = x->number > 0 ? log_find(x->q.sandbox, x->number) : NULL;
	if (e != NULL && !e->is_done) {
		e->is_done = true;
		e->bytes = x->read_bytes;
		e->finished_ms = sandbox_now_ms(x->q.sandbox);
	}
	pthread_mutex_unlock(&x->q.sandbox->lock);
	if (x->is_begun && x->origin->ops->release != NULL)
		x->origin->ops->release(&x->q);
	answer_release(&x->q.answer);
	deed_release(&x->deed);
	free(x->q.body);
	free(x->q.path);
	free(x->q.raw_path);
	free(x->q.raw_query);
	free((char *)(uintptr_t)x->q.method);
	free(x);
}

static void request_begin(struct exchange *x, const char *method)
{
	struct request *q = &x->q;
	x->is_begun = true;
	q->method = text_copy(method);
	const char *length = request_header(q, "Content-Length");
	q->length_bytes = length == NULL || *length == 0 || strspn(length, "0123456789") != strlen(length)
				  ? -1
				  : strtoll(length, NULL, 10);
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
	if (info != NULL && info->client_addr->sa_family == AF_INET)
		inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)info->client_addr)->sin_addr, q->client,
			  sizeof q->client);
	x->body_started_ms = monotonic_ms();
	SCOPED_LOCK(&q->sandbox->lock);
	x->drops = x->origin->drops;
	x->clears = q->sandbox->clears;
	q->route = x->origin->ops->route(q);
	if (x->origin->service == NULL)
		return;
	x->number = log_begin(x);
	pick_fault(x);
}

static enum MHD_Result request_headers_read(struct exchange *x)
{
	bool is_blackhole;
	pthread_mutex_lock(&x->q.sandbox->lock);
	is_blackhole = x->origin->blackhole;
	pthread_mutex_unlock(&x->q.sandbox->lock);
	if (is_blackhole) {
		x->clears = 0; /* only the origin's coming up ends it, as a drop */
		while (request_wait(x, 1000, false) && !client_has_left(x))
			;
		return drop(x, false);
	}
	enum verdict v = act(x, UNREAD);
	if (v == DROP)
		return drop(x, x->deed.reset);
	if (v == SEND)
		return send_answer(x);
	if (x->origin->ops->begin != NULL) {
		pthread_mutex_lock(&x->q.sandbox->lock);
		x->origin->ops->begin(&x->q);
		pthread_mutex_unlock(&x->q.sandbox->lock);
	}
	x->is_refused = x->q.answer.status != 0;
	bool is_waiting = request_header(&x->q, "Expect") != NULL;
	bool is_unbounded = x->q.length_bytes > DISCARD_BYTES_MAX;
	if (x->is_refused && (is_waiting || is_unbounded) && x->deed.action == PASS)
		return send_answer(x);
	return MHD_YES;
}

static void request_body_read(struct exchange *x, const char *bytes, size_t count)
{
	const struct origin_ops *ops = x->origin->ops;
	x->read_bytes += (int64_t)count;
	if (x->deed.action == SLOW_REQUEST) {
		int64_t due_ms = x->body_started_ms + x->read_bytes * 1000 / x->deed.bytes;
		int64_t left_ms = due_ms - monotonic_ms();
		(void)request_wait(x, left_ms > 0 ? left_ms : 0, false); /* a drop ends the connection anyway */
	}
	if (x->is_refused)
		return;
	if (ops->body != NULL) {
		int r = ops->body(&x->q, bytes, count);
		if (r < 0) {
			answer_text(&x->q.answer, 500, "text/plain", strerror(-r));
			x->is_refused = true;
		}
		return;
	}
	if (x->q.body_bytes + count > ops->body_bytes_max) {
		answer_text(&x->q.answer, 413, "application/json", "{\"message\":\"Payload too large.\"}");
		x->is_refused = true;
		return;
	}
	x->q.body = realloc(x->q.body, x->q.body_bytes + count + 1);
	if (x->q.body == NULL)
		abort();
	memcpy(x->q.body + x->q.body_bytes, bytes, count);
	x->q.body_bytes += count;
	x->q.body[x->q.body_bytes] = 0;
}

static enum MHD_Result request_complete(struct exchange *x)
{
	struct sandbox *s = x->q.sandbox;
	enum verdict v = act(x, BEFORE);
	if (v == DROP)
		return drop(x, x->deed.reset);
	if (v == SEND)
		return send_answer(x);
	if (x->origin->service == NULL) {
		x->origin->ops->handle(&x->q);
		return send_answer(x);
	}
	pthread_mutex_lock(&s->lock);
	if (!x->is_refused)
		x->origin->ops->handle(&x->q);
	int64_t latency_ms = switch_number(s, "latency_ms", 0);
	save_if_cheap(s);
	pthread_mutex_unlock(&s->lock);
	if (latency_ms > 0 && !request_wait(x, latency_ms, false))
		return drop(x, false);
	v = act(x, AFTER);
	if (v == DROP || x->q.answer.status == ANSWER_NONE)
		return drop(x, x->deed.reset);
	return send_answer(x);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
				  const char *version, const char *bytes, size_t *count, void **own)
{
	struct exchange *x = *own;
	(void)cls;
	(void)connection;
	(void)url;
	(void)version;
	if (!x->is_begun) {
		request_begin(x, method);
		return request_headers_read(x);
	}
	if (*count > 0) {
		request_body_read(x, bytes, *count);
		*count = 0;
		return MHD_YES;
	}
	return request_complete(x);
}

/* --- Listeners --- */

/* Bound and not listening: the port refuses connections and is nobody else's. */
static int bind_socket(int port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int yes = 1;
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (bind(fd, (const struct sockaddr *)&a, sizeof a) < 0) {
		int error = errno;
		close(fd);
		return -error;
	}
	return fd;
}

/* Both sockets of a port have to be bound before either listens: the kernel shares no port with a listener. */
static int origin_listen(struct origin *o)
{
	struct sandbox *s = o->sandbox;
	int fd = o->spare_socket;
	o->spare_socket = bind_socket(o->port);
	if (o->spare_socket < 0)
		return o->spare_socket;
	if (listen(fd, 1024) < 0)
		return -errno;
	bool tls = o->service != NULL && s->tls_cert != NULL;
	struct MHD_OptionItem tls_options[] = { { MHD_OPTION_HTTPS_MEM_CERT, 0, s->tls_cert },
						{ MHD_OPTION_HTTPS_MEM_KEY, 0, s->tls_key },
						{ MHD_OPTION_END, 0, NULL } };
	struct MHD_OptionItem no_options[] = { { MHD_OPTION_END, 0, NULL } };
	unsigned flags = MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL |
			 MHD_USE_SUPPRESS_DATE_NO_CLOCK | (tls ? MHD_USE_TLS : 0);
	o->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, o, MHD_OPTION_LISTEN_SOCKET, fd,
				     MHD_OPTION_URI_LOG_CALLBACK, request_new, o, MHD_OPTION_NOTIFY_COMPLETED,
				     request_done, o, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
				     MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)(160 * 1024),
				     MHD_OPTION_THREAD_STACK_SIZE, (size_t)THREAD_STACK_BYTES, MHD_OPTION_ARRAY,
				     tls ? tls_options : no_options, MHD_OPTION_END);
	if (o->daemon == NULL) {
		close(fd);
		return -EIO;
	}
	return 0;
}

/* Requests under way end unanswered. The listeners' lock is held, the other is not. */
static void origin_unlisten(struct origin *o)
{
	pthread_mutex_lock(&o->sandbox->lock);
	o->drops++;
	pthread_cond_broadcast(&o->sandbox->wake);
	pthread_mutex_unlock(&o->sandbox->lock);
	if (o->daemon != NULL)
		MHD_stop_daemon(o->daemon);
	o->daemon = NULL;
}

static bool is_named(const cJSON *names, const char *name)
{
	if (names == NULL)
		return true;
	const cJSON *one;
	cJSON_ArrayForEach (one, names)
		if (cJSON_IsString(one) && strcmp(one->valuestring, name) == 0)
			return true;
	return false;
}

static int set_down(struct sandbox *s, const cJSON *in, bool down, cJSON **ret)
{
	const cJSON *names = json_get(in, "origins");
	const char *how = json_text(in, "how", "refuse");
	bool is_blackhole = strcmp(how, "blackhole") == 0;
	if (!is_blackhole && strcmp(how, "refuse") != 0)
		return control_refuse(ret, 400, "how: refuse or blackhole");
	int found = 0;
	SCOPED_LOCK(&s->listeners_lock);
	for (size_t i = 0; i < s->origin_count; i++) {
		struct origin *o = &s->origins[i];
		if (o->service == NULL || !is_named(names, o->ops->name))
			continue;
		found++;
		pthread_mutex_lock(&s->lock);
		bool was_blackhole = o->blackhole;
		o->blackhole = down && is_blackhole;
		if (was_blackhole && !o->blackhole) {
			o->drops++;
			pthread_cond_broadcast(&s->wake);
		}
		pthread_mutex_unlock(&s->lock);
		if (down && !is_blackhole) {
			origin_unlisten(o);
		} else if (o->daemon == NULL) {
			int r = origin_listen(o);
			if (r < 0)
				return control_refuse(ret, 400, "%s: %s", o->ops->name, strerror(-r));
		}
	}
	return found > 0 ? 200 : control_refuse(ret, 404, "no such origin");
}

/* --- Control --- */

static int get_requests(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	int64_t since = json_number(in, "since", 0), limit = json_number(in, "limit", LOG_MAX);
	const char *route = json_text(in, "route", NULL);
	*ret = cJSON_CreateObject();
	cJSON *list = cJSON_AddArrayToObject(*ret, "requests");
	for (size_t i = 0; i < s->log_count && limit > 0; i++) {
		const struct entry *e = &s->log[i];
		if (e->number <= since || !equal_or_any(route, e->route))
			continue;
		cJSON *one = cJSON_CreateObject();
		CLEANUP(text_free) char *time = time_text(e->started_ms, true);
		cJSON_AddNumberToObject(one, "number", (double)e->number);
		cJSON_AddStringToObject(one, "time", time);
		cJSON_AddNumberToObject(one, "started_ms", (double)e->started_ms);
		cJSON_AddNumberToObject(one, "finished_ms", (double)e->finished_ms);
		cJSON_AddStringToObject(one, "origin", e->origin);
		cJSON_AddStringToObject(one, "method", e->method);
		cJSON_AddStringToObject(one, "path", e->path);
		cJSON_AddStringToObject(one, "query", e->query);
		cJSON_AddStringToObject(one, "route", e->route);
		cJSON_AddNumberToObject(one, "status", e->status);
		cJSON_AddBoolToObject(one, "done", e->is_done);
		cJSON_AddNumberToObject(one, "bytes", (double)e->bytes);
		cJSON_AddBoolToObject(one, "had_authorization", e->had_authorization);
		cJSON_AddRawToObject(one, "headers", e->headers);
		cJSON_AddItemToArray(list, one);
		limit--;
	}
	cJSON_AddNumberToObject(*ret, "last", (double)s->next_number);
	return 200;
}

static int get_counts(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	double total = 0;
	*ret = cJSON_CreateObject();
	if (json_get(in, "status") == NULL) {
		for (struct count *c = s->counts; c != NULL; c = c->hh.next) {
			cJSON_AddNumberToObject(*ret, c->route, (double)c->value);
			total += (double)c->value;
		}
		cJSON_AddNumberToObject(*ret, "total", total);
		return 200;
	}
	for (size_t i = 0; i < s->log_count; i++) {
		if (s->log[i].status != json_number(in, "status", 0))
			continue;
		const char *route = s->log[i].route;
		cJSON *there = cJSON_GetObjectItemCaseSensitive(*ret, route);
		if (there == NULL)
			cJSON_AddNumberToObject(*ret, route, 1);
		else
			cJSON_SetNumberValue(there, there->valuedouble + 1);
		total++;
	}
	cJSON_AddNumberToObject(*ret, "total", total);
	return 200;
}

static int set_clock(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	const cJSON *freeze = json_get(in, "freeze");
	if (json_get(in, "offset_ms") != NULL) {
		s->clock_offset_ms = json_number(in, "offset_ms", 0);
		if (s->frozen_ms >= 0)
			s->frozen_ms = s->clock_base_ms + monotonic_ms() + s->clock_offset_ms;
	}
	int64_t advance = json_number(in, "advance_ms", 0);
	if (s->frozen_ms >= 0)
		s->frozen_ms += advance;
	else
		s->clock_offset_ms += advance;
	if (cJSON_IsTrue(freeze) && s->frozen_ms < 0) {
		s->frozen_ms = sandbox_now_ms(s);
	} else if (cJSON_IsFalse(freeze) && s->frozen_ms >= 0) {
		s->clock_offset_ms = s->frozen_ms - s->clock_base_ms - monotonic_ms();
		s->frozen_ms = -1;
	}
	s->is_changed = true;
	CLEANUP(text_free) char *time = time_text(sandbox_now_ms(s), true);
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "now", time);
	cJSON_AddNumberToObject(*ret, "now_ms", (double)sandbox_now_ms(s));
	cJSON_AddNumberToObject(*ret, "offset_ms", (double)s->clock_offset_ms);
	cJSON_AddBoolToObject(*ret, "frozen", s->frozen_ms >= 0);
	return 200;
}

static int set_switches(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, in) {
		CLEANUP(text_free) char *wrong = knob_set(s, one->string, one);
		if (wrong != NULL)
			return control_refuse(ret, 400, "%s", wrong);
	}
	return 200;
}

/* What the options say goes before what was saved, and holds after a reset. */
static void set_started_with(struct sandbox *s)
{
	CLEANUP(json_free) cJSON *said = NULL, *in = cJSON_CreateObject();
	if (s->rate > 0)
		cJSON_AddNumberToObject(in, "rate.limit", (double)s->rate);
	else
		cJSON_AddStringToObject(in, "rate.limit", "off");
	if (s->rossum_rate > 0)
		cJSON_AddNumberToObject(in, "rossum.rate", (double)s->rossum_rate);
	else
		cJSON_AddStringToObject(in, "rossum.rate", "off");
	if (s->latency_ms > 0)
		cJSON_AddNumberToObject(in, "latency_ms", (double)s->latency_ms);
	(void)set_switches(s, in, &said); /* both exist and take numbers */
}

static int get_switches(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	(void)in;
	*ret = cJSON_CreateObject();
	for (struct knob *k = s->knobs; k != NULL; k = k->hh.next)
		cJSON_AddStringToObject(*ret, k->def->name, k->value);
	return 200;
}

static int get_state(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	*ret = cJSON_CreateObject();
	for (size_t i = 0; i < COUNT_OF(services); i++) {
		cJSON *part = services[i]->describe(s->states[i], in);
		/* Raydocs came first and stands at the top; each has its own object too. */
		if (i == 0) {
			cJSON_Delete(*ret);
			*ret = part;
		} else {
			cJSON_AddItemToObject(*ret, services[i]->name, part);
		}
	}
	return 200;
}

static int get_faults(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	(void)in;
	*ret = cJSON_CreateObject();
	cJSON *list = cJSON_AddArrayToObject(*ret, "faults");
	for (struct fault *f = s->faults; f != NULL; f = f->next) {
		cJSON *one = cJSON_Duplicate(f->rule, true);
		cJSON_AddNumberToObject(one, "seen", (double)f->seen);
		cJSON_AddNumberToObject(one, "left", (double)f->times);
		cJSON_AddItemToArray(list, one);
	}
	return 200;
}

static int clear_faults(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	(void)in;
	(void)ret;
	faults_clear(s);
	return 200;
}

static int clear_requests(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	(void)in;
	(void)ret;
	log_clear(s);
	return 200;
}

static int clear_limit(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	(void)in;
	(void)ret;
	forget_visitors(s);
	return 200;
}

static int save_now(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	(void)in;
	(void)ret;
	save_state(s);
	return 200;
}

static int reset(struct sandbox *s, const cJSON *in, cJSON **ret)
{
	(void)in;
	(void)ret;
	faults_clear(s);
	log_clear(s);
	forget_visitors(s);
	s->clock_offset_ms = 0;
	s->frozen_ms = -1;
	s->random = 1;
	for (struct knob *k = s->knobs; k != NULL; k = k->hh.next) {
		free(k->value);
		k->value = text_copy(k->def->initial);
	}
	for (size_t i = 0; i < COUNT_OF(services); i++)
		services[i]->reset(s->states[i]);
	set_started_with(s);
	s->is_changed = true;
	return 200;
}

static const struct {
	const char *method, *path, *fields;
	int (*run)(struct sandbox *s, const cJSON *in, cJSON **ret);
} core_controls[] = {
	{ "GET", "/state", " session documents ", get_state },
	{ "GET", "/switches", "", get_switches },
	{ "POST", "/set", NULL, set_switches },
	{ "POST", "/fault",
	  " origin method route path nth times probability when action status body headers ms bytes bytes_per_s reset ",
	  add_fault },
	{ "GET", "/faults", "", get_faults },
	{ "POST", "/faults/clear", "", clear_faults },
	{ "GET", "/requests", " since route limit ", get_requests },
	{ "GET", "/requests/count", " status ", get_counts },
	{ "POST", "/requests/clear", "", clear_requests },
	{ "POST", "/limit/clear", "", clear_limit },
	{ "GET", "/clock", "", set_clock },
	{ "POST", "/clock", " advance_ms offset_ms freeze ", set_clock },
	{ "POST", "/save", "", save_now },
	{ "POST", "/reset", "", reset },
};

/* NULL (anything goes), or every field of in must stand in the list. */
static bool fields_are_known(const char *fields, const cJSON *in, cJSON **ret)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, in) {
		CLEANUP(text_free) char *word = text_format(" %s ", one->string);
		if (fields != NULL && strstr(fields, word) == NULL) {
			control_refuse(ret, 400, "no field '%s' here; there are:%s", one->string, fields);
			return false;
		}
	}
	return true;
}

static int control(struct sandbox *s, const char *method, const char *path, const cJSON *in, cJSON **ret)
{
	bool is_up = strcmp(path, "/up") == 0;
	if ((is_up || strcmp(path, "/down") == 0) && strcmp(method, "POST") == 0)
		return fields_are_known(" origins how ", in, ret) ? set_down(s, in, !is_up, ret) : 400;
	SCOPED_LOCK(&s->lock);
	for (size_t i = 0; i < COUNT_OF(core_controls); i++) {
		if (strcmp(core_controls[i].path, path) != 0 || strcmp(core_controls[i].method, method) != 0)
			continue;
		if (!fields_are_known(core_controls[i].fields, in, ret))
			return 400;
		int status = core_controls[i].run(s, in, ret);
		save_if_cheap(s);
		return status;
	}
	for (size_t i = 0; i < COUNT_OF(services); i++) {
		for (size_t k = 0; k < services[i]->control_count; k++) {
			const struct control_op *op = &services[i]->controls[k];
			if (strcmp(op->path, path) != 0 || strcmp(op->method, method) != 0)
				continue;
			if (!fields_are_known(op->fields, in, ret))
				return 400;
			int status = op->run(s->states[i], in, ret);
			save_if_cheap(s);
			return status;
		}
	}
	return control_refuse(ret, 404, "no control %s %s", method, path);
}

static int control_from_text(struct sandbox *s, const char *method, const char *target, const char *json, cJSON **ret)
{
	CLEANUP(text_free) char *path = text_copy(target);
	char *query = strchr(path, '?');
	if (query != NULL)
		*query++ = 0;
	CLEANUP(json_free)
	cJSON *in = json == NULL || *json == 0 ? cJSON_CreateObject() : cJSON_ParseWithOpts(json, NULL, true);
	if (!cJSON_IsObject(in))
		return control_refuse(ret, 400, "the body is no JSON object");
	char *rest = query;
	for (char *pair = strsep(&rest, "&"); pair != NULL; pair = strsep(&rest, "&")) {
		char *value = pair;
		CLEANUP(text_free) char *key = url_decode(strsep(&value, "="), true);
		CLEANUP(text_free) char *plain = url_decode(value == NULL ? "" : value, true);
		if (*key != 0)
			cJSON_AddStringToObject(in, key, plain);
	}
	return control(s, method, path, in, ret);
}

int sandbox_control(struct sandbox *s, const char *method, const char *path, const char *json, char **ret_json)
{
	CLEANUP(json_free) cJSON *out = NULL;
	int status = control_from_text(s, method, path, json, &out);
	if (ret_json != NULL)
		*ret_json = out == NULL ? text_copy("{}") : cJSON_PrintUnformatted(out);
	return status;
}

static const char *route_control(struct request *q)
{
	(void)q;
	return "control";
}

static bool answer_content(struct request *q)
{
	static const char prefix[] = "/document/", suffix[] = "/content";
	size_t n = strlen(q->path);
	if (strncmp(q->path, prefix, sizeof prefix - 1) != 0 || n < sizeof prefix + sizeof suffix - 2 ||
	    strcmp(q->path + n - (sizeof suffix - 1), suffix) != 0)
		return false;
	CLEANUP(text_free)
	char *id = strndup(q->path + sizeof prefix - 1, n - (sizeof prefix - 1) - (sizeof suffix - 1));
	struct sandbox *s = q->sandbox;
	SCOPED_LOCK(&s->lock);
	for (size_t i = 0; i < COUNT_OF(services); i++) {
		const struct content *c = services[i]->content == NULL ? NULL : services[i]->content(s->states[i], id);
		if (c == NULL || content_open(c, &q->answer.content) < 0)
			continue;
		q->answer.status = 200;
		q->answer.length_bytes = c->size_bytes;
		answer_header(&q->answer, "Content-Type", "application/octet-stream");
		return true;
	}
	answer_text(&q->answer, 404, "application/json", "{\"message\":\"no such document\"}");
	return true;
}

static void handle_control(struct request *q)
{
	if (strcmp(q->method, "GET") == 0 && answer_content(q))
		return;
	cJSON *out = NULL;
	CLEANUP(text_free) char *target = text_format("%s?%s", q->path, q->raw_query);
	int status = control_from_text(q->sandbox, q->method, target, q->body, &out);
	CLEANUP(text_free) char *text = out == NULL ? text_copy("{}") : cJSON_Print(out);
	CLEANUP(text_free) char *line = text_format("%s\n", text);
	cJSON_Delete(out);
	answer_text(&q->answer, status, "application/json", line);
}

static const struct origin_ops control_origin = {
	.name = "control",
	.port_offset = offsetof(struct sandbox_options, control_port),
	.route = route_control,
	.handle = handle_control,
	.body_bytes_max = 256 << 20,
};

static void describe_switches(FILE *out, const struct switch_def *defs, size_t count)
{
	for (size_t i = 0; i < count; i++)
		fprintf(out, "  %-24s %s; %s (%s)\n", defs[i].name, defs[i].help, defs[i].allowed,
			*defs[i].initial == 0 ? "empty" : defs[i].initial);
}

char *sandbox_describe(void)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	if (out == NULL)
		abort();
	fputs("Control (JSON over the third port; fields in braces):\n", out);
	for (size_t i = 0; i < COUNT_OF(core_controls); i++)
		fprintf(out, "  %-4s %-18s {%s}\n", core_controls[i].method, core_controls[i].path,
			core_controls[i].fields == NULL ? " switches " : core_controls[i].fields);
	fputs("  POST /down              { origins how:refuse|blackhole }\n  POST /up                { origins }\n"
	      "  GET  /document/ID/content\n",
	      out);
	for (size_t i = 0; i < COUNT_OF(services); i++)
		for (size_t k = 0; k < services[i]->control_count; k++)
			fprintf(out, "  %-4s %-18s {%s}\n", services[i]->controls[k].method,
				services[i]->controls[k].path, services[i]->controls[k].fields);
	fputs("\nSwitches (POST /set), what they take, and (initial):\n", out);
	describe_switches(out, core_switches, COUNT_OF(core_switches));
	for (size_t i = 0; i < COUNT_OF(services); i++)
		describe_switches(out, services[i]->switches, services[i]->switch_count);
	for (size_t i = 0; i < COUNT_OF(services); i++) {
		fprintf(out, "\nRoutes of %s:", services[i]->name);
		for (const char *const *at = services[i]->routes; *at != NULL; at++)
			fprintf(out, " %s", *at);
	}
	fputs("\n\nFaults (POST /fault): which: origin, method, route, path (regex), nth, times (0: for ever), "
	      "probability;\n"
	      "  when: unread | before | after; action: status (status, body, headers), close (reset), stall (ms),\n"
	      "  truncate (bytes), garble, slow_response | slow_request (bytes_per_s)\n",
	      out);
	fclose(out);
	return text;
}

/* --- TLS --- */

static int write_pem(const char *path, mode_t mode, EVP_PKEY *key, X509 *cert)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
	if (f == NULL)
		return -errno;
	bool ok = cert != NULL ? PEM_write_X509(f, cert) == 1
			       : PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) == 1;
	return fclose(f) == 0 && ok ? 0 : -EIO;
}

static bool add_extension(X509 *cert, int nid, const char *value)
{
	X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, nid, value);
	bool ok = e != NULL && X509_add_ext(cert, e, -1) == 1;
	X509_EXTENSION_free(e);
	return ok;
}

static int make_cert(const char *cert_path, const char *key_path)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = X509_new();
	bool ok = key != NULL && cert != NULL;
	if (ok) {
		X509_set_version(cert, 2);
		ASN1_INTEGER_set(X509_get_serialNumber(cert), (long)time(NULL));
		X509_gmtime_adj(X509_getm_notBefore(cert), -86400);
		X509_gmtime_adj(X509_getm_notAfter(cert), 86400L * 365);
		X509_NAME *name = X509_get_subject_name(cert);
		X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"sessionfs sandbox", -1, -1,
					   0);
		X509_set_issuer_name(cert, name);
		X509_set_pubkey(cert, key);
		ok = add_extension(cert, NID_basic_constraints, "critical,CA:TRUE") &&
		     add_extension(cert, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1") &&
		     X509_sign(cert, key, EVP_sha256()) > 0;
	}
	int r = ok ? write_pem(key_path, 0600, key, NULL) : -EIO;
	if (r == 0)
		r = write_pem(cert_path, 0644, NULL, cert);
	X509_free(cert);
	EVP_PKEY_free(key);
	return r;
}

static int open_tls(struct sandbox *s, const struct sandbox_options *options)
{
	if (!options->tls && options->cert_file == NULL)
		return 0;
	CLEANUP(text_free) char *key_file = text_copy(options->key_file);
	s->cert_file = text_copy(options->cert_file);
	if (s->cert_file == NULL) {
		const char *dir = options->cert_dir != NULL ? options->cert_dir : s->dir;
		(void)mkdir(dir, 0700); /* may be there; what else is wrong shows in the next line */
		s->cert_file = text_format("%s/cert.pem", dir);
		free(key_file);
		key_file = text_format("%s/key.pem", dir);
		/* The same one again after a restart, so that whoever trusts it need not be told. */
		if (access(s->cert_file, R_OK) != 0 || access(key_file, R_OK) != 0) {
			int r = make_cert(s->cert_file, key_file);
			if (r < 0)
				return r;
		}
	}
	s->tls_cert = read_whole_file(s->cert_file);
	s->tls_key = key_file == NULL ? NULL : read_whole_file(key_file);
	return s->tls_cert == NULL || s->tls_key == NULL ? -ENOENT : 0;
}

/* --- Start and stop --- */

static int open_dir(struct sandbox *s, const char *state_dir)
{
	if (state_dir != NULL) {
		s->dir = text_copy(state_dir);
		return mkdir(s->dir, 0700) < 0 && errno != EEXIST ? -errno : 0;
	}
	const char *tmp = getenv("TMPDIR");
	s->dir = text_format("%s/sessionfs-sandbox-XXXXXX", tmp != NULL && *tmp != 0 ? tmp : "/tmp");
	s->dir_is_temporary = true;
	return mkdtemp(s->dir) == NULL ? -errno : 0;
}

static void remove_tree(const char *path)
{
	DIR *d = opendir(path);
	for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		CLEANUP(text_free) char *one = text_format("%s/%s", path, e->d_name);
		if (e->d_type == DT_DIR)
			remove_tree(one);
		else
			unlink(one);
	}
	if (d != NULL)
		closedir(d);
	rmdir(path);
}

static int add_origin(struct sandbox *s, const struct sandbox_options *options, const struct origin_ops *ops,
		      const struct service *service, void *state)
{
	struct origin *o = &s->origins[s->origin_count++];
	assert(s->origin_count <= ORIGINS_MAX);
	*o = (struct origin){ .ops = ops, .sandbox = s, .service = service, .state = state, .spare_socket = -1 };
	int port = *(const int *)(const void *)((const char *)options + ops->port_offset);
	o->spare_socket = bind_socket(port);
	if (o->spare_socket < 0) {
		int r = o->spare_socket;
		fprintf(stderr, "sandbox: port %d for %s: %s\n", port, ops->name, strerror(-r));
		o->spare_socket = -1;
		return r;
	}
	struct sockaddr_in a;
	socklen_t bytes = sizeof a;
	getsockname(o->spare_socket, (struct sockaddr *)&a, &bytes);
	o->port = ntohs(a.sin_port);
	snprintf(o->url, sizeof o->url, "%s://127.0.0.1:%d", service != NULL && s->tls_cert != NULL ? "https" : "http",
		 o->port);
	return 0;
}

static int start(struct sandbox *s, const struct sandbox_options *options)
{
	int r = open_dir(s, options->state_dir);
	if (r == 0)
		r = open_tls(s, options);
	if (r < 0)
		return r;
	/* Addresses first: what a service signs names its storage. */
	for (size_t i = 0; i < COUNT_OF(services); i++)
		s->states[i] = services[i]->open(s);
	for (size_t i = 0; i < COUNT_OF(services) && r == 0; i++)
		for (size_t k = 0; k < services[i]->origin_count && r == 0; k++)
			r = add_origin(s, options, services[i]->origins[k], services[i], s->states[i]);
	if (r == 0)
		r = add_origin(s, options, &control_origin, NULL, NULL);
	if (r == 0 && !s->dir_is_temporary)
		r = load_state(s);
	if (r < 0)
		return r;
	s->rate = options->rate;
	s->rossum_rate = options->rossum_rate;
	s->latency_ms = options->latency_ms;
	set_started_with(s);

	for (size_t i = 0; i < s->origin_count && r == 0; i++)
		r = origin_listen(&s->origins[i]);
	if (r == 0 && !s->dir_is_temporary)
		s->has_saver = pthread_create(&s->saver, NULL, run_saver, s) == 0;
	return r;
}

int sandbox_start(const struct sandbox_options *options, struct sandbox **ret)
{
	struct sandbox *s = allocate(sizeof *s);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->wake, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->listeners_lock, NULL);
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	s->clock_base_ms = (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000 - monotonic_ms();
	s->frozen_ms = -1;
	s->random = 1;
	RAND_bytes(s->secret, sizeof s->secret);
	knobs_add(s, core_switches, COUNT_OF(core_switches));
	for (size_t i = 0; i < COUNT_OF(services); i++)
		knobs_add(s, services[i]->switches, services[i]->switch_count);
	int r = start(s, options);
	if (r < 0) {
		sandbox_stop(s);
		return r;
	}
	*ret = s;
	return 0;
}

void sandbox_stop(struct sandbox *s)
{
	if (s == NULL)
		return;
	pthread_mutex_lock(&s->lock);
	s->stopping = true;
	pthread_cond_broadcast(&s->wake);
	pthread_mutex_unlock(&s->lock);
	/* Control first: it is the one that could bring another up again. */
	for (size_t i = s->origin_count; i-- > 0;) {
		SCOPED_LOCK(&s->listeners_lock);
		origin_unlisten(&s->origins[i]);
		if (s->origins[i].spare_socket >= 0)
			close(s->origins[i].spare_socket);
	}
	if (s->has_saver)
		pthread_join(s->saver, NULL);
	if (s->is_changed && s->states[COUNT_OF(services) - 1] != NULL)
		save_state(s);
	for (size_t i = 0; i < COUNT_OF(services); i++)
		if (s->states[i] != NULL)
			services[i]->close(s->states[i]);
	faults_clear(s);
	log_clear(s);
	forget_visitors(s);
	struct knob *k, *next;
	HASH_ITER (hh, s->knobs, k, next) {
		HASH_DEL(s->knobs, k);
		free(k->value);
		free(k);
	}
	if (s->dir_is_temporary)
		remove_tree(s->dir);
	free(s->log);
	free(s->dir);
	free(s->cert_file);
	free(s->tls_cert);
	free(s->tls_key);
	pthread_cond_destroy(&s->wake);
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->listeners_lock);
	free(s);
}

const char *sandbox_url(const struct sandbox *s, const char *origin)
{
	for (size_t i = 0; i < s->origin_count; i++)
		if (strcmp(s->origins[i].ops->name, origin) == 0)
			return s->origins[i].url;
	return NULL;
}

const char *sandbox_cert_file(const struct sandbox *s)
{
	return s->cert_file;
}

/* --- Shorthands --- */

/* Takes in; returns 0, or -EINVAL with the reason on stderr. */
static int say(struct sandbox *s, const char *path, cJSON *in, cJSON **ret)
{
	CLEANUP(json_free) cJSON *out = NULL;
	int status = control(s, "POST", path, in, &out);
	cJSON_Delete(in);
	if (status != 200)
		fprintf(stderr, "sandbox: %s: %s\n", path, json_text(out, "message", "?"));
	if (ret != NULL) {
		*ret = out;
		out = NULL;
	}
	return status == 200 ? 0 : -EINVAL;
}

static int say_for_id(struct sandbox *s, const char *path, cJSON *in, char **ret_id)
{
	CLEANUP(json_free) cJSON *out = NULL;
	int r = say(s, path, in, &out);
	if (r == 0 && ret_id != NULL)
		*ret_id = text_copy(json_text(out, "id", ""));
	return r;
}

int sandbox_add_token(struct sandbox *s, const char *token, const char *abilities)
{
	cJSON *in = cJSON_CreateObject();
	cJSON_AddStringToObject(in, "token", token);
	if (abilities != NULL) {
		cJSON *list = cJSON_AddArrayToObject(in, "abilities");
		CLEANUP(text_free) char *all = text_copy(abilities);
		char *rest = all;
		for (char *one = strsep(&rest, ", "); one != NULL; one = strsep(&rest, ", "))
			if (*one != 0)
				cJSON_AddItemToArray(list, cJSON_CreateString(one));
	}
	return say(s, "/token", in, NULL);
}

int sandbox_add_session(struct sandbox *s, const char *name, char **ret_id)
{
	cJSON *in = cJSON_CreateObject();
	cJSON_AddStringToObject(in, "name", name);
	return say_for_id(s, "/session", in, ret_id);
}

int sandbox_add_document(struct sandbox *s, const char *session_id, const char *filename, const void *bytes,
			 size_t byte_count, char **ret_id)
{
	cJSON *in = cJSON_CreateObject();
	cJSON_AddStringToObject(in, "session", session_id);
	cJSON_AddStringToObject(in, "filename", filename);
	char *base64 = allocate(byte_count * 4 / 3 + 8);
	EVP_EncodeBlock((unsigned char *)base64, bytes, (int)byte_count);
	cJSON_AddStringToObject(in, "base64", base64);
	free(base64);
	return say_for_id(s, "/document", in, ret_id);
}

int sandbox_add_documents(struct sandbox *s, const char *session_id, long count)
{
	cJSON *in = cJSON_CreateObject();
	cJSON_AddStringToObject(in, "session", session_id);
	cJSON_AddNumberToObject(in, "count", (double)count);
	return say(s, "/document", in, NULL);
}

int sandbox_set(struct sandbox *s, const char *name, const char *value)
{
	cJSON *in = cJSON_CreateObject();
	cJSON_AddStringToObject(in, name, value);
	return say(s, "/set", in, NULL);
}

int sandbox_fault(struct sandbox *s, const char *rule_json)
{
	cJSON *in = cJSON_Parse(rule_json);
	return in == NULL ? -EINVAL : say(s, "/fault", in, NULL);
}

int sandbox_advance(struct sandbox *s, int64_t ms)
{
	cJSON *in = cJSON_CreateObject();
	cJSON_AddNumberToObject(in, "advance_ms", (double)ms);
	return say(s, "/clock", in, NULL);
}

long sandbox_count(struct sandbox *s, const char *route)
{
	SCOPED_LOCK(&s->lock);
	long total = 0;
	for (struct count *c = s->counts; c != NULL; c = c->hh.next)
		if (equal_or_any(route, c->route))
			total += c->value;
	return total;
}

static int seed_demo(struct sandbox *s, const char *path, char **ret_token, char **ret_text)
{
	CLEANUP(json_free) cJSON *out = NULL;
	int r = say(s, path, cJSON_CreateObject(), &out);
	if (r < 0)
		return r;
	*ret_token = text_copy(json_text(out, "token", ""));
	*ret_text = text_copy(json_text(out, "text", ""));
	return 0;
}

int sandbox_seed_demo(struct sandbox *s, char **ret_token, char **ret_text)
{
	return seed_demo(s, "/demo", ret_token, ret_text);
}

int sandbox_seed_rossum_demo(struct sandbox *s, char **ret_token, char **ret_text)
{
	return seed_demo(s, "/rossum/demo", ret_token, ret_text);
}
