"""Bytes of files and pipes: compression, damage, and systems that fail."""

from __future__ import annotations

import errno
import gzip
import io
import os
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest

from featurestore.errors import ConfigError, InvalidEventError, StorageError
from featurestore.files import open_events, read_events, stream
from featurestore.files.names import did_you_mean, format_of

CSV = b"ts,k,n\n" + b"2020-01-01,a,1\n" * 5000
LINES = b'{"ts":"2020-01-01","k":"a","n":1}\n' * 5000


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(("name", "content"), [("a.csv", CSV), ("a.jsonl", LINES)])
def test_compressed_files_hold_the_same_events(rows_of, name, content):
    plain = rows_of(name, content)
    assert len(plain) == 5000
    assert rows_of(f"{name}.gz", gzip.compress(content)) == plain
    assert rows_of(f"{name}.zst", zstd(content)) == plain


def test_a_gzip_file_of_several_members_is_read_to_its_end(chunks_of):
    (chunk,) = chunks_of("a.csv.gz", gzip.compress(CSV) + gzip.compress(b"2020-01-01,b,1\n" * 7))
    assert chunk.n_events == 5007
    assert chunk.stored_bytes == len(gzip.compress(CSV)) + len(gzip.compress(b"2020-01-01,b,1\n" * 7))


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv.gz", CSV), ("a.jsonl.gz", LINES), ("a.parquet.gz", b"PAR1")]
)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-8] + b"\0\0\0\0" + data[-4:],
        lambda data: data + b"garbage",
        lambda data: b"no gzip",
    ],
    ids=["cut by a byte", "cut in half", "wrong checksum", "garbage behind", "not gzip"],
)
def test_damaged_gzip_is_named(chunks_of, name, content, damage):
    with pytest.raises(
        InvalidEventError, match=rf"{name}: the gzip data is corrupt or cut short near byte \d+"
    ):
        chunks_of(name, damage(gzip.compress(content)))


def test_damaged_zstd_is_named(chunks_of):
    with pytest.raises(InvalidEventError, match="the zstd data is corrupt or cut short"):
        chunks_of("a.csv.zst", zstd(CSV)[:-10])


def test_a_file_that_is_not_there_is_named(event, tmp_path):
    with pytest.raises(StorageError, match=r"cannot open .*none.csv: No such file"):
        open_events(str(tmp_path / "none.csv"), event)


def test_a_folder_is_not_a_file(event, tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        open_events(str(tmp_path / "a.csv"), event)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_a_disk_that_fails_is_a_storage_error(event, tmp_path, monkeypatch, name):
    content = {"a.csv": CSV, "a.csv.gz": gzip.compress(CSV + os.urandom(1 << 20)), "a.jsonl": LINES}[name]
    (tmp_path / name).write_bytes(content)
    read = stream._Counted.read

    def failing(self, n_bytes=None):
        if self.n_bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, 1000)

    monkeypatch.setattr(stream._Counted, "read", failing)
    with pytest.raises(StorageError, match=f"cannot read .*{name}: .*Input/output error"):
        list(read_events(str(tmp_path / name), event))


@pytest.mark.parametrize(
    ("stated", "content"),
    [("csv", CSV), ("jsonl", LINES), ("csv.gz", gzip.compress(CSV))],
)
def test_standard_input_is_read_in_the_stated_format(event, monkeypatch, stated, content):
    stdin = io.BytesIO(content)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    with open_events("-", event, stated_format=stated) as reader:
        assert sum(chunk.n_events for chunk in reader.chunks()) == 5000
        assert reader.size_bytes is None
        assert reader.name == "standard input"
    assert not stdin.closed


def test_parquet_comes_through_a_pipe_too(event, monkeypatch, tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"ts": ["2020-01-01"], "k": ["a"], "n": [1.0]}), tmp_path / "a.parquet")
    stdin = io.BytesIO((tmp_path / "a.parquet").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    (chunk,) = read_events("-", event, stated_format="parquet")
    assert chunk.columns["k"].to_pylist() == ["a"]


def test_a_pipe_without_a_format_is_not_guessed(event):
    with pytest.raises(ConfigError, match="format of a pipe must be given"):
        open_events("-", event)


@pytest.mark.parametrize(
    ("path", "kind", "compression"),
    [
        ("a.csv", "csv", None),
        ("a.b.CSV.GZ", "csv", "gzip"),
        ("/x.y/a.ndjson.zst", "jsonl", "zstd"),
        ("a.json", "jsonl", None),
        ("a.pq", "parquet", None),
    ],
)
def test_the_format_follows_from_the_name(path, kind, compression):
    found = format_of(path)
    assert (found.kind, found.compression) == (kind, compression)


@pytest.mark.parametrize("path", ["a", "a.txt", "a.gz", "a.csv.bz2", ".csvx", ""])
def test_a_name_that_says_no_format_is_refused(path):
    with pytest.raises(ConfigError, match="the name does not say the format"):
        format_of(path)


def test_a_stated_format_that_is_unknown_is_refused():
    with pytest.raises(ConfigError, match="unknown format 'tsv'"):
        format_of("a.csv", "tsv")


def test_suggestions_are_the_nearest_name_or_what_there_is():
    assert did_you_mean("tx_amnt", ["tx_amount", "b"]) == "; did you mean 'tx_amount'?"
    assert did_you_mean("K", ["k", "b"]) == "; did you mean 'k'?"
    assert did_you_mean("zzz", ["a", "b"]) == "; there is 'a', 'b'"
    assert did_you_mean("zzz", [f"a{i}" for i in range(20)]).endswith("'a11' and 8 more")
    assert did_you_mean("zzz", []) == ""
