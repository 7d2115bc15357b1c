/* Reading answers: ids, statuses, what we wrote into our own uploads, and documents. */
#include "client/rossum_impl.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/common.h"
#include "client/time.h"

enum {
	RECORD_BYTES_MAX = 4 * 1024 * 1024,
	YOUNGER_MS = 30 * 1000, /* a document comes with its annotation, not so long after it */
};

/* ---- words, ids, statuses ---------------------------------------------------------------------------------- */

const cJSON *rossum_member(const cJSON *object, const char *key)
{
	return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

const char *rossum_text_of(const cJSON *object, const char *key)
{
	const cJSON *found = rossum_member(object, key);

	return cJSON_IsString(found) && found->valuestring && found->valuestring[0] ? found->valuestring : NULL;
}

int64_t rossum_time_of(const cJSON *object, const char *key)
{
	const char *text = rossum_text_of(object, key);
	int64_t ms = -1;

	return text && time_parse_iso(text, &ms) == 0 ? ms : -1;
}

bool rossum_is_digits(const char *text)
{
	size_t len = strlen(text);

	return len > 0 && len <= 18 && strspn(text, "0123456789") == len;
}

const char *rossum_ref_text(const char *url, struct json_id *room)
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

const char *rossum_ref_of(const cJSON *item, struct json_id *room)
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

const char *rossum_ref_in(const cJSON *object, const char *key, struct json_id *room)
{
	return rossum_ref_of(rossum_member(object, key), room);
}

const char *rossum_own_id(const cJSON *object, struct json_id *room)
{
	const char *id = rossum_ref_in(object, "id", room);

	return id ? id : rossum_ref_in(object, "url", room);
}

bool rossum_ref_is(const char *url, const char *kind)
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
void rossum_read_words(const cJSON *body, struct buf *ret)
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

bool rossum_status_is_hidden(const char *status)
{
	int i = status_find(status);

	return i >= 0 && statuses[i].is_hidden;
}

bool rossum_is_hidden(const cJSON *annotation)
{
	return rossum_status_is_hidden(rossum_text_of(annotation, "status"));
}

bool rossum_has_status(const cJSON *annotation, const char *status)
{
	const char *text = rossum_text_of(annotation, "status");

	return text && strcmp(text, status) == 0;
}

bool rossum_read_mark(const cJSON *annotation, struct mark *ret)
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
bool rossum_is_html(const char *name, const char *mime)
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

/* ---- what is remembered ------------------------------------------------------------------------------------ */

static struct link *link_slot(struct rossum *s, const char *annotation_id)
{
	uint64_t n = strtoull(annotation_id, NULL, 10);

	return &s->links[n % LINKS];
}

void link_note(struct rossum *s, const char *annotation_id, const char *document_id, const char *upload_id)
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

void link_look(struct rossum *s, const char *annotation_id, struct json_id *document_room, struct json_id *upload_room,
	       const char **ret_document, const char **ret_upload)
{
	SCOPED_LOCK(&s->lock);
	const struct link *l = link_slot(s, annotation_id);
	bool is_it = l->annotation == strtoull(annotation_id, NULL, 10);

	*ret_document = is_it ? number_text(l->document, document_room) : NULL;
	*ret_upload = is_it ? number_text(l->upload, upload_room) : NULL;
}

/* ---- documents --------------------------------------------------------------------------------------------- */

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

int rossum_read_document(struct rossum *s, const cJSON *annotation, const cJSON *document, struct document *ret,
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

int rossum_add_document(struct rossum *s, struct listing_builder *builder, const cJSON *annotation,
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

int rossum_one_document(struct rossum *s, const cJSON *annotation, const cJSON *document, int64_t asked_ms,
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

void sideload_release(struct sideload *l)
{
	free(l->items);
	*l = (struct sideload){ 0 };
}

static int compare_sideloaded(const void *a, const void *b)
{
	return strcmp(((const struct sideloaded *)a)->id.text, ((const struct sideloaded *)b)->id.text);
}

int sideload_read(const cJSON *body, struct sideload *ret)
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

const cJSON *sideload_find(const struct sideload *l, const cJSON *annotation)
{
	struct sideloaded key = { .item = NULL }, *found;

	if (!l->count || !rossum_ref_in(annotation, "document", &key.id))
		return NULL;
	found = bsearch(&key, l->items, l->count, sizeof(*l->items), compare_sideloaded);
	return found ? found->item : NULL;
}
