from typing import final

from featurestore.server.dispatcher import Dispatcher
from featurestore.server.status import Status

REFUSALS: tuple[tuple[Status, str, str], ...]

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
    def work(self) -> None: ...
    def take(self) -> tuple[int, tuple[int, int], int, bytes | None, float | None] | None: ...
    def next(self, call: tuple[int, int]) -> None: ...
    def reply(self, call: tuple[int, int], message: bytes) -> None: ...
    def end(self, call: tuple[int, int], status: int, words: str = "", kind: str = "") -> None: ...
    def counts(self) -> dict[str, int]: ...
