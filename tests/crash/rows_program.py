"""A program that writes checkpoints of rows and says which are durable; see test_rows_power.py.

    python -m crash.rows_program DIRECTORY N_CHECKPOINTS [copy] [compact]

A checkpoint is numbered on from what the store holds. It changes, adds and frees rows of some shards and
puts one meta, all of it following from its number, so that what a store must hold is computed from one
number. `created` and `ack NUMBER` are said on standard output and as markers. After a failure the store is
reopened, must hold what the last acknowledged checkpoint left, and the checkpoint is tried again, `given
up` being said. With `copy`, every third checkpoint is copied to DIRECTORY/copy-NUMBER, and `copied NUMBER`
is said; with `compact` the file is rewritten after every fourth, and `compacted NUMBER` is said.
"""

from __future__ import annotations

import functools
import os
import random
import struct
import sys
import time
from pathlib import Path

from featurestore.errors import LimitError, StorageError
from featurestore.storage.rows import RowStore

from . import shim

STORE_ID = bytes(range(16))
N_SHARDS = 4
FREED = 0xFFFFFFFF
MAX_TRIES = 20

Rows = dict[bytes, bytes]


@functools.cache
def changes_of(number: int) -> dict[int, dict[bytes, bytes | None]]:
    """Per shard, the rows that checkpoint `number` writes; None frees one."""
    changes = dict[int, dict[bytes, bytes | None]]()
    for shard in range(N_SHARDS):
        coin = random.Random(f"{shard} {number}")
        if coin.random() < 0.7:
            keys = {coin.randrange(400) * 0x9E3779B97F4A7C15 % 2**64 for _ in range(30)}
            changes[shard] = {
                key.to_bytes(8, "little") * 2: None
                if coin.random() < 0.15
                else coin.randbytes(coin.randrange(400))
                for key in keys
            }
    return changes


def meta_of(number: int) -> bytes:
    return struct.pack("<Q", number) + random.Random(f"meta {number}").randbytes(number * 977 % 9000)


@functools.cache
def held_after(number: int) -> dict[int, Rows]:
    """What every shard must hold after checkpoint `number`; -1 is before the first."""
    if number < 0:
        return {shard: Rows() for shard in range(N_SHARDS)}
    held = {shard: dict(rows) for shard, rows in held_after(number - 1).items()}
    for shard, changes in changes_of(number).items():
        for key, payload in changes.items():
            if payload is None:
                held[shard].pop(key, None)
            else:
                held[shard][key] = payload
    return held


def pack(rows: dict[bytes, bytes | None]) -> bytes:
    return b"".join(
        key + struct.pack("<I", FREED if payload is None else len(payload)) + (payload or b"")
        for key, payload in sorted(rows.items())
    )


def unpack(records: bytes) -> Rows:
    rows, at = Rows(), 0
    while at < len(records):
        (length,) = struct.unpack_from("<I", records, at + 16)
        rows[records[at : at + 16]] = records[at + 20 : at + 20 + length]
        at += 20 + length
    return rows


def last_of(store: RowStore) -> int:
    """The number of the checkpoint that the store holds, by its meta; -1 if there is none."""
    meta = store.get_meta("number")
    if meta is None:
        return -1
    number: int = struct.unpack_from("<Q", meta)[0]
    assert meta == meta_of(number)
    return number


def write(store: RowStore, number: int) -> None:
    parts = {shard: pack(changes) for shard, changes in changes_of(number).items()}
    meta = meta_of(number)
    store.begin(sum(map(len, parts.values())) + len(meta))
    try:
        for shard, records in parts.items():
            store.write_shard(shard, records, number + 1)
        store.put_meta("number", meta)
    except BaseException:
        store.abort()
        raise
    store.commit()


def open_store(directory: Path, *, create: bool) -> RowStore:
    # A small map, so that it grows under way.
    return RowStore.open(directory, store_id=STORE_ID, create=create, map_size_bytes=1 << 20)


def say(text: str) -> None:
    shim.mark_here(text)
    os.write(1, f"{text}\n".encode())


def checkpoint(store: RowStore, number: int) -> None:
    for _ in range(MAX_TRIES):
        try:
            write(store, number)
            return
        except LimitError:
            say("full")
        except StorageError as error:
            say(f"given up {error}")
            while True:
                time.sleep(0.01)
                try:
                    store.reopen()
                    break
                except StorageError as again:
                    say(f"cannot reopen {again}")
            assert last_of(store) == number - 1, (
                f"reopened with {last_of(store)}, acknowledged was {number - 1}"
            )
    raise AssertionError(f"checkpoint {number} failed {MAX_TRIES} times")


def compact(store: RowStore) -> None:
    try:
        store.compact()
    except StorageError as error:
        say(f"given up {error}")
        if store.given_up:  # else it failed before the files changed places
            store.reopen()
        store.compact()


def main() -> None:
    directory = Path(sys.argv[1])
    with open_store(directory, create=not (directory / "data.mdb").exists()) as store:
        say("created")
        first = last_of(store) + 1
        say("ready")
        for number in range(first, first + int(sys.argv[2])):
            checkpoint(store, number)
            say(f"ack {number}")
            if "copy" in sys.argv and number % 3 == 2:
                store.copy_to(directory / f"copy-{number}")
                say(f"copied {number}")
            if "compact" in sys.argv and number % 4 == 3:
                compact(store)
                say(f"compacted {number}")


if __name__ == "__main__":
    main()
