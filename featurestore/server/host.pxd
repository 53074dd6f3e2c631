# What the connections of one server share, as a Python object that owns it.
from featurestore.server.connection cimport Connection, HostC, LoopC, connection_structs
from featurestore.server.dispatcher cimport Dispatcher
from featurestore.server.errands cimport Errand

cdef class Host:
    cdef HostC c
    cdef readonly Dispatcher dispatcher
    cdef readonly list targets       # (path, method, streams requests, streams replies)
    cdef list kept                   # bytes that Refusals, Targets and HealthServices point into
    cdef bint made
    cdef object answer_words(self, Errand* errand)
    cdef object _say(self, Errand* errand, int status, str words, str kind, bint is_unknown)

cdef class Session:
    cdef LoopC loop
    cdef Connection* connection      # NULL: closed
    cdef readonly Host host
    cdef public bint leaves_desk     # to others, who take from the host
    cdef public double errands_lie_s  # on their queue, before they are run
    cdef public bint disk_has_failed  # as the journal tells a loop
    cdef object _turn(self)
    cdef bint _run_errands(self) except -1

# Compared at import: see core/structs.py.
cdef inline dict host_structs():
    return connection_structs() | {"server/host.pxd": (sizeof(Host), sizeof(Session))}
