"""Ridge heads against the outputs of the published codes of RanPAC and GACL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_prompts.closed_form.ridge import RecursiveRidge, target_rows
from cl_prompts.strategies import GACLSettings, RanPACSettings, TrainingBatch
from cl_prompts.strategies.gacl import GACLMethod
from cl_prompts.strategies.ranpac import RanPACMethod

GOLDEN = Path(__file__).parent.parent / "golden"
RANPAC = sorted(GOLDEN.glob("ranpac_*.npz"))
GACL = sorted(GOLDEN.glob("gacl_*.npz"))
CLASSES = 12


def relative(ours: Tensor, theirs: Tensor) -> float:
    scale = float(theirs.double().abs().max())
    return float((ours.double() - theirs.double()).abs().max()) / (scale or 1)


def stored_tensors(path: Path) -> dict[str, Tensor]:
    with np.load(path) as stored:
        return {key: torch.from_numpy(np.asarray(stored[key])) for key in stored.files}


class Features:
    """Stands for a backbone: images are features already."""

    def __init__(self, width: int) -> None:
        self.width = width

    def query(self, images: Tensor) -> Tensor:
        return images


def batch_of(features: Tensor, targets: Tensor) -> TrainingBatch:
    return TrainingBatch(features, targets, torch.empty(0))


@pytest.mark.parametrize("path", RANPAC, ids=lambda path: path.stem)
@pytest.mark.parametrize("cut", [7, 100])
def test_ranpac_with_the_grid_on_each_task(path, cut):
    stored = stored_tensors(path)
    width, projected = stored["in/x_0"].shape[1], int(stored["cfg_M"])
    classes = int(stored["cfg_total_classes"])
    settings = RanPACSettings(projection=projected, ridge="task_grid")
    method = RanPACMethod(Features(width), classes, settings, torch.Generator())
    if projected:
        (name,) = [key for key in stored if key.startswith("w/")]
        weight = stored[name] if stored[name].shape == (width, projected) else stored[name].T
        method.classifier.expansion.weight.copy_(weight)
    for task in range(int(stored["cfg_n_tasks"])):
        method.begin_session(None)
        for part in torch.arange(len(stored[f"in/y_{task}"])).split(cut):
            method.fit(batch_of(stored[f"in/x_{task}"][part], stored[f"in/y_{task}"][part]))
        seen = stored[f"{task}/weight"]
        head = method.classifier.head()
        assert relative(head.T[: len(seen)], seen) < 1e-9
        assert not head.T[len(seen) :].any()
        # The very constant of the published grid, as no other gives this head.
        gram = method.classifier.sums.gram
        solved = torch.linalg.solve(
            gram + float(stored[f"{task}/ridge"]) * torch.eye(len(gram)).double(), method.classifier.sums.cross
        )
        assert relative(head, solved) < 1e-9
    assert relative(method.classifier.sums.gram, stored["final/G"]) < 1e-9
    assert relative(method.classifier.sums.cross, stored["final/Q"]) < 1e-9
    logits = method(stored["in/x_test"])
    assert relative(logits + 0.5, stored["logits_test"]) < 1e-6
    assert torch.equal(logits.argmax(1), stored["pred_test"])


@pytest.mark.parametrize("path", GACL, ids=lambda path: path.stem)
@pytest.mark.parametrize("solver", ["gram", "recursive"])
def test_gacl(path, solver):
    stored = stored_tensors(path)
    expanded, width = stored["w/expansion"].shape
    repetitions = int(stored["cfg_online_iter"])
    settings = GACLSettings(
        expansion=expanded, gamma=float(stored["cfg_gamma"]), repetitions=repetitions, solver=solver
    )
    method = GACLMethod(Features(width), CLASSES, settings, torch.Generator())
    method.classifier.expansion.weight.copy_(stored["w/expansion"].T)
    order = stored["exposed_order"]
    for number in range(int(stored["cfg_n_batches"])):
        features, targets = stored[f"in/x_{number}"], stored[f"in/y_{number}"]
        method.fit(batch_of(features, targets))
        exposed = order[: int(stored[f"{number}/n_exposed"])]
        head = method.classifier.head()
        assert relative(head[:, exposed], stored[f"{number}/W"]) < 1e-6
        absent = torch.ones(CLASSES, dtype=torch.bool).index_fill(0, exposed, False)
        assert not head[:, absent].any()
    assert relative(method.classifier.head()[:, order], stored["oracle_batch_W"]) < 1e-6
    assert relative(method(stored["in/x_test"])[:, order] + 0.5, stored["logits_test"]) < 1e-6


@pytest.mark.parametrize("path", GACL, ids=lambda path: path.stem)
def test_the_recursion_of_gacl_fit_by_fit(path):
    stored = stored_tensors(path)
    weight = stored["w/expansion"]
    # The published expansion is in single precision, so that only its own features give its numbers to 1e-9.
    expanded = [
        torch.relu(stored[f"in/x_{number}"] @ weight.T).double() for number in range(int(stored["cfg_n_batches"]))
    ]
    sums = RecursiveRidge(len(weight), CLASSES, float(stored["cfg_gamma"]))
    exposed: list[int] = []
    for number, features in enumerate(expanded):
        targets = stored[f"in/y_{number}"]
        exposed += [label for label in dict.fromkeys(targets.tolist()) if label not in exposed]
        hits = []
        for _ in range(int(stored["cfg_online_iter"])):
            sums.add(features, target_rows(targets, CLASSES))
            predicted = (features @ sums.weights[:, exposed]).argmax(1)
            hits.append(float((torch.tensor(exposed)[predicted] == targets).float().mean()))
        assert exposed == stored["exposed_order"][: int(stored[f"{number}/n_exposed"])].tolist()
        assert relative(sums.weights[:, exposed], stored[f"{number}/W"]) < 1e-6
        assert float(sums.inverse.trace()) == pytest.approx(float(stored[f"{number}/R_trace"]), rel=1e-6)
        assert np.mean(hits) == pytest.approx(float(stored[f"{number}/acc"]), abs=1e-6)
    assert relative(sums.inverse, stored["final/R"]) < 1e-6


def test_every_kind_of_golden_file_is_there():
    assert RANPAC
    assert GACL
