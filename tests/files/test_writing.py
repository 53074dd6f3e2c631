"""Training sets: every bit of every value, and whole or not at all."""

from __future__ import annotations

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import ConfigError, InvalidEventError, LimitError, StorageError
from featurestore.files import open_writer


def columns_of(kept, names, bounds=False, outcome=False):
    """The columns of a training set."""
    ends = ("", ".lower", ".upper") if bounds else ("",)
    fields = [*kept, *(pa.field(name + end, pa.float64()) for name in names for end in ends)]
    return pa.schema([*fields, *([pa.field("outcome", pa.string())] if outcome else [])])


def rows(kept, values, lower=None, upper=None, outcomes=None):
    """Some rows of it."""
    arrays = list(kept.columns)
    for i in range(values.shape[1]):
        arrays += [pa.array(each[:, i]) for each in (values, lower, upper) if each is not None]
    arrays += [] if outcomes is None else [pa.array(outcomes)]
    return pa.RecordBatch.from_arrays(arrays, [str(i) for i in range(len(arrays))])


KEPT = pa.record_batch({"id": pa.array([1, None], pa.int16()), "who": pa.array(['a"b,c', "d\ne"])})
VALUES = np.array([[1.0, 0.1], [np.nan, -np.inf]])


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.csv.gz", "out.csv.zst"])
def test_columns_stand_in_their_order(tmp_path, name):
    path = str(tmp_path / name)
    columns = columns_of(KEPT.schema, ["v.count", "v.mean"], bounds=True, outcome=True)
    with open_writer(path, columns) as writer:
        writer.write(rows(KEPT, VALUES, VALUES - 1, VALUES + 1, ["accepted", "late"]))
        writer.write(rows(KEPT, VALUES, VALUES - 1, VALUES + 1, ["accepted", "late"]))
    assert writer.n_rows == 4
    table = pq.read_table(path) if name.endswith("parquet") else pcsv.read_csv(path, parse_options=NEWLINES)
    assert table.column_names == [
        "id", "who", "v.count", "v.count.lower", "v.count.upper",
        "v.mean", "v.mean.lower", "v.mean.upper", "outcome",
    ]  # fmt: skip
    assert table["id"].to_pylist() == [1, None] * 2
    assert table["who"].to_pylist() == ['a"b,c', "d\ne"] * 2
    assert table["outcome"].to_pylist() == ["accepted", "late"] * 2
    for end, shift in (("", 0), (".lower", -1), (".upper", 1)):
        for i, feature in enumerate(["v.count", "v.mean"]):
            np.testing.assert_array_equal(table[feature + end].to_numpy(), np.tile(VALUES[:, i] + shift, 2))
            assert name != "out.parquet" or table[feature + end].type == pa.float64()


NEWLINES = pcsv.ParseOptions(newlines_in_values=True)


def test_parquet_keeps_types_and_writes_nan_not_null(tmp_path):
    path = str(tmp_path / "out.parquet")
    with open_writer(path, columns_of(KEPT.schema, ["a", "b"])) as writer:
        writer.write(rows(KEPT, VALUES))
    table = pq.read_table(path)
    assert table.schema.field("id").type == pa.int16()
    assert table["a"].null_count == 0
    assert pq.ParquetFile(path).metadata.row_group(0).column(2).compression == "ZSTD"


@settings(deadline=None)
@given(values=st.lists(st.floats(width=64), min_size=1, max_size=20))
def test_a_number_in_csv_reads_back_as_the_same_bits(values):
    with TemporaryDirectory() as folder:
        path = Path(folder, "out.csv")
        with open_writer(str(path), columns_of(pa.schema([]), ["a"])) as writer:
            writer.write(rows(pa.RecordBatch.from_arrays([], names=[]), np.array(values)[:, None]))
        with path.open(newline="") as file:
            found = [float(row["a"]) for row in csv.DictReader(file)]
    assert [repr(x) for x in found] == [repr(x) for x in values]


def test_no_rows_leave_a_file_with_its_columns(tmp_path):
    for name in ("out.parquet", "out.csv"):
        with open_writer(str(tmp_path / name), columns_of(KEPT.schema, ["a"])):
            pass
    assert pq.read_schema(tmp_path / "out.parquet").names == ["id", "who", "a"]
    assert (tmp_path / "out.csv").read_text() == '"id","who","a"\n'


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.csv.gz"])
def test_the_name_changes_hands_only_at_the_end(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    with open_writer(str(path), columns_of(KEPT.schema, ["a", "b"])) as writer:
        writer.write(rows(KEPT, VALUES))
        assert path.read_bytes() == b"old"
    assert path.read_bytes() != b"old"
    assert names_in(tmp_path) == [name]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.csv.gz"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_what_was_there(tmp_path, name, error):
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(error), open_writer(str(path), columns_of(KEPT.schema, ["a", "b"])) as writer:
        writer.write(rows(KEPT, VALUES))
        raise error
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == [name]


FULL_DISK = """
import resource, signal, sys
import numpy as np, pyarrow as pa
from featurestore.errors import StorageError
from featurestore.files import open_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with open_writer(sys.argv[1], pa.schema([("a", pa.float64())])) as writer:
        for i in range(20):
            writer.write(pa.record_batch({"a": np.random.rand(10000)}))
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.csv.gz"])
@pytest.mark.parametrize("room", [0, 50_000])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, name, room):
    path = tmp_path / name
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(room)], capture_output=True, text=True, check=True
    )
    assert f"cannot write {path}: no room for it" in done.stdout
    assert done.stderr == ""
    assert names_in(tmp_path) == []


def test_an_fsync_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def failing(_fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with (
        pytest.raises(StorageError, match="Input/output error"),
        open_writer(str(tmp_path / "out.csv"), columns_of(KEPT.schema, ["a", "b"])) as writer,
    ):
        writer.write(rows(KEPT, VALUES))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.jsonl", "the output is .parquet, .csv"),
        ("out.parquet.gz", "the output is .parquet, .csv"),
        ("out", "the name does not say the format"),
        ("none/out.csv", "there is no folder"),
        ("folder.csv", "it is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, name, words):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match=words):
        open_writer(str(tmp_path / name), columns_of(KEPT.schema, ["a"]))


def test_a_folder_without_permission_is_a_storage_error(tmp_path, monkeypatch):
    def refused(*_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(StorageError, match=r"cannot write .*out.csv: Permission denied"):
        open_writer(str(tmp_path / "out.csv"), columns_of(KEPT.schema, ["a"]))


@pytest.mark.parametrize(
    ("names", "options"),
    [(["id"], {}), (["a", "a"], {}), (["a", "a.lower"], {"bounds": True}), (["outcome"], {"outcome": True})],
)
def test_two_columns_of_one_name_are_refused(tmp_path, names, options):
    with pytest.raises(ConfigError, match=r"two columns of .* would be named"):
        open_writer(str(tmp_path / "out.csv"), columns_of(KEPT.schema, names, **options))
    assert names_in(tmp_path) == []


def test_standard_output_is_refused():
    with pytest.raises(ConfigError, match="must be a file"):
        open_writer("-", columns_of(KEPT.schema, ["a"]))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def written_csv(tmp_path, column):
    """A kept column as it stands in a CSV file, without its header."""
    kept = pa.record_batch({"x": column})
    path = tmp_path / "out.csv"
    with open_writer(str(path), kept.schema) as writer:
        writer.write(kept)
    return [line[0] if line else "" for line in list(csv.reader(path.open()))[1:]]


UUID = "00112233-4455-6677-8899-aabbccddeeff"


@pytest.mark.parametrize(
    ("column", "lines"),
    [
        (pa.array(["a", None], pa.string_view()), ["a", ""]),
        (pa.array([b"a", "é".encode()], pa.binary_view()), ["a", "é"]),
        (pa.array([b"a", b"b"], pa.binary()), ["a", "b"]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), ["ab", "cd"]),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", "1"])), ["{}", "1"]),
        (
            pa.ExtensionArray.from_storage(
                pa.uuid(), pa.array([bytes.fromhex(UUID.replace("-", "")), None], pa.binary(16))
            ),
            [UUID, ""],
        ),
    ],
    ids=lambda one: str(one.type) if isinstance(one, pa.Array) else "",
)
def test_bytes_and_uuids_are_text_in_csv(tmp_path, column, lines):
    assert written_csv(tmp_path, column) == lines


@pytest.mark.parametrize(
    "column",
    [pa.array([[1]]), pa.array([{"a": 1}]), pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))],
    ids=lambda one: str(one.type),
)
def test_csv_has_no_lists_structs_and_maps(tmp_path, column):
    with pytest.raises(ConfigError, match=r"out\.csv: column 'x' is .*, which CSV has no form for; write"):
        written_csv(tmp_path, column)
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_no_text_are_refused_with_column_and_type(tmp_path):
    with pytest.raises(InvalidEventError, match=r"column 'x' is binary and holds bytes .* UTF-8"):
        written_csv(tmp_path, pa.array([b"a", b"\xff"]))
    assert list(tmp_path.iterdir()) == []


def raising(error):
    def cannot(*_):
        raise error

    return cannot


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            pa.ArrowNotImplementedError("no kernel"),
            InvalidEventError,
            r"out\.csv: no kernel \(of 'x': string\)",
        ),
        (pa.ArrowInvalid("too wide"), InvalidEventError, r"out\.csv: too wide"),
        (pa.ArrowMemoryError("malloc of size 8"), LimitError, r"out\.csv: there is no memory for it"),
        (pa.ArrowCancelled("stop"), pa.ArrowCancelled, "stop"),
    ],
)
def test_a_kept_column_that_arrow_cannot_make_text_of(tmp_path, monkeypatch, error, kind, words):
    """Not all that it cannot do is bytes that are no text."""
    monkeypatch.setattr("featurestore.files.writing._text_column", raising(error))
    with pytest.raises(kind, match=words):
        written_csv(tmp_path, pa.array(["a"], pa.string_view()))
    assert list(tmp_path.iterdir()) == []


def test_of_many_columns_a_few_are_told(tmp_path):
    columns = {f"x{i}": pa.array([1]) for i in range(1000)}
    for words, told in (
        ("no way", r"no way \(of 'x0': int64, .*'x5': int64 and 994 more\); nothing"),
        ("column 'x7' is odd", r"odd \(of 'x7': int64\); nothing"),
    ):
        with (
            pytest.raises(InvalidEventError, match=told),
            open_writer(str(tmp_path / "out.csv"), pa.record_batch(columns).schema) as writer,
        ):
            writer._table = type(
                "Table", (), {"write_batch": raising(pa.ArrowInvalid(words)), "close": lambda self: None}
            )()
            writer.write(pa.record_batch(columns))


def test_what_arrow_cannot_write_is_one_sentence(tmp_path):
    def cannot(*_):
        raise pa.ArrowInvalid("no way")

    with (
        pytest.raises(InvalidEventError, match=r"cannot write .*out\.csv: no way \(of 'x': int64\)"),
        open_writer(str(tmp_path / "out.csv"), pa.schema([("x", pa.int64())])) as writer,
    ):
        writer._table = type("Table", (), {"write_batch": cannot, "close": lambda self: None})()
        writer.write(pa.record_batch({"x": pa.array([1])}))
    assert list(tmp_path.iterdir()) == []


def test_what_describes_a_table_is_in_parquet_and_beside_csv(tmp_path):
    for name in ("out.parquet", "out.csv.gz"):
        with open_writer(str(tmp_path / name), KEPT.schema) as writer:
            writer.write(KEPT)
            writer.describe('{"a": 1}')
    assert pq.read_metadata(tmp_path / "out.parquet").metadata[b"featurestore"] == b'{"a": 1}'
    assert (tmp_path / "out.csv.gz.meta.json").read_text() == '{"a": 1}\n'
    assert names_in(tmp_path) == ["out.csv.gz", "out.csv.gz.meta.json", "out.parquet"]


def test_no_description_ever_stands_beside_a_table_that_it_is_not_of(tmp_path, monkeypatch):
    """Wherever it ends between two names."""
    path, beside = tmp_path / "out.csv", tmp_path / "out.csv.meta.json"
    path.write_text("old")
    beside.write_text("old")
    replaced = Path.replace
    seen = []

    def look(self, target):
        seen.append((path.read_text() == "old", beside.read_text() if beside.exists() else None))
        replaced(self, target)

    monkeypatch.setattr(Path, "replace", look)
    with open_writer(str(path), KEPT.schema) as writer:
        writer.write(KEPT)
        writer.describe("new")
    assert seen == [(True, None), (False, None)]
    assert beside.read_text() == "new\n"


def test_a_failed_run_leaves_what_described_the_old_one(tmp_path):
    (tmp_path / "out.csv.meta.json").write_text("old")
    with pytest.raises(KeyError), open_writer(str(tmp_path / "out.csv"), KEPT.schema) as writer:
        writer.describe("new")
        raise KeyError
    assert names_in(tmp_path) == ["out.csv.meta.json"]
    assert (tmp_path / "out.csv.meta.json").read_text() == "old"
