"""The logs of the demo: their files, how an event's fields name its keys, and what is worth watching.

To watch is to name a value of the vector whose greatest readings deserve a look, and to say what they mean.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

Columns = dict[str, list[str | None] | list[float | None]]


@dataclass(frozen=True)
class Watched:
    """One value of the vector, and what it means where it is greatest."""

    feature: str
    means: str


@dataclass(frozen=True)
class Log:
    """One file of events, and the service that is asked about each of them."""

    file: str
    title: str
    event: str
    service: str
    keys: dict[str, str]  # part of the key → field of the event; the first is who is judged
    numbers: tuple[str, ...]  # fields that are not text
    watched: tuple[Watched, ...]  # an address is shown under the first of these that it stands out by


SSH = Log(
    file="ssh_auth.csv",
    title="SSH logins",
    event="login",
    service="ssh",
    keys={"ip": "src_ip", "user": "username"},
    numbers=(),
    watched=(
        Watched("ssh_ip.failed_10m", "guess passwords fast: most failed logins in 10 minutes"),
        Watched("ssh_ip.unknown_user_1d", "guess user names: most names that do not exist in a day"),
        Watched("ssh_ip.failed_1d", "do not give up: most failed logins in a day"),
    ),
)

WEB = Log(
    file="access_log.csv.gz",
    title="Web requests",
    event="request",
    service="web",
    keys={"ip": "client_ip", "page": "path"},
    numbers=("status", "bytes"),
    watched=(
        Watched("web_ip.requests_1h", "come in bursts: most requests in an hour"),
        Watched("web_ip.errors_1d", "ask for what is not there: most errors in a day"),
        Watched("web_page.requests_1d", "ask for one page again and again: most requests of it in a day"),
        Watched("web_ip.bytes_1h", "carry off most: bytes in an hour"),
    ),
)

LOGS = (SSH, WEB)


def schema_text() -> str:
    return (resources.files(__package__) / "demo.yaml").read_text(encoding="utf-8")


def read(log: Log) -> Columns:
    """The file's columns by name, in file order; an empty cell is None."""
    raw = (resources.files(__package__) / log.file).read_bytes()
    text = (gzip.decompress(raw) if log.file.endswith(".gz") else raw).decode("utf-8")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    cells: dict[str, list[str | None]] = {
        name: [cell or None for cell in column]
        for name, column in zip(header, zip(*rows, strict=True), strict=True)
    }
    return {name: _floats(column) if name in log.numbers else column for name, column in cells.items()}


def _floats(cells: Sequence[str | None]) -> list[float | None]:
    return [None if cell is None else float(cell) for cell in cells]
