from typing import Self, final

from featurestore.plan import Plan

@final
class CompiledPlan:
    def __new__(cls, plan: Plan, previous: CompiledPlan | None = None) -> Self: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def part_names(self) -> tuple[str, ...]: ...
