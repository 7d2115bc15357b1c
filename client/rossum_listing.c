/* What is in a queue. It is walked page by page, unless its counts by status show that little or nothing has changed. */
#include "client/rossum_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/common.h"

enum {
	IDLE_PAGES_MAX = 3,
	FULL_WALK_MS = 5 * 60 * 1000, /* counts cannot see a swap: after this a listing is walked whole */
	MISLED_MAX = 2,               /* counts that disagree with a full walk so often are not asked again */
	COUNTS_MAX = 24,
};

static struct memo *memo_of(struct rossum *s, const char *queue_id)
{
	struct memo *m = s->memos;

	while (m && strcmp(m->queue_id, queue_id) != 0)
		m = m->next;
	if (m)
		return m;
	m = calloc(1, sizeof(*m));
	if (!m || !(m->queue_id = strdup(queue_id))) {
		free(m);
		return NULL;
	}
	m->next = s->memos;
	s->memos = m;
	return m;
}

/* How many annotations there are of each status. */
struct counts {
	struct {
		char status[24];
		int64_t count;
	} rows[COUNTS_MAX];
	int used;
	bool is_full; /* there are more statuses than room: nothing can be concluded */
};

static void counts_add(struct counts *c, const char *status)
{
	int i = 0;

	if (!status || strlen(status) >= sizeof(c->rows[0].status))
		return;
	while (i < c->used && strcmp(c->rows[i].status, status) != 0)
		i++;
	if (i == COUNTS_MAX) {
		c->is_full = true;
		return;
	}
	if (i == c->used) {
		snprintf(c->rows[i].status, sizeof(c->rows[i].status), "%s", status);
		c->used++;
	}
	c->rows[i].count++;
}

/* Compares what the queue says of its statuses with what we show; statuses that are hidden, or that the service leaves
 * out of its counts, tell nothing. */
static bool counts_agree(const struct counts *ours, const cJSON *theirs)
{
	const cJSON *row;
	int compared = 0;

	if (!cJSON_IsObject(theirs) || ours->is_full)
		return false;
	cJSON_ArrayForEach (row, theirs) {
		int64_t shown = 0;

		if (!cJSON_IsNumber(row) || !row->string || rossum_status_is_hidden(row->string))
			continue;
		for (int i = 0; i < ours->used; i++) {
			if (strcmp(ours->rows[i].status, row->string) == 0)
				shown = ours->rows[i].count;
		}
		if (row->valuedouble != (double)shown)
			return false;
		compared++;
	}
	return compared > 0;
}

static void counts_of(const struct listing *l, struct counts *ret, bool *ret_is_moving)
{
	*ret = (struct counts){ 0 };
	*ret_is_moving = false;
	for (int i = 0; i < listing_count(l); i++) {
		struct document doc;

		listing_get(l, i, &doc);
		counts_add(ret, doc.status);
		*ret_is_moving = *ret_is_moving || doc.state == STATE_PROCESSING;
	}
}

/* One pass over the annotations of a queue. */
struct walk {
	struct rossum *s;
	struct call *call;
	const char *queue_id;
	struct listing_builder *shown;
	struct listing_builder *all; /* the hidden ones too, by id alone: what vanished from here was not just hidden */
	int idle;                    /* pages in a row that brought nothing new */
	int pages;
};

static void walk_release(struct walk *w)
{
	listing_builder_free(w->shown);
	listing_builder_free(w->all);
	w->shown = w->all = NULL;
}

const char *rossum_annotations_path(struct buf *path, const char *queue_id, const char *further)
{
	buf_clear(path);
	buf_add(path, "/annotations?queue=");
	buf_add_escaped(path, queue_id);
	buf_addf(path, "&sideload=documents&page_size=%d%s", PAGE, further);
	return buf_text(path);
}

/* Somebody is waiting for names; a page is a listing of its own, without records. */
static int show_page(struct walk *w, const cJSON *results, const struct sideload *documents, int64_t asked_ms)
{
	CLEANUP(listing_builder_release) struct listing_builder *builder = NULL;
	CLEANUP(listing_release) struct listing *page = NULL;
	const cJSON *item;
	int r = 0;

	if (!w->call->on_page)
		return 0;
	builder = listing_builder_new(NULL);
	if (!builder)
		return -ENOMEM;
	cJSON_ArrayForEach (item, results) {
		if (r == 0 && !rossum_is_hidden(item))
			r = rossum_add_document(w->s, builder, item, sideload_find(documents, item), false);
	}
	if (r < 0)
		return r;
	r = listing_builder_take(&builder, asked_ms, clock_wall_ms(), &page);
	if (r == 0)
		w->call->on_page(w->call->on_page_arg, page);
	return r;
}

static int read_page(struct walk *w, const cJSON *body, const cJSON *results, int64_t asked_ms)
{
	CLEANUP(sideload_release) struct sideload documents = { 0 };
	int before = listing_builder_count(w->all), r = sideload_read(body, &documents);
	const cJSON *item;

	cJSON_ArrayForEach (item, results) {
		struct json_id room;
		const struct document bare = { .id = rossum_own_id(item, &room),
					       .size_bytes = -1,
					       .created_ms = -1,
					       .pages = -1,
					       .parsing.updated_ms = -1 };

		if (r == 0 && !bare.id)
			r = -EPROTO;
		if (r == 0)
			r = listing_builder_add(w->all, &bare, NULL);
		if (r == 0 && !rossum_is_hidden(item))
			r = rossum_add_document(w->s, w->shown, item, sideload_find(&documents, item), true);
	}
	if (r == 0)
		r = show_page(w, results, &documents, asked_ms);
	w->idle = listing_builder_count(w->all) > before ? 0 : w->idle + 1;
	w->pages++;
	return r;
}

static int page_unreadable(struct walk *w, int error)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	const struct http_request q = { .method = "GET", .path = rossum_annotations_path(&path, w->queue_id, "") };

	return rossum_unreadable(w->s, w->call, &q, "this is not a page of annotations", error);
}

static int walk_begin(struct walk *w)
{
	w->shown = listing_builder_new(w->s->scratch_dir);
	w->all = listing_builder_new(NULL);
	return w->shown && w->all ? 0 : call_no_memory(w->call);
}

/* Oldest first, so that newcomers land at the end. */
static int walk_pages(struct walk *w, int64_t asked_ms)
{
	CLEANUP(pages_release) struct pages pages = PAGES;
	int r = walk_begin(w);

	if (r < 0)
		return r;
	rossum_annotations_path(&pages.path, w->queue_id, "&ordering=created_at");
	for (;;) {
		CLEANUP(json_release) cJSON *body = NULL;
		const cJSON *results = NULL;

		r = pages_next(w->s, w->call, &pages, &body, &results);
		if (r <= 0)
			return r;
		r = read_page(w, body, results, asked_ms);
		if (r < 0)
			return page_unreadable(w, r);
		if (w->idle >= IDLE_PAGES_MAX)
			return 0;
	}
}

int rossum_get_annotations(struct rossum *s, struct call *call, const char *queue_id, const char *ids, cJSON **ret,
			   const cJSON **ret_results, struct sideload *ret_documents)
{
	CLEANUP(buf_release) struct buf further = BUF(PATH_BYTES_MAX / 2);
	CLEANUP(pages_release) struct pages pages = PAGES;

	buf_addf(&further, "&id=%s", ids);
	if (!buf_text(&further) || !rossum_annotations_path(&pages.path, queue_id, buf_text(&further)))
		return call_no_memory(call);
	int r = pages_next(s, call, &pages, ret, ret_results);
	if (r < 0)
		return r;
	return sideload_read(*ret, ret_documents) < 0 ? call_no_memory(call) : 0;
}

/* Pages are no snapshot: what left an early page while we read a later one moved another over the edge, unseen. Whoever
 * was here before and is in no page, not even as deleted, is asked for by id. */
static int walk_missing(struct walk *w, struct listing *known)
{
	CLEANUP(listing_release) struct listing *all = NULL;
	CLEANUP(buf_release) struct buf ids = BUF(PATH_BYTES_MAX / 4);
	struct listing_builder *given = w->all;
	int missing = 0, r;

	w->all = NULL;
	r = listing_builder_finish(given, 0, 0, &all);
	if (r < 0)
		return call_no_memory(w->call);
	for (int i = 0; known && w->pages > 1 && i < listing_count(known); i++) {
		struct document doc;

		listing_get(known, i, &doc);
		if (listing_find(all, doc.id) >= 0)
			continue;
		if (++missing > IDS_MAX)
			return 0; /* so many did not slip between two pages */
		buf_addf(&ids, "%s%s", ids.len ? "," : "", doc.id);
	}
	if (missing == 0)
		return 0;
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(sideload_release) struct sideload documents = { 0 };
	const cJSON *results = NULL, *item;
	r = rossum_get_annotations(w->s, w->call, w->queue_id, buf_text(&ids), &body, &results, &documents);
	cJSON_ArrayForEach (item, results) {
		if (r == 0 && !rossum_is_hidden(item))
			r = rossum_add_document(w->s, w->shown, item, sideload_find(&documents, item), true);
	}
	return r;
}

static bool documents_are_equal(const struct document *a, const struct document *b)
{
	for (int i = 0; i < DOCUMENT_EXTRA_MAX; i++) {
		if (!text_is_equal(a->extra[i][0], b->extra[i][0]) || !text_is_equal(a->extra[i][1], b->extra[i][1]))
			return false;
	}
	return strcmp(a->id, b->id) == 0 && text_is_equal(a->filename, b->filename) &&
	       text_is_equal(a->status, b->status) && text_is_equal(a->sha256, b->sha256) &&
	       a->size_bytes == b->size_bytes && a->created_ms == b->created_ms && text_is_equal(a->mime, b->mime) &&
	       a->pages == b->pages && text_is_equal(a->error, b->error);
}

/* Every document of `part` is in `whole`, in the same condition. */
static bool listing_holds(const struct listing *whole, const struct listing *part)
{
	for (int i = 0; i < listing_count(part); i++) {
		struct document one, other;

		listing_get(part, i, &one);
		int at = listing_find(whole, one.id);
		if (at < 0)
			return false;
		listing_get(whole, at, &other);
		if (!documents_are_equal(&one, &other))
			return false;
	}
	return true;
}

/* What one page of the newest has that `known` has not: hidden ones to be taken out, others to be put in. */
static int patch_newest(struct walk *w, const cJSON *body, const cJSON *results, struct listing **known,
			int64_t asked_ms, bool *ret_is_old_news)
{
	CLEANUP(sideload_release) struct sideload documents = { 0 };
	CLEANUP(listing_release) struct listing *page = NULL;
	CLEANUP(listing_release) struct listing *patched = NULL;
	CLEANUP(listing_builder_release) struct listing_builder *builder = listing_builder_new(w->s->scratch_dir);
	struct json_id rooms[PAGE];
	const char *without[PAGE];
	const cJSON *item;
	int gone = 0, r = builder ? sideload_read(body, &documents) : -ENOMEM;

	cJSON_ArrayForEach (item, results) {
		const char *id = gone < PAGE ? rossum_own_id(item, &rooms[gone]) : NULL;

		if (r == 0 && !rossum_is_hidden(item))
			r = rossum_add_document(w->s, builder, item, sideload_find(&documents, item), true);
		else if (r == 0 && id && listing_find(*known, id) >= 0)
			gone++;
	}
	for (int i = 0; i < gone; i++)
		without[i] = rooms[i].text;
	if (r == 0)
		r = listing_builder_take(&builder, asked_ms, clock_wall_ms(), &page);
	if (r < 0)
		return r;
	*ret_is_old_news = gone == 0 && listing_holds(*known, page);
	if (*ret_is_old_news)
		return 0;
	r = listing_patch(*known, without, gone, page, &patched);
	if (r < 0)
		return r;
	listing_unref(*known);
	*known = patched;
	patched = NULL;
	return 0;
}

/* Newest first, until a page brings nothing we do not know. */
static int walk_newest(struct walk *w, int64_t asked_ms, struct listing **known)
{
	CLEANUP(pages_release) struct pages pages = PAGES;
	bool is_old_news = false;
	int r = 1, asked = 0;

	rossum_annotations_path(&pages.path, w->queue_id, "&ordering=-created_at");
	while (r > 0 && !is_old_news && asked++ < 10) {
		CLEANUP(json_release) cJSON *body = NULL;
		const cJSON *results = NULL;

		r = pages_next(w->s, w->call, &pages, &body, &results);
		if (r <= 0)
			return r;
		int patched = patch_newest(w, body, results, known, asked_ms, &is_old_news);
		if (patched < 0)
			return page_unreadable(w, patched);
	}
	return 0;
}

static void tell_session(struct call *call, const cJSON *body)
{
	CLEANUP(session_release) struct session seen = { 0 };

	if (call->on_session && rossum_read_queue(body, &seen) == 0)
		call->on_session(call->on_session_arg, &seen);
}

/* May the queue's counts stand for a walk? The one place of that decision: they see no swap that leaves them equal, so
 * a whole walk comes at least every FULL_WALK_MS; what fits into one page is as cheap to ask in full; and a service
 * whose counts were seen to disagree with its own list is not asked for them again. */
static bool counts_may_do(struct rossum *s, const char *queue_id, const struct listing *known)
{
	SCOPED_LOCK(&s->lock);
	const struct memo *m = known && listing_count(known) > PAGE ? memo_of(s, queue_id) : NULL;

	return m && m->walked_ms && clock_now_ms() < m->walked_ms + FULL_WALK_MS && m->misled < MISLED_MAX;
}

/* 1: *ret is the listing; 0: it has to be walked, and *ret_counts is what the queue said. */
static int list_by_counts(struct walk *w, struct listing *known, cJSON **ret_counts, struct listing **ret)
{
	CLEANUP(listing_release) struct listing *patched = NULL;
	int64_t asked_ms = clock_now_ms(), as_of_wall_ms = clock_wall_ms();
	struct counts ours;
	bool is_moving;
	int r = rossum_get_queue_json(w->s, w->call, w->queue_id, ret_counts);

	if (r < 0)
		return r;
	tell_session(w->call, *ret_counts);
	const cJSON *theirs = rossum_member(*ret_counts, "counts");
	if (!cJSON_IsObject(theirs))
		return 0;
	counts_of(known, &ours, &is_moving);
	if (!is_moving && counts_agree(&ours, theirs)) {
		r = listing_renew(known, asked_ms, as_of_wall_ms, ret);
		return r < 0 ? call_no_memory(w->call) : 1;
	}
	patched = listing_ref(known);
	r = walk_newest(w, asked_ms, &patched);
	if (r < 0)
		return r;
	counts_of(patched, &ours, &is_moving);
	if (!counts_agree(&ours, theirs))
		return 0;
	r = listing_renew(patched, asked_ms, as_of_wall_ms, ret);
	return r < 0 ? call_no_memory(w->call) : 1;
}

static void walked(struct rossum *s, const char *queue_id, const struct listing *l, const cJSON *queue)
{
	const cJSON *theirs = rossum_member(queue, "counts");
	struct counts ours;
	bool is_moving;

	counts_of(l, &ours, &is_moving);
	SCOPED_LOCK(&s->lock);
	struct memo *m = memo_of(s, queue_id);
	if (!m)
		return;
	m->walked_ms = clock_now_ms();
	if (theirs)
		m->misled = counts_agree(&ours, theirs) ? 0 : m->misled + 1;
}

static int walk_whole(struct walk *w, struct listing *known, struct listing **ret)
{
	int64_t asked_ms = clock_now_ms(), as_of_wall_ms = clock_wall_ms();
	int r = walk_pages(w, asked_ms);

	/* A list filtered by a queue that is gone is empty, or refused for it. */
	if ((r == 0 && listing_builder_count(w->all) == 0) || (r < 0 && w->call->fault.kind == FAULT_INVALID)) {
		CLEANUP(json_release) cJSON *queue = NULL;
		struct fault kept = w->call->fault;
		int looked = rossum_get_queue_json(w->s, w->call, w->queue_id, &queue);

		if (looked < 0)
			return looked;
		w->call->fault = kept;
		tell_session(w->call, queue);
	}
	if (r == 0)
		r = walk_missing(w, known);
	if (r < 0)
		return r;
	r = listing_builder_take(&w->shown, asked_ms, as_of_wall_ms, ret);
	return r < 0 ? call_no_memory(w->call) : 0;
}

/* Which upload a document came of is said nowhere but in the answer to that: what an earlier listing has goes on. */
static void take_over(struct rossum *s, struct listing *known)
{
	for (int i = 0; known && i < listing_count(known); i++) {
		struct document doc;

		listing_get(known, i, &doc);
		const char *upload = document_extra(&doc, "upload");
		if (upload)
			link_note(s, doc.id, document_extra(&doc, "document"), upload);
	}
}

int rossum_list_documents(struct backend *b, struct call *call, const char *session_id, struct listing *known,
			  struct listing **ret)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(walk_release) struct walk w = { .s = s, .call = call, .queue_id = session_id };
	CLEANUP(listing_release) struct listing *found = NULL;
	CLEANUP(json_release) cJSON *counts = NULL;
	int r = 0;

	if (!rossum_is_digits(session_id))
		return rossum_fail(call, FAULT_GONE, -ENOENT, "this cannot be the id of a queue");
	take_over(s, known);
	if (counts_may_do(s, session_id, known))
		r = list_by_counts(&w, known, &counts, ret);
	if (r != 0)
		return r < 0 ? r : 0;
	r = walk_whole(&w, known, &found);
	if (r < 0)
		return r;
	walked(s, session_id, found, counts);
	if (known && listing_count(known) == listing_count(found) && listing_holds(known, found))
		return listing_renew(known, listing_asked_ms(found), listing_as_of_wall_ms(found), ret);
	*ret = found;
	found = NULL;
	return 0;
}
