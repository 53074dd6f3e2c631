"""Records as the row store takes them, made and taken apart without the code under test."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

FREED = 0xFFFFFFFF


def pack(rows: Mapping[bytes, bytes | None]) -> bytes:
    """Sorted records; None deletes the row."""
    return b"".join(
        key + struct.pack("<I", FREED if payload is None else len(payload)) + (payload or b"")
        for key, payload in sorted(rows.items())
    )


def unpack(records: bytes) -> dict[bytes, bytes]:
    rows, at = {}, 0
    while at < len(records):
        (length,) = struct.unpack_from("<I", records, at + 16)
        rows[records[at : at + 16]] = records[at + 20 : at + 20 + length]
        at += 20 + length
    assert at == len(records)
    return rows


def some_rows(n_rows: int, seed: int, payload_bytes: int = 100) -> dict[bytes, bytes]:
    rng = random.Random(seed)
    return {rng.randbytes(16): rng.randbytes(payload_bytes) for _ in range(n_rows)}


def crc32c(data: bytes) -> int:
    """CRC32C by its definition, a bit at a time (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def entry(key: bytes, body: bytes) -> bytes:
    """A value with its checksum, as FORMAT.md says."""
    return struct.pack("<I", crc32c(key + body)) + body
