/* Ownership that is said where a variable is declared, and locks that end with their scope. */
#pragma once

#include <pthread.h>

/* Runs fn(&variable) when the scope ends. fn takes a pointer to the variable and accepts it empty. */
#define CLEANUP(fn) __attribute__((cleanup(fn)))

static inline pthread_mutex_t *scoped_lock_take(pthread_mutex_t *m)
{
	pthread_mutex_lock(m);
	return m;
}

static inline void scoped_lock_end(pthread_mutex_t **m)
{
	if (*m)
		pthread_mutex_unlock(*m);
}

#define SCOPED_LOCK_NAME2(line) scoped_lock_##line
#define SCOPED_LOCK_NAME(line) SCOPED_LOCK_NAME2(line)
/* Holds m until the scope ends. */
#define SCOPED_LOCK(m)                                                                                                 \
	CLEANUP(scoped_lock_end)                                                                                       \
	pthread_mutex_t *SCOPED_LOCK_NAME(__LINE__) __attribute__((unused)) = scoped_lock_take(m)

/* Enders for the two things everybody holds: CLEANUP(text_release) char *p; CLEANUP(fd_close) int fd = -1; */
void text_release(char **p);
void fd_close(int *fd);
