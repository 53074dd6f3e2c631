"""TLS and mutual TLS: who is let in, what becomes of those who are not, and certificates that are replaced
while the server runs.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hpack
import pytest
import transports
from server.house import opened

from featurestore.config import Tls
from featurestore.v1 import feature_store_service_pb2 as pb
from transport.calls import (
    GET,
    GET_STREAM,
    INGEST,
    OK,
    body_of,
    call,
    count_of,
    eventually_counted,
    fields,
    ingest,
    messages_of,
    play,
    prefixed,
    read,
    read_streamed,
    reply_of,
    request,
    standalone,
)
from transport.conftest import MANNERS, Start
from transport.frames import PREFACE, STRICT, Kind, Wire, headers, settings
from transport.process import METRICS, Process, eventually

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command to make certificates"
)

MIB = 1 << 20
OTHER = "127.0.0.2"  # another peer


@dataclass(frozen=True)
class Paper:
    certificate: Path
    key: Path

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certificate.read_text())

    def replaces(self, other: Paper) -> None:
        """As whoever renews certificates does it: each file at once, one after the other."""
        for new, old in ((self.key, other.key), (self.certificate, other.certificate)):
            put(new.read_bytes(), old)


def put(content: bytes, path: Path) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.rename(path)


class Authority:
    """A CA in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self.ca = directory / "ca.pem"
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        self._curve = curve
        self._openssl(
            "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2"
        )
        (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._directory, check=True, capture_output=True)

    def issue(self, name: str) -> Paper:
        """A certificate for localhost."""
        self._openssl(
            "req", *self._curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=localhost"
        )
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", "names",
        )  # fmt: skip
        return Paper(self._directory / f"{name}.pem", self._directory / f"{name}.key")

    def trusting(self, paper: Paper | None = None, *, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
        """A client that trusts this CA, with a certificate to show or without."""
        made = ssl.create_default_context(cafile=self.ca)
        if alpn:
            made.set_alpn_protocols(list(alpn))
        if paper is not None:
            made.load_cert_chain(paper.certificate, paper.key)
        return made


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that has the same name and signs the same names."""
    return Authority(tmp_path_factory.mktemp("tls") / "foreign")


def flags(paper: Paper, ca: Path | None = None) -> list[str]:
    made = ["--tls-cert", str(paper.certificate), "--tls-key", str(paper.key)]
    return made if ca is None else [*made, "--tls-client-ca", str(ca)]


@pytest.fixture(scope="module")
def server(start: Start, ours: Authority) -> Process:
    return start(*flags(ours.issue("server")), "--min-ping-interval", "0s", *METRICS)


@pytest.fixture(scope="module")
def mutual(start: Start, ours: Authority) -> Process:
    return start(*flags(ours.issue("mutual"), ours.ca), "--min-ping-interval", "0s", *METRICS)


def secure(server: Process, context: ssl.SSLContext, **how: object) -> Wire:
    return Wire(server.address, tls=context, manners=MANNERS.get(server.transport, STRICT), **how)


def is_served(server: Process, context: ssl.SSLContext) -> bool:
    """Whether a client with these papers is let in; otherwise its connection is ended."""
    try:
        with secure(server, context, greet=False) as wire:
            wire.send(PREFACE, settings())
            while not wire.is_closed and not wire.is_greeted:
                assert wire.read_some(30), "neither let in nor turned away"
            if wire.is_greeted:
                assert call(wire, 1, GET, read("a")).status == OK
            return wire.is_greeted
    except (ssl.SSLError, ConnectionError):
        return False


@contextlib.contextmanager
def turned_away(server: Process, n: int, *, beside: int = 0) -> Iterator[None]:
    """In the block so many clients are, which is counted, and nothing is left of them. First the server has
    to see that those of earlier tests are gone, whom it counts only then: but for `beside`, none is there.
    """
    told = server.metrics
    if server.transport == "native":
        eventually(lambda: told()["connections_open"] == beside, "no client of earlier tests is there")
    n_sockets = server.n_sockets()
    before = told().get("tls_handshakes_failed_total", 0.0)
    yield
    if server.transport == "native":
        eventually(lambda: told()["tls_handshakes_failed_total"] >= before + n, "all are seen")
        assert told()["tls_handshakes_failed_total"] == before + n
    eventually(lambda: server.n_sockets() <= n_sockets, "their connections are closed")


# ---- who is let in


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_calls_over_each_version(server: Process, ours: Authority, version: ssl.TLSVersion) -> None:
    context = ours.trusting()
    context.minimum_version = context.maximum_version = version
    with secure(server, context) as wire:
        assert call(wire, 1, GET, read("a")).status == OK
        assert wire.socket.selected_alpn_protocol() == "h2"


def test_what_is_older_is_refused(server: Process, ours: Authority) -> None:
    with turned_away(server, 2):
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            context = ours.trusting()
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning):
                context.minimum_version = context.maximum_version = version
            assert not is_served(server, context)


@pytest.mark.parametrize("offered", [("http/1.1",), ("h2c", "h3")])
def test_a_client_that_offers_other_protocols_than_h2_is_refused(
    server: Process, ours: Authority, offered: tuple[str, ...]
) -> None:
    """RFC 9113, 3.2 and RFC 7301, 3.2."""
    with turned_away(server, 1):
        assert not is_served(server, ours.trusting(alpn=offered))
    assert is_served(server, ours.trusting(alpn=(*offered, "h2")))


def test_a_client_that_offers_no_protocol_is_refused(server: Process, ours: Authority) -> None:
    with turned_away(server, 1):
        assert not is_served(server, ours.trusting(alpn=()))


def test_a_client_without_a_certificate_or_with_a_foreign_one_is_refused(
    mutual: Process, ours: Authority, foreign: Authority
) -> None:
    assert is_served(mutual, ours.trusting(ours.issue("client")))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with turned_away(mutual, 2):
            for paper in (None, foreign.issue("stranger")):
                context = ours.trusting(paper)
                context.minimum_version = context.maximum_version = version
                assert not is_served(mutual, context)


@pytest.mark.deviates(grpcio="resumes sessions")
def test_a_client_does_not_come_back_by_a_ticket(mutual: Process, ours: Authority) -> None:
    """A session that is resumed shows no certificate."""
    context = ours.trusting(ours.issue("returning"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with secure(mutual, context) as wire:
        assert call(wire, 1, GET, read("a")).status == OK
        session = wire.socket.session
    host, _, port = mutual.address.rpartition(":")
    with socket.create_connection((host, int(port))) as plain:
        again = context.wrap_socket(plain, server_hostname="localhost", session=session)
        assert not again.session_reused
        again.close()


# ---- what is no TLS


def wrong_beginnings() -> dict[str, bytes]:
    hello = client_hello()
    made = {
        "HTTP/2": PREFACE + settings(),
        "HTTP/1.1": b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "zeros": bytes(5000),
        "a record that is too long": b"\x16\x03\x01\xff\xff" + bytes(66_000),
        "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
        "a hello spoilt": hello[:40] + bytes(len(hello) - 40),
        "a hello, then none": hello + b"\x17\x03\x03\x00\x20" + bytes(32),
    }
    made |= {f"noise {i}": random.Random(i).randbytes(3000) for i in range(20)}
    return made


def client_hello() -> bytes:
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


def test_what_is_no_tls_leaves_nothing_behind(server: Process, ours: Authority) -> None:
    """Each is closed, and the others do not notice."""
    beginnings = wrong_beginnings()
    with secure(server, ours.trusting()) as other, turned_away(server, 5 * len(beginnings), beside=1):
        number = 1
        for _ in range(5):
            for begun in beginnings.values():
                with Wire(server.address, greet=False) as wire:
                    wire.send(begun)
                    with contextlib.suppress(OSError):  # it has been reset
                        wire.socket.shutdown(socket.SHUT_WR)
                        wire.socket.settimeout(30)
                        while wire.socket.recv(1 << 16):
                            pass
                assert call(other, number, GET, read("a")).status == OK
                number += 2


def test_handshakes_that_are_torn_leave_nothing_behind(server: Process, ours: Authority) -> None:
    hello = client_hello()
    cuts = range(0, len(hello) + 1, 7)
    with turned_away(server, 2 * len(cuts)):
        for cut in cuts:
            for wire in (Wire(server.address, greet=False), Wire(server.address, greet=False)):
                wire.send(hello[:cut])
                wire.close()
    assert is_served(server, ours.trusting())


def test_handshakes_that_never_end_are_closed(start: Start, ours: Authority, transport: str) -> None:
    """After 10 s; all the ways to begin at once, because it takes that long."""
    if transport == "grpcio":
        pytest.skip("it waits two minutes")
    server = start(*flags(ours.issue("patient")), *METRICS)
    n_sockets = server.n_sockets()
    hello = client_hello()
    wires = [Wire(server.address, greet=False).send(hello[:cut]) for cut in (0, 1, 5, 100, len(hello))]
    shaken = [secure(server, ours.trusting(), greet=False) for _ in range(3)]
    for wire, begun in zip(shaken, (b"", PREFACE[:10], PREFACE), strict=True):
        wire.send(begun)
    with secure(server, ours.trusting()) as other:
        assert call(other, 1, GET, read("a")).status == OK
        eventually(lambda: server.n_sockets() <= n_sockets + 1, "only the other is left")
        assert call(other, 3, GET, read("a")).status == OK
        counts = server.metrics()
    assert counts["connections_stalled_total"] == len(wires) + len(shaken)
    for wire in (*wires, *shaken):
        wire.close()


def test_a_handshake_that_is_not_over_does_not_hold_the_drain_up(
    start: Start, ours: Authority, transport: str
) -> None:
    """It is ended while a call in flight keeps the server, and not for being slow."""
    server = start(*flags(ours.issue("drained")), "--drain", "1h", *METRICS)
    hello = client_hello()
    wires = [Wire(server.address, greet=False).send(hello[:cut]) for cut in (0, 100, len(hello))]
    with server.held_disk() as let_go, secure(server, ours.trusting()) as wire:
        wire.send(request(wire, 1, INGEST, ingest(play("in flight"))))
        eventually_counted(wire, 3, "in flight", 1)
        server.child.send_signal(signal.SIGTERM)
        for begun in wires:
            begun.socket.settimeout(30)
            with contextlib.suppress(ConnectionError):
                while begun.socket.recv(1 << 16):
                    pass
            begun.close()
        if transport == "native":
            assert server.metrics()["connections_stalled_total"] == 0
        let_go()
        assert reply_of(wire.over(1)).status == OK
    assert server.child.wait(60) == 0


# ---- many handshakes


@transports.natively
@pytest.mark.parametrize("manner", ["at once", "one after the other"])
def test_handshakes_of_one_peer_wait_and_leave_others_theirs(
    start: Start, ours: Authority, transport: str, manner: str
) -> None:
    """One a second: of twenty the first is begun, a few wait for the time that a handshake may take, and the
    others are closed. Nobody has them anew by going and coming.
    """
    server = start(*flags(ours.issue("greeted")), "--handshake-rate", "1", "--handshake-time", "4s", *METRICS)
    hello, n, began = client_hello(), 20, time.monotonic()
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            wire = stack.enter_context(Wire(server.address, greet=False, source=OTHER).send(hello))
            if manner != "at once":
                wire.close()
                eventually(lambda: server.metrics()["connections_open"] == 0, "it is gone")
        assert is_served(server, ours.trusting()), "another peer is at once"
        told = server.metrics()
        n_may = 1 + int(time.monotonic() - began)
        delayed, refused = (told[f"tls_handshakes_{what}_total"] for what in ("delayed", "refused"))
        assert n - n_may <= delayed + refused <= n - 1
        assert 1 <= delayed <= 4 + n_may
        assert told["connections_refused_total"] == 0
        if manner == "at once":
            eventually(lambda: wire.read_some(0.01) or wire.is_closed, "the last is closed")
            eventually(lambda: server.metrics()["connections_open"] == 0, "none outlives its time")


@transports.natively
def test_handshakes_are_made_by_a_worker_for_which_the_end_waits(
    ours: Authority, tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While that is held, nothing is said to them, nobody's is torn, and whoever gives up is let go after."""
    from featurestore.server.native_front import NativeFront

    hello, gate, shake = client_hello(), threading.Event(), NativeFront._shake_hands
    monkeypatch.setattr(NativeFront, "_shake_hands", lambda front: gate.wait(60) and shake(front))
    paper = ours.issue("gated")
    for is_stopped in (False, True):
        gate.clear()
        with contextlib.ExitStack() as stack:
            settings = {"tls": Tls(paper.certificate, paper.key), "drain_s": 0.1, "transport": transport}
            house = stack.enter_context(opened(tmp_path / f"stopped {is_stopped}", **settings))
            front = house.server.front
            wires = [Wire(str(house.server.address), greet=False).send(hello) for _ in range(4)]
            eventually(lambda front=front: front.counts()["connections_now"] == 4, "all have come")
            for wire in wires[2:]:
                wire.close()
            assert not wires[0].read_some(0.2)
            if is_stopped:
                threading.Timer(0.5, gate.set).start()
            else:
                gate.set()
                wires[0].socket.settimeout(30)
                assert wires[0].socket.recv(1) == b"\x16", "a handshake's record"
                eventually(lambda front=front: front.counts()["connections_now"] == 2, "the others are gone")
                assert front.counts()["tls_failed"] == 2
        for wire in wires[:2]:
            wire.close()


# ---- much, and slowly


def test_a_large_request_and_a_large_reply(server: Process, ours: Authority) -> None:
    """2 MB one way and 4 MB back: all that has come is read at once, or a little at a time."""
    body = read(*(f"10.0.{i >> 8 & 255}.{i & 255}" for i in range(120_000)))
    with secure(server, ours.trusting()) as wire:
        expected = call(wire, 1, GET, body).message
    assert pb.GetFeaturesResponse.FromString(expected).vectors.rows == 120_000
    with secure(server, ours.trusting()) as wire:
        wire.send(request(wire, 1, GET, body))
        wire.socket.settimeout(30)
        while not wire.stream(1).is_over:
            wire.read_some(30, 3000)
        assert reply_of(wire.stream(1)).message == expected


def status_of(said: bytes) -> str | None:
    """The gRPC status in the last header block of what a server has said."""
    decoder, status = hpack.Decoder(), None
    while said:
        size = 9 + int.from_bytes(said[:3], "big")
        if said[3] == Kind.HEADERS:
            status = {str(name): str(value) for name, value in decoder.decode(said[9:size])}.get(
                "grpc-status"
            )
        said = said[size:]
    return status


@pytest.mark.deviates(grpcio="gives the call up with its client's side")
@pytest.mark.parametrize("n_rows", [1, 500], ids=["answered at once", "by a worker"])
def test_a_client_that_closes_behind_its_request_is_answered(
    server: Process, ours: Authority, n_rows: int
) -> None:
    """Its request, its close_notify and its end arrive together; it reads on."""
    body = read(*["1.2.3.4"] * n_rows)
    host, _, port = server.address.rpartition(":")
    for _ in range(10):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ours.trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection((host, int(port))) as plain:
            plain.settimeout(30)
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    plain.sendall(outgoing.read())
                    incoming.write(plain.recv(1 << 16))
            client.write(PREFACE + settings() + headers(1, standalone(fields(GET))))
            client.write(body_of(1, prefixed(body)))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.unwrap()
            plain.sendall(outgoing.read())
            plain.shutdown(socket.SHUT_WR)
            while got := plain.recv(1 << 16):
                incoming.write(got)
        said = b""
        with contextlib.suppress(ssl.SSLError):  # of its close_notify
            while got := client.read(1 << 20):
                said += got
        assert status_of(said) == "0", "answered to the end"


def test_a_client_that_takes_nothing_for_a_while_gets_it_all(server: Process, ours: Authority) -> None:
    """Forty replies of 200 KB wait for a client that goes on asking; others are served meanwhile."""
    numbers = range(1, 81, 2)
    body = read(*["1.2.3.4"] * 5000)
    held = server.resident_bytes()
    with secure(server, ours.trusting()) as wire, secure(server, ours.trusting()) as other:
        expected = call(other, 1, GET, body).message
        for number in numbers:
            wire.send(request(wire, number, GET, body))
            assert call(other, number + 2, GET, read("a")).status == OK
        if server.transport == "native":
            assert server.resident_bytes() < held + 32 * MIB
        for number in numbers:
            assert reply_of(wire.over(number)).message == expected


# ---- papers that are replaced


def certificate_of(server: Process, context: ssl.SSLContext) -> bytes:
    """What a new connection is shown; it is served."""
    with secure(server, context) as wire:
        assert call(wire, 1, GET, read("a")).status == OK
        return wire.socket.getpeercert(binary_form=True)


def test_a_certificate_that_is_replaced_serves_new_connections(start: Start, ours: Authority) -> None:
    """Those that are open go on. What cannot be used is logged, once, and changes nothing."""
    in_use, second, third = ours.issue("in-use"), ours.issue("second"), ours.issue("third")
    first = in_use.der
    server = start(*flags(in_use), "--min-ping-interval", "0s")
    context = ours.trusting()
    with secure(server, context) as wire:
        wire.send(headers(1, wire.block(fields(GET_STREAM))))
        wire.send(body_of(1, prefixed(read_streamed("a")), end=False))
        wire.until(lambda: bool(messages_of(wire.stream(1).body)), "an answer")
        assert certificate_of(server, context) == first
        second.replaces(in_use)
        eventually(lambda: certificate_of(server, context) == second.der, "the second is shown")

        def n_told() -> int:
            assert certificate_of(server, context) == second.der
            return server.log.read_text().count("the certificate was changed and stays as it was")

        before = n_told()
        for n, content in enumerate((b"no certificate", third.certificate.read_bytes()), 1):
            put(content, in_use.certificate)  # the third's belongs to another key
            eventually(lambda n=n: n_told() >= before + n, "it is told of")
        assert n_told() == before + 2
        put(third.key.read_bytes(), in_use.key)
        eventually(lambda: certificate_of(server, context) == third.der, "the third is shown")

        in_use.certificate.unlink()
        assert certificate_of(server, context) == third.der
        wire.send(body_of(1, prefixed(read_streamed("a"))))
        assert len(reply_of(wire.over(1)).messages) == 2, "it is as open as before"
        assert call(wire, 3, GET, read("a")).status == OK


def overwrite(path: Path, content: bytes, size: int) -> None:
    """Puts other content into a file so that neither its size nor its times tell."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(content.ljust(size, b"\n"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_signal_has_a_certificate_read_that_seems_unchanged(start: Start, ours: Authority) -> None:
    """SIGHUP; what cannot be used is logged and changes nothing."""
    in_use, second = ours.issue("held"), ours.issue("other")
    first = in_use.der
    files = (in_use.certificate, second.certificate), (in_use.key, second.key)
    for path, _ in files:
        put(path.read_bytes().ljust(8192, b"\n"), path)
    server = start(*flags(in_use), "--min-ping-interval", "0s")
    context = ours.trusting()
    assert certificate_of(server, context) == first
    for path, other in files:
        overwrite(path, other.read_bytes(), 8192)

    def n_told(words: str) -> int:
        return server.log.read_text().count(words)

    server.child.send_signal(signal.SIGHUP)
    eventually(lambda: certificate_of(server, context) == second.der, "the second is shown")
    assert n_told(f"SIGHUP: the certificate {in_use.certificate} was read anew") == 1
    overwrite(in_use.certificate, b"no certificate", 8192)
    server.child.send_signal(signal.SIGHUP)
    eventually(lambda: n_told("SIGHUP: the certificate stays as it was: listen: ") == 1, "it is told of")
    assert certificate_of(server, context) == second.der
    assert n_told("SIGHUP: the certificate") == 2


def test_a_client_ca_that_is_replaced_lets_others_in(
    start: Start, ours: Authority, foreign: Authority, tmp_path: Path
) -> None:
    ca = tmp_path / "clients.pem"
    put(ours.ca.read_bytes(), ca)
    server = start(*flags(ours.issue("exclusive"), ca), "--min-ping-interval", "0s")
    known = ours.trusting(ours.issue("known"))
    newcomer = ours.trusting(foreign.issue("newcomer"))
    with secure(server, known) as wire:
        assert not is_served(server, newcomer)
        put(foreign.ca.read_bytes(), ca)
        eventually(lambda: is_served(server, newcomer), "the others are let in")
        assert not is_served(server, known)
        assert call(wire, 1, INGEST, ingest(play("goes on"))).status == OK
        put(b"no CA", ca)
        eventually(
            lambda: is_served(server, newcomer) and "stays as it was" in server.log.read_text(),
            "a broken one is told of",
        )
        assert not is_served(server, known)
        put(ours.ca.read_bytes() + foreign.ca.read_bytes(), ca)
        eventually(lambda: is_served(server, known), "both are let in")
        assert is_served(server, newcomer)
        assert count_of(wire, 3, "goes on") == 1
