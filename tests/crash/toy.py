"""Stores small enough to be right or wrong on purpose. Run as a program; test_harness.py says what must
become of each.

    python -m crash.toy append DIRECTORY MISTAKE COUNT    appends records to a file, one acknowledgement each
    python -m crash.toy replace DIRECTORY MISTAKE COUNT   replaces a file by writing another and renaming it
    python -m crash.toy lmdb DIRECTORY MISTAKE COUNT      puts into LMDB

A record is u32 length, u32 CRC32 of number and text, u64 number, text; little-endian. The append store
recovers at its first bad record: it cuts there and syncs. Acknowledgements are `ack NUMBER` lines on
standard output, and markers `ack NUMBER` in the trace.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

from . import shim

HEAD = struct.Struct("<IIQ")


def text_of(number: int) -> bytes:
    """What record `number` must hold: long enough to cross blocks, and different in each."""
    return f"record {number} ".encode() * (20 + number * 37 % 90)


def read_records(path: Path) -> tuple[list[int], int]:
    """The numbers of the good records from the start, and where the first bad one begins."""
    data = path.read_bytes() if path.exists() else b""
    numbers, offset = [], 0
    while offset + HEAD.size <= len(data):
        length, checksum, number = HEAD.unpack_from(data, offset)
        text = data[offset + HEAD.size : offset + HEAD.size + length]
        if not length or len(text) != length or zlib.crc32(number.to_bytes(8, "little") + text) != checksum:
            break
        assert text == text_of(number), f"record {number} at {offset} is another's"
        numbers.append(number)
        offset += HEAD.size + length
    return numbers, offset


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def acknowledge(number: int) -> None:
    shim.mark_here(f"ack {number}")
    os.write(1, f"ack {number}\n".encode())


def append_store(directory: Path, mistake: str, count: int) -> None:
    path = directory / "records"
    numbers, end = read_records(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, end)
    os.fdatasync(fd)
    if mistake != "directory-not-synced":
        sync_directory(directory)
    os.write(1, b"ready\n")
    for number in range(len(numbers), len(numbers) + count):
        text = text_of(number)
        checksum = zlib.crc32(number.to_bytes(8, "little") + text)
        record = HEAD.pack(len(text), checksum, number) + text
        if mistake == "sync-before-write":
            os.fdatasync(fd)
        if mistake == "acknowledged-before-write":
            acknowledge(number)
        done = 0
        while done < len(record):
            done += os.pwrite(fd, record[done:], end + done)
        if mistake == "retries-sync":
            try:
                os.fdatasync(fd)
            except OSError:
                os.fdatasync(fd)
        elif mistake not in ("never-synced", "sync-before-write"):
            os.fdatasync(fd)
        if mistake != "acknowledged-before-write":
            acknowledge(number)
        end += len(record)


def replace_store(directory: Path, mistake: str, count: int) -> None:
    for number in range(count):
        fresh = directory / "value.new"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, text_of(number))
        if mistake != "data-not-synced":
            os.fsync(fd)
        os.close(fd)
        fresh.rename(directory / "value")
        if mistake != "directory-not-synced":
            sync_directory(directory)
        acknowledge(number)


def lmdb_store(directory: Path, mistake: str, count: int) -> None:
    import lmdb

    with lmdb.open(str(directory / "rows"), map_size=1 << 24, sync=mistake != "never-synced") as env:
        for number in range(count):
            with env.begin(write=True) as txn:
                for i in range(20):
                    key = (number * 20 + i) * 2654435761 % 2**32
                    txn.put(key.to_bytes(8, "big"), text_of(number))
            acknowledge(number)


def main() -> None:
    store, directory, mistake, count = sys.argv[1:]
    {"append": append_store, "replace": replace_store, "lmdb": lmdb_store}[store](
        Path(directory), mistake, int(count)
    )


if __name__ == "__main__":
    main()
