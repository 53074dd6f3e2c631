/* Preloaded into a server: while the file that FEATURESTORE_TEST_HOLD names exists, no fdatasync begins, so that
 * writes stay parked for as long as a test wants, and not for as long as a disk takes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int fd)
{
    static int (*real)(int);
    const char *path = getenv("FEATURESTORE_TEST_HOLD");

    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    while (path != NULL && access(path, F_OK) == 0)
        usleep(1000);
    return real(fd);
}
