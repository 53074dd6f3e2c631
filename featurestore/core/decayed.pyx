"""Exponentially decayed count and sum; decayed.pxd has the picture.

Idea and paper: Cormode, Shkapenyuk, Srivastava, Xu, "Forward decay: a practical time decay model for
streaming systems", ICDE 2009. An event's weight is reckoned forward from a landmark, 2^((t - landmark) /
half-life), which does not change as time goes by; only a read divides by how far the landmark lies behind.
The landmark is a multiple of the half-life (its number is the *era*, that of the newest event), so moving it
multiplies every sum by a power of two, which loses nothing. Where a sum would leave the doubles, the landmark
moves ahead of the newest event: what is kept stays finite, and a value can be had again once it has faded.

Guarantee. A value is that of all events since the row's sums were last empty. For reads no earlier than the
newest event there is no bound to give: the only error is rounding. What is summed cannot be taken apart, so
earlier ones have bounds only: at most everything, at the weight that it would have then, but for the newest
event. Sums are kept in two words, the second what the first lost (Neumaier,
1974), so that the order of arrival moves a value by about 1e-16 of the absolute values added up, whatever
their number.

Associative and commutative up to that rounding; not inverted. Time and space O(1). Every operation is an
IEEE addition, multiplication or square root, never libm's exp2, whose last bit differs between machines.
"""

from libc.math cimport INFINITY, NAN, fabs, ldexp, sqrt
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from featurestore.core.arena cimport arena_alloc, arena_at, arena_free
from featurestore.core.head cimport LOG_DECAYED

from featurestore.core.structs import same_structs

same_structs(__name__, decayed_structs())

cdef extern from * nogil:
    """
    #define FS_LOST 0x1p-1040
    """
    const double LOST "FS_LOST"  # the least double, 2^34 times

cdef enum:
    ROOTS = 6                    # 2^(1/2), 2^(1/4) ... 2^(1/64)
    AHEAD = 64                   # eras: 2^62 of the greatest values fit then
    EXPORT_HEAD_BYTES = 16

ctypedef struct Sum:
    double high
    double rest                  # what adding to `high` has lost

ctypedef struct Decayed:         # a block; without `above` and `below` where no field is summed
    int64_t newest_ms
    int64_t era                  # of the newest event: floor(newest / half-life); up to AHEAD later
    Sum weight
    Sum above                    # of the values >= 0
    Sum below                    # of the magnitudes of those < 0

cdef double[ROOTS] roots


cdef void fill_roots() noexcept nogil:
    cdef double root = 2.0
    cdef int i
    for i in range(ROOTS):
        root = sqrt(root)
        roots[i] = root


fill_roots()


cdef inline size_t _bytes(const DecayedC* c) noexcept nogil:
    return sizeof(Decayed) if c.sums else sizeof(Decayed) - 2 * sizeof(Sum)


cdef inline int64_t _era(int64_t time_ms, int64_t half_life_ms) noexcept nogil:
    """floor(time / half-life), for times before 1970 too."""
    cdef int64_t era = time_ms // half_life_ms
    return era - 1 if era * half_life_ms > time_ms else era


cdef double _exp2(double x) noexcept nogil:
    """2^x for 0 <= x <= 1, to 2e-15: by the roots of two for x's first six bits, by Taylor's series for the
    rest."""
    cdef double power = 1.0, y
    cdef int i
    for i in range(ROOTS):
        x *= 2.0
        if x >= 1.0:
            x -= 1.0
            power *= roots[i]
    y = x * (0.6931471805599453 / 64.0)
    return power * (1.0 + y * (1.0 + y * (1 / 2.0 + y * (1 / 6.0 + y * (1 / 24.0 + y * (
        1 / 120.0 + y * (1 / 720.0)))))))


cdef inline void _sum_add(Sum* sum, double x) noexcept nogil:
    cdef double high = sum.high + x
    if fabs(sum.high) >= fabs(x):
        sum.rest += (sum.high - high) + x
    else:
        sum.rest += (x - high) + sum.high
    sum.high = high


cdef inline void _sum_shift(Sum* sum, int exponent) noexcept nogil:
    sum.high = ldexp(sum.high, exponent)
    sum.rest = ldexp(sum.rest, exponent)


cdef inline int _exponent(int64_t eras) noexcept nogil:
    """Far enough that ldexp gives 0 or infinity, and within an int."""
    return -4096 if eras > 4096 else 4096 if eras < -4096 else <int>-eras


cdef inline void _move_to(Decayed* state, const DecayedC* c, int64_t era) noexcept nogil:
    """Moves the landmark to a later era."""
    cdef int exponent = _exponent(era - state.era)
    _sum_shift(&state.weight, exponent)
    if c.sums:
        _sum_shift(&state.above, exponent)
        _sum_shift(&state.below, exponent)
    state.era = era


cdef inline double _weight_of(const Decayed* state, const DecayedC* c, int64_t time_ms,
                              int64_t era) noexcept nogil:
    return ldexp(_exp2(<double>(time_ms - era * c.half_life_ms) / <double>c.half_life_ms),
                 _exponent(state.era - era))


cdef int decayed_add(Arena* arena, LogHead* head, const DecayedC* c, int64_t time_ms, double value,
                     int64_t horizon_ms) noexcept nogil:
    cdef int64_t era = _era(time_ms, c.half_life_ms)
    cdef Decayed* state = NULL
    cdef Sum* into
    cdef double weight
    if head.block == 0:
        head.block = arena_alloc(arena, _bytes(c))
        if head.block == 0:
            return -1
    else:
        state = <Decayed*>arena_at(arena, head.block)
    if state == NULL or state.newest_ms < horizon_ms:
        # What has expired is absent, whether or not a sweep has freed it.
        state = <Decayed*>arena_at(arena, head.block)
        memset(state, 0, _bytes(c))
        state.newest_ms = time_ms
        state.era = era
    if era > state.era:
        _move_to(state, c, era)
    if time_ms > state.newest_ms:
        state.newest_ms = time_ms
    weight = _weight_of(state, c, time_ms, era)
    if c.sums:
        into = &state.above if value >= 0.0 else &state.below
        if not into.high + fabs(value) * weight < INFINITY:
            _move_to(state, c, _era(state.newest_ms, c.half_life_ms) + AHEAD)
            weight = _weight_of(state, c, time_ms, era)
        _sum_add(into, fabs(value) * weight)
    _sum_add(&state.weight, weight)
    return 0


cdef inline double _left(const Decayed* state, const DecayedC* c, int64_t at_ms) noexcept nogil:
    """What is left at at_ms of one at the landmark."""
    cdef int64_t era = _era(at_ms, c.half_life_ms)
    cdef double since = <double>(at_ms - era * c.half_life_ms) / <double>c.half_life_ms
    # 2^-(eras + since) as 2^(1 - since) / 2^(eras + 1): _exp2 takes what is below 1.
    cdef double left = 1.0 if since == 0.0 else 0.5 * _exp2(1.0 - since)
    return ldexp(left, _exponent(era - state.era))


cdef DecayedPast decayed_read_past(const Arena* arena, const LogHead* head, const DecayedC* c,
                                   int64_t at_ms) noexcept nogil:
    cdef const Decayed* state = <const Decayed*>arena_at(arena, head.block)
    cdef double left = _left(state, c, at_ms)
    cdef DecayedPast past
    cdef double newest = _weight_of(state, c, state.newest_ms, _era(state.newest_ms, c.half_life_ms))
    past.is_only = state.weight.high == newest and state.weight.rest == 0.0
    past.weight = (state.weight.high + state.weight.rest) * left
    past.newest = newest * left
    past.above = past.below = 0.0
    if c.sums:
        past.above = (state.above.high + state.above.rest) * left
        past.below = (state.below.high + state.below.rest) * left
    past.lost = LOST * left
    return past


cdef DecayedValue decayed_read(const Arena* arena, const LogHead* head, const DecayedC* c,
                               int64_t at_ms) noexcept nogil:
    cdef const Decayed* state = <const Decayed*>arena_at(arena, head.block)
    cdef double left = _left(state, c, at_ms)
    cdef double above, below
    cdef DecayedValue value
    value.weight = (state.weight.high + state.weight.rest) * left
    value.total = 0.0
    if c.sums:
        above = state.above.high + state.above.rest
        below = state.below.high + state.below.rest
        value.total = (above - below) * left
        if not (above * left < INFINITY and below * left < INFINITY):
            value.total = NAN                # as of a window: not before the parts of both signs are doubles
    value.mean = value.total / value.weight if value.weight > 0.0 else NAN
    return value


cdef int64_t decayed_newest_ms(const Arena* arena, const LogHead* head) noexcept nogil:
    return (<const Decayed*>arena_at(arena, head.block)).newest_ms


cdef void decayed_free(Arena* arena, LogHead* head, const DecayedC* c) noexcept nogil:
    if head.block:
        arena_free(arena, head.block, _bytes(c))
    head.block = 0


cdef int decayed_clone(Arena* arena, const LogHead* head, const DecayedC* c, LogHead* copy) noexcept nogil:
    copy[0] = head[0]
    if head.block == 0:
        return 0
    copy.block = arena_alloc(arena, _bytes(c))
    if copy.block == 0:
        return -1
    memcpy(arena_at(arena, copy.block), arena_at(arena, head.block), _bytes(c))
    return 0


cdef size_t decayed_export_bytes(const DecayedC* c) noexcept nogil:
    return EXPORT_HEAD_BYTES + _bytes(c)


cdef void decayed_export(const Arena* arena, const LogHead* head, const DecayedC* c,
                         uint8_t* out) noexcept nogil:
    cdef const Decayed* state = <const Decayed*>arena_at(arena, head.block)
    cdef uint32_t n_words = <uint32_t>(_bytes(c) // 8)
    memset(out, 0, EXPORT_HEAD_BYTES)
    memcpy(out, &head.view_id, 2)
    out[2] = EXPORT_DECAYED
    if state.era != _era(state.newest_ms, c.half_life_ms):
        out[2] = EXPORT_DECAYED_AHEAD
    memcpy(out + 4, &n_words, 4)
    memcpy(out + EXPORT_HEAD_BYTES, state, _bytes(c))


cdef int64_t decayed_import(Arena* arena, LogHead* head, const DecayedC* c, const uint8_t* data,
                            size_t n) noexcept nogil:
    cdef Decayed* state
    cdef uint32_t n_words
    cdef int64_t ahead
    memset(head, 0, sizeof(LogHead))
    if n < EXPORT_HEAD_BYTES + _bytes(c):
        return 0
    memcpy(&head.view_id, data, 2)
    memcpy(&n_words, data + 4, 4)
    if (data[2] != EXPORT_DECAYED and data[2] != EXPORT_DECAYED_AHEAD) or n_words != _bytes(c) // 8:
        return 0
    head.kind = LOG_DECAYED
    head.block = arena_alloc(arena, _bytes(c))
    if head.block == 0:
        return -1
    state = <Decayed*>arena_at(arena, head.block)
    memcpy(state, data + EXPORT_HEAD_BYTES, _bytes(c))
    ahead = state.era - _era(state.newest_ms, c.half_life_ms)
    if not (1 <= ahead <= AHEAD if data[2] == EXPORT_DECAYED_AHEAD else ahead == 0):
        decayed_free(arena, head, c)
        return 0
    return <int64_t>(EXPORT_HEAD_BYTES + _bytes(c))
