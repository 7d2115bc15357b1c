/* Every allocation, write, fsync and SQLite step fails once, in the manner of curl's torture tests: state, spool, queue
 * and engine are taken through one scenario after the other, in which the first call that can fail fails, then the
 * second, and so on until a run meets none. Each has a second row in which what failed goes on failing: a disk that
 * stays full.
 *
 * A run is a child: one life of a mount with the fault, and a second one without. What the first said is held against
 * what the second finds: each file whose close was answered with 0 is at the service once, with all its bytes; one
 * whose close was answered with an error is there once, or not at all, and never in half; the next mount comes up, the
 * lock is free, no bytes are left that nobody knows of; and the first life gave back its memory and descriptors.
 *
 * Some points of each scenario are taken by chance, from a seed. `test_torture SEED [TEST]` repeats a run that failed;
 * TORTURE_ALL=1 (or SESSIONFS_SLOW=1) takes all of them, TORTURE_POINT=N one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cache/content.h"
#include "cache/store.h"
#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/queue.h"
#include "fs/spool.h"
#include "fs/state.h"
#include "fs/upload.h"
#include "tests/fail_once.h"
#include "tests/fake_backend.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED true
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED false
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

enum {
	FILES_MAX = 8,
	PIECE_BYTES = 3000,
	PIECES = 3,
	FILE_BYTES = PIECE_BYTES * PIECES,
	RUNS_OF_ONE =
		IS_SANITIZED ? 2 : 4, /* of one scenario, when not all are taken; of the first test twice as many */
	LIFE_S = 60,
	PATIENCE_MS = 6000,     /* after one fault all goes on; the longest pause of our own is 2 s */
	PATIENCE_STAYS_MS = 40, /* a disk that stays full: nothing to wait for */
	SETTLE_MS = 20,
	REOPENED_MS = 500, /* before that, a file that settles is opened again */
	CLOSE_TIMEOUT_MS = 80,
	EXIT_WRONG = 9,
};

/* ---- what was said, and what is there ------------------------------------------------------------------------ */

/* What the first life told the user of a file. */
enum promise {
	NO_PROMISE, /* an error, or nothing: absent, or there once */
	QUEUED,     /* it is there once, or will be */
	KEPT,       /* local, with all its bytes, or there once: a scratch name that was fsynced */
	REMOVED,    /* it is not there, nor anywhere */
};

struct file {
	uint64_t ino, spool_id;
	uint64_t done_spool_id; /* of the version that became a document */
	char name[24];
	int version; /* its bytes go by its number and this */
	enum promise promise;
	bool was_there;  /* before the fault: a removal of its first version may or may not have had its effect */
	bool is_second;  /* somebody else's document there has the same bytes */
	bool is_waiting; /* a close waits */
	bool is_done, is_refused, was_told;
};

struct run {
	char dir[64], spool_dir[80], spool_aside[96];
	struct backend *service, proxy;
	struct state *state;
	struct queue *queue;
	struct uploads *engine;
	pthread_mutex_t lock; /* guards `files` */
	struct file files[FILES_MAX];
	int file_count;
	int rows, scratch_rows;
	bool stays;
	bool goes_on; /* after one fault all is done without the next mount */
	bool is_second_life;
	const char *stage;
};

static struct run run;

/* What the child leaves behind. */
static struct report {
	char words[1000];
	char point[100];
	long points[2], fails;
	int lost, doubled;
} * report; /* MAP_SHARED */

static unsigned seed;

__attribute__((format(printf, 1, 2), noreturn)) static void wrong(const char *format, ...)
{
	va_list args;

	fail_once_disarm();
	fail_once_tell(report->point, sizeof(report->point));
	va_start(args, format);
	(void)vsnprintf(report->words, sizeof(report->words), format, args);
	va_end(args);
	_exit(EXIT_WRONG);
}

/* For what the test itself needs and no fault reaches. */
#define NEED(condition)                                                                                                \
	do {                                                                                                           \
		if (!(condition))                                                                                      \
			wrong("line %d: %s", __LINE__, #condition);                                                    \
	} while (0)

/* What the test has to do while it is armed. */
#define SPARED(call)                                                                                                   \
	do {                                                                                                           \
		fail_once_spare();                                                                                     \
		call;                                                                                                  \
		fail_once_spare_end();                                                                                 \
	} while (0)

static void pause_ms(long ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	(void)nanosleep(&t, NULL);
}

/* The bytes of one version of one file, in letters, so that the service's own checks can name them. */
static const char *file_text(int i, int version)
{
	static _Thread_local char text[FILE_BYTES + 1];

	for (int at = 0; at < FILE_BYTES; at++)
		text[at] = (char)('a' + (at * 7 + at / 26 + i * 3 + version * 11) % 26);
	(void)snprintf(text, 24, "file %d, version %d", i, version);
	text[strlen(text)] = ' ';
	return text;
}

/* ---- the service: faults are not for it ---------------------------------------------------------------------- */

#define PROXY(type, name, parameters, ...)                                                                             \
	static type proxy_##name parameters                                                                            \
	{                                                                                                              \
		fail_once_spare();                                                                                     \
		type r = backend_##name(run.service, __VA_ARGS__);                                                     \
		fail_once_spare_end();                                                                                 \
		return r;                                                                                              \
	}

PROXY(int, list_documents,
      (struct backend * b, struct call *call, const char *session_id, struct listing *known, struct listing **ret),
      call, session_id, known, ret)
PROXY(int, attach,
      (struct backend * b, struct call *call, const char *session_id, const char *from, const char *const *ids,
       int count, struct listing **ret),
      call, session_id, from, ids, count, ret)
PROXY(int, upload_sign, (struct backend * b, struct call *call, struct upload *u), call, u)
PROXY(int, upload_store, (struct backend * b, struct call *call, struct upload *u), call, u)
PROXY(int, upload_attach, (struct backend * b, struct call *call, struct upload *const *us, int count), call, us, count)
PROXY(int, upload_find,
      (struct backend * b, struct call *call, struct upload *u, const char *const *not_ids, int not_count), call, u,
      not_ids, not_count)

static const struct backend_ops proxy_ops = {
	.name = "proxy",
	.list_documents = proxy_list_documents,
	.attach = proxy_attach,
	.upload_sign = proxy_upload_sign,
	.upload_store = proxy_upload_store,
	.upload_attach = proxy_upload_attach,
	.upload_find = proxy_upload_find,
};

/* ---- the mount ------------------------------------------------------------------------------------------------ */

static struct file *file_of(uint64_t ino)
{
	for (int i = 0; i < run.file_count; i++) {
		if (run.files[i].ino == ino)
			return &run.files[i];
	}
	return NULL;
}

static void detach(const char *document_id)
{
	struct call call = { .urgency = URGENCY_PERSON };

	fail_once_spare();
	(void)backend_detach(run.service, &call, "s1", document_id); /* may be gone already */
	fail_once_spare_end();
}

static void on_event(void *arg, enum upload_event event, const struct queue_item *item, struct listing *document,
		     int error, const char *words)
{
	struct document d;

	SCOPED_LOCK(&run.lock);
	struct file *f = file_of(item->ino);
	if (!f || event == UPLOAD_MOVED)
		return;
	switch (event) {
	case UPLOAD_DONE:
		listing_get(document, 0, &d);
		if (item->supersedes_id && strcmp(item->supersedes_id, d.id) != 0)
			detach(item->supersedes_id);
		f->is_done = true;
		f->done_spool_id = item->spool_id;
		break;
	case UPLOAD_REFUSED:
		f->is_refused = true;
		break;
	case UPLOAD_CANCELED:
		f->promise = f->promise == QUEUED ? REMOVED : f->promise;
		f->is_done = true;
		break;
	case UPLOAD_WAITING:
	case UPLOAD_MOVED:
		break;
	}
	f->was_told = true;
	f->is_waiting = false;
}

/* As fs/local.c: what is in the session, and what the mount remembers of the workspace. */
static void on_known(void *arg, const char *session_id, const char *sha256, int64_t size_bytes, char **ret_document_id,
		     char **ret_session_id, char **ret_prior_ids)
{
	struct call call = { .urgency = URGENCY_PERSON };
	struct listing *l = NULL;
	struct buf prior = BUF(4096);

	fail_once_spare();
	if (backend_list_documents(run.service, &call, session_id, NULL, &l) < 0)
		l = NULL;
	fail_once_spare_end();
	for (int i = 0; l && i < listing_count(l); i++) {
		struct document d;
		listing_get(l, i, &d);
		if (d.sha256 && strcmp(d.sha256, sha256) == 0)
			buf_addf(&prior, "%s%s", prior.len ? " " : "", d.id);
	}
	listing_unref(l);
	(void)queue_find_hash(run.queue, "w1", sha256, ret_document_id, ret_session_id);
	*ret_prior_ids = buf_take(&prior);
	buf_release(&prior);
}

static void resume_row(void *arg, const struct queue_item *item)
{
	run.rows++;
	run.scratch_rows += item->kind == FILE_SCRATCH;
	if (item->kind == FILE_SCRATCH || uploads_submit(run.engine, item, false, 0) == 0)
		return;
	if (run.is_second_life)
		wrong("'%s' is not taken up again by the next mount", item->name);
	if (uploads_submit(run.engine, item, false, 0) < 0)
		run.rows = -1; /* one of them waits for the next mount */
}

static void mount_close(void)
{
	if (run.engine)
		(void)uploads_drain(run.engine, 0);
	uploads_free(run.engine);
	queue_close(run.queue);
	state_close(run.state);
	run.engine = NULL;
	run.queue = NULL;
	run.state = NULL;
}

static int mount_open(void)
{
	CLEANUP(buf_release) struct buf why = BUF(1000);
	struct uploads_config config = { .backend = &run.proxy,
					 .spool_dir = run.spool_dir,
					 .account = "me",
					 .close_timeout_ms = CLOSE_TIMEOUT_MS,
					 .transfers_max = 3,
					 .event = on_event,
					 .known = on_known };
	int r = state_open(run.dir, "/mnt", 0, &why, &run.state);

	if (r == 0)
		r = queue_open(run.dir, &why, &run.queue);
	if (r < 0 && r != -ENOMEM && why.len == 0 && !why.failed)
		wrong("a mount does not come up and does not say why: %s", strerror(-r));
	if (r < 0 && run.is_second_life)
		wrong("the next mount does not come up: %s: %s", strerror(-r), buf_text(&why));
	config.queue = run.queue;
	if (r == 0)
		r = uploads_new(&config, &run.engine);
	if (r == 0)
		r = queue_load(run.queue, resume_row, NULL);
	if (r < 0 && run.is_second_life)
		wrong("the next mount does not come up: %s", strerror(-r));
	return r;
}

/* Until every file that was promised is there, or nothing more is to be expected. is_done: all that this waits for. */
static void wait_until(bool (*is_done)(void))
{
	int64_t end_ms = clock_now_ms() + PATIENCE_MS;

	while (!is_done()) {
		if (run.stays && fail_once_fails() > 0 && end_ms > clock_now_ms() + PATIENCE_STAYS_MS)
			end_ms = clock_now_ms() + PATIENCE_STAYS_MS;
		if (clock_now_ms() >= end_ms) {
			if (run.stays || !run.goes_on)
				return;
			wrong("%s: after one fault it does not go on", run.stage);
		}
		(void)uploads_retry(run.engine, 0); /* in place of the minutes that pauses take */
		pause_ms(1);
	}
}

static bool all_are_done(void)
{
	SCOPED_LOCK(&run.lock);
	for (int i = 0; i < run.file_count; i++) {
		if (run.files[i].promise == QUEUED && !run.files[i].is_done)
			return false;
	}
	return true;
}

static bool all_are_told(void)
{
	SCOPED_LOCK(&run.lock);
	for (int i = 0; i < run.file_count; i++) {
		if (run.files[i].is_waiting)
			return false;
	}
	return true;
}

/* ---- what a program does -------------------------------------------------------------------------------------- */

static struct file *file_new(void)
{
	SCOPED_LOCK(&run.lock);
	int i = run.file_count++;
	struct file *f = &run.files[i];

	NEED(i < FILES_MAX);
	*f = (struct file){ 0 };
	(void)snprintf(f->name, sizeof(f->name), "f%d.pdf", i);
	return f;
}

static int number_of(const struct file *f)
{
	return (int)(f - run.files);
}

static struct queue_item item_of(const struct file *f, enum file_kind kind)
{
	return (struct queue_item){ .ino = f->ino,
				    .session_id = (char *)"s1",
				    .session_name = (char *)"Q1",
				    .name = (char *)f->name,
				    .spool_id = f->spool_id,
				    .size_bytes = FILE_BYTES,
				    .kind = kind,
				    .account = kind == FILE_PENDING && number_of(f) % 2 ? NULL
											: (char *)"me", /* NULL: ours */
				    .queued_wall_ms = clock_wall_ms() };
}

/* open, write in pieces. A piece that is refused is written once more, as a program does that asks for room. */
static int file_write(struct file *f, int version, struct spool **ret)
{
	CLEANUP(spool_release) struct spool *s = NULL;
	const char *text = file_text(number_of(f), version);
	uint64_t id = state_next_ino(run.state);
	int r = id ? spool_new(run.spool_dir, id, 1 << 20, &s) : -EIO;

	for (int i = 0; r == 0 && i < PIECES; i++) {
		/* The last piece twice: in the wrong place first, and then, after a truncate, in its own. */
		if (i == PIECES - 1)
			r = spool_write(s, text, PIECE_BYTES, FILE_BYTES);
		if (r == 0 && i == PIECES - 1)
			r = spool_truncate(s, i * PIECE_BYTES);
		if (r == 0)
			r = spool_write(s, text + i * PIECE_BYTES, PIECE_BYTES, i * PIECE_BYTES);
		if (r < 0)
			r = spool_write(s, text + i * PIECE_BYTES, PIECE_BYTES, i * PIECE_BYTES);
		if (r == 0 && spool_size(s) > (i + 1) * PIECE_BYTES)
			r = spool_truncate(s, (i + 1) * PIECE_BYTES);
	}
	if (r < 0) {
		if (s)
			spool_unlink(s); /* the program cleans up after itself */
		return r;
	}
	SCOPED_LOCK(&run.lock);
	if (!f->ino)
		f->ino = id;
	f->spool_id = id;
	f->version = version;
	*ret = s;
	s = NULL;
	return 0;
}

static void bytes_check(struct spool *s, int i, int version)
{
	char there[FILE_BYTES + 1];

	fail_once_spare();
	ssize_t n = spool_read(s, there, sizeof(there), 0);
	if (n != FILE_BYTES || memcmp(there, file_text(i, version), FILE_BYTES) != 0)
		wrong("writes succeeded, and the bytes are others (%zd)", n);
	fail_once_spare_end();
}

/* close of a final name: the promise is made when this returns 0. */
static int file_close(struct file *f, struct spool *s, const char *supersedes_id, bool somebody_waits,
		      int64_t not_before_ms)
{
	struct queue_item item = item_of(f, FILE_PENDING);

	bytes_check(s, number_of(f), f->version);
	item.supersedes_id = (char *)supersedes_id;
	spool_freeze(s);
	int r = spool_sync(s);
	if (r == 0)
		r = spool_finish(s, item.sha256);
	if (r < 0)
		return r;
	pthread_mutex_lock(&run.lock);
	enum promise before = f->promise;
	f->promise = QUEUED; /* its events may come before this returns */
	f->is_waiting = somebody_waits;
	f->is_done = f->is_refused = f->was_told = false;
	pthread_mutex_unlock(&run.lock);
	r = uploads_submit(run.engine, &item, somebody_waits, not_before_ms);
	SCOPED_LOCK(&run.lock);
	if (r < 0) {
		f->promise = before;
		f->is_waiting = false;
	}
	return r;
}

/* fsync of a scratch name. */
static int file_fsync(struct file *f, struct spool *s)
{
	struct queue_item item = item_of(f, FILE_SCRATCH);
	int r = spool_sync(s);

	if (r == 0)
		r = queue_put(run.queue, &item);
	if (r == 0)
		f->promise = KEPT;
	return r;
}

/* cp */
static void file_copy_in(struct file *f, bool somebody_waits)
{
	CLEANUP(spool_release) struct spool *s = NULL;

	if (file_write(f, 0, &s) == 0)
		(void)file_close(f, s, NULL, somebody_waits, 0);
}

/* rm */
static void file_remove(struct file *f)
{
	pthread_mutex_lock(&run.lock);
	bool was_done = f->is_done;
	pthread_mutex_unlock(&run.lock);
	int r = uploads_cancel(run.engine, f->ino, false);
	SCOPED_LOCK(&run.lock);
	if (r == 0 && !was_done) {
		f->promise = REMOVED;
		spool_unlink_id(run.spool_dir, f->spool_id);
	}
}

/* Whatever goes on failing here: who waits has to hear. */
static void wait_to_be_told(void)
{
	int64_t end_ms = clock_now_ms() + PATIENCE_MS;

	for (; !all_are_told(); pause_ms(1)) {
		if (clock_now_ms() >= end_ms)
			wrong("a waiting close was never told that the service is away");
	}
}

/* ---- scenarios ------------------------------------------------------------------------------------------------ */

static void one_file(void)
{
	file_copy_in(file_new(), true);
	wait_until(all_are_done);
}

static void in_the_background(void)
{
	file_copy_in(file_new(), false);
	file_copy_in(file_new(), false);
	wait_until(all_are_done);
}

static void scratch_renamed(void)
{
	CLEANUP(spool_release) struct spool *s = NULL;
	struct file *f = file_new();

	if (file_write(f, 0, &s) < 0)
		return;
	(void)file_fsync(f, s);
	(void)file_close(f, s, NULL, true, 0);
	wait_until(all_are_done);
}

static void scratch_stays(void)
{
	CLEANUP(spool_release) struct spool *s = NULL, *copy = NULL;
	struct file *f = file_new();

	if (file_write(f, 0, &s) < 0)
		return;
	(void)file_fsync(f, s);
	/* Written on in a copy, as for a file whose bytes are under way: the copy is whole, or there is none. */
	uint64_t id = state_next_ino(run.state);
	if (id && spool_clone(s, id, &copy) == 0) {
		bytes_check(copy, number_of(f), 0);
		spool_unlink(copy);
	}
}

/* A first version at the service, that a second one takes the place of. */
static void replaced(void)
{
	CLEANUP(spool_release) struct spool *s = NULL;
	struct file *f = file_new();
	char document_id[40] = "";

	fail_once_spare();
	file_copy_in(f, true);
	fail_once_spare_end();
	wait_until(all_are_done);
	if (!f->is_done)
		return;
	fail_once_spare();
	(void)snprintf(document_id, sizeof(document_id), "%s",
		       fake_document_with(run.service, "s1", file_text(0, 0), 0));
	f->was_there = true;
	f->promise = NO_PROMISE;
	fail_once_spare_end();
	if (file_write(f, 1, &s) == 0) {
		if (file_close(f, s, document_id, true, 0) < 0)
			return;
		wait_until(all_are_done);
	}
}

static bool store_is_held(void)
{
	return fake_calls(run.service, FAKE_UPLOAD_STORE) > 0 || all_are_done();
}

static bool attach_is_held(void)
{
	return fake_calls(run.service, FAKE_UPLOAD_ATTACH) > 0 || all_are_done();
}

static void unlinked_while_sent(void)
{
	SPARED(fake_hold(run.service, FAKE_UPLOAD_STORE, HOLD_BEFORE));
	struct file *f = file_new();
	file_copy_in(f, false);
	wait_until(store_is_held);
	if (f->ino)
		file_remove(f);
	SPARED(fake_let_go(run.service, FAKE_UPLOAD_STORE));
	wait_until(all_are_done);
}

static void unlinked_at_the_last_step(void)
{
	SPARED(fake_hold(run.service, FAKE_UPLOAD_ATTACH, HOLD_BEFORE));
	SPARED(fake_fail(run.service, FAKE_UPLOAD_ATTACH, 1,
			 &(struct fake_fault){ .kind = FAULT_AWAY, .may_have_happened = true }));
	struct file *f = file_new();
	file_copy_in(f, false);
	wait_until(attach_is_held);
	if (f->ino)
		file_remove(f);
	SPARED(fake_let_go(run.service, FAKE_UPLOAD_ATTACH));
	wait_until(all_are_done);
}

static void refused_and_retried(void)
{
	SPARED(fake_fail(
		run.service, FAKE_UPLOAD_SIGN, 1,
		&(struct fake_fault){ .kind = FAULT_FORBIDDEN, .http_status = 403, .ability = "sessions-write" }));
	file_copy_in(file_new(), true);
	wait_until(all_are_told);
	wait_until(all_are_done);
}

static void refused_and_discarded(void)
{
	SPARED(fake_fail(run.service, FAKE_UPLOAD_SIGN, -1,
			 &(struct fake_fault){ .kind = FAULT_INVALID, .http_status = 422 }));
	struct file *f = file_new();
	file_copy_in(f, true);
	if (!run.stays)
		wait_to_be_told();
	if (f->ino)
		file_remove(f);
	SPARED(fake_heal(run.service));
	wait_until(all_are_done);
}

static void five_together(void)
{
	SPARED(fake_hold(run.service, FAKE_UPLOAD_ATTACH, HOLD_BEFORE));
	for (int i = 0; i < 5; i++)
		file_copy_in(file_new(), i % 2 == 0);
	wait_until(attach_is_held);
	pause_ms(3); /* the others catch up with the first */
	SPARED(fake_let_go(run.service, FAKE_UPLOAD_ATTACH));
	wait_until(all_are_done);
}

static void one_of_five_is_guilty(void)
{
	SPARED(fake_fail_upload(run.service, "f3.pdf", 1, true,
				&(struct fake_fault){ .kind = FAULT_INVALID, .http_status = 422 }));
	five_together();
}

static void answer_lost(void)
{
	SPARED(fake_fail(run.service, FAKE_UPLOAD_ATTACH, 1,
			 &(struct fake_fault){ .kind = FAULT_AWAY, .takes_effect = true }));
	file_copy_in(file_new(), true);
	wait_until(all_are_done);
}

/* Somebody else's document has the same bytes, and the service makes a second one: a look must not take that for ours.
 */
static void equal_bytes_before(void)
{
	struct file *f = file_new();

	SPARED((void)fake_add_document(run.service, "s1", "before.pdf", file_text(0, 0)));
	f->is_second = true;
	SPARED(fake_fail(run.service, FAKE_UPLOAD_ATTACH, 1,
			 &(struct fake_fault){ .kind = FAULT_AWAY, .may_have_happened = true }));
	file_copy_in(f, true);
	wait_until(all_are_done);
}

static void known_to_the_workspace(void)
{
	fail_once_spare();
	SPARED(fake_add_session(run.service, "s2", "Q2"));
	const char *id = fake_add_document(run.service, "s2", "old.pdf", file_text(0, 0));
	struct document d;
	struct listing *l = NULL;
	struct call call = { .urgency = URGENCY_PERSON };
	NEED(backend_list_documents(run.service, &call, "s2", NULL, &l) == 0);
	listing_get(l, 0, &d);
	(void)queue_remember_hash(run.queue, "w1", d.sha256, id, "s2");
	listing_unref(l);
	fail_once_spare_end();
	(void)queue_remember_hash(run.queue, "w1", "0000000000000000000000000000000000000000000000000000000000000000",
				  "d9", NULL);
	file_copy_in(file_new(), true);
	wait_until(all_are_done);
	(void)queue_forget_hash(run.queue, "0000000000000000000000000000000000000000000000000000000000000000", "d9");
}

static void settles(void)
{
	CLEANUP(spool_release) struct spool *s = NULL, *second = NULL;
	struct file *f = file_new();

	if (file_write(f, 0, &s) < 0 || file_close(f, s, NULL, false, clock_now_ms() + REOPENED_MS) < 0)
		return;
	/* Opened again before it went: local, then written anew and closed. */
	int r = uploads_cancel(run.engine, f->ino, true);
	if (r < 0)
		return;
	f->promise = KEPT;
	uint64_t old_spool = f->spool_id;
	int old_version = f->version;
	if (file_write(f, 1, &second) < 0)
		return;
	if (file_close(f, second, NULL, true, clock_now_ms() + SETTLE_MS) < 0) {
		f->spool_id = old_spool; /* the row stands for the version before */
		f->version = old_version;
		return;
	}
	spool_unlink_id(run.spool_dir, old_spool);
	wait_until(all_are_done);
}

static void renamed_in_the_queue(void)
{
	SPARED(fake_hold(run.service, FAKE_UPLOAD_STORE, HOLD_BEFORE));
	struct file *f = file_new();
	file_copy_in(f, false);
	wait_until(store_is_held);
	if (f->ino)
		(void)uploads_rename(run.engine, f->ino, "s1", "Q1", "other.png");
	SPARED(fake_let_go(run.service, FAKE_UPLOAD_STORE));
	wait_until(all_are_done);
}

/* The service is away: whoever waits for a close is told so in time, whatever fails here. */
static void told_in_time(void)
{
	SPARED(fake_fail(run.service, FAKE_UPLOAD_SIGN, -1,
			 &(struct fake_fault){ .kind = FAULT_AWAY, .http_status = 503 }));
	file_copy_in(file_new(), true);
	wait_to_be_told();
	SPARED(fake_heal(run.service));
	wait_until(all_are_done);
}

/* It answers nothing at all. */
static void told_in_time_of_a_stall(void)
{
	SPARED(fake_hold(run.service, FAKE_UPLOAD_SIGN, HOLD_BEFORE));
	file_copy_in(file_new(), true);
	wait_to_be_told();
	SPARED(fake_let_go(run.service, FAKE_UPLOAD_SIGN));
	wait_until(all_are_done);
}

/* ---- rows from before ------------------------------------------------------------------------------------------ */

/* A file of an earlier life, brought to a step by hand. */
static void row_at(enum file_kind kind, enum upload_step step, bool may_have_happened, bool has_happened)
{
	CLEANUP(spool_release) struct spool *s = NULL;
	struct call call = { .urgency = URGENCY_PERSON };
	struct file *f = file_new();

	NEED(file_write(f, 0, &s) == 0 && spool_sync(s) == 0);
	struct queue_item item = item_of(f, kind);
	NEED(kind == FILE_SCRATCH || spool_finish(s, item.sha256) == 0);
	struct upload up = { .session_id = "s1",
			     .name = f->name,
			     .sha256 = item.sha256,
			     .size_bytes = item.size_bytes,
			     .fd = spool_fd(s) };
	struct upload *ups[] = { &up };
	if (step >= UPLOAD_SIGNED)
		NEED(backend_upload_sign(run.service, &call, &up) == 0);
	if (step >= UPLOAD_STORED)
		NEED(backend_upload_store(run.service, &call, &up) == 0);
	item.step = step;
	item.ticket = up.ticket ? strdup(up.ticket) : NULL;
	item.ticket_wall_ms = up.ticket_wall_ms;
	item.may_have_happened = may_have_happened;
	item.prior_ids = step == UPLOAD_STORED ? (char *)"" : NULL;
	if (kind == FILE_FAILED) {
		item.error = -EACCES;
		item.fault = FAULT_FORBIDDEN;
		item.words = (char *)"needs sessions-write";
	}
	NEED(queue_put(run.queue, &item) == 0);
	if (has_happened)
		NEED(backend_upload_attach(run.service, &call, ups, 1) == 0 && up.error == 0);
	free(item.ticket);
	free(up.ticket);
	listing_unref(up.document);
	f->promise = kind == FILE_SCRATCH ? KEPT : QUEUED;
}

static void prepare_steps(void)
{
	row_at(FILE_PENDING, UPLOAD_SPOOLED, false, false);
	row_at(FILE_PENDING, UPLOAD_SIGNED, false, false);
	row_at(FILE_PENDING, UPLOAD_STORED, false, false);
	row_at(FILE_PENDING, UPLOAD_STORED, true, false);
	row_at(FILE_PENDING, UPLOAD_STORED, true, true);
	row_at(FILE_FAILED, UPLOAD_SPOOLED, false, false);
	row_at(FILE_SCRATCH, UPLOAD_SPOOLED, false, false);
}

static void restarted(void)
{
	if (run.rows == run.file_count) /* else not all were taken up, and wait for the next mount */
		wait_until(all_are_done);
}

static void sql(const char *format, uint64_t n)
{
	CLEANUP(buf_release) struct buf path = BUF(200);
	char text[300];
	sqlite3 *db = NULL;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	(void)snprintf(text, sizeof(text), format, n);
#pragma GCC diagnostic pop
	buf_addf(&path, "%s/state.db", run.dir);
	NEED(sqlite3_open(buf_text(&path), &db) == SQLITE_OK);
	NEED(sqlite3_exec(db, text, NULL, NULL, NULL) == SQLITE_OK);
	NEED(sqlite3_close(db) == SQLITE_OK);
}

/* Rows nobody understands, bytes without a row, and two good files among them. */
static void prepare_damaged(void)
{
	CLEANUP(spool_release) struct spool *s = NULL;

	for (int i = 0; i < 5; i++)
		row_at(FILE_PENDING, UPLOAD_SPOOLED, false, false);
	sql("UPDATE file SET kind = 'unheard of' WHERE ino = %" PRIu64, run.files[0].ino);
	sql("UPDATE file SET size_bytes = 17 WHERE ino = %" PRIu64, run.files[1].ino);
	spool_unlink_id(run.spool_dir, run.files[2].spool_id);
	for (int i = 0; i < 3; i++)
		run.files[i].promise = NO_PROMISE;
	NEED(file_write(file_new(), 0, &s) == 0 && spool_sync(s) == 0); /* without a row */
}

static void check_damaged(void)
{
	CLEANUP(buf_release) struct buf path = BUF(200);
	sqlite3 *db = NULL;
	sqlite3_stmt *s = NULL;
	struct stat st;

	buf_addf(&path, "%s/state.db", run.dir);
	NEED(sqlite3_open(buf_text(&path), &db) == SQLITE_OK);
	NEED(sqlite3_prepare_v2(db, "SELECT count(*), count(DISTINCT ino) FROM file_aside", -1, &s, NULL) == SQLITE_OK);
	NEED(sqlite3_step(s) == SQLITE_ROW);
	if (sqlite3_column_int(s, 0) != 3 || sqlite3_column_int(s, 1) != 3)
		wrong("of three damaged rows %d are set aside", sqlite3_column_int(s, 0));
	(void)sqlite3_finalize(s);
	(void)sqlite3_close(db);
	for (int i = 0; i < 6; i++) {
		if (i == 2 || run.files[i].promise == QUEUED)
			continue;
		buf_clear(&path);
		buf_addf(&path, "%s/%" PRIu64, run.spool_aside, run.files[i].spool_id);
		if (stat(buf_text(&path), &st) < 0 || st.st_size != FILE_BYTES)
			wrong("the bytes of a file without a sound row are not set aside");
	}
}

/* A database nobody can read, after a crash. */
static void prepare_no_database(void)
{
	static const char *const tails[] = { "", "-wal" };
	static const char rubbish[5000] = "this was a database";

	row_at(FILE_PENDING, UPLOAD_SPOOLED, false, false);
	run.files[0].promise = NO_PROMISE;
	mount_close();
	for (int i = 0; i < 2; i++) {
		CLEANUP(buf_release) struct buf path = BUF(200);
		buf_addf(&path, "%s/state.db%s", run.dir, tails[i]);
		if (i == 1) {
			(void)unlink(buf_text(&path));
			continue;
		}
		CLEANUP(fd_close) int fd = open(buf_text(&path), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		NEED(write(fd, rubbish, sizeof(rubbish)) == sizeof(rubbish));
	}
}

static void new_database(void)
{
	file_copy_in(file_new(), true);
	wait_until(all_are_done);
}

static void check_no_database(void)
{
	DIR *d = opendir(run.dir);
	int found = 0;

	NEED(d);
	for (struct dirent *e; (e = readdir(d));)
		found += strncmp(e->d_name, "state.db.damaged-", 17) == 0 && !strstr(e->d_name, "-wal") &&
			 !strstr(e->d_name, "-shm");
	(void)closedir(d);
	if (found != 1)
		wrong("the database that could not be read is set aside %d times", found);
}

/* ---- names, sessions, facts ------------------------------------------------------------------------------------- */

enum { STATE_FACTS = 6 };
static bool was_saved[STATE_FACTS];

static struct known_session session_texts(const char *name)
{
	return (struct known_session){ .id = (char *)"s1",
				       .ino = 2000,
				       .name = (char *)name,
				       .server_name = (char *)"Q1 of the server",
				       .template_id = (char *)"t1",
				       .workspace_id = (char *)"w1",
				       .status = (char *)"open",
				       .formats = (char *)"pdf png",
				       .created_ms = 5,
				       .updated_ms = 6,
				       .origin = ORIGIN_ADDED,
				       .account_saw_it = true };
}

static const struct known_entry two_entries[] = {
	{ .ino = 5001, .name = "a.pdf", .document_id = "d1", .mtime_ns = 7, .attached_wall_ms = 8, .learned_bytes = 9 },
	{ .ino = 5002, .name = "b.pdf", .document_id = "d2", .mtime_ns = -1, .was_there_before = true },
};

static void count_entry(void *arg, const struct known_entry *e)
{
	int *seen = arg;
	const struct known_entry *w = &two_entries[*seen];

	if (*seen >= 2 || e->ino != w->ino || strcmp(e->name, w->name) != 0 || !e->document_id ||
	    strcmp(e->document_id, w->document_id) != 0 || e->mtime_ns != w->mtime_ns ||
	    e->attached_wall_ms != w->attached_wall_ms || e->was_there_before != w->was_there_before ||
	    e->learned_bytes != w->learned_bytes)
		wrong("%s: an entry was read as another one", run.stage);
	++*seen;
}

static bool same(const char *a, const char *b)
{
	return a && strcmp(a, b) == 0;
}

/* What is read is right, or the call says that it could not be. */
static void state_read_back(bool must)
{
	CLEANUP(text_release) char *fact = NULL, *alias = NULL;
	struct known_session *all = NULL;
	int count = 0, seen = 0;

	int r = state_load_sessions(run.state, "me", &all, &count);
	if ((r < 0 && must) || (r == 0 && was_saved[0] && count != 1))
		wrong("a saved session is not there: %d, %d of them", r, count);
	for (int i = 0; r == 0 && i < count; i++) {
		struct known_session *k = &all[i], want = session_texts(was_saved[1] ? "Q1 new" : k->name);
		if (!same(k->name, want.name) || !same(k->server_name, want.server_name) ||
		    !same(k->template_id, want.template_id) || !same(k->workspace_id, want.workspace_id) ||
		    !same(k->status, want.status) || !same(k->formats, want.formats) || !k->account_saw_it ||
		    k->origin != want.origin)
			wrong("%s: a session was read as another one", run.stage);
		known_session_release(k);
	}
	free(all);
	r = state_load_entries(run.state, "s1", count_entry, &seen);
	if (must && (r < 0 || (was_saved[2] && seen != 2) || seen == 1))
		wrong("of two entries saved at once there are %d (%d)", seen, r);
	r = state_get(run.state, "naming", &fact);
	if (r == 0 ? !same(fact, "session") : must && was_saved[3])
		wrong("a fact is not what it was");
	r = state_find_alias(run.state, "Q0", &alias);
	if (r == 0 ? !same(alias, "s1") : must && was_saved[4])
		wrong("an alias is not what it was");
}

static void remembered(void)
{
	struct known_session k = session_texts("Q1");

	was_saved[0] = state_save_session(run.state, "me", &k) == 0;
	k.name = (char *)"Q1 new";
	was_saved[1] = state_save_session(run.state, "me", &k) == 0;
	was_saved[0] |= was_saved[1];
	was_saved[2] = state_save_entries(run.state, "s1", two_entries, 2, NULL) == 0;
	was_saved[3] = state_set(run.state, "naming", "session") == 0;
	was_saved[4] = state_save_alias(run.state, "s1", "Q0") == 0;
	run.stage = "with a fault";
	state_read_back(false);
	uint64_t gone = 77;
	(void)state_remove_entries(run.state, &gone, 1);
	(void)state_renew_owner(run.state);
	state_set_draining(run.state);
}

static void check_remembered(void)
{
	state_read_back(true);
}

/* ---- what is fetched and what is listed: a failure costs a request, and never serves half ----------------------- */

enum { DOCUMENTS = 5, CACHE_BYTES_MAX = 3 * FILE_BYTES };

static struct content *content_at(const char *name)
{
	CLEANUP(buf_release) struct buf path = BUF(200);
	struct content *c = NULL;

	buf_addf(&path, "%s/%s", run.dir, name);
	return buf_text(&path) && content_open(buf_text(&path), CACHE_BYTES_MAX, &c) == 0 ? c : NULL;
}

static void content_key(int i, char ret[24])
{
	(void)snprintf(ret, 24, "document-%d", i);
}

/* Whole, or not there. */
static bool content_has(struct content *c, int i)
{
	char key[24], there[FILE_BYTES + 1];

	content_key(i, key);
	CLEANUP(fd_close) int fd = content_get(c, key);
	if (fd < 0)
		return false;
	ssize_t n = read(fd, there, sizeof(there));
	if (n != FILE_BYTES || memcmp(there, file_text(i, 0), FILE_BYTES) != 0)
		wrong("%s: document %d is served with %zd bytes that are not its own", run.stage, i, n);
	return true;
}

/* As a reader does it: what could not be written is given up. */
static void content_fetch(struct content *c, int i)
{
	char key[24], *name = NULL;
	int fd = -1;

	content_key(i, key);
	if (content_begin(c, i % 2 ? FILE_BYTES : 0, &name, &fd) < 0)
		return;
	if (pwrite(fd, file_text(i, 0), FILE_BYTES, 0) == FILE_BYTES)
		(void)content_commit(c, name, key);
	else
		content_abandon(c, name);
	(void)close(fd);
}

static void documents_kept(void)
{
	CLEANUP(spool_release) struct spool *s = NULL;
	CLEANUP(buf_release) struct buf path = BUF(200);
	struct content *c = content_at("content");
	char key[24];

	if (!c)
		return;
	for (int i = 0; i < DOCUMENTS - 1; i++) {
		content_fetch(c, i);
		(void)content_has(c, i);
	}
	content_fetch(c, 1); /* once more, over the one that is there */
	struct file *f = file_new();
	if (file_write(f, 0, &s) == 0) {
		spool_path(s, &path);
		content_key(0, key); /* the first file's bytes are the first document's */
		if (!buf_text(&path) || content_adopt(c, buf_text(&path), key) < 0)
			spool_unlink(s);
	}
	content_key(2, key);
	content_forget(c, key);
	for (int i = 0; i < DOCUMENTS; i++)
		(void)content_has(c, i);
	content_close(c);
}

static void check_documents_kept(void)
{
	struct content *c = content_at("content");
	CLEANUP(buf_release) struct buf path = BUF(200);
	int there = 0, files = 0;

	NEED(c);
	for (int i = 0; i < DOCUMENTS; i++)
		there += content_has(c, i);
	buf_addf(&path, "%s/content", run.dir);
	DIR *d = opendir(buf_text(&path));
	NEED(d);
	for (struct dirent *e; (e = readdir(d));)
		files += e->d_name[0] != '.' || e->d_name[1] == 'n';
	(void)closedir(d);
	content_close(c);
	if (files != there)
		wrong("%d documents are kept in %d files", there, files);
}

static const char *const account = "00000000000000000000000000000000000000000000000000000000000000ab";

static struct listing *listing_new(int count)
{
	struct listing_builder *lb = listing_builder_new(NULL);
	struct listing *l = NULL;

	NEED(lb);
	for (int i = 0; i < count; i++) {
		char id[40], name[40];
		(void)snprintf(id, sizeof(id), "id-%d-%d", count, i);
		(void)snprintf(name, sizeof(name), "name %d.pdf", i);
		struct document d = { .id = id,
				      .filename = name,
				      .status = "ready",
				      .size_bytes = 100 + i,
				      .created_ms = 7,
				      .pages = -1 };
		NEED(listing_builder_add(lb, &d, NULL) == 0);
	}
	NEED(listing_builder_finish(lb, clock_now_ms(), clock_wall_ms(), &l) == 0);
	return l;
}

static struct store *store_at_hand(void)
{
	struct store_options options = { .dir = run.dir, .delay_ms = 1 };
	struct store *s = NULL;

	return store_open(&options, &s) == 0 ? s : NULL;
}

/* As it was put, or not there: 3 documents, or 5 that took their place. */
static void store_check(struct store *s)
{
	CLEANUP(listing_release) struct listing *l = NULL;

	if (store_load(s, account, "s1", clock_now_ms(), &l) < 0)
		return;
	int count = listing_count(l);
	for (int i = 0; i < count; i++) {
		struct document d;
		char id[40], name[40];
		(void)snprintf(id, sizeof(id), "id-%d-%d", count, i);
		(void)snprintf(name, sizeof(name), "name %d.pdf", i);
		listing_get(l, i, &d);
		if (!same(d.id, id) || !same(d.filename, name) || d.size_bytes != 100 + i)
			wrong("%s: a remembered listing is another one", run.stage);
	}
	if (count != 3 && count != 5)
		wrong("%s: a remembered listing has %d documents", run.stage, count);
}

static void listings_kept(void)
{
	struct store *s = store_at_hand();

	if (!s)
		return;
	for (int count = 3; count <= 5; count += 2) {
		struct listing *l = NULL;
		SPARED(l = listing_new(count));
		store_put(s, account, "s1", l);
		store_put(s, account, "s2", l);
		listing_unref(l);
		store_check(s);
		store_flush(s);
		store_check(s);
	}
	store_forget(s, account, "s2");
	store_close(s);
	s = store_at_hand();
	if (s)
		store_check(s);
	store_close(s);
}

static void check_listings_kept(void)
{
	struct store *s = store_at_hand();

	NEED(s);
	store_check(s);
	store_close(s);
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static const struct scenario {
	const char *name;
	void (*prepare)(void); /* without faults, in a mount that is closed afterwards; may be NULL */
	void (*act)(void);
	void (*check)(void);
	bool after_crash;   /* the mount before did not end properly */
	bool makes_two;     /* the service makes a second document of equal bytes */
	bool may_end_early; /* what one fault leaves behind is for the next mount */
} scenarios[] = {
	{ "one file, waited for", NULL, one_file },
	{ "one file at a service that makes two of equal bytes", NULL, one_file, .makes_two = true },
	{ "two in the background", NULL, in_the_background },
	{ "a scratch file that is renamed", NULL, scratch_renamed },
	{ "a scratch file that stays", NULL, scratch_stays },
	{ "one that replaces another", NULL, replaced },
	{ "removed while it is sent", NULL, unlinked_while_sent },
	{ "removed at its last step", NULL, unlinked_at_the_last_step },
	{ "refused and retried", NULL, refused_and_retried },
	{ "refused and discarded", NULL, refused_and_discarded },
	{ "five together", NULL, five_together },
	{ "five with a guilty one", NULL, one_of_five_is_guilty },
	{ "the last answer lost", NULL, answer_lost, .makes_two = true },
	{ "equal bytes that were there before", NULL, equal_bytes_before, .makes_two = true },
	{ "bytes the workspace knows", NULL, known_to_the_workspace },
	{ "settled and written again", NULL, settles },
	{ "renamed in the queue", NULL, renamed_in_the_queue },
	{ "told in time that it fails", NULL, told_in_time },
	{ "told in time that it stalls", NULL, told_in_time_of_a_stall },
	{ "a restart with rows in each step", prepare_steps, restarted, .makes_two = true },
	{ "a restart after a crash", prepare_steps, restarted, .makes_two = true, .after_crash = true },
	{ "damaged rows and bytes without one", prepare_damaged, restarted, check_damaged, .may_end_early = true },
	{ "a database nobody can read", prepare_no_database, new_database, check_no_database },
	{ "names, sessions and facts", NULL, remembered, check_remembered },
	{ "documents kept", NULL, documents_kept, check_documents_kept },
	{ "listings kept", NULL, listings_kept, check_listings_kept },
};
#define SCENARIOS ((int)(sizeof(scenarios) / sizeof(scenarios[0])))

static int open_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	NEED(d);
	while (readdir(d))
		n++;
	(void)closedir(d);
	return n;
}

/* Nothing is in the spool but what a row stands for; aside is what nobody was promised. */
static void check_spool(const char *dir, bool is_aside)
{
	DIR *d = opendir(dir);

	if (!d && is_aside && errno == ENOENT)
		return;
	NEED(d);
	for (struct dirent *e; (e = readdir(d));) {
		char *end = NULL;
		uint64_t id = strtoull(e->d_name, &end, 10);
		const struct file *f = NULL;
		if (*end || end == e->d_name)
			continue;
		for (int i = 0; i < run.file_count; i++)
			f = run.files[i].spool_id == id ? &run.files[i] : f;
		if (is_aside && f && (f->promise == KEPT || (f->promise == QUEUED && !f->is_done)))
			wrong("the bytes of '%s' were set aside", f->name);
		if (!is_aside && (!f || f->promise != KEPT) && !(f && f->promise == NO_PROMISE && run.scratch_rows > 0))
			wrong("spool/%" PRIu64 " has no row and was not set aside", id);
	}
	(void)closedir(d);
}

static void count_row(void *arg, const struct queue_item *item)
{
	int *count = arg;

	count[item->kind]++;
}

static int aside_rows(void)
{
	CLEANUP(buf_release) struct buf path = BUF(200);
	sqlite3 *db = NULL;
	sqlite3_stmt *s = NULL;

	buf_addf(&path, "%s/state.db", run.dir);
	NEED(sqlite3_open(buf_text(&path), &db) == SQLITE_OK);
	NEED(sqlite3_prepare_v2(db, "SELECT count(*) FROM file_aside", -1, &s, NULL) == SQLITE_OK);
	NEED(sqlite3_step(s) == SQLITE_ROW);
	int n = sqlite3_column_int(s, 0);
	(void)sqlite3_finalize(s);
	(void)sqlite3_close(db);
	return n;
}

/* How many documents of the session have the bytes of a version of the file. */
static int documents_with(int i, int version)
{
	int n = 0;

	while (fake_document_with(run.service, "s1", file_text(i, version), n))
		n++;
	return n;
}

/* Nothing is lost, nothing is doubled, nothing is there that nobody sent. */
static void check_documents(void)
{
	int found = 0;

	for (int i = 0; i < run.file_count; i++) {
		const struct file *f = &run.files[i];
		int now = documents_with(i, f->version),
		    before = f->version > 0 ? documents_with(i, f->version - 1) : 0;
		int later = documents_with(i, f->version + 1);
		found += now + before + later;
		now -= f->is_second;
		if (now > 1 || before > 1 || later > 1) {
			report->doubled++;
			wrong("'%s' is there %d times", f->name, now + before + later);
		}
		if (f->promise == QUEUED && now == 0) {
			report->lost++;
			wrong("'%s' is lost%s%s", f->name, f->is_done ? ", and was said to be there" : "",
			      f->is_refused ? ", was refused" : "");
		}
		if (f->promise == QUEUED && f->was_there && before > 0)
			wrong("'%s' took the place of a version that is still there", f->name);
		if (f->promise == REMOVED && now > 0)
			wrong("'%s' was removed, and is there", f->name);
	}
	if (found != fake_document_count(run.service, "s1"))
		wrong("%d documents are there, and %d of them are whole", fake_document_count(run.service, "s1"),
		      found);
}

static void check_kept(void)
{
	for (int i = 0; i < run.file_count; i++) {
		CLEANUP(spool_release) struct spool *s = NULL;
		const struct file *f = &run.files[i];
		if (f->promise != KEPT || documents_with(i, f->version) > 0)
			continue;
		if (spool_open(run.spool_dir, f->spool_id, 0, FILE_BYTES, &s) < 0) {
			report->lost++;
			wrong("the bytes of '%s' are lost", f->name);
		}
		bytes_check(s, i, f->version);
	}
}

static int kept_count(void)
{
	int n = 0;

	for (int i = 0; i < run.file_count; i++)
		n += run.files[i].promise == KEPT && documents_with(i, run.files[i].version) == 0;
	return n;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return remove(path);
}

static void run_begin(const struct scenario *s, const char *dir, bool stays)
{
	struct backend_caps caps = fake_caps();

	memset(&run, 0, sizeof(run));
	(void)pthread_mutex_init(&run.lock, NULL);
	(void)snprintf(run.dir, sizeof(run.dir), "%s", dir);
	(void)snprintf(run.spool_dir, sizeof(run.spool_dir), "%s/spool", run.dir);
	(void)snprintf(run.spool_aside, sizeof(run.spool_aside), "%s/aside", run.spool_dir);
	caps.reuses_bytes = !s->makes_two;
	run.service = fake_backend_new(&caps);
	fake_add_session(run.service, "s1", "Q1");
	run.proxy = (struct backend){ .ops = &proxy_ops, .caps = *backend_caps(run.service) };
	run.stays = stays;
	run.goes_on = !s->may_end_early;
}

static void leave_lock_text(void)
{
	CLEANUP(buf_release) struct buf path = BUF(200);

	buf_addf(&path, "%s/lock", run.dir);
	CLEANUP(fd_close) int fd = open(buf_text(&path), O_WRONLY | O_CLOEXEC);
	NEED(fd >= 0 && write(fd, "99999\n/mnt\n", 11) == 11);
}

static void first_life(const struct scenario *s, enum fail_once_of of, long nth)
{
	char where[40] = "";

	run.stage = "prepare";
	if (s->prepare) {
		NEED(mount_open() == 0);
		s->prepare();
		mount_close();
		run.rows = run.scratch_rows = 0;
		if (s->after_crash)
			leave_lock_text();
	}
	int descriptors = open_descriptors();
	int64_t database_bytes = sqlite3_memory_used();
	run.stage = "with a fault";
	fail_once_arm(of, nth, run.stays);
	if (mount_open() == 0)
		s->act();
	SPARED(fake_heal(run.service)); /* whoever is held lets the engine end */
	mount_close();
	report->points[FAIL_OURS] = fail_once_points(FAIL_OURS);
	report->points[FAIL_DATABASE] = fail_once_points(FAIL_DATABASE);
	report->fails = fail_once_fails();
	fail_once_disarm();
	long blocks = fail_once_blocks(where, sizeof(where));
	if (blocks > 0)
		wrong("%ld blocks were not given back, the first of %s", blocks, where);
	if (sqlite3_memory_used() != database_bytes)
		wrong("SQLite has %lld bytes more than before", (long long)(sqlite3_memory_used() - database_bytes));
	if (open_descriptors() != descriptors)
		wrong("%d descriptors were not closed", open_descriptors() - descriptors);
}

static void second_life(const struct scenario *s)
{
	int rows[3] = { 0 };

	run.stage = "at the next mount";
	run.is_second_life = run.goes_on = true;
	run.stays = false;
	run.rows = run.scratch_rows = 0;
	if (mount_open() < 0)
		return;
	for (int64_t end_ms = clock_now_ms() + PATIENCE_MS; clock_now_ms() < end_ms; pause_ms(1)) {
		memset(rows, 0, sizeof(rows));
		NEED(queue_load(run.queue, count_row, rows) == 0);
		if (rows[FILE_PENDING] == 0 && rows[FILE_FAILED] == 0)
			break;
		(void)uploads_retry(run.engine, 0);
	}
	if (rows[FILE_PENDING] || rows[FILE_FAILED])
		wrong("%d files do not leave the queue at the next mount", rows[FILE_PENDING] + rows[FILE_FAILED]);
	check_documents();
	check_kept();
	if (rows[FILE_SCRATCH] < kept_count())
		wrong("%d local files have %d rows", kept_count(), rows[FILE_SCRATCH]);
	if (s->check)
		s->check();
	if (s->check != check_damaged && aside_rows() > 0)
		wrong("%d sound rows were set aside", aside_rows());
	mount_close();
	/* What is done keeps its bytes for a moment, in a life; none is over here. */
	for (int i = 0; i < run.file_count; i++) {
		if (run.files[i].is_done)
			spool_unlink_id(run.spool_dir, run.files[i].spool_id);
		if (run.files[i].done_spool_id)
			spool_unlink_id(run.spool_dir, run.files[i].done_spool_id);
	}
	check_spool(run.spool_dir, false);
	check_spool(run.spool_aside, true);
}

static int log_fd; /* what the children say, and what a sanitizer does */

static void child(const struct scenario *s, const char *dir, enum fail_once_of of, long nth, bool stays)
{
	(void)alarm(LIFE_S);
	(void)dup2(log_fd, STDERR_FILENO);
	log_open(LOG_LEVEL_INFO, false);
	fail_once_install();
	run_begin(s, dir, stays);
	first_life(s, of, nth);
	second_life(s);
	backend_close(run.service);
#if defined(__SANITIZE_ADDRESS__)
	if (__lsan_do_recoverable_leak_check())
		wrong("the leak sanitizer says more");
#endif
	_exit(0);
}

/* ---- all runs ------------------------------------------------------------------------------------------------- */

static struct {
	long points[2], runs, fails, lost, doubled, crashed, wrong;
} total;

static void dir_begin(char ret[64])
{
	/* In memory where there is room: what a disk does is played by the faults. */
	(void)snprintf(ret, 64, "/dev/shm/test_torture.XXXXXX");
	if (mkdtemp(ret))
		return;
	(void)snprintf(ret, 64, "/tmp/test_torture.XXXXXX");
	assert_non_null(mkdtemp(ret));
}

static void show_log(void)
{
	char text[6000];
	off_t end = lseek(log_fd, 0, SEEK_END);
	ssize_t n = pread(log_fd, text, sizeof(text) - 1, end > (off_t)sizeof(text) ? end - (off_t)sizeof(text) : 0);

	text[n > 0 ? n : 0] = '\0';
	print_error("%s", text);
}

/* Returns whether the run met its fault. */
static bool run_once(const struct scenario *s, enum fail_once_of of, long nth, bool stays)
{
	char dir[64];
	int status = 0;

	dir_begin(dir);
	assert_int_equal(ftruncate(log_fd, 0), 0);
	(void)lseek(log_fd, 0, SEEK_SET);
	memset(report, 0, sizeof(*report));
	(void)fflush(NULL);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		child(s, dir, of, nth, stays);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	(void)nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	total.runs++;
	total.fails += report->fails > 0;
	total.lost += report->lost;
	total.doubled += report->doubled;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return report->fails > 0;
	bool crashed = WIFSIGNALED(status) || WEXITSTATUS(status) != EXIT_WRONG;
	total.crashed += crashed;
	total.wrong++;
	print_error("%s, point %ld%s%s (%s): %s\n", s->name, nth, of == FAIL_DATABASE ? " of SQLite's" : "",
		    stays ? " and all after it" : "", report->point,
		    !crashed                                             ? report->words
		    : WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? "it never ended"
		    : WIFSIGNALED(status)                                ? strsignal(WTERMSIG(status))
									 : "it ended by itself");
	if (crashed || getenv("TEST_VERBOSE"))
		show_log();
	return true;
}

static bool takes_all(void)
{
	return getenv("TORTURE_ALL") || getenv("SESSIONFS_SLOW");
}

static void run_points(const struct scenario *s, enum fail_once_of of, long points, bool stays)
{
	total.points[of] += points;
	if (takes_all()) {
		/* Threads take turns: one run has a few points more than another. */
		int without = 0;
		for (long nth = 1; without < 3; nth++)
			without = run_once(s, of, nth, stays) ? 0 : without + 1;
		print_message("%s: %ld points, %ld runs so far, %ld wrong\n", s->name, points, total.runs, total.wrong);
		(void)fflush(NULL);
		return;
	}
	int runs = of == FAIL_OURS && !stays ? 2 * RUNS_OF_ONE : RUNS_OF_ONE;
	for (int i = 0; i < runs; i++) {
		long nth = 1 + (points * i + (long)(rand_r(&seed) % (unsigned)points)) / runs;
		(void)run_once(s, of, nth, stays);
	}
}

static void run_scenario(const struct scenario *s, enum fail_once_of of, bool stays)
{
	const char *only = getenv("TORTURE_POINT");

	if (only) {
		(void)run_once(s, of, strtol(only, NULL, 10), stays);
		return;
	}
	(void)run_once(s, of, 0, stays); /* without any fault: so many points there are */
	if (report->points[of] == 0)
		total.wrong++;
	else
		run_points(s, of, report->points[of], stays);
}

static void run_all(enum fail_once_of of, bool stays)
{
	const char *only = getenv("TORTURE_ONLY");

	memset(&total, 0, sizeof(total));
	unsigned first_seed = seed;
	for (int i = 0; i < SCENARIOS; i++) {
		seed = first_seed + (unsigned)i;
		if (!only || strstr(scenarios[i].name, only))
			run_scenario(&scenarios[i], of, stays);
	}
	print_message("     %s%s: %ld points, %ld runs, %ld met their fault, lost %ld, doubled %ld, crashed %ld\n",
		      of == FAIL_OURS ? "each call of ours fails" : "each of SQLite's own",
		      stays ? " from then on" : " once", total.points[of], total.runs, total.fails, total.lost,
		      total.doubled, total.crashed);
	if (total.wrong > 0)
		fail_msg("%ld of %ld runs went wrong (seed %u)", total.wrong, total.runs, first_seed);
}

static void whatever_fails_once_nothing_is_lost_or_doubled_and_all_goes_on(void **state)
{
	run_all(FAIL_OURS, false);
}

static void whatever_goes_on_failing_nothing_is_lost_or_doubled(void **state)
{
	run_all(FAIL_OURS, true);
}

static void whatever_fails_once_inside_the_database_nothing_is_lost_or_doubled_and_all_goes_on(void **state)
{
	run_all(FAIL_DATABASE, false);
}

static void whatever_goes_on_failing_inside_the_database_nothing_is_lost_or_doubled(void **state)
{
	run_all(FAIL_DATABASE, true);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whatever_fails_once_nothing_is_lost_or_doubled_and_all_goes_on),
		cmocka_unit_test(whatever_goes_on_failing_nothing_is_lost_or_doubled),
		cmocka_unit_test(whatever_fails_once_inside_the_database_nothing_is_lost_or_doubled_and_all_goes_on),
		cmocka_unit_test(whatever_goes_on_failing_inside_the_database_nothing_is_lost_or_doubled),
	};

	seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : (unsigned)clock_wall_ms();
	print_message("seed %u\n", seed);
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (report == MAP_FAILED)
		return 1;
	log_fd = memfd_create("log", MFD_CLOEXEC);
	if (log_fd < 0)
		return 1;
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
