"""The bytes of a file or a pipe, decompressed, in order and once.

Whatever is wrong with the bytes becomes one sentence with the file's name in it: compressed data that is
corrupt or cut short raises InvalidEventError, an operating system that fails raises StorageError with the
cause chained. gzip files of several members are read to the end; anything else behind the last member is an
error, not ignored.

`stored_bytes` counts what was taken from the file as it is stored, so that progress over a compressed file is
linear in the file's size. Everything is read on the caller's thread, so that Ctrl-C ends a read from a pipe.

A pipe may be slow, and what has come through it be wanted at once: with `flush_s` a read ends when there is
something, and `read_in_time` says when so many seconds have passed. Compressed bytes come when a block of
them is whole, whoever waits for them.
"""

from __future__ import annotations

import math
import select
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from featurestore.errors import FeatureStoreError, InvalidEventError, StorageError
from featurestore.files.names import PIPE, Compression, size_bytes_of


class ByteStream:
    def __init__(self, path: str, compression: Compression | None, flush_s: float | None = None) -> None:
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
        self._flush_s = flush_s if path == PIPE and compression is None else None
        self._due_s = time.monotonic() + (flush_s or 0.0)

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
            if self._flush_s is not None:
                return self._counted.read1(n_bytes)
            return self._plain.read(None if n_bytes < 0 else n_bytes)
        except OSError as error:
            raise self._explained(error) from error

    def read_in_time(self, n_bytes: int) -> bytes | None:
        """The same; or None where `flush_s` have passed since the last time, or since the file was opened."""
        if self._flush_s is None or self._front:
            return self.read(n_bytes)
        pieces: list[bytes] = []
        n_left = n_bytes
        while n_left:
            left_s = self._due_s - time.monotonic()
            if not pieces and left_s <= 0:
                self._due_s = time.monotonic() + self._flush_s
                return None
            if not self._counted.is_ready(0.0 if pieces else left_s):
                if pieces:
                    break
                continue
            piece = self.read(n_left)
            if not piece:
                break
            pieces.append(piece)
            n_left -= len(piece)
        return b"".join(pieces)

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

    def read1(self, n_bytes: int) -> bytes:
        """What there is, as soon as there is any."""
        data: bytes = self._file.read1(n_bytes)  # type: ignore[attr-defined]  # of a BufferedReader
        self.n_bytes += len(data)
        return data

    def is_ready(self, wait_s: float) -> bool:
        """Whether a read would end at once, or will within so many seconds."""
        try:
            number = self._file.fileno()
        except (AttributeError, OSError):  # no file of the system's
            return True
        poll = select.poll()
        poll.register(number, select.POLLIN)
        return bool(poll.poll(math.ceil(wait_s * 1000)))

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
