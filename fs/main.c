/* START HERE. A command or a mount; and what a mount is made of, in the order it is put together:
 *
 *     options -> mount point -> background -> log -> state and its lock -> the service's backend -> the cache around it
 *     -> the mount -> its control socket -> the loop that serves the kernel; then all of it taken apart again
 *
 * Whatever goes wrong on the way is one sentence on stderr, and the exit status says of which kind:
 *
 *     0  mounted, and verified with the service     1  called or configured wrongly
 *     2  something here is in the way (mount point, state folder, FUSE)
 *     3  the service refuses the token              4  the service does not answer
 *
 * Commands have exit statuses of their own (command.h). */
#include <errno.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache.h"
#include "client/backend.h"
#include "client/base/cleanup.h"
#include "client/base/log.h"
#include "fs/command.h"
#include "fs/daemon.h"
#include "fs/mount.h"
#include "fs/mountpoint.h"
#include "fs/options.h"
#include "fs/socket.h"
#include "fs/state.h"

enum {
	EXIT_CALLED_WRONGLY = 1,
	EXIT_IN_THE_WAY = 2,
	EXIT_REFUSED = 3,
	EXIT_NO_ANSWER = 4,
	SENTENCE_BYTES_MAX = 4096,
	HELP_BYTES_MAX = 65536,
	DRAINING_WAIT_MS = 40000, /* a mount that ends finishes its uploads within less */
};

/* What a mount owns, in the order it came; ended in the reverse of it. */
struct parts {
	struct options options;
	struct daemon daemon;
	struct state *state;
	struct backend *backend; /* the cache, once there is one */
	char account[65];        /* fingerprint of the token in use */
	struct mount *mount;
	struct socket_server *socket;
	int exit_code;       /* what the check of the start found */
	struct buf sentence; /* about it; under verified()'s one call */
};

static void parts_release(struct parts *p)
{
	socket_close(p->socket);
	mount_free(p->mount);
	backend_close(p->backend);
	state_close(p->state);
	buf_release(&p->sentence);
	options_release(&p->options);
}

/* ---- the steps --------------------------------------------------------------------------------------------- */

/* Another service's documents must not be taken for this one's: a state folder that was named belongs to one address.
 */
static int check_state_is_of(struct state *s, const struct options *o, const char *url, struct buf *why)
{
	CLEANUP(text_release) char *before = NULL;
	CLEANUP(buf_release) struct buf now = BUF(SENTENCE_BYTES_MAX);

	buf_addf(&now, "%s %s", o->service, url ? url : "");
	if (!buf_text(&now))
		return -ENOMEM;
	int r = state_get(s, "service", &before);
	if (r == -ENOENT)
		return state_set(s, "service", buf_text(&now));
	if (r < 0 || strcmp(before, buf_text(&now)) == 0)
		return r;
	buf_addf(why, "the state folder %s belongs to %s: name another with state_dir=", o->state_dir, before);
	return -EINVAL;
}

static int open_state(struct parts *p, struct buf *why)
{
	int r = options_make_folders(&p->options, why);

	return r < 0 ? r : state_open(p->options.state_dir, p->options.mountpoint, DRAINING_WAIT_MS, why, &p->state);
}

static const char *url_of(const struct parts *p)
{
	return p->options.url ? p->options.url : backend_caps(p->backend)->default_url;
}

/* The service, with the cache around it. */
static int open_backend(struct parts *p, struct buf *why)
{
	struct backend_config config;
	struct cache_options cache = { .ttl_ms = p->options.ttl_ms,
				       .stale_ms = p->options.stale_ms,
				       .dir = p->options.cache_dir,
				       .account = p->account };
	struct backend *cached = NULL;

	options_backend_config(&p->options, &config);
	int r = backend_open(&config, why, &p->backend);
	if (r == 0)
		r = options_fingerprint(&p->options, url_of(p), why, p->account);
	if (r < 0)
		return r;
	r = cache_wrap(p->backend, &cache, &cached);
	if (r == 0)
		p->backend = cached;
	return r;
}

static int open_mount(struct parts *p, struct buf *why)
{
	struct mount_config config = { .options = &p->options, .backend = p->backend, .state = p->state };

	memcpy(config.account, p->account, sizeof(config.account));
	int r = check_state_is_of(p->state, &p->options, url_of(p), why);
	return r < 0 ? r : mount_new(&config, why, &p->mount);
}

static int answer_command(void *arg, const char *line, struct buf *answer)
{
	return mount_command(arg, line, answer);
}

/* Without it the mount works, and commands do not reach it. */
static void open_socket(struct parts *p)
{
	int r = socket_serve(state_dir(p->state), answer_command, p->mount, &p->socket);

	if (r < 0)
		log_warning("control: no socket in %s: %s; commands will not reach this mount", state_dir(p->state),
			    strerror(-r));
}

/* ---- the verdict ------------------------------------------------------------------------------------------- */

/* A good one is told at once. A bad one when the mount is off again: whoever hears it finds things as they were. */
static void verified(void *arg, int error, const char *sentence)
{
	struct parts *p = arg;

	if (error == 0) {
		daemon_tell(&p->daemon, EXIT_SUCCESS, sentence);
		return;
	}
	p->exit_code = error == -EACCES ? EXIT_REFUSED : EXIT_NO_ANSWER;
	buf_add(&p->sentence, sentence ? sentence : strerror(-error));
}

static int give_up(struct parts *p, int exit_code, const struct buf *why, int error)
{
	const char *sentence = buf_text(why);

	daemon_tell(&p->daemon, exit_code, sentence && *sentence ? sentence : strerror(-error));
	return exit_code;
}

/* Before the first thread, so that each inherits it: the loop alone takes these, whichever thread they hit. (Not
 * earlier either: whoever interrupts us while we wait for an ending mount means it.) */
static void hold_signals(void)
{
	static const int held[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 };
	sigset_t set;

	(void)sigemptyset(&set);
	for (size_t i = 0; i < sizeof(held) / sizeof(held[0]); i++)
		(void)sigaddset(&set, held[i]);
	(void)pthread_sigmask(SIG_BLOCK, &set, NULL); /* can fail for nonsense alone */
}

/* A session of 100,000 documents is read through many short-lived pieces on many threads, and what is kept of it should not stand scattered
 * among their remains. Pieces of megabytes go back at once (glibc would get used to them otherwise), and threads share a few heaps. */
static void set_up_memory(void)
{
#ifdef __GLIBC__
	(void)mallopt(M_MMAP_THRESHOLD, 2 * 1024 * 1024);
	(void)mallopt(M_ARENA_MAX, 4);
#endif
}

/* ---- mounting ---------------------------------------------------------------------------------------------- */

static int run_mount(int argc, char **argv)
{
	CLEANUP(parts_release) struct parts p = { .daemon.verdict_fd = -1, .sentence = BUF(SENTENCE_BYTES_MAX) };
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);
	enum log_level level = LOG_LEVEL_INFO;

	(void)umask(077);
	set_up_memory();
	int r = options_read(argc, argv, true, &why, &p.options);
	if (r < 0)
		return give_up(&p, EXIT_CALLED_WRONGLY, &why, r);
	r = mountpoint_prepare(p.options.mountpoint, &why);
	if (r == 0)
		r = daemon_start(p.options.foreground, &p.daemon);
	if (r < 0)
		return give_up(&p, EXIT_IN_THE_WAY, &why, r);

	(void)log_level_parse(p.options.log_level, &level); /* one of its words, by the table of options */
	log_open(level, !p.options.foreground);
	r = open_state(&p, &why);
	if (r < 0)
		return give_up(&p, EXIT_IN_THE_WAY, &why, r);
	hold_signals();
	r = open_backend(&p, &why);
	if (r == 0)
		r = open_mount(&p, &why);
	if (r < 0)
		return give_up(&p, EXIT_CALLED_WRONGLY, &why, r);
	r = mount_attach(p.mount, &why);
	if (r < 0)
		return give_up(&p, EXIT_IN_THE_WAY, &why, r);

	open_socket(&p);
	r = mount_loop(p.mount, verified, &p);
	daemon_notify_stopping();
	if (p.exit_code)
		return give_up(&p, p.exit_code, &p.sentence, -EIO);
	if (r < 0)
		return give_up(&p, EXIT_IN_THE_WAY, &why, r);
	if (daemon_was_told(&p.daemon) || p.options.foreground)
		return EXIT_SUCCESS; /* unmounted before anybody knew how it stands: nothing failed, it ended as it was told to */
	buf_add(&why, "unmounted before the service had answered");
	return give_up(&p, EXIT_NO_ANSWER, &why, -ECANCELED);
}

/* ---- help -------------------------------------------------------------------------------------------------- */

static int print_help(void)
{
	CLEANUP(buf_release) struct buf text = BUF(HELP_BYTES_MAX);

	buf_add(&text, "sessionfs shows the extraction sessions of a document-AI service as folders.\n\n"
		       "    sessionfs SOURCE MOUNTPOINT [-o option[,option...]] [-f] [-d] [-V] [-h]\n");
	command_help(&text);
	buf_add(&text, "\nSOURCE is a service (");
	for (const char *const *s = backend_services(); *s; s++)
		buf_addf(&text, "%s%s", s == backend_services() ? "" : ", ", *s);
	buf_add(&text, ") or a [section] of /etc/sessionfs/config or\n"
		       "$XDG_CONFIG_HOME/sessionfs/config, where the same options stand as lines.\n\n"
		       "    -f    stay in the foreground and log to stderr\n"
		       "    -d    the same, with libfuse's own messages\n"
		       "    -V    the version\n\n"
		       "Options [and what holds without them]:\n");
	options_help(&text);
	if (!buf_text(&text) || fputs(buf_text(&text), stdout) < 0 || fflush(stdout) != 0)
		return EXIT_CALLED_WRONGLY;
	return EXIT_SUCCESS;
}

/* -h or -V anywhere before a "--". */
static bool has_switch(int argc, char **argv, const char *brief, const char *full)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "-o") == 0)
			i++; /* its text is none */
		else if (strcmp(argv[i], brief) == 0 || strcmp(argv[i], full) == 0)
			return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	(void)signal(SIGPIPE, SIG_IGN);
	if (has_switch(argc, argv, "-h", "--help"))
		return print_help();
	if (has_switch(argc, argv, "-V", "--version"))
		return puts("sessionfs " SESSIONFS_VERSION) < 0 ? EXIT_CALLED_WRONGLY : EXIT_SUCCESS;
	if (argc > 1 && command_is_known(argv[1]))
		return command_run(argc - 1, argv + 1);
	return run_mount(argc - 1, argv + 1);
}
