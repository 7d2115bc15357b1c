/* A backend in memory, for tests; see fake_backend.h.
 *
 * One lock guards everything. An op does its work under it and waits (latency, hold) without it: before the work or
 * after, so that an answer can be overtaken. */
#include "tests/fake_backend.h"

#include <assert.h>
#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"

struct fake_document {
	char *id, *name, *status, *error, *workspace_id;
	char sha256[65];
	void *bytes;
	int64_t size_bytes;
	int64_t created_ms;
	enum document_state state;
	bool is_first_time; /* made by an upload: reused for equal bytes */
};

struct fake_session {
	char *id, *name, *workspace_id;
	struct fake_document **documents; /* in the order they came */
	int count;
	int runs;
	bool is_closed, is_gone;
	int64_t created_ms, updated_ms;
};

/* A ticket is this key's number. */
struct fake_key {
	bool is_expired;
	void *bytes; /* NULL: nothing stored yet */
	int64_t size_bytes;
	struct fake_document *made; /* by the store (store_has_effect) or the attach */
	struct fake_session *attached_to;
};

struct planned_fault {
	struct planned_fault *next;
	int times;
	char *name; /* uploads: whose; NULL: any call */
	struct fake_fault fault;
};

struct fake_op_state {
	struct planned_fault *faults;
	int calls, running, running_max, held;
	int latency_ms;
	bool holds;
	enum fake_hold where;
};

struct fake {
	struct backend self;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	struct fake_session **sessions;
	struct fake_document **documents;
	struct fake_key **keys;
	int session_count, document_count, key_count;
	struct planned_fault *upload_faults, *guilty_faults; /* of one upload; of the request it is in */
	struct fake_op_state ops[FAKE_OP_COUNT];
	bool uses_keys_up;
	int batch_max, known_calls, learned, created;
	int64_t created_ms; /* counts up, so that order in time is the order things came in */
};

static const struct backend_ops fake_ops;

static struct fake *fake_from(struct backend *b)
{
	assert(b->ops == &fake_ops);
	return (struct fake *)b;
}

static void *checked(void *p)
{
	assert(p);
	return p;
}

static char *copy_text(const char *text)
{
	return text ? checked(strdup(text)) : NULL;
}

static char *numbered(const char *format, int n)
{
	struct buf b = BUF(1024);

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	buf_addf(&b, format, n);
#pragma GCC diagnostic pop
	return checked(buf_take(&b));
}

/* Room for one more pointer behind count. */
static void *one_more(void *list, int count)
{
	return checked(realloc(list, (size_t)(count + 1) * sizeof(void *)));
}

static void hash_bytes(const void *bytes, size_t len, char ret_hex[65])
{
	unsigned char sum[EVP_MAX_MD_SIZE];
	unsigned int sum_len = 0;

	int ok = EVP_Digest(bytes, len, sum, &sum_len, EVP_sha256(), NULL);
	assert(ok == 1 && sum_len == 32);
	(void)ok;
	for (int i = 0; i < 32; i++)
		(void)snprintf(ret_hex + 2 * i, 3, "%02x", sum[i]);
}

/* ---- finding and making things (the lock is held) ----------------------------------------------------------- */

static struct fake_session *find_session(struct fake *f, const char *id)
{
	for (int i = 0; id && i < f->session_count; i++) {
		if (!f->sessions[i]->is_gone && strcmp(f->sessions[i]->id, id) == 0)
			return f->sessions[i];
	}
	return NULL;
}

static struct fake_document *find_document(struct fake *f, const char *id)
{
	for (int i = 0; i < f->document_count; i++) {
		if (strcmp(f->documents[i]->id, id) == 0)
			return f->documents[i];
	}
	return NULL;
}

static int position(const struct fake_session *s, const struct fake_document *d)
{
	for (int i = 0; i < s->count; i++) {
		if (s->documents[i] == d)
			return i;
	}
	return -1;
}

static void put_in(struct fake *f, struct fake_session *s, struct fake_document *d)
{
	s->documents = one_more(s->documents, s->count);
	s->documents[s->count++] = d;
	s->updated_ms = ++f->created_ms;
}

static void take_out(struct fake *f, struct fake_session *s, const struct fake_document *d)
{
	int at = position(s, d);

	if (at < 0)
		return;
	memmove(&s->documents[at], &s->documents[at + 1], (size_t)(s->count - at - 1) * sizeof(*s->documents));
	s->count--;
	s->updated_ms = ++f->created_ms;
}

static struct fake_document *make_document(struct fake *f, const char *workspace_id, const char *name,
					   const void *bytes, int64_t size_bytes)
{
	struct fake_document *d = checked(calloc(1, sizeof(*d)));

	d->id = numbered("d%d", f->document_count + 1);
	d->name = name ? copy_text(name) : numbered("document-%d.pdf", f->document_count + 1);
	d->status = copy_text("uploaded");
	d->state = STATE_STORED;
	d->workspace_id = copy_text(workspace_id);
	d->size_bytes = size_bytes;
	d->bytes = checked(malloc((size_t)size_bytes + 1));
	if (size_bytes)
		memcpy(d->bytes, bytes, (size_t)size_bytes);
	hash_bytes(bytes ? bytes : "", (size_t)size_bytes, d->sha256);
	d->created_ms = ++f->created_ms;
	f->documents = one_more(f->documents, f->document_count);
	f->documents[f->document_count++] = d;
	return d;
}

static void add_session(struct fake *f, const char *id, const char *name, const char *workspace_id)
{
	struct fake_session *s = checked(calloc(1, sizeof(*s)));

	assert(!find_session(f, id));
	s->id = copy_text(id);
	s->name = copy_text(name);
	s->workspace_id = copy_text(workspace_id);
	s->created_ms = s->updated_ms = ++f->created_ms;
	f->sessions = one_more(f->sessions, f->session_count);
	f->sessions[f->session_count++] = s;
}

static void show_session(const struct fake_session *s, struct session *ret)
{
	*ret = (struct session){
		.id = copy_text(s->id),
		.name = copy_text(s->name),
		.qualifier = NULL,
		.template_id = copy_text("t1"),
		.workspace_id = copy_text(s->workspace_id),
		.status = copy_text(s->is_closed ? "closed" : "active"),
		.created_ms = s->created_ms,
		.updated_ms = s->updated_ms,
		.is_closed = s->is_closed,
	};
}

static void add_to_listing(struct fake *f, struct listing_builder *lb, const struct fake_document *d)
{
	CLEANUP(buf_release) struct buf json = BUF(65536);
	struct document view = {
		.id = d->id,
		.filename = d->name,
		.status = d->status,
		.state = d->state,
		.sha256 = f->self.caps.knows_hashes ? d->sha256 : NULL,
		.size_bytes = f->self.caps.knows_sizes ? d->size_bytes : -1,
		.created_ms = d->created_ms,
		.mime = mime_by_name(d->name),
		.workspace_id = d->workspace_id,
		.pages = 1,
		.error = d->error,
		.parsing.updated_ms = -1,
	};

	buf_addf(&json, "{\"id\":\"%s\",\"status\":\"%s\",\"size\":%lld}", d->id, d->status, (long long)d->size_bytes);
	int r = listing_builder_add(lb, &view, buf_text(&json));
	assert(r == 0);
	(void)r;
}

static struct listing_builder *listing_begin(void)
{
	const char *dir = getenv("TMPDIR");

	return checked(listing_builder_new(dir ? dir : "/tmp"));
}

static struct listing *listing_end(struct listing_builder *lb, int64_t asked_ms)
{
	struct listing *l = NULL;

	int r = listing_builder_finish(lb, asked_ms, clock_wall_ms(), &l);
	assert(r == 0);
	(void)r;
	return l;
}

static struct listing *list_one(struct fake *f, const struct fake_document *d)
{
	struct listing_builder *lb = listing_begin();

	add_to_listing(f, lb, d);
	return listing_end(lb, clock_now_ms());
}

/* ---- one call ---------------------------------------------------------------------------------------------- */

static int error_of(enum fault_kind kind)
{
	static const int errors[] = {
		[FAULT_NONE] = 0,	     [FAULT_ACCOUNT] = -EACCES, [FAULT_FORBIDDEN] = -EACCES,
		[FAULT_GONE] = -ENOENT,	     [FAULT_INVALID] = -EINVAL, [FAULT_KEY] = -EACCES,
		[FAULT_TOO_LARGE] = -EFBIG,  [FAULT_CONFLICT] = -EBUSY, [FAULT_BUDGET] = -EAGAIN,
		[FAULT_AWAY] = -EIO,	     [FAULT_CANCELED] = -ECANCELED,
	};

	return errors[kind];
}

static int fault_into(struct fault *ret, const struct fake_fault *from)
{
	*ret = (struct fault){
		.kind = from->kind,
		.http_status = from->http_status,
		.retry_after_ms = from->retry_after_ms ? from->retry_after_ms : -1,
		.may_have_happened = (from->takes_effect && !from->is_denied) || from->may_have_happened,
	};
	(void)snprintf(ret->words, sizeof(ret->words), "%s", from->words ? from->words : "");
	(void)snprintf(ret->ability, sizeof(ret->ability), "%s", from->ability ? from->ability : "");
	return from->error ? from->error : error_of(from->kind);
}

static int refuse(struct call *call, enum fault_kind kind, int http_status, const char *words)
{
	return fault_into(&call->fault,
			  &(struct fake_fault){ .kind = kind, .http_status = http_status, .words = words });
}

static void faults_free(struct planned_fault **list)
{
	while (*list) {
		struct planned_fault *p = *list;
		*list = p->next;
		free(p->name);
		free(p);
	}
}

/* Uses one up: the first on the list that is for this name (NULL: for any call). */
static bool take_fault(struct planned_fault **list, const char *name, struct planned_fault *ret)
{
	for (struct planned_fault **at = list; *at; at = &(*at)->next) {
		struct planned_fault *p = *at;
		if (p->name && (!name || strcmp(p->name, name) != 0))
			continue;
		*ret = *p;
		if (p->times > 0 && --p->times == 0) {
			*at = p->next;
			free(p->name);
			free(p);
		}
		return true;
	}
	return false;
}

/* An op as it runs. */
struct fake_run {
	struct fake *f;
	struct call *call;
	enum fake_op op;
	struct planned_fault fault; /* times 0: none planned */
	bool fails;
};

/* Sleeps until `until_ms`, or for as long as the op is held, or until the call's time is up or it is cancelled. The lock
 * is held, and given up meanwhile. */
static int run_wait(struct fake_run *run, bool for_hold, int64_t until_ms)
{
	struct fake_op_state *o = &run->f->ops[run->op];
	struct call *call = run->call;

	for (;;) {
		int64_t now = clock_now_ms();
		if (call->transfer && atomic_load(&call->transfer->cancelled))
			return refuse(call, FAULT_CANCELED, 0, "cancelled");
		if (call->deadline_ms && now >= call->deadline_ms)
			return fault_into(&call->fault, &(struct fake_fault){ .kind = FAULT_AWAY,
									      .words = "no answer in time",
									      .error = -ETIMEDOUT });
		if (for_hold ? !o->holds : now >= until_ms)
			return 0;
		struct timespec t;
		(void)clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 2000000; /* short naps: cancellation is not signalled */
		t.tv_sec += t.tv_nsec / 1000000000;
		t.tv_nsec %= 1000000000;
		(void)pthread_cond_timedwait(&run->f->changed, &run->f->lock, &t);
	}
}

static int run_hold(struct fake_run *run, enum fake_hold where)
{
	struct fake_op_state *o = &run->f->ops[run->op];

	if (!o->holds || o->where != where)
		return 0;
	o->held++;
	pthread_cond_broadcast(&run->f->changed);
	int r = run_wait(run, true, 0);
	o->held--;
	return r;
}

/* 0: the op does its work now (run->fails: and its answer is lost). Holds the lock from here to run_end(). */
static int run_begin(struct fake_run *run, struct backend *b, struct call *call, enum fake_op op)
{
	*run = (struct fake_run){ .f = fake_from(b), .call = call, .op = op };
	pthread_mutex_lock(&run->f->lock);
	struct fake_op_state *o = &run->f->ops[op];
	o->calls++;
	if (++o->running > o->running_max)
		o->running_max = o->running;
	int r = run_hold(run, HOLD_BEFORE);
	if (r < 0)
		return r;
	run->fails = take_fault(&o->faults, NULL, &run->fault);
	if (run->fails && !run->fault.fault.takes_effect) {
		r = o->latency_ms ? run_wait(run, false, clock_now_ms() + o->latency_ms) : 0;
		return r < 0 ? r : fault_into(&call->fault, &run->fault.fault);
	}
	return 0;
}

/* r: how the work went. has_effect: something was done that a lost answer hides. */
static int run_end(struct fake_run *run, int r, bool has_effect)
{
	struct fake_op_state *o = &run->f->ops[run->op];

	if (r == 0 && o->latency_ms)
		r = run_wait(run, false, clock_now_ms() + o->latency_ms);
	if (r == 0)
		r = run_hold(run, HOLD_AFTER);
	if (r < 0 && has_effect)
		run->call->fault.may_have_happened = true;
	if (r == 0 && run->fails)
		r = fault_into(&run->call->fault, &run->fault.fault);
	o->running--;
	pthread_mutex_unlock(&run->f->lock);
	return r;
}

static int no_session(struct call *call)
{
	return refuse(call, FAULT_GONE, 404, "No such session");
}

/* ---- ops: sessions ------------------------------------------------------------------------------------------ */

static int fake_check(struct backend *b, struct call *call)
{
	struct fake_run run;

	return run_end(&run, run_begin(&run, b, call, FAKE_CHECK), false);
}

static int fake_describe(struct backend *b, struct call *call, struct buf *ret)
{
	struct fake_run run;
	int r = run_end(&run, run_begin(&run, b, call, FAKE_DESCRIBE), false);

	if (r == 0)
		buf_add(ret, "token: works\n");
	return r;
}

static int fake_list_sessions(struct backend *b, struct call *call, struct session_list *ret)
{
	struct fake_run run;
	CLEANUP(session_list_release) struct session_list found = { 0 };
	int r = run_begin(&run, b, call, FAKE_LIST_SESSIONS);

	if (r == 0 && b->caps.sessions == SESSIONS_NEVER)
		r = fault_into(&call->fault, &(struct fake_fault){ .kind = FAULT_INVALID, .error = -EOPNOTSUPP });
	for (int i = 0; r == 0 && i < run.f->session_count; i++) {
		if (run.f->sessions[i]->is_gone)
			continue;
		found.items = checked(realloc(found.items, (size_t)(found.count + 1) * sizeof(*found.items)));
		show_session(run.f->sessions[i], &found.items[found.count++]);
	}
	r = run_end(&run, r, false);
	if (r == 0) {
		*ret = found;
		found = (struct session_list){ 0 };
	}
	return r;
}

static struct listing *list_session(struct fake *f, const struct fake_session *s, int64_t asked_ms);
static bool is_same_listing(const struct listing *a, const struct listing *b);

static int fake_get_session(struct backend *b, struct call *call, const char *session_id, struct session *ret)
{
	struct fake_run run;
	CLEANUP(session_release) struct session found = { 0 };
	CLEANUP(listing_release) struct listing *now = NULL, *same = NULL;
	int64_t asked_ms = clock_now_ms();
	int r = run_begin(&run, b, call, FAKE_GET_SESSION);

	if (r == 0) {
		struct fake_session *s = find_session(run.f, session_id);
		if (s) {
			now = list_session(run.f, s, asked_ms);
			show_session(s, &found);
		} else {
			r = no_session(call);
		}
	}
	r = run_end(&run, r, false);
	if (r < 0)
		return r;
	if (call->on_same && call->known && is_same_listing(call->known, now) &&
	    listing_renew(call->known, asked_ms, clock_wall_ms(), &same) == 0)
		call->on_same(call->on_same_arg, same);
	*ret = found;
	found = (struct session){ 0 };
	return 0;
}

static void fake_learn_session(struct backend *b, const struct session *known)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	f->learned += known->id != NULL;
}

static int fake_list_templates(struct backend *b, struct call *call, struct template_list *ret)
{
	struct fake_run run;
	int r = run_end(&run, run_begin(&run, b, call, FAKE_LIST_TEMPLATES), false);

	if (r < 0)
		return r;
	ret->items = checked(calloc(1, sizeof(*ret->items)));
	ret->items[0] = (struct template){ copy_text("t1"), copy_text("Invoices"), copy_text("w1"), copy_text("Main") };
	ret->count = 1;
	return 0;
}

static int fake_create_session(struct backend *b, struct call *call, const char *template_id, const char *name,
			       struct session *ret)
{
	struct fake_run run;
	CLEANUP(session_release) struct session made = { 0 };
	int r = run_begin(&run, b, call, FAKE_CREATE_SESSION);

	if (r == 0 && strcmp(template_id, "t1") != 0)
		r = refuse(call, FAULT_INVALID, 422, "No such template");
	if (r == 0) {
		CLEANUP(text_release) char *id = numbered("made-%d", ++run.f->created);
		add_session(run.f, id, name, "w1");
		show_session(find_session(run.f, id), &made);
	}
	r = run_end(&run, r, r == 0);
	if (r == 0) {
		*ret = made;
		made = (struct session){ 0 };
	}
	return r;
}

static int fake_find_session_id(struct backend *b, const char *text, char **ret)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	for (int i = 0; i < f->session_count; i++) {
		if (!f->sessions[i]->is_gone && strstr(text, f->sessions[i]->id)) {
			*ret = copy_text(f->sessions[i]->id);
			return 0;
		}
	}
	return -ENOENT;
}

static int fake_run_session(struct backend *b, struct call *call, const char *session_id)
{
	struct fake_run run;
	int r = run_begin(&run, b, call, FAKE_RUN);

	if (r == 0) {
		struct fake_session *s = find_session(run.f, session_id);
		if (s)
			s->runs++;
		else
			r = no_session(call);
	}
	return run_end(&run, r, r == 0);
}

/* ---- ops: documents ----------------------------------------------------------------------------------------- */

static bool is_same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

static bool is_same_listing(const struct listing *a, const struct listing *b)
{
	if (listing_count(a) != listing_count(b))
		return false;
	for (int i = 0; i < listing_count(a); i++) {
		struct document x, y;
		listing_get(a, i, &x);
		listing_get(b, i, &y);
		if (!is_same_text(x.id, y.id) || !is_same_text(x.filename, y.filename) ||
		    !is_same_text(x.status, y.status) || x.state != y.state || !is_same_text(x.error, y.error))
			return false;
	}
	return true;
}

static struct listing *list_session(struct fake *f, const struct fake_session *s, int64_t asked_ms)
{
	struct listing_builder *lb = listing_begin();

	for (int i = 0; i < s->count; i++)
		add_to_listing(f, lb, s->documents[i]);
	return listing_end(lb, asked_ms);
}

/* With the lock released: the callback may well call us. */
static void hand_over_pages(struct fake *f, struct call *call, const struct listing *l)
{
	int page = f->self.caps.folder_page > 0 ? f->self.caps.folder_page : 15;

	for (int from = 0; call->on_page && from < listing_count(l); from += page) {
		struct listing_builder *lb = listing_begin();
		for (int i = from; i < from + page && i < listing_count(l); i++) {
			struct document d;
			listing_get(l, i, &d);
			int r = listing_builder_add(lb, &d, NULL);
			assert(r == 0);
			(void)r;
		}
		CLEANUP(listing_release) struct listing *one = listing_end(lb, listing_asked_ms(l));
		call->on_page(call->on_page_arg, one);
	}
}

static int fake_list_documents(struct backend *b, struct call *call, const char *session_id, struct listing *known,
			       struct listing **ret)
{
	struct fake_run run;
	CLEANUP(listing_release) struct listing *found = NULL;
	CLEANUP(session_release) struct session session = { 0 };
	int64_t asked_ms = clock_now_ms();
	int r = run_begin(&run, b, call, call->is_sweep ? FAKE_SWEEP : FAKE_LIST_DOCUMENTS);

	run.f->known_calls += known != NULL;
	if (r == 0) {
		struct fake_session *s = find_session(run.f, session_id);
		if (s) {
			found = list_session(run.f, s, asked_ms);
			show_session(s, &session);
		} else {
			r = no_session(call);
		}
	}
	r = run_end(&run, r, false);
	if (r < 0)
		return r;
	if (call->on_session)
		call->on_session(call->on_session_arg, &session);
	hand_over_pages(run.f, call, found);
	if (known && is_same_listing(known, found))
		return listing_renew(known, asked_ms, clock_wall_ms(), ret);
	*ret = listing_ref(found);
	return 0;
}

/* Are the first bytes in fd the document's? */
static bool holds(int fd, const struct fake_document *d, int64_t bytes)
{
	bool is_so = bytes <= d->size_bytes;

	for (int64_t at = 0; is_so && at < bytes; at++) {
		char byte;
		is_so = pread(fd, &byte, 1, at) == 1 && byte == ((const char *)d->bytes)[at];
	}
	return is_so;
}

static int fake_fetch_document(struct backend *b, struct call *call, const char *session_id, const char *document_id,
			       int fd)
{
	struct fake_run run;
	int r = run_begin(&run, b, call, FAKE_FETCH_DOCUMENT);
	const struct fake_document *d = NULL;

	if (r == 0) {
		struct fake_session *s = find_session(run.f, session_id);
		d = find_document(run.f, document_id);
		if (!s || !d || position(s, d) < 0)
			r = refuse(call, FAULT_GONE, 404, "No such document");
	}
	r = run_end(&run, r, false);
	/* Documents live until the backend is closed, and their bytes never change. */
	int64_t kept = r == 0 && call->on_bytes ? call->transfer->done_bytes : 0;
	if (kept > 0 && !holds(fd, d, kept))
		return -ESTALE;
	for (int64_t done = kept; r == 0 && done < d->size_bytes;) {
		ssize_t n = pwrite(fd, (char *)d->bytes + done, (size_t)(d->size_bytes - done), done);
		if (n < 0)
			return -errno;
		done += n;
		if (call->transfer) {
			atomic_store(&call->transfer->done_bytes, done);
			atomic_store(&call->transfer->moved_ms, clock_now_ms());
			if (call->on_bytes)
				call->on_bytes(call->on_bytes_arg);
		}
	}
	return r;
}

static int fake_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
		       const char *const *document_ids, int count, struct listing **ret)
{
	struct fake_run run;
	CLEANUP(listing_release) struct listing *attached = NULL;
	int r = run_begin(&run, b, call, FAKE_ATTACH);
	struct fake_session *s = r == 0 ? find_session(run.f, session_id) : NULL;

	if (r == 0 && !b->caps.attaches)
		r = fault_into(&call->fault, &(struct fake_fault){ .kind = FAULT_INVALID, .error = -EXDEV });
	else if (r == 0 && !s)
		r = no_session(call);
	for (int i = 0; r == 0 && i < count; i++) {
		struct fake_document *d = find_document(run.f, document_ids[i]);
		if (!d)
			r = refuse(call, FAULT_GONE, 404, "No such document");
		else if (strcmp(d->workspace_id, s->workspace_id) != 0)
			r = fault_into(&call->fault, &(struct fake_fault){ .kind = FAULT_INVALID,
									   .http_status = 422,
									   .words = "Another workspace",
									   .error = -EXDEV });
	}
	if (r == 0) {
		struct listing_builder *lb = listing_begin();
		for (int i = 0; i < count; i++) {
			struct fake_document *d = find_document(run.f, document_ids[i]);
			if (!b->caps.attach_keeps_id)
				d = make_document(run.f, s->workspace_id, d->name, d->bytes, d->size_bytes);
			if (position(s, d) < 0)
				put_in(run.f, s, d);
			add_to_listing(run.f, lb, d);
		}
		attached = listing_end(lb, clock_now_ms());
	}
	r = run_end(&run, r, r == 0);
	if (r == 0)
		*ret = listing_ref(attached);
	return r;
}

static int fake_detach(struct backend *b, struct call *call, const char *session_id, const char *document_id)
{
	struct fake_run run;
	int r = run_begin(&run, b, call, FAKE_DETACH);

	if (r == 0) {
		struct fake_session *s = find_session(run.f, session_id);
		struct fake_document *d = find_document(run.f, document_id);
		if (!b->caps.detaches)
			r = fault_into(&call->fault, &(struct fake_fault){ .kind = FAULT_INVALID, .error = -EOPNOTSUPP });
		else if (!s || !d || position(s, d) < 0)
			r = refuse(call, FAULT_GONE, 404, "No such document");
		else
			take_out(run.f, s, d);
	}
	return run_end(&run, r, r == 0);
}

/* ---- ops: uploads ------------------------------------------------------------------------------------------- */

/* NULL: refused, and the fault says so. */
static struct fake_key *key_of(struct fake *f, const struct upload *u, struct fault *ret_fault, int *ret_error)
{
	char *end = NULL;
	long n = u->ticket && strncmp(u->ticket, "key-", 4) == 0 ? strtol(u->ticket + 4, &end, 10) : 0;

	if (!end || *end || n < 1 || n > f->key_count || f->keys[n - 1]->is_expired) {
		*ret_error = fault_into(ret_fault, &(struct fake_fault){ .kind = FAULT_KEY,
									 .http_status = 403,
									 .words = "This key is no good" });
		return NULL;
	}
	return f->keys[n - 1];
}

static int fake_upload_sign(struct backend *b, struct call *call, struct upload *u)
{
	struct fake_run run;
	CLEANUP(text_release) char *ticket = NULL;
	int r = run_begin(&run, b, call, FAKE_UPLOAD_SIGN);

	if (r == 0) {
		struct fake_session *s = find_session(run.f, u->session_id);
		if (!s)
			r = no_session(call);
		else if (s->is_closed)
			r = refuse(call, FAULT_INVALID, 422, "The session is closed");
		else if (b->caps.document_bytes_max && u->size_bytes > b->caps.document_bytes_max)
			r = refuse(call, FAULT_TOO_LARGE, 413, "Too large");
	}
	if (r == 0) {
		run.f->keys = one_more(run.f->keys, run.f->key_count);
		run.f->keys[run.f->key_count++] = checked(calloc(1, sizeof(struct fake_key)));
		ticket = numbered("key-%d", run.f->key_count);
	}
	r = run_end(&run, r, false);
	if (r < 0)
		return r;
	free(u->ticket);
	u->ticket = ticket;
	ticket = NULL;
	u->ticket_wall_ms = clock_wall_ms();
	u->step = UPLOAD_SIGNED;
	return 0;
}

static int read_bytes(const struct upload *u, void **ret)
{
	char *bytes = checked(malloc((size_t)u->size_bytes + 1));

	for (int64_t done = 0; done < u->size_bytes;) {
		ssize_t n = pread(u->fd, bytes + done, (size_t)(u->size_bytes - done), done);
		if (n <= 0) {
			int r = n < 0 ? -errno : -EIO; /* the file is shorter than was said */
			free(bytes);
			return r;
		}
		done += n;
	}
	*ret = bytes;
	return 0;
}

/* The document an upload becomes, in its session once and whatever happened before. */
static struct fake_document *upload_becomes(struct fake *f, struct fake_session *s, const struct upload *u,
					    struct fake_key *key)
{
	char sha256[65];

	hash_bytes(key->bytes, (size_t)key->size_bytes, sha256);
	for (int i = 0; !key->made && f->self.caps.reuses_bytes && i < f->document_count; i++) {
		struct fake_document *d = f->documents[i];
		if (d->is_first_time && strcmp(d->sha256, sha256) == 0 &&
		    strcmp(d->workspace_id, s->workspace_id) == 0)
			key->made = d;
	}
	/* A key used twice makes a second document, where equal bytes do: that is what is_retry is for. */
	if (!key->made || (key->attached_to && !f->self.caps.reuses_bytes && !f->self.caps.store_has_effect)) {
		key->made = make_document(f, s->workspace_id, f->self.caps.keeps_names ? u->name : NULL, key->bytes,
					  key->size_bytes);
		key->made->is_first_time = true;
	}
	if (position(s, key->made) < 0)
		put_in(f, s, key->made);
	key->attached_to = s;
	return key->made;
}

static int fake_upload_store(struct backend *b, struct call *call, struct upload *u)
{
	struct fake_run run;
	void *bytes = NULL;
	int r = read_bytes(u, &bytes);

	if (r < 0)
		return r;
	r = run_begin(&run, b, call, FAKE_UPLOAD_STORE);
	struct fake_key *key = r == 0 ? key_of(run.f, u, &call->fault, &r) : NULL;
	if (key) {
		if (call->transfer) {
			atomic_store(&call->transfer->done_bytes, u->size_bytes);
			atomic_store(&call->transfer->moved_ms, clock_now_ms());
		}
		free(key->bytes);
		key->bytes = bytes;
		key->size_bytes = u->size_bytes;
		bytes = NULL;
		struct fake_session *s = find_session(run.f, u->session_id);
		if (b->caps.store_has_effect && s)
			(void)upload_becomes(run.f, s, u, key);
	}
	free(bytes);
	r = run_end(&run, r, r == 0 && b->caps.store_has_effect);
	if (r == 0)
		u->step = UPLOAD_STORED;
	return r;
}

static void attach_one(struct fake *f, struct fake_session *s, struct upload *u)
{
	struct planned_fault planned;
	bool fails = take_fault(&f->upload_faults, u->name, &planned);

	if (fails && !planned.fault.takes_effect) {
		u->error = fault_into(&u->fault, &planned.fault);
		return;
	}
	struct fake_key *key = key_of(f, u, &u->fault, &u->error);
	if (!key)
		return;
	if (!key->bytes) {
		u->error = fault_into(&u->fault, &(struct fake_fault){ .kind = FAULT_KEY,
								       .http_status = 422,
								       .words = "keys: nothing was stored" });
		return;
	}
	if (f->uses_keys_up && key->attached_to && !f->self.caps.store_has_effect) {
		u->error = fault_into(&u->fault, &(struct fake_fault){ .kind = FAULT_KEY,
								       .http_status = 422,
								       .words = "keys: it was used" });
		return;
	}
	if (u->is_retry && key->attached_to && !f->self.caps.store_has_effect) {
		u->error = fault_into(&u->fault, &(struct fake_fault){ .kind = FAULT_CONFLICT,
								       .http_status = 409,
								       .words = "It is there already" });
		return;
	}
	const struct fake_document *d = upload_becomes(f, s, u, key);
	if (fails) {
		u->error = fault_into(&u->fault, &planned.fault);
		return;
	}
	u->document = list_one(f, d);
	u->error = 0;
}

/* Is there one that spoils the whole request? */
static bool take_guilty(struct fake *f, struct upload *const *us, int count, struct planned_fault *ret)
{
	for (int i = 0; i < count; i++) {
		if (take_fault(&f->guilty_faults, us[i]->name, ret))
			return true;
	}
	return false;
}

static int fake_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count)
{
	struct fake_run run;
	int r = run_begin(&run, b, call, FAKE_UPLOAD_ATTACH);

	if (count > run.f->batch_max)
		run.f->batch_max = count;
	struct fake_session *s = r == 0 ? find_session(run.f, us[0]->session_id) : NULL;
	struct planned_fault guilty;
	if (r == 0 && take_guilty(run.f, us, count, &guilty))
		r = fault_into(&call->fault, &guilty.fault);
	else if (r == 0 && !s)
		r = no_session(call);
	else if (r == 0 && s->is_closed)
		r = refuse(call, FAULT_INVALID, 422, "The session is closed");
	for (int i = 0; r == 0 && i < count; i++)
		attach_one(run.f, s, us[i]);
	r = run_end(&run, r, r == 0);
	for (int i = 0; i < count; i++) {
		if (r < 0) {
			listing_release(&us[i]->document);
			us[i]->error = r;
			us[i]->fault = call->fault;
		} else if (us[i]->error == 0) {
			us[i]->step = UPLOAD_ATTACHED;
		}
	}
	return r;
}

static bool is_among(const char *id, const char *const *ids, int count)
{
	for (int i = 0; i < count; i++) {
		if (strcmp(ids[i], id) == 0)
			return true;
	}
	return false;
}

static int fake_upload_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids,
			    int not_count)
{
	struct fake_run run;
	CLEANUP(listing_release) struct listing *found = NULL;
	int r = run_begin(&run, b, call, FAKE_UPLOAD_FIND);
	struct fake_session *s = r == 0 ? find_session(run.f, u->session_id) : NULL;

	if (r == 0 && !s)
		r = no_session(call);
	for (int i = 0; r == 0 && !found && i < s->count; i++) {
		const struct fake_document *d = s->documents[i];
		if (strcmp(d->sha256, u->sha256) != 0)
			continue;
		if (b->caps.reuses_bytes || !is_among(d->id, not_ids, not_count))
			found = list_one(run.f, d);
	}
	if (r == 0 && !found)
		r = refuse(call, FAULT_GONE, 200, "Not there");
	r = run_end(&run, r, false);
	if (r < 0)
		return r;
	u->document = listing_ref(found);
	u->step = UPLOAD_ATTACHED;
	return 0;
}

/* ---- beginning and end -------------------------------------------------------------------------------------- */

static void fake_close(struct backend *b)
{
	struct fake *f = fake_from(b);

	for (int i = 0; i < f->session_count; i++) {
		free(f->sessions[i]->id);
		free(f->sessions[i]->name);
		free(f->sessions[i]->workspace_id);
		free(f->sessions[i]->documents);
		free(f->sessions[i]);
	}
	for (int i = 0; i < f->document_count; i++) {
		struct fake_document *d = f->documents[i];
		free(d->id);
		free(d->name);
		free(d->status);
		free(d->error);
		free(d->workspace_id);
		free(d->bytes);
		free(d);
	}
	for (int i = 0; i < f->key_count; i++) {
		free(f->keys[i]->bytes);
		free(f->keys[i]);
	}
	free(f->sessions);
	free(f->documents);
	free(f->keys);
	for (int op = 0; op < FAKE_OP_COUNT; op++)
		faults_free(&f->ops[op].faults);
	faults_free(&f->upload_faults);
	faults_free(&f->guilty_faults);
	pthread_mutex_destroy(&f->lock);
	pthread_cond_destroy(&f->changed);
	free(f);
}

static const struct backend_ops fake_ops = {
	.name = "fake",
	.close = fake_close,
	.check = fake_check,
	.describe = fake_describe,
	.list_sessions = fake_list_sessions,
	.get_session = fake_get_session,
	.learn_session = fake_learn_session,
	.list_templates = fake_list_templates,
	.create_session = fake_create_session,
	.find_session_id = fake_find_session_id,
	.list_documents = fake_list_documents,
	.fetch_document = fake_fetch_document,
	.attach = fake_attach,
	.detach = fake_detach,
	.run = fake_run_session,
	.upload_sign = fake_upload_sign,
	.upload_store = fake_upload_store,
	.upload_attach = fake_upload_attach,
	.upload_find = fake_upload_find,
};

struct backend_caps fake_caps(void)
{
	return (struct backend_caps){
		.service = "fake",
		.title = "Fake",
		.token_help = "No token is needed.",
		.default_url = "https://fake.invalid",
		.formats = "pdf png docx",
		.document_bytes_max = 40000000,
		.sessions = SESSIONS_LISTED,
		.creates_sessions = true,
		.attaches = true,
		.attach_keeps_id = true,
		.detaches = true,
		.knows_sizes = true,
		.knows_hashes = true,
		.reuses_bytes = true,
		.attach_batch_max = 10,
		.key_lifetime_ms = 86400000,
		.rate_per_min = 100,
		.folder_page = 15,
	};
}

struct backend *fake_backend_new(const struct backend_caps *caps)
{
	struct fake *f = checked(calloc(1, sizeof(*f)));

	f->self.ops = &fake_ops;
	f->self.caps = caps ? *caps : fake_caps();
	f->created_ms = 1700000000000;
	(void)pthread_mutex_init(&f->lock, NULL); /* these can't fail on Linux */
	(void)pthread_cond_init(&f->changed, NULL);
	return &f->self;
}

/* ---- what is there ------------------------------------------------------------------------------------------ */

static struct fake_session *session_that_is(struct fake *f, const char *id)
{
	return checked(find_session(f, id));
}

void fake_add_session_in(struct backend *b, const char *id, const char *name, const char *workspace_id)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	add_session(f, id, name, workspace_id);
}

void fake_add_session(struct backend *b, const char *id, const char *name)
{
	fake_add_session_in(b, id, name, "w1");
}

void fake_rename_session(struct backend *b, const char *id, const char *name)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);
	struct fake_session *s = session_that_is(f, id);

	free(s->name);
	s->name = copy_text(name);
}

void fake_close_session(struct backend *b, const char *id)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	session_that_is(f, id)->is_closed = true;
}

void fake_remove_session(struct backend *b, const char *id)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	session_that_is(f, id)->is_gone = true;
}

const char *fake_add_document(struct backend *b, const char *session_id, const char *name, const char *text)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);
	struct fake_session *s = session_that_is(f, session_id);
	struct fake_document *d = make_document(f, s->workspace_id, name, text, (int64_t)strlen(text));

	d->is_first_time = true;
	put_in(f, s, d);
	return d->id;
}

void fake_add_documents(struct backend *b, const char *session_id, const char *name_format, int count)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);
	struct fake_session *s = session_that_is(f, session_id);

	for (int i = 0; i < count; i++) {
		CLEANUP(text_release) char *name = numbered(name_format, i);
		put_in(f, s, make_document(f, s->workspace_id, name, "", 0));
	}
}

void fake_remove_document(struct backend *b, const char *session_id, const char *document_id)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	take_out(f, session_that_is(f, session_id), checked(find_document(f, document_id)));
}

void fake_set_status(struct backend *b, const char *document_id, const char *status, enum document_state state,
		     const char *error)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);
	struct fake_document *d = checked(find_document(f, document_id));

	free(d->status);
	free(d->error);
	d->status = copy_text(status);
	d->error = copy_text(error);
	d->state = state;
}

int fake_document_count(struct backend *b, const char *session_id)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);
	const struct fake_session *s = find_session(f, session_id);

	return s ? s->count : -1;
}

const char *fake_document_with(struct backend *b, const char *session_id, const char *text, int nth)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);
	const struct fake_session *s = session_that_is(f, session_id);
	size_t len = strlen(text);

	for (int i = 0; i < s->count; i++) {
		const struct fake_document *d = s->documents[i];
		if ((size_t)d->size_bytes == len && memcmp(d->bytes, text, len) == 0 && nth-- == 0)
			return d->id;
	}
	return NULL;
}

const char *fake_document_name(struct backend *b, const char *document_id)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);
	const struct fake_document *d = find_document(f, document_id);

	return d ? d->name : NULL;
}

int fake_run_count(struct backend *b, const char *session_id)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	return session_that_is(f, session_id)->runs;
}

/* ---- what goes wrong ---------------------------------------------------------------------------------------- */

static void plan_fault(struct planned_fault **list, const char *name, int times, const struct fake_fault *fault)
{
	struct planned_fault *p = checked(calloc(1, sizeof(*p)));

	assert(times != 0 && fault->kind != FAULT_NONE);
	*p = (struct planned_fault){ .times = times, .name = copy_text(name), .fault = *fault };
	while (*list)
		list = &(*list)->next;
	*list = p;
}

void fake_fail(struct backend *b, enum fake_op op, int times, const struct fake_fault *fault)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	plan_fault(&f->ops[op].faults, NULL, times, fault);
}

void fake_fail_upload(struct backend *b, const char *name, int times, bool is_guilty, const struct fake_fault *fault)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	plan_fault(is_guilty ? &f->guilty_faults : &f->upload_faults, name, times, fault);
}

void fake_heal(struct backend *b)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	for (int op = 0; op < FAKE_OP_COUNT; op++) {
		faults_free(&f->ops[op].faults);
		f->ops[op].latency_ms = 0;
		f->ops[op].holds = false;
	}
	faults_free(&f->upload_faults);
	faults_free(&f->guilty_faults);
	pthread_cond_broadcast(&f->changed);
}

void fake_expire_keys(struct backend *b)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	for (int i = 0; i < f->key_count; i++)
		f->keys[i]->is_expired = true;
}

void fake_use_keys_up(struct backend *b)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	f->uses_keys_up = true;
}

void fake_latency(struct backend *b, enum fake_op op, int ms)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	f->ops[op].latency_ms = ms;
}

void fake_hold(struct backend *b, enum fake_op op, enum fake_hold where)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	f->ops[op].holds = true;
	f->ops[op].where = where;
}

void fake_let_go(struct backend *b, enum fake_op op)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	f->ops[op].holds = false;
	pthread_cond_broadcast(&f->changed);
}

bool fake_wait_held(struct backend *b, enum fake_op op, int count)
{
	struct fake *f = fake_from(b);
	int64_t until_ms = clock_now_ms() + 5000;

	for (;;) {
		{
			SCOPED_LOCK(&f->lock);
			if (f->ops[op].held >= count)
				return true;
		}
		if (clock_now_ms() >= until_ms)
			return false;
		(void)usleep(1000);
	}
}

/* ---- what was asked ----------------------------------------------------------------------------------------- */

int fake_calls(struct backend *b, enum fake_op op)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	return f->ops[op].calls;
}

int fake_calls_total(struct backend *b)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);
	int total = 0;

	for (int op = 0; op < FAKE_OP_COUNT; op++)
		total += f->ops[op].calls;
	return total;
}

int fake_running_max(struct backend *b, enum fake_op op)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	return f->ops[op].running_max;
}

int fake_batch_max(struct backend *b)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	return f->batch_max;
}

int fake_known_calls(struct backend *b)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	return f->known_calls;
}

int fake_learned(struct backend *b)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	return f->learned;
}

void fake_count_anew(struct backend *b)
{
	struct fake *f = fake_from(b);
	SCOPED_LOCK(&f->lock);

	for (int op = 0; op < FAKE_OP_COUNT; op++) {
		f->ops[op].calls = 0;
		f->ops[op].running_max = f->ops[op].running;
	}
	f->batch_max = f->known_calls = f->learned = 0;
}
