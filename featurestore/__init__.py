"""featurestore: real-time velocity features, exact until a key is hot and with true bounds after.

    from featurestore import Client

    with Client("localhost:50051") as client:
        client.observe("transaction", {"customer_id": 596, "tx_amount": 12.5, "tx_datetime": now})
        client.get("fraud", {"customer_id": 596, "terminal_id": 3156}).to_dict()

    featurestore.replay({"transaction": "tx.parquet"}, "card-fraud.yaml", "fraud")  # a training set, in Arrow

The package, from the outside in; each knows only what is below it:

    cli        the command `featurestore`
    demo       real logs through a real server, and who stands out in them
    client     Client and AsyncClient: writing and reading over gRPC       (needs numpy, grpcio, protobuf)
    server     the wire and the dispatcher: the only place that knows gRPC's server side
    config     settings and limits of a server, checked before anything is opened
    training   history in, training set out, through the engine that serves
    engine     the store as one: journal, rows and state; observe, read, recover, forget, back up
    storage    the journal's segments and the rows in LMDB: the only place that knows record bytes
    core       the state in memory, compiled: windows, rows, filters, sequencer
    schema     the file people write → plan
    files      event files in, vector files out: CSV, JSON lines, Parquet
    refusals   why an event was refused: which field, its value, what to do
    columns    people's data → the columns that events travel in
    exported   frames of any library, by Arrow's PyCapsule interface
    niceness   which threads give way
    thrift     the protocol that Parquet's metadata is written in
    stdio      descriptors 0, 1 and 2, which are never a file of ours
    clock      what time it is, for compiled code
    plan, outcome, errors, v1 (the generated proto): what they all speak of

What is imported here is imported when it is first used: `import featurestore` costs nothing, and a client
needs neither the server's dependencies nor the compiled core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.client import (
        Ack,
        AsyncClient,
        Client,
        IngestReport,
        Observed,
        Pin,
        Refusal,
        Schema,
        Status,
        Ticket,
        Tls,
        Vector,
        Vectors,
    )
    from featurestore.errors import (
        ConfigError,
        FeatureStoreError,
        InvalidEventError,
        LimitError,
        OutcomeUnknownError,
        SchemaError,
        SchemaMismatchError,
        SequenceError,
        StorageError,
        UnavailableError,
        UnknownNameError,
    )
    from featurestore.outcome import Outcome
    from featurestore.training import replay as replay

__all__ = [
    "Ack",
    "AsyncClient",
    "Client",
    "ConfigError",
    "FeatureStoreError",
    "IngestReport",
    "InvalidEventError",
    "LimitError",
    "Observed",
    "Outcome",
    "OutcomeUnknownError",
    "Pin",
    "Refusal",
    "Schema",
    "SchemaError",
    "SchemaMismatchError",
    "SequenceError",
    "Status",
    "StorageError",
    "Ticket",
    "Tls",
    "UnavailableError",
    "UnknownNameError",
    "Vector",
    "Vectors",
]
HISTORY = "replay"  # needs the server's dependencies, so it is none of `from featurestore import *`


def __getattr__(name: str) -> Any:
    if name not in __all__ and name != HISTORY:
        raise AttributeError(f"module 'featurestore' has no attribute {name!r}")
    if name == "Outcome":
        module = "featurestore.outcome"
    elif name == HISTORY:
        module = "featurestore.training"
    else:
        module = "featurestore.errors" if name.endswith("Error") else "featurestore.client"
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, HISTORY})
