"""Every event once, whatever fails between client and server; and what a caller is told when it does."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from featurestore.client.failures import Attempts, Backoff, Failure
from featurestore.client.replies import Ack
from featurestore.client.sequences import Ticket
from featurestore.errors import (
    FeatureStoreError,
    InvalidEventError,
    LimitError,
    OutcomeUnknownError,
    SequenceError,
    UnavailableError,
    UnknownNameError,
)
from featurestore.outcome import Outcome

from .conftest import MakeClient
from .fake_server import Abort, Code, FakeServer

T0 = 1_522_540_800_000


def events(n: int, begin: int = 0) -> dict[str, Any]:
    rows = np.arange(begin, begin + n)
    return {
        "tx_datetime": T0 + rows,
        "customer_id": rows,
        "terminal_id": [None] * n,
        "tx_amount": rows / 4,
    }


def failing_once(method: str, n: int, code: Any = Code.UNAVAILABLE) -> Any:
    def script(called: str, number: int) -> None:
        if (called, number) == (method, n):
            raise Abort(code)

    return script


def failing_from(method: str, n: int, code: Any) -> Any:
    def script(called: str, number: int) -> None:
        if called == method and number >= n:
            raise Abort(code)

    return script


def times_of(server: FakeServer) -> list[int]:
    return [event["time_ms"] - T0 for event in server.events]


# ---- one call


def test_an_observe_whose_reply_is_lost_is_applied_once_and_says_so(server: FakeServer, client: Any) -> None:
    server.after = failing_once("observe", 1)
    seen = client.observe("transaction", {"customer_id": 596, "tx_datetime": T0})
    assert len(server.events) == 1
    assert (seen.outcome, seen.attempts) == (Outcome.DUPLICATE, 2)
    first, second = server.observed
    assert first == second


def test_observes_have_numbers_of_their_own_and_a_peek_has_none(server: FakeServer, client: Any) -> None:
    for _ in range(3):
        assert client.observe("transaction", {"customer_id": 1, "tx_datetime": T0}).ack == Ack.DURABLE
    client.observe("transaction", {"customer_id": 1, "tx_datetime": T0}, "fraud", peek=True)
    assert [one.sequence for one in server.observed] == [1, 2, 3, 0]
    assert {one.producer for one in server.observed[:3]} == {client.producer}
    assert server.observed[3].producer == ""


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED])
def test_a_read_is_tried_again_while_the_server_is_busy_or_away(
    server: FakeServer, client: Any, code: Any
) -> None:
    def script(method: str, n: int) -> None:
        if method == "get" and n <= 2:
            raise Abort(code)

    server.before = script
    assert client.get("fraud", {"customer_id": 596})["customer.mean_tx_amount_7d"] == 0.1
    assert server.calls["get"] == 3


def test_tries_have_an_end_and_the_error_has_the_servers_words(server: FakeServer, client: Any) -> None:
    def script(method: str, n: int) -> None:
        if method == "get":
            raise Abort(Code.RESOURCE_EXHAUSTED, "256 calls are under way")

    server.before = script
    with pytest.raises(LimitError, match="256 calls are under way"):
        client.get("fraud", {"customer_id": 596})
    assert server.calls["get"] == 5


def test_a_write_is_tried_until_its_deadline_under_its_one_number(server: FakeServer, client: Any) -> None:
    """As through a server's restart: given up, it could not be sent again as the same."""

    def script(method: str, n: int) -> None:
        if method == "observe" and n <= 12:
            raise Abort(Code.UNAVAILABLE)

    server.after = script
    seen = client.observe("transaction", {"tx_datetime": T0, "customer_id": 1})
    assert (seen.outcome, seen.attempts, len(server.events)) == (Outcome.DUPLICATE, 13, 1)
    server.after = failing_from("observe", 14, Code.UNAVAILABLE)
    began_s = time.monotonic()
    with pytest.raises(UnavailableError):
        client.observe("transaction", {"tx_datetime": T0, "customer_id": 1}, timeout_s=2)
    assert time.monotonic() - began_s < 30, "without a deadline it has no end"
    assert len(server.events) == 2


def test_a_server_that_comes_back_just_before_the_deadline_is_met() -> None:
    """Whatever the waits are by then, and with no more than a second between two tries before."""
    now_s = 100.0
    attempts = Attempts(10.0, Backoff(), is_numbered=True, clock=lambda: now_s)
    tried_s, wait_s = [now_s], 0.0
    while wait_s is not None:
        attempts.begin()
        wait_s = attempts.wait_after(Failure(Code.UNAVAILABLE, "gone"))
        now_s += wait_s or 0.0
        tried_s.append(now_s)
    assert 109.9 < tried_s[-1] < 110
    assert max(np.diff(tried_s)) <= 1
    assert len(tried_s) < 40


@pytest.mark.parametrize(
    ("code", "details", "is_tried_again"),
    [
        (Code.CANCELLED, "CANCELLED", True),  # by a server that stops
        (Code.CANCELLED, "", True),
        (Code.CANCELLED, "Channel closed!", False),
        (Code.CANCELLED, "Locally cancelled by application!", False),
        (Code.UNAVAILABLE, "", True),
        (Code.DEADLINE_EXCEEDED, "", False),
    ],
)
def test_what_is_tried_again(code: Any, details: str, is_tried_again: bool) -> None:
    assert Failure(code, details).may_be_retried is is_tried_again


def test_a_message_that_is_too_large_is_not_sent_again(server: FakeServer, client: Any) -> None:
    def script(method: str, n: int) -> None:
        if method in ("get", "batch"):
            raise Abort(Code.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)")

    server.before = script
    with pytest.raises(LimitError, match="larger than max"):
        client.get("fraud", {"customer_id": 1})
    with pytest.raises(LimitError, match="larger than max"):
        client.ingest("transaction", events(1))
    assert (server.calls["get"], server.calls["batch"]) == (1, 1)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.INVALID_ARGUMENT, InvalidEventError),
        (Code.FAILED_PRECONDITION, SequenceError),
        (Code.NOT_FOUND, UnknownNameError),
    ],
)
def test_what_the_server_says_of_the_request_itself_is_not_tried_again(
    server: FakeServer, client: Any, code: Any, error: type[Exception]
) -> None:
    server.before = failing_once("observe", 1, code)
    with pytest.raises(error, match="scripted"):
        client.observe("transaction", {"customer_id": 1})
    assert server.calls["observe"] == 1


def test_a_server_that_does_not_answer_ends_the_call_at_its_deadline(server: FakeServer, client: Any) -> None:
    client.schema()
    over = threading.Event()
    server.before = lambda method, n: over.wait(100) and None
    began = time.monotonic()
    try:
        with pytest.raises(UnavailableError, match="did not answer in time"):
            client.get("fraud", {"customer_id": 1}, timeout_s=0.2)
    finally:
        over.set()
    assert time.monotonic() - began < 50


def test_no_server_is_said_in_words(make_client: MakeClient) -> None:
    with pytest.raises(UnavailableError, match="cannot reach localhost:1; is `featurestore serve` running"):
        make_client("localhost:1").schema()


# ---- many events


def test_columns_arrive_as_they_were_given(server: FakeServer, client: Any) -> None:
    report = client.ingest(
        "transaction",
        {
            "tx_datetime": [T0, T0 + 1, T0 + 2],
            "customer_id": [596, None, "ü" * 100],
            "terminal_id": [None, None, None],
            "tx_amount": [1.5, 0.0, None],
            "note": ["", "a", None],
            "undeclared": [1, 2, 3],
        },
    )
    assert server.events == [
        {"time_ms": T0, "customer_id": "596", "tx_amount": 1.5},
        {"time_ms": T0 + 1, "tx_amount": 0.0, "note": "a"},
        {"time_ms": T0 + 2, "customer_id": "ü" * 100},
    ]
    assert (report.events, report.accepted, report.batches, report.ack) == (3, 3, 1, Ack.DURABLE)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stream_cut_at_a_batch_goes_on_there(server: FakeServer, client: Any, when: str, code: Any) -> None:
    setattr(server, when, failing_once("batch", 3, code))
    report = client.ingest("transaction", events(1000), batch_events=100)
    assert times_of(server) == list(range(1000))
    lost = 100 if when == "after" else 0  # applied, and its answer lost
    assert report.events == report.accepted + report.already_applied == 1000
    assert report.already_applied >= lost
    assert report.retries >= 1
    sent: dict[int, bytes] = {}
    for batch in server.batches:
        assert sent.setdefault(batch.sequence, batch.SerializeToString()) == batch.SerializeToString()
    assert sorted(sent) == list(range(1, 11))


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(
    server: FakeServer, make_client: MakeClient
) -> None:
    over = threading.Event()

    def script(method: str, n: int) -> None:
        if (method, n) == ("batch", 2):
            over.wait(20)

    server.after = script
    try:
        client = make_client(server.target, timeout_s=0.3)
        report = client.ingest("transaction", events(500), batch_events=100)
    finally:
        over.set()
    assert times_of(server) == list(range(500))
    assert (report.accepted, report.already_applied) == (400, 100)


def test_any_pattern_of_failures_counts_each_event_once(server: FakeServer, make_client: MakeClient) -> None:
    random_ = random.Random(20180401)
    client = make_client(server.target, timeout_s=2.0)
    for round_ in range(12):
        chance = random_.choice([0.05, 0.2, 0.4])

        def script(method: str, n: int, chance: float = chance) -> None:
            if method == "batch" and random_.random() < chance:
                raise Abort(random_.choice([Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED]))

        server.before = server.after = script
        server.events.clear()
        window = random_.randint(1, 8)
        n = random_.randint(1, 700)
        report = client.ingest("transaction", events(n), batch_events=random_.randint(1, 90), window=window)
        assert times_of(server) == list(range(n)), f"round {round_}"
        assert report.accepted + report.already_applied == report.events == n


def test_an_ingest_gives_up_in_time_and_says_how_far_it_came(
    server: FakeServer, make_client: MakeClient
) -> None:
    def script(method: str, n: int) -> None:
        if method == "batch" and n >= 3:
            raise Abort(Code.UNAVAILABLE, "gone fishing")

    server.before = script
    client = make_client(server.target, retry_s=0.2)
    with pytest.raises(UnavailableError, match=r"gone fishing; the first 200 rows are in, .* 100 after"):
        client.ingest("transaction", events(1000), batch_events=100, window=1)


def test_a_batch_that_the_server_turns_away_ends_the_ingest(server: FakeServer, client: Any) -> None:
    def script(method: str, n: int) -> None:
        if method == "batch" and server.batches[-1].sequence >= 2:
            raise Abort(Code.INVALID_ARGUMENT)

    server.before = script
    with pytest.raises(InvalidEventError, match=r"scripted; the first 10 rows are in, .*sequence 2"):
        client.ingest("transaction", events(100), batch_events=10)
    assert times_of(server) == list(range(10))


def test_after_a_failed_ingest_the_client_goes_on_with_new_numbers(server: FakeServer, client: Any) -> None:
    server.before = failing_from("batch", 1, Code.INVALID_ARGUMENT)
    with pytest.raises(InvalidEventError):
        client.ingest("transaction", events(30), batch_events=10, window=2)
    server.before = lambda method, n: None
    report = client.ingest("transaction", events(30), batch_events=10, window=2)
    assert (report.accepted, times_of(server)) == (30, list(range(30)))


def test_no_more_is_read_from_the_source_than_the_window_holds(server: FakeServer, client: Any) -> None:
    taken = 0
    most_ahead = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal taken, most_ahead
        for i in range(40):
            taken += 1
            most_ahead = max(most_ahead, taken - len(server.events) // 10)
            yield events(10, i * 10)

    slow = threading.Event()
    server.before = lambda method, n: slow.wait(0.005) and None
    report = client.ingest("transaction", source(), batch_events=10, window=3)
    assert (report.accepted, taken) == (400, 40)
    assert most_ahead <= 3 + 1  # the window, and the item that the next batch is cut from


class Pause:
    """A chunk of no events, as a pipe has them that stays open."""

    n_events = 0

    def event_columns(self, event: Any) -> Any:
        raise AssertionError("there are none")


@pytest.mark.parametrize("lost", [False, True])
def test_what_a_pipe_has_brought_is_answered_before_more_of_it_is_waited_for(
    server: FakeServer, client: Any, lost: bool
) -> None:
    reports: list[int] = []

    def source() -> Iterator[Any]:
        yield events(5)
        yield Pause()
        yield Pause()
        assert (len(server.events), reports) == (5, [5]), "in, and known to be, also if its answer was lost"
        yield events(1, begin=5)
        yield Pause()
        assert (len(server.events), reports) == (6, [5, 6])

    if lost:
        server.after = failing_once("batch", 1)
    report = client.ingest("transaction", source(), on_progress=lambda so_far: reports.append(so_far.events))
    assert report.events == 6
    assert len(server.events) == 6


def test_with_a_source_a_second_run_skips_what_is_in(server: FakeServer, make_client: MakeClient) -> None:
    def script(method: str, n: int) -> None:
        if method == "batch" and n >= 5:
            raise Abort(Code.INVALID_ARGUMENT, "stop here")

    server.before = script
    with pytest.raises(InvalidEventError):
        make_client(server.target).ingest("transaction", events(100), batch_events=10, source="tx-1")
    assert len(server.events) == 40
    server.before = lambda method, n: None
    report = make_client(server.target).ingest("transaction", events(100), batch_events=10, source="tx-1")
    assert (report.accepted, report.already_applied) == (60, 40)
    report = make_client(server.target).ingest("transaction", events(100), batch_events=10, source="tx-1")
    assert (report.accepted, report.already_applied) == (0, 100)
    assert times_of(server) == list(range(100))
    with pytest.raises(InvalidEventError, match="other content"):
        make_client(server.target).ingest("transaction", events(100), batch_events=11, source="tx-1")


def test_a_long_source_never_falls_out_of_what_the_store_remembers(server: FakeServer, client: Any) -> None:
    client.ingest("transaction", events(2500), batch_events=1, source="long", window=64)
    highest: dict[str, int] = {}
    for batch in server.batches:
        highest[batch.producer] = max(highest.get(batch.producer, 0), batch.sequence)
    assert highest == {"long": 1024, "long/1": 1024, "long/2": 452}


def test_refusals_name_the_callers_rows(server: FakeServer, client: Any) -> None:
    server.refuse = {"7": 25, "23": 18}  # memory, future
    data = events(30)
    data["tx_amount"] = [float("inf") if i == 4 else 1.0 for i in range(30)]
    data["tx_datetime"] = [None if i == 21 else T0 + i for i in range(30)]
    seen: list[tuple[int, int]] = []
    report = client.ingest(
        "transaction",
        data,
        batch_events=10,
        on_progress=lambda so_far: seen.append((so_far.events, so_far.refused)),
    )
    assert [(one.row, one.outcome) for one in report.refusals] == [
        (4, Outcome.REFUSED_NOT_FINITE),
        (7, Outcome.REFUSED_MEMORY),
        (21, Outcome.REFUSED_NO_TIME),
        (23, Outcome.REFUSED_FUTURE),
    ]
    assert [(one.field, one.value) for one in report.refusals] == [
        ("tx_amount", "inf"),
        (None, None),  # an older server, which does not say
        ("tx_datetime", None),
        ("tx_datetime", f"'{np.datetime64(T0 + 23, 'ms')}Z'"),
    ]
    assert (report.events, report.accepted, report.refused) == (30, 26, 4)
    assert seen == [(10, 2), (20, 2), (30, 4)]


def test_a_batch_of_nothing_but_refused_events_keeps_its_number(server: FakeServer, client: Any) -> None:
    data = events(30)
    data["tx_datetime"] = [None if 10 <= i < 20 else T0 + i for i in range(30)]
    report = client.ingest("transaction", data, batch_events=10)
    assert (report.events, report.refused, report.accepted) == (30, 10, 20)
    assert [batch.sequence for batch in server.batches] == [1, 3]


def test_a_batch_larger_than_a_message_is_halved(server: FakeServer, make_client: MakeClient) -> None:
    data = events(64) | {"note": ["x" * 1000] * 64}
    client = make_client(server.target, max_message_bytes=20_000)
    report = client.ingest("transaction", data)
    assert (report.accepted, times_of(server)) == (64, list(range(64)))
    assert max(batch.ByteSize() for batch in server.batches) < 20_000
    with pytest.raises(LimitError, match="row 0 alone"):
        make_client(server.target, max_message_bytes=1500).ingest("transaction", data)


def test_tables_and_frames_are_taken_as_they_are(server: FakeServer, client: Any) -> None:
    import pandas as pd
    import pyarrow as pa

    for data in (pa.table(events(25)), pd.DataFrame(events(25)), pa.table(events(25)).to_batches(7)):
        server.events.clear()
        report = client.ingest("transaction", data, batch_events=10)
        assert (report.accepted, times_of(server)) == (25, list(range(25)))


@pytest.mark.parametrize(
    "error",
    [InvalidEventError("line 31 is broken"), TimeoutError("line 31 is late"), grpc.RpcError("line 31")],
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_source_that_breaks_ends_the_ingest_with_its_own_error_when_the_rest_is_in(
    server: FakeServer, client: Any, error: Exception, fails: bool
) -> None:
    """Also where a stream failed on the way, and where the error looks like one of a stream."""

    def source() -> Iterator[dict[str, Any]]:
        yield events(10)
        yield events(10, 10)
        yield events(10, 20)
        raise error

    if fails:
        server.before = failing_once("batch", 2)
    reports = []
    with pytest.raises(type(error), match="line 31"):
        client.ingest("transaction", source(), on_progress=reports.append)
    assert times_of(server) == list(range(30))
    report = reports[-1]
    assert report.events == report.accepted + report.already_applied == 30


def test_a_column_that_cannot_be_read_ends_the_ingest_when_the_rest_is_in(
    server: FakeServer, client: Any
) -> None:
    source = [events(10), {**events(10, 10), "customer_id": 7}, events(10, 20)]
    with pytest.raises(InvalidEventError, match="customer_id: expected a column"):
        client.ingest("transaction", source)
    assert times_of(server) == list(range(10)), "and nothing behind it was sent"


def test_a_key_column_that_is_misspelt_ends_the_ingest_before_any_event_loses_its_key(
    server: FakeServer, client: Any
) -> None:
    data = events(10)
    data["customerid"] = data.pop("customer_id")
    with pytest.raises(InvalidEventError, match=r"'customer_id' is missing .* did you mean 'customerid'"):
        client.ingest("transaction", data)
    assert server.events == []


def nothing(given: Any) -> Iterator[Any]:
    raise given
    yield


@pytest.mark.parametrize(
    ("event", "columns", "settings"),
    [
        ("transactions", {}, {}),
        ("transaction", {}, {"window": 0}),
        ("transaction", {}, {"source": ""}),
        ("transaction", {}, {"ack": "durable"}),
        ("transaction", 7, {}),
        ("transaction", {"tx_datetime": [T0]}, {}),
        ("transaction", LimitError("too much"), {}),
    ],
)
def test_of_an_ingest_that_sent_nothing_it_is_known_that_nothing_was_applied(
    server: FakeServer, client: Any, event: str, columns: Any, settings: dict[str, Any]
) -> None:
    if isinstance(columns, Exception):
        columns = nothing(columns)
    with pytest.raises(FeatureStoreError) as caught:
        client.ingest(event, columns or events(1), **settings)
    assert caught.value.applied is False
    assert server.batches == []


def test_what_another_write_of_the_caller_ended_in_stays_unknown(server: FakeServer, client: Any) -> None:
    error = OutcomeUnknownError("of the client that feeds this one")
    error.ticket = Ticket("a", 1, 1)
    with pytest.raises(OutcomeUnknownError) as caught:
        client.ingest("transaction", nothing(error))
    assert caught.value.applied is None


@pytest.mark.parametrize("settings", [{"batch_events": 0}, {"window": 0}, {"batch_events": 1 << 21}])
def test_limits_are_checked_before_anything_is_sent(
    server: FakeServer, client: Any, settings: dict[str, int]
) -> None:
    with pytest.raises(Exception, match="must be from 1 to"):
        client.ingest("transaction", events(1), **settings)
    assert "stream" not in server.calls
