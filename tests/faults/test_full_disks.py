"""Disks that are really full, and places that are lost, while a run writes: one line, nothing lost, and it goes on.

The small disks are file systems of their own, which need a privilege to be mounted; without it they are skipped, and
a limit on the size of files stands for them (`test_broken_runs.py`), with every single failing operation
(`test_every_file_operation.py`).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forked import final_hash, in_a_process, wait
from ordinary_user import require_permissions, small_disk, without_privileges
from PIL import Image
from tiny_runs import TINY, checked, several_words, tiny_words

from cl_prompts.runs import saving
from cl_prompts.runs.continuing import resumed_config, saved_status
from cl_prompts.runs.jobs import perform
from cl_prompts.runs.schema import RunConfig

DISK = 2000
"""Size of the disk in kB; a run takes less than half of it."""

RUNS = {
    "events": tiny_words("ncm", "scenario.n_sessions=2", "protocol.eval_every=20", "checkpoint_every=10"),
    "predictions": several_words("mlcil", "single_prompt", "tensorboard=false", "checkpoint_every=20"),
}
"""What is written beside the usual files -> words."""


def run_apart(config: RunConfig, output: Path, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """A run in a process of its own; exit code and the line of its error, empty where there is none."""

    def work() -> int:
        before()
        return perform(config)

    code = wait(in_a_process(work, output))
    assert code is not None
    text = output.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text
    assert "unexpected" not in text
    assert (code, len(lines)) in ((0, 0), (1, 1)), text
    return code, "".join(lines)


def straight(words: list[str], output: Path) -> str:
    """The final hash of an unbroken run; what is imported on the way is then there for every process."""
    assert perform(checked(*words, "progress=none", f"output={output}", "name=run")) == 0
    return final_hash(output / "run")


def fill(disk: Path, left: int) -> Path:
    """Let so many kB be free on a disk."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(1024) * (DISK - left))
    return ballast


def full_disks(kind: str, rooms: range, tmp_path: Path) -> Counter[str]:
    """Runs that find so many kB free, and go on after the disk has room again; which file was the first without."""
    expected, found = straight([*RUNS[kind]], tmp_path / "straight"), Counter()
    with small_disk(tmp_path / "disk", DISK) as disk:
        config = checked(*RUNS[kind], "progress=none", f"output={disk}", "name=run")
        for room in rooms:
            shutil.rmtree(disk / "run", ignore_errors=True)
            ballast = fill(disk, room)
            code, line = run_apart(config, tmp_path / "output.txt")
            if code:
                assert f"{disk / 'run'}" in line
                assert "No space left on device" in line
                named = line.partition(f"{disk / 'run'}/")[2].partition(" ")[0].split("/")[0]
                found[named.split("_")[0]] += 1
                assert saved_status(disk / "run") in ("failed", "unknown")
            ballast.unlink()
            if (disk / "run" / "config.yaml").is_file():
                assert run_apart(resumed_config(disk / "run", []), tmp_path / "output.txt")[0] == 0
            else:
                shutil.rmtree(disk / "run")
                assert run_apart(config, tmp_path / "output.txt")[0] == 0
            assert saved_status(disk / "run") == "finished"
            assert final_hash(disk / "run") == expected
            assert not list(disk.rglob("*.tmp"))
    return found


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(one_thread, tmp_path):
    assert full_disks("events", range(60, 61), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rooms"), [("events", range(0, 440, 12)), ("predictions", range(0, 440, 12))])
def test_whatever_file_meets_the_full_disk_first_the_run_goes_on(kind, rooms, one_thread, tmp_path):
    found = full_disks(kind, rooms, tmp_path)
    print(f"\n{kind}: {len(rooms)} disks, full at {dict(found)}")
    assert found.keys() >= {"checkpoints"}
    assert len(found) >= 3


# --- places that are lost -------------------------------------------------------------------------------------------


def at_half(action: Callable[[], object]) -> Callable[[], None]:
    """Do something once, after half of the forty samples, in a process that is thrown away."""

    def patch() -> None:
        call, done = saving.Saving.__call__, []

        def first(self, strategy):
            if strategy.samples_seen >= 20 and not done:
                done.append(True)
                action()
            call(self, strategy)

        saving.Saving.__call__ = first

    return patch


def lost(words: list[str], tmp_path: Path, lose: Callable[[Path], object], mend: Callable[[Path], object]) -> str:
    """A run whose folder loses something half-way and that goes on after it was mended; the line it ended with."""
    expected = straight(words, tmp_path / "straight")
    folder = tmp_path / "out" / "run"
    config = checked(*words, "progress=none", f"output={folder.parent}", "name=run")
    code, line = run_apart(config, tmp_path / "output.txt", at_half(lambda: lose(folder)))
    assert code == 1
    mend(folder)
    assert run_apart(resumed_config(folder, []), tmp_path / "output.txt")[0] == 0
    assert final_hash(folder) == expected
    assert saved_status(folder) == "finished"
    return line


SAVING = ["protocol.eval_every=10", "checkpoint_every=10", "scenario.n_sessions=1", "protocol.stream_batch=5"]


@pytest.mark.parametrize("place", ["run", pytest.param("run/checkpoints", marks=pytest.mark.slow)])
def test_a_permission_that_is_lost_is_one_line_and_the_run_goes_on(place, one_thread, tmp_path):
    require_permissions(tmp_path)

    def lose(folder: Path) -> None:
        (folder.parent / place).chmod(0o500)
        without_privileges()

    words = tiny_words("ncm", *SAVING, "tensorboard=false")
    line = lost(words, tmp_path, lose, lambda folder: (folder.parent / place).chmod(0o700))
    assert line.startswith(f"error: cannot write {tmp_path / 'out' / place}/")
    assert "(Permission denied)" in line
    assert "fix the permissions" in line


def test_events_that_can_no_longer_be_written_are_one_line_and_the_run_goes_on(one_thread, tmp_path):
    def lose(folder: Path) -> None:
        for path in (folder / "tensorboard").iterdir():
            path.rename(folder / path.name)
        (folder / "tensorboard").rmdir()
        (folder / "tensorboard").touch()

    def mend(folder: Path) -> None:
        (folder / "tensorboard").unlink()
        (folder / "tensorboard").mkdir()
        for path in folder.glob("events.*"):
            path.rename(folder / "tensorboard" / path.name)

    line = lost(tiny_words("ncm", *SAVING), tmp_path, lose, mend)
    assert line.startswith(f"error: cannot write TensorBoard events to {tmp_path / 'out' / 'run' / 'tensorboard'} (")
    assert "tensorboard=false" in line


def image_files(root: Path) -> list[str]:
    for name, shift in (("ant", 0), ("bee", 50)):
        for part, count in (("train", 20), ("test", 2)):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng([shift, index, count]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    backbone = [word for word in TINY if word.startswith("backbone")]
    words = ["strategy=ncm", "dataset=image_folder", f"dataset.root={root}", "tensorboard=false", *SAVING]
    return [*backbone, *words]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "mmap"])
def test_images_that_vanish_in_the_middle_of_a_stream_are_one_line_and_the_run_goes_on(cache, one_thread, tmp_path):
    """With their decoded copies in a file, nothing is missed before the next start."""
    root, away = tmp_path / "images", tmp_path / "away"
    words = [*image_files(root), f"dataset.cache={cache}", f"dataset.cache_folder={tmp_path / 'pixels'}"]
    if cache == "none":
        line = lost(words, tmp_path, lambda folder: root.rename(away), lambda folder: away.rename(root))
        assert line.startswith(f"error: {root}")
        return
    expected = straight(words, tmp_path / "straight")
    config = checked(*words, "progress=none", f"output={tmp_path / 'out'}", "name=run")
    (pixels, *others) = (tmp_path / "pixels").glob("*.pixels")
    lose = at_half(lambda: [root.rename(away), *(path.unlink() for path in (pixels, *others))])
    assert run_apart(config, tmp_path / "output.txt", lose) == (0, "")
    assert final_hash(tmp_path / "out" / "run") == expected


def test_the_line_is_kept_in_the_summary_of_a_full_disk(one_thread, tmp_path):
    """The last resort, where the old file alone has room: its text is replaced in its place."""
    from cl_prompts.runs.files import overwrite_text

    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"status": "running", "long": "x" * 500}))
    size = path.stat().st_size
    overwrite_text(path, json.dumps({"status": "failed", "error": "größe \udce9"}))
    assert path.stat().st_size == size
    assert json.loads(path.read_text(encoding="utf-8")) == {"status": "failed", "error": "größe \udce9"}
