"""A store that a program opens, with 0, 1 or 2 closed before or after: no file of it is one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import closed
import pytest

from featurestore.engine import Engine
from featurestore.storage.check import verify

PROGRAM = """\
import contextlib, os, sys
from pathlib import Path
import closed
from featurestore.engine import Engine
from featurestore.files.writing import open_table
from featurestore.storage.check import restore
from storage import store_v1
import numpy as np

place, ways, when = Path(sys.argv[1]), eval(sys.argv[2]), sys.argv[3]

def close():
    if when == "after":
        for fd in ways:
            with contextlib.suppress(OSError):   # nothing has filled it since
                os.close(fd)

def check(below):
    held = closed.files_of("self", below)
    assert held and min(held) > 2, held

with Engine.open(
    place / "store", schema=store_v1.SCHEMA, clock="event", n_shards=2, segment_bytes=4096
) as engine:
    for sequence in range(1, 40):                # the journal begins several segments
        if sequence % 4 == 1:
            close()
        store_v1.send(engine, sequence, ["anna", "bert", "carl"] * 8)
        check(place / "store")
    close()
    engine.checkpoint()
    close()
    engine.forget({"account": "carl"})
    check(place / "store")
    close()
    engine.backup(place / "backup")
    check(place / "store")
close()
restore(place / "backup", place / "restored")
close()
with open_table(str(place / "table.csv"), {"n": np.arange(3)}) as table:
    check(place)
    table.write_columns({"n": np.arange(3)})
close()
with Engine.open(place / "store") as engine:
    check(place / "store")
os._exit(7)                                      # nothing above has raised
"""
TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("ways", closed.WAYS, ids=str)
def test_no_file_of_a_store_is_one_of_them(
    tmp_path: Path, ways: tuple[int, ...], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: the process was started so. After: the program closes them, again and again."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    words = [sys.executable, "-c", PROGRAM, str(tmp_path), repr(ways), when]
    assert closed.run(words, ways if when == "before" else (), tmp_path) == 7
    digests = set()
    for name in ("store", "backup", "restored"):
        assert list(verify(tmp_path / name)) == []
        with Engine.open(tmp_path / name) as engine:
            digests.add(engine.state.digest())
    assert len(digests) == 1
    assert (tmp_path / "table.csv").read_text() == '"n"\n0\n1\n2\n'


def test_where_nothing_can_stand_in_for_them_no_store_is_opened(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from featurestore.engine import Engine\n"
        "from featurestore.errors import StorageError\n"
        "os.devnull = '/nowhere/null'\n"
        "os.close(1)\n"
        "try:\n"
        "    Engine.open(sys.argv[1], schema=sys.argv[2])\n"
        "except StorageError as error:\n"
        "    os.write(2, str(error).encode())\n"
    )
    schema = "version: 1\nname: a\nevents: {e: {time: {field: t, unit: s}, fields: {k: key}}}\n"
    schema += "views: {v: {event: e, key: k, windows: [1h], features: [count]}}\nservices: {s: [v.*]}\n"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "store"), schema],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "/nowhere/null cannot be opened in its place: No such file or directory" in done.stderr
    assert not (tmp_path / "store").exists()
