"""Derived features: arithmetic over other features of the same vector, after those were read.

A formula is a stack program of `program` over intervals: each slot holds a value and the bounds that the
true one lies between. This is the one place that computes them, whoever asks: Observe, peek, GetFeatures,
replay.

Guarantee (interval arithmetic: Moore, "Interval Analysis", 1966). Where every operand's true value lies
within its bounds, so does the formula's, and the value lies there too. "True" means computed in doubles from
the true operands: rounding is monotone, so that a rounded bound bounds every rounded result, and nothing is
rounded outwards. Operands that are exact (lower = upper) give a value that is. Bounds are as wide as if the
operands had nothing to do with each other: those of `a.count_1h - a.count_10m` may reach below 0.

    a + b    [a.lower + b.lower, a.upper + b.upper]          min, max, unary minus: of both ends
    a * b    least and greatest of the four products of ends, where 0 times a bound that is infinite is 0
    a / b    b does not reach 0: of the quotients of ends. It ends at 0: one-sided, [1, 2] / [0, 4] is
             [0.25, inf]. It goes across, or is nothing but 0: -inf to inf. 0 / b is 0 whatever b is

Dividing by zero gives what the schema's `else` says for the whole feature, without one NaN. Where the divisor
is certainly 0 that is exact; where it may be, the bounds hold `else` too. Arithmetic that leaves the doubles
gives NaN, and no `else`: it has a result, and no double says which. A NaN operand makes the feature NaN:
`else` is for divisions of numbers by zero.

The status answers the same question as any feature's, and never lets a zero or a NaN mean "I don't know":

    UNAVAILABLE   an operand is; or the value is NaN while the true one may be a number (the arithmetic left
                  the doubles; or the estimate of a divisor is 0, its bounds are not and there is no `else`)
    WARMING       an operand is. Computed from what there is so far; coverage is the least of the operands'
    NOT_FOUND     certainly nothing: the value is NaN, or no operand's window holds an event. A number is then
                  what the formula makes of nothing: count + count is 0
    PRESENT       a number, and some operand's window holds an event, or may. So failed / all is PRESENT and 0
                  where there were events and none failed: that zero is true, though `failed` itself is
                  NOT_FOUND
"""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from featurestore.core.plan cimport DerivedC, ServiceC
from featurestore.core.program cimport (
    OP_ADD, OP_DIV, OP_LOAD_NUMBER, OP_MIN, OP_MUL, OP_NEG, OP_NUMBER, OP_SUB, PROGRAM_MAX_DEPTH,
    CompiledFormula, OpC,
)
from featurestore.core.window cimport (
    STATUS_NOT_FOUND, STATUS_PRESENT, STATUS_UNAVAILABLE, STATUS_WARMING, Outputs, window_structs,
)

from featurestore.core.structs import same_structs

same_structs(__name__, window_structs())

ctypedef struct Interval:
    double value                 # finite, within the bounds
    double lower                 # below +inf
    double upper                 # above -inf

ctypedef struct Trouble:         # what came up on the way; `value` then has a stand-in in its slot
    bint by_zero                 # a value was divided by 0
    bint maybe_by_zero           # the true value may have been
    bint surely_by_zero
    bint not_finite              # a value left the doubles

cdef enum Made:
    MADE_NUMBER                  # what is in the result
    MADE_NOTHING                 # certainly no number
    MADE_UNKNOWN                 # perhaps a number, and no telling which


cdef inline double _least(double a, double b) noexcept nogil:
    return b if b < a else a


cdef inline double _greatest(double a, double b) noexcept nogil:
    return b if b > a else a


cdef inline double _times(double a, double b) noexcept nogil:
    return 0.0 if a == 0.0 or b == 0.0 else a * b


cdef inline void _multiply(const Interval* a, const Interval* b, Interval* out) noexcept nogil:
    cdef double p = _times(a.lower, b.lower), q = _times(a.lower, b.upper)
    cdef double r = _times(a.upper, b.lower), s = _times(a.upper, b.upper)
    out.lower = _least(_least(p, q), _least(r, s))
    out.upper = _greatest(_greatest(p, q), _greatest(r, s))


cdef inline void _divide(const Interval* a, const Interval* b, Interval* out) noexcept nogil:
    """Every quotient of a number in a and a number in b other than 0."""
    cdef double low = a.lower, high = a.upper, near = b.lower, far = b.upper
    if low == 0.0 and high == 0.0:
        out.lower = out.upper = 0.0
        return
    if near < 0.0 < far or near == far == 0.0:
        out.lower = -INFINITY
        out.upper = INFINITY
        return
    if far <= 0.0:                       # a / b is -a / -b: from here on 0 <= near <= far
        low, high = -a.upper, -a.lower
        near, far = -b.upper, -b.lower
    # Each quotient is least or greatest at an end of b; which one, the sign of the numerator says.
    if low >= 0.0:
        out.lower = low / far
    else:
        out.lower = low / near if near > 0.0 else -INFINITY
    if high <= 0.0:
        out.upper = high / far
    else:
        out.upper = high / near if near > 0.0 else INFINITY


cdef inline void _combine(uint8_t code, Interval* a, const Interval* b, Trouble* trouble) noexcept nogil:
    """a becomes `a code b`."""
    cdef bint exact = a.lower == a.upper and b.lower == b.upper
    cdef Interval out
    cdef double value
    if code == OP_DIV and b.lower <= 0.0 <= b.upper:
        trouble.maybe_by_zero = True
        trouble.by_zero |= b.value == 0.0
        trouble.surely_by_zero |= b.lower == b.upper
        exact = False
    if code == OP_ADD:
        value = a.value + b.value
        out.lower = a.lower + b.lower
        out.upper = a.upper + b.upper
    elif code == OP_SUB:
        value = a.value - b.value
        out.lower = a.lower - b.upper
        out.upper = a.upper - b.lower
    elif code == OP_MUL:
        value = a.value * b.value
        _multiply(a, b, &out)
    elif code == OP_DIV:
        value = a.value / b.value if b.value != 0.0 else 0.0
        _divide(a, b, &out)
    elif code == OP_MIN:
        value = _least(a.value, b.value)
        out.lower = _least(a.lower, b.lower)
        out.upper = _least(a.upper, b.upper)
    else:  # OP_MAX
        value = _greatest(a.value, b.value)
        out.lower = _greatest(a.lower, b.lower)
        out.upper = _greatest(a.upper, b.upper)
    if value - value != 0.0:
        trouble.not_finite = True
        value = 0.0
        out.lower = -INFINITY
        out.upper = INFINITY
    elif exact:
        out.lower = out.upper = value
    a.value = value
    a.lower = _least(out.lower, DBL_MAX)
    a.upper = _greatest(out.upper, -DBL_MAX)


cdef Made _compute(const DerivedC* derived, const Outputs* vector, Interval* result) noexcept nogil:
    """Every operand has a number."""
    cdef Interval[PROGRAM_MAX_DEPTH + 1] stack
    cdef Interval* top
    cdef Trouble trouble
    cdef const OpC* op
    cdef double lower
    cdef uint32_t k, place
    memset(&trouble, 0, sizeof(trouble))
    for k in range(derived.program.n_ops):
        op = derived.program.ops + k
        top = &stack[op.slot]
        if op.code == OP_LOAD_NUMBER:
            place = derived.operands[op.field]
            top.value = vector.values[place]
            top.lower = vector.lower[place]
            top.upper = vector.upper[place]
        elif op.code == OP_NUMBER:
            top.value = top.lower = top.upper = op.number
        elif op.code == OP_NEG:
            lower = top.lower
            top.value = -top.value
            top.lower = -top.upper
            top.upper = -lower
        else:
            _combine(op.code, top, top + 1, &trouble)
    result[0] = stack[0]
    if trouble.surely_by_zero:
        result.value = result.lower = result.upper = derived.by_zero
        return MADE_NUMBER if derived.by_zero == derived.by_zero else MADE_NOTHING
    if trouble.not_finite:
        return MADE_UNKNOWN
    if derived.by_zero == derived.by_zero:
        if trouble.by_zero:
            result.value = derived.by_zero
        if trouble.maybe_by_zero:
            result.lower = _least(result.lower, derived.by_zero)
            result.upper = _greatest(result.upper, derived.by_zero)
    elif trouble.by_zero:
        return MADE_UNKNOWN
    return MADE_NUMBER


cdef void _derive_one(const DerivedC* derived, const Outputs* vector) noexcept nogil:
    cdef Interval result
    cdef Made made = MADE_NUMBER
    cdef bint unavailable = False, warming = False, found = False
    cdef float coverage = 1.0
    cdef uint32_t i, place
    for i in range(derived.n_operands):
        place = derived.operands[i]
        unavailable |= vector.statuses[place] == STATUS_UNAVAILABLE
        warming |= vector.statuses[place] == STATUS_WARMING
        found |= vector.statuses[place] != STATUS_NOT_FOUND
        if vector.coverage[place] < coverage:
            coverage = vector.coverage[place]
        if vector.values[place] != vector.values[place]:
            made = MADE_NOTHING
    if unavailable:
        made = MADE_UNKNOWN
    elif made == MADE_NUMBER:
        made = _compute(derived, vector, &result)
    if made != MADE_NUMBER:
        result.value = result.lower = result.upper = NAN
    place = derived.out
    vector.values[place] = result.value
    vector.lower[place] = result.lower
    vector.upper[place] = result.upper
    vector.coverage[place] = 1.0
    if made == MADE_UNKNOWN:
        vector.statuses[place] = STATUS_UNAVAILABLE
        vector.coverage[place] = 0.0
    elif warming:
        vector.statuses[place] = STATUS_WARMING
        vector.coverage[place] = coverage
    elif made == MADE_NOTHING or not found:
        vector.statuses[place] = STATUS_NOT_FOUND
    else:
        vector.statuses[place] = STATUS_PRESENT


cdef void derive(const ServiceC* service, const Outputs* read, uint32_t n, const Outputs* out) noexcept nogil:
    cdef Outputs vector = read[0]
    cdef size_t width = service.width, at = 0, end = n * width
    cdef uint32_t j
    while at < end:
        for j in range(service.n_derived):
            _derive_one(&service.derived[j], &vector)
        memcpy(out.values + at, vector.values, width * sizeof(double))
        memcpy(out.statuses + at, vector.statuses, width)
        memcpy(out.coverage + at, vector.coverage, width * sizeof(float))
        if out.lower != NULL:
            memcpy(out.lower + at, vector.lower, width * sizeof(double))
            memcpy(out.upper + at, vector.upper, width * sizeof(double))
        at += width
        vector.values += service.read_width
        vector.lower += service.read_width
        vector.upper += service.read_width
        vector.statuses += service.read_width
        vector.coverage += service.read_width


def derive_one(derived not None, operands not None):
    """One derived feature (a DerivedPlan) of one vector. `operands`, and what is returned, are
    (value, lower, upper, status, coverage)."""
    cdef CompiledFormula formula = CompiledFormula(derived)
    cdef DerivedC one
    cdef Outputs vector
    cdef uint32_t n = <uint32_t>len(derived.operands)
    cdef size_t i
    cdef double* memory
    if <uint32_t>len(operands) != n or n > 0xFFFE:
        raise ValueError(f"{len(operands)} operands for a formula of {n}")
    # Three doubles, a float, a place and a status for each of n operands and the result.
    memory = <double*>malloc((<size_t>n + 1) * 40)
    if memory == NULL:
        raise MemoryError
    try:
        vector.values = memory
        vector.lower = vector.values + n + 1
        vector.upper = vector.lower + n + 1
        vector.coverage = <float*>(vector.upper + n + 1)
        one.operands = <uint16_t*>(vector.coverage + n + 1)
        vector.statuses = <uint8_t*>(one.operands + n + 1)
        for i, (value, lower, upper, status, coverage) in enumerate(operands):
            vector.values[i] = value
            vector.lower[i] = lower
            vector.upper[i] = upper
            vector.statuses[i] = status
            vector.coverage[i] = coverage
            one.operands[i] = i
        one.program = formula.c
        one.n_operands = n
        one.by_zero = NAN if derived.by_zero is None else derived.by_zero
        one.out = n
        with nogil:
            _derive_one(&one, &vector)
        return (vector.values[n], vector.lower[n], vector.upper[n], int(vector.statuses[n]),
                vector.coverage[n])
    finally:
        free(memory)
