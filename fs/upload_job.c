/* A file as a job: what it needs next, its row in the queue, what is told of it, and how it ends. */
#include "fs/upload_impl.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

enum {
	LINK_LIFETIME_MS = 4 * 60 * 1000, /* a signed link older than this is not tried */
};

/* ---- jobs -------------------------------------------------------------------------------------------------- */

uint64_t job_hash(const void *item)
{
	return index_hash_number(((const struct job *)item)->item.ino);
}

static bool job_is(const void *item, const void *key)
{
	return ((const struct job *)item)->item.ino == *(const uint64_t *)key;
}

struct job *job_find(struct uploads *u, uint64_t ino)
{
	return index_find(&u->jobs, index_hash_number(ino), job_is, &ino);
}

void job_unref(struct job *j)
{
	if (--j->refs > 0)
		return;
	line_unref(j->uploads, j->line);
	queue_item_release(&j->item);
	free(j);
}

void job_place(struct job *j, enum place place, struct job_list *list)
{
	struct uploads *u = j->uploads;

	if (j->list)
		TAILQ_REMOVE(j->list, j, in_list);
	j->list = list;
	if (list)
		TAILQ_INSERT_TAIL(list, j, in_list);
	j->place = place;
	if (u->probe == j && place != PLACE_WORKER && place != PLACE_GATHERED && place != PLACE_CALL)
		u->probe = NULL;
}

void job_wait(struct job *j, bool somebody_waits)
{
	struct uploads *u = j->uploads;

	if (somebody_waits == j->somebody_waits)
		return;
	j->somebody_waits = somebody_waits;
	if (somebody_waits)
		TAILQ_INSERT_TAIL(&u->waited, j, in_waited);
	else
		TAILQ_REMOVE(&u->waited, j, in_waited);
}

void job_drop(struct uploads *u, struct job *j)
{
	job_wait(j, false);
	index_remove(&u->jobs, j);
	job_place(j, PLACE_GONE, NULL);
	pthread_cond_broadcast(&u->changed);
	job_unref(j);
}

bool job_is_foreign(const struct uploads *u, const struct job *j)
{
	return strcmp(j->item.account, u->config.account) != 0;
}

bool ticket_was_old(const struct uploads *u, const struct queue_item *item, int64_t ago_ms)
{
	int64_t life = item->step == UPLOAD_SIGNED && !u->caps->store_has_effect ? LINK_LIFETIME_MS : DAY_MS;
	int64_t age = clock_wall_ms() - ago_ms - item->ticket_wall_ms;

	if (u->caps->key_lifetime_ms > 0 && u->caps->key_lifetime_ms < life)
		life = u->caps->key_lifetime_ms;
	return age > life || age < -DAY_MS; /* a clock that jumped back says nothing */
}

bool job_may_have_happened(const struct uploads *u, const struct job *j)
{
	return j->is_sent || j->is_unsure || (u->caps->store_has_effect && j->item.step == UPLOAD_STORED);
}

bool job_may_be_used_up(const struct uploads *u, const struct job *j)
{
	return j->was_put_off || (u->caps->store_has_effect && j->item.step == UPLOAD_STORED);
}

void item_unsure(struct job *j)
{
	j->is_unsure = j->item.may_have_happened = true;
	j->version++;
}

bool job_goes_in_circles(const struct job *j)
{
	return j->vain_looks > 1;
}

void item_back_to_spooled(struct job *j)
{
	j->item.step = UPLOAD_SPOOLED;
	free(j->item.ticket);
	j->item.ticket = NULL;
	j->item.attempts = 0;
	j->was_put_off = false;
	j->version++;
}

enum action job_action(const struct uploads *u, const struct job *j)
{
	if (j->is_unsure)
		return ACTION_LOOK;
	if (!j->item.prior_ids)
		return ACTION_ASK_KNOWN;
	if (j->item.step == UPLOAD_STORED)
		return ACTION_ATTACH;
	if (j->item.step == UPLOAD_SIGNED)
		return ACTION_STORE;
	return j->item.known_id && u->caps->attaches ? ACTION_SHORTCUT : ACTION_SIGN;
}

void ticket_check(const struct uploads *u, struct job *j)
{
	if (j->is_unsure || (j->item.step != UPLOAD_SIGNED && j->item.step != UPLOAD_STORED) ||
	    !ticket_was_old(u, &j->item, 0))
		return;
	if (job_may_be_used_up(u, j)) {
		item_unsure(j); /* it made the document already, perhaps */
		j->signs_again = true;
	} else {
		item_back_to_spooled(j);
	}
}

/* ---- rows -------------------------------------------------------------------------------------------------- */

void row_wait(struct uploads *u, const struct job *j)
{
	while (j->is_writing)
		pthread_cond_wait(&u->changed, &u->lock);
}

void row_let_go(struct uploads *u, struct job *j)
{
	j->is_writing = false;
	pthread_cond_broadcast(&u->changed);
}

int row_write(struct uploads *u, struct job *j)
{
	CLEANUP(queue_item_release) struct queue_item copy = { 0 };

	row_wait(u, j);
	if (j->place == PLACE_GONE)
		return -ECANCELED;
	if (j->written == j->version)
		return 0;
	int r = queue_item_copy(&j->item, &copy);
	if (r < 0)
		return r;
	uint64_t version = j->version;
	j->is_writing = true;
	pthread_mutex_unlock(&u->lock);
	r = queue_put(u->config.queue, &copy);
	pthread_mutex_lock(&u->lock);
	if (r == 0) {
		j->written = version;
		j->failures_here = 0;
	}
	row_let_go(u, j);
	return j->place == PLACE_GONE ? -ECANCELED : r;
}

int row_end(struct uploads *u, const struct job *j, bool keep)
{
	struct queue_item copy = j->item; /* borrows: nobody changes the item meanwhile */

	if (!keep)
		return queue_remove(u->config.queue, j->item.ino);
	copy.kind = FILE_SCRATCH;
	copy.step = UPLOAD_SPOOLED;
	copy.ticket = copy.known_id = copy.known_session_id = copy.prior_ids = copy.words = NULL;
	copy.sha256[0] = '\0';
	copy.attempts = copy.error = 0;
	copy.fault = FAULT_NONE;
	copy.may_have_happened = copy.key_renewed = false;
	return queue_put(u->config.queue, &copy);
}

/* ---- events ------------------------------------------------------------------------------------------------ */

void job_tell_moved(struct uploads *u, struct job *j)
{
	CLEANUP(queue_item_release) struct queue_item copy = { 0 };

	if (j->place == PLACE_GONE || j->place == PLACE_ENDING || j->place == PLACE_FAILED || j->is_telling ||
	    queue_item_copy(&j->item, &copy) < 0)
		return;
	j->is_telling = true;
	pthread_mutex_unlock(&u->lock);
	u->config.event(u->config.arg, UPLOAD_MOVED, &copy, NULL, 0, NULL);
	pthread_mutex_lock(&u->lock);
	j->is_telling = false;
	pthread_cond_broadcast(&u->changed);
}

/* The job is PLACE_ENDING: nobody else changes its item, or tells of it once this has begun. Gives the lock up. */
static void tell_end(struct uploads *u, struct job *j, enum upload_event event, struct listing *document)
{
	job_wait(j, false);
	while (j->is_telling)
		pthread_cond_wait(&u->changed, &u->lock);
	j->is_told = event != UPLOAD_DONE; /* a canceled one had no row left to wait for, a refused one keeps it */
	pthread_mutex_unlock(&u->lock);
	u->config.event(u->config.arg, event, &j->item, document, event == UPLOAD_REFUSED ? j->item.error : 0,
			event == UPLOAD_REFUSED ? j->item.words : NULL);
	pthread_mutex_lock(&u->lock);
	j->is_told = true;
}

/* ---- ends -------------------------------------------------------------------------------------------------- */

bool prior_has(const char *prior_ids, const char *document_id)
{
	size_t len = strlen(document_id);

	for (const char *at = prior_ids; at && *at;) {
		size_t n = strcspn(at, " ");
		if (n == len && strncmp(at, document_id, len) == 0)
			return true;
		at += n;
		at += strspn(at, " ");
	}
	return false;
}

/* Another file with the same bytes for the same session that does not know yet that this document is not its own. */
static struct job *sibling_to_tell(struct uploads *u, const struct job *j, const char *document_id)
{
	struct job *other;

	for (size_t at = 0; (other = index_next(&u->jobs, &at));) {
		if (other != j && other->line == j->line && other->place != PLACE_ENDING && other->item.prior_ids &&
		    strcmp(other->item.sha256, j->item.sha256) == 0 && !prior_has(other->item.prior_ids, document_id))
			return other;
	}
	return NULL;
}

static int prior_add(struct job *j, const char *document_id)
{
	struct buf ids = BUF(1 << 20);

	buf_addf(&ids, "%s%s%s", j->item.prior_ids, *j->item.prior_ids ? " " : "", document_id);
	char *text = buf_take(&ids);
	buf_release(&ids);
	if (!text)
		return -ENOMEM;
	free(j->item.prior_ids);
	j->item.prior_ids = text;
	j->version++;
	return 0;
}

static int claim_note(struct uploads *u, const struct job *j, const char *document_id)
{
	struct claim *c = &u->claims[u->next_claim++ % CLAIMS_MAX];

	free(c->session_id);
	free(c->document_id);
	c->session_id = strdup(j->item.session_id);
	c->document_id = strdup(document_id);
	memcpy(c->sha256, j->item.sha256, sizeof(c->sha256));
	return c->session_id && c->document_id ? 0 : -ENOMEM;
}

int claims_apply(const struct uploads *u, struct job *j)
{
	for (int i = 0; j->item.prior_ids && i < CLAIMS_MAX; i++) {
		const struct claim *c = &u->claims[i];
		if (c->session_id && c->document_id && strcmp(c->session_id, j->item.session_id) == 0 &&
		    strcmp(c->sha256, j->item.sha256) == 0 && !prior_has(j->item.prior_ids, c->document_id) &&
		    prior_add(j, c->document_id) < 0)
			return -ENOMEM;
	}
	return 0;
}

/* Where equal bytes make two documents, looking for one must not find the other: written down before our row goes,
 * for the files at work, for those that are not taken up yet, and for those that are just coming. -errno: our row
 * has to stay. */
static int siblings_tell(struct uploads *u, const struct job *j, const char *document_id)
{
	struct job *other;

	if (u->caps->reuses_bytes)
		return 0;
	int r = claim_note(u, j, document_id);
	while (r == 0 && (other = sibling_to_tell(u, j, document_id))) {
		r = prior_add(other, document_id);
		if (r < 0)
			return r;
		/* Nobody can tell whose document it was: should there be no other, the other one's ticket may be
		 * used up. */
		if (other->is_unsure)
			other->signs_again = true;
		other->refs++;
		r = row_write(u, other);
		if (r == -ECANCELED)
			r = 0;
		job_unref(other);
	}
	if (r < 0)
		return r;
	pthread_mutex_unlock(&u->lock);
	/* Our item is nobody else's now. */
	r = queue_add_prior(u->config.queue, j->item.ino, j->item.session_id, j->item.sha256, document_id);
	pthread_mutex_lock(&u->lock);
	return r;
}

void job_remove_row(struct uploads *u, struct job *j)
{
	row_wait(u, j);
	if (j->place != PLACE_ENDING)
		return; /* replaced by a new version, which has the row now */
	j->is_writing = true;
	pthread_mutex_unlock(&u->lock);
	int r = row_end(u, j, false);
	pthread_mutex_lock(&u->lock);
	row_let_go(u, j);
	if (j->place != PLACE_ENDING)
		return;
	if (r == 0) {
		job_drop(u, j);
		return;
	}
	j->due_ms = clock_now_ms() + pause_here(u, REMOVE_AGAIN_MS);
	job_place(j, PLACE_ENDING, &u->ending);
	tick_at(u, j->due_ms);
}

void job_done(struct uploads *u, struct job *j, struct listing *document)
{
	struct document d;

	listing_get(document, 0, &d);
	j->is_sent = j->is_unsure = false;
	job_place(j, PLACE_ENDING, NULL);
	j->item.step = UPLOAD_ATTACHED;
	j->item.attempts = 0;
	j->item.error = 0;
	j->item.fault = FAULT_NONE;
	u->last_done_ms = clock_now_ms();
	log_info("upload: '%s/%s' is there", j->item.session_name ? j->item.session_name : j->item.session_id,
		 j->item.name);
	/* Those of equal bytes first. Should the disk refuse that, the row stays, and the next mount finds the
	 * document. */
	int r = siblings_tell(u, j, d.id);
	tell_end(u, j, UPLOAD_DONE, document);
	if (r == 0)
		job_remove_row(u, j);
}

void job_end_canceled(struct uploads *u, struct job *j)
{
	j->is_sent = j->is_unsure = false;
	job_place(j, PLACE_ENDING, NULL);
	row_wait(u, j);
	j->is_writing = true;
	pthread_mutex_unlock(&u->lock);
	int r = row_end(u, j, j->keeps_row);
	pthread_mutex_lock(&u->lock);
	row_let_go(u, j);
	if (r < 0) {
		j->is_unsure = true; /* one look more, later, and then once again */
		j->due_ms = clock_now_ms() + pause_here(u, PAUSE_LOCAL_MS);
		job_place(j, PLACE_PAUSED, &u->paused);
		tick_at(u, j->due_ms);
		return;
	}
	tell_end(u, j, UPLOAD_CANCELED, NULL);
	if (j->place == PLACE_ENDING)
		job_drop(u, j);
}

void job_refuse(struct uploads *u, struct job *j)
{
	if (j->cancel_asked) {
		job_end_canceled(u, j);
		return;
	}
	j->is_sent = false;
	j->item.kind = FILE_FAILED;
	j->version++;
	job_place(j, PLACE_ENDING, NULL);
	(void)row_write(u, j); /* logged; after a restart it is tried, and refused, once more */
	tell_end(u, j, UPLOAD_REFUSED, NULL);
	if (j->place == PLACE_ENDING)
		job_place(j, PLACE_FAILED, &u->failed);
}
