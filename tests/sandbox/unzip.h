#ifndef SESSIONFS_TESTS_SANDBOX_UNZIP_H
#define SESSIONFS_TESTS_SANDBOX_UNZIP_H

#include <stddef.h>
#include <stdint.h>

/* Hands out the files of a ZIP archive, stored or deflated, in the order of its directory; folders are left out.
 * First all of it is checked, so that either every file is visited or none.
 *
 * name is the path inside the archive. 0; -EACCES: encrypted; -E2BIG: more files or bytes than allowed; -EPROTO:
 * no readable archive; another -errno; or what visit returned, which ends the walk. */
int unzip(const char *path, size_t files_max, int64_t bytes_max,
	  int (*visit)(void *cls, const char *name, const void *bytes, size_t count), void *cls);

#endif
