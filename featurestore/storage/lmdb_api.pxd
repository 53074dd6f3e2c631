# LMDB's C functions as pointers, for code that must not touch the GIL. See lmdb_api.pyx.
#
# Opaque handles, values and codes are those of <lmdb.h> 0.9. Ownership: an MDB_val that LMDB fills points
# into the map and is valid until the next write in the same transaction or that transaction's end, whichever
# is first.
cdef extern from * nogil:
    """
    #include <stddef.h>
    typedef struct MDB_env MDB_env;
    typedef struct MDB_txn MDB_txn;
    typedef struct MDB_cursor MDB_cursor;
    typedef unsigned int MDB_dbi;
    typedef struct MDB_val { size_t mv_size; void *mv_data; } MDB_val;
    typedef struct MDB_stat {
        unsigned int ms_psize, ms_depth;
        size_t ms_branch_pages, ms_leaf_pages, ms_overflow_pages, ms_entries;
    } MDB_stat;
    typedef struct MDB_envinfo {
        void *me_mapaddr;
        size_t me_mapsize, me_last_pgno, me_last_txnid;
        unsigned int me_maxreaders, me_numreaders;
    } MDB_envinfo;
    """
    ctypedef struct MDB_env
    ctypedef struct MDB_txn
    ctypedef struct MDB_cursor
    ctypedef unsigned int MDB_dbi
    ctypedef struct MDB_val:
        size_t mv_size
        void* mv_data
    ctypedef struct MDB_stat:
        unsigned int ms_psize
        unsigned int ms_depth
        size_t ms_branch_pages
        size_t ms_leaf_pages
        size_t ms_overflow_pages
        size_t ms_entries
    ctypedef struct MDB_envinfo:
        void* me_mapaddr
        size_t me_mapsize
        size_t me_last_pgno
        size_t me_last_txnid
        unsigned int me_maxreaders
        unsigned int me_numreaders

cdef enum:
    MDB_RDONLY = 0x20000
    MDB_NOTLS = 0x200000
    MDB_NOLOCK = 0x400000         # no table of readers; only where nobody writes meanwhile
    MDB_NOSUBDIR = 0x4000         # the path is that of the data file
    MDB_NOSYNC = 0x10000          # commits are not synced; whoever opens it so syncs the file
    MDB_RESERVE = 0x10000         # put: leave room for the value, the caller fills it before the next write
    MDB_APPEND = 0x20000          # put: after all others
    MDB_FREE_DBI = 0              # the database of free pages; readable in a read transaction

    MDB_FIRST = 0                 # cursor operations
    MDB_NEXT = 8
    MDB_PREV = 12
    MDB_SET_RANGE = 17            # first entry whose key is not below the given one
    MDB_LAST = 6

    MDB_NOTFOUND = -30798
    MDB_PAGE_NOTFOUND = -30797
    MDB_CORRUPTED = -30796
    MDB_PANIC = -30795
    MDB_VERSION_MISMATCH = -30794
    MDB_INVALID = -30793
    MDB_MAP_FULL = -30792
    MDB_READERS_FULL = -30790
    MDB_INCOMPATIBLE = -30784

# One pointer per function, in the order of FUNCTIONS in lmdb_api.pyx: filled as an array of pointers.
ctypedef struct LmdbApi:
    char* (*version)(int* major, int* minor, int* patch) noexcept nogil
    char* (*strerror)(int code) noexcept nogil
    int (*env_create)(MDB_env** env) noexcept nogil
    int (*env_open)(MDB_env* env, const char* path, unsigned int flags, unsigned int mode) noexcept nogil
    void (*env_close)(MDB_env* env) noexcept nogil
    int (*env_set_mapsize)(MDB_env* env, size_t map_size_bytes) noexcept nogil
    int (*env_info)(MDB_env* env, MDB_envinfo* info) noexcept nogil
    int (*env_stat)(MDB_env* env, MDB_stat* stat) noexcept nogil
    int (*reader_check)(MDB_env* env, int* n_dead) noexcept nogil
    int (*txn_begin)(MDB_env* env, MDB_txn* parent, unsigned int flags, MDB_txn** txn) noexcept nogil
    int (*txn_commit)(MDB_txn* txn) noexcept nogil
    void (*txn_abort)(MDB_txn* txn) noexcept nogil
    int (*dbi_open)(MDB_txn* txn, const char* name, unsigned int flags, MDB_dbi* dbi) noexcept nogil
    int (*get)(MDB_txn* txn, MDB_dbi dbi, MDB_val* key, MDB_val* value) noexcept nogil
    int (*put)(MDB_txn* txn, MDB_dbi dbi, MDB_val* key, MDB_val* value, unsigned int flags) noexcept nogil
    int (*cursor_open)(MDB_txn* txn, MDB_dbi dbi, MDB_cursor** cursor) noexcept nogil
    void (*cursor_close)(MDB_cursor* cursor) noexcept nogil
    int (*cursor_get)(MDB_cursor* cursor, MDB_val* key, MDB_val* value, int operation) noexcept nogil
    int (*cursor_put)(MDB_cursor* cursor, MDB_val* key, MDB_val* value, unsigned int flags) noexcept nogil
    int (*cursor_del)(MDB_cursor* cursor, unsigned int flags) noexcept nogil

# The functions of the installed lmdb, found at the first call. ConfigError if they cannot be had.
cdef const LmdbApi* lmdb() except NULL

# Compared at import: see core/structs.py.
cdef inline dict lmdb_api_structs():
    return {"storage/lmdb_api.pxd": (sizeof(LmdbApi),)}
