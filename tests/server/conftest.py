from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import transports
from house import House, Serving, opened

from featurestore.storage import failpoint


@pytest.fixture
def serving(transport: str) -> Serving:
    return functools.partial(opened, **transports.settings(transport))


@pytest.fixture
def house(tmp_path: Path, serving: Serving) -> Iterator[House]:
    with serving(tmp_path) as house:
        yield house


@pytest.fixture
def disk() -> Iterator[None]:
    """For tests in which the disk fails: it is well again afterwards."""
    yield
    failpoint.disarm()
