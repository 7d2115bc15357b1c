/* What an inode stands for: the root, a session's folder, an entry in one (a document, a local file, or both at once while it is
 * being uploaded), a link, or one of the mount's own files under .sessionfs.
 *
 * The tree is the sole owner of node memory. A node lives while somebody holds it: the kernel (`lookups`), or one of ours (`holds`: the
 * folder that shows it, an open handle, a directory snapshot, a job). One lock, tree->lock, guards every field here that is
 * not said to be constant; functions below want it held unless they say otherwise. It is never held while a server is asked, the
 * disk is synced, a request is replied to at length, or the kernel is notified. Order: tree->lock, then a spool's own, then the park's.
 *
 * Most documents have no node: they rest (resting.h), known by name and number alone. Who only looks at one is shown it in memory of his own
 * (folder_look(), tree_look()); who wants more of it wakes it (folder_find(), tree_find(), folder_wake()), and has an entry until he gives
 * up the lock, or longer if he holds it. tree_settle() puts back to rest what nobody holds and there is nothing else to know of. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "client/backend.h"
#include "client/base/index.h"
#include "fs/park.h"
#include "fs/queue.h"
#include "fs/resting.h"
#include "fs/spool.h"
#include "fs/state.h"

/* Inode numbers that are fixed; state_next_ino() starts above them. */
enum { INO_ROOT = 1, INO_CONTROL = 2, INO_FAILED = 3, INO_FAILED_LINK = 4, INO_HINT = 5, INO_CONTROL_FIRST_FILE = 16, INO_FIXED_MAX = 1000 };

/* A name that was refused less than a minute ago stands for its failed copy under that one's number with this bit; the kernel's look-ups
 * of it are not counted. */
#define INO_REFUSED_BIT (1ULL << 61)

enum node_kind { NODE_ROOT, NODE_FOLDER, NODE_ENTRY, NODE_LINK, NODE_CONTROL, NODE_FILE /* one of our own texts */ };

struct node {
	uint64_t ino;
	uint32_t lookups;    /* the kernel's count: node_count_lookup() */
	uint32_t holds : 28; /* ours */
	uint32_t kind : 4;
};

/* A local file's bytes and how they are doing. */
struct local {
	struct spool *spool;     /* what is written or sent now */
	enum file_kind kind;
	int writers, handles;
	int pins;                /* workers that have it in hand without tree.lock */
	bool is_dirty;           /* bytes changed since the last submit */
	bool has_row;            /* the queue's table knows it */
	bool is_submitted;       /* the upload engine works on it */
	bool is_unlinked;        /* while its last step was under way: what comes of it is detached */
	bool is_taken_back;      /* local_remove() holds the node until the outcome is known */
	bool is_held_back;       /* a rename decides about it: a refusal leaves it where it is */
	bool sends_again;        /* a newer version waits for the outcome of the one whose last step was sent */
	bool counted_out;        /* it is a document now and folder->local_count has it no more */
	bool is_frozen;          /* spool is a version that was sent: a change needs a new one */
	int write_error;         /* -errno of a write that failed: what is here is not what its writer meant, and is not sent; 0 none ... */
	int64_t gap_start, gap_end; /* ... or until these bytes were written after all, or cut off ... */
	pid_t gap_writer;           /* ... by the process (thread group) that it failed for; -1: several */
	char sent_sha256[65];    /* of the version the engine has or had last; "" none */
	uint64_t sent_spool_id;
	char *home_name;         /* of a failed file: what it was called in its session; owned */
	int64_t mtime_ns;
	int64_t saved_wall_ms;   /* clock_wall_ms() when its row was written last */
	int64_t begun_ms;        /* clock_now_ms() of the first write ... */
	bool was_signed_ahead;   /* ... and whether leave to send it was thought of meanwhile */
	int64_t closed_ms;       /* clock_now_ms() of the last close, 0: open */
	int verdict;             /* of the last version sent: 0, or -errno */
	bool has_verdict;
	char *words;             /* why it waits or failed; owned */
	int64_t refused_ms;      /* clock_now_ms() of a final refusal */
	char *supersedes_id;     /* our own document that the next version takes the place of; owned */
	struct wait_list closers; /* requests that wait for this upload */
	/* A copy of a whole document by copy_file_range whose bytes nobody has asked for. */
	struct listing *copy_of; /* holds that document at copy_at; NULL: no such copy */
	int copy_at;
	char *copy_session_id;
};

/* What this mount knows of a document beyond the service's record; most have none. */
struct entry_past {
	int64_t learned_bytes;    /* the size where the service tells none, once the bytes were seen; 0: not yet */
	int64_t mtime_ns;         /* the writer's, -1: the service's created_at */
	int64_t attached_wall_ms; /* when this mount attached it; 0: it did not */
	int64_t attached_ms;      /* the same on the monotonic clock; 0: before this start */
};

/* A name in a folder, that is awake. */
struct entry {
	struct node node; /* first */
	struct folder *folder;
	char *name;              /* constant while the entry is in folder->names; owned */
	char *document_id;       /* set while document < 0 and the entry stands for one; entry_clear_id() */
	struct listing *own;     /* a small listing that holds it, as an upload's answer or a page had it; NULL: not known */
	struct entry *same;      /* the next entry for the same listed document */
	const struct entry_past *past; /* never NULL; entry_past() to change it */
	struct local *local;     /* owned; NULL for a plain document */
	int32_t document;        /* index in folder->listing, or -1 */
	int32_t own_at;          /* where in own */
	bool is_shown : 1;         /* it is in folder->names and listed */
	bool was_there_before : 1; /* the document was in the session before this mount's upload began */
	bool is_saved : 1;         /* state.db has it as it is ... */
	bool is_saved_gone : 1;    /* ... and as gone */
	bool is_in_walk : 1;       /* in the folder's growing snapshot already */
	bool borrows_id : 1;       /* document_id is a text of own's */
	bool is_view : 1;          /* it rests: this is what it looks like */
};

/* Room for one that rests, to be looked at until the lock is given up. */
struct entry_view {
	struct entry entry;
	char name[NAME_BYTES_MAX + 1];
};

enum folder_kind { FOLDER_SESSION, FOLDER_FAILED /* the failed files of one session */ };

/* How many documents a folder shows, and of what they were counted. */
struct folder_counts {
	bool is_counted;
	uint64_t serial, shape;
	size_t unlisted;
	int locals;
	int documents, by_state[STATE_FAILED + 1];
};

struct folder {
	struct node node; /* first */
	struct folder_counts counts; /* of attr.c */
	enum folder_kind kind;        /* constant */
	struct session session;       /* of FOLDER_FAILED the id and name alone */
	char *name;                   /* as shown; owned */
	enum session_origin origin;
	bool is_shown;                /* in tree->folders */
	bool is_gone;                 /* 404 */
	bool is_withheld;             /* not all that the listing has is shown: the next one is applied, be it the same */
	bool entries_loaded;          /* from state.db */
	bool is_recalling;            /* the flight under way looks at the disk first: what it finds there is shown at once */
	bool was_recalled;
	struct listing *listing;      /* as last applied; NULL: none yet */
	struct resting at_rest;       /* who stands for the listing's documents; all that rest are shown */
	struct index names;           /* shown entries by name */
	struct index hidden;          /* entries by name that are gone and keep their name */
	struct index unlisted;        /* entries by document_id that the listing does not have */
	int shown_count, local_count;
	uint64_t shape;               /* +1 whenever a name appears or goes */
	int64_t changed_wall_ns;      /* differs for each shape: the kernel tells by it whether the names it remembers are these */
	bool is_refreshing;           /* one flight at a time */
	struct flight *flight;        /* that one, while it asks the service; of folder.c */
	bool has_heard;               /* the service said something about it since that one began */
	int refresh_error;            /* of the last flight: 0 or -errno */
	int64_t refreshed_ms;         /* clock_now_ms() when the last flight ended; 0: never */
	int64_t forgotten_ms;         /* when somebody wanted it asked for anew: folder_age() */
	int64_t session_asked_ms;     /* when its name was last asked for */
	int64_t used_ms;              /* when somebody looked at it last, 0: never */
	int64_t poll_ms, poll_pause_ms; /* when it is asked about without anybody looking, 0: not at all; and how long it waited for that */
	bool has_processing;          /* the listing has documents that are under way at the service */
	uint64_t learn_serial;        /* of the listing whose unknown sizes are gone through, and how far that has come */
	int learn_at;
	bool learns_first;            /* somebody asked for its sizes */
	bool gave_negatives;          /* the kernel may remember that a name is not there */
	struct wait_list waiters;     /* for the flight, and for each of its pages */
	int locked_ops;               /* requests not yet answered for which the kernel holds this folder's lock: changes, parked look-ups and readdirs */
	uint64_t cached_shape;        /* of the names the kernel may have in its cache; 0: none. Shapes begin at 1 */
	struct snapshot *snapshot;    /* of this shape, or the growing one; NULL: to be made */
	struct folder *failed;        /* of a FOLDER_SESSION: where its failed files are, NULL: none yet */
	struct folder *next_shown;    /* in tree->first_folder's chain */
	struct folder **back_shown;   /* what points to it there */
};

/* The names of a folder for readdir, told by their inode numbers; counted by its folder and its handles. They are in the order of those, so
 * that a reader goes on in a later one where he was in an earlier one: offsets are inode numbers. But one that grows while the folder's first
 * walk is under way has them as they came, so that names are handed out as pages arrive; its offsets are places. */
struct snapshot {
	uint32_t refs;
	bool is_as_they_came; /* constant */
	bool is_growing;
	int error;            /* of the walk that ended the growing */
	int count, room;
	uint64_t *inos;
};

struct link {
	struct node node; /* first */
	char *target;
};

struct tree {
	pthread_mutex_t lock;
	struct index nodes;        /* by ino */
	struct index spans;        /* which folders have inode numbers at rest in a range of them */
	uint64_t *idle;            /* inode numbers of entries that may go to rest */
	size_t idle_count, idle_room;
	struct folder *first_folder; /* session folders, shown, in the order they came */
	struct folder **last_folder; /* where the next one is put */
	struct index folder_ids, folder_names; /* of those; tree_rename_folder() */
	struct folder *first_failed;
	uint64_t root_shape;
	int root_locked_ops;       /* as folder->locked_ops */
	int folder_count;
	struct node root;
	int64_t root_changed_wall_ms;
};

void tree_init(struct tree *t);
void tree_release(struct tree *t); /* frees every node; nobody holds any */

/* NULL: there is none, or no memory to wake it. */
struct node *tree_find(struct tree *t, uint64_t ino);
/* The same to look at: one that rests is shown in `room`. */
struct node *tree_look(struct tree *t, uint64_t ino, struct entry_view *room);
/* Puts to rest what may, a thousand at most; true: there are more. To be called where nobody has an entry that he does not hold: right after
 * the lock was taken. */
bool tree_settle(struct tree *t);
/* The kernel forgets `count` lookups. */
void tree_forget(struct tree *t, uint64_t ino, uint64_t count);

/* The kernel was told of it once more. It may be a view. */
void node_count_lookup(struct node *n);
void node_hold(struct node *n);
/* Frees the node when nobody holds it any more and the kernel does not know it. */
void node_drop(struct tree *t, struct node *n);

struct folder *tree_find_folder(struct tree *t, const char *session_id);
struct folder *tree_find_folder_named(struct tree *t, const char *name);
/* A new folder, shown under `name`; takes over nothing. NULL: no memory. */
struct folder *tree_add_folder(struct tree *t, enum folder_kind kind, uint64_t ino, const struct session *session, const char *name,
			       enum session_origin origin);
void tree_hide_folder(struct tree *t, struct folder *f);
/* Of a session's folder that is shown. Takes over name, which must be free. Returns the old one, the caller's. */
char *tree_rename_folder(struct tree *t, struct folder *f, char *name);
struct link *tree_add_link(struct tree *t, uint64_t ino, const char *target);

/* NULL: it shows no such name, or there is no memory to wake it. */
struct entry *folder_find(struct tree *t, struct folder *f, const char *name);
/* The same to look at: one that rests is shown in `room`. */
struct entry *folder_look(struct folder *f, const char *name, struct entry_view *room);
bool folder_has(const struct folder *f, const char *name);
/* The first of the entries of the listing's document i, awake. NULL: it has none (or no memory). */
struct entry *folder_wake(struct tree *t, struct folder *f, int i);
/* All that rest. -ENOMEM: not all. */
int folder_wake_all(struct tree *t, struct folder *f);
/* Those that rest are not shown any more, and nothing is known of them. */
void folder_drop_resting(struct tree *t, struct folder *f, int i);
void folder_drop_all_resting(struct tree *t, struct folder *f);
/* Is there a shown name of the listing's document i? */
bool folder_shows(const struct folder *f, int i);
/* Nothing of a listing is shown yet: it is from now on, with what rests in it. Takes over `rest`, whose names and numbers are nobody
 * else's, and its listing. */
void folder_begin_listing(struct tree *t, struct folder *f, struct resting *rest);
/* As it would be if nobody held anything: who rests, and who would. Nobody is awake in *ret, and it has no tables. Of those entries that are
 * neither each is handed out, the hidden ones too, if they stand for a document. -ENOMEM. */
int folder_copy_resting(const struct folder *f, struct resting *ret, void (*each)(void *arg, const struct entry *e), void *arg);
/* The same documents in the same places, said again. */
void folder_renew_listing(struct folder *f, struct listing *l);
struct entry *folder_find_hidden(const struct folder *f, const char *name);
/* A new shown entry. NULL: no memory. */
struct entry *folder_add_entry(struct tree *t, struct folder *f, uint64_t ino, const char *name);
/* One that keeps its name, and is not shown until its document is seen. NULL: no memory. */
struct entry *folder_add_hidden_entry(struct tree *t, struct folder *f, uint64_t ino, const char *name, const char *document_id);
/* Takes it out of the names; it lives on while held. keeps_name: the name stays its document's. */
void folder_hide_entry(struct tree *t, struct entry *e, bool keeps_name);
/* Shows a hidden one again. */
int folder_show_entry(struct tree *t, struct entry *e);
/* To be filled; NULL: no memory. */
struct entry_past *entry_past(struct entry *e);
/* It may go to rest, as far as is seen at once; done by itself where the last hold on it is dropped. */
void entry_note_idle(struct tree *t, const struct entry *e);
/* It is found by its document no longer. */
void entry_leave_index(struct entry *e);
/* It has no document_id any more, and is in no index by it. */
void entry_clear_id(struct entry *e);
/* It has no listing of its own any more; a document_id stays. -ENOMEM: nothing changed. */
int entry_drop_own(struct entry *e);
/* -ENOMEM: nothing changed. The new name must be free. */
int folder_rename_entry(struct tree *t, struct entry *e, struct folder *to, const char *name);
/* Entries of this document, awake: the first, then ->same (listed), or the first unlisted. */
struct entry *folder_find_document(struct tree *t, struct folder *f, const char *document_id);
/* The first that no listing has. */
struct entry *folder_find_unlisted(const struct folder *f, const char *document_id);
/* Those that no listing has: one a call, *at begins at 0. NULL: no more. */
struct entry *folder_next_unlisted(const struct folder *f, const char *document_id, size_t *at);
/* How many shown entries stand for the document. */
int folder_count_names(const struct folder *f, const char *document_id);
/* The current names, counted; NULL: no memory. While it is growing, names that appear come into it. */
struct snapshot *folder_snapshot(struct folder *f, bool is_growing);
void snapshot_drop(struct snapshot *s);
/* To one that grows. Without memory (-ENOMEM) its readers miss a name, and the next walk has it; the other: all that rest. */
int snapshot_add(struct snapshot *s, uint64_t ino);
void snapshot_add_resting(struct snapshot *s, const struct folder *f);
/* The folder's names are others: whoever reads it next takes a snapshot of now, unless one is growing. */
void folder_outdate_snapshot(struct folder *f);
/* The place of the first name behind an offset that readdir gave out (2: behind "." and ".."), and the offset behind place i. */
int snapshot_seek(const struct snapshot *s, int64_t offset);
int64_t snapshot_offset(const struct snapshot *s, int i);
/* The name at that place, in `room` if it rests. NULL: it is not shown any more. */
struct entry *snapshot_look(struct tree *t, const struct snapshot *s, const struct folder *f, int i, struct entry_view *room);
/* The folder's snapshot goes when nobody reads it any more: the kernel remembers the names itself. */
void folder_forget_snapshot(struct folder *f);
/* The folder's shape changed now. */
void folder_touch(struct folder *f);

/* The document an entry stands for. false: none (a local file), or only its id is known (ret->id alone is set then). */
bool entry_document(const struct entry *e, struct document *ret);
const char *entry_document_id(const struct entry *e);
bool entry_is_local(const struct entry *e); /* has local bytes that are not yet a document */
struct local *local_new(void);
void local_free(struct local *l);
