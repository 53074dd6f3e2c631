"""`featurestore serve` as a child process, for tests that need a whole one, and a small schema for it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transports

SCHEMA = """\
version: 1
name: clicks
events:
  click: {time: {field: at, unit: s}, fields: {user: key}}
views:
  user: {event: click, key: user, windows: [1h], features: [count]}
services:
  spam: [user.*]
"""

Serve = Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """SCHEMA in a file of the test's own."""
    path = tmp_path / "clicks.yaml"
    path.write_text(SCHEMA)
    return path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """serve(*options, directory=None) → the process and its ready line. What still runs at the end of the
    test is killed.
    """
    running: list[subprocess.Popen[str]] = []

    def start(*options: str, directory: Path | None = None) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        log = tmp_path / f"serve-{len(running)}.log"
        with log.open("w") as stderr:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "featurestore",
                    "serve",
                    "--listen",
                    "localhost:0",
                    "-o",
                    "json",
                    *options,
                ],
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        running.append(child)
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line, log.read_text()
        return child, json.loads(line)

    yield start
    for child in running:
        child.kill()
        child.communicate()


@pytest.fixture
def serve_over(serve: Serve, transport: str) -> Serve:
    """The same over each transport, for tests of what reaches the public port."""
    return functools.partial(serve, *transports.flags(transport))
