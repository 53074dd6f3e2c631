"""storage/FORMAT.md "Journal" written down a second time, slowly: what tests compare the compiled code with.

Imports nothing from featurestore. Writes segments, frames and bodies, and reads a directory of segments,
taking every rule of the format from the document and none from the code.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SEGMENT_HEADER = struct.Struct("<4sHH16sQQQQQI")  # then the checksum, u32
FRAME_HEADER = struct.Struct("<BBHIQIIqQQ")  # after the magic and the checksum, u32 each
BATCH, SCHEMA, FORGET, SHED, CLOCK = 1, 2, 3, 5, 6

Column = Sequence[float | bytes | None]  # all float, or all text with None where it is absent


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C bit by bit: reflected polynomial 0x82F63B78, initial and final value all ones."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def segment_header(
    store_id: bytes, salt: int, first: int, *, previous: int, base: int, size: int, version: int = 1
) -> bytes:
    head = SEGMENT_HEADER.pack(b"FSJS", version, 72, store_id, salt, first, previous, base, size, 0)
    return head + struct.pack("<I", crc32c(head))


def frame(
    salt: int,
    kind: int,
    body: bytes,
    *,
    first: int,
    offset: int,
    durable: int,
    n: int = 1,
    schema: int = 0,
    now_ms: int = 0,
    version: int = 1,
) -> bytes:
    head = FRAME_HEADER.pack(version, kind, 56, len(body), first, n, schema, now_ms, durable, offset)
    checksum = crc32c(padded(body) + struct.pack("<Q", salt) + head)
    return b"FSJF" + struct.pack("<I", checksum) + head + padded(body)


def batch_body(
    outcomes: list[int],
    times: list[int],
    columns: list[Column],
    *,
    producer: bytes = b"",
    epoch: int = 0,
    sequence: int = 0,
    fingerprint: int = 0,
    event_id: int = 0,
    shed: list[int] | None = None,
) -> bytes:
    n = len(times)
    out = struct.pack(
        "<QQQIHHB7x", epoch, sequence, fingerprint, n, event_id, len(columns), len(producer)
    ) + padded(producer)
    out += padded(bytes(outcomes))
    out += b"" if shed is None else struct.pack(f"<{n}Q", *shed)
    out += struct.pack(f"<{n}q", *times)
    for column in columns:
        if all(isinstance(value, float) for value in column):
            out += struct.pack(f"<BBHI{n}d", 0, 0, 0, 0, *column)
            continue
        texts = [value if isinstance(value, bytes) else b"" for value in column]
        flags = bytes(value is not None for value in column)
        has_flags = 0 in flags
        offsets = [sum(map(len, texts[:i])) for i in range(n + 1)]
        out += struct.pack("<BBHI", 1, has_flags, 0, offsets[-1])
        out += padded(struct.pack(f"<{n + 1}I", *offsets)) + (padded(flags) if has_flags else b"")
        out += padded(b"".join(texts))
    return out


@dataclass(frozen=True)
class Frame:
    kind: int
    first: int
    n: int
    now_ms: int
    schema: int
    offset: int
    durable: int
    body: bytes
    file: str
    at: int
    end: int


def frames(directory: Path) -> list[Frame]:
    """Every frame up to the first bad one of each segment, in order."""
    found = []
    for path in sorted(directory.glob("journal-*.seg")):
        data = path.read_bytes()
        magic, version, size, _, salt, _, _, base, n_bytes, zero = SEGMENT_HEADER.unpack(data[:68])
        assert (magic, version, size, zero, n_bytes) == (b"FSJS", 1, 72, 0, len(data))
        assert struct.unpack("<I", data[68:72])[0] == crc32c(data[:68])
        at = 72
        while data[at : at + 4] == b"FSJF":
            (checksum,) = struct.unpack("<I", data[at + 4 : at + 8])
            head = data[at + 8 : at + 56]
            _, kind, _, n_body, first, n, schema, now_ms, durable, offset = FRAME_HEADER.unpack(head)
            end = at + 56 + n_body + -n_body % 8
            if checksum != crc32c(data[at + 56 : end] + struct.pack("<Q", salt) + head):
                break
            assert offset == base + at
            body = data[at + 56 : at + 56 + n_body]
            found.append(Frame(kind, first, n, now_ms, schema, offset, durable, body, path.name, at, end))
            at = end
    return found
