"""Event ids that memory gave up are told as those that it has: over restarts, schema changes, expiry, copies
of the store, and whatever goes on meanwhile. Where one cannot be read its event is refused, and not counted.

The oracle of what is told is a State that has memory for all ids; tests/core/test_ids.py holds that to a
dict, as tests/drills/test_ids.py does what is on the disk.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.core.state import FREED, State, split_records
from featurestore.engine import Engine
from featurestore.outcome import Outcome
from featurestore.storage import check, failpoint

SCHEMA = """
version: 1
name: ids
events:
  play:
    time: {field: ts, unit: ms}
    lateness: 10s
    ids: {id: id, dedupe: DEDUPE}
    fields: {account: key, id: string}
  skip:
    time: {field: ts, unit: ms}
    ids: {id: id, dedupe: 60s}
    fields: {account: key, id: string}
views:
  account: {event: play, key: account, windows: [10s], features: [count]}
services:
  everything: [account.*]
"""
START_MS = 1_700_000_000_000
CAP = 36 * 1_500  # of ids in memory; 4,500 ids may be on the disk
ACCEPTED, DUPLICATE, REFUSED = int(Outcome.ACCEPTED), int(Outcome.DUPLICATE), int(Outcome.REFUSED_MEMORY)


def schema_with(dedupe: str | None) -> str:
    """Without a dedupe the plays have no ids."""
    text = SCHEMA if dedupe else SCHEMA.replace("    ids: {id: id, dedupe: DEDUPE}\n", "", 1)
    return text.replace("DEDUPE", str(dedupe))


def opened(path: Path, **more: Any) -> Engine:
    more = {"schema": None, "dedupe_memory_bytes": CAP, "clock": "event", **more}
    return Engine.open(path, n_shards=2, segment_bytes=1 << 20, **more)


def made(path: Path, **more: Any) -> Engine:
    return opened(path, schema=schema_with("60s"), **more)


def sent(store: Engine | State, times: list[int], ids: list[str], event: int = 0) -> list[int]:
    """The outcomes of a batch of events that differ in time and id."""
    state = store.state if isinstance(store, Engine) else store
    declared = state.plan.events[event]
    data: dict[str, Any] = {"ts": times, "account": ["a"] * len(times), "id": ids}
    batch = EventBatch(declared, event, *event_columns(declared, data))
    if isinstance(store, Engine):
        store.observe(batch, wait=False)
    else:
        store.observe(batch)
    return [int(outcome) for outcome in batch.outcomes]


def chilled(engine: Engine, n: int = 2_400) -> list[str]:
    """Ids of which most are on the disk: all that were sent, at START_MS and up to 30 s later."""
    ids = [f"{i}" for i in range(n)]
    for at in range(0, n, 300):
        some = ids[at : at + 300]
        assert sent(engine, [START_MS + at * 30_000 // n] * len(some), some) == [ACCEPTED] * len(some)
        engine.checkpoint()
    stats = engine.stats()
    assert stats["ids"] == n and stats["ids_on_disk"] >= n * 2 // 3 and stats["id_bytes"] <= CAP
    return ids


@pytest.mark.parametrize("seed", [1, 2])
def test_they_are_told_as_by_a_state_that_has_them_all_in_memory(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    cap = 36 * 600
    engine = made(tmp_path / "store", dedupe_memory_bytes=cap)
    twin = State(engine.state.plan, clock="event", secret=engine.directory.secret, n_shards=2)
    now_ms, n, told, most_cold, reads = START_MS, 0, set(), 0, 0
    for turn in range(120):
        now_ms += rng.choice([0, 100, 1_000, 4_000]) if turn % 40 else 70_000
        back = rng.choice([10, 200, 2_000])
        ids, times = [], []
        for _ in range(rng.choice([1, 30, 70])):
            if rng.random() < 0.5:
                n += 1
                ids.append(f"{n}")
            else:
                ids.append(f"{max(0, n - rng.randrange(back))}")
            times.append(now_ms - rng.choice([0, 0, rng.randrange(90_000)]))
        event = int(rng.random() < 0.3)
        outcomes = sent(engine, times, ids, event)
        assert outcomes == sent(twin, times, ids, event), turn
        told.update(outcomes)
        if engine.state.ids_to_copy > 300 or rng.random() < 0.1:
            engine.checkpoint()
        most_cold = max(most_cold, engine.stats()["ids_on_disk"])
        reads = max(reads, engine.stats()["id_reads"])
        assert engine.stats()["id_reads_failed"] == 0
        what = rng.random()
        if what < 0.08:
            plan = engine.apply_schema(schema_with(rng.choice(["60s", "20s", "90s", None])), allow=["clock"])
            if plan is not twin.plan:
                twin.apply_plan(plan)
        elif what < 0.16:
            engine.close(checkpoint=rng.random() < 0.5)
            engine = opened(tmp_path / "store", dedupe_memory_bytes=cap)
        elif what < 0.2:
            engine.state.sweep()
            engine.rows.compact()
        assert engine.stats()["id_bytes"] <= cap
    assert {ACCEPTED, DUPLICATE} < told and REFUSED not in told
    assert most_cold > 100 and reads > 0
    engine.close()


def test_a_restart_and_a_backup_have_all_of_them_in_no_more_memory(tmp_path: Path) -> None:
    with made(tmp_path / "store") as engine:
        ids = chilled(engine)
        digest = engine.state.digest()
        engine.backup(tmp_path / "backup")
    assert list(check.verify(tmp_path / "store")) == []
    check.restore(tmp_path / "backup", tmp_path / "restored")
    for path in (tmp_path / "store", tmp_path / "restored"):
        with opened(path) as engine:
            stats = engine.stats()
            assert stats["ids_on_disk"] >= len(ids) * 2 // 3 and stats["id_bytes"] <= CAP
            assert engine.state.digest() == digest
            assert set(sent(engine, [START_MS + 30_000] * len(ids), ids)) == {DUPLICATE}
    with opened(tmp_path / "store", dedupe_memory_bytes=36 * 5_000) as engine:
        assert engine.stats()["ids_on_disk"] == 0
        assert engine.state.digest() == digest


def test_new_ids_hardly_ever_read_the_disk_and_known_ones_once(tmp_path: Path) -> None:
    with made(tmp_path / "store") as engine:
        ids = chilled(engine)
        cold = engine.stats()["ids_on_disk"]
        some = [f"new{i}" for i in range(200)]
        assert set(sent(engine, [START_MS + 30_000] * 200, some)) == {ACCEPTED}
        assert engine.stats()["id_reads"] <= 1
        assert set(sent(engine, [START_MS + 30_000] * len(ids), ids)) == {DUPLICATE}
        stats = engine.stats()
        assert cold - 1 <= stats["id_reads"] <= cold + 2 and stats["id_reads_in_vain"] <= 2
        assert sent(engine, [START_MS + 100_000] * 2, ["0", "0"]) == [ACCEPTED, DUPLICATE], "it has expired"
        assert engine.stats()["id_reads"] == stats["id_reads"]


def test_what_becomes_cold_while_a_batch_reads_is_read_as_well(tmp_path: Path) -> None:
    with made(tmp_path / "store") as engine:
        ids = chilled(engine)
        cold = engine.stats()["ids_on_disk"]
        engine.state.sweep()
        hot = [f"hot{i}" for i in range(20)]
        assert set(sent(engine, [START_MS + 31_000] * 20, hot)) == {ACCEPTED}
        with_room = [f"later{i}" for i in range(20)]
        assert set(sent(engine, [START_MS + 36_000] * 20, with_room)) == {ACCEPTED}
        engine.close(checkpoint=True)
    # With more memory, what is cold is less, and of what is hot all but the newest segment is stored.
    with opened(tmp_path / "store", dedupe_memory_bytes=36 * 3_000) as engine:
        before = engine.stats()["ids_on_disk"]
        assert 0 < before < cold
        failpoint.arm("ids.unread=eio")
        try:
            outcomes = sent(engine, [START_MS + 36_000] * 3, [hot[0], ids[0], "new"])
        finally:
            failpoint.disarm()
        stats = engine.stats()
        assert outcomes == [DUPLICATE, DUPLICATE, ACCEPTED]
        assert stats["ids_on_disk"] > before + 300 and stats["id_reads"] == 2
        assert sent(engine, [START_MS + 36_000] * 3, [hot[0], ids[0], "new"]) == [DUPLICATE] * 3


def test_where_one_cannot_be_read_its_event_is_refused_and_all_others_go_on(tmp_path: Path) -> None:
    with made(tmp_path / "store") as engine:
        ids = chilled(engine)
        first = engine.rows.read_shard(0xFFFF)[0][20:36]  # fingerprint of the oldest
        path = tmp_path / "store/rows/data.mdb"
        data, at = path.read_bytes(), -1
        with path.open("r+b") as file:
            while (at := data.find(first, at + 1)) >= 0:
                file.seek(at)
                file.write(bytes(16))
        outcomes = sent(engine, [START_MS + 30_000] * 502, [*ids[:500], "new", ids[-1]])
        assert outcomes[0] == REFUSED and set(outcomes[:500]) == {REFUSED, DUPLICATE}
        assert outcomes[500:] == [ACCEPTED, DUPLICATE]
        assert engine.stats()["id_reads_failed"] == outcomes.count(REFUSED) < 200, "those of one record"
        assert sent(engine, [START_MS + 30_000], [ids[0]]) == [REFUSED], "and never counted"


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (lambda ids: ids, DUPLICATE),
        (lambda ids: None, REFUSED),
        (lambda ids: b"", REFUSED),
        (lambda ids: ids[:-1], REFUSED),
        (lambda ids: ids[: 24 * 10], REFUSED),
        (lambda ids: ids + ids[:24], REFUSED),
        (lambda ids: ids[24:] + ids[:24], ACCEPTED),
    ],
    ids=["sound", "gone", "empty", "no whole id", "too few", "too many", "of others"],
)
def test_a_record_is_believed_only_as_far_as_it_is_one(
    tmp_path: Path, payload: Callable[[bytes], bytes | None], told: int
) -> None:
    with made(tmp_path / "store") as engine:
        ids = chilled(engine)
        record = next(iter(split_records(engine.rows.read_shard(0xFFFF)[0])))
        assert len(record) == 20 + 24 * 168
        data = payload(record[20:])
        changed = record[:16] + (FREED if data is None else len(data).to_bytes(4, "little") + data)
        engine.rows.begin()
        engine.rows.write_shard(0xFFFF, changed, engine.checkpoint_position)
        engine.rows.commit()
        assert sent(engine, [START_MS + 30_000], [ids[100]], 0) == [told]
        assert engine.stats()["id_reads_failed"] == (told == REFUSED)


def test_without_room_for_their_index_new_ids_are_refused_until_older_ones_expire(tmp_path: Path) -> None:
    with made(tmp_path / "store") as engine:
        n = 0
        for turn in range(100):
            outcomes = sent(engine, [START_MS + turn * 300] * 100, [f"{n + i}" for i in range(100)])
            engine.checkpoint()
            n += outcomes.count(ACCEPTED)
            assert engine.stats()["id_bytes"] <= CAP
            if REFUSED in outcomes:
                break
        assert REFUSED in outcomes and n > 2_000, "12 bytes each, and a segment that is being filled"
        assert engine.state.memories["dedupe_memory"][0] * 5 > CAP * 4, "which was warned of"
        assert set(sent(engine, [START_MS + 100_000] * 100, [f"{i}" for i in range(100)])) == {ACCEPTED}


def test_a_checkpoint_is_due_before_the_cap_is_met(tmp_path: Path) -> None:
    cap = 36 * 160_000
    with made(tmp_path / "store", dedupe_memory_bytes=cap) as engine:
        n, dues = 0, 0
        for turn in range(45):
            some = [f"{n + i}" for i in range(5_000)]
            assert set(sent(engine, [START_MS + turn * 1_000] * 5_000, some)) == {ACCEPTED}, turn
            n += 5_000
            if engine.state.ids_are_due:
                assert engine.stats()["id_bytes"] < cap * 4 // 5, "nobody is to be warned of it"
                engine.checkpoint()
                dues += 1
                assert not engine.state.ids_are_due
        assert 1 < dues < 15
        assert engine.stats()["ids"] == n


def test_upkeep_gives_memory_up_in_time_while_threads_repeat_themselves(tmp_path: Path) -> None:
    engine = made(tmp_path / "store", clock="wall", dedupe_memory_bytes=36 * 60_000)
    engine.start_upkeep(checkpoint_every_s=3_600)
    stop, faults = threading.Event(), []

    def send_all(number: int) -> None:
        rng, n, known = random.Random(number), 0, 0
        try:
            while n < 45_000:
                ids = [f"{number}-{n + i}" for i in range(500)]
                again = [f"{number}-{rng.randrange(n)}" for _ in range(50)] if n else []
                now_ms = int(time.time() * 1000)
                outcomes = sent(engine, [now_ms] * (len(ids) + len(again)), ids + again)
                assert outcomes == [ACCEPTED] * len(ids) + [DUPLICATE] * len(again)
                n, known = n + 500, known + len(again)
                time.sleep(0.015)
        except BaseException as fault:
            faults.append(fault)
            raise

    def rewrite() -> None:
        while not stop.wait(0.2):
            engine.forget({"account": "nobody"})  # closes the rows and opens them again

    threads = [threading.Thread(target=send_all, args=(number,)) for number in range(2)]
    threads.append(threading.Thread(target=rewrite))
    for thread in threads:
        thread.start()
    for thread in threads[:-1]:
        thread.join()
    stop.set()
    threads[-1].join()
    stats = engine.stats()
    engine.close()
    assert not faults
    assert stats["ids"] == 90_000 and stats["ids_on_disk"] > 30_000
    assert stats["id_reads"] > 0 == stats["id_reads_failed"]


@pytest.mark.parametrize("when", ["checkpoint.mid:4=kill", "checkpoint.committed:4=kill", ""])
def test_after_kill_9_every_id_that_was_acknowledged_is_told(tmp_path: Path, when: str) -> None:
    made(tmp_path / "store").close()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with opened(tmp_path / "store") as engine:
                failpoint.arm(when)
                for turn in range(14):
                    sent(engine, [START_MS + turn * 3_000] * 200, [f"{turn}-{i}" for i in range(200)])
                    engine.wait(engine.state.position)
                    os.write(writer, bytes([turn]))
                    if turn % 2:
                        engine.checkpoint()
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        turns = list(pipe.read())
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert turns[-1] == (13 if not when else 7)
    with opened(tmp_path / "store") as engine:
        assert engine.stats()["id_bytes"] <= CAP
        engine.checkpoint()
        assert engine.stats()["ids_on_disk"] > 0
        ids = [f"{turn}-{i}" for turn in turns for i in range(200)]
        assert set(sent(engine, [START_MS + 40_000] * len(ids), ids)) == {DUPLICATE}
        assert set(sent(engine, [START_MS + 40_000] * 50, [f"new{i}" for i in range(50)])) == {ACCEPTED}
