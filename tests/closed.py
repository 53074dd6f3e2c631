"""Processes started with some of 0, 1 and 2 closed, in which a library never stops writing to 1 and 2.

Where a file of ours got one of those, what the library says is written over it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Each alone, and all three.
WAYS = ((0,), (1,), (2,), (0, 1, 2))

# From before the first line of the program: sitecustomize is imported when the interpreter starts.
LIBRARY = """\
import os, threading, time

def speak():
    while True:
        for fd in (1, 2):
            try:
                os.write(fd, b"SAID" * 8)
            except OSError:
                pass
        time.sleep(0.001)

threading.Thread(target=speak, daemon=True).start()
"""


SAID = "a library has something to say, again and again\n"


def start(words: Sequence[str], closed: Sequence[int], directory: Path) -> subprocess.Popen[bytes]:
    """`words` as a process; `directory` takes the library. What it does not have closed is /dev/null, and for
    standard error a file beside that."""
    library = directory / "library"
    library.mkdir(exist_ok=True)
    (library / "sitecustomize.py").write_text(LIBRARY.replace("SAID", SAID.encode("unicode_escape").decode()))
    path = os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment: Mapping[str, str] = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    # By a shell and not between fork and exec: what other libraries do in a forked child ended some of them.
    closing = " ".join(f"{fd}>&-" for fd in closed)
    with _stderr(directory).open("wb") as stderr:
        return subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )


def said_by(directory: Path) -> str:
    """What the process that was started last said on standard error, without the library."""
    return _stderr(directory).read_text(errors="replace").replace(SAID, "")


def _stderr(directory: Path) -> Path:
    return directory.with_name(directory.name + ".stderr")


def run(words: Sequence[str], closed: Sequence[int], directory: Path, timeout_s: float = 120.0) -> int:
    """The exit code."""
    process = start(words, closed, directory)
    try:
        return process.wait(timeout_s)
    finally:
        process.kill()
        process.wait()


def files_of(process: int | str, below: Path) -> dict[int, str]:
    """Which descriptors of a process ("self": of this one) are files below a directory."""
    found = {}
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            name = str(link.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if name.startswith(f"{below}{os.sep}"):
            found[int(link.name)] = name
    return found
