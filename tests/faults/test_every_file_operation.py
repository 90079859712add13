"""A fault at every file operation: of a save, of every other file of a run, and of whole runs, which then go on.

Each case is a process of its own in which the operating system itself fails, or that ends there. The long part:

    python -m pytest -n 0 -m "not soak" tests/faults/test_every_file_operation.py -s
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
import torch
from file_operations import KILLED, Operations, full_disk, killed, nothing, one_error, power_cut, short_write, watch
from forked import final_hash, in_a_process, wait
from tiny_runs import checked, table, tiny_words

from cl_prompts.errors import UserError
from cl_prompts.runs.checkpoints import CheckpointStore
from cl_prompts.runs.continuing import resumed_config, saved_status
from cl_prompts.runs.directory import RunDirectory, RunSummary
from cl_prompts.runs.failures import failure_text
from cl_prompts.runs.jobs import perform
from cl_prompts.runs.schema import RunConfig
from scenarios import load_plan, si_blurry_plan

FAULTS = {"killed": killed, "power cut": power_cut, "full disk": full_disk, "one error": one_error}
FAULTS["short write"] = short_write
"""Name -> number of the operation -> what happens there."""


def with_fault(work: Callable[[], int], folder: Path, fault: Callable) -> tuple[int, str, list[str]]:
    """Do `work` in a process with a fault below `folder`; exit code, what it printed, its operations if it ended."""
    output, log = folder.parent / "output.txt", folder.parent / "operations.json"
    log.unlink(missing_ok=True)

    def watched() -> int:
        operations = Operations(folder, fault)
        watch(operations)
        code = work()
        log.write_text(json.dumps(operations.log))
        return code

    code = wait(in_a_process(watched, output))
    assert code is not None
    return code, output.read_text(encoding="utf-8"), json.loads(log.read_text()) if log.exists() else []


def one_line(work: Callable[[], object]) -> int:
    """Exit code 1 and the line of the error that a user can put right, if `work` raises one."""
    try:
        work()
    except UserError as error:
        print(failure_text(error))
        return 1
    return 0


# --- one file of a run at a time ------------------------------------------------------------------------------------

PLAN = {seed: si_blurry_plan([0, 0, 1, 1, 2, 2, 3, 3], n_sessions=2, seed=seed) for seed in (1, 2)}


def save_state(folder: Path, which: int) -> None:
    state = {"samples": which, "weights": torch.full((50,), float(which))}
    CheckpointStore(folder / "checkpoints").save(which, state)


def read_state(folder: Path) -> int | None:
    def no_warning(text: str) -> None:
        raise AssertionError(text)

    state = CheckpointStore(folder / "checkpoints").load(no_warning)
    if state is None:
        return None
    assert torch.equal(state["weights"], torch.full((50,), float(state["samples"])))
    return state["samples"]


def write_summary(folder: Path, which: int) -> None:
    RunDirectory(folder).write_summary(RunSummary(status="running", samples_seen=which))


def read_summary(folder: Path) -> int | None:
    path = folder / "summary.json"
    return json.loads(path.read_text())["samples_seen"] if path.exists() else None


def write_manifest(folder: Path, which: int) -> None:
    RunDirectory(folder).write_manifest({"which": which, "long": "x" * 20_000})


def read_manifest(folder: Path) -> int | None:
    path = folder / "manifest.json"
    return json.loads(path.read_text())["which"] if path.exists() else None


def write_model(folder: Path, which: int) -> None:
    RunDirectory(folder).write_model(bytes([which]) * 20_000)


def read_model(folder: Path) -> int | None:
    path = folder / "model.safetensors"
    content = path.read_bytes() if path.exists() else None
    assert content is None or content == bytes([content[0]]) * 20_000
    return None if content is None else content[0]


def write_array(folder: Path, which: int) -> None:
    RunDirectory(folder).write_predictions("logits.npz", {"which": torch.full((5000,), which).numpy()})


def read_array(folder: Path) -> int | None:
    import numpy as np

    path = folder / "predictions" / "logits.npz"
    return int(np.load(path, allow_pickle=False)["which"][-1]) if path.exists() else None


def write_rows(folder: Path, which: int) -> None:
    RunDirectory(folder).write_prediction_table("rows.csv", [{"row": which, "of": which}] * 1000)


def read_rows(folder: Path) -> int | None:
    path = folder / "predictions" / "rows.csv"
    rows = table(path) if path.exists() else None
    assert rows is None or (len(rows) == 1000 and rows[0] == rows[-1])
    return None if rows is None else int(rows[0]["row"])


def write_plan(folder: Path, which: int) -> None:
    RunDirectory(folder).write_plan(PLAN[which])


def read_plan(folder: Path) -> int | None:
    """Arrays and header are two files: where they are not of one plan they are refused, never taken for one."""
    if not (folder / "plan.json").exists():
        return None
    try:
        return load_plan(folder).requested["seed"]
    except UserError as error:
        if "do not match" not in str(error):
            raise
        return None


KINDS = {
    "checkpoint": (save_state, read_state),
    "summary.json": (write_summary, read_summary),
    "manifest.json": (write_manifest, read_manifest),
    "model.safetensors": (write_model, read_model),
    "predictions/logits.npz": (write_array, read_array),
    "predictions/rows.csv": (write_rows, read_rows),
    "plan": (write_plan, read_plan),
}
"""What is saved -> its writer and reader; a reader returns which one it found, None where none can be read."""


@pytest.mark.parametrize(
    "kind", [kind if kind == "checkpoint" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_file_is_the_old_one_or_the_new_one_whatever_fails(kind, tmp_path):
    write, read = KINDS[kind]
    folder, counts = tmp_path / "run", Counter()

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder, 1)

    begin()
    assert read(folder) == 1
    _, _, operations = with_fault(lambda: one_line(lambda: write(folder, 2)), folder, nothing)
    assert {name.split()[0] for name in operations} >= {"open", "write", "sync", "rename"}
    for name, fault in FAULTS.items():
        for number in range(1, len(operations) + 1):
            begin()
            code, output, _ = with_fault(lambda: one_line(lambda: write(folder, 2)), folder, fault(number))
            found, case = read(folder), (name, operations[number - 1])
            counts[name] += 1
            if code == 0:
                assert found == 2, case
            elif kind == "plan":
                assert found in (None, 1, 2), case
            else:
                assert found in (1, 2), case
            if name in ("killed", "power cut"):
                assert code == KILLED, case
                write(folder, 2)
            elif name == "short write":
                assert code == 0, case
            elif code:
                assert (code, output.count("\n")) == (1, 1), case
                assert output.startswith(f"cannot write {folder}"), case
                assert not list(folder.rglob("*.tmp")), case
                write(folder, 2)
            assert read(folder) == 2, case
    print(f"\n{kind}: {len(operations)} operations, {sum(counts.values())} cases")


@pytest.mark.slow
def test_of_many_saves_the_last_two_stay_whatever_fails(tmp_path):
    """The operations of a save that also removes an old file."""
    folder = tmp_path / "run"
    for name, fault in FAULTS.items():
        for number in range(1, 7):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for which in (1, 2, 3):
                save_state(folder, which)
            with_fault(lambda: one_line(lambda: save_state(folder, 4)), folder, fault(number))
            assert read_state(folder) in (3, 4), (name, number)
            assert len(CheckpointStore(folder / "checkpoints").files()) in (2, 3)
            save_state(folder, 5)
            assert [int(path.name[:12]) for path in CheckpointStore(folder / "checkpoints").files()][-1] == 5
            assert len(CheckpointStore(folder / "checkpoints").files()) == 2


# --- whole runs -----------------------------------------------------------------------------------------------------

RUNS = {
    "ncm": ("checkpoint_every=15", "protocol.eval_every=20", "tensorboard=false", "scenario.n_sessions=2"),
    "mvp": ("checkpoint_every=20", "protocol.eval_every=40", "tensorboard=true", "scenario.n_sessions=2"),
}
"""Method -> words of its run."""


@cache
def config_of(method: str, output: Path) -> RunConfig:
    return checked(*tiny_words(method, *RUNS[method], "progress=none", f"output={output}", "name=run"))


def go_on(folder: Path, method: str) -> RunConfig:
    """The configuration that a user starts after a fault: the run's own, or where nothing was written yet, anew."""
    if (folder / "config.yaml").is_file():
        return resumed_config(folder, [])
    shutil.rmtree(folder, ignore_errors=True)
    return config_of(method, folder.parent)


def assert_nothing_is_half_written(folder: Path, expected: Path) -> None:
    """Every file that is there can be read, and what it tells is part of what the unbroken run tells."""
    if (folder / "curves.csv").exists():
        rows = table(folder / "curves.csv")
        assert rows == table(expected / "curves.csv")[: len(rows)]
    for name in ("summary.json", "manifest.json", "plan.json"):
        if (folder / name).exists():
            json.loads((folder / name).read_text(encoding="utf-8"))
    if (folder / "model.safetensors").exists():
        assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    read_plan(folder)
    CheckpointStore(folder / "checkpoints").load(lambda text: pytest.fail(text))


def one_case(method: str, fault: Callable, folder: Path, expected: Path) -> tuple[int, list[str]]:
    """A run with a fault that then goes on; its first exit code and operations."""
    shutil.rmtree(folder, ignore_errors=True)
    config = config_of(method, folder.parent)
    code, output, operations = with_fault(lambda: perform(config), folder.parent, fault)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code in (0, KILLED) or (code == 1 and len(lines) == 1), output
    assert "unexpected" not in output
    assert "Traceback" not in output
    assert_nothing_is_half_written(folder, expected)
    if saved_status(folder) != "finished":
        again = go_on(folder, method)
        assert with_fault(lambda: perform(again), folder.parent, nothing)[0] == 0
    assert saved_status(folder) == "finished"
    assert final_hash(folder) == final_hash(expected)
    assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}
    assert not list(folder.rglob("*.tmp"))
    return code, operations


@pytest.fixture
def expected(one_thread, tmp_path):
    def run(method: str) -> tuple[Path, list[str]]:
        """An unbroken run and its operations."""
        folder = tmp_path / "straight" / "run"
        folder.parent.mkdir()
        # What is imported on the way is then there for every process.
        assert perform(config_of(method, tmp_path / "warm")) == 0
        config = config_of(method, folder.parent)
        code, output, operations = with_fault(lambda: perform(config), folder.parent, nothing)
        assert code == 0, output
        return folder, operations

    return run


def places(operations: list[str]) -> dict[str, int]:
    """Every kind of operation on every file -> the number of its last one."""
    names = {}
    for number, operation in enumerate(operations, 1):
        kind, name = operation.split(" ", 1)
        names[f"{kind} {Path(name).name.split('-')[0]}"] = number
    return names


@pytest.mark.parametrize("fault", ["killed", pytest.param("full disk", marks=pytest.mark.slow)])
def test_a_run_with_a_fault_at_one_of_its_last_files_goes_on(fault, expected, tmp_path):
    straight, operations = expected("ncm")
    chosen = [number for name, number in places(operations).items() if name.startswith("write ")][-2:]
    assert len(chosen) == 2
    for number in chosen:
        one_case("ncm", FAULTS[fault](number), tmp_path / "faulty" / "run", straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fault"), [*(("ncm", name) for name in FAULTS), ("mvp", "killed"), ("mvp", "full disk")]
)
def test_a_run_goes_on_after_a_fault_at_any_of_its_operations(fault, method, expected, tmp_path):
    started, counts = datetime.now(), Counter()
    straight, operations = expected(method)
    for number in range(1, len(operations) + 1):
        if fault == "short write" and not operations[number - 1].startswith("write"):
            continue
        code, _ = one_case(method, FAULTS[fault](number), tmp_path / "faulty" / "run", straight)
        counts[code] += 1
    assert counts[KILLED] == (len(operations) if fault in ("killed", "power cut") else 0)
    print(f"\n{method}, {fault}: {sum(counts.values())} cases, exit codes {dict(counts)}, {datetime.now() - started}")


def test_the_faults_are_real(tmp_path):
    """Without them nothing of this would mean anything: a write in place is found broken."""

    def write_in_place() -> None:
        with (tmp_path / "run" / "file").open("wb") as file:
            file.write(b"new" * 100)

    for name in ("killed", "power cut", "full disk"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "file").write_bytes(b"old" * 100)
        with_fault(lambda: one_line(write_in_place), tmp_path / "run", FAULTS[name](2))
        assert (tmp_path / "run" / "file").read_bytes() not in (b"old" * 100, b"new" * 100), name
