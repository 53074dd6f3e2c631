"""The demo: real logs through a real server, and who stands out in them.

    run      starts a server on a store of its own, feeds it the logs, reads the vectors back over gRPC
      scout  vectors → the addresses that stand out, and by which of their values
      logs   the two log files, what their columns mean to the schema, what is watched in them
    demo.yaml, ssh_auth.csv, access_log.csv.gz     the schema and the logs; see NOTICE for where they are from

Nothing here is known to the store: the schema says what is counted, the client feeds and reads, and what
stands out is judged on vectors alone, as a classifier would.
"""
