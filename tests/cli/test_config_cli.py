"""The front door as a user meets it: one process for each test, from a folder that is not the project's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest
import yaml

from cl_prompts.errors import DataError
from cl_prompts.runs import main
from cl_prompts.runs.fields import field_texts
from cl_prompts.runs.schema import RunSettings, group_schema

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "timm", "avalanche", "sklearn", "matplotlib", "tensorboard", "wandb", "jax")

# `main` with a stand-in for the run itself, so that everything before a run can be seen without torch.
STAND_IN = """
import sys, types
from pathlib import Path
from cl_prompts.runs import main

def execute(config):
    print(f"executed {config.strategy_name} seed {config.seed} experiment {config.experiment} in {Path.cwd()}")
    return 0

module = types.ModuleType("cl_prompts.runs.execute")
module.execute = execute
sys.modules[module.__name__] = module
sys.exit(main())
"""


@pytest.fixture
def folder(tmp_path):
    """An empty folder to start from."""
    start = tmp_path / "some folder"
    start.mkdir()
    return start


def start(folder: Path, *words: str, program: tuple[str, ...] = (str(ROOT / "run.py"),)) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, *program, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


class Answer:
    """What `main` did inside this process."""

    def __init__(self, code: int, capsys: pytest.CaptureFixture[str]) -> None:
        self.returncode = code
        self.stdout, self.stderr = capsys.readouterr()


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """`main` in this process, with failures by seed instead of runs."""
    failures = {
        13: DataError("a file is gone: /x; put it back"),
        14: RuntimeError("not foreseen\nsecond line"),
        15: KeyboardInterrupt(),
        16: RuntimeError("operator torchvision::nms does not exist"),
        17: PermissionError(13, "Permission denied", str(Path.home() / ".avalanche")),
        20: FileNotFoundError(2, "No such file or directory", str(Path.home())),
        21: OSError(28, "No space left on device", "/somewhere/else"),
        22: PermissionError(13, "Permission denied", "/somewhere/else"),
    }

    def execute(config):
        print(f"executed {config.strategy_name} seed {config.seed}")
        if config.seed in failures:
            raise failures[config.seed]
        return {18: 130, 19: 1}.get(config.seed, 0)

    module = types.ModuleType("cl_prompts.runs.execute")
    module.execute = execute
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(folder)

    def answer(*words: str) -> Answer:
        try:
            code = main([*words, "progress=none"] if not words[0].startswith("--") else words)
        except SystemExit as exit_:
            code = exit_.code
        return Answer(code, capsys)

    return answer


def made(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def errors(process: subprocess.CompletedProcess) -> list[str]:
    return [line for line in process.stderr.splitlines() if line.startswith("error: ")]


def test_help_lists_every_choice_of_every_group_and_every_top_level_key(folder):
    process = start(folder, "--help")
    assert (process.returncode, process.stderr) == (0, "")
    choices = [path.stem for path in (ROOT / "configs").glob("*/*.yaml")]
    lines = [line.split() for line in process.stdout.splitlines()]
    listed = {words[0] for words in lines if len(words) > 2}
    assert set(choices) | set(RunSettings.model_fields) <= listed
    assert process.stdout.count("\n  python run.py ") >= 3
    assert max(map(len, process.stdout.splitlines())) <= 100
    assert "| " not in process.stdout
    assert made(folder) == set()


def test_help_of_a_choice_lists_its_keys_with_value_range_and_description(call):
    process = call("--help", "strategy=mvp", "protocol=si_blurry")
    assert process.returncode == 0
    flowing = " ".join(process.stdout.split())
    assert "stream_batch 64 a whole number of at least 1 images from the stream in a batch" in flowing
    for key, text in field_texts(group_schema("strategy", "mvp")).items():
        if key != "name":
            assert f"{key} {text.default} {text.allowed} {text.description}" in flowing


def test_a_reader_that_has_enough_ends_the_help_quietly(folder):
    # Larger than a pipe holds, so that the writer meets the closed end whatever the timing.
    program = (
        "import sys\nfrom cl_prompts.runs import command_line\n"
        "command_line.help_text = lambda *parts: 'line\\n' * 100_000\n"
        "sys.exit(command_line.main(['--help']))"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout.readline() == "line\n"
    writer.stdout.close()
    assert writer.stderr.read() == ""
    writer.stderr.close()
    assert writer.wait(timeout=60) == 0


def test_several_mistakes_are_refused_at_once_quickly_and_without_heavy_imports(folder):
    words = ["strateg=mvp", "protocol.lrr=1", "strategy.pool_sise=3", "scenario.mode=oficial", "+strategy.foo=1"]
    words += ["protocol.lr=-5", "protocol.momentum=0.9", "~protocol"]
    program = (
        "import sys\n"
        "from cl_prompts.runs import main\n"
        "code = main()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "sys.exit(code)"
    )
    begun = time.perf_counter()
    process = start(folder, *words, program=("-c", program))
    seconds = time.perf_counter() - begun
    assert process.returncode == 2
    found = {line.removeprefix("error: ").split(":")[0] for line in errors(process)}
    assert found == {*words} - {"+strategy.foo=1"} | {"strategy.foo=1"}
    assert process.stdout.strip() == "[]"
    # Python itself takes part of this, more on a busy machine; the promise to users is two seconds.
    assert seconds < 8
    for raw in ("Traceback", "HYDRA_FULL_ERROR", "ConfigCompositionException", "To append to your config"):
        assert raw not in process.stderr
    assert made(folder) == set()


def test_a_valid_configuration_is_printed_as_checked_without_heavy_imports(folder):
    program = (
        "import sys\n"
        "import cl_prompts, scenarios\n"
        "from cl_prompts.runs import main\n"
        "code = main()\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.exit(code)"
    )
    words = ["experiment=mvp_mask", "mode=config", "output=~/runs of mine", "-m", "seed=1,2"]
    process = start(folder, *words, program=("-c", program))
    assert (process.returncode, process.stderr) == (0, "")
    first, second = yaml.safe_load_all(process.stdout)
    assert (first["seed"], second["seed"]) == (1, 2)
    assert first["strategy"]["logit_mask"] is True
    assert first["output"] == str(Path.home() / "runs of mine")
    assert made(folder) == set()


def test_hydra_shows_the_composition_and_problems_beside_it(folder):
    # In processes of their own: Hydra leaves a log handler behind.
    process = start(folder, "--cfg", "job", "seed=3", "protocol.lr=-1", "strategy.foo=2")
    assert process.returncode == 2
    shown = yaml.safe_load(process.stdout)
    assert (shown["seed"], shown["protocol"]["lr"], shown["strategy"]["foo"]) == (3, -1, 2)
    assert len(errors(process)) == 2
    process = start(folder, "--info", "defaults-tree")
    assert process.returncode == 0
    assert "strategy: mvp" in process.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense; settings are written key=value"),
        (["--cfg", "job", "-m"], "only one of --run, --multirun, --cfg"),
        (["--config-dir", "/nowhere/at/all"], "--config-dir /nowhere/at/all: there is no such folder"),
    ],
)
def test_wrong_options_are_one_line(call, words, text):
    process = call(*words)
    assert process.returncode == 2
    (line,) = errors(process)
    assert text in line


def test_a_run_starts_where_it_was_called_and_leaves_nothing_of_hydra(folder):
    process = start(folder, "experiment=mvp_mask", "seed=3", program=("-c", STAND_IN))
    assert process.returncode == 0
    assert process.stdout == f"executed mvp seed 3 experiment mvp_mask in {folder}\n"
    assert process.stderr == "loading torch, timm and Avalanche ...\n"
    assert made(folder) == set()


@pytest.mark.parametrize(
    ("seed", "code", "text"),
    [
        (13, 1, "error: a file is gone: /x; put it back\n"),
        (14, 1, "error: RuntimeError: not foreseen (unexpected; run again with debug=true to see where)\n"),
        (15, 130, "error: interrupted\n"),
        (16, 1, "error: torch and torchvision are different builds"),
        (17, 1, "error: Avalanche cannot write its settings into the folder .avalanche of your home folder"),
        (20, 1, "error: Avalanche cannot write its settings into the folder .avalanche of your home folder"),
        (21, 1, "error: no space left on the disk for /somewhere/else; free some and start again\n"),
        (22, 1, "error: PermissionError: [Errno 13] Permission denied: '/somewhere/else' (unexpected"),
        (18, 130, "error: interrupted\n"),
        (19, 1, ""),
    ],
)
def test_a_failing_run_ends_with_one_line_and_an_exit_code(call, seed, code, text):
    process = call(f"seed={seed}")
    assert process.returncode == code
    assert process.stderr.startswith(text)
    assert process.stderr.count("\n") == (1 if text else 0)


def test_debug_shows_the_traceback(call):
    process = call("seed=14", "debug=true")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "raise failures" in process.stderr
    assert errors(process) == ["error: RuntimeError: not foreseen"]


def test_a_sweep_runs_every_job_and_keeps_its_record_with_the_runs(call, folder):
    process = call("-m", "seed=1,13,2", "strategy=ncm", "output=results")
    assert process.returncode == 1
    assert process.stdout.splitlines() == [f"executed ncm seed {seed}" for seed in (1, 13, 2)]
    starts = [line for line in process.stderr.splitlines() if line.startswith("run ")]
    words = "output=results progress=none"
    assert starts == [f"run {number}: strategy=ncm seed={seed} {words}" for number, seed in ((1, 1), (2, 13), (3, 2))]
    assert errors(process) == ["error: a file is gone: /x; put it back"]
    (record,) = folder.glob("results/sweeps/*/multirun.yaml")
    sweep = record.parent.relative_to(folder)
    assert made(folder) == {"results", "results/sweeps", str(sweep), str(sweep / "multirun.yaml")}


@pytest.mark.parametrize("seed", [15, 18])
def test_an_interrupted_job_ends_its_sweep(call, seed):
    process = call("-m", f"seed=1,{seed},2")
    assert process.returncode == 130
    assert process.stdout.splitlines() == ["executed mvp seed 1", f"executed mvp seed {seed}"]


def test_the_console_script_is_the_same_entry(folder):
    program = textwrap.dedent(
        """
        import sys
        from importlib.metadata import EntryPoint
        sys.argv[0] = "/somewhere/bin/cl-prompts"
        sys.exit(EntryPoint("cl-prompts", "cl_prompts.runs:main", "console_scripts").load()())
        """
    )
    process = start(folder, "protocol.lr=0", program=("-c", program))
    assert process.returncode == 2
    assert errors(process) == ["error: protocol.lr=0: must be a number greater than 0 (default 0.005)"]
    assert process.stderr.splitlines()[-1] == "nothing was started; every key and choice: cl-prompts --help"
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'cl-prompts = "cl_prompts.runs:main"' in scripts


def test_an_installed_package_reads_the_configs_inside_it(folder, tmp_path):
    """In a wheel the folder of configs lies inside the package, and there is none beside it."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("cl_prompts", "scenarios"):
        copy_tree(ROOT / name, site / name)
    copy_tree(ROOT / "configs", site / "cl_prompts" / "configs")
    program = "import cl_prompts.runs as r, cl_prompts; print(cl_prompts.__file__); raise SystemExit(r.main())"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", program, "mode=config", "strategy=ncm"],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    first, _, rest = process.stdout.partition("\n")
    assert Path(first).is_relative_to(site)
    assert yaml.safe_load(rest)["strategy"]["name"] == "ncm"


def copy_tree(source: Path, target: Path) -> None:
    """Python and config files only: weights are megabytes."""
    for path in source.rglob("*"):
        if path.suffix in (".py", ".yaml"):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (target / "backbones" / "weights").mkdir(parents=True, exist_ok=True)
    (target / "backbones" / "weights" / "vit_nano.safetensors").touch()
