/* Times as services write them. */
#pragma once

#include <stdint.h>

/* ISO 8601, "2026-03-01T09:00:00[.123456][Z|+01:00]" (no zone: UTC; a blank may stand for the T), as milliseconds since
 * 1970. -EINVAL. */
int time_parse_iso(const char *text, int64_t *ret_ms);
