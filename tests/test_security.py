"""No module runs code that a file brings: read from the source, with the few places that look as if they did."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("cl_prompts", "scenarios")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "code", "pty"}
"""Modules whose business is to run what a file says."""

CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.load_all"}
CALLS |= {"yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"}
CALLS |= {"pandas.read_pickle", "tarfile.open.extractall", "shutil.unpack_archive"}
"""Functions that may run what they are given, or write where it says."""

PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn", "asyncio.create_subprocess_shell", "subprocess.getoutput")
PREFIXES += ("subprocess.getstatusoutput",)

KEYWORDS = {
    "torch.load": ("weights_only", True),
    "timm.models.load_state_dict": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
}
"""Functions that are safe with this keyword alone."""

METHODS = {"extractall", "extract"}
"""Methods of archives that write where the archive says."""

ALLOWED = {
    (
        "scenarios/datasets/_cifar.py",
        "pickle",
    ): "the official files are pickles; read only if their md5 is the official",
    ("cl_prompts/strategies/declaration.py", "exec"): "a class of our own source, read without the rest of its file",
    ("cl_prompts/strategies/declaration.py", "compile"): "the same",
    ("cl_prompts/contract/backbone.py", "pickle"): "reads what it has just written itself, from memory",
    ("cl_prompts/contract/scenario.py", "pickle"): "the same",
    ("cl_prompts/contract/state.py", "pickle"): "the same",
    ("cl_prompts/backbones/records.py", "yaml.load"): "with a safe loader, the one in C",
    ("cl_prompts/reports/plain_files.py", "yaml.load"): "with a safe loader, the one in C where there is one",
    ("scenarios/datasets/_split_lists.py", "yaml.load"): "with a safe loader, the one in C",
}
"""(file, what it uses) -> why that is safe."""


def found_in(source: str) -> set[str]:
    """What a source uses of the above."""
    tree = ast.parse(source)
    names = {}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                found |= {alias.name.split(".")[0]} & MODULES
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module.split(".")[0]} & MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = full_name(node, names)
            if name in CALLS or name.startswith(PREFIXES):
                found.add(name)
        if isinstance(node, ast.Call):
            found |= of_call(node, full_name(node.func, names))
    return found


def of_call(node: ast.Call, name: str) -> set[str]:
    keywords = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
    found = {"shell=True"} if keywords.get("shell") not in (None, False) else set()
    if name in KEYWORDS and keywords.get(KEYWORDS[name][0]) is not KEYWORDS[name][1]:
        found.add(name)
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        found.add(node.func.attr)
    return found


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of what an expression means; empty where it is none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        front = full_name(node.value, names)
        return f"{front}.{node.attr}" if front else ""
    return ""


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("def f():\n    import dill as d", "dill"),
        ("import torch\ntorch.load(path)", "torch.load"),
        ("from torch import load as read\nread(path, weights_only=False)", "torch.load"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "numpy.load"),
        ("import yaml\nyaml.load(text, yaml.Loader)", "yaml.load"),
        ("from yaml import unsafe_load\nunsafe_load(text)", "yaml.unsafe_load"),
        ("eval(text)", "eval"),
        ("run = exec", "exec"),
        ("import os\nos.system(text)", "os.system"),
        ("import os\nos.execv(a, b)", "os.execv"),
        ("import subprocess\nsubprocess.run(text, shell=True)", "shell=True"),
        ("archive.extractall(folder)", "extractall"),
    ],
)
def test_it_is_seen(source, what):
    assert found_in(source) == {what}


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "torch.load(path, weights_only=True)", "import yaml\nyaml.safe_load(text)", "re.compile(text)"],
)
def test_harmless_things_are_not(source):
    assert found_in(f"import re, torch\n{source}") == set()


def test_no_module_runs_what_a_file_says_but_where_that_is_justified():
    found = {(path, what) for path, source in SOURCES.items() for what in found_in(source)}
    assert found - ALLOWED.keys() == set()
    assert ALLOWED.keys() - found == set()
