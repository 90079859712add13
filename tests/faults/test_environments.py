"""Places where a run has to live: no home, a read-only source tree, no network, another locale, a mad clock."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forked import final_hash, in_a_process, kill
from ordinary_user import require_permissions, without_privileges
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import TINY, checked, only_folder, table, tiny_words

from cl_prompts.errors import UserError
from cl_prompts.runs import saving
from cl_prompts.runs.avalanche_home import home_for_avalanche
from cl_prompts.runs.continuing import resumed_config
from cl_prompts.runs.execute import execute
from cl_prompts.runs.failures import failure_text
from cl_prompts.runs.saving import alone_in

ROOT = Path(__file__).parents[2]


# --- one hard place -------------------------------------------------------------------------------------------------

HARD = """
import os, sys
tree, words = sys.argv[1], sys.argv[2:]
sys.path.insert(0, tree)
TALK = {f"socket.{name}" for name in ("connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr")}

def no_network(event, arguments):
    if event in TALK:
        os.write(2, f"NETWORK {event} {arguments}\\n".encode())
        raise PermissionError("no network")

sys.addaudithook(no_network)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from cl_prompts.runs import main
code = main(words)
import cl_prompts
assert cl_prompts.__file__.startswith(tree)
raise SystemExit(code)
"""


def image_folder(root: Path) -> list[str]:
    """Images whose classes and files have names beyond ASCII, with spaces; the words that use them."""
    for name, shift in (("größe", 50), ("蜂 bee", 0)):
        for part, count in (("train", 6), ("test", 2)):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng([shift, index, count]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"bild {index} é.png")
    backbone = [word for word in TINY if word.startswith("backbone")]
    return [*backbone, "strategy=ncm", "dataset=image_folder", f"dataset.root={root}", "scenario.n_sessions=2"]


def read_only_tree(folder: Path) -> dict[str, int]:
    """A copy of the sources that nobody may write into; its files and when they changed."""
    for name in ("cl_prompts", "scenarios", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o555)
    return contents(folder)


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def in_a_hard_place(tmp_path: Path, words: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """A run without privileges, home, network or writable sources, on one CPU, in the plain C locale."""
    require_permissions(tmp_path)
    tree, home, work = tmp_path / "tree", tmp_path / "home", tmp_path / "some where"
    before = read_only_tree(tree)
    home.mkdir(mode=0o500)
    work.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment = kept | {"HOME": str(home), "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, *options, "-c", HARD, str(tree), *words],
        cwd=work,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        preexec_fn=without_privileges,
        check=False,
    )
    assert contents(tree) == before
    assert not list(home.iterdir())
    for place, _, _ in os.walk(tree):
        os.chmod(place, 0o755)
    assert "NETWORK" not in done.stderr, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a CPU")
@pytest.mark.parametrize("option", [None, "-O"])
def test_a_run_in_a_hard_place_gives_the_same_numbers(option, one_thread, tmp_path):
    words = [*image_folder(tmp_path / "images"), "progress=plain", "protocol.eval_every=5", "name=a run"]
    done = in_a_hard_place(tmp_path, [*words, "output=all runs"], *([] if option is None else [option]))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert "avalanche/" not in done.stderr.lower()
    done.stdout.encode("ascii")
    folder = tmp_path / "some where" / "all runs" / "a run"
    assert execute(checked(*words, f"output={tmp_path / 'straight'}")) == 0
    straight = only_folder(tmp_path / "straight")
    assert final_hash(folder) == final_hash(straight)
    assert table(folder / "class_accuracy.csv")[0].keys() >= {"größe", "蜂 bee"}
    assert json.loads((folder / "plan.json").read_text(encoding="utf-8"))["class_names"] == ["größe", "蜂 bee"]


def test_a_word_that_is_no_text_in_the_locale_is_one_line():
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(ROOT / "run.py"), "output=läufe"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "says that names are ascii" in done.stderr
    assert "PYTHONUTF8=1" in done.stderr


def test_names_of_classes_that_are_no_text_are_written_out(one_thread, tmp_path):
    words = image_folder(tmp_path / "images")
    for part in ("train", "test"):
        odd = os.fsencode(tmp_path / "images" / part) + b"/caf\xe9"
        os.rename(tmp_path / "images" / part / "größe", odd)
    assert execute(checked(*words, "progress=none", "tensorboard=false", f"output={tmp_path / 'out'}")) == 0
    folder = only_folder(tmp_path / "out")
    assert json.loads((folder / "plan.json").read_text(encoding="utf-8"))["class_names"] == ["caf\\xe9", "蜂 bee"]


# --- no home --------------------------------------------------------------------------------------------------------


def damaged(home: Path) -> None:
    (home / ".avalanche").mkdir(parents=True)
    (home / ".avalanche" / "config.json").write_text('{"dataset_location"')


def a_file(home: Path) -> None:
    home.touch()


@pytest.mark.parametrize("make", [damaged, a_file, None])
def test_avalanche_is_lent_a_home_where_there_is_none(make, tmp_path, monkeypatch):
    home = tmp_path / "home"
    if make is None:  # as for a number that no user has

        def unknown(number):
            raise KeyError(number)

        monkeypatch.delenv("HOME")
        monkeypatch.setattr(pwd, "getpwuid", unknown)
        assert os.path.expanduser("~/x") == "~/x"
    else:
        make(home)
        monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MPLCONFIGDIR", "as before")
    monkeypatch.delitem(sys.modules, "avalanche")
    real, elsewhere = os.path.expanduser, os.path.expanduser("~/.cache")
    with home_for_avalanche():
        lent = os.path.expanduser("~/.avalanche/config.json")
        assert os.path.isabs(lent)
        assert not lent.startswith(str(tmp_path))
        assert os.path.expanduser("~/.cache") == elsewhere
        os.makedirs(os.path.dirname(lent), exist_ok=True)
    assert os.path.expanduser is real
    assert os.environ["MPLCONFIGDIR"] == "as before"


def test_a_home_that_can_be_used_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "avalanche")
    with home_for_avalanche():
        assert os.path.expanduser("~/.avalanche") == str(tmp_path / ".avalanche")
    content = json.loads((tmp_path / ".avalanche" / "config.json").read_text())
    assert content == {"dataset_location": str(tmp_path / ".avalanche" / "data")}


def test_a_home_that_nobody_can_lend_is_one_line(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    line = failure_text(PermissionError(13, "Permission denied", "/nowhere/.avalanche"))
    assert "set the variable HOME" in line
    assert "unexpected" not in line


# --- workers --------------------------------------------------------------------------------------------------------

SPAWNING = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    from cl_prompts.runs import main
    raise SystemExit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_the_number_of_workers_and_how_they_start_decide_no_number(one_thread, tmp_path):
    words = tiny_words("mvp", "tensorboard=false", "progress=none", "scenario.n_sessions=2", f"output={tmp_path}")
    for number in (0, 1, 4):
        assert execute(checked(*words, f"num_workers={number}", f"name=workers{number}")) == 0
    (tmp_path / "started.py").write_text(SPAWNING)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for method, number in (("spawn", 2), ("forkserver", 1)):
        command = [sys.executable, str(tmp_path / "started.py"), method, *words, f"num_workers={number}"]
        done = subprocess.run([*command, f"name={method}"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    names = ("workers0", "workers1", "workers4", "spawn", "forkserver")
    assert len({final_hash(tmp_path / name) for name in names}) == 1


# --- time and others ------------------------------------------------------------------------------------------------


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    tags = [tag for tag in reader.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


class Gone(Exception):
    """The process ends here."""


def test_a_clock_that_is_set_back_disturbs_nothing(one_thread, tmp_path, monkeypatch):
    words = tiny_words("ncm", "progress=none", "protocol.eval_every=10", "checkpoint_every=10", "scenario.n_sessions=1")
    assert execute(checked(*words, f"output={tmp_path}", "name=straight")) == 0
    real, shift = time.time, [0.0]

    def clock() -> float:
        shift[0] -= 0.01  # and it runs backwards
        return real() + shift[0]

    call = saving.Saving.__call__

    def jump(self, strategy):
        call(self, strategy)
        if shift[0] > -86_400:
            shift[0] -= 86_400
            raise Gone

    monkeypatch.setattr(time, "time", clock)
    with monkeypatch.context() as patch:
        patch.setattr(saving.Saving, "__call__", jump)
        with pytest.raises(Gone):
            execute(checked(*words, f"output={tmp_path}", "name=jumped"))
    assert execute(resumed_config(tmp_path / "jumped", [])) == 0
    assert final_hash(tmp_path / "jumped") == final_hash(tmp_path / "straight")
    assert len(list((tmp_path / "jumped" / "tensorboard").iterdir())) == 2
    assert points(tmp_path / "jumped") == points(tmp_path / "straight")
    summary = json.loads((tmp_path / "jumped" / "summary.json").read_text(encoding="utf-8"))
    assert 0 < summary["seconds"] < 60


def test_a_folder_that_another_process_runs_in_is_refused_until_it_is_dead(one_thread, tmp_path):
    words = tiny_words("ncm", "progress=none", "tensorboard=false", "name=run", f"output={tmp_path}")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(checked(*words).to_yaml(), encoding="utf-8")
    held = folder / "held"

    def hold() -> int:
        with alone_in(folder):
            held.touch()
            time.sleep(600)
        return 0

    number = in_a_process(hold)
    try:
        while not held.exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match="another process is running in this folder"):
            execute(resumed_config(folder, []))
    finally:
        kill(number)
    held.unlink()
    assert execute(resumed_config(folder, [])) == 0
