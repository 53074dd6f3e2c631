"""Request bytes, made before the clock runs."""

from __future__ import annotations

import numpy as np

from benches import workload
from benches.load import EventTimes
from featurestore.client import wire
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2


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


def observes(n: int, n_keys: int, seed: int) -> tuple[list[bytes], EventTimes]:
    """Observe of one event each, a millisecond apart, which reads the 30 values; not waiting for the disk."""
    rng = np.random.default_rng(seed)
    zipf = workload.Zipf(n_keys)
    drawn = [zipf.draw(rng, n) for _ in workload.ENTITIES]
    messages, places = [], []
    for i in range(n):
        time_ms = workload.START_MS + i
        request = pb.ObserveRequest(event_type="play", service="abuse", ack=types_pb2.ACK_APPLIED)
        request.event.time_ms = time_ms
        for name, numbers in zip(workload.ENTITIES, drawn, strict=True):
            request.event.fields.add(name=name, text=f"{name[0]}{numbers[i]:09d}")
        request.event.fields.add(name="seconds", number=float(rng.integers(1, 300)))
        messages.append(request.SerializeToString())
        places.append((messages[i].index(wire.varint(2 * time_ms)), 0))  # a sint64 is zigzag
    return messages, EventTimes(places, n)


def ingest_times(messages: list[bytes], n_events: int) -> EventTimes:
    """Where what `ingests` made has its times."""
    times = [
        workload.skewed_times(n_events, i * n_events).astype("<i8").tobytes() for i in range(len(messages))
    ]
    places = [(message.index(packed), n_events) for message, packed in zip(messages, times, strict=True)]
    return EventTimes(places, (len(messages) * n_events + 1) // 2)


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
