"""What a server says on its public port to the last byte, whatever a client says.

    frames      HTTP/2 frames, and a connection on which any of them may be sent
    calls       gRPC on such frames: requests, replies, what is wrong with them
    process     a server in a process of its own: its memory, its descriptors, a disk that can be held
    hold.c      the library that holds the disk and locks

A file per question: HTTP/2 by section of RFC 9113 (`test_http2_*`), gRPC's protocol document
(`test_grpc_protocol`), clients that mean harm (`test_adversary`), clients of other makers (`test_*_client`).

Every test runs over every transport. Where one is known to differ from the document, the test says so with
`deviates(NAME="how, and why it may")`: it must then fail over that one, or the words are stale.
"""
