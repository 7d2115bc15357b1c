/* Enders for CLEANUP(). */
#include "client/base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

void text_release(char **p)
{
	free(*p);
	*p = NULL;
}

/* errno survives, so that `return -errno` works in a scope that ends with this. */
void fd_close(int *fd)
{
	int kept = errno;

	if (*fd >= 0)
		(void)close(*fd); /* who needs close's verdict closes by hand, and sets -1 */
	*fd = -1;
	errno = kept;
}
