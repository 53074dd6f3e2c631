"""`featurestore ingest` of several files and patterns, and the rows that it hands back, to be fed again."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli import main
from featurestore.config import ServeConfig
from featurestore.server.serve import Server, open_store

SCHEMA = """\
version: 1
name: s
events:
  tx: {time: at, fields: {k: key, n: number, at2: string}}
views:
  v: {event: tx, key: k, windows: [1h], features: [count, sum(n)]}
services: {all: [v.*]}
"""
T = "2024-05-01T10:00:00Z"
NAMES = ("at", "k", "n", "at2", "more")
GOOD = (T, "a", "1", "x", "kept")
BAD = [
    ("soon", "b", "1", 'say "hi", twice', "two\nlines"),
    (T, "c", "one", "", " blanks "),
    ("", "d", "2", "\\N", "é;\t"),
]

Ingest = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def ingest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Ingest]:
    """ingest(*words) → exit code, the JSON (or {}), standard error."""
    settings = ServeConfig(
        data=tmp_path / "store", schema=SCHEMA, listen="localhost:0", clock="event", durability="process"
    )
    engine = open_store(settings)
    with Server(engine, settings) as server:

        def run(*words: str) -> tuple[int, dict[str, Any], str]:
            at = ("--event", "tx", "--server", str(server.address), "-o", "json", "--wait", "5")
            code = main(["ingest", *words, *at])
            captured = capsys.readouterr()
            return code, json.loads(captured.out or "{}"), captured.err

        yield run
    engine.close()


def csv_text(rows: list[tuple[str, ...]], names: tuple[str, ...] = NAMES, delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerows([names, *rows])
    return out.getvalue()


def counts(told: dict[str, Any]) -> tuple[int, int, int]:
    return told["events"], told["accepted"], told["refused"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_refused_rows_of_csv_come_back_as_they_were_and_can_be_fed_again(ingest, tmp_path, delimiter):
    stated = "\\t" if delimiter == "\t" else delimiter
    file, rejects = tmp_path / "a.csv", tmp_path / "refused.csv"
    file.write_text(csv_text([GOOD, *BAD, GOOD], delimiter=delimiter))
    more = ("--delimiter", stated, "--rejects", str(rejects))
    code, told, err = ingest(str(file), *more)
    assert code == 3
    assert counts(told) == (5, 2, 3)
    assert told["rejects"] == {"file": str(rejects), "rows": 3}
    assert f"  3 refused rows are in {rejects}\n" in err
    header, *rows = csv.reader(rejects.open(newline=""), delimiter=delimiter, strict=True)
    assert header == [*NAMES, "refused_row", "refused_reason"]
    assert [tuple(row[:5]) for row in rows] == BAD
    assert [row[5] for row in rows] == ["2", "3", "4"]
    assert rows[0][6] == "at: 'soon' is no ISO 8601 time; declare format: as strptime has it"
    # As it is, refused again, and the columns are there once.
    again = tmp_path / "again.csv"
    code, told, _ = ingest(str(rejects), "--delimiter", stated, "--rejects", str(again))
    assert (code, counts(told)) == (3, (3, 0, 3))
    twice = list(csv.reader(again.open(newline=""), delimiter=delimiter, strict=True))
    assert [row[:5] for row in twice] == [row[:5] for row in [header, *rows]]
    assert [row[5] for row in twice] == ["refused_row", "1", "2", "3"]
    # Corrected, it is taken.
    mended = [
        (T if at in ("soon", "") else at, k, "1" if n == "one" else n, *rest) for at, k, n, *rest in rows
    ]
    rejects.write_text(csv_text(mended, tuple(header), delimiter))
    assert counts(ingest(str(rejects), "--delimiter", stated)[1]) == (3, 3, 0)


def test_refused_rows_of_json_lines_come_back_as_they_were(ingest, tmp_path):
    file, rejects = tmp_path / "a.jsonl", tmp_path / "refused.jsonl"
    lines = ['{"at": "soon", "k": 18446744073709551616,  "n": 1e3, "at2": null, "x": {"y": [1.50]}}', "{}",
             f'{{"at": "{T}", "k": 1.5, "n": 1, "at2": "\\ud800"}}']  # fmt: skip
    file.write_text(f'{{"at": "{T}", "k": "a", "n": 1, "at2": "b"}}\n' + "\n\n".join(lines))
    code, told, _ = ingest(str(file), "--rejects", str(rejects))
    assert (code, counts(told)) == (3, (4, 1, 3))
    back = rejects.read_text().splitlines()
    assert [one.partition('"refused_row"')[0] for one in back] == [
        lines[0][:-1] + ", ",
        "{",
        lines[2][:-1] + ", ",
    ]
    assert [json.loads(one)["refused_row"] for one in back] == [2, 3, 4]
    again = tmp_path / "again.jsonl"
    assert counts(ingest(str(rejects), "--rejects", str(again))[1]) == (3, 0, 3)
    for before, after in zip(back, again.read_text().splitlines(), strict=True):
        assert json.loads(before) | {"refused_row": 0} == json.loads(after) | {"refused_row": 0}
        assert after.count("refused_row") == 1


def test_refused_rows_of_parquet_come_back_with_their_types(ingest, tmp_path):
    file, rejects = tmp_path / "a.parquet", tmp_path / "refused.parquet"
    table = pa.table({
        "at": [T, "soon", None], "k": pa.array([1, 2, 3], pa.int32()), "n": [1.0, float("nan"), 3.0],
        "at2": pa.array(["x", "y", "x"]).dictionary_encode(), "more": [[1], [2, 3], None],
    })  # fmt: skip
    pq.write_table(table, file)
    code, told, _ = ingest(str(file), "--rejects", str(rejects))
    assert (code, counts(told)) == (3, (3, 1, 2))
    back = pq.read_table(rejects)
    assert back.column_names == [*table.column_names, "refused_row", "refused_reason"]
    assert back.drop_columns(["refused_row", "refused_reason", "n"]).to_pylist() == (
        table.drop_columns(["n"]).slice(1).to_pylist()
    )
    assert back.schema.field("k").type == pa.int32()
    assert back.column("refused_row").to_pylist() == [2, 3]
    assert counts(ingest(str(rejects))[1]) == (2, 0, 2)


def test_more_rows_than_a_server_lists_by_itself_come_back(ingest, tmp_path):
    """The server's own refusals too: these are of a key that the client takes and of a time to come."""
    file, rejects = tmp_path / "a.csv", tmp_path / "refused.csv"
    rows = [("2999-01-01" if i % 2 else T, str(i), "1", "", "") for i in range(1000)]
    file.write_text(csv_text(rows))
    code, told, _ = ingest(str(file), "--rejects", str(rejects))
    assert (code, counts(told), told["unsent"]) == (3, (1000, 500, 500), 0)
    assert told["rejects"]["rows"] == 500
    back = list(csv.DictReader(rejects.open()))
    assert [one["k"] for one in back] == [str(i) for i in range(1, 1000, 2)]
    assert back[0]["refused_reason"].startswith(
        "at: '2999-01-01T00:00:00.000Z' is further ahead of the clock"
    )
    assert [one["field"] for one in told["refusals"]] == ["at"] * 500


def test_no_rejects_no_file_and_none_is_written_over(ingest, tmp_path):
    file, rejects = tmp_path / "a.csv", tmp_path / "refused.csv"
    file.write_text(csv_text([GOOD]))
    assert ingest(str(file), "--rejects", str(rejects))[0] == 0
    assert not rejects.exists()
    rejects.write_text("precious")
    code, _, err = ingest(str(file), "--rejects", str(rejects))
    assert code == 2
    assert "is there already" in err
    assert rejects.read_text() == "precious"
    wrong = {"a.jsonl": "name them .csv", "a.csv.gz": "without .gz", "no/a.csv": "the folder of"}
    for name, words in wrong.items():
        code, _, err = ingest(str(file), "--rejects", str(tmp_path / name))
        assert code == 2, err
        assert words in err


def test_rows_refused_before_a_broken_place_come_back(ingest, tmp_path):
    file, rejects = tmp_path / "a.csv", tmp_path / "refused.csv"
    file.write_text(csv_text([GOOD, *BAD]) + 'a,"b"c,1,,\n')
    code, _, err = ingest(str(file), "--rejects", str(rejects), "--batch-events", "2")
    assert code == 1
    assert "stopped after 4 events" in err
    assert len(list(csv.DictReader(rejects.open(newline="")))) == 3


def test_several_files_patterns_and_folders_are_told_one_by_one_and_in_sum(ingest, tmp_path):
    (tmp_path / "day").mkdir()
    for name, rows in (("day/1.csv", [GOOD] * 3), ("day/2.csv", [GOOD, BAD[0]]), ("b1.csv", [GOOD] * 5)):
        (tmp_path / name).write_text(csv_text(rows))
    (tmp_path / "day" / "_SUCCESS").write_text("")
    code, told, err = ingest(str(tmp_path / "b*.csv"), str(tmp_path / "day"))
    assert code == 3
    assert counts(told) == (10, 9, 1)
    assert [(one["file"].rpartition("/")[2], *counts(one)) for one in told["files"]] == [
        ("b1.csv", 5, 5, 0), ("1.csv", 3, 3, 0), ("2.csv", 2, 1, 1),
    ]  # fmt: skip
    assert [(one["file"].rpartition("/")[2], one["row"]) for one in told["refusals"]] == [("2.csv", 2)]
    assert f"{tmp_path}/day/1.csv: 3 events: 3 accepted\n" in err
    assert "3 files: 10 events: 9 accepted, 1 refused (1 of them unsent)\n" in err
    code, told, _ = ingest(*(str(tmp_path / name) for name in ("b1.csv", "day/1.csv", "day/2.csv")))
    assert (told["already_applied"], told["accepted"]) == (9, 0), "the same files are not counted again"


def test_a_bad_file_does_not_lose_the_counts_of_the_others(ingest, tmp_path):
    broken = csv_text([GOOD]) + 'a,"b"c,1,,\n'
    texts = {"1": csv_text([GOOD]), "2": broken, "3": "a,b\n", "4": csv_text([GOOD, GOOD])}
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    code, told, err = ingest(str(tmp_path / "*.csv"), "--batch-events", "1")
    assert code == 1
    assert counts(told) == (4, 4, 0)
    assert [(one["events"], one["error"] is None) for one in told["files"]] == [
        (1, True), (1, False), (0, False), (2, True),
    ]  # fmt: skip
    assert "2 of 4 files could not be read to their end, the first: " in err
    assert f"{tmp_path}/3.csv: no column 'at' in the header" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("1.csv", "2.csv", "--producer", "p"), "--producer stands for one file, and these are 2"),
        (("1.csv", "-"), "a pipe (-) is ingested alone"),
        (("no*.csv",), "no file matches"),
    ],
)
def test_what_several_files_cannot_be(ingest, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    for name in ("1.csv", "2.csv"):
        (tmp_path / name).write_text(csv_text([GOOD]))
    code, _, err = ingest(*words)
    assert code == 2
    assert told in err


def test_a_pipe_has_rejects_too(ingest, tmp_path, monkeypatch):
    rejects = tmp_path / "refused.csv"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(csv_text([GOOD, *BAD]).encode())))
    code, told, _ = ingest("-", "--format", "csv", "--rejects", str(rejects), "--producer", "p")
    assert (code, counts(told)) == (3, (4, 1, 3))
    assert len(list(csv.DictReader(rejects.open(newline="")))) == 3
