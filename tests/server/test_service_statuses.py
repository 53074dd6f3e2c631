"""What a call that cannot be answered is ended with: each status by its name, with words that help, and the
server unharmed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from house import T0, House, Serving, batch, event, field, keys, observe, play, read, status_of

from featurestore import errors
from featurestore.server.dispatcher import INGEST, Dispatcher
from featurestore.server.status import Status, applied_of, words_of
from featurestore.server.status import status_of as code_of
from featurestore.storage import failpoint
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import registry_service_pb2 as registry
from featurestore.v1 import types_pb2 as types

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def raw(house: House, method: str) -> Callable[[bytes], bytes]:
    return house.channel.unary_unary(f"/featurestore.v1.FeatureStoreService/{method}")


def unharmed(house: House) -> None:
    assert house.hot.Observe(observe(play())).outcome == types.OUTCOME_ACCEPTED
    assert house.server.dispatcher.n_busy == 0


@pytest.mark.parametrize("method", ["Observe", "Ingest", "GetFeatures"])
def test_malformed(house: House, method: str) -> None:
    code, words = status_of(lambda: raw(house, method)(b"\x0a\xff"))
    assert code is INVALID
    assert "malformed near byte" in words
    unharmed(house)


@pytest.mark.parametrize(
    ("method", "whole"),
    [
        ("Observe", observe(play()).SerializeToString()),
        ("Ingest", batch(play()).SerializeToString()),
        ("GetFeatures", read(keys(ip="a")).SerializeToString()),
    ],
)
def test_truncated(house: House, method: str, whole: bytes) -> None:
    position = house.engine.state.position
    call = raw(house, method)
    refused = 0
    for size in range(1, len(whole)):
        try:
            call(whole[:size])
        except grpc.RpcError as error:
            assert error.code() is INVALID, (size, error.details())
            refused += 1
    assert refused > len(whole) // 2
    if method == "GetFeatures":
        assert house.engine.state.position == position
    unharmed(house)


def test_oversized(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, max_message_bytes=4096) as house:
        code, _ = status_of(lambda: house.hot.Ingest(batch(*[play()] * 500)))
        assert code is EXHAUSTED
        code, words = status_of(lambda: house.hot.GetFeatures(read(*[keys()] * 200)))
        assert code is EXHAUSTED
        assert "ask for fewer key sets" in words
        unharmed(house)


def test_a_reply_too_large_is_refused_before_anything_is_written(tmp_path: Path, serving: Serving) -> None:
    windows = ", ".join(f"{h}h" for h in range(1, 11))
    views = "".join(
        f"  v{i}: {{event: e, key: k, windows: [{windows}], features: [count]}}\n" for i in range(10)
    )
    schema = (
        "version: 1\nname: wide\nevents: {e: {time: {field: t, unit: ms}, fields: {k: key}}}\n"
        f"views:\n{views}services:\n  wide: [{', '.join(f'v{i}.*' for i in range(10))}]\n"
    )
    with serving(tmp_path, schema=schema, max_message_bytes=2048) as house:
        position = house.engine.state.position
        code, words = status_of(
            lambda: house.hot.Observe(observe(event(T0, k="a"), "e", "wide", bounds=True))
        )
        assert code is EXHAUSTED
        assert "2048 bytes" in words
        assert house.engine.state.position == position


def test_too_many_events(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, max_batch_events=10) as house:
        code, words = status_of(lambda: house.hot.Ingest(batch(*[play()] * 11)))
        assert code is EXHAUSTED
        assert "more than 10 rows" in words
        unharmed(house)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda h: h.hot.Ingest(batch(play(), event_type="plai")),
            "unknown event type 'plai'; did you mean play?",
        ),
        (
            lambda h: h.hot.Observe(observe(play(), service="abus")),
            "unknown service 'abus'; did you mean abuse?",
        ),
        (lambda h: h.hot.GetFeatures(read(service="abus")), "unknown service 'abus'; did you mean abuse?"),
        (
            lambda h: h.hot.Ingest(batch(event(T0, acount=1))),
            "unknown field 'acount' of event type play; did you mean account?",
        ),
        (
            lambda h: h.hot.GetFeatures(read(keys(acount=1))),
            "unknown key part 'acount'; did you mean account?",
        ),
    ],
)
def test_unknown_names_get_a_suggestion(house: House, call: Callable[[House], Any], words: str) -> None:
    code, said = status_of(lambda: call(house))
    assert code is INVALID
    assert words in said
    unharmed(house)


def test_an_unknown_name_as_long_as_a_message_is_answered_in_short(house: House) -> None:
    code, words = status_of(lambda: house.hot.GetFeatures(read(service="ü" * 4_000_000)))
    assert code is INVALID
    assert len(words) < 2500
    unharmed(house)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            pb.IngestRequest(event_type="play", rows=[play()], columns=types.EventColumns(times_ms=[T0])),
            "one or the other",
        ),
        (batch(types.Event(time_ms=T0, fields=[field("ip", "a"), field("ip", "b")])), "gives 'ip' twice"),
        (batch(types.Event(time_ms=T0, values=[types.Value(text="a")] * 9)), "more values than the 4 fields"),
        (batch(play(), ack=9), "unknown value of ack"),
        (batch(play(), producer="p" * 257), "the producer's name is longer than"),
        (batch(play(), producer="p" * 256), "the producer's name is longer than"),
        (
            pb.IngestRequest(
                event_type="play",
                columns=types.EventColumns(
                    times_ms=[T0, T0],
                    columns=[types.NamedColumn(name="ip", texts=types.TextColumn(data=b"a", lengths=[1]))],
                ),
            ),
            "another number of rows",
        ),
    ],
)
def test_requests_that_contradict_themselves(house: House, request_: pb.IngestRequest, words: str) -> None:
    code, said = status_of(lambda: house.hot.Ingest(request_))
    assert code is INVALID
    assert words in said
    unharmed(house)


def test_wrong_types_of_keys_and_times_of_a_read(house: House) -> None:
    for request, words in (
        (read(keys(ip=1.5)), "not whole"),
        (read(keys(ip=True)), "truth value"),
        (read(keys(ip="x" * 4097)), "longer than 4096 bytes"),
        (read(keys(ip="a"), as_of_ms=10**15), "outside the years 1 to 9999"),
        (read(keys(ip="a"), as_of_ms=T0, as_of_each_ms=[T0]), "both given"),
        (read(keys(ip="a"), as_of_each_ms=[T0, T0]), "another number of rows"),
    ):
        code, said = status_of(lambda request=request: house.hot.GetFeatures(request))
        assert code is INVALID
        assert words in said
    unharmed(house)


def test_a_stale_fingerprint_is_a_failed_precondition(house: House) -> None:
    for call in (
        lambda: house.hot.GetFeatures(read(keys(ip="a"), fingerprint=1)),
        lambda: house.hot.Observe(observe(play(), fingerprint=1)),
    ):
        position = house.engine.state.position
        code, words = status_of(call)
        assert code is PRECONDITION
        assert "GetSchema" in words
        assert house.engine.state.position == position


def test_sequences_that_cannot_be_judged(house: House) -> None:
    def send(sequence: int, *, epoch: int = 5, account: int = 1) -> pb.IngestResponse:
        return house.hot.Ingest(batch(play(account=account), producer="p", epoch=epoch, sequence=sequence))

    send(5000)
    code, words = status_of(lambda: send(5000 - 1025))
    assert (code, "event ids would" in words) == (PRECONDITION, True)
    code, words = status_of(lambda: send(5000, account=2))
    assert (code, "other content" in words) == (INVALID, True)
    code, words = status_of(lambda: send(1, epoch=4))
    assert (code, "fenced-off" in words) == (PRECONDITION, True)
    assert send(5000 - 1024).accepted == 1, "gaps may be filled within the window"


def test_an_unknown_method_is_unimplemented(house: House) -> None:
    code, _ = status_of(lambda: raw(house, "Explode")(b""))
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_streams_leave_calls_their_places(tmp_path: Path, serving: Serving) -> None:
    """As many streams are open as calls may be in work, of each kind: they are of another."""
    with serving(tmp_path, max_concurrent_calls=2) as house:
        done = threading.Event()

        def hold() -> Any:
            yield pb.GetFeaturesStreamRequest(read=read(keys(ip="a")))
            done.wait(60)

        held = [house.hot.GetFeaturesStream(hold()) for _ in range(2)]
        for stream in held:
            next(stream)
        house.hot.GetFeatures(read(*[keys(ip="a")] * 3000), timeout=30)
        house.hot.Ingest(batch(play()), timeout=30)
        done.set()
        for stream in held:
            assert list(stream) == []


def test_more_streams_than_allowed_are_refused_and_unary_calls_go_on(
    tmp_path: Path, serving: Serving
) -> None:
    with serving(tmp_path, max_streams=1, read_threads=1) as house:
        done = threading.Event()

        def hold() -> Any:
            yield pb.GetFeaturesStreamRequest(read=read(keys(ip="a")))
            done.wait(60)

        held = house.hot.GetFeaturesStream(hold())
        next(held)
        code, words = status_of(lambda: next(house.hot.GetFeaturesStream(iter([]), timeout=30)))
        assert code is EXHAUSTED
        assert words.startswith("1 streams ")
        house.hot.GetFeatures(read(keys(ip="a")), timeout=30)
        done.set()
        assert list(held) == []


@pytest.mark.usefixtures("disk")
def test_a_failed_sync_is_unavailable_and_acknowledges_nothing(house: House) -> None:
    house.hot.Observe(observe(play()))
    failpoint.arm("journal.before_sync=eio")
    code, words = status_of(lambda: house.hot.Observe(observe(play(), ack=types.ACK_DURABLE)))
    assert code is UNAVAILABLE
    assert "restart" in words
    code, words = status_of(lambda: house.hot.Ingest(batch(play())))
    assert code is UNAVAILABLE
    assert "takes no more writes" in words
    assert house.hot.GetFeatures(read(keys(ip="1.2.3.4"))).vectors.rows == 1, "reads go on from memory"
    assert house.server.wait() is False


@pytest.mark.usefixtures("disk")
def test_a_full_disk_is_exhausted_and_resumes_by_itself(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path) as house:
        house.hot.Observe(observe(play()))
        house.engine.journal.roll()
        failpoint.arm("journal.allocate=enospc")
        position = house.engine.state.position
        refused = 0
        for _ in range(200):  # until a new segment is needed
            try:
                house.hot.Ingest(batch(*[play(ip="x" * 4000)] * 250))
            except grpc.RpcError as error:
                assert error.code() is EXHAUSTED
                assert "the disk is full" in error.details()
                refused += 1
                break
            position = house.engine.state.position
        assert refused == 1
        assert house.engine.state.position == position, "nothing of it was applied"
        for _ in range(100):
            try:
                house.hot.Observe(observe(play()))
                return
            except grpc.RpcError as error:
                assert error.code() is EXHAUSTED
                threading.Event().wait(0.1)
        raise AssertionError("writes did not resume")


def test_every_error_of_ours_has_a_status() -> None:
    kinds = [
        e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.FeatureStoreError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert (code_of(kind("x")) is Status.INTERNAL) == (kind is errors.FeatureStoreError)


def applied(call: Any) -> str | None:
    """What a call that must fail says of it."""
    with pytest.raises(grpc.RpcError) as failure:
        call()
    return dict(failure.value.trailing_metadata() or ()).get("featurestore-applied")


def test_only_who_knows_that_nothing_was_applied_says_so() -> None:
    """A change of the schema, say, that ran into a limit half way."""
    for error in (MemoryError(), TimeoutError("x"), ValueError("x"), errors.LimitError("x")):
        assert applied_of(error) == "unknown"
    assert "applied" not in words_of(MemoryError())
    known = errors.LimitError("x")
    known.applied = False
    assert applied_of(known) == "no"


def test_a_call_too_many_is_known_not_to_be_applied(house: House) -> None:
    full = Dispatcher(house.engine, max_calls=0)
    try:
        with pytest.raises(errors.LimitError, match="0 requests are in work") as told:
            full.call(INGEST, batch(play()).SerializeToString())
    finally:
        full.close()
    assert applied_of(told.value) == "no"


def test_what_is_unknown_stays_so_where_there_are_no_words_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is out of memory when it has to say why."""
    house.hot.Ingest(batch(play(), producer="p", epoch=5, sequence=1))

    def fails(error: BaseException) -> Status:
        raise MemoryError

    monkeypatch.setattr("featurestore.server.dispatcher.status_of", fails)
    fenced = batch(play(), producer="p", epoch=4, sequence=1)
    assert applied(lambda: house.hot.Ingest(fenced)) == "unknown"


def test_what_only_reads_says_no_and_what_ends_well_says_nothing(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, max_watches=1) as house:
        assert applied(lambda: house.registry.GetSchema(registry.GetSchemaRequest(service="abus"))) == "no"
        health = health_pb2_grpc.HealthStub(house.channel)
        held = health.Watch(health_pb2.HealthCheckRequest())
        next(held)
        assert applied(lambda: next(health.Watch(health_pb2.HealthCheckRequest(), timeout=30))) == "no"
        held.cancel()
        _, call = house.hot.Ingest.with_call(batch(play()))
        assert "featurestore-applied" not in dict(call.trailing_metadata() or ())


def test_the_inside_is_not_told() -> None:
    assert code_of(ZeroDivisionError("secret")) is Status.INTERNAL
    assert "secret" not in words_of(ZeroDivisionError("secret"))
    assert len(words_of(errors.LimitError("x" * 100_000))) <= 2000
