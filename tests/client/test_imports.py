"""A client needs numpy, grpcio and protobuf: neither the server's dependencies nor the compiled core."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("lmdb", "yaml", "pyarrow", "pandas", "tqdm", "grpc_health", "grpc_reflection", "prometheus_client")

PROGRAM = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r} or name.startswith(
            ("featurestore.core", "featurestore.storage", "featurestore.engine", "featurestore.server")
        ):
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocked())
{{body}}
"""


def run(body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{body}", body)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing() -> None:
    out = run(
        "import featurestore\n"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in ('numpy', 'grpc', 'google')))"
    )
    assert out.strip() == "[]"


def test_every_public_name_is_there_without_the_server() -> None:
    run("import featurestore\nfor name in featurestore.__all__: getattr(featurestore, name)")


def test_a_client_reads_and_writes_without_the_server() -> None:
    from .fake_server import FakeServer

    server = FakeServer()
    try:
        out = run(
            "from featurestore import Client\n"
            f"with Client({server.target!r}) as client:\n"
            "    client.observe('transaction', {'tx_datetime': 1, 'customer_id': 596}, 'fraud')\n"
            "    keys = {'customer_id': [1, 2], 'terminal_id': [3, 4]}\n"
            "    client.ingest('transaction', {'tx_datetime': [1, 2], **keys})\n"
            "    print(client.get('fraud', {'customer_id': 596}).names[0])"
        )
    finally:
        server.stop()
    assert out.strip() == "customer.count_1d"
    assert len(server.events) == 3


def test_an_unknown_name_is_an_attribute_error() -> None:
    run("import featurestore\nassert not hasattr(featurestore, 'Clinet')")
