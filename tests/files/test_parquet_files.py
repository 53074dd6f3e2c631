"""Parquet: types kept and checked, row groups passed over, broken files said to be so."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gzip
import io
import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidEventError, LimitError, StorageError
from featurestore.files import parquet as parquet_module
from featurestore.files import read_events
from featurestore.files.arrow_words import durations_in
from featurestore.files.footer import row_groups
from featurestore.plan import SourcePlan

TS = datetime(2020, 1, 1)


def parquet(columns, **options):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def clicks(n, **more):
    return {"ts": [TS] * n, "k": list(range(n)), "n": [0.5] * n, **more}


def test_kept_columns_keep_their_types(chunks_of):
    kept = {
        "id": pa.array([2**62, None], pa.int64()),
        "small": pa.array([1, 2], pa.int8()),
        "price": pa.array([Decimal("1.10"), None]),
        "tags": pa.array([["a"], []]),
        "country": pa.array(["FR", "IT"]).dictionary_encode(),
    }
    (chunk,) = chunks_of("a.parquet", parquet(clicks(2, **kept)), keep=list(kept))
    types = {**{name: array.type for name, array in kept.items()}, "country": pa.string()}
    assert dict(zip(chunk.kept.schema.names, chunk.kept.schema.types, strict=True)) == {
        **types, "tags": chunk.kept.schema.field("tags").type,
    }  # fmt: skip
    assert chunk.kept.to_pydict() == {name: array.to_pylist() for name, array in kept.items()}


def test_dictionaries_that_differ_between_row_groups_become_one_column(rows_of):
    keys = pa.array(["a", "b", "c", "c"]).dictionary_encode()
    rows = rows_of("a.parquet", parquet(clicks(4) | {"k": keys}, row_group_size=1), batch_events=3)
    assert [row[1] for row in rows] == ["a", "b", "c", "c"]


@pytest.mark.parametrize("row_group_size", [1, 3, 4, 100])
@pytest.mark.parametrize("batch_events", [1, 3, 4, 100])
@pytest.mark.parametrize("start_row", [0, 1, 3, 5, 9, 10, 99])
def test_chunks_are_exact_whatever_the_row_groups(chunks_of, row_group_size, batch_events, start_row):
    content = parquet(clicks(10), row_group_size=row_group_size)
    chunks = chunks_of("a.pq", content, batch_events=batch_events, start_row=start_row)
    assert [k for chunk in chunks for k in chunk.columns["k"].to_pylist()] == list(range(10))[start_row:]
    assert [chunk.start_row for chunk in chunks] == list(range(start_row, 10, batch_events))
    assert all(chunk.n_events == batch_events for chunk in chunks[:-1])
    assert all(chunk.stored_bytes == len(content) for chunk in chunks[-1:])


def test_no_rows_are_no_events(chunks_of):
    empty = {
        "ts": pa.array([], pa.timestamp("us")),
        "k": pa.array([], pa.int64()),
        "n": pa.array([], pa.float64()),
    }
    assert chunks_of("a.parquet", parquet(empty)) == []


def test_a_compressed_file_is_read_too(rows_of):
    assert rows_of("a.parquet.gz", gzip.compress(parquet(clicks(2)))) == rows_of(
        "a.parquet", parquet(clicks(2))
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": [[1]]}, ["column 'n' is list", "event click declares it a number"]),
        ({"k": [[1]]}, ["column 'k' is list", "declares it a key"]),
        ({"k": [True]}, ["column 'k' is bool", "declares it a key"]),
        ({"ts": [1]}, ["column 'ts' is int64", "declares it a time in iso"]),
    ],
)
def test_a_column_of_the_wrong_type_is_named(chunks_of, change, words):
    with pytest.raises(InvalidEventError) as caught:
        chunks_of("a.parquet", parquet(clicks(1) | change))
    for word in ["a.parquet", *words]:
        assert word in str(caught.value)


def test_a_missing_column_is_named_with_the_nearest(chunks_of):
    with pytest.raises(InvalidEventError, match=r"no column 'n' in the file .*did you mean 'nn'\?"):
        chunks_of("a.parquet", parquet({"ts": [TS], "k": [1], "nn": [1]}))


def test_a_column_of_nulls_is_absent(chunks_of, event):
    (chunk,) = chunks_of("a.parquet", parquet(clicks(2) | {"k": pa.nulls(2), "n": pa.nulls(2)}))
    assert not chunk.event_columns(event)[2].any()


def test_a_file_cut_short_anywhere_is_an_error(chunks_of):
    content = parquet(clicks(50))
    for length in range(0, len(content), 7):
        with pytest.raises(InvalidEventError, match="not a whole Parquet file"):
            chunks_of("a.parquet", content[:length])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_byte_in_the_data_is_an_error_or_without_consequence(event, data):
    content = bytearray(parquet(clicks(200), row_group_size=50, write_page_checksum=True, compression="none"))
    footer = int.from_bytes(content[-8:-4], "little") + 8
    at = data.draw(st.integers(4, len(content) - footer - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        path.write_bytes(content)
        # a page header has no checksum: there a flip may also be without consequence
        with contextlib.suppress(InvalidEventError, StorageError):
            keys = [k for chunk in read_events(str(path), event) for k in chunk.columns["k"].to_pylist()]
            assert keys == list(range(200))


def test_any_byte_of_the_footer_may_be_wrong(chunks_of):
    content = parquet(clicks(5))
    footer = int.from_bytes(content[-8:-4], "little") + 8
    refused = 0
    for at in range(len(content) - footer, len(content)):
        try:
            chunks_of("a.parquet", content[:at] + b"\xf3" + content[at + 1 :])
        except (InvalidEventError, StorageError):
            refused += 1
    assert refused


READ = """
import sys
from featurestore.errors import FeatureStoreError
from featurestore.files import read_events
from featurestore.plan import EventPlan, FieldPlan, Kind, TimePlan
fields = (FieldPlan("k", Kind.TEXT, True), FieldPlan("n", Kind.NUMBER, False))
event = EventPlan(1, "click", TimePlan("ts", "ms"), fields, 0, None, 0, ())
try:
    print(sum(chunk.n_events for chunk in read_events(sys.argv[1], event)))
except FeatureStoreError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_a_column_that_contradicts_itself_is_an_error_and_ends_no_process(tmp_path):
    """Arrow's accessors of a column's metadata let what its constructor throws end the process: here of more
    kinds of levels than an obligatory column has."""
    columns = {"ts": [1, 2], "k": ["a", "b"], "n": [1.0, 2.0]}
    content = parquet(columns)
    optional, obligatory = b"\x15\x0c\x25\x02\x18", b"\x15\x0c\x25\x00\x18"  # of a BYTE_ARRAY, in the schema
    assert content.count(optional) == 1
    path = tmp_path / "a.parquet"
    path.write_bytes(content.replace(optional, obligatory))
    words = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "the Parquet data is corrupt: Definition level histogram size mismatch" in done.stderr
    path.write_bytes(content)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"]


def test_the_footer_says_what_arrow_says(tmp_path):
    table = pa.table({"a": list(range(1000)), "b": [{"c": [str(i)], "d": None} for i in range(1000)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=130, use_dictionary=["a"], store_schema=True)
    facts = pq.read_metadata(path)
    with path.open("rb") as file:
        groups = row_groups(file, facts.num_columns, "a")
        assert [group.n_rows for group in groups] == [130] * 7 + [90]
        for i, group in enumerate(groups):
            for j, found in enumerate(group.columns):
                column = facts.row_group(i).column(j)
                begin = column.data_page_offset
                if column.has_dictionary_page:
                    begin = column.dictionary_page_offset
                assert found == (begin, column.num_values)
        with pytest.raises(InvalidEventError, match="the Parquet footer is corrupt: a row group of 3"):
            row_groups(file, 4, "a")


@pytest.mark.parametrize(
    ("footer", "said"),
    [
        (b"", "it ends inside a value"),
        (b"\x49", "it ends inside a value"),
        (b"\x49\x1c" + b"\x36\x02\x00" + b"\x00", "a row group of 0 columns where the schema has 1"),
        (b"\x49\x1c" + b"\x19\x1c\x00\x26\x02\x00" + b"\x00", "field 9 is missing"),
        (b"\x49\x1c" + b"\x19\x0c\x09\x02\x0c" + b"\x00", "field 1 twice"),
        (b"\x49\x16\x02\x00", "a list of kind 6 where structs belong"),
        (b"\x46\x02\x00", "field 4 is of kind 6"),
        (b"\x1c" * 40, "a value of kind 12 in 8 others"),
        (b"\x16" + b"\xff" * 20 + b"\x00", "a number without an end"),
        (b"\x1f\x00", "a value of kind 15"),
    ],
)
def test_a_footer_that_is_none_is_an_error(footer, said):
    file = io.BytesIO(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(InvalidEventError, match=said):
        row_groups(file, 1, "a.parquet")


def of_128_bits(columns):
    """A file whose writer says in Arrow's words that column `big`, of int16, has integers of 128 bits."""
    content = parquet(columns, compression="none")
    said = pq.read_metadata(io.BytesIO(content)).metadata[b"ARROW:schema"]
    words = base64.b64decode(said)
    bits = (16).to_bytes(4, "little")
    for at in [at for at in range(len(words)) if words[at : at + 4] == bits]:
        wider = words[:at] + (128).to_bytes(4, "little") + words[at + 4 :]
        made = content.replace(said, base64.b64encode(wider))
        with contextlib.suppress(pa.ArrowInvalid, OSError):
            try:
                pq.ParquetFile(io.BytesIO(made))
            except pa.ArrowNotImplementedError:
                return made
    raise AssertionError("pyarrow reads integers of 128 bits")


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_a_type_that_arrow_does_not_know_does_not_matter_in_a_column_that_is_not_used(rows_of, name):
    plain = {**clicks(3), "ts": ["1", "2", "3"]}
    content = of_128_bits({**plain, "big": pa.array([1, 2, 3], pa.int16())})
    content = gzip.compress(content) if name.endswith("gz") else content
    assert rows_of(name, content) == rows_of("b.parquet", parquet(plain))


def test_what_arrow_cannot_do_is_one_sentence_with_file_column_and_type(chunks_of, monkeypatch):
    def cannot(*_, **__):
        raise pa.ArrowNotImplementedError("no kernel")

    monkeypatch.setattr(parquet_module.ParquetReader, "_batches", cannot)
    with pytest.raises(InvalidEventError, match=r"a\.parquet cannot be read: no kernel \(of .*'k': int64"):
        chunks_of("a.parquet", parquet(clicks(1)))
    monkeypatch.setattr(parquet_module.pq, "ParquetFile", cannot)
    with pytest.raises(InvalidEventError, match=r"a\.parquet cannot be read: no kernel"):
        chunks_of("a.parquet", parquet(clicks(1)))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            pa.ArrowMemoryError("malloc of size 8"),
            LimitError,
            r"a\.parquet cannot be read: there is no memory",
        ),
        (pa.ArrowCancelled("stop"), pa.ArrowCancelled, "stop"),
    ],
)
def test_too_little_memory_and_an_interruption_are_not_the_files_fault(
    chunks_of, monkeypatch, error, kind, words
):
    def cannot(*_, **__):
        raise error

    monkeypatch.setattr(parquet_module.ParquetReader, "_batches", cannot)
    with pytest.raises(kind, match=words):
        chunks_of("a.parquet", parquet(clicks(1)))


def test_a_column_may_have_the_name_under_which_arrow_keeps_its_schema(chunks_of):
    columns = {**clicks(2), "big": pa.array([1, 2], pa.int16()), "ARROW:schema": pa.array([3, 4])}
    (chunk,) = chunks_of("a.parquet", of_128_bits(columns), keep=["ARROW:schema"])
    assert chunk.kept.to_pydict() == {"ARROW:schema": [3, 4]}


def test_maps_and_uuids_are_kept(chunks_of):
    kept = {
        "map": pa.array([[("a", "x")], []], pa.map_(pa.string(), pa.string())),
        "lists": pa.array([[{"a": "x"}], None]),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16, None], pa.binary(16))),
    }
    (chunk,) = chunks_of("a.parquet", parquet(clicks(2, **kept)), keep=list(kept))
    assert chunk.kept.to_pydict() == {name: array.to_pylist() for name, array in kept.items()}


@pytest.mark.parametrize("field", ["ts", "k", "n"])
def test_a_duration_is_no_time_no_key_and_no_number(chunks_of, event, field):
    columns = {**clicks(2), field: pa.array([1, 2], pa.duration("us"))}
    with pytest.raises(InvalidEventError, match=rf"'{field}' is duration\[us\], .* write it as a number"):
        chunks_of("a.parquet", parquet(columns), event=event)


def test_a_duration_is_not_read_as_integers_beside_a_type_that_arrow_does_not_know(chunks_of, event):
    big = {"big": pa.array([1, 2], pa.int16())}
    took = pa.array([1, 2], pa.duration("us"))
    inner = pa.array([{"took": 1}, None], pa.struct([("took", pa.duration("ms"))]))
    said = "is a duration, of which only the integers can be read"
    for columns, keep in (({"n": took}, []), ({"took": took}, ["took"]), ({"s": inner}, ["s"])):
        with pytest.raises(InvalidEventError, match=said):
            chunks_of("a.parquet", of_128_bits({**clicks(2), **columns, **big}), event=event, keep=keep)
    path = dataclasses.replace(event, sources=(SourcePlan("n", "s.took"),))
    with pytest.raises(InvalidEventError, match=rf"'s\.took' {said}"):
        chunks_of("a.parquet", of_128_bits({**clicks(2), "s": inner, **big}), event=path)
    (chunk,) = chunks_of("a.parquet", of_128_bits({**clicks(2), "took": took, **big}), event=event)
    assert chunk.n_events == 2, "it does not matter where it is not used"


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_words_that_are_cut_or_none_say_nothing_and_do_not_fail(cut):
    content = parquet({"took": pa.array([1], pa.duration("us"))})
    said = pq.read_metadata(io.BytesIO(content)).metadata[b"ARROW:schema"]
    assert durations_in(said) == ["took"]
    assert "".join(durations_in(base64.b64encode(base64.b64decode(said)[:cut]))) in (
        "",
        "t",
        "to",
        "too",
        "took",
    )
    raw = bytearray(base64.b64decode(said))
    raw[cut % len(raw)] ^= 0xFF
    assert isinstance(durations_in(base64.b64encode(raw)), list)
