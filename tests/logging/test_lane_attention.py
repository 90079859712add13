"""What lanes look at: which images, read from the model without a trace, drawn where it lies."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_points import point as accuracy_point
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays
from multi_label_points import point
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cl_prompts.logging import PicturedImages, TensorBoardLog, attention_picture, pictured_images, pictured_indices
from cl_prompts.logging.attention_pictures import SHOWN_LANES
from cl_prompts.logging.axis_marks import spread
from cl_prompts.logging.lane_attention import PatchAttention, lane_names, patch_attention, title_note
from cl_prompts.logging.pictures import to_array

PREFIX, ROWS, COLUMNS, SELECTORS = 2, 2, 3, 4


class Lanes(torch.nn.Module):
    """Looks at a patch by the number of the lane, and a quarter at the prefix tokens; drops out in training."""

    def __init__(self, lanes, selectors=SELECTORS):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.dropout = torch.nn.Dropout(0.5)
        self.lanes, self.selectors = lanes, selectors
        patch_embed = SimpleNamespace(grid_size=(ROWS, COLUMNS))
        self.backbone = SimpleNamespace(num_prefix_tokens=PREFIX, model=SimpleNamespace(patch_embed=patch_embed))

    def selector_attention(self, images):
        attention = torch.zeros(len(images), self.lanes, self.selectors, PREFIX + ROWS * COLUMNS)
        attention[..., :PREFIX] = 0.25 / PREFIX
        for lane in range(self.lanes):
            for selector in range(self.selectors):
                # Odd selectors look at the next patch.
                attention[:, lane, selector, PREFIX + (lane + selector % 2) % (ROWS * COLUMNS)] = 0.75
        return self.dropout(attention) + 0 * self.weight


def pictured(count=2, side=6):
    images = np.random.default_rng(0).integers(0, 255, (count, 3, side, side), np.uint8)
    return PicturedImages(images, torch.from_numpy(images).float(), [f"class {number}" for number in range(count)])


def test_patches_get_the_mean_over_selectors_without_the_prefix():
    found = patch_attention(Lanes(3), pictured())
    assert (found.grid, found.prefix_tokens, found.prefix_share) == ((ROWS, COLUMNS), PREFIX, pytest.approx(0.25))
    expected = np.zeros((2, 3, ROWS * COLUMNS), np.float32)
    for lane in range(3):
        expected[:, lane, [lane, lane + 1]] = 0.5
    np.testing.assert_allclose(found.values, expected)


def test_reading_leaves_modes_gradients_and_random_state_alone():
    model = Lanes(2)
    model.dropout.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    patch_attention(model, pictured())
    assert [module.training for module in model.modules()] == modes
    assert modes == [True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.weight.grad is None


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), Lanes(2, selectors=0), Lanes(0)])
def test_models_without_lanes_or_selectors_have_no_picture(model, stub, tmp_path):
    assert patch_attention(model, pictured()) is None
    strategy = stub()
    strategy.model = model
    with TensorBoardLog(tmp_path, every_samples=8, pictured=pictured()) as log:
        log.on_evaluation(strategy, point(0))
    assert "lane_attention" not in EventAccumulator(str(tmp_path)).Reload().Tags()["images"]


def test_pictures_come_at_session_ends_whatever_the_labels(stub, tmp_path):
    strategy = stub()
    strategy.model = Lanes(2)
    with TensorBoardLog(tmp_path, every_samples=8, pictured=pictured()) as log:
        for measured in (point(0), point(1, "periodic", 30), point(1), point(1, "final")):
            log.on_evaluation(strategy, measured)
        log.on_evaluation(strategy, accuracy_point(50, [1, 1], [2, 2], kind="session", session=2))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert [image.step for image in events.Images("lane_attention")] == [20, 40, 50]


def test_lanes_are_named_with_the_classes_they_own():
    model = Lanes(3)
    assert lane_names(model, 2, None) == ["lane 0", "lane 1"]
    model.owner = torch.tensor([1, 0, 1, -1])
    assert lane_names(model, 3, ["ant", "bee", "cat", "dog"]) == ["lane 0\nbee", "lane 1\nant, cat", "lane 2\nno class"]


def picture(lanes, names=None, **options):
    shown = pictured()
    found = np.full((2, lanes, ROWS * COLUMNS), 1e-9)
    found[:, :, 5] = 1  # the last patch: below, to the right
    names = [f"lane {lane}" for lane in range(lanes)] if names is None else names
    return attention_picture(shown.images, found, (ROWS, COLUMNS), names, shown.captions, **options)


def test_the_overlay_lies_on_the_patch_that_is_looked_at():
    figure = picture(2)
    for row in (1, 2, 4, 5):  # all but the first column
        dimmed, overlay = figure.axes[row].images
        assert overlay.get_extent() == dimmed.get_extent()
        assert np.unravel_index(np.argmax(overlay.get_array()), (ROWS, COLUMNS)) == (1, 2)
        np.testing.assert_allclose(overlay.get_alpha(), [[0, 0, 0], [0, 0, 1]])
    pixels = to_array(figure).astype(int)
    colour = np.abs(pixels[..., 0] - pixels[..., 2])
    y0, x0, y1, x1 = (figure.axes[1].get_position().extents * 1)[[1, 0, 3, 2]]
    height, width = colour.shape
    cell = colour[round(height * (1 - y1)) : round(height * (1 - y0)), round(width * x0) : round(width * x1)]
    half, third = cell.shape[0] // 2, cell.shape[1] // 3
    assert cell[half:, -third:].mean() > 10 * max(1, cell[:half, : -third // 2].mean())


def test_titles_name_images_and_lanes_and_what_is_left_out():
    figure = picture(
        3, names=["lane 0\nant", "lane 1\nbee", "lane 2\n" + "a long name, " * 9], note="2 tokens left out"
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["class 0", "lane 0\nant", "lane 1\nbee", "lane 2\na long name, a long…"]
    assert titles[4:8] == ["class 1", "", "", ""]
    assert figure.get_suptitle().replace("\n", " ") == "attention of each lane over the patches; 2 tokens left out"


def test_the_title_says_which_block_is_read_and_whose_share_is_missing():
    read = "mean over the selectors of a lane, in the last block where they read the image"
    notes = [title_note(PatchAttention(np.ones((1, 1, 1)), (1, 1), tokens, 0.0142)) for tokens in (0, 1, 2)]
    assert notes == [
        read,
        f"{read}; left out: 1.4 % that went to the class token",
        f"{read}; left out: 1.4 % that went to 2 tokens before the patches",
    ]


def test_events_carry_the_note(stub, tmp_path, monkeypatch):
    import cl_prompts.logging.lane_attention as module

    given = []
    draw = module.attention_picture
    monkeypatch.setattr(module, "attention_picture", lambda *a, **k: given.append(k["note"]) or draw(*a, **k))
    strategy = stub()
    strategy.model = Lanes(2)
    with TensorBoardLog(tmp_path, every_samples=8, pictured=pictured()) as log:
        log.on_evaluation(strategy, point(0))
    assert [note.rpartition("; ")[2] for note in given] == ["left out: 25.0 % that went to 2 tokens before the patches"]


def test_of_many_lanes_some_are_shown_and_named():
    figure = picture(20)
    titles = [axes.get_title() for axes in figure.axes[: SHOWN_LANES + 1]]
    shown = [f"lane {lane}" for lane in spread(20, SHOWN_LANES)]
    assert titles[1:] == shown
    assert (shown[0], shown[-1]) == ("lane 0", "lane 19")
    assert "shown are lanes 0, 3, " in figure.get_suptitle().replace("\n", " ")
    assert " of 20" in figure.get_suptitle().replace("\n", " ")


def test_even_attention_has_no_colour():
    shown = pictured()
    even = np.full((2, 1, ROWS * COLUMNS), 1 / (ROWS * COLUMNS))
    figure = attention_picture(shown.images, even, (ROWS, COLUMNS), ["lane 0"], shown.captions)
    assert np.all(figure.axes[1].images[1].get_alpha() == 0)
    assert figure.axes[1].images[1].get_clim() == (1, 2)


def test_shapes_that_do_not_fit_are_refused():
    shown = pictured()
    with pytest.raises(ValueError, match="a grid of 2 x 2 patches"):
        attention_picture(shown.images, np.ones((2, 1, 6)), (2, 2), ["lane 0"], shown.captions)
    with pytest.raises(ValueError, match="1 captions"):
        attention_picture(shown.images, np.ones((2, 1, 4)), (2, 2), ["lane 0"], shown.captions[:1])


@given(some.integers(1, 60), some.integers(1, 20))
def test_spread_has_both_ends_and_no_number_twice(count, most):
    numbers = spread(count, most)
    assert len(numbers) == len(set(numbers)) == min(count, most)
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert most == 1 or numbers[-1] == count - 1


def slow_choice(targets, count):
    chosen, covered = [], set()
    sets = [set(np.flatnonzero(row).tolist()) for row in targets]
    while len(chosen) < min(count, len(sets)):
        rest = [index for index in range(len(sets)) if index not in chosen]
        sizes = ({2, 3, 4}, set(range(5, 99)), {0, 1})
        pool = next(pool for wanted in sizes if (pool := [index for index in rest if len(sets[index]) in wanted]))
        best = max(pool, key=lambda index: (len(sets[index] - covered), len(sets[index]), -index))
        chosen.append(best)
        covered |= sets[best]
    return chosen


@given(arrays(np.uint8, some.tuples(some.integers(0, 8), some.integers(1, 7)), elements=some.integers(0, 1)))
def test_chosen_are_images_with_several_labels_that_show_new_classes(targets):
    assert pictured_indices(targets, 3) == slow_choice(targets, 3)


@pytest.mark.parametrize("size, crop", [(32, "resize"), (20, "centre")])
def test_images_of_a_test_set_are_shown_as_the_network_gets_them(size, crop):
    from scenarios.datasets import load_dataset
    from scenarios.transforms import EvalTransform

    _, test = load_dataset("digit_mosaics", image_size=32)
    transform = EvalTransform(size, (0.0,) * 3, (1.0,) * 3, crop=crop)
    shown = pictured_images(test, transform, count=3)
    indices = pictured_indices(test.targets, 3)
    cut = slice((32 - size) // 2, (32 + size) // 2)
    assert shown.images.dtype == np.uint8
    for image, inputs, caption, index in zip(shown.images, shown.inputs, shown.captions, indices, strict=True):
        np.testing.assert_array_equal(image.transpose(1, 2, 0), test[index][0][cut, cut])
        np.testing.assert_allclose(inputs, image / np.float32(255))
        assert caption.split(", ") == [test.class_names[label] for label in np.flatnonzero(test.targets[index])]
        assert len(caption.split(", ")) >= 2


@pytest.mark.parametrize(
    "settings, lanes", [({}, 2), ({"dandr": "off"}, 2), ({"num_selectors": 0}, 0), ({"num_selectors": 0, "tome": 6}, 0)]
)
def test_multi_lane_shows_its_lanes_unless_it_has_no_selectors(tiny_backbone, settings, lanes):
    from cl_prompts.strategies.multi_lane import MultiLaneMethod, MultiLaneSettings

    settings = {"num_selectors": 3, "num_prompts": 2, "prompt_layers": 2} | settings
    generator = torch.Generator().manual_seed(0)
    model = MultiLaneMethod(tiny_backbone, 4, MultiLaneSettings(**settings), generator)
    for classes in ([0, 1], [3]):
        model.begin_session(torch.tensor(classes))
    found = patch_attention(model, pictured(side=16))
    if not lanes:
        assert found is None
        return
    rows, columns = found.grid
    assert found.values.shape == (2, lanes, rows * columns)
    np.testing.assert_allclose(found.values.sum(axis=-1), 1, rtol=1e-5)
    assert found.values.std() > 0
    assert 0 < found.prefix_share < 1
    assert lane_names(model, lanes, None) == ["lane 0\n0, 1", "lane 1\n3"]
