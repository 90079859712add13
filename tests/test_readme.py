"""The Avalanche examples of README and docs run as written; README's commands are the ones that CI executes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    code for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]


def test_first_screen_has_the_two_commands_that_install_and_run():
    lines = README.splitlines()[:24]
    commands = [line for line in lines if line.startswith("python -m pip install")]
    assert [command.split(" && ")[1] for command in commands] == [
        "python run.py scenario=si_blurry strategy=mvp",
        "python -m pytest",
    ]


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (Path(__file__).parent.parent / target).is_file(), target


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run_as_written(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()[-1]
    accuracies = [float(number) for number in re.findall(r"\d\.\d+", printed)]
    assert len(accuracies) >= 3
    assert max(accuracies) > 0.15  # ten classes: chance is a tenth, and the first sessions have fewer
