# The 8 bytes that a row has for each thing it keeps; the block behind it belongs to the module of its kind.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum LogKind:
    LOG_SMALL = 0                # window.pxd: RAW, up to SMALL_ENTRIES, a bare array of entries
    LOG_LARGE = 1                # window.pxd: RAW or WIDE behind a LargeLog header
    LOG_LIFETIME = 2             # window.pxd: one wide entry that never expires by window
    LOG_KEY = 3                  # the raw key, of entities with keep_keys: u32 length, bytes
    LOG_DISTINCT = 4             # distinct.pxd
    LOG_BORN = 6                 # where the row was made and may have lost events before: u32 length, u64
                                 # position
    TOP_SMALL = 8                # top.pxd
    TOP_LARGE = 9
    LOG_DECAYED = 10             # decayed.pxd

ctypedef struct LogHead:         # 8 bytes, in the row
    uint32_t block               # arena handle, owned; 0 = nothing
    uint16_t view_id
    uint8_t kind                 # LogKind
    uint8_t n_small              # LOG_SMALL: entries; LOG_DISTINCT: see there; TOP_SMALL: events

# What is the row's, and no view's: a block of u32 length and bytes. It keeps no row by itself.
cdef inline bint is_note(uint8_t kind) noexcept nogil:
    return kind == LOG_KEY or kind == LOG_BORN

# Compared at import: see core/structs.py.
cdef inline dict head_structs():
    return {"core/head.pxd": (sizeof(LogHead),)}
