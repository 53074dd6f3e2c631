"""What must be true of a store, from what its program said: the order of everything that happened.

Acknowledgements carry positions. What was in flight when the process died happened or did not: the frames of
the journal and the gaps between positions say which, and where the journal no longer says it, every order
that fits is tried. The whole sequence is then done again in memory, by `State` alone and never by an engine,
and counted in Python. A store is right if its digest and its counts are these.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reference.timeless import timeless_digest

from featurestore.core.state import State
from featurestore.engine import EMPTY_PLAN
from featurestore.plan import Plan
from featurestore.storage.frame import parse_batch_body, parse_forget_body
from featurestore.storage.journal import BATCH, FORGET, JournalReader

from . import engine_program as program

Op = tuple[str, ...]
"""("b", thread, number), ("s", version) or ("f", key, try), as in a line."""

MAX_ORDERS = 200


def size_of(op: Op) -> int:
    return program.size_of(int(op[1]), int(op[2])) if op[0] == "b" else 1


def user_entity(plan: Plan) -> int:
    return [entity.parts for entity in plan.entities].index(("user",))


@dataclass
class Known:
    """What the lines of one process told, and the journal it left."""

    tried: list[Op] = field(default_factory=list)
    acknowledged: dict[Op, int] = field(default_factory=dict)
    """Last position; 0 where it was not told."""
    again: set[Op] = field(default_factory=set)
    plans: dict[str, str] = field(default_factory=dict)
    """By version of the schema, as JSON."""
    checkpoint: int = 0
    recovered: tuple[int, str, dict[str, list[float]], str] | None = None
    """Position, digest, counts and plan at its start."""
    failed: str = ""
    closed: bool = False

    @classmethod
    def of(cls, lines: Sequence[str]) -> Known:
        known, plan = cls(), ""
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "try":
                known.tried.append(tuple(rest.split()))
            elif word == "again":
                known.again.add(tuple(rest.split()))
            elif word == "ack":
                kind, _, rest = rest.partition(" ")
                words = rest.split(" ", 2)
                n = 1 if kind == "s" else 2
                op = (kind, *words[:n])
                known.acknowledged[op] = int(words[n])
                if kind == "s":
                    known.plans[op[1]] = words[2]
            elif word == "plan":
                plan = rest
            elif word == "recovered":
                position, digest, counts = rest.split(" ", 2)
                known.recovered = int(position), digest, json.loads(counts), plan
            elif word == "checkpoint":
                known.checkpoint = int(rest)
            elif word == "failed":
                known.failed = rest
            known.closed |= word == "closed"
        return known


def op_of_frame(kind: int, body: bytes) -> Op | None:
    """What a frame of the journal did; None where it does not say (a schema, or a key by its fingerprint)."""
    if kind != BATCH:
        return None
    batch = parse_batch_body(body)
    if batch.producer:
        return "b", batch.producer.decode().split()[1], str(batch.sequence)
    ids = batch.columns[0]
    thread, number, _ = bytes(ids.data[: ids.offsets[1]]).decode().split("-")
    return "b", thread, number


class Truth:
    """The sequence of operations on one store, and the state and the counts after it."""

    def __init__(self, directory: Path) -> None:
        """Of a store just created: its first schema is all it has."""
        self.directory = directory
        self.secret = (directory / "secret").read_bytes()
        self.state = self.fresh()
        self.state.apply_plan(program.compiled_first())
        self.done: dict[Op, int] = {("s", "1"): 1}
        self.counts = Counter[tuple[str, int]]()
        self.forgotten: list[str] = []

    def fresh(self) -> State:
        return State(EMPTY_PLAN, clock="event", secret=self.secret, n_shards=program.N_SHARDS)

    def advance(
        self, known: Known, recovered: tuple[int, str, dict[str, list[float]], str], how: str
    ) -> None:
        """Checks that a store which recovered so holds what `known` acknowledged, and goes on from there.

        AssertionError says what was lost, doubled or changed.
        """
        position, digest, counts, plan = recovered
        doubled = [op for op in known.acknowledged if op in self.done]
        assert not doubled, f"{how}: applied again: {doubled}"
        strange = [op for op in known.again if op not in self.done]
        assert not strange, f"{how}: called duplicates, and never applied: {strange}"
        lost = {op: at for op, at in known.acknowledged.items() if at > position}
        assert not lost, f"{how}: recovered at {position}; lost: {lost}"
        n_orders = 0
        for order in self.orders(known, position):
            n_orders += 1
            state = self.replayed(order, known, plan)
            if timeless_digest(state) == digest or n_orders == MAX_ORDERS:
                break
        else:
            assert n_orders, (
                f"{how}: nothing that was tried explains position {position} after {self.state.position}"
            )
        assert state.position == position
        assert timeless_digest(state) == digest, (
            f"{how}: the state is not that of the journal ({n_orders} orders tried)"
        )
        self.state = state
        for op, at in order:
            self.done[op] = at
            if op[0] == "b":
                login = program.is_login(int(op[2]))
                self.counts.update((user, login) for user in program.users_of(int(op[1]), int(op[2])))
        self.forgotten += [op[1] for op in known.acknowledged if op[0] == "f"]
        mine = {
            user: [float(self.counts[user, 0]), float(self.counts[user, 1])]
            for user in (f"user-{i}" for i in range(program.USERS))
        }
        assert counts == mine, f"{how}: counted {counts}, acknowledged {mine}"

    def orders(self, known: Known, end: int) -> Iterator[list[tuple[Op, int]]]:
        """Every order of what was tried that agrees with the positions told, up to `end`."""
        at = {position: op for op, position in known.acknowledged.items() if position}
        for op, position in self.in_journal(end):
            assert at.setdefault(position, op) == op, f"position {position} is {op} and {at[position]}"
        at = {position: op for position, op in at.items() if self.state.position < position <= end}
        told = set(at.values())
        unknown = [op for op in dict.fromkeys(known.tried) if op not in told and op not in self.done]
        must = {op for op in known.acknowledged if op in unknown}

        starts = {last - size_of(op) + 1: (op, last) for last, op in at.items()}

        def fill(position: int, left: list[Op]) -> Iterator[list[tuple[Op, int]]]:
            run = list[tuple[Op, int]]()
            while position + 1 in starts:
                op, position = starts[position + 1]
                run.append((op, position))
            if position == end:
                if not must & set(left):
                    yield run
                return
            limit = min([start for start in starts if start > position], default=end + 1)
            for op in left:
                last = position + size_of(op)
                if last < limit:
                    for rest in fill(last, [other for other in left if other != op]):
                        yield [*run, (op, last), *rest]

        return fill(self.state.position, unknown)

    def in_journal(self, end: int) -> Iterator[tuple[Op, int]]:
        for frame in JournalReader(self.directory / "journal"):
            last = frame.first_position + frame.n_positions - 1
            op = op_of_frame(frame.kind, frame.body)
            if op is not None and self.state.position < last <= end:
                yield op, last
            elif frame.kind == FORGET:
                parse_forget_body(frame.body)

    def replayed(self, order: Sequence[tuple[Op, int]], known: Known, last_plan: str) -> State:
        state = State.restore(self.state.plan, self.state.snapshot())
        for op, last in order:
            if op[0] == "b":
                thread, number = int(op[1]), int(op[2])
                batch = program.batch_of(state.plan, thread, number)
                state.observe(batch, None, **program.producer_of(thread, number))
                assert set(map(int, batch.outcomes)) == {program.ACCEPTED}
            elif op[0] == "s":
                # The last one may not have been acknowledged, and is served all the same.
                state.apply_plan(Plan.from_json(known.plans.get(op[1], last_plan)))
            else:
                state.forget(user_entity(state.plan), [op[1].encode()])
            assert state.position == last
        return state

    def todo(self, known: Known) -> program.Intentions:
        """What the next process does: it begins with what was in flight."""
        todo = program.Intentions()
        for op in self.done:
            if op[0] == "s":
                todo.version = max(todo.version, int(op[1]))
        for op in [*self.done, *known.acknowledged, *known.again]:
            if op[0] == "b":
                todo.next_number[int(op[1])] = max(todo.next_number[int(op[1])], int(op[2]) + 1)
        for op in known.tried:
            settled = op in known.acknowledged or op in known.again
            if op[0] == "s":
                todo.version = max(todo.version, int(op[1]))
            elif op[0] == "f" and not settled:
                todo.forgets.append((op[1], int(op[2]) + 1))
            elif op[0] == "b" and not settled:
                todo.next_number[int(op[1])] = int(op[2])
        return todo

    def remains(self, keys: Sequence[str]) -> list[str]:
        """Files in which something of a forgotten key is left: its text, or the fingerprint of its row."""
        found = []
        for path in self.directory.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                for key in keys:
                    fingerprint = self.state.fingerprint(user_entity(self.state.plan), [key.encode()])
                    in_rows = fingerprint[7::-1] + fingerprint[:7:-1]  # two big-endian numbers
                    if key.encode() in data or fingerprint in data or in_rows in data:
                        found.append(f"{key} in {path}")
        return found
