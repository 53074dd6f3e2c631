# The text forms in gRPC's headers, by PROTOCOL-HTTP2.md of grpc/grpc: timeouts, content types,
# percent-encoded messages.
from libc.stdint cimport int64_t, uint8_t

# grpc-timeout (one to eight digits and a unit) in nanoseconds, at most 2^60 (36 years); -1: it is none.
cdef int64_t grpc_timeout_ns(const uint8_t* text, size_t n) noexcept nogil
# Whether a content-type is gRPC's: application/grpc, alone or with a +format or ;parameters.
cdef bint is_grpc_content(const uint8_t* text, size_t n) noexcept nogil
# Writes grpc-message as it travels; `out` has room for 3 n bytes. Returns how many were written.
cdef size_t percent_encode(const uint8_t* text, size_t n, uint8_t* out) noexcept nogil
