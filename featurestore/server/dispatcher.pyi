from typing import Final, TypedDict, final, type_check_only

from featurestore.engine import Engine
from featurestore.plan import Plan
from featurestore.server.names import WireSchema

METHODS: Final[tuple[str, ...]]
OBSERVE: Final[int]
INGEST: Final[int]
READ: Final[int]
INGEST_STREAM: Final[int]
READ_STREAM: Final[int]

@type_check_only
class MethodCounts(TypedDict):
    calls: int
    seconds: float
    latencies: list[tuple[float, int]]  # (bound in seconds, calls below it and not below the one before)
    failed: dict[int, int]  # by gRPC status code

@type_check_only
class Counts(TypedDict):
    methods: dict[str, MethodCounts]
    refused: dict[int, int]  # by Outcome

@final
class Asked:
    def __init__(self, began_ns: int) -> None: ...
    def count(self, now_ns: int) -> None: ...
    def calls_per_s(self, now_ns: int) -> float: ...

@final
class Served:
    def __init__(self, schema: WireSchema, asked: list[Asked]) -> None: ...

@final
class Dispatcher:
    engine: Final[Engine]
    limits: Final[dict[str, int]]
    def __init__(
        self,
        engine: Engine,
        *,
        max_calls: int = ...,
        max_message_bytes: int = ...,
        max_rows: int = ...,
        max_call_bytes: int = ...,
        observe_ack: str = ...,
    ) -> None: ...
    def close(self) -> None: ...
    def prepare(self, plan: Plan) -> Served: ...
    def adopt(self, served: Served) -> None: ...
    def call(self, method: int, message: bytes, timeout_s: float | None = None) -> bytes: ...
    def begin(self, method: int, message: bytes) -> tuple[bytes, int, int, int]: ...
    def end(
        self,
        method: int,
        reply: bytes,
        position: int,
        began_ns: int,
        ack_at: int,
        timeout_s: float | None = None,
    ) -> bytes: ...
    def asked_of(self, service: str, fingerprint: str) -> tuple[int, float, float | None]: ...
    def count_heaviest(self, began_ns: int, status: int) -> None: ...
    def counts(self) -> Counts: ...
    @property
    def n_calls(self) -> int: ...
    @property
    def n_busy(self) -> int: ...
