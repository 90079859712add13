"""LwF, EWC and the joint bound: slow versions in double precision, teachers and penalties in a stream, Avalanche's."""

from __future__ import annotations

import copy
import io
import itertools
import math

import pytest
import torch
from multi_label_toys import label_rows
from toys import CLASSES, Pictures, labels, learned, make_strategy, normalise, plan_of, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.evaluation import Evaluator
from cl_prompts.losses import sigmoid_distillation, softmax_distillation
from cl_prompts.strategies import EWCSettings, LwFSettings, TrainingBatch
from cl_prompts.strategies.state import method_state, restore_method
from scenarios import benchmark_from_plan

SESSIONS = [[5, 2, 5, 2, 2, 5, 2, 5], [2, 0, 0, 3, 4, 0, 4, 3], [3, 0, 4, 0, 3, 1, 1, 1]]
PROMPTS = {"trained": "prompts", "prompt_layers": 2, "prompt_length": 2}
HEAD = {"trained": "head"}


def columns_of(*classes):
    return torch.zeros(CLASSES, dtype=torch.bool).index_fill_(0, torch.tensor(classes), True)


def batch_of(targets, allowed=(0, 1, 2, 3, 4, 5), dtype=torch.float64):
    images = Pictures(targets, seed=8).tensors().to(dtype)
    return TrainingBatch(images, torch.tensor(targets), columns_of(*allowed), columns_of(*allowed))


def double(name, backbone, **settings):
    return make_strategy(name, copy.deepcopy(backbone), settings=settings).model.double()


def watched(name, backbone, settings, **keywords):
    """The strategy, and what its network and its batch-wise state were before each first update of a batch."""
    strategy = make_strategy(name, backbone, settings=settings, **keywords)
    before = []
    strategy.batch_listeners.append(lambda one: before.append(learned(one)))
    return strategy, before


def teacher_of(state):
    return {name.removeprefix("teacher."): tensor for name, tensor in state.items() if name.startswith("teacher.")}


def student_of(state):
    return {name: tensor for name, tensor in state.items() if name.startswith(("body.", "head."))}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- LwF --------------------------------------------------------------------------------------------------------------


def softened(row, columns, temperature):
    weights = [math.exp(float(row[column]) / temperature) for column in columns]
    return [weight / sum(weights) for weight in weights]


def slow_divergence(ours, theirs, columns, temperature):
    rows = []
    for mine, teacher in zip(ours, theirs, strict=True):
        q, p = softened(mine, columns, temperature), softened(teacher, columns, temperature)
        rows.append(sum(right * math.log(right / left) for left, right in zip(q, p, strict=True)))
    return sum(rows) / len(rows)


def logits_of(seed):
    return 3 * torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distillation_by_hand():
    ours, theirs = logits_of(1), logits_of(2)
    found = softmax_distillation(ours, theirs, columns_of(5, 0, 2), 2.0)
    assert float(found) == pytest.approx(slow_divergence(ours, theirs, (0, 2, 5), 2.0), rel=1e-10)
    assert float(softmax_distillation(ours, ours, columns_of(1, 2), 2.0)) == 0.0


@pytest.mark.parametrize("distillation", [softmax_distillation, sigmoid_distillation])
def test_a_teacher_that_knows_nothing_teaches_nothing(distillation):
    ours = logits_of(1).requires_grad_()
    loss = distillation(ours, logits_of(2), torch.zeros(CLASSES, dtype=torch.bool), 2.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not ours.grad.any()


def test_distillation_of_several_labels_by_hand():
    ours, theirs = logits_of(1), logits_of(2)
    terms = []
    for row in range(5):
        for column in (1, 4):
            q, p = (1 / (1 + math.exp(-float(rows[row, column]) / 2)) for rows in (ours, theirs))
            terms.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    found = sigmoid_distillation(ours, theirs, columns_of(1, 4), 2.0)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "factor", "columns"),
    [
        ({"variant": "paper"}, 4.0, (2, 5)),
        ({"variant": "paper", "distillation_temperature": 3.0, "strength": 0.5}, 4.5, (2, 5)),
        ({"variant": "siblurry"}, 0.2, (0, 1, 2, 3, 4, 5)),
    ],
)
@pytest.mark.parametrize("trained", [HEAD, PROMPTS])
def test_the_loss_of_each_variant_by_hand(trained, settings, factor, columns, short_backbone):
    method = double("lwf", short_backbone, **trained, **settings)
    with torch.no_grad():
        for tensor in method.teacher.parameters():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3), dtype=tensor.dtype))
        method.known.copy_(columns_of(*columns))
    batch = batch_of([4, 0, 2])
    outputs = method.training_outputs(batch)
    teacher = method.teacher(method.backbone, batch.images)[1]
    temperature = settings.get("distillation_temperature", 2.0)
    expected = factor * slow_divergence(method(batch.images).detach(), teacher, columns, temperature)
    assert float(outputs.losses["distillation"].detach()) == pytest.approx(expected, rel=1e-8)
    outputs.losses["distillation"].backward()
    assert all(tensor.grad is None for tensor in method.teacher.parameters())
    # Columns that the teacher is not asked about are free.
    assert (method.head.bias.grad != 0).tolist() == columns_of(*columns).tolist()


def test_the_papers_teacher_is_the_network_at_the_last_session_end(short_backbone):
    strategy = make_strategy("lwf", short_backbone, settings=HEAD | {"variant": "paper"})
    ends, known = [], []
    for experience in stream_of(SESSIONS).train_stream:
        strategy.train(experience)
        ends.append(student_of(learned(strategy)))
        known.append(strategy.model.known.nonzero().flatten().tolist())
        assert same(teacher_of(learned(strategy)), ends[-1])
    assert known == [[2, 5], [0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert not same(ends[0], ends[1])


def test_the_published_teacher_is_the_network_after_the_last_batch(short_backbone):
    strategy, states = watched("lwf", short_backbone, HEAD | {"variant": "siblurry"}, train_mb_size=4)
    train(strategy, stream_of(SESSIONS))
    for last, state in itertools.pairwise(states):
        assert same(teacher_of(state), student_of(last))
        assert state["known"].all()
    assert not states[0]["known"].any()


def test_a_snapshot_is_taken_every_so_many_samples_and_knows_the_classes_seen_by_then(short_backbone):
    strategy, states = watched("lwf", short_backbone, HEAD | {"teacher_every": 8}, train_mb_size=4)
    initial = student_of(learned(strategy))
    train(strategy, stream_of(SESSIONS, view="merged"))
    expected = [initial, initial, *(student_of(states[place]) for place in (1, 1, 3, 3))]
    assert [same(teacher_of(state), teacher) for state, teacher in zip(states, expected, strict=True)] == [True] * 6
    known = [state["known"].nonzero().flatten().tolist() for state in states]
    assert known == [[], [], [2, 5], [2, 5], [0, 2, 3, 4, 5], [0, 2, 3, 4, 5]]


def test_an_average_follows_the_weights_and_knows_what_came_before_the_batch(short_backbone):
    settings = HEAD | {"teacher": "average", "teacher_decay": 0.75}
    strategy, states = watched("lwf", short_backbone, settings, train_mb_size=8, updates_per_batch=1)
    expected = student_of(learned(strategy))
    train(strategy, stream_of(SESSIONS, view="merged"))
    for state in states:
        student = student_of(state)
        expected = {name: 0.75 * old + 0.25 * student[name] for name, old in expected.items()}
        for name, tensor in teacher_of(state).items():
            torch.testing.assert_close(tensor, expected[name])
    assert [state["known"].nonzero().flatten().tolist() for state in states] == [[], [2, 5], [0, 2, 3, 4, 5]]


def test_settings_of_lwf():
    assert LwFSettings().declared_needs() == LwFSettings.needs
    assert LwFSettings(variant="paper").declared_needs().boundaries == "required"
    assert LwFSettings(trained="head").declared_needs().passes_per_update == 1
    with pytest.raises(ValueError, match=r"teacher=average: strategy\.variant=paper has a teacher of its own"):
        LwFSettings(variant="paper", teacher="average")
    assert [len(LwFSettings(variant=name).deviations()) for name in ("task_free", "paper", "siblurry")] == [1, 0, 1]


# --- EWC --------------------------------------------------------------------------------------------------------------


def slow_importance(method, images, targets, seen):
    """Mean squared gradient of each image's log-likelihood, one backward pass an image."""
    tensors = list(method.network.parameters())
    sums = [torch.zeros_like(tensor) for tensor in tensors]
    for image, target in zip(images, targets, strict=True):
        row = method(image[None])[0][list(seen)]
        likelihood = torch.log_softmax(row, 0)[list(seen).index(int(target))]
        for total, gradient in zip(sums, torch.autograd.grad(likelihood, tensors), strict=True):
            total += gradient**2
    return [total / len(targets) for total in sums]


def randomised(method, seed):
    with torch.no_grad():
        for tensor in method.network.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)).double())


@pytest.mark.parametrize("trained", [HEAD | {"head": "cosine"}, PROMPTS, {"trained": "all"}])
def test_importance_is_the_mean_over_samples_of_squared_gradients(trained, short_backbone, monkeypatch):
    monkeypatch.setattr("cl_prompts.strategies.ewc.NUMBERS_AT_ONCE", 4 * 600)
    method = double("ewc", short_backbone, variant="paper", **trained)
    targets = torch.tensor([5, 0, 2, 5, 0])
    images = Pictures(targets.tolist(), seed=8).tensors().double()
    method.observe(columns_of(0, 2, 5))
    method.end_session(lambda: [(images[:3], targets[:3]), (images[3:], targets[3:])])
    expected = slow_importance(method, images, targets, (0, 2, 5))
    for found, wanted in zip(method.importance, expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-6, atol=1e-12)
    assert sum(float(one.sum()) for one in expected) > 0


def test_one_penalty_pulls_as_one_for_each_session_would(short_backbone):
    method = double("ewc", short_backbone, variant="paper", strength=7.0, **PROMPTS)
    targets = torch.tensor([5, 0, 2, 3])
    images = Pictures(targets.tolist(), seed=8).tensors().double()
    method.observe(columns_of(0, 2, 3, 5))
    sessions = []
    for number in range(2):
        randomised(method, number)
        half = slice(2 * number, 2 * number + 2)
        sessions.append(
            (
                slow_importance(method, images[half], targets[half], (0, 2, 3, 5)),
                [tensor.detach().clone() for tensor in method.network.parameters()],
            )
        )
        method.end_session(lambda half=half: [(images[half], targets[half])])
    randomised(method, 5)
    method.training_outputs(batch_of([5, 0])).losses["penalty"].backward()
    for place, tensor in enumerate(method.network.parameters()):
        pull = sum(2 * 7.0 * weights[place] * (tensor.detach() - anchors[place]) for weights, anchors in sessions)
        torch.testing.assert_close(tensor.grad, pull, rtol=1e-7, atol=1e-12)
        assert pull.any()


@pytest.mark.parametrize("trained", [HEAD, PROMPTS])
def test_running_averages_are_of_the_classification_alone(trained, short_backbone):
    settings = trained | {"strength": 50.0, "importance_decay": 0.8, "anchor_decay": 0.6}
    method = double("ewc", short_backbone, **settings)
    tensors = list(method.network.parameters())
    importance = [torch.zeros_like(tensor) for tensor in tensors]
    anchors = [tensor.detach().clone() for tensor in tensors]
    optimizer = torch.optim.SGD(tensors, lr=0.05)
    for targets in ([5, 2, 0], [3, 3, 1], [4, 5, 0]):
        batch = batch_of(targets)
        loss = torch.nn.functional.cross_entropy(method(batch.images), batch.targets)
        gradients = torch.autograd.grad(loss, tensors)
        penalty = 50.0 * sum(
            float((weights * (tensor - anchor) ** 2).sum().detach())
            for weights, tensor, anchor in zip(importance, tensors, anchors, strict=True)
        )
        outputs = method.training_outputs(batch)
        assert float(outputs.losses["penalty"].detach()) == pytest.approx(penalty, rel=1e-8)
        optimizer.zero_grad()
        sum(outputs.losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(tensors, 1e-3)  # what is clipped is not what is averaged
        optimizer.step()
        method.after_step()
        importance = [0.8 * old + 0.2 * new**2 for old, new in zip(importance, gradients, strict=True)]
        anchors = [0.6 * old + 0.4 * new.detach() for old, new in zip(anchors, tensors, strict=True)]
        for place in range(len(tensors)):
            torch.testing.assert_close(method.importance[place].detach(), importance[place], rtol=1e-7, atol=1e-14)
            torch.testing.assert_close(method.anchor[place].detach(), anchors[place], rtol=1e-7, atol=1e-14)
    assert penalty > 0


def test_importance_of_several_labels(short_backbone):
    method = double("ewc", short_backbone, variant="paper", **HEAD)
    rows = torch.from_numpy(label_rows(3)).double()
    rows[:, 4] = float("nan")
    images = Pictures([0, 1, 2], seed=8).tensors().double()
    method.observe(columns_of(0, 1, 4, 5))
    method.end_session(lambda: [(images, rows)])
    features, expected = method.query(images), torch.zeros(CLASSES, dtype=torch.float64)
    logits = features @ method.head.weight.T + method.head.bias
    for row in range(3):
        for column in (0, 1, 5):
            slope = (1 / (1 + math.exp(-float(logits[row, column]))) - float(rows[row, column])) / 3
            expected[column] += slope**2 / 3
    torch.testing.assert_close(method.importance[1].detach(), expected, rtol=1e-6, atol=1e-12)


def test_a_session_end_changes_the_penalty_of_the_paper_alone(short_backbone):
    def importance(variant):
        strategy = make_strategy("ewc", short_backbone, settings=HEAD | {"variant": variant}, updates_per_batch=1)
        sums = []
        for experience in stream_of(SESSIONS[:2]).train_stream:
            strategy.train(experience)
            sums.append(sum(float(one.sum()) for one in strategy.model.importance))
        return sums

    assert importance("paper")[1] > importance("paper")[0] > 0
    assert EWCSettings(variant="paper").declared_needs().boundaries == "required"
    assert EWCSettings().declared_needs() == EWCSettings.needs


def test_the_published_ewc_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"variant=siblurry: .*use strategy=linear_probe with twice") as error:
        EWCSettings(variant="siblurry")
    assert sum("siblurry" in line for line in str(error.value).splitlines()) == 1


# --- joint ------------------------------------------------------------------------------------------------------------

TARGETS = labels(40, [5, 0, 3, 1])


def joint_on(order, backbone, cut=20, **keywords):
    sessions = [list(order[:cut]), list(order[cut:])]
    benchmark = benchmark_from_plan(plan_of(sessions, TARGETS), Pictures(TARGETS), Pictures([0, 1]))
    return train(make_strategy("joint", backbone, settings={"epochs": 3}, **keywords), benchmark).model.eval()


def test_joint_by_hand(short_backbone):
    model = joint_on(range(40), short_backbone)
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in model.head.parameters())
    features, targets = model.samples.all()
    assert len(features) == 40
    optimizer = torch.optim.Adam([weight, bias])
    generator = torch.Generator().manual_seed(int(model.order_seed))
    seen = [0, 1, 3, 5]
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.005 * (1 + math.cos(math.pi * epoch / 3)) / 2
        rows = torch.randperm(40, generator=generator)
        logits = (features[rows] @ weight.T + bias)[:, seen]
        own = torch.tensor([seen.index(target) for target in targets[rows].tolist()])
        optimizer.zero_grad()
        (-torch.log_softmax(logits, 1)[torch.arange(40), own]).mean().backward()
        optimizer.step()
    test = short_backbone.query(Pictures([0, 1, 5]).tensors())
    with torch.no_grad():
        torch.testing.assert_close(model(None, test), test @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_joint_forgets_nothing_when_the_order_changes(short_backbone, monkeypatch):
    pictures = Pictures(TARGETS).tensors()
    rows = short_backbone.query(pictures)
    table = {image.numpy().tobytes(): row for image, row in zip(pictures, rows, strict=True)}
    monkeypatch.setattr(
        type(short_backbone), "query", lambda self, images: torch.stack([table[i.numpy().tobytes()] for i in images])
    )
    one = joint_on(range(40), short_backbone)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist()
    two = joint_on(order, short_backbone, cut=7, train_mb_size=3)
    assert all(torch.equal(*pair) for pair in zip(one.samples.all(), two.samples.all(), strict=True))
    assert torch.equal(one(None, rows), two(None, rows))


def test_joint_is_saved_and_restored_with_all_it_saw(short_backbone):
    model = joint_on(range(40), short_backbone)
    file = io.BytesIO()
    torch.save(method_state(model), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = make_strategy("joint", short_backbone, seed=9, settings={"epochs": 3}).model.eval()
    query = short_backbone.query(Pictures([0, 3]).tensors())
    before = other(None, query)
    restore_method(other, state)
    assert torch.equal(other(None, query), model(None, query))
    assert not torch.equal(other(None, query), before)
    # A longer memory is cut to the shorter one of the state.
    other.fit(TrainingBatch(torch.empty(0), torch.tensor([2, 2]), columns_of(2), columns_of(2), query))
    restore_method(other, state)
    assert torch.equal(other(None, query), model(None, query))


def test_joint_trains_once_an_evaluation_and_keeps_its_initial_head(short_backbone, monkeypatch):
    strategy = make_strategy("joint", short_backbone, settings={"epochs": 2})
    trainings, original = [], strategy.model._train
    monkeypatch.setattr(strategy.model, "_train", lambda: trainings.append(1) or original())
    initial = strategy.model.head.weight.clone()
    benchmark = stream_of(SESSIONS)
    evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise, batch_size=5)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        evaluator(strategy.model, strategy.exposed)
        evaluator(strategy.model, strategy.exposed)
    assert len(trainings) == 3
    assert torch.equal(strategy.model.head.weight, initial)
    (notice,) = strategy.model.notices()
    assert "running accuracy" in notice


# --- Avalanche's own --------------------------------------------------------------------------------------------------


def normalise_one(image):
    return normalise(image[None])[0]


def with_plugin(plugin, backbone, sessions, **keywords):
    benchmark = stream_of(sessions, task_label=0, train_transform=normalise_one, eval_transform=normalise_one)
    strategy = make_strategy(
        "linear_probe", backbone, plugins=[plugin], train_transform=None, eval_transform=None, **keywords
    )
    return strategy, list(benchmark.train_stream)


TASKS = [[5, 2, 5, 2, 2, 5, 2, 5], [0, 0, 3, 4, 0, 4, 3, 3]]


def test_distillation_of_avalanche_is_ours_without_the_square(short_backbone):
    from avalanche.training.plugins import LwFPlugin

    often = {"updates_per_batch": 8}
    theirs, experiences = with_plugin(LwFPlugin(alpha=20, temperature=2), short_backbone, TASKS, **often)
    ours = make_strategy("lwf", short_backbone, settings=HEAD | {"variant": "paper", "strength": 20 / 4}, **often)
    for experience, own in zip(experiences, stream_of(TASKS).train_stream, strict=True):
        theirs.train(experience)
        ours.train(own)
    expected = learned(theirs)
    for name, tensor in student_of(learned(ours)).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-5)
    # It did something: without it the weights are others.
    plain = train(make_strategy("linear_probe", short_backbone, **often), stream_of(TASKS))
    assert float((plain.model.head.weight - theirs.model.head.weight).abs().max()) > 1e-3


def test_importance_of_avalanche_is_of_batches_not_of_samples(short_backbone):
    from avalanche.training.plugins import EWCPlugin

    plugin = EWCPlugin(ewc_lambda=1.0)
    theirs, experiences = with_plugin(plugin, short_backbone, TASKS, train_mask="none")
    theirs.train(experiences[0])
    found = plugin.importances[0]["head.bias"].data
    images, targets = Pictures(TASKS[0]).tensors(), torch.tensor(TASKS[0])
    head = theirs.model.head
    loss = torch.nn.functional.cross_entropy(head(short_backbone.query(images)), targets)
    (of_batch,) = torch.autograd.grad(loss, head.bias)
    torch.testing.assert_close(found, of_batch**2, rtol=1e-3, atol=1e-9)
    of_samples = slow_importance_of_bias(head, short_backbone.query(images), targets)
    assert float(of_samples.sum()) > 2 * float(found.sum())
    assert any(name.startswith("backbone.") for name in plugin.saved_params[0])


def slow_importance_of_bias(head, features, targets):
    total = torch.zeros(CLASSES)
    for feature, target in zip(features, targets, strict=True):
        loss = torch.nn.functional.cross_entropy(head(feature[None]), target[None])
        total += torch.autograd.grad(loss, head.bias)[0] ** 2
    return total / len(targets)


def test_more_prompted_blocks_than_there_are_is_refused(short_backbone):
    for name in ("lwf", "ewc"):
        with pytest.raises(StrategyError, match=r"^strategy\.prompt_layers=7: the backbone has 3 blocks$"):
            make_strategy(name, short_backbone, settings={"prompt_layers": 7})
