# Reads single records of event ids in LMDB while the store writes. See id_reader.pyx.
from featurestore.core.pthread cimport pthread_rwlock_t
from featurestore.storage.lmdb_api cimport LmdbApi, MDB_dbi, MDB_env, lmdb_api_structs

ctypedef struct IdReaderC:
    const LmdbApi* api
    MDB_env* env                 # borrowed; NULL: there is none just now
    MDB_dbi dbi
    pthread_rwlock_t lock        # shared to read; whoever changes the above has it alone

cdef class IdReader:
    cdef IdReaderC c
    cdef bint made
    cdef bint held
    # From now on ids are read here.
    cdef int attach(self, MDB_env* env, MDB_dbi dbi) except -1
    # Waits for readings under way. From now on nothing can be read.
    cdef int detach(self) except -1
    # Between these two, by one thread, whoever reads waits: until it is attached again, or could not be.
    cdef int hold(self) except -1
    cdef int let_go(self) except -1

# Compared at import: see core/structs.py.
cdef inline dict id_reader_structs():
    return lmdb_api_structs() | {"storage/id_reader.pxd": (sizeof(IdReaderC), sizeof(IdReader))}
