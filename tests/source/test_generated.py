"""Is featurestore/v1 what proto/generate.py writes?"""

from __future__ import annotations

import runpy
from pathlib import Path

from source import tree

KEPT = tree.PACKAGE / "v1"


def test_generated_files_are_current(tmp_path: Path) -> None:
    runpy.run_path(str(tree.ROOT / "proto/generate.py"))["generate"](tmp_path)
    made = {path.name: path.read_text() for path in (tmp_path / "featurestore/v1").iterdir()}
    kept = {p.name: p.read_text() for p in KEPT.iterdir() if p.is_file() and p.name != "__init__.py"}
    assert sorted(made) == sorted(kept)
    stale = [name for name, text in made.items() if text != kept[name]]
    assert stale == [], "run python proto/generate.py"
