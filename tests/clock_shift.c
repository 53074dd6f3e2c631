/* A wall clock that a test sets: CLOCK_REALTIME is ahead of the machine's by the milliseconds in the file named by
   FS_CLOCK_SHIFT, an int64 that may change at any time. Other clocks are left alone. Preloaded; see shifted.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

typedef int (*Gettime)(clockid_t, struct timespec *);

static Gettime real;
static volatile int64_t *shift;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FS_CLOCK_SHIFT");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(*shift), PROT_READ, MAP_SHARED, fd, 0);
    real = (Gettime)dlsym(RTLD_NEXT, "clock_gettime");
    shift = at == MAP_FAILED ? NULL : at;
}

__attribute__((visibility("default"))) int clock_gettime(clockid_t id, struct timespec *now) {
    int failed;
    int64_t ms, ns;
    if (real == NULL)
        real = (Gettime)dlsym(RTLD_NEXT, "clock_gettime");
    failed = real(id, now);
    if (failed || id != CLOCK_REALTIME || shift == NULL)
        return failed;
    ms = *shift;
    ns = now->tv_nsec + ms % 1000 * 1000000;
    now->tv_sec += ms / 1000 + (ns >= 1000000000) - (ns < 0);
    now->tv_nsec = ns - (ns >= 1000000000 ? 1000000000 : 0) + (ns < 0 ? 1000000000 : 0);
    return 0;
}
