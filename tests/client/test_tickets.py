"""What is known of a write that failed, and how its ticket finishes it: counted once, whatever was lost."""

from __future__ import annotations

from typing import Any

import pytest

from featurestore.client import AdminClient, Ticket
from featurestore.client.catalog import event_plan, schema_of
from featurestore.client.failures import Backoff, Failure, Patience
from featurestore.client.sequences import Sequences
from featurestore.client.upload import Upload
from featurestore.errors import (
    ConfigError,
    FeatureStoreError,
    InvalidEventError,
    LimitError,
    OutcomeUnknownError,
    SchemaMismatchError,
    SequenceError,
    StorageError,
    UnavailableError,
)
from featurestore.outcome import Outcome
from featurestore.v1 import feature_store_service_pb2 as service_pb

from .conftest import MakeClient
from .fake_server import Abort, Code, FakeServer, schema_reply

T0 = 1_522_540_800_000
EVENT = {"customer_id": 596, "tx_datetime": T0}
ONCE = Backoff(first_s=60.0)  # of a write: longer than a call has, so that it is tried once


def failing(method: str, *ends: Abort | None) -> Any:
    """Of a method's calls the first end so, one after the other; where it is None, as ever."""

    def script(called: str, number: int) -> None:
        if called == method and number <= len(ends) and (end := ends[number - 1]) is not None:
            raise end

    return script


# ---- as text


@pytest.mark.parametrize(
    "ticket",
    [Ticket("client-0123456789abcdef", 1, 1), Ticket("a@1.2", 0, 0), Ticket("ü b/3", 2**64 - 1, 2**64 - 1)],
)
def test_a_ticket_is_text_and_back(ticket: Ticket) -> None:
    assert Ticket.parse(str(ticket)) == ticket


@pytest.mark.parametrize(
    "text",
    ["", "a", "a@1", "a@1.", "@1.1", "a@-1.1", "a@1.1 ", "a@1.1\n", "a\n@1.1", f"a@1.{2**64}", "a@١.1", 7],
)
def test_text_that_is_no_ticket_is_refused(text: Any, client: Any) -> None:
    with pytest.raises(ConfigError, match="is no ticket"):
        Ticket.parse(text)
    with pytest.raises(ConfigError, match="is no ticket"):
        client.observe("transaction", EVENT, ticket=text)


@pytest.mark.parametrize(
    ("producer", "epoch", "sequence"),
    [
        ("", 1, 1),
        ("a" * 256, 1, 1),
        ("ü" * 128, 1, 1),
        ("a\n", 1, 1),
        ("a", -1, 1),
        ("a", 1, 2**64),
        ("a", 1, 1.0),
    ],
)
def test_what_no_server_takes_is_no_ticket(producer: str, epoch: int, sequence: Any) -> None:
    with pytest.raises(ConfigError, match="is no ticket"):
        Ticket(producer, epoch, sequence)
    with pytest.raises(ConfigError, match="is no ticket"):
        Ticket.parse(f"{producer}@{epoch}.{sequence}")
    assert Ticket("ü" * 127 + "a", 1, 1).sequence == 1


# ---- what is known


@pytest.mark.parametrize(
    ("end", "kind", "applied"),
    [
        (Abort(Code.UNAVAILABLE, applied="no"), UnavailableError, False),
        (Abort(Code.UNAVAILABLE, applied="unknown"), OutcomeUnknownError, None),
        (Abort(Code.UNAVAILABLE, applied="what comes later"), OutcomeUnknownError, None),
        (Abort(Code.UNAVAILABLE), OutcomeUnknownError, None),  # a proxy
        (Abort(Code.UNAVAILABLE, applied="no", error="StorageError"), StorageError, False),
        (Abort(Code.UNAVAILABLE, applied="unknown", error="StorageError"), StorageError, None),
        (Abort(Code.DEADLINE_EXCEEDED, applied="no"), UnavailableError, False),
        (Abort(Code.DEADLINE_EXCEEDED), OutcomeUnknownError, None),
        (Abort(Code.RESOURCE_EXHAUSTED, applied="no"), LimitError, False),
        # without a word of the server's: some say it of what was applied, when its answer is too large
        (Abort(Code.RESOURCE_EXHAUSTED), LimitError, None),
        (Abort(Code.RESOURCE_EXHAUSTED, "received metadata size exceeds hard limit"), LimitError, None),
        (Abort(Code.RESOURCE_EXHAUSTED, "SERVER: Sent message larger than max (2 vs. 1)"), LimitError, None),
        (
            Abort(Code.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (2 vs. 1)"),
            LimitError,
            False,
        ),
        (Abort(Code.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"), LimitError, False),
        (Abort(Code.FAILED_PRECONDITION), SequenceError, None),
        # gRPC's words where nothing was sent, as a proxy repeats them
        (Abort(Code.UNAVAILABLE, "failed to connect to all addresses", hop="2"), OutcomeUnknownError, None),
        (Abort(Code.INVALID_ARGUMENT), InvalidEventError, False),
        (Abort(Code.UNIMPLEMENTED), ConfigError, False),
        (Abort(Code.FAILED_PRECONDITION, applied="unknown"), SequenceError, None),
        (Abort(Code.INTERNAL, applied="unknown"), FeatureStoreError, None),
        (Abort(Code.UNKNOWN), FeatureStoreError, None),
    ],
)
def test_an_error_says_what_is_known(
    server: FakeServer,
    make_client: MakeClient,
    end: Abort,
    kind: type[FeatureStoreError],
    applied: bool | None,
) -> None:
    client = make_client(server.target, backoff=ONCE)
    server.before = failing("observe", end)
    with pytest.raises(FeatureStoreError) as told:
        client.observe("transaction", EVENT)
    assert server.calls["observe"] == 1
    assert (type(told.value), told.value.applied) == (kind, applied)
    assert told.value.ticket == (Ticket(client.producer, 1, 1) if applied is None else None)
    assert told.value.__cause__ is not told.value


def test_no_server_is_nothing_sent(make_client: MakeClient) -> None:
    with pytest.raises(UnavailableError) as told:
        make_client("localhost:1", backoff=ONCE).observe("transaction", {"customer_id": 1})
    assert (type(told.value), told.value.applied, told.value.ticket) == (UnavailableError, False, None)


def test_what_is_wrong_here_is_nothing_sent(client: Any) -> None:
    for fields, how in (
        ({"customer_id": object()}, {}),
        (EVENT, {"service": "nobody"}),
        (EVENT, {"timeout_s": -1.0}),
    ):
        with pytest.raises(FeatureStoreError) as told:
            client.observe("transaction", fields, **how)
        assert (told.value.applied, told.value.ticket) == (False, None)


def test_of_what_an_operator_changes_nobody_says_that_it_was_not() -> None:
    with AdminClient("localhost:1", timeout_s=0.5) as admin, pytest.raises(UnavailableError) as told:
        admin.forget({"customer_id": 1})
    assert told.value.applied is None


def test_what_one_try_leaves_open_no_later_one_closes(server: FakeServer, client: Any) -> None:
    """It says only of itself that nothing was applied."""
    server.after = failing("observe", Abort(Code.UNAVAILABLE))
    server.before = failing("observe", None, Abort(Code.INVALID_ARGUMENT, applied="no"))
    with pytest.raises(InvalidEventError) as told:
        client.observe("transaction", EVENT)
    assert told.value.applied is None
    assert client.observe("transaction", EVENT, ticket=told.value.ticket).outcome is Outcome.DUPLICATE
    assert len(server.events) == 1


def test_a_read_is_never_unknown(server: FakeServer, client: Any) -> None:
    server.before = failing("get", *[Abort(Code.UNAVAILABLE, applied="unknown")] * 1000)
    with pytest.raises(UnavailableError) as told:
        client.get("fraud", {"customer_id": 1}, timeout_s=0.5)
    assert (type(told.value), told.value.ticket) == (UnavailableError, None)
    said = Abort(Code.UNAVAILABLE, applied="unknown", error="OutcomeUnknownError")
    server.before = failing("get", *[said] * 1000)
    with pytest.raises(UnavailableError) as told:
        client.get("fraud", {"customer_id": 1}, timeout_s=0.5)
    assert type(told.value) is UnavailableError
    server.before = failing("observe", *[Abort(Code.UNAVAILABLE)] * 1000)
    with pytest.raises(UnavailableError) as told:
        client.observe("transaction", EVENT, "fraud", peek=True, timeout_s=0.5)
    assert (type(told.value), told.value.ticket) == (UnavailableError, None)


def test_an_ingest_says_what_is_known_of_the_batch_it_ended_in(
    server: FakeServer, make_client: MakeClient
) -> None:
    data = {"tx_datetime": [T0] * 30, "customer_id": list(range(30)), "terminal_id": [None] * 30}
    client = make_client(server.target, retry_s=0.2)
    server.after = failing("batch", None, *[Abort(Code.UNAVAILABLE)] * 1000)
    with pytest.raises(OutcomeUnknownError, match="sent anew without a source, which would tell") as told:
        client.ingest("transaction", data, batch_events=10, window=1)
    assert told.value.ticket == Ticket(client.producer, 1, 2)
    server.after = lambda method, n: None
    server.before = failing("batch", *[Abort(Code.UNAVAILABLE, applied="no")] * 1000)
    with pytest.raises(UnavailableError) as known:
        client.ingest("transaction", data, batch_events=10, window=1)
    assert (type(known.value), known.value.applied, known.value.ticket) == (UnavailableError, False, None)
    assert "sent anew" not in str(known.value)


def upload_of(*, window: int, n_cut: int) -> Upload:
    """One of which so many batches are sent."""
    plan = event_plan(schema_of(schema_reply()), "transaction")
    upload = Upload(
        plan,
        Sequences("uploads", 1, holds=True),
        batch_events=1,
        window=window,
        ack=None,
        max_message_bytes=1 << 20,
        patience=Patience(1, 0, Backoff(), "here"),
        on_progress=None,
    )
    upload.feed({"tx_datetime": [T0] * 3, "customer_id": [1, 2, 3], "terminal_id": [None] * 3})
    for _ in range(n_cut):
        assert upload.cut() is not None
    return upload


@pytest.mark.parametrize(
    ("n_cut", "end", "kind", "applied"),
    [
        # whatever is said is said of the last that was judged: one before may be in, and its answer lost
        (2, Failure(Code.INVALID_ARGUMENT, "x", said="no"), InvalidEventError, None),
        (2, Failure(Code.UNAVAILABLE, "x", said="no"), OutcomeUnknownError, None),
        (2, Failure(Code.UNAVAILABLE, "failed to connect"), UnavailableError, False),
        (1, Failure(Code.UNAVAILABLE, "x", said="unknown"), OutcomeUnknownError, None),
        (1, Failure(Code.UNAVAILABLE, "x", said="no"), UnavailableError, False),
        # a stream that has applied something says so ever after; that this one was refused is sure
        (1, Failure(Code.INVALID_ARGUMENT, "x", said="unknown"), InvalidEventError, False),
        (0, Failure(Code.UNAVAILABLE, "x"), UnavailableError, None),
    ],
)
def test_a_streams_end_is_of_one_batch(
    n_cut: int, end: Failure, kind: type[FeatureStoreError], applied: bool | None
) -> None:
    upload = upload_of(window=3, n_cut=n_cut)
    with pytest.raises(FeatureStoreError) as told:
        upload.wait_after(end, "here")
    assert (type(told.value), told.value.applied) == (kind, applied)
    assert told.value.ticket == (Ticket("uploads", 1, 1) if n_cut and applied is None else None)


def test_what_is_answered_leaves_nothing_open() -> None:
    """A stream broke under the first batch, which was answered on the next: the second was only refused."""
    upload = upload_of(window=1, n_cut=1)
    upload._patience.retry_s = 60
    upload.wait_after(Failure(Code.UNAVAILABLE, "x"), "here")
    reply = service_pb.IngestResponse(sequence=1, ack="ACK_DURABLE", accepted=1, position=1)
    upload.answered(service_pb.IngestStreamResponse(batch=reply).SerializeToString())
    assert upload.cut() is not None
    with pytest.raises(InvalidEventError) as told:
        upload.wait_after(Failure(Code.INVALID_ARGUMENT, "x", said="no"), "here")
    assert told.value.applied is False


# ---- and how it is finished


@pytest.mark.parametrize("was_applied", [True, False])
@pytest.mark.parametrize("how", ["the same client", "another client", "text, by another client"])
def test_a_ticket_finishes_a_write_from_wherever(
    server: FakeServer, make_client: MakeClient, was_applied: bool, how: str
) -> None:
    client = make_client(server.target)
    lost = failing("observe", Abort(Code.UNKNOWN))  # not tried again by itself
    server.before, server.after = (server.before, lost) if was_applied else (lost, server.after)
    with pytest.raises(FeatureStoreError) as told:
        client.observe("transaction", EVENT)
    ticket = str(told.value.ticket) if how.startswith("text") else told.value.ticket
    finisher = client if how == "the same client" else make_client(server.target)
    seen = finisher.observe("transaction", EVENT, "fraud", ticket=ticket)
    assert seen.outcome is (Outcome.DUPLICATE if was_applied else Outcome.ACCEPTED)
    assert seen.vector is not None
    assert len(server.events) == 1


def test_tickets_may_be_had_before_anything_is_sent(server: FakeServer, client: Any) -> None:
    """However many, and used in any order, no number falls behind its producer's highest by what the store
    remembers: FakeServer judges as that does."""
    tickets = [client.ticket() for _ in range(3000)]
    assert len(set(tickets)) == 3000
    for ticket in [tickets[-1], *tickets[::1000], tickets[999], tickets[500]]:
        assert client.observe("transaction", EVENT, ticket=ticket).outcome is Outcome.ACCEPTED


def overtaken(server: FakeServer, client: Any, ticket: Ticket, n: int) -> None:
    """So many of the client's writes pass, and then the ticket is used, twice."""
    for _ in range(n):
        client.observe("transaction", EVENT)
    server.events.clear()
    assert client.observe("transaction", EVENT, ticket=str(ticket)).outcome is Outcome.ACCEPTED
    assert client.observe("transaction", EVENT, ticket=ticket).outcome is Outcome.DUPLICATE
    assert len(server.events) == 1


def test_a_ticket_may_wait_while_a_thousand_writes_pass(server: FakeServer, client: Any) -> None:
    ticket = client.ticket()
    overtaken(server, client, ticket, 1100)
    assert {one.producer for one in server.observed} == {client.producer, f"{client.producer}/1"}
    client.observe("transaction", EVENT)
    assert server.observed[-1].producer == client.producer, "nothing waits any more"


def test_a_write_of_unknown_outcome_may_wait_while_a_thousand_pass(
    server: FakeServer, make_client: MakeClient
) -> None:
    client = make_client(server.target, backoff=ONCE)
    server.before = failing("observe", Abort(Code.UNAVAILABLE))
    with pytest.raises(OutcomeUnknownError) as told:
        client.observe("transaction", EVENT)
    overtaken(server, client, told.value.ticket, 1100)


def test_under_a_given_name_numbers_follow_the_order_of_the_writes(
    server: FakeServer, make_client: MakeClient
) -> None:
    """Whatever failed: the program that is run again comes to the same. So a ticket is finished before 1,024
    more, or refused."""
    client = make_client(server.target, producer="orders", backoff=ONCE)
    server.before = failing("observe", Abort(Code.UNAVAILABLE))
    with pytest.raises(OutcomeUnknownError) as told:
        client.observe("transaction", EVENT)
    for _ in range(1025):
        client.observe("transaction", EVENT)
    assert [(one.producer, one.sequence) for one in server.observed] == [
        ("orders", n) for n in range(1, 1027)
    ]
    with pytest.raises(SequenceError):
        client.observe("transaction", EVENT, ticket=told.value.ticket)


def test_under_a_callers_ticket_nothing_is_certain_that_was_not_answered(
    server: FakeServer, client: Any
) -> None:
    """Somebody may have sent it before, so that a refusal of this call says nothing of it."""
    ticket = client.ticket()
    server.before = failing("observe", Abort(Code.INVALID_ARGUMENT, applied="no"))
    with pytest.raises(InvalidEventError) as told:
        client.observe("transaction", EVENT, ticket=ticket)
    assert (told.value.applied, told.value.ticket) == (None, ticket)


def test_another_event_under_a_ticket_is_an_error(server: FakeServer, client: Any) -> None:
    ticket = client.ticket()
    client.observe("transaction", EVENT, ticket=ticket)
    with pytest.raises(InvalidEventError, match="other content"):
        client.observe("transaction", EVENT | {"customer_id": 7}, ticket=ticket)
    assert len(server.events) == 1


def test_a_peek_has_no_ticket(client: Any) -> None:
    with pytest.raises(ConfigError, match="a peek writes nothing"):
        client.observe("transaction", EVENT, peek=True, ticket=client.ticket())


def test_a_schema_that_changes_between_two_tries_counts_nothing_twice(
    server: FakeServer, make_client: MakeClient
) -> None:
    """The first was applied, its reply was lost; the second is a duplicate, and its vector is of the service
    as it is by then."""
    client = make_client(server.target, follow=True)

    def script(method: str, n: int) -> None:
        if (method, n) == ("observe", 1):
            server.schema.services[0].fingerprint = 78
            raise Abort(Code.UNAVAILABLE)

    server.after = script
    seen = client.observe("transaction", EVENT, "fraud")
    assert (seen.outcome, len(server.events)) == (Outcome.DUPLICATE, 1)
    assert {one.sequence for one in server.observed} == {1}
    assert len(server.observed) == 2


def test_a_vector_that_goes_between_two_tries_leaves_its_write_to_its_ticket(
    server: FakeServer, client: Any
) -> None:
    """The first was applied, its reply was lost; the second is turned away for its fingerprint."""
    server.after = failing("observe", Abort(Code.UNAVAILABLE))
    gone = Abort(Code.FAILED_PRECONDITION, error="SchemaMismatchError", applied="no")
    server.before = failing("observe", None, gone)
    with pytest.raises(SchemaMismatchError, match="keeps the vector that it reads") as told:
        client.observe("transaction", EVENT, "fraud")
    assert (told.value.applied, told.value.ticket) == (None, Ticket(client.producer, 1, 1))
    assert client.observe("transaction", EVENT, ticket=told.value.ticket).outcome is Outcome.DUPLICATE
    assert len(server.events) == 1
