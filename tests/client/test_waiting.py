"""An ingest waits for a server that is not there, before its first batch as between any two."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import FeatureStoreError, UnavailableError

from .conftest import MakeClient
from .fake_server import Abort, Code, FakeServer

T0 = 1_522_540_800_000
EVENTS = {"tx_datetime": [T0] * 4, "customer_id": list("abcd"), "terminal_id": list("abcd")}


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Of a server to come: a port could be somebody else's by then."""
    return f"unix:{tmp_path}/server.sock"


class Late:
    """A server that is there once it has been waited for often enough."""

    def __init__(self, address: str) -> None:
        self.waits: list[tuple[FeatureStoreError, float]] = []
        self.server: Any = None
        self._address = address

    def on_wait(self, error: FeatureStoreError, left_s: float) -> None:
        self.waits.append((error, left_s))
        if len(self.waits) == 7:  # a read is given up after five tries
            self.server = FakeServer(self._address)


@pytest.fixture
def late(address: str) -> Iterator[Late]:
    late = Late(address)
    yield late
    if late.server is not None:
        late.server.stop()


def test_an_ingest_begun_while_the_server_restarts_waits_for_it(
    address: str, late: Late, make_client: MakeClient
) -> None:
    report = make_client(address, retry_s=60.0).ingest("transaction", EVENTS, on_wait=late.on_wait)
    assert report.accepted == len(late.server.events) == 4
    assert report.retries == 0, "nothing had been sent"
    assert all("cannot reach" in str(error) and 0 < left_s <= 60.0 for error, left_s in late.waits)


def test_a_schema_is_waited_for_where_that_is_asked(
    address: str, late: Late, make_client: MakeClient
) -> None:
    client = make_client(address, retry_s=60.0)
    with pytest.raises(UnavailableError):
        client.schema(on_wait=late.on_wait)
    assert not late.waits
    assert client.schema(wait=True, on_wait=late.on_wait).name == "card-fraud"


@pytest.mark.parametrize("method", ["schema", "batch"])
def test_both_give_up_alike(server: FakeServer, make_client: MakeClient, method: str) -> None:
    """A server that is at its limit, or gone, from the first call or from the first batch on."""

    def away(called: str, n: int) -> None:
        if called == method:
            raise Abort(Code.UNAVAILABLE, "gone fishing")

    server.before = away
    waits: list[tuple[FeatureStoreError, float]] = []
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="gone fishing"):
        make_client(server.target, retry_s=0.5).ingest(
            "transaction", EVENTS, on_wait=lambda error, left_s: waits.append((error, left_s))
        )
    assert time.monotonic() - began >= 0.5
    lefts = [left_s for _, left_s in waits]
    assert lefts == sorted(lefts, reverse=True)
    assert lefts[0] == 0.5
    assert {str(error) for error, _ in waits} == {"gone fishing"}
    assert server.calls[method] == len(waits) + 1


def test_what_the_server_says_of_the_request_is_not_waited_for(
    server: FakeServer, make_client: MakeClient
) -> None:
    def wrong(called: str, n: int) -> None:
        raise Abort(Code.INVALID_ARGUMENT)

    server.before = wrong
    with pytest.raises(FeatureStoreError, match="scripted"):
        make_client(server.target).ingest("transaction", EVENTS)
    assert server.calls == {"schema": 1}


def command(tmp_path: Path, address: str, *words: str) -> subprocess.Popen[str]:
    file = tmp_path / "tx.csv"
    file.write_text("tx_datetime,customer_id,terminal_id,tx_amount,note\n" + f"{T0},a,b,1,\n" * 4)
    line = [sys.executable, "-m", "featurestore", "ingest", str(file), "--event", "transaction"]
    # Whoever runs the tests in the background may have them ignore SIGINT, which is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([*line, "--server", address, *words], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_the_command_says_that_it_waits_and_goes_on(tmp_path: Path, address: str) -> None:
    process = command(tmp_path, address)
    said = first_line(process)
    assert said.startswith(f"cannot reach {address}; is `featurestore serve` running there?")
    assert said.endswith("; it is tried for 60 s more, Ctrl-C ends that\n")
    server: Any = FakeServer(address)
    try:
        rest = process.communicate(timeout=60)[1]
    finally:
        server.stop()
    assert (process.returncode, len(server.events)) == (0, 4)
    assert rest.startswith("4 events: 4 accepted"), "and it said so once"


def test_the_command_is_interrupted_while_it_waits(tmp_path: Path, address: str) -> None:
    process = command(tmp_path, address)
    assert "Ctrl-C ends that" in first_line(process)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=30)[1]
    assert process.returncode == 130


def test_the_command_gives_up_when_it_was_told_to(tmp_path: Path, address: str) -> None:
    process = command(tmp_path, address, "--wait", "0.2")
    assert "it is tried for 0 s more" in first_line(process)
    assert f"error: cannot reach {address}" in process.communicate(timeout=30)[1]
    assert process.returncode == 4
