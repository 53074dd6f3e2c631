from typing import Final

NEEDED: Final[str]
PREFIX: Final[str]
OLDEST: Final[tuple[int, int, int]]
FUNCTIONS: Final[tuple[str, ...]]

def check(path: str) -> tuple[int, int, int]: ...
