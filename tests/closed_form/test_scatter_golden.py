"""Means, scatter and discriminant against the outputs of the published streaming LDA codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_prompts.closed_form.scatter import ClassScatter, linear_discriminant
from cl_prompts.strategies import SLDASettings, TrainingBatch
from cl_prompts.strategies.slda import SLDAMethod

GOLDEN = Path(__file__).parent.parent / "golden"
STREAMS = sorted(GOLDEN.glob("slda_avalanche_*.npz"))
BATCHES = sorted(GOLDEN.glob("slda_gaclrepo*.npz"))


def stored_tensors(path: Path) -> dict[str, Tensor]:
    with np.load(path) as stored:
        return {key: torch.from_numpy(np.asarray(stored[key])) for key in stored.files}


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    scale = float(theirs.double().abs().max())
    return float((ours.double() - theirs.double()).abs().max()) <= tolerance * (scale or 1)


class Features:
    """Stands for a backbone: images are features already."""

    width = 16

    def query(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem.removeprefix("slda_avalanche_"))
@pytest.mark.parametrize("batch", [1, 7, 60])
def test_the_released_stream(path, batch):
    stored = stored_tensors(path)
    features, targets, base = stored["in/x"], stored["in/y"], max(int(stored["cfg_base"]), 0)
    settings = SLDASettings(
        variant="released",
        shrinkage=float(stored["cfg_shrinkage"]),
        base_samples=base,
        plastic_covariance=bool(stored["cfg_plastic"]),
    )
    method = SLDAMethod(Features(), int(stored["cfg_num_classes"]), settings, torch.Generator())
    tolerance = 1e-6 if base else 1e-9  # the published base phase passes through single precision
    snapshots = {int(key.split("/")[0][6:]) for key in stored if key.startswith("after_")}
    if base:
        snapshots.add(base)
    ends = sorted({*range(batch, 61, batch), *snapshots, 60})
    compared = 0
    start = 0
    for end in ends:
        part = slice(start, end)
        method.fit(TrainingBatch(features[part], targets[part], torch.empty(0)))
        names = [f"after_{end}", *(["base"] if end == base else []), *(["final"] if end == 60 else [])]
        for name in names:
            if f"{name}/Sigma" in stored:
                assert close(method.statistics.covariance(), stored[f"{name}/Sigma"], tolerance), name
                assert close(method.statistics.means, stored[f"{name}/muK"], tolerance), name
                compared += 1
        start = end
    assert compared >= 2
    statistics = method.statistics
    assert torch.equal(statistics.counts, stored["final/cK"])

    weight, bias = linear_discriminant(statistics.means, statistics.covariance(), settings.shrinkage)
    test = stored["in/x_test"].double()
    scores = test @ weight + bias
    assert close(scores, stored["scores"], tolerance)
    assert torch.equal(scores.argmax(1), stored["pred"])
    # Ours never gives a class that has no sample, whatever its score of zero is worth.
    known = statistics.counts > 0
    ours = method(stored["in/x_test"])
    assert torch.equal(ours.argmax(1), scores.masked_fill(~known, float("-inf")).argmax(1))
    assert not known.all()


def test_the_exact_form_equals_the_batch_scatter_of_the_golden_stream():
    for path in STREAMS:
        stored = stored_tensors(path)
        statistics = ClassScatter(16, int(stored["cfg_num_classes"]))
        for part in torch.arange(60).split(13):
            statistics.add(stored["in/x"][part], stored["in/y"][part])
        assert close(statistics.covariance(), stored["batch_within_scatter_over_n"], 1e-12)
        assert not close(stored["final/Sigma"], stored["batch_within_scatter_over_n"], 1e-3)


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.stem.removeprefix("slda_"))
def test_a_base_fit_repeated_in_the_first_session(path):
    stored = stored_tensors(path)
    classes, width = stored["0/muK"].shape
    # Labels of this code are places in the order of appearance.
    place = {int(label): number for number, label in enumerate(stored["exposed_order"])}
    statistics = ClassScatter(width, classes)
    for number in range(int(stored["cfg_n_batches"])):
        features = stored[f"in/x_{number}"]
        targets = torch.tensor([place[int(label)] for label in stored[f"in/y_{number}"]])
        for _ in range(int(stored["cfg_online_iter"])):
            if number < int(stored["cfg_first_session_batches"]):
                statistics.replace(features, targets)
            else:
                statistics.add_released(features, targets)
        assert close(statistics.means, stored[f"{number}/muK"], 1e-5)
        assert torch.equal(statistics.counts.float(), stored[f"{number}/cK"])
        assert close(statistics.covariance(), stored[f"{number}/Sigma"], 1e-5)
        assert int(statistics.scatter_samples) == int(stored[f"{number}/num_updates"])
    weight, bias = linear_discriminant(statistics.means, statistics.covariance(), float(stored["cfg_shrinkage"]))
    scores = stored["in/x_test"].double() @ weight + bias
    exposed = statistics.counts > 0
    assert torch.equal(stored["scores"].isinf().any(0), ~exposed)
    assert close(scores[:, exposed], stored["scores"][:, exposed], 1e-5)
