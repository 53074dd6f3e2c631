"""Columns of events as the core takes them."""
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from numpy.typing import NDArray

@dataclass(frozen=True)
class TextColumn:
    offsets: NDArray[np.uint32]
    data: NDArray[np.uint8]
    present: NDArray[np.uint8] | None
