"""Builds the preloaded library of shim.c and the environment to run a program under it; writes the head of
a trace.

    trace = tmp_path / "trace"
    shim.begin_trace(trace, root)                       # what is below root now is taken as durable
    env = shim.environment(root, trace=trace, skip_syncs=True, fail="op=fdatasync;nth=7;errno=EIO")
    subprocess.run([sys.executable, "workload.py", root], env=env)

The rules of `fail` and the format of a trace are at the head of shim.c. A program under the library may
call `mark_here` and `fail_here`; any other process that knows the trace (a client of a traced server) calls
`mark`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

MAGIC = b"FSTRACE1"
RECORD = struct.Struct("<IBBHIIQQQ")
"""Size, kind, flags, error, process, thread, file, a, b: the fixed part of a record, see shim.c."""

BASE_DIRECTORY, BASE_FILE, BASE_DATA, MARK = 1, 2, 3, 24

SOURCE = Path(__file__).with_name("shim.c")
CHUNK_BYTES = 1 << 20


class NoCompilerError(Exception):
    """There is no C compiler here, so nothing can be traced."""


@functools.cache
def library() -> Path:
    """The compiled library, built once per process into a directory that goes away with it."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise NoCompilerError("the crash tests compile tests/crash/shim.c: install a C compiler or set CC")
    directory = _temporary_directory()
    built = directory / "shim.so"
    flags = [
        "-std=gnu11",
        "-O2",
        "-g",
        "-Wall",
        "-Wextra",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-pthread",
    ]
    done = subprocess.run(
        [*compiler.split(), *flags, "-o", str(built), str(SOURCE)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{compiler} cannot compile {SOURCE}:\n{done.stderr}")
    return built


@functools.cache
def _temporary_directory() -> Path:
    # Kept in the cache, so that it lives as long as the process.
    keeper = tempfile.TemporaryDirectory(prefix="crash-shim-")
    _keepers.append(keeper)
    return Path(keeper.name)


_keepers: list[tempfile.TemporaryDirectory[str]] = []


def environment(
    root: Path,
    *,
    trace: Path | None = None,
    fail: str = "",
    skip_syncs: bool = False,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Environment variables that put a program, and what it starts, under the library.

    `fail` holds fault rules, or "@FILE": rules in a file, which the test may change while the program runs.
    `skip_syncs` answers syncs without doing them: an image is computed from the trace, not from the disk.
    """
    root = root.resolve()
    if trace is not None and trace.resolve().is_relative_to(root):
        raise ValueError(f"the trace {trace} lies below {root}: it would trace itself")
    variables = dict(os.environ if base is None else base)
    preloaded = variables.get("LD_PRELOAD", "")
    # A sanitizer's library must come first.
    variables["LD_PRELOAD"] = f"{preloaded}:{library()}" if preloaded else str(library())
    variables["PYTHONPATH"] = os.pathsep.join(
        path for path in sys.path if path
    )  # a child imports what we import
    variables["FS_SHIM_ROOT"] = str(root)
    variables["FS_SHIM_FAIL"] = fail
    variables["FS_SHIM_SYNC"] = "skip" if skip_syncs else "real"
    variables.pop("FS_SHIM_TRACE", None)
    if trace is not None:
        variables["FS_SHIM_TRACE"] = str(trace.resolve())
    return variables


def begin_trace(trace: Path, root: Path) -> None:
    """Starts a new trace file whose base is what is below `root` now, all of it taken as durable."""
    root = root.resolve()
    with trace.open("wb") as out:
        out.write(MAGIC)
        for directory, names, files in os.walk(root):
            names.sort()
            here = Path(directory)
            out.write(_record(BASE_DIRECTORY, here.stat().st_ino, 0, _relative(here, root)))
            for name in sorted(files):
                path = here / name
                if path.is_symlink() or not path.is_file():
                    raise ValueError(
                        f"{path} is no ordinary file: the harness knows files and directories only"
                    )
                status = path.stat()
                out.write(_record(BASE_FILE, status.st_ino, status.st_size, _relative(path, root)))
                with path.open("rb") as data:
                    offset = 0
                    while chunk := data.read(CHUNK_BYTES):
                        if chunk.strip(b"\0"):
                            out.write(_record(BASE_DATA, status.st_ino, offset, chunk))
                        offset += len(chunk)


def mark(trace: Path, text: str) -> None:
    """Appends a marker from outside the traced program: for a client that holds an acknowledgement."""
    fd = os.open(trace, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, _record(MARK, 0, 0, text.encode()))  # one call, so that records never mix
    finally:
        os.close(fd)


def mark_here(text: str) -> None:
    """Puts a marker into this process's own trace; does nothing when it is not traced."""
    if os.environ.get("FS_SHIM_ROOT"):
        data = text.encode()
        ctypes.CDLL(None).fs_shim_mark(data, ctypes.c_size_t(len(data)))


def fail_here(rules: str) -> None:
    """Replaces this process's fault rules from here on; "" ends them."""
    if os.environ.get("FS_SHIM_ROOT"):
        ctypes.CDLL(None).fs_shim_fail(rules.encode())


def _relative(path: Path, root: Path) -> bytes:
    return b"" if path == root else os.fsencode(path.relative_to(root))


def _record(kind: int, file: int, a: int, payload: bytes) -> bytes:
    return RECORD.pack(RECORD.size + len(payload), kind, 0, 0, os.getpid(), 0, file, a, 0) + payload
