/* The steps of an upload: a ticket, the file, what became of it; and whether it is there already.
 *
 * The file is sent once, and the service answers with a task, which becomes an upload, which becomes annotations. */
#include "client/rossum_impl.h"

#include <assert.h>
#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/common.h"

enum {
	POLL_FIRST_MS = 300,
	POLL_MS_MAX = 3000,
	ATTACH_MS = 60 * 1000,
	NO_ANNOTATION_MS = 45 * 1000, /* within a minute, so that a close() still hears of it */
	SETTLE_MS = 10 * 1000,        /* a file whose answer was lost shows in the listing by then, if it was taken */
	SETTLE_LOOK_MS = 2000,
	ATTEMPT_MS = 60 * 60 * 1000,
};

static void attempt_note(struct rossum *s, const char *nonce, int64_t settle_ms, bool is_in_doubt)
{
	SCOPED_LOCK(&s->lock);
	int64_t now = clock_now_ms();
	struct attempt *found = NULL;

	for (struct attempt **at = &s->attempts; *at;) {
		struct attempt *a = *at;

		if (strcmp(a->nonce, nonce) == 0)
			found = a;
		if (a != found && a->sent_ms < now - ATTEMPT_MS) {
			*at = a->next;
			free(a);
			continue;
		}
		at = &a->next;
	}
	if (!found) {
		found = calloc(1, sizeof(*found));
		if (!found)
			return; /* it will be taken for one of an earlier process */
		snprintf(found->nonce, sizeof(found->nonce), "%s", nonce);
		found->next = s->attempts;
		s->attempts = found;
	}
	found->sent_ms = now;
	if (now + settle_ms > found->settles_ms)
		found->settles_ms = now + settle_ms;
	found->is_in_doubt = found->is_in_doubt || is_in_doubt;
}

/* false: this process never sent it. */
static bool attempt_look(struct rossum *s, const char *nonce, struct attempt *ret)
{
	SCOPED_LOCK(&s->lock);

	for (const struct attempt *a = s->attempts; a; a = a->next) {
		if (strcmp(a->nonce, nonce) == 0) {
			*ret = *a;
			return true;
		}
	}
	return false;
}

/* ---- tickets ----------------------------------------------------------------------------------------------- */

/* What must outlive a step, as JSON in one line: { nonce }, and what was learned of the way since. The nonce goes into
 * the metadata, so that whatever becomes of the file can be told from all others of the same bytes. */
struct ticket {
	char nonce[NONCE_BYTES];
	struct json_id task, upload, annotation; /* "" while not known */
	int64_t sent_wall_ms;                    /* 0: not yet */
	int64_t taken_wall_ms;                   /* when its task was seen to have succeeded; 0 */
};

static int ticket_write(struct upload *u, const struct ticket *t)
{
	CLEANUP(buf_release) struct buf text = BUF(1000);

	buf_addf(&text, "{\"nonce\":\"%s\"", t->nonce);
	if (t->task.text[0])
		buf_addf(&text, ",\"task\":\"%s\"", t->task.text);
	if (t->upload.text[0])
		buf_addf(&text, ",\"upload\":\"%s\"", t->upload.text);
	if (t->annotation.text[0])
		buf_addf(&text, ",\"annotation\":\"%s\"", t->annotation.text);
	if (t->sent_wall_ms)
		buf_addf(&text, ",\"sent\":%lld", (long long)t->sent_wall_ms);
	if (t->taken_wall_ms)
		buf_addf(&text, ",\"taken\":%lld", (long long)t->taken_wall_ms);
	buf_add(&text, "}");
	return upload_set_ticket(u, &text);
}

static void read_ticket_id(const cJSON *body, const char *key, struct json_id *ret)
{
	const char *id = rossum_text_of(body, key);

	if (id && rossum_is_digits(id))
		snprintf(ret->text, sizeof(ret->text), "%s", id);
}

static int ticket_read(const char *line, struct ticket *ret)
{
	CLEANUP(json_release) cJSON *body = NULL;

	*ret = (struct ticket){ 0 };
	if (!line || json_parse(line, strlen(line), &body) < 0)
		return -EINVAL;
	const char *nonce = rossum_text_of(body, "nonce");
	if (!nonce || strlen(nonce) != NONCE_BYTES - 1 || strspn(nonce, "0123456789abcdef") != NONCE_BYTES - 1)
		return -EINVAL;
	memcpy(ret->nonce, nonce, NONCE_BYTES);
	read_ticket_id(body, "task", &ret->task);
	read_ticket_id(body, "upload", &ret->upload);
	read_ticket_id(body, "annotation", &ret->annotation);
	const cJSON *sent = rossum_member(body, "sent"), *taken = rossum_member(body, "taken");
	ret->sent_wall_ms = cJSON_IsNumber(sent) ? (int64_t)sent->valuedouble : 0;
	ret->taken_wall_ms = cJSON_IsNumber(taken) ? (int64_t)taken->valuedouble : 0;
	return 0;
}

/* A ticket we cannot read, from another version perhaps, costs a look and a new one. */
static int bad_ticket(struct call *call)
{
	return rossum_fail(call, FAULT_KEY, -EACCES, "what was noted of the upload cannot be read");
}

/* ---- sending ----------------------------------------------------------------------------------------------- */

/* Nothing has to be asked before bytes may be sent. */
int rossum_upload_sign(struct backend *b, struct call *call, struct upload *u)
{
	unsigned char random[(NONCE_BYTES - 1) / 2];
	struct ticket t = { 0 };

	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return rossum_fail(call, FAULT_NONE, -EIO, "no random numbers");
	for (size_t i = 0; i < sizeof(random); i++)
		snprintf(t.nonce + 2 * i, 3, "%02x", random[i]);
	if (ticket_write(u, &t) < 0)
		return call_no_memory(call);
	u->ticket_wall_ms = clock_wall_ms();
	u->step = UPLOAD_SIGNED;
	return 0;
}

static void metadata_print(struct rossum *s, const struct upload *u, const char *nonce, struct buf *ret)
{
	buf_addf(ret,
		 "{\"sessionfs\":{\"size\":%lld,\"sha256\":\"%s\",\"nonce\":\"%s\",\"name\":", (long long)u->size_bytes,
		 u->sha256, nonce);
	json_add_quoted(ret, u->name);
	buf_addf(ret, "}%s}", s->metadata);
}

/* Only a file that may have been taken once asks to be refused a second time: the same file may be wanted in another
 * queue as well, and the service compares with all of them. */
static bool wants_rejection(struct rossum *s, const struct upload *u, const char *nonce)
{
	struct attempt a;

	if (!u->is_retry)
		return false;
	return !attempt_look(s, nonce, &a) || a.is_in_doubt;
}

/* A queue's name, asked for once; NULL: nobody tells. */
static char *queue_name(struct rossum *s, struct call *call, const char *queue_id)
{
	CLEANUP(json_release) cJSON *queue = NULL;
	char *name = NULL;

	if (named_look(s, &s->queues, queue_id, &name))
		return name;
	if (rossum_get_queue_json(s, call, queue_id, &queue) == 0)
		named_note(s, &s->queues, queue);
	(void)named_look(s, &s->queues, queue_id, &name);
	return name;
}

static bool value_is_for(const struct value *v, const char *queue_id, const char *name)
{
	return !v->queue || strcmp(v->queue, queue_id) == 0 || (name && strcmp(v->queue, name) == 0);
}

/* What a queue of its own says goes before what holds for all. */
static bool value_is_overruled(const struct rossum *s, const struct value *v, const char *queue_id, const char *name)
{
	for (int i = 0; !v->queue && i < s->value_count; i++) {
		const struct value *other = &s->values[i];

		if (other->queue && strcmp(other->key, v->key) == 0 && value_is_for(other, queue_id, name))
			return true;
	}
	return false;
}

/* The `values` part for a file into this queue; nothing: there is none. */
static int values_print(struct rossum *s, struct call *call, const char *queue_id, struct buf *ret)
{
	CLEANUP(text_release) char *name = NULL;
	bool wants_name = false;

	for (int i = 0; i < s->value_count; i++)
		wants_name = wants_name || (s->values[i].queue && !rossum_is_digits(s->values[i].queue));
	if (wants_name && !(name = queue_name(s, call, queue_id)))
		return call->fault.kind == FAULT_NONE   ? call_no_memory(call)
		       : call->fault.kind == FAULT_GONE ? -ENOENT
							: -EIO;
	for (int i = 0; i < s->value_count; i++) {
		const struct value *v = &s->values[i];
		CLEANUP(buf_release) struct buf key = BUF(BODY_BYTES_MAX);

		if (!value_is_for(v, queue_id, name) || value_is_overruled(s, v, queue_id, name))
			continue;
		buf_addf(&key, "upload:%s", v->key);
		buf_add(ret, ret->len ? "," : "{");
		json_add_quoted(ret, buf_text(&key) ? buf_text(&key) : "");
		buf_add(ret, ":");
		json_add_quoted(ret, v->text);
	}
	buf_add(ret, ret->len ? "}" : "");
	return ret->failed ? call_no_memory(call) : 0;
}

/* basic: the header that stands for the token; NULL: the token does. */
static int post_file(struct rossum *s, struct call *call, const struct upload *u, const char *nonce, const char *basic,
		     struct http_reply *ret)
{
	CLEANUP(buf_release)
	struct buf path = BUF(PATH_BYTES_MAX), metadata = BUF(METADATA_BYTES_MAX), values = BUF(BODY_BYTES_MAX);
	const struct http_source source = { .fd = u->fd, .size_bytes = u->size_bytes };
	const char *headers[3] = { basic };

	buf_add(&path, "/uploads");
	if (s->is_raw) {
		buf_add(&path, "/");
		buf_add_escaped(&path, u->name);
		headers[basic ? 1 : 0] = "Content-Type: application/octet-stream";
	}
	buf_addf(&path, "?queue=%s%s", u->session_id, wants_rejection(s, u, nonce) ? "&reject_identical=true" : "");
	metadata_print(s, u, nonce, &metadata);
	int r = values_print(s, call, u->session_id, &values);
	if (r < 0)
		return r;
	const struct http_part parts[] = {
		{ .name = "content", .filename = u->name, .mime = "application/octet-stream" },
		{ .name = "metadata", .text = buf_text(&metadata), .mime = "application/json" },
		{ .name = values.len ? "values" : NULL,
		  .text = values.len ? buf_text(&values) : NULL,
		  .mime = "application/json" },
		{ .name = NULL },
	};
	const struct http_request q = { .method = "POST",
					.path = buf_text(&path),
					.headers = headers,
					.source = &source,
					.parts = s->is_raw ? NULL : parts,
					.is_anonymous = basic != NULL,
					.is_long = true,
					.ability = "the right to upload into this queue" };
	if (!q.path)
		return call_no_memory(call);
	if (!s->is_raw && metadata.failed)
		return rossum_fail(call, FAULT_INVALID, -EINVAL, "the metadata would be larger than 4096 bytes");
	return rossum_ask(s, call, &q, ret);
}

/* Sends with the token, or, while the login that makes one is throttled, with the password itself: this one route takes
 * it. */
static int send_file(struct rossum *s, struct call *call, const struct upload *u, const char *nonce,
		     struct http_reply *ret)
{
	bool is_throttled = login_is_throttled(s);
	int r = -EAGAIN;

	if (!is_throttled || http_token_number(s->http) > 0) {
		r = post_file(s, call, u, nonce, NULL, ret);
		if (r == 0 || !login_is_throttled(s) ||
		    (call->fault.kind != FAULT_BUDGET && call->fault.kind != FAULT_ACCOUNT))
			return r;
		http_reply_release(ret);
	}
	CLEANUP(buf_release) struct buf basic = BUF(BODY_BYTES_MAX * 2);
	if (login_basic_header(s, &basic) < 0)
		return is_throttled && r == -EAGAIN ? post_file(s, call, u, nonce, NULL, ret) : r;
	r = post_file(s, call, u, nonce, buf_text(&basic), ret);
	explicit_bzero(basic.data, basic.len);
	return r;
}

/* { url: task }; the older route told annotation and document at once. */
static int read_sent(const char *body, size_t body_bytes, struct ticket *t)
{
	CLEANUP(json_release) cJSON *answer = NULL;
	const char *url;

	if (json_parse(body, body_bytes, &answer) < 0)
		return -EPROTO;
	url = rossum_text_of(answer, "url");
	if (url && rossum_ref_is(url, "uploads"))
		return rossum_ref_text(url, &t->upload) ? 0 : -EPROTO;
	if (url && rossum_ref_text(url, &t->task))
		return 0;
	const cJSON *results = rossum_member(answer, "results");
	const cJSON *first = cJSON_IsArray(results) && results->child ? results->child : answer;
	return rossum_ref_in(first, "annotation", &t->annotation) ? 0 : -EPROTO;
}

static int store(struct rossum *s, struct call *call, struct upload *u, struct ticket *t)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	int r = send_file(s, call, u, t->nonce, &reply);

	if (r < 0) {
		bool is_in_doubt = call->fault.may_have_happened;

		/* "Try later" is said before a file is looked at; after any other silence it may still be on its way.
		 */
		attempt_note(s, t->nonce,
			     is_in_doubt && call->fault.http_status == 503 ? 0 : rossum_patience_ms(s, SETTLE_MS),
			     is_in_doubt);
		return r;
	}
	attempt_note(s, t->nonce, rossum_patience_ms(s, SETTLE_MS), false);
	t->sent_wall_ms = clock_wall_ms();
	if (read_sent(reply.body, reply.body_bytes, t) < 0) {
		attempt_note(s, t->nonce, 0, true);
		log_warning("rossum: POST /uploads: the answer names no task");
		rossum_fail(call, FAULT_AWAY, 0, "the answer names no task");
		call->fault.may_have_happened = true;
		return -EPROTO;
	}
	return 0;
}

int rossum_upload_store(struct backend *b, struct call *call, struct upload *u)
{
	struct rossum *s = rossum_from(b);
	struct ticket t;

	if (ticket_read(u->ticket, &t) < 0)
		return bad_ticket(call);
	if (!rossum_is_digits(u->session_id))
		return rossum_fail(call, FAULT_GONE, -ENOENT, "this cannot be the id of a queue");
	if (u->size_bytes > DOCUMENT_BYTES_MAX)
		return rossum_fail(call, FAULT_TOO_LARGE, -EFBIG, "the service takes at most 40,000,000 bytes");
	int r = store(s, call, u, &t);
	if (r < 0)
		return r;
	if (ticket_write(u, &t) < 0)
		return call_no_memory(call);
	u->step = UPLOAD_STORED;
	return 0;
}

/* ---- what became of it ------------------------------------------------------------------------------------- */

enum { NOT_YET = 1 };

/* Gone after some hours, and then it says nothing about the file: to be looked for, and sent again if it is nowhere. */
static int lost_track(struct call *call, int error)
{
	if (call->fault.kind != FAULT_GONE)
		return error;
	return rossum_fail(call, FAULT_KEY, -EACCES, "the service has forgotten this upload");
}

/* A failed task: its words hold the number to quote to the vendor. */
static int task_failed(struct call *call, const cJSON *task)
{
	const char *detail = rossum_text_of(task, "detail"), *code = rossum_text_of(task, "code");

	call_forget_fault(call);
	return rossum_fail(call, FAULT_INVALID, -EINVAL,
			   detail ? detail
			   : code ? code
				  : "the service failed to take the file in");
}

static int follow_task(struct rossum *s, struct call *call, struct ticket *t)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	CLEANUP(json_release) cJSON *task = NULL;

	buf_addf(&path, "/tasks/%s?no_redirect=true", t->task.text);
	const struct http_request q = { .method = "GET", .path = buf_text(&path) };
	int r = q.path ? rossum_ask(s, call, &q, &reply) : call_no_memory(call);
	if (r < 0 && reply.location && rossum_ref_text(reply.location, &t->upload)) {
		call_forget_fault(call);
		return 0; /* sent on in spite of our asking: it has succeeded */
	}
	if (r < 0)
		return lost_track(call, r);
	if (json_parse(reply.body, reply.body_bytes, &task) < 0)
		return rossum_unreadable(s, call, &q, "the answer is not JSON", -EPROTO);
	if (rossum_has_status(task, "failed"))
		return task_failed(call, task);
	if (!rossum_text_of(task, "status") && rossum_member(task, "annotations"))
		return rossum_own_id(task, &t->upload)
			       ? 0
			       : NOT_YET; /* the upload itself, from a server that ignores the flag */
	if (!rossum_has_status(task, "succeeded"))
		return NOT_YET;
	if (!rossum_ref_in(rossum_member(task, "content"), "upload", &t->upload) &&
	    !rossum_ref_in(task, "result_url", &t->upload))
		return rossum_unreadable(s, call, &q, "a task that succeeded names no upload", -EPROTO);
	return 0;
}

/* Why a file was set aside on its way in; 0: it was not. */
static int read_set_aside(struct call *call, const char *status)
{
	static const char *const taken[] = { "processed", "extracted_archive", "hook_additional_file" };
	char words[200];

	for (size_t i = 0; status && i < sizeof(taken) / sizeof(taken[0]); i++) {
		if (strcmp(status, taken[i]) == 0)
			return 0;
	}
	if (!status)
		return 0;
	snprintf(words, sizeof(words), "the service set the file aside: %.100s", status);
	call_forget_fault(call);
	return rossum_fail(call, FAULT_INVALID, -EINVAL, words);
}

static int ask_set_aside(struct rossum *s, struct call *call, const cJSON *upload)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *document = NULL;
	const cJSON *documents = rossum_member(upload, "documents");
	struct json_id room;
	const char *id = cJSON_IsArray(documents) ? rossum_ref_of(documents->child, &room) : NULL;

	if (!id)
		return 0;
	buf_addf(&path, "/documents/%s", id);
	int r = rossum_get_json(s, call, buf_text(&path), &document);
	if (r < 0 && call->fault.kind == FAULT_GONE) {
		call_forget_fault(call);
		return 0;
	}
	return r < 0 ? r : read_set_aside(call, rossum_text_of(document, "attachment_status"));
}

/* The annotations an upload has become, as a list for a query; NOT_YET: none so far. */
static int follow_upload(struct rossum *s, struct call *call, const struct ticket *t, struct buf *ret_ids)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *upload = NULL;
	const cJSON *item;
	int count = 0;

	if (t->annotation.text[0]) {
		buf_add(ret_ids, t->annotation.text);
		return 0;
	}
	buf_addf(&path, "/uploads/%s", t->upload.text);
	int r = rossum_get_json(s, call, buf_text(&path), &upload);
	if (r < 0)
		return lost_track(call, r);
	cJSON_ArrayForEach (item, rossum_member(upload, "annotations")) {
		struct json_id room;

		if (count < IDS_MAX && rossum_ref_of(item, &room))
			buf_addf(ret_ids, "%s%s", count++ ? "," : "", room.text);
	}
	if (count > 0)
		return 0;
	r = ask_set_aside(s, call, upload);
	return r < 0 ? r : NOT_YET;
}

/* An archive or a file with separator pages becomes several: the one under the written name stands for the file. */
static const cJSON *pick_annotation(const cJSON *results, const struct sideload *documents, const struct upload *u,
				    const char *nonce)
{
	const cJSON *item, *best = NULL;
	int best_points = -1;

	cJSON_ArrayForEach (item, results) {
		const char *name = rossum_text_of(sideload_find(documents, item), "original_file_name");
		struct mark mark;
		int points = name && strcmp(name, u->name) == 0 ? 1 : 0;

		if (rossum_read_mark(item, &mark) && mark.nonce && strcmp(mark.nonce, nonce) == 0)
			points += 2;
		if (points > best_points) {
			best = item;
			best_points = points;
		}
	}
	return best;
}

static int import_failed(struct rossum *s, struct call *call, const cJSON *annotation)
{
	struct document doc;
	struct document_room room;

	call_forget_fault(call);
	if (rossum_read_document(s, annotation, NULL, &doc, &room) < 0 || !doc.error)
		return rossum_fail(call, FAULT_INVALID, -EINVAL, "the import failed");
	return rossum_fail(call, FAULT_INVALID, -EINVAL, doc.error);
}

/* Sets u->document once there is one. */
static int follow_annotations(struct rossum *s, struct call *call, struct upload *u, struct ticket *t, const char *ids)
{
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(sideload_release) struct sideload documents = { 0 };
	const cJSON *results = NULL, *best;
	struct json_id room;
	int64_t asked_ms = clock_now_ms();
	int r = rossum_get_annotations(s, call, u->session_id, ids, &body, &results, &documents);

	if (r < 0)
		return r;
	best = pick_annotation(results, &documents, u, t->nonce);
	if (!best || !rossum_own_id(best, &room))
		return NOT_YET;
	t->annotation = room;
	link_note(s, room.text, NULL, t->upload.text[0] ? t->upload.text : NULL);
	if (rossum_has_status(best, "created"))
		return NOT_YET;
	if (rossum_has_status(best, "failed_import"))
		return import_failed(s, call, best);
	r = rossum_one_document(s, best, sideload_find(&documents, best), asked_ms, &u->document);
	return r == -ENOMEM ? call_no_memory(call) : r;
}

/* As far as it goes now. */
static int follow(struct rossum *s, struct call *call, struct upload *u, struct ticket *t)
{
	CLEANUP(buf_release) struct buf ids = BUF(PATH_BYTES_MAX / 4);
	int r = 0;

	if (!t->upload.text[0] && !t->annotation.text[0]) {
		if (!t->task.text[0])
			return bad_ticket(call);
		r = follow_task(s, call, t);
		if (r != 0)
			return r;
	}
	if (!t->taken_wall_ms)
		t->taken_wall_ms = clock_wall_ms();
	r = follow_upload(s, call, t, &ids);
	if (r == 0 && !buf_text(&ids))
		r = call_no_memory(call);
	return r != 0 ? r : follow_annotations(s, call, u, t, buf_text(&ids));
}

/* The file was taken and nothing came of it. Nobody tells that a hook stopped it: only time does. */
static bool is_stopped_by_hook(const struct rossum *s, const struct ticket *t)
{
	int64_t age_ms = clock_wall_ms() - t->taken_wall_ms;

	return t->taken_wall_ms && (age_ms > rossum_patience_ms(s, NO_ANNOTATION_MS) || age_ms < -SKEW_MS);
}

static int still_waiting(struct call *call)
{
	call_forget_fault(call);
	return rossum_fail(call, FAULT_AWAY, -ETIMEDOUT, "the service is still taking the file in");
}

static int follow_to_the_end(struct rossum *s, struct call *call, struct upload *u, struct ticket *t)
{
	int64_t deadline_ms = call->deadline_ms ? call->deadline_ms : clock_now_ms() + ATTACH_MS;
	int64_t pause_ms = rossum_patience_ms(s, POLL_FIRST_MS), age_ms = clock_wall_ms() - t->sent_wall_ms;
	int64_t pause_ms_max = rossum_patience_ms(s, POLL_MS_MAX);
	int r = 0;

	/* After a wait in line it may be there at once. */
	if (age_ms >= 0 && age_ms < pause_ms)
		r = rossum_nap(s, call, pause_ms - age_ms, deadline_ms);
	while (r == 0) {
		r = follow(s, call, u, t);
		if (r != NOT_YET)
			return r;
		if (is_stopped_by_hook(s, t))
			return rossum_fail(
				call, FAULT_INVALID, -EINVAL,
				"the service took the file and made no document of it; a hook may have stopped it");
		pause_ms = pause_ms * 3 / 2 < pause_ms_max ? pause_ms * 3 / 2 : pause_ms_max;
		r = rossum_nap(s, call, pause_ms, deadline_ms);
	}
	return r == -ETIMEDOUT ? still_waiting(call) : r;
}

int rossum_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count)
{
	struct rossum *s = rossum_from(b);
	struct upload *u = us[0];
	struct ticket t;

	assert(count == 1);
	if (ticket_read(u->ticket, &t) < 0)
		return bad_ticket(call);
	int r = follow_to_the_end(s, call, u, &t);
	(void)ticket_write(u, &t); /* without memory the way is gone again */
	if (r == 0)
		u->step = UPLOAD_ATTACHED;
	return r;
}

/* ---- is it there already? ---------------------------------------------------------------------------------- */

static bool is_listed(const char *const *ids, int count, const char *id)
{
	for (int i = 0; i < count; i++) {
		if (strcmp(ids[i], id) == 0)
			return true;
	}
	return false;
}

static int hash_file(int fd, char ret[65])
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	unsigned char bytes[16 * 1024], hash[32];
	bool ok = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;
	ssize_t n = 0;

	for (off_t at = 0; ok && (n = pread(fd, bytes, sizeof(bytes), at)) > 0; at += n)
		ok = EVP_DigestUpdate(ctx, bytes, (size_t)n) == 1;
	ok = ok && n == 0 && EVP_DigestFinal_ex(ctx, hash, NULL) == 1;
	EVP_MD_CTX_free(ctx);
	for (int i = 0; ok && i < 32; i++)
		snprintf(ret + 2 * i, 3, "%02x", hash[i]);
	return ok ? 0 : -EIO;
}

/* Without metadata of ours only the bytes tell. 1: they are these; 0: they are not. */
static int bytes_are_equal(struct rossum *s, struct call *call, const cJSON *annotation, const struct upload *u)
{
	CLEANUP(fd_close) int fd = memfd_create("look", MFD_CLOEXEC);
	struct json_id room;
	char sha256[65];

	if (rossum_is_html(u->name, NULL))
		return 1; /* changed on the way in: name and time have to do */
	if (fd < 0 || !rossum_ref_in(annotation, "document", &room))
		return 0;
	struct content c = { .fd = &fd };
	int r = rossum_get_content(s, call, room.text, &c);
	if (r < 0 && call->fault.kind == FAULT_GONE) {
		call_forget_fault(call);
		return 0;
	}
	if (r == 0)
		r = hash_file(fd, sha256);
	return r < 0 ? r : strcmp(sha256, u->sha256) == 0;
}

/* What is looked for. */
struct search {
	struct upload *u;
	struct ticket t; /* nonce "": there was no ticket */
	const char *const *not_ids;
	int not_count;
};

static bool is_old(const struct search *look, const cJSON *annotation)
{
	int64_t created_ms = rossum_time_of(annotation, "created_at");

	return look->u->ticket_wall_ms > 0 && created_ms >= 0 && created_ms < look->u->ticket_wall_ms - SKEW_MS;
}

/* 1: it is ours; 0: it is not. */
static int is_ours(struct rossum *s, struct call *call, const struct search *look, const cJSON *annotation,
		   const cJSON *document)
{
	const struct upload *u = look->u;
	const char *name = rossum_text_of(document, "original_file_name");
	struct json_id room;
	struct mark mark;
	const char *id = rossum_own_id(annotation, &room);

	if (!id)
		return 0;
	if (rossum_read_mark(annotation, &mark)) {
		if (look->t.nonce[0] && mark.nonce)
			return strcmp(mark.nonce, look->t.nonce) == 0;
		return !rossum_is_hidden(annotation) && !is_listed(look->not_ids, look->not_count, id) &&
		       mark.size_bytes == u->size_bytes && strcasecmp(mark.sha256, u->sha256) == 0;
	}
	/* The raw form carries no metadata. */
	if (!s->is_raw || !name || strcmp(name, u->name) != 0 || is_old(look, annotation) ||
	    rossum_has_status(annotation, "deleted") || rossum_has_status(annotation, "purged") ||
	    is_listed(look->not_ids, look->not_count, id))
		return 0;
	return bytes_are_equal(s, call, annotation, u);
}

static int take_found(struct rossum *s, struct call *call, struct upload *u, const cJSON *annotation,
		      const cJSON *document, int64_t asked_ms)
{
	if (rossum_has_status(annotation, "created"))
		return NOT_YET;
	int r = rossum_one_document(s, annotation, document, asked_ms, &u->document);
	if (r < 0)
		return r == -ENOMEM ? call_no_memory(call)
				    : rossum_fail(call, FAULT_AWAY, r, "the document cannot be read");
	u->step = UPLOAD_ATTACHED;
	return 0;
}

/* Newest first, down to what is surely older than the upload. 0, NOT_YET (its import has not begun), -ENOENT. */
static int search_once(struct rossum *s, struct call *call, const struct search *look)
{
	CLEANUP(pages_release) struct pages pages = PAGES;
	int64_t asked_ms = clock_now_ms();
	bool has_young = true;
	int r = 1;

	rossum_annotations_path(&pages.path, look->u->session_id, "&ordering=-created_at");
	while (has_young) {
		CLEANUP(json_release) cJSON *body = NULL;
		CLEANUP(sideload_release) struct sideload documents = { 0 };
		const cJSON *results = NULL, *item;

		r = pages_next(s, call, &pages, &body, &results);
		if (r <= 0)
			break;
		if (sideload_read(body, &documents) < 0)
			return call_no_memory(call);
		has_young = results->child == NULL;
		cJSON_ArrayForEach (item, results) {
			const cJSON *document = sideload_find(&documents, item);

			has_young = has_young || !is_old(look, item);
			r = is_ours(s, call, look, item, document);
			if (r < 0)
				return r;
			if (r > 0)
				return take_found(s, call, look->u, item, document, asked_ms);
		}
	}
	return r < 0 ? r : -ENOENT;
}

/* Until when what is not there may still come: the service makes documents of files in its own time. */
static int64_t settles_ms(struct rossum *s, const struct search *look)
{
	struct attempt a;

	if (!look->t.nonce[0])
		return 0;
	if (attempt_look(s, look->t.nonce, &a))
		return a.settles_ms;
	return s->began_ms + rossum_patience_ms(s, SETTLE_MS); /* sent by an earlier process, no later than we began */
}

int rossum_upload_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids,
		       int not_count)
{
	struct rossum *s = rossum_from(b);
	struct search look = { .u = u, .not_ids = not_ids, .not_count = not_count };
	int r;

	if (!rossum_is_digits(u->session_id))
		return -ENOENT;
	(void)ticket_read(u->ticket, &look.t); /* without one, bytes and name have to do */
	int64_t until_ms = settles_ms(s, &look);
	for (;;) {
		r = search_once(s, call, &look);
		if ((r != -ENOENT && r != NOT_YET) || clock_now_ms() >= until_ms)
			break;
		r = rossum_nap(s, call, rossum_patience_ms(s, SETTLE_LOOK_MS), call->deadline_ms);
		if (r == -ETIMEDOUT)
			return still_waiting(call);
		if (r < 0)
			return r;
	}
	if (r == NOT_YET)
		return rossum_fail(call, FAULT_AWAY, -EIO, "its import has not begun");
	if (r == -ENOENT && call->fault.kind != FAULT_GONE)
		call_forget_fault(call);
	return r;
}
