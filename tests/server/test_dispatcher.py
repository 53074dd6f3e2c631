"""The dispatcher without a transport: whatever the bytes are, a reply or a named error, and the store
unharmed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import SCHEMA, T0, batch, event, keys, observe, play, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.engine import Engine
from featurestore.errors import FeatureStoreError, InvalidEventError, LimitError
from featurestore.server import dispatcher as hot
from featurestore.server.dispatcher import Dispatcher
from featurestore.server.status import Status, status_of
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types

METHODS = range(len(hot.METHODS))
# A request that is answered, for each method.
WELL = [
    observe(play(), bounds=True, coverage=True).SerializeToString(),
    batch(play(), event(None, ip="a"), play(T0 + 5), producer="p", epoch=1, sequence=9).SerializeToString(),
    read(keys(ip="a", account=1, track="t"), keys(), bounds=True, coverage=True).SerializeToString(),
    pb.IngestStreamRequest(batch=batch(play())).SerializeToString(),
    pb.GetFeaturesStreamRequest(read=read(keys(ip="a"), as_of_each_ms=[T0])).SerializeToString(),
]
REPLIES = [
    pb.ObserveResponse,
    pb.IngestResponse,
    pb.GetFeaturesResponse,
    pb.IngestStreamResponse,
    pb.GetFeaturesStreamResponse,
]


@pytest.fixture(scope="module")
def dispatcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dispatcher]:
    """Its store acknowledges when written, so that fuzzing does not wait for the disk."""
    path = tmp_path_factory.mktemp("dispatcher") / "store"
    engine = Engine.open(path, schema=SCHEMA, clock="event", durability="process")
    dispatcher = Dispatcher(engine, max_call_bytes=1 << 19, max_message_bytes=1 << 16)
    yield dispatcher
    dispatcher.close()
    engine.close()


def unharmed(dispatcher: Dispatcher) -> None:
    for method in METHODS:
        if method != hot.INGEST:  # its sequence may have been taken by a mutant of it
            REPLIES[method].FromString(dispatcher.call(method, WELL[method]))
    assert dispatcher.n_busy == 0


def answer(dispatcher: Dispatcher, method: int, message: bytes) -> None:
    """A reply that parses, or an error that blames the request."""
    try:
        reply = dispatcher.call(method, message)
    except FeatureStoreError as error:
        assert status_of(error) in (
            Status.INVALID_ARGUMENT,
            Status.RESOURCE_EXHAUSTED,
            Status.FAILED_PRECONDITION,
        )
        assert str(error)
    else:
        REPLIES[method].FromString(reply)


FUZZ = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(method=st.sampled_from(METHODS), message=st.binary(max_size=200))
def test_random_bytes(dispatcher: Dispatcher, method: int, message: bytes) -> None:
    answer(dispatcher, method, message)


@FUZZ
@given(method=st.sampled_from(METHODS), seed=st.integers(0, 2**32))
def test_flipped_cut_and_repeated_bytes(dispatcher: Dispatcher, method: int, seed: int) -> None:
    rng = random.Random(seed)
    message = bytearray(WELL[method])
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(message))
        kind = rng.randrange(3)
        if kind == 0:
            message[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del message[at : at + rng.randrange(1, 4)]
            message += b"\x00"
        else:
            message[at:at] = message[at : at + rng.randrange(1, 20)]
    answer(dispatcher, method, bytes(message))


def test_after_all_that_it_answers_as_ever(dispatcher: Dispatcher) -> None:
    for method in METHODS:
        for other in WELL:
            answer(dispatcher, method, other)
    unharmed(dispatcher)


def dead_disk(engine: Engine, dispatcher: Dispatcher) -> Callable[[], None]:
    """No further write becomes durable, until what it returns is called. The journal's thread is held where
    it tells that one is: by an eventfd that is full.
    """
    full = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(full, 2**64 - 2)
    engine.journal.add_eventfd(full)
    engine.journal.wait_durable(dispatcher.begin(hot.INGEST, batch(play()).SerializeToString())[1])

    def let_go() -> None:
        os.eventfd_read(full)
        engine.journal.remove_eventfd(full)
        os.close(full)

    return let_go


def test_an_unknown_method_is_the_programmers_mistake(dispatcher: Dispatcher) -> None:
    for method in (-1, len(hot.METHODS)):
        with pytest.raises(ValueError, match="method"):
            dispatcher.call(method, b"")
        with pytest.raises(ValueError, match="method"):
            dispatcher.begin(method, b"")
        with pytest.raises(ValueError, match="method"):
            dispatcher.end(method, b"", 0, 0, 0)
    assert dispatcher.n_busy == 0


def test_a_small_request_that_grows_when_decoded_is_refused(dispatcher: Dispatcher) -> None:
    """An empty event takes two bytes to send and some thirty to keep."""
    with pytest.raises(LimitError, match="memory"):
        dispatcher.call(hot.INGEST, batch(*[types.Event()] * 32_000).SerializeToString())
    unharmed(dispatcher)


def test_an_error_is_put_in_the_words_of_the_schema_that_it_is_about(dispatcher: Dispatcher) -> None:
    with pytest.raises(
        FeatureStoreError, match="unknown field 'acount' of event type play; did you mean account"
    ):
        dispatcher.call(hot.INGEST, batch(event(T0, acount=1)).SerializeToString())


def test_calls_are_counted_by_status_and_time(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "store", schema=SCHEMA, clock="event") as engine:
        dispatcher = Dispatcher(engine)
        dispatcher.call(hot.OBSERVE, WELL[hot.OBSERVE])
        with pytest.raises(InvalidEventError):
            dispatcher.call(hot.READ, b"\xff")
        for _ in range(2):
            dispatcher.call(hot.READ, WELL[hot.READ])
        begun = dispatcher.begin(hot.INGEST_STREAM, WELL[hot.INGEST_STREAM])
        assert dispatcher.counts()["methods"]["IngestStream"]["calls"] == 0
        reply = dispatcher.end(hot.INGEST_STREAM, *begun)
        assert pb.IngestStreamResponse.FromString(reply).batch.ack == types.ACK_DURABLE
        dispatcher.count_heaviest(time.monotonic_ns(), 9)
        counts = dispatcher.counts()["methods"]
        assert {name: (c["calls"], c["failed"]) for name, c in counts.items()} == {
            "Observe": (1, {}),
            "Ingest": (0, {}),
            "GetFeatures": (3, {3: 1}),
            "IngestStream": (1, {}),
            "GetFeaturesStream": (0, {}),
            "GetHeaviest": (1, {9: 1}),
        }
        for c in counts.values():
            assert sum(n for _, n in c["latencies"]) == c["calls"]
        bounds = [bound for bound, _ in counts["Observe"]["latencies"]]
        assert bounds == sorted(bounds)
        dispatcher.close()


def test_a_parked_reply_waits_for_the_disk_and_no_longer_than_asked(tmp_path: Path) -> None:
    """In `process` mode the sync is half a second away, unless somebody hurries it, and hurrying is part of
    parking.
    """
    with Engine.open(tmp_path / "store", schema=SCHEMA, clock="event", durability="process") as engine:
        dispatcher = Dispatcher(engine)
        for ack, is_parked in (
            (types.ACK_APPLIED, False),
            (types.ACK_UNSPECIFIED, False),
            (types.ACK_DURABLE, True),
        ):
            message = batch(play(), ack=ack).SerializeToString()
            begun = dispatcher.begin(hot.INGEST, message)
            position = begun[1]
            assert bool(position) == is_parked
            reply = dispatcher.end(hot.INGEST, *begun, timeout_s=30.0)
            if is_parked:
                assert engine.journal.durable_position >= position
            assert pb.IngestResponse.FromString(reply).ack == (
                types.ACK_DURABLE if is_parked else types.ACK_APPLIED
            )
        dispatcher.close()


@pytest.mark.parametrize("durability", ["group", "process"])
@pytest.mark.parametrize("observe_ack", ["applied", "durable"])
def test_an_observe_waits_for_what_it_asks_for_or_what_the_server_was_told(
    tmp_path: Path, durability: str, observe_ack: str
) -> None:
    """Whatever the store's mode, which is for Ingest."""
    store = tmp_path / "store"
    with Engine.open(store, schema=SCHEMA, clock="event", durability=durability) as engine:
        dispatcher = Dispatcher(engine, observe_ack=observe_ack)
        told = {"applied": types.ACK_APPLIED, "durable": types.ACK_DURABLE}[observe_ack]
        for asked in (types.ACK_UNSPECIFIED, types.ACK_APPLIED, types.ACK_DURABLE):
            message = observe(play(), ack=asked).SerializeToString()
            reply = pb.ObserveResponse.FromString(dispatcher.call(hot.OBSERVE, message))
            assert reply.ack == (asked or told)
            if reply.ack == types.ACK_DURABLE:
                assert engine.journal.durable_position >= reply.position
        dispatcher.close()


@pytest.mark.parametrize("n_refused", [0, 200])
def test_what_the_disk_has_not_in_time_is_answered_as_applied(tmp_path: Path, n_refused: int) -> None:
    """In each message that may wait, wherever its ack stands, and nothing else of it changes."""
    with Engine.open(tmp_path / "store", schema=SCHEMA, clock="event") as engine:
        dispatcher = Dispatcher(engine)
        let_go = dead_disk(engine, dispatcher)
        observed = observe(play(), bounds=True, ack=types.ACK_DURABLE)
        ingested = batch(play(), *[types.Event()] * n_refused, sequence=2**40)
        for made, method, message in (
            (pb.ObserveResponse, hot.OBSERVE, observed),
            (pb.IngestResponse, hot.INGEST, ingested),
            (pb.IngestStreamResponse, hot.INGEST_STREAM, pb.IngestStreamRequest(batch=ingested)),
        ):
            raw = message.SerializeToString()
            begun = dispatcher.begin(method, raw)
            assert begun[1]
            late = made.FromString(dispatcher.end(method, *begun, timeout_s=0.0))
            called = made.FromString(dispatcher.call(method, raw, 0.0))
            said = made.FromString(begun[0])
            for reply in (said, late, called):
                inner = reply.batch if made is pb.IngestStreamResponse else reply
                assert inner.ack == (types.ACK_DURABLE if reply is said else types.ACK_APPLIED)
                inner.ack = types.ACK_UNSPECIFIED
            assert said == late
        let_go()
        dispatcher.close()


def test_memory_of_calls_is_used_again_and_bounded(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "store", schema=SCHEMA, clock="event", durability="process") as engine:
        dispatcher = Dispatcher(engine, max_calls=3)
        for _ in range(100):
            dispatcher.call(hot.READ, WELL[hot.READ])
        assert dispatcher.n_calls == 1
        refused = []

        def work() -> None:
            large = batch(*[play(ip=str(i)) for i in range(2000)]).SerializeToString()
            for _ in range(20):
                try:
                    dispatcher.call(hot.INGEST, large)
                except LimitError as error:
                    refused.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert dispatcher.n_calls <= 3
        assert dispatcher.n_busy == 0
        assert engine.stats()["events_accepted"] == (8 * 20 - len(refused)) * 2000
        assert all("3 requests are in work" in str(error) for error in refused)
        dispatcher.close()


def test_schema_changes_while_calls_fail(tmp_path: Path) -> None:
    """The words of an error are made after the plan lock is let go, when its schema may be gone."""
    other = SCHEMA.replace("  likes: [likes.*]\n", "")
    with Engine.open(tmp_path / "store", schema=SCHEMA, clock="event", durability="process") as engine:
        dispatcher = Dispatcher(engine)
        stop = threading.Event()
        wrong: list[BaseException] = []
        message = batch(event(T0, acount=1)).SerializeToString()

        def fail() -> None:
            while not stop.is_set():
                try:
                    dispatcher.call(hot.INGEST, message)
                except FeatureStoreError as error:
                    if "did you mean account?" not in str(error):
                        wrong.append(error)
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=fail) for _ in range(4)]
        for thread in threads:
            thread.start()
        for i in range(30):
            engine.apply_schema((other, SCHEMA)[i % 2], allow=("drop", "order"))
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        dispatcher.close()


def test_a_busy_store_does_not_keep_a_schema_change_waiting(tmp_path: Path) -> None:
    """Calls overlap all the time; the change still comes after those under way and before those after it."""
    other = SCHEMA.replace("  likes: [likes.*]\n", "")
    with Engine.open(tmp_path / "store", schema=SCHEMA, clock="event", durability="process") as engine:
        dispatcher = Dispatcher(engine)
        message = batch(*[play(ip=str(i)) for i in range(2000)]).SerializeToString()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                dispatcher.call(hot.INGEST, message)

        def n_calls() -> int:
            return dispatcher.counts()["methods"]["Ingest"]["calls"]

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        while n_calls() < 50:
            stop.wait(0.01)
        waited = []
        for i in range(4):
            before = n_calls()
            engine.apply_schema((other, SCHEMA)[i % 2], allow=("drop", "order"))
            waited.append(n_calls() - before)
        stop.set()
        for thread in threads:
            thread.join()
        assert max(waited) < 1000, waited
        dispatcher.close()


PERIOD_NS, N_PERIODS = 1 << 32, 16  # as the dispatcher counts calls: some 4 s, and some 64 s of them


@pytest.mark.parametrize("seed", range(5))
def test_a_rate_is_of_the_calls_of_the_last_minute(seed: int) -> None:
    """Against all times of calls, kept: those of the period under way and of fifteen before."""
    rng = random.Random(seed)
    began_ns = now_ns = rng.randrange(1 << 62)
    asked, times = hot.Asked(began_ns), []
    assert asked.calls_per_s(now_ns) == 0
    for _ in range(400):
        now_ns += rng.choice((0, 1, 10**6, 10**9, PERIOD_NS - now_ns % PERIOD_NS, 20 * 10**9))
        now_ns += rng.random() < 0.01 and 17 * PERIOD_NS * rng.randrange(1, 1000)
        for _ in range(rng.randrange(4)):
            asked.count(now_ns)
            times.append(now_ns)
        since_ns = max((now_ns // PERIOD_NS - N_PERIODS + 1) * PERIOD_NS, began_ns)
        seconds = max(1.0, (now_ns - since_ns) / 1e9)
        counted = sum(time_ns >= since_ns for time_ns in times)
        assert asked.calls_per_s(now_ns) == pytest.approx(counted / seconds)


def test_a_steady_rate_is_told_from_the_first_second_and_forgotten_in_a_minute() -> None:
    asked = hot.Asked(10**18)
    for call in range(1000):
        asked.count(10**18 + call * 10**7)  # 100 a second, ten seconds long
        if call >= 100:
            assert asked.calls_per_s(10**18 + call * 10**7) == pytest.approx(100, rel=0.02)
    assert asked.calls_per_s(10**18 + 70 * 10**9) < 17
    assert asked.calls_per_s(10**18 + 80 * 10**9) == 0


def test_a_rate_loses_no_call_to_another_thread() -> None:
    asked, n = hot.Asked(0), 20_000
    now_ns = 1000 * PERIOD_NS
    threads = [
        threading.Thread(target=lambda: [asked.count(now_ns + i * 10**6) for i in range(n)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end_ns = now_ns + n * 10**6
    seconds = (end_ns % PERIOD_NS + (N_PERIODS - 1) * PERIOD_NS) / 1e9
    assert asked.calls_per_s(end_ns) == pytest.approx(4 * n / seconds)
