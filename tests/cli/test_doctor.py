"""`featurestore doctor`: what it says is so, and what is bad is an exit code."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import transports

from featurestore.cli import main
from featurestore.config import Limits


def findings(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    assert main(["doctor", "-o", "json", *words]) == code
    return {found["what"]: found for found in json.loads(capsys.readouterr().out)["findings"]}


def test_it_names_the_transport_that_serve_takes(capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys)["transport"]
    assert found["value"].startswith(transports.available()[0])
    assert (found["state"] == "ok") == ("native" in transports.available())


def test_a_build_without_the_native_transport_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.server import transport

    monkeypatch.setattr(transport, "available", lambda: ("grpcio",))
    found = findings(capsys)["transport"]
    assert found["state"] == "slow"
    assert "libnghttp2-dev" in found["advice"]


def test_it_measures_the_disk_where_a_store_would_be_made_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = findings(capsys, "--data", str(tmp_path / "not" / "made"))
    assert found["data"]["value"].startswith(str(tmp_path))
    assert "median" in found["durable write"]["value"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_directory_is_bad(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = findings(capsys, "--data", str(tmp_path / "file"), code=1)
    assert found["data"]["state"] == "bad"


def test_too_few_descriptors_are_told_with_the_number_that_is_needed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    found = findings(capsys)["descriptors"]
    assert found["state"] == "slow"
    assert str(Limits.max_connections + 256) in found["advice"].replace(",", "")


def test_for_people_advice_stands_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("slow  descriptors") for line in lines)
    assert any(line.startswith("descriptors: ") for line in lines)
