"""Times in s, ms, us, ns or ISO 8601, and numbers that are sent as texts, read as featurestore/columns.py
reads them, so that a model is served what it was trained on. Nothing is guessed: the unit is the schema's,
and a time without an offset means UTC.
"""

from libc.math cimport floor, rint
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp

from featurestore.core.batch cimport (
    MAX_TEXT_BYTES,
    REFUSED_NO_TIME,
    REFUSED_TIME_RANGE,
    REFUSED_TYPE,
    batch_structs,
)
from featurestore.server.cursor cimport Cursor, cursor_structs

from featurestore.core.structs import same_structs

same_structs(__name__, eventtime_structs(), batch_structs(), cursor_structs())

cdef extern from *:
    """
    #include <locale.h>
    #include <stdlib.h>
    /* strtod alone reads the decimal point of the process's locale, which whoever embeds us may have set. */
    static locale_t fs_c_locale;
    static int fs_make_locale(void) {
        if (fs_c_locale == (locale_t)0) fs_c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
        return fs_c_locale != (locale_t)0;
    }
    #define fs_strtod(word) strtod_l(word, NULL, fs_c_locale)
    """
    bint fs_make_locale()
    double fs_strtod(const char* word) noexcept nogil

if not fs_make_locale():
    raise MemoryError("no memory for the C locale")

cdef enum:
    LONGEST_ISO_BYTES = 64           # a time with more than 30 digits of fraction


cdef bint take_digits(Cursor* c, int n, int64_t* value) noexcept nogil:
    cdef int i
    if c.end - c.at < n:
        return False
    value[0] = 0
    for i in range(n):
        if not 48 <= c.at[i] <= 57:
            return False
        value[0] = value[0] * 10 + (c.at[i] - 48)
    c.at += n
    return True


cdef inline bint take_byte(Cursor* c, uint8_t one, uint8_t other) noexcept nogil:
    if c.at < c.end and (c.at[0] == one or c.at[0] == other):
        c.at += 1
        return True
    return False


cdef int64_t days_from_civil(int64_t year, int64_t month, int64_t day) noexcept nogil:
    """Days since 1970-01-01 of a Gregorian date, year 0 or later: the year taken to begin in March, so that
    the leap day is its last (H. Hinnant, chrono-compatible low-level date algorithms)."""
    cdef int64_t y, era, year_of_era, day_of_year
    y = year + 399 if month <= 2 else year + 400   # 400 years on, so that no quotient is negative
    era = y // 400
    year_of_era = y - era * 400
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return ((era - 1) * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
            - 719468)


cdef int64_t days_in_month(int64_t year, int64_t month) noexcept nogil:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


cdef uint8_t parse_iso(const uint8_t* text, size_t length, int64_t* time_ms) noexcept nogil:
    """`YYYY-MM-DD[(T| )hh:mm[:ss[(.|,)f...]][Z|(+|-)hh[[:]mm]]]`, T and Z in any case, at most 64 bytes; the
    fraction is kept to the millisecond below, second 60 is the one after 59, without an offset it means UTC,
    an empty text is no time. 0, or a reason."""
    cdef Cursor c
    cdef int64_t year, month, day, hour = 0, minute = 0, second = 0, milli = 0
    cdef int64_t digit, zone_h = 0, zone_m = 0, zone = 0
    cdef int n_digits
    cdef bint west
    c.at = text
    c.end = text + length
    if length == 0:
        return REFUSED_NO_TIME
    if length > LONGEST_ISO_BYTES:
        return REFUSED_TYPE
    if not (take_digits(&c, 4, &year) and take_byte(&c, b"-", b"-") and take_digits(&c, 2, &month)
            and take_byte(&c, b"-", b"-") and take_digits(&c, 2, &day)):
        return REFUSED_TYPE
    if not (1 <= month <= 12 and 1 <= day <= days_in_month(year, month)):
        return REFUSED_TYPE
    if c.at < c.end:
        if not ((take_byte(&c, b"T", b" ") or take_byte(&c, b"t", b"t")) and take_digits(&c, 2, &hour)
                and take_byte(&c, b":", b":") and take_digits(&c, 2, &minute)):
            return REFUSED_TYPE
        if take_byte(&c, b":", b":"):
            if not take_digits(&c, 2, &second):
                return REFUSED_TYPE
            if take_byte(&c, b".", b","):
                n_digits = 0
                while take_digits(&c, 1, &digit):
                    if n_digits < 3:
                        milli = milli * 10 + digit
                    n_digits += 1
                if n_digits == 0:
                    return REFUSED_TYPE
                while n_digits < 3:
                    milli *= 10
                    n_digits += 1
        if c.at < c.end and not take_byte(&c, b"Z", b"z"):
            west = c.at[0] == b"-"
            if not (take_byte(&c, b"+", b"-") and take_digits(&c, 2, &zone_h)):
                return REFUSED_TYPE
            if c.at < c.end:
                take_byte(&c, b":", b":")
                if not take_digits(&c, 2, &zone_m):
                    return REFUSED_TYPE
            zone = (zone_h * 60 + zone_m) * 60000
            if west:
                zone = -zone
        if c.at < c.end or hour > 23 or minute > 59 or second > 60 or zone_h > 23 or zone_m > 59:
            return REFUSED_TYPE
    time_ms[0] = (((days_from_civil(year, month,
                                    day) * 24 + hour) * 60 + minute) * 60 + second) * 1000 + milli - zone
    return 0 if TIME_MIN_MS <= time_ms[0] <= TIME_MAX_MS else REFUSED_TIME_RANGE


cdef inline int64_t floor_div(int64_t number, int64_t by) noexcept nogil:
    """Division truncates toward zero; the millisecond below is wanted before 1970 too."""
    return number // by - (1 if number % by < 0 else 0)


cdef inline bint is_white(uint8_t byte) noexcept nogil:
    return byte == 32 or 9 <= byte <= 13


cdef inline bint is_digit(uint8_t byte) noexcept nogil:
    return 48 <= byte <= 57


cdef int n_digits_at(const char* text, int at) noexcept nogil:
    cdef int n = 0
    while is_digit(text[at + n]):
        n += 1
    return n


cdef bint is_decimal(const char* text, int n) noexcept nogil:
    """(+|-)d...[.d...][e[+|-]d...] of n bytes, terminated; digits before the point or behind it."""
    cdef int at = 1 if text[0] == b"-" or text[0] == b"+" else 0
    cdef int n_whole, n_behind = 0
    n_whole = n_digits_at(text, at)
    at += n_whole
    if text[at] == b".":
        n_behind = n_digits_at(text, at + 1)
        at += 1 + n_behind
    if n_whole + n_behind == 0:
        return False
    if text[at] == b"e":
        at += 2 if text[at + 1] == b"-" or text[at + 1] == b"+" else 1
        if not is_digit(text[at]):
            return False
        at += n_digits_at(text, at)
    return at == n


cdef inline bint is_word(const char* text, int n, const char* word, int length) noexcept nogil:
    return n == length and memcmp(text, word, length) == 0


cdef bint text_number(const uint8_t* text, size_t length, bint flags, double* number) noexcept nogil:
    cdef char[MAX_TEXT_BYTES + 1] word   # in lower case
    cdef int n = 0, signed_by
    cdef size_t i, end = length
    if length > MAX_TEXT_BYTES:
        return False
    i = 0
    while i < end and is_white(text[i]):
        i += 1
    while end > i and is_white(text[end - 1]):
        end -= 1
    while i < end:
        word[n] = <char>(text[i] + 32 if 65 <= text[i] <= 90 else text[i])
        n += 1
        i += 1
    word[n] = 0
    if flags and (is_word(word, n, b"true", 4) or is_word(word, n, b"t", 1)):
        number[0] = 1.0
        return True
    if flags and (is_word(word, n, b"false", 5) or is_word(word, n, b"f", 1)):
        number[0] = 0.0
        return True
    signed_by = 1 if word[0] == b"-" or word[0] == b"+" else 0
    if not (is_decimal(word, n)
            or is_word(word + signed_by, n - signed_by, b"inf", 3)
            or is_word(word + signed_by, n - signed_by, b"infinity", 8)
            or is_word(word + signed_by, n - signed_by, b"nan", 3)):
        return False
    number[0] = fs_strtod(word)
    return True


cdef bint text_integer(const uint8_t* text, size_t length, int64_t* integer) noexcept nogil:
    """[-]d... that is certainly one of 64 bits: of 18 digits, or of 19 that do not begin with a 9."""
    cdef size_t at = 1 if length > 0 and text[0] == b"-" else 0
    cdef size_t n = length - at
    cdef int64_t value = 0
    if not (1 <= n <= 18 or (n == 19 and text[at] != b"9")):
        return False
    while at < length:
        if not is_digit(text[at]):
            return False
        value = value * 10 + (text[at] - 48)
        at += 1
    integer[0] = -value if text[0] == b"-" else value
    return True


cdef uint8_t read_time(uint8_t unit, const Scalar* value, int64_t* time_ms) noexcept nogil:
    """A time field's value in its declared unit. 0, or the reason why it cannot be read.

    Fractions of a millisecond are floored; a double of seconds is first read to the nearest microsecond, so
    that 1.001 is 1001 ms. Nanoseconds are those that 64 bits hold.
    """
    cdef int64_t scale = 1000000 if unit == TIME_NS else 1000 if unit == TIME_US else 1
    cdef int64_t integer
    cdef Scalar said
    if unit == TIME_ISO:
        return parse_iso(value.text, value.length, time_ms) if value.kind == VALUE_TEXT else REFUSED_TYPE
    if value.kind == VALUE_TEXT:
        if value.length == 0:
            return REFUSED_NO_TIME
        said.kind = VALUE_INTEGER
        if not text_integer(value.text, value.length, &said.integer):
            said.kind = VALUE_NUMBER
            if not text_number(value.text, value.length, False, &said.number):
                return REFUSED_TYPE
        return read_time(unit, &said, time_ms)
    if value.kind == VALUE_INTEGER:
        integer = value.integer
        if unit == TIME_S:
            if not TIME_MIN_S <= integer <= TIME_MAX_S:
                return REFUSED_TIME_RANGE
            integer *= 1000
        integer = floor_div(integer, scale)
    elif value.kind == VALUE_NUMBER:
        if value.number != value.number:
            return REFUSED_NO_TIME
        if unit == TIME_S:
            if not <double>TIME_MIN_S <= value.number <= <double>(TIME_MAX_S + 1):
                return REFUSED_TIME_RANGE
            integer = floor_div(<int64_t>rint(value.number * 1e6), 1000)
        elif unit == TIME_NS and not -9223372036854775808.0 <= value.number < 9223372036854775808.0:
            return REFUSED_TIME_RANGE
        elif unit != TIME_NS and not (
                <double>(TIME_MIN_MS * scale) <= value.number <= <double>((TIME_MAX_MS + 1) * scale)):
            return REFUSED_TIME_RANGE
        else:
            integer = floor_div(<int64_t>floor(value.number), scale)
    else:
        return REFUSED_TYPE
    time_ms[0] = integer
    return 0 if TIME_MIN_MS <= integer <= TIME_MAX_MS else REFUSED_TIME_RANGE
