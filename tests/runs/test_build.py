"""From configuration to objects: every setting arrives where it acts, and what cannot be built is one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_runs import checked, tiny_words

from cl_prompts.errors import BackboneError, PlanError, UserError
from cl_prompts.plugins import Reservoir
from cl_prompts.runs.build import Data, build_data, build_learner, check_device, check_test_classes
from cl_prompts.runs.seeds import Seeds
from scenarios import si_blurry_plan
from scenarios.datasets import ImageDataset

CPU = torch.device("cpu")


def config_of(strategy="linear_probe", *words):
    return checked(*tiny_words(strategy, *words))


def built(strategy="linear_probe", *words):
    config = config_of(strategy, *words)
    data = build_data(config)
    return build_learner(config, data, CPU), data


@pytest.mark.parametrize(
    ("words", "kind", "values"),
    [
        (("optimizer=adam", "lr=0.25"), torch.optim.Adam, {"lr": 0.25, "weight_decay": 0.0}),
        (("optimizer=adamw", "lr=0.5", "weight_decay=0.125"), torch.optim.AdamW, {"lr": 0.5, "weight_decay": 0.125}),
        (
            ("optimizer=sgd", "lr=1", "momentum=0.75", "weight_decay=0.5"),
            torch.optim.SGD,
            {"lr": 1.0, "momentum": 0.75, "weight_decay": 0.5},
        ),
    ],
)
def test_the_optimizer_is_the_one_asked_for_over_the_trained_tensors_alone(words, kind, values):
    learner, _ = built("mvp", *(f"protocol.{word}" for word in words))
    optimizer = learner.strategy.optimizer
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in values} == values
    trained = dict(learner.strategy.model.named_trainables())
    assert {id(tensor) for tensor in group["params"]} == {id(tensor) for tensor in trained.values()}
    assert not any(name.startswith("backbone.") for name in trained)


def test_the_protocol_reaches_strategy_and_evaluation():
    words = ("stream_batch=7", "updates_per_batch=0.5", "train_mask=batch", "eval_mask=none", "eval_every=13")
    words += ("anytime_rule=official", "eval_batch=9", "precision=bf16", "augmentation=crop_flip", "augment_per=batch")
    learner, _ = built("mvp", *(f"protocol.{word}" for word in words))
    strategy, evaluation = learner.strategy, learner.evaluation
    assert (strategy.train_mb_size, strategy.updates_per_batch, strategy.eval_mb_size) == (7, 0.5, 9)
    assert (strategy.train_mask, strategy.eval_mask, strategy.precision) == ("batch", "none", "bf16")
    assert evaluation.every == 13
    assert evaluation.rule(26, 26, 13) == (None, 26)  # the published trigger is strictly beyond
    evaluator = evaluation.evaluator
    assert (evaluator.images.batch_size, evaluator.mask, evaluator.logits.autocast) == (9, "none", torch.bfloat16)
    transform = strategy.preparation.train_transform
    assert (transform.augmentation, transform.per) == ("crop_flip", "batch")
    assert strategy.num_classes == 10


def test_the_method_gets_its_settings():
    learner, _ = built("mvp", "strategy.pool_size=4", "strategy.variant=paper")
    assert learner.strategy.model.prompt_usage().shape == (4,)
    assert learner.strategy.model.settings.variant == "paper"


def test_each_purpose_has_a_generator_of_its_own():
    words = ("protocol.memory_size=20", "protocol.replay_batch=5")
    first, _ = built("mvp", *words, "seed=1")
    other, _ = built("mvp", *words, "seed=2", "scenario.seed=1")
    seeds = Seeds.from_root(1)
    assert first.strategy.preparation.train_transform.seed == seeds.augment
    (memory,) = (plugin for plugin in first.strategy.plugins if isinstance(plugin, Reservoir))
    assert (memory.sampler.size, memory.batch_size) == (20, 5)
    assert memory.sampler.generator.initial_seed() == seeds.replay
    one, two = (dict(learner.strategy.model.named_trainables()) for learner in (first, other))
    assert any(not torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert first.benchmark.plan == other.benchmark.plan


def test_without_memory_there_is_no_reservoir():
    learner, _ = built("mvp")
    assert not any(isinstance(plugin, Reservoir) for plugin in learner.strategy.plugins)


def test_the_stream_follows_its_own_seed_or_the_runs():
    plans = {words: build_data(config_of("ncm", *words)).plan for words in [("seed=1",), ("seed=2",)]}
    own = build_data(config_of("ncm", "seed=2", "scenario.seed=1")).plan
    assert own == plans["seed=1",]
    assert own != plans["seed=2",]


@pytest.mark.parametrize(
    ("normalisation", "mean"),
    [("checkpoint", (0.5, 0.5, 0.5)), ("imagenet", (0.485, 0.456, 0.406)), ("none", (0.0, 0.0, 0.0))],
)
def test_images_are_normalised_as_asked_in_training_and_evaluation(normalisation, mean):
    words = ("protocol.augmentation=none", f"backbone.normalisation={normalisation}", "backbone.std=[0.25,0.25,0.25]")
    learner, data = built("linear_probe", *words)
    strategy = learner.strategy
    std = {"checkpoint": 0.25, "none": 1.0}.get(normalisation, torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
    images = data.train.images([0, 1])
    wanted = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / std
    preparation = strategy.preparation
    trained = preparation.train_transform(images, torch.tensor([0, 1]), 0)
    for made in (preparation.eval_transform(images), trained):
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("available", "count", "name", "text"),
    [
        (False, 0, "cuda", "device=cuda: torch sees no CUDA device here"),
        (False, 1, "cuda:0", "device=cuda:0: torch sees no CUDA device here"),
        (True, 2, "cuda:2", "device=cuda:2: there is no such device; choose one of cpu, cuda:0, cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, available, count, name, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError) as caught:
        check_device(name)
    assert str(caught.value).startswith(text)


def test_a_torch_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"here; this torch is a CPU-only build; use device=cpu$"):
        check_device("cuda")


def test_a_device_that_is_there_is_accepted(monkeypatch):
    assert check_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_device("cuda:1") == torch.device("cuda:1")


def test_a_plan_of_other_data_is_refused(tmp_path):
    build_data(config_of("ncm", "dataset.train_per_class=5")).plan.save(tmp_path)
    with pytest.raises(PlanError, match="was made for 50 samples but the data set has 40"):
        build_data(config_of("ncm", f"scenario.plan={tmp_path}"))


def test_a_task_mask_is_refused_on_a_saved_stream_without_tasks(tmp_path):
    blurry, disjoint = tmp_path / "blurry", tmp_path / "disjoint"
    build_data(config_of("ncm")).plan.save(blurry)
    build_data(config_of("ncm", "scenario=disjoint")).plan.save(disjoint)
    with pytest.raises(PlanError, match=r"scenario\.plan=.*blurry: .*no single task, which protocol.train_mask=task"):
        build_data(config_of("ncm", f"scenario.plan={blurry}", "protocol.train_mask=task"))
    build_data(config_of("ncm", f"scenario.plan={disjoint}", "protocol.train_mask=task"))


def test_data_set_constants_are_refused_where_there_are_none(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.png")
    words = ("dataset=image_folder", f"dataset.root={tmp_path}", "scenario.n_sessions=2", "backbone.depth=2")
    config = checked(*words, "strategy=ncm", "backbone.checkpoint=untrained")
    data = build_data(config)
    backbone = config.backbone.model_copy(update={"normalisation": "dataset"})
    config = config.model_copy(update={"backbone": backbone})
    with pytest.raises(BackboneError, match=r"backbone\.normalisation=dataset, but this data set has no constants"):
        build_learner(config, data, CPU)


def test_a_class_without_a_test_image_is_refused():
    data = build_data(config_of("ncm"))
    check_test_classes(data)
    kept = np.flatnonzero(data.test.targets != 7)

    class Rest:
        targets = data.test.targets[kept]

    with pytest.raises(PlanError, match="class 'seven' is in the training stream but has no test image"):
        check_test_classes(Data(data.train, Rest(), data.plan))
    # Nor does a class matter that never comes.
    shown = np.flatnonzero(data.train.targets != 7)
    assert isinstance(data.train, ImageDataset)
    plan = si_blurry_plan(data.train.targets[shown], num_classes=10, n_sessions=2)
    check_test_classes(Data(data.train, Rest(), plan))
