"""Generates featurestore/v1/ from proto/: run `python proto/generate.py` after every change to a .proto file.

Needs grpcio-tools (the `test` extra). The generated files are committed, so that neither a user nor a wheel
needs a compiler for them; tests/source/test_generated.py fails when they are not what this script would
write.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
SOURCES = sorted((ROOT / "featurestore" / "v1").glob("*.proto"))


def generate(target: Path) -> None:
    """Writes the messages, their stubs and the service classes under `target`, as featurestore/v1/*."""
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    sources = [str(source.relative_to(ROOT)) for source in SOURCES]
    if protoc.main(["protoc", f"--proto_path={ROOT}", *outputs, *sources]) != 0:
        raise SystemExit("protoc failed; its message is above")
    for service in sources:
        if not service.endswith("_service.proto"):  # protoc writes an empty service file where there is none
            (target / service.replace(".proto", "_pb2_grpc.py")).unlink()


if __name__ == "__main__":
    sys.exit(generate(ROOT.parent))
