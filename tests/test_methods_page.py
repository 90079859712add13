"""The page of methods shows what the methods declare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_methods_is_up_to_date():
    sys.path.insert(0, str(DOCS))
    try:
        from methods_table import PAGE, page_with_table
    finally:
        sys.path.remove(str(DOCS))
    text = PAGE.read_text(encoding="utf-8")
    assert page_with_table(text) == text, "run: python -m docs.methods_table --write"


def test_the_script_prints_a_row_for_every_method():
    printed = subprocess.run(
        [sys.executable, "-m", "docs.methods_table"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=DOCS.parent,
    ).stdout
    for name in ("mvp", "multi_lane", "ncm"):
        assert f"| `{name}` |" in printed
