"""An inspection shows the pixels, classes and parameters of the run that it does not start."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_runs import QUIET, Finished, checked, only_folder, several_words, tiny_words

from cl_prompts.logging.sample_sheet import SheetRow, sample_sheet
from cl_prompts.runs.build import check_device
from cl_prompts.runs.inspection import inspect as module
from cl_prompts.runs.inspection.rows import class_order_rows, listed
from cl_prompts.runs.inspection.samples import IMAGES, session_samples
from cl_prompts.runs.prepared import prepare
from cl_prompts.runs.schema import RunSettings
from cl_prompts.strategies.images import ImagePreparation
from scenarios import StreamPlan
from scenarios.si_blurry import si_blurry_plan


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Nobody waits here for two seconds."""
    measure = module.measure
    monkeypatch.setattr(module, "measure", lambda *arguments: measure(*arguments, seconds=0.02))


def inspected(tmp_path, capsys, *words):
    config = checked(*QUIET, f"output={tmp_path}", *words)
    code = module.inspect(config)
    folder = Finished(code, only_folder(tmp_path))
    record = json.loads(folder.text("inspection/inspection.json"))
    return folder, record, capsys.readouterr().out


def test_an_inspection_leaves_a_folder_without_results_and_says_what_the_run_would_be(one_thread, tmp_path, capsys):
    folder, record, output = inspected(tmp_path, capsys, *tiny_words("mvp"))
    assert folder.code == 0
    assert folder.files == {"config.yaml", "manifest.json", "plan.npz", "plan.json", "inspection"}
    assert {path.name for path in (folder.folder / "inspection").iterdir()} == {
        "stream.png",
        "samples.png",
        "inspection.json",
    }
    assert "_inspect-si_blurry-mvp-digits-seed1" in folder.folder.name
    plan = StreamPlan.load(folder.folder)
    assert record["stream"] == {"sha256": plan.sha256, "description": plan.describe()}
    order = plan.targets[plan.order]
    assert [entry["class"] for entry in record["class_order"]] == list(dict.fromkeys(order.tolist()))
    assert [order[entry["first_shown"]] for entry in record["class_order"]] == list(dict.fromkeys(order.tolist()))
    lines = output.splitlines()
    labels = [line[:10].strip() for line in lines if line[:10].strip()]
    assert labels[0] == "weights"
    assert labels[-6:] == ["unpinned", "trained", "passes", "estimate", "measured", "written"]
    # A sentence or a path is never broken.
    assert max(len(line) for line in lines if not line.startswith(("warning", "written"))) <= 80


def test_groups_of_trainable_parameters_are_those_the_run_trains(one_thread, run_tiny, tmp_path, capsys):
    _, record, output = inspected(tmp_path / "inspected", capsys, *tiny_words("mvp"))
    run = run_tiny("mvp")
    groups = record["trainable_parameters"]
    assert sum(groups.values()) == run.summary["trainable_parameters"]
    assert set(groups) == {"general_prompt", "expert_prompts", "keys", "soft_masks", "head"}
    assert groups["head"] == 10 * 24 + 10
    assert f"head {groups['head']}" in output
    assert record["work"]["updates"] == run.summary["updates"]
    assert record["backbone"]["checkpoint"] == "untrained"


def test_a_method_in_closed_form_trains_nothing_and_changes_no_image(one_thread, tmp_path, capsys):
    _, record, output = inspected(tmp_path, capsys, *tiny_words("ncm", "protocol.augmentation=crop_flip"))
    assert record["trainable_parameters"] == {}
    assert "nothing is trained by gradient" in output
    assert record["measured"]["passes"]["backward"] == 0


@pytest.fixture
def first_updates(monkeypatch):
    """(sample, earlier presentations) -> normalised pixels of every sample in the first update of its batch."""
    seen: dict[int, list[torch.Tensor]] = {}
    original = ImagePreparation.for_training

    def recording(self, images, sample_ids, stream_size, *, pass_number, updates):
        result = original(self, images, sample_ids, stream_size, pass_number=pass_number, updates=updates)
        if pass_number == 0:
            for sample, pixels in zip(sample_ids.tolist(), result, strict=True):
                seen.setdefault(sample, []).append(pixels)
        return result

    monkeypatch.setattr(ImagePreparation, "for_training", recording)
    return seen


CHANGES = {
    "images": ("protocol.augmentation=crop_flip",),
    "merged": ("protocol.augmentation=crop", "protocol.augment_per=batch", "scenario.view=merged"),
    "shuffled": (
        "scenario=disjoint",
        "protocol.augmentation=crop",
        "protocol.augment_per=batch",
        "protocol.epochs=2",
        "protocol.shuffle=true",
        "protocol.stream_batch=3",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_shown_pixels_are_those_that_the_run_trains_on(run_tiny, first_updates, case):
    words = CHANGES[case]
    run = run_tiny("linear_probe", *words)
    trained_on = {sample: pixels[0] for sample, pixels in first_updates.items()}
    config = checked(*QUIET, *tiny_words("linear_probe", *words))
    again = prepare(config, check_device("cpu"))
    shown = list(session_samples(config, again.data, again.learner))
    assert [row.session for row in shown] == [0, 1, 2, 3, 4]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.backbone.mean, config.backbone.std))
    changed = 0
    for row in shown:
        assert set(row.samples) <= set(again.data.plan.sessions[row.session].tolist())
        assert len(set(row.samples.tolist())) == len(row.samples) <= IMAGES
        for sample, pixels, plain in zip(row.samples.tolist(), row.trained, row.evaluated, strict=True):
            expected = ((trained_on[sample] * std + mean) * 255).round().to(torch.uint8).numpy()
            assert np.array_equal(pixels, expected)
            native = again.learner.eval_transform.square(again.data.train.images([sample]))[0].numpy()
            assert np.array_equal(plain, native)
            changed += not np.array_equal(pixels, plain)
    assert changed > 0
    assert run.code == 0


def test_pixels_of_several_labels_are_those_of_the_session_that_shows_them(run_several, first_updates):
    """An image comes back in later sessions, with another draw each time."""
    run_several("mlcil", "multi_lane", "protocol.augmentation=crop")
    recorded = {sample: list(pixels) for sample, pixels in first_updates.items()}
    config = checked(*QUIET, *several_words("mlcil", "multi_lane", "protocol.augmentation=crop"))
    again = prepare(config, check_device("cpu"))
    plan = again.data.plan
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.backbone.mean, config.backbone.std))
    returned = 0
    for row in session_samples(config, again.data, again.learner):
        for sample, pixels, caption in zip(row.samples.tolist(), row.trained, row.captions, strict=True):
            earlier = sum(sample in rows for rows in plan.sessions[: row.session])
            returned += earlier > 0
            expected = recorded[sample][earlier * config.protocol.epochs]
            assert np.array_equal(pixels, ((expected * std + mean) * 255).round().to(torch.uint8).numpy())
            labels = np.flatnonzero(plan.targets[sample] * plan.session_columns[row.session])
            assert caption == ", ".join(again.data.train.class_names[label] for label in labels)
    assert returned > 0


def test_frequent_classes_of_a_session_are_shown_before_rare_ones_and_one_of_each(one_thread):
    config = checked(*QUIET, *tiny_words("linear_probe", "scenario.n_sessions=2", "dataset.train_per_class=20"))
    again = prepare(config, check_device("cpu"))
    plan = again.data.plan
    for row in session_samples(config, again.data, again.learner):
        classes = plan.targets[row.samples].tolist()
        present = np.flatnonzero(plan.counts[row.session])
        assert len(set(classes)) == min(IMAGES, len(present))
        rarest_shown = min(plan.counts[row.session][label] for label in classes)
        left_out = [plan.counts[row.session][label] for label in present if label not in classes]
        assert all(count <= rarest_shown for count in left_out)


def test_the_order_of_many_classes_and_sessions_stays_a_few_lines():
    plan = si_blurry_plan(np.arange(3000) % 100, n_sessions=20, disjoint_class_pct=100, seed=1)
    first = [int(place) for place in plan.first_seen]
    lines = class_order_rows(plan, first)
    assert lines[0].startswith("order     session 0, ")
    assert lines[-1] == "          12 of 20 sessions are shown"
    assert max(map(len, lines)) <= 80
    (shown,) = (line for line in lines if "session 19, " in line)
    new = [label for label in range(100) if plan.home_session[label] == 19]
    assert f"{len(new)} new: " in shown


def test_long_lists_end_with_how_many_are_left_out():
    names = [f"class number {number}" for number in range(60)]
    lines = listed(names, "start: ")
    assert len(lines) <= 3
    text = " ".join(lines)
    assert text.startswith("start: class number 0, class number 1, ")
    more = int(text.rpartition(", and ")[2].removesuffix(" more"))
    assert text.count("class number") == 60 - more
    assert listed(names[:3], "") == ["class number 0, class number 1, class number 2"]


def test_the_sheet_places_every_image_and_its_caption():
    generator = np.random.default_rng(0)

    def row(label, captions, trained=True):
        images = generator.integers(0, 256, (len(captions), 3, 8, 8), dtype=np.uint8)
        return SheetRow(label, captions, images, 255 - images if trained else None)

    rows = [row("session 0", ["ant", "bee"]), row("session 1", ["a class with a very long name indeed"])]
    axes = sample_sheet(rows, title="what it is").axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert {"what it is", "session 0", "session 1", "ant", "bee", "a class with a very lon…"} <= set(texts)
    assert texts.count("evaluated") == texts.count("trained on") == 2
    shown = [np.asarray(image.get_array()) for image in axes.images]
    assert np.array_equal(shown[0], rows[0].evaluated[0].transpose(1, 2, 0))
    assert np.array_equal(shown[1], 255 - shown[0])
    assert len(shown) == 6
    places = [image.get_extent() for image in axes.images]
    assert len({tuple(place) for place in places}) == 6
    alone = sample_sheet([row("session 0", ["ant"], trained=False)], title="").axes[0]
    assert len(alone.images) == 1
    assert "trained on" not in [text.get_text() for text in alone.texts]


def test_every_mode_has_something_to_do():
    from cl_prompts.runs.jobs import MODES

    assert set(MODES) == set(RunSettings.model_fields["mode"].annotation.__args__)
