"""Sizes, durations and file modes as people write them: `4G`, `512M`, `90s`, `10m`, `0660`."""

from __future__ import annotations

import re

from featurestore.errors import ConfigError

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def bytes_of(text: str, flag: str) -> int:
    """`4G`, `4GiB` and `4294967296` are one: units are powers of 1024."""
    match = re.fullmatch(r"(\d{1,18})([KMGT]?)(i?B)?", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise ConfigError(f"{flag} is {text!r}; write a whole number with K, M, G or T behind it, such as 4G")
    return int(match[1]) * _SIZES[match[2].upper()]


def seconds_of(text: str, flag: str) -> float:
    """`90`, `90s` and `1.5m` are one."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)(ms|[smhd])?", text, re.ASCII)
    if match is None:
        raise ConfigError(f"{flag} is {text!r}; write a number with ms, s, m, h or d behind it, such as 10s")
    return float(match[1]) * _SECONDS[match[2] or ""]


def mode_of(text: str, flag: str) -> int:
    """Permission bits in octal: `660` and `0660` are one."""
    if re.fullmatch(r"0?[0-7]{1,3}", text, re.ASCII) is None:
        raise ConfigError(f"{flag} is {text!r}; write an octal mode of at most 0777, such as 0660")
    return int(text, 8)


def bytes_text(n_bytes: int) -> str:
    """The way back where a unit divides it, for defaults in `--help`."""
    for unit in "TGMK":
        if n_bytes and n_bytes % _SIZES[unit] == 0:
            return f"{n_bytes // _SIZES[unit]}{unit}"
    return str(n_bytes)
