from collections.abc import Sequence

from numpy import float32, float64, uint8
from numpy.typing import NDArray

def encode_observe(
    outcome: int,
    ack: int,
    position: int,
    values: NDArray[float64] | None = None,
    *,
    partly_late: bool = False,
    shed: Sequence[bytes] = (),
    statuses: NDArray[uint8] | None = None,
    lower: NDArray[float64] | None = None,
    upper: NDArray[float64] | None = None,
    coverage: NDArray[float32] | None = None,
    fingerprint: int = 0,
    confidence: float = 1.0,
    field: bytes | None = None,
    max_bytes: int = ...,
) -> bytes: ...
def encode_ingest(
    outcomes: NDArray[uint8],
    ack: int,
    position: int,
    sequence: int,
    *,
    partly_late: int = 0,
    shed: int = 0,
    duplicate_batch: bool = False,
    streamed: bool = False,
    max_refusals: int = 0,
    field: bytes | None = None,
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
