"""A real `featurestore serve` under kill -9, with clients writing over each transport: nothing that was
answered is lost, nothing is counted twice.

Every batch has a key of its own beside its client's. So GetFeatures tells of each batch, after each restart,
whether it was applied whole, in part, twice or not at all; and what a client sends again after that must be
answered by what the read found. The oracle is what the clients sent and what they were answered.

Clients send by Ingest with several calls at once, by IngestStream with several batches unanswered, and by
Observe; in rows and in columns, and the other way round when they send again; with every `ack`. Servers take
turns at both modes of durability, on one store: neither may lose anything to a kill.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import transports

from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import feature_store_service_pb2_grpc as pb_grpc
from featurestore.v1 import types_pb2 as types

from .kill import History, Killed, kill_loop
from .rounds import scaled

SCHEMA = """\
version: 1
name: killed
events:
  play:
    time: {field: ts, unit: ms}
    fields: {client: key, batch: key, n: number}
views:
  client:
    event: play
    key: client
    windows: [lifetime]
    features: [count, sum(n)]
  batch:
    event: play
    key: batch
    windows: [lifetime]
    features: [count, sum(n)]
services:
  clients: [client.*]
  batches: [batch.*]
  both: [client.*, batch.*]
"""
T0 = 1_522_540_800_000  # 2018-04-01
PATIENCE_S = 600.0  # for a call to a live server; only a fault takes so long
CALLS_AT_ONCE = 4
UNANSWERED_BATCHES = 12
SENT_AGAIN = 5  # of those that were answered, after a restart
# A read of so many keys is one call, and its reply is within every limit.
KEYS_AT_ONCE = 20_000


@dataclass(eq=False)
class Batch:
    key: str
    epoch: int
    sequence: int
    time_ms: int  # of its first event
    numbers: list[int]  # one event each
    is_answered: bool = False
    is_there: bool = False
    """Found applied when the server was last asked after a restart."""

    @property
    def must_be_there(self) -> bool:
        return self.is_answered or self.is_there


@dataclass(frozen=True)
class Round:
    """One life of the server, as its clients see it."""

    hot: pb_grpc.FeatureStoreServiceStub
    is_group: bool
    attempted: Callable[[str], None]
    acknowledged: Callable[[str], None]


class Client:
    """A producer of batches; how they are sent is its subclass's."""

    most_events = 5

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.batches: list[Batch] = []
        self.epoch = self.sequence = 0
        self.coin = random.Random(f"{name} {seed}")
        self.n_again = 0

    def send(self, batches: Iterator[Batch], now: Round) -> None:
        """All of them, and takes every answer."""
        raise NotImplementedError

    def work(self, now: Round, *, for_ever: bool) -> None:
        """What was not answered is sent again, and some of what was; then, until the server is gone, more."""
        answered = [batch for batch in self.batches[-200:] if batch.is_answered and batch.epoch == self.epoch]
        again = [batch for batch in self.batches if not batch.is_answered]
        again += self.coin.sample(answered, min(SENT_AGAIN, len(answered)))
        self.coin.shuffle(again)
        self.send(iter(again), now)
        if for_ever:
            if self.batches and self.coin.randrange(4) == 0:
                # Everything has its answer: what an older epoch had not got through were refused for good.
                self.epoch, self.sequence = self.epoch + 1, 0
            self.send(iter(self.fresh, None), now)

    def fresh(self) -> Batch:
        self.sequence += self.coin.choice([1, 1, 1, 3])
        numbers = [self.coin.randrange(1, 100) for _ in range(self.coin.randint(1, self.most_events))]
        key = f"{self.name} {self.epoch} {self.sequence}"
        time_ms = T0 + self.most_events * len(self.batches)
        self.batches.append(Batch(key, self.epoch, self.sequence, time_ms, numbers))
        return self.batches[-1]

    def origin(self, batch: Batch) -> dict[str, Any]:
        return {
            "event_type": "play",
            "producer": self.name,
            "epoch": batch.epoch,
            "sequence": batch.sequence,
            "ack": self.coin.choice([types.ACK_UNSPECIFIED, types.ACK_APPLIED, types.ACK_DURABLE]),
        }

    def request(self, batch: Batch) -> pb.IngestRequest:
        request = pb.IngestRequest(**self.origin(batch))
        if self.coin.randrange(2):
            request.rows.extend(self.event(batch, i) for i in range(len(batch.numbers)))
            return request
        n = len(batch.numbers)
        request.columns.times_ms.extend(batch.time_ms + i for i in range(n))
        request.columns.columns.extend(
            [
                types.NamedColumn(name="client", texts=_texts([self.name] * n)),
                types.NamedColumn(name="n", numbers=types.NumberColumn(values=batch.numbers)),
                types.NamedColumn(name="batch", texts=_texts([batch.key] * n)),
            ]
        )
        return request

    def event(self, batch: Batch, i: int) -> types.Event:
        fields = [
            types.Field(name="client", text=self.name),
            types.Field(name="batch", text=batch.key),
            types.Field(name="n", number=batch.numbers[i]),
        ]
        return types.Event(time_ms=batch.time_ms + i, fields=fields)

    def take(self, batch: Batch, request: Any, reply: Any, now: Round) -> None:
        """The answer to an Ingest."""
        expected = (0, True) if batch.must_be_there else (len(batch.numbers), False)
        told = (reply.accepted, reply.duplicate_batch)
        assert told == expected, f"{batch}: answered (accepted, duplicate_batch) {told}"
        assert reply.late == reply.duplicate == reply.refused == 0, f"{batch}: {reply}"
        assert reply.sequence == batch.sequence, f"{batch}: answered as {reply.sequence}"
        self.answered(batch, request, reply, now)

    def answered(self, batch: Batch, request: Any, reply: Any, now: Round) -> None:
        is_ingest = isinstance(request, pb.IngestRequest)
        wanted = request.ack or (types.ACK_DURABLE if now.is_group and is_ingest else types.ACK_APPLIED)
        if wanted == types.ACK_DURABLE and not batch.must_be_there:
            assert reply.ack == types.ACK_DURABLE, f"{batch}: answered with {reply.ack}"
        self.n_again += batch.must_be_there
        batch.is_answered = True
        now.acknowledged(batch.key)


class Unary(Client):
    """Ingest, several calls at once: batches overtake one another."""

    def send(self, batches: Iterator[Batch], now: Round) -> None:
        calls: deque[tuple[Batch, pb.IngestRequest, Any]] = deque()
        for batch in batches:
            request = self.request(batch)
            now.attempted(batch.key)
            calls.append((batch, request, now.hot.Ingest.future(request, timeout=PATIENCE_S)))
            if len(calls) >= CALLS_AT_ONCE:
                self.take_one(calls, now)
        while calls:
            self.take_one(calls, now)

    def take_one(self, calls: deque[tuple[Batch, pb.IngestRequest, Any]], now: Round) -> None:
        batch, request, call = calls.popleft()
        self.take(batch, request, call.result(), now)


class Streamed(Client):
    """IngestStream, several batches unanswered."""

    def send(self, batches: Iterator[Batch], now: Round) -> None:
        sent: queue.SimpleQueue[tuple[Batch, pb.IngestRequest]] = queue.SimpleQueue()
        room, is_over = threading.Semaphore(UNANSWERED_BATCHES), threading.Event()

        def requests() -> Iterator[pb.IngestStreamRequest]:
            for batch in batches:
                room.acquire()
                if is_over.is_set():
                    return
                request = self.request(batch)
                now.attempted(batch.key)
                sent.put((batch, request))
                yield pb.IngestStreamRequest(batch=request)

        stream = now.hot.IngestStream(requests(), timeout=PATIENCE_S)
        try:
            for reply in stream:
                batch, request = sent.get_nowait()
                self.take(batch, request, reply.batch, now)
                room.release()
            assert sent.empty(), "the stream ended well with batches unanswered"
        finally:
            is_over.set()
            room.release()
            stream.cancel()


class Observing(Client):
    """Observe, one call after the other, so that every vector is known beforehand."""

    most_events = 1

    def send(self, batches: Iterator[Batch], now: Round) -> None:
        n_there = sum(batch.must_be_there for batch in self.batches)
        for batch in batches:
            request = pb.ObserveRequest(event=self.event(batch, 0), service="both", **self.origin(batch))
            now.attempted(batch.key)
            reply = now.hot.Observe(request, timeout=PATIENCE_S)
            expected = types.OUTCOME_DUPLICATE if batch.must_be_there else types.OUTCOME_ACCEPTED
            assert reply.outcome == expected, f"{batch}: outcome {reply.outcome}"
            n_there += not batch.must_be_there
            client_count, _, batch_count, batch_sum = reply.vectors.values
            if not batch.must_be_there:
                # A duplicate is read at its own time, and a lifetime cannot be read in its own past.
                assert client_count == n_there, f"{batch}: {n_there} events, observed {client_count}"
            assert (batch_count, batch_sum) == (1, batch.numbers[0]), f"{batch}: {reply.vectors}"
            self.answered(batch, request, reply, now)


def _texts(texts: list[str]) -> types.TextColumn:
    encoded = [text.encode() for text in texts]
    return types.TextColumn(data=b"".join(encoded), lengths=[len(text) for text in encoded])


@dataclass
class Clients:
    """All clients of one store, through all lives of its server."""

    everyone: list[Client]
    address: str = ""
    is_group: bool = True
    wrong: list[str] = field(default_factory=list)
    n_lives: int = 0
    n_found: int = 0
    """Batches found applied that had not been answered."""

    def drive(self, attempted: Callable[[str], None], acknowledged: Callable[[str], None]) -> None:
        """Until the server is gone."""
        self.live(attempted, acknowledged, for_ever=True)

    def live(
        self, attempted: Callable[[str], None], acknowledged: Callable[[str], None], *, for_ever: bool
    ) -> None:
        threads: list[threading.Thread] = []
        with self.channel() as channel:
            now = Round(pb_grpc.FeatureStoreServiceStub(channel), self.is_group, attempted, acknowledged)
            if not self.until_gone(lambda: self.ask_after_restart(now.hot), for_ever):
                return
        for client in self.everyone:
            thread = threading.Thread(target=self.run, args=(client, attempted, acknowledged, for_ever))
            threads.append(thread)
            thread.start()
        for thread in threads:
            thread.join()

    def run(
        self,
        client: Client,
        attempted: Callable[[str], None],
        acknowledged: Callable[[str], None],
        for_ever: bool,
    ) -> None:
        with self.channel() as channel:
            now = Round(pb_grpc.FeatureStoreServiceStub(channel), self.is_group, attempted, acknowledged)
            self.until_gone(lambda: client.work(now, for_ever=for_ever), for_ever)

    def channel(self) -> grpc.Channel:
        """Nothing is tried again but by the clients here; and a connection of its own for each of them."""
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(self.address, options=options)

    def until_gone(self, work: Callable[[], None], may_go: bool) -> bool:
        """Whether the work was done. A server that is killed is UNAVAILABLE, and never anything else."""
        try:
            work()
        except grpc.RpcError as error:
            if not may_go or error.code() is not grpc.StatusCode.UNAVAILABLE:
                self.wrong.append(f"{error.code()}: {error.details()}")
            return False
        except BaseException as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
            return False
        return True

    def ask_after_restart(self, hot: pb_grpc.FeatureStoreServiceStub) -> None:
        """Every batch and every client by its key: what was answered, or found before, is there once; what
        was not is there once or not at all.
        """
        everything = [(client, batch) for client in self.everyone for batch in client.batches]
        found: list[tuple[float, float]] = []
        for begin in range(0, len(everything), KEYS_AT_ONCE):
            some = everything[begin : begin + KEYS_AT_ONCE]
            found += self.read(hot, "batch", [batch.key for _, batch in some])
        counts = dict.fromkeys((client.name for client in self.everyone), (0.0, 0.0))
        for (client, batch), (count, total) in zip(everything, found, strict=True):
            whole = (len(batch.numbers), sum(batch.numbers))
            possible = [whole] if batch.must_be_there else [whole, (0, 0)]
            assert (count, total) in possible, f"{batch}: there are (count, sum) {(count, total)}"
            counts[client.name] = (counts[client.name][0] + count, counts[client.name][1] + total)
        told = self.read(hot, "client", list(counts))
        assert told == list(counts.values()), f"counted {told}, of batches {counts}"
        for (_, batch), (count, _) in zip(everything, found, strict=True):
            self.n_found += bool(count) and not batch.must_be_there
            batch.is_there = bool(count)
        self.n_lives += 1

    def read(
        self, hot: pb_grpc.FeatureStoreServiceStub, part: str, keys: list[str]
    ) -> list[tuple[float, float]]:
        column = types.NamedColumn(name=part, texts=_texts(keys))
        request = pb.GetFeaturesRequest(
            service="clients" if part == "client" else "batches",
            key_columns=types.KeyColumns(parts=[column]),
            bounds=True,
        )
        vectors = hot.GetFeatures(request, timeout=PATIENCE_S).vectors
        assert (vectors.rows, vectors.width, vectors.bounds) == (len(keys), 2, types.BOUNDS_EXACT)
        return list(zip(vectors.values[::2], vectors.values[1::2], strict=True))

    def check_fences(self) -> int:
        """What comes again in an epoch that is over is refused, and so counted no second time."""
        n_fenced = 0
        with self.channel() as channel:
            hot = pb_grpc.FeatureStoreServiceStub(channel)
            for client in self.everyone:
                if client.batches and client.batches[0].epoch < client.batches[-1].epoch:
                    with pytest.raises(grpc.RpcError) as refused:
                        hot.Ingest(client.request(client.batches[0]), timeout=PATIENCE_S)
                    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                    n_fenced += 1
        return n_fenced

    def check(self, history: History) -> None:
        assert not self.wrong, f"round {history.round_number}, {history.how}: {self.wrong[:3]}"


def test_kills_of_a_server_under_load_lose_and_double_nothing(
    tmp_path: Path, transport: str, measured: Callable[[str], None]
) -> None:
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    kinds = (Unary, Unary, Streamed, Streamed, Observing, Observing)
    clients = Clients([kind(f"{kind.__name__} {i}", 1) for i, kind in enumerate(kinds)])

    def command(number: int) -> list[str]:
        clients.is_group = number % 2 == 0
        return [
            sys.executable, "-m", "featurestore", "serve", "--schema", str(tmp_path / "schema.yaml"),
            "--data", str(tmp_path / "store"), "--clock", "event", "--listen", "127.0.0.1:0", "-o", "json",
            "--durability", "group" if clients.is_group else "process", "--checkpoint-every", "150ms",
            *transports.flags(transport),
        ]  # fmt: skip

    def is_ready(line: bytes) -> bool:
        clients.address = json.loads(line)["listen"]
        return True

    report = kill_loop(
        command,
        clients.check,
        rounds=scaled(200),
        seed=1,
        delay_s=(0.0, 0.6),
        is_ready=is_ready,
        drive=clients.drive,
        timeout_s=PATIENCE_S,
    )
    # The last servers are not killed: everything gets its answer, and a clean end keeps what a kill keeps.
    n_fenced = 0
    for number in range(2):
        last = Killed(command(number), os.environ, is_ready)
        try:
            assert last.ready.wait(PATIENCE_S)
            clients.live(lambda _: None, lambda _: None, for_ever=False)
            n_fenced += clients.check_fences()
            last.process.terminate()
            assert last.wait(PATIENCE_S), "it does not end"
            assert last.process.returncode == 0, last.errors.decode()
        finally:
            last.kill()
            last.bury()
        assert not clients.wrong, clients.wrong
    everyone = clients.everyone
    assert all(batch.is_answered for client in everyone for batch in client.batches)
    n_again = sum(client.n_again for client in everyone)
    measured(
        f"kill -9 of a server over {transport}: {report}; {clients.n_found} of those were found applied, "
        f"{n_again} batches came again and were duplicates, {n_fenced} were fenced off"
    )
    assert report.kills == scaled(200)
    for client in everyone:
        assert sum(batch.is_answered for batch in client.batches) > report.kills_at_work, client.name
