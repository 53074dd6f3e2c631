/* Preloaded into a server, so that what takes its time takes as long as a test wants. FEATURESTORE_TEST_HOLD names
 * a file: while it exists no fdatasync begins, and writes stay parked. While the file of that name with ".locks"
 * behind it exists, every lock that is tried is in use, and whoever then waits for such a lock goes on waiting. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MOST_LOCKS 256

static void *tried[MOST_LOCKS];
static int n_tried;

static int is_held(const char *suffix)
{
    const char *path = getenv("FEATURESTORE_TEST_HOLD");
    char name[4096];

    if (path == NULL || snprintf(name, sizeof(name), "%s%s", path, suffix) >= (int)sizeof(name))
        return 0;
    return access(name, F_OK) == 0;
}

static int was_tried(void *lock)
{
    int i, n = __atomic_load_n(&n_tried, __ATOMIC_ACQUIRE);

    for (i = 0; i < n && i < MOST_LOCKS; i++)
        if (__atomic_load_n(&tried[i], __ATOMIC_RELAXED) == lock)
            return 1;
    return 0;
}

int fdatasync(int fd)
{
    static int (*real)(int);

    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    while (is_held(""))
        usleep(1000);
    return real(fd);
}

int pthread_mutex_trylock(pthread_mutex_t *lock)
{
    static int (*real)(pthread_mutex_t *);
    int at;

    if (real == NULL)
        real = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_trylock");
    if (!is_held(".locks"))
        return real(lock);
    if (!was_tried(lock)) {
        at = __atomic_load_n(&n_tried, __ATOMIC_RELAXED);
        while (at < MOST_LOCKS && !__atomic_compare_exchange_n(&n_tried, &at, at + 1, 0, __ATOMIC_ACQ_REL,
                                                               __ATOMIC_RELAXED))
            ;
        if (at < MOST_LOCKS)
            __atomic_store_n(&tried[at], lock, __ATOMIC_RELEASE);
    }
    return EBUSY;
}

int pthread_mutex_lock(pthread_mutex_t *lock)
{
    static int (*real)(pthread_mutex_t *);

    if (real == NULL)
        real = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_lock");
    while (was_tried(lock) && is_held(".locks"))
        usleep(1000);
    return real(lock);
}
