# Sums of doubles that keep what they lost in rounding, so that what is exact can be told from what is not.
#
# A sum as it is kept, three words: the sum `above` of the values >= 0, the sum `below` of the magnitudes of
# the others (both rounded; what lies across a window's edge has bounds by them), and `low`, what adding to
# these two has lost. Of n values:
#
#   sum = above - below + low     exactly, unless the sign bit of `below` is set: then adding to `low` was
#                                 rounded as well, by at most ROUNDED_TWICE n^2 (above + below)
#   low is NaN                    not known, of layouts without it: the sum is above - below, off by at most
#                                 ROUNDED_ONCE n (above + below)
#
# What an addition loses is a double, and five more operations tell it (TwoSum: Knuth, TAOCP 2, 4.2.2;
# summed: Ogita, Rump and Oishi, "Accurate sum and dot product", SISC 2005). Each of at most 3 n additions to
# `low` makes at most 2^-53 n (above + below), and loses 2^-53 of it. So whatever the order and the grouping,
# a sum reads as one double, that of the exact sum, as long as its values' bits lie within about 2^100 of one
# another.
# Nothing here may be contracted or reordered by the compiler: setup.py has -ffp-contract=off, no fast math.
from libc.math cimport INFINITY, NAN, fabs, fma, nextafter
from libc.stdint cimport int64_t, uint64_t

from featurestore.core.plan cimport Word, plan_structs

cdef enum:
    MANY = 16                    # values at which it pays to sum them in two lanes

cdef extern from * nogil:
    """
    #define FS_ROUNDED_UP (1.0 + 0x1p-40)
    #define FS_ROUNDED_ONCE 0x1p-52
    #define FS_ROUNDED_TWICE 0x1p-103
    #define FS_LEAST 0x1p-1074
    #define FS_PRODUCT_EXACT 0x1p-900
    #define FS_ROUNDED_BIT 0x8000000000000000ULL

    typedef struct { double above, below, low, lost; } fs_sum;
    typedef double fs_two __attribute__((vector_size(16)));
    typedef int64_t fs_bits __attribute__((vector_size(16)));

    static inline fs_two fs_two_sums(fs_two a, fs_two b, fs_two *lost) {
        fs_two total = a + b, of_b = total - a;
        *lost = (a - (total - of_b)) + (b - of_b);
        return total;
    }

    static inline fs_two fs_magnitudes(fs_two x) {
        const fs_bits but_sign = {INT64_MAX, INT64_MAX};
        return (fs_two)((fs_bits)x & but_sign);
    }

    /* Values `stride` words apart, the even ones summed in one lane and the odd ones in the other. Returns
       how many are not NaN. */
    static inline int64_t fs_sum_pairs(const void *first, size_t stride, size_t n_pairs, fs_sum *even,
                                       fs_sum *odd) {
        const double *at = first;
        fs_two above = {0, 0}, below = above, low = above, lost = above, up, down, again;
        fs_bits counted = {0, 0};
        const fs_two zero = {0, 0};
        for (size_t i = 0; i < n_pairs; i++, at += 2 * stride) {
            fs_two x = {at[0], at[stride]};
            counted -= x == x;
            above = fs_two_sums(above, (fs_two)((fs_bits)x & (x > zero)), &up);
            below = fs_two_sums(below, (fs_two)((fs_bits)-x & (x < zero)), &down);
            low = fs_two_sums(low, up - down, &again);    /* one of these is 0 */
            lost += fs_magnitudes(again);
        }
        *even = (fs_sum){above[0], below[0], low[0], lost[0]};
        *odd = (fs_sum){above[1], below[1], low[1], lost[1]};
        return counted[0] + counted[1];
    }
    """
    const double ROUNDED_UP "FS_ROUNDED_UP"            # a bound from what was rounded some thousand times
    const double ROUNDED_ONCE "FS_ROUNDED_ONCE"
    const double ROUNDED_TWICE "FS_ROUNDED_TWICE"
    const double LEAST "FS_LEAST"                      # above 0
    const double PRODUCT_EXACT "FS_PRODUCT_EXACT"      # what rounds a lesser product may be no double
    const uint64_t ROUNDED_BIT "FS_ROUNDED_BIT"

    ctypedef struct Sum "fs_sum":          # as it is added to: lost is not 0 where `low` was rounded
        double above
        double below
        double low
        double lost

    int64_t sum_pairs "fs_sum_pairs"(const void* first, size_t stride, size_t n_pairs, Sum* even,
                                     Sum* odd) noexcept

ctypedef struct Total:           # as it is read: high + low, give or take `off`
    double high
    double low
    double off


cdef inline double two_sum(double a, double b, double* lost) noexcept nogil:
    """a + b; `lost` is what that is less than the truth. NaN where a sum on the way is no double."""
    cdef double total = a + b
    cdef double of_b = total - a
    lost[0] = (a - (total - of_b)) + (b - of_b)
    return total


cdef inline double sum_down(double a, double b) noexcept nogil:
    """a + b, rounded down."""
    cdef double lost, total = two_sum(a, b, &lost)
    return nextafter(total, -INFINITY) if lost < 0.0 else total


cdef inline double sum_up(double a, double b) noexcept nogil:
    cdef double lost, total = two_sum(a, b, &lost)
    return nextafter(total, INFINITY) if lost > 0.0 else total


# -- as it is kept -------------------------------------------------------------------------------------------

cdef inline Sum sum_open(const Word* at) noexcept nogil:
    cdef Sum sum
    sum.above = at[0].f
    sum.below = fabs(at[1].f)
    sum.low = at[2].f
    sum.lost = 1.0 if at[1].u & ROUNDED_BIT else 0.0
    return sum


cdef inline void sum_close(const Sum* sum, Word* at) noexcept nogil:
    at[0].f = sum.above
    at[1].f = sum.below
    if sum.lost != 0.0:
        at[1].u |= ROUNDED_BIT
    at[2].f = sum.low


cdef inline void _lose(Sum* sum, double lost) noexcept nogil:
    cdef double again
    sum.low = two_sum(sum.low, lost, &again)
    sum.lost += fabs(again)


cdef inline void sum_add(Sum* sum, double x) noexcept nogil:
    """Adds one value; NaN is none."""
    cdef double lost
    if x >= 0.0:
        sum.above = two_sum(sum.above, x, &lost)
        _lose(sum, lost)
    elif x < 0.0:
        sum.below = two_sum(sum.below, -x, &lost)
        _lose(sum, -lost)


cdef inline void sum_join(Sum* sum, const Sum* other) noexcept nogil:
    cdef double lost
    sum.above = two_sum(sum.above, other.above, &lost)
    _lose(sum, lost)
    sum.below = two_sum(sum.below, other.below, &lost)
    _lose(sum, -lost)
    _lose(sum, other.low)
    sum.lost += other.lost


cdef inline int64_t sum_add_some(Sum* sum, const Word* first, size_t stride, size_t n) noexcept nogil:
    """Adds n values, `stride` words apart. Returns how many are not NaN."""
    cdef Sum even, odd
    cdef int64_t counted = 0
    cdef double x
    if n >= MANY:
        counted = sum_pairs(first, stride, n // 2, &even, &odd)
        sum_join(sum, &even)
        sum_join(sum, &odd)
        first += 2 * (n // 2) * stride
        n %= 2
    while n:
        x = first.f
        counted += x == x
        sum_add(sum, x)
        first += stride
        n -= 1
    return counted


# -- as it is read -------------------------------------------------------------------------------------------

cdef inline void total_add(Total* total, double x) noexcept nogil:
    cdef double lost
    total.high = two_sum(total.high, x, &lost)
    total.low = two_sum(total.low, lost, &lost)
    total.off += fabs(lost)


cdef inline Total total_of(const Word* at, int64_t n) noexcept nogil:
    """The sum of n values."""
    cdef double above = at[0].f, below = fabs(at[1].f), rounded
    cdef Total total
    total.high = two_sum(above, -below, &total.low)
    total.off = 0.0
    if at[2].f != at[2].f:
        rounded = ROUNDED_ONCE * <double>n
        total.off = rounded * above + rounded * below
        return total
    if at[2].f != 0.0:
        total_add(&total, at[2].f)
    if at[1].u & ROUNDED_BIT:
        rounded = ROUNDED_TWICE * <double>n * <double>n
        total.off += rounded * above + rounded * below
    return total


cdef inline void total_less(Total* total, const Total* other) noexcept nogil:
    total_add(total, -other.high)
    total_add(total, -other.low)
    total.off += other.off


cdef inline void total_add_times(Total* total, double n, double x) noexcept nogil:
    """Adds n times x; n is a whole number."""
    cdef double product = n * x
    total_add(total, product)
    total_add(total, fma(n, x, -product))
    if fabs(product) < PRODUCT_EXACT and x != 0.0:
        total.off += LEAST


cdef inline Total total_share(const Total* total, double n) noexcept nogil:
    """An n-th, n > 0 a whole number."""
    cdef Total share
    cdef double left, lost
    share.high = total.high / n
    left = two_sum(fma(-share.high, n, total.high), total.low, &lost)
    share.low = left / n
    left = fabs(fma(-share.low, n, left)) + fabs(lost) + total.off
    share.off = left * ROUNDED_UP / n
    if left > 0.0 and share.off == 0.0:
        share.off = LEAST
    return share


cdef inline double total_least(const Total* total, double below) noexcept nogil:
    """It less `below` >= 0, rounded down."""
    return sum_down(total.high, sum_down(total.low, -sum_up(total.off * ROUNDED_UP, below)))


cdef inline double total_most(const Total* total, double above) noexcept nogil:
    return sum_up(total.high, sum_up(total.low, sum_up(total.off * ROUNDED_UP, above)))


cdef inline double total_value(const Total* total, double* lower, double* upper) noexcept nogil:
    """As one double. The bounds are equal where that is sure to be the truth, correctly rounded; else they
    are rounded outward."""
    cdef double value = total.high + total.low
    lower[0] = upper[0] = value
    if total.off != 0.0:
        lower[0] = total.high + sum_down(total.low, -total.off * ROUNDED_UP)
        upper[0] = total.high + sum_up(total.low, total.off * ROUNDED_UP)
        if lower[0] != upper[0]:
            lower[0] = total_least(total, 0.0)
            upper[0] = total_most(total, 0.0)
    return value


cdef inline void signs_most(const Word* at, int64_t n, double* above, double* below) noexcept nogil:
    """What the values of each sign sum to, in magnitude, at most."""
    cdef double rounded = ROUNDED_ONCE * <double>n
    above[0] = at[0].f
    below[0] = fabs(at[1].f)
    if at[2].f != 0.0 or at[1].u & ROUNDED_BIT or (above[0] > 0.0 and below[0] > 0.0):
        above[0] = sum_up(above[0], rounded * above[0])    # of one sign that lost nothing, it is that
        below[0] = sum_up(below[0], rounded * below[0])


# Compared at import: see core/structs.py.
cdef inline dict total_structs():
    return plan_structs() | {"core/total.pxd": (sizeof(Total),)}
