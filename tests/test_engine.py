"""The store as a whole when something goes wrong around it: the defined answer for each.

What survives crashes and power cuts is in tests/crash.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from storage import store_ids, store_producers, store_v1
from volumes import fill, free_bytes, volume

import featurestore.engine as engine_module
from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.errors import (
    ConfigError,
    CorruptRecordError,
    FeatureStoreError,
    IncompatibleVersionError,
    InvalidEventError,
    LimitError,
    StorageError,
    StoreLockedError,
    UnknownNameError,
)
from featurestore.outcome import Outcome
from featurestore.plan import Plan
from featurestore.storage import failpoint, frame, journal
from featurestore.storage.check import inspect, verify
from featurestore.storage.checkpoint import PRODUCERS_SHARD, SKETCHES
from featurestore.storage.directory import DataDirectory, Identity, is_shortage
from featurestore.storage.rows import RowStore

WAIT_S = 30


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store_v1.make(tmp_path / "store")
    return tmp_path / "store"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def writes(engine: Engine, sequence: int) -> bool:
    try:
        store_v1.send(engine, sequence, ["bert"])
    except LimitError as error:
        assert "full" in str(error)
        return False
    return True


def succeeds(change: Callable[[], object]) -> bool:
    try:
        change()
    except LimitError:
        return False
    return True


class TestOpening:
    def test_a_second_process_is_refused(self, path: Path) -> None:
        fd = os.open(path / "LOCK", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError, match="another process"):
            Engine.open(path)
        os.close(fd)
        Engine.open(path).close()

    def test_a_store_is_not_opened_twice_in_one_process(self, path: Path) -> None:
        with Engine.open(path), pytest.raises(StoreLockedError):
            Engine.open(path)

    @pytest.mark.parametrize("name", ["store.json", "rows", "other"])
    def test_a_directory_with_other_files_is_no_store_and_is_not_touched(
        self, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / name).write_text("mine")
        with pytest.raises(StorageError):
            Engine.open(tmp_path, schema=store_v1.SCHEMA)
        assert [entry.name for entry in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "mine"

    def test_a_store_that_lost_its_store_json_is_not_begun_anew(self, path: Path) -> None:
        (path / "store.json").unlink()
        with pytest.raises(StorageError, match=r"restore its store\.json"):
            Engine.open(path, schema=store_v1.SCHEMA)
        assert (path / "rows" / "data.mdb").exists()

    def test_a_wrong_schema_leaves_no_store_behind(self, tmp_path: Path) -> None:
        with pytest.raises(FeatureStoreError):
            Engine.open(tmp_path / "new", schema="version: 1\n")
        assert not (tmp_path / "new").exists()

    def test_a_store_of_a_newer_version_is_refused(self, path: Path) -> None:
        text = (path / "store.json").read_text()
        (path / "store.json").write_text(text.replace('"version": 1', '"version": 2'))
        with pytest.raises(IncompatibleVersionError, match="version 2"):
            Engine.open(path)

    def test_a_journal_segment_of_a_newer_version_is_refused(self, path: Path) -> None:
        segment = next((path / "journal").iterdir())
        data = bytearray(segment.read_bytes())
        data[4] = 2
        segment.write_bytes(data)
        with pytest.raises(IncompatibleVersionError):
            Engine.open(path)

    @pytest.mark.parametrize("name", ["journal", "rows"])
    def test_files_of_another_store_are_refused(self, path: Path, tmp_path: Path, name: str) -> None:
        store_v1.make(tmp_path / "other")
        shutil.rmtree(path / name)
        shutil.copytree(tmp_path / "other" / name, path / name)
        with pytest.raises(IncompatibleVersionError, match="store"):
            Engine.open(path)

    def test_a_file_that_is_not_lmdb_is_refused(self, path: Path) -> None:
        (path / "rows" / "data.mdb").write_bytes(b"something else " * 1000)
        with pytest.raises(IncompatibleVersionError):
            Engine.open(path)

    def test_another_stores_secret_is_refused(self, path: Path) -> None:
        (path / "secret").write_bytes(bytes(16))
        with pytest.raises(CorruptRecordError, match="secret"):
            Engine.open(path)

    @pytest.mark.parametrize("size", [0, 15, 17])
    def test_a_secret_of_another_length_is_refused(self, path: Path, size: int) -> None:
        (path / "secret").write_bytes(bytes(size))
        with pytest.raises(CorruptRecordError, match=f"{size} bytes"):
            Engine.open(path)

    @pytest.mark.parametrize("bytes_left", [0, 5000, 30_000])
    def test_truncated_rows_are_refused(self, path: Path, bytes_left: int) -> None:
        os.truncate(path / "rows" / "data.mdb", bytes_left)
        with pytest.raises(StorageError):
            Engine.open(path)

    def test_a_clock_is_for_life(self, path: Path) -> None:
        with pytest.raises(ConfigError, match="event clock"):
            Engine.open(path, clock="wall")

    def test_what_an_interrupted_creation_left_is_replaced(self, path: Path) -> None:
        (path / "CREATING").touch()
        (path / "store.json").unlink()
        with pytest.raises(StorageError, match="did not finish"):
            Engine.open(path, create=False)
        with Engine.open(path, schema=store_v1.SCHEMA) as engine:
            assert engine.state.position == 1
        assert not (path / "CREATING").exists()

    def test_a_store_is_made_in_the_root_of_a_new_volume(self, tmp_path: Path) -> None:
        """ext4 has a directory of its own there."""
        (tmp_path / "lost+found").mkdir()
        found = tmp_path / "lost+found" / "#12"
        found.write_bytes(b"a file without a name")
        with Engine.open(tmp_path, schema=store_v1.SCHEMA) as engine:
            engine.checkpoint()
        with Engine.open(tmp_path, create=False):
            assert found.read_bytes() == b"a file without a name"
        assert list(verify(tmp_path)) == []
        assert inspect(tmp_path)

    def test_a_directory_with_more_than_lost_and_found_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "lost+found").mkdir()
        (tmp_path / "precious").touch()
        with pytest.raises(StorageError, match=r"not empty \(precious\)"):
            Engine.open(tmp_path, schema=store_v1.SCHEMA)

    def test_a_creation_that_finished_but_for_its_mark_is_kept(self, path: Path) -> None:
        (path / "CREATING").touch()
        with Engine.open(path, schema=store_v1.SCHEMA) as engine:
            assert store_v1.answers(engine) == store_v1.EXPECTED
        assert not (path / "CREATING").exists()

    def test_store_json_is_read_back(self, tmp_path: Path) -> None:
        with DataDirectory.create(tmp_path, clock="wall", n_shards=8) as made:
            made.publish()
            assert isinstance(made.identity, Identity)
        with DataDirectory.open(tmp_path) as again:
            assert (again.identity, again.secret) == (made.identity, made.secret)


class TestNoSpace:
    def test_a_full_journal_refuses_and_resumes_by_itself(self, path: Path) -> None:
        with Engine.open(path, segment_bytes=4096) as engine:
            before = engine.state.digest()
            failpoint.arm("journal.allocate=enospc")
            refused = 0
            for sequence in range(3, 60):
                before = engine.state.digest()
                if not writes(engine, sequence):
                    refused += 1
                    assert engine.state.digest() == before
                    until(lambda s=sequence: writes(engine, s))
            assert refused == 1
            digest = engine.state.digest()
        with Engine.open(path) as engine:
            assert engine.state.digest() == digest

    def test_a_checkpoint_without_space_blocks_writes_until_one_succeeds(self, path: Path) -> None:
        with Engine.open(path) as engine:
            engine.start_upkeep()
            failpoint.arm("checkpoint.mid=enospc")
            with pytest.raises(LimitError, match="space"):
                engine.checkpoint()
            assert not writes(engine, 3)
            assert store_v1.answers(engine) == store_v1.EXPECTED
            until(lambda: writes(engine, 3))
            assert not engine.failed

    def test_a_checkpoint_that_was_not_written_is_told_once(self, path: Path) -> None:
        told: list[str | None] = []
        with Engine.open(path) as engine:
            failpoint.arm("checkpoint.mid=enospc")
            engine.start_upkeep(checkpoint_every_s=0.0, on_shortage=told.append)
            store_v1.send(engine, 3, ["bert"])
            until(lambda: bool(told))
            until(lambda: engine.checkpoint_position == engine.state.position)
            until(lambda: writes(engine, 4))
            until(lambda: engine.checkpoint_position == engine.state.position)
            assert engine.checkpoints_failed == 1
            assert engine.shortage is None
            assert not engine.refuses_writes
        assert len(told) == 1  # that it is over is said after a minute
        assert "No space left" in str(told[0])

    def test_a_journal_without_space_says_so_for_as_long_as_it_has_none(self, path: Path) -> None:
        with Engine.open(path, segment_bytes=4096) as engine:
            failpoint.arm("journal.allocate=enospc")
            sequence = 3
            while writes(engine, sequence):
                sequence += 1
            assert engine.refuses_writes
            assert "no space left for the journal" in str(engine.shortage)
            until(lambda: writes(engine, sequence))
            assert not engine.refuses_writes
            assert engine.shortage is None

    def test_rows_that_cannot_grow_are_told_and_nothing_is_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "store"

        class Small:
            @staticmethod
            def open(where: Path, **options: Any) -> RowStore:
                return RowStore.open(where, **options, map_size_bytes=1 << 20, max_map_size_bytes=1 << 20)

        monkeypatch.setattr(engine_module, "RowStore", Small)
        with Engine.open(path, schema=store_v1.SCHEMA, clock="event") as engine:
            for sequence in range(3, 40):
                store_v1.send(engine, sequence, [f"account {sequence} {i}" for i in range(300)])
            with pytest.raises(LimitError, match="map"):
                engine.checkpoint()
            store_v1.send(engine, 40, ["anna"])
            digest = engine.state.digest()
        monkeypatch.undo()
        with Engine.open(path) as engine:
            assert engine.state.digest() == digest
            engine.checkpoint()


class TestIds:
    def test_of_producers_those_that_changed_are_written(self, tmp_path: Path) -> None:
        def send(engine: Engine, names: range) -> int:
            for name in names:
                store_producers.send(engine, b"producer-%d" % name, 1, engine.state.position + 1)
            _, n_bytes = engine.checkpoint()
            return n_bytes

        with Engine.open(tmp_path, schema=store_v1.SCHEMA, clock="event", n_shards=1) as engine:
            assert send(engine, range(2000)) > 2000 * 100
            few, more = send(engine, range(3)), send(engine, range(300))
            assert few < 30_000 and 297 * 100 < more - few < 297 * 200, "and a row, and ids"
            engine.drop_producer("producer-7")
            assert send(engine, range(0)) < 1000
            digest = engine.state.digest()
        with Engine.open(tmp_path) as engine:
            assert engine.state.digest() == digest
            assert engine.state.stats()["producers"] == 1999
            assert send(engine, range(2)) < 30_000, "what was read is stored already"

    def test_ids_are_written_once_and_room_for_them_is_set_aside_once(self, tmp_path: Path) -> None:
        data = tmp_path / "rows" / "data.mdb"
        times = [store_v1.START_MS] * 1000
        with Engine.open(tmp_path, schema=store_v1.SCHEMA, clock="event", n_shards=1) as engine:
            for i in range(100):
                store_ids.outcomes_of(engine, times[0], [f"{i}-{j}" for j in range(1000)])
            _, n_bytes = engine.checkpoint()
            assert 24 * 100_000 < n_bytes < 25 * 100_000
            store_ids.outcomes_of(engine, times[0], ["new"])
            _, n_bytes = engine.checkpoint()
            assert n_bytes < 8192
            assert data.stat().st_blocks * 512 < 25 * 100_000 * 1.5 + (4 << 20)
        with Engine.open(tmp_path) as engine:
            assert data.stat().st_blocks * 512 < 25 * 100_000 * 1.5 + (4 << 20)
            assert store_ids.outcomes_of(engine, times[0], ["new", "0-0"]) == [Outcome.DUPLICATE] * 2


class TestPlans:
    def test_an_old_plan_goes_with_its_last_reader(self, path: Path) -> None:
        """However many schemas are applied; and what rows keep of views that are gone can still be freed."""
        plain = store_v1.SCHEMA
        with Engine.open(path) as engine:
            plans, aggregates = [], ["distinct(play_id)", "max(seconds)"]
            for i in range(1, 13):
                passing = f"  passing{i}:\n    event: play\n    key: account\n    features:\n"
                passing += f"      - {{aggregate: {aggregates[i % 2]}, windows: [1h]}}\n"
                engine.apply_schema(plain.replace("services:\n", passing + "services:\n"), allow=["drop"])
                store_v1.send(engine, 2 + i, ["anna", f"account {i}"])
                plans.append(weakref.ref(engine.state.plan))
                engine.checkpoint()
            engine.apply_schema(plain, allow=["drop"])
            gc.collect()
            assert [ref() for ref in plans] == [None] * len(plans)
            engine.state.sweep()
            engine.checkpoint()
            digest = engine.state.digest()
        with Engine.open(path) as engine:
            assert engine.state.digest() == digest


class TestFullVolume:
    """On volumes of their own; in any order and with restarts: tests/drills/test_disk.py."""

    def test_stats_say_what_is_held_for_a_checkpoint_and_when_writes_will_wait_for_one(
        self, tmp_path: Path
    ) -> None:
        with (
            volume(tmp_path / "volume", 32 << 20) as place,
            Engine.open(place / "store", schema=store_v1.SCHEMA, clock="event") as engine,
        ):
            store_v1.send(engine, 1, ["anna"])
            engine.checkpoint()
            calm = engine.stats()
            assert calm["checkpoint_room_bytes"] > 0
            assert calm["last_position"] is None
            for sequence in range(2, 20):
                store_v1.send(engine, sequence, [f"account {sequence} {i}" for i in range(300)])
            fill(place / "stranger")
            engine._make_room()
            short = engine.stats()
            assert short["last_position"] >= short["checkpoint_position"] == calm["checkpoint_position"]

    def test_a_store_is_opened_read_and_checkpointed_with_not_a_byte_free(self, tmp_path: Path) -> None:
        with volume(tmp_path / "volume", 32 << 20) as place:
            with Engine.open(place / "store", schema=store_v1.SCHEMA, clock="event") as engine:
                for sequence in range(1, 20):
                    store_v1.send(engine, sequence, [f"account {sequence} {i}" for i in range(300)])
                engine._make_room()  # as upkeep does, five times a second
                fill(place / "stranger")
                assert free_bytes(place) == 0
                engine.checkpoint()
                digest = engine.state.digest()
            fill(place / "stranger")
            with Engine.open(place / "store") as engine:
                assert engine.recovered.frames == 0
                assert engine.state.digest() == digest
                engine.checkpoint()
                assert not engine.failed

    def test_every_change_has_its_answer_with_not_a_byte_free_and_goes_through_after(
        self, tmp_path: Path
    ) -> None:
        with (
            volume(tmp_path / "volume", 32 << 20) as place,
            Engine.open(place / "store", schema=store_v1.SCHEMA, clock="event", segment_bytes=4096) as engine,
        ):
            for sequence in range(1, 20):
                store_v1.send(engine, sequence, [f"account {sequence} {i}" for i in range(300)])
            engine.checkpoint()
            other = store_v1.SCHEMA.replace("seconds: number}", "seconds: number, free: bool}")
            changes = [
                lambda: store_v1.send(engine, 20, [f"another {i}" for i in range(300)]),
                lambda: engine.apply_schema(other),
                lambda: engine.forget({"account": "account 1 1"}),
                lambda: engine.backup(place / "backup"),
            ]
            fill(place / "stranger")
            for change in changes:
                with pytest.raises(LimitError):
                    change()
                assert not engine.failed
            assert not (place / "backup").exists()
            (place / "stranger").unlink()
            for change in changes:
                until(lambda change=change: succeeds(change))

    def test_a_stranger_who_fills_the_disk_under_writes_costs_nothing(self, tmp_path: Path) -> None:
        """Accepted for as long as what is set aside can hold it, then refused, and never failed."""
        with volume(tmp_path / "volume", 32 << 20) as place:
            with Engine.open(place / "store", schema=store_v1.SCHEMA, clock="event") as engine:
                engine.start_upkeep()
                fill(place / "stranger")
                for sequence in range(1, 300):
                    n_free = 0
                    while not succeeds(
                        lambda s=sequence: store_v1.send(engine, s, [f"{s} {i}" for i in range(200)])
                    ):
                        assert not engine.failed, engine.failure
                        n_free += 1
                        if n_free == 5:
                            (place / "stranger").unlink(missing_ok=True)
                        time.sleep(0.02)
                digest = engine.state.digest()
                assert engine.state.position == 299 * 200 + 1
            with Engine.open(place / "store") as engine:
                assert engine.state.digest() == digest


class TestNoDescriptors:
    def test_without_a_descriptor_left_writes_wait_and_nothing_is_given_up(self, path: Path) -> None:
        program = subprocess.run(
            [sys.executable, "-c", WITHOUT_DESCRIPTORS, str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert program.returncode == 0, program.stderr
        assert program.stdout == "refused 4, then all went through\n"


#: Needs an own process: the limit is the whole process's.
WITHOUT_DESCRIPTORS = """
import os, resource, sys, time
from pathlib import Path
from storage import store_ids, store_v1
from featurestore.engine import Engine
from featurestore.errors import LimitError, StorageError

path = Path(sys.argv[1])
import numpy.ma, shutil  # before there is no descriptor left
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with Engine.open(path, segment_bytes=4096) as engine:
    engine.start_upkeep(checkpoint_every_s=0.1)
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    changes = [
        lambda: [store_v1.send(engine, n, [str(i) for i in range(100)]) for n in (3, 4)],
        lambda: engine.apply_schema(store_v1.SCHEMA.replace("number}", "number, free: bool}")),
        lambda: engine.forget({"account": "anna"}),
        lambda: engine.backup(path.parent / "backup"),
    ]
    refused = 0
    for change in changes:
        try:
            change()
        except (LimitError, StorageError):
            refused += 1
    time.sleep(1)
    assert not engine.failed, engine.failure
    for fd in taken:
        os.close(fd)
    deadline = time.monotonic() + 20
    for change in changes:
        while True:
            try:
                change()
                break
            except LimitError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    engine.checkpoint()
    digest = engine.state.digest()
with Engine.open(path) as engine:
    assert engine.state.digest() == digest
print(f"refused {refused}, then all went through")
"""


class TestFailedDisk:
    def test_a_checkpoint_that_fails_ends_writes_and_reads_go_on(self, path: Path) -> None:
        with Engine.open(path) as engine:
            told: list[Exception] = []
            engine.start_upkeep(checkpoint_every_s=0.0, on_failure=told.append)
            failpoint.arm("checkpoint.mid=eio")
            store_v1.send(engine, 3, ["bert"])
            until(lambda: bool(told))
            with pytest.raises(StorageError, match="restart"):
                store_v1.send(engine, 4, ["bert"])
            assert engine.failed
            assert store_v1.answers(engine)["account.count_lifetime"] == [7.0, 7.0, 0.0]
            with pytest.raises(StorageError):
                engine.forget({"account": "anna"})
        with Engine.open(path) as engine:
            assert store_v1.answers(engine)["account.count_lifetime"] == [7.0, 7.0, 0.0]

    def test_a_journal_that_fails_is_told(self, path: Path) -> None:
        with Engine.open(path) as engine:
            told: list[Exception] = []
            engine.start_upkeep(on_failure=told.append)
            failpoint.arm("journal.before_sync=eio")
            with pytest.raises(StorageError, match="failed"):
                store_v1.send(engine, 3, ["bert"])
            until(lambda: bool(told))
            with pytest.raises(StorageError):
                store_v1.send(engine, 3, ["bert"])

    def test_a_schema_that_was_journaled_and_not_served_ends_writes(self, path: Path) -> None:
        wider = store_v1.SCHEMA.replace("[10m]", "[10m, 1h]")
        with Engine.open(path) as engine:
            failpoint.arm("schema.journaled=eio")
            with pytest.raises(StorageError):
                engine.apply_schema(wider)
            with pytest.raises(StorageError):
                store_v1.send(engine, 3, ["bert"])
        with Engine.open(path) as engine:
            assert engine.state.plan.version == 2
            store_v1.send(engine, 3, ["bert"])


class TestReplay:
    def test_a_store_without_events_recovers_none(self, tmp_path: Path) -> None:
        Engine.open(tmp_path / "new", schema=store_v1.SCHEMA).close(checkpoint=False)
        with Engine.open(tmp_path / "new") as engine:
            assert (engine.recovered.frames, engine.recovered.events) == (1, 0)

    def test_tables_ahead_of_the_first_batches_end_up_the_same(self, path: Path) -> None:
        # A checkpoint's producers are copied after its cut: what is replayed first may be long past for them.
        sent = [(1, 5), (1, 5000), (1, 4400), (2, 1), (2, 1500), (2, 3000)]
        with Engine.open(path) as engine:
            engine.checkpoint()
            for epoch, sequence in sent:
                data = {"at": [store_v1.START_MS], "play_id": [f"{epoch}/{sequence}"], "account": ["anna"]}
                batch = store_v1.batch(engine, {**data, "seconds": [1.0]})
                engine.observe(batch, producer=b"ahead", epoch=epoch, sequence=sequence)
            digest, (head, records) = engine.state.digest(), engine.state.copy_producers()
            position = engine.checkpoint_position
            store_id = engine.directory.identity.id_bytes
        with RowStore.open(path / "rows", store_id=store_id, create=False) as rows:
            rows.begin()
            rows.put_meta("producers", head)
            rows.write_shard(PRODUCERS_SHARD, records, position)
            rows.commit()
        with Engine.open(path) as engine:
            assert engine.recovered.events == len(sent)
            assert engine.state.digest() == digest

    def test_a_batch_whose_columns_are_of_other_kinds_than_the_schemas_is_refused(self, path: Path) -> None:
        with Engine.open(path) as engine:
            event_id = engine.state.plan.events[0].event_id
            position = engine.state.position + 1
            numbers = [[1.0], [1.0], [1.0]]  # the first two are texts in the schema
            body = frame.batch_body([0], [store_v1.START_MS], numbers, event_id=event_id)
            engine.journal.append(journal.BATCH, body, n_positions=1, schema_version=1)
            engine.journal.sync()
        with pytest.raises(CorruptRecordError, match=f"position {position} does not have the columns"):
            Engine.open(path)


class Interrupting:
    """A plan listener during whose first preparation of a change something happens."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what, self.prepared = what, 0

    def prepare(self, plan: Plan) -> Plan:
        self.prepared += 1
        if self.prepared == 2:
            self.what()
        return plan

    def adopt(self, prepared: Plan) -> None:
        self.adopted = prepared


class TestSchemaChange:
    WIDER = store_v1.SCHEMA.replace("[10m]}", "[10m, 3h]}")
    FRESH = "  fresh: {event: play, key: account, windows: [10m], features: [count]}\nservices:"
    WIDER_AND_FRESH = WIDER.replace("services:", FRESH)
    KEPT_MS = 4_200_000  # 10 m and an hour of lateness

    def test_what_batches_made_the_store_drop_while_a_plan_was_made_is_not_promised(self, path: Path) -> None:
        late_ms = store_v1.START_MS + 10 * 86_400_000
        with Engine.open(path) as engine:
            data = {"at": [late_ms], "play_id": ["far"], "account": ["anna"], "seconds": [1.0]}
            listener = Interrupting(lambda: engine.observe(store_v1.batch(engine, data)))
            engine.add_plan_listener(listener)
            plan = engine.apply_schema(self.WIDER_AND_FRESH)
            assert plan.views[0].floor_ms == late_ms - self.KEPT_MS
            assert [view.since_ms for view in plan.views] == [None, late_ms + 1]
            assert listener.adopted is plan is engine.state.plan
        with Engine.open(path) as engine:
            assert engine.state.plan == plan

    def test_on_a_wall_clock_a_view_has_seen_what_comes_after_all_that_may_have_come(
        self, tmp_path: Path
    ) -> None:
        with Engine.open(tmp_path / "store", schema=store_v1.SCHEMA) as engine:
            now_ms = int(time.time() * 1000)
            data = {"at": [now_ms + 5_000], "play_id": ["1"], "account": ["anna"], "seconds": [1.0]}
            assert engine.observe(store_v1.batch(engine, data))[1]
            engine.add_plan_listener(Interrupting(lambda: time.sleep(1.2)))
            plan = engine.apply_schema(self.WIDER_AND_FRESH)
            served_ms = int(time.time() * 1000)
            wider, fresh = plan.views
            assert wider.since_ms is None
            assert wider.floor_ms is not None and fresh.since_ms is not None
            assert served_ms <= fresh.since_ms - 10_001 <= served_ms + 5_000
            assert wider.floor_ms == fresh.since_ms - 10_001 - self.KEPT_MS

    def test_each_event_type_has_its_own_now_on_the_event_clock(self, path: Path) -> None:
        other = """\
  skip:
    time: {field: at, unit: ms}
    fields: {account: key}
views:
  skips: {event: skip, key: account, windows: [10m], features: [count]}
"""
        both = store_v1.SCHEMA.replace("views:\n", other)
        early_ms = store_v1.START_MS - 100 * 86_400_000
        with Engine.open(path) as engine:
            engine.apply_schema(both)

            def skip(at_ms: int) -> int:
                event = engine.state.plan.events[1]
                batch = EventBatch(event, 1, *event_columns(event, {"at": [at_ms], "account": ["anna"]}))
                engine.observe(batch)
                return int(batch.outcomes[0])

            assert skip(early_ms) == Outcome.ACCEPTED
            plan = engine.apply_schema(
                both.replace("key: account, windows: [10m]", "key: account, windows: [10m, 3h]")
            )
            view = next(view for view in plan.views if view.name == "skips")
            assert view.floor_ms == early_ms - self.KEPT_MS
            assert skip(early_ms + 1000) == Outcome.ACCEPTED


class TestUse:
    def test_rows_that_no_view_has_leave_the_disk(self, path: Path) -> None:
        other = store_v1.SCHEMA.replace("  account:\n    event", "  renamed:\n    event").replace(
            "plays: [account.*]", "plays: [renamed.*]"
        )

        def n_rows(engine: Engine) -> int:
            return sum(rows for shard, (rows, _) in engine.rows.sizes().items() if shard < SKETCHES)

        with Engine.open(path) as engine:
            engine.checkpoint()
            assert n_rows(engine) == 2
            engine.apply_schema(other, allow=["drop"])
        with Engine.open(path) as engine:
            engine.checkpoint()
        with Engine.open(path) as engine:
            store_v1.send(engine, 3, ["bert"])
            engine.checkpoint()
            assert n_rows(engine) == 1

    def test_rows_with_what_removed_features_kept_still_load(self, path: Path) -> None:
        """Rows that nobody touched stay on disk as they were, whatever the schema has lost since."""
        more = store_v1.SCHEMA.replace(
            "    features:\n",
            "    features:\n"
            "      - {aggregate: distinct(play_id), windows: [10m]}\n"
            "      - decayed_sum(seconds, 1h)\n",
        )
        with Engine.open(path) as engine:
            engine.apply_schema(more, allow=["order"])
            store_v1.send(engine, 3, ["anna", "bert"])
            engine.checkpoint()
            engine.apply_schema(store_v1.SCHEMA, allow=["drop", "order"])
        with Engine.open(path) as engine:
            answers = store_v1.answers(engine)
            assert answers["account.count_lifetime"] == [8.0, 7.0, 0.0]

    def test_kept_keys_can_be_listed(self, path: Path) -> None:
        with Engine.open(path) as engine:
            engine.apply_schema(store_v1.SCHEMA + "keep_keys: [account]\n")
            store_v1.send(engine, 3, ["dora", "bert"])
            engine.checkpoint()
            with pytest.raises(UnknownNameError):
                list(engine.keys(["nobody"]))
        with Engine.open(path) as engine:
            assert sorted(key["account"] for key in engine.keys(["account"])) == ["bert", "dora"]
            engine.forget({"account": "dora"})
            assert list(engine.keys(["account"])) == [{"account": "bert"}]

    def test_reads_and_schema_changes_do_not_wait_for_each_other_for_ever(self, path: Path) -> None:
        engine = Engine.open(path, durability="process")
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                store_v1.answers(engine)

        def change() -> None:
            for i in range(40):
                text = store_v1.SCHEMA + ("" if i % 2 else "  more: [account.*]\n")
                engine.apply_schema(text, allow=["drop"])

        readers = [threading.Thread(target=read, daemon=True) for _ in range(3)]
        changes = threading.Thread(target=change, daemon=True)
        for thread in [*readers, changes]:
            thread.start()
        changes.join(WAIT_S)
        assert not changes.is_alive(), "a reader waits for a writer that waits for it"
        stop.set()
        for thread in readers:
            thread.join()
        assert engine.state.plan.version == 41
        engine.close()

    def test_a_journal_above_its_cap_is_checkpointed(self, path: Path) -> None:
        with Engine.open(path, segment_bytes=4096) as engine:
            engine.start_upkeep(checkpoint_every_s=3600, checkpoint_journal_bytes=20_000)
            for sequence in range(3, 400):
                store_v1.send(engine, sequence, ["bert"] * 20)
            until(lambda: engine.stats()["journal_bytes"] <= 28_192)
            assert engine.checkpoint_position > 16

    def test_closing_beside_writers_loses_nothing_acknowledged(self, path: Path) -> None:
        engine = Engine.open(path)
        acknowledged = [0] * 3
        answers: list[str] = []

        def write(thread: int) -> None:
            event = {"account": ["dora"], "seconds": [1.0]}
            for number in range(100_000):
                data = {"at": [store_v1.START_MS + number], "play_id": [f"{thread}-{number}-close"], **event}
                try:
                    engine.observe(store_v1.batch(engine, data))
                except StorageError as error:
                    answers.append(str(error))
                    return
                acknowledged[thread] += 1

        threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: min(acknowledged) > 20)
        engine.close(checkpoint=True)
        for thread in threads:
            thread.join()
        assert answers == ["the store is closed"] * 3
        with pytest.raises(StorageError, match="closed"):
            engine.checkpoint()
        with pytest.raises(StorageError, match="closed"):
            engine.forget({"account": "dora"})
        with pytest.raises(StorageError, match="closed"):
            engine.apply_schema(store_v1.SCHEMA)
        engine.close()
        with Engine.open(path) as again:
            assert again.state.position == 16 + sum(acknowledged)

    def test_a_batch_made_for_another_schema_is_refused(self, path: Path) -> None:
        with Engine.open(path) as engine:
            data = {"at": [store_v1.START_MS], "play_id": ["x"], "account": ["anna"], "seconds": [1.0]}
            batch = store_v1.batch(engine, data)
            engine.apply_schema(store_v1.SCHEMA.replace("seconds: number}", "seconds: number, free: bool}"))
            with pytest.raises(InvalidEventError, match="make it again"):
                engine.observe(batch)

    def test_shortages_are_told_from_errors_of_disks(self) -> None:
        def caused_by(code: int) -> StorageError:
            error = StorageError("outer")
            error.__cause__ = OSError(code, os.strerror(code))
            return error

        for code in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            assert is_shortage(caused_by(code))
        assert not is_shortage(caused_by(errno.EIO))


def test_memory_of_rows_that_fills_is_told_before_it_is_full(tmp_path: Path) -> None:
    cap = 16 << 20
    told: list[tuple[str, int, int]] = []
    with Engine.open(
        tmp_path / "store", schema=store_v1.SCHEMA, clock="event", n_shards=1, max_memory_bytes=cap
    ) as engine:
        engine.start_upkeep(on_filling=lambda *facts: told.append(facts))
        for first in range(0, 1 << 20, 4096):
            ids = [f"{first + i}" for i in range(4096)]
            data = {"at": [store_v1.START_MS] * 4096, "play_id": ids, "account": ids, "seconds": [1.0] * 4096}
            batch = store_v1.batch(engine, data)
            engine.observe(batch)
            if batch.shed.any():
                break
        assert not batch.outcomes.any()
        until(lambda: bool(told))
        assert engine.stats()["max_memory_bytes"] == cap
    ((what, used, limit),) = told
    assert (what, limit) == ("max_memory", cap)
    assert used * 5 >= cap * 4


def test_memory_that_fills_is_told_at_four_fifths_and_again_after_it_was_half_empty(path: Path) -> None:
    def write(name: bytes) -> None:
        data = {"at": [store_v1.START_MS], "play_id": [repr(name)], "account": ["anna"], "seconds": [1.0]}
        engine.observe(store_v1.batch(engine, data), producer=name, sequence=1)

    told: list[tuple[str, int, int]] = []
    cap = 20 * 200  # of each kind of name
    with Engine.open(path, producer_memory_bytes=2 * cap, dedupe_memory_bytes=36 * 1000) as engine:
        engine.start_upkeep(on_filling=lambda *facts: told.append(facts))
        for turn in (1, 2):
            for i in range(18):
                write(b"given-%02d" % i)
                write(b"client-%016x" % i if turn == 1 else b"given-%02d" % i)
            until(lambda n=turn: len(told) > n)  # of made-up names once
            for i in range(18):
                engine.drop_producer(f"given-{i:02}")
            until(lambda: engine.state.memories["producer_memory of given names"][0] * 2 < cap)
            threading.Event().wait(0.5)
    names = [what for what, _, _ in told]
    assert sorted(names) == [
        "producer_memory of given names",
        "producer_memory of given names",
        "producer_memory of made-up names",
    ]
    assert all(cap * 4 <= used * 5 and limit == cap for _, used, limit in told)
