"""Settings are read from a file without importing it; what a file may not do is said with its name."""

from __future__ import annotations

import pytest

from cl_prompts import plugins, strategies
from cl_prompts.errors import StrategyError
from cl_prompts.strategies import declaration


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that puts a strategy file into an otherwise empty folder of strategies."""
    monkeypatch.setattr(declaration, "__file__", str(tmp_path / "declaration.py"))
    monkeypatch.setattr(strategies, "__file__", str(tmp_path / "__init__.py"))
    declaration.read_settings.cache_clear()
    strategies._subclasses.cache_clear()
    yield lambda name, text: (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    declaration.read_settings.cache_clear()
    strategies._subclasses.cache_clear()


def test_settings_are_read_without_the_rest_of_their_file(write):
    write("toy", "import no_such_package\n\nclass ToySettings(StrategySettings):\n    width: int = Field(3, ge=1)\n")
    assert declaration.read_settings("toy")().width == 3


def test_a_name_that_settings_may_not_use_is_named_with_its_file(write):
    write("toy", "import torch\n\nclass ToySettings(StrategySettings):\n    width: int = torch.iinfo('int8').max\n")
    with pytest.raises(StrategyError, match=r"toy\.py: ToySettings uses the name 'torch'; .*Field.* alone") as error:
        declaration.read_settings("toy")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_python_is_named(write):
    write("fine", "class FineSettings(StrategySettings):\n    width: int = 1\n")
    write("broken", "class BrokenSettings(StrategySettings):\n    width: int = = 1\n")
    for look in (declaration.strategy_names, lambda: strategies._subclasses("ContinualStrategy")):
        with pytest.raises(StrategyError, match=r"broken\.py, line 2: invalid syntax; ") as error:
            look()
        assert "\n" not in str(error.value)


def test_names_that_load_late_are_offered_for_completion():
    assert set(plugins.__all__) <= set(dir(plugins))
    assert "Reservoir" in dir(plugins)
