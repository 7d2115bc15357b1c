/* Every option in one table: name, kind, default, help line. The same names work in the configuration file, with -o,
 * and from fstab; the table is also where the help text and the manual's list come from. A backend's own options
 * (backend_options()) are appended to it for the chosen service. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/backend.h"

enum upload_mode { UPLOAD_AT_CLOSE, UPLOAD_IN_BACKGROUND };
enum remove_mode { REMOVE_RECENT, REMOVE_YES, REMOVE_NO };
enum start_mode { START_AUTO, START_WAIT, START_STRICT };
enum discover_mode { DISCOVER_AUTO, DISCOVER_YES, DISCOVER_NO };

struct text_list {
	char **items;
	int count;
};

struct options {
	char *source;     /* as typed: a service or a section of the configuration */
	char *service;    /* a name in backend_services() */
	char *mountpoint; /* absolute; NULL for commands without one */
	char *url;        /* NULL: the service's own */
	char *token_file, *token_command;
	char *username;            /* the secret is this user's password; NULL: it is a token */
	struct secret *env_secret; /* $SESSIONFS_TOKEN, which was taken out of the environment: no child sees it */
	char *credentials_dir;     /* $CREDENTIALS_DIRECTORY; NULL: none */
	char *stored_secret_file;  /* where `setup` puts it; NULL: nowhere to put it */
	struct text_list sessions, queues; /* session=, queue= */
	char *template_name;               /* template=: name or id */
	enum discover_mode discover;
	int64_t ttl_ms, stale_ms, close_timeout_ms, settle_ms;
	enum upload_mode upload;
	char *ignore, *formats;
	enum remove_mode remove;
	bool views_listed;
	enum start_mode start;
	int rate_per_min;            /* 0: default; -1: off */
	char *state_dir, *cache_dir; /* resolved: never NULL after options_read() */
	char *state_base;            /* the folder of all default state folders; NULL: there is none */
	char *limit_path;            /* shared by the user's mounts of this service; NULL: nowhere */
	int64_t cache_size_bytes;
	char *cafile, *proxy;
	char *log_level;
	uid_t uid;
	gid_t gid;
	mode_t umask;
	bool allow_other, read_only, foreground, debug_fuse, noxattr;
	struct text_list fuse_args; /* what mount.fuse3 knows, passed on: "-odev" ...; allow_other, ro and -d are not
				       among them */
	struct text_list backend;   /* "name=value" of the service's own options */
};

/* Reads `sessionfs SOURCE MOUNTPOINT [-o …] …` (argv without the program's name), the configuration files and the
 * environment; touches no other disk. needs_mountpoint false: for commands, MOUNTPOINT may be missing. -EINVAL: `why`
 * is one sentence. To be called before threads start, since it takes the secret out of the environment. */
int options_read(int argc, char **argv, bool needs_mountpoint, struct buf *why, struct options *ret);
void options_release(struct options *o);
/* The help text's list of options. */
void options_help(struct buf *ret);

/* Makes state_dir, cache_dir and the folder of limit_path, each 0700. */
int options_make_folders(const struct options *o, struct buf *why);

/* Where the default state folders of this user are, each with its own state.db. -ENOENT: nowhere. */
int options_state_base(struct buf *ret);

/* Sets a key of a section in the user's own configuration file (as root without $XDG_CONFIG_HOME:
 * /etc/sessionfs/config), and leaves all else in it as it is. ret_path (may be NULL): which file. */
int options_store(const char *section, const char *key, const char *value, struct buf *why, struct buf *ret_path);

/* "30s", "250ms", "5m", "1h", "2d", "30" (seconds). */
bool options_parse_time(const char *text, int64_t *ret_ms);

/* token_file, $SESSIONFS_TOKEN, $CREDENTIALS_DIRECTORY/token, token_command, or what `setup` stored; in this order.
 * -ENOENT: none is configured. why may be NULL. Called again after a 401: reads anew. Any thread. */
int options_read_credentials(const struct options *o, struct buf *why, struct credentials *ret);

/* The account's name among what is remembered: the secret's (and user name's) fingerprint over the service's address.
 * As options_read_credentials() otherwise. */
int options_fingerprint(const struct options *o, const char *url, struct buf *why, char ret[65]);

/* Fills a backend_config that borrows from o. */
void options_backend_config(const struct options *o, struct backend_config *ret);
