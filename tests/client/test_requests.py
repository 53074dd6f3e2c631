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
from featurestore.errors import ConfigError, InvalidEventError, UnavailableError

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


@pytest.mark.parametrize("when", [1_700_000_000, np.int64(631_152_000), 4_102_444_799])
def test_a_number_of_seconds_is_not_read_as_january_1970(when: Any) -> None:
    with pytest.raises(InvalidEventError, match=r"as_of: .* looks like seconds") as raised:
        time_ms(when, "as_of")
    assert f"write {int(when)}000" in str(raised.value)


@pytest.mark.parametrize(
    "when", [0, 1, 1_000_000, -1_700_000_000, 631_151_999, 4_102_444_800, np.datetime64(1_700_000_000, "ms")]
)
def test_a_time_that_is_of_these_days_in_no_unit_is_one_in_ms(when: Any) -> None:
    assert time_ms(when, "as_of") == int(np.datetime64(when, "ms").astype(np.int64))


@pytest.mark.parametrize("when", ["yesterday", "", "10000-01-01", "2018-02-30"])
def test_a_text_that_is_no_time_is_told_how_to_write_one(when: str) -> None:
    with pytest.raises(InvalidEventError, match="write ISO 8601 such as 2018-04-01T00:07:56Z"):
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
        (pd.NA, None, None),
        (pd.NaT, None, None),
        (np.datetime64("NaT"), None, None),
    ],
)
def test_values_of_an_event(server: FakeServer, client: Any, value: Any, kind: str | None, sent: Any) -> None:
    client.observe("transaction", {"tx_datetime": datetime(2018, 4, 1, 12), "customer_id": value})
    event = server.observed[0].event
    assert event.time_ms == NOON_MS
    (field,) = event.fields
    assert (field.name, field.WhichOneof("kind")) == ("customer_id", kind)
    assert kind is None or getattr(field, kind) == sent


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"\xff", "\udcff", object()])
def test_values_that_cannot_be_sent_are_named(server: FakeServer, client: Any, value: Any) -> None:
    with pytest.raises(InvalidEventError, match=r"transaction\.customer_id"):
        client.observe("transaction", {"customer_id": value})
    with pytest.raises(InvalidEventError, match="key customer_id"):
        client.get("fraud", {"customer_id": value})
    assert "observe" not in server.calls


@pytest.mark.parametrize("other", ["note", "tx_amount", "tx_datetim"])
def test_a_datetime_is_the_events_time_and_no_other_field(
    server: FakeServer, client: Any, other: str
) -> None:
    for fields in ({other: date(2018, 4, 1)}, {"tx_datetime": NOON_MS, other: datetime(2018, 4, 1)}):
        with pytest.raises(InvalidEventError, match=rf"transaction\.{other}: a datetime; .*'tx_datetime'"):
            client.observe("transaction", fields)
    assert "observe" not in server.calls


def test_what_is_not_declared_and_cannot_be_sent_is_left_out_where_all_that_is_declared_is_there(
    server: FakeServer, client: Any
) -> None:
    declared = {"tx_datetime": NOON_MS, "customer_id": 1, "terminal_id": None, "tx_amount": 2.5}
    odd = {"headers": {"a": 1}, "tags": ["b"], "received": datetime(2018, 4, 1)}
    client.observe("transaction", {**declared, **odd, "note": "sent"})
    assert {field.name for field in server.observed[0].event.fields} == {*declared, "note"}
    del declared["tx_amount"]
    with pytest.raises(InvalidEventError, match=r"transaction\.headers: expected a text"):
        client.observe("transaction", {**declared, "headers": {"a": 1}})


def test_what_maps_no_names_to_values_is_said(server: FakeServer, client: Any) -> None:
    for wrong in ([1], None, "ip=1", {1: 2}, {"\udcff": 1}):
        with pytest.raises(InvalidEventError, match="name"):
            client.get("fraud", wrong)
        with pytest.raises(InvalidEventError, match="name"):
            client.observe("transaction", wrong)
    assert "observe" not in server.calls


def test_an_acknowledgement_of_another_kind_is_said(client: Any) -> None:
    with pytest.raises(ConfigError, match=r"ack is 'durable'; it is Ack\.APPLIED"):
        client.observe("transaction", {"tx_datetime": NOON_MS}, ack="durable")
    data = {"tx_datetime": [NOON_MS], "customer_id": [1], "terminal_id": [2]}
    with pytest.raises(ConfigError, match=r"ack is 'durable'; it is Ack\.APPLIED"):
        client.ingest("transaction", data, ack="durable")


@pytest.mark.parametrize("timeout_s", [0, -1.0])
def test_with_no_time_left_nothing_is_sent(server: FakeServer, client: Any, timeout_s: float) -> None:
    client.schema()
    with pytest.raises(UnavailableError, match="no time is left"):
        client.get("fraud", {"customer_id": 1}, timeout_s=timeout_s)
    assert "get" not in server.calls


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


@pytest.mark.parametrize("made", [list, np.array, pd.Series, pa.array])
def test_seconds_among_many_times_are_named(server: FakeServer, client: Any, made: Any) -> None:
    keys = {"customer_id": [1, 2]}
    with pytest.raises(InvalidEventError, match=r"as_of of row 1: .*1700000000.* looks like seconds"):
        client.get_many("fraud", keys, as_of=made([NOON_MS, 1_700_000_000]))
    client.get_many("fraud", keys, as_of=np.array([NOON_MS, 1_700_000_000]).astype("datetime64[ms]"))
    assert list(server.reads[0].as_of_each_ms) == [NOON_MS, 1_700_000_000], "a datetime knows its unit"


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
        ("localhost:1", {"producer": "p", "epoch": "1"}, "epoch is 1"),
        ("localhost:1", {"producer": "\udcff"}, "printable"),
        ("localhost:1", {"timeout_s": 0}, "timeout_s is 0"),
        ("localhost:1", {"timeout_s": None}, "timeout_s is None"),
        ("http://localhost:1", {}, "host:port alone"),
        (None, {}, "an address is text"),
    ],
)
def test_settings_are_checked_at_once(
    make_client: MakeClient, target: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_client(target, **settings)
