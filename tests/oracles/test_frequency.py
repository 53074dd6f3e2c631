"""Sketches of real traffic against SQL: attacks by address and port, and characters added by author and page.

Every event is observed, and each window of its pair is compared with a RANGE frame: the value is never below
it, the lower bound above it as seldom as declared, and the value further above a frame that is one slice
longer than epsilon of all that came in that frame as seldom as declared. The run's summary says how often and
how far.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray
from reference.engine import Engine, Vectors

EPSILON, DELTA = 0.002, 0.05
N_BATCH = 20_000
HOUR_MS = 3_600_000

HONEYPOT = """
SELECT epoch_ms(ts) AS t, src_ip AS a, CAST(dst_port AS VARCHAR) AS b, 1.0 AS x
FROM read_parquet('{file}') WHERE src_ip IS NOT NULL AND dst_port IS NOT NULL
"""
WIKITICKER = """
SELECT epoch_ms(CAST(time AS TIMESTAMP)) AS t, "user" AS a, page AS b, CAST(added AS DOUBLE) AS x
FROM read_csv('{file}', types = {{'time': 'VARCHAR'}}) WHERE "user" <> '' AND page <> ''
"""
SOURCES = {
    "honeypot": ("honeypot_2013_spring.parquet", HONEYPOT, (1, 24, 168)),
    "wikiticker": ("wikiticker_2015-09-12.csv.gz", WIKITICKER, (1, 6)),
}


def schema(hours: tuple[int, ...]) -> str:
    windows = ", ".join(f"{each}h" for each in hours)
    return f"""
version: 1
name: pairs
events:
  e: {{time: {{field: t, unit: ms}}, fields: {{a: key, b: key, x: number}}}}
views:
  pair:
    event: e
    key: [a, b]
    store: sketch
    epsilon: {EPSILON}
    delta: {DELTA}
    windows: [{windows}]
    features: [count, sum(x)]
services: {{s: [pair.*]}}
"""


def frame(value: str, part: str, length_ms: int) -> str:
    return f"{value} OVER ({part} ORDER BY t RANGE BETWEEN {length_ms - 1} PRECEDING AND CURRENT ROW)"


@pytest.mark.parametrize("source", SOURCES)
def test_every_event_of_a_file(
    data_file: Callable[[str], Path], measured: Callable[[str], None], source: str
) -> None:
    name, query, hours = SOURCES[source]
    engine = Engine(schema(hours), n_shards=4)
    n_slices = engine.plan.views[0].n_slices
    frames = {}
    for hour in hours:
        ms, longer = hour * HOUR_MS, hour * HOUR_MS + hour * HOUR_MS // n_slices
        for aggregate, value in (("count", "count(*)"), ("sum", "sum(x)")):
            frames[f"{aggregate}_{hour}"] = frame(value, "PARTITION BY a, b", ms)
            frames[f"{aggregate}_longer_{hour}"] = frame(value, "PARTITION BY a, b", longer)
            frames[f"{aggregate}_all_{hour}"] = frame(value, "", longer)
    listed = ", ".join(f"{value} AS {name}" for name, value in frames.items())
    rows = duckdb.sql(
        f"""WITH events AS ({query.format(file=data_file(name))}),
                 numbered AS (SELECT *, row_number() OVER (ORDER BY t) AS place FROM events)
            SELECT t, a, b, x, row_number() OVER (PARTITION BY a, b, t ORDER BY place DESC) AS left, {listed}
            FROM numbered ORDER BY place"""
    ).fetchnumpy()
    rows = {name: np.ma.getdata(column) for name, column in rows.items()}
    answers = []
    for at in range(0, rows["t"].size, N_BATCH):
        data = {name: rows[name][at : at + N_BATCH] for name in ("t", "x")}
        data |= {name: rows[name][at : at + N_BATCH].tolist() for name in ("a", "b")}
        outcomes, vectors = engine.submit("e", data, "s")
        assert not any(outcomes)
        assert vectors is not None
        answers.append(vectors)
    assert engine.state.stats()["rows"] == 0
    # A frame has all rows of its time, and so has the answer at the last of them.
    last = rows["left"] == 1
    told = Vectors.joined(answers)
    for hour in hours:
        for aggregate, feature in (("count", f"count_{hour}h"), ("sum", f"sum_x_{hour}h")):
            line = compare(told, f"pair.{feature}", rows, f"{aggregate}_%{hour}", last)
            measured(f"{source} {feature}: {line}")


def compare(
    told: Vectors, feature: str, rows: dict[str, NDArray[Any]], column: str, last: NDArray[np.bool_]
) -> str:
    j = told.names.index(feature)
    value, lower, upper = told.values[last, j], told.lower[last, j], told.upper[last, j]
    truth, longer, everything = (
        rows[column.replace("%", part)][last].astype(np.float64) for part in ("", "longer_", "all_")
    )
    rounding = 1e-9 * everything
    assert np.array_equal(value, upper)
    assert (value >= truth - rounding).all()
    wrong = (lower > truth + rounding).mean()
    above = (value > longer + EPSILON * everything + rounding).mean()
    off = (value - longer) / np.maximum(everything, 1)
    assert wrong <= DELTA
    assert above <= DELTA
    assert (lower > 0).any()
    return (
        f"{truth.size:,} reads, {(value == truth).mean():.1%} exact, lower bounds above the truth "
        f"{wrong:.3%}, above by more than epsilon * N {above:.3%} (delta {DELTA:.0%}), by at most "
        f"{off.max() / EPSILON:.2f} epsilon * N"
    )
