from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, serving

from featurestore.storage import failpoint


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with serving(tmp_path) as house:
        yield house


@pytest.fixture
def disk() -> Iterator[None]:
    """For tests in which the disk fails: it is well again afterwards."""
    yield
    failpoint.disarm()
