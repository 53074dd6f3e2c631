"""Producers as a checkpoint has them since version 4, read from the file by FORMAT.md alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import lmdb

SHARD = b"\xff\xfe"


@dataclass(frozen=True)
class Stored:
    epoch: int
    highest: int
    last_ms: int
    class_: int
    lowest: int
    seen: dict[int, int]
    """By sequence: the fingerprint of its batch."""


def stored_producers(store: Path) -> tuple[tuple[int, int, int], dict[bytes, Stored]]:
    """(version, 0, latest now) of them all, and each by its name."""
    found = {}
    with lmdb.open(str(store / "rows"), readonly=True, lock=False) as env, env.begin() as txn:
        meta = txn.get(b"\4producers\0" + bytes(4))[4:]
        for key, block in txn.cursor():
            if key[:3] == b"\2" + SHARD:
                (n_records,) = struct.unpack_from("<I", block, 4)
                at = 8
                for _ in range(n_records):
                    (n_bytes,) = struct.unpack_from("<I", block, at + 16)
                    name, one = _stored(block[at : at + 16], block[at + 20 : at + 20 + n_bytes])
                    assert name not in found
                    found[name] = one
                    at += 20 + n_bytes
                assert at == len(block)
    assert len(meta) == 16
    return struct.unpack("<IIq", meta), found


def _stored(key: bytes, record: bytes) -> tuple[bytes, Stored]:
    fp0, fp1, epoch, highest, last_ms, class_, n_name, n, zeros, lowest = struct.unpack_from(
        "<QQQQqBBHIQ", record
    )
    assert struct.pack(">QQ", fp0, fp1) == key and zeros == 0
    at = 56 + n_name
    name = record[56:at]
    at = -(-at // 8) * 8
    below = struct.unpack_from(f"<{n}H", record, at)
    at += -(-2 * n // 8) * 8
    content = struct.unpack_from(f"<{n}Q", record, at)
    assert len(record) == at + 8 * n
    seen = {highest - each: of for each, of in zip(below, content, strict=True)}
    return name, Stored(epoch, highest, last_ms, class_, lowest, seen)
