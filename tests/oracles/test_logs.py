"""Two server logs against SQL: web requests of which 94 % come late, and ssh logins under `where` filters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
from reference.engine import Engine

from oracles.sql import arrival_order

MINUTE_MS = 60_000
WINDOWS_MS = {"1m": MINUTE_MS, "10m": 10 * MINUTE_MS, "1h": 60 * MINUTE_MS}

ACCESS = """
version: 1
name: web
events:
  request:
    time: {field: ts, unit: iso}
    lateness: 10m
    fields: {client_ip: key, status: number, bytes: number}
views:
  ip:
    event: request
    key: {ip: client_ip}
    windows: [1m, 10m, 1h]
    exact_events: 4096
    features: [count, sum(bytes), {name: missing, aggregate: count, where: "status >= 400"}]
services:
  all: [ip.*]
"""

SSH = """
version: 1
name: ssh
events:
  login:
    time: {field: ts, unit: iso}
    fields: {src_ip: key, username: key, event: string}
views:
  ip:
    event: login
    key: {ip: src_ip}
    windows: [1m, 10m, 1h]
    exact_events: 4096
    features:
      - {name: failed, aggregate: count, where: "event in ('failed', 'invalid_user')"}
      - {name: ok, aggregate: count, where: "not (event != 'accepted')"}
services:
  all: [ip.*]
"""


def test_late_web_requests_are_counted_at_their_own_time(
    data_file: Callable[[str], Path], measured: Callable[[str], None]
) -> None:
    connection = duckdb.connect()
    connection.execute(
        f"""CREATE VIEW requests AS SELECT seq, strftime(ts, '%Y-%m-%dT%H:%M:%SZ') AS ts, epoch_ms(ts) AS t,
            client_ip, CAST(status AS DOUBLE) AS status, CAST(bytes AS DOUBLE) AS bytes
            FROM read_csv('{data_file("access_log.csv.gz")}', types = {{'ts': 'TIMESTAMP'}})"""
    )
    connection.execute(
        "CREATE VIEW events AS SELECT seq, t, client_ip AS key, bytes AS x, status FROM requests"
    )
    every = arrival_order(connection, WINDOWS_MS, lateness_ms=10 * MINUTE_MS)
    missing = arrival_order(connection, WINDOWS_MS, lateness_ms=10 * MINUTE_MS, where="e.status >= 400")
    late = every["t"] < every["now"]
    assert late.mean() > 0.9

    table = connection.sql("SELECT ts, client_ip, status, bytes FROM requests ORDER BY seq").to_arrow_table()
    outcomes, vectors = Engine(ACCESS).submit("request", table, "all")
    assert vectors is not None
    assert not any(outcomes)
    truths = {"count": (every, "n"), "sum_bytes": (every, "sum"), "missing": (missing, "n")}
    for j, name in enumerate(vectors.names):
        feature, window = name.removeprefix("ip.").rsplit("_", 1)
        oracle, what = truths[feature]
        assert np.array_equal(vectors.values[:, j], oracle.truth(what, window)), name
        assert np.array_equal(vectors.lower[:, j], vectors.upper[:, j]), name
    measured(f"access log: {late.mean():.1%} of rows late, {vectors.values.size:,} values equal SQL's")


def test_filtered_ssh_logins_are_counted_as_sql_counts_them(data_file: Callable[[str], Path]) -> None:
    connection = duckdb.connect()
    connection.execute(
        f"""CREATE VIEW logins AS SELECT line AS seq, strftime(ts, '%Y-%m-%dT%H:%M:%S') AS ts,
            epoch_ms(ts) AS t, src_ip, username, event
            FROM read_csv('{data_file("ssh_auth.csv")}', types = {{'ts': 'TIMESTAMP'}})"""
    )
    connection.execute(
        "CREATE VIEW events AS SELECT seq, t, src_ip AS key, CAST(NULL AS DOUBLE) AS x, event FROM logins"
    )
    conditions = {"failed": "e.event IN ('failed', 'invalid_user')", "ok": "e.event = 'accepted'"}
    oracles = {
        name: arrival_order(connection, WINDOWS_MS, lateness_ms=60 * MINUTE_MS, where=condition)
        for name, condition in conditions.items()
    }
    table = connection.sql("SELECT ts, src_ip, username, event FROM logins ORDER BY seq").to_arrow_table()
    outcomes, vectors = Engine(SSH).submit("login", table, "all")
    assert vectors is not None
    assert np.array_equal(np.array(outcomes) == 0, oracles["ok"].accepted())
    for j, name in enumerate(vectors.names):
        feature, window = name.removeprefix("ip.").rsplit("_", 1)
        truth = oracles[feature].truth("n", window)
        assert np.array_equal(vectors.values[:, j], truth, equal_nan=True), name
        assert feature == "failed" or np.nansum(truth) > 0
