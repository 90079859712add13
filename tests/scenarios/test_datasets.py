"""Data sets that need no files of the user: discovery, settings, digits, CIFAR, seeded selection."""

import hashlib
import multiprocessing
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from local_server import serving
from pydantic import ValidationError

from scenarios._downloads import RemoteFile
from scenarios.datasets import check_dataset, cifar10, cifar100, dataset_names, load_dataset, read_dataset_settings
from scenarios.datasets._selection import stratified_split, training_subset
from scenarios.datasets.base import ArrayPixels, DatasetSettings, ImageDataset, array_dataset
from scenarios.errors import DataError

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs" / "dataset"


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", image_size=224)


# Discovery and settings


def test_a_data_set_is_a_file_and_has_a_config():
    assert {"digits", "cifar10", "cifar100", "image_folder"} <= set(dataset_names())
    assert dataset_names() == sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", dataset_names())
def test_config_states_every_setting_with_its_default(name):
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    config = yaml.safe_load("\n".join(lines))
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 20
    assert config.pop("name") == name
    fields = read_dataset_settings(name).model_fields
    stated = read_dataset_settings(name)(**config)  # YAML has lists where settings have tuples
    assert set(config) == set(fields)
    assert stated == read_dataset_settings(name)()
    assert all(field.description for field in fields.values())
    assert all("  # " in line for line in lines[2:])


def test_settings_are_read_without_heavy_imports():
    code = (
        "import sys, scenarios.datasets as d\n"
        "for n in d.dataset_names():\n"
        "    d.read_dataset_settings(n)()\n"
        "d.check_dataset('digits')\n"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL', 'avalanche') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name, values",
    [
        ("digits", {"test_percent": 20}),
        ("digits", {"test_pct": 0}),
        ("digits", {"test_pct": 100}),
        ("digits", {"train_per_class": 0}),
        ("digits", {"train_per_class": "5"}),
        ("cifar10", {"download": "yes"}),
        ("image_folder", {"interpolation": "sharp"}),
        ("image_folder", {"cache": "disk"}),
    ],
)
def test_settings_refuse_what_is_not_allowed(name, values):
    with pytest.raises(ValidationError):
        read_dataset_settings(name)(**values)


def test_unknown_names():
    with pytest.raises(KeyError):
        read_dataset_settings("base")
    with pytest.raises(DataError, match=r"dataset=cifar_100 .* did you mean cifar100\?"):
        load_dataset("cifar_100", image_size=32)
    with pytest.raises(DataError, match="DigitsSettings"):
        check_dataset("digits", read_dataset_settings("cifar10")())


# Digits


def test_digits_content_is_pinned(digits):
    train, test = digits
    assert train.identity["sha256"] == "bf1c3743ba6d440b58c8e67be0c5d462bee483b33a3d30d66d9b6b509e39d9a2"
    assert test.identity["sha256"] == "c461b1abbf5b0d8c283341fff9b0128de0c787ea129932281a5666bb13dd3346"
    assert train.identity["split"] == "test_pct=20, seed 0"
    assert (train.identity["part"], test.identity["part"]) == ("train", "test")


def test_digits_parts_hold_each_scan_once(digits):
    from scipy.spatial.distance import cdist
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Means of 4x4 blocks bring the scan back but for ringing of the filter.
    parts = []
    for part in digits:
        grey = part.images(range(len(part)))[:, 0].double().reshape(-1, 8, 4, 8, 4).mean((2, 4)).numpy()
        parts.append(np.column_stack([part.targets, grey.reshape(len(part), -1) * 16 / 255]))
    ours = np.concatenate(parts)
    scans = np.column_stack([bunch.target, bunch.images.reshape(-1, 64)])
    nearest = cdist(ours, scans, "chebyshev").argmin(1)
    assert sorted(nearest) == list(range(1797))
    assert np.array_equal(scans[nearest, 0], ours[:, 0])
    assert np.abs(ours - scans[nearest]).mean() < 1.0  # of 16 levels


def test_digits_split_is_stratified(digits):
    train, test = digits
    train_counts, test_counts = np.bincount(train.targets), np.bincount(test.targets)
    assert np.array_equal(test_counts, (2 * (train_counts + test_counts) * 20 + 100) // 200)
    other = load_dataset("digits", read_dataset_settings("digits")(test_pct=50), image_size=32)
    assert abs(len(other[0]) - len(other[1])) <= 10


def test_digits_normalisation_is_that_of_the_training_images(digits):
    pixels = digits[0].images(range(len(digits[0]))).double() / 255
    mean, std = digits[0].normalisation
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=5e-5)
    assert std == pytest.approx(pixels.std((0, 2, 3), unbiased=False).tolist(), abs=5e-5)


def test_train_per_class_draws_nested_seeded_subsets(digits):
    kind = read_dataset_settings("digits")
    small, large, other = (
        load_dataset("digits", kind(train_per_class=count, subset_seed=seed), image_size=32)
        for count, seed in ((5, 0), (9, 0), (5, 1))
    )
    rows = [{image.tobytes() for image, _, _ in train} for train, _ in (small, large, other)]
    assert np.array_equal(np.bincount(small[0].targets), np.full(10, 5))
    assert rows[0] < rows[1]
    assert rows[0] != rows[2]
    assert small[0].identity["subset"] == "5 a class, seed 0"
    assert len({pair[0].identity["sha256"] for pair in (small, large, other, digits)}) == 4
    assert small[1].identity == digits[1].identity


def test_too_small_classes_are_used_whole_and_reported():
    train, _ = load_dataset("digits", read_dataset_settings("digits")(train_per_class=143), image_size=32)
    counts = np.bincount(train.targets)
    assert counts.max() == 143
    assert len(train.notes) == 1
    assert f"{(counts < 143).sum()} of 10 classes have fewer than train_per_class=143" in train.notes[0]
    assert "'eight' with 139" in train.notes[0]
    assert train.notes[0].count("\n") == 0


# ImageDataset


def test_items_and_batches_agree(digits):
    _, test = digits
    image, target, index = test[-1]
    assert (image.shape, image.dtype, index) == ((32, 32, 3), np.uint8, len(test) - 1)
    assert target == test.targets[-1]
    batch = test.images(torch.tensor([3, len(test) - 1]))
    assert batch.dtype == torch.uint8
    assert torch.equal(batch[1].permute(1, 2, 0), torch.from_numpy(image))
    assert test.images([]).shape == (0, 3, 32, 32)
    batch.zero_()
    assert test.images([3]).any()
    assert (test.num_classes, test.image_shape, test.class_names[3]) == (10, (32, 32), "three")


def test_indices_outside_are_refused(digits):
    for indices in ([-1], [359]):
        with pytest.raises(IndexError):
            digits[1].images(indices)
    with pytest.raises(IndexError):
        digits[1][359]


def test_targets_are_read_only_and_data_sets_pickle(digits):
    with pytest.raises(ValueError):
        digits[1].targets[0] = 1
    copy = pickle.loads(pickle.dumps(digits[1]))
    assert copy.identity == digits[1].identity
    assert torch.equal(copy.images([5, 2]), digits[1].images([5, 2]))


def test_identity_changes_with_a_pixel_and_with_a_label():
    pixels = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    first = array_dataset(pixels, [0, 1], "ab", identity={"name": "x"})
    pixels[1, 2, 3, 3] = 1
    second = array_dataset(pixels, [0, 1], "ab", identity={"name": "x"})
    third = array_dataset(pixels, [1, 0], "ab", identity={"name": "x"})
    assert len({part.identity["sha256"] for part in (first, second, third)}) == 3


def test_inconsistent_data_sets_are_refused():
    pixels = ArrayPixels(np.zeros((2, 3, 4, 4), dtype=np.uint8))
    for targets in ([0], [0, 2], [-1, 0]):
        with pytest.raises(ValueError):
            ImageDataset(pixels, targets, "ab", identity={"name": "x"})
    with pytest.raises(TypeError):
        ArrayPixels(np.zeros((2, 4, 4, 3), dtype=np.uint8))


# Seeded selection


@given(
    targets=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    test_pct=st.integers(1, 99),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_split_is_a_stratified_partition(targets, test_pct, seed):
    labels = np.array(targets)
    names = tuple("abcdefg")
    counts = np.bincount(labels, minlength=7)
    if (counts == 1).any():
        with pytest.raises(DataError, match="has 1 image"):
            stratified_split(labels, names, test_pct=test_pct, seed=seed)
        return
    train, test = stratified_split(labels, names, test_pct=test_pct, seed=seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    for class_id, count in enumerate(counts):
        tested = (labels[test] == class_id).sum()
        assert abs(tested - count * test_pct / 100) <= (1 if tested in (1, count - 1) else 0.5)
        assert count == 0 or 0 < tested < count
    # The draw of one class does not depend on the others.
    alone = stratified_split(np.where(labels == 0, 0, 1), ("a", "b"), test_pct=test_pct, seed=seed)[1]
    assert set(alone[labels[alone] == 0]) == set(test[labels[test] == 0])


@given(targets=st.lists(st.integers(0, 4), min_size=1, max_size=40), count=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_subset_takes_so_many_of_each_class(targets, count, seed):
    labels = np.array(targets)
    chosen, notes = training_subset(labels, "abcde", DatasetSettings(train_per_class=count, subset_seed=seed))
    assert np.array_equal(np.unique(chosen), chosen)
    expected = np.minimum(np.bincount(labels, minlength=5), count)
    assert np.array_equal(np.bincount(labels[chosen], minlength=5), expected)
    assert bool(notes) == bool((expected < count).any())


# CIFAR, on a miniature of the official files


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """A root with three training and two test images in the official layout, and a record with their checksums."""
    root = tmp_path / "data"
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    content = {
        "train": {"data": rng.integers(0, 256, (3, 3072), dtype=np.uint8), "fine_labels": [2, 0, 2]},
        "test": {"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), "fine_labels": [1, 0]},
        "meta": {"fine_label_names": ["apple", "bee", "cat"]},
    }
    sums = {}
    for name, value in content.items():
        data = pickle.dumps(value)
        (folder / name).write_bytes(data)
        sums[name] = (name, hashlib.md5(data).hexdigest())
    tiny = replace(cifar100.CIFAR100, train=(sums["train"],), test=(sums["test"],), names=sums["meta"])
    monkeypatch.setattr(cifar100, "CIFAR100", tiny)
    return root, content


def archived(root, monkeypatch):
    """Put the folder of a tiny CIFAR into its archive, of which the record knows the checksum."""
    archive = root / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "cifar-100-python", "cifar-100-python")
    shutil.rmtree(root / "cifar-100-python")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    record = RemoteFile("http://127.0.0.1:9/x", archive.name, md5=md5)
    monkeypatch.setattr(cifar100, "CIFAR100", replace(cifar100.CIFAR100, archive=record))
    return archive


def cifar_settings(root, **values):
    return read_dataset_settings("cifar100")(root=str(root), **values)


def no_network(monkeypatch, error):
    def refuse(*_, **__):
        raise error

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_records_are_those_of_torchvision(name):
    import torchvision.datasets

    official = getattr(torchvision.datasets, name.upper())
    record = {"cifar10": cifar10.CIFAR10, "cifar100": cifar100.CIFAR100}[name]
    assert record.archive == RemoteFile(official.url, official.filename, md5=official.tgz_md5)
    assert record.folder == official.base_folder
    assert [list(file) for file in record.train] == official.train_list
    assert [list(file) for file in record.test] == official.test_list
    assert (*record.names, record.names_key) == (
        official.meta["filename"],
        official.meta["md5"],
        official.meta["key"],
    )


def test_cifar_keeps_official_pixels_labels_and_names(tiny_cifar, monkeypatch):
    root, content = tiny_cifar
    no_network(monkeypatch, AssertionError("nothing to download"))
    train, test = load_dataset("cifar100", cifar_settings(root), image_size=224)
    assert train.targets.tolist() == [2, 0, 2]
    assert train.class_names == ("apple", "bee", "cat")
    assert np.array_equal(train.images([0, 1, 2]).numpy().reshape(3, -1), content["train"]["data"])
    assert np.array_equal(test.images([1]).numpy().reshape(1, -1), content["test"]["data"][1:])
    assert train.normalisation == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    assert "md5" in train.identity["version"]
    one, _ = load_dataset("cifar100", cifar_settings(root, train_per_class=1), image_size=32)
    assert sorted(one.targets) == [0, 2]


def test_cifar_lives_in_the_user_data_folder_by_default(tiny_cifar, monkeypatch):
    root, _ = tiny_cifar
    monkeypatch.setattr("platformdirs.user_data_path", lambda name, appauthor: root if name == "cl_prompts" else None)
    train, _ = load_dataset("cifar100", image_size=32)
    assert len(train) == 3


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_cifar_missing_without_download(tmp_path):
    settings_ = cifar_settings(tmp_path, download=False)
    for action in (
        lambda: check_dataset("cifar100", settings_),
        lambda: load_dataset("cifar100", settings_, image_size=32),
    ):
        with pytest.raises(DataError) as caught:
            action()
        for part in (tmp_path, "dataset.download=true", "cifar-100-python.tar.gz", "https://", "train, test, meta"):
            assert str(part) in one_line(caught)


def test_cifar_damaged_file_is_never_unpickled(tiny_cifar, monkeypatch):
    root, _ = tiny_cifar
    path = root / "cifar-100-python" / "test"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(pickle, "loads", lambda data, encoding: {"fine_label_names": [], "data": [], "fine_labels": []})
    with pytest.raises(DataError, match=r"dataset\.download=true") as caught:
        load_dataset("cifar100", cifar_settings(root), image_size=32)
    assert str(path) in one_line(caught)


def test_cifar_offline(tmp_path, monkeypatch):
    no_network(monkeypatch, socket.gaierror("Name or service not known"))
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        load_dataset("cifar10", read_dataset_settings("cifar10")(root=str(tmp_path)), image_size=32)
    assert "https://" in one_line(caught)
    assert "cifar-10-python.tar.gz" in str(caught.value)


def test_cifar_archive_with_wrong_checksum(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"is not the official file .* an HTML page") as caught:
        load_dataset("cifar10", read_dataset_settings("cifar10")(root=str(tmp_path)), image_size=32)
    assert f"delete {archive}" in one_line(caught)


@pytest.mark.parametrize("download", [True, False])
def test_cifar_is_unpacked_from_an_archive_put_there(tiny_cifar, monkeypatch, download):
    root, content = tiny_cifar
    archived(root, monkeypatch)
    no_network(monkeypatch, AssertionError("nothing to download"))
    train, _ = load_dataset("cifar100", cifar_settings(root, download=download), image_size=32)
    assert np.array_equal(train.images([0, 1, 2]).numpy().reshape(3, -1), content["train"]["data"])


def _load_in_process(root, answers):
    train, test = load_dataset("cifar100", cifar_settings(root), image_size=32)
    answers.put((len(train), len(test)))


def test_two_processes_that_want_cifar_at_once(tiny_cifar, monkeypatch, tmp_path):
    root, _ = tiny_cifar
    archive = archived(root, monkeypatch)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with serving({archive.name: archive.read_bytes()}, pause=0.1) as server:
        record = replace(cifar100.CIFAR100.archive, url=f"{server.url}/{archive.name}")
        monkeypatch.setattr(cifar100, "CIFAR100", replace(cifar100.CIFAR100, archive=record))
        archive.unlink()
        processes = [context.Process(target=_load_in_process, args=(root, answers)) for _ in range(2)]
        for process in processes:
            process.start()
        assert [answers.get(timeout=30) for _ in processes] == [(3, 2)] * 2
        for process in processes:
            process.join()
        assert len(server.requests) == 1
    assert {path.name for path in root.iterdir() if not path.name.startswith(".")} == {"cifar-100-python", archive.name}


def test_cifar_root_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(DataError, match=r"set dataset\.root") as caught:
        load_dataset("cifar10", read_dataset_settings("cifar10")(root=str(path)), image_size=32)
    assert str(path) in one_line(caught)
