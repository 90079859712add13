"""MISA's warm-up: its step and bottleneck against the published code, its two sources, and a run on tiny images."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from test_misa import NAMES, relative
from toys import make_strategy

from cl_prompts.prompts.forgetting_aware import forgetting_aware_step, perturbation
from cl_prompts.prompts.general_and_experts import GeneralAndExperts, Place
from cl_prompts.strategies.misa_warm_up.__main__ import main
from cl_prompts.strategies.misa_warm_up.learner import WarmUpLearner
from cl_prompts.strategies.misa_warm_up.settings import WarmUpSettings, help_text
from cl_prompts.strategies.misa_warm_up.sources import divide, held_out_batches, stream_batches

GOLDEN = Path(__file__).parent.parent / "golden"


def test_steps_match_published_code():
    stored = np.load(GOLDEN / "misa_fam_steps.npz")
    weight, bias = (torch.from_numpy(stored[f"w/{name}"]).double().requires_grad_() for name in ("weight", "bias"))
    optimizer = torch.optim.Adam([weight, bias], lr=float(stored["cfg_lr"]))

    for step in range(len(stored["in/x_id"])):

        def loss(source, step=step):
            images, targets = (torch.from_numpy(stored[f"in/{part}_{source}"][step]) for part in "xy")
            if source == "id":
                assert relative(weight, stored[f"{step}/perturbed_weight"]) < 1e-9
                assert relative(bias, stored[f"{step}/perturbed_bias"]) < 1e-9
            return torch.nn.functional.cross_entropy(images.double() @ weight.T + bias, targets)

        of_other, of_stream = forgetting_aware_step(
            [weight, bias], optimizer, lambda: loss("ood"), lambda: loss("id"), rho=float(stored["cfg_rho"])
        )
        assert relative(of_other, stored[f"{step}/loss_ood"]) < 1e-9
        assert relative(of_stream, stored[f"{step}/loss_id_at_perturbed"]) < 1e-9
        assert relative(weight.grad, stored[f"{step}/grad_id_weight"]) < 1e-9
        assert relative(weight, stored[f"{step}/weight"]) < 1e-9
        assert relative(bias, stored[f"{step}/bias"]) < 1e-9


def test_the_climb_has_the_length_rho_over_all_tensors_together():
    steps = perturbation([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], 0.5)
    torch.testing.assert_close(steps[0], torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(steps[1], torch.tensor([[0.4]]))
    assert all(float(step.abs().sum()) == 0 for step in perturbation([torch.zeros(2)], 0.5))


def test_tensors_that_a_loss_leaves_out_stay_where_they_are():
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([used, unused], lr=0.1)
    forgetting_aware_step([used, unused], optimizer, lambda: used.sum(), lambda: (used * used).sum(), rho=0.1)
    assert torch.equal(unused, torch.ones(2))
    climbed = 1 + 0.1 / 2**0.5
    torch.testing.assert_close(used, torch.full((2,), 1 - 0.1 * 2 * climbed))


def test_the_bottleneck_matches_published_code(shared_backbone):
    stored = np.load(GOLDEN / "misa_isa_eproj_train.npz")
    general, expert = (int(value) for value in stored["cfg_len_g_e"])
    backbone, generator = copy.deepcopy(shared_backbone), torch.Generator().manual_seed(0)
    prompts = GeneralAndExperts(
        backbone,
        general=Place(stored["cfg_pos_g"].tolist(), general),
        expert=Place(stored["cfg_pos_e"].tolist(), expert),
        pool_size=len(stored["w/e_key"]),
        insertion=str(stored["cfg_func"]),
        generator=generator,
    )
    hidden = len(stored["w/proj_e.fc1.bias"])
    learner = WarmUpLearner(backbone, prompts, len(stored["w/head.bias"]), hidden, generator).double()
    names = {f"prompts.{ours}": theirs for ours, theirs in NAMES.items()}
    for (ours, theirs), part in itertools.product(
        [("down", "fc1"), ("norm", "ln1"), ("up", "fc2")], ["weight", "bias"]
    ):
        names[f"bottleneck.{ours}.{part}"] = f"proj_e.{theirs}.{part}"
    names |= {f"head.{part}": f"head.{part}" for part in ("weight", "bias")}
    parameters = dict(learner.named_parameters())
    assert set(names) == {name for name, tensor in parameters.items() if tensor.requires_grad}
    with torch.no_grad():
        for ours, theirs in names.items():
            parameters[ours].copy_(torch.from_numpy(stored[f"w/{theirs}"]))
    images, targets = torch.from_numpy(stored["in/x"]).double(), torch.from_numpy(stored["in/y"])
    loss = learner.loss(images, targets, torch.from_numpy(stored["mask"] == 0))
    loss.backward()
    assert relative(loss, stored["loss"]) < 1e-9
    for ours, theirs in names.items():
        assert relative(parameters[ours].grad, stored[f"grad/{theirs.replace('head', 'fc')}"]) < 1e-9


# --- the two sources ------------------------------------------------------------------------------------------------


def test_sources_share_no_class_and_the_stream_comes_in_groups():
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 5)
    stream, held_out = divide(20, 25, draws)
    assert sorted([*stream, *held_out]) == list(range(20))
    assert len(held_out) == 5
    batches = list(stream_batches(labels, stream, sessions=3, epochs=2, batch=10, draws=draws))
    assert np.bincount(np.concatenate(batches), minlength=100)[np.isin(labels, stream)].tolist() == [2] * 75
    # Five classes of five images, passed twice, make a group: three batches a pass.
    groups = [set(labels[np.concatenate(batches[start : start + 6])]) for start in (0, 6, 12)]
    assert [len(group) for group in groups] == [5, 5, 5]
    assert not set.intersection(*groups[:2]) | set.intersection(*groups[1:])


def test_held_out_classes_stay_a_third_of_the_times():
    labels = np.repeat(np.arange(30), 2)
    batches = held_out_batches(labels, np.arange(10, 30), at_once=4, batch=8, draws=np.random.default_rng(1))
    drawn = [frozenset(labels[rows]) for rows in itertools.islice(batches, 600)]
    assert all(len(classes) == 4 and min(classes) >= 10 for classes in drawn)
    stayed = np.mean([left == right for left, right in itertools.pairwise(drawn)])
    assert stayed == pytest.approx(1 / 3, abs=0.06)


# --- the program ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(5):
        (root / f"class{number}").mkdir()
        for index in range(4):
            pixels = noise.integers(20 * number, 20 * number + 120, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class{number}" / f"{index}.png")
    return root


SMALL = ["pool_size=3", "general_length=2", "expert_length=2", "expert_layers=[2]", "batch=6", "sessions=2", "epochs=1"]
SMALL += ["checkpoint=untrained", "lr=0.01"]


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 -- not a mapping


def test_a_run_writes_prompts_that_misa_starts_from(folder, tmp_path, capsys):
    paths = [tmp_path / f"{name}.safetensors" for name in ("first", "again", "seed")]
    for path, more in zip(paths, ([], ["progress=none"], ["seed=1", "progress=none"]), strict=True):
        assert main([f"images={folder}", f"output={path}", *SMALL, *more]) == 0
    assert "update 4 of 4" in capsys.readouterr().out
    (first, metadata), (again, _), (other, _) = (read(path) for path in paths)
    assert sorted(first) == ["expert_prompts", "general_prompt"]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["expert_prompts"], other["expert_prompts"])
    assert json.loads(metadata["recipe"])["rho"] == 0.1
    assert len(metadata["images"]) == 64

    from cl_prompts.backbones import load_backbone

    backbone = load_backbone("vit_nano", checkpoint="untrained")
    settings = {"pool_size": 3, "general_length": 2, "expert_length": 2, "expert_layers": (2,)}
    strategy = make_strategy("misa", backbone, settings=settings | {"warm_start": str(paths[0])})
    strategy.model.begin_session(None)
    assert torch.equal(strategy.model.prompts.expert_prompts, first["expert_prompts"])


def test_every_key_is_in_the_help():
    for key in WarmUpSettings.model_fields:
        assert f"  {key}=" in help_text()


@pytest.mark.parametrize(
    "words, message",
    [
        (["batch=0"], "batch=0"),
        (["output=prompts.pt"], "output=prompts.pt: give a file that ends in .safetensors"),
        (["output=nowhere/prompts.safetensors"], "there is no folder nowhere"),
        (["backbone=vit_nano_"], "backbone 'vit_nano_' is unknown"),
        (["images=nowhere"], "nowhere"),
        (["general_layers=[9]"], "general_layers/expert_layers name block 9"),
        (["batch"], "settings are written key=value"),
    ],
)
def test_a_mistake_is_one_line(words, message, folder, tmp_path, capsys):
    given = [f"images={folder}", f"output={tmp_path / 'prompts.safetensors'}", *SMALL]
    keys = {word.partition("=")[0] for word in words}
    kept = [word for word in given if word.partition("=")[0] not in keys]
    assert main([*kept, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())
