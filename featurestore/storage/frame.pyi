from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

PROBLEMS: Final[dict[int, str]]
EARLIEST_MS: Final[int]
LATEST_MS: Final[int]

class _Text(Protocol):
    @property
    def offsets(self) -> NDArray[np.uint32]: ...
    @property
    def data(self) -> NDArray[np.uint8]: ...
    @property
    def present(self) -> NDArray[np.uint8] | None: ...

class TextValues(NamedTuple):
    offsets: NDArray[np.uint32]
    data: NDArray[np.uint8]
    present: NDArray[np.uint8] | None

class BatchBody(NamedTuple):
    producer: bytes
    epoch: int
    sequence: int
    fingerprint: int
    event_id: int
    outcomes: NDArray[np.uint8]
    times: NDArray[np.int64]
    columns: tuple[NDArray[np.float64] | TextValues, ...]
    shed: NDArray[np.uint64] | None = None

def batch_body(
    outcomes: ArrayLike,
    times: ArrayLike,
    columns: Sequence[ArrayLike | _Text],
    *,
    producer: bytes = b"",
    epoch: int = 0,
    sequence: int = 0,
    fingerprint: int = 0,
    event_id: int = 0,
    shed: ArrayLike | None = None,
) -> bytes: ...
def parse_batch_body(body: bytes, *, has_shed: bool = False) -> BatchBody: ...
def forget_body(entity_id: int, fingerprint: bytes) -> bytes: ...
def parse_forget_body(body: bytes) -> tuple[int, bytes]: ...
def clock_body(clock: str, now_ms: int, plan: bytes) -> bytes: ...
def parse_clock_body(body: bytes) -> tuple[str, int, bytes]: ...
def producer_body(change: int, name: bytes, epoch: int = 0, sequence: int = 0) -> bytes: ...
def parse_producer_body(body: bytes) -> tuple[int, bytes, int, int]: ...
