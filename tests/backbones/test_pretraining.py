"""The recipe of the bundled backbone: its settings, what the student sees, exact continuation, and its product."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cl_prompts.backbones import build_backbone
from cl_prompts.backbones.pretrain.__main__ import main
from cl_prompts.backbones.pretrain.loop import Pretraining
from cl_prompts.backbones.pretrain.settings import PretrainSettings, help_text, read_words
from cl_prompts.backbones.pretrain.student import Student, average_weight, learning_rate, parameter_groups
from cl_prompts.backbones.pretrain.teacher import teacher_targets
from cl_prompts.backbones.pretrain.views import cut, draw_crops, order_of
from cl_prompts.backbones.settings import BackboneSettings, bundled_weights
from cl_prompts.backbones.weight_checks import file_sha256
from cl_prompts.errors import BackboneError

SMALL = [
    "img_size=16",
    "patch_size=8",
    "embed_dim=16",
    "depth=2",
    "num_heads=2",
    "batch=8",
    "warmup=16",
    "progress=none",
]
TEACHER = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes that differ in colour, 12 images each."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number, name in enumerate(("red", "blue")):
        (root / name).mkdir()
        for index in range(12):
            pixels = noise.integers(0, 120, (16, 16, 3))
            pixels[..., 2 * number] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index:02d}.png")
    return root


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(timm.create_model(TEACHER, pretrained=False, num_classes=0).state_dict(), path)
    return path


def with_teacher(teacher_file: Path) -> list[str]:
    return [f"teacher={TEACHER}", f"teacher_checkpoint={teacher_file}", "teacher_size=32"]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "weights.safetensors")


def run(folder: Path, output: Path, *words: str) -> int:
    return main([f"images={folder}", f"output={output}", *SMALL, *words])


def learner(settings: PretrainSettings) -> Pretraining:
    noise = np.random.default_rng(1)
    images = noise.integers(0, 256, (20, 3, 16, 16), dtype=np.uint8)
    return Pretraining(settings, images, np.arange(20, dtype=np.int64) % 4, None, content="noise")


def small(*words: str) -> PretrainSettings:
    return read_words(["images=x", "output=y", *SMALL, *words])


class TestSettings:
    def test_every_key_is_in_the_help(self):
        for key in PretrainSettings.model_fields:
            assert f"  {key}=" in help_text()

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("batch=0", "batch=0"),
            ("batches=3", "batches: no such key; choose among images, output"),
            ("img_size=30", "img_size=30 is not a multiple of patch_size=8"),
            ("embed_dim=15", "embed_dim=15 is not a multiple of num_heads=2"),
            ("labels_weight=0", "nothing to learn from: set teacher="),
            ("teacher_checkpoint=file.pth", "teacher_checkpoint is set but no teacher"),
            ("batch", "batch: settings are written key=value"),
        ],
    )
    def test_a_mistake_is_one_line(self, word, expected, capsys):
        assert main(["images=x", "output=y", *SMALL, word]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert expected in lines[0]

    def test_what_is_missing_is_named(self, capsys):
        assert main(["batch=8"]) == 2
        assert "images: missing; set images=" in capsys.readouterr().err


class TestViews:
    def test_crops_stay_inside_and_keep_the_area(self):
        crops = draw_crops(2000, seed=3, passed=1, area=0.4)
        extents, centres = np.abs(crops[:, :2]), crops[:, 2:]
        assert (extents <= 1).all()
        assert (np.abs(centres) + extents <= 1 + 1e-6).all()
        inside = (extents < 1).all(axis=1)
        assert extents[inside].prod(axis=1).min() >= 0.4 - 1e-6
        assert 0.4 < (crops[:, 0] < 0).mean() < 0.6
        assert not np.array_equal(crops, draw_crops(2000, seed=3, passed=2, area=0.4))
        assert np.array_equal(crops, draw_crops(2000, seed=3, passed=1, area=0.4))

    def test_the_whole_image_is_itself_and_a_negative_extent_mirrors(self):
        maps = torch.randn(2, 3, 8, 8)
        whole = torch.tensor([[1.0, 1.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0]])
        result = cut(maps, whole, 8)
        assert torch.allclose(result[0], maps[0], atol=1e-5)
        assert torch.allclose(result[1], maps[1].flip(-1), atol=1e-5)

    def test_a_quarter_is_the_slice_at_its_place(self):
        maps = torch.arange(64.0).view(1, 1, 8, 8)
        quarter = torch.tensor([[0.5, 0.5, 0.5, -0.5]])  # right half, upper half
        assert torch.allclose(cut(maps, quarter, 4)[0, 0], maps[0, 0, :4, 4:], atol=1e-4)

    def test_image_and_features_are_cut_at_the_same_place(self):
        """A feature map that is the image's own mean over patches: its crop equals the mean of the image's crop."""
        ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32) + torch.linspace(0, 2, 32).view(32, 1)
        features = torch.nn.functional.avg_pool2d(ramp, 2)
        crops = torch.tensor([[-0.5, 0.6, 0.2, -0.1]])
        image = torch.nn.functional.avg_pool2d(cut(ramp, crops, 32), 4)
        assert torch.allclose(cut(features, crops, 8), image, atol=2e-2)

    def test_each_pass_holds_every_image_once(self):
        first, second = (order_of(50, seed=0, passed=number) for number in (0, 1))
        assert sorted(first) == sorted(second) == list(range(50))
        assert not np.array_equal(first, second)


class TestLoop:
    def test_batches_run_through_all_images_in_passes(self):
        training = learner(small("samples=40"))
        seen = []
        for _ in range(5):
            chosen, crops = training._next()
            assert len(chosen) == len(crops) == 8
            seen += chosen.tolist()
            training.seen += 8
        assert sorted(seen[:20]) == sorted(seen[20:40]) == list(range(20))

    def test_stopped_and_continued_ends_with_the_same_bits(self, tmp_path):
        settings = small("samples=160", "drop_patches=0.5", "drop_until=0.6")
        straight = learner(settings)
        straight.run(lambda *_: None, lambda: None)
        first = learner(settings)
        first.run(lambda *_: None, lambda: None, until=72)
        first.save(tmp_path)
        torch.manual_seed(999)
        second = learner(settings)
        assert second.load(tmp_path)
        assert second.seen == 72
        second.run(lambda *_: None, lambda: None)
        for name, value in straight.weights().items():
            assert torch.equal(value, second.weights()[name]), name
        for one, other in zip(straight.student.parameters(), second.student.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_the_global_random_state_is_not_touched(self):
        before = torch.random.get_rng_state()
        learner(small("samples=16")).run(lambda *_: None, lambda: None)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_a_checkpoint_of_another_recipe_is_refused_with_the_difference(self, tmp_path):
        learner(small("samples=16")).save(tmp_path)
        with pytest.raises(BackboneError, match=r"lr=0\.0015 there, 0\.1 here"):
            learner(small("samples=16", "lr=0.1")).load(tmp_path)
        assert learner(small("samples=16", "save_seconds=7", "threads=1")).load(tmp_path)

    def test_a_damaged_checkpoint_is_refused(self, tmp_path):
        (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
        with pytest.raises(BackboneError, match="cannot be read"):
            learner(small("samples=16")).load(tmp_path)

    def test_an_exploding_loss_stops_with_advice(self):
        training = learner(small("samples=16"))
        torch.nn.init.constant_(training.student.to_classes.weight, float("nan"))
        with pytest.raises(BackboneError, match=r"loss is nan .* lower lr"):
            training.run(lambda *_: None, lambda: None)

    def test_schedule_rises_then_falls_to_zero(self):
        settings = small("samples=10000", "warmup=1000", "batch=10", "lr=1")
        rates = [learning_rate(seen, settings) for seen in range(0, 10000, 10)]
        top = rates.index(max(rates))
        assert top * 10 == 1000
        assert max(rates) == 1.0
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert rates[-1] < 1e-5
        assert average_weight(0, settings) == pytest.approx(0.1)
        assert average_weight(10**6, settings) == settings.averaging

    def test_only_matrices_decay(self):
        student = Student(small(), classes=3, teacher_width=None)
        decayed, free = (group["params"] for group in parameter_groups(student, 0.1))
        assert all(value.ndim > 1 for value in decayed)
        names = {id(value): name for name, value in student.named_parameters()}
        assert {"vit.pos_embed", "vit.cls_token"} <= {names[id(value)] for value in free}
        assert len(decayed) + len(free) == len(names)

    def test_dropped_patches_are_compared_with_the_targets_of_those_kept(self):
        student = Student(small("labels_weight=1"), classes=2, teacher_width=16)
        states, kept = student.states(torch.randn(3, 3, 16, 16), 0.5)
        assert states.shape == (3, 3, 16)
        assert kept.shape == (3, 2)
        full, every = student.states(torch.randn(3, 3, 16, 16), 0.0)
        assert every is None
        assert full.shape == (3, 5, 16)


class TestTeacher:
    def test_targets_are_the_features_and_are_computed_once(self, tmp_path, teacher_file):
        settings = BackboneSettings(
            name="teacher",
            timm_name=TEACHER,
            img_size=32,
            checkpoint=str(teacher_file),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )
        teacher = build_backbone(settings, seed=0)
        images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
        half = torch.full((3, 1, 1), 0.5)
        calls = []

        def targets(identity):
            return teacher_targets(
                teacher,
                images,
                tmp_path,
                identity=identity,
                normalisation=(half, half),
                size=32,
                precision=torch.float32,
                device=torch.device("cpu"),
                progress=lambda *numbers: calls.append(numbers),
            )

        first = targets({"images": "a"})
        assert calls == [(5, 5)]
        enlarged = torch.nn.functional.interpolate(
            torch.from_numpy(images).float() / 255, size=(32, 32), mode="bicubic", antialias=True
        ).clamp(0, 1)
        with torch.no_grad():
            states = teacher.model.forward_features((enlarged - 0.5) / 0.5)
        chosen = np.array([3, 1])
        class_tokens, patches = first.read(chosen)
        mean, deviation = first.statistics[0]
        assert torch.allclose(class_tokens * deviation + mean, states[chosen, 0], atol=5e-3)
        mean, deviation = first.statistics[1]
        back = patches.permute(0, 2, 3, 1) * deviation + mean
        assert torch.allclose(back, states[chosen, 1:].unflatten(1, (2, 2)), atol=5e-3)
        again = targets({"images": "a"})
        assert len(calls) == 1
        assert np.array_equal(again.class_tokens, first.class_tokens)
        with pytest.raises(BackboneError, match="another teacher or of other images"):
            targets({"images": "b"})


class TestCommand:
    def test_a_few_updates_lower_the_loss_and_write_a_product_that_loads(self, folder, tmp_path, teacher_file):
        output = tmp_path / "out"
        assert run(folder, output, *with_teacher(teacher_file), "samples=1608", "averaging=0.9") == 0
        with (output / "curve.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["samples"]) for row in rows] == [8, 808, 1608]
        for term in ("labels", "class_token", "patches"):
            assert float(rows[-1][term]) < float(rows[0][term])
        card = json.loads((output / "card.json").read_text())
        assert card["samples"] == 1608
        backbone = build_backbone(
            BackboneSettings(
                name="mine",
                img_size=16,
                patch_size=8,
                embed_dim=16,
                depth=2,
                num_heads=2,
                checkpoint=str(output / "weights.safetensors"),
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
            ),
            seed=0,
        )
        assert backbone.identity["sha256"] == card["sha256"]
        assert {value.dtype for value in weights(output).values()} == {torch.bfloat16}

    def test_the_same_command_goes_on_and_repeats(self, folder, tmp_path):
        straight, broken = tmp_path / "straight", tmp_path / "broken"
        assert run(folder, straight, "samples=160") == 0
        assert run(folder, broken, "samples=160", "save_seconds=0") == 0
        (broken / "weights.safetensors").unlink()
        assert run(folder, broken, "samples=160") == 0
        for name, value in weights(straight).items():
            assert torch.equal(value, weights(broken)[name])

    def test_a_folder_in_use_is_refused(self, folder, tmp_path, capsys):
        from filelock import FileLock

        (tmp_path / "out").mkdir()
        with FileLock(tmp_path / "out" / ".lock"):
            assert run(folder, tmp_path / "out", "samples=16") == 2
        assert "in use by another process" in capsys.readouterr().err

    def test_no_images_is_one_line(self, tmp_path, capsys):
        assert run(tmp_path / "nothing", tmp_path / "out", "samples=16") == 2
        assert len(capsys.readouterr().err.splitlines()) == 1

    def test_an_unknown_teacher_is_one_line(self, folder, tmp_path, capsys):
        assert run(folder, tmp_path / "out", "samples=16", "teacher=vit_none.tag") == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "vit_none.tag" in error


def test_the_card_of_the_bundled_weights_names_the_file_that_ships():
    weights_folder = bundled_weights("vit_nano").parent
    card = (weights_folder / "vit_nano.md").read_text(encoding="utf-8")
    file = weights_folder / "vit_nano.safetensors"
    assert file_sha256(file) in card
    assert f"{file.stat().st_size:,} bytes" in card
    assert file.stat().st_size <= 6_000_000
    assert sum(value.numel() for value in load_file(file).values()) == 2_691_648
