"""Card transactions against the window features published with them: the oracle for exactness.

585,177 rows in time order, the schema of the README. Every count and every mean must be equal, but where two
rows of one customer share a second: the published order is arbitrary, so they may have swapped values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from reference.engine import Engine, Vectors

SCHEMA = """
version: 1
name: card-fraud
events:
  transaction:
    time: tx_datetime
    fields: {customer_id: key, terminal_id: key, tx_amount: number, tx_fraud: number}
views:
  customer:
    event: transaction
    key: customer_id
    windows: [1d, 7d, 30d]
    features: [count, mean(tx_amount)]
  terminal:
    event: transaction
    key: terminal_id
    windows: [1d, 7d, 30d]
    offset: 7d
    features: [count, mean(tx_fraud)]
services:
  fraud: [customer.*, terminal.*]
"""
FIELDS = "tx_datetime, customer_id, terminal_id, tx_amount, tx_fraud"
WINDOWS = ("1", "7", "30")
PUBLISHED = {
    f"{view}.{ours}_{days}d": f"{view}_id_{theirs}_{days}day_window"
    for view, means, source in (
        ("customer", "mean_tx_amount", "avg_amount"),
        ("terminal", "mean_tx_fraud", "risk"),
    )
    for days in WINDOWS
    for ours, theirs in (("count", "nb_tx"), (means, source))
}


def replayed(path: Path, n_rows: int, batch_rows: int, **options: Any) -> tuple[Engine, Vectors]:
    table = duckdb.sql(
        f"SELECT {FIELDS} FROM read_parquet(?) WHERE seq < {n_rows} ORDER BY seq", params=[str(path)]
    ).to_arrow_table()
    engine = Engine(SCHEMA, **options)
    parts = []
    for start in range(0, table.num_rows, batch_rows):
        outcomes, vectors = engine.submit("transaction", table.slice(start, batch_rows), "fraud")
        assert set(outcomes) == {0}
        assert vectors is not None
        parts.append(vectors)
    return engine, Vectors.joined(parts)


@pytest.fixture(scope="module")
def replay(data_file: Callable[[str], Path]) -> Vectors:
    return replayed(data_file("card_transactions.parquet"), 1_000_000, 16_384)[1]


@pytest.fixture(scope="module")
def published(data_file: Callable[[str], Path]) -> dict[str, np.ndarray[Any, Any]]:
    return duckdb.execute(
        f"""SELECT transaction_id, {", ".join(PUBLISHED.values())} FROM read_parquet(?) ORDER BY seq""",
        [str(data_file("card_transactions.parquet"))],
    ).fetchnumpy()


@pytest.fixture(scope="module")
def tied(
    data_file: Callable[[str], Path], published: dict[str, np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """(pairs, 2) row numbers of two transactions of one customer in the same second."""
    ids = duckdb.execute(
        """SELECT list(seq ORDER BY seq) FROM read_csv(?) WHERE seq < ? GROUP BY customer_id, tx_datetime""",
        [str(data_file("card_transactions_ties.csv")), len(published["transaction_id"])],
    ).fetchall()
    return np.array([pair for (pair,) in ids if len(pair) == 2])


def test_every_published_count_and_mean_is_reproduced(
    replay: Vectors,
    published: dict[str, np.ndarray[Any, Any]],
    tied: np.ndarray[Any, Any],
    measured: Callable[[str], None],
) -> None:
    untied = np.ones(len(replay.values), dtype=bool)
    untied[tied.ravel()] = False
    assert untied.size - untied.sum() == 2 * len(tied) > 0
    for j, name in enumerate(replay.names):
        theirs = np.ma.getdata(published[PUBLISHED[name]]).astype(np.float64)
        ours = np.nan_to_num(replay.values[:, j]) if "mean" in name else replay.values[:, j]
        rows = untied if name.startswith("customer") else np.ones_like(untied)
        wrong = rows & ~(np.abs(ours - theirs) <= (1e-9 * np.abs(theirs) if "mean" in name else 0))
        assert not wrong.any(), f"{name}: {wrong.sum()} rows, first {np.argmax(wrong)}"
    measured(f"cards: {replay.values.size:,} values equal the published ones, {len(tied)} tied pairs apart")


def test_a_mean_is_nan_exactly_where_the_window_is_empty_and_the_status_says_so(replay: Vectors) -> None:
    for view, mean in (("customer", "mean_tx_amount"), ("terminal", "mean_tx_fraud")):
        for days in WINDOWS:
            j = replay.names.index(f"{view}.{mean}_{days}d")
            empty = replay.values[:, replay.names.index(f"{view}.count_{days}d")] == 0
            assert np.array_equal(np.isnan(replay.values[:, j]), empty)
            assert np.isin(replay.statuses[empty, j], (2, 3)).all()
            assert np.isin(replay.statuses[~empty, j], (1, 3)).all()


def test_a_tied_pair_counts_n_minus_one_then_n(
    replay: Vectors, published: dict[str, np.ndarray[Any, Any]], tied: np.ndarray[Any, Any]
) -> None:
    for days in WINDOWS:
        ours = replay.values[tied, replay.names.index(f"customer.count_{days}d")]
        theirs = np.ma.getdata(published[PUBLISHED[f"customer.count_{days}d"]])[tied]
        assert np.array_equal(ours[:, 0] + 1, ours[:, 1])
        assert np.array_equal(ours, np.sort(theirs, axis=1))


def test_every_value_is_exact_and_says_so(replay: Vectors) -> None:
    assert np.array_equal(replay.lower, replay.values, equal_nan=True)
    assert np.array_equal(replay.upper, replay.values, equal_nan=True)


def test_a_window_warms_until_the_store_has_lived_as_long(
    replay: Vectors, data_file: Callable[[str], Path]
) -> None:
    age_days = np.ma.getdata(
        duckdb.execute(
            """SELECT (epoch(tx_datetime) - min(epoch(tx_datetime)) OVER ()) / 86400.0 AS age
               FROM read_parquet(?) ORDER BY seq""",
            [str(data_file("card_transactions.parquet"))],
        ).fetchnumpy()["age"]
    )
    for j, name in enumerate(replay.names):
        offset = 7 if name.startswith("terminal") else 0
        window = int(name.rsplit("_", 1)[1].removesuffix("d"))
        warming = age_days - offset < window
        assert np.array_equal(replay.statuses[:, j] == 3, warming), name
        share = np.clip((age_days[warming] - offset) / window, 0, 1)
        assert np.allclose(replay.coverage[warming, j], share, atol=1e-6), name


def test_batch_size_threads_and_restarts_change_no_bit(data_file: Callable[[str], Path]) -> None:
    path = data_file("card_transactions.parquet")
    engine, whole = replayed(path, 20_000, 20_000)
    other, pieces = replayed(path, 20_000, 777, threads=3)
    assert whole.bits() == pieces.bits()
    assert engine.state.digest() == other.state.digest()
    other.restart(threads=2)
    assert engine.state.digest() == other.state.digest()


def test_reads_by_key_equal_what_observe_said_of_their_newest_event(data_file: Callable[[str], Path]) -> None:
    path = data_file("card_transactions.parquet")
    n_rows = 50_000
    engine, observed = replayed(path, n_rows, 16_384)
    newest = duckdb.execute(
        f"""SELECT max(seq), customer_id, arg_max(epoch_ms(tx_datetime), seq),
                   max(max(epoch_ms(tx_datetime))) OVER ()
            FROM read_parquet(?) WHERE seq < {n_rows} GROUP BY customer_id ORDER BY customer_id LIMIT 300""",
        [str(path)],
    ).fetchall()
    n_compared = 0
    for seq, key, t, now in newest:
        read = engine.read("fraud", {"customer_id": [key]}, as_of=t)
        for j, name in enumerate(observed.names):
            if name.startswith("terminal") or (name.endswith("_30d") and t < now - 3_600_000):
                assert read.statuses[0, j] == 4, "no key, or the longest window begins before the kept span"
            else:
                n_compared += 1
                assert read.values[0, j] == observed.values[seq, j]
    assert n_compared > 4 * len(newest)


def test_an_arrow_table_of_other_integer_types_means_the_same(data_file: Callable[[str], Path]) -> None:
    path = data_file("card_transactions.parquet")
    _, plain = replayed(path, 3_000, 3_000)
    table = duckdb.sql(
        f"SELECT {FIELDS} FROM read_parquet(?) WHERE seq < 3000 ORDER BY seq", params=[str(path)]
    ).to_arrow_table()
    texts = table.set_column(1, "customer_id", table["customer_id"].cast(pa.string()))
    _, vectors = Engine(SCHEMA).submit("transaction", texts, "fraud")
    assert vectors is not None
    assert vectors.bits() == plain.bits()
