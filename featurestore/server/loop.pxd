# One event loop: sockets, epoll and time around the connections of connection.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t

from featurestore.server.connection cimport Connection, LoopC
from featurestore.server.host cimport Host, host_structs
from featurestore.server.tls cimport TlsC, TlsContext, tls_structs
from featurestore.storage.journal cimport Journal

ctypedef struct Listener:
    int fd
    bint is_paused                   # no descriptors are left: it listens again at the next tick

ctypedef struct Sockets:             # of one loop; belongs to the thread that runs it, but for the two wishes
    LoopC loop
    int epoll_fd
    TlsC* tls                        # NULL: plain
    Listener* listeners
    int n_listeners
    uint8_t* inward                  # RECORD_BYTES: what was read last
    uint8_t* outward                 # WRITE_BYTES: what is written next
    int64_t ticked_ns
    int64_t trimmed_ns
    size_t most_taken                # by clients, since memory was last given back to the system
    int64_t looked_ns                # at deadlines
    bint is_listening
    int wants_drain                  # atomic, set by other threads
    int wants_stop

cdef class Loop:
    cdef Sockets s
    cdef readonly Host host
    cdef Journal journal             # that tells it what is durable; a collector may empty the engine before
    cdef TlsContext tls
    cdef object sockets              # keeps the listening sockets open
    cdef bint made
    cdef bint hooked

# Compared at import: see core/structs.py.
cdef inline dict loop_structs():
    return host_structs() | tls_structs() | {"server/loop.pxd": (
        sizeof(Listener), sizeof(Sockets), sizeof(Loop),
    )}
