#include "client/base/clock.h"

#include <time.h>

static int64_t now_ns(clockid_t which)
{
	struct timespec t;

	if (clock_gettime(which, &t) != 0)
		return 0; /* not for the clocks asked here */
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t clock_now_ms(void)
{
	return now_ns(CLOCK_BOOTTIME) / 1000000;
}

int64_t clock_wall_ms(void)
{
	return now_ns(CLOCK_REALTIME) / 1000000;
}

int64_t clock_wall_ns(void)
{
	return now_ns(CLOCK_REALTIME);
}
