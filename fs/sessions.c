/* Which folders there are: sessions that are remembered, configured, listed or looked up, and what they are called. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/mount_impl.h"

/* A session's own record (its name) is asked for so often when the root is listed, and for so many at once. */
#define NAMES_TTL_MS 60000
#define NAMES_AT_ONCE 8
#define DISCOVERY_REMEMBERED_MS (7LL * 24 * 3600 * 1000)

/* ---- names --------------------------------------------------------------------------------------------------- */

static bool root_name_is_taken(struct mount *m, const char *name, const char *but_id)
{
	struct folder *f = tree_find_folder_named(&m->tree, name);
	return f && strcmp(f->session.id, but_id) != 0;
}

/* A name for a session in the root. tree.lock held. */
static void choose_folder_name(struct mount *m, const struct session *s, char ret[NAME_BYTES_MAX + 1])
{
	char safe[NAME_BYTES_MAX + 1];

	name_make_safe(s->name ? s->name : "", safe);
	memcpy(ret, safe, sizeof(safe));
	if (root_name_is_taken(m, ret, s->id) && s->qualifier)
		name_qualify(safe, s->qualifier, ret);
	for (int n = 4; root_name_is_taken(m, ret, s->id) && n <= 64; n += 4)
		name_tell_apart(safe, s->id, n, ret);
}

static bool is_equal_text(const char *a, const char *b)
{
	return strcmp(a ? a : "", b ? b : "") == 0;
}

static bool is_equal_session(const struct session *a, const struct session *b)
{
	return is_equal_text(a->name, b->name) && is_equal_text(a->status, b->status) &&
	       is_equal_text(a->formats, b->formats) && is_equal_text(a->template_id, b->template_id) &&
	       (!b->workspace_id || is_equal_text(a->workspace_id, b->workspace_id)) && a->is_closed == b->is_closed &&
	       a->updated_ms == b->updated_ms;
}

/* The folder has the record now. Returns the name it had when that changed (the caller's), else NULL. tree.lock held. */
static char *take_session(struct mount *m, struct folder *f, struct session *fresh)
{
	char name[NAME_BYTES_MAX + 1];
	char *old_name = NULL, *new_name;
	struct session was = f->session;

	if (f->is_shown && !is_equal_text(f->session.name, fresh->name)) {
		choose_folder_name(m, fresh, name);
		new_name = strcmp(name, f->name) != 0 ? strdup(name) : NULL;
		if (new_name) {
			old_name = tree_rename_folder(&m->tree, f, new_name);
			notice_entry(m, NULL, old_name);
			notice_inode(m, INO_ROOT);
		}
	}
	/* The id's text stays where it is: it is read without the lock. */
	f->session = *fresh;
	f->session.id = was.id;
	was.id = fresh->id;
	if (!f->session.workspace_id) {
		f->session.workspace_id = was.workspace_id;
		was.workspace_id = NULL;
	}
	session_release(&was);
	*fresh = (struct session){ 0 };
	return old_name;
}

void folder_take_session(struct mount *m, struct folder *f, const struct session *s)
{
	CLEANUP(session_release) struct session fresh = { 0 }, kept = { 0 };
	CLEANUP(text_release) char *old_name = NULL, *name = NULL, *alias = NULL;

	if (session_copy(s, &fresh) < 0 || session_copy(s, &kept) < 0)
		return;
	pthread_mutex_lock(&m->tree.lock);
	f->session_asked_ms = clock_now_ms();
	if (is_equal_session(&f->session, s)) {
		pthread_mutex_unlock(&m->tree.lock);
		return;
	}
	bool is_renamed = f->is_shown && !is_equal_text(f->session.name, s->name);
	alias = is_renamed ? strdup(f->name) : NULL;
	pthread_mutex_unlock(&m->tree.lock);
	/* Before the new name shows: whoever types the old one right then, or after a crash, is still led there. One that is not needed in the
	 * end stands for the same folder, and a folder's own name goes before it. */
	if (alias)
		(void)state_save_alias(m->state, kept.id, alias); /* logged there */
	pthread_mutex_lock(&m->tree.lock);
	old_name = take_session(m, f, &fresh);
	name = strdup(f->name);
	struct known_session k = known_session_of(&kept, f->node.ino, name, f->origin);
	pthread_mutex_unlock(&m->tree.lock);
	if (name && kept.name)
		(void)state_save_session(m->state, m->account, &k); /* logged there */
	if (old_name) {
		if (!is_equal_text(alias, old_name))
			(void)state_save_alias(m->state, kept.id, old_name); /* it changed once more meanwhile */
		log_info("session %s is called '%s' now, and answers to '%s' too", kept.id, name ? name : "", old_name);
	}
}

struct naming {
	struct mount *m;
	struct folder *folder; /* held */
};

static void naming_job(void *arg)
{
	struct naming *n = arg;
	struct mount *m = n->m;
	struct folder *f = n->folder;
	struct session s = { 0 };
	struct call call = { .urgency = URGENCY_BACKGROUND, .deadline_ms = clock_now_ms() + WAIT_COLD_MS };

	int r = backend_get_session(m->backend, &call, f->session.id, &s);
	if (r == 0)
		folder_take_session(m, f, &s);
	session_release(&s);
	pthread_mutex_lock(&m->tree.lock);
	f->session_asked_ms = clock_now_ms();
	f->is_refreshing = false;
	m->names_asked--;
	if (r == -ENOENT && call.fault.kind == FAULT_GONE)
		folder_leave(m, f);
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &f->waiters, 0);
	pthread_mutex_lock(&m->tree.lock);
	node_drop(&m->tree, &f->node);
	pthread_mutex_unlock(&m->tree.lock);
	free(n);
}

void folders_refresh_names(struct mount *m)
{
	int64_t now = clock_now_ms(), ttl_ms = m->options->ttl_ms > NAMES_TTL_MS ? m->options->ttl_ms : NAMES_TTL_MS;

	for (struct folder *f = m->tree.first_folder; f && m->names_asked < NAMES_AT_ONCE && m->is_verified;
	     f = f->next_shown) {
		if (f->is_refreshing || f->origin == ORIGIN_LOOKED_UP || now - f->session_asked_ms < ttl_ms ||
		    m->caps->sessions == SESSIONS_LISTED)
			continue;
		struct naming *n = malloc(sizeof(*n));
		if (!n)
			return;
		*n = (struct naming){ m, f };
		node_hold(&f->node);
		f->is_refreshing = true; /* a flight changes the session's record too, and there is one at a time */
		m->names_asked++;
		if (pool_run(m->flights, naming_job, n) < 0) {
			m->names_asked--;
			f->is_refreshing = false;
			node_drop(&m->tree, &f->node);
			free(n);
		}
	}
}

/* ---- sessions ---------------------------------------------------------------------------------------------- */

int folder_add_session(struct mount *m, const struct session *session, enum session_origin origin, struct folder **ret)
{
	char name[NAME_BYTES_MAX + 1];
	CLEANUP(text_release) char *name_copy = NULL;
	uint64_t ino = 0;
	CLEANUP(known_session_release) struct known_session before = { 0 };
	struct known_session *all = NULL;
	int count = 0;

	pthread_mutex_lock(&m->tree.lock);
	struct folder *shown = tree_find_folder(&m->tree, session->id);
	if (shown && (shown->origin == ORIGIN_LOOKED_UP) != (origin == ORIGIN_LOOKED_UP) && origin != ORIGIN_LOOKED_UP)
		shown = NULL;
	if (shown)
		node_hold(&shown->node);
	pthread_mutex_unlock(&m->tree.lock);
	if (shown) {
		folder_take_session(m, shown, session);
		pthread_mutex_lock(&m->tree.lock);
		node_drop(&m->tree, &shown->node); /* its place in the root holds it */
		pthread_mutex_unlock(&m->tree.lock);
		*ret = shown;
		return 0;
	}
	/* One that was here before has its inode number and its name again. */
	if (state_load_sessions(m->state, m->account, &all, &count) == 0) {
		for (int i = 0; i < count; i++) {
			if (strcmp(all[i].id, session->id) == 0) {
				before = all[i];
				all[i] = (struct known_session){ 0 };
			}
			known_session_release(&all[i]);
		}
		free(all);
	}
	ino = before.ino ? before.ino : state_next_ino(m->state);
	if (ino == 0)
		return -EIO;
	pthread_mutex_lock(&m->tree.lock);
	struct folder *f = tree_find_folder(&m->tree, session->id);
	if (!f) {
		choose_folder_name(m, session, name);
		if (before.name && before.server_name &&
		    strcmp(before.server_name, session->name ? session->name : "") == 0 &&
		    !root_name_is_taken(m, before.name, session->id))
			(void)snprintf(name, sizeof(name), "%s", before.name);
		f = tree_add_folder(&m->tree, FOLDER_SESSION, ino, session, name, origin);
		if (f) {
			f->session_asked_ms = clock_now_ms();
			notice_entry(m, NULL, name);
			notice_inode(m, INO_ROOT);
		}
	}
	if (f && f->origin == ORIGIN_LOOKED_UP && origin != ORIGIN_LOOKED_UP) {
		f->origin = origin;
		m->tree.root_shape++;
		notice_inode(m, INO_ROOT);
	}
	name_copy = f ? strdup(f->name) : NULL;
	if (f) {
		ino = f->node.ino;
		origin = f->origin;
	}
	pthread_mutex_unlock(&m->tree.lock);
	if (!f || !name_copy)
		return -ENOMEM;
	struct known_session k = known_session_of(session, ino, name_copy, origin);
	int r = state_save_session(m->state, m->account, &k);
	if (r < 0)
		log_warning("state: session %s could not be saved (%s): after a remount it has to be added again",
			    session->id, strerror(-r));
	*ret = f;
	return 0;
}

int folders_load(struct mount *m)
{
	struct known_session *all = NULL;
	int count = 0, r = state_load_sessions(m->state, m->account, &all, &count);

	if (r < 0)
		return r;
	for (int i = 0; i < count; i++) {
		struct known_session *k = &all[i];
		if (!k->is_forgotten && k->account_saw_it) {
			struct session s = { .id = k->id,
					     .name = k->server_name,
					     .template_id = k->template_id,
					     .workspace_id = k->workspace_id,
					     .status = k->status,
					     .formats = k->formats,
					     .created_ms = k->created_ms,
					     .updated_ms = k->updated_ms };
			SCOPED_LOCK(&m->tree.lock);
			if (!tree_find_folder(&m->tree, k->id) && !tree_find_folder_named(&m->tree, k->name) &&
			    !tree_add_folder(&m->tree, FOLDER_SESSION, k->ino, &s, k->name, k->origin))
				r = -ENOMEM;
		}
		known_session_release(k);
	}
	free(all);
	return r;
}

int folder_look_up_session(struct mount *m, const char *id, char **ret_name)
{
	struct session s = { 0 };
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + WAIT_COLD_MS };
	struct folder *f;

	int r = backend_get_session(m->backend, &call, id, &s);
	if (r == 0)
		r = folder_add_session(m, &s, ORIGIN_LOOKED_UP, &f);
	session_release(&s);
	if (r < 0)
		return r;
	SCOPED_LOCK(&m->tree.lock);
	*ret_name = strdup(f->name);
	return *ret_name ? 0 : -ENOMEM;
}

static bool is_known(struct mount *m, const char *id)
{
	SCOPED_LOCK(&m->tree.lock);
	return tree_find_folder(&m->tree, id) != NULL;
}

/* Was it taken off by hand since? Then the configuration brings it back at the next start, and not before. */
static bool was_taken_off(struct mount *m, const char *id)
{
	struct known_session *all = NULL;
	int count = 0;
	bool found = false;

	if (state_load_sessions(m->state, m->account, &all, &count) < 0)
		return false;
	for (int i = 0; i < count; i++) {
		found |= strcmp(all[i].id, id) == 0 && all[i].is_forgotten;
		known_session_release(&all[i]);
	}
	free(all);
	return found;
}

/* The sessions that are named in the configuration and not known yet. false: some could not be had. */
static bool ask_configured(struct mount *m, bool is_first)
{
	bool has_all = true;

	for (int i = 0; i < m->options->sessions.count; i++) {
		CLEANUP(text_release) char *id = NULL;
		CLEANUP(session_release) struct session s = { 0 };
		struct folder *f;
		struct call call = { .urgency = is_first ? URGENCY_PERSON : URGENCY_BACKGROUND,
				     .deadline_ms = clock_now_ms() + 30000 };

		if (backend_find_session_id(m->backend, m->options->sessions.items[i], &id) < 0) {
			if (is_first)
				log_error("session=%s: there is no session id in this", m->options->sessions.items[i]);
			continue;
		}
		if (is_known(m, id) || (!is_first && was_taken_off(m, id)))
			continue;
		int r = backend_get_session(m->backend, &call, id, &s);
		if (r == 0)
			r = folder_add_session(m, &s, ORIGIN_CONFIGURED, &f);
		if (r == -ENOENT && is_first)
			log_warning("session %s is not there, or not for this token", id);
		has_all &= r == 0;
	}
	return has_all;
}

/* Where the service has a list, a folder that it lacks leaves, unless something waits for it. */
static void hide_unlisted(struct mount *m, const struct session_list *all)
{
	SCOPED_LOCK(&m->tree.lock);
	for (struct folder *next, *f = m->tree.first_folder; f; f = next) {
		bool is_listed = false;
		next = f->next_shown;
		for (int i = 0; i < all->count && !is_listed; i++)
			is_listed = strcmp(all->items[i].id, f->session.id) == 0;
		if (is_listed || f->origin == ORIGIN_LOOKED_UP || f->local_count > 0)
			continue;
		notice_entry(m, NULL, f->name);
		notice_inode(m, INO_ROOT);
		tree_hide_folder(&m->tree, f);
	}
}

/* Asks for the list of all sessions, where there is one or where one may be guessed. */
static void ask_list(struct mount *m)
{
	struct session_list all = { 0 };
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + 30000 };
	struct folder *f;

	int r = backend_list_sessions(m->backend, &call, &all);
	if (m->caps->sessions == SESSIONS_GUESSED && (r == 0 || r == -EOPNOTSUPP)) {
		char when[32];
		(void)snprintf(when, sizeof(when), "%lld %d", (long long)clock_wall_ms(), r == 0);
		(void)state_set(m->state, "discovered", when); /* else it is tried again next time */
	}
	if (r < 0)
		return;
	for (int i = 0; i < all.count; i++)
		if (folder_add_session(m, &all.items[i],
				       m->caps->sessions == SESSIONS_LISTED ? ORIGIN_LISTED : ORIGIN_DISCOVERED,
				       &f) < 0)
			break;
	if (m->caps->sessions == SESSIONS_LISTED)
		hide_unlisted(m, &all);
	session_list_release(&all);
}

static bool wants_discovery(struct mount *m)
{
	CLEANUP(text_release) char *text = NULL;
	long long when = 0;
	int found = 0;

	if (m->options->discover == DISCOVER_NO)
		return false;
	pthread_mutex_lock(&m->tree.lock);
	bool has_folders = m->tree.folder_count > 0;
	pthread_mutex_unlock(&m->tree.lock);
	if (m->options->discover == DISCOVER_AUTO && (has_folders || m->options->sessions.count > 0))
		return false;
	/* A guess that failed is not repeated for a week; one that went well is. */
	if (state_get(m->state, "discovered", &text) == 0 && sscanf(text, "%lld %d", &when, &found) == 2 && !found &&
	    clock_wall_ms() - when < DISCOVERY_REMEMBERED_MS)
		return false;
	return true;
}

void folders_ask(struct mount *m)
{
	pthread_mutex_lock(&m->tree.lock);
	bool is_first = !m->sessions_asked;
	pthread_mutex_unlock(&m->tree.lock);
	bool has_all = ask_configured(m, is_first);
	if (m->caps->sessions == SESSIONS_LISTED ||
	    (m->caps->sessions == SESSIONS_GUESSED && is_first && wants_discovery(m)))
		ask_list(m);
	pthread_mutex_lock(&m->tree.lock);
	m->sessions_lack_some = !has_all;
	m->sessions_asked = true;
	m->sessions_refreshing = false;
	m->sessions_refreshed_ms = clock_now_ms();
	pthread_mutex_unlock(&m->tree.lock);
	park_wake(m->park, &m->session_waiters, 0);
}

static void ask_job(void *arg)
{
	folders_ask(arg);
}

void folders_refresh(struct mount *m)
{
	int64_t age = clock_now_ms() - m->sessions_refreshed_ms;
	bool is_listed = m->caps->sessions == SESSIONS_LISTED;
	bool is_due = !m->sessions_asked || (is_listed && age >= m->options->ttl_ms) ||
		      (m->sessions_lack_some && age >= NAMES_TTL_MS);

	if (m->sessions_refreshing || m->is_ending || !is_due)
		return;
	m->sessions_refreshing = true;
	if (pool_run(m->calls, ask_job, m) < 0)
		m->sessions_refreshing = false;
}
