# Keyed fingerprints (SipHash-2-4) and the checksum of everything stored (CRC32C). See hashing.pyx.
#
# Nothing here allocates or fails. Every pointer is borrowed for the call only.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.batch cimport Column, batch_structs

# A SipHash-2-4-128 under way: lets a message be hashed from its parts without putting them side by side.
ctypedef struct SipState:
    uint64_t v0                   # the four words of the permutation
    uint64_t v1
    uint64_t v2
    uint64_t v3
    uint64_t tail                 # bytes that fill no word yet, the first one lowest; above them 0
    uint32_t tail_bits            # 8 * bytes in tail: 0, 8, ..., 56
    uint32_t n_bytes              # length of the message so far; only its lowest byte is hashed

cdef void sip128_init(SipState* state, const uint8_t* key16) noexcept nogil
cdef void sip128_update(SipState* state, const void* data, size_t n) noexcept nogil
# Leaves the state unchanged, so that several messages may share a beginning.
cdef void sip128_final(const SipState* state, uint64_t* out2) noexcept nogil

# out2[0], out2[1] are the 16 bytes of the published test vectors read as two little-endian words.
cdef void siphash128(const uint8_t* key16, const uint8_t* data, size_t n, uint64_t* out2) noexcept nogil
cdef uint64_t siphash64(const uint8_t* key16, const uint8_t* data, size_t n) noexcept nogil

# Fingerprint of one key: message = u16 entity_id LE, then per part u16 length LE and the bytes. 0 = out2 is
# written; 1 = a part is null or empty, out2 is untouched. The parts are COLUMN_TEXT, and the text of `row` is
# at most MAX_TEXT_BYTES in each (its event was not refused).
cdef int key_fingerprint(const uint8_t* secret, uint16_t entity_id, const Column* const* parts,
                         uint32_t n_parts, uint32_t row, uint64_t* out2) noexcept nogil

# The same for rows lo..hi-1: out2s[2 * (i - lo)] and the word after it, missing[i - lo] = 0 or 1 as above
# (where it is 1, or where a text is longer than MAX_TEXT_BYTES, the words are 0). Returns how many are
# missing.
cdef uint32_t key_fingerprints(const uint8_t* secret, uint16_t entity_id, const Column* const* parts,
                               uint32_t n_parts, uint32_t lo, uint32_t hi, uint64_t* out2s,
                               uint8_t* missing) noexcept nogil

# Of n values of one column: message = u16 domain LE, then the bytes, of a number those of its double. 0 where
# the value is absent, as an empty text is where it is of a key.
cdef void value_hashes(const uint8_t* secret, uint16_t domain, const Column* column, bint is_key, uint32_t n,
                       uint64_t* hashes) noexcept nogil

# CRC32C (Castagnoli) of `data`, going on from `crc`; start with 0 (or with a salt).
# crc32c(crc32c(0, a), b) = crc32c(0, a + b), as with zlib's crc32.
cdef uint32_t crc32c(uint32_t crc, const void* data, size_t n) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict hashing_structs():
    return batch_structs() | {"core/hashing.pxd": (sizeof(SipState),)}
