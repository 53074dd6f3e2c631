from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Buffer

from featurestore.columns import TextColumn
from featurestore.core.batch import EventBatch
from featurestore.core.bytes import Block
from featurestore.core.plan import CompiledPlan
from featurestore.plan import Plan

EARLIEST_MS: Final[int]
LATEST_MS: Final[int]
SNAPSHOT_MAGIC: Final[bytes]

FREED: Final[bytes]

def split_records(records: Buffer) -> Iterator[bytes]: ...

class RememberedProducer(NamedTuple):
    name: bytes | None
    epoch: int
    sequence: int
    heard_ms: int | None
    made_up: bool

class Vectors:
    __slots__ = ("coverage", "lower", "read_at_ms", "statuses", "upper", "values")
    values: NDArray[np.float64]
    lower: NDArray[np.float64] | None
    upper: NDArray[np.float64] | None
    statuses: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    read_at_ms: int
    def __init__(self, n: int, width: int, bounds: bool) -> None: ...

@final
class State:
    def __init__(
        self,
        plan: Plan,
        *,
        clock: str = "event",
        secret: bytes = ...,
        n_shards: int = 64,
        threads: int = 1,
        cores: int = 1,
        max_memory_bytes: int = 0,
        max_future_ms: int = ...,
        max_producer_bytes: int = ...,
        dedupe_memory_bytes: int = 360_000_000,
    ) -> None: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def position(self) -> int: ...
    @property
    def now_ms(self) -> int | None: ...
    @property
    def memories(self) -> dict[str, tuple[int, int]]: ...
    def event_now_ms(self, event: int) -> int | None: ...
    def observe(
        self,
        batch: EventBatch,
        service: int | None = None,
        *,
        now_ms: int = 0,
        bounds: bool = False,
        peek: bool = False,
        producer: bytes = b"",
        epoch: int = 0,
        sequence: int = 0,
    ) -> Vectors | None: ...
    def read(
        self,
        service: int,
        parts: Mapping[str, TextColumn],
        n: int,
        *,
        as_of: ArrayLike | None = None,
        now_ms: int = 0,
        bounds: bool = False,
    ) -> Vectors: ...
    def lists(
        self, service: int, parts: Mapping[str, bytes], *, as_of: int | None = None, now_ms: int = 0
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
    def apply_plan(self, plan: Plan) -> None: ...
    def fingerprint(self, entity: int, parts: Sequence[bytes]) -> bytes | None: ...
    def forget(self, entity: int, parts: Sequence[bytes]) -> bool: ...
    def drop_producer(self, name: bytes, *, now_ms: int = 0) -> bool: ...
    def reset_producer(self, name: bytes, epoch: int, sequence: int, *, now_ms: int = 0) -> bool: ...
    def list_producers(
        self, after: int = 0, *, at_least: int = 1000, now_ms: int = 0, max_places: int = 64
    ) -> tuple[list[RememberedProducer], int | None]: ...
    def sweep(self) -> int: ...
    def keys(self, entity: int) -> Iterator[tuple[bytes, ...]]: ...
    def stats(self) -> dict[str, int]: ...
    def check_memory(self, compiled: CompiledPlan) -> None: ...
    def cut(self) -> tuple[int, bytes]: ...
    @property
    def turns(self) -> tuple[int, int]: ...
    def copy_shard(self, shard: int, meanwhile: Callable[[], object] | None = None) -> Block: ...
    def copy_sketches(self, shard: int) -> Block | bytes: ...
    @property
    def ids_to_copy(self) -> int: ...
    @property
    def ids_are_due(self) -> bool: ...
    def cool_ids(self) -> int: ...
    def copy_id_records(self, meanwhile: Callable[[], object] | None = None) -> Block: ...
    def import_id_records(self, data: bytes) -> None: ...
    def copy_producers(
        self, max_places: int = 64, meanwhile: Callable[[], object] | None = None
    ) -> Block: ...
    def copy_written(self, n_shards: int) -> None: ...
    def copy_end(self, written: bool) -> None: ...
    def snapshot(self) -> bytes: ...
    def digest(self) -> bytes: ...
    @classmethod
    def restore(cls, plan: Plan, data: bytes, *, threads: int = 1, max_memory_bytes: int = 0) -> Self: ...
    def import_head(self, data: bytes) -> None: ...
    def import_ids(self, data: Buffer) -> None: ...
    def import_producers(self, data: Buffer) -> None: ...
    def import_shard(self, shard: int, data: Buffer, position: int = 0) -> None: ...
    def import_sketches(self, shard: int, data: Buffer) -> None: ...
