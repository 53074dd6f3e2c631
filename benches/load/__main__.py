"""The load generator as a command; see `python -m benches.load --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches import load, native
from featurestore.errors import ConfigError

DESCRIPTION = """\
Loads a gRPC server, or Redis, and says how fast and how well it answered, as JSON on standard output."""

EPILOG = """\
  unary    each message is a call
  stream   messages on bidirectional streams, with up to --window of them unanswered on each
  redis    one command at a time on each connection; WORD... is the command

without --rate, each place for a call sends as soon as it is answered: how much goes at most. With it,
messages are due at a constant rate and latency counts from when they were due, however late they were sent.

examples:
  python -m benches.load unary localhost:50051 featurestore.v1.FeatureStoreService/GetFeatures \\
      --body read.bin --connections 4 --streams 16 --seconds 10 --warmup 1
  python -m benches.load unary unix:/run/store.sock featurestore.v1.FeatureStoreService/GetFeatures \\
      --delimited reads.bin --rate 20000 --streams 50 --seconds 30
  python -m benches.load redis localhost:6379 GET key --connections 8 --count 100000

exit code 1: not everything was answered OK, or the run ended early; 2: a setting is wrong."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benches.load", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("kind", choices=("unary", "stream", "redis"))
    made.add_argument("target", metavar="TARGET", help="host:port, [v6]:port or unix:PATH")
    made.add_argument(
        "words", metavar="METHOD | WORD", nargs="+", help="package.Service/Method; of redis: the command"
    )
    bodies = made.add_argument_group("messages, sent in turn (none: one empty message)")
    bodies.add_argument(
        "--body", action="append", type=Path, default=[], metavar="FILE", help="one serialized message"
    )
    bodies.add_argument(
        "--delimited", type=Path, metavar="FILE", help="many, each after its length as a varint"
    )
    bodies.add_argument(
        "--metadata",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of each call, such as grpc-timeout=1S",
    )
    much = made.add_argument_group("how much")
    much.add_argument("--connections", type=int, default=1, metavar="N", help="(default: 1)")
    much.add_argument(
        "--streams", type=int, default=1, metavar="N", help="calls at once on each (default: 1)"
    )
    much.add_argument(
        "--window", type=int, default=8, metavar="N", help="of a stream: messages unanswered (default: 8)"
    )
    much.add_argument(
        "--rate", type=float, metavar="R", help="messages a second (default: as many as are answered)"
    )
    much.add_argument("--seconds", type=float, default=0.0, metavar="S", help="for so long")
    much.add_argument("--count", type=int, default=0, metavar="N", help="or so many")
    much.add_argument(
        "--warmup", type=float, default=0.0, metavar="S", help="before anything counts (default: 0)"
    )
    much.add_argument("--timeout", type=float, default=10.0, metavar="S", help="for each reply (default: 10)")
    machine = made.add_argument_group("the generator itself")
    machine.add_argument("--cpu", type=int, action="append", metavar="N", help="the core that it is bound to")
    machine.add_argument("--spin", action="store_true", help="never sleep: no wake-up of its own is measured")
    machine.add_argument("--no-progress", action="store_true", help="no bar, even on a terminal")
    return made


def messages_of(arguments: argparse.Namespace) -> list[bytes]:
    made = [path.read_bytes() for path in arguments.body]
    if arguments.delimited is not None:
        made += delimited(arguments.delimited.read_bytes())
    return made or [b""]


def delimited(data: bytes) -> list[bytes]:
    """Messages as protobuf's serialize_length_prefixed writes them."""
    made, at = [], 0
    while at < len(data):
        size = shift = 0
        while at < len(data) and shift < 35:
            size |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                break
        if at + size > len(data):
            raise ValueError(f"the message that begins at byte {at} is cut off")
        made.append(data[at : at + size])
        at += size
    return made


def bar(arguments: argparse.Namespace) -> Callable[[int], None] | None:
    """On standard error, if a terminal: of the messages where their number is known, else of the time."""
    if arguments.no_progress or not sys.stderr.isatty():
        return None
    from tqdm import tqdm  # noqa: PLC0415 - of the extra `server`; nothing else here needs it

    began = time.monotonic()
    total = arguments.count or arguments.warmup + arguments.seconds
    shown = tqdm(total=total, unit="" if arguments.count else "s", file=sys.stderr, leave=False)

    def update(n: int) -> None:
        passed = time.monotonic() - began
        shown.set_postfix_str(f"{n:,} answered, {n / passed:,.0f}/s", refresh=False)
        shown.update(min(n if arguments.count else passed, total) - shown.n)

    return update


def carry_out(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "connections": arguments.connections,
        "rate": arguments.rate,
        "seconds": arguments.seconds,
        "count": arguments.count,
        "warmup_s": arguments.warmup,
        "timeout_s": arguments.timeout,
        "cpus": None if arguments.cpu is None else set(arguments.cpu),
        "spin": arguments.spin,
        "progress": bar(arguments),
    }
    if arguments.kind == "redis":
        return load.run_redis(
            arguments.target, [load.redis_command(*map(str.encode, arguments.words))], **settings
        )
    return load.run(
        arguments.target,
        "/" + arguments.words[0].removeprefix("/"),
        messages_of(arguments),
        streams=arguments.streams,
        window=arguments.window if arguments.kind == "stream" else None,
        metadata=[(name, value) for name, _, value in (each.partition("=") for each in arguments.metadata)],
        **settings,
    )


def main(words: list[str] | None = None) -> int:
    asked = parser()
    arguments = asked.parse_args(words)
    if arguments.kind != "redis" and len(arguments.words) != 1:
        asked.error("give one METHOD, as package.Service/Method")
    if not (arguments.seconds > 0 or arguments.count > 0):
        asked.error("give --seconds or --count, or it would never end")
    try:
        result = carry_out(arguments)
    except (ConfigError, OSError, ValueError) as error:
        asked.error(str(error))
    except (load.LoadError, native.NotInstalled) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, ensure_ascii=False, indent=2))
    return 0 if set(result["statuses"]) | set(result["stream_statuses"]) <= {"OK"} else 1


if __name__ == "__main__":
    sys.exit(main())
