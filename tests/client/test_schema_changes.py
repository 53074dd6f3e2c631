"""Names are fetched once, and a client reads the vector that it first read; or it follows, or has a pin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featurestore.client import Pin
from featurestore.errors import ConfigError, SchemaMismatchError, SequenceError, UnknownNameError

from .fake_server import Abort, Code, FakeServer, schema_reply

NEW = ("terminal.count_1d", "customer.count_1d")


def test_names_are_fetched_once(server: FakeServer, client: Any) -> None:
    for _ in range(3):
        client.get("fraud", {"customer_id": 1})
        client.observe("transaction", {"customer_id": 1}, "fraud")
    assert server.calls["schema"] == 1


@pytest.fixture
def following(server: FakeServer, make_client: Any) -> Any:
    return make_client(server.target, follow=True)


def test_who_follows_reads_the_new_names_after_a_change(server: FakeServer, following: Any) -> None:
    assert len(following.get("fraud", {"customer_id": 1})) == 3
    server.schema = schema_reply(fingerprint=78, features=NEW)
    assert following.get("fraud", {"customer_id": 1}).names == NEW
    assert following.get_many("fraud", [{"customer_id": 1}] * 2).names == NEW
    assert (server.calls["schema"], server.calls["get"]) == (2, 4)


def test_many_reads_across_a_change_are_all_of_the_new_schema(
    server: FakeServer, following: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.client.calls.MAX_READ_VALUES", 30)

    def script(method: str, n: int) -> None:
        if (method, n) == ("get", 3):
            server.schema = schema_reply(fingerprint=78, features=NEW)

    server.before = script
    vectors = following.get_many("fraud", {"customer_id": list(range(45))})
    assert vectors.names == NEW
    assert vectors.values.shape == (45, 2)


def test_an_observe_after_a_change_is_applied_once(server: FakeServer, following: Any) -> None:
    following.get("fraud", {"customer_id": 1})
    server.schema = schema_reply(fingerprint=78, features=NEW)
    seen = following.observe("transaction", {"customer_id": 1}, "fraud")
    assert seen.vector.names == NEW
    assert (len(server.events), server.calls["observe"]) == (1, 1)


def test_nobody_else_follows_until_told_to(server: FakeServer, client: Any) -> None:
    before = client.get("fraud", {"customer_id": 1})
    server.schema = schema_reply(fingerprint=78, features=NEW)
    for _ in range(2):
        with pytest.raises(SchemaMismatchError, match=r"This client keeps the vector .* refresh\(\)"):
            client.get("fraud", {"customer_id": 1})
        with pytest.raises(SchemaMismatchError):
            client.get_many("fraud", [{"customer_id": 1}])
    client.schema()  # looking at it is no wish for another vector
    with pytest.raises(SchemaMismatchError):
        client.get("fraud", {"customer_id": 1})
    assert {request.fingerprint for request in server.reads} == {77}
    assert client.refresh().services["fraud"].names == NEW
    after = client.get("fraud", {"customer_id": 1})
    assert (before.pin.fingerprint, after.pin.fingerprint, after.names) == (77, 78, NEW)


def test_an_observe_that_fits_no_more_applies_nothing(server: FakeServer, client: Any) -> None:
    client.get("fraud", {"customer_id": 1})

    def script(method: str, n: int) -> None:
        if method == "observe":
            raise Abort(Code.FAILED_PRECONDITION)

    server.before = script
    with pytest.raises(SequenceError):
        client.observe("transaction", {"customer_id": 1}, "fraud")
    assert (server.calls["observe"], server.events) == (1, [])


PIN = Pin("fraud", 77, tuple(feature.name for feature in schema_reply().services[0].features))


def test_what_is_expected_is_asked_for_before_the_first_vector(server: FakeServer, make_client: Any) -> None:
    client = make_client(server.target, expect={"fraud": PIN})
    assert client.get("fraud", {"customer_id": 1}).pin == PIN
    assert [request.fingerprint for request in server.schemas] == [77]
    assert client.get("fraud", {"customer_id": 1}).names == PIN.features
    client.refresh()
    assert {request.fingerprint for request in server.reads} == {77}
    other = make_client(server.target, expect={"fraud": Pin("fraud", 77, NEW)}, follow=True)
    with pytest.raises(SchemaMismatchError, match="is not the pin's"):
        other.get("fraud", {"customer_id": 1})
    wrong = make_client(server.target, expect={"fraud": Pin("fraud", 76, PIN.features)}, follow=True)
    for _ in range(2):
        with pytest.raises(SchemaMismatchError):
            wrong.get("fraud", {"customer_id": 1})


def test_one_read_may_be_of_a_pin(server: FakeServer, client: Any) -> None:
    server.schema = schema_reply(fingerprint=78, features=NEW)
    assert client.get("fraud", {"customer_id": 1}).names == NEW
    pin = Pin("fraud", 78, NEW)
    assert client.get("fraud", {"customer_id": 1}, pin=pin).pin == pin
    assert client.get_many("fraud", [{"customer_id": 1}], pin=pin).pin == pin
    with pytest.raises(SchemaMismatchError):
        client.get("fraud", {"customer_id": 1}, pin=PIN)
    with pytest.raises(ConfigError, match="the pin of 'fraud' is one of 'risk'"):
        client.get("fraud", {"customer_id": 1}, pin=Pin("risk", 77, NEW))
    with pytest.raises(ConfigError, match="the pin of 'fraud' is a str"):
        client.get("fraud", {"customer_id": 1}, pin="model.pin.json")


def test_a_pin_is_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pin.json"
    pin = Pin("fraud", 0x00FF_0000_1234_ABCD, ("ä.count_1d", "b"))
    pin.save(path)
    assert Pin.load(path) == pin
    assert json.loads(path.read_text("utf-8"))["pin"]["fingerprint"] == "00ff00001234abcd"
    for text in ("", "[]", "{}", '{"format": 2}', '{"format": 1, "service": "a", "pin": {}}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"model\.pin\.json"):
            Pin.load(path)
    with pytest.raises(ConfigError, match="cannot read the pin"):
        Pin.load(tmp_path / "none")


def test_a_service_that_is_gone_is_named_with_what_there_is(server: FakeServer, client: Any) -> None:
    with pytest.raises(UnknownNameError, match="unknown service 'fraudx'; the server's schema has 'fraud'"):
        client.get("fraudx", {"customer_id": 1})
    with pytest.raises(UnknownNameError, match=r"unknown event type 'tx'; .* 'transaction'"):
        client.ingest("tx", {})


def test_a_service_that_came_with_a_newer_schema_is_found(server: FakeServer, client: Any) -> None:
    client.get("fraud", {"customer_id": 1})
    newer = schema_reply()
    newer.version = 2
    newer.services[0].name = "payments"
    server.schema = newer
    assert client.get("payments", {"customer_id": 1}).names[0] == "customer.count_1d"
