"""What is kept on disk of a clock that is changed: the frame, the checkpoint, what tools and older programs
make of them; and when a store is opened whose clock is ahead of the machine's.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import struct
import time
from pathlib import Path

import pytest
from storage import journal_v1, store_clock

from featurestore.cli import main
from featurestore.columns import text_column
from featurestore.engine import Engine
from featurestore.errors import ConfigError, ConsentError, CorruptRecordError, StorageError
from featurestore.outcome import Outcome
from featurestore.storage import failpoint
from featurestore.storage.check import inspect, verify
from featurestore.storage.checkpoint import HEAD
from featurestore.storage.frame import clock_body, parse_clock_body
from featurestore.storage.rows import RowStore

GOLDEN = Path(__file__).parent / "golden" / "store_clock_v1"
PRESENT, NOT_FOUND, WARMING = 1, 2, 3
MINUTE_MS = 60_000
HOUR_AGO_S = int(time.time()) - 3600 - store_clock.START_MS // 1000


@pytest.fixture(autouse=True)
def _disarmed() -> object:
    yield
    failpoint.disarm()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """With three events of an hour ago, which moved its clock."""
    path = tmp_path / "store"
    with Engine.open(path, schema=store_clock.SCHEMA, clock="merged", history="none", n_shards=2) as engine:
        store_clock.send(engine, HOUR_AGO_S, ["anna", "bert", "anna"])
    return path


def vector(engine: Engine, account: str) -> list[tuple[int, float]]:
    found = engine.read(0, {"account": text_column([account])[0]}, 1)
    return list(zip(found.statuses[0].tolist(), found.values[0].tolist(), strict=True))


def machine_ms() -> int:
    return time.time_ns() // 1_000_000


def pull_ahead(path: Path, by_ms: int) -> None:
    """As a machine does whose clock was so far ahead."""
    with Engine.open(path) as engine:
        engine.set_wall_clock(allow=["clock"])
        plan = engine.state.plan
        store_clock.put(engine, store_clock.as_of_wall(plan), machine_ms() + by_ms)


# -- history goes live


def test_a_store_whose_events_moved_its_clock_has_the_servers_from_then_on(store: Path) -> None:
    with Engine.open(store) as engine:
        assert engine.clock == "merged"
        assert vector(engine, "anna") == [(PRESENT, 2), (PRESENT, 2), (PRESENT, 1)]
        position, version = engine.state.position, engine.state.plan.version
        for wrong in ((), ("drop",)):
            with pytest.raises(ConsentError, match="--allow clock"):
                engine.set_wall_clock(allow=wrong)
        assert (engine.state.position, engine.clock) == (position, "merged")
        assert engine.set_wall_clock(allow=["clock"]) == position + 1
        assert engine.set_wall_clock() is None, "it has it"
        assert (engine.clock, engine.state.plan.version) == ("wall", version + 1)
        assert abs((engine.state.now_ms or 0) - machine_ms()) < MINUTE_MS
        assert vector(engine, "anna")[:2] == [(NOT_FOUND, 0), (PRESENT, 2)]
        assert store_clock.send(engine, HOUR_AGO_S + 100, ["anna"]) == [Outcome.ACCEPTED], "lifetimes take it"
        digest = engine.state.digest()
        failpoint.arm("checkpoint.mid=eio")
    assert inspect(store)["clock"] == "wall"
    failpoint.disarm()
    for _ in range(2):
        with Engine.open(store, clock="wall") as engine:
            assert (engine.clock, engine.state.digest()) == ("wall", digest)
            engine.checkpoint()
    assert inspect(store)["clock"] == "wall", "the journal may have it no more"
    assert list(verify(store)) == []
    with pytest.raises(ConfigError, match=r"has the wall clock \(it was created with the merged clock\)"):
        Engine.open(store, clock="merged")


def test_a_store_is_not_opened_with_a_clock_that_it_has_not(store: Path) -> None:
    with pytest.raises(ConfigError, match="featurestore clock wall"):
        Engine.open(store, clock="wall")


def test_the_command_changes_a_store_that_nobody_serves(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["clock", "wall", "--data", str(store)]
    for wrong in (["clock", "wall", "--allow", "clock"], [*words, "--admin", "unix:/x"]):
        assert main(wrong) == 2
        assert "--data" in capsys.readouterr().err
    assert main(words) == 1
    assert "--allow clock" in capsys.readouterr().err
    assert main([*words, "--allow", "clock"]) == 0
    assert "the store's clock is the server's from here on; position 5" in capsys.readouterr().out
    with Engine.open(store) as engine:
        assert engine.clock == "wall"


def test_a_backup_has_the_clock(store: Path, tmp_path: Path) -> None:
    with Engine.open(store) as engine:
        engine.set_wall_clock(allow=["clock"])
        store_clock.send(engine, HOUR_AGO_S + 10, ["anna"])
        engine.backup(tmp_path / "copy")
        digest = engine.state.digest()
    assert list(verify(tmp_path / "copy")) == []
    with Engine.open(tmp_path / "copy") as engine:
        assert (engine.clock, engine.state.digest()) == ("wall", digest)


@pytest.mark.parametrize("action", ["eio", "kill"])
def test_a_clock_that_was_journaled_is_there_after_a_crash(store: Path, action: str) -> None:
    child = os.fork()
    if not child:
        try:
            engine = Engine.open(store)
            failpoint.arm(f"clock.journaled={action}")
            try:
                engine.set_wall_clock(allow=["clock"])
            except StorageError:
                store_clock.send(engine, HOUR_AGO_S + 100, ["anna"])
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (action == "kill")
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL
    with Engine.open(store) as engine:
        assert engine.clock == "wall"
        assert vector(engine, "anna")[:2] == [(NOT_FOUND, 0), (PRESENT, 2)], "the event behind it was refused"


def test_a_program_that_goes_by_the_clock_of_its_making_refuses_it(store: Path) -> None:
    def fifth() -> int:
        with Engine.open(store) as engine:
            engine.checkpoint()
            head = engine.rows.get_meta(HEAD)
            assert head is not None
            return head[5]

    assert fifth() == 0
    with Engine.open(store) as engine:
        engine.set_wall_clock(allow=["clock"])
    assert fifth() == 1, "which all of them hold to be damage"


# -- one that was ahead


def test_a_store_a_little_ahead_is_opened_with_a_warning(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pull_ahead(store, 30_000)
    with caplog.at_level(logging.WARNING):
        Engine.open(store).close()
        assert caplog.messages == [], "less than a minute"
    pull_ahead(store, 5 * MINUTE_MS)
    with caplog.at_level(logging.WARNING), Engine.open(store):
        assert ["ahead of this machine's" in line for line in caplog.messages] == [True]


@pytest.mark.parametrize("ahead_ms", [11 * MINUTE_MS, 400 * 24 * 60 * MINUTE_MS])
def test_a_store_far_ahead_is_opened_only_to_be_set_back(
    store: Path, ahead_ms: int, caplog: pytest.LogCaptureFixture
) -> None:
    pull_ahead(store, ahead_ms)
    for _ in range(2):
        with pytest.raises(StorageError, match="serve --clock-back"):
            Engine.open(store)
    with caplog.at_level(logging.WARNING), Engine.open(store, clock_back=True) as engine:
        assert ["set back" in line for line in caplog.messages] == [True]
        assert abs((engine.state.now_ms or 0) - machine_ms()) < MINUTE_MS
        assert {status for status, _ in vector(engine, "anna")} == {WARMING}
        assert vector(engine, "nobody") == [(WARMING, 0)] * 3
        assert engine.history == "unknown"
        at = (machine_ms() - store_clock.START_MS) // 1000
        assert store_clock.send(engine, at, ["anna"]) == [Outcome.REFUSED_BEYOND_DEDUPE], (
            "never counted twice"
        )
        digest = engine.state.digest()
    with Engine.open(store, clock_back=True) as engine:
        assert engine.state.digest() == digest, "once"
    assert list(verify(store)) == []


def test_only_a_wall_clock_that_is_ahead_is_set_back(store: Path) -> None:
    with Engine.open(store, clock_back=True) as engine:
        with pytest.raises(ConfigError, match="merged"):
            engine.set_clock_back(allow=["clock"])
        engine.set_wall_clock(allow=["clock"])
        assert engine.set_clock_back() is None
    pull_ahead(store, 5 * MINUTE_MS)
    with Engine.open(store) as engine:
        with pytest.raises(ConsentError, match="--allow clock"):
            engine.set_clock_back()
        position = engine.state.position
        assert engine.set_clock_back(allow=["clock"]) == position + 1
        assert engine.set_clock_back() is None


# -- the format


@pytest.mark.parametrize("clock", ["wall", "event", "merged"])
def test_a_clock_body_is_what_the_format_says(clock: str) -> None:
    number = ["wall", "event", "merged"].index(clock)
    body = struct.pack("<B7xq", number, store_clock.WALL_MS) + b"{}"
    assert clock_body(clock, store_clock.WALL_MS, b"{}") == body
    assert parse_clock_body(body) == (clock, store_clock.WALL_MS, b"{}")


@pytest.mark.parametrize(
    "body",
    [b"", bytes(15), b"\3" + bytes(15), b"\0\1" + bytes(14), bytes(8) + struct.pack("<q", 1 << 62)],
)
def test_what_is_no_clock_body_is_refused(body: bytes) -> None:
    with pytest.raises(CorruptRecordError, match="clock body"):
        parse_clock_body(body)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def test_the_golden_store_is_read_as_it_was_written(golden: Path) -> None:
    assert list(verify(golden)) == []
    found = inspect(golden)
    assert (found["clock"], found["journal"]["clocks"]) == ("wall", 1)
    with Engine.open(golden) as engine:
        assert engine.recovered.frames == 1, "it was set back after the last checkpoint"
        assert (engine.clock, engine.state.now_ms) == ("wall", store_clock.BACK_MS)
        assert engine.directory.identity.clock == "event"
        assert vector(engine, "anna") == [(NOT_FOUND, 0), (WARMING, 0), (NOT_FOUND, 0)], "by now"


def test_the_golden_journal_says_which_clock(golden: Path) -> None:
    (frame,) = [each for each in journal_v1.frames(golden / "journal") if each.kind == journal_v1.CLOCK]
    assert struct.unpack_from("<B7sq", frame.body) == (0, bytes(7), store_clock.BACK_MS)
    plan = json.loads(frame.body[16:])
    seen_ms = store_clock.BACK_MS + 10_001
    assert {view["since_ms"] for view in plan["views"]} == {seen_ms}
    assert [event["dedupe_floor_ms"] for event in plan["events"]] == [seen_ms]
    assert [event["from_beginning"] for event in plan["events"]] == [False]
    windowed = next(view for view in plan["views"] if view["has_lifetime"])
    assert windowed["floor_ms"] == store_clock.WALL_MS - 70_000
    assert windowed["lifetime_floor_ms"] == store_clock.WALL_MS - windowed["lifetime_idle_ms"]


def test_the_golden_checkpoint_has_the_clock_before_and_is_marked(golden: Path) -> None:
    store_id = bytes.fromhex(inspect(golden)["store_id"])
    with RowStore.open(golden / "rows", store_id=store_id, create=False) as rows:
        head = rows.get_meta(HEAD) or b""
    assert struct.unpack_from("<IBB2sq", head) == (3, 0, 1, bytes(2), store_clock.WALL_MS)
