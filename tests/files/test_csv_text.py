"""CSV: what is taken as it stands, what is refused alone, what ends the reading."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import ConfigError, InvalidEventError
from featurestore.files import cells, csv_text, open_events, read_events
from featurestore.outcome import Outcome
from featurestore.plan import TimePlan

T = "2020-01-01"
zstd = functools.partial(pa.compress, codec="zstd", asbytes=True)


def test_keys_keep_every_digit_and_every_zero(rows_of):
    keys = ["007", "12345678901234567890123", "007.0", "1e3", "1.50", "1.", ".0", "1.0.0", "0x1.0"]
    text = "ts,k,n\n" + "".join(f"{T},{key},1\n" for key in keys)
    assert [row[1] for row in rows_of("a.csv", text.encode())] == keys


def test_a_key_that_is_a_whole_number_is_that_however_a_data_frame_wrote_it(rows_of):
    keys = {"596.0": "596", "-7.00": "-7", "0.0": "0", "12345678901234567890123.0": "12345678901234567890123"}
    text = "ts,k,n\n" + "".join(f"{T},{key},1\n" for key in keys)
    assert [row[1] for row in rows_of("a.csv", text.encode())] == list(keys.values())


def test_columns_may_stand_in_any_order_among_others(rows_of):
    assert rows_of("a.csv", f"x,n,k,y,ts\n9,1.5,a,8,{T}\n".encode()) == [(T, "a", 1.5)]


def test_an_empty_cell_is_absent_quoted_or_not(rows_of):
    assert rows_of("a.csv", b'ts,k,n\n,"",\n') == [(None, None, None)]


@pytest.mark.parametrize("word", ["NA", "NULL", "null", "None", "nan", "-"])
def test_words_for_nothing_are_texts_like_others(rows_of, word):
    assert rows_of("a.csv", f"ts,k,n\n{T},{word},1\n".encode()) == [(T, word, 1.0)]


def test_byte_order_mark_crlf_and_blank_lines_are_no_data(rows_of):
    assert rows_of("a.csv", b"\xef\xbb\xbfts,k,n\r\n\r\n1,a,2\r\n\r\n") == [("1", "a", 2.0)]


def test_quotes_hold_commas_line_ends_and_quotes(rows_of):
    content = b'"ts","k","n"\n1,"a,b\r\nc ""d""",2\n1,e,3'
    assert rows_of("a.csv", content) == [("1", 'a,b\r\nc "d"', 2.0), ("1", "e", 3.0)]


def test_a_header_name_may_hold_a_line_end(rows_of):
    assert rows_of("a.csv", b'ts,"a\nb",k,n\n1,x,2,3\n', keep=["a\nb"]) == [("1", "2", 3.0, "x")]


def test_a_header_alone_is_no_events(rows_of):
    assert rows_of("a.csv", b"ts,k,n") == rows_of("b.csv", b"ts,k,n\r\n\r\n") == []


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1", 1.0), ("-0.5", -0.5), ("+3", 3.0), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), (" 7 ", 7.0),
        ("007", 7.0), ("true", 1.0), ("False", 0.0), ("0.1", 0.1),
        ("inf", float("inf")), ("1e400", float("inf")),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(rows_of, cell, number):
    assert rows_of("a.csv", f"ts,k,n\n{T},a,{cell}\n".encode()) == [(T, "a", number)]


@pytest.mark.parametrize("cell", ["x", "1_000", "0x10", "1e", "--1", "12,5", "1 2", "yes", "nan(1)", "é"])
def test_a_cell_that_is_no_number_refuses_its_event_alone(chunks_of, cell):
    (chunk,) = chunks_of("a.csv", f'ts,k,n\n{T},a,1\n{T},b,"{cell}"\n{T},c,3\n'.encode())
    assert chunk.refused.tolist() == [0, Outcome.REFUSED_TYPE, 0]
    assert chunk.columns["n"].to_pylist() == [1.0, None, 3.0]


def test_a_refusal_of_the_reader_stands_over_what_its_absent_cell_looks_like(chunks_of, event):
    seconds = replace(event, time=TimePlan("ts", "s"))
    (chunk,) = chunks_of("a.csv", b"ts,k,n\nnoon,a,1\n,b,1\n1,c,x\n5,d,nan\n5,e,1\n", event=seconds)
    times, _, outcomes = chunk.event_columns(seconds)
    assert outcomes.tolist() == [
        Outcome.REFUSED_TYPE,
        Outcome.REFUSED_NO_TIME,
        Outcome.REFUSED_TYPE,
        Outcome.REFUSED_NOT_FINITE,
        Outcome.ACCEPTED,
    ]
    assert times[4] == 5000


def test_a_key_that_is_not_utf8_refuses_its_event_alone(chunks_of, event):
    (chunk,) = chunks_of("a.csv", f"ts,k,n\n{T},a,1\n{T},".encode() + b"\xff,1\n")
    assert chunk.event_columns(event)[2].tolist() == [Outcome.ACCEPTED, Outcome.REFUSED_TYPE]


def test_times_in_microseconds_lose_no_digit(chunks_of, event):
    micros = replace(event, time=TimePlan("ts", "us"))
    (chunk,) = chunks_of("a.csv", b"ts,k,n\n240000000000000001,a,1\n", event=micros)
    assert chunk.columns["ts"].to_pylist() == [240000000000000001]
    assert chunk.event_columns(micros)[0].tolist() == [240000000000000]


def test_times_in_seconds_may_have_fractions(chunks_of, event):
    seconds = replace(event, time=TimePlan("ts", "s"))
    (chunk,) = chunks_of("a.csv", b"ts,k,n\n1.001,a,1\n2,b,1\n", event=seconds)
    assert chunk.event_columns(seconds)[0].tolist() == [1001, 2000]


def test_kept_columns_are_text_but_for_declared_numbers(chunks_of):
    (chunk,) = chunks_of(
        "a.csv", f"ts,k,n,z\n{T},007,1.50,01\n{T},8,x,\n".encode(), keep=["z", "k", "n", "ts"]
    )
    assert chunk.kept.schema.types == [pa.string(), pa.string(), pa.float64(), pa.string()]
    assert chunk.kept.to_pydict() == {"z": ["01", None], "k": ["007", "8"], "n": [1.5, None], "ts": [T, T]}


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", {}, ["is empty", "header"]),
        (b"\n\n", {}, ["is empty"]),
        (b"ts,k,nn\n1,2,3\n", {}, ["no column 'n' in the header", "click needs it", "did you mean 'nn'?"]),
        (b"TS,k,n\n", {}, ["no column 'ts'", "did you mean 'TS'?"]),
        (b"ts;k;n\n1;2;3\n", {}, ["no column 'ts'", "'ts;k;n'"]),
        (b"ts,k,n\n", {"keep": ["kk"]}, ["no column 'kk'", "is to be kept", "did you mean 'k'?"]),
        (b"ts,k,n,k\n", {}, ["column 'k' is in the header 2 times"]),
        (b"ts,k,n\n1,2,3\n\n1,2\n", {}, ["row 2", "2 values", "3 columns", "'1,2'"]),
        (b"ts,k,n\n1,2,3,4\n", {}, ["row 1", "4 values"]),
        (b"ts,k,n\n1,\xff,3,4\n", {}, ["row 1", "4 values", "3 columns"]),
        (b'ts,k,n\n1,2,3\n4,5,"6\n7,8,9\n', {}, ["row 2, column 'n': a quote is opened and never", "7,8,9"]),
        (b'ts,k,n\n1,2,"', {}, ["never closed"]),
        (b'ts,k,n\n1,"2,3\n4,5,6\n', {}, ["row 1, column 'k': a quote is opened and never closed"]),
        (b'ts,k,"n\n1,2,3\n', {}, ["header cannot be read"]),
        (b"ts,\xff,k,n\n", {}, ["header cannot be read", "UTF-8"]),
        ("ts,k,n\n".encode("utf-16"), {}, ["UTF-16"]),
        (b"\x1f\x8b\x08", {}, ["gzip"]),
        (b"PAR1", {}, ["Parquet"]),
        (b"ts,k,n,z\n1,2,3,ok\n1,2,3,\xff\n", {"keep": ["z"]}, ["column 'z'", "row 2", "not UTF-8"]),
    ],
)  # fmt: skip
def test_a_broken_file_names_itself_and_the_place(chunks_of, content, options, words):
    with pytest.raises(InvalidEventError) as caught:
        chunks_of("a.csv", content, **options)
    for word in ["a.csv", *words]:
        assert word in str(caught.value)


def test_a_quote_inside_an_unquoted_value_is_not_an_opened_one(rows_of):
    assert rows_of("a.csv", b'ts,k,n,z\n1,5" disk,3,"x"\n') == [("1", '5" disk', 3.0)]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst"])
@pytest.mark.parametrize("block_bytes", [20, 64, 1 << 20])
def test_a_stray_quote_swallows_no_rows(rows_of, monkeypatch, name, block_bytes):
    monkeypatch.setattr(csv_text, "BLOCK_BYTES", block_bytes)
    rows = [b'%d,203.0.113.%d,"curl/8 ""x"", y",200\n' % (i, i) for i in range(20)]
    rows += [b"%d,203.0.113.%d,curl/8,200\n" % (i, i) for i in range(20, 40)]
    for i in (20, 30):
        rows[i] = b'%d,203.0.113.%d,"Mozilla/5.0,200\n' % (i, i)
    content = b"n,k,ts,status\n" + b"".join(rows)
    packed = {"a.csv": bytes, "a.csv.gz": gzip.compress, "a.csv.zst": zstd}[name](content)
    with pytest.raises(InvalidEventError) as caught:
        rows_of(name, packed)
    where, _, found = str(caught.value).partition("row 21, column 'ts': ")
    assert where.endswith(f"{name}, ")
    assert found.startswith("behind the quote that closes '\"Mozilla/5.0,200\\n21,203")
    assert " 10 lines below comes 'Mozilla/5.0', and only a comma or the end of the line may" in found
    assert "write each quote in it twice" in found


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (b'"a"b', ["behind the quote that closes '\"a\"' comes 'b', and only a comma"]),
        (b'"a" ', ["comes ' '"]),
        (b'"a"\t', ["comes '\\t'"]),
        (b'"say \\"hi\\""', ["""closes '"say \\\\"' comes 'hi"""]),
        (b' "a"', ["blanks before the quote: ' \"'", "take them out"]),
        (b'\t "a,b"', ["blanks before the quote"]),
        (b'\\"a\\"', ["a backslash before the quote", "nothing is escaped"]),
        (b'5\\" disk', ["a backslash before the quote: '5\\\\\"'"]),
        ('"a"é'.encode(), ["comes 'é'"]),
        (b'"a"\xff', ["comes '\\\\xff'"]),
        (b'"a', ["a quote is opened and never closed: '\"a,1", "write each quote in it twice"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block_bytes", [16, 1 << 20])
def test_a_quote_where_none_may_be_names_the_cell_and_what_to_do(
    rows_of, monkeypatch, block_bytes, cell, words
):
    monkeypatch.setattr(csv_text, "BLOCK_BYTES", block_bytes)
    fine = f'{T},"a,\nb",1\n\n{T},c" d,2\n'.encode()
    with pytest.raises(InvalidEventError) as caught:
        rows_of("a.csv", b"ts,k,n\n" + fine + T.encode() + b"," + cell + b",1\n2,b,2\n" * 9)
    for word in ["a.csv, row 3, column 'k': ", *words]:
        assert word in str(caught.value)


def test_a_bad_quote_behind_the_last_column_is_named_by_its_number(rows_of):
    with pytest.raises(InvalidEventError, match="row 1, value 4: behind the quote"):
        rows_of("a.csv", b'ts,k,n\n1,2,3,"a"b\n')


@pytest.mark.parametrize(
    "content", [b'1,2\n1,"a"b,3\n', b'1,"2\n"\r1,"a"b,3\n', b'1,"a"\n1,2,"3']
)  # the earlier row is the one to repair first
def test_what_is_wrong_first_is_told_first(rows_of, content):
    with pytest.raises(InvalidEventError, match=r"row 1 .*: 2 values where the header has 3"):
        rows_of("a.csv", b"ts,k,n\n" + content)


def test_rows_before_a_bad_quote_are_read(tmp_path, event):
    path = tmp_path / "a.csv"
    path.write_bytes(b'ts,k,n\n1,a,1\n2,"b",2\n3,"c"c,3\n')
    chunks = read_events(str(path), event, batch_events=1)
    assert [next(chunks).columns["k"].to_pylist() for _ in range(2)] == [[b"a"], [b"b"]]
    with pytest.raises(InvalidEventError, match="row 3"):
        next(chunks)


@pytest.mark.parametrize(
    "cell", ['a""', 'a"b"', 'the 5 "inch', 'a\\', '"\\\\host"', '"C:\\"', '" "', '""""', '"\\"""', ' a "b"',
     'a" "b']
)  # fmt: skip
def test_quotes_that_can_mean_one_thing_only_are_taken(rows_of, cell):
    expected = next(csv.reader([cell], strict=True))
    assert [row[1] for row in rows_of("a.csv", f"ts,k,n\n{T},{cell},1\n{T},a,2\n".encode())] == [
        *expected,
        "a",
    ]


def test_a_row_without_end_does_not_fill_the_memory(chunks_of, monkeypatch):
    monkeypatch.setattr(csv_text, "BLOCK_BYTES", 64)
    monkeypatch.setattr(csv_text, "MAX_ROW_BYTES", 500)
    with pytest.raises(
        InvalidEventError, match="behind row 1: a row is longer than 500 bytes; column 'k': a quote is opened"
    ):
        chunks_of("a.csv", b'ts,k,n\n1,2,3\n1,"' + b"x\n" * 5000)


@pytest.mark.parametrize("block_bytes", [30, 64, 1000])
def test_rows_are_named_by_their_number_in_the_file_whatever_the_blocks(chunks_of, monkeypatch, block_bytes):
    monkeypatch.setattr(csv_text, "BLOCK_BYTES", block_bytes)
    with pytest.raises(InvalidEventError, match=r"row 101 .*: 1 values"):
        chunks_of("a.csv", b"ts,k,n\n" + b'1,"a\nb",3\n\n' * 100 + b"oops\n" + b"1,2,3\n" * 100)
    with pytest.raises(InvalidEventError, match="row 101, column 'n': a quote is opened"):
        chunks_of("a.csv", b"ts,k,n\n" + b'1,"a\nb",3\n\n' * 100 + b'1,2,"oops\n' + b"1,2,3\n" * 100)


@pytest.mark.parametrize("batch_events", [0, -1, (1 << 20) + 1])
def test_an_impossible_batch_size_is_refused(chunks_of, batch_events):
    with pytest.raises(ConfigError, match="batch_events"):
        chunks_of("a.csv", b"ts,k,n\n", batch_events=batch_events)


def test_keeping_a_column_twice_is_refused(chunks_of):
    with pytest.raises(ConfigError, match="twice"):
        chunks_of("a.csv", b"ts,k,n\n", keep=["k", "k"])


def test_reading_is_streaming(chunks_of):
    row = f"{T},customer,1.25,{'x' * 80}\n".encode()
    chunks = chunks_of("a.csv", b"ts,k,n,z\n" + row * 400_000, batch_events=1000)
    assert len(chunks) == 400
    assert chunks[0].stored_bytes < len(row) * 400_000 * 0.1
    assert chunks[-1].stored_bytes == len(row) * 400_000 + 9


@given(
    cell=st.text("0123456789+-.eE _xnaifNI()t", max_size=8).map(str.encode), neighbour=st.binary(max_size=4)
)
def test_what_a_cell_means_does_not_depend_on_its_neighbours(cell, neighbour):
    alone, beside = np.zeros(1, np.uint8), np.zeros(2, np.uint8)
    (one,) = cells.numbers(pa.array([cell], pa.binary()), alone).to_pylist()
    two = cells.numbers(pa.array([cell, neighbour], pa.binary()), beside).to_pylist()[0]
    assert repr(one) == repr(two)
    assert alone[0] == beside[0]
    try:
        expected = None if b"_" in cell else float(cell)
    except ValueError:
        expected = None
    if cell.strip().lower() in (b"t", b"f", b"true", b"false"):
        expected = float(cell.strip().lower()[:1] == b"t")
    assert repr(one) == repr(expected)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(texts, texts, texts.map(lambda t: t or "x")), max_size=60),
    style=st.tuples(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["\n", "\r\n"])),
    cut=st.tuples(st.integers(20, 300), st.integers(1, 20), st.integers(0, 70)),
)
def test_chunks_are_the_rows_of_the_standard_library_cut_exactly(event, rows, style, cut):
    (quoting, line_end), (block_bytes, batch_events, start_row) = style, cut
    if quoting == csv.QUOTE_MINIMAL:  # which leaves a lone CR bare, though it ends a line
        rows = [tuple(cell.replace("\r", "\r\n") for cell in row) for row in rows]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=quoting, lineterminator=line_end)
    writer.writerows([("ts", "k", "z", "n"), *((a, b, c, "1") for a, b, c in rows)])
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_text, "BLOCK_BYTES", block_bytes)
        path = Path(folder, "a.csv")
        path.write_bytes(buffer.getvalue().encode())
        chunks = list(
            read_events(str(path), event, keep=["z"], batch_events=batch_events, start_row=start_row)
        )
    expected = [tuple(cell or None for cell in row) for row in rows[start_row:]]
    found = [
        (None if a is None else a.decode(), None if b is None else b.decode(), c)
        for chunk in chunks
        for a, b, c in zip(
            chunk.columns["ts"].to_pylist(),
            chunk.columns["k"].to_pylist(),
            chunk.kept["z"].to_pylist(),
            strict=True,
        )
    ]
    assert found == expected
    assert [chunk.start_row for chunk in chunks] == list(
        range(start_row, start_row + len(expected), batch_events)
    )
    assert all(chunk.n_events == batch_events for chunk in chunks[:-1])


def strictly(text, delimiter=","):
    """The rows of Python's reader; None where it errs, or takes a quote of other dialects for a value's."""
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row
        ]
    except csv.Error:
        return None
    cells = [
        cell
        for cell, _ in re.findall(rf'("(?:[^"]|"")*"|[^{delimiter}\r\n]*)([{delimiter}]|\r\n|\r|\n|\Z)', text)
    ]
    blanks = " \t".replace(delimiter, "")
    if any(re.match(rf'[{blanks}]+"|[^"].*\\"|\\"', cell) for cell in cells):
        return None
    return rows


pieces = st.lists(
    st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", " ", "\t", "\\", "a", "é"]), max_size=5
)
cell_texts = st.one_of(
    st.text("aé5 \\", max_size=3),
    pieces.map(lambda some: '"' + "".join(some).replace('"', '""') + '"'),
    st.text('a" \\', max_size=4),
    pieces.map("".join),
)
lines = st.tuples(cell_texts, cell_texts, st.sampled_from(["\n", "\r\n", "\n\n", "\r"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=1000)
@given(
    text=st.lists(lines, max_size=8).map(lambda all: "".join(f"1,{a},{b},2{end}" for a, b, end in all)),
    block_bytes=st.one_of(st.integers(1, 40), st.just(1 << 20)),
    is_packed=st.booleans(),
    delimiter=st.sampled_from(",,;|\t "),
)
def test_where_the_strict_reader_of_the_standard_library_errs_so_do_we(
    event, text, block_bytes, is_packed, delimiter
):
    text = text.replace(",", delimiter)
    expected = strictly(text, delimiter)
    if expected is not None and any(len(row) != 4 for row in expected):
        expected = None
    content = delimiter.join(["ts", "k", "z", "n"]).encode() + b"\n" + text.encode()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "a.csv.gz" if is_packed else "a.csv")
        path.write_bytes(gzip.compress(content, 1) if is_packed else content)
        try:
            with open_events(str(path), event, keep=["ts", "k", "z"], delimiter=delimiter) as reader:
                patch.setattr(csv_text, "BLOCK_BYTES", block_bytes)
                chunks = list(reader.chunks(3))
        except InvalidEventError:
            assert expected is None, "Python's reader takes it"
            return
    assert expected is not None, "Python's reader does not take it"
    found = [
        row for chunk in chunks for row in zip(*(c.to_pylist() for c in chunk.kept.columns), strict=True)
    ]
    assert found == [tuple(cell or None for cell in row[:3]) for row in expected]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(text=st.text(',"\na', max_size=40), block_bytes=st.integers(1, 20))
def test_blocks_make_no_difference_to_any_text(event, text, block_bytes):
    def read(n_bytes):
        with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            path = Path(folder, "a.csv")
            path.write_text("ts,k,n\n" + text)
            with open_events(str(path), event, keep=["k"]) as reader:
                patch.setattr(csv_text, "BLOCK_BYTES", n_bytes)
                try:
                    return [chunk.kept["k"].to_pylist() for chunk in reader.chunks(1)]
                except InvalidEventError as error:
                    return str(error).partition(path.name)[2]

    assert read(block_bytes) == read(1000)


@pytest.mark.parametrize("delimiter", ['"', "\n", "\r", "\0", "\\", "", ",,", "é", "\\n"])
def test_what_separates_nothing_is_refused(chunks_of, delimiter):
    with pytest.raises(ConfigError, match="the delimiter is"):
        chunks_of("a.csv", b"ts,k,n\n", delimiter=delimiter)


@pytest.mark.parametrize(
    ("delimiter", "stated"), [(";", ";"), ("\t", "\\t"), ("\t", "\t"), ("|", "|"), (" ", " ")]
)
def test_other_delimiters_separate_and_a_comma_is_part_of_a_value(rows_of, delimiter, stated):
    text = f'ts;k;n\n{T};a,b;1\n{T};"x;""y""";2\n'.replace(";", delimiter)
    assert rows_of("a.csv", text.encode(), delimiter=stated) == [
        (T, "a,b", 1.0),
        (T, f'x{delimiter}"y"', 2.0),
    ]


def test_the_delimiter_that_is_missing_is_advised(chunks_of):
    for mark, told in ((";", "';'"), ("\t", r"'\\t'"), ("|", r"'\|'")):
        with pytest.raises(
            InvalidEventError, match=f"which is one column .separated otherwise. --delimiter {told}"
        ):
            chunks_of("a.csv", f"ts{mark}k{mark}n\n".encode())


def test_a_bad_quote_between_other_delimiters_is_told_with_them(chunks_of):
    with pytest.raises(
        InvalidEventError, match=r"row 1, column 'k': .* and only ';' or the end of the line may"
    ):
        chunks_of("a.csv", b'ts;k;n\n1;"a"b;2\n', delimiter=";")
    with pytest.raises(InvalidEventError, match="and only a tab or the end"):
        chunks_of("a.csv", b'ts\tk\tn\n1\t"a"b\t2\n', delimiter="\\t")
