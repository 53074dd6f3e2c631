from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from featurestore.core.batch import EventBatch
from featurestore.plan import DerivedPlan, EventPlan, Program

class Compiled:
    @property
    def source(self) -> str: ...

@final
class CompiledFormula(Compiled):
    def __new__(cls, derived: DerivedPlan) -> Self: ...

@final
class CompiledProgram(Compiled):
    def __new__(cls, program: Program, event: EventPlan) -> Self: ...
    @property
    def event(self) -> int: ...
    def run(self, batch: EventBatch, lo: int = 0, hi: int | None = None) -> NDArray[np.uint8]: ...
