"""What a file is, by its name, and what was meant by a name that is not there.

A format is `csv`, `jsonl` or `parquet`, with `.gz` or `.zst` behind it where the file is compressed. It
follows from the end of the file's name and is never guessed from its bytes; a pipe (`-`) has no name, so its
format is given.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featurestore.errors import ConfigError

PIPE = "-"

Kind = Literal["csv", "jsonl", "parquet"]
Compression = Literal["gzip", "zstd"]

KINDS: dict[str, Kind] = {
    "csv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "parquet": "parquet",
    "pq": "parquet",
}
COMPRESSIONS: dict[str, Compression] = {"gz": "gzip", "zst": "zstd"}
MAX_TOLD = 100  # characters of a name or a type in a sentence
OURS = ("refused_row", "refused_reason")  # columns that rejects have more: see rejects.py
FORMATS = "csv, jsonl or parquet, each also with .gz or .zst behind it"


@dataclass(frozen=True)
class Format:
    kind: Kind
    compression: Compression | None


def format_of(path: str, stated: str | None = None) -> Format:
    """The format that was stated (`csv.gz`), or the one that the file's name ends in.

    Raises ConfigError where there is none, or one that is not known.
    """
    if stated is None and path == PIPE:
        raise ConfigError(f"the format of a pipe must be given: {FORMATS}")
    *front, last = (stated if stated is not None else Path(path).name).lower().split(".")
    compression = COMPRESSIONS.get(last)
    if compression is not None:
        last = front[-1] if front else ""
    if last not in KINDS:
        what = (
            f"unknown format {stated!r}"
            if stated is not None
            else f"{path}: the name does not say the format"
        )
        raise ConfigError(f"{what}; it must be {FORMATS}")
    return Format(KINDS[last], compression)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one that may have been meant."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1) or [n for n in known if n.lower() == name.lower()]
    return near[0] if near else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the names there are; to end a sentence that says a name is missing."""
    known = list(names)
    near = nearest(name, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    if not known:
        return ""
    shown = ", ".join(repr(n) for n in known[:12])
    return f"; there is {shown}" + (f" and {len(known) - 12} more" if len(known) > 12 else "")


def types_told(columns: Iterable[tuple[str, object]], words: str) -> str:
    """` (of 'x': int64)`, to end a sentence of Arrow's: its columns with their types, those that `words` name
    if it names any, and no more than a line of them.
    """
    every = list(columns)
    told = [(name, kind) for name, kind in every if name and f"'{name}'" in words] or every
    if not told:
        return ""
    shown = ", ".join(f"{name[:MAX_TOLD]!r}: {str(kind)[:MAX_TOLD]}" for name, kind in told[:6])
    return f" (of {shown}" + (f" and {len(told) - 6} more)" if len(told) > 6 else ")")


def size_bytes_of(path: str) -> int | None:
    """The size of a file as stored; None where it has none (a pipe, a device) or is not there."""
    file = Path(path)
    return file.stat().st_size if path != PIPE and file.is_file() else None
