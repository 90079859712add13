"""Draw the README's picture: anytime accuracy of several runs over the stream.

python docs/pictures/curves.py docs/pictures/curve.png LABEL=RUN_FOLDER [LABEL=RUN_FOLDER ...]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(target: Path, runs: dict[str, Path]) -> None:
    """Write `target` from the `curves.csv` of each run; dotted lines are session ends of the first."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (label, folder) in enumerate(runs.items()):
        with (folder / "curves.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        points = [row for row in rows if row["kind"] != "session"]
        seen = [int(row["samples_seen"]) for row in points]
        accuracy = [100 * float(row["accuracy"]) for row in points]
        axes.plot(seen, accuracy, label=label, linewidth=2)
        if number == 0:
            for row in rows:
                if row["kind"] == "session":
                    axes.axvline(int(row["samples_seen"]), color="0.7", linestyle=":", linewidth=1)
    axes.set_xlabel("stream samples seen (dotted: session ends)")
    axes.set_ylabel("accuracy on classes seen so far, %")
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), {word.split("=", 1)[0]: Path(word.split("=", 1)[1]) for word in sys.argv[2:]})
