"""The row store: its blocks, every other entry, the LMDB file below them, and store.json beside it.

Entries are damaged twice: as they are, which the checksum must notice, and with the checksum made right, so
that what it vouches for is not believed either.
"""

from __future__ import annotations

import functools
import json
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from storage.row_records import pack, some_rows, unpack

from featurestore.core.hashing import crc32c_of
from featurestore.errors import CorruptRecordError, IncompatibleVersionError
from featurestore.storage.blocks import count_records
from featurestore.storage.directory import STORE_JSON, Identity, read_identity
from featurestore.storage.rows import RowStore
from fuzz import trial
from fuzz.mutations import damaged_json
from fuzz.trial import Trial

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
STORE_ID = b"0123456789abcdef"
REFUSED = (CorruptRecordError, IncompatibleVersionError)
KEY_BYTES = 19  # of a block
MAP_BYTES = 1 << 20


def with_checksum(key: bytes, value: bytes) -> bytes:
    return struct.pack("<I", crc32c_of(key + value[4:])) + value[4:]


# ---- blocks


def block(rows: dict[bytes, bytes], shard: bytes = b"\2\0\1") -> bytes:
    """Its key and its value."""
    key = shard + min(rows)
    return key + with_checksum(key, bytes(4) + struct.pack("<I", len(rows)) + pack(rows))


BLOCKS = [
    block({b"k" * 16: b""}),
    block(some_rows(3, seed=1, payload_bytes=7)),
    block(some_rows(30, seed=2)),
    block({bytes(15) + bytes([i]): b"x" * i for i in range(40)}),
]


def check_block(data: bytes) -> None:
    key, value = data[:KEY_BYTES], data[KEY_BYTES:]
    n_rows = count_records(key, value)
    rows = unpack(value[8:])
    assert (len(rows), min(rows)) == (n_rows, key[3:])
    assert block(rows, key[:3])[KEY_BYTES:] == value


def repaired_block(data: bytes) -> bytes:
    return (
        data
        if len(data) < KEY_BYTES + 4
        else data[:KEY_BYTES] + with_checksum(data[:KEY_BYTES], data[KEY_BYTES:])
    )


# ---- entries of every kind, in a file


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Where no disk has to be waited for, if there is such a place."""
    shared = Path("/dev/shm")  # noqa: S108  every use is below a directory of its own
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as path:
        yield Path(path)


def made(path: Path) -> Path:
    with RowStore.open(path, store_id=STORE_ID, create=True, map_size_bytes=MAP_BYTES) as store:
        store.begin()
        for shard in range(2):
            store.write_shard(shard, pack(some_rows(60, seed=shard)), 7)
        store.put_meta("head", b"now")
        store.put_meta("ids", bytes(range(256)) * 40)
        store.commit()
    return path


def read_everything(path: Path) -> None:
    """What can be read is sound, or `verify` says that it is not."""
    with RowStore.open(path, store_id=STORE_ID, create=False, map_size_bytes=MAP_BYTES) as store:
        problems = store.verify()
        for shard in store.shards():
            records, _ = store.read_shard(shard)
            rows = unpack(records)
            assert list(rows) == sorted(rows)
        for name in ("head", "ids"):
            store.get_meta(name)
        store.stat()
        if problems:
            raise CorruptRecordError("\n".join(problems))


def entries(path: Path) -> list[tuple[bytes, bytes]]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return [(bytes(key), bytes(value)) for key, value in txn.cursor()]


def one_entry_each(all_entries: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Identity, head, block, meta and chunk."""
    return list({key[0]: (key, value) for key, value in all_entries}.values())


def check_entry(path: Path, taken: list[bytes], data: bytes) -> None:
    """`data`: which entry, its key's length, its key, its value."""
    if len(data) < 2:
        raise CorruptRecordError("cut away")
    key, value = data[2 : 2 + data[1]], data[2 + data[1] :]
    if not key:
        raise CorruptRecordError("LMDB has no such key")
    with lmdb.open(str(path), map_size=MAP_BYTES, sync=False) as env, env.begin(write=True) as txn:
        old = txn.get(taken[data[0] % len(taken)])
        txn.delete(taken[data[0] % len(taken)])
        txn.put(key, value)
    try:
        read_everything(path)
    finally:
        with lmdb.open(str(path), map_size=MAP_BYTES, sync=False) as env, env.begin(write=True) as txn:
            txn.delete(key)
            if old is not None:
                txn.put(taken[data[0] % len(taken)], old)


def repaired_entry(data: bytes) -> bytes:
    if len(data) < 2 or len(data) < 6 + data[1]:
        return data
    key, value = data[2 : 2 + data[1]], data[2 + data[1] :]
    return data[:2] + key + with_checksum(key, value)


# ---- the file


def check_file(path: Path, data: bytes) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    (path / "data.mdb").write_bytes(data)
    read_everything(path)


# ---- store.json

IDENTITY = Identity("featurestore data directory", 1, "00" * 16, "wall", 64, "ab" * 8)


def check_identity(path: Path, data: bytes) -> None:
    (path / STORE_JSON).write_bytes(data)
    identity = read_identity(path)
    (path / STORE_JSON).write_bytes(identity.to_json())
    assert read_identity(path) == identity


def repaired_identity(data: bytes) -> bytes:
    try:
        raw = json.loads(data)
        raw.pop("crc32")
        fields = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
        return json.dumps({**raw, "crc32": f"{zlib.crc32(fields):08x}"}).encode()
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return data


def trials(directory: Path) -> list[Trial]:
    store = made(directory / "rows")
    some = one_entry_each(entries(store))
    samples = [bytes([i, len(key)]) + key + value for i, (key, value) in enumerate(some)]
    as_entry: Callable[[bytes], None] = functools.partial(check_entry, store, [key for key, _ in some])
    small = [(GOLDEN / "rows_v1" / "data.mdb").read_bytes(), (store / "data.mdb").read_bytes()]
    as_file: Callable[[bytes], None] = functools.partial(check_file, directory / "file")
    as_identity: Callable[[bytes], None] = functools.partial(check_identity, directory)
    json_text = [IDENTITY.to_json()]
    return [
        Trial("entry", samples, as_entry, REFUSED, rounds=400, budget_bytes=64 << 20),
        Trial("entry with its checksum", samples, as_entry, REFUSED, repaired_entry, 800, 64 << 20),
        Trial("file", small[1:], as_file, REFUSED, rounds=800, budget_bytes=64 << 20),
        Trial("store.json", json_text, as_identity, REFUSED),
        Trial(
            "store.json with its checksum",
            json_text,
            as_identity,
            REFUSED,
            repaired_identity,
            damage=damaged_json,
        ),
    ]


NAMES = ["entry", "entry with its checksum", "file", "store.json", "store.json with its checksum"]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_store_is_refused_or_sound(directory: Path, name: str) -> None:
    (directory / name.replace(" ", "-")).mkdir()
    (one,) = [one for one in trials(directory / name.replace(" ", "-")) if one.name == name]
    trial.run(one)


@pytest.mark.parametrize("repair", [bytes, repaired_block], ids=["as it is", "with its checksum"])
def test_a_damaged_block_is_refused_or_is_a_block(repair: Callable[[bytes], bytes]) -> None:
    if repair is bytes:  # the checksum notices everything
        for i in range(len(BLOCKS[1])):
            with pytest.raises(CorruptRecordError):
                check_block(BLOCKS[1][:i] + bytes([BLOCKS[1][i] ^ 0x10]) + BLOCKS[1][i + 1 :])
    else:
        trial.run(Trial("block", BLOCKS, check_block, REFUSED, repair, 20_000))
