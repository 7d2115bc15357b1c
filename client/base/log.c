/* The log; see log.h. A line is made whole and then written with one call, so that threads don't mix theirs. */
#include "client/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

enum { LINE_BYTES_MAX = 2048 };

static const char *const words[] = { "error", "warning", "info", "debug" };

static enum log_level most_detailed_now = LOG_LEVEL_INFO; /* set before the first thread starts, as is to_syslog_now */
static bool to_syslog_now;

void log_open(enum log_level most_detailed, bool to_syslog)
{
	most_detailed_now = most_detailed;
	if (to_syslog && !to_syslog_now)
		openlog("sessionfs", LOG_PID, LOG_DAEMON);
	if (!to_syslog && to_syslog_now)
		closelog();
	to_syslog_now = to_syslog;
}

bool log_level_parse(const char *text, enum log_level *ret)
{
	for (int i = 0; i < (int)(sizeof(words) / sizeof(words[0])); i++) {
		if (strcmp(text, words[i]) == 0) {
			*ret = (enum log_level)i;
			return true;
		}
	}
	return false;
}

bool log_is_on(enum log_level level)
{
	return level <= most_detailed_now;
}

static void show_controls(char *line)
{
	for (unsigned char *c = (unsigned char *)line; *c; c++) {
		if (*c < 0x20 || *c == 0x7f)
			*c = '?';
		else if (*c == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f)
			*c = c[1] = '?'; /* C1 controls in UTF-8: a terminal may obey them */
	}
}

/* The formats are checked where they are written: log.h says what they are. */
__attribute__((format(printf, 2, 0))) static void log_write(enum log_level level, const char *format, va_list args)
{
	static const int priorities[] = { LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG };
	char text[LINE_BYTES_MAX], line[LINE_BYTES_MAX + 16];
	int kept = errno;

	if (!log_is_on(level))
		return;
	if (vsnprintf(text, sizeof(text), format, args) < 0)
		(void)snprintf(text, sizeof(text), "log: a line that can't be formatted");
	show_controls(text);
	if (to_syslog_now) {
		syslog(priorities[level], "%s", text);
	} else {
		int len = snprintf(line, sizeof(line), "%s: %s\n", words[level], text);
		(void)!write(STDERR_FILENO, line, (size_t)len); /* nobody is left to be told */
	}
	errno = kept;
}

#define LOG_FUNCTION(name, level)                                                                                      \
	void name(const char *format, ...)                                                                             \
	{                                                                                                              \
		va_list args;                                                                                          \
		va_start(args, format);                                                                                \
		log_write(level, format, args);                                                                        \
		va_end(args);                                                                                          \
	}

LOG_FUNCTION(log_error, LOG_LEVEL_ERROR)
LOG_FUNCTION(log_warning, LOG_LEVEL_WARNING)
LOG_FUNCTION(log_info, LOG_LEVEL_INFO)
LOG_FUNCTION(log_debug, LOG_LEVEL_DEBUG)
