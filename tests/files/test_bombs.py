"""Files that ask for much: memory stays within what a chunk may have, or an error says where it would not."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.columns import MAX_TEXT_BYTES
from featurestore.errors import InvalidEventError, StorageError
from featurestore.files import Chunk, chunk, json_lines, pages, parquet
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan

MB = 1 << 20
TIME = "2018-04-01T00:00:00Z"
READ = """
import resource, sys
from featurestore.files import read_events
from featurestore.plan import EventPlan, FieldPlan, Kind, TimePlan
fields = (FieldPlan("k", Kind.TEXT, True), FieldPlan("n", Kind.NUMBER, False))
event = EventPlan(1, "click", TimePlan("ts", "iso"), fields, 0, None, 0, ())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for chunk in read_events(sys.argv[1], event, batch_events=32768):
    outcomes = chunk.event_columns(event)[2]
    print(chunk.n_events, *sorted(set(outcomes.tolist())), end=" ")
print(peak() - before)
"""


def read_apart(path: Path) -> tuple[int, set[int], int]:
    """In a process of its own: events, outcomes, and by how many MB its memory grew at most."""
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    n_events, *outcomes, grown_mb = map(int, done.stdout.split())
    return n_events, set(outcomes), grown_mb


def parquet_of(columns: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def repeated(text: str, n: int) -> pa.Array:
    """n times the same text, which a file holds once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([text]))


def test_a_dictionary_of_one_long_text_that_every_row_refers_to(tmp_path: Path) -> None:
    """90 KB that are 25 GB once they are decoded."""
    n = 32768
    path = tmp_path / "bomb.parquet"
    path.write_bytes(parquet_of({"ts": repeated(TIME, n), "k": repeated("x" * 800_000, n), "n": [1.0] * n}))
    assert path.stat().st_size < 100_000
    n_events, outcomes, grown_mb = read_apart(path)
    assert (n_events, outcomes) == (n, {Outcome.REFUSED_KEY_TOO_LONG})
    assert grown_mb < 900, "32,768 texts of 4,100 bytes are 134 MB, and some copies of them"


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.csv.gz"])
def test_long_fields_that_no_event_has_room_for(tmp_path: Path, name: str) -> None:
    """40 lines of 8 MB: fields that nobody asked for, and a key that is too long for one."""
    n, long = 40, "x" * 4 * MB
    path = tmp_path / name
    with gzip.open(path, "wt", compresslevel=1) as out:
        if "csv" in name:
            out.write("ts,k,n,other\n")
        for _ in range(n):
            row = {"ts": TIME, "k": long, "n": 1, "other": long}
            out.write(f"{TIME},{long},1,{long}\n" if "csv" in name else json.dumps(row) + "\n")
    n_events, outcomes, grown_mb = read_apart(path)
    assert (n_events, outcomes) == (n, {Outcome.REFUSED_KEY_TOO_LONG})
    assert grown_mb < 200, "some lines of 8 MB, and not 40 of them"


Read = Callable[..., list[Chunk]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 1 MB at most."""
    for module in (chunk, json_lines, parquet):
        monkeypatch.setattr(module, "MAX_CHUNK_BYTES", MB)


def written(name: str, rows: list[tuple[str, str]]) -> bytes:
    if name.endswith("csv"):
        return "".join(["ts,k,n,note\n", *(f"{TIME},{k},1,{note}\n" for k, note in rows)]).encode()
    if name.endswith("jsonl"):
        return "".join(
            json.dumps({"ts": TIME, "k": k, "n": 1, "note": note}) + "\n" for k, note in rows
        ).encode()
    keys, notes = zip(*rows, strict=True)
    n = len(rows)
    return parquet_of({"ts": [TIME] * n, "k": keys, "n": [1] * n, "note": notes}, data_page_size=1000)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_more_than_a_chunk_may_have_is_an_error_that_names_row_and_column(
    small: None, chunks_of: Read, name: str
) -> None:
    rows = [(f"{i}" + "k" * 100, "note " * 2000 if 50 <= i < 250 else "") for i in range(300)]
    content = written(name, rows)
    with pytest.raises(InvalidEventError, match=rf"{name}: column 'note' makes the events up to row \d+ of"):
        chunks_of(name, content, keep=["note"])
    assert sum(one.n_events for one in chunks_of(name, content)) == 300, "it is not kept where nobody asks"
    few = chunks_of(name, content, keep=["note"], batch_events=50)
    assert [one.n_events for one in few] == [50] * 6
    kept = [text for one in few for text in one.kept.column("note").to_pylist()]
    assert [text or "" for text in kept] == [note for _, note in rows]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("long", ["x", "é", "漢", "🎧", "x🎧"])
def test_a_text_that_is_cut_is_refused_as_it_was_and_no_other_is_cut(
    chunks_of: Read, event: EventPlan, name: str, long: str
) -> None:
    just = "y" * MAX_TEXT_BYTES
    keys = [just, just + "y", long * 5000, "z", "x" + long * 9000]
    (one,) = chunks_of(name, written(name, [(key, "") for key in keys]))
    _, (texts, _), outcomes = one.event_columns(event)
    too_long = Outcome.REFUSED_KEY_TOO_LONG
    assert outcomes.tolist() == [0, too_long, too_long, 0, too_long]
    assert texts.data.tobytes() == (just + "z").encode()


def test_texts_by_what_they_share_with_the_one_before_are_decoded_few_at_a_time(
    small: None, chunks_of: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, long = 200, "x" * 50_000
    steps: list[int] = []
    step = parquet.ParquetReader._step

    def noted(*arguments: Any) -> tuple[int, list[str]]:
        found = step(*arguments)
        steps.append(found[0])
        return found

    monkeypatch.setattr(parquet.ParquetReader, "_step", noted)
    content = parquet_of(
        {"ts": [TIME] * n, "k": [f"{long}{i}" for i in range(n)], "n": [1.0] * n},
        use_dictionary=False,
        column_encoding={"ts": "PLAIN", "k": "DELTA_BYTE_ARRAY", "n": "PLAIN"},
    )
    assert sum(one.n_events for one in chunks_of("a.parquet", content)) == n
    assert 1 <= steps[0] < 25, "each may be as long as all that is in the page"


def test_a_page_that_is_too_large_once_decompressed_is_an_error_that_names_it(
    small: None, chunks_of: Read
) -> None:
    n = 40
    content = parquet_of(
        {"ts": [TIME] * n, "k": ["x" * 50_000] * n, "n": [1.0] * n},
        use_dictionary=False,
        compression="zstd",
        data_page_size=100 * MB,
    )
    assert len(content) < 5000
    with pytest.raises(
        InvalidEventError, match=r"a.parquet, row group 0, column 'k': a page of 2000\d+ bytes"
    ):
        chunks_of("a.parquet", content)


def thrift(fields: Iterable[tuple[int, int | bytes]]) -> bytes:
    """A struct of i32 and structs, as Thrift's compact protocol has it."""
    out, last = b"", 0
    for number, value in fields:
        kind = 5 if isinstance(value, int) else 12
        out += bytes([(number - last) << 4 | kind])
        last = number
        if isinstance(value, bytes):
            out += value
            continue
        zigzag = value << 1 ^ value >> 63
        while zigzag >= 0x80:
            out += bytes([zigzag & 0x7F | 0x80])
            zigzag >>= 7
        out += bytes([zigzag])
    return out + b"\0"


def test_headers_are_read_as_they_stand() -> None:
    data = thrift([(1, 2), (2, 1 << 30), (3, 7), (7, thrift([(1, 1), (2, 0)]))]) + b"1234567"
    data += thrift([(1, 0), (2, 90), (3, 3), (5, thrift([(1, 30), (2, 8)]))]) + b"123"
    data += thrift([(1, 3), (2, 900), (3, 0), (8, thrift([(1, 90), (2, 0), (3, 90), (4, 0)]))])
    found = pages.needs_of(io.BytesIO(b"PAR1" + data), 4, 120, is_text=True, where="here")
    assert found == pages.Needs(1 << 30, row_bytes=10, all_bytes=16 * 120 + 900, has_references=True)
    found = pages.needs_of(io.BytesIO(data), 0, 120, is_text=False, where="here")
    assert found == pages.Needs(1 << 30, row_bytes=16, all_bytes=16 * 120, has_references=True)
    delta = thrift([(1, 0), (2, 5000), (3, 0), (5, thrift([(1, 1000), (2, 7)]))])
    assert pages.needs_of(io.BytesIO(delta), 0, 1000, is_text=True, where="here").row_bytes == 5000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 40,
        b"\x15",
        b"\x1c" * 100,
        thrift([(1, 0), (3, 0), (5, thrift([(1, 9), (2, 0)]))]),
        thrift([(1, 0), (2, -1), (3, 0), (5, thrift([(1, 9), (2, 0)]))]),
        thrift([(1, 0), (2, 1), (3, -90), (5, thrift([(1, 9), (2, 0)]))]),
        thrift([(1, 0), (2, 1), (3, 0), (5, thrift([(1, -9), (2, 0)]))]),
        thrift([(1, 0), (2, 1), (3, 0), (5, thrift([(1, 1), (2, 0)]))]),
    ],
)
def test_headers_that_are_none_are_an_error_and_end(data: bytes) -> None:
    with pytest.raises(InvalidEventError, match="here: "):
        pages.needs_of(io.BytesIO(data), 0, 9, is_text=True, where="here")


def test_lists_are_kept_within_the_same_limits(small: None, chunks_of: Read) -> None:
    def content(texts: list[list[str] | None], **options: Any) -> bytes:
        n = len(texts)
        return parquet_of({"ts": [TIME] * n, "k": ["a"] * n, "n": [1.0] * n, "tags": texts}, **options)

    sound: list[list[str] | None] = [["a" * 300, "b"], [], None, ["a" * 300]]
    (one,) = chunks_of("a.parquet", content(sound), keep=["tags"])
    assert one.kept.column("tags").to_pylist() == sound
    bomb = content([["x" * 50_000] * 100] * 4)
    assert len(bomb) < 10_000
    with pytest.raises(InvalidEventError, match="column 'tags' has 20000000 bytes in 4 rows"):
        chunks_of("a.parquet", bomb, keep=["tags"])
    many = content([["a"] * 100_000], use_dictionary=["ts", "k"])
    with pytest.raises(InvalidEventError, match=r"row group 0, column 'tags': lists of 2\d+ bytes once"):
        chunks_of("a.parquet", many, keep=["tags"])
    assert len(chunks_of("a.parquet", bomb)) == 1, "nobody asked for it"


def test_a_copy_does_not_fill_its_disk(chunks_of: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is larger unpacked than anybody could see."""
    content = gzip.compress(parquet_of({"ts": [TIME], "k": ["a"], "n": [1.0]}) + bytes(20 * MB))
    free = iter(range(300 * MB, 0, -10 * MB))
    monkeypatch.setattr(parquet.shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(free)))
    with pytest.raises(StorageError, match=r"has 5242880 bytes and would fill /.*: unpack it, or set TMPDIR"):
        chunks_of("a.parquet.gz", content)
