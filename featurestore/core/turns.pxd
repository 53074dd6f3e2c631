# Turns at long work: no more threads are at it than there are cores.
#
# Applying a large batch, and copying rows for a checkpoint, hold some shard's lock nearly all the time, each
# for microseconds. A thread that loses its core meanwhile keeps the lock until it has the core again, and
# whoever wants that shard waits as long. Those who answer calls are soon done; another thread at long work
# would have the core for milliseconds. With turns it sleeps.
#
# Turns come in the order they were asked for. A turn is taken before any lock of the store, and not by those
# who have one.
from libc.stdint cimport uint64_t

from featurestore.core.pthread cimport pthread_cond_t, pthread_mutex_t

ctypedef struct Turns:
    pthread_mutex_t lock
    pthread_cond_t ended             # one more has
    uint64_t n_asked
    uint64_t n_ended
    uint64_t n_at_once

cdef int turns_init(Turns* turns, uint64_t n_at_once) noexcept nogil     # 0, or -1 where there is no lock
cdef void turns_destroy(Turns* turns) noexcept nogil
cdef void turn_take(Turns* turns) noexcept nogil
cdef void turn_give(Turns* turns) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict turns_structs():
    return {"core/turns.pxd": (sizeof(Turns),)}
