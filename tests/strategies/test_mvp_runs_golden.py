"""MVP and MVP-R against complete runs of the published code: the strategy, the loop, replay and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from test_mvp_golden import PARAMETERS, settings_of

from cl_prompts.evaluation import Evaluator
from cl_prompts.metrics import summarise
from cl_prompts.plugins import AnytimeEvaluation, Reservoir
from cl_prompts.strategies import MVP
from scenarios import benchmark_from_plan, si_blurry_plan

GOLDEN = Path(__file__).parent.parent / "golden"
RUN = np.load(GOLDEN / "mvp_official_run01.npz")
REPLAY = np.load(GOLDEN / "mvp_official_run02_replay_repaired.npz")
META = json.loads(str(RUN["meta_json"]))
REPLAY_META = json.loads(str(REPLAY["meta_json"]))
ORDER = RUN["exposed_order"].astype(int)


class Images:
    """Stored 8 x 8 images in the layout of a data set."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = images.repeat(4, axis=2).repeat(4, axis=3).transpose(0, 2, 3, 1)
        self.targets = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.images[index], int(self.targets[index]), index


def normalise(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def normalise_for_training(images, sample_ids, pass_number):
    return normalise(images)


class StoredReplay(Reservoir):
    """The memory, replaying what the published run replayed: its draws need the loader calls of its code."""

    def __init__(self) -> None:
        super().__init__(REPLAY_META["memory_size"], REPLAY_META["memory_batchsize"], rule="released")
        self.update_number = 0
        self.slots_after_batch: list[list[int]] = []

    def draw(self, count: int) -> list[int]:
        start, end = REPLAY["replay_offsets"][self.update_number : self.update_number + 2]
        self.update_number += 1
        order = RUN["batch_flat"].tolist()
        return [order.index(index) for index in REPLAY["replay_flat"][start:end]]

    def after_training_iteration(self, strategy, *args, **kwargs):
        super().after_training_iteration(strategy)
        self.slots_after_batch.append(list(self.sampler.slots))


class Trace(SupervisedPlugin):
    """Keeps what every update did."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.accuracy, self.count = [], [], []

    def after_update(self, strategy, *args, **kwargs):
        self.loss.append(float(strategy.loss))
        self.accuracy.append(float((strategy.mb_output.argmax(-1) == strategy.mb_y).float().mean()))
        self.count.append(strategy.model.usage_counts.clone())


def by_class(name: str, values: torch.Tensor, *, back: bool = False) -> torch.Tensor:
    """The published code numbers columns by order of exposure; data-set class ids are used here."""
    if name not in ("soft_masks", "head.weight", "head.bias"):
        return values
    axis = 1 if name == "soft_masks" else 0
    permutation = torch.from_numpy(ORDER if back else np.argsort(ORDER))
    return values.index_select(axis, permutation)


def run(backbone, view: str, replay: StoredReplay | None = None):
    train = Images(RUN["train_images"], RUN["train_labels"])
    test = Images(RUN["test_images"], RUN["test_labels"])
    plan = si_blurry_plan(
        train.targets,
        num_classes=META["num_classes"],
        n_sessions=META["n_tasks"],
        disjoint_class_pct=META["n"],
        blurry_sample_pct=META["m"],
        seed=META["seed"],
        mode="official",
    )
    np.testing.assert_array_equal(plan.order, RUN["batch_flat"])
    classes, first = np.unique(RUN["train_labels"][plan.order], return_index=True)
    np.testing.assert_array_equal(classes[np.argsort(first)], ORDER)
    benchmark = benchmark_from_plan(plan, train, test, view=view)
    evaluation = AnytimeEvaluation(
        Evaluator(benchmark.test_stream[0].dataset, num_classes=plan.num_classes, transform=normalise, batch_size=32),
        every=META["eval_period"],
        rule="official",
        session_ends=plan.session_ends,
    )
    trace = Trace()
    strategy = MVP(
        backbone=backbone,
        num_classes=plan.num_classes,
        settings=settings_of(META),
        updates_per_batch=META["online_iter"],
        train_mb_size=META["batchsize"],
        train_transform=normalise_for_training,
        eval_transform=normalise,
        plugins=[trace, evaluation] if replay is None else [replay, trace, evaluation],
    )
    parameters = dict(strategy.model.named_parameters())
    with torch.no_grad():
        for ours, theirs in PARAMETERS.items():
            parameters[ours].copy_(by_class(ours, torch.from_numpy(RUN[f"init.{theirs}"])))
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return plan, strategy, trace, evaluation


def check(stored, plan, strategy, trace, evaluation):
    np.testing.assert_allclose(trace.loss, stored["loss"], atol=1e-5)
    np.testing.assert_allclose(trace.accuracy, stored["acc"], atol=1e-6)
    for ours, theirs in PARAMETERS.items():
        final = by_class(ours, dict(strategy.model.named_parameters())[ours].detach(), back=True)
        np.testing.assert_allclose(final, stored[f"final.{theirs}"], atol=1e-4)
    np.testing.assert_array_equal(strategy.model.usage_counts, stored["final.count"])

    periodic = [point for point in evaluation.points if point.kind == "periodic"]
    in_time = sorted(
        [(point.samples_seen, point.kind != "periodic", point) for point in [*periodic, *evaluation.sessions]],
        key=lambda entry: entry[:2],
    )
    np.testing.assert_array_equal([seen for seen, _, _ in in_time], stored["eval_seen"])
    np.testing.assert_allclose([point.accuracy for _, _, point in in_time], stored["eval_acc"], atol=1e-9)
    if "eval_cls_acc" in stored.files:
        for (_, _, point), theirs in zip(in_time, stored["eval_cls_acc"], strict=True):
            # By order of exposure, with 1e-5 in the divisor; columns of classes not exposed yet are zero.
            np.testing.assert_allclose((point.correct / (point.count + 1e-5))[ORDER], theirs, atol=1e-4)
    summary = summarise(evaluation.points, evaluation.sessions, plan.class_kind)
    a_auc, a_avg, a_last, f_last = stored["metrics"]
    for name, value in {"a_auc": a_auc, "a_avg": a_avg, "a_last": a_last}.items():
        assert summary[name] == pytest.approx(value, abs=1e-6)
    # The published class accuracies divide by the count plus 1e-5.
    assert summary["f_last"] == pytest.approx(f_last, abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_run_matches_published_code(mvp_backbone):
    assert RUN["eval_cls_acc"].shape == (len(RUN["eval_acc"]), META["num_classes"])
    plan, strategy, trace, evaluation = run(mvp_backbone, "sessions")
    np.testing.assert_array_equal([len(session) for session in plan.sessions], RUN["session_sizes"])
    check(RUN, plan, strategy, trace, evaluation)
    np.testing.assert_array_equal(torch.stack(trace.count), RUN["count"])
    periodic = [point for point in evaluation.points if point.kind == "periodic"]
    np.testing.assert_array_equal([point.nominal for point in periodic], RUN["anytime_x"])
    np.testing.assert_allclose([point.accuracy for point in periodic], RUN["anytime_acc"], atol=1e-9)
    np.testing.assert_allclose([point.accuracy for point in evaluation.sessions], RUN["session_acc"], atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_replay_run_matches_repaired_published_code(mvp_backbone):
    replay = StoredReplay()
    plan, strategy, trace, evaluation = run(mvp_backbone, "sessions", replay)
    check(REPLAY, plan, strategy, trace, evaluation)
    order = RUN["batch_flat"]
    for row in range(3):
        slots = np.full(replay.sampler.size, -1)
        mine = order[replay.slots_after_batch[row]]
        slots[: len(mine)] = mine
        np.testing.assert_array_equal(slots, REPLAY["slots_after_batch"][row])
