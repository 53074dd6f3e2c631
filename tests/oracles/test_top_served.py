"""Shares and entropies as a whole store serves them, of real events against SQL: see oracles.test_top."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference.engine import Engine

from oracles.test_top import CASES, HOUR_MS, Case, entropy, truth_of

K = 5
CHUNK = 20_000

SCHEMA = """
version: 1
name: heaviest
events:
  e:
    time: {{field: t, unit: ms}}
    lateness: 1h
    fields: {{key: key, value: {kind}}}
views:
  v:
    event: e
    key: key
    windows: [{windows}]
    exact_events: {exact_events}
    features: [{{name: top, aggregate: "top(value, {k})"}}]
services:
  s: [v.*]
"""


@pytest.mark.parametrize("exact_events", [256, 32])
@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=lambda case: case.name)
def test_each_event_reads_what_sql_counts(
    case: Case, data_file: Callable[[str], Path], measured: Callable[[str], None], exact_events: int
) -> None:
    connection, truth = truth_of(case, data_file(case.file))
    numeric = case.name == "ports per ip"
    value = "CAST(value AS DOUBLE) AS value" if numeric else "value"
    table = connection.sql(f"SELECT t, key, {value} FROM arrived ORDER BY place").to_arrow_table()
    windows = {window_ms: f"{window_ms // HOUR_MS}h" for window_ms in case.windows_ms}
    engine = Engine(
        SCHEMA.format(
            kind="number" if numeric else "string",
            windows=", ".join(windows.values()),
            exact_events=exact_events,
            k=K,
        )
    )
    n_exact, n_bounded, widths = 0, 0, []
    for start in range(0, table.num_rows, CHUNK):
        _, vectors = engine.submit("e", table.slice(start, CHUNK), "s")
        assert vectors is not None
        for place in range(
            -(-start // case.every) * case.every, min(start + CHUNK, table.num_rows), case.every
        ):
            answered = dict(vectors.got(place - start))
            for window_ms, window in windows.items():
                counts = truth[place, window_ms]
                n, top = counts.total(), [count for _, count in counts.most_common(K)]
                share, bits = answered[f"v.top_share_{window}"], answered[f"v.top_entropy_{window}"]
                if share.lower == share.upper and bits.lower == bits.upper:
                    n_exact += 1
                    assert share.value == share.lower == top[0] / n
                    assert bits.value == bits.lower == pytest.approx(entropy(top), abs=1e-12)
                else:
                    n_bounded += 1
                    widths.append(share.upper - share.lower)
                    assert n > exact_events // 2
                assert share.lower <= share.value <= share.upper and bits.lower <= bits.value <= bits.upper
                assert share.lower <= top[0] / n <= share.upper
                assert bits.lower - 1e-12 <= entropy(top) <= bits.upper + 1e-12
    assert n_exact and n_bounded
    measured(
        f"served top {case.name} ({exact_events}): {n_exact:,} exact, {n_bounded:,} bounded, share of the "
        f"first open by p50 {np.median(widths):.2%}, max {max(widths):.2%}"
    )
