"""Rows in LMDB: a key per row, or packed blocks, and of which size?

The same rows are written whole, then a random tenth of them again (the same lengths), then loaded. Every
layout starts from an empty store in the same file system and commits once per write, synced. `key per row`
goes through py-lmdb's putmulti in key order, alone in its process, so its times hold some Python; its bytes
do not. The others are RowStore with other block sizes; `one row` makes each row a block of its own, which is
a key per row in the same C code.

    python benches/rows_layout.py --rows 5000000

Written: bytes this process handed to write(), so what LMDB wrote, by any call; over the bytes of the changed
rows. The numbers that decided are in the head of featurestore/storage/blocks.pyx.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from featurestore.storage.rows import RowStore

STORE_ID = bytes(16)
RECORD = 20


def make_records(n_rows: int, payload_bytes: int, seed: int) -> NDArray[np.uint8]:
    """(n_rows, 20 + payload_bytes): records sorted by fingerprint, with lengths."""
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (n_rows, RECORD + payload_bytes), dtype=np.uint8)
    keys = np.ascontiguousarray(records[:, :16]).view("S16").ravel()
    records = records[np.argsort(keys, kind="stable")]
    records[:, 16:20] = np.frombuffer(struct.pack("<I", payload_bytes), np.uint8)
    return np.ascontiguousarray(records)


def written_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


def measured(work: Callable[[], int]) -> tuple[float, int, int]:
    """Seconds, bytes written, and what `work` returned."""
    before, start = written_bytes(), time.perf_counter()
    result = work()
    return time.perf_counter() - start, written_bytes() - before, result


def blocks(
    directory: Path, parts: list[NDArray[np.uint8]], tenth: list[NDArray[np.uint8]], block_bytes: int
) -> Row:
    store = RowStore.open(
        directory, store_id=STORE_ID, create=True, block_bytes=block_bytes, map_size_bytes=1 << 36
    )

    def write(shards: list[NDArray[np.uint8]], position: int) -> int:
        store.begin()
        for shard, records in enumerate(shards):
            store.write_shard(shard, records.reshape(-1), position)
        store.commit()
        return 0

    def load() -> int:
        checksum = 0
        for shard in range(len(parts)):
            checksum ^= zlib.crc32(store.read_shard(shard)[0][: 1 << 12])
        return checksum

    full = measured(lambda: write(parts, 1))
    size = (directory / "data.mdb").stat().st_size
    update = measured(lambda: write(tenth, 2))
    loaded = measured(load)
    grown = (directory / "data.mdb").stat().st_size
    store.close()
    return full, update, loaded, size, grown


def key_per_row(directory: Path, parts: list[NDArray[np.uint8]], tenth: list[NDArray[np.uint8]]) -> Row:
    env = lmdb.open(str(directory), map_size=1 << 36)

    def items(shards: list[NDArray[np.uint8]]) -> list[tuple[bytes, bytes]]:
        return [
            (b"\2" + shard.to_bytes(2, "big") + row[:16].tobytes(), row[16:].tobytes())
            for shard, records in enumerate(shards)
            for row in records
        ]

    def write(pairs: list[tuple[bytes, bytes]], append: bool) -> int:
        with env.begin(write=True) as txn:
            txn.cursor().putmulti(pairs, append=append)
        return 0

    def load() -> int:
        checksum, size, shard = 0, 0, -1
        with env.begin() as txn:
            for key, value in txn.cursor():
                if key[2] != shard:
                    shard, size, first = key[2], 0, b""
                if size < 1 << 12:
                    first += key[3:] + value
                    size = len(first)
                    if size >= 1 << 12:
                        checksum ^= zlib.crc32(first[: 1 << 12])
        return checksum

    first = items(parts)
    full = measured(lambda: write(first, True))
    size = (directory / "data.mdb").stat().st_size
    del first[:]
    second = items(tenth)
    update = measured(lambda: write(second, False))
    loaded = measured(load)
    grown = (directory / "data.mdb").stat().st_size
    env.close()
    return full, update, loaded, size, grown


Measure = tuple[float, int, int]
Row = tuple[Measure, Measure, Measure, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--payload-bytes", type=int, default=100)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument(
        "--changed", type=float, default=0.1, help="share of rows changed in the second write"
    )
    parser.add_argument(
        "--directory", type=Path, help="file system to measure; a temporary directory by default"
    )
    parser.add_argument("--only", help="only the layouts whose name contains this")
    arguments = parser.parse_args()

    per_shard = arguments.rows // arguments.shards
    rng = np.random.default_rng(7)
    parts = [make_records(per_shard, arguments.payload_bytes, seed) for seed in range(arguments.shards)]
    tenth = []
    for records in parts:
        chosen = records[rng.random(per_shard) < arguments.changed].copy()
        chosen[:, RECORD:] = rng.integers(0, 256, chosen[:, RECORD:].shape, dtype=np.uint8)
        tenth.append(chosen)
    full_bytes, tenth_bytes = sum(map(len, map(np.ravel, parts))), sum(map(len, map(np.ravel, tenth)))

    layouts: dict[str, Callable[[Path], Row]] = {"key per row": lambda path: key_per_row(path, parts, tenth)}
    for name, block_bytes in (
        ("one row", 64), ("2 KiB", 2008), ("4 KiB", 4080), ("8 KiB", 8176), ("16 KiB", 16368)
    ):  # fmt: skip
        layouts[name] = lambda path, size=block_bytes: blocks(path, parts, tenth, size)  # type: ignore[misc]

    print(f"{arguments.rows} rows of {arguments.payload_bytes} bytes, {arguments.shards} shards")
    print("layout         full s  written x  file x   update s  written x  file x   load s  checksum")
    for name, run in layouts.items():
        if arguments.only and arguments.only not in name:
            continue
        directory = Path(tempfile.mkdtemp(prefix="rows_layout_", dir=arguments.directory))
        try:
            full, update, loaded, size, grown = run(directory)
        finally:
            shutil.rmtree(directory)
        print(
            f"{name:12} {full[0]:8.2f} {full[1] / full_bytes:10.2f} {size / full_bytes:7.2f} "
            f"{update[0]:10.2f} {update[1] / tenth_bytes:10.2f} {grown / full_bytes:7.2f} "
            f"{loaded[0]:8.2f}  {loaded[2]:08x}"
        )


if __name__ == "__main__":
    main()
