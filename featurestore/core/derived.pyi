from collections.abc import Sequence

from featurestore.plan import DerivedPlan

def derive_one(
    derived: DerivedPlan, operands: Sequence[tuple[float, float, float, int, float]]
) -> tuple[float, float, float, int, float]: ...
