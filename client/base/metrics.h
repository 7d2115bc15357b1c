/* Counters of this process, for .sessionfs/metrics: what went to the service and what memory answered. Any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/base/buf.h"

/* A request that has ended. to: "api" or "storage", literals; status 0: no answer came. */
void metrics_count_request(const char *to, const char *method, int status, int64_t took_ms, int64_t sent_bytes,
			   int64_t received_bytes);

enum metrics_cache { METRICS_LISTINGS, METRICS_CONTENT, METRICS_CACHES };

/* Was it answered from what is remembered? */
void metrics_count_answer(enum metrics_cache cache, bool is_hit);

/* All of them, as lines of Prometheus' text format. */
void metrics_print(struct buf *ret);
