"""Distinct counts of real attacks against SQL: ports and honeypots per address, addresses per honeypot.

In time order every window of every row is a RANGE frame; in file order, where 30 % of the rows with a port
come late, each row is read at its own time and compared with a join over what had arrived. Exact wherever the
answer says that it is certain and its bounds are equal, within the bounds where they are certain, and within
them as often as declared elsewhere. The run's summary says how far off the estimates were, and how wide the
bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray

from featurestore.core.distinct import DistinctCounters
from featurestore.core.hashing import sip64

HOUR_MS = 3_600_000
WINDOWS_MS = np.array([HOUR_MS, 24 * HOUR_MS, 168 * HOUR_MS], np.int64)
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
SECRET = bytes(range(16))
# What is counted of which key.
PAIRS = {
    "ports per address": ("src_ip", "dst_port"),
    "honeypots per address": ("src_ip", "host"),
    "addresses per honeypot": ("host", "src_ip"),
}


@pytest.fixture(scope="module")
def attacks(data_file: Callable[[str], Path]) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect()
    connection.execute(
        f"""CREATE TABLE attacks AS
            SELECT seq, epoch_ms(ts) AS t, src_ip, host, CAST(dst_port AS VARCHAR) AS dst_port
            FROM read_parquet('{data_file("honeypot_2013_spring.parquet")}')"""
    )
    yield connection
    connection.close()


def columns(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = connection.execute(query).fetchnumpy()
    return {name: np.ma.getdata(column) for name, column in found.items()}


def hashed(values: NDArray[Any]) -> NDArray[np.uint64]:
    unique, places = np.unique(values.astype(str), return_inverse=True)
    return np.array([sip64(SECRET, value.encode()) for value in unique], np.uint64)[places]


def numbered(keys: NDArray[Any]) -> NDArray[np.uint32]:
    return np.unique(keys.astype(str), return_inverse=True)[1].astype(np.uint32)


def checked(
    what: str, got: tuple[NDArray[Any], ...], truth: NDArray[np.int64], measured: Callable[[str], None]
) -> NDArray[np.bool_]:
    """Whether each answer is certain."""
    estimate, lower, upper, certain = got
    inside = (lower <= truth) & (truth <= upper)
    assert inside[certain].all()
    exact = certain & (lower == upper)
    assert np.array_equal(estimate[exact], truth[exact])
    assert np.all((lower <= estimate) & (estimate <= upper))
    line = f"honeypot {what}: {exact.mean():.1%} exact"
    unsure = ~certain
    if unsure.any():
        held = inside[unsure].mean()
        off = estimate[unsure] / np.maximum(truth[unsure], 1) - 1
        width = ((upper - lower) / 2)[unsure] / np.maximum(estimate[unsure], 1)
        line += (
            f"; of the others {held:.2%} within their bounds ({CONFIDENCE:.0%} declared), "
            f"error {math.sqrt(np.mean(off**2)):.2%} rms, bounds {width.mean():.2%} to each side"
        )
        assert held >= CONFIDENCE
    measured(line)
    return certain


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("exact_values", [512, 8])
def test_in_time_order_as_range_frames_say(
    attacks: duckdb.DuckDBPyConnection, measured: Callable[[str], None], pair: str, exact_values: int
) -> None:
    key, value = PAIRS[pair]
    frames = ", ".join(
        f"""count(DISTINCT {value}) OVER (PARTITION BY {key} ORDER BY t
            RANGE BETWEEN {ms - 1} PRECEDING AND CURRENT ROW) AS n_{ms}"""
        for ms in WINDOWS_MS
    )
    rows = columns(
        attacks,
        f"""SELECT {key} AS key, {value} AS value, t,
                   row_number() OVER (PARTITION BY {key}, t ORDER BY seq DESC) AS left, {frames}
            FROM attacks WHERE {key} IS NOT NULL AND {value} IS NOT NULL ORDER BY t, seq""",
    )
    keys = numbered(rows["key"])
    counters = DistinctCounters(
        int(keys.max()) + 1, keep_ms=int(WINDOWS_MS[-1]), exact_values=exact_values, z=Z
    )
    got = counters.observe(hashed(rows["value"]), rows["t"], WINDOWS_MS, keys)
    # A frame includes all rows of its time, and so does the answer after the last of them.
    last = rows["left"] == 1
    truth = np.stack([rows[f"n_{ms}"] for ms in WINDOWS_MS], axis=1)
    certain = checked(
        f"{pair} in time order ({exact_values})",
        tuple(column[last] for column in got), truth[last], measured,
    )  # fmt: skip
    if pair != "addresses per honeypot" and exact_values == 512:
        assert certain.all() and np.array_equal(got[1], got[2])  # never more values than are kept exactly
    else:
        assert not certain.all()


@pytest.mark.parametrize("exact_values", [512, 8])
def test_in_file_order_as_a_join_over_what_had_arrived_says(
    attacks: duckdb.DuckDBPyConnection, measured: Callable[[str], None], exact_values: int
) -> None:
    keep_ms = int(WINDOWS_MS[-1]) + HOUR_MS
    frames = ", ".join(
        f"count(DISTINCT e.dst_port) FILTER (e.t > a.t - {ms} AND e.t > a.now - {keep_ms} - 1) AS n_{ms}"
        for ms in WINDOWS_MS
    )
    rows = columns(
        attacks,
        f"""WITH arrived AS (
                SELECT *, t >= now - {keep_ms} AS accepted
                FROM (SELECT *, max(t) OVER (ORDER BY seq) AS now FROM attacks
                      WHERE src_ip IS NOT NULL AND dst_port IS NOT NULL)
            )
            SELECT a.seq, a.src_ip AS key, a.dst_port AS value, a.t, a.now, a.accepted, {frames}
            FROM arrived AS a
            JOIN arrived AS e ON e.src_ip = a.src_ip AND e.seq <= a.seq AND e.t <= a.t AND e.accepted
            GROUP BY ALL ORDER BY a.seq""",
    )
    keys = numbered(rows["key"])
    counters = DistinctCounters(int(keys.max()) + 1, keep_ms=keep_ms, exact_values=exact_values, z=Z)
    got = counters.observe(hashed(rows["value"]), rows["t"], WINDOWS_MS, keys)
    truth = np.stack([rows[f"n_{ms}"] for ms in WINDOWS_MS], axis=1)
    assert rows["accepted"].all()
    late = rows["t"] < rows["now"]
    assert 0.25 < late.mean() < 0.35
    checked(f"ports per address in file order ({exact_values})", got, truth, measured)
    assert counters.now_ms == rows["now"][-1]
