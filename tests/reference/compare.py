"""What "the engine agrees with the truth" means: for one value `disagreement`, for whole columns `Column`.

status     UNAVAILABLE and WARMING exactly; NOT_FOUND exactly where the value is exact, and else never where
           the window holds an event
exact      lower == value == upper, and within rounding of the truth
inexact    lower <= value <= upper, the truth within them too, and near it where an error is promised. Of a
           sketch, too: its value is its upper bound, and the few keys of these tests never meet in it
derived    also what `derived_value` makes of its operands as answered, to the last bit; its bounds hold what
           it makes of whatever lies within theirs: `derived_disagreement`
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.naive import (
    NOT_FOUND,
    PRESENT,
    UNAVAILABLE,
    WARMING,
    Derived,
    Truth,
    derived_status,
    derived_value,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Got:
    """One value as the engine answered it."""

    status: int
    value: float
    lower: float
    upper: float
    coverage: float


def disagreement(truth: Truth, got: Got) -> str | None:
    """What is wrong with the engine's answer, or None."""
    if truth.evasive and got.status == UNAVAILABLE:
        return (
            None if all(map(math.isnan, (got.lower, got.value, got.upper))) else "UNAVAILABLE with a number"
        )
    if truth.status in (UNAVAILABLE, WARMING) or truth.exact or truth.n:
        if got.status != truth.status:
            return f"status {got.status} instead of {truth.status}"
    elif got.status not in (NOT_FOUND, PRESENT):
        return f"status {got.status} of a window that holds nothing"
    if truth.status == WARMING and abs(got.coverage - truth.coverage) > 1e-6:
        return f"covered share {got.coverage} instead of {truth.coverage}"
    if truth.exact or got.status == NOT_FOUND:
        return _exact_disagreement(truth, got)
    return None if math.isnan(truth.value) else _bounded_disagreement(truth, got)


def derived_disagreement(derived: Derived, operands: Sequence[Got], got: Got) -> str | None:
    """What is wrong with a derived value, given its operands as the engine answered them, or None."""
    value = derived_value(derived, [each.value for each in operands])
    status = derived_status([each.status for each in operands], value)
    exact = all(each.lower == each.upper for each in operands)
    known = not any(math.isnan(each.value) for each in operands)
    if math.isnan(value) and known and not exact and got.status == UNAVAILABLE:
        status = UNAVAILABLE  # it divides by what may be 0, or by what is
    if status == UNAVAILABLE:
        value = math.nan
    if got.status != status:
        return f"status {got.status} instead of {status}"
    if status == WARMING and got.coverage != min(each.coverage for each in operands):
        return f"covered share {got.coverage}"
    bounds = (got.lower, got.value, got.upper)
    if exact or math.isnan(value):
        right = all(each == value or (math.isnan(each) and math.isnan(value)) for each in bounds)
        return None if right else f"{bounds} instead of exactly {value}"
    if got.value != value:
        return f"{got.value} instead of {value}"
    ends = [[e for e in {each.lower, each.value, each.upper} if math.isfinite(e)] for each in operands]
    possible = [derived_value(derived, values) for values in itertools.product(*ends)]
    outside = [each for each in possible if not (math.isnan(each) or got.lower <= each <= got.upper)]
    return f"{outside} outside the bounds {bounds}" if outside else None


def _exact_disagreement(truth: Truth, got: Got) -> str | None:
    bounds = (got.lower, got.value, got.upper)
    if math.isnan(truth.value):
        return None if all(map(math.isnan, bounds)) else f"{bounds} where there is nothing to say"
    if not got.lower == got.value == got.upper:
        return f"bounds {bounds} of a value that was never merged"
    if abs(got.value - truth.value) > truth.tolerance:
        return f"{got.value} instead of exactly {truth.value}"
    return None


def _bounded_disagreement(truth: Truth, got: Got) -> str | None:
    if not got.lower <= got.value <= got.upper:
        return f"value {got.value} outside its bounds {got.lower}, {got.upper}"
    if not got.lower - truth.tolerance <= truth.value <= got.upper + truth.tolerance:
        return f"truth {truth.value} outside the bounds {got.lower}, {got.upper}"
    if got.upper > truth.most:
        return f"upper bound {got.upper} where there are {truth.most} events"
    if got.upper >= truth.least > (got.lower if truth.surely else got.value):
        return f"{got.value} with lower bound {got.lower} where there is an event"
    if truth.error is not None and abs(got.value - truth.value) > truth.error * truth.value + truth.tolerance:
        return f"{got.value} is further than {truth.error} from {truth.value}"
    return None


@dataclass(frozen=True)
class Column:
    """One feature over many reads, beside its truth; `width` says how wide its bounds are."""

    name: str
    value: Floats
    lower: Floats
    upper: Floats
    truth: Floats  # NaN: nothing to compare with

    def check(self, must_be_exact: Bools, promised: Bools, max_error: float) -> None:
        """Raises AssertionError naming the first read that breaks a promise.

        must_be_exact   where nothing can have been merged
        promised        where `max_error` holds
        """
        tolerance = 1e-9 * np.abs(self.truth)
        known = ~np.isnan(self.truth)
        exact = self.lower == self.upper
        wrong = {
            "merged too early": known & must_be_exact & ~exact,
            "inexact although its bounds are equal": known
            & exact
            & (np.abs(self.value - self.truth) > tolerance),
            "value outside its bounds": known & ~((self.lower <= self.value) & (self.value <= self.upper)),
            "truth outside the bounds": known
            & ~((self.lower - tolerance <= self.truth) & (self.truth <= self.upper + tolerance)),
            f"further than {max_error} off": known
            & promised
            & ~(np.abs(self.value - self.truth) <= max_error * np.abs(self.truth) + tolerance),
        }
        for what, where in wrong.items():
            if where.any():
                i = int(np.argmax(where))
                raise AssertionError(
                    f"{self.name}: {what} on {int(where.sum())} of {where.size} reads, first {i}: value "
                    f"{self.value[i]!r} in [{self.lower[i]!r}, {self.upper[i]!r}], truth {self.truth[i]!r}"
                )

    def width(self, promised: Bools) -> str:
        """One line: how many reads are inexact, how wide their bounds are, how far off the values."""
        inexact = (self.lower != self.upper) & ~np.isnan(self.truth) & (self.truth != 0)
        if not inexact.any():
            return f"{self.name:<28} exact on all {self.value.size:,} reads"
        relative = (self.upper - self.lower)[inexact] / np.abs(self.truth[inexact])
        off = np.abs(self.value - self.truth)[inexact] / np.abs(self.truth[inexact])
        kept = promised[inexact]
        told = f", {off[kept].max():.2%} on the {kept.mean():.0%} with a promise" if kept.any() else ""
        return (
            f"{self.name:<28} inexact on {inexact.mean():6.2%} of reads: "
            f"width p50 {np.quantile(relative, 0.5):.2%}, p95 {np.quantile(relative, 0.95):.2%}, "
            f"max {relative.max():.2%}; off by at most {off.max():.2%}{told}"
        )
