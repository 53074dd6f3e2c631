"""Format version 1: bytes written once, read for ever. The second reader below knows only FORMAT.md."""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

import lmdb

from featurestore.storage.rows import RowStore
from storage.row_records import crc32c, entry, pack, unpack

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "rows_v1"
STORE_ID = bytes(range(16))
SHARDS: dict[int, tuple[dict[bytes, bytes], int]] = {
    0: ({b"%016d" % n: b"row %d " % n * (n % 9) for n in range(200)}, 1234),
    258: (
        {bytes(16): b"", b"\xff" * 16: b"last", b"one row in more than a block".ljust(16)[:16]: b"r" * 9000},
        1,
    ),
    65535: ({}, (1 << 64) - 1),
}
METAS = {"clock": b"\0\1\2", "empty": b"", "sequencer": bytes(range(256)) * 20}


def write_golden(directory: Path) -> None:
    """How the golden file was made. No test runs it: the bytes are kept, not the program."""
    with RowStore.open(directory / "made", store_id=STORE_ID, create=True, map_size_bytes=1 << 20) as store:
        store.begin()
        for shard, (rows, position) in SHARDS.items():
            store.write_shard(shard, pack(rows), position)
        for name, data in METAS.items():
            store.put_meta(name, data)
        store.commit()
        store.copy_to(directory / "copy")
    shutil.copy(directory / "copy" / "data.mdb", GOLDEN / "data.mdb")


def test_the_golden_file_is_read(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "data.mdb", tmp_path)
    with RowStore.open(tmp_path, store_id=STORE_ID, create=False) as store:
        assert store.verify() == []
        assert store.shards() == {shard: position for shard, (_, position) in SHARDS.items()}
        for shard, (rows, position) in SHARDS.items():
            assert store.read_shard(shard) == (pack(rows), position)
        assert store.metas() == sorted(METAS)
        for name, data in METAS.items():
            assert store.get_meta(name) == data


def test_the_golden_file_is_as_documented(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "data.mdb", tmp_path)
    with lmdb.open(str(tmp_path)) as env, env.begin() as txn:
        entries = dict(txn.cursor())
    heads, blocks, metas, chunks = {}, dict[int, list[bytes]](), {}, dict[bytes, list[bytes]]()
    for key, value in entries.items():
        assert value == entry(key, value[4:])
        kind, rest, body = key[0], key[1:], value[4:]
        if kind == 0:
            assert (rest, body) == (b"", struct.pack("<I8s16sQ", 1, b"fsrows\r\n", STORE_ID, 2))
        elif kind == 1:
            heads[int.from_bytes(rest, "big")] = struct.unpack("<IQQQQ", body)
        elif kind == 2:
            assert rest[2:] == body[4:20]
            assert struct.unpack_from("<I", body)[0] == len(unpack(body[4:]))
            assert len(value) <= 4080 or len(unpack(body[4:])) == 1
            blocks.setdefault(int.from_bytes(rest[:2], "big"), []).append(value)
        elif kind == 3:
            metas[rest] = struct.unpack("<IQ", body)
        else:
            name, _, index = rest.partition(b"\0")
            assert (kind, index) == (4, len(chunks.setdefault(name, [])).to_bytes(4, "big"))
            chunks[name].append(body)
    for shard, (rows, position) in SHARDS.items():
        stored = blocks.get(shard, [])
        records = b"".join(value[8:] for value in stored)
        crc_sum = sum(struct.unpack_from("<I", value)[0] for value in stored)
        assert records == pack(rows)
        assert heads[shard] == (0, position, len(rows), len(records), crc_sum)
    for name, data in METAS.items():
        assert b"".join(chunks.get(name.encode(), [])) == data
        assert metas[name.encode()] == (crc32c(data), len(data))
    assert (len(heads), len(metas)) == (len(SHARDS), len(METAS))


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
