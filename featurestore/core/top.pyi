from typing import NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class Value(NamedTuple):
    text: bytes | None
    hash: int
    estimate: float
    lower: int
    upper: int

class Window(NamedTuple):
    listed: list[Value]
    total: tuple[float, int, int]
    rest_upper: int
    share: tuple[float, float, float]
    entropy: tuple[float, float, float]
    exact: bool

@final
class Tops:
    def __new__(
        cls,
        n: int,
        *,
        k: int = 10,
        n_counters: int = 64,
        exact_events: int = 256,
        max_error: float = 0.1,
        max_entries: int = 512,
        max_text_bytes: int = 65536,
    ) -> Self: ...
    @property
    def n(self) -> int: ...
    @property
    def used_bytes(self) -> int: ...
    def add(
        self,
        which: NDArray[np.uint32],
        hashes: NDArray[np.uint64],
        offsets: NDArray[np.uint32],
        texts: NDArray[np.uint8],
        times_ms: NDArray[np.int64],
        horizons_ms: NDArray[np.int64],
    ) -> int: ...
    def read(
        self, which: int, at_ms: int, horizon_ms: int, windows_ms: NDArray[np.int64]
    ) -> list[Window]: ...
    def time_reads(
        self, which: int, at_ms: int, horizon_ms: int, windows_ms: NDArray[np.int64], times: int
    ) -> float: ...
    def export(self, which: int) -> bytes: ...
    def restore(self, which: int, data: Buffer) -> int: ...
    def clone(self, which: int, into: int) -> None: ...
    def free(self, which: int) -> None: ...
    def expired(self, which: int, horizon_ms: int) -> bool: ...
    def counts(self, which: int) -> tuple[int, int, int, int, int]: ...
    def block_bytes(self, which: int) -> int: ...

def packed(x: int) -> tuple[int, int]: ...
def logarithms(numbers: NDArray[np.float64]) -> list[float]: ...
def entropy_bounds(lower: NDArray[np.uint64], upper: NDArray[np.uint64]) -> tuple[float, float]: ...
