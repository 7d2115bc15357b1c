/* A backend that remembers another backend's answers.
 *
 * - A listing is remembered for ttl; while one caller asks, the others wait for its answer (single flight), each no longer
 *   than its own deadline: who leaves does not end the flight, whose answer is remembered all the same. A caller does not
 *   wait for a flight of lesser urgency. backend_recall_documents() answers from memory or the disk, and asks nobody.
 * - What this mount wrote is seen at once: a write's answer is applied to what is remembered, and to a listing that was
 *   asked for before the write and arrives after it. A write whose outcome is unknown makes the answer it overtook
 *   worthless: that one is asked again. What was remembered before it is served by recall with max_age_ms -1 alone.
 * - 404 is remembered too, for ttl; 401 forgets everything, 403 to a question what was asked about. When the service is
 *   away (FAULT_AWAY, FAULT_BUDGET) what is remembered goes on being served by recall up to `stale`.
 * - Sessions and the list of them are remembered for ttl likewise; all other calls are the inner backend's.
 *   A session's record that shows the listing in memory to be as it was makes that as fresh as the record is; and where that is longer
 *   than a page, whoever wants it waits for a record on its way.
 * - At most listings_max listings and bytes_max bytes of them (estimated); the least lately used goes first.
 * - A listing of more than one page that goes on being refreshed is asked for in full (call->is_sweep) an hour after it
 *   last was, or later the larger it is: in the background, one session at a time, waited for by nobody.
 * - With a folder, listings outlive us: what is on the disk for this account is recalled, and known when it is asked for
 *   anew, but never fresh. 404, and what makes us forget (401, 403), hold on the disk as well. An answer during which the
 *   token changed is not kept there.
 * call->on_page and on_session run on the caller's own thread, for the caller that started the flight and for those who
 * joined it (from the page then at hand); not when memory answers. Threads: any. Time is handed in through now_ms so
 * that a test can turn the clock; deadlines are on clock_now_ms()'s scale always. */
#pragma once

#include "client/backend.h"

struct cache_options {
	int64_t ttl_ms, stale_ms;
	int listings_max;        /* 0: 1024 */
	int64_t bytes_max;       /* 0: 256 MiB */
	int64_t (*now_ms)(void); /* NULL: clock_now_ms */
	const char *dir;         /* where listings outlive us; NULL: nowhere */
	const char *account;     /* with dir: whose they are until the inner backend has read credentials; 64 hex digits */
};

/* On success the cache owns inner: backend_close(*ret) closes both, after all calls have returned; flights nobody waits
 * for any more are cancelled. On failure inner stays the caller's. */
int cache_wrap(struct backend *inner, const struct cache_options *options, struct backend **ret);
