"""Several inputs, merged by time or by arrival: what the store would have answered, bit for bit, however they
are cut."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import made
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from reference.compare import Got, disagreement
from reference.engine import Engine
from reference.naive import Store

from featurestore.core.state import State
from featurestore.errors import ConfigError, InvalidEventError
from featurestore.outcome import Outcome
from featurestore.schema import compile_schema
from featurestore.training import merging, replay, run, sorting

WORDS = {outcome.name.lower(): int(outcome) for outcome in Outcome}


def got(table: pa.Table, i: int, name: str) -> Got:
    status, value, lower, upper = (
        table[f"{name}{end}"][i].as_py() for end in (".status", "", ".lower", ".upper")
    )
    return Got(status, value, lower, upper, np.nan)


def plan_of(n_types: int, *, lifetimes: bool = True):
    return compile_schema(made.source(made.schema(n_types, lifetimes=lifetimes)))


def written(table: pa.Table) -> bytes:
    """To compare: of NaN, which equals nothing, too."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None).combine_chunks(), sink)
    return sink.getvalue().to_pybytes()


def merged_rows(events: made.Events, key: str) -> list[tuple[str, dict]]:
    """As the rules say: by key, then in the order of inputs, then of rows."""
    return sorted(
        ((name, row) for name, rows in events.items() for row in rows), key=lambda pair: pair[1][key]
    )


@pytest.mark.parametrize("n_types", [1, 2, 7])
@pytest.mark.parametrize(("lifetimes", "complete_from"), [(True, None), (False, None), (True, "beginning")])
def test_without_arrival_it_is_the_naive_store_with_one_clock(
    n_types: int, lifetimes: bool, complete_from: str | None
) -> None:
    events = made.by_time(made.made(1, n_types, 300))
    table = replay(
        {name: made.table(rows) for name, rows in events.items()}, plan_of(n_types, lifetimes=lifetimes), "s",
        emit=list(events), bounds=True, statuses=True, keep=["label"], complete_from=complete_from,
    )  # fmt: skip
    schema = made.schema(n_types, from_beginning=complete_from is not None, lifetimes=lifetimes)
    store = Store(schema, clock="merged")
    checked = 0
    found_shares = set()
    for i, (name, row) in enumerate(merged_rows(events, "ts")):
        (answer,) = store.submit(name, [made.naive_row(row)], "s")
        assert table["event"][i].as_py() == name
        assert table["label"][i].as_py() == row["label"]
        assert table["time"][i].value == row["ts"]
        assert WORDS[table["outcome"][i].as_py()] == answer.outcome
        assert answer.vector is not None
        shares = []
        for feature, truth in zip(schema.services["s"], answer.vector, strict=True):
            shares.append(0.0 if truth.status == 4 else truth.coverage if truth.status == 3 else 1.0)
            if "distinct" in feature:
                continue
            found = got(table, i, feature)
            found = Got(
                *[getattr(found, one) for one in ("status", "value", "lower", "upper")], truth.coverage
            )
            assert disagreement(truth, found) is None, (i, feature, truth, found)
            checked += 1
        assert table["coverage"][i].as_py() == pytest.approx(min(shares), abs=1e-6)
        found_shares.add(min(shares))
    assert checked > 1000
    if not lifetimes:  # some share, which nothing else hides
        assert len(found_shares) > (10 if n_types == 1 else 3)
    assert set(table["outcome"].to_pylist()) <= {"accepted", "duplicate"}  # nothing is late by merging


def live(events: made.Events, n_types: int) -> list[tuple[str, dict, int, tuple[bytes, ...]]]:
    """One Observe each on the wall's clock, which is the arrival."""
    engine = Engine(made.source(made.schema(n_types)), clock="wall", secret=bytes(16), n_shards=64)
    found = []
    for name, row in merged_rows(events, "arrived"):
        data = {field: [row[field]] for field in ("ts", "user", "ip", "x", "eid")}
        outcomes, vectors = engine.submit(name, data, "s", now_ms=row["arrived"])
        assert vectors is not None
        arrays = (
            vectors.values,
            vectors.lower,
            vectors.upper,
            vectors.statuses,
            vectors.coverage.min(axis=1),
        )
        found.append(
            (name, row, outcomes[0], tuple(np.ascontiguousarray(one[0]).tobytes() for one in arrays))
        )
    return found


def bits(table: pa.Table, i: int, names: list[str]) -> tuple[bytes, ...]:
    parts = [
        np.array([table[f"{name}{end}"][i].as_py() for name in names]).tobytes()
        for end in ("", ".lower", ".upper")
    ]
    statuses = np.array([table[f"{name}.status"][i].as_py() for name in names], np.uint8).tobytes()
    return (*parts, statuses, np.float32(table["coverage"][i].as_py()).tobytes())


@pytest.mark.parametrize("n_types", [2, 7])
@pytest.mark.parametrize("seed", [1, 2])
def test_with_arrival_it_is_the_live_store_bit_for_bit(tmp_path: Path, n_types: int, seed: int) -> None:
    events = made.made(seed, n_types, 400)
    draw = random.Random(seed)
    inputs = {name: made.cut(rows, tmp_path, name, 3, draw) for name, rows in events.items()}
    table = replay(
        inputs, plan_of(n_types), "s", arrival="arrived:ms", emit=list(events), bounds=True, statuses=True,
        keep=["label"],
    )  # fmt: skip
    expected = live(events, n_types)
    names = list(made.schema(n_types).services["s"])
    assert table.num_rows == len(expected)
    for i, (name, row, outcome, vector) in enumerate(expected):
        assert (table["event"][i].as_py(), table["label"][i].as_py()) == (name, row["label"])
        assert WORDS[table["outcome"][i].as_py()] == outcome
        assert bits(table, i, names) == vector, (i, name, row)
    seen = set(table["outcome"].to_pylist())
    assert {"accepted", "late", "duplicate", "refused_future", "refused_beyond_dedupe"} & seen == seen
    assert len(seen) >= 4


@pytest.mark.parametrize("arrival", [None, "arrived:ms"])
@pytest.mark.parametrize("n_types", [1, 2, 7])
def test_cuts_batches_threads_and_sorting_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_types: int, arrival: str | None
) -> None:
    events = made.made(3, n_types, 300)
    if arrival is None:
        events = made.by_time(events)
    draw = random.Random(n_types)
    emit = [f"e{n_types - 1}", "e0"][: 1 + (n_types > 1)]
    options = {"arrival": arrival, "emit": emit, "bounds": True, "statuses": True, "keep": ["label", "x"]}
    found = []
    for i, (n_files, threads, n_rows, spill) in enumerate(
        [(1, 1, 65536, None), (2, 2, 7, None), (7, 4, 50, None), (5, 1, 33, tmp_path), (1, 1, 9, None)]
    ):
        (folder := tmp_path / str(i)).mkdir()
        inputs = {name: made.cut(rows, folder, name, n_files, draw) for name, rows in events.items()}
        monkeypatch.setattr(run, "batch_events", lambda n_features, bounds, n=n_rows: n)
        monkeypatch.setattr("featurestore.training.sorting.MAX_RUN_BYTES", 3_000)
        monkeypatch.setattr("featurestore.training.sorting.BATCH_ROWS", 5)
        table = replay(inputs, plan_of(n_types), "s", threads=threads, spill=spill and str(spill), **options)
        found.append(written(table))
    assert len(set(found)) == 1
    assert not list(tmp_path.glob("featurestore-sort-*"))


class RowByRow:
    """A State that is given the merged rows one at a time, each as a batch of its own."""

    def __init__(self, *given: object, **options: object) -> None:
        self.state = State(*given, **options)

    def observe_merged(self, batches, which, service, *, wanted, nows_ms, bounds) -> SimpleNamespace:
        nexts = [first for _, first, _ in batches]
        nows_ms = [0] * len(which) if nows_ms is None else nows_ms.tolist()
        found = [self.state.observe(batches[0][0].part(0, 0), service, bounds=bounds, peek=True)]
        for place, is_wanted, now_ms in zip(which.tolist(), wanted.tolist(), nows_ms, strict=True):
            batch, _, peek = batches[place]
            i = nexts[place]
            nexts[place] += 1
            one = batch.part(i, i + 1)
            vectors = self.state.observe(
                one, service if is_wanted else None, now_ms=now_ms, bounds=bounds, peek=peek
            )
            batch.outcomes[i], batch.partly_late[i] = one.outcomes[0], one.partly_late[0]
            found += [] if vectors is None else [vectors]
        names = ["values", "statuses", "coverage", *(["lower", "upper"] if bounds else [])]
        joined = {name: np.concatenate([getattr(one, name) for one in found]) for name in names}
        return SimpleNamespace(**{"lower": None, "upper": None, **joined})


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("arrival", [None, "arrived:ms"])
def test_rows_that_alternate_are_answered_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, arrival: str | None, seed: int
) -> None:
    draw = random.Random(seed)
    n_types = draw.choice([2, 3, 7])
    events = made.made(seed, n_types, 300)
    if arrival is None:
        events = made.by_time(events)
    times = sorted(row["ts"] for rows in events.values() for row in rows)
    options = {"arrival": arrival, "bounds": draw.random() < 0.7, "statuses": True}
    if draw.random() < 0.5:
        options |= {"emit_from": times[60], "emit_until": times[240]}
    if seed % 3 == 0:
        options["points"] = pa.table(
            {
                "time": [draw.choice([*times, None]) for _ in range(150)],
                "user": [draw.choice(["ann", "bob", "nobody", None]) for _ in range(150)],
            }
        )
        options["points_time"] = "time:ms"
    else:
        options |= {"emit": draw.sample(list(events), 2), "keep": ["label"]}
    n_batch = draw.choice([10, 65536])
    monkeypatch.setattr(run, "batch_events", lambda n_features, bounds: n_batch)
    inputs = {name: made.table(rows) for name, rows in events.items()}
    found = replay(inputs, plan_of(n_types), "s", **options)
    monkeypatch.setattr(run, "State", RowByRow)
    expected = replay(inputs, plan_of(n_types), "s", **options)
    assert written(found) == written(expected)
    assert found.schema.metadata == expected.schema.metadata
    assert found.num_rows > 20


def test_what_is_out_of_order_is_named_or_sorted(tmp_path: Path) -> None:
    events = made.by_time(made.made(4, 2, 200))
    expected = replay({name: made.table(rows) for name, rows in events.items()}, plan_of(2), "s", emit="e1")
    mixed = {**events, "e0": sorted(events["e0"], key=lambda row: -row["ts"])}
    inputs = {name: made.cut(rows, tmp_path, name, 1, random.Random(1)) for name, rows in mixed.items()}
    with pytest.raises(InvalidEventError, match=r"row \d+: its time .*Z is before .*Z of the row before it"):
        replay(inputs, plan_of(2), "s", emit="e1")
    with pytest.raises(InvalidEventError, match=r"row \d+: its arrival .*; inputs are sorted by arrival"):
        replay(inputs, plan_of(2), "s", emit="e1", arrival="arrived:ms")
    found = replay(inputs, plan_of(2), "s", emit="e1", spill=str(tmp_path))
    assert written(found) == written(expected)
    with pytest.raises(ConfigError, match="no folder"):
        replay(inputs, plan_of(2), "s", emit="e1", spill=str(tmp_path / "none"))


def test_equal_times_are_taken_in_the_order_of_inputs_then_files_then_rows() -> None:
    def rows(*labels: str) -> pa.Table:
        return made.table(
            [{"ts": made.T0, "arrived": made.T0, "user": "ann", "label": one} for one in labels]
        )

    for order in (["e0", "e1"], ["e1", "e0"]):
        inputs = {name: [rows(f"{name}a", f"{name}b"), rows(f"{name}c")] for name in order}
        plan = compile_schema(made.source(made.schema(2)).replace("    ids: {id: eid, dedupe: 120s}\n", ""))
        table = replay(inputs, plan, "s", emit=["e0", "e1"], keep=["label"])
        assert table["label"].to_pylist() == [f"{name}{end}" for name in order for end in "abc"]


@pytest.fixture
def most_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Counts the inputs that are open at once."""
    now_open: set[int] = set()
    most = 0
    opened = run.FileStream._opened

    def counting(self):
        nonlocal most
        reader = opened(self)
        now_open.add(id(reader))
        most = max(most, len(now_open))
        close = reader.close

        def closing():
            now_open.discard(id(reader))
            close()

        reader.close = closing
        return reader

    monkeypatch.setattr(run.FileStream, "_opened", counting)
    yield lambda: most
    assert not now_open


def test_files_that_follow_each_other_are_open_one_at_a_time(tmp_path: Path, monkeypatch, most_open) -> None:
    events = made.by_time(made.made(5, 1, 300))
    paths = made.cut(events["e0"], tmp_path, "e0", 20, random.Random(5))
    monkeypatch.setattr(run, "batch_events", lambda n_features, bounds: 10)
    assert replay({"e0": paths}, plan_of(1), "s").num_rows == 300
    assert most_open() <= 3


@pytest.mark.parametrize("spill", [False, True])
def test_small_files_of_the_same_days_are_open_one_at_a_time(
    tmp_path: Path, monkeypatch, most_open, spill: bool
) -> None:
    events = made.by_time(made.made(5, 1, 400))["e0"]
    order = sorted(range(400), key=lambda i: (events[i]["ts"], i % 100, i))
    expected = replay({"e0": made.table([events[i] for i in order])}, plan_of(1), "s")
    paths = []
    for i in range(100):
        paths.append(str(tmp_path / f"{i:03}.csv"))
        pcsv.write_csv(made.table(events[i::100]), paths[i])
    monkeypatch.setattr(run, "batch_events", lambda n_features, bounds: 10)
    found = replay({"e0": paths}, plan_of(1), "s", spill=str(tmp_path) if spill else None)
    assert written(found) == written(expected)
    assert most_open() == 1


class Made:
    """A stream of sorted keys in runs of some sizes; it says of its last that it is, or does not."""

    def __init__(self, keys: list[int], size: int, *, waits: bool, tells: bool) -> None:
        self.waits = waits and bool(keys)
        self.first_key = keys[0] if self.waits else None
        self._runs = [keys[i : i + size] for i in range(0, len(keys), size)]
        self._tells = tells

    def runs(self) -> Iterator[SimpleNamespace]:
        for i, keys in enumerate(self._runs):
            is_last = self._tells and i == len(self._runs) - 1
            yield SimpleNamespace(keys=np.array(keys, np.int64), is_last=is_last, of=self)


@pytest.mark.parametrize("seed", range(150))
def test_streams_are_merged_as_sorted_would(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(merging, "BLOCK_ROWS", draw.choice([1, 7, 1000]))
    parts = []
    for _ in range(draw.randrange(1, 8)):
        begin, end = draw.choice([(0, 3), (0, 40), (20, 40), (35, 60)])
        parts.append(sorted(draw.randrange(begin, end) for _ in range(draw.randrange(30))))
    streams = [
        Made(keys, draw.choice([1, 4, 100]), waits=draw.random() < 0.6, tells=draw.random() < 0.7)
        for keys in parts
    ]
    found = []
    for block in merging.merged(streams):
        pieces = [(one, one.keys.tolist()) for one, _, _ in block.pieces]
        rows = [
            (pieces[which][1][at], streams.index(pieces[which][0].of))
            for which, at in zip(block.which.tolist(), block.at.tolist(), strict=True)
        ]
        assert [key for key, _ in rows] == block.column(lambda one, own: one.keys[own]).tolist()
        some = np.array([draw.random() < 0.5 for _ in rows])
        part = block.part(some)
        kept = [row[0] for row, is_kept in zip(rows, some.tolist(), strict=True) if is_kept]
        if kept:
            assert part.column(lambda one, own: one.keys[own]).tolist() == kept
        cut = [row for one in block.cut(3) for row in one.column(lambda one, own: one.keys[own]).tolist()]
        assert cut == [row[0] for row in rows]
        found += rows
    assert found == sorted((key, place) for place, keys in enumerate(parts) for key in keys)


def test_a_thousand_short_streams_are_few_blocks() -> None:
    streams = [Made(list(range(i, 10_000, 1000)), 100, waits=True, tells=True) for i in range(1000)]
    assert sum(1 for _ in merging.merged(streams)) < 5


@pytest.mark.parametrize("n_runs", [2, 3, 4, 9, 10, 28])
def test_no_more_runs_are_open_at_once_than_the_fan_in(tmp_path: Path, monkeypatch, n_runs: int) -> None:
    monkeypatch.setattr(sorting, "FAN_IN", 3)
    monkeypatch.setattr(sorting, "MAX_RUN_BYTES", 1)
    most = 0
    merge = sorting._merged

    def counting(files):
        nonlocal most
        most = max(most, len(files))
        return merge(files)

    monkeypatch.setattr(sorting, "_merged", counting)
    draw = random.Random(n_runs)
    keys = [[draw.randrange(9) for _ in range(5)] for _ in range(n_runs)]
    with sorting.Sorter(str(tmp_path), pa.schema([("row", pa.int64())])) as sorter:
        for i, some in enumerate(keys):
            batch = pa.record_batch({"row": pa.array(range(5 * i, 5 * i + 5), pa.int64())})
            sorter.add(np.array(some, np.int64), batch)
        found = [
            pair
            for rows in sorter.sorted()
            for pair in zip(rows.keys.tolist(), rows.batch["row"].to_pylist(), strict=True)
        ]
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) <= 3
    flat = [key for some in keys for key in some]
    assert found == sorted((key, row) for row, key in enumerate(flat))
    assert 1 < most <= 3


def test_rows_before_emit_from_are_fed_and_not_written() -> None:
    events = made.by_time(made.made(6, 2, 200))
    inputs = {name: made.table(rows) for name, rows in events.items()}
    whole = replay(inputs, plan_of(2), "s", emit="e0")
    since = events["e0"][40]["ts"]
    n = sum(row["ts"] >= since for row in events["e0"])
    some = replay(inputs, plan_of(2), "s", emit="e0", emit_from=since)
    assert written(some) == written(whole.slice(whole.num_rows - n))


def test_a_kept_column_is_null_where_an_input_has_none() -> None:
    events = made.by_time(made.made(7, 2, 60))
    inputs = {"e0": made.table(events["e0"]), "e1": made.table(events["e1"]).drop_columns(["label"])}
    table = replay(inputs, plan_of(2), "s", emit=["e0", "e1"], keep=["label"])
    for event, label in zip(table["event"].to_pylist(), table["label"].to_pylist(), strict=True):
        assert (label is None) == (event == "e1")
    with pytest.raises(InvalidEventError, match=r"no column 'lable'.* did you mean 'label'"):
        replay(inputs, plan_of(2), "s", emit=["e0", "e1"], keep=["lable"])


def test_equal_times_keep_that_order_where_a_file_begins_when_another_ends(tmp_path: Path) -> None:
    def written(name: str, *times: int) -> str:
        rows = [{"ts": made.T0 + at, "user": "ann", "label": f"{name}{at}"} for at in times]
        pq.write_table(made.table(rows), tmp_path / f"{name}.parquet")
        return str(tmp_path / f"{name}.parquet")

    inputs = {"e2": written("late", 5, 6), "e1": [written("early", 0, 5), written("next", 5, 7)]}
    table = replay(inputs, plan_of(3), "s", emit=["e1", "e2"], keep=["label"], unfed="unavailable")
    assert table["label"].to_pylist() == ["early0", "late5", "early5", "next5", "late6", "next7"]


def test_a_row_without_a_time_stays_behind_the_row_before_it() -> None:
    def rows(name: str, *times: int | None) -> pa.Table:
        return made.table(
            [
                {"ts": at and made.T0 + at, "arrived": at, "user": "ann", "label": f"{name}{i}"}
                for i, at in enumerate(times)
            ]
        )

    inputs = {"e1": rows("a", None, 10, None, 30, None), "e2": rows("b", 5, 20, 40)}
    table = replay(inputs, plan_of(3), "s", emit=["e1", "e2"], keep=["label"], unfed="unavailable")
    assert table["label"].to_pylist() == ["b0", "a0", "a1", "a2", "b1", "a3", "a4", "b2"]
    lost = table.filter(pc.is_null(table["time"]))
    assert lost["label"].to_pylist() == ["a0", "a2", "a4"]
    assert set(lost["outcome"].to_pylist()) == {"refused_no_time"}


def test_nothing_is_left_where_a_sort_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.training.sorting.MAX_RUN_BYTES", 2_000)
    monkeypatch.setattr(run, "batch_events", lambda n_features, bounds: 10)
    events = made.by_time(made.made(8, 1, 200))
    (work := tmp_path / "work").mkdir()
    reader = replay({"e0": made.table(events["e0"])}, plan_of(1), "s", spill=str(work), stream=True)
    reader.read_next_batch()
    assert list(work.iterdir())  # it sorts on the disk
    del reader
    gc.collect()
    assert not list(work.iterdir())
