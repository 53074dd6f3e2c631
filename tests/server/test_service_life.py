"""A server's life: where it listens, who may come in, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import transports
from grpc_health.v1 import health_pb2, health_pb2_grpc
from house import SCHEMA, T0, Serving, batch, config, keys, observe, opened, play, read, status_of

from featurestore.config import Tls
from featurestore.engine import Engine
from featurestore.errors import ConfigError, StoreLockedError
from featurestore.server.health import Health
from featurestore.server.serve import Server, open_store
from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import admin_service_pb2_grpc as admin_grpc
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import feature_store_service_pb2_grpc as pb_grpc
from featurestore.v1 import types_pb2 as types


def started(tmp_path: Path, **settings: object) -> None:
    chosen = config(tmp_path, **settings)
    engine = open_store(chosen)
    try:
        with Server(engine, chosen):
            pass
    finally:
        engine.close()


def test_a_port_in_use_is_refused_in_words(tmp_path: Path, transport: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for setting in ("listen", "metrics"):
            with pytest.raises(ConfigError, match=f"{setting}: cannot listen on 127.0.0.1:{port}.*in use"):
                started(tmp_path, **{setting: f"127.0.0.1:{port}"}, **transports.settings(transport))
    assert not (tmp_path / "store" / "admin.sock").exists(), "what was bound before is let go"
    started(tmp_path)


def test_a_socket_that_cannot_be_made_says_why(tmp_path: Path, transport: str) -> None:
    with pytest.raises(ConfigError, match=r"listen: cannot listen on unix:.*/no/a\.sock \(No such file"):
        started(tmp_path, listen=f"unix:{tmp_path}/no/a.sock", **transports.settings(transport))


def test_a_dead_servers_socket_is_replaced(tmp_path: Path) -> None:
    started(tmp_path)
    path = tmp_path / "store" / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    with opened(tmp_path) as house, house.admin() as admin:
        assert admin.Stats(admin_pb.StatsRequest()).schema_version == 1
    assert not path.exists()


def test_a_live_servers_socket_and_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(ConfigError, match="a server answers on"):
            started(tmp_path, admin=f"unix:{path}")
        assert path.exists()
    other = tmp_path / "notes.txt"
    other.write_text("keep")
    with pytest.raises(ConfigError, match="is no socket"):
        started(tmp_path, admin=f"unix:{other}")
    assert other.read_text() == "keep"


def test_a_second_server_on_the_directory_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StoreLockedError):
        open_store(config(tmp_path))


def test_the_public_listener_may_be_a_socket_too(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, listen=f"unix:{tmp_path}/public.sock") as house:
        assert house.hot.Observe(observe(play())).outcome == types.OUTCOME_ACCEPTED


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CA, and a certificate for localhost that it signed, for servers and clients alike."""
    made = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=made, check=True, capture_output=True)

    openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=ca",
        "-days",
        "2",
    )
    openssl(
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "own.key",
        "-out",
        "own.csr",
        "-subj",
        "/CN=localhost",
    )
    (made / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    openssl(
        "x509", "-req", "-in", "own.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "own.pem", "-days", "2", "-extfile", "names",
    )  # fmt: skip
    return {"ca": made / "ca.pem", "certificate": made / "own.pem", "key": made / "own.key"}


def test_tls_and_mutual_tls(tmp_path: Path, papers: dict[str, Path], serving: Serving) -> None:
    mutual = Tls(papers["certificate"], papers["key"], papers["ca"])
    one_sided = Tls(papers["certificate"], papers["key"])
    ca = papers["ca"].read_bytes()
    stranger = grpc.ssl_channel_credentials(ca)
    known = grpc.ssl_channel_credentials(ca, papers["key"].read_bytes(), papers["certificate"].read_bytes())
    with serving(tmp_path, tls=one_sided, admin="localhost:0", admin_tls=mutual) as house:
        with grpc.secure_channel(str(house.server.address), stranger) as channel:
            hot = pb_grpc.FeatureStoreServiceStub(channel)
            assert hot.Observe(observe(play())).outcome == types.OUTCOME_ACCEPTED
        assert status_of(lambda: house.hot.Observe(observe(play()), timeout=5))[0] in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        ), "the fixture's channel speaks no TLS"
        for credentials, is_let_in in ((known, True), (stranger, False)):
            with grpc.secure_channel(str(house.server.admin_address), credentials) as channel:
                admin = admin_grpc.AdminServiceStub(channel)
                if is_let_in:
                    assert admin.Stats(admin_pb.StatsRequest()).schema_version == 1
                else:
                    code, _ = status_of(lambda admin=admin: admin.Stats(admin_pb.StatsRequest(), timeout=5))
                    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_papers_that_are_replaced_while_it_starts_are_those_it_shows(
    tmp_path: Path, papers: dict[str, Path], transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After they were read, and before anybody looks whether they have changed."""
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"
    shutil.copy(papers["certificate"], certificate)
    shutil.copy(papers["key"], key)
    chosen = config(tmp_path, tls=Tls(certificate, key), **transports.settings(transport))
    engine = open_store(chosen)
    server = Server(engine, chosen)
    start = server.front.start

    def replaced_first() -> None:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key),
             "-out", str(certificate), "-subj", "/CN=localhost", "-days", "2"],
            check=True, capture_output=True,
        )  # fmt: skip
        start()

    monkeypatch.setattr(server.front, "start", replaced_first)
    with server:
        shown = (server.address.host, server.address.port)
        assert within_seconds(lambda: ssl.get_server_certificate(shown) == certificate.read_text())
    engine.close()


def test_papers_that_cannot_be_used_are_named(
    tmp_path: Path, papers: dict[str, Path], transport: str
) -> None:
    certificate, key, ca = papers["certificate"], papers["key"], papers["ca"]
    (no_pem := tmp_path / "no.pem").write_text("not a certificate")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "rsa", "-in", str(key), "-aes128", "-passout", "pass:x", "-out", str(locked)],
        check=True, capture_output=True,
    )  # fmt: skip
    for tls, what in (
        (Tls(no_pem, key), f"listen: the certificate {no_pem} and the key {key} cannot be used"),
        (Tls(certificate, no_pem), f"the key {no_pem} cannot be used"),
        (Tls(ca, key), f"the certificate {ca} and the key {key} cannot be used .*MISMATCH"),
        (Tls(certificate, locked), "the key without a password"),
        (Tls(certificate, key, no_pem), f"listen: the client CA {no_pem} cannot be used"),
    ):
        with pytest.raises(ConfigError, match=what):
            started(tmp_path, tls=tls, **transports.settings(transport))
    with pytest.raises(ConfigError, match="admin: the certificate"):
        started(tmp_path, admin="localhost:0", admin_tls=Tls(no_pem, key, ca))


def test_drain_finishes_what_was_begun_and_says_where_a_stream_ended(tmp_path: Path, transport: str) -> None:
    """Batches are under way when the server stops: each that was applied is answered, and nothing else is
    applied.
    """
    chosen = config(tmp_path, drain_s=60.0, **transports.settings(transport))
    engine = open_store(chosen)
    server = Server(engine, chosen)
    server.start()
    watched = []
    with grpc.insecure_channel(str(server.address)) as channel:
        hot = pb_grpc.FeatureStoreServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        watched.append(next(watch).status)

        def endless() -> Iterator[pb.IngestStreamRequest]:
            sequence = 0
            while True:
                sequence += 1
                yield pb.IngestStreamRequest(batch=batch(play(T0), producer="p", sequence=sequence))

        answered = []
        stream = hot.IngestStream(endless())
        idle_reads = hot.GetFeaturesStream(iter_forever())
        next(idle_reads)
        stopper = threading.Thread(target=server.stop)
        code = None
        try:
            for reply in stream:
                answered.append(reply.batch.position)
                if len(answered) == 20:
                    stopper.start()
        except grpc.RpcError as error:
            code = error.code()
        assert code is grpc.StatusCode.UNAVAILABLE
        stopper.join()
        watched.append(next(watch).status)
        with pytest.raises(grpc.RpcError):
            next(idle_reads)
    assert answered[-1] == engine.state.position
    assert len(answered) == engine.stats()["events_accepted"]
    serving_status = health_pb2.HealthCheckResponse
    assert watched == [serving_status.SERVING, serving_status.NOT_SERVING]
    engine.close()


def test_a_watcher_of_its_health_is_told_and_does_not_hold_the_drain_up(
    tmp_path: Path, serving: Serving
) -> None:
    with serving(tmp_path, drain_s=20.0) as house:
        stub = health_pb2_grpc.HealthStub(house.channel)
        watches = [
            stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30)
            for name in ("", "", "unknown")
        ]
        first = [next(watch).status for watch in watches]
        began_s = time.monotonic()
        house.server.stop()
        assert time.monotonic() - began_s < 10
        rest = [[reply.status for reply in watch] for watch in watches]
    statuses = health_pb2.HealthCheckResponse
    assert first == [statuses.SERVING, statuses.SERVING, statuses.SERVICE_UNKNOWN]
    assert rest == [[statuses.NOT_SERVING], [statuses.NOT_SERVING], []]


def within_seconds(holds: Callable[[], bool]) -> bool:
    """Asks no more once it holds: what asks may itself be in the way of the next one."""
    end_s = time.monotonic() + 20
    while not holds():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


def test_a_watcher_that_went_away_is_forgotten(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, max_watches=1) as house:
        stub = health_pb2_grpc.HealthStub(house.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        next(watch)
        code, words = status_of(lambda: next(stub.Watch(health_pb2.HealthCheckRequest())))
        assert (code, "share one" in words) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()

        def has_room() -> bool:
            try:
                return next(stub.Watch(health_pb2.HealthCheckRequest())).status > 0
            except grpc.RpcError:
                return False

        assert within_seconds(has_room)


def test_a_watcher_that_goes_away_while_it_is_told_stops_nothing() -> None:
    """gRPC says that a call is over on the thread that also says that a message has been sent."""
    health = Health(["a"], max_watches=1)
    over: list[Callable[[], None]] = []
    is_over = threading.Event()
    sent = []

    def send(reply: health_pb2.HealthCheckResponse | None) -> None:
        if reply is not None and reply.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            assert is_over.wait(20)
        sent.append(reply)

    context = SimpleNamespace(add_callback=lambda call: over.append(call) or True)
    health.Watch(health_pb2.HealthCheckRequest(service="a"), context, send)
    began_s = time.monotonic()
    health.drain()
    over[0]()
    assert time.monotonic() - began_s < 10
    is_over.set()


def iter_forever() -> Iterator[pb.GetFeaturesStreamRequest]:
    yield pb.GetFeaturesStreamRequest(read=read(keys(ip="a")))
    threading.Event().wait(20)


PROGRAM = """
import json
import sys
from pathlib import Path
from featurestore.config import ServeConfig
from featurestore.server.serve import serve
config = ServeConfig(data=Path(sys.argv[1]), schema=Path(sys.argv[2]).read_text(), listen="localhost:0",
clock="event",
                     checkpoint_every_s=0.2, **json.loads(sys.argv[3]))
sys.exit(serve(config, on_ready=lambda server: print(server.address, flush=True)))
"""


@pytest.fixture
def program(tmp_path: Path, transport: str) -> Iterator[object]:
    settings = json.dumps(transports.settings(transport))
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    running = []

    def run(**environment: str) -> tuple[subprocess.Popen[str], str]:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "store"), str(tmp_path / "schema.yaml"), settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        running.append(child)
        assert child.stdout is not None
        return child, child.stdout.readline().strip()

    yield run
    for child in running:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_last_checkpoint_and_exit_0(
    tmp_path: Path, program: object, number: int
) -> None:
    child, address = program()
    with grpc.insecure_channel(address) as channel:
        hot = pb_grpc.FeatureStoreServiceStub(channel)
        position = hot.Ingest(batch(*[play()] * 10)).position
    child.send_signal(number)
    assert child.wait(30) == 0, child.stderr.read()
    assert not (tmp_path / "store" / "admin.sock").exists()
    with Engine.open(tmp_path / "store") as engine:
        assert (engine.recovered.checkpoint_position, engine.recovered.frames) == (position, 0)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_other_daemons_know_does_not_end_it(program: object, number: int) -> None:
    child, address = program()
    for _ in range(3):
        child.send_signal(number)
    with grpc.insecure_channel(address) as channel:
        hot = pb_grpc.FeatureStoreServiceStub(channel)
        for _ in range(3):
            assert hot.Ingest(batch(play())).accepted == 1
    child.send_signal(signal.SIGTERM)
    child.send_signal(number)
    assert child.wait(30) == 0, child.stderr.read()


def test_a_failed_store_ends_it_with_exit_1_and_keeps_what_was_acknowledged(
    tmp_path: Path, program: object
) -> None:
    child, address = program(FEATURESTORE_FAILPOINT="journal.before_sync:5=eio")
    acknowledged = 0
    with grpc.insecure_channel(address) as channel:
        hot = pb_grpc.FeatureStoreServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            for _ in range(100):
                acknowledged = hot.Observe(observe(play(), ack=types.ACK_DURABLE)).position
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert child.wait(30) == 1
    with Engine.open(tmp_path / "store") as engine:
        assert engine.state.position >= acknowledged > 0


def test_a_checkpoint_without_space_is_logged_and_does_not_end_it(tmp_path: Path, program: object) -> None:
    child, address = program(FEATURESTORE_FAILPOINT="checkpoint.mid=enospc")
    with grpc.insecure_channel(address) as channel:
        hot = pb_grpc.FeatureStoreServiceStub(channel)
        hot.Observe(observe(play()))
        said = child.stderr.readline()  # the checkpoint comes by itself
    assert "No space left on device" in said
    assert "until it is over writes are refused" in said
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0, child.stderr.read()


def test_killed_and_started_again_it_answers_as_before(tmp_path: Path, program: object) -> None:
    child, address = program()
    with grpc.insecure_channel(address) as channel:
        hot = pb_grpc.FeatureStoreServiceStub(channel)
        sent = batch(*(play(T0 + i) for i in range(100)), producer="p", sequence=1)
        hot.Ingest(sent)
        before = hot.GetFeatures(read(keys(ip="1.2.3.4"), bounds=True)).SerializeToString()
    child.kill()
    child.wait(30)
    assert (tmp_path / "store" / "admin.sock").exists(), "nobody was there to remove it"
    _, address = program()
    with grpc.insecure_channel(address) as channel:
        hot = pb_grpc.FeatureStoreServiceStub(channel)
        assert hot.GetFeatures(read(keys(ip="1.2.3.4"), bounds=True)).SerializeToString() == before
        assert hot.Ingest(sent).duplicate_batch


def test_stop_lets_every_thread_go(tmp_path: Path, serving: Serving) -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("featurestore")}

    with serving(tmp_path, metrics="localhost:0") as house:
        house.hot.Observe(observe(play()))
        house.hot.GetFeatures(read(keys(ip="a")))
        list(house.hot.IngestStream(iter([])))
        assert threads()
    assert within_seconds(lambda: not threads()), threads()
