/* What people type beside mounting. Each command is a function of its words; what they share stands first. */
#include "fs/command.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <termios.h>
#include <unistd.h>

#include "client/backend.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"
#include "fs/mountpoint.h"
#include "fs/name.h"
#include "fs/options.h"
#include "fs/queue.h"
#include "fs/socket.h"
#include "fs/state.h"

enum {
	EXIT_WELL = 0,
	EXIT_NOT_WELL = 1,
	EXIT_NO_ANSWER = 2,
	EXIT_CONFIGURATION = 3, /* of check */
	EXIT_ONLY_STORED = 3,   /* of wait */
	SENTENCE_BYTES_MAX = 4096,
	LINE_BYTES_MAX = 8192,
	ASK_MS = 30000,
	LOCK_WAIT_MS = 2000, /* another command has the folder for a moment */
	POLL_FIRST_MS = 200,
	POLL_MOST_MS = 2000,
	RUN_SHOWS_MS = 60000, /* until a run that was asked for must show in the documents' states */
};

/* ---- saying ------------------------------------------------------------------------------------------------ */

static int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int complain(const char *format, ...)
{
	va_list args;

	(void)fflush(stdout);
	(void)fputs("sessionfs: ", stderr);
	va_start(args, format);
	(void)vfprintf(stderr, format, args);
	va_end(args);
	(void)fputc('\n', stderr);
	return EXIT_NOT_WELL;
}

/* What a service sends is shown without what could forge a line or colour a terminal. */
static void print_clean(const char *text)
{
	for (const char *c = text; *c; c++)
		(void)putchar((unsigned char)*c < 0x20 && *c != '\n' && *c != '\t' ? '?' : *c == 0x7f ? '?' : *c);
}

static const char *service_title(const struct backend *b)
{
	return backend_caps(b)->title;
}

/* A failed call, in one sentence. */
static int complain_of_call(const struct backend *b, const struct call *call, int error, const char *about)
{
	const struct fault *f = &call->fault;
	const char *words = f->words[0] ? f->words : strerror(-error);

	switch (f->kind) {
	case FAULT_ACCOUNT:
		return complain("%s refuses the token. %s", service_title(b), backend_caps(b)->token_help);
	case FAULT_FORBIDDEN:
		if (f->ability[0])
			return complain("%s: the token lacks %s", about, f->ability);
		return complain("%s: refused: %s", about, words);
	case FAULT_GONE:
		return complain("%s: %s knows none, or shows it to others only", about, service_title(b));
	case FAULT_AWAY:
	case FAULT_BUDGET:
		return complain("%s does not answer: %s", service_title(b), words);
	default:
		return complain("%s: %s", about, words);
	}
}

/* ---- words ------------------------------------------------------------------------------------------------- */

/* A command's words, sorted: -o texts (with -d) for options_read(), switches of its own, and the rest. */
struct words {
	const char *command;
	char **options; /* "-o", TEXT, ...; borrowed texts, owned array */
	int option_count;
	char **rest;
	int rest_count;
	bool is_json, is_all, is_waiting, is_again, wants_sizes;
	const char *token_file;
	int64_t timeout_ms; /* -1: none */
};

static void words_release(struct words *w)
{
	free(w->options);
	free(w->rest);
	w->options = w->rest = NULL;
}

/* Which of the switches a command knows, by letters: j --json, a --all, w --wait, g --again, s --sizes,
 * f --token-file, t --timeout, o -o. */
static bool knows(const char *switches, char letter)
{
	return strchr(switches, letter) != NULL;
}

static int read_switch(struct words *w, const char *switches, int argc, char **argv, int *at)
{
	const char *word = argv[*at];

	if (strcmp(word, "--json") == 0 && knows(switches, 'j')) {
		w->is_json = true;
	} else if (strcmp(word, "--all") == 0 && knows(switches, 'a')) {
		w->is_all = true;
	} else if (strcmp(word, "--wait") == 0 && knows(switches, 'w')) {
		w->is_waiting = true;
	} else if (strcmp(word, "--again") == 0 && knows(switches, 'g')) {
		w->is_again = true;
	} else if (strcmp(word, "--sizes") == 0 && knows(switches, 's')) {
		w->wants_sizes = true;
	} else if (strcmp(word, "--token-file") == 0 && knows(switches, 'f') && *at + 1 < argc) {
		w->token_file = argv[++*at];
	} else if (strcmp(word, "--timeout") == 0 && knows(switches, 't') && *at + 1 < argc) {
		if (!options_parse_time(argv[++*at], &w->timeout_ms))
			return complain("'%s' is not a duration such as 30s", argv[*at]);
	} else if (strncmp(word, "-o", 2) == 0 && knows(switches, 'o') && (word[2] || *at + 1 < argc)) {
		w->options[w->option_count++] = argv[*at];
		if (!word[2])
			w->options[w->option_count++] = argv[++*at];
	} else {
		return complain("%s does not know %s; sessionfs -h tells more", w->command, word);
	}
	return 0;
}

/* 0, or an exit status after a complaint. */
static int read_words(int argc, char **argv, const char *switches, struct words *ret)
{
	bool only_words = false;

	*ret = (struct words){ .command = argv[0], .timeout_ms = -1 };
	ret->options = calloc((size_t)argc + 1, sizeof(char *));
	ret->rest = calloc((size_t)argc + 1, sizeof(char *));
	if (!ret->options || !ret->rest)
		return complain("out of memory");
	for (int i = 1; i < argc; i++) {
		if (!only_words && strcmp(argv[i], "--") == 0) {
			only_words = true;
		} else if (!only_words && argv[i][0] == '-' && argv[i][1]) {
			int r = read_switch(ret, switches, argc, argv, &i);
			if (r)
				return r;
		} else {
			ret->rest[ret->rest_count++] = argv[i];
		}
	}
	return 0;
}

/* ---- a service --------------------------------------------------------------------------------------------- */

struct service {
	struct options options;
	struct backend *backend;
};

static void service_release(struct service *s)
{
	backend_close(s->backend);
	s->backend = NULL;
	options_release(&s->options);
}

/* SOURCE and -o texts into options. */
static int read_service_options(const struct words *w, struct options *ret)
{
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);
	char *argv[2 * 64 + 1];
	int argc = 0;

	if (w->rest_count == 0)
		return complain("%s: which SOURCE? sessionfs -h tells more", w->command);
	if (w->option_count > 2 * 64 - 1)
		return complain("%s: too many -o", w->command);
	argv[argc++] = w->rest[0];
	for (int i = 0; i < w->option_count; i++)
		argv[argc++] = w->options[i];
	if (options_read(argc, argv, false, &why, ret) < 0)
		return complain("%s", buf_text(&why));
	enum log_level level = LOG_LEVEL_ERROR;
	if (strcmp(ret->log_level, "debug") == 0)
		(void)log_level_parse(ret->log_level, &level);
	log_open(level, false);
	if (options_make_folders(ret, &why) < 0)
		return complain("%s", buf_text(&why));
	return 0;
}

static int open_backend(const struct options *o, struct backend **ret)
{
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);
	CLEANUP(credentials_release) struct credentials credentials = { 0 };
	struct backend_config config;

	if (options_read_credentials(o, &why, &credentials) < 0)
		return complain("%s", buf_text(&why) ? buf_text(&why) : "the token cannot be read");
	options_backend_config(o, &config);
	if (backend_open(&config, &why, ret) < 0)
		return complain("%s", buf_text(&why) && why.len ? buf_text(&why) : "the service cannot be opened");
	return 0;
}

static int open_service(const struct words *w, struct service *ret)
{
	int r = read_service_options(w, &ret->options);

	return r ? r : open_backend(&ret->options, &ret->backend);
}

static struct call call_for_a_person(void)
{
	return (struct call){ .urgency = URGENCY_PERSON, .deadline_ms = clock_now_ms() + ASK_MS };
}

/* ---- a mount's answer -------------------------------------------------------------------------------------- */

/* Splits "ok\nTEXT" or "error SENTENCE\n". *ret_text is borrowed from the answer. */
static int read_answer(struct buf *answer, const char *about, const char **ret_text)
{
	const char *text = buf_text(answer);

	if (!text)
		return complain("%s: the mount's answer is too long", about);
	if (strncmp(text, "error ", 6) == 0)
		return complain("%s: %.*s", about, (int)strcspn(text + 6, "\n"), text + 6);
	if (strncmp(text, "ok", 2) != 0)
		return complain("%s: the mount's answer cannot be understood", about);
	text += strcspn(text, "\n");
	*ret_text = *text ? text + 1 : text;
	return 0;
}

static int complain_of_asking(const char *about, int error)
{
	if (error == -ENOENT)
		return complain("%s: nothing is mounted there now", about);
	if (error == -EACCES)
		return complain("%s: the mount is another user's", about);
	return complain("%s: the mount does not answer: %s", about, strerror(-error));
}

/* ---- paths in a mount -------------------------------------------------------------------------------------- */

struct place {
	char *state_dir; /* whose socket to ask */
	char *relative;  /* to the mount point, "" for itself */
};

static void place_release(struct place *p)
{
	free(p->state_dir);
	free(p->relative);
	*p = (struct place){ 0 };
}

/* Where the mount point above an absolute path ends, in bytes of it: as far up as the device stays the same. */
static int find_mount_end(char *path, size_t *ret_end)
{
	struct stat here, above;
	size_t end = strlen(path);

	if (lstat(path, &here) < 0)
		return -errno;
	while (end > 1) {
		size_t up = end - 1;
		while (path[up] != '/')
			up--;
		path[up] = '\0';
		int r = lstat(up ? path : "/", &above);
		path[up] = '/';
		if (r < 0 || above.st_dev != here.st_dev)
			break;
		end = up ? up : 1;
	}
	*ret_end = end;
	return 0;
}

static char *read_attribute(const char *path, const char *name)
{
	char value[PATH_MAX];
	ssize_t len = getxattr(path, name, value, sizeof(value) - 1);

	if (len < 0)
		return NULL;
	value[len] = '\0';
	return strdup(value);
}

struct search {
	const char *mountpoint;
	char *state_dir;
};

/* Calls each(arg, dir) for this user's state folders. */
static void walk_state_folders(void (*each)(void *arg, const char *dir), void *arg)
{
	CLEANUP(buf_release) struct buf base = BUF(PATH_MAX);

	if (options_state_base(&base) < 0)
		return;
	DIR *d = opendir(buf_text(&base));
	for (struct dirent *e; d && (e = readdir(d));) {
		CLEANUP(buf_release) struct buf db = BUF(PATH_MAX);
		buf_addf(&db, "%s/%s", base.data, e->d_name);
		size_t len = db.len;
		buf_add(&db, "/state.db");
		if (e->d_name[0] == '.' || !buf_text(&db) || access(buf_text(&db), F_OK) < 0)
			continue;
		db.data[len] = '\0';
		each(arg, db.data);
	}
	if (d)
		(void)closedir(d);
}

static void compare_owner(void *arg, const char *dir)
{
	struct search *s = arg;
	CLEANUP(text_release) char *owner = NULL;

	if (!s->state_dir && state_read_owner(dir, &owner) == 0 && strcmp(owner, s->mountpoint) == 0)
		s->state_dir = strdup(dir);
}

/* 0, or an exit status after a complaint. */
static int find_place(const char *path, struct place *ret)
{
	CLEANUP(text_release) char *real = realpath(path, NULL);
	size_t end = 0;

	if (!real)
		return complain("%s: %s", path, strerror(errno));
	ret->state_dir = read_attribute(real, "user.sessionfs.control");
	int r = find_mount_end(real, &end);
	if (r < 0)
		return complain("%s: %s", path, strerror(-r));
	ret->relative = strdup(real[end] == '/' ? real + end + 1 : real + end);
	if (!ret->relative)
		return complain("out of memory");
	if (!ret->state_dir) { /* mounted with noxattr: the lock files tell */
		real[end] = '\0';
		struct search s = { .mountpoint = real };
		walk_state_folders(compare_owner, &s);
		ret->state_dir = s.state_dir;
	}
	if (!ret->state_dir)
		return complain("%s is in no sessionfs mount", path);
	return 0;
}

/* Sends "WORD RELATIVE" to the mount that has the path. *answer holds what came; text is borrowed from it. */
static int ask_about_path(const char *word, const char *path, struct buf *answer, const char **ret_text)
{
	CLEANUP(place_release) struct place place = { 0 };
	CLEANUP(buf_release) struct buf line = BUF(LINE_BYTES_MAX);
	int r = find_place(path, &place);

	if (r)
		return r;
	buf_addf(&line, "%s%s%s", word, place.relative[0] ? " " : "", place.relative);
	r = buf_text(&line) ? socket_ask(place.state_dir, buf_text(&line), answer) : -ENAMETOOLONG;
	if (r < 0)
		return complain_of_asking(path, r);
	return read_answer(answer, path, ret_text);
}

/* ---- add and forget ---------------------------------------------------------------------------------------- */

struct known_list {
	struct known_session *items;
	int count;
};

static void known_list_release(struct known_list *l)
{
	for (int i = 0; i < l->count; i++)
		known_session_release(&l->items[i]);
	free(l->items);
	*l = (struct known_list){ 0 };
}

static void state_release(struct state **s)
{
	state_close(*s);
}

static bool is_name_taken(const struct known_list *l, const char *name, const char *id)
{
	for (int i = 0; i < l->count; i++) {
		if (strcmp(l->items[i].name, name) == 0 && strcmp(l->items[i].id, id) != 0)
			return true;
	}
	return false;
}

/* As the mount would: the plain name, then with what qualifies it, then with more and more of its id. */
static void choose_name(const struct known_list *l, const struct session *s, char ret[NAME_BYTES_MAX + 1])
{
	char safe[NAME_BYTES_MAX + 1];

	name_make_safe(s->name, safe);
	memcpy(ret, safe, sizeof(safe));
	if (is_name_taken(l, ret, s->id) && s->qualifier)
		name_qualify(safe, s->qualifier, ret);
	for (int length = 4; is_name_taken(l, ret, s->id) && length <= 64; length += 4)
		name_tell_apart(safe, s->id, length, ret);
}

/* With no mount running: into its state, for the next one. */
static int remember_session(struct service *s, const struct session *session)
{
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);
	CLEANUP(state_release) struct state *state = NULL;
	CLEANUP(known_list_release) struct known_list known = { 0 };
	char account[65], name[NAME_BYTES_MAX + 1];
	const char *url = s->options.url ? s->options.url : backend_caps(s->backend)->default_url;

	int r = options_fingerprint(&s->options, url, &why, account);
	if (r == 0)
		r = state_open(s->options.state_dir, NULL, LOCK_WAIT_MS, &why, &state);
	if (r < 0)
		return complain("%s", buf_text(&why) && why.len ? buf_text(&why) : strerror(-r));
	r = state_load_sessions(state, account, &known.items, &known.count);
	if (r < 0)
		return complain("the remembered sessions cannot be read: %s", strerror(-r));
	const struct known_session *old = NULL;
	for (int i = 0; i < known.count; i++) {
		if (strcmp(known.items[i].id, session->id) == 0)
			old = &known.items[i];
	}
	choose_name(&known, session, name);
	/* A name once shown stays. */
	enum session_origin origin =
		old && old->origin != ORIGIN_LOOKED_UP && !old->is_forgotten ? old->origin : ORIGIN_ADDED;
	struct known_session k =
		known_session_of(session, old ? old->ino : state_next_ino(state), old ? old->name : name, origin);
	if (old)
		k.server_name = old->server_name;
	r = k.ino == 0 ? -EIO : state_save_session(state, account, &k);
	if (r < 0)
		return complain("the session cannot be remembered: %s", strerror(-r));
	print_clean(k.name);
	(void)puts("");
	return 0;
}

static int add_session(struct service *s, const char *text)
{
	CLEANUP(text_release) char *id = NULL;
	CLEANUP(session_release) struct session session = { 0 };
	CLEANUP(buf_release) struct buf line = BUF(LINE_BYTES_MAX);
	CLEANUP(buf_release) struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);
	const char *rest = "";

	if (backend_find_session_id(s->backend, text, &id) < 0)
		return complain("there is no session's id in '%.200s'", text);
	buf_addf(&line, "add %s", id);
	int r = socket_ask(s->options.state_dir, buf_text(&line), &answer);
	if (r == 0) {
		r = read_answer(&answer, id, &rest);
		if (r == 0)
			print_clean(rest);
		return r;
	}
	if (r != -ENOENT)
		return complain_of_asking(id, r);
	struct call call = call_for_a_person();
	r = backend_get_session(s->backend, &call, id, &session);
	if (r < 0)
		return complain_of_call(s->backend, &call, r, id);
	return remember_session(s, &session);
}

static int run_add(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	CLEANUP(service_release) struct service s = { 0 };
	int status = EXIT_WELL;
	int r = read_words(argc, argv, "o", &w);

	if (r == 0 && w.rest_count < 2)
		r = complain("add: which session? sessionfs add SOURCE ADDRESS-OR-ID");
	if (r == 0)
		r = open_service(&w, &s);
	if (r)
		return r;
	for (int i = 1; i < w.rest_count; i++) {
		if (add_session(&s, w.rest[i]))
			status = EXIT_NOT_WELL; /* the others may still go well */
	}
	return status;
}

/* By id, or by the name it is shown under. */
static int forget_unmounted(struct service *s, const char *id, const char *text)
{
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);
	CLEANUP(state_release) struct state *state = NULL;
	CLEANUP(known_list_release) struct known_list known = { 0 };
	char account[65];
	const char *url = s->options.url ? s->options.url : backend_caps(s->backend)->default_url;

	int r = options_fingerprint(&s->options, url, &why, account);
	if (r == 0)
		r = state_open(s->options.state_dir, NULL, LOCK_WAIT_MS, &why, &state);
	if (r == 0)
		r = state_load_sessions(state, account, &known.items, &known.count);
	if (r < 0)
		return complain("%s", buf_text(&why) && why.len ? buf_text(&why) : strerror(-r));
	for (int i = 0; i < known.count; i++) {
		struct known_session *k = &known.items[i];
		if (k->is_forgotten || (strcmp(k->name, text) != 0 && (!id || strcmp(k->id, id) != 0)))
			continue;
		k->is_forgotten = true;
		r = state_save_session(state, account, k);
		return r < 0 ? complain("the session cannot be forgotten: %s", strerror(-r)) : 0;
	}
	return complain("no session here is called '%.200s'", text);
}

static int forget_session(struct service *s, const char *text)
{
	CLEANUP(text_release) char *id = NULL;
	CLEANUP(buf_release) struct buf line = BUF(LINE_BYTES_MAX);
	CLEANUP(buf_release) struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);
	const char *rest = "";

	(void)backend_find_session_id(s->backend, text, &id); /* else it is a name */
	buf_addf(&line, "forget %s", id ? id : text);
	int r = buf_text(&line) ? socket_ask(s->options.state_dir, buf_text(&line), &answer) : -ENAMETOOLONG;
	if (r == -ENOENT)
		return forget_unmounted(s, id, text);
	return r < 0 ? complain_of_asking(text, r) : read_answer(&answer, text, &rest);
}

static int run_forget(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	CLEANUP(service_release) struct service s = { 0 };
	int status = EXIT_WELL;
	int r = read_words(argc, argv, "o", &w);

	if (r == 0 && w.rest_count < 2)
		r = complain("forget: which session? sessionfs forget SOURCE ADDRESS-OR-ID");
	if (r == 0)
		r = open_service(&w, &s);
	if (r)
		return r;
	for (int i = 1; i < w.rest_count; i++) {
		if (forget_session(&s, w.rest[i]))
			status = EXIT_NOT_WELL;
	}
	return status;
}

/* ---- check ------------------------------------------------------------------------------------------------- */

static bool is_no_answer(const struct fault *f)
{
	return f->kind == FAULT_AWAY || f->kind == FAULT_BUDGET;
}

static int run_check(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	CLEANUP(service_release) struct service s = { 0 };
	CLEANUP(buf_release) struct buf text = BUF(1 << 20);
	int r = read_words(argc, argv, "o", &w);

	if (r == 0 && w.rest_count > 1)
		r = complain("check: '%s' is one word too many", w.rest[1]);
	if (r == 0)
		r = open_service(&w, &s);
	if (r)
		return EXIT_CONFIGURATION;
	struct call call = call_for_a_person();
	r = backend_describe(s.backend, &call, &text);
	if (buf_text(&text))
		print_clean(buf_text(&text));
	if (r == 0)
		return EXIT_WELL;
	(void)complain_of_call(s.backend, &call, r, w.rest[0]);
	return is_no_answer(&call.fault) || r == -ETIMEDOUT ? EXIT_NO_ANSWER : EXIT_NOT_WELL;
}

/* ---- status ------------------------------------------------------------------------------------------------ */

struct report {
	bool is_json;
	int shown;     /* mounts and folders so far */
	bool has_rest; /* something waits or failed */
	bool went_wrong;
	char **dirs; /* state folders that were reported; owned */
	int dir_count;
};

static void report_release(struct report *r)
{
	for (int i = 0; i < r->dir_count; i++)
		free(r->dirs[i]);
	free(r->dirs);
}

/* false: it was reported before. */
static bool report_begin(struct report *r, const char *dir)
{
	for (int i = 0; i < r->dir_count; i++) {
		if (strcmp(r->dirs[i], dir) == 0)
			return false;
	}
	char **more = realloc(r->dirs, ((size_t)r->dir_count + 1) * sizeof(*more));
	char *copy = strdup(dir);
	if (more)
		r->dirs = more;
	if (more && copy)
		r->dirs[r->dir_count++] = copy;
	else
		free(copy); /* then it may be told twice */
	return true;
}

static void report_separate(struct report *r)
{
	if (r->shown++ > 0)
		(void)fputs(r->is_json ? ",\n" : "\n", stdout);
}

/* The number behind "waiting: " or "\"waiting\": ", whichever comes first; -1: none. */
static long find_count(const char *text, const char *word)
{
	for (const char *at = text; (at = strstr(at, word)); at++) {
		const char *after = at + strlen(word);
		if (at > text && at[-1] != '\n' && at[-1] != '"')
			continue;
		after += *after == '"';
		if (*after == ':')
			return strtol(after + 1, NULL, 10);
	}
	return -1;
}

static void print_json_text(const char *text)
{
	(void)putchar('"');
	for (const char *c = text; *c; c++) {
		if (*c == '"' || *c == '\\')
			(void)printf("\\%c", *c);
		else if ((unsigned char)*c < 0x20)
			(void)printf("\\u%04x", (unsigned char)*c);
		else
			(void)putchar(*c);
	}
	(void)putchar('"');
}

static int report_mounted(struct report *r, const char *dir, const char *mountpoint)
{
	CLEANUP(buf_release) struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);
	const char *text = "";
	int e = socket_ask(dir, r->is_json ? "status-json" : "status", &answer);

	if (e < 0 && e != -ENOENT)
		return complain_of_asking(mountpoint ? mountpoint : dir, e);
	if (e < 0)
		return -1; /* nobody there */
	if (read_answer(&answer, mountpoint ? mountpoint : dir, &text))
		return EXIT_NOT_WELL;
	report_separate(r);
	if (mountpoint && !r->is_json) {
		(void)printf("mounted on: %s\n", mountpoint);
	} else if (mountpoint && *text == '{') { /* one of several: it says which */
		(void)fputs("{\n  \"mountpoint\": ", stdout);
		print_json_text(mountpoint);
		(void)fputs(",", stdout);
	}
	print_clean(mountpoint && r->is_json && *text == '{' ? text + 1 : text);
	if (find_count(text, "waiting") != 0 || find_count(text, "failed") != 0)
		r->has_rest = true;
	return 0;
}

struct tally {
	int waiting, failed;
};

static void count_item(void *arg, const struct queue_item *item)
{
	struct tally *t = arg;

	t->waiting += item->kind == FILE_PENDING;
	t->failed += item->kind == FILE_FAILED;
}

/* A state folder without a mount: what it holds goes on at the next one. */
static void report_unmounted(struct report *r, const char *dir)
{
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);
	CLEANUP(state_release) struct state *state = NULL;
	struct queue *queue = NULL;
	struct tally t = { 0 };

	int e = state_open(dir, NULL, 0, &why, &state); /* with its lock: nobody begins to work on it meanwhile */
	if (e == 0)
		e = queue_open(dir, &why, &queue);
	if (e == 0)
		e = queue_load(queue, count_item, &t);
	queue_close(queue);
	if (e < 0) {
		(void)complain("%s: %s", dir, buf_text(&why) && why.len ? buf_text(&why) : strerror(-e));
		r->went_wrong = true;
		return;
	}
	if (t.waiting == 0 && t.failed == 0)
		return;
	r->has_rest = true;
	report_separate(r);
	if (r->is_json) {
		(void)fputs("{\n  \"state_dir\": ", stdout);
		print_json_text(dir);
		(void)printf(",\n  \"mounted\": false,\n  \"waiting\": %d,\n  \"failed\": %d\n}\n", t.waiting,
			     t.failed);
	} else {
		(void)printf("not mounted: %s\nwaiting: %d\nfailed: %d\n", dir, t.waiting, t.failed);
	}
}

static void report_mount(void *arg, const char *path)
{
	struct report *r = arg;
	CLEANUP(text_release) char *dir = read_attribute(path, "user.sessionfs.control");

	if (dir && report_begin(r, dir) && report_mounted(r, dir, path))
		r->went_wrong = true;
}

static void report_folder(void *arg, const char *dir)
{
	struct report *r = arg;
	CLEANUP(text_release) char *owner = NULL;

	if (!report_begin(r, dir))
		return;
	(void)state_read_owner(dir, &owner); /* NULL: nobody has it */
	int e = report_mounted(r, dir, owner);
	if (e < 0)
		report_unmounted(r, dir);
	else if (e)
		r->went_wrong = true;
}

static int run_status(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	CLEANUP(report_release) struct report r = { 0 };
	int e = read_words(argc, argv, "j", &w);

	if (e == 0 && w.rest_count > 1)
		e = complain("status: '%s' is one word too many", w.rest[1]);
	if (e)
		return e;
	r.is_json = w.is_json;
	log_open(LOG_LEVEL_ERROR, false);
	if (w.rest_count == 1) {
		CLEANUP(place_release) struct place place = { 0 };
		if (find_place(w.rest[0], &place))
			return EXIT_NOT_WELL;
		e = report_mounted(&r, place.state_dir, NULL);
		if (e < 0)
			return complain_of_asking(w.rest[0], -ENOENT);
		r.went_wrong = e != 0;
	} else {
		if (r.is_json)
			(void)fputs("[\n", stdout);
		(void)mountpoint_walk(report_mount, &r); /* without the list of mounts, the state folders tell */
		walk_state_folders(report_folder, &r);
		if (r.is_json)
			(void)fputs("]\n", stdout);
		else if (r.shown == 0 && !r.went_wrong)
			(void)puts("nothing is mounted, and nothing waits");
	}
	return r.has_rest || r.went_wrong ? EXIT_NOT_WELL : EXIT_WELL;
}

/* ---- refresh, retry, discard ------------------------------------------------------------------------------- */

/* Sends `word` for each path. */
static int ask_about_paths(const char *word, const struct words *w)
{
	int status = EXIT_WELL;

	for (int i = 0; i < w->rest_count; i++) {
		CLEANUP(buf_release) struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);
		const char *text = "";
		if (ask_about_path(word, w->rest[i], &answer, &text))
			status = EXIT_NOT_WELL;
		else
			print_clean(text);
	}
	return status;
}

/* Has a session's sizes learned, and waits. What tells none (a document of no bytes, or not for this account) stays at 0. */
static int learn_sizes(const char *path)
{
	const char *word = "sizes";
	long unknown = 0;
	char how[8] = "busy";

	while (strcmp(how, "busy") == 0) {
		CLEANUP(buf_release) struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);
		const char *text = "";
		int r = ask_about_path(word, path, &answer, &text);
		if (r)
			return r;
		if (sscanf(text, "%ld %7s", &unknown, how) != 2)
			return complain("%s: the mount's answer cannot be understood", path);
		word = "sizes-left";
		if (strcmp(how, "busy") == 0)
			(void)usleep(POLL_FIRST_MS * 1000); /* a signal ends us */
	}
	return unknown > 0 ? complain("%s: the sizes of %ld documents could not be learned", path, unknown) : EXIT_WELL;
}

static int run_refresh(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	int r = read_words(argc, argv, "s", &w);

	if (r == 0 && w.rest_count == 0)
		r = complain("refresh: which PATH?");
	if (r || !w.wants_sizes)
		return r ? r : ask_about_paths("refresh", &w);
	for (int i = 0; i < w.rest_count; i++)
		r |= learn_sizes(w.rest[i]);
	return r ? EXIT_NOT_WELL : EXIT_WELL;
}

struct ask_all {
	const char *line;
	int status, asked;
};

/* Where the mount on this path can be asked; NULL after a sentence: it is dead or not ours, and no business of whoever asks all. */
static char *find_asked(const char *path)
{
	char *dir = read_attribute(path, "user.sessionfs.control");

	if (!dir && errno == ENOTCONN) {
		(void)complain("%s: skipped, its sessionfs is dead: fusermount3 -uz takes it off", path);
	} else if (!dir && errno == EACCES) {
		(void)complain("%s: skipped, it is another user's", path);
	} else if (!dir) { /* mounted with noxattr: the lock files tell */
		struct search s = { .mountpoint = path };
		walk_state_folders(compare_owner, &s);
		dir = s.state_dir;
		if (!dir)
			(void)complain("%s: skipped, it cannot be asked", path);
	}
	return dir;
}

static void ask_mount(void *arg, const char *path)
{
	struct ask_all *a = arg;
	CLEANUP(text_release) char *dir = find_asked(path);
	CLEANUP(buf_release) struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);
	const char *text = "";

	if (!dir)
		return;
	int r = socket_ask(dir, a->line, &answer);
	if (r == -ENOENT || r == -EACCES || r == -EPIPE) { /* the last: it ended while it was asked */
		(void)complain("%s: skipped, %s", path,
			       r == -EACCES ? "it is another user's" : "nobody answers for it");
		return;
	}
	a->asked++;
	if (r < 0 ? complain_of_asking(path, r) : read_answer(&answer, path, &text))
		a->status = EXIT_NOT_WELL;
	else
		(void)printf("%s: %.*s\n", path, (int)strcspn(text, "\n"), text);
}

static int retry_or_discard(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	CLEANUP(buf_release) struct buf line = BUF(100);
	int r = read_words(argc, argv, "a", &w);

	if (r)
		return r;
	if (w.is_all == (w.rest_count > 0))
		return complain("%s: a PATH, or --all?", argv[0]);
	if (!w.is_all)
		return ask_about_paths(argv[0], &w);
	buf_addf(&line, "%s --all", argv[0]);
	struct ask_all all = { .line = buf_text(&line) };
	r = mountpoint_walk(ask_mount, &all);
	if (r < 0)
		return complain("the list of mounts cannot be read: %s", strerror(-r));
	return all.asked ? all.status : complain("nothing is mounted");
}

/* ---- wait and run ------------------------------------------------------------------------------------------ */

struct watched {
	char **paths; /* not yet decided; owned */
	int count;
	int failed, stored;
};

static void watched_release(struct watched *w)
{
	for (int i = 0; i < w->count; i++)
		free(w->paths[i]);
	free(w->paths);
	*w = (struct watched){ 0 };
}

static int watch_path(struct watched *w, const char *path)
{
	char **more = realloc(w->paths, ((size_t)w->count + 1) * sizeof(*more));
	char *copy = strdup(path);

	if (more)
		w->paths = more;
	if (!more || !copy) {
		free(copy);
		return -ENOMEM;
	}
	w->paths[w->count++] = copy;
	return 0;
}

static struct watched *watched_by_walk; /* nftw(3) hands nothing through; set for its duration, in one thread */

static int watch_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return kind == FTW_F && S_ISREG(st->st_mode) ? watch_path(watched_by_walk, path) : 0;
}

static int watch_below(struct watched *w, const char *path)
{
	CLEANUP(place_release) struct place place = { 0 };
	struct stat st;

	if (find_place(path, &place))
		return EXIT_NOT_WELL;
	if (stat(path, &st) < 0)
		return complain("%s: %s", path, strerror(errno));
	watched_by_walk = w;
	int r = S_ISDIR(st.st_mode) ? nftw(path, watch_one, 16, FTW_PHYS | FTW_MOUNT) : watch_path(w, path);
	return r < 0 ? complain("%s: %s", path, strerror(errno)) : 0;
}

enum verdict { UNDECIDED, IS_READY, IS_STORED, HAS_FAILED };

/* How one document is doing. A path that is gone has failed: a refused file is moved away. */
static enum verdict look_at(const char *path)
{
	char state[64];
	ssize_t len = getxattr(path, "user.sessionfs.state", state, sizeof(state) - 1);

	if (len < 0 && (errno == EAGAIN || errno == EINTR || errno == EIO || errno == ETIMEDOUT || errno == ERANGE))
		return UNDECIDED;
	if (len < 0) {
		if (errno == ENOENT)
			(void)complain("%s is not there any more; see 'Not uploaded' and sessionfs status", path);
		else if (errno == ENODATA || errno == EOPNOTSUPP)
			(void)complain("%s has no state", path);
		else
			(void)complain("%s: %s", path, strerror(errno));
		return HAS_FAILED;
	}
	state[len] = '\0';
	if (strcmp(state, "ready") == 0)
		return IS_READY;
	if (strcmp(state, "stored") == 0)
		return IS_STORED;
	if (strcmp(state, "local") == 0) {
		(void)complain("%s stays on this machine: its name is a program's own", path);
		return HAS_FAILED;
	}
	if (strcmp(state, "failed") != 0)
		return UNDECIDED;
	CLEANUP(text_release) char *error = read_attribute(path, "user.sessionfs.error");
	(void)complain("%s failed%s%s", path, error ? ": " : "", error ? error : "");
	return HAS_FAILED;
}

/* Looks at each undecided path once. stored_is_final: nobody has asked for parsing. */
static void look_at_all(struct watched *w, bool stored_is_final)
{
	int kept = 0;

	for (int i = 0; i < w->count; i++) {
		enum verdict v = look_at(w->paths[i]);
		if (v == UNDECIDED || (v == IS_STORED && !stored_is_final)) {
			w->paths[kept++] = w->paths[i];
			continue;
		}
		w->failed += v == HAS_FAILED;
		w->stored += v == IS_STORED;
		free(w->paths[i]);
	}
	w->count = kept;
}

/* stored_ms: how long "stored" may still turn into something else. */
static int wait_for(struct watched *w, int64_t timeout_ms, int64_t stored_ms)
{
	int64_t begun_ms = clock_now_ms();
	int pause_ms = POLL_FIRST_MS;

	for (;;) {
		int64_t waited_ms = clock_now_ms() - begun_ms;
		look_at_all(w, waited_ms >= stored_ms);
		if (w->count == 0)
			break;
		if (timeout_ms >= 0 && waited_ms >= timeout_ms) {
			(void)complain("%d of the documents are not done yet", w->count);
			return EXIT_NO_ANSWER;
		}
		(void)usleep((useconds_t)pause_ms * 1000);
		pause_ms = pause_ms * 2 < POLL_MOST_MS ? pause_ms * 2 : POLL_MOST_MS;
	}
	if (w->failed)
		return EXIT_NOT_WELL;
	if (!w->stored)
		return EXIT_WELL;
	(void)complain("%d stored, and nobody has asked for parsing: sessionfs run SESSION", w->stored);
	return EXIT_ONLY_STORED;
}

static int run_wait(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	CLEANUP(watched_release) struct watched watched = { 0 };
	int r = read_words(argc, argv, "t", &w);

	if (r == 0 && w.rest_count == 0)
		r = complain("wait: for which PATH?");
	for (int i = 0; r == 0 && i < w.rest_count; i++)
		r = watch_below(&watched, w.rest[i]);
	return r ? r : wait_for(&watched, w.timeout_ms, 0);
}

static int run_run(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	CLEANUP(watched_release) struct watched watched = { 0 };
	int r = read_words(argc, argv, "wgt", &w);

	if (r == 0 && w.rest_count == 0)
		r = complain("run: which session's folder?");
	if (r == 0)
		r = ask_about_paths("run", &w);
	for (int i = 0; r == 0 && w.is_waiting && i < w.rest_count; i++)
		r = watch_below(&watched, w.rest[i]);
	return r || !w.is_waiting ? r : wait_for(&watched, w.timeout_ms, RUN_SHOWS_MS);
}

/* ---- setup: what is asked ---------------------------------------------------------------------------------- */

static struct termios echo_before;

static void restore_echo(int sig)
{
	(void)tcsetattr(STDIN_FILENO, TCSANOW, &echo_before);
	(void)signal(sig, SIG_DFL);
	(void)raise(sig);
}

/* A line from stdin without its end; NULL at the end of the input. The caller frees it. */
static char *read_answer_line(const char *prompt, bool is_secret)
{
	bool is_terminal = isatty(STDIN_FILENO);
	bool hides = is_secret && is_terminal && tcgetattr(STDIN_FILENO, &echo_before) == 0;
	char *line = NULL;
	size_t room = 0;

	if (is_terminal) {
		(void)fputs(prompt, stdout);
		(void)fflush(stdout);
	}
	if (hides) {
		struct termios quiet = echo_before;
		quiet.c_lflag &= ~(tcflag_t)ECHO;
		(void)signal(SIGINT, restore_echo);
		(void)signal(SIGTERM, restore_echo);
		if (tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet) < 0)
			return NULL; /* better no secret than a shown one */
	}
	ssize_t len = getline(&line, &room, stdin);
	if (hides) {
		(void)tcsetattr(STDIN_FILENO, TCSANOW, &echo_before);
		(void)signal(SIGINT, SIG_DFL);
		(void)signal(SIGTERM, SIG_DFL);
		(void)puts("");
	}
	if (len < 0) {
		free(line);
		return NULL;
	}
	line[strcspn(line, "\r\n")] = '\0';
	return line;
}

static void secret_line_release(char **line)
{
	if (*line)
		explicit_bzero(*line, strlen(*line));
	free(*line);
}

/* ---- setup: the steps -------------------------------------------------------------------------------------- */

/* Puts the secret where options_read_credentials() looks last, for us alone. */
static int store_secret(const struct options *o, const struct secret *secret)
{
	CLEANUP(buf_release) struct buf other = BUF(PATH_MAX);
	const char *text = secret_reveal(secret);

	if (!o->stored_secret_file)
		return -ENOENT;
	buf_addf(&other, "%s.new", o->stored_secret_file);
	if (!buf_text(&other))
		return -ENAMETOOLONG;
	CLEANUP(fd_close) int fd = open(buf_text(&other), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	if (fchmod(fd, 0600) < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || write(fd, "\n", 1) != 1 ||
	    fsync(fd) < 0 || rename(buf_text(&other), o->stored_secret_file) < 0) {
		int e = errno ? errno : EIO;
		(void)unlink(buf_text(&other)); /* the failure is told */
		return -e;
	}
	return 0;
}

static int store(const char *source, const char *key, const char *value)
{
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);

	return options_store(source, key, value, &why, NULL) < 0 ? complain("%s", buf_text(&why)) : 0;
}

/* What was said with -o, so that mounting needs no more than the name. */
static int store_options(const struct options *o)
{
	int r = strcmp(o->source, o->service) == 0 ? 0 : store(o->source, "service", o->service);

	if (r == 0 && o->url)
		r = store(o->source, "url", o->url);
	if (r == 0 && o->username)
		r = store(o->source, "username", o->username);
	if (r == 0 && o->cafile)
		r = store(o->source, "cafile", o->cafile);
	return r;
}

/* Asks for the secret and has o use it from here on. */
static int ask_for_secret(struct options *o, struct backend *b)
{
	CLEANUP(buf_release) struct buf prompt = BUF(SENTENCE_BYTES_MAX);
	CLEANUP(secret_line_release) char *line = NULL;

	if (o->username)
		buf_addf(&prompt, "Password of %s: ", o->username);
	else
		buf_addf(&prompt, "%s\nToken (it is not shown): ", backend_caps(b)->token_help);
	line = read_answer_line(buf_text(&prompt) ? buf_text(&prompt) : "Token: ", true);
	struct secret *secret = line ? secret_new(line) : NULL;
	if (!secret)
		return complain("no token was given");
	secret_release(&o->env_secret);
	o->env_secret = secret;
	return 0;
}

/* A file that stays the user's own. */
static int take_secret_file(struct options *o, const char *path)
{
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);
	CLEANUP(credentials_release) struct credentials credentials = { 0 };
	char *real = realpath(path, NULL);

	if (!real)
		return complain("%s: %s", path, strerror(errno));
	free(o->token_file);
	o->token_file = real;
	return options_read_credentials(o, &why, &credentials) < 0 ? complain("%s", buf_text(&why)) : 0;
}

static int say_count(int count, const char *what)
{
	return printf("%d %s%s\n", count, what, count == 1 ? "" : "s");
}

/* Shows what sessions can be made from, and asks which of them mkdir shall take. */
static int choose_template(struct service *s)
{
	CLEANUP(template_list_release) struct template_list list = { 0 };
	CLEANUP(text_release) char *line = NULL;
	struct call call = call_for_a_person();
	int r = backend_list_templates(s->backend, &call, &list);

	if (r == -EOPNOTSUPP)
		return 0;
	if (r < 0) {
		(void)complain_of_call(s->backend, &call, r, "templates");
		return 0; /* setup goes on: mkdir does without, or template= is set later */
	}
	(void)say_count(list.count, "template");
	for (int i = 0; i < list.count; i++) {
		(void)printf("%4d  ", i + 1);
		print_clean(list.items[i].name ? list.items[i].name : list.items[i].id);
		if (list.items[i].workspace_name) {
			(void)fputs("  (", stdout);
			print_clean(list.items[i].workspace_name);
			(void)fputs(")", stdout);
		}
		(void)puts("");
	}
	if (list.count == 0 || !backend_caps(s->backend)->creates_sessions || !isatty(STDIN_FILENO))
		return 0;
	line = read_answer_line("Number of the template that mkdir makes new sessions from (empty: none): ", false);
	if (!line || !*line)
		return 0;
	char *end = NULL;
	long number = strtol(line, &end, 10);
	if (*end || number < 1 || number > list.count)
		return complain("there is no template number %s; set template= later, or run setup again", line);
	return store(s->options.source, "template", list.items[number - 1].id);
}

static int ask_for_sessions(struct service *s)
{
	const struct backend_caps *caps = backend_caps(s->backend);
	int status = EXIT_WELL;

	if (caps->sessions == SESSIONS_LISTED) {
		CLEANUP(session_list_release) struct session_list list = { 0 };
		struct call call = call_for_a_person();
		int r = backend_list_sessions(s->backend, &call, &list);
		if (r < 0)
			return complain_of_call(s->backend, &call, r, "sessions");
		(void)say_count(list.count, "folder");
		return 0;
	}
	if (isatty(STDIN_FILENO))
		(void)printf("%s has no list of sessions: copy the address of each from its dashboard.\n", caps->title);
	for (;;) {
		CLEANUP(text_release) char *line = read_answer_line("Session's address or id (empty: done): ", false);
		if (!line || !*line)
			return status;
		if (add_session(s, line))
			status = EXIT_NOT_WELL;
	}
}

/* The secret: from a file that stays where it is, or typed, checked, and then stored. */
static int setup_secret(struct service *s, const struct words *w, bool *ret_is_checked)
{
	bool was_elsewhere = s->options.token_file || s->options.token_command;
	CLEANUP(buf_release) struct buf why = BUF(SENTENCE_BYTES_MAX);
	struct backend_config config;

	options_backend_config(&s->options, &config);
	if (backend_open(&config, &why, &s->backend) < 0)
		return complain("%s", buf_text(&why) && why.len ? buf_text(&why) : "the service cannot be opened");
	int r = w->token_file           ? take_secret_file(&s->options, w->token_file)
		: s->options.env_secret ? 0
					: ask_for_secret(&s->options, s->backend);
	if (r)
		return r;
	if (!w->token_file)
		text_release(&s->options.token_file); /* it would come before the new one */
	struct call call = call_for_a_person();
	r = backend_check(s->backend, &call);
	if (r < 0 && call.fault.kind == FAULT_ACCOUNT)
		return complain_of_call(s->backend, &call, r, s->options.source);
	*ret_is_checked = r == 0 || !is_no_answer(&call.fault);
	if (w->token_file)
		return store(s->options.source, "token_file", s->options.token_file);
	r = store_secret(&s->options, s->options.env_secret);
	if (r < 0)
		return complain("the token cannot be stored in %s: %s",
				s->options.stored_secret_file ? s->options.stored_secret_file : "your configuration",
				strerror(-r));
	(void)printf("The %s is stored in %s.\n", s->options.username ? "password" : "token",
		     s->options.stored_secret_file);
	return was_elsewhere ? store(s->options.source, "token_file", s->options.stored_secret_file) : 0;
}

/* store_options() made the folder of the configuration only where it had something to say. */
static int make_config_folder(const struct options *o)
{
	char part[PATH_MAX];

	if (!o->stored_secret_file)
		return complain("there is no place for a configuration: $HOME is empty");
	(void)snprintf(part, sizeof(part), "%s", o->stored_secret_file);
	for (char *slash = part + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		if (mkdir(part, 0755) < 0 && errno != EEXIST)
			return complain("%s cannot be made: %s", part, strerror(errno));
		*slash = '/';
	}
	return 0;
}

static int run_setup(int argc, char **argv)
{
	CLEANUP(words_release) struct words w = { 0 };
	CLEANUP(service_release) struct service s = { 0 };
	bool is_checked = false;
	int r = read_words(argc, argv, "of", &w);

	if (r == 0 && w.rest_count > 1)
		r = complain("setup: '%s' is one word too many", w.rest[1]);
	if (r == 0)
		r = read_service_options(&w, &s.options);
	if (r == 0)
		r = make_config_folder(&s.options);
	if (r == 0)
		r = setup_secret(&s, &w, &is_checked);
	if (r == 0)
		r = store_options(&s.options);
	if (r)
		return r;
	if (!is_checked) {
		(void)complain("%s does not answer now: the token is stored and not checked; see sessionfs check %s",
			       service_title(s.backend), w.rest[0]);
		return EXIT_NO_ANSWER;
	}
	(void)printf("%s accepts it.\n", service_title(s.backend));
	r = choose_template(&s);
	int status = ask_for_sessions(&s);
	(void)printf("Now mount it: sessionfs %s MOUNTPOINT\n", w.rest[0]);
	return r ? r : status;
}

/* ---- the table --------------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *words, *help;
} commands[] = {
	{ "setup", run_setup, "SOURCE", "asks for the token, checks and stores it, adds sessions" },
	{ "add", run_add, "SOURCE ADDRESS-OR-ID...", "shows a session; forget takes it off again" },
	{ "forget", run_forget, "SOURCE ADDRESS-OR-ID...", "shows it no longer; nothing changes at the service" },
	{ "check", run_check, "SOURCE", "token, rights seen to work, limits" },
	{ "status", run_status, "[--json] [MOUNTPOINT]",
	  "what waits, uploads, failed; exit status 0 only when nothing does" },
	{ "refresh", run_refresh, "[--sizes] PATH...",
	  "asks the service anew; --sizes: until the size of each document is known" },
	{ "wait", run_wait, "[--timeout TIME] PATH...", "until the documents are ready" },
	{ "run", run_run, "[--wait] [--again] [--timeout TIME] FOLDER...",
	  "asks for a session's documents to be parsed" },
	{ "retry", retry_or_discard, "PATH...|--all", "uploads what waits or failed now" },
	{ "discard", retry_or_discard, "PATH...|--all", "gives up what was not uploaded" },
};

enum { COMMAND_COUNT = sizeof(commands) / sizeof(commands[0]) };

bool command_is_known(const char *word)
{
	for (int i = 0; i < COMMAND_COUNT; i++) {
		if (strcmp(commands[i].name, word) == 0)
			return true;
	}
	return false;
}

int command_run(int argc, char **argv)
{
	for (int i = 0; i < COMMAND_COUNT; i++) {
		if (strcmp(commands[i].name, argv[0]) != 0)
			continue;
		int status = commands[i].run(argc, argv);
		if (fflush(stdout) != 0)
			return complain("%s: the output cannot be written: %s", argv[0], strerror(errno));
		return status;
	}
	return complain("there is no command '%s'", argv[0]);
}

void command_help(struct buf *ret)
{
	for (int i = 0; i < COMMAND_COUNT; i++) {
		char left[80];
		(void)snprintf(left, sizeof(left), "%s %s", commands[i].name, commands[i].words);
		buf_addf(ret, "    sessionfs %-32s %s\n", left, commands[i].help);
	}
}
