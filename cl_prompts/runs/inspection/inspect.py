"""`inspect`: prints and draws what a run would be, without running it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import avalanche  # noqa: F401 -- before Matplotlib: one line about a home folder that cannot be written is enough
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from cl_prompts.backbones.records import find_record, list_unpinned, weight_records
from cl_prompts.logging import print_header, stream_picture
from cl_prompts.logging.console import short_path
from cl_prompts.logging.sample_sheet import sample_sheet
from cl_prompts.runs.build import Learner, check_device
from cl_prompts.runs.directory import RunDirectory
from cl_prompts.runs.execute import header_rows
from cl_prompts.runs.failures import SUCCESS
from cl_prompts.runs.files import atomic_file, write_json
from cl_prompts.runs.inspection.estimate import estimate
from cl_prompts.runs.inspection.measurement import measure
from cl_prompts.runs.inspection.rows import class_order_rows, cost_rows, parameter_rows, record_rows
from cl_prompts.runs.inspection.samples import SessionSamples, session_samples
from cl_prompts.runs.inspection.work import first_shown, planned_work
from cl_prompts.runs.prepared import manifest_of, prepare
from cl_prompts.runs.schema import RunConfig
from scenarios.plan import ABSENT, BLURRY, DISJOINT
from scenarios.plans import Plan

KINDS = {DISJOINT: "disjoint", BLURRY: "blurry", ABSENT: "absent"}
"""Kind of a class in a plan -> the word for it."""


def inspect(config: RunConfig) -> int:
    """Print what the run would be, and write it with pictures into a run folder's `inspection/`.

    Returns:
        The exit code 0.

    Raises:
        UserError: whatever would keep the run from starting.
    """
    started, clock = datetime.now().astimezone(), time.perf_counter()
    console = Console()
    prepared = prepare(config, check_device(config.device))
    data, learner, plan = prepared.data, prepared.learner, prepared.data.plan
    preparation = time.perf_counter() - clock
    directory = RunDirectory.create(config.output_path, config.name, started, label=f"inspect-{config.label}")
    directory.write_config(config.to_yaml())
    directory.write_plan(plan)
    directory.write_manifest(manifest_of(config, prepared, started))
    print_header(header_rows(config, data, learner), warnings=prepared.notices, console=console)
    # Of one epoch: places in the plan itself.
    first = first_shown(plan, epochs=1)
    record, unpinned = find_record(config.backbone.timm_name), list_unpinned()
    known = record_rows(record, unpinned, len(weight_records()))
    print_header({"order": class_order_rows(plan, first.tolist()), **known}, console=console)
    samples = list(session_samples(config, data, learner))
    _draw(directory.inspection, config, plan, samples)
    work = planned_work(config, data)
    measured = measure(config, data, learner)
    expected = estimate(config, data, work, measured, preparation)
    groups = parameter_groups(learner)
    costs = cost_rows(work, measured, expected, config.protocol.stream_batch)
    print_header({"trained": parameter_rows(groups), **costs}, console=console)
    backbone = {"record": None if record is None else record.model_dump(mode="json"), "not_pinned": unpinned}
    write_json(
        directory.inspection / "inspection.json",
        {
            "stream": {"sha256": plan.sha256, "description": plan.describe()},
            "class_order": _class_order(plan, first),
            "samples": [_sample_record(shown) for shown in samples],
            "backbone": learner.backbone.identity | backbone,
            "trainable_parameters": groups,
            "work": asdict(work),
            "measured": asdict(measured),
            "estimate": {**asdict(expected), "seconds": expected.seconds},
        },
    )
    written = f"{short_path(directory.path)}{os.sep}, pictures in {directory.inspection.name}{os.sep}"
    print_header({"written": written}, console=console)
    return SUCCESS


def parameter_groups(learner: Learner) -> dict[str, int]:
    """Trainable numbers of each part of the method that has a name of its own."""
    counts: Counter[str] = Counter()
    for name, tensor in learner.strategy.model.named_trainables():
        counts[name.partition(".")[0]] += tensor.numel()
    return dict(counts)


def _class_order(plan: Plan, first: Any) -> list[dict[str, Any]]:
    """Every class in the order they are first shown; those that never are come last."""
    order = np.argsort(first, kind="stable").tolist()
    return [
        {
            "class": label,
            "name": None if plan.class_names is None else plan.class_names[label],
            "kind": KINDS[int(plan.class_kind[label])],
            "home_session": int(plan.home_session[label]),
            "first_shown": int(first[label]) if first[label] < len(plan.order) else None,
        }
        for label in order
    ]


def _sample_record(shown: SessionSamples) -> dict[str, Any]:
    return {"session": shown.session, "samples": shown.samples, "classes": shown.captions}


def _draw(folder: Path, config: RunConfig, plan: Plan, samples: Sequence[SessionSamples]) -> None:
    """Write the two pictures."""
    _save(folder / "stream.png", stream_picture(plan))
    rows = [shown.row(plan) for shown in samples]
    _save(folder / "samples.png", sample_sheet(rows, title=_title(config, plan, samples)))


def _title(config: RunConfig, plan: Plan, samples: Sequence[SessionSamples]) -> str:
    protocol, sessions = config.protocol, sum(len(rows) > 0 for rows in plan.sessions)
    part = f", {len(samples)} of {sessions} sessions" if len(samples) < sessions else ""
    below = "; below, the labels that its session shows" if config.scenario.multi_label else ""
    name = f"{config.dataset_name} at {config.backbone.img_size} px{part}"
    if all(shown.trained is None for shown in samples):
        return f"{name}: each image as evaluated and as trained on{below}"
    shared = " with one draw a batch" if protocol.augment_per == "batch" else ""
    change = f"augmentation {protocol.augmentation}{shared}"
    return f"{name}: each image as evaluated, and as its first update gets it ({change}){below}"


def _save(path: Path, figure: Figure) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
