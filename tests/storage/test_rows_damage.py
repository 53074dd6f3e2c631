"""Files that are not what they should be: refused or reported by name, and none brings the process down."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import CorruptRecordError, FeatureStoreError, IncompatibleVersionError, StorageError
from featurestore.storage.blocks import count_records
from featurestore.storage.rows import RowStore
from storage.row_records import entry, pack, some_rows, unpack

STORE_ID = b"0123456789abcdef"
ROWS = {shard: some_rows(400, seed=shard) for shard in range(3)}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A closed store with three shards and two metas."""
    path = tmp_path / "rows"
    with RowStore.open(path, store_id=STORE_ID, create=True) as store:
        store.begin()
        for shard, rows in ROWS.items():
            store.write_shard(shard, pack(rows), 10 + shard)
        store.put_meta("clock", b"now")
        store.put_meta("sequencer", bytes(range(256)) * 100)
        store.commit()
    return path


def reopen(directory: Path, store_id: bytes = STORE_ID) -> RowStore:
    return RowStore.open(directory, store_id=store_id, create=False)


def edit(directory: Path, change: Callable[[lmdb.Transaction], object]) -> None:
    """Changes entries behind the store's back, with py-lmdb."""
    with lmdb.open(str(directory)) as env, env.begin(write=True) as txn:
        change(txn)


def block_keys(directory: Path, shard: int) -> list[bytes]:
    prefix = b"\2" + shard.to_bytes(2, "big")
    with lmdb.open(str(directory), readonly=True) as env, env.begin() as txn:
        return [key for key, _ in txn.cursor() if key.startswith(prefix)]


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---- the file as a whole


def test_another_stores_rows_are_refused(directory: Path) -> None:
    with pytest.raises(IncompatibleVersionError, match=f"belongs to store {STORE_ID.hex()}"):
        reopen(directory, b"another store id")
    reopen(directory).close()


def test_a_newer_format_is_refused_before_its_checksum(directory: Path) -> None:
    edit(directory, lambda txn: txn.put(b"\0", b"....\2\0\0\0fsrows\r\n and what a later version adds"))
    with pytest.raises(IncompatibleVersionError, match="format version 2, this program knows 1"):
        reopen(directory)


def test_a_damaged_identity_is_refused(directory: Path) -> None:
    edit(directory, lambda txn: txn.put(b"\0", flip(txn.get(b"\0"), 8 * 20)))
    with pytest.raises(CorruptRecordError, match="identity: checksum"):
        reopen(directory)


def test_an_lmdb_file_of_another_program_is_refused(tmp_path: Path) -> None:
    edit(tmp_path, lambda txn: txn.put(b"\0", b"something of another program's"))
    with pytest.raises(IncompatibleVersionError, match="not a row store"):
        reopen(tmp_path)
    edit(tmp_path, lambda txn: txn.delete(b"\0"))
    with pytest.raises(IncompatibleVersionError, match="not a row store"):
        reopen(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"# a text file\n" * 1000, bytes(3 * PAGE_BYTES)])
def test_a_file_that_is_not_lmdbs_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(IncompatibleVersionError, match="not an LMDB data file"):
        reopen(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == content


def test_another_lmdb_data_version_is_refused(directory: Path) -> None:
    data = bytearray((directory / "data.mdb").read_bytes())
    for page in (0, PAGE_BYTES):
        struct.pack_into("<I", data, page + 20, 2)
    (directory / "data.mdb").write_bytes(data)
    with pytest.raises(IncompatibleVersionError, match="LMDB data version 2"):
        reopen(directory)


READ_ALL = f"""
import sys
from featurestore.errors import FeatureStoreError
from featurestore.storage.rows import RowStore
try:
    with RowStore.open(sys.argv[1], store_id={STORE_ID!r}, create=False) as store:
        problems = store.verify()
        for shard in store.shards():
            store.read_shard(shard)
        print("\\n".join(problems) or "sound")
except FeatureStoreError as error:
    print(type(error).__name__, error)
"""


def read_in_child(directory: Path) -> str:
    """What READ_ALL says of a store. In a process of its own: a SIGBUS would take this one along."""
    child = subprocess.run(
        [sys.executable, "-c", READ_ALL, directory], capture_output=True, text=True, check=False, timeout=60
    )
    assert child.returncode == 0, (child.returncode, child.stdout, child.stderr)
    return child.stdout


def test_a_truncated_file_is_refused_before_it_is_mapped(directory: Path, tmp_path: Path) -> None:
    whole = (directory / "data.mdb").stat().st_size
    for size in (
        whole - 1,
        whole - PAGE_BYTES,
        whole // 2,
        3 * PAGE_BYTES + 7,
        2 * PAGE_BYTES,
        PAGE_BYTES,
        100,
    ):
        copy = tmp_path / str(size)
        shutil.copytree(directory, copy)
        os.truncate(copy / "data.mdb", size)
        said = read_in_child(copy)
        assert re.match("CorruptRecordError .*truncated|IncompatibleVersionError .*not an LMDB", said), (
            size,
            said,
        )


def test_a_file_that_ends_before_pages_that_are_free_is_sound(directory: Path) -> None:
    """LMDB counts pages that a transaction took and gave back, and never writes them."""
    data = bytearray((directory / "data.mdb").read_bytes())
    for page in (0, PAGE_BYTES):
        (last_page,) = struct.unpack_from("<Q", data, page + 16 + 120)
        struct.pack_into("<Q", data, page + 16 + 120, last_page + 5)
    (directory / "data.mdb").write_bytes(data)
    assert read_in_child(directory) == "sound\n"


def test_flipped_bits_never_bring_the_process_down(directory: Path, tmp_path: Path) -> None:
    rng = random.Random(11)
    data = (directory / "data.mdb").read_bytes()
    script = f"""
import os, pathlib, shutil, sys
from featurestore.errors import FeatureStoreError
from featurestore.storage.rows import RowStore
directory, target = map(pathlib.Path, sys.argv[1:3])
data = (directory / "data.mdb").read_bytes()
for bit in map(int, sys.argv[3:]):
    print(bit, flush=True)
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    (target / "data.mdb").write_bytes(changed)
    try:
        with RowStore.open(target, store_id={STORE_ID!r}, create=False) as store:
            store.verify()
            for shard in store.shards():
                store.read_shard(shard)
            store.get_meta("sequencer")
    except FeatureStoreError:
        pass
"""
    bits = [str(rng.randrange(8 * len(data))) for _ in range(400)]
    child = subprocess.run(
        [sys.executable, "-c", script, directory, tmp_path / "flipped", *bits],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, (child.returncode, child.stdout.split()[-1:], child.stderr)


# ---- one entry


def test_a_flipped_bit_in_a_block_names_shard_and_key(directory: Path) -> None:
    key = block_keys(directory, 1)[3]
    edit(directory, lambda txn: txn.put(key, flip(txn.get(key), 8 * 1000)))
    with reopen(directory) as store:
        with pytest.raises(CorruptRecordError, match=f"shard 1, block {key[3:].hex()}: checksum .* expected"):
            store.read_shard(1)
        assert [f"block {key[3:].hex()}" in problem for problem in store.verify()] == [True]
        assert unpack(store.read_shard(0)[0]) == ROWS[0]  # the others can be saved


def test_a_damaged_block_is_not_merged_and_blessed_with_a_new_checksum(directory: Path) -> None:
    key = block_keys(directory, 1)[3]
    edit(directory, lambda txn: txn.put(key, flip(txn.get(key), 8 * 1000)))
    with reopen(directory) as store:
        store.begin()
        with pytest.raises(CorruptRecordError, match=f"block {key[3:].hex()}"):
            store.write_shard(1, pack({key[3:]: b"new"}), 20)
        with pytest.raises(RuntimeError, match="no transaction"):
            store.commit()
        assert store.shards()[1] == 11


def test_a_block_under_another_key_is_noticed(directory: Path) -> None:
    first, second = block_keys(directory, 1)[:2]
    other = b"\2\0\2" + first[3:]
    for target in (second, other):

        def move(txn: lmdb.Transaction, target: bytes = target) -> None:
            txn.put(target, txn.get(first))

        edit(directory, move)
        with (
            reopen(directory) as store,
            pytest.raises(CorruptRecordError, match=f"{target[3:].hex()}: checksum"),
        ):
            store.read_shard(target[2])


def test_a_block_of_an_older_state_is_noticed(directory: Path) -> None:
    """Its checksum is right: only what the shard's head adds up says otherwise."""
    key = block_keys(directory, 1)[3]
    with lmdb.open(str(directory), readonly=True) as env, env.begin() as txn:
        older = txn.get(key)
    row = next(row for row in sorted(ROWS[1]) if row >= key[3:])
    with reopen(directory) as store:
        store.begin()
        store.write_shard(1, pack({row: b"!" * 100}), 20)
        store.commit()
    edit(directory, lambda txn: txn.put(key, older))
    with reopen(directory) as store:
        with pytest.raises(CorruptRecordError, match="shard 1: its blocks hold 400 rows"):
            store.read_shard(1)
        assert len(store.verify()) == 1


def test_missing_and_surplus_entries_are_noticed(directory: Path) -> None:
    head, block = b"\1\0\1", block_keys(directory, 0)[0]
    chunk = b"\4sequencer\0\0\0\0\1"

    def change(txn: lmdb.Transaction) -> None:
        txn.delete(head)
        txn.delete(block)
        txn.delete(chunk)
        txn.put(b"\4nobody\0\0\0\0\0", b"surplus")
        txn.put(b"\7", b"surplus")
        txn.put(b"\2\0\2short", b"surplus")
        txn.put(b"\3Bad name", b"surplus")

    edit(directory, change)
    with reopen(directory) as store:
        problems = store.verify()
        with pytest.raises(CorruptRecordError, match="shard 0: its blocks hold"):
            store.read_shard(0)
        with pytest.raises(CorruptRecordError, match="shard 0: its blocks hold"):
            store.read_in_parts(0, lambda part: None)
        with pytest.raises(
            CorruptRecordError, match="meta b'sequencer', chunk 1: 4076 bytes, at least 25600"
        ):
            store.get_meta("sequencer")
        assert store.get_meta("clock") == b"now"
    for expected in (
        "shard 0: its blocks hold", "shard 1: has blocks but no sound head", "shard 2, block .* of 8 bytes",
        "sequencer', chunk 1", "nobody', chunk 0: belongs to nothing", "key 07: belongs to nothing",
        "'Bad name': not the name of a meta",
    ):  # fmt: skip
        assert any(re.search(expected, problem) for problem in problems), (expected, problems)
    assert len(problems) == 7


def test_an_absurd_size_is_not_allocated(directory: Path) -> None:
    head, meta = b"\1\0\1", b"\3clock"

    def change(txn: lmdb.Transaction) -> None:
        txn.put(head, entry(head, struct.pack("<IQQQQ", 0, 10, 400, 1 << 60, 0)))
        txn.put(meta, entry(meta, struct.pack("<IQ", 0, 1 << 60)))

    edit(directory, change)
    with reopen(directory) as store:
        with pytest.raises(CorruptRecordError, match="shard 1, head: announces"):
            store.read_shard(1)
        with pytest.raises(CorruptRecordError, match="meta 'clock': announces"):
            store.get_meta("clock")


# ---- the block decoder

RECORDS = st.dictionaries(st.binary(min_size=16, max_size=16), st.binary(max_size=50), min_size=1, max_size=8)


def stored(rows: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    key = b"\2\1\2" + min(rows)
    return key, entry(key, struct.pack("<I", len(rows)) + pack(rows))


@given(RECORDS)
def test_a_block_by_the_documented_format_is_accepted(rows: dict[bytes, bytes]) -> None:
    assert count_records(*stored(rows)) == len(rows)


@given(RECORDS, st.data())
def test_any_flipped_bit_in_a_block_is_noticed(rows: dict[bytes, bytes], data: st.DataObject) -> None:
    key, value = stored(rows)
    bit = data.draw(st.integers(0, 8 * (len(key) + len(value)) - 1))
    damaged = flip(key + value, bit)
    with pytest.raises(CorruptRecordError):
        count_records(damaged[: len(key)], damaged[len(key) :])


@given(st.binary(max_size=30), st.binary(max_size=200))
def test_bytes_that_are_no_block_are_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(CorruptRecordError):
        count_records(key, value)


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=120), st.integers(0, 0xFFFFFFFF))
def test_a_body_with_a_right_checksum_is_still_not_trusted(first: bytes, body: bytes, n_records: int) -> None:
    key = b"\2\0\0" + first
    for content in (body, first + body, first + struct.pack("<I", len(body)) + body):
        try:
            assert count_records(key, entry(key, struct.pack("<I", n_records) + content)) == n_records
        except CorruptRecordError:
            continue
        rows = unpack(content)
        assert (list(rows) == sorted(rows), len(rows), min(rows)) == (True, n_records, first)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (struct.pack("<I", 1) + pack({b"b" * 16: b"x"}), "not the one that the key names"),
        (struct.pack("<I", 2) + pack({b"a" * 16: b"x"}), "1 records, 2 expected"),
        (struct.pack("<I", 1) + pack({b"a" * 16: None}), "at offset 0 does not fit"),
        (struct.pack("<I", 2) + pack({b"a" * 16: b""}) * 2, "at offset 20 does not ascend"),
        (b"", "4 bytes, at least 28 expected"),
    ],
)
def test_each_fault_of_a_block_is_named(body: bytes, what: str) -> None:
    key = b"\2\0\0" + b"a" * 16
    with pytest.raises(CorruptRecordError, match=f"shard 0, block {'61' * 16}: .*{what}"):
        count_records(key, entry(key, body))


def test_the_errors_are_storage_errors() -> None:
    assert issubclass(CorruptRecordError, StorageError)
    assert issubclass(IncompatibleVersionError, FeatureStoreError)
