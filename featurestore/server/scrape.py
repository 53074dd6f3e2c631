"""GET /metrics on an address of its own: one thread, so many connections, so much time for each.

Whoever reaches it is served, one after the other; nobody holds it. A connection asks once, is answered and
closed. It has TIME_S for that, from when it is taken, and MOST_BYTES to ask with. Where MOST_CONNECTIONS are
open and one more comes, the oldest goes that has not been answered: a scraper asks at once, whoever only
connects makes room for it. What is told is read anew for each, which takes some milliseconds: the same thread
does, so that no number of scrapers takes more than one core from calls, and it gives way to those.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable

from featurestore.config import Address
from featurestore.niceness import SCRAPES, give_way
from featurestore.server import listener

MOST_CONNECTIONS = 32
MOST_BYTES = 8 << 10
TIME_S = 5.0
LOOK_S = 0.5
# How long nobody is taken where the system has no descriptors.
PAUSE_S = 0.2
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# The request's head → content type and body.
Tell = Callable[[str], tuple[str, bytes]]


class _Connection:
    def __init__(self, taken: socket.socket) -> None:
        self.socket = taken
        self.until_s = time.monotonic() + TIME_S
        self.asked = b""
        self.answer = memoryview(b"")

    def is_whole(self) -> bool:
        return b"\r\n\r\n" in self.asked or b"\n\n" in self.asked


class Scrape:
    """Serves from its making to `close`. Raises ConfigError where the address cannot be had.

    tell: called with the head of a request, on the listener's thread.
    """

    def __init__(self, address: Address, tell: Tell) -> None:
        self._tell = tell
        (self._listening,), self.address = listener.sockets(address, 1, "metrics")
        self._selector = selectors.DefaultSelector()
        self._listen()
        self._paused_until_s = 0.0
        self._open: dict[socket.socket, _Connection] = {}  # in the order in which they came
        self._wants_stop, self._wake = socket.socketpair()
        self._selector.register(self._wants_stop, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="featurestore-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for each in (*self._open, *self._listening, self._wants_stop, self._wake):
            each.close()
        self._selector.close()

    def _run(self) -> None:
        give_way(SCRAPES)
        while True:
            ready = self._selector.select(LOOK_S)
            for key, events in ready:
                if key.fileobj is self._wants_stop:
                    return
                listening = next((each for each in self._listening if each is key.fileobj), None)
                if listening is not None:
                    self._accept(listening)
                elif (connection := self._open.get(key.fileobj)) is not None:  # type: ignore[call-overload]
                    self._go_on(connection, events)
            now_s = time.monotonic()
            for connection in [each for each in self._open.values() if each.until_s <= now_s]:
                self._end(connection)
            if self._paused_until_s and now_s >= self._paused_until_s:
                self._paused_until_s = 0.0
                self._listen()

    def _listen(self) -> None:
        for each in self._listening:
            self._selector.register(each, selectors.EVENT_READ)

    def _accept(self, listening: socket.socket) -> None:
        try:
            taken, _ = listening.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS and not self._paused_until_s:
                for each in self._listening:
                    self._selector.unregister(each)
                self._paused_until_s = time.monotonic() + PAUSE_S
            return
        if len(self._open) >= MOST_CONNECTIONS:
            self._end(next((each for each in self._open.values() if not each.answer), self._oldest()))
        taken.setblocking(False)
        self._open[taken] = _Connection(taken)
        self._selector.register(taken, selectors.EVENT_READ)

    def _oldest(self) -> _Connection:
        return next(iter(self._open.values()))

    def _go_on(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._has_asked(connection):
                return
            connection.answer = connection.answer[connection.socket.send(connection.answer) :]
        except BlockingIOError:
            return
        except OSError:
            connection.answer = memoryview(b"")
        if not connection.answer:
            self._end(connection)

    def _has_asked(self, connection: _Connection) -> bool:
        """Whether there is an answer, which is then to be sent. Raises OSError for one that is to be
        closed.
        """
        got = connection.socket.recv(MOST_BYTES)
        connection.asked += got
        if not connection.is_whole():
            if not got or len(connection.asked) > MOST_BYTES:
                raise OSError(errno.EPROTO, "no request")
            return False
        connection.answer = memoryview(self._answer(connection.asked.decode("latin-1")))
        self._selector.modify(connection.socket, selectors.EVENT_WRITE)
        return True

    def _answer(self, asked: str) -> bytes:
        method, _, rest = asked.partition(" ")
        if method not in ("GET", "HEAD"):
            return _reply("405 Method Not Allowed", "text/plain", b"GET /metrics\n")
        if rest.split("?")[0].split(" ")[0] not in ("/", "/metrics"):
            return _reply("404 Not Found", "text/plain", b"GET /metrics\n")
        kind, body = self._tell(asked)
        return _reply("200 OK", kind, body if method == "GET" else b"")

    def _end(self, connection: _Connection) -> None:
        del self._open[connection.socket]
        self._selector.unregister(connection.socket)
        with contextlib.suppress(OSError):
            connection.socket.shutdown(socket.SHUT_WR)
        connection.socket.close()


def _reply(status: str, kind: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join((*head, "", "")).encode("latin-1") + body
