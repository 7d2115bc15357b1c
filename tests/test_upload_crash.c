/* Exactly once: the engine is driven through a fault at each step times a crash at each point, restarted from its rows
 * as often as it takes, and then the service's documents are counted.
 *
 * The service is a struct backend in memory that parent and children share. A child is one life of a mount: it opens
 * the queue, takes its rows up, submits what was not accepted yet, and ends by _exit() at the point it was told, by
 * SIGKILL at a moment of chance, or when all is done. `test_upload_crash SEED [TEST]` repeats the random part of a
 * run that failed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/queue.h"
#include "fs/spool.h"
#include "fs/upload.h"

enum {
	FILES_MAX = 4,
	DOCUMENTS_MAX = 64,
	KEYS_MAX = 1024,
	LIVES_MAX = 60,
	EXIT_CRASHED = 77,
	LIFE_S = 30,
};

static const uint64_t FIRST_INO = 5000;

enum op { OP_SIGN, OP_STORE, OP_ATTACH, OP_FIND, OP_LIST, OP_KNOWN, OP_COUNT };
static const char *const op_words[] = { "sign", "store", "attach", "find", "list", "known" };

enum trouble { NO_TROUBLE, FAIL, LOST, LOST_IN_VAIN, PUT_OFF, KEY_REFUSED, CONFLICT, ACCOUNT, GONE, TROUBLE_COUNT };
static const char *const trouble_words[] = { "none",        "fail",        "answer lost", "request lost", "done and put off",
					     "key refused", "conflict", "account",     "gone" };

struct shared_document {
	char sha256[65];
	char id[16];
	bool is_elsewhere; /* in the workspace, and not in the session */
};

struct shared_key {
	char sha256[65];
	bool is_stored, is_used;
	int document; /* -1: none made of it */
};

/* What is asked of one child after the other. */
struct world {
	pthread_mutex_t lock; /* shared by processes, robust: a child may be killed with it */
	bool reuses_bytes, store_has_effect, has_shortcut;
	int files;
	bool same_bytes; /* in all files */
	enum op trouble_op;
	enum trouble trouble;
	int trouble_times;
	int crash_at; /* the number of the point; 0: none */
	int points;

	struct shared_document documents[DOCUMENTS_MAX];
	int document_count;
	struct shared_key keys[KEYS_MAX];
	int key_count;
	bool is_accepted[FILES_MAX];
	bool is_done[FILES_MAX]; /* what the file system has made durable by then */
	int lives, attaches;
};

static struct world *w; /* MAP_SHARED */
static char dir[64], spool_dir[80];
static unsigned seed;

/* ---- the service ------------------------------------------------------------------------------------------- */

static void world_lock(void)
{
	if (pthread_mutex_lock(&w->lock) == EOWNERDEAD)
		(void)pthread_mutex_consistent(&w->lock); /* whatever it was doing was done or not: one assignment */
}

static void world_unlock(void)
{
	pthread_mutex_unlock(&w->lock);
}

/* A moment at which the process may end. */
static void point(void)
{
	if (__atomic_add_fetch(&w->points, 1, __ATOMIC_SEQ_CST) == w->crash_at)
		_exit(EXIT_CRASHED);
}

static int fault(struct fault *f, enum fault_kind kind, int status, bool may_have_happened, int error)
{
	*f = (struct fault){
		.kind = kind, .http_status = status, .retry_after_ms = -1, .may_have_happened = may_have_happened
	};
	return error;
}

static enum trouble take_trouble(enum op op)
{
	enum trouble t = NO_TROUBLE;

	world_lock();
	if (w->trouble_op == op && w->trouble_times > 0) {
		w->trouble_times--;
		t = w->trouble;
	}
	world_unlock();
	return t;
}

/* What a call answers that fails before it did anything. */
static int trouble_before(enum trouble t, struct fault *f)
{
	switch (t) {
	case FAIL:
		return fault(f, FAULT_AWAY, 503, false, -EIO);
	case LOST_IN_VAIN:
		return fault(f, FAULT_AWAY, 0, true, -ETIMEDOUT);
	case KEY_REFUSED:
		return fault(f, FAULT_KEY, 422, false, -EACCES);
	case CONFLICT:
		return fault(f, FAULT_CONFLICT, 409, false, -EBUSY);
	case ACCOUNT:
		return fault(f, FAULT_ACCOUNT, 401, false, -EACCES);
	case GONE:
		return fault(f, FAULT_GONE, 404, false, -ENOENT);
	default:
		return 0;
	}
}

static int trouble_after(enum trouble t, struct fault *f)
{
	/* A limit that is enforced behind the service says no to what was done. */
	if (t == PUT_OFF)
		return fault(f, FAULT_BUDGET, 429, false, -EAGAIN);
	return t == LOST ? fault(f, FAULT_AWAY, 0, true, -ETIMEDOUT) : 0;
}

/* A document of these bytes comes into the session. Returns its index. */
static int make_document(const char *sha256)
{
	for (int i = 0; w->reuses_bytes && i < w->document_count; i++) {
		if (strcmp(w->documents[i].sha256, sha256) == 0) {
			w->documents[i].is_elsewhere = false;
			return i;
		}
	}
	assert_true(w->document_count < DOCUMENTS_MAX);
	struct shared_document *d = &w->documents[w->document_count];
	(void)snprintf(d->sha256, sizeof(d->sha256), "%s", sha256);
	(void)snprintf(d->id, sizeof(d->id), "d%d", w->document_count);
	d->is_elsewhere = false;
	return w->document_count++;
}

static struct listing *list_of(const int *indexes, int count)
{
	struct listing_builder *lb = listing_builder_new(NULL);
	struct listing *l = NULL;

	assert_non_null(lb);
	for (int i = 0; i < count; i++) {
		const struct shared_document *d = &w->documents[indexes[i]];
		struct document view = { .id = d->id,
					 .filename = "x.pdf",
					 .status = "uploaded",
					 .state = STATE_STORED,
					 .sha256 = d->sha256,
					 .size_bytes = -1,
					 .created_ms = -1,
					 .pages = -1 };
		assert_int_equal(listing_builder_add(lb, &view, NULL), 0);
	}
	assert_int_equal(listing_builder_finish(lb, clock_now_ms(), clock_wall_ms(), &l), 0);
	return l;
}

static int shared_sign(struct backend *b, struct call *call, struct upload *u)
{
	point();
	int r = trouble_before(take_trouble(OP_SIGN), &call->fault);
	char ticket[20];

	if (r < 0)
		return r;
	world_lock();
	assert_true(w->key_count < KEYS_MAX);
	w->keys[w->key_count].document = -1;
	(void)snprintf(ticket, sizeof(ticket), "%d", w->key_count++);
	world_unlock();
	free(u->ticket);
	u->ticket = strdup(ticket);
	u->ticket_wall_ms = clock_wall_ms();
	u->step = UPLOAD_SIGNED;
	point();
	return 0;
}

static int number_in(const char *text)
{
	char *end = NULL;
	long n = strtol(text, &end, 10);

	assert_true(end > text && n >= 0 && n <= INT_MAX);
	return (int)n;
}

static int shared_store(struct backend *b, struct call *call, struct upload *u)
{
	point();
	enum trouble t = take_trouble(OP_STORE);
	int r = trouble_before(t, &call->fault);

	if (r < 0)
		return r;
	struct shared_key *key = &w->keys[number_in(u->ticket)];
	world_lock();
	(void)snprintf(key->sha256, sizeof(key->sha256), "%s", u->sha256);
	if (w->store_has_effect)
		key->document = make_document(u->sha256);
	key->is_stored = true;
	world_unlock();
	point();
	r = trouble_after(t, &call->fault);
	if (r < 0)
		return r;
	u->step = UPLOAD_STORED;
	return 0;
}

static void attach_one(struct upload *u)
{
	struct shared_key *key = &w->keys[number_in(u->ticket)];

	if (!key->is_stored || (key->is_used && !w->store_has_effect)) {
		u->error = fault(&u->fault, FAULT_KEY, 422, false, -EINVAL);
		return;
	}
	if (!w->store_has_effect)
		key->document = make_document(key->sha256);
	key->is_used = true;
	u->document = list_of(&key->document, 1);
	u->step = UPLOAD_ATTACHED;
}

static int shared_upload_attach(struct backend *b, struct call *call, struct upload *const *us, int count)
{
	point();
	enum trouble t = take_trouble(OP_ATTACH);
	int r = trouble_before(t, &call->fault);

	if (r < 0)
		return r;
	world_lock();
	w->attaches++;
	for (int i = 0; i < count; i++)
		attach_one(us[i]);
	world_unlock();
	point();
	r = trouble_after(t, &call->fault);
	for (int i = 0; r < 0 && i < count; i++) {
		listing_unref(us[i]->document);
		us[i]->document = NULL;
	}
	if (r < 0 && w->store_has_effect)
		call->fault.may_have_happened = false; /* this one only asks */
	return r;
}

static int shared_attach(struct backend *b, struct call *call, const char *session_id, const char *from_session_id,
			 const char *const *document_ids, int count, struct listing **ret)
{
	point();
	enum trouble t = take_trouble(OP_KNOWN);
	int r = trouble_before(t, &call->fault), indexes[8];

	if (r < 0)
		return r;
	world_lock();
	for (int i = 0; i < count; i++) {
		indexes[i] = number_in(document_ids[i] + 1);
		w->documents[indexes[i]].is_elsewhere = false;
	}
	*ret = list_of(indexes, count);
	world_unlock();
	point();
	r = trouble_after(t, &call->fault);
	if (r < 0) {
		listing_unref(*ret);
		*ret = NULL;
	}
	return r;
}

static bool is_among(const char *id, const char *const *ids, int count)
{
	for (int i = 0; i < count; i++) {
		if (strcmp(id, ids[i]) == 0)
			return true;
	}
	return false;
}

static int shared_find(struct backend *b, struct call *call, struct upload *u, const char *const *not_ids,
		       int not_count)
{
	point();
	int r = trouble_before(take_trouble(OP_FIND), &call->fault);

	if (r < 0)
		return r == -ENOENT ? fault(&call->fault, FAULT_AWAY, 503, false, -EIO) : r;
	world_lock();
	for (int i = 0; !u->document && i < w->document_count; i++) {
		const struct shared_document *d = &w->documents[i];
		if (!d->is_elsewhere && strcmp(d->sha256, u->sha256) == 0 && !is_among(d->id, not_ids, not_count))
			u->document = list_of(&i, 1);
	}
	world_unlock();
	point();
	if (!u->document)
		return fault(&call->fault, FAULT_NONE, 200, false, -ENOENT);
	u->step = UPLOAD_ATTACHED;
	return 0;
}

static int shared_list(struct backend *b, struct call *call, const char *session_id, struct listing *known,
		       struct listing **ret)
{
	int indexes[DOCUMENTS_MAX], count = 0;

	point();
	int r = trouble_before(take_trouble(OP_LIST), &call->fault);
	if (r < 0)
		return r == -ENOENT ? fault(&call->fault, FAULT_AWAY, 503, false, -EIO) : r;
	world_lock();
	for (int i = 0; i < w->document_count; i++) {
		if (!w->documents[i].is_elsewhere)
			indexes[count++] = i;
	}
	*ret = list_of(indexes, count);
	world_unlock();
	point();
	return 0;
}

static const struct backend_ops shared_ops = {
	.name = "shared",
	.list_documents = shared_list,
	.attach = shared_attach,
	.upload_sign = shared_sign,
	.upload_store = shared_store,
	.upload_attach = shared_upload_attach,
	.upload_find = shared_find,
};

/* ---- one life ---------------------------------------------------------------------------------------------- */

static void on_event(void *arg, enum upload_event event, const struct queue_item *item, struct listing *document,
		     int error, const char *words)
{
	point(); /* before the file system has made its own record */
	if (event == UPLOAD_DONE) {
		__atomic_store_n(&w->is_done[item->ino - FIRST_INO], true, __ATOMIC_SEQ_CST);
		point(); /* and after it, with the row still there */
	}
}

static void on_known(void *arg, const char *session_id, const char *sha256, int64_t size_bytes, char **ret_document_id,
		     char **ret_session_id, char **ret_prior_ids)
{
	char prior[DOCUMENTS_MAX * 8] = "";
	size_t len = 0;

	world_lock();
	for (int i = 0; i < w->document_count; i++) {
		const struct shared_document *d = &w->documents[i];
		if (strcmp(d->sha256, sha256) != 0)
			continue;
		if (d->is_elsewhere)
			*ret_document_id = strdup(d->id);
		else
			len += (size_t)snprintf(prior + len, sizeof(prior) - len, "%s%s", len ? " " : "", d->id);
	}
	world_unlock();
	*ret_prior_ids = strdup(prior);
}

static struct uploads *engine;
static struct queue *queue;
static int rows;

static void count_row(void *arg, const struct queue_item *item)
{
	rows++;
}

static void resume_row(void *arg, const struct queue_item *item)
{
	w->is_accepted[item->ino - FIRST_INO] = true; /* written, although nobody lived to say so */
	if (uploads_submit(engine, item, false, 0) < 0)
		_exit(3);
}

static void file_text(int i, char ret[40])
{
	(void)snprintf(ret, 40, "the bytes of %d", w->same_bytes ? 0 : i);
}

static void submit_file(int i)
{
	struct spool *s = NULL;
	char text[40], name[24];
	uint64_t ino = FIRST_INO + (uint64_t)i;

	file_text(i, text);
	(void)snprintf(name, sizeof(name), "f%d.pdf", i);
	spool_unlink_id(spool_dir, ino); /* of a life that ended before the row was written */
	struct queue_item item = { .ino = ino,
				   .session_id = (char *)"s1",
				   .session_name = (char *)"Q1",
				   .name = name,
				   .spool_id = ino,
				   .kind = FILE_PENDING,
				   .account = (char *)"me",
				   .queued_wall_ms = clock_wall_ms() };
	if (spool_new(spool_dir, ino, 0, &s) < 0 || spool_write(s, text, strlen(text), 0) < 0 || spool_sync(s) < 0 ||
	    spool_finish(s, item.sha256) < 0)
		_exit(4);
	item.size_bytes = spool_size(s);
	spool_freeze(s);
	spool_unref(s);
	if (uploads_submit(engine, &item, i % 2 == 0, 0) < 0)
		_exit(5);
	w->is_accepted[i] = true;
	point();
}

static bool is_all_done(void)
{
	for (int i = 0; i < w->files; i++) {
		if (!__atomic_load_n(&w->is_done[i], __ATOMIC_SEQ_CST))
			return false;
	}
	rows = 0;
	return queue_load(queue, count_row, NULL) == 0 && rows == 0;
}

static void live(void)
{
	struct backend backend = { .ops = &shared_ops,
				   .caps = { .service = "shared",
					     .attaches = true,
					     .attach_keeps_id = true,
					     .knows_hashes = true,
					     .reuses_bytes = w->reuses_bytes,
					     .store_has_effect = w->store_has_effect,
					     .attach_batch_max = 3,
					     .key_lifetime_ms = 86400000 } };
	struct uploads_config config = { .backend = &backend,
					 .queue = NULL,
					 .spool_dir = spool_dir,
					 .account = "me",
					 .close_timeout_ms = 60000,
					 .transfers_max = 3,
					 .haste = 10,
					 .event = on_event,
					 .known = on_known };
	CLEANUP(buf_release) struct buf why = BUF(1000);
	struct timespec t = { .tv_nsec = 3000000 };

	(void)alarm(LIFE_S);
	/* Refusals and bytes without a row are what this is about: they are logged, and nobody has to read it. */
	if (!getenv("TEST_VERBOSE") && !freopen("/dev/null", "w", stderr))
		_exit(2);
	if (queue_open(dir, &why, &queue) < 0)
		_exit(2);
	config.queue = queue;
	if (uploads_new(&config, &engine) < 0 || queue_load(queue, resume_row, NULL) < 0)
		_exit(2);
	for (int i = 0; i < w->files; i++) {
		/* One that was done before its submitting came back is no new one either. */
		if (!w->is_accepted[i] && !__atomic_load_n(&w->is_done[i], __ATOMIC_SEQ_CST))
			submit_file(i);
	}
	while (!is_all_done()) {
		(void)uploads_retry(engine, 0); /* in place of the minutes that pauses take */
		(void)nanosleep(&t, NULL);
	}
	uploads_free(engine);
	queue_close(queue);
	_exit(0);
}

/* ---- the parent -------------------------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return remove(path);
}

static void world_begin(const struct world *plan)
{
	pthread_mutexattr_t attr;

	memset(w, 0, sizeof(*w));
	*w = *plan;
	(void)pthread_mutexattr_init(&attr);
	(void)pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	(void)pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	(void)pthread_mutex_init(&w->lock, &attr);
	(void)pthread_mutexattr_destroy(&attr);
	/* In memory where that can be had: a process that ends loses nothing it wrote, and an fsync takes its time. What a
	 * power cut takes is tests/powercut's. */
	(void)snprintf(dir, sizeof(dir), "/dev/shm/test_upload_crash.XXXXXX");
	if (!mkdtemp(dir)) {
		(void)snprintf(dir, sizeof(dir), "/tmp/test_upload_crash.XXXXXX");
		assert_non_null(mkdtemp(dir));
	}
	(void)snprintf(spool_dir, sizeof(spool_dir), "%s/spool", dir);
	if (w->has_shortcut) {
		/* Another session of the workspace has the first file's bytes. */
		struct spool *s = NULL;
		char text[40];
		file_text(0, text);
		assert_int_equal(spool_dir_make(spool_dir), 0);
		assert_int_equal(spool_new(spool_dir, 1, 0, &s), 0);
		assert_int_equal(spool_write(s, text, strlen(text), 0), 0);
		assert_int_equal(spool_finish(s, w->documents[0].sha256), 0);
		(void)snprintf(w->documents[0].id, sizeof(w->documents[0].id), "d0");
		w->documents[0].is_elsewhere = true;
		w->document_count = 1;
		spool_unlink(s);
		spool_unref(s);
	}
}

static void world_end(void)
{
	(void)nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void plan_say(const char *what, const struct world *p)
{
	fail_msg("%s (seed %u): %s%s%s, %d files%s, trouble '%s' at %s x%d, crash at point %d: %d documents, life %d",
		 what, seed, p->reuses_bytes ? "reuses bytes" : "makes a document each time",
		 p->store_has_effect ? ", store has effect" : "", p->has_shortcut ? ", shortcut" : "", p->files,
		 p->same_bytes ? " of the same bytes" : "", trouble_words[p->trouble], op_words[p->trouble_op],
		 p->trouble_times, p->crash_at, w->document_count, w->lives);
}

/* One life; kill_after_us > 0: killed after that. Returns whether all was done. */
static bool live_once(const struct world *plan, long kill_after_us)
{
	int status = 0;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		live();
	w->lives++;
	if (kill_after_us > 0) {
		struct timespec t = { .tv_sec = kill_after_us / 1000000, .tv_nsec = kill_after_us % 1000000 * 1000 };
		(void)nanosleep(&t, NULL);
		(void)kill(pid, SIGKILL);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && kill_after_us > 0)
		return false;
	if (WIFSIGNALED(status))
		plan_say(WTERMSIG(status) == SIGALRM ? "it never ended" : "it was ended by a signal", plan);
	if (WEXITSTATUS(status) == EXIT_CRASHED)
		return false;
	if (WEXITSTATUS(status) != 0)
		plan_say("a life failed", plan);
	return true;
}

/* Each file is there, and no more often than it was sent. */
static void check_documents(const struct world *plan)
{
	for (int i = 0; i < w->files; i++) {
		char text[40], sha256[65];
		struct spool *s = NULL;
		int found = 0, wanted = w->same_bytes && !w->reuses_bytes ? w->files : 1;
		file_text(i, text);
		spool_unlink_id(spool_dir, 999999);
		assert_int_equal(spool_new(spool_dir, 999999, 0, &s), 0);
		assert_int_equal(spool_write(s, text, strlen(text), 0), 0);
		assert_int_equal(spool_finish(s, sha256), 0);
		spool_unref(s);
		for (int k = 0; k < w->document_count; k++)
			found += !w->documents[k].is_elsewhere && strcmp(w->documents[k].sha256, sha256) == 0;
		if (found != wanted)
			plan_say(found < wanted ? "a document was lost" : "a document came twice", plan);
	}
}

/* Returns how many points the plan has in all when nothing crashes. */
static int run_plan(const struct world *plan)
{
	world_begin(plan);
	bool is_done = false;
	for (int life = 0; !is_done && life < LIVES_MAX; life++)
		is_done = live_once(plan, 0);
	if (!is_done)
		plan_say("it is not done after so many lives", plan);
	check_documents(plan);
	int points = w->points;
	world_end();
	return points;
}

static const struct world modes[] = {
	{ .reuses_bytes = true, .files = 1 },
	{ .reuses_bytes = false, .files = 1 },
	{ .reuses_bytes = false, .store_has_effect = true, .files = 1 },
	{ .reuses_bytes = true, .has_shortcut = true, .files = 1 },
};
#define MODES ((int)(sizeof(modes) / sizeof(modes[0])))

static bool makes_sense(enum op op, enum trouble t, const struct world *m)
{
	if (t == KEY_REFUSED)
		return op == OP_STORE || (op == OP_ATTACH && !m->store_has_effect);
	if (t == CONFLICT)
		return op == OP_ATTACH; /* while nothing is there: final, and begun anew by retry */
	if (t == GONE)
		return op == OP_ATTACH || op == OP_KNOWN;
	if (op == OP_KNOWN)
		return m->has_shortcut;
	if (op == OP_LIST)
		return false; /* several files at a time: the random part */
	if (t == PUT_OFF) /* where a second store makes a second document, the backend has to keep it from that */
		return op == OP_ATTACH || (op == OP_STORE && !m->store_has_effect);
	return t != LOST || (op != OP_SIGN && op != OP_FIND);
}

/* A lost answer at the last step, so that there is a look to fail. */
static void each_fault_at_each_step_with_a_crash_at_each_point_leaves_one_document(void **state)
{
	int plans = 0;

	for (int m = 0; m < MODES; m++) {
		for (int op = 0; op < OP_COUNT; op++) {
			for (int t = op == 0 ? NO_TROUBLE : FAIL; t < TROUBLE_COUNT; t++) {
				if (t != NO_TROUBLE && !makes_sense((enum op)op, (enum trouble)t, &modes[m]))
					continue;
				struct world plan = modes[m];
				plan.trouble_op = (enum op)op;
				plan.trouble = (enum trouble)t;
				plan.trouble_times = 1;
				int points = run_plan(&plan);
				for (plan.crash_at = 1; plan.crash_at <= points; plan.crash_at++) {
					(void)run_plan(&plan);
					plans++;
				}
			}
		}
	}
	print_message("%d plans\n", plans);
}

static void random_plan(struct world *ret)
{
	*ret = (struct world){ 0 };
	ret->store_has_effect = rand_r(&seed) % 3 == 0;
	ret->reuses_bytes = !ret->store_has_effect && rand_r(&seed) % 2;
	ret->has_shortcut = ret->reuses_bytes && rand_r(&seed) % 3 == 0;
	ret->files = 1 + rand_r(&seed) % FILES_MAX;
	ret->same_bytes = rand_r(&seed) % 3 == 0;
	do {
		ret->trouble_op = (enum op)(rand_r(&seed) % OP_COUNT);
		ret->trouble = (enum trouble)(rand_r(&seed) % TROUBLE_COUNT);
	} while (ret->trouble_op != OP_LIST && !makes_sense(ret->trouble_op, ret->trouble, ret));
	ret->trouble_times = rand_r(&seed) % 6;
}

static void killed_at_random_several_files_are_there_once_each(void **state)
{
	unsigned first_seed = seed;

	for (int i = 0; i < 30; i++) {
		struct world plan;
		seed = first_seed + (unsigned)i;
		random_plan(&plan);
		world_begin(&plan);
		bool is_done = false;
		for (int life = 0; !is_done && life < LIVES_MAX; life++) {
			/* The first few lives are short; the later ones may finish. */
			long kill_after_us = life < 5 ? 500 + rand_r(&seed) % 25000 : 0;
			is_done = live_once(&plan, kill_after_us);
		}
		if (!is_done)
			plan_say("it is not done after so many lives", &plan);
		check_documents(&plan);
		world_end();
	}
}

static void several_files_with_a_crash_at_each_point_are_there_once_each(void **state)
{
	unsigned first_seed = seed;

	for (int i = 0; i < 8; i++) {
		struct world plan;
		seed = first_seed + 1000 + (unsigned)i;
		random_plan(&plan);
		int points = run_plan(&plan);
		for (plan.crash_at = 1; plan.crash_at <= points; plan.crash_at += 1 + rand_r(&seed) % 4)
			(void)run_plan(&plan);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_fault_at_each_step_with_a_crash_at_each_point_leaves_one_document),
		cmocka_unit_test(several_files_with_a_crash_at_each_point_are_there_once_each),
		cmocka_unit_test(killed_at_random_several_files_are_there_once_each),
	};

	seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : (unsigned)clock_wall_ms();
	print_message("seed %u\n", seed);
	w = mmap(NULL, sizeof(*w), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (w == MAP_FAILED)
		return 1;
	log_open(LOG_LEVEL_WARNING, false);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
