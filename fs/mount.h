/* One mount: the tree, the uploads and the loop that serves the kernel. main.c reads the options and opens what is handed
 * in; mount.c puts it together and takes it apart again. */
#pragma once

#include "client/backend.h"
#include "fs/options.h"
#include "fs/state.h"

struct mount;

struct mount_config {
	const struct options *options; /* borrowed */
	struct backend *backend;       /* borrowed: the cache around the service's backend */
	struct state *state;           /* borrowed */
	char account[65];              /* fingerprint of the token in use */
};

/* Everything but the kernel: the tree as remembered, the queue. -errno with one sentence in why. */
int mount_new(const struct mount_config *config, struct buf *why, struct mount **ret);

/* Mounts. From here on the kernel may ask (it is answered once mount_loop() runs). */
int mount_attach(struct mount *m, struct buf *why);

/* Serves until fusermount3 -u, SIGTERM, SIGINT or SIGHUP's opposite of them; then unmounts, drains the uploads within
 * bounds and says how many files still wait. The start check runs beside it: `verified` is called once from a worker, with 0 when the
 * service answered (or `start` allows to go on), else -errno and a sentence; the mount ends by itself then. It is not called when
 * the mount is ended before either is known, and never after mount_loop() has returned. */
int mount_loop(struct mount *m, void (*verified)(void *arg, int error, const char *sentence), void *arg);

/* A line from a command (control socket): "add ID", "forget ID", "refresh PATH", "retry INO", ... The answer is for the command. */
int mount_command(struct mount *m, const char *line, struct buf *answer);

void mount_free(struct mount *m);
