/* All of Rossum is in the files called so: its URLs, JSON, authentication, paging, and its own words. A queue is a session
 * here; an annotation, together with the document it stands for, is a document. Its public sources contradict each other
 * in places; where they do, both are read. From the bottom up, with rossum_impl.h for what they share:
 *
 *	rossum_read.c      answers: ids, statuses, our own marks, documents
 *	rossum_request.c   credentials; one request; the pages of a list
 *	rossum_queue.c     queues and workspaces
 *	rossum_listing.c   what is in a queue, asked in full or told from its counts
 *	rossum_document.c  one document: its bytes, its removal, its copies
 *	rossum_upload.c    the steps of an upload, and whether it is there already
 *	rossum.c           checking, opening, and the table of ops */
#include "client/rossum.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/common.h"
#include "client/rossum_impl.h"

enum {
	MARK_BYTES_MAX = 900, /* of the metadata for ourselves: a name of 255 bytes, a hash, a size */
	RATE = 9,             /* of the documented 10 a second */
	WINDOW_MS = 1000,
};

int64_t rossum_patience_ms(const struct rossum *s, int64_t ms)
{
	return ms / s->haste;
}

void rossum_hasten(struct backend *b, int factor)
{
	rossum_from(b)->haste = factor;
}

/* ---- checking ---------------------------------------------------------------------------------------------- */

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

/* ---- opening ----------------------------------------------------------------------------------------------- */

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
