"""A log-linear histogram of times: fixed memory, any range, each value off by less than 0.8 %.

The buckets of HdrHistogram (Gil Tene): below 256 ns one bucket per nanosecond; above, each power of two is
128 buckets of the same width, so that a bucket's width is at most 1/128 of what it holds. histogram.py reads
percentiles out of the counts.
"""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    SUB_BITS = 7                      # 128 buckets to a power of two
    N_BUCKETS = (64 - SUB_BITS) << SUB_BITS   # up to 2^63 - 1

cdef extern from *:
    int __builtin_clzll(unsigned long long number) noexcept nogil


cdef inline void histogram_add(uint64_t* counts, int64_t value_ns) noexcept nogil:
    """One more of `value_ns`; a negative one, of a clock that went back, counts as 0."""
    cdef uint64_t value = <uint64_t> value_ns if value_ns > 0 else 0
    cdef int shift = 0
    if value >> (SUB_BITS + 1):
        shift = 63 - __builtin_clzll(value) - SUB_BITS
    counts[(<uint64_t> shift << SUB_BITS) + (value >> shift)] += 1
