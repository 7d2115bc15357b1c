#ifndef SESSIONFS_TESTS_SANDBOX_CONTENT_H
#define SESSIONFS_TESTS_SANDBOX_CONTENT_H

#include <stddef.h>
#include <stdint.h>

/* The bytes behind a document or an object: a file on disk, or a formula. A listing of 100,000 documents
 * costs no disk that way, and each of them can still be read, at any offset, and hashes to what its record says.
 *
 * A generated content is a valid one-page PDF when size_bytes has room for one, and else a prefix of one.
 * Equal seed, index and size always give equal bytes, in every run. */
struct content {
	char *path; /* owned; NULL: generated */
	uint64_t seed, index;
	int64_t size_bytes;
};

#define SHA256_HEX_BYTES 65

void content_release(struct content *c);

/* What a generated content is made from; allocates nothing. */
struct content content_generated(uint64_t seed, uint64_t index, int64_t size_bytes);

/* The smallest size that makes a generated content a valid PDF. */
int64_t content_generated_bytes_min(void);

/* An open content. It stays readable after the file behind it was unlinked. */
struct content_reader;

/* On success the caller owns *ret and closes it. 0 or -errno; *ret is untouched on failure. */
int content_open(const struct content *c, struct content_reader **ret);
void content_close(struct content_reader *r);
int64_t content_reader_bytes(const struct content_reader *r);

/* Bytes read, 0 at the end, or -errno. Safe from one thread at a time. */
long content_read(struct content_reader *r, int64_t offset, void *buf, size_t buf_bytes);

/* Writes 64 lower-case hex digits and a NUL. 0 or -errno. */
int content_hash(const struct content *c, char ret_hex[SHA256_HEX_BYTES]);

void bytes_to_hex(const unsigned char *bytes, size_t count, char *ret_hex);

#endif
