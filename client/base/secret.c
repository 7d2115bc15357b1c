/* Secrets; see secret.h. Memory that held one is wiped before it is given back. */
#include "client/base/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/log.h"

#define SECRET_BYTES_MAX 65536
#define COMMAND_MS_MAX 30000
#define COMMAND_LOOK_MS 20

struct secret {
	size_t len;
	char text[]; /* NUL-terminated */
};

static bool is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct secret *secret_of_bytes(const char *text, size_t len)
{
	while (len && is_space(text[0])) {
		text++;
		len--;
	}
	while (len && is_space(text[len - 1]))
		len--;
	if (!len)
		return NULL;
	for (size_t i = 0; i < len; i++) {
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			return NULL; /* it goes into a header line */
	}
	struct secret *s = malloc(sizeof(*s) + len + 1);
	if (!s)
		return NULL;
	s->len = len;
	memcpy(s->text, text, len);
	s->text[len] = '\0';
	return s;
}

struct secret *secret_new(const char *text)
{
	return text ? secret_of_bytes(text, strlen(text)) : NULL;
}

struct secret *secret_copy(const struct secret *s)
{
	return s ? secret_of_bytes(s->text, s->len) : NULL;
}

bool secret_is_equal(const struct secret *a, const struct secret *b)
{
	if (!a || !b)
		return a == b;
	return a->len == b->len && CRYPTO_memcmp(a->text, b->text, a->len) == 0;
}

const char *secret_reveal(const struct secret *s)
{
	return s ? s->text : NULL;
}

void secret_free(struct secret *s)
{
	if (!s)
		return;
	OPENSSL_cleanse(s, sizeof(*s) + s->len);
	free(s);
}

void secret_release(struct secret **s)
{
	secret_free(*s);
	*s = NULL;
}

void secret_fingerprint(const struct secret *s, const char *about, char ret_hex[65])
{
	static const char hex[] = "0123456789abcdef";
	unsigned char sum[EVP_MAX_MD_SIZE];
	unsigned int len = 0;

	/* Without memory for it: a name that no account has, so that nothing remembered is shown to the wrong one. */
	if (!HMAC(EVP_sha256(), s ? s->text : "", s ? (int)s->len : 0, (const unsigned char *)about, strlen(about), sum,
		  &len) ||
	    len < 32)
		(void)RAND_bytes(sum, 32); /* what stands there already is no account's either */
	for (size_t i = 0; i < 32; i++) {
		ret_hex[2 * i] = hex[sum[i] >> 4];
		ret_hex[2 * i + 1] = hex[sum[i] & 15];
	}
	ret_hex[64] = '\0';
	OPENSSL_cleanse(sum, sizeof(sum));
}

/* ---- from a file ------------------------------------------------------------------------------------------- */

/* Both are resolved first, so that neither ".." nor a symbolic link leads out. */
static bool is_under(const char *path, const char *dir)
{
	CLEANUP(text_release) char *real_path = realpath(path, NULL);
	CLEANUP(text_release) char *real_dir = realpath(dir, NULL);

	if (!real_path || !real_dir)
		return false;
	size_t len = strlen(real_dir);
	return strncmp(real_path, real_dir, len) == 0 && real_path[len] == '/';
}

/* Returns how many bytes, or -errno; -EFBIG when there are more than room. */
static ssize_t read_whole(int fd, char *bytes, size_t room)
{
	size_t len = 0;

	for (;;) {
		char beyond;
		ssize_t n = len < room ? read(fd, bytes + len, room - len) : read(fd, &beyond, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return (ssize_t)len;
		if (len == room)
			return -EFBIG;
		len += (size_t)n;
	}
}

int secret_read_file(const char *path, const char *trusted_dir, struct secret **ret)
{
	/* O_NONBLOCK: a FIFO is refused below and not waited for. */
	CLEANUP(fd_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat st;
	char bytes[SECRET_BYTES_MAX];

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if ((st.st_mode & (S_IRGRP | S_IROTH)) && !(trusted_dir && is_under(path, trusted_dir)))
		return -EACCES;
	ssize_t len = read_whole(fd, bytes, sizeof(bytes));
	if (len < 0) {
		OPENSSL_cleanse(bytes, sizeof(bytes));
		return (int)len;
	}
	struct secret *found = secret_of_bytes(bytes, (size_t)len);
	OPENSSL_cleanse(bytes, sizeof(bytes));
	if (!found)
		return -EINVAL;
	*ret = found;
	return 0;
}

/* ---- from a command ---------------------------------------------------------------------------------------- */

extern char **environ;

/* What we were given for ourselves is not handed to a child. The strings stay the environment's. */
static char **environ_without_secrets(void)
{
	size_t count = 0, kept = 0;

	while (environ[count])
		count++;
	char **list = calloc(count + 1, sizeof(*list));
	if (!list)
		return NULL;
	for (size_t i = 0; i < count; i++) {
		if (strncmp(environ[i], "SESSIONFS_TOKEN=", 16) != 0 &&
		    strncmp(environ[i], "SESSIONFS_PASSWORD=", 19) != 0)
			list[kept++] = environ[i];
	}
	return list;
}

/* Starts the shell in a process group of its own, so that all of it can be ended, with its output into fd. */
static int command_start(const char *command, int fd, pid_t *ret)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, usual;
	char *const argv[] = { "sh", "-c", (char *)command, NULL };
	char **env = environ_without_secrets();

	if (!env)
		return -ENOMEM;
	if (posix_spawn_file_actions_init(&actions) != 0) {
		free(env);
		return -ENOMEM;
	}
	if (posix_spawnattr_init(&attr) != 0) {
		(void)posix_spawn_file_actions_destroy(&actions);
		free(env);
		return -ENOMEM;
	}
	(void)sigemptyset(&none); /* these can't fail; workers have signals blocked, which a child would inherit */
	(void)sigemptyset(&usual);
	(void)sigaddset(&usual, SIGPIPE);
	(void)sigaddset(&usual, SIGINT);
	(void)sigaddset(&usual, SIGTERM);
	(void)sigaddset(&usual, SIGHUP);
	int r = posix_spawnattr_setsigmask(&attr, &none);
	if (r == 0)
		r = posix_spawnattr_setsigdefault(&attr, &usual);
	if (r == 0)
		r = posix_spawnattr_setpgroup(&attr, 0);
	if (r == 0)
		r = posix_spawnattr_setflags(&attr,
					     POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
	if (r == 0)
		r = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	if (r == 0)
		r = posix_spawn_file_actions_adddup2(&actions, fd, STDOUT_FILENO);
	if (r == 0)
		r = posix_spawn(ret, "/bin/sh", &actions, &attr, argv, env);
	(void)posix_spawn_file_actions_destroy(&actions);
	(void)posix_spawnattr_destroy(&attr);
	free(env);
	return -r;
}

/* Collects output until the shell has ended (a child it left behind may hold the pipe open, so its end alone is not
 * awaited) or the time is up. Returns how many bytes, or -errno. */
static ssize_t command_read(pid_t pid, int fd, char *bytes, size_t room, int64_t deadline_ms)
{
	size_t len = 0;
	bool is_open = true, has_ended = false;
	int status = 0;

	while (!has_ended) {
		pid_t seen = waitpid(pid, &status, WNOHANG);
		has_ended = seen == pid || (seen < 0 && errno == ECHILD);
		if (seen < 0 && errno == ECHILD)
			status = 0; /* somebody ignores SIGCHLD: how it ended can't be known, what it said can */
		if (!has_ended && clock_now_ms() >= deadline_ms) {
			(void)kill(-pid, SIGKILL); /* it may have ended meanwhile */
			(void)waitpid(pid, &status, 0);
			return -ETIMEDOUT;
		}
		struct pollfd wait = { .fd = is_open ? fd : -1, .events = POLLIN };
		if (!has_ended)
			(void)poll(&wait, 1, COMMAND_LOOK_MS);
		while (is_open) {
			char spare[512]; /* the rest of a long output is read and dropped, so that it does not block */
			ssize_t n = len < room ? read(fd, bytes + len, room - len) : read(fd, spare, sizeof(spare));
			if (n > 0 && len < room)
				len += (size_t)n;
			if (n == 0)
				is_open = false;
			if (n < 0 && errno != EINTR)
				break;
			if (n > 0 && clock_now_ms() >= deadline_ms)
				break;
		}
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		log_error("token_command: ended with %s %d", WIFEXITED(status) ? "status" : "signal",
			  WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
		return -EIO;
	}
	return (ssize_t)len;
}

int secret_read_command(const char *command, struct secret **ret)
{
	char bytes[SECRET_BYTES_MAX];
	int ends[2];
	pid_t pid = -1;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	CLEANUP(fd_close) int from = ends[0];
	CLEANUP(fd_close) int to = ends[1];
	if (fcntl(from, F_SETFL, O_NONBLOCK) < 0)
		return -errno;
	int r = command_start(command, to, &pid);
	if (r < 0) {
		log_error("token_command: no shell: %s", strerror(-r));
		return -EIO;
	}
	fd_close(&to);
	ssize_t len = command_read(pid, from, bytes, sizeof(bytes), clock_now_ms() + COMMAND_MS_MAX);
	if (len == -ETIMEDOUT)
		log_error("token_command: no answer in %d s", COMMAND_MS_MAX / 1000);
	struct secret *found = NULL;
	if (len > 0) {
		const char *end = memchr(bytes, '\n', (size_t)len);
		found = secret_of_bytes(bytes, end ? (size_t)(end - bytes) : (size_t)len);
	}
	OPENSSL_cleanse(bytes, sizeof(bytes));
	if (len >= 0 && !found)
		log_error("token_command: its first line holds no secret");
	if (!found)
		return -EIO;
	*ret = found;
	return 0;
}
