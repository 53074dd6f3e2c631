"""The row store, used rightly and wrongly: what is written is read back, and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from volumes import fill, volume

from featurestore.errors import ConfigError, LimitError, StorageError, StoreLockedError
from featurestore.storage.rows import MapGrownError, RowStore
from storage.row_records import pack, some_rows, unpack

STORE_ID = b"0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RowStore]:
    with RowStore.open(tmp_path / "rows", store_id=STORE_ID, create=True) as opened:
        yield opened


def write(store: RowStore, shard: int, rows: dict[bytes, bytes | None], position: int) -> None:
    store.begin()
    store.write_shard(shard, pack(rows), position)
    store.commit()


def test_a_new_store_is_empty(store: RowStore) -> None:
    assert store.shards() == {}
    assert store.metas() == []
    assert store.read_shard(0) == (b"", 0)
    assert store.get_meta("clock") is None
    assert store.verify() == []


def test_what_a_power_cut_left_half_made_is_gone_once_it_is_open(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    with RowStore.open(rows, store_id=STORE_ID, create=True) as store:
        write(store, 0, {b"a" * 16: b"x"}, 1)
    (rows / "compacting").mkdir()
    (rows / "compacting" / "data.mdb").write_bytes(b"freed")
    (rows / "probe").write_bytes(b"")
    with RowStore.open(rows, store_id=STORE_ID, create=False) as store:
        assert store.read_shard(0)[1] == 1
        assert {path.name for path in rows.iterdir()} == {"data.mdb", "lock.mdb"}


@pytest.mark.parametrize("part_bytes", [1, 5_000, 1 << 20])
def test_a_shard_is_read_in_parts_of_whole_records(store: RowStore, part_bytes: int) -> None:
    rows = some_rows(900, seed=2)
    write(store, 7, rows, 3)
    parts: list[bytes] = []
    assert store.read_in_parts(7, parts.append, part_bytes) == 3
    assert b"".join(parts) == pack(rows)
    assert all(unpack(part) and len(part) < part_bytes + 4096 for part in parts)
    assert len(parts) > (part_bytes < 1 << 20)
    assert store.read_in_parts(8, parts.clear) == 0 and parts, "of nothing, nothing is handed over"


def test_what_was_committed_is_read_back_after_reopening(tmp_path: Path) -> None:
    rows = some_rows(3000, seed=1)
    with RowStore.open(tmp_path, store_id=STORE_ID, create=True) as store:
        store.begin()
        store.write_shard(3, pack(rows), 41)
        store.put_meta("clock", b"now")
        store.commit()
    with RowStore.open(tmp_path, store_id=STORE_ID, create=False) as store:
        assert store.read_shard(3) == (pack(rows), 41)
        assert store.shards() == {3: 41}
        assert store.get_meta("clock") == b"now"


class RowsMachine(RuleBasedStateMachine):
    """A store of small blocks and a dictionary take the same steps over few, colliding keys."""

    keys = st.integers(0, 60).map(lambda n: bytes(8) + n.to_bytes(2, "big") + bytes(6))
    payloads = st.integers(0, 90).map(lambda n: bytes([n]) * n) | st.just(b"x" * 700)
    changes = st.dictionaries(keys, payloads | st.none(), max_size=40)

    @initialize(block_bytes=st.sampled_from([64, 200, 600]))
    def make(self, block_bytes: int) -> None:
        self.directory = tempfile.mkdtemp(prefix="rows")
        self.block_bytes = block_bytes
        self.store = self.open(create=True)
        self.rows: dict[int, dict[bytes, bytes]] = {0: {}, 1: {}, 0xFFFF: {}}
        self.positions = dict.fromkeys(self.rows, 0)
        self.position = 0

    def open(self, *, create: bool) -> RowStore:
        return RowStore.open(self.directory, store_id=STORE_ID, create=create, block_bytes=self.block_bytes)

    @rule(shards=st.dictionaries(st.sampled_from([0, 1, 0xFFFF]), changes), commit=st.booleans())
    def checkpoint(self, shards: dict[int, dict[bytes, bytes | None]], commit: bool) -> None:
        self.position += 1
        self.store.begin()
        for shard, changes in shards.items():
            self.store.write_shard(shard, pack(changes), self.position)
        if not commit:
            self.store.abort()
            return
        self.store.commit()
        for shard, changes in shards.items():
            self.positions[shard] = self.position
            for key, payload in changes.items():
                if payload is None:
                    self.rows[shard].pop(key, None)
                else:
                    self.rows[shard][key] = payload

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.open(create=False)

    @invariant()
    def reads_what_the_dictionary_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        for shard, rows in self.rows.items():
            assert self.store.read_shard(shard) == (pack(rows), self.positions[shard])
        assert self.store.verify() == []

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)


TestRowsMachine = RowsMachine.TestCase
TestRowsMachine.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("key", [bytes(16), b"\xff" * 16])
@pytest.mark.parametrize("size", [0, 1, 4051, 4052, 4053, 100_000])
def test_extreme_keys_and_rows_larger_than_a_block(store: RowStore, key: bytes, size: int) -> None:
    rows = some_rows(200, seed=2) | {key: b"p" * size}
    write(store, 0xFFFF, rows, 1)
    assert unpack(store.read_shard(0xFFFF)[0]) == rows
    write(store, 0xFFFF, {key: None}, 2)
    del rows[key]
    assert unpack(store.read_shard(0xFFFF)[0]) == rows
    assert store.verify() == []


def test_neighbouring_shards_do_not_touch_each_other(store: RowStore) -> None:
    high, low = {b"\xff" * 16: b"high"}, {bytes(16): b"low"}
    for shard, rows in ((4, high), (5, low), (6, high)):
        write(store, shard, rows, shard)
    write(store, 5, {bytes(16): None, b"\xff" * 16: b"other"}, 9)
    assert [unpack(store.read_shard(shard)[0]) for shard in (4, 5, 6)] == [
        high,
        {b"\xff" * 16: b"other"},
        high,
    ]


def test_freed_rows_give_their_space_back(store: RowStore) -> None:
    rows = some_rows(20_000, seed=3)
    write(store, 0, rows, 1)
    full = store.stat()
    keys = list(rows)
    for position, freed in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 : -100]), start=2):
        write(store, 0, dict.fromkeys(freed), position)
    assert unpack(store.read_shard(0)[0]) == {key: rows[key] for key in keys[-100:]}
    assert store.stat().n_entries < full.n_entries / 20
    assert store.stat().used_pages < full.used_pages / 20


def test_freeing_every_row_leaves_the_position(store: RowStore) -> None:
    rows = some_rows(500, seed=4)
    write(store, 0, rows, 5)
    write(store, 0, dict.fromkeys(rows), 6)
    assert store.read_shard(0) == (b"", 6)
    assert store.stat().n_entries == 2  # identity and head


def test_a_position_alone_is_kept(store: RowStore) -> None:
    write(store, 9, {}, 1 << 63)
    assert store.shards() == {9: 1 << 63}


def test_records_may_be_any_contiguous_buffer(store: RowStore) -> None:
    rows = some_rows(10, seed=5)
    store.begin()
    store.write_shard(0, np.frombuffer(pack(rows), np.uint8), 1)
    store.write_shard(1, memoryview(bytearray(pack(rows))), 1)
    store.commit()
    assert store.read_shard(0) == store.read_shard(1) == (pack(rows), 1)


@pytest.mark.parametrize(
    ("records", "what"),
    [
        (b"k" * 19, "offset 0"),
        (b"k" * 16 + b"\5\0\0\0" + b"four", "offset 0"),
        (b"k" * 16 + b"\0\0\0\x7f", "offset 0"),
        (pack({b"a" * 16: b"xy"}) + b"b" * 16, "offset 22"),
        (pack({b"b" * 16: b""}) + pack({b"a" * 16: b""}), "offset 20 does not ascend"),
        (pack({b"b" * 16: b""}) + pack({b"b" * 16: None}), "offset 20 does not ascend"),
    ],
)
def test_records_that_are_not_whole_and_sorted_are_refused(
    store: RowStore, records: bytes, what: str
) -> None:
    rows = {b"r" * 16: b"row"}
    store.begin()
    store.write_shard(0, pack(rows), 1)
    with pytest.raises(ValueError, match=what):
        store.write_shard(1, records, 1)
    store.commit()  # what was refused changed nothing
    assert store.shards() == {0: 1}


def test_a_position_that_goes_back_is_refused(store: RowStore) -> None:
    write(store, 0, {}, 5)
    store.begin()
    with pytest.raises(ValueError, match="at position 5, 4 is behind"):
        store.write_shard(0, b"", 4)
    store.abort()
    assert store.shards() == {0: 5}


@pytest.mark.parametrize("shard", [-1, 65536])
def test_a_shard_out_of_range_is_refused(store: RowStore, shard: int) -> None:
    store.begin()
    with pytest.raises(ValueError, match="from 0 to 65535"):
        store.write_shard(shard, b"", 1)
    with pytest.raises(ValueError, match="from 0 to 65535"):
        store.read_shard(shard)


@pytest.mark.parametrize("sizes", [(0, 1), (4076, 4077), (4077, 4076), (10_000_000, 3), (3, 10_000_000)])
def test_a_meta_is_replaced_whole(store: RowStore, sizes: tuple[int, int]) -> None:
    for size in sizes:
        data = random.Random(size).randbytes(size)
        store.begin()
        store.put_meta("sequencer", data)
        store.put_meta("sequencer.2", b"neighbour")
        store.put_meta("sequence", b"neighbour")
        store.commit()
        assert store.get_meta("sequencer") == data
        assert store.get_meta("sequencer.2") == store.get_meta("sequence") == b"neighbour"
        # identity, and for each meta its head and its chunks: none of a longer value is left
        assert store.stat().n_entries == 1 + 3 + 2 + -(-size // 4076)
    assert store.metas() == ["sequence", "sequencer", "sequencer.2"]
    assert store.verify() == []


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "a\0b", "-a", "a" * 49, "ä"])
def test_a_bad_meta_name_is_refused(store: RowStore, name: str) -> None:
    store.begin()
    with pytest.raises(ValueError, match="meta name"):
        store.put_meta(name, b"")


def test_nothing_is_seen_before_commit(store: RowStore) -> None:
    write(store, 0, {b"k" * 16: b"old"}, 1)
    store.begin()
    store.write_shard(0, pack({b"k" * 16: b"new"}), 2)
    store.put_meta("m", b"new")
    assert (store.read_shard(0), store.get_meta("m")) == ((pack({b"k" * 16: b"old"}), 1), None)
    store.abort()
    assert (store.read_shard(0), store.get_meta("m")) == ((pack({b"k" * 16: b"old"}), 1), None)
    store.begin()
    store.commit()
    assert store.shards() == {0: 1}


def test_calls_out_of_order_are_refused(store: RowStore) -> None:
    for call in (lambda: store.write_shard(0, b"", 1), lambda: store.put_meta("m", b""), store.commit):
        with pytest.raises(RuntimeError, match="no transaction"):
            call()
    store.abort()
    store.begin()
    with pytest.raises(RuntimeError, match="neither committed nor aborted"):
        store.begin()
    with pytest.raises(RuntimeError, match="the store is open"):
        store.reopen()


def test_a_transaction_belongs_to_the_thread_that_began_it(store: RowStore) -> None:
    failures: list[str] = []

    def commit_elsewhere() -> None:
        try:
            store.commit()
        except RuntimeError as error:
            failures.append(str(error))

    store.begin()
    store.put_meta("m", b"mine")
    thread = threading.Thread(target=commit_elsewhere)
    thread.start()
    thread.join()
    assert "belongs to the thread" in failures[0]
    store.commit()
    assert store.get_meta("m") == b"mine"


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = RowStore.open(tmp_path, store_id=STORE_ID, create=True)
    store.begin()
    store.close()
    store.close()
    for call in (
        store.begin,
        store.commit,
        store.stat,
        store.shards,
        store.reopen,
        lambda: store.read_shard(0),
    ):
        with pytest.raises(StorageError, match="is closed"):
            call()


def test_a_store_is_not_opened_twice(tmp_path: Path) -> None:
    script = (
        "import sys; from featurestore.storage.rows import RowStore\n"
        f"RowStore.open(sys.argv[1], store_id={STORE_ID!r}, create=False)"
    )
    linked = tmp_path / "link"
    linked.symlink_to(tmp_path / "rows")
    with RowStore.open(tmp_path / "rows", store_id=STORE_ID, create=True) as store:
        for path in (tmp_path / "rows", linked):
            with pytest.raises(StoreLockedError, match="in this process already"):
                RowStore.open(path, store_id=STORE_ID, create=False)
        child = subprocess.run(
            [sys.executable, "-c", script, linked], capture_output=True, text=True, check=False
        )
        assert "StoreLockedError" in child.stderr
        assert "another process has it open" in child.stderr
        write(store, 0, {}, 1)  # the refused ones took nothing with them
    subprocess.run([sys.executable, "-c", script, linked], check=True)


def test_create_and_open_do_not_stand_in_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is this the directory of a store"):
        RowStore.open(tmp_path, store_id=STORE_ID, create=False)
    RowStore.open(tmp_path, store_id=STORE_ID, create=True).close()
    with pytest.raises(StorageError, match="exists already"):
        RowStore.open(tmp_path, store_id=STORE_ID, create=True)


def test_a_creation_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "creating").mkdir()
    (tmp_path / "creating" / "data.mdb").write_bytes(b"half")
    with RowStore.open(tmp_path, store_id=STORE_ID, create=True) as store:
        assert store.verify() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.mdb", "lock.mdb"]


@pytest.mark.parametrize(
    "settings_",
    [
        {"store_id": b"short"},
        {"map_size_bytes": 4096},
        {"map_size_bytes": 1 << 30, "max_map_size_bytes": 1 << 29},
        {"max_map_size_bytes": 1 << 60},
        {"block_bytes": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings_: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RowStore.open(tmp_path, **{"store_id": STORE_ID, "create": True, **settings_})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_map_grows_before_what_is_announced_is_written(tmp_path: Path) -> None:
    parts = {shard: some_rows(4000, seed=shard) for shard in range(8)}
    with RowStore.open(tmp_path, store_id=STORE_ID, create=True, map_size_bytes=1 << 20) as store:
        store.begin(sum(len(pack(rows)) + 300_000 for rows in parts.values()))
        for shard, rows in parts.items():
            store.write_shard(shard, pack(rows), shard + 1)
            store.put_meta(f"m{shard}", bytes(300_000))
        store.commit()
        assert store.stat().map_size_bytes >= 8 << 20
        for shard, rows in parts.items():
            assert store.read_shard(shard) == (pack(rows), shard + 1)
        assert store.verify() == []
    with RowStore.open(tmp_path, store_id=STORE_ID, create=False, map_size_bytes=1 << 20) as store:
        assert store.stat().map_size_bytes >= 8 << 20


def test_a_map_that_is_full_all_the_same_grows_and_the_transaction_is_begun_again(tmp_path: Path) -> None:
    rows = some_rows(20_000, seed=1)
    with RowStore.open(tmp_path, store_id=STORE_ID, create=True, map_size_bytes=1 << 20) as store:
        write(store, 0, {b"k" * 16: b"kept"}, 1)
        tries = 0
        while store.read_shard(1)[1] == 0:
            store.begin()
            tries += 1
            try:
                store.write_shard(1, pack(rows), 1)
            except MapGrownError:
                with pytest.raises(RuntimeError, match="no transaction"):
                    store.commit()
                continue
            store.commit()
        assert 2 <= tries <= 6
        assert store.read_shard(0)[1] == 1
        assert store.read_shard(1) == (pack(rows), 1)
        assert store.verify() == []


def test_what_was_written_is_not_kept_in_memory(tmp_path: Path) -> None:
    """Neither what a transaction was given, nor the pages of the file that it read."""
    ran = subprocess.run(
        [sys.executable, "-c", WRITING, str(tmp_path / "rows")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    written, before, most = map(int, ran.stdout.split())
    assert written > 30 << 20
    assert most - before < written // 2


WRITING = """
import sys
from pathlib import Path
from featurestore.storage.rows import RowStore

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

with RowStore.open(sys.argv[1], store_id=b"0123456789abcdef", create=True) as store:
    before = 0
    for position in (1, 2, 3):
        written = 0
        for shard in range(32):
            store.begin(1 << 21, goes_on=shard > 0)
            records = b"".join(bytes([shard]) + n.to_bytes(15, "big") + (1000).to_bytes(4, "little")
                               + bytes([position]) * 1000 for n in range(1000))
            written += len(records)
            store.write_shard(shard, records, position)
            assert len(records) <= store.changed_bytes <= len(records) * 3 // 2
            store.commit()
        before = before or memory("VmHWM")
print(written, before, memory("VmHWM"))
"""


def test_a_map_at_its_cap_aborts_and_the_store_goes_on(tmp_path: Path) -> None:
    with RowStore.open(
        tmp_path, store_id=STORE_ID, create=True, map_size_bytes=1 << 20, max_map_size_bytes=4 << 20
    ) as store:
        write(store, 0, {b"k" * 16: b"kept"}, 1)
        store.begin(1 << 40)
        with pytest.raises(LimitError, match="max_map_size_bytes"):
            store.write_shard(1, pack(some_rows(50_000, seed=1)), 1)
        with pytest.raises(RuntimeError, match="no transaction"):
            store.commit()
        write(store, 0, {b"l" * 16: b"more"}, 2)
        assert unpack(store.read_shard(0)[0]) == {b"k" * 16: b"kept", b"l" * 16: b"more"}


def test_the_map_moves_only_while_nobody_reads(tmp_path: Path) -> None:
    rows = some_rows(2000, seed=6)
    with RowStore.open(tmp_path, store_id=STORE_ID, create=True, map_size_bytes=1 << 20) as store:
        write(store, 0, rows, 1)
        stop, problems = threading.Event(), []

        def read() -> None:
            while not stop.is_set():
                if store.read_shard(0) != (pack(rows), 1):
                    problems.append("other rows")

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for shard in range(1, 9):
            write(store, shard, some_rows(5000, seed=shard), 1)
        stop.set()
        for reader in readers:
            reader.join()
        assert problems == []
        assert store.stat().map_size_bytes > 1 << 20


def test_what_there_is_no_room_for_is_refused_before_it_is_written(
    store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=4096))
        store.begin(1 << 40)
        with pytest.raises(LimitError, match="free some"):
            store.write_shard(0, pack({b"k" * 16: bytes(1 << 20)}), 1)
        store.begin()
        with pytest.raises(LimitError, match="free some"):
            store.put_meta("m", bytes(1 << 20))
        with pytest.raises(RuntimeError, match="no transaction"):
            store.commit()
    assert (store.shards(), store.metas()) == ({}, [])
    write(store, 0, {b"k" * 16: b"kept"}, 1)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_held_is_enough_to_write_everything_anew(tmp_path: Path, seed: int) -> None:
    """Whatever is changed, the transaction takes no block that the file did not have before it."""
    random_ = random.Random(seed)
    most = random_.choice([40, 400, 4000, 40_000])
    rows: dict[bytes, bytes] = {}
    with RowStore.open(tmp_path, store_id=STORE_ID, create=True) as store:
        for position in range(1, 8):
            changed: dict[bytes, bytes | None] = (
                {
                    random_.randbytes(16): random_.randbytes(random_.randrange(most))
                    for _ in range(1 << 20 // most)
                }
                if position < 4
                else {}
            )
            share = random_.choice([0.01, 0.3, 1.0])
            for key in rows:
                if random_.random() < share:
                    changed[key] = random_.choice([None, random_.randbytes(random_.randrange(most))])
            records = pack(changed)
            new_bytes = sum(len(row) + 20 for key, row in changed.items() if row and key not in rows)
            grown_bytes = sum(
                max(0, len(row) - len(rows[key])) for key, row in changed.items() if row and key in rows
            )
            store.hold(2 * (new_bytes + grown_bytes) + (1 << 20))
            before = (tmp_path / "data.mdb").stat().st_blocks
            assert store.room_bytes >= len(records)
            write(store, 0, changed, position)
            assert (tmp_path / "data.mdb").stat().st_blocks <= before
            rows = {key: row for key, row in (rows | changed).items() if row is not None}
        assert unpack(store.read_shard(0)[0]) == rows


def test_what_is_never_written_again_is_not_set_aside_a_second_time(store: RowStore) -> None:
    data = Path(store.path, "data.mdb")

    def settled(first: int, n: int) -> dict[bytes, bytes | None]:
        return {i.to_bytes(16, "big"): bytes([i % 256]) * 4032 for i in range(first, first + n)}

    write(store, 7, settled(0, 2000), 1)
    for position in range(2, 8):
        (_, n_bytes), first = store.sizes()[7], 200 * position + 1600
        store.hold(2 * 200 * 4052 + (1 << 20), n_bytes)
        held = data.stat().st_blocks
        store.begin()
        store.write_shard(0, pack(some_rows(50, seed=position)), position)
        store.write_shard(7, pack(settled(first, 200)), position)
        store.commit()
        assert data.stat().st_blocks <= held
    assert held * 512 < 1.25 * data.stat().st_size, "twice the last 200 records, of 3200"


def test_the_file_holds_its_pages_twice_at_most(store: RowStore) -> None:
    rows = some_rows(5000, seed=1)
    write(store, 0, rows, 1)
    n_used = store.stat().used_pages
    for position in range(2, 12):
        write(store, 0, {key: row[::-1] for key, row in rows.items()}, position)
    stat = store.stat()
    assert stat.used_pages + stat.free_pages < 2.2 * n_used


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_store_that_held_enough_is_opened_and_written_with_not_a_byte_free(
    tmp_path: Path, kind: str
) -> None:
    rows = some_rows(5000, seed=2)
    with volume(tmp_path / "volume", 24 << 20, kind) as place:
        with RowStore.open(place / "rows", store_id=STORE_ID, create=True) as store:
            write(store, 0, rows, 1)
            store.hold(0)
            with pytest.raises(LimitError, match="free some"):
                store.hold(1 << 30)
        (place / "rows" / "lock.mdb").unlink()  # a copy has none
        with RowStore.open(place / "rows", store_id=STORE_ID, create=False):
            pass  # makes it
        fill(place / "stranger")
        for position in range(2, 5):
            with RowStore.open(place / "rows", store_id=STORE_ID, create=False) as store:
                rows = {key: row[::-1] for key, row in rows.items()}
                write(store, 0, rows, position)
                fill(place / "stranger")
                store.hold(0)
                assert unpack(store.read_shard(0)[0]) == rows


def test_lmdb_s_table_of_readers_has_its_blocks_before_it_is_mapped(store: RowStore) -> None:
    """A hole in it is a SIGBUS on a disk that is full."""
    assert Path(store.path, "lock.mdb").stat().st_blocks * 512 >= 8192


def test_writing_a_shard_does_not_hold_the_gil(store: RowStore) -> None:
    records = pack(some_rows(100_000, seed=7))
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    before_ms = sys.getswitchinterval()
    sys.setswitchinterval(0.02)  # longer than what is between the two readings, but for the call itself
    thread = threading.Thread(target=count)
    thread.start()
    try:
        store.begin()
        before = counted[0]
        for position in range(1, 6):
            store.write_shard(0, records, position)
        after = counted[0]
        store.abort()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before_ms)
    assert after - before > 1000


def test_a_copy_is_a_commit_while_the_store_goes_on(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows", store_id=STORE_ID, create=True) as store:
        keys = list(some_rows(5000, seed=8))
        write(store, 0, dict.fromkeys(keys, b"\0" * 8), 1)
        stop = threading.Event()

        def checkpoint() -> None:
            position = 1
            while not stop.is_set():
                position += 1
                write(store, 0, dict.fromkeys(keys, position.to_bytes(8, "little")), position)

        writer = threading.Thread(target=checkpoint)
        writer.start()
        try:
            for number in range(3):
                store.copy_to(tmp_path / f"copy{number}")
        finally:
            stop.set()
            writer.join()
        with pytest.raises(StorageError, match="does not exist"):
            store.copy_to(tmp_path / "copy0")
        last = store.shards()[0]
    for number in range(3):
        assert [path.name for path in (tmp_path / f"copy{number}").iterdir()] == ["data.mdb"]
        with RowStore.open(tmp_path / f"copy{number}", store_id=STORE_ID, create=False) as copy:
            records, position = copy.read_shard(0)
            assert 1 <= position <= last
            expected = 0 if position == 1 else position
            assert set(unpack(records).values()) == {expected.to_bytes(8, "little")}
            assert copy.verify() == []
            write(copy, 0, {}, position + 1)


def test_a_renewed_store_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with RowStore.open(path, store_id=STORE_ID, create=True) as store:
        rows = some_rows(500, seed=1)
        write(store, 0, rows, 1)
        store.hold(1 << 20)
        store.renew()
        assert unpack(store.read_shard(0)[0]) == rows
        with pytest.raises(StoreLockedError):
            RowStore.open(path, store_id=STORE_ID, create=False)
        write(store, 1, rows, 2)
        assert store.shards() == {0: 1, 1: 2}
        store.begin()
        with pytest.raises(RuntimeError, match="transaction"):
            store.renew()
        store.abort()
    with RowStore.open(path, store_id=STORE_ID, create=False) as store:
        assert unpack(store.read_shard(1)[0]) == rows
        assert store.verify() == []


def test_a_compacted_file_holds_no_key_that_was_deleted(tmp_path: Path) -> None:
    """Not even in the branches of its tree, which part its leaves by the first key of each."""
    with RowStore.open(tmp_path / "rows", store_id=STORE_ID, create=True, block_bytes=64) as store:
        rows = some_rows(4_000, seed=9)
        write(store, 0, rows, 1)
        dead = sorted(rows)[::5]
        write(store, 0, dict.fromkeys(dead), 2)
        store.compact()
        data = (tmp_path / "rows" / "data.mdb").read_bytes()
        left = {key: rows[key] for key in rows if key not in set(dead)}
        assert unpack(store.read_shard(0)[0]) == left
        assert store.verify() == []
    for key, expected in [*dict.fromkeys(dead, False).items(), *dict.fromkeys(left, True).items()]:
        as_stored = key[7::-1] + key[:7:-1]  # in a key of the file: two big-endian numbers
        assert (key in data or as_stored in data) is expected
