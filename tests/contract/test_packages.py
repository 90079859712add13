"""Methods of other packages: the page on contributing is followed word by word; what is broken is named in one line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from packages import ROOT, install, template
from tiny_runs import TINY, only_folder

from cl_prompts import strategies
from cl_prompts.contract import check_strategy
from cl_prompts.contract.__main__ import main as contract
from cl_prompts.errors import StrategyError
from cl_prompts.runs import main
from cl_prompts.runs.keys import owners
from cl_prompts.runs.schema import group_schema
from cl_prompts.strategies import declaration, foreign, load_strategy

SETTINGS = "class MySettings(StrategySettings):\n    width: int = Field(3, description='of it')\n"


def forget():
    """Look anew for packages, settings and classes."""
    for known in (
        foreign.foreign_strategies,
        declaration.read_settings,
        strategies._subclasses,
        group_schema,
        owners,
    ):
        known.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a package into this process, as `install` does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    choices = dict(ConfigStore.instance().repo.get("strategy", {}))

    def add(files, entries, package="my-package"):
        install(tmp_path, files, entries, package)
        forget()

    yield add
    monkeypatch.undo()
    forget()
    ConfigStore.instance().repo["strategy"] = choices
    for name in [name for name in sys.modules if name.split(".")[0] in ("my_package", "other")]:
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore:No loggers")
def test_the_method_of_the_page_on_contributing_keeps_every_promise(installed):
    files, entries = template()
    assert set(files) == {"my_package/my_method.py", "my_package/configs/strategy/my_method.yaml"}
    installed(files, entries)
    assert "my_method" in declaration.strategy_names()
    checks = check_strategy("my_method")
    assert len(checks) >= 40
    for check in checks:
        if not check.slow:
            check.run()


def test_the_config_of_the_page_has_the_keys_and_defaults_of_its_settings(installed):
    files, entries = template()
    installed(files, entries)
    text = files["my_package/configs/strategy/my_method.yaml"]
    settings = declaration.read_settings("my_method")
    assert yaml.safe_load(text) == {"name": "my_method", **settings().model_dump()}
    assert all("  # " in line for line in text.splitlines()[3:])
    assert "my_package" not in sys.modules


def test_it_runs_in_a_fresh_process_without_a_config_file(tmp_path):
    files, entries = template()
    install(tmp_path / "site", {name: text for name, text in files.items() if name.endswith(".py")}, entries)
    command = [sys.executable, str(ROOT / "run.py"), *TINY, "strategy=my_method", "strategy.prompt_length=2"]
    command += ["progress=none", "tensorboard=false", f"output={tmp_path / 'runs'}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    folder = only_folder(tmp_path / "runs")
    manifest = yaml.safe_load((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["strategy"]["package"] == "my-package 0.3"
    assert manifest["strategy"]["prompt_length"] == 2
    written = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["strategy"]
    assert written == {"name": "my_method", "prompt_length": 2, "head": "linear", "temperature": 0.1}


def test_it_is_listed_in_help_and_in_errors(installed, capsys):
    installed(*template())
    assert main(["--help"]) == 0
    assert "my_method " in capsys.readouterr().out
    assert main(["strategy=my_metod"]) == 2
    assert "did you mean my_method? choose one of" in capsys.readouterr().err
    assert main(["strategy=my_method", "strategy.prompt_lenth=2", "mode=config"]) == 2
    assert "did you mean strategy.prompt_length?" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_config_files_come_before_the_defaults_and_the_users_before_the_packages(installed, capsys, tmp_path):
    files, entries = template()
    name = "my_package/configs/strategy/my_method.yaml"

    def length(*options):
        assert main([*options, "strategy=my_method", "mode=config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)["strategy"]["prompt_length"]

    installed({path: text for path, text in files.items() if path != name}, entries)
    assert length() == 5
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(files[name].replace("prompt_length: 5", "prompt_length: 7"), encoding="utf-8")
    assert length() == 7
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "my_method.yaml").write_text("name: my_method\nprompt_length: 9\n", encoding="utf-8")
    assert length("--config-dir", str(tmp_path)) == 9


BROKEN = {
    "no module": ({}, "no source file of a module 'my_package.my_method' is installed"),
    "no Python": ({"my_package/my_method.py": "class = 3\n"}, r"my_method\.py, line 1: invalid syntax"),
    "no settings": ({"my_package/my_method.py": "x = 1\n"}, "declares no subclass of StrategySettings"),
    "foreign names": (
        {"my_package/my_method.py": "import numpy\n" + SETTINGS.replace("3", "numpy.pi")},
        "uses the name 'numpy'",
    ),
    "a wrong class": (
        {"my_package/my_method.py": SETTINGS.replace("3", "3 // 0")},
        r"package my-package 0\.3: .*division",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_named_in_one_line_and_leaves_the_others_alone(case, installed, capsys):
    files, expected = BROKEN[case]
    installed({"my_package/__init__.py": "", **files}, {"my_method": "my_package.my_method"})
    with pytest.raises(StrategyError, match=expected) as error:
        declaration.read_settings("my_method")
    assert "\n" not in str(error.value)
    assert "my-package 0.3" in str(error.value) or "my_method.py" in str(error.value)
    assert main(["strategy=my_method"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert str(error.value) in line
    assert main(["strategy=ncm", "mode=config"]) == 0
    assert "my_method" not in capsys.readouterr().out


def test_a_package_that_cannot_be_imported_is_named(installed, capsys):
    text = f"import no_such_module\n\n{SETTINGS}\n\nclass My(ContinualStrategy):\n    pass\n"
    installed({"my_package/__init__.py": "", "my_package/my_method.py": text}, {"my_method": "my_package.my_method"})
    expected = (
        r"package my-package 0\.3: my_package\.my_method cannot be imported \(ModuleNotFoundError: .*no_such_module"
    )
    with pytest.raises(StrategyError, match=expected):
        load_strategy("my_method")
    assert contract(["strategy", "my_method"]) == 1
    assert "BROKEN  my_method, " in capsys.readouterr().out
    text = f"{SETTINGS}\nx = 1\n"
    declaration.strategy_file("my_method").write_text(text, encoding="utf-8")
    with pytest.raises(StrategyError, match="must hold one subclass of ContinualStrategy, it has none"):
        load_strategy("my_method")


def test_a_name_can_be_taken_once(installed):
    installed({"my_package/my_method.py": SETTINGS}, {"my_method": "my_package.my_method"})
    installed({"other/mine.py": SETTINGS}, {"my_method": "other.mine"}, "other")
    with pytest.raises(StrategyError, match="announces the same name; uninstall one of them"):
        declaration.strategy_names()


def test_a_name_of_ours_is_not_taken(installed):
    installed({"my_package/ncm.py": SETTINGS}, {"ncm": "my_package.ncm"})
    with pytest.raises(StrategyError, match=r"strategy=ncm of the package my-package 0\.3: the name ncm is one of"):
        declaration.strategy_names()


def test_an_unknown_name_has_no_contract(capsys):
    assert contract(["strategy", "no_such_method"]) == 2
    assert capsys.readouterr().err.startswith("error: strategy no_such_method: ")
