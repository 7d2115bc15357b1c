/* The queue's table; see queue.h.
 *
 * A row is the only witness of a file whose bytes exist nowhere else, so it is never dropped for being odd: what
 * cannot be understood moves to file_aside as it stands, and its bytes to spool/aside, where a person finds both. */
#include "fs/queue.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/buf.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/spool.h"

enum {
	BUSY_WAIT_MS = 10000, /* for the connection of state.c */
	PATH_BYTES_MAX = 4096,
	NAME_BYTES_MAX = 255,
};

/* The columns in the order of put_bind() and item_read(). */
#define COLUMNS                                                                                                        \
	"ino, session_id, session_name, name, spool_id, size_bytes, sha256, mtime_ns, kind, step, ticket, "            \
	"ticket_wall_ms, account, attempts, queued_wall_ms, next_wall_ms, may_have_happened, key_renewed, known_id, "  \
	"known_session_id, prior_ids, supersedes_id, error, fault, words"
#define EXCLUDED                                                                                                       \
	"excluded.session_id, excluded.session_name, excluded.name, excluded.spool_id, excluded.size_bytes, "          \
	"excluded.sha256, excluded.mtime_ns, excluded.kind, excluded.step, excluded.ticket, excluded.ticket_wall_ms, " \
	"excluded.account, excluded.attempts, excluded.queued_wall_ms, excluded.next_wall_ms, "                        \
	"excluded.may_have_happened, excluded.key_renewed, excluded.known_id, excluded.known_session_id, "             \
	"excluded.prior_ids, excluded.supersedes_id, excluded.error, excluded.fault, excluded.words"
#define COLUMNS_BUT_INO                                                                                                \
	"session_id, session_name, name, spool_id, size_bytes, sha256, mtime_ns, kind, step, ticket, ticket_wall_ms, " \
	"account, attempts, queued_wall_ms, next_wall_ms, may_have_happened, key_renewed, known_id, "                  \
	"known_session_id, "                                                                                           \
	"prior_ids, supersedes_id, error, fault, words"

static const char schema[] =
	"CREATE TABLE IF NOT EXISTS file(ino INTEGER PRIMARY KEY, session_id TEXT, session_name TEXT, name TEXT,"
	" spool_id INTEGER, size_bytes INTEGER, sha256 TEXT, mtime_ns INTEGER, kind TEXT, step TEXT, ticket TEXT,"
	" ticket_wall_ms INTEGER, account TEXT, attempts INTEGER, queued_wall_ms INTEGER, next_wall_ms INTEGER,"
	" may_have_happened INTEGER, key_renewed INTEGER, known_id TEXT, known_session_id TEXT, prior_ids TEXT,"
	" supersedes_id TEXT, error INTEGER, fault TEXT, words TEXT);"
	"CREATE TABLE IF NOT EXISTS file_aside(aside_wall_ms INTEGER, why TEXT, ino INTEGER, session_id TEXT,"
	" session_name TEXT, name TEXT, spool_id INTEGER, size_bytes INTEGER, sha256 TEXT, mtime_ns INTEGER, kind TEXT,"
	" step TEXT, ticket TEXT, ticket_wall_ms INTEGER, account TEXT, attempts INTEGER, queued_wall_ms INTEGER,"
	" next_wall_ms INTEGER, may_have_happened INTEGER, key_renewed INTEGER, known_id TEXT, known_session_id TEXT,"
	" prior_ids TEXT, supersedes_id TEXT, error INTEGER, fault TEXT, words TEXT);"
	"CREATE TABLE IF NOT EXISTS known_hash(workspace_id TEXT, sha256 TEXT, document_id TEXT NOT NULL, session_id "
	"TEXT,"
	" PRIMARY KEY(workspace_id, sha256)) WITHOUT ROWID;";

enum statement {
	LOAD,
	PUT,
	REMOVE,
	ASIDE,
	ADD_PRIOR,
	FIND_STORED,
	HASH_PUT,
	HASH_FIND,
	HASH_FORGET,
	STATEMENT_COUNT,
};

static const char *const statement_texts[STATEMENT_COUNT] = {
	[LOAD] = "SELECT " COLUMNS " FROM file ORDER BY queued_wall_ms, ino",
	/* A row that is put as it stands already touches no page, and costs no fsync: a mount that takes its files
	 * up again. */
	[PUT] = "INSERT INTO file(" COLUMNS ") VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
		" ON CONFLICT(ino) DO UPDATE SET (" COLUMNS_BUT_INO ") = (" EXCLUDED ")"
		" WHERE (" COLUMNS_BUT_INO ") IS NOT (" EXCLUDED ")",
	[REMOVE] = "DELETE FROM file WHERE ino = ?",
	[ASIDE] = "INSERT INTO file_aside SELECT ?2, ?3, " COLUMNS " FROM file WHERE ino = ?1",
	[ADD_PRIOR] =
		"UPDATE file SET prior_ids = trim(prior_ids || ' ' || ?4) WHERE ino <> ?1 AND session_id = ?2"
		" AND sha256 = ?3 AND prior_ids IS NOT NULL AND instr(' ' || prior_ids || ' ', ' ' || ?4 || ' ') = 0",
	[FIND_STORED] = "SELECT 1 FROM file WHERE ino <> ?1 AND session_id = ?2 AND sha256 = ?3 AND account = ?4"
			" AND kind = 'pending' AND step = 'stored' LIMIT 1",
	[HASH_PUT] =
		"INSERT INTO known_hash(workspace_id, sha256, document_id, session_id) VALUES(?,?,?,?)"
		" ON CONFLICT DO UPDATE SET (document_id, session_id) = (excluded.document_id, excluded.session_id)"
		" WHERE (document_id, session_id) IS NOT (excluded.document_id, excluded.session_id)",
	[HASH_FIND] = "SELECT document_id, session_id FROM known_hash WHERE workspace_id = ? AND sha256 = ?",
	[HASH_FORGET] = "DELETE FROM known_hash WHERE sha256 = ? AND document_id = ?",
};

struct queue {
	char *dir, *spool_dir; /* set once */
	pthread_mutex_t lock;  /* guards what follows */
	sqlite3 *db;
	sqlite3_stmt *statements[STATEMENT_COUNT];
	bool was_loaded;
};

/* ---- words ------------------------------------------------------------------------------------------------- */

static const char *const kind_words[] = {
	[FILE_SCRATCH] = "scratch",
	[FILE_PENDING] = "pending",
	[FILE_FAILED] = "failed",
};

static const char *const step_words[] = {
	[UPLOAD_SPOOLED] = "spooled",
	[UPLOAD_SIGNED] = "signed",
	[UPLOAD_STORED] = "stored",
	[UPLOAD_ATTACHED] = "attached",
};

static const char *const fault_words[] = {
	[FAULT_NONE] = "none",           [FAULT_ACCOUNT] = "account",   [FAULT_FORBIDDEN] = "forbidden",
	[FAULT_GONE] = "gone",           [FAULT_INVALID] = "invalid",   [FAULT_KEY] = "key",
	[FAULT_TOO_LARGE] = "too large", [FAULT_CONFLICT] = "conflict", [FAULT_BUDGET] = "budget",
	[FAULT_AWAY] = "away",           [FAULT_CANCELED] = "canceled",
};

#define COUNT_OF(a) ((int)(sizeof(a) / sizeof((a)[0])))

static int word_find(const char *const *words, int count, const char *word)
{
	for (int i = 0; i < count; i++) {
		if (word && strcmp(words[i], word) == 0)
			return i;
	}
	return -1;
}

/* ---- items ------------------------------------------------------------------------------------------------- */

void queue_item_release(struct queue_item *i)
{
	free(i->session_id);
	free(i->session_name);
	free(i->name);
	free(i->ticket);
	free(i->account);
	free(i->known_id);
	free(i->known_session_id);
	free(i->prior_ids);
	free(i->supersedes_id);
	free(i->words);
	*i = (struct queue_item){ 0 };
}

static bool text_copy(const char *from, char **ret)
{
	*ret = from ? strdup(from) : NULL;
	return !from || *ret;
}

int queue_item_copy(const struct queue_item *i, struct queue_item *ret)
{
	struct queue_item copy = *i;

	copy.session_id = copy.session_name = copy.name = copy.ticket = copy.account = copy.known_id = NULL;
	copy.known_session_id = copy.prior_ids = copy.supersedes_id = copy.words = NULL;
	if (!text_copy(i->session_id, &copy.session_id) || !text_copy(i->session_name, &copy.session_name) ||
	    !text_copy(i->name, &copy.name) || !text_copy(i->ticket, &copy.ticket) ||
	    !text_copy(i->account, &copy.account) || !text_copy(i->known_id, &copy.known_id) ||
	    !text_copy(i->known_session_id, &copy.known_session_id) || !text_copy(i->prior_ids, &copy.prior_ids) ||
	    !text_copy(i->supersedes_id, &copy.supersedes_id) || !text_copy(i->words, &copy.words)) {
		queue_item_release(&copy);
		return -ENOMEM;
	}
	*ret = copy;
	return 0;
}

/* ---- SQLite in our terms ----------------------------------------------------------------------------------- */

static int error_of(int sqlite_code)
{
	switch (sqlite_code & 0xff) {
	case SQLITE_OK:
	case SQLITE_ROW:
	case SQLITE_DONE:
		return 0;
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_READONLY:
	case SQLITE_PERM:
		return -EROFS;
	default:
		return -EIO;
	}
}

static int failed(struct queue *q, const char *what, int sqlite_code)
{
	log_error("queue: %s/state.db: %s: %s", q->dir, what, sqlite3_errmsg(q->db));
	return error_of(sqlite_code);
}

/* A cached statement in use; ends by giving it back clean. */
static void statement_end(sqlite3_stmt **statement)
{
	if (!*statement)
		return;
	(void)sqlite3_reset(*statement); /* repeats the error of the step, which was looked at there */
	(void)sqlite3_clear_bindings(*statement);
	*statement = NULL;
}

#define STATEMENT CLEANUP(statement_end) sqlite3_stmt *

/* Holds the lock. The first failure of a run of binds is what *e keeps. */
static void bind_text(sqlite3_stmt *s, int at, const char *text, int *e)
{
	int r = text ? sqlite3_bind_text(s, at, text, -1, SQLITE_STATIC) : sqlite3_bind_null(s, at);

	if (*e == SQLITE_OK)
		*e = r;
}

static void bind_number(sqlite3_stmt *s, int at, int64_t n, int *e)
{
	int r = sqlite3_bind_int64(s, at, n);

	if (*e == SQLITE_OK)
		*e = r;
}

static int step_to_end(struct queue *q, sqlite3_stmt *s, const char *what, int e)
{
	if (e == SQLITE_OK)
		e = sqlite3_step(s);
	return e == SQLITE_DONE || e == SQLITE_ROW ? 0 : failed(q, what, e);
}

/* ---- opening ----------------------------------------------------------------------------------------------- */

static int exec(struct queue *q, const char *sql)
{
	return sqlite3_exec(q->db, sql, NULL, NULL, NULL);
}

static int db_open(struct queue *q, const char *path)
{
	int e = sqlite3_open_v2(path, &q->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);

	if (e == SQLITE_OK)
		e = sqlite3_busy_timeout(q->db, BUSY_WAIT_MS);
	if (e == SQLITE_OK)
		e = exec(q, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;");
	if (e == SQLITE_OK)
		e = exec(q, schema);
	for (int i = 0; e == SQLITE_OK && i < STATEMENT_COUNT; i++)
		e = sqlite3_prepare_v3(q->db, statement_texts[i], -1, SQLITE_PREPARE_PERSISTENT, &q->statements[i],
				       NULL);
	return e;
}

static void queue_release(struct queue **q)
{
	queue_close(*q);
	*q = NULL;
}

int queue_open(const char *dir, struct buf *why, struct queue **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(queue_release) struct queue *q = calloc(1, sizeof(*q));

	buf_addf(&path, "%s/spool", dir);
	if (!q || !buf_text(&path))
		return -ENOMEM;
	(void)pthread_mutex_init(&q->lock, NULL); /* can't fail on Linux */
	q->dir = strdup(dir);
	q->spool_dir = strdup(buf_text(&path));
	if (!q->dir || !q->spool_dir)
		return -ENOMEM;
	int r = spool_dir_make(q->spool_dir);
	if (r < 0) {
		buf_addf(why, "%s cannot be made: %s", q->spool_dir, strerror(-r));
		return r;
	}
	buf_clear(&path);
	buf_addf(&path, "%s/state.db", dir);
	if (!buf_text(&path))
		return -ENOMEM;
	int e = db_open(q, buf_text(&path));
	if (e != SQLITE_OK) {
		buf_addf(why, "%s cannot be used for the queue: %s", buf_text(&path),
			 q->db ? sqlite3_errmsg(q->db) : sqlite3_errstr(e));
		return error_of(e) < 0 ? error_of(e) : -EIO;
	}
	*ret = q;
	q = NULL;
	return 0;
}

void queue_close(struct queue *q)
{
	if (!q)
		return;
	for (int i = 0; i < STATEMENT_COUNT; i++)
		(void)sqlite3_finalize(q->statements[i]); /* repeats an error that was told */
	(void)sqlite3_close(q->db);                       /* nothing is left open in it */
	pthread_mutex_destroy(&q->lock);
	free(q->dir);
	free(q->spool_dir);
	free(q);
}

/* ---- rows in and out --------------------------------------------------------------------------------------- */

int queue_put(struct queue *q, const struct queue_item *item)
{
	int at = 1, e = SQLITE_OK;

	SCOPED_LOCK(&q->lock);
	STATEMENT s = q->statements[PUT];
	bind_number(s, at++, (int64_t)item->ino, &e);
	bind_text(s, at++, item->session_id, &e);
	bind_text(s, at++, item->session_name, &e);
	bind_text(s, at++, item->name, &e);
	bind_number(s, at++, (int64_t)item->spool_id, &e);
	bind_number(s, at++, item->size_bytes, &e);
	bind_text(s, at++, item->sha256, &e);
	bind_number(s, at++, item->mtime_ns, &e);
	bind_text(s, at++, kind_words[item->kind], &e);
	bind_text(s, at++, step_words[item->step], &e);
	bind_text(s, at++, item->ticket, &e);
	bind_number(s, at++, item->ticket_wall_ms, &e);
	bind_text(s, at++, item->account, &e);
	bind_number(s, at++, item->attempts, &e);
	bind_number(s, at++, item->queued_wall_ms, &e);
	bind_number(s, at++, item->next_wall_ms, &e);
	bind_number(s, at++, item->may_have_happened, &e);
	bind_number(s, at++, item->key_renewed, &e);
	bind_text(s, at++, item->known_id, &e);
	bind_text(s, at++, item->known_session_id, &e);
	bind_text(s, at++, item->prior_ids, &e);
	bind_text(s, at++, item->supersedes_id, &e);
	bind_number(s, at++, item->error, &e);
	bind_text(s, at++, fault_words[item->fault], &e);
	bind_text(s, at++, item->words, &e);
	return step_to_end(q, s, "a file cannot be written", e);
}

int queue_remove(struct queue *q, uint64_t ino)
{
	int e = SQLITE_OK;

	SCOPED_LOCK(&q->lock);
	STATEMENT s = q->statements[REMOVE];
	bind_number(s, 1, (int64_t)ino, &e);
	return step_to_end(q, s, "a file cannot be taken out", e);
}

int queue_add_prior(struct queue *q, uint64_t but_ino, const char *session_id, const char *sha256,
		    const char *document_id)
{
	int e = SQLITE_OK;

	SCOPED_LOCK(&q->lock);
	STATEMENT s = q->statements[ADD_PRIOR];
	bind_number(s, 1, (int64_t)but_ino, &e);
	bind_text(s, 2, session_id, &e);
	bind_text(s, 3, sha256, &e);
	bind_text(s, 4, document_id, &e);
	return step_to_end(q, s, "files of equal bytes cannot be told of a document", e);
}

int queue_find_stored(struct queue *q, uint64_t but_ino, const char *session_id, const char *sha256,
		      const char *account)
{
	int e = SQLITE_OK;

	SCOPED_LOCK(&q->lock);
	STATEMENT s = q->statements[FIND_STORED];
	bind_number(s, 1, (int64_t)but_ino, &e);
	bind_text(s, 2, session_id, &e);
	bind_text(s, 3, sha256, &e);
	bind_text(s, 4, account, &e);
	if (e == SQLITE_OK)
		e = sqlite3_step(s);
	if (e == SQLITE_ROW)
		return 0;
	return e == SQLITE_DONE ? -ENOENT : failed(q, "files of equal bytes cannot be looked up", e);
}

/* Reads one row, remembering the first thing that is wrong with it. */
struct row {
	sqlite3_stmt *s;
	int at;
	const char *wrong; /* NULL: sound so far */
	bool is_short_of_memory;
};

static void row_blame(struct row *row, const char *wrong)
{
	if (!row->wrong)
		row->wrong = wrong;
}

/* NULL stays NULL. */
static const char *row_peek_text(struct row *row, const char *what)
{
	int at = row->at++;

	switch (sqlite3_column_type(row->s, at)) {
	case SQLITE_NULL:
		return NULL;
	case SQLITE_TEXT:
		break;
	default:
		row_blame(row, what);
		return NULL;
	}
	const char *text = (const char *)sqlite3_column_text(row->s, at);
	if (!text)
		row->is_short_of_memory = true;
	else if (strlen(text) != (size_t)sqlite3_column_bytes(row->s, at))
		row_blame(row, what);
	return text;
}

static char *row_text(struct row *row, const char *what)
{
	const char *text = row_peek_text(row, what);
	char *copy = text ? strdup(text) : NULL;

	if (text && !copy)
		row->is_short_of_memory = true;
	return copy;
}

static char *row_needed_text(struct row *row, const char *what)
{
	char *text = row_text(row, what);

	if (!text || !*text)
		row_blame(row, what);
	return text;
}

static int64_t row_number(struct row *row, const char *what, int64_t min, int64_t max)
{
	int at = row->at++;
	int64_t n = sqlite3_column_int64(row->s, at);

	if (sqlite3_column_type(row->s, at) == SQLITE_INTEGER && n >= min && n <= max)
		return n;
	row_blame(row, what);
	return min;
}

static int row_word(struct row *row, const char *what, const char *const *words, int count)
{
	int i = word_find(words, count, row_peek_text(row, what));

	if (i < 0)
		row_blame(row, what);
	return i < 0 ? 0 : i;
}

static void row_sha256(struct row *row, char ret[65])
{
	const char *text = row_peek_text(row, "its hash");

	ret[0] = '\0';
	if (!text || (*text && (strlen(text) != 64 || strspn(text, "0123456789abcdef") != 64)))
		row_blame(row, "its hash");
	else
		(void)snprintf(ret, 65, "%s", text); /* 64 digits or none */
}

static bool name_is_sound(const char *name)
{
	return name && *name && strlen(name) <= NAME_BYTES_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 &&
	       strcmp(name, "..") != 0;
}

/* Fills ret as far as the row goes; returns what is wrong with it, or NULL. */
static const char *item_read(struct row *row, struct queue_item *ret)
{
	ret->ino = (uint64_t)row_number(row, "its number", INT64_MIN, INT64_MAX);
	ret->session_id = row_needed_text(row, "its session");
	ret->session_name = row_text(row, "its session's name");
	ret->name = row_needed_text(row, "its name");
	ret->spool_id = (uint64_t)row_number(row, "its spool", INT64_MIN, INT64_MAX);
	ret->size_bytes = row_number(row, "its size", 0, INT64_MAX);
	row_sha256(row, ret->sha256);
	ret->mtime_ns = row_number(row, "its time", INT64_MIN, INT64_MAX);
	ret->kind = (enum file_kind)row_word(row, "its kind", kind_words, COUNT_OF(kind_words));
	ret->step = (enum upload_step)row_word(row, "its step", step_words, COUNT_OF(step_words));
	ret->ticket = row_text(row, "its ticket");
	ret->ticket_wall_ms = row_number(row, "its ticket's time", INT64_MIN, INT64_MAX);
	ret->account = row_text(row, "its account");
	ret->attempts = (int)row_number(row, "its attempts", 0, INT32_MAX);
	ret->queued_wall_ms = row_number(row, "the time it was queued", INT64_MIN, INT64_MAX);
	ret->next_wall_ms = row_number(row, "the time of its next try", INT64_MIN, INT64_MAX);
	ret->may_have_happened = row_number(row, "its last step", 0, 1);
	ret->key_renewed = row_number(row, "its key", 0, 1);
	ret->known_id = row_text(row, "its known document");
	ret->known_session_id = row_text(row, "its known document's session");
	ret->prior_ids = row_text(row, "the documents before it");
	ret->supersedes_id = row_text(row, "the document it replaces");
	ret->error = (int)row_number(row, "its error", -4095, 0);
	ret->fault = (enum fault_kind)row_word(row, "its fault", fault_words, COUNT_OF(fault_words));
	ret->words = row_text(row, "its words");
	if (!row->wrong && !name_is_sound(ret->name))
		row_blame(row, "its name");
	if (!row->wrong && strchr(ret->session_id, '/'))
		row_blame(row, "its session");
	if (!row->wrong && ret->kind == FILE_PENDING && !ret->sha256[0])
		row_blame(row, "its hash");
	return row->wrong;
}

/* Is the file's other half there? A scratch file may have been written to since its row was: its size is the file's.
 * -errno: nobody can tell at present. */
static int item_check_spool(const struct queue *q, struct queue_item *item, const char **ret_wrong)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	struct stat st;

	buf_addf(&path, "%s/%" PRIu64, q->spool_dir, item->spool_id);
	if (!buf_text(&path))
		return -ENOMEM;
	int r = lstat(buf_text(&path), &st) < 0 ? -errno : 0;
	if (r < 0 && r != -ENOENT)
		return r;
	*ret_wrong = NULL;
	if (r < 0 || !S_ISREG(st.st_mode))
		*ret_wrong = "its bytes are missing";
	else if (item->kind == FILE_SCRATCH)
		item->size_bytes = st.st_size;
	else if (item->size_bytes != st.st_size)
		*ret_wrong = "its bytes have another size";
	return 0;
}

struct item_list {
	struct queue_item *items;
	int count, room;
};

static void item_list_release(struct item_list *l)
{
	for (int i = 0; i < l->count; i++)
		queue_item_release(&l->items[i]);
	free(l->items);
	*l = (struct item_list){ 0 };
}

/* Takes the item's texts over. */
static int item_list_add(struct item_list *l, struct queue_item *item)
{
	if (l->count == l->room) {
		int room = l->room ? 2 * l->room : 16;
		struct queue_item *more = realloc(l->items, (size_t)room * sizeof(*more));
		if (!more)
			return -ENOMEM;
		l->items = more;
		l->room = room;
	}
	l->items[l->count++] = *item;
	*item = (struct queue_item){ 0 };
	return 0;
}

/* A row set aside, by its key and with the reason; or, without one, a row that is passed over as it stands. */
struct oddity {
	int64_t ino;
	uint64_t spool_id;
	const char *why;
};

struct oddity_list {
	struct oddity *items;
	int count, room;
};

static void oddity_list_release(struct oddity_list *l)
{
	free(l->items);
	*l = (struct oddity_list){ 0 };
}

static int oddity_list_add(struct oddity_list *l, const struct queue_item *item, const char *why)
{
	if (l->count == l->room) {
		int room = l->room ? 2 * l->room : 16;
		struct oddity *more = realloc(l->items, (size_t)room * sizeof(*more));
		if (!more)
			return -ENOMEM;
		l->items = more;
		l->room = room;
	}
	l->items[l->count++] = (struct oddity){ (int64_t)item->ino, item->spool_id, why };
	return 0;
}

/* Holds the lock. One transaction: the row is in one of the two tables, always. */
static int set_aside(struct queue *q, const struct oddity *odd)
{
	int e = exec(q, "BEGIN IMMEDIATE"), r;

	if (e != SQLITE_OK)
		return failed(q, "a damaged row cannot be set aside", e);
	{
		STATEMENT s = q->statements[ASIDE];
		bind_number(s, 1, odd->ino, &e);
		bind_number(s, 2, clock_wall_ms(), &e);
		bind_text(s, 3, odd->why, &e);
		r = step_to_end(q, s, "a damaged row cannot be set aside", e);
	}
	if (r == 0) {
		STATEMENT s = q->statements[REMOVE];
		bind_number(s, 1, odd->ino, &e);
		r = step_to_end(q, s, "a damaged row cannot be set aside", e);
	}
	if (r == 0 && (e = exec(q, "COMMIT")) != SQLITE_OK)
		r = failed(q, "a damaged row cannot be set aside", e);
	if (r < 0)
		(void)exec(q, "ROLLBACK"); /* what failed before it was told */
	else
		log_error("queue: the record of file %" PRId64 " is damaged (%s): set aside in table file_aside",
			  odd->ino, odd->why);
	return r;
}

/* Holds the lock. */
static int rows_read(struct queue *q, struct item_list *found, struct oddity_list *odd)
{
	STATEMENT s = q->statements[LOAD];

	for (;;) {
		CLEANUP(queue_item_release) struct queue_item item = { 0 };
		struct row row = { .s = s };
		int e = sqlite3_step(s);
		if (e == SQLITE_DONE)
			return 0;
		if (e != SQLITE_ROW)
			return failed(q, "the queue cannot be read", e);
		const char *wrong = item_read(&row, &item);
		if (row.is_short_of_memory)
			return -ENOMEM; /* says nothing about the row */
		int r = wrong ? 0 : item_check_spool(q, &item, &wrong);
		if (r == -ENOMEM)
			return r;
		if (r < 0)
			log_error("queue: the bytes of '%s' cannot be looked at, it waits for the next mount: %s",
				  item.name, strerror(-r));
		r = wrong || r < 0 ? oddity_list_add(odd, &item, wrong) : item_list_add(found, &item);
		if (r < 0)
			return r;
	}
}

/* ---- bytes without a row ----------------------------------------------------------------------------------- */

static int compare_ids(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

struct strays {
	const struct queue *q;
	uint64_t *ids; /* those with a row, sorted */
	size_t count;
};

static void stray_move(void *arg, uint64_t id)
{
	const struct strays *strays = arg;
	CLEANUP(buf_release) struct buf from = BUF(PATH_BYTES_MAX);
	CLEANUP(buf_release) struct buf to = BUF(PATH_BYTES_MAX);
	struct stat st;

	if (strays->count && bsearch(&id, strays->ids, strays->count, sizeof(id), compare_ids))
		return;
	buf_addf(&from, "%s/%" PRIu64, strays->q->spool_dir, id);
	buf_addf(&to, "%s/aside", strays->q->spool_dir);
	if (!buf_text(&from) || !buf_text(&to) || lstat(buf_text(&from), &st) < 0)
		return;
	if (st.st_size == 0) {
		spool_unlink_id(strays->q->spool_dir, id); /* made, and never written to */
		return;
	}
	(void)spool_dir_make(buf_text(&to)); /* rename says what is wrong with it */
	buf_addf(&to, "/%" PRIu64, id);
	if (!buf_text(&to) || rename(buf_text(&from), buf_text(&to)) < 0)
		log_error("queue: %s has no record and cannot be set aside", buf_text(&from));
	else
		log_warning("queue: bytes without a record were set aside as %s", buf_text(&to));
}

static int strays_set_aside(const struct queue *q, const struct item_list *found, const struct oddity_list *odd)
{
	struct strays strays = { .q = q };

	strays.ids = malloc((size_t)(found->count + odd->count + 1) * sizeof(*strays.ids));
	if (!strays.ids)
		return -ENOMEM;
	for (int i = 0; i < found->count; i++)
		strays.ids[strays.count++] = found->items[i].spool_id;
	for (int i = 0; i < odd->count; i++) {
		if (!odd->items[i].why)
			strays.ids[strays.count++] = odd->items[i].spool_id;
	}
	qsort(strays.ids, strays.count, sizeof(*strays.ids), compare_ids);
	int r = spool_dir_walk(q->spool_dir, stray_move, &strays);
	free(strays.ids);
	return r;
}

int queue_load(struct queue *q, void (*each)(void *arg, const struct queue_item *item), void *arg)
{
	CLEANUP(item_list_release) struct item_list found = { 0 };
	CLEANUP(oddity_list_release) struct oddity_list odd = { 0 };

	{
		SCOPED_LOCK(&q->lock);
		int r = rows_read(q, &found, &odd);
		if (r < 0)
			return r;
		/* Tidied up once, before anybody writes: later a file without its other half is one just being made
		 * or dropped. */
		for (int i = 0; !q->was_loaded && i < odd.count; i++) {
			if (odd.items[i].why)
				(void)set_aside(q, &odd.items[i]); /* logged; it is passed over all the same */
		}
		if (!q->was_loaded && (r = strays_set_aside(q, &found, &odd)) < 0)
			log_warning("queue: %s cannot be looked through: %s", q->spool_dir, strerror(-r));
		q->was_loaded = true;
	}
	/* Without the lock: `each` may well put the item back. */
	for (int i = 0; i < found.count; i++)
		each(arg, &found.items[i]);
	return 0;
}

/* ---- bytes known to be at the service ---------------------------------------------------------------------- */

int queue_remember_hash(struct queue *q, const char *workspace_id, const char *sha256, const char *document_id,
			const char *session_id)
{
	int e = SQLITE_OK;

	SCOPED_LOCK(&q->lock);
	STATEMENT s = q->statements[HASH_PUT];
	bind_text(s, 1, workspace_id, &e);
	bind_text(s, 2, sha256, &e);
	bind_text(s, 3, document_id, &e);
	bind_text(s, 4, session_id, &e);
	return step_to_end(q, s, "a hash cannot be remembered", e);
}

static int column_copy(sqlite3_stmt *s, int at, char **ret)
{
	const char *text = (const char *)sqlite3_column_text(s, at);

	return text_copy(text, ret) ? 0 : -ENOMEM;
}

int queue_find_hash(struct queue *q, const char *workspace_id, const char *sha256, char **ret_document_id,
		    char **ret_session_id)
{
	CLEANUP(text_release) char *document_id = NULL;
	int e = SQLITE_OK;

	SCOPED_LOCK(&q->lock);
	STATEMENT s = q->statements[HASH_FIND];
	bind_text(s, 1, workspace_id, &e);
	bind_text(s, 2, sha256, &e);
	if (e == SQLITE_OK)
		e = sqlite3_step(s);
	if (e == SQLITE_DONE)
		return -ENOENT;
	if (e != SQLITE_ROW)
		return failed(q, "a hash cannot be looked up", e);
	int r = column_copy(s, 0, &document_id);
	if (r == 0 && !document_id)
		r = -ENOENT;
	if (r == 0)
		r = column_copy(s, 1, ret_session_id);
	if (r < 0)
		return r;
	*ret_document_id = document_id;
	document_id = NULL;
	return 0;
}

int queue_forget_hash(struct queue *q, const char *sha256, const char *document_id)
{
	int e = SQLITE_OK;

	SCOPED_LOCK(&q->lock);
	STATEMENT s = q->statements[HASH_FORGET];
	bind_text(s, 1, sha256, &e);
	bind_text(s, 2, document_id, &e);
	return step_to_end(q, s, "a hash cannot be forgotten", e);
}
