"""The loop that all methods share: updates, hooks, what it refuses, and how it ends on a broken loss."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from toys import CLASSES, Pictures, TrainNormalise, labels, learned, make_strategy, normalise, stream_of, train

from cl_prompts.errors import StrategyError, UserError
from cl_prompts.plugins import Reservoir
from cl_prompts.strategies import LinearProbe, LinearProbeSettings, MVPSettings
from scenarios import TrainTransform


class Recorder(SupervisedPlugin):
    """Names of the hooks that ran, and what the strategy showed in them."""

    def __init__(self):
        super().__init__()
        self.hooks: list[str] = []
        self.updates: list[int] = []
        self.seen: list[int] = []

    def before_training_iteration(self, strategy, *args, **kwargs):
        self.hooks.append("before_training_iteration")

    def before_forward(self, strategy, *args, **kwargs):
        self.hooks.append("before_forward")

    def after_forward(self, strategy, *args, **kwargs):
        self.hooks.append("after_forward")
        assert strategy.mb_output.shape == (len(strategy.mb_y), CLASSES)
        assert torch.isfinite(strategy.mb_output).all()

    def before_backward(self, strategy, *args, **kwargs):
        self.hooks.append("before_backward")
        assert strategy.loss.requires_grad

    def after_backward(self, strategy, *args, **kwargs):
        self.hooks.append("after_backward")

    def before_update(self, strategy, *args, **kwargs):
        self.hooks.append("before_update")

    def after_update(self, strategy, *args, **kwargs):
        self.hooks.append("after_update")

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.hooks.append("after_training_iteration")
        self.updates.append(strategy.updates)
        self.seen.append(strategy.samples_seen)


UPDATE = ["before_forward", "after_forward", "before_backward", "after_backward", "before_update", "after_update"]


def test_hooks_of_one_stream_batch(tiny_backbone):
    recorder = Recorder()
    train(make_strategy("mvp", tiny_backbone, updates_per_batch=3, plugins=[recorder]), stream_of([[0] * 8]))
    assert recorder.hooks == ["before_training_iteration", *UPDATE * 3, "after_training_iteration"]


def test_hooks_of_a_closed_form_learner(tiny_backbone):
    recorder = Recorder()
    strategy = make_strategy("ncm", tiny_backbone, updates_per_batch=3, plugins=[recorder])
    train(strategy, stream_of([[0] * 8]))
    assert recorder.hooks == [
        "before_training_iteration",
        "before_forward",
        "after_forward",
        "after_training_iteration",
    ]
    # Several updates would count every sample several times.
    assert float(strategy.model.counts.sum()) == 8


@pytest.mark.parametrize(
    "updates_per_batch, after_each_batch",
    [
        (1, [1, 2, 3, 4, 5, 6, 7]),
        (3, [3, 6, 9, 12, 15, 18, 21]),
        (0.5, [0, 1, 1, 2, 2, 3, 3]),
        (1.5, [1, 3, 4, 6, 7, 9, 10]),
        (1 / 3, [0, 0, 1, 1, 1, 2, 2]),
        (0.1, [0, 0, 0, 0, 0, 0, 0]),
        (Fraction(5, 2), [2, 5, 7, 10, 12, 15, 17]),
    ],
)
def test_fractional_updates_carry_over_batches_and_sessions(updates_per_batch, after_each_batch, tiny_backbone):
    recorder = Recorder()
    strategy = make_strategy(
        "linear_probe", tiny_backbone, updates_per_batch=updates_per_batch, train_mb_size=2, plugins=[recorder]
    )
    train(strategy, stream_of([[0, 1, 2, 3, 4], [5, 0, 1, 2, 3, 4, 5]]))
    assert recorder.updates == after_each_batch
    assert recorder.seen == [2, 4, 5, 7, 9, 11, 12]


def test_one_third_of_an_update_is_exact_over_a_long_stream(tiny_backbone):
    strategy = make_strategy("linear_probe", tiny_backbone, updates_per_batch=1 / 3, train_mb_size=1)
    train(strategy, stream_of([labels(60, range(CLASSES))]))
    assert strategy.updates == 20


def test_avalanche_metrics_have_something_to_read_on_a_batch_without_update(tiny_backbone):
    plugin = EvaluationPlugin(accuracy_metrics(minibatch=True), loss_metrics(minibatch=True))
    strategy = make_strategy("linear_probe", tiny_backbone, updates_per_batch=0.5, train_mb_size=4, evaluator=plugin)
    before = learned(strategy)
    train(strategy, stream_of([[0, 1, 2, 3]]))
    assert strategy.updates == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in learned(strategy).items())
    loss = next(values[-1] for name, (_, values) in plugin.get_all_metrics().items() if name.startswith("Loss_MB"))
    assert 0 < loss < 10


def test_each_update_sees_fresh_pixels(tiny_backbone):
    class Pixels(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.images = []

        def after_forward(self, strategy, *args, **kwargs):
            self.images.append(strategy.mb_x.clone())

    pixels = Pixels()
    augment = TrainTransform(16, (0.5,) * 3, (0.25,) * 3, augmentation="crop_flip", seed=0)
    strategy = make_strategy("linear_probe", tiny_backbone, plugins=[pixels], train_transform=augment)
    train(strategy, stream_of([[0, 1, 2, 3, 4, 5]]))
    images = torch.from_numpy(Pictures([0, 1, 2, 3, 4, 5]).images).permute(0, 3, 1, 2)
    for pass_number, batch in enumerate(pixels.images):
        assert torch.equal(batch, augment(images, torch.arange(6), pass_number))
    assert not torch.equal(*pixels.images)


def test_losses_and_counts_are_those_of_the_update_that_just_ended(tiny_backbone):
    class Check(SupervisedPlugin):
        checked = 0

        def after_update(self, strategy, *args, **kwargs):
            self.checked += 1
            assert strategy.updates == self.checked
            parts = [value for name, value in strategy.last_losses.items() if name in ("classification", "prompt")]
            torch.testing.assert_close(strategy.last_losses["total"], sum(parts))
            torch.testing.assert_close(strategy.last_losses["total"], strategy.loss.detach()[0])
            assert not any(value.requires_grad for value in strategy.last_losses.values())

    check = Check()
    train(make_strategy("mvp", tiny_backbone, plugins=[check]), stream_of([labels(20, range(CLASSES))]))
    assert check.checked == 6


def test_running_accuracy_is_not_biased_by_its_start(tiny_backbone):
    strategy = make_strategy("linear_probe", tiny_backbone, train_mask="batch", updates_per_batch=1)
    assert strategy.running_accuracy != strategy.running_accuracy  # NaN before the first update
    train(strategy, stream_of([[1] * 8]))
    assert strategy.running_accuracy == pytest.approx(1.0)


def test_stop_training_ends_after_the_current_batch(tiny_backbone):
    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs):
            strategy.stop_training()

    strategy = make_strategy("ncm", tiny_backbone, plugins=[Stop()])
    strategy.train(stream_of([[0] * 30]).train_stream[0])
    assert strategy.samples_seen == 8


# --- what is refused, in one line -----------------------------------------------------------------------------------


def refused(match: str):
    return pytest.raises(UserError, match=match)


def one_line(error) -> bool:
    return "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mvp", "ncm"])
def test_raw_images_without_transform_are_refused(name, tiny_backbone):
    strategy = make_strategy(name, tiny_backbone, train_transform=None, eval_transform=None)
    with refused("gives uint8 images: pass train_transform and eval_transform") as error:
        train(strategy, stream_of([[0, 1]]))
    assert one_line(error)


@pytest.mark.parametrize("name", ["mvp", "ncm"])
def test_float_images_with_transform_are_refused(name, tiny_backbone):
    benchmark = stream_of([[0, 1]], train_transform=float_images, eval_transform=float_images)
    with refused("gives float images already: pass no transforms") as error:
        train(make_strategy(name, tiny_backbone), benchmark)
    assert one_line(error)


def float_images(image):
    return normalise(image[None])[0]


def test_labels_beyond_the_head_are_refused_before_training(tiny_backbone):
    strategy = make_strategy("ncm", tiny_backbone, num_classes=3)
    with refused(r"label 4 of sample 1 is outside 0\.\.2; give num_classes=6 or more") as error:
        train(strategy, stream_of([[0, 4, 5]]))
    assert one_line(error)
    assert strategy.samples_seen == 0


def test_shuffling_is_refused(tiny_backbone):
    with refused(r"train\(shuffle=True\): the stream has a planned order") as error:
        train(make_strategy("ncm", tiny_backbone), stream_of([[0, 1]]), shuffle=True)
    assert one_line(error)
    train(make_strategy("ncm", tiny_backbone), stream_of([[0, 1]]), shuffle=False)


def test_several_task_labels_are_refused(tiny_backbone):
    experience = stream_of([[0, 1]], task_label=0).train_stream[0]
    experience.task_labels = [0, 1]
    with refused("task labels .0, 1.; a stream may have one at most") as error:
        make_strategy("ncm", tiny_backbone).train(experience)
    assert one_line(error)


def test_a_replaced_loader_is_refused(tiny_backbone):
    strategy = make_strategy("linear_probe", tiny_backbone, plugins=[ReplayPlugin(mem_size=10)])
    with refused("a plugin replaced the loader of the stream.*use cl_prompts.plugins.Reservoir") as error:
        train(strategy, stream_of([[0, 1], [2, 3]]))
    assert one_line(error)


@pytest.mark.parametrize(
    "keywords, match",
    [
        ({"updates_per_batch": 0}, r"updates_per_batch=0: must be a number of at least 0\.000001"),
        ({"updates_per_batch": -1.5}, "updates_per_batch=-1.5"),
        ({"updates_per_batch": float("nan")}, "updates_per_batch=nan"),
        ({"updates_per_batch": float("inf")}, "updates_per_batch=inf"),
        ({"precision": "fp16"}, "precision='fp16': must be one of fp32, bf16"),
        ({"train_mask": "exposd"}, "train_mask='exposd': must be one of none, exposed"),
        ({"eval_mask": "batch"}, "eval_mask='batch': must be one of exposed, none"),
    ],
)
def test_arguments_out_of_range_are_refused(keywords, match, tiny_backbone):
    with pytest.raises(StrategyError, match=match) as error:
        make_strategy("linear_probe", tiny_backbone, **keywords)
    assert one_line(error)


def mistakes(backbone):
    """Arguments as users of other Avalanche strategies write them, and the right call."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    right = r"pass a function such as functools\.partial\(torch\.optim\.SGD, lr=0\.1\)"
    return [
        ({"optimizer": sgd}, f"optimizer=a SGD: LinearProbe .*{right}"),
        ({"optimizer": "sgd"}, f"optimizer=a str: .*{right}"),
        ({"backbone": backbone.model}, r"backbone=a VisionTransformer: .*wrap it: FrozenViT\(model\)"),
        ({"backbone": "vit_nano"}, r"backbone=a str: .*load_backbone\('vit_nano'\)"),
        ({"settings": {"head": "linear"}}, r"settings=a dict: .*pass LinearProbeSettings\(\.\.\.\)"),
        ({"settings": MVPSettings()}, r"settings=a MVPSettings: .*pass LinearProbeSettings\(\.\.\.\)"),
        ({"settings": LinearProbeSettings}, "settings=the class LinearProbeSettings: .*pass LinearProbeSettings"),
    ]


@pytest.mark.parametrize("number", range(7))
def test_parts_as_other_libraries_take_them_are_refused(number, tiny_backbone):
    keywords, match = mistakes(tiny_backbone)[number]
    with pytest.raises(StrategyError, match=match) as error:
        LinearProbe(**{"backbone": tiny_backbone, "num_classes": CLASSES} | keywords)
    assert one_line(error)


def test_a_class_is_a_function_of_the_trained_tensors_too(tiny_backbone):
    strategy = make_strategy("linear_probe", tiny_backbone, optimizer=torch.optim.AdamW)
    assert isinstance(strategy.optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("augmentation", ["crop_flip", "none"])
def test_every_presentation_of_an_image_has_pixels_of_its_own(augmentation, tiny_backbone):
    """In the updates of its batch, and whenever it is replayed; unless nothing is random."""

    class Seen(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.versions: dict[int, list[bytes]] = {}

        def after_forward(self, strategy, *args, **kwargs):
            for sample, image in zip(strategy.mb_sample_ids.tolist(), strategy.mb_x, strict=True):
                self.versions.setdefault(sample, []).append(image.numpy().tobytes())

    seen = Seen()
    mean = std = (0.5, 0.5, 0.5)
    transform = TrainTransform(16, mean, std, augmentation=augmentation, seed=3)
    plugins = [Reservoir(6, 6, seed=1), seen]
    strategy = make_strategy(
        "linear_probe", tiny_backbone, train_transform=transform, updates_per_batch=3, plugins=plugins
    )
    train(strategy, stream_of([labels(40, range(CLASSES))]))
    presentations = [len(versions) for versions in seen.versions.values()]
    assert max(presentations) > 6
    distinct = [len(set(versions)) for versions in seen.versions.values()]
    if augmentation == "none":
        assert set(distinct) == {1}
    else:
        # Crops at continuous places: two alike are a matter of floating point luck.
        assert sum(distinct) >= 0.97 * sum(presentations)


def test_the_task_mask_needs_announced_classes(tiny_backbone):
    strategy = make_strategy("linear_probe", tiny_backbone, train_mask="task")
    with refused("train_mask='task': this stream shows no sessions; use exposed or batch"):
        train(strategy, stream_of([[0, 1]], view="merged"))


def test_the_task_mask_is_refused_where_classes_return(tiny_backbone):
    strategy = make_strategy("linear_probe", tiny_backbone, train_mask="task")
    with refused("train_mask='task': classes return in later sessions of this stream; use exposed or batch"):
        train(strategy, stream_of([[0, 1], [2, 1]]))
    assert strategy.samples_seen == 2


def test_the_session_mask_needs_sessions(tiny_backbone):
    strategy = make_strategy("linear_probe", tiny_backbone, train_mask="session")
    with refused("train_mask='session': this stream shows no sessions"):
        train(strategy, stream_of([[0, 1]], view="merged"))


def test_several_processes_are_refused(tiny_backbone, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("WORLD_SIZE=2: every process would see the whole stream; start one process"):
        make_strategy("linear_probe", tiny_backbone)


def test_undeclared_replay_is_refused(tiny_backbone):
    strategy = make_strategy("ncm", tiny_backbone, plugins=[Reservoir(4, 4)])
    with refused("NCM declares no replay, but a plugin added samples to its batch"):
        train(strategy, stream_of([labels(20, range(CLASSES))]))


@pytest.mark.parametrize("name", ["mvp", "single_prompt", "linear_probe"])
def test_a_loss_that_is_not_finite_stops_with_one_line_and_the_last_good_weights(name, tiny_backbone):
    def explosive(tensors):
        return torch.optim.SGD(tensors, lr=3e38)

    settings = {"head": "linear"} if name == "single_prompt" else {}
    strategy = make_strategy(name, tiny_backbone, optimizer=explosive, settings=settings, updates_per_batch=20)
    with refused("the loss is not finite after 0 samples and [0-9]+ updates .*lower protocol.lr") as error:
        train(strategy, stream_of([labels(20, range(CLASSES))]))
    assert one_line(error)
    assert strategy.updates < 20


def test_eval_mask_none_lets_every_column_compete(tiny_backbone):
    images = Pictures([0, 1, 2]).tensors()
    predictions = {}
    for rule in ("exposed", "none"):
        strategy = make_strategy("linear_probe", tiny_backbone, eval_mask=rule, updates_per_batch=1)
        train(strategy, stream_of([[1, 1, 1]]))
        with torch.no_grad():
            strategy.model.head.bias[4] = 100.0
        strategy.model.eval()
        predictions[rule] = strategy._predict(images).argmax(-1).tolist()
    assert predictions == {"exposed": [1, 1, 1], "none": [4, 4, 4]}


def test_fixed_images_need_their_query_once_a_batch(tiny_backbone, monkeypatch):
    calls = []
    original = type(tiny_backbone).query
    monkeypatch.setattr(
        type(tiny_backbone), "query", lambda self, *args, **kw: calls.append(1) or original(self, *args, **kw)
    )
    results = []
    for transform, expected in ((TrainNormalise(), 3), (lambda images, ids, number: normalise(images), 9)):
        calls.clear()
        strategy = make_strategy("mvp", tiny_backbone, updates_per_batch=3, train_transform=transform)
        train(strategy, stream_of([labels(24, range(CLASSES))]))
        assert len(calls) == expected
        results.append(learned(strategy))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name])
