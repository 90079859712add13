"""`prepare`: everything of a run up to its first batch, for whoever trains it or only looks at it."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import torch

from cl_prompts.logging import reading_progress
from cl_prompts.runs.backbone_rows import input_record
from cl_prompts.runs.build import Data, Learner, build_data, build_learner, build_run_backbone, check_test_classes
from cl_prompts.runs.manifest import make_manifest
from cl_prompts.runs.schema import RunConfig
from cl_prompts.runs.seeds import Seeds
from cl_prompts.strategies.foreign import package_of
from scenarios.duplicates import SharedImages, shared_images
from scenarios.plan import StreamPlanWarning


@dataclass
class Prepared:
    """A run that could begin.

    Attributes:
        data: images and stream.
        learner: strategy, benchmark and evaluation.
        device: where it computes.
        notices: sentences that a reader of the results should know, beside the warnings of the stream.
        shared: images that are in the training and in the test part.
    """

    data: Data
    learner: Learner
    device: torch.device
    notices: list[str]
    shared: SharedImages


def prepare(config: RunConfig, device: torch.device) -> Prepared:
    """Load weights and images, decide the stream and build what learns and what measures it."""
    with warnings.catch_warnings():
        # The header shows the plan's own warnings; Avalanche warns that nothing of its own prints, as intended.
        warnings.simplefilter("ignore", StreamPlanWarning)
        warnings.filterwarnings("ignore", message="No loggers specified")
        # Before the images: reading them may take minutes, and weights that do not fit are known in seconds.
        backbone = build_run_backbone(config)
        data = build_data(config, None if config.progress == "none" else reading_progress())
        untested = check_test_classes(data)
        learner = build_learner(config, data, device, backbone)
    model, shared = learner.strategy.model, shared_images(data.train, data.test)
    notes = (backbone.notice, *model.notices(), *untested, shared.notice, *data.train.notes, *data.test.notes)
    return Prepared(data, learner, device, [text for text in notes if text], shared)


def manifest_of(config: RunConfig, prepared: Prepared, started: datetime) -> dict[str, Any]:
    """The content of `manifest.json`: what every number of the run rests on."""
    data, plan, learner = prepared.data, prepared.data.plan, prepared.learner
    return make_manifest(
        command=sys.argv,
        started=started,
        device=str(prepared.device),
        hashes={
            "plan": plan.sha256,
            "backbone": learner.backbone.identity | {"normalisation": input_record(config.backbone, data.train)},
            "train": data.train.identity,
            "test": data.test.identity,
        },
        # Of the plan itself: a saved one keeps the seed it was made with.
        seeds={"plan": plan.requested["seed"], **asdict(Seeds.from_root(config.seed))},
        strategy={
            "name": config.strategy_name,
            **package_of(config.strategy_name),
            **learner.strategy.model.effective_settings(),
        },
        needs=config.strategy.declared_needs().model_dump(mode="json"),
        deviations=config.strategy.deviations(),
        notices=[*prepared.notices, *plan.warnings],
        skipped={"train": data.train.skipped, "test": data.test.skipped},
        shared_images=prepared.shared.to_dict(),
    )
