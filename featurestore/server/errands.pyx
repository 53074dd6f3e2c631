"""Errands and the queues they wait in: what errands.pxd promises."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, malloc

from featurestore.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)

from featurestore.core.structs import same_structs

same_structs(__name__, errands_structs())


cdef int queue_init(Queue* queue) noexcept nogil:
    if pthread_mutex_init(&queue.lock, NULL) != 0:
        return -1
    if pthread_cond_init(&queue.filled, NULL) != 0:
        pthread_mutex_destroy(&queue.lock)
        return -1
    return 0


cdef void queue_destroy(Queue* queue) noexcept nogil:
    pthread_cond_destroy(&queue.filled)
    pthread_mutex_destroy(&queue.lock)


cdef bint queue_put(Queue* queue, Errand* errand) noexcept nogil:
    cdef bint was_empty
    errand.next = NULL
    pthread_mutex_lock(&queue.lock)
    was_empty = queue.first == NULL
    if was_empty:
        queue.first = errand
    else:
        queue.last.next = errand
    queue.last = errand
    queue.n += 1
    pthread_cond_signal(&queue.filled)
    pthread_mutex_unlock(&queue.lock)
    return was_empty


cdef Errand* queue_take(Queue* queue) noexcept nogil:
    cdef Errand* errand
    pthread_mutex_lock(&queue.lock)
    while queue.first == NULL and not queue.is_closed:
        pthread_cond_wait(&queue.filled, &queue.lock)
    errand = queue.first
    if errand != NULL:
        queue.first = errand.next
        queue.n -= 1
    pthread_mutex_unlock(&queue.lock)
    return errand


cdef Errand* queue_take_all(Queue* queue) noexcept nogil:
    cdef Errand* errand
    pthread_mutex_lock(&queue.lock)
    errand = queue.first
    queue.first = NULL
    queue.n = 0
    pthread_mutex_unlock(&queue.lock)
    return errand


cdef void queue_close(Queue* queue) noexcept nogil:
    pthread_mutex_lock(&queue.lock)
    queue.is_closed = True
    pthread_cond_broadcast(&queue.filled)
    pthread_mutex_unlock(&queue.lock)


cdef Errand* errand_new(int kind, size_t size) noexcept nogil:
    cdef Errand* errand = <Errand*>calloc(1, sizeof(Errand))
    if errand == NULL:
        return NULL
    errand.kind = kind
    if size:
        errand.memory = <uint8_t*>malloc(size)
        if errand.memory == NULL:
            free(errand)
            return NULL
        errand.data = errand.memory
        errand.size = size
    return errand


cdef void errand_free(Errand* errand) noexcept nogil:
    free(errand.memory)
    free(errand)
