"""Evaluation points are made by the helper of the metric tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "metrics"))
