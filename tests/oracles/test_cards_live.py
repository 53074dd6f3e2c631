"""The live server says what was published: card data in over gRPC, vectors of the newest keys back.

Keys are read at the time of their newest event. Under the event clock a window must begin within the kept
span, which ends one lateness (an hour) behind the newest event of all: so the keys are those with an event in
the last hour.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
import transports

from featurestore import Client
from featurestore.config import ServeConfig
from featurestore.server.serve import Server, open_store
from oracles.test_cards import FIELDS, PUBLISHED, SCHEMA

N_ROWS = 400_000


def newest(path: Path, entity: str) -> list[dict[str, object]]:
    """Keys whose newest event is within the last hour, and what was published with it; no tied seconds."""
    published = ", ".join(column for column in PUBLISHED.values() if column.startswith(entity))
    return (
        duckdb.sql(
            f"""
            SELECT {entity} AS key, epoch_ms(tx_datetime) AS ms, {published} FROM read_parquet(?)
            WHERE seq < {N_ROWS}
            QUALIFY row_number() OVER (PARTITION BY {entity} ORDER BY seq DESC) = 1
                AND tx_datetime > max(tx_datetime) OVER () - INTERVAL 1 HOUR
                AND count(*) OVER (PARTITION BY {entity}, tx_datetime) = 1
            """,
            params=[str(path)],
        )
        .to_arrow_table()
        .to_pylist()
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, data_file: Callable[[str], Path], transport: str):
    path = data_file("card_transactions.parquet")
    config = ServeConfig(
        data=tmp_path_factory.mktemp("cards") / "store", schema=SCHEMA, clock="event", listen="localhost:0",
        **transports.settings(transport),
    )  # fmt: skip
    rows = duckdb.sql(
        f"SELECT {FIELDS} FROM read_parquet(?) WHERE seq < {N_ROWS} ORDER BY seq", params=[str(path)]
    )
    engine = open_store(config)
    try:
        with Server(engine, config) as server, Client(str(server.address)) as client:
            report = client.ingest("transaction", rows.to_arrow_table())
            assert report.accepted == N_ROWS
            yield client
    finally:
        engine.close()


@pytest.mark.parametrize("entity", ["customer_id", "terminal_id"])
def test_the_newest_keys_read_as_published(
    client: Client, data_file: Callable[[str], Path], entity: str
) -> None:
    rows = newest(data_file("card_transactions.parquet"), entity)
    assert len(rows) > 100
    vectors = client.get_many(
        "fraud",
        [{entity: row["key"]} for row in rows],
        as_of=np.array([row["ms"] for row in rows]),
        bounds=True,
    )
    for name, column in PUBLISHED.items():
        if column.startswith(entity):
            at = vectors.names.index(name)
            truth = np.array([row[column] for row in rows], dtype=float)
            # Published means of no events are 0, ours are NaN.
            np.testing.assert_allclose(np.nan_to_num(vectors.values[:, at]), truth, rtol=1e-9, atol=1e-9)
            np.testing.assert_array_equal(vectors.lower[:, at], vectors.upper[:, at])
