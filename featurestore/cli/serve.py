"""`featurestore serve`: open a store and serve it until told to stop."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument
from featurestore.cli.quantities import bytes_of, bytes_text, mode_of, seconds_of
from featurestore.config import (
    ADMIN_SOCKET,
    DEFAULT_LISTEN,
    OBSERVE_ACKS,
    TRANSPORTS,
    Limits,
    ServeConfig,
    Tls,
)
from featurestore.errors import ConfigError, StorageError
from featurestore.plan import CLOCKS

if TYPE_CHECKING:
    from featurestore.server.serve import Server

DESCRIPTION = """\
Serves the store in --data over gRPC until SIGTERM or Ctrl-C. What is in the directory is recovered first: the
last checkpoint, then the journal after it; whoever can connect sees everything that was ever acknowledged.

  new store      --data names a directory that is empty or does not exist; --schema, --clock and --history
                 make it
  existing one   --schema may be left out. Given, it is applied as `featurestore apply` would without --allow:
                 a change that takes something away is refused, and made by `apply` on the store as it is

Told to stop, it turns new calls away, lets those in flight end, writes a checkpoint and exits with 0. A
second signal ends it at once; nothing acknowledged is lost. SIGHUP has it read its certificates anew at once,
which it also does by itself when their files change; SIGUSR1 and SIGUSR2 do nothing."""

EPILOG = """\
what is promised to whoever writes:
  --durability group     Ingest is acknowledged when on disk: survives kill -9 and a power cut (many batches,
                         one sync)
  --durability process   Ingest is acknowledged when written: survives kill -9; a power cut loses at most 1 s
  --observe-ack applied  Observe is answered when written, in either: survives kill -9. A power cut loses what
                         was written within 500 ms of it (group) or 1 s (process), the newest first, and the
                         tickets with it: sent again, each counts once
  --observe-ack durable  Observe is answered when on disk
  A call may ask for either. One that is to be durable, and is not just before its deadline (1 ms, or 5 % of
  its time if that is more), is answered as applied, which the answer says

what time it is:
  --clock wall     the server's clock: for live traffic
  --clock event    the newest event so far, of each type by itself: for types loaded one after the other. What
                   lies beyond a type's clock is WARMING
  --clock merged   the newest event so far of all types: for history and tests whose types come together
                   With both, the same events always say the same
  Whichever it is, an event more than 10 seconds ahead of the server's clock is refused. Where that leaps more
  than a minute further ahead than time has passed, --clock wall takes no writes: `featurestore clock --help`
  History goes live with `featurestore clock wall`. A wall-clock store that is ahead of this machine's clock
  by more than 10 minutes is not opened: one of them is wrong. --clock-back sets the store's back

what was before a new store:
  --history none     no event of the schema's types: what it says is certain from the start
  --history unknown  nobody knows: windows that begin before the first event are WARMING, lifetimes for good

examples:
  featurestore serve --schema card-fraud.yaml --data /var/lib/featurestore
  featurestore serve --data /var/lib/featurestore --listen 0.0.0.0:50051 --max-memory 4G \\
      --tls-cert server.pem --tls-key server.key --metrics-listen localhost:9100
  featurestore serve --schema s.yaml --data /tmp/fs --listen localhost:0 -o json | jq -r .listen

standard output gets what it recovered and where it listens, once it does; with -o json as one line. The log
goes to standard error. Exit code 1: the store cannot be opened (schema, disk, another process has it) or has
failed; 2: a setting is wrong or an address is taken."""

_LIMITS = Limits()

# By which a setting of ServeConfig and Limits is given.
FLAGS = {
    "listen": "--listen",
    "listen_mode": "--listen-mode",
    "admin": "--admin",
    "metrics": "--metrics-listen",
    "engine_threads": "--threads",
    "max_memory_bytes": "--max-memory",
    "dedupe_memory_bytes": "--dedupe-memory",
    "producer_memory_bytes": "--producer-memory",
    "checkpoint_every_s": "--checkpoint-every",
    "checkpoint_journal_bytes": "--checkpoint-journal",
    "transport": "--transport",
    "loop_threads": "--loop-threads",
    "worker_threads": "--worker-threads",
    "max_connection_age_s": "--max-connection-age",
    "connection_age_grace_s": "--connection-age-grace",
    "max_connection_idle_s": "--max-connection-idle",
    "handshake_s": "--handshake-time",
    "handshake_rate": "--handshake-rate",
    "request_s": "--request-time",
    "stall_s": "--stall-time",
    "min_rate_bytes": "--min-rate",
    "max_connections": "--max-connections",
    "max_connection_bytes": "--max-connection-memory",
    "max_buffered_bytes": "--max-buffered",
    "read_threads": "--read-threads",
    "write_threads": "--write-threads",
    "drain_s": "--drain",
    "max_message_bytes": "--max-message",
    "max_batch_events": "--max-batch-events",
    "max_call_bytes": "--max-call-memory",
    "max_concurrent_calls": "--max-concurrent-calls",
    "max_streams": "--max-streams",
    "max_other_calls": "--max-other-calls",
    "max_watches": "--max-watches",
    "max_streams_per_connection": "--max-streams-per-connection",
    "stream_window": "--stream-window",
    "min_ping_interval_ms": "--min-ping-interval",
    "durable_wait_s": "--durable-wait",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--schema", metavar="F", help="the schema file; a new store needs one")
    parser.add_argument("--data", required=True, metavar="DIR", help="the store's directory")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        help="of a new store; wall is for good: see below (default: wall)",
    )
    parser.add_argument(
        "--clock-back",
        action="store_true",
        help="set the clock of a wall-clock store back where that is ahead of this machine's: see below",
    )
    parser.add_argument(
        "--history",
        choices=("none", "unknown"),
        help="of a new store, for good: see below (default: unknown)",
    )
    parser.add_argument(
        "--durability",
        choices=("group", "process"),
        default=ServeConfig.durability,
        help="when a write is acknowledged: see below (default: group)",
    )
    parser.add_argument(
        "--observe-ack",
        choices=OBSERVE_ACKS,
        default=ServeConfig.observe_ack,
        help="when an Observe is, that does not ask for either: see below (default: applied)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="how much the log says (default: info)",
    )
    add_output_argument(parser)
    _add_listeners(parser)
    _add_resources(parser)
    _add_limits(parser)


def _add_listeners(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("listeners (host:port, port 0 for any free one, or unix:PATH)")
    group.add_argument(
        "--listen", default=DEFAULT_LISTEN, metavar="ADDR", help=f"for clients (default: {DEFAULT_LISTEN})"
    )
    group.add_argument(
        "--listen-mode",
        metavar="MODE",
        help="of the file of --listen unix:PATH, octal: 0660 lets its group connect, which is the group of "
        "the directory where that is setgid (default: 0600)",
    )
    group.add_argument(
        "--transport",
        choices=TRANSPORTS,
        help="what carries it: native (on nghttp2), or grpcio, which is slower and everywhere (default: "
        "native, where it was built; `featurestore doctor` says)",
    )
    group.add_argument("--tls-cert", metavar="PEM", help="the server's certificate; without it, plain text")
    group.add_argument("--tls-key", metavar="PEM", help="its private key")
    group.add_argument("--tls-client-ca", metavar="PEM", help="clients show a certificate signed by this CA")
    group.add_argument(
        "--admin",
        metavar="ADDR",
        help="for apply, forget, producers, stats, checkpoint and backup (default: "
        f"unix:DIR/{ADMIN_SOCKET}, which only its owner may open). Over TCP it needs all three of:",
    )
    group.add_argument("--admin-tls-cert", metavar="PEM", help="its certificate")
    group.add_argument("--admin-tls-key", metavar="PEM", help="the private key of that")
    group.add_argument("--admin-tls-client-ca", metavar="PEM", help="operators show a certificate of this CA")
    group.add_argument(
        "--metrics-listen", metavar="ADDR", help="host:port of GET /metrics for Prometheus (default: none)"
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory, threads, checkpoints (sizes: 512M, 4G; times: 500ms, 10s, 5m)")
    group.add_argument(
        "--max-memory",
        default="0",
        metavar="SIZE",
        help="of all rows, 16M at least; at it keys that have a row go on and others are shed: what has none "
        "is WARMING then, for as long as it may have lost something, lifetimes of later rows for good. A "
        "checkpoint takes up to twice what changed since the last, while it is written (default: no limit)",
    )
    group.add_argument(
        "--dedupe-memory",
        default="0",
        metavar="SIZE",
        help="of event ids within their horizons: 36 bytes each, and 12 of those that are read from the "
        "disk (25 bytes each), as the oldest are from five eighths of this on; at it, events with new ids "
        "are refused (default: a quarter of --max-memory, beside it; without that, an eighth of the "
        "machine's)",
    )
    group.add_argument(
        "--producer-memory",
        default="0",
        metavar="SIZE",
        help="of what is remembered of producers, half for names that were given and half for names that "
        "clients made up, from 180 bytes each; at it, batches of new ones are refused (default: a "
        "thirty-second of --max-memory, beside it, or of the machine's; 64M at least)",
    )
    group.add_argument(
        "--threads",
        type=int,
        default=ServeConfig.engine_threads,
        metavar="N",
        help="that apply one large batch together (default: %(default)s)",
    )
    group.add_argument(
        "--read-threads",
        type=int,
        default=ServeConfig.read_threads,
        metavar="N",
        help="grpcio: calls of GetFeatures at once; native: of what is not hot (default: %(default)s)",
    )
    group.add_argument(
        "--write-threads",
        type=int,
        default=ServeConfig.write_threads,
        metavar="N",
        help="grpcio: calls of Observe and Ingest at once; they wait for the disk (default: %(default)s)",
    )
    group.add_argument(
        "--worker-threads",
        type=int,
        default=ServeConfig.worker_threads,
        metavar="N",
        help="native: for messages that would keep a loop from others (default: %(default)s)",
    )
    group.add_argument(
        "--loop-threads",
        type=int,
        default=ServeConfig.loop_threads,
        metavar="N",
        help="native: that read, answer and write (default: %(default)s)",
    )
    group.add_argument(
        "--checkpoint-every",
        default=f"{ServeConfig.checkpoint_every_s:g}s",
        metavar="TIME",
        help="changed rows are written so often; a restart replays what came since (default: %(default)s)",
    )
    group.add_argument(
        "--checkpoint-journal",
        default=bytes_text(ServeConfig.checkpoint_journal_bytes),
        metavar="SIZE",
        help="and whenever the journal has grown by this (default: %(default)s)",
    )
    group.add_argument(
        "--drain",
        default=f"{ServeConfig.drain_s:g}s",
        metavar="TIME",
        help="that calls in flight get when it is told to stop (default: %(default)s)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "limits (over one: RESOURCE_EXHAUSTED at once; nothing queues; who has most of it is refused first)"
    )
    group.add_argument(
        "--max-message",
        default=bytes_text(_LIMITS.max_message_bytes),
        metavar="SIZE",
        help="of one request or reply (default: %(default)s)",
    )
    group.add_argument(
        "--max-call-memory",
        default=bytes_text(_LIMITS.max_call_bytes),
        metavar="SIZE",
        help="that one request may take when decoded (default: %(default)s)",
    )
    group.add_argument(
        "--max-connection-memory",
        default=bytes_text(_LIMITS.max_connection_bytes),
        metavar="SIZE",
        help="native: held for one connection, requests not run and replies not taken (default: %(default)s)",
    )
    group.add_argument(
        "--max-buffered",
        default=bytes_text(_LIMITS.max_buffered_bytes),
        metavar="SIZE",
        help="native: held so for all connections; an eighth is shared out among as many as may be open "
        "(default: %(default)s)",
    )
    for flag, default, what in (
        ("--max-batch-events", _LIMITS.max_batch_events, "events of a batch, key sets of a read"),
        ("--max-concurrent-calls", _LIMITS.max_concurrent_calls, "reads at once, and as many writes"),
        ("--max-streams", _LIMITS.max_streams, "streams at once"),
        ("--max-other-calls", _LIMITS.max_other_calls, "calls at once of what is not hot: schema, lists"),
        ("--max-watches", _LIMITS.max_watches, "Health.Watch at once"),
        (
            "--max-streams-per-connection",
            _LIMITS.max_streams_per_connection,
            "calls at once on one connection; a client waits with more, as HTTP/2 has it",
        ),
        (
            "--max-connections",
            _LIMITS.max_connections,
            "connections at once; for one more an idle one of whoever has most is told to go",
        ),
        (
            "--handshake-rate",
            _LIMITS.handshake_rate,
            "native: TLS handshakes of one peer a second; further ones wait",
        ),
        ("--stream-window", _LIMITS.stream_window, "batches of an IngestStream applied and not yet answered"),
    ):
        group.add_argument(flag, type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    group.add_argument(
        "--min-ping-interval",
        default=f"{_LIMITS.min_ping_interval_ms // 1000}s",
        metavar="TIME",
        help="clients that ping more often are disconnected; those of featurestore do it every 30 s, idle or "
        "not (default: %(default)s)",
    )
    for flag, default_s, what in (
        (
            "--max-connection-idle",
            _LIMITS.max_connection_idle_s,
            "native: then a connection without a call is told to go; 0s: never",
        ),
        (
            "--max-connection-age",
            _LIMITS.max_connection_age_s,
            "then a connection is drained, so that clients spread anew; 0s: never",
        ),
        (
            "--connection-age-grace",
            _LIMITS.connection_age_grace_s,
            "that calls get when their connection has reached its age",
        ),
        (
            "--handshake-time",
            _LIMITS.handshake_s,
            "native: for TLS and the first frames, and for a call's headers",
        ),
        (
            "--request-time",
            _LIMITS.request_s,
            "native: for a request to come whole, and a second more for each --min-rate of it",
        ),
        ("--stall-time", _LIMITS.stall_s, "native: then a client that takes none of its replies is closed"),
    ):
        group.add_argument(
            flag, default=f"{default_s:g}s", metavar="TIME", help=f"{what} (default: %(default)s)"
        )
    group.add_argument(
        "--min-rate",
        default=bytes_text(_LIMITS.min_rate_bytes),
        metavar="SIZE",
        help="native: a second, of a request on its way and of replies that wait (default: %(default)s)",
    )
    group.add_argument(
        "--durable-wait",
        default=f"{_LIMITS.durable_wait_s:g}s",
        metavar="TIME",
        help="a write waits so long for the disk, and is then answered as applied (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> Exit:
    config = config_of(arguments)
    _log_to_stderr(arguments.log_level)
    from featurestore.server.serve import serve

    def on_ready(server: Server) -> None:
        ready = as_dict(server, config)
        text = (
            json.dumps(ready, ensure_ascii=False)
            if arguments.output == "json"
            else "\n".join(as_lines(ready))
        )
        print(text, flush=True)

    return Exit(serve(config, on_ready=on_ready))


def config_of(arguments: argparse.Namespace) -> ServeConfig:
    """The settings that the flags say, checked. Raises ConfigError; the schema is read, not compiled."""
    return ServeConfig(
        data=Path(arguments.data),
        schema=None if arguments.schema is None else _schema_text(arguments.schema),
        schema_path=arguments.schema,
        listen=arguments.listen,
        listen_mode=None
        if arguments.listen_mode is None
        else mode_of(arguments.listen_mode, "--listen-mode"),
        tls=_tls(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca, "--tls"),
        admin=arguments.admin,
        admin_tls=_tls(
            arguments.admin_tls_cert, arguments.admin_tls_key, arguments.admin_tls_client_ca, "--admin-tls"
        ),
        metrics=arguments.metrics_listen,
        clock=arguments.clock,
        clock_back=arguments.clock_back,
        history=arguments.history,
        durability=arguments.durability,
        observe_ack=arguments.observe_ack,
        engine_threads=arguments.threads,
        transport=arguments.transport,
        loop_threads=arguments.loop_threads,
        worker_threads=arguments.worker_threads,
        max_memory_bytes=bytes_of(arguments.max_memory, "--max-memory"),
        dedupe_memory_bytes=bytes_of(arguments.dedupe_memory, "--dedupe-memory"),
        producer_memory_bytes=bytes_of(arguments.producer_memory, "--producer-memory"),
        checkpoint_every_s=seconds_of(arguments.checkpoint_every, "--checkpoint-every"),
        checkpoint_journal_bytes=bytes_of(arguments.checkpoint_journal, "--checkpoint-journal"),
        read_threads=arguments.read_threads,
        write_threads=arguments.write_threads,
        drain_s=seconds_of(arguments.drain, "--drain"),
        limits=Limits(
            max_message_bytes=bytes_of(arguments.max_message, "--max-message"),
            max_batch_events=arguments.max_batch_events,
            max_call_bytes=bytes_of(arguments.max_call_memory, "--max-call-memory"),
            max_concurrent_calls=arguments.max_concurrent_calls,
            max_streams=arguments.max_streams,
            max_streams_per_connection=arguments.max_streams_per_connection,
            max_other_calls=arguments.max_other_calls,
            max_watches=arguments.max_watches,
            stream_window=arguments.stream_window,
            max_connection_idle_s=seconds_of(arguments.max_connection_idle, "--max-connection-idle"),
            max_connection_age_s=seconds_of(arguments.max_connection_age, "--max-connection-age"),
            connection_age_grace_s=seconds_of(arguments.connection_age_grace, "--connection-age-grace"),
            handshake_s=seconds_of(arguments.handshake_time, "--handshake-time"),
            handshake_rate=arguments.handshake_rate,
            request_s=seconds_of(arguments.request_time, "--request-time"),
            stall_s=seconds_of(arguments.stall_time, "--stall-time"),
            min_rate_bytes=bytes_of(arguments.min_rate, "--min-rate"),
            max_connections=arguments.max_connections,
            max_connection_bytes=bytes_of(arguments.max_connection_memory, "--max-connection-memory"),
            max_buffered_bytes=bytes_of(arguments.max_buffered, "--max-buffered"),
            min_ping_interval_ms=round(seconds_of(arguments.min_ping_interval, "--min-ping-interval") * 1000),
            durable_wait_s=seconds_of(arguments.durable_wait, "--durable-wait"),
        ),
    )


def _schema_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StorageError(f"cannot read {path}: it is not UTF-8 ({error})") from error


def _tls(certificate: str | None, key: str | None, client_ca: str | None, flag: str) -> Tls | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise ConfigError(f"{flag}-cert and {flag}-key belong together; give both")
    return Tls(Path(certificate), Path(key), None if client_ca is None else Path(client_ca))


def _log_to_stderr(level: str) -> None:
    # gRPC itself writes a line for each handshake that fails, past any limit, unless told before it is there
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from featurestore.server.log import RateLimit

    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(RateLimit())


def as_dict(server: Server, config: ServeConfig) -> dict[str, Any]:
    """What a program that started it wants to know."""
    engine = server.engine
    recovered, stats = engine.recovered, engine.stats()
    return {
        "listen": str(server.address),
        "transport": server.front.name,
        "admin": str(server.admin_address),
        "metrics": None if server.metrics_address is None else f"http://{server.metrics_address}/metrics",
        "data": str(config.data),
        "schema": engine.state.plan.name,
        "schema_version": stats["schema_version"],
        "clock": engine.clock,
        "history": engine.history,
        "durability": config.durability,
        "observe_ack": config.observe_ack,
        "rows": stats["rows"],
        "position": stats["position"],
        "recovered": {
            "rows_of_checkpoint": recovered.rows,
            "checkpoint_position": recovered.checkpoint_position,
            "journal_frames": recovered.frames,
            "journal_events": recovered.events,
            "torn": recovered.torn,
            "seconds": round(recovered.seconds, 3),
        },
    }


def as_lines(ready: dict[str, Any]) -> list[str]:
    found = ready["recovered"]
    lines = []
    if ready["position"] <= 1:  # nothing but the schema's own frame
        state = "a new store"
        lines.append(
            "a new store, and no event before it (--history none): what it says is certain from the start"
            if ready["history"] == "none"
            else "a new store, and nobody knows what was before it (--history unknown): windows that begin "
            "before its first event are WARMING, lifetimes for good"
        )
    else:
        state = (
            f"{ready['rows']:,} rows, position {ready['position']:,}, recovered in {found['seconds']:.1f} s "
            f"(checkpoint at {found['checkpoint_position']:,}, {found['journal_events']:,} from the journal)"
        )
    lines += [
        f"serving {ready['schema']} (schema version {ready['schema_version']}) on {ready['listen']} "
        f"({ready['transport']})",
        f"  data     {ready['data']}, {state}",
        f"  clock    {ready['clock']}; durability {ready['durability']}; history {ready['history']}",
        f"  admin    {ready['admin']}",
    ]
    if ready["metrics"] is not None:
        lines.append(f"  metrics  {ready['metrics']}")
    return lines
