"""Which files people mean: a path, a pattern, a folder, or a list of these with commas between."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from featurestore.errors import ConfigError
from featurestore.files.names import PIPE, format_of, size_bytes_of


def expanded(given: str) -> list[str]:
    """The files that a path, a pattern or a folder stands for, in the order of their names."""
    if given == PIPE or Path(given).is_file():
        return [given]
    if Path(given).is_dir():
        found = [str(path) for path in sorted(Path(given).rglob("*")) if _is_data(path, Path(given))]
        if not found:
            raise ConfigError(f"the folder {given} holds no file of events")
        return found
    if glob.has_magic(given):
        names = sorted(glob.glob(given, recursive=True))  # noqa: PTH207  as a shell has it
        found = [name for name in names if Path(name).is_file()]
        if not found:
            raise ConfigError(f"no file matches {given}")
        return found
    return [given]  # whoever opens it says what is wrong


def paths_of(given: str) -> list[str]:
    """Of a list with commas between; a name with a comma in it is a name where there is such a file."""
    parts = [given] if Path(given).exists() else given.split(",")
    return [path for part in parts if part for path in expanded(part)]


def stored_bytes_of(given: Sequence[str]) -> int | None:
    """Of all files that these stand for; None where one has no size."""
    sizes = [size_bytes_of(path) for one in given for path in paths_of(one)]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _is_data(path: Path, folder: Path) -> bool:
    """Whether it is named like a file of events. Hidden files and those of other programs (`_SUCCESS`,
    `_temporary/0/part-0.parquet`) are none of a data set, nor is `in.csv.bak`."""
    if any(name.startswith((".", "_")) for name in path.relative_to(folder).parts) or not path.is_file():
        return False
    try:
        format_of(str(path))
    except ConfigError:
        return False
    return True
