"""The compiled engine behind the few calls that the oracles make: the one place here that knows its API.

Imported only by tests that compare; the naive store and the SQL oracles import nothing from featurestore.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.plan import Plan
from featurestore.schema import compile_schema
from reference.compare import Floats, Got

SECRET = bytes(range(16))

_compiled = functools.cache(compile_schema)


@dataclass
class Vectors:
    """Vectors by feature name, one entry per event or key set."""

    names: list[str]
    values: Floats
    lower: Floats
    upper: Floats
    statuses: np.ndarray[Any, np.dtype[np.uint8]]
    coverage: np.ndarray[Any, np.dtype[np.float32]]

    def got(self, i: int) -> Iterator[tuple[str, Got]]:
        for j, name in enumerate(self.names):
            yield (
                name,
                Got(
                    int(self.statuses[i, j]),
                    float(self.values[i, j]),
                    float(self.lower[i, j]),
                    float(self.upper[i, j]),
                    float(self.coverage[i, j]),
                ),
            )

    def bits(self) -> bytes:
        """Everything in it, to the last bit."""
        arrays = (self.values, self.lower, self.upper, self.statuses, self.coverage)
        return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)

    @classmethod
    def joined(cls, parts: Sequence[Vectors]) -> Vectors:
        arrays = ("values", "lower", "upper", "statuses", "coverage")
        return cls(
            parts[0].names, *(np.concatenate([getattr(part, name) for part in parts]) for name in arrays)
        )


class Engine:
    """One State and the plan it runs."""

    def __init__(
        self,
        schema: str,
        *,
        clock: str = "event",
        n_shards: int = 4,
        threads: int = 1,
        secret: bytes = SECRET,
        from_beginning: bool = False,
        max_memory_bytes: int = 0,
    ) -> None:
        self.plan: Plan = _compiled(schema, from_beginning=from_beginning)
        self.state = State(
            self.plan,
            clock=clock,
            secret=secret,
            n_shards=n_shards,
            threads=threads,
            max_memory_bytes=max_memory_bytes,
        )
        self.partly_late: list[bool] = []
        self.shed: list[set[tuple[str, ...]]] = []
        self.is_limited = max_memory_bytes > 0

    def beginning(self, schema: str, **options: Any) -> Engine:
        """An engine in this process that stands where this one began, if that was with `schema`."""
        return Engine(schema, **options)

    def batch(self, event: str, data: Any) -> EventBatch:
        """Columns by field name (the time field among them), an Arrow table or a data frame, as one batch;
        what a mapping lacks is null."""
        index = [plan.name for plan in self.plan.events].index(event)
        plan = self.plan.events[index]
        if isinstance(data, Mapping):
            n = len(data[plan.time.field])
            data = {field.name: [None] * n for field in plan.fields} | dict(data)
        return EventBatch(plan, index, *event_columns(plan, data))

    def submit(
        self, event: str, data: Any, service: str | None = None, **options: Any
    ) -> tuple[list[int], Vectors | None]:
        """Outcomes, and with a service the vectors that Observe returns."""
        batch = self.batch(event, data)
        index = None if service is None else self._service(service)
        vectors = self.state.observe(batch, index, bounds=True, **options)
        self.partly_late = [bool(partly) for partly in batch.partly_late]  # of the last batch
        keys = [self.plan.entities[touch.entity].parts for touch in batch.event.touches]
        self.shed = [{keys[j] for j in range(len(keys)) if int(bits) >> j & 1} for bits in batch.shed]
        return [int(code) for code in batch.outcomes], None if vectors is None else self._named(
            service, vectors
        )

    @staticmethod
    def told(outcomes: list[int], service: str | None) -> list[int]:
        """Outcomes as `submit` returns them."""
        return outcomes

    def read(
        self,
        service: str,
        keys: Mapping[str, Sequence[object]],
        n: int = 1,
        *,
        as_of: int | None = None,
        **options: Any,
    ) -> Vectors:
        parts = {part: text_column(values)[0] for part, values in keys.items()}
        at = None if as_of is None else np.full(n, as_of, dtype=np.int64)
        index = self._service(service)
        return self._named(service, self.state.read(index, parts, n, as_of=at, bounds=True, **options))

    def forget(self, parts: Mapping[str, str]) -> bool:
        names = tuple(sorted(parts))
        entity = [plan.parts for plan in self.plan.entities].index(names)
        return bool(self.state.forget(entity, [parts[name].encode() for name in names]))

    def change_producer(self, name: bytes, *numbers: int) -> bool:
        return bool(self.state.reset_producer(name, *numbers) if numbers else self.state.drop_producer(name))

    def apply(self, schema: str, now_ms: int | Mapping[str, int] | None) -> None:
        """One that changes nothing takes no position."""
        plan = compile_schema(schema, previous=self.plan, now_ms=now_ms, ahead_ms=self.state.ahead_ms)
        if plan is not self.plan:
            self.apply_plan(plan)

    def apply_plan(self, plan: Plan) -> None:
        self.plan = plan
        self.state.apply_plan(plan)

    def set_clock(self, plan: Plan, now_ms: int) -> None:
        """A wall clock, which says now_ms."""
        self.plan = plan
        self.state.apply_plan(plan, clock="wall", now_ms=now_ms)

    def limit(self, max_memory_bytes: int) -> None:
        """Goes on with another memory limit; 0: none."""
        self.is_limited = max_memory_bytes > 0
        self.state = State.restore(self.plan, self.state.snapshot(), max_memory_bytes=max_memory_bytes)

    def restart(self, *, threads: int = 1) -> None:
        self.state = State.restore(self.plan, self.state.snapshot(), threads=threads)

    def _service(self, name: str) -> int:
        return [plan.name for plan in self.plan.services].index(name)

    def _named(self, service: str | None, vectors: Any) -> Vectors:
        plan = next(plan for plan in self.plan.services if plan.name == service)
        names = [self.plan.all_features[index].name for index in plan.features]
        return Vectors(
            names, vectors.values, vectors.lower, vectors.upper, vectors.statuses, vectors.coverage
        )
