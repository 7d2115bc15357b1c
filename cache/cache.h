/* A backend that remembers another backend's answers.
 *
 * - A listing is remembered for ttl; while one caller asks, the others wait for its answer (single flight), each no longer
 *   than its own deadline. backend_recall_documents() answers from memory and never waits.
 * - What this mount wrote is seen at once: a write's answer is applied to what is remembered, and to a listing that was
 *   asked for before the write and arrives after it. A write whose outcome is unknown makes the answer it overtook
 *   worthless: that one is asked again. (generation)
 * - 404 is remembered too, for ttl; 401 and 403 forget what they concern. When the service is away (FAULT_AWAY,
 *   FAULT_BUDGET) what is remembered goes on being served by recall up to `stale`.
 * - At most listings_max listings and bytes_max bytes of them; the least lately used goes first.
 * Threads: any. Time is handed in through now_ms so that a test can turn the clock. */
#pragma once

#include "client/backend.h"

struct cache_options {
	int64_t ttl_ms, stale_ms;
	int listings_max;           /* 0: 1024 */
	int64_t (*now_ms)(void);    /* NULL: clock_now_ms */
};

/* On success the cache owns inner: backend_close(*ret) closes both. On failure inner stays the caller's. */
int cache_wrap(struct backend *inner, const struct cache_options *options, struct backend **ret);
