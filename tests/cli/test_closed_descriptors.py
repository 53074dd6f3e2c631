"""Every command, started with 0, 1 or 2 closed, while something writes to 1 and 2: no file takes a place."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import closed
import pytest

from featurestore.client import AdminClient, Client
from featurestore.engine import Engine
from featurestore.errors import UnavailableError
from featurestore.storage.check import verify

COMMAND = (sys.executable, "-m", "featurestore")
N_USERS = 500


@contextlib.contextmanager
def served(tmp_path: Path, ways: Sequence[int], *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`featurestore serve` on tmp_path/store and tmp_path/s.sock, which is there and answers."""
    socket = f"unix:{tmp_path}/s.sock"
    options = ("--data", str(tmp_path / "store"), "--listen", socket, "--drain", "1s")
    child = closed.start([*COMMAND, "serve", *options, *words], ways, tmp_path)
    try:
        with Client(socket, timeout_s=0.5) as client:
            until = time.monotonic() + 60
            while True:
                assert child.poll() is None, f"it ended with {child.returncode}: {closed.said_by(tmp_path)}"
                try:
                    client.schema()
                    break
                except UnavailableError:
                    assert time.monotonic() < until
                    time.sleep(0.05)
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("ways", closed.WAYS, ids=str)
def test_a_store_that_is_served_so_stays_whole(schema: Path, tmp_path: Path, ways: tuple[int, ...]) -> None:
    store, users = tmp_path / "store", [f"user-{i}" for i in range(N_USERS)]
    with (
        served(tmp_path, ways, "--schema", str(schema), "--clock", "event") as child,
        Client(f"unix:{tmp_path}/s.sock") as client,
        AdminClient(f"unix:{store}/admin.sock") as admin,
    ):
        for n in range(3):
            assert client.ingest("click", {"at": [1000 + n] * N_USERS, "user": users}).accepted == N_USERS
            admin.checkpoint()
        admin.forget({"user": "user-0"})  # begins a segment, and replaces the rows
        admin.backup(str(tmp_path / "backup"))
        client.ingest("click", {"at": [1010], "user": ["user-1"]})  # is in the journal only
        held = closed.files_of(child.pid, store)
        assert {Path(name).name for name in held.values()} >= {"LOCK", "data.mdb"}
        assert min(held) > 2, held
        for fd in ways:
            assert str(Path(f"/proc/{child.pid}/fd/{fd}").readlink()) == "/dev/null"
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    for directory, last in ((store, 4.0), (tmp_path / "backup", 3.0)):
        assert list(verify(directory)) == []
        with Engine.open(directory) as engine:
            assert engine.state.stats()["rows"] == N_USERS - 1
        with served(tmp_path, (), "--data", str(directory)), Client(f"unix:{tmp_path}/s.sock") as client:
            assert client.get("spam", {"user": "user-1"}).to_dict() == {"user.count_1h": last}


def test_so_does_one_that_every_other_command_is_used_on(schema: Path, tmp_path: Path) -> None:
    store, socket = tmp_path / "store", f"unix:{tmp_path}/s.sock"
    events = tmp_path / "clicks.csv"
    events.write_text("at,user\n" + "".join(f"1000,user-{i}\n" for i in range(N_USERS)))
    at_server, at_admin = ("--server", socket), ("--admin", f"unix:{store}/admin.sock")
    replayed = ("replay", str(events), "--schema", str(schema), "--event", "click", "--service", "spam")

    def run(*words: str) -> None:
        assert closed.run([*COMMAND, *words], (0, 1, 2), tmp_path) == 0, words

    with served(tmp_path, (), "--schema", str(schema), "--clock", "event"):
        run("check", str(schema))
        run("ingest", str(events), "--event", "click", *at_server)
        run("get", "user=user-1", "--service", "spam", *at_server)
        run("apply", str(schema), *at_admin)
        run("checkpoint", *at_admin)
        run("forget", "user=user-0", *at_admin)
        run("stats", *at_admin)
        run("producers", "list", *at_admin)
        run("backup", str(tmp_path / "backup"), *at_admin)
    for words in (("verify", str(store)), ("inspect", str(store)), ("doctor", "--data", str(store))):
        run(*words)
    run("restore", str(tmp_path / "backup"), str(tmp_path / "restored"))
    for directory in (store, tmp_path / "backup", tmp_path / "restored"):
        assert list(verify(directory)) == []
    run("generate", str(tmp_path / "made"), "--users", "20", "--days", "1")
    run(*replayed, "--out", str(tmp_path / "closed.csv"))
    subprocess.run([*COMMAND, *replayed, "--out", str(tmp_path / "open.csv")], check=True)
    assert (tmp_path / "closed.csv").read_bytes() == (tmp_path / "open.csv").read_bytes()


def test_so_does_the_store_of_a_demo(tmp_path: Path) -> None:
    assert closed.run([*COMMAND, "demo", "--keep", str(tmp_path / "kept")], (0, 1, 2), tmp_path) == 0
    assert list(verify(tmp_path / "kept")) == []


def test_what_is_wrong_is_said_where_somebody_may_hear_it(tmp_path: Path) -> None:
    """With only standard output closed, the error is on standard error, and no traceback."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "inspect", str(tmp_path / "none")],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is not a store" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["nonsense"], ["get", "user=1", "--service", "s", "--server",
                                                            "unix:/nowhere/s.sock"]])  # fmt: skip
def test_with_all_three_closed_the_exit_code_says_it(tmp_path: Path, words: list[str]) -> None:
    code = {"--help": 0, "nonsense": 2, "get": 4}[words[0]]
    assert closed.run([*COMMAND, *words], (0, 1, 2), tmp_path) == code
