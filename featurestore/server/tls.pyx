"""TLS for the native transport: what tls.pxd promises.

TLS 1.2 with ephemeral keys and AEAD ciphers, or 1.3, as RFC 9113 section 9.2 asks; ALPN must say h2. No
renegotiation, no compression, no resumption: a client whose certificate is no longer trusted does not come
back by a ticket. With a client CA every client shows a certificate that it signed.

`reload` reads the files again: connections to come get what they say now, those that are open keep what
they have.
"""

cimport cython
from libc.stdint cimport uint8_t

from featurestore.core.pthread cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)

from featurestore.core.structs import same_structs
from featurestore.errors import ConfigError

same_structs(__name__, tls_structs())

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_METHOD:
        pass
    int TLS1_2_VERSION, SSL_FILETYPE_PEM, SSL_VERIFY_PEER, SSL_VERIFY_FAIL_IF_NO_PEER_CERT, SSL_SESS_CACHE_OFF
    int SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN
    int SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_ALERT_FATAL
    unsigned long SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_COMPRESSION, SSL_OP_NO_TICKET
    unsigned long SSL_OP_CIPHER_SERVER_PREFERENCE
    long SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_RELEASE_BUFFERS
    ctypedef int (*alpn_callback)(SSL* ssl, const unsigned char** out, unsigned char* out_size,
                                  const unsigned char* offered, unsigned int size,
                                  void* argument) noexcept nogil
    ctypedef int (*password_callback)(char* out, int size, int is_writing, void* argument) noexcept nogil
    const SSL_METHOD* TLS_server_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD* method)
    void SSL_CTX_free(SSL_CTX* context)
    int SSL_CTX_set_min_proto_version(SSL_CTX* context, int version)
    unsigned long SSL_CTX_set_options(SSL_CTX* context, unsigned long options)
    long SSL_CTX_set_mode(SSL_CTX* context, long mode)
    long SSL_CTX_set_session_cache_mode(SSL_CTX* context, long mode)
    int SSL_CTX_set_num_tickets(SSL_CTX* context, size_t n)
    int SSL_CTX_set_cipher_list(SSL_CTX* context, const char* names)
    int SSL_CTX_use_certificate_chain_file(SSL_CTX* context, const char* path)
    int SSL_CTX_use_PrivateKey_file(SSL_CTX* context, const char* path, int kind)
    int SSL_CTX_check_private_key(SSL_CTX* context)
    int SSL_CTX_load_verify_file(SSL_CTX* context, const char* path)
    void SSL_CTX_set_verify(SSL_CTX* context, int mode, void* callback)
    void SSL_CTX_set_alpn_select_cb(SSL_CTX* context, alpn_callback callback, void* argument)
    void SSL_CTX_set_default_passwd_cb(SSL_CTX* context, password_callback callback)
    SSL* SSL_new(SSL_CTX* context)
    void SSL_free(SSL* ssl)
    int SSL_set_fd(SSL* ssl, int fd)
    void SSL_set_accept_state(SSL* ssl)
    int SSL_read(SSL* ssl, void* data, int size)
    int SSL_write(SSL* ssl, const void* data, int size)
    int SSL_get_error(SSL* ssl, int result)
    int SSL_do_handshake(SSL* ssl)
    int SSL_shutdown(SSL* ssl)
    void SSL_get0_alpn_selected(SSL* ssl, const unsigned char** name, unsigned int* size)

cdef extern from "<openssl/crypto.h>" nogil:
    int OPENSSL_VERSION
    const char* OpenSSL_version(int kind)

cdef extern from "<openssl/err.h>" nogil:
    void ERR_clear_error()
    unsigned long ERR_peek_last_error()
    const char* ERR_reason_error_string(unsigned long error)

cdef enum:
    MOST_BYTES = 1 << 30             # of one call: OpenSSL takes an int


cdef int _choose_h2(SSL* ssl, const unsigned char** out, unsigned char* out_size,
                    const unsigned char* offered, unsigned int size, void* argument) noexcept nogil:
    cdef unsigned int at = 0
    while at < size:
        if at + 3 <= size and offered[at] == 2 and offered[at + 1] == c'h' and offered[at + 2] == c'2':
            out[0] = offered + at + 1
            out_size[0] = 2
            return SSL_TLSEXT_ERR_OK
        at += 1 + <unsigned int>offered[at]
    return SSL_TLSEXT_ERR_ALERT_FATAL


cdef int _no_password(char* out, int size, int is_writing, void* argument) noexcept nogil:
    """A key with a password cannot be used; OpenSSL would ask the terminal for it."""
    return 0


cdef void* tls_open(TlsC* tls, int fd) noexcept nogil:
    cdef SSL* ssl
    pthread_mutex_lock(&tls.lock)
    ssl = SSL_new(tls.context)
    pthread_mutex_unlock(&tls.lock)
    if ssl == NULL:
        return NULL
    if SSL_set_fd(ssl, fd) != 1:
        SSL_free(ssl)
        return NULL
    SSL_set_accept_state(ssl)
    return ssl


cdef ssize_t _result(SSL* ssl, int n) noexcept nogil:
    cdef int error = SSL_get_error(ssl, n)
    if error == SSL_ERROR_WANT_READ:
        return TLS_AGAIN
    if error == SSL_ERROR_WANT_WRITE:
        return TLS_AGAIN_WRITE
    return TLS_CLOSED if error == SSL_ERROR_ZERO_RETURN else TLS_BROKEN


cdef int tls_shake(void* connection) noexcept nogil:
    cdef SSL* ssl = <SSL*>connection
    cdef const unsigned char* protocol
    cdef unsigned int n_protocol
    cdef int n
    ERR_clear_error()
    n = SSL_do_handshake(ssl)
    if n != 1:
        return <int>_result(ssl, n)
    SSL_get0_alpn_selected(ssl, &protocol, &n_protocol)
    # A client that offers no protocol at all has not been asked by _choose_h2.
    return TLS_SECURE if n_protocol == 2 else TLS_OTHER


cdef ssize_t tls_receive(void* connection, uint8_t* data, size_t size) noexcept nogil:
    cdef SSL* ssl = <SSL*>connection
    cdef int n
    ERR_clear_error()
    n = SSL_read(ssl, data, <int>min(size, <size_t>MOST_BYTES))
    return n if n > 0 else _result(ssl, n)


cdef ssize_t tls_send(void* connection, const uint8_t* data, size_t size) noexcept nogil:
    cdef SSL* ssl = <SSL*>connection
    cdef int n
    ERR_clear_error()
    n = SSL_write(ssl, data, <int>min(size, <size_t>MOST_BYTES))
    return n if n > 0 else _result(ssl, n)


cdef void tls_shutdown(void* connection) noexcept nogil:
    ERR_clear_error()
    SSL_shutdown(<SSL*>connection)


cdef void tls_free(void* connection) noexcept nogil:
    SSL_free(<SSL*>connection)


def openssl_library():
    """The library that is loaded, with its version."""
    return OpenSSL_version(OPENSSL_VERSION).decode().partition(" (")[0]


cdef object _problem(object what):
    cdef const char* reason = ERR_reason_error_string(ERR_peek_last_error())
    why = "no reason given" if reason == NULL else reason.decode()
    return ConfigError(
        f"{what} cannot be used ({why}); give PEM files that belong together, the key without a password")


@cython.final
cdef class TlsContext:
    """A server's certificate, its key, and the CA of its clients or None: paths of PEM files.

    Raises ConfigError for files that cannot be used.
    """

    def __cinit__(self):
        self.made = pthread_mutex_init(&self.c.lock, NULL) == 0
        if not self.made:
            raise MemoryError

    def __init__(self, certificate, key, client_ca=None):
        if self.c.context != NULL:
            raise ValueError("a TlsContext is made once")
        self.certificate, self.key, self.client_ca = certificate, key, client_ca
        self.c.context = self.load()

    def __dealloc__(self):
        SSL_CTX_free(self.c.context)
        if self.made:
            pthread_mutex_destroy(&self.c.lock)

    def reload(self):
        """Reads the files again. Raises ConfigError, and changes nothing, where they cannot be used."""
        cdef SSL_CTX* old
        cdef SSL_CTX* new = self.load()
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            old = self.c.context
            self.c.context = new
            pthread_mutex_unlock(&self.c.lock)
            SSL_CTX_free(old)  # connections count as its users

    cdef SSL_CTX* load(self) except NULL:
        cdef bytes certificate = bytes(self.certificate)
        cdef bytes key = bytes(self.key)
        cdef bytes client_ca
        cdef SSL_CTX* context = SSL_CTX_new(TLS_server_method())
        if context == NULL:
            raise MemoryError
        try:
            SSL_CTX_set_default_passwd_cb(context, _no_password)
            SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION)
            SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET
                                | SSL_OP_CIPHER_SERVER_PREFERENCE)
            SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF)
            SSL_CTX_set_num_tickets(context, 0)
            SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
                             | SSL_MODE_RELEASE_BUFFERS)
            SSL_CTX_set_cipher_list(context, b"ECDHE+AESGCM:ECDHE+CHACHA20")
            SSL_CTX_set_alpn_select_cb(context, _choose_h2, NULL)
            if (SSL_CTX_use_certificate_chain_file(context, certificate) != 1
                    or SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1
                    or SSL_CTX_check_private_key(context) != 1):
                raise _problem(f"the certificate {self.certificate} and the key {self.key}")
            if self.client_ca is not None:
                client_ca = bytes(self.client_ca)
                if SSL_CTX_load_verify_file(context, client_ca) != 1:
                    raise _problem(f"the client CA {self.client_ca}")
                SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL)
        except BaseException:
            SSL_CTX_free(context)
            raise
        return context
