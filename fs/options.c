/* Every option, from wherever it comes: the configuration files, then -o (which is also what fstab gives us). The later
 * one prevails; a repeatable one adds.
 *
 * Nothing is looked up in the network and nothing is made on disk here; what is wrong is told in one sentence. */
#include "fs/options.h"

#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <ini.h>
#include <limits.h>
#include <openssl/evp.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "fs/name.h"

#define SYSTEM_CONFIG "/etc/sessionfs"

enum {
	TEXT_BYTES_MAX = 65536,
	URL_HASH_DIGITS = 10,
	TIME_YEARS_MAX = 10,
};

/* ---- the table --------------------------------------------------------------------------------------------- */

enum kind {
	KIND_TEXT,      /* char *; where value_word lists words, one of them */
	KIND_FILE_TEXT, /* the same, in a configuration file alone */
	KIND_LIST,      /* struct text_list, repeatable */
	KIND_WORD,      /* an enum whose values are in the order of the words in value_word */
	KIND_BOOL_WORD, /* bool: the second of two words */
	KIND_FLAG,      /* bool, no value */
	KIND_TIME,      /* int64_t, ms */
	KIND_SIZE,      /* int64_t, bytes */
	KIND_RATE,      /* int */
	KIND_UID,
	KIND_GID,
	KIND_MODE,
};

struct row {
	const char *name;
	enum kind kind;
	size_t offset;
	const char *value_word;   /* NULL: takes no value */
	const char *default_text; /* parsed like a user's; NULL: none */
	const char *help;
};

#define AT(field) offsetof(struct options, field)

static const struct row table[] = {
	{ "service", KIND_TEXT, AT(service), "NAME", NULL, "which service it is; by SOURCE where that is one" },
	{ "url", KIND_TEXT, AT(url), "URL", NULL, "the service's base address; https, or http on this machine" },
	{ "token_file", KIND_TEXT, AT(token_file), "FILE", NULL,
	  "where the secret is; nobody else may be able to read it" },
	{ "token_command", KIND_FILE_TEXT, AT(token_command), "COMMAND", NULL,
	  "prints the secret; in a configuration file only" },
	{ "username", KIND_TEXT, AT(username), "NAME", NULL,
	  "log in as this user: the secret is the password, not a token" },
	{ "session", KIND_LIST, AT(sessions), "ID", NULL, "a session to show (repeatable)" },
	{ "queue", KIND_LIST, AT(queues), "ID", NULL, "a queue to show (repeatable); all of them if none is named" },
	{ "template", KIND_TEXT, AT(template_name), "NAME|ID", NULL, "what mkdir makes a new session from" },
	{ "discover", KIND_WORD, AT(discover), "auto|yes|no", "auto",
	  "try undocumented lists of sessions; auto: only when no session is known" },
	{ "ttl", KIND_TIME, AT(ttl_ms), "TIME", "30s", "how long a listing is taken for current" },
	{ "stale", KIND_TIME, AT(stale_ms), "TIME", "1h", "how long an old one is shown while the service is away" },
	{ "upload", KIND_WORD, AT(upload), "close|background", "close",
	  "when close() returns: at the service, or safe on the local disk" },
	{ "close_timeout", KIND_TIME, AT(close_timeout_ms), "TIME", "60s",
	  "how long close() waits while the service fails; the upload goes on behind it" },
	{ "settle", KIND_TIME, AT(settle_ms), "TIME", "0",
	  "upload this long after the last close, for scanners that write in pieces" },
	{ "ignore", KIND_TEXT, AT(ignore), "PATTERN[:PATTERN]", NULL, "more names that stay on this machine" },
	{ "formats", KIND_TEXT, AT(formats), "+xlsx,-doc|any", NULL,
	  "suffixes to take besides, or instead of, the service's" },
	{ "remove", KIND_WORD, AT(remove), "recent|yes|no", "recent",
	  "what rm may detach: what this mount attached in the last 10 minutes, anything, nothing" },
	{ "views", KIND_BOOL_WORD, AT(views_listed), "named|listed", "named",
	  "show .results, .text and .sessionfs in listings too" },
	{ "start", KIND_WORD, AT(start), "auto|wait|strict", "auto",
	  "when the service does not answer: go on if something is remembered, go on waiting, fail" },
	{ "rate", KIND_RATE, AT(rate_per_min), "N/min|off", NULL,
	  "at most so many requests; 90 % of the documented limit" },
	{ "state_dir", KIND_TEXT, AT(state_dir), "DIR", NULL, "the spool and the queue" },
	{ "cache_dir", KIND_TEXT, AT(cache_dir), "DIR", NULL, "remembered listings and bytes; may be lost" },
	{ "cache_size", KIND_SIZE, AT(cache_size_bytes), "SIZE", "1G", "how many bytes of documents are kept" },
	{ "cafile", KIND_TEXT, AT(cafile), "FILE", NULL, "the certificates to trust instead of the system's" },
	{ "proxy", KIND_TEXT, AT(proxy), "URL", NULL, "instead of the environment's" },
	{ "log", KIND_TEXT, AT(log_level), "error|warning|info|debug", "info",
	  "how much is logged; to stderr with -f, else syslog" },
	{ "uid", KIND_UID, AT(uid), "USER", NULL, "who owns the files; you" },
	{ "gid", KIND_GID, AT(gid), "GROUP", NULL, "their group; yours" },
	{ "umask", KIND_MODE, AT(umask), "OCTAL", NULL, "permissions that are not given; 077, with allow_other 022" },
	{ "allow_other", KIND_FLAG, AT(allow_other), NULL, NULL, "other users may use the mount" },
	{ "ro", KIND_FLAG, AT(read_only), NULL, NULL, "nothing is uploaded or changed" },
	{ "noxattr", KIND_FLAG, AT(noxattr), NULL, NULL,
	  "no extended attributes: a much faster ls -l of large folders" },
};

enum { TABLE_COUNT = sizeof(table) / sizeof(table[0]) };

/* What the kernel and libfuse understand by themselves: passed on as it is. */
static const char *const fuse_words[] = {
	"allow_root", "auto_unmount", "default_permissions", "dev",  "nodev", "suid",    "nosuid", "exec", "noexec",
	"atime",      "noatime",      "nodiratime",          "sync", "async", "dirsync",
};
static const char *const fuse_names[] = { "fsname",    "subtype",    "max_read",   "context",
					  "fscontext", "defcontext", "rootcontext" };
/* What mount(8) and fstab(5) keep for themselves and hand on all the same. */
static const char *const mount_words[] = {
	"defaults",   "auto",     "noauto",   "user",     "nouser",     "users",       "owner",         "group",
	"nofail",     "_netdev",  "_rnetdev", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime",
	"nolazytime", "diratime", "silent",   "loud",     "mand",       "nomand",      "iversion",      "noiversion",
};
static const char *const mount_names[] = { "comment", "uhelper", "helper" };

static bool is_among(const char *word, const char *const *words, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (strcmp(word, words[i]) == 0)
			return true;
	}
	return false;
}

#define IS_AMONG(word, words) is_among(word, words, sizeof(words) / sizeof((words)[0]))

/* ---- values ------------------------------------------------------------------------------------------------ */

static int wrong(struct buf *why, const char *name, const char *value, const char *what)
{
	buf_addf(why, "'%s=%.200s' is not %s", name, value, what);
	return -EINVAL;
}

/* Digits, then a unit that `units` names: its factor stands in `factors`. */
static bool parse_amount(const char *text, const char *const *units, const int64_t *factors, int64_t most, int64_t *ret)
{
	char *end = NULL;

	if (!isdigit((unsigned char)text[0]))
		return false;
	errno = 0;
	long long number = strtoll(text, &end, 10);
	if (errno)
		return false;
	for (int i = 0; units[i]; i++) {
		if (strcasecmp(end, units[i]) != 0)
			continue;
		if (number > most / factors[i])
			return false;
		*ret = number * factors[i];
		return true;
	}
	return false;
}

bool options_parse_time(const char *text, int64_t *ret_ms)
{
	static const char *const units[] = { "ms", "", "s", "m", "min", "h", "d", NULL };
	static const int64_t factors[] = { 1, 1000, 1000, 60000, 60000, 3600000, 86400000 };

	return parse_amount(text, units, factors, TIME_YEARS_MAX * INT64_C(366) * 86400000, ret_ms);
}

static bool parse_size(const char *text, int64_t *ret)
{
	static const char *const units[] = { "", "B", "K", "KiB", "M", "MiB", "G", "GiB", "T", "TiB", NULL };
	static const int64_t k = 1024;
	static const int64_t factors[] = {
		1, 1, k, k, k * k, k * k, k * k * k, k * k * k, k * k * k * k, k * k * k * k
	};

	return parse_amount(text, units, factors, INT64_MAX, ret);
}

static bool parse_rate(const char *text, int *ret)
{
	static const char *const units[] = { "", "/min", NULL };
	static const int64_t factors[] = { 1, 1 };
	int64_t number;

	if (strcmp(text, "off") == 0) {
		*ret = -1;
		return true;
	}
	if (!parse_amount(text, units, factors, 1000000, &number) || number == 0)
		return false;
	*ret = (int)number;
	return true;
}

/* Which of "auto|yes|no" it is, or -1. */
static int find_word(const char *words, const char *text)
{
	size_t text_len = strlen(text);

	for (int i = 0; *words; i++) {
		size_t len = strcspn(words, "|");
		if (len == text_len && memcmp(words, text, len) == 0)
			return i;
		words += len;
		words += *words == '|';
	}
	return -1;
}

static bool parse_id(const char *text, bool is_group, unsigned *ret)
{
	char *end = NULL;

	if (isdigit((unsigned char)text[0])) {
		errno = 0;
		unsigned long long number = strtoull(text, &end, 10);
		if (errno || *end || number >= UINT32_MAX) /* the highest means "unchanged" to the kernel */
			return false;
		*ret = (unsigned)number;
		return true;
	}
	if (is_group) {
		const struct group *g = getgrnam(text);
		if (g)
			*ret = g->gr_gid;
		return g;
	}
	const struct passwd *p = getpwnam(text);
	if (p)
		*ret = p->pw_uid;
	return p;
}

static int text_list_add(struct text_list *l, const char *text)
{
	char *copy = strdup(text);
	char **more = realloc(l->items, ((size_t)l->count + 1) * sizeof(*more));

	if (more)
		l->items = more;
	if (!copy || !more) {
		free(copy);
		return -ENOMEM;
	}
	l->items[l->count++] = copy;
	return 0;
}

static void text_list_release(struct text_list *l)
{
	for (int i = 0; i < l->count; i++)
		free(l->items[i]);
	free(l->items);
	*l = (struct text_list){ 0 };
}

static int replace_text(char **field, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

/* One value of one row into o. */
static int set_value(struct options *o, const struct row *row, const char *value, struct buf *why)
{
	void *field = (char *)o + row->offset;
	int word;

	switch (row->kind) {
	case KIND_TEXT:
	case KIND_FILE_TEXT:
		if (islower((unsigned char)row->value_word[0]) && strchr(row->value_word, '|') &&
		    find_word(row->value_word, value) < 0)
			return wrong(why, row->name, value, row->value_word);
		return replace_text(field, value);
	case KIND_LIST:
		return text_list_add(field, value);
	case KIND_WORD:
	case KIND_BOOL_WORD:
		word = find_word(row->value_word, value);
		if (word < 0)
			return wrong(why, row->name, value, row->value_word);
		if (row->kind == KIND_WORD)
			*(unsigned *)field = (unsigned)word;
		else
			*(bool *)field = word == 1;
		return 0;
	case KIND_FLAG:
		*(bool *)field = true;
		return 0;
	case KIND_TIME:
		return options_parse_time(value, field) ? 0 : wrong(why, row->name, value, "a duration such as 30s");
	case KIND_SIZE:
		return parse_size(value, field) ? 0 : wrong(why, row->name, value, "a size such as 500M");
	case KIND_RATE:
		return parse_rate(value, field) ? 0 : wrong(why, row->name, value, "a rate such as 90/min, or off");
	case KIND_UID:
		return parse_id(value, false, field) ? 0 : wrong(why, row->name, value, "a user of this machine");
	case KIND_GID:
		return parse_id(value, true, field) ? 0 : wrong(why, row->name, value, "a group of this machine");
	case KIND_MODE:
		if (value[0] == '\0' || strlen(value) > 4 || strspn(value, "01234567") != strlen(value) ||
		    strtol(value, NULL, 8) > 0777)
			return wrong(why, row->name, value, "an octal number such as 022");
		*(mode_t *)field = (mode_t)strtol(value, NULL, 8);
		return 0;
	}
	return -EINVAL;
}

/* ---- names ------------------------------------------------------------------------------------------------- */

static const struct row *find_row(const char *name)
{
	for (int i = 0; i < TABLE_COUNT; i++) {
		if (strcmp(table[i].name, name) == 0)
			return &table[i];
	}
	return NULL;
}

static const struct backend_option *find_backend_option(const char *service, const char *name)
{
	for (const struct backend_option *b = service ? backend_options(service) : NULL; b && b->name; b++) {
		if (strcmp(b->name, name) == 0)
			return b;
	}
	return NULL;
}

/* How many letters have to be changed, put in or left out. Names are short: beyond 31 bytes they are far from anything.
 */
static int distance(const char *a, const char *b)
{
	int row[32], la = (int)strlen(a), lb = (int)strlen(b);

	if (la > 31 || lb > 31)
		return 99;
	for (int j = 0; j <= lb; j++)
		row[j] = j;
	for (int i = 1; i <= la; i++) {
		int diagonal = row[0];
		row[0] = i;
		for (int j = 1; j <= lb; j++) {
			int best = diagonal + (a[i - 1] != b[j - 1]);
			diagonal = row[j];
			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			row[j] = best;
		}
	}
	return row[lb];
}

static void keep_nearer(const char *name, const char *candidate, const char **nearest, int *least)
{
	int d = distance(name, candidate);

	if (d < *least) {
		*least = d;
		*nearest = candidate;
	}
}

static int unknown(const char *service, const char *name, struct buf *why)
{
	const char *nearest = NULL;
	int least = 4; /* farther than three letters is no help */

	if (strcmp(name, "token") == 0 || strcmp(name, "password") == 0 || strcmp(name, "api_key") == 0) {
		buf_addf(why, "'%s' is not an option, since others could read it there: use token_file=", name);
		return -EINVAL;
	}
	for (int i = 0; i < TABLE_COUNT; i++)
		keep_nearer(name, table[i].name, &nearest, &least);
	for (const struct backend_option *b = service ? backend_options(service) : NULL; b && b->name; b++)
		keep_nearer(name, b->name, &nearest, &least);
	for (size_t i = 0; i < sizeof(fuse_words) / sizeof(fuse_words[0]); i++)
		keep_nearer(name, fuse_words[i], &nearest, &least);
	buf_addf(why, "unknown option '%.100s'", name);
	if (nearest && least < (int)strlen(name))
		buf_addf(why, "; did you mean '%s'?", nearest);
	else
		buf_add(why, "; sessionfs -h lists them");
	return -EINVAL;
}

static int set_backend_option(struct options *o, const struct backend_option *b, const char *value)
{
	CLEANUP(buf_release) struct buf text = BUF(TEXT_BYTES_MAX);

	buf_addf(&text, "%s=", b->name);
	if (!b->is_repeatable) { /* the later one prevails */
		for (int i = 0; i < o->backend.count; i++) {
			if (strncmp(o->backend.items[i], text.data, text.len) == 0) {
				free(o->backend.items[i]);
				o->backend.items[i] = o->backend.items[--o->backend.count];
				break;
			}
		}
	}
	buf_add(&text, value);
	return buf_text(&text) ? text_list_add(&o->backend, buf_text(&text)) : -ENOMEM;
}

static int add_fuse_word(struct options *o, const char *name, const char *value)
{
	CLEANUP(buf_release) struct buf text = BUF(TEXT_BYTES_MAX);

	buf_addf(&text, "-o%s", name);
	if (value)
		buf_add(&text, "=");
	for (; value && *value; value++) { /* libfuse cuts at commas again */
		if (*value == ',' || *value == '\\')
			buf_add(&text, "\\");
		buf_add_bytes(&text, value, 1);
	}
	return buf_text(&text) ? text_list_add(&o->fuse_args, buf_text(&text)) : -ENOMEM;
}

/* name=value, or a word alone (value NULL). from_file: it stands in a configuration file. */
static int set_option(struct options *o, const char *name, const char *value, bool from_file, struct buf *why)
{
	const struct row *row = find_row(name);
	const struct backend_option *b = row ? NULL : find_backend_option(o->service, name);

	if (row && row->kind == KIND_FILE_TEXT && !from_file) {
		buf_addf(why, "'%s' belongs into a configuration file: what runs a command is not taken from -o", name);
		return -EINVAL;
	}
	if (row && row->kind == KIND_FLAG && value) {
		if (!from_file || (strcmp(value, "yes") != 0 && strcmp(value, "true") != 0 &&
				   strcmp(value, "no") != 0 && strcmp(value, "false") != 0)) {
			buf_addf(why, "'%s' takes no value%s", name, from_file ? " but yes or no" : "");
			return -EINVAL;
		}
		*(bool *)((char *)o + row->offset) = value[0] == 'y' || value[0] == 't';
		return 0;
	}
	if ((row && row->value_word && (!value || !*value)) || (b && (!value || !*value))) {
		buf_addf(why, "'%s' needs a value: %s=%s", name, name, row ? row->value_word : b->value_word);
		return -EINVAL;
	}
	if (row)
		return set_value(o, row, value, why);
	if (b)
		return set_backend_option(o, b, value);
	if (!value && strcmp(name, "rw") == 0) {
		o->read_only = false;
		return 0;
	}
	if (!value && strcmp(name, "debug") == 0) {
		o->debug_fuse = o->foreground = true;
		return 0;
	}
	if (value ? IS_AMONG(name, fuse_names) : IS_AMONG(name, fuse_words))
		return add_fuse_word(o, name, value);
	if (strncmp(name, "x-", 2) == 0 || (value ? IS_AMONG(name, mount_names) : IS_AMONG(name, mount_words)))
		return 0;
	return unknown(o->service, name, why);
}

/* ---- the configuration files ------------------------------------------------------------------------------- */

static const char *env(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

/* The folder of the user's own configuration. -ENOENT: there is none, since HOME is empty. */
static int config_folder(struct buf *ret)
{
	const char *xdg = env("XDG_CONFIG_HOME"), *home = env("HOME");

	if (xdg && xdg[0] == '/')
		buf_addf(ret, "%s/sessionfs", xdg);
	else if (home && home[0] == '/' && home[1])
		buf_addf(ret, "%s/.config/sessionfs", home);
	else
		return -ENOENT;
	return buf_text(ret) ? 0 : -ENOMEM;
}

/* Where `setup` writes to. */
static int storing_folder(struct buf *ret)
{
	if (geteuid() == 0 && !env("XDG_CONFIG_HOME")) {
		buf_add(ret, SYSTEM_CONFIG);
		return 0;
	}
	return config_folder(ret);
}

struct pair {
	char *name, *value;
};

/* What the files say about one section. */
struct config {
	const char *section;
	bool was_found;
	struct pair *pairs;
	int count;
	struct buf *why;
	const char *path; /* while a file is read */
	FILE *file;
	int line;
	int error;
};

static void config_release(struct config *c)
{
	for (int i = 0; i < c->count; i++) {
		free(c->pairs[i].name);
		free(c->pairs[i].value);
	}
	free(c->pairs);
	*c = (struct config){ 0 };
}

static int config_wrong(struct config *c, const char *what)
{
	if (c->error == 0)
		buf_addf(c->why, "%s, line %d: %s", c->path, c->line, what);
	c->error = -EINVAL;
	return c->error;
}

/* Lines for inih, which would silently cut long ones in two, take an indented one for more of the line above, and end a
 * command at a ';'. */
static char *config_line(char *line, int room, void *arg)
{
	struct config *c = arg;

	if (c->error || !fgets(line, room, c->file))
		return NULL;
	c->line++;
	size_t len = strlen(line);
	if (len + 1 == (size_t)room && line[len - 1] != '\n') {
		config_wrong(c, "longer than this kind of file may have lines");
		return NULL;
	}
	size_t indent = strspn(line, " \t");
	memmove(line, line + indent, len - indent + 1);
	if (strncmp(line, "token_command", 13) == 0 && (strstr(line, " ;") || strstr(line, "\t;"))) {
		config_wrong(c, "a ';' begins a comment here; put such a command into a script");
		return NULL;
	}
	return line;
}

/* inih wants 1 for "go on". */
static int config_pair(void *arg, const char *section, const char *name, const char *value)
{
	struct config *c = arg;

	if (section[0] == '\0') {
		config_wrong(c, "stands before any [section]");
		return 0;
	}
	if (strcmp(section, c->section) != 0)
		return 1;
	c->was_found = true;
	struct pair *more = realloc(c->pairs, ((size_t)c->count + 1) * sizeof(*more));
	if (!more) {
		c->error = -ENOMEM;
		return 0;
	}
	c->pairs = more;
	c->pairs[c->count] = (struct pair){ strdup(name), strdup(value) };
	if (!c->pairs[c->count].name || !c->pairs[c->count].value)
		c->error = -ENOMEM;
	c->count++;
	return c->error == 0;
}

/* A file that is not there says nothing; nor does the system's when we may not read it. */
static int config_read(struct config *c, const char *path, bool is_the_systems)
{
	c->file = fopen(path, "re");
	if (!c->file) {
		if (errno == ENOENT || errno == ENOTDIR || (errno == EACCES && is_the_systems))
			return 0;
		buf_addf(c->why, "%s cannot be read: %s", path, strerror(errno));
		return -errno;
	}
	c->path = path;
	c->line = 0;
	int bad_line = ini_parse_stream(config_line, c, config_pair, c);
	(void)fclose(c->file);
	c->file = NULL;
	if (c->error == 0 && bad_line > 0) {
		c->line = bad_line;
		config_wrong(c, "neither [section] nor name = value");
	}
	return c->error;
}

static int config_read_all(struct config *c)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_MAX);
	int r = config_read(c, SYSTEM_CONFIG "/config", true);

	if (r < 0 || config_folder(&path) < 0)
		return r;
	buf_add(&path, "/config");
	if (!buf_text(&path) || strcmp(buf_text(&path), SYSTEM_CONFIG "/config") == 0)
		return 0;
	return config_read(c, buf_text(&path), false);
}

/* ---- storing ----------------------------------------------------------------------------------------------- */

static int make_folders(const char *path, mode_t mode)
{
	char part[PATH_MAX];

	if (strlen(path) >= sizeof(part))
		return -ENAMETOOLONG;
	memcpy(part, path, strlen(path) + 1);
	for (char *slash = part + 1;; slash++) {
		slash = strchr(slash, '/');
		if (slash)
			*slash = '\0';
		if (mkdir(part, mode) < 0 && errno != EEXIST)
			return -errno;
		if (!slash)
			return 0;
		*slash = '/';
	}
}

/* Is this line `key = …`? */
static bool line_sets(const char *line, const char *key)
{
	size_t len = strlen(key);

	line += strspn(line, " \t");
	if (strncmp(line, key, len) != 0)
		return false;
	line += len;
	line += strspn(line, " \t");
	return *line == '=' || *line == ':';
}

static bool line_begins_section(const char *line, const char *section)
{
	size_t len = section ? strlen(section) : 0;

	line += strspn(line, " \t");
	if (*line != '[')
		return false;
	return !section || (strncmp(line + 1, section, len) == 0 && line[len + 1] == ']');
}

/* The old text with section.key set to value. */
static void change_text(FILE *old, const char *section, const char *key, const char *value, struct buf *ret)
{
	char *line = NULL;
	size_t room = 0;
	bool is_inside = false, is_done = false;

	while (old && getline(&line, &room, old) >= 0) {
		if (line_begins_section(line, NULL))
			is_inside = line_begins_section(line, section);
		if (is_inside && line_sets(line, key))
			continue; /* the new one stands right behind the section's name */
		buf_add(ret, line);
		if (!strchr(line, '\n'))
			buf_add(ret, "\n");
		if (!is_done && line_begins_section(line, section)) {
			buf_addf(ret, "%s = %s\n", key, value);
			is_done = true;
		}
	}
	if (!is_done)
		buf_addf(ret, "%s[%s]\n%s = %s\n", ret->len > 0 ? "\n" : "", section, key, value);
	free(line);
}

static int write_file(const char *path, const char *text, size_t len)
{
	CLEANUP(buf_release) struct buf other = BUF(PATH_MAX);

	buf_addf(&other, "%s.new", path);
	if (!buf_text(&other))
		return -ENAMETOOLONG;
	CLEANUP(fd_close) int fd = open(buf_text(&other), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	if (write(fd, text, len) != (ssize_t)len || fsync(fd) < 0 || rename(buf_text(&other), path) < 0) {
		int e = errno ? errno : EIO;
		(void)unlink(buf_text(&other)); /* the failure is told */
		return -e;
	}
	return 0;
}

int options_store(const char *section, const char *key, const char *value, struct buf *why, struct buf *ret_path)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_MAX);
	CLEANUP(buf_release) struct buf text = BUF(1 << 20);
	int r = storing_folder(&path);

	if (strpbrk(value, "\r\n") || strlen(value) > 150 || strstr(value, " ;")) {
		buf_addf(why, "'%.150s' cannot be written into a configuration file", value);
		return -EINVAL;
	}
	if (r == 0)
		r = make_folders(buf_text(&path), 0755);
	if (r < 0) {
		buf_addf(why, "there is no place for a configuration file%s%s: %s", path.len ? " in " : "",
			 buf_text(&path) ? buf_text(&path) : "", r == -ENOENT ? "$HOME is empty" : strerror(-r));
		return r;
	}
	buf_add(&path, "/config");
	FILE *old = fopen(buf_text(&path), "re");
	if (!old && errno != ENOENT) {
		r = -errno;
	} else {
		change_text(old, section, key, value, &text);
		if (old)
			(void)fclose(old);
		r = buf_text(&text) ? write_file(buf_text(&path), text.data, text.len) : -EFBIG;
	}
	if (r < 0)
		buf_addf(why, "%s cannot be written: %s", buf_text(&path), strerror(-r));
	else if (ret_path)
		buf_add(ret_path, buf_text(&path));
	return r;
}

/* ---- places ------------------------------------------------------------------------------------------------ */

/* The first of $STATE_DIRECTORY (systemd gives several, separated by ':'), $XDG_STATE_HOME, /var/lib for root, $HOME.
 */
static int place(const char *systemd, const char *xdg, const char *roots, const char *homes, struct buf *ret)
{
	const char *given = env(systemd), *home = env("HOME");

	if (given && given[0] == '/')
		buf_add_bytes(ret, given, strcspn(given, ":"));
	else if (env(xdg) && env(xdg)[0] == '/')
		buf_addf(ret, "%s/sessionfs", env(xdg));
	else if (geteuid() == 0)
		buf_add(ret, roots);
	else if (home && home[0] == '/' && home[1])
		buf_addf(ret, "%s/%s/sessionfs", home, homes);
	else
		return -ENOENT;
	return buf_text(ret) ? 0 : -ENAMETOOLONG;
}

int options_state_base(struct buf *ret)
{
	return place("STATE_DIRECTORY", "XDG_STATE_HOME", "/var/lib/sessionfs", ".local/state", ret);
}

/* "acme-1f0c9a22b3": one folder for a section and the address behind it. */
static void add_folder_name(const struct options *o, const char *first, struct buf *ret)
{
	CLEANUP(buf_release) struct buf about = BUF(TEXT_BYTES_MAX);
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned digest_len = 0;
	char safe[NAME_BYTES_MAX + 1];

	name_make_safe(first, safe);
	buf_addf(&about, "%s\n%s", o->service, o->url ? o->url : "");
	if (!buf_text(&about) || !EVP_Digest(about.data, about.len, digest, &digest_len, EVP_sha256(), NULL))
		digest_len = 0;
	buf_addf(ret, "%.200s-", safe);
	for (unsigned i = 0; i < digest_len && i < URL_HASH_DIGITS / 2; i++)
		buf_addf(ret, "%02x", digest[i]);
}

/* A relative one is meant from where we stand, not from where the daemon will. */
static int make_absolute(char **path)
{
	CLEANUP(text_release) char *here = NULL;
	CLEANUP(buf_release) struct buf whole = BUF(PATH_MAX);

	if (!*path || (*path)[0] == '/')
		return 0;
	here = getcwd(NULL, 0);
	if (!here)
		return -errno;
	buf_addf(&whole, "%s/%s", here, *path);
	char *made = buf_take(&whole);
	if (!made)
		return -ENAMETOOLONG;
	free(*path);
	*path = made;
	return 0;
}

static int resolve_folder(const struct options *o, char **field, const char *option, int base_error,
			  const struct buf *base, struct buf *why)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_MAX);

	if (*field)
		return 0;
	if (base_error < 0 || !base->data) {
		buf_addf(why, "there is no place for %s: set it, or $HOME", option);
		return -EINVAL;
	}
	buf_addf(&path, "%s/", base->data);
	add_folder_name(o, o->source, &path);
	*field = buf_take(&path);
	return *field ? 0 : -ENAMETOOLONG;
}

static int resolve_places(struct options *o, struct buf *why)
{
	CLEANUP(buf_release) struct buf state = BUF(PATH_MAX);
	CLEANUP(buf_release) struct buf cache = BUF(PATH_MAX);
	CLEANUP(buf_release) struct buf limit = BUF(PATH_MAX);
	CLEANUP(buf_release) struct buf stored = BUF(PATH_MAX);
	int state_error = options_state_base(&state);
	int cache_error = place("CACHE_DIRECTORY", "XDG_CACHE_HOME", "/var/cache/sessionfs", ".cache", &cache);
	int limit_error = place("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "/run/sessionfs", ".cache", &limit);

	int r = resolve_folder(o, &o->state_dir, "state_dir", state_error, &state, why);
	if (r == 0)
		r = resolve_folder(o, &o->cache_dir, "cache_dir", cache_error, &cache, why);
	if (r < 0)
		return r;
	if (state_error == 0)
		o->state_base = buf_take(&state);
	if (limit_error == 0) {
		buf_add(&limit, "/");
		add_folder_name(o, o->service, &limit);
		buf_add(&limit, ".limit");
		o->limit_path = buf_take(&limit);
	}
	if (storing_folder(&stored) == 0) {
		char safe[NAME_BYTES_MAX + 1];
		name_make_safe(o->source, safe);
		buf_addf(&stored, "/%.240s.token", safe);
		o->stored_secret_file = buf_take(&stored);
	}
	return 0;
}

int options_make_folders(const struct options *o, struct buf *why)
{
	const char *folders[] = { o->state_dir, o->cache_dir };

	for (int i = 0; i < 2; i++) {
		int r = make_folders(folders[i], 0700);
		if (r < 0) {
			buf_addf(why, "the folder %s cannot be made: %s", folders[i], strerror(-r));
			return r;
		}
	}
	if (o->limit_path) {
		char parent[PATH_MAX];
		const char *slash = strrchr(o->limit_path, '/');
		(void)snprintf(parent, sizeof(parent), "%.*s", (int)(slash - o->limit_path), o->limit_path);
		(void)make_folders(parent, 0700); /* without it each mount counts alone */
	}
	return 0;
}

/* ---- the command line -------------------------------------------------------------------------------------- */

/* Calls each(name, value) for every part of "a,b=c\,d". */
static int split_option_text(const char *text, int (*each)(void *arg, const char *name, const char *value), void *arg)
{
	CLEANUP(text_release) char *copy = strdup(text);

	if (!copy)
		return -ENOMEM;
	const char *from = copy;
	for (bool is_last = false; !is_last;) {
		char *part = copy + (from - copy), *to = part; /* unescaping shortens it where it stands */
		while (*from && *from != ',') {
			if (*from == '\\' && from[1])
				from++;
			*to++ = *from++;
		}
		is_last = *from == '\0';
		from += !is_last;
		*to = '\0';
		char *value = strchr(part, '=');
		if (value)
			*value++ = '\0';
		if (*part || value) {
			int r = each(arg, part, value);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

struct line {
	const char *source, *mountpoint;
	struct text_list options; /* each -o text */
	bool foreground, debug_fuse;
};

static void line_release(struct line *l)
{
	text_list_release(&l->options);
}

static int read_line(int argc, char **argv, struct line *ret, struct buf *why)
{
	bool only_words = false;

	for (int i = 0; i < argc; i++) {
		const char *word = argv[i];
		if (!only_words && strcmp(word, "--") == 0) {
			only_words = true;
		} else if (!only_words && strncmp(word, "-o", 2) == 0) {
			const char *text = word[2] ? word + 2 : ++i < argc ? argv[i] : NULL;
			if (!text) {
				buf_add(why, "-o needs options behind it: -o option[,option...]");
				return -EINVAL;
			}
			int r = text_list_add(&ret->options, text);
			if (r < 0)
				return r;
		} else if (!only_words && word[0] == '-' && word[1] && strspn(word + 1, "fd") == strlen(word + 1)) {
			ret->foreground = true;
			ret->debug_fuse = ret->debug_fuse || strchr(word, 'd');
		} else if (!only_words && word[0] == '-' && word[1]) {
			buf_addf(why, "unknown switch '%.100s'; sessionfs -h lists them", word);
			return -EINVAL;
		} else if (!ret->source) {
			ret->source = word;
		} else if (!ret->mountpoint) {
			ret->mountpoint = word;
		} else {
			buf_addf(why, "'%.200s' is one word too many: SOURCE and MOUNTPOINT are enough", word);
			return -EINVAL;
		}
	}
	return 0;
}

/* ---- which service ----------------------------------------------------------------------------------------- */

static int find_service_option(void *arg, const char *name, const char *value)
{
	return strcmp(name, "service") == 0 && value && *value ? replace_text(arg, value) : 0;
}

static bool is_service(const char *name)
{
	return backend_options(name) != NULL;
}

static void add_services(struct buf *ret)
{
	for (const char *const *s = backend_services(); *s; s++)
		buf_addf(ret, "%s%s", s == backend_services() ? "" : ", ", *s);
}

/* By -o, by the section, or because SOURCE is one; it has to be known before the other options, some of which are its
 * own. */
static int find_service(struct options *o, const struct config *c, const struct line *l, struct buf *why)
{
	int r = is_service(o->source) ? replace_text(&o->service, o->source) : 0;

	for (int i = 0; r == 0 && i < c->count; i++)
		r = find_service_option(&o->service, c->pairs[i].name, c->pairs[i].value);
	for (int i = 0; r == 0 && i < l->options.count; i++)
		r = split_option_text(l->options.items[i], find_service_option, &o->service);
	if (r < 0)
		return r;
	if (!o->service && c->was_found) {
		buf_addf(why, "[%s] in the configuration does not say which service it is: service=", o->source);
	} else if (!o->service) {
		buf_addf(why, "'%.100s' is neither a service (", o->source);
		add_services(why);
		buf_add(why, ") nor a section of the configuration");
	} else if (!is_service(o->service)) {
		buf_addf(why, "'service=%.100s' is not one of: ", o->service);
		add_services(why);
	} else {
		return 0;
	}
	return -EINVAL;
}

/* ---- what has to fit --------------------------------------------------------------------------------------- */

static bool is_loopback(const char *host, size_t len)
{
	char text[64];
	struct in_addr v4;

	if (len == 0 || len >= sizeof(text))
		return false;
	memcpy(text, host, len);
	text[len] = '\0';
	if (strcasecmp(text, "localhost") == 0 || strcmp(text, "[::1]") == 0)
		return true;
	return inet_pton(AF_INET, text, &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127;
}

/* https, or http on this machine: a token never crosses a network in the clear. */
static int check_url(char *url, struct buf *why)
{
	bool is_https = strncasecmp(url, "https://", 8) == 0, is_http = strncasecmp(url, "http://", 7) == 0;
	const char *host = url + (is_https ? 8 : 7);

	if (!is_https && !is_http)
		return wrong(why, "url", url, "an address such as https://api.example.com");
	size_t host_len = *host == '[' ? strcspn(host, "]/") + 1 : strcspn(host, ":/?#");
	if (host_len == 0 || host_len > strlen(host) || strpbrk(url, "?#@ \t\\") ||
	    (host[host_len] && !strchr(":/", host[host_len])))
		return wrong(why, "url", url, "an address such as https://api.example.com");
	if (is_http && !is_loopback(host, host_len)) {
		buf_addf(why, "'url=%.200s' would send the token unencrypted: use https", url);
		return -EINVAL;
	}
	for (size_t len = strlen(url); url[len - 1] == '/'; len--)
		url[len - 1] = '\0';
	return 0;
}

/* Resolved as far as it goes without asking the last part, which may be a dead mount. */
static int find_mountpoint(const char *text, char **ret)
{
	CLEANUP(text_release) char *copy = strdup(text);
	CLEANUP(buf_release) struct buf whole = BUF(PATH_MAX);
	char *made = realpath(text, NULL);

	if (made || !copy) {
		*ret = made;
		return made ? 0 : -ENOMEM;
	}
	int e = errno;
	for (size_t len = strlen(copy); len > 1 && copy[len - 1] == '/'; len--)
		copy[len - 1] = '\0';
	char *slash = strrchr(copy, '/');
	const char *last = slash ? slash + 1 : copy;
	if (!*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0)
		return -e;
	if (slash)
		*slash = '\0';
	CLEANUP(text_release) char *parent = realpath(slash ? (*copy ? copy : "/") : ".", NULL);
	if (!parent)
		return -errno;
	buf_addf(&whole, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, last);
	*ret = buf_take(&whole);
	return *ret ? 0 : -ENAMETOOLONG;
}

/* ---- reading it all ---------------------------------------------------------------------------------------- */

/* The secret leaves the environment: neither our children nor /proc/PID/environ have it any longer. */
static int take_secret_from_environment(struct options *o, struct buf *why)
{
	char *value = getenv("SESSIONFS_TOKEN");

	if (!value || !*value)
		return 0;
	o->env_secret = secret_new(value);
	explicit_bzero(value, strlen(value));
	(void)unsetenv("SESSIONFS_TOKEN"); /* fails for names with '=' alone */
	if (o->env_secret)
		return 0;
	buf_add(why, "$SESSIONFS_TOKEN is set, but holds no token");
	return -EINVAL;
}

static int set_defaults(struct options *o)
{
	for (int i = 0; i < TABLE_COUNT; i++) {
		CLEANUP(buf_release) struct buf why = BUF(1000);
		int r = table[i].default_text ? set_value(o, &table[i], table[i].default_text, &why) : 0;
		assert(r != -EINVAL);
		if (r < 0)
			return r;
	}
	o->uid = getuid();
	o->gid = getgid();
	o->umask = (mode_t)-1; /* told apart from a given one below */
	return 0;
}

struct setting {
	struct options *options;
	struct buf *why;
};

static int set_from_line(void *arg, const char *name, const char *value)
{
	struct setting *s = arg;

	return set_option(s->options, name, value, false, s->why);
}

static int set_from_config(struct options *o, const struct config *c, struct buf *why)
{
	for (int i = 0; i < c->count; i++) {
		CLEANUP(buf_release) struct buf reason = BUF(1000);
		const struct row *row = find_row(c->pairs[i].name);
		bool is_word = !row && c->pairs[i].value[0] == '\0'; /* "nodev =" */
		int r = set_option(o, c->pairs[i].name, is_word ? NULL : c->pairs[i].value, true, &reason);
		if (r == -EINVAL)
			buf_addf(why, "[%s] in the configuration: %s", c->section,
				 buf_text(&reason) ? buf_text(&reason) : "");
		if (r < 0)
			return r;
	}
	return 0;
}

/* What hangs together. */
static int settle(struct options *o, struct buf *why)
{
	int r = o->url ? check_url(o->url, why) : 0;

	if (r < 0)
		return r;
	if (o->umask == (mode_t)-1)
		o->umask = o->allow_other ? 022 : 077;
	if (o->stale_ms < o->ttl_ms)
		o->stale_ms = o->ttl_ms;
	const char *dir = env("CREDENTIALS_DIRECTORY");
	if (dir)
		r = replace_text(&o->credentials_dir, dir);
	char **paths[] = { &o->token_file, &o->state_dir, &o->cache_dir, &o->cafile };
	for (size_t i = 0; r == 0 && i < sizeof(paths) / sizeof(paths[0]); i++)
		r = make_absolute(paths[i]);
	return r < 0 ? r : resolve_places(o, why);
}

static int read_options(const struct line *l, bool needs_mountpoint, struct buf *why, struct options *o)
{
	CLEANUP(config_release) struct config c = { .section = l->source, .why = why };
	struct setting setting = { o, why };

	if (!l->source || !*l->source || (needs_mountpoint && !l->mountpoint)) {
		buf_addf(why, "SOURCE%s missing; sessionfs -h tells more",
			 !l->source && needs_mountpoint ? " and MOUNTPOINT are"
			 : l->source                    ? ": MOUNTPOINT is"
							: " is");
		return -EINVAL;
	}
	int r = take_secret_from_environment(o, why);
	if (r == 0)
		r = replace_text(&o->source, l->source);
	if (r == 0)
		r = config_read_all(&c);
	if (r == 0)
		r = set_defaults(o);
	if (r == 0)
		r = find_service(o, &c, l, why);
	if (r == 0)
		r = set_from_config(o, &c, why);
	for (int i = 0; r == 0 && i < l->options.count; i++)
		r = split_option_text(l->options.items[i], set_from_line, &setting);
	if (r < 0)
		return r;
	o->debug_fuse = o->debug_fuse || l->debug_fuse;
	o->foreground = o->foreground || l->foreground;
	if (l->mountpoint) {
		r = find_mountpoint(l->mountpoint, &o->mountpoint);
		if (r < 0) {
			buf_addf(why, "the mount point %.200s cannot be used: %s", l->mountpoint, strerror(-r));
			return -EINVAL;
		}
	}
	return settle(o, why);
}

int options_read(int argc, char **argv, bool needs_mountpoint, struct buf *why, struct options *ret)
{
	CLEANUP(options_release) struct options o = { 0 };
	CLEANUP(line_release) struct line l = { 0 };
	int r = read_line(argc, argv, &l, why);

	if (r == 0)
		r = read_options(&l, needs_mountpoint, why, &o);
	if (r < 0) {
		if (why->len == 0)
			buf_addf(why, "the options cannot be read: %s", strerror(-r));
		return -EINVAL;
	}
	*ret = o;
	o = (struct options){ 0 };
	return 0;
}

void options_release(struct options *o)
{
	char **texts[] = { &o->source,        &o->service,         &o->mountpoint,
			   &o->url,           &o->token_file,      &o->token_command,
			   &o->username,      &o->credentials_dir, &o->stored_secret_file,
			   &o->template_name, &o->ignore,          &o->formats,
			   &o->state_dir,     &o->cache_dir,       &o->state_base,
			   &o->limit_path,    &o->cafile,          &o->proxy,
			   &o->log_level };
	struct text_list *lists[] = { &o->sessions, &o->queues, &o->fuse_args, &o->backend };

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		text_release(texts[i]);
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		text_list_release(lists[i]);
	secret_release(&o->env_secret);
}

/* ---- help -------------------------------------------------------------------------------------------------- */

static void help_line(const char *name, const char *value_word, const char *help, const char *default_text,
		      struct buf *ret)
{
	char left[64];

	(void)snprintf(left, sizeof(left), "%s%s%s", name, value_word ? "=" : "", value_word ? value_word : "");
	buf_addf(ret, "    %-28s %s", left, help);
	if (default_text && *default_text)
		buf_addf(ret, " [%s]", default_text);
	buf_add(ret, "\n");
}

void options_help(struct buf *ret)
{
	for (int i = 0; i < TABLE_COUNT; i++)
		help_line(table[i].name, table[i].value_word, table[i].help, table[i].default_text, ret);
	for (const char *const *s = backend_services(); *s; s++) {
		const struct backend_option *b = backend_options(*s);
		if (b->name)
			buf_addf(ret, "  for %s:\n", *s);
		for (; b->name; b++)
			help_line(b->name, b->value_word, b->help, b->default_text, ret);
	}
	buf_add(ret, "    and what mount.fuse3 knows: ");
	for (size_t i = 0; i < sizeof(fuse_words) / sizeof(fuse_words[0]); i++)
		buf_addf(ret, "%s%s", i == 0 ? "" : i == 8 ? ",\n      " : ", ", fuse_words[i]);
	buf_add(ret, "\n");
}

/* ---- the secret -------------------------------------------------------------------------------------------- */

static int tell(struct buf *why, int error, const char *path)
{
	if (!why)
		return error;
	if (error == -EACCES)
		buf_addf(why, "%s is refused: others can read it, or you cannot (chmod 600 it)", path);
	else if (error == -EINVAL)
		buf_addf(why, "%s holds no token", path);
	else
		buf_addf(why, "%s cannot be read: %s", path, strerror(-error));
	return error;
}

static int find_secret(const struct options *o, struct buf *why, struct secret **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_MAX);
	int r;

	if (o->token_file) {
		r = secret_read_file(o->token_file, o->credentials_dir, ret);
		return r < 0 ? tell(why, r, o->token_file) : 0;
	}
	if (o->env_secret) {
		*ret = secret_copy(o->env_secret);
		return *ret ? 0 : -ENOMEM;
	}
	if (o->credentials_dir) {
		buf_addf(&path, "%s/token", o->credentials_dir);
		r = buf_text(&path) ? secret_read_file(buf_text(&path), o->credentials_dir, ret) : -ENAMETOOLONG;
		if (r != -ENOENT)
			return r < 0 ? tell(why, r, path.data) : 0;
	}
	if (o->token_command) {
		r = secret_read_command(o->token_command, ret);
		return r < 0 ? tell(why, r == -EACCES ? -EIO : r, "what token_command prints") : 0;
	}
	r = o->stored_secret_file ? secret_read_file(o->stored_secret_file, NULL, ret) : -ENOENT;
	if (r < 0 && r != -ENOENT)
		return tell(why, r, o->stored_secret_file);
	if (r == -ENOENT && why)
		buf_addf(why, "no token is configured: run `sessionfs setup %s`, or set token_file=", o->source);
	return r;
}

int options_read_credentials(const struct options *o, struct buf *why, struct credentials *ret)
{
	CLEANUP(secret_release) struct secret *secret = NULL;
	CLEANUP(credentials_release) struct credentials found = { 0 };
	int r = find_secret(o, why, &secret);

	if (r < 0)
		return r;
	if (o->username) {
		found.user = strdup(o->username);
		if (!found.user)
			return -ENOMEM;
		found.password = secret;
	} else {
		found.token = secret;
	}
	secret = NULL;
	*ret = found;
	found = (struct credentials){ 0 };
	return 0;
}

int options_fingerprint(const struct options *o, const char *url, struct buf *why, char ret[65])
{
	CLEANUP(credentials_release) struct credentials c = { 0 };
	CLEANUP(buf_release) struct buf about = BUF(TEXT_BYTES_MAX);
	int r = options_read_credentials(o, why, &c);

	if (r < 0)
		return r;
	buf_addf(&about, "%s\n%s", url ? url : "", c.user ? c.user : "");
	if (!buf_text(&about))
		return -ENOMEM;
	secret_fingerprint(c.token ? c.token : c.password, buf_text(&about), ret);
	return 0;
}

/* ---- for the backend --------------------------------------------------------------------------------------- */

static int read_credentials(void *arg, struct credentials *ret)
{
	return options_read_credentials(arg, NULL, ret);
}

static const char *backend_option_value(void *arg, const char *name, int nth)
{
	const struct options *o = arg;
	size_t len = strlen(name);

	/* In the general table, since which folders to show is everybody's question; the backend has the answer. */
	if (strcmp(name, "queue") == 0)
		return nth < o->queues.count ? o->queues.items[nth] : NULL;
	for (int i = 0; i < o->backend.count; i++) {
		const char *text = o->backend.items[i];
		if (strncmp(text, name, len) == 0 && text[len] == '=' && nth-- == 0)
			return text + len + 1;
	}
	return NULL;
}

void options_backend_config(const struct options *o, struct backend_config *ret)
{
	*ret = (struct backend_config){
		.service = o->service,
		.url = o->url,
		.read_credentials = read_credentials,
		.option = backend_option_value,
		.arg = (void *)o, /* both only read it */
		.rate_per_min = o->rate_per_min,
		.cafile = o->cafile,
		.proxy = o->proxy,
		.scratch_dir = o->cache_dir,
		.limit_path = o->limit_path,
	};
}
