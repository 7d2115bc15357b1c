/* Counters; see metrics.h. One lock for all: a request takes milliseconds, and what memory answers is counted by atomics. */
#include "client/base/metrics.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "client/base/cleanup.h"

enum { KINDS_MAX = 128, METHOD_BYTES = 8, STEPS = 10 };

/* Requests of one kind and outcome. */
struct kind {
	const char *to;
	char method[METHOD_BYTES];
	int status;
	uint64_t count;
};

/* How long requests to one place took. */
struct times {
	const char *to;
	uint64_t at_most[STEPS], count, sum_ms, sent_bytes, received_bytes;
};

static const int64_t step_ms[STEPS] = { 10, 25, 50, 100, 250, 500, 1000, 2500, 10000, 60000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static struct kind kinds[KINDS_MAX];                     /* the last one takes what does not fit any more */
static int kind_count;
static struct times times[2] = { { .to = "api" }, { .to = "storage" } };

static _Atomic uint64_t answers[METRICS_CACHES][2];

static struct kind *find_kind(const char *to, const char *method, int status)
{
	for (int i = 0; i < kind_count; i++) {
		if (kinds[i].status == status && strcmp(kinds[i].to, to) == 0 && strcmp(kinds[i].method, method) == 0)
			return &kinds[i];
	}
	if (kind_count == KINDS_MAX)
		return &kinds[KINDS_MAX - 1];
	struct kind *k = &kinds[kind_count++];
	k->to = to;
	k->status = status;
	memcpy(k->method, method, strlen(method) + 1);
	return k;
}

void metrics_count_request(const char *to, const char *method, int status, int64_t took_ms, int64_t sent_bytes,
			   int64_t received_bytes)
{
	struct times *t = &times[strcmp(to, times[1].to) == 0];
	SCOPED_LOCK(&lock);

	find_kind(to, strlen(method) < METHOD_BYTES ? method : "other", status)->count++;
	for (int i = 0; i < STEPS; i++)
		t->at_most[i] += took_ms <= step_ms[i];
	t->count++;
	t->sum_ms += (uint64_t)(took_ms > 0 ? took_ms : 0);
	t->sent_bytes += (uint64_t)(sent_bytes > 0 ? sent_bytes : 0);
	t->received_bytes += (uint64_t)(received_bytes > 0 ? received_bytes : 0);
}

void metrics_count_answer(enum metrics_cache cache, bool is_hit)
{
	atomic_fetch_add_explicit(&answers[cache][is_hit], 1, memory_order_relaxed);
}

static void print_requests(struct buf *ret)
{
	buf_add(ret,
		"# HELP sessionfs_requests_total Requests to the service that have ended; status 0: no answer came.\n"
		"# TYPE sessionfs_requests_total counter\n");
	for (int i = 0; i < kind_count; i++)
		buf_addf(ret, "sessionfs_requests_total{to=\"%s\",method=\"%s\",status=\"%d\"} %" PRIu64 "\n",
			 kinds[i].to, kinds[i].method, kinds[i].status, kinds[i].count);
}

static void print_times(struct buf *ret)
{
	buf_add(ret, "# HELP sessionfs_request_seconds From sending a request to the end of its answer.\n"
		     "# TYPE sessionfs_request_seconds histogram\n");
	for (int i = 0; i < 2; i++) {
		const struct times *t = &times[i];
		for (int n = 0; n < STEPS; n++)
			buf_addf(ret, "sessionfs_request_seconds_bucket{to=\"%s\",le=\"%g\"} %" PRIu64 "\n", t->to,
				 (double)step_ms[n] / 1000, t->at_most[n]);
		buf_addf(ret, "sessionfs_request_seconds_bucket{to=\"%s\",le=\"+Inf\"} %" PRIu64 "\n", t->to, t->count);
		buf_addf(ret, "sessionfs_request_seconds_sum{to=\"%s\"} %.3f\n", t->to, (double)t->sum_ms / 1000);
		buf_addf(ret, "sessionfs_request_seconds_count{to=\"%s\"} %" PRIu64 "\n", t->to, t->count);
	}
	buf_add(ret, "# HELP sessionfs_bytes_total Bytes of bodies sent and received.\n# TYPE sessionfs_bytes_total "
		     "counter\n");
	for (int i = 0; i < 2; i++)
		buf_addf(ret,
			 "sessionfs_bytes_total{to=\"%s\",direction=\"sent\"} %" PRIu64 "\n"
			 "sessionfs_bytes_total{to=\"%s\",direction=\"received\"} %" PRIu64 "\n",
			 times[i].to, times[i].sent_bytes, times[i].to, times[i].received_bytes);
}

void metrics_print(struct buf *ret)
{
	static const char *const names[METRICS_CACHES] = { "listings", "content" };

	pthread_mutex_lock(&lock);
	print_requests(ret);
	print_times(ret);
	pthread_mutex_unlock(&lock);
	buf_add(ret, "# HELP sessionfs_answers_total Folders opened and documents read, by whether what is remembered "
		     "answered.\n"
		     "# TYPE sessionfs_answers_total counter\n");
	for (int i = 0; i < METRICS_CACHES; i++)
		buf_addf(ret,
			 "sessionfs_answers_total{of=\"%s\",result=\"miss\"} %" PRIu64 "\n"
			 "sessionfs_answers_total{of=\"%s\",result=\"hit\"} %" PRIu64 "\n",
			 names[i], atomic_load(&answers[i][0]), names[i], atomic_load(&answers[i][1]));
}
