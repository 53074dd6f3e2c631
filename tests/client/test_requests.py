"""What people hand over as events, keys and times, and what is sent for it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from featurestore.client.requests import time_ms
from featurestore.errors import ConfigError, InvalidEventError

from .conftest import MakeClient
from .fake_server import FakeServer, texts_of

NOON_MS = 1_522_584_000_000  # 2018-04-01T12:00:00Z


@pytest.mark.parametrize(
    "when",
    [
        NOON_MS,
        np.int64(NOON_MS),
        "2018-04-01T12:00:00Z",
        "2018-04-01T14:00:00+02:00",
        "2018-04-01 12:00",
        datetime(2018, 4, 1, 12),
        datetime(2018, 4, 1, 12, tzinfo=UTC),
        datetime(2018, 4, 1, 14, tzinfo=timezone(timedelta(hours=2))),
        np.datetime64("2018-04-01T12:00"),
        pd.Timestamp("2018-04-01 12:00", tz="UTC"),
    ],
)
def test_a_time_is_ms_a_datetime_or_iso_text(when: Any) -> None:
    assert time_ms(when, "as_of") == NOON_MS


@pytest.mark.parametrize("when", ["yesterday", True, 1.5, None, 10**15, np.datetime64("NaT")])
def test_what_is_no_time_is_said(when: Any) -> None:
    with pytest.raises(InvalidEventError, match="as_of"):
        time_ms(when, "as_of")


@pytest.mark.parametrize(
    ("value", "kind", "sent"),
    [
        ("596", "text", "596"),
        (596, "integer", 596),
        (np.int32(596), "integer", 596),
        (2**70, "text", str(2**70)),
        (1.5, "number", 1.5),
        (np.float32(1.5), "number", 1.5),
        (Decimal("1.5"), "number", 1.5),
        (True, "flag", True),
        (np.bool_(True), "flag", True),
        ("ü".encode(), "text", "ü"),
        (None, None, None),
    ],
)
def test_values_of_an_event(server: FakeServer, client: Any, value: Any, kind: str | None, sent: Any) -> None:
    client.observe("transaction", {"tx_datetime": datetime(2018, 4, 1, 12), "customer_id": value})
    event = server.observed[0].event
    assert event.time_ms == NOON_MS
    (field,) = event.fields
    assert (field.name, field.WhichOneof("kind")) == ("customer_id", kind)
    assert kind is None or getattr(field, kind) == sent


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"\xff", object()])
def test_values_that_cannot_be_sent_are_named(server: FakeServer, client: Any, value: Any) -> None:
    with pytest.raises(InvalidEventError, match=r"transaction\.customer_id"):
        client.observe("transaction", {"customer_id": value})
    with pytest.raises(InvalidEventError, match="key customer_id"):
        client.get("fraud", {"customer_id": value})
    assert "observe" not in server.calls


def test_an_event_has_one_time(server: FakeServer, client: Any) -> None:
    with pytest.raises(InvalidEventError, match="a second datetime"):
        client.observe("transaction", {"tx_datetime": date(2018, 4, 1), "note": datetime(2018, 4, 1)})


KEYS = {"customer_id": [596, 597, None], "terminal_id": ["a", "b", "c"]}


@pytest.mark.parametrize(
    "keys",
    [
        KEYS,
        pa.table(KEYS),
        pd.DataFrame(KEYS),
        [
            {"customer_id": 596, "terminal_id": "a"},
            {"customer_id": "597", "terminal_id": "b"},
            {"terminal_id": "c"},
        ],
    ],
    ids=["columns", "arrow", "pandas", "rows"],
)
def test_many_key_sets_in_any_shape(server: FakeServer, client: Any, keys: Any) -> None:
    vectors = client.get_many("fraud", keys, as_of=[1, 2, 3], bounds=True)
    assert vectors.values.shape == vectors.lower.shape == (3, 3)
    assert vectors[2]["customer.mean_tx_amount_7d"] == 2.1
    assert [vector.values[0] for vector in vectors] == [0, 1, 2]
    assert list(vectors.to_dict()) == list(vectors.names)
    (read,) = server.reads
    assert {part.name: texts_of(part.texts) for part in read.key_columns.parts} == {
        "customer_id": ["596", "597", None],
        "terminal_id": ["a", "b", "c"],
    }
    assert list(read.as_of_each_ms) == [1, 2, 3]


def test_one_time_for_many_key_sets(server: FakeServer, client: Any) -> None:
    client.get_many("fraud", [{"customer_id": 1}, {"customer_id": 2}], as_of="2018-04-01T12:00:00Z")
    assert (server.reads[0].as_of_ms, len(server.reads[0].as_of_each_ms)) == (NOON_MS, 0)


def test_key_sets_that_cannot_be_read_are_named(client: Any) -> None:
    with pytest.raises(InvalidEventError, match="key customer_id of row 1"):
        client.get_many("fraud", {"customer_id": [1.0, 1.5]})
    with pytest.raises(InvalidEventError, match="different lengths"):
        client.get_many("fraud", {"customer_id": [1], "terminal_id": [1, 2]})
    with pytest.raises(InvalidEventError, match="2 times for 1 key sets"):
        client.get_many("fraud", {"customer_id": [1]}, as_of=[1, 2])
    with pytest.raises(InvalidEventError, match="key sets are"):
        client.get_many("fraud", 7)


def test_no_key_sets_are_no_vectors(server: FakeServer, client: Any) -> None:
    vectors = client.get_many("fraud", [])
    assert (len(vectors), vectors.values.shape) == (0, (0, 3))
    assert "get" not in server.calls


def test_key_sets_without_parts_are_read_too(server: FakeServer, client: Any) -> None:
    assert len(client.get_many("fraud", [{}, {}])) == 2


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        ("localhost", {}, "no port"),
        ("unix:", {}, "names no socket"),
        ("localhost:1", {"epoch": 2}, "epoch without a producer"),
        ("localhost:1", {"producer": ""}, "1 to 240 bytes"),
        ("localhost:1", {"producer": "p", "epoch": -1}, "epoch is -1"),
    ],
)
def test_settings_are_checked_at_once(
    make_client: MakeClient, target: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_client(target, **settings)
