# TLS of the native transport, by OpenSSL: a server's certificate, and a connection's records over its socket.
from libc.stdint cimport uint8_t

from featurestore.core.pthread cimport pthread_mutex_t

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL_CTX:
        pass

cdef enum TlsResult:
    TLS_AGAIN = 0                    # nothing for now: the socket has to be read or written first
    TLS_CLOSED = -1                  # the client has closed it
    TLS_BROKEN = -2                  # no TLS that we speak, a certificate that is missing, a torn connection
    TLS_AGAIN_WRITE = -3             # as AGAIN, and the socket has to be written
    TLS_OTHER = -4                   # hands are shaken, and not on h2
    TLS_SECURE = 1                   # they are, on h2

ctypedef struct TlsC:
    pthread_mutex_t lock             # the next
    SSL_CTX* context                 # of connections to come; connections keep the one that they began with

# A connection's TLS over its socket, to be freed with tls_free; NULL when there is no memory.
cdef void* tls_open(TlsC* tls, int fd) noexcept nogil
# Shakes hands, as far as what has come leads: a TlsResult. The next three are for one that is SECURE.
cdef int tls_shake(void* connection) noexcept nogil
# Bytes that came, at most `size` (of at least 16 KiB), or a TlsResult.
cdef ssize_t tls_receive(void* connection, uint8_t* data, size_t size) noexcept nogil
# How many were taken, or a TlsResult.
cdef ssize_t tls_send(void* connection, const uint8_t* data, size_t size) noexcept nogil
# Says that we shall send no more.
cdef void tls_shutdown(void* connection) noexcept nogil
cdef void tls_free(void* connection) noexcept nogil

cdef class TlsContext:
    cdef TlsC c
    cdef bint made
    cdef SSL_CTX* load(self) except NULL
    cdef readonly object certificate
    cdef readonly object key
    cdef readonly object client_ca

# Compared at import: see core/structs.py.
cdef inline dict tls_structs():
    return {"server/tls.pxd": (sizeof(TlsC), sizeof(TlsContext))}
