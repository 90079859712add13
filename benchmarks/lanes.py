"""Evaluation, training step and memory of MULTI-LANE in both forms beside the bare frozen pass, in one run.

    python benchmarks/lanes.py                                  # both backbones, some fifteen minutes on two cores
    python benchmarks/lanes.py --quick --backbones vit_tiny_patch16_224

Lanes: 1, 5, 10 and 20; images of 224 px, 8 a batch at ViT-Ti/16 and 4 at ViT-B/16 (at least 8 in trajectories).
Every round times each piece once, in an order drawn anew, so that a busy machine slows all of them alike; the tables
give medians and ratios of medians. Weights and images are random: what is in them changes no time. Settings are those
of the released code for COCO (20 selectors, 20 prompts in 5 blocks, 80 classes shared out among the lanes).

    bare           timm's `forward_features` on the same images, all tokens in all blocks, no gradient
    evaluation     logits of all classes from all lanes; the selectors' path is known, as after the first batch of a run
    training step  `training_outputs`, backward and Adam for the newest lane; the lanes before it are finished
    trajectory     the test set after each of 8 tasks: one pass with all 8 lanes after the last, from which every
                   earlier evaluation follows; the newest lane alone after each task; or, as published, all lanes so
                   far on the images with a class seen so far, here t/8 of them after task t, the least it can be

Memory is the highest resident size of a fresh process while a piece runs, less the size before, less the same of the
bare pass (Linux; blocks above 64 KiB are returned to the system at once, so that freed memory does not hide growth).
What a piece keeps, such as the path or Adam's moments, counts. Beside it stand the counts of `lane_counts`.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import timm
import torch
from lane_counts import COUNTS, Shape, bare
from rich.console import Console
from rich.table import Table

from cl_prompts.backbones import FrozenViT
from cl_prompts.strategies import TrainingBatch
from cl_prompts.strategies.multi_lane import FORMS, MultiLaneMethod, MultiLaneSettings

BATCHES = {"vit_tiny_patch16_224": 8, "vit_base_patch16_224": 4}
"""Backbone -> images a batch where none is asked for."""
CLASSES = 80
TASKS = 8
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Piece = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """One backbone with random weights and a batch of noise."""

    backbone: FrozenViT
    images: torch.Tensor

    @classmethod
    def build(cls, name: str, batch: int) -> Bench:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0)
        return cls(FrozenViT(model), torch.randn(batch, 3, *model.patch_embed.img_size))

    def method(self, lanes: int, form: str) -> MultiLaneMethod:
        settings = MultiLaneSettings(form=form)
        method = MultiLaneMethod(self.backbone, CLASSES, settings, torch.Generator().manual_seed(0))
        for classes in torch.arange(CLASSES).chunk(lanes):
            method.begin_session(classes)
        return method

    def bare(self, images: torch.Tensor | None = None) -> Piece:
        return torch.no_grad()(lambda: self.backbone.model.forward_features(self.images if images is None else images))

    def evaluation(self, lanes: int, form: str, images: torch.Tensor | None = None) -> Piece:
        method = self.method(lanes, form)
        return torch.no_grad()(lambda: method(self.images if images is None else images))

    def newest_lane(self, lanes: int, form: str, images: torch.Tensor) -> Piece:
        method = self.method(lanes, form)
        return lambda: method.part_outputs(images, [lanes - 1])

    def training(self, lanes: int, form: str) -> Piece:
        method = self.method(lanes, form)
        optimizer = torch.optim.Adam([tensor for _, tensor in method.named_trainables()], lr=1e-3)
        targets = torch.full((len(self.images), CLASSES), float("nan"))
        targets[:, method.owner == lanes - 1] = 0.0
        allowed = torch.ones(CLASSES, dtype=torch.bool)

        def step() -> None:
            optimizer.zero_grad()
            torch.stack(
                list(method.training_outputs(TrainingBatch(self.images, targets, allowed)).losses.values())
            ).sum().backward()
            optimizer.step()

        return step

    def trajectories(self) -> dict[str, Piece]:
        images = self.images.repeat(-(-TASKS // len(self.images)), 1, 1, 1)
        tasks = range(1, TASKS + 1)
        growing = [images[: -(-task * len(images) // TASKS)] for task in tasks]

        def each(pieces: Sequence[Piece]) -> Piece:
            return lambda: [piece() for piece in pieces]

        def published(form: str) -> Piece:
            return each([self.evaluation(task, form, seen) for task, seen in zip(tasks, growing, strict=True)])

        return {
            "bare pass": self.bare(images),
            "deferred: all lanes once": self.evaluation(TASKS, "fast", images),
            "live: newest lane after each task": each([self.newest_lane(task, "fast", images) for task in tasks]),
            "as published, form=fast": published("fast"),
            "as published, form=token": published("token"),
        }

    def pieces(self, lane_counts: Sequence[int]) -> dict[tuple[str, str, int], Callable[[], Piece]]:
        """(what, form, lanes) -> what builds the piece."""
        built: dict[tuple[str, str, int], Callable[[], Piece]] = {("bare", "", 0): self.bare}
        for lanes in lane_counts:
            for form in FORMS:
                built["evaluation", form, lanes] = lambda lanes=lanes, form=form: self.evaluation(lanes, form)
                built["training", form, lanes] = lambda lanes=lanes, form=form: self.training(lanes, form)
        return built

    def shape(self) -> Shape:
        model = self.backbone.model
        return Shape(
            width=self.backbone.width,
            depth=self.backbone.depth,
            heads=self.backbone.blocks[0].attn.num_heads,
            tokens=model.patch_embed.num_patches + 1,
            patch=model.patch_embed.patch_size[0],
            classes=CLASSES,
        )


def measure(timed: dict, rounds: int, clock: Callable[[], float]) -> dict:
    """Median seconds of each piece over interleaved rounds, after one that is not counted."""
    seconds: dict = {name: [] for name in timed}
    order = list(timed)
    shuffle = random.Random(0)
    for number in range(rounds + 1):
        shuffle.shuffle(order)
        for name in order:
            started = clock()
            timed[name]()
            if number:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def resident(field: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at most since the last reset."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peaks(name: str, batch: int, lane_counts: Sequence[int], threads: int) -> dict[tuple[str, str, int], float]:
    """Growth in MiB while each piece runs once, freshly built, the larger of two; for a fresh process."""
    torch.set_num_threads(threads)
    bench = Bench.build(name, batch)
    for build in bench.pieces(lane_counts[-1:]).values():
        build()()  # code and buffers of the libraries are loaded now
    pieces = bench.pieces(lane_counts)
    found = dict.fromkeys(pieces, 0.0)
    for key, build in [*pieces.items()] * 2:
        piece = build()
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        piece()
        found[key] = max(found[key], resident("VmHWM") - before)
        del piece
    return found


def peaks_in_fresh_process(name: str, batch: int, lane_counts: Sequence[int]) -> dict[tuple[str, str, int], float]:
    """`peaks`, or nothing where the system does not tell them."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return {}
    # Read when a process starts: for the one of the memory alone, no other may inherit them.
    with (
        patch.dict(os.environ, dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(64 * 1024))),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(peaks, name, batch, lane_counts, torch.get_num_threads()).result()


def table_of(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def lanes_tables(bench: Bench, times: dict, memory: dict, lane_counts: Sequence[int], where: str) -> list[Table]:
    batch, bare_time, shape = len(bench.images), times["bare", "", 0], bench.shape()
    forms = [title for form in FORMS for title in (f"{form} ms", "/bare", f"/T={lane_counts[0]}", "extra MiB")]
    evaluation = table_of(f"evaluation of one image, {where}", ["lanes", *forms])
    training = table_of(f"training step of one lane, {where}", ["lanes", *forms])
    counted = table_of(
        f"10^9 multiply-accumulates of one image, forward (bare {bare(shape) / 1e9:.3f})", ["lanes", *COUNTS]
    )
    for lanes in lane_counts:
        for what, table, images in (("evaluation", evaluation, batch), ("training", training, 1)):
            cells = []
            for form in FORMS:
                value, first = times[what, form, lanes], times[what, form, lane_counts[0]]
                extra = memory[what, form, lanes] - memory["bare", "", 0] if memory else float("nan")
                cells += [
                    f"{1000 * value / images:.1f}",
                    f"{value / bare_time:.3f}",
                    f"{value / first:.3f}",
                    f"{extra:+.0f}",
                ]
            table.add_row(str(lanes), *cells)
        counted.add_row(str(lanes), *(f"{count(shape, lanes) / 1e9:.3f}" for count in COUNTS.values()))
    for table, images in ((evaluation, batch), (training, 1)):
        own = f"{memory['bare', '', 0]:.0f} MiB" if memory else "unknown"
        table.caption = f"bare pass: {1000 * bare_time / images:.1f} ms, {own} at its peak"
    return [evaluation, training, counted]


def trajectory_table(bench: Bench, times: dict, where: str) -> Table:
    shape, tasks = bench.shape(), range(1, TASKS + 1)

    def growing(count: Callable[[Shape, int], int]) -> float:
        return sum(task / TASKS * count(shape, task) for task in tasks)

    counted = [
        float(bare(shape)),
        float(COUNTS["fast, evaluation"](shape, TASKS)),
        float(TASKS * COUNTS["fast, evaluation"](shape, 1)),
        growing(COUNTS["fast, evaluation"]),
        growing(COUNTS["token as built"]),
    ]
    table = table_of(f"test set through {TASKS} tasks, {where}", ["way", "ms", "bare passes", "counted"])
    table.columns[0].justify = "left"
    for (name, value), count in zip(times.items(), counted, strict=True):
        table.add_row(name, f"{1000 * value:.0f}", f"{value / times['bare pass']:.2f}", f"{count / counted[0]:.2f}")
    table.caption = f"released code, by count: {growing(COUNTS['released code']) / counted[0]:.2f} bare passes"
    return table


def main() -> None:
    """Measure and print four tables a backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 5, 10, 20])
    parser.add_argument("--batch", type=int, help="images a batch; default: " + str(BATCHES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: steadier on a busy machine")
    parser.add_argument("--quick", action="store_true", help="1 and 20 lanes, 2 rounds, no trajectory, no memory")
    arguments = parser.parse_args()
    lane_counts = [1, 20] if arguments.quick else arguments.lanes
    rounds = 2 if arguments.quick else arguments.rounds
    console = Console()
    for name in arguments.backbones:
        batch = arguments.batch or BATCHES[name]
        memory = {} if arguments.quick else peaks_in_fresh_process(name, batch, lane_counts)
        bench = Bench.build(name, batch)
        timed: dict = {key: build() for key, build in bench.pieces(lane_counts).items()}
        trajectories = {} if arguments.quick else bench.trajectories()
        times = measure(timed | trajectories, rounds, CLOCKS[arguments.clock])
        where = (
            f"{name}, batch {batch}, {torch.get_num_threads()} threads, "
            f"{arguments.clock} time, median of {rounds} interleaved rounds"
        )
        for table in lanes_tables(bench, times, memory, lane_counts, where):
            console.print(table)
        if trajectories:
            console.print(trajectory_table(bench, {key: times[key] for key in trajectories}, where))


if __name__ == "__main__":
    main()
