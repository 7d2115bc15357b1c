/* The least of ZIP that a service has to read: one disk, no ZIP64, stored and deflated files. */
#include "tests/sandbox/unzip.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define END_BYTES 22
#define ENTRY_BYTES 46
#define LOCAL_BYTES 30

struct archive {
	unsigned char *bytes;
	size_t count;
};

struct member {
	const unsigned char *name, *data;
	size_t name_bytes, packed_bytes, bytes, crc;
	unsigned method, flags;
};

static unsigned get16(const unsigned char *at)
{
	return at[0] | (unsigned)at[1] << 8;
}

static size_t get32(const unsigned char *at)
{
	return get16(at) | (size_t)get16(at + 2) << 16;
}

static int read_file(const char *path, struct archive *ret)
{
	FILE *f = fopen(path, "re");
	if (f == NULL)
		return -errno;
	char *bytes = NULL;
	size_t count = 0;
	FILE *all = open_memstream(&bytes, &count);
	char block[65536];
	size_t n;
	while (all != NULL && (n = fread(block, 1, sizeof block, f)) > 0)
		fwrite(block, 1, n, all);
	bool ok = all != NULL && !ferror(f) && !ferror(all);
	ok = all != NULL && fclose(all) == 0 && ok;
	fclose(f);
	if (!ok) {
		free(bytes);
		return -EIO;
	}
	*ret = (struct archive){ .bytes = (unsigned char *)bytes, .count = count };
	return 0;
}

/* The directory's end stands at the archive's, behind it only a comment. */
static const unsigned char *find_end(const struct archive *a)
{
	for (size_t back = END_BYTES; back <= a->count && back <= END_BYTES + 65535; back++)
		if (memcmp(a->bytes + a->count - back, "PK\5\6", 4) == 0)
			return a->bytes + a->count - back;
	return NULL;
}

/* Moves *at behind the entry. */
static int read_entry(const struct archive *a, size_t *at, struct member *ret)
{
	const unsigned char *e = a->bytes + *at;
	if (*at + ENTRY_BYTES > a->count || memcmp(e, "PK\1\2", 4) != 0)
		return -EPROTO;
	struct member m = { .flags = get16(e + 8),
			    .method = get16(e + 10),
			    .crc = get32(e + 16),
			    .packed_bytes = get32(e + 20),
			    .bytes = get32(e + 24),
			    .name_bytes = get16(e + 28),
			    .name = e + ENTRY_BYTES };
	size_t local = get32(e + 42);
	*at += ENTRY_BYTES + m.name_bytes + get16(e + 30) + get16(e + 32);
	if (*at > a->count || local + LOCAL_BYTES > a->count || memcmp(a->bytes + local, "PK\3\4", 4) != 0)
		return -EPROTO;
	size_t data = local + LOCAL_BYTES + get16(a->bytes + local + 26) + get16(a->bytes + local + 28);
	if (data > a->count || m.packed_bytes > a->count - data)
		return -EPROTO;
	m.data = a->bytes + data;
	*ret = m;
	return 0;
}

/* The caller frees *ret. */
static int unpack(const struct member *m, unsigned char **ret)
{
	unsigned char *out = malloc(m->bytes + 1);
	if (out == NULL)
		return -ENOMEM;
	bool ok = m->method == 0 && m->packed_bytes == m->bytes;
	if (ok)
		memcpy(out, m->data, m->bytes);
	if (m->method == Z_DEFLATED) {
		z_stream z = { .next_in = (Bytef *)(uintptr_t)m->data,
			       .avail_in = (uInt)m->packed_bytes,
			       .next_out = out,
			       .avail_out = (uInt)m->bytes + 1 };
		ok = inflateInit2(&z, -MAX_WBITS) == Z_OK && inflate(&z, Z_FINISH) == Z_STREAM_END &&
		     z.total_out == m->bytes;
		inflateEnd(&z);
	}
	if (!ok || crc32(0, out, (uInt)m->bytes) != m->crc) {
		free(out);
		return -EPROTO;
	}
	*ret = out;
	return 0;
}

static int walk(const struct archive *a, size_t files_max, int64_t bytes_max,
		int (*visit)(void *cls, const char *name, const void *bytes, size_t count), void *cls)
{
	const unsigned char *end = find_end(a);
	if (end == NULL)
		return -EPROTO;
	size_t count = get16(end + 10), at = get32(end + 16), files = 0;
	int64_t total = 0;
	for (size_t i = 0; i < count; i++) {
		struct member m;
		unsigned char *bytes = NULL;
		int r = read_entry(a, &at, &m);
		if (r < 0)
			return r;
		if (m.name_bytes == 0 || m.name[m.name_bytes - 1] == '/')
			continue;
		if (m.flags & 1)
			return -EACCES;
		total += (int64_t)m.bytes;
		if (++files > files_max || total > bytes_max)
			return -E2BIG;
		r = unpack(&m, &bytes);
		if (r == 0 && visit != NULL) {
			char *name = strndup((const char *)m.name, m.name_bytes);
			r = name == NULL ? -ENOMEM : visit(cls, name, bytes, m.bytes);
			free(name);
		}
		free(bytes);
		if (r != 0)
			return r;
	}
	return 0;
}

int unzip(const char *path, size_t files_max, int64_t bytes_max,
	  int (*visit)(void *cls, const char *name, const void *bytes, size_t count), void *cls)
{
	struct archive a;
	int r = read_file(path, &a);
	if (r < 0)
		return r;
	r = walk(&a, files_max, bytes_max, NULL, NULL);
	if (r == 0)
		r = walk(&a, files_max, bytes_max, visit, cls);
	free(a.bytes);
	return r;
}
