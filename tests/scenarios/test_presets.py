"""The papers' pipelines against torchvision's own, fed with the same draws; evaluation that never draws."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import v2

from cl_prompts.backbones.settings import BackboneSettings
from cl_prompts.runs.compose import config_folder, open_composer
from cl_prompts.runs.schema import ProtocolSettings
from scenarios.presets import AUGMENTATIONS, PRESETS
from scenarios.transforms import CROPS, EvalTransform, TrainTransform

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SEED, PASS = 11, 2
BOTH = [v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC]
FILTERS = {mode.value: mode for mode in BOTH}
PUBLISHED = {  # what the papers' code calls: AutoAugment, area of a random resized crop, padding of a random crop
    "l2p": (None, 0.05, None),
    "coda_prompt": (None, 0.08, None),
    "multi_lane": (None, 0.05, None),
    "ranpac": (None, 0.05, None),
    "mvp_cifar": (v2.AutoAugmentPolicy.CIFAR10, None, 4),
    "mvp_imagenet": (v2.AutoAugmentPolicy.IMAGENET, None, 4),
}


def pictures(count, height=18, width=18, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def words_of(sample):
    return [int(word) for word in np.random.Philox(key=[SEED, sample], counter=[0, 0, 0, PASS]).random_raw(22)]


def halves(word):
    """The upper and the lower 32 bits as numbers in [0, 1)."""
    return (word >> 32) / 2**32, (word & 0xFFFFFFFF) / 2**32


def rectangle(words, height, width, smallest):
    """The loop of torchvision's RandomResizedCrop, with numbers of ours in place of its draws."""
    for first, second in zip(words[2::2], words[3::2], strict=True):
        (area, ratio), (down, right) = halves(first), halves(second)
        covered = height * width * (smallest + area * (1 - smallest))
        shape = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
        wide, high = round(math.sqrt(covered * shape)), round(math.sqrt(covered / shape))
        if 0 < wide <= width and 0 < high <= height:
            return int(down * (height - high + 1)), int(right * (width - wide + 1)), high, wide
    raise AssertionError("no try fits: take larger pictures")


class DrawnResizedCrop(v2.RandomResizedCrop):
    """With given draws."""

    def __init__(self, words, size, smallest):
        super().__init__(size, scale=(smallest, 1), ratio=(3 / 4, 4 / 3), antialias=True)
        self.words = words

    def make_params(self, images):
        height, width = images[0].shape[-2:]
        names = ("top", "left", "height", "width")
        return dict(zip(names, rectangle(self.words, height, width, self.scale[0]), strict=True))


class DrawnCrop(v2.RandomCrop):
    """With given draws."""

    def __init__(self, words, size, padding):
        super().__init__(size, padding=padding)
        self.words = words

    def make_params(self, images):
        row, column = halves(self.words[0])
        chosen = {"top": int(row * 9), "left": int(column * 9)}
        return {**super().make_params(images), **chosen}


def normalised(image):
    """ToTensor and Normalize, on what a Pillow image of these pixels would give."""
    return transforms.Normalize(MEAN, STD)(image.to(torch.float32) / 255)


def published(name, image, words, size):
    """Torchvision's pipeline on one image."""
    policy, area, padding = PUBLISHED[name]
    mode = FILTERS[PRESETS[name].interpolation]
    steps = []
    if policy is not None:
        steps.append(v2.AutoAugment(policy))
    if area is not None:
        steps.append(DrawnResizedCrop(words, size, area))
    else:
        steps += [v2.Resize((size, size), mode, antialias=True), DrawnCrop(words, size, padding)]
    steps += [v2.RandomHorizontalFlip(words[1] & 1), normalised]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(words[1] >> 1)
        return v2.Compose(steps)(image)


def ours(name, size=24, per="image"):
    preset = PRESETS[name]
    arguments = {"augmentation": name, "per": per, "seed": SEED, "interpolation": preset.interpolation}
    return TrainTransform(size, MEAN, STD, crop=preset.eval_crop, **arguments)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("per", ["image", "batch"])
def test_training_pixels_are_torchvisions(name, per):
    images, ids = pictures(24), range(40, 64)
    keys = [40] * 24 if per == "batch" else ids
    expected = [published(name, image, words_of(key), 24) for image, key in zip(images, keys, strict=True)]
    assert torch.equal(ours(name, per=per)(images, ids, PASS), torch.stack(expected))
    assert set(PUBLISHED) == set(PRESETS)


def test_presets_differ_where_the_papers_do():
    images = pictures(24)
    results = {name: ours(name)(images, range(24), PASS) for name in PRESETS}
    assert torch.equal(results["l2p"], results["multi_lane"])
    assert torch.equal(results["l2p"], results["ranpac"])
    for name in ("coda_prompt", "mvp_cifar", "mvp_imagenet"):
        assert not torch.equal(results["l2p"], results[name])
    assert not torch.equal(results["mvp_cifar"], results["mvp_imagenet"])


# Evaluation


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(32, 32), (28, 28), (32, 50), (70, 41)])
def test_evaluation_is_torchvisions(name, shape):
    preset = PRESETS[name]
    mode, images = FILTERS[preset.interpolation], pictures(3, *shape)
    steps = {
        "resize": [v2.Resize((28, 28), mode, antialias=True)],
        "resized_centre": [v2.Resize(int(256 / 224 * 28), mode, antialias=True), v2.CenterCrop(28)],
    }[preset.eval_crop]
    expected = torch.stack([v2.Compose([*steps, normalised])(image) for image in images])
    transform = EvalTransform(28, MEAN, STD, preset.interpolation, preset.eval_crop)
    assert torch.equal(transform(images), expected)


def test_the_sides_of_the_published_code():
    image = pictures(1, 300, 400)[0]
    reference = v2.Compose([v2.Resize(256, FILTERS["bicubic"], antialias=True), v2.CenterCrop(224), normalised])
    assert torch.equal(EvalTransform(224, MEAN, STD, crop="resized_centre")(image), reference(image))


class Transformed(torch.utils.data.Dataset):
    """Images that a worker transforms, one at a time."""

    def __init__(self, images, transform):
        self.images = images
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index])


@pytest.mark.parametrize("crop", CROPS)
@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), order=st.permutations(range(6)), cut=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_evaluation_depends_on_the_image_alone(crop, shape, order, cut):
    images = pictures(6, *shape)
    transform = EvalTransform(20, MEAN, STD, crop=crop)
    expected = torch.stack([transform(image) for image in images])
    torch.manual_seed(cut)
    state = torch.get_rng_state()
    batches = [transform(images[part]) for part in torch.tensor(order).split(cut)]
    assert torch.equal(torch.cat(batches), expected[order])
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_is_the_same_in_workers():
    images = pictures(12, 32, 32)
    for crop in CROPS:
        transform = EvalTransform(20, MEAN, STD, crop=crop)
        loader = DataLoader(Transformed(images, transform), batch_size=5, num_workers=2, shuffle=False)
        assert torch.equal(torch.cat(list(loader)), transform(images))


# What the keys may be


def test_the_schema_allows_what_there_is():
    fields = ProtocolSettings.model_fields
    assert set(get_args(fields["augmentation"].annotation)) == set(AUGMENTATIONS)
    assert set(get_args(fields["eval_crop"].annotation)) == set(CROPS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_values_that_the_keys_may_have(name):
    preset = PRESETS[name]
    ProtocolSettings(augmentation=name, eval_crop=preset.eval_crop, augment_per=preset.augment_per)
    assert preset.interpolation in FILTERS
    assert preset.normalisation in get_args(BackboneSettings.model_fields["normalisation"].annotation)
    assert preset.source


def test_recipes_do_what_their_papers_did():
    found = set()
    with open_composer() as composer:
        for path in config_folder().glob("experiment/*.yaml"):
            config = composer.compose({"experiment": path.stem}).config
            protocol, backbone = config.protocol, config.backbone
            preset = PRESETS.get(protocol.augmentation)
            if (
                preset is None or backbone.name == "vit_nano"
            ):  # shortened recipes have a backbone and input of their own
                continue
            found.add(protocol.augmentation)
            # Files decoded to 256 pixels need their centre only.
            crop = "centre" if config.dataset.get("size") == 256 else preset.eval_crop
            assert (protocol.eval_crop, protocol.augment_per) == (crop, preset.augment_per), path.stem
            assert backbone.normalisation == preset.normalisation, path.stem
    assert found == {"coda_prompt", "l2p", "multi_lane", "mvp_cifar"}
