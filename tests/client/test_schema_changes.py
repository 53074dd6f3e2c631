"""Names are fetched once, and again when the server says they are stale; then the call is made once more."""

from __future__ import annotations

from typing import Any

import pytest

from featurestore.errors import SchemaMismatchError, SequenceError, UnknownNameError

from .fake_server import Abort, Code, FakeServer, schema_reply

NEW = ("terminal.count_1d", "customer.count_1d")


def test_names_are_fetched_once(server: FakeServer, client: Any) -> None:
    for _ in range(3):
        client.get("fraud", {"customer_id": 1})
        client.observe("transaction", {"customer_id": 1}, "fraud")
    assert server.calls["schema"] == 1


def test_a_read_after_a_change_has_the_new_names(server: FakeServer, client: Any) -> None:
    assert len(client.get("fraud", {"customer_id": 1})) == 3
    server.schema = schema_reply(fingerprint=78, features=NEW)
    assert client.get("fraud", {"customer_id": 1}).names == NEW
    assert client.get_many("fraud", [{"customer_id": 1}] * 2).names == NEW
    assert (server.calls["schema"], server.calls["get"]) == (2, 4)


def test_many_reads_across_a_change_are_all_of_the_new_schema(
    server: FakeServer, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.client.calls.MAX_READ_VALUES", 30)

    def script(method: str, n: int) -> None:
        if (method, n) == ("get", 3):
            server.schema = schema_reply(fingerprint=78, features=NEW)

    server.before = script
    vectors = client.get_many("fraud", {"customer_id": list(range(45))})
    assert vectors.names == NEW
    assert vectors.values.shape == (45, 2)


def test_an_observe_after_a_change_is_applied_once(server: FakeServer, client: Any) -> None:
    client.get("fraud", {"customer_id": 1})
    server.schema = schema_reply(fingerprint=78, features=NEW)
    seen = client.observe("transaction", {"customer_id": 1}, "fraud")
    assert seen.vector.names == NEW
    assert len(server.events) == 1


def test_a_mismatch_that_stays_is_an_error_after_one_more_look(server: FakeServer, client: Any) -> None:
    client.get("fraud", {"customer_id": 1})

    def script(method: str, n: int) -> None:
        if method in ("get", "observe"):
            raise Abort(Code.FAILED_PRECONDITION)

    server.before = script
    with pytest.raises(SchemaMismatchError):
        client.get("fraud", {"customer_id": 1})
    with pytest.raises(SequenceError):
        client.observe("transaction", {"customer_id": 1}, "fraud")
    assert (server.calls["schema"], server.calls["get"], server.calls["observe"]) == (3, 2, 1)


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
