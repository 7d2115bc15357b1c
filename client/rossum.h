/* For tests of Rossum alone; callers know it by backend.h. */
#pragma once

#include "client/backend.h"

/* The times this backend gives the service (pauses between looks, until what was sent must show, until a new token is
 * believed) are divided by factor >= 1; deadlines are not. Before the first call. */
void rossum_hasten(struct backend *b, int factor);
