"""The metrics listener: whoever asks is answered, whatever others do who only connect."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from house import needs_ipv6

from featurestore.config import Address
from featurestore.errors import ConfigError
from featurestore.server import scrape
from featurestore.server.scrape import MOST_CONNECTIONS, Scrape

LARGE = b"x" * (8 << 20)  # more than sockets take


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scrape]:
    monkeypatch.setattr(scrape, "TIME_S", 1.0)
    made = Scrape(
        Address("127.0.0.1", 0), lambda asked: ("text/x", LARGE if "large" in asked else asked.encode())
    )
    yield made
    made.close()


def connected(listener: Scrape) -> socket.socket:
    made = socket.create_connection((listener.address.host, listener.address.port))
    made.settimeout(30)
    return made


def rest_of(one: socket.socket) -> bytes:
    got = []
    with contextlib.suppress(ConnectionResetError):
        while piece := one.recv(1 << 16):
            got.append(piece)
    return b"".join(got)


def asked(listener: Scrape, said: bytes = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n") -> tuple[bytes, bytes]:
    """Its status line and its body."""
    with connected(listener) as one:
        one.sendall(said)
        head, _, body = rest_of(one).partition(b"\r\n\r\n")
        return head.split(b"\r\n")[0], body


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.0\n\n", b"200 OK"),
        (b"GET /metrics?name[]=x HTTP/1.1\r\naccept: text/plain\r\n\r\n", b"200 OK"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"\x16\x03\x01\r\n\r\n", b"405 Method Not Allowed"),
    ],
)
def test_what_may_be_asked(listener: Scrape, said: bytes, status: bytes) -> None:
    line, body = asked(listener, said)
    assert line == b"HTTP/1.1 " + status
    if b"200" in status:
        assert body == (b"" if said.startswith(b"HEAD") else said)


def test_whoever_says_nothing_or_little_holds_nobody_up(listener: Scrape) -> None:
    """Many more than are held at once; they are closed in time, and take no thread."""
    n_threads = threading.active_count()
    begun = (b"", b"GET", b"GET /metrics HTTP/1.1\r\nhost: x\r\n", b"G" * 9000)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(listener)) for _ in range(3 * MOST_CONNECTIONS)]
        for i, each in enumerate(slow):
            with contextlib.suppress(OSError):  # it has had to go already
                each.sendall(begun[i % len(begun)])
            if i % 32 == 0:
                assert asked(listener)[0] == b"HTTP/1.1 200 OK"
        assert len(listener._open) <= MOST_CONNECTIONS
        assert threading.active_count() == n_threads
        assert [rest_of(each) for each in slow] == [b""] * len(slow)


def test_whoever_does_not_take_what_was_asked_for_is_closed(listener: Scrape) -> None:
    with connected(listener) as one:
        one.sendall(b"GET /metrics HTTP/1.1\r\nlarge: yes\r\n\r\n")
        assert asked(listener)[0] == b"HTTP/1.1 200 OK", "others need not wait for that"
        began_s = time.monotonic()
        while listener._open and time.monotonic() < began_s + 20:
            time.sleep(0.05)
        assert not listener._open
        assert len(rest_of(one)) < len(LARGE)
    line, body = asked(listener, b"GET /metrics HTTP/1.1\r\nlarge: yes\r\n\r\n")
    assert (line, len(body)) == (b"HTTP/1.1 200 OK", len(LARGE))


def test_without_descriptors_it_waits_and_goes_on(listener: Scrape) -> None:
    """And does not turn in circles meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connected(listener) as early, socket.socket() as late:
        early.sendall(b"GET /metrics HTTP/1.1\r\n")
        while not listener._open:
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            late.connect((listener.address.host, listener.address.port))
            before_s = time.process_time()
            time.sleep(0.6)
            assert time.process_time() - before_s < 0.2
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        late.settimeout(30)
        late.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert rest_of(late).startswith(b"HTTP/1.1 200 OK")


def test_an_address_that_is_taken(listener: Scrape) -> None:
    with pytest.raises(ConfigError, match=r"metrics: cannot listen on .*in use"):
        Scrape(listener.address, lambda asked: ("", b""))


@needs_ipv6
def test_localhost_is_both_its_addresses() -> None:
    made = Scrape(Address("localhost", 0), lambda asked: ("text/plain", b"told"))
    try:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, made.address.port), 30) as one:
                one.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
                assert rest_of(one).endswith(b"told")
    finally:
        made.close()
