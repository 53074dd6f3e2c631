from typing import Final, final

from featurestore.server.dispatcher import Dispatcher
from featurestore.server.status import Status

START: Final[int]
MESSAGE: Final[int]
HALF_CLOSE: Final[int]
CANCEL: Final[int]
LARGE: Final[int]
READS: Final[int]
WRITES: Final[int]
REFUSALS: tuple[tuple[Status, str, str], ...]

def nghttp2_library() -> str: ...

@final
class Host:
    def __init__(
        self,
        dispatcher: Dispatcher,
        targets: list[tuple[str, int, bool, bool]],
        *,
        n_loops: int = 1,
        max_message_bytes: int = ...,
        max_connection_bytes: int = ...,
        max_buffered_bytes: int = ...,
        max_connections: int = ...,
        max_streams_per_connection: int = ...,
        max_streams: int = ...,
        max_calls: int = ...,
        stream_window: int = ...,
        durable_wait_s: float = ...,
        min_ping_interval_ms: int = ...,
        max_connection_age_s: float = ...,
    ) -> None: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    @property
    def targets(self) -> list[tuple[str, int, bool, bool]]: ...
    def close(self) -> None: ...
    def work(self, bench: int) -> None: ...
    def take(self) -> tuple[int, tuple[int, int], int, bytes | None, float | None] | None: ...
    def next(self, call: tuple[int, int], n_bytes: int) -> None: ...
    def reply(self, call: tuple[int, int], message: bytes) -> None: ...
    def end(
        self,
        call: tuple[int, int],
        status: int,
        words: str = "",
        kind: str = "",
        *,
        n_messages: int = 0,
        n_bytes: int = 0,
    ) -> None: ...
    def counts(self) -> dict[str, int]: ...

@final
class Session:
    leaves_desk: bool
    errands_lie_s: float
    def __init__(self, host: Host) -> None: ...
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
