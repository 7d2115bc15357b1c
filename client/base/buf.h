/* Text that grows, born with the most it may ever hold.
 *
 * An append that does not fit, or for which there is no memory, marks the buffer as failed and changes
 * nothing else; later appends do nothing. A run of appends is checked once, by whoever uses the result.
 * Not safe for two threads at a time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct buf {
	char *data;       /* NUL-terminated once anything was added; owned */
	size_t len;       /* bytes, without the NUL */
	size_t room;      /* bytes allocated */
	size_t bytes_max; /* the most that len may become */
	bool failed;
};

/* Use as `CLEANUP(buf_release) struct buf b = BUF(PATH_BYTES_MAX);` */
#define BUF(max) ((struct buf){ .bytes_max = (max) })

void buf_add(struct buf *b, const char *text);
void buf_add_bytes(struct buf *b, const void *bytes, size_t len);
void buf_addf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The one way for foreign text into a URL path or query: all but RFC 3986's unreserved characters become %XX. */
void buf_add_escaped(struct buf *b, const char *text);

/* The text so far ("" when nothing was added), or NULL when an append failed. Borrowed until the next append. */
const char *buf_text(const struct buf *b);

/* Hands the text to the caller, who frees it; NULL when an append failed. The buffer is empty afterwards. */
char *buf_take(struct buf *b);

/* Empties without giving the memory back; forgets a failure. */
void buf_clear(struct buf *b);
void buf_release(struct buf *b);
