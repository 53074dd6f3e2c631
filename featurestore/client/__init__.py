"""The client library: events in, vectors out, over gRPC, from threads (Client) or asyncio (AsyncClient).

    sync, aio    the two clients: all that blocks or awaits
    admin        AdminClient, for operators
      calls      what each call sends and makes of the answer: names, fingerprints, sequences
      upload     many events, each counted once: batches, window, what to send again
        catalog    the schema as the client knows it
        requests   people's values made into requests
        sequences  numbers for batches, such that the store can tell whether it has one
        failures   gRPC status → featurestore.errors, what is tried again and when
        wire       packed columns and vectors, straight from and to numpy
        replies    what comes back
          parquet    the pin in a training set
      channel    addresses, TLS, what a channel is told
        forks    what a process that is forked keeps of its parent's clients

Arrows point down only. It needs numpy, grpcio and protobuf, and of featurestore only the proto's classes,
columns, outcome, plan, thrift and errors: neither the server's dependencies nor the compiled core.
"""

from featurestore.client.admin import AdminClient
from featurestore.client.aio import AsyncClient
from featurestore.client.channel import Tls
from featurestore.client.replies import (
    Ack,
    HeavyList,
    HeavyValue,
    IngestReport,
    Observed,
    Pin,
    Producer,
    Refusal,
    Schema,
    Status,
    Vector,
    Vectors,
)
from featurestore.client.sequences import Ticket
from featurestore.client.sync import Client

__all__ = [
    "Ack",
    "AdminClient",
    "AsyncClient",
    "Client",
    "HeavyList",
    "HeavyValue",
    "IngestReport",
    "Observed",
    "Pin",
    "Producer",
    "Refusal",
    "Schema",
    "Status",
    "Ticket",
    "Tls",
    "Vector",
    "Vectors",
]
