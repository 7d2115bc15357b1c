/* The commands beside mounting: setup, add, forget, check, status, refresh, wait, run, retry, discard.
 *
 * A command that concerns a running mount asks it over the control socket (socket.h), one line there and a text back,
 * whose first line is "ok" or "error SENTENCE":
 *
 *     add ID   forget ID   status   status-json   refresh [PATH]   run PATH   retry PATH|--all   discard PATH|--all
 *
 * PATH is relative to the mount point; refresh without one means all of it. A status tells "waiting: N" and "failed:
 * N". A mount is found by the attribute user.sessionfs.control of any path in it, which names its state folder. */
#pragma once

#include <stdbool.h>

#include "client/base/buf.h"

bool command_is_known(const char *word);
/* argv[0] is the command's name. The exit status: 0 it went well; 1 it did not, or was called wrongly; more by command:
 * check 2 no answer, 3 configuration; wait and run --wait 3 stored, and nobody has asked for parsing. */
int command_run(int argc, char **argv);
/* One line for each, for the help. */
void command_help(struct buf *ret);
