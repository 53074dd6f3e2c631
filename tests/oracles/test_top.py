"""Heaviest values of real events against SQL: ports per attacker, attackers per honeypot, pages per channel.

Events go in in file order, as a shard would take them; after every so many, the key of the one just fed is
read at its time, over three windows, and compared with DuckDB's count of every value: the list equal where it
says exact, each count within its bounds where not, nothing outside the list above what is stated. The run's
summary says how wide the bounds were.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray

from featurestore.core.hashing import sip64
from featurestore.core.top import Tops, Window

HOUR_MS = 3_600_000
K = 10
SECRET = bytes(range(16))


@dataclass(frozen=True)
class Case:
    """One file's question: SQL for (seq, t, key, value), the windows, and how often to read."""

    name: str
    file: str
    sql: str
    windows_ms: tuple[int, ...]
    every: int
    lateness_ms: int = HOUR_MS

    @property
    def keep_ms(self) -> int:
        return max(self.windows_ms) + self.lateness_ms


HONEYPOT = "honeypot_2013_spring.parquet"
SQL_HONEYPOT = """SELECT seq, epoch_ms(ts) AS t, {key} AS key, CAST({value} AS VARCHAR) AS value
                  FROM read_parquet('{{file}}') WHERE {key} IS NOT NULL AND {value} IS NOT NULL"""
SPANS_MS = (HOUR_MS, 24 * HOUR_MS, 168 * HOUR_MS)
CASES = [
    Case("ports per ip", HONEYPOT, SQL_HONEYPOT.format(key="src_ip", value="dst_port"), SPANS_MS, 61),
    Case("ips per host", HONEYPOT, SQL_HONEYPOT.format(key="host", value="src_ip"), SPANS_MS, 499),
    Case(
        "pages per channel",
        "wikiticker_2015-09-12.csv.gz",
        "SELECT seq, epoch_ms(time) AS t, channel AS key, page AS value FROM read_csv('{file}')",
        (HOUR_MS, 6 * HOUR_MS, 24 * HOUR_MS),
        97,
    ),
    Case(
        "users per channel",
        "wikiticker_2015-09-12.csv.gz",
        "SELECT seq, epoch_ms(time) AS t, channel AS key, \"user\" AS value FROM read_csv('{file}')",
        (HOUR_MS, 6 * HOUR_MS, 24 * HOUR_MS),
        97,
    ),
]
IN_MEMORY: dict[str, tuple[duckdb.DuckDBPyConnection, dict[tuple[int, int], Counter[str]]]] = {}


def truth_of(case: Case, path: Path) -> tuple[duckdb.DuckDBPyConnection, dict[tuple[int, int], Counter[str]]]:
    """The events as a table `arrived`, and the count of every value per (row read, window)."""
    if case.name not in IN_MEMORY:
        connection = duckdb.connect()
        connection.execute(f"CREATE TABLE events AS {case.sql.format(file=path)}")
        connection.execute(
            f"""CREATE TABLE arrived AS
                SELECT row_number() OVER (ORDER BY seq) - 1 AS place, t, key, value,
                       now - {case.keep_ms} AS horizon
                FROM (SELECT *, max(t) OVER (ORDER BY seq) AS now FROM events)"""
        )
        truth: dict[tuple[int, int], Counter[str]] = {}
        for window_ms in case.windows_ms:
            counted = connection.execute(
                f"""SELECT p.place, e.value, count(*)
                    FROM arrived AS p JOIN arrived AS e ON e.key = p.key AND e.place <= p.place
                    WHERE p.place % {case.every} = 0 AND e.t > p.t - {window_ms} AND e.t <= p.t
                      AND e.t >= p.horizon AND e.t >= e.horizon
                    GROUP BY ALL ORDER BY ALL"""
            ).fetchall()
            for at, value, n in counted:
                truth.setdefault((at, window_ms), Counter())[value] = n
        IN_MEMORY[case.name] = connection, truth
    return IN_MEMORY[case.name]


def fed(
    case: Case, connection: duckdb.DuckDBPyConnection, tops_of: Callable[[int], Tops]
) -> tuple[Tops, list[tuple[int, list[Window]]]]:
    """Feeds everything; the reads, as (row, a Window per window)."""
    rows = connection.execute("SELECT t, key, value, horizon FROM arrived ORDER BY place").fetchnumpy()
    keys: NDArray[np.int64]
    names, keys = np.unique(rows["key"].astype(str), return_inverse=True)
    texts = [value.encode() for value in rows["value"]]
    hashes_of = {text: sip64(SECRET, text) for text in set(texts)}
    hashes = np.array([hashes_of[text] for text in texts], np.uint64)
    offsets = np.array([0, *itertools.accumulate(map(len, texts))], np.uint32)
    joined = np.frombuffer(b"".join(texts), np.uint8)
    times, horizons = rows["t"].astype(np.int64), rows["horizon"].astype(np.int64)
    which, windows_ms = keys.astype(np.uint32), np.array(case.windows_ms, np.int64)
    tops = tops_of(len(names))
    reads = []
    start = 0
    for at in range(0, len(texts), case.every):
        part = slice(start, at + 1)
        lost = tops.add(
            which[part], hashes[part], offsets[start : at + 2], joined, times[part], horizons[part]
        )
        assert lost == 0
        start = at + 1
        reads.append((at, tops.read(int(which[at]), int(times[at]), int(horizons[at]), windows_ms)))
    return tops, reads


def entropy(counts: list[int]) -> float:
    total = sum(counts)
    return -sum(n / total * math.log2(n / total) for n in counts)


@pytest.mark.parametrize("exact_events", [256, 32])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lists_are_sqls_where_exact_and_within_bounds_where_not(
    case: Case, data_file: Callable[[str], Path], measured: Callable[[str], None], exact_events: int
) -> None:
    connection, truth = truth_of(case, data_file(case.file))
    tops, reads = fed(
        case,
        connection,
        lambda n: Tops(n, k=K, n_counters=96, exact_events=exact_events, max_error=0.1),
    )
    n_exact, widths, rests, shares, kept = 0, [], [], [], []
    for at, windows in reads:
        for window_ms, window in zip(case.windows_ms, windows, strict=True):
            counts = truth[at, window_ms]
            n, top = counts.total(), [count for _, count in counts.most_common(K)]
            listed = {}
            for value in window.listed:
                assert value.text is not None and value.hash == sip64(SECRET, value.text)
                listed[value.text.decode()] = value
                assert value.lower <= counts[value.text.decode()] <= value.upper
            assert window.total[1] <= n <= window.total[2]
            assert all(count <= window.rest_upper for value, count in counts.items() if value not in listed)
            assert window.share[1] <= top[0] / n <= window.share[2]
            assert window.entropy[1] - 1e-12 <= entropy(top) <= window.entropy[2] + 1e-12
            if window.exact:
                n_exact += 1
                assert [value.lower for value in window.listed] == top
                assert all(value.lower == value.upper for value in window.listed)
                assert window.total == (n, n, n) and window.share[0] == top[0] / n
                assert window.rest_upper == max([c for v, c in counts.items() if v not in listed], default=0)
            else:
                assert n > exact_events // 2
                # Of the true heaviest, whether listed or not: how much is left open, of the window's events.
                for text, _ in counts.most_common(K):
                    value = listed.get(text)
                    widths.append((value.upper - value.lower if value else window.rest_upper) / n)
                rests.append(window.rest_upper / n)
                shares.append(window.share[2] - window.share[1])
                kept.append(sum(counts[text] for text in listed) / sum(top))
    assert n_exact > 0 and widths
    measured(
        f"top {case.name} ({exact_events}): {n_exact:,} lists exact, {len(rests):,} bounded: width of a "
        f"true heaviest p50 {np.median(widths):.2%}, p99 {np.quantile(widths, 0.99):.2%} of the window; "
        f"unlisted at most p50 {np.median(rests):.2%}, max {max(rests):.2%}; share of the first open by p50 "
        f"{np.median(shares):.2%}; events of the listed in those of the heaviest {np.mean(kept):.1%}; "
        f"most bytes of a key {max(tops.block_bytes(i) for i in range(tops.n)):,}"
    )
