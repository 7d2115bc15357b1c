/* Documents' bytes: fetched whole from the first read on, once for all who want them, and kept in the content cache.
 *
 * Reads are answered while the rest is still on its way, out of the file that the cache will keep. It is hashed meanwhile,
 * beside the transfer; but whether it is right is known at its end only, so the last byte waits for that, and nobody reads
 * what is wrong to its end. Who has read a part of it by then gets EIO from there on and has to open it again; what the
 * kernel kept of it is gone before anybody fetches anew, so that no reader ever gets a mixture.
 *
 * A document never changes under its id, so what is in the cache is right for ever. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "client/base/metrics.h"
#include "fs/mount_impl.h"

#define TRIES_MAX 3
/* A reader waits on as long as bytes have moved this lately. */
#define STILL_MS 60000
#define HASH_BLOCK_BYTES (128 * 1024)
/* So much is worth a second thread. */
#define HASH_BESIDE_BYTES (1024 * 1024)
/* What a reader's bytes lie beyond when nothing but the end of the fetch will do. */
#define AT_THE_END INT64_MAX

struct fetch {
	struct fetch *next; /* in mount->fetching; under tree.lock */
	struct mount *m;
	char key[129];
	char *session_id, *document_id, *sha256, *mime;
	int64_t size_bytes;
	struct transfer transfer; /* done_bytes of the file can be read */
	struct wait_list waiters;
	_Atomic int refs; /* the job, each waiter, the thread that hashes beside it */

	/* The file being written; NULL, -1: none. Replaced by the job alone, with both locks, and never once was_read. */
	char *name;
	int fd;

	pthread_mutex_t lock; /* guards what follows; taken after tree.lock */
	int64_t wake_at;      /* the least of done_bytes that somebody waits for */
	bool is_done;
	int error;
	bool was_read;  /* some of its bytes were given away */
	uint64_t *inos; /* ... as these files' */
	size_t ino_count;

	pthread_mutex_t hash_lock; /* guards what follows; taken after lock */
	EVP_MD_CTX *hash;          /* of the first hashed_bytes; NULL: not checked */
	_Atomic int64_t hashed_bytes;
	atomic_bool is_hashed_beside; /* or soon will be */
	atomic_bool has_come;         /* the job sees to the rest itself */
};

void read_content_key(const struct document *d, char ret[129])
{
	if (d->sha256)
		(void)snprintf(ret, 129, "%s", d->sha256);
	else
		(void)snprintf(ret, 129, "id-%s", document_bytes_id(d));
}

/* HTML may be changed by a service that cleans it, so what is read back need not be what the hash was taken of. */
static bool is_checked(const struct fetch *f)
{
	return f->sha256 && (!f->mime || strcmp(f->mime, "text/html") != 0);
}

static void fetch_drop(struct fetch *f)
{
	if (atomic_fetch_sub(&f->refs, 1) > 1)
		return;
	EVP_MD_CTX_free(f->hash);
	fd_close(&f->fd);
	free(f->inos);
	free(f->session_id);
	free(f->document_id);
	free(f->sha256);
	free(f->mime);
	pthread_mutex_destroy(&f->lock);
	pthread_mutex_destroy(&f->hash_lock);
	free(f);
}

/* ---- the hash ------------------------------------------------------------------------------------------------ */

/* How many bytes were hashed; 0: all that came, or with to_the_end all there are; -errno. */
static ssize_t hash_block(struct fetch *f, unsigned char *block, bool to_the_end)
{
	SCOPED_LOCK(&f->hash_lock);
	int64_t at = f->hashed_bytes;
	int64_t left = to_the_end ? HASH_BLOCK_BYTES : atomic_load(&f->transfer.done_bytes) - at;
	ssize_t n = left > 0 ? pread(f->fd, block, left < HASH_BLOCK_BYTES ? (size_t)left : HASH_BLOCK_BYTES, at) : 0;

	if (n < 0)
		return -errno;
	if (n > 0 && EVP_DigestUpdate(f->hash, block, (size_t)n) != 1)
		return -ENOMEM;
	f->hashed_bytes = at + n;
	return n;
}

static void hash_beside(void *arg)
{
	struct fetch *f = arg;
	unsigned char *block = malloc(HASH_BLOCK_BYTES);

	while (block && !atomic_load(&f->has_come) && hash_block(f, block, false) > 0)
		continue; /* what went wrong shows when the job does the same */
	free(block);
	atomic_store(&f->is_hashed_beside, false);
	fetch_drop(f);
}

static void hash_what_came(struct fetch *f)
{
	if (!f->hash || atomic_load(&f->transfer.done_bytes) - atomic_load(&f->hashed_bytes) < HASH_BESIDE_BYTES ||
	    atomic_exchange(&f->is_hashed_beside, true))
		return;
	atomic_fetch_add(&f->refs, 1);
	if (pool_run(f->m->fetches, hash_beside, f) < 0) {
		atomic_store(&f->is_hashed_beside, false);
		fetch_drop(f);
	}
}

/* All has come. -EBADMSG: it is not what it should be. */
static int check_hash(struct fetch *f)
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int len = 0;
	char hex[2 * EVP_MAX_MD_SIZE + 1] = "";
	ssize_t n;

	if (!f->hash)
		return 0;
	unsigned char *block = malloc(HASH_BLOCK_BYTES);
	if (!block)
		return -ENOMEM;
	atomic_store(&f->has_come, true);
	while ((n = hash_block(f, block, true)) > 0)
		continue;
	free(block);
	if (n < 0)
		return (int)n;
	SCOPED_LOCK(&f->hash_lock);
	if (EVP_DigestFinal_ex(f->hash, digest, &len) != 1)
		return -ENOMEM;
	for (unsigned i = 0; i < len; i++)
		(void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	return strcmp(hex, f->sha256) == 0 ? 0 : -EBADMSG;
}

/* ---- fetching ------------------------------------------------------------------------------------------------ */

static int file_begin(struct fetch *f)
{
	char *name = NULL;
	int fd = -1;
	int r = content_begin(f->m->content, f->size_bytes > 0 ? f->size_bytes : 0, &name, &fd);

	if (r < 0)
		return r;
	SCOPED_LOCK(&f->lock);
	SCOPED_LOCK(&f->hash_lock);
	f->name = name;
	f->fd = fd;
	f->hashed_bytes = 0;
	atomic_store(&f->has_come, false);
	return f->hash && EVP_DigestInit_ex(f->hash, EVP_sha256(), NULL) != 1 ? -ENOMEM : 0;
}

/* What came is of no use. false: somebody has read of it, so there is no beginning anew for him. */
static bool file_end(struct fetch *f)
{
	SCOPED_LOCK(&f->lock);
	SCOPED_LOCK(&f->hash_lock);

	if (f->name)
		content_abandon(f->m->content, f->name);
	f->name = NULL;
	if (f->was_read)
		return false;
	fd_close(&f->fd);
	atomic_store(&f->transfer.done_bytes, 0);
	return true;
}

static void on_bytes(void *arg)
{
	struct fetch *f = arg;
	bool is_awaited;

	hash_what_came(f);
	pthread_mutex_lock(&f->lock);
	is_awaited = atomic_load(&f->transfer.done_bytes) >= f->wake_at;
	if (is_awaited)
		f->wake_at = AT_THE_END;
	pthread_mutex_unlock(&f->lock);
	if (is_awaited)
		park_wake(f->m->park, &f->waiters, 0);
}

static int fetch_once(struct fetch *f)
{
	struct mount *m = f->m;
	struct call call = {
		.urgency = URGENCY_PERSON, .transfer = &f->transfer, .on_bytes = on_bytes, .on_bytes_arg = f
	};
	int r = f->name ? 0 : file_begin(f);

	if (r == 0)
		r = backend_fetch_document(m->backend, &call, f->session_id, f->document_id, f->fd);
	if (r == 0)
		r = check_hash(f);
	if (r == -EBADMSG)
		log_error("document %s: the bytes that came do not have its sha256", f->document_id);
	else if (r == -ESTALE)
		log_error("document %s: the bytes that came are not those that came before the connection broke",
			  f->document_id);
	if (r < 0)
		return r;
	char *name = f->name;
	f->name = NULL;
	r = content_commit(m->content, name, f->key);
	if (r < 0) /* it can be read all the same */
		log_warning("document %s can't be kept: %s", f->document_id, strerror(-r));
	return 0;
}

static bool is_worth_another_try(struct fetch *f, int r)
{
	if (r == -EBADMSG || r == -ESTALE)
		return file_end(f);
	return r == -EIO || r == -ETIMEDOUT || r == -EPROTO || r == -EAGAIN;
}

static int fetch_all(struct fetch *f)
{
	int r = -EIO;
	for (int i = 0; i < TRIES_MAX; i++) {
		if (i > 0)
			(void)usleep((useconds_t)(300000 << i));
		r = fetch_once(f);
		if (r == 0 || !is_worth_another_try(f, r))
			break;
	}
	if (r < 0)
		(void)file_end(f); /* that it was read is the caller's concern */
	return r == -EPROTO || r == -EBADMSG || r == -ESTALE ? -EIO : r;
}

/* Whoever has one of its files open may have read of it, if only out of the kernel's pages. tree.lock held. */
static void fail_readers(struct fetch *f)
{
	SCOPED_LOCK(&f->m->handles_lock);

	for (struct handle *h = f->m->handles; h; h = h->next)
		for (size_t i = 0; h->entry && i < f->ino_count; i++)
			if (h->entry->node.ino == f->inos[i]) {
				SCOPED_LOCK(&h->lock);
				h->error = -EIO;
			}
}

/* tree.lock held. */
static void take_off(struct fetch *f)
{
	for (struct fetch **at = &f->m->fetching; *at; at = &(*at)->next)
		if (*at == f) {
			*at = f->next;
			break;
		}
}

static void fetch_job(void *arg)
{
	struct fetch *f = arg;
	struct mount *m = f->m;

	int r = fetch_all(f);
	pthread_mutex_lock(&m->tree.lock);
	pthread_mutex_lock(&f->lock);
	f->error = r;
	f->is_done = true;
	pthread_mutex_unlock(&f->lock);
	/* Then whoever comes before it is taken off gets the error, and nobody begins anew. */
	bool is_spoiled = r < 0 && f->was_read;
	bool is_served = m->is_served;
	if (is_spoiled)
		fail_readers(f);
	else
		take_off(f);
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &f->waiters, 0);
	if (is_spoiled) {
		/* Not before the waiting reads are answered: the kernel waits for their pages. */
		for (size_t i = 0; is_served && i < f->ino_count; i++)
			(void)fuse_lowlevel_notify_inval_inode(m->fuse, f->inos[i], 0, 0); /* not known there: fine */
		SCOPED_LOCK(&m->tree.lock);
		fail_readers(f);
		take_off(f);
	}
	fetch_drop(f);
}

static struct fetch *fetch_new(struct mount *m, const char *session_id, const struct document *d, const char *key)
{
	struct fetch *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->m = m;
	f->refs = 1;
	f->fd = -1;
	f->wake_at = AT_THE_END;
	pthread_mutex_init(&f->lock, NULL);
	pthread_mutex_init(&f->hash_lock, NULL);
	(void)snprintf(f->key, sizeof(f->key), "%s", key);
	f->session_id = strdup(session_id);
	f->document_id = strdup(d->id);
	f->sha256 = d->sha256 ? strdup(d->sha256) : NULL;
	f->mime = d->mime ? strdup(d->mime) : NULL;
	f->size_bytes = d->size_bytes;
	f->transfer.moved_ms = clock_now_ms();
	if (is_checked(f))
		f->hash = EVP_MD_CTX_new();
	if (f->session_id && f->document_id && (!d->sha256 || f->sha256) && (!d->mime || f->mime) &&
	    (!is_checked(f) || f->hash))
		return f;
	fetch_drop(f);
	return NULL;
}

/* ---- who waits for it ------------------------------------------------------------------------------------------ */

/* The caller's to drop. NULL: no memory. tree.lock held. */
static struct fetch *fetch_begin(struct mount *m, const char *session_id, const struct document *d, const char *key)
{
	struct fetch *f = fetch_new(m, session_id, d, key);

	if (!f)
		return NULL;
	atomic_fetch_add(&f->refs, 1);
	f->next = m->fetching;
	m->fetching = f;
	if (pool_run(m->fetches, fetch_job, f) == 0)
		return f;
	take_off(f);
	fetch_drop(f);
	fetch_drop(f);
	return NULL;
}

/* The one of these bytes that is under way, the caller's to drop, or NULL. tree.lock held. */
static struct fetch *fetch_find(struct mount *m, const char *key)
{
	for (struct fetch *f = m->fetching; f; f = f->next)
		if (strcmp(f->key, key) == 0) {
			atomic_fetch_add(&f->refs, 1);
			return f;
		}
	return NULL;
}

/* How many bytes have to come before those up to `to` can be read. */
static int64_t due_at(const struct fetch *f, int64_t to)
{
	return f->hash && to >= f->size_bytes ? AT_THE_END : to;
}

struct given {
	int error, fd;
	bool is_whole;
};

/* f->lock held. */
static bool note_file(struct fetch *f, uint64_t ino)
{
	for (size_t i = 0; i < f->ino_count; i++)
		if (f->inos[i] == ino)
			return true;
	uint64_t *more = realloc(f->inos, (f->ino_count + 1) * sizeof(*more));
	if (!more)
		return false;
	f->inos = more;
	f->inos[f->ino_count++] = ino;
	return true;
}

/* What a reader gets: all bytes, in a descriptor of his own; those up to `to`, in f's; or f's error. false: nothing yet. f->lock held. */
static bool fetch_look(struct fetch *f, uint64_t ino, int64_t to, struct given *ret)
{
	if (f->is_done) {
		*ret = (struct given){ f->error, -1, true };
		if (!f->error)
			ret->fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
		if (!f->error && ret->fd < 0)
			ret->error = -errno;
		return true;
	}
	if (due_at(f, to) > atomic_load(&f->transfer.done_bytes) || !note_file(f, ino))
		return false;
	f->was_read = true;
	*ret = (struct given){ 0, f->fd, false };
	return true;
}

struct want {
	struct entry *entry;
	int64_t to;
	struct fetch *fetch; /* counted */
	read_ready *ready;
	void *arg;
};

static void want_resume(fuse_req_t req, void *arg, int how);

/* Answers, or waits when `how` is 0. */
static void want_try(struct want *w, fuse_req_t req, int how)
{
	struct fetch *f = w->fetch;
	struct mount *m = f->m;
	struct given g = { 0, -1, false };

	atomic_fetch_add(&f->refs, 1); /* once it is parked somebody else may end w at any time */
	pthread_mutex_lock(&f->lock);
	if (!fetch_look(f, w->entry->node.ino, w->to, &g)) {
		int64_t due = due_at(f, w->to);
		if (how == 0) {
			f->wake_at = due < f->wake_at ? due : f->wake_at;
			how = park_wait(m->park, &f->waiters, req, clock_now_ms() + STILL_MS, want_resume, w);
		}
		if (how == 0)
			w = NULL;
		g.error = how;
	}
	pthread_mutex_unlock(&f->lock);
	if (w) {
		w->ready(req, w->arg, g.error, g.fd, g.is_whole);
		fetch_drop(f);
		free(w);
	}
	fetch_drop(f);
}

static void want_resume(fuse_req_t req, void *arg, int how)
{
	struct want *w = arg;
	const struct transfer *t = &w->fetch->transfer;

	if (how == -ETIMEDOUT && (clock_now_ms() - t->moved_ms < STILL_MS || t->waits_for_place))
		how = 0;
	want_try(w, req, how);
}

void read_want(struct mount *m, fuse_req_t req, struct entry *e, int64_t to, read_ready *ready, void *arg)
{
	struct fetch *f = NULL;
	struct document d;
	char key[129];
	int error = 0, fd = -1;

	pthread_mutex_lock(&m->tree.lock);
	if (!entry_document(e, &d) && !d.id) {
		error = -ENOENT;
	} else {
		read_content_key(&d, key);
		/* Who has begun to read what comes goes on with that, although the same bytes may have come another way. */
		f = fetch_find(m, key);
		if (!f) {
			fd = content_get(m->content, key);
			metrics_count_answer(METRICS_CONTENT, fd >= 0);
			f = fd < 0 ? fetch_begin(m, e->folder->session.id, &d, key) : NULL;
			error = fd < 0 && !f ? -ENOMEM : 0;
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	struct want *w = f ? malloc(sizeof(*w)) : NULL;
	if (w) {
		*w = (struct want){ e, to, f, ready, arg };
		want_try(w, req, 0);
		return;
	}
	if (f)
		fetch_drop(f);
	ready(req, arg, f ? -ENOMEM : error, fd, true);
}

int read_fetch_now(struct mount *m, const char *session_id, const struct document *d, int *ret_fd)
{
	char key[129];

	read_content_key(d, key);
	int fd = content_get(m->content, key);
	if (fd < 0) {
		struct fetch *f = fetch_new(m, session_id, d, key);
		int r = f ? fetch_all(f) : -ENOMEM;
		if (r == 0)
			fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
		if (r == 0 && fd < 0)
			r = -errno;
		if (f)
			fetch_drop(f);
		if (r < 0)
			return r;
	}
	*ret_fd = fd;
	return 0;
}
