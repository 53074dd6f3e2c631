"""What a checkpoint in the row store is made of, and how a State is made from one again.

    rows                     per shard, with the position they reflect
    sketches                 per shard, as rows of shard SKETCHES + its number, if there are any
    meta plan                the plan being served, as JSON (Plan.to_json)
    meta head                clocks and position of the sequencer, at the cut
    meta ids, producers      its tables, copied after the cut: they may know of later batches

FORMAT.md has the bytes. The engine writes checkpoints in slices, while batches are applied; they are read
back here, in one go.
"""

from __future__ import annotations

from featurestore.core.plan import CompiledPlan
from featurestore.core.state import State
from featurestore.errors import CorruptRecordError
from featurestore.plan import Plan, Structure
from featurestore.storage.rows import RowStore

SKETCHES = 0x8000  # number of the shard of rows that holds the sketches of shard 0
PLAN, HEAD, IDS, PRODUCERS = "plan", "head", "ids", "producers"
# JSON of another shape makes objects of the wrong types, and what those do not have is asked of them.
NOT_A_PLAN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def stored_plan(rows: RowStore) -> Plan | None:
    """The plan of the last checkpoint; None before the first."""
    text = rows.get_meta(PLAN)
    return None if text is None else parse_plan(text, f"{rows.path}: meta {PLAN}")


def parse_plan(text: bytes, where: str) -> Plan:
    """A plan as it is stored, which the engine can run; CorruptRecordError names `where`."""
    try:
        plan = Plan.from_json(text.decode())
        CompiledPlan(plan)
    except NOT_A_PLAN as error:
        raise CorruptRecordError(f"{where}: is no plan ({error!r}); restore it from a backup") from error
    return plan


def load_rows(rows: RowStore, state: State, n_shards: int) -> int:
    """Puts the last checkpoint into a new State; returns its position.

    Raises CorruptRecordError where a part is missing or cannot be read, or where a shard is not at the
    position of the sequencer's head.
    """
    head = rows.get_meta(HEAD)
    if head is None:
        raise CorruptRecordError(f"{rows.path}: meta {HEAD} is missing; restore it from a backup")
    state.import_head(head)
    state.import_ids(rows.get_meta(IDS) or b"")
    state.import_producers(rows.get_meta(PRODUCERS) or b"")
    positions = rows.shards()
    for shard in range(n_shards):
        if positions.get(shard) != state.position:
            raise CorruptRecordError(
                f"{rows.path}: shard {shard} is at position {positions.get(shard)}, the sequencer at "
                f"{state.position}; restore it from a backup"
            )
        records, _ = rows.read_shard(shard)
        state.import_shard(shard, records)
        _load_sketches(rows, state, shard, positions.get(SKETCHES + shard))
    return state.position


def _load_sketches(rows: RowStore, state: State, shard: int, position: int | None) -> None:
    """They are written with every checkpoint of a plan that has any."""
    if not any(view.structure is Structure.COUNTMIN for view in state.plan.views):
        return
    if position != state.position:
        raise CorruptRecordError(
            f"{rows.path}: the sketches of shard {shard} are at position {position}, the sequencer at "
            f"{state.position}; restore it from a backup"
        )
    records, _ = rows.read_shard(SKETCHES + shard)
    state.import_sketches(shard, records)
