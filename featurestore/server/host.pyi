from typing import Final, final

from featurestore.config import Limits
from featurestore.server.dispatcher import Dispatcher
from featurestore.server.status import Status

START: Final[int]
MESSAGE: Final[int]
HALF_CLOSE: Final[int]
CANCEL: Final[int]
LARGE: Final[int]
READS: Final[int]
WRITES: Final[int]
HANDSHAKES: Final[int]
CHECK: Final[int]
WATCH: Final[int]
KINDS: tuple[str, ...]
REFUSALS: tuple[tuple[str, Status, str, str], ...]

_Call = tuple[int, int, int]  # as `take` gives it

def nghttp2_library() -> str: ...

@final
class Host:
    def __init__(
        self,
        dispatcher: Dispatcher,
        targets: list[tuple[str, int, bool, bool]],
        limits: Limits = ...,
        *,
        services: tuple[str, ...] = (),
        n_loops: int = 1,
    ) -> None: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    @property
    def targets(self) -> list[tuple[str, int, bool, bool]]: ...
    def close(self) -> None: ...
    def work(self, bench: int) -> None: ...
    def take(self) -> tuple[int, _Call, int, bytes | None, float | None] | None: ...
    def next(self, call: _Call, n_bytes: int) -> None: ...
    def reply(self, call: _Call, message: bytes) -> None: ...
    def end(
        self,
        call: _Call,
        status: int,
        words: str = "",
        kind: str = "",
        *,
        is_unknown: bool = False,
        n_messages: int = 0,
        n_bytes: int = 0,
    ) -> None: ...
    def counts(self) -> dict[str, int]: ...
    def refusals(self) -> dict[tuple[str, str], int]: ...

@final
class Session:
    leaves_desk: bool
    errands_lie_s: float
    disk_has_failed: bool
    def __init__(self, host: Host, peer: int = 0) -> None: ...
    @property
    def host(self) -> Host: ...
    @property
    def is_over(self) -> bool: ...
    @property
    def buffered(self) -> int: ...
    @property
    def places(self) -> tuple[int, int]: ...
    @property
    def n_rounds(self) -> int: ...
    @property
    def n_streams(self) -> int: ...
    @property
    def n_parked(self) -> int: ...
    def receive(self, data: bytes) -> bytes | None: ...
    def drain(self) -> bytes | None: ...
    def wait(self, seconds: float) -> bytes | None: ...
    def close(self) -> None: ...
