/* The daemon whose calls fail: fs/main.c linked with fail_once.c, for tests/mount/test_torture.py.
 *
 * Whoever starts it hands it a socket (FAIL_ONCE_FD) and says there when: "arm ours|database NTH once|stays" is
 * answered with "armed", "disarm" with "POINTS FAILS WHICH CALL". Until the first of them it is sessionfs as it is. */
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>

#include "tests/fail_once.h"

static enum fail_once_of armed_of;

static void obey(FILE *in, int out)
{
	char line[200], of[20], how[20], which[100];
	long nth;

	if (!fgets(line, sizeof(line), in))
		return;
	if (sscanf(line, "arm %19s %ld %19s", of, &nth, how) == 3) {
		armed_of = strcmp(of, "database") == 0 ? FAIL_DATABASE : FAIL_OURS;
		fail_once_arm(armed_of, nth, strcmp(how, "stays") == 0);
		(void)dprintf(out, "armed\n"); /* who does not hear it says so */
		return;
	}
	fail_once_disarm();
	fail_once_tell(which, sizeof(which));
	(void)dprintf(out, "%ld %ld %s\n", fail_once_points(armed_of), fail_once_fails(), which);
}

static void *listen_to_test(void *arg)
{
	int fd = (int)(intptr_t)arg;
	FILE *in = fdopen(fd, "r");

	fail_once_spare();
	while (in && !feof(in) && !ferror(in))
		obey(in, fd);
	return NULL;
}

__attribute__((constructor)) static void begin(void)
{
	const char *fd = getenv("FAIL_ONCE_FD");
	pthread_t thread;
	sigset_t all, before;

	fail_once_install();
	if (!fd)
		return;
	int n = (int)strtol(fd, NULL, 10);
	(void)fcntl(n, F_SETFD, FD_CLOEXEC); /* its own children have no part in this */
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
	if (pthread_create(&thread, NULL, listen_to_test, (void *)(intptr_t)n) != 0)
		abort();
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
}
