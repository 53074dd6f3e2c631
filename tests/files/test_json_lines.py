"""JSON lines: values as they were written, lines that are not objects named by their number."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidEventError
from featurestore.files import json_lines, read_events
from featurestore.outcome import Outcome

T = "2020-01-01"


def line(**fields):
    return json.dumps({"ts": T, "n": 1, **fields}).encode() + b"\n"


def test_a_key_may_be_a_number_on_one_line_and_a_string_on_the_next(chunks_of, event):
    (chunk,) = chunks_of("a.jsonl", line(k=7) + line(k="007") + line(k=2**64) + line(k=7.0) + line(k=None))
    _, (keys, _), outcomes = chunk.event_columns(event)
    data, ends = keys.data.tobytes(), keys.offsets.tolist()
    assert [data[a:b] for a, b in pairwise(ends)] == [
        b"7",
        b"007",
        b"18446744073709551616",
        b"7",
        b"",
    ]
    assert keys.present.tolist() == [1, 1, 1, 1, 0]
    assert not outcomes.any()


def test_a_value_of_the_wrong_type_refuses_its_event_alone(chunks_of, event):
    lines = (
        line(k=True) + line(k="a", n="one") + line(k="b") + line(k=[1]) + line(k="c", ts=5) + line(k="\ud800")
    )
    (chunk,) = chunks_of(
        "a.jsonl", lines + b'{"ts":"2020-01-01","k":1.5}\n{"ts":"2020-01-01","n":NaN}\n{"k":1}'
    )
    wrong = int(Outcome.REFUSED_TYPE)
    assert chunk.event_columns(event)[2].tolist() == [
        wrong, wrong, 0, wrong, wrong, wrong, Outcome.REFUSED_KEY,
        Outcome.REFUSED_NOT_FINITE, Outcome.REFUSED_NO_TIME,
    ]  # fmt: skip


def test_blank_lines_crlf_byte_order_mark_and_a_missing_last_line_end(rows_of):
    content = b'\xef\xbb\xbf{"ts":"1","k":"a","n":2}\r\n\r\n  \n\t{"n":3,"k":"b","ts":"1"} \n\n{"ts":"1"}'
    assert rows_of("a.ndjson", content) == [("1", "a", 2), ("1", "b", 3), ("1", None, None)]


def test_no_lines_are_no_events(rows_of):
    assert rows_of("a.jsonl", b"") == rows_of("b.jsonl", b"\n\n") == []


def test_kept_columns_are_text_as_it_stands_or_json(chunks_of):
    content = line(k=1, z="é", y={"a": [1, None]}) + line(k=2, z=1.50, y=True) + line(k=3, n="x", z=2**70)
    (chunk,) = chunks_of("a.jsonl", content, keep=["z", "y", "n"])
    assert chunk.kept.schema.types == [pa.string(), pa.string(), pa.float64()]
    assert chunk.kept.to_pydict() == {
        "z": ["é", "1.5", str(2**70)],
        "y": ['{"a": [1, null]}', "true", None],
        "n": [1.0, 1.0, None],
    }


def test_a_kept_text_with_half_a_surrogate_pair_is_still_text(chunks_of):
    (chunk,) = chunks_of("a.jsonl", line(z="a\ud800b") + line(z="é"), keep=["z"])
    assert chunk.kept["z"].to_pylist() == ["a?b", "é"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"ts":1', ["not a JSON object", "'{\"ts\":1'"]),
        (b"null", ["NoneType is not an object"]),
        (b"[1]", ["list is not an object"]),
        (b'{"ts":1}{"ts":2}', ["more behind the value, at character 9"]),
        (b'{"ts":"\xff"}', ["not UTF-8"]),
        (b"{'ts':1}", ["double quotes"]),
        (b"[" * 100_000, ["recursion"]),
        (b"\x00", ["no value at character 1"]),
    ],
)
@pytest.mark.parametrize("n_before", [0, 3, 1000])
def test_a_broken_line_is_named_wherever_it_stands(chunks_of, monkeypatch, bad, words, n_before):
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 100)
    with pytest.raises(InvalidEventError) as caught:
        chunks_of("a.jsonl", line(k=1) * n_before + b"\n" + bad + b"\n" + line(k=2))
    for word in [f"a.jsonl, line {n_before + 2} ", *words]:
        assert word in str(caught.value)


def test_chunks_before_a_broken_line_have_been_handed_out(tmp_path, event):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(k=1) * 5 + b"{\n")
    chunks = read_events(str(path), event, batch_events=2)
    assert [next(chunks).n_events, next(chunks).n_events] == [2, 2]
    with pytest.raises(InvalidEventError, match="line 6"):
        next(chunks)


def test_a_json_array_is_explained(chunks_of):
    with pytest.raises(InvalidEventError, match="write one object per line"):
        chunks_of("a.json", b'[{"ts": 1},\n{"ts": 2}]')


def test_a_line_without_end_does_not_fill_the_memory(chunks_of, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 100)
    with pytest.raises(InvalidEventError, match=r"line 2 .* longer than 1000 bytes"):
        chunks_of("a.jsonl", line(k=1) + b'{"ts":"' + b"x" * 5000)


def test_a_key_that_no_line_has_is_a_wrong_name_if_there_is_another(chunks_of, rows_of):
    with pytest.raises(
        InvalidEventError,
        match=r"2 lines has a field 'k' \(a key; where no click has one, write null\); did you mean 'K'\?",
    ):
        chunks_of("a.jsonl", b'{"ts": "2017-03-30", "K": 1}\n{"ts": "2017-03-30", "n": 1}')
    with pytest.raises(InvalidEventError, match=r"has a field 'k' .*; there is 'page'$"):
        chunks_of("a.jsonl", b'{"ts": "2017-03-30", "page": 1}')
    at = "2017-03-30"
    assert rows_of("a.jsonl", b'{"ts": "2017-03-30", "page": 1, "k": null, "n": null}') == [(at, None, None)]
    assert rows_of("a.jsonl", b'{"ts": "2017-03-30", "n": 1}') == [(at, None, 1)]  # no name that is wrong


def test_a_time_field_that_no_line_has_is_a_wrong_name(chunks_of):
    with pytest.raises(
        InvalidEventError, match=r"none of the first 2 lines has a field 'ts'; did you mean 't'\?"
    ):
        chunks_of("a.jsonl", b'{"t":1,"k":2}\n{"t":1}\n')


def test_a_kept_column_that_no_line_has_is_a_wrong_name(chunks_of):
    with pytest.raises(InvalidEventError, match=r"'label'.*did you mean 'lable'"):
        chunks_of("a.jsonl", line(lable=1), keep=["label"])


def test_reading_is_streaming(chunks_of):
    one = line(k="a", filler="x" * 100)
    chunks = chunks_of("a.jsonl", one * 50_000, batch_events=1000)
    assert chunks[0].stored_bytes <= 2 << 20
    assert chunks[-1].stored_bytes == len(one) * 50_000


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    keys=st.lists(values | st.lists(values, max_size=2), max_size=40),
    ascii_only=st.booleans(),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    cut=st.tuples(st.integers(1, 100), st.integers(1, 15), st.integers(0, 45)),
)
def test_chunks_are_the_lines_cut_exactly(event, keys, ascii_only, line_end, cut):
    block_bytes, batch_events, start_row = cut
    lines = [json.dumps({"k": key, "ts": i}, ensure_ascii=ascii_only) for i, key in enumerate(keys)]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "BLOCK_BYTES", block_bytes)
        path = Path(folder, "a.jsonl")
        path.write_bytes(b"".join(text.encode() + line_end for text in lines))
        chunks = list(read_events(str(path), event, batch_events=batch_events, start_row=start_row))
    flat = [[] if isinstance(key, list) else key for key in keys]  # what is in one is nobody's
    assert [key for chunk in chunks for key in chunk.columns["k"]] == flat[start_row:]
    assert [i for chunk in chunks for i in chunk.columns["ts"]] == list(range(start_row, len(keys)))
    assert all(chunk.n_events == batch_events for chunk in chunks[:-1])


def test_a_number_that_no_line_has_is_a_wrong_name_if_there_is_another(chunks_of, rows_of):
    """It would be summed to 0."""
    with pytest.raises(InvalidEventError, match=r"field 'n' \(a number; .*write null\); did you mean 'nn'"):
        chunks_of("a.jsonl", b'{"ts": "2017-03-30", "k": 1, "nn": 5}')
    lines = b'{"ts": "2017-03-30", "k": "a", "page": 1}\n{"ts": "2017-03-30", "k": "a", "n": 1}\n'
    at = "2017-03-30"
    assert rows_of("a.jsonl", lines) == [(at, "a", None), (at, "a", 1)]
    assert rows_of("a.jsonl", b'{"ts": "2017-03-30", "k": "a"}') == [(at, "a", None)]
