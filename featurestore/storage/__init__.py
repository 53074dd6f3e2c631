"""Everything that touches a disk, and the only place that knows record bytes.

    check       a store that is not open: inspect, verify, restore
    checkpoint  what the engine keeps in the rows' file, and a State made from it again
    journal     the truth: append-only segments, one fdatasync for many appends, recovery after a power cut
    frame       what a journal frame's body holds: a batch in columns, a schema, a Forget, a producer's change
    rows        checkpoints of the rows in LMDB: what bounds how much of the journal is replayed
      id_reader   event ids that memory has given up, one record at a time
      blocks      sorted records packed into checksummed values
      lmdb_file   what can be known of an LMDB data file before it is mapped
      lmdb_api    LMDB's C functions, called without the GIL
    directory   the data directory: its owner, its identity, its secret, and where each kind of file lives
    failpoint   named places where a test kills the process or makes the disk fail

`FORMAT.md`, beside this file, gives every format byte by byte. A version is never edited: a new one adds a
reader and a golden file. Nothing here knows gRPC, and nothing here decides what an event means: that is
`core`.
"""
