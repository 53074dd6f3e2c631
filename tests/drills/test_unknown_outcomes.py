"""Observes that run out of time while their server is killed: finished by their tickets, each counts once.

From Python by this library's client, from Node by node/tickets.js, which knows the .proto files alone.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import npm

from featurestore.client import Client
from featurestore.client.sequences import Ticket
from featurestore.errors import FeatureStoreError, OutcomeUnknownError
from featurestore.outcome import Outcome

T0 = 1_700_000_000_000
REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = """
version: 1
name: tickets
events:
  play: {time: {field: ts, unit: ms}, fields: {ip: key}}
views:
  ip: {event: play, key: ip, windows: [1h], features: [count]}
services:
  all: [ip.*]
"""
EVENT = {"ip": "a", "ts": T0}
AT_ONCE = 8
PARTS, EACH = (3, 20), (200, 500)  # small and full: kills, and events before each


@contextlib.contextmanager
def killed_at_the_end(directory: Path, transport: str) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "featurestore",
        "serve",
        "--data",
        str(directory / "store"),
        "-o",
        "json",
    ]
    command += ["--schema", str(directory / "schema.yaml"), "--clock", "event", "--transport", transport]
    command += ["--listen", f"unix:{directory}/s.sock", "--admin", f"unix:{directory}/a.sock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline(), "it has not begun"
        try:
            yield
        finally:
            child.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def late_answers(directory: Path) -> Iterator[str]:
    """The address of what is between clients and the server and carries what the server says 0 to 20 ms late,
    so that on a fast machine too many events are applied whose answer comes after their time. The server has
    no port, which a connection could have taken while there is no server."""
    coin = random.Random(7)

    def carry(come: socket.socket, go: socket.socket, longest_s: float) -> None:
        with come, contextlib.suppress(OSError):  # a server that was killed, a client that closed
            while carried := come.recv(1 << 16):
                time.sleep(coin.uniform(0, longest_s))
                go.sendall(carried)
            go.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):  # it is over
            while True:
                client, _ = listening.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(f"{directory}/s.sock")
                except OSError:  # there is none
                    server.close()
                    client.close()
                    continue
                for come, go, longest_s in ((client, server, 0.0), (server, client, 0.02)):
                    threading.Thread(target=carry, args=(come, go, longest_s), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


class Observing:
    """Threads that observe events, each within 1 to 20 ms; one of unknown outcome again under its ticket, as
    text and with more time, until it is answered.

    begun: after every `each` events that were begun, how many were. seen: how many were "unknown" once at
    least, and of those how many had been applied all the same ("found").
    """

    def __init__(self, client: Client, events: int, each: int) -> None:
        self.begun: queue.Queue[int] = queue.Queue()
        self.seen = {"unknown": 0, "found": 0}
        self._client, self._each = client, each
        self._left = iter(range(1, events + 1))
        self._lock = threading.Lock()
        self._coin = random.Random(7)
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._running = [self._threads.submit(self._run) for _ in range(AT_ONCE)]

    def finish(self) -> None:
        for one in self._running:
            one.result(60)
        self._threads.shutdown()

    def _run(self) -> None:
        while True:
            with self._lock:
                number = next(self._left, None)
                time_s = self._coin.uniform(0.001, 0.02)
            if number is None:
                return
            ticket = self._client.ticket()
            if number % self._each == 0:
                self.begun.put(number)
            self._count(ticket, time_s)

    def _count(self, ticket: Ticket, time_s: float) -> None:
        given: Ticket | str = ticket
        while True:
            try:
                outcome = self._client.observe("play", EVENT, ticket=given, timeout_s=time_s).outcome
            except FeatureStoreError as error:
                assert isinstance(error, OutcomeUnknownError), repr(error)
                assert (error.applied, error.ticket) == (None, ticket)
                given, time_s = str(ticket), min(2 * time_s, 60)
                continue
            is_unknown = given is not ticket
            assert outcome is Outcome.ACCEPTED or (is_unknown and outcome is Outcome.DUPLICATE), outcome
            with self._lock:
                self.seen["unknown"] += is_unknown
                self.seen["found"] += outcome is Outcome.DUPLICATE
            return


def test_from_python_each_counts_once(
    tmp_path: Path,
    transport: str,
    drill_size: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    """Some at once, so that the kills come amid calls; they go on by themselves while there is no server."""
    n_parts, n_each = drill_size(*PARTS), drill_size(*EACH)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    with late_answers(tmp_path) as address, Client(address, timeout_s=60.0) as client:
        observing = Observing(client, n_parts * n_each, n_each)
        for n in range(1, n_parts + 1):
            with killed_at_the_end(tmp_path, transport):
                assert observing.begun.get(timeout=60) == n * n_each
        with killed_at_the_end(tmp_path, transport):
            observing.finish()
            counted = client.get("all", {"ip": "a"})["ip.count_1h"]
    measured(f"unknown outcomes from Python, {transport}: {observing.seen} of {n_parts * n_each} events")
    assert counted == n_parts * n_each
    assert observing.seen["found"] > 0


def test_from_node_each_counts_once(
    tmp_path: Path,
    transport: str,
    drill_size: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    """As from Python."""
    n_parts, n_each = drill_size(*PARTS), drill_size(*EACH)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    with contextlib.ExitStack() as whatever:
        address = whatever.enter_context(late_answers(tmp_path))
        sizes = str(n_parts * n_each), str(n_each)
        command, environment = npm.node("tickets.js", address, str(REPOSITORY / "proto"), *sizes)
        child = whatever.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        )
        whatever.callback(child.kill)
        assert child.stdout is not None
        for n in range(1, n_parts + 1):
            with killed_at_the_end(tmp_path, transport):
                assert json.loads(child.stdout.readline()) == {"begun": n * n_each}
        with killed_at_the_end(tmp_path, transport):
            seen = json.loads(child.stdout.readline())
            assert child.wait(60) == 0
            with Client(f"unix:{tmp_path}/s.sock") as client:
                counted = client.get("all", {"ip": "a"})["ip.count_1h"]
    measured(f"unknown outcomes from Node, {transport}: {seen} of {n_parts * n_each} events")
    assert counted == n_parts * n_each
    assert seen["found"] > 0
