/* How a command reaches a running mount: one line there, a text back, over a Unix socket in the state folder.
 *
 * Only the same user and root are answered. Lines hold no control characters and at most SOCKET_LINE_BYTES_MAX bytes.
 */
#pragma once

#include "client/base/buf.h"

#define SOCKET_LINE_BYTES_MAX 8192
#define SOCKET_ANSWER_BYTES_MAX (16 << 20)

struct socket_server;

/* Fills the answer: a first line "ok" or "error SENTENCE", then text for the command. May block; called on worker
 * threads, a few at a time. 0 or -errno; where that left the answer empty, "error" and the error's words are sent. */
typedef int socket_handler(void *arg, const char *line, struct buf *answer);

/* Listens in dir (control.sock, 0600; what a dead process left is replaced: the caller holds the folder's lock). */
int socket_serve(const char *dir, socket_handler *handle, void *arg, struct socket_server **ret);
/* Takes no more lines; waits for those being answered. Accepts NULL. */
void socket_close(struct socket_server *s);

/* Asks the mount of that state folder. -ENOENT: nobody listens there. -EACCES: another user's. -EINVAL: not a line.
 * -EPIPE: it ended before it answered. -ETIMEDOUT. */
int socket_ask(const char *dir, const char *line, struct buf *answer);
