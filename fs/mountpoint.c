/* Looking at a mount point, and clearing a dead mount away. */
#include "fs/mountpoint.h"

#include <errno.h>
#include <mntent.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/log.h"

#define TYPE "fuse.sessionfs"

enum { LINE_BYTES_MAX = 16384 };

extern char **environ;

int mountpoint_walk(void (*each)(void *arg, const char *path), void *arg)
{
	FILE *list = setmntent("/proc/self/mounts", "re");
	struct mntent entry;
	char line[LINE_BYTES_MAX];

	if (!list)
		return -errno;
	while (getmntent_r(list, &entry, line, sizeof(line))) {
		if (strcmp(entry.mnt_type, TYPE) == 0)
			each(arg, entry.mnt_dir);
	}
	(void)endmntent(list);
	return 0;
}

struct search {
	const char *path;
	bool was_found;
};

static void compare(void *arg, const char *path)
{
	struct search *s = arg;

	s->was_found = s->was_found || strcmp(path, s->path) == 0;
}

/* Lazily: somebody may still stand in it. As root by ourselves, else by the helper that may. */
static int take_off(const char *path)
{
	char *const argv[] = { (char *)"fusermount3", (char *)"-u", (char *)"-z", (char *)"--", (char *)path, NULL };
	pid_t pid;
	int status;

	if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		return 0;
	int e = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
	if (e)
		return -e;
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
}

int mountpoint_prepare(const char *path, struct buf *why)
{
	struct search ours = { .path = path };
	struct stat st;

	/* Two at most: a dead mount may lie on another. */
	for (int i = 0; i < 2 && stat(path, &st) < 0 && errno == ENOTCONN; i++) {
		if (take_off(path) < 0) {
			buf_addf(why,
				 "a dead mount is in the way at %s, and cannot be taken off: try fusermount3 -uz %s",
				 path, path);
			return -ENOTCONN;
		}
		log_warning("mount: took a dead mount off %s", path);
	}
	if (stat(path, &st) < 0) {
		int e = errno;
		if (e == ENOENT)
			buf_addf(why, "the mount point %s does not exist: mkdir it first", path);
		else
			buf_addf(why, "the mount point %s cannot be used: %s", path, strerror(e));
		return -e;
	}
	if (!S_ISDIR(st.st_mode)) {
		buf_addf(why, "the mount point %s is not a directory", path);
		return -ENOTDIR;
	}
	if (mountpoint_walk(compare, &ours) == 0 && ours.was_found) {
		buf_addf(why, "%s is mounted already", path);
		return -EBUSY;
	}
	return 0;
}
