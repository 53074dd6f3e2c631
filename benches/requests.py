"""Request bytes, made before the clock runs."""

from __future__ import annotations

import numpy as np

from benches import workload
from featurestore.client import wire
from featurestore.v1 import feature_store_service_pb2 as pb


def reads(n: int, n_keys: int, seed: int) -> list[bytes]:
    """GetFeatures of one key set each: three entities, 30 values."""
    rng = np.random.default_rng(seed)
    zipf = workload.Zipf(n_keys)
    drawn = [zipf.draw(rng, n) for _ in workload.ENTITIES]
    messages = []
    for i in range(n):
        request = pb.GetFeaturesRequest(service="abuse")
        parts = request.key_sets.add().parts
        for name, numbers in zip(workload.ENTITIES, drawn, strict=True):
            parts.add(name=name, text=f"{name[0]}{numbers[i]:09d}")
        messages.append(request.SerializeToString())
    return messages


def ingests(n: int, n_events: int, n_keys: int, seed: int) -> list[bytes]:
    """IngestStream messages of n_events columnar events each, in time order from one message to the next."""
    messages = []
    for i in range(n):
        some = workload.skewed_events(n_events, n_keys, seed, start=i * n_events)
        columns = wire.event_columns(
            some.times, list(zip((*workload.ENTITIES, "seconds"), some.columns, strict=True))
        )
        batch = pb.IngestRequest(event_type="play").SerializeToString() + columns
        messages.append(wire.length_field(wire.STREAMED_BATCH, batch))
    return messages
