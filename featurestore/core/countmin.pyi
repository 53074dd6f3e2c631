from collections.abc import Sequence
from typing import NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

REPLY: np.dtype[np.void]

class CountminShape(NamedTuple):
    depth: int
    width: int
    error: float
    cell_bytes: int
    bytes: int
    slices_ms: tuple[int, ...]
    reaches_ms: tuple[int, ...]
    n_slices: tuple[int, ...]

@final
class CountminSketch:
    def __new__(
        cls,
        epsilon: float,
        delta: float,
        windows_ms: Sequence[int],
        *,
        lateness_ms: int = 3_600_000,
        n_slices: int = 0,
        cell_bytes: int = 128,
        sums: bool = False,
    ) -> Self: ...
    @property
    def shape(self) -> CountminShape: ...
    @property
    def newest_ms(self) -> int | None: ...
    def add(
        self,
        keys: NDArray[np.uint64],
        times_ms: NDArray[np.int64],
        weights: NDArray[np.float64] | None = None,
    ) -> int: ...
    def read(
        self, keys: NDArray[np.uint64], times_ms: NDArray[np.int64], windows_ms: Sequence[int]
    ) -> NDArray[np.void]: ...
    def peek(
        self,
        keys: NDArray[np.uint64],
        times_ms: NDArray[np.int64],
        weights: NDArray[np.float64],
        reads_ms: NDArray[np.int64],
        windows_ms: Sequence[int],
    ) -> NDArray[np.void]: ...
    def places(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]: ...
    def merge(self, other: CountminSketch) -> None: ...
    def export(self) -> bytes: ...
    def load(self, records: Buffer) -> None: ...
    def cut(self) -> None: ...
    def copy_slice(self) -> bool: ...
    def copied(self) -> bytes: ...
    def copy_end(self, written: bool) -> None: ...
