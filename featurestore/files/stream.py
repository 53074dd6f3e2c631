"""The bytes of a file or a pipe, decompressed, in order and once.

Whatever is wrong with the bytes becomes one sentence with the file's name in it: compressed data that is
corrupt or cut short raises InvalidEventError, an operating system that fails raises StorageError with the
cause chained. gzip files of several members are read to the end; anything else behind the last member is an
error, not ignored.

`stored_bytes` counts what was taken from the file as it is stored, so that progress over a compressed file is
linear in the file's size. Everything is read on the caller's thread, so that Ctrl-C ends a read from a pipe.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from featurestore.errors import FeatureStoreError, InvalidEventError, StorageError
from featurestore.files.names import PIPE, Compression, size_bytes_of


class ByteStream:
    def __init__(self, path: str, compression: Compression | None) -> None:
        self.name = "standard input" if path == PIPE else path
        self.size_bytes = size_bytes_of(path)
        self.closed = False
        self._stored: BinaryIO
        try:
            if path == PIPE:
                self._stored = sys.stdin.buffer
            else:
                self._stored = Path(path).open("rb")  # noqa: SIM115  closed by close()
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error
        self._compression = compression
        self._counted = _Counted(self._stored)
        self._plain: _Counted | pa.CompressedInputStream = self._counted
        if compression is not None:
            self._plain = pa.CompressedInputStream(pa.PythonFile(self._counted, mode="r"), compression)
        self._front = b""

    @property
    def stored_bytes(self) -> int:
        return self._counted.n_bytes

    def read(self, n_bytes: int = -1) -> bytes:
        """Up to `n_bytes` bytes; none only at the end of the file."""
        if self._front:
            end = len(self._front) if n_bytes < 0 else n_bytes
            taken, self._front = self._front[:end], self._front[end:]
            return taken
        try:
            return self._plain.read(None if n_bytes < 0 else n_bytes)
        except OSError as error:
            raise self._explained(error) from error

    def put_back(self, data: bytes) -> None:
        """What was read last is read again next."""
        self._front = data + self._front

    def close(self) -> None:
        """Closes the file; standard input stays open, it is not ours."""
        self.closed = True
        if self._stored is not sys.stdin.buffer:
            self._stored.close()

    def _explained(self, error: OSError) -> FeatureStoreError:
        of_decompressor = error.errno is None  # what the system says has a number
        if of_decompressor and self._compression is not None:
            return InvalidEventError(
                f"{self.name}: the {self._compression} data is corrupt or cut short "
                f"near byte {self.stored_bytes} ({error})"
            )
        return StorageError(f"cannot read {self.name}: {error}")


class _Counted:
    """A binary file that counts what was read from it, shaped as pyarrow wants its Python files."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.n_bytes = 0
        self.closed = False

    def read(self, n_bytes: int | None = None) -> bytes:
        data = self._file.read(-1 if n_bytes is None else n_bytes)
        self.n_bytes += len(data)
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
