import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Never, Protocol, Self, TypeVar, final, type_check_only

from numpy import int64
from numpy.typing import NDArray

from featurestore.columns import TextColumn
from featurestore.core.batch import EventBatch
from featurestore.core.state import RememberedProducer, SeenProducer, State, Vectors
from featurestore.plan import Plan
from featurestore.storage.directory import DataDirectory
from featurestore.storage.journal import Journal
from featurestore.storage.rows import RowStore

EMPTY_PLAN: Final[Plan]

_Prepared = TypeVar("_Prepared")

@type_check_only
class PlanListener(Protocol[_Prepared]):
    def prepare(self, plan: Plan, /) -> _Prepared: ...
    def adopt(self, prepared: _Prepared, /) -> None: ...

@dataclass(frozen=True)
class Recovered:
    rows: int
    checkpoint_position: int
    frames: int
    events: int
    torn: str | None
    seconds: float

@dataclass(frozen=True)
class Checkpointed:
    position: int
    rows: int
    n_bytes: int
    seconds: float

@final
class Engine:
    state: Final[State]
    journal: Final[Journal]
    rows: Final[RowStore]
    directory: Final[DataDirectory]
    recovered: Final[Recovered]
    @property
    def checkpoint_position(self) -> int: ...
    @property
    def checkpointed_at(self) -> float | None: ...
    @property
    def last_checkpoint(self) -> Checkpointed | None: ...
    @property
    def checkpoints_failed(self) -> int: ...
    @property
    def refuses_writes(self) -> bool: ...
    @property
    def shortage(self) -> str | None: ...
    @property
    def clock(self) -> str: ...
    @property
    def history(self) -> str: ...
    @property
    def schema_position(self) -> int: ...
    @property
    def failure(self) -> Exception | None: ...
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @staticmethod
    def open(
        directory: str | os.PathLike[str],
        *,
        schema: str | None = None,
        schema_path: str | None = None,
        clock: str | None = None,
        history: str | None = None,
        durability: str = "group",
        threads: int = 1,
        n_shards: int = 64,
        max_memory_bytes: int = 0,
        dedupe_memory_bytes: int = 360_000_000,
        producer_memory_bytes: int = ...,
        segment_bytes: int = ...,
        checkpoint_part_bytes: int = ...,
        create: bool = True,
        allow: Iterable[str] = (),
        clock_back: bool = False,
    ) -> Engine: ...
    def observe(
        self,
        batch: EventBatch,
        service: int | None = None,
        *,
        bounds: bool = False,
        peek: bool = False,
        producer: bytes = b"",
        epoch: int = 0,
        sequence: int = 0,
        wait: bool = True,
    ) -> tuple[Vectors | None, int]: ...
    def wait(self, position: int, timeout_s: float | None = None) -> None: ...
    def read(
        self,
        service: int,
        parts: Mapping[str, TextColumn],
        n: int,
        *,
        as_of: NDArray[int64] | None = None,
        bounds: bool = False,
    ) -> Vectors: ...
    def lists(
        self, service: int, parts: Mapping[str, bytes], *, as_of: int | None = None
    ) -> tuple[
        int,
        list[
            tuple[
                int,
                int,
                float,
                tuple[float, int, int],
                int,
                list[tuple[bytes | None, int, float, int, int]],
            ]
        ],
    ]: ...
    def add_plan_listener(self, listener: PlanListener[Any]) -> None: ...
    def remove_plan_listener(self, listener: PlanListener[Any]) -> None: ...
    def apply_schema(
        self,
        text: str,
        *,
        path: str | None = None,
        dry_run: bool = False,
        allow: Iterable[str] = (),
        expect_version: int | None = None,
        grace_ms: int = 0,
    ) -> Plan: ...
    def let_go(self) -> bool: ...
    def keys(self, parts: Sequence[str] | Mapping[str, str]) -> Iterator[dict[str, str]]: ...
    def entity_of(self, parts: Sequence[str] | Mapping[str, str]) -> int: ...
    def forget(self, parts: Mapping[str, str]) -> tuple[bool, int]: ...
    def producers(
        self, after: int = 0, *, at_least: int = 1000
    ) -> tuple[list[RememberedProducer], int | None]: ...
    def producer(self, name: str) -> SeenProducer | None: ...
    def drop_producer(self, name: str) -> int: ...
    def reset_producer(self, name: str, epoch: int, sequence: int) -> int: ...
    def checkpoint(self) -> tuple[int, int]: ...
    @property
    def leap_ms(self) -> int: ...
    def accept_clock(self) -> int: ...
    def set_wall_clock(self, *, allow: Iterable[str] = ()) -> int | None: ...
    def set_clock_back(self, *, allow: Iterable[str] = ()) -> int | None: ...
    def backup(self, target: str | os.PathLike[str]) -> int: ...
    def start_upkeep(
        self,
        *,
        checkpoint_every_s: float = 60.0,
        checkpoint_journal_bytes: int = ...,
        sweep_every_s: float = 300.0,
        on_failure: Callable[[Exception], object] | None = None,
        on_filling: Callable[[str, int, int], object] | None = None,
        on_shedding: Callable[[bool], object] | None = None,
        on_shortage: Callable[[str | None], object] | None = None,
        on_leap: Callable[[int], object] | None = None,
    ) -> None: ...
    @property
    def failed(self) -> bool: ...
    def stats(self) -> dict[str, int | None]: ...
    def close(self, *, checkpoint: bool = False) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

def write_error(status: int) -> Exception: ...
