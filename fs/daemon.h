/* Going to the background, but not before it is known how the start went: the shell that started us hears it, in words
 * and by the exit status. And what a service manager wants to know.
 *
 * daemon_start() forks, so it comes before the first thread; the rest may be called from any thread. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

struct daemon {
	int verdict_fd; /* -1: in the foreground */
	_Atomic bool was_told;
};

/* In the background: returns in the child alone; the parent waits for the verdict, says it, and exits with it.
 * 0 or -errno. */
int daemon_start(bool in_foreground, struct daemon *ret);

/* The verdict, once (later calls do nothing). exit_code 0: the start went well, and this process lets go of its
 * terminal and folder; else the one who started us exits with it. sentence may be NULL or ""; said on stderr. */
void daemon_tell(struct daemon *d, int exit_code, const char *sentence);
bool daemon_was_told(const struct daemon *d);

/* One line for `systemctl status`, and that we are ending. Nothing happens where no service manager asked for it. */
void daemon_notify_status(const char *line);
void daemon_notify_stopping(void);
