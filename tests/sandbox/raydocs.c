/* The Raydocs API as its documentation has it. Where that contradicts itself a switch named "shape.…" picks the
 * variant, and where it is silent a switch picks among what a service might do.
 *
 * Nothing happens by itself: how far a parsing or a run is follows from when it was asked for and the clock. */
#include "tests/sandbox/sandbox.h"
#include "tests/sandbox/storage.h"
#include "tests/sandbox/xlsx.h"

#include <assert.h>
#include <openssl/evp.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define BODY_BYTES_MAX (4 << 20)
#define PER_PAGE_MAX 100
#define ARGS_MAX 3

struct token {
	char *text, *user;
	cJSON *abilities;                 /* NULL: all */
	int64_t workspace_id, expires_ms; /* 0: any, never */
	bool is_revoked;
	UT_hash_handle hh;
};

struct workspace {
	int64_t id, created_ms;
	char *name, *icon;
	cJSON *members;
	UT_hash_handle hh;
};

struct template
{
	char *id, *name;
	int64_t workspace_id, created_ms;
	UT_hash_handle hh;
};

struct parsing {
	char *id, *config_hash, *version;
	int64_t queued_ms, started_ms, done_ms; /* when each phase begins */
	bool fails;
};

struct document {
	char *id, *filename, *filename_json; /* filename_json: raw JSON told instead of filename */
	int64_t workspace_id, created_ms, pages;
	char *mime, *status; /* status: told instead of what the parsings say */
	char *source_url;
	char sha256[SHA256_HEX_BYTES];
	struct content content;
	struct parsing *parsings;
	size_t parsing_count;
	bool fails;
	cJSON *fields, *without; /* replaced in, left out of its record */
	char *hash_key;          /* "workspace:sha256"; NULL: not the one that equal bytes find */
	UT_hash_handle hh, by_hash;
};

struct session {
	char *id, *name, *template_id, *status;
	int64_t created_ms, updated_ms;
	struct document **documents; /* oldest attachment first */
	size_t count, room;
	cJSON *fields;
	UT_hash_handle hh;
};

struct result {
	char *id, *session_id, *title;
	int64_t created_ms, started_ms, done_ms;
	bool waited, fails;
	cJSON *refs, *data;
	UT_hash_handle hh;
};

struct raydocs {
	struct sandbox *sandbox;
	struct storage storage;
	struct token *tokens;
	struct workspace *workspaces;
	struct template *templates;
	struct session *sessions;
	struct document *documents, *by_hash;
	struct result *results;
	int64_t series; /* of generated contents */
};

static const struct switch_def switches[] = {
	{ "rate.limit", "off", "off|number", "API requests a minute and client address" },
	{ "rate.headers", "on", "on|off", "Retry-After and X-RateLimit-*" },
	{ "strict.accept", "off", "on|off", "without Accept: application/json an HTML error" },
	{ "strict.fields", "on", "on|off", "refuse body fields the documentation does not list" },
	{ "sign.status", "200", "200|201", "of POST /vapor/signed-storage-url" },
	{ "sign.headers", "string", "string|list|empty",
	  "how headers to send are told; empty: none but Host is signed" },
	{ "sign.acl", "off", "on|off", "x-amz-acl is signed" },
	{ "sign.content_type", "optional", "optional|required", "in the request" },
	{ "sign.key", "uuid", "uuid|name", "key without or with a file name at its end" },
	{ "sign.expires_ms", "300000", "number", "life of an upload link" },
	{ "link.expires_ms", "600000", "number", "life of a download link" },
	{ "link.expires_at", "off", "on|off", "told with the link" },
	{ "storage.range", "on", "on|off", "Range is honoured" },
	{ "storage.redirect", "off", "on|off", "a download link redirects first" },
	{ "upload.status", "200", "200|201", "of documents/upload" },
	{ "upload.names", "document", "document|key|uuid|none|same",
	  "filename by session upload: document-<8 hex>.<ext>, the key's last part, uuid.<ext>, empty, or "
	  "document.<ext> for all" },
	{ "upload.partial", "off", "on|off", "good keys of a call with bad ones are taken, then 422" },
	{ "upload.order", "keys", "keys|reverse", "of data in the answer" },
	{ "upload.reuse_key", "off", "on|off", "a key works more than once" },
	{ "upload.check", "either", "either|type|magic|both|off", "what has to name an accepted format" },
	{ "upload.empty", "refuse", "refuse|accept", "empty objects" },
	{ "upload.max_bytes", "0", "number", "0: no limit; beyond: 422" },
	{ "upload.legacy", "off", "on|off", "POST /extractions/sessions/ID/documents {key, filename}" },
	{ "dedup", "on", "on|off", "equal bytes of a workspace are one document" },
	{ "dedup.name", "old", "old|new", "whose filename stays" },
	{ "attach.twice", "ok", "ok|422", "attaching what is attached" },
	{ "session.delete", "purge", "purge|keep", "documents attached nowhere else" },
	{ "autoparse", "off", "on|off", "documents are parsed unasked" },
	{ "parse.queued_ms", "500", "number", "by the clock" },
	{ "parse.ms", "1500", "number", "by the clock" },
	{ "parse.fail", "", "text", "extended regex of filenames whose parsing fails" },
	{ "run.created_ms", "200", "number", "before a run with parsed documents starts" },
	{ "run.ms", "1000", "number", "of extraction" },
	{ "run.empty", "422", "422|201", "run of a session without documents" },
	{ "chunks.unparsed", "404", "404|422|empty", "before parsing" },
	{ "list.per_page", "15", "number", "of lists without per_page" },
	{ "list.order", "oldest", "oldest|newest|random", "of session documents; random: anew at each request" },
	{ "list.last_page_add", "0", "number", "a lie about last_page" },
	{ "list.total_add", "0", "number", "a lie about total" },
	{ "session.embed", "all", "all|none|number", "documents in GET session" },
	{ "session.embed_full", "off", "on|off", "embedded documents have all fields" },
	{ "sessions.list", "off", "off|on|bare", "undocumented GET /extractions/sessions" },
	{ "sessions.of_template", "off", "off|on|bare", "undocumented GET /extractions/templates/ID/sessions" },
	{ "sessions.of_workspace", "off", "off|on|bare", "undocumented GET /workspaces/ID/extractions/sessions" },
	{ "shape.workspaces", "wrapped", "wrapped|bare", "list of workspaces" },
	{ "shape.documents", "schema", "schema|prose|bare|nometa", "session documents; without meta all come at once" },
	{ "shape.results", "wrapped", "wrapped|bare", "list of results" },
	{ "shape.results_data", "off", "on|off", "listed results carry data" },
	{ "shape.wrap", "flat", "flat|data", "single objects" },
	{ "shape.size", "size", "size|meta|both|none", "size, meta.file_size" },
	{ "shape.ids", "integer", "integer|uuid|decimal", "workspace_id of documents" },
	{ "shape.mime", "mime", "mime|mime_type|none", "media type" },
	{ "shape.source", "flat", "flat|nested|both|none", "source_type or source.type" },
	{ "shape.status", "schema", "schema|table|parsed|ready|old", "words of a document's status" },
	{ "shape.run", "run", "run|ack", "answer to a run" },
	{ "shape.chunks", "blocks", "blocks|text", "bare blocks, or {data} of plain text" },
	{ "shape.audit", "audit_data", "audit_data|reasoning", "of results" },
	{ "shape.session_status", "off", "on|off", "sessions have a status" },
	{ "shape.times", "seconds", "seconds|micros", "fractions" },
	{ "shape.extra", "off", "on|off", "fields nobody foresaw" },
	{ "shape.nulls", "off", "on|off", "absent optional fields are null" },
};

static const struct {
	const char *mime, *extension;
} formats[] = {
	{ "application/pdf", "pdf" },
	{ "application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx" },
	{ "application/msword", "doc" },
	{ "image/png", "png" },
	{ "image/jpeg", "jpg" },
	{ "image/tiff", "tiff" },
	{ "application/vnd.openxmlformats-officedocument.presentationml.presentation", "pptx" },
};

struct storage *storage_from(void *state)
{
	return &((struct raydocs *)state)->storage;
}

static void *allocate(size_t bytes)
{
	void *p = calloc(1, bytes);
	if (p == NULL)
		abort();
	return p;
}

/* --- Things and their ends --- */

static void document_free(struct document *d)
{
	for (size_t i = 0; i < d->parsing_count; i++) {
		free(d->parsings[i].id);
		free(d->parsings[i].config_hash);
		free(d->parsings[i].version);
	}
	free(d->parsings);
	free(d->id);
	free(d->filename);
	free(d->filename_json);
	free(d->mime);
	free(d->status);
	free(d->source_url);
	free(d->hash_key);
	content_release(&d->content);
	cJSON_Delete(d->fields);
	cJSON_Delete(d->without);
	free(d);
}

static void session_free(struct session *s)
{
	free(s->id);
	free(s->name);
	free(s->template_id);
	free(s->status);
	free(s->documents);
	cJSON_Delete(s->fields);
	free(s);
}

static void result_free(struct result *x)
{
	free(x->id);
	free(x->session_id);
	free(x->title);
	cJSON_Delete(x->refs);
	cJSON_Delete(x->data);
	free(x);
}

static void forget_all(struct raydocs *r)
{
	struct token *t, *next_token;
	HASH_ITER (hh, r->tokens, t, next_token) {
		HASH_DEL(r->tokens, t);
		free(t->text);
		free(t->user);
		cJSON_Delete(t->abilities);
		free(t);
	}
	struct workspace *w, *next_workspace;
	HASH_ITER (hh, r->workspaces, w, next_workspace) {
		HASH_DEL(r->workspaces, w);
		free(w->name);
		free(w->icon);
		cJSON_Delete(w->members);
		free(w);
	}
	struct template *p, *next_template;
	HASH_ITER (hh, r->templates, p, next_template) {
		HASH_DEL(r->templates, p);
		free(p->id);
		free(p->name);
		free(p);
	}
	struct session *s, *next_session;
	HASH_ITER (hh, r->sessions, s, next_session) {
		HASH_DEL(r->sessions, s);
		session_free(s);
	}
	HASH_CLEAR(by_hash, r->by_hash);
	struct document *d, *next_document;
	HASH_ITER (hh, r->documents, d, next_document) {
		HASH_DEL(r->documents, d);
		document_free(d);
	}
	struct result *x, *next_result;
	HASH_ITER (hh, r->results, x, next_result) {
		HASH_DEL(r->results, x);
		result_free(x);
	}
	r->series = 0;
}

static struct workspace *find_workspace(struct raydocs *r, int64_t id)
{
	struct workspace *w = NULL;
	HASH_FIND(hh, r->workspaces, &id, sizeof id, w);
	return w;
}

static struct template *find_template(struct raydocs *r, const char *id)
{
	struct template *t = NULL;
	HASH_FIND_STR(r->templates, id, t);
	return t;
}

static struct session *find_session(struct raydocs *r, const char *id)
{
	struct session *s = NULL;
	HASH_FIND_STR(r->sessions, id, s);
	return s;
}

static struct document *find_document(struct raydocs *r, const char *id)
{
	struct document *d = NULL;
	HASH_FIND_STR(r->documents, id, d);
	return d;
}

static struct document *find_bytes(struct raydocs *r, int64_t workspace_id, const char *sha256)
{
	struct document *d = NULL;
	CLEANUP(text_free) char *key = text_format("%lld:%s", (long long)workspace_id, sha256);
	HASH_FIND(by_hash, r->by_hash, key, strlen(key), d);
	return d;
}

static int64_t session_workspace(struct raydocs *r, const struct session *s)
{
	const struct template *t = find_template(r, s->template_id);
	return t == NULL ? 0 : t->workspace_id;
}

static void session_append(struct session *s, struct document *d)
{
	if (s->count == s->room) {
		s->room = s->room * 2 + 16;
		s->documents = realloc(s->documents, s->room * sizeof(struct document *));
		if (s->documents == NULL)
			abort();
	}
	s->documents[s->count++] = d;
}

static bool session_has(const struct session *s, const struct document *d)
{
	for (size_t i = 0; i < s->count; i++)
		if (s->documents[i] == d)
			return true;
	return false;
}

static bool session_remove(struct session *s, const struct document *d)
{
	for (size_t i = 0; i < s->count; i++) {
		if (s->documents[i] != d)
			continue;
		memmove(&s->documents[i], &s->documents[i + 1], (s->count - i - 1) * sizeof(struct document *));
		s->count--;
		return true;
	}
	return false;
}

static void session_touch(struct raydocs *r, struct session *s)
{
	s->updated_ms = sandbox_now_ms(r->sandbox);
	sandbox_changed(r->sandbox);
}

static void document_unindex(struct raydocs *r, struct document *d)
{
	if (d->hash_key == NULL)
		return;
	HASH_DELETE(by_hash, r->by_hash, d);
	free(d->hash_key);
	d->hash_key = NULL;
}

static void document_index(struct raydocs *r, struct document *d)
{
	document_unindex(r, d);
	if (find_bytes(r, d->workspace_id, d->sha256) != NULL)
		return;
	d->hash_key = text_format("%lld:%s", (long long)d->workspace_id, d->sha256);
	HASH_ADD_KEYPTR(by_hash, r->by_hash, d->hash_key, strlen(d->hash_key), d);
}

static struct document *document_add(struct raydocs *r, const char *id, int64_t workspace_id)
{
	struct document *d = allocate(sizeof *d);
	d->id = id == NULL ? uuid_new() : text_copy(id);
	d->workspace_id = workspace_id;
	d->created_ms = sandbox_now_ms(r->sandbox);
	d->pages = 1;
	HASH_ADD_KEYPTR(hh, r->documents, d->id, strlen(d->id), d);
	sandbox_changed(r->sandbox);
	return d;
}

static void document_delete(struct raydocs *r, struct document *d)
{
	for (struct session *s = r->sessions; s != NULL; s = s->hh.next)
		session_remove(s, d);
	document_unindex(r, d);
	HASH_DEL(r->documents, d);
	bool is_shared = false;
	for (struct document *o = r->documents; o != NULL && d->content.path != NULL && !is_shared; o = o->hh.next)
		is_shared = o->content.path != NULL && strcmp(o->content.path, d->content.path) == 0;
	if (d->content.path != NULL && !is_shared)
		unlink(d->content.path);
	document_free(d);
	sandbox_changed(r->sandbox);
}

static void session_delete(struct raydocs *r, struct session *s)
{
	struct result *x, *next;
	HASH_ITER (hh, r->results, x, next) {
		if (strcmp(x->session_id, s->id) != 0)
			continue;
		HASH_DEL(r->results, x);
		result_free(x);
	}
	HASH_DEL(r->sessions, s);
	for (size_t i = 0; i < s->count && switch_is(r->sandbox, "session.delete", "purge"); i++) {
		bool is_elsewhere = false;
		for (struct session *o = r->sessions; o != NULL && !is_elsewhere; o = o->hh.next)
			is_elsewhere = session_has(o, s->documents[i]);
		if (!is_elsewhere)
			document_delete(r, s->documents[i]);
	}
	session_free(s);
	sandbox_changed(r->sandbox);
}

static struct session *session_add(struct raydocs *r, const char *id, const char *name, const char *template_id)
{
	struct session *s = allocate(sizeof *s);
	s->id = id == NULL ? uuid_new() : text_copy(id);
	s->name = text_copy(name);
	s->template_id = text_copy(template_id);
	s->created_ms = s->updated_ms = sandbox_now_ms(r->sandbox);
	HASH_ADD_KEYPTR(hh, r->sessions, s->id, strlen(s->id), s);
	sandbox_changed(r->sandbox);
	return s;
}

/* --- Parsing, by the clock --- */

enum phase { UPLOADED, QUEUED, PARSING, READY, FAILED };

static enum phase parsing_phase(const struct parsing *p, int64_t now)
{
	return now < p->started_ms ? QUEUED : now < p->done_ms ? PARSING : p->fails ? FAILED : READY;
}

static enum phase document_phase(const struct document *d, int64_t now)
{
	return d->parsing_count == 0 ? UPLOADED : parsing_phase(&d->parsings[d->parsing_count - 1], now);
}

static bool name_is_doomed(struct raydocs *r, const struct document *d)
{
	const char *pattern = switch_text(r->sandbox, "parse.fail");
	regex_t regex;
	if (*pattern == 0 || d->filename == NULL || regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB) != 0)
		return false;
	bool found = regexec(&regex, d->filename, 0, NULL, 0) == 0;
	regfree(&regex);
	return found;
}

static struct parsing *parse(struct raydocs *r, struct document *d, const char *config_hash, bool at_once)
{
	struct parsing *p = NULL;
	for (size_t i = 0; i < d->parsing_count && p == NULL; i++) {
		if (strcmp(d->parsings[i].config_hash, config_hash) != 0)
			continue;
		struct parsing again = d->parsings[i]; /* the newest stands last */
		memmove(&d->parsings[i], &d->parsings[i + 1], (d->parsing_count - i - 1) * sizeof *d->parsings);
		p = &d->parsings[d->parsing_count - 1];
		*p = again;
	}
	if (p == NULL) {
		d->parsings = realloc(d->parsings, (d->parsing_count + 1) * sizeof *d->parsings);
		if (d->parsings == NULL)
			abort();
		p = &d->parsings[d->parsing_count++];
		*p = (struct parsing){ .id = uuid_new(),
				       .config_hash = text_copy(config_hash),
				       .version = text_copy("v1") };
	}
	p->queued_ms = sandbox_now_ms(r->sandbox);
	p->started_ms = p->queued_ms + (at_once ? 0 : switch_number(r->sandbox, "parse.queued_ms", 0));
	p->done_ms = p->started_ms + (at_once ? 0 : switch_number(r->sandbox, "parse.ms", 0));
	p->fails = d->fails || name_is_doomed(r, d);
	free(d->status);
	d->status = NULL;
	sandbox_changed(r->sandbox);
	return p;
}

/* Which configuration a template parses by: any 64 digits that stay the same. */
static void config_hash_of(const char *template_id, char ret[SHA256_HEX_BYTES])
{
	unsigned char digest[32];
	EVP_Digest(template_id, strlen(template_id), digest, NULL, EVP_sha256(), NULL);
	bytes_to_hex(digest, sizeof digest, ret);
}

/* --- Records --- */

static void add_time(struct raydocs *r, cJSON *to, const char *key, int64_t ms)
{
	CLEANUP(text_free) char *text = time_text(ms, switch_is(r->sandbox, "shape.times", "micros"));
	cJSON_AddStringToObject(to, key, text);
}

static cJSON *workspace_ref(struct raydocs *r, int64_t id, bool prose)
{
	if (prose || switch_is(r->sandbox, "shape.ids", "uuid")) {
		CLEANUP(text_free) char *text = text_format("50000000-0000-4000-8000-%012lld", (long long)id);
		return cJSON_CreateString(text);
	}
	if (switch_is(r->sandbox, "shape.ids", "decimal")) {
		CLEANUP(text_free) char *text = text_format("%lld", (long long)id);
		return cJSON_CreateString(text);
	}
	return cJSON_CreateNumber((double)id);
}

static const char *status_word(struct raydocs *r, const struct document *d, int64_t now)
{
	static const struct {
		const char *name, *words[5];
	} vocabularies[] = {
		{ "schema", { "uploaded", "queued", "parsing", "processed", "failed" } },
		{ "table", { "uploaded", "processing", "processing", "processed", "failed" } },
		{ "parsed", { "uploaded", "queued", "parsing", "parsed", "failed" } },
		{ "ready", { "uploaded", "queued", "processing", "ready", "failed" } },
		{ "old", { "pending", "pending", "processing", "processed", "failed" } },
	};
	if (d->status != NULL)
		return d->status;
	for (size_t i = 0; i < COUNT_OF(vocabularies); i++)
		if (switch_is(r->sandbox, "shape.status", vocabularies[i].name))
			return vocabularies[i].words[document_phase(d, now)];
	return "uploaded";
}

static void merge(cJSON *record, const cJSON *fields, const cJSON *without)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, fields) {
		cJSON_DeleteItemFromObjectCaseSensitive(record, one->string);
		cJSON_AddItemToObject(record, one->string, cJSON_Duplicate(one, true));
	}
	cJSON_ArrayForEach (one, without)
		if (cJSON_IsString(one))
			cJSON_DeleteItemFromObjectCaseSensitive(record, one->valuestring);
}

static void add_extra(struct raydocs *r, cJSON *to)
{
	if (!switch_on(r->sandbox, "shape.extra"))
		return;
	cJSON_AddStringToObject(to, "x_unforeseen", "text");
	cJSON *nested = cJSON_AddObjectToObject(to, "_links");
	cJSON_AddItemToArray(cJSON_AddArrayToObject(nested, "self"), cJSON_CreateNull());
}

static void add_filename(cJSON *to, const char *key, const struct document *d)
{
	if (d->filename_json != NULL)
		cJSON_AddRawToObject(to, key, d->filename_json);
	else
		cJSON_AddStringToObject(to, key, d->filename);
}

static cJSON *document_meta(struct raydocs *r, const struct document *d, int64_t now, bool prose)
{
	cJSON *meta = cJSON_CreateObject();
	bool is_parsed = document_phase(d, now) == READY;
	if (is_parsed)
		cJSON_AddNumberToObject(meta, "page_count", (double)d->pages);
	const char *size = switch_text(r->sandbox, "shape.size");
	if (prose || strcmp(size, "meta") == 0 || strcmp(size, "both") == 0 || (strcmp(size, "size") == 0 && is_parsed))
		cJSON_AddNumberToObject(meta, "file_size", (double)d->content.size_bytes);
	return meta;
}

/* The fields GET session embeds, and the whole record with full. */
static cJSON *document_json(struct raydocs *r, const struct document *d, bool full)
{
	struct sandbox *s = r->sandbox;
	int64_t now = sandbox_now_ms(s);
	bool prose = switch_is(s, "shape.documents", "prose"), nulls = switch_on(s, "shape.nulls");
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "id", d->id);
	if (full)
		cJSON_AddItemToObject(o, "workspace_id", workspace_ref(r, d->workspace_id, prose));
	add_filename(o, "filename", d);
	if (!full) {
		cJSON_AddStringToObject(o, "status", status_word(r, d, now));
		cJSON_AddItemToObject(o, "meta", document_meta(r, d, now, prose));
		merge(o, d->fields, d->without);
		return o;
	}
	const char *mime = prose ? "none" : switch_text(s, "shape.mime"), *size = switch_text(s, "shape.size");
	if (strcmp(mime, "none") != 0)
		cJSON_AddStringToObject(o, mime, d->mime == NULL ? "application/octet-stream" : d->mime);
	else if (nulls)
		cJSON_AddNullToObject(o, "mime");
	if (!prose && (strcmp(size, "size") == 0 || strcmp(size, "both") == 0))
		cJSON_AddNumberToObject(o, "size", (double)d->content.size_bytes);
	else if (nulls)
		cJSON_AddNullToObject(o, "size");
	cJSON_AddStringToObject(o, "sha256", d->sha256);
	cJSON_AddStringToObject(o, "status", status_word(r, d, now));
	const char *source = prose ? "nested" : switch_text(s, "shape.source");
	const char *type = d->source_url == NULL ? "upload" : "url";
	if (strcmp(source, "flat") == 0 || strcmp(source, "both") == 0) {
		cJSON_AddStringToObject(o, "source_type", type);
		if (d->source_url != NULL)
			cJSON_AddStringToObject(o, "source_url", d->source_url);
		else
			cJSON_AddNullToObject(o, "source_url");
	}
	if (strcmp(source, "nested") == 0 || strcmp(source, "both") == 0) {
		cJSON *nested = cJSON_AddObjectToObject(o, "source");
		cJSON_AddStringToObject(nested, "type", type);
		if (d->source_url != NULL)
			cJSON_AddStringToObject(nested, "url", d->source_url);
	} else if (nulls) {
		cJSON_AddNullToObject(o, "source");
	}
	if (!prose) {
		cJSON *list = cJSON_AddArrayToObject(o, "parsings");
		for (size_t i = 0; i < d->parsing_count; i++) {
			static const char *const words[] = { "", "queued", "processing", "ready", "failed" };
			const struct parsing *p = &d->parsings[i];
			enum phase phase = parsing_phase(p, now);
			cJSON *one = cJSON_CreateObject();
			cJSON_AddStringToObject(one, "id", p->id);
			cJSON_AddStringToObject(one, "config_hash", p->config_hash);
			cJSON_AddStringToObject(one, "status", words[phase]);
			cJSON_AddStringToObject(one, "parser_version", p->version);
			add_time(r, one, "updated_at",
				 phase == QUEUED    ? p->queued_ms
				 : phase == PARSING ? p->started_ms
						    : p->done_ms);
			cJSON_AddItemToArray(list, one);
		}
	}
	cJSON *meta = document_meta(r, d, now, prose);
	if (nulls && meta->child == NULL) {
		cJSON_Delete(meta);
		meta = cJSON_CreateNull();
	}
	cJSON_AddItemToObject(o, "meta", meta);
	if (nulls)
		cJSON_AddNullToObject(o, "extraction_session_id");
	add_time(r, o, "created_at", d->created_ms);
	add_extra(r, o);
	merge(o, d->fields, d->without);
	return o;
}

static cJSON *document_ref(struct raydocs *r, const struct document *d)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "kind", "documentRef");
	cJSON_AddStringToObject(o, "documentId", d->id);
	cJSON_AddItemToObject(o, "workspaceId", workspace_ref(r, d->workspace_id, false));
	add_filename(o, "filename", d);
	return o;
}

static cJSON *workspace_json(struct raydocs *r, const struct workspace *w)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddNumberToObject(o, "id", (double)w->id);
	cJSON_AddStringToObject(o, "name", w->name);
	if (w->icon != NULL)
		cJSON_AddStringToObject(o, "icon", w->icon);
	else
		cJSON_AddNullToObject(o, "icon");
	if (switch_is(r->sandbox, "shape.workspaces", "bare"))
		cJSON_AddObjectToObject(o, "settings");
	add_time(r, o, "created_at", w->created_ms);
	add_time(r, o, "updated_at", w->created_ms);
	add_extra(r, o);
	return o;
}

static cJSON *template_json(struct raydocs *r, const struct template *t)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "id", t->id);
	cJSON_AddStringToObject(o, "name", t->name);
	cJSON_AddNullToObject(o, "description");
	cJSON_AddNumberToObject(o, "workspace_id", (double)t->workspace_id);
	add_time(r, o, "created_at", t->created_ms);
	add_time(r, o, "updated_at", t->created_ms);
	add_extra(r, o);
	return o;
}

static enum phase result_phase(const struct result *x, int64_t now)
{
	return now < x->started_ms ? QUEUED : now < x->done_ms ? PARSING : x->fails ? FAILED : READY;
}

static const char *result_word(const struct result *x, int64_t now)
{
	switch (result_phase(x, now)) {
	case QUEUED:
		return x->waited ? "parsing_pending" : "created";
	case PARSING:
		return "processing";
	case FAILED:
		return "failed";
	default:
		return "completed";
	}
}

static cJSON *result_json(struct raydocs *r, const struct result *x, bool with_data, bool with_refs)
{
	int64_t now = sandbox_now_ms(r->sandbox);
	enum phase phase = result_phase(x, now);
	const struct session *s = find_session(r, x->session_id);
	char hash[SHA256_HEX_BYTES];
	config_hash_of(s == NULL ? "" : s->template_id, hash);
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "id", x->id);
	cJSON_AddStringToObject(o, "extraction_session_id", x->session_id);
	cJSON_AddStringToObject(o, "status", result_word(x, now));
	cJSON_AddStringToObject(o, "config_hash", hash);
	if (with_refs)
		cJSON_AddItemToObject(o, "document_refs", cJSON_Duplicate(x->refs, true));
	if (phase == READY && x->title != NULL)
		cJSON_AddStringToObject(o, "title", x->title);
	else
		cJSON_AddNullToObject(o, "title");
	if (with_data && phase == READY) {
		cJSON_AddItemToObject(o, "data", cJSON_Duplicate(x->data, true));
		cJSON *audit = cJSON_AddObjectToObject(o, switch_text(r->sandbox, "shape.audit"));
		cJSON *gross = cJSON_AddObjectToObject(cJSON_AddObjectToObject(audit, "totals"), "gross");
		cJSON_AddStringToObject(gross, "reasoning", "Net plus tax");
		cJSON_AddArrayToObject(gross, "sources");
	} else if (with_data) {
		cJSON_AddNullToObject(o, "data");
		cJSON_AddNullToObject(o, switch_text(r->sandbox, "shape.audit"));
	}
	add_time(r, o, "created_at", x->created_ms);
	if (phase == READY || phase == FAILED)
		add_time(r, o, "completed_at", x->done_ms);
	else
		cJSON_AddNullToObject(o, "completed_at");
	add_extra(r, o);
	return o;
}

static const char *session_word(struct raydocs *r, const struct session *s)
{
	int64_t now = sandbox_now_ms(r->sandbox);
	const char *word = "pending";
	for (const struct result *x = r->results; x != NULL; x = x->hh.next) {
		if (strcmp(x->session_id, s->id) != 0)
			continue;
		enum phase phase = result_phase(x, now);
		word = phase == READY ? "completed" : phase == FAILED ? "failed" : "processing";
	}
	return word;
}

static cJSON *session_json(struct raydocs *r, const struct session *s, bool with_lists)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "id", s->id);
	if (s->name != NULL)
		cJSON_AddStringToObject(o, "name", s->name);
	else
		cJSON_AddNullToObject(o, "name");
	cJSON_AddStringToObject(o, "extraction_template_id", s->template_id);
	cJSON_AddObjectToObject(o, "settings");
	if (s->status != NULL)
		cJSON_AddStringToObject(o, "status", s->status);
	else if (switch_on(r->sandbox, "shape.session_status"))
		cJSON_AddStringToObject(o, "status", session_word(r, s));
	else if (switch_on(r->sandbox, "shape.nulls"))
		cJSON_AddNullToObject(o, "status");
	add_time(r, o, "created_at", s->created_ms);
	add_time(r, o, "updated_at", s->updated_ms);
	if (with_lists) {
		const char *embed = switch_text(r->sandbox, "session.embed");
		int64_t most = strcmp(embed, "all") == 0 ? INT64_MAX : switch_number(r->sandbox, "session.embed", 0);
		bool full = switch_on(r->sandbox, "session.embed_full");
		cJSON *list = cJSON_AddArrayToObject(o, "documents");
		for (size_t i = 0; i < s->count && (int64_t)i < most; i++)
			cJSON_AddItemToArray(list, document_json(r, s->documents[i], full));
		list = cJSON_AddArrayToObject(o, "results");
		for (const struct result *x = r->results; x != NULL; x = x->hh.next)
			if (strcmp(x->session_id, s->id) == 0)
				cJSON_AddItemToArray(list, result_json(r, x, false, false));
	}
	add_extra(r, o);
	merge(o, s->fields, NULL);
	return o;
}

/* --- A call, and how it is refused --- */

struct call {
	struct request *q;
	struct raydocs *r;
	const struct token *token;
	char *args[ARGS_MAX];
	cJSON *body;   /* an object where the route takes one */
	cJSON *errors; /* what validation found; NULL: nothing */
};

static void refuse(struct call *c, int status, const char *message)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "message", message);
	answer_json(&c->q->answer, status, o);
}

static void not_found(struct call *c)
{
	refuse(c, 404, "Not found.");
}

static void complain(struct call *c, const char *field, const char *text)
{
	if (c->errors == NULL)
		c->errors = cJSON_CreateObject();
	cJSON *list = cJSON_GetObjectItemCaseSensitive(c->errors, field);
	if (list == NULL)
		list = cJSON_AddArrayToObject(c->errors, field);
	cJSON_AddItemToArray(list, cJSON_CreateString(text));
}

/* True: there were complaints, and they are the answer. */
static bool is_invalid(struct call *c)
{
	if (c->errors == NULL)
		return false;
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "message", "The given data was invalid.");
	cJSON_AddItemToObject(o, "errors", c->errors);
	c->errors = NULL;
	answer_json(&c->q->answer, 422, o);
	return true;
}

static void answer_one(struct call *c, int status, cJSON *object)
{
	if (switch_is(c->r->sandbox, "shape.wrap", "data")) {
		cJSON *wrapped = cJSON_CreateObject();
		cJSON_AddItemToObject(wrapped, "data", object);
		object = wrapped;
	}
	answer_json(&c->q->answer, status, object);
}

static void answer_list(struct call *c, int status, cJSON *list, bool bare, cJSON *meta)
{
	if (bare) {
		cJSON_Delete(meta);
		answer_json(&c->q->answer, status, list);
		return;
	}
	cJSON *o = cJSON_CreateObject();
	cJSON_AddItemToObject(o, "data", list);
	if (meta != NULL)
		cJSON_AddItemToObject(o, "meta", meta);
	answer_json(&c->q->answer, status, o);
}

static const char *body_text(struct call *c, const char *field, bool required)
{
	const cJSON *item = json_get(c->body, field);
	CLEANUP(text_free) char *missing = text_format("The %s field is required.", field);
	CLEANUP(text_free) char *wrong = text_format("The %s field must be a string.", field);
	if (item == NULL || cJSON_IsNull(item)) {
		if (required)
			complain(c, field, missing);
		return NULL;
	}
	if (!cJSON_IsString(item)) {
		complain(c, field, wrong);
		return NULL;
	}
	if (required && *item->valuestring == 0)
		complain(c, field, missing);
	return item->valuestring;
}

/* NULL and complaints, or a list of texts that is not empty. */
static const cJSON *body_texts(struct call *c, const char *field)
{
	const cJSON *list = json_get(c->body, field);
	CLEANUP(text_free) char *wrong = text_format("The %s field must be a non-empty array.", field);
	if (!cJSON_IsArray(list) || list->child == NULL) {
		complain(c, field, wrong);
		return NULL;
	}
	int i = 0;
	const cJSON *one;
	cJSON_ArrayForEach (one, list) {
		CLEANUP(text_free) char *name = text_format("%s.%d", field, i++);
		if (!cJSON_IsString(one))
			complain(c, name, "Must be a string.");
	}
	return c->errors == NULL ? list : NULL;
}

static void check_fields(struct call *c, const char *known)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, c->body) {
		CLEANUP(text_free) char *word = text_format(" %s ", one->string);
		if (switch_on(c->r->sandbox, "strict.fields") && strstr(known, word) == NULL)
			complain(c, one->string, "The documentation lists no such field here.");
	}
}

static bool may_see(struct call *c, int64_t workspace_id)
{
	const struct workspace *w = find_workspace(c->r, workspace_id);
	if (w == NULL || (c->token->workspace_id != 0 && c->token->workspace_id != workspace_id))
		return false;
	const cJSON *one;
	cJSON_ArrayForEach (one, w->members)
		if (cJSON_IsString(one) && strcmp(one->valuestring, c->token->user) == 0)
			return true;
	return false;
}

/* Each of these finds what the path names, or answers 404. */
static struct workspace *workspace_of(struct call *c)
{
	const char *text = c->args[0];
	bool is_number = *text != 0 && strspn(text, "0123456789") == strlen(text) && strlen(text) < 18;
	struct workspace *w = is_number ? find_workspace(c->r, strtoll(text, NULL, 10)) : NULL;
	if (w != NULL && may_see(c, w->id))
		return w;
	not_found(c);
	return NULL;
}

static struct template *template_of(struct call *c)
{
	struct template *t = find_template(c->r, c->args[0]);
	if (t != NULL && may_see(c, t->workspace_id))
		return t;
	not_found(c);
	return NULL;
}

static struct session *session_of(struct call *c)
{
	struct session *s = find_session(c->r, c->args[0]);
	if (s != NULL && may_see(c, session_workspace(c->r, s)))
		return s;
	not_found(c);
	return NULL;
}

static struct document *document_of(struct call *c)
{
	struct document *d = find_document(c->r, c->args[0]);
	if (d != NULL && may_see(c, d->workspace_id))
		return d;
	not_found(c);
	return NULL;
}

static struct document *library_document_of(struct call *c)
{
	struct workspace *w = workspace_of(c);
	if (w == NULL)
		return NULL;
	struct document *d = find_document(c->r, c->args[1]);
	if (d != NULL && d->workspace_id == w->id)
		return d;
	not_found(c);
	return NULL;
}

static struct result *result_of(struct call *c)
{
	struct result *x = NULL;
	HASH_FIND_STR(c->r->results, c->args[0], x);
	struct session *s = x == NULL ? NULL : find_session(c->r, x->session_id);
	if (s != NULL && may_see(c, session_workspace(c->r, s)))
		return x;
	not_found(c);
	return NULL;
}

/* A whole number of the query within bounds; otherwise its default, or a complaint. */
static int64_t query_number(struct call *c, const char *name, int64_t otherwise, int64_t max)
{
	CLEANUP(text_free) char *text = request_query(c->q, name);
	if (text == NULL)
		return otherwise;
	int64_t n = *text != 0 && strspn(text, "0123456789") == strlen(text) && strlen(text) < 10
			    ? strtoll(text, NULL, 10)
			    : 0;
	CLEANUP(text_free) char *wrong = text_format("The %s must be between 1 and %lld.", name, (long long)max);
	if (n < 1 || n > max)
		complain(c, name, wrong);
	return n < 1 || n > max ? otherwise : n;
}

struct page {
	size_t from, to; /* of the whole list */
	cJSON *meta;
};

static struct page page_of(struct call *c, size_t total, int64_t per_page)
{
	int64_t page = query_number(c, "page", 1, 1000000000);
	int64_t last = total == 0 ? 1 : ((int64_t)total + per_page - 1) / per_page;
	size_t from = (size_t)((page - 1) * per_page);
	struct page p = { .from = from < total ? from : total };
	p.to = p.from + (size_t)per_page < total ? p.from + (size_t)per_page : total;
	p.meta = cJSON_CreateObject();
	cJSON_AddNumberToObject(p.meta, "current_page", (double)page);
	cJSON_AddNumberToObject(p.meta, "last_page",
				(double)(last + switch_number(c->r->sandbox, "list.last_page_add", 0)));
	cJSON_AddNumberToObject(p.meta, "per_page", (double)per_page);
	cJSON_AddNumberToObject(p.meta, "total",
				(double)((int64_t)total + switch_number(c->r->sandbox, "list.total_add", 0)));
	return p;
}

static int64_t usual_per_page(struct call *c)
{
	int64_t n = switch_number(c->r->sandbox, "list.per_page", 15);
	return n < 1 ? 1 : n;
}

/* --- Routes: workspaces, templates, sessions --- */

static void get_workspaces(struct call *c)
{
	cJSON *list = cJSON_CreateArray();
	for (const struct workspace *w = c->r->workspaces; w != NULL; w = w->hh.next)
		if (may_see(c, w->id))
			cJSON_AddItemToArray(list, workspace_json(c->r, w));
	answer_list(c, 200, list, switch_is(c->r->sandbox, "shape.workspaces", "bare"), NULL);
}

static void get_templates(struct call *c)
{
	const struct workspace *w = workspace_of(c);
	if (w == NULL)
		return;
	size_t total = 0, at = 0;
	for (const struct template *t = c->r->templates; t != NULL; t = t->hh.next)
		total += t->workspace_id == w->id;
	struct page p = page_of(c, total, usual_per_page(c));
	if (is_invalid(c)) {
		cJSON_Delete(p.meta);
		return;
	}
	cJSON *list = cJSON_CreateArray();
	for (const struct template *t = c->r->templates; t != NULL; t = t->hh.next) {
		if (t->workspace_id != w->id)
			continue;
		if (at >= p.from && at < p.to)
			cJSON_AddItemToArray(list, template_json(c->r, t));
		at++;
	}
	answer_list(c, 200, list, false, p.meta);
}

static void get_template(struct call *c)
{
	const struct template *t = template_of(c);
	if (t != NULL)
		answer_one(c, 200, template_json(c->r, t));
}

static void create_session(struct call *c)
{
	check_fields(c, " name extraction_template_id ");
	const char *name = body_text(c, "name", false);
	const char *template_id = body_text(c, "extraction_template_id", true);
	const struct template *t = template_id == NULL ? NULL : find_template(c->r, template_id);
	if (template_id != NULL && c->errors == NULL && (t == NULL || !may_see(c, t->workspace_id)))
		complain(c, "extraction_template_id", "The selected extraction_template_id is invalid.");
	if (is_invalid(c))
		return;
	answer_one(c, 201, session_json(c->r, session_add(c->r, NULL, name, template_id), true));
}

static void get_session(struct call *c)
{
	const struct session *s = session_of(c);
	if (s != NULL)
		answer_one(c, 200, session_json(c->r, s, true));
}

static void update_session(struct call *c)
{
	struct session *s = session_of(c);
	if (s == NULL)
		return;
	check_fields(c, " name settings ");
	const char *name = body_text(c, "name", false);
	if (name != NULL && *name == 0)
		complain(c, "name", "The name field must not be empty.");
	if (is_invalid(c))
		return;
	if (name != NULL) {
		free(s->name);
		s->name = text_copy(name);
		session_touch(c->r, s);
	}
	answer_one(c, 200, session_json(c->r, s, false));
}

static void delete_session(struct call *c)
{
	struct session *s = session_of(c);
	if (s == NULL)
		return;
	session_delete(c->r, s);
	c->q->answer.status = 204;
}

/* The three routes nobody documents: absent unless a switch makes them. */
static void list_sessions(struct call *c, const char *knob, int64_t workspace_id, const char *template_id)
{
	cJSON *list = cJSON_CreateArray();
	size_t total = 0;
	bool bare = switch_is(c->r->sandbox, knob, "bare");
	struct page p = { 0 };
	for (int pass = 0; pass < 2; pass++) {
		if (pass == 1) {
			p = page_of(c, total, usual_per_page(c));
			total = 0;
		}
		for (const struct session *s = c->r->sessions; s != NULL; s = s->hh.next) {
			int64_t w = session_workspace(c->r, s);
			if (!may_see(c, w) || (workspace_id != 0 && w != workspace_id) ||
			    (template_id != NULL && strcmp(s->template_id, template_id) != 0))
				continue;
			if (pass == 1 && (bare || (total >= p.from && total < p.to)))
				cJSON_AddItemToArray(list, session_json(c->r, s, false));
			total++;
		}
	}
	answer_list(c, 200, list, bare, p.meta);
}

static void get_sessions(struct call *c)
{
	list_sessions(c, "sessions.list", 0, NULL);
}

static void get_template_sessions(struct call *c)
{
	const struct template *t = template_of(c);
	if (t != NULL)
		list_sessions(c, "sessions.of_template", 0, t->id);
}

static void get_workspace_sessions(struct call *c)
{
	const struct workspace *w = workspace_of(c);
	if (w != NULL)
		list_sessions(c, "sessions.of_workspace", w->id, NULL);
}

/* --- Routes: upload --- */

static const char *extension_of(const char *mime)
{
	for (size_t i = 0; i < COUNT_OF(formats) && mime != NULL; i++)
		if (strncasecmp(formats[i].mime, mime, strlen(formats[i].mime)) == 0 &&
		    strchr("; ", mime[strlen(formats[i].mime)]) != NULL)
			return formats[i].extension;
	return NULL;
}

/* What the first bytes say; NULL: nothing known. */
static const char *mime_by_magic(const char *path)
{
	static const struct {
		const char *bytes;
		size_t count;
		const char *mime;
	} magics[] = {
		{ "%PDF-", 5, "application/pdf" },
		{ "\x89PNG\r\n\x1a\n", 8, "image/png" },
		{ "\xff\xd8\xff", 3, "image/jpeg" },
		{ "II*\0", 4, "image/tiff" },
		{ "MM\0*", 4, "image/tiff" },
		{ "PK\3\4", 4, "application/vnd.openxmlformats-officedocument.wordprocessingml.document" },
		{ "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 8, "application/msword" },
	};
	char head[8] = { 0 };
	FILE *f = fopen(path, "re");
	size_t n = f == NULL ? 0 : fread(head, 1, sizeof head, f);
	if (f != NULL)
		fclose(f);
	for (size_t i = 0; i < COUNT_OF(magics); i++)
		if (n >= magics[i].count && memcmp(head, magics[i].bytes, magics[i].count) == 0)
			return magics[i].mime;
	return NULL;
}

/* Why the key can't be used, or NULL. */
static const char *object_fault(struct raydocs *r, const struct object *o)
{
	struct sandbox *s = r->sandbox;
	if (o == NULL)
		return "The key is invalid.";
	if (o->is_used && !switch_on(s, "upload.reuse_key"))
		return "The key is invalid: it was used before.";
	if (!o->is_put || (o->path == NULL && !o->is_used))
		return "The key is invalid: nothing was uploaded to it.";
	if (o->path == NULL)
		return NULL;
	if (o->size_bytes == 0 && switch_is(s, "upload.empty", "refuse"))
		return "The file is empty.";
	int64_t max = switch_number(s, "upload.max_bytes", 0);
	if (max > 0 && o->size_bytes > max)
		return "The file is too large.";
	const char *check = switch_text(s, "upload.check");
	bool type_is_good = extension_of(o->content_type) != NULL;
	bool magic_is_good = mime_by_magic(o->path) != NULL;
	bool is_good = strcmp(check, "off") == 0     ? true
		       : strcmp(check, "type") == 0  ? type_is_good
		       : strcmp(check, "magic") == 0 ? magic_is_good
		       : strcmp(check, "both") == 0  ? type_is_good && magic_is_good
						     : type_is_good || magic_is_good;
	return is_good ? NULL : "The file format is not supported.";
}

static char *name_by_service(struct raydocs *r, const struct object *o, const char *mime)
{
	const char *how = switch_text(r->sandbox, "upload.names"), *extension = extension_of(mime);
	const char *base = strrchr(o->key, '/') == NULL ? o->key : strrchr(o->key, '/') + 1;
	CLEANUP(text_free) char *uuid = uuid_new();
	if (extension == NULL)
		extension = "bin";
	if (strcmp(how, "key") == 0)
		return text_copy(base);
	if (strcmp(how, "uuid") == 0)
		return text_format("%s.%s", uuid, extension);
	if (strcmp(how, "none") == 0)
		return text_copy("");
	if (strcmp(how, "same") == 0)
		return text_format("document.%s", extension);
	return text_format("document-%.8s.%s", uuid, extension);
}

/* Makes a document of an object, or finds the one that has its bytes. filename NULL: the service names it. */
static struct document *document_from_object(struct raydocs *r, struct object *o, int64_t workspace_id,
					     const char *filename, const char *mime, bool *ret_reused)
{
	struct document *d =
		switch_on(r->sandbox, "dedup") || o->is_used ? find_bytes(r, workspace_id, o->sha256) : NULL;
	*ret_reused = d != NULL;
	if (d != NULL) {
		if (o->path != NULL)
			unlink(o->path);
		free(o->path);
		o->path = NULL;
		o->is_used = true;
		if (filename != NULL && switch_is(r->sandbox, "dedup.name", "new")) {
			free(d->filename);
			d->filename = text_copy(filename);
		}
		sandbox_changed(r->sandbox);
		return d;
	}
	struct content content = { 0 };
	const char *by_magic = o->path == NULL ? NULL : mime_by_magic(o->path);
	if (o->path == NULL || storage_use(&r->storage, o, &content) < 0)
		return NULL;
	if (mime == NULL)
		mime = extension_of(o->content_type) != NULL || by_magic == NULL ? o->content_type : by_magic;
	d = document_add(r, NULL, workspace_id);
	d->content = content;
	d->mime = text_copy(mime);
	d->filename = filename != NULL ? text_copy(filename) : name_by_service(r, o, mime);
	snprintf(d->sha256, sizeof d->sha256, "%s", o->sha256);
	document_index(r, d);
	if (switch_on(r->sandbox, "autoparse")) {
		char hash[SHA256_HEX_BYTES];
		config_hash_of("autoparse", hash);
		parse(r, d, hash, false);
	}
	return d;
}

static void sign_upload(struct call *c)
{
	struct sandbox *s = c->r->sandbox;
	check_fields(c, " content_type visibility ");
	const char *type = body_text(c, "content_type", switch_is(s, "sign.content_type", "required"));
	const char *visibility = body_text(c, "visibility", false);
	if (type != NULL && (strchr(type, '/') == NULL || strpbrk(type, "\r\n") != NULL))
		complain(c, "content_type", "The content_type is no media type.");
	if (visibility != NULL && strcmp(visibility, "private") != 0)
		complain(c, "visibility", "The selected visibility is invalid.");
	if (is_invalid(c))
		return;
	if (type == NULL)
		type = "application/octet-stream";
	CLEANUP(text_free) char *uuid = uuid_new();
	CLEANUP(text_free)
	char *key = text_format("tmp/%s%s", uuid, switch_is(s, "sign.key", "name") ? "/upload.pdf" : "");
	bool signs_type = !switch_is(s, "sign.headers", "empty"), list = switch_is(s, "sign.headers", "list");
	const char *acl = switch_on(s, "sign.acl") && signs_type ? "private" : NULL;
	CLEANUP(text_free)
	char *url = storage_sign_put(&c->r->storage, key, type, signs_type, acl,
				     switch_number(s, "sign.expires_ms", 300000));
	bool framework = switch_is(s, "sign.status", "201");
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "uuid", uuid);
	if (framework)
		cJSON_AddStringToObject(o, "bucket", "sandbox-bucket");
	cJSON_AddStringToObject(o, "key", key);
	cJSON_AddStringToObject(o, "url", url);
	cJSON *headers = cJSON_AddObjectToObject(o, "headers");
	if (list) {
		cJSON_AddItemToArray(cJSON_AddArrayToObject(headers, "Host"),
				     cJSON_CreateString(storage_host(&c->r->storage)));
		if (acl != NULL)
			cJSON_AddItemToArray(cJSON_AddArrayToObject(headers, "x-amz-acl"), cJSON_CreateString(acl));
	} else if (acl != NULL) {
		cJSON_AddStringToObject(headers, "x-amz-acl", acl);
	}
	if (signs_type)
		cJSON_AddStringToObject(headers, "Content-Type", type);
	answer_json(&c->q->answer, framework ? 201 : 200, o);
}

static void attach(struct raydocs *r, struct session *s, struct document *d)
{
	if (session_has(s, d))
		return;
	session_append(s, d);
	session_touch(r, s);
}

static void upload_documents(struct call *c)
{
	struct session *s = session_of(c);
	if (s == NULL)
		return;
	check_fields(c, " keys ");
	const cJSON *keys = body_texts(c, "keys"), *one, *other;
	int i = 0;
	cJSON_ArrayForEach (one, keys) {
		CLEANUP(text_free) char *field = text_format("keys.%d", i++);
		const char *fault = object_fault(c->r, storage_find(&c->r->storage, one->valuestring));
		for (other = keys->child; other != one && fault == NULL; other = other->next)
			if (strcmp(other->valuestring, one->valuestring) == 0)
				fault = "The key is invalid: it is given twice.";
		if (fault != NULL)
			complain(c, field, fault);
	}
	if (c->errors != NULL && (keys == NULL || switch_is(c->r->sandbox, "upload.partial", "off"))) {
		(void)is_invalid(c);
		return;
	}
	cJSON *list = cJSON_CreateArray();
	cJSON_ArrayForEach (one, keys) {
		bool reused;
		struct object *o = storage_find(&c->r->storage, one->valuestring);
		if (object_fault(c->r, o) != NULL)
			continue;
		struct document *d = document_from_object(c->r, o, session_workspace(c->r, s), NULL, NULL, &reused);
		if (d == NULL)
			continue;
		attach(c->r, s, d);
		if (switch_is(c->r->sandbox, "upload.order", "reverse"))
			cJSON_InsertItemInArray(list, 0, document_json(c->r, d, true));
		else
			cJSON_AddItemToArray(list, document_json(c->r, d, true));
	}
	if (is_invalid(c)) {
		cJSON_Delete(list);
		return;
	}
	answer_list(c, switch_is(c->r->sandbox, "upload.status", "201") ? 201 : 200, list, false, NULL);
}

static void upload_document_legacy(struct call *c)
{
	struct session *s = session_of(c);
	if (s == NULL)
		return;
	check_fields(c, " key filename ");
	const char *key = body_text(c, "key", true), *filename = body_text(c, "filename", true);
	struct object *o = key == NULL ? NULL : storage_find(&c->r->storage, key);
	const char *fault = key == NULL ? NULL : object_fault(c->r, o);
	if (fault != NULL)
		complain(c, "key", fault);
	if (is_invalid(c))
		return;
	bool reused;
	struct document *d = document_from_object(c->r, o, session_workspace(c->r, s), filename, NULL, &reused);
	if (d == NULL) {
		refuse(c, 500, "Server Error");
		return;
	}
	attach(c->r, s, d);
	answer_one(c, 201, document_json(c->r, d, true));
}

static void attach_documents(struct call *c)
{
	struct session *s = session_of(c);
	if (s == NULL)
		return;
	check_fields(c, " document_ids ");
	const cJSON *ids = body_texts(c, "document_ids"), *one;
	int i = 0;
	cJSON_ArrayForEach (one, ids) {
		CLEANUP(text_free) char *field = text_format("document_ids.%d", i++);
		const struct document *d = find_document(c->r, one->valuestring);
		if (!uuid_is_valid(one->valuestring))
			complain(c, field, "Must be a valid UUID.");
		else if (d == NULL || !may_see(c, d->workspace_id))
			complain(c, field, "The selected document is invalid.");
		else if (d->workspace_id != session_workspace(c->r, s))
			complain(c, field, "The document belongs to another workspace.");
		else if (session_has(s, d) && switch_is(c->r->sandbox, "attach.twice", "422"))
			complain(c, field, "The document is attached already.");
	}
	if (is_invalid(c))
		return;
	cJSON *list = cJSON_CreateArray();
	cJSON_ArrayForEach (one, ids) {
		struct document *d = find_document(c->r, one->valuestring);
		attach(c->r, s, d);
		cJSON_AddItemToArray(list, document_json(c->r, d, true));
	}
	answer_list(c, 200, list, false, NULL);
}

static void detach_document(struct call *c)
{
	struct session *s = session_of(c);
	if (s == NULL)
		return;
	if (!session_remove(s, find_document(c->r, c->args[1]))) {
		not_found(c);
		return;
	}
	session_touch(c->r, s);
	c->q->answer.status = 204;
}

static void get_session_documents(struct call *c)
{
	const struct session *s = session_of(c);
	if (s == NULL)
		return;
	struct sandbox *b = c->r->sandbox;
	bool paged = switch_is(b, "shape.documents", "schema"), bare = switch_is(b, "shape.documents", "bare");
	struct page p = page_of(c, s->count, paged || s->count == 0 ? usual_per_page(c) : (int64_t)s->count);
	if (is_invalid(c)) {
		cJSON_Delete(p.meta);
		return;
	}
	size_t *order = allocate((s->count + 1) * sizeof *order);
	bool newest = switch_is(b, "list.order", "newest");
	for (size_t i = 0; i < s->count; i++)
		order[i] = newest ? s->count - 1 - i : i;
	for (size_t i = s->count; i > 1 && switch_is(b, "list.order", "random"); i--) {
		size_t k = sandbox_random(b) % i, swap = order[i - 1];
		order[i - 1] = order[k];
		order[k] = swap;
	}
	cJSON *list = cJSON_CreateArray();
	for (size_t i = p.from; i < p.to; i++)
		cJSON_AddItemToArray(list, document_json(c->r, s->documents[order[i]], true));
	free(order);
	if (!paged) {
		cJSON_Delete(p.meta);
		p.meta = NULL;
	}
	answer_list(c, 200, list, bare, p.meta);
}

/* --- Routes: documents --- */

static void get_document(struct call *c)
{
	const struct document *d = document_of(c);
	if (d != NULL)
		answer_one(c, 200, document_json(c->r, d, true));
}

static void delete_document(struct call *c)
{
	struct document *d = document_of(c);
	if (d == NULL)
		return;
	document_delete(c->r, d);
	c->q->answer.status = 204;
}

static void answer_link(struct call *c, const struct document *d)
{
	int64_t life_ms = switch_number(c->r->sandbox, "link.expires_ms", 600000);
	CLEANUP(text_free) char *key = text_format("documents/%s", d->id);
	CLEANUP(text_free) char *url = storage_sign_get(&c->r->storage, key, life_ms);
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "url", url);
	if (switch_on(c->r->sandbox, "link.expires_at"))
		add_time(c->r, o, "expires_at", sandbox_now_ms(c->r->sandbox) + life_ms);
	answer_one(c, 200, o);
}

static void get_link(struct call *c)
{
	const struct document *d = document_of(c);
	if (d != NULL)
		answer_link(c, d);
}

static const struct content *linked(void *state, const char *key, const char **ret_mime, const char **ret_sha256)
{
	static const char prefix[] = "documents/";
	if (strncmp(key, prefix, sizeof prefix - 1) != 0)
		return NULL;
	struct document *d = find_document(state, key + sizeof prefix - 1);
	if (d == NULL)
		return NULL;
	*ret_mime = d->mime;
	*ret_sha256 = d->sha256;
	return &d->content;
}

static void get_chunks(struct call *c)
{
	const struct document *d = document_of(c);
	if (d == NULL)
		return;
	struct sandbox *s = c->r->sandbox;
	bool text = switch_is(s, "shape.chunks", "text");
	cJSON *list = cJSON_CreateArray();
	if (document_phase(d, sandbox_now_ms(s)) != READY && !switch_is(s, "chunks.unparsed", "empty")) {
		cJSON_Delete(list);
		if (switch_is(s, "chunks.unparsed", "404"))
			not_found(c);
		else
			refuse(c, 422, "The document has not been parsed yet.");
		return;
	}
	for (int64_t i = 0; i < d->pages && document_phase(d, sandbox_now_ms(s)) == READY; i++) {
		CLEANUP(text_free) char *id = text_format("8%07lld%s", (long long)i, d->id + 8);
		CLEANUP(text_free) char *page = text_format("Page %lld", (long long)i + 1);
		CLEANUP(text_free) char *words = text_format("Text of page %lld of %s", (long long)i + 1, d->filename);
		CLEANUP(text_free) char *block_id = text_format("doc:page:%lld:block:0", (long long)i + 1);
		cJSON *one = cJSON_CreateObject(), *block;
		cJSON_AddStringToObject(one, "id", id);
		cJSON_AddStringToObject(one, "document_id", d->id);
		if (text) {
			cJSON_AddStringToObject(one, "content", words);
			cJSON_AddNumberToObject(one, "page_number", (double)i + 1);
			cJSON_AddObjectToObject(one, "metadata");
		} else {
			cJSON_AddNumberToObject(one, "chunk_index", (double)i);
			block = cJSON_CreateObject();
			cJSON_AddStringToObject(block, "block_id", block_id);
			cJSON_AddStringToObject(block, "type", "paragraph");
			cJSON_AddStringToObject(block, "content", words);
			cJSON_AddStringToObject(block, "page_ref", page);
			cJSON_AddObjectToObject(block, "meta");
			cJSON_AddItemToArray(cJSON_AddArrayToObject(one, "blocks"), block);
		}
		cJSON_AddItemToArray(list, one);
	}
	answer_list(c, 200, list, !text, NULL);
}

struct ordering {
	const char *field;
	bool down;
	struct raydocs *r;
	int64_t now;
};

static int compare_documents(const void *a, const void *b, void *cls)
{
	const struct document *x = *(struct document *const *)a, *y = *(struct document *const *)b;
	const struct ordering *o = cls;
	int64_t by_number = x->created_ms - y->created_ms;
	int sign = 0;
	if (strcmp(o->field, "size") == 0)
		by_number = x->content.size_bytes - y->content.size_bytes;
	if (strcmp(o->field, "filename") == 0)
		sign = strcmp(x->filename, y->filename);
	else if (strcmp(o->field, "status") == 0)
		sign = strcmp(status_word(o->r, x, o->now), status_word(o->r, y, o->now));
	else
		sign = by_number < 0 ? -1 : by_number > 0;
	return o->down ? -sign : sign;
}

static const char *query_word(struct call *c, const char *name, const char *const *allowed, char **ret_text)
{
	*ret_text = request_query(c->q, name);
	if (*ret_text == NULL)
		return NULL;
	for (; *allowed != NULL; allowed++)
		if (strcmp(*allowed, *ret_text) == 0)
			return *allowed;
	CLEANUP(text_free) char *wrong = text_format("The selected %s is invalid.", name);
	complain(c, name, wrong);
	return NULL;
}

static void get_library(struct call *c)
{
	static const char *const sorts[] = { "created_at", "filename", "size", "status", NULL };
	static const char *const orders[] = { "asc", "desc", NULL };
	static const char *const sources[] = { "upload", "url", "connector", NULL };
	const struct workspace *w = workspace_of(c);
	if (w == NULL)
		return;
	CLEANUP(text_free) char *sort_text = NULL, *order_text = NULL, *source_text = NULL;
	CLEANUP(text_free) char *query = request_query(c->q, "query");
	CLEANUP(text_free) char *mime = request_query(c->q, "mime");
	CLEANUP(text_free) char *status = request_query(c->q, "status");
	const char *sort = query_word(c, "sort", sorts, &sort_text);
	const char *order = query_word(c, "order", orders, &order_text);
	const char *source = query_word(c, "source_type", sources, &source_text);
	int64_t per_page = query_number(c, "per_page", usual_per_page(c), PER_PAGE_MAX);
	int64_t now = sandbox_now_ms(c->r->sandbox);
	struct document **found = allocate((HASH_COUNT(c->r->documents) + 1) * sizeof(struct document *));
	size_t count = 0;
	for (struct document *d = c->r->documents; d != NULL; d = d->hh.next) {
		bool matches = query == NULL || strcasestr(d->filename, query) != NULL ||
			       strstr(d->sha256, query) != NULL ||
			       (d->source_url != NULL && strstr(d->source_url, query) != NULL);
		if (d->workspace_id == w->id && matches &&
		    (mime == NULL || (d->mime != NULL && strcmp(d->mime, mime) == 0)) &&
		    (status == NULL || strcmp(status_word(c->r, d, now), status) == 0) &&
		    (source == NULL || strcmp(source, d->source_url == NULL ? "upload" : "url") == 0))
			found[count++] = d;
	}
	struct ordering by = { sort == NULL ? "created_at" : sort, order != NULL && strcmp(order, "desc") == 0, c->r,
			       now };
	if (sort != NULL || by.down)
		qsort_r(found, count, sizeof(struct document *), compare_documents, &by);
	struct page p = page_of(c, count, per_page);
	if (is_invalid(c)) {
		cJSON_Delete(p.meta);
	} else {
		cJSON *list = cJSON_CreateArray();
		for (size_t i = p.from; i < p.to; i++)
			cJSON_AddItemToArray(list, document_json(c->r, found[i], true));
		answer_list(c, 200, list, false, p.meta);
	}
	free(found);
}

static void create_document(struct call *c)
{
	struct workspace *w = workspace_of(c);
	if (w == NULL)
		return;
	check_fields(c, " key filename mime ");
	const char *key = body_text(c, "key", true), *filename = body_text(c, "filename", false);
	const char *mime = body_text(c, "mime", false);
	struct object *o = key == NULL ? NULL : storage_find(&c->r->storage, key);
	const char *fault = key == NULL || *key == 0 ? NULL : object_fault(c->r, o);
	if (fault != NULL)
		complain(c, "key", fault);
	if (is_invalid(c))
		return;
	bool reused;
	struct document *d = document_from_object(c->r, o, w->id, filename, mime, &reused);
	if (d == NULL) {
		refuse(c, 500, "Server Error");
		return;
	}
	cJSON *out = cJSON_CreateObject();
	cJSON_AddItemToObject(out, "document", document_json(c->r, d, true));
	cJSON *dedup = cJSON_AddObjectToObject(out, "dedup");
	cJSON_AddBoolToObject(dedup, "reused", reused);
	if (reused)
		cJSON_AddStringToObject(dedup, "matched_by", "sha256");
	else
		cJSON_AddNullToObject(dedup, "matched_by");
	cJSON *ref = document_ref(c->r, d);
	cJSON_DeleteItemFromObjectCaseSensitive(ref, "filename");
	cJSON_AddItemToObject(out, "document_ref", ref);
	answer_json(&c->q->answer, reused ? 200 : 201, out);
}

static void get_library_document(struct call *c)
{
	const struct document *d = library_document_of(c);
	if (d != NULL)
		answer_one(c, 200, document_json(c->r, d, true));
}

static void get_library_link(struct call *c)
{
	const struct document *d = library_document_of(c);
	if (d != NULL)
		answer_link(c, d);
}

static void reparse(struct call *c)
{
	struct document *d = library_document_of(c);
	if (d == NULL)
		return;
	check_fields(c, " config_hash force parser_version ");
	const char *hash = body_text(c, "config_hash", true), *version = body_text(c, "parser_version", false);
	const cJSON *force = json_get(c->body, "force");
	if (hash != NULL && strlen(hash) != 64)
		complain(c, "config_hash", "The config_hash must be 64 characters.");
	if (force != NULL && !cJSON_IsBool(force))
		complain(c, "force", "The force field must be true or false.");
	if (is_invalid(c))
		return;
	int64_t now = sandbox_now_ms(c->r->sandbox);
	enum phase phase = UPLOADED;
	for (size_t i = 0; i < d->parsing_count; i++)
		if (strcmp(d->parsings[i].config_hash, hash) == 0)
			phase = parsing_phase(&d->parsings[i], now);
	bool is_ready = phase == READY && !cJSON_IsTrue(force);
	if (!is_ready && phase != QUEUED && phase != PARSING) {
		struct parsing *p = parse(c->r, d, hash, false);
		if (version != NULL) {
			free(p->version);
			p->version = text_copy(version);
		}
		phase = QUEUED;
	}
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "status", is_ready ? "ready" : phase == PARSING ? "processing" : "queued");
	answer_json(&c->q->answer, is_ready ? 200 : 202, o);
}

/* --- Routes: results --- */

static void get_results(struct call *c)
{
	const struct session *s = session_of(c);
	if (s == NULL)
		return;
	cJSON *list = cJSON_CreateArray();
	bool with_data = switch_on(c->r->sandbox, "shape.results_data");
	for (const struct result *x = c->r->results; x != NULL; x = x->hh.next)
		if (strcmp(x->session_id, s->id) == 0)
			cJSON_AddItemToArray(list, result_json(c->r, x, with_data, false));
	answer_list(c, 200, list, switch_is(c->r->sandbox, "shape.results", "bare"), NULL);
}

/* A run parses what was never parsed or failed, waits for what is under way, and takes the documents of now. */
static struct result *run_session(struct raydocs *r, struct session *s)
{
	int64_t now = sandbox_now_ms(r->sandbox), parsed_ms = now;
	char hash[SHA256_HEX_BYTES];
	config_hash_of(s->template_id, hash);
	struct result *x = allocate(sizeof *x);
	x->id = uuid_new();
	x->session_id = text_copy(s->id);
	x->created_ms = now;
	x->refs = cJSON_CreateArray();
	for (size_t i = 0; i < s->count; i++) {
		struct document *d = s->documents[i];
		enum phase phase = document_phase(d, now);
		if (phase == UPLOADED || phase == FAILED)
			parse(r, d, hash, false);
		const struct parsing *p = &d->parsings[d->parsing_count - 1];
		if (p->done_ms > parsed_ms)
			parsed_ms = p->done_ms;
		x->waited |= p->done_ms > now;
		x->fails |= p->fails;
		cJSON_AddItemToArray(x->refs, document_ref(r, d));
	}
	x->started_ms = parsed_ms + (x->waited ? 0 : switch_number(r->sandbox, "run.created_ms", 0));
	x->done_ms = x->started_ms + switch_number(r->sandbox, "run.ms", 0);
	x->title = s->count > 0 ? text_copy(s->documents[0]->filename) : text_copy(s->name);
	x->data = cJSON_CreateObject();
	cJSON *totals = cJSON_AddObjectToObject(x->data, "totals");
	cJSON_AddNumberToObject(totals, "net", 100.0 * (double)s->count);
	cJSON_AddNumberToObject(totals, "gross", 120.0 * (double)s->count);
	HASH_ADD_KEYPTR(hh, r->results, x->id, strlen(x->id), x);
	session_touch(r, s);
	return x;
}

static void run_extraction(struct call *c)
{
	struct session *s = session_of(c);
	if (s == NULL)
		return;
	if (s->count == 0 && switch_is(c->r->sandbox, "run.empty", "422")) {
		complain(c, "documents", "The session has no documents.");
		(void)is_invalid(c);
		return;
	}
	const struct result *x = run_session(c->r, s);
	if (switch_is(c->r->sandbox, "shape.run", "run")) {
		answer_one(c, 201, result_json(c->r, x, false, true));
		return;
	}
	cJSON *o = cJSON_CreateObject();
	CLEANUP(text_free) char *job = uuid_new();
	cJSON_AddStringToObject(o, "message", "Extraction started");
	cJSON_AddStringToObject(o, "job_id", job);
	answer_json(&c->q->answer, 201, o);
}

static void get_result(struct call *c)
{
	const struct result *x = result_of(c);
	if (x != NULL)
		answer_one(c, 200, result_json(c->r, x, true, true));
}

static void delete_result(struct call *c)
{
	struct result *x = result_of(c);
	if (x == NULL)
		return;
	HASH_DEL(c->r->results, x);
	result_free(x);
	sandbox_changed(c->r->sandbox);
	c->q->answer.status = 204;
}

static void get_excel(struct call *c)
{
	const struct result *x = result_of(c);
	if (x == NULL)
		return;
	if (result_phase(x, sandbox_now_ms(c->r->sandbox)) != READY) {
		refuse(c, 422, "The extraction has not completed.");
		return;
	}
	c->q->answer.body_bytes = xlsx_make(x->data, &c->q->answer.body);
	c->q->answer.status = 200;
	answer_header(&c->q->answer, "Content-Type",
		      "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet");
	answer_header(&c->q->answer, "Content-Disposition", "attachment; filename=\"extraction.xlsx\"");
}

/* --- The table of routes --- */

struct route {
	const char *method, *path, *name, *abilities; /* abilities: separated by blanks */
	void (*run)(struct call *c);
	bool takes_body;
	const char *knob; /* "off": there is no such route */
};

/* A "*" is one segment of the path, and an argument. */
static const struct route routes[] = {
	{ "GET", "/workspaces", "workspaces", "workspaces-read", get_workspaces },
	{ "GET", "/workspaces/*/extractions/templates", "templates", "templates-read", get_templates },
	{ "GET", "/extractions/templates/*", "get_template", "templates-read", get_template },
	{ "POST", "/extractions/sessions", "create_session", "sessions-write", create_session, true },
	{ "GET", "/extractions/sessions", "sessions", "sessions-read", get_sessions, false, "sessions.list" },
	{ "GET", "/extractions/templates/*/sessions", "template_sessions", "sessions-read", get_template_sessions,
	  false, "sessions.of_template" },
	{ "GET", "/workspaces/*/extractions/sessions", "workspace_sessions", "sessions-read", get_workspace_sessions,
	  false, "sessions.of_workspace" },
	{ "GET", "/extractions/sessions/*", "get_session", "sessions-read", get_session },
	{ "PUT", "/extractions/sessions/*", "update_session", "sessions-write", update_session, true },
	{ "DELETE", "/extractions/sessions/*", "delete_session", "sessions-write", delete_session },
	{ "GET", "/extractions/sessions/*/documents", "list", "sessions-read", get_session_documents },
	{ "POST", "/extractions/sessions/*/documents", "upload_legacy", "sessions-write", upload_document_legacy, true,
	  "upload.legacy" },
	{ "POST", "/extractions/sessions/*/documents/upload", "upload", "sessions-write", upload_documents, true },
	{ "POST", "/extractions/sessions/*/documents/attach", "attach", "sessions-write", attach_documents, true },
	{ "DELETE", "/extractions/sessions/*/documents/*", "detach", "sessions-write", detach_document },
	{ "POST", "/vapor/signed-storage-url", "sign", "", sign_upload, true },
	{ "GET", "/extractions/documents/*", "get_document", "sessions-read", get_document },
	{ "DELETE", "/extractions/documents/*", "delete_document", "sessions-write", delete_document },
	{ "GET", "/extractions/documents/*/url", "link", "sessions-read", get_link },
	{ "GET", "/extractions/documents/*/chunks", "chunks", "sessions-read", get_chunks },
	{ "GET", "/workspaces/*/documents", "library", "documents-read", get_library },
	{ "POST", "/workspaces/*/documents", "create_document", "documents-write", create_document, true },
	{ "GET", "/workspaces/*/documents/*", "get_library_document", "documents-read", get_library_document },
	{ "GET", "/workspaces/*/documents/*/url", "library_link", "workspaces-read documents-read", get_library_link },
	{ "POST", "/workspaces/*/documents/*/reparse", "reparse", "documents-write", reparse, true },
	{ "GET", "/extractions/sessions/*/results", "results", "sessions-read", get_results },
	{ "POST", "/extractions/sessions/*/results", "run", "sessions-write", run_extraction },
	{ "GET", "/extractions/results/*", "get_result", "sessions-read", get_result },
	{ "DELETE", "/extractions/results/*", "delete_result", "sessions-write", delete_result },
	{ "GET", "/extractions/results/*/export/excel", "excel", "sessions-read", get_excel },
};

/* The names of the table above, of the storage, and of what is nowhere. */
static const char *const route_names[] = {
	"workspaces",
	"templates",
	"get_template",
	"create_session",
	"sessions",
	"template_sessions",
	"workspace_sessions",
	"get_session",
	"update_session",
	"delete_session",
	"list",
	"upload_legacy",
	"upload",
	"attach",
	"detach",
	"sign",
	"get_document",
	"delete_document",
	"link",
	"chunks",
	"library",
	"create_document",
	"get_library_document",
	"library_link",
	"reparse",
	"results",
	"run",
	"get_result",
	"delete_result",
	"excel",
	"unknown",
	"put",
	"download",
	"storage_other",
	NULL,
};

/* args may be NULL. */
static bool path_matches(const char *pattern, const char *path, char **args)
{
	size_t count = 0;
	while (*pattern != 0) {
		if (*pattern != '*') {
			if (*pattern++ != *path++)
				return false;
			continue;
		}
		size_t n = strcspn(path, "/");
		if (n == 0)
			return false;
		if (args != NULL)
			args[count] = strndup(path, n);
		count++;
		pattern++;
		path += n;
	}
	return *path == 0;
}

static bool route_is_on(struct sandbox *s, const struct route *t)
{
	return t->knob == NULL || !switch_is(s, t->knob, "off");
}

/* Matched against the raw path, so that an escaped slash stays inside its segment. */
static const struct route *find_route(struct request *q, bool *ret_path_is_known)
{
	*ret_path_is_known = false;
	for (size_t i = 0; i < COUNT_OF(routes); i++) {
		if (!route_is_on(q->sandbox, &routes[i]) || !path_matches(routes[i].path, q->raw_path, NULL))
			continue;
		*ret_path_is_known = true;
		if (strcmp(routes[i].method, q->method) == 0)
			return &routes[i];
	}
	return NULL;
}

/* A route that is switched off keeps its name, so that a probe can be counted. */
static const char *name_route(struct request *q)
{
	for (size_t i = 0; i < COUNT_OF(routes); i++)
		if (path_matches(routes[i].path, q->raw_path, NULL) && strcmp(routes[i].method, q->method) == 0)
			return routes[i].name;
	return "unknown";
}

static bool pass_limit(struct call *c)
{
	struct sandbox *s = c->r->sandbox;
	int64_t limit = switch_number(s, "rate.limit", -1), left = 0, retry_s = 0;
	if (limit < 0)
		return true;
	bool admitted = sandbox_admit(s, c->q->client, limit, &left, &retry_s);
	if (switch_on(s, "rate.headers")) {
		CLEANUP(text_free) char *limit_text = text_format("%lld", (long long)limit);
		CLEANUP(text_free) char *left_text = text_format("%lld", (long long)left);
		CLEANUP(text_free) char *retry_text = text_format("%lld", (long long)retry_s);
		answer_header(&c->q->answer, "X-RateLimit-Limit", limit_text);
		answer_header(&c->q->answer, "X-RateLimit-Remaining", left_text);
		if (!admitted)
			answer_header(&c->q->answer, "Retry-After", retry_text);
	}
	if (!admitted)
		refuse(c, 429, "Too Many Attempts.");
	return admitted;
}

static bool authenticate(struct call *c)
{
	const char *header = request_header(c->q, "Authorization");
	struct token *t = NULL;
	if (header != NULL && strncasecmp(header, "Bearer ", 7) == 0)
		HASH_FIND_STR(c->r->tokens, header + 7, t);
	if (t == NULL || t->is_revoked || (t->expires_ms != 0 && sandbox_now_ms(c->r->sandbox) >= t->expires_ms)) {
		refuse(c, 401, "Unauthenticated.");
		return false;
	}
	c->token = t;
	return true;
}

static bool has_abilities(struct call *c, const char *wanted)
{
	CLEANUP(text_free) char *all = text_copy(wanted);
	char *rest = all;
	for (char *one = strsep(&rest, " "); one != NULL && c->token->abilities != NULL; one = strsep(&rest, " ")) {
		bool found = *one == 0;
		const cJSON *has;
		cJSON_ArrayForEach (has, c->token->abilities)
			found |= cJSON_IsString(has) && strcmp(has->valuestring, one) == 0;
		if (found)
			continue;
		refuse(c, 403, "This action is unauthorized.");
		return false;
	}
	return true;
}

static bool read_body(struct call *c, const struct route *t)
{
	if (!t->takes_body)
		return true;
	const char *type = request_header(c->q, "Content-Type");
	if (type == NULL || strncasecmp(type, "application/json", 16) != 0 || strchr("; ", type[16]) == NULL) {
		complain(c, "body", "Only JSON is taken: send Content-Type: application/json.");
		(void)is_invalid(c);
		return false;
	}
	if (c->q->body_bytes > 0 && strlen(c->q->body) == c->q->body_bytes)
		c->body = cJSON_ParseWithOpts(c->q->body, NULL, true);
	if (c->body == NULL) {
		refuse(c, 400, "Malformed JSON.");
		return false;
	}
	if (!cJSON_IsObject(c->body)) {
		complain(c, "body", "The body must be a JSON object.");
		(void)is_invalid(c);
		return false;
	}
	return true;
}

static bool accepts_json(struct call *c)
{
	const char *accept = request_header(c->q, "Accept");
	if (!switch_on(c->r->sandbox, "strict.accept") ||
	    (accept != NULL && strstr(accept, "application/json") != NULL))
		return true;
	answer_text(
		&c->q->answer, 406, "text/html; charset=utf-8",
		"<!DOCTYPE html>\n<html><head><title>Not Acceptable</title></head><body><h1>406</h1></body></html>\n");
	return false;
}

static void handle_call(struct call *c)
{
	bool path_is_known;
	if (!pass_limit(c) || !accepts_json(c))
		return;
	const struct route *t = find_route(c->q, &path_is_known);
	if (t == NULL && path_is_known) {
		CLEANUP(text_free)
		char *words = text_format("The %s method is not supported for this route.", c->q->method);
		for (size_t i = 0; i < COUNT_OF(routes); i++)
			if (route_is_on(c->q->sandbox, &routes[i]) &&
			    path_matches(routes[i].path, c->q->raw_path, NULL))
				answer_header(&c->q->answer, "Allow", routes[i].method);
		refuse(c, 405, words);
		return;
	}
	if (t == NULL) {
		not_found(c);
		return;
	}
	(void)path_matches(t->path, c->q->raw_path, c->args);
	for (size_t i = 0; i < ARGS_MAX && c->args[i] != NULL; i++) {
		char *plain = url_decode(c->args[i], false);
		free(c->args[i]);
		c->args[i] = plain;
	}
	if (authenticate(c) && has_abilities(c, t->abilities) && read_body(c, t))
		t->run(c);
}

static void handle(struct request *q)
{
	struct call c = { .q = q, .r = q->state };
	handle_call(&c);
	for (size_t i = 0; i < ARGS_MAX; i++)
		free(c.args[i]);
	cJSON_Delete(c.body);
	cJSON_Delete(c.errors);
}

/* --- Control --- */

static int64_t now_or(struct raydocs *r, const cJSON *in, const char *key)
{
	return json_number(in, key, sandbox_now_ms(r->sandbox));
}

static struct workspace *workspace_add(struct raydocs *r, int64_t id, const char *name, const cJSON *members)
{
	struct workspace *w = allocate(sizeof *w);
	w->id = id;
	w->name = text_copy(name);
	w->created_ms = sandbox_now_ms(r->sandbox);
	w->members = members != NULL ? cJSON_Duplicate(members, true) : cJSON_CreateArray();
	if (members == NULL)
		cJSON_AddItemToArray(w->members, cJSON_CreateString("demo"));
	HASH_ADD(hh, r->workspaces, id, sizeof w->id, w);
	sandbox_changed(r->sandbox);
	return w;
}

static struct template *template_add(struct raydocs *r, const char *id, const char *name, int64_t workspace_id)
{
	struct template *t = allocate(sizeof *t);
	t->id = id == NULL ? uuid_new() : text_copy(id);
	t->name = text_copy(name);
	t->workspace_id = workspace_id;
	t->created_ms = sandbox_now_ms(r->sandbox);
	HASH_ADD_KEYPTR(hh, r->templates, t->id, strlen(t->id), t);
	sandbox_changed(r->sandbox);
	return t;
}

static struct workspace *some_workspace(struct raydocs *r)
{
	return r->workspaces != NULL ? r->workspaces : workspace_add(r, 7, "Accounts payable", NULL);
}

static struct template *some_template(struct raydocs *r)
{
	return r->templates != NULL ? r->templates : template_add(r, NULL, "Supplier bills", some_workspace(r)->id);
}

static int say_id(cJSON **ret, const char *id)
{
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "id", id);
	return 200;
}

static int control_workspace(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	int64_t id = json_number(in, "id", 0);
	for (const struct workspace *w = r->workspaces; json_get(in, "id") == NULL && w != NULL; w = w->hh.next)
		id = w->id > id ? w->id : id;
	if (json_get(in, "id") == NULL)
		id = id == 0 ? 7 : id + 1;
	if (find_workspace(r, id) != NULL)
		return control_refuse(ret, 400, "there is a workspace %lld", (long long)id);
	struct workspace *w = workspace_add(r, id, json_text(in, "name", "Workspace"), json_get(in, "members"));
	w->icon = text_copy(json_text(in, "icon", NULL));
	*ret = cJSON_CreateObject();
	cJSON_AddNumberToObject(*ret, "id", (double)id);
	return 200;
}

static int control_template(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	const char *id = json_text(in, "id", NULL);
	int64_t workspace_id = json_number(in, "workspace", 0);
	if (json_get(in, "workspace") == NULL)
		workspace_id = some_workspace(r)->id;
	if (find_workspace(r, workspace_id) == NULL)
		return control_refuse(ret, 404, "no such workspace");
	if (id != NULL && (!uuid_is_valid(id) || find_template(r, id) != NULL))
		return control_refuse(ret, 400, "the id is no uuid, or taken");
	return say_id(ret, template_add(r, id, json_text(in, "name", "Template"), workspace_id)->id);
}

static int control_session(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	const char *id = json_text(in, "id", NULL), *template_id = json_text(in, "template", NULL);
	if (template_id == NULL)
		template_id = some_template(r)->id;
	if (find_template(r, template_id) == NULL)
		return control_refuse(ret, 404, "no such template");
	struct session *s = id == NULL ? NULL : find_session(r, id);
	if (id != NULL && !uuid_is_valid(id))
		return control_refuse(ret, 400, "the id is no uuid");
	if (s != NULL)
		return control_refuse(ret, 400, "there is a session %s", id);
	const cJSON *name = json_get(in, "name");
	s = session_add(r, id, cJSON_IsNull(name) ? NULL : json_text(in, "name", "Session"), template_id);
	s->status = text_copy(json_text(in, "status", NULL));
	s->created_ms = s->updated_ms = now_or(r, in, "created_ms");
	s->fields = cJSON_Duplicate(json_get(in, "fields"), true);
	return say_id(ret, s->id);
}

static int control_token(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	CLEANUP(text_free) char *uuid = uuid_new();
	CLEANUP(text_free) char *made = text_format("rd_live_%s", uuid);
	const char *text = json_text(in, "token", made);
	struct token *t = NULL;
	HASH_FIND_STR(r->tokens, text, t);
	if (t == NULL) {
		t = allocate(sizeof *t);
		t->text = text_copy(text);
		HASH_ADD_KEYPTR(hh, r->tokens, t->text, strlen(t->text), t);
	}
	free(t->user);
	t->user = text_copy(json_text(in, "user", "demo"));
	cJSON_Delete(t->abilities);
	const cJSON *abilities = json_get(in, "abilities");
	t->abilities = cJSON_IsArray(abilities) ? cJSON_Duplicate(abilities, true) : NULL;
	t->workspace_id = json_number(in, "workspace", 0);
	int64_t life_ms = json_number(in, "expires_in_ms", 0);
	t->expires_ms = life_ms > 0 ? sandbox_now_ms(r->sandbox) + life_ms : 0;
	t->is_revoked = false;
	sandbox_changed(r->sandbox);
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "token", t->text);
	return 200;
}

static int control_revoke(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	struct token *t = NULL;
	HASH_FIND_STR(r->tokens, json_text(in, "token", ""), t);
	if (t == NULL)
		return control_refuse(ret, 404, "no such token");
	t->is_revoked = true;
	sandbox_changed(r->sandbox);
	return 200;
}

static void replace_text(char **at, const char *text)
{
	if (text == NULL)
		return;
	free(*at);
	*at = text_copy(text);
}

/* The fields that a new document and a changed one share. */
static void document_set(struct raydocs *r, struct document *d, const cJSON *in)
{
	const char *status = json_text(in, "status", NULL);
	char hash[SHA256_HEX_BYTES];
	config_hash_of("control", hash);
	replace_text(&d->filename, json_text(in, "filename", NULL));
	if (json_get(in, "filename") != NULL) {
		free(d->filename_json);
		d->filename_json = NULL;
	}
	replace_text(&d->filename_json, json_text(in, "filename_json", NULL));
	replace_text(&d->mime, json_text(in, "mime", NULL));
	replace_text(&d->source_url, json_text(in, "source_url", NULL));
	d->pages = json_number(in, "pages", d->pages);
	d->fails = json_bool(in, "fail", d->fails);
	d->created_ms = json_number(in, "created_ms", d->created_ms);
	if (json_get(in, "fields") != NULL) {
		cJSON_Delete(d->fields);
		d->fields = cJSON_Duplicate(json_get(in, "fields"), true);
	}
	if (json_get(in, "without") != NULL) {
		cJSON_Delete(d->without);
		d->without = cJSON_Duplicate(json_get(in, "without"), true);
	}
	if (status != NULL) {
		bool is_failed = strcmp(status, "failed") == 0;
		bool is_done = strcmp(status, "processed") == 0 || strcmp(status, "parsed") == 0 ||
			       strcmp(status, "ready") == 0;
		if (is_failed || is_done)
			parse(r, d, hash, true)->fails = is_failed;
		free(d->status);
		d->status = is_failed || strcmp(status, "processed") == 0 ? NULL : text_copy(status);
	}
	sandbox_changed(r->sandbox);
}

static char *name_by_pattern(const char *pattern, int64_t n)
{
	const char *at = strstr(pattern, "{n}");
	return at == NULL ? text_copy(pattern)
			  : text_format("%.*s%06lld%s", (int)(at - pattern), pattern, (long long)n, at + 3);
}

static int document_fill(struct raydocs *r, struct document *d, const cJSON *in, int64_t index)
{
	const char *text = json_text(in, "text", NULL), *base64 = json_text(in, "base64", NULL);
	if (base64 != NULL) {
		size_t n = strlen(base64), pad = 0;
		while (pad < 2 && pad < n && base64[n - 1 - pad] == '=')
			pad++;
		unsigned char *bytes = allocate(n + 4);
		int got = n % 4 != 0 ? -1 : EVP_DecodeBlock(bytes, (const unsigned char *)base64, (int)n);
		int error = got < 0 ? -1 : storage_keep(&r->storage, bytes, (size_t)got - pad, &d->content, d->sha256);
		free(bytes);
		return error;
	}
	if (text != NULL)
		return storage_keep(&r->storage, text, strlen(text), &d->content, d->sha256);
	int64_t size = json_number(in, "size", 0);
	if (json_get(in, "size") == NULL)
		size = content_generated_bytes_min() + index * 37 % 997;
	int64_t seed = json_number(in, "seed", r->series);
	d->content = content_generated((uint64_t)seed, (uint64_t)index, size);
	return content_hash(&d->content, d->sha256);
}

static int control_document(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	const char *id = json_text(in, "id", NULL), *session_id = json_text(in, "session", NULL);
	struct session *s = session_id == NULL ? NULL : find_session(r, session_id);
	if (session_id != NULL && s == NULL)
		return control_refuse(ret, 404, "no session '%s'", session_id);
	if (id != NULL && !uuid_is_valid(id))
		return control_refuse(ret, 400, "the id is no uuid");
	struct document *d = id == NULL ? NULL : find_document(r, id);
	if (d != NULL) {
		document_set(r, d, in);
		if (s != NULL)
			attach(r, s, d);
		return say_id(ret, d->id);
	}
	int64_t workspace_id = json_number(in, "workspace", 0);
	if (json_get(in, "workspace") == NULL)
		workspace_id = s != NULL ? session_workspace(r, s) : some_workspace(r)->id;
	if (find_workspace(r, workspace_id) == NULL)
		return control_refuse(ret, 404, "no such workspace");
	int64_t count = json_number(in, "count", 1), from = json_number(in, "from", 1);
	const char *pattern = json_text(in, "pattern", json_text(in, "filename", "document-{n}.pdf"));
	if (count > 1 && id != NULL)
		return control_refuse(ret, 400, "one id for many");
	r->series++;
	CLEANUP(json_free) cJSON *ids = cJSON_CreateArray();
	CLEANUP(text_free) char *last = NULL;
	for (int64_t i = 0; i < count; i++) {
		d = document_add(r, id, workspace_id);
		d->filename = name_by_pattern(pattern, from + i);
		d->mime = text_copy("application/pdf");
		if (document_fill(r, d, in, from + i) < 0) {
			document_delete(r, d);
			return control_refuse(ret, 400, "no such content");
		}
		if (count == 1)
			document_set(r, d, in);
		else if (json_text(in, "status", NULL) != NULL || json_get(in, "fields") != NULL)
			document_set(r, d, in);
		const char *sha256 = json_text(in, "sha256", NULL);
		if (sha256 != NULL) /* may lie, so that a client's check can be seen to work */
			snprintf(d->sha256, sizeof d->sha256, "%s", sha256);
		if (count > 1 && json_text(in, "filename", NULL) != NULL) {
			free(d->filename);
			d->filename = name_by_pattern(pattern, from + i);
		}
		document_index(r, d);
		if (s != NULL)
			session_append(s, d); /* new, so it can't be there yet */
		if (count <= 1000)
			cJSON_AddItemToArray(ids, cJSON_CreateString(d->id));
	}
	if (s != NULL)
		session_touch(r, s);
	last = count > 0 ? text_copy(d->id) : text_copy("");
	say_id(ret, last);
	cJSON_AddItemToObject(*ret, "ids", cJSON_Duplicate(ids, true));
	return 200;
}

static int control_rename(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	struct document *d = find_document(r, json_text(in, "document", ""));
	struct session *s = find_session(r, json_text(in, "session", ""));
	const char *name = json_text(in, "name", NULL);
	if (name == NULL || (d == NULL && s == NULL))
		return control_refuse(ret, 404, "no such document or session, or no name");
	if (d != NULL) {
		replace_text(&d->filename, name);
		free(d->filename_json);
		d->filename_json = NULL;
		sandbox_changed(r->sandbox);
	} else {
		replace_text(&s->name, name);
		session_touch(r, s);
	}
	return 200;
}

static int control_attach(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	struct document *d = find_document(r, json_text(in, "document", ""));
	struct session *s = find_session(r, json_text(in, "session", ""));
	if (d == NULL || s == NULL)
		return control_refuse(ret, 404, "no such document or session");
	attach(r, s, d);
	return 200;
}

static int control_detach(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	struct session *s = find_session(r, json_text(in, "session", ""));
	if (s == NULL || !session_remove(s, find_document(r, json_text(in, "document", ""))))
		return control_refuse(ret, 404, "no such session, or the document is not in it");
	session_touch(r, s);
	return 200;
}

static int control_delete_session(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	struct session *s = find_session(r, json_text(in, "session", ""));
	if (s == NULL)
		return control_refuse(ret, 404, "no such session");
	session_delete(r, s);
	return 200;
}

static int control_delete_document(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	struct document *d = find_document(r, json_text(in, "document", ""));
	if (d == NULL)
		return control_refuse(ret, 404, "no such document");
	document_delete(r, d);
	return 200;
}

static int control_run(void *state, const cJSON *in, cJSON **ret)
{
	struct raydocs *r = state;
	struct document *d = find_document(r, json_text(in, "document", ""));
	struct session *s = find_session(r, json_text(in, "session", ""));
	char hash[SHA256_HEX_BYTES];
	config_hash_of(s != NULL ? s->template_id : "control", hash);
	if (d == NULL && s == NULL)
		return control_refuse(ret, 404, "no such document or session");
	bool at_once = json_bool(in, "at_once", false);
	if (d != NULL)
		parse(r, d, hash, at_once);
	else
		for (size_t i = 0; i < s->count; i++)
			parse(r, s->documents[i], hash, at_once);
	return 200;
}

static int control_content(void *state, const cJSON *in, cJSON **ret)
{
	struct document *d = find_document(state, json_text(in, "document", ""));
	struct content_reader *reader = NULL;
	if (d == NULL || content_open(&d->content, &reader) < 0)
		return control_refuse(ret, 404, "no such document");
	size_t n = (size_t)d->content.size_bytes;
	unsigned char *bytes = allocate(n + 1);
	char *base64 = allocate(n * 4 / 3 + 8);
	for (long got = 1, at = 0; got > 0; at += got)
		got = content_read(reader, at, bytes + at, n - (size_t)at);
	content_close(reader);
	EVP_EncodeBlock((unsigned char *)base64, bytes, (int)n);
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "base64", base64);
	cJSON_AddNumberToObject(*ret, "size", (double)n);
	free(base64);
	free(bytes);
	return 200;
}

/* An account to look at: whoever starts the program for the first time finds something in each folder. */
static int control_demo(void *state, const cJSON *in, cJSON **ret)
{
	static const struct {
		const char *session, *filename, *status;
	} documents[] = {
		{ "Q1 2024 Invoices", "invoice_001.pdf", "processed" },
		{ "Q1 2024 Invoices", "invoice_002.pdf", "processed" },
		{ "Q1 2024 Invoices", "invoice_003.pdf", "uploaded" },
		{ "Q1 2024 Invoices", "invoice_004.pdf", "failed" },
		{ "Scans", "scan 2024-03-01.pdf", "uploaded" },
		{ "Scans", "scan 2024-03-02.pdf", "queued" },
	};
	struct raydocs *r = state;
	(void)in;
	struct session *first = NULL;
	for (struct session *s = r->sessions; s != NULL; s = s->hh.next)
		if (s->name != NULL && strcmp(s->name, "Q1 2024 Invoices") == 0)
			first = s;
	struct token *t = NULL;
	for (t = r->tokens; t != NULL && strncmp(t->text, "rd_live_", 8) != 0; t = t->hh.next)
		;
	if (t == NULL || t->is_revoked) {
		CLEANUP(json_free) cJSON *made = NULL, *none = cJSON_CreateObject();
		control_token(r, none, &made);
		HASH_FIND_STR(r->tokens, json_text(made, "token", ""), t);
	}
	for (size_t i = 0; i < COUNT_OF(documents) && first == NULL; i++) {
		struct session *s = NULL;
		for (struct session *o = r->sessions; o != NULL; o = o->hh.next)
			if (o->name != NULL && strcmp(o->name, documents[i].session) == 0)
				s = o;
		if (s == NULL)
			s = session_add(r, NULL, documents[i].session, some_template(r)->id);
		CLEANUP(json_free) cJSON *wish = cJSON_CreateObject(), *made = NULL;
		cJSON_AddStringToObject(wish, "session", s->id);
		cJSON_AddStringToObject(wish, "filename", documents[i].filename);
		cJSON_AddStringToObject(wish, "status", documents[i].status);
		control_document(r, wish, &made);
	}
	if (first == NULL)
		session_add(r, NULL, "Empty", some_template(r)->id);

	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	if (out == NULL)
		abort();
	for (const struct workspace *w = r->workspaces; w != NULL; w = w->hh.next)
		fprintf(out, "workspace  %lld  %s\n", (long long)w->id, w->name);
	for (const struct template *p = r->templates; p != NULL; p = p->hh.next)
		fprintf(out, "template   %s  %s\n", p->id, p->name);
	for (const struct session *s = r->sessions; s != NULL; s = s->hh.next)
		fprintf(out, "session    %s  %s (%zu documents)\n", s->id, s->name == NULL ? "" : s->name, s->count);
	fclose(out);
	*ret = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret, "token", t->text);
	cJSON_AddStringToObject(*ret, "text", text);
	free(text);
	return 200;
}

static const struct control_op controls[] = {
	{ "POST", "/workspace", " id name icon members ", control_workspace },
	{ "POST", "/template", " id name workspace ", control_template },
	{ "POST", "/session", " id name template status created_ms fields ", control_session },
	{ "POST", "/token", " token user abilities workspace expires_in_ms ", control_token },
	{ "POST", "/revoke", " token ", control_revoke },
	{ "POST", "/document",
	  " id session workspace filename filename_json text base64 size seed count from pattern status mime sha256 "
	  "pages fail "
	  "source_url created_ms fields without ",
	  control_document },
	{ "POST", "/rename", " document session name ", control_rename },
	{ "POST", "/attach", " session document ", control_attach },
	{ "POST", "/detach", " session document ", control_detach },
	{ "POST", "/delete-session", " session ", control_delete_session },
	{ "POST", "/delete-document", " document ", control_delete_document },
	{ "POST", "/run", " document session at_once ", control_run },
	{ "POST", "/content", " document ", control_content },
	{ "POST", "/demo", "", control_demo },
};

/* --- State --- */

static cJSON *describe_document(struct raydocs *r, const struct document *d)
{
	cJSON *o = cJSON_CreateObject();
	cJSON_AddStringToObject(o, "id", d->id);
	add_filename(o, "filename", d);
	cJSON_AddNumberToObject(o, "workspace", (double)d->workspace_id);
	cJSON_AddStringToObject(o, "sha256", d->sha256);
	cJSON_AddNumberToObject(o, "size", (double)d->content.size_bytes);
	cJSON_AddStringToObject(o, "mime", d->mime == NULL ? "" : d->mime);
	cJSON_AddStringToObject(o, "status", status_word(r, d, sandbox_now_ms(r->sandbox)));
	cJSON_AddNumberToObject(o, "created_ms", (double)d->created_ms);
	return o;
}

static cJSON *describe(void *state, const cJSON *in)
{
	struct raydocs *r = state;
	const char *only = json_text(in, "session", NULL);
	bool with_documents = strcmp(json_text(in, "documents", "yes"), "no") != 0;
	cJSON *o = cJSON_CreateObject();
	cJSON *list = cJSON_AddArrayToObject(o, "workspaces");
	for (const struct workspace *w = r->workspaces; w != NULL; w = w->hh.next) {
		cJSON *one = cJSON_CreateObject();
		cJSON_AddNumberToObject(one, "id", (double)w->id);
		cJSON_AddStringToObject(one, "name", w->name);
		cJSON_AddItemToObject(one, "members", cJSON_Duplicate(w->members, true));
		cJSON_AddItemToArray(list, one);
	}
	list = cJSON_AddArrayToObject(o, "templates");
	for (const struct template *t = r->templates; t != NULL; t = t->hh.next) {
		cJSON *one = cJSON_CreateObject();
		cJSON_AddStringToObject(one, "id", t->id);
		cJSON_AddStringToObject(one, "name", t->name);
		cJSON_AddNumberToObject(one, "workspace", (double)t->workspace_id);
		cJSON_AddItemToArray(list, one);
	}
	list = cJSON_AddArrayToObject(o, "sessions");
	for (const struct session *s = r->sessions; s != NULL; s = s->hh.next) {
		if (only != NULL && strcmp(only, s->id) != 0)
			continue;
		cJSON *one = cJSON_CreateObject();
		cJSON_AddStringToObject(one, "id", s->id);
		if (s->name != NULL)
			cJSON_AddStringToObject(one, "name", s->name);
		else
			cJSON_AddNullToObject(one, "name");
		cJSON_AddStringToObject(one, "template", s->template_id);
		cJSON_AddNumberToObject(one, "workspace", (double)session_workspace(r, s));
		cJSON_AddNumberToObject(one, "document_count", (double)s->count);
		cJSON *documents = with_documents ? cJSON_AddArrayToObject(one, "documents") : NULL;
		for (size_t i = 0; i < s->count && with_documents; i++)
			cJSON_AddItemToArray(documents, describe_document(r, s->documents[i]));
		cJSON *results = cJSON_AddArrayToObject(one, "results");
		for (const struct result *x = r->results; x != NULL; x = x->hh.next)
			if (strcmp(x->session_id, s->id) == 0)
				cJSON_AddItemToArray(results, result_json(r, x, false, false));
		cJSON_AddItemToArray(list, one);
	}
	cJSON_AddNumberToObject(o, "document_count", (double)HASH_COUNT(r->documents));
	list = with_documents && only == NULL ? cJSON_AddArrayToObject(o, "documents") : NULL;
	for (const struct document *d = r->documents; d != NULL && list != NULL; d = d->hh.next)
		cJSON_AddItemToArray(list, describe_document(r, d));
	list = cJSON_AddArrayToObject(o, "objects");
	for (const struct object *b = r->storage.objects; b != NULL; b = b->hh.next) {
		cJSON *one = cJSON_CreateObject();
		cJSON_AddStringToObject(one, "key", b->key);
		cJSON_AddStringToObject(one, "content_type", b->content_type == NULL ? "" : b->content_type);
		cJSON_AddBoolToObject(one, "put", b->is_put);
		cJSON_AddBoolToObject(one, "used", b->is_used);
		cJSON_AddStringToObject(one, "sha256", b->sha256);
		cJSON_AddNumberToObject(one, "size", (double)b->size_bytes);
		cJSON_AddItemToArray(list, one);
	}
	return o;
}

static void save_text(cJSON *to, const char *key, const char *text)
{
	if (text != NULL)
		cJSON_AddStringToObject(to, key, text);
}

static cJSON *save_document(const struct document *d)
{
	cJSON *one = cJSON_CreateObject();
	save_text(one, "id", d->id);
	save_text(one, "filename", d->filename);
	save_text(one, "filename_json", d->filename_json);
	cJSON_AddNumberToObject(one, "workspace", (double)d->workspace_id);
	cJSON_AddNumberToObject(one, "created_ms", (double)d->created_ms);
	cJSON_AddNumberToObject(one, "pages", (double)d->pages);
	save_text(one, "mime", d->mime);
	save_text(one, "status", d->status);
	save_text(one, "source_url", d->source_url);
	save_text(one, "sha256", d->sha256);
	cJSON_AddBoolToObject(one, "is_found_by_hash", d->hash_key != NULL);
	cJSON_AddNumberToObject(one, "size", (double)d->content.size_bytes);
	if (d->content.path != NULL) {
		save_text(one, "blob", strrchr(d->content.path, '/') + 1);
	} else {
		cJSON_AddNumberToObject(one, "seed", (double)d->content.seed);
		cJSON_AddNumberToObject(one, "index", (double)d->content.index);
	}
	cJSON_AddBoolToObject(one, "fails", d->fails);
	if (d->fields != NULL)
		cJSON_AddItemToObject(one, "fields", cJSON_Duplicate(d->fields, true));
	if (d->without != NULL)
		cJSON_AddItemToObject(one, "without", cJSON_Duplicate(d->without, true));
	cJSON *list = cJSON_AddArrayToObject(one, "parsings");
	for (size_t i = 0; i < d->parsing_count; i++) {
		const struct parsing *p = &d->parsings[i];
		cJSON *o = cJSON_CreateObject();
		save_text(o, "id", p->id);
		save_text(o, "config_hash", p->config_hash);
		save_text(o, "version", p->version);
		cJSON_AddNumberToObject(o, "queued_ms", (double)p->queued_ms);
		cJSON_AddNumberToObject(o, "started_ms", (double)p->started_ms);
		cJSON_AddNumberToObject(o, "done_ms", (double)p->done_ms);
		cJSON_AddBoolToObject(o, "fails", p->fails);
		cJSON_AddItemToArray(list, o);
	}
	return one;
}

static void load_document(struct raydocs *r, const cJSON *one)
{
	struct document *d = document_add(r, json_text(one, "id", ""), json_number(one, "workspace", 0));
	d->filename = text_copy(json_text(one, "filename", ""));
	d->filename_json = text_copy(json_text(one, "filename_json", NULL));
	d->created_ms = json_number(one, "created_ms", 0);
	d->pages = json_number(one, "pages", 1);
	d->mime = text_copy(json_text(one, "mime", NULL));
	d->status = text_copy(json_text(one, "status", NULL));
	d->source_url = text_copy(json_text(one, "source_url", NULL));
	snprintf(d->sha256, sizeof d->sha256, "%s", json_text(one, "sha256", ""));
	const char *blob = json_text(one, "blob", NULL);
	d->content = content_generated((uint64_t)json_number(one, "seed", 0), (uint64_t)json_number(one, "index", 0),
				       json_number(one, "size", 0));
	if (blob != NULL)
		d->content.path = text_format("%s/%s", r->storage.blobs_dir, blob);
	d->fails = json_bool(one, "fails", false);
	d->fields = cJSON_Duplicate(json_get(one, "fields"), true);
	d->without = cJSON_Duplicate(json_get(one, "without"), true);
	const cJSON *o;
	cJSON_ArrayForEach (o, json_get(one, "parsings")) {
		d->parsings = realloc(d->parsings, (d->parsing_count + 1) * sizeof *d->parsings);
		if (d->parsings == NULL)
			abort();
		d->parsings[d->parsing_count++] = (struct parsing){
			.id = text_copy(json_text(o, "id", "")),
			.config_hash = text_copy(json_text(o, "config_hash", "")),
			.version = text_copy(json_text(o, "version", "v1")),
			.queued_ms = json_number(o, "queued_ms", 0),
			.started_ms = json_number(o, "started_ms", 0),
			.done_ms = json_number(o, "done_ms", 0),
			.fails = json_bool(o, "fails", false),
		};
	}
	if (json_bool(one, "is_found_by_hash", true))
		document_index(r, d);
}

static cJSON *save(void *state)
{
	struct raydocs *r = state;
	cJSON *all = cJSON_CreateObject();
	cJSON_AddNumberToObject(all, "series", (double)r->series);
	cJSON *list = cJSON_AddArrayToObject(all, "tokens");
	for (const struct token *t = r->tokens; t != NULL; t = t->hh.next) {
		cJSON *one = cJSON_CreateObject();
		save_text(one, "token", t->text);
		save_text(one, "user", t->user);
		if (t->abilities != NULL)
			cJSON_AddItemToObject(one, "abilities", cJSON_Duplicate(t->abilities, true));
		cJSON_AddNumberToObject(one, "workspace", (double)t->workspace_id);
		cJSON_AddNumberToObject(one, "expires_ms", (double)t->expires_ms);
		cJSON_AddBoolToObject(one, "revoked", t->is_revoked);
		cJSON_AddItemToArray(list, one);
	}
	list = cJSON_AddArrayToObject(all, "workspaces");
	for (const struct workspace *w = r->workspaces; w != NULL; w = w->hh.next) {
		cJSON *one = cJSON_CreateObject();
		cJSON_AddNumberToObject(one, "id", (double)w->id);
		save_text(one, "name", w->name);
		save_text(one, "icon", w->icon);
		cJSON_AddItemToObject(one, "members", cJSON_Duplicate(w->members, true));
		cJSON_AddNumberToObject(one, "created_ms", (double)w->created_ms);
		cJSON_AddItemToArray(list, one);
	}
	list = cJSON_AddArrayToObject(all, "templates");
	for (const struct template *t = r->templates; t != NULL; t = t->hh.next) {
		cJSON *one = cJSON_CreateObject();
		save_text(one, "id", t->id);
		save_text(one, "name", t->name);
		cJSON_AddNumberToObject(one, "workspace", (double)t->workspace_id);
		cJSON_AddNumberToObject(one, "created_ms", (double)t->created_ms);
		cJSON_AddItemToArray(list, one);
	}
	list = cJSON_AddArrayToObject(all, "documents");
	for (const struct document *d = r->documents; d != NULL; d = d->hh.next)
		cJSON_AddItemToArray(list, save_document(d));
	list = cJSON_AddArrayToObject(all, "sessions");
	for (const struct session *s = r->sessions; s != NULL; s = s->hh.next) {
		cJSON *one = cJSON_CreateObject();
		save_text(one, "id", s->id);
		save_text(one, "name", s->name);
		save_text(one, "template", s->template_id);
		save_text(one, "status", s->status);
		cJSON_AddNumberToObject(one, "created_ms", (double)s->created_ms);
		cJSON_AddNumberToObject(one, "updated_ms", (double)s->updated_ms);
		if (s->fields != NULL)
			cJSON_AddItemToObject(one, "fields", cJSON_Duplicate(s->fields, true));
		cJSON *ids = cJSON_AddArrayToObject(one, "documents");
		for (size_t i = 0; i < s->count; i++)
			cJSON_AddItemToArray(ids, cJSON_CreateString(s->documents[i]->id));
		cJSON_AddItemToArray(list, one);
	}
	list = cJSON_AddArrayToObject(all, "results");
	for (const struct result *x = r->results; x != NULL; x = x->hh.next) {
		cJSON *one = cJSON_CreateObject();
		save_text(one, "id", x->id);
		save_text(one, "session", x->session_id);
		save_text(one, "title", x->title);
		cJSON_AddNumberToObject(one, "created_ms", (double)x->created_ms);
		cJSON_AddNumberToObject(one, "started_ms", (double)x->started_ms);
		cJSON_AddNumberToObject(one, "done_ms", (double)x->done_ms);
		cJSON_AddBoolToObject(one, "waited", x->waited);
		cJSON_AddBoolToObject(one, "fails", x->fails);
		cJSON_AddItemToObject(one, "refs", cJSON_Duplicate(x->refs, true));
		cJSON_AddItemToObject(one, "data", cJSON_Duplicate(x->data, true));
		cJSON_AddItemToArray(list, one);
	}
	cJSON_AddItemToObject(all, "objects", storage_save(&r->storage));
	return all;
}

static void load(void *state, const cJSON *saved)
{
	struct raydocs *r = state;
	const cJSON *one, *id;
	r->series = json_number(saved, "series", 0);
	cJSON_ArrayForEach (one, json_get(saved, "tokens")) {
		struct token *t = allocate(sizeof *t);
		t->text = text_copy(json_text(one, "token", ""));
		t->user = text_copy(json_text(one, "user", "demo"));
		t->abilities = cJSON_Duplicate(json_get(one, "abilities"), true);
		t->workspace_id = json_number(one, "workspace", 0);
		t->expires_ms = json_number(one, "expires_ms", 0);
		t->is_revoked = json_bool(one, "revoked", false);
		HASH_ADD_KEYPTR(hh, r->tokens, t->text, strlen(t->text), t);
	}
	cJSON_ArrayForEach (one, json_get(saved, "workspaces")) {
		struct workspace *w = workspace_add(r, json_number(one, "id", 0), json_text(one, "name", ""),
						    json_get(one, "members"));
		w->icon = text_copy(json_text(one, "icon", NULL));
		w->created_ms = json_number(one, "created_ms", 0);
	}
	cJSON_ArrayForEach (one, json_get(saved, "templates")) {
		template_add(r, json_text(one, "id", ""), json_text(one, "name", ""), json_number(one, "workspace", 0))
			->created_ms = json_number(one, "created_ms", 0);
	}
	cJSON_ArrayForEach (one, json_get(saved, "documents"))
		load_document(r, one);
	cJSON_ArrayForEach (one, json_get(saved, "sessions")) {
		struct session *s = session_add(r, json_text(one, "id", ""), json_text(one, "name", NULL),
						json_text(one, "template", ""));
		s->status = text_copy(json_text(one, "status", NULL));
		s->created_ms = json_number(one, "created_ms", 0);
		s->updated_ms = json_number(one, "updated_ms", 0);
		s->fields = cJSON_Duplicate(json_get(one, "fields"), true);
		cJSON_ArrayForEach (id, json_get(one, "documents")) {
			struct document *d = cJSON_IsString(id) ? find_document(r, id->valuestring) : NULL;
			if (d != NULL)
				session_append(s, d);
		}
	}
	cJSON_ArrayForEach (one, json_get(saved, "results")) {
		struct result *x = allocate(sizeof *x);
		x->id = text_copy(json_text(one, "id", ""));
		x->session_id = text_copy(json_text(one, "session", ""));
		x->title = text_copy(json_text(one, "title", NULL));
		x->created_ms = json_number(one, "created_ms", 0);
		x->started_ms = json_number(one, "started_ms", 0);
		x->done_ms = json_number(one, "done_ms", 0);
		x->waited = json_bool(one, "waited", false);
		x->fails = json_bool(one, "fails", false);
		x->refs = cJSON_Duplicate(json_get(one, "refs"), true);
		x->data = cJSON_Duplicate(json_get(one, "data"), true);
		HASH_ADD_KEYPTR(hh, r->results, x->id, strlen(x->id), x);
	}
	storage_load(&r->storage, json_get(saved, "objects"));
}

static const struct content *content_of(void *state, const char *document_id)
{
	struct document *d = find_document(state, document_id);
	return d == NULL ? NULL : &d->content;
}

static void *open_service(struct sandbox *s)
{
	struct raydocs *r = allocate(sizeof *r);
	r->sandbox = s;
	r->storage.linked = linked;
	storage_init(&r->storage, s);
	return r;
}

static void close_service(void *state)
{
	struct raydocs *r = state;
	forget_all(r);
	storage_release(&r->storage);
	free(r);
}

static void reset(void *state)
{
	struct raydocs *r = state;
	forget_all(r);
	storage_reset(&r->storage);
}

static const struct origin_ops api_origin = {
	.name = "api",
	.port_offset = offsetof(struct sandbox_options, api_port),
	.route = name_route,
	.handle = handle,
	.body_bytes_max = BODY_BYTES_MAX,
};

static const struct origin_ops *const origins[] = { &api_origin, &storage_origin };

const struct service raydocs_service = {
	.name = "raydocs",
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
