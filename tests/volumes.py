"""Small volumes of their own, for tests of disks that are full: a tmpfs, or ext4 in a file.

A full disk cannot be imitated in a directory of the machine's: this mounts, which takes root. Where it may
not, the test is skipped and says so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILLING_BYTES = 1 << 20


@contextmanager
def volume(place: Path, n_bytes: int, kind: str = "tmpfs") -> Iterator[Path]:
    """An empty file system of `n_bytes` at `place`; kind: "tmpfs" or "ext4"."""
    place.mkdir()
    image = place.with_name(f"{place.name}.image")
    commands = [["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "featurestore-test", str(place)]]
    if kind == "ext4":
        with image.open("wb") as file:
            file.truncate(n_bytes)
        commands = [
            ["mkfs.ext4", "-q", "-F", "-m", "0", str(image)],
            ["mount", "-o", "loop", str(image), str(place)],
        ]
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            pytest.skip(f"NOT TESTED on {kind}: no volume can be mounted here ({command[0]}: {why})")
    try:
        yield place
    finally:
        # Lazily: a test that failed may have files open.
        subprocess.run(["umount", "-l", str(place)], check=True)
        image.unlink(missing_ok=True)


def free_bytes(place: Path) -> int:
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


def fill(file: Path, leave_bytes: int = 0) -> None:
    """A stranger's file, which takes what is free, to the last byte."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = FILLING_BYTES
        while (left := free_bytes(file.parent) - leave_bytes) > 0 and size:
            try:
                written = os.write(fd, bytes(min(size, left)))
            except OSError:
                size //= 2
                continue
            if written == 0:
                break
        os.fsync(fd)
    finally:
        os.close(fd)
