/* The workers: they sign and send, a few at a time. All else a job needs is its session's line; see upload_line.c. */
#include "fs/upload_impl.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

bool worker_has(const struct job *j)
{
	return j->place == PLACE_WORKER;
}

/* Asks the owner once what is known of these bytes. Gives the lock up. */
static void work_ask_known(struct uploads *u, struct job *j)
{
	CLEANUP(text_release) char *session_id = strdup(j->item.session_id);
	char *known_id = NULL, *known_session_id = NULL, *prior_ids = NULL;
	char sha256[65];
	int64_t size_bytes = j->item.size_bytes;

	memcpy(sha256, j->item.sha256, sizeof(sha256));
	if (session_id && u->config.known) {
		pthread_mutex_unlock(&u->lock);
		u->config.known(u->config.arg, session_id, sha256, size_bytes, &known_id, &known_session_id,
				&prior_ids);
		pthread_mutex_lock(&u->lock);
	} else if (session_id) {
		prior_ids = strdup("");
	}
	if (worker_has(j) && prior_ids && strcmp(session_id, j->item.session_id) == 0) {
		free(j->item.prior_ids);
		j->item.prior_ids = prior_ids;
		prior_ids = NULL;
		j->version++;
		if (!j->item.known_id && known_id) {
			free(j->item.known_session_id);
			j->item.known_id = known_id;
			j->item.known_session_id = known_session_id;
			known_id = known_session_id = NULL;
		}
	} else if (worker_has(j) && !prior_ids) {
		job_failed_here(u, j, -ENOMEM, "no memory");
	}
	free(known_id);
	free(known_session_id);
	free(prior_ids);
}

/* The type it was signed for is no longer the file's. */
static void work_restart(struct uploads *u, struct job *j)
{
	j->restarts = false;
	item_back_to_spooled(j);
	job_ready(u, j);
}

static void work_sign(struct uploads *u, struct job *j)
{
	CLEANUP(errand_release) struct errand e = { 0 };
	struct transfer transfer;
	struct call call;

	if (ahead_take(u, j) || !worker_has(j))
		return;
	int r = errand_fill(&e, j);

	if (r < 0) {
		job_failed_here(u, j, r, "no memory");
		return;
	}
	job_call_begin(j, &call, &transfer, URGENCY_BEGIN);
	pthread_mutex_unlock(&u->lock);
	r = backend_upload_sign(u->config.backend, &call, &e.up);
	pthread_mutex_lock(&u->lock);
	j->watch = NULL;
	if (r < 0)
		trial_failed(u, TRIAL_SIGN, &call.fault);
	if (!worker_has(j))
		return;
	if (j->restarts) {
		work_restart(u, j);
	} else if (r < 0) {
		job_failed(u, j, TRIAL_SIGN, &call.fault, r, moment_now(u));
	} else {
		ticket_take(j, &e);
		job_advance(u, j, UPLOAD_SPOOLED,
			    UPLOAD_SIGNED); /* not written: a ticket that is lost costs one request */
		job_tell_moved(u, j);
	}
}

/* The bytes; refuses or pauses the job when they cannot be had. Gives the lock up. */
static int work_open(struct uploads *u, struct job *j, struct spool **ret)
{
	uint64_t id = j->item.spool_id;
	int64_t size_bytes = j->item.size_bytes;

	pthread_mutex_unlock(&u->lock);
	int r = spool_open(u->config.spool_dir, id, 0, size_bytes, ret);
	pthread_mutex_lock(&u->lock);
	if (r == 0 || !worker_has(j))
		return r;
	if (r == -ENOENT || r == -EIO) {
		log_error("upload: the local bytes of '%s' are missing or damaged", j->item.name);
		item_blame(j, -EIO, FAULT_NONE, "its local bytes are missing or damaged");
		job_refuse(u, j);
	} else {
		job_failed_here(u, j, r, "the local bytes cannot be opened");
	}
	return r;
}

static void work_store(struct uploads *u, struct job *j)
{
	CLEANUP(errand_release) struct errand e = { 0 };
	CLEANUP(spool_release) struct spool *spool = NULL;
	struct transfer transfer;
	struct call call;

	if (work_open(u, j, &spool) < 0 || !worker_has(j))
		return;
	if (u->caps->store_has_effect) {
		if (!j->item.may_have_happened)
			j->version++;
		j->item.may_have_happened = true;
		int r = row_write(u, j);
		if (!worker_has(j))
			return;
		if (r < 0) {
			job_failed_here(u, j, r, "the queue cannot be written");
			return;
		}
	}
	int r = errand_fill(&e, j);
	if (r < 0) {
		job_failed_here(u, j, r, "no memory");
		return;
	}
	e.up.fd = spool_fd(spool);
	job_call_begin(j, &call, &transfer, URGENCY_BEGIN);
	j->is_sent = u->caps->store_has_effect;
	pthread_mutex_unlock(&u->lock);
	r = backend_upload_store(u->config.backend, &call, &e.up);
	pthread_mutex_lock(&u->lock);
	j->watch = NULL;
	if (r < 0)
		trial_failed(u, TRIAL_STORE, &call.fault);
	if (!worker_has(j))
		return;
	if (j->restarts) {
		work_restart(u, j);
		return;
	}
	j->is_sent = false;
	if (r < 0) {
		job_failed(u, j, TRIAL_STORE, &call.fault, r, moment_now(u));
		return;
	}
	ticket_take(j, &e);
	job_advance(u, j, UPLOAD_SIGNED, UPLOAD_STORED);
	/* One commit for two facts: it is stored, and its last step is about to be sent. */
	j->item.may_have_happened = !u->caps->store_has_effect;
	r = row_write(u, j);
	if (worker_has(j) && r < 0)
		job_failed_here(u, j, r, "the queue cannot be written");
	else
		job_tell_moved(u, j);
}

void worker_let_go(struct uploads *u, struct job *j)
{
	if (--j->workers == 0 && j->place == PLACE_LIMBO)
		job_ready(u, j);
	job_unref(j);
}

void work_run(void *arg)
{
	struct job *j = arg;
	struct uploads *u = j->uploads;

	pthread_mutex_lock(&u->lock);
	/* Once put elsewhere it may be in another worker's hands before we look again. */
	unsigned turn = j->turn;
	job_tell_moved(u, j);
	while (worker_has(j) && j->turn == turn) {
		if (u->is_stopping || u->is_drained) {
			job_ready(u, j);
			break;
		}
		switch (job_action(u, j)) {
		case ACTION_ASK_KNOWN:
			work_ask_known(u, j);
			break;
		case ACTION_SIGN:
			work_sign(u, j);
			break;
		case ACTION_STORE:
			work_store(u, j);
			break;
		case ACTION_LOOK:
		case ACTION_SHORTCUT:
		case ACTION_ATTACH:
			job_ready(u, j); /* the rest is its session's line */
			break;
		}
	}
	worker_let_go(u, j);
	u->transfers--;
	u->busy--;
	pthread_cond_broadcast(&u->changed);
	turns_dispatch(u);
	pthread_mutex_unlock(&u->lock);
}
