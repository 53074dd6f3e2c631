"""Shared by the benchmarks: how large they are, and the lines that say what they found."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pytest
from _pytest.terminal import TerminalReporter

Size = TypeVar("Size")
_found = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--headline",
        action="store_true",
        default=os.environ.get("FEATURESTORE_BENCH") == "headline",
        help="the published numbers' parameters (or FEATURESTORE_BENCH=headline): minutes, gigabytes",
    )


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> Callable[[Size, Size], Size]:
    """size(tiny, headline): one of the two, as the run asks."""
    headline = request.config.getoption("--headline")
    return lambda tiny, large: large if headline else tiny


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says a line at the end of the run, under the bench's name and the machine's load when it was said."""

    def say(line: str) -> None:
        lines = request.config.stash.setdefault(_found, [])
        lines.append(f"{request.node.name} (load {os.getloadavg()[0]:.1f}): {line}")

    return say


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(_found, [])
    if lines:
        terminalreporter.section("found")
        for line in lines:
            terminalreporter.line(line)
