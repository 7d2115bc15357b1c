/* Times as services write them: ISO 8601 with and without fractions and zones. */
#include "client/time.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

/* Exactly `digits` digits at *at, which moves past them. */
static bool read_digits(const char **at, int digits, int *ret)
{
	int n = 0;

	for (int i = 0; i < digits; i++) {
		if (!isdigit((unsigned char)(*at)[i]))
			return false;
		n = n * 10 + ((*at)[i] - '0');
	}
	*at += digits;
	*ret = n;
	return true;
}

static bool read_char(const char **at, const char *allowed)
{
	if (**at == '\0' || !strchr(allowed, **at))
		return false;
	(*at)++;
	return true;
}

/* Minutes east of Greenwich; nothing at all is UTC. */
static bool read_zone(const char **at, int *ret_minutes)
{
	int hours = 0, minutes = 0;

	*ret_minutes = 0;
	if (**at == '\0' || read_char(at, "Zz"))
		return true;
	int sign = **at == '-' ? -1 : 1;
	if (!read_char(at, "+-") || !read_digits(at, 2, &hours))
		return false;
	(void)read_char(at, ":"); /* +0100 is as good as +01:00 */
	if (**at != '\0' && !read_digits(at, 2, &minutes))
		return false;
	if (hours > 23 || minutes > 59)
		return false;
	*ret_minutes = sign * (hours * 60 + minutes);
	return true;
}

int time_parse_iso(const char *text, int64_t *ret_ms)
{
	const char *at = text;
	struct tm tm = { 0 };
	int year, month, zone_minutes, millis = 0;

	if (!read_digits(&at, 4, &year) || !read_char(&at, "-") || !read_digits(&at, 2, &month) ||
	    !read_char(&at, "-") || !read_digits(&at, 2, &tm.tm_mday) || !read_char(&at, "Tt ") ||
	    !read_digits(&at, 2, &tm.tm_hour) || !read_char(&at, ":") || !read_digits(&at, 2, &tm.tm_min) ||
	    !read_char(&at, ":") || !read_digits(&at, 2, &tm.tm_sec))
		return -EINVAL;
	if (month < 1 || month > 12 || tm.tm_mday < 1 || tm.tm_mday > 31 || tm.tm_hour > 23 || tm.tm_min > 59 ||
	    tm.tm_sec > 60)
		return -EINVAL;
	if (read_char(&at, ".,")) {
		if (!isdigit((unsigned char)*at))
			return -EINVAL;
		for (int scale = 100; isdigit((unsigned char)*at); at++, scale /= 10)
			millis += (*at - '0') * scale;
	}
	if (!read_zone(&at, &zone_minutes) || *at != '\0')
		return -EINVAL;
	tm.tm_year = year - 1900;
	tm.tm_mon = month - 1;
	*ret_ms = ((int64_t)timegm(&tm) - (int64_t)zone_minutes * 60) * 1000 + millis;
	return 0;
}
