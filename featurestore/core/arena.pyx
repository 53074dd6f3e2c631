"""The allocator of one shard; see arena.pxd for the picture.

A general malloc would serve, but costs 8 bytes of header and 8 of pointer for every block, and a cold key is
only 96 bytes in all.

A block is cut from the end of a free one, whose links stay where they are: filling a fresh chunk only makes
one number smaller.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abort, free, realloc
from libc.string cimport memset

cimport cython

import numpy as np

from featurestore.core.pages cimport (
    CHUNK_BYTES, SLAB_BYTES, Pool, pages_map, pages_unmap, pool_clear, pool_give, pool_idle_bytes, pool_init,
    pool_take,
)
from featurestore.core.sanitizer cimport GAP_BYTES, allow, forbid, peek, poke

from featurestore.core.structs import same_structs

same_structs(__name__, arena_structs())

cdef enum:
    MAX_CHUNKS = 1 << 19
    PAGE_BYTES = 4096
    BITS_BYTES = FIRST_UNIT * UNIT_BYTES
    MOST_UNITS = CHUNK_UNITS - FIRST_UNIT        # of one free block
    NO_CLASS = N_CLASSES
    FREED = 0x7FFFFFFF           # in the gap of a block that was freed: no block has that size

cdef extern from * nogil:
    """
    #define fs_log2_of(x) (31u - (uint32_t)__builtin_clz(x))
    #define fs_lowest_bit(x) ((uint32_t)__builtin_ctzll(x))
    """
    uint32_t fs_log2_of(uint32_t x) noexcept                # x is not 0
    uint32_t fs_lowest_bit(uint64_t x) noexcept


cdef void arena_init(Arena* arena, Pool* pool) noexcept nogil:
    memset(arena, 0, sizeof(Arena))
    arena.pool = pool


cdef void arena_clear(Arena* arena) noexcept nogil:
    cdef uint32_t i
    for i in range(arena.n_chunks):
        if arena.chunks[i].n_pages:
            pages_unmap(arena.chunks[i].base, <size_t>arena.chunks[i].n_pages * PAGE_BYTES)
    free(arena.chunks)
    arena_init(arena, arena.pool)


cdef inline uint32_t _units(size_t n_bytes) noexcept nogil:
    """Of a block of 0..BIG_BYTES bytes, the gap included: it has one at least."""
    return <uint32_t>((n_bytes + (n_bytes == 0) + UNIT_BYTES - 1) // UNIT_BYTES)


cdef size_t arena_rounded(size_t n_bytes) noexcept nogil:
    return n_bytes if n_bytes > BIG_BYTES else <size_t>_units(n_bytes) * UNIT_BYTES


# -- size classes --------------------------------------------------------------------------------------------

cdef inline uint32_t _class_of(uint32_t units) noexcept nogil:
    """The class that a free block of so many units is in."""
    cdef uint32_t doubling
    if units < LINEAR_CLASSES:
        return units
    doubling = fs_log2_of(units)
    return LINEAR_CLASSES + (doubling - 6) * 8 + (units >> (doubling - 3) & 7)


cdef inline uint32_t _class_for(const Arena* arena, uint32_t units) noexcept nogil:
    """The first class with a free block, of which every one has so many units; NO_CLASS: there is none."""
    cdef uint32_t least = units
    cdef uint64_t classes
    if units >= LINEAR_CLASSES:
        least = _class_of(units + (1 << (fs_log2_of(units) - 3)) - 1)
    if least < 64:
        classes = arena.classes[0] >> least << least
        if classes:
            return fs_lowest_bit(classes)
        least = 64
    classes = arena.classes[1] >> (least - 64) << (least - 64)
    return 64 + fs_lowest_bit(classes) if classes else NO_CLASS


cdef bint arena_has_room(const Arena* arena) noexcept nogil:
    return _class_for(arena, ROOM_UNITS) != NO_CLASS


# -- free blocks ---------------------------------------------------------------------------------------------

cdef inline bint _is_edge(const char* base, uint32_t unit) noexcept nogil:
    """Whether the unit is the first or the last of a free block."""
    return (<const uint64_t*>base)[unit >> 6] >> (unit & 63) & 1


cdef inline void _set_edge(char* base, uint32_t unit) noexcept nogil:
    (<uint64_t*>base)[unit >> 6] |= <uint64_t>1 << (unit & 63)


cdef inline void _clear_edge(char* base, uint32_t unit) noexcept nogil:
    (<uint64_t*>base)[unit >> 6] &= ~(<uint64_t>1 << (unit & 63))


cdef inline char* _block(const Arena* arena, uint32_t handle) noexcept nogil:
    return <char*>arena_at(arena, handle)


cdef inline void _set_units(char* block, uint32_t units) noexcept nogil:
    poke(block + 8, units)
    poke(block + <size_t>units * UNIT_BYTES - 4, units)


cdef inline void _link(Arena* arena, uint32_t class_, uint32_t handle, char* block) noexcept nogil:
    cdef uint32_t next = arena.free_blocks[class_]
    poke(block, next)
    poke(block + 4, 0)
    if next:
        poke(_block(arena, next) + 4, handle)
    else:
        arena.classes[class_ >> 6] |= <uint64_t>1 << (class_ & 63)
    arena.free_blocks[class_] = handle


cdef inline void _unlink(Arena* arena, uint32_t class_, const char* block) noexcept nogil:
    cdef uint32_t next = peek(block), previous = peek(block + 4)
    if next:
        poke(_block(arena, next) + 4, previous)
    if previous:
        poke(_block(arena, previous), next)
    else:
        arena.free_blocks[class_] = next
        if next == 0:
            arena.classes[class_ >> 6] &= ~(<uint64_t>1 << (class_ & 63))


# -- chunks --------------------------------------------------------------------------------------------------

cdef uint32_t _new_slot(Arena* arena) noexcept nogil:
    """The number + 1 of a slot for a chunk, which is still in the list of free ones; 0: out of memory."""
    cdef uint32_t cap
    cdef Chunk* chunks
    if arena.free_chunk == 0:
        if arena.n_chunks == arena.cap_chunks:
            cap = arena.cap_chunks * 2 if arena.cap_chunks else 8
            if cap > MAX_CHUNKS:
                return 0
            chunks = <Chunk*>realloc(arena.chunks, cap * sizeof(Chunk))
            if chunks == NULL:
                return 0
            arena.chunks = chunks
            arena.cap_chunks = cap
        memset(&arena.chunks[arena.n_chunks], 0, sizeof(Chunk))
        arena.n_chunks += 1
        arena.free_chunk = arena.n_chunks
    return arena.free_chunk


cdef inline void _free_slot(Arena* arena, uint32_t slot) noexcept nogil:
    arena.chunks[slot].base = NULL
    arena.chunks[slot].n_pages = 0
    arena.chunks[slot].slab = arena.free_chunk
    arena.free_chunk = slot + 1


cdef int _add_chunk(Arena* arena) noexcept nogil:
    """A chunk of the pool, as one free block. 0, or -1 when out of memory."""
    cdef uint32_t slot = _new_slot(arena), slab = 0
    cdef char* base
    if slot == 0:
        return -1
    slot -= 1
    base = pool_take(arena.pool, &slab)
    if base == NULL:
        return -1
    arena.free_chunk = arena.chunks[slot].slab
    arena.chunks[slot].base = base
    arena.chunks[slot].slab = slab
    arena.held_bytes += CHUNK_BYTES
    allow(base, BITS_BYTES)
    memset(base, 0, BITS_BYTES)
    forbid(base + BITS_BYTES, CHUNK_BYTES - BITS_BYTES)
    _set_edge(base, FIRST_UNIT)
    _set_edge(base, CHUNK_UNITS - 1)
    _set_units(base + BITS_BYTES, MOST_UNITS)
    _link(arena, _class_of(MOST_UNITS), slot << UNIT_BITS | FIRST_UNIT, base + BITS_BYTES)
    return 0


cdef uint32_t _alloc_big(Arena* arena, size_t n_bytes) noexcept nogil:
    # One unit in: handle 0 means no block.
    cdef size_t n_pages = (n_bytes + UNIT_BYTES + GAP_BYTES + PAGE_BYTES - 1) // PAGE_BYTES
    cdef uint32_t slot
    cdef char* base
    if n_bytes > <size_t>1 << 43:
        return 0
    slot = _new_slot(arena)
    if slot == 0:
        return 0
    slot -= 1
    base = <char*>pages_map(n_pages * PAGE_BYTES, False)
    if base == NULL:
        return 0
    arena.free_chunk = arena.chunks[slot].slab
    arena.chunks[slot].base = base
    arena.chunks[slot].n_pages = <uint32_t>n_pages
    arena.used_bytes += n_pages * PAGE_BYTES
    arena.held_bytes += n_pages * PAGE_BYTES
    forbid(base + UNIT_BYTES + n_bytes, GAP_BYTES)
    return slot << UNIT_BITS | 1


cdef void _free_big(Arena* arena, uint32_t slot) noexcept nogil:
    cdef size_t n_bytes = <size_t>arena.chunks[slot].n_pages * PAGE_BYTES
    pages_unmap(arena.chunks[slot].base, n_bytes)
    arena.used_bytes -= n_bytes
    arena.held_bytes -= n_bytes
    _free_slot(arena, slot)


# -- blocks --------------------------------------------------------------------------------------------------

cdef inline uint32_t _take_waiting(Arena* arena, uint32_t units) noexcept nogil:
    cdef uint32_t handle
    if units >= LINEAR_CLASSES or arena.waiting[units] == 0:
        return 0
    handle = arena.waiting[units]
    arena.waiting[units] = peek(_block(arena, handle))
    arena.n_waiting -= 1
    arena.waiting_units -= units
    return handle


cdef inline void _give(Arena* arena, char* block, uint32_t units, size_t n_bytes) noexcept nogil:
    arena.used_bytes += <size_t>units * UNIT_BYTES
    allow(block, n_bytes)
    if GAP_BYTES:
        poke(block + <size_t>units * UNIT_BYTES - 4, <uint32_t>n_bytes)


cdef uint32_t arena_alloc(Arena* arena, size_t n_bytes) noexcept nogil:
    cdef uint32_t units, class_, handle, first, have, left, rest
    cdef char* base
    cdef char* block
    if n_bytes + GAP_BYTES > BIG_BYTES:
        return _alloc_big(arena, n_bytes)
    units = _units(n_bytes + GAP_BYTES)
    handle = _take_waiting(arena, units)
    if handle:
        _give(arena, _block(arena, handle), units, n_bytes)
        return handle
    class_ = _class_for(arena, units)
    if class_ == NO_CLASS:
        arena_settle(arena)
        class_ = _class_for(arena, units)
    if class_ == NO_CLASS:
        if _add_chunk(arena) < 0:
            return 0
        class_ = _class_of(MOST_UNITS)
    handle = arena.free_blocks[class_]
    base = arena.chunks[handle >> UNIT_BITS].base
    first = handle & (CHUNK_UNITS - 1)
    block = base + <size_t>first * UNIT_BYTES
    have = peek(block + 8)
    left = have - units
    _clear_edge(base, first + have - 1)
    if left == 0:
        _clear_edge(base, first)
        _unlink(arena, class_, block)
    else:
        _set_edge(base, first + left - 1)
        _set_units(block, left)
        rest = _class_of(left)
        if rest != class_:
            _unlink(arena, class_, block)
            _link(arena, rest, handle, block)
    _give(arena, block + <size_t>left * UNIT_BYTES, units, n_bytes)
    return handle + left


cdef void _join(Arena* arena, uint32_t handle, uint32_t units) noexcept nogil:
    """A block that was freed becomes a free one, with the free ones beside it."""
    cdef uint32_t slot = handle >> UNIT_BITS, first = handle & (CHUNK_UNITS - 1), end = first + units
    cdef uint32_t n, class_
    cdef char* base = arena.chunks[slot].base
    cdef char* block
    if end < CHUNK_UNITS and _is_edge(base, end):
        block = base + <size_t>end * UNIT_BYTES
        n = peek(block + 8)
        _unlink(arena, _class_of(n), block)
        _clear_edge(base, end)
        end += n
    class_ = NO_CLASS                        # of the block before, which this one becomes a part of
    if _is_edge(base, first - 1):
        n = peek(base + <size_t>first * UNIT_BYTES - 4)
        class_ = _class_of(n)
        _clear_edge(base, first - 1)
        first -= n
    block = base + <size_t>first * UNIT_BYTES
    n = end - first
    if class_ != NO_CLASS and class_ != _class_of(n):
        _unlink(arena, class_, block)
        class_ = NO_CLASS
    if n == MOST_UNITS:
        if class_ != NO_CLASS:
            _unlink(arena, class_, block)
        pool_give(arena.pool, base, arena.chunks[slot].slab)
        arena.held_bytes -= CHUNK_BYTES
        _free_slot(arena, slot)
        return
    _set_edge(base, first)
    _set_edge(base, end - 1)
    _set_units(block, n)
    if class_ == NO_CLASS:
        _link(arena, _class_of(n), slot << UNIT_BITS | first, block)


cdef void arena_settle(Arena* arena) noexcept nogil:
    cdef uint32_t units, handle, following
    for units in range(1, <uint32_t>LINEAR_CLASSES):
        handle = arena.waiting[units]
        arena.waiting[units] = 0
        while handle:
            following = peek(_block(arena, handle))
            _join(arena, handle, units)
            handle = following
    arena.n_waiting = arena.waiting_units = 0


cdef void arena_free(Arena* arena, uint32_t handle, size_t n_bytes) noexcept nogil:
    cdef uint32_t units
    cdef char* block
    if handle == 0:
        return
    if n_bytes + GAP_BYTES > BIG_BYTES:
        _free_big(arena, handle >> UNIT_BITS)
        return
    units = _units(n_bytes + GAP_BYTES)
    block = _block(arena, handle)
    if GAP_BYTES:
        if peek(block + <size_t>units * UNIT_BYTES - 4) != n_bytes:
            abort()                          # freed twice, or with another size than it was asked for
        poke(block + <size_t>units * UNIT_BYTES - 4, FREED)
    forbid(block, n_bytes)
    arena.used_bytes -= <size_t>units * UNIT_BYTES
    if units >= LINEAR_CLASSES:
        _join(arena, handle, units)
        return
    if arena.n_waiting == MOST_WAITING or arena.waiting_units + units > MOST_WAITING_UNITS:
        arena_settle(arena)
    poke(block, arena.waiting[units])
    arena.waiting[units] = handle
    arena.n_waiting += 1
    arena.waiting_units += units


# -- Python --------------------------------------------------------------------------------------------------

@cython.final
cdef class Blocks:
    """An arena over a pool of its own."""
    cdef Pool _pool
    cdef Arena _arena

    def __cinit__(self):
        if pool_init(&self._pool) < 0:
            raise MemoryError
        arena_init(&self._arena, &self._pool)

    def __dealloc__(self):
        arena_clear(&self._arena)
        pool_clear(&self._pool)

    def alloc(self, const uint64_t[::1] sizes not None):
        """Blocks of so many bytes, each filled with the low byte of its handle; their handles, uint32."""
        handles = np.zeros(sizes.shape[0], np.uint32)
        cdef uint32_t[::1] made = handles
        cdef Py_ssize_t i
        for i in range(sizes.shape[0]):
            if sizes[i] > <uint64_t>1 << 40:
                raise ValueError(f"a block of {sizes[i]} bytes")
        with nogil:
            for i in range(sizes.shape[0]):
                made[i] = arena_alloc(&self._arena, sizes[i])
                if made[i]:
                    memset(arena_at(&self._arena, made[i]), made[i] & 0xFF, sizes[i])
        if not handles.all():
            raise MemoryError
        return handles

    def free(self, const uint32_t[::1] handles not None, const uint64_t[::1] sizes not None):
        """Frees blocks that alloc gave, with their sizes. How many were not as they had been filled."""
        cdef Py_ssize_t i
        cdef uint64_t j
        cdef uint32_t n_changed = 0
        cdef const uint8_t* block
        if handles.shape[0] != sizes.shape[0]:
            raise ValueError("handles and sizes of different lengths")
        with nogil:
            for i in range(handles.shape[0]):
                block = <const uint8_t*>arena_at(&self._arena, handles[i])
                for j in range(sizes[i]):
                    if block[j] != handles[i] & 0xFF:
                        n_changed += 1
                        break
                arena_free(&self._arena, handles[i], sizes[i])
        return n_changed

    def settle(self):
        """What was freed joins its neighbours."""
        arena_settle(&self._arena)

    @staticmethod
    def units(uint64_t n_bytes):
        """Of 16 bytes, that a block of up to 64 KiB has."""
        return _units(n_bytes + GAP_BYTES)

    def free_blocks(self):
        """(handle, units) of each, by class; the two numbers and the two edges of each must agree."""
        cdef uint32_t handle, units, first, previous
        cdef int class_
        cdef char* block
        cdef char* base
        found = []
        for class_ in range(N_CLASSES):
            handle = self._arena.free_blocks[class_]
            assert (handle != 0) == (self._arena.classes[class_ >> 6] >> (class_ & 63) & 1)
            previous = 0
            while handle:
                block = _block(&self._arena, handle)
                base = self._arena.chunks[handle >> UNIT_BITS].base
                first = handle & (CHUNK_UNITS - 1)
                units = peek(block + 8)
                assert <int>_class_of(units) == class_ and peek(block + 4) == previous
                assert peek(block + <size_t>units * UNIT_BYTES - 4) == units
                assert _is_edge(base, first) and _is_edge(base, first + units - 1)
                found.append((handle, units))
                previous = handle
                handle = peek(block)
        return found

    @property
    def used_bytes(self):
        """Of the blocks that are in use."""
        return self._arena.used_bytes

    @property
    def held_bytes(self):
        """What the process holds for them."""
        return self._arena.held_bytes + pool_idle_bytes(&self._pool)

    @property
    def mapped_bytes(self):
        """Of address space, of the pool's slabs."""
        return <uint64_t>self._pool.n_mapped * SLAB_BYTES
