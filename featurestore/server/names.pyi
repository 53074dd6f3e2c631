from typing import Final, final

from featurestore.errors import SchemaMismatchError
from featurestore.plan import Plan

@final
class WireSchema:
    plan: Final[Plan]
    parts: Final[tuple[str, ...]]
    def __init__(
        self, plan: Plan, *, max_message_bytes: int = ..., max_rows: int = ..., max_values: int = ...
    ) -> None: ...

def another_service(name: str, plan: Plan, fingerprint: int) -> SchemaMismatchError: ...
