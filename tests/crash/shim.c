/* A preloaded library that writes down what a process does to the files below one directory, and makes it
 * fail on demand.
 *
 * Promise: every change made below FS_SHIM_ROOT through the functions at the end of this file is in the
 * trace, with its data, after it happened and before the caller learns that it did; so whatever the caller
 * then does because of it (a sync, an acknowledgement) comes later in the trace. A sync is two records:
 * changes recorded before SYNC_BEGIN are what it covers, and they are durable from SYNC_END on. A write
 * through O_DSYNC or O_SYNC is a WRITE and then a WRITE_SYNCED, so that a cut between the two finds it half
 * done.
 *
 * What it cannot see: stores into a shared writable map (recorded as MAPPED, and image.py refuses such a
 * file unless told it does not matter), bytes written by stdio or inside libc, raw system calls, io_uring.
 * Trace.verify() in image.py compares the trace with the directory and finds what slipped through.
 *
 * The system calls are made directly, not through dlsym(RTLD_NEXT): that works before libc is initialised,
 * in the child of a vfork, and cannot recurse. One lock is held around a change and its record, never around
 * a sync. File descriptors are not followed through dup, fork, exec or fcntl: each call asks the kernel
 * (fstat) which file it is about, so descriptors opened before, elsewhere, or inside libc are known too.
 *
 * Environment:
 *   FS_SHIM_ROOT   the directory, absolute, no symbolic links; without it the library does nothing
 *   FS_SHIM_TRACE  the file to append records to, outside the root, begun by shim.py; without it: faults only
 *   FS_SHIM_FAIL   fault rules, or @FILE: rules in a file, read again whenever it changes (absent: none)
 *   FS_SHIM_SYNC   "skip": do not really sync; images are computed from the trace, so syncing only takes time
 *
 * Rules: RULE | RULE ..., separated by '|' or a newline; RULE = name=value;name=value...
 *   op=a,b       calls: open write pwrite writev pwritev ftruncate fallocate fsync fdatasync msync
 *                sync_file_range rename unlink link mkdir; or writes (write pwrite writev pwritev), syncs
 *                (fsync fdatasync msync), dsync (a write through O_DSYNC or O_SYNC, by whichever call),
 *                or * (the default)
 *   path=GLOB    on the path below the root, where * also matches / (default *)
 *   nth=N        the Nth matching call of this process, from 1 (default 1)
 *   sticky=1     and every matching call after it
 *   errno=NAME   the call fails so: EIO ENOSPC EDQUOT EINTR EAGAIN EROFS EMFILE EACCES EFBIG, or a number
 *   short=BYTES  a write writes at most so many bytes first; without errno it returns that count
 *   kill=1       the process dies of SIGKILL there, after `short` bytes if given
 *   delay_ms=N   the call takes so much longer
 *   budget=BYTES the call fails (default ENOSPC) once matching calls have grown files by more than this; a
 *                write that fits in part is cut short, as a full disk does. Replaces nth and sticky
 *
 * Trace: little-endian. Head: 8 bytes "FSTRACE1". Then records:
 *    0  u32 size     bytes of the whole record
 *    4  u8  kind     see enum kind
 *    5  u8  flags    by kind
 *    6  u16 error    errno of a sync that failed, or of a fault
 *    8  u32 process  pid
 *   12  u32 thread   tid
 *   16  u64 file     inode number, or 0
 *   24  u64 a        by kind
 *   32  u64 b        by kind
 *   40  payload      size - 40 bytes, by kind; paths are relative to the root, two are separated by a NUL
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#if __SIZEOF_POINTER__ != 8 || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the shim knows 64-bit little-endian Linux only"
#endif

/* What follows each name: file, a, b, payload. Kinds 1 to 3 are what was there before, written by shim.py. */
enum kind {
    K_BASE_DIRECTORY = 1, /* the directory; its path ("" is the root) */
    K_BASE_FILE = 2,      /* the file; a = size; its path */
    K_BASE_DATA = 3,      /* the file; a = offset; bytes */
    K_CREATE = 8,         /* the new file; a = mode; path */
    K_OPEN = 9,           /* first touch of a file through a descriptor of this process; path */
    K_WRITE = 10,         /* the file; a = offset; the bytes written. flags: 1 through O_DSYNC/O_SYNC */
    K_WRITE_SYNCED = 11,  /* the file; a = offset, b = bytes: that range is durable now */
    K_TRUNCATE = 12,      /* the file; a = new size */
    K_ALLOCATE = 13,      /* the file; a = offset, b = bytes. flags: 1 size kept */
    K_ZERO = 14,          /* the file; a = offset, b = bytes, now zeros. flags: 1 size kept */
    K_SYNC_BEGIN = 15,    /* file or directory, 0 = all; a = its number in its process; flags: enum call */
    K_SYNC_END = 16,      /* the same; error = 0 if it succeeded */
    K_RENAME = 17,        /* what was moved; old, new */
    K_LINK = 18,          /* the file; old, new */
    K_UNLINK = 19,        /* the file; path */
    K_MKDIR = 20,         /* the directory; path */
    K_RMDIR = 21,         /* the directory; path */
    K_MAPPED = 22,        /* a file mapped shared and writable: its bytes are unknown from here on; path */
    K_UNMODELLED = 23,    /* something happened that the trace cannot express; words */
    K_MARK = 24,          /* words of the traced program or of a client */
    K_FAULT = 25,         /* a fault was injected; error; a = nth of its rule; call and path */
};

enum call {
    C_OPEN = 0,
    C_WRITE = 1,
    C_PWRITE = 2,
    C_WRITEV = 3,
    C_PWRITEV = 4,
    C_FTRUNCATE = 5,
    C_FALLOCATE = 6,
    C_FSYNC = 7,
    C_FDATASYNC = 8,
    C_MSYNC = 9,
    C_SYNC_FILE_RANGE = 10,
    C_RENAME = 11,
    C_UNLINK = 12,
    C_LINK = 13,
    C_MKDIR = 14,
    C_DSYNC_WRITE = 15, /* in rules only: a write by whichever call through O_DSYNC or O_SYNC */
    N_CALLS = 16,
};
static const char *const call_names[N_CALLS] = {
    [C_OPEN] = "open",
    [C_WRITE] = "write",
    [C_PWRITE] = "pwrite",
    [C_WRITEV] = "writev",
    [C_PWRITEV] = "pwritev",
    [C_FTRUNCATE] = "ftruncate",
    [C_FALLOCATE] = "fallocate",
    [C_FSYNC] = "fsync",
    [C_FDATASYNC] = "fdatasync",
    [C_MSYNC] = "msync",
    [C_SYNC_FILE_RANGE] = "sync_file_range",
    [C_RENAME] = "rename",
    [C_UNLINK] = "unlink",
    [C_LINK] = "link",
    [C_MKDIR] = "mkdir",
    [C_DSYNC_WRITE] = "dsync",
};
#define BIT(op) (1u << (op))
#define ALL_WRITES (BIT(C_WRITE) | BIT(C_PWRITE) | BIT(C_WRITEV) | BIT(C_PWRITEV))
#define ALL_SYNCS (BIT(C_FSYNC) | BIT(C_FDATASYNC) | BIT(C_MSYNC))

struct __attribute__((packed)) record {
    uint32_t size;
    uint8_t kind, flags;
    uint16_t error;
    uint32_t process, thread;
    uint64_t file, a, b;
};

struct rule {
    uint32_t ops;   /* BIT(op) of the calls it is about */
    char path[256]; /* glob */
    uint64_t nth;   /* 1-based */
    uint64_t seen;  /* matching calls so far */
    int sticky;
    int error;           /* errno, 0 = none */
    int64_t short_bytes; /* -1 = not given */
    int kill;
    uint32_t delay_ms;
    int64_t budget; /* bytes left, -1 = not given */
};

struct fault { /* what is to happen to one call */
    int hit;
    int error;
    int64_t limit; /* most bytes a write may write, -1 = all */
    int kill;
    uint64_t nth;
};

struct target { /* what a descriptor is about */
    dev_t device;
    ino_t inode;
    off_t size;
    int is_directory;
    char path[PATH_MAX]; /* below the root; filled only when asked */
};

enum { MAX_RULES = 32, MAX_CACHED = 4096, MAX_MAPS = 256, MAX_IOV = 1024, TRACE_FD = 700 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* owns everything below, and order in the trace */
static char root[PATH_MAX];
static size_t root_bytes; /* 0: the library is off */
static char trace_path[PATH_MAX];
static int trace_fd = -1;
static struct stat trace_stat; /* to notice that the program closed or reused our descriptor */
static int skip_syncs;
static uint64_t syncs_begun;
static struct rule rules[MAX_RULES];
static int n_rules;
static char rules_path[PATH_MAX]; /* of FS_SHIM_FAIL=@path */
static struct stat rules_stat;
static struct {
    dev_t device;
    ino_t inode;
    int8_t tracked;
} cached[MAX_CACHED]; /* by descriptor */
static struct {
    char *start;
    size_t bytes;
    ino_t inode;
    char path[256];
} maps[MAX_MAPS];

/* ---- small things ---- */

static void die(const char *what) {
    char text[512];
    int bytes = snprintf(text, sizeof text, "crash shim: %s (errno %d)\n", what, errno);
    syscall(SYS_write, 2, text, (size_t)bytes);
    syscall(SYS_exit_group, 99);
    __builtin_unreachable();
}

static int below_root(const char *path) {
    return !strncmp(path, root, root_bytes) && (path[root_bytes] == '/' || !path[root_bytes]);
}

static const char *relative(const char *path) { return path[root_bytes] ? path + root_bytes + 1 : ""; }

/* The absolute path a call means, symbolic links in its directory resolved; the last part is left as it is,
 * since rename, unlink and link act on the name. 0 if there is no such directory. */
static int absolute(int dirfd, const char *path, char *out) {
    char joined[PATH_MAX], parent[PATH_MAX], name[NAME_MAX + 1], link[64];
    if (!path || strlen(path) >= PATH_MAX) return 0;
    if (path[0] == '/') {
        strcpy(joined, path);
    } else {
        ssize_t n;
        if (dirfd == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        n = syscall(SYS_readlinkat, AT_FDCWD, link, joined, sizeof joined - 1);
        if (n < 0 || (size_t)n + strlen(path) + 2 > sizeof joined) return 0;
        joined[n] = '/';
        strcpy(joined + n + 1, path);
    }
    size_t n = strlen(joined);
    while (n > 1 && joined[n - 1] == '/') joined[--n] = 0;
    char *slash = strrchr(joined, '/');
    if (!slash || !strcmp(slash, "/.") || !strcmp(slash, "/..") || n == 1)
        return realpath(joined, out) != NULL;
    if (strlen(slash + 1) > NAME_MAX) return 0;
    strcpy(name, slash + 1);
    slash[slash == joined] = 0;
    if (!realpath(joined, parent) || strlen(parent) + strlen(name) + 2 > PATH_MAX) return 0;
    sprintf(out, "%s/%s", parent[1] ? parent : "", name);
    return 1;
}

/* ---- the trace ---- */

static void open_trace(void) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, trace_path, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    if (fd < 0) die("cannot open FS_SHIM_TRACE, which shim.py should have written the head of");
    trace_fd = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, TRACE_FD); /* out of the way */
    if (trace_fd < 0) trace_fd = fd;
    else syscall(SYS_close, fd);
    if (fstat(trace_fd, &trace_stat)) die("cannot stat FS_SHIM_TRACE");
}

/* One record in one append, so that records of several processes never mix. Called with the lock held. */
static void append(uint8_t kind, uint8_t flags, int error, uint64_t file, uint64_t a, uint64_t b,
                   const struct iovec *payload, int n) {
    if (!trace_path[0]) return;
    struct stat now;
    if (trace_fd < 0 || fstat(trace_fd, &now) || now.st_ino != trace_stat.st_ino ||
        now.st_dev != trace_stat.st_dev)
        open_trace();
    struct record head = {sizeof head,
                          kind,
                          flags,
                          (uint16_t)error,
                          (uint32_t)syscall(SYS_getpid),
                          (uint32_t)syscall(SYS_gettid),
                          file,
                          a,
                          b};
    struct iovec parts[MAX_IOV + 1];
    uint64_t bytes = sizeof head;
    parts[0] = (struct iovec){&head, sizeof head};
    for (int i = 0; i < n; i++) {
        parts[i + 1] = payload[i];
        bytes += payload[i].iov_len;
    }
    if (bytes > UINT32_MAX) die("one write of more than 4 GiB");
    head.size = (uint32_t)bytes;
    void *flat = NULL;
    if (n + 1 > MAX_IOV) { /* writev takes MAX_IOV parts, and a record must be one call */
        char *to = flat = malloc(bytes);
        if (!flat) die("out of memory");
        for (int i = 0; i <= n; i++) {
            memcpy(to, parts[i].iov_base, parts[i].iov_len);
            to += parts[i].iov_len;
        }
        parts[0] = (struct iovec){flat, bytes};
        n = 0;
    }
    ssize_t done = syscall(SYS_writev, trace_fd, parts, n + 1);
    free(flat);
    if (done < 0 || (uint64_t)done != bytes) die("cannot append to FS_SHIM_TRACE; is its disk full?");
}

static void append_text(uint8_t kind, int error, uint64_t file, uint64_t a, const char *one,
                        const char *two) {
    struct iovec parts[2] = {{(void *)one, strlen(one)}, {(void *)two, two ? strlen(two) : 0}};
    if (two) parts[0].iov_len++; /* the NUL between them */
    append(kind, 0, error, file, a, 0, parts, two ? 2 : 1);
}

/* ---- fault rules ---- */

static int error_number(const char *name) {
    static const struct {
        const char *name;
        int number;
    } known[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT},
                 {"EINTR", EINTR},   {"EAGAIN", EAGAIN}, {"EROFS", EROFS},
                 {"EMFILE", EMFILE}, {"EACCES", EACCES}, {"EFBIG", EFBIG}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) return known[i].number;
    int number = atoi(name);
    if (number <= 0) die("FS_SHIM_FAIL: unknown errno");
    return number;
}

static uint32_t ops_of(char *names) {
    uint32_t ops = 0;
    char *rest = NULL;
    for (char *name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        uint32_t bits = !strcmp(name, "*")        ? BIT(C_DSYNC_WRITE) - 1
                        : !strcmp(name, "writes") ? ALL_WRITES
                        : !strcmp(name, "syncs")  ? ALL_SYNCS
                                                  : 0;
        for (int op = 0; op < N_CALLS; op++)
            if (!strcmp(name, call_names[op])) bits = BIT(op);
        if (!bits) die("FS_SHIM_FAIL: unknown op");
        ops |= bits;
    }
    return ops;
}

static void parse_rules(char *text) {
    char *rest = NULL;
    n_rules = 0;
    for (char *one = strtok_r(text, "|\n", &rest); one; one = strtok_r(NULL, "|\n", &rest)) {
        char *fields = NULL;
        struct rule rule = {
            .ops = BIT(C_DSYNC_WRITE) - 1, .path = "*", .nth = 1, .short_bytes = -1, .budget = -1};
        int given = 0;
        for (char *field = strtok_r(one, "; \t", &fields); field; field = strtok_r(NULL, "; \t", &fields)) {
            char *value = strchr(field, '=');
            if (!value) die("FS_SHIM_FAIL: a field is name=value");
            *value++ = 0;
            given = 1;
            if (!strcmp(field, "op")) rule.ops = ops_of(value);
            else if (!strcmp(field, "path")) {
                if (strlen(value) >= sizeof rule.path) die("FS_SHIM_FAIL: long path");
                strcpy(rule.path, value);
            } else if (!strcmp(field, "nth")) rule.nth = strtoull(value, NULL, 10);
            else if (!strcmp(field, "sticky")) rule.sticky = atoi(value);
            else if (!strcmp(field, "errno")) rule.error = error_number(value);
            else if (!strcmp(field, "short")) rule.short_bytes = atoll(value);
            else if (!strcmp(field, "kill")) rule.kill = atoi(value);
            else if (!strcmp(field, "delay_ms")) rule.delay_ms = (uint32_t)atoi(value);
            else if (!strcmp(field, "budget")) rule.budget = atoll(value);
            else die("FS_SHIM_FAIL: unknown field");
        }
        if (!given) continue;
        if (rule.budget >= 0 && !rule.error) rule.error = ENOSPC;
        if (!rule.error && !rule.kill && !rule.delay_ms && rule.short_bytes < 0)
            die("FS_SHIM_FAIL: a rule that does nothing");
        if (n_rules == MAX_RULES) die("FS_SHIM_FAIL: too many rules");
        rules[n_rules++] = rule;
    }
}

static void reread_rules(void) {
    struct stat now;
    if (!rules_path[0]) return;
    if (fstatat(AT_FDCWD, rules_path, &now, 0)) {
        n_rules = 0;
        memset(&rules_stat, 0, sizeof rules_stat);
        return;
    }
    if (now.st_ino == rules_stat.st_ino && now.st_size == rules_stat.st_size &&
        !memcmp(&now.st_mtim, &rules_stat.st_mtim, sizeof now.st_mtim))
        return;
    char text[8192];
    int fd = (int)syscall(SYS_openat, AT_FDCWD, rules_path, O_RDONLY | O_CLOEXEC, 0);
    ssize_t bytes = fd < 0 ? -1 : syscall(SYS_read, fd, text, sizeof text - 1);
    if (fd >= 0) syscall(SYS_close, fd);
    if (bytes < 0) die("FS_SHIM_FAIL: cannot read the rules file");
    text[bytes] = 0;
    rules_stat = now;
    parse_rules(text);
}

/* What the rules say about this call. `bytes` is what a write would write, `growth` by how much it would grow
 * the file. Called with the lock held, which is dropped while a delay passes. */
static struct fault judge(uint32_t ops, const char *path, uint64_t file, int64_t bytes, int64_t growth) {
    struct fault fault = {.limit = -1};
    uint32_t delay_ms = 0;
    reread_rules();
    for (int i = 0; i < n_rules; i++) {
        struct rule *rule = &rules[i];
        if (!(rule->ops & ops) || fnmatch(rule->path, path, 0)) continue;
        rule->seen++;
        if (rule->budget >= 0) {
            if (growth <= rule->budget) {
                rule->budget -= growth;
                continue;
            }
            fault.limit = bytes - growth + rule->budget; /* what overwrites needs no room */
            fault.error = fault.limit > 0 ? 0 : rule->error;
            rule->budget = 0;
        } else {
            if (rule->sticky ? rule->seen < rule->nth : rule->seen != rule->nth) continue;
            if (rule->error) fault.error = rule->error;
            if (rule->short_bytes >= 0) fault.limit = rule->short_bytes;
            fault.kill |= rule->kill;
            delay_ms += rule->delay_ms;
            if (!rule->error && !rule->kill && rule->short_bytes < 0) continue;
        }
        fault.hit = 1;
        fault.nth = rule->seen;
    }
    if (fault.hit) {
        const char *name = call_names[__builtin_ctz(ops)];
        append_text(K_FAULT, fault.error, file, fault.nth, name, path);
    }
    if (delay_ms) {
        struct timespec delay = {delay_ms / 1000, (long)(delay_ms % 1000) * 1000000};
        pthread_mutex_unlock(&lock);
        nanosleep(&delay, NULL);
        pthread_mutex_lock(&lock);
    }
    return fault;
}

/* Dies or fails as the fault says. Called with the lock held. 1: errno is set. */
static int struck(struct fault fault) {
    if (fault.kill) syscall(SYS_kill, (int)syscall(SYS_getpid), SIGKILL);
    if (!fault.error) return 0;
    errno = fault.error;
    return 1;
}

/* ---- which file is this ---- */

/* 1, and the lock is taken, if the descriptor is about something below the root; else 0, and no lock. */
static int take(int fd, struct target *target) {
    struct stat now;
    if (!root_bytes || fstat(fd, &now)) return 0;
    if (!S_ISREG(now.st_mode) && !S_ISDIR(now.st_mode))
        return 0; /* pipes and sockets never wait for the lock */
    int old_errno = errno, tracked = -1;
    pthread_mutex_lock(&lock);
    if (fd < MAX_CACHED && cached[fd].inode == now.st_ino && cached[fd].device == now.st_dev)
        tracked = cached[fd].tracked;
    if (tracked == 0) {
        pthread_mutex_unlock(&lock);
        return 0;
    }
    int known = tracked == 1;
    if (!known || n_rules || rules_path[0]) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t bytes = syscall(SYS_readlinkat, AT_FDCWD, link, target->path, sizeof target->path - 1);
        if (bytes < 0) bytes = 0;
        target->path[bytes] = 0;
        tracked = below_root(target->path);
        if (fd < MAX_CACHED) {
            cached[fd].device = now.st_dev;
            cached[fd].inode = now.st_ino;
            cached[fd].tracked = (int8_t)tracked;
        }
        if (!tracked) {
            pthread_mutex_unlock(&lock);
            errno = old_errno;
            return 0;
        }
        memmove(target->path, relative(target->path), strlen(relative(target->path)) + 1);
        if (!known && S_ISREG(now.st_mode)) append_text(K_OPEN, 0, now.st_ino, 0, target->path, NULL);
    } else {
        target->path[0] = 0;
    }
    target->device = now.st_dev;
    target->inode = now.st_ino;
    target->size = now.st_size;
    target->is_directory = S_ISDIR(now.st_mode);
    errno = old_errno;
    return 1;
}

static void forget_fd(int fd) {
    if (fd >= 0 && fd < MAX_CACHED) cached[fd].inode = 0;
}

static void give(void) {
    int saved = errno;
    pthread_mutex_unlock(&lock);
    errno = saved;
}

/* ---- data ---- */

static ssize_t raw_write(int fd, const struct iovec *iov, int n, off_t offset, int rwf) {
    if (offset < 0 && !rwf) return syscall(SYS_writev, fd, iov, n);
    return syscall(SYS_pwritev2, fd, iov, n, offset, 0, rwf);
}

/* Shortens the parts to `left` bytes in all and says how many parts that takes. */
static int cut(struct iovec *part, int n, int64_t left) {
    int kept = 0;
    for (; kept < n && left > 0; kept++) {
        if ((int64_t)part[kept].iov_len > left) part[kept].iov_len = (size_t)left;
        left -= (int64_t)part[kept].iov_len;
    }
    return kept;
}

static ssize_t traced_write(enum call op, int fd, const struct iovec *iov, int n, off_t offset, int rwf) {
    struct target target;
    if (n < 0 || n > MAX_IOV || !take(fd, &target)) return raw_write(fd, iov, n, offset, rwf);
    int flags = (int)syscall(SYS_fcntl, fd, F_GETFL),
        synced = (flags & (O_DSYNC | O_SYNC)) || (rwf & (RWF_DSYNC | RWF_SYNC));
    int appends = (flags & O_APPEND) || (rwf & RWF_APPEND);
    int64_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += (int64_t)iov[i].iov_len;
    off_t start = appends ? target.size : offset >= 0 ? offset : (off_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
    int64_t growth = start + bytes - (start > target.size ? start : target.size);
    struct fault fault = judge(BIT(op) | (synced ? BIT(C_DSYNC_WRITE) : 0), target.path, target.inode, bytes,
                               growth > 0 ? growth : 0);

    struct iovec part[MAX_IOV];
    int n_part = n;
    ssize_t done = 0;
    memcpy(part, iov, (size_t)n * sizeof *iov);
    if (fault.hit) n_part = cut(part, n, fault.limit < 0 ? 0 : fault.limit);
    if (n_part || !fault.hit) done = raw_write(fd, part, n_part, offset, rwf);
    if (done > 0) {
        if (offset < 0) start = (off_t)syscall(SYS_lseek, fd, 0, SEEK_CUR) - done;
        n_part = cut(part, n_part, done);
        append(K_WRITE, (uint8_t)synced, 0, target.inode, (uint64_t)start, (uint64_t)done, part, n_part);
        if (synced && !fault.error && !fault.kill)
            append(K_WRITE_SYNCED, 0, 0, target.inode, (uint64_t)start, (uint64_t)done, NULL, 0);
    }
    if (done >= 0 && struck(fault)) done = -1;
    give();
    return done;
}

static int traced_truncate(int fd, off_t size) {
    struct target target;
    if (!take(fd, &target)) return (int)syscall(SYS_ftruncate, fd, size);
    int result = -1;
    if (!struck(judge(BIT(C_FTRUNCATE), target.path, target.inode, 0, 0))) { /* a hole takes no room */
        result = (int)syscall(SYS_ftruncate, fd, size);
        if (!result) append(K_TRUNCATE, 0, 0, target.inode, (uint64_t)size, 0, NULL, 0);
    }
    give();
    return result;
}

static int traced_allocate(int fd, int mode, off_t offset, off_t bytes) {
    struct target target;
    if (!take(fd, &target)) return (int)syscall(SYS_fallocate, fd, mode, offset, bytes);
    int64_t growth = offset + bytes - (offset > target.size ? offset : target.size);
    int result = -1;
    struct fault fault = judge(BIT(C_FALLOCATE), target.path, target.inode, 0, growth > 0 ? growth : 0);
    if (fault.hit && !fault.error && !fault.kill)
        fault.error = ENOSPC; /* an allocation is never done in part */
    if (!struck(fault)) {
        result = (int)syscall(SYS_fallocate, fd, mode, offset, bytes);
        if (!result) {
            uint8_t keeps = (mode & FALLOC_FL_KEEP_SIZE) != 0;
            int rest = mode & ~FALLOC_FL_KEEP_SIZE;
            if (!rest) append(K_ALLOCATE, keeps, 0, target.inode, (uint64_t)offset, (uint64_t)bytes, NULL, 0);
            else if (rest == FALLOC_FL_PUNCH_HOLE || rest == FALLOC_FL_ZERO_RANGE)
                append(K_ZERO, keeps, 0, target.inode, (uint64_t)offset, (uint64_t)bytes, NULL, 0);
            else
                append_text(K_UNMODELLED, 0, target.inode, 0, "fallocate that moves the bytes of a file",
                            NULL);
        }
    }
    give();
    return result;
}

/* ---- syncs: the lock is not held while the disk works ---- */

static uint64_t begin_sync(uint8_t call, uint64_t file) {
    uint64_t number = ++syncs_begun;
    append(K_SYNC_BEGIN, call, 0, file, number, 0, NULL, 0);
    return number;
}

static int end_sync(uint8_t call, uint64_t file, uint64_t number, int result) {
    int saved = errno;
    pthread_mutex_lock(&lock);
    append(K_SYNC_END, call, result ? saved : 0, file, number, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

static int traced_sync(enum call op, long call, int fd) {
    struct target target;
    if (!take(fd, &target)) return (int)syscall(call, fd);
    struct fault fault = judge(BIT(op), target.path, target.inode, 0, 0);
    uint64_t number = begin_sync((uint8_t)op, target.inode);
    int result = struck(fault) ? -1 : 0;
    give();
    if (!result && !skip_syncs) result = (int)syscall(call, fd);
    return end_sync((uint8_t)op, target.inode, number, result);
}

/* ---- names ---- */

static int traced_open(int dirfd, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat before, after;
    int old_errno = errno, fd;
    if (!root_bytes || !absolute(dirfd, path, full) || !below_root(full)) {
        errno = old_errno;
        fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
        if (fd >= 0) forget_fd(fd);
        return fd;
    }
    errno = old_errno;
    pthread_mutex_lock(&lock);
    struct fault fault = judge(BIT(C_OPEN), relative(full), 0, 0, 0);
    fd = -1;
    if (!struck(fault)) {
        int existed = !fstatat(AT_FDCWD, full, &before, 0);
        fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
        if (fd >= 0) {
            forget_fd(fd);
            if (fstat(fd, &after)) die("cannot stat a file just opened");
            if ((flags & O_TMPFILE) == O_TMPFILE)
                append_text(K_UNMODELLED, 0, after.st_ino, 0, "open with O_TMPFILE", NULL);
            else if (!existed)
                append_text(K_CREATE, 0, after.st_ino, after.st_mode & 07777, relative(full), NULL);
            else if ((flags & O_TRUNC) && S_ISREG(after.st_mode) && before.st_size)
                append(K_TRUNCATE, 0, 0, after.st_ino, 0, 0, NULL, 0);
        }
    }
    if (fd >= 0) errno = old_errno;
    give();
    return fd;
}

static int traced_rename(int old_dir, const char *old, int new_dir, const char *new, unsigned flags) {
    char from[PATH_MAX], to[PATH_MAX];
    int seen = root_bytes && absolute(old_dir, old, from) && absolute(new_dir, new, to) &&
               (below_root(from) || below_root(to));
    if (!seen) return (int)syscall(SYS_renameat2, old_dir, old, new_dir, new, flags);
    int result = -1;
    pthread_mutex_lock(&lock);
    if (!struck(judge(BIT(C_RENAME), below_root(to) ? relative(to) : relative(from), 0, 0, 0))) {
        struct stat moved = {0};
        fstatat(AT_FDCWD, from, &moved, AT_SYMLINK_NOFOLLOW);
        result = (int)syscall(SYS_renameat2, old_dir, old, new_dir, new, flags);
        if (!result) {
            if (flags & ~RENAME_NOREPLACE) append_text(K_UNMODELLED, 0, 0, 0, "rename that exchanges", NULL);
            else if (!below_root(from) || !below_root(to))
                append_text(K_UNMODELLED, 0, 0, 0, "rename across the root", NULL);
            else append_text(K_RENAME, 0, moved.st_ino, 0, relative(from), relative(to));
        }
    }
    give();
    return result;
}

static int traced_unlink(int dirfd, const char *path, int flags) {
    char full[PATH_MAX];
    if (!root_bytes || !absolute(dirfd, path, full) || !below_root(full))
        return (int)syscall(SYS_unlinkat, dirfd, path, flags);
    int result = -1;
    pthread_mutex_lock(&lock);
    if (!struck(judge(BIT(C_UNLINK), relative(full), 0, 0, 0))) {
        struct stat gone = {0};
        fstatat(AT_FDCWD, full, &gone, AT_SYMLINK_NOFOLLOW);
        result = (int)syscall(SYS_unlinkat, dirfd, path, flags);
        if (!result)
            append_text(flags & AT_REMOVEDIR ? K_RMDIR : K_UNLINK, 0, gone.st_ino, 0, relative(full), NULL);
    }
    give();
    return result;
}

static int traced_link(int old_dir, const char *old, int new_dir, const char *new, int flags) {
    char from[PATH_MAX], to[PATH_MAX];
    int seen = root_bytes && absolute(old_dir, old, from) && absolute(new_dir, new, to) &&
               (below_root(from) || below_root(to));
    if (!seen) return (int)syscall(SYS_linkat, old_dir, old, new_dir, new, flags);
    int result = -1;
    pthread_mutex_lock(&lock);
    if (!struck(judge(BIT(C_LINK), below_root(to) ? relative(to) : relative(from), 0, 0, 0))) {
        struct stat linked = {0};
        result = (int)syscall(SYS_linkat, old_dir, old, new_dir, new, flags);
        if (!result && below_root(from) && below_root(to)) {
            fstatat(AT_FDCWD, to, &linked, AT_SYMLINK_NOFOLLOW);
            append_text(K_LINK, 0, linked.st_ino, 0, relative(from), relative(to));
        } else if (!result) {
            append_text(K_UNMODELLED, 0, 0, 0, "link across the root", NULL);
        }
    }
    give();
    return result;
}

static int traced_mkdir(int dirfd, const char *path, mode_t mode) {
    char full[PATH_MAX];
    if (!root_bytes || !absolute(dirfd, path, full) || !below_root(full))
        return (int)syscall(SYS_mkdirat, dirfd, path, mode);
    int result = -1;
    pthread_mutex_lock(&lock);
    if (!struck(judge(BIT(C_MKDIR), relative(full), 0, 0, 0))) {
        struct stat made = {0};
        result = (int)syscall(SYS_mkdirat, dirfd, path, mode);
        if (!result) {
            fstatat(AT_FDCWD, full, &made, AT_SYMLINK_NOFOLLOW);
            append_text(K_MKDIR, 0, made.st_ino, 0, relative(full), NULL);
        }
    }
    give();
    return result;
}

/* ---- start ---- */

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void start(void) {
    const char *at = getenv("FS_SHIM_ROOT"), *trace = getenv("FS_SHIM_TRACE"), *fail = getenv("FS_SHIM_FAIL"),
               *sync = getenv("FS_SHIM_SYNC");
    if (!at || !*at) return;
    if (at[0] != '/' || strlen(at) >= sizeof root || (trace && strlen(trace) >= sizeof trace_path))
        die("FS_SHIM_ROOT must be an absolute path");
    strcpy(root, at);
    while (strlen(root) > 1 && root[strlen(root) - 1] == '/') root[strlen(root) - 1] = 0;
    if (trace) strcpy(trace_path, trace);
    skip_syncs = sync && !strcmp(sync, "skip");
    if (fail && fail[0] == '@') {
        if (strlen(fail) >= sizeof rules_path) die("FS_SHIM_FAIL: long path");
        strcpy(rules_path, fail + 1);
    } else if (fail) {
        char text[8192];
        if (strlen(fail) >= sizeof text) die("FS_SHIM_FAIL: too long");
        strcpy(text, fail);
        parse_rules(text);
    }
    pthread_atfork(before_fork, after_fork, after_fork);
    root_bytes = strlen(root);
}

/* ---- what the traced program may call through ctypes ---- */

#define EXPORT __attribute__((visibility("default")))

/* Put a marker into the trace: whatever was recorded before it happened before it. */
EXPORT void fs_shim_mark(const char *text, size_t bytes) {
    struct iovec part = {(void *)text, bytes};
    if (!root_bytes) return;
    pthread_mutex_lock(&lock);
    append(K_MARK, 0, 0, 0, 0, 0, &part, 1);
    give();
}

/* Replace the fault rules from here on ("" = none). */
EXPORT void fs_shim_fail(const char *text) {
    char copy[8192];
    if (!root_bytes || strlen(text) >= sizeof copy) return;
    strcpy(copy, text);
    pthread_mutex_lock(&lock);
    rules_path[0] = 0;
    parse_rules(copy);
    give();
}

/* ---- the interposed functions; the 64-bit names are what programs built with large files call ---- */

#define MODE_OF(flags, mode)                                                                                 \
    mode_t mode = 0;                                                                                         \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                           \
        va_list rest;                                                                                        \
        va_start(rest, flags);                                                                               \
        mode = va_arg(rest, mode_t);                                                                         \
        va_end(rest);                                                                                        \
    }

EXPORT int open(const char *path, int flags, ...) {
    MODE_OF(flags, mode) return traced_open(AT_FDCWD, path, flags, mode);
}
EXPORT int open64(const char *path, int flags, ...) {
    MODE_OF(flags, mode) return traced_open(AT_FDCWD, path, flags, mode);
}
EXPORT int openat(int dir, const char *path, int flags, ...) {
    MODE_OF(flags, mode) return traced_open(dir, path, flags, mode);
}
EXPORT int openat64(int dir, const char *path, int flags, ...) {
    MODE_OF(flags, mode) return traced_open(dir, path, flags, mode);
}
/* What _FORTIFY_SOURCE calls when the flags are known only at run time. */
EXPORT int __open_2(const char *path, int flags) { return traced_open(AT_FDCWD, path, flags, 0); }
EXPORT int __open64_2(const char *path, int flags) { return traced_open(AT_FDCWD, path, flags, 0); }
EXPORT int __openat_2(int dir, const char *path, int flags) { return traced_open(dir, path, flags, 0); }
EXPORT int __openat64_2(int dir, const char *path, int flags) { return traced_open(dir, path, flags, 0); }
EXPORT int creat(const char *path, mode_t mode) {
    return traced_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
EXPORT int creat64(const char *path, mode_t mode) {
    return traced_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

EXPORT ssize_t write(int fd, const void *data, size_t bytes) {
    struct iovec one = {(void *)data, bytes};
    return traced_write(C_WRITE, fd, &one, 1, -1, 0);
}
static ssize_t write_at(int fd, const void *data, size_t bytes, off_t offset) {
    struct iovec one = {(void *)data, bytes};
    if (offset < 0) {
        errno = EINVAL;
        return -1;
    }
    return traced_write(C_PWRITE, fd, &one, 1, offset, 0);
}
EXPORT ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    return write_at(fd, data, bytes, offset);
}
EXPORT ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
    return write_at(fd, data, bytes, offset);
}
EXPORT ssize_t writev(int fd, const struct iovec *iov, int n) {
    return traced_write(C_WRITEV, fd, iov, n, -1, 0);
}
static ssize_t write_parts_at(int fd, const struct iovec *iov, int n, off_t offset, int rwf,
                              int may_be_current) {
    if (offset < 0 && !(may_be_current && offset == -1)) {
        errno = EINVAL;
        return -1;
    }
    return traced_write(C_PWRITEV, fd, iov, n, offset, rwf);
}
EXPORT ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t offset) {
    return write_parts_at(fd, iov, n, offset, 0, 0);
}
EXPORT ssize_t pwritev64(int fd, const struct iovec *iov, int n, off64_t offset) {
    return write_parts_at(fd, iov, n, offset, 0, 0);
}
EXPORT ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t offset, int rwf) {
    return write_parts_at(fd, iov, n, offset, rwf, 1);
}
EXPORT ssize_t pwritev64v2(int fd, const struct iovec *iov, int n, off64_t offset, int rwf) {
    return write_parts_at(fd, iov, n, offset, rwf, 1);
}

EXPORT int ftruncate(int fd, off_t size) { return traced_truncate(fd, size); }
EXPORT int ftruncate64(int fd, off64_t size) { return traced_truncate(fd, size); }
static int truncate_path(const char *path, off_t size) {
    int fd = traced_open(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = traced_truncate(fd, size), saved = errno;
    syscall(SYS_close, fd);
    errno = saved;
    return result;
}
EXPORT int truncate(const char *path, off_t size) { return truncate_path(path, size); }
EXPORT int truncate64(const char *path, off64_t size) { return truncate_path(path, size); }
EXPORT int fallocate(int fd, int mode, off_t offset, off_t bytes) {
    return traced_allocate(fd, mode, offset, bytes);
}
EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t bytes) {
    return traced_allocate(fd, mode, offset, bytes);
}
/* libc's own would call fallocate inside libc, where no preloaded library sees it. It returns the error.
 * Where the file system cannot allocate, the size is set instead: the file reads the same. */
static int allocate(int fd, off_t offset, off_t bytes) {
    struct stat now;
    int saved = errno, error = 0;
    if (traced_allocate(fd, 0, offset, bytes)) error = errno;
    if (error == EOPNOTSUPP) {
        if (fstat(fd, &now)) error = errno;
        else error = now.st_size >= offset + bytes ? 0 : traced_truncate(fd, offset + bytes) ? errno : 0;
    }
    errno = saved;
    return error;
}
EXPORT int posix_fallocate(int fd, off_t offset, off_t bytes) { return allocate(fd, offset, bytes); }
EXPORT int posix_fallocate64(int fd, off64_t offset, off64_t bytes) { return allocate(fd, offset, bytes); }

EXPORT int fsync(int fd) { return traced_sync(C_FSYNC, SYS_fsync, fd); }
EXPORT int fdatasync(int fd) { return traced_sync(C_FDATASYNC, SYS_fdatasync, fd); }
/* A hint to start writing, with no promise about the disk's cache or the file's size: nothing is durable. */
EXPORT int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags) {
    struct target target;
    if (!take(fd, &target)) return (int)syscall(SYS_sync_file_range, fd, offset, bytes, flags);
    struct fault fault = judge(BIT(C_SYNC_FILE_RANGE), target.path, target.inode, 0, 0);
    uint64_t number = begin_sync(C_SYNC_FILE_RANGE, target.inode);
    int result = struck(fault) ? -1 : 0;
    give();
    if (!result && !skip_syncs) result = (int)syscall(SYS_sync_file_range, fd, offset, bytes, flags);
    return end_sync(C_SYNC_FILE_RANGE, target.inode, number, result);
}
static int sync_everything(int fd) { /* fd < 0: all file systems */
    uint64_t number = 0;
    if (root_bytes) {
        pthread_mutex_lock(&lock);
        number = begin_sync(C_FSYNC, 0);
        give();
    }
    int result = skip_syncs ? 0 : fd < 0 ? (int)syscall(SYS_sync) : (int)syscall(SYS_syncfs, fd);
    return root_bytes ? end_sync(C_FSYNC, 0, number, result) : result;
}
EXPORT void sync(void) { sync_everything(-1); }
EXPORT int syncfs(int fd) { return sync_everything(fd); }

EXPORT void *mmap(void *start, size_t bytes, int protection, int flags, int fd, off_t offset) {
    struct target target;
    void *at = (void *)syscall(SYS_mmap, start, bytes, protection, flags, fd, offset);
    if (at == MAP_FAILED || fd < 0 || !(flags & MAP_SHARED) || !take(fd, &target)) return at;
    if (protection & PROT_WRITE) append_text(K_MAPPED, 0, target.inode, 0, target.path, NULL);
    for (int i = 0; i < MAX_MAPS; i++) { /* msync names an address, its fault rules a path */
        if (maps[i].bytes && maps[i].start != at) continue;
        maps[i].start = at;
        maps[i].bytes = bytes;
        maps[i].inode = target.inode;
        snprintf(maps[i].path, sizeof maps[i].path, "%s", target.path);
        break;
    }
    give();
    return at;
}
EXPORT void *mmap64(void *start, size_t bytes, int protection, int flags, int fd, off64_t offset) {
    return mmap(start, bytes, protection, flags, fd, offset);
}
EXPORT int munmap(void *start, size_t bytes) {
    if (root_bytes) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < MAX_MAPS; i++)
            if (maps[i].bytes && maps[i].start == start) maps[i].bytes = 0;
        give();
    }
    return (int)syscall(SYS_munmap, start, bytes);
}
EXPORT int msync(void *start, size_t bytes, int flags) {
    int i = 0;
    if (!root_bytes) return (int)syscall(SYS_msync, start, bytes, flags);
    pthread_mutex_lock(&lock);
    while (i < MAX_MAPS && !(maps[i].bytes && (char *)start >= maps[i].start &&
                             (char *)start < maps[i].start + maps[i].bytes))
        i++;
    if (i == MAX_MAPS) {
        give();
        return (int)syscall(SYS_msync, start, bytes, flags);
    }
    uint64_t file = maps[i].inode;
    struct fault fault = judge(BIT(C_MSYNC), maps[i].path, file, 0, 0);
    uint64_t number = begin_sync(C_MSYNC, file);
    int result = struck(fault) ? -1 : 0;
    give();
    if (!result && !skip_syncs) result = (int)syscall(SYS_msync, start, bytes, flags);
    return end_sync(C_MSYNC, file, number, result);
}

EXPORT int rename(const char *old, const char *new) { return traced_rename(AT_FDCWD, old, AT_FDCWD, new, 0); }
EXPORT int renameat(int old_dir, const char *old, int new_dir, const char *new) {
    return traced_rename(old_dir, old, new_dir, new, 0);
}
EXPORT int renameat2(int old_dir, const char *old, int new_dir, const char *new, unsigned flags) {
    return traced_rename(old_dir, old, new_dir, new, flags);
}
EXPORT int unlink(const char *path) { return traced_unlink(AT_FDCWD, path, 0); }
EXPORT int unlinkat(int dir, const char *path, int flags) { return traced_unlink(dir, path, flags); }
EXPORT int rmdir(const char *path) { return traced_unlink(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int remove(const char *path) {
    int result = traced_unlink(AT_FDCWD, path, 0);
    return result && errno == EISDIR ? traced_unlink(AT_FDCWD, path, AT_REMOVEDIR) : result;
}
EXPORT int link(const char *old, const char *new) { return traced_link(AT_FDCWD, old, AT_FDCWD, new, 0); }
EXPORT int linkat(int old_dir, const char *old, int new_dir, const char *new, int flags) {
    return traced_link(old_dir, old, new_dir, new, flags);
}
EXPORT int mkdir(const char *path, mode_t mode) { return traced_mkdir(AT_FDCWD, path, mode); }
EXPORT int mkdirat(int dir, const char *path, mode_t mode) { return traced_mkdir(dir, path, mode); }
EXPORT int symlinkat(const char *to, int dir, const char *path) {
    char full[PATH_MAX];
    int result = (int)syscall(SYS_symlinkat, to, dir, path);
    if (!result && root_bytes && absolute(dir, path, full) && below_root(full)) {
        pthread_mutex_lock(&lock);
        append_text(K_UNMODELLED, 0, 0, 0, "a symbolic link", NULL);
        give();
    }
    return result;
}
EXPORT int symlink(const char *to, const char *path) { return symlinkat(to, AT_FDCWD, path); }

/* Copies inside the kernel: refused for files below the root as a kernel without them would, so that callers
 * copy with read and write, which the trace sees. Every caller must be ready for that. */
static int refuse_copy(int to) {
    struct target target;
    if (!take(to, &target)) return 0;
    give();
    return 1;
}
EXPORT ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t bytes,
                               unsigned flags) {
    if (refuse_copy(to)) {
        errno = EXDEV;
        return -1;
    }
    return syscall(SYS_copy_file_range, from, from_at, to, to_at, bytes, flags);
}
static ssize_t send_file(int to, int from, off_t *at, size_t bytes) {
    if (refuse_copy(to)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_sendfile, to, from, at, bytes);
}
EXPORT ssize_t sendfile(int to, int from, off_t *at, size_t bytes) { return send_file(to, from, at, bytes); }
EXPORT ssize_t sendfile64(int to, int from, off64_t *at, size_t bytes) {
    return send_file(to, from, at, bytes);
}
