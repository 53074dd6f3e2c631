"""History through the engine that serves: events in, the vector that Observe would have returned for each
out, or the one that GetFeatures would have at points in time.

    from featurestore import replay

    table = replay({"login": ["login/*.parquet"], "play": plays}, "risk.yaml", "risk", emit=["login"])

    run         the replay: inputs merged, fed, and a row for each that is asked for
      report      what it did, and the metadata of its output
      served      the plan it runs: what feeds what, what is stated of the inputs, points as a type of event
      vectors     the columns of a training set, collected in batches
      sources     files and tables of events, each a stream of rows in order
        tables      events in memory, read as a file of them is
        sorting     more rows than memory holds, put in order
          merging     streams that are in order, made one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import pyarrow as pa

from featurestore import schema as schemas
from featurestore.errors import ConfigError
from featurestore.files.writing import BESIDE, METADATA, open_writer
from featurestore.plan import Plan
from featurestore.training.report import Replayed, to_json
from featurestore.training.run import Replay

__all__ = ["Replayed", "replay"]


class Options(TypedDict, total=False):
    """How a replay is done; `replay` says what each means."""

    points: Any
    points_time: str
    points_delimiter: str
    emit: str | Sequence[str]
    emit_from: int | str | date | None
    emit_until: int | str | date | None
    keep: Sequence[str] | None
    arrival: str | None
    complete_from: int | str | date | None
    unfed: Literal["refuse", "unavailable"]
    bounds: bool
    statuses: bool
    order: Literal["time", "file"]
    spill: str | None
    secret: bytes | str | Path | None
    limit: int | None
    threads: int
    allow_future: bool
    stated_format: str | None
    delimiter: str
    progress: Callable[[int, int], None]


@overload
def replay(
    inputs: Mapping[str, Any],
    schema: str | Path | Plan,
    service: str,
    *,
    out: str | Path,
    **options: Unpack[Options],
) -> Replayed: ...
@overload
def replay(
    inputs: Mapping[str, Any],
    schema: str | Path | Plan,
    service: str,
    *,
    stream: bool = False,
    **options: Unpack[Options],
) -> pa.Table | pa.RecordBatchReader: ...
def replay(
    inputs: Mapping[str, Any],
    schema: str | Path | Plan,
    service: str,
    *,
    out: str | Path | None = None,
    stream: bool = False,
    **options: Unpack[Options],
) -> Any:
    """Feeds events to the engine that serves and returns the vectors of `service` as an Arrow table.

    inputs         event type → its events: a path, a pattern or a folder of CSV, JSON lines or Parquet; an
                   Arrow table, an iterable of record batches, anything with Arrow's C stream interface; or a
                   list of such. They are merged by time; among equal times the order is that of the inputs,
                   then of files, then of rows
    schema         the path of a schema file, or a plan
    emit           event types: a row for each event of them, the vector that Observe would have returned. Not
                   needed where there is one input
    points         instead: a path or table of key parts, times and whatever is to be kept; a row for each, in
                   its order, the vector that GetFeatures would have returned with as_of = now = its time. An
                   event at that time is in it; what has no key is UNAVAILABLE
    points_time    the column of points that has the time, FIELD or FIELD:UNIT (s, ms, us, ns, iso)
    emit_from, emit_until  no rows of what comes before, or from then on: a time in ISO 8601, a datetime, or
                   ms since the epoch
    keep           columns to hand through; of points all, unless some are named
    arrival        FIELD or FIELD:UNIT: when each event came. The clock is then the wall's, and lateness,
                   max_future, duplicates and expiry are those of live. Without it: at their time
    complete_from  from when on the inputs have every event: a time, or "beginning": there was none before
                   them. Unstated, features are WARMING until they have seen their window. Behind the last
                   event of an input they count none of it, as the store would: it is said of one that ends
                   before the rows do (`ended_early`), for which there is emit_until
    unfed          "unavailable": features that no input feeds are NaN. Else they are a ConfigError
    bounds, statuses  also the bounds, and the status, of every value
    order          "file": one file alone, taken as it stands, in order or not
    spill          a folder where inputs that are out of order are sorted
    secret         of a store, or the file that holds it: estimates are then those of that store
    limit          stop after so many events
    delimiter      what separates the cells of CSV inputs: one character, or \\t for a tab;
    points_delimiter  the same of points
    allow_future   take events that are dated, or came, later than today
    out            write it to this file, whole or not at all, and return what was done (Replayed)
    stream         return a RecordBatchReader, which does the work as it is read

    What the table is stands in its metadata as `featurestore`, in JSON (of a stream, which is not at its end,
    it does not). Raises ConfigError, UnknownNameError, SchemaError, InvalidEventError or StorageError.
    """
    if out is not None and stream:
        raise ConfigError("a replay writes a file or streams batches; not both")
    plan = schema if isinstance(schema, Plan) else schemas.load(schema)
    run = Replay(inputs, plan, service, **options)
    if out is not None:
        read: list[tuple[str, Any]] = [("the input", source.data) for source in run.sources]
        read += [("the schema", schema), ("the secret", options.get("secret"))]
        _check_overwrites_none(str(out), read)
        return _write(run, str(out))
    if stream:
        return pa.RecordBatchReader.from_batches(run.schema, run.batches())
    table = pa.Table.from_batches(run.batches(), run.schema)
    return table.replace_schema_metadata({METADATA: to_json(run.report().metadata)})


def _check_overwrites_none(out: str, read: Sequence[tuple[str, Any]]) -> None:
    """Neither the output nor what may stand beside it is a file that is read."""
    for path in filter(Path.exists, (Path(out), Path(f"{out}{BESIDE}"))):
        for what, other in read:
            if isinstance(other, str | Path) and Path(other).exists() and path.samefile(other):
                raise ConfigError(f"{path} is {what}; choose another output")


def _write(run: Replay, out: str) -> Replayed:
    with open_writer(out, run.schema) as writer:
        for batch in run.batches():
            writer.write(batch)
        done = run.report()
        writer.describe(to_json(done.metadata))
    return done
