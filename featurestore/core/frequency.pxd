# Views whose keys are too many for rows: one sketch a view and shard (countmin.pxd), instead of a row a key.
#
#   event ──► shard of its key ──► row of the entity, if another view keeps one there
#                             └──► sketch of each such view, which the event raises
#
# So N, the weight that a bound is a share of, is the shard's, and declared epsilon and delta hold in each
# shard. A view's sketches are there, whole, from when the plan is served until a plan without the view is:
# their memory is known before, and no event can need more.
#
# Late is what the view's event type says is late (its clock, less longest window and lateness). A sketch
# keeps so long behind its own newest event, and MAX_FUTURE_MS more, since on a wall clock that may be ahead
# of it: it never drops what the clock lets in.
#
# Owner: the shard, whose lock is held around every call. What a sketch holds follows from the shard's events
# in position order, never from batches, threads or reads.
#
# As bytes (checkpoints, digests): records as those of rows (shard.pxd), sorted, whose first 16 bytes are the
# sketch's and the piece's instead of a fingerprint, big-endian: u16 view id, u48 0, u64 0 for the head, else
# 1 + number of the piece. The payload is that record of countmin.pxd.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.bytes cimport Bytes
from featurestore.core.countmin cimport Countmin
from featurestore.core.plan cimport ItemC, PlanC, ViewC
from featurestore.core.window cimport Outputs, ReadAt, window_structs

ctypedef struct Frequencies:     # the sketches of one shard
    Countmin** sketches          # owned: [n] by ViewC.sketch, each owned
    uint32_t n
    uint64_t n_bytes             # of all their cells

ctypedef struct Counted:         # an event that a sketch counts, or would count
    int64_t time_ms
    double weight                # above 0

# Sketches of the plan's views; NULL for those that `before` (plan; may be NULL) has as well. 0, or -1 when
# out of memory. Whatever it says, frequencies_clear is due.
cdef int frequencies_init(Frequencies* frequencies, const PlanC* plan, const PlanC* before) noexcept nogil
# What init made for `plan` takes over the views that go on, and takes the place of what was held by `before`;
# `made` is left empty, and sketches of views that are gone are freed.
cdef void frequencies_adopt(Frequencies* held, Frequencies* made, const PlanC* plan,
                            const PlanC* before) noexcept nogil
cdef void frequencies_clear(Frequencies* frequencies) noexcept nogil
# Bytes of what init makes: the same for each shard.
cdef uint64_t frequencies_bytes(const PlanC* plan, const PlanC* before) noexcept nogil

# Asks for the cells of a key, some events ahead of the next two.
cdef void frequency_fetch(const Countmin* sketch, uint64_t fp0, uint64_t fp1) noexcept nogil
# 0, or -1 when out of memory (only while a checkpoint copies).
cdef int frequency_add(Countmin* sketch, uint64_t fp0, uint64_t fp1, const Counted* counted) noexcept nogil
# Reads `items` of the view. `peeked`: as if that event had been added before; NULL for none.
cdef void frequency_read(const Countmin* sketch, const ViewC* view, uint64_t fp0, uint64_t fp1,
                         const ReadAt* when, const ItemC* items, uint32_t n_items, const Counted* peeked,
                         const Outputs* out) noexcept nogil

# Checkpoint, as a shard's: cut (0, or -1 when out of memory: then the end is due), slices until one returns 0
# (1: more, -1: out of memory), the records of what changed, the end.
cdef int frequencies_cut(Frequencies* frequencies) noexcept nogil
cdef int frequencies_copy_slice(Frequencies* frequencies) noexcept nogil
cdef int frequencies_copy_records(const Frequencies* frequencies, const PlanC* plan,
                                  Bytes* out) noexcept nogil             # 0, or -1 when out of memory
cdef void frequencies_copy_end(Frequencies* frequencies, bint written) noexcept nogil
# Appends all of it as such records. 0, or -1 when out of memory.
cdef int frequencies_export(const Frequencies* frequencies, const PlanC* plan, Bytes* out) noexcept nogil
# Puts all of them back, into sketches without events. 0; 1 when they are not records of these sketches, or
# lack one's head; -1 when out of memory.
cdef int frequencies_import(Frequencies* frequencies, const PlanC* plan, const uint8_t* data,
                            size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict frequency_structs():
    return window_structs() | {"core/frequency.pxd": (sizeof(Frequencies), sizeof(Counted))}
