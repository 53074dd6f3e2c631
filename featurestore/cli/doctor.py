"""`featurestore doctor`: what this build and this machine can do, and what is in the way."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import columns
from featurestore.config import Limits

DESCRIPTION = """\
Says what this build and this machine can do: versions, the transport that `serve` uses, memory pages,
descriptors, and with --data how fast the disk under a store makes a write durable. Nothing of a store is
opened or changed; a small file is written beside it and deleted."""

EPILOG = """\
examples:
  featurestore doctor
  featurestore doctor --data /var/lib/featurestore
  featurestore doctor -o json | jq -r '.findings[] | select(.state != "ok") | .advice'

each line is ok, slow (it works, and could be better: the advice says how) or bad. Exit code 1: one is bad."""

N_SYNCS = 50
SPARE_DESCRIPTORS = 256  # journal, LMDB, listeners, logs
SLOW_SYNC_MS = 10.0


@dataclass(frozen=True)
class Finding:
    what: str
    state: str  # ok, slow or bad
    value: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--data", metavar="DIR", help="a store's directory, or where one is to be made")
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    findings = list(examine(None if arguments.data is None else Path(arguments.data)))
    if arguments.output == "json":
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print("\n".join(columns([[each.state, each.what, each.value] for each in findings])))
        print("".join(f"\n{each.what}: {each.advice}" for each in findings if each.advice), end="")
        print("\n" if any(each.advice for each in findings) else "", end="")
    return Exit.ERROR if any(each.state == "bad" for each in findings) else Exit.OK


def examine(data: Path | None) -> Iterator[Finding]:
    yield _build()
    yield Finding(
        "machine", "ok", f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    )
    yield _transport()
    yield _pages()
    yield _descriptors()
    if data is not None:
        yield from _disk(data)


def _build() -> Finding:
    names = ("featurestore", "grpcio", "protobuf", "numpy", "lmdb")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return Finding("build", "ok", f"Python {platform.python_version()}, {', '.join(versions)}")


def _transport() -> Finding:
    from featurestore.server import transport

    if transport.available()[0] != "native":
        return Finding(
            "transport",
            "slow",
            "grpcio: the native transport was not built",
            "install libnghttp2-dev, libssl-dev and pkg-config, then `pip install` it again from its sources",
        )
    return Finding("transport", "ok", f"native, on {', '.join(transport.libraries())}; grpcio besides")


def _pages() -> Finding:
    """Tables and arenas ask for huge pages; without, their look-ups wait for the page tables too."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
        chosen = text[text.index("[") + 1 : text.index("]")]
    except (OSError, ValueError):
        chosen = "none"
    if chosen in ("always", "madvise"):
        return Finding("huge pages", "ok", chosen)
    return Finding(
        "huge pages",
        "slow",
        chosen,
        "large stores are faster with them: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = Limits.max_connections + SPARE_DESCRIPTORS
    if soft in (-1, resource.RLIM_INFINITY) or soft >= wanted:
        return Finding("descriptors", "ok", f"{soft:,} of {hard:,}")
    return Finding(
        "descriptors",
        "slow",
        f"{soft:,} of {hard:,}",
        f"for as many connections as `serve` takes by default, {wanted:,} are needed: ulimit -n {wanted}, or "
        f"serve --max-connections {max(1, soft - SPARE_DESCRIPTORS)}",
    )


def _disk(data: Path) -> Iterator[Finding]:
    """Where the store is, or where it would be made."""
    place = data.absolute()
    while not place.is_dir():
        if place.exists():
            yield Finding("data", "bad", f"{place} is no directory", "give the directory of a store")
            return
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding(
            "data", "bad", f"{place} cannot be written", "run as its owner, or give another directory"
        )
        return
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    yield Finding("data", "ok", f"{place}, {free / 1e9:,.1f} GB free")
    try:
        times_ms = sorted(_sync_times_ms(place))
    except OSError as error:
        yield Finding(
            "durable write", "bad", f"failed: {error.strerror or error}", "free space, or mend the disk"
        )
        return
    median_ms, worst_ms = statistics.median(times_ms), times_ms[-1]
    value = f"median {median_ms:.2f} ms, worst of {N_SYNCS} {worst_ms:.2f} ms"
    if median_ms <= SLOW_SYNC_MS:
        yield Finding("durable write", "ok", value)
        return
    yield Finding(
        "durable write",
        "slow",
        value,
        "an acknowledgement waits for one of these: use a disk with a protected write cache, or --durability "
        "process, which a power cut may cost a second of events",
    )


def _sync_times_ms(place: Path) -> Iterator[float]:
    """What a group's sync takes: 4 KiB written into a file of its full length, then fdatasync."""
    path = place / f".featurestore-doctor-{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        path.unlink()  # it is gone whatever happens; the descriptor stays
        os.posix_fallocate(fd, 0, 4096 * N_SYNCS)
        os.fsync(fd)
        for i in range(N_SYNCS):
            began = time.perf_counter()
            os.pwrite(fd, b"\1" * 4096, 4096 * i)
            os.fdatasync(fd)
            yield (time.perf_counter() - began) * 1e3
    finally:
        os.close(fd)
