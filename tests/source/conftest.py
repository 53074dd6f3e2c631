"""Shared here: the C that Cython makes of every module, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from source import tree
from source.translation import translate


@pytest.fixture(scope="session")
def translated(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    return translate(tree.ROOT, sorted(tree.CYTHON.values()), tmp_path_factory.mktemp("translated"))
