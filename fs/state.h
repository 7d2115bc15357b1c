/* What must outlive us, in SQLite under state_dir: names shown, inode numbers, writers' times, known sessions and their
 * old names; and the lock that says which process has the folder. The queue (queue.h) keeps its table in the same file.
 *
 * state.db: WAL, synchronous=FULL; a call that returned 0 has its effect after power loss. Calls may take as long as an
 * fsync: worker threads only, but for state_next_ino(). One lock inside. A database that cannot be read is set aside
 * as state.db.damaged-<time> with a log line, and a new one begun. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/base/buf.h"

struct state;

/* Makes dir (0700, parents too) and takes its lock. A process that has it and drains is asked to stop (SIGTERM) and
 * waited for, up to wait_ms. -EBUSY: somebody else has it; why names the pid and mount point. owner: our mount point,
 * kept in the lock file for the next one to name. */
int state_open(const char *dir, const char *owner, int64_t wait_ms, struct buf *why, struct state **ret);
/* The same without the lock and for reading alone (commands beside a running mount). */
int state_open_beside(const char *dir, struct buf *why, struct state **ret);
/* After daemonizing: the lock file tells the new pid. */
int state_renew_owner(struct state *s);
/* Tells the next mount that this one is draining and may be asked to stop. */
void state_set_draining(struct state *s);
void state_close(struct state *s);
/* Whose folder it is now, from the lock file; asks for no lock. The caller frees *ret_owner. -ENOENT: nobody's. */
int state_read_owner(const char *dir, char **ret_owner);
const char *state_dir(const struct state *s);

/* An inode number nothing in this state folder ever had; > 1000 (those below are fixed ones). Any thread; touches the
 * disk once in 4,096 calls. 0: the disk refused. */
uint64_t state_next_ino(struct state *s);

/* Where a session folder comes from. */
enum session_origin {
	ORIGIN_CONFIGURED,
	ORIGIN_ADDED,
	ORIGIN_CREATED,
	ORIGIN_DISCOVERED,
	ORIGIN_LISTED,
	ORIGIN_LOOKED_UP, /* by its id: reachable, not listed */
};

struct known_session {
	char *id;
	uint64_t ino;
	char *name;                                          /* as shown: safe and unique in the root */
	char *server_name;                                   /* as the service had it */
	char *template_id, *workspace_id, *status, *formats; /* may be NULL */
	int64_t created_ms, updated_ms;
	enum session_origin origin;
	bool is_forgotten;   /* rmdir or `forget`: not shown until added again */
	bool account_saw_it; /* `account` of the load listed it itself */
};
void known_session_release(struct known_session *k);
struct session;
/* What is to be saved of a session that is shown under a name: all texts borrowed. */
struct known_session known_session_of(const struct session *s, uint64_t ino, const char *name, enum session_origin origin);

/* account: secret_fingerprint() of the token. The list and each item are the caller's. */
int state_load_sessions(struct state *s, const char *account, struct known_session **ret, int *ret_count);
/* Inserts or replaces by id; account_saw_it is kept per account. */
int state_save_session(struct state *s, const char *account, const struct known_session *k);
/* The name it had before, for the unlisted alias. Of an alias two sessions had, the later one has it. */
int state_save_alias(struct state *s, const char *session_id, const char *name);
/* The session an old name belongs to, or -ENOENT. The caller frees it. */
int state_find_alias(struct state *s, const char *name, char **ret_session_id);

/* A name shown in a session's folder. */
struct known_entry {
	uint64_t ino;
	const char *name;
	const char *document_id;  /* NULL: local, its bytes stand in the queue's table */
	int64_t mtime_ns;         /* the writer's; -1: the service's created_at */
	int64_t attached_wall_ms; /* when this mount attached it; 0: it did not */
	bool was_there_before;    /* the document was in the session before this mount's upload began */
	int64_t learned_bytes;    /* the size, where the service tells none and the bytes were seen; 0: not yet */
	bool is_gone;             /* no longer shown, the name stays the document's */
};
/* `each` is called with borrowed texts, in the order of ino; it must not call state_*(). */
int state_load_entries(struct state *s, const char *session_id, void (*each)(void *arg, const struct known_entry *e),
		       void *arg);
/* A number for a session's entries as they are: another one after each change of them. 0: none, or it can't be had. */
int64_t state_mark(struct state *s, const char *session_id);
struct state_mark {
	int64_t before, after;
};
/* Inserts or replaces by ino, all in one transaction; a (session, name) that another ino had is taken over. mark: what state_mark() is then, if
 * it still was mark->before; NULL: whatever it will be. */
int state_save_entries(struct state *s, const char *session_id, const struct known_entry *entries, int count,
		       const struct state_mark *mark);
int state_remove_entries(struct state *s, const uint64_t *inos, int count);

/* Small facts by name ("discovered at", "naming"). -ENOENT. The caller frees. */
int state_get(struct state *s, const char *key, char **ret);
int state_set(struct state *s, const char *key, const char *value);
