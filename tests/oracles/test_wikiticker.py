"""One day of Wikipedia edits against the sums its publisher prints: by channel, and by hour of `key: []`."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from reference.compare import Column
from reference.engine import Engine, Vectors

ADDED_BY_CHANNEL = {"en": 3_045_299, "it": 711_011, "fr": 642_555, "ru": 640_698, "es": 634_670}
DELETED_BY_HOUR = (
    1761, 16208, 14543, 13101, 12040, 6399, 9036, 11409, 11616, 17509, 19406,
    16284, 18672, 30520, 18025, 26399, 24759, 19634, 17345, 19305, 22265, 16394,
)  # fmt: skip
HOUR_MS = 3_600_000
MIDNIGHT_MS = int(datetime.datetime(2015, 9, 12, tzinfo=datetime.UTC).timestamp() * 1000)
FILE = "wikiticker_2015-09-12.csv.gz"


def schema(exact_events: int) -> str:
    return f"""
version: 1
name: wikipedia
events:
  edit:
    time: {{field: time, unit: iso}}
    fields: {{channel: key, added: number, deleted: number, delta: number}}
views:
  channel:
    event: edit
    key: channel
    windows: [1h, 2d]
    exact_events: {exact_events}
    features: [count, sum(added), sum(delta), {{aggregate: sum(added), windows: [lifetime]}}]
  everything:
    event: edit
    key: []
    windows: [1h, 2d]
    exact_events: {exact_events}
    features: [count, sum(deleted), sum(delta)]
services:
  channel: [channel.*]
  everything: [everything.*]
"""


@pytest.fixture(scope="module")
def edits(data_file: Callable[[str], Path]) -> pa.Table:
    return duckdb.sql(
        """SELECT time, channel, CAST(added AS DOUBLE) AS added, CAST(deleted AS DOUBLE) AS deleted,
                  CAST(delta AS DOUBLE) AS delta
           FROM read_csv(?, types = {'time': 'VARCHAR'}) ORDER BY seq""",
        params=[str(data_file(FILE))],
    ).to_arrow_table()


def ingested(edits: pa.Table, exact_events: int) -> Engine:
    engine = Engine(schema(exact_events))
    for start in range(0, edits.num_rows, 5_000):
        assert not any(engine.submit("edit", edits.slice(start, 5_000))[0])
    return engine


def test_published_sums_per_channel_and_per_hour_are_exact_where_nothing_merged(edits: pa.Table) -> None:
    engine = ingested(edits, 65_536)
    for channel, added in ADDED_BY_CHANNEL.items():
        read = dict(engine.read("channel", {"channel": [f"#{channel}.wikipedia"]}).got(0))
        for name in ("channel.sum_added_2d", "channel.sum_added_lifetime"):
            got = read[name]
            assert (got.value, got.lower, got.upper) == (added, added, added)
    for hour, deleted in enumerate(DELETED_BY_HOUR):
        # (t - 1h, t] holds the hour's milliseconds when t is its last one.
        got = dict(engine.read("everything", {}, as_of=MIDNIGHT_MS + (hour + 1) * HOUR_MS - 1).got(0))
        sums = got["everything.sum_deleted_1h"]
        assert (sums.value, sums.lower, sums.upper) == (deleted, deleted, deleted)


def test_published_sums_are_within_bounds_and_one_percent_where_the_log_merged(
    edits: pa.Table, measured: Callable[[str], None]
) -> None:
    engine = ingested(edits, 256)
    widths = []
    for channel, added in ADDED_BY_CHANNEL.items():
        read = dict(engine.read("channel", {"channel": [f"#{channel}.wikipedia"]}).got(0))
        assert read["channel.sum_added_lifetime"].value == added
        got = read["channel.sum_added_2d"]
        assert got.lower <= added <= got.upper
        assert abs(got.value - added) <= 0.01 * added
    for hour, deleted in enumerate(DELETED_BY_HOUR):
        got = dict(engine.read("everything", {}, as_of=MIDNIGHT_MS + (hour + 1) * HOUR_MS - 1).got(0))
        sums = got["everything.sum_deleted_1h"]
        assert sums.lower <= deleted <= sums.upper
        widths.append((sums.upper - sums.lower) / deleted)
    measured(
        f"wikiticker: hourly sums read back later: width p50 {np.median(widths):.2%}, max {max(widths):.2%}"
    )


def test_each_hour_read_at_its_end_is_within_one_percent(
    edits: pa.Table, measured: Callable[[str], None]
) -> None:
    times = np.array(
        [np.datetime64(text.rstrip("Z"), "ms").astype(np.int64) for text in edits["time"].to_pylist()]
    )
    ends = np.searchsorted(times, MIDNIGHT_MS + HOUR_MS * np.arange(1, 25))
    assert (np.diff(times) >= 0).all(), (
        "the file is in order, so that each hour's end is no earlier than its events"
    )
    engine, off, start = Engine(schema(256)), [], 0
    for hour, deleted in enumerate(DELETED_BY_HOUR):
        engine.submit("edit", edits.slice(start, int(ends[hour]) - start))
        start = int(ends[hour])
        got = dict(engine.read("everything", {}, as_of=MIDNIGHT_MS + (hour + 1) * HOUR_MS - 1).got(0))
        sums = got["everything.sum_deleted_1h"]
        assert sums.lower <= deleted <= sums.upper
        assert abs(sums.value - deleted) <= 0.01 * deleted
        off.append(abs(sums.value - deleted) / deleted)
    measured(f"wikiticker: hourly sums read at the hour's end: off by at most {max(off):.3%}")


def test_signed_sums_stay_within_their_bounds_on_every_edit(
    edits: pa.Table, data_file: Callable[[str], Path], measured: Callable[[str], None]
) -> None:
    outcomes, vectors = Engine(schema(64)).submit("edit", edits, "channel")
    assert isinstance(vectors, Vectors) and not any(outcomes)
    truth = duckdb.execute(
        f"""SELECT count(*) OVER w AS n, sum(delta) OVER w AS total FROM
            (SELECT *, epoch_ms(time) AS t FROM read_csv(?, types = {{'time': 'TIMESTAMP'}}))
            WINDOW w AS (PARTITION BY channel ORDER BY t
                         RANGE BETWEEN {HOUR_MS - 1} PRECEDING AND CURRENT ROW)
            ORDER BY seq""",
        [str(data_file(FILE))],
    ).fetchnumpy()
    milliseconds = np.array(edits["time"].to_pylist())
    channels = np.array(edits["channel"].to_pylist())
    # RANGE also counts what shares the row's millisecond and came after it: those rows are not compared.
    labels = np.char.add(milliseconds, channels)
    unique, counts = np.unique(labels, return_counts=True)
    shared = np.isin(labels, unique[counts > 1])
    assert shared.mean() < 0.01
    for name, column in (("channel.count_1h", "n"), ("channel.sum_delta_1h", "total")):
        j = vectors.names.index(name)
        expected = np.where(shared, np.nan, np.ma.getdata(truth[column]).astype(np.float64))
        promised = np.full(len(expected), name == "channel.count_1h")
        compared = Column(name, vectors.values[:, j], vectors.lower[:, j], vectors.upper[:, j], expected)
        compared.check(np.zeros(len(expected), dtype=bool), promised, 0.01)
        measured("wikiticker " + compared.width(promised))
