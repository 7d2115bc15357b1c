/* The control socket, both ends of it; what the lines mean is command.c's and the mount's. */
#include "fs/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/log.h"
#include "client/base/pool.h"

#define SOCKET_NAME "control.sock"

enum {
	ASKED_AT_ONCE_MAX = 4,
	READ_SECONDS = 5, /* for a line that has been begun */
	WRITE_SECONDS = 10,
	ANSWER_SECONDS = 180, /* the mount may have to ask the service */
	PIECE_BYTES = 4096,
};

struct socket_server {
	char *path; /* these are set once, before the thread */
	socket_handler *handle;
	void *arg;
	int listen_fd, stop_fd;
	struct pool *pool;
	pthread_t thread;
};

/* ---- addresses --------------------------------------------------------------------------------------------- */

/* A path that is longer than a socket's address may be goes by way of the folder's descriptor, which *ret_dir_fd holds
 * (-1: not needed). */
static int make_address(const char *dir, struct sockaddr_un *ret, int *ret_dir_fd)
{
	memset(ret, 0, sizeof(*ret));
	ret->sun_family = AF_UNIX;
	*ret_dir_fd = -1;
	if (snprintf(ret->sun_path, sizeof(ret->sun_path), "%s/" SOCKET_NAME, dir) < (int)sizeof(ret->sun_path))
		return 0;
	*ret_dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*ret_dir_fd < 0)
		return -errno;
	(void)snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/" SOCKET_NAME, *ret_dir_fd); /* fits */
	return 0;
}

static void set_patience(int fd, int option, int seconds)
{
	struct timeval patience = { .tv_sec = seconds };

	(void)setsockopt(fd, SOL_SOCKET, option, &patience, sizeof(patience)); /* without it we merely wait longer */
}

/* ---- reading and writing ----------------------------------------------------------------------------------- */

static int send_all(int fd, const char *bytes, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		bytes += n;
		len -= (size_t)n;
	}
	return 0;
}

/* Up to the end of what the other side sends, or of the line when `a_line`. */
static int receive(int fd, bool a_line, struct buf *ret)
{
	char piece[PIECE_BYTES];

	for (;;) {
		ssize_t n = recv(fd, piece, sizeof(piece), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		char *end = a_line ? memchr(piece, '\n', (size_t)n) : NULL;
		buf_add_bytes(ret, piece, end ? (size_t)(end - piece) : (size_t)n);
		if (ret->failed)
			return -EMSGSIZE;
		if (end || n == 0)
			return 0;
	}
}

static bool is_a_line(const char *text, size_t len)
{
	if (len == 0 || len > SOCKET_LINE_BYTES_MAX)
		return false;
	for (size_t i = 0; i < len; i++) {
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			return false;
	}
	return true;
}

/* ---- serving ----------------------------------------------------------------------------------------------- */

struct asker {
	struct socket_server *server;
	int fd; /* owned */
};

static bool is_one_of_us(int fd)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0)
		return false;
	return who.uid == 0 || who.uid == geteuid();
}

static void answer_asker(void *arg)
{
	struct asker *a = arg;
	CLEANUP(buf_release) struct buf line = BUF(SOCKET_LINE_BYTES_MAX);
	CLEANUP(buf_release) struct buf answer = BUF(SOCKET_ANSWER_BYTES_MAX);

	set_patience(a->fd, SO_RCVTIMEO, READ_SECONDS);
	set_patience(a->fd, SO_SNDTIMEO, WRITE_SECONDS);
	int r = receive(a->fd, true, &line);
	if (r == 0 && !is_a_line(line.data, line.len))
		r = -EINVAL;
	if (r == 0)
		r = a->server->handle(a->server->arg, line.data, &answer);
	if ((r < 0 && answer.len == 0) || answer.failed) {
		buf_clear(&answer);
		buf_addf(&answer, "error %s\n", strerror(r < 0 ? -r : EMSGSIZE));
	}
	(void)send_all(a->fd, buf_text(&answer), answer.len); /* who does not read on does not want to know */
	(void)close(a->fd);
	free(a);
}

static void take_asker(struct socket_server *s)
{
	CLEANUP(fd_close) int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return; /* gone again */
	if (!is_one_of_us(fd)) {
		log_warning("control: another user's process was turned away");
		return;
	}
	struct asker *a = malloc(sizeof(*a));
	if (!a)
		return;
	*a = (struct asker){ s, fd };
	if (pool_run(s->pool, answer_asker, a) < 0) {
		free(a);
		return;
	}
	fd = -1;
}

static void *serve(void *arg)
{
	struct socket_server *s = arg;
	struct pollfd fds[] = { { .fd = s->listen_fd, .events = POLLIN }, { .fd = s->stop_fd, .events = POLLIN } };

	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR) {
			log_error("control: poll: %s; commands no longer reach this mount", strerror(errno));
			return NULL;
		}
		if (fds[1].revents)
			return NULL;
		if (fds[0].revents)
			take_asker(s);
	}
}

static void server_free(struct socket_server *s)
{
	pool_free(s->pool);
	fd_close(&s->listen_fd);
	fd_close(&s->stop_fd);
	free(s->path);
	free(s);
}

static int listen_in(const char *dir, int *ret)
{
	struct sockaddr_un address;
	CLEANUP(fd_close) int dir_fd = -1;
	CLEANUP(fd_close) int fd = -1;
	int r = make_address(dir, &address, &dir_fd);

	if (r < 0)
		return r;
	if (unlink(address.sun_path) < 0 && errno != ENOENT)
		return -errno;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || chmod(address.sun_path, 0600) < 0 ||
	    listen(fd, SOMAXCONN) < 0)
		return -errno;
	*ret = fd;
	fd = -1;
	return 0;
}

int socket_serve(const char *dir, socket_handler *handle, void *arg, struct socket_server **ret)
{
	struct socket_server *s = calloc(1, sizeof(*s));
	CLEANUP(buf_release) struct buf path = BUF(4096);
	int r = -ENOMEM;

	if (!s)
		return -ENOMEM;
	s->handle = handle;
	s->arg = arg;
	s->listen_fd = -1;
	s->stop_fd = eventfd(0, EFD_CLOEXEC);
	s->pool = pool_new("control", ASKED_AT_ONCE_MAX);
	buf_addf(&path, "%s/" SOCKET_NAME, dir);
	s->path = buf_take(&path);
	if (s->stop_fd >= 0 && s->pool && s->path)
		r = listen_in(dir, &s->listen_fd);
	if (r == 0)
		r = -pthread_create(&s->thread, NULL, serve, s);
	if (r < 0) {
		server_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

void socket_close(struct socket_server *s)
{
	if (!s)
		return;
	(void)eventfd_write(s->stop_fd, 1); /* cannot fail: the counter is 0 */
	(void)pthread_join(s->thread, NULL);
	(void)unlink(s->path); /* what is left is replaced by the next mount */
	server_free(s);
}

/* ---- asking ------------------------------------------------------------------------------------------------ */

int socket_ask(const char *dir, const char *line, struct buf *answer)
{
	struct sockaddr_un address;
	CLEANUP(fd_close) int dir_fd = -1;
	CLEANUP(fd_close) int fd = -1;

	if (!is_a_line(line, strlen(line)))
		return -EINVAL;
	int r = make_address(dir, &address, &dir_fd);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	set_patience(fd, SO_SNDTIMEO, WRITE_SECONDS);
	set_patience(fd, SO_RCVTIMEO, ANSWER_SECONDS);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return errno == ECONNREFUSED || errno == ENOTDIR ? -ENOENT : errno == EAGAIN ? -ETIMEDOUT : -errno;
	r = send_all(fd, line, strlen(line));
	if (r == 0)
		r = send_all(fd, "\n", 1);
	if (r == 0)
		r = receive(fd, false, answer);
	if (r == -ECONNRESET)
		r = -EPIPE;
	return r == 0 && answer->len == 0 ? -EPIPE : r;
}
