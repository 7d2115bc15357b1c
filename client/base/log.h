/* The log: one line an event, to stderr or syslog. Any thread.
 *
 * error: someone has to act. warning: we coped. info: mounts and uploads. debug: each request.
 * A line starts with its subject ("raydocs: …", "upload: …"). Control characters in a line are shown as '?', so what a
 * server sends cannot forge a second line. A secret cannot be logged: struct secret has no text a format can reach. */
#pragma once

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* To be called before the first thread; to_syslog false means stderr. */
void log_open(enum log_level most_detailed, bool to_syslog);

/* "error", "warning", "info", "debug" -> true and *ret; anything else false. */
bool log_level_parse(const char *text, enum log_level *ret);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* For a line that costs something to make. */
bool log_is_on(enum log_level level);
