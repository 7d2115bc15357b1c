/* What every backend has to do, whichever service it speaks: the same tests against each.
 *
 * A backend adds its side: how to open it on a service for tests, and how others put things there. What a service cannot do
 * its capabilities say, and the tests look there and not at its name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/backend.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "tests/fake_backend.h"
#include "tests/sandbox/sandbox.h"

enum { FILE_BYTES = 200 };

struct place;

/* What somebody else does at the service. Texts returned are the caller's to free. */
struct side {
	const char *name;
	void (*begin)(struct place *p); /* sets p->b */
	void (*end)(struct place *p);
	char *(*add_session)(struct place *p, const char *name);
	char *(*add_document)(struct place *p, const char *session_id, const char *name, const char *text);
};

struct place {
	const struct side *side;
	struct backend *b;
	const struct backend_caps *caps;
	struct sandbox *box;
	char *session;
	int serial;
	struct call call;
	struct transfer transfer;
};

/* ---- in memory ----------------------------------------------------------------------------------------------- */

static void fake_begin(struct place *p)
{
	p->b = fake_backend_new(NULL);
}

static void fake_end(struct place *p)
{
	backend_close(p->b);
}

static char *fake_side_session(struct place *p, const char *name)
{
	char id[20];

	snprintf(id, sizeof(id), "s%d", ++p->serial);
	fake_add_session(p->b, id, name);
	return strdup(id);
}

static char *fake_side_document(struct place *p, const char *session_id, const char *name, const char *text)
{
	return strdup(fake_add_document(p->b, session_id, name, text));
}

/* ---- Raydocs ------------------------------------------------------------------------------------------------- */

static int read_credentials(void *arg, struct credentials *ret)
{
	*ret = (struct credentials){ .token = secret_new("token-one") };
	return ret->token ? 0 : -ENOENT;
}

static void raydocs_begin(struct place *p)
{
	const struct sandbox_options options = { 0 };
	CLEANUP(buf_release) struct buf why = BUF(1000);

	assert_int_equal(sandbox_start(&options, &p->box), 0);
	assert_int_equal(sandbox_add_token(p->box, "token-one", NULL), 0);
	const struct backend_config config = { .service = "raydocs", .url = sandbox_url(p->box, "api"), .rate_per_min = -1,
					       .read_credentials = read_credentials, .scratch_dir = "/tmp" };
	if (backend_open(&config, &why, &p->b) < 0)
		fail_msg("%s", buf_text(&why));
}

static void sandbox_end(struct place *p)
{
	backend_close(p->b);
	sandbox_stop(p->box);
}

static char *raydocs_session(struct place *p, const char *name)
{
	char *id = NULL;

	assert_int_equal(sandbox_add_session(p->box, name, &id), 0);
	return id;
}

static char *raydocs_document(struct place *p, const char *session_id, const char *name, const char *text)
{
	char *id = NULL;

	assert_int_equal(sandbox_add_document(p->box, session_id, name, text, strlen(text), &id), 0);
	return id;
}

/* ---- Rossum -------------------------------------------------------------------------------------------------- */

static char *rossum_add(struct place *p, const char *path, const char *json)
{
	CLEANUP(text_release) char *answer = NULL;
	int status = sandbox_control(p->box, "POST", path, json, &answer);
	const char *id = answer ? strstr(answer, "\"id\":") : NULL;

	if (status != 200)
		fail_msg("POST %s %s: %d %s", path, json, status, answer ? answer : "");
	id = id ? id + strcspn(id, "0123456789") : "";
	return strndup(id, strspn(id, "0123456789"));
}

static void rossum_begin(struct place *p)
{
	const struct sandbox_options options = { 0 };
	CLEANUP(buf_release) struct buf why = BUF(1000), url = BUF(300);

	assert_int_equal(sandbox_start(&options, &p->box), 0);
	free(rossum_add(p, "/rossum/user", "{\"username\":\"ann\",\"password\":\"secret\",\"queues\":\"all\"}"));
	free(rossum_add(p, "/rossum/token", "{\"token\":\"token-one\",\"user\":\"ann\"}"));
	buf_addf(&url, "%s/api/v1", sandbox_url(p->box, "rossum"));
	const struct backend_config config = { .service = "rossum", .url = buf_text(&url), .rate_per_min = -1,
					       .read_credentials = read_credentials, .scratch_dir = "/tmp" };
	if (backend_open(&config, &why, &p->b) < 0)
		fail_msg("%s", buf_text(&why));
}

static char *rossum_session(struct place *p, const char *name)
{
	CLEANUP(buf_release) struct buf json = BUF(1000);

	buf_addf(&json, "{\"name\":\"%s\"}", name);
	return rossum_add(p, "/rossum/queue", buf_text(&json));
}

static char *rossum_document(struct place *p, const char *session_id, const char *name, const char *text)
{
	CLEANUP(buf_release) struct buf json = BUF(1000);

	buf_addf(&json, "{\"queue\":%s,\"filename\":\"%s\",\"text\":\"%s\"}", session_id, name, text);
	return rossum_add(p, "/rossum/annotation", buf_text(&json));
}

static const struct side sides[] = {
	{ "in memory", fake_begin, fake_end, fake_side_session, fake_side_document },
	{ "raydocs", raydocs_begin, sandbox_end, raydocs_session, raydocs_document },
	{ "rossum", rossum_begin, sandbox_end, rossum_session, rossum_document },
};

/* ---- helpers ------------------------------------------------------------------------------------------------- */

static struct call *call_of(struct place *p)
{
	memset(&p->transfer, 0, sizeof(p->transfer));
	p->call = (struct call){ .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + 20000, .transfer = &p->transfer };
	return &p->call;
}

static struct listing *list(struct place *p, struct listing *known)
{
	struct listing *l = NULL;
	int r = backend_list_documents(p->b, call_of(p), p->session, known, &l);

	if (r < 0)
		fail_msg("listing: %d, %s", r, p->call.fault.words);
	return l;
}

struct file {
	struct upload u;
	char text[FILE_BYTES], sha256[65];
};

static void file_make(struct place *p, struct file *f, const char *name, const char *words)
{
	unsigned char hash[32];

	snprintf(f->text, sizeof(f->text), "%%PDF-1.4\n%s\n%%%%EOF\n", words);
	assert_int_equal(EVP_Digest(f->text, strlen(f->text), hash, NULL, EVP_sha256(), NULL), 1);
	for (int i = 0; i < 32; i++)
		snprintf(f->sha256 + 2 * i, 3, "%02x", hash[i]);
	f->u = (struct upload){ .session_id = p->session, .name = name, .sha256 = f->sha256,
				.size_bytes = (int64_t)strlen(f->text), .fd = memfd_create("file", MFD_CLOEXEC) };
	assert_int_equal(pwrite(f->u.fd, f->text, strlen(f->text), 0), strlen(f->text));
}

static void file_end(struct file *f)
{
	free(f->u.ticket);
	listing_unref(f->u.document);
	close(f->u.fd);
}

static void file_store(struct place *p, struct file *f)
{
	int r = backend_upload_sign(p->b, call_of(p), &f->u);

	if (r < 0)
		fail_msg("signing: %d, %s", r, p->call.fault.words);
	assert_int_equal(f->u.step, UPLOAD_SIGNED);
	assert_non_null(f->u.ticket);
	assert_null(strchr(f->u.ticket, '\n'));
	r = backend_upload_store(p->b, call_of(p), &f->u);
	if (r < 0)
		fail_msg("storing: %d, %s", r, p->call.fault.words);
	assert_int_equal(f->u.step, UPLOAD_STORED);
}

static void file_upload(struct place *p, struct file *f)
{
	struct upload *u = &f->u;

	file_store(p, f);
	int r = backend_upload_attach(p->b, call_of(p), &u, 1);
	if (r < 0 || u->error < 0)
		fail_msg("attaching: %d, %d, %s", r, u->error, u->fault.words);
	assert_int_equal(u->step, UPLOAD_ATTACHED);
	assert_int_equal(listing_count(u->document), 1);
}

static const char *id_of(struct listing *l, int i)
{
	struct document doc;

	listing_get(l, i, &doc);
	return doc.id;
}

/* ---- what each has to do ------------------------------------------------------------------------------------- */

static void its_account_is_checked(struct place *p)
{
	assert_int_equal(backend_check(p->b, call_of(p)), 0);
}

static void its_capabilities_make_sense(struct place *p)
{
	const struct backend_caps *c = p->caps;

	assert_non_null(c->service);
	assert_non_null(c->title);
	assert_non_null(c->token_help);
	assert_non_null(c->formats);
	assert_true(c->attach_batch_max >= 1);
	assert_true(c->key_lifetime_ms > 0);
	assert_true(c->rate_per_min > 0);
	assert_true(c->folder_page > 0);
	for (const char *at = c->formats; *at; at++)
		assert_true((*at >= 'a' && *at <= 'z') || (*at >= '0' && *at <= '9') || *at == ' ');
}

static void a_session_is_told_by_its_id(struct place *p)
{
	CLEANUP(session_release) struct session s = { 0 };
	CLEANUP(session_release) struct session copy = { 0 };

	assert_int_equal(backend_get_session(p->b, call_of(p), p->session, &s), 0);
	assert_string_equal(s.id, p->session);
	assert_string_equal(s.name, "Q1");
	assert_false(s.is_closed);
	assert_int_equal(session_copy(&s, &copy), 0);
	assert_string_equal(copy.name, s.name);
}

static void what_is_not_there_is_gone(struct place *p)
{
	struct session s = { 0 };
	struct listing *l = NULL;
	static const char *const ids[] = { "99999999-9999-4999-8999-999999999999", "../workspaces", "", "a/b", "." };

	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		assert_int_equal(backend_get_session(p->b, call_of(p), ids[i], &s), -ENOENT);
		assert_int_equal(p->call.fault.kind, FAULT_GONE);
		assert_int_equal(backend_list_documents(p->b, call_of(p), ids[i], NULL, &l), -ENOENT);
		assert_int_equal(p->call.fault.kind, FAULT_GONE);
	}
	assert_int_equal(backend_fetch_document(p->b, call_of(p), p->session, "..", 0), -ENOENT);
	assert_int_equal(backend_detach(p->b, call_of(p), p->session, "99999999-9999-4999-8999-999999999999"),
			 p->caps->detaches ? -ENOENT : -EOPNOTSUPP);
}

static void a_cancelled_call_asks_nobody(struct place *p)
{
	struct listing *l = NULL;
	struct call *call = call_of(p);

	atomic_store(&p->transfer.cancelled, true);
	assert_int_equal(backend_list_documents(p->b, call, p->session, NULL, &l), -ECANCELED);
	assert_int_equal(call->fault.kind, FAULT_CANCELED);
}

static void an_empty_session_has_an_empty_listing(struct place *p)
{
	CLEANUP(listing_release) struct listing *l = list(p, NULL);

	assert_int_equal(listing_count(l), 0);
	assert_int_equal(listing_find(l, "x"), -1);
}

struct seen {
	int documents;
};

static void on_page(void *arg, const struct listing *page)
{
	((struct seen *)arg)->documents += listing_count(page);
}

static void a_listing_holds_each_document_once(struct place *p)
{
	enum { COUNT = 40 };
	struct seen seen = { 0 };
	struct call *call = call_of(p);
	CLEANUP(listing_release) struct listing *l = NULL;
	char *ids[COUNT];

	for (int i = 0; i < COUNT; i++) {
		char name[20], text[40];

		snprintf(name, sizeof(name), "d%d.pdf", i);
		snprintf(text, sizeof(text), "%%PDF-1.4 document %d", i);
		ids[i] = p->side->add_document(p, p->session, name, text);
	}
	call->on_page = on_page;
	call->on_page_arg = &seen;
	assert_int_equal(backend_list_documents(p->b, call, p->session, NULL, &l), 0);
	assert_int_equal(listing_count(l), COUNT);
	assert_true(seen.documents >= COUNT);
	for (int i = 0; i < COUNT; i++) {
		struct document doc;
		char name[20];
		int at = listing_find(l, ids[i]);

		assert_true(at >= 0);
		listing_get(l, at, &doc);
		snprintf(name, sizeof(name), "d%d.pdf", i);
		assert_string_equal(doc.filename, name);
		assert_true(doc.state >= STATE_STORED);
		assert_true(!p->caps->knows_sizes || doc.size_bytes > 0);
		assert_true(!p->caps->knows_hashes || (doc.sha256 && strlen(doc.sha256) == 64));
		free(ids[i]);
	}
	CLEANUP(listing_release) struct listing *again = list(p, l);
	assert_true(listing_serial(again) == listing_serial(l)); /* nothing changed */
	free(p->side->add_document(p, p->session, "new.pdf", "%PDF-1.4 new"));
	CLEANUP(listing_release) struct listing *changed = list(p, l);
	assert_true(listing_serial(changed) != listing_serial(l));
	assert_int_equal(listing_count(changed), COUNT + 1);
}

static void note_same(void *arg, struct listing *renewed)
{
	*(uint64_t *)arg = listing_serial(renewed);
}

static void a_sessions_record_says_that_a_listing_holds_only_where_it_does(struct place *p)
{
	enum { COUNT = 40 };

	for (int i = 0; i < COUNT; i++) {
		char name[20];

		snprintf(name, sizeof(name), "d%d.pdf", i);
		free(p->side->add_document(p, p->session, name, name));
	}
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	for (int i = 0; i < 2; i++) {
		CLEANUP(session_release) struct session s = { 0 };
		struct call *call = call_of(p);
		uint64_t same = 0;

		call->known = l;
		call->on_same = note_same;
		call->on_same_arg = &same;
		if (i == 1)
			free(p->side->add_document(p, p->session, "new.pdf", "%PDF-1.4 new"));
		assert_int_equal(backend_get_session(p->b, call, p->session, &s), 0);
		assert_string_equal(s.name, "Q1");
		assert_true(same == 0 || (i == 0 && same == listing_serial(l)));
	}
}

static void what_was_learned_of_a_session_changes_nothing_of_it(struct place *p)
{
	CLEANUP(session_release) struct session told = { 0 }, learned = { 0 }, again = { 0 };

	assert_int_equal(backend_get_session(p->b, call_of(p), p->session, &told), 0);
	assert_int_equal(session_copy(&told, &learned), 0);
	free(learned.name);
	learned.name = strdup("an old name");
	learned.is_closed = true;
	backend_forget(p->b, NULL);
	backend_learn_session(p->b, &learned);
	assert_int_equal(backend_get_session(p->b, call_of(p), p->session, &again), 0);
	assert_string_equal(again.name, told.name);
	assert_false(again.is_closed);
	assert_true(!told.workspace_id || strcmp(again.workspace_id, told.workspace_id) == 0);
	assert_true(!told.template_id || strcmp(again.template_id, told.template_id) == 0);
	assert_true(!told.formats || strcmp(again.formats, told.formats) == 0);
}

static void bytes_come_back_as_they_are(struct place *p)
{
	CLEANUP(text_release) char *id = p->side->add_document(p, p->session, "a.pdf", "%PDF-1.4 these bytes");
	CLEANUP(fd_close) int fd = memfd_create("bytes", MFD_CLOEXEC);
	char bytes[100] = "";

	assert_int_equal(backend_fetch_document(p->b, call_of(p), p->session, id, fd), 0);
	assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), 20);
	assert_memory_equal(bytes, "%PDF-1.4 these bytes", 20);
}

static void count_call(void *arg)
{
	(*(int *)arg)++;
}

static void bytes_are_told_of_as_they_come_and_never_changed(struct place *p)
{
	static const struct {
		const char *before; /* of an earlier call */
		int result;
	} rows[] = { { "", 0 }, { "%PDF-1.4", 0 }, { "%PDF-1.5", -ESTALE }, { "%PDF-1.4 these bytes", 0 }, { "%PDF-1.4 these bytes!", -ESTALE } };
	CLEANUP(text_release) char *id = p->side->add_document(p, p->session, "a.pdf", "%PDF-1.4 these bytes");

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		CLEANUP(fd_close) int fd = memfd_create("bytes", MFD_CLOEXEC);
		struct call *call = call_of(p);
		size_t before = strlen(rows[i].before);
		char bytes[100] = "";
		int told = 0;

		assert_int_equal(pwrite(fd, rows[i].before, before, 0), before);
		p->transfer.done_bytes = (int64_t)before;
		call->on_bytes = count_call;
		call->on_bytes_arg = &told;
		int r = backend_fetch_document(p->b, call, p->session, id, fd);
		if (r != rows[i].result)
			fail_msg("row %zu: %d", i, r);
		assert_int_equal(p->transfer.done_bytes, r ? (int64_t)before : 20);
		assert_int_equal(told > 0, r == 0 && before < 20);
		assert_true(pread(fd, bytes, sizeof(bytes), 0) >= (ssize_t)before);
		assert_memory_equal(bytes, r ? rows[i].before : "%PDF-1.4 these bytes", r ? before : 20);
	}
}

static void a_size_is_listed_or_can_be_measured(struct place *p)
{
	CLEANUP(text_release) char *id = p->side->add_document(p, p->session, "a.pdf", "%PDF-1.4 these bytes");
	CLEANUP(listing_release) struct listing *l = NULL;
	struct document doc;
	int64_t size = -1;

	assert_int_equal(backend_list_documents(p->b, call_of(p), p->session, NULL, &l), 0);
	int at = listing_find(l, id);
	assert_true(at >= 0);
	listing_get(l, at, &doc);
	if (p->caps->knows_sizes) {
		assert_int_equal(doc.size_bytes, 20);
		return;
	}
	assert_int_equal(doc.size_bytes, -1);
	assert_int_equal(backend_measure_document(p->b, call_of(p), p->session, id, &size), 0);
	assert_int_equal(size, 20);
	size = -1;
	assert_int_equal(backend_measure_document(p->b, call_of(p), p->session, "..", &size), -ENOENT);
	assert_int_equal(size, -1);
}

static void an_upload_goes_in_three_steps_and_is_there(struct place *p)
{
	struct file f;
	struct document doc;
	CLEANUP(fd_close) int fd = memfd_create("bytes", MFD_CLOEXEC);
	char bytes[FILE_BYTES] = "";

	file_make(p, &f, "invoice.pdf", "one");
	file_upload(p, &f);
	listing_get(f.u.document, 0, &doc);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 1);
	assert_string_equal(id_of(l, 0), doc.id);
	if (p->caps->keeps_names)
		assert_string_equal(doc.filename, "invoice.pdf");
	if (p->caps->knows_hashes)
		assert_string_equal(doc.sha256, f.sha256);
	assert_int_equal(backend_fetch_document(p->b, call_of(p), p->session, doc.id, fd), 0);
	assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), strlen(f.text));
	assert_string_equal(bytes, f.text);
	file_end(&f);
}

static void equal_bytes_are_one_document_where_the_service_says_so(struct place *p)
{
	struct file first, second;

	file_make(p, &first, "a.pdf", "the same");
	file_make(p, &second, "b.pdf", "the same");
	file_upload(p, &first);
	file_upload(p, &second);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), p->caps->reuses_bytes ? 1 : 2);
	if (p->caps->reuses_bytes)
		assert_string_equal(id_of(first.u.document, 0), id_of(second.u.document, 0));
	file_end(&first);
	file_end(&second);
}

static void a_batch_is_attached_in_one_call(struct place *p)
{
	enum { COUNT_MAX = 20 };
	int count = p->caps->attach_batch_max < COUNT_MAX ? p->caps->attach_batch_max : COUNT_MAX;
	struct file files[COUNT_MAX];
	struct upload *us[COUNT_MAX];

	for (int i = 0; i < count; i++) {
		char words[20];

		snprintf(words, sizeof(words), "file %d", i);
		file_make(p, &files[i], "invoice.pdf", words);
		file_store(p, &files[i]);
		us[i] = &files[i].u;
	}
	assert_int_equal(backend_upload_attach(p->b, call_of(p), us, count), 0);
	for (int i = 0; i < count; i++) {
		assert_int_equal(us[i]->error, 0);
		assert_int_equal(us[i]->step, UPLOAD_ATTACHED);
		for (int j = 0; j < i; j++)
			assert_string_not_equal(id_of(us[i]->document, 0), id_of(us[j]->document, 0));
	}
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), count);
	for (int i = 0; i < count; i++)
		file_end(&files[i]);
}

static void a_key_that_is_none_is_to_be_signed_again(struct place *p)
{
	struct file f;
	struct upload *u = &f.u;

	file_make(p, &f, "a.pdf", "x");
	f.u.step = UPLOAD_STORED;
	f.u.ticket = strdup("from another version, perhaps");
	assert_true(backend_upload_attach(p->b, call_of(p), &u, 1) < 0 || u->error < 0);
	assert_int_equal(u->fault.kind, FAULT_KEY);
	assert_int_equal(u->step, UPLOAD_STORED);
	file_end(&f);
}

static void what_was_attached_is_found_and_what_was_not_is_not(struct place *p)
{
	struct file f, other;

	free(p->side->add_document(p, p->session, "before.pdf", "%PDF-1.4 before"));
	file_make(p, &f, "a.pdf", "x");
	file_make(p, &other, "b.pdf", "y");
	assert_int_equal(backend_upload_find(p->b, call_of(p), &f.u, NULL, 0), -ENOENT);
	file_upload(p, &f);
	file_store(p, &other);
	listing_unref(f.u.document);
	f.u.document = NULL;
	f.u.step = UPLOAD_STORED; /* as if the answer had been lost */
	f.u.is_retry = true;
	assert_int_equal(backend_upload_find(p->b, call_of(p), &f.u, NULL, 0), 0);
	assert_int_equal(f.u.step, UPLOAD_ATTACHED);
	assert_int_equal(listing_count(f.u.document), 1);
	if (!p->caps->store_has_effect) {
		assert_int_equal(backend_upload_find(p->b, call_of(p), &other.u, NULL, 0), -ENOENT);
		assert_int_equal(other.u.step, UPLOAD_STORED);
	}
	file_end(&f);
	file_end(&other);
}

static void a_document_goes_into_another_session_and_out_again(struct place *p)
{
	CLEANUP(text_release) char *id = p->side->add_document(p, p->session, "a.pdf", "%PDF-1.4 a");
	CLEANUP(text_release) char *other = p->side->add_session(p, "Q2");
	CLEANUP(listing_release) struct listing *there = NULL;
	const char *ids[] = { id };
	int r = backend_attach(p->b, call_of(p), other, p->session, ids, 1, &there);

	if (!p->caps->attaches) {
		assert_true(r < 0);
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(listing_count(there), 1);
	if (p->caps->attach_keeps_id)
		assert_string_equal(id_of(there, 0), id);
	if (!p->caps->detaches)
		return;
	assert_int_equal(backend_detach(p->b, call_of(p), other, id_of(there, 0)), 0);
	assert_int_not_equal(backend_detach(p->b, call_of(p), other, id_of(there, 0)), 0);
	CLEANUP(listing_release) struct listing *l = list(p, NULL);
	assert_int_equal(listing_count(l), 1); /* the first session keeps it */
}

static void a_session_is_made_from_a_template(struct place *p)
{
	CLEANUP(template_list_release) struct template_list templates = { 0 };
	CLEANUP(session_release) struct session made = { 0 };
	CLEANUP(session_release) struct session asked = { 0 };

	if (!p->caps->creates_sessions)
		return;
	assert_int_equal(backend_list_templates(p->b, call_of(p), &templates), 0);
	assert_true(templates.count > 0);
	assert_int_equal(backend_create_session(p->b, call_of(p), templates.items[0].id, "New one", &made), 0);
	assert_string_equal(made.name, "New one");
	assert_int_equal(backend_get_session(p->b, call_of(p), made.id, &asked), 0);
	assert_string_equal(asked.name, "New one");
	assert_int_equal(backend_create_session(p->b, call_of(p), templates.items[0].id, "", &made), -EINVAL);
}

static void sessions_are_listed_or_said_not_to_be(struct place *p)
{
	CLEANUP(session_list_release) struct session_list found = { 0 };
	int r = backend_list_sessions(p->b, call_of(p), &found);

	if (p->caps->sessions == SESSIONS_LISTED)
		assert_int_equal(r, 0);
	if (p->caps->sessions == SESSIONS_NEVER)
		assert_int_equal(r, -EOPNOTSUPP);
	assert_true(r == 0 || r == -EOPNOTSUPP);
	assert_true(r < 0 || found.count == 1);
}

/* ---- each against each --------------------------------------------------------------------------------------- */

#define RULE(name) { #name, name }

static const struct {
	const char *name;
	void (*run)(struct place *p);
} rules[] = {
	RULE(its_account_is_checked),
	RULE(its_capabilities_make_sense),
	RULE(a_session_is_told_by_its_id),
	RULE(what_is_not_there_is_gone),
	RULE(a_cancelled_call_asks_nobody),
	RULE(an_empty_session_has_an_empty_listing),
	RULE(a_listing_holds_each_document_once),
	RULE(a_sessions_record_says_that_a_listing_holds_only_where_it_does),
	RULE(what_was_learned_of_a_session_changes_nothing_of_it),
	RULE(bytes_come_back_as_they_are),
	RULE(bytes_are_told_of_as_they_come_and_never_changed),
	RULE(a_size_is_listed_or_can_be_measured),
	RULE(an_upload_goes_in_three_steps_and_is_there),
	RULE(equal_bytes_are_one_document_where_the_service_says_so),
	RULE(a_batch_is_attached_in_one_call),
	RULE(a_key_that_is_none_is_to_be_signed_again),
	RULE(what_was_attached_is_found_and_what_was_not_is_not),
	RULE(a_document_goes_into_another_session_and_out_again),
	RULE(a_session_is_made_from_a_template),
	RULE(sessions_are_listed_or_said_not_to_be),
};

enum { SIDES = sizeof(sides) / sizeof(sides[0]), RULES = sizeof(rules) / sizeof(rules[0]) };

struct pairing {
	int side, rule;
};

static void run_pairing(void **state)
{
	const struct pairing *pairing = *state;
	struct place p = { .side = &sides[pairing->side] };

	p.side->begin(&p);
	p.caps = backend_caps(p.b);
	p.session = p.side->add_session(&p, "Q1");
	rules[pairing->rule].run(&p);
	free(p.session);
	p.side->end(&p);
}

int main(void)
{
	static struct CMUnitTest tests[SIDES * RULES];
	static struct pairing pairings[SIDES * RULES];
	static char names[SIDES * RULES][120];

	for (int i = 0; i < SIDES * RULES; i++) {
		pairings[i] = (struct pairing){ i / RULES, i % RULES };
		snprintf(names[i], sizeof(names[i]), "%s: %s", sides[i / RULES].name, rules[i % RULES].name);
		tests[i] = (struct CMUnitTest){ .name = names[i], .test_func = run_pairing, .initial_state = &pairings[i] };
	}
	log_open(LOG_LEVEL_ERROR, false);
	return cmocka_run_group_tests_name("contract", tests, NULL, NULL);
}
