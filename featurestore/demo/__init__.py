"""The demo: real logs through a real server, and who stands out in them; and made-up traffic, labelled.

    run      starts a server on a store of its own, feeds it the logs, reads the vectors back over gRPC
      scout  vectors → the addresses that stand out, and by which of their values
      logs   the two log files, what their columns mean to the schema, what is watched in them
    music    made-up traffic through a real server, and what simple rules make of the vectors
      rules    one rule for each attack, and how its findings are counted beside the labels
      traffic  the generator: honest people and five attacks, from a seed
        draws    random numbers that are the same everywhere
    music.yaml                                     the schema for it, with what each feature shows
    demo.yaml, ssh_auth.csv, access_log.csv.gz     the schema and the logs; see NOTICE for where they are from

Nothing here is known to the store: the schema says what is counted, the client feeds and reads, and what
stands out is judged on vectors alone, as a classifier would.
"""
