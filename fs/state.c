/* What must outlive us, in SQLite, and the lock that says whose it is. The queue's table is queue.c's own, on a
 * connection of its own.
 *
 * The lock is an open-file-description lock on dir/lock: it ends with the process however that ends, and no other
 * close() in the process can lose it. Its text names the owner for whoever comes second; an owner that ended properly
 * leaves it empty, so that text found there says the last one crashed, and the database is looked through before it is
 * trusted. */
#include "fs/state.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/backend.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

enum {
	SCHEMA_VERSION = 1,
	INO_FIRST = 4096, /* above the fixed numbers */
	INO_BLOCK = 4096,
	BUSY_WAIT_MS = 10000, /* for the queue's connection */
	LOCK_TEXT_BYTES_MAX = 8192,
	LOCK_POLL_MS = 50,
	ENDING_GRACE_MS = 1000, /* an owner whose mount is going, and that has not said yet that it drains */
	PATH_BYTES_MAX = 4096,
};

struct state {
	char *dir; /* these are set once, before threads */
	char *owner;
	int lock_fd; /* -1: opened beside a running mount */

	pthread_mutex_t lock; /* guards db; taken inside ino_lock, never the other way round */
	sqlite3 *db;
	bool is_damaged; /* seen while it was used: the next start looks through it */

	pthread_mutex_t ino_lock; /* its own, so that a number does not wait for somebody's fsync */
	uint64_t ino_next, ino_end;
};

/* ---- SQLite in our terms ----------------------------------------------------------------------------------- */

static int error_of(int sqlite_code)
{
	switch (sqlite_code & 0xff) {
	case SQLITE_OK:
	case SQLITE_DONE:
	case SQLITE_ROW:
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
	case SQLITE_AUTH:
		return -EROFS;
	default:
		return -EIO;
	}
}

static bool is_damage(int sqlite_code)
{
	return (sqlite_code & 0xff) == SQLITE_CORRUPT || (sqlite_code & 0xff) == SQLITE_NOTADB;
}

/* Logs and translates. */
static int failed(struct state *s, const char *what, int sqlite_code)
{
	log_error("state: %s/state.db: %s: %s", s->dir, what, sqlite3_errmsg(s->db));
	if (is_damage(sqlite_code) && !s->is_damaged)
		log_error("state: %s/state.db is damaged: the next start sets it aside", s->dir);
	s->is_damaged |= is_damage(sqlite_code);
	return error_of(sqlite_code);
}

static void statement_end(sqlite3_stmt **statement)
{
	(void)sqlite3_finalize(*statement); /* repeats the error of the step, which was looked at there */
	*statement = NULL;
}

#define STATEMENT CLEANUP(statement_end) sqlite3_stmt *

static int prepare(struct state *s, const char *sql, sqlite3_stmt **ret)
{
	int e = sqlite3_prepare_v2(s->db, sql, -1, ret, NULL);

	return e == SQLITE_OK ? 0 : failed(s, "prepare", e);
}

/* For a statement that gives no rows. e: how the binding went. */
static int run(struct state *s, sqlite3_stmt *statement, int e)
{
	if (e == SQLITE_OK)
		e = sqlite3_step(statement);
	(void)sqlite3_reset(statement);
	return e == SQLITE_DONE || e == SQLITE_ROW ? 0 : failed(s, "write", e);
}

static int run_text(struct state *s, const char *sql)
{
	int e = sqlite3_exec(s->db, sql, NULL, NULL, NULL);

	return e == SQLITE_OK ? 0 : failed(s, sql, e);
}

/* Texts stay the caller's until the statement has run. The first failure of a run of binds is what *e keeps. */
static void bind_text(sqlite3_stmt *statement, int at, const char *text, int *e)
{
	int r = text ? sqlite3_bind_text(statement, at, text, -1, SQLITE_STATIC) : sqlite3_bind_null(statement, at);

	if (*e == SQLITE_OK)
		*e = r;
}

static void bind_number(sqlite3_stmt *statement, int at, int64_t n, int *e)
{
	int r = sqlite3_bind_int64(statement, at, n);

	if (*e == SQLITE_OK)
		*e = r;
}

/* NULL is a text, too. False: no memory. */
static bool copy_column(sqlite3_stmt *statement, int at, char **ret)
{
	bool is_null = sqlite3_column_type(statement, at) == SQLITE_NULL;
	const char *text = is_null ? NULL : (const char *)sqlite3_column_text(statement, at);

	*ret = text ? strdup(text) : NULL;
	return *ret || is_null;
}

/* Undone unless transaction_end() was reached. Its function takes the lock before it declares one, so that the lock
 * ends last. */
struct transaction {
	struct state *state;
};

static int transaction_begin(struct state *s, struct transaction *ret)
{
	int r = run_text(s, "BEGIN IMMEDIATE");

	if (r == 0)
		ret->state = s;
	return r;
}

static int transaction_end(struct transaction *t)
{
	int r = run_text(t->state, "COMMIT");

	if (r == 0)
		t->state = NULL;
	return r;
}

static void transaction_release(struct transaction *t)
{
	if (t->state)
		(void)sqlite3_exec(t->state->db, "ROLLBACK", NULL, NULL, NULL); /* the failure before it was told */
	t->state = NULL;
}

/* ---- the database ------------------------------------------------------------------------------------------ */

static const char schema[] =
	"CREATE TABLE fact(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE session(id TEXT PRIMARY KEY, ino INTEGER NOT NULL, name TEXT NOT NULL, server_name TEXT NOT NULL,"
	" template_id TEXT, workspace_id TEXT, status TEXT, formats TEXT, created_ms INTEGER NOT NULL,"
	" updated_ms INTEGER NOT NULL, origin INTEGER NOT NULL, is_forgotten INTEGER NOT NULL);"
	"CREATE TABLE session_seen(account TEXT, session_id TEXT, PRIMARY KEY(account, session_id)) WITHOUT ROWID;"
	"CREATE TABLE alias(name TEXT PRIMARY KEY, session_id TEXT NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE entry(ino INTEGER PRIMARY KEY, session_id TEXT NOT NULL, name TEXT NOT NULL, document_id TEXT,"
	" mtime_ns INTEGER NOT NULL, attached_wall_ms INTEGER NOT NULL, was_there_before INTEGER NOT NULL,"
	" is_gone INTEGER NOT NULL, learned_bytes INTEGER NOT NULL);"
	"CREATE UNIQUE INDEX entry_name ON entry(session_id, name);";

/* One number, or what SQLite says against it. */
static int ask_number(sqlite3 *db, const char *sql, int64_t *ret)
{
	STATEMENT statement = NULL;
	int e = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);

	if (e != SQLITE_OK)
		return e;
	e = sqlite3_step(statement);
	if (e != SQLITE_ROW)
		return e == SQLITE_DONE ? SQLITE_CORRUPT : e;
	*ret = sqlite3_column_int64(statement, 0);
	return SQLITE_OK;
}

/* What quick_check says, as an SQLite code. A page that could not be had, for want of memory or by a disk that refuses
 * for the moment, is no damage: the file would be set aside with all that waits in it. */
static int verdict_read(const char *verdict)
{
	static const char refused[] = "unable to get the page. error code=";
	const char *code = strstr(verdict, refused);

	if (strcmp(verdict, "ok") == 0)
		return SQLITE_OK;
	if (code && !is_damage((int)strtol(code + sizeof(refused) - 1, NULL, 10)))
		return SQLITE_IOERR;
	return strstr(verdict, "failed to get page") ? SQLITE_IOERR : SQLITE_CORRUPT;
}

static int look_through(sqlite3 *db)
{
	STATEMENT statement = NULL;
	int e = sqlite3_prepare_v2(db, "PRAGMA quick_check(1)", -1, &statement, NULL);

	if (e != SQLITE_OK)
		return e;
	e = sqlite3_step(statement);
	if (e != SQLITE_ROW)
		return e == SQLITE_DONE ? SQLITE_CORRUPT : e;
	const char *verdict = (const char *)sqlite3_column_text(statement, 0);
	return verdict ? verdict_read(verdict) : SQLITE_NOMEM;
}

/* Opens the file and brings it to the present schema; an SQLite code. */
static int connect_to(sqlite3 **db, const char *path, bool is_reader, bool is_distrusted, int64_t ino_first,
		      struct buf *why)
{
	int64_t version = 0, tables = 0;
	int flags = is_reader ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
	int e = sqlite3_open_v2(path, db, flags | SQLITE_OPEN_NOMUTEX, NULL);

	if (e != SQLITE_OK)
		return e;
	(void)sqlite3_extended_result_codes(*db, 1);
	(void)sqlite3_busy_timeout(*db, BUSY_WAIT_MS);
	e = ask_number(*db,
		       "SELECT count(*) FROM sqlite_master WHERE name IN ('fact', 'session', 'session_seen', 'alias', "
		       "'entry')",
		       &tables);
	if (e == SQLITE_OK)
		e = ask_number(*db, "PRAGMA user_version", &version);
	if (e != SQLITE_OK)
		return e;
	if (version > SCHEMA_VERSION) {
		buf_addf(why, "%s was written by a newer sessionfs", path);
		return SQLITE_MISUSE;
	}
	if (version == SCHEMA_VERSION && tables != 5)
		return SQLITE_CORRUPT;
	if (is_reader)
		return version == SCHEMA_VERSION ? SQLITE_OK : SQLITE_CANTOPEN;
	e = sqlite3_exec(*db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", NULL, NULL, NULL);
	if (e == SQLITE_OK && is_distrusted)
		e = look_through(*db);
	if (e != SQLITE_OK || version == SCHEMA_VERSION)
		return e;
	char first[160];
	(void)snprintf(first, sizeof(first),
		       "INSERT INTO fact VALUES('next ino', '%lld'); PRAGMA user_version=%d; COMMIT",
		       (long long)ino_first, SCHEMA_VERSION);
	e = sqlite3_exec(*db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
	if (e == SQLITE_OK)
		e = sqlite3_exec(*db, schema, NULL, NULL, NULL);
	if (e == SQLITE_OK)
		e = sqlite3_exec(*db, first, NULL, NULL, NULL);
	return e;
}

/* The database and what SQLite keeps beside it, out of the way and not lost. */
static int set_aside(const char *path, const char *reason)
{
	static const char *const tails[] = { "", "-wal", "-shm" };
	int64_t now_ms = clock_wall_ms();
	int r = 0;

	for (int i = 0; i < 3; i++) {
		char from[PATH_BYTES_MAX], to[PATH_BYTES_MAX];
		if (snprintf(from, sizeof(from), "%s%s", path, tails[i]) >= (int)sizeof(from) ||
		    snprintf(to, sizeof(to), "%s.damaged-%lld%s", path, (long long)now_ms, tails[i]) >= (int)sizeof(to))
			return -ENAMETOOLONG;
		if (rename(from, to) < 0 && errno != ENOENT)
			r = -errno;
	}
	log_error("state: %s could not be read (%s): set aside as state.db.damaged-%lld, and a new one begun", path,
		  reason, (long long)now_ms);
	return r;
}

/* Where numbers begin in a new database. In a folder that had one, above whatever that can have given out: it gave no
 * more than 65,536 a second since 1970. */
static int64_t first_ino(const char *dir, bool is_after_damage)
{
	char spool[PATH_BYTES_MAX];
	struct stat st;

	(void)snprintf(spool, sizeof(spool), "%s/spool", dir);
	if (is_after_damage || lstat(spool, &st) == 0)
		return (clock_wall_ms() / 1000) << 16;
	return INO_FIRST;
}

static int open_database(struct state *s, bool is_reader, bool is_distrusted, struct buf *why)
{
	char path[PATH_BYTES_MAX];

	if (snprintf(path, sizeof(path), "%s/state.db", s->dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	if (is_reader && access(path, F_OK) < 0)
		return -errno;
	int e = connect_to(&s->db, path, is_reader, is_distrusted, first_ino(s->dir, false), why);
	if (is_damage(e) && !is_reader) {
		char reason[200];
		(void)snprintf(reason, sizeof(reason), "%s", sqlite3_errstr(e));
		(void)sqlite3_close(s->db);
		s->db = NULL;
		int r = set_aside(path, reason);
		if (r < 0) {
			buf_addf(why, "%s is damaged and cannot be moved aside: %s", path, strerror(-r));
			return r;
		}
		e = connect_to(&s->db, path, false, false, first_ino(s->dir, true), why);
	}
	if (e == SQLITE_OK)
		return 0;
	if (why->len == 0)
		buf_addf(why, "%s cannot be used: %s", path, s->db ? sqlite3_errmsg(s->db) : sqlite3_errstr(e));
	return e == SQLITE_MISUSE ? -EINVAL : error_of(e);
}

/* ---- the lock ---------------------------------------------------------------------------------------------- */

/* Makes the folder and those above it, ours alone. */
static int make_folder(const char *dir)
{
	char path[PATH_BYTES_MAX];
	size_t len = strlen(dir);

	if (len == 0 || dir[0] != '/')
		return -EINVAL;
	if (len >= sizeof(path))
		return -ENAMETOOLONG;
	memcpy(path, dir, len + 1);
	for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		if (mkdir(path, 0700) < 0 && errno != EEXIST)
			return -errno;
		*slash = '/';
	}
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return -errno;
	struct stat st;
	if (stat(path, &st) < 0)
		return -errno;
	return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

static int try_lock(int fd)
{
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	return fcntl(fd, F_OFD_SETLK, &whole) == 0 ? 0 : -errno;
}

struct lock_text {
	pid_t pid;   /* 0: unknown */
	char *owner; /* a mount point; owned */
	bool is_draining;
};

static void lock_text_release(struct lock_text *t)
{
	free(t->owner);
	*t = (struct lock_text){ 0 };
}

/* "PID\nMOUNTPOINT\n[draining\n]" */
static int read_lock_text(int fd, struct lock_text *ret)
{
	char text[LOCK_TEXT_BYTES_MAX + 1];
	ssize_t len = pread(fd, text, sizeof(text) - 1, 0);

	if (len < 0)
		return -errno;
	text[len] = '\0';
	char *rest = text;
	char *pid = strsep(&rest, "\n"), *owner = strsep(&rest, "\n"), *word = strsep(&rest, "\n");
	char *end = NULL;
	long number = strtol(pid, &end, 10);
	*ret = (struct lock_text){
		.pid = *end == '\0' && number > 1 ? (pid_t)number : 0,
		.owner = owner && *owner ? strdup(owner) : NULL,
		.is_draining = word && strcmp(word, "draining") == 0,
	};
	return len > 0;
}

static int write_lock_text(struct state *s, bool is_draining)
{
	CLEANUP(buf_release) struct buf text = BUF(LOCK_TEXT_BYTES_MAX);

	buf_addf(&text, "%ld\n%s\n%s", (long)getpid(), s->owner, is_draining ? "draining\n" : "");
	if (!buf_text(&text))
		return -ENOMEM;
	if (pwrite(s->lock_fd, text.data, text.len, 0) != (ssize_t)text.len)
		return errno ? -errno : -EIO;
	return ftruncate(s->lock_fd, (off_t)text.len) < 0 ? -errno : 0;
}

/* Is something mounted there still? Asks the kernel's list and not the mount point, which may not answer. */
static bool is_mounted(const char *mountpoint)
{
	FILE *list = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t room = 0;
	bool found = false;

	if (!list)
		return true; /* not known: then it counts as in use */
	while (!found && getline(&line, &room, list) >= 0) {
		char *rest = line;
		for (int i = 0; i < 4; i++)
			(void)strsep(&rest, " ");
		char *where = strsep(&rest, " ");
		found = where &&
			strcmp(where, mountpoint) == 0; /* an escaped blank makes it unequal: then it waits a little */
	}
	free(line);
	(void)fclose(list);
	return found;
}

static int say_who(const char *dir, const struct lock_text *t, struct buf *why)
{
	buf_addf(why, "%s is in use", t->owner ? t->owner : dir);
	if (t->pid)
		buf_addf(why, " by process %ld", (long)t->pid);
	if (t->is_draining)
		buf_add(why, ", which still finishes its uploads");
	return -EBUSY;
}

/* *ret_is_distrusted: the last owner did not end properly. */
static int take_lock(struct state *s, int64_t wait_ms, struct buf *why, bool *ret_is_distrusted)
{
	char path[PATH_BYTES_MAX];
	int64_t begun_ms = clock_now_ms();
	pid_t asked = 0;

	if (snprintf(path, sizeof(path), "%s/lock", s->dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->lock_fd < 0) {
		buf_addf(why, "%s cannot be opened: %s", path, strerror(errno));
		return -errno;
	}
	for (;;) {
		CLEANUP(lock_text_release) struct lock_text text = { 0 };
		int r = try_lock(s->lock_fd);
		int had_text = read_lock_text(s->lock_fd, &text);
		if (r == 0) {
			*ret_is_distrusted = had_text != 0;
			r = write_lock_text(s, false);
			if (r < 0)
				buf_addf(why, "%s cannot be written: %s", path, strerror(-r));
			return r;
		}
		if (r != -EAGAIN && r != -EACCES) {
			buf_addf(why, "%s cannot be locked: %s", path, strerror(-r));
			return r;
		}
		int64_t waited_ms = clock_now_ms() - begun_ms;
		bool is_going = text.is_draining || !text.owner || !is_mounted(text.owner);
		if (waited_ms >= wait_ms || !is_going || (!text.is_draining && waited_ms >= ENDING_GRACE_MS))
			return say_who(s->dir, &text, why);
		if (text.is_draining && text.pid > 0 && text.pid != getpid() && text.pid != asked) {
			/* The lock is held, so its owner lives and the number is its own. */
			asked = text.pid;
			log_info("state: process %ld still finishes its uploads for %s: asked it to stop", (long)asked,
				 text.owner ? text.owner : s->dir);
			(void)kill(asked, SIGTERM); /* gone meanwhile is as good */
		}
		(void)usleep(LOCK_POLL_MS * 1000);
	}
}

int state_read_owner(const char *dir, char **ret_owner)
{
	CLEANUP(lock_text_release) struct lock_text text = { 0 };
	char path[PATH_BYTES_MAX];

	if (snprintf(path, sizeof(path), "%s/lock", dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	CLEANUP(fd_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -errno;
	int r = read_lock_text(fd, &text);
	if (r < 0)
		return r;
	if (!text.owner || !text.pid || kill(text.pid, 0) < 0)
		return -ENOENT;
	*ret_owner = text.owner;
	text.owner = NULL;
	return 0;
}

int state_renew_owner(struct state *s)
{
	return write_lock_text(s, false);
}

void state_set_draining(struct state *s)
{
	if (s->lock_fd >= 0 && write_lock_text(s, true) < 0)
		log_warning("state: %s/lock cannot be written; a new mount will not know that this one is ending",
			    s->dir);
}

/* ---- opening and closing ----------------------------------------------------------------------------------- */

static void state_release(struct state **s)
{
	state_close(*s);
}

static struct state *state_new(const char *dir, const char *owner)
{
	struct state *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->lock_fd = -1;
	(void)pthread_mutex_init(&s->lock, NULL); /* these cannot fail on Linux */
	(void)pthread_mutex_init(&s->ino_lock, NULL);
	s->dir = strdup(dir);
	s->owner = strdup(owner ? owner : "");
	if (!s->dir || !s->owner) {
		state_close(s);
		return NULL;
	}
	return s;
}

int state_open(const char *dir, const char *owner, int64_t wait_ms, struct buf *why, struct state **ret)
{
	bool is_distrusted = false;
	int r = make_folder(dir);

	if (r < 0) {
		buf_addf(why, "the state folder %s cannot be made: %s", dir, strerror(-r));
		return r;
	}
	CLEANUP(state_release) struct state *s = state_new(dir, owner);
	if (!s)
		return -ENOMEM;
	r = take_lock(s, wait_ms, why, &is_distrusted);
	if (r < 0)
		return r;
	r = open_database(s, false, is_distrusted, why);
	if (r < 0)
		return r;
	*ret = s;
	s = NULL;
	return 0;
}

int state_open_beside(const char *dir, struct buf *why, struct state **ret)
{
	CLEANUP(state_release) struct state *s = state_new(dir, NULL);

	if (!s)
		return -ENOMEM;
	int r = open_database(s, true, false, why);
	if (r < 0)
		return r;
	*ret = s;
	s = NULL;
	return 0;
}

void state_close(struct state *s)
{
	if (!s)
		return;
	bool is_sound = s->db && sqlite3_close(s->db) == SQLITE_OK && !s->is_damaged;
	if (s->lock_fd >= 0) {
		if (is_sound)
			(void)!ftruncate(s->lock_fd, 0); /* else the next one looks through the database, no more */
		(void)close(s->lock_fd);
	}
	(void)pthread_mutex_destroy(&s->lock);
	(void)pthread_mutex_destroy(&s->ino_lock);
	free(s->dir);
	free(s->owner);
	free(s);
}

const char *state_dir(const struct state *s)
{
	return s->dir;
}

/* ---- inode numbers ----------------------------------------------------------------------------------------- */

/* Sets a block of numbers apart, on disk before the first of them is used. */
static int reserve_block(struct state *s)
{
	SCOPED_LOCK(&s->lock);
	CLEANUP(transaction_release) struct transaction t = { 0 };
	STATEMENT statement = NULL;
	int64_t next = 0;

	int r = transaction_begin(s, &t);
	if (r < 0)
		return r;
	int e = ask_number(s->db, "SELECT value FROM fact WHERE key = 'next ino'", &next);
	if (e != SQLITE_OK)
		return failed(s, "next ino", e);
	if (next < INO_FIRST) {
		log_error("state: %s/state.db: the next inode number makes no sense", s->dir);
		return -EIO;
	}
	r = prepare(s, "UPDATE fact SET value = ? WHERE key = 'next ino'", &statement);
	if (r < 0)
		return r;
	bind_number(statement, 1, next + INO_BLOCK, &e);
	r = run(s, statement, e);
	if (r == 0)
		r = transaction_end(&t);
	if (r < 0)
		return r;
	s->ino_next = (uint64_t)next;
	s->ino_end = (uint64_t)next + INO_BLOCK;
	return 0;
}

uint64_t state_next_ino(struct state *s)
{
	SCOPED_LOCK(&s->ino_lock);
	if (s->ino_next == s->ino_end && reserve_block(s) < 0)
		return 0;
	return s->ino_next++;
}

/* ---- sessions ---------------------------------------------------------------------------------------------- */

struct known_session known_session_of(const struct session *s, uint64_t ino, const char *name,
				      enum session_origin origin)
{
	return (struct known_session){ .id = s->id,
				       .ino = ino,
				       .name = (char *)name,
				       .server_name = s->name,
				       .template_id = s->template_id,
				       .workspace_id = s->workspace_id,
				       .status = s->status,
				       .formats = s->formats,
				       .created_ms = s->created_ms,
				       .updated_ms = s->updated_ms,
				       .origin = origin,
				       .account_saw_it = true,
				       .is_forgotten = origin == ORIGIN_LOOKED_UP };
}

void known_session_release(struct known_session *k)
{
	if (!k)
		return;
	free(k->id);
	free(k->name);
	free(k->server_name);
	free(k->template_id);
	free(k->workspace_id);
	free(k->status);
	free(k->formats);
	*k = (struct known_session){ 0 };
}

struct session_array {
	struct known_session *items;
	int count;
};

static void session_array_release(struct session_array *a)
{
	for (int i = 0; i < a->count; i++)
		known_session_release(&a->items[i]);
	free(a->items);
	*a = (struct session_array){ 0 };
}

static int read_session(sqlite3_stmt *row, struct known_session *ret)
{
	*ret = (struct known_session){
		.ino = (uint64_t)sqlite3_column_int64(row, 1),
		.created_ms = sqlite3_column_int64(row, 8),
		.updated_ms = sqlite3_column_int64(row, 9),
		.origin = (enum session_origin)sqlite3_column_int(row, 10),
		.is_forgotten = sqlite3_column_int(row, 11) != 0,
		.account_saw_it = sqlite3_column_int(row, 12) != 0,
	};
	if (copy_column(row, 0, &ret->id) && copy_column(row, 2, &ret->name) &&
	    copy_column(row, 3, &ret->server_name) && copy_column(row, 4, &ret->template_id) &&
	    copy_column(row, 5, &ret->workspace_id) && copy_column(row, 6, &ret->status) &&
	    copy_column(row, 7, &ret->formats))
		return 0;
	known_session_release(ret);
	return -ENOMEM;
}

int state_load_sessions(struct state *s, const char *account, struct known_session **ret, int *ret_count)
{
	SCOPED_LOCK(&s->lock);
	CLEANUP(session_array_release) struct session_array found = { 0 };
	STATEMENT statement = NULL;
	int e = SQLITE_OK;

	int r = prepare(
		s,
		"SELECT id, ino, name, server_name, template_id, workspace_id, status, formats, created_ms, updated_ms,"
		" origin, is_forgotten, EXISTS(SELECT 1 FROM session_seen WHERE account = ? AND session_id = "
		"session.id)"
		" FROM session ORDER BY ino",
		&statement);
	if (r < 0)
		return r;
	bind_text(statement, 1, account, &e);
	while (e == SQLITE_OK && (e = sqlite3_step(statement)) == SQLITE_ROW) {
		e = SQLITE_OK;
		if (found.count % 64 == 0) {
			struct known_session *more =
				realloc(found.items, ((size_t)found.count + 64) * sizeof(*found.items));
			if (!more)
				return -ENOMEM;
			found.items = more;
		}
		r = read_session(statement, &found.items[found.count]);
		if (r < 0)
			return r;
		found.count++;
	}
	if (e != SQLITE_DONE)
		return failed(s, "sessions", e);
	*ret = found.items;
	*ret_count = found.count;
	found = (struct session_array){ 0 };
	return 0;
}

int state_save_session(struct state *s, const char *account, const struct known_session *k)
{
	SCOPED_LOCK(&s->lock);
	CLEANUP(transaction_release) struct transaction t = { 0 };
	int e = SQLITE_OK;
	STATEMENT statement = NULL;
	STATEMENT seen = NULL;

	int r = transaction_begin(s, &t);
	if (r < 0)
		return r;
	r = prepare(s, "INSERT OR REPLACE INTO session VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", &statement);
	if (r < 0)
		return r;
	bind_text(statement, 1, k->id, &e);
	bind_number(statement, 2, (int64_t)k->ino, &e);
	bind_text(statement, 3, k->name, &e);
	bind_text(statement, 4, k->server_name ? k->server_name : "", &e);
	bind_text(statement, 5, k->template_id, &e);
	bind_text(statement, 6, k->workspace_id, &e);
	bind_text(statement, 7, k->status, &e);
	bind_text(statement, 8, k->formats, &e);
	bind_number(statement, 9, k->created_ms, &e);
	bind_number(statement, 10, k->updated_ms, &e);
	bind_number(statement, 11, (int)k->origin, &e);
	bind_number(statement, 12, k->is_forgotten, &e);
	r = run(s, statement, e);
	if (r < 0)
		return r;
	r = prepare(s,
		    k->account_saw_it ? "INSERT OR IGNORE INTO session_seen VALUES(?, ?)"
				      : "DELETE FROM session_seen WHERE account = ? AND session_id = ?",
		    &seen);
	if (r < 0)
		return r;
	bind_text(seen, 1, account, &e);
	bind_text(seen, 2, k->id, &e);
	r = run(s, seen, e);
	return r < 0 ? r : transaction_end(&t);
}

int state_save_alias(struct state *s, const char *session_id, const char *name)
{
	SCOPED_LOCK(&s->lock);
	int e = SQLITE_OK;
	STATEMENT statement = NULL;

	int r = prepare(s, "INSERT OR REPLACE INTO alias VALUES(?, ?)", &statement);
	if (r < 0)
		return r;
	bind_text(statement, 1, name, &e);
	bind_text(statement, 2, session_id, &e);
	return run(s, statement, e);
}

/* The one text a statement finds for `key`. */
static int find_text(struct state *s, const char *sql, const char *key, char **ret)
{
	SCOPED_LOCK(&s->lock);
	STATEMENT statement = NULL;
	int e = SQLITE_OK;

	int r = prepare(s, sql, &statement);
	if (r < 0)
		return r;
	bind_text(statement, 1, key, &e);
	if (e == SQLITE_OK)
		e = sqlite3_step(statement);
	if (e == SQLITE_DONE)
		return -ENOENT;
	if (e != SQLITE_ROW)
		return failed(s, "read", e);
	char *text = NULL;
	if (!copy_column(statement, 0, &text) || !text)
		return -ENOMEM;
	*ret = text;
	return 0;
}

int state_find_alias(struct state *s, const char *name, char **ret_session_id)
{
	return find_text(s, "SELECT session_id FROM alias WHERE name = ?", name, ret_session_id);
}

/* ---- entries ----------------------------------------------------------------------------------------------- */

int state_load_entries(struct state *s, const char *session_id, void (*each)(void *arg, const struct known_entry *e),
		       void *arg)
{
	SCOPED_LOCK(&s->lock);
	STATEMENT statement = NULL;
	int e = SQLITE_OK;

	int r = prepare(s,
			"SELECT ino, name, document_id, mtime_ns, attached_wall_ms, was_there_before, is_gone,"
			" learned_bytes FROM entry"
			" WHERE session_id = ? ORDER BY ino",
			&statement);
	if (r < 0)
		return r;
	bind_text(statement, 1, session_id, &e);
	while (e == SQLITE_OK && (e = sqlite3_step(statement)) == SQLITE_ROW) {
		e = SQLITE_OK;
		bool is_local = sqlite3_column_type(statement, 2) == SQLITE_NULL;
		struct known_entry entry = {
			.ino = (uint64_t)sqlite3_column_int64(statement, 0),
			.name = (const char *)sqlite3_column_text(statement, 1),
			.document_id = (const char *)sqlite3_column_text(statement, 2),
			.mtime_ns = sqlite3_column_int64(statement, 3),
			.attached_wall_ms = sqlite3_column_int64(statement, 4),
			.was_there_before = sqlite3_column_int(statement, 5) != 0,
			.is_gone = sqlite3_column_int(statement, 6) != 0,
			.learned_bytes = sqlite3_column_int64(statement, 7),
		};
		if (!entry.name || (!entry.document_id && !is_local))
			return -ENOMEM;
		each(arg, &entry);
	}
	return e == SQLITE_DONE ? 0 : failed(s, "entries", e);
}

enum { LARGE_COUNT = 1000 };

/* The wall clock serves: no other change of the same entries has that nanosecond, also in a database begun anew. */
static int set_mark(struct state *s, const char *session_id, const struct state_mark *mark)
{
	char fresh[24], before[24], after[24];
	int e = SQLITE_OK;
	STATEMENT statement = NULL;

	(void)snprintf(fresh, sizeof(fresh), "%" PRId64, clock_wall_ns());
	(void)snprintf(before, sizeof(before), "%" PRId64, mark ? mark->before : 0);
	(void)snprintf(after, sizeof(after), "%" PRId64, mark ? mark->after : 0);
	int r = prepare(s,
			"INSERT INTO fact VALUES('shown:' || ?1, ?2)"
			" ON CONFLICT(key) DO UPDATE SET value = CASE WHEN value = ?3 THEN ?2 ELSE ?4 END",
			&statement);
	if (r < 0)
		return r;
	bind_text(statement, 1, session_id, &e);
	bind_text(statement, 2, mark ? after : fresh, &e);
	bind_text(statement, 3, before, &e);
	bind_text(statement, 4, fresh, &e);
	return run(s, statement, e);
}

int64_t state_mark(struct state *s, const char *session_id)
{
	CLEANUP(buf_release) struct buf key = BUF(1024);
	CLEANUP(text_release) char *value = NULL;

	buf_addf(&key, "shown:%s", session_id);
	if (!buf_text(&key) || find_text(s, "SELECT value FROM fact WHERE key = ?", buf_text(&key), &value) < 0)
		return 0;
	return strtoll(value, NULL, 10);
}

int state_save_entries(struct state *s, const char *session_id, const struct known_entry *entries, int count,
		       const struct state_mark *mark)
{
	SCOPED_LOCK(&s->lock);
	CLEANUP(transaction_release) struct transaction t = { 0 };
	int e = SQLITE_OK;
	STATEMENT statement = NULL;
	STATEMENT taken = NULL;
	STATEMENT marking = NULL;
	char fresh[24];

	if (count == 0)
		return 0;
	(void)snprintf(fresh, sizeof(fresh), "%" PRId64, clock_wall_ns());
	int r = transaction_begin(s, &t);
	if (r == 0)
		r = prepare(s, "DELETE FROM entry WHERE session_id = ? AND name = ? AND ino <> ?", &taken);
	if (r == 0)
		r = prepare(s, "INSERT OR REPLACE INTO entry VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", &statement);
	/* One that was moved here is no longer what its old session's mark stands for. */
	if (r == 0)
		r = prepare(s,
			    "UPDATE fact SET value = ?1 WHERE key = (SELECT 'shown:' || session_id FROM entry"
			    " WHERE ino = ?2 AND session_id <> ?3)",
			    &marking);
	for (int i = 0; r == 0 && i < count; i++) {
		bind_text(marking, 1, fresh, &e);
		bind_number(marking, 2, (int64_t)entries[i].ino, &e);
		bind_text(marking, 3, session_id, &e);
		r = run(s, marking, e);
		if (r < 0)
			break;
		bind_text(taken, 1, session_id, &e);
		bind_text(taken, 2, entries[i].name, &e);
		bind_number(taken, 3, (int64_t)entries[i].ino, &e);
		r = run(s, taken, e);
		if (r < 0)
			break;
		bind_number(statement, 1, (int64_t)entries[i].ino, &e);
		bind_text(statement, 2, session_id, &e);
		bind_text(statement, 3, entries[i].name, &e);
		bind_text(statement, 4, entries[i].document_id, &e);
		bind_number(statement, 5, entries[i].mtime_ns, &e);
		bind_number(statement, 6, entries[i].attached_wall_ms, &e);
		bind_number(statement, 7, entries[i].was_there_before, &e);
		bind_number(statement, 8, entries[i].is_gone, &e);
		bind_number(statement, 9, entries[i].learned_bytes, &e);
		r = run(s, statement, e);
	}
	if (r == 0)
		r = set_mark(s, session_id, mark);
	if (r == 0)
		r = transaction_end(&t);
	if (count >= LARGE_COUNT)
		(void)sqlite3_db_release_memory(
			s->db); /* megabytes, and nobody reads them back before the next mount */
	return r;
}

int state_remove_entries(struct state *s, const uint64_t *inos, int count)
{
	SCOPED_LOCK(&s->lock);
	CLEANUP(transaction_release) struct transaction t = { 0 };
	int e = SQLITE_OK;
	STATEMENT statement = NULL;
	STATEMENT marking = NULL;
	char fresh[24];

	if (count == 0)
		return 0;
	(void)snprintf(fresh, sizeof(fresh), "%" PRId64, clock_wall_ns());
	int r = transaction_begin(s, &t);
	if (r == 0)
		r = prepare(s, "DELETE FROM entry WHERE ino = ?", &statement);
	if (r == 0)
		r = prepare(s,
			    "UPDATE fact SET value = ? WHERE key = (SELECT 'shown:' || session_id FROM entry"
			    " WHERE ino = ?)",
			    &marking);
	for (int i = 0; r == 0 && i < count; i++) {
		bind_text(marking, 1, fresh, &e);
		bind_number(marking, 2, (int64_t)inos[i], &e);
		r = run(s, marking, e);
		if (r < 0)
			break;
		bind_number(statement, 1, (int64_t)inos[i], &e);
		r = run(s, statement, e);
	}
	return r < 0 ? r : transaction_end(&t);
}

/* ---- facts ------------------------------------------------------------------------------------------------- */

/* Their own corner of the table: a caller's key cannot touch 'next ino'. */
static char *fact_key(const char *key)
{
	struct buf text = BUF(1024);

	buf_add(&text, "fact:");
	buf_add(&text, key);
	char *made = buf_take(&text);
	buf_release(&text);
	return made;
}

int state_get(struct state *s, const char *key, char **ret)
{
	CLEANUP(text_release) char *full = fact_key(key);

	return full ? find_text(s, "SELECT value FROM fact WHERE key = ?", full, ret) : -ENOMEM;
}

int state_set(struct state *s, const char *key, const char *value)
{
	SCOPED_LOCK(&s->lock);
	CLEANUP(text_release) char *full = fact_key(key);
	int e = SQLITE_OK;
	STATEMENT statement = NULL;

	if (!full)
		return -ENOMEM;
	int r = prepare(s, "INSERT OR REPLACE INTO fact VALUES(?, ?)", &statement);
	if (r < 0)
		return r;
	bind_text(statement, 1, full, &e);
	bind_text(statement, 2, value, &e);
	return run(s, statement, e);
}
