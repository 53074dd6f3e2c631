"""A windowed count-min sketch with conservative update; see countmin.pxd for the guarantee and the picture.

Which cells. A fingerprint is 128 bits of SipHash under the store's secret: to who does not know that, the
bits of different keys are independent and uniform, whatever the keys. Each row folds the two halves, told
apart by a constant of its own, in one 64 x 64 → 128 bit product (as Wang Yi's wyhash does) and scales the
result to the width. Two keys meet in a row with probability 1/width, and rows choose apart (the tests hold
single rows, pairs and triples of them to chi-square), also among the keys of one shard, whose fingerprints
share their topmost bits. So a collision cannot be built, only met: the constants are public and give
nothing away.

Why rings, one to a window, and not slices that are merged as they grow old, each event in one slice and each
level only what its window adds to the one before. Both were built, for the same windows in cells of 128
bytes, with slices, and so bounds, of the same width. Millions a second of one busy core, 5 rows, 69 MB, Zipf
1.05 over 1 M keys, five windows a read, all at one time (`own`: each at its event's time):

                       slices merged             rings
    events a second    update   read    own      update   read    own
    100,000              12.6    7.5    3.9        11.9    9.0    9.4
    2,778                 4.9    5.9    2.3        10.9    8.7    7.4
    19                    2.6    5.0    1.7        10.4    8.5    5.0

Merging touches one line of a cell instead of two while the cell is used often; but most cells are not, and
then it moves counters, with branches that no predictor knows. Rings cost the same at any rate. (Slices that
double with age, as in Hokusai, would answer any window as well, with about twice the counters.)

One layout for both kinds of counter: a stamp, then slices, as uint32_t for counts (twice as many to a line)
and double for sums. Sums are rounded up by TwoSum, so that they are never below the truth. With five windows
a key has 20 cache lines of sums, 10 of counts, and a table that no cache holds gives lines, not keys, at a
rate (5 to 9 ns each, whatever is done with them): sums are half as fast there, and as fast where the table
fits. Four-byte sums would have to be rounded up by 2^-23 an event, which a hot key turns into more than
epsilon.
"""

from typing import NamedTuple

cimport cython
import numpy as np

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN, ceil, log
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from featurestore.core.arena cimport arena_structs, fs_prefetch
from featurestore.core.bytes cimport Bytes, bytes_clear, bytes_reserve
from featurestore.core.pages cimport SLAB_BYTES, pages_map, pages_unmap

from featurestore.core.structs import same_structs
from featurestore.errors import CorruptRecordError

same_structs(__name__, arena_structs(), countmin_structs())

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t fs_high_product(uint64_t a, uint64_t b) {
        return (uint64_t)(((unsigned __int128)a * b) >> 64);
    }
    static inline uint64_t fs_folded_product(uint64_t a, uint64_t b) {
        const unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)(product >> 64) ^ (uint64_t)product;
    }
    /* The least double that is not below a + b, both not negative: the next one where the sum was rounded
    down, which
       Knuth's TwoSum tells exactly. Infinity stays (its error is NaN, which is not above 0). */
    static inline double fs_add_up(double a, double b) {
        const double sum = a + b, b_in = sum - a, error = (a - (sum - b_in)) + (b - b_in);
        uint64_t bits;
        double up;
        memcpy(&bits, &sum, 8);
        bits += error > 0.0;
        memcpy(&up, &bits, 8);
        return up;
    }
    /* Cells as vectors, since the compiler leaves such loops scalar: 4 counts (at most 2^31 - 1,
                                                                                so that comparing them
       as signed is right) or 2 sums at a time, what every x86-64 has. Words: of a cell, a multiple of 8. */
    typedef int32_t fs_counts __attribute__((vector_size(16), aligned(4), may_alias));
    typedef double fs_sums __attribute__((vector_size(16), aligned(8), may_alias));
    typedef int64_t fs_sum_bits __attribute__((vector_size(16)));

    /* Those whose slice has begun since the stamp become 0. */
    static inline void fs_age_counts(uint32_t* words, const int32_t* begins, int32_t stamp,
                                     uint32_t n_words) {
        uint32_t i;
        for (i = 0; i < n_words; i += 4)
            *(fs_counts*)(words + i) &= *(const fs_counts*)(begins + i) <= stamp;
    }
    static inline void fs_age_sums(double* words, const double* begins, double stamp, uint32_t n_words) {
        uint32_t i;
        for (i = 0; i < n_words; i += 2) {
            const fs_sum_bits held = (fs_sum_bits)(*(const fs_sums*)(begins + i) <= stamp);
            *(fs_sums*)(words + i) = (fs_sums)((fs_sum_bits)*(fs_sums*)(words + i) & held);
        }
    }
    /* The least of what such cells hold, word by word: least stays in registers, and misses of all rows are
       under way at once. */
    static inline void fs_least_counts(uint32_t* least, const uint32_t* const* cells, const int32_t* stamps,
                                       uint32_t depth, const int32_t* begins, uint32_t n_words) {
        uint32_t i, row;
        for (i = 0; i < n_words; i += 4) {
            const fs_counts begin = *(const fs_counts*)(begins + i);
            fs_counts found = {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX};
            for (row = 0; row < depth; row++) {
                const fs_counts held = *(const fs_counts*)(cells[row] + i) & (begin <= stamps[row]);
                const fs_counts less = held < found;
                found = (held & less) | (found & ~less);
            }
            *(fs_counts*)(least + i) = found;
        }
    }
    static inline void fs_least_sums(double* least, const double* const* cells, const int32_t* stamps,
                                     uint32_t depth, const double* begins, uint32_t n_words) {
        double as_sums[16];                            /* MAX_DEPTH */
        uint32_t i, row;
        for (row = 0; row < depth; row++)
            as_sums[row] = stamps[row];
        for (i = 0; i < n_words; i += 2) {
            const fs_sums begin = *(const fs_sums*)(begins + i);
            fs_sums found = {__builtin_inf(), __builtin_inf()};
            for (row = 0; row < depth; row++) {
                const fs_sum_bits known = (fs_sum_bits)(begin <= as_sums[row]);
                const fs_sums held = (fs_sums)((fs_sum_bits)*(const fs_sums*)(cells[row] + i) & known);
                found[0] = held[0] < found[0] ? held[0] : found[0];
                found[1] = held[1] < found[1] ? held[1] : found[1];
            }
            *(fs_sums*)(least + i) = found;
        }
    }
    /* a + b, and not 0 in *inexact where that is not the sum. (An error of 0 is +0.) */
    static inline double fs_add_exactly(double a, double b, uint64_t* inexact) {
        const double sum = a + b, b_in = sum - a, error = (a - (sum - b_in)) + (b - b_in);
        uint64_t bits;
        memcpy(&bits, &error, 8);
        *inexact |= bits;
        return sum;
    }
    """
    uint64_t fs_high_product(uint64_t a, uint64_t b) noexcept
    uint64_t fs_folded_product(uint64_t a, uint64_t b) noexcept
    double fs_add_up(double a, double b) noexcept
    double fs_add_exactly(double a, double b, uint64_t* inexact) noexcept
    void fs_age_counts(uint32_t* words, const int32_t* begins, int32_t stamp, uint32_t n_words) noexcept
    void fs_age_sums(double* words, const double* begins, double stamp, uint32_t n_words) noexcept
    void fs_least_counts(uint32_t* least, const uint32_t** cells, const int32_t* stamps, uint32_t depth,
                         const int32_t* begins, uint32_t n_words) noexcept
    void fs_least_sums(double* least, const double** cells, const int32_t* stamps, uint32_t depth,
                       const double* begins, uint32_t n_words) noexcept

cdef extern from *:
    """
    #define FS_TIME_MIN_MS (-62135596800000ll)
    #define FS_TIME_MAX_MS 253402300799999ll
    #define FS_NO_TIME_MS (-4611686018427387904ll)
    #define FS_MAX_COUNT 0x7FFFFFFFu
    #define FS_E 2.718281828459045
    #define FS_MAX_TICK 0x7FFFFFFFll
    #define FS_MAX_TIME_MS (1ll << 53)
    #define FS_HEAD_RECORD 0xFFFFFFFFu
    #define FS_BITS_OF_INFINITY 0x7FF0000000000000ull
    """
    const int64_t TIME_MIN_MS "FS_TIME_MIN_MS"      # the years 1 to 9999
    const int64_t TIME_MAX_MS "FS_TIME_MAX_MS"
    const int64_t UNSET_MS "FS_NO_TIME_MS"          # that of plan.pxd, which knows this module
    const uint32_t MAX_COUNT "FS_MAX_COUNT"
    const double E "FS_E"
    const int64_t MAX_TICK "FS_MAX_TICK"
    const int64_t MAX_TIME_MS "FS_MAX_TIME_MS"    # those are well within; a difference never overflows
    const uint32_t HEAD_RECORD "FS_HEAD_RECORD"
    const uint64_t BITS_OF_INFINITY "FS_BITS_OF_INFINITY"

cdef enum:
    LINE_BYTES = 64
    PIECE_BYTES = 4096           # small: an update during a checkpoint may have to copy one for each row
    SLICE_PIECES = 64            # copied before the lock is let go: 256 KiB
    AHEAD = 12                   # keys whose cells are fetched before the first of them is used
    RING = 16                    # a power of two above AHEAD
    VERSION = 1
    RECORD_HEAD_BYTES = 8
    CELL_HEAD_BYTES = 16         # of a cell in a record
    HEAD_FIXED_BYTES = 48        # of the head record's payload
    WORDS_STEP = 8               # a cell is a multiple of so many words: see fs_age_counts
    NOWHERE = 0xFF               # no slot of a cell
    MAX_REACH = 1 << 28          # ticks that a sketch keeps: a new origin leaves at least 5 times that

ctypedef fused Counter:
    uint32_t
    double


# ---- Time, cut into slices

cdef inline int64_t _quotient(int64_t time_ms, int64_t step_ms) noexcept nogil:
    """Rounded down, also before 1970: cdivision rounds towards 0."""
    return time_ms // step_ms - (time_ms % step_ms < 0)


cdef inline uint32_t _slot(const Level* level, int64_t number) noexcept nogil:
    """Where in a cell slice `number` of a level lies."""
    cdef int64_t rest = number % level.n_slices
    return level.first + <uint32_t>(rest + level.n_slices if rest < 0 else rest)


cdef int _add_level(Shape* shape, int64_t slice_ms, int64_t reach_ms) noexcept nogil:
    cdef Level* level
    cdef int64_t n_slices = (reach_ms - 1) // slice_ms + 2      # one is cut by the window's edge
    if reach_ms // shape.unit_ms >= MAX_REACH or shape.n_levels == MAX_LEVELS:
        return -1
    if n_slices > <int64_t>(MAX_SLICES - shape.n_slices):
        return -1
    level = &shape.levels[shape.n_levels]
    level.slice_ms = slice_ms
    level.reach_ms = reach_ms
    level.first = 1 + shape.n_slices
    level.n_slices = <uint32_t>n_slices
    shape.n_slices += level.n_slices
    shape.n_levels += 1
    return 0


cdef int shape_init(Shape* shape, const int64_t* windows_ms, uint32_t n_windows, int64_t lateness_ms,
                    uint32_t n_slices) noexcept nogil:
    cdef int64_t slice_ms = 0, reach_ms
    cdef uint32_t i
    memset(shape, 0, sizeof(Shape))
    if n_windows == 0 or n_slices == 0 or lateness_ms < 0 or lateness_ms > MAX_TIME_MS:
        return -1
    for i in range(n_windows):
        if windows_ms[i] <= (windows_ms[i - 1] if i else 0) or windows_ms[i] > MAX_TIME_MS:
            return -1
    shape.unit_ms = windows_ms[0] // n_slices
    if shape.unit_ms == 0:
        return -1
    for i in range(n_windows):
        slice_ms = windows_ms[i] // n_slices // shape.unit_ms * shape.unit_ms
        reach_ms = windows_ms[i]
        # Lateness that adds at most a slice goes with the longest window; more has slices of its own.
        if i + 1 == n_windows and lateness_ms <= slice_ms:
            reach_ms += lateness_ms
        if _add_level(shape, slice_ms, reach_ms) < 0:
            return -1
    if lateness_ms > slice_ms:
        reach_ms = windows_ms[n_windows - 1] + lateness_ms
        return _add_level(shape, reach_ms // n_slices // shape.unit_ms * shape.unit_ms, reach_ms)
    return 0


cdef inline uint32_t _word_bytes(uint32_t kind) noexcept nogil:
    return 4 if kind == COUNTER_COUNT else 8


cdef uint32_t shape_cell_bytes(const Shape* shape, uint32_t kind) noexcept nogil:
    cdef uint32_t n_bytes = (1 + shape.n_slices) * _word_bytes(kind)
    if shape.n_slices < WORDS_STEP:
        return WORDS_STEP * _word_bytes(kind)
    return (n_bytes + LINE_BYTES - 1) & ~<uint32_t>(LINE_BYTES - 1)


cdef inline int64_t _reach_ms(const Shape* shape) noexcept nogil:
    return shape.levels[shape.n_levels - 1].reach_ms


cdef void _rule(const Shape* shape, int64_t origin_ms, int64_t newest_ms, Ruler* ruler) noexcept nogil:
    cdef const Level* level
    cdef int64_t newest, number
    cdef uint32_t i, slot
    memset(ruler, 0, sizeof(Ruler))                # begins of words that are no slice: kept as they are
    ruler.tick = <int32_t>((newest_ms - origin_ms) // shape.unit_ms)
    for i in range(shape.n_levels):
        level = &shape.levels[i]
        newest = _quotient(newest_ms, level.slice_ms)
        ruler.newest[i] = _slot(level, newest)
        ruler.numbers[i] = newest
        for number in range(newest - level.n_slices + 1, newest + 1):
            slot = _slot(level, number)
            ruler.begins[slot] = <int32_t>((number * level.slice_ms - origin_ms) // shape.unit_ms)
            ruler.begins_as_sums[slot] = ruler.begins[slot]


# ---- Counters

cdef inline Counter _plus(Counter a, Counter b) noexcept nogil:
    """Never below the sum: counts stay at their largest, sums are rounded up."""
    cdef Counter sum
    if Counter is uint32_t:
        sum = a + b                                # of two below 2^31
        return sum if sum < MAX_COUNT else MAX_COUNT
    else:
        return fs_add_up(a, b)


cdef inline void _age(const Ruler* now, int32_t stamp, uint32_t n_words, Counter* words) noexcept nogil:
    """Zeroes what a cell that was stamped then does not hold any more: slices that have begun since."""
    if Counter is uint32_t:
        fs_age_counts(words, now.begins, stamp, n_words)
    else:
        fs_age_sums(words, now.begins_as_sums, stamp, n_words)


cdef inline char* _cell(const Countmin* sketch, uint64_t place) noexcept nogil:
    return sketch.cells + place * sketch.cell_bytes


# ---- Making and freeing

cdef int countmin_c(CountminC* settings, const int64_t* windows_ms, uint32_t n_windows, int64_t lateness_ms,
                    uint32_t n_slices, uint32_t kind, double epsilon, double delta) noexcept nogil:
    cdef double width, depth, n_bytes
    memset(settings, 0, sizeof(CountminC))
    if not 0 < epsilon < 1 or not 0 < delta < 1 or kind > COUNTER_SUM:
        return -1
    if shape_init(&settings.shape, windows_ms, n_windows, lateness_ms, n_slices) < 0:
        return -1
    width = ceil(E / epsilon)
    depth = ceil(log(1 / delta))
    depth = depth if depth >= 1 else 1
    n_bytes = width * depth * shape_cell_bytes(&settings.shape, kind)
    if depth > MAX_DEPTH or n_bytes > <double>(<uint64_t>1 << 36):
        return -1
    settings.width = <uint64_t>width
    settings.depth = <uint32_t>depth
    settings.n_bytes = <uint64_t>n_bytes
    settings.kind = kind
    return 0


cdef int countmin_init(Countmin* sketch, const CountminC* settings) noexcept nogil:
    cdef uint64_t n_cells
    memset(sketch, 0, sizeof(Countmin))
    sketch.cell_bytes = shape_cell_bytes(&settings.shape, settings.kind)
    sketch.depth = settings.depth
    sketch.width = settings.width
    sketch.error = E / <double>settings.width
    sketch.kind = settings.kind
    sketch.n_words = sketch.cell_bytes // _word_bytes(settings.kind)
    sketch.shape = settings.shape
    n_cells = sketch.width * sketch.depth
    while <uint32_t>sketch.cell_bytes << (sketch.piece_bits + 1) <= PIECE_BYTES:
        sketch.piece_bits += 1
    sketch.n_pieces = ((n_cells - 1) >> sketch.piece_bits) + 1
    sketch.n_bytes = n_cells * sketch.cell_bytes
    # Smaller ones would gain nothing: a shard's share of a batch finds all of them in the cache.
    sketch.cells = <char*>pages_map(sketch.n_bytes, sketch.n_bytes >= SLAB_BYTES)
    sketch.marks = <uint32_t*>calloc(sketch.n_pieces, sizeof(uint32_t))
    sketch.origin_ms = sketch.newest_ms = sketch.from_ms = sketch.until_ms = UNSET_MS
    sketch.cut = sketch.written = 1
    return 0 if sketch.cells != NULL and sketch.marks != NULL else -1


cdef void countmin_clear(Countmin* sketch) noexcept nogil:
    if sketch.cells != NULL:
        pages_unmap(sketch.cells, sketch.n_bytes)
    free(sketch.marks)
    bytes_clear(&sketch.copied)
    memset(sketch, 0, sizeof(Countmin))


# ---- Records

cdef size_t _head_payload_bytes(const Countmin* sketch) noexcept nogil:
    return HEAD_FIXED_BYTES + 16 * <size_t>sketch.shape.n_levels + 8 * <size_t>sketch.shape.n_slices


cdef inline uint8_t* _write32(uint8_t* at, uint32_t value) noexcept nogil:
    memcpy(at, &value, 4)
    return at + 4


cdef inline uint8_t* _write64(uint8_t* at, uint64_t value) noexcept nogil:
    memcpy(at, &value, 8)
    return at + 8


cdef inline uint32_t _read32(const uint8_t* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef inline uint64_t _read64(const uint8_t* at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef void _write_head(const Countmin* sketch, uint8_t* at) noexcept nogil:
    """What a head record's payload says of this sketch; its last part is the totals."""
    cdef uint32_t i
    at = _write32(at, VERSION)
    at = _write32(at, sketch.kind)
    at = _write64(at, sketch.width)
    at = _write32(at, sketch.depth)
    at = _write32(at, sketch.shape.n_levels)
    at = _write64(at, <uint64_t>sketch.shape.unit_ms)
    at = _write64(at, <uint64_t>sketch.origin_ms)
    at = _write64(at, <uint64_t>sketch.newest_ms)
    for i in range(sketch.shape.n_levels):
        at = _write64(at, <uint64_t>sketch.shape.levels[i].slice_ms)
        at = _write64(at, <uint64_t>sketch.shape.levels[i].reach_ms)
    memcpy(at, sketch.totals + 1, 8 * <size_t>sketch.shape.n_slices)


cdef int _put_head(const Countmin* sketch, Bytes* out) noexcept nogil:
    cdef size_t n = _head_payload_bytes(sketch)
    if bytes_reserve(out, RECORD_HEAD_BYTES + n) < 0:
        return -1
    _write32(_write32(out.data + out.n_bytes, HEAD_RECORD), <uint32_t>n)
    _write_head(sketch, out.data + out.n_bytes + RECORD_HEAD_BYTES)
    out.n_bytes += RECORD_HEAD_BYTES + n
    return 0


cdef int _put_piece(const Countmin* sketch, Bytes* out, uint64_t piece, const Ruler* ruler,
                    bint empty_too) noexcept nogil:
    """The cells of a piece that hold something by that ruler."""
    cdef uint64_t at = piece << sketch.piece_bits, n_cells = sketch.width * sketch.depth, until, mask
    cdef uint32_t i, n, slot, n_slices = sketch.shape.n_slices, size = _word_bytes(sketch.kind)
    cdef uint32_t n_in_piece = <uint32_t>1 << sketch.piece_bits
    cdef int32_t stamp
    cdef const char* cell
    cdef const char* counter
    cdef uint8_t* begin
    cdef uint8_t* to
    if bytes_reserve(out,
                     RECORD_HEAD_BYTES + <size_t>n_in_piece * (CELL_HEAD_BYTES + 8 + n_slices * size)) < 0:
        return -1
    until = at + n_in_piece if at + n_in_piece < n_cells else n_cells
    begin = out.data + out.n_bytes
    to = begin + RECORD_HEAD_BYTES
    for i in range(<uint32_t>(until - at)):
        cell = _cell(sketch, at + i)
        stamp = (<const int32_t*>cell)[0]
        if stamp == 0:
            continue
        counter = cell
        mask = 0
        n = CELL_HEAD_BYTES
        for slot in range(1, 1 + n_slices):
            counter += size
            if (ruler.begins[slot] <= stamp
                    and ((<const uint32_t*>counter)[0] if size == 4 else (<const uint64_t*>counter)[0]) != 0):
                mask |= <uint64_t>1 << slot
                memcpy(to + n, counter, size)
                n += size
        if mask == 0:
            continue
        _write64(_write32(_write32(to, i), <uint32_t>stamp), mask)
        if n & 7:
            n = <uint32_t>(_write32(to + n, 0) - to)
        to += n
    if to == begin + RECORD_HEAD_BYTES and not empty_too:
        return 0
    _write32(_write32(begin, <uint32_t>piece), <uint32_t>(to - begin - RECORD_HEAD_BYTES))
    out.n_bytes += <size_t>(to - begin)
    return 0


cdef inline bint _due(const Countmin* sketch, uint64_t piece) noexcept nogil:
    return (sketch.copying and piece >= sketch.copy_piece
            and sketch.written <= sketch.marks[piece] < sketch.cut)


cdef int _first_change(Countmin* sketch, uint64_t piece) noexcept nogil:
    """Before a piece changes that has not since the cut. 0, or -1 when out of memory."""
    if _due(sketch, piece) and _put_piece(sketch, &sketch.copied, piece, &sketch.at_cut, True) < 0:
        return -1
    sketch.marks[piece] = sketch.cut
    return 0


cdef int countmin_cut(Countmin* sketch) noexcept nogil:
    sketch.copied.n_bytes = 0
    if _put_head(sketch, &sketch.copied) < 0:
        return -1
    sketch.cut += 1
    sketch.copying = 1
    sketch.at_cut = sketch.now
    sketch.copy_piece = 0
    return 0


cdef int countmin_copy_slice(Countmin* sketch) noexcept nogil:
    cdef uint32_t copied = 0
    while sketch.copy_piece < sketch.n_pieces and copied < SLICE_PIECES:
        if _due(sketch, sketch.copy_piece):
            if _put_piece(sketch, &sketch.copied, sketch.copy_piece, &sketch.at_cut, True) < 0:
                return -1
            copied += 1
        sketch.copy_piece += 1
    return sketch.copy_piece < sketch.n_pieces


cdef void countmin_copy_end(Countmin* sketch, bint written) noexcept nogil:
    sketch.copying = 0
    bytes_clear(&sketch.copied)
    if written:
        sketch.written = sketch.cut


cdef int countmin_export(const Countmin* sketch, Bytes* out) noexcept nogil:
    cdef uint64_t piece
    if _put_head(sketch, out) < 0:
        return -1
    for piece in range(sketch.n_pieces):
        if _put_piece(sketch, out, piece, &sketch.now, False) < 0:
            return -1
    return 0


# ---- Time moves on

cdef inline int64_t _origin_for(const Shape* shape, int64_t time_ms) noexcept nogil:
    """A multiple of the tick, so far back that every slice kept begins after it, and so does a cell's
    stamp."""
    return _quotient(time_ms - 3 * _reach_ms(shape), shape.unit_ms) * shape.unit_ms


cdef inline bint _fits(const Countmin* sketch, int64_t time_ms) noexcept nogil:
    return (time_ms - sketch.origin_ms) // sketch.shape.unit_ms <= MAX_TICK


cdef void _enter(Countmin* sketch, int64_t time_ms) noexcept nogil:
    """time_ms is in a slice after the newest, and its tick fits."""
    cdef int32_t stamp = sketch.now.tick
    _rule(&sketch.shape, sketch.origin_ms, time_ms, &sketch.now)
    _age(&sketch.now, stamp, MAX_WORDS, sketch.totals)
    sketch.from_ms = sketch.origin_ms + sketch.now.tick * sketch.shape.unit_ms
    sketch.until_ms = sketch.from_ms + sketch.shape.unit_ms


cdef inline int32_t _moved(int32_t stamp, int64_t shift) noexcept nogil:
    """A stamp by an origin `shift` ticks later; 0, as of a cell that was never used, when it is not after
    that."""
    return <int32_t>(stamp - shift) if stamp > shift else 0


cdef int _rebase(Countmin* sketch, int64_t time_ms) noexcept nogil:
    """A new origin, when ticks no longer fit 31 bits: after 8 years of 8 slices to a second. 0, or -1."""
    cdef int64_t origin_ms = _origin_for(&sketch.shape, time_ms)
    cdef int64_t shift = (origin_ms - sketch.origin_ms) // sketch.shape.unit_ms
    cdef int32_t* stamp
    cdef uint64_t i
    for i in range(sketch.n_pieces):
        if sketch.marks[i] != sketch.cut and _first_change(sketch, i) < 0:
            return -1
    for i in range(sketch.width * sketch.depth):
        stamp = <int32_t*>_cell(sketch, i)
        stamp[0] = _moved(stamp[0], shift)
    sketch.now.tick = _moved(sketch.now.tick, shift)
    sketch.origin_ms = origin_ms
    return 0


cdef int _advance(Countmin* sketch, int64_t time_ms) noexcept nogil:
    """The newest event is at time_ms from now on, which is after it was. 0, or -1 when out of memory."""
    if sketch.newest_ms == UNSET_MS:
        sketch.origin_ms = _origin_for(&sketch.shape, time_ms)
    elif not _fits(sketch, time_ms) and _rebase(sketch, time_ms) < 0:
        return -1
    _enter(sketch, time_ms)
    sketch.newest_ms = time_ms
    return 0


cdef bint _slots_of(const Countmin* sketch, int64_t time_ms, uint32_t* slots) noexcept nogil:
    """Where a cell counts what happened before the newest slice: slots[n_levels], NOWHERE in levels that keep
    it no more. False: nowhere at all."""
    cdef const Level* level
    cdef int64_t number, begin
    cdef uint32_t i
    cdef bint somewhere = False
    for i in range(sketch.shape.n_levels):
        level = &sketch.shape.levels[i]
        number = _quotient(time_ms, level.slice_ms)
        slots[i] = _slot(level, number)
        begin = (number * level.slice_ms - sketch.origin_ms) // sketch.shape.unit_ms
        if sketch.now.begins[slots[i]] == begin:
            somewhere = True
        else:
            slots[i] = NOWHERE
    return somewhere


# ---- Adding

cdef void countmin_place(const Countmin* sketch, uint64_t fp0, uint64_t fp1, uint64_t* places) noexcept nogil:
    # See the head: 128 uniform secret bits, folded apart for each row, then scaled to the width (Lemire
    # 2019).
    cdef uint64_t a = 0x9E3779B97F4A7C15, b = 0xC2B2AE3D27D4EB4F
    cdef uint64_t row_a = a, row_b = b
    cdef uint32_t i
    for i in range(sketch.depth):
        places[i] = i * sketch.width + fs_high_product(fs_folded_product(fp0 ^ row_a, fp1 ^ row_b),
                                                       sketch.width)
        row_a += 2 * a
        row_b += 2 * b


cdef void countmin_prefetch(const Countmin* sketch, const uint64_t* places) noexcept nogil:
    cdef const char* cell
    cdef uint32_t i, line
    for i in range(sketch.depth):
        cell = _cell(sketch, places[i])
        for line in range((sketch.cell_bytes + LINE_BYTES - 1) // LINE_BYTES):
            fs_prefetch(cell + line * LINE_BYTES)


cdef inline void _raise(Countmin* sketch, const uint64_t* places, const uint32_t* slots,
                        Counter weight) noexcept nogil:
    """Conservative update: no cell of the key is raised above what the key can have in it."""
    cdef Counter* counters[MAX_DEPTH]
    cdef Counter least
    cdef char* cell
    cdef uint32_t i, k, depth = sketch.depth, slot
    cdef int32_t stamp
    for i in range(depth):
        cell = _cell(sketch, places[i])
        counters[i] = <Counter*>cell
        stamp = (<int32_t*>cell)[0]
        if stamp != sketch.now.tick:
            _age(&sketch.now, stamp, sketch.n_words, counters[i])
            (<int32_t*>cell)[0] = sketch.now.tick
    for k in range(sketch.shape.n_levels):
        slot = slots[k]
        if slot == NOWHERE:
            continue
        least = counters[0][slot]
        for i in range(1, depth):
            least = counters[i][slot] if counters[i][slot] < least else least
        least = _plus(least, weight)
        for i in range(depth):
            counters[i][slot] = least if counters[i][slot] < least else counters[i][slot]


cdef inline double _as_counted(uint32_t kind, double weight) noexcept nogil:
    if kind == COUNTER_SUM:
        return weight
    weight = ceil(weight)
    return weight if weight < <double>MAX_COUNT else <double>MAX_COUNT


cdef inline void _add_total(Countmin* sketch, const uint32_t* slots, double weight) noexcept nogil:
    cdef uint32_t k
    for k in range(sketch.shape.n_levels):
        if slots[k] != NOWHERE:
            sketch.totals[slots[k]] = fs_add_up(sketch.totals[slots[k]], weight)


cdef int countmin_add_one(Countmin* sketch, const uint64_t* places, int64_t time_ms,
                          double weight) noexcept nogil:
    cdef const uint32_t* slots = sketch.now.newest
    cdef uint32_t before[MAX_LEVELS]
    cdef uint32_t i
    if not weight > 0:
        return 0
    if time_ms >= sketch.until_ms:                 # also before any event
        if _advance(sketch, time_ms) < 0:
            return -1
    elif time_ms < sketch.from_ms:
        if not _slots_of(sketch, time_ms, before):
            return 1
        slots = before
    if time_ms > sketch.newest_ms:
        sketch.newest_ms = time_ms
    for i in range(sketch.depth):
        if sketch.marks[places[i] >> sketch.piece_bits] != sketch.cut:
            if _first_change(sketch, places[i] >> sketch.piece_bits) < 0:
                return -1
    weight = _as_counted(sketch.kind, weight)
    _add_total(sketch, slots, weight)
    if sketch.kind == COUNTER_COUNT:
        _raise(sketch, places, slots, <uint32_t>weight)
    else:
        _raise(sketch, places, slots, weight)
    return 0


cdef int64_t countmin_add(Countmin* sketch, const uint64_t* keys, const int64_t* times_ms,
                          const double* weights,
                          uint64_t n) noexcept nogil:
    cdef uint64_t places[RING][MAX_DEPTH]
    cdef uint64_t i, at
    cdef int64_t n_late = 0
    cdef int status
    for i in range(n + AHEAD):
        if i < n:
            countmin_place(sketch, keys[2 * i], keys[2 * i + 1], places[i & (RING - 1)])
            countmin_prefetch(sketch, places[i & (RING - 1)])
        if i >= AHEAD:
            at = i - AHEAD
            status = countmin_add_one(sketch, places[at & (RING - 1)], times_ms[at],
                                      weights[at] if weights else 1.0)
            if status < 0:
                return -1
            n_late += status
    return n_late


# ---- Reading

cdef extern from *:
    """
    #define FS_INEXACT (1.0 + 0x1p-46)
    """
    const double INEXACT "FS_INEXACT"    # 62 sums, each off by 2^-53 of itself at most


cdef inline bint _sum(const WindowAt* window, const Counter* counters, double* touched,
                      double* inside) noexcept nogil:
    """The slices that a window touches, and without those that an edge of it cuts; true if none is
    saturated."""
    cdef int64_t count = 0
    cdef double sum = 0
    cdef uint64_t inexact = 0
    cdef bint saturated = False
    cdef uint32_t part, i
    for part in range(2):
        for i in range(window.ranges[part][0], window.ranges[part][1]):
            if Counter is uint32_t:
                count += counters[i]
                saturated |= counters[i] == MAX_COUNT
            else:
                sum = fs_add_exactly(sum, counters[i], &inexact)
    if Counter is uint32_t:
        sum = <double>count
    else:
        saturated = sum == INFINITY
        if inexact:
            sum *= INEXACT
    touched[0] = inside[0] = sum
    for i in range(window.n_cut):
        inside[0] -= <double>counters[window.cuts[i]]
    return not saturated


cdef inline uint32_t _slot_before(const Level* level, uint32_t slot, int64_t n) noexcept nogil:
    """Where the slice n before the one in `slot` lies, both of them kept: without dividing, as _slot does."""
    cdef int64_t place = <int64_t>slot - n
    return <uint32_t>(place + level.n_slices if place < level.first else place)


cdef void _find_slices(const Countmin* sketch, uint32_t k, int64_t from_ms, int64_t until_ms,
                       WindowAt* window) noexcept nogil:
    """What of level k a window touches that begins with from_ms, in a slice kept, no later than the newest
    event."""
    cdef const Level* level = &sketch.shape.levels[k]
    cdef int64_t newest = sketch.now.numbers[k], last = newest
    cdef int64_t first = _quotient(from_ms, level.slice_ms)
    cdef int64_t end_ms
    cdef uint32_t first_slot, last_slot
    if until_ms <= newest * level.slice_ms:        # mostly it ends in the newest slice, or after it
        last = _quotient(until_ms - 1, level.slice_ms)
    first_slot = _slot_before(level, sketch.now.newest[k], newest - first)
    last_slot = _slot_before(level, sketch.now.newest[k], newest - last)
    memset(window.ranges, 0, sizeof(window.ranges))
    window.ranges[0][0] = first_slot
    if first_slot <= last_slot:
        window.ranges[0][1] = last_slot + 1
    else:                                          # around the end of the ring
        window.ranges[0][1] = level.first + level.n_slices
        window.ranges[1][0] = level.first
        window.ranges[1][1] = last_slot + 1
    window.n_cut = 0
    if first * level.slice_ms < from_ms:
        window.cuts[0] = first_slot
        window.n_cut = 1
    end_ms = (last + 1) * level.slice_ms
    if last == newest:
        end_ms = sketch.newest_ms + 1              # there is nothing after that
    if end_ms > until_ms and (window.n_cut == 0 or last != first):
        window.cuts[window.n_cut] = last_slot
        window.n_cut += 1


cdef void countmin_frame(const Countmin* sketch, int64_t at_ms, const int64_t* windows_ms, uint32_t n_windows,
                         Frame* frame) noexcept nogil:
    cdef const Shape* shape = &sketch.shape
    cdef WindowAt* window
    cdef int64_t from_ms
    cdef double inside
    cdef uint32_t i, k
    frame.n_windows = n_windows
    for i in range(n_windows):
        window = &frame.windows[i]
        memset(window, 0, sizeof(WindowAt))
        from_ms = at_ms + 1 - windows_ms[i]
        if from_ms > sketch.newest_ms:             # also before any event: nothing is touched
            continue
        window.status = REPLY_UNAVAILABLE
        for k in range(shape.n_levels):            # the finest slices that reach so far back
            if from_ms >= (sketch.now.numbers[k] - shape.levels[k].n_slices + 1) * shape.levels[k].slice_ms:
                window.status = REPLY_OK
                _find_slices(sketch, k, from_ms, at_ms + 1, window)
                _sum(window, sketch.totals, &window.weight, &inside)
                break


cdef inline void _least(const Countmin* sketch, const uint64_t* places, int64_t shift,
                        Counter* least) noexcept nogil:
    """The least counter of each slice over a key's cells. `shift`: ticks by which sketch.now counts from a
    later origin than the cells' stamps do."""
    cdef const Counter* cells[MAX_DEPTH]
    cdef int32_t stamps[MAX_DEPTH]
    cdef uint32_t i
    for i in range(sketch.depth):
        cells[i] = <const Counter*>_cell(sketch, places[i])
        stamps[i] = (<const int32_t*>cells[i])[0]
        if shift:
            stamps[i] = _moved(stamps[i], shift)
    if Counter is uint32_t:
        fs_least_counts(least, cells, stamps, sketch.depth, sketch.now.begins, sketch.n_words)
    else:
        fs_least_sums(least, cells, stamps, sketch.depth, sketch.now.begins_as_sums, sketch.n_words)


cdef inline void _reply(const Countmin* sketch, const Frame* frame, const Counter* least,
                        Reply* replies) noexcept nogil:
    cdef const WindowAt* window
    cdef Reply* reply
    cdef double inside
    cdef uint32_t i
    for i in range(frame.n_windows):
        window = &frame.windows[i]
        reply = &replies[i]
        reply.status = window.status
        reply.reserved = 0
        if window.status == REPLY_UNAVAILABLE:
            reply.estimate = reply.lower = reply.bound = reply.weight = NAN
            continue
        reply.weight = window.weight
        reply.bound = window.weight * sketch.error * INEXACT
        reply.lower = 0
        if not _sum(window, least, &reply.estimate, &inside):
            reply.status = REPLY_SATURATED
            reply.estimate = window.weight
            if not inside < INFINITY:              # infinite, or that less itself
                inside = 0
        if inside > reply.bound:
            reply.lower = inside - reply.bound


cdef void countmin_read_one(const Countmin* sketch, const uint64_t* places, const Frame* frame,
                            Reply* replies) noexcept nogil:
    cdef uint32_t counts[MAX_WORDS]
    cdef double sums[MAX_WORDS]
    if sketch.kind == COUNTER_COUNT:
        _least(sketch, places, 0, counts)
        _reply(sketch, frame, counts, replies)
    else:
        _least(sketch, places, 0, sums)
        _reply(sketch, frame, sums, replies)


cdef int countmin_peek_one(const Countmin* sketch, const uint64_t* places, int64_t time_ms, double weight,
                           int64_t at_ms, const int64_t* windows_ms, uint32_t n_windows,
                           Reply* replies) noexcept nogil:
    # An update leaves the least of each slice as it was, and in the event's own `weight` more: the row that
    # held the least holds that now, and no row holds less.
    cdef Countmin after = sketch[0]                # never cleared: its memory is the sketch's
    cdef const uint32_t* slots = after.now.newest
    cdef uint32_t counts[MAX_WORDS]
    cdef double sums[MAX_WORDS]
    cdef uint32_t before[MAX_LEVELS]
    cdef Frame frame
    cdef int64_t origin_ms, shift = 0
    cdef uint32_t k
    if not weight > 0 or (time_ms < after.from_ms and not _slots_of(sketch, time_ms, before)):
        countmin_frame(sketch, at_ms, windows_ms, n_windows, &frame)
        countmin_read_one(sketch, places, &frame, replies)
        return weight > 0
    if time_ms < after.from_ms:
        slots = before
    elif time_ms >= after.until_ms:
        if after.newest_ms == UNSET_MS:
            after.origin_ms = _origin_for(&after.shape, time_ms)
        elif not _fits(&after, time_ms):
            origin_ms = _origin_for(&after.shape, time_ms)
            shift = (origin_ms - after.origin_ms) // after.shape.unit_ms
            after.now.tick = _moved(after.now.tick, shift)
            after.origin_ms = origin_ms
        _enter(&after, time_ms)
    if time_ms > after.newest_ms:
        after.newest_ms = time_ms
    weight = _as_counted(after.kind, weight)
    _add_total(&after, slots, weight)
    countmin_frame(&after, at_ms, windows_ms, n_windows, &frame)
    if after.kind == COUNTER_COUNT:
        _least(&after, places, shift, counts)
        for k in range(after.shape.n_levels):
            if slots[k] != NOWHERE:
                counts[slots[k]] = _plus(counts[slots[k]], <uint32_t>weight)
        _reply(&after, &frame, counts, replies)
    else:
        _least(&after, places, shift, sums)
        for k in range(after.shape.n_levels):
            if slots[k] != NOWHERE:
                sums[slots[k]] = _plus(sums[slots[k]], weight)
        _reply(&after, &frame, sums, replies)
    return 0


cdef void countmin_read(const Countmin* sketch, const uint64_t* keys, const int64_t* times_ms, uint64_t n,
                        const int64_t* windows_ms, uint32_t n_windows, Reply* replies) noexcept nogil:
    cdef uint64_t places[RING][MAX_DEPTH]
    cdef uint64_t i, at
    cdef Frame frame
    for i in range(n + AHEAD):
        if i < n:
            countmin_place(sketch, keys[2 * i], keys[2 * i + 1], places[i & (RING - 1)])
            countmin_prefetch(sketch, places[i & (RING - 1)])
        if i >= AHEAD:
            at = i - AHEAD
            if at == 0 or times_ms[at] != times_ms[at - 1]:
                countmin_frame(sketch, times_ms[at], windows_ms, n_windows, &frame)
            countmin_read_one(sketch, places[at & (RING - 1)], &frame, replies + at * n_windows)


# ---- Merging, and reading back

cdef inline void _merge_words(uint32_t n_words, const Ruler* now, Counter* into, int32_t into_stamp,
                              const Counter* other, int32_t other_stamp) noexcept nogil:
    """Leaves `into` as of now. Slices lie where their absolute time puts them: in both alike."""
    cdef uint32_t i
    _age(now, into_stamp, n_words, into)
    for i in range(1, n_words):
        if now.begins[i] <= other_stamp:
            into[i] = _plus(into[i], other[i])


cdef bint _same_shape(const Shape* a, const Shape* b) noexcept nogil:
    cdef uint32_t i
    if a.unit_ms != b.unit_ms or a.n_levels != b.n_levels:
        return False
    for i in range(a.n_levels):
        if a.levels[i].slice_ms != b.levels[i].slice_ms or a.levels[i].reach_ms != b.levels[i].reach_ms:
            return False
    return True


cdef int countmin_merge(Countmin* sketch, const Countmin* other) noexcept nogil:
    cdef int32_t* into
    cdef const int32_t* cell
    cdef int64_t shift
    cdef int32_t stamp
    cdef uint64_t i
    if (sketch.kind != other.kind or sketch.depth != other.depth or sketch.width != other.width
            or not _same_shape(&sketch.shape, &other.shape)):
        return 1
    if other.newest_ms == UNSET_MS:
        return 0
    if other.newest_ms >= sketch.until_ms and _advance(sketch, other.newest_ms) < 0:
        return -1
    if other.newest_ms > sketch.newest_ms:
        sketch.newest_ms = other.newest_ms
    shift = (sketch.origin_ms - other.origin_ms) // sketch.shape.unit_ms
    for i in range(sketch.width * sketch.depth):
        cell = <const int32_t*>_cell(other, i)
        into = <int32_t*>_cell(sketch, i)
        stamp = _moved(cell[0], shift) if cell[0] else 0
        if stamp == 0:
            continue
        if sketch.marks[i >> sketch.piece_bits] != sketch.cut and _first_change(sketch,
                                                                                i >> sketch.piece_bits) < 0:
            return -1
        if sketch.kind == COUNTER_COUNT:
            _merge_words(sketch.n_words, &sketch.now, <uint32_t*>into, into[0], <const uint32_t*>cell, stamp)
        else:
            _merge_words(sketch.n_words, &sketch.now, <double*>into, into[0], <const double*>cell, stamp)
        into[0] = sketch.now.tick
    _merge_words(MAX_WORDS, &sketch.now, sketch.totals, sketch.now.tick, other.totals,
                 _moved(other.now.tick, shift))
    return 0


cdef bint _head_fits(Countmin* sketch, const uint8_t* payload, size_t n_bytes) noexcept nogil:
    """Takes the times and totals of a head that is this sketch's in all else."""
    cdef Countmin read = sketch[0]                 # never cleared: its memory is the sketch's
    cdef const Shape* shape = &sketch.shape
    cdef uint8_t written[HEAD_FIXED_BYTES + 16 * MAX_LEVELS + 8 * MAX_SLICES]
    cdef size_t at
    cdef uint32_t i
    if n_bytes != _head_payload_bytes(sketch) or sketch.newest_ms != UNSET_MS:
        return False
    read.origin_ms = <int64_t>_read64(payload + 32)
    read.newest_ms = <int64_t>_read64(payload + 40)
    memcpy(read.totals + 1, payload + n_bytes - 8 * <size_t>shape.n_slices, 8 * <size_t>shape.n_slices)
    _write_head(&read, written)
    for at in range(n_bytes):                      # all that was not read is what this sketch would write
        if written[at] != payload[at]:
            return False
    for i in range(1, 1 + shape.n_slices):
        if not read.totals[i] >= 0 or _read64(<uint8_t*>&read.totals[i]) > BITS_OF_INFINITY:
            return False
        if read.newest_ms == UNSET_MS and read.totals[i] != 0:
            return False
    if read.newest_ms == UNSET_MS:
        return read.origin_ms == UNSET_MS
    if (not TIME_MIN_MS <= read.newest_ms <= TIME_MAX_MS or not -MAX_TIME_MS < read.origin_ms
            or read.origin_ms > read.newest_ms - 2 * _reach_ms(shape) or read.origin_ms % shape.unit_ms
            or not _fits(&read, read.newest_ms)):
        return False
    sketch.origin_ms = read.origin_ms
    sketch.newest_ms = read.newest_ms
    _enter(sketch, sketch.newest_ms)
    memcpy(sketch.totals, read.totals, sizeof(read.totals))
    return True


cdef bint _piece_fits(Countmin* sketch, uint32_t piece, const uint8_t* payload, size_t n_bytes,
                      bint put) noexcept nogil:
    """Whether a payload is one of that piece; with `put`, when it is known to be, puts it there."""
    cdef uint64_t first = <uint64_t>piece << sketch.piece_bits, n_cells = sketch.width * sketch.depth, mask
    cdef uint32_t n_in_piece = <uint32_t>1 << sketch.piece_bits, size = _word_bytes(sketch.kind)
    cdef uint32_t place, slot, next_place = 0
    cdef int32_t stamp
    cdef size_t at = 0, n
    cdef uint64_t bits
    cdef char* cell
    if piece >= sketch.n_pieces:
        return False
    while at < n_bytes:
        if n_bytes - at < CELL_HEAD_BYTES:
            return False
        place = _read32(payload + at)
        stamp = <int32_t>_read32(payload + at + 4)
        mask = _read64(payload + at + 8)
        at += CELL_HEAD_BYTES
        if (place < next_place or place >= n_in_piece or first + place >= n_cells or mask == 0
                or (mask & 1) or mask >> sketch.shape.n_slices >> 1 or not 0 < stamp <= sketch.now.tick):
            return False
        next_place = place + 1
        cell = _cell(sketch, first + place)
        if put:
            (<int32_t*>cell)[0] = stamp
        elif (<int32_t*>cell)[0]:
            return False                           # there already
        n = 0
        for slot in range(1, 1 + sketch.shape.n_slices):
            if not mask >> slot & 1:
                continue
            if n_bytes - at < n + size:
                return False
            bits = _read32(payload + at + n) if size == 4 else _read64(payload + at + n)
            # Doubles above 0 and infinity are the words from 1 to infinity's, in order.
            if bits == 0 or (size == 4 and bits > MAX_COUNT) or (size == 8 and bits > BITS_OF_INFINITY):
                return False
            if put:
                memcpy(cell + slot * size, &bits, size)
            n += size
        if n & 7:
            if n_bytes - at < n + 4 or _read32(payload + at + n):
                return False
            n += 4
        at += n
    return True


cdef int64_t countmin_import(Countmin* sketch, const uint8_t* data, size_t n_bytes) noexcept nogil:
    cdef uint32_t number
    cdef size_t n
    if n_bytes < RECORD_HEAD_BYTES:
        return 0
    number = _read32(data)
    n = _read32(data + 4)
    data += RECORD_HEAD_BYTES
    if n > n_bytes - RECORD_HEAD_BYTES or n & 7:
        return 0
    if number == HEAD_RECORD:
        if not _head_fits(sketch, data, n):
            return 0
    elif sketch.now.tick == 0 or not _piece_fits(sketch, number, data, n, False):
        return 0
    else:
        _piece_fits(sketch, number, data, n, True)
    return <int64_t>(RECORD_HEAD_BYTES + n)


# ---- For tests and benches

REPLY = np.dtype(
    [("estimate", np.float64), ("lower", np.float64), ("bound", np.float64), ("weight", np.float64),
     ("status", np.uint32), ("reserved", np.uint32)]
)
assert REPLY.itemsize == sizeof(Reply)


class CountminShape(NamedTuple):
    """How large a sketch is and how it cuts time."""

    depth: int
    width: int
    error: float                 # bound / N
    cell_bytes: int
    bytes: int
    slices_ms: tuple[int, ...]   # how long the slices of each level are
    reaches_ms: tuple[int, ...]  # how far behind the newest slice each level reaches
    n_slices: tuple[int, ...]    # of each level


@cython.final
cdef class CountminSketch:
    """One windowed count-min sketch: `windows_ms` ascending; keys are fingerprints, [n, 2] of uint64.

    `n_slices` to a window, or 0: as many as a cell of `cell_bytes` has room for. `sums`: of weights of 0 and
    more, else counts. ValueError: out of range.
    """

    cdef Countmin sketch

    def __cinit__(self, double epsilon, double delta, windows_ms not None, *, int64_t lateness_ms=3_600_000,
                  uint32_t n_slices=0, uint32_t cell_bytes=128, bint sums=False):
        cdef CountminC settings
        cdef Shape tried
        cdef int64_t windows[MAX_WINDOWS]
        cdef uint32_t n_windows = self._take_windows(windows_ms, windows)
        cdef uint32_t kind = COUNTER_SUM if sums else COUNTER_COUNT
        cdef uint32_t n
        if n_slices == 0:
            for n in range(1, MAX_SLICES + 1):
                if (shape_init(&tried, windows, n_windows, lateness_ms, n) == 0
                        and shape_cell_bytes(&tried, kind) <= cell_bytes):
                    n_slices = n
        if shape_init(&tried, windows, n_windows, lateness_ms, n_slices) < 0:
            raise ValueError(f"windows {list(windows_ms)} with lateness {lateness_ms} ms cannot be cut so: "
                             f"ascending, at most {MAX_SLICES} slices in all, and what the cell holds")
        if (countmin_c(&settings, windows, n_windows, lateness_ms, n_slices, kind, epsilon, delta) < 0
                or countmin_init(&self.sketch, &settings) < 0):
            raise ValueError(f"a sketch for epsilon {epsilon} and delta {delta} is out of range or "
                             f"memory: both are between 0 and 1, at most {MAX_DEPTH} rows and 64 GiB")

    def __dealloc__(self):
        countmin_clear(&self.sketch)

    cdef uint32_t _take_windows(self, object windows_ms, int64_t* windows) except? 0:
        cdef uint32_t n = 0
        for window_ms in windows_ms:
            if n == MAX_WINDOWS or not 0 < window_ms <= MAX_TIME_MS:
                raise ValueError(f"windows are at most {MAX_WINDOWS}, "
                                 f"each above 0 ms: not {list(windows_ms)}")
            windows[n] = window_ms
            n += 1
        return n

    cdef int _check(self, const uint64_t[:, ::1] keys, const int64_t[::1] times_ms) except -1:
        cdef Py_ssize_t i
        if keys.shape[1] != 2 or times_ms.shape[0] != keys.shape[0]:
            raise ValueError("keys are [n, 2] fingerprints, with a time each")
        for i in range(times_ms.shape[0]):
            if not TIME_MIN_MS <= times_ms[i] <= TIME_MAX_MS:
                raise ValueError(f"time {times_ms[i]} is not in the years 1 to 9999")
        return 0

    @property
    def shape(self):
        cdef const Shape* shape = &self.sketch.shape
        levels = range(shape.n_levels)
        return CountminShape(
            self.sketch.depth, self.sketch.width, self.sketch.error, self.sketch.cell_bytes,
            self.sketch.n_bytes, tuple(shape.levels[i].slice_ms for i in levels),
            tuple(shape.levels[i].reach_ms for i in levels),
            tuple(shape.levels[i].n_slices for i in levels),
        )

    @property
    def newest_ms(self):
        """None before any event."""
        return None if self.sketch.newest_ms == UNSET_MS else self.sketch.newest_ms

    def add(self, const uint64_t[:, ::1] keys not None, const int64_t[::1] times_ms not None, weights=None):
        """Adds one event per key; weights 1 each where there are none. Returns how many were late."""
        cdef const double[::1] each
        cdef const double* first = NULL
        cdef int64_t n_late
        cdef Py_ssize_t i, n = keys.shape[0]
        self._check(keys, times_ms)
        if weights is not None:
            each = weights
            if each.shape[0] != n:
                raise ValueError("a weight for each key")
            for i in range(n):
                if not 0 <= each[i] <= DBL_MAX:
                    raise ValueError(f"weight {each[i]} is not a number of 0 or more")
            first = &each[0] if n else NULL
        if n == 0:
            return 0
        with nogil:
            n_late = countmin_add(&self.sketch, &keys[0, 0], &times_ms[0], first, n)
        if n_late < 0:
            raise MemoryError
        return n_late

    def read(self, const uint64_t[:, ::1] keys not None, const int64_t[::1] times_ms not None,
             windows_ms not None):
        """Replies [n, n_windows]: estimate, lower, bound, weight (N) and status of each window at each key's
        time."""
        cdef int64_t windows[MAX_WINDOWS]
        cdef uint32_t n_windows = self._take_windows(windows_ms, windows)
        cdef Py_ssize_t n = keys.shape[0]
        cdef uint8_t[::1] raw
        self._check(keys, times_ms)
        replies = np.empty((n, n_windows), REPLY)
        if replies.size:
            raw = replies.reshape(-1).view(np.uint8)
            with nogil:
                countmin_read(&self.sketch, &keys[0, 0], &times_ms[0], n, windows, n_windows, <Reply*>&raw[0])
        return replies

    def peek(self, const uint64_t[:, ::1] keys not None, const int64_t[::1] times_ms not None,
             const double[::1] weights not None, const int64_t[::1] reads_ms not None, windows_ms not None):
        """What reading each key at its read's time would answer if its event alone were added before."""
        cdef int64_t windows[MAX_WINDOWS]
        cdef uint64_t places[MAX_DEPTH]
        cdef uint32_t n_windows = self._take_windows(windows_ms, windows)
        cdef Py_ssize_t i, n = keys.shape[0]
        cdef uint8_t[::1] raw
        self._check(keys, times_ms)
        self._check(keys, reads_ms)
        if weights.shape[0] != n:
            raise ValueError("a weight for each key")
        replies = np.empty((n, n_windows), REPLY)
        if replies.size:
            raw = replies.reshape(-1).view(np.uint8)
            for i in range(n):
                countmin_place(&self.sketch, keys[i, 0], keys[i, 1], places)
                countmin_peek_one(&self.sketch, places, times_ms[i], weights[i], reads_ms[i], windows,
                                  n_windows,
                                  <Reply*>&raw[i * n_windows * sizeof(Reply)])
        return replies

    def places(self, const uint64_t[:, ::1] keys not None):
        """The cell of each key in each row, [n, depth]: row * width + column."""
        cdef uint64_t places[MAX_DEPTH]
        cdef Py_ssize_t i
        if keys.shape[1] != 2:
            raise ValueError("keys are [n, 2] fingerprints")
        found = np.empty((keys.shape[0], self.sketch.depth), np.uint64)
        cdef uint64_t[:, ::1] out = found
        for i in range(keys.shape[0]):
            countmin_place(&self.sketch, keys[i, 0], keys[i, 1], places)
            memcpy(&out[i, 0], places, self.sketch.depth * sizeof(uint64_t))
        return found

    def merge(self, CountminSketch other not None):
        """Adds what the other sketch holds, which must be made alike."""
        cdef int status = countmin_merge(&self.sketch, &other.sketch)
        if status < 0:
            raise MemoryError
        if status:
            raise ValueError("sketches of different windows, sizes or kinds do not merge")

    def export(self):
        """Everything, as records."""
        cdef Bytes out
        cdef int status
        memset(&out, 0, sizeof(out))
        try:
            with nogil:
                status = countmin_export(&self.sketch, &out)
            if status < 0:
                raise MemoryError
            return PyBytes_FromStringAndSize(<char*>out.data, <Py_ssize_t>out.n_bytes)
        finally:
            bytes_clear(&out)

    def load(self, const uint8_t[::1] records not None):
        """Puts records back, the head first. CorruptRecordError: they are not of such a sketch."""
        cdef size_t at = 0, n = <size_t>records.shape[0]
        cdef int64_t used
        while at < n:
            used = countmin_import(&self.sketch, &records[at], n - at)
            if used < 0:
                raise MemoryError
            if used == 0:
                raise CorruptRecordError(f"no record of this sketch at byte {at} of {n}")
            at += <size_t>used

    def cut(self):
        """Begins a checkpoint."""
        if countmin_cut(&self.sketch) < 0:
            raise MemoryError

    def copy_slice(self):
        """True while there is more to copy."""
        cdef int more = countmin_copy_slice(&self.sketch)
        if more < 0:
            raise MemoryError
        return more == 1

    def copied(self):
        """The records of the checkpoint under way."""
        return PyBytes_FromStringAndSize(<char*>self.sketch.copied.data,
                                         <Py_ssize_t>self.sketch.copied.n_bytes)

    def copy_end(self, bint written):
        """Ends a checkpoint; if not written, the next has its pieces again."""
        countmin_copy_end(&self.sketch, written)
