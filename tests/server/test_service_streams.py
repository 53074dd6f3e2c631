"""Streams answer in order, whatever the client does with its side of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from house import T0, House, Serving, batch, keys, observe, play, read, status_of

from featurestore.storage import failpoint
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types


def sending(*requests: pb.IngestRequest) -> Iterator[pb.IngestStreamRequest]:
    return (pb.IngestStreamRequest(batch=request) for request in requests)


def reading(*requests: pb.GetFeaturesRequest) -> Iterator[pb.GetFeaturesStreamRequest]:
    return (pb.GetFeaturesStreamRequest(read=request) for request in requests)


def until(condition: object) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to be")


def test_batches_are_answered_in_order(house: House) -> None:
    n = 100
    replies = list(
        house.hot.IngestStream(
            sending(*(batch(play(T0 + i), producer="p", sequence=i) for i in range(1, n + 1)))
        )
    )
    assert [reply.batch.sequence for reply in replies] == list(range(1, n + 1))
    positions = [reply.batch.position for reply in replies]
    assert positions == list(range(positions[0], positions[0] + n))
    assert all(reply.batch.ack == types.ACK_DURABLE for reply in replies)
    values = house.values(house.hot.GetFeatures(read(keys(ip="1.2.3.4"))).vectors)
    assert values["ip.count_1h"] == n


def test_a_client_that_waits_for_each_answer_gets_it(house: House) -> None:
    """The next batch is only sent when the last one is answered: nothing may wait for more input."""
    turn = threading.Semaphore(1)

    def requests() -> Iterator[pb.IngestStreamRequest]:
        for i in range(5):
            assert turn.acquire(timeout=30)
            yield from sending(batch(play(), sequence=i))

    seen = []
    for reply in house.hot.IngestStream(requests(), timeout=60):
        seen.append(reply.batch.sequence)
        turn.release()
    assert seen == list(range(5))


def test_a_half_closed_stream_is_answered_to_its_end(house: House) -> None:
    stream = house.hot.IngestStream(sending(*(batch(play(), sequence=i) for i in range(20))))
    time.sleep(0.2)  # everything is sent and closed before the first answer is taken
    assert [reply.batch.sequence for reply in stream] == list(range(20))


def test_a_stream_without_messages_ends_well(house: House) -> None:
    assert list(house.hot.IngestStream(iter([]))) == []
    assert list(house.hot.GetFeaturesStream(iter([]))) == []


def test_a_wrong_batch_ends_the_stream_and_those_before_stay(house: House) -> None:
    stream = house.hot.IngestStream(
        sending(batch(play(), sequence=1), batch(play(), event_type="plai"), batch(play(), sequence=3))
    )
    answered = []
    with pytest.raises(grpc.RpcError) as failure:
        answered.extend(reply.batch.sequence for reply in stream)
        pytest.fail("the stream ended well")
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "did you mean play?" in failure.value.details()
    assert answered == [1]
    values = house.values(house.hot.GetFeatures(read(keys(ip="1.2.3.4"))).vectors)
    assert values["ip.count_1h"] == 1
    until(lambda: house.server.dispatcher.n_busy == 0)


def applied_by(stream: Iterator[object]) -> str:
    """What a stream says of it that ends badly."""
    with pytest.raises(grpc.RpcError) as failure:
        for _ in stream:
            pass
    return str(dict(failure.value.trailing_metadata())["featurestore-applied"])


def test_a_stream_that_has_applied_something_never_says_no_again(house: House) -> None:
    """It would be said of a batch whose answer is lost behind the error."""
    wrong = batch(play(), event_type="plai")
    assert applied_by(house.hot.IngestStream(sending(wrong))) == "no"
    go_on = threading.Event()

    def requests() -> Iterator[pb.IngestStreamRequest]:
        yield from sending(batch(play(), sequence=1))
        go_on.wait(60)
        yield from sending(wrong)

    stream = house.hot.IngestStream(requests())
    assert next(stream).batch.sequence == 1
    go_on.set()
    assert applied_by(stream) == "unknown"


def test_a_drained_stream_that_has_applied_something_does_not_say_no(house: House) -> None:
    done = threading.Event()

    def requests() -> Iterator[pb.IngestStreamRequest]:
        yield from sending(batch(play(), sequence=1))
        done.wait(60)

    stream = house.hot.IngestStream(requests())
    next(stream)
    stopping = threading.Thread(target=house.server.stop)
    stopping.start()
    assert applied_by(stream) == "unknown"
    done.set()
    stopping.join()


def test_malformed_messages_end_a_stream(house: House) -> None:
    for method in ("IngestStream", "GetFeaturesStream"):
        stream = house.channel.stream_stream(f"/featurestore.v1.FeatureStoreService/{method}")
        code, _ = status_of(lambda stream=stream: list(stream(iter([b"\xff"]))))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_cancelled_stream_lets_its_place_go(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, max_streams=1) as house:
        for make in (
            lambda never: house.hot.IngestStream(never(sending(batch(play())))),
            lambda never: house.hot.GetFeaturesStream(never(reading(read(keys(ip="a"))))),
        ):
            done = threading.Event()

            def never_ending(first: Iterator[object], done: threading.Event = done) -> Iterator[object]:
                yield from first
                done.wait(60)

            stream = make(never_ending)
            next(stream)
            stream.cancel()
            done.set()

            def is_free() -> bool:
                try:
                    return list(house.hot.GetFeaturesStream(iter([]))) == []
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    return False

            until(is_free)
        assert house.hot.Observe(observe(play())).outcome == types.OUTCOME_ACCEPTED


def test_a_client_that_does_not_take_answers_is_not_read_further(tmp_path: Path, serving: Serving) -> None:
    """At most `stream_window` batches are applied and unanswered, besides what the transport buffers for the
    client.
    """
    with serving(tmp_path, stream_window=2) as house:
        more = threading.Event()
        sent = []

        def requests() -> Iterator[pb.IngestStreamRequest]:
            for i in range(10_000):
                sent.append(i)
                yield from sending(batch(*[play(ip="a" * 1000, ms_played=float("nan"))] * 100, sequence=i))
                if more.is_set():
                    return

        stream = house.hot.IngestStream(requests())
        before = -1
        while before != len(sent):
            before = len(sent)
            time.sleep(0.5)
        assert len(sent) < 10_000
        more.set()
        answered = [reply.batch.sequence for reply in stream]
        assert answered == list(range(len(answered)))
        assert len(answered) == len(sent)


def test_reads_are_answered_in_order(house: House) -> None:
    house.hot.Ingest(batch(*(play(T0, account=i) for i in range(50) for _ in range(i))))
    requests = reading(*(read(keys(account=i)) for i in range(50)))
    counts = [
        house.values(reply.read.vectors)["account.count_1h"]
        for reply in house.hot.GetFeaturesStream(requests)
    ]
    assert counts == list(range(50))


@pytest.mark.usefixtures("disk")
def test_a_sync_that_fails_ends_the_stream_without_an_answer(house: House) -> None:
    house.hot.Observe(observe(play()))
    failpoint.arm("journal.before_sync=eio")
    stream = house.hot.IngestStream(sending(batch(play(), sequence=1), batch(play(), sequence=2)))
    with pytest.raises(grpc.RpcError) as failure:
        assert [reply.batch.sequence for reply in stream] == []
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
