"""State as bytes without what the server's clock left in it: the same whenever the same things happened.

When a producer was last heard of is told by the server's clock, also in stores whose events bring theirs. So
two stores that took the same batches at different hours differ in that, and in nothing else.
"""

from __future__ import annotations

import hashlib
import struct

from featurestore.core.state import State

HEAD_BYTES = (
    32  # of a snapshot; sections follow, each behind its u64 length: the head, ids, producers, shards
)
PRODUCERS = 2


def timeless(snapshot: bytes) -> bytes:
    """The snapshot with the times of its producers set to 0 (FORMAT.md: producers, version 3)."""
    made, at = bytearray(snapshot), HEAD_BYTES
    for _ in range(PRODUCERS):
        at += 8 + struct.unpack_from("<Q", made, at)[0]
    end = at + 8 + struct.unpack_from("<Q", made, at)[0]
    at += 8
    assert struct.unpack_from("<I", made, at)[0] == 3, "another version of producers"
    made[at + 8 : at + 16] = bytes(8)
    at += 16
    while at < end:
        n_name, n = struct.unpack_from("<BH", made, at + 41)
        made[at + 32 : at + 40] = bytes(8)
        at += 56 + (n_name + 7) // 8 * 8 + (2 * n + 7) // 8 * 8 + 8 * n
    assert at == end, "a record of a producer that does not end where it should"
    return bytes(made)


def timeless_digest(state: State) -> str:
    """Stands for all of the state but those times, as State.digest does for all of it."""
    return hashlib.blake2b(timeless(state.snapshot()), digest_size=16).hexdigest()
