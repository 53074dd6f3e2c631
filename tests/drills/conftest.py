"""How large the drills are: small by default, in full with FEATURESTORE_DRILLS=full."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

Size = TypeVar("Size")


@pytest.fixture(scope="session")
def drill_size() -> Callable[[Size, Size], Size]:
    """drill_size(small, full): one of the two, as the run asks."""
    full = os.environ.get("FEATURESTORE_DRILLS") == "full"
    return lambda small, large: large if full else small
