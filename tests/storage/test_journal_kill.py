"""kill -9 at every failpoint of the journal, in a child: all it acknowledged is there, as a prefix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.storage.journal import BATCH, Journal, JournalReader

STORE = b"store-of-a-test!"

# Prints each position once it may be acknowledged; truncates now and then, so that every failpoint is passed.
CHILD = """
import sys
from featurestore.storage.journal import BATCH, Journal
directory, mode = sys.argv[1:]
with Journal(directory, b"store-of-a-test!", create=True, mode=mode, segment_bytes=4096) as journal:
    while journal.last_position < 400:
        position = journal.append(BATCH, b"%d" % (journal.last_position + 1), b"=" * 300)
        if mode == "group":
            journal.wait_durable(position)
        sys.stdout.write(f"{position}\\n")
        sys.stdout.flush()
        if position % 100 == 0:
            journal.truncate_before(position - 50)
"""


def run(directory: Path, mode: str, spec: str) -> tuple[int, list[int]]:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(directory), mode],
        env={**os.environ, "FEATURESTORE_FAILPOINT": spec},
        stdout=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    return child.returncode, [int(line) for line in child.stdout.split()]


def check(directory: Path, acknowledged: list[int]) -> int:
    """Opens what the child left; returns the last position."""
    with Journal(directory, STORE, create=True, segment_bytes=4096) as journal:
        frames = list(journal.read())
        first, last = journal.first_position, journal.last_position
    assert [frame.first_position for frame in frames] == list(range(first, last + 1))
    assert all(frame.body == b"%d" % frame.first_position + b"=" * 300 for frame in frames)
    assert last >= max(acknowledged, default=0)
    return last


@pytest.mark.parametrize("mode", ["group", "process"])
@pytest.mark.parametrize(
    "spec",
    [
        "journal.mid_frame:3",
        "journal.mid_frame:57",
        "journal.before_sync:1",
        "journal.after_sync:1",
        "journal.before_sync:9",
        "journal.after_sync:9",
        "journal.allocate:1",
        "journal.allocate:5",
        "journal.roll:1",
        "journal.roll:5",
        "journal.rolled:1",
        "journal.rolled:5",
        "journal.truncate:2",
    ],
)
def test_death_at_a_failpoint_loses_nothing_acknowledged(tmp_path: Path, mode: str, spec: str) -> None:
    code, acknowledged = run(tmp_path, mode, spec)
    assert code == -signal.SIGKILL, "the failpoint was not reached"
    assert check(tmp_path, acknowledged) < 400
    with Journal(tmp_path, STORE, from_position=max(acknowledged, default=0) + 1) as journal:
        position = journal.last_position + 1
        assert journal.append(BATCH, b"%d" % position, b"=" * 300) == position
    assert check(tmp_path, acknowledged) == position


def test_death_in_the_middle_of_recovery(tmp_path: Path) -> None:
    assert run(tmp_path, "group", "journal.mid_frame:57")[0] == -signal.SIGKILL
    assert run(tmp_path, "group", "recovery.mid") == (-signal.SIGKILL, [])
    assert [frame.first_position for frame in JournalReader(tmp_path)] == list(range(1, 57))
    assert run(tmp_path, "group", "") == (0, list(range(57, 401)))
    assert check(tmp_path, []) == 400
