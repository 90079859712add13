"""Evaluation and training transforms against torchvision, slow oracles, and each other."""

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as torchvision_transforms
from torchvision.transforms import v2

from scenarios import _resized_crop
from scenarios.datasets._decoding import Decoder
from scenarios.errors import DataError
from scenarios.presets import AUGMENTATIONS
from scenarios.transforms import EvalTransform, TrainTransform

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
RANDOM = sorted(set(AUGMENTATIONS) - {"none"})
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def pictures(count, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def train_transform(augmentation, size=16, seed=7, mean=MEAN, std=STD, **kwargs):
    return TrainTransform(size, mean, std, augmentation=augmentation, seed=seed, **kwargs)


def pixels(outputs):
    """Back to uint8 from a transform with mean 0 and standard deviation 1."""
    return (outputs * 255).round().to(torch.uint8)


def plain(augmentation, **kwargs):
    return train_transform(augmentation, mean=BLACK, std=WHITE, **kwargs)


# Evaluation


def test_without_resizing_equal_to_torchvision():
    images = pictures(5)
    reference = torchvision_transforms.Compose(
        [torchvision_transforms.ToTensor(), torchvision_transforms.Normalize(MEAN, STD)]
    )
    expected = torch.stack([reference(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    ours = EvalTransform(16, MEAN, STD)(images)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)
    assert images.min() > 0  # the input was not written to


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape, size", [((32, 32), 50), ((60, 44), 24), ((16, 30), 16)])
def test_resizing_is_pillows_within_one_grey_level(interpolation, shape, size):
    images = pictures(3, *shape)
    mode = Image.Resampling[interpolation.upper()]
    ours = pixels(EvalTransform(size, BLACK, WHITE, interpolation)(images))
    for image, own in zip(images, ours, strict=True):
        reference = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), mode))
        assert np.abs(reference.astype(int) - own.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_one_image_equals_its_row_in_a_batch():
    images = pictures(3, 20, 30)
    transform = EvalTransform(12, MEAN, STD)
    batch = transform(images)
    assert batch.shape == (3, 3, 12, 12)
    assert torch.equal(transform(images[1]), batch[1])
    assert not transform.is_random


def test_no_augmentation_is_evaluation():
    images = pictures(4, 20, 20)
    transform = train_transform("none", size=24)
    assert not transform.is_random
    assert torch.equal(transform(images, [1, 2, 3, 4], 5), EvalTransform(24, MEAN, STD)(images))


@pytest.mark.parametrize(
    "shape, size", [((40, 40), 35), ((41, 33), 20), ((20, 33), 20), ((20, 20), 20), ((21, 21), 20)]
)
def test_the_centre_is_torchvisions(shape, size):
    images = pictures(3, *shape)
    ours = EvalTransform(size, BLACK, WHITE, crop="centre")(images)
    assert torch.equal(pixels(ours), torchvision_transforms.CenterCrop(size)(images))
    assert torch.equal(
        train_transform("none", size=size, mean=BLACK, std=WHITE, crop="centre")(images, range(3), 0), ours
    )
    assert torch.equal(EvalTransform(size, BLACK, WHITE, crop="centre")(images[1]), ours[1])


def test_an_image_without_such_a_centre_is_resized():
    images = pictures(2, 19, 40)
    assert torch.equal(EvalTransform(20, MEAN, STD, crop="centre")(images), EvalTransform(20, MEAN, STD)(images))


def test_resizing_and_cutting_the_centre_is_the_published_evaluation(tmp_path):
    # A file decoded to 64 pixels, then the centre of 56: Resize(64), CenterCrop(56) of torchvision on the file.
    image = Image.fromarray(pictures(1, 90, 70)[0].permute(1, 2, 0).numpy())
    image.save(tmp_path / "a.png")
    decoded, _ = Decoder(64, "bicubic")(tmp_path / "a.png")
    reference = torchvision_transforms.Compose(
        [
            torchvision_transforms.Resize(64, torchvision_transforms.InterpolationMode.BICUBIC),
            torchvision_transforms.CenterCrop(56),
            torchvision_transforms.ToTensor(),
        ]
    )
    ours = EvalTransform(56, BLACK, WHITE, crop="centre")(torch.from_numpy(decoded.copy()))
    assert torch.equal(ours, reference(image))


# Random crop and flip against a slow search


def candidates(image):
    """Every crop of the padded image, and its mirror image, by (row, column, mirrored)."""
    padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
    size = image.shape[-1]
    found = {}
    for row in range(9):
        for column in range(9):
            crop = padded[:, row : row + size, column : column + size]
            found[crop.tobytes()] = (row, column, False)
            found[crop[:, :, ::-1].tobytes()] = (row, column, True)
    return found


def placements(augmentation, count, pass_number=0, per="image", size=6):
    image = pictures(1, size, size)[0]
    outputs = pixels(
        plain(augmentation, size=size, per=per)(image.expand(count, -1, -1, -1), range(count), pass_number)
    )
    table = candidates(image)
    return [table[output.numpy().tobytes()] for output in outputs]


def test_crops_and_flips_are_uniform_and_independent():
    count = 4000
    draws = np.array(placements("crop_flip", count))
    for column, sides in ((0, 9), (1, 9), (2, 2)):
        observed = np.bincount(draws[:, column], minlength=sides)
        expected = count / sides
        chi_square = ((observed - expected) ** 2 / expected).sum()
        assert chi_square < 30  # 8 degrees of freedom: chance below 3e-4; the draw is fixed
    assert np.abs(np.corrcoef(draws.T.astype(float))[np.triu_indices(3, 1)]).max() < 0.06
    later = np.array(placements("crop_flip", count, pass_number=1))
    same = (draws == later).all(1).mean()
    assert same == pytest.approx(1 / 162, abs=0.006)


def test_crop_alone_never_mirrors():
    draws = placements("crop", 300)
    assert not any(mirrored for _, _, mirrored in draws)
    assert len(set(draws)) > 60


def test_one_draw_for_the_batch():
    for augmentation in ("crop", "crop_flip"):
        assert len(set(placements(augmentation, 20, per="batch"))) == 1
    keyed_by_first = {placements("crop_flip", 1, pass_number=number, per="batch")[0] for number in range(40)}
    assert len(keyed_by_first) > 20


def test_padding_is_black_before_normalisation():
    white = torch.full((50, 3, 8, 8), 255, dtype=torch.uint8)
    outputs = train_transform("crop", size=8)(white, range(50), 0)
    dark = -torch.tensor(MEAN) / torch.tensor(STD)
    for channel in range(3):
        values = outputs[:, channel].unique()
        assert len(values) == 2
        assert values[0] == dark[channel]


# Random resized crop


AREA = 0.05


def rectangles(count, height, width, seed=0):
    words = np.random.default_rng(seed).integers(0, 2**64, (count, _resized_crop.WORDS), dtype=np.uint64)
    return _resized_crop.rectangles(words, height, width, AREA)


@pytest.mark.parametrize("height, width", [(32, 32), (40, 90), (90, 40)])
def test_rectangles_are_distributed_like_torchvisions(height, width):
    from scipy.stats import ks_2samp

    ours = rectangles(3000, height, width)
    reference = torchvision_transforms.RandomResizedCrop(8, scale=(AREA, 1), ratio=_resized_crop.RATIO)
    blank = torch.zeros(3, height, width, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([reference.get_params(blank, reference.scale, reference.ratio) for _ in range(3000)])
    for number in range(4):  # top, left, height, width
        assert ks_2samp(ours[:, number], theirs[:, number]).pvalue > 1e-3
    for products in ((2, 3), (0, 2), (1, 3)):
        assert ks_2samp(ours[:, products].prod(1), theirs[:, products].prod(1)).pvalue > 1e-3


@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_rectangles_lie_inside(height, width, seed):
    top, left, high, wide = rectangles(20, height, width, seed).T
    assert (np.minimum(top, left) >= 0).all()
    assert (np.minimum(high, wide) >= 1).all()
    assert (top + high <= height).all()
    assert (left + wide <= width).all()


@pytest.mark.parametrize("height, width", [(2, 400), (400, 2), (3, 200)])
def test_where_no_rectangle_fits_the_centre_is_taken(height, width):
    reference = torchvision_transforms.RandomResizedCrop(8, scale=(AREA, 1), ratio=_resized_crop.RATIO)
    expected = reference.get_params(torch.zeros(3, height, width), reference.scale, reference.ratio)
    assert rectangles(30, height, width).tolist() == [list(expected)] * 30


@pytest.mark.parametrize("per", ["image", "batch"])
def test_resized_crops_are_pillows_within_one_grey_level(per):
    images = pictures(20, 30, 40)
    ours = pixels(plain("resized_crop_flip", size=16, per=per)(images, range(20), 3))
    words = np.stack([np.random.Philox(key=[7, i], counter=[0, 0, 0, 3]).random_raw(22) for i in range(20)])
    for number, own in enumerate(ours):
        row = words[0 if per == "batch" else number]
        top, left, high, wide = _resized_crop.rectangles(row[None, 2:], 30, 40, AREA)[0].tolist()
        image = Image.fromarray(images[number].permute(1, 2, 0).numpy())
        box = image.crop((left, top, left + wide, top + high)).resize((16, 16), Image.Resampling.BILINEAR)
        expected = np.asarray(box).astype(int)
        if row[1] & 1:
            expected = expected[:, ::-1]
        assert np.abs(expected - own.permute(1, 2, 0).numpy()).max() <= 1


def test_resized_crop_leaves_the_draws_of_the_flip_as_they_are():
    images = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)
    images[:] = torch.arange(0, 160, 20, dtype=torch.uint8)  # brighter to the right, however it is cropped
    outputs = pixels(plain("resized_crop_flip", size=8)(images, range(200), 0)).int()
    falling = outputs[:, 0, 0, 0] > outputs[:, 0, 0, -1]
    words = [np.random.Philox(key=[7, i], counter=[0, 0, 0, 0]).random_raw(2)[1] & np.uint64(1) for i in range(200)]
    assert falling.tolist() == [bool(word) for word in words]
    assert 60 < sum(words) < 140


# What the result depends on


@pytest.mark.parametrize("augmentation", RANDOM)
def test_neither_batch_nor_order_nor_history_matters(augmentation):
    images, ids = pictures(12), torch.arange(100, 112)
    transform = train_transform(augmentation)
    assert transform.is_random
    whole = transform(images, ids, 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    shuffled = train_transform(augmentation)(images[order], ids[order].numpy(), 3)
    assert torch.equal(shuffled, whole[order])
    singles = torch.cat([transform(images[i : i + 1], [100 + i], 3) for i in range(12)])
    assert torch.equal(singles, whole)


@pytest.mark.parametrize("augmentation", RANDOM)
@pytest.mark.parametrize("per", ["image", "batch"])
def test_seed_sample_and_pass_all_matter(augmentation, per):
    images = pictures(8)
    ids = list(range(8))
    base = train_transform(augmentation, per=per)(images, ids, 0)
    assert torch.equal(base, train_transform(augmentation, per=per)(images, ids, 0))
    for other in (
        train_transform(augmentation, per=per, seed=8)(images, ids, 0),
        train_transform(augmentation, per=per)(images, ids, 1),
        train_transform(augmentation, per=per)(images, [i + 8 for i in ids], 0),
    ):
        assert not torch.equal(base, other)


@pytest.mark.parametrize("augmentation", RANDOM)
def test_batch_draw_is_keyed_by_the_first_sample_only(augmentation):
    images = pictures(6)
    transform = train_transform(augmentation, per="batch")
    whole = transform(images, [40, 1, 2, 3, 4, 5], 2)
    assert torch.equal(whole, transform(images, [40, 9, 9, 9, 9, 9], 2))
    # One draw shared by different images is the same as that draw on each of them alone.
    singles = torch.cat([transform(images[i : i + 1], [40], 2) for i in range(6)])
    assert torch.equal(singles, whole)


@given(
    seed=st.integers(0, 2**64 - 1),
    sample=st.integers(0, 2**63 - 1),
    pass_number=st.integers(0, 2**40),
    augmentation=st.sampled_from(RANDOM),
)
@settings(max_examples=30, deadline=None)
def test_any_seed_sample_and_pass_are_accepted(seed, sample, pass_number, augmentation):
    images = pictures(2)
    output = train_transform(augmentation, seed=seed)(images, torch.tensor([sample, 0]), pass_number)
    assert output.shape == (2, 3, 16, 16)
    assert output.isfinite().all()


def test_the_largest_seeds_and_samples_are_told_apart():
    images = pictures(1)
    draws = {
        train_transform("crop_flip", seed=seed)(images, [sample], number).numpy().tobytes()
        for seed in (2**63 + 1, 2**64 - 2, 2**64 - 1)
        for sample in (2**63 - 2, 2**63 - 1)
        for number in range(8)
    }
    assert len(draws) > 30  # of 48; 162 are possible

    # Small and large seeds draw by the same rule.
    words = np.random.Philox(key=np.array([2**64 - 1, 3], np.uint64), counter=np.array([0, 0, 0, 1], np.uint64))
    mirrored = bool(words.random_raw(2)[1] & np.uint64(1))
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).expand(1, 3, 16, 16)
    output = pixels(plain("resized_crop_flip", seed=2**64 - 1)(ramp, [3], 1)).int()
    assert bool(output[0, 0, 0, 0] > output[0, 0, 0, -1]) == mirrored


@pytest.mark.parametrize("augmentation", RANDOM)
@pytest.mark.parametrize("per", ["image", "batch"])
def test_no_global_random_state_is_touched(augmentation, per):
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    train_transform(augmentation, per=per)(pictures(4), range(4), 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


# AutoAugment


@pytest.mark.parametrize("augmentation", ["autoaugment_cifar10", "autoaugment_imagenet"])
def test_autoaugment_sees_bytes_at_native_size_and_changes_images(augmentation, monkeypatch):
    seen = []
    original = v2.AutoAugment.forward

    def spy(self, images):
        seen.append((self.policy, images.dtype, tuple(images.shape)))
        return original(self, images)

    monkeypatch.setattr(v2.AutoAugment, "forward", spy)
    images = pictures(20)
    output = pixels(plain(augmentation, size=24)(images, range(20), 0))
    assert seen == [(v2.AutoAugmentPolicy(AUGMENTATIONS[augmentation].policy), torch.uint8, (3, 16, 16))] * 20
    cropped = pixels(plain("crop_flip", size=24)(images, range(20), 0))
    changed = [not torch.equal(a, b) for a, b in zip(output, cropped, strict=True)]
    assert 10 <= sum(changed) <= 20
    plain(augmentation, size=24, per="batch")(images, range(20), 0)
    assert seen[-1][2] == (20, 3, 16, 16)


def test_autoaugment_leaves_crop_and_flip_as_they_are():
    # The same bits place the crop with and without AutoAugment: images it leaves alone come out equal.
    images = pictures(60)
    both = [pixels(plain(name)(images, range(60), 0)) for name in ("crop_flip", "autoaugment_cifar10")]
    equal = [torch.equal(a, b) for a, b in zip(*both, strict=True)]
    assert 0 < sum(equal) < 30


# Form


@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
def test_transforms_pickle(augmentation):
    images = pictures(3)
    transform = train_transform(augmentation, size=20)
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(copy(images, [1, 2, 3], 0), transform(images, [1, 2, 3], 0))
    assert copy.is_random == transform.is_random
    evaluation = EvalTransform(20, MEAN, STD)
    assert torch.equal(pickle.loads(pickle.dumps(evaluation))(images), evaluation(images))


@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("per", ["image", "batch"])
def test_empty_and_single_batches(augmentation, per):
    transform = train_transform(augmentation, per=per)
    assert transform(pictures(3)[:0], [], 0).shape == (0, 3, 16, 16)
    assert transform(pictures(1), [5], 0).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    "values, text",
    [
        ({"augmentation": "flip"}, "augmentation=flip is unknown; allowed are none, crop, crop_flip"),
        ({"per": "sample"}, "augment_per=sample is unknown; allowed are image, batch"),
        ({"interpolation": "nearest"}, "interpolation=nearest is unknown; allowed are bilinear, bicubic"),
        ({"crop": "left"}, "crop=left is unknown; allowed are resize, centre, resized_centre"),
        ({"size": 0}, "size=0"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_values_that_are_not_allowed(values, text):
    arguments = {"size": 8, "mean": MEAN, "std": STD, "seed": 0, **values}
    with pytest.raises(DataError, match=text.replace("*", r"\*")):
        TrainTransform(**arguments)


def test_wrong_inputs():
    transform = train_transform("crop")
    with pytest.raises(ValueError, match="uint8"):
        transform(pictures(2).float(), [0, 1], 0)
    with pytest.raises(ValueError, match="uint8"):
        transform(pictures(2)[0], [0], 0)
    with pytest.raises(ValueError, match="uint8"):
        EvalTransform(8, MEAN, STD)(pictures(2).permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="2 images but 1 sample ids"):
        transform(pictures(2), [0], 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_pixels_of_the_cpu():
    images = pictures(16)
    for augmentation in AUGMENTATIONS:
        for size in (16, 24):
            transform = plain(augmentation, size=size)
            state = torch.cuda.get_rng_state()
            on_gpu = transform(images.cuda(), range(16), 2)
            assert on_gpu.is_cuda
            assert torch.equal(torch.cuda.get_rng_state(), state)
            difference = (on_gpu.cpu() - transform(images, range(16), 2)).abs()
            # Resizing and turning may round the other way: one grey level, or the neighbour of a few pixels.
            assert (difference > 1.01 / 255).float().mean() <= (0.02 if augmentation.startswith("auto") else 0)
