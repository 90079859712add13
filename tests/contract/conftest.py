"""Runs of the command line are as small as those of the tests of `runs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "runs"))
