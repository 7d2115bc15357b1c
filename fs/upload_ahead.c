/* Links asked for ahead: files that are still being written and will be large need not wait for theirs at the end. */
#include "fs/upload_impl.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/index.h"
#include "client/base/pool.h"

enum {
	AHEAD_WAIT_MS = 2000,
};

const char *upload_suffix(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot && dot != name ? dot : "";
}

void ahead_free(struct ahead *a)
{
	if (!a)
		return;
	free(a->session_id);
	free(a->name);
	free(a->ticket);
	free(a);
}

struct ahead **ahead_find(struct uploads *u, uint64_t ino)
{
	for (int i = 0; i < AHEAD_MAX; i++) {
		if (u->aheads[i] && u->aheads[i]->ino == ino)
			return &u->aheads[i];
	}
	return NULL;
}

void ahead_drop(struct ahead **at)
{
	if (!at)
		return;
	if ((*at)->is_asking) {
		(*at)->is_unwanted = true;
		atomic_store(&(*at)->transfer.cancelled, true);
	} else {
		ahead_free(*at);
	}
	*at = NULL;
}

/* A place for one more: an empty one, or that of the oldest which is not being asked for. */
static struct ahead **ahead_room(struct uploads *u)
{
	struct ahead **oldest = NULL;

	for (int i = 0; i < AHEAD_MAX; i++) {
		struct ahead **at = &u->aheads[i];
		if (!*at)
			return at;
		if (!(*at)->is_asking && (!oldest || (*at)->ticket_wall_ms < (*oldest)->ticket_wall_ms))
			oldest = at;
	}
	ahead_drop(oldest);
	return oldest;
}

/* Whatever goes wrong here is nobody's failure: the link is asked for once more when the file is complete. */
static void ahead_ask(void *arg)
{
	struct ahead *a = arg;
	struct uploads *u = a->uploads;
	struct call call = { .urgency = URGENCY_BACKGROUND,
			     .deadline_ms = clock_now_ms() + AHEAD_WAIT_MS,
			     .transfer = &a->transfer };
	struct upload up = { .session_id = a->session_id, .name = a->name, .sha256 = "", .fd = -1 };

	int r = backend_upload_sign(u->config.backend, &call, &up);
	pthread_mutex_lock(&u->lock);
	a->is_asking = false;
	if (r == 0 && !a->is_unwanted) {
		a->ticket = up.ticket;
		a->ticket_wall_ms = up.ticket_wall_ms;
		up.ticket = NULL;
	}
	free(up.ticket);
	if (a->is_unwanted)
		ahead_free(a);
	else if (r < 0)
		ahead_drop(ahead_find(u, a->ino));
	u->transfers--;
	u->busy--;
	pthread_cond_broadcast(&u->changed);
	turns_dispatch(u);
	pthread_mutex_unlock(&u->lock);
}

void uploads_sign_ahead(struct uploads *u, uint64_t ino, const char *session_id, const char *name)
{
	SCOPED_LOCK(&u->lock);
	const struct line *l = index_find(&u->lines, index_hash_text(session_id), line_is, session_id);
	/* A failing service, or one that has enough to do, is not asked for what may not be needed. */
	if (turns_are_blocked(u) || u->failures > 0 || u->is_draining || u->is_stopping || (l && l->is_gone) ||
	    u->transfers + 1 >= u->config.transfers_max || job_find(u, ino) || ahead_find(u, ino))
		return;
	struct ahead **at = ahead_room(u), *a = at ? calloc(1, sizeof(*a)) : NULL;
	if (!a)
		return;
	*a = (struct ahead){
		.uploads = u, .ino = ino, .session_id = strdup(session_id), .name = strdup(name), .is_asking = true
	};
	if (!a->session_id || !a->name || pool_run(u->workers, ahead_ask, a) < 0) {
		ahead_free(a);
		return;
	}
	*at = a;
	u->transfers++;
	u->busy++;
}

bool ahead_take(struct uploads *u, struct job *j)
{
	int64_t until_ms = clock_now_ms() + AHEAD_WAIT_MS;
	struct ahead **at;

	while ((at = ahead_find(u, j->item.ino)) && (*at)->is_asking && !u->is_drained &&
	       !atomic_load(&(*at)->transfer.waits_for_place) && clock_now_ms() < until_ms) {
		changed_wait(u, 20); /* it may get into the limiter's line yet, and nobody says so */
	}
	const struct ahead *a = at ? *at : NULL;
	bool will_do = a && !a->is_asking && worker_has(j) && !j->restarts && j->item.step == UPLOAD_SPOOLED &&
		       strcmp(a->session_id, j->item.session_id) == 0 &&
		       strcasecmp(upload_suffix(a->name), upload_suffix(j->item.name)) == 0;
	if (will_do) {
		struct queue_item link = { .step = UPLOAD_SIGNED, .ticket_wall_ms = a->ticket_wall_ms };
		will_do = !ticket_was_old(u, &link, 0);
	}
	if (will_do) {
		free(j->item.ticket);
		j->item.ticket = (*at)->ticket;
		j->item.ticket_wall_ms = (*at)->ticket_wall_ms;
		j->item.step = UPLOAD_SIGNED;
		j->version++;
		(*at)->ticket = NULL;
	}
	ahead_drop(at);
	return will_do;
}
