# Event times as they are sent: a value and the unit that the schema declares for its field, to milliseconds.
from libc.stdint cimport int64_t, uint8_t

cdef extern from *:
    """
    /* The range of times, years 1..9999. */
    #define TIME_MIN_MS (-62135596800000LL)
    #define TIME_MAX_MS 253402300799999LL
    #define TIME_MIN_S (-62135596800LL)
    #define TIME_MAX_S 253402300799LL
    """
    const int64_t TIME_MIN_MS
    const int64_t TIME_MAX_MS
    const int64_t TIME_MIN_S
    const int64_t TIME_MAX_S

cdef enum TimeUnit:
    TIME_S = 0
    TIME_MS = 1
    TIME_US = 2
    TIME_ISO = 3
    TIME_NS = 4

cdef enum ValueKind:                 # the members of Value.kind, of NamedColumn.kind as far as they go
    VALUE_NONE = 0
    VALUE_TEXT = 1
    VALUE_INTEGER = 2
    VALUE_NUMBER = 3
    VALUE_FLAG = 4

ctypedef struct Scalar:              # one Value
    int kind                         # ValueKind
    const uint8_t* text              # VALUE_TEXT, in the message
    size_t length                    # bytes of text
    int64_t integer                  # VALUE_INTEGER; VALUE_FLAG: 0 or 1
    double number                    # VALUE_NUMBER

# The number that a text says, as Python's float reads it without underscores: in decimal notation, inf or
# nan, in any case, with white space around it; with `flags` also t and true, f and false, which are 1 and 0.
cdef bint text_number(const uint8_t* text, size_t length, bint flags, double* number) noexcept nogil

# 0 and the time in milliseconds, or the Outcome that says why it cannot be read.
cdef uint8_t read_time(uint8_t unit, const Scalar* value, int64_t* time_ms) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict eventtime_structs():
    return {"server/eventtime.pxd": (sizeof(Scalar),)}
