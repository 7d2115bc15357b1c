/* Text that grows; see buf.h. */
#include "client/base/buf.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROOM_FIRST = 64 };

/* Room for `more` bytes and the NUL behind what is there; false marks the buffer as failed. */
static bool buf_grow(struct buf *b, size_t more)
{
	if (b->failed)
		return false;
	if (b->len > b->bytes_max || more > b->bytes_max - b->len || b->len + more == SIZE_MAX) {
		b->failed = true;
		return false;
	}
	size_t need = b->len + more + 1;
	if (need <= b->room)
		return true;
	size_t room = b->room ? b->room : ROOM_FIRST;
	while (room < need)
		room = room > SIZE_MAX / 2 ? need : room * 2;
	if (room - 1 > b->bytes_max)
		room = b->bytes_max + 1; /* need is not above: that was looked at */
	char *data = realloc(b->data, room);
	if (!data) {
		b->failed = true;
		return false;
	}
	b->data = data;
	b->room = room;
	return true;
}

void buf_add_bytes(struct buf *b, const void *bytes, size_t len)
{
	if (!buf_grow(b, len))
		return;
	if (len)
		memcpy(b->data + b->len, bytes, len);
	b->len += len;
	b->data[b->len] = '\0';
}

void buf_add(struct buf *b, const char *text)
{
	buf_add_bytes(b, text, strlen(text));
}

void buf_addf(struct buf *b, const char *format, ...)
{
	va_list args;
	char little[256];

	if (b->failed)
		return;
	va_start(args, format);
	int len = vsnprintf(little, sizeof(little), format, args);
	va_end(args);
	if (len < 0) {
		b->failed = true;
		return;
	}
	if ((size_t)len < sizeof(little)) {
		buf_add_bytes(b, little, (size_t)len);
		return;
	}
	if (!buf_grow(b, (size_t)len))
		return;
	va_start(args, format);
	(void)vsnprintf(b->data + b->len, (size_t)len + 1, format, args); /* measured above */
	va_end(args);
	b->len += (size_t)len;
}

static bool is_unreserved(unsigned char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
	       c == '_' || c == '~';
}

void buf_add_escaped(struct buf *b, const char *text)
{
	static const char hex[] = "0123456789ABCDEF";
	size_t kept = b->len;

	for (; *text && !b->failed; text++) {
		unsigned char c = (unsigned char)*text;
		if (is_unreserved(c))
			buf_add_bytes(b, text, 1);
		else
			buf_add_bytes(b, (char[3]){ '%', hex[c >> 4], hex[c & 15] }, 3);
	}
	if (b->failed && b->data && b->len > kept) { /* a failed append changes nothing else */
		b->len = kept;
		b->data[kept] = '\0';
	}
}

const char *buf_text(const struct buf *b)
{
	if (b->failed)
		return NULL;
	return b->data ? b->data : "";
}

char *buf_take(struct buf *b)
{
	char *text = NULL;

	if (!b->failed)
		text = b->data ? b->data : calloc(1, 1);
	if (text == b->data)
		b->data = NULL;
	buf_release(b);
	return text;
}

void buf_clear(struct buf *b)
{
	b->len = 0;
	b->failed = false;
	if (b->data)
		b->data[0] = '\0';
}

void buf_release(struct buf *b)
{
	free(b->data);
	*b = BUF(b->bytes_max);
}
