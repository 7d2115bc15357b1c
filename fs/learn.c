/* Sizes that a service's listings do not tell: learned from the documents themselves, one at a time, in what the service's limit
 * leaves over when nobody else asks, and kept. A size is never what a listing waits for.
 *
 * Each folder is gone through once per listing: what told no size then is asked again when the listing changes. */
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/mount_impl.h"

struct size_job {
	struct mount *m;
	struct entry *entry; /* held */
};

static void save_size(void *arg)
{
	struct size_job *j = arg;

	folder_save_entry(j->m, j->entry);
	pthread_mutex_lock(&j->m->tree.lock);
	node_drop(&j->m->tree, &j->entry->node);
	pthread_mutex_unlock(&j->m->tree.lock);
	free(j);
}

void learn_note(struct mount *m, struct entry *e, int64_t size_bytes)
{
	struct size_job *j = size_bytes > 0 ? malloc(sizeof(*j)) : NULL;
	struct entry_past *past = j ? entry_past(e) : NULL;

	if (!past) {
		free(j);
		return; /* it is learned again */
	}
	*j = (struct size_job){ m, e };
	past->learned_bytes = size_bytes;
	notice_inode(m, e->node.ino);
	node_hold(&e->node);
	if (pool_run(m->disk, save_size, j) < 0) {
		node_drop(&m->tree, &e->node);
		free(j);
	}
}

static bool is_unknown(const struct entry *e)
{
	struct document d;

	return !e->local && entry_document(e, &d) && d.size_bytes < 0 && e->past->learned_bytes == 0;
}

/* Is document i of the folder's listing one of unknown size? */
static bool is_unknown_at(const struct folder *f, int i)
{
	struct document d;

	const struct entry *awake = resting_awake(&f->at_rest, i);
	if (awake)
		return is_unknown(awake);
	listing_get(f->listing, i, &d);
	return resting_has(&f->at_rest, i) && d.size_bytes < 0;
}

/* The next one of a folder, or NULL. tree.lock held. */
static struct entry *find_unknown(struct tree *t, struct folder *f)
{
	if (!f->listing || !f->at_rest.of || f->is_gone)
		return NULL;
	if (f->learn_serial != listing_serial(f->listing)) {
		f->learn_serial = listing_serial(f->listing);
		f->learn_at = 0;
	}
	while (f->learn_at < listing_count(f->listing)) {
		int i = f->learn_at++;
		struct entry *e = is_unknown_at(f, i) ? folder_wake(t, f, i) : NULL;

		if (e)
			return e;
	}
	return NULL;
}

struct question {
	struct entry *entry;   /* held */
	struct folder *folder; /* held */
	char *session_id, *document_id;
	enum urgency urgency;
};

static void question_release(struct mount *m, struct question *q)
{
	SCOPED_LOCK(&m->tree.lock);

	if (q->entry)
		node_drop(&m->tree, &q->entry->node);
	if (q->folder)
		node_drop(&m->tree, &q->folder->node);
	free(q->session_id);
	free(q->document_id);
	*q = (struct question){ 0 };
}

/* What somebody asked for goes first. false: nothing is left; then m->is_learning is false. */
static bool question_next(struct mount *m, struct question *ret)
{
	SCOPED_LOCK(&m->tree.lock);

	for (int asked_for = 1; asked_for >= 0 && !m->is_ending; asked_for--) {
		for (struct folder *f = m->tree.first_folder; f; f = f->next_shown) {
			struct entry *e = f->learns_first >= asked_for ? find_unknown(&m->tree, f) : NULL;

			if (!e) {
				f->learns_first = f->learns_first && f->is_refreshing;
				continue;
			}
			ret->session_id = strdup(f->session.id);
			ret->document_id = strdup(entry_document_id(e));
			ret->urgency = f->learns_first ? URGENCY_BEGIN : URGENCY_BACKGROUND;
			ret->entry = e;
			ret->folder = f;
			node_hold(&e->node);
			node_hold(&f->node);
			if (ret->session_id && ret->document_id)
				return true;
			break;
		}
	}
	m->is_learning = false;
	return false;
}

/* Equal documents under several names have one size. tree.lock held. */
static void note_all(struct mount *m, struct entry *e, int64_t size_bytes)
{
	for (; e; e = e->same) {
		if (is_unknown(e))
			learn_note(m, e, size_bytes);
	}
}

/* false: the service is not to be asked now. The next listing that arrives begins anew. */
static bool ask_size(struct mount *m, const struct question *q)
{
	int64_t size_bytes = 0;
	struct transfer transfer = { .moved_ms = clock_now_ms() };
	struct call call = { .urgency = q->urgency, .transfer = &transfer };
	int r = backend_measure_document(m->backend, &call, q->session_id, q->document_id, &size_bytes);
	bool goes_on = r == 0 || call.fault.kind == FAULT_GONE || call.fault.kind == FAULT_FORBIDDEN ||
		       call.fault.kind == FAULT_INVALID;

	SCOPED_LOCK(&m->tree.lock);
	if (r == 0)
		note_all(m, q->entry, size_bytes);
	if (!goes_on) {
		q->folder->learn_serial = 0;
		q->folder->learns_first = false;
		m->is_learning = false;
	}
	return goes_on;
}

static void learn_job(void *arg)
{
	struct mount *m = arg;
	struct question q = { 0 };
	bool goes_on = true;

	while (goes_on && question_next(m, &q)) {
		goes_on = ask_size(m, &q);
		question_release(m, &q);
	}
	question_release(m, &q);
}

void learn_wake(struct mount *m)
{
	if (m->caps->knows_sizes || m->is_learning || m->is_ending)
		return;
	m->is_learning = true;
	if (pool_run(m->learner, learn_job, m) < 0)
		m->is_learning = false;
}

int learn_first(struct mount *m, struct folder *f, bool begins, bool *ret_is_busy)
{
	int unknown = 0;

	SCOPED_LOCK(&m->tree.lock);
	if (begins) {
		f->learns_first = true;
		f->learn_serial = 0;
		if (!f->listing)
			folder_refresh(m, f, URGENCY_PERSON);
		else
			learn_wake(m);
	}
	for (int i = 0; f->at_rest.of && i < listing_count(f->listing); i++)
		unknown += is_unknown_at(f, i);
	*ret_is_busy = f->is_refreshing || (m->is_learning && f->learns_first);
	return m->caps->knows_sizes ? 0 : unknown;
}
