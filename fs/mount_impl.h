/* The inside of a mount, for the files that make it up: folder.c (listings), sessions.c (which folders there are), local.c (files on their
 * way), call.c (mkdir, link, unlink, rename), read.c (bytes), attr.c (stat and xattrs), control.c (.sessionfs), ops.c (the kernel's side),
 * mount.c. */
#pragma once

#include "cache/content.h"
#include "fs/mount.h"
#include "fs/name.h"
#include "fs/node.h"
#include "fs/upload.h"

/* How long whom may wait (milliseconds). The kernel holds a folder's lock through the last two kinds. */
#define WAIT_REFRESH_MS 2000
#define WAIT_COLD_MS 5000
#define WAIT_READDIR_MS 2000
#define WAIT_PAGE_MS (5 * 60 * 1000)
#define WAIT_RENAME_MS 15000
#define WAIT_LOCKED_MS 10000
#define WAIT_READ_MS 120000

/* What the kernel may remember of an entry at rest; changes are pushed. */
#define REST_TIMEOUT_S 3600.0

struct mount {
	/* Set once, before threads. */
	const struct options *options;
	struct backend *backend;
	const struct backend_caps *caps;
	struct state *state;
	struct queue *queue;
	struct uploads *uploads;
	struct content *content;
	struct name_rules *rules;
	char account[65];
	char *spool_dir;
	mode_t umask;
	struct park *park;
	struct pool *flights; /* listings */
	struct pool *calls;   /* mkdir, link, unlink, rename, sessions */
	struct pool *fetches; /* documents' bytes */
	struct pool *learner; /* sizes */
	struct pool *disk;    /* fsync, hashing, SQLite */
	struct pool *notices; /* to the kernel */
	struct fuse_session *fuse;
	int64_t started_wall_ms;

	/* A local file's row in the queue, what the engine has of it and local->is_submitted change together under this one; taken before tree.lock
	 * and held while the disk is waited for: worker threads. */
	pthread_mutex_t rows_lock;
	pthread_mutex_t fill_lock; /* one copy at a time gets its bytes; the same */

	struct tree tree;

	/* Under tree.lock. */
	struct fetch *fetching;      /* documents on their way into the content cache */
	char *template_id;           /* of template=, once looked up */
	bool is_learning;            /* a job of learner goes through the folders */
	bool removal_explained;      /* the log said how to allow it */
	bool is_verified;
	int verify_error;
	bool is_ending;
	bool is_served;              /* the kernel can be notified */
	bool sessions_asked;         /* at least once since the start */
	bool sessions_refreshing;
	int names_asked;             /* how many sessions' records are being asked for, that nobody waits for */
	bool sessions_lack_some; /* one of the configuration is not there, or could not be asked for */
	int64_t sessions_refreshed_ms;
	struct wait_list session_waiters;
	int64_t poll_planned_ms;      /* when folders_poll_later()'s timer ends; 0: it has none */
	char *refused_text;          /* Not uploaded/refused.txt */
	int64_t refused_wall_ms;
	struct detaching *detaching; /* documents that are being detached */

	void (*verified)(void *arg, int error, const char *sentence);
	void *verified_arg;

	pthread_mutex_t handles_lock; /* guards what follows; taken after tree.lock */
	struct handle *handles;       /* all that are open: the kernel may not come to release them */
};

/* ---- folder.c ---------------------------------------------------------------------------------------------- */

enum freshness { LISTING_FRESH, LISTING_STALE, LISTING_COLD, LISTING_REFUSED };
/* tree.lock held. since_ms: a refresh that ended since then is fresh enough, whatever the ttl; 0: none is. *ret_error for
 * LISTING_REFUSED. */
enum freshness folder_freshness(struct mount *m, struct folder *f, int64_t since_ms, int *ret_error);
/* Nothing is known of what it lists because nobody could ask yet: our own limiter's line, or a 429. tree.lock held. */
bool folder_lacks_budget(const struct folder *f);
/* Sees to it that folders in use, or with documents under way, are asked about from time to time. tree.lock held. */
void folders_poll_later(struct mount *m);
/* Puts to rest all that may, giving others the lock now and then. tree.lock not held. */
void folders_settle(struct mount *m);
/* What is known of it is old from now on, and so is what a refresh under way brings. tree.lock held. */
void folder_age(struct folder *f);
/* Begins a refresh unless one is under way. tree.lock held. */
void folder_refresh(struct mount *m, struct folder *f, enum urgency urgency);
/* The session is gone: its folder leaves, unless something waits for it. tree.lock held. */
void folder_leave(struct mount *m, struct folder *f);
/* The state has its name and what else is to be kept of it. Worker threads, tree.lock not held. */
void folder_save_entry(struct mount *m, struct entry *e);

/* Tells the kernel, later, on a thread of its own. tree.lock may be held. */
void notice_entry(struct mount *m, struct folder *f, const char *name); /* f NULL: the root */
void notice_inode(struct mount *m, uint64_t ino);

/* ---- sessions.c -------------------------------------------------------------------------------------------- */

/* The folder has the session's record as the service told it now, under its name of now. Worker threads, tree.lock not held. */
void folder_take_session(struct mount *m, struct folder *f, const struct session *s);
/* A new session folder under a name of its own, saved in the state (worker threads). tree.lock not held. */
int folder_add_session(struct mount *m, const struct session *session, enum session_origin origin, struct folder **ret);
/* Shows what the state remembers; at the start, before threads. */
int folders_load(struct mount *m);
/* Asks the service for the sessions that should be there: configured ones, listed or discovered ones. Worker threads. */
void folders_ask(struct mount *m);
/* Begins folders_ask() when it is time. tree.lock held. */
void folders_refresh(struct mount *m);
/* Looks a session up that no folder stands for. Worker threads. 0 and the folder's name (malloc'ed), or -errno. */
int folder_look_up_session(struct mount *m, const char *id, char **ret_name);

/* Asks for the records (the names) of a few sessions that were not asked for lately; nobody waits for it. tree.lock held. */
void folders_refresh_names(struct mount *m);

/* ---- attr.c ------------------------------------------------------------------------------------------------ */

/* tree.lock held. */
void attr_fill_entry_param(struct mount *m, struct node *n, struct fuse_entry_param *ret); /* counts no lookup */
/* One attribute of a node. 0 (ret filled) or -errno (-ENODATA). tree.lock held. */
int attr_get(struct mount *m, struct node *n, const char *name, struct buf *ret);
/* The names, each with its NUL. */
void attr_list(struct mount *m, struct node *n, struct buf *ret);

/* ---- handles ----------------------------------------------------------------------------------------------- */

/* An open file or folder; fi->fh. */
struct handle {
	struct handle *next, **back; /* in mount->handles */
	struct entry *entry;       /* held; NULL for a folder or a text */
	struct folder *folder;     /* held; a session's folder that is open; NULL: the root or one of ours */
	struct snapshot *snapshot; /* of folder; counted */
	bool was_read;             /* snapshot was begun to be handed out */
	int error;                 /* of a folder, told after the last name: the listing can't be had; of a document, told at each read */
	int64_t silent_ms;         /* clock_now_ms() when the first walk's next name began to be waited for; 0: it is not */
	uint64_t ino;              /* of a folder or text of ours */
	struct buf text;           /* of a text or of a small folder's names, made at open */
	pid_t opener;              /* thread-group id, 0: unknown */
	bool is_writer;
	bool is_append;
	bool holds_local;          /* counted in entry->local->handles */
	bool has_written;
	pthread_mutex_t lock;      /* guards fd, and a document's error */
	int fd;                    /* the document's bytes, or -1 */
};

/* The tree's lock may be held. */
struct handle *handle_new(struct mount *m);
void handle_free(struct mount *m, struct handle *h); /* tree.lock not held */

/* ---- local.c: files on their way ---------------------------------------------------------------------------- */

/* The rows of an earlier run, as entries; before threads. Their uploads begin with local_resume(). */
int local_load(struct mount *m);
void local_resume(struct mount *m);
/* struct uploads_config's two. */
void local_event(void *arg, enum upload_event event, const struct queue_item *item, struct listing *document, int error,
		 const char *words);
void local_known(void *arg, const char *session_id, const char *sha256, int64_t size_bytes, char **ret_document_id,
		 char **ret_session_id, char **ret_prior_ids);
/* The bytes are on disk and the engine has the file; its verdict wakes local->closers. Worker threads; tree.lock not held; e is
 * held by the caller. to, name: where it belongs once it is there, when that differs from where it is (a rename). 0; 1: there is nothing to send;
 * or -errno. */
int local_submit(struct mount *m, struct entry *e, struct folder *to, const char *name, bool somebody_waits, int64_t not_before_ms);
/* The same soon, on a worker. tree.lock held. */
void local_send_later(struct mount *m, struct entry *e);
/* Is it one that closing should send? tree.lock held. */
bool local_wants_sending(struct mount *m, const struct entry *e);
/* A scratch file's row is written soon, so that it survives a remount. tree.lock held. */
void local_save_later(struct mount *m, struct entry *e);
/* The same now, with its bytes synced (fsync). Worker threads; tree.lock not held. */
int local_save(struct mount *m, struct entry *e);
/* Scratch files that were last written a week ago go. How long until the next of them does. tree.lock not held. */
int64_t local_expire(struct mount *m);
/* Every local file that has no row yet gets one: the mount ends. tree.lock not held. */
void local_save_all(struct mount *m);
/* May a file of this name be made here? 0 or -errno; a refusal is said in the log and in refused.txt. tree.lock held. */
int local_check_name(struct mount *m, struct folder *f, const char *name);
/* Drops a local entry: its name, and on a worker its row and bytes. The engine must not have it any more. tree.lock held. */
void local_drop(struct mount *m, struct entry *e);
/* Removes a local file: cancels its upload, and drops it; when its last step was sent already, what comes of it is detached. Worker
 * threads; tree.lock not held; e is held by the caller. */
int local_remove(struct mount *m, struct entry *e);
/* e->local is not freed until the same number of local_unpin(). tree.lock held. */
struct local *local_pin(struct entry *e);
void local_unpin(struct entry *e, struct local *l);
/* The bytes of what is a document by now go, unless somebody has them in hand. tree.lock held. */
void local_free_if_done(struct entry *e);
/* e has no local bytes any more, whatever is open. tree.lock held. */
void local_release(struct entry *e);
/* Moves a local file to the failed folder, with why. tree.lock held. */
void local_fail(struct mount *m, struct entry *e, int error, const char *words);
/* A failed file goes back into its session's folder, as one that is to be sent when it is closed. tree.lock held. */
int local_bring_home(struct mount *m, struct entry *e);
/* Where a failed file belongs. NULL: its session has no folder any more. tree.lock held. */
struct folder *local_home(struct mount *m, const struct entry *e);
/* The failed file that was refused under this name less than a minute ago, or NULL. tree.lock held. */
struct entry *local_find_refused(struct mount *m, struct folder *f, const char *name);
/* May this mount detach the document e stands for? 0 or -EPERM (said once in the log). tree.lock held. */
int local_may_remove(struct mount *m, struct entry *e);
/* Detaches a document unless something else here stands for its id: another name, or a file under way with its bytes (sha256, NULL: not
 * known) that may end as the same document. Worker threads; tree.lock not held; f is held by the caller. */
int local_detach(struct mount *m, struct folder *f, const char *document_id, const char *sha256, int64_t deadline_ms);
/* A document that is being detached, on its caller's stack. No upload of the same bytes to its session begins meanwhile, where they would
 * become the same document: one that was faster would be undone. tree.lock held. */
struct detaching {
	struct detaching *next;
	const struct folder *folder; /* held by the caller */
	const char *sha256;          /* borrowed; NULL: not known, nothing waits */
};
void local_detach_begin(struct mount *m, struct detaching *d, const struct folder *f, const char *sha256);
void local_detach_end(struct mount *m, struct detaching *d);
/* Waits until these bytes are not being detached from the session any more. Worker threads; tree.lock not held. */
void local_detach_wait(struct mount *m, const char *session_id, const char *sha256);
/* Is another file with these bytes on its way? tree.lock held. */
bool local_has_twin(struct folder *f, const struct entry *but, const char *sha256);
/* What is known of a document's bytes, for the two above; NULL: nothing. tree.lock held. */
char *local_copy_sha256(const struct folder *f, const char *document_id);
/* Makes e stand for a document: an upload's answer, an attach. tree.lock held. */
int local_become_document(struct mount *m, struct entry *e, struct listing *document, bool was_there_before);
/* Makes e stand for document `at` of a listing, that nobody attached anew. tree.lock held. */
int local_become_known(struct mount *m, struct entry *e, struct listing *l, int at);
/* A document's entry goes to another folder, where it stands for what attaching it there gave. tree.lock held. */
int local_move_document(struct mount *m, struct entry *e, struct folder *to, const char *name, struct listing *attached, bool was_there);
/* The local bytes of an entry that is a document now go, on a worker; open handles keep them to their end. tree.lock held. */
void local_forget_bytes(struct mount *m, struct entry *e);
/* The copy made by copy_file_range gets its bytes. Worker threads; tree.lock not held. */
int local_fill_copy(struct mount *m, struct entry *e);

/* ---- write.c: the calls that change a local file -------------------------------------------------------------- */

void write_create(struct mount *m, fuse_req_t req, struct folder *f, const char *name, struct fuse_file_info *fi);
void write_open(struct mount *m, fuse_req_t req, struct entry *e, struct fuse_file_info *fi); /* for writing; e held by the request */
void write_bytes(struct mount *m, fuse_req_t req, struct handle *h, const char *bytes, size_t len, off_t offset);
void write_flush(struct mount *m, fuse_req_t req, struct handle *h);
void write_release(struct mount *m, struct handle *h);
void write_fsync(struct mount *m, fuse_req_t req, struct handle *h);
void write_setattr(struct mount *m, fuse_req_t req, struct entry *e, const struct stat *attr, int to_set);
void write_copy_range(struct mount *m, fuse_req_t req, struct handle *in, off_t in_offset, struct handle *out, off_t out_offset, size_t len);
void write_allocate(struct mount *m, fuse_req_t req, struct handle *h, int mode, off_t offset, off_t len);

/* ---- read.c: documents' bytes --------------------------------------------------------------------------------- */

struct fetch;
/* is_whole: fd has all of the document's bytes and is the callee's; else it has those that were wanted, until ready() returns. */
typedef void read_ready(fuse_req_t req, void *arg, int error, int fd, bool is_whole);
/* Takes req: calls ready() now or later, once, with the document's bytes up to offset `to` at least (INT64_MAX: all of them), or -errno. e is
 * held by the caller until then. tree.lock not held. */
void read_want(struct mount *m, fuse_req_t req, struct entry *e, int64_t to, read_ready *ready, void *arg);
/* All of them for a worker thread: blocks. d is borrowed. */
int read_fetch_now(struct mount *m, const char *session_id, const struct document *d, int *ret_fd);
/* What the content cache keeps a document under. */
void read_content_key(const struct document *d, char ret[129]);

/* ---- learn.c: sizes the service's listings do not tell --------------------------------------------------------- */

/* There may be documents whose size is not known: they are gone through when nobody needs the service. tree.lock held. */
void learn_wake(struct mount *m);
/* The size of what e stands for is known from its bytes, and is kept. tree.lock held. */
void learn_note(struct mount *m, struct entry *e, int64_t size_bytes);
/* How many of a folder's sizes are not known; begins: they are learned before all others. *ret_is_busy: it goes on. f is held by the
 * caller; tree.lock not held. */
int learn_first(struct mount *m, struct folder *f, bool begins, bool *ret_is_busy);

/* ---- call.c: calls that ask the service for a change ---------------------------------------------------------- */

/* Takes a session's folder off the mount. Worker threads; tree.lock not held. -ENOTEMPTY while something local is in it. */
int folder_forget(struct mount *m, struct folder *f);
void call_mkdir(struct mount *m, fuse_req_t req, const char *name);
void call_rmdir(struct mount *m, fuse_req_t req, const char *name);
void call_unlink(struct mount *m, fuse_req_t req, struct folder *f, const char *name);
void call_link(struct mount *m, fuse_req_t req, struct entry *e, struct folder *to, const char *name);
void call_rename(struct mount *m, fuse_req_t req, struct folder *from, const char *name, struct folder *to, const char *new_name,
		 unsigned flags);
/* A name in the root that is no folder's: a session's id, an alias, or nothing. */
void call_look_up_root(struct mount *m, fuse_req_t req, const char *name);

/* ---- control.c: the mount's own files ------------------------------------------------------------------------- */

/* The text beside a failed file, NAME.why.txt, has that file's inode number with this bit. */
#define INO_WHY_BIT (1ULL << 62)
#define NAME_HINT "How to add a session.txt"
#define NAME_FAILED_LINK "Not uploaded"

/* The inode number behind a name in the root, .sessionfs or failed that is ours; 0: none. tree.lock held. */
uint64_t control_find(struct mount *m, uint64_t parent, const char *name);
/* In a folder of failed files. */
uint64_t control_find_why(struct folder *f, const char *name);
/* false: no such number is ours. tree.lock held. */
bool control_attr(struct mount *m, uint64_t ino, struct stat *ret);
bool control_is_folder(uint64_t ino);
bool control_is_file(uint64_t ino);
const char *control_link(uint64_t ino); /* NULL: no link */
/* The text of one of our own files as it is now. tree.lock held. */
void control_read(struct mount *m, uint64_t ino, struct buf *ret);
/* Calls add for each of our own names that is listed in a folder. tree.lock held. */
typedef void control_add(void *arg, const char *name, uint64_t ino, mode_t mode);
void control_list(struct mount *m, uint64_t parent, control_add *add, void *arg);
/* Is there anything under failed? */
bool control_has_failed(struct mount *m);
void control_status(struct mount *m, bool json, struct buf *ret); /* tree.lock held */
/* Local files that hold bytes and are not at the service: those that will be sent, those that failed, those that stay here. tree.lock held. */
void control_count(struct mount *m, int *ret_waiting, int *ret_failed, int *ret_scratch);

/* ---- ops.c ------------------------------------------------------------------------------------------------- */

extern const struct fuse_lowlevel_ops mount_ops;
