"""Keyed fingerprints of keys, and the checksum of everything stored.

SipHash-2-4 with 128 (and 64) bits of output: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012,
and the authors' reference code, whose published vectors the tests hold this file to. Under a secret key
nobody outside can choose two keys that collide, so keys that attackers pick (addresses, names) cannot flood a
table; and a fingerprint does not tell its key. Guarantee: two different keys share a fingerprint with
probability 2^-128 for a secret chosen at random.

A key's message is prefix-free, so parts cannot run into each other ("ab","c" is not "a","bc"):

    offset  size
    0       2     entity_id, little-endian
    2       2     length n of the first part, little-endian
    4       n     its bytes (UTF-8; integers as their decimal text)
    4+n     2     length of the second part ...

A typical key is 10 to 20 bytes, that is 3 words, and the time goes to the 14 rounds, each of which waits for
the one before. So the parts are never put side by side in a buffer (writing bytes and reading them back as
words stalls): words are cut from where the text lies, shifted by the bytes left over. Over a batch the
processor overlaps the rounds of neighbouring keys by itself.

CRC32C (Castagnoli, reflected polynomial 0x82F63B78; RFC 3720, appendix B.4): the processor's own instruction
where there is one (SSE4.2), else eight tables of 256 (Kounavis and Berry, "slicing-by-8", 2005). Both give
the same.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from featurestore.core.batch cimport COLUMN_NUMBER, COLUMN_TEXT, Column, EventBatch, MAX_TEXT_BYTES

import numpy as np

from featurestore.core.structs import same_structs
from featurestore.errors import InvalidEventError

same_structs(__name__, hashing_structs())

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "featurestore reads and writes little-endian words: it does not run on this machine"
    #endif

    #if defined(__x86_64__)
    static int crc32c_has_instruction(void) { return __builtin_cpu_supports("sse4.2") != 0; }

    __attribute__((target("sse4.2")))
    static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t* data, size_t n) {
        uint64_t word, wide = crc;
        for (; n >= 8; data += 8, n -= 8) {
            memcpy(&word, data, 8);
            wide = __builtin_ia32_crc32di(wide, word);
        }
        crc = (uint32_t)wide;
        for (; n > 0; data++, n--) crc = __builtin_ia32_crc32qi(crc, *data);
        return crc;
    }
    #else
    static int crc32c_has_instruction(void) { return 0; }
    static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t* data, size_t n) { return crc; }
    #endif
    """
    int crc32c_has_instruction() noexcept nogil
    uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t* data, size_t n) noexcept nogil


# ---- SipHash

cdef inline uint64_t load_word(const uint8_t* data) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, data, 8)
    return word


cdef inline uint64_t load_end(const uint8_t* data, size_t n) noexcept nogil:
    """The last n % 8 of n bytes as a word, never reading outside them."""
    cdef uint64_t word = 0
    cdef uint32_t low, high
    cdef size_t rest = n & 7
    if rest == 0:
        return 0
    if n >= 8:
        # One load that overlaps bytes already hashed, which the shift drops.
        return load_word(data + n - 8) >> (64 - 8 * rest)
    if rest >= 4:
        memcpy(&low, data, 4)
        memcpy(&high, data + rest - 4, 4)
        return <uint64_t>low | <uint64_t>high << (8 * (rest - 4))
    word = data[0]
    word |= <uint64_t>data[rest >> 1] << (8 * (rest >> 1))
    word |= <uint64_t>data[rest - 1] << (8 * (rest - 1))
    return word


cdef inline uint64_t rotate(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline void sip_round(SipState* s) noexcept nogil:
    s.v0 += s.v1
    s.v2 += s.v3
    s.v1 = rotate(s.v1, 13) ^ s.v0
    s.v3 = rotate(s.v3, 16) ^ s.v2
    s.v0 = rotate(s.v0, 32)
    s.v2 += s.v1
    s.v0 += s.v3
    s.v1 = rotate(s.v1, 17) ^ s.v2
    s.v3 = rotate(s.v3, 21) ^ s.v0
    s.v2 = rotate(s.v2, 32)


cdef inline void sip_word(SipState* s, uint64_t word) noexcept nogil:
    s.v3 ^= word
    sip_round(s)
    sip_round(s)
    s.v0 ^= word


cdef inline void sip_start(SipState* s, const uint8_t* key16) noexcept nogil:
    cdef uint64_t k0 = load_word(key16)
    cdef uint64_t k1 = load_word(key16 + 8)
    s.v0 = k0 ^ 0x736F6D6570736575u
    s.v1 = k1 ^ 0x646F72616E646F6Du
    s.v2 = k0 ^ 0x6C7967656E657261u
    s.v3 = k1 ^ 0x7465646279746573u
    s.tail = 0
    s.tail_bits = 0
    s.n_bytes = 0


cdef inline void sip_absorb(SipState* s, const uint8_t* data, size_t n) noexcept nogil:
    """Words are cut from `tail` and what follows it: tail_bits bits of each come from before."""
    cdef size_t i, n_words = n >> 3
    cdef uint32_t bits = s.tail_bits
    cdef uint32_t rest_bits = 8 * <uint32_t>(n & 7)
    cdef uint64_t word
    s.n_bytes += <uint32_t>n
    if bits == 0:
        for i in range(n_words):
            sip_word(s, load_word(data + 8 * i))
        s.tail = load_end(data, n)
        s.tail_bits = rest_bits
        return
    for i in range(n_words):
        word = load_word(data + 8 * i)
        sip_word(s, s.tail | word << bits)
        s.tail = word >> (64 - bits)
    word = load_end(data, n)
    s.tail |= word << bits
    bits += rest_bits
    if bits >= 64:
        sip_word(s, s.tail)
        bits -= 64
        s.tail = word >> (rest_bits - bits)
    s.tail_bits = bits


cdef inline void sip_absorb_length(SipState* s, uint16_t n) noexcept nogil:
    """sip_absorb of the two bytes of n."""
    cdef uint32_t bits = s.tail_bits
    s.n_bytes += 2
    s.tail |= <uint64_t>n << bits
    if bits >= 48:
        sip_word(s, s.tail)
        s.tail = <uint64_t>n >> (64 - bits)
        s.tail_bits = bits - 48
    else:
        s.tail_bits = bits + 16


cdef inline uint64_t sip_end128_first(SipState* s) noexcept nogil:
    """The first word of sip_end128, for those who need no second."""
    sip_word(s, s.tail | <uint64_t>s.n_bytes << 56)
    s.v2 ^= 0xEE
    sip_round(s)
    sip_round(s)
    sip_round(s)
    sip_round(s)
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3


cdef inline void sip_end128(SipState* s, uint64_t* out2) noexcept nogil:
    out2[0] = sip_end128_first(s)
    s.v1 ^= 0xDD
    sip_round(s)
    sip_round(s)
    sip_round(s)
    sip_round(s)
    out2[1] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3


cdef void sip128_init(SipState* state, const uint8_t* key16) noexcept nogil:
    sip_start(state, key16)
    state.v1 ^= 0xEE


cdef void sip128_update(SipState* state, const void* data, size_t n) noexcept nogil:
    sip_absorb(state, <const uint8_t*>data, n)


cdef void sip128_final(const SipState* state, uint64_t* out2) noexcept nogil:
    cdef SipState s = state[0]
    sip_end128(&s, out2)


cdef void siphash128(const uint8_t* key16, const uint8_t* data, size_t n, uint64_t* out2) noexcept nogil:
    cdef SipState s
    sip_start(&s, key16)
    s.v1 ^= 0xEE
    sip_absorb(&s, data, n)
    sip_end128(&s, out2)


cdef uint64_t siphash64(const uint8_t* key16, const uint8_t* data, size_t n) noexcept nogil:
    cdef SipState s
    sip_start(&s, key16)
    sip_absorb(&s, data, n)
    sip_word(&s, s.tail | <uint64_t>s.n_bytes << 56)
    s.v2 ^= 0xFF
    sip_round(&s)
    sip_round(&s)
    sip_round(&s)
    sip_round(&s)
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3


# ---- keys and values

cdef inline int fingerprint_row(const SipState* start, const Column* const* parts, uint32_t n_parts,
                                uint32_t row, uint64_t* out2) noexcept nogil:
    """`start` has taken in the entity id."""
    cdef SipState s = start[0]
    cdef uint32_t k, begin, n
    cdef const Column* part
    for k in range(n_parts):
        part = parts[k]
        begin = part.offsets[row]
        n = part.offsets[row + 1] - begin
        if n == 0 or (part.present != NULL and part.present[row] == 0):
            return 1
        sip_absorb_length(&s, <uint16_t>n)
        sip_absorb(&s, <const uint8_t*>part.bytes + begin, n)
    sip_end128(&s, out2)
    return 0


cdef inline void start_key(SipState* start, const uint8_t* secret, uint16_t entity_id) noexcept nogil:
    sip_start(start, secret)
    start.v1 ^= 0xEE
    sip_absorb_length(start, entity_id)


cdef int key_fingerprint(const uint8_t* secret, uint16_t entity_id, const Column* const* parts,
                         uint32_t n_parts, uint32_t row, uint64_t* out2) noexcept nogil:
    cdef SipState start
    start_key(&start, secret, entity_id)
    return fingerprint_row(&start, parts, n_parts, row, out2)


cdef uint32_t key_fingerprints(const uint8_t* secret, uint16_t entity_id, const Column* const* parts,
                               uint32_t n_parts, uint32_t lo, uint32_t hi, uint64_t* out2s,
                               uint8_t* missing) noexcept nogil:
    cdef SipState start
    cdef uint32_t i, k, too_long, n_missing = 0
    start_key(&start, secret, entity_id)
    for i in range(lo, hi):
        too_long = 0
        for k in range(n_parts):
            too_long |= parts[k].offsets[i + 1] - parts[k].offsets[i] > MAX_TEXT_BYTES
        if too_long or fingerprint_row(&start, parts, n_parts, i, out2s + 2 * <size_t>(i - lo)):
            out2s[2 * <size_t>(i - lo)] = 0
            out2s[2 * <size_t>(i - lo) + 1] = 0
            missing[i - lo] = 1
            n_missing += 1
        else:
            missing[i - lo] = 0
    return n_missing


cdef void value_hashes(const uint8_t* secret, uint16_t domain, const Column* column, bint is_key, uint32_t n,
                       uint64_t* hashes) noexcept nogil:
    cdef SipState start, s
    cdef uint64_t hash
    cdef double number
    cdef uint32_t i, n_bytes
    start_key(&start, secret, domain)
    for i in range(n):
        hashes[i] = 0
        s = start
        if column.kind == COLUMN_NUMBER:
            number = column.numbers[i] + 0.0         # -0 is 0
            if number != number:
                continue
            sip_absorb(&s, <const uint8_t*>&number, sizeof(number))
        else:
            n_bytes = column.offsets[i + 1] - column.offsets[i]
            if (column.present != NULL and not column.present[i]) or (n_bytes == 0 and is_key):
                continue
            sip_absorb(&s, <const uint8_t*>column.bytes + column.offsets[i], n_bytes)
        hash = sip_end128_first(&s)
        hashes[i] = hash if hash else 1


# ---- CRC32C

cdef uint32_t[8][256] crc_tables  # [k][b]: what byte b, followed by k zero bytes, does to the sum
cdef int crc_by_instruction = 0


cdef void fill_crc_tables() noexcept nogil:
    cdef uint32_t b, k, crc
    cdef int _bit
    for b in range(256):
        crc = b
        for _bit in range(8):
            crc = (crc >> 1) ^ (0x82F63B78u if crc & 1 else 0)
        crc_tables[0][b] = crc
    for b in range(256):
        crc = crc_tables[0][b]
        for k in range(1, 8):
            crc = (crc >> 8) ^ crc_tables[0][crc & 0xFF]
            crc_tables[k][b] = crc


cdef uint32_t crc32c_by_tables(uint32_t crc, const uint8_t* data, size_t n) noexcept nogil:
    cdef uint64_t word
    while n >= 8:
        word = load_word(data) ^ crc
        crc = (crc_tables[7][word & 0xFF] ^ crc_tables[6][(word >> 8) & 0xFF]
               ^ crc_tables[5][(word >> 16) & 0xFF] ^ crc_tables[4][(word >> 24) & 0xFF]
               ^ crc_tables[3][(word >> 32) & 0xFF] ^ crc_tables[2][(word >> 40) & 0xFF]
               ^ crc_tables[1][(word >> 48) & 0xFF] ^ crc_tables[0][word >> 56])
        data += 8
        n -= 8
    while n > 0:
        crc = (crc >> 8) ^ crc_tables[0][(crc ^ data[0]) & 0xFF]
        data += 1
        n -= 1
    return crc


cdef uint32_t crc32c(uint32_t crc, const void* data, size_t n) noexcept nogil:
    if crc_by_instruction:
        return ~crc32c_by_instruction(~crc, <const uint8_t*>data, n)
    return ~crc32c_by_tables(~crc, <const uint8_t*>data, n)


fill_crc_tables()
crc_by_instruction = crc32c_has_instruction()


# ---- for tests and tools

cdef const uint8_t* checked_secret(const uint8_t[::1] secret) except NULL:
    if secret.shape[0] != 16:
        raise ValueError(f"a SipHash key is 16 bytes, not {secret.shape[0]}: pass the store's secret")
    return &secret[0]


def sip64(const uint8_t[::1] key16 not None, const uint8_t[::1] data not None):
    """SipHash-2-4 of `data` as an integer."""
    cdef const uint8_t* key = checked_secret(key16)
    cdef size_t n = data.shape[0]
    return siphash64(key, &data[0] if n > 0 else NULL, n)


def sip128(const uint8_t[::1] key16 not None, *pieces):
    """SipHash-2-4-128 of the pieces one after the other: 16 bytes, as in the reference code."""
    cdef SipState state
    cdef uint64_t[2] out2
    cdef const uint8_t[::1] piece
    sip128_init(&state, checked_secret(key16))
    for piece in pieces:
        if piece.shape[0] > 0:
            sip128_update(&state, &piece[0], piece.shape[0])
    sip128_final(&state, out2)
    return PyBytes_FromStringAndSize(<char*>out2, 16)


def fingerprint(const uint8_t[::1] secret not None, uint16_t entity_id, parts not None):
    """The fingerprint of one key, given by its parts' bytes: 16 bytes, or None where a part is empty.

    Raises InvalidEventError where a part is longer than MAX_TEXT_BYTES (4096).
    """
    cdef SipState s
    cdef uint64_t[2] out2
    cdef const uint8_t[::1] part
    start_key(&s, checked_secret(secret), entity_id)
    for part in parts:
        if part.shape[0] == 0:
            return None
        if part.shape[0] > MAX_TEXT_BYTES:
            raise InvalidEventError(
                f"a key part of {part.shape[0]} bytes; the limit is {MAX_TEXT_BYTES}: no such key is stored"
            )
        sip_absorb_length(&s, <uint16_t>part.shape[0])
        sip_absorb(&s, &part[0], part.shape[0])
    sip_end128(&s, out2)
    return PyBytes_FromStringAndSize(<char*>out2, 16)


def fingerprints(const uint8_t[::1] secret not None, uint16_t entity_id, EventBatch batch not None,
                 fields not None):
    """Fingerprints of the keys that these text fields make, of every event of the batch.

    Returns (uint64 array of shape (n_events, 2), bool array: True where a part is null, empty or too long).
    """
    cdef const Column* parts[64]
    cdef uint32_t k, n_parts = len(fields)
    cdef const uint8_t* key = checked_secret(secret)
    if len(fields) > 64:
        raise ValueError(f"a key of {len(fields)} parts; this function takes at most 64")
    for k in range(n_parts):
        if not 0 <= fields[k] < batch.batch.n_columns:
            raise ValueError(f"field {fields[k]}: this batch has {batch.batch.n_columns} columns")
        parts[k] = &batch.batch.columns[<int>fields[k]]
        if parts[k].kind != COLUMN_TEXT:
            raise ValueError(f"field {fields[k]} is a column of numbers; a key is made of text columns")
    words = np.empty((batch.batch.n_events, 2), dtype=np.uint64)
    missing = np.empty(batch.batch.n_events, dtype=np.uint8)
    cdef uint64_t[:, ::1] words_view = words
    cdef uint8_t[::1] missing_view = missing
    if batch.batch.n_events > 0:
        with nogil:
            key_fingerprints(key, entity_id, parts, n_parts, 0, batch.batch.n_events, &words_view[0, 0],
                             &missing_view[0])
    return words, missing.view(np.bool_)


def crc32c_of(const uint8_t[::1] data not None, uint32_t crc=0, *, bint tables=False):
    """CRC32C of `data`, going on from `crc`; `tables` leaves the processor's instruction unused."""
    cdef size_t n = data.shape[0]
    cdef const uint8_t* begin = &data[0] if n > 0 else NULL
    if tables:
        return <uint32_t>~crc32c_by_tables(~crc, begin, n)
    return crc32c(crc, begin, n)
