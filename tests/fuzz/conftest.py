"""Fuzzed targets use the tiny runs, tiny backbones and weight files of other rooms."""

from __future__ import annotations

import sys
from pathlib import Path

for room in ("runs", "backbones", "fuzz"):
    sys.path.append(str(Path(__file__).parents[1] / room))
