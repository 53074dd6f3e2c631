from typing import NamedTuple

class SketchSummary(NamedTuple):
    width: int
    depth: int
    is_sum: bool
    n_bytes: int
    newest_ms: int | None
    weight: float
    n_cells: int
    n_saturated: int

def summaries(records: bytes) -> dict[int, SketchSummary]: ...
def summary_of_head(payload: bytes) -> SketchSummary: ...
