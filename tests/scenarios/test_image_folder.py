"""`image_folder` on small generated trees: layouts, pixels, and one clear line for each fault."""

import os
import pickle
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from scenarios.datasets import check_dataset, load_dataset, read_dataset_settings
from scenarios.datasets._decoding import Decoder, UnreadableImage
from scenarios.duplicates import shared_images
from scenarios.errors import DataError

Settings = read_dataset_settings("image_folder")


def picture(seed=0, size=(12, 10), mode="RGB"):
    """A smooth random picture, `size` = (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def save(path, seed=0, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **kwargs).save(path)
    return path


def make_tree(root, train=3, test=2, classes=("bee", "apple")):
    """train/ and test/ with so many pictures of each class, all different."""
    seed = 0
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            for number in range(count):
                save(root / part / name / f"{number}.png", seed)
                seed += 1
    return root


def make_classes(root, count=10, classes=("bee", "apple")):
    for number_of_class, name in enumerate(classes):
        for number in range(count):
            save(root / name / f"{number}.png", 100 * number_of_class + number)
    return root


def load(root=None, image_size=8, **values):
    return load_dataset(
        "image_folder", Settings(root=None if root is None else str(root), **values), image_size=image_size
    )


def refused(*needles, checked=True, **values):
    """The one line of the refusal; `checked` says that the check before loading finds it, too."""
    with pytest.raises(DataError) as caught:
        load(**values)
    text = str(caught.value)
    assert "\n" not in text
    for needle in needles:
        assert str(needle) in text
    values.pop("image_size", None)
    root = values.pop("root", None)
    settings = Settings(root=None if root is None else str(root), **values)
    if checked:
        with pytest.raises(DataError) as early:
            check_dataset("image_folder", settings)
        assert str(early.value) == text
    else:
        check_dataset("image_folder", settings)
    return text


# Layouts


def test_train_and_test_folders(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "README.txt").write_text("words")
    (tmp_path / "train" / ".DS_Store").write_text("litter")
    (tmp_path / "train" / "bee" / "Thumbs.db").write_text("litter")
    (tmp_path / "meta").mkdir()
    train, test = load(tmp_path)
    assert (len(train), len(test)) == (6, 4)
    assert train.class_names == test.class_names == ("apple", "bee")
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.identity["split"] == "given by the data"
    assert train.notes == ("folders beside train and test were not read: meta",)
    expected = Decoder(8, "bicubic")(tmp_path / "test" / "bee" / "1.png")[0]
    assert torch.equal(test.images([3])[0], torch.from_numpy(expected.copy()))


def test_one_folder_is_split_by_seed(tmp_path):
    make_classes(tmp_path)
    train, test = load(tmp_path)
    assert np.bincount(train.targets).tolist() == [8, 8]
    assert np.bincount(test.targets).tolist() == [2, 2]
    assert train.identity["split"] == test.identity["split"] == "test_pct=20, seed 0"
    assert "20 % of each class" in train.notes[0]
    again, _ = load(tmp_path)
    other_seed, _ = load(tmp_path, split_seed=1)
    half, _ = load(tmp_path, test_pct=50)
    assert again.identity == train.identity
    assert other_seed.identity["sha256"] != train.identity["sha256"]
    assert np.bincount(half.targets).tolist() == [5, 5]


def test_a_class_may_be_called_train(tmp_path):
    make_classes(tmp_path, classes=("bus", "train"))
    assert load(tmp_path)[0].class_names == ("bus", "train")


def test_file_list_with_and_without_split(tmp_path):
    make_classes(tmp_path / "images", count=2, classes=("x, y", "z"))
    table = tmp_path / "list.csv"
    # As a spreadsheet writes it: byte order mark, carriage returns, quotes, an empty line.
    table.write_bytes(
        b"\xef\xbb\xbfpath,label,split\r\n"
        b'"x, y/0.png",10,train\r\n\r\nz/0.png,9,train\r\n"x, y/1.png",10,test\r\nz/1.png, 9 ,test\r\n'
    )
    train, test = load(tmp_path / "images", file_list=str(table))
    assert train.class_names == ("9", "10")
    assert train.targets.tolist() == [1, 0]
    assert test.targets.tolist() == [1, 0]
    assert not train.notes
    beside = tmp_path / "images" / "list.csv"
    beside.write_text("path,label\nx, y/0.png,a\n".replace("x, y/0.png", '"x, y/0.png"') + "z/0.png,a\nz/1.png,a\n")
    train, test = load(file_list=str(beside))
    assert (len(train), len(test)) == (2, 1)


def test_unicode_and_spaces(tmp_path):
    name = "Käfer 甲虫"
    make_tree(tmp_path, classes=(unicodedata.normalize("NFD", name), "ape"))
    save(tmp_path / "train" / "ape" / "ein Bär – 1 .jpg")
    train, _ = load(tmp_path)
    assert train.class_names == (name, "ape")
    assert len(train) == 7
    elsewhere = tmp_path / "other place"
    make_tree(elsewhere, classes=(name, "ape"))
    save(elsewhere / "train" / "ape" / "ein Bär – 1 .jpg")
    assert load(elsewhere)[0].identity == train.identity


def test_identity_covers_bytes_names_and_labels(tmp_path):
    make_tree(tmp_path)
    first = load(tmp_path)[0].identity["sha256"]
    assert load(tmp_path, image_size=16)[0].identity["sha256"] == first
    (tmp_path / "train" / "bee" / "0.png").rename(tmp_path / "train" / "bee" / "9.png")
    renamed = load(tmp_path)[0].identity["sha256"]
    save(tmp_path / "train" / "bee" / "9.png", seed=77)
    changed = load(tmp_path)[0].identity["sha256"]
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / "wasp")
    (tmp_path / "test" / "bee").rename(tmp_path / "test" / "wasp")
    assert len({first, renamed, changed, load(tmp_path)[0].identity["sha256"]}) == 4
    table = tmp_path / "list.csv"
    hashes = set()
    for first_label, second_label in ("xy", "yx"):
        table.write_text(
            f"path,label,split\ntrain/apple/1.png,{first_label},train\ntrain/apple/2.png,{second_label},train\n"
            "train/wasp/1.png,x,test\ntrain/wasp/2.png,y,test\n"
        )
        hashes.add(load(file_list=str(table))[0].identity["sha256"])
    assert len(hashes) == 2


def test_train_per_class_reads_only_what_it_draws(tmp_path):
    make_tree(tmp_path, train=4)
    train, test = load(tmp_path, train_per_class=2)
    assert np.bincount(train.targets).tolist() == [2, 2]
    assert len(test) == 4
    train, _ = load(tmp_path, train_per_class=9)
    assert len(train) == 8
    assert "fewer than train_per_class=9" in train.notes[0]


def test_test_images_that_are_training_images_are_counted_by_their_files(tmp_path):
    make_tree(tmp_path)
    assert shared_images(*load(tmp_path)).notice is None
    save(tmp_path / "test" / "bee" / "copy.png", seed=0)
    assert shared_images(*load(tmp_path)).test_images == 1
    save(tmp_path / "test" / "bee" / "second copy.png", seed=0)
    for cache in ("ram", "mmap", "none"):
        found = shared_images(*load(tmp_path, cache=cache, cache_folder=str(tmp_path / "cache")))
        assert (found.compared, found.test_images) == ("files", 2)


# Pixels


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(40, 30), (30, 41), (9, 9), (5, 60), (16, 16)])
def test_pixels_are_those_of_torchvision(tmp_path, interpolation, size):
    image = picture(3, size=size)
    image.save(tmp_path / "a.png")
    expected = CenterCrop(16)(Resize(16, InterpolationMode(interpolation))(image))
    pixels, _ = Decoder(16, interpolation)(tmp_path / "a.png")
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(expected))


def test_a_very_long_strip_does_not_explode(tmp_path):
    strip = np.zeros((1, 60000, 3), dtype=np.uint8)
    strip[:, 29990:30010] = 200
    Image.fromarray(strip).save(tmp_path / "a.png")
    pixels, _ = Decoder(200, "bicubic")(tmp_path / "a.png")
    assert pixels.shape == (3, 200, 200)
    assert (pixels == 200).all()


@pytest.mark.parametrize(
    "mode, suffix", [("L", "png"), ("1", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg")]
)
def test_every_colour_mode_becomes_rgb(tmp_path, mode, suffix):
    path = save(tmp_path / f"a.{suffix}", mode=mode, size=(8, 8))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(Decoder(8, "bicubic")(path)[0].transpose(1, 2, 0), expected)


def test_camera_orientation_is_applied(tmp_path):
    image = picture(1, size=(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(image.rotate(-90))
    assert np.array_equal(Decoder(8, "bicubic")(tmp_path / "a.png")[0].transpose(1, 2, 0), upright)


def test_size_overrides_what_the_backbone_wants(tmp_path):
    make_tree(tmp_path)
    assert load(tmp_path, image_size=20)[0].image_shape == (20, 20)
    assert load(tmp_path, image_size=20, size=6)[0].image_shape == (6, 6)


def test_without_a_cache_files_are_decoded_at_use(tmp_path):
    make_tree(tmp_path)
    cached, _ = load(tmp_path, image_size=40)
    lazy, lazy_test = load(tmp_path, image_size=40, cache="none")
    everything = list(range(len(lazy)))
    assert torch.equal(lazy.images(everything), cached.images(everything))
    assert lazy.identity == cached.identity
    assert np.array_equal(lazy[2][0], cached[2][0])
    assert not lazy.notes
    assert not cached.notes
    assert torch.equal(pickle.loads(pickle.dumps(lazy_test)).images([1]), lazy_test.images([1]))
    (tmp_path / "train" / "bee" / "2.png").unlink()
    assert torch.equal(cached.images([5]), cached.images([5]))
    with pytest.raises(DataError, match=r"2\.png: no such file"):
        lazy.images([5])


def test_progress_counts_files_of_both_parts(tmp_path):
    make_tree(tmp_path, train=30, test=20)
    calls = []
    load_dataset(
        "image_folder", Settings(root=str(tmp_path)), image_size=4, progress=lambda *counts: calls.append(counts)
    )
    assert calls == sorted(calls)
    assert calls[-1] == (100, 100)
    assert len(calls) > 2


# Faults of the layout, found before anything is loaded


def test_nothing_given():
    refused("dataset.root is not set", "dataset.root=/path/to/images")


def test_missing_root_and_file_as_root(tmp_path):
    refused(tmp_path / "nowhere", "does not exist", "<root>/train/<class>", root=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    refused("is a file, not a folder", root=tmp_path / "file")


def test_empty_root(tmp_path):
    refused(tmp_path, "contains no folder", root=tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    refused(tmp_path / "train", "contains no class folder", root=tmp_path)


def test_only_train(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    refused("no folder 'test'", "'val'", f"dataset.root={tmp_path / 'train'}", root=tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_empty_class(tmp_path, part):
    make_tree(tmp_path)
    (tmp_path / part / "cat").mkdir()
    refused(tmp_path / part / "cat", "is empty", root=tmp_path)


def test_class_only_in_test(tmp_path):
    make_tree(tmp_path)
    save(tmp_path / "test" / "cat" / "0.png")
    for allowed in (False, True):
        refused("'cat'", "no training image", root=tmp_path, allow_untested_classes=allowed)


def test_class_only_in_train(tmp_path):
    make_tree(tmp_path)
    save(tmp_path / "train" / "cat" / "0.png")
    save(tmp_path / "train" / "dog" / "0.png")
    refused("'cat' (and 1 more classes)", "no test image", "dataset.allow_untested_classes=true", root=tmp_path)
    train, test = load(tmp_path, allow_untested_classes=True)
    assert train.class_names == test.class_names == ("apple", "bee", "cat", "dog")


def test_images_too_deep_or_too_high(tmp_path):
    make_tree(tmp_path / "set")
    refused(tmp_path / "set" / "test", "right level", root=tmp_path)
    save(tmp_path / "set" / "train" / "loose.jpg")
    refused("loose.jpg", "outside a class folder", root=tmp_path / "set")


def test_class_of_one_image_cannot_be_split(tmp_path):
    make_classes(tmp_path)
    save(tmp_path / "cat" / "0.png")
    refused("'cat' has 1 image", root=tmp_path)


def test_test_pct_without_effect_is_refused(tmp_path):
    make_tree(tmp_path)
    refused("dataset.test_pct=30", "no effect", root=tmp_path, test_pct=30)


@pytest.mark.parametrize(
    "text, needles",
    [
        ("", ("first line must be path,label",)),
        ("file,class\na.png,x\n", ("first line must be path,label", "file,class")),
        ("path;label\na.png;x\n", ("path;label",)),
        ("path,label\n", ("names no file",)),
        ("path,label\na.png\n", ("line 2", "needs a path and a label")),
        ("path,label\na.png,x,y\n", ("line 2", "double quotes")),
        ("path,label,split\na.png,x,dev\n", ("line 2", "'dev'", "train and test")),
        ("path,label\na.png,x\n./a.png,y\n", ("'./a.png' twice",)),
        ('path,label\n"a.png,x\n', ("is not CSV",)),
        ("path,label,split\na.png,x,test\n", ("'x'", "no training image")),
        ("path,label,split\na.png,x,train\n", ("'x'", "no test image")),
    ],
)
def test_faulty_file_lists(tmp_path, text, needles):
    table = tmp_path / "list.csv"
    table.write_text(text)
    save(tmp_path / "a.png")
    refused(*needles, file_list=str(table))


def test_missing_and_undecodable_file_list(tmp_path):
    refused("does not exist", tmp_path / "list.csv", file_list=str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_bytes("path,label\nä.png,x\n".encode("latin-1"))
    refused("UTF-8", file_list=str(tmp_path / "list.csv"))


# Files that cannot be used


def spoil(root, fault):
    """Damage one training image of class bee; its path, and the words that name the damage."""
    path = root / "train" / "bee" / "1.png"
    data = path.read_bytes()
    if fault == "truncated":
        path.write_bytes(data[: len(data) // 2])
        return path, "damaged image"
    if fault == "truncated jpeg":
        jpeg = path.with_suffix(".jpg")
        picture(1, size=(64, 64)).save(jpeg)
        path.unlink()
        jpeg.write_bytes(jpeg.read_bytes()[:-200])
        return jpeg, "damaged image"
    if fault == "text":
        path.rename(path.with_suffix(".jpg")).write_text("no picture")
        return path.with_suffix(".jpg"), "not an image"
    if fault == "empty":
        path.write_bytes(b"")
        return path, "empty file"
    if fault == "dangling link":
        path.unlink()
        path.symlink_to("gone.png")
        return path, "no such file"
    if fault == "pipe":
        path.unlink()
        os.mkfifo(path)
        return path, "not a file"
    assert fault == "16 bits"
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(path)
    return path, "more than 8 bits"


FAULTS = ["truncated", "truncated jpeg", "text", "empty", "16 bits"]
if hasattr(os, "mkfifo"):
    FAULTS += ["dangling link", "pipe"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("cache", ["ram", "mmap", "none"])
def test_unreadable_file_is_named_or_skipped(tmp_path, fault, cache):
    make_tree(tmp_path / "images")
    good, _ = load(tmp_path / "images")
    path, words = spoil(tmp_path / "images", fault)
    values = {"root": tmp_path / "images", "cache": cache, "cache_folder": str(tmp_path / "cache")}
    refused(path, words, "dataset.skip_unreadable=true", checked=False, **values)
    train, test = load(**values, skip_unreadable=True)
    assert (len(train), len(test)) == (5, 4)
    assert len(train.skipped) == 1
    assert train.skipped[0].startswith(f"{path}: {words}")
    assert "1 unreadable files were left out of train" in train.notes
    assert not test.skipped
    assert torch.equal(train.images([4]), good.images([5]))


def test_several_unreadable_files_are_counted(tmp_path):
    make_tree(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "bee" / "0.png").write_bytes(b"x")
    refused("2 of 10 files", tmp_path / "train" / "bee" / "0.png", root=tmp_path, checked=False)
    train, test = load(tmp_path, skip_unreadable=True)
    assert (len(train.skipped), len(test.skipped)) == (1, 1)


def test_class_without_a_readable_image(tmp_path):
    make_tree(tmp_path, train=1, test=1)
    (tmp_path / "test" / "bee" / "0.png").write_bytes(b"x")
    refused("'bee'", "no readable test image", root=tmp_path, checked=False, skip_unreadable=True)
    train, test = load(tmp_path, skip_unreadable=True, allow_untested_classes=True)
    assert test.targets.tolist() == [0]
    assert train.class_names == ("apple", "bee")
    (tmp_path / "train" / "bee" / "0.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no readable training image"):
        load(tmp_path, skip_unreadable=True, allow_untested_classes=True)


def test_missing_file_in_list(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    table = tmp_path / "list.csv"
    table.write_text("path,label,split\na.png,x,train\nb.png,x,test\nc.png,x,train\n")
    refused(f"{table} line 4: no file {tmp_path / 'c.png'};", "dataset.skip_unreadable=true", file_list=str(table))
    train, _ = load(file_list=str(table), skip_unreadable=True)
    assert train.skipped == (f"{tmp_path / 'c.png'}: no such file",)


def test_permission(tmp_path, monkeypatch):
    make_tree(tmp_path)
    path = tmp_path / "train" / "bee" / "0.png"

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patched:  # mode bits do not stop the super-user of a container
        patched.setattr("pathlib.Path.read_bytes", denied)
        with pytest.raises(UnreadableImage, match="no permission"):
            Decoder(8, "bicubic")(path)
    if getattr(os, "geteuid", lambda: 0)() != 0:
        path.chmod(0)
        refused(path, "no permission", root=tmp_path, checked=False)
        (tmp_path / "test" / "bee").chmod(0)
        refused(tmp_path / "test" / "bee", "check its permissions", root=tmp_path)
        (tmp_path / "test" / "bee").chmod(0o700)
