/* Documents' bytes: fetched whole at the first read, once for all who want them, checked, and kept in the content cache.
 *
 * A document never changes under its id, so what is in the cache is right for ever. */
#include <errno.h>
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

struct fetch {
	struct fetch *next; /* in mount->fetching */
	struct mount *m;
	char key[129];
	char *session_id, *document_id, *sha256, *mime;
	int64_t size_bytes;
	struct transfer transfer;
	struct wait_list waiters;
	int refs; /* the job and each waiter; under tree.lock */
	bool is_done;
	int error;
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

static int check_hash(int fd, const char *sha256)
{
	static const size_t room = 256 * 1024;
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int len = 0;
	char hex[65];
	int r = -ENOMEM;
	unsigned char *block = malloc(room);
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();

	if (block && ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1) {
		off_t at = 0;
		ssize_t n;
		while ((n = pread(fd, block, room, at)) > 0) {
			EVP_DigestUpdate(ctx, block, (size_t)n);
			at += n;
		}
		r = n < 0 ? -errno : 0;
		EVP_DigestFinal_ex(ctx, digest, &len);
		for (unsigned i = 0; i < 32 && i < len; i++)
			(void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
		if (r == 0 && strcmp(hex, sha256) != 0)
			r = -EBADMSG;
	}
	EVP_MD_CTX_free(ctx);
	free(block);
	return r;
}

static int fetch_once(struct fetch *f, int64_t deadline_ms)
{
	struct mount *m = f->m;
	char *name = NULL;
	CLEANUP(fd_close) int fd = -1;
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = deadline_ms, .transfer = &f->transfer };

	int r = content_begin(m->content, f->size_bytes > 0 ? f->size_bytes : 0, &name, &fd);
	if (r < 0)
		return r;
	r = backend_fetch_document(m->backend, &call, f->session_id, f->document_id, fd);
	if (r == 0 && is_checked(f))
		r = check_hash(fd, f->sha256);
	if (r == -EBADMSG) {
		log_error("document %s: the bytes that came do not have its sha256", f->document_id);
		r = -EIO;
	}
	if (r < 0) {
		(void)content_abandon(m->content, name); /* swept at the next start */
		return r;
	}
	return content_commit(m->content, name, f->key);
}

static bool is_worth_another_try(int r)
{
	return r == -EIO || r == -ETIMEDOUT || r == -EPROTO || r == -EAGAIN;
}

static int fetch_all(struct fetch *f)
{
	int r = -EIO;
	for (int i = 0; i < TRIES_MAX; i++) {
		if (i > 0)
			(void)usleep((useconds_t)(300000 << i));
		r = fetch_once(f, 0);
		if (!is_worth_another_try(r))
			return r;
	}
	return r == -EPROTO ? -EIO : r;
}

static void fetch_drop(struct fetch *f)
{
	if (--f->refs > 0)
		return;
	free(f->session_id);
	free(f->document_id);
	free(f->sha256);
	free(f->mime);
	free(f);
}

static void fetch_job(void *arg)
{
	struct fetch *f = arg;
	struct mount *m = f->m;

	int r = fetch_all(f);
	pthread_mutex_lock(&m->tree.lock);
	f->error = r;
	f->is_done = true;
	for (struct fetch **at = &m->fetching; *at; at = &(*at)->next)
		if (*at == f) {
			*at = f->next;
			break;
		}
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &f->waiters, 0);
	SCOPED_LOCK(&m->tree.lock);
	fetch_drop(f);
}

/* tree.lock held. */
static struct fetch *fetch_begin(struct mount *m, const char *session_id, const struct document *d, const char *key)
{
	for (struct fetch *f = m->fetching; f; f = f->next)
		if (strcmp(f->key, key) == 0)
			return f;
	struct fetch *f = calloc(1, sizeof(*f));
	if (!f)
		return NULL;
	f->m = m;
	f->refs = 1;
	(void)snprintf(f->key, sizeof(f->key), "%s", key);
	f->session_id = strdup(session_id);
	f->document_id = strdup(d->id);
	f->sha256 = d->sha256 ? strdup(d->sha256) : NULL;
	f->mime = d->mime ? strdup(d->mime) : NULL;
	f->size_bytes = d->size_bytes;
	f->transfer.moved_ms = clock_now_ms();
	if (!f->session_id || !f->document_id || (d->sha256 && !f->sha256) || pool_run(m->fetches, fetch_job, f) < 0) {
		fetch_drop(f);
		return NULL;
	}
	f->next = m->fetching;
	m->fetching = f;
	return f;
}

struct want {
	struct mount *m;
	struct entry *entry;
	struct fetch *fetch; /* counted */
	read_ready *ready;
	void *arg;
};

static void want_resume(fuse_req_t req, void *arg, int how);

/* false: it is done, or there is no memory to wait on. */
static bool wait_on(struct want *w, fuse_req_t req)
{
	SCOPED_LOCK(&w->m->tree.lock);
	return !w->fetch->is_done &&
	       park_wait(w->m->park, &w->fetch->waiters, req, clock_now_ms() + STILL_MS, want_resume, w) == 0;
}

static void want_resume(fuse_req_t req, void *arg, int how)
{
	struct want *w = arg;
	struct mount *m = w->m;
	struct fetch *f = w->fetch;
	int fd = -1;

	pthread_mutex_lock(&m->tree.lock);
	bool is_done = f->is_done;
	int error = f->error;
	pthread_mutex_unlock(&m->tree.lock);
	if (is_done)
		how = error;
	else if (how == -ETIMEDOUT &&
		 (clock_now_ms() - f->transfer.moved_ms < STILL_MS || f->transfer.waits_for_place) && wait_on(w, req))
		return;
	if (how == 0) {
		fd = content_get(m->content, f->key);
		how = fd < 0 ? (fd == -ENOENT ? -EIO : fd) : 0;
	}
	pthread_mutex_lock(&m->tree.lock);
	fetch_drop(f);
	pthread_mutex_unlock(&m->tree.lock);
	w->ready(req, w->arg, how, fd);
	free(w);
}

void read_want(struct mount *m, fuse_req_t req, struct entry *e, read_ready *ready, void *arg)
{
	struct document d;
	char key[129];
	int error = 0, fd = -1;

	pthread_mutex_lock(&m->tree.lock);
	if (!entry_document(e, &d) && !d.id) {
		error = -ENOENT;
	} else {
		read_content_key(&d, key);
		fd = content_get(m->content, key);
		metrics_count_answer(METRICS_CONTENT, fd >= 0);
		if (fd < 0) {
			struct want *w = calloc(1, sizeof(*w));
			struct fetch *f = w ? fetch_begin(m, e->folder->session.id, &d, key) : NULL;
			error = -ENOMEM;
			if (f) {
				*w = (struct want){ m, e, f, ready, arg };
				error = park_wait(m->park, &f->waiters, req, clock_now_ms() + STILL_MS, want_resume, w);
				f->refs += error == 0;
			}
			if (error)
				free(w);
			else
				req = NULL;
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (req)
		ready(req, arg, error, error ? -1 : fd);
}

int read_fetch_now(struct mount *m, const char *session_id, const struct document *d, int *ret_fd)
{
	char key[129];

	read_content_key(d, key);
	int fd = content_get(m->content, key);
	if (fd < 0) {
		struct fetch f = { .m = m,
				   .session_id = (char *)session_id,
				   .document_id = (char *)d->id,
				   .sha256 = (char *)d->sha256,
				   .mime = (char *)d->mime,
				   .size_bytes = d->size_bytes };
		memcpy(f.key, key, sizeof(key));
		int r = fetch_all(&f);
		if (r < 0)
			return r;
		fd = content_get(m->content, key);
	}
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}
