# Who holds how much of what is limited: places for calls, connections, memory for what is on its way; and how
# often a peer may have us begin a TLS handshake.
#
#   Peer           whoever connects from one IPv4 address, one /64 of IPv6, or a Unix socket
#     └─ Holder    a connection
#
# One rule for all of it, so that whoever holds little is not refused for those who hold much: a connection
# may have no more than CONNECTION_SHARE times what is still free, a peer no more than PEER_SHARE times that.
# Alone, a connection gets two thirds and a peer eight ninths; n greedy connections get 2 parts each of 2n + 1
# and leave one, which is for whoever holds less than they do. Nothing is counted out beforehand, nobody waits
# for anybody's turn, and a limit that nobody presses is felt by nobody.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from featurestore.core.pthread cimport pthread_mutex_t

# What a call takes a place of; calls that are answered where they are read take none.
cdef enum Kind:
    NO_PLACE = 0
    KIND_READS = 1                   # GetFeatures that waits, or is large
    KIND_WRITES = 2                  # Observe, Ingest
    KIND_STREAMS = 3                 # IngestStream, GetFeaturesStream
    KIND_OTHERS = 4                  # methods that Python answers
    KIND_WATCHES = 5                 # Health.Watch
    N_KINDS = 6

ctypedef struct Peer:
    Peer* next                       # in its bucket
    uint64_t address                 # see peer_of_socket
    uint64_t users                   # connections, and closed ones with calls out; under lock
    uint64_t connections             # open; atomic
    uint64_t buffered                # bytes that its connections hold, each beyond its own part; atomic
    uint64_t calls[N_KINDS]          # places taken; atomic
    int64_t rested_ns                # when it may begin a second's handshakes at once again; atomic

ctypedef struct Peers:               # chained, as many buckets as connections may be
    pthread_mutex_t lock
    Peer** buckets
    uint64_t mask                    # buckets - 1
    uint64_t secret                  # so that nobody chooses addresses of one bucket

ctypedef struct Places:              # of one server, by Kind
    uint64_t most[N_KINDS]
    uint64_t taken[N_KINDS]          # atomic

ctypedef struct Holder:              # what one connection holds; its loop's
    Peer* peer
    uint32_t calls[N_KINDS]          # places

# Whether somebody who has `mine` may have one more unit, where `most` may be and `taken` are; by one part.
cdef bint share_allows(uint64_t most, uint64_t taken, uint64_t mine, uint64_t part) noexcept nogil
# The same for n bytes, by a connection that has `mine` of a peer that has `theirs`.
cdef bint share_has_room(uint64_t most, uint64_t taken, uint64_t n, uint64_t mine,
                         uint64_t theirs) noexcept nogil
# A place, or False.
cdef bint place_take(Places* places, Holder* holder, int kind) noexcept nogil
cdef void place_give(Places* places, Holder* holder, int kind) noexcept nogil
# Whether the peer may open one more connection, of `most` of which `taken` are open.
cdef bint peer_may_connect(const Peer* peer, uint64_t most, uint64_t taken) noexcept nogil

cdef int peers_init(Peers* peers, uint64_t most) noexcept nogil
cdef void peers_free(Peers* peers) noexcept nogil
# The peer at this address, with one user more; NULL: no memory. Whoever has left stays known until it is
# rested: nobody has handshakes anew by going and coming.
cdef Peer* peer_enter(Peers* peers, uint64_t address, int64_t now_ns) noexcept nogil
cdef void peer_leave(Peers* peers, Peer* peer, int64_t now_ns) noexcept nogil
# When the peer may begin one more handshake, which it then has: it may begin one every between_ns, and those
# of a second at once. -1: later than `latest_ns`, and it has none.
cdef int64_t peer_shakes(Peer* peer, int64_t now_ns, int64_t between_ns, int64_t latest_ns) noexcept nogil
# The address of a struct sockaddr, as a number; 0: none, as of a Unix socket.
cdef uint64_t peer_of_socket(const void* address, size_t size) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict shares_structs():
    return {"server/shares.pxd": (sizeof(Peer), sizeof(Peers), sizeof(Places), sizeof(Holder))}
