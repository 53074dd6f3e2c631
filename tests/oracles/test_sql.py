"""The two oracles against each other, out of order and late, before either is held against the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
from reference.naive import ACCEPTED, UNAVAILABLE, EventType, Feature, Row, Schema, Store, View

from oracles.sql import arrival_order

MINUTE_MS = 60_000
WINDOWS_MS = {"1m": MINUTE_MS, "4m": 4 * MINUTE_MS}


def test_the_naive_store_and_sql_agree_on_the_honeypot(data_file: Callable[[str], Path]) -> None:
    connection = duckdb.connect()
    connection.execute(
        f"""CREATE VIEW events AS
            SELECT seq, epoch_ms(ts) AS t, src_ip AS key, CAST(src_port AS DOUBLE) AS x
            FROM read_parquet('{data_file("honeypot_2013_spring.parquet")}')
            WHERE seq BETWEEN 160000 AND 170000"""
    )
    sql = arrival_order(connection, WINDOWS_MS, lateness_ms=MINUTE_MS)
    must_be_exact, promised = sql.owed(4, 0.2)
    rows = connection.execute("SELECT t, key, x FROM events ORDER BY seq").fetchall()

    features = tuple(
        Feature(f"{name}_{label}", name, ms, None if name == "count" else "x")
        for label, ms in WINDOWS_MS.items()
        for name in ("count", "sum", "mean")
    )
    view = View("e", {"k": "k"}, features, exact_events=4, max_error=0.2)
    kind = EventType({"k": "key", "x": "number"}, MINUTE_MS)
    store = Store(Schema({"e": kind}, {"v": view}, {"s": [f"v.{f.name}" for f in features]}))
    answers = [store.submit("e", [Row(t, {"k": key, "x": x})], "s")[0] for t, key, x in rows]

    assert np.array_equal([a.outcome == ACCEPTED for a in answers], sql.accepted())
    assert 0.01 < 1 - sql.accepted().mean() < 0.5
    for j, feature in enumerate(features):
        name, label = feature.name.split("_")
        truths = [(a.vector or [])[j] for a in answers]
        expected = sql.truth({"count": "n"}.get(name, name), label)
        assert np.array_equal(
            [t.status == UNAVAILABLE for t in truths], ~sql.columns[f"known_{label}"].astype(bool)
        )
        assert np.allclose([t.value for t in truths], expected, rtol=1e-9, atol=0, equal_nan=True), (
            feature.name
        )
        known = sql.columns[f"known_{label}"].astype(bool)
        assert np.array_equal(np.array([t.exact for t in truths])[known], must_be_exact[known])
        if name != "mean":
            assert np.array_equal(np.array([t.error is not None for t in truths])[known], promised[known])
    assert promised.any()
