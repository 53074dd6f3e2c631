"""LMDB's functions are found in the installed lmdb, and nothing else passes for it."""

from __future__ import annotations

import _ctypes
from pathlib import Path

import lmdb.cpython
import pytest

from featurestore.errors import ConfigError
from featurestore.storage import lmdb_api


def test_the_installed_lmdb_is_the_engine_of_the_file_format() -> None:
    assert lmdb_api.check(lmdb.cpython.__file__) >= lmdb_api.OLDEST
    assert lmdb_api.check(lmdb.cpython.__file__)[:2] == (0, 9)


def test_another_library_is_refused_with_the_version_needed() -> None:
    with pytest.raises(ConfigError, match=r"lmdb>=3.0,<4.*does not export mdb09_version"):
        lmdb_api.check(_ctypes.__file__)


def test_a_library_that_is_not_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lmdb>=3.0,<4.*not loaded"):
        lmdb_api.check(str(tmp_path / "cpython.so"))
