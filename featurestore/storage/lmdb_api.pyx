"""LMDB's C functions, called without the GIL.

py-lmdb's own calls give up the GIL and take it back around every put, and wait for it behind any thread that
is running Python: 500,000 puts took 0.16 s alone, and 20,000 took 18 s beside one spinning thread. A
checkpoint must not be slowed down by serving threads, nor slow them down. So the C library that py-lmdb
brings is called directly.

py-lmdb 3.0 exports LMDB 0.9 from its extension module under the prefix `mdb09_` (beside LMDB 1.0, which has
another file format). The module is imported, so its file is loaded already; here it is only looked up:
`dlopen` with RTLD_NOLOAD, then one `dlsym` per function. Nothing is linked against, no second copy of LMDB
can come into the process, and what is not as expected is a ConfigError that names the version needed, before
any file is touched.
"""
from featurestore.core.structs import same_structs
from featurestore.errors import ConfigError

same_structs(__name__, lmdb_api_structs())

cdef extern from "<dlfcn.h>" nogil:
    void* dlopen(const char* path, int flags)
    void* dlsym(void* library, const char* name)
    int dlclose(void* library)
    int RTLD_NOLOAD
    int RTLD_NOW

NEEDED = "lmdb>=3.0,<4"
PREFIX = "mdb09_"
OLDEST = (0, 9, 36)               # what lmdb 3.0.0 brings; any later 0.9 keeps its calls and its file format

# The fields of LmdbApi, in its order.
FUNCTIONS = (
    "version", "strerror", "env_create", "env_open", "env_close", "env_set_mapsize", "env_info", "env_stat",
    "reader_check", "txn_begin", "txn_commit", "txn_abort", "dbi_open", "get", "put", "cursor_open",
    "cursor_close", "cursor_get", "cursor_put", "cursor_del",
)

cdef LmdbApi functions            # filled once, under the GIL, then only read
cdef bint functions_found = False

assert sizeof(LmdbApi) == len(FUNCTIONS) * sizeof(void*)


cdef const LmdbApi* lmdb() except NULL:
    global functions_found
    if not functions_found:
        try:
            from lmdb import cpython
        except ImportError as error:
            raise ConfigError(f"the row store needs {NEEDED} with its C extension: {error}") from error
        resolve(cpython.__file__, &functions)
        functions_found = True
    return &functions


cdef int resolve(str path, LmdbApi* api) except -1:
    cdef void** slots = <void**> api
    cdef void* library
    cdef int major = 0, minor = 0, patch = 0
    encoded = path.encode()
    library = dlopen(encoded, RTLD_NOLOAD | RTLD_NOW)
    if library == NULL:
        raise ConfigError(f"the row store needs {NEEDED} with its C extension: {path} is not loaded")
    try:
        for index, name in enumerate(FUNCTIONS):
            symbol = (PREFIX + name).encode()
            slots[<size_t> index] = dlsym(library, symbol)
            if slots[<size_t> index] == NULL:
                raise ConfigError(f"the row store needs {NEEDED}: {path} does not export {PREFIX}{name}")
        api.version(&major, &minor, &patch)
        if (major, minor) != OLDEST[:2] or patch < OLDEST[2]:
            raise ConfigError(
                f"the row store needs {NEEDED}, which brings LMDB {'.'.join(map(str, OLDEST))} or a later "
                f"0.9: {path} brings {major}.{minor}.{patch}"
            )
    finally:
        dlclose(library)          # the interpreter keeps its own reference and never unloads a module
    return 0


def check(str path not None):
    """Looks for the functions in the loaded library at `path`; returns LMDB's version, 3 numbers.

    Raises ConfigError, naming the version of lmdb that is needed, where `lmdb()` would.
    """
    cdef LmdbApi api
    cdef int major = 0, minor = 0, patch = 0
    resolve(path, &api)
    api.version(&major, &minor, &patch)
    return major, minor, patch
