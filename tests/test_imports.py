"""Who imports whom, read from the source; and what importing costs, seen from a fresh process."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cl_prompts.strategies.declaration import strategy_names

ROOT = Path(__file__).parent.parent
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("cl_prompts", "scenarios")
    for path in (ROOT / package).rglob("*.py")
}

ALLOWED = {
    "errors": set(),
    "config_folder": {"errors"},
    "labels": {"errors"},
    "masks": {"labels", "errors"},
    "losses": {"errors"},
    "backbones": {"config_folder", "errors"},
    "pretraining": {"backbones", "errors"},
    "prompts": {"backbones", "errors"},
    "heads": {"errors"},
    "networks": {"backbones", "prompts", "heads", "errors"},
    "seen_samples": set(),
    "lanes": {"backbones", "heads", "labels", "errors"},
    "memory": {"errors"},
    "closed_form": {"labels", "errors"},
    "metrics": {"errors"},
    "strategies": {
        "backbones",
        "prompts",
        "networks",
        "seen_samples",
        "lanes",
        "heads",
        "closed_form",
        "losses",
        "masks",
        "labels",
        "errors",
    },
    "evaluation": {"strategies", "metrics", "masks", "labels", "errors"},
    "plugins": {"evaluation", "strategies", "losses", "masks", "labels", "memory", "metrics", "errors"},
    "logging": {"plugins", "evaluation", "strategies", "labels", "metrics", "errors"},
    "reports": {"metrics", "strategies", "config_folder", "errors"},
    "contract": {"runs", "plugins", "evaluation", "strategies", "backbones", "masks", "config_folder", "errors"},
}
"""Room of cl_prompts -> the other rooms it may import; `runs`, which builds everything, may import all."""

MATHEMATICS = (
    "backbones",
    "prompts",
    "networks",
    "seen_samples",
    "lanes",
    "heads",
    "losses",
    "masks",
    "labels",
    "closed_form",
)
LIBRARIES = {
    **{room: {"torch", "timm", "safetensors", "numpy", "pydantic"} for room in MATHEMATICS},
    "metrics": {"numpy"},
    "memory": {"torch"},
    "errors": set(),
    "config_folder": set(),
}
"""Room -> libraries it may import; rooms that are not named may import any."""

PROGRAMS = ("cl_prompts.backbones.pretrain", "cl_prompts.backbones.probe")
"""Command lines that stand beside what they make: they read images and arguments, and nothing imports them."""

WEIGHT_FILES = {
    "cl_prompts.backbones.build": {"yaml", "pydantic", "scenarios.pins"},
    "cl_prompts.backbones.hub": {"huggingface_hub", "tqdm"},
    "cl_prompts.backbones.records": {"yaml", "pydantic", "scenarios.pins", "scenarios.settings"},
    "cl_prompts.backbones.resolve": {"scenarios.pins"},
    "cl_prompts.backbones.weight_checks": {"scenarios._looks"},
}
"""Modules of the mathematics that find configurations and weights, and all that each may import besides the rest."""


def imported_by(module: str) -> set[str]:
    """Full names of all modules and names that a module imports anywhere in its source."""
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    """The room of a name inside cl_prompts; None outside, or for the package itself."""
    if name.startswith(PROGRAMS):
        return "pretraining"
    parts = name.split(".")
    return parts[1] if parts[0] == "cl_prompts" and len(parts) > 1 else None


def libraries_of(module: str) -> set[str]:
    own = {"cl_prompts", "scenarios", "__future__"}
    return {name.split(".")[0] for name in imported_by(module)} - own - set(sys.stdlib_module_names)


def test_sources_are_found_and_relative_imports_resolved():
    assert {"cl_prompts.strategies.mvp", "cl_prompts.plugins", "scenarios.plan", "cl_prompts.masks"} <= set(SOURCES)
    assert "cl_prompts.losses.gradient_dissimilarity" in imported_by(
        "cl_prompts.plugins.gradient_similarity_focal_loss"
    )


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("scenarios")])
def test_scenarios_never_import_cl_prompts(module):
    assert not [name for name in imported_by(module) if name.split(".")[0] == "cl_prompts"]


def test_every_room_is_known():
    rooms = {room_of(name) for name in SOURCES} - {None, "runs"}
    assert rooms <= set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_in_one_direction(room):
    for module in (name for name in SOURCES if room_of(name) == room):
        rooms = {room_of(name) for name in imported_by(module)} - {room, None, "__version__"}
        assert rooms <= ALLOWED[room], f"{module} imports {sorted(rooms - ALLOWED[room])}"


def test_the_direction_has_no_circle():
    def below(room, path=()):
        assert room not in path, (*path, room)
        for other in ALLOWED.get(room, ()):
            below(other, (*path, room))

    for room in ALLOWED:
        below(room)


@pytest.mark.parametrize("room", LIBRARIES)
def test_libraries_of_the_plain_rooms(room):
    for module in (name for name in SOURCES if room_of(name) == room):
        allowed = WEIGHT_FILES.get(module, set())
        foreign = libraries_of(module) - LIBRARIES[room] - allowed
        assert not foreign, f"{module} imports {sorted(foreign)}"
        from_scenarios = {name for name in imported_by(module) if name.startswith("scenarios")}
        if room in MATHEMATICS:
            settings = module.rpartition(".")[2] == "settings"
            allowed_names = allowed | ({"scenarios.settings"} if settings else set())
            assert {name.rpartition(".")[0] for name in from_scenarios} <= allowed_names, module
            assert settings or "pydantic" in allowed or "pydantic" not in libraries_of(module)


@pytest.mark.parametrize("name", strategy_names())
def test_a_method_file_imports_parts_and_its_base_alone(name):
    strategies = ("base", "method", "network", "declaration")
    allowed = {f"cl_prompts.strategies.{part}" for part in strategies}
    allowed |= {
        "cl_prompts.prompts",
        "cl_prompts.lanes",
        "cl_prompts.seen_samples",
        "cl_prompts.heads",
        "cl_prompts.closed_form",
        "cl_prompts.losses",
        "cl_prompts.masks",
        "cl_prompts.labels",
        "cl_prompts.backbones",
        "cl_prompts.errors",
    }
    for imported in imported_by(f"cl_prompts.strategies.{name}"):
        if imported.split(".")[0] == "cl_prompts":
            assert any(imported == part or imported.startswith(f"{part}.") for part in allowed), imported
    assert libraries_of(f"cl_prompts.strategies.{name}") <= {"torch"}


def test_the_evaluator_knows_of_strategies_only_what_a_method_is():
    modules = [module for module in SOURCES if room_of(module) == "evaluation"]
    names = {name for module in modules for name in imported_by(module) if room_of(name) == "strategies"}
    assert names == {"cl_prompts.strategies.method.Method"}


# --- a fresh process ------------------------------------------------------------------------------------------------


def fresh(code: str, tmp_path: Path, **environment: str) -> dict:
    """What a new interpreter prints as JSON in its last line, started in a folder of its own."""
    work = tmp_path / "work"
    work.mkdir()
    # Torch, imported by this process, names its own cache folder to its children.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={**inherited, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not list(work.iterdir())
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_light_imports_load_neither_torch_nor_avalanche(tmp_path):
    code = """
import json, sys
import cl_prompts, scenarios, cl_prompts.metrics, cl_prompts.plugins, cl_prompts.strategies
import cl_prompts.backbones, cl_prompts.prompts, cl_prompts.errors, scenarios.plan, scenarios.si_blurry
from cl_prompts.strategies.declaration import read_settings, strategy_names
needs = [read_settings(name).needs.gradient for name in strategy_names()]
dir(cl_prompts.strategies), dir(cl_prompts.plugins), dir(cl_prompts)
heavy = {"torch", "torchvision", "timm", "avalanche", "matplotlib", "tensorboard", "sklearn", "pandas", "hydra"}
print(json.dumps({"heavy": sorted(heavy & set(sys.modules)), "methods": len(needs)}))
"""
    seen = fresh(code, tmp_path)
    assert seen == {"heavy": [], "methods": len(strategy_names())}


def test_heavy_imports_write_nothing_outside_the_home_folder(tmp_path):
    home = tmp_path / "home"
    temporary = tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    code = """
import json, os, sys
written = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        flags = arguments[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(os.path.abspath(os.fsdecode(arguments[0])))
    elif event in ("os.mkdir", "os.rename"):
        written.append(os.path.abspath(os.fsdecode(arguments[0])))
    elif event == "socket.connect":
        written.append("network")
sys.addaudithook(watch)
import cl_prompts.strategies, cl_prompts.plugins, cl_prompts.evaluation, scenarios.benchmark
cl_prompts.strategies.MVP, cl_prompts.plugins.AnytimeEvaluation
print(json.dumps({"avalanche": "avalanche" in sys.modules, "written": sorted(set(written))}))
"""
    import matplotlib

    # Building its font cache takes matplotlib longer than all of this test: let it find the one that exists.
    fonts = matplotlib.get_cachedir()
    seen = fresh(
        code,
        tmp_path,
        MPLCONFIGDIR=fonts,
        HOME=str(home),
        TMPDIR=str(temporary),
        XDG_CACHE_HOME=str(home / ".cache"),
        XDG_CONFIG_HOME=str(home / ".config"),
    )
    assert seen["avalanche"]
    allowed = (str(home), str(temporary), fonts, "/dev/", "/proc/")
    assert not [path for path in seen["written"] if not path.startswith(allowed)]
    # Torch makes an empty folder for its compiler among temporary files.
    assert not [path.name for path in temporary.rglob("*") if not path.name.startswith("torchinductor")]
