"""Command lines that name a saved run: they compose no configuration, so Hydra is not asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cl_prompts.runs.continuing import WORD, names_a_run, resume_words, resumed_config
from cl_prompts.runs.failures import WRONG_CONFIG, print_error, report_failure
from cl_prompts.runs.jobs import heavy, perform
from cl_prompts.runs.predict_command import PredictSettings, read_predict_words
from cl_prompts.runs.report_command import ReportSettings, read_report_words
from scenarios.settings import Settings


@dataclass(frozen=True)
class Command:
    """One kind of such command lines.

    Attributes:
        usage: its words.
        description: what it does.
        claims: whether words are of this kind.
        answer: does it and returns the exit code.
        settings: its keys; None: those of a run.
    """

    usage: str
    description: str
    claims: Callable[[Sequence[str]], bool]
    answer: Callable[[Sequence[str]], int]
    settings: type[Settings] | None = None


def find_command(words: Sequence[str]) -> Command | None:
    """The command that words ask for; None where they describe a run."""
    return next((command for command in COMMANDS if command.claims(words)), None)


def _go_on(words: Sequence[str]) -> int:
    found = resume_words(words)
    assert found is not None  # as claimed
    return perform(resumed_config(*found))


def _predict(words: Sequence[str]) -> int:
    return _checked(read_predict_words(words), heavy("cl_prompts.runs.predict_images", "predict_images"))


def _report(words: Sequence[str]) -> int:
    def write(settings: ReportSettings) -> int:
        from cl_prompts.runs.report_files import write_report

        return write_report(settings)

    return _checked(read_report_words(words), write)


class _HasDebug(Protocol):
    @property
    def debug(self) -> bool: ...


SettingsT = TypeVar("SettingsT", bound=_HasDebug)


def _checked(read: tuple[SettingsT | None, list[str]], call: Callable[[SettingsT], int]) -> int:
    """Do it with settings that were read without a problem; errors end as lines and an exit code."""
    settings, problems = read
    if settings is None:
        for problem in problems:
            print_error(problem)
        return WRONG_CONFIG
    try:
        return call(settings)
    except Exception as error:
        return report_failure(error, debug=settings.debug)


COMMANDS = (
    Command(
        usage="mode=predict run=DIR images=DIR",
        description="write a table of what a saved run says about images",
        claims=lambda words: any(word.lstrip("+") == "mode=predict" for word in words),
        answer=_predict,
        settings=PredictSettings,
    ),
    Command(
        usage="mode=report runs=DIR",
        description="tables and one page of all runs in a folder, with mean and spread over seeds",
        claims=lambda words: any(word.lstrip("+") == "mode=report" for word in words),
        answer=_report,
        settings=ReportSettings,
    ),
    Command(
        usage=f"{WORD}DIR",
        description="go on with a run that was stopped; further words may change keys no number depends on",
        claims=lambda words: any(names_a_run(word) for word in words),
        answer=_go_on,
    ),
)
"""All of them; the first one that claims the words answers."""
