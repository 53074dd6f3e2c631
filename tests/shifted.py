"""Processes whose wall clock a test sets ahead or back while they run; other clocks go on as they are.

clock = Shifted(tmp_path)
process = subprocess.Popen(words, env=clock.environment)
clock.set_ms(400 * 86_400_000)
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("clock_shift.c")


class Shifted:
    """The clock of the processes that are started with its environment; as the machine's at first."""

    def __init__(self, directory: Path) -> None:
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            pytest.skip(f"NOT TESTED: no C compiler for {SOURCE.name}")
        library, file = directory / "clock_shift.so", directory / "clock_shift"
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden"]
        subprocess.run([*compiler.split(), *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True)
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._shift = mmap.mmap(opened.fileno(), 8)
        # A sanitizer's library must come first.
        preloaded = [*filter(None, [os.environ.get("LD_PRELOAD")]), str(library)]
        self.environment = {
            **os.environ,
            "LD_PRELOAD": ":".join(preloaded),
            "FS_CLOCK_SHIFT": str(file),
        }

    def set_ms(self, ahead_ms: int) -> None:
        """Sets it so far ahead of the machine's; the int64 is written at once."""
        self._shift[:8] = struct.pack("<q", ahead_ms)
