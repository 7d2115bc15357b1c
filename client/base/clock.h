/* What time it is, of both kinds. Code under test is handed its now_ms instead of asking here. */
#pragma once

#include <stdint.h>

int64_t clock_now_ms(void);       /* monotonic; counts while suspended (CLOCK_BOOTTIME) */
int64_t clock_wall_ms(void);      /* since 1970, UTC; may jump */
int64_t clock_wall_ns(void);
