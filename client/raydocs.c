/* All of Raydocs: its URLs, JSON, authentication, paging, and its own words. A session is called a session there, too.
 *
 * Its documentation contradicts itself in places; where it does, both are read. Sections, from the bottom up: reading
 * answers, requests, sessions, listings, documents, the steps of an upload, opening and the table of ops. */
#include "client/backend_impl.h"

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/base/pool.h"
#include "client/common.h"
#include "client/http.h"
#include "client/json.h"
#include "client/limit.h"

enum {
	PATH_BYTES_MAX = 2048,
	BODY_BYTES_MAX = 64 * 1024,
	TICKET_BYTES_MAX = 32 * 1024,
	RECORD_BYTES_MAX = 4 * 1024 * 1024,
	SOURCE_URL_BYTES = 1024,
	PAGES_MAX = 20000, /* whatever last_page claims */
	UUID_BYTES = 36,
	PAGE_DEFAULT = 15, /* documents a page, until the service says */
	RATE = 90,         /* of the documented 100 a minute for each address */
	WINDOW_MS = 60 * 1000,
	LINK_MS = 4 * 60 * 1000,     /* an upload link lives for 5 minutes; an older one is not even tried */
	REFUSED_MS = 10 * 60 * 1000, /* so long a 403 to a side question is believed */
	AHEAD_MIN = 2,
	AHEAD_SPARED = 8, /* places left to others while there are more */
	AHEAD_MAX = 32,   /* pages of one listing under way at a time: 1,000 documents in three turns */
	RELAY_MS = 100,
	BATCH_MAX = 20,
	HEADERS_MAX = 32,
	REUSED_MS = 10 * 60 * 1000, /* a document so much older than its upload was there before */
	PAGE_TRIES = 4,             /* more of a page, before all those before it were for nothing */
	PAGE_PAUSE_MS = 500,        /* before the first of them, then twice as long each time */
	SINGLES_PART = 4,           /* documents asked for by themselves, at most so many times the pages of a walk */
	WORDS_MAX = 16,
	WORD_BYTES = 24,
};

enum naming { NAMING_AUTO, NAMING_SESSION, NAMING_WORKSPACE };

/* What we learned and need not ask again. */
struct known {
	struct known *next;
	char *key, *value, *name; /* value NULL: asked, and refused */
	int64_t asked_ms;
};

/* A status in a session's record, and what the list of its documents calls the same. */
struct words {
	char record[WORD_BYTES], listed[WORD_BYTES];
};

struct raydocs {
	struct backend self;
	struct http *http;
	struct limit *limit;
	char *scratch_dir;
	enum naming naming;
	int (*read_credentials)(void *arg, struct credentials *ret);
	void *arg;
	atomic_int page_documents;  /* per_page, as last seen */
	atomic_bool total_misleads; /* meta.total was seen to disagree with two equal walks */
	atomic_bool is_stopped;

	pthread_mutex_t lock;    /* guards what follows */
	struct known *templates; /* template id -> workspace id, and the template's name */
	struct known *sessions;  /* session id -> template id */
	bool names_are_lost;     /* a document came back under another name than ours */
	bool workspace_refused;  /* the token may not use the route that takes a name */
	struct words words[WORDS_MAX];
	int word_count;
};

static struct raydocs *raydocs_from(struct backend *b)
{
	return (struct raydocs *)b;
}

/* ---- reading answers ---------------------------------------------------------------------------------------- */

/* A single object comes flat, in `data`, or in `document`. */
static const cJSON *unwrap(const cJSON *body)
{
	static const char *const wrappers[] = { "data", "document", "session" };

	if (!cJSON_IsObject(body) || cJSON_GetObjectItemCaseSensitive(body, "id"))
		return body;
	for (size_t i = 0; i < sizeof(wrappers) / sizeof(wrappers[0]); i++) {
		const cJSON *inner = cJSON_GetObjectItemCaseSensitive(body, wrappers[i]);

		if (cJSON_IsObject(inner))
			return inner;
	}
	return body;
}

/* A list comes bare or in `data`. NULL: neither. */
static const cJSON *read_list(const cJSON *body)
{
	const cJSON *data = cJSON_IsObject(body) ? cJSON_GetObjectItemCaseSensitive(body, "data") : body;

	return cJSON_IsArray(data) ? data : NULL;
}

struct page_meta {
	int64_t last_page, total, per_page; /* -1: not said */
};

static struct page_meta read_meta(struct raydocs *s, const cJSON *body)
{
	const cJSON *meta = cJSON_IsObject(body) ? cJSON_GetObjectItemCaseSensitive(body, "meta") : NULL;
	struct page_meta found = { -1, -1, -1 };

	if (!cJSON_IsObject(meta))
		return found;
	struct json_in in = json_in_begin(meta, "raydocs: meta of a page");
	found.last_page = json_whole_or(&in, "last_page", -1);
	found.total = json_whole_or(&in, "total", -1);
	found.per_page = json_whole_or(&in, "per_page", -1);
	if (in.failed)
		return (struct page_meta){ -1, -1, -1 }; /* the page itself may be sound */
	if (found.per_page > 0 && found.per_page <= 10000)
		atomic_store(&s->page_documents, (int)found.per_page);
	return found;
}

/* `message` and every text of `errors`, or what other frameworks call it. */
static void read_words(const cJSON *body, struct buf *ret)
{
	const cJSON *message = cJSON_GetObjectItemCaseSensitive(body, "message");
	const cJSON *errors = cJSON_GetObjectItemCaseSensitive(body, "errors"), *field, *text;

	if (!cJSON_IsString(message))
		message = cJSON_GetObjectItemCaseSensitive(body, "error");
	if (cJSON_IsString(message))
		buf_add(ret, message->valuestring);
	cJSON_ArrayForEach (field, errors) {
		const cJSON *texts = cJSON_IsArray(field) ? field->child : field;

		for (text = texts; text; text = cJSON_IsArray(field) ? text->next : NULL) {
			if (cJSON_IsString(text))
				buf_addf(ret, "%s%s: %s", ret->len ? " " : "", field->string ? field->string : "?",
					 text->valuestring);
		}
	}
}

static enum document_state state_of(const char *status)
{
	static const struct {
		const char *status;
		enum document_state state;
	} words[] = {
		{ "uploaded", STATE_STORED }, { "parsed", STATE_READY },  { "processed", STATE_READY },
		{ "ready", STATE_READY },     { "failed", STATE_FAILED },
	};

	if (!status)
		return STATE_STORED;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (strcmp(status, words[i].status) == 0)
			return words[i].state;
	}
	return STATE_PROCESSING; /* queued, pending, parsing, processing, and what nobody foresaw */
}

/* What a view of a document borrows from besides the JSON. */
struct document_room {
	struct json_id id, workspace_id;
	char source_url[SOURCE_URL_BYTES];
};

static void read_hash(const char *text, struct document *ret)
{
	if (!text || strlen(text) != 64 || strspn(text, "0123456789abcdefABCDEF") != 64)
		return;
	for (int i = 0; i < 64; i++)
		ret->sha256_text[i] = (char)tolower((unsigned char)text[i]);
	ret->sha256_text[64] = '\0';
	ret->sha256 = ret->sha256_text;
}

/* `source_type` and `source_url`, or `source.type` and `source.url`. The query of an address may be a signature. */
static void read_source(struct json_in *in, struct document *ret, struct document_room *room)
{
	const char *url = json_text_or(in, "source_url", NULL);

	ret->source = json_text_or(in, "source_type", NULL);
	const cJSON *source = cJSON_GetObjectItemCaseSensitive(in->object, "source");
	if (cJSON_IsString(source) && !ret->source)
		ret->source = source->valuestring;
	if (cJSON_IsObject(source)) {
		struct json_in inner = json_in_begin(source, "raydocs: source");

		if (!ret->source)
			ret->source = json_text_or(&inner, "type", NULL);
		if (!url)
			url = json_text_or(&inner, "url", NULL);
	}
	if (url && strcspn(url, "?#") < sizeof(room->source_url)) {
		snprintf(room->source_url, sizeof(room->source_url), "%.*s", (int)strcspn(url, "?#"), url);
		ret->source_url = room->source_url;
	}
}

/* The parsing that changed last; of equals the last one listed. */
static void read_parsings(struct json_in *in, struct document *ret)
{
	const cJSON *list = json_array_or_null(in, "parsings"), *item;

	ret->parsing.updated_ms = -1;
	cJSON_ArrayForEach (item, list) {
		if (!cJSON_IsObject(item))
			continue;
		struct json_in parsing = json_in_begin(item, "raydocs: parsing");
		int64_t updated_ms = json_time_or(&parsing, "updated_at", -1);
		const char *status = json_text_or(&parsing, "status", NULL);
		const char *version = json_text_or(&parsing, "parser_version", NULL);
		const char *config = json_text_or(&parsing, "config_hash", NULL);

		if (parsing.failed || updated_ms < ret->parsing.updated_ms)
			continue;
		ret->parsing.status = status;
		ret->parsing.version = version;
		ret->parsing.config = config;
		ret->parsing.updated_ms = updated_ms;
	}
}

static int64_t not_negative(int64_t n)
{
	return n < 0 ? -1 : n;
}

/* Borrowed from item and room. */
static int read_document(const cJSON *item, struct document *ret, struct document_room *room)
{
	struct json_in in = json_in_begin(item, "raydocs: document");

	memset(ret, 0, sizeof(*ret));
	ret->id = json_id(&in, "id", &room->id);
	ret->filename = json_text_or(&in, "filename", "");
	ret->status = json_text_or(&in, "status", NULL);
	ret->state = state_of(ret->status);
	read_hash(json_text_or(&in, "sha256", NULL), ret);
	ret->size_bytes = not_negative(json_whole_or(&in, "size", -1));
	ret->pages = -1;
	const cJSON *meta = json_object_or_null(&in, "meta");
	if (meta) {
		struct json_in inner = json_in_begin(meta, "raydocs: meta");
		int64_t pages = not_negative(json_whole_or(&inner, "page_count", -1));

		if (ret->size_bytes < 0)
			ret->size_bytes = not_negative(json_whole_or(&inner, "file_size", -1));
		ret->pages = pages <= INT32_MAX ? (int)pages : -1;
	}
	ret->created_ms = json_time_or(&in, "created_at", -1);
	ret->mime = json_text_or(&in, "mime", NULL);
	if (!ret->mime)
		ret->mime = json_text_or(&in, "mime_type", NULL);
	if (!ret->mime && !in.failed)
		ret->mime = mime_by_name(ret->filename);
	read_source(&in, ret, room);
	ret->workspace_id = json_id_or(&in, "workspace_id", &room->workspace_id, NULL);
	read_parsings(&in, ret);
	const cJSON *error =
		cJSON_GetObjectItemCaseSensitive(item, "error"); /* no page names one; should it come, it shows */
	if (cJSON_IsString(error))
		ret->error = error->valuestring;
	return json_in_end(&in);
}

static int add_document(struct listing_builder *builder, const cJSON *item, bool keeps_json)
{
	struct document doc;
	struct document_room room;
	int r = read_document(unwrap(item), &doc, &room);

	if (r < 0)
		return r;
	if (!keeps_json)
		return listing_builder_add(builder, &doc, NULL);
	char *json = cJSON_PrintUnformatted(item);
	if (!json)
		return -ENOMEM;
	r = listing_builder_add(builder, &doc, json);
	cJSON_free(json);
	return r;
}

/* A listing of its own for one document. */
static int one_document(struct raydocs *s, const cJSON *item, int64_t asked_ms, struct listing **ret)
{
	CLEANUP(listing_builder_release) struct listing_builder *builder = listing_builder_new(s->scratch_dir);

	if (!builder)
		return -ENOMEM;
	int r = add_document(builder, item, true);
	if (r < 0)
		return r;
	return listing_builder_take(&builder, asked_ms, clock_wall_ms(), ret);
}

static int listing_find_hash(const struct listing *l, const char *sha256)
{
	for (int i = 0; i < listing_count(l); i++) {
		struct document doc;

		listing_get(l, i, &doc);
		if (doc.sha256 && strcasecmp(doc.sha256, sha256) == 0)
			return i;
	}
	return -1;
}

/* A listing of its own for one document of another, with its record. */
static int pick_document(struct raydocs *s, struct listing *l, int i, struct listing **ret)
{
	CLEANUP(listing_builder_release) struct listing_builder *builder = listing_builder_new(s->scratch_dir);
	CLEANUP(buf_release) struct buf json = BUF(RECORD_BYTES_MAX);
	struct document doc;

	listing_get(l, i, &doc);
	const char *record = listing_read_json(l, i, &json) == 0 ? buf_text(&json) : NULL;
	if (!builder || listing_builder_add(builder, &doc, record) < 0)
		return -ENOMEM;
	struct listing_builder *given = builder;
	builder = NULL;
	return listing_builder_finish(given, listing_asked_ms(l), listing_as_of_wall_ms(l), ret);
}

/* ---- requests ----------------------------------------------------------------------------------------------- */

/* Appends literal, id, literal, id, ... up to a NULL; ids are escaped. NULL when it got too long. */
static const char *path_add(struct buf *path, const char *literal, ...)
{
	va_list parts;
	bool is_id = true;

	buf_add(path, literal);
	va_start(parts, literal);
	for (const char *part = va_arg(parts, const char *); part; part = va_arg(parts, const char *)) {
		if (is_id)
			buf_add_escaped(path, part);
		else
			buf_add(path, part);
		is_id = !is_id;
	}
	va_end(parts);
	return buf_text(path);
}

/* An answer of a shape we cannot use is as good as none: GETs may be asked again, writes have to be looked for. */
static int unreadable(struct raydocs *s, struct call *call, const struct http_request *q, const char *why, int error)
{
	if (error == -ENOMEM)
		return error;
	return http_unreadable(s->http, call, q, why);
}

/* Did the call fail in a way that another request may not fail in? Then an optional question can be left unanswered. */
static bool is_refusal(const struct call *call)
{
	enum fault_kind kind = call->fault.kind;

	return kind == FAULT_FORBIDDEN || kind == FAULT_GONE || kind == FAULT_INVALID || kind == FAULT_CONFLICT ||
	       kind == FAULT_TOO_LARGE ||
	       (kind == FAULT_AWAY && call->fault.http_status > 0 && call->fault.http_status < 500);
}

/* ---- what need not be asked again ---------------------------------------------------------------------------- */

static struct known *known_find(struct known *list, const char *key)
{
	while (list && strcmp(list->key, key) != 0)
		list = list->next;
	return list;
}

static void known_free(struct known *k)
{
	if (!k)
		return;
	free(k->key);
	free(k->value);
	free(k->name);
	free(k);
}

/* Replaces what was known under that key. Without memory nothing is learned, and it is asked again. */
static void known_put(struct known **list, const char *key, const char *value, const char *name)
{
	struct known *k = calloc(1, sizeof(*k));

	if (!k)
		return;
	k->key = strdup(key);
	k->value = value ? strdup(value) : NULL;
	k->name = name ? strdup(name) : NULL;
	k->asked_ms = clock_now_ms();
	if (!k->key || (value && !k->value) || (name && !k->name)) {
		known_free(k);
		return;
	}
	for (struct known **at = list; *at; at = &(*at)->next) {
		struct known *old = *at;

		if (strcmp(old->key, key) != 0)
			continue;
		*at = old->next;
		known_free(old);
		break;
	}
	k->next = *list;
	*list = k;
}

static void known_free_all(struct known **list)
{
	while (*list) {
		struct known *next = (*list)->next;

		known_free(*list);
		*list = next;
	}
}

/* ---- workspaces and templates -------------------------------------------------------------------------------- */

struct workspace {
	char *id, *name;
};

struct workspace_list {
	struct workspace *items;
	int count;
};

static void workspace_list_release(struct workspace_list *l)
{
	for (int i = 0; i < l->count; i++) {
		free(l->items[i].id);
		free(l->items[i].name);
	}
	free(l->items);
	*l = (struct workspace_list){ 0 };
}

static int read_workspaces(const cJSON *list, struct workspace_list *ret)
{
	const cJSON *item;

	ret->items = calloc((size_t)cJSON_GetArraySize(list) + 1, sizeof(*ret->items));
	if (!ret->items)
		return -ENOMEM;
	cJSON_ArrayForEach (item, list) {
		struct workspace *w = &ret->items[ret->count++];
		struct json_in in = json_in_begin(item, "raydocs: workspace");

		w->id = json_copy_id(&in, "id");
		w->name = strdup(json_text_or(&in, "name", ""));
		if (json_in_end(&in) < 0)
			return -EPROTO;
		if (!w->name)
			return -ENOMEM;
	}
	return 0;
}

static const struct http_request workspaces_request = {
	.method = "GET", .path = "/workspaces", .ability = "workspaces-read", .accepts_any = true
};

static int list_workspaces(struct raydocs *s, struct call *call, struct workspace_list *ret)
{
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(workspace_list_release) struct workspace_list found = { 0 };
	int r = http_json(s->http, call, &workspaces_request, &body);

	if (r < 0)
		return r;
	r = read_list(body) ? read_workspaces(read_list(body), &found) : -EPROTO;
	if (r < 0)
		return unreadable(s, call, &workspaces_request, "this is not a list of workspaces", r);
	*ret = found;
	found = (struct workspace_list){ 0 };
	return 0;
}

/* Room for one more in a list that doubles. */
static void *grown(void *items, int count, size_t item_bytes)
{
	if (count & (count - 1) || (count == 0 && items))
		return items;
	return realloc(items, (size_t)(count ? count * 2 : 1) * item_bytes);
}

static int read_template(const cJSON *item, const struct workspace *w, struct template_list *ret)
{
	struct template *items = grown(ret->items, ret->count, sizeof(*items));

	if (!items)
		return -ENOMEM;
	ret->items = items;
	struct template *t = &items[ret->count++];
	struct json_in in = json_in_begin(item, "raydocs: template");
	*t = (struct template){ .id = json_copy_id(&in, "id"),
				.name = strdup(json_text_or(&in, "name", "")),
				.workspace_id = strdup(w->id),
				.workspace_name = strdup(w->name) };
	if (json_in_end(&in) < 0)
		return -EPROTO;
	return t->name && t->workspace_id && t->workspace_name ? 0 : -ENOMEM;
}

static bool has_template(const struct template_list *l, const cJSON *item)
{
	struct json_in in = json_in_begin(item, "raydocs: template");
	struct json_id room;
	const char *id = json_id_or(&in, "id", &room, NULL);

	for (int i = 0; id && i < l->count; i++) {
		if (strcmp(l->items[i].id, id) == 0)
			return true;
	}
	return false;
}

static int list_templates_of(struct raydocs *s, struct call *call, const struct workspace *w, struct template_list *ret)
{
	for (int page = 1; page <= PAGES_MAX; page++) {
		CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
		CLEANUP(json_release) cJSON *body = NULL;
		struct http_request q = { .method = "GET", .ability = "templates-read" };
		const cJSON *item;
		int before = ret->count;

		path_add(&path, "/workspaces/", w->id, "/extractions/templates?page=", NULL);
		buf_addf(&path, "%d", page);
		q.path = buf_text(&path);
		if (!q.path)
			return call_no_memory(call);
		int r = http_json(s->http, call, &q, &body);
		if (r < 0)
			return r;
		if (!read_list(body))
			return unreadable(s, call, &q, "this is not a list of templates", -EPROTO);
		cJSON_ArrayForEach (item, read_list(body)) {
			if (has_template(ret, item))
				continue;
			r = read_template(item, w, ret);
			if (r < 0)
				return unreadable(s, call, &q, "a template cannot be read", r);
		}
		if (page >= read_meta(s, body).last_page || ret->count == before)
			break;
	}
	return 0;
}

static int raydocs_list_templates(struct backend *b, struct call *call, struct template_list *ret)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(workspace_list_release) struct workspace_list workspaces = { 0 };
	CLEANUP(template_list_release) struct template_list found = { 0 };
	int r = list_workspaces(s, call, &workspaces);

	for (int i = 0; r == 0 && i < workspaces.count; i++)
		r = list_templates_of(s, call, &workspaces.items[i], &found);
	if (r < 0)
		return r;
	*ret = found;
	found = (struct template_list){ 0 };
	return 0;
}

/* What is known of a template, without asking; false: nothing that can be believed, or not its name. */
static bool look_up_template(struct raydocs *s, const char *template_id, bool needs_name, char **ret_id,
			     char **ret_name)
{
	SCOPED_LOCK(&s->lock);
	const struct known *k = known_find(s->templates, template_id);

	*ret_id = *ret_name = NULL;
	if (!k || (k->value ? needs_name && !k->name : clock_now_ms() >= k->asked_ms + REFUSED_MS))
		return false;
	*ret_id = k->value ? strdup(k->value) : NULL;
	*ret_name = k->name && k->name[0] ? strdup(k->name) : NULL;
	return true;
}

/* The one documented way from a session to its workspace. *ret is NULL when the token may not ask; the name likewise.
 */
static int workspace_of_template(struct raydocs *s, struct call *call, const char *template_id, bool needs_name,
				 char **ret_id, char **ret_name)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;
	struct json_id room;

	if (look_up_template(s, template_id, needs_name, ret_id, ret_name))
		return 0;
	const struct http_request q = { .method = "GET",
					.ability = "templates-read",
					.accepts_any = true,
					.path = path_add(&path, "/extractions/templates/", template_id, NULL) };
	if (!q.path)
		return call_no_memory(call);
	int r = http_json(s->http, call, &q, &body);
	if (r < 0 && !is_refusal(call))
		return r;
	const char *id = NULL, *name = NULL;
	if (r == 0) {
		struct json_in in = json_in_begin(unwrap(body), "raydocs: template");

		id = json_id_or(&in, "workspace_id", &room, NULL);
		name = json_text_or(&in, "name", "");
		(void)json_in_end(&in); /* said in the log; the session is of use without */
	}
	call_forget_fault(call);
	{
		SCOPED_LOCK(&s->lock);
		known_put(&s->templates, template_id, id, name);
	}
	*ret_id = id ? strdup(id) : NULL;
	*ret_name = name && name[0] ? strdup(name) : NULL;
	return 0;
}

/* ---- sessions ------------------------------------------------------------------------------------------------ */

static int read_session(const cJSON *body, struct session *ret)
{
	struct json_in in = json_in_begin(unwrap(body), "raydocs: session");
	struct session found = { .created_ms = json_time_or(&in, "created_at", -1),
				 .updated_ms = json_time_or(&in, "updated_at", -1) };
	struct json_id room, template_room;
	const char *id = json_id(&in, "id", &room), *name = json_text_or(&in, "name", "");
	const char *template_id = json_id_or(&in, "extraction_template_id", &template_room, NULL);
	const char *status = json_text_or(&in, "status", NULL);

	if (json_in_end(&in) < 0)
		return -EPROTO;
	found.id = strdup(id);
	found.name = strdup(name);
	found.template_id = template_id ? strdup(template_id) : NULL;
	found.status = status ? strdup(status) : NULL;
	if (!found.id || !found.name || (template_id && !found.template_id) || (status && !found.status)) {
		session_release(&found);
		return -ENOMEM;
	}
	/* It becomes a part of our paths. */
	if (found.id[strspn(found.id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")] != '\0') {
		session_release(&found);
		return -EPROTO;
	}
	*ret = found;
	return 0;
}

static int get_session_json(struct raydocs *s, struct call *call, const char *session_id, cJSON **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	const struct http_request q = { .method = "GET",
					.ability = "sessions-read",
					.path = path_add(&path, "/extractions/sessions/", session_id, NULL) };

	if (!q.path)
		return call_no_memory(call);
	int r = http_json(s->http, call, &q, ret);
	if (r == 0 && !cJSON_IsObject(unwrap(*ret)))
		return unreadable(s, call, &q, "this is not a session", -EPROTO);
	return r;
}

/* false: it is the first we hear of this session, or it was made from another template. */
static bool note_template(struct raydocs *s, const struct session *session)
{
	SCOPED_LOCK(&s->lock);
	const struct known *k = known_find(s->sessions, session->id);
	bool was_known = k && strcmp(k->value, session->template_id) == 0;

	if (!was_known)
		known_put(&s->sessions, session->id, session->template_id, NULL);
	return was_known;
}

/* Fills in what the session's own record does not say. The template's name is for telling a newcomer apart: a session
 * that was shown has its name already. */
static int complete_session(struct raydocs *s, struct call *call, struct session *session)
{
	if (!session->template_id)
		return 0;
	bool needs_name = !note_template(s, session);
	return workspace_of_template(s, call, session->template_id, needs_name, &session->workspace_id,
				     &session->qualifier);
}

/* The same without a request, as far as it goes. */
static void complete_session_unasked(struct raydocs *s, struct session *session)
{
	if (session->template_id)
		(void)look_up_template(s, session->template_id, false, &session->workspace_id, &session->qualifier);
}

/* A template stays in its workspace. That there was none to be learned may have been for want of a right, and is asked
 * again. */
static void raydocs_learn_session(struct backend *b, const struct session *known)
{
	struct raydocs *s = raydocs_from(b);

	if (!known->template_id || !known->workspace_id)
		return;
	(void)note_template(s, known);
	SCOPED_LOCK(&s->lock);
	if (!known_find(s->templates, known->template_id))
		known_put(&s->templates, known->template_id, known->workspace_id, NULL);
}

static void tell_same(struct raydocs *s, struct call *call, cJSON *record, int64_t asked_ms, int64_t as_of_wall_ms);

static int raydocs_get_session(struct backend *b, struct call *call, const char *session_id, struct session *ret)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(session_release) struct session found = { 0 };
	int64_t asked_ms = clock_now_ms(), as_of_wall_ms = clock_wall_ms();
	int r = get_session_json(s, call, session_id, &body);

	if (r < 0)
		return r;
	r = read_session(body, &found);
	if (r < 0) {
		call->fault.kind = r == -EPROTO ? FAULT_AWAY : FAULT_NONE;
		return r;
	}
	tell_same(s, call, body, asked_ms, as_of_wall_ms);
	r = complete_session(s, call, &found);
	if (r < 0)
		return r;
	*ret = found;
	found = (struct session){ 0 };
	return 0;
}

static int raydocs_create_session(struct backend *b, struct call *call, const char *template_id, const char *name,
				  struct session *ret)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(buf_release) struct buf text = BUF(BODY_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(session_release) struct session made = { 0 };

	if (!template_id || template_id[0] == '\0') {
		call->fault.kind = FAULT_INVALID;
		snprintf(call->fault.words, sizeof(call->fault.words),
			 "a session is made from a template, and none is set");
		return -EINVAL;
	}
	buf_add(&text, "{\"name\":");
	json_add_quoted(&text, name);
	buf_add(&text, ",\"extraction_template_id\":");
	json_add_quoted(&text, template_id);
	buf_add(&text, "}");
	const struct http_request q = {
		.method = "POST", .path = "/extractions/sessions", .body = buf_text(&text), .ability = "sessions-write"
	};
	if (!q.body)
		return call_no_memory(call);
	int r = http_json(s->http, call, &q, &body);
	if (r < 0)
		return r;
	r = read_session(body, &made);
	if (r < 0)
		return unreadable(s, call, &q, "this is not a session", r);
	r = complete_session(s, call, &made);
	if (r < 0)
		call_forget_fault(call); /* it is made; its workspace can be learned later */
	*ret = made;
	made = (struct session){ 0 };
	return 0;
}

/* A page of what may be sessions. -EOPNOTSUPP: it is something else. */
static int read_sessions(const cJSON *body, const char *workspace_id, struct session_list *ret)
{
	const cJSON *list = read_list(body), *item;

	if (!list)
		return -EOPNOTSUPP;
	cJSON_ArrayForEach (item, list) {
		CLEANUP(session_release) struct session found = { 0 };
		struct session *items;

		if (!cJSON_GetObjectItemCaseSensitive(item, "extraction_template_id") || read_session(item, &found) < 0)
			return -EOPNOTSUPP;
		if (session_list_has(ret, found.id))
			continue;
		if (workspace_id && !(found.workspace_id = strdup(workspace_id)))
			return -ENOMEM;
		items = grown(ret->items, ret->count, sizeof(*items));
		if (!items)
			return -ENOMEM;
		ret->items = items;
		ret->items[ret->count++] = found;
		found = (struct session){ 0 };
	}
	return 0;
}

/* Tries one guessed route to its end. -EOPNOTSUPP: the service does not have it, or means something else by it. */
static int try_sessions(struct raydocs *s, struct call *call, const char *route, const char *workspace_id,
			struct session_list *ret)
{
	CLEANUP(session_list_release) struct session_list found = { 0 };

	for (int page = 1; page <= PAGES_MAX; page++) {
		CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
		CLEANUP(json_release) cJSON *body = NULL;
		int before = found.count;

		buf_add(&path, route);
		if (page > 1)
			buf_addf(&path, "?page=%d", page);
		const struct http_request q = { .method = "GET", .path = buf_text(&path), .accepts_any = true };
		if (!q.path)
			return call_no_memory(call);
		int r = http_json(s->http, call, &q, &body);
		if (r < 0)
			return is_refusal(call) ? -EOPNOTSUPP : r;
		r = read_sessions(body, workspace_id, &found);
		if (r < 0)
			return r;
		if (page >= read_meta(s, body).last_page || found.count == before)
			break;
	}
	*ret = found;
	found = (struct session_list){ 0 };
	return 0;
}

static int not_offered(struct call *call)
{
	call_forget_fault(call);
	call->fault.kind = FAULT_INVALID;
	snprintf(call->fault.words, sizeof(call->fault.words), "the service offers no list of sessions");
	return -EOPNOTSUPP;
}

/* No page documents a list of sessions; two likely routes are tried with three requests in all. */
static int raydocs_list_sessions(struct backend *b, struct call *call, struct session_list *ret)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(workspace_list_release) struct workspace_list workspaces = { 0 };
	CLEANUP(buf_release) struct buf route = BUF(PATH_BYTES_MAX);
	int r = try_sessions(s, call, "/extractions/sessions", NULL, ret);

	if (r != -EOPNOTSUPP)
		return r;
	r = list_workspaces(s, call, &workspaces);
	if (r < 0)
		return is_refusal(call) ? not_offered(call) : r;
	if (workspaces.count != 1) /* the sessions of one workspace would not be all there are */
		return not_offered(call);
	if (!path_add(&route, "/workspaces/", workspaces.items[0].id, "/extractions/sessions", NULL))
		return call_no_memory(call);
	r = try_sessions(s, call, buf_text(&route), workspaces.items[0].id, ret);
	return r == -EOPNOTSUPP ? not_offered(call) : r;
}

static bool is_uuid(const char *text)
{
	for (int i = 0; i < UUID_BYTES; i++) {
		bool is_dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (is_dash ? text[i] != '-' : !isxdigit((unsigned char)text[i]))
			return false;
	}
	return !isalnum((unsigned char)text[UUID_BYTES]);
}

/* An address may hold the ids of a workspace and a template as well: the one behind "sessions/" is meant, else the
 * last. */
static int raydocs_find_session_id(struct backend *b, const char *text, char **ret)
{
	static const char mark[] = "sessions/";
	const char *best = NULL;

	for (const char *at = text; *at; at++) {
		if ((at > text && isalnum((unsigned char)at[-1])) || !is_uuid(at))
			continue;
		best = at;
		size_t before = (size_t)(at - text), mark_len = sizeof(mark) - 1;
		if (before >= mark_len && strncasecmp(at - mark_len, mark, mark_len) == 0)
			break;
	}
	if (!best)
		return -ENOENT;
	char *id = strndup(best, UUID_BYTES);
	if (!id)
		return -ENOMEM;
	for (char *c = id; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	*ret = id;
	return 0;
}

/* ---- listings ------------------------------------------------------------------------------------------------ */

/* One pass over the pages of a session. */
struct walk {
	struct raydocs *s;
	struct call *call;
	const char *session_id;
	const char *wanted_sha256; /* stop at this one; NULL: all */
	struct listing_builder *builder;
	int64_t total;      /* as the first page said; -1 */
	int64_t total_last; /* as the last one read said */
	int named;          /* documents in the session's record, where it was asked for */
	int64_t pages;      /* there are, as far as the last one read can be believed */
	bool is_torn;       /* the list changed under our eyes: what is missing may only have moved */
	bool is_found;
};

static void walk_release(struct walk *w)
{
	listing_builder_free(w->builder);
	w->builder = NULL;
}

/* Somebody is waiting for names; a page is a listing of its own, without records. */
static int show_page(struct walk *w, const cJSON *list, int64_t asked_ms)
{
	CLEANUP(listing_builder_release) struct listing_builder *builder = NULL;
	CLEANUP(listing_release) struct listing *page = NULL;
	const cJSON *item;

	if (!w->call->on_page)
		return 0;
	builder = listing_builder_new(NULL);
	if (!builder)
		return -ENOMEM;
	cJSON_ArrayForEach (item, list) {
		int r = add_document(builder, item, false);

		if (r < 0)
			return r;
	}
	struct listing_builder *given = builder;
	builder = NULL;
	int r = listing_builder_finish(given, asked_ms, clock_wall_ms(), &page);
	if (r == 0)
		w->call->on_page(w->call->on_page_arg, page);
	return r;
}

static bool holds_hash(const cJSON *list, const char *sha256)
{
	const cJSON *item;

	cJSON_ArrayForEach (item, list) {
		const cJSON *hash = cJSON_GetObjectItemCaseSensitive(unwrap(item), "sha256");

		if (cJSON_IsString(hash) && strcasecmp(hash->valuestring, sha256) == 0)
			return true;
	}
	return false;
}

static const char *page_path(struct buf *path, const char *session_id, int page)
{
	path_add(path, "/extractions/sessions/", session_id, "/documents?page=", NULL);
	buf_addf(path, "%d", page);
	return buf_text(path);
}

static int page_unreadable(struct walk *w, int page, int error)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	const struct http_request q = { .method = "GET", .path = page_path(&path, w->session_id, page) };

	return unreadable(w->s, w->call, &q, "this is not a page of documents", error);
}

/* Adds one page. *ret_is_last: there is nothing behind it. */
static int read_page(struct walk *w, const cJSON *body, int page, int64_t asked_ms, bool *ret_is_last)
{
	const cJSON *list = read_list(body), *item;
	struct page_meta meta = read_meta(w->s, body);
	int before = listing_builder_count(w->builder), count = 0, fresh, r = list ? 0 : -EPROTO;

	cJSON_ArrayForEach (item, list) {
		if (r == 0)
			r = add_document(w->builder, item, true);
		count++;
	}
	if (r == 0)
		r = show_page(w, list, asked_ms);
	if (r < 0)
		return page_unreadable(w, page, r);
	if (w->call->transfer)
		atomic_store(&w->call->transfer->moved_ms, clock_now_ms());
	fresh = listing_builder_count(w->builder) - before;
	if (page == 1)
		w->total = meta.total;
	w->total_last = meta.total;
	w->pages = meta.last_page < PAGES_MAX ? meta.last_page : PAGES_MAX;
	if (meta.total >= 0 && meta.per_page > 0 && w->pages > (meta.total + meta.per_page - 1) / meta.per_page)
		w->pages = (meta.total + meta.per_page - 1) / meta.per_page;
	w->is_torn = w->is_torn || fresh < count || meta.total != w->total;
	w->is_found = w->wanted_sha256 && holds_hash(list, w->wanted_sha256);
	/* A last_page that is never reached ends where nothing new comes; one that comes too early does not end it. */
	bool says_more = meta.total > listing_builder_count(w->builder) && !atomic_load(&w->s->total_misleads);
	*ret_is_last = w->is_found || (page >= meta.last_page && !says_more) || fresh == 0 || page == PAGES_MAX;
	if (*ret_is_last && !w->is_found) {
		if (page < meta.last_page)
			w->is_torn = true;
		if (w->total >= 0 && w->total != listing_builder_count(w->builder) &&
		    !atomic_load(&w->s->total_misleads))
			w->is_torn = true;
	}
	return 0;
}

static int get_page(struct raydocs *s, struct call *call, const char *session_id, int page, cJSON **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	const struct http_request q = { .method = "GET",
					.ability = "sessions-read",
					.path = page_path(&path, session_id, page) };

	return q.path ? http_json(s->http, call, &q, ret) : call_no_memory(call);
}

/* Sleeps; false: the caller gives up, or has no time for that. */
static bool nap(struct raydocs *s, const struct call *call, int64_t ms)
{
	const struct timespec slice = { .tv_nsec = 50 * 1000000 };
	int64_t until = clock_now_ms() + ms;

	if (call->deadline_ms && until >= call->deadline_ms)
		return false;
	while (clock_now_ms() < until) {
		if (atomic_load(&s->is_stopped) || (call->transfer && atomic_load(&call->transfer->cancelled)))
			return false;
		(void)nanosleep(&slice, NULL); /* woken early, it looks early */
	}
	return true;
}

/* One page of hundreds that is refused for the moment does not end the walk. */
static int get_page_again(struct walk *w, int page, int error, cJSON **ret)
{
	const enum fault_kind *kind = &w->call->fault.kind;

	for (int i = 0; i < PAGE_TRIES && error < 0 && page > 1 && (*kind == FAULT_AWAY || *kind == FAULT_BUDGET);
	     i++) {
		if (!nap(w->s, w->call, PAGE_PAUSE_MS << i))
			break;
		error = get_page(w->s, w->call, w->session_id, page, ret);
	}
	return error;
}

/* Pages on their way, of which the walker takes the oldest and sends for another. */
struct ahead {
	struct pool *pool; /* of this walk alone, so that no walk waits for another's; NULL: no memory */
	pthread_mutex_t lock;
	pthread_cond_t moved;
	struct page_ahead {
		struct ahead *all;
		struct raydocs *s;
		const char *session_id;
		int page; /* 0: nothing was sent for */
		struct call call;
		struct transfer transfer; /* its own, so that it can be given up */
		cJSON *body;
		int r;
		bool is_done; /* guarded by lock; what stands above belongs to the job until then */
	} pages[AHEAD_MAX];
};

static void fetch_ahead(void *arg)
{
	struct page_ahead *p = arg;
	int r = get_page(p->s, &p->call, p->session_id, p->page, &p->body);
	SCOPED_LOCK(&p->all->lock);

	p->r = r;
	p->is_done = true;
	pthread_cond_signal(&p->all->moved);
}

static void ahead_send(struct ahead *a, struct walk *w, int page)
{
	struct page_ahead *p = &a->pages[page % AHEAD_MAX];

	*p = (struct page_ahead){ .all = a, .s = w->s, .session_id = w->session_id, .page = page };
	p->call = (struct call){ .urgency = w->call->urgency,
				 .deadline_ms = w->call->deadline_ms,
				 .transfer = &p->transfer };
	if (!a->pool || pool_run(a->pool, fetch_ahead, p) < 0)
		fetch_ahead(p); /* then one after the other */
}

/* Tells the pages under way that the caller gave up, and the caller that they stand in line. */
static void ahead_relay(struct ahead *a, const struct walk *w, bool give_up)
{
	struct transfer *outer = w->call->transfer;
	bool waits = false;

	for (int i = 0; i < AHEAD_MAX; i++) {
		struct page_ahead *p = &a->pages[i];

		if (p->page == 0 || p->is_done)
			continue;
		if (give_up || (outer && atomic_load(&outer->cancelled)))
			atomic_store(&p->transfer.cancelled, true);
		waits = waits || atomic_load(&p->transfer.waits_for_place);
	}
	if (outer)
		atomic_store(&outer->waits_for_place, waits);
}

static void ahead_wait(struct ahead *a, const struct walk *w, const struct page_ahead *p, bool give_up)
{
	SCOPED_LOCK(&a->lock);

	while (p->page && !p->is_done) {
		struct timespec until;

		ahead_relay(a, w, give_up);
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += RELAY_MS * 1000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
		(void)pthread_cond_timedwait(&a->moved, &a->lock, &until); /* either way we look again */
	}
	ahead_relay(a, w, give_up);
}

/* How many pages may be under way: while the budget is short, few stand in line, so that a person who wants one page is not
 * behind thirty of somebody else's. A walk that is longer than what is left of the budget takes that bit by bit: all at once
 * would leave its readers, and everybody else, without an answer for the rest of the minute. *ret_pause_ms: before the
 * next page is sent for. */
static int pages_at_once(struct raydocs *s, int64_t pages_left, int64_t *ret_pause_ms)
{
	struct limit_view limit;

	*ret_pause_ms = 0;
	limit_look(s->limit, &limit);
	if (limit.rate < 0)
		return AHEAD_MAX;
	int free = limit.rate - limit.used - limit.foreign - limit.waiting - AHEAD_SPARED;
	int at_once_max = AHEAD_MAX;
	if (free > 0 && free < pages_left) {
		int64_t longest_ms = (int64_t)WINDOW_MS / limit.rate * 3;
		at_once_max = free - limit.rate / 2; /* so many names soon */
		if (at_once_max <= 0)
			*ret_pause_ms = limit.free_ms / free < longest_ms ? limit.free_ms / free : longest_ms;
	}
	if (free > at_once_max)
		free = at_once_max;
	return free < AHEAD_MIN ? AHEAD_MIN : free > AHEAD_MAX ? AHEAD_MAX : free;
}

/* From page 2 on, several under way at a time, read in their order. */
static int walk_together(struct walk *w, int64_t asked_ms)
{
	struct ahead a = { .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER };
	bool is_last = false;
	int sent = 1, r = 0;

	a.pool = pool_new("pages", AHEAD_MAX);

	for (int page = 2; r == 0 && !is_last; page++) {
		struct page_ahead *p = &a.pages[page % AHEAD_MAX];

		int64_t pause_ms;
		int at_once = pages_at_once(w->s, w->pages - sent, &pause_ms);
		if (pause_ms > 0)
			(void)nap(w->s, w->call, pause_ms); /* whoever gave up is told so by the request */
		while (sent < page || (sent < w->pages && sent < page + at_once - 1))
			ahead_send(&a, w, ++sent);
		ahead_wait(&a, w, p, false);
		r = p->r;
		if (r < 0) {
			w->call->fault = p->call.fault;
			r = get_page_again(w, page, r, &p->body);
		}
		if (r == 0)
			r = read_page(w, p->body, page, asked_ms, &is_last);
		cJSON_Delete(p->body);
		p->body = NULL;
		p->page = 0;
	}
	for (int i = 0; i < AHEAD_MAX; i++) {
		ahead_wait(&a, w, &a.pages[i], true);
		cJSON_Delete(a.pages[i].body);
	}
	pool_free(a.pool);
	pthread_mutex_destroy(&a.lock);
	pthread_cond_destroy(&a.moved);
	return r;
}

static int walk_run(struct walk *w, struct listing **ret)
{
	int64_t asked_ms = clock_now_ms(), as_of_wall_ms = clock_wall_ms();
	bool is_last = false;
	int r = 0;

	w->total = -1;
	w->is_torn = w->is_found = false;
	w->builder = listing_builder_new(w->s->scratch_dir);
	if (!w->builder)
		return call_no_memory(w->call);
	for (int page = 1; r == 0 && !is_last; page++) {
		CLEANUP(json_release) cJSON *body = NULL;

		/* Nobody is in a hurry for a poll, and who looks for one document may find it early. */
		if (page == 2 && w->pages > 2 && w->call->urgency != URGENCY_BACKGROUND && !w->wanted_sha256) {
			r = walk_together(w, asked_ms);
			break;
		}
		r = get_page_again(w, page, get_page(w->s, w->call, w->session_id, page, &body), &body);
		if (r == 0)
			r = read_page(w, body, page, asked_ms, &is_last);
	}
	if (r < 0)
		return r;
	struct listing_builder *given = w->builder;
	w->builder = NULL;
	return listing_builder_finish(given, asked_ms, as_of_wall_ms, ret);
}

/* The same documents in the same condition; in any order if the order does not matter. */
static bool listings_are_equal(const struct listing *a, const struct listing *b, bool in_order)
{
	int count = listing_count(a);

	if (count != listing_count(b))
		return false;
	for (int i = 0; i < count; i++) {
		struct document one, other;

		listing_get(a, i, &one);
		int at = in_order ? i : listing_find(b, one.id);
		if (at < 0)
			return false;
		listing_get(b, at, &other);
		if (!document_is_equal(&one, &other))
			return false;
	}
	return true;
}

/* ---- what changed since ------------------------------------------------------------------------------------------ */

static int get_document_json(struct raydocs *s, struct call *call, const char *document_id, cJSON **ret);

/* A document of which the session's record says something else than we know. */
struct needed {
	const char *id; /* borrowed from the record, or from `known` */
	int page;       /* where it may stand, if the pages have the record's order; 0: nobody knows */
	bool is_found;
};

/* A refresh for less than a walk: the session's own record (one request, whatever their number) names every document
 * with its name and status, and only what it says anew is asked for. */
struct update {
	struct raydocs *s;
	struct call *call;
	const char *session_id;
	struct listing *known;
	const struct listing *walked; /* a part of known that is of now, whatever the record says; NULL: none */
	int64_t asked_ms, as_of_wall_ms;
	cJSON *record;
	bool *is_named;          /* of known: the record names it */
	int named, named_in_all; /* of known; of all */
	struct needed *needed;
	int needed_count, needed_room;
	int64_t total; /* as a page said; -1 */
	int newcomers; /* in `found` and not in known */
	struct listing_builder *found;
	bool order_differs; /* a page did not hold what it should by the record's order */
	bool is_cut;        /* the record does not name all */
};

static void update_release(struct update *u)
{
	cJSON_Delete(u->record);
	free(u->is_named);
	free(u->needed);
	listing_builder_free(u->found);
}

static bool is_needed(const struct update *u, const char *id)
{
	for (int i = 0; i < u->needed_count; i++) {
		if (strcmp(u->needed[i].id, id) == 0)
			return true;
	}
	return false;
}

static int need(struct update *u, const char *id, int page)
{
	if (u->needed_count == u->needed_room) {
		int room = u->needed_room ? 2 * u->needed_room : 16;
		struct needed *grown = realloc(u->needed, (size_t)room * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		u->needed = grown;
		u->needed_room = room;
	}
	u->needed[u->needed_count++] = (struct needed){ .id = id, .page = page };
	return 0;
}

/* Pages of a walk over all of it. */
static int walk_pages(const struct update *u)
{
	int per_page = atomic_load(&u->s->page_documents);

	return (listing_count(u->known) + per_page - 1) / per_page;
}

/* The record and the list may have words of their own for one status. */
static bool is_same_status(struct raydocs *s, const char *in_record, const char *listed)
{
	if (!in_record || !listed || strcmp(in_record, listed) == 0)
		return text_is_equal(in_record, listed);
	SCOPED_LOCK(&s->lock);
	for (int i = 0; i < s->word_count; i++) {
		if (strcmp(s->words[i].record, in_record) == 0 && strcmp(s->words[i].listed, listed) == 0)
			return true;
	}
	return false;
}

static void learn_word(struct raydocs *s, const char *in_record, const char *listed)
{
	if (is_same_status(s, in_record, listed) || strlen(in_record) >= WORD_BYTES || strlen(listed) >= WORD_BYTES)
		return;
	SCOPED_LOCK(&s->lock);
	if (s->word_count == WORDS_MAX)
		return;
	struct words *w = &s->words[s->word_count++];
	memcpy(w->record, in_record, strlen(in_record) + 1);
	memcpy(w->listed, listed, strlen(listed) + 1);
}

/* Where the list had the same word before and behind a record that has another one of the same meaning, nothing changed
 * between them: that is how the two call it. */
static void learn_words(const struct update *u, const struct listing *now)
{
	const cJSON *item;

	cJSON_ArrayForEach (item, cJSON_GetObjectItemCaseSensitive(unwrap(u->record), "documents")) {
		const char *id = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "id"));
		const char *status = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "status"));
		int was_at = id ? listing_find(u->known, id) : -1, at = id ? listing_find(now, id) : -1;
		struct document was, is;

		if (!status || was_at < 0 || at < 0)
			continue;
		listing_get(u->known, was_at, &was);
		listing_get(now, at, &is);
		if (is.status && text_is_equal(was.status, is.status) && is.state == state_of(status))
			learn_word(u->s, status, is.status);
	}
}

/* Compares the record with what is known. 1: it can't be gone by; more than a walk would cost is not looked at. */
static int read_record(struct update *u)
{
	const cJSON *list = cJSON_GetObjectItemCaseSensitive(unwrap(u->record), "documents"), *item;
	int per_page = atomic_load(&u->s->page_documents), place = 0;

	if (!cJSON_IsArray(list))
		return 1;
	u->is_named = calloc((size_t)listing_count(u->known) + 1, sizeof(*u->is_named));
	if (!u->is_named)
		return -ENOMEM;
	cJSON_ArrayForEach (item, list) {
		struct json_in in = json_in_begin(item, "raydocs: document");
		const char *id = json_text_or(&in, "id", NULL), *name = json_text_or(&in, "filename", NULL);
		const char *status = json_text_or(&in, "status", NULL);
		struct document doc;
		int at = id && !in.failed ? listing_find(u->known, id) : -1;

		if (!id || in.failed || !*id)
			return 1;
		if (at >= 0) {
			if (u->is_named[at])
				return 1; /* named twice: nothing can be counted by it */
			u->is_named[at] = true;
			u->named++;
			listing_get(u->known, at, &doc);
		}
		bool is_known = at >= 0 && (!name || text_is_equal(doc.filename, name)) &&
				is_same_status(u->s, status, doc.status);
		if (!is_known && !(u->walked && listing_find(u->walked, id) >= 0)) {
			int r = need(u, id, place / per_page + 1);
			if (r < 0)
				return r;
		}
		place++;
		/* One of each page at the least: a walk is cheaper. */
		if (u->needed_count > per_page * walk_pages(u))
			return 1;
	}
	u->named_in_all = place;
	return 0;
}

/* Takes a document into `found`, when it says anything new. */
static int take_document(struct update *u, const cJSON *item)
{
	struct document doc, before;
	struct document_room room;
	int r = read_document(unwrap(item), &doc, &room);

	if (r < 0)
		return r;
	int at = listing_find(u->known, doc.id);
	bool was_needed = false;
	for (int i = 0; i < u->needed_count; i++) {
		if (strcmp(u->needed[i].id, doc.id) == 0)
			was_needed = u->needed[i].is_found = true;
	}
	if (at >= 0)
		listing_get(u->known, at, &before);
	if (at >= 0 && !was_needed && document_is_equal(&before, &doc))
		return 0;
	int count = listing_builder_count(u->found);
	r = add_document(u->found, item, true);
	if (r == 0 && at < 0)
		u->newcomers += listing_builder_count(u->found) > count;
	return r;
}

/* 1: it is not a page. *ret_count: the documents on it. */
static int take_page(struct update *u, int page, int *ret_count)
{
	CLEANUP(json_release) cJSON *body = NULL;
	int r = get_page(u->s, u->call, u->session_id, page, &body), hits = 0, expected = 0;
	const cJSON *list, *item;

	if (r < 0)
		return r;
	list = read_list(body);
	u->total = read_meta(u->s, body).total;
	if (!list || u->total < 0)
		return 1; /* without it pages can't be told from the whole */
	cJSON_ArrayForEach (item, list) {
		r = take_document(u, item);
		if (r < 0)
			return r;
	}
	for (int i = 0; i < u->needed_count; i++) {
		expected += u->needed[i].page == page;
		hits += u->needed[i].page == page && u->needed[i].is_found;
	}
	u->order_differs = u->order_differs || hits < expected;
	*ret_count = cJSON_GetArraySize(list);
	return 0;
}

/* 1: it can't be had by itself. */
static int take_single(struct update *u, struct needed *n)
{
	CLEANUP(json_release) cJSON *body = NULL;
	int r = get_document_json(u->s, u->call, n->id, &body);

	if (r < 0 && is_refusal(u->call)) {
		call_forget_fault(u->call);
		return 1;
	}
	if (r < 0)
		return r;
	r = take_document(u, unwrap(body));
	return r == 0 && !n->is_found ? 1 : r;
}

/* How many needed ones that were not found stand on this page, if the record's order holds. */
static int count_on(const struct update *u, int page)
{
	int count = 0;

	for (int i = 0; i < u->needed_count; i++)
		count += u->needed[i].page == page && !u->needed[i].is_found;
	return count;
}

/* Requests it takes to ask for what is needed: a page for several on it, a document for one alone. */
static int count_requests(const struct update *u)
{
	int requests = 0, last_page = 0;

	for (int i = 0; i < u->needed_count; i++) {
		const struct needed *n = &u->needed[i];

		requests += n->page == 0 || n->page != last_page;
		last_page = n->page;
	}
	return requests;
}

static int take_needed(struct update *u)
{
	for (int i = 0; i < u->needed_count; i++) {
		struct needed *n = &u->needed[i];
		int count, r = 0;

		if (u->order_differs && u->needed_count - i >= walk_pages(u))
			return 1; /* each would be asked for alone */
		if (!n->is_found && n->page > 0 && !u->order_differs && count_on(u, n->page) > 1)
			r = take_page(u, n->page, &count);
		if (r == 0 && !n->is_found)
			r = take_single(u, n);
		if (r != 0)
			return r;
	}
	return 0;
}

/* The record names fewer than there are: the list's ends show what came, and `total` whether anything else did. What
 * is under way is asked for one by one, since nothing else tells how it goes. */
static int update_by_ends(struct update *u)
{
	int per_page = atomic_load(&u->s->page_documents), count, r;
	int last_page = (int)((u->total + per_page - 1) / per_page);
	struct document doc;

	for (int page = 1; page <= last_page; page += last_page > 1 ? last_page - 1 : 1) {
		r = take_page(u, page, &count);
		if (r != 0)
			return r;
	}
	if (u->total != listing_count(u->known) + u->newcomers)
		return 1;
	for (int i = 0; i < listing_count(u->known); i++) {
		listing_get(u->known, i, &doc);
		if (doc.state == STATE_PROCESSING && !u->is_named[i] && !is_needed(u, doc.id)) {
			r = need(u, doc.id, 0); /* its id's text lives as long as known */
			if (r < 0)
				return r;
		}
	}
	u->is_cut = true;
	return 2 + count_requests(u) < walk_pages(u) ? take_needed(u) : 1;
}

static int update_finish(struct update *u, struct listing **ret)
{
	CLEANUP(listing_release) struct listing *found = NULL;
	CLEANUP(listing_release) struct listing *patched = NULL;
	int gone = 0, count = listing_count(u->known);
	const char **without;

	if (listing_builder_count(u->found) == 0 && (u->is_cut || u->named == count))
		return listing_renew(u->known, u->asked_ms, u->as_of_wall_ms, ret);
	without = calloc((size_t)count + 1, sizeof(*without));
	struct listing_builder *given = u->found;
	u->found = NULL;
	int r = listing_builder_finish(given, u->asked_ms, u->as_of_wall_ms, &found);
	for (int i = 0; r == 0 && without && i < count && !u->is_cut; i++) {
		struct document doc;

		if (u->is_named[i])
			continue;
		listing_get(u->known, i, &doc);
		if (listing_find(found, doc.id) < 0) /* else a page had it after all */
			without[gone++] = doc.id;
	}
	if (r == 0)
		r = without ? listing_patch(u->known, without, gone, found, &patched) : -ENOMEM;
	free(without);
	return r == 0 ? listing_renew(patched, u->asked_ms, u->as_of_wall_ms, ret) : r;
}

/* The record is the session's as well. What its template says is told as far as it is known. */
static void tell_session(const struct update *u)
{
	CLEANUP(session_release) struct session seen = { 0 };

	if (!u->call->on_session || read_session(u->record, &seen) < 0)
		return;
	complete_session_unasked(u->s, &seen);
	u->call->on_session(u->call->on_session_arg, &seen);
}

/* By what the record says, everything is as it was. */
static bool is_as_known(const struct update *u)
{
	return u->named == listing_count(u->known) && u->needed_count == 0;
}

/* What fits into one page is as cheap to ask in full, and that tells more. */
static bool goes_by_record(struct raydocs *s, const struct listing *known)
{
	return known && listing_count(known) > atomic_load(&s->page_documents);
}

static void tell_same(struct raydocs *s, struct call *call, cJSON *record, int64_t asked_ms, int64_t as_of_wall_ms)
{
	CLEANUP(update_release) struct update u = { .s = s, .call = call, .known = call->known, .record = record };
	CLEANUP(listing_release) struct listing *same = NULL;

	if (call->on_same && goes_by_record(s, call->known) && read_record(&u) == 0 && is_as_known(&u) &&
	    listing_renew(call->known, asked_ms, as_of_wall_ms, &same) == 0)
		call->on_same(call->on_same_arg, same);
	u.record = NULL; /* the caller's */
}

/* 1: only a walk can tell. */
static int update_run(struct update *u, struct listing **ret)
{
	int count = 0, r = get_session_json(u->s, u->call, u->session_id, &u->record);

	if (r < 0)
		return r;
	tell_session(u);
	r = read_record(u);
	if (r != 0)
		return r;
	bool lacks = u->named < listing_count(u->known);
	if (is_as_known(u))
		return update_finish(u, ret);
	if (1 + lacks + count_requests(u) >= walk_pages(u))
		return 1;
	/* What the record leaves out is gone, unless there are more than it names. */
	if (lacks)
		r = take_page(u, u->needed_count && u->needed[0].page ? u->needed[0].page : 1, &count);
	if (r == 0 && lacks && u->total > u->named_in_all)
		r = update_by_ends(u);
	else if (r == 0 && lacks && u->total < u->named_in_all)
		return 1; /* one of the two is not of this moment */
	else if (r == 0)
		r = take_needed(u);
	return r == 0 ? update_finish(u, ret) : r;
}

/* What a walk brought, and what was known before and it did not bring. */
static int with_known(struct listing *walked, struct listing *known, struct listing **ret)
{
	CLEANUP(listing_release) struct listing *lacking = NULL;
	int count = listing_count(walked), r = -ENOMEM;
	const char **had = known ? calloc((size_t)count + 1, sizeof(*had)) : NULL;
	struct document d;

	if (!known) {
		*ret = listing_ref(walked);
		return 0;
	}
	for (int i = 0; had && i < count; i++) {
		listing_get(walked, i, &d);
		had[i] = d.id;
	}
	if (had)
		r = listing_patch(known, had, count, NULL, &lacking);
	if (r == 0)
		r = listing_patch(walked, NULL, 0, lacking, ret);
	free(had);
	return r;
}

/* The record names whom the walk brought and nobody else. */
static bool is_named_alike(const struct update *u)
{
	struct document d;

	for (int i = 0; i < listing_count(u->walked); i++) {
		listing_get(u->walked, i, &d);
		if (!u->is_named[listing_find(u->known, d.id)])
			return false;
	}
	return u->named_in_all == listing_count(u->walked);
}

/* A torn walk is mended by the session's record, which names all there are: whom it brought and the record lacks is gone,
 * whom it did not bring is asked for. 1: the record does not name all, or there are too many to ask for. */
static int mend(struct walk *w, struct listing *walked, struct listing *known, int singles_max, struct listing **ret)
{
	CLEANUP(listing_release) struct listing *all = NULL;
	CLEANUP(update_release)
	struct update u = { .s = w->s,
			    .call = w->call,
			    .session_id = w->session_id,
			    .walked = walked,
			    .asked_ms = listing_asked_ms(walked),
			    .as_of_wall_ms = listing_as_of_wall_ms(walked) };
	int r = with_known(walked, known, &all);

	if (r < 0)
		return call_no_memory(w->call);
	u.known = all;
	u.found = listing_builder_new(w->s->scratch_dir);
	r = u.found ? get_session_json(u.s, u.call, u.session_id, &u.record) : call_no_memory(w->call);
	if (r == 0)
		r = read_record(&u);
	if (r != 0)
		return r;
	w->named = u.named_in_all;
	if (w->total == w->total_last && w->total != u.named_in_all && is_named_alike(&u))
		atomic_store(&w->s->total_misleads, true); /* the service's own count is wrong */
	int64_t total = atomic_load(&w->s->total_misleads) ? -1 : w->total_last;
	if (u.named_in_all < (total >= 0 ? total : listing_count(walked)) || u.needed_count > singles_max)
		return 1;
	for (int i = 0; r == 0 && i < u.needed_count; i++)
		r = take_single(&u, &u.needed[i]);
	return r == 0 ? update_finish(&u, ret) : r;
}

/* All documents of a session. Nobody's absence is concluded from a torn walk: it is mended, or walked again; after two
 * that could not be mended whoever was in either is there. */
static int walk_soundly(struct walk *w, struct listing *known, struct listing **ret, bool *ret_is_sound)
{
	CLEANUP(listing_release) struct listing *first = NULL;
	CLEANUP(listing_release) struct listing *second = NULL;
	CLEANUP(listing_release) struct listing *both = NULL;
	int pages, r = walk_run(w, &first);

	*ret_is_sound = true;
	if (r < 0 || !w->is_torn || w->is_found) {
		*ret = r == 0 ? listing_ref(first) : NULL;
		return r;
	}
	pages = (int)(w->total_last > listing_count(first) ? w->total_last : listing_count(first)) /
			atomic_load(&w->s->page_documents) +
		1;
	r = mend(w, first, known, pages, ret);
	if (r <= 0)
		return r;
	r = walk_run(w, &second);
	if (r < 0 || !w->is_torn || w->is_found) {
		*ret = r == 0 ? listing_ref(second) : NULL;
		return r;
	}
	r = listing_patch(first, NULL, 0, second, &both);
	if (r == 0)
		r = mend(w, both, known, SINGLES_PART * pages, ret);
	if (r <= 0)
		return r;
	*ret_is_sound = w->named <= listing_count(both) && listings_are_equal(first, second, false);
	if (*ret_is_sound)
		atomic_store(&w->s->total_misleads, true);
	else if (known && listing_count(both) < w->total)
		return with_known(both, known, ret); /* some are there unseen, and these may be they */
	*ret = listing_ref(both);
	return 0;
}

static int raydocs_list_documents(struct backend *b, struct call *call, const char *session_id, struct listing *known,
				  struct listing **ret)
{
	struct raydocs *s = raydocs_from(b);
	struct walk w = { .s = s, .call = call, .session_id = session_id };
	CLEANUP(listing_release) struct listing *found = NULL;
	CLEANUP(update_release)
	struct update u = { .s = s,
			    .call = call,
			    .session_id = session_id,
			    .known = known,
			    .asked_ms = clock_now_ms(),
			    .as_of_wall_ms = clock_wall_ms(),
			    .total = -1 };
	bool is_sound;
	int r = 1;

	if (!call->is_sweep && goes_by_record(s, known)) {
		u.found = listing_builder_new(s->scratch_dir);
		r = u.found ? update_run(&u, ret) : call_no_memory(call);
		if (r == 0 && u.needed_count > 0)
			learn_words(&u, *ret);
		if (r <= 0)
			return r;
	}
	r = walk_soundly(&w, known, &found, &is_sound);
	walk_release(&w);
	if (r < 0)
		return r;
	if (u.record)
		learn_words(&u, found);
	/* A patched one has its newcomers at the end, wherever the service shows them. */
	if (known && listings_are_equal(known, found, false))
		return listing_renew(known, u.asked_ms, u.as_of_wall_ms, ret);
	*ret = found;
	found = NULL;
	return 0;
}

/* ---- documents ----------------------------------------------------------------------------------------------- */

static int get_link(struct raydocs *s, struct call *call, const char *document_id, char **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;
	const struct http_request q = { .method = "GET",
					.ability = "sessions-read",
					.path = path_add(&path, "/extractions/documents/", document_id, "/url", NULL) };

	if (!q.path)
		return call_no_memory(call);
	int r = http_json(s->http, call, &q, &body);
	if (r < 0)
		return r;
	const cJSON *flat = cJSON_GetObjectItemCaseSensitive(body, "url") ? body : unwrap(body);
	struct json_in in = json_in_begin(flat, "raydocs: link");
	char *url = json_copy_text(&in, "url");
	r = json_in_end(&in);
	if (r < 0) {
		free(url);
		return unreadable(s, call, &q, "this is not a link to a document", r);
	}
	*ret = url;
	return 0;
}

static int raydocs_fetch_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
				  int fd)
{
	struct raydocs *s = raydocs_from(b);
	int r = 0;

	/* A link that storage refuses may have ended on its way here: one new one is asked for. */
	for (int try = 0; try < 2; try++) {
		CLEANUP(text_release) char *url = NULL;
		CLEANUP(http_reply_release) struct http_reply reply = { 0 };

		r = get_link(s, call, document_id, &url);
		if (r < 0)
			return r;
		const struct http_request q = {
			.target = HTTP_STORAGE, .method = "GET", .url = url, .answer_fd = &fd, .accepts_any = try == 0
		};
		r = http_do(s->http, call, &q, &reply);
		if (r == 0 || call->fault.kind != FAULT_KEY)
			return r;
	}
	return r;
}

/* {"NAME":[texts]} */
static void add_text_list(struct buf *b, const char *name, const char *const *texts, int count)
{
	buf_addf(b, "{\"%s\":[", name);
	for (int i = 0; i < count; i++) {
		if (i > 0)
			buf_add(b, ",");
		json_add_quoted(b, texts[i]);
	}
	buf_add(b, "]}");
}

static const cJSON *find_by_id(const cJSON *list, const char *id)
{
	const cJSON *item;

	cJSON_ArrayForEach (item, list) {
		struct json_in in = json_in_begin(unwrap(item), "raydocs: document");
		struct json_id room;
		const char *its = json_id_or(&in, "id", &room, NULL);

		if (its && strcmp(its, id) == 0)
			return unwrap(item);
	}
	return NULL;
}

static int get_document_json(struct raydocs *s, struct call *call, const char *document_id, cJSON **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	const struct http_request q = { .method = "GET",
					.ability = "sessions-read",
					.path = path_add(&path, "/extractions/documents/", document_id, NULL) };

	if (!q.path)
		return call_no_memory(call);
	return http_json(s->http, call, &q, ret);
}

/* Adds each asked id's record: from the answer, or asked for where the answer left it out. */
static int add_attached(struct raydocs *s, struct call *call, const cJSON *list, const char *const *ids, int count,
			struct listing_builder *builder)
{
	for (int i = 0; i < count; i++) {
		CLEANUP(json_release) cJSON *own = NULL;
		const cJSON *item = find_by_id(list, ids[i]);
		int r = 0;

		if (!item) {
			r = get_document_json(s, call, ids[i], &own);
			item = unwrap(own);
		}
		if (r == 0)
			r = add_document(builder, item, true);
		if (r < 0) {
			call->fault.kind = call->fault.kind == FAULT_NONE ? FAULT_AWAY : call->fault.kind;
			call->fault.may_have_happened = true;
			return r;
		}
	}
	return 0;
}

static int post_attach(struct raydocs *s, struct call *call, const char *session_id, const char *const *ids, int count,
		       cJSON **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(buf_release) struct buf text = BUF(BODY_BYTES_MAX);

	add_text_list(&text, "document_ids", ids, count);
	const struct http_request q = { .method = "POST",
					.body = buf_text(&text),
					.ability = "sessions-write",
					.path = path_add(&path, "/extractions/sessions/", session_id,
							 "/documents/attach", NULL) };
	if (!q.path || !q.body)
		return call_no_memory(call);
	return http_json(s->http, call, &q, ret);
}

static int raydocs_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
			  const char *const *document_ids, int count, struct listing **ret)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(listing_builder_release) struct listing_builder *builder = NULL;
	int64_t asked_ms = clock_now_ms();
	int r = post_attach(s, call, session_id, document_ids, count, &body);

	if (r == -EINVAL)
		return -EXDEV; /* 422: of another workspace */
	if (r < 0)
		return r;
	builder = listing_builder_new(s->scratch_dir);
	if (!builder)
		return call_no_memory(call);
	r = add_attached(s, call, read_list(body), document_ids, count, builder);
	if (r < 0)
		return r;
	return listing_builder_take(&builder, asked_ms, clock_wall_ms(), ret);
}

static int raydocs_detach(struct backend *b, struct call *call, const char *session_id, const char *document_id)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	const struct http_request q = { .method = "DELETE",
					.ability = "sessions-write",
					.path = path_add(&path, "/extractions/sessions/", session_id, "/documents/",
							 document_id, NULL) };

	return q.path ? http_do(s->http, call, &q, &reply) : call_no_memory(call);
}

static int raydocs_run(struct backend *b, struct call *call, const char *session_id)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	const struct http_request q = { .method = "POST",
					.ability = "sessions-write",
					.path = path_add(&path, "/extractions/sessions/", session_id, "/results",
							 NULL) };

	return q.path ? http_do(s->http, call, &q, &reply) : call_no_memory(call);
}

/* ---- the steps of an upload ---------------------------------------------------------------------------------- */

/* What must outlive a step, as JSON in one line: after signing { key, url, headers: [[name, value]] }, after storing
 * { key }, and { key, document_id } once the key has become a document of the workspace. */
struct ticket {
	char *key, *url, *document_id;
	char **headers; /* "Name: value", ends with NULL */
};

static void ticket_release(struct ticket *t)
{
	for (int i = 0; t->headers && t->headers[i]; i++)
		free(t->headers[i]);
	free(t->headers);
	free(t->key);
	free(t->url);
	free(t->document_id);
	*t = (struct ticket){ 0 };
}

/* An address that ends with the next step does not outlive it. */
static int ticket_write(struct upload *u, const struct ticket *t)
{
	CLEANUP(buf_release) struct buf text = BUF(TICKET_BYTES_MAX);

	buf_add(&text, "{\"key\":");
	json_add_quoted(&text, t->key);
	if (t->url) {
		buf_add(&text, ",\"url\":");
		json_add_quoted(&text, t->url);
		buf_add(&text, ",\"headers\":[");
		for (int i = 0; t->headers && t->headers[i]; i++) {
			buf_add(&text, i ? "," : "");
			json_add_quoted(&text, t->headers[i]);
		}
		buf_add(&text, "]");
	}
	if (t->document_id) {
		buf_add(&text, ",\"document_id\":");
		json_add_quoted(&text, t->document_id);
	}
	buf_add(&text, "}");
	return upload_set_ticket(u, &text);
}

static bool add_header(struct ticket *t, const char *line)
{
	int count = 0;

	while (t->headers && t->headers[count])
		count++;
	if (count >= HEADERS_MAX)
		return false;
	char **longer = realloc(t->headers, (size_t)(count + 2) * sizeof(*longer));
	if (!longer)
		return false;
	t->headers = longer;
	longer[count + 1] = NULL;
	longer[count] = strdup(line);
	return longer[count] != NULL;
}

static int ticket_read(const char *line, struct ticket *ret)
{
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(ticket_release) struct ticket t = { 0 };
	const cJSON *item;

	if (json_parse(line, strlen(line), &body) < 0)
		return -EINVAL;
	struct json_in in = json_in_begin(body, "raydocs: ticket");
	t.key = json_copy_text(&in, "key");
	if (json_text_or(&in, "url", NULL))
		t.url = json_copy_text(&in, "url");
	if (json_text_or(&in, "document_id", NULL))
		t.document_id = json_copy_text(&in, "document_id");
	cJSON_ArrayForEach (item, json_array_or_null(&in, "headers")) {
		if (!cJSON_IsString(item) || !add_header(&t, item->valuestring))
			return -EINVAL;
	}
	if (json_in_end(&in) < 0)
		return -EINVAL;
	*ret = t;
	t = (struct ticket){ 0 };
	return 0;
}

/* A ticket we cannot read, from another version perhaps, costs a new signature and nothing else. */
static int bad_ticket(struct call *call)
{
	call->fault.kind = FAULT_KEY;
	snprintf(call->fault.words, sizeof(call->fault.words), "what was noted of the upload link cannot be read");
	return -EACCES;
}

/* What the transfer sets itself, and what would make one header two. */
static bool header_is_ours(const char *name)
{
	static const char *const ours[] = { "host", "content-length", "transfer-encoding", "connection", "expect" };

	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
		if (strcasecmp(name, ours[i]) == 0)
			return true;
	}
	return false;
}

static bool header_is_sound(const char *name, const char *value)
{
	for (const char *c = name; *c; c++) {
		if (!isalnum((unsigned char)*c) && !strchr("!#$%&'*+-.^_`|~", *c))
			return false;
	}
	for (const char *c = value; *c; c++) {
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			return false;
	}
	return name[0] != '\0';
}

static int read_one_header(struct ticket *t, const char *name, const cJSON *value)
{
	CLEANUP(buf_release) struct buf line = BUF(8 * 1024);

	if (!cJSON_IsString(value) || !header_is_sound(name, value->valuestring))
		return -EPROTO;
	buf_addf(&line, value->valuestring[0] ? "%s: %s" : "%s;", name,
		 value->valuestring); /* curl's way to say "empty" */
	return buf_text(&line) && add_header(t, buf_text(&line)) ? 0 : -EPROTO;
}

/* A value may be a text or a list of texts. */
static int read_headers(const cJSON *headers, struct ticket *t)
{
	const cJSON *header, *value;
	int r = 0;

	cJSON_ArrayForEach (header, headers) {
		if (cJSON_IsNull(header) || header_is_ours(header->string))
			continue;
		if (!cJSON_IsArray(header)) {
			r = read_one_header(t, header->string, header);
		} else {
			cJSON_ArrayForEach (value, header) {
				if (r == 0)
					r = read_one_header(t, header->string, value);
			}
		}
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_signed(const cJSON *body, struct ticket *ret)
{
	const cJSON *flat = cJSON_GetObjectItemCaseSensitive(body, "key") ? body : unwrap(body);
	struct json_in in = json_in_begin(flat, "raydocs: upload link");
	CLEANUP(ticket_release) struct ticket t = { 0 };

	t.key = json_copy_text(&in, "key");
	t.url = json_copy_text(&in, "url");
	const cJSON *headers = json_object_or_null(&in, "headers");
	int r = json_in_end(&in);
	if (r == 0)
		r = read_headers(headers, &t);
	if (r == 0 && !http_url_is_allowed(t.url))
		r = -EPROTO;
	if (r < 0)
		return r;
	*ret = t;
	t = (struct ticket){ 0 };
	return 0;
}

static int sign(struct raydocs *s, struct call *call, struct upload *u)
{
	CLEANUP(buf_release) struct buf text = BUF(BODY_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(ticket_release) struct ticket t = { 0 };

	buf_add(&text, "{\"content_type\":");
	json_add_quoted(&text, mime_by_name(u->name));
	buf_add(&text, ",\"visibility\":\"private\"}");
	const struct http_request q = { .method = "POST",
					.path = "/vapor/signed-storage-url",
					.body = buf_text(&text) };
	int64_t signed_ms = clock_wall_ms(); /* the link's life begins no earlier */
	int r = http_json(s->http, call, &q, &body);

	if (r < 0) {
		call->fault.may_have_happened = false; /* a link nobody used is nothing */
		return r;
	}
	r = read_signed(body, &t);
	if (r < 0) {
		r = unreadable(s, call, &q, "this is not a link to upload to", r);
		call->fault.may_have_happened = false;
		return r;
	}
	r = ticket_write(u, &t);
	if (r < 0)
		return call_no_memory(call);
	u->ticket_wall_ms = signed_ms;
	return 0;
}

static int raydocs_upload_sign(struct backend *b, struct call *call, struct upload *u)
{
	int r = sign(raydocs_from(b), call, u);

	if (r == 0)
		u->step = UPLOAD_SIGNED;
	return r;
}

static int raydocs_upload_store(struct backend *b, struct call *call, struct upload *u)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(ticket_release) struct ticket t = { 0 };
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	const struct http_source source = { .fd = u->fd, .size_bytes = u->size_bytes };
	int64_t age_ms = clock_wall_ms() - u->ticket_wall_ms;

	/* A link that waited too long, for the network perhaps, was not refused: it takes no blame and gets a
	 * successor. */
	if (age_ms > LINK_MS || age_ms < -LINK_MS) {
		int r = sign(s, call, u);

		if (r < 0)
			return r;
	}
	if (ticket_read(u->ticket, &t) < 0 || !t.url)
		return bad_ticket(call);
	const struct http_request q = { .target = HTTP_STORAGE,
					.method = "PUT",
					.url = t.url,
					.source = &source,
					.headers = (const char *const *)t.headers };
	int r = http_do(s->http, call, &q, &reply);
	if (r < 0)
		return r;
	const struct ticket stored = { .key = t.key };
	if (ticket_write(u, &stored) < 0)
		return call_no_memory(call);
	u->step = UPLOAD_STORED;
	return 0;
}

/* ---- the last step ------------------------------------------------------------------------------------------- */

/* One upload of a batch, while it is under way. */
struct member {
	struct upload *u;
	struct ticket t;
	bool is_settled; /* its u->error says how it went */
};

struct batch {
	struct member members[BATCH_MAX];
	int count;
};

static void batch_release(struct batch *batch)
{
	for (int i = 0; i < batch->count; i++)
		ticket_release(&batch->members[i].t);
}

static void settle(struct member *m, int error, const struct fault *fault)
{
	m->is_settled = true;
	m->u->error = error;
	if (fault)
		m->u->fault = *fault;
	else
		m->u->fault = (struct fault){ .retry_after_ms = -1 };
}

static void settle_found(struct raydocs *s, struct member *m, const cJSON *item, int64_t asked_ms)
{
	struct listing *document = NULL;
	int r = one_document(s, item, asked_ms, &document);

	if (r < 0) { /* it is there, yet we could not read it: it will be looked for */
		const struct fault fault = { .kind = FAULT_AWAY, .retry_after_ms = -1, .may_have_happened = true };

		settle(m, r, &fault);
		return;
	}
	m->u->document = document;
	m->u->step = UPLOAD_ATTACHED;
	settle(m, 0, NULL);
}

/* The status of a service that keeps names shows in any new document; one that was there before has an older name. */
static void learn_about_names(struct raydocs *s, const struct upload *u)
{
	struct document doc;

	listing_get(u->document, 0, &doc);
	if (!doc.filename || strcmp(doc.filename, u->name) == 0)
		return;
	if (doc.created_ms < 0 || doc.created_ms < u->ticket_wall_ms - REUSED_MS)
		return;
	SCOPED_LOCK(&s->lock);
	if (s->naming == NAMING_AUTO && !s->names_are_lost && !s->workspace_refused)
		log_info("raydocs: the service does not keep the names of what is uploaded into a session; from now on "
			 "documents "
			 "go by way of the workspace, which takes a name");
	s->names_are_lost = true;
}

static const cJSON *find_by_hash(const cJSON *list, const char *sha256)
{
	const cJSON *item;

	cJSON_ArrayForEach (item, list) {
		const cJSON *hash = cJSON_GetObjectItemCaseSensitive(unwrap(item), "sha256");

		if (cJSON_IsString(hash) && strcasecmp(hash->valuestring, sha256) == 0)
			return unwrap(item);
	}
	return NULL;
}

/* The document at an upload's own place, if the answer has one for each and this one names no other hash. */
static const cJSON *find_by_place(const cJSON *list, int count, int place)
{
	const cJSON *item = cJSON_GetArraySize(list) == count ? unwrap(cJSON_GetArrayItem(list, place)) : NULL;
	const cJSON *hash = item ? cJSON_GetObjectItemCaseSensitive(item, "sha256") : NULL;

	return cJSON_IsString(hash) ? NULL : item;
}

static int find_in_session(struct raydocs *s, struct call *call, struct upload *u);

/* The service said yes but not to what: look. */
static void settle_by_looking(struct raydocs *s, struct call *call, struct member *m)
{
	int r = find_in_session(s, call, m->u);

	if (r == 0) {
		settle(m, 0, NULL);
		return;
	}
	struct fault fault = call->fault;
	if (r == -ENOENT) {
		fault = (struct fault){ .kind = FAULT_AWAY, .retry_after_ms = -1 };
		snprintf(fault.words, sizeof(fault.words), "the service accepted the document and does not show it");
		r = -EIO;
	}
	fault.may_have_happened = true;
	settle(m, r, &fault);
	call_forget_fault(call);
}

/* Which of the keys we sent does a refusal name ("keys.3")? Also any other field, as {prefix}.N. */
static bool names_member(const cJSON *errors, const char *prefix, int place)
{
	const cJSON *field;
	char name[64];

	snprintf(name, sizeof(name), "%s.%d", prefix, place);
	cJSON_ArrayForEach (field, errors) {
		size_t len = strlen(name);

		if (field->string && strncmp(field->string, name, len) == 0 &&
		    (field->string[len] == '\0' || field->string[len] == '.'))
			return true;
	}
	return false;
}

static bool names_field(const cJSON *errors, const char *name)
{
	const cJSON *field;

	cJSON_ArrayForEach (field, errors) {
		if (field->string && strncmp(field->string, name, strlen(name)) == 0)
			return true;
	}
	return false;
}

/* A refusal (400, 422, 409, 413) of a request for several: who is to blame? */
static void settle_refused(struct member **group, int count, const struct fault *fault, const struct http_reply *reply,
			   const char *field, int error)
{
	CLEANUP(json_release) cJSON *body = NULL;
	const cJSON *errors = NULL;
	struct fault key_fault = *fault;
	bool is_named = false;

	if (fault->kind == FAULT_INVALID && reply->body_bytes > 0 &&
	    json_parse(reply->body, reply->body_bytes, &body) == 0)
		errors = cJSON_GetObjectItemCaseSensitive(body, "errors");
	key_fault.kind = FAULT_KEY;
	for (int i = 0; i < count; i++)
		is_named = is_named || names_member(errors, field, i);
	for (int i = 0; i < count; i++) {
		if (is_named ? names_member(errors, field, i) : count == 1 && names_field(errors, field))
			settle(group[i], error, &key_fault);
		else if (count > 1) /* again, without the guilty or one by one: nothing is wrong with this one that we
				       know of */
			settle(group[i], -EAGAIN, NULL);
		else
			settle(group[i], error, fault);
	}
}

static void settle_all(struct member **group, int count, const struct fault *fault, int error)
{
	for (int i = 0; i < count; i++)
		settle(group[i], error, fault);
}

static bool is_about_one(const struct fault *fault)
{
	return fault->kind == FAULT_INVALID || fault->kind == FAULT_CONFLICT || fault->kind == FAULT_TOO_LARGE;
}

/* Nobody says whether a refused request had its effect on the keys it did not blame: one look at the session tells,
 * before they are sent again and turn out to be used up. */
static void settle_taken(struct raydocs *s, struct call *call, struct member **group, int count)
{
	CLEANUP(listing_release) struct listing *found = NULL;
	struct walk w = { .s = s, .call = call, .session_id = group[0]->u->session_id };
	bool is_sound;

	if (count == 1)
		return;
	int r = walk_soundly(&w, NULL, &found, &is_sound);
	walk_release(&w);
	call_forget_fault(call);
	if (r < 0)
		return; /* they are tried again all the same */
	for (int i = 0; i < count; i++) {
		int at = group[i]->u->error == -EAGAIN ? listing_find_hash(found, group[i]->u->sha256) : -1;

		if (at >= 0 && pick_document(s, found, at, &group[i]->u->document) == 0) {
			group[i]->u->step = UPLOAD_ATTACHED;
			settle(group[i], 0, NULL);
		}
	}
}

/* One request for a group, to {session}/documents/{route} with {field: [texts]}. */
static int post_group(struct raydocs *s, struct call *call, const char *session_id, const char *route,
		      const char *field, const char *const *texts, int count, struct http_reply *ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(buf_release) struct buf text = BUF(BODY_BYTES_MAX);

	add_text_list(&text, field, texts, count);
	const struct http_request q = { .method = "POST",
					.body = buf_text(&text),
					.ability = "sessions-write",
					.path = path_add(&path, "/extractions/sessions/", session_id, route, NULL) };
	if (!q.path || !q.body)
		return call_no_memory(call);
	return http_do(s->http, call, &q, ret);
}

/* Keys become documents of the session: the documented third step. */
static void attach_keys(struct raydocs *s, struct call *call, struct member **group, int count)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	CLEANUP(json_release) cJSON *body = NULL;
	const char *keys[BATCH_MAX];
	int64_t asked_ms = clock_now_ms();

	for (int i = 0; i < count; i++)
		keys[i] = group[i]->t.key;
	int r = post_group(s, call, group[0]->u->session_id, "/documents/upload", "keys", keys, count, &reply);
	struct fault fault = call->fault;
	if (r < 0 && is_about_one(&fault)) {
		settle_refused(group, count, &fault, &reply, "keys", r);
		settle_taken(s, call, group, count);
	} else if (r < 0) {
		settle_all(group, count, &fault, r);
	}
	if (r < 0)
		return;
	if (reply.body_bytes > 0)
		(void)json_parse(reply.body, reply.body_bytes, &body); /* unreadable: we look for what became of them */
	for (int i = 0; i < count; i++) {
		const cJSON *item = find_by_hash(read_list(body), group[i]->u->sha256);

		if (!item)
			item = find_by_place(read_list(body), count, i);
		if (item)
			settle_found(s, group[i], item, asked_ms);
		else
			settle_by_looking(s, call, group[i]);
		if (group[i]->u->document)
			learn_about_names(s, group[i]->u);
	}
}

/* Documents of the workspace become documents of the session. */
static void attach_ids(struct raydocs *s, struct call *call, struct member **group, int count)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	CLEANUP(json_release) cJSON *body = NULL;
	const char *ids[BATCH_MAX];
	int64_t asked_ms = clock_now_ms();

	for (int i = 0; i < count; i++)
		ids[i] = group[i]->t.document_id;
	int r = post_group(s, call, group[0]->u->session_id, "/documents/attach", "document_ids", ids, count, &reply);
	struct fault fault = call->fault;
	if (r < 0 && (is_about_one(&fault) || (fault.kind == FAULT_GONE && count > 1))) {
		/* A document that went meanwhile is made again from the bytes; the key is used up. */
		settle_refused(group, count, &fault, &reply, "document_ids", r);
		for (int i = 0; i < count; i++) {
			if (group[i]->u->error != -EAGAIN && group[i]->u->fault.kind == FAULT_INVALID)
				group[i]->u->fault.kind = FAULT_KEY;
		}
	} else if (r < 0) {
		settle_all(group, count, &fault, r);
	}
	if (r < 0)
		return;
	if (reply.body_bytes > 0)
		(void)json_parse(reply.body, reply.body_bytes, &body); /* likewise */
	for (int i = 0; i < count; i++) {
		const cJSON *item = find_by_id(read_list(body), ids[i]);

		if (item)
			settle_found(s, group[i], item, asked_ms);
		else
			settle_by_looking(s, call, group[i]);
	}
}

/* The key becomes a document of the workspace, under the name we say. True: its id is in the ticket now. */
static bool create_document(struct raydocs *s, struct call *call, const char *workspace_id, struct member *m)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(buf_release) struct buf text = BUF(BODY_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;

	buf_add(&text, "{\"key\":");
	json_add_quoted(&text, m->t.key);
	buf_add(&text, ",\"filename\":");
	json_add_quoted(&text, m->u->name);
	buf_add(&text, ",\"mime\":");
	json_add_quoted(&text, mime_by_name(m->u->name));
	buf_add(&text, "}");
	const struct http_request q = { .method = "POST",
					.body = buf_text(&text),
					.ability = "documents-write",
					.path = path_add(&path, "/workspaces/", workspace_id, "/documents", NULL),
					.accepts_any = s->naming == NAMING_AUTO };
	int r = q.path && q.body ? http_json(s->http, call, &q, &body) : call_no_memory(call);
	struct fault fault = call->fault;
	call_forget_fault(call);
	if (r == 0) {
		struct json_in in = json_in_begin(unwrap(body), "raydocs: new document");

		m->t.document_id = json_copy_id(&in, "id");
		r = json_in_end(&in);
		if (r == 0)
			r = ticket_write(m->u, &m->t);
		if (r == 0)
			return true;
		/* It is made: the same bytes will be given the same document. */
		fault = (struct fault){ .kind = FAULT_AWAY, .retry_after_ms = -1, .may_have_happened = true };
		settle(m, r, &fault);
		return false;
	}
	if (fault.kind == FAULT_FORBIDDEN && s->naming == NAMING_AUTO)
		return false; /* not settled: it goes the other way */
	if (fault.kind == FAULT_INVALID && m->u->is_retry && find_in_session(s, call, m->u) == 0) {
		settle(m, 0, NULL); /* the key was used up by an attempt whose answer was lost */
		return false;
	}
	call_forget_fault(call);
	if (fault.kind == FAULT_INVALID)
		fault.kind = FAULT_KEY; /* made again from a new key, equal bytes are the same document */
	settle(m, r, &fault);
	return false;
}

/* The workspace of a session; *ret is NULL when nobody tells. */
static int workspace_of_session(struct raydocs *s, struct call *call, const char *session_id, char **ret)
{
	CLEANUP(text_release) char *template_id = NULL;
	CLEANUP(text_release) char *name = NULL;

	{
		SCOPED_LOCK(&s->lock);
		const struct known *k = known_find(s->sessions, session_id);

		template_id = k && k->value ? strdup(k->value) : NULL;
	}
	if (!template_id) {
		CLEANUP(session_release) struct session session = { 0 };
		int r = raydocs_get_session(&s->self, call, session_id, &session);

		if (r < 0)
			return r;
		*ret = session.workspace_id;
		session.workspace_id = NULL;
		return 0;
	}
	return workspace_of_template(s, call, template_id, false, ret, &name);
}

static bool wants_workspace(struct raydocs *s)
{
	SCOPED_LOCK(&s->lock);
	return s->naming == NAMING_WORKSPACE ||
	       (s->naming == NAMING_AUTO && s->names_are_lost && !s->workspace_refused);
}

static void workspace_refuses(struct raydocs *s)
{
	SCOPED_LOCK(&s->lock);
	if (!s->workspace_refused)
		log_info("raydocs: the token may not give names to documents (that needs documents-write and "
			 "templates-read); they "
			 "keep going into the session directly, and are shown under their names on this mount");
	s->workspace_refused = true;
}

/* Gives each key a document of the workspace, where that is wanted and possible. */
static void create_documents(struct raydocs *s, struct call *call, struct batch *batch)
{
	CLEANUP(text_release) char *workspace_id = NULL;
	bool has_asked = false;

	for (int i = 0; i < batch->count; i++) {
		struct member *m = &batch->members[i];

		if (m->is_settled || m->t.document_id || !wants_workspace(s))
			continue;
		if (!has_asked) {
			int r = workspace_of_session(s, call, m->u->session_id, &workspace_id);

			has_asked = true;
			if (r < 0) {
				struct fault fault = call->fault;

				for (int j = i; j < batch->count; j++)
					settle(&batch->members[j], r, &fault);
				return;
			}
		}
		if (!workspace_id && s->naming == NAMING_AUTO) {
			workspace_refuses(s);
			return;
		}
		if (!workspace_id) {
			struct fault fault = { .kind = FAULT_FORBIDDEN, .http_status = 403, .retry_after_ms = -1 };

			snprintf(fault.words, sizeof(fault.words),
				 "naming=workspace needs to learn the session's workspace");
			snprintf(fault.ability, sizeof(fault.ability), "templates-read");
			settle(m, -EACCES, &fault);
			continue;
		}
		if (!create_document(s, call, workspace_id, m) && !m->is_settled)
			workspace_refuses(s);
	}
}

/* What is left of a batch and has (or has not) become a document of the workspace. */
static int group_of(struct batch *batch, bool has_document, struct member **ret)
{
	int count = 0;

	for (int i = 0; i < batch->count; i++) {
		struct member *m = &batch->members[i];

		if (!m->is_settled && (m->t.document_id != NULL) == has_document)
			ret[count++] = m;
	}
	return count;
}

static int raydocs_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count)
{
	struct raydocs *s = raydocs_from(b);
	CLEANUP(batch_release) struct batch batch = { .count = count };
	struct member *group[BATCH_MAX];

	for (int i = 0; i < count; i++) {
		struct member *m = &batch.members[i];

		m->u = us[i];
		if (ticket_read(us[i]->ticket, &m->t) < 0) {
			int r = bad_ticket(call);

			settle(m, r, &call->fault);
			call_forget_fault(call);
		}
	}
	create_documents(s, call, &batch);
	int ready = group_of(&batch, true, group);
	if (ready > 0)
		attach_ids(s, call, group, ready);
	ready = group_of(&batch, false, group);
	if (ready > 0)
		attach_keys(s, call, group, ready);
	/* What holds for all of them is told as such. */
	for (int i = 0; i < count; i++) {
		if (us[i]->error != us[0]->error || us[i]->fault.kind != us[0]->fault.kind)
			return 0;
	}
	call->fault = us[0]->fault;
	return us[0]->error;
}

/* Searches the session's own record and then its pages. Equal bytes are one document here, so whichever has the hash is
 * it. */
static int find_in_session(struct raydocs *s, struct call *call, struct upload *u)
{
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(listing_release) struct listing *found = NULL;
	struct walk w = { .s = s, .call = call, .session_id = u->session_id, .wanted_sha256 = u->sha256 };
	int64_t asked_ms = clock_now_ms();
	bool is_sound;
	int r = get_session_json(s, call, u->session_id, &body);

	if (r < 0)
		return r;
	const cJSON *item = find_by_hash(cJSON_GetObjectItemCaseSensitive(unwrap(body), "documents"), u->sha256);
	if (item && one_document(s, item, asked_ms, &u->document) == 0) {
		u->step = UPLOAD_ATTACHED;
		return 0;
	}
	r = walk_soundly(&w, NULL, &found, &is_sound);
	walk_release(&w);
	if (r < 0)
		return r;
	int at = listing_find_hash(found, u->sha256);
	if (at >= 0) {
		r = pick_document(s, found, at, &u->document);
		if (r == 0)
			u->step = UPLOAD_ATTACHED;
		return r;
	}
	if (!is_sound) { /* it may have slipped between two pages both times */
		call->fault.kind = FAULT_AWAY;
		snprintf(call->fault.words, sizeof(call->fault.words), "the session's list does not stand still");
		return -EIO;
	}
	return -ENOENT;
}

static int raydocs_upload_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids,
			       int not_count)
{
	int r = find_in_session(raydocs_from(b), call, u);

	/* "Surely not there" is told from "no such session" by the fault. */
	if (r == -ENOENT && call->fault.kind != FAULT_GONE)
		call_forget_fault(call);
	return r;
}

/* ---- checking ------------------------------------------------------------------------------------------------ */

/* Any answer about what the token may do proves that it is one. */
static bool proves_token(const struct call *call)
{
	return is_refusal(call);
}

static int raydocs_check(struct backend *b, struct call *call)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	int r = http_do(raydocs_from(b)->http, call, &workspaces_request, &reply);

	if (r < 0 && !proves_token(call))
		return r;
	call_forget_fault(call);
	return 0;
}

/* "templates-read: missing"; a right that works shows by any answer but 403. */
static int describe_right(struct raydocs *s, struct call *call, const char *ability, const char *path, const char *note,
			  struct buf *ret)
{
	CLEANUP(http_reply_release) struct http_reply reply = { 0 };
	const struct http_request q = { .method = "GET", .path = path, .ability = ability, .accepts_any = true };
	int r = http_do(s->http, call, &q, &reply);
	bool is_missing = call->fault.kind == FAULT_FORBIDDEN;

	if (r < 0 && !is_refusal(call))
		return r;
	buf_addf(ret, "%s: %s%s\n", ability, is_missing ? "missing, " : "works, ", note);
	call_forget_fault(call);
	return 0;
}

static int describe_rights(struct raydocs *s, struct call *call, struct buf *ret)
{
	CLEANUP(workspace_list_release) struct workspace_list workspaces = { 0 };
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	int r = list_workspaces(s, call, &workspaces);

	if (r < 0 && !is_refusal(call))
		return r;
	buf_addf(ret, "token: accepted\n");
	if (r < 0)
		buf_addf(ret, "workspaces-read: %s, for choosing a template by name\n",
			 call->fault.kind == FAULT_FORBIDDEN ? "missing" : "no list came");
	else
		buf_addf(ret, "workspaces-read: works, %d workspaces\n", workspaces.count);
	call_forget_fault(call);
	/* No session has this id: the answer tells about the right alone. */
	r = describe_right(s, call, "sessions-read", "/extractions/sessions/00000000-0000-4000-8000-000000000000",
			   "for listing and reading sessions", ret);
	if (r < 0 || workspaces.count == 0)
		return r;
	if (path_add(&path, "/workspaces/", workspaces.items[0].id, "/extractions/templates", NULL))
		r = describe_right(s, call, "templates-read", buf_text(&path),
				   "for new folders and a session's workspace", ret);
	return r;
}

static int raydocs_describe(struct backend *b, struct call *call, struct buf *ret)
{
	struct raydocs *s = raydocs_from(b);
	int r = describe_rights(s, call, ret);

	if (r < 0)
		return r;
	buf_add(ret, "sessions-write, documents-write: not tried, an attempt would leave traces\n");
	limit_describe(s->limit, "this minute", ret);
	return ret->failed ? call_no_memory(call) : 0;
}

static void raydocs_tell_state(struct backend *b, struct buf *ret)
{
	struct raydocs *s = raydocs_from(b);

	limit_describe(s->limit, "this minute", ret);
	if (s->naming == NAMING_AUTO && wants_workspace(s))
		buf_add(ret, "naming: the service does not keep the names of what is uploaded into a session, so "
			     "documents go by way of "
			     "the workspace, which takes a name\n");
}

/* What is known of a single session cannot be another by now. */
static void raydocs_forget(struct backend *b, const char *session_id)
{
	struct raydocs *s = raydocs_from(b);
	SCOPED_LOCK(&s->lock);

	if (session_id)
		return;
	known_free_all(&s->templates);
	known_free_all(&s->sessions);
}

static void raydocs_stop(struct backend *b)
{
	atomic_store(&raydocs_from(b)->is_stopped, true);
	http_stop(raydocs_from(b)->http);
}

/* ---- opening ------------------------------------------------------------------------------------------------- */

static const struct backend_option options[] = {
	{ "naming", "auto|session|workspace", "auto",
	  "how a copied-in document gets its name at the service; workspace needs documents-write", false },
	{ NULL },
};

static const struct backend_caps caps = {
	.service = "raydocs",
	.title = "Raydocs",
	.token_help = "Make a token in the Raydocs dashboard under API Keys and tick sessions-read, sessions-write, "
		      "templates-read and workspaces-read (documents-write too, for naming=workspace).",
	.default_url = "https://api.raydocs.com",
	.formats = "pdf docx doc png jpg jpeg tiff pptx",
	.sessions = SESSIONS_GUESSED,
	.creates_sessions = true,
	.attaches = true,
	.attach_keeps_id = true,
	.detaches = true,
	.knows_sizes = true,
	.knows_hashes = true,
	.document_bytes_max =
		INT64_C(5) << 30, /* what one PUT to such a storage may hold; the service names no limit */
	.reuses_bytes = true,
	.attach_batch_max = BATCH_MAX,
	.key_lifetime_ms = INT64_C(24) * 3600 * 1000, /* of the key; a link that grew old is renewed on the way */
	.rate_per_min = 100,
	.folder_page = PAGE_DEFAULT,
};

static int read_token(void *arg, struct call *call, bool anew, struct secret **ret)
{
	struct raydocs *s = arg;
	CLEANUP(credentials_release) struct credentials found = { 0 };
	int r = s->read_credentials(s->arg, &found);

	if (r < 0)
		return r;
	if (!found.token)
		return -ENOKEY;
	*ret = found.token;
	found.token = NULL;
	return 0;
}

static int read_naming(const char *text, enum naming *ret, struct buf *why)
{
	if (!text || strcmp(text, "auto") == 0)
		*ret = NAMING_AUTO;
	else if (strcmp(text, "session") == 0)
		*ret = NAMING_SESSION;
	else if (strcmp(text, "workspace") == 0)
		*ret = NAMING_WORKSPACE;
	else {
		buf_addf(why, "naming is auto, session or workspace, and not '%s'", text);
		return -EINVAL;
	}
	return 0;
}

static void raydocs_close(struct backend *b)
{
	struct raydocs *s = raydocs_from(b);

	http_close(s->http);
	limit_free(s->limit);
	known_free_all(&s->templates);
	known_free_all(&s->sessions);
	free(s->scratch_dir);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static int raydocs_open(const struct backend_config *config, struct buf *why, struct backend **ret)
{
	struct raydocs *s = calloc(1, sizeof(*s));
	const struct limit_options limit = { .rate = config->rate_per_min ? config->rate_per_min : RATE,
					     .window_ms = WINDOW_MS,
					     .path = config->limit_path,
					     .subject = "raydocs" };
	const struct http_options http = { .subject = "raydocs",
					   .cafile = config->cafile,
					   .proxy = config->proxy,
					   .base_url = config->url ? config->url : caps.default_url,
					   .read_token = read_token,
					   .read_words = read_words,
					   .arg = s };
	int r;

	if (!s)
		return -ENOMEM;
	pthread_mutex_init(&s->lock, NULL);
	s->self.caps = caps;
	s->read_credentials = config->read_credentials;
	s->arg = config->arg;
	atomic_store(&s->page_documents, PAGE_DEFAULT);
	s->scratch_dir = config->scratch_dir ? strdup(config->scratch_dir) : NULL;
	r = config->scratch_dir && !s->scratch_dir ? -ENOMEM : 0;
	if (r == 0)
		r = read_naming(config->option ? config->option(config->arg, "naming", 0) : NULL, &s->naming, why);
	s->self.caps.keeps_names = s->naming == NAMING_WORKSPACE;
	if (r == 0)
		r = limit_new(&limit, &s->limit);
	if (r == 0) {
		struct http_options own = http;

		own.limit = s->limit;
		r = http_open(&own, why, &s->http);
	}
	if (r < 0) {
		raydocs_close(&s->self);
		return r;
	}
	*ret = &s->self;
	return 0;
}

const struct backend_ops raydocs_backend = {
	.name = "raydocs",
	.options = options,
	.open = raydocs_open,
	.close = raydocs_close,
	.check = raydocs_check,
	.describe = raydocs_describe,
	.forget = raydocs_forget,
	.tell_state = raydocs_tell_state,
	.stop = raydocs_stop,
	.list_sessions = raydocs_list_sessions,
	.get_session = raydocs_get_session,
	.learn_session = raydocs_learn_session,
	.list_templates = raydocs_list_templates,
	.create_session = raydocs_create_session,
	.find_session_id = raydocs_find_session_id,
	.list_documents = raydocs_list_documents,
	.fetch_document = raydocs_fetch_document,
	.attach = raydocs_attach,
	.detach = raydocs_detach,
	.run = raydocs_run,
	.upload_sign = raydocs_upload_sign,
	.upload_store = raydocs_upload_store,
	.upload_attach = raydocs_upload_attach,
	.upload_find = raydocs_upload_find,
};
