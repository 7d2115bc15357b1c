/* All of Rossum: its URLs, JSON, authentication, paging, and its own words. A queue is a session here; an annotation,
 * together with the document it stands for, is a document.
 *
 * Its public sources contradict each other in places; where they do, both are read. Sections, from the bottom up:
 * reading answers, credentials, requests, queues, listings, single documents, the steps of an upload, checking, opening
 * and the table of ops. */
#include "client/rossum.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/common.h"
#include "client/http.h"
#include "client/json.h"
#include "client/limit.h"
#include "client/time.h"

enum {
	PATH_BYTES_MAX = 8 * 1024,
	BODY_BYTES_MAX = 64 * 1024,
	RECORD_BYTES_MAX = 4 * 1024 * 1024,
	METADATA_BYTES_MAX = 4096, /* of an annotation, as the service counts */
	MARK_BYTES_MAX = 900,      /* of it for ourselves: a name of 255 bytes, a hash, a size */
	TROUBLE_BYTES = 400,
	PAGES_MAX = 20000, /* whatever `next` claims */
	IDLE_PAGES_MAX = 3,
	PAGE = 100, /* the most a page may hold */
	RATE = 9,   /* of the documented 10 a second */
	WINDOW_MS = 1000,
	PROVED_MS = 60 * 1000,     /* so long a token that was seen to work is not doubted for a 403 */
	LOGIN_AGAIN_MS = 2 * 1000, /* a token refused right after its login is not the token's fault */
	LOGIN_BACK_OFF_MS = 30 * 1000,
	LOGIN_BACK_OFF_MS_MAX = 15 * 60 * 1000,
	FULL_WALK_MS = 5 * 60 * 1000, /* counts cannot see a swap: after this a listing is walked whole */
	MISLED_MAX = 2,               /* counts that disagree with a full walk so often are not asked again */
	POLL_FIRST_MS = 300,
	POLL_MS_MAX = 3000,
	ATTACH_MS = 60 * 1000,
	NO_ANNOTATION_MS = 45 * 1000, /* within a minute, so that a close() still hears of it */
	SETTLE_MS = 10 * 1000,        /* a file whose answer was lost shows in the listing by then, if it was taken */
	SETTLE_LOOK_MS = 2000,
	YOUNGER_MS = 30 * 1000,   /* a document comes with its annotation, not so long after it */
	SKEW_MS = 10 * 60 * 1000, /* between the service's clock and ours */
	ATTEMPT_MS = 60 * 60 * 1000,
	LINKS = 32768, /* the largest queue that costs no second request a document */
	COUNTS_MAX = 24,
	IDS_MAX = 100,
	NONCE_BYTES = 33,
};

#define DOCUMENT_BYTES_MAX INT64_C(40000000) /* "40 MB": the smaller of its two meanings */

/* What we learned of an annotation and would otherwise ask again: which document it shows, which upload it came of. */
struct link {
	uint64_t annotation, document, upload; /* 0: none */
};

/* An upload that was sent, so that whoever looks for it knows how long it may take to show. */
struct attempt {
	struct attempt *next;
	char nonce[NONCE_BYTES];
	int64_t sent_ms, settles_ms;
	bool is_in_doubt; /* it may have been taken although no good answer came */
};

struct named {
	struct named *next;
	char *id, *name;
};

/* When a queue was walked whole, and whether its counts can be trusted. */
struct memo {
	struct memo *next;
	char *queue_id;
	int64_t walked_ms;
	int misled;
};

/* A copy whose answer was lost. */
struct doubt {
	struct doubt *next;
	char *queue_id, *annotation_id;
	int64_t asked_wall_ms;
};

struct login {
	char account[65]; /* whose login the rest is about */
	int failures;
	int64_t not_before_ms, done_ms;
	bool is_throttled; /* it was refused for being asked too often, not for what it said */
	char words[200];
};

/* A field's initial value: values=[QUEUE/]KEY:VALUE. */
struct value {
	char *queue; /* id or name; NULL: all */
	char *key, *text;
};

struct rossum {
	struct backend self;
	struct http *http;
	struct limit *limit;
	char *base_url; /* without a slash at its end */
	char *scratch_dir;
	char *metadata; /* further members for the metadata, `,"key":"value"`...; "" */
	struct value *values;
	int value_count;
	bool is_raw; /* upload_form=raw */
	int (*read_credentials)(void *arg, struct credentials *ret);
	const char *(*option)(void *arg, const char *name, int nth);
	void *arg;
	int64_t began_ms;
	int haste; /* 1, but in tests */
	atomic_bool is_stopped;

	pthread_mutex_t lock; /* guards what follows */
	struct link *links;   /* LINKS of them, by annotation; a later one takes an earlier one's place */
	struct attempt *attempts;
	struct named *workspaces, *queues; /* the latter as far as values= asks for names */
	struct memo *memos;
	struct doubt *doubts;
	struct login login;
	uint64_t proved_token; /* the number of a token that /auth/user took */
	int64_t proved_ms;
};

static struct rossum *rossum_from(struct backend *b)
{
	return (struct rossum *)b;
}

/* A time we give the service, as long as it is here. */
static int64_t rossum_patience_ms(const struct rossum *s, int64_t ms)
{
	return ms / s->haste;
}

void rossum_hasten(struct backend *b, int factor)
{
	rossum_from(b)->haste = factor;
}

/* ---- reading answers ---------------------------------------------------------------------------------------- */

/* Members nobody depends on are read without complaint: what has an unforeseen type counts as absent. */
static const cJSON *rossum_member(const cJSON *object, const char *key)
{
	return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

static const char *rossum_text_of(const cJSON *object, const char *key)
{
	const cJSON *found = rossum_member(object, key);

	return cJSON_IsString(found) && found->valuestring && found->valuestring[0] ? found->valuestring : NULL;
}

static int64_t rossum_time_of(const cJSON *object, const char *key)
{
	const char *text = rossum_text_of(object, key);
	int64_t ms = -1;

	return text && time_parse_iso(text, &ms) == 0 ? ms : -1;
}

static bool rossum_is_digits(const char *text)
{
	size_t len = strlen(text);

	return len > 0 && len <= 18 && strspn(text, "0123456789") == len;
}

/* Objects name each other by whole addresses, and never twice in the same spelling: the id is the last segment. */
static const char *rossum_ref_text(const char *url, struct json_id *room)
{
	size_t end = strcspn(url, "?#"), start;

	while (end > 0 && url[end - 1] == '/')
		end--;
	for (start = end; start > 0 && isdigit((unsigned char)url[start - 1]); start--)
		;
	if (start == end || end - start > 18 || (start > 0 && url[start - 1] != '/'))
		return NULL;
	snprintf(room->text, sizeof(room->text), "%.*s", (int)(end - start), url + start);
	return room->text;
}

/* An address or a bare id, as an id; NULL: neither. */
static const char *rossum_ref_of(const cJSON *item, struct json_id *room)
{
	if (cJSON_IsString(item) && item->valuestring)
		return rossum_ref_text(item->valuestring, room);
	if (cJSON_IsNumber(item) && item->valuedouble >= 1 && item->valuedouble < 9e15 &&
	    item->valuedouble == (double)(int64_t)item->valuedouble) {
		snprintf(room->text, sizeof(room->text), "%lld", (long long)item->valuedouble);
		return room->text;
	}
	return NULL;
}

static const char *rossum_ref_in(const cJSON *object, const char *key, struct json_id *room)
{
	return rossum_ref_of(rossum_member(object, key), room);
}

static const char *rossum_own_id(const cJSON *object, struct json_id *room)
{
	const char *id = rossum_ref_in(object, "id", room);

	return id ? id : rossum_ref_in(object, "url", room);
}

/* The segment before the id: "tasks" of ".../tasks/91". */
static bool rossum_ref_is(const char *url, const char *kind)
{
	struct json_id room;
	size_t len = strlen(kind);
	const char *at = rossum_ref_text(url, &room) ? strstr(url, kind) : NULL;

	for (; at; at = strstr(at + 1, kind)) {
		if (at > url && at[-1] == '/' && at[len] == '/' && strspn(at + len + 1, "0123456789") > 0)
			return true;
	}
	return false;
}

static void add_words(struct buf *ret, const char *field, const cJSON *item)
{
	if (!cJSON_IsString(item) || !item->valuestring[0])
		return;
	buf_add(ret, ret->len ? " " : "");
	if (field && strcmp(field, "detail") != 0 && strcmp(field, "non_field_errors") != 0)
		buf_addf(ret, "%s: ", field);
	buf_add(ret, item->valuestring);
}

/* `detail`, or a map of field -> messages; both are met. `code` and `url` are for machines. */
static void rossum_read_words(const cJSON *body, struct buf *ret)
{
	const cJSON *field, *text;

	if (cJSON_IsArray(body)) {
		cJSON_ArrayForEach (text, body)
			add_words(ret, NULL, text);
		return;
	}
	add_words(ret, "detail", rossum_member(body, "detail"));
	cJSON_ArrayForEach (field, body) {
		if (!field->string || strcmp(field->string, "code") == 0 || strcmp(field->string, "url") == 0)
			continue;
		if (cJSON_IsArray(field)) {
			cJSON_ArrayForEach (text, field)
				add_words(ret, field->string, text);
		} else if (strcmp(field->string, "detail") != 0) {
			add_words(ret, field->string, field);
		}
	}
}

/* Its 15 words. What is not to be shown has no state: it was superseded, taken away, or never begun. */
static const struct {
	const char *status;
	enum document_state state;
	bool is_hidden;
	const char *trouble;
} statuses[] = {
	{ .status = "created", .state = STATE_STORED, .is_hidden = true },
	{ .status = "importing", .state = STATE_PROCESSING },
	{ .status = "failed_import", .state = STATE_FAILED, .trouble = "the import failed" },
	{ .status = "split", .state = STATE_READY, .is_hidden = true },
	{ .status = "to_review", .state = STATE_READY },
	{ .status = "reviewing", .state = STATE_READY },
	{ .status = "in_workflow", .state = STATE_READY },
	{ .status = "confirmed", .state = STATE_READY },
	{ .status = "rejected", .state = STATE_READY, .trouble = "rejected" },
	{ .status = "exporting", .state = STATE_READY },
	{ .status = "exported", .state = STATE_READY },
	{ .status = "failed_export", .state = STATE_READY, .trouble = "the export failed" },
	{ .status = "postponed", .state = STATE_READY },
	{ .status = "deleted", .state = STATE_READY, .is_hidden = true },
	{ .status = "purged", .state = STATE_READY, .is_hidden = true },
};

static int status_find(const char *status)
{
	for (int i = 0; status && i < (int)(sizeof(statuses) / sizeof(statuses[0])); i++) {
		if (strcmp(statuses[i].status, status) == 0)
			return i;
	}
	return -1;
}

static bool rossum_status_is_hidden(const char *status)
{
	int i = status_find(status);

	return i >= 0 && statuses[i].is_hidden;
}

static bool rossum_is_hidden(const cJSON *annotation)
{
	return rossum_status_is_hidden(rossum_text_of(annotation, "status"));
}

static bool rossum_has_status(const cJSON *annotation, const char *status)
{
	const char *text = rossum_text_of(annotation, "status");

	return text && strcmp(text, status) == 0;
}

/* What we wrote into the metadata of our own uploads: the service itself tells no size and no hash. */
struct mark {
	const char *sha256, *name, *nonce; /* the first is 64 hex digits; the others may be NULL */
	int64_t size_bytes;
};

static bool rossum_read_mark(const cJSON *annotation, struct mark *ret)
{
	const cJSON *ours = rossum_member(rossum_member(annotation, "metadata"), "sessionfs"),
		    *size = rossum_member(ours, "size");

	*ret = (struct mark){ .sha256 = rossum_text_of(ours, "sha256"),
			      .name = rossum_text_of(ours, "name"),
			      .nonce = rossum_text_of(ours, "nonce") };
	if (!ret->sha256 || strlen(ret->sha256) != 64 || strspn(ret->sha256, "0123456789abcdefABCDEF") != 64)
		return false;
	if (!cJSON_IsNumber(size) || size->valuedouble < 0 || size->valuedouble > 9e15)
		return false;
	ret->size_bytes = (int64_t)size->valuedouble;
	return true;
}

/* HTML is sanitised on its way in: what is read back is not what was sent. */
static bool rossum_is_html(const char *name, const char *mime)
{
	return (mime && strcasecmp(mime, "text/html") == 0) || (name && strcmp(mime_by_name(name), "text/html") == 0);
}

/* The members of an archive and the parts of a split file inherit the metadata, but not the bytes; and where pages were edited in
 * place the annotation shows a younger document. */
static bool mark_is_of(const struct mark *m, const cJSON *annotation, const cJSON *document)
{
	const char *name = rossum_text_of(document, "original_file_name");
	const cJSON *parent = rossum_member(document, "parent");
	int64_t made_ms = rossum_time_of(annotation, "created_at");

	if (made_ms >= 0 && rossum_time_of(document, "created_at") > made_ms + YOUNGER_MS)
		return false;
	if (!name || (parent && !cJSON_IsNull(parent)) || rossum_is_html(name, rossum_text_of(document, "mime_type")))
		return false;
	return !m->name || strcmp(m->name, name) == 0;
}

/* What a view of a document borrows from besides the JSON. */
struct document_room {
	struct json_id id, document, upload, creator, email, organization, parent;
	char trouble[TROUBLE_BYTES];
};

/* A status that is bad news, with what hooks and connectors had to say. */
static void read_trouble(const cJSON *annotation, struct document *ret, struct document_room *room)
{
	static const char *const keys[] = { "content", "message", "detail", "text" };
	CLEANUP(buf_release) struct buf words = BUF(TROUBLE_BYTES - 1);
	int i = status_find(ret->status);
	const cJSON *message;

	if (i < 0 || !statuses[i].trouble)
		return;
	buf_add(&words, statuses[i].trouble);
	cJSON_ArrayForEach (message, rossum_member(annotation, "messages")) {
		const char *text = cJSON_IsString(message) ? message->valuestring : NULL;

		for (size_t k = 0; !text && k < sizeof(keys) / sizeof(keys[0]); k++)
			text = rossum_text_of(message, keys[k]);
		if (text)
			buf_addf(&words, ": %.200s", text);
	}
	snprintf(room->trouble, sizeof(room->trouble), "%s", words.len ? words.data : statuses[i].trouble);
	ret->error = room->trouble;
}

static void add_extra(struct document *doc, const char *name, const char *value)
{
	for (int i = 0; value && i < DOCUMENT_EXTRA_MAX; i++) {
		if (!doc->extra[i][0]) {
			doc->extra[i][0] = name;
			doc->extra[i][1] = value;
			return;
		}
	}
}

/* ---- what is remembered ------------------------------------------------------------------------------------- */

static struct link *link_slot(struct rossum *s, const char *annotation_id)
{
	uint64_t n = strtoull(annotation_id, NULL, 10);

	return &s->links[n % LINKS];
}

/* upload_id NULL: as it was. */
static void link_note(struct rossum *s, const char *annotation_id, const char *document_id, const char *upload_id)
{
	uint64_t annotation = strtoull(annotation_id, NULL, 10);
	SCOPED_LOCK(&s->lock);
	struct link *l = link_slot(s, annotation_id);

	if (l->annotation != annotation) {
		if (l->upload && !upload_id)
			return; /* what a listing says again is worth less than what only we know */
		*l = (struct link){ .annotation = annotation };
	}
	if (document_id)
		l->document = strtoull(document_id, NULL, 10);
	if (upload_id)
		l->upload = strtoull(upload_id, NULL, 10);
}

static const char *number_text(uint64_t n, struct json_id *room)
{
	if (n == 0)
		return NULL;
	snprintf(room->text, sizeof(room->text), "%llu", (unsigned long long)n);
	return room->text;
}

/* What is known; NULL: it is not. */
static void link_look(struct rossum *s, const char *annotation_id, struct json_id *document_room,
		      struct json_id *upload_room, const char **ret_document, const char **ret_upload)
{
	SCOPED_LOCK(&s->lock);
	const struct link *l = link_slot(s, annotation_id);
	bool is_it = l->annotation == strtoull(annotation_id, NULL, 10);

	*ret_document = is_it ? number_text(l->document, document_room) : NULL;
	*ret_upload = is_it ? number_text(l->upload, upload_room) : NULL;
}

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

/* ---- reading answers: documents ------------------------------------------------------------------------------ */

/* What our own mark says of the bytes, if these are the bytes it was made for. */
static void read_size(const cJSON *annotation, const cJSON *document, struct document *ret)
{
	struct mark mark;

	ret->size_bytes = -1;
	if (!rossum_read_mark(annotation, &mark) || !mark_is_of(&mark, annotation, document))
		return;
	ret->size_bytes = mark.size_bytes;
	for (int i = 0; i < 64; i++)
		ret->sha256_text[i] = (char)tolower((unsigned char)mark.sha256[i]);
	ret->sha256 = ret->sha256_text;
}

/* `arrived_at` is an older name of the first. */
static int64_t created_of(const cJSON *annotation, const cJSON *document)
{
	int64_t ms = rossum_time_of(document, "created_at");

	if (ms < 0)
		ms = rossum_time_of(document, "arrived_at");
	return ms < 0 ? rossum_time_of(annotation, "created_at") : ms;
}

/* An annotation and the document it shows (NULL: not sent along). Borrowed from both and room. */
static int rossum_read_document(struct rossum *s, const cJSON *annotation, const cJSON *document, struct document *ret,
				struct document_room *room)
{
	const char *upload, *known;
	struct json_id other;

	memset(ret, 0, sizeof(*ret));
	ret->id = rossum_own_id(annotation, &room->id);
	if (!ret->id) {
		log_warning("rossum: annotation: it has no id we can use");
		return -EPROTO;
	}
	const char *document_id = rossum_ref_in(annotation, "document", &room->document);
	if (document_id)
		link_note(s, ret->id, document_id, NULL);
	link_look(s, ret->id, &other, &room->upload, &known, &upload);
	const char *filename = rossum_text_of(document, "original_file_name");
	ret->filename = filename ? filename : "";
	ret->status = rossum_text_of(annotation, "status");
	int i = status_find(ret->status);
	ret->state = i >= 0 ? statuses[i].state : STATE_PROCESSING;
	read_size(annotation, document, ret);
	ret->created_ms = created_of(annotation, document);
	ret->mime = rossum_text_of(document, "mime_type");
	if (!ret->mime)
		ret->mime = mime_by_name(ret->filename);
	const cJSON *pages = rossum_member(annotation, "pages");
	ret->pages = cJSON_IsArray(pages) && pages->child ? cJSON_GetArraySize(pages) : -1;
	ret->parsing.updated_ms = -1;
	read_trouble(annotation, ret, room);
	add_extra(ret, "document", document_id);
	add_extra(ret, "upload", upload);
	add_extra(ret, "creator", rossum_ref_in(document, "creator", &room->creator));
	const char *email = rossum_ref_in(document, "email", &room->email);
	add_extra(ret, "email", email ? email : rossum_ref_in(annotation, "email", &room->email));
	add_extra(ret, "organization", rossum_ref_in(annotation, "organization", &room->organization));
	add_extra(ret, "parent", rossum_ref_in(document, "parent", &room->parent));
	return 0;
}

/* Both records as one, for user.sessionfs.json. */
static char *print_record(const cJSON *annotation, const cJSON *document)
{
	CLEANUP(buf_release) struct buf text = BUF(RECORD_BYTES_MAX);
	char *one = cJSON_PrintUnformatted(annotation);
	char *other = document ? cJSON_PrintUnformatted(document) : NULL;

	if (one)
		buf_addf(&text, "{\"annotation\":%s,\"document\":%s}", one, other ? other : "null");
	cJSON_free(one);
	cJSON_free(other);
	return buf_take(&text);
}

static int rossum_add_document(struct rossum *s, struct listing_builder *builder, const cJSON *annotation,
			       const cJSON *document, bool keeps_json)
{
	CLEANUP(text_release) char *json = NULL;
	struct document doc;
	struct document_room room;
	int r = rossum_read_document(s, annotation, document, &doc, &room);

	if (r < 0)
		return r;
	if (keeps_json)
		json = print_record(annotation, document); /* one too large is worth less than its document */
	return listing_builder_add(builder, &doc, json);
}

/* A listing of its own for one document. */
static int rossum_one_document(struct rossum *s, const cJSON *annotation, const cJSON *document, int64_t asked_ms,
			       struct listing **ret)
{
	CLEANUP(listing_builder_release) struct listing_builder *builder = listing_builder_new(s->scratch_dir);

	if (!builder)
		return -ENOMEM;
	int r = rossum_add_document(s, builder, annotation, document, true);
	if (r < 0)
		return r;
	return listing_builder_take(&builder, asked_ms, clock_wall_ms(), ret);
}

/* The documents that came along with a page of annotations, by id. */
struct sideload {
	struct sideloaded {
		struct json_id id;
		const cJSON *item;
	} * items;
	size_t count;
};

static void sideload_release(struct sideload *l)
{
	free(l->items);
	*l = (struct sideload){ 0 };
}

static int compare_sideloaded(const void *a, const void *b)
{
	return strcmp(((const struct sideloaded *)a)->id.text, ((const struct sideloaded *)b)->id.text);
}

static int sideload_read(const cJSON *body, struct sideload *ret)
{
	const cJSON *list = rossum_member(body, "documents"), *item;

	if (!cJSON_IsArray(list))
		return 0;
	ret->items = calloc((size_t)cJSON_GetArraySize(list) + 1, sizeof(*ret->items));
	if (!ret->items)
		return -ENOMEM;
	cJSON_ArrayForEach (item, list) {
		struct sideloaded *one = &ret->items[ret->count];

		if (!rossum_own_id(item, &one->id))
			continue;
		one->item = item;
		ret->count++;
	}
	qsort(ret->items, ret->count, sizeof(*ret->items), compare_sideloaded);
	return 0;
}

static const cJSON *sideload_find(const struct sideload *l, const cJSON *annotation)
{
	struct sideloaded key = { .item = NULL }, *found;

	if (!l->count || !rossum_ref_in(annotation, "document", &key.id))
		return NULL;
	found = bsearch(&key, l->items, l->count, sizeof(*l->items), compare_sideloaded);
	return found ? found->item : NULL;
}

/* ---- credentials --------------------------------------------------------------------------------------------- */

static int rossum_fail(struct call *call, enum fault_kind kind, int error, const char *words)
{
	int status = call->fault.http_status;

	call_forget_fault(call);
	call->fault.kind = kind;
	call->fault.http_status = status;
	snprintf(call->fault.words, sizeof(call->fault.words), "%s", words);
	return error;
}

/* 0: a login may be tried. */
static int login_is_due(struct rossum *s, struct call *call, const char *account, bool anew)
{
	SCOPED_LOCK(&s->lock);
	const struct login *l = &s->login;
	int64_t now = clock_now_ms();

	if (strcmp(l->account, account) != 0)
		return 0;
	if (now < l->not_before_ms) {
		rossum_fail(call, l->is_throttled ? FAULT_BUDGET : FAULT_ACCOUNT, 0, l->words);
		call->fault.http_status = l->is_throttled ? 429 : 401;
		call->fault.retry_after_ms = l->not_before_ms - now;
		return l->is_throttled ? -EAGAIN : -EACCES;
	}
	/* A token that is refused as soon as it is made would have us log in for ever. */
	return anew && l->done_ms && now < l->done_ms + rossum_patience_ms(s, LOGIN_AGAIN_MS) ? -EACCES : 0;
}

static bool login_is_throttled(struct rossum *s)
{
	SCOPED_LOCK(&s->lock);

	return s->login.is_throttled && clock_now_ms() < s->login.not_before_ms;
}

static void login_went_well(struct rossum *s, const char *account)
{
	SCOPED_LOCK(&s->lock);

	s->login = (struct login){ .done_ms = clock_now_ms() };
	snprintf(s->login.account, sizeof(s->login.account), "%s", account);
}

/* The login locks out whoever calls it eagerly, so we keep away from it for a growing time. */
static void login_failed(struct rossum *s, const char *account, const struct fault *f)
{
	SCOPED_LOCK(&s->lock);
	struct login *l = &s->login;
	int64_t pause_ms = LOGIN_BACK_OFF_MS;

	if (strcmp(l->account, account) != 0)
		*l = (struct login){ 0 };
	snprintf(l->account, sizeof(l->account), "%s", account);
	l->is_throttled = f->kind == FAULT_BUDGET;
	if (!l->is_throttled && f->kind != FAULT_ACCOUNT)
		return; /* it could not be asked: the next may */
	for (int i = 0; i < l->failures && pause_ms < LOGIN_BACK_OFF_MS_MAX; i++)
		pause_ms *= 2;
	if (pause_ms < f->retry_after_ms)
		pause_ms = f->retry_after_ms;
	if (pause_ms > LOGIN_BACK_OFF_MS_MAX)
		pause_ms = LOGIN_BACK_OFF_MS_MAX;
	l->failures++;
	l->not_before_ms = clock_now_ms() + pause_ms;
	snprintf(l->words, sizeof(l->words), "%s%.150s",
		 l->is_throttled ? "the login is throttled: " : "the login is refused: ", f->words);
	log_warning("rossum: %s; the next login is tried in %lld s", l->words, (long long)pause_ms / 1000);
}

static int send_login(struct rossum *s, struct call *call, const struct credentials *c, struct secret **ret)
{
	CLEANUP(buf_release) struct buf text = BUF(BODY_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;

	buf_add(&text, "{\"username\":");
	json_add_quoted(&text, c->user);
	buf_add(&text, ",\"password\":");
	json_add_quoted(&text, secret_reveal(c->password));
	buf_add(&text, "}");
	const struct http_request q = { .method = "POST",
					.path = "/auth/login",
					.body = buf_text(&text),
					.is_anonymous = true,
					.is_apart = true,
					.accepts_any = true };
	int r = q.body ? http_json(s->http, call, &q, &body) : call_no_memory(call);
	if (text.data)
		explicit_bzero(text.data, text.len);
	if (r < 0) {
		enum fault_kind kind = call->fault.kind;

		call->fault.may_have_happened = false;
		if (kind == FAULT_INVALID || kind == FAULT_FORBIDDEN) { /* 400: "unable to log in with these" */
			call->fault.kind = FAULT_ACCOUNT;
			r = -EACCES;
		}
		return r;
	}
	const char *key = rossum_text_of(body, "key");
	struct secret *token = key ? secret_new(key) : NULL;
	if (!token)
		return http_unreadable(s->http, call, &q, "the login's answer holds no key");
	*ret = token;
	return 0;
}

/* One login for all threads: http.c calls this for one of them at a time, and the others wait for its answer. */
static int login_read_token(void *arg, struct call *call, bool anew, struct secret **ret)
{
	struct rossum *s = arg;
	CLEANUP(credentials_release) struct credentials c = { 0 };
	char account[65];
	int r = s->read_credentials(s->arg, &c);

	if (r < 0)
		return r;
	if (c.token) {
		*ret = c.token;
		c.token = NULL;
		return 0;
	}
	if (!c.user || !c.password)
		return -ENOKEY;
	secret_fingerprint(c.password, c.user, account);
	r = login_is_due(s, call, account, anew);
	if (r < 0)
		return r;
	r = send_login(s, call, &c, ret);
	if (r < 0)
		login_failed(s, account, &call->fault);
	else
		login_went_well(s, account);
	return r;
}

/* "Authorization: Basic ..." for the one request that takes it. -ENOKEY: there is no password. */
static int login_basic_header(struct rossum *s, struct buf *ret)
{
	CLEANUP(credentials_release) struct credentials c = { 0 };
	CLEANUP(buf_release) struct buf pair = BUF(BODY_BYTES_MAX);
	CLEANUP(text_release) char *code = NULL;
	int r = s->read_credentials(s->arg, &c);

	if (r < 0)
		return r;
	if (c.token || !c.user || !c.password)
		return -ENOKEY;
	buf_addf(&pair, "%s:%s", c.user, secret_reveal(c.password));
	code = buf_text(&pair) ? malloc(pair.len / 3 * 4 + 8) : NULL;
	if (!code)
		return -ENOMEM;
	int len = EVP_EncodeBlock((unsigned char *)code, (const unsigned char *)pair.data, (int)pair.len);
	buf_addf(ret, "Authorization: Basic %s", code);
	explicit_bzero(pair.data, pair.len);
	explicit_bzero(code, (size_t)len);
	return buf_text(ret) ? 0 : -ENOMEM;
}

/* ---- requests ------------------------------------------------------------------------------------------------ */

static bool token_was_proved(struct rossum *s, uint64_t number)
{
	SCOPED_LOCK(&s->lock);

	return s->proved_token == number && clock_now_ms() < s->proved_ms + PROVED_MS;
}

static void token_proved(struct rossum *s, uint64_t number)
{
	SCOPED_LOCK(&s->lock);

	s->proved_token = number;
	s->proved_ms = clock_now_ms();
}

static const struct http_request rossum_user_request = { .method = "GET", .path = "/auth/user", .accepts_any = true };

/* A 403 means a missing right, or a token that has ended: whoever may do anything may ask who he is. 0: the right is
 * missing; 1: there is another token now; else there is none, and call->fault says so. */
static int doubt_token(struct rossum *s, struct call *call, uint64_t number)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	struct fault kept = call->fault;

	if (number == 0)
		number = http_token_number(s->http); /* it was the first that was sent */
	if (token_was_proved(s, number))
		return 0;
	int r = http_do(s->http, call, &rossum_user_request, &reply);
	uint64_t now = http_token_number(s->http);
	if (r == 0) {
		token_proved(s, now);
		call->fault = kept;
		return now != number;
	}
	if (call->fault.kind != FAULT_FORBIDDEN)
		return r;
	call_forget_fault(call);
	r = http_renew_token(s->http, call, now);
	if (r == 0)
		return 1;
	if (call->fault.kind == FAULT_NONE) {
		call->fault = kept;
		call->fault.kind = FAULT_ACCOUNT;
	}
	return r;
}

static int rossum_ask(struct rossum *s, struct call *call, const struct http_request *q, struct http_reply *ret)
{
	uint64_t number = http_token_number(s->http);
	int r = http_do(s->http, call, q, ret);

	if (r == 0 || call->fault.kind != FAULT_FORBIDDEN || q->is_anonymous)
		return r;
	int doubted = doubt_token(s, call, number);
	if (doubted == 0)
		return r;
	http_reply_release(ret);
	return doubted < 0 ? doubted : http_do(s->http, call, q, ret);
}

/* An answer of a shape we cannot use is as good as none: GETs may be asked again, writes have to be looked for. */
static int rossum_unreadable(struct rossum *s, struct call *call, const struct http_request *q, const char *why,
			     int error)
{
	if (error == -ENOMEM)
		return call_no_memory(call);
	return http_unreadable(s->http, call, q, why);
}

static int rossum_ask_json(struct rossum *s, struct call *call, const struct http_request *q, cJSON **ret)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };

	if (!q->path)
		return call_no_memory(call);
	int r = rossum_ask(s, call, q, &reply);
	if (r < 0)
		return r;
	if (json_parse(reply.body, reply.body_bytes, ret) == 0)
		return 0;
	call->fault.http_status = reply.status;
	return rossum_unreadable(s, call, q, "the answer is not JSON", -EPROTO);
}

static int rossum_get_json(struct rossum *s, struct call *call, const char *path, cJSON **ret)
{
	const struct http_request q = { .method = "GET", .path = path };

	return rossum_ask_json(s, call, &q, ret);
}

static bool is_cancelled(struct rossum *s, const struct call *call)
{
	return atomic_load(&s->is_stopped) || (call->transfer && atomic_load(&call->transfer->cancelled));
}

/* Sleeps, unless the caller gives up or the time is up. */
static int rossum_nap(struct rossum *s, struct call *call, int64_t ms, int64_t deadline_ms)
{
	const struct timespec slice = { .tv_nsec = (ms < 50 ? ms : 50) * 1000000 };
	int64_t until = clock_now_ms() + ms;

	for (int64_t now = clock_now_ms(); now < until; now = clock_now_ms()) {
		if (is_cancelled(s, call))
			return rossum_fail(call, FAULT_CANCELED, -ECANCELED, "");
		if (deadline_ms && now >= deadline_ms)
			return -ETIMEDOUT;
		(void)nanosleep(&slice, NULL); /* woken early, it looks early */
	}
	return 0;
}

/* A list, page by page. Pages are never counted: some servers tell no total, and those who do change under our feet. */
struct pages {
	struct buf path; /* to ask next; empty: the end */
	struct buf mark; /* an earlier one: whoever comes by it again walks in a circle */
	int asked;
};

static void pages_release(struct pages *p)
{
	buf_release(&p->path);
	buf_release(&p->mark);
}

#define PAGES                                                                                                          \
	{                                                                                                              \
		.path = BUF(PATH_BYTES_MAX), .mark = BUF(PATH_BYTES_MAX)                                               \
	}

/* `next` stands in `pagination`, or beside it. NULL, or what is wrong with it. */
static const char *pages_turn(struct rossum *s, struct pages *p, const cJSON *body)
{
	const char *next = rossum_text_of(rossum_member(body, "pagination"), "next");
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);

	if (!next)
		next = rossum_text_of(body, "next");
	if (next && http_path_of(s->http, next, &path) < 0)
		return "its next page is at an address that is not the service's";
	if (next && (strcmp(path.data, buf_text(&p->path)) == 0 ||
		     (p->mark.len > 0 && strcmp(path.data, buf_text(&p->mark)) == 0)))
		return "its pages go round in a circle";
	buf_release(&p->path);
	p->path = path;
	path = BUF(PATH_BYTES_MAX);
	if (next && (p->asked & (p->asked - 1)) == 0) { /* ever farther apart, so that a circle of any size shows */
		buf_clear(&p->mark);
		buf_add(&p->mark, p->path.data);
	}
	return NULL;
}

/* 1: a page, of which *ret_results is the list; 0: the end. */
static int pages_next(struct rossum *s, struct call *call, struct pages *p, cJSON **ret, const cJSON **ret_results)
{
	CLEANUP(json_release) cJSON *body = NULL;

	if (p->path.len == 0 || p->asked >= PAGES_MAX)
		return 0;
	CLEANUP(text_release) char *path = strdup(p->path.data);
	const struct http_request q = { .method = "GET", .path = path };
	int r = rossum_ask_json(s, call, &q, &body);
	if (r < 0)
		return r;
	p->asked++;
	const cJSON *results = rossum_member(body, "results");
	if (!cJSON_IsArray(results))
		return rossum_unreadable(s, call, &q, "this is not a page of a list", -EPROTO);
	const char *why = pages_turn(s, p, body);
	if (why)
		return rossum_unreadable(s, call, &q, why, -EPROTO);
	if (call->transfer)
		atomic_store(&call->transfer->moved_ms, clock_now_ms());
	*ret = body;
	body = NULL;
	*ret_results = results;
	return 1;
}

/* ---- queues -------------------------------------------------------------------------------------------------- */

static void named_note(struct rossum *s, struct named **list, const cJSON *item)
{
	struct json_id room;
	const char *id = rossum_own_id(item, &room), *name = rossum_text_of(item, "name");
	struct named *w;
	SCOPED_LOCK(&s->lock);

	for (w = *list; id && w && strcmp(w->id, id) != 0;)
		w = w->next;
	if (!id || w)
		return;
	w = calloc(1, sizeof(*w));
	if (!w)
		return; /* without memory nothing is learned, and names are told apart by id */
	w->id = strdup(id);
	w->name = strdup(name ? name : "");
	if (!w->id || !w->name) {
		free(w->id);
		free(w->name);
		free(w);
		return;
	}
	w->next = *list;
	*list = w;
}

/* false: nobody has told. */
static bool named_look(struct rossum *s, struct named *const *list, const char *id, char **ret_name)
{
	SCOPED_LOCK(&s->lock);
	const struct named *w = *list;

	while (w && strcmp(w->id, id) != 0)
		w = w->next;
	*ret_name = w && w->name[0] ? strdup(w->name) : NULL;
	return w != NULL;
}

/* A side question: names can be told apart without it. */
static void learn_workspaces(struct rossum *s, struct call *call)
{
	CLEANUP(pages_release) struct pages pages = PAGES;
	int r = 1;

	buf_addf(&pages.path, "/workspaces?page_size=%d&ordering=id", PAGE);
	while (r > 0) {
		CLEANUP(json_release) cJSON *body = NULL;
		const cJSON *results = NULL, *item;

		r = pages_next(s, call, &pages, &body, &results);
		cJSON_ArrayForEach (item, results)
			named_note(s, &s->workspaces, item);
	}
}

static void learn_workspace(struct rossum *s, struct call *call, const char *id)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;

	buf_addf(&path, "/workspaces/%s", id);
	const struct http_request q = { .method = "GET", .path = buf_text(&path), .accepts_any = true };
	if (rossum_ask_json(s, call, &q, &body) == 0)
		named_note(s, &s->workspaces, body);
}

static bool mime_matches(const char *pattern, const char *mime)
{
	size_t len = strlen(pattern);

	if (strcmp(pattern, "*") == 0 || strcmp(pattern, "*/*") == 0)
		return true;
	if (len > 2 && strcmp(pattern + len - 2, "/*") == 0)
		return strncasecmp(pattern, mime, len - 1) == 0;
	return strcasecmp(pattern, mime) == 0;
}

/* The suffixes of the types a queue takes; NULL: it names none, or none we know a suffix of. */
static char *formats_of(const cJSON *queue)
{
	static const char *const suffixes[] = { "pdf",  "png", "jpg",  "jpeg", "tiff", "xlsx", "xls", "docx", "doc",
						"html", "htm", "pptx", "ppt",  "odt",  "rtf",  "bmp", "gif",  "webp",
						"heic", "xml", "json", "csv",  "txt",  "eml",  "msg", "zip" };
	const cJSON *types = rossum_member(rossum_member(queue, "settings"), "accepted_mime_types"), *type;
	CLEANUP(buf_release) struct buf text = BUF(400);

	if (!cJSON_IsArray(types))
		return NULL;
	for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
		char name[16];
		bool is_taken = false;

		snprintf(name, sizeof(name), "x.%s", suffixes[i]);
		cJSON_ArrayForEach (type, types)
			is_taken = is_taken ||
				   (cJSON_IsString(type) && mime_matches(type->valuestring, mime_by_name(name)));
		if (is_taken)
			buf_addf(&text, "%s%s", text.len ? " " : "", suffixes[i]);
	}
	return text.len ? buf_take(&text) : NULL;
}

static char *copy_or_null(const char *text, bool *ok)
{
	char *own = text ? strdup(text) : NULL;

	*ok = *ok && (!text || own);
	return own;
}

static int rossum_read_queue(const cJSON *item, struct session *ret)
{
	struct json_id id_room, workspace_room, schema_room;
	const char *id = rossum_own_id(item, &id_room), *name = rossum_text_of(item, "name"),
		   *status = rossum_text_of(item, "status");
	CLEANUP(session_release) struct session found = { .created_ms = -1 };
	bool ok = true;

	if (!id) {
		log_warning("rossum: queue: it has no id we can use");
		return -EPROTO;
	}
	found.id = copy_or_null(id, &ok);
	found.name = copy_or_null(name ? name : "", &ok);
	found.workspace_id = copy_or_null(rossum_ref_in(item, "workspace", &workspace_room), &ok);
	found.template_id = copy_or_null(rossum_ref_in(item, "schema", &schema_room), &ok);
	found.status = copy_or_null(status, &ok);
	found.formats = formats_of(item);
	found.updated_ms = rossum_time_of(item, "modified_at");
	found.is_closed = status && strcmp(status, "active") != 0;
	if (!ok)
		return -ENOMEM;
	*ret = found;
	found = (struct session){ 0 };
	return 0;
}

static int rossum_get_queue_json(struct rossum *s, struct call *call, const char *queue_id, cJSON **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);

	if (!rossum_is_digits(queue_id)) /* an id of another service, or somebody's guess */
		return rossum_fail(call, FAULT_GONE, -ENOENT, "this cannot be the id of a queue");
	buf_addf(&path, "/queues/%s", queue_id);
	return rossum_get_json(s, call, buf_text(&path), ret);
}

static int rossum_get_session(struct backend *b, struct call *call, const char *session_id, struct session *ret)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(session_release) struct session found = { 0 };
	int r = rossum_get_queue_json(s, call, session_id, &body);

	if (r < 0)
		return r;
	r = rossum_read_queue(body, &found);
	if (r < 0)
		return rossum_fail(call, r == -EPROTO ? FAULT_AWAY : FAULT_NONE, r, "this is not a queue");
	if (found.workspace_id && !named_look(s, &s->workspaces, found.workspace_id, &found.qualifier)) {
		learn_workspace(s, call, found.workspace_id);
		call_forget_fault(call);
		(void)named_look(s, &s->workspaces, found.workspace_id, &found.qualifier); /* NULL: nobody tells */
	}
	*ret = found;
	found = (struct session){ 0 };
	return 0;
}

/* Is it one of those named by queue=, if any are? */
static bool queue_is_wanted(struct rossum *s, const struct session *queue)
{
	const char *wanted = NULL;

	for (int i = 0; s->option && (wanted = s->option(s->arg, "queue", i)); i++) {
		if (strcmp(wanted, queue->id) == 0 || strcmp(wanted, queue->name) == 0)
			return true;
	}
	return !s->option || !s->option(s->arg, "queue", 0);
}

static int add_queue(struct rossum *s, const cJSON *item, struct session_list *ret)
{
	CLEANUP(session_release) struct session queue = { 0 };
	int r = rossum_read_queue(item, &queue);

	if (r < 0 || session_list_has(ret, queue.id) || !queue_is_wanted(s, &queue))
		return r;
	if ((ret->count & (ret->count - 1)) == 0) { /* room doubles */
		struct session *items = realloc(ret->items, (size_t)(ret->count ? ret->count * 2 : 1) * sizeof(*items));

		if (!items)
			return -ENOMEM;
		ret->items = items;
	}
	ret->items[ret->count++] = queue;
	queue = (struct session){ 0 };
	return 0;
}

static void qualify(struct rossum *s, struct call *call, struct session_list *l)
{
	bool has_asked = false;

	for (int i = 0; i < l->count; i++) {
		struct session *queue = &l->items[i];

		if (!queue->workspace_id || named_look(s, &s->workspaces, queue->workspace_id, &queue->qualifier) ||
		    has_asked)
			continue;
		learn_workspaces(s, call);
		call_forget_fault(call);
		has_asked = true;
		(void)named_look(s, &s->workspaces, queue->workspace_id, &queue->qualifier);
	}
}

static int rossum_list_sessions(struct backend *b, struct call *call, struct session_list *ret)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(session_list_release) struct session_list found = { 0 };
	CLEANUP(pages_release) struct pages pages = PAGES;
	int r = 1;

	buf_addf(&pages.path, "/queues?page_size=%d&ordering=id", PAGE);
	while (r > 0) {
		CLEANUP(json_release) cJSON *body = NULL;
		const cJSON *results = NULL, *item;

		r = pages_next(s, call, &pages, &body, &results);
		cJSON_ArrayForEach (item, results) {
			int added = add_queue(s, item, &found);

			if (added < 0)
				return rossum_fail(call, added == -EPROTO ? FAULT_AWAY : FAULT_NONE, added,
						   "a queue cannot be read");
		}
	}
	if (r < 0)
		return r;
	qualify(s, call, &found);
	*ret = found;
	found = (struct session_list){ 0 };
	return 0;
}

/* Digits alone, or those behind "queues/" in an address. */
static int rossum_find_session_id(struct backend *b, const char *text, char **ret)
{
	static const char mark[] = "queues/";
	const char *at = strstr(text, mark);
	size_t len;

	for (; at; at = strstr(at + 1, mark)) {
		if (isdigit((unsigned char)at[sizeof(mark) - 1]))
			break;
	}
	at = at ? at + sizeof(mark) - 1 : text + strspn(text, " \t\r\n");
	len = strspn(at, "0123456789");
	bool is_alone = at[len + strspn(at + len, " \t\r\n")] == '\0';
	if (len == 0 || len > 18 || (at < text + sizeof(mark) && !is_alone) || isalnum((unsigned char)at[len]))
		return -ENOENT;
	*ret = strndup(at, len);
	return *ret ? 0 : -ENOMEM;
}

/* ---- listings ------------------------------------------------------------------------------------------------ */

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

static const char *rossum_annotations_path(struct buf *path, const char *queue_id, const char *further)
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

/* The annotations of these ids, as pages do. *ret_documents borrows from *ret. */
static int rossum_get_annotations(struct rossum *s, struct call *call, const char *queue_id, const char *ids,
				  cJSON **ret, const cJSON **ret_results, struct sideload *ret_documents)
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

static int rossum_list_documents(struct backend *b, struct call *call, const char *session_id, struct listing *known,
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

/* ---- single documents ---------------------------------------------------------------------------------------- */

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

/* What is wanted of a document: its bytes, or (fd NULL) how many there are. */
struct content {
	const int *fd;
	int64_t size_bytes; /* out */
};

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

static int rossum_get_content(struct rossum *s, struct call *call, const char *document_id, struct content *c)
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

static int rossum_fetch_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
				 int fd)
{
	struct content c = { .fd = &fd };

	return get_annotation_content(rossum_from(b), call, document_id, &c);
}

/* No request tells a size alone: Content-Length is read, and the connection closed on what follows. */
static int rossum_measure_document(struct backend *b, struct call *call, const char *session_id,
				   const char *document_id, int64_t *ret_bytes)
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

static int rossum_detach(struct backend *b, struct call *call, const char *session_id, const char *document_id)
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

/* ---- copies -------------------------------------------------------------------------------------------------- */

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

static int rossum_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
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

/* ---- tickets ------------------------------------------------------------------------------------------------- */

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
	char *line;

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
	line = buf_take(&text);
	if (!line)
		return -ENOMEM;
	free(u->ticket);
	u->ticket = line;
	return 0;
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

/* ---- sending ------------------------------------------------------------------------------------------------- */

/* Nothing has to be asked before bytes may be sent. */
static int rossum_upload_sign(struct backend *b, struct call *call, struct upload *u)
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

static int rossum_upload_store(struct backend *b, struct call *call, struct upload *u)
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

/* ---- what became of it --------------------------------------------------------------------------------------- */

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

static int rossum_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count)
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

/* ---- is it there already? ------------------------------------------------------------------------------------ */

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

static int rossum_upload_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids,
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

/* ---- checking ------------------------------------------------------------------------------------------------ */

static int rossum_check(struct backend *b, struct call *call)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	int r = rossum_ask(s, call, &rossum_user_request, &reply);
	enum fault_kind kind = call->fault.kind;

	if (r < 0 && kind != FAULT_GONE && kind != FAULT_INVALID && kind != FAULT_CONFLICT)
		return r;
	call_forget_fault(call); /* whatever it thinks of the question, it took the token */
	return 0;
}

static int rossum_describe(struct backend *b, struct call *call, struct buf *ret)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(json_release) cJSON *user = NULL;
	CLEANUP(session_list_release) struct session_list queues = { 0 };
	int closed = 0, r = rossum_ask_json(s, call, &rossum_user_request, &user);

	if (r < 0)
		return r;
	buf_addf(ret, "account: accepted, for %s\n",
		 rossum_text_of(user, "username") ? rossum_text_of(user, "username") : "?");
	r = rossum_list_sessions(b, call, &queues);
	if (r < 0 && call->fault.kind != FAULT_FORBIDDEN)
		return r;
	for (int i = 0; i < queues.count; i++)
		closed += queues.items[i].is_closed;
	if (r < 0)
		buf_addf(ret, "queues: no right to list them: %s\n", call->fault.words);
	else
		buf_addf(ret, "queues: %d to be seen, %d of them take no uploads\n", queues.count, closed);
	call_forget_fault(call);
	buf_add(ret, "uploading, copying, deleting: not tried, an attempt would leave traces\n");
	limit_describe(s->limit, "this second", ret);
	return ret->failed ? call_no_memory(call) : 0;
}

static void rossum_tell_state(struct backend *b, struct buf *ret)
{
	struct rossum *s = rossum_from(b);

	limit_describe(s->limit, "this second", ret);
	SCOPED_LOCK(&s->lock);
	int64_t left_ms = s->login.not_before_ms - clock_now_ms();
	if (left_ms > 0)
		buf_addf(ret, "%s; the next login is tried in %lld s\n", s->login.words,
			 (long long)(left_ms + 999) / 1000);
}

static void rossum_stop(struct backend *b)
{
	struct rossum *s = rossum_from(b);

	atomic_store(&s->is_stopped, true);
	http_stop(s->http);
}

/* ---- opening ------------------------------------------------------------------------------------------------- */

static const struct backend_option options[] = {
	{ "queue", "ID|NAME", NULL, "a queue to show (repeatable); all of them if none is named", true },
	{ "metadata", "KEY:VALUE", NULL, "put into the metadata of what is uploaded (repeatable)", true },
	{ "values", "[QUEUE/]KEY:VALUE", NULL,
	  "the initial value of a field of what is uploaded, into all queues or into this one (repeatable)", true },
	{ "upload_form", "multipart|raw", "multipart",
	  "how a file is sent; raw carries no metadata, so sizes are not known before a file is read", false },
	{ NULL },
};

static const struct backend_caps caps = {
	.service = "rossum",
	.title = "Rossum",
	.token_help =
		"Give a token of the Rossum API (POST /auth/login makes one), or username= and the password as the "
		"secret; the user needs a role that may see and fill the queues.",
	.default_url = NULL,
	.formats = "pdf png jpg jpeg tiff xlsx xls docx doc html htm zip",
	.document_bytes_max = DOCUMENT_BYTES_MAX,
	.sessions = SESSIONS_LISTED,
	.attaches = true,
	.detaches = true,
	.keeps_names = true,
	.store_has_effect = true,
	.attach_batch_max = 1, /* a request is a task, and one refused file would hide the others */
	.key_lifetime_ms = INT64_C(6) * 3600 * 1000, /* of the task */
	.rate_per_min = 600,
	.folder_page = PAGE,
};

static const char *option_of(const struct backend_config *config, const char *name, int nth)
{
	return config->option ? config->option(config->arg, name, nth) : NULL;
}

/* Up to the first colon; NULL after a sentence. */
static const char *find_colon(const char *name, const char *pair, struct buf *why)
{
	const char *colon = strchr(pair, ':');

	if (!colon || colon == pair || colon[-1] == '/') {
		buf_addf(why, "%s is KEY:VALUE, and not '%.100s'", name, pair);
		return NULL;
	}
	return colon;
}

/* Two of an option name the same, before their colons. */
static int check_twice(const struct backend_config *config, const char *name, int nth, size_t key_bytes,
		       struct buf *why)
{
	const char *pair = option_of(config, name, nth);

	for (int k = 0; k < nth; k++) {
		if (strncmp(option_of(config, name, k), pair, key_bytes + 1) == 0) {
			buf_addf(why, "%s: the key '%.*s' is given twice", name, (int)key_bytes, pair);
			return -EINVAL;
		}
	}
	return 0;
}

/* Adds `,"key":"value"` for each metadata=KEY:VALUE. */
static int read_metadata(const struct backend_config *config, struct buf *ret, struct buf *why)
{
	const char *pair;

	for (int i = 0; (pair = option_of(config, "metadata", i)); i++) {
		const char *colon = find_colon("metadata", pair, why);
		CLEANUP(text_release) char *key = colon ? strndup(pair, (size_t)(colon - pair)) : NULL;

		if (!colon)
			return -EINVAL;
		if (!key)
			return -ENOMEM;
		if (strcmp(key, "sessionfs") == 0) {
			buf_add(why, "metadata: the key 'sessionfs' is taken by ourselves");
			return -EINVAL;
		}
		int r = check_twice(config, "metadata", i, (size_t)(colon - pair), why);
		if (r < 0)
			return r;
		buf_add(ret, ",");
		json_add_quoted(ret, key);
		buf_add(ret, ":");
		json_add_quoted(ret, colon + 1);
	}
	return ret->failed ? -ENOMEM : 0;
}

static int read_values(struct rossum *s, const struct backend_config *config, struct buf *why)
{
	const char *pair;
	int count = 0;

	while (option_of(config, "values", count))
		count++;
	s->values = calloc((size_t)count + 1, sizeof(*s->values));
	if (!s->values)
		return -ENOMEM;
	for (; (pair = option_of(config, "values", s->value_count)); s->value_count++) {
		const char *colon = find_colon("values", pair, why);
		struct value *v = &s->values[s->value_count];
		const char *slash = colon ? memrchr(pair, '/', (size_t)(colon - pair)) : NULL;
		const char *key = slash ? slash + 1 : pair;

		if (!colon)
			return -EINVAL;
		int r = check_twice(config, "values", s->value_count, (size_t)(colon - pair), why);
		if (r < 0)
			return r;
		v->key = strndup(key, (size_t)(colon - key));
		v->text = strdup(colon + 1);
		v->queue = slash ? strndup(pair, (size_t)(slash - pair)) : NULL;
		if (!v->key || !v->text || (slash && !v->queue)) {
			s->value_count++;
			return -ENOMEM;
		}
	}
	return 0;
}

static int read_form(struct rossum *s, const struct backend_config *config, struct buf *why)
{
	const char *form = option_of(config, "upload_form", 0);

	s->is_raw = form && strcmp(form, "raw") == 0;
	if (form && !s->is_raw && strcmp(form, "multipart") != 0) {
		buf_addf(why, "upload_form is multipart or raw, and not '%s'", form);
		return -EINVAL;
	}
	if (s->is_raw && (option_of(config, "metadata", 0) || option_of(config, "values", 0))) {
		buf_add(why, "upload_form=raw carries neither metadata nor values");
		return -EINVAL;
	}
	return 0;
}

static int read_options(struct rossum *s, const struct backend_config *config, struct buf *why)
{
	CLEANUP(buf_release) struct buf metadata = BUF(BODY_BYTES_MAX);
	int r = read_form(s, config, why);

	if (r == 0)
		r = read_metadata(config, &metadata, why);
	if (r == 0 && metadata.len > METADATA_BYTES_MAX - MARK_BYTES_MAX) {
		buf_addf(why, "metadata takes %zu bytes; the service keeps 4096, of which %d are our own", metadata.len,
			 MARK_BYTES_MAX);
		return -EINVAL;
	}
	if (r == 0)
		r = read_values(s, config, why);
	if (r < 0)
		return r;
	s->metadata = strdup(buf_text(&metadata));
	if (s->is_raw)
		log_info("rossum: upload_form=raw: files are sent with neither metadata nor values, so nothing at the "
			 "service tells "
			 "their sizes and hashes");
	return s->metadata ? 0 : -ENOMEM;
}

static int read_url(struct rossum *s, const struct backend_config *config, struct buf *why)
{
	if (!config->url || !config->url[0]) {
		buf_add(why, "rossum needs url=, the address of your organisation's API, such as "
			     "https://example.rossum.app/api/v1");
		return -EINVAL;
	}
	s->base_url = strdup(config->url);
	for (size_t len = s->base_url ? strlen(s->base_url) : 0; len > 0 && s->base_url[len - 1] == '/'; len--)
		s->base_url[len - 1] = '\0';
	s->scratch_dir = config->scratch_dir ? strdup(config->scratch_dir) : NULL;
	return s->base_url && (!config->scratch_dir || s->scratch_dir) ? 0 : -ENOMEM;
}

/* Ten a second is documented, a rate is told by the minute: a smaller one becomes a longer window, so that neither is
 * ever exceeded. */
static struct limit_options limit_options_of(const struct backend_config *config)
{
	int per_min = config->rate_per_min;
	struct limit_options o = {
		.rate = RATE, .window_ms = WINDOW_MS, .path = config->limit_path, .subject = "rossum"
	};

	if (per_min < 0)
		o.rate = -1;
	else if (per_min > 0 && per_min < RATE * 60) {
		o.rate = per_min < RATE ? per_min : RATE;
		o.window_ms = INT64_C(60000) * o.rate / per_min;
	}
	return o;
}

static void names_free(struct named *list)
{
	for (struct named *next; list; list = next) {
		next = list->next;
		free(list->id);
		free(list->name);
		free(list);
	}
}

static void free_lists(struct rossum *s)
{
	for (struct attempt *next; s->attempts; s->attempts = next) {
		next = s->attempts->next;
		free(s->attempts);
	}
	names_free(s->workspaces);
	names_free(s->queues);
	for (int i = 0; i < s->value_count; i++) {
		free(s->values[i].queue);
		free(s->values[i].key);
		free(s->values[i].text);
	}
	free(s->values);
	for (struct memo *next; s->memos; s->memos = next) {
		next = s->memos->next;
		free(s->memos->queue_id);
		free(s->memos);
	}
	for (struct doubt *next; s->doubts; s->doubts = next) {
		next = s->doubts->next;
		free(s->doubts->queue_id);
		free(s->doubts->annotation_id);
		free(s->doubts);
	}
}

static void rossum_close(struct backend *b)
{
	struct rossum *s = rossum_from(b);

	http_close(s->http);
	limit_free(s->limit);
	free_lists(s);
	free(s->links);
	free(s->base_url);
	free(s->scratch_dir);
	free(s->metadata);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static int open_http(struct rossum *s, const struct backend_config *config, struct buf *why)
{
	const struct limit_options limit = limit_options_of(config);
	int r = limit_new(&limit, &s->limit);

	if (r < 0)
		return r;
	const struct http_options http = { .subject = "rossum",
					   .base_url = s->base_url,
					   .cafile = config->cafile,
					   .proxy = config->proxy,
					   .limit = s->limit,
					   .read_token = login_read_token,
					   .read_words = rossum_read_words,
					   .arg = s };
	return http_open(&http, why, &s->http);
}

static int rossum_open(const struct backend_config *config, struct buf *why, struct backend **ret)
{
	struct rossum *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	pthread_mutex_init(&s->lock, NULL);
	s->self.caps = caps;
	s->read_credentials = config->read_credentials;
	s->option = config->option;
	s->arg = config->arg;
	s->began_ms = clock_now_ms();
	s->haste = 1;
	s->links = calloc(LINKS, sizeof(*s->links));
	r = s->links ? read_url(s, config, why) : -ENOMEM;
	if (r == 0)
		r = read_options(s, config, why);
	if (r == 0)
		r = open_http(s, config, why);
	if (r < 0) {
		rossum_close(&s->self);
		return r;
	}
	*ret = &s->self;
	return 0;
}

const struct backend_ops rossum_backend = {
	.name = "rossum",
	.options = options,
	.open = rossum_open,
	.close = rossum_close,
	.check = rossum_check,
	.describe = rossum_describe,
	.list_sessions = rossum_list_sessions,
	.get_session = rossum_get_session,
	.find_session_id = rossum_find_session_id,
	.list_documents = rossum_list_documents,
	.tell_state = rossum_tell_state,
	.stop = rossum_stop,
	.fetch_document = rossum_fetch_document,
	.measure_document = rossum_measure_document,
	.attach = rossum_attach,
	.detach = rossum_detach,
	.upload_sign = rossum_upload_sign,
	.upload_store = rossum_upload_store,
	.upload_attach = rossum_upload_attach,
	.upload_find = rossum_upload_find,
};
