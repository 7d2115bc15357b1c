/* One document at a time: its bytes, its removal, its copies in other queues. */
#include "client/rossum_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/common.h"

/* ---- single documents -------------------------------------------------------------------------------------- */

static int no_document(struct call *call)
{
	return rossum_fail(call, FAULT_GONE, -ENOENT, "this cannot be the id of an annotation");
}

/* Which document an annotation shows now. */
static int ask_document_id(struct rossum *s, struct call *call, const char *annotation_id, struct json_id *ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;

	buf_addf(&path, "/annotations/%s", annotation_id);
	int r = rossum_get_json(s, call, buf_text(&path), &body);
	if (r < 0)
		return r;
	if (!rossum_ref_in(body, "document", ret))
		return rossum_fail(call, FAULT_GONE, -ENOENT, "the annotation has no document any more");
	link_note(s, annotation_id, ret->text, NULL);
	return 0;
}

/* Where the service sent us on to: with the token if that is the service itself, else without. */
static int get_content_at(struct rossum *s, struct call *call, const char *location, struct content *c)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	bool is_ours = http_path_of(s->http, location, &path) == 0;
	const struct http_request q = { .target = is_ours ? HTTP_API : HTTP_STORAGE,
					.method = "GET",
					.path = is_ours ? buf_text(&path) : NULL,
					.url = is_ours ? NULL : location,
					.answer_fd = c->fd,
					.wants_size = !c->fd,
					.is_long = true };
	int r = http_do(s->http, call, &q, &reply);

	c->size_bytes = reply.size_bytes;
	return r;
}

int rossum_get_content(struct rossum *s, struct call *call, const char *document_id, struct content *c)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };

	buf_addf(&path, "/documents/%s/content", document_id);
	/* A redirect is no failure here, so what is one is told by us. */
	const struct http_request q = { .method = "GET",
					.path = buf_text(&path),
					.answer_fd = c->fd,
					.wants_size = !c->fd,
					.is_long = true,
					.accepts_any = true };
	int r = q.path ? rossum_ask(s, call, &q, &reply) : call_no_memory(call);
	if (r < 0 && reply.location)
		return get_content_at(s, call, reply.location, c);
	if (r < 0 && call->fault.kind != FAULT_GONE && call->fault.kind != FAULT_CANCELED &&
	    call->fault.kind != FAULT_BUDGET)
		log_warning("rossum: GET %s: %s", q.path ? q.path : "", call->fault.words);
	c->size_bytes = reply.size_bytes;
	return r;
}

static int get_annotation_content(struct rossum *s, struct call *call, const char *annotation_id, struct content *c)
{
	struct json_id room, unused;
	const char *known, *upload;
	int r;

	if (!rossum_is_digits(annotation_id))
		return no_document(call);
	link_look(s, annotation_id, &room, &unused, &known, &upload);
	if (known) {
		r = rossum_get_content(s, call, known, c);
		if (r == 0 || call->fault.kind != FAULT_GONE)
			return r;
	}
	/* Pages edited in place give an annotation another document: it is asked before 404 is believed. */
	r = ask_document_id(s, call, annotation_id, &room);
	return r < 0 ? r : rossum_get_content(s, call, room.text, c);
}

int rossum_fetch_document(struct backend *b, struct call *call, const char *session_id, const char *document_id, int fd)
{
	struct content c = { .fd = &fd };

	return get_annotation_content(rossum_from(b), call, document_id, &c);
}

/* No request tells a size alone: Content-Length is read, and the connection closed on what follows. */
int rossum_measure_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
			    int64_t *ret_bytes)
{
	struct content c = { 0 };
	int r = get_annotation_content(rossum_from(b), call, document_id, &c);

	if (r == 0)
		*ret_bytes = c.size_bytes;
	return r;
}

/* An annotation that was moved meanwhile is somebody else's to delete, and one that is deleted already is not there. */
static int check_is_in_queue(struct rossum *s, struct call *call, const char *queue_id, const char *annotation_id)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;
	struct json_id room;

	buf_addf(&path, "/annotations/%s", annotation_id);
	int r = rossum_get_json(s, call, buf_text(&path), &body);
	if (r < 0)
		return r;
	const char *queue = rossum_ref_in(body, "queue", &room);
	if (rossum_is_hidden(body) || (queue && strcmp(queue, queue_id) != 0))
		return rossum_fail(call, FAULT_GONE, -ENOENT, "it is not in this queue any more");
	return 0;
}

int rossum_detach(struct backend *b, struct call *call, const char *session_id, const char *document_id)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };

	if (!rossum_is_digits(document_id))
		return no_document(call);
	int r = check_is_in_queue(s, call, session_id, document_id);
	if (r < 0)
		return r;
	/* Into the service's bin, where it can be taken out again; never DELETE, never purge. */
	buf_addf(&path, "/annotations/%s/delete", document_id);
	const struct http_request q = { .method = "POST",
					.path = buf_text(&path),
					.ability = "the right to delete in this queue" };
	return q.path ? rossum_ask(s, call, &q, &reply) : call_no_memory(call);
}

/* ---- copies ------------------------------------------------------------------------------------------------ */

static void doubt_note(struct rossum *s, const char *queue_id, const char *annotation_id)
{
	struct doubt *d = calloc(1, sizeof(*d));

	if (!d)
		return;
	d->queue_id = strdup(queue_id);
	d->annotation_id = strdup(annotation_id);
	d->asked_wall_ms = clock_wall_ms();
	if (!d->queue_id || !d->annotation_id) {
		free(d->queue_id);
		free(d->annotation_id);
		free(d);
		return;
	}
	SCOPED_LOCK(&s->lock);
	d->next = s->doubts;
	s->doubts = d;
}

/* Takes the oldest out; false: no copy of that kind is in doubt. */
static bool doubt_take(struct rossum *s, const char *queue_id, const char *annotation_id, int64_t *ret_wall_ms)
{
	SCOPED_LOCK(&s->lock);

	for (struct doubt **at = &s->doubts; *at; at = &(*at)->next) {
		struct doubt *d = *at;

		if (strcmp(d->queue_id, queue_id) != 0 || strcmp(d->annotation_id, annotation_id) != 0)
			continue;
		*ret_wall_ms = d->asked_wall_ms;
		*at = d->next;
		free(d->queue_id);
		free(d->annotation_id);
		free(d);
		return true;
	}
	return false;
}

/* A copy that was asked for, and whose answer was lost, may be there: its id, or -ENOENT. */
static int find_copy(struct rossum *s, struct call *call, const char *queue_id, const char *annotation_id,
		     int64_t since_wall_ms, struct json_id *ret)
{
	CLEANUP(pages_release) struct pages pages = PAGES;
	CLEANUP(json_release) cJSON *body = NULL;
	const cJSON *results = NULL, *item;
	struct json_id document, room;
	char further[64];
	int r = ask_document_id(s, call, annotation_id, &document);

	if (r < 0)
		return r;
	snprintf(further, sizeof(further), "&document=%s", document.text);
	rossum_annotations_path(&pages.path, queue_id, further);
	r = pages_next(s, call, &pages, &body, &results);
	if (r < 0)
		return r;
	cJSON_ArrayForEach (item, results) {
		int64_t created_ms = rossum_time_of(item, "created_at");
		const char *id = rossum_own_id(item, &room);

		if (id && strcmp(id, annotation_id) != 0 && !rossum_is_hidden(item) &&
		    created_ms >= since_wall_ms - SKEW_MS) {
			*ret = room;
			return 0;
		}
	}
	return -ENOENT;
}

static int post_copy(struct rossum *s, struct call *call, const char *queue_id, const char *annotation_id,
		     struct json_id *ret)
{
	CLEANUP(buf_release)
	struct buf path = BUF(PATH_BYTES_MAX), text = BUF(BODY_BYTES_MAX), url = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;

	buf_addf(&path, "/annotations/%s/copy", annotation_id);
	buf_addf(&url, "%s/queues/%s", s->base_url, queue_id);
	buf_add(&text, "{\"target_queue\":");
	json_add_quoted(&text, buf_text(&url) ? buf_text(&url) : "");
	buf_add(&text, "}");
	const struct http_request q = { .method = "POST",
					.path = buf_text(&path),
					.body = buf_text(&text),
					.ability = "the right to copy between these queues" };
	if (!q.body || url.failed)
		return call_no_memory(call);
	int r = rossum_ask_json(s, call, &q, &body);
	if (r < 0 && call->fault.may_have_happened)
		doubt_note(s, queue_id, annotation_id);
	if (r == -EINVAL || r == -EBUSY)
		return -EXDEV; /* not from there to here, by whatever rule */
	if (r < 0)
		return r;
	if (!rossum_ref_in(body, "annotation", ret)) {
		doubt_note(s, queue_id, annotation_id);
		return rossum_unreadable(s, call, &q, "this does not name a copy", -EPROTO);
	}
	return 0;
}

static int add_copy(struct rossum *s, struct call *call, const char *queue_id, const char *annotation_id,
		    struct listing_builder *builder)
{
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(sideload_release) struct sideload documents = { 0 };
	const cJSON *results = NULL, *item;
	struct json_id copy;
	int64_t since_wall_ms;
	int r = -ENOENT;

	if (doubt_take(s, queue_id, annotation_id, &since_wall_ms)) {
		r = find_copy(s, call, queue_id, annotation_id, since_wall_ms, &copy);
		if (r < 0 && r != -ENOENT) {
			doubt_note(s, queue_id, annotation_id);
			return r;
		}
	}
	if (r < 0)
		r = post_copy(s, call, queue_id, annotation_id, &copy);
	if (r < 0)
		return r;
	r = rossum_get_annotations(s, call, queue_id, copy.text, &body, &results, &documents);
	item = r == 0 && results ? results->child : NULL;
	if (item)
		r = rossum_add_document(s, builder, item, sideload_find(&documents, item), true);
	if (r == 0 && item)
		return 0;
	/* It was made; the next attempt finds it. */
	doubt_note(s, queue_id, annotation_id);
	if (call->fault.kind == FAULT_NONE)
		call->fault.kind = FAULT_AWAY;
	call->fault.may_have_happened = true;
	return r < 0 ? r : -EPROTO;
}

int rossum_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
		  const char *const *document_ids, int count, struct listing **ret)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(listing_builder_release) struct listing_builder *builder = listing_builder_new(s->scratch_dir);
	int64_t asked_ms = clock_now_ms();

	if (!builder)
		return call_no_memory(call);
	if (!rossum_is_digits(session_id))
		return rossum_fail(call, FAULT_GONE, -ENOENT, "this cannot be the id of a queue");
	for (int i = 0; i < count; i++) {
		int r = rossum_is_digits(document_ids[i]) ? add_copy(s, call, session_id, document_ids[i], builder)
							  : no_document(call);

		if (r < 0)
			return r;
	}
	return listing_builder_take(&builder, asked_ms, clock_wall_ms(), ret);
}
