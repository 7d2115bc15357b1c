/* Listings on the disk; see store.h.
 *
 *   put, forget --> notes (one a session) --> [pool] --> listings.db: the listing's bytes, its times
 *                     ^                                   records/NAME: its JSON, as large as ten times the rest
 *   load -------------+--> else from the database
 *
 * A note stays until it is on the disk, so that a load always finds the newest. The times stand in a row apart from the
 * bytes: most refreshes find nothing new and change nothing else. */
#include "cache/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/index.h"
#include "client/base/log.h"
#include "client/base/memory.h"
#include "client/base/pool.h"

enum {
	SCHEMA_VERSION = 2,
	DELAY_MS = 2000,
	DELAY_PER_MIB_MS = 1000,    /* 13 MB are not written every two seconds because one status changed */
	UNCHANGED_DELAY_MS = 30000, /* for the time alone */
	BUSY_WAIT_MS = 2000,
	STRAY_S = 3600, /* a file of records that nothing refers to for so long is nobody's any more */
	ACCOUNT_BYTES = 65,
	FORGOTTEN_MAX = 8,
};

#define BYTES_MAX (INT64_C(512) << 20)

enum { LARGE_BYTES = 256 * 1024 };

static const char schema[] =
	"CREATE TABLE listing(id INTEGER PRIMARY KEY, account TEXT NOT NULL, session TEXT NOT NULL,"
	" as_of_ms INTEGER NOT NULL, json TEXT NOT NULL, json_bytes INTEGER NOT NULL,"
	" bytes INTEGER NOT NULL, UNIQUE(account, session));"
	"CREATE TABLE content(id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);"
	"CREATE TABLE annex(id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);"; /* of the listing of that id */

/* What is to be written of a session. */
struct note {
	struct note *next;
	char account[ACCOUNT_BYTES];
	char *session_id;
	struct listing *listing; /* counted; NULL: to be forgotten */
	int64_t due_ms;
	uint64_t change;       /* counts up: what came while the last one was being written is written too */
	uint64_t saved_serial; /* of the listing on the disk; 0: not known */
	bool waits;
};

struct store {
	char *dir, *records; /* these and the options are set once */
	int64_t delay_ms, bytes_max;
	struct pool *pool;
	pthread_mutex_t lock; /* guards what follows; never held while the disk is waited for */
	struct note *notes;   /* of every session written since the start: a few words each */
	struct index by_session;
	uint64_t changes;
	int64_t next_ms; /* when the writer looks again; INT64_MAX: not at all */
	/* Accounts all of whose rows are to go, before any note; the first may be going. */
	char forgotten[FORGOTTEN_MAX][ACCOUNT_BYTES];
	int forgotten_count;
	bool is_closing;
	pthread_mutex_t disk_lock; /* guards what follows; taken before `lock` where both are */
	sqlite3 *db;               /* NULL: it can't be had */
	bool has_failed;           /* said in the log, and not again before it went well */
};

/* ---- statements ---------------------------------------------------------------------------------------------- */

static void statement_release(sqlite3_stmt **statement)
{
	(void)sqlite3_finalize(*statement); /* tells again what step told */
}

#define STATEMENT CLEANUP(statement_release) sqlite3_stmt *

static bool is_damage(int e)
{
	return (e & 0xff) == SQLITE_CORRUPT || (e & 0xff) == SQLITE_NOTADB;
}

static int exec(sqlite3 *db, const char *sql)
{
	return sqlite3_exec(db, sql, NULL, NULL, NULL);
}

static int prepare(struct store *s, const char *sql, const char *account, const char *session_id, sqlite3_stmt **ret)
{
	int e = sqlite3_prepare_v2(s->db, sql, -1, ret, NULL);

	if (e == SQLITE_OK)
		e = sqlite3_bind_text(*ret, 1, account, -1, SQLITE_STATIC);
	if (e == SQLITE_OK && session_id)
		e = sqlite3_bind_text(*ret, 2, session_id, -1, SQLITE_STATIC);
	return e;
}

static const char *column_text(sqlite3_stmt *statement, int column)
{
	const unsigned char *text = sqlite3_column_text(statement, column);

	return text ? (const char *)text : "";
}

/* ---- opening the database (disk_lock is held, or nobody else is there yet) ------------------------------------- */

static int read_number(sqlite3 *db, const char *sql, int64_t *ret)
{
	STATEMENT statement = NULL;
	int e = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);

	if (e == SQLITE_OK)
		e = sqlite3_step(statement);
	if (e != SQLITE_ROW)
		return e == SQLITE_DONE ? SQLITE_CORRUPT : e;
	*ret = sqlite3_column_int64(statement, 0);
	return SQLITE_OK;
}

/* An SQLite code; SQLITE_CORRUPT also for what another version wrote. */
static int connect_to(const char *path, sqlite3 **db)
{
	int64_t version = 0, tables = 0;
	char begin[64];
	int e = sqlite3_open_v2(path, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);

	if (e != SQLITE_OK)
		return e;
	(void)sqlite3_extended_result_codes(*db, 1);
	(void)sqlite3_busy_timeout(*db, BUSY_WAIT_MS);
	/* Larger pages read a large listing in fewer turns. NORMAL: a power loss may take the last writes, no more. */
	e = exec(*db, "PRAGMA page_size=16384; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
		      " PRAGMA wal_autocheckpoint=256; PRAGMA journal_size_limit=4194304");
	if (e == SQLITE_OK)
		e = read_number(*db, "PRAGMA user_version", &version);
	if (e == SQLITE_OK)
		e = read_number(*db, "SELECT count(*) FROM sqlite_master WHERE type = 'table'", &tables);
	if (e != SQLITE_OK || (version == SCHEMA_VERSION && tables == 3))
		return e;
	if (version != 0 || tables != 0)
		return SQLITE_CORRUPT;
	(void)snprintf(begin, sizeof(begin), "PRAGMA user_version=%d; COMMIT", SCHEMA_VERSION);
	e = exec(*db, "BEGIN IMMEDIATE");
	if (e == SQLITE_OK)
		e = exec(*db, schema);
	if (e == SQLITE_OK)
		e = exec(*db, begin);
	return e;
}

static void remove_database(const char *path)
{
	static const char *const tails[] = { "", "-wal", "-shm" };

	for (int i = 0; i < 3; i++) {
		CLEANUP(buf_release) struct buf name = BUF(PATH_MAX);
		buf_addf(&name, "%s%s", path, tails[i]);
		if (buf_text(&name))
			(void)unlink(
				buf_text(&name)); /* what can't be removed can't be opened either, and that is told */
	}
}

static int open_database(struct store *s)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_MAX);

	buf_addf(&path, "%s/listings.db", s->dir);
	if (!buf_text(&path))
		return -ENAMETOOLONG;
	int e = connect_to(buf_text(&path), &s->db);
	if (is_damage(e)) {
		log_warning("cache: %s is damaged or of another version (%s): it is begun anew", buf_text(&path),
			    sqlite3_errstr(e));
		(void)sqlite3_close(s->db);
		s->db = NULL;
		remove_database(buf_text(&path));
		e = connect_to(buf_text(&path), &s->db);
	}
	if (e == SQLITE_OK)
		return 0;
	log_warning("cache: listings can't be remembered in %s: %s", buf_text(&path), sqlite3_errstr(e));
	(void)sqlite3_close(s->db);
	s->db = NULL;
	return -EIO;
}

/* After a statement that failed: damage is cured by beginning anew, all else is one line. */
static void mourn(struct store *s, int e, const char *what)
{
	if (is_damage(e)) {
		CLEANUP(buf_release) struct buf path = BUF(PATH_MAX);
		buf_addf(&path, "%s/listings.db", s->dir);
		log_warning("cache: %s turned out to be damaged: it is begun anew",
			    buf_text(&path) ? buf_text(&path) : "");
		(void)sqlite3_close(s->db);
		s->db = NULL;
		if (buf_text(&path))
			remove_database(buf_text(&path));
		(void)open_database(s); /* tells why not */
		return;
	}
	if (!s->has_failed)
		log_warning("cache: %s: %s", what, sqlite3_errmsg(s->db));
	s->has_failed = true;
	(void)exec(s->db, "ROLLBACK"); /* fails where nothing was begun */
}

/* ---- writing (disk_lock is held) ------------------------------------------------------------------------------- */

/* A file of records that no row names any more. */
static void drop_records(struct store *s, const char *name)
{
	STATEMENT statement = NULL;
	CLEANUP(buf_release) struct buf path = BUF(PATH_MAX);

	if (!name[0] || strchr(name, '/'))
		return;
	if (sqlite3_prepare_v2(s->db, "SELECT 1 FROM listing WHERE json = ?1", -1, &statement, NULL) != SQLITE_OK ||
	    sqlite3_bind_text(statement, 1, name, -1, SQLITE_STATIC) != SQLITE_OK ||
	    sqlite3_step(statement) != SQLITE_DONE)
		return; /* it is named, or found stray at another start */
	buf_addf(&path, "%s/%s", s->records, name);
	if (buf_text(&path))
		(void)unlink(buf_text(&path)); /* likewise */
}

/* The row's number and the name of its file of records; SQLITE_DONE when there is none. */
static int find_row(struct store *s, const char *account, const char *session_id, int64_t *ret_id,
		    char ret_json[LISTING_JSON_NAME_BYTES])
{
	STATEMENT statement = NULL;
	int e = prepare(s, "SELECT id, json FROM listing WHERE account = ?1 AND session = ?2", account, session_id,
			&statement);

	if (e == SQLITE_OK)
		e = sqlite3_step(statement);
	if (e == SQLITE_ROW) {
		*ret_id = sqlite3_column_int64(statement, 0);
		(void)snprintf(ret_json, LISTING_JSON_NAME_BYTES, "%s", column_text(statement, 1));
	}
	return e;
}

static int remove_row(struct store *s, int64_t id)
{
	char sql[200];

	(void)snprintf(sql, sizeof(sql),
		       "DELETE FROM content WHERE id = %lld; DELETE FROM annex WHERE id = %lld;"
		       " DELETE FROM listing WHERE id = %lld",
		       (long long)id, (long long)id, (long long)id);
	return exec(s->db, sql);
}

static int forget_row(struct store *s, const char *account, const char *session_id)
{
	char json[LISTING_JSON_NAME_BYTES];
	int64_t id = 0;
	int e = find_row(s, account, session_id, &id, json);

	if (e != SQLITE_ROW)
		return e == SQLITE_DONE ? SQLITE_OK : e;
	e = exec(s->db, "BEGIN IMMEDIATE");
	if (e == SQLITE_OK)
		e = remove_row(s, id);
	if (e == SQLITE_OK)
		e = exec(s->db, "COMMIT");
	if (e == SQLITE_OK)
		drop_records(s, json);
	return e;
}

static int forget_account(struct store *s, const char *account)
{
	for (;;) {
		STATEMENT statement = NULL;
		int e = prepare(s, "SELECT session FROM listing WHERE account = ?1 LIMIT 1", account, NULL, &statement);
		if (e == SQLITE_OK)
			e = sqlite3_step(statement);
		if (e != SQLITE_ROW)
			return e == SQLITE_DONE ? SQLITE_OK : e;
		CLEANUP(text_release) char *session_id = strdup(column_text(statement, 0));
		(void)sqlite3_reset(statement); /* so that the row may go */
		e = session_id ? forget_row(s, account, session_id) : SQLITE_NOMEM;
		if (e != SQLITE_OK)
			return e;
	}
}

/* The oldest go until the rest fits, but never the one just written. */
static int make_room(struct store *s, int64_t but_id)
{
	for (;;) {
		STATEMENT statement = NULL;
		int64_t bytes = 0;
		char json[LISTING_JSON_NAME_BYTES], sql[160];
		int e = read_number(s->db, "SELECT coalesce(sum(bytes + json_bytes), 0) FROM listing", &bytes);
		if (e != SQLITE_OK || bytes <= s->bytes_max)
			return e;
		(void)snprintf(sql, sizeof(sql),
			       "SELECT id, json FROM listing WHERE id != %lld ORDER BY as_of_ms LIMIT 1",
			       (long long)but_id);
		e = sqlite3_prepare_v2(s->db, sql, -1, &statement, NULL);
		if (e == SQLITE_OK)
			e = sqlite3_step(statement);
		if (e != SQLITE_ROW)
			return e == SQLITE_DONE ? SQLITE_OK : e;
		int64_t id = sqlite3_column_int64(statement, 0);
		(void)snprintf(json, sizeof(json), "%s", column_text(statement, 1));
		(void)sqlite3_reset(statement);
		e = remove_row(s, id);
		if (e != SQLITE_OK)
			return e;
		drop_records(s, json);
	}
}

/* A listing's bytes on their way. */
struct packed {
	char *bytes;
	size_t len, room;
};

static int put_bytes(void *arg, const void *bytes, size_t len)
{
	struct packed *p = arg;

	if (len > p->room - p->len)
		return -EMSGSIZE;
	memcpy(p->bytes + p->len, bytes, len);
	p->len += len;
	return 0;
}

static void packed_release(struct packed *p)
{
	free(p->bytes);
}

static int64_t file_bytes(const char *dir, const char *name)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_MAX);
	struct stat st;

	buf_addf(&path, "%s/%s", dir, name);
	return name[0] && buf_text(&path) && stat(buf_text(&path), &st) == 0 ? st.st_size : 0;
}

/* ret_id: its row. */
static int write_row(struct store *s, const struct note *n, const struct packed *packed, const char *json,
		     int64_t *ret_id)
{
	STATEMENT row = NULL;
	STATEMENT content = NULL;
	int e = prepare(
		s,
		"INSERT INTO listing(account, session, as_of_ms, json, json_bytes, bytes) VALUES(?1, ?2, ?3, ?4, ?5, "
		"?6)"
		" ON CONFLICT(account, session) DO UPDATE SET as_of_ms = ?3, json = ?4, json_bytes = ?5, bytes = ?6"
		" RETURNING id",
		n->account, n->session_id, &row);

	if (e == SQLITE_OK)
		e = sqlite3_bind_int64(row, 3, listing_as_of_wall_ms(n->listing));
	if (e == SQLITE_OK)
		e = sqlite3_bind_text(row, 4, json, -1, SQLITE_STATIC);
	if (e == SQLITE_OK)
		e = sqlite3_bind_int64(row, 5, file_bytes(s->records, json));
	if (e == SQLITE_OK)
		e = sqlite3_bind_int64(row, 6, (int64_t)packed->len);
	if (e == SQLITE_OK)
		e = sqlite3_step(row);
	if (e != SQLITE_ROW)
		return e == SQLITE_DONE ? SQLITE_CORRUPT : e;
	*ret_id = sqlite3_column_int64(row, 0);
	e = sqlite3_step(row);
	if (e != SQLITE_DONE)
		return e;
	e = sqlite3_prepare_v2(s->db, "INSERT OR REPLACE INTO content VALUES(?1, ?2)", -1, &content, NULL);
	if (e == SQLITE_OK)
		e = sqlite3_bind_int64(content, 1, *ret_id);
	if (e == SQLITE_OK)
		e = sqlite3_bind_blob64(content, 2, packed->bytes, packed->len, SQLITE_STATIC);
	if (e == SQLITE_OK)
		e = sqlite3_step(content);
	return e == SQLITE_DONE ? SQLITE_OK : e;
}

/* The listing's annex goes beside it, and out of memory. clears: without one, that of an older listing goes. */
static int write_annex(struct store *s, struct listing *l, int64_t id, bool clears)
{
	STATEMENT statement = NULL;
	size_t len;
	CLEANUP(text_release) char *bytes = listing_take_annex(l, &len);

	if (!bytes && !clears)
		return SQLITE_OK;
	int e = sqlite3_prepare_v2(
		s->db, bytes ? "INSERT OR REPLACE INTO annex VALUES(?1, ?2)" : "DELETE FROM annex WHERE id = ?1", -1,
		&statement, NULL);
	if (e == SQLITE_OK)
		e = sqlite3_bind_int64(statement, 1, id);
	if (e == SQLITE_OK && bytes)
		e = sqlite3_bind_blob64(statement, 2, bytes, len, SQLITE_STATIC);
	if (e == SQLITE_OK)
		e = sqlite3_step(statement);
	return e == SQLITE_DONE ? SQLITE_OK : e;
}

static int write_listing(struct store *s, const struct note *n)
{
	CLEANUP(packed_release) struct packed packed = { .room = listing_packed_bytes(n->listing) };
	char json[LISTING_JSON_NAME_BYTES] = "", old_json[LISTING_JSON_NAME_BYTES] = "";
	int64_t id = 0;

	packed.bytes = malloc(packed.room);
	if (!packed.bytes || listing_pack(n->listing, put_bytes, &packed) < 0)
		return SQLITE_NOMEM;
	int r = listing_keep_json(n->listing, s->records, json);
	if (r < 0)
		log_warning("cache: records of session %s can't be kept: %s", n->session_id, strerror(-r));
	int e = exec(s->db, "BEGIN IMMEDIATE");
	if (e == SQLITE_OK) {
		e = find_row(s, n->account, n->session_id, &id, old_json);
		e = e == SQLITE_ROW || e == SQLITE_DONE ? SQLITE_OK : e;
	}
	if (e == SQLITE_OK)
		e = write_row(s, n, &packed, json, &id);
	if (e == SQLITE_OK)
		e = write_annex(s, n->listing, id, true);
	if (e == SQLITE_OK)
		e = make_room(s, id);
	if (e == SQLITE_OK)
		e = exec(s->db, "COMMIT");
	if (e == SQLITE_OK && strcmp(old_json, json) != 0)
		drop_records(s, old_json);
	return e;
}

/* SQLITE_DONE: there is no row whose time could be set. */
static int write_time(struct store *s, const struct note *n)
{
	STATEMENT statement = NULL;
	int e = prepare(s, "UPDATE listing SET as_of_ms = ?3 WHERE account = ?1 AND session = ?2 RETURNING id",
			n->account, n->session_id, &statement);

	if (e == SQLITE_OK)
		e = sqlite3_bind_int64(statement, 3, listing_as_of_wall_ms(n->listing));
	if (e == SQLITE_OK)
		e = sqlite3_step(statement);
	if (e != SQLITE_ROW)
		return e;
	int64_t id = sqlite3_column_int64(statement, 0);
	e = sqlite3_step(statement);
	return e == SQLITE_DONE ? write_annex(s, n->listing, id, false) : e;
}

static bool write_note(struct store *s, const struct note *n)
{
	int e = SQLITE_DONE;

	if (!s->db)
		return false;
	if (!n->listing)
		e = forget_row(s, n->account, n->session_id);
	else if (n->saved_serial == listing_serial(n->listing))
		e = write_time(s, n);
	if (n->listing && e == SQLITE_DONE)
		e = write_listing(s, n);
	if (e != SQLITE_OK)
		mourn(s, e, "a listing can't be remembered");
	else
		s->has_failed = false;
	return e == SQLITE_OK;
}

/* ---- notes (lock is held) -------------------------------------------------------------------------------------- */

static uint64_t hash_note(const void *item)
{
	return index_hash_text(((const struct note *)item)->session_id);
}

static bool is_note(const void *item, const void *key)
{
	return strcmp(((const struct note *)item)->session_id, key) == 0;
}

static struct note *note_find(const struct store *s, const char *session_id)
{
	return index_find(&s->by_session, index_hash_text(session_id), is_note, session_id);
}

static struct note *note_of(struct store *s, const char *session_id)
{
	struct note *n = note_find(s, session_id);

	if (n)
		return n;
	n = calloc(1, sizeof(*n));
	if (n)
		n->session_id = strdup(session_id);
	if (!n || !n->session_id || index_put(&s->by_session, n) < 0) {
		free(n ? n->session_id : NULL);
		free(n);
		return NULL;
	}
	n->next = s->notes;
	s->notes = n;
	return n;
}

static void note_set(struct store *s, struct note *n, const char *account, struct listing *l, int64_t due_ms)
{
	if (strcmp(n->account, account) != 0)
		n->saved_serial = 0; /* what is on the disk is another's */
	(void)snprintf(n->account, sizeof(n->account), "%s", account);
	(void)listing_ref(l);
	listing_unref(n->listing);
	n->listing = l;
	n->due_ms = n->waits && n->due_ms < due_ms ? n->due_ms : due_ms;
	n->waits = true;
	n->change = ++s->changes;
}

/* ---- the writer ------------------------------------------------------------------------------------------------ */

static void writer_run(void *arg);

/* lock is held. Has the writer look not later than at due_ms. */
static void wake_writer(struct store *s, int64_t due_ms)
{
	int64_t now_ms = clock_now_ms();

	if (s->is_closing || due_ms >= s->next_ms)
		return;
	s->next_ms = due_ms;
	/* Without a thread it is written by the next one that gets one, or at the end. */
	if (pool_run_later(s->pool, due_ms > now_ms ? due_ms - now_ms : 0, writer_run, NULL, s) < 0)
		s->next_ms = INT64_MAX;
}

/* The next note that is due, copied, with its listing counted; false: none is. */
static bool take_due(struct store *s, int64_t now_ms, struct note *ret, char forgotten[ACCOUNT_BYTES])
{
	SCOPED_LOCK(&s->lock);
	int64_t next_ms = INT64_MAX;

	forgotten[0] = '\0';
	if (s->forgotten_count > 0) {
		memcpy(forgotten, s->forgotten[0], ACCOUNT_BYTES);
		return true;
	}
	for (struct note *n = s->notes; n; n = n->next) {
		if (!n->waits)
			continue;
		if (n->due_ms > now_ms) {
			next_ms = n->due_ms < next_ms ? n->due_ms : next_ms;
			continue;
		}
		*ret = *n;
		ret->listing = listing_ref(n->listing);
		ret->session_id = strdup(n->session_id);
		if (ret->session_id)
			return true;
		listing_unref(ret->listing);
		break;
	}
	s->next_ms = INT64_MAX;
	if (next_ms != INT64_MAX)
		wake_writer(s, next_ms);
	return false;
}

/* The note was written, or could not be, which is not tried again. */
static void settle(struct store *s, struct note *written, bool is_there)
{
	SCOPED_LOCK(&s->lock);
	struct note *n = note_find(s, written->session_id);

	if (strcmp(n->account, written->account) == 0) {
		n->saved_serial = is_there && written->listing ? listing_serial(written->listing) : 0;
		if (n->change == written->change) {
			n->waits = false;
			listing_release(&n->listing);
		}
	}
}

/* Writes one thing; false: nothing is due. Under one hold of the disk's lock, so that nothing that was put earlier lands
 * behind what came later. */
static bool write_next(struct store *s, int64_t now_ms)
{
	struct note n;
	char forgotten[ACCOUNT_BYTES];
	SCOPED_LOCK(&s->disk_lock);

	if (!take_due(s, now_ms, &n, forgotten))
		return false;
	if (forgotten[0]) {
		int e = s->db ? forget_account(s, forgotten) : SQLITE_OK;
		if (e != SQLITE_OK)
			mourn(s, e, "listings can't be forgotten");
		SCOPED_LOCK(&s->lock);
		memmove(s->forgotten[0], s->forgotten[1], (size_t)--s->forgotten_count * ACCOUNT_BYTES);
		return true;
	}
	settle(s, &n, write_note(s, &n));
	/* The copy that was written, and what is left of it in the database's own memory: twice the listing. */
	if (n.listing && s->db && listing_packed_bytes(n.listing) >= LARGE_BYTES) {
		(void)sqlite3_db_release_memory(s->db);
		memory_give_back();
	}
	listing_unref(n.listing);
	free(n.session_id);
	return true;
}

static void write_due(struct store *s, int64_t now_ms)
{
	while (write_next(s, now_ms))
		;
}

static void writer_run(void *arg)
{
	write_due(arg, clock_now_ms());
}

/* Files of records that a crash left behind. */
static void sweep(void *arg)
{
	struct store *s = arg;
	DIR *d = opendir(s->records);
	int64_t now_s = clock_wall_ms() / 1000;

	for (struct dirent *e; d && (e = readdir(d));) {
		struct stat st;
		if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode) ||
		    now_s - st.st_ctim.tv_sec < STRAY_S)
			continue;
		SCOPED_LOCK(&s->disk_lock);
		if (s->db)
			drop_records(s, e->d_name);
	}
	if (d)
		(void)closedir(d);
}

/* ---- the calls ------------------------------------------------------------------------------------------------- */

void store_put(struct store *s, const char *account, const char *session_id, struct listing *l)
{
	SCOPED_LOCK(&s->lock);
	struct note *n = note_of(s, session_id);
	int64_t delay_ms = s->delay_ms;

	if (!n)
		return; /* without memory it is not remembered */
	bool is_unchanged = n->saved_serial == listing_serial(l) && strcmp(n->account, account) == 0 &&
			    (!n->waits || (n->listing && listing_serial(n->listing) == n->saved_serial));
	if (delay_ms == 0)
		delay_ms = is_unchanged ? UNCHANGED_DELAY_MS
					: DELAY_MS + (int64_t)(listing_packed_bytes(l) >> 20) * DELAY_PER_MIB_MS;
	int64_t due_ms = clock_now_ms() + delay_ms;
	note_set(s, n, account, l, due_ms);
	wake_writer(s, n->due_ms);
}

static bool is_forgotten(const struct store *s, const char *account)
{
	for (int i = 0; i < s->forgotten_count; i++) {
		if (strcmp(s->forgotten[i], account) == 0)
			return true;
	}
	return false;
}

/* lock is held. More accounts at a time than there is room for nobody has: the last place is then the latest's. */
static void forget_all_of(struct store *s, const char *account)
{
	if (!is_forgotten(s, account)) {
		int at = s->forgotten_count < FORGOTTEN_MAX ? s->forgotten_count++ : FORGOTTEN_MAX - 1;
		(void)snprintf(s->forgotten[at], ACCOUNT_BYTES, "%s", account);
	}
	wake_writer(s, 0);
}

void store_forget(struct store *s, const char *account, const char *session_id)
{
	SCOPED_LOCK(&s->lock);

	if (!session_id) {
		for (struct note *n = s->notes; n; n = n->next) {
			if (strcmp(n->account, account) != 0)
				continue;
			n->waits = false;
			n->saved_serial = 0;
			n->change = ++s->changes;
			listing_release(&n->listing);
		}
		forget_all_of(s, account);
		return;
	}
	struct note *n = note_of(s, session_id);
	if (!n) { /* rather all than one too few */
		forget_all_of(s, account);
		return;
	}
	note_set(s, n, account, NULL, 0);
	wake_writer(s, 0);
}

/* What a note says; -EAGAIN: nothing, the disk knows. */
static int load_noted(struct store *s, const char *account, const char *session_id, struct listing **ret)
{
	SCOPED_LOCK(&s->lock);
	const struct note *n = note_find(s, session_id);

	if (n && n->waits && strcmp(n->account, account) == 0) {
		if (!n->listing)
			return -ENOENT;
		*ret = listing_ref(n->listing);
		return 0;
	}
	return is_forgotten(s, account) ? -ENOENT : -EAGAIN;
}

struct reader {
	sqlite3_blob *blob;
	size_t at;
};

static int get_bytes(void *arg, void *bytes, size_t len)
{
	struct reader *r = arg;
	char *to = bytes;

	while (len > 0) {
		int n = len > (1 << 20) ? 1 << 20 : (int)len;
		int e = sqlite3_blob_read(r->blob, to, n, (int)r->at);
		if (e != SQLITE_OK)
			return is_damage(e) ? -EBADMSG : -EIO;
		r->at += (size_t)n;
		to += n;
		len -= (size_t)n;
	}
	return 0;
}

/* One that can't be had is done without. */
static void read_annex(struct store *s, int64_t id, struct listing *l)
{
	struct reader reader = { 0 };
	int len = 0;
	void *bytes = NULL;

	if (sqlite3_blob_open(s->db, "main", "annex", "bytes", id, 0, &reader.blob) == SQLITE_OK) {
		len = sqlite3_blob_bytes(reader.blob);
		bytes = len > 0 ? malloc((size_t)len) : NULL;
	}
	if (bytes && get_bytes(&reader, bytes, (size_t)len) == 0)
		listing_set_annex(l, bytes, (size_t)len);
	else
		free(bytes);
	(void)sqlite3_blob_close(reader.blob); /* it was read alone */
}

static int read_listing(struct store *s, int64_t id, int64_t as_of_ms, const char *json, int64_t now_ms,
			struct listing **ret)
{
	struct reader reader = { 0 };
	int64_t age_ms = clock_wall_ms() - as_of_ms;
	int e = sqlite3_blob_open(s->db, "main", "content", "bytes", id, 0, &reader.blob);

	if (e != SQLITE_OK) {
		(void)sqlite3_blob_close(reader.blob);
		return is_damage(e) || (e & 0xff) == SQLITE_ERROR ? -EBADMSG : -EIO;
	}
	const struct listing_source source = {
		.bytes = (size_t)sqlite3_blob_bytes(reader.blob),
		.get = get_bytes,
		.arg = &reader,
		.json_dir = s->records,
		.json_name = json,
		.asked_ms = now_ms - (age_ms > 0 ? age_ms : 0),
		.as_of_wall_ms = as_of_ms,
	};
	int r = listing_unpack(&source, ret);
	(void)sqlite3_blob_close(reader.blob); /* it was read alone */
	if (r == 0)
		read_annex(s, id, *ret);
	if (source.bytes >= LARGE_BYTES)
		(void)sqlite3_db_release_memory(s->db); /* nobody reads it again soon */
	return r;
}

static int load_row(struct store *s, const char *account, const char *session_id, int64_t now_ms, struct listing **ret)
{
	STATEMENT statement = NULL;
	int e = prepare(s, "SELECT id, as_of_ms, json FROM listing WHERE account = ?1 AND session = ?2", account,
			session_id, &statement);

	if (e == SQLITE_OK)
		e = sqlite3_step(statement);
	if (e == SQLITE_DONE)
		return -ENOENT;
	if (e != SQLITE_ROW)
		return is_damage(e) ? -EBADMSG : -EIO;
	int64_t id = sqlite3_column_int64(statement, 0), as_of_ms = sqlite3_column_int64(statement, 1);
	return read_listing(s, id, as_of_ms, column_text(statement, 2), now_ms, ret);
}

int store_load(struct store *s, const char *account, const char *session_id, int64_t now_ms, struct listing **ret)
{
	SCOPED_LOCK(&s->disk_lock); /* first, so that no note reaches the disk between the two looks */
	int r = load_noted(s, account, session_id, ret);

	if (r != -EAGAIN)
		return r;
	if (!s->db)
		return -ENOENT;
	r = load_row(s, account, session_id, now_ms, ret);
	if (r == 0 || r == -ENOENT)
		return r;
	log_warning("cache: what was remembered of session %s can't be read (%s): it will be asked for again",
		    session_id, r == -EBADMSG ? "damaged, or of another version" : strerror(-r));
	if (r == -EBADMSG) {
		int e = forget_row(s, account, session_id);
		if (e != SQLITE_OK)
			mourn(s, e, "a damaged listing can't be removed");
	}
	return -ENOENT;
}

void store_flush(struct store *s)
{
	write_due(s, INT64_MAX);
}

static void store_free(struct store *s)
{
	pool_free(s->pool);
	while (s->notes) {
		struct note *n = s->notes;
		s->notes = n->next;
		listing_unref(n->listing);
		free(n->session_id);
		free(n);
	}
	index_release(&s->by_session);
	(void)sqlite3_close(s->db);
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->disk_lock);
	free(s->dir);
	free(s->records);
	free(s);
}

void store_close(struct store *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->is_closing = true;
	pthread_mutex_unlock(&s->lock);
	pool_stop(s->pool);
	store_flush(s);
	store_free(s);
}

int store_open(const struct store_options *options, struct store **ret)
{
	struct store *s = calloc(1, sizeof(*s));
	CLEANUP(buf_release) struct buf records = BUF(PATH_MAX);

	if (!s)
		return -ENOMEM;
	(void)pthread_mutex_init(&s->lock, NULL); /* these can't fail on Linux */
	(void)pthread_mutex_init(&s->disk_lock, NULL);
	buf_addf(&records, "%s/records", options->dir);
	s->by_session = INDEX(hash_note);
	s->next_ms = INT64_MAX;
	s->delay_ms = options->delay_ms;
	s->bytes_max = options->bytes_max > 0 ? options->bytes_max : BYTES_MAX;
	s->dir = strdup(options->dir);
	s->records = buf_take(&records);
	s->pool = pool_new("store", 1);
	int r = s->dir && s->records && s->pool ? 0 : -ENOMEM;
	if (r == 0 && mkdir(s->records, 0700) < 0 && errno != EEXIST) {
		r = -errno;
		log_warning("cache: listings can't be remembered, %s can't be made: %s", s->records, strerror(-r));
	}
	if (r == 0)
		r = open_database(s);
	if (r < 0) {
		store_free(s);
		return r;
	}
	(void)pool_run_later(s->pool, 10000, sweep, NULL, s); /* else at another start */
	*ret = s;
	return 0;
}
