"""A server in a process of its own: what an adversary does to it harms no test, and it can be weighed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import transports

SOURCE = Path(__file__).with_name("hold.c")

METRICS = ("--metrics-listen", "localhost:0")

SCHEMA = """\
version: 1
name: transport
events:
  play:
    time: {field: ts, unit: ms}
    fields: {ip: key, n: number}
views:
  ip:
    event: play
    key: ip
    windows: [10m, 1h]
    features: [count, mean(n)]
services:
  abuse: [ip.*]
"""


@functools.cache
def _library() -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, for the library that holds the disk and locks")
    built = Path(tempfile.mkdtemp(prefix="featurestore-hold-")) / "hold.so"
    subprocess.run([compiler, "-O1", "-Wall", "-fPIC", "-shared", str(SOURCE), "-o", str(built)], check=True)
    return built


class Process:
    """`featurestore serve` on a new store, over one transport.

    address: of its public port, host:port or unix:path. child: the process. log: its standard error.
    descriptors: as many as it may have.
    """

    def __init__(self, directory: Path, transport: str, *flags: str, descriptors: int | None = None) -> None:
        self.transport = transport
        self.directory = directory
        self.log = directory / "log"
        self._hold = directory / "hold"
        (directory / "schema.yaml").write_text(SCHEMA)
        command = [
            sys.executable, "-m", "featurestore", "serve", "--schema", str(directory / "schema.yaml"),
            "--data", str(directory / "store"), "--admin", f"unix:{directory}/a.sock", "--clock", "event",
            "--listen", "127.0.0.1:0", "--checkpoint-every", "1h", "-o", "json",
            *transports.flags(transport), *flags,
        ]  # fmt: skip
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *command]
        preloaded = f"{os.environ.get('LD_PRELOAD', '')} {_library()}".strip()
        with self.log.open("w") as stderr:
            self.child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "LD_PRELOAD": preloaded, "FEATURESTORE_TEST_HOLD": str(self._hold)},
            )
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, self.log.read_text()
        self.ready: dict[str, Any] = json.loads(line)
        self.address: str = self.ready["listen"]

    def held_disk(self) -> AbstractContextManager[Callable[[], None]]:
        """No write becomes durable until the block ends, or what it is given is called."""
        return _there(self._hold)

    def held_locks(self) -> AbstractContextManager[Callable[[], None]]:
        """As if somebody wrote to every row and was amid a large batch."""
        return _there(self._hold.with_name(self._hold.name + ".locks"))

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def n_descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    def n_threads(self) -> int:
        return len(list(Path(f"/proc/{self.child.pid}/task").iterdir()))

    def n_sockets(self) -> int:
        """Descriptors that are sockets: listeners, and connections that are not closed yet."""
        links = Path(f"/proc/{self.child.pid}/fd")
        n = 0
        for link in links.iterdir():
            with contextlib.suppress(FileNotFoundError):
                n += str(link.readlink()).startswith("socket:")
        return n

    def metrics(self) -> dict[str, float]:
        """What it tells Prometheus, by name and labels; started with METRICS."""
        with urllib.request.urlopen(self.ready["metrics"], timeout=60) as reply:  # noqa: S310  our own
            lines = reply.read().decode().splitlines()
        told = (line.removeprefix("featurestore_").rsplit(" ", 1) for line in lines if line[0] != "#")
        return {name: float(value) for name, value in told}

    def is_running(self) -> bool:
        return self.child.poll() is None

    def end(self) -> None:
        self._hold.unlink(missing_ok=True)
        self.child.kill()
        self.child.communicate()


@contextlib.contextmanager
def _there(path: Path) -> Iterator[Callable[[], None]]:
    path.touch()
    try:
        yield lambda: path.unlink(missing_ok=True)
    finally:
        path.unlink(missing_ok=True)


def eventually(holds: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """For what the other side does in its own time; long enough that only a fault ends it."""
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s, f"it never came to be that {what}"
        time.sleep(0.01)
