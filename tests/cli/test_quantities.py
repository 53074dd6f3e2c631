"""Sizes and durations on the command line."""

from __future__ import annotations

import pytest

from featurestore.cli.quantities import bytes_of, bytes_text, seconds_of
from featurestore.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("0", 0), ("17", 17), ("1K", 1024), ("512M", 512 << 20), ("4G", 4 << 30), ("4GiB", 4 << 30),
     ("4gb", 4 << 30), ("2T", 2 << 40)],
)  # fmt: skip
def test_sizes_are_in_powers_of_1024(text, n_bytes):
    assert bytes_of(text, "--size") == n_bytes


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "G", "4 G", "4X", "٤", "1e9", "4Gi B", "9" * 19])
def test_what_is_no_size_is_named(text):
    with pytest.raises(ConfigError, match="--size is "):
        bytes_of(text, "--size")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("250ms", 0.25), ("2h", 7200), ("1d", 86400)]
)
def test_durations_are_seconds_unless_they_say_otherwise(text, seconds):
    assert seconds_of(text, "--time") == seconds


@pytest.mark.parametrize("text", ["", "-1", "s", "1 s", "1w", "1e3", "nan", "inf", "1.", "٣s"])
def test_what_is_no_duration_is_named(text):
    with pytest.raises(ConfigError, match="--time is "):
        seconds_of(text, "--time")


@pytest.mark.parametrize("n_bytes", [0, 1, 1000, 1024, 1536, 16 << 20, 1 << 30, 3 << 40])
def test_a_size_that_was_written_is_read_back(n_bytes):
    assert bytes_of(bytes_text(n_bytes), "--size") == n_bytes
    assert len(bytes_text(n_bytes)) <= 4
