import os
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self, final

BATCH: Final[int]
SCHEMA: Final[int]
FORGET: Final[int]
PRODUCER: Final[int]
SHED: Final[int]
CLOCK: Final[int]
KINDS: Final[dict[int, str]]
MODES: Final[dict[str, int]]
VERDICTS: Final[dict[int, str]]
DEFAULT_SEGMENT_BYTES: Final[int]
MAX_SEGMENT_BYTES: Final[int]

class Segment(NamedTuple):
    name: str
    first_position: int
    previous_position: int
    base_offset: int
    file_bytes: int
    salt: int

class JournalFrame(NamedTuple):
    kind: int
    first_position: int
    n_positions: int
    now_ms: int
    schema_version: int
    offset: int
    durable_offset: int
    body: bytes

@final
class JournalReader:
    @property
    def directory(self) -> str: ...
    @property
    def segments(self) -> list[Segment]: ...
    @property
    def torn(self) -> str | None: ...
    @property
    def end_offset(self) -> int: ...
    def __init__(
        self,
        directory: str | os.PathLike[str],
        from_position: int = 0,
        store_id: bytes | None = None,
        *,
        _live_end: int = 0,
    ) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> JournalFrame: ...
    @property
    def next_position(self) -> int: ...

@final
class Journal:
    @property
    def directory(self) -> str: ...
    @property
    def torn(self) -> str | None: ...
    def __init__(
        self,
        directory: str | os.PathLike[str],
        store_id: bytes,
        *,
        mode: Literal["group", "process"] = "group",
        from_position: int = 0,
        create: bool = False,
        segment_bytes: int = ...,
        sync_delay_ms: int = 500,
    ) -> None: ...
    def append(
        self,
        kind: int,
        *pieces: bytes,
        n_positions: int = 1,
        now_ms: int = 0,
        schema_version: int = 0,
        unawaited: bool = False,
    ) -> int: ...
    def wait_durable(self, position: int, timeout_s: float | None = None) -> bool: ...
    def sync(self) -> None: ...
    def roll(self) -> None: ...
    def truncate_before(self, position: int) -> int: ...
    def add_eventfd(self, fd: int) -> None: ...
    def remove_eventfd(self, fd: int) -> None: ...
    def read(self, from_position: int = 0) -> JournalReader: ...
    def verify(self) -> int: ...
    @property
    def durable_position(self) -> int: ...
    @property
    def acknowledged_position(self) -> int: ...
    @property
    def last_position(self) -> int: ...
    @property
    def first_position(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def n_segments(self) -> int: ...
    @property
    def n_appends(self) -> int: ...
    @property
    def n_syncs(self) -> int: ...
    @property
    def status(self) -> Literal["open", "full", "failed", "closed"]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
