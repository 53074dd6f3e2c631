"""Turns at long work; turns.pxd says what for."""

from libc.stdint cimport uint64_t

from featurestore.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)

from featurestore.core.structs import same_structs

same_structs(__name__, turns_structs())


cdef int turns_init(Turns* turns, uint64_t n_at_once) noexcept nogil:
    turns.n_asked = turns.n_ended = 0
    turns.n_at_once = n_at_once
    if pthread_mutex_init(&turns.lock, NULL) != 0:
        return -1
    if pthread_cond_init(&turns.ended, NULL) != 0:
        pthread_mutex_destroy(&turns.lock)
        return -1
    return 0


cdef void turns_destroy(Turns* turns) noexcept nogil:
    pthread_cond_destroy(&turns.ended)
    pthread_mutex_destroy(&turns.lock)


cdef void turn_take(Turns* turns) noexcept nogil:
    cdef uint64_t mine
    pthread_mutex_lock(&turns.lock)
    mine = turns.n_asked
    turns.n_asked += 1
    while mine >= turns.n_ended + turns.n_at_once:
        pthread_cond_wait(&turns.ended, &turns.lock)
    pthread_mutex_unlock(&turns.lock)


cdef void turn_give(Turns* turns) noexcept nogil:
    pthread_mutex_lock(&turns.lock)
    turns.n_ended += 1
    pthread_cond_broadcast(&turns.ended)
    pthread_mutex_unlock(&turns.lock)
