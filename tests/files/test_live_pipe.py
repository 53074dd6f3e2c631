"""A pipe that stays open: what has come through it is handed over, however little, and no event twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from featurestore.errors import InvalidEventError
from featurestore.files import open_events, stream

HEADER = {"csv": b"ts,k,n\n", "jsonl": b""}
ROW = {"csv": b"2020-01-01,%s,1\n", "jsonl": b'{"ts":"2020-01-01","k":"%s","n":1}\n'}


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Its writing end; standard input is the other."""
    out, into = os.pipe()
    with os.fdopen(out, "rb") as file:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        yield into


def handed(chunks):
    """The keys of the next chunk that has any, and how many were empty before it."""
    for n_empty, chunk in enumerate(chunks):
        if chunk.n_events:
            keys = [key.decode() if isinstance(key, bytes) else key for key in as_list(chunk.columns["k"])]
            return keys, chunk.start_row, n_empty
    return [], -1, 0


def as_list(cells):
    return cells if isinstance(cells, list) else cells.to_pylist()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_what_has_come_is_handed_over_while_the_pipe_stays_open(event, pipe, kind):
    row = ROW[kind]
    os.write(pipe, HEADER[kind])
    with open_events("-", event, stated_format=kind, flush_s=0.01) as reader:
        chunks = reader.chunks(1024)
        os.write(pipe, row % b"a" + row % b"b" + (row % b"c")[:7])
        assert handed(chunks)[:2] == (["a", "b"], 0)
        assert next(chunks).n_events == 0  # answers are waited for before more is read
        os.write(pipe, (row % b"c")[7:])
        assert handed(chunks)[:2] == (["c"], 2)
        os.write(pipe, (row % b"d").rstrip())
        os.close(pipe)
        assert handed(chunks)[:2] == (["d"], 3)
        assert [chunk.n_events for chunk in chunks if chunk.n_events] == []


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_whole_batches_do_not_wait_for_the_time(event, pipe, kind):
    os.write(pipe, HEADER[kind] + ROW[kind] % b"a" * 25)
    with open_events("-", event, stated_format=kind, flush_s=0.05) as reader:
        found = [
            (chunk.start_row, chunk.n_events) for chunk, _ in zip(reader.chunks(10), range(4), strict=False)
        ]
    os.close(pipe)
    assert found == [(0, 10), (10, 10), (20, 5), (25, 0)]


def test_a_pipe_with_nothing_in_it_is_waited_for_and_not_asked_over_and_over(event, pipe, monkeypatch):
    """By a clock that stands still until somebody waits."""
    clock = SimpleNamespace(monotonic=lambda: clock.now_s, now_s=1000.0)
    waits = []

    def wait(wait_ms):
        waits.append(wait_ms)
        clock.now_s += wait_ms / 1000
        return []

    poll = SimpleNamespace(register=lambda number, kind: None, poll=wait)
    monkeypatch.setattr(stream, "time", clock)
    monkeypatch.setattr(stream, "select", SimpleNamespace(POLLIN=1, poll=lambda: poll))
    with open_events("-", event, stated_format="jsonl", flush_s=1.0) as reader:
        chunks = reader.chunks(10)
        assert [next(chunks).n_events for _ in range(3)] == [0, 0, 0]
    assert waits == [1000, 1000, 1000]


def test_a_pipe_that_never_stops_is_handed_over_in_time_too(event, pipe, monkeypatch):
    """Each read takes a second of a clock that only they move, and there is always more."""
    clock = SimpleNamespace(monotonic=lambda: clock.now_s, now_s=0.0)
    read = stream._Counted.read1

    def slow(counted, n_bytes):
        clock.now_s += 1.0
        return read(counted, 36)

    monkeypatch.setattr(stream, "time", clock)
    monkeypatch.setattr(stream._Counted, "read1", slow)
    monkeypatch.setattr(stream._Counted, "is_ready", lambda counted, wait_s: wait_s > 0)
    row = b'{"ts":"2020-01-01","k":"a","n":1}  \n'
    assert len(row) == 36
    os.write(pipe, row * 10)
    with open_events("-", event, stated_format="jsonl", flush_s=3.0) as reader:
        chunks = reader.chunks(1024)
        assert [next(chunks).n_events for _ in range(4)] == [3, 0, 3, 0]
    os.close(pipe)


def test_a_pipe_is_read_to_the_batch_where_nothing_is_said_of_time(event, pipe):
    os.write(pipe, ROW["jsonl"] % b"a" * 3)
    os.close(pipe)
    with open_events("-", event, stated_format="jsonl") as reader:
        assert [chunk.n_events for chunk in reader.chunks(2)] == [2, 1]


def test_a_name_is_wrong_in_the_few_lines_of_a_pipe_only_where_one_is_near_it(event, pipe):
    """Others may still come."""
    os.write(pipe, b'{"ts":"2020-01-01","k":"a","page":1}\n')
    with open_events("-", event, stated_format="jsonl", flush_s=0.01) as reader:
        assert handed(reader.chunks(10))[:2] == (["a"], 0)
    os.write(pipe, b'{"ts":"2020-01-01","k":"a","nn":1}\n')
    with (
        open_events("-", event, stated_format="jsonl", flush_s=0.01) as reader,
        pytest.raises(InvalidEventError, match=r"'n' .* did you mean 'nn'"),
    ):
        handed(reader.chunks(10))
    os.close(pipe)
