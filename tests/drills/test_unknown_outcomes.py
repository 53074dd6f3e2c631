"""Observes that run out of time while their server is killed: finished by their tickets, each counts once."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featurestore.client import Client
from featurestore.client.sequences import Ticket
from featurestore.errors import FeatureStoreError

T0 = 1_700_000_000_000
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


@contextlib.contextmanager
def killed_at_the_end(directory: Path, port: int, transport: str) -> Iterator[None]:
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
    command += ["--listen", f"127.0.0.1:{port}", "--admin", f"unix:{directory}/a.sock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline(), "it has not begun"
        try:
            yield
        finally:
            child.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_observes_of_unknown_outcome_are_finished_after_kills(
    tmp_path: Path, transport: str, drill_size: Callable[[int, int], int]
) -> None:
    """With 1 to 20 ms each, and a kill after each part; what is open then is finished by the next server."""
    n_parts, n_each = drill_size(3, 20), drill_size(200, 500)
    coin = random.Random(7)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    unfinished: list[Ticket] = []
    n_unknown = 0
    with Client(f"127.0.0.1:{port}", timeout_s=60.0) as client:
        for _ in range(n_parts):
            with killed_at_the_end(tmp_path, port, transport):
                client.get("all", {"ip": "a"}, timeout_s=60.0)
                for ticket in unfinished:
                    client.observe("play", EVENT, ticket=str(ticket))
                unfinished.clear()
                for _ in range(n_each):
                    ticket = client.ticket()
                    try:
                        client.observe("play", EVENT, ticket=ticket, timeout_s=coin.uniform(0.001, 0.02))
                    except FeatureStoreError as error:
                        assert error.applied is None
                        unfinished.append(ticket)
                unfinished.append(client.ticket())  # taken, and not sent before the kill
                n_unknown += len(unfinished)
        with killed_at_the_end(tmp_path, port, transport):
            for ticket in unfinished:
                client.observe("play", EVENT, ticket=str(ticket))
            counted = client.get("all", {"ip": "a"})["ip.count_1h"]
    assert n_unknown > 0
    assert counted == n_parts * (n_each + 1)
