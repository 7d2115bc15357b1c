/* The list of backends, the checks all of them share, and the way from a call to its op.
 *
 * What a service does stands in its own file; what a listing is made of, in listing.c. */
#include "client/backend_impl.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/base/cleanup.h"
#include "client/base/secret.h"

enum { ID_BYTES_MAX = 200, NAME_BYTES_MAX = 1024, ABOUT_BYTES_MAX = 16384 };

extern const struct backend_ops raydocs_backend, rossum_backend;

static const struct backend_ops *const table[] = { &raydocs_backend, &rossum_backend };

enum { TABLE_COUNT = sizeof(table) / sizeof(table[0]) };

/* ---- the table --------------------------------------------------------------------------------------------- */

static const char *service_names[TABLE_COUNT + 1]; /* ends with NULL */

static void fill_service_names(void)
{
	for (int i = 0; i < TABLE_COUNT; i++)
		service_names[i] = table[i]->name;
}

const char *const *backend_services(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, fill_service_names);
	return service_names;
}

static const struct backend_ops *find_ops(const char *service)
{
	for (int i = 0; i < TABLE_COUNT; i++) {
		if (service && strcmp(table[i]->name, service) == 0)
			return table[i];
	}
	return NULL;
}

const struct backend_option *backend_options(const char *service)
{
	static const struct backend_option none[] = { { NULL } };
	const struct backend_ops *ops = find_ops(service);

	if (!ops)
		return NULL;
	return ops->options ? ops->options : none;
}

const char *document_extra(const struct document *d, const char *name)
{
	for (int i = 0; i < DOCUMENT_EXTRA_MAX && d->extra[i][0]; i++) {
		if (strcmp(d->extra[i][0], name) == 0)
			return d->extra[i][1];
	}
	return NULL;
}

const char *document_bytes_id(const struct document *d)
{
	const char *id = document_extra(d, "document");

	return id ? id : d->id;
}

/* ---- whose credentials ---------------------------------------------------------------------------------------- */

/* Stands between a backend and whoever reads credentials for it, and notes whose they were. */
struct watch {
	int (*read_credentials)(void *arg, struct credentials *ret);
	const char *(*option)(void *arg, const char *name, int nth);
	void *arg; /* for both */
	char *url; /* this and the above are set before the first reading */
	pthread_mutex_t lock;
	char account[65]; /* guarded by it */
};

static void watch_free(struct watch *w)
{
	if (!w)
		return;
	pthread_mutex_destroy(&w->lock);
	free(w->url);
	free(w);
}

/* As fs/options.c makes it before there is a backend. */
static void fingerprint(const struct watch *w, const struct credentials *c, char ret[65])
{
	CLEANUP(buf_release) struct buf about = BUF(ABOUT_BYTES_MAX);

	buf_addf(&about, "%s\n%s", w->url ? w->url : "", c->user ? c->user : "");
	secret_fingerprint(c->token ? c->token : c->password, buf_text(&about) ? buf_text(&about) : "", ret);
}

static int read_watched(void *arg, struct credentials *ret)
{
	struct watch *w = arg;
	char account[65];
	int r = w->read_credentials(w->arg, ret);

	if (r < 0)
		return r;
	fingerprint(w, ret, account);
	SCOPED_LOCK(&w->lock);
	memcpy(w->account, account, sizeof(account));
	return 0;
}

static const char *option_watched(void *arg, const char *name, int nth)
{
	struct watch *w = arg;

	return w->option(w->arg, name, nth);
}

void backend_account(const struct backend *b, char ret[65])
{
	ret[0] = '\0';
	if (b->ops->account) {
		b->ops->account(b, ret);
	} else if (b->watch) {
		SCOPED_LOCK(&b->watch->lock);
		memcpy(ret, b->watch->account, sizeof(b->watch->account));
	}
}

int backend_open(const struct backend_config *config, struct buf *why, struct backend **ret)
{
	const struct backend_ops *ops = find_ops(config->service);
	struct backend_config watched = *config;
	struct backend *opened = NULL;

	if (!ops) {
		buf_addf(why, "there is no service '%s'", config->service ? config->service : "");
		return -EINVAL;
	}
	struct watch *w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->read_credentials = config->read_credentials;
	w->option = config->option;
	w->arg = config->arg;
	(void)pthread_mutex_init(&w->lock, NULL); /* can't fail on Linux */
	watched.read_credentials = config->read_credentials ? read_watched : NULL;
	watched.option = config->option ? option_watched : NULL;
	watched.arg = w;
	int r = ops->open(&watched, why, &opened);
	if (r < 0) {
		watch_free(w);
		return r;
	}
	opened->ops = ops;
	opened->watch = w;
	const char *url = config->url ? config->url : opened->caps.default_url;
	w->url = url ? strdup(url) : NULL; /* without memory for it the account is another one, and nothing is found */
	*ret = opened;
	return 0;
}

void backend_close(struct backend *b)
{
	struct watch *w = b ? b->watch : NULL;

	if (b)
		b->ops->close(b);
	watch_free(w);
}

const struct backend_caps *backend_caps(const struct backend *b)
{
	return &b->caps;
}

/* ---- checks ------------------------------------------------------------------------------------------------ */

/* Every call begins here: its fault is empty, and one that was cancelled before it began asks nobody. */
static int call_begin(struct call *call)
{
	assert(call);
	memset(&call->fault, 0, sizeof(call->fault));
	call->fault.retry_after_ms = -1;
	if (call->transfer && atomic_load(&call->transfer->cancelled)) {
		call->fault.kind = FAULT_CANCELED;
		return -ECANCELED;
	}
	return 0;
}

static int refuse(struct call *call, enum fault_kind kind, int error, const char *words)
{
	call->fault.kind = kind;
	snprintf(call->fault.words, sizeof(call->fault.words), "%s", words);
	return error;
}

static int lacks_op(struct call *call)
{
	return refuse(call, FAULT_INVALID, -EOPNOTSUPP, "the service does not offer this");
}

/* A session's id enters paths of ours and URLs, and may have been typed by somebody: what cannot be one is not there.
 */
static bool session_id_is_sound(const char *id)
{
	size_t len = id ? strlen(id) : 0;

	if (len == 0 || len > ID_BYTES_MAX)
		return false;
	return strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-") == len;
}

/* Opaque, but it becomes one segment of a URL's path, and a dot segment would lead out of it. */
static bool document_id_is_sound(const char *id)
{
	if (!id || id[0] == '\0' || strlen(id) > ID_BYTES_MAX)
		return false;
	return strcmp(id, ".") != 0 && strcmp(id, "..") != 0;
}

static int no_session(struct call *call)
{
	return refuse(call, FAULT_GONE, -ENOENT, "this cannot be the id of a session");
}

static int no_document(struct call *call)
{
	return refuse(call, FAULT_GONE, -ENOENT, "this cannot be the id of a document");
}

static void upload_check(const struct upload *u, enum upload_step step)
{
	assert(u && u->session_id && u->name && u->sha256);
	assert(u->step == step);
	assert(step == UPLOAD_SPOOLED || u->ticket);
	(void)u;
	(void)step;
}

/* ---- calls ------------------------------------------------------------------------------------------------- */

int backend_check(struct backend *b, struct call *call)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	return b->ops->check ? b->ops->check(b, call) : lacks_op(call);
}

int backend_describe(struct backend *b, struct call *call, struct buf *ret)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	return b->ops->describe ? b->ops->describe(b, call, ret) : lacks_op(call);
}

int backend_list_sessions(struct backend *b, struct call *call, struct session_list *ret)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	return b->ops->list_sessions ? b->ops->list_sessions(b, call, ret) : lacks_op(call);
}

int backend_get_session(struct backend *b, struct call *call, const char *session_id, struct session *ret)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	if (!session_id_is_sound(session_id))
		return no_session(call);
	return b->ops->get_session ? b->ops->get_session(b, call, session_id, ret) : lacks_op(call);
}

void backend_learn_session(struct backend *b, const struct session *known)
{
	if (b->ops->learn_session)
		b->ops->learn_session(b, known);
}

int backend_list_templates(struct backend *b, struct call *call, struct template_list *ret)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	return b->ops->list_templates ? b->ops->list_templates(b, call, ret) : lacks_op(call);
}

int backend_create_session(struct backend *b, struct call *call, const char *template_id, const char *name,
			   struct session *ret)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	if (!name || name[0] == '\0' || strlen(name) > NAME_BYTES_MAX)
		return refuse(call, FAULT_INVALID, -EINVAL, "a session needs a name of at most 1024 bytes");
	return b->ops->create_session ? b->ops->create_session(b, call, template_id, name, ret) : lacks_op(call);
}

int backend_find_session_id(struct backend *b, const char *text, char **ret)
{
	return b->ops->find_session_id ? b->ops->find_session_id(b, text, ret) : -EOPNOTSUPP;
}

int backend_list_documents(struct backend *b, struct call *call, const char *session_id, struct listing *known,
			   struct listing **ret)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	if (!session_id_is_sound(session_id))
		return no_session(call);
	return b->ops->list_documents ? b->ops->list_documents(b, call, session_id, known, ret) : lacks_op(call);
}

int backend_recall_documents(struct backend *b, const char *session_id, int64_t max_age_ms, struct listing **ret)
{
	return b->ops->recall_documents ? b->ops->recall_documents(b, session_id, max_age_ms, ret) : -EAGAIN;
}

void backend_forget(struct backend *b, const char *session_id)
{
	if (b->ops->forget)
		b->ops->forget(b, session_id);
}

void backend_tell_state(struct backend *b, struct buf *ret)
{
	if (b->ops->tell_state)
		b->ops->tell_state(b, ret);
}

void backend_stop(struct backend *b)
{
	if (b->ops->stop)
		b->ops->stop(b);
}

int backend_fetch_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
			   int fd)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	if (!session_id_is_sound(session_id))
		return no_session(call);
	if (!document_id_is_sound(document_id))
		return no_document(call);
	return b->ops->fetch_document ? b->ops->fetch_document(b, call, session_id, document_id, fd) : lacks_op(call);
}

int backend_measure_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
			     int64_t *ret_bytes)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	if (!session_id_is_sound(session_id))
		return no_session(call);
	if (!document_id_is_sound(document_id))
		return no_document(call);
	return b->ops->measure_document ? b->ops->measure_document(b, call, session_id, document_id, ret_bytes)
					: lacks_op(call);
}

int backend_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
		   const char *const *document_ids, int count, struct listing **ret)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	assert(document_ids && count > 0);
	if (!session_id_is_sound(session_id) || (from_session_id && !session_id_is_sound(from_session_id)))
		return no_session(call);
	for (int i = 0; i < count; i++) {
		if (!document_id_is_sound(document_ids[i]))
			return no_document(call);
	}
	if (!b->ops->attach)
		return lacks_op(call);
	return b->ops->attach(b, call, session_id, from_session_id, document_ids, count, ret);
}

int backend_detach(struct backend *b, struct call *call, const char *session_id, const char *document_id)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	if (!session_id_is_sound(session_id))
		return no_session(call);
	if (!document_id_is_sound(document_id))
		return no_document(call);
	return b->ops->detach ? b->ops->detach(b, call, session_id, document_id) : lacks_op(call);
}

int backend_run(struct backend *b, struct call *call, const char *session_id)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	if (!session_id_is_sound(session_id))
		return no_session(call);
	return b->ops->run ? b->ops->run(b, call, session_id) : lacks_op(call);
}

int backend_upload_sign(struct backend *b, struct call *call, struct upload *u)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	upload_check(u, UPLOAD_SPOOLED);
	if (!session_id_is_sound(u->session_id))
		return no_session(call);
	return b->ops->upload_sign ? b->ops->upload_sign(b, call, u) : lacks_op(call);
}

int backend_upload_store(struct backend *b, struct call *call, struct upload *u)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	upload_check(u, UPLOAD_SIGNED);
	assert(u->fd >= 0);
	return b->ops->upload_store ? b->ops->upload_store(b, call, u) : lacks_op(call);
}

/* What holds for all is also each one's own: callers read `error` alone. */
static int all_failed(struct upload *const *us, int count, const struct fault *fault, int error)
{
	for (int i = 0; i < count; i++) {
		us[i]->error = error;
		us[i]->fault = *fault;
	}
	return error;
}

int backend_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count)
{
	int r = call_begin(call);

	assert(us && count > 0);
	assert(count == 1 || count <= b->caps.attach_batch_max);
	for (int i = 0; i < count; i++) {
		upload_check(us[i], UPLOAD_STORED);
		assert(strcmp(us[i]->session_id, us[0]->session_id) == 0);
		us[i]->error = 0;
		us[i]->document = NULL;
		memset(&us[i]->fault, 0, sizeof(us[i]->fault));
		us[i]->fault.retry_after_ms = -1;
	}
	if (r == 0 && !session_id_is_sound(us[0]->session_id))
		r = no_session(call);
	if (r == 0)
		r = b->ops->upload_attach ? b->ops->upload_attach(b, call, us, count) : lacks_op(call);
	return r < 0 ? all_failed(us, count, &call->fault, r) : 0;
}

int backend_upload_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids,
			int not_count)
{
	int r = call_begin(call);

	if (r < 0)
		return r;
	assert(u && u->session_id && u->sha256);
	if (!session_id_is_sound(u->session_id))
		return no_session(call);
	u->document = NULL;
	return b->ops->upload_find ? b->ops->upload_find(b, call, u, not_ids, not_count) : lacks_op(call);
}

/* ---- the plain structs ------------------------------------------------------------------------------------- */

void session_release(struct session *s)
{
	if (!s)
		return;
	free(s->id);
	free(s->name);
	free(s->qualifier);
	free(s->template_id);
	free(s->workspace_id);
	free(s->status);
	free(s->formats);
	memset(s, 0, sizeof(*s));
}

/* NULL stays NULL. */
static bool copy_text(const char *text, char **ret)
{
	if (text)
		*ret = strdup(text);
	return !text || *ret;
}

int session_copy(const struct session *s, struct session *ret)
{
	struct session copy = { .created_ms = s->created_ms, .updated_ms = s->updated_ms, .is_closed = s->is_closed };

	if (!copy_text(s->id, &copy.id) || !copy_text(s->name, &copy.name) ||
	    !copy_text(s->qualifier, &copy.qualifier) || !copy_text(s->template_id, &copy.template_id) ||
	    !copy_text(s->workspace_id, &copy.workspace_id) || !copy_text(s->status, &copy.status) ||
	    !copy_text(s->formats, &copy.formats)) {
		session_release(&copy);
		return -ENOMEM;
	}
	*ret = copy;
	return 0;
}

void session_list_release(struct session_list *l)
{
	if (!l)
		return;
	for (int i = 0; i < l->count; i++)
		session_release(&l->items[i]);
	free(l->items);
	*l = (struct session_list){ 0 };
}

void template_list_release(struct template_list *l)
{
	if (!l)
		return;
	for (int i = 0; i < l->count; i++) {
		free(l->items[i].id);
		free(l->items[i].name);
		free(l->items[i].workspace_id);
		free(l->items[i].workspace_name);
	}
	free(l->items);
	*l = (struct template_list){ 0 };
}

void credentials_release(struct credentials *c)
{
	if (!c)
		return;
	secret_free(c->token);
	free(c->user);
	secret_free(c->password);
	*c = (struct credentials){ 0 };
}

const char *document_state_word(enum document_state s)
{
	static const char *const words[] = {
		[STATE_LOCAL] = "local",     [STATE_QUEUED] = "queued", [STATE_UPLOADING] = "uploading",
		[STATE_WAITING] = "waiting", [STATE_STORED] = "stored", [STATE_PROCESSING] = "processing",
		[STATE_READY] = "ready",     [STATE_FAILED] = "failed",
	};

	assert(s >= STATE_LOCAL && s <= STATE_FAILED);
	return words[s];
}

/* ---- media types ------------------------------------------------------------------------------------------- */

/* What the services take, and what people have lying next to it. */
static const struct {
	const char *suffix, *mime;
} media_types[] = {
	{ "pdf", "application/pdf" },
	{ "doc", "application/msword" },
	{ "docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document" },
	{ "xls", "application/vnd.ms-excel" },
	{ "xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet" },
	{ "ppt", "application/vnd.ms-powerpoint" },
	{ "pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation" },
	{ "odt", "application/vnd.oasis.opendocument.text" },
	{ "rtf", "application/rtf" },
	{ "png", "image/png" },
	{ "jpg", "image/jpeg" },
	{ "jpeg", "image/jpeg" },
	{ "tif", "image/tiff" },
	{ "tiff", "image/tiff" },
	{ "bmp", "image/bmp" },
	{ "gif", "image/gif" },
	{ "webp", "image/webp" },
	{ "heic", "image/heic" },
	{ "xml", "application/xml" },
	{ "json", "application/json" },
	{ "csv", "text/csv" },
	{ "txt", "text/plain" },
	{ "html", "text/html" },
	{ "htm", "text/html" },
	{ "eml", "message/rfc822" },
	{ "msg", "application/vnd.ms-outlook" },
	{ "zip", "application/zip" },
};

const char *mime_by_name(const char *name)
{
	const char *dot = name ? strrchr(name, '.') : NULL;

	for (size_t i = 0; dot && i < sizeof(media_types) / sizeof(media_types[0]); i++) {
		if (strcasecmp(dot + 1, media_types[i].suffix) == 0)
			return media_types[i].mime;
	}
	return "application/octet-stream";
}
