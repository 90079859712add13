"""MULTI-LANE against stored steps and evaluations of the released code, in both forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from cl_prompts.backbones import FrozenViT
from cl_prompts.strategies import TrainingBatch
from cl_prompts.strategies.multi_lane import MultiLaneMethod, MultiLaneSettings

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(GOLDEN.glob("multilane_official_case*.npz"))


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


@pytest.fixture(scope="module")
def backbone() -> FrozenViT:
    weights = {name: tensor(value) for name, value in load(GOLDEN / "multilane_official_backbone.npz").items()}
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=0)
    model.load_state_dict(weights, strict=True)
    return FrozenViT(model)


class Replay:
    """The method in the state of one stored task."""

    def __init__(self, data: dict[str, np.ndarray], backbone: FrozenViT, form: str) -> None:
        self.data = data
        self.config = config = json.loads(str(data["config"]))
        self.classes = config["C"]
        self.settings = settings_of(config, form)
        self.method = MultiLaneMethod(backbone, self.classes, self.settings, torch.Generator().manual_seed(0))

    def begin(self, task: int) -> None:
        self.method.begin_session(torch.tensor(sorted(self.config["class_mask"][task])))
        self.copy_in(f"t{task}/start", task)

    @torch.no_grad()
    def copy_in(self, prefix: str, task: int) -> None:
        for number in range(task + 1):
            lane = self.method.lanes[number]
            lane.selectors.copy_(tensor(self.data[f"{prefix}/selectors"])[number])
            for block, prompts in enumerate(lane.prompts):
                prompts.copy_(tensor(self.data[f"{prefix}/blocks.{block}.attn.prompts"])[:, number])
            if lane.key is not None:
                lane.key.copy_(tensor(self.data[f"{prefix}/task_identifier.keys"])[number])
        head = self.method.head
        for name in ("weight", "bias"):
            stored = tensor(self.data[f"{prefix}/head.{name}"])
            getattr(head, name).copy_(stored)
            getattr(head, f"pinned_{name}").copy_(stored)

    def trained(self, task: int) -> dict[str, torch.Tensor]:
        lane, head = self.method.lanes[task], self.method.head
        found = {"selectors": lane.selectors, "head.weight": head.weight, "head.bias": head.bias}
        found |= {f"blocks.{block}.attn.prompts": prompts for block, prompts in enumerate(lane.prompts)}
        return found | ({} if lane.key is None else {"task_identifier.keys": lane.key})

    def part(self, name: str, value: np.ndarray, task: int) -> torch.Tensor:
        """The slice of a stored tensor of all tasks that belongs to one lane."""
        stored = tensor(value)
        if name.endswith("prompts"):
            return stored[:, task]
        return stored if name.startswith("head") else stored[task]

    def targets(self, task: int, step: int) -> torch.Tensor:
        labels = tensor(self.data[f"t{task}/s{step}/y"])
        if labels.ndim == 1:
            return labels.long()
        rows = torch.full(labels.shape, float("nan"))
        columns = sorted(self.config["class_mask"][task])
        rows[:, columns] = labels[:, columns].float()
        return rows

    def allowed(self, task: int) -> torch.Tensor:
        columns = torch.zeros(self.classes, dtype=torch.bool)
        columns[self.config["class_mask"][task]] = True
        return columns


def settings_of(config: dict, form: str) -> MultiLaneSettings:
    return MultiLaneSettings(
        num_selectors=config["num_selectors"],
        num_prompts=config["num_prompts"],
        prompt_layers=config["num_prompt_layers"],
        prompt_init=config["prompt_init"],
        init_tasks=config["num_tasks"],
        dandr="off" if config["disable_dandr"] else "released",
        tome=config["tome"],
        normalize=config["normalize"],
        head_mode={"concat": "concat", "task": "key"}[config["head_mode"]],
        temperature=config["temperature"],
        form=form,
    )


def close(found: torch.Tensor, stored: np.ndarray | torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(found.detach(), torch.as_tensor(stored).to(found.dtype), rtol=0, atol=atol)


def check_step(replay: Replay, task: int, step: int, optimizer: torch.optim.Optimizer) -> None:
    data, method, at = replay.data, replay.method, f"t{task}/s{step}"
    outputs = method.training_outputs(
        TrainingBatch(tensor(data[f"{at}/x"]), replay.targets(task, step), replay.allowed(task))
    )
    columns = replay.config["class_mask"][task]
    close(outputs.logits[:, columns], data[f"{at}/logits_raw"][:, columns], 1e-5)
    assert torch.isneginf(outputs.logits[:, ~replay.allowed(task)]).all()
    loss = torch.stack(list(outputs.losses.values())).sum()
    close(loss, data[f"{at}/loss"], 1e-6)
    optimizer.zero_grad()
    loss.backward()
    for name, parameter in replay.trained(task).items() if step == 0 else ():
        stored = replay.part(name, data[f"{at}/grad/{name}"], task)
        if stored.numel():
            close(parameter.grad, stored, 1e-4 * max(float(stored.abs().max()), 1e-8))
    optimizer.step()


def check_evaluation(replay: Replay, task: int) -> None:
    data, method = replay.data, replay.method.eval()
    images = tensor(data["eval_x"])
    with torch.no_grad():
        logits = method(images)
        features, _ = method._features(images, range(task + 1), needs_query=False)
    seen = sorted(column for columns in replay.config["class_mask"][: task + 1] for column in columns)
    close(logits[:, seen], data[f"t{task}/eval/logits"][:, seen], 1e-5)
    stored = tensor(data[f"t{task}/eval/lane_feat"])
    if replay.settings.head_mode == "key":
        features = features[torch.arange(len(images)), tensor(data[f"t{task}/eval/tasks"]).long()]
    close(features, stored.view_as(features), 1e-5)


@pytest.mark.parametrize("form", ["fast", "token"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_steps_and_evaluations_of_the_released_code(path: Path, form: str, backbone: FrozenViT) -> None:
    data = load(path)
    replay = Replay(data, backbone, form)
    for task in range(len(replay.config["class_mask"])):
        replay.begin(task)
        trained = [parameter for _, parameter in replay.method.named_trainables()]
        optimizer = torch.optim.Adam(trained, lr=replay.config["lr"])
        for step in range(replay.config["steps"]):
            check_step(replay, task, step, optimizer)
        for name, parameter in replay.trained(task).items():
            close(parameter, replay.part(name, data[f"t{task}/end/{name}"], task), 1e-4)
        replay.copy_in(f"t{task}/end", task)
        check_evaluation(replay, task)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_next_lane_starts_where_the_released_one_does(path: Path, backbone: FrozenViT) -> None:
    data = load(path)
    replay = Replay(data, backbone, "fast")
    for task in range(1, len(replay.config["class_mask"])):
        if task == 1:
            replay.begin(0)
        replay.copy_in(f"t{task - 1}/end", task - 1)
        replay.method.begin_session(torch.tensor(sorted(replay.config["class_mask"][task])))
        for name, parameter in replay.trained(task).items():
            if name != "task_identifier.keys":
                close(parameter, replay.part(name, data[f"t{task}/start/{name}"], task), 0)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_first_lane_has_the_released_scale(path: Path, backbone: FrozenViT) -> None:
    data = load(path)
    replay = Replay(data, backbone, "fast")
    for name, parameter in replay.trained(0).items():
        stored = replay.part(name, data[f"t0/start/{name}"], 0)
        if name.startswith("head") or not stored.numel():
            continue
        spread = float(stored.std())
        assert float(parameter.detach().std()) == pytest.approx(spread, rel=0.25), name
    if replay.config["prompt_init"] == "orthogonal" and replay.config["num_selectors"]:
        assert float(replay.method.lanes[0].selectors.detach().norm()) == pytest.approx(1.0, abs=1e-5)


def test_there_are_goldens() -> None:
    assert CASES
