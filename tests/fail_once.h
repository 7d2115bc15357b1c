/* Lets one call that can fail fail: the nth of those that are made while it is armed.
 *
 * Linked into one test program alone, which names in tests/meson.build the functions that are led through here (the
 * linker's --wrap). SQLite, a library of its own, is given an allocator and a VFS that do the same. What fails is a
 * call of our own rooms or of SQLite's; the test's own calls, and those of a service it plays, are spared by
 * fail_once_spare(). */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Before SQLite is used for the first time in this process. */
void fail_once_install(void);

/* Whose calls are counted: our rooms' (SQLite's functions are such), or those SQLite makes itself, which are many. */
enum fail_once_of { FAIL_OURS, FAIL_DATABASE };

/* From now on calls are counted, and the nth of `of` fails; with `stays` each later one of its kind (memory, disk) too,
 * whosever it is: a disk that stays full. nth 0: none fails. */
void fail_once_arm(enum fail_once_of of, long nth, bool stays);
void fail_once_disarm(void);

long fail_once_points(enum fail_once_of of); /* calls counted since it was armed */
long fail_once_fails(void);                  /* how many of all failed */
/* Which call was the first to fail: "pwrite64 from 0x1234", an address for addr2line. */
void fail_once_tell(char *ret, size_t bytes);

/* This thread's calls neither count nor fail in between. Nests. */
void fail_once_spare(void);
void fail_once_spare_end(void);

/* What the rooms allocated since fail_once_arm() and did not free yet, SQLite's memory, and open descriptors. */
long fail_once_blocks(char *ret_where, size_t bytes);
