"""Prometheus metrics: read from the C counters when somebody asks, so that a call pays for nothing here.

Names are `featurestore_*`; counters count since the server started. Latencies are those of the dispatcher,
from a request's bytes to the moment at which its reply may be sent, waiting for the disk included, transport
not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from featurestore.config import Address
from featurestore.engine import Engine
from featurestore.outcome import Outcome
from featurestore.server.dispatcher import Dispatcher
from featurestore.server.scrape import Scrape
from featurestore.server.status import Status
from featurestore.server.transport import Front

_COUNTERS = (
    ("events_accepted", "events_accepted", "Events applied."),
    (
        "events_late",
        "events_late",
        "Events that every view they match had already dropped; they changed nothing.",
    ),
    ("events_duplicate", "events_duplicate", "Events whose id had been accepted before."),
    (
        "events_refused",
        "events_refused",
        "Events that came and were refused, for whatever reason; not those that clients turned away unsent.",
    ),
    (
        "batches_duplicate",
        "batches_duplicate",
        "Batches whose (producer, epoch, sequence) had been applied before.",
    ),
    ("vectors_read", "vectors_read", "Feature vectors read, those of Observe included."),
    (
        "producers_refused",
        "producers_refused",
        "Batches refused because the memory for producers of their kind of name was in use.",
    ),
    ("producers_forgotten", "producers_forgotten", "Producers forgotten after a silence."),
    ("id_reads", "id_reads", "Event ids read from the checkpoint, to tell whether they are known."),
    ("id_reads_in_vain", "id_reads_in_vain", "Of those, that were other ids."),
    ("id_reads_failed", "id_reads_failed", "Of those, that failed: their events were refused."),
)
_GAUGES = (
    ("rows", "rows", "Rows held."),
    ("row_bytes", "used_bytes", "Memory that rows, logs, their index and sketches take."),
    (
        "max_memory_bytes",
        "max_memory_bytes",
        "What row_bytes may be; at it, keys without a row are shed. 0: no limit.",
    ),
    (
        "held_bytes",
        "held_bytes",
        "Memory that the process holds for them: row_bytes, and what is free between.",
    ),
    ("sketch_bytes", "sketch_bytes", "Memory that sketches take, part of row_bytes."),
    ("remembered_ids", "ids", "Event ids remembered for deduplication."),
    ("remembered_id_bytes", "id_bytes", "Memory that they take."),
    (
        "dedupe_memory_bytes",
        "dedupe_memory_bytes",
        "What that may be; at it, events with new ids are refused until older ones expire.",
    ),
    ("remembered_ids_on_disk", "ids_on_disk", "Of remembered_ids, those that are read from the checkpoint."),
    ("remembered_producers", "producers", "Producers remembered for deduplication."),
    ("remembered_producers_made_up", "producers_made_up", "Of those, names that clients made up."),
    ("producer_bytes", "producer_bytes", "Memory that remembered producers take."),
    ("producer_bytes_made_up", "producer_bytes_made_up", "Of those, for names that clients made up."),
    ("producer_bytes_limit", "max_producer_bytes", "At most so much; half for each kind of name."),
    ("journal_bytes", "journal_bytes", "Size of the journal's files."),
    (
        "checkpoint_room_bytes",
        "checkpoint_room_bytes",
        "Disk space that is set aside for the next checkpoint.",
    ),
    ("position", "position", "Last position applied."),
    ("checkpoint_position", "checkpoint_position", "Position of the last checkpoint."),
    ("schema_version", "schema_version", "Version of the schema being served."),
)
# Of the native transport; grpcio tells none of them.
_CONNECTION_COUNTERS = (
    ("connections", "connections", "Connections taken."),
    (
        "connections_refused",
        "refused",
        "Connections closed at once, because as many as may be were open, or too many of their peer's.",
    ),
    (
        "connections_evicted",
        "evicted",
        "Idle connections told to go because others came and as many as may be were open.",
    ),
    ("connections_idled", "idled", "Connections told to go because they had no call for a long time."),
    ("connections_aged", "aged", "Connections closed with calls under way, at the end of their age's grace."),
    ("connections_slow", "slow", "Connections closed because the client took its replies too slowly."),
    (
        "connections_calmed",
        "calm",
        "Connections ended with ENHANCE_YOUR_CALM: frames that ask for nothing, or pings, came too often.",
    ),
    (
        "connections_stalled",
        "stalled",
        "Connections closed because the client did not go on: no handshake, no replies taken, no pong.",
    ),
    ("connections_broken", "broken", "Connections ended because what came was not HTTP/2."),
    (
        "tls_handshakes_failed",
        "tls_failed",
        "Connections closed before they were secure: no TLS, no h2, or no certificate that is trusted.",
    ),
    (
        "tls_handshakes_delayed",
        "tls_delayed",
        "TLS handshakes that waited, because their peer had begun as many as it may in a second.",
    ),
    (
        "tls_handshakes_refused",
        "tls_refused",
        "Connections closed because their TLS handshake would have waited too long for their peer's others.",
    ),
    ("stream_resets", "resets", "Calls that clients gave up (RST_STREAM)."),
    (
        "streams_reset",
        "streams_reset",
        "Streams that the server reset, as for what is malformed, or more than may be open.",
    ),
    (
        "calls_turned_away",
        "turned_away",
        "Calls that no method got or was let finish: no such method, metadata, length, limit or deadline.",
    ),
    (
        "messages_large",
        "large",
        "Messages that workers ran: by their bytes, or by rows and what is computed of each, too much for a "
        "loop.",
    ),
)
_CONNECTION_GAUGES = (
    ("connections_open", "connections_now", "Connections open now."),
    (
        "calls_open",
        "calls_now",
        "Calls under way now that are not answered where they were read, streams included.",
    ),
    ("streams_open", "streams_now", "Streams of the hot methods under way now."),
    ("watches_open", "watches_now", "Watches of the server's health under way now."),
)


class StoreCollector(Collector):
    """All metrics of one store, its dispatcher and the transport of its public port."""

    def __init__(self, engine: Engine, dispatcher: Dispatcher, front: Front) -> None:
        self._engine, self._dispatcher, self._front = engine, dispatcher, front
        self._began_s = time.monotonic()

    def describe(self) -> list[Metric]:
        return []  # registering must not collect

    def collect(self) -> Iterator[Metric]:
        stats, counts = self._engine.stats(), self._dispatcher.counts()
        for name, key, text in _COUNTERS:
            yield CounterMetricFamily(f"featurestore_{name}", text, stats[key])
        for name, key, text in _GAUGES:
            yield GaugeMetricFamily(f"featurestore_{name}", text, stats[key])
        yield from self._ages(stats)
        yield from _calls(counts["methods"])
        partly_late = CounterMetricFamily(
            "featurestore_events_partly_late",
            "Accepted events that a window or lifetime that they match had dropped already, and so misses.",
            labels=["event"],
        )
        for event, n in self._engine.state.partly_late.items():
            partly_late.add_metric([event], n)
        yield partly_late
        untouched = CounterMetricFamily(
            "featurestore_events_untouched",
            "Accepted events that no view took: their keys are absent, or no filter let them pass.",
            labels=["event"],
        )
        for event, n in self._engine.state.untouched.items():
            untouched.add_metric([event], n)
        yield untouched
        shed = CounterMetricFamily(
            "featurestore_shed",
            "Accepted events whose key of that entity has no row and found no room for one, at max_memory.",
            labels=["entity"],
        )
        for entity, n in self._engine.state.shed.items():
            shed.add_metric([entity], n)
        yield shed
        refused = CounterMetricFamily(
            "featurestore_refusals",
            "Events refused in this server's calls, by reason; not those that clients turned away unsent.",
            labels=["reason"],
        )
        for code, n in counts["refused"].items():
            refused.add_metric([Outcome(code).name.removeprefix("REFUSED_").lower()], n)
        yield refused
        asked = CounterMetricFamily(
            "featurestore_vector_calls",
            "Observe and GetFeatures that read this vector; `featurestore pins` says which is current.",
            labels=["service", "fingerprint"],
        )
        for each in self._engine.state.plan.served:
            asked.add_metric(
                [each.name, each.fingerprint], self._dispatcher.asked_of(each.name, each.fingerprint)[0]
            )
        yield asked
        yield GaugeMetricFamily(
            "featurestore_requests_in_work", "Requests being answered now.", self._dispatcher.n_busy
        )
        yield from _connections(self._front.counts())
        turned_away = CounterMetricFamily(
            "featurestore_calls_refused",
            "Of the calls turned away, why, and what kind of call; of no kind where there is no such method.",
            labels=["reason", "kind"],
        )
        for (reason, kind), n in self._front.refusals().items():
            turned_away.add_metric([reason, kind], n)
        yield turned_away

    def _ages(self, stats: dict[str, Any]) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "featurestore_durable_lag",
            "Positions applied and not on disk yet.",
            stats["position"] - stats["durable_position"],
        )
        last = stats["last_position"]
        if last is not None:
            yield GaugeMetricFamily(
                "featurestore_positions_left",
                "Where the disk gives no more for a checkpoint: positions before writes wait for one.",
                max(0, last - stats["position"]),
            )
        yield GaugeMetricFamily(
            "featurestore_clock_ahead_seconds",
            "How much further the wall clock has leapt than time has passed: above 0, a store of the wall "
            "clock takes no writes.",
            stats["leap_ms"] / 1000,
        )
        behind = GaugeMetricFamily(
            "featurestore_clock_behind_seconds",
            "How far the clock of an event type is behind the server's: on an event clock, the age of its "
            "newest event.",
            labels=["event"],
        )
        for event, now_ms in self._engine.state.nows_ms.items():
            behind.add_metric([event], (stats["server_ms"] - now_ms) / 1000)
        yield behind
        yield GaugeMetricFamily(
            "featurestore_failed", "1: writes are over until a restart.", int(self._engine.failed)
        )
        yield GaugeMetricFamily(
            "featurestore_writes_refused",
            "1: for want of space, a descriptor or memory, until there is some; then writes go on.",
            int(self._engine.refuses_writes),
        )
        yield CounterMetricFamily(
            "featurestore_checkpoints_failed",
            "Checkpoints not written for want of space, a descriptor or memory; each is tried again.",
            self._engine.checkpoints_failed,
        )
        age_ms = stats["checkpoint_age_ms"]  # below 0 where there is none, as when each fails since the start
        yield GaugeMetricFamily(
            "featurestore_checkpoint_age_seconds",
            "Since the last checkpoint of this server, or since its start where it has made none.",
            time.monotonic() - self._began_s if age_ms < 0 else age_ms / 1000,
        )
        written = self._engine.last_checkpoint
        if written is not None:
            yield GaugeMetricFamily(
                "featurestore_checkpoint_seconds", "What the last checkpoint took.", written.seconds
            )
            yield GaugeMetricFamily(
                "featurestore_checkpoint_rows", "Rows the last checkpoint wrote.", written.rows
            )


def _calls(methods: dict[str, Any]) -> Iterator[Metric]:
    latency = HistogramMetricFamily(
        "featurestore_call_seconds", "Time of a call in the dispatcher.", labels=["method"]
    )
    failed = CounterMetricFamily(
        "featurestore_calls_failed", "Calls that ended with an error.", labels=["method", "code"]
    )
    for method, counts in methods.items():
        n = 0
        buckets = []
        for bound_s, in_bucket in counts["latencies"]:
            n += in_bucket
            buckets.append(("+Inf" if bound_s == float("inf") else repr(bound_s), float(n)))
        latency.add_metric([method], buckets, counts["seconds"])
        for code, n_failed in counts["failed"].items():
            failed.add_metric([method, Status(code).name], n_failed)
    yield latency
    yield failed


def _connections(counts: dict[str, int]) -> Iterator[Metric]:
    """Of those that the transport counts."""
    for name, key, text in _CONNECTION_COUNTERS:
        if key in counts:
            yield CounterMetricFamily(f"featurestore_{name}", text, counts[key])
    for name, key, text in _CONNECTION_GAUGES:
        if key in counts:
            yield GaugeMetricFamily(f"featurestore_{name}", text, counts[key])


class MetricsListener:
    """GET /metrics on an address of its own; scrape.py says what it bears."""

    def __init__(self, address: Address, collector: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        self._scrape = Scrape(address, self._tell)
        self.address = self._scrape.address

    def _tell(self, asked: str) -> tuple[str, bytes]:
        accepts = (line for line in asked.splitlines() if line.lower().startswith("accept:"))
        encode, kind = choose_encoder(next(accepts, ":").partition(":")[2].strip())
        return kind, encode(self._registry)

    def close(self) -> None:
        self._scrape.close()
