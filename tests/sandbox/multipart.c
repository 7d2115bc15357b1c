/* multipart/form-data, piece by piece: a body of 40 MB is never held whole. Knows no service. */
#include "tests/sandbox/multipart.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEAD_BYTES_MAX 16384
#define BOUNDARY_BYTES_MAX 70

enum stage { PREAMBLE, BEHIND_BOUNDARY, HEAD, DATA, EPILOGUE, BROKEN };

struct multipart {
	const struct multipart_ops *ops;
	void *cls;
	char delimiter[BOUNDARY_BYTES_MAX + 8]; /* "\r\n--boundary" */
	size_t delimiter_bytes;
	enum stage stage;
	const char *fault;
	char *held; /* not yet understood */
	size_t held_bytes, room;
};

bool utf8_is_valid(const char *text)
{
	const unsigned char *at = (const unsigned char *)text;
	while (*at != 0) {
		uint32_t c = *at++;
		int more = c < 0x80                 ? 0
			   : c >= 0xc2 && c <= 0xdf ? 1
			   : c >= 0xe0 && c <= 0xef ? 2
			   : c >= 0xf0 && c <= 0xf4 ? 3
						    : -1;
		if (more < 0)
			return false;
		c &= more == 0 ? 0x7fu : 0x3fu >> more;
		for (int i = 0; i < more; i++, at++) {
			if ((*at & 0xc0) != 0x80)
				return false;
			c = c << 6 | (*at & 0x3fu);
		}
		static const uint32_t least[] = { 0, 0x80, 0x800, 0x10000 };
		if (c < least[more] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
			return false;
	}
	return true;
}

/* Both ways in use of writing a quote or a line break inside quotes: a backslash, and what browsers do. */
static void undo_escapes(char *text)
{
	char *to = text;
	for (const char *at = text; *at != 0; at++) {
		if (*at == '\\' && (at[1] == '"' || at[1] == '\\'))
			*to++ = *++at;
		else if (strncmp(at, "%22", 3) == 0)
			*to++ = '"', at += 2;
		else if (strncasecmp(at, "%0D", 3) == 0)
			*to++ = '\r', at += 2;
		else if (strncasecmp(at, "%0A", 3) == 0)
			*to++ = '\n', at += 2;
		else
			*to++ = *at;
	}
	*to = 0;
}

/* The end of a parameter's value that begins at `at`; NULL: its quotes are left open. */
static const char *value_end(const char *at)
{
	if (*at != '"')
		return at + strcspn(at, "; \t");
	for (at++; *at != '"'; at++) {
		if (*at == '\\' && at[1] != 0)
			at++;
		if (*at == 0)
			return NULL;
	}
	return at + 1;
}

char *header_parameter(const char *header, const char *name)
{
	const char *at = header + strcspn(header, ";");
	while (*at != 0) {
		at += strspn(at, "; \t");
		size_t name_bytes = strcspn(at, "=; \t");
		const char *value = at + name_bytes;
		if (*value != '=') {
			at = value;
			continue;
		}
		const char *end = value_end(++value);
		if (end == NULL)
			return NULL;
		if (name_bytes == strlen(name) && strncasecmp(at, name, name_bytes) == 0) {
			bool is_quoted = *value == '"';
			char *text = is_quoted ? strndup(value + 1, (size_t)(end - value) - 2)
					       : strndup(value, (size_t)(end - value));
			if (text == NULL)
				abort();
			if (is_quoted)
				undo_escapes(text);
			return text;
		}
		at = end;
	}
	return NULL;
}

struct multipart *multipart_new(const char *content_type, const struct multipart_ops *ops, void *cls)
{
	static const char type[] = "multipart/form-data";
	if (content_type == NULL || strncasecmp(content_type, type, sizeof type - 1) != 0 ||
	    strchr("; \t", content_type[sizeof type - 1]) == NULL)
		return NULL;
	char *boundary = header_parameter(content_type, "boundary");
	size_t n = boundary == NULL ? 0 : strlen(boundary);
	if (n == 0 || n > BOUNDARY_BYTES_MAX) {
		free(boundary);
		return NULL;
	}
	struct multipart *m = calloc(1, sizeof *m);
	if (m == NULL)
		abort();
	m->ops = ops;
	m->cls = cls;
	memcpy(m->delimiter, "\r\n--", 4);
	memcpy(m->delimiter + 4, boundary, n);
	m->delimiter_bytes = n + 4;
	free(boundary);
	/* The first boundary has no line before it; with one invented, it is found like the others. */
	(void)multipart_feed(m, "\r\n", 2); /* nothing to report yet */
	return m;
}

void multipart_free(struct multipart *m)
{
	if (m == NULL)
		return;
	free(m->held);
	free(m);
}

static void hold(struct multipart *m, const char *bytes, size_t count)
{
	if (m->held == NULL || m->held_bytes + count > m->room) {
		m->room = (m->held_bytes + count) * 2 + 64;
		m->held = realloc(m->held, m->room);
		if (m->held == NULL)
			abort();
	}
	memcpy(m->held + m->held_bytes, bytes, count);
	m->held_bytes += count;
}

static int broken(struct multipart *m, const char *fault)
{
	m->stage = BROKEN;
	m->fault = fault;
	return 0;
}

/* The head's lines, without the empty one behind them. */
static int read_head(struct multipart *m, char *head)
{
	char *disposition = NULL;
	for (char *line = head; line != NULL && *line != 0;) {
		char *next = strstr(line, "\r\n");
		if (next != NULL) {
			*next = 0;
			next += 2;
		}
		if (strncasecmp(line, "Content-Disposition:", 20) == 0) {
			if (disposition != NULL)
				return broken(m, "a part has two Content-Dispositions");
			disposition = line + 20;
		} else if (strchr(line, ':') == NULL) {
			return broken(m, "a part has a line that is no header");
		}
		line = next;
	}
	disposition = disposition == NULL ? NULL : disposition + strspn(disposition, " \t");
	if (disposition == NULL || strncasecmp(disposition, "form-data", 9) != 0 ||
	    strchr("; \t", disposition[9]) == NULL)
		return broken(m, "a part has no Content-Disposition: form-data");
	if (!utf8_is_valid(disposition))
		return broken(m, "a part's header is not UTF-8");
	char *name = header_parameter(disposition, "name"), *filename = header_parameter(disposition, "filename");
	char *extended = header_parameter(disposition, "filename*");
	int r = 0;
	if (name == NULL || *name == 0)
		broken(m, "a part has no name");
	else if (extended != NULL) /* RFC 7578, 4.2 */
		broken(m, "filename* is not for multipart/form-data");
	else
		r = m->ops->begin(m->cls, &(struct multipart_head){ .name = name, .filename = filename });
	free(name);
	free(filename);
	free(extended);
	return r;
}

/* One step; *ret_used of the bytes at hand are done with. 0 used: more bytes are needed. */
static int step(struct multipart *m, char *at, size_t left, size_t *ret_used)
{
	const char *found;
	int r = 0;
	*ret_used = 0;
	switch (m->stage) {
	case PREAMBLE:
	case DATA:
		found = memmem(at, left, m->delimiter, m->delimiter_bytes);
		if (found != NULL) {
			size_t n = (size_t)(found - at);
			if (m->stage == DATA)
				r = n > 0 ? m->ops->data(m->cls, at, n) : 0;
			if (m->stage == DATA && r == 0)
				r = m->ops->end(m->cls);
			m->stage = BEHIND_BOUNDARY;
			*ret_used = n + m->delimiter_bytes;
		} else if (left >= m->delimiter_bytes) {
			size_t n = left - m->delimiter_bytes + 1; /* the rest may be the start of one */
			if (m->stage == DATA)
				r = m->ops->data(m->cls, at, n);
			*ret_used = n;
		}
		return r;
	case BEHIND_BOUNDARY:
		if (left < 2)
			return 0;
		*ret_used = 2;
		if (memcmp(at, "--", 2) == 0)
			m->stage = EPILOGUE;
		else if (memcmp(at, "\r\n", 2) == 0)
			m->stage = HEAD;
		else
			return broken(m, "no line break behind a boundary");
		return 0;
	case HEAD:
		found = memmem(at, left, "\r\n\r\n", 4);
		if (found == NULL)
			return left > HEAD_BYTES_MAX ? broken(m, "a part's header is too long") : 0;
		*ret_used = (size_t)(found - at) + 4;
		at[found - at] = 0;
		if (strlen(at) != (size_t)(found - at))
			return broken(m, "a part's header holds a NUL");
		m->stage = DATA;
		/* The line break before the first byte may be the one of the boundary behind an empty part. */
		return read_head(m, at);
	case EPILOGUE:
	case BROKEN:
		*ret_used = left;
		return 0;
	}
	return 0;
}

int multipart_feed(struct multipart *m, const char *bytes, size_t count)
{
	hold(m, bytes, count);
	size_t done = 0, used = 1;
	int r = 0;
	while (r == 0 && used > 0 && done < m->held_bytes) {
		r = step(m, m->held + done, m->held_bytes - done, &used);
		done += used;
	}
	memmove(m->held, m->held + done, m->held_bytes - done);
	m->held_bytes -= done;
	return r;
}

const char *multipart_fault(const struct multipart *m)
{
	if (m->stage == BROKEN)
		return m->fault;
	return m->stage == EPILOGUE ? NULL : "the last boundary is missing";
}
