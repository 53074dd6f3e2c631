"""What clients of other makers come in: npm's packages, as node/package-lock.json has them."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = REPOSITORY / "tests" / "node"


def missing(why: str) -> None:
    """Skips the test; with FEATURESTORE_TEST_NODE=required it fails."""
    if os.environ.get("FEATURESTORE_TEST_NODE") == "required":
        pytest.fail(why)
    pytest.skip(why)


@functools.cache
def node_modules() -> Path:
    """Where they are: in build/, installed by npm once for each lock file; missing where it cannot."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("needs node and npm (Debian: apt-get install nodejs npm)")
    lock = (SOURCES / "package-lock.json").read_bytes()
    directory = REPOSITORY / "build" / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (directory / "installed").exists():
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCES / name, directory)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            missing(f"npm cannot install the packages of {SOURCES}: {done.stderr.strip()[-500:]}")
        (directory / "installed").touch()
    return directory / "node_modules"


def node(script: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command, and the environment, of a script of SOURCES."""
    return ["node", str(SOURCES / script), *arguments], {**os.environ, "NODE_MODULES": str(node_modules())}
