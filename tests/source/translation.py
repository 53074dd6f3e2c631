"""What Cython makes of the sources with the directives that setup.py builds with, checks off."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SETUP = Path(__file__).resolve().parents[2] / "setup.py"

# In a process of its own: it forks, and the one that runs the tests has threads.
PROGRAM = """
import json, sys
from Cython.Build import cythonize
cythonize(**json.load(sys.stdin), force=True, quiet=True)
"""


def directives() -> dict[str, object]:
    for node in ast.parse(SETUP.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "directives":
            assert isinstance(node.value, ast.Dict)
            return {
                ast.literal_eval(key): ast.unparse(value) != "DEBUG" and ast.literal_eval(value)
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if key is not None
            }
    raise AssertionError("setup.py has no `directives` any more")


def translate(root: Path, paths: Sequence[Path], build: Path) -> dict[Path, str]:
    """The C text of each .pyx below `root`, the directory that their packages are in."""
    given = {
        "module_list": [str(path.relative_to(root)) for path in paths],
        "build_dir": str(build),
        "compiler_directives": directives(),
        "nthreads": len(os.sched_getaffinity(0)),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(given), cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: (build / path.relative_to(root)).with_suffix(".c").read_text() for path in paths}
