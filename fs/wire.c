/* One flag in one message; see wire.h. */
#include "fs/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>
#include <unistd.h>

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 14)

/* The first answer is the one to INIT: until it has that the kernel asks nothing else. Notices have no number. */
static atomic_bool is_answered;

static void add_flag(struct iovec *iov, int count)
{
	const struct fuse_out_header *head = iov[0].iov_base;
	struct fuse_init_out *out = count == 2 ? iov[1].iov_base : NULL;

	if (iov[0].iov_len != sizeof(*head) || head->unique == 0 || atomic_exchange(&is_answered, true))
		return;
	if (out && head->error == 0 && iov[1].iov_len >= 24 && out->major == FUSE_KERNEL_VERSION)
		out->flags |= FUSE_PARALLEL_DIROPS; /* every kernel since 4.7 knows it; an older one passes over it */
}

static ssize_t wire_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	(void)userdata;
	if (!atomic_load_explicit(&is_answered, memory_order_relaxed) && count > 0)
		add_flag(iov, count);
	return writev(fd, iov, count);
}

static ssize_t wire_read(int fd, void *bytes, size_t size, void *userdata)
{
	(void)userdata;
	return read(fd, bytes, size);
}

/* Where the line is ours libfuse splices through us, or copies. */
static ssize_t wire_splice_send(int from, off_t *from_at, int fd, off_t *fd_at, size_t size, unsigned flags,
				void *userdata)
{
	(void)userdata;
	return splice(from, from_at, fd, fd_at, size, flags);
}

int wire_allow_parallel(struct fuse_session *session)
{
	static const struct fuse_custom_io io = { .writev = wire_writev,
						  .read = wire_read,
						  .splice_send = wire_splice_send };

	atomic_store(&is_answered, false);
	return fuse_session_custom_io(session, &io, fuse_session_fd(session));
}

#else

int wire_allow_parallel(struct fuse_session *session)
{
	(void)session;
	return -EOPNOTSUPP; /* an older libfuse keeps its line to itself */
}

#endif
