/* One mount, put together and taken apart; see mount.h. */
#include "fs/mount_impl.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/wire.h"

#define START_WAIT_MS 10000
#define WANTED_WAIT_MS 4000 /* of it, until something else is asked */
#define DRAIN_MS 30000
#define TRANSFERS_MAX 10
#define EXPIRE_MS_MAX (6 * 60 * 60 * 1000)
#define SENTENCE_BYTES_MAX 1024
#define FACT_ANSWERED "answered"

static int make_pools(struct mount *m)
{
	m->flights = pool_new("flights", 16);
	m->calls = pool_new("calls", 16);
	m->fetches = pool_new("fetches", 8);
	m->learner = pool_new("learner", 1);
	m->disk = pool_new("disk", 8);
	m->notices = pool_new("notices", 4);
	m->park = m->calls ? park_new(m->calls) : NULL;
	return m->flights && m->calls && m->fetches && m->disk && m->notices && m->park ? 0 : -ENOMEM;
}

static int open_stores(struct mount *m, struct buf *why)
{
	CLEANUP(buf_release) struct buf path = BUF(4096);

	buf_addf(&path, "%s/spool", state_dir(m->state));
	m->spool_dir = buf_take(&path);
	if (!m->spool_dir)
		return -ENOMEM;
	int r = spool_dir_make(m->spool_dir);
	if (r < 0) {
		buf_addf(why, "%s can't be made: %s", m->spool_dir, strerror(-r));
		return r;
	}
	r = queue_open(state_dir(m->state), why, &m->queue);
	if (r < 0)
		return r;
	/* In the state folder when both are on one file system would be as well; here it can be lost without harm. */
	buf_addf(&path, "%s/content", m->options->cache_dir);
	r = content_open(buf_text(&path) ? buf_text(&path) : "", m->options->cache_size_bytes, &m->content);
	if (r < 0)
		buf_addf(why, "%s can't be used: %s", buf_text(&path), strerror(-r));
	return r;
}

static int open_uploads(struct mount *m)
{
	struct uploads_config config = { .backend = m->backend,
					 .queue = m->queue,
					 .spool_dir = m->spool_dir,
					 .account = m->account,
					 .close_timeout_ms = m->options->close_timeout_ms,
					 .transfers_max = TRANSFERS_MAX,
					 .event = local_event,
					 .known = local_known,
					 .arg = m };
	return uploads_new(&config, &m->uploads);
}

int mount_new(const struct mount_config *config, struct buf *why, struct mount **ret)
{
	struct mount *m = calloc(1, sizeof(*m));
	int r = -ENOMEM;

	if (!m)
		return r;
	m->options = config->options;
	m->backend = config->backend;
	m->caps = backend_caps(config->backend);
	m->state = config->state;
	m->umask = config->options->umask;
	m->started_wall_ms = clock_wall_ms();
	memcpy(m->account, config->account, sizeof(m->account));
	tree_init(&m->tree);
	pthread_mutex_init(&m->handles_lock, NULL);
	pthread_mutex_init(&m->rows_lock, NULL);
	pthread_mutex_init(&m->fill_lock, NULL);
	r = make_pools(m);
	if (r == 0)
		r = name_rules_new(m->options->ignore, m->caps->formats, m->options->formats, why, &m->rules);
	if (r == 0)
		r = open_stores(m, why);
	if (r == 0)
		r = open_uploads(m);
	if (r == 0)
		r = folders_load(m);
	for (struct folder *f = m->tree.first_folder; r == 0 && f; f = f->next_shown)
		backend_learn_session(m->backend, &f->session);
	if (r == 0)
		r = local_load(m);
	if (r < 0) {
		if (!why->len)
			buf_addf(why, "the mount can't be set up: %s", strerror(-r));
		mount_free(m);
		return r;
	}
	*ret = m;
	return 0;
}

/* ---- the kernel's side ------------------------------------------------------------------------------------- */

static int add_args(struct mount *m, struct fuse_args *args)
{
	char text[300];
	int r = fuse_opt_add_arg(args, "sessionfs");

	(void)snprintf(text, sizeof(text), "-ofsname=%.200s,subtype=sessionfs,default_permissions", m->options->source);
	r |= fuse_opt_add_arg(args, text);
	if (m->options->allow_other)
		r |= fuse_opt_add_arg(args, "-oallow_other");
	if (m->options->read_only)
		r |= fuse_opt_add_arg(args, "-oro");
	if (m->options->debug_fuse)
		r |= fuse_opt_add_arg(args, "-d");
	for (int i = 0; i < m->options->fuse_args.count; i++)
		r |= fuse_opt_add_arg(args, m->options->fuse_args.items[i]);
	return r ? -ENOMEM : 0;
}

int mount_attach(struct mount *m, struct buf *why)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int r = add_args(m, &args);

	if (r == 0) {
		m->fuse = fuse_session_new(&args, &mount_ops, sizeof(mount_ops), m);
		if (!m->fuse) {
			buf_add(why, "libfuse does not take these options");
			r = -EINVAL;
		}
	}
	fuse_opt_free_args(&args);
	if (r == 0 && fuse_session_mount(m->fuse, m->options->mountpoint) != 0) {
		buf_addf(why, "%s can't be mounted on (is fusermount3 there, and is the folder yours?)",
			 m->options->mountpoint);
		fuse_session_destroy(m->fuse);
		m->fuse = NULL;
		r = -EIO;
	}
	if (r == 0) {
		(void)wire_allow_parallel(
			m->fuse); /* without it who waits in a folder keeps others waiting, as before */
		SCOPED_LOCK(&m->tree.lock);
		m->is_served = true;
	}
	return r;
}

/* ---- the start --------------------------------------------------------------------------------------------- */

static bool remembers_something(struct mount *m)
{
	SCOPED_LOCK(&m->tree.lock);
	return m->tree.folder_count > 0;
}

static void end_loop(struct mount *m)
{
	fuse_session_exit(m->fuse);
	(void)kill(getpid(), SIGUSR1); /* wakes the loop's thread, which alone does not block it */
}

static void tell_verdict(struct mount *m, int error, const char *sentence)
{
	pthread_mutex_lock(&m->tree.lock);
	m->is_verified = error == 0 && !sentence;
	m->verify_error = error;
	void (*verified)(void *arg, int e, const char *s) = m->verified;
	m->verified = NULL;
	pthread_mutex_unlock(&m->tree.lock);
	if (verified)
		verified(m->verified_arg, error, sentence);
}

/* What an answer says of the token. 0: the service knows it. -EACCES: it does not. -EAGAIN: there was none that could tell. */
static int judge(int error, const struct fault *fault)
{
	if (error == -EACCES && fault->kind == FAULT_ACCOUNT)
		return -EACCES;
	/* Any other answer about what was asked for was made for a token it knows. */
	return error == 0 || (fault->http_status >= 300 && fault->http_status < 500) ? 0 : -EAGAIN;
}

/* A session of the configuration that no folder stands for yet, or NULL. The caller's. */
static char *find_new_session(struct mount *m)
{
	for (int i = 0; i < m->options->sessions.count; i++) {
		CLEANUP(text_release) char *id = NULL;
		if (backend_find_session_id(m->backend, m->options->sessions.items[i], &id) < 0)
			continue; /* folders_ask() says so */
		SCOPED_LOCK(&m->tree.lock);
		if (!tree_find_folder(&m->tree, id)) {
			char *found = id;
			id = NULL;
			return found;
		}
	}
	return NULL;
}

/* The first of those that are remembered, or NULL. The caller's. */
static char *find_known_session(struct mount *m)
{
	SCOPED_LOCK(&m->tree.lock);
	const struct folder *f = m->tree.first_folder;

	return f ? strdup(f->session.id) : NULL;
}

/* The record of a folder that is shown. Its documents are recalled before: the record may tell that they are as they were, and then the
 * folder's first refresh needs no answer of its own. */
static int ask_known_session(struct mount *m, struct call *call, const char *id)
{
	CLEANUP(listing_release) struct listing *recalled = NULL;
	CLEANUP(session_release) struct session s = { 0 };
	struct folder *f;

	(void)backend_recall_documents(m->backend, id, INT64_MAX, &recalled); /* none: there is more to ask for later */
	int r = backend_get_session(m->backend, call, id, &s);
	/* As one that is looked up: should it have been taken off meanwhile, it does not come back. */
	if (r == 0)
		(void)folder_add_session(m, &s, ORIGIN_LOOKED_UP, &f); /* without memory its folder asks again */
	return r;
}

/* Asks for something that is wanted anyway, and whose answer the cache has for whoever wants it next. -ENODATA: nothing is. */
static int ask_wanted(struct mount *m, struct call *call)
{
	CLEANUP(session_list_release) struct session_list all = { 0 };
	CLEANUP(session_release) struct session s = { 0 };
	CLEANUP(text_release) char *id = NULL;

	if (m->caps->sessions == SESSIONS_LISTED)
		return backend_list_sessions(m->backend, call, &all);
	id = find_new_session(m);
	if (id)
		return backend_get_session(m->backend, call, id, &s);
	id = find_known_session(m);
	return id ? ask_known_session(m, call, id) : -ENODATA;
}

/* One try at the service, as judge() tells; then why says more (NULL: nobody asks). */
static int check_once(struct mount *m, int64_t deadline_ms, struct fault *why)
{
	int64_t wanted_end_ms = clock_now_ms() + WANTED_WAIT_MS;
	struct call wanted = { .urgency = URGENCY_PERSON,
			       .deadline_ms = wanted_end_ms < deadline_ms ? wanted_end_ms : deadline_ms };
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = deadline_ms };
	int r = ask_wanted(m, &wanted);

	if (r != -ENODATA)
		r = judge(r, &wanted.fault);
	if (r == 0 || r == -EACCES)
		return r;
	/* It may be that one thing alone which is slow, or broken. */
	r = backend_check(m->backend, &call);
	if (why && !why->words[0])
		*why = call.fault; /* the first says most: the last is often that the time was up */
	return judge(r, &call.fault);
}

static void go_on_with_work(struct mount *m)
{
	folders_ask(m);
	local_resume(m);
}

static void check_again(void *arg);

static void check_later(struct mount *m)
{
	pthread_mutex_lock(&m->tree.lock);
	bool is_ending = m->is_ending;
	pthread_mutex_unlock(&m->tree.lock);
	if (!is_ending)
		(void)pool_run_later(m->calls, 15000, check_again, NULL,
				     m); /* without memory the next listing shows it */
}

/* The service was away at the start; the mount is up on what is remembered. */
static void check_again(void *arg)
{
	struct mount *m = arg;
	int r = check_once(m, clock_now_ms() + START_WAIT_MS, NULL);

	if (r == -EAGAIN) {
		check_later(m);
		return;
	}
	pthread_mutex_lock(&m->tree.lock);
	m->is_verified = r == 0;
	m->verify_error = r;
	pthread_mutex_unlock(&m->tree.lock);
	if (r == -EACCES)
		log_error("%s refuses the token. %s", m->caps->title, m->caps->token_help);
	go_on_with_work(m); /* files of an earlier run wait with all others, until the token is another */
}

/* What is remembered is as old as the last answer. */
static void add_remembered_since(struct mount *m, struct buf *ret)
{
	CLEANUP(text_release) char *text = NULL;
	char when[40] = "an earlier time";
	struct tm tm;

	if (state_get(m->state, FACT_ANSWERED, &text) == 0) {
		time_t at = (time_t)(strtoll(text, NULL, 10) / 1000);
		if (localtime_r(&at, &tm))
			(void)strftime(when, sizeof(when), "%Y-%m-%d %H:%M", &tm);
	}
	buf_addf(ret, "%s does not answer; the mount shows what is remembered from %s and goes on trying",
		 m->caps->title, when);
}

/* For the next start without the service. */
static void remember_answer(struct mount *m)
{
	char text[32];

	(void)snprintf(text, sizeof(text), "%lld", (long long)clock_wall_ms());
	(void)state_set(m->state, FACT_ANSWERED, text); /* else the sentence is vaguer */
}

static void expire_job(void *arg)
{
	struct mount *m = arg;
	int64_t next_ms = local_expire(m);

	if (next_ms > EXPIRE_MS_MAX)
		next_ms = EXPIRE_MS_MAX;
	(void)pool_run_later(m->disk, next_ms, expire_job, NULL, m); /* without memory the next start does it */
}

static void *start_check(void *arg)
{
	struct mount *m = arg;
	CLEANUP(buf_release) struct buf sentence = BUF(SENTENCE_BYTES_MAX);
	int64_t end_ms = clock_now_ms() + START_WAIT_MS;
	struct fault why = { 0 };
	int r;

	do {
		r = check_once(m, end_ms, &why);
		int64_t left_ms = end_ms - clock_now_ms();
		if (r != -EAGAIN || (m->options->start != START_WAIT && left_ms <= 0))
			break;
		pthread_mutex_lock(&m->tree.lock);
		bool is_ending = m->is_ending;
		pthread_mutex_unlock(&m->tree.lock);
		if (is_ending)
			return NULL;
		if (m->options->start == START_WAIT && left_ms <= 0)
			end_ms = clock_now_ms() + START_WAIT_MS;
		struct timespec pause = { .tv_sec = 0, .tv_nsec = 500000000 };
		(void)nanosleep(&pause, NULL);
	} while (true);

	pthread_mutex_lock(&m->tree.lock);
	bool has_ended = m->is_ending;
	pthread_mutex_unlock(&m->tree.lock);
	if (has_ended && r != 0)
		return NULL; /* unmounted before it was known: nothing failed */
	if (r == 0) {
		uploads_service_answered(m->uploads);
		tell_verdict(m, 0, NULL);
		remember_answer(m);
		go_on_with_work(m);
		return NULL;
	}
	if (r == -EACCES) {
		buf_addf(&sentence, "%s refuses the token. %s", m->caps->title, m->caps->token_help);
		tell_verdict(m, -EACCES, buf_text(&sentence));
		end_loop(m);
		return NULL;
	}
	if (m->options->start == START_AUTO && remembers_something(m)) {
		add_remembered_since(m, &sentence);
		log_warning("%s", buf_text(&sentence));
		tell_verdict(m, 0, buf_text(&sentence));
		check_later(m);
		return NULL;
	}
	buf_addf(&sentence, "%s does not answer (%s)", m->caps->title,
		 m->options->url        ? m->options->url
		 : m->caps->default_url ? m->caps->default_url
					: "no url");
	if (why.words[0])
		buf_addf(&sentence, ": %s", why.words);
	tell_verdict(m, -ETIMEDOUT, buf_text(&sentence));
	end_loop(m);
	return NULL;
}

/* ---- signals ----------------------------------------------------------------------------------------------- */

struct signals {
	struct mount *m;
	pthread_t loop, watcher;
	sigset_t set;
};

static void forget_all(struct mount *m)
{
	backend_forget(m->backend, NULL);
	pthread_mutex_lock(&m->tree.lock);
	for (struct folder *f = m->tree.first_folder; f; f = f->next_shown)
		folder_age(f);
	m->sessions_refreshed_ms = 0;
	pthread_mutex_unlock(&m->tree.lock);
}

static void *watch_signals(void *arg)
{
	struct signals *s = arg;
	int sig;

	while (sigwait(&s->set, &sig) == 0) {
		if (sig == SIGHUP) {
			log_info("what is remembered is forgotten, as asked");
			forget_all(s->m);
			continue;
		}
		if (sig == SIGUSR2)
			return NULL;
		fuse_session_exit(s->m->fuse);
		pthread_kill(s->loop, SIGUSR1);
	}
	return NULL;
}

static void on_wake(int sig)
{
	(void)sig; /* interrupts the loop's wait, nothing more */
}

static int watch_begin(struct signals *s, struct mount *m)
{
	struct sigaction wake = { .sa_handler = on_wake };
	sigset_t mine;

	s->m = m;
	s->loop = pthread_self();
	sigemptyset(&s->set);
	sigaddset(&s->set, SIGTERM);
	sigaddset(&s->set, SIGINT);
	sigaddset(&s->set, SIGHUP);
	sigaddset(&s->set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &s->set, NULL);
	sigaction(SIGUSR1, &wake, NULL);
	(void)signal(SIGPIPE, SIG_IGN);
	int r = pthread_create(&s->watcher, NULL, watch_signals, s);
	sigemptyset(&mine);
	sigaddset(&mine, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &mine, NULL);
	return -r;
}

static void watch_end(struct signals *s)
{
	pthread_kill(s->watcher, SIGUSR2);
	pthread_join(s->watcher, NULL);
}

/* ---- the loop and the end ---------------------------------------------------------------------------------- */

static void say_what_is_left(struct mount *m)
{
	int waiting, failed, scratch;

	pthread_mutex_lock(&m->tree.lock);
	control_count(m, &waiting, &failed, &scratch);
	pthread_mutex_unlock(&m->tree.lock);
	if (waiting > 0)
		log_warning("%d file%s not uploaded yet: the next mount goes on with %s", waiting,
			    waiting == 1 ? " is" : "s are", waiting == 1 ? "it" : "them");
	if (failed > 0)
		log_warning("%d file%s refused and waits in .sessionfs/failed", failed,
			    failed == 1 ? " was" : "s were");
	if (scratch > 0)
		log_warning("%d temporary file%s bytes and stays on this machine", scratch,
			    scratch == 1 ? " holds" : "s hold");
}

static bool is_off(struct mount *m)
{
	struct pollfd gone = { .fd = fuse_session_fd(m->fuse) };
	return poll(&gone, 1, 0) == 1 && (gone.revents & POLLERR);
}

/* Takes the mount off the tree of names, and keeps the descriptor: closes that wait for an upload still hear how it went, and no thread
 * writes to a number that is somebody else's by then. fuse_session_destroy() closes it. */
static void detach(struct mount *m)
{
	const char *path = m->options->mountpoint;
	pid_t pid;

	if (is_off(m))
		return; /* fusermount3 -u was faster */
	if (umount2(path, MNT_DETACH) == 0)
		return;
	char *const argv[] = { "fusermount3", "-u", "-z", "-q", "--", (char *)path, NULL };
	int r = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
	if (r == 0)
		(void)waitpid(pid, NULL, 0); /* it says itself what is wrong */
	else
		log_warning("%s could not be unmounted: %s", path, strerror(r));
}

int mount_loop(struct mount *m, void (*verified)(void *arg, int error, const char *sentence), void *arg)
{
	struct signals signals;
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	pthread_t checker;
	bool is_watching, is_checking = false;

	if (!config)
		return -ENOMEM;
	fuse_loop_cfg_set_max_threads(config, 16);
	fuse_loop_cfg_set_idle_threads(config, 16);
	m->verified = verified;
	m->verified_arg = arg;
	(void)pool_run_later(m->disk, 1000, expire_job, NULL, m);
	int r = watch_begin(&signals, m);
	is_watching = r == 0;
	if (is_watching) {
		r = -pthread_create(&checker, NULL, start_check, m);
		is_checking = r == 0;
	}
	if (is_checking) {
		log_info("mounted %s on %s", m->options->source, m->options->mountpoint);
		r = fuse_session_loop_mt(m->fuse, config);
		r = r > 0 ? 0 : r; /* ended by a signal */
	}
	fuse_loop_cfg_destroy(config);
	pthread_mutex_lock(&m->tree.lock);
	m->is_ending = true;
	m->is_served = false;
	pthread_mutex_unlock(&m->tree.lock);
	state_set_draining(m->state);
	detach(m);
	local_save_all(m);
	(void)uploads_drain(m->uploads, DRAIN_MS);
	backend_stop(m->backend);
	if (is_checking)
		(void)pthread_join(checker, NULL); /* after this nobody is told a verdict any more */
	say_what_is_left(m);
	log_info("unmounted %s", m->options->mountpoint);
	if (is_watching)
		watch_end(&signals);
	return r;
}

void mount_free(struct mount *m)
{
	if (!m)
		return;
	pthread_mutex_lock(&m->tree.lock);
	m->is_ending = true;
	pthread_mutex_unlock(&m->tree.lock);
	/* Each may still hand something to any other: all come to rest before one is freed, those that write to the disk last. */
	pool_stop(m->flights);
	pool_stop(m->fetches);
	pool_stop(m->learner);
	pool_stop(m->calls);
	pool_stop(m->disk);
	uploads_free(m->uploads);
	/* Whoever is still parked hears that it is over, on this thread. */
	park_free(m->park);
	pool_stop(m->notices);
	pool_free(m->flights);
	pool_free(m->fetches);
	pool_free(m->learner);
	pool_free(m->calls);
	pool_free(m->disk);
	pool_free(m->notices);
	if (m->fuse && is_off(m))
		fuse_session_unmount(m->fuse); /* frees the path it has */
	if (m->fuse)
		fuse_session_destroy(m->fuse);
	while (m->handles)
		handle_free(m, m->handles);
	pthread_mutex_destroy(&m->handles_lock);
	pthread_mutex_destroy(&m->rows_lock);
	pthread_mutex_destroy(&m->fill_lock);
	tree_release(&m->tree);
	queue_close(m->queue);
	content_close(m->content);
	name_rules_free(m->rules);
	free(m->spool_dir);
	free(m->template_id);
	free(m->refused_text);
	free(m);
}

/* ---- commands ---------------------------------------------------------------------------------------------- */

static int command_add(struct mount *m, const char *text, struct buf *answer)
{
	CLEANUP(text_release) char *id = NULL;
	CLEANUP(session_release) struct session s = { 0 };
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + 30000 };
	struct folder *f;

	int r = backend_find_session_id(m->backend, text, &id);
	if (r < 0) {
		buf_addf(answer, "error there is no session id in '%s'\n", text);
		return r;
	}
	r = backend_get_session(m->backend, &call, id, &s);
	if (r == 0)
		r = folder_add_session(m, &s, ORIGIN_ADDED, &f);
	if (r < 0) {
		buf_addf(answer, "error session %s can't be shown: %s%s%s\n", id, strerror(-r),
			 call.fault.words[0] ? ": " : "", call.fault.words);
		return r;
	}
	SCOPED_LOCK(&m->tree.lock);
	buf_addf(answer, "ok\n%s\n", f->name);
	return 0;
}

/* The folder of a path below the mount point ("Q1/x.pdf", "Q1"), its rest in *ret_name ("" for the folder itself). Held. */
static struct folder *folder_of_path(struct mount *m, const char *path, const char **ret_name)
{
	const char *slash = strchr(path, '/');
	CLEANUP(text_release) char *first = slash ? strndup(path, (size_t)(slash - path)) : strdup(path);

	if (!first)
		return NULL;
	SCOPED_LOCK(&m->tree.lock);
	struct folder *f = tree_find_folder_named(&m->tree, first);
	if (!f)
		f = tree_find_folder(&m->tree, first);
	if (f)
		node_hold(&f->node);
	*ret_name = slash ? slash + 1 : "";
	return f;
}

static void drop_folder(struct mount *m, struct folder *f)
{
	SCOPED_LOCK(&m->tree.lock);
	node_drop(&m->tree, &f->node);
}

static int command_forget(struct mount *m, const char *text, struct buf *answer)
{
	CLEANUP(text_release) char *id = NULL;
	const char *rest;
	struct folder *f = NULL;

	if (backend_find_session_id(m->backend, text, &id) == 0)
		f = folder_of_path(m, id, &rest);
	if (!f)
		f = folder_of_path(m, text, &rest);
	if (!f) {
		buf_addf(answer, "error no folder here stands for '%s'\n", text);
		return -ENOENT;
	}
	int r = folder_forget(m, f);
	drop_folder(m, f);
	if (r < 0)
		buf_addf(answer, "error %s\n",
			 r == -ENOTEMPTY ? "files in it still wait to be uploaded" : strerror(-r));
	else
		buf_add(answer, "ok\n");
	return r;
}

static int command_refresh(struct mount *m, const char *path, struct buf *answer)
{
	const char *rest;
	struct folder *f = *path ? folder_of_path(m, path, &rest) : NULL;

	if (*path && !f) {
		buf_addf(answer, "error no session's folder is called '%s'\n", path);
		return -ENOENT;
	}
	if (f) {
		backend_forget(m->backend, f->session.id);
		pthread_mutex_lock(&m->tree.lock);
		folder_age(f);
		folder_refresh(m, f, URGENCY_PERSON);
		pthread_mutex_unlock(&m->tree.lock);
		drop_folder(m, f);
	} else {
		forget_all(m);
	}
	buf_add(answer, "ok\n");
	return 0;
}

/* Answers how many sizes are not known, and "busy" while they are learned. */
static int command_sizes(struct mount *m, const char *path, bool begins, struct buf *answer)
{
	const char *rest;
	bool is_busy;
	struct folder *f = folder_of_path(m, path, &rest);

	if (!f) {
		buf_addf(answer, "error no session's folder is called '%s'\n", path);
		return -ENOENT;
	}
	int unknown = learn_first(m, f, begins, &is_busy);
	buf_addf(answer, "ok\n%d %s\n", unknown, is_busy ? "busy" : "done");
	drop_folder(m, f);
	return 0;
}

static int command_run(struct mount *m, const char *path, struct buf *answer)
{
	const char *rest;
	struct call call = { .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + 30000 };
	struct folder *f = folder_of_path(m, path, &rest);

	if (!f) {
		buf_addf(answer, "error no session's folder is called '%s'\n", path);
		return -ENOENT;
	}
	int r = backend_run(m->backend, &call, f->session.id);
	if (r < 0)
		buf_addf(answer, "error %s%s%s\n", strerror(-r), call.fault.words[0] ? ": " : "", call.fault.words);
	drop_folder(m, f);
	if (r == 0)
		return command_refresh(m, path, answer);
	return r;
}

/* A file under way or failed, by its path; held. */
static struct entry *local_of_path(struct mount *m, const char *path)
{
	const char *name = strrchr(path, '/');
	if (!name)
		return NULL;
	CLEANUP(text_release) char *folder_path = strndup(path, (size_t)(name - path));
	const char *folder_name = folder_path ? strrchr(folder_path, '/') : NULL;
	bool is_failed = folder_path &&
			 (strncmp(path, ".sessionfs/failed/", 18) == 0 || strncmp(path, NAME_FAILED_LINK "/", 13) == 0);

	if (!folder_path)
		return NULL;
	folder_name = folder_name ? folder_name + 1 : folder_path;
	name++;
	SCOPED_LOCK(&m->tree.lock);
	struct entry *e = NULL;
	for (struct folder *f = is_failed ? m->tree.first_failed : m->tree.first_folder; f && !e; f = f->next_shown)
		if (strcmp(f->name, folder_name) == 0)
			e = folder_find(&m->tree, f, name);
	struct folder *session = tree_find_folder_named(&m->tree, folder_name);
	if (!e && session)
		e = local_find_refused(m, session, name);
	if (e && e->local && !e->local->counted_out)
		node_hold(&e->node);
	else
		e = NULL;
	return e;
}

static int retry_one(struct mount *m, struct entry *e)
{
	pthread_mutex_lock(&m->tree.lock);
	const struct local *l = e->local && !e->local->counted_out ? e->local : NULL; /* else it is a document by now */
	bool is_failed = l && l->kind == FILE_FAILED, is_under_way = l && l->is_submitted;
	int r = !l                                   ? -ENOENT
		: l->write_error                     ? -EIO
		: is_failed                          ? local_bring_home(m, e)
		: name_is_scratch(m->rules, e->name) ? -ENOENT
						     : 0;
	pthread_mutex_unlock(&m->tree.lock);
	if (r < 0)
		return r;
	if (is_under_way)
		return uploads_retry(m->uploads, e->node.ino);
	r = local_submit(m, e, NULL, NULL, false, 0);
	return r > 0 ? -ENODATA : r;
}

typedef int on_local(struct mount *m, struct entry *e);

static int discard_one(struct mount *m, struct entry *e)
{
	pthread_mutex_lock(&m->tree.lock);
	if (e->is_shown)
		notice_entry(m, e->folder, e->name);
	pthread_mutex_unlock(&m->tree.lock);
	return local_remove(m, e);
}

/* Calls fn for each failed file, and with waiting ones too for each of those. Returns how many. */
static int each_local_file(struct mount *m, bool waiting_too, on_local *fn)
{
	struct entry **list = NULL;
	int count = 0, done = 0;

	pthread_mutex_lock(&m->tree.lock);
	for (int i = 0; i < 2; i++) {
		for (struct folder *f = i ? m->tree.first_failed : m->tree.first_folder; f; f = f->next_shown) {
			struct entry *e;
			for (size_t at = 0; f->local_count > 0 && (e = index_next(&f->names, &at));) {
				bool is_wanted = e->local && (e->local->kind == FILE_FAILED ||
							      (waiting_too && e->local->is_submitted));
				struct entry **grown =
					is_wanted ? realloc(list, (size_t)(count + 1) * sizeof(*list)) : NULL;
				if (!grown)
					continue;
				list = grown;
				list[count++] = e;
				node_hold(&e->node);
			}
		}
	}
	pthread_mutex_unlock(&m->tree.lock);
	for (int i = 0; i < count; i++) {
		done += fn(m, list[i]) == 0;
		SCOPED_LOCK(&m->tree.lock);
		node_drop(&m->tree, &list[i]->node);
	}
	free(list);
	return done;
}

static int command_on_local(struct mount *m, const char *path, on_local *fn, bool waiting_too, struct buf *answer)
{
	if (strcmp(path, "--all") == 0) {
		buf_addf(answer, "ok\n%d\n", each_local_file(m, waiting_too, fn));
		return 0;
	}
	struct entry *e = local_of_path(m, path);
	if (!e) {
		buf_addf(answer, "error '%s' is no file that waits or failed\n", path);
		return -ENOENT;
	}
	int r = fn(m, e);
	pthread_mutex_lock(&m->tree.lock);
	node_drop(&m->tree, &e->node);
	pthread_mutex_unlock(&m->tree.lock);
	if (r < 0)
		buf_addf(answer, "error %s\n", strerror(-r));
	else
		buf_add(answer, "ok\n");
	return r;
}

static int command_status(struct mount *m, bool json, struct buf *answer)
{
	buf_add(answer, "ok\n");
	SCOPED_LOCK(&m->tree.lock);
	control_status(m, json, answer);
	return 0;
}

int mount_command(struct mount *m, const char *line, struct buf *answer)
{
	const char *space = strchr(line, ' '), *rest = space ? space + 1 : "";
	size_t len = space ? (size_t)(space - line) : strlen(line);
#define IS(word) (len == sizeof(word) - 1 && strncmp(line, word, len) == 0)

	if (IS("add"))
		return command_add(m, rest, answer);
	if (IS("forget"))
		return command_forget(m, rest, answer);
	if (IS("refresh"))
		return command_refresh(m, rest, answer);
	if (IS("sizes") || IS("sizes-left"))
		return command_sizes(m, rest, IS("sizes"), answer);
	if (IS("run"))
		return command_run(m, rest, answer);
	if (IS("retry"))
		return command_on_local(m, rest, retry_one, true, answer);
	if (IS("discard"))
		return command_on_local(m, rest, discard_one, false, answer);
	if (IS("status"))
		return command_status(m, false, answer);
	if (IS("status-json"))
		return command_status(m, true, answer);
	buf_addf(answer, "error this mount does not know '%.*s'\n", (int)len, line);
	return -EINVAL;
#undef IS
}
