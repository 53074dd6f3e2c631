# POSIX threads, as far as the store needs them: <pthread.h>. Functions return 0 or an error number.
cdef extern from "<pthread.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t* thread, const void* attributes, void* (*start)(void*) noexcept nogil,
                       void* argument)
    int pthread_join(pthread_t thread, void** result)

    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* lock, const void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* lock)
    int pthread_mutex_lock(pthread_mutex_t* lock)
    int pthread_mutex_trylock(pthread_mutex_t* lock)
    int pthread_mutex_unlock(pthread_mutex_t* lock)

    ctypedef struct pthread_rwlock_t:
        pass
    int pthread_rwlock_destroy(pthread_rwlock_t* lock)
    int pthread_rwlock_rdlock(pthread_rwlock_t* lock)
    int pthread_rwlock_tryrdlock(pthread_rwlock_t* lock)
    int pthread_rwlock_wrlock(pthread_rwlock_t* lock)
    int pthread_rwlock_unlock(pthread_rwlock_t* lock)

    ctypedef struct pthread_condattr_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_condattr_init(pthread_condattr_t* attributes)
    int pthread_condattr_setclock(pthread_condattr_t* attributes, int clock)
    int pthread_condattr_destroy(pthread_condattr_t* attributes)
    int pthread_cond_init(pthread_cond_t* cond, const pthread_condattr_t* attributes)
    int pthread_cond_destroy(pthread_cond_t* cond)
    int pthread_cond_wait(pthread_cond_t* cond, pthread_mutex_t* lock)
    int pthread_cond_timedwait(pthread_cond_t* cond, pthread_mutex_t* lock, const timespec* due)
    int pthread_cond_signal(pthread_cond_t* cond)
    int pthread_cond_broadcast(pthread_cond_t* cond)

cdef extern from * nogil:
    """
    /* The default prefers readers, and a writer would wait for ever under load. */
    static inline int fs_fair_rwlock(pthread_rwlock_t* lock) {
        pthread_rwlockattr_t attributes;
        int error = pthread_rwlockattr_init(&attributes);
        if (error == 0) {
            pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
            error = pthread_rwlock_init(lock, &attributes);
            pthread_rwlockattr_destroy(&attributes);
        }
        return error;
    }
    """
    int fs_fair_rwlock(pthread_rwlock_t* lock) noexcept
