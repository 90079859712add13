"""The cache of decoded images: equal pixels wherever they stay, and no old, cut or foreign file is ever believed."""

import collections
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scenarios.datasets import _pixel_cache, _pixel_file, load_dataset, read_dataset_settings
from scenarios.datasets._decoding import Decoder
from scenarios.datasets._pixel_file import DamagedPixelFile, ForeignPixelFile, MappedPixels, PixelFileWriter
from scenarios.errors import DataError

Settings = read_dataset_settings("image_folder")
MODES = ("ram", "mmap", "none")


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def root(tmp_path):
    """3 training images and 1 test image of two classes."""
    seeds = iter(range(8))
    for part, count in (("train", 3), ("test", 1)):
        for name in ("bee", "apple"):
            for number in range(count):
                save(tmp_path / "images" / part / name / f"{number}.png", next(seeds))
    return tmp_path / "images"


def load(root, cache="mmap", progress=None, **values):
    chosen = Settings(root=str(root), cache=cache, cache_folder=str(root.parent / "cache"), **values)
    return load_dataset("image_folder", chosen, image_size=6, progress=progress)


def files(root):
    return sorted((root.parent / "cache").glob("*.pixels"))


def left_over(root):
    return sorted((root.parent / "cache").glob(".*"))


def all_images(part):
    return part.images(range(len(part)))


def oracle(paths, size=6, interpolation="bicubic"):
    """Each file decoded alone."""
    return torch.stack([torch.from_numpy(Decoder(size, interpolation)(path)[0].copy()) for path in paths])


def sorted_paths(root, part="train"):
    return sorted((root / part).rglob("*.png"), key=lambda path: (path.parent.name, path.name))


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(Decoder, "pixels", lambda self, data: pytest.fail("an image was decoded"))


def refused(*needles, **values):
    with pytest.raises(DataError) as caught:
        load(**values)
    text = str(caught.value)
    assert "\n" not in text
    for needle in needles:
        assert str(needle) in text


# Equal in all modes


@given(
    size=st.integers(1, 40),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    per_class=st.sampled_from([None, 1]),
    block=st.integers(1, 5),
    order=st.permutations(range(2)),
)
@settings(max_examples=25, deadline=None)
def test_pixels_and_identity_do_not_depend_on_the_cache(tmp_path_factory, size, interpolation, per_class, block, order):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_pixel_cache, "_BLOCK_BYTES", block * 3 * size**2)
        patched.setattr(_pixel_file, "_BLOCK_BYTES", 50 * block)
        folder = tmp_path_factory.mktemp("modes") / "images"
        for part in ("train", "test"):
            for number in range(3):
                save(folder / part / "ab"[number % 2] / f"{number}.png", number)
        values = {"size": size, "interpolation": interpolation, "train_per_class": per_class}
        loaded = [load(folder, mode, **values) for mode in (*MODES, "mmap")]
    for parts in zip(*loaded, strict=True):
        for part in parts[1:]:
            assert part.identity == parts[0].identity
            assert part.targets.tolist() == parts[0].targets.tolist()
            assert torch.equal(part.images(order[: len(part)]), parts[0].images(order[: len(part)]))
            assert np.array_equal(part[0][0], parts[0][0][0])
    test = loaded[1][1]
    assert torch.equal(all_images(test), oracle(sorted_paths(folder, "test"), size, interpolation))


def test_a_second_run_decodes_nothing(root, monkeypatch):
    train, test = load(root)
    assert len(files(root)) == 2
    assert torch.equal(all_images(test), oracle(sorted_paths(root, "test")))
    forbid_decoding(monkeypatch)
    again, _ = load(root)
    assert torch.equal(all_images(again), all_images(train))
    assert again.notes == ()
    assert not left_over(root)


def test_copies_given_out_can_be_written_to(root):
    train, _ = load(root)
    images = all_images(train)
    before = images.clone()
    images.zero_()
    assert torch.equal(all_images(train), before)
    assert train.images([]).shape == (0, 3, 6, 6)


@pytest.mark.parametrize("kept_date", [False, True])
def test_a_changed_image_never_gives_old_pixels(root, kept_date):
    old, _ = load(root)
    path = root / "train" / "bee" / "1.png"
    stamp = path.stat()
    save(path, 99)
    if kept_date:
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    new, _ = load(root)
    assert torch.equal(all_images(new), oracle(sorted_paths(root)))
    assert not torch.equal(all_images(new), all_images(old))
    assert len(files(root)) == 3


def test_a_renamed_folder_and_another_size(root, monkeypatch):
    load(root)
    load(root, size=7)
    load(root, interpolation="bilinear")
    assert len(files(root)) == 6
    forbid_decoding(monkeypatch)
    load(root.rename(root.parent / "moved"))
    monkeypatch.setattr(Image, "__version__", "0")
    with pytest.raises(pytest.fail.Exception, match="decoded"):  # by other software
        load(root.parent / "moved")


def test_unreadable_files_are_remembered(root, monkeypatch):
    (root / "train" / "bee" / "0.png").write_bytes(b"x")
    (root / "train" / "bee" / "1.png").write_bytes(b"")
    first, _ = load(root, skip_unreadable=True)
    expected, _ = load(root, "ram", skip_unreadable=True)
    forbid_decoding(monkeypatch)
    second, _ = load(root, skip_unreadable=True)
    assert first.skipped == second.skipped == expected.skipped
    assert [line.split(": ")[1] for line in first.skipped] == ["not an image", "empty file"]
    assert first.identity == second.identity == expected.identity
    assert torch.equal(all_images(second), all_images(expected))


def test_progress_counts_hashes_and_then_pixels(root, monkeypatch):
    monkeypatch.setattr(_pixel_cache, "_BLOCK_BYTES", 2 * 3 * 6**2)
    first, second = [], []
    load(root, progress=lambda *counts: first.append(counts))
    load(root, progress=lambda *counts: second.append(counts))
    assert first == [(6, 8), (2, 8), (4, 8), (6, 8), (8, 8), (8, 8)]
    assert second == [(6, 8), (8, 8)]


# Damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def cut_into_the_first_page(path):
    path.write_bytes(path.read_bytes()[:100])


def empty(path):
    path.write_bytes(b"")


def flip(place):
    def change(path):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return change


def of_other_images(path):
    other = next(other for other in files(path.parents[1] / "images") if other != path)
    path.write_bytes(other.read_bytes())


DAMAGE = {
    "bytes long instead of": cut,
    "only 100 bytes long": cut_into_the_first_page,
    "only 0 bytes long": empty,
    "its pixels are not those": flip(4096 + 17),
    "list of checksums": flip(-2),
    "first page is damaged": flip(len(_pixel_file.MAGIC)),
    "made of other images": of_other_images,
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_file_is_made_again_and_said(root, words):
    good = all_images(load(root)[0])  # a copy: what is mapped must not be cut off
    count = collections.Counter(path.stat().st_size for path in files(root))
    for path in files(root):
        DAMAGE[words](path)
        break
    parts = load(root)
    assert torch.equal(all_images(parts[0]), good)
    (note,) = [note for part in parts for note in part.notes]
    assert "made again" in note
    assert words in note
    assert collections.Counter(path.stat().st_size for path in files(root)) == count
    assert [part.notes for part in load(root)] == [(), ()]


@pytest.mark.parametrize("content", [b"x", b"\x89PNG" + bytes(9000)])
def test_a_foreign_file_is_refused_and_stays(root, content):
    load(root)
    for path in files(root):
        path.write_bytes(content)
    refused("not a file of decoded images", "dataset.cache_folder", root.parent / "cache", root=root)
    assert all(path.read_bytes() == content for path in files(root))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "a.pixels"
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patched, path.open("wb") as stream:
        patched.setattr(_pixel_file, "_BLOCK_BYTES", 100)
        writer = PixelFileWriter(stream, "key", 4)
        writer.append(images[:2])
        writer.append(images[2:])
        writer.finish({"unreadable": {3: "x"}})
        stream.close()
        whole = bytearray(path.read_bytes())
        pixels = MappedPixels(path, "key")
        pixels.verify()
        assert np.array_equal(pixels.read(np.arange(5)), images)
        assert pixels.details == {"unreadable": {"3": "x"}}
        place = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 200))
        whole[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
        with pytest.raises((DamagedPixelFile, ForeignPixelFile)):
            MappedPixels(path, "key").verify()


# Room and rights


def test_too_little_space_is_said_before_anything_is_read(root, monkeypatch):
    monkeypatch.setattr("scenarios.datasets._pixel_cache._SPARE_BYTES", 10**18)
    calls = []
    needles = ("dataset.cache=mmap", "MB free", "dataset.cache_folder", "dataset.cache=none", root.parent / "cache")
    refused(*needles, root=root, progress=lambda *counts: calls.append(counts))
    assert not calls
    monkeypatch.undo()
    load(root)
    monkeypatch.setattr("scenarios.datasets._pixel_cache._SPARE_BYTES", 10**18)
    load(root)  # nothing to write
    refused(*needles, root=root, size=9)
    assert len(files(root)) == 2


def test_a_full_disk_leaves_nothing_behind(root, monkeypatch):
    def full(self, images):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PixelFileWriter, "append", full)
    refused("No space left on device", "dataset.cache_folder", root=root)
    assert not files(root) + left_over(root)


def test_a_folder_that_is_none(root):
    (root.parent / "cache").write_text("a file")
    refused(root.parent / "cache", "dataset.cache_folder", "dataset.cache=ram", root=root)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(root):
    (root.parent / "cache").mkdir(mode=0o500)
    refused("no permission to write", root=root)


def test_memory_that_is_not_there_is_refused(root, monkeypatch):
    needed = 8 * 3 * 6**2
    monkeypatch.setattr("scenarios.datasets._image_files.available_bytes", lambda: 2 * needed)
    load(root, "ram")
    monkeypatch.setattr("scenarios.datasets._image_files.available_bytes", lambda: 2 * needed - 1)
    refused("dataset.cache=ram", "dataset.cache=mmap", "memory", root=root, cache="ram")
    for mode in ("mmap", "none"):
        load(root, mode)
    monkeypatch.setattr("scenarios.datasets._image_files.available_bytes", lambda: None)
    load(root, "ram")


def test_an_image_that_changes_while_it_is_read(root, monkeypatch):
    digests = _pixel_cache.digest_all

    def then_change(paths, report):
        found = digests(paths, report=report)
        save(root / "train" / "bee" / "2.png", 77)
        return found

    monkeypatch.setattr(_pixel_cache, "digest_all", then_change)
    refused(root / "train" / "bee" / "2.png", "changed while it was read", root=root)
    assert not files(root) + left_over(root)


# Several processes


def _sum_of_images(part, queue):
    queue.put(int(part.images(range(len(part))).sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_the_file(root, method, tmp_path):
    train, _ = load(root)
    assert len(pickle.dumps(train._pixels)) < 400
    expected = int(all_images(train).sum())
    if method == "spawn":  # what a spawned process does: unpickle in a fresh interpreter
        (tmp_path / "part").write_bytes(pickle.dumps(train))
        code = "import pickle, sys; part = pickle.load(open(sys.argv[1], 'rb')); "
        code += "print(part._pixels.read(range(len(part))).sum())"
        command = [sys.executable, "-c", code, str(tmp_path / "part")]
        assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) == expected
        return
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_sum_of_images, args=(train, queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()


def test_a_copy_whose_file_is_gone(root):
    copy = pickle.dumps(load(root)[0])
    for path in files(root):
        path.unlink()
    with pytest.raises(DataError, match=r"\.pixels: decoded images of this run cannot be read .* restart"):
        pickle.loads(copy)


def test_two_processes_at_once_both_succeed(root):
    for part in ("train", "test"):
        for number in range(40):
            save(root / part / "apple" / f"{number}.png", number + 50 * len(part))
    code = (
        "import sys; from scenarios.datasets import _pixel_cache, load_dataset, read_dataset_settings; "
        "from scenarios.datasets._decoding import decode_all; "
        "_pixel_cache.decode_all = lambda *a, **k: (print('decoded'), decode_all(*a, **k))[1]; "
        "root, cache = sys.argv[1:]; "
        "settings = read_dataset_settings('image_folder')(root=root, cache='mmap', cache_folder=cache); "
        "train, test = load_dataset('image_folder', settings, image_size=64); "
        "print(train.identity['sha256'], train._pixels.read(range(len(train))).sum(), train.notes)"
    )
    command = [sys.executable, "-c", code, str(root), str(root.parent / "cache")]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [job.communicate(timeout=100)[0].splitlines() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert outputs[0][-1].endswith("()")
    assert sum(line == "decoded" for output in outputs for line in output) == 2  # once for each part


def test_what_a_killed_process_left_is_removed(root):
    load(root)
    killed = [path.with_name(f".{path.name}.123-456.tmp") for path in files(root)]
    for path in killed:
        path.write_bytes(b"half")
    for path in files(root):
        path.unlink()
    load(root)
    assert not left_over(root)
    assert len(files(root)) == 2


def test_one_waits_for_the_other_and_says_so(root, monkeypatch):
    from filelock import FileLock

    train, _ = load(root)
    stored = [(path, path.read_bytes()) for path in files(root)]
    for path, _ in stored:
        path.unlink()
    held = [FileLock(path.with_suffix(".lock")) for path, _ in stored]
    for lock in held:
        lock.acquire()

    def finish(*_):
        """The other process writes its files and lets go."""
        for path, content in stored:
            path.write_bytes(content)
        for lock in held:
            lock.release()

    monkeypatch.setattr("scenarios._locks._LOG.warning", finish)
    forbid_decoding(monkeypatch)
    assert torch.equal(all_images(load(root)[0]), all_images(train))
