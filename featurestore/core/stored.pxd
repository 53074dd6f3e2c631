# What every reader of stored bytes asks of them, and the order in which fingerprints are stored.
from libc.stdint cimport int64_t, uint8_t, uint64_t

from featurestore.core.plan cimport FAR_MS, UNSET_MS


cdef inline bint is_clock(int64_t t) noexcept nogil:
    return t == UNSET_MS or -FAR_MS <= t <= FAR_MS


cdef inline bint all_zero(const uint8_t* at, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if at[i]:
            return False
    return True


cdef inline int by_words(const uint64_t* x, const uint64_t* y) noexcept nogil:
    """As qsort asks, of two fingerprints."""
    if x[0] != y[0]:
        return 1 if x[0] > y[0] else -1
    return 0 if x[1] == y[1] else 1 if x[1] > y[1] else -1
