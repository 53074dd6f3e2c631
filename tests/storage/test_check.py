"""Looking at a store that is not open, and making one of a backup. Also the golden store of version 1."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featurestore import storage
from featurestore.cli import main
from featurestore.cli.exits import Exit
from featurestore.columns import text_column
from featurestore.engine import Engine
from featurestore.errors import (
    ConfigError,
    CorruptRecordError,
    FeatureStoreError,
    SequenceError,
    StorageError,
    StoreLockedError,
)
from featurestore.outcome import Outcome
from featurestore.storage import check
from featurestore.storage.check import inspect, restore, verify
from featurestore.storage.directory import DataDirectory
from featurestore.storage.rows import RowStore

from . import store_ids, store_producers, store_spread, store_sums, store_top_v1, store_v1
from .producer_records import stored_producers

GOLDEN = Path(__file__).parent.parent / "golden" / "store_v1"
GOLDEN_TOP = GOLDEN.parent / "store_top_v1"
GOLDEN_TOP_DIGEST = "95ecc2da20ab04740c3c05ef3464b229"
GOLDEN_SUMS_DIGESTS = {
    "v1": "bf1185bfa03cc76c80062ea6663e3173",
    "v2": "266eade7434c8f1bc2fcd24c4b76bb20",
}
GOLDEN_SPREAD_DIGESTS = {
    "v1": "12e9659db2c79588aa82ea74f71244d2",
    "v2": "33d29893791415c2714316a6f3be929d",
}
UNAVAILABLE = 4
GOLDEN_DIGEST = "41198de3e03568ac17b9baf95c6c13ae"
GOLDEN_IDS_DIGEST = "f30a3d76e3cabceb20016268385d812a"
GOLDEN_PRODUCERS_DIGESTS = {
    "v2": "21c73fbfa458e91fabf21d5670722ace",
    "v3": "6e955e738217f6b0e688ee946108ef7a",
    "v4": "89ce8fb9a054f81b12fcdb5152d7a3ce",
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store_v1.make(tmp_path / "store")
    return tmp_path / "store"


def lost_and_found(volume: Path) -> Path:
    """A new directory as the root of an ext4 volume that was repaired; the file that was found."""
    (volume / "lost+found").mkdir(parents=True)
    found = volume / "lost+found" / "#12"
    found.write_bytes(b"a file without a name")
    return found


def segment_of(store: Path) -> Path:
    return max(store.glob("journal/*.seg"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_the_golden_store_says_what_it_always_said(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "store")
    assert list(verify(tmp_path / "store")) == []
    with Engine.open(tmp_path / "store") as engine:
        assert store_v1.answers(engine) == store_v1.EXPECTED
        assert engine.state.digest().hex() == GOLDEN_DIGEST
        assert (engine.recovered.rows, engine.recovered.checkpoint_position, engine.recovered.events) == (
            1,
            9,
            7,
        )
        # What it remembers to count nothing twice.
        batch = store_v1.batch(
            engine,
            {"at": [store_v1.START_MS + 10_000], "play_id": ["1-0"], "account": ["anna"], "seconds": [1.0]},
        )
        engine.observe(batch)
        assert list(batch.outcomes) == [2]
        store_v1.send(engine, 2, ["bert"] * 6 + ["anna"])
        assert store_v1.answers(engine) == store_v1.EXPECTED


@pytest.mark.parametrize("version", ["v2", "v3", "v4"])
def test_the_golden_stores_of_producers_know_every_batch_of_theirs(tmp_path: Path, version: str) -> None:
    shutil.copytree(GOLDEN.parent / f"store_producers_{version}", tmp_path / "store")
    assert list(verify(tmp_path / "store")) == []
    with Engine.open(tmp_path / "store") as engine:
        assert engine.recovered.events == 0  # from the rows, not the journal
        assert engine.state.digest().hex() == GOLDEN_PRODUCERS_DIGESTS[version]
        listed, _ = engine.state.list_producers()
        names = {each.name for each in listed}
        assert names == (
            {None} if version == "v2" else {*store_producers.SENT, store_producers.RESET.encode()}
        )
        for name, (epoch, sequences) in store_producers.SENT.items():
            for sequence in range(1, max(sequences) + 2):
                # Of its state, which has the time of its last frame: by now it would have forgotten them all.
                is_new = store_producers.send(engine.state, name, epoch, sequence)
                assert is_new == (sequence not in sequences), (name, sequence)
        if version != "v2":
            name, (epoch, sequence) = store_producers.RESET.encode(), store_producers.RESET_TO
            with pytest.raises(SequenceError):
                store_producers.send(engine.state, name, epoch, sequence)
            assert not store_producers.send(engine.state, name, epoch, store_producers.SENT_AFTER)
            assert store_producers.send(engine.state, name, epoch, sequence + 1)


def check_stored_producers(store: Path, *, reset: bool) -> None:
    head, found = stored_producers(store)
    assert head[:2] == (4, 0)
    expected = {
        name: (epoch, max(sequences), int(name == store_producers.MADE_UP), 0, set(sequences))
        for name, (epoch, sequences) in store_producers.SENT.items()
    }
    if reset:
        epoch, last = store_producers.RESET_TO
        sent = store_producers.SENT_AFTER
        expected[store_producers.RESET.encode()] = (epoch, sent, 0, last + 1, {sent})
    assert expected == {
        name: (one.epoch, one.highest, one.class_, one.lowest, set(one.seen)) for name, one in found.items()
    }
    assert head[2] == max(one.last_ms for one in found.values())


def test_the_golden_producers_are_what_the_format_says(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN.parent / "store_producers_v4", tmp_path / "store")
    check_stored_producers(tmp_path / "store", reset=True)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_producers_of_older_stores_are_written_as_records_by_the_next_checkpoint(
    tmp_path: Path, version: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(GOLDEN.parent / f"store_producers_{version}", store)
    with Engine.open(store) as engine:
        digest = engine.state.digest()
        engine.checkpoint()
    if version == "v3":  # the names of version 2 are not known
        check_stored_producers(store, reset=True)
    assert list(verify(store)) == []
    with Engine.open(store) as engine:
        assert engine.state.digest() == digest


def test_the_golden_store_of_ids_knows_those_that_have_not_expired(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN.parent / "store_ids_v3", tmp_path / "store")
    assert list(verify(tmp_path / "store")) == [] and inspect(tmp_path / "store")["ids"] == 203
    now_ms = store_ids.CAME[-1][0]
    with Engine.open(tmp_path / "store") as engine:
        assert engine.recovered.events == 0  # from the rows, not the journal
        assert engine.state.digest().hex() == GOLDEN_IDS_DIGEST
        for (at_ms, n), expected in zip(
            store_ids.CAME, [Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.DUPLICATE], strict=True
        ):
            ids = [f"{at_ms}-{i}" for i in range(n)]
            assert set(store_ids.outcomes_of(engine, now_ms, ids)) == {expected}


@pytest.mark.parametrize("name", ["store_v1", "store_producers_v2"])
def test_ids_of_older_stores_are_written_as_records_by_the_next_checkpoint(tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    shutil.copytree(GOLDEN.parent / name, store)
    assert inspect(store)["ids"] > 6
    with Engine.open(store) as engine:
        now_ms = engine.state.now_ms or 0
        assert store_ids.outcomes_of(engine, now_ms, ["new"]) == [Outcome.ACCEPTED]
        digest, n_ids = engine.state.digest(), engine.state.stats()["ids"]
        engine.checkpoint()
        assert engine.state.digest() == digest
    with DataDirectory.open(store, read_only=True) as directory:
        rows = RowStore.open(
            directory.rows, store_id=directory.identity.id_bytes, create=False, read_only=True
        )
        with rows:
            assert not rows.get_meta("ids")
    assert inspect(store)["ids"] == n_ids and list(verify(store)) == []
    with Engine.open(store) as engine:
        assert engine.state.digest() == digest
        old = "1-0" if name == "store_v1" else f"{b'golden'!r}1"
        assert store_ids.outcomes_of(engine, now_ms, ["new", old]) == [Outcome.DUPLICATE] * 2


def test_the_golden_store_of_heaviest_values_says_what_it_always_said(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN_TOP, tmp_path / "store")
    assert list(verify(tmp_path / "store")) == []
    with Engine.open(tmp_path / "store") as engine:
        assert engine.recovered.rows == 2 and engine.recovered.events == 0  # from the rows, not the journal
        assert store_top_v1.answers(engine) == store_top_v1.EXPECTED
        assert engine.state.digest().hex() == GOLDEN_TOP_DIGEST


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_golden_stores_of_spread_say_what_is_true(tmp_path: Path, version: str) -> None:
    shutil.copytree(GOLDEN.parent / f"store_spread_{version}", tmp_path / "store")
    assert list(verify(tmp_path / "store")) == []
    with Engine.open(tmp_path / "store") as engine:
        assert engine.recovered.rows == 3 and engine.recovered.events == 0  # from the rows, not the journal
        found, truths = store_spread.answers(engine), store_spread.truths()
        assert engine.state.digest().hex() == GOLDEN_SPREAD_DIGESTS[version]
    for name, accounts in found.items():
        for account, (value, lower, upper, status), true in zip(
            store_spread.ACCOUNTS, accounts, truths[name], strict=True
        ):
            lost = version == "v1" and account != "plain" and name.startswith("account.stddev")
            if lost or math.isnan(true):
                assert (status, math.isnan(value)) == (UNAVAILABLE, True), (name, account)
                continue
            assert lower <= value <= upper
            assert math.isclose(value, true, rel_tol=1e-12), (name, account)
            assert lower <= true * (1 + 1e-12) and true <= upper * (1 + 1e-12)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_golden_stores_of_sums_say_what_is_true(tmp_path: Path, version: str) -> None:
    """What layouts of two words lost is not known: their bounds are wider."""
    shutil.copytree(GOLDEN.parent / f"store_sums_{version}", tmp_path / "store")
    assert list(verify(tmp_path / "store")) == []
    with Engine.open(tmp_path / "store") as engine:
        assert engine.recovered.rows == 4 and engine.recovered.events == 0  # from the rows, not the journal
        found = store_sums.answers(engine)
        assert engine.state.digest().hex() == GOLDEN_SUMS_DIGESTS[version]
        engine.checkpoint()
    for (feature, shop), (lower, value, upper) in found.items():
        true = float(store_sums.truth(feature, shop))
        assert lower <= value <= upper and lower <= true <= upper, (feature, shop)
        if (version == "v2" and shop != store_sums.ROUNDED) or shop == "once":
            assert lower == upper, (feature, shop)
        elif "lifetime" in feature:  # a window's entries may be of one event each, and nothing lost
            assert lower < upper, (feature, shop)
        if shop != store_sums.ROUNDED:
            assert upper - lower < 1e-12, (feature, shop)
    with Engine.open(tmp_path / "store") as engine:  # as the checkpoint of today has it
        assert engine.recovered.events == 0
        assert store_sums.answers(engine) == found
        assert engine.state.digest().hex() == GOLDEN_SUMS_DIGESTS[version]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_sums_stand_in_a_row_as_the_format_says(tmp_path: Path, version: str) -> None:
    shutil.copytree(GOLDEN.parent / f"store_sums_{version}", tmp_path / "store")
    store_id = bytes.fromhex(inspect(tmp_path / "store")["store_id"])
    with RowStore.open(tmp_path / "store" / "rows", store_id=store_id, create=False, read_only=True) as rows:
        logs = list(store_sums.decoded(rows.read_shard(0)[0]))
    assert sorted(kind for kind, *_ in logs) == [1, 1, 1, 2, 2, 2, 2]  # "once" is not merged
    truths = {store_sums.truth("sum", shop): shop for shop in store_sums.SHOPS}
    for _, layout, events, total, rounded in logs:
        assert bool(layout & store_sums.THIRD_WORD) == (version == "v2")
        if version == "v2" and not rounded:
            assert events == len(store_sums.VALUES[truths[total]])
    if version == "v2":
        assert [kind for kind, *_, rounded in logs if rounded] == [store_sums.LIFETIME]


def test_the_example_of_a_row_is_the_golden_one(tmp_path: Path) -> None:
    text = (Path(storage.__file__).parent / "FORMAT.md").read_text().partition("The only row of")[2]
    lines = re.findall(r"^    (\w{4})  (.+?)  +\|", text, re.M)
    shown = {int(at, 16): bytes.fromhex(digits) for at, digits in lines}
    shutil.copytree(GOLDEN, tmp_path / "store")
    store_id = bytes.fromhex(inspect(tmp_path / "store")["store_id"])
    with RowStore.open(tmp_path / "store" / "rows", store_id=store_id, create=False, read_only=True) as rows:
        record, position = rows.read_shard(0)
    assert position == 9
    assert len(shown) > 12
    for at, data in shown.items():
        assert record[at : at + len(data)] == data


def test_inspect_says_what_is_there(store: Path) -> None:
    found = inspect(store)
    assert found["clock"] == "event"
    assert found["schema"] == {"name": "golden", "version": 1}
    assert (found["rows"]["position"], found["rows"]["rows"]) == (9, 1)
    assert sum(shard["rows"] for shard in found["rows"]["shards"]) == 1
    journal = found["journal"]
    assert (journal["first_position"], journal["last_position"], journal["torn"]) == (10, 16, None)
    assert (journal["batches"], journal["events"], journal["schemas"], journal["forgets"]) == (1, 7, 0, 0)
    assert sum(segment["frames"] for segment in journal["segments"]) == 1
    json.dumps(found)


def test_inspect_and_verify_write_nothing(store: Path) -> None:
    def everything() -> dict[str, tuple[bytes, int]]:
        return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in store.rglob("*") if p.is_file()}

    before = everything()
    inspect(store)
    assert list(verify(store)) == []
    assert everything() == before


def test_a_store_that_is_open_is_left_alone(store: Path) -> None:
    with Engine.open(store):
        with pytest.raises(StoreLockedError):
            inspect(store)
        (problem,) = verify(store)
        assert "in use" in problem


def test_a_torn_tail_is_no_problem_and_is_told(store: Path) -> None:
    segment = segment_of(store)
    data = bytearray(segment.read_bytes())
    end = len(bytes(data).rstrip(b"\0")) + 8 & ~7
    data[end : end + 40] = b"torn" * 10
    segment.write_bytes(data)
    assert list(verify(store)) == []
    assert inspect(store)["journal"]["torn"]


def row_bytes(store: Path) -> int:
    """Where in data.mdb the only row of the store is."""
    with RowStore.open(
        store / "rows", store_id=bytes.fromhex(inspect(store)["store_id"]), create=False, read_only=True
    ) as rows:
        record = next(records for shard in range(2) if (records := rows.read_shard(shard)[0]))
    return (store / "rows" / "data.mdb").read_bytes().index(record[20:60]) + 24


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("store.json", lambda _: 30),
        ("store.json", lambda store: (store / "store.json").read_bytes().index(b'"n_shards": 2') + 12),
        ("store.json", lambda store: (store / "store.json").read_bytes().index(b'"store_id": "') + 14),
        ("secret", lambda _: 7),
        ("journal", lambda _: 30),  # the segment's header
        ("journal", lambda _: 200),  # a frame that a later one proves durable
        ("rows/data.mdb", row_bytes),
    ],
)
def test_a_flipped_byte_is_found(store: Path, name: str, place: Callable[[Path], int]) -> None:
    with Engine.open(store) as engine:
        store_v1.send(engine, 3, ["bert"])
    path = segment_of(store) if name == "journal" else store / name
    flip(path, place(store))
    problems = list(verify(store))
    assert problems
    assert any(str(path.parent if name.startswith("rows") else path) in problem for problem in problems)
    with pytest.raises(StorageError):
        Engine.open(store)


@pytest.mark.parametrize("name", ["store.json", "secret", "rows/data.mdb", "journal"])
def test_a_missing_file_is_found(store: Path, name: str) -> None:
    (segment_of(store) if name == "journal" else store / name).unlink()
    assert list(verify(store))
    with pytest.raises(StorageError):
        Engine.open(store, schema=store_v1.SCHEMA)


def test_a_journal_older_than_the_rows_is_found(store: Path, tmp_path: Path) -> None:
    with Engine.open(store) as engine:
        store_v1.send(engine, 3, ["bert"])
        shutil.copytree(store / "journal", tmp_path / "older")
        store_v1.send(engine, 4, ["bert"])
        engine.checkpoint()
    shutil.rmtree(store / "journal")
    (tmp_path / "older").rename(store / "journal")
    assert any("ends at position" in problem for problem in verify(store))


class TestBackup:
    def test_a_backup_is_a_store_and_goes_on(self, store: Path, tmp_path: Path) -> None:
        with Engine.open(store) as engine:
            position = engine.backup(tmp_path / "backup")
            digest = engine.state.digest()
            assert position == engine.state.position == 16
            store_v1.send(engine, 3, ["bert"])
        assert list(verify(tmp_path / "backup")) == []
        with Engine.open(tmp_path / "backup") as engine:
            assert engine.state.digest() == digest
            assert engine.recovered.events == 0
            store_v1.send(engine, 3, ["anna"])
            store_v1.send(engine, 1, ["anna", "carl"] + ["anna"] * 5)  # a duplicate here, too
            assert store_v1.answers(engine)["account.count_lifetime"] == [8.0, 6.0, 0.0]

    def test_a_backup_knows_no_event_that_it_has_not_counted(self, store: Path, tmp_path: Path) -> None:
        stop = threading.Event()
        n_batches = 0

        def write() -> None:
            nonlocal n_batches
            while not stop.is_set():
                store_v1.send(engine, 4 + n_batches, ["dora"] * 5)
                n_batches += 1

        with Engine.open(store) as engine:
            many = [str(i) for i in range(50_000)]  # so that a checkpoint takes its time
            data = {"at": [store_v1.START_MS] * len(many), "play_id": many, "account": many}
            engine.observe(store_v1.batch(engine, {**data, "seconds": [1.0] * len(many)}))
            thread = threading.Thread(target=write)
            thread.start()
            while n_batches < 30:
                time.sleep(0.01)
            position = engine.backup(tmp_path / "backup")
            stop.set()
            thread.join()
        assert list(verify(tmp_path / "backup")) == []
        with Engine.open(tmp_path / "backup") as engine:
            assert engine.state.position == position

            def counted() -> float:
                keys = {"account": text_column(["dora"])[0]}
                return float(engine.read(0, keys, 1).values[0, 1])

            before = counted()
            for sequence in range(4, 4 + n_batches):
                store_v1.send(engine, sequence, ["dora"] * 5)
            assert before + engine.stats()["events_accepted"] == counted() == 5 * n_batches

    def test_restore_makes_a_store_of_it(self, store: Path, tmp_path: Path) -> None:
        with Engine.open(store) as engine:
            engine.backup(tmp_path / "backup")
            digest = engine.state.digest()
        assert restore(tmp_path / "backup", tmp_path / "new" / "store") == 16
        assert (tmp_path / "new" / "store" / "secret").stat().st_mode & 0o777 == 0o600
        with Engine.open(tmp_path / "new" / "store") as engine:
            assert engine.state.digest() == digest

    def test_restoring_a_stopped_store_keeps_its_journal(self, store: Path, tmp_path: Path) -> None:
        assert restore(store, tmp_path / "copy") == 16
        with Engine.open(tmp_path / "copy") as engine:
            assert store_v1.answers(engine) == store_v1.EXPECTED

    def test_a_damaged_backup_is_refused_and_leaves_nothing(self, store: Path, tmp_path: Path) -> None:
        flip(store / "secret", 3)
        with pytest.raises(CorruptRecordError, match="secret"):
            restore(store, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_neither_writes_over_anything(self, store: Path, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "file").touch()
        with pytest.raises(StorageError, match="not empty"):
            restore(store, tmp_path / "there")
        with Engine.open(store) as engine, pytest.raises(Exception, match="exists"):
            engine.backup(tmp_path / "there")

    def test_a_new_volume_is_restored_to(self, store: Path, tmp_path: Path) -> None:
        kept = lost_and_found(tmp_path / "volume")
        assert restore(store, tmp_path / "volume") == 16
        assert kept.read_bytes() == b"a file without a name"
        assert list(verify(tmp_path / "volume")) == []
        with pytest.raises(StorageError, match="not empty"):
            restore(store, tmp_path / "volume")

    def test_a_restore_that_fails_leaves_a_volume_as_it_was(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        kept = lost_and_found(tmp_path / "volume")
        monkeypatch.setattr(check, "write_synced", full)
        with pytest.raises(StorageError, match="cannot restore"):
            restore(store, tmp_path / "volume")
        assert kept.read_bytes() == b"a file without a name"
        assert list((tmp_path / "volume").iterdir()) == [kept.parent]

    def test_only_a_directory_is_lost_and_found(self, store: Path, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "lost+found").touch()
        with pytest.raises(StorageError, match="not empty"):
            restore(store, tmp_path / "there")

    @pytest.mark.parametrize(
        "where", ["backup", "rows/backup", "journal/backup", "link", "up/../journal/backup", "."]
    )
    def test_nothing_is_made_within_the_store_that_it_is_of(
        self, store: Path, tmp_path: Path, where: str
    ) -> None:
        (tmp_path / "way").symlink_to(store)
        target = tmp_path / "way" / "backup" if where == "link" else store / where
        with pytest.raises(FeatureStoreError, match="lies in the store"):
            restore(store, target)
        (store / "up").mkdir()
        with Engine.open(store) as engine:
            before = sorted(path.name for path in store.rglob("*"))
            with pytest.raises(ConfigError, match=r"exists|lies in the store"):
                engine.backup(target)
            assert sorted(path.name for path in store.rglob("*")) == before

    def test_a_backup_is_not_made_through_a_link(self, store: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        with Engine.open(store) as engine, pytest.raises(ConfigError, match="exists"):
            engine.backup(tmp_path / "link")
        assert not (tmp_path / "elsewhere").exists()

    def test_what_is_made_is_its_owner_s_alone(self, store: Path, tmp_path: Path) -> None:
        with Engine.open(store) as engine:
            engine.backup(tmp_path / "backup")
        restore(tmp_path / "backup", tmp_path / "restored")
        with Engine.open(tmp_path / "new", schema=store_v1.SCHEMA):
            pass
        for made in (tmp_path / "new", tmp_path / "backup", tmp_path / "restored"):
            for path in [made, *made.rglob("*")]:
                assert path.stat().st_mode & 0o077 == 0, path

    def test_a_file_is_made_anew_and_never_through_a_link(self, tmp_path: Path) -> None:
        """Who may write to the directory must not have the store write what a link of theirs leads to."""
        victim = tmp_path / "victim"
        victim.write_bytes(b"mine")
        for name in ("LOCK", "secret.new", "CREATING.new", "store.json.new"):
            directory = tmp_path / f"store of {name}"
            directory.mkdir()
            (directory / name).symlink_to(victim)
            try:
                Engine.open(directory, schema=store_v1.SCHEMA).close()
            except StorageError:
                assert name == "LOCK"
            assert victim.read_bytes() == b"mine"
            assert not (directory / "secret").is_symlink()

    def test_a_directory_that_others_may_write_to_is_warned_of(
        self, store: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.chmod(0o755)
        Engine.open(store).close()
        assert not caplog.records
        store.chmod(0o775)
        Engine.open(store).close()
        assert "may be written by others" in caplog.text
        assert store.stat().st_mode & 0o777 == 0o775

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_backup_on_a_medium_that_cannot_be_written_can_be_restored(
        self, store: Path, tmp_path: Path
    ) -> None:
        for path in [store, *store.rglob("*")]:
            path.chmod(0o500 if path.is_dir() else 0o400)
        assert restore(store, tmp_path / "copy") == 16


class TestCommands:
    def test_inspect(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(store)]) == Exit.OK
        assert "positions 10 to 16" in capsys.readouterr().out
        assert main(["inspect", str(store), "-o", "json"]) == Exit.OK
        assert json.loads(capsys.readouterr().out)["journal"]["last_position"] == 16

    def test_verify_says_what_is_wrong_and_exits_with_1(
        self, store: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["verify", str(store)]) == Exit.OK
        assert capsys.readouterr().out.endswith(": sound\n")
        flip(store / "secret", 0)
        assert main(["verify", str(store)]) == Exit.ERROR
        assert "secret" in capsys.readouterr().out
        assert main(["verify", str(store), "-o", "json"]) == Exit.ERROR
        assert len(json.loads(capsys.readouterr().out)["problems"]) == 1

    def test_restore(self, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["restore", str(store), str(tmp_path / "copy")]) == Exit.OK
        assert "position 16" in capsys.readouterr().out
        assert main(["restore", str(store), str(tmp_path / "copy")]) == Exit.ERROR
        assert "not empty" in capsys.readouterr().err
