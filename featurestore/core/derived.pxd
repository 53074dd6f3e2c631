# What derived features are made of others; derived.pyx says what that means for values, statuses and bounds.
from libc.stdint cimport uint32_t

from featurestore.core.plan cimport ServiceC
from featurestore.core.window cimport Outputs

# Of n vectors, `service.read_width` values apart in `read` (which has bounds), everything but the derived
# features has been read. Computes those, then copies the `service.width` values that the service lists to
# `out`, which may lack bounds.
cdef void derive(const ServiceC* service, const Outputs* read, uint32_t n, const Outputs* out) noexcept nogil
