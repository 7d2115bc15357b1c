/* The way to the background; see daemon.h. */
#include "fs/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include "client/base/buf.h"
#include "client/base/cleanup.h"

enum {
	SENTENCE_BYTES_MAX = 4096,
	EXIT_DIED = 2, /* the child ended without a verdict */
};

static void say(const char *sentence)
{
	if (sentence && *sentence)
		(void)fprintf(stderr, "sessionfs: %s\n", sentence);
}

/* The parent's whole life after the fork: one byte of exit status, then a sentence. */
static _Noreturn void wait_for_verdict(pid_t child, int fd)
{
	CLEANUP(buf_release) struct buf text = BUF(SENTENCE_BYTES_MAX);
	char piece[512];
	ssize_t n;

	while ((n = read(fd, piece, sizeof(piece))) != 0) {
		if (n > 0)
			buf_add_bytes(&text, piece, (size_t)n);
		else if (errno != EINTR)
			break;
	}
	if (text.len > 0) {
		say(text.data + 1);
		_exit((unsigned char)text.data[0]);
	}
	int status = 0;
	if (waitpid(child, &status, 0) == child && WIFSIGNALED(status))
		(void)fprintf(stderr, "sessionfs: ended by signal %d before it was mounted\n", WTERMSIG(status));
	else
		say("ended before it was mounted");
	_exit(EXIT_DIED);
}

int daemon_start(bool in_foreground, struct daemon *ret)
{
	int fds[2];

	ret->verdict_fd = -1;
	atomic_init(&ret->was_told, false);
	if (in_foreground)
		return 0;
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	(void)fflush(NULL); /* so that nothing is said twice */
	pid_t child = fork();
	if (child < 0) {
		int e = errno;
		(void)close(fds[0]);
		(void)close(fds[1]);
		return -e;
	}
	if (child > 0) {
		(void)close(fds[1]);
		wait_for_verdict(child, fds[0]);
	}
	(void)close(fds[0]);
	ret->verdict_fd = fds[1];
	return 0;
}

/* A new session, no folder kept busy, no terminal. */
static void let_go(void)
{
	CLEANUP(fd_close) int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	(void)setsid(); /* we were forked, so we lead no group: it cannot fail */
	(void)!chdir("/");
	for (int fd = 0; null_fd >= 0 && fd < 3; fd++)
		(void)dup2(null_fd, fd);
}

static void send_verdict(int fd, int exit_code, const char *sentence)
{
	CLEANUP(buf_release) struct buf text = BUF(SENTENCE_BYTES_MAX);
	char code = (char)exit_code;

	buf_add_bytes(&text, &code, 1);
	buf_addf(&text, "%.*s", SENTENCE_BYTES_MAX - 2, sentence ? sentence : "");
	for (size_t at = 0; at < text.len;) {
		ssize_t n = write(fd, text.data + at, text.len - at);
		if (n < 0 && errno != EINTR)
			return; /* nobody waits for it any more */
		at += n > 0 ? (size_t)n : 0;
	}
}

void daemon_tell(struct daemon *d, int exit_code, const char *sentence)
{
	if (atomic_exchange(&d->was_told, true))
		return;
	if (d->verdict_fd >= 0)
		send_verdict(d->verdict_fd, exit_code, sentence);
	else
		say(sentence);
	if (exit_code == 0 && d->verdict_fd >= 0)
		let_go();
	fd_close(&d->verdict_fd);
#ifdef HAVE_SYSTEMD
	if (exit_code == 0)
		(void)sd_notify(0, "READY=1"); /* without a manager it does nothing */
#endif
}

bool daemon_was_told(const struct daemon *d)
{
	return atomic_load(&d->was_told);
}

void daemon_notify_status(const char *line)
{
#ifdef HAVE_SYSTEMD
	(void)sd_notifyf(0, "STATUS=%s", line);
#else
	(void)line;
#endif
}

void daemon_notify_stopping(void)
{
#ifdef HAVE_SYSTEMD
	(void)sd_notify(0, "STOPPING=1");
#endif
}
