"""Which images of each session are shown, and their pixels as evaluated and as the first update gets them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cl_prompts.logging.axis_marks import names_of, spread
from cl_prompts.logging.image_choice import pictured_indices
from cl_prompts.logging.sample_sheet import SheetRow
from cl_prompts.runs.build import Data, Learner
from cl_prompts.runs.schema import RunConfig
from cl_prompts.runs.seeds import Seeds
from cl_prompts.strategies.images import ImagePreparation
from cl_prompts.strategies.passes import EpochOrder
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.plans import Plan

SESSIONS, IMAGES = 12, 6
"""So many sessions and images of each are shown at most."""


@dataclass(frozen=True, eq=False)
class SessionSamples:
    """Images of one session.

    Attributes:
        session: from 0.
        samples: data-set indices, int64 `(n,)`.
        captions: their visible classes.
        evaluated: uint8 `(n, 3, size, size)`.
        trained: the same as the first update gets them; None for a learner whose images are never changed.
    """

    session: int
    samples: npt.NDArray[np.int64]
    captions: tuple[str, ...]
    evaluated: npt.NDArray[np.uint8]
    trained: npt.NDArray[np.uint8] | None

    def row(self, plan: Plan) -> SheetRow:
        """The same as a row of the sheet."""
        label = f"session {self.session}\n{len(plan.sessions[self.session]):,} images"
        return SheetRow(label, self.captions, self.evaluated, self.trained)


def session_samples(config: RunConfig, data: Data, learner: Learner) -> Iterator[SessionSamples]:
    """Images of the sessions, of many sessions those evenly spread; empty ones have none."""
    plan, protocol = data.plan, config.protocol
    preparation = ImagePreparation(
        learner.strategy.preparation.train_transform,
        learner.strategy.preparation.eval_transform,
        protocol.updates_per_batch,
    )
    filled = [session for session, rows in enumerate(plan.sessions) if len(rows)]
    shown = {filled[place] for place in spread(len(filled), SESSIONS)}
    changes = learner.strategy.needs.gradient and not preparation.are_fixed
    for number, session in enumerate(filled):
        if session in shown:
            samples = plan.sessions[session][_choice(plan, session)]
            images = data.train.images(samples)
            firsts = _first_of_batches(config, plan, session, number) if protocol.augment_per == "batch" else {}
            yield SessionSamples(
                session=session,
                samples=samples,
                captions=tuple(_caption(plan, session, sample) for sample in samples.tolist()),
                evaluated=_pixels(learner, preparation.for_evaluation(images)),
                trained=_pixels(learner, _trained(preparation, images, samples, firsts)) if changes else None,
            )
        # A merged stream has each sample once, and batches that began in the session before.
        for _ in range(0 if config.scenario.view == "merged" else protocol.epochs):
            preparation.presented.add(torch.from_numpy(plan.sessions[session].copy()))


def _choice(plan: Plan, session: int) -> npt.NDArray[np.int64]:
    """Places in a session: of one label an image one after the other of each class, the frequent ones first."""
    rows = plan.sessions[session]
    if isinstance(plan, MultiLabelPlan):
        return np.array(pictured_indices(plan.targets[rows] * plan.visible(session), IMAGES), dtype=np.int64)
    classes = plan.targets[rows]
    by_class = np.argsort(classes, kind="stable")
    times = np.empty_like(classes)
    times[by_class] = np.arange(len(rows)) - np.searchsorted(classes[by_class], classes[by_class])
    return np.lexsort((-plan.counts[session][classes], times))[:IMAGES]


def _caption(plan: Plan, session: int, sample: int) -> str:
    if isinstance(plan, MultiLabelPlan):
        place = int(np.flatnonzero(plan.sessions[session] == sample)[0])
        labels = np.flatnonzero(plan.targets[sample] * plan.visible(session)[place])
    else:
        labels = plan.targets[[sample]]
    return ", ".join(names_of(plan.class_names, labels)[0]) or "no visible label"


def _first_of_batches(config: RunConfig, plan: Plan, session: int, number: int) -> dict[int, int]:
    """Sample -> first sample of its batch, in the first epoch of this experience: one draw serves a whole batch."""
    protocol = config.protocol
    if config.scenario.view == "merged":
        order = plan.order
    else:
        seed = Seeds.from_root(config.seed).order if protocol.shuffle else None
        rows = plan.sessions[session]
        order = rows[EpochOrder(len(rows), seed, number * protocol.epochs).begin_epoch().numpy()]
    starts = [*range(0, len(order), protocol.stream_batch), len(order)]
    return {sample: int(order[a]) for a, b in pairwise(starts) for sample in order[a:b].tolist()}


def _trained(
    preparation: ImagePreparation, images: Tensor, samples: npt.NDArray[np.int64], firsts: dict[int, int]
) -> Tensor:
    """Float images of the first update; each alone, with the sample that its draw is keyed by."""
    keys = [firsts.get(sample, sample) for sample in samples.tolist()]
    return torch.cat(
        [
            preparation.for_training(image[None], torch.tensor([key]), 1, pass_number=0, updates=0)
            for image, key in zip(images, keys, strict=True)
        ]
    )


def _pixels(learner: Learner, images: Tensor) -> npt.NDArray[np.uint8]:
    """Normalised float images as uint8: what the network gets, for people."""
    constants = learner.eval_transform.mean, learner.eval_transform.std
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in constants)
    return (images.cpu() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
