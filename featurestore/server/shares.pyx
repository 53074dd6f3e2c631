"""Who holds how much of what is limited: what shares.pxd promises."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from featurestore.core.pthread cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)

from featurestore.core.structs import same_structs

same_structs(__name__, shares_structs())

cdef extern from "<netinet/in.h>" nogil:
    int AF_INET, AF_INET6
    ctypedef unsigned short sa_family_t
    struct sockaddr:
        sa_family_t sa_family
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        in_addr sin_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in6:
        in6_addr sin6_addr

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void* out, size_t size, unsigned int flags)

cdef extern from * nogil:
    """
    #define fs_add(counter, n) ((void)__atomic_fetch_add((counter), (n), __ATOMIC_RELAXED))
    #define fs_sub(counter, n) ((void)__atomic_fetch_sub((counter), (n), __ATOMIC_RELAXED))
    #define fs_after_add(counter, n) __atomic_add_fetch((counter), (n), __ATOMIC_RELAXED)
    #define fs_load(place) __atomic_load_n((place), __ATOMIC_RELAXED)
    #define fs_swap(place, was, to) __atomic_compare_exchange_n((place), (was), (to), 0, __ATOMIC_RELAXED, \
                                                                __ATOMIC_RELAXED)
    """
    void fs_add(uint64_t* counter, uint64_t n) noexcept
    void fs_sub(uint64_t* counter, uint64_t n) noexcept
    uint64_t fs_after_add(uint64_t* counter, uint64_t n) noexcept
    uint64_t fs_load(const uint64_t* place) noexcept
    int64_t fs_load_time "fs_load"(const int64_t* place) noexcept
    bint fs_swap(int64_t* place, int64_t* was, int64_t to) noexcept  # else `was` is what it is

cdef enum:
    CONNECTION_SHARE = 2             # times what is free
    PEER_SHARE = 8
    LEAST_BUCKETS = 64
    MOST_BUCKETS = 1 << 16
    BURST_NS = 1_000_000_000         # of handshakes a peer may have at once


cdef bint share_allows(uint64_t most, uint64_t taken, uint64_t mine, uint64_t part) noexcept nogil:
    return taken < most and mine // part < most - taken


cdef bint share_has_room(uint64_t most, uint64_t taken, uint64_t n, uint64_t mine,
                         uint64_t theirs) noexcept nogil:
    cdef uint64_t left
    if taken >= most or n > most - taken:
        return False
    left = most - taken - n
    return (mine + n) // CONNECTION_SHARE <= left and (theirs + n) // PEER_SHARE <= left


cdef bint place_take(Places* places, Holder* holder, int kind) noexcept nogil:
    cdef uint64_t taken = fs_after_add(&places.taken[kind], 1) - 1
    if (share_allows(places.most[kind], taken, holder.calls[kind], CONNECTION_SHARE)
            and share_allows(places.most[kind], taken, fs_load(&holder.peer.calls[kind]), PEER_SHARE)):
        holder.calls[kind] += 1
        fs_add(&holder.peer.calls[kind], 1)
        return True
    fs_sub(&places.taken[kind], 1)
    return False


cdef void place_give(Places* places, Holder* holder, int kind) noexcept nogil:
    holder.calls[kind] -= 1
    fs_sub(&holder.peer.calls[kind], 1)
    fs_sub(&places.taken[kind], 1)


cdef bint peer_may_connect(const Peer* peer, uint64_t most, uint64_t taken) noexcept nogil:
    return share_allows(most, taken, fs_load(&peer.connections), PEER_SHARE)


# -- peers


cdef int peers_init(Peers* peers, uint64_t most) noexcept nogil:
    cdef uint64_t n = LEAST_BUCKETS
    memset(peers, 0, sizeof(Peers))
    while n < most and n < <uint64_t>MOST_BUCKETS:
        n *= 2
    peers.mask = n - 1
    if getrandom(&peers.secret, sizeof(peers.secret), 0) != <ssize_t>sizeof(peers.secret):
        return -1
    peers.buckets = <Peer**>calloc(n, sizeof(Peer*))
    if peers.buckets == NULL or pthread_mutex_init(&peers.lock, NULL) != 0:
        free(peers.buckets)
        peers.buckets = NULL
        return -1
    return 0


cdef void peers_free(Peers* peers) noexcept nogil:
    cdef Peer* peer
    cdef uint64_t i
    if peers.buckets == NULL:
        return
    for i in range(peers.mask + 1):
        while peers.buckets[i] != NULL:
            peer = peers.buckets[i]
            peers.buckets[i] = peer.next
            free(peer)
    free(peers.buckets)
    peers.buckets = NULL
    pthread_mutex_destroy(&peers.lock)


cdef Peer** _bucket(Peers* peers, uint64_t address) noexcept nogil:
    cdef uint64_t x = address ^ peers.secret
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return &peers.buckets[(x ^ (x >> 31)) & peers.mask]


cdef Peer* _look(Peer** link, uint64_t address, int64_t now_ns) noexcept nogil:
    """Who is at this address, of a bucket from which those go who have left and rested. Under lock."""
    cdef Peer* found = NULL
    cdef Peer* peer
    while link[0] != NULL:
        peer = link[0]
        if peer.users == 0 and peer.rested_ns <= now_ns:
            link[0] = peer.next
            free(peer)
            continue
        if peer.address == address:
            found = peer
        link = &peer.next
    return found


cdef Peer* peer_enter(Peers* peers, uint64_t address, int64_t now_ns) noexcept nogil:
    cdef Peer** bucket = _bucket(peers, address)
    cdef Peer* peer
    pthread_mutex_lock(&peers.lock)
    peer = _look(bucket, address, now_ns)
    if peer == NULL:
        peer = <Peer*>calloc(1, sizeof(Peer))
        if peer != NULL:
            peer.address = address
            peer.next = bucket[0]
            bucket[0] = peer
    if peer != NULL:
        peer.users += 1
    pthread_mutex_unlock(&peers.lock)
    return peer


cdef void peer_leave(Peers* peers, Peer* peer, int64_t now_ns) noexcept nogil:
    pthread_mutex_lock(&peers.lock)
    peer.users -= 1
    if peer.users == 0:
        _look(_bucket(peers, peer.address), peer.address, now_ns)
    pthread_mutex_unlock(&peers.lock)


cdef int64_t peer_shakes(Peer* peer, int64_t now_ns, int64_t between_ns, int64_t latest_ns) noexcept nogil:
    cdef int64_t rested = fs_load_time(&peer.rested_ns)
    cdef int64_t then
    while True:
        then = max(rested, now_ns) + between_ns
        if then - BURST_NS > latest_ns:
            return -1
        if fs_swap(&peer.rested_ns, &rested, then):
            return max(now_ns, then - BURST_NS)


cdef uint64_t peer_of_socket(const void* address, size_t size) noexcept nogil:
    cdef int family = (<const sockaddr*>address).sa_family if size >= sizeof(sa_family_t) else 0
    cdef const uint8_t* six
    cdef uint64_t found = 0
    cdef uint32_t four
    if family == AF_INET and size >= sizeof(sockaddr_in):
        return <uint64_t>0xFFFF << 32 | (<const sockaddr_in*>address).sin_addr.s_addr
    if family != AF_INET6 or size < sizeof(sockaddr_in6):
        return 0
    six = &(<const sockaddr_in6*>address).sin6_addr.s6_addr[0]
    memcpy(&found, six, 8)
    if found == 0 and six[10] == 0xFF and six[11] == 0xFF:  # ::ffff:a.b.c.d is the IPv4 address
        memcpy(&four, six + 12, 4)
        return <uint64_t>0xFFFF << 32 | four
    # A network, not a host: whoever has a machine has 2^64 addresses.
    return found if found else <uint64_t>1 << 63
