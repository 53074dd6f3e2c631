"""A process that embeds the server, or has it beside others, may have set a locale with a decimal comma."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, locale, sys
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
libc = ctypes.CDLL(None)
libc.strtod.restype, libc.strtod.argtypes = ctypes.c_double, [ctypes.c_char_p, ctypes.c_void_p]
assert libc.strtod(b"1.5", None) == 1.0, "this locale has a decimal point"
from featurestore.schema import compile_schema
from featurestore.server import codec, names
from featurestore.v1 import feature_store_service_pb2 as pb
schema = names.WireSchema(compile_schema('''
version: 1
name: s
events: {e: {time: {field: ts, unit: s}, fields: {k: key, n: number}}}
views: {v: {event: e, key: k, windows: [1h], features: [count]}}
'''))
request = pb.ObserveRequest(event_type="e")
for name, text in (("ts", "1700000000.5"), ("k", "a"), ("n", "-1.25e1")):
    request.event.fields.add(name=name, text=text)
decoded = codec.decode_observe(request.SerializeToString(), schema)
print(decoded["times"].tolist(), decoded["columns"][1].tolist(), decoded["outcomes"].tolist())
request.event.fields[2].text = "1,5"
print(codec.decode_observe(request.SerializeToString(), schema)["outcomes"].tolist())
"""


def test_numbers_are_read_with_a_point_whatever_the_locale_of_the_process(tmp_path: Path) -> None:
    maker = shutil.which("localedef")
    if maker is None:
        pytest.skip("no localedef to make a locale with a decimal comma")
    made = subprocess.run(
        [maker, "-i", "de_DE", "-f", "UTF-8", "--no-archive", str(tmp_path / "de_DE.UTF-8")],
        capture_output=True,
        check=False,
    )
    if not (tmp_path / "de_DE.UTF-8").is_dir():
        pytest.skip(f"localedef made none: {made.stderr.decode()[:200]}")
    environment = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "[1700000000500] [-12.5] [0]\n[22]\n"
