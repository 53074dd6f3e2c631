"""The compiled engine: everything that happens to an event after it was decoded and before it is written.

    state       decide, apply, read: the deterministic state machine over all shards
      sequencer   clock, lateness, refusals, duplicates: the one place that decides
        producers   which batches each producer has sent
          change      what an operator may change of one
        ids         which event ids were accepted, for as long as they make a duplicate
      shard       rows of one partition of the key space, applied in position order
        table       fingerprint → row
      derived     arithmetic over the values of a vector, with their bounds
        frequency   views without rows: a sketch of each, and reading it
        kept        what a row keeps of one view, whatever its structure
          window    one log per (row, view): exact first, bounded after
            total     sums that keep what they lost in rounding
        stored    what readers of stored bytes ask of them
      plan        the schema as flat C structs
        program   compiled `where` filters, and the formulas of derived features
        top       the heaviest values of a key, and its hours of day: for every window
        distinct  different values, with when each was last seen: for every window
        decayed   sums that fade, without a window
        countmin  windowed count-min sketch, for keys too many to have rows
        head      the 8 bytes that a row has for each thing it keeps
      arena       the memory of a shard
      holes       event times at which keys found no room for a row
        pages     chunks cut from huge pages, for all shards
          sanitizer  what AddressSanitizer is told of memory that is cut up here
      hashing     SipHash-2-4-128 keyed fingerprints, CRC32C
      batch       events in columns, the one shape in which they travel
      bytes       a growing buffer, for what is written out
      turns       no more threads at long work than there are cores
        pthread   POSIX threads, as far as they are needed
    structs     sizes of all structs, compared at import: modules that do not fit together do not start

Arrows point down only. Nothing here knows a file, a socket, protobuf or the machine's clock.
"""
