from typing import Self

from featurestore.plan import Plan

class CompiledPlan:
    def __new__(cls, plan: Plan, previous: CompiledPlan | None = None) -> Self: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def part_names(self) -> tuple[str, ...]: ...
