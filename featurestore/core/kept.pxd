# What a row keeps of one view, whatever its structure: one function for each thing a row does with it, which
# chooses by the head's kind (or, where there is no head yet, by the view's structure).
#
#   window log     window.pxd      the shard calls its log_append and view_read itself
#   distinct       distinct.pxd
#   decayed        decayed.pxd
#   top            top.pxd
#
# `horizon_ms` is view_horizon(view, now). `view` may be NULL for LOG_KEY only.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from featurestore.core.arena cimport Arena
from featurestore.core.bytes cimport Bytes, bytes_structs
from featurestore.core.head cimport LogHead
from featurestore.core.plan cimport ItemC, ViewC
from featurestore.core.window cimport Outputs, ReadAt, window_structs

ctypedef struct Given:           # what one event gives to a structure that is not the window log
    int64_t time_ms              # not before horizon_ms
    int64_t horizon_ms
    uint64_t hash                # of its value: DISTINCT, TOP
    double value                 # DECAYED; TOP of numbers: its text is these 8 bytes
    const char* text             # of its value: TOP
    uint32_t n_text

ctypedef struct Listed:          # one list of heaviest values; for each a ListedValue and its text follow
    uint32_t place               # of its feature in the vector
    uint32_t n_values
    double total                 # events of the window, and their bounds
    uint64_t total_lower
    uint64_t total_upper
    uint64_t rest_upper          # no value outside the list has more events
    float coverage
    uint8_t status

ctypedef struct ListedValue:
    uint64_t hash
    double estimate              # events, and their bounds
    uint64_t lower
    uint64_t upper
    uint32_t n_text              # bytes that follow
    uint32_t has_text            # 0: it was not kept

# The kind of a view's head, if its structure is not the window log.
cdef uint8_t sketch_kind(const ViewC* view) noexcept nogil
# Adds one event to such a structure. 0, or -1 when out of memory.
cdef int sketch_add(Arena* arena, LogHead* head, const ViewC* view, const Given* given) noexcept nogil
# Reads `items` (sorted by window) of such a view; head may be NULL: no event yet. log: of the view `logged`,
# view.counted_by; NULL where there is none.
cdef void sketch_read(const Arena* arena, const LogHead* head, const LogHead* log, const ViewC* logged,
                      const ViewC* view, const ReadAt* when, const ItemC* items, uint32_t n_items,
                      const Outputs* out) noexcept nogil
# The lists behind `items` of a view of heaviest values. 0, or -1 when out of memory.
cdef int sketch_list(const Arena* arena, const LogHead* head, const ViewC* view, const ReadAt* when,
                     const ItemC* items, uint32_t n_items, Bytes* out) noexcept nogil

# Asks for what the next event touches. The first line of the head's block was asked for before.
cdef void kept_prefetch(const Arena* arena, const LogHead* head, const ViewC* view,
                        uint64_t hash) noexcept nogil
# The second step, some events later: of a large block the place depends on what its beginning says.
cdef void kept_prefetch_value(const Arena* arena, const LogHead* head, const ViewC* view,
                              uint64_t hash) noexcept nogil
# True when nothing in it can be read any more at now_ms.
cdef bint kept_expired(const Arena* arena, const LogHead* head, const ViewC* view,
                       int64_t now_ms) noexcept nogil
cdef void kept_free(Arena* arena, LogHead* head, const ViewC* view) noexcept nogil
cdef int kept_clone(Arena* arena, const LogHead* head, const ViewC* view, LogHead* copy) noexcept nogil
# As bytes (formats: shard.pxd), for checkpoints and digests. Size, then writing exactly that many.
cdef size_t kept_export_bytes(const Arena* arena, const LogHead* head, const ViewC* view,
                              int64_t horizon_ms) noexcept nogil
cdef void kept_export(const Arena* arena, const LogHead* head, const ViewC* view, int64_t horizon_ms,
                      uint8_t* out) noexcept nogil
# Bytes of one whose view is gone, at least 16 of which are there; n where its sizes do not fit.
cdef size_t kept_skip_bytes(const uint8_t* data, size_t n) noexcept nogil
# Reads one back. Bytes consumed, 0 when they are not what this view keeps, -1 when out of memory.
cdef int64_t kept_import(Arena* arena, LogHead* head, const ViewC* view, const uint8_t* data,
                         size_t n) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict kept_structs():
    return bytes_structs() | window_structs() | {"core/kept.pxd": (
        sizeof(Given), sizeof(Listed), sizeof(ListedValue),
    )}
