# What an operator may change of a producer. The values are in the journal and never mean anything else.
from libc.stdint cimport uint64_t

cdef enum Change:
    CHANGE_DROP = 1
    CHANGE_RESET = 2

cdef extern from * nogil:
    """
    #define FS_LAST_NUMBER 0x7FFFFFFFFFFFFFFFULL
    """
    const uint64_t LAST_NUMBER "FS_LAST_NUMBER"    # that may be reset to: others come behind it
