"""The windowed distinct counter; distinct.pxd has the picture and the bytes.

SET. Up to exact_values values with the time each was last seen. The number in a window is the number of last
times in it: exact for every window at once, and certain, but for two values having one 40-bit fingerprint
(for 512 values once in eight million such counters, and then the count is one too few).

MATRIX. Flajolet and Martin's bits ("Probabilistic counting algorithms for data base applications", JCSS
1985): a hash chooses one of m registers, and rank r with probability 2^-(r + 1); the bits that were hit say
how many values there were. Here each bit is the time of its last hit, so that the bits of any window are
those with `time > lo`, as Chabchoub and Hebrail ("Sliding HyperLogLog", 2010) did with HyperLogLog. The
estimate is the number of values that makes the numbers of hit bits per rank the likeliest: they are all that
the bits say. (Ertl, "UltraLogLog" and "ExaLogLog", 2023 and 2024, for such estimates and the information in
such sketches; Lang, "Back to the future", 2017, for why these bits beat HyperLogLog's.)

Guarantee. Read no earlier than the newest event: the estimate has a relative standard error of sqrt(1 / I(n)
- 1 / n), I being Fisher's information per relative change: from 0.41 / sqrt(m) for n well below m to 0.65 /
sqrt(m) for n beyond 16 m, so 2.9 % at the default m = 512. lower and upper are so many standard errors away
as the confidence says, made 3 % wider, for the errors are not quite normal. Misses counted (whole sketches
of n values, 20,000 for n = 300 to 120 for a million; m = 512, and windows of a tenth of them):

    n                     300    1,000   10,000  100,000
    declared 95 %       2.4 %    3.4 %    3.7 %    3.3 %     a tenth: 0.2 %  1.1 %  3.6 %  4.2 %
    declared 99 %      0.39 %   0.55 %   0.67 %   0.40 %     a tenth: 0.2 %  0.3 %  0.4 %  1.1 %

(a miss more or less is 0.1 % for 100,000.) Besides, lower is at least the number of hit bits, for a value
hits one, and a window that no bit is in is certain to be empty. A read before the newest event has bounds
only: what was last seen later may have been seen before, too; lower leaves it out, upper counts it, and the
estimate takes sightings as evenly spread. Both edges are exact to the millisecond while keep_ms is at most 23
days, then to 2^tick_bits ms (32 for 400 days), and what shares a unit with an edge is counted in upper only.

Laws. Adding is idempotent, commutative and associative, merging too (last times: maximum; a set that is too
large becomes a matrix, which a fingerprint determines): the state is a function of what was seen, whatever
the order, the batches and the repeats, as long as the horizon has passed nothing. It then also is one of the
horizon at each addition: a matrix stays one until all of it has expired. Not invertible. No offsets: a later
sighting hides an earlier one.

Memory: 10 bytes a value in a SET, in blocks at most a quarter too large beyond 256 bytes; 32 bytes hold
three. A MATRIX keeps a rank dense, 4 bytes a cell, and the cells of higher ranks in a sorted list, 8 bytes
each. Exported, a rank is dense from half of its cells on, where that is smaller: 4 m (log2(n / m) + 1.6)
bytes. In memory it is from a quarter on, since a list has to be searched: on skewed keys additions are 18 %
faster so, and all blocks together 1 % larger. With m = 512 a matrix is smaller than the set from about 512
values on, which is why that many are exact by default. A dense addition touches two lines, of the head and
of its cell, whatever the size.

Alternatives, same hashes, n values seen once each, m = 512; cells that must be kept per register so that all
windows can be answered, and the bytes at equal error (a cell of a list is a time and a rank, 5 bytes, and a
list has 2 more; m is scaled by the square of 1.04 for sliding HyperLogLog with lists of possible future
maxima, 0.761 for the same with UltraLogLog's three ranks, 0.649 for the matrix; the matrix is as exported
here, the lists packed):

    n          cells: HLL  ULL  matrix      bytes: HLL     ULL   matrix
    1,000             1.2  1.4     1.5          10,318   6,293    5,526
    10,000            2.8  3.9     4.6          20,951  15,116   12,374
    100,000           4.5  6.6     7.9          32,081  24,652   19,130
    1,000,000         6.2  9.3    11.2          43,048  34,084   25,914

The matrix wins although it keeps every cell, since each says more and needs no rank and no list to be
walked. What windows cost: the whole-stream sketches of Apache DataSketches 5.2, which forget times, on the
same streams (benches/bench_accuracy.py: bytes, rms of the error, and that times sqrt(m); published 0.649,
0.83, 0.59):

    n            matrix 512               HLL_4 512              CPC 512
    1,000        5,503  1.90 %  0.43      296  3.10 %  0.70      304  2.03 %  0.46
    10,000      12,358  2.69 %  0.61      297  3.91 %  0.88      351  2.56 %  0.58
    100,000     19,166  2.91 %  0.66      297  3.62 %  0.82      352  2.45 %  0.55
    1,000,000   25,929  2.75 %  0.62      297  3.21 %  0.73      351  2.43 %  0.55

A time for each cell is 32 bits where they keep two to six bits a register; a sketch of theirs per hop, for
five windows of ten hops each, would be 15 KB as well and blur every edge by a hop. Their HIP estimates need
the order of arrival, which neither merging nor a window leaves.

Arithmetic: only + - * /, sqrt, floor and ceil, so that answers are the same bits on every machine.
"""

cimport cython
import numpy as np

from libc.math cimport ceil, floor, sqrt
from libc.stdint cimport (
    INT32_MAX, INT32_MIN, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from featurestore.core.arena cimport (
    Arena, arena_alloc, arena_at, arena_clear, arena_free, arena_init, arena_rounded, fs_prefetch,
)
from featurestore.core.head cimport LOG_DISTINCT, LogHead
from featurestore.core.pages cimport SLAB_BYTES, Pool, pages_map, pages_unmap, pool_clear, pool_init

from featurestore.core.structs import same_structs

same_structs(__name__, distinct_structs())

cdef extern from * nogil:
    """
    #define fs_leading_zeros(x) ((unsigned)__builtin_clzll(x))
    #define FS_ERA_MS (1LL << 39)
    #define FS_NEVER INT32_MIN
    #define FS_ERA_TICKS (1LL << 31)
    #define FS_WIDER 1.03
    #define FS_DEFAULT_Z 1.959963984540054
    #define FS_MASK_40 ((1ULL << 40) - 1)
    """
    uint32_t fs_leading_zeros(uint64_t x) noexcept               # x is not 0
    const int64_t ERA_MS "FS_ERA_MS"                             # a SET's times are within this of its base
    const int64_t ERA_TICKS "FS_ERA_TICKS"                       # a MATRIX's are
    const double WIDER "FS_WIDER"                                # than the asymptotic bounds: see the head
    const double DEFAULT_Z "FS_DEFAULT_Z"                        # 95 % of a normal distribution
    const int32_t NEVER "FS_NEVER"                              # of a MATRIX's cell
    const uint64_t MASK_40 "FS_MASK_40"

cdef enum:
    ERA_MS_BITS = 39
    ERA_TICK_BITS = 31
    ENTRY_BYTES = 10             # of a SET: u40 fingerprint, u40 time - base + ERA_MS
    CODE_BITS = 6                # a block's first two bytes: i10 era, u6 code; base = era * ERA_MS
    CODE_MASK = 63
    FIRST_LARGE = 21             # from this code on a SET may hold more than LogHead.n_small can say
    N_IN_BLOCK = 255             # LogHead.n_small of a SET whose block has the number
    SMALL_BEFORE = 2             # bytes before the entries: the tag
    LARGE_BEFORE = 4             # the tag, u16 number of entries
    MAX_RANKS = FINGERPRINT_BITS - MIN_LOG2_REGISTERS + 1
    CHUNK = 16                   # windows read at a time
    EXPORT_SET_BYTES = 16        # before the entries
    EXPORT_MATRIX_BYTES = 24     # before the cells
    AHEAD_HEAD = 24              # additions ahead of the one under way whose head, block, cell are fetched
    AHEAD_BLOCK = 14
    AHEAD_VALUE = 6
    FETCHED_BYTES = 576          # of a SET from a value's place on: a new one moves what follows

ctypedef struct Values:          # a SET, wherever it is
    uint8_t* entries
    uint32_t n
    uint32_t capacity
    uint32_t code
    int64_t base

ctypedef struct Matrix:          # head of a MATRIX's block; dense cells i32, then sparse cells u64 follow
    int64_t newest_ms
    int64_t base                 # ticks: _tick_base(newest_ms)
    uint32_t n_sparse            # cells
    uint32_t cap_sparse
    uint8_t n_dense              # ranks
    uint8_t tick_bits


cdef DistinctC distinct_c(uint32_t exact_values, uint8_t log2_registers, double z,
                          int64_t keep_ms) noexcept nogil:
    cdef DistinctC c
    memset(&c, 0, sizeof(DistinctC))
    c.exact_values = exact_values
    c.log2_registers = log2_registers
    c.z = z
    c.keep_ms = keep_ms
    # Whatever is kept is less than an era of ticks behind the newest.
    while ((keep_ms + SLACK_MS) >> c.tick_bits) + 2 >= ERA_TICKS:
        c.tick_bits += 1
    return c


# -- the set -------------------------------------------------------------------------------------------------

cdef inline uint32_t _units(uint32_t code) noexcept nogil:
    """Units of the arena in a block of this code: 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ...

    Not 1 and the odd ones: when many keys grow together, nobody wants the blocks that they leave behind.
    """
    cdef uint32_t k = code + 1
    return 2 * k if k < 4 else (4 + (k & 3)) << (k >> 2)


cdef inline uint32_t _capacity(uint32_t code) noexcept nogil:
    return (_units(code) * 16 - (LARGE_BEFORE if code >= FIRST_LARGE else SMALL_BEFORE)) // ENTRY_BYTES


cdef inline uint32_t _code_for(uint32_t n) noexcept nogil:
    cdef uint32_t code = 0
    while _capacity(code) < n:
        code += 1
    return code


cdef inline int16_t* _tag(const Arena* arena, const LogHead* head) noexcept nogil:
    return <int16_t*>arena_at(arena, head.block)


cdef inline bint _is_matrix(const LogHead* head) noexcept nogil:
    return head.n_small == 0             # of a head with a block: no SET of no values outlives a call


cdef inline Values _values(const Arena* arena, const LogHead* head) noexcept nogil:
    cdef Values values
    cdef uint8_t* block = <uint8_t*>arena_at(arena, head.block)
    cdef int16_t tag = (<int16_t*>block)[0]
    values.code = tag & CODE_MASK
    values.base = (tag >> CODE_BITS) * ERA_MS
    values.capacity = _capacity(values.code)
    if values.code < FIRST_LARGE:
        values.n = head.n_small
        values.entries = block + SMALL_BEFORE
    else:
        values.n = (<uint16_t*>block)[1]
        values.entries = block + LARGE_BEFORE
    return values


cdef inline void _set_n(const Arena* arena, LogHead* head, Values* values, uint32_t n) noexcept nogil:
    values.n = n
    if values.code < FIRST_LARGE:
        head.n_small = <uint8_t>n
    else:
        head.n_small = N_IN_BLOCK
        (<uint16_t*>arena_at(arena, head.block))[1] = <uint16_t>n


cdef inline uint64_t _fingerprint_of(const uint8_t* entry) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, entry, 8)
    return word & MASK_40


cdef inline int64_t _time_of(const uint8_t* entry) noexcept nogil:
    """Behind base - ERA_MS."""
    cdef uint64_t word
    memcpy(&word, entry + 2, 8)
    return <int64_t>(word >> 24)


cdef inline void _put_time(uint8_t* entry, int64_t t) noexcept nogil:
    memcpy(entry + 5, &t, 5)


cdef inline uint32_t _place(const uint8_t* entries, uint32_t n, uint64_t fingerprint) noexcept nogil:
    """Of the first entry that is not less. Fingerprints are uniform, so it is nearly known where to look."""
    cdef uint32_t i = <uint32_t>(((fingerprint >> 8) * n) >> 32)
    if i < n and _fingerprint_of(entries + i * ENTRY_BYTES) < fingerprint:
        i += 1
        while i < n and _fingerprint_of(entries + i * ENTRY_BYTES) < fingerprint:
            i += 1
    else:
        while i > 0 and _fingerprint_of(entries + (i - 1) * ENTRY_BYTES) >= fingerprint:
            i -= 1
    return i


cdef uint32_t _set_sweep(Values* values, int64_t horizon, int64_t base) noexcept nogil:
    """Drops what is older than the horizon and counts times from `base`. How many are left; n is not
    changed."""
    cdef uint8_t* entry = values.entries
    cdef uint8_t* to = values.entries
    cdef int64_t t
    cdef uint32_t _i, kept = 0
    for _i in range(values.n):
        t = _time_of(entry) + values.base - ERA_MS
        if t >= horizon and t >= base - ERA_MS:
            if to != entry:
                memcpy(to, entry, ENTRY_BYTES)
            _put_time(to, t - base + ERA_MS)
            to += ENTRY_BYTES
            kept += 1
        entry += ENTRY_BYTES
    return kept


cdef int _set_resize(Arena* arena, LogHead* head, uint32_t code) noexcept nogil:
    """Moves the entries to a block of another size, or to a first one (at base 0)."""
    cdef Values old, new
    cdef uint32_t block = arena_alloc(arena, _units(code) * 16)
    if block == 0:
        return -1
    memset(&old, 0, sizeof(Values))
    if head.block:
        old = _values(arena, head)
    (<int16_t*>arena_at(arena, block))[0] = <int16_t>((old.base >> ERA_MS_BITS) * (1 << CODE_BITS) + code)
    new.code = code
    new.entries = <uint8_t*>arena_at(arena, block) + (LARGE_BEFORE if code >= FIRST_LARGE else SMALL_BEFORE)
    if head.block:
        memcpy(new.entries, old.entries, old.n * ENTRY_BYTES)
        arena_free(arena, head.block, _units(old.code) * 16)
    head.block = block
    _set_n(arena, head, &new, old.n)
    return 0


cdef int _set_room(Arena* arena, LogHead* head, const DistinctC* c, int64_t horizon) noexcept nogil:
    """Room for one more entry: 0; 1 where that is more than exact_values; -1 out of memory."""
    cdef Values values = _values(arena, head)
    cdef uint32_t kept
    if values.n < values.capacity and values.n < c.exact_values:
        return 0
    kept = _set_sweep(&values, horizon, values.base)
    _set_n(arena, head, &values, kept)
    if kept >= c.exact_values:
        return 1
    # Where a sweep frees next to nothing, the next one would soon follow.
    if kept < values.capacity and values.capacity - kept >= (values.capacity >> 3):
        return 0
    return _set_resize(arena, head, _code_for(values.capacity + 1))


cdef int _set_add(Arena* arena, LogHead* head, const DistinctC* c, uint64_t fingerprint, int64_t t,
                  int64_t horizon) noexcept nogil:
    """0; 1 where it needs a MATRIX, which is then up to the caller; -1 out of memory."""
    cdef Values values
    cdef uint8_t* entry
    cdef uint32_t at
    cdef int64_t base
    cdef int status
    if head.block == 0:
        if _set_resize(arena, head, 0) < 0:
            return -1
        _tag(arena, head)[0] = <int16_t>((t >> ERA_MS_BITS) * (1 << CODE_BITS))
    values = _values(arena, head)
    if t - values.base >= ERA_MS:
        base = (t >> ERA_MS_BITS) * ERA_MS
        at = _set_sweep(&values, horizon, base)
        _tag(arena, head)[0] = <int16_t>((t >> ERA_MS_BITS) * (1 << CODE_BITS) + <int64_t>values.code)
        values.base = base
        _set_n(arena, head, &values, at)
    t += ERA_MS - values.base
    if t < 0:
        return 0                         # behind every horizon that the contract allows
    at = _place(values.entries, values.n, fingerprint)
    entry = values.entries + at * ENTRY_BYTES
    if at < values.n and _fingerprint_of(entry) == fingerprint:
        if t > _time_of(entry):
            _put_time(entry, t)
        return 0
    if values.n == values.capacity or values.n >= c.exact_values:
        status = _set_room(arena, head, c, horizon)
        if status:
            return status
        values = _values(arena, head)
        at = _place(values.entries, values.n, fingerprint)
        entry = values.entries + at * ENTRY_BYTES
    memmove(entry + ENTRY_BYTES, entry, (values.n - at) * ENTRY_BYTES)
    memcpy(entry, &fingerprint, 5)
    _put_time(entry, t)
    _set_n(arena, head, &values, values.n + 1)
    return 0


# -- the matrix ----------------------------------------------------------------------------------------------

cdef inline uint32_t _n_ranks(const DistinctC* c) noexcept nogil:
    return FINGERPRINT_BITS - <uint32_t>c.log2_registers + 1


cdef inline uint32_t _cell(const DistinctC* c, uint64_t fingerprint) noexcept nogil:
    """rank << 16 | register. The first bits choose the register; rank r has the probability 2^-(r + 1), the
    last one that of the one before it."""
    cdef uint32_t bits = FINGERPRINT_BITS - <uint32_t>c.log2_registers
    cdef uint64_t rest = fingerprint << (64 - bits)
    return (fs_leading_zeros(rest) if rest else bits) << 16 | <uint32_t>(fingerprint >> bits)


cdef inline int64_t _tick_base(int64_t newest_ms, uint32_t tick_bits) noexcept nogil:
    return ((newest_ms >> tick_bits) >> ERA_TICK_BITS) * ERA_TICKS


cdef inline int32_t _clamped(int64_t tick) noexcept nogil:
    return INT32_MIN if tick < INT32_MIN else INT32_MAX if tick > INT32_MAX else <int32_t>tick


cdef inline Matrix* _matrix(const Arena* arena, const LogHead* head) noexcept nogil:
    return <Matrix*>arena_at(arena, head.block)


cdef inline int32_t* _dense(Matrix* matrix) noexcept nogil:
    return <int32_t*>(matrix + 1)


cdef inline uint64_t* _sparse(Matrix* matrix, const DistinctC* c) noexcept nogil:
    """Words of rank << 48 | register << 32 | last seen, ascending."""
    return <uint64_t*>(_dense(matrix) + (<size_t>matrix.n_dense << c.log2_registers))


cdef inline int32_t _seen(uint64_t word) noexcept nogil:
    return <int32_t><uint32_t>word


cdef inline uint64_t _word(uint64_t cell, int32_t tick) noexcept nogil:
    return cell << 32 | <uint32_t>tick


cdef inline size_t _matrix_bytes(const DistinctC* c, uint32_t n_dense, uint32_t cap_sparse) noexcept nogil:
    return sizeof(Matrix) + (<size_t>n_dense << c.log2_registers) * 4 + <size_t>cap_sparse * 8


cdef inline int32_t _dead(const Matrix* matrix, int64_t horizon) noexcept nogil:
    """Cells up to this one are wholly before the horizon, or NEVER."""
    return _clamped((horizon >> matrix.tick_bits) - matrix.base - 1)


cdef inline uint32_t _first_from(const uint64_t* sparse, uint32_t n, uint64_t key) noexcept nogil:
    """Place of the first sparse cell that is not before key = rank << 16 | register."""
    cdef uint32_t lo = 0, half
    while n > 1:
        half = n >> 1
        lo += half if (sparse[lo + half - 1] >> 32) < key else 0
        n -= half
    return lo + 1 if n == 1 and (sparse[lo] >> 32) < key else lo


cdef uint32_t _matrix_block(Arena* arena, const DistinctC* c, uint32_t n_dense, uint32_t n_sparse,
                            uint32_t* cap_sparse) noexcept nogil:
    """A block with room for so many sparse cells and a quarter more."""
    cdef size_t wanted = arena_rounded(_matrix_bytes(c, n_dense, n_sparse + (n_sparse >> 2) + 2))
    cap_sparse[0] = <uint32_t>((wanted - _matrix_bytes(c, n_dense, 0)) >> 3)
    return arena_alloc(arena, _matrix_bytes(c, n_dense, cap_sparse[0]))


cdef uint32_t _sparse_sweep(uint64_t* to, const uint64_t* sparse, uint32_t n, int32_t dead) noexcept nogil:
    """Copies (also in place) the cells that are not dead. How many."""
    cdef uint32_t i, kept = 0
    for i in range(n):
        to[kept] = sparse[i]
        kept += _seen(sparse[i]) > dead
    return kept


cdef uint32_t _alive(const int32_t* cells, uint32_t n, int32_t dead) noexcept nogil:
    cdef uint32_t i, alive = 0
    for i in range(n):
        alive += cells[i] > dead
    return alive


cdef int _matrix_resize(Arena* arena, LogHead* head, const DistinctC* c, uint32_t n_dense,
                        int32_t dead) noexcept nogil:
    """Moves it to a block of its size, with so many dense ranks. Sparse cells that are dead are dropped."""
    cdef Matrix* old = _matrix(arena, head)
    cdef Matrix* new
    cdef uint32_t m = <uint32_t>1 << c.log2_registers, block, cap_sparse, i, n = 0, rank
    cdef uint32_t n_kept = n_dense if n_dense < old.n_dense else old.n_dense
    cdef const uint64_t* sparse = _sparse(old, c)
    cdef uint64_t* to
    cdef int32_t* cells
    for rank in range(n_dense, old.n_dense):
        n += _alive(_dense(old) + rank * m, m, dead)
    for i in range(old.n_sparse):
        n += (sparse[i] >> 48) >= n_dense and _seen(sparse[i]) > dead
    block = _matrix_block(arena, c, n_dense, n, &cap_sparse)
    if block == 0:
        return -1
    new = <Matrix*>arena_at(arena, block)
    new[0] = old[0]
    new.n_dense = <uint8_t>n_dense
    new.n_sparse = n
    new.cap_sparse = cap_sparse
    cells = _dense(new)
    memcpy(cells, _dense(old), <size_t>n_kept * m * 4)
    for i in range(n_kept * m, n_dense * m):
        cells[i] = NEVER
    to = _sparse(new, c)
    for rank in range(n_dense, old.n_dense):
        for i in range(m):
            if _dense(old)[rank * m + i] > dead:
                to[0] = _word(rank << 16 | i, _dense(old)[rank * m + i])
                to += 1
    i = 0
    while i < old.n_sparse and (sparse[i] >> 48) < n_dense:
        cells[(sparse[i] >> 48) * m + ((sparse[i] >> 32) & 0xFFFF)] = _seen(sparse[i])
        i += 1
    _sparse_sweep(to, sparse + i, old.n_sparse - i, dead)
    arena_free(arena, head.block, _matrix_bytes(c, old.n_dense, old.cap_sparse))
    head.block = block
    return 0


cdef void _promote(Arena* arena, LogHead* head, const DistinctC* c) noexcept nogil:
    """Makes ranks dense of which a quarter is occupied. Out of memory, they stay sparse: no answer depends on
    it."""
    cdef Matrix* matrix = _matrix(arena, head)
    cdef uint32_t of_rank
    while matrix.n_dense < _n_ranks(c):
        of_rank = _first_from(_sparse(matrix, c), matrix.n_sparse, <uint64_t>(matrix.n_dense + 1) << 16)
        if of_rank * 4 < <uint32_t>1 << c.log2_registers:
            return
        if _matrix_resize(arena, head, c, matrix.n_dense + 1, NEVER) < 0:
            return
        matrix = _matrix(arena, head)


cdef int _matrix_put(Arena* arena, LogHead* head, const DistinctC* c, uint32_t cell, int64_t tick,
                     int64_t horizon) noexcept nogil:
    """Cell = rank << 16 | register was seen at `tick` behind the base. 0, or -1 out of memory."""
    cdef Matrix* matrix = _matrix(arena, head)
    cdef uint32_t rank = cell >> 16, at, n
    cdef uint64_t* sparse
    cdef int32_t* dense
    cdef int32_t dead
    if tick <= NEVER:
        return 0                         # more than an era old: behind every horizon
    if rank < matrix.n_dense:
        dense = _dense(matrix) + ((<size_t>rank << c.log2_registers) + (cell & 0xFFFF))
        if <int32_t>tick > dense[0]:
            dense[0] = <int32_t>tick
        return 0
    sparse = _sparse(matrix, c)
    at = _first_from(sparse, matrix.n_sparse, cell)
    if at < matrix.n_sparse and (sparse[at] >> 32) == cell:
        if <int32_t>tick > _seen(sparse[at]):
            sparse[at] = _word(cell, <int32_t>tick)
        return 0
    if matrix.n_sparse == matrix.cap_sparse:
        dead = _dead(matrix, horizon)
        n = _sparse_sweep(sparse, sparse, matrix.n_sparse, dead)
        matrix.n_sparse = n
        if matrix.cap_sparse - n <= matrix.cap_sparse >> 3:
            if _matrix_resize(arena, head, c, matrix.n_dense, dead) < 0:
                return -1
            matrix = _matrix(arena, head)
            sparse = _sparse(matrix, c)
        at = _first_from(sparse, matrix.n_sparse, cell)
    memmove(sparse + at + 1, sparse + at, (matrix.n_sparse - at) * sizeof(uint64_t))
    sparse[at] = _word(cell, <int32_t>tick)
    matrix.n_sparse += 1
    if rank == matrix.n_dense:
        _promote(arena, head, c)
    return 0


cdef void _matrix_retick(Matrix* matrix, const DistinctC* c, uint32_t tick_bits,
                         int64_t newest_ms) noexcept nogil:
    """Counts all cells in coarser units, if they are, from the base that `newest_ms` asks for."""
    cdef uint32_t by = tick_bits - matrix.tick_bits, i
    cdef int64_t base = _tick_base(newest_ms, tick_bits), old_base = matrix.base
    cdef int32_t tick
    cdef int32_t* cells = _dense(matrix)
    cdef uint64_t* sparse = _sparse(matrix, c)
    for i in range(<uint32_t>matrix.n_dense << c.log2_registers):
        if cells[i] != NEVER:
            cells[i] = _clamped(((cells[i] + old_base) >> by) - base)
    for i in range(matrix.n_sparse):
        tick = _clamped(((_seen(sparse[i]) + old_base) >> by) - base)
        sparse[i] = _word(sparse[i] >> 32, tick)
    matrix.n_sparse = _sparse_sweep(sparse, sparse, matrix.n_sparse, NEVER)
    matrix.tick_bits = <uint8_t>tick_bits
    matrix.newest_ms = newest_ms
    matrix.base = base


cdef inline void _matrix_see(Matrix* matrix, const DistinctC* c, int64_t t) noexcept nogil:
    """Moves the newest time up to t, and the base and the units with it where they must."""
    cdef int64_t newest = t if t > matrix.newest_ms else matrix.newest_ms
    if c.tick_bits > matrix.tick_bits:
        _matrix_retick(matrix, c, c.tick_bits, newest)       # the view keeps longer than it did
    elif (newest >> matrix.tick_bits) - matrix.base >= ERA_TICKS:
        _matrix_retick(matrix, c, matrix.tick_bits, newest)
    matrix.newest_ms = newest


cdef inline int _matrix_add(Arena* arena, LogHead* head, const DistinctC* c, uint64_t fingerprint, int64_t t,
                            int64_t horizon) noexcept nogil:
    cdef Matrix* matrix = _matrix(arena, head)
    if t > matrix.newest_ms or c.tick_bits > matrix.tick_bits:
        _matrix_see(matrix, c, t)
    return _matrix_put(arena, head, c, _cell(c, fingerprint), (t >> matrix.tick_bits) - matrix.base, horizon)


cdef uint32_t _new_matrix(Arena* arena, const DistinctC* c, uint32_t n_sparse,
                          int64_t newest_ms) noexcept nogil:
    """Handle of a block of no cells, with room for so many sparse ones; 0: out of memory."""
    cdef uint32_t cap_sparse, block = _matrix_block(arena, c, 0, n_sparse, &cap_sparse)
    cdef Matrix* matrix
    if block:
        matrix = <Matrix*>arena_at(arena, block)
        memset(matrix, 0, sizeof(Matrix))
        matrix.tick_bits = c.tick_bits
        matrix.cap_sparse = cap_sparse
        matrix.newest_ms = newest_ms
        matrix.base = _tick_base(newest_ms, c.tick_bits)
    return block


cdef int _to_matrix(Arena* arena, LogHead* head, const DistinctC* c) noexcept nogil:
    """Makes the SET a MATRIX of the same values: a fingerprint says which cell is its own. 0, or -1 out of
    memory."""
    cdef Values values = _values(arena, head)
    cdef uint32_t counts[MAX_RANKS]
    cdef uint32_t i, _i, n = 0, rank, block
    cdef const uint8_t* entry = values.entries
    cdef Matrix* matrix
    cdef uint64_t* sparse
    cdef uint64_t word
    cdef int64_t newest = _time_of(entry), t
    memset(counts, 0, sizeof(counts))
    for _i in range(values.n):
        t = _time_of(entry)
        if t > newest:
            newest = t
        rank = _cell(c, _fingerprint_of(entry)) >> 16
        if rank + 1 < _n_ranks(c):
            counts[rank + 1] += 1
        entry += ENTRY_BYTES
    block = _new_matrix(arena, c, values.n, newest + values.base - ERA_MS)
    if block == 0:
        return -1
    matrix = <Matrix*>arena_at(arena, block)
    # The values are by fingerprint, so by register: dealt out by rank, they are in the order of cells.
    sparse = _sparse(matrix, c)
    for rank in range(1, _n_ranks(c)):
        counts[rank] += counts[rank - 1]
    entry = values.entries
    for _i in range(values.n):
        word = _cell(c, _fingerprint_of(entry))
        t = ((_time_of(entry) + values.base - ERA_MS) >> matrix.tick_bits) - matrix.base
        sparse[counts[word >> 16]] = _word(word, _clamped(t))
        counts[word >> 16] += 1
        entry += ENTRY_BYTES
    for i in range(values.n):
        if n and (sparse[n - 1] >> 32) == (sparse[i] >> 32):
            if _seen(sparse[i]) > _seen(sparse[n - 1]):
                sparse[n - 1] = sparse[i]
        else:
            sparse[n] = sparse[i]
            n += 1
    matrix.n_sparse = n
    arena_free(arena, head.block, _units(values.code) * 16)
    head.block = block
    head.n_small = 0
    _promote(arena, head, c)
    return 0


# -- either --------------------------------------------------------------------------------------------------

cdef size_t distinct_block_bytes(const Arena* arena, const LogHead* head, const DistinctC* c) noexcept nogil:
    cdef Matrix* matrix
    if head.block == 0:
        return 0
    if _is_matrix(head):
        matrix = _matrix(arena, head)
        return _matrix_bytes(c, matrix.n_dense, matrix.cap_sparse)
    return _units(_tag(arena, head)[0] & CODE_MASK) * 16


cdef void distinct_free(Arena* arena, LogHead* head, const DistinctC* c) noexcept nogil:
    if head.block:
        arena_free(arena, head.block, distinct_block_bytes(arena, head, c))
    head.block = 0
    head.n_small = 0


cdef int distinct_clone(Arena* arena, const LogHead* head, const DistinctC* c, LogHead* copy) noexcept nogil:
    cdef size_t n_bytes = distinct_block_bytes(arena, head, c)
    copy[0] = head[0]
    if head.block == 0:
        return 0
    copy.block = arena_alloc(arena, n_bytes)
    if copy.block == 0:
        return -1
    memcpy(arena_at(arena, copy.block), arena_at(arena, head.block), n_bytes)
    return 0


cdef inline int _add(Arena* arena, LogHead* head, const DistinctC* c, uint64_t fingerprint, int64_t t,
                     int64_t horizon) noexcept nogil:
    cdef int status
    if head.block and _is_matrix(head):
        if _matrix(arena, head).newest_ms >= horizon:
            return _matrix_add(arena, head, c, fingerprint, t, horizon)
        # All of it counts as absent, so what follows must be what follows nothing.
        distinct_free(arena, head, c)
    status = _set_add(arena, head, c, fingerprint, t, horizon)
    if status <= 0:
        return status
    if _to_matrix(arena, head, c) < 0:
        return -1
    return _matrix_add(arena, head, c, fingerprint, t, horizon)


cdef int distinct_add(Arena* arena, LogHead* head, const DistinctC* c, uint64_t hash, int64_t time_ms,
                      int64_t horizon_ms) noexcept nogil:
    return _add(arena, head, c, hash >> (64 - FINGERPRINT_BITS), time_ms, horizon_ms)


cdef inline void _prefetch_around(const char* entries, uint32_t n, uint64_t fingerprint) noexcept nogil:
    """What _place reads: it is off by up to sqrt(n) entries. And some of what moves up for a new entry."""
    cdef const char* entry = entries + ((fingerprint >> 8) * n >> 32) * ENTRY_BYTES
    cdef const char* end = entries + (n + 1) * ENTRY_BYTES
    if n > 8:
        fs_prefetch(entry - 60)
    if n > 160:
        fs_prefetch(entry - 124)
    if end > entry + FETCHED_BYTES:
        end = entry + FETCHED_BYTES
    entry += ENTRY_BYTES - 1
    while entry < end:
        fs_prefetch(entry)
        entry += 64


cdef void distinct_prefetch(const Arena* arena, const LogHead* head, const DistinctC* c,
                            uint64_t hash) noexcept nogil:
    cdef uint64_t fingerprint = hash >> (64 - FINGERPRINT_BITS)
    cdef const char* block
    cdef uint32_t cell
    if head.block == 0:
        return
    block = <const char*>arena_at(arena, head.block)
    fs_prefetch(block)
    if head.n_small == N_IN_BLOCK:
        return
    if head.n_small:
        _prefetch_around(block + SMALL_BEFORE, head.n_small, fingerprint)
    else:
        cell = _cell(c, fingerprint)
        fs_prefetch(block + sizeof(Matrix)
                    + ((<size_t>(cell >> 16) << c.log2_registers) + (cell & 0xFFFF)) * 4)


cdef void distinct_prefetch_value(const Arena* arena, const LogHead* head, const DistinctC* c,
                                  uint64_t hash) noexcept nogil:
    cdef uint64_t fingerprint = hash >> (64 - FINGERPRINT_BITS)
    cdef Values values
    cdef Matrix* matrix
    cdef const uint64_t* sparse
    cdef uint32_t cell, n
    if head.block == 0 or 0 < head.n_small < N_IN_BLOCK:
        return
    if not _is_matrix(head):
        values = _values(arena, head)
        _prefetch_around(<const char*>values.entries, values.n, fingerprint)
        return
    matrix = _matrix(arena, head)
    cell = _cell(c, fingerprint)
    if (cell >> 16) < matrix.n_dense:
        return
    # Half of the sparse cells are of the first sparse rank: where the search will look, and about where it
    # ends.
    sparse = _sparse(matrix, c)
    n = matrix.n_sparse
    fs_prefetch(&sparse[n >> 1])
    if (cell >> 16) == matrix.n_dense:
        fs_prefetch(&sparse[n >> 2])
        fs_prefetch(&sparse[(<uint64_t>(cell & 0xFFFF) * (n >> 1)) >> c.log2_registers])
    else:
        fs_prefetch(&sparse[n - (n >> 2)])


cdef bint distinct_expired(const Arena* arena, const LogHead* head, int64_t horizon_ms) noexcept nogil:
    cdef Values values
    cdef uint32_t i
    if head.block == 0:
        return True
    if _is_matrix(head):
        return _matrix(arena, head).newest_ms < horizon_ms
    values = _values(arena, head)
    for i in range(values.n):
        if _time_of(values.entries + i * ENTRY_BYTES) + values.base - ERA_MS >= horizon_ms:
            return False
    return True


cdef int distinct_prune(Arena* arena, LogHead* head, const DistinctC* c, int64_t horizon_ms) noexcept nogil:
    cdef Values values
    cdef Matrix* matrix
    cdef uint32_t n, m = <uint32_t>1 << c.log2_registers
    cdef int32_t dead
    if distinct_expired(arena, head, horizon_ms):
        distinct_free(arena, head, c)
        return 0
    if not _is_matrix(head):
        values = _values(arena, head)
        _set_n(arena, head, &values, _set_sweep(&values, horizon_ms, values.base))
        if values.n * 2 > values.capacity:
            return 0
        return _set_resize(arena, head, _code_for(values.n)) if _code_for(values.n) < values.code else 0
    matrix = _matrix(arena, head)
    dead = _dead(matrix, horizon_ms)
    n = matrix.n_dense
    # An eighth here and a quarter in _promote: no rank goes to and fro.
    while n and _alive(_dense(matrix) + (n - 1) * m, m, dead) * 8 < m:
        n -= 1
    matrix.n_sparse = _sparse_sweep(_sparse(matrix, c), _sparse(matrix, c), matrix.n_sparse, dead)
    if n < matrix.n_dense or (matrix.cap_sparse > 16 and matrix.n_sparse * 2 < matrix.cap_sparse):
        return _matrix_resize(arena, head, c, n, dead)
    return 0


cdef int distinct_merge(Arena* arena, LogHead* head, const DistinctC* c, const Arena* from_arena,
                        const LogHead* from_, int64_t horizon_ms) noexcept nogil:
    cdef Values values
    cdef Matrix* from_matrix
    cdef Matrix* matrix
    cdef const uint8_t* entry
    cdef const uint64_t* sparse
    cdef const int32_t* cells
    cdef uint32_t by, i, m = <uint32_t>1 << c.log2_registers, rank
    cdef int32_t dead
    cdef int64_t t, shift
    if distinct_expired(from_arena, from_, horizon_ms):
        return 0
    if not _is_matrix(from_):
        values = _values(from_arena, from_)
        for i in range(values.n):
            entry = values.entries + i * ENTRY_BYTES
            t = _time_of(entry) + values.base - ERA_MS
            if t >= horizon_ms and _add(arena, head, c, _fingerprint_of(entry), t, horizon_ms) < 0:
                return -1
        return 0
    from_matrix = _matrix(from_arena, from_)
    if distinct_expired(arena, head, horizon_ms):
        distinct_free(arena, head, c)
        head.block = _new_matrix(arena, c, from_matrix.n_sparse, from_matrix.newest_ms)
        if head.block == 0:
            return -1
    elif not _is_matrix(head):
        values = _values(arena, head)
        _set_n(arena, head, &values, _set_sweep(&values, horizon_ms, values.base))
        if _to_matrix(arena, head, c) < 0:
            return -1
    matrix = _matrix(arena, head)
    if from_matrix.tick_bits > matrix.tick_bits:
        _matrix_retick(matrix, c, from_matrix.tick_bits,
                       from_matrix.newest_ms if from_matrix.newest_ms > matrix.newest_ms
                       else matrix.newest_ms)
    _matrix_see(matrix, c, from_matrix.newest_ms)
    by = matrix.tick_bits - from_matrix.tick_bits
    shift = matrix.base
    dead = _dead(from_matrix, horizon_ms)
    cells = _dense(from_matrix)
    for rank in range(from_matrix.n_dense):
        for i in range(m):
            if cells[rank * m + i] > dead:
                t = ((cells[rank * m + i] + from_matrix.base) >> by) - shift
                if _matrix_put(arena, head, c, rank << 16 | i, t, horizon_ms) < 0:
                    return -1
    sparse = _sparse(from_matrix, c)
    for i in range(from_matrix.n_sparse):
        if _seen(sparse[i]) > dead:
            t = ((_seen(sparse[i]) + from_matrix.base) >> by) - shift
            if _matrix_put(arena, head, c, <uint32_t>(sparse[i] >> 32), t, horizon_ms) < 0:
                return -1
    return 0


# -- what the counts say -------------------------------------------------------------------------------------

cdef inline double _hit(double x) noexcept nogil:
    """1 - exp(-x) for 0 <= x <= 1/16, to the last bits and the same everywhere: no libm."""
    return x * (1.0 - x / 2.0 * (1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0 * (
        1.0 - x / 6.0 * (1.0 - x / 7.0 * (1.0 - x / 8.0)))))))


cdef double _likeliest(const uint32_t* counts, const DistinctC* c) noexcept nogil:
    """The number of values that makes counts[r] occupied cells of each rank r the likeliest.

    With x = values / m * 2^-(r + 1) a register's cell of rank r is empty with probability exp(-x). The root
    of sum(counts[r] * x / (1 - exp(-x))) - values, convex and falling: Newton's steps from the left rise to
    it, and one from the right leads to the left.
    """
    cdef uint32_t last = _n_ranks(c) - 1, r, top = 0, _step
    cdef uint64_t occupied = 0
    cdef double m = <double>(<uint64_t>1 << c.log2_registers), n, x, hit, each, value, slope, moved, full
    for r in range(last + 1):
        occupied += counts[r]
        if counts[r]:
            top = r
    if occupied == 0:
        return 0.0
    # Near enough: so many cells are occupied by m * 2^(occupied / m + 1/3) values, when they are many.
    full = floor(<double>occupied / m)
    n = m * 0.794 * <double>(<uint64_t>1 << <uint32_t>full) * (1.0 + (<double>occupied / m - full))
    if full < 2.0 or n < <double>occupied:
        n = <double>occupied
    for _step in range(64):
        x = n / m * <double>(<uint64_t>1 << 40 - top) / <double>(<uint64_t>1 << 41)
        if top == last:
            x *= 2.0
        hit = x
        r = 0
        while hit > 0.0625:
            hit *= 0.5
            r += 1
        hit = _hit(hit)
        while r:
            hit = hit * (2.0 - hit)      # twice the x
            r -= 1
        value = slope = 0.0
        r = top + 1
        while r:
            r -= 1
            each = x / hit
            value += counts[r] * each
            slope += counts[r] * (each - each * each * (1.0 - hit))
            if r != last:
                x *= 2.0
                hit = hit * (2.0 - hit)
        moved = n * (value - n) / (n - slope)
        n += moved
        if n <= 0.0:
            n = <double>occupied         # it is never less
        if -1e-9 * n < moved < 1e-9 * n:
            break
        if not n < 1.1e12:               # more than there are fingerprints: every cell is occupied
            return 1.1e12
    return n


cdef double _spread(double n, const DistinctC* c) noexcept nogil:
    """Standard error of _likeliest, relative, when there are n > 0 values.

    1 / information - n: were n itself drawn (Poisson), its variance would be part of the inverse of Fisher's
    information, and it is not drawn.
    """
    cdef double m = <double>(<uint64_t>1 << c.log2_registers), x = n / (2.0 * m), hit, information
    cdef uint32_t above = 0
    while x > 0.0625:
        x *= 0.5
        above += 1
    # x^2 / (exp(x) - 1) over this rank and all later ones, each with half the x: a series each, summed.
    information = x * (2.0 - x * (2.0 / 3.0 - x * (2.0 / 21.0 - x * x / 697.5)))
    hit = _hit(x)
    while above and hit < 1.0:
        x *= 2.0
        hit = hit * (2.0 - hit)
        information += x * x * (1.0 - hit) / hit
        above -= 1
    information = 1.0 / (m * information) - 1.0 / n
    return sqrt(information) if information > 0.0 else 0.0


cdef void _judge(const uint32_t* sure, const uint32_t* perhaps, double share, const DistinctC* c,
                 DistinctValue* out) noexcept nogil:
    """A window of which sure[r] cells of rank r are occupied for certain, and perhaps[r] at most; `share` of
    what they are apart is in the estimate."""
    cdef uint32_t r
    cdef uint64_t n_sure = 0, n_perhaps = 0
    cdef double least, most, z = c.z * WIDER
    for r in range(_n_ranks(c)):
        n_sure += sure[r]
        n_perhaps += perhaps[r]
    memset(out, 0, sizeof(DistinctValue))
    if n_perhaps == 0:
        out.certain = 1
        return
    least = most = _likeliest(sure, c)
    if n_sure != n_perhaps:
        most = _likeliest(perhaps, c)
    out.estimate = least + (most - least) * share
    if least > 0.0:
        out.lower = floor(least * (1.0 - z * _spread(least, c)))
        if out.lower < <double>n_sure:
            out.lower = <double>n_sure   # two values may share a cell; one does not have two
    out.upper = ceil(most / (1.0 - z * _spread(most, c)))


# -- read ----------------------------------------------------------------------------------------------------

cdef inline double _share(int64_t lo, int64_t at, int64_t last) noexcept nogil:
    """Of what was last seen behind `at`, how much of (lo, last] is before it."""
    return <double>(at - lo) / <double>(last - lo)


cdef void _read_set(const Values* values, int64_t at, const int64_t* lo, uint32_t n, uint64_t own_hash,
                    DistinctValue* out) noexcept nogil:
    cdef int64_t after[CHUNK]
    cdef uint32_t sure[CHUNK]
    cdef uint32_t later[CHUNK]
    cdef double some[CHUNK]
    cdef int64_t offset = values.base - ERA_MS, t
    cdef uint64_t own = own_hash >> (64 - FINGERPRINT_BITS)
    cdef const uint8_t* entry = values.entries
    cdef uint32_t _i, j
    for j in range(n):
        after[j] = lo[j] - offset
        sure[j] = later[j] = 0
        some[j] = 0.0
    for _i in range(values.n):
        t = _time_of(entry)
        if t + offset <= at or (own_hash != 0 and _fingerprint_of(entry) == own):
            for j in range(n):
                sure[j] += t > after[j]
        else:
            for j in range(n):
                if t > after[j]:
                    later[j] += 1
                    some[j] += _share(lo[j], at, t + offset)
        entry += ENTRY_BYTES
    for j in range(n):
        out[j].lower = <double>sure[j]
        out[j].upper = <double>sure[j] + <double>later[j]
        out[j].estimate = <double>sure[j] + some[j]
        out[j].certain = 1
        out[j].past = later[j] != 0


cdef inline uint32_t _n_after(const int32_t* cells, uint32_t m, int32_t tick) noexcept nogil:
    cdef uint32_t i, n = 0
    for i in range(m):
        n += cells[i] > tick
    return n


cdef void _read_matrix(Matrix* matrix, const DistinctC* c, int64_t at, const int64_t* lo, uint32_t n,
                       uint64_t own_hash, DistinctValue* out) noexcept nogil:
    cdef int32_t after[2 * CHUNK + 1]
    cdef uint32_t counts[2 * CHUNK + 1][MAX_RANKS]
    cdef uint32_t sure[MAX_RANKS]
    cdef uint32_t perhaps[MAX_RANKS]
    cdef uint32_t m = <uint32_t>1 << c.log2_registers, n_after = n, rank, i, j, beyond
    cdef bint past = at < matrix.newest_ms, coarse = matrix.tick_bits != 0
    cdef const uint64_t* sparse = _sparse(matrix, c)
    cdef const int32_t* cells
    cdef int32_t tick
    for j in range(n):
        after[j] = _clamped((lo[j] >> matrix.tick_bits) - matrix.base)
    # The unit that holds both sides of a window's edge is in it perhaps.
    if coarse:
        for j in range(n):
            after[n + j] = _clamped(((lo[j] + 1) >> matrix.tick_bits) - matrix.base - 1)
        n_after = 2 * n
    if past:
        after[n_after] = _clamped(((at + 1) >> matrix.tick_bits) - matrix.base - 1)
        n_after += 1
    for j in range(n_after):
        memset(counts[j], 0, _n_ranks(c) * sizeof(uint32_t))
    for rank in range(matrix.n_dense):
        cells = _dense(matrix) + (<size_t>rank << c.log2_registers)
        for j in range(n_after):
            # A longer window has at least the cells of a shorter one.
            if j and after[j] <= after[j - 1] and counts[j - 1][rank] == m:
                counts[j][rank] = m
            else:
                counts[j][rank] = _n_after(cells, m, after[j])
    for i in range(matrix.n_sparse):
        rank = <uint32_t>(sparse[i] >> 48)
        tick = _seen(sparse[i])
        for j in range(n_after):
            counts[j][rank] += tick > after[j]
    for j in range(n):
        for rank in range(_n_ranks(c)):
            sure[rank] = counts[j][rank]
            perhaps[rank] = counts[n + j][rank] if coarse else sure[rank]
            if past:
                beyond = counts[n_after - 1][rank]
                sure[rank] -= beyond if beyond < sure[rank] else sure[rank]
        _judge(sure, perhaps, _share(lo[j], at, matrix.newest_ms) if past and lo[j] < at else 0.5, c, &out[j])
        out[j].past = past and lo[j] < at
        if own_hash != 0 and out[j].past:
            out[j].lower = max(out[j].lower, 1.0)
            out[j].estimate = max(out[j].estimate, 1.0)
            out[j].upper = max(out[j].upper, 1.0)


cdef void distinct_read(const Arena* arena, const LogHead* head, const DistinctC* c, int64_t at_ms,
                        int64_t horizon_ms, uint64_t own_hash, const int64_t* windows_ms, uint32_t n_windows,
                        DistinctValue* out) noexcept nogil:
    cdef int64_t lo[CHUNK]
    cdef uint32_t i = 0, j, n
    cdef Values values
    cdef Matrix* matrix = NULL
    memset(&values, 0, sizeof(Values))
    if head != NULL and head.block:
        if _is_matrix(head):
            matrix = _matrix(arena, head)
        else:
            values = _values(arena, head)
    while i < n_windows:
        n = n_windows - i if n_windows - i < CHUNK else CHUNK
        for j in range(n):
            # What is older than the horizon is absent, whether or not it was freed.
            lo[j] = at_ms - windows_ms[i + j]
            if lo[j] < horizon_ms - 1:
                lo[j] = horizon_ms - 1
            if lo[j] >= at_ms:
                lo[j] = MAX_TIME_MS      # nothing is later than that
        if matrix != NULL:
            _read_matrix(matrix, c, at_ms, lo, n, own_hash, &out[i])
        else:
            _read_set(&values, at_ms, lo, n, own_hash, &out[i])
        i += n


# -- bytes ---------------------------------------------------------------------------------------------------

cdef inline size_t _padded(size_t n_bytes) noexcept nogil:
    return (n_bytes + 7) & ~<size_t>7


cdef uint32_t _dense_in_bytes(Matrix* matrix, const DistinctC* c, int32_t dead,
                              uint32_t* n_sparse) noexcept nogil:
    """How many ranks are written dense, and how many cells are not in them."""
    cdef uint32_t alive[MAX_RANKS]
    cdef uint32_t m = <uint32_t>1 << c.log2_registers, rank, i, n_dense = 0
    cdef const uint64_t* sparse = _sparse(matrix, c)
    memset(alive, 0, sizeof(alive))
    for rank in range(matrix.n_dense):
        alive[rank] = _alive(_dense(matrix) + (<size_t>rank << c.log2_registers), m, dead)
    for i in range(matrix.n_sparse):
        alive[sparse[i] >> 48] += _seen(sparse[i]) > dead
    while n_dense < _n_ranks(c) and alive[n_dense] * 2 >= m:
        n_dense += 1
    n_sparse[0] = 0
    for rank in range(n_dense, _n_ranks(c)):
        n_sparse[0] += alive[rank]
    return n_dense


cdef size_t distinct_export_bytes(const Arena* arena, const LogHead* head, const DistinctC* c,
                                  int64_t horizon_ms) noexcept nogil:
    cdef Values values
    cdef Matrix* matrix
    cdef uint32_t i, n = 0, n_dense
    if distinct_expired(arena, head, horizon_ms):
        return EXPORT_SET_BYTES
    if _is_matrix(head):
        matrix = _matrix(arena, head)
        n_dense = _dense_in_bytes(matrix, c, _dead(matrix, horizon_ms), &n)
        return EXPORT_MATRIX_BYTES + (<size_t>n_dense << c.log2_registers) * 4 + <size_t>n * 8
    values = _values(arena, head)
    for i in range(values.n):
        n += _time_of(values.entries + i * ENTRY_BYTES) + values.base - ERA_MS >= horizon_ms
    return EXPORT_SET_BYTES + _padded(<size_t>n * ENTRY_BYTES)


cdef void _export_matrix(Matrix* matrix, const DistinctC* c, int32_t dead, uint8_t* out) noexcept nogil:
    cdef uint32_t m = <uint32_t>1 << c.log2_registers, n_sparse, n_dense, rank, i
    cdef const uint64_t* sparse = _sparse(matrix, c)
    cdef uint8_t* cells = out + EXPORT_MATRIX_BYTES
    cdef uint8_t* to
    cdef uint64_t word
    cdef int32_t tick = NEVER
    n_dense = _dense_in_bytes(matrix, c, dead, &n_sparse)
    out[2] = EXPORT_MATRIX
    out[3] = c.log2_registers
    out[4] = matrix.tick_bits
    out[5] = <uint8_t>n_dense
    memcpy(out + 8, &n_sparse, 4)
    memcpy(out + 16, &matrix.newest_ms, 8)
    to = cells + (<size_t>n_dense << c.log2_registers) * 4
    for i in range(n_dense * m):
        memcpy(cells + <size_t>i * 4, &tick, 4)
    for rank in range(matrix.n_dense):
        for i in range(m):
            tick = _dense(matrix)[rank * m + i]
            if tick > dead:
                if rank < n_dense:
                    memcpy(cells + <size_t>(rank * m + i) * 4, &tick, 4)
                else:
                    word = _word(rank << 16 | i, tick)
                    memcpy(to, &word, 8)
                    to += 8
    for i in range(matrix.n_sparse):
        tick = _seen(sparse[i])
        if tick > dead:
            rank = <uint32_t>(sparse[i] >> 48)
            if rank < n_dense:
                memcpy(cells + <size_t>(rank * m + ((sparse[i] >> 32) & 0xFFFF)) * 4, &tick, 4)
            else:
                memcpy(to, &sparse[i], 8)
                to += 8


cdef void distinct_export(const Arena* arena, const LogHead* head, const DistinctC* c, int64_t horizon_ms,
                          uint8_t* out) noexcept nogil:
    cdef Values values
    cdef uint8_t* to = out + EXPORT_SET_BYTES
    cdef const uint8_t* entry
    cdef uint32_t i, n = 0
    cdef bint expired = distinct_expired(arena, head, horizon_ms)
    memset(out, 0, EXPORT_SET_BYTES)
    memcpy(out, &head.view_id, 2)
    out[2] = EXPORT_SET
    if expired:
        return
    if _is_matrix(head):
        memset(out, 0, EXPORT_MATRIX_BYTES)
        memcpy(out, &head.view_id, 2)
        _export_matrix(_matrix(arena, head), c, _dead(_matrix(arena, head), horizon_ms), out)
        return
    values = _values(arena, head)
    for i in range(values.n):
        entry = values.entries + i * ENTRY_BYTES
        if _time_of(entry) + values.base - ERA_MS >= horizon_ms:
            memcpy(to, entry, ENTRY_BYTES)
            to += ENTRY_BYTES
            n += 1
    memset(to, 0, _padded(<size_t>n * ENTRY_BYTES) - <size_t>n * ENTRY_BYTES)
    memcpy(out + 4, &n, 4)
    memcpy(out + 8, &values.base, 8)


cdef int64_t _import_set(Arena* arena, LogHead* head, const DistinctC* c, const uint8_t* data,
                         size_t n) noexcept nogil:
    cdef Values values
    cdef uint32_t n_values, i
    cdef int64_t base, t, newest = -1
    cdef const uint8_t* entry = data + EXPORT_SET_BYTES
    memcpy(&n_values, data + 4, 4)
    memcpy(&base, data + 8, 8)
    if data[3] or n_values > c.exact_values or _padded(<size_t>n_values * ENTRY_BYTES) > n - EXPORT_SET_BYTES:
        return 0
    if base < -MAX_TIME_MS or base >= MAX_TIME_MS or base & (ERA_MS - 1):
        return 0
    if n_values == 0:
        return EXPORT_SET_BYTES if base == 0 else 0
    for i in range(n_values):
        if i and _fingerprint_of(entry) <= _fingerprint_of(entry - ENTRY_BYTES):
            return 0
        t = _time_of(entry)
        if t > newest:
            newest = t
        entry += ENTRY_BYTES
    if newest < ERA_MS:
        return 0                         # the base is not what the newest asks for
    for i in range(<uint32_t>(_padded(<size_t>n_values * ENTRY_BYTES) - <size_t>n_values * ENTRY_BYTES)):
        if entry[i]:
            return 0
    if _set_resize(arena, head, _code_for(n_values)) < 0:
        return -1
    _tag(arena, head)[0] = <int16_t>((base >> ERA_MS_BITS) * (1 << CODE_BITS) + _code_for(n_values))
    values = _values(arena, head)
    memcpy(values.entries, data + EXPORT_SET_BYTES, n_values * ENTRY_BYTES)
    _set_n(arena, head, &values, n_values)
    return <int64_t>(EXPORT_SET_BYTES + _padded(<size_t>n_values * ENTRY_BYTES))


cdef int64_t _import_matrix(Arena* arena, LogHead* head, const DistinctC* c, const uint8_t* data,
                            size_t n) noexcept nogil:
    cdef uint32_t m = <uint32_t>1 << c.log2_registers, n_dense = 0, n_sparse, cap_sparse, block, i, _i, zero
    cdef uint16_t zero16
    cdef size_t dense_bytes, n_bytes
    cdef int64_t newest_ms, newest
    cdef const uint8_t* at
    cdef Matrix* matrix
    cdef uint64_t word, before = 0
    cdef int32_t tick
    cdef bint has_newest = False
    if n < EXPORT_MATRIX_BYTES or data[3] != c.log2_registers:
        return 0
    n_dense = data[5]
    memcpy(&zero16, data + 6, 2)
    memcpy(&n_sparse, data + 8, 4)
    memcpy(&zero, data + 12, 4)
    memcpy(&newest_ms, data + 16, 8)
    dense_bytes = (<size_t>n_dense << c.log2_registers) * 4
    n_bytes = EXPORT_MATRIX_BYTES + dense_bytes + <size_t>n_sparse * 8
    if (data[4] > 16 or n_dense > _n_ranks(c) or n_sparse > _n_ranks(c) * m or n_bytes > n or zero or zero16
            or newest_ms < -MAX_TIME_MS or newest_ms >= MAX_TIME_MS or (n_dense == 0 and n_sparse == 0)):
        return 0
    # The newest time is that of the newest cell, and the sparse cells are in order and in their place.
    newest = (newest_ms >> data[4]) - _tick_base(newest_ms, data[4])
    at = data + EXPORT_MATRIX_BYTES
    for _i in range(n_dense * m):
        memcpy(&tick, at, 4)
        if tick > newest:
            return 0
        has_newest |= tick == newest
        at += 4
    for i in range(n_sparse):
        memcpy(&word, at, 8)
        tick = _seen(word)
        if (tick > newest or tick == NEVER or (i and word >> 32 <= before) or (word >> 48) < n_dense
                or (word >> 48) >= _n_ranks(c) or ((word >> 32) & 0xFFFF) >= m):
            return 0
        has_newest |= tick == newest
        before = word >> 32
        at += 8
    if not has_newest:
        return 0
    block = _matrix_block(arena, c, n_dense, n_sparse, &cap_sparse)
    if block == 0:
        return -1
    head.block = block
    matrix = _matrix(arena, head)
    memset(matrix, 0, sizeof(Matrix))
    matrix.tick_bits = data[4]
    matrix.n_dense = <uint8_t>n_dense
    matrix.n_sparse = n_sparse
    matrix.cap_sparse = cap_sparse
    matrix.newest_ms = newest_ms
    matrix.base = _tick_base(newest_ms, data[4])
    memcpy(_dense(matrix), data + EXPORT_MATRIX_BYTES, dense_bytes)
    memcpy(_sparse(matrix, c), data + EXPORT_MATRIX_BYTES + dense_bytes, <size_t>n_sparse * 8)
    _promote(arena, head, c)
    return <int64_t>n_bytes


cdef int64_t distinct_import(Arena* arena, LogHead* head, const DistinctC* c, const uint8_t* data,
                             size_t n) noexcept nogil:
    memset(head, 0, sizeof(LogHead))
    head.kind = LOG_DISTINCT
    if n < EXPORT_SET_BYTES:
        return 0
    memcpy(&head.view_id, data, 2)
    if data[2] == EXPORT_SET:
        return _import_set(arena, head, c, data, n)
    if data[2] == EXPORT_MATRIX:
        return _import_matrix(arena, head, c, data, n)
    return 0


# -- for Python ----------------------------------------------------------------------------------------------

@cython.final
cdef class _Answers:
    """Arrays that answers are written to: estimate, lower, upper, certain, each (n_reads, n_windows)."""
    cdef readonly tuple arrays
    cdef double* estimate        # into the arrays
    cdef double* lower
    cdef double* upper
    cdef uint8_t* certain
    cdef DistinctValue* row      # [n_windows] of one read, owned
    cdef Py_ssize_t n_windows

    def __cinit__(self, n_reads, const int64_t[::1] windows_ms not None):
        cdef double[:, ::1] estimate, lower, upper
        cdef uint8_t[:, ::1] certain
        cdef Py_ssize_t i
        self.n_windows = windows_ms.shape[0]
        if self.n_windows == 0:
            raise ValueError("no window")
        for i in range(self.n_windows):
            if not 0 < windows_ms[i] < MAX_TIME_MS or (i and windows_ms[i] < windows_ms[i - 1]):
                raise ValueError("windows_ms ascend, and each is 1 ms at least")
        self.row = <DistinctValue*>malloc(self.n_windows * sizeof(DistinctValue))
        if self.row == NULL:
            raise MemoryError
        shape = (n_reads, self.n_windows)
        self.arrays = (np.empty(shape), np.empty(shape), np.empty(shape), np.empty(shape, np.bool_))
        if n_reads:
            estimate, lower, upper = self.arrays[:3]
            certain = self.arrays[3].view(np.uint8)
            self.estimate, self.lower, self.upper = &estimate[0, 0], &lower[0, 0], &upper[0, 0]
            self.certain = &certain[0, 0]

    def __dealloc__(self):
        free(self.row)

    cdef void put(self, Py_ssize_t i) noexcept nogil:
        """Makes `row` the i-th read."""
        cdef Py_ssize_t j, at = i * self.n_windows
        for j in range(self.n_windows):
            self.estimate[at + j] = self.row[j].estimate
            self.lower[at + j] = self.row[j].lower
            self.upper[at + j] = self.row[j].upper
            self.certain[at + j] = self.row[j].certain


@cython.final
cdef class DistinctCounters:
    """Distinct counters of keys 0 .. n_keys - 1, in an arena of their own; not thread-safe.

    Their clock is the newest time added, as with a store's `event` clock: of each addition what is older than
    that less keep_ms is late, and is not counted. Hashes are taken as they are: uniform, and under a secret
    where values are chosen by others (see hashing.pxd). Bounds that are not certain are z standard errors
    away: 1.96 for 95 %.
    """
    cdef Pool _pool
    cdef Arena _arena
    cdef DistinctC _c
    cdef LogHead* _heads         # [n_keys], owned
    cdef uint32_t _n_keys
    cdef int64_t _now_ms

    def __cinit__(self, n_keys=1, *, keep_ms, exact_values=DEFAULT_EXACT_VALUES,
                  log2_registers=DEFAULT_LOG2_REGISTERS, z=DEFAULT_Z):
        cdef uint32_t i
        cdef size_t n_bytes
        if not 1 <= n_keys < 1 << 32:
            raise ValueError(f"n_keys is 1 to 2^32 - 1, not {n_keys}")
        if not 0 < keep_ms <= MAX_KEEP_MS:
            raise ValueError(f"keep_ms is 1 to {MAX_KEEP_MS}, not {keep_ms}")
        if not 1 <= exact_values <= MAX_EXACT_VALUES:
            raise ValueError(f"exact_values is 1 to {MAX_EXACT_VALUES}, not {exact_values}")
        if not MIN_LOG2_REGISTERS <= log2_registers <= MAX_LOG2_REGISTERS:
            raise ValueError(
                f"log2_registers is {MIN_LOG2_REGISTERS} to {MAX_LOG2_REGISTERS}, not {log2_registers}"
            )
        if not 0.0 < z <= 4.0:
            raise ValueError(f"z is more than 0 and at most 4, not {z}")
        if pool_init(&self._pool) < 0:
            raise MemoryError
        arena_init(&self._arena, &self._pool)
        n_bytes = n_keys * sizeof(LogHead)
        self._heads = <LogHead*>pages_map(n_bytes, n_bytes >= SLAB_BYTES)
        if self._heads == NULL:
            raise MemoryError
        self._n_keys = <uint32_t>n_keys
        for i in range(self._n_keys):
            self._heads[i].kind = LOG_DISTINCT
        self._c = distinct_c(exact_values, log2_registers, z, keep_ms)
        self._now_ms = -MAX_TIME_MS

    def __dealloc__(self):
        arena_clear(&self._arena)
        pool_clear(&self._pool)
        if self._heads != NULL:
            pages_unmap(self._heads, self._n_keys * sizeof(LogHead))

    @property
    def n_keys(self):
        return self._n_keys

    @property
    def now_ms(self):
        """The newest time added or advanced to, -2^48 before."""
        return self._now_ms

    @property
    def horizon_ms(self):
        """What is older counts as absent."""
        return self._now_ms - self._c.keep_ms

    @property
    def used_bytes(self):
        """What the counters take, without the 8 bytes per key."""
        return self._arena.used_bytes

    def advance(self, now_ms):
        """Moves the clock, as an event of another key would."""
        cdef int64_t now = self._time(now_ms)
        if now > self._now_ms:
            self._now_ms = now

    def add(self, const uint64_t[::1] hashes not None, const int64_t[::1] times_ms not None,
            const uint32_t[::1] keys=None):
        """Counts values with these hashes, in this order, for these keys (without: all for key 0). How many
        were late."""
        cdef Py_ssize_t n = self._checked(hashes, times_ms, keys)
        cdef const uint32_t* key_of = NULL
        if n == 0:
            return 0
        if keys is not None:
            key_of = &keys[0]
        return self._add(n, &hashes[0], &times_ms[0], key_of, NULL, None)

    def observe(self, const uint64_t[::1] hashes not None, const int64_t[::1] times_ms not None,
                const int64_t[::1] windows_ms not None, const uint32_t[::1] keys=None):
        """The same, and each key as it reads at its event's time right after it: (estimate, lower, upper,
        certain), each of shape (events, windows). See `read`."""
        cdef Py_ssize_t n = self._checked(hashes, times_ms, keys)
        cdef _Answers answers = _Answers(n, windows_ms)
        cdef const uint32_t* key_of = NULL
        if n and keys is not None:
            key_of = &keys[0]
        if n:
            self._add(n, &hashes[0], &times_ms[0], key_of, &windows_ms[0], answers)
        return answers.arrays

    def read(self, at_ms, const int64_t[::1] windows_ms not None, key=0):
        """(estimate, lower, upper, certain) of at_ms - window < time <= at_ms, one each per window, which
        ascend."""
        cdef _Answers answers = _Answers(1, windows_ms)
        cdef LogHead* head = self._head(key)
        cdef int64_t at = self._time(at_ms)
        with nogil:
            distinct_read(&self._arena, head, &self._c, at, self._now_ms - self._c.keep_ms, 0, &windows_ms[0],
                          <uint32_t>answers.n_windows, answers.row)
            answers.put(0)
        return tuple([array[0] for array in answers.arrays])

    def export(self, key=0):
        """The counter as bytes (distinct.pxd): equal for equal content."""
        cdef LogHead* head = self._head(key)
        cdef size_t n = distinct_export_bytes(&self._arena, head, &self._c, self._now_ms - self._c.keep_ms)
        cdef bytearray out = bytearray(n)
        cdef uint8_t[::1] view = out
        distinct_export(&self._arena, head, &self._c, self._now_ms - self._c.keep_ms, &view[0])
        return bytes(out)

    def load(self, data, key=0):
        """Puts an exported counter in place of this key's. Its length; the clock stays where it is."""
        cdef LogHead* head = self._head(key)
        cdef LogHead loaded
        cdef const uint8_t[::1] view = data
        cdef int64_t n = distinct_import(&self._arena, &loaded, &self._c, &view[0] if view.shape[0] else NULL,
                                         view.shape[0])
        if n < 0:
            raise MemoryError
        if n == 0:
            raise ValueError("not a distinct counter of these settings")
        distinct_free(&self._arena, head, &self._c)
        head[0] = loaded
        return n

    def clone(self, key, to):
        """Puts a copy of one key's counter in place of another's."""
        cdef LogHead* head = self._head(key)
        cdef LogHead* other = self._head(to)
        cdef LogHead copy
        if distinct_clone(&self._arena, head, &self._c, &copy) < 0:
            raise MemoryError
        distinct_free(&self._arena, other, &self._c)
        other[0] = copy

    def merge(self, DistinctCounters other not None, key=0, from_key=0):
        """Adds all that one of another's counters holds to this key's; the clock moves up to the other's."""
        cdef LogHead* head = self._head(key)
        cdef LogHead* from_ = other._head(from_key)
        if other._c.log2_registers != self._c.log2_registers:
            raise ValueError("counters merge when their log2_registers are the same")
        if head == from_:
            return
        if other._now_ms > self._now_ms:
            self._now_ms = other._now_ms
        if distinct_merge(&self._arena, head, &self._c, &other._arena, from_,
                          self._now_ms - self._c.keep_ms) < 0:
            raise MemoryError

    def prune(self):
        """Gives back what the horizon has passed, of all keys. Changes no answer."""
        cdef uint32_t i
        cdef int status = 0
        for i in range(self._n_keys):
            status |= distinct_prune(&self._arena, &self._heads[i], &self._c,
                                     self._now_ms - self._c.keep_ms)
        if status < 0:
            raise MemoryError

    def expired(self, key=0):
        """True when nothing of this key can be read any more."""
        return distinct_expired(&self._arena, self._head(key), self._now_ms - self._c.keep_ms)

    def block_bytes(self, key=0):
        """Bytes of the arena behind this key's head."""
        return arena_rounded(distinct_block_bytes(&self._arena, self._head(key), &self._c)) if (
            self._head(key).block) else 0

    cdef LogHead* _head(self, key) except NULL:
        if not 0 <= key < self._n_keys:
            raise ValueError(f"key {key}: there are {self._n_keys}")
        return &self._heads[<uint32_t>key]

    cdef int64_t _time(self, time_ms) except? -1:
        if not -MAX_TIME_MS < time_ms < MAX_TIME_MS:
            raise ValueError(f"time {time_ms} is not within 2^48 ms of the epoch")
        return time_ms

    cdef Py_ssize_t _checked(self, const uint64_t[::1] hashes, const int64_t[::1] times_ms,
                             const uint32_t[::1] keys) except -1:
        """How many events; an error where one cannot be added."""
        cdef Py_ssize_t i, n = hashes.shape[0]
        if times_ms.shape[0] != n or (keys is not None and keys.shape[0] != n):
            raise ValueError("hashes, times_ms and keys are of one length")
        for i in range(n):
            if not -MAX_TIME_MS < times_ms[i] < MAX_TIME_MS:
                self._time(times_ms[i])
        if keys is not None:
            for i in range(n):
                if keys[i] >= self._n_keys:
                    self._head(keys[i])
        return n

    cdef int64_t _add(self, Py_ssize_t n, const uint64_t* hashes, const int64_t* times_ms,
                      const uint32_t* keys, const int64_t* windows_ms, _Answers answers) except -1:
        """keys may be NULL: all key 0; windows_ms too: nothing is read."""
        cdef int64_t now = self._now_ms, keep = self._c.keep_ms, n_late = 0
        cdef LogHead* head = &self._heads[0]
        cdef Py_ssize_t i
        cdef int status = 0
        with nogil:
            for i in range(n):
                if keys != NULL:
                    head = &self._heads[keys[i]]
                    if i + AHEAD_HEAD < n:
                        fs_prefetch(&self._heads[keys[i + AHEAD_HEAD]])
                    if i + AHEAD_BLOCK < n:
                        distinct_prefetch(&self._arena, &self._heads[keys[i + AHEAD_BLOCK]], &self._c,
                                          hashes[i + AHEAD_BLOCK])
                    if i + AHEAD_VALUE < n:
                        distinct_prefetch_value(&self._arena, &self._heads[keys[i + AHEAD_VALUE]], &self._c,
                                                hashes[i + AHEAD_VALUE])
                if times_ms[i] > now:
                    now = times_ms[i]
                if times_ms[i] < now - keep:
                    n_late += 1
                else:
                    status |= distinct_add(&self._arena, head, &self._c, hashes[i], times_ms[i], now - keep)
                if windows_ms != NULL:
                    distinct_read(&self._arena, head, &self._c, times_ms[i], now - keep, 0, windows_ms,
                                  <uint32_t>answers.n_windows, answers.row)
                    answers.put(i)
        self._now_ms = now
        if status < 0:
            raise MemoryError
        return n_late
