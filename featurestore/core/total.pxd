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
    #include <string.h>

    #define FS_ROUNDED_UP (1.0 + 0x1p-40)
    #define FS_ROUNDED_ONCE 0x1p-52
    #define FS_ROUNDED_TWICE 0x1p-103
    #define FS_LEAST 0x1p-1074
    #define FS_PRODUCT_EXACT 0x1p-900
    #define FS_ROUNDED_BIT 0x8000000000000000ULL

    typedef double fs_two __attribute__((vector_size(16)));
    typedef int64_t fs_bits __attribute__((vector_size(16)));

    static inline fs_two fs_two_sums(fs_two a, fs_two b, fs_two *lost) {
        fs_two total = a + b, of_b = total - a;
        *lost = (a - (total - of_b)) + (b - of_b);
        return total;
    }

    typedef struct { double high[2], low[2]; int64_t n; int below, rounded; } fs_lanes;
    enum { FS_ABOVE, FS_BELOW, FS_ALL };

    /* Most of what is summed are whole numbers, of seconds, bytes or points. Values >= 0 that are multiples
       of one unit lose nothing as long as they sum to less than 2^53 units, and asking for that costs less
       than asking each addition what it lost: adding 1.5 * 2^52 units rounds a value to a multiple of the
       unit (a great one, of several), so what that changes is no multiple. The first such value is seldom
       far: it is looked for block by block. */
    #define FS_UNIT 0x1p-8
    #define FS_MOST (0x1p52 * FS_UNIT)
    enum { FS_BLOCK = 32 };

    static inline fs_bits fs_no_units(fs_two x) {
        const fs_two units = {0x1.8p52 * FS_UNIT, 0x1.8p52 * FS_UNIT};
        return (x + units) - units != x;
    }

    static inline int fs_any(fs_bits x) {
        return (x[0] | x[1]) != 0;
    }

    /* As fs_pairs of FS_ABOVE, without asking what was lost; rounded: not all are multiples of the unit. */
    static inline fs_lanes fs_unit_pairs(const void *first, size_t stride, size_t n_pairs) {
        const fs_two zero = {0, 0};
        const double *at = first;
        fs_bits n = {0, 0}, signs = n, other = n;
        fs_two high = zero;
        for (size_t i = 0, end; i < n_pairs && !fs_any(other);) {
            end = n_pairs - i < FS_BLOCK ? n_pairs : i + FS_BLOCK;
            for (; i < end; i++, at += 2 * stride) {
                fs_two x = {at[0], at[stride]};
                n -= x == x;
                signs |= (fs_bits)x;
                x = (fs_two)((fs_bits)x & (x > zero));
                high += x;
                other |= fs_no_units(x);
            }
        }
        return (fs_lanes){{high[0], high[1]}, {0, 0}, n[0] + n[1], (signs[0] | signs[1]) < 0,
                          fs_any(other) || !(high[0] + high[1] < FS_MOST)};
    }

    /* The same of sums as they are kept, `first` the first's `above`, that lost nothing and have nothing
       below 0; `counts`, as far apart, are of how many values they are. */
    static inline fs_lanes fs_unit_sums(const void *first, const void *counts, size_t stride,
                                        size_t n_pairs) {
        const double *at = first;
        const int64_t *count = counts;
        fs_bits n = {0, 0}, other = n, rest[2];
        fs_two high = {0, 0};
        for (size_t i = 0, end; i < n_pairs && !fs_any(other);) {
            end = n_pairs - i < FS_BLOCK ? n_pairs : i + FS_BLOCK;
            for (; i < end; i++, at += 2 * stride, count += 2 * stride) {
                fs_two x = {at[0], at[stride]};
                n += (fs_bits){count[0], count[stride]};
                memcpy(&rest[0], at + 1, sizeof(fs_bits));
                memcpy(&rest[1], at + 1 + stride, sizeof(fs_bits));
                high += x;
                other |= fs_no_units(x) | rest[0] | rest[1];
            }
        }
        return (fs_lanes){{high[0], high[1]}, {0, 0}, n[0] + n[1], 0,
                          fs_any(other) || !(high[0] + high[1] < FS_MOST)};
    }

    /* Of 2 n_pairs words, `stride` apart: the values above 0, the magnitudes of those below, or all. */
    static inline __attribute__((always_inline)) fs_lanes fs_pairs(const void *first, size_t stride,
                                                                   size_t n_pairs, int which) {
        const fs_bits sign = {INT64_MIN, INT64_MIN};
        const fs_two zero = {0, 0};
        const double *at = first;
        fs_bits n = {0, 0}, signs = n, rounded = n;
        fs_two high = zero, low = zero, lost, left;
        for (size_t i = 0; i < n_pairs; i++, at += 2 * stride) {
            fs_two x = {at[0], at[stride]};
            n -= x == x;
            signs |= (fs_bits)x;
            if (which == FS_BELOW)
                x = (fs_two)((fs_bits)x ^ sign);
            if (which != FS_ALL)
                x = (fs_two)((fs_bits)x & (x > zero));
            high = fs_two_sums(high, x, &lost);
            low = fs_two_sums(low, lost, &left);
            rounded |= (fs_bits)left;
        }
        return (fs_lanes){{high[0], high[1]}, {low[0], low[1]}, n[0] + n[1], (signs[0] | signs[1]) < 0,
                          fs_any(rounded)};
    }
    """
    const double ROUNDED_UP "FS_ROUNDED_UP"            # a bound from what was rounded some thousand times
    const double ROUNDED_ONCE "FS_ROUNDED_ONCE"
    const double ROUNDED_TWICE "FS_ROUNDED_TWICE"
    const double LEAST "FS_LEAST"                      # above 0
    const double PRODUCT_EXACT "FS_PRODUCT_EXACT"      # what rounds a lesser product may be no double
    const uint64_t ROUNDED_BIT "FS_ROUNDED_BIT"

    enum:
        ABOVE "FS_ABOVE"         # the values above 0
        BELOW "FS_BELOW"         # the magnitudes of those below
        ALL "FS_ALL"

    ctypedef struct Lanes "fs_lanes":      # what the even ones of some words sum to, and the odd ones
        double high[2]           # high + low is that exactly, unless rounded
        double low[2]
        int64_t n                # how many are not NaN
        bint below               # whether any may be below 0
        bint rounded             # then none of this means anything, and there is a slower way

    Lanes unit_pairs "fs_unit_pairs"(const void* first, size_t stride, size_t n_pairs) noexcept
    Lanes unit_sums "fs_unit_sums"(const void* first, const void* counts, size_t stride,
                                   size_t n_pairs) noexcept
    Lanes pairs "fs_pairs"(const void* first, size_t stride, size_t n_pairs, int which) noexcept

ctypedef struct Sum:             # as it is added to: lost is not 0 where `low` was rounded
    double above
    double below
    double low
    double lost

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
    if lost != 0.0 or sum.low != sum.low:    # whole numbers lose nothing below 2^53
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


cdef inline void _add_above(Sum* sum, const Lanes* lanes) noexcept nogil:
    cdef double lost
    cdef int i
    for i in range(2):
        sum.above = two_sum(sum.above, lanes.high[i], &lost)
        _lose(sum, lost)
        _lose(sum, lanes.low[i])


cdef inline void _add_below(Sum* sum, const Lanes* lanes) noexcept nogil:
    cdef double lost
    cdef int i
    for i in range(2):
        sum.below = two_sum(sum.below, lanes.high[i], &lost)
        _lose(sum, -lost)
        _lose(sum, -lanes.low[i])


cdef inline void _add_low(Sum* sum, const Lanes* lanes) noexcept nogil:
    cdef int i
    for i in range(2):
        _lose(sum, lanes.high[i])
        _lose(sum, lanes.low[i])


cdef inline size_t _add_pairs(Sum* sum, const Word* first, size_t stride, size_t n,
                              int64_t* counted) noexcept nogil:
    """sum_add_some of those of n values that make pairs. Returns of how many: 0 where lanes do not hold what
    they sum to."""
    cdef Lanes above = unit_pairs(first, stride, n // 2), below
    if above.rounded:
        above = pairs(first, stride, n // 2, ABOVE)
    below.rounded = False
    if above.below:
        below = pairs(first, stride, n // 2, BELOW)
    if above.rounded or below.rounded:
        return 0
    counted[0] += above.n
    _add_above(sum, &above)
    if above.below:
        _add_below(sum, &below)
    return n - n % 2


cdef inline void sum_add_some(Sum* sum, const Word* first, size_t stride, size_t n,
                              int64_t* counted) noexcept nogil:
    """Adds n values, `stride` words apart, and to `counted` how many are not NaN."""
    cdef size_t i = _add_pairs(sum, first, stride, n, counted) if n >= MANY else 0
    cdef double x
    while i < n:
        x = first[i * stride].f
        counted[0] += x == x
        sum_add(sum, x)
        i += 1


cdef inline size_t _join_pairs(Sum* sum, const Word* first, const Word* counts, size_t stride, size_t n,
                               int64_t* counted) noexcept nogil:
    """As _add_pairs, of sum_join_some."""
    cdef Lanes above = unit_sums(first, counts, stride, n // 2), below, low
    cdef uint64_t any_below = 0
    cdef int64_t n_values = above.n
    cdef size_t i
    n -= n % 2
    if above.rounded:
        n_values = 0
        for i in range(n):
            n_values += counts[i * stride].i
            any_below |= first[i * stride + 1].u
        above = pairs(first, stride, n // 2, ALL)
        low = pairs(first + 2, stride, n // 2, ALL)
        if above.rounded or low.rounded or any_below & ROUNDED_BIT:
            return 0
        if any_below:
            below = pairs(first + 1, stride, n // 2, ALL)
            if below.rounded:
                return 0
            _add_below(sum, &below)
        _add_low(sum, &low)
    _add_above(sum, &above)
    counted[0] += n_values
    return n


cdef inline void sum_join_some(Sum* sum, const Word* first, const Word* counts, size_t stride, size_t n,
                               int64_t* counted) noexcept nogil:
    """Joins n sums as they are kept, `stride` words apart, and adds to `counted` of how many values they are:
    `counts`, as far apart."""
    cdef size_t i = _join_pairs(sum, first, counts, stride, n, counted) if n >= MANY else 0
    cdef Sum other
    while i < n:
        counted[0] += counts[i * stride].i
        other = sum_open(&first[i * stride])
        sum_join(sum, &other)
        i += 1


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
    total.high = above
    total.low = total.off = 0.0
    if at[1].u == 0 and at[2].u == 0:
        return total
    total.high = two_sum(above, -below, &total.low)
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
    return plan_structs() | {"core/total.pxd": (sizeof(Sum), sizeof(Total))}
