"""What a checkpoint in the row store is made of, and how a State is made from one again.

    rows                     per shard, with the position they reflect
    sketches                 per shard, as rows of shard SKETCHES + its number, if there are any
    event ids                as rows of shard IDS_SHARD; a checkpoint adds those that came since the one
                             before, and takes out those that were dropped
    meta plan                the plan being served, as JSON (Plan.to_json)
    meta head                clocks and position of the sequencer, at the cut
    meta producers           copied after the cut, as the ids are: they may know of later batches
    meta ids                 all event ids, before head version 3; empty since

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
IDS_SHARD = 0xFFFF  # and of the one that holds event ids
RECORDS_OF_IDS = 3  # version of the head from which on there is that shard
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


def stored_ids(rows: RowStore) -> int:
    """How many event ids the last checkpoint has; some may have expired."""
    n_records, n_bytes = rows.sizes().get(IDS_SHARD, (0, 0))
    return (n_bytes - n_records * 20) // 24 + len(rows.get_meta(IDS) or b"") // 32


def load_rows(rows: RowStore, state: State, n_shards: int) -> int:
    """Puts the last checkpoint into a new State; returns its position.

    Raises CorruptRecordError where a part is missing or cannot be read, or where a shard is not at the
    position of the sequencer's head.
    """
    head = rows.get_meta(HEAD)
    if head is None:
        raise CorruptRecordError(f"{rows.path}: meta {HEAD} is missing; restore it from a backup")
    state.import_head(head)
    positions = rows.shards()
    if int.from_bytes(head[:4], "little") < RECORDS_OF_IDS:
        state.import_ids(rows.get_meta(IDS) or b"")
    else:
        state.import_id_records(_records(rows, state, IDS_SHARD, "the event ids", positions))
    state.import_producers(rows.get_meta(PRODUCERS) or b"")
    sketched = any(view.structure is Structure.COUNTMIN for view in state.plan.views)
    for shard in range(n_shards):
        state.import_shard(shard, _records(rows, state, shard, f"shard {shard}", positions))
        if sketched:  # they are written with every checkpoint of such a plan
            what = f"the sketches of shard {shard}"
            state.import_sketches(shard, _records(rows, state, SKETCHES + shard, what, positions))
    return state.position


def _records(rows: RowStore, state: State, shard: int, what: str, positions: dict[int, int]) -> bytes:
    """Of a shard of rows, which is as of the same position as the sequencer."""
    position = positions.get(shard)
    if position != state.position:
        raise CorruptRecordError(
            f"{rows.path}: {what}: position {position}, and the sequencer is at {state.position}; "
            "restore it from a backup"
        )
    return rows.read_shard(shard)[0]
