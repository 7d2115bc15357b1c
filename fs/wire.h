/* The line between libfuse and the kernel, for the one thing that libfuse gets wrong on it. */
#pragma once

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

/* libfuse up to 3.14 asks for parallel operations in one folder (FUSE_CAP_PARALLEL_DIROPS) and then leaves the flag out of its answer to the
 * kernel, which so sends one look-up or readdir of a folder at a time: one that waits for the service keeps all others waiting. This puts
 * the flag into the answer. After fuse_session_mount(), before the loop; 0 or -errno, and then it is as it was. */
int wire_allow_parallel(struct fuse_session *session);
