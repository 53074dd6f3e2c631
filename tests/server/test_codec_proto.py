"""The proto files: everything is explained, names follow the standard, numbers are those of the core."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet, SourceCodeInfo

from featurestore.v1 import types_pb2 as types

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    target = tmp_path_factory.mktemp("proto") / "all.pb"
    sources = [str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto")]
    options = ["--include_source_info", f"--descriptor_set_out={target}"]
    protoc = runpy.run_path(str(ROOT / "proto/generate.py"))["compiler"]()
    subprocess.run([*protoc, *options, *sources], check=True)
    return FileDescriptorSet.FromString(target.read_bytes()).file


# Paths in a file descriptor: message 4, enum 5, service 6; in a message field 2; in an enum value 2; in a
# service rpc 2.
EXPLAINED = {(4,), (4, 2), (5,), (5, 2), (6,), (6, 2)}


def test_every_message_field_enum_value_and_call_is_explained(files: Any) -> None:
    bare = []
    for file in files:
        places: list[SourceCodeInfo.Location] = list(file.source_code_info.location)
        for place in places:
            if (
                tuple(place.path[::2]) in EXPLAINED
                and len(place.path) % 2 == 0
                and not place.leading_comments
            ):
                bare.append(f"{file.name}:{place.span[0] + 1}")
    assert bare == []


def test_names_follow_the_buf_standard(files: Any) -> None:
    requests: list[str] = []
    for file in files:
        assert file.package == "featurestore.v1"
        for enum in file.enum_type:
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
            assert all(value.name.startswith(prefix) for value in enum.value)
            assert (enum.value[0].name, enum.value[0].number) == (prefix + "UNSPECIFIED", 0)
        for service in file.service:
            assert service.name.endswith("Service")
            for rpc in service.method:
                assert rpc.input_type == f".featurestore.v1.{rpc.name}Request"
                assert rpc.output_type == f".featurestore.v1.{rpc.name}Response"
                requests.append(rpc.input_type)
    assert len(requests) == len(set(requests)) == 19


def test_outcomes_have_the_numbers_of_the_core_but_for_accepted() -> None:
    """0 must stay unspecified on the wire, so ACCEPTED, 0 in the core, is 3 there."""
    core = dict(
        re.findall(
            r"^    (OUTCOME_\w+|REFUSED_\w+) = (\d+)",
            (ROOT / "featurestore/core/batch.pxd").read_text(),
            re.M,
        )
    )
    numbers = {("" if name.startswith("OUTCOME_") else "OUTCOME_") + name: int(n) for name, n in core.items()}
    assert numbers.pop("OUTCOME_ACCEPTED") == 0
    wire = {name: number for name, number in types.Outcome.items() if name != "OUTCOME_UNSPECIFIED"}
    assert wire.pop("OUTCOME_ACCEPTED") == 3
    assert wire == numbers
