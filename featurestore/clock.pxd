# The machine's clocks, for compiled code.
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, timespec

cdef extern from "<time.h>" nogil:
    const clockid_t CLOCK_BOOTTIME


cdef inline int64_t clock_monotonic_ns() noexcept nogil:
    """Goes on evenly from wherever it began."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef inline int64_t clock_wall_ms() noexcept nogil:
    """Since 1970, UTC; may be set back."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000


cdef inline int64_t clock_boot_ms() noexcept nogil:
    """Since the machine was started, sleep included; nobody sets it."""
    cdef timespec now
    clock_gettime(CLOCK_BOOTTIME, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000
