from typing import TypedDict, type_check_only

from numpy import float64, int64, uint8, uint32
from numpy.typing import NDArray

from featurestore.server.names import WireSchema

# Numbers: float64, NaN = absent. Texts: offsets (n + 1), bytes, and present (None = all given).
_DecodedColumn = NDArray[float64] | tuple[NDArray[uint32], NDArray[uint8], NDArray[uint8] | None]

@type_check_only
class DecodedIngest(TypedDict):
    event: int  # index in Plan.events
    times: NDArray[int64]  # milliseconds since 1970-01-01 UTC
    columns: list[_DecodedColumn]  # in the order of EventPlan.fields
    outcomes: NDArray[uint8]  # Outcome
    producer: bytes
    epoch: int
    sequence: int
    ack: int

@type_check_only
class DecodedObserve(DecodedIngest):
    service: int  # index in Plan.services; -1 = nothing to read
    peek: bool
    bounds: bool
    coverage: bool

@type_check_only
class DecodedRead(TypedDict):
    service: int
    n: int
    parts: dict[str, tuple[NDArray[uint32], NDArray[uint8], NDArray[uint8] | None]]
    as_of: NDArray[int64] | None  # None = now
    bounds: bool
    coverage: bool

def decode_observe(data: bytes, schema: WireSchema, *, max_bytes: int = ...) -> DecodedObserve: ...
def decode_ingest(
    data: bytes, schema: WireSchema, *, streamed: bool = False, max_bytes: int = ...
) -> DecodedIngest: ...
def decode_read(
    data: bytes, schema: WireSchema, *, streamed: bool = False, max_bytes: int = ...
) -> DecodedRead: ...
