from typing import Final, TypedDict, final

from numpy import float32, float64, int64, uint8, uint32
from numpy.typing import NDArray

from featurestore.plan import Plan

# A number column: float64, NaN = absent. A text column: offsets (n + 1), bytes, and present (None = all given).
DecodedColumn = NDArray[float64] | tuple[NDArray[uint32], NDArray[uint8], NDArray[uint8] | None]

class DecodedIngest(TypedDict):
    event: int  # index in Plan.events
    times: NDArray[int64]  # milliseconds since 1970-01-01 UTC
    columns: list[DecodedColumn]  # in the order of EventPlan.fields
    outcomes: NDArray[uint8]  # Outcome
    producer: bytes
    epoch: int
    sequence: int
    ack: int

class DecodedObserve(DecodedIngest):
    service: int  # index in Plan.services; -1 = nothing to read
    peek: bool
    bounds: bool
    coverage: bool

class DecodedRead(TypedDict):
    service: int
    n: int
    parts: dict[str, tuple[NDArray[uint32], NDArray[uint8], NDArray[uint8] | None]]
    as_of: NDArray[int64] | None  # None = now
    bounds: bool
    coverage: bool

@final
class WireSchema:
    plan: Final[Plan]
    parts: Final[tuple[str, ...]]
    def __init__(
        self, plan: Plan, *, max_message_bytes: int = ..., max_rows: int = ..., max_values: int = ...
    ) -> None: ...

def decode_observe(data: bytes, schema: WireSchema, *, max_bytes: int = ...) -> DecodedObserve: ...
def decode_ingest(
    data: bytes, schema: WireSchema, *, streamed: bool = False, max_bytes: int = ...
) -> DecodedIngest: ...
def decode_read(data: bytes, schema: WireSchema, *, streamed: bool = False, max_bytes: int = ...) -> DecodedRead: ...
def encode_observe(
    outcome: int,
    ack: int,
    position: int,
    values: NDArray[float64] | None = None,
    *,
    statuses: NDArray[uint8] | None = None,
    lower: NDArray[float64] | None = None,
    upper: NDArray[float64] | None = None,
    coverage: NDArray[float32] | None = None,
    fingerprint: int = 0,
    confidence: float = 1.0,
    max_bytes: int = ...,
) -> bytes: ...
def encode_ingest(
    outcomes: NDArray[uint8],
    ack: int,
    position: int,
    sequence: int,
    *,
    duplicate_batch: bool = False,
    streamed: bool = False,
    max_bytes: int = ...,
) -> bytes: ...
def encode_read(
    values: NDArray[float64],
    *,
    statuses: NDArray[uint8],
    lower: NDArray[float64] | None = None,
    upper: NDArray[float64] | None = None,
    coverage: NDArray[float32] | None = None,
    fingerprint: int = 0,
    confidence: float = 1.0,
    now_ms: int | None = None,
    streamed: bool = False,
    max_bytes: int = ...,
) -> bytes: ...
