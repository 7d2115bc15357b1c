/* The Rossum API as its documentation has it, as far as queues, annotations, documents and uploads go. Where the
 * documentation is silent or at odds with itself a switch named "rossum.…" picks the variant.
 *
 * Nothing happens by itself: how far a task or an import is follows from when it began and the clock.
 *
 *   upload --> task ----------> upload object ----> annotation -----> to_review
 *   (202)      running          documents known     importing         or failed_import
 *              rossum.task_ms   rossum.create_ms    rossum.import_ms
 */
#include "tests/sandbox/core.h"
#include "tests/sandbox/multipart.h"
#include "tests/sandbox/sandbox.h"
#include "tests/sandbox/unzip.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <uthash.h>

#define BASE "/api/v1"
#define JSON_BYTES_MAX (1 << 20)
#define PAGE_SIZE_MAX 100
#define ORDER_KEYS_MAX 8
#define UPLOAD_BYTES_MAX 40000000
#define FORM_BYTES_MAX 1048576 /* of a multipart body beyond its files */
#define ZIP_FILES_MAX 999
#define TOKEN_LIFETIME_S_MAX 583200
#define ORGANIZATION_ID 3

enum status {
	CREATED,
	IMPORTING,
	FAILED_IMPORT,
	SPLIT,
	TO_REVIEW,
	REVIEWING,
	IN_WORKFLOW,
	CONFIRMED,
	REJECTED,
	EXPORTING,
	EXPORTED,
	FAILED_EXPORT,
	POSTPONED,
	DELETED,
	PURGED,
	STATUS_COUNT
};

static const char *const status_words[STATUS_COUNT] = {
	"created",  "importing", "failed_import", "split",         "to_review", "reviewing", "in_workflow", "confirmed",
	"rejected", "exporting", "exported",      "failed_export", "postponed", "deleted",   "purged",
};

struct user {
	int64_t id;
	char *name, *password;
	cJSON *queues; /* ids; NULL: all */
	UT_hash_handle hh;
};

struct token {
	char *text, *user;
	int64_t expires_ms; /* 0: never */
	bool is_revoked;
	UT_hash_handle hh;
};

struct workspace {
	int64_t id;
	char *name;
	UT_hash_handle hh;
};

struct queue {
	int64_t id, workspace_id; /* 0: none */
	char *name, *status;
	cJSON *accepted; /* of media types */
	cJSON *fields, *without;
	UT_hash_handle hh;
};

struct document {
	int64_t id, created_ms, visible_ms, parent_id, creator_id;
	char *name, *name_json; /* name_json: raw JSON told instead */
	char *mime, *attachment_status, *s3_name;
	char sha256[SHA256_HEX_BYTES];      /* "": not asked for yet */
	char sent_sha256[SHA256_HEX_BYTES]; /* before it was sanitised; "": it was not */
	struct content content;
	bool is_purged;
	int64_t *annotation_ids;
	size_t annotation_count;
	cJSON *metadata, *fields, *without;
	UT_hash_handle hh;
};

struct annotation {
	int64_t id, queue_id, document_id; /* 0: none */
	int64_t created_ms, visible_ms, imported_ms, modified_ms, creator_id, upload_id;
	enum status status; /* CREATED lasts; IMPORTING lasts until imported_ms */
	bool fails;         /* to import */
	char *word;         /* a status nobody foresaw, told instead */
	int64_t since_ms[STATUS_COUNT];
	cJSON *metadata, *values, *fields, *without;
	UT_hash_handle hh;
};

struct upload {
	int64_t id, queue_id, creator_id, created_ms, visible_ms, ready_ms; /* ready: its annotations are known */
	cJSON *documents, *additional, *annotations;                        /* ids */
	UT_hash_handle hh;
};

struct task {
	int64_t id, upload_id, done_ms, expires_ms;
	char *detail; /* NULL: it succeeds */
	UT_hash_handle hh;
};

/* When requests came, the last `span` of them at most. */
struct window {
	int64_t *times;
	size_t count, room;
};

struct rossum {
	struct sandbox *sandbox;
	char *files_dir;
	struct user *users;
	struct token *tokens;
	struct workspace *workspaces;
	struct queue *queues;
	struct document *documents;
	struct annotation *annotations;
	struct upload *uploads;
	struct task *tasks;
	int64_t last_id[8], series;
	int64_t forbidden, leaks; /* calls a filesystem must never make; tokens sent where they don't belong */
	struct window requests, logins;
};

enum kind { USER, WORKSPACE, QUEUE, DOCUMENT, ANNOTATION, UPLOAD, TASK };
static const int64_t first_ids[] = { 12, 70, 8199, 7000201, 5000101, 345, 91 };

static const struct switch_def switches[] = {
	{ "rossum.rate", "off", "off|number", "requests a second" },
	{ "rossum.retry_after", "on", "on|off", "Retry-After with 429" },
	{ "rossum.login_rate", "10", "off|number", "logins a minute, good or bad" },
	{ "rossum.token_lifetime_s", "583200", "number", "of tokens from a login that names none" },
	{ "rossum.expired", "401", "401|403", "for a token that is no more" },
	{ "rossum.anonymous", "403", "403|401", "without credentials" },
	{ "rossum.strict", "on", "on|off", "refuse query and body fields the documentation does not list" },
	{ "rossum.totals", "asked", "always|asked|never", "total and total_pages in pagination" },
	{ "rossum.next", "pagination", "pagination|top|both", "where next and previous stand" },
	{ "rossum.beyond", "empty", "empty|404", "a page behind the last" },
	{ "rossum.order", "newest", "oldest|newest|random", "of annotations without ordering; random: anew each time" },
	{ "rossum.foreign", "none", "none|next|task|upload", "links of this kind name another host" },
	{ "rossum.counts", "most", "most|all|none", "of a queue; most: without created and in_workflow" },
	{ "rossum.range", "off", "on|off", "Range is honoured for content" },
	{ "rossum.redirect", "off", "on|off", "content redirects to another host, which takes no token" },
	{ "rossum.max_bytes", "40000000", "number", "of an upload; beyond: 413" },
	{ "rossum.metadata_bytes", "4096", "number", "of a metadata part" },
	{ "rossum.empty", "400", "400|accept", "a file without bytes" },
	{ "rossum.inactive", "400", "400|403|409", "an upload to a queue that is not active" },
	{ "rossum.type", "attachment", "attachment|400|task", "how a refused media type shows" },
	{ "rossum.type_hook", "off", "on|off", "a hook takes the types of accepted_mime_types that Rossum does not" },
	{ "rossum.broken_images", "off", "on|off", "an image that begins like none is set aside" },
	{ "rossum.identical_deleted", "off", "on|off", "deleted files count for reject_identical" },
	{ "rossum.task_ms", "200", "number", "a task runs, by the clock" },
	{ "rossum.task_expires_ms", "21600000", "number", "until a task is gone" },
	{ "rossum.task_upload", "early", "early|late", "content.upload of a running task" },
	{ "rossum.task_fail", "", "text", "extended regex of filenames whose task fails" },
	{ "rossum.task_detail", "Something went wrong (error 7c1e).", "text", "of a failed task" },
	{ "rossum.create_ms", "200", "number", "from the task's end to the annotation" },
	{ "rossum.import_ms", "1000", "number", "of importing" },
	{ "rossum.import_fail", "", "text", "extended regex of filenames whose import fails" },
	{ "rossum.none", "null", "null|empty", "annotations and additional_documents of an upload without" },
	{ "rossum.upload_order", "reverse", "same|reverse", "of an upload's annotations" },
	{ "rossum.hook_prevent", "", "text", "extended regex of filenames a hook stops" },
	{ "rossum.hook_leaves", "none", "none|created", "of a stopped file: no annotation, or one stuck in created" },
	{ "rossum.hook_add", "", "text", "extended regex of filenames a hook adds a document to" },
	{ "rossum.zip_documents", "archive", "archive|all", "documents of an upload that was a ZIP" },
	{ "rossum.locked_delete", "409", "409|204", "deleting what is in reviewing or in_workflow" },
	{ "rossum.patch_queue", "on", "on|off", "PATCH of an annotation's queue moves it; off: is ignored" },
	{ "rossum.extra", "off", "on|off", "fields nobody foresaw" },
};

static void *allocate(size_t bytes)
{
	void *p = calloc(1, bytes);
	if (p == NULL)
		abort();
	return p;
}

static int64_t now_of(struct rossum *r)
{
	return sandbox_now_ms(r->sandbox);
}

static int64_t next_id(struct rossum *r, enum kind kind)
{
	if (r->last_id[kind] == 0)
		r->last_id[kind] = first_ids[kind] - 1;
	return ++r->last_id[kind];
}

/* wish 0: any free one. */
static int64_t claim_id(struct rossum *r, enum kind kind, int64_t wish)
{
	if (wish <= 0)
		return next_id(r, kind);
	if (wish > r->last_id[kind] && wish >= first_ids[kind])
		r->last_id[kind] = wish;
	return wish;
}

/* --- Things and their ends --- */

#define DEFINE_FIND(kind, table)                                                                                       \
	static struct kind *find_##kind(struct rossum *r, int64_t id)                                                  \
	{                                                                                                              \
		struct kind *found = NULL;                                                                             \
		HASH_FIND(hh, r->table, &id, sizeof id, found);                                                        \
		return found;                                                                                          \
	}
DEFINE_FIND(workspace, workspaces)
DEFINE_FIND(queue, queues)
DEFINE_FIND(document, documents)
DEFINE_FIND(annotation, annotations)
DEFINE_FIND(upload, uploads)
DEFINE_FIND(task, tasks)
#undef DEFINE_FIND

static struct user *find_user(struct rossum *r, const char *name)
{
	struct user *u = NULL;
	HASH_FIND_STR(r->users, name, u);
	return u;
}

static void document_free(struct document *d, bool deletes)
{
	if (deletes && d->content.path != NULL)
		unlink(d->content.path);
	free(d->name);
	free(d->name_json);
	free(d->mime);
	free(d->attachment_status);
	free(d->s3_name);
	free(d->annotation_ids);
	content_release(&d->content);
	cJSON_Delete(d->metadata);
	cJSON_Delete(d->fields);
	cJSON_Delete(d->without);
	free(d);
}

static void annotation_free(struct annotation *a)
{
	free(a->word);
	cJSON_Delete(a->metadata);
	cJSON_Delete(a->values);
	cJSON_Delete(a->fields);
	cJSON_Delete(a->without);
	free(a);
}

static void queue_free(struct queue *w)
{
	free(w->name);
	free(w->status);
	cJSON_Delete(w->accepted);
	cJSON_Delete(w->fields);
	cJSON_Delete(w->without);
	free(w);
}

#define EACH(type, table, one)                                                                                         \
	for (struct type *one = r->table, *next_##one = NULL; one != NULL && (next_##one = one->hh.next, true);        \
	     one = next_##one)

static void forget_all(struct rossum *r, bool deletes)
{
	EACH(user, users, u)
	{
		HASH_DEL(r->users, u);
		free(u->name);
		free(u->password);
		cJSON_Delete(u->queues);
		free(u);
	}
	EACH(token, tokens, t)
	{
		HASH_DEL(r->tokens, t);
		free(t->text);
		free(t->user);
		free(t);
	}
	EACH(workspace, workspaces, w)
	{
		HASH_DEL(r->workspaces, w);
		free(w->name);
		free(w);
	}
	EACH(queue, queues, q)
	{
		HASH_DEL(r->queues, q);
		queue_free(q);
	}
	EACH(document, documents, d)
	{
		HASH_DEL(r->documents, d);
		document_free(d, deletes);
	}
	EACH(annotation, annotations, a)
	{
		HASH_DEL(r->annotations, a);
		annotation_free(a);
	}
	EACH(upload, uploads, p)
	{
		HASH_DEL(r->uploads, p);
		cJSON_Delete(p->documents);
		cJSON_Delete(p->additional);
		cJSON_Delete(p->annotations);
		free(p);
	}
	EACH(task, tasks, k)
	{
		HASH_DEL(r->tasks, k);
		free(k->detail);
		free(k);
	}
	free(r->requests.times);
	free(r->logins.times);
	r->requests = r->logins = (struct window){ 0 };
	memset(r->last_id, 0, sizeof r->last_id);
	r->series = r->forbidden = r->leaks = 0;
}

static struct workspace *workspace_add(struct rossum *r, int64_t id, const char *name)
{
	struct workspace *w = allocate(sizeof *w);
	w->id = claim_id(r, WORKSPACE, id);
	w->name = text_copy(name);
	HASH_ADD(hh, r->workspaces, id, sizeof w->id, w);
	sandbox_changed(r->sandbox);
	return w;
}

static struct queue *queue_add(struct rossum *r, int64_t id, const char *name, int64_t workspace_id)
{
	struct queue *w = allocate(sizeof *w);
	w->id = claim_id(r, QUEUE, id);
	w->name = text_copy(name);
	w->status = text_copy("active");
	w->workspace_id = workspace_id;
	w->accepted = cJSON_CreateArray();
	HASH_ADD(hh, r->queues, id, sizeof w->id, w);
	sandbox_changed(r->sandbox);
	return w;
}

static struct document *document_add(struct rossum *r, int64_t id, const char *name)
{
	struct document *d = allocate(sizeof *d);
	CLEANUP(text_free) char *uuid = uuid_new();
	d->id = claim_id(r, DOCUMENT, id);
	d->name = text_copy(name);
	/* 32 digits, and no hash of anything: who takes it for one is found out. */
	d->s3_name = text_format("%.8s%.4s%.4s%.4s%.12s", uuid, uuid + 9, uuid + 14, uuid + 19, uuid + 24);
	d->created_ms = d->visible_ms = now_of(r);
	d->metadata = cJSON_CreateObject();
	HASH_ADD(hh, r->documents, id, sizeof d->id, d);
	sandbox_changed(r->sandbox);
	return d;
}

/* The document of an annotation changes; 0: none. */
static void annotation_point(struct rossum *r, struct annotation *a, int64_t document_id)
{
	struct document *old = find_document(r, a->document_id), *d = find_document(r, document_id);
	for (size_t i = 0; old != NULL && i < old->annotation_count; i++)
		if (old->annotation_ids[i] == a->id)
			old->annotation_ids[i--] = old->annotation_ids[--old->annotation_count];
	a->document_id = document_id;
	if (d == NULL)
		return;
	d->annotation_ids = realloc(d->annotation_ids, (d->annotation_count + 1) * sizeof *d->annotation_ids);
	if (d->annotation_ids == NULL)
		abort();
	d->annotation_ids[d->annotation_count++] = a->id;
}

static struct annotation *annotation_add(struct rossum *r, int64_t id, int64_t queue_id, int64_t document_id)
{
	struct annotation *a = allocate(sizeof *a);
	a->id = claim_id(r, ANNOTATION, id);
	a->queue_id = queue_id;
	annotation_point(r, a, document_id);
	a->created_ms = a->visible_ms = a->imported_ms = now_of(r);
	a->status = IMPORTING;
	a->metadata = cJSON_CreateObject();
	HASH_ADD(hh, r->annotations, id, sizeof a->id, a);
	sandbox_changed(r->sandbox);
	return a;
}

static struct user *user_add(struct rossum *r, const char *name, const char *password, const cJSON *queues)
{
	struct user *u = allocate(sizeof *u);
	u->id = next_id(r, USER);
	u->name = text_copy(name);
	u->password = text_copy(password);
	u->queues = cJSON_IsArray(queues) ? cJSON_Duplicate(queues, true) : NULL;
	HASH_ADD_KEYPTR(hh, r->users, u->name, strlen(u->name), u);
	sandbox_changed(r->sandbox);
	return u;
}

/* text NULL: any that nobody has. */
static struct token *token_add(struct rossum *r, const char *text, const char *user, int64_t expires_ms)
{
	struct token *t = NULL;
	char hex[41];
	unsigned char bytes[20];
	RAND_bytes(bytes, sizeof bytes);
	bytes_to_hex(bytes, sizeof bytes, hex);
	if (text != NULL)
		HASH_FIND_STR(r->tokens, text, t);
	if (t == NULL) {
		t = allocate(sizeof *t);
		t->text = text_copy(text == NULL ? hex : text);
		HASH_ADD_KEYPTR(hh, r->tokens, t->text, strlen(t->text), t);
	}
	free(t->user);
	t->user = text_copy(user);
	t->expires_ms = expires_ms;
	t->is_revoked = false;
	sandbox_changed(r->sandbox);
	return t;
}

static bool user_sees(const struct user *u, int64_t queue_id)
{
	if (u->queues == NULL)
		return true;
	const cJSON *one;
	cJSON_ArrayForEach (one, u->queues)
		if (cJSON_IsNumber(one) && (int64_t)one->valuedouble == queue_id)
			return true;
	return false;
}

static enum status annotation_status(const struct annotation *a, int64_t now)
{
	if (a->status != IMPORTING || now < a->imported_ms)
		return a->status;
	return a->fails ? FAILED_IMPORT : TO_REVIEW;
}

static const char *annotation_word(const struct annotation *a, int64_t now)
{
	return a->word != NULL ? a->word : status_words[annotation_status(a, now)];
}

/* -1: no such word. */
static int status_from(const char *word)
{
	for (int i = 0; i < STATUS_COUNT; i++)
		if (word != NULL && strcmp(status_words[i], word) == 0)
			return i;
	return -1;
}

/* The bytes and the name go; the records stay. */
static void purge(struct rossum *r, struct annotation *a)
{
	struct document *d = find_document(r, a->document_id);
	if (d == NULL)
		return;
	if (d->content.path != NULL)
		unlink(d->content.path);
	content_release(&d->content);
	free(d->name);
	free(d->name_json);
	d->name = d->name_json = NULL;
	d->is_purged = true;
}

static void annotation_set_status(struct rossum *r, struct annotation *a, enum status status)
{
	free(a->word);
	a->word = NULL;
	a->status = status;
	a->since_ms[status] = now_of(r);
	if (status == IMPORTING) /* by hand: it stays so */
		a->imported_ms = INT64_MAX;
	if (status == PURGED)
		purge(r, a);
	sandbox_changed(r->sandbox);
}

static bool matches(struct rossum *r, const char *knob, const char *name)
{
	const char *pattern = switch_text(r->sandbox, knob);
	regex_t regex;
	if (*pattern == 0 || name == NULL || regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB) != 0)
		return false;
	bool found = regexec(&regex, name, 0, NULL, 0) == 0;
	regfree(&regex);
	return found;
}

static bool window_admit(struct window *w, int64_t now, int64_t span_ms, int64_t limit, int64_t *ret_retry_ms)
{
	size_t gone = 0;
	while (gone < w->count &&
	       (w->times[gone] <= now - span_ms || w->times[gone] > now)) /* the clock may be turned back */
		gone++;
	w->count -= gone;
	if (gone > 0)
		memmove(w->times, w->times + gone, w->count * sizeof *w->times);
	if ((int64_t)w->count >= limit) {
		*ret_retry_ms = w->count == 0 ? span_ms : w->times[0] + span_ms - now;
		return false;
	}
	if (w->count == w->room) {
		w->room = w->room * 2 + 16;
		w->times = realloc(w->times, w->room * sizeof *w->times);
		if (w->times == NULL)
			abort();
	}
	w->times[w->count++] = now;
	return true;
}

/* --- One call: what it says, and no --- */

enum who { ANYBODY, TOKEN, TOKEN_OR_PASSWORD };
enum body { NO_BODY, JSON_BODY, JSON_OR_NOTHING, JSON_OR_FORM, FILES_BODY };

struct call;

struct route {
	const char *method, *path, *name;
	const char *query; /* " a b ": what may stand there */
	enum who who;
	enum body body;
	void (*run)(struct call *c);
};

struct call {
	struct request *q;
	struct rossum *r;
	const struct route *route;
	struct user *user; /* NULL for ANYBODY */
	char *arg;         /* what stood for the "*", decoded */
	cJSON *body;
};

static const char *code_of(int status)
{
	static const struct {
		int status;
		const char *code;
	} codes[] = {
		{ 400, "bad_request" },       { 401, "authentication_failed" }, { 403, "access_forbidden" },
		{ 404, "not_found" },         { 405, "method_not_allowed" },    { 409, "conflict_status" },
		{ 413, "payload_too_large" }, { 429, "rate_limited" },          { 503, "service_unavailable" },
	};
	for (size_t i = 0; i < COUNT_OF(codes); i++)
		if (codes[i].status == status)
			return codes[i].code;
	return "error";
}

static bool refuse(struct request *q, int status, const char *detail)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "detail", detail);
	cJSON_AddStringToObject(o, "code", code_of(status));
	if (status == 429)
		cJSON_AddStringToObject(o, "url", "https://rossum.app/api/docs/openapi/guides/overview/");
	answer_json(&q->answer, status, o);
	return false;
}

/* The other shape of 400. */
static bool complain(struct request *q, const char *field, const char *message)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddItemToArray(cJSON_AddArrayToObject(o, field), cJSON_CreateString(message));
	answer_json(&q->answer, 400, o);
	return false;
}

static void not_found(struct call *c)
{
	refuse(c->q, 404, "Not found.");
}

/* Digits alone, without a sign. -1: something else. */
static int64_t number_from(const char *text)
{
	size_t n = text == NULL ? 0 : strlen(text);
	return n == 0 || n > 18 || strspn(text, "0123456789") != n ? -1 : strtoll(text, NULL, 10);
}

static int64_t id_of_call(struct call *c)
{
	return number_from(c->arg);
}

/* Every name in the query is one of the route's, and stands there once. */
static bool query_is_known(struct request *q, const struct route *t)
{
	CLEANUP(text_free) char *all = text_copy(q->raw_query), *seen = text_copy(" ");
	char *rest = all;
	for (char *pair = strsep(&rest, "&"); pair != NULL; pair = strsep(&rest, "&")) {
		char *value = pair;
		CLEANUP(text_free) char *key = url_decode(strsep(&value, "="), true);
		CLEANUP(text_free) char *word = text_format(" %s ", key);
		if (*key == 0)
			continue;
		if (switch_on(q->sandbox, "rossum.strict") && (t->query == NULL || strstr(t->query, word) == NULL))
			return complain(q, key, "Unknown parameter.");
		if (strstr(seen, word) != NULL)
			return complain(q, key, "Given twice.");
		char *longer = text_format("%s%s ", seen, key);
		free(seen);
		seen = longer;
	}
	return true;
}

/* *ret stays as it is when the query has none. */
static bool query_number(struct request *q, const char *name, int64_t min, int64_t max, int64_t *ret)
{
	CLEANUP(text_free) char *text = request_query(q, name);
	if (text == NULL)
		return true;
	int64_t n = number_from(text);
	if (n < min || n > max)
		return complain(q, name, "Not a valid number.");
	*ret = n;
	return true;
}

static bool query_bool(struct request *q, const char *name, bool *ret)
{
	CLEANUP(text_free) char *text = request_query(q, name);
	if (text == NULL)
		return true;
	if (strcasecmp(text, "true") != 0 && strcasecmp(text, "false") != 0)
		return complain(q, name, "Must be true or false.");
	*ret = strcasecmp(text, "true") == 0;
	return true;
}

/* *ret is an array of texts, or NULL when the query has none. */
static bool query_words(struct request *q, const char *name, cJSON **ret)
{
	CLEANUP(text_free) char *text = request_query(q, name);
	*ret = text == NULL ? NULL : cJSON_CreateArray();
	char *rest = text;
	for (char *one = strsep(&rest, ","); one != NULL; one = strsep(&rest, ",")) {
		if (*one == 0)
			return complain(q, name, "An empty value in the list.");
		cJSON_AddItemToArray(*ret, cJSON_CreateString(one));
	}
	return true;
}

static bool query_ids(struct request *q, const char *name, cJSON **ret)
{
	if (!query_words(q, name, ret))
		return false;
	cJSON *one;
	cJSON_ArrayForEach (one, *ret) {
		int64_t id = number_from(one->valuestring);
		if (id < 0)
			return complain(q, name, "Not a list of ids.");
		cJSON_SetNumberValue(one, (double)id);
	}
	return true;
}

static bool words_have(const cJSON *words, const char *word)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, words)
		if (strcmp(one->valuestring, word) == 0)
			return true;
	return false;
}

/* What query_ids() gave; NULL lets everything through. */
static bool ids_admit(const cJSON *ids, int64_t id)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, ids)
		if ((int64_t)one->valuedouble == id)
			return true;
	return ids == NULL;
}

static int64_t time_from(const char *text)
{
	struct tm tm = { 0 };
	const char *end = strptime(text, "%Y-%m-%d", &tm);
	if (end != NULL && *end == 'T')
		end = strptime(end + 1, "%H:%M:%S", &tm);
	if (end == NULL)
		return -1;
	int64_t ms = (int64_t)timegm(&tm) * 1000;
	if (*end == '.') {
		char *digits_end;
		double fraction = strtod(end, &digits_end);
		ms += (int64_t)(fraction * 1000);
		end = digits_end;
	}
	return *end == 0 || strcmp(end, "Z") == 0 ? ms : -1;
}

struct span {
	int64_t after_ms, before_ms; /* 0, INT64_MAX: open */
};

static bool query_span(struct request *q, const char *name, struct span *ret)
{
	static const char *const ends[] = { "after", "before" };
	*ret = (struct span){ .before_ms = INT64_MAX };
	for (int i = 0; i < 2; i++) {
		CLEANUP(text_free) char *key = text_format("%s_%s", name, ends[i]);
		CLEANUP(text_free) char *text = request_query(q, key);
		int64_t ms = text == NULL ? 0 : time_from(text);
		if (ms < 0)
			return complain(q, key, "Enter a valid date/time.");
		if (text != NULL)
			*(i == 0 ? &ret->after_ms : &ret->before_ms) = ms;
	}
	return true;
}

/* A time that is not yet (0) lies in no span that has an end. */
static bool span_has(const struct span *s, int64_t ms)
{
	return ms == 0 ? s->after_ms == 0 && s->before_ms == INT64_MAX : ms >= s->after_ms && ms < s->before_ms;
}

/* --- Records --- */

/* What links of this kind start with: another host, where the switch wants to see who follows with a token. */
static char *link_base(struct rossum *r, const char *kind)
{
	const char *url = sandbox_url(r->sandbox, "rossum");
	const char *port = strrchr(url, ':');
	if (kind != NULL && switch_is(r->sandbox, "rossum.foreign", kind))
		return text_format("%.*s://localhost%s" BASE, (int)strcspn(url, ":"), url, port);
	return text_format("%s" BASE, url);
}

static char *link_to(struct rossum *r, const char *kind, const char *collection, int64_t id)
{
	CLEANUP(text_free) char *base = link_base(r, kind);
	return text_format("%s/%s/%lld", base, collection, (long long)id);
}

static void add_link(struct rossum *r, cJSON *to, const char *key, const char *collection, int64_t id)
{
	CLEANUP(text_free) char *url = link_to(r, NULL, collection, id);
	if (id > 0)
		cJSON_AddStringToObject(to, key, url);
	else
		cJSON_AddNullToObject(to, key);
}

static void append_link(struct rossum *r, cJSON *list, const char *collection, int64_t id)
{
	CLEANUP(text_free) char *url = link_to(r, NULL, collection, id);
	cJSON_AddItemToArray(list, cJSON_CreateString(url));
}

/* Of an array of ids. */
static cJSON *links_to(struct rossum *r, const char *collection, const cJSON *ids)
{
	cJSON *list = cJSON_CreateArray();
	const cJSON *one;
	cJSON_ArrayForEach (one, ids)
		append_link(r, list, collection, (int64_t)one->valuedouble);
	return list;
}

static void add_time(cJSON *to, const char *key, int64_t ms)
{
	CLEANUP(text_free) char *text = time_text(ms, true);
	if (ms > 0)
		cJSON_AddStringToObject(to, key, text);
	else
		cJSON_AddNullToObject(to, key);
}

static void add_text(cJSON *to, const char *key, const char *text)
{
	if (text != NULL)
		cJSON_AddStringToObject(to, key, text);
	else
		cJSON_AddNullToObject(to, key);
}

static cJSON *finish_record(struct rossum *r, cJSON *record, const cJSON *fields, const cJSON *without)
{
	const cJSON *one;
	if (switch_on(r->sandbox, "rossum.extra")) {
		cJSON *nested = cJSON_AddObjectToObject(record, "x_unforeseen");
		cJSON_AddItemToArray(cJSON_AddArrayToObject(nested, "self"), cJSON_CreateNull());
	}
	cJSON_ArrayForEach (one, fields) {
		cJSON_DeleteItemFromObjectCaseSensitive(record, one->string);
		cJSON_AddItemToObject(record, one->string, cJSON_Duplicate(one, true));
	}
	cJSON_ArrayForEach (one, without)
		if (cJSON_IsString(one))
			cJSON_DeleteItemFromObjectCaseSensitive(record, one->valuestring);
	return record;
}

static cJSON *user_json(struct rossum *r, const struct user *u)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddNumberToObject(o, "id", (double)u->id);
	add_link(r, o, "url", "users", u->id);
	cJSON_AddStringToObject(o, "username", u->name);
	cJSON_AddStringToObject(o, "email", "");
	cJSON_AddStringToObject(o, "first_name", "");
	cJSON_AddStringToObject(o, "last_name", "");
	add_link(r, o, "organization", "organizations", ORGANIZATION_ID);
	cJSON_AddItemToObject(o, "queues", links_to(r, "queues", u->queues));
	cJSON_AddArrayToObject(o, "groups");
	cJSON_AddBoolToObject(o, "is_active", true);
	return finish_record(r, o, NULL, NULL);
}

static cJSON *workspace_json(struct rossum *r, const void *item)
{
	const struct workspace *w = item;
	cJSON *o = cJSON_CreateObject();
	cJSON_AddNumberToObject(o, "id", (double)w->id);
	cJSON_AddStringToObject(o, "name", w->name);
	add_link(r, o, "url", "workspaces", w->id);
	add_link(r, o, "organization", "organizations", ORGANIZATION_ID);
	cJSON *list = cJSON_AddArrayToObject(o, "queues");
	for (const struct queue *q = r->queues; q != NULL; q = q->hh.next)
		if (q->workspace_id == w->id)
			append_link(r, list, "queues", q->id);
	cJSON_AddObjectToObject(o, "metadata");
	return finish_record(r, o, NULL, NULL);
}

static void add_counts(struct rossum *r, cJSON *to, const struct queue *w)
{
	long counts[STATUS_COUNT] = { 0 };
	int64_t now = now_of(r);
	if (switch_is(r->sandbox, "rossum.counts", "none"))
		return;
	for (const struct annotation *a = r->annotations; a != NULL; a = a->hh.next)
		if (a->queue_id == w->id && now >= a->visible_ms)
			counts[annotation_status(a, now)]++;
	cJSON *o = cJSON_AddObjectToObject(to, "counts");
	for (int i = 0; i < STATUS_COUNT; i++)
		if ((i != CREATED && i != IN_WORKFLOW) || switch_is(r->sandbox, "rossum.counts", "all"))
			cJSON_AddNumberToObject(o, status_words[i], (double)counts[i]);
}

static cJSON *queue_json(struct rossum *r, const void *item)
{
	const struct queue *w = item;
	cJSON *o = cJSON_CreateObject();
	cJSON_AddNumberToObject(o, "id", (double)w->id);
	cJSON_AddStringToObject(o, "name", w->name);
	add_link(r, o, "url", "queues", w->id);
	add_link(r, o, "workspace", "workspaces", w->workspace_id);
	add_link(r, o, "schema", "schemas", 41);
	cJSON_AddNullToObject(o, "inbox");
	cJSON_AddNullToObject(o, "connector");
	cJSON_AddArrayToObject(o, "hooks");
	cJSON_AddArrayToObject(o, "users");
	add_counts(r, o, w);
	cJSON_AddStringToObject(o, "status", w->status);
	cJSON_AddStringToObject(o, "locale", "en_GB");
	cJSON_AddStringToObject(o, "session_timeout", "01:00:00");
	cJSON_AddBoolToObject(o, "automation_enabled", false);
	cJSON_AddStringToObject(o, "automation_level", "never");
	cJSON_AddBoolToObject(o, "use_confirmed_state", true);
	cJSON_AddNullToObject(o, "document_lifetime");
	cJSON_AddNullToObject(o, "delete_after");
	cJSON *settings = cJSON_AddObjectToObject(o, "settings");
	cJSON_AddItemToObject(settings, "accepted_mime_types", cJSON_Duplicate(w->accepted, true));
	cJSON_AddObjectToObject(o, "metadata");
	cJSON_AddNullToObject(o, "modified_at");
	cJSON_AddNullToObject(o, "modified_by");
	return finish_record(r, o, w->fields, w->without);
}

static cJSON *document_json(struct rossum *r, const void *item)
{
	const struct document *d = item;
	cJSON *o = cJSON_CreateObject();
	cJSON_AddNumberToObject(o, "id", (double)d->id);
	add_link(r, o, "url", "documents", d->id);
	add_text(o, "s3_name", d->is_purged ? NULL : d->s3_name);
	if (d->name_json != NULL)
		cJSON_AddRawToObject(o, "original_file_name", d->name_json);
	else
		add_text(o, "original_file_name", d->name);
	add_text(o, "mime_type", d->mime);
	CLEANUP(text_free) char *url = link_to(r, NULL, "documents", d->id);
	CLEANUP(text_free) char *content = text_format("%s/content", url);
	add_text(o, "content", d->is_purged ? NULL : content);
	cJSON *list = cJSON_AddArrayToObject(o, "annotations");
	for (size_t i = 0; i < d->annotation_count; i++)
		append_link(r, list, "annotations", d->annotation_ids[i]);
	add_link(r, o, "parent", "documents", d->parent_id);
	cJSON_AddNullToObject(o, "email");
	add_link(r, o, "creator", "users", d->creator_id);
	add_time(o, "created_at", d->created_ms);
	add_time(o, "arrived_at", d->created_ms);
	add_text(o, "attachment_status", d->attachment_status);
	cJSON_AddItemToObject(o, "metadata", cJSON_Duplicate(d->metadata, true));
	return finish_record(r, o, d->fields, d->without);
}

static cJSON *annotation_json(struct rossum *r, const void *item)
{
	const struct annotation *a = item;
	cJSON *o = cJSON_CreateObject();
	cJSON_AddNumberToObject(o, "id", (double)a->id);
	add_link(r, o, "url", "annotations", a->id);
	cJSON_AddStringToObject(o, "status", annotation_word(a, now_of(r)));
	add_link(r, o, "document", "documents", a->document_id);
	add_link(r, o, "queue", "queues", a->queue_id);
	add_link(r, o, "schema", "schemas", 41);
	CLEANUP(text_free) char *url = link_to(r, NULL, "annotations", a->id);
	CLEANUP(text_free) char *content = text_format("%s/content", url);
	cJSON_AddStringToObject(o, "content", content);
	cJSON_AddArrayToObject(o, "pages");
	add_link(r, o, "creator", "users", a->creator_id);
	cJSON_AddNullToObject(o, "modifier");
	cJSON_AddNullToObject(o, "modified_by");
	add_time(o, "created_at", a->created_ms);
	add_time(o, "arrived_at", a->created_ms);
	add_time(o, "modified_at", a->modified_ms);
	cJSON_AddNullToObject(o, "assigned_at");
	add_time(o, "confirmed_at", a->since_ms[CONFIRMED]);
	add_time(o, "exported_at", a->since_ms[EXPORTED]);
	add_time(o, "export_failed_at", a->since_ms[FAILED_EXPORT]);
	add_time(o, "rejected_at", a->since_ms[REJECTED]);
	add_time(o, "deleted_at", a->since_ms[DELETED]);
	add_time(o, "purged_at", a->since_ms[PURGED]);
	cJSON_AddNullToObject(o, "email");
	add_link(r, o, "organization", "organizations", ORGANIZATION_ID);
	cJSON_AddArrayToObject(o, "relations");
	cJSON_AddArrayToObject(o, "labels");
	cJSON_AddArrayToObject(o, "assignees");
	cJSON_AddNullToObject(o, "messages");
	cJSON_AddBoolToObject(o, "automated", false);
	cJSON_AddNumberToObject(o, "time_spent", 0);
	cJSON_AddItemToObject(o, "metadata", cJSON_Duplicate(a->metadata, true));
	return finish_record(r, o, a->fields, a->without);
}

/* --- Lists --- */

struct list {
	const void **items;
	size_t count, room;
};

static void list_release(struct list *l)
{
	free(l->items);
}

static void list_add(struct list *l, const void *item)
{
	if (l->count == l->room) {
		l->room = l->room * 2 + 64;
		l->items = realloc(l->items, l->room * sizeof *l->items);
		if (l->items == NULL)
			abort();
	}
	l->items[l->count++] = item;
}

/* A key to order by: one of the two. Both NULL: known, and the same for all. */
struct order_key {
	const char *name;
	int64_t (*number)(struct rossum *r, const void *item);
	const char *(*text)(struct rossum *r, const void *item);
};

struct order {
	struct rossum *r;
	const struct order_key *keys[ORDER_KEYS_MAX];
	bool is_descending[ORDER_KEYS_MAX];
	size_t count;
	int64_t (*id)(struct rossum *r, const void *item); /* what settles ties */
};

static int compare_items(const void *a, const void *b, void *cls)
{
	const struct order *o = cls;
	const void *left = *(const void *const *)a, *right = *(const void *const *)b;
	for (size_t i = 0; i < o->count; i++) {
		const struct order_key *k = o->keys[i];
		int r = 0;
		if (k->number != NULL) {
			int64_t x = k->number(o->r, left), y = k->number(o->r, right);
			r = (x > y) - (x < y);
		} else if (k->text != NULL) {
			const char *x = k->text(o->r, left), *y = k->text(o->r, right);
			r = strcmp(x == NULL ? "" : x, y == NULL ? "" : y);
		}
		if (r != 0)
			return o->is_descending[i] ? -r : r;
	}
	int64_t x = o->id(o->r, left), y = o->id(o->r, right);
	int r = (x > y) - (x < y);
	return o->count > 0 && o->is_descending[0] ? -r : r;
}

static void list_sort(struct list *l, struct order *o)
{
	if (l->count > 0)
		qsort_r(l->items, l->count, sizeof *l->items, compare_items, o);
}

/* Adds the keys the query names, out of those there are. */
static bool query_ordering(struct call *c, const struct order_key *keys, size_t count, struct order *ret)
{
	CLEANUP(json_free) cJSON *words = NULL;
	if (!query_words(c->q, "ordering", &words))
		return false;
	const cJSON *one;
	cJSON_ArrayForEach (one, words) {
		bool is_descending = one->valuestring[0] == '-';
		const struct order_key *found = NULL;
		for (size_t i = 0; i < count; i++)
			if (strcmp(keys[i].name, one->valuestring + is_descending) == 0)
				found = &keys[i];
		if (found == NULL || ret->count == ORDER_KEYS_MAX)
			return complain(c->q, "ordering", "Not a key to order by.");
		ret->is_descending[ret->count] = is_descending;
		ret->keys[ret->count++] = found;
	}
	return true;
}

static char *page_link(struct call *c, int64_t page)
{
	CLEANUP(text_free) char *base = link_base(c->r, "next");
	CLEANUP(text_free) char *all = text_copy(c->q->raw_query);
	char *url = text_format("%s%s?page=%lld", base, c->q->raw_path + strlen(BASE), (long long)page);
	char *rest = all;
	for (char *pair = strsep(&rest, "&"); pair != NULL; pair = strsep(&rest, "&")) {
		if (*pair == 0 || strncmp(pair, "page=", 5) == 0)
			continue;
		char *longer = text_format("%s&%s", url, pair);
		free(url);
		url = longer;
	}
	return url;
}

static void add_page_link(struct call *c, cJSON *to, const char *key, int64_t page)
{
	CLEANUP(text_free) char *url = page > 0 ? page_link(c, page) : NULL;
	add_text(to, key, url);
}

/* Keeps in record what `fields` wants and `fields!` does not forbid. */
static void trim_record(cJSON *record, const cJSON *kept, const cJSON *dropped)
{
	for (cJSON *one = record->child, *next; one != NULL; one = next) {
		next = one->next;
		if ((kept != NULL && !words_have(kept, one->string)) || words_have(dropped, one->string))
			cJSON_Delete(cJSON_DetachItemViaPointer(record, one));
	}
}

/* Answers with the page of the sorted list that was asked for. sideload may be NULL. */
static void answer_page(struct call *c, const struct list *l, cJSON *(*make)(struct rossum *r, const void *item),
			bool (*sideload)(struct call *c, cJSON *answer, const struct list *page))
{
	struct sandbox *s = c->r->sandbox;
	int64_t page = 1, size = 20, count = (int64_t)l->count;
	bool with_total = false;
	CLEANUP(json_free) cJSON *kept = NULL, *dropped = NULL;
	if (!query_number(c->q, "page", 1, INT32_MAX, &page) ||
	    !query_number(c->q, "page_size", 1, PAGE_SIZE_MAX, &size) ||
	    !query_bool(c->q, "include_total", &with_total) || !query_words(c->q, "fields", &kept) ||
	    !query_words(c->q, "fields!", &dropped))
		return;
	int64_t from = (page - 1) * size, to = from + size < count ? from + size : count;
	if (page > 1 && from >= count && switch_is(s, "rossum.beyond", "404")) {
		refuse(c->q, 404, "Invalid page.");
		return;
	}
	CLEANUP(json_free) cJSON *o = cJSON_CreateObject();
	cJSON *pagination = cJSON_AddObjectToObject(o, "pagination");
	cJSON *const places[] = { switch_is(s, "rossum.next", "top") ? NULL : pagination,
				  switch_is(s, "rossum.next", "pagination") ? NULL : o };
	for (size_t i = 0; i < COUNT_OF(places); i++) {
		if (places[i] == NULL)
			continue;
		add_page_link(c, places[i], "next", to < count ? page + 1 : 0);
		add_page_link(c, places[i], "previous", page - 1);
	}
	if (switch_is(s, "rossum.totals", "always") || (with_total && switch_is(s, "rossum.totals", "asked"))) {
		cJSON_AddNumberToObject(pagination, "total", (double)count);
		cJSON_AddNumberToObject(pagination, "total_pages",
					(double)(count == 0 ? 1 : (count + size - 1) / size));
	}
	cJSON *results = cJSON_AddArrayToObject(o, "results");
	struct list part = { .items = l->items + (from < count ? from : 0),
			     .count = from < to ? (size_t)(to - from) : 0 };
	for (size_t i = 0; i < part.count; i++) {
		cJSON *record = make(c->r, part.items[i]);
		trim_record(record, kept, dropped);
		cJSON_AddItemToArray(results, record);
	}
	if (sideload != NULL && !sideload(c, o, &part))
		return;
	answer_json(&c->q->answer, 200, o);
	o = NULL; /* taken */
}

static void sort_and_answer(struct call *c, struct list *l, struct order *o,
			    cJSON *(*make)(struct rossum *r, const void *item))
{
	list_sort(l, o);
	answer_page(c, l, make, NULL);
}

/* --- Workspaces, queues --- */

static int64_t workspace_id(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct workspace *)item)->id;
}

static const char *workspace_name(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct workspace *)item)->name;
}

static int64_t queue_id(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct queue *)item)->id;
}

static const char *queue_name(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct queue *)item)->name;
}

static int64_t queue_workspace(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct queue *)item)->workspace_id;
}

static void list_workspaces(struct call *c)
{
	static const struct order_key keys[] = { { "id", workspace_id, NULL }, { "name", NULL, workspace_name } };
	CLEANUP(list_release) struct list l = { 0 };
	CLEANUP(json_free) cJSON *ids = NULL;
	CLEANUP(text_free) char *name = request_query(c->q, "name");
	struct order o = { .r = c->r, .id = workspace_id };
	int64_t organization = ORGANIZATION_ID;
	if (!query_ordering(c, keys, COUNT_OF(keys), &o) || !query_ids(c->q, "id", &ids) ||
	    !query_number(c->q, "organization", 1, INT64_MAX, &organization))
		return;
	for (const struct workspace *w = c->r->workspaces; w != NULL; w = w->hh.next)
		if (ids_admit(ids, w->id) && (name == NULL || strcmp(name, w->name) == 0) &&
		    organization == ORGANIZATION_ID)
			list_add(&l, w);
	sort_and_answer(c, &l, &o, workspace_json);
}

static void get_workspace(struct call *c)
{
	struct workspace *w = find_workspace(c->r, id_of_call(c));
	if (w == NULL)
		not_found(c);
	else
		answer_json(&c->q->answer, 200, workspace_json(c->r, w));
}

static void list_queues(struct call *c)
{
	static const struct order_key keys[] = {
		{ "id", queue_id, NULL },    { "name", NULL, queue_name }, { "workspace", queue_workspace, NULL },
		{ "connector", NULL, NULL }, { "webhooks", NULL, NULL },   { "schema", NULL, NULL },
		{ "inbox", NULL, NULL },     { "locale", NULL, NULL },
	};
	CLEANUP(list_release) struct list l = { 0 };
	CLEANUP(json_free) cJSON *ids = NULL;
	CLEANUP(text_free) char *name = request_query(c->q, "name"), *locale = request_query(c->q, "locale");
	struct order o = { .r = c->r, .id = queue_id };
	int64_t in_workspace = 0;
	bool deleting = false;
	if (!query_ordering(c, keys, COUNT_OF(keys), &o) || !query_ids(c->q, "id", &ids) ||
	    !query_number(c->q, "workspace", 1, INT64_MAX, &in_workspace) || !query_bool(c->q, "deleting", &deleting))
		return;
	for (const struct queue *w = c->r->queues; w != NULL; w = w->hh.next)
		if (user_sees(c->user, w->id) && ids_admit(ids, w->id) &&
		    (name == NULL || strcmp(name, w->name) == 0) &&
		    (in_workspace == 0 || in_workspace == w->workspace_id) && !deleting &&
		    (locale == NULL || strcmp(locale, "en_GB") == 0))
			list_add(&l, w);
	sort_and_answer(c, &l, &o, queue_json);
}

/* NULL: not there or not theirs; the answer is set then. */
static struct queue *queue_of(struct request *q, const struct user *u, int64_t id)
{
	struct queue *w = find_queue(q->state, id);
	if (w != NULL && user_sees(u, id))
		return w;
	refuse(q, 404, "Not found.");
	return NULL;
}

static void get_queue(struct call *c)
{
	struct queue *w = queue_of(c->q, c->user, id_of_call(c));
	if (w != NULL)
		answer_json(&c->q->answer, 200, queue_json(c->r, w));
}

/* --- Annotations --- */

static int64_t annotation_id(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct annotation *)item)->id;
}

static int64_t annotation_created(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct annotation *)item)->created_ms;
}

static int64_t annotation_modified(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct annotation *)item)->modified_ms;
}

static int64_t annotation_document(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct annotation *)item)->document_id;
}

static int64_t annotation_queue(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct annotation *)item)->queue_id;
}

static const char *annotation_file_name(struct rossum *r, const void *item)
{
	const struct document *d = find_document(r, annotation_document(r, item));
	return d == NULL ? NULL : d->name;
}

static const char *annotation_status_word(struct rossum *r, const void *item)
{
	return annotation_word(item, now_of(r));
}

#define DEFINE_SINCE(name, status)                                                                                     \
	static int64_t annotation_##name(struct rossum *r, const void *item)                                           \
	{                                                                                                              \
		(void)r;                                                                                               \
		return ((const struct annotation *)item)->since_ms[status];                                            \
	}
DEFINE_SINCE(confirmed, CONFIRMED)
DEFINE_SINCE(exported, EXPORTED)
DEFINE_SINCE(export_failed, FAILED_EXPORT)
DEFINE_SINCE(rejected, REJECTED)
DEFINE_SINCE(deleted, DELETED)
DEFINE_SINCE(purged, PURGED)
#undef DEFINE_SINCE

/* `id` is no key here; it is one of the search. */
static const struct order_key annotation_keys[] = {
	{ "document", annotation_document, NULL },
	{ "document__arrived_at", annotation_created, NULL },
	{ "document__original_file_name", NULL, annotation_file_name },
	{ "queue", annotation_queue, NULL },
	{ "status", NULL, annotation_status_word },
	{ "creator", NULL, NULL },
	{ "created_at", annotation_created, NULL },
	{ "modified_at", annotation_modified, NULL },
	{ "assigned_at", NULL, NULL },
	{ "confirmed_at", annotation_confirmed, NULL },
	{ "exported_at", annotation_exported, NULL },
	{ "export_failed_at", annotation_export_failed, NULL },
	{ "rejected_at", annotation_rejected, NULL },
	{ "deleted_at", annotation_deleted, NULL },
	{ "purged_at", annotation_purged, NULL },
	{ "confirmed_by", NULL, NULL },
	{ "deleted_by", NULL, NULL },
	{ "exported_by", NULL, NULL },
	{ "modified_by", NULL, NULL },
	{ "purged_by", NULL, NULL },
	{ "rejected_by", NULL, NULL },
};

static const struct order_key newest_first = { "created_at", annotation_created, NULL };

/* The documents of a page come in no order that would match its results: they are to be joined by URL. */
static bool sideload_annotations(struct call *c, cJSON *answer, const struct list *page)
{
	static const char *const groups[] = { "documents", "modifiers", "creators", "queues", "workspaces",
					      "pages",     "relations", "emails",   "labels", "automation_blockers" };
	CLEANUP(json_free) cJSON *words = NULL;
	if (!query_words(c->q, "sideload", &words))
		return false;
	const cJSON *one;
	cJSON_ArrayForEach (one, words) {
		bool is_known = false;
		for (size_t i = 0; i < COUNT_OF(groups); i++)
			is_known |= strcmp(groups[i], one->valuestring) == 0;
		if (!is_known)
			return complain(c->q, "sideload", "Not something to sideload here.");
		cJSON *list = cJSON_AddArrayToObject(answer, one->valuestring);
		int64_t seen[PAGE_SIZE_MAX];
		size_t seen_count = 0;
		for (size_t i = page->count; i-- > 0;) {
			const struct annotation *a = page->items[i];
			const struct document *d = find_document(c->r, a->document_id);
			const struct queue *w = find_queue(c->r, a->queue_id);
			bool is_queue = strcmp(one->valuestring, "queues") == 0;
			bool is_document = strcmp(one->valuestring, "documents") == 0;
			int64_t id = is_document && d != NULL ? d->id : is_queue && w != NULL ? w->id : 0;
			bool is_new = id > 0;
			for (size_t k = 0; k < seen_count && is_new; k++)
				is_new = seen[k] != id;
			if (!is_new)
				continue;
			seen[seen_count++] = id;
			cJSON_AddItemToArray(list, is_document ? document_json(c->r, d) : queue_json(c->r, w));
		}
	}
	return true;
}

static bool queue_admits(struct call *c, const struct annotation *a, const cJSON *workspaces)
{
	const struct queue *w = find_queue(c->r, a->queue_id);
	return w != NULL && user_sees(c->user, w->id) && ids_admit(workspaces, w->workspace_id);
}

static void list_annotations(struct call *c)
{
	CLEANUP(list_release) struct list l = { 0 };
	CLEANUP(json_free) cJSON *ids = NULL, *queues = NULL, *workspaces = NULL, *statuses = NULL, *documents = NULL;
	CLEANUP(text_free) char *search = request_query(c->q, "search");
	struct order o = { .r = c->r, .id = annotation_id };
	struct span arrived, modified, deleted, exported;
	if (!query_ordering(c, annotation_keys, COUNT_OF(annotation_keys), &o) || !query_ids(c->q, "id", &ids) ||
	    !query_ids(c->q, "queue", &queues) || !query_ids(c->q, "queue__workspace", &workspaces) ||
	    !query_ids(c->q, "document", &documents) || !query_words(c->q, "status", &statuses) ||
	    !query_span(c->q, "arrived_at", &arrived) || !query_span(c->q, "modified_at", &modified) ||
	    !query_span(c->q, "deleted_at", &deleted) || !query_span(c->q, "exported_at", &exported))
		return;
	const cJSON *word;
	cJSON_ArrayForEach (word, statuses)
		if (status_from(word->valuestring) < 0) {
			complain(c->q, "status", "Not a status.");
			return;
		}
	int64_t now = now_of(c->r);
	for (const struct annotation *a = c->r->annotations; a != NULL; a = a->hh.next) {
		if (now < a->visible_ms || !ids_admit(ids, a->id) || !ids_admit(queues, a->queue_id) ||
		    !ids_admit(documents, a->document_id) || !queue_admits(c, a, workspaces) ||
		    (statuses != NULL && !words_have(statuses, annotation_word(a, now))) ||
		    !span_has(&arrived, a->created_ms) || !span_has(&modified, a->modified_ms) ||
		    !span_has(&deleted, a->since_ms[DELETED]) || !span_has(&exported, a->since_ms[EXPORTED]))
			continue;
		const char *name = search == NULL ? NULL : annotation_file_name(c->r, a);
		if (search == NULL || (name != NULL && strcasestr(name, search) != NULL))
			list_add(&l, a);
	}
	bool is_ordered = o.count > 0;
	if (!is_ordered) {
		o.keys[o.count] = &newest_first;
		o.is_descending[o.count++] = switch_is(c->r->sandbox, "rossum.order", "newest");
	}
	list_sort(&l, &o);
	for (size_t i = l.count; i > 1 && !is_ordered && switch_is(c->r->sandbox, "rossum.order", "random"); i--) {
		size_t k = (size_t)(sandbox_random(c->r->sandbox) % i);
		const void *swapped = l.items[i - 1];
		l.items[i - 1] = l.items[k];
		l.items[k] = swapped;
	}
	answer_page(c, &l, annotation_json, sideload_annotations);
}

/* NULL: not there, not theirs or not yet; the answer is set then. */
static struct annotation *annotation_of(struct call *c)
{
	struct annotation *a = find_annotation(c->r, id_of_call(c));
	if (a == NULL || now_of(c->r) < a->visible_ms || !queue_admits(c, a, NULL)) {
		not_found(c);
		return NULL;
	}
	return a;
}

static void get_annotation(struct call *c)
{
	struct annotation *a = annotation_of(c);
	if (a != NULL)
		answer_json(&c->q->answer, 200, annotation_json(c->r, a));
}

/* A soft one. What somebody holds cannot be taken from under them. */
static void delete_annotation(struct call *c)
{
	struct annotation *a = annotation_of(c);
	if (a == NULL)
		return;
	enum status status = annotation_status(a, now_of(c->r));
	bool is_held = status == REVIEWING || status == IN_WORKFLOW;
	if (status == PURGED || (is_held && switch_is(c->r->sandbox, "rossum.locked_delete", "409"))) {
		refuse(c->q, 409, status == PURGED ? "It is purged." : "It is held by somebody else.");
		return;
	}
	if (status != DELETED)
		annotation_set_status(c->r, a, DELETED);
	c->q->answer.status = 204;
}

/* The id behind a link to our own collection; -1: something else. */
static int64_t id_from_link(struct rossum *r, const char *collection, const char *url)
{
	CLEANUP(text_free) char *base = link_base(r, NULL);
	CLEANUP(text_free) char *prefix = text_format("%s/%s/", base, collection);
	size_t n = strlen(prefix);
	return url != NULL && strncmp(url, prefix, n) == 0 ? number_from(url + n) : -1;
}

static void set_metadata(cJSON **at, const cJSON *metadata)
{
	cJSON_Delete(*at);
	*at = cJSON_Duplicate(metadata, true);
}

/* What is no object or too long; the answer is set then. */
static bool metadata_is_fit(struct request *q, const cJSON *metadata)
{
	if (metadata == NULL)
		return true;
	CLEANUP(text_free) char *text = cJSON_PrintUnformatted(metadata);
	if (!cJSON_IsObject(metadata))
		return complain(q, "metadata", "Value must be a JSON object.");
	if (text == NULL || (int64_t)strlen(text) > switch_number(q->sandbox, "rossum.metadata_bytes", 4096))
		return complain(q, "metadata", "Metadata is limited to 4 kB.");
	return true;
}

static void patch_annotation(struct call *c)
{
	struct annotation *a = annotation_of(c);
	if (a == NULL)
		return;
	const cJSON *status = json_get(c->body, "status"), *queue = json_get(c->body, "queue");
	const cJSON *metadata = json_get(c->body, "metadata");
	int new_status = status == NULL ? -1 : status_from(cJSON_IsString(status) ? status->valuestring : NULL);
	int64_t to =
		queue == NULL ? 0 : id_from_link(c->r, "queues", cJSON_IsString(queue) ? queue->valuestring : NULL);
	if (annotation_status(a, now_of(c->r)) == PURGED) {
		refuse(c->q, 409, "It is purged.");
		return;
	}
	if (status != NULL && (new_status < 0 || new_status == PURGED || new_status == IMPORTING)) {
		complain(c->q, "status", "Not a status it can be set to.");
		return;
	}
	if (queue != NULL && (find_queue(c->r, to) == NULL || !user_sees(c->user, to))) {
		complain(c->q, "queue", "Invalid hyperlink.");
		return;
	}
	if (!metadata_is_fit(c->q, metadata))
		return;
	if (new_status >= 0)
		annotation_set_status(c->r, a, (enum status)new_status);
	if (queue != NULL && switch_on(c->r->sandbox, "rossum.patch_queue"))
		a->queue_id = to;
	if (metadata != NULL)
		set_metadata(&a->metadata, metadata);
	a->modified_ms = now_of(c->r);
	sandbox_changed(c->r->sandbox);
	answer_json(&c->q->answer, 200, annotation_json(c->r, a));
}

static void copy_annotation(struct call *c)
{
	struct annotation *a = annotation_of(c);
	if (a == NULL)
		return;
	const char *word = json_text(c->body, "target_status", NULL);
	int64_t to = id_from_link(c->r, "queues", json_text(c->body, "target_queue", NULL));
	int64_t now = now_of(c->r);
	bool again = false;
	const cJSON *one;
	if (!query_bool(c->q, "reimport", &again))
		return;
	cJSON_ArrayForEach (one, c->body)
		if (strcmp(one->string, "target_queue") != 0 && strcmp(one->string, "target_status") != 0 &&
		    switch_on(c->r->sandbox, "rossum.strict")) {
			complain(c->q, one->string, "Unknown field.");
			return;
		}
	struct queue *w = find_queue(c->r, to);
	if (w == NULL || !user_sees(c->user, to)) {
		complain(c->q, "target_queue", "Invalid hyperlink.");
		return;
	}
	if (json_get(c->body, "target_status") != NULL && status_from(word) < 0) {
		complain(c->q, "target_status", "Not a status.");
		return;
	}
	if (annotation_status(a, now) == PURGED) {
		refuse(c->q, 409, "It is purged.");
		return;
	}
	if (again && strcmp(w->status, "active") != 0) {
		refuse(c->q, 400, "The queue is not active.");
		return;
	}
	struct annotation *b = annotation_add(c->r, 0, to, a->document_id);
	b->creator_id = c->user->id;
	set_metadata(&b->metadata, a->metadata);
	b->fails = a->fails;
	if (again)
		b->imported_ms = now + switch_number(c->r->sandbox, "rossum.import_ms", 0);
	else if (word == NULL && a->word == NULL && annotation_status(a, now) == IMPORTING)
		b->imported_ms = a->imported_ms;
	else
		annotation_set_status(c->r, b,
				      word != NULL ? (enum status)status_from(word) : annotation_status(a, now));
	cJSON *o = cJSON_CreateObject();
	add_link(c->r, o, "annotation", "annotations", b->id);
	answer_json(&c->q->answer, 200, o);
}

/* What the documentation calls internal or irreversible: no filesystem has a reason to ask for it. */
static void refuse_forbidden(struct call *c)
{
	c->r->forbidden++;
	sandbox_changed(c->r->sandbox);
	refuse(c->q, 403, "Not permitted.");
}

/* --- Documents --- */

static int64_t document_id(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct document *)item)->id;
}

static int64_t document_created(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct document *)item)->created_ms;
}

static const char *document_name(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct document *)item)->name;
}

static const char *document_mime(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct document *)item)->mime;
}

static const char *document_attachment_status(struct rossum *r, const void *item)
{
	(void)r;
	return ((const struct document *)item)->attachment_status;
}

static void list_documents(struct call *c)
{
	static const struct order_key keys[] = {
		{ "id", document_id, NULL },
		{ "arrived_at", document_created, NULL },
		{ "created_at", document_created, NULL },
		{ "original_file_name", NULL, document_name },
		{ "mime_type", NULL, document_mime },
		{ "attachment_status", NULL, document_attachment_status },
	};
	CLEANUP(list_release) struct list l = { 0 };
	CLEANUP(json_free) cJSON *ids = NULL;
	CLEANUP(text_free) char *name = request_query(c->q, "original_file_name");
	CLEANUP(text_free) char *attachment_status = request_query(c->q, "attachment_status");
	struct order o = { .r = c->r, .id = document_id };
	struct span arrived, created;
	int64_t creator = -1, parent = -1, email = -1;
	if (!query_ordering(c, keys, COUNT_OF(keys), &o) || !query_ids(c->q, "id", &ids) ||
	    !query_number(c->q, "creator", 0, INT64_MAX, &creator) ||
	    !query_number(c->q, "parent", 0, INT64_MAX, &parent) ||
	    !query_number(c->q, "email", 0, INT64_MAX, &email) || !query_span(c->q, "arrived_at", &arrived) ||
	    !query_span(c->q, "created_at", &created))
		return;
	int64_t now = now_of(c->r);
	for (const struct document *d = c->r->documents; d != NULL; d = d->hh.next)
		if (now >= d->visible_ms && ids_admit(ids, d->id) && email < 0 &&
		    (name == NULL || (d->name != NULL && strcmp(name, d->name) == 0)) &&
		    (attachment_status == NULL ||
		     (d->attachment_status != NULL && strcmp(attachment_status, d->attachment_status) == 0)) &&
		    (creator < 0 || creator == d->creator_id) && (parent < 0 || parent == d->parent_id) &&
		    span_has(&arrived, d->created_ms) && span_has(&created, d->created_ms))
			list_add(&l, d);
	sort_and_answer(c, &l, &o, document_json);
}

static struct document *document_of(struct call *c)
{
	struct document *d = find_document(c->r, id_of_call(c));
	if (d == NULL || now_of(c->r) < d->visible_ms) {
		not_found(c);
		return NULL;
	}
	return d;
}

static void get_document(struct call *c)
{
	struct document *d = document_of(c);
	if (d != NULL)
		answer_json(&c->q->answer, 200, document_json(c->r, d));
}

static void patch_document(struct call *c)
{
	struct document *d = document_of(c);
	const cJSON *metadata = json_get(c->body, "metadata");
	const cJSON *one;
	if (d == NULL)
		return;
	cJSON_ArrayForEach (one, c->body)
		if (one != metadata) {
			complain(c->q, one->string, "Only metadata can be changed.");
			return;
		}
	if (!metadata_is_fit(c->q, metadata))
		return;
	if (metadata != NULL)
		set_metadata(&d->metadata, metadata);
	sandbox_changed(c->r->sandbox);
	answer_json(&c->q->answer, 200, document_json(c->r, d));
}

/* One range, which lies in the content at least in part. A range that makes no sense is no range. */
static bool range_from(const char *text, int64_t size, int64_t *ret_from, int64_t *ret_to)
{
	long long from = -1, to = -1;
	int end = 0;
	if (text == NULL || strncmp(text, "bytes=", 6) != 0)
		return false;
	text += 6;
	if (sscanf(text, "%lld-%lld%n", &from, &to, &end) == 2 && end > 0 && text[end] == 0 && from >= 0 &&
	    to >= from) {
		*ret_from = from;
		*ret_to = to < size ? to : size - 1;
		return true;
	}
	end = 0;
	if (sscanf(text, "%lld-%n", &from, &end) == 1 && end > 0 && text[end] == 0 && from >= 0) {
		*ret_from = from;
		*ret_to = size - 1;
		return true;
	}
	end = 0;
	if (sscanf(text, "-%lld%n", &to, &end) == 1 && end > 0 && text[end] == 0 && to > 0) {
		*ret_from = to < size ? size - to : 0;
		*ret_to = size - 1;
		return true;
	}
	return false;
}

static void answer_bytes(struct call *c, const struct document *d)
{
	int64_t from = 0, to = d->content.size_bytes - 1, size = d->content.size_bytes;
	bool is_part =
		switch_on(c->r->sandbox, "rossum.range") && range_from(request_header(c->q, "Range"), size, &from, &to);
	if (d->is_purged || (is_part && from >= size) || content_open(&d->content, &c->q->answer.content) < 0) {
		if (d->is_purged || !is_part)
			not_found(c);
		else
			refuse(c->q, 416, "The range is not satisfiable.");
		return;
	}
	c->q->answer.status = is_part ? 206 : 200;
	c->q->answer.from_byte = from;
	c->q->answer.length_bytes = to - from + 1;
	answer_header(&c->q->answer, "Content-Type", d->mime == NULL ? "application/octet-stream" : d->mime);
	if (is_part) {
		CLEANUP(text_free)
		char *range = text_format("bytes %lld-%lld/%lld", (long long)from, (long long)to, (long long)size);
		answer_header(&c->q->answer, "Content-Range", range);
	}
}

static void get_content(struct call *c)
{
	struct document *d = document_of(c);
	if (d == NULL)
		return;
	if (!switch_on(c->r->sandbox, "rossum.redirect") || d->is_purged) {
		answer_bytes(c, d);
		return;
	}
	const char *url = sandbox_url(c->r->sandbox, "rossum");
	CLEANUP(text_free)
	char *to = text_format("%.*s://localhost%s/elsewhere/%s", (int)strcspn(url, ":"), url, strrchr(url, ':'),
			       d->s3_name);
	answer_header(&c->q->answer, "Location", to);
	c->q->answer.status = 302;
}

static struct document *document_stored_as(struct rossum *r, const char *s3_name)
{
	struct document *d = r->documents;
	while (d != NULL && strcmp(d->s3_name, s3_name) != 0)
		d = d->hh.next;
	return d;
}

static void get_original(struct call *c)
{
	struct document *d = document_stored_as(c->r, c->arg);
	if (d == NULL || now_of(c->r) < d->visible_ms)
		not_found(c);
	else
		answer_bytes(c, d);
}

/* Where content redirects to: an object storage, to which our token means nothing. */
static void get_elsewhere(struct call *c)
{
	struct document *d = document_stored_as(c->r, c->arg);
	if (request_header(c->q, "Authorization") != NULL) {
		c->r->leaks++;
		refuse(c->q, 400, "Only one auth mechanism allowed.");
	} else if (d == NULL || !switch_on(c->r->sandbox, "rossum.redirect")) {
		not_found(c);
	} else {
		answer_bytes(c, d);
	}
}

/* --- Tasks and uploads --- */

static void get_task(struct call *c)
{
	struct task *t = find_task(c->r, id_of_call(c));
	int64_t now = now_of(c->r);
	bool stays = false;
	if (!query_bool(c->q, "no_redirect", &stays))
		return;
	if (t == NULL || now >= t->expires_ms) {
		not_found(c);
		return;
	}
	bool is_done = now >= t->done_ms, is_failed = is_done && t->detail != NULL;
	CLEANUP(text_free) char *upload = link_to(c->r, "upload", "uploads", t->upload_id);
	if (is_done && !is_failed && !stays) {
		answer_header(&c->q->answer, "Location", upload);
		c->q->answer.status = 303;
		return;
	}
	cJSON *o = cJSON_CreateObject();
	cJSON_AddNumberToObject(o, "id", (double)t->id);
	add_link(c->r, o, "url", "tasks", t->id);
	cJSON_AddStringToObject(o, "type", "upload_created");
	cJSON_AddStringToObject(o, "status", !is_done ? "running" : is_failed ? "failed" : "succeeded");
	add_time(o, "expires_at", t->expires_ms);
	add_text(o, "detail", is_failed ? t->detail : NULL);
	if (is_failed)
		cJSON_AddStringToObject(o, "code", "error");
	if (is_failed || (!is_done && switch_is(c->r->sandbox, "rossum.task_upload", "late")))
		cJSON_AddNullToObject(o, "content");
	else
		cJSON_AddStringToObject(cJSON_AddObjectToObject(o, "content"), "upload", upload);
	if (is_done && !is_failed)
		cJSON_AddStringToObject(o, "result_url", upload);
	answer_json(&c->q->answer, 200, finish_record(c->r, o, NULL, NULL));
}

/* What an upload has none of may be null, and stays so. */
static void add_ids(struct rossum *r, cJSON *to, const char *key, const char *collection, const cJSON *ids,
		    bool reverse)
{
	if (cJSON_GetArraySize(ids) == 0 && switch_is(r->sandbox, "rossum.none", "null")) {
		cJSON_AddNullToObject(to, key);
		return;
	}
	cJSON *list = links_to(r, collection, ids);
	cJSON *turned = cJSON_CreateArray();
	while (list->child != NULL)
		cJSON_InsertItemInArray(turned, reverse ? 0 : cJSON_GetArraySize(turned),
					cJSON_DetachItemFromArray(list, 0));
	cJSON_Delete(list);
	cJSON_AddItemToObject(to, key, turned);
}

static void get_upload(struct call *c)
{
	struct upload *u = find_upload(c->r, id_of_call(c));
	int64_t now = now_of(c->r);
	if (u == NULL || now < u->visible_ms || !user_sees(c->user, u->queue_id)) {
		not_found(c);
		return;
	}
	bool is_ready = now >= u->ready_ms, reverse = switch_is(c->r->sandbox, "rossum.upload_order", "reverse");
	cJSON *o = cJSON_CreateObject();
	cJSON_AddNumberToObject(o, "id", (double)u->id);
	add_link(c->r, o, "url", "uploads", u->id);
	add_link(c->r, o, "queue", "queues", u->queue_id);
	add_link(c->r, o, "creator", "users", u->creator_id);
	add_time(o, "created_at", u->created_ms);
	cJSON_AddNullToObject(o, "email");
	add_link(c->r, o, "organization", "organizations", ORGANIZATION_ID);
	cJSON_AddItemToObject(o, "documents", links_to(c->r, "documents", u->documents));
	add_ids(c->r, o, "additional_documents", "documents", is_ready ? u->additional : NULL, false);
	add_ids(c->r, o, "annotations", "annotations", is_ready ? u->annotations : NULL, reverse);
	answer_json(&c->q->answer, 200, finish_record(c->r, o, NULL, NULL));
}

/* --- What a file is --- */

static const struct {
	const char *extension, *mime;
	bool is_taken; /* by Rossum itself */
} types[] = {
	{ "pdf", "application/pdf", true },
	{ "png", "image/png", true },
	{ "jpg", "image/jpeg", true },
	{ "jpeg", "image/jpeg", true },
	{ "tif", "image/tiff", true },
	{ "tiff", "image/tiff", true },
	{ "xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", true },
	{ "xls", "application/vnd.ms-excel", true },
	{ "docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", true },
	{ "doc", "application/msword", true },
	{ "html", "text/html", true },
	{ "htm", "text/html", true },
	{ "zip", "application/zip", false }, /* opened, not taken */
	{ "pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation", false },
	{ "txt", "text/plain", false },
	{ "csv", "text/csv", false },
	{ "xml", "application/xml", false },
	{ "json", "application/json", false },
	{ "exe", "application/x-msdownload", false },
};

static const char *mime_by_extension(const char *name)
{
	const char *dot = strrchr(name, '.');
	for (size_t i = 0; i < COUNT_OF(types) && dot != NULL; i++)
		if (strcasecmp(types[i].extension, dot + 1) == 0)
			return types[i].mime;
	return "application/octet-stream";
}

/* Bytes first, for the parts' own Content-Types are all octet-stream; what many formats share is settled by the name.
 */
static const char *mime_of(const char *name, const unsigned char head[8])
{
	const char *named = mime_by_extension(name);
	if (memcmp(head, "%PDF", 4) == 0)
		return "application/pdf";
	if (memcmp(head, "\x89PNG", 4) == 0)
		return "image/png";
	if (memcmp(head, "\xff\xd8\xff", 3) == 0)
		return "image/jpeg";
	if (memcmp(head, "II*\0", 4) == 0 || memcmp(head, "MM\0*", 4) == 0)
		return "image/tiff";
	if (memcmp(head, "MZ", 2) == 0)
		return "application/x-msdownload";
	if (memcmp(head, "PK\3\4", 4) == 0 || memcmp(head, "PK\5\6", 4) == 0)
		return strstr(named, "openxmlformats") != NULL ? named : "application/zip";
	return named;
}

static bool type_matches(const char *pattern, const char *mime)
{
	size_t n = strlen(pattern);
	if (n >= 2 && strcmp(pattern + n - 2, "/*") == 0)
		return strncasecmp(pattern, mime, n - 1) == 0;
	return strcasecmp(pattern, mime) == 0;
}

/* NULL, or the attachment_status of what the queue does not take. */
static const char *type_fault(struct rossum *r, const struct queue *w, const char *mime)
{
	bool is_taken = false, is_listed = cJSON_GetArraySize(w->accepted) == 0;
	const cJSON *one;
	for (size_t i = 0; i < COUNT_OF(types); i++)
		is_taken |= types[i].is_taken && strcmp(types[i].mime, mime) == 0;
	cJSON_ArrayForEach (one, w->accepted)
		is_listed |= cJSON_IsString(one) && type_matches(one->valuestring, mime);
	if (strcmp(mime, "application/x-msdownload") == 0)
		return "filtered_by_insecure_mime_type";
	bool is_helped = cJSON_GetArraySize(w->accepted) > 0 && switch_on(r->sandbox, "rossum.type_hook");
	return is_listed && (is_taken || is_helped) ? NULL : "filtered_by_queue_mime_type";
}

/* --- Uploads on their way in. What follows runs without the lock, up to the next heading. --- */

struct file {
	char *name, *path; /* path NULL: nothing to delete */
	int fd;
	EVP_MD_CTX *md;
	unsigned char head[8];
	int64_t size_bytes;
	char sha256[SHA256_HEX_BYTES], sent_sha256[SHA256_HEX_BYTES];
};

enum part { CONTENT_PART, METADATA_PART, VALUES_PART };

/* One request between its headers and its answer. */
struct incoming {
	const struct route *route;
	char *user, *arg;
	char *text; /* a JSON or form body, or the part under way */
	size_t text_bytes;
	struct multipart *form; /* NULL: none, or no files */
	enum part part;
	struct file *files; /* the last one may still be open */
	size_t file_count;
	char *metadata, *values;
	const char *files_dir, *fault_field, *fault; /* the first thing wrong; field NULL: with all of it */
	int64_t content_bytes, bytes_max;
	bool is_too_large;
};

static void file_release(struct file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	if (f->path != NULL)
		unlink(f->path);
	EVP_MD_CTX_free(f->md);
	free(f->path);
	free(f->name);
	*f = (struct file){ .fd = -1 };
}

static int file_open(const char *dir, const char *name, struct file *ret)
{
	CLEANUP(text_free) char *uuid = uuid_new();
	char *path = text_format("%s/%s", dir, uuid);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0) {
		int error = errno;
		free(path);
		return -error;
	}
	*ret = (struct file){ .name = text_copy(name), .path = path, .fd = fd, .md = EVP_MD_CTX_new() };
	EVP_DigestInit_ex(ret->md, EVP_sha256(), NULL);
	return 0;
}

static int file_write(struct file *f, const char *bytes, size_t count)
{
	for (size_t at = 0; at < count;) {
		ssize_t n = write(f->fd, bytes + at, count - at);
		if (n < 0 && errno != EINTR)
			return -errno;
		at += n < 0 ? 0 : (size_t)n;
	}
	for (size_t i = 0; i < count && f->size_bytes + (int64_t)i < (int64_t)sizeof f->head; i++)
		f->head[(size_t)f->size_bytes + i] = (unsigned char)bytes[i];
	EVP_DigestUpdate(f->md, bytes, count);
	f->size_bytes += (int64_t)count;
	return 0;
}

static int file_finish(struct file *f)
{
	unsigned char digest[32];
	EVP_DigestFinal_ex(f->md, digest, NULL);
	bytes_to_hex(digest, sizeof digest, f->sha256);
	int r = close(f->fd) < 0 ? -errno : 0;
	f->fd = -1;
	return r;
}

static int file_store(const char *dir, const char *name, const void *bytes, size_t count, struct file *ret)
{
	struct file f = { .fd = -1 };
	int r = file_open(dir, name, &f);
	if (r == 0)
		r = file_write(&f, bytes, count);
	if (r == 0)
		r = file_finish(&f);
	if (r < 0)
		file_release(&f);
	else
		*ret = f;
	return r;
}

static void find_fault(struct incoming *in, const char *field, const char *fault)
{
	if (in->fault != NULL)
		return;
	in->fault_field = field;
	in->fault = fault;
}

static int incoming_open_file(struct incoming *in, const char *name)
{
	in->files = realloc(in->files, (in->file_count + 1) * sizeof *in->files);
	if (in->files == NULL)
		abort();
	in->files[in->file_count] = (struct file){ .fd = -1 };
	return file_open(in->files_dir, name, &in->files[in->file_count++]);
}

static int incoming_add_bytes(struct incoming *in, const char *bytes, size_t count)
{
	in->content_bytes += (int64_t)count;
	in->is_too_large |= in->content_bytes > in->bytes_max;
	return in->is_too_large ? 0 : file_write(&in->files[in->file_count - 1], bytes, count);
}

static void incoming_add_text(struct incoming *in, const char *bytes, size_t count)
{
	if (in->text_bytes + count > JSON_BYTES_MAX) {
		in->is_too_large = true;
		return;
	}
	in->text = realloc(in->text, in->text_bytes + count + 1);
	if (in->text == NULL)
		abort();
	memcpy(in->text + in->text_bytes, bytes, count);
	in->text_bytes += count;
	in->text[in->text_bytes] = 0;
}

static int part_begin(void *cls, const struct multipart_head *head)
{
	static const char not_json[] = "Value must be valid JSON.";
	struct incoming *in = cls;
	bool is_metadata = strcmp(head->name, "metadata") == 0;
	free(in->text);
	in->text = NULL;
	in->text_bytes = 0;
	if (strcmp(head->name, "content") == 0) {
		in->part = CONTENT_PART;
		if (head->filename == NULL || *head->filename == 0)
			find_fault(in, "content", "The submitted data was not a file: it has no filename.");
		return incoming_open_file(in, head->filename == NULL ? "" : head->filename);
	}
	in->part = is_metadata ? METADATA_PART : VALUES_PART;
	if (!is_metadata && strcmp(head->name, "values") != 0)
		find_fault(in, NULL, "There is a part with an unknown name.");
	else if (head->filename != NULL)
		find_fault(in, is_metadata ? "metadata" : "values", not_json);
	else if ((is_metadata ? in->metadata : in->values) != NULL)
		find_fault(in, is_metadata ? "metadata" : "values", "Given twice.");
	return 0;
}

static int part_data(void *cls, const char *bytes, size_t count)
{
	struct incoming *in = cls;
	if (in->part == CONTENT_PART)
		return incoming_add_bytes(in, bytes, count);
	incoming_add_text(in, bytes, count);
	return 0;
}

static int part_end(void *cls)
{
	struct incoming *in = cls;
	if (in->part == CONTENT_PART)
		return file_finish(&in->files[in->file_count - 1]);
	char **at = in->part == METADATA_PART ? &in->metadata : &in->values;
	if (in->text != NULL && strlen(in->text) != in->text_bytes)
		find_fault(in, in->part == METADATA_PART ? "metadata" : "values", "Value must be valid JSON.");
	free(*at);
	*at = in->text == NULL ? text_copy("") : in->text;
	in->text = NULL;
	in->text_bytes = 0;
	return 0;
}

static const struct multipart_ops part_ops = { .begin = part_begin, .data = part_data, .end = part_end };

static int take_body(struct request *q, const char *bytes, size_t count)
{
	struct incoming *in = q->own;
	if (in == NULL)
		return 0;
	if (in->form != NULL)
		return multipart_feed(in->form, bytes, count);
	if (in->route->body == FILES_BODY)
		return incoming_add_bytes(in, bytes, count);
	incoming_add_text(in, bytes, count);
	return 0;
}

static void release(struct request *q)
{
	struct incoming *in = q->own;
	if (in == NULL)
		return;
	for (size_t i = 0; i < in->file_count; i++)
		file_release(&in->files[i]);
	multipart_free(in->form);
	free(in->files);
	free(in->user);
	free(in->arg);
	free(in->text);
	free(in->metadata);
	free(in->values);
	free(in);
	q->own = NULL;
}

/* --- What becomes of an upload; the lock is held again --- */

/* One of the service's own: scripts go, and a line says so. The bytes are never those that were sent. */
static int sanitise(struct rossum *r, struct file *f)
{
	static const char note[] = "<!-- sanitised -->\n";
	FILE *in = fopen(f->path, "re");
	CLEANUP(text_free) char *text = NULL;
	size_t room = 0;
	ssize_t n = in == NULL ? -1 : getdelim(&text, &room, EOF, in);
	if (in != NULL)
		fclose(in);
	if (n < 0)
		return -EIO;
	for (char *start; (start = strcasestr(text, "<script")) != NULL;) {
		char *end = strcasestr(start, "</script>");
		end = end == NULL ? start + strlen(start) : end + strlen("</script>");
		memmove(start, end, strlen(end) + 1);
	}
	CLEANUP(text_free) char *clean = text_format("%s%s", note, text);
	struct file fresh;
	int error = file_store(r->files_dir, f->name, clean, strlen(clean), &fresh);
	if (error < 0)
		return error;
	memcpy(fresh.sent_sha256, f->sha256, sizeof fresh.sent_sha256);
	file_release(f);
	*f = fresh;
	return 0;
}

/* Takes the file's bytes. */
static struct document *document_from_file(struct rossum *r, struct file *f, const char *mime, int64_t creator_id,
					   int64_t visible_ms)
{
	struct document *d = document_add(r, 0, f->name);
	d->mime = text_copy(mime);
	d->creator_id = creator_id;
	d->visible_ms = visible_ms;
	memcpy(d->sha256, f->sha256, sizeof d->sha256);
	memcpy(d->sent_sha256, f->sent_sha256, sizeof d->sent_sha256);
	d->content = (struct content){ .path = f->path, .size_bytes = f->size_bytes };
	f->path = NULL;
	return d;
}

static bool is_deleted(struct rossum *r, const struct document *d)
{
	for (size_t i = 0; i < d->annotation_count; i++) {
		const struct annotation *a = find_annotation(r, d->annotation_ids[i]);
		if (a != NULL && a->status != DELETED)
			return false;
	}
	return d->annotation_count > 0;
}

/* Anywhere in the organisation, a file of this name with these bytes; one whose task still runs too. */
static bool is_known(struct rossum *r, const struct file *f)
{
	bool with_deleted = switch_on(r->sandbox, "rossum.identical_deleted");
	for (struct document *d = r->documents; d != NULL; d = d->hh.next) {
		bool is_html = d->sent_sha256[0] != 0;
		if (d->is_purged || d->name == NULL || strcmp(d->name, f->name) != 0 ||
		    (!is_html && d->content.size_bytes != f->size_bytes) || (!with_deleted && is_deleted(r, d)))
			continue;
		if (d->sha256[0] == 0 && content_hash(&d->content, d->sha256) < 0)
			continue;
		if (strcmp(is_html ? d->sent_sha256 : d->sha256, f->sha256) == 0)
			return true;
	}
	return false;
}

/* What all files of one request share. */
struct batch {
	struct rossum *r;
	struct upload *upload;
	const struct queue *queue;
	const cJSON *metadata, *values;
	const struct document *archive; /* NULL: not from one */
	const char *only_folder;        /* of the archive: "" for its root; NULL: not settled yet */
};

static void append_id(cJSON *list, int64_t id)
{
	cJSON_AddItemToArray(list, cJSON_CreateNumber((double)id));
}

static void annotate(struct batch *b, const struct document *d, bool is_stuck)
{
	struct sandbox *s = b->r->sandbox;
	struct annotation *a = annotation_add(b->r, 0, b->queue->id, d->id);
	a->creator_id = b->upload->creator_id;
	a->upload_id = b->upload->id;
	a->visible_ms = b->upload->ready_ms;
	a->imported_ms = a->visible_ms + switch_number(s, "rossum.import_ms", 0);
	a->fails = matches(b->r, "rossum.import_fail", d->name);
	if (b->metadata != NULL)
		set_metadata(&a->metadata, b->metadata);
	a->values = cJSON_Duplicate(b->values, true);
	if (is_stuck)
		a->status = CREATED;
	append_id(b->upload->annotations, a->id);
}

static void import_archive(struct batch *b, struct document *d);

static bool image_is_broken(struct rossum *r, const char *mime, const char *name, const unsigned char head[8])
{
	return switch_on(r->sandbox, "rossum.broken_images") && strncmp(mime, "image/", 6) == 0 &&
	       strcmp(mime_of("x", head), mime) != 0 && strcmp(mime_by_extension(name), mime) == 0;
}

/* Takes the file's bytes. */
static void import_file(struct batch *b, struct file *f)
{
	struct rossum *r = b->r;
	const char *mime = mime_of(f->name, f->head), *fault = type_fault(r, b->queue, mime);
	unsigned char head[sizeof f->head];
	memcpy(head, f->head, sizeof head);
	/* On failure the bytes stay as they were sent, which the client then notices. */
	if (strcmp(mime, "text/html") == 0 && fault == NULL)
		(void)sanitise(r, f);
	struct document *d = document_from_file(r, f, mime, b->upload->creator_id, b->upload->visible_ms);
	if (b->archive != NULL)
		d->parent_id = b->archive->id;
	if (b->archive == NULL || switch_is(r->sandbox, "rossum.zip_documents", "all"))
		append_id(b->upload->documents, d->id);
	if (strcmp(mime, "application/zip") == 0 && b->archive == NULL) {
		import_archive(b, d);
		return;
	}
	if (fault == NULL && image_is_broken(r, mime, d->name, head))
		fault = "broken_image";
	bool is_stopped = fault == NULL && matches(r, "rossum.hook_prevent", d->name);
	bool is_stuck = is_stopped && switch_is(r->sandbox, "rossum.hook_leaves", "created");
	if (is_stopped && !is_stuck)
		fault = "filtered_by_hook_custom";
	d->attachment_status = text_copy(fault);
	if (fault != NULL)
		return;
	annotate(b, d, is_stuck);
	if (!matches(r, "rossum.hook_add", d->name))
		return;
	CLEANUP(text_free) char *name = text_format("cover of %s.pdf", d->name);
	struct document *added = document_add(r, 0, name);
	added->mime = text_copy("application/pdf");
	added->visible_ms = b->upload->ready_ms;
	added->creator_id = b->upload->creator_id;
	added->attachment_status = text_copy("hook_additional_file");
	added->content = content_generated((uint64_t)added->id, 1, 1200);
	append_id(b->upload->additional, added->id);
	annotate(b, added, false);
}

/* Files lie in the archive's root or in one sole folder; others are not seen. */
static int import_member(void *cls, const char *name, const void *bytes, size_t count)
{
	struct batch *b = cls;
	const char *slash = strrchr(name, '/');
	size_t folder_bytes = slash == NULL ? 0 : (size_t)(slash - name);
	if (strlen(b->only_folder) != folder_bytes || strncmp(b->only_folder, name, folder_bytes) != 0)
		return 0;
	struct file f;
	const char *own_name = slash == NULL ? name : slash + 1;
	int r = file_store(b->r->files_dir, utf8_is_valid(own_name) ? own_name : "unnamed", bytes, count, &f);
	if (r < 0)
		return r;
	import_file(b, &f);
	file_release(&f);
	return 0;
}

struct folders {
	char *first;
	bool has_root, has_others;
};

static int look_at_member(void *cls, const char *name, const void *bytes, size_t count)
{
	struct folders *f = cls;
	const char *slash = strrchr(name, '/');
	(void)bytes;
	(void)count;
	f->has_root |= slash == NULL;
	if (slash == NULL)
		return 0;
	char *folder = strndup(name, (size_t)(slash - name));
	if (f->first == NULL)
		f->first = folder;
	else if (strcmp(f->first, folder) != 0)
		f->has_others = true;
	if (f->first != folder)
		free(folder);
	return 0;
}

static void import_archive(struct batch *b, struct document *d)
{
	struct folders folders = { 0 };
	int r = unzip(d->content.path, ZIP_FILES_MAX, UPLOAD_BYTES_MAX, look_at_member, &folders);
	CLEANUP(text_free) char *first = folders.first;
	struct batch inner = *b;
	inner.archive = d;
	inner.only_folder = folders.has_root || folders.has_others || first == NULL ? "" : first;
	if (r == 0)
		r = unzip(d->content.path, ZIP_FILES_MAX, UPLOAD_BYTES_MAX, import_member, &inner);
	d->attachment_status = text_copy(r == -EACCES ? "password_protected_archive"
					 : r < 0      ? "failed_to_extract"
						      : "extracted_archive");
}

static struct upload *upload_add(struct rossum *r, int64_t queue_id, int64_t creator_id, int64_t done_ms)
{
	struct upload *u = allocate(sizeof *u);
	u->id = next_id(r, UPLOAD);
	u->queue_id = queue_id;
	u->creator_id = creator_id;
	u->created_ms = now_of(r);
	u->visible_ms = done_ms;
	u->ready_ms = done_ms + switch_number(r->sandbox, "rossum.create_ms", 0);
	u->documents = cJSON_CreateArray();
	u->additional = cJSON_CreateArray();
	u->annotations = cJSON_CreateArray();
	HASH_ADD(hh, r->uploads, id, sizeof u->id, u);
	sandbox_changed(r->sandbox);
	return u;
}

/* detail NULL: it will succeed. */
static struct task *task_add(struct rossum *r, int64_t upload_id, int64_t done_ms, const char *detail)
{
	struct task *t = allocate(sizeof *t);
	t->id = next_id(r, TASK);
	t->upload_id = upload_id;
	t->done_ms = done_ms;
	t->expires_ms = now_of(r) + switch_number(r->sandbox, "rossum.task_expires_ms", 0);
	t->detail = text_copy(detail);
	HASH_ADD(hh, r->tasks, id, sizeof t->id, t);
	sandbox_changed(r->sandbox);
	return t;
}

/* False: the answer is set. *ret may stay NULL: there is none. */
static bool read_part(struct request *q, const char *field, const char *text, cJSON **ret)
{
	if (text == NULL)
		return true;
	*ret = cJSON_ParseWithOpts(text, NULL, true);
	if (!cJSON_IsObject(*ret))
		return complain(q, field, "Value must be valid JSON.");
	return true;
}

static bool values_are_fit(struct request *q, const cJSON *values)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, values)
		if (strncmp(one->string, "upload:", 7) != 0 || one->string[7] == 0 || !cJSON_IsString(one))
			return complain(q, "values", "Keys must begin with 'upload:', and values must be text.");
	return true;
}

/* What is wrong with the body as a whole and with its files; false: the answer is set. */
static bool files_are_fit(struct call *c, const struct incoming *in, const struct queue *w, bool reject_identical)
{
	struct sandbox *s = c->r->sandbox;
	if (in->is_too_large)
		return refuse(c->q, 413, "The data is larger than 40 MB.");
	const char *fault = in->form == NULL ? NULL : multipart_fault(in->form);
	if (fault != NULL)
		return refuse(c->q, 400, fault);
	if (in->fault != NULL)
		return in->fault_field != NULL ? complain(c->q, in->fault_field, in->fault)
					       : refuse(c->q, 400, in->fault);
	if (in->file_count == 0)
		return complain(c->q, "content", "No file was submitted.");
	if (in->metadata != NULL && (int64_t)strlen(in->metadata) > switch_number(s, "rossum.metadata_bytes", 4096))
		return complain(c->q, "metadata", "Metadata is limited to 4 kB.");
	if (reject_identical && in->file_count > 1)
		return refuse(c->q, 400, "Only one file can be sent with reject_identical.");
	for (size_t i = 0; i < in->file_count; i++) {
		const struct file *f = &in->files[i];
		if (f->size_bytes == 0 && switch_is(s, "rossum.empty", "400"))
			return complain(c->q, "content", "The submitted file is empty.");
		const char *mime = mime_of(f->name, f->head);
		if (switch_is(s, "rossum.type", "400") && strcmp(mime, "application/zip") != 0 &&
		    type_fault(c->r, w, mime) != NULL)
			return complain(c->q, "content", "Unsupported media type.");
		if (reject_identical && is_known(c->r, f))
			return refuse(c->q, 409, "An identical file was uploaded before.");
	}
	return true;
}

/* The reason why the task as a whole fails; NULL: it does not. */
static const char *task_fault(struct call *c, const struct incoming *in, const struct queue *w)
{
	for (size_t i = 0; i < in->file_count; i++) {
		const struct file *f = &in->files[i];
		const char *mime = mime_of(f->name, f->head);
		if (matches(c->r, "rossum.task_fail", f->name))
			return switch_text(c->r->sandbox, "rossum.task_detail");
		if (switch_is(c->r->sandbox, "rossum.type", "task") && strcmp(mime, "application/zip") != 0 &&
		    type_fault(c->r, w, mime) != NULL)
			return "Unsupported media type.";
	}
	return NULL;
}

/* False: the answer is set. */
static bool queue_is_open(struct request *q, const struct queue *w)
{
	if (strcmp(w->status, "active") == 0)
		return true;
	return refuse(q, (int)switch_number(q->sandbox, "rossum.inactive", 400), "The queue is not active.");
}

static void create_upload(struct call *c)
{
	struct incoming *in = c->q->own;
	int64_t to = -1;
	bool reject_identical = false;
	CLEANUP(json_free) cJSON *metadata = NULL, *values = NULL;
	if (in->form == NULL && in->files[0].fd >= 0 && file_finish(&in->files[0]) < 0) {
		refuse(c->q, 500, "Server error.");
		return;
	}
	if (!query_number(c->q, "queue", 0, INT64_MAX, &to) || !query_bool(c->q, "reject_identical", &reject_identical))
		return;
	struct queue *w = queue_of(c->q, c->user, to); /* again: it may have gone meanwhile */
	if (w == NULL || !queue_is_open(c->q, w) || !files_are_fit(c, in, w, reject_identical) ||
	    !read_part(c->q, "metadata", in->metadata, &metadata) || !read_part(c->q, "values", in->values, &values) ||
	    !values_are_fit(c->q, values))
		return;
	int64_t done_ms = now_of(c->r) + switch_number(c->r->sandbox, "rossum.task_ms", 0);
	const char *fault = task_fault(c, in, w);
	struct upload *u = fault == NULL ? upload_add(c->r, w->id, c->user->id, done_ms) : NULL;
	struct task *t = task_add(c->r, u == NULL ? next_id(c->r, UPLOAD) : u->id, done_ms, fault);
	struct batch b = { .r = c->r, .upload = u, .queue = w, .metadata = metadata, .values = values };
	for (size_t i = 0; i < in->file_count && u != NULL; i++)
		import_file(&b, &in->files[i]);
	cJSON *o = cJSON_CreateObject();
	CLEANUP(text_free) char *url = link_to(c->r, "task", "tasks", t->id);
	cJSON_AddStringToObject(o, "url", url);
	answer_json(&c->q->answer, 202, o);
}

/* --- Who asks --- */

static bool token_is_good(struct rossum *r, const struct token *t)
{
	return t != NULL && !t->is_revoked && (t->expires_ms == 0 || now_of(r) < t->expires_ms);
}

/* The token of the header, good or not; NULL: unknown. */
static struct token *token_from(struct rossum *r, const char *header)
{
	struct token *t = NULL;
	const char *text = header == NULL ? NULL : strchr(header, ' ');
	if (text != NULL)
		HASH_FIND_STR(r->tokens, text + 1, t);
	return t;
}

static struct user *user_by_password(struct rossum *r, const char *name, const char *password)
{
	struct user *u = find_user(r, name);
	return u != NULL && strcmp(u->password, password) == 0 ? u : NULL;
}

static struct user *user_by_basic(struct rossum *r, const char *base64)
{
	size_t n = strlen(base64);
	CLEANUP(text_free) char *plain = allocate(n + 4);
	if (n == 0 || n % 4 != 0 || EVP_DecodeBlock((unsigned char *)plain, (const unsigned char *)base64, (int)n) < 0)
		return NULL;
	char *password = strchr(plain, ':');
	if (password == NULL)
		return NULL;
	*password++ = 0;
	return user_by_password(r, plain, password);
}

/* NULL: nobody; the answer is set then. A password counts for uploads and nowhere else. */
static struct user *authenticate(struct request *q, enum who who)
{
	struct rossum *r = q->state;
	const char *header = request_header(q, "Authorization");
	bool is_token =
		header != NULL && (strncasecmp(header, "Bearer ", 7) == 0 || strncasecmp(header, "Token ", 6) == 0);
	bool is_basic = header != NULL && strncasecmp(header, "Basic ", 6) == 0 && who == TOKEN_OR_PASSWORD;
	struct user *u = NULL;
	if (request_header_count(q, "Authorization") > 1) {
		refuse(q, 400, "Two Authorization headers.");
		return NULL;
	}
	if (!is_token && !is_basic) {
		refuse(q, (int)switch_number(r->sandbox, "rossum.anonymous", 403),
		       "Authentication credentials were not provided.");
		return NULL;
	}
	if (is_basic) {
		u = user_by_basic(r, header + 6);
		if (u == NULL)
			refuse(q, 401, "Invalid username or password.");
		return u;
	}
	struct token *t = token_from(r, header);
	if (!token_is_good(r, t)) {
		bool was_good = t != NULL; /* what never was a token is not expired */
		refuse(q, was_good ? (int)switch_number(r->sandbox, "rossum.expired", 401) : 401, "Invalid token.");
		return NULL;
	}
	const char *host = request_header(q, "Host");
	if (!switch_is(r->sandbox, "rossum.foreign", "none") && host != NULL && strncmp(host, "localhost", 9) == 0)
		r->leaks++;
	u = find_user(r, t->user);
	if (u == NULL)
		refuse(q, 401, "User inactive or deleted.");
	return u;
}

/* False: the answer is set. */
static bool lifetime_from(struct call *c, int64_t *ret_s)
{
	const cJSON *wish = json_get(c->body, "max_token_lifetime_s");
	*ret_s = switch_number(c->r->sandbox, "rossum.token_lifetime_s", TOKEN_LIFETIME_S_MAX);
	if (wish == NULL)
		return true;
	int64_t n = cJSON_IsString(wish) ? number_from(wish->valuestring)
					 : json_number(c->body, "max_token_lifetime_s", -1);
	if (n < 1 || n > TOKEN_LIFETIME_S_MAX)
		return complain(c->q, "max_token_lifetime_s", "Ensure this value is from 1 to 583200.");
	*ret_s = n;
	return true;
}

static bool fields_are_known(struct call *c, const char *fields)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, c->body) {
		CLEANUP(text_free) char *word = text_format(" %s ", one->string);
		if (switch_on(c->r->sandbox, "rossum.strict") && strstr(fields, word) == NULL)
			return complain(c->q, one->string, "Unknown field.");
	}
	return true;
}

static void answer_retry(struct request *q, int64_t retry_ms)
{
	CLEANUP(text_free) char *seconds = text_format("%lld", (long long)((retry_ms + 999) / 1000));
	if (switch_on(q->sandbox, "rossum.retry_after"))
		answer_header(&q->answer, "Retry-After", seconds);
	refuse(q, 429, "Slow down.");
}

static void answer_key(struct call *c, const char *user, int64_t lifetime_s, const char *scope)
{
	struct token *t = token_add(c->r, NULL, user, now_of(c->r) + lifetime_s * 1000);
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "key", t->text);
	cJSON_AddStringToObject(o, "domain", "example.rossum.app");
	if (scope != NULL)
		cJSON_AddStringToObject(o, "scope", scope);
	answer_json(&c->q->answer, 200, o);
}

static void log_in(struct call *c)
{
	int64_t limit = switch_number(c->r->sandbox, "rossum.login_rate", -1), retry_ms = 0, lifetime_s;
	if (limit >= 0 && !window_admit(&c->r->logins, now_of(c->r), 60000, limit, &retry_ms)) {
		answer_retry(c->q, retry_ms);
		return;
	}
	const char *name = json_text(c->body, "username", NULL), *password = json_text(c->body, "password", NULL);
	if (!fields_are_known(c, " username password max_token_lifetime_s ") || !lifetime_from(c, &lifetime_s))
		return;
	if (name == NULL || password == NULL) {
		complain(c->q, name == NULL ? "username" : "password", "This field is required.");
		return;
	}
	if (user_by_password(c->r, name, password) == NULL)
		refuse(c->q, 401, "Unable to log in with provided credentials.");
	else
		answer_key(c, name, lifetime_s, NULL);
}

static void trade_token(struct call *c)
{
	int64_t lifetime_s;
	const cJSON *scope = json_get(c->body, "scope");
	if (!fields_are_known(c, " scope max_token_lifetime_s ") || !lifetime_from(c, &lifetime_s))
		return;
	if (scope != NULL && (!cJSON_IsString(scope) || strcmp(scope->valuestring, "default") != 0)) {
		complain(c->q, "scope", "Not a scope for you.");
		return;
	}
	answer_key(c, c->user->name, lifetime_s, "default");
}

static void log_out(struct call *c)
{
	struct token *t = token_from(c->r, request_header(c->q, "Authorization"));
	t->is_revoked = true; /* it let us in, so it is there */
	sandbox_changed(c->r->sandbox);
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "detail", "Successfully logged out.");
	answer_json(&c->q->answer, 200, o);
}

static void get_user(struct call *c)
{
	answer_json(&c->q->answer, 200, user_json(c->r, c->user));
}

/* --- Routes --- */

#define PAGING " page page_size include_total id ordering "
#define UPLOAD_QUERY " queue reject_identical "
#define ANNOTATION_QUERY                                                                                               \
	PAGING "status sideload fields fields! queue queue__workspace document search arrived_at_after "               \
	       "arrived_at_before "                                                                                    \
	       "modified_at_after modified_at_before deleted_at_after deleted_at_before exported_at_after "            \
	       "exported_at_before "

/* A "*" is one segment of the path. */
static const struct route routes[] = {
	{ "POST", BASE "/auth/login", "rossum_login", "", ANYBODY, JSON_OR_FORM, log_in },
	{ "POST", BASE "/auth/token", "rossum_token", "", TOKEN, JSON_OR_NOTHING, trade_token },
	{ "POST", BASE "/auth/logout", "rossum_logout", "", TOKEN, JSON_OR_NOTHING, log_out },
	{ "GET", BASE "/auth/user", "rossum_user", "", TOKEN, NO_BODY, get_user },
	{ "GET", BASE "/workspaces", "rossum_workspaces", PAGING "name organization ", TOKEN, NO_BODY,
	  list_workspaces },
	{ "GET", BASE "/workspaces/*", "rossum_workspace", "", TOKEN, NO_BODY, get_workspace },
	{ "GET", BASE "/queues", "rossum_queues", PAGING "workspace name locale deleting ", TOKEN, NO_BODY,
	  list_queues },
	{ "GET", BASE "/queues/*", "rossum_queue", "", TOKEN, NO_BODY, get_queue },
	{ "DELETE", BASE "/queues/*", "rossum_forbidden", "", TOKEN, NO_BODY, refuse_forbidden },
	{ "GET", BASE "/annotations", "rossum_annotations", ANNOTATION_QUERY, TOKEN, NO_BODY, list_annotations },
	{ "POST", BASE "/annotations/purge_deleted", "rossum_forbidden", "", TOKEN, JSON_OR_NOTHING, refuse_forbidden },
	{ "GET", BASE "/annotations/*", "rossum_annotation", "", TOKEN, NO_BODY, get_annotation },
	{ "PATCH", BASE "/annotations/*", "rossum_patch_annotation", "", TOKEN, JSON_BODY, patch_annotation },
	{ "DELETE", BASE "/annotations/*", "rossum_forbidden", "", TOKEN, NO_BODY, refuse_forbidden },
	{ "POST", BASE "/annotations/*/delete", "rossum_delete", "", TOKEN, JSON_OR_NOTHING, delete_annotation },
	{ "POST", BASE "/annotations/*/copy", "rossum_copy", " reimport ", TOKEN, JSON_BODY, copy_annotation },
	{ "GET", BASE "/documents", "rossum_documents",
	  PAGING "original_file_name creator email parent attachment_status created_at_after created_at_before "
		 "arrived_at_after arrived_at_before ",
	  TOKEN, NO_BODY, list_documents },
	{ "GET", BASE "/documents/*", "rossum_document", "", TOKEN, NO_BODY, get_document },
	{ "PATCH", BASE "/documents/*", "rossum_patch_document", "", TOKEN, JSON_BODY, patch_document },
	{ "DELETE", BASE "/documents/*", "rossum_forbidden", "", TOKEN, NO_BODY, refuse_forbidden },
	{ "GET", BASE "/documents/*/content", "rossum_content", "", TOKEN, NO_BODY, get_content },
	{ "GET", BASE "/original/*", "rossum_original", "", TOKEN, NO_BODY, get_original },
	{ "GET", "/elsewhere/*", "rossum_elsewhere", "", ANYBODY, NO_BODY, get_elsewhere },
	{ "POST", BASE "/uploads", "rossum_upload", UPLOAD_QUERY, TOKEN_OR_PASSWORD, FILES_BODY, create_upload },
	{ "POST", BASE "/uploads/*", "rossum_upload_named", UPLOAD_QUERY, TOKEN_OR_PASSWORD, FILES_BODY,
	  create_upload },
	{ "GET", BASE "/uploads/*", "rossum_get_upload", "", TOKEN, NO_BODY, get_upload },
	{ "GET", BASE "/tasks/*", "rossum_task", " no_redirect ", TOKEN, NO_BODY, get_task },
};

/* The names of the table above, and of what is nowhere. */
static const char *const route_names[] = {
	"rossum_login",
	"rossum_token",
	"rossum_logout",
	"rossum_user",
	"rossum_workspaces",
	"rossum_workspace",
	"rossum_queues",
	"rossum_queue",
	"rossum_annotations",
	"rossum_annotations_by_id",
	"rossum_annotation",
	"rossum_patch_annotation",
	"rossum_delete",
	"rossum_copy",
	"rossum_documents",
	"rossum_document",
	"rossum_patch_document",
	"rossum_content",
	"rossum_original",
	"rossum_elsewhere",
	"rossum_upload",
	"rossum_upload_named",
	"rossum_get_upload",
	"rossum_task",
	"rossum_forbidden",
	"rossum_unknown",
	NULL,
};

/* ret_arg may be NULL. */
static bool path_matches(const char *pattern, const char *path, char **ret_arg)
{
	while (*pattern != 0) {
		if (*pattern != '*') {
			if (*pattern++ != *path++)
				return false;
			continue;
		}
		size_t n = strcspn(path, "/");
		if (n == 0)
			return false;
		if (ret_arg != NULL)
			*ret_arg = strndup(path, n);
		pattern++;
		path += n;
	}
	return *path == 0;
}

/* Matched against the raw path, so that an escaped slash stays inside a file's name. */
static const struct route *find_route(const struct request *q, bool *ret_path_is_known)
{
	*ret_path_is_known = false;
	for (size_t i = 0; i < COUNT_OF(routes); i++) {
		if (!path_matches(routes[i].path, q->raw_path, NULL))
			continue;
		*ret_path_is_known = true;
		if (strcmp(routes[i].method, q->method) == 0)
			return &routes[i];
	}
	return NULL;
}

static const char *name_route(struct request *q)
{
	bool path_is_known;
	const struct route *t = find_route(q, &path_is_known);

	/* The same address lists a queue and looks up a few; faults and counts tell the two apart. */
	if (t != NULL && strcmp(t->name, "rossum_annotations") == 0 &&
	    (strncmp(q->raw_query, "id=", 3) == 0 || strstr(q->raw_query, "&id=") != NULL))
		return "rossum_annotations_by_id";
	return t == NULL ? "rossum_unknown" : t->name;
}

static bool type_is(const char *header, const char *type)
{
	size_t n = strlen(type);
	return header != NULL && strncasecmp(header, type, n) == 0 &&
	       (header[n] == 0 || strchr("; \t", header[n]) != NULL);
}

/* The name of a raw body: from the path, else from its Content-Disposition, where what is not ASCII has a form of its
 * own. The caller frees it; NULL: there is none, and the answer is set. */
static char *raw_name(struct request *q, const char *raw_arg)
{
	if (raw_arg != NULL) {
		char *name = url_decode(raw_arg, false);
		bool is_escaped = true;
		for (const char *at = raw_arg; *at != 0; at++)
			is_escaped &= (unsigned char)*at < 0x80;
		if (is_escaped && *name != 0 && utf8_is_valid(name) && strstr(raw_arg, "%00") == NULL)
			return name;
		free(name);
		refuse(q, 400, "The name must be percent-encoded UTF-8.");
		return NULL;
	}
	static const char charset[] = "utf-8''";
	const char *disposition = request_header(q, "Content-Disposition");
	CLEANUP(text_free)
	char *extended = disposition == NULL ? NULL : header_parameter(disposition, "filename*");
	char *plain = disposition == NULL ? NULL : header_parameter(disposition, "filename");
	char *name = plain;
	if (extended != NULL && strncasecmp(extended, charset, sizeof charset - 1) == 0) {
		free(plain);
		name = url_decode(extended + sizeof charset - 1, false);
	} else if (extended != NULL) {
		*extended = 0; /* in a charset nobody named */
	}
	bool is_ascii = true;
	for (const char *at = name; at != NULL && *at != 0; at++)
		is_ascii &= (unsigned char)*at < 0x80;
	bool is_fit =
		name != NULL && *name != 0 && (extended != NULL ? *extended != 0 && utf8_is_valid(name) : is_ascii);
	if (is_fit)
		return name;
	free(name);
	refuse(q, 400, "A raw body needs a Content-Disposition with a filename, or a name in the path.");
	return NULL;
}

/* Makes room for the files before they come. False: the answer is set. */
static bool begin_files(struct request *q, struct incoming *in, const struct user *u, const char *raw_arg)
{
	int64_t to = -1;
	bool reject_identical = false;
	const char *type = request_header(q, "Content-Type");
	CLEANUP(text_free) char *named = request_query(q, "queue");
	if (named == NULL)
		return complain(q, "queue", "This field is required.");
	if (!query_number(q, "queue", 0, INT64_MAX, &to) || !query_bool(q, "reject_identical", &reject_identical))
		return false;
	struct queue *w = queue_of(q, u, to);
	if (w == NULL || !queue_is_open(q, w))
		return false;
	in->form = multipart_new(type, &part_ops, in);
	if (in->form == NULL && type_is(type, "multipart/form-data"))
		return refuse(q, 400, "Multipart form parse error: no boundary.");
	if (in->form == NULL && !type_is(type, "application/octet-stream"))
		return refuse(q, 500, "Server error.");
	in->bytes_max = switch_number(q->sandbox, "rossum.max_bytes", UPLOAD_BYTES_MAX);
	/* Longer than could be: read to its end all the same, so that the refusal arrives. */
	in->is_too_large = q->length_bytes > in->bytes_max + (in->form != NULL ? FORM_BYTES_MAX : 0);
	if (in->form != NULL)
		return true;
	CLEANUP(text_free) char *name = raw_name(q, raw_arg);
	if (name == NULL)
		return false;
	return incoming_open_file(in, name) == 0 || refuse(q, 500, "Server error.");
}

/* Everything that can be said before the body is read. */
static void begin(struct request *q)
{
	struct rossum *r = q->state;
	int64_t limit = switch_number(r->sandbox, "rossum.rate", -1), retry_ms = 0;
	bool path_is_known;
	const struct route *t = find_route(q, &path_is_known);
	if (limit >= 0 && !window_admit(&r->requests, now_of(r), 1000, limit, &retry_ms)) {
		answer_retry(q, retry_ms);
		return;
	}
	if (t == NULL) {
		if (path_is_known)
			refuse(q, 405, "Method not allowed.");
		else
			refuse(q, 404, "Not found.");
		return;
	}
	struct user *u = t->who == ANYBODY ? NULL : authenticate(q, t->who);
	if ((t->who != ANYBODY && u == NULL) || !query_is_known(q, t))
		return;
	CLEANUP(text_free) char *raw_arg = NULL;
	(void)path_matches(t->path, q->raw_path, &raw_arg);
	struct incoming *in = allocate(sizeof *in);
	q->own = in;
	in->route = t;
	in->user = u == NULL ? NULL : text_copy(u->name);
	in->arg = raw_arg == NULL ? NULL : url_decode(raw_arg, false);
	in->files_dir = r->files_dir;
	if (t->body == FILES_BODY)
		(void)begin_files(q, in, u, raw_arg); /* a refusal stands in the answer */
}

static cJSON *form_json(const char *text)
{
	cJSON *o = cJSON_CreateObject();
	CLEANUP(text_free) char *all = text_copy(text);
	char *rest = all;
	for (char *pair = strsep(&rest, "&"); pair != NULL; pair = strsep(&rest, "&")) {
		char *value = pair;
		CLEANUP(text_free) char *key = url_decode(strsep(&value, "="), true);
		CLEANUP(text_free) char *plain = url_decode(value == NULL ? "" : value, true);
		if (*key != 0)
			cJSON_AddStringToObject(o, key, plain);
	}
	return o;
}

/* False: the answer is set. A wrong Content-Type is known to end in a 500. */
static bool read_body(struct call *c, const struct incoming *in)
{
	const char *type = request_header(c->q, "Content-Type");
	enum body body = in->route->body;
	if (body == NO_BODY || body == FILES_BODY || (body == JSON_OR_NOTHING && in->text_bytes == 0))
		return true;
	if (in->is_too_large)
		return refuse(c->q, 413, "Too large.");
	bool is_form = body == JSON_OR_FORM && type_is(type, "application/x-www-form-urlencoded");
	if (!is_form && !type_is(type, "application/json"))
		return refuse(c->q, 500, "Server error.");
	if (in->text != NULL && strlen(in->text) == in->text_bytes)
		c->body = is_form ? form_json(in->text) : cJSON_ParseWithOpts(in->text, NULL, true);
	if (!cJSON_IsObject(c->body))
		return refuse(c->q, 400, "JSON parse error.");
	return true;
}

static void handle(struct request *q)
{
	struct incoming *in = q->own;
	struct call c = { .q = q, .r = q->state, .route = in->route, .arg = in->arg };
	c.user = in->user == NULL ? NULL : find_user(c.r, in->user);
	if (in->user != NULL && c.user == NULL)
		refuse(q, 401, "User inactive or deleted."); /* a reset came between */
	else if (read_body(&c, in))
		in->route->run(&c);
	cJSON_Delete(c.body);
}

/* --- Control --- */

static struct workspace *some_workspace(struct rossum *r)
{
	return r->workspaces != NULL ? r->workspaces : workspace_add(r, 0, "Accounts payable");
}

static void replace_text(char **at, const char *text)
{
	if (text == NULL)
		return;
	free(*at);
	*at = text_copy(text);
}

static void replace_json(cJSON **at, const cJSON *in, const char *key)
{
	const cJSON *fresh = json_get(in, key);
	if (fresh == NULL)
		return;
	cJSON_Delete(*at);
	*at = cJSON_Duplicate(fresh, true);
}

static int say_id(cJSON **ret, int64_t id)
{
	CLEANUP(text_free) char *text = text_format("%lld", (long long)id);
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "id", text);
	return 200;
}

static int control_workspace(void *state, const cJSON *in, cJSON **ret)
{
	struct rossum *r = state;
	int64_t id = json_number(in, "id", 0);
	struct workspace *w = find_workspace(r, id);
	if (w == NULL)
		w = workspace_add(r, id, json_text(in, "name", "Accounts payable"));
	replace_text(&w->name, json_text(in, "name", NULL));
	sandbox_changed(r->sandbox);
	return say_id(ret, w->id);
}

static int control_queue(void *state, const cJSON *in, cJSON **ret)
{
	struct rossum *r = state;
	int64_t id = json_number(in, "id", 0), workspace = json_number(in, "workspace", 0);
	struct queue *w = find_queue(r, id);
	if (workspace != 0 && find_workspace(r, workspace) == NULL)
		return control_refuse(ret, 404, "no such workspace");
	if (w == NULL)
		w = queue_add(r, id, json_text(in, "name", "Invoices"),
			      workspace != 0 ? workspace : some_workspace(r)->id);
	replace_text(&w->name, json_text(in, "name", NULL));
	replace_text(&w->status, json_text(in, "status", NULL));
	if (json_get(in, "workspace") != NULL)
		w->workspace_id = workspace; /* null: none, as before a deletion */
	if (cJSON_IsArray(json_get(in, "accepted_mime_types")))
		replace_json(&w->accepted, in, "accepted_mime_types");
	replace_json(&w->fields, in, "fields");
	replace_json(&w->without, in, "without");
	sandbox_changed(r->sandbox);
	return say_id(ret, w->id);
}

static int control_user(void *state, const cJSON *in, cJSON **ret)
{
	struct rossum *r = state;
	const char *name = json_text(in, "username", "demo");
	struct user *u = find_user(r, name);
	if (u == NULL)
		u = user_add(r, name, json_text(in, "password", "password"), NULL);
	replace_text(&u->password, json_text(in, "password", NULL));
	if (json_get(in, "queues") != NULL) {
		cJSON_Delete(u->queues);
		u->queues =
			cJSON_IsArray(json_get(in, "queues")) ? cJSON_Duplicate(json_get(in, "queues"), true) : NULL;
	}
	sandbox_changed(r->sandbox);
	return say_id(ret, u->id);
}

static int control_token(void *state, const cJSON *in, cJSON **ret)
{
	struct rossum *r = state;
	const char *user = json_text(in, "user", "demo");
	int64_t lifetime_ms = json_number(in, "expires_in_ms", 0);
	if (find_user(r, user) == NULL)
		user_add(r, user, "password", NULL);
	struct token *t =
		token_add(r, json_text(in, "token", NULL), user, lifetime_ms == 0 ? 0 : now_of(r) + lifetime_ms);
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "token", t->text);
	return 200;
}

/* token absent: all there are. */
static int control_revoke(void *state, const cJSON *in, cJSON **ret)
{
	struct rossum *r = state;
	const char *text = json_text(in, "token", NULL);
	int found = 0;
	for (struct token *t = r->tokens; t != NULL; t = t->hh.next) {
		if (text != NULL && strcmp(text, t->text) != 0)
			continue;
		t->is_revoked = true;
		found++;
	}
	sandbox_changed(r->sandbox);
	return found > 0 ? 200 : control_refuse(ret, 404, "no such token");
}

static int control_fill(struct rossum *r, struct document *d, const cJSON *in, int64_t index)
{
	const char *text = json_text(in, "text", NULL), *base64 = json_text(in, "base64", NULL);
	CLEANUP(text_free) char *plain = NULL;
	size_t n = text == NULL ? 0 : strlen(text);
	if (base64 != NULL) {
		size_t pad = 0, base64_bytes = strlen(base64);
		while (pad < 2 && pad < base64_bytes && base64[base64_bytes - 1 - pad] == '=')
			pad++;
		plain = allocate(base64_bytes + 4);
		int got = base64_bytes % 4 != 0 ? -1
						: EVP_DecodeBlock((unsigned char *)plain, (const unsigned char *)base64,
								  (int)base64_bytes);
		if (got < 0)
			return -EINVAL;
		n = (size_t)got - pad;
		text = plain;
	}
	d->sha256[0] = d->sent_sha256[0] = 0;
	if (text == NULL) {
		int64_t size = json_number(in, "size", content_generated_bytes_min() + index * 37 % 997);
		uint64_t seed = (uint64_t)json_number(in, "seed", r->series);
		d->content = content_generated(seed, (uint64_t)index, size);
		return 0;
	}
	struct file f;
	int error = file_store(r->files_dir, "", text, n, &f);
	if (error < 0)
		return error;
	d->content = (struct content){ .path = f.path, .size_bytes = f.size_bytes };
	memcpy(d->sha256, f.sha256, sizeof d->sha256);
	f.path = NULL;
	file_release(&f);
	return 0;
}

/* The fields that a new annotation and a changed one share. NULL, or what is wrong. */
static const char *control_set(struct rossum *r, struct annotation *a, const cJSON *in)
{
	struct document *d = find_document(r, a->document_id);
	const char *status = json_text(in, "status", NULL);
	int64_t created_ms = json_number(in, "created_ms", 0), queue = json_number(in, "queue", a->queue_id);
	if (status != NULL && status_from(status) < 0)
		return "no such status; status_raw takes any text";
	if (find_queue(r, queue) == NULL)
		return "no such queue";
	if (json_get(in, "metadata") != NULL && !cJSON_IsObject(json_get(in, "metadata")))
		return "metadata is an object";
	a->queue_id = queue;
	if (d != NULL) {
		replace_text(&d->name, json_text(in, "filename", NULL));
		replace_text(&d->name_json, json_text(in, "filename_json", NULL));
		replace_text(&d->mime, json_text(in, "mime", NULL));
		replace_text(&d->attachment_status, json_text(in, "attachment_status", NULL));
		replace_json(&d->fields, in, "document_fields");
		replace_json(&d->without, in, "document_without");
		if (created_ms > 0)
			d->created_ms = created_ms;
	}
	if (created_ms > 0)
		a->created_ms = created_ms;
	a->modified_ms = json_number(in, "modified_ms", a->modified_ms);
	replace_json(&a->metadata, in, "metadata");
	replace_json(&a->fields, in, "fields");
	replace_json(&a->without, in, "without");
	if (status != NULL)
		annotation_set_status(r, a, (enum status)status_from(status));
	replace_text(&a->word, json_text(in, "status_raw", NULL));
	sandbox_changed(r->sandbox);
	return NULL;
}

static char *name_by_pattern(const char *pattern, int64_t n)
{
	const char *at = strstr(pattern, "{n}");
	return at == NULL ? text_copy(pattern)
			  : text_format("%.*s%06lld%s", (int)(at - pattern), pattern, (long long)n, at + 3);
}

static void annotation_delete(struct rossum *r, struct annotation *a)
{
	struct document *d = find_document(r, a->document_id);
	annotation_point(r, a, 0);
	HASH_DEL(r->annotations, a);
	annotation_free(a);
	if (d != NULL && d->annotation_count == 0) {
		HASH_DEL(r->documents, d);
		document_free(d, true);
	}
	sandbox_changed(r->sandbox);
}

static int control_annotation(void *state, const cJSON *in, cJSON **ret)
{
	struct rossum *r = state;
	int64_t id = json_number(in, "id", 0), count = json_number(in, "count", 1), from = json_number(in, "from", 1);
	struct annotation *a = find_annotation(r, id);
	const char *pattern = json_text(in, "pattern", json_text(in, "filename", "document-{n}.pdf"));
	if (a == NULL && find_queue(r, json_number(in, "queue", 0)) == NULL)
		return control_refuse(ret, 404, "no such queue");
	if (count < 1 || count > 1000000 || (id != 0 && count > 1))
		return control_refuse(ret, 400, "count is from 1 to 1000000, and 1 with an id");
	if (a != NULL) {
		const char *wrong = control_set(r, a, in);
		return wrong != NULL ? control_refuse(ret, 400, "%s", wrong) : say_id(ret, a->id);
	}
	r->series++;
	for (int64_t i = 0; i < count; i++) {
		CLEANUP(text_free) char *name = name_by_pattern(pattern, from + i);
		struct document *d = find_document(r, json_number(in, "document", 0));
		if (d == NULL) {
			d = document_add(r, json_number(in, "document", 0), name);
			d->mime = text_copy(mime_by_extension(name));
			if (control_fill(r, d, in, from + i) < 0) {
				HASH_DEL(r->documents, d);
				document_free(d, true);
				return control_refuse(ret, 400, "the bytes cannot be kept");
			}
		}
		a = annotation_add(r, id, json_number(in, "queue", 0), d->id);
		a->status = TO_REVIEW;
		const char *wrong = control_set(r, a, in);
		if (wrong != NULL) {
			annotation_delete(r, a);
			return control_refuse(ret, 400, "%s", wrong);
		}
	}
	return say_id(ret, a->id);
}

/* As if it had never been, which the service itself never does. */
static int control_delete(void *state, const cJSON *in, cJSON **ret)
{
	struct rossum *r = state;
	struct annotation *a = find_annotation(r, json_number(in, "annotation", 0));
	struct queue *w = find_queue(r, json_number(in, "queue", 0));
	if (a == NULL && w == NULL)
		return control_refuse(ret, 404, "no such annotation or queue");
	if (a != NULL)
		annotation_delete(r, a);
	if (w == NULL)
		return 200;
	EACH(annotation, annotations, one)
	if (one->queue_id == w->id)
		annotation_delete(r, one);
	HASH_DEL(r->queues, w);
	queue_free(w);
	sandbox_changed(r->sandbox);
	return 200;
}

/* The document of an annotation is replaced by a new one, as when pages are edited in place. */
static int control_replace(void *state, const cJSON *in, cJSON **ret)
{
	struct rossum *r = state;
	struct annotation *a = find_annotation(r, json_number(in, "annotation", 0));
	if (a == NULL)
		return control_refuse(ret, 404, "no such annotation");
	struct document *old = find_document(r, a->document_id);
	const char *name = json_text(in, "filename", old == NULL ? "document.pdf" : old->name);
	struct document *d = document_add(r, 0, name);
	d->mime = text_copy(mime_by_extension(name));
	r->series++;
	if (control_fill(r, d, in, 1) < 0) {
		HASH_DEL(r->documents, d);
		document_free(d, true);
		return control_refuse(ret, 400, "the bytes cannot be kept");
	}
	annotation_point(r, a, d->id);
	sandbox_changed(r->sandbox);
	return say_id(ret, d->id);
}

static struct queue *demo_queue(struct rossum *r, const char *name, const char *workspace_name_wanted)
{
	struct workspace *w = r->workspaces;
	while (w != NULL && strcmp(w->name, workspace_name_wanted) != 0)
		w = w->hh.next;
	if (w == NULL)
		w = workspace_add(r, 0, workspace_name_wanted);
	for (struct queue *q = r->queues; q != NULL; q = q->hh.next)
		if (q->workspace_id == w->id && strcmp(q->name, name) == 0)
			return q;
	return queue_add(r, 0, name, w->id);
}

/* An organisation to look at. Two queues have one name, as happens where each branch calls its own "Invoices". */
static int control_demo(void *state, const cJSON *in, cJSON **ret)
{
	static const struct {
		const char *workspace, *filename;
		enum status status;
	} files[] = {
		{ "Prague", "invoice 2026-001.pdf", TO_REVIEW },
		{ "Prague", "invoice 2026-002.pdf", EXPORTED },
		{ "Prague", "invoice 2026-003.pdf", CONFIRMED },
		{ "Prague", "invoice 2026-004.pdf", REJECTED },
		{ "Prague", "damaged scan.pdf", FAILED_IMPORT },
		{ "Prague", "withdrawn.pdf", DELETED },
		{ "London", "receipt 12.pdf", TO_REVIEW },
		{ "London", "receipt 12.pdf", POSTPONED },
		{ "London", "faktura p\xc5\x99ijat\xc3\xa1.pdf", FAILED_EXPORT },
	};
	struct rossum *r = state;
	(void)in;
	bool is_new = find_user(r, "demo") == NULL;
	if (is_new)
		user_add(r, "demo", "demo", NULL);
	r->series++;
	for (size_t i = 0; i < COUNT_OF(files) && is_new; i++) {
		struct queue *w = demo_queue(r, "Invoices", files[i].workspace);
		struct document *d = document_add(r, 0, files[i].filename);
		d->mime = text_copy("application/pdf");
		d->content =
			content_generated((uint64_t)r->series, i + 1, content_generated_bytes_min() + (int64_t)i * 111);
		struct annotation *a = annotation_add(r, 0, w->id, d->id);
		annotation_set_status(r, a, files[i].status);
	}
	struct token *t = r->tokens;
	while (t != NULL && (strcmp(t->user, "demo") != 0 || !token_is_good(r, t) || t->expires_ms != 0))
		t = t->hh.next;
	if (t == NULL)
		t = token_add(r, NULL, "demo", 0);
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	if (out == NULL)
		abort();
	for (const struct queue *w = r->queues; w != NULL; w = w->hh.next) {
		const struct workspace *in_workspace = find_workspace(r, w->workspace_id);
		fprintf(out, "queue      %lld  %s (workspace %s)\n", (long long)w->id, w->name,
			in_workspace == NULL ? "none" : in_workspace->name);
	}
	fclose(out);
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "token", t->text);
	cJSON_AddStringToObject(*ret, "text", text);
	free(text);
	return 200;
}

static const struct control_op controls[] = {
	{ "POST", "/rossum/workspace", " id name ", control_workspace },
	{ "POST", "/rossum/queue", " id name workspace status accepted_mime_types fields without ", control_queue },
	{ "POST", "/rossum/user", " username password queues ", control_user },
	{ "POST", "/rossum/token", " token user expires_in_ms ", control_token },
	{ "POST", "/rossum/revoke", " token ", control_revoke },
	{ "POST", "/rossum/annotation",
	  " id queue document filename filename_json text base64 size seed count from pattern status status_raw mime "
	  "attachment_status metadata created_ms modified_ms fields without document_fields document_without ",
	  control_annotation },
	{ "POST", "/rossum/replace", " annotation filename text base64 size seed ", control_replace },
	{ "POST", "/rossum/delete", " annotation queue ", control_delete },
	{ "POST", "/rossum/demo", "", control_demo },
};

/* --- State --- */

static void describe_document(cJSON *to, struct document *d)
{
	if (d->sha256[0] == 0 && !d->is_purged)
		(void)content_hash(&d->content, d->sha256); /* shown empty if it fails */
	add_text(to, "filename", d->name);
	add_text(to, "mime", d->mime);
	add_text(to, "attachment_status", d->attachment_status);
	cJSON_AddNumberToObject(to, "size", (double)d->content.size_bytes);
	cJSON_AddStringToObject(to, "sha256", d->sha256);
}

static cJSON *describe_annotation(struct rossum *r, const struct annotation *a)
{
	cJSON *o = cJSON_CreateObject();
	struct document *d = find_document(r, a->document_id);
	CLEANUP(text_free) char *id = text_format("%lld", (long long)a->id);
	cJSON_AddStringToObject(o, "id", id);
	cJSON_AddStringToObject(o, "status", annotation_word(a, now_of(r)));
	cJSON_AddBoolToObject(o, "visible", now_of(r) >= a->visible_ms);
	cJSON_AddNumberToObject(o, "document", (double)a->document_id);
	cJSON_AddNumberToObject(o, "upload", (double)a->upload_id);
	cJSON_AddItemToObject(o, "metadata", cJSON_Duplicate(a->metadata, true));
	if (a->values != NULL)
		cJSON_AddItemToObject(o, "values", cJSON_Duplicate(a->values, true));
	cJSON_AddNumberToObject(o, "created_ms", (double)a->created_ms);
	if (d != NULL)
		describe_document(o, d);
	return o;
}

static cJSON *describe(void *state, const cJSON *in)
{
	struct rossum *r = state;
	const char *only = json_text(in, "session", NULL);
	bool with_documents = strcmp(json_text(in, "documents", "yes"), "no") != 0;
	cJSON *o = cJSON_CreateObject();
	cJSON *list = cJSON_AddArrayToObject(o, "workspaces");
	for (const struct workspace *w = r->workspaces; w != NULL; w = w->hh.next) {
		cJSON *one = cJSON_CreateObject();
		cJSON_AddNumberToObject(one, "id", (double)w->id);
		cJSON_AddStringToObject(one, "name", w->name);
		cJSON_AddItemToArray(list, one);
	}
	list = cJSON_AddArrayToObject(o, "queues");
	for (const struct queue *w = r->queues; w != NULL; w = w->hh.next) {
		CLEANUP(text_free) char *id = text_format("%lld", (long long)w->id);
		if (only != NULL && strcmp(only, id) != 0)
			continue;
		cJSON *one = cJSON_CreateObject();
		cJSON_AddStringToObject(one, "id", id);
		cJSON_AddStringToObject(one, "name", w->name);
		cJSON_AddNumberToObject(one, "workspace", (double)w->workspace_id);
		cJSON_AddStringToObject(one, "status", w->status);
		cJSON *annotations = cJSON_AddArrayToObject(one, "annotations");
		int64_t count = 0;
		for (const struct annotation *a = r->annotations; a != NULL; a = a->hh.next) {
			if (a->queue_id != w->id)
				continue;
			count++;
			if (with_documents)
				cJSON_AddItemToArray(annotations, describe_annotation(r, a));
		}
		cJSON_AddNumberToObject(one, "annotation_count", (double)count);
		cJSON_AddItemToArray(list, one);
	}
	/* What became no annotation: archives, and what was set aside. */
	list = cJSON_AddArrayToObject(o, "loose_documents");
	for (struct document *d = r->documents; d != NULL && with_documents && only == NULL; d = d->hh.next) {
		if (d->annotation_count > 0)
			continue;
		cJSON *one = cJSON_CreateObject();
		CLEANUP(text_free) char *id = text_format("%lld", (long long)d->id);
		cJSON_AddStringToObject(one, "id", id);
		describe_document(one, d);
		cJSON_AddItemToArray(list, one);
	}
	cJSON_AddNumberToObject(o, "upload_count", (double)HASH_COUNT(r->uploads));
	cJSON_AddNumberToObject(o, "task_count", (double)HASH_COUNT(r->tasks));
	cJSON_AddNumberToObject(o, "token_count", (double)HASH_COUNT(r->tokens));
	cJSON_AddNumberToObject(o, "forbidden", (double)r->forbidden);
	cJSON_AddNumberToObject(o, "leaks", (double)r->leaks);
	return o;
}

static void save_text(cJSON *to, const char *key, const char *text)
{
	if (text != NULL)
		cJSON_AddStringToObject(to, key, text);
}

static void save_number(cJSON *to, const char *key, int64_t n)
{
	cJSON_AddNumberToObject(to, key, (double)n);
}

static void save_json(cJSON *to, const char *key, const cJSON *value)
{
	if (value != NULL)
		cJSON_AddItemToObject(to, key, cJSON_Duplicate(value, true));
}

static cJSON *load_json(const cJSON *from, const char *key)
{
	return cJSON_Duplicate(json_get(from, key), true);
}

static cJSON *save_next(cJSON *list)
{
	cJSON *one = cJSON_CreateObject();
	cJSON_AddItemToArray(list, one);
	return one;
}

static void save_document(cJSON *to, const struct document *d)
{
	save_number(to, "id", d->id);
	save_text(to, "name", d->name);
	save_text(to, "name_json", d->name_json);
	save_text(to, "mime", d->mime);
	save_text(to, "attachment_status", d->attachment_status);
	save_text(to, "s3_name", d->s3_name);
	save_text(to, "sha256", d->sha256);
	save_text(to, "sent_sha256", d->sent_sha256);
	save_number(to, "created_ms", d->created_ms);
	save_number(to, "visible_ms", d->visible_ms);
	save_number(to, "parent", d->parent_id);
	save_number(to, "creator", d->creator_id);
	save_number(to, "size", d->content.size_bytes);
	if (d->content.path != NULL) {
		save_text(to, "file", strrchr(d->content.path, '/') + 1);
	} else {
		save_number(to, "seed", (int64_t)d->content.seed);
		save_number(to, "index", (int64_t)d->content.index);
	}
	cJSON_AddBoolToObject(to, "purged", d->is_purged);
	save_json(to, "metadata", d->metadata);
	save_json(to, "fields", d->fields);
	save_json(to, "without", d->without);
}

static void load_document(struct rossum *r, const cJSON *one)
{
	struct document *d = document_add(r, json_number(one, "id", 0), json_text(one, "name", NULL));
	const char *file = json_text(one, "file", NULL);
	d->name_json = text_copy(json_text(one, "name_json", NULL));
	d->mime = text_copy(json_text(one, "mime", NULL));
	d->attachment_status = text_copy(json_text(one, "attachment_status", NULL));
	replace_text(&d->s3_name, json_text(one, "s3_name", NULL));
	snprintf(d->sha256, sizeof d->sha256, "%s", json_text(one, "sha256", ""));
	snprintf(d->sent_sha256, sizeof d->sent_sha256, "%s", json_text(one, "sent_sha256", ""));
	d->created_ms = json_number(one, "created_ms", 0);
	d->visible_ms = json_number(one, "visible_ms", 0);
	d->parent_id = json_number(one, "parent", 0);
	d->creator_id = json_number(one, "creator", 0);
	d->content = content_generated((uint64_t)json_number(one, "seed", 0), (uint64_t)json_number(one, "index", 0),
				       json_number(one, "size", 0));
	if (file != NULL)
		d->content.path = text_format("%s/%s", r->files_dir, file);
	d->is_purged = json_bool(one, "purged", false);
	replace_json(&d->metadata, one, "metadata");
	d->fields = load_json(one, "fields");
	d->without = load_json(one, "without");
}

static void save_annotation(cJSON *to, const struct annotation *a)
{
	save_number(to, "id", a->id);
	save_number(to, "queue", a->queue_id);
	save_number(to, "document", a->document_id);
	save_number(to, "created_ms", a->created_ms);
	save_number(to, "visible_ms", a->visible_ms);
	save_number(to, "imported_ms", a->imported_ms == INT64_MAX ? -1 : a->imported_ms);
	save_number(to, "modified_ms", a->modified_ms);
	save_number(to, "creator", a->creator_id);
	save_number(to, "upload", a->upload_id);
	save_text(to, "status", status_words[a->status]);
	save_text(to, "word", a->word);
	cJSON_AddBoolToObject(to, "fails", a->fails);
	cJSON *since = cJSON_AddObjectToObject(to, "since_ms");
	for (int i = 0; i < STATUS_COUNT; i++)
		if (a->since_ms[i] != 0)
			save_number(since, status_words[i], a->since_ms[i]);
	save_json(to, "metadata", a->metadata);
	save_json(to, "values", a->values);
	save_json(to, "fields", a->fields);
	save_json(to, "without", a->without);
}

static void load_annotation(struct rossum *r, const cJSON *one)
{
	struct annotation *a = annotation_add(r, json_number(one, "id", 0), json_number(one, "queue", 0),
					      json_number(one, "document", 0));
	int status = status_from(json_text(one, "status", "to_review"));
	a->created_ms = json_number(one, "created_ms", 0);
	a->visible_ms = json_number(one, "visible_ms", 0);
	a->imported_ms = json_number(one, "imported_ms", -1);
	if (a->imported_ms < 0)
		a->imported_ms = INT64_MAX;
	a->modified_ms = json_number(one, "modified_ms", 0);
	a->creator_id = json_number(one, "creator", 0);
	a->upload_id = json_number(one, "upload", 0);
	a->status = status < 0 ? TO_REVIEW : (enum status)status;
	a->word = text_copy(json_text(one, "word", NULL));
	a->fails = json_bool(one, "fails", false);
	for (int i = 0; i < STATUS_COUNT; i++)
		a->since_ms[i] = json_number(json_get(one, "since_ms"), status_words[i], 0);
	replace_json(&a->metadata, one, "metadata");
	a->values = load_json(one, "values");
	a->fields = load_json(one, "fields");
	a->without = load_json(one, "without");
}

static cJSON *save(void *state)
{
	struct rossum *r = state;
	cJSON *all = cJSON_CreateObject();
	cJSON *ids = cJSON_AddArrayToObject(all, "last_ids");
	for (size_t i = 0; i < COUNT_OF(r->last_id); i++)
		append_id(ids, r->last_id[i]);
	save_number(all, "series", r->series);
	save_number(all, "forbidden", r->forbidden);
	save_number(all, "leaks", r->leaks);
	cJSON *list = cJSON_AddArrayToObject(all, "users");
	for (const struct user *u = r->users; u != NULL; u = u->hh.next) {
		cJSON *one = save_next(list);
		save_number(one, "id", u->id);
		save_text(one, "name", u->name);
		save_text(one, "password", u->password);
		save_json(one, "queues", u->queues);
	}
	list = cJSON_AddArrayToObject(all, "tokens");
	for (const struct token *t = r->tokens; t != NULL; t = t->hh.next) {
		cJSON *one = save_next(list);
		save_text(one, "token", t->text);
		save_text(one, "user", t->user);
		save_number(one, "expires_ms", t->expires_ms);
		cJSON_AddBoolToObject(one, "revoked", t->is_revoked);
	}
	list = cJSON_AddArrayToObject(all, "workspaces");
	for (const struct workspace *w = r->workspaces; w != NULL; w = w->hh.next) {
		cJSON *one = save_next(list);
		save_number(one, "id", w->id);
		save_text(one, "name", w->name);
	}
	list = cJSON_AddArrayToObject(all, "queues");
	for (const struct queue *w = r->queues; w != NULL; w = w->hh.next) {
		cJSON *one = save_next(list);
		save_number(one, "id", w->id);
		save_number(one, "workspace", w->workspace_id);
		save_text(one, "name", w->name);
		save_text(one, "status", w->status);
		save_json(one, "accepted", w->accepted);
		save_json(one, "fields", w->fields);
		save_json(one, "without", w->without);
	}
	list = cJSON_AddArrayToObject(all, "documents");
	for (const struct document *d = r->documents; d != NULL; d = d->hh.next)
		save_document(save_next(list), d);
	list = cJSON_AddArrayToObject(all, "annotations");
	for (const struct annotation *a = r->annotations; a != NULL; a = a->hh.next)
		save_annotation(save_next(list), a);
	list = cJSON_AddArrayToObject(all, "uploads");
	for (const struct upload *u = r->uploads; u != NULL; u = u->hh.next) {
		cJSON *one = save_next(list);
		save_number(one, "id", u->id);
		save_number(one, "queue", u->queue_id);
		save_number(one, "creator", u->creator_id);
		save_number(one, "created_ms", u->created_ms);
		save_number(one, "visible_ms", u->visible_ms);
		save_number(one, "ready_ms", u->ready_ms);
		save_json(one, "documents", u->documents);
		save_json(one, "additional", u->additional);
		save_json(one, "annotations", u->annotations);
	}
	list = cJSON_AddArrayToObject(all, "tasks");
	for (const struct task *t = r->tasks; t != NULL; t = t->hh.next) {
		cJSON *one = save_next(list);
		save_number(one, "id", t->id);
		save_number(one, "upload", t->upload_id);
		save_number(one, "done_ms", t->done_ms);
		save_number(one, "expires_ms", t->expires_ms);
		save_text(one, "detail", t->detail);
	}
	return all;
}

static void load_uploads(struct rossum *r, const cJSON *saved)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, json_get(saved, "uploads")) {
		struct upload *u = allocate(sizeof *u);
		u->id = json_number(one, "id", 0);
		u->queue_id = json_number(one, "queue", 0);
		u->creator_id = json_number(one, "creator", 0);
		u->created_ms = json_number(one, "created_ms", 0);
		u->visible_ms = json_number(one, "visible_ms", 0);
		u->ready_ms = json_number(one, "ready_ms", 0);
		u->documents = load_json(one, "documents");
		u->additional = load_json(one, "additional");
		u->annotations = load_json(one, "annotations");
		HASH_ADD(hh, r->uploads, id, sizeof u->id, u);
	}
	cJSON_ArrayForEach (one, json_get(saved, "tasks")) {
		struct task *t = allocate(sizeof *t);
		t->id = json_number(one, "id", 0);
		t->upload_id = json_number(one, "upload", 0);
		t->done_ms = json_number(one, "done_ms", 0);
		t->expires_ms = json_number(one, "expires_ms", 0);
		t->detail = text_copy(json_text(one, "detail", NULL));
		HASH_ADD(hh, r->tasks, id, sizeof t->id, t);
	}
}

/* saved is NULL where the state was kept by a sandbox that knew no Rossum. */
static void load(void *state, const cJSON *saved)
{
	struct rossum *r = state;
	const cJSON *one;
	cJSON_ArrayForEach (one, json_get(saved, "users"))
		user_add(r, json_text(one, "name", ""), json_text(one, "password", ""), json_get(one, "queues"))->id =
			json_number(one, "id", 0);
	cJSON_ArrayForEach (one, json_get(saved, "tokens"))
		token_add(r, json_text(one, "token", ""), json_text(one, "user", ""), json_number(one, "expires_ms", 0))
			->is_revoked = json_bool(one, "revoked", false);
	cJSON_ArrayForEach (one, json_get(saved, "workspaces"))
		workspace_add(r, json_number(one, "id", 0), json_text(one, "name", ""));
	cJSON_ArrayForEach (one, json_get(saved, "queues")) {
		struct queue *w = queue_add(r, json_number(one, "id", 0), json_text(one, "name", ""),
					    json_number(one, "workspace", 0));
		replace_text(&w->status, json_text(one, "status", NULL));
		replace_json(&w->accepted, one, "accepted");
		w->fields = load_json(one, "fields");
		w->without = load_json(one, "without");
	}
	cJSON_ArrayForEach (one, json_get(saved, "documents"))
		load_document(r, one);
	cJSON_ArrayForEach (one, json_get(saved, "annotations"))
		load_annotation(r, one);
	load_uploads(r, saved);
	/* Last, for some of the above were counted again. */
	for (size_t i = 0; i < COUNT_OF(r->last_id); i++) {
		const cJSON *last = cJSON_GetArrayItem(json_get(saved, "last_ids"), (int)i);
		r->last_id[i] = cJSON_IsNumber(last) ? (int64_t)last->valuedouble : 0;
	}
	r->series = json_number(saved, "series", 0);
	r->forbidden = json_number(saved, "forbidden", 0);
	r->leaks = json_number(saved, "leaks", 0);
}

static const struct content *content_of(void *state, const char *text)
{
	struct document *d = find_document(state, number_from(text));
	return d == NULL || d->is_purged ? NULL : &d->content;
}

static void *open_service(struct sandbox *s)
{
	struct rossum *r = allocate(sizeof *r);
	r->sandbox = s;
	r->files_dir = text_format("%s/rossum", sandbox_dir(s));
	(void)mkdir(r->files_dir, 0700); /* may be there from the last run; else the first upload tells */
	return r;
}

static void close_service(void *state)
{
	struct rossum *r = state;
	forget_all(r, false);
	free(r->files_dir);
	free(r);
}

static void reset(void *state)
{
	forget_all(state, true);
}

static const struct origin_ops origin = {
	.name = "rossum",
	.port_offset = offsetof(struct sandbox_options, rossum_port),
	.route = name_route,
	.begin = begin,
	.body = take_body,
	.handle = handle,
	.release = release,
};

static const struct origin_ops *const origins[] = { &origin };

const struct service rossum_service = {
	.name = "rossum",
	.origins = origins,
	.origin_count = COUNT_OF(origins),
	.switches = switches,
	.switch_count = COUNT_OF(switches),
	.controls = controls,
	.control_count = COUNT_OF(controls),
	.routes = route_names,
	.open = open_service,
	.close = close_service,
	.reset = reset,
	.save = save,
	.load = load,
	.describe = describe,
	.content = content_of,
};
