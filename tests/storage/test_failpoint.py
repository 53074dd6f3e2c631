"""Failpoints: the table of names, counts and actions, and the environment."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.errors import ConfigError
from featurestore.storage import failpoint


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


def test_nothing_happens_unarmed() -> None:
    for name in failpoint.NAMES:
        failpoint.reach(name)
        assert failpoint.hits(name) == 0


def test_it_fires_once_at_its_count() -> None:
    failpoint.arm("checkpoint.mid:3=enospc, recovery.mid=eio")
    failpoint.reach("checkpoint.mid")
    failpoint.reach("checkpoint.mid")
    with pytest.raises(OSError, match=r"checkpoint\.mid") as caught:
        failpoint.reach("checkpoint.mid")
    assert caught.value.errno == errno.ENOSPC
    failpoint.reach("checkpoint.mid")
    assert failpoint.hits("checkpoint.mid") == 4
    with pytest.raises(OSError, match=r"recovery\.mid") as caught:
        failpoint.reach("recovery.mid")
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    "spec",
    ["nowhere", "recovery.mid=explode", "recovery.mid:0", "recovery.mid:x", "recovery.mid:-1", ":1=kill"],
)
def test_a_typo_is_refused_and_arms_nothing(spec: str) -> None:
    with pytest.raises(ConfigError, match="failpoint"):
        failpoint.arm(f"checkpoint.mid=eio,{spec}")
    failpoint.reach("checkpoint.mid")


@pytest.mark.parametrize("spec", ["checkpoint.mid:2", "checkpoint.mid:2=kill"])
def test_kill_is_sigkill_and_is_armed_from_the_environment(spec: str) -> None:
    code = (
        "from featurestore.storage import failpoint\n"
        "failpoint.reach('checkpoint.mid'); print('once', flush=True)\n"
        "failpoint.reach('checkpoint.mid'); print('twice', flush=True)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FEATURESTORE_FAILPOINT": spec},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert child.stdout == b"once\n"


def test_the_enum_and_the_names_agree() -> None:
    text = (Path(failpoint.__file__).parent / "failpoint.pxd").read_text()
    numbered = re.findall(r"^    ([A-Z_]+) = (\d+)", text, re.M)
    places = [
        (name.lower().replace("_", ".", 1), int(number))
        for name, number in numbered
        if name != "N_FAILPOINTS"
    ]
    assert places == [(name, i) for i, name in enumerate(failpoint.NAMES)]
