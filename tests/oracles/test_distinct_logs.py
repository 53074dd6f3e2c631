"""Distinct counts through the whole engine against SQL: users per page and pages per channel of a day of
Wikipedia edits, and paths per client of a web server's log, of which 94 % come late.

Exact wherever lower and upper are the same, and within the bounds elsewhere as often as the plan says. The
run's summary says how far off the estimates were and how wide the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray
from reference.engine import Engine, Vectors

HOUR_MS = 3_600_000
WINDOWS_MS = {"10m": HOUR_MS // 6, "1h": HOUR_MS, "1d": 24 * HOUR_MS}
CONFIDENCE = 0.95

EDITS = """
version: 1
name: wikipedia
events:
  edit:
    time: {field: time, unit: iso}
    fields: {channel: key, page: key, user: key}
views:
  page: {event: edit, key: page, windows: [10m, 1h, 1d], features: [distinct(user)]}
  channel: {event: edit, key: channel, windows: [10m, 1h, 1d], features: [distinct(page)]}
services:
  page: [page.*]
  channel: [channel.*]
"""

REQUESTS = """
version: 1
name: web
events:
  request:
    time: {field: ts, unit: iso}
    lateness: 10m
    fields: {client_ip: key, path: string}
views:
  ip: {event: request, key: {ip: client_ip}, windows: [10m, 1h, 1d], features: [distinct(path)]}
services:
  all: [ip.*]
"""


def compared(
    vectors: Vectors, truth: dict[str, NDArray[np.int64]], rows: NDArray[np.bool_]
) -> tuple[float, float]:
    """The share of values that are said to be exact, and of the others that are within their bounds."""
    exact, inside = [], []
    for j, name in enumerate(vectors.names):
        true = truth[name.rsplit("_", 1)[1]][rows]
        value, lower, upper = (column[rows, j] for column in (vectors.values, vectors.lower, vectors.upper))
        assert np.all((lower <= value) & (value <= upper)), name
        is_exact = lower == upper
        assert np.array_equal(value[is_exact], true[is_exact]), name
        exact.append(is_exact)
        inside.append(((lower <= true) & (true <= upper))[~is_exact])
    held = np.concatenate(inside)
    return float(np.mean(exact)), float(held.mean()) if held.size else 1.0


def test_users_per_page_and_pages_per_channel_as_range_frames_say(
    data_file: Callable[[str], Path], measured: Callable[[str], None]
) -> None:
    connection = duckdb.connect()
    connection.execute(
        """CREATE TABLE edits AS SELECT seq, time, epoch_ms(CAST(time AS TIMESTAMP)) AS t, channel, page,
           "user" FROM read_csv(?, types = {'time': 'VARCHAR'})""",
        [str(data_file("wikiticker_2015-09-12.csv.gz"))],
    )
    table = connection.sql('SELECT time, channel, page, "user" FROM edits ORDER BY seq').to_arrow_table()
    for service, key, value in (("page", "page", '"user"'), ("channel", "channel", "page")):
        frames = ", ".join(
            f"""count(DISTINCT {value}) OVER (PARTITION BY {key} ORDER BY t
                RANGE BETWEEN {ms - 1} PRECEDING AND CURRENT ROW) AS "{window}\""""
            for window, ms in WINDOWS_MS.items()
        )
        truth = connection.execute(
            f"""SELECT row_number() OVER (PARTITION BY {key}, t ORDER BY seq DESC) = 1 AS last, {frames}
                FROM edits ORDER BY seq"""
        ).fetchnumpy()
        outcomes, vectors = Engine(EDITS).submit("edit", table, service)
        assert vectors is not None and not any(outcomes)
        # A frame has all rows of its time; so has an answer after the last of them.
        exact, held = compared(vectors, truth, truth["last"].astype(bool))
        measured(
            f"wikiticker, distinct values per {service}: {exact:.2%} of values exact, "
            f"{held:.2%} of the others within their bounds ({CONFIDENCE:.0%} declared)"
        )
        assert held >= CONFIDENCE
        assert exact == 1.0 if service == "page" else 0.2 < exact < 1.0


def test_paths_per_client_are_as_a_join_says_though_most_come_late(
    data_file: Callable[[str], Path], measured: Callable[[str], None]
) -> None:
    connection = duckdb.connect()
    connection.execute(
        """CREATE TABLE requests AS SELECT seq, strftime(ts, '%Y-%m-%dT%H:%M:%SZ') AS ts, epoch_ms(ts) AS t,
           client_ip, path FROM read_csv(?, types = {'ts': 'TIMESTAMP'})""",
        [str(data_file("access_log.csv.gz"))],
    )
    frames = ", ".join(
        f"""count(DISTINCT e.path) FILTER (e.t > a.t - {ms} AND e.t <= a.t) AS "{window}\""""
        for window, ms in WINDOWS_MS.items()
    )
    truth = connection.execute(
        f"""SELECT a.seq, max(e.t) > a.t AS passed, {frames} FROM requests AS a
            JOIN requests AS e ON e.client_ip = a.client_ip AND e.seq <= a.seq
            GROUP BY a.seq, a.t ORDER BY a.seq"""
    ).fetchnumpy()
    table = connection.sql("SELECT ts, client_ip, path FROM requests ORDER BY seq").to_arrow_table()
    outcomes, vectors = Engine(REQUESTS).submit("request", table, "all")
    assert vectors is not None and not any(outcomes)
    # Of a path that was seen again later than the time of the read, it is not known when it was seen before.
    passed = truth["passed"].astype(bool)
    assert compared(vectors, truth, ~passed)[0] == 1.0
    exact, held = compared(vectors, truth, passed)
    assert held == 1.0, "certain, since all these clients have few paths"
    measured(
        f"access log, distinct paths per client: {passed.mean():.1%} of requests come after newer ones; "
        f"{exact:.1%} of those values are exact, all within their bounds, the others are SQL's"
    )
