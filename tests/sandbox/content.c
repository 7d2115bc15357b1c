/* Where document bytes come from. The formula behind generated ones lives here alone, so that the
 * listing (size, hash) and the download can't disagree. */
#include "tests/sandbox/content.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct content_reader {
	int fd; /* -1: generated */
	struct content made;
	char head[700];
	char tail[400];
	int64_t head_bytes, tail_bytes;
};

void content_release(struct content *c)
{
	free(c->path);
	*c = (struct content){ 0 };
}

struct content content_generated(uint64_t seed, uint64_t index, int64_t size_bytes)
{
	return (struct content){ .seed = seed, .index = index, .size_bytes = size_bytes };
}

void bytes_to_hex(const unsigned char *bytes, size_t count, char *ret_hex)
{
	for (size_t i = 0; i < count; i++)
		(void)snprintf(ret_hex + 2 * i, 3, "%02x", bytes[i]);
	ret_hex[2 * count] = 0;
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* The fixed parts of the PDF: objects in front, table of references behind. What lies between is
 * comment lines, which a reader skips, so any size can be had. */
static void make_frame(struct content_reader *r)
{
	char text[160];
	int text_bytes = snprintf(text, sizeof text, "BT /F1 24 Tf 72 720 Td (Document %llu of series %llu) Tj ET",
				  (unsigned long long)r->made.index, (unsigned long long)r->made.seed);
	int at[6] = { 0 };
	int n = snprintf(r->head, sizeof r->head, "%%PDF-1.4\n");

#define OBJECT(number, ...)                                                                                            \
	do {                                                                                                           \
		at[number] = n;                                                                                        \
		n += snprintf(r->head + n, sizeof r->head - (size_t)n, __VA_ARGS__);                                   \
	} while (0)
	OBJECT(1, "1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n");
	OBJECT(2, "2 0 obj\n<< /Type /Pages /Kids [3 0 R] /Count 1 >>\nendobj\n");
	OBJECT(3, "3 0 obj\n<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
		  "/Resources << /Font << /F1 5 0 R >> >> >>\nendobj\n");
	OBJECT(4, "4 0 obj\n<< /Length %d >>\nstream\n%s\nendstream\nendobj\n", text_bytes, text);
	OBJECT(5, "5 0 obj\n<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>\nendobj\n");
#undef OBJECT
	r->head_bytes = n;

	/* The tail names its own offset, whose digits change the tail's length: settle by trying again. */
	r->tail_bytes = 0;
	for (int i = 0; i < 3; i++) {
		int64_t start = r->made.size_bytes - r->tail_bytes + 1;
		r->tail_bytes =
			snprintf(r->tail, sizeof r->tail,
				 "\nxref\n0 6\n0000000000 65535 f \n%010d 00000 n \n%010d 00000 n \n%010d 00000 n \n"
				 "%010d 00000 n \n%010d 00000 n \ntrailer\n<< /Size 6 /Root 1 0 R >>\n"
				 "startxref\n%lld\n%%%%EOF\n",
				 at[1], at[2], at[3], at[4], at[5], (long long)start);
	}
	if (r->made.size_bytes < r->head_bytes + r->tail_bytes) {
		r->tail_bytes = 0;
		if (r->made.size_bytes < r->head_bytes) /* keep what tells two contents apart */
			r->head_bytes = snprintf(r->head, sizeof r->head, "%%PDF-1.4\n%%%llu-%llu\n",
						 (unsigned long long)r->made.index, (unsigned long long)r->made.seed);
	}
}

/* Fills a run of the padding from its byte q on. Sixteen digits are drawn at a time: this is what a download of a large
 * generated content costs. */
static void fill_padding(const struct content_reader *r, int64_t q, char *out, size_t count)
{
	uint64_t key = mix(r->made.seed) ^ mix(r->made.index + 1), word = 0;
	int64_t drawn = -1;
	for (size_t i = 0; i < count; i++, q++) {
		if (q / 16 != drawn) {
			drawn = q / 16;
			word = mix(key ^ (uint64_t)drawn);
		}
		int column = (int)(q % 64);
		if (column == 0)
			out[i] = '%';
		else if (column == 63)
			out[i] = '\n';
		else
			out[i] = "0123456789abcdef"[(word >> (4 * (q % 16))) & 15];
	}
}

static size_t smaller(size_t a, int64_t b)
{
	return (int64_t)a < b ? a : (size_t)b;
}

int64_t content_generated_bytes_min(void)
{
	return 900;
}

int content_open(const struct content *c, struct content_reader **ret)
{
	struct content_reader *r = calloc(1, sizeof *r);
	if (r == NULL)
		return -ENOMEM;
	r->fd = -1;
	r->made = (struct content){ .seed = c->seed, .index = c->index, .size_bytes = c->size_bytes };
	if (c->path == NULL) {
		make_frame(r);
	} else {
		r->fd = open(c->path, O_RDONLY | O_CLOEXEC);
		if (r->fd < 0) {
			int error = errno;
			free(r);
			return -error;
		}
	}
	*ret = r;
	return 0;
}

void content_close(struct content_reader *r)
{
	if (r == NULL)
		return;
	if (r->fd >= 0)
		close(r->fd);
	free(r);
}

int64_t content_reader_bytes(const struct content_reader *r)
{
	return r->made.size_bytes;
}

long content_read(struct content_reader *r, int64_t offset, void *buf, size_t buf_bytes)
{
	if (r->fd >= 0) {
		ssize_t n = pread(r->fd, buf, buf_bytes, offset);
		return n < 0 ? -errno : n;
	}
	char *out = buf;
	size_t n = 0, run;
	int64_t tail_at = r->made.size_bytes - r->tail_bytes;
	for (; n < buf_bytes && offset < r->made.size_bytes; n += run, offset += (int64_t)run) {
		size_t room = smaller(buf_bytes - n, r->made.size_bytes - offset);
		if (offset < r->head_bytes) {
			run = smaller(room, r->head_bytes - offset);
			memcpy(out + n, r->head + offset, run);
		} else if (offset < tail_at) {
			run = smaller(room, tail_at - offset);
			fill_padding(r, offset - r->head_bytes, out + n, run);
		} else {
			run = room;
			memcpy(out + n, r->tail + (offset - tail_at), run);
		}
	}
	return (long)n;
}

int content_hash(const struct content *c, char ret_hex[SHA256_HEX_BYTES])
{
	struct content_reader *r = NULL;
	int error = content_open(c, &r);
	if (error < 0)
		return error;
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	EVP_DigestInit_ex(md, EVP_sha256(), NULL);
	char block[65536];
	long n = 0;
	for (int64_t at = 0; (n = content_read(r, at, block, sizeof block)) > 0; at += n)
		EVP_DigestUpdate(md, block, (size_t)n);
	unsigned char digest[32];
	EVP_DigestFinal_ex(md, digest, NULL);
	EVP_MD_CTX_free(md);
	content_close(r);
	if (n < 0)
		return (int)n;
	bytes_to_hex(digest, sizeof digest, ret_hex);
	return 0;
}
