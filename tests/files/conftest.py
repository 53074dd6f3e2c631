"""A small event type, and files written from bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.files import Chunk, read_events
from featurestore.plan import EventPlan, FieldPlan, Kind, TimePlan, TouchPlan


@pytest.fixture
def event() -> EventPlan:
    """At `ts` (ISO), with key `k` and number `n`."""
    return EventPlan(
        event_id=1,
        name="click",
        time=TimePlan("ts", "iso"),
        fields=(FieldPlan("k", Kind.TEXT, True), FieldPlan("n", Kind.NUMBER, False)),
        lateness_ms=3_600_000,
        id_field=None,
        dedupe_ms=0,
        touches=(TouchPlan(0, (0,)),),
    )


@pytest.fixture
def chunks_of(tmp_path: Path, event: EventPlan) -> Callable[..., list[Chunk]]:
    """Writes bytes to a file of this name and reads them back as chunks."""

    def read(name: str, content: bytes, **options: Any) -> list[Chunk]:
        path = tmp_path / name
        path.write_bytes(content)
        return list(read_events(str(path), options.pop("event", event), **options))

    return read


@pytest.fixture
def rows_of(chunks_of: Callable[..., list[Chunk]]) -> Callable[..., list[tuple[Any, ...]]]:
    """The same as rows: time, key, number, then the kept columns; bytes as text."""

    def read(name: str, content: bytes, **options: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        for chunk in chunks_of(name, content, **options):
            columns = [
                *(_values(cells) for cells in chunk.columns.values()),
                *map(_values, chunk.kept.columns),
            ]
            rows += zip(*columns, strict=True)
        return rows

    return read


def _values(cells: pa.Array | list[Any]) -> list[Any]:
    values = cells if isinstance(cells, list) else cells.to_pylist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]
