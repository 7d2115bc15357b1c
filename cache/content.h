/* Documents' bytes on disk, by hash (or by id where the service tells no hash), bounded.
 *
 * A file is whole or absent, also after a power loss: it is written under another name and renamed to one that tells its
 * length. The least lately used goes first when bytes_max is passed; what a caller has open stays readable. The one used
 * last stays in any case, so that a document larger than bytes_max can be read as well. Nothing else may use the folder.
 * Threads: any. Errors: -errno of the disk; -EINVAL for a key of another shape. */
#pragma once

#include <stdint.h>

struct content;

/* dir is made, 0700 (not its parents). What a crash left half written is removed. */
int content_open(const char *dir, int64_t bytes_max, struct content **ret);
void content_close(struct content *c); /* the files stay; accepts NULL */

/* A descriptor open for reading, the caller's; -ENOENT: not here. key: [A-Za-z0-9-], at most 128. */
int content_get(struct content *c, const char *key);

/* A new empty file, not yet visible, open for reading and writing; the caller's descriptor, which stays his also after
 * the end. Ends in one of the other two; `ret_name` is its handle, freed by them. -ENOSPC: older content was given up and
 * it still does not fit. */
int content_begin(struct content *c, int64_t size_bytes_or_0, char **ret_name, int *ret_fd);
int content_commit(struct content *c, char *name, const char *key); /* takes name, and on failure removes the file */
void content_abandon(struct content *c, char *name);                /* takes name */

/* Moves an existing file of the same file system in under key (-EXDEV: another one). On failure path stays. */
int content_adopt(struct content *c, const char *path, const char *key);

/* Removes one; what is open stays readable to whoever has it. */
void content_forget(struct content *c, const char *key);

/* Gives up content until at least `bytes` are free on its file system or nothing is left; for a spool that needs room. */
void content_make_room(struct content *c, int64_t bytes);
