# What AddressSanitizer cannot know of memory that is cut up here and not by malloc: which of it is in use.
#
# In a build with FEATURESTORE_SANITIZE=1 an allocator forbids what it has not given away, and a gap behind
# each block; elsewhere the gap is 0 and the two calls are nothing.
from libc.stdint cimport uint32_t

cdef extern from * nogil:
    """
    #include <string.h>
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #define FS_GAP_BYTES 16
    #define FS_UNCHECKED __attribute__((no_sanitize_address, noinline, unused))
    #define fs_forbid(at, n_bytes) __asan_poison_memory_region((at), (n_bytes))
    #define fs_allow(at, n_bytes) __asan_unpoison_memory_region((at), (n_bytes))
    #else
    #define FS_GAP_BYTES 0
    #define FS_UNCHECKED inline
    #define fs_forbid(at, n_bytes) ((void)(at), (void)(n_bytes))
    #define fs_allow(at, n_bytes) ((void)(at), (void)(n_bytes))
    #endif
    static FS_UNCHECKED uint32_t fs_peek(const char* at) { return *(const uint32_t*)at; }
    static FS_UNCHECKED void fs_poke(char* at, uint32_t x) { *(uint32_t*)at = x; }
    """
    const size_t GAP_BYTES "FS_GAP_BYTES"
    # From here on, reading or writing these bytes ends the process.
    void forbid "fs_forbid"(const void* at, size_t n_bytes) noexcept
    # Exactly these bytes may be used; `at` is a multiple of 8.
    void allow "fs_allow"(const void* at, size_t n_bytes) noexcept
    # The allocator's own notes in memory that is forbidden; `at` is a multiple of 4.
    uint32_t peek "fs_peek"(const char* at) noexcept
    void poke "fs_poke"(char* at, uint32_t x) noexcept
