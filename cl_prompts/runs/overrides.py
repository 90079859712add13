"""The words of the command line: parsed by Hydra's own grammar, refused in our words, split into jobs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

from cl_prompts.runs.schema import GROUPS

CHOICE_GROUPS = (*GROUPS, "experiment")
"""Groups that a word `group=choice` selects from."""

TEXT_KEYS = (
    "output",
    "name",
    "dataset.root",
    "dataset.file_list",
    "backbone.checkpoint",
    "dataset.train_images",
    "dataset.test_images",
    "dataset.train_annotations",
    "dataset.test_annotations",
    "dataset.train_list",
    "dataset.test_list",
    "dataset.cache_folder",
    "feature_cache_folder",
    "scenario.plan",
    "strategy.warm_start",
    "resume",
)
"""Keys of free text, whose value is what was typed, whatever Hydra's grammar would make of it."""

_HOME = re.compile(r"^~(?=/|$)")
_PIECES = re.compile(r"""(?:'[^']*'|"[^"]*"|\$\{[^}]*\}|\\.|[^,])+""")
"""The values between the commas of a sweep; a comma within quotes, an interpolation or after a backslash is text."""
FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list|int|float|str|bool|json_str)\(")
"""How a value starts that is a function of Hydra's grammar."""
_UNREADABLE = (HydraException, ValueError, RecursionError)
"""What Hydra's grammar raises: its own errors, and those of numbers of thousands of digits and of deep nesting."""
MOST_RUNS = 10_000
"""Runs that a sweep may ask for: a slip of the hand in a range asks for more than a machine can hold."""
_TOO_MANY = f"asks for more than {MOST_RUNS:,} runs, which are checked before the first begins; sweep over parts of it"
_PLACE_KEYS = re.compile(r"hydra\.(run(\..+)?|output_subdir|job\.chdir)")
"""Settings of Hydra that would move a run's files away from its folder."""


@dataclass
class Words:
    """The command line's words, sorted by what they set.

    Attributes:
        choices: words `group=choice`, by group; the last one counts.
        values: words `key=value`, by dotted key; the last one counts.
        hydra: words for Hydra itself, such as `hydra/launcher=joblib`.
        problems: one line for each word that cannot be read.
        unread: keys and groups whose words cannot be read: what stands there is not what the user meant.
    """

    choices: dict[str, Override] = field(default_factory=dict)
    values: dict[str, Override] = field(default_factory=dict)
    hydra: list[Override] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)


def read_words(words: Iterable[str], loader: ConfigLoader) -> Words:
    """Parse and sort the words; a leading `+` or `++` means the same as none."""
    result = Words()
    parser = OverridesParser.create(config_loader=loader)
    for typed in words:
        word = _without_spaces(typed)
        try:
            override = parser.parse_overrides([_for_grammar(word)])[0]
        except _UNREADABLE:
            result.problems.append(_unreadable(word))
            result.unread.add(_key(word))
            continue
        problem = _refusal(word, override)
        sweep_problem = _sweep_fault(word, override)
        if problem or sweep_problem:
            result.problems.append(problem or sweep_problem or "")
            if sweep_problem:
                result.unread.add(_key(word))
        elif override.is_hydra_override():
            result.hydra.append(override)
        else:
            target = result.choices if override.key_or_group in CHOICE_GROUPS else result.values
            target.pop(override.key_or_group, None)
            target[override.key_or_group] = override
    return result


def sweep_problems(words: Words) -> list[str]:
    """One line for each word with several values, for a command line that starts one run."""
    choices = [f"{word}: several choices need -m, one run for each" for word in _swept(words.choices)]
    values = [_several_values(word) for word in _swept(words.values)]
    return [*choices, *values]


def size_problems(words: Words, sweeper_parameters: dict[str, str], loader: ConfigLoader) -> list[str]:
    """One line where all combinations together are more runs than are started."""
    defaults = read_words([f"{key}={value}" for key, value in sweeper_parameters.items()], loader)
    merged = {**defaults.choices, **defaults.values} | {**words.choices, **words.values}
    if _runs(merged.values()) <= MOST_RUNS:
        return []
    return [f"{', '.join(key for key, word in merged.items() if word.is_sweep_override())}: {_TOO_MANY}"]


def split_jobs(words: Words, sweeper_parameters: dict[str, str], loader: ConfigLoader) -> list[Words]:
    """Every combination of the swept values, in the order Hydra's basic sweeper starts them; one job without a sweep.

    An interval, which only other sweepers know, is represented by its two ends.
    """
    defaults = read_words([f"{key}={value}" for key, value in sweeper_parameters.items()], loader)
    merged = {**defaults.choices, **defaults.values} | {**words.choices, **words.values}
    if not any(override.is_sweep_override() for override in merged.values()):
        return [Words(choices=words.choices, values=words.values)]
    fixed = [
        _ends(override) if isinstance(override.value(), IntervalSweep) else override for override in merged.values()
    ]
    if _runs(fixed) > MOST_RUNS:
        return []
    combinations = BasicSweeper.split_arguments(fixed, max_batch_size=None)[0]
    return [_job(tuple(combination)) for combination in combinations]


def _runs(overrides: Iterable[Override]) -> int:
    """Runs of a sweep over all of these words."""
    return math.prod(_values(override) for override in overrides if override.is_sweep_override())


def _values(override: Override) -> int:
    """Values of a word that sweeps, no more than needed to know that they are too many."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return 2
    if isinstance(value, RangeSweep):
        return sum(1 for _ in itertools.islice(value.range(), MOST_RUNS + 1))
    return sum(1 for _ in override.sweep_iterator())


def _sweep_fault(word: str, override: Override) -> str | None:
    """Why nothing can be started for a word that sweeps; None of all others."""
    if not override.is_sweep_override() or override.is_hydra_override():
        return None
    try:
        count = _values(override)
    except _UNREADABLE:
        return f"{word}: cannot be read; a range is range(first, end) or range(first, end, step), its step not 0"
    if count == 0:
        return f"{word}: stands for no value at all; write the values themselves, key=a,b"
    return f"{word}: {_TOO_MANY}" if count > MOST_RUNS else None


def _swept(words: dict[str, Override]) -> list[str]:
    return [f"{key}={word.get_value_string()}" for key, word in words.items() if word.is_sweep_override()]


def _job(combination: Sequence[str]) -> Words:
    job = Words()
    for word in combination:
        override = _parsed(word)
        target = job.choices if override.key_or_group in CHOICE_GROUPS else job.values
        target[override.key_or_group] = override
    return job


@lru_cache(maxsize=4096)
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_overrides([word])[0]


def _without_spaces(word: str) -> str:
    """The word without spaces around its first equals sign and at its ends."""
    key, equals, value = word.partition("=")
    return f"{key.strip()}{equals}{value.strip()}"


def _key(word: str) -> str:
    """Key or group that a word sets, without signs and package."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0]


def _for_grammar(word: str) -> str:
    """The word as Hydra's grammar takes it: free text in quotes where needed, no recipe as `none`."""
    key, equals, value = word.partition("=")
    value = _HOME.sub(lambda found: str(Path.home()), value)
    pieces = _PIECES.findall(value)
    if FUNCTION.match(value) or ",".join(pieces) != value:
        return f"{key}{equals}{value}"
    if _key(word) in TEXT_KEYS:
        pieces = [_as_text(piece.strip()) for piece in pieces]
    elif _key(word) == "experiment":
        # Hydra itself knows no null choice on the command line; the file none.yaml stands for it.
        pieces = ["none" if piece.strip().lower() in ("null", "none") else piece for piece in pieces]
    return f"{key}{equals}{','.join(pieces)}"


def _as_text(typed: str) -> str:
    """One value of a free text key, quoted unless the grammar reads it as text anyway."""
    try:
        read = _parsed(f"key={typed}")
    except _UNREADABLE:
        read = None
    if read is not None and not read.is_sweep_override() and isinstance(read.value(), (str, type(None))):
        return typed
    return QuotedString(text=typed, quote=Quote.single).with_quotes()


def _several_values(word: str) -> str:
    key, _, value = word.partition("=")
    if key in TEXT_KEYS:
        typed = value.replace("'", "")
        one = f"text with a comma is written in two pairs of quotes: '{key}=\"{typed}\"'"
        return f"{key}={typed}: several values need -m, one run for each; {one}"
    return f"{word}: several values need -m, one run for each; a list is written {key}=[{value}]"


def _ends(override: Override) -> Override:
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    return _parsed(f"{override.key_or_group}={interval.start},{interval.end}")


def _unreadable(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word}: write key=value, for example strategy=mvp; options such as -m start with a dash"
    if not value:
        return f"{word}: the value is missing; null is written {key}=null"
    return f"{word}: cannot be read; put a value with special characters in two pairs of quotes: '{key}=\"{value}\"'"


def _refusal(word: str, override: Override) -> str | None:
    key = override.key_or_group
    if _PLACE_KEYS.fullmatch(key):
        return f"{word}: would move files out of the run's folder; use output= and name="
    if override.is_delete() and not override.is_hydra_override():
        return f"{word}: nothing can be taken out of a configuration; choose another value, or null where it is allowed"
    if override.package is not None:
        return f"{word}: a package (@) cannot be given; write {key}=..."
    if override.is_sweep_override() and override.is_hydra_override():
        return f"{word}: Hydra's own settings cannot be swept; give one value"
    return None
