from collections.abc import Sequence
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from featurestore.columns import TextColumn
from featurestore.plan import EventPlan

@final
class EventBatch:
    def __new__(
        cls,
        event: EventPlan,
        event_index: int,
        times: NDArray[np.int64],
        columns: Sequence[NDArray[np.float64] | TextColumn],
        outcomes: NDArray[np.uint8] | None = None,
    ) -> Self: ...
    @property
    def event(self) -> EventPlan: ...
    @property
    def outcomes(self) -> NDArray[np.uint8]: ...
    @property
    def partly_late(self) -> NDArray[np.uint8]: ...
    @property
    def shed(self) -> NDArray[np.uint64]: ...
    @property
    def n_events(self) -> int: ...
    @property
    def event_index(self) -> int: ...
    def __len__(self) -> int: ...
    def part(self, lo: int, hi: int) -> EventBatch: ...

def outcome_codes() -> dict[str, int]: ...
