#ifndef SESSIONFS_TESTS_SANDBOX_MULTIPART_H
#define SESSIONFS_TESTS_SANDBOX_MULTIPART_H

#include <stdbool.h>
#include <stddef.h>

/* multipart/form-data (RFC 7578) read as it comes, in pieces of any size. Strict: what the RFC forbids is a fault. */

/* What stands before a part's bytes. Borrowed during begin(). */
struct multipart_head {
	const char *name;
	const char *filename; /* NULL: none; raw UTF-8, escapes undone */
};

struct multipart_ops {
	/* 0 or -errno each; an error ends the reading and is returned by multipart_feed(). */
	int (*begin)(void *cls, const struct multipart_head *head);
	int (*data)(void *cls, const char *bytes, size_t count);
	int (*end)(void *cls);
};

struct multipart;

/* NULL: the type is no multipart/form-data with a boundary. ops must outlive the reader. */
struct multipart *multipart_new(const char *content_type, const struct multipart_ops *ops, void *cls);
void multipart_free(struct multipart *m);

/* 0, or what ops said. A malformed body is no error here: see multipart_fault(). */
int multipart_feed(struct multipart *m, const char *bytes, size_t count);

/* NULL: the body is whole and well-formed. Otherwise what is wrong with it, for people. */
const char *multipart_fault(const struct multipart *m);

/* The value of one parameter of a header such as `form-data; name="a"`, quotes and escapes undone. The caller frees
 * it; NULL if absent. */
char *header_parameter(const char *header, const char *name);

bool utf8_is_valid(const char *text);

#endif
