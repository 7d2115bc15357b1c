/* The folder that is mounted on, before it is: is it one, is it free, and is a dead mount in its way? */
#pragma once

#include "client/base/buf.h"

/* path is absolute. A mount whose process died is taken off first. -errno with one sentence in why. */
int mountpoint_prepare(const char *path, struct buf *why);

/* Calls each(arg, path) for every mount of this program, as far as this process sees them. */
int mountpoint_walk(void (*each)(void *arg, const char *path), void *arg);
