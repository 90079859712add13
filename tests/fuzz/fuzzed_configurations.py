"""Configurations: words of the command line, composed trees, YAML files of a user, the configuration of a saved run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from harness import Target, Violation, assert_clear
from hydra.types import RunMode
from hypothesis import strategies as st
from mutations import ODD_TEXTS, hostile_bytes, spoilt_trees
from omegaconf import OmegaConf

from cl_prompts.runs.compose import open_composer
from cl_prompts.runs.continuing import resumed_config, saved_config
from cl_prompts.runs.fields import field_texts
from cl_prompts.runs.request import read_request
from cl_prompts.runs.schema import GROUPS, RunConfig, RunSettings, group_schema, known_names
from cl_prompts.runs.validation import check_config

_RECORDS = re.compile(r"(?:\n {2}\S[^\n]*)+$")
"""The weights of a backbone, a line each, which follow the one line."""


@cache
def keys() -> tuple[str, ...]:
    """Every key there is, dotted."""
    found = list(field_texts(RunSettings))
    for group in GROUPS:
        schemas = [group_schema(group, name) for name in known_names(group) or ("",)]
        found += sorted({f"{group}.{key}" for schema in schemas for key in field_texts(schema)})
    return tuple(found)


@cache
def choices() -> dict[str, tuple[str, ...]]:
    """Group -> its files."""
    with open_composer() as composer:
        return {group: tuple(composer.choices(group)) for group in (*GROUPS, "experiment")}


def check_lines(lines: Any, words: Any) -> None:
    """Every problem is one line, the records of weights aside, and one at least names a key that was given."""
    for line in lines:
        assert_clear(_RECORDS.sub("", line), ())
    if words and not any(word and word in line for word in words for line in lines):
        raise Violation(f"none of {words} is named: {lines[:3]}")


# Words of the command line


def _misspelt(key: str) -> st.SearchStrategy[str]:
    return st.integers(0, max(0, len(key) - 1)).map(lambda place: key[:place] + key[place + 1 :])


_VALUES = st.one_of(
    st.sampled_from(
        (
            *(
                "null",
                "true",
                "no",
                "0",
                "1",
                "-1",
                "3.5",
                "1e-3",
                "nan",
                "inf",
                "-inf",
                "1e400",
                "[]",
                "[0]",
                "[0,1]",
                "{}",
            ),
            *("{a:1}", "[[1]]", "[a,b]", "{a:{b:[1,{c:d}]}}", "1,2,3", "a,b", "range(1,3)", "range(3)", "range(0,1,0)"),
            *(
                "range(0,1000000000)",
                "interval(0,1)",
                "choice(1,2)",
                "choice()",
                "glob(*)",
                "glob(m*,exclude=mvp)",
                "sort(3,1)",
            ),
            *(
                "shuffle(1,2)",
                "int(x)",
                "float(1e9)",
                "str([1])",
                "bool(2)",
                "json_str(1)",
                "extend_list(1)",
                "tag(a,1)",
            ),
            *(
                "${seed}",
                "${strategy.lr}",
                "${oc.env:HOME}",
                "${oc.env:NO_SUCH}",
                "${oc.decode:'['}",
                "${oc.create:{a:1}}",
            ),
            *(
                "${now:%Y}",
                "${hydra:job.name}",
                "${strategy}",
                "${.seed}",
                "${..}",
                "${oc.select:x,1}",
                "${oc.dict.keys:strategy}",
            ),
            *(
                "${protocol.lr}",
                "${dataset}",
                "x${seed}y",
                "${${name}}",
                "\\${seed}",
                "'a b'",
                '"a"',
                "'",
                '"',
                "'a",
                "a:b",
                "a b",
            ),
            *(
                "(",
                ")",
                "[",
                "{",
                "]",
                ":",
                "=",
                "==",
                "@",
                "~",
                "+",
                "\\",
                "\\,",
                "9" * 5000,
                "[" * 500,
                "{a:" * 200,
                "untrained",
            ),
            *("/", "~", "~/x", ".", "..", "cpu", "cuda", "cuda:99", "cuda:" + "9" * 40, "run", "inspect", "check-data"),
        )
    ),
    st.sampled_from(ODD_TEXTS),
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.integers(-2, 9), max_size=4).map(str),
)


@st.composite
def _word(draw: st.DrawFn) -> str:
    kind = draw(st.integers(0, 9))
    if kind < 5:
        return f"{draw(st.sampled_from(keys()))}={draw(_VALUES)}"
    if kind == 5:
        group = draw(st.sampled_from(sorted(choices())))
        named = draw(st.sampled_from(choices()[group]) | st.sampled_from(choices()[group]).flatmap(_misspelt) | _VALUES)
        return f"{group}={named}"
    if kind == 6:
        group = draw(st.sampled_from(sorted(choices())))
        return f"{group}={draw(st.sampled_from(choices()[group]))}"
    if kind == 7:
        key = draw(
            st.sampled_from(keys()).flatmap(_misspelt) | st.sampled_from((*GROUPS, "hydra", "seed.x", "a.b.c", ""))
        )
        return f"{key}={draw(_VALUES)}"
    if kind == 8:
        word = f"{draw(st.sampled_from(keys()))}={draw(_VALUES)}"
        return draw(st.sampled_from(("+", "++", "~", "+~", "@", " ", "-"))) + word
    return draw(
        st.sampled_from(
            (
                *(
                    "hydra.run.dir=x",
                    "hydra/launcher=joblib",
                    "hydra/launcher=basic",
                    "hydra.mode=MULTIRUN",
                    "hydra.mode=x",
                ),
                *(
                    "hydra.sweeper.params={seed:'1,2'}",
                    "hydra.sweeper.max_batch_size=0",
                    "hydra/sweeper=basic",
                    "hydra=x",
                ),
                *(
                    "hydra.job.name=${seed}",
                    "hydra.verbose=true",
                    "strategy@x=mvp",
                    "strategy@_global_=mvp",
                    "~strategy",
                    "seed",
                ),
                *(
                    "experiment=",
                    "=",
                    "",
                    "seed=",
                    "strategy=mvp,l2p",
                    "experiment=null",
                    "experiment=none",
                    "seed=1=2",
                ),
            )
        )
        | st.text(max_size=10)
    )


_COMMAND_LINES = st.tuples(st.lists(_word(), min_size=1, max_size=4), st.booleans())


@contextmanager
def opened_words(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Compose and check; what is accepted is what Hydra would run, and reads back."""
    with open_composer() as composer:

        def attempt(line: tuple[list[str], bool]) -> bool:
            words, multirun = line
            if len(composer._compositions) > 60:
                composer._compositions.clear()  # one process answers one command line, not thousands
            request = read_request(composer, words, multirun=multirun)
            if request.problems:
                check_lines(request.problems, ())
                if request.configs:
                    raise Violation("problems and yet something to start")
                return True
            if not request.configs:
                raise Violation("neither a problem nor anything to start")
            for config in request.configs[:3]:
                reads_back(config)
            if not request.multirun:
                cfg = composer.loader.load_configuration("run", list(request.hydra_words or ()), RunMode.RUN)
                raw: Any = OmegaConf.to_container(cfg, resolve=True)
                raw["experiment"] = raw["hydra"]["runtime"]["choices"]["experiment"]
                del raw["hydra"]
                again, problems = check_config(raw)
                if again != request.configs[0]:
                    raise Violation(f"Hydra would run something else: {problems}")
            return False

        yield attempt


def reads_back(config: RunConfig) -> None:
    """The file that a run would keep of it can be written, and holds the same."""
    text = config.to_yaml().encode("utf-8").decode("utf-8")
    again, problems = check_config(yaml.safe_load(text), rules=())
    if again != config:
        raise Violation(f"does not read back: {[problem.text for problem in problems]}")


# Composed trees


@cache
def trees() -> tuple[dict[str, Any], ...]:
    """Valid configurations as plain data."""
    lines = (
        [],
        ["strategy=multi_lane", "scenario=mlcil", "dataset=digit_mosaics"],
        ["strategy=ncm", "scenario=iid"],
        ["strategy=single_prompt", "experiment=none", "backbone=vit_tiny", "backbone.checkpoint=untrained"],
        ["strategy=linear_probe", "dataset=cifar100", "scenario=i_blurry", "protocol=offline"],
    )
    with open_composer() as composer:
        requests = [read_request(composer, line, multirun=False) for line in lines]
    return tuple(yaml.safe_load(config.to_yaml()) for request in requests for config in request.configs)


@contextmanager
def opened_trees(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Check plain data."""

    def attempt(raw: Any) -> bool:
        if not isinstance(raw, dict):
            return False  # composition makes nothing else
        config, problems = check_config({str(key): value for key, value in raw.items()})
        if config is None:
            check_lines([problem.text for problem in problems], ())
            if not problems:
                raise Violation("refused without a reason")
            return True
        reads_back(config)
        return False

    yield attempt


# YAML files of a user

_TEXTS = (
    "name: mvp\npool_size: 4\nvariant: paper\n",
    "# @package _global_\ndefaults:\n  - override /strategy: ncm\nprotocol:\n  lr: 0.1\nseed: 3\n",
    "# @package _global_\nprotocol: {lr: 1e-3, stream_batch: 4}\nscenario:\n  n_sessions: 3\nname: '${strategy.name}_${seed}'\n",  # noqa: E501
    "defaults:\n  - mvp\n  - _self_\npool_size: ${seed}\ngeneral_layers: [0, 1]\n",
)
_PIECES = (
    *(
        "defaults:\n  - [}\n",
        "seed: !!python/object/apply:os.system ['true']\n",
        "seed: &a [*a]\n",
        "a: &a {b: *a}\n",
        "<<: 3\n",
    ),
    *(
        "<<: *x\n",
        "seed: 1\nseed: 2\n",
        "? [1]\n: 2\n",
        "? {a: 1}\n: 2\n",
        "---\na: 1\n---\nb: 2\n",
        "%YAML 9.9\n---\n",
        "\t- a\n",
    ),
    *(
        "pool_size: ${pool_size}\n",
        "seed: ${seed}\n",
        "lr: ${protocol.lr}\n",
        "x: 2001-99-99\n",
        "x: 0o9\n",
        "x: 1:99:99\n",
    ),
    *(
        "x: " + "9" * 5000 + "\n",
        "x: " + "[" * 700 + "\n",
        "x: " + "{a: " * 500 + "\n",
        "x: !!binary ///=\n",
        "x: !!float x\n",
    ),
    *(
        "x: !!int ''\n",
        "x: !!timestamp x\n",
        "null: 1\n",
        "1: 2\n",
        "true: 3\n",
        "3.5: x\n",
        "a.b: 3\n",
        "'': 1\n",
        "x: ${oc.env:A}\n",
    ),
    *(
        "x: ${${x}}\n",
        "x: ${\n",
        "defaults: 3\n",
        "defaults:\n  - a: b: c\n",
        "defaults:\n  - 3\n",
        "defaults:\n  - optional x: y\n",
    ),
    *(
        "defaults:\n  - override /strategy: ${x}\n",
        "defaults:\n  - /hydra: x\n",
        "defaults:\n  - strategy: [mvp, ncm]\n",
    ),
    *(
        "# @package a.b\n",
        "# @package ${x}\n",
        "# @package\n",
        "hydra:\n  run: {dir: x}\n",
        "hydra: 3\n",
        "_target_: os.system\n",
    ),
)


@st.composite
def _user_files(draw: st.DrawFn) -> tuple[str, bytes]:
    place = draw(st.sampled_from(("strategy", "experiment", "protocol", "scenario", "backbone", "dataset")))
    if draw(st.booleans()):
        content = draw(hostile_bytes([text.encode() for text in _TEXTS]))
    else:
        pieces = draw(st.lists(st.sampled_from((*_TEXTS, *_PIECES)), min_size=1, max_size=3))
        content = "".join(pieces).encode()
    return place, content


@contextmanager
def opened_files(folder: Path) -> Iterator[Callable[[Any], None]]:
    """A config file of the user's own, chosen on the command line."""

    def attempt(file: tuple[str, bytes]) -> bool:
        group, content = file
        path = folder / group / "own.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        try:
            with open_composer(config_dir=str(folder)) as composer:
                request = read_request(composer, [f"{group}=own"], multirun=False)
                check_lines(request.problems, ())
                for config in request.configs:
                    reads_back(config)
                return bool(request.problems)
        finally:
            path.unlink()

    yield attempt


# The configuration of a saved run

_RESUME_WORDS = st.lists(_word(), max_size=2)


@st.composite
def _saved(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    texts = [yaml.safe_dump(tree, allow_unicode=True).encode() for tree in trees()]
    kind = draw(st.integers(0, 3))
    if kind == 0:
        content = draw(hostile_bytes(texts))
    elif kind == 1:
        content = "".join(draw(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=3))).encode()
        content = draw(st.sampled_from([b"", *texts])) + content
    elif kind == 2:
        content = json.dumps(draw(spoilt_trees(trees()))).encode()
    else:
        content = draw(st.sampled_from(texts))
    return content, draw(_RESUME_WORDS)


@contextmanager
def opened_saved(folder: Path) -> Iterator[Callable[[Any], None]]:
    """`load_run` and `resume=` read it."""

    def attempt(saved: tuple[bytes, list[str]]) -> None:
        content, words = saved
        (folder / "config.yaml").write_bytes(content)
        try:
            reads_back(saved_config(folder))
        finally:
            resumed_config(folder, words)

    yield attempt


def _found_words() -> tuple[Any, ...]:
    return (
        ([f"scenario.plan={'9' * 5000}"], False),  # ValueError of Python's numbers, from Hydra's grammar
        (["seed=range(0,1,0)"], False),  # ValueError of Python's range
        (["seed=range(0,1000000000)"], True),  # memory without an end
        (["seed=range(0,9000)", "num_workers=range(0,9000)"], True),
        (["strategy.route=glob(m*)"], True),  # neither a problem nor anything to start
        (["protocol.updates_per_batch=a\x1db"], False),  # two lines
        (["\x14word"], False),
        (["scenario=\x94"], True),
    )


def _found_trees() -> tuple[Any, ...]:
    return (
        {**trees()[0], "num_workers": "1\n2"},  # two lines
        {**trees()[0], "experiment": 36},  # ValidationError
        {**trees()[0], "output": "a\x85b"},  # reads back as another text
        {**trees()[0], "backbone": "9" * 5000},  # an error of 5,000 characters
        {**trees()[0], "dataset": {"name": None}, "datset": 3},  # KeyError: what is close, of keys of no data set
    )


def _found_files() -> tuple[Any, ...]:
    return (
        ("experiment", b"n"),  # AttributeError: text in place of keys
        ("protocol", b"null: 1\nnull: 1\n"),  # IndexError: Hydra had nothing to say
        ("protocol", b"x: ${oc.env:A}\n"),  # "KeyError raised"
        ("strategy", b"seed: &a [*a]\n"),  # an error of 85,000 characters
    )


def _found_saved() -> tuple[Any, ...]:
    sound = yaml.safe_dump(trees()[0]).encode()
    return (
        (sound + b"x: !!int ''\n", []),  # IndexError of the reader of YAML
        (json.dumps({**trees()[0], "dataset": {"name": None, "roof": 1}}).encode(), []),
        (sound, ["strategy.form=a\nb"]),
    )


TARGETS = (
    Target("words of the command line", _COMMAND_LINES, opened_words, lambda line: (), 160, _found_words),
    Target(
        "composed configurations",
        st.deferred(lambda: spoilt_trees(trees())),
        opened_trees,
        lambda tree: (),
        130,
        _found_trees,
    ),
    Target("YAML files of a user", _user_files(), opened_files, lambda file: (), 10, _found_files),
    Target("configurations of saved runs", _saved(), opened_saved, lambda saved: (), 60, _found_saved),
)
