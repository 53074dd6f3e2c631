"""One decoder on trial: samples it takes, errors it may raise, and what must hold for whatever it takes.

For every damaged sample: it is decoded or refused by an error of the decoder's own (`errors`); the process
stays alive; no memory is taken out of proportion to the input; and what was decoded is what the bytes say:
written again it is the same bytes, or, where a format has several ways to say it, says the same. `check`
decodes, compares, and uses what it got as its caller would.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.memory import limited
from fuzz.mutations import damaged
from fuzz.rounds import FIRST, scaled

LAST = os.environ.get("FEATURESTORE_FUZZ_LAST")


@dataclass(frozen=True)
class Trial:
    """`check` decodes bytes and raises AssertionError where what it decoded cannot be right."""

    name: str
    samples: Sequence[bytes]
    check: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    repair: Callable[[bytes], bytes] = field(default=bytes)  # makes checksums right, so that more is reached
    rounds: int = 5000  # in full
    budget_bytes: int = 16 << 20  # beside 64 times the input
    damage: Callable[[random.Random, bytes, Sequence[bytes]], tuple[bytes, str]] = damaged


def run(trial: Trial) -> None:
    """Raises AssertionError that says how to see it again."""
    for sample in trial.samples:
        trial.check(sample)
    n_rounds, n_taken = scaled(trial.rounds), 0
    for i in range(FIRST, FIRST + n_rounds):
        rng = random.Random(f"{trial.name} {i}")
        which = rng.randrange(len(trial.samples))
        data, said = trial.damage(rng, trial.samples[which], trial.samples)
        data = trial.repair(data)
        if LAST:
            Path(LAST).write_bytes(data)
        try:
            with limited(trial.budget_bytes + 64 * len(data)):
                trial.check(data)
            n_taken += 1
        except trial.errors:
            continue
        except Exception as error:
            raise AssertionError(
                f"{trial.name}, sample {which}, round {i}: {said}: {data[:400]!r}"
            ) from error
    assert n_taken < n_rounds, f"{trial.name}: nothing was ever refused"
    assert n_taken or n_rounds < 200, (
        f"{trial.name}: nothing was ever taken, the damage is too great to test much"
    )
