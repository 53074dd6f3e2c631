"""The engine and the naive store taking the same steps, compared value by value after each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featurestore.errors import InvalidEventError, SequenceError
from featurestore.plan import Plan
from featurestore.schema.evolution import as_of_wall, set_back
from reference.compare import derived_disagreement, disagreement
from reference.engine import Engine, Vectors
from reference.naive import (
    NO_TIME,
    Answer,
    ContentDiffers,
    Row,
    Schema,
    SequenceRefused,
    Store,
    Truth,
)
from reference.written import TIME_FIELD, yaml

REFUSED_BY_FORM = range(NO_TIME, 23)


@dataclass(frozen=True)
class Submitted:
    """A batch as it was given, to be given again."""

    event: str
    rows: tuple[Row, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Applied:
    plan: Plan


@dataclass(frozen=True)
class Forgotten:
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Changed:
    """A producer dropped (no numbers) or reset to an epoch and a sequence."""

    name: bytes
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Clocked:
    """A wall clock from here on, which says now_ms, and the plan with it."""

    plan: Plan
    now_ms: int


Step = Submitted | Applied | Forgotten | Changed | Clocked


class Both:
    """Raises AssertionError as soon as the two differ. `engine` is another than one in this process, with the
    calls of reference.engine.Engine."""

    def __init__(
        self,
        schema: Schema,
        *,
        clock: str = "event",
        n_shards: int = 4,
        threads: int = 1,
        engine: Any = None,
    ) -> None:
        self.naive = Store(schema, clock=clock)
        from_beginning = any(kind.from_beginning for kind in schema.events.values())  # all of them then
        self.options: dict[str, Any] = {
            "clock": clock,
            "n_shards": n_shards,
            "from_beginning": from_beginning,
        }
        self.engine = engine or Engine(yaml(schema), **self.options, threads=threads)
        self.first_schema = schema
        self.journal: list[Step] = []

    def submit(
        self, event: str, rows: Sequence[Row], service: str | None = None, **options: Any
    ) -> tuple[list[Answer], Vectors | None]:
        """Both stores take the batch, or both refuse it as a whole: then nothing is returned."""
        shed = self._shed(event, rows, **options)
        try:
            answers = self.naive.submit(event, rows, service, **options, shed=shed)
        except (SequenceRefused, ContentDiffers) as refusal:
            expected = SequenceError if isinstance(refusal, SequenceRefused) else InvalidEventError
            _raises(expected, lambda: self.engine.submit(event, self._data(event, rows), service, **options))
            return [], None
        outcomes, vectors = self.engine.submit(event, self._data(event, rows), service, **options)
        self.journal.append(Submitted(event, tuple(rows), options))
        assert outcomes == self.engine.told([answer.outcome for answer in answers], service)
        if isinstance(self.engine, Engine):
            assert self.engine.partly_late == [answer.partly_late for answer in answers]
            assert not shed or self.engine.shed == shed, "what a peek said would be shed was not"
        if vectors is not None:
            for i, answer in enumerate(answers):
                # A malformed event keeps no time to be read at.
                if answer.outcome not in REFUSED_BY_FORM:
                    self._compare(answer.vector or [], vectors, i, f"observing {rows[i]}")
        return answers, vectors

    def peek(self, event: str, row: Row, service: str, **options: Any) -> Vectors:
        """Compared with the naive store's answer, and checked to leave no trace in the engine."""
        before = self.engine.state.digest()
        outcomes, vectors = self.engine.submit(event, self._data(event, [row]), service, peek=True, **options)
        assert self.engine.state.digest() == before, "peek left a trace"
        shed = getattr(self.engine, "shed", ())
        answer = self.naive.copy().submit(event, [row], service, **options, shed=shed)[0]
        assert outcomes == [answer.outcome]
        assert vectors is not None
        if answer.outcome not in REFUSED_BY_FORM:
            self._compare(answer.vector or [], vectors, 0, f"peeking {row}")
        return vectors

    def read(
        self, service: str, parts: Mapping[str, object], *, as_of: int | None = None, **options: Any
    ) -> tuple[list[Truth], Vectors]:
        truths = self.naive.read(service, parts, as_of=as_of, **options)
        keys = {part: [value] for part, value in parts.items()}
        vectors = self.engine.read(service, keys, as_of=as_of, **options)
        self._compare(truths, vectors, 0, f"reading {dict(parts)} as of {as_of}")
        return truths, vectors

    def forget(self, parts: Mapping[str, str]) -> None:
        kept, found = self.naive.forget(parts), self.engine.forget(parts)
        self.journal.append(Forgotten(parts))
        assert found or not kept, "a row that holds events was not found; one that holds none may be gone"

    def change_producer(self, name: bytes, *numbers: int) -> None:
        """Drops it, or resets it to an epoch and a sequence."""
        known = self.naive.reset(name, *numbers) if numbers else self.naive.drop(name)
        assert self.engine.change_producer(name, *numbers) == known
        if known:
            self.journal.append(Changed(name, numbers))

    def apply(self, schema: Schema) -> None:
        now_ms = self.now_ms()
        self.naive.apply(schema, now_ms)
        before = self.engine.plan
        self.engine.apply(yaml(schema), now_ms)
        if self.engine.plan != before:
            self.journal.append(Applied(self.engine.plan))

    def follow_wall(self, now_ms: int) -> None:
        """The clock is the server's from here on."""
        self.naive.follow_wall(now_ms)
        assert self.naive.wall_now is not None
        self._set_clock(as_of_wall(self.engine.plan), self.naive.wall_now)

    def set_back(self, now_ms: int) -> None:
        """The server's clock, which was wrong, is set back."""
        seen_ms, from_ms = now_ms + self.naive.schema.max_future_ms + 1, self.naive.wall_now
        assert from_ms is not None
        self.naive.set_back(now_ms, seen_ms)
        ahead_ms = self.naive.schema.max_future_ms
        self._set_clock(set_back(self.engine.plan, now_ms, from_ms=from_ms, ahead_ms=ahead_ms), now_ms)

    def _set_clock(self, plan: Plan, now_ms: int) -> None:
        self.engine.set_clock(plan, now_ms)
        self.journal.append(Clocked(plan, now_ms))

    def restart(self, *, threads: int) -> None:
        before = self.engine.state.digest()
        self.engine.restart(threads=threads)
        assert self.engine.state.digest() == before, "restored state differs"

    def replayed(self, cut: Sequence[int], *, threads: int, n_shards: int | None = None) -> Engine:
        """Another engine that took the same steps with its batches cut and joined anew.

        Batches without a sequence of their own are joined with their neighbours where type and clock allow,
        and cut into pieces of the sizes in `cut`, in turn.
        """
        options = self.options if n_shards is None else {**self.options, "n_shards": n_shards}
        engine: Engine = self.engine.beginning(yaml(self.first_schema), **options, threads=threads)
        for step in _rebatched(self.journal, cut):
            if isinstance(step, Submitted):
                engine.submit(step.event, self._data(step.event, step.rows), **step.options)
            elif isinstance(step, Applied):
                engine.apply_plan(step.plan)
            elif isinstance(step, Clocked):
                engine.set_clock(step.plan, step.now_ms)
            elif isinstance(step, Changed):
                engine.change_producer(step.name, *step.numbers)
            else:
                engine.forget(step.parts)
        return engine

    def _shed(self, event: str, rows: Sequence[Row], **options: Any) -> Sequence[set[tuple[str, ...]]]:
        """What the engine finds no room for, by a peek: memory is no matter of the naive store."""
        if not getattr(self.engine, "is_limited", False):
            return ()
        self.engine.submit(event, self._data(event, rows), peek=True, **options)
        return list(self.engine.shed)

    def _compare(self, truths: Sequence[Truth], vectors: Vectors, i: int, doing: str) -> None:
        assert len(truths) == len(vectors.names)
        answered = dict(vectors.got(i))
        for truth, (name, got) in zip(truths, answered.items(), strict=True):
            wrong = disagreement(truth, got)
            assert wrong is None, f"{doing}: {name}: {wrong}; truth {truth}, got {got}"
            derived = self.naive.schema.derived.get(name)
            if derived is not None and answered.keys() >= set(derived.operands):
                operands = [answered[operand] for operand in derived.operands]
                wrong = derived_disagreement(derived, operands, got)
                assert wrong is None, f"{doing}: {name}: {wrong}; of {operands}, got {got}"

    def now_ms(self) -> dict[str, int]:
        """The clock of each event type that has accepted an event."""
        now_ms = {event: self.naive.now(event) for event in self.naive.first_now}
        return {event: now for event, now in now_ms.items() if now is not None}

    def _data(self, event: str, rows: Sequence[Row]) -> dict[str, list[object]]:
        # Every field that any schema so far declared: what the present one does not know is ignored.
        names = dict.fromkeys(name for row in rows for name in row.fields)
        return {TIME_FIELD: [row.time for row in rows]} | {
            name: [row.fields.get(name) for row in rows] for name in names
        }


def _rebatched(steps: Sequence[Step], cut: Sequence[int]) -> list[Step]:
    joined: list[Step] = []
    for step in steps:
        last = joined[-1] if joined else None
        if (
            isinstance(step, Submitted)
            and isinstance(last, Submitted)
            and "producer" not in {**step.options, **last.options}
            and (step.event, step.options) == (last.event, last.options)
        ):
            joined[-1] = replace(last, rows=last.rows + step.rows)
        else:
            joined.append(step)
    result: list[Step] = []
    turn = 0
    for step in joined:
        if not isinstance(step, Submitted) or "producer" in step.options:
            result.append(step)
            continue
        start = 0
        while start < len(step.rows):
            size = cut[turn % len(cut)]
            result.append(replace(step, rows=step.rows[start : start + size]))
            start, turn = start + size, turn + 1
    return result


def _raises(expected: type[Exception], call: Any) -> None:
    try:
        call()
    except expected:
        return
    raise AssertionError(f"the naive store refuses this batch; the engine does not raise {expected.__name__}")
