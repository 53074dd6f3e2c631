"""Attacks on nine honeypots in file order, where 45 % of the rows come late: the oracle for bounds.

Per address and per (address, port), with `exact_events` 256 and 32, every count, sum and mean is compared
with SQL on every row: always within its bounds, exact where nothing can have been merged, within `max_error`
where it is promised. The run's summary says how wide the bounds were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from reference.compare import Column
from reference.engine import Engine, Vectors

from oracles.sql import Oracle, arrival_order

HOUR_MS = 3_600_000
WINDOWS_MS = {"1h": HOUR_MS, "1d": 24 * HOUR_MS, "7d": 168 * HOUR_MS}
MAX_ERROR = 0.01
KEYS = {"ip": "src_ip", "pair": "src_ip || '/' || dst_port"}


def schema(exact_events: int) -> str:
    return f"""
version: 1
name: honeypot
events:
  attack:
    time: ts
    fields: {{src_ip: key, dst_port: key, src_port: number}}
views:
  ip:
    event: attack
    key: {{ip: src_ip}}
    windows: [1h, 1d, 7d]
    exact_events: {exact_events}
    features: [count, sum(src_port), mean(src_port)]
  pair:
    event: attack
    key: {{ip: src_ip, port: dst_port}}
    windows: [1h, 1d, 7d]
    exact_events: {exact_events}
    features: [count, sum(src_port), mean(src_port)]
services:
  all: [ip.*, pair.*]
"""


@pytest.fixture(scope="module")
def attacks(data_file: Callable[[str], Path]) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect()
    connection.execute(
        f"""CREATE TABLE attacks AS SELECT seq, ts, src_ip, dst_port, CAST(src_port AS DOUBLE) AS src_port
            FROM read_parquet('{data_file("honeypot_2013_spring.parquet")}')"""
    )
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def truth(attacks: duckdb.DuckDBPyConnection) -> dict[str, Oracle]:
    oracles = {}
    for view, key in KEYS.items():
        attacks.execute(
            f"""CREATE OR REPLACE VIEW events AS
                SELECT seq, epoch_ms(ts) AS t, {key} AS key, src_port AS x FROM attacks"""
        )
        oracles[view] = arrival_order(attacks, WINDOWS_MS, lateness_ms=HOUR_MS)
    return oracles


def observed(
    attacks: duckdb.DuckDBPyConnection, text: str, batch_rows: int = 10_000
) -> tuple[list[int], Vectors]:
    table: pa.Table = attacks.sql(
        "SELECT ts, src_ip, dst_port, src_port FROM attacks ORDER BY seq"
    ).to_arrow_table()
    engine, outcomes, parts = Engine(text), [], []
    for start in range(0, table.num_rows, batch_rows):
        codes, vectors = engine.submit("attack", table.slice(start, batch_rows), "all")
        assert vectors is not None
        outcomes += codes
        parts.append(vectors)
    return outcomes, Vectors.joined(parts)


@pytest.mark.parametrize("exact_events", [256, 32])
def test_every_value_is_within_its_bounds_and_as_near_as_promised(
    attacks: duckdb.DuckDBPyConnection,
    truth: dict[str, Oracle],
    measured: Callable[[str], None],
    exact_events: int,
) -> None:
    outcomes, vectors = observed(attacks, schema(exact_events))
    assert not any(outcomes)
    for j, name in enumerate(vectors.names):
        view, feature = name.split(".")
        aggregate, window = feature.split("_")[0], feature.rsplit("_", 1)[1]
        oracle = truth[view]
        must_be_exact, promised = oracle.owed(exact_events, MAX_ERROR)
        column = Column(
            f"{name} ({exact_events})",
            vectors.values[:, j],
            vectors.lower[:, j],
            vectors.upper[:, j],
            oracle.truth({"count": "n"}.get(aggregate, aggregate), window),
        )
        promised = promised if aggregate in ("count", "sum") else np.zeros_like(promised)
        assert promised.any() or aggregate == "mean"
        column.check(must_be_exact, promised, MAX_ERROR)
        # What lies before the kept span, or has no port, is not known, and not zero.
        known = oracle.columns[f"known_{window}"].astype(bool)
        assert np.array_equal(vectors.statuses[:, j] == 4, ~known)
        assert np.isnan(vectors.values[~known, j]).all()
        measured("honeypot " + column.width(promised))


def test_rows_late_by_more_than_the_lateness_are_dropped_as_sql_drops_them(
    attacks: duckdb.DuckDBPyConnection, measured: Callable[[str], None]
) -> None:
    minute_ms = 60_000
    attacks.execute(
        """CREATE OR REPLACE VIEW events AS
           SELECT seq, epoch_ms(ts) AS t, src_ip AS key, src_port AS x FROM attacks"""
    )
    oracle = arrival_order(attacks, {"5m": 5 * minute_ms}, lateness_ms=minute_ms)
    text = """
version: 1
name: honeypot
events:
  attack:
    time: ts
    lateness: 1m
    fields: {src_ip: key, dst_port: key, src_port: number}
views:
  ip:
    event: attack
    key: {ip: src_ip}
    windows: [5m]
    features: [count]
services:
  all: [ip.*]
"""
    outcomes, vectors = observed(attacks, text, batch_rows=4_096)
    assert np.array_equal(np.array(outcomes) == 0, oracle.accepted())
    assert set(outcomes) == {0, 1}
    assert np.array_equal(vectors.values[:, 0], oracle.truth("n", "5m"), equal_nan=True)
    measured(f"honeypot: {outcomes.count(1):,} rows late at 5m + 1m, as in SQL")
