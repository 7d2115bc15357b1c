/* One request in, one reply out; see http.h. All of libcurl is here.
 *
 * A handle (an easy in a multi of its own, which holds its connections) is borrowed from the pool for one exchange; the
 * one last used for the same origin is preferred, so connections live on. The multi is what lets us look at the clock
 * and the caller's cancellation ten times a second, which curl_easy_perform() would do once.
 *
 *   http_do -> exchange_run: place in line -> token -> attempt (curl) -> http_judge -> again, or the end */
#include "client/http.h"

#include <arpa/inet.h>
#include <assert.h>
#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <linux/sockios.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/base/metrics.h"
#include "client/json.h"

#ifndef SESSIONFS_VERSION
#define SESSIONFS_VERSION "0"
#endif

enum {
	API_MS = 60 * 1000,       /* one attempt at an API answer, when the caller sets no deadline */
	PLACE_MS = 5 * 60 * 1000, /* waiting in line, likewise */
	STALL_MS = 60 * 1000,
	CONNECT_MS = 10 * 1000,
	LOOK_MS = 100,       /* how often an exchange looks whether it was cancelled */
	LOOK_LONG_MS = 1000, /* ... when nobody can */
	RETRY_MS_MIN = 50,   /* less time than this is not worth another attempt */
	REDIRECTS_MAX = 5,
	ATTEMPTS_MAX = 5, /* all reasons together */
	IDLE_HANDLES_MAX = 16,
	IDLE_HANDLE_MS_MAX = 60 * 1000,
	CONNECTIONS_PER_HANDLE = 2,
	TOKEN_REREAD_MS = 5 * 1000, /* a refused token that did not change is not read again sooner */
	ANSWER_BYTES_MAX = 64 * 1024 * 1024,
	REFUSAL_BYTES_MAX = 1024 * 1024,
	WORDS_BYTES_MAX = 4096,
	URL_BYTES_MAX = 16 * 1024,
	HEADER_BYTES_MAX = 70 * 1024, /* a token may take 64 KiB */
	BIG_BUFFER_BYTES = 512 * 1024,
	SMALL_BUFFER_BYTES = 64 * 1024,
	GATHERED_BYTES_MAX = 128 * 1024,
	RESUME_OVERLAP_BYTES = 64 * 1024,
	ORIGIN_BYTES = 300,
};

struct handle {
	struct handle *next;
	CURL *easy;
	CURLM *multi;              /* holds the easy's connections */
	char origin[ORIGIN_BYTES]; /* of its last request; "" for a new one */
	int64_t used_ms;
};

struct http {
	const char *subject;
	char *base_url; /* no trailing slash */
	char origin[ORIGIN_BYTES];
	char *cafile, *proxy;
	struct limit *limit;
	int64_t stall_ms;
	int (*read_token)(void *arg, struct call *call, bool anew, struct secret **ret);
	void (*read_words)(const cJSON *body, struct buf *ret);
	void *arg;
	CURLSH *share; /* names and TLS sessions; its locks follow */
	pthread_mutex_t share_locks[CURL_LOCK_DATA_LAST];

	atomic_bool is_stopped;
	atomic_bool is_away[2]; /* by enum http_target: it was, when last asked, and the log says so */

	pthread_mutex_t pool_lock; /* guards what follows */
	struct handle *idle;       /* last used first */

	pthread_mutex_t token_lock; /* guards what follows */
	pthread_cond_t token_moved;
	struct secret *token;
	uint64_t token_number;  /* +1 for each different token */
	uint64_t token_refused; /* the number of one that was read anew and had not changed */
	int64_t token_refused_ms;
	uint64_t token_mourned; /* the number of one whose refusal is in the log */
	bool token_is_being_read;
};

/* One request, from its beginning to its verdict. */
struct exchange {
	struct http *http;
	struct call *call;
	const struct http_request *q;
	struct handle *handle;
	CURL *easy;
	char *url;      /* of this hop; owned */
	char *redirect; /* where the last answer points to, or NULL; owned */
	char origin[ORIGIN_BYTES];
	struct curl_slist *headers;
	curl_mime *mime;
	char error[CURL_ERROR_SIZE];
	int64_t deadline_ms; /* of this attempt; 0 none */
	/* the body we send */
	size_t body_at, body_bytes;
	int64_t source_at;
	/* the answer */
	struct buf answer;
	int64_t written_bytes; /* to answer_fd: where the next ones go */
	int64_t kept_bytes;    /* stood there when the attempt began, and must not change */
	int64_t taken_bytes;   /* of this attempt's body */
	bool is_part;          /* a 206 */
	int64_t part_from;     /* where it begins, when it goes to the end; else -1 */
	char *gathered;        /* of the body, not written yet; owned */
	size_t gathered_bytes;
	int64_t size_bytes;                       /* with wants_size */
	bool is_enough;                           /* it is known, and the rest is not read */
	int64_t retry_after_ms, limit, remaining; /* -1: not said */
	int64_t moved_ms, moved_up, moved_down;
	int moved_unsent;
	struct http_attempt attempt;
	struct http_verdict verdict;
	int64_t began_ms;
};

/* ---- addresses --------------------------------------------------------------------------------------------- */

static void url_release(CURLU **u)
{
	curl_url_cleanup(*u);
}

static void part_release(char **p)
{
	curl_free(*p);
}

static bool host_is_loopback(const char *host)
{
	struct in_addr v4;

	if (strcasecmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0)
		return true;
	return inet_pton(AF_INET, host, &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127;
}

/* "https://host:443" of an address a request may go to; -EINVAL and why it may not. */
static int read_origin(const char *url, bool is_base, char ret[ORIGIN_BYTES], const char **why)
{
	CLEANUP(url_release) CURLU *u = curl_url();
	CLEANUP(part_release) char *scheme = NULL, *host = NULL, *port = NULL, *extra = NULL;

	if (!u || curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK ||
	    curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
	    curl_url_get(u, CURLUPART_HOST, &host, 0) != CURLUE_OK || host[0] == '\0' ||
	    curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) != CURLUE_OK) {
		*why = "is not an address like https://host/path";
		return -EINVAL;
	}
	if (strcmp(scheme, "https") != 0 && strcmp(scheme, "http") != 0) {
		*why = "is neither https nor http";
		return -EINVAL;
	}
	if (strcmp(scheme, "http") == 0 && !host_is_loopback(host)) {
		*why = "would send secrets in the clear: plain http is accepted for this machine's own addresses only";
		return -EINVAL;
	}
	if (is_base && (curl_url_get(u, CURLUPART_USER, &extra, 0) == CURLUE_OK ||
			curl_url_get(u, CURLUPART_QUERY, &extra, 0) == CURLUE_OK ||
			curl_url_get(u, CURLUPART_FRAGMENT, &extra, 0) == CURLUE_OK)) {
		*why = "must hold no user name, query or fragment";
		return -EINVAL;
	}
	if (snprintf(ret, ORIGIN_BYTES, "%s://%s:%s", scheme, host, port) >= ORIGIN_BYTES) {
		*why = "has too long a host name";
		return -EINVAL;
	}
	return 0;
}

bool http_url_is_allowed(const char *url)
{
	char origin[ORIGIN_BYTES];
	const char *why;

	return read_origin(url, false, origin, &why) == 0;
}

/* The base address's own path, "" or "/api/v1". */
static const char *base_path(const struct http *h)
{
	const char *authority = strstr(h->base_url, "://") + 3;

	return authority + strcspn(authority, "/");
}

int http_path_of(struct http *h, const char *url, struct buf *ret)
{
	const char *base = base_path(h), *why, *path = url;
	char origin[ORIGIN_BYTES];
	size_t len = strlen(base);

	if (url[0] != '/' || url[1] == '/') {
		if (read_origin(url, false, origin, &why) < 0 || strcasecmp(origin, h->origin) != 0)
			return -EINVAL;
		path = strstr(url, "://");
		if (!path)
			return -EINVAL;
		path += 3 + strcspn(path + 3, "/?#");
	}
	if (strncmp(path, base, len) != 0 || path[len] != '/')
		return -EINVAL;
	for (const char *c = path; *c; c++) {
		if ((unsigned char)*c <= 0x20 || *c == 0x7f || *c == '\\')
			return -EINVAL;
	}
	buf_add_bytes(ret, path + len, strcspn(path + len, "#"));
	return buf_text(ret) ? 0 : -EINVAL;
}

/* ---- handles ----------------------------------------------------------------------------------------------- */

static void handle_free(struct handle *h)
{
	if (!h)
		return;
	if (h->easy)
		curl_easy_cleanup(h->easy);
	if (h->multi)
		curl_multi_cleanup(h->multi);
	free(h);
}

static struct handle *handle_new(void)
{
	struct handle *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->easy = curl_easy_init();
	h->multi = curl_multi_init();
	if (!h->easy || !h->multi ||
	    curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, (long)CONNECTIONS_PER_HANDLE) != CURLM_OK) {
		handle_free(h);
		return NULL;
	}
	return h;
}

/* The one that knows the way, or a new one. NULL: no memory. */
static struct handle *handle_borrow(struct http *http, const char *origin)
{
	{
		SCOPED_LOCK(&http->pool_lock);

		for (struct handle **at = &http->idle; *at; at = &(*at)->next) {
			struct handle *found = *at;

			if (strcmp(found->origin, origin) != 0)
				continue;
			*at = found->next;
			found->next = NULL;
			return found;
		}
	}
	return handle_new();
}

static void handle_return(struct http *http, struct handle *h, const char *origin)
{
	struct handle *old = NULL;
	int kept = 0;

	curl_easy_reset(h->easy); /* its options point into the caller's stack */
	snprintf(h->origin, sizeof(h->origin), "%s", origin);
	h->used_ms = clock_now_ms();
	{
		SCOPED_LOCK(&http->pool_lock);

		h->next = http->idle;
		http->idle = h;
		for (struct handle **at = &http->idle; *at; at = &(*at)->next) {
			if (++kept > IDLE_HANDLES_MAX || (*at)->used_ms < h->used_ms - IDLE_HANDLE_MS_MAX) {
				old = *at; /* all behind it are older still */
				*at = NULL;
				break;
			}
		}
	}
	while (old) {
		struct handle *next = old->next;

		handle_free(old);
		old = next;
	}
}

/* ---- the token --------------------------------------------------------------------------------------------- */

static void wait_for_token(struct http *h)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += LOOK_MS * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	(void)pthread_cond_timedwait(&h->token_moved, &h->token_lock, &until); /* either way we look again */
}

static bool is_cancelled(struct http *h, const struct call *call)
{
	return atomic_load(&h->is_stopped) || (call->transfer && atomic_load(&call->transfer->cancelled));
}

/* With the lock held, which is let go while the token is read: 0, or why there is no other one. */
static int read_token_anew(struct http *h, struct call *call, bool anew)
{
	CLEANUP(secret_release) struct secret *fresh = NULL;
	struct fault kept = call->fault;

	h->token_is_being_read = true;
	pthread_mutex_unlock(&h->token_lock);
	int r = h->read_token(h->arg, call, anew, &fresh);
	pthread_mutex_lock(&h->token_lock);
	h->token_is_being_read = false;
	pthread_cond_broadcast(&h->token_moved);
	if (r < 0)
		return r;
	call->fault = kept;
	if (h->token && secret_is_equal(h->token, fresh)) {
		h->token_refused = h->token_number;
		h->token_refused_ms = clock_now_ms();
		return -EACCES;
	}
	secret_free(h->token);
	h->token = fresh;
	fresh = NULL;
	h->token_number++;
	return 0;
}

/* A copy of a token with another number than `refused` (0: whichever), and its number. -EACCES: there is no other. */
static int take_token(struct http *h, struct call *call, uint64_t refused, struct secret **ret, uint64_t *ret_number)
{
	SCOPED_LOCK(&h->token_lock);

	while (!h->token || h->token_number == refused) {
		if (is_cancelled(h, call))
			return -ECANCELED;
		if (call->deadline_ms && clock_now_ms() >= call->deadline_ms)
			return -ETIMEDOUT;
		if (h->token_is_being_read) {
			wait_for_token(h);
			continue;
		}
		if (refused && h->token_refused == refused && clock_now_ms() < h->token_refused_ms + TOKEN_REREAD_MS)
			return -EACCES;
		int r = read_token_anew(h, call, refused != 0);
		if (r < 0)
			return r;
	}
	*ret = secret_copy(h->token);
	*ret_number = h->token_number;
	return *ret ? 0 : -ENOMEM;
}

uint64_t http_token_number(struct http *h)
{
	SCOPED_LOCK(&h->token_lock);

	return h->token_number;
}

int http_renew_token(struct http *h, struct call *call, uint64_t number)
{
	CLEANUP(secret_release) struct secret *token = NULL;

	return take_token(h, call, number, &token, &number);
}

/* ---- what curl calls --------------------------------------------------------------------------------------- */

/* Only the size is wanted. A header may tell it; then a small rest is read all the same, to keep the connection. */
static size_t measure_answer(struct exchange *x, size_t count)
{
	curl_off_t told = -1;

	x->size_bytes += (int64_t)count;
	curl_easy_getinfo(x->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &told);
	if (told <= SMALL_BUFFER_BYTES)
		return count;
	x->size_bytes = told;
	x->is_enough = true;
	return 0;
}

/* Where another attempt is to begin. Some bytes are sent again, which shows whether they are still the same; and so there are some even
 * when all had come. 0: at the beginning. */
static int64_t resume_from(const struct exchange *x)
{
	return x->kept_bytes > RESUME_OVERLAP_BYTES ? x->kept_bytes - RESUME_OVERLAP_BYTES : 0;
}

/* Bytes that stand there may have been read by somebody, so they are compared: how many now; -1: they differ, or cannot be read. */
static ssize_t compare_answer(struct exchange *x, const char *bytes, size_t count)
{
	char before[4096];
	int64_t left = x->kept_bytes - x->written_bytes;
	size_t want = count < sizeof(before) ? count : sizeof(before);
	ssize_t n;

	if ((int64_t)want > left)
		want = (size_t)left;
	n = pread(*x->q->answer_fd, before, want, x->written_bytes);
	if (n < 0 && errno == EINTR)
		return 0;
	if (n > 0 && memcmp(before, bytes, (size_t)n) == 0)
		return n;
	x->attempt.local_error = n < 0 ? -errno : -ESTALE;
	return -1;
}

static ssize_t write_some(struct exchange *x, const char *bytes, size_t count)
{
	ssize_t n;

	if (x->written_bytes < x->kept_bytes)
		return compare_answer(x, bytes, count);
	n = pwrite(*x->q->answer_fd, bytes, count, x->written_bytes);
	if (n < 0 && errno == EINTR)
		return 0;
	if (n <= 0)
		x->attempt.local_error = n < 0 ? -errno : -EIO;
	return n > 0 ? n : -1;
}

/* false: x->attempt says why it can't be. */
static bool write_gathered(struct exchange *x)
{
	if (x->gathered_bytes == 0)
		return true;
	if (x->taken_bytes == 0 && x->is_part) {
		if (resume_from(x) == 0 || x->part_from != resume_from(x)) { /* not what was asked for */
			x->attempt.local_error = -EIO;
			return false;
		}
		x->written_bytes = x->part_from;
	}
	for (size_t done = 0; done < x->gathered_bytes;) {
		ssize_t n = write_some(x, x->gathered + done, x->gathered_bytes - done);

		if (n < 0)
			return false;
		done += (size_t)n;
		x->written_bytes += n;
	}
	x->taken_bytes += (int64_t)x->gathered_bytes;
	x->gathered_bytes = 0;
	if (x->call->transfer && x->written_bytes > x->kept_bytes) {
		atomic_store(&x->call->transfer->done_bytes, x->written_bytes);
		if (x->call->on_bytes)
			x->call->on_bytes(x->call->on_bytes_arg);
	}
	return true;
}

/* curl hands over 16 KiB at a time, which would be a write each. transfer_run() writes what was gathered when there is no more. */
static size_t gather_answer(struct exchange *x, const char *bytes, size_t count, bool is_part)
{
	x->is_part = is_part;
	if (!x->gathered)
		x->gathered = malloc(GATHERED_BYTES_MAX);
	if (!x->gathered) {
		x->attempt.local_error = -ENOMEM;
		return 0;
	}
	for (size_t done = 0; done < count;) {
		size_t room = GATHERED_BYTES_MAX - x->gathered_bytes, n = count - done < room ? count - done : room;

		memcpy(x->gathered + x->gathered_bytes, bytes + done, n);
		x->gathered_bytes += n;
		done += n;
		if (x->gathered_bytes == GATHERED_BYTES_MAX && !write_gathered(x))
			return 0;
	}
	return count;
}

static size_t on_answer(char *bytes, size_t one, size_t count, void *arg)
{
	struct exchange *x = arg;
	long status = 0;

	curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &status);
	if (x->q->wants_size && status / 100 == 2)
		return measure_answer(x, count);
	if (x->q->answer_fd && status / 100 == 2)
		return gather_answer(x, bytes, count, status == 206);
	buf_add_bytes(&x->answer, bytes, count);
	x->attempt.answer_too_large = x->answer.failed;
	return x->answer.failed ? 0 : count;
}

/* Moves *at to where curl wants to begin again. Only what may be sent twice can be rewound; for the rest curl would, on
 * a connection that broke before the answer, quietly send it a second time. */
static int rewind_to(const struct exchange *x, int64_t now_at, curl_off_t to)
{
	if (to == now_at)
		return CURL_SEEKFUNC_OK;
	return x->attempt.is_put && to >= 0 ? CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

static size_t read_body(char *to, size_t one, size_t count, void *arg)
{
	struct exchange *x = arg;
	size_t left = x->body_bytes - x->body_at, n = one * count < left ? one * count : left;

	memcpy(to, x->q->body + x->body_at, n);
	x->body_at += n;
	return n;
}

static int seek_body(void *arg, curl_off_t to, int whence)
{
	struct exchange *x = arg;
	int r = whence == SEEK_SET && to <= (curl_off_t)x->body_bytes ? rewind_to(x, (int64_t)x->body_at, to)
								      : CURL_SEEKFUNC_FAIL;

	if (r == CURL_SEEKFUNC_OK)
		x->body_at = (size_t)to;
	return r;
}

static size_t read_source(char *to, size_t one, size_t count, void *arg)
{
	struct exchange *x = arg;
	int64_t left = x->q->source->size_bytes - x->source_at;
	size_t want = (int64_t)(one * count) < left ? one * count : (size_t)left;
	ssize_t n;

	if (want == 0)
		return 0;
	do {
		n = pread(x->q->source->fd, to, want, x->source_at);
	} while (n < 0 && errno == EINTR);
	if (n <= 0) { /* shorter than it was said to be: not these bytes, then */
		x->attempt.local_error = n < 0 ? -errno : -EIO;
		return CURL_READFUNC_ABORT;
	}
	x->source_at += n;
	return (size_t)n;
}

static int seek_source(void *arg, curl_off_t to, int whence)
{
	struct exchange *x = arg;
	int r = whence == SEEK_SET && to <= x->q->source->size_bytes ? rewind_to(x, x->source_at, to)
								     : CURL_SEEKFUNC_FAIL;

	if (r == CURL_SEEKFUNC_OK)
		x->source_at = to;
	return r;
}

/* The value of a header line when it is this one, without blanks around it. */
static bool header_is(const char *line, size_t len, const char *name, char ret[64])
{
	size_t name_len = strlen(name);

	if (len <= name_len || strncasecmp(line, name, name_len) != 0 || line[name_len] != ':')
		return false;
	line += name_len + 1;
	len -= name_len + 1;
	for (; len > 0 && (*line == ' ' || *line == '\t'); len--)
		line++;
	while (len > 0 && (line[len - 1] == '\r' || line[len - 1] == '\n' || line[len - 1] == ' '))
		len--;
	snprintf(ret, 64, "%.*s", (int)(len < 63 ? len : 63), line);
	return true;
}

/* -1 unless it is a whole number that nobody has to fear. */
static int64_t read_number(const char *text)
{
	char *end;
	long long n = strtoll(text, &end, 10);

	return end != text && *end == '\0' && n >= 0 && n <= INT32_MAX ? n : -1;
}

static int64_t read_retry_after(const char *text)
{
	int64_t seconds = read_number(text);

	if (seconds < 0) {
		time_t at = curl_getdate(text, NULL), now = time(NULL);

		if (at == -1)
			return -1;
		seconds = at > now ? at - now : 0;
	}
	return seconds * 1000;
}

/* "bytes 100-199/200" -> 100; -1: it does not go to the end. */
static int64_t read_part_from(const char *text)
{
	long long from = -1, last, all;
	bool goes_to_the_end = sscanf(text, "bytes %lld-%lld/%lld", &from, &last, &all) == 3 && last == all - 1;

	return goes_to_the_end ? from : -1;
}

static size_t on_header(char *line, size_t one, size_t count, void *arg)
{
	struct exchange *x = arg;
	char value[64];

	if (count > 5 && strncasecmp(line, "HTTP/", 5) == 0) /* after a 100, or a proxy's answer */
		x->retry_after_ms = x->limit = x->remaining = x->part_from = -1;
	else if (header_is(line, count, "retry-after", value))
		x->retry_after_ms = read_retry_after(value);
	else if (header_is(line, count, "x-ratelimit-limit", value))
		x->limit = read_number(value);
	else if (header_is(line, count, "x-ratelimit-remaining", value))
		x->remaining = read_number(value);
	else if (header_is(line, count, "content-range", value))
		x->part_from = read_part_from(value);
	return count;
}

void http_stop(struct http *h)
{
	atomic_store(&h->is_stopped, true);
	if (h->limit)
		limit_stop(h->limit);
}

/* What curl has handed over and the other side has not taken yet: a slow line takes seconds for one such bufferful, and all the while
 * curl sees nothing move. -1: not known. */
static int unsent_bytes(struct exchange *x)
{
	curl_socket_t socket = CURL_SOCKET_BAD;
	int bytes = -1;

	if (curl_easy_getinfo(x->easy, CURLINFO_ACTIVESOCKET, &socket) != CURLE_OK || socket == CURL_SOCKET_BAD ||
	    ioctl(socket, SIOCOUTQ, &bytes) < 0)
		return -1;
	return bytes;
}

static int on_progress(void *arg, curl_off_t down_total, curl_off_t down, curl_off_t up_total, curl_off_t up)
{
	struct exchange *x = arg;

	int unsent = x->q->source ? unsent_bytes(x) : -1;

	if (up == x->moved_up && down == x->moved_down && unsent == x->moved_unsent)
		return 0;
	x->moved_up = up;
	x->moved_down = down;
	x->moved_unsent = unsent;
	x->moved_ms = clock_now_ms();
	if (x->call->transfer) {
		atomic_store(&x->call->transfer->moved_ms, x->moved_ms);
		if (x->q->source)
			atomic_store(&x->call->transfer->done_bytes, unsent > 0 && unsent < up ? up - unsent : up);
	}
	return 0;
}

/* ---- options ----------------------------------------------------------------------------------------------- */

static bool add_header(struct curl_slist **list, const char *line)
{
	struct curl_slist *longer;

	for (const char *p = line; *p; p++) {
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			return false; /* a header that came from a server must not become two */
	}
	longer = curl_slist_append(*list, line);
	if (longer)
		*list = longer;
	return longer != NULL;
}

static bool add_headers(struct exchange *x, const struct secret *token)
{
	const struct http_request *q = x->q;
	CLEANUP(buf_release) struct buf line = BUF(HEADER_BYTES_MAX);
	/* curl would wait for a 100 before each body: a round trip for nothing. */
	bool ok = add_header(&x->headers, "Expect:");

	if (q->target == HTTP_API)
		ok = ok && add_header(&x->headers, q->answer_fd ? "Accept: */*" : "Accept: application/json");
	if (token) {
		buf_addf(&line, "Authorization: Bearer %s", secret_reveal(token));
		ok = ok && buf_text(&line) && add_header(&x->headers, buf_text(&line));
		if (line.data)
			explicit_bzero(line.data, line.len);
	}
	if (q->body)
		ok = ok && add_header(&x->headers, "Content-Type: application/json");
	else if (!q->parts && !q->source)
		ok = ok && add_header(&x->headers, "Content-Type:"); /* curl would call an empty POST a form */
	for (int i = 0; q->headers && q->headers[i]; i++)
		ok = ok && add_header(&x->headers, q->headers[i]);
	return ok;
}

static bool add_parts(struct exchange *x)
{
	const struct http_part *p;

	x->mime = curl_mime_init(x->easy);
	for (p = x->q->parts; x->mime && p->name; p++) {
		curl_mimepart *part = curl_mime_addpart(x->mime);
		bool ok = part && curl_mime_name(part, p->name) == CURLE_OK;

		if (ok && p->mime)
			ok = curl_mime_type(part, p->mime) == CURLE_OK;
		if (ok && p->filename)
			ok = curl_mime_filename(part, p->filename) == CURLE_OK &&
			     curl_mime_data_cb(part, x->q->source->size_bytes, read_source, seek_source, NULL, x) ==
				     CURLE_OK;
		else if (ok)
			ok = curl_mime_data(part, p->text, CURL_ZERO_TERMINATED) == CURLE_OK;
		if (!ok)
			return false;
	}
	return x->mime && curl_easy_setopt(x->easy, CURLOPT_MIMEPOST, x->mime) == CURLE_OK;
}

static bool set_body(struct exchange *x)
{
	const struct http_request *q = x->q;
	CURL *e = x->easy;
	bool ok = true;

#define SET(option, value) (ok = ok && curl_easy_setopt(e, (option), (value)) == CURLE_OK)
	if (q->parts) {
		ok = add_parts(x);
	} else if (q->source) {
		SET(CURLOPT_UPLOAD, 1L);
		SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t)q->source->size_bytes);
		SET(CURLOPT_READFUNCTION, read_source);
		SET(CURLOPT_READDATA, x);
		SET(CURLOPT_SEEKFUNCTION, seek_source);
		SET(CURLOPT_SEEKDATA, x);
	} else if (q->body) {
		SET(CURLOPT_POST, 1L);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)x->body_bytes);
		SET(CURLOPT_READFUNCTION, read_body);
		SET(CURLOPT_READDATA, x);
		SET(CURLOPT_SEEKFUNCTION, seek_body);
		SET(CURLOPT_SEEKDATA, x);
	} else if (strcmp(q->method, "POST") == 0) {
		SET(CURLOPT_POST, 1L);
		SET(CURLOPT_POSTFIELDS, "");
		SET(CURLOPT_POSTFIELDSIZE, 0L);
		/* Without a body there is no rewinding to refuse, so this must not meet a connection that may be dead.
		 */
		SET(CURLOPT_FRESH_CONNECT, 1L);
	} else {
		SET(CURLOPT_HTTPGET, 1L);
	}
	if (strcmp(q->method, "GET") != 0)
		SET(CURLOPT_CUSTOMREQUEST, q->method);
	return ok;
}

/* Every option there is, most of all those with a default. */
static bool set_options(struct exchange *x, const struct secret *token)
{
	struct http *h = x->http;
	CURL *e = x->easy;
	bool is_big = x->q->source || x->q->answer_fd, ok = true;

	SET(CURLOPT_URL, x->url);
	SET(CURLOPT_PATH_AS_IS, 1L); /* dots in a signed path are part of what was signed */
#if LIBCURL_VERSION_NUM >= 0x075500
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
#else
	SET(CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
	SET(CURLOPT_FOLLOWLOCATION, 0L); /* by hand, so that each hop is looked at and no token follows */
	SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
	SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	if (h->cafile)
		SET(CURLOPT_CAINFO, h->cafile);
	if (strncmp(x->origin, "http:", 5) == 0)
		SET(CURLOPT_PROXY, ""); /* meant for this machine: a proxy would carry it away in the clear */
	else if (h->proxy)
		SET(CURLOPT_PROXY, h->proxy);
	SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
	SET(CURLOPT_USERAGENT, "sessionfs/" SESSIONFS_VERSION);
	if (!x->q->answer_fd && !x->q->wants_size && x->q->target == HTTP_API)
		SET(CURLOPT_ACCEPT_ENCODING, ""); /* listings shrink to a tenth */
	SET(CURLOPT_NOSIGNAL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075700
	SET(CURLOPT_QUICK_EXIT, 1L); /* a cancelled call does not wait for a dead name server */
#endif
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
	SET(CURLOPT_TIMEOUT_MS, 0L); /* the clock is attempt_run()'s */
	SET(CURLOPT_LOW_SPEED_LIMIT, 0L);
	SET(CURLOPT_MAXAGE_CONN, (long)(IDLE_HANDLE_MS_MAX / 1000));
	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	if (resume_from(x) > 0) { /* a service that takes no notice sends all */
		char range[32];

		snprintf(range, sizeof(range), "%lld-", (long long)resume_from(x));
		SET(CURLOPT_RANGE, range);
	}
	SET(CURLOPT_BUFFERSIZE, (long)(is_big ? BIG_BUFFER_BYTES : SMALL_BUFFER_BYTES));
	if (x->q->source)
		SET(CURLOPT_UPLOAD_BUFFERSIZE, (long)BIG_BUFFER_BYTES);
	if (h->share)
		SET(CURLOPT_SHARE, h->share);
	SET(CURLOPT_ERRORBUFFER, x->error);
	SET(CURLOPT_WRITEFUNCTION, on_answer);
	SET(CURLOPT_WRITEDATA, x);
	SET(CURLOPT_HEADERFUNCTION, on_header);
	SET(CURLOPT_HEADERDATA, x);
	SET(CURLOPT_NOPROGRESS, 0L);
	SET(CURLOPT_XFERINFOFUNCTION, on_progress);
	SET(CURLOPT_XFERINFODATA, x);
	ok = ok && set_body(x) && add_headers(x, token);
	SET(CURLOPT_HTTPHEADER, x->headers);
#undef SET
	return ok;
}

/* ---- one attempt ------------------------------------------------------------------------------------------- */

/* Until curl is done with it, or we are. */
static CURLcode transfer_run(struct exchange *x)
{
	CURLM *multi = x->handle->multi;
	int64_t look_ms = x->call->transfer ? LOOK_MS : LOOK_LONG_MS;
	CURLcode code = CURLE_OK;
	int running = 1, left;
	CURLMsg *msg;

	if (curl_multi_add_handle(multi, x->easy) != CURLM_OK)
		return CURLE_OUT_OF_MEMORY;
	for (;;) {
		if (curl_multi_perform(multi, &running) != CURLM_OK) {
			code = CURLE_OUT_OF_MEMORY;
			break;
		}
		if (!write_gathered(x) || !running)
			break;
		int64_t now = clock_now_ms(), wait_ms = look_ms;
		if (is_cancelled(x->http, x->call)) {
			x->attempt.was_cancelled = true;
			break;
		}
		if ((x->deadline_ms && now >= x->deadline_ms) || now >= x->moved_ms + x->http->stall_ms) {
			x->attempt.time_is_up = true;
			break;
		}
		if (x->deadline_ms && wait_ms > x->deadline_ms - now)
			wait_ms = x->deadline_ms - now;
		(void)curl_multi_poll(multi, NULL, 0, (int)wait_ms, NULL); /* a failure shows in perform */
	}
	while ((msg = curl_multi_info_read(multi, &left))) {
		if (msg->msg == CURLMSG_DONE && msg->easy_handle == x->easy)
			code = msg->data.result;
	}
	if (running && code == CURLE_OK)
		code = x->attempt.was_cancelled ? CURLE_ABORTED_BY_CALLBACK : CURLE_OPERATION_TIMEDOUT;
	curl_multi_remove_handle(multi, x->easy); /* closes a connection with an answer still on its way */
	return code;
}

/* Path and query of an API request; of storage the address without its query, which is a secret. */
static const char *subject_of(const struct http_request *q, char *room, size_t room_bytes)
{
	if (q->target == HTTP_API)
		return q->path;
	snprintf(room, room_bytes, "%.*s", (int)strcspn(q->url, "?#"), q->url);
	return room;
}

static void log_attempt(const struct exchange *x)
{
	char room[256];

	if (!log_is_on(LOG_LEVEL_DEBUG))
		return;
	log_debug("%s: %s %s: %d, %lld ms, %lld bytes out, %lld in%s%s", x->http->subject, x->q->method,
		  subject_of(x->q, room, sizeof(room)), x->attempt.status, (long long)(clock_now_ms() - x->began_ms),
		  (long long)x->moved_up, (long long)(x->answer.len + (size_t)x->taken_bytes),
		  x->attempt.curl_code ? ", " : "", x->attempt.curl_code ? x->error : "");
}

static void attempt_forget(struct exchange *x)
{
	curl_slist_free_all(x->headers);
	x->headers = NULL;
	curl_mime_free(x->mime);
	x->mime = NULL;
	free(x->gathered);
	x->gathered = NULL;
}

static void note_redirect(struct exchange *x)
{
	char *to = NULL;

	free(x->redirect);
	x->redirect = NULL;
	if (x->attempt.status / 100 == 3 && curl_easy_getinfo(x->easy, CURLINFO_REDIRECT_URL, &to) == CURLE_OK && to)
		x->redirect = strdup(to);
}

/* Sends once; what became of it stands in x->attempt and x->answer. -ENOMEM: nothing was sent. */
static int attempt_run(struct exchange *x, const struct secret *token)
{
	const struct http_request *q = x->q;
	long status = 0, request_bytes = 0;
	struct http_attempt *a = &x->attempt;

	x->handle = handle_borrow(x->http, x->origin);
	if (!x->handle)
		return -ENOMEM;
	x->easy = x->handle->easy;
	x->error[0] = '\0';
	x->body_at = 0;
	x->source_at = 0;
	x->kept_bytes = q->answer_fd && x->call->on_bytes ? atomic_load(&x->call->transfer->done_bytes) : 0;
	if (x->written_bytes > x->kept_bytes) /* an earlier attempt's; what cannot be cut is written over */
		(void)!ftruncate(*q->answer_fd, x->kept_bytes);
	x->written_bytes = x->taken_bytes = x->size_bytes = 0;
	x->gathered_bytes = 0;
	x->part_from = -1;
	x->is_enough = false;
	x->moved_up = x->moved_down = 0;
	buf_clear(&x->answer);
	x->retry_after_ms = x->limit = x->remaining = -1;
	a->was_cancelled = a->answer_too_large = a->time_is_up = false;
	a->local_error = 0;
	a->status = 0;
	x->began_ms = x->moved_ms = clock_now_ms();
	if (x->call->transfer)
		atomic_store(&x->call->transfer->moved_ms, x->moved_ms);

	bool is_set = set_options(x, token);
	if (is_set) {
		a->curl_code = transfer_run(x);
		if (x->is_enough)
			a->curl_code = CURLE_OK; /* it was us who hung up */
		curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &status);
		curl_easy_getinfo(x->easy, CURLINFO_REQUEST_SIZE, &request_bytes);
		a->status = (int)status;
		if (a->curl_code == CURLE_OK && !a->local_error && x->kept_bytes > 0 &&
		    (status == 416 || (status / 100 == 2 && x->written_bytes < x->kept_bytes)))
			a->local_error = -ESTALE; /* fewer than there were */
		a->was_sent = a->was_sent || request_bytes > 0;
		a->retry_after_ms = x->retry_after_ms;
		note_redirect(x);
		if (a->curl_code != CURLE_OK && x->error[0] == '\0')
			snprintf(x->error, sizeof(x->error), "%s", curl_easy_strerror((CURLcode)a->curl_code));
		log_attempt(x);
		metrics_count_request(x->q->target == HTTP_API ? "api" : "storage", x->q->method, a->status,
				      clock_now_ms() - x->began_ms, x->moved_up,
				      (int64_t)x->answer.len + x->taken_bytes);
	}
	if (is_set && a->curl_code == CURLE_OK && !x->is_enough)
		handle_return(x->http, x->handle, x->origin);
	else
		handle_free(x->handle); /* nothing of a connection in doubt is used again */
	x->handle = NULL;
	x->easy = NULL;
	return is_set ? 0 : -ENOMEM;
}

/* ---- the verdict ------------------------------------------------------------------------------------------- */

static struct http_verdict give_up(int error, enum fault_kind kind, bool may_have_happened)
{
	return (struct http_verdict){ HTTP_GIVE_UP, error, kind, may_have_happened };
}

static struct http_verdict judge_transport(const struct http_attempt *a, bool in_doubt)
{
	struct http_verdict v;

	if (a->time_is_up || a->curl_code == CURLE_OPERATION_TIMEDOUT)
		return give_up(-ETIMEDOUT, FAULT_AWAY, in_doubt);
	v = give_up(-EIO, FAULT_AWAY, in_doubt);
	/* A connection that was kept may have died meanwhile; a certificate or a name does not get better that fast. */
	if (a->is_get && a->attempts < 2 && a->time_left_ms > RETRY_MS_MIN &&
	    a->curl_code != CURLE_PEER_FAILED_VERIFICATION && a->curl_code != CURLE_COULDNT_RESOLVE_HOST &&
	    a->curl_code != CURLE_COULDNT_RESOLVE_PROXY && a->curl_code != CURLE_SSL_CACERT_BADFILE &&
	    a->curl_code != CURLE_COULDNT_CONNECT)
		v.next = HTTP_AGAIN;
	return v;
}

static struct http_verdict judge_budget(const struct http_attempt *a)
{
	struct http_verdict v = give_up(-EAGAIN, FAULT_BUDGET, false); /* refused before it was looked at */

	if (a->target == HTTP_API && a->attempts < ATTEMPTS_MAX && a->time_left_ms > RETRY_MS_MIN &&
	    a->retry_after_ms < a->time_left_ms)
		v.next = HTTP_WAIT_FOR_PLACE;
	return v;
}

/* A signed link that storage does not honour is of no use; a new one may be. */
static struct http_verdict judge_storage(const struct http_attempt *a)
{
	if (a->status == 401 || a->status == 403 || a->status == 400)
		return give_up(-EACCES, FAULT_KEY, false);
	if (a->status == 404 || a->status == 410)
		return a->is_put ? give_up(-EACCES, FAULT_KEY, false) : give_up(-ENOENT, FAULT_GONE, false);
	if (a->status == 413)
		return give_up(-EFBIG, FAULT_TOO_LARGE, false);
	if (a->status == 429)
		return give_up(-EAGAIN, FAULT_BUDGET, false);
	if (a->status == 408 || a->status == 425 || a->status >= 500 || a->status < 400)
		return give_up(a->status == 408 ? -ETIMEDOUT : -EIO, FAULT_AWAY, false);
	return give_up(-EINVAL, FAULT_INVALID, false);
}

static struct http_verdict judge_api(const struct http_attempt *a)
{
	/* A 429 may come from a proxy, after the fact; what is refused then may be refused for being the second. */
	bool may_be_second = a->was_put_off && !a->is_get;
	struct http_verdict v;

	switch (a->status) {
	case 401:
		v = give_up(-EACCES, FAULT_ACCOUNT, false);
		if (!a->token_was_renewed && !a->is_anonymous)
			v.next = HTTP_RENEW_TOKEN;
		return v;
	case 403:
		return give_up(-EACCES, FAULT_FORBIDDEN, false);
	case 404:
	case 410:
		return give_up(-ENOENT, FAULT_GONE, false);
	case 408:
		return give_up(-ETIMEDOUT, FAULT_AWAY, false);
	case 409:
		return give_up(-EBUSY, FAULT_CONFLICT, may_be_second);
	case 413:
		return give_up(-EFBIG, FAULT_TOO_LARGE, false);
	case 425:
		return give_up(-EIO, FAULT_AWAY, false);
	case 429:
		return judge_budget(a);
	default:
		break;
	}
	if (a->status >= 500)
		return give_up(-EIO, FAULT_AWAY, !a->is_get);
	if (a->status >= 400)
		return give_up(-EINVAL, FAULT_INVALID, may_be_second);
	return give_up(-EPROTO, FAULT_AWAY, false); /* a redirect, most likely to a page for people */
}

struct http_verdict http_judge(const struct http_attempt *a)
{
	bool in_doubt = a->was_sent && !a->is_get && !a->is_put;

	if (a->local_error)
		return give_up(a->local_error, FAULT_NONE, false);
	if (a->was_cancelled)
		return give_up(-ECANCELED, FAULT_CANCELED, in_doubt);
	if (a->answer_too_large)
		return give_up(-EPROTO, FAULT_AWAY, in_doubt);
	if (a->curl_code == CURLE_OUT_OF_MEMORY)
		return give_up(-ENOMEM, FAULT_NONE, in_doubt);
	if (a->curl_code != CURLE_OK)
		return judge_transport(a, in_doubt);
	if (a->status >= 200 && a->status < 300)
		return (struct http_verdict){ .next = HTTP_DONE };
	return a->target == HTTP_STORAGE ? judge_storage(a) : judge_api(a);
}

/* ---- faults ------------------------------------------------------------------------------------------------ */

/* One line, without control characters, cut where a character ends. */
static void set_words(struct fault *fault, const char *text)
{
	size_t len = strlen(text), max = sizeof(fault->words) - 1;

	if (len > max) {
		len = max;
		while (len > 0 && ((unsigned char)text[len] & 0xc0) == 0x80)
			len--;
	}
	for (size_t i = 0; i < len; i++)
		fault->words[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? ' ' : text[i];
	fault->words[len] = '\0';
}

/* S3 answers in XML; its <Code> is all we want of it. */
static void storage_words(const struct exchange *x, struct buf *ret)
{
	const char *text = buf_text(&x->answer), *code = text ? strstr(text, "<Code>") : NULL;
	const char *end = code ? strstr(code, "</Code>") : NULL;

	buf_addf(ret, "the storage answered %d", x->attempt.status);
	if (end && end - code < 100)
		buf_addf(ret, " (%.*s)", (int)(end - code - 6), code + 6);
}

static void service_words(const struct exchange *x, struct buf *ret)
{
	CLEANUP(json_release) cJSON *body = NULL;

	if (x->http->read_words && x->answer.len > 0 && x->answer.len <= REFUSAL_BYTES_MAX &&
	    json_parse(x->answer.data, x->answer.len, &body) == 0)
		x->http->read_words(body, ret);
}

static void fill_fault(struct exchange *x)
{
	struct fault *f = &x->call->fault;
	CLEANUP(buf_release) struct buf words = BUF(WORDS_BYTES_MAX);

	f->kind = x->verdict.kind;
	f->http_status = x->attempt.curl_code == CURLE_OK ? x->attempt.status : 0;
	f->retry_after_ms = x->retry_after_ms;
	f->may_have_happened = x->verdict.may_have_happened;
	if (x->attempt.curl_code != CURLE_OK)
		buf_add(&words, x->attempt.answer_too_large ? "the answer is too large"
				: x->attempt.time_is_up     ? "no answer in time"
							    : x->error);
	else if (x->q->target == HTTP_STORAGE)
		storage_words(x, &words);
	else
		service_words(x, &words);
	if (words.failed) /* longer than anybody would read */
		words.failed = false;
	set_words(f, buf_text(&words));
	if (f->kind == FAULT_FORBIDDEN && x->q->ability)
		snprintf(f->ability, sizeof(f->ability), "%s", x->q->ability);
}

/* A refused token goes on being refused; one line for each will do. */
static bool token_is_mourned(struct http *h)
{
	SCOPED_LOCK(&h->token_lock);
	bool was = h->token_mourned == h->token_number;

	h->token_mourned = h->token_number;
	return was;
}

/* Whoever knows the reason says it, once. "No such thing" and "not now" are answers and not worth a line; that the
 * service is away is, but not again for each poll. */
static void log_fault(const struct exchange *x, int error)
{
	const struct fault *f = &x->call->fault;
	const char *method = x->q->method, *subject = x->http->subject;
	char room[256];
	const char *about = subject_of(x->q, room, sizeof(room));

	if (f->kind == FAULT_CANCELED || f->kind == FAULT_GONE || f->kind == FAULT_BUDGET || x->q->accepts_any)
		return;
	if (error == -ESTALE) /* bytes are judged by whoever knows whose they are */
		return;
	/* Away is said once, and then again when it is over. */
	if (f->kind == FAULT_AWAY && (f->http_status == 0 || x->attempt.is_get) &&
	    atomic_exchange(&x->http->is_away[x->q->target], true))
		return;
	if (f->kind == FAULT_ACCOUNT && token_is_mourned(x->http))
		return;
	if (f->kind == FAULT_ACCOUNT)
		log_error("%s: %s %s: the service refuses the token%s%s", subject, method, about,
			  f->words[0] ? ": " : "", f->words);
	else if (f->kind == FAULT_NONE)
		log_error("%s: %s %s: %s", subject, method, about, strerror(-error));
	else if (f->http_status)
		log_warning("%s: %s %s: %d after %d attempts%s%s%s%s", subject, method, about, f->http_status,
			    x->attempt.attempts, f->ability[0] ? ", needs " : "", f->ability, f->words[0] ? ": " : "",
			    f->words);
	else
		log_warning("%s: %s %s: %s, after %d attempts", subject, method, about, f->words, x->attempt.attempts);
}

/* What stopped us before anything was sent. */
static int not_sent(struct exchange *x, enum fault_kind kind, int error, const char *words)
{
	x->call->fault.kind = kind;
	x->call->fault.retry_after_ms = x->retry_after_ms;
	x->call->fault.may_have_happened = false;
	set_words(&x->call->fault, words);
	return error;
}

/* ---- an exchange ------------------------------------------------------------------------------------------- */

static int64_t time_left(const struct exchange *x)
{
	return x->deadline_ms ? x->deadline_ms - clock_now_ms() : INT64_MAX;
}

static int wait_in_line(struct exchange *x, uint64_t *ret_place)
{
	struct call *call = x->call;
	int64_t deadline_ms = call->deadline_ms ? call->deadline_ms : clock_now_ms() + PLACE_MS;

	*ret_place = 0;
	if (!x->http->limit || x->q->target == HTTP_STORAGE)
		return 0;
	int r = limit_take(x->http->limit, call->urgency, deadline_ms, call->transfer, ret_place);
	if (r == -EAGAIN)
		return not_sent(x, FAULT_BUDGET, r,
				"no place among the requests of this minute before the time was up");
	if (r == -ECANCELED)
		return not_sent(x, FAULT_CANCELED, r, "");
	return r;
}

/* A failed first reading is as good as a refused token: nobody can go on before somebody has mended it. */
static int need_token(struct exchange *x, uint64_t refused, struct secret **ret, uint64_t *ret_number)
{
	struct fault before = x->call->fault;
	int r;

	if (x->q->target == HTTP_STORAGE || x->q->is_anonymous)
		return 0;
	r = take_token(x->http, x->call, refused, ret, ret_number);
	if (r == 0)
		return 0;
	if (r == -ECANCELED)
		return not_sent(x, FAULT_CANCELED, r, "");
	if (r == -ETIMEDOUT)
		return not_sent(x, FAULT_AWAY, r, "the token was not read in time");
	if (x->call->fault.kind != before.kind) /* reading it sent a request, which says what is wrong */
		return r;
	if (!refused)
		log_error("%s: the token cannot be read: %s", x->http->subject, strerror(-r));
	return not_sent(x, FAULT_ACCOUNT, -EACCES, "the token cannot be read");
}

static int send_once(struct exchange *x, const struct secret *token)
{
	uint64_t place;
	int r = wait_in_line(x, &place);

	if (r < 0)
		return r;
	bool is_bounded = x->q->target == HTTP_API && !x->q->is_long;
	x->deadline_ms = x->call->deadline_ms ? x->call->deadline_ms : is_bounded ? clock_now_ms() + API_MS : 0;
	x->attempt.attempts++;
	r = attempt_run(x, token);
	if (x->http->limit && x->q->target == HTTP_API) {
		bool speaks_for_all = r == 0 && !(x->q->is_apart && x->attempt.status == 429);
		const struct limit_answer answer = { .status = speaks_for_all ? x->attempt.status : 0,
						     .retry_after_ms = speaks_for_all ? x->retry_after_ms : -1,
						     .limit = r == 0 ? x->limit : -1,
						     .remaining = r == 0 ? x->remaining : -1 };

		limit_answered(x->http->limit, place, &answer);
	}
	if (r < 0)
		return not_sent(x, FAULT_NONE, r, "out of memory");
	x->attempt.time_left_ms = time_left(x);
	x->verdict = http_judge(&x->attempt);
	x->attempt.was_put_off = x->attempt.was_put_off || x->attempt.status == 429;
	if (x->verdict.next == HTTP_WAIT_FOR_PLACE && (!x->http->limit || x->q->is_apart))
		x->verdict.next = HTTP_GIVE_UP; /* there is no line to wait in */
	return 0;
}

/* Until there is a verdict that stands. 0: it does, whatever it says; else nothing (more) was sent. */
static int exchange_run(struct exchange *x)
{
	CLEANUP(secret_release) struct secret *token = NULL;
	uint64_t token_number = 0;
	int r = need_token(x, 0, &token, &token_number);

	while (r == 0) {
		CLEANUP(secret_release) struct secret *newer = NULL;

		r = send_once(x, token);
		attempt_forget(x);
		if (r < 0 || x->verdict.next == HTTP_DONE || x->verdict.next == HTTP_GIVE_UP)
			return r;
		if (x->verdict.next != HTTP_RENEW_TOKEN)
			continue;
		x->attempt.token_was_renewed = true;
		r = need_token(x, token_number, &newer, &token_number);
		if (r == -EACCES)
			return 0; /* the refusal stands, in the service's words */
		secret_free(token);
		token = newer;
		newer = NULL;
	}
	return r;
}

/* Is there another place to go for the same bytes? */
static bool follow(struct exchange *x, int hops)
{
	char origin[ORIGIN_BYTES];
	const char *why;

	if (x->q->target != HTTP_STORAGE || !x->attempt.is_get || x->attempt.curl_code != CURLE_OK || !x->redirect)
		return false;
	if (hops >= REDIRECTS_MAX || read_origin(x->redirect, false, origin, &why) < 0)
		return false;
	free(x->url);
	x->url = x->redirect;
	x->redirect = NULL;
	memcpy(x->origin, origin, sizeof(origin));
	x->attempt.attempts = 0;
	return true;
}

static void exchange_release(struct exchange *x)
{
	attempt_forget(x);
	buf_release(&x->answer);
	free(x->url);
	free(x->redirect);
}

static int exchange_begin(struct exchange *x, struct http *h, struct call *call, const struct http_request *q)
{
	CLEANUP(buf_release) struct buf url = BUF(URL_BYTES_MAX);
	const char *why = "is too long";
	bool is_api = q->target == HTTP_API;

	assert(is_api ? q->path && q->path[0] == '/' : q->url != NULL);
	memset(&call->fault, 0, sizeof(call->fault));
	call->fault.retry_after_ms = -1;
	*x = (struct exchange){ .http = h, .call = call, .q = q, .retry_after_ms = -1, .limit = -1, .remaining = -1 };
	x->answer = BUF(q->answer_bytes_max > 0 ? (size_t)q->answer_bytes_max : ANSWER_BYTES_MAX);
	x->body_bytes = q->body ? strlen(q->body) : 0;
	x->attempt.target = q->target;
	x->attempt.is_get = strcmp(q->method, "GET") == 0;
	x->attempt.is_put = !is_api && strcmp(q->method, "PUT") == 0;
	x->attempt.is_anonymous = q->is_anonymous;
	if (is_api)
		buf_add(&url, h->base_url);
	buf_add(&url, is_api ? q->path : q->url);
	if (is_api)
		memcpy(x->origin, h->origin, sizeof(x->origin));
	if (!buf_text(&url) || (!is_api && read_origin(q->url, false, x->origin, &why) < 0)) {
		log_warning("%s: the address of a document %s", h->subject, why);
		return not_sent(x, FAULT_INVALID, -EINVAL, "the service named an address nothing can be sent to");
	}
	x->url = buf_take(&url);
	return x->url ? 0 : not_sent(x, FAULT_NONE, -ENOMEM, "out of memory");
}

int http_do(struct http *h, struct call *call, const struct http_request *q, struct http_reply *ret)
{
	CLEANUP(exchange_release) struct exchange x;
	int hops = 0, r = exchange_begin(&x, h, call, q);

	*ret = (struct http_reply){ 0 };
	if (r < 0)
		return r;
	do {
		r = exchange_run(&x);
	} while (r == 0 && follow(&x, hops++));
	if (r < 0)
		return r;
	ret->status = x.attempt.curl_code == CURLE_OK ? x.attempt.status : 0;
	if (x.answer.failed)
		buf_clear(&x.answer); /* more than we take: nothing of it is of use */
	ret->size_bytes = x.size_bytes;
	ret->body_bytes = x.answer.len;
	ret->body = buf_take(&x.answer);
	if (q->target == HTTP_API) {
		ret->location = x.redirect;
		x.redirect = NULL;
	}
	if (x.verdict.next == HTTP_DONE && ret->body) {
		if (atomic_exchange(&h->is_away[q->target], false))
			log_info("%s: %s answers again", h->subject,
				 q->target == HTTP_API ? "the service" : "the storage");
		return 0;
	}
	r = ret->body ? x.verdict.error : -ENOMEM;
	if (ret->body_bytes > 0 && ret->body) /* taken, but wanted once more for its words */
		x.answer = (struct buf){ .data = ret->body, .len = ret->body_bytes };
	fill_fault(&x);
	if (call->fault.http_status > 0 && call->fault.kind != FAULT_AWAY)
		atomic_store(&h->is_away[q->target], false); /* a refusal is an answer */
	x.answer = (struct buf){ 0 };
	log_fault(&x, r);
	return r;
}

void http_reply_release(struct http_reply *r)
{
	free(r->body);
	free(r->location);
	*r = (struct http_reply){ 0 };
}

int http_unreadable(struct http *h, struct call *call, const struct http_request *q, const char *why)
{
	char room[256];

	call->fault.kind = FAULT_AWAY;
	call->fault.may_have_happened = strcmp(q->method, "GET") != 0;
	set_words(&call->fault, why);
	if (!q->accepts_any)
		log_warning("%s: %s %s: %s", h->subject, q->method, subject_of(q, room, sizeof(room)), why);
	return -EPROTO;
}

int http_json(struct http *h, struct call *call, const struct http_request *q, cJSON **ret)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	int r = http_do(h, call, q, &reply);

	if (r < 0)
		return r;
	if (reply.body_bytes == 0) {
		*ret = NULL;
		return 0;
	}
	if (json_parse(reply.body, reply.body_bytes, ret) < 0) {
		call->fault.http_status = reply.status;
		return http_unreadable(h, call, q, "the answer is not JSON");
	}
	return 0;
}

/* ---- birth and death --------------------------------------------------------------------------------------- */

static void share_lock(CURL *easy, curl_lock_data what, curl_lock_access how, void *arg)
{
	struct http *h = arg;

	pthread_mutex_lock(&h->share_locks[what]);
}

static void share_unlock(CURL *easy, curl_lock_data what, void *arg)
{
	struct http *h = arg;

	pthread_mutex_unlock(&h->share_locks[what]);
}

/* Names and TLS sessions, not connections: those are not safe to share between threads in libcurl 7. A NULL is no loss.
 */
static CURLSH *share_new(struct http *h)
{
	CURLSH *share = curl_share_init();

	for (int i = 0; i < CURL_LOCK_DATA_LAST; i++)
		pthread_mutex_init(&h->share_locks[i], NULL);
	if (!share)
		return NULL;
	curl_share_setopt(share, CURLSHOPT_LOCKFUNC, share_lock);
	curl_share_setopt(share, CURLSHOPT_UNLOCKFUNC, share_unlock);
	curl_share_setopt(share, CURLSHOPT_USERDATA, h);
	curl_share_setopt(share, CURLSHOPT_SHARE, CURL_LOCK_DATA_DNS);
	curl_share_setopt(share, CURLSHOPT_SHARE, CURL_LOCK_DATA_SSL_SESSION);
	return share;
}

static void global_begin(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

int http_open(const struct http_options *options, struct buf *why, struct http **ret)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	char origin[ORIGIN_BYTES];
	const char *reason;
	struct http *h;

	pthread_once(&once, global_begin);
	if (read_origin(options->base_url, true, origin, &reason) < 0) {
		buf_addf(why, "the address '%s' %s", options->base_url, reason);
		return -EINVAL;
	}
	if (options->cafile && access(options->cafile, R_OK) < 0) {
		buf_addf(why, "the file of certificates '%s' cannot be read: %s", options->cafile, strerror(errno));
		return -EINVAL;
	}
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	pthread_mutex_init(&h->pool_lock, NULL);
	pthread_mutex_init(&h->token_lock, NULL);
	pthread_cond_init(&h->token_moved, NULL);
	h->share = share_new(h);
	h->subject = options->subject;
	h->base_url = strdup(options->base_url);
	h->cafile = options->cafile ? strdup(options->cafile) : NULL;
	h->proxy = options->proxy ? strdup(options->proxy) : NULL;
	h->limit = options->limit;
	h->stall_ms = options->stall_ms > 0 ? options->stall_ms : STALL_MS;
	h->read_token = options->read_token;
	h->read_words = options->read_words;
	h->arg = options->arg;
	memcpy(h->origin, origin, sizeof(origin));
	if (!h->base_url || (options->cafile && !h->cafile) || (options->proxy && !h->proxy)) {
		http_close(h);
		return -ENOMEM;
	}
	for (size_t len = strlen(h->base_url); len > 0 && h->base_url[len - 1] == '/'; len--)
		h->base_url[len - 1] = '\0';
	*ret = h;
	return 0;
}

void http_close(struct http *h)
{
	if (!h)
		return;
	for (struct handle *next; h->idle; h->idle = next) {
		next = h->idle->next;
		handle_free(h->idle);
	}
	if (h->share)
		curl_share_cleanup(h->share);
	for (int i = 0; i < CURL_LOCK_DATA_LAST; i++)
		pthread_mutex_destroy(&h->share_locks[i]);
	secret_free(h->token);
	pthread_mutex_destroy(&h->pool_lock);
	pthread_mutex_destroy(&h->token_lock);
	pthread_cond_destroy(&h->token_moved);
	free(h->base_url);
	free(h->cafile);
	free(h->proxy);
	free(h);
}
