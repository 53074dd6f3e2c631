"""Generates featurestore/v1/ from proto/: run `python proto/generate.py` after every change to a .proto file.

The generated files are committed, so that neither a user nor a wheel needs a compiler for them;
tests/source/test_generated.py fails when they are not what this script would write.

What a compiler generates asks, when it is imported, for a protobuf and a grpcio at least as new as the
compiler, and for none of a later major version but the next. The last compiler that asks for none at all is
the one below: what it generates works with protobuf 4.25 to 7, whichever a program that embeds a client
has. It wants an older protobuf for itself, so it has an environment of its own, made under build/ from PyPI
when it is not there.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOURCES = sorted((ROOT / "featurestore" / "v1").glob("*.proto"))
TOOLS = "grpcio-tools==1.62.3"
NEEDS = ["setuptools<81", "protobuf<5"]  # they import pkg_resources


def compiler() -> list[str]:
    """The command that runs protoc as it is in TOOLS."""
    place = ROOT.parent / "build" / TOOLS.replace("==", "-")
    if not (place / "ready").exists():
        venv.create(place, clear=True, with_pip=True)
        subprocess.run([str(place / "bin/pip"), "install", "-q", TOOLS, *NEEDS], check=True)
        (place / "ready").touch()
    return [str(place / "bin/python"), "-W", "ignore", "-m", "grpc_tools.protoc", f"--proto_path={ROOT}"]


def generate(target: Path) -> None:
    """Writes the messages, their stubs and the service classes under `target`, as featurestore/v1/*."""
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    sources = [str(source.relative_to(ROOT)) for source in SOURCES]
    if subprocess.run([*compiler(), *outputs, *sources], check=False).returncode != 0:
        raise SystemExit("protoc failed; its message is above")
    for service in sources:
        if not service.endswith("_service.proto"):  # protoc writes an empty service file where there is none
            (target / service.replace(".proto", "_pb2_grpc.py")).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(generate(ROOT.parent))
