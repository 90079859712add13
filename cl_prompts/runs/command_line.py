"""The front door: `python run.py` and `cl-prompts`. Answers help and refuses mistakes before anything heavy loads."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser

from cl_prompts import __version__
from cl_prompts.errors import UserError
from cl_prompts.runs.commands import COMMANDS, Command, find_command
from cl_prompts.runs.compose import Composer, open_composer
from cl_prompts.runs.failures import FAILURE, INTERRUPTED, SUCCESS, WRONG_CONFIG, print_error, report_failure
from cl_prompts.runs.help import command_help_text, help_text, program_name
from cl_prompts.runs.jobs import run_job
from cl_prompts.runs.overrides import read_words, sweep_problems
from cl_prompts.runs.request import Request, read_request, resolve_choices


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done; 1: a run failed; 2: the configuration is wrong and nothing was started; 130: interrupted.

    Args:
        arguments: words after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = SUCCESS
    try:
        _refuse_undecoded(words)
        code = _answer(_parse(words))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has enough; Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except UserError as error:
        print_error(str(error))
        return WRONG_CONFIG
    except Exception as error:
        return report_failure(error, debug="debug=true" in words)


def _refuse_undecoded(words: Sequence[str]) -> None:
    """Words that are no text for Python, since it was told of an encoding that lacks their letters, cannot be used.

    Raises:
        UserError: names the word.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        for word in words:
            if any("\ud800" <= letter <= "\udfff" for letter in word):  # stands for a byte that could not be read
                raise UserError(
                    f"{word}: the locale of this system says that names are {encoding}, in which this is no text; set "
                    "the variable PYTHONUTF8=1, or LC_ALL to a locale of UTF-8"
                )


def _parse(words: list[str]) -> Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        print_error(f"{message}; settings are written key=value, options are in {program_name()} --help")
        raise SystemExit(WRONG_CONFIG)

    parser.error = refuse  # type: ignore[method-assign]
    _own_version(parser)
    return parser.parse_intermixed_args(words)


def _own_version(parser: ArgumentParser) -> None:
    for action in parser._actions:
        if "--version" in action.option_strings:
            action.version = f"cl-prompts {__version__} (Hydra {hydra.__version__})"  # type: ignore[attr-defined]


def _answer(options: Namespace) -> int:
    _refuse_unsupported(options)
    command = find_command(options.overrides)
    if command is not None:
        return _answer_command(command, options)
    with open_composer(options.config_dir, options.config_name, options.config_path) as composer:
        if options.help:
            return _show_help(composer, options.overrides)
        if options.hydra_help or options.info or options.cfg or options.shell_completion:
            return _show_hydra(composer, options)
        request = read_request(composer, options.overrides, multirun=options.multirun)
        if request.problems:
            return _refuse(request.problems)
        if all(config.mode == "config" for config in request.configs):
            print("---\n".join(config.to_yaml() for config in request.configs), end="")
            return SUCCESS
        return _start(composer, request)


def _answer_command(command: Command, options: Namespace) -> int:
    if options.help:
        print(command_help_text(command.usage, command.description, command.settings))
        return SUCCESS
    for name in _OF_HYDRA:
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')}: has no effect on {command.usage}; leave it out")
    return command.answer(options.overrides)


_OF_HYDRA = ("multirun", "cfg", "info", "hydra_help", "shell_completion", "config_dir", "config_name", "config_path")
"""Options about a configuration that is composed."""


def _refuse_unsupported(options: Namespace) -> None:
    if options.experimental_rerun is not None:
        raise UserError("--experimental-rerun: not supported; start again from the config.yaml of a run's folder")
    shown = [options.run, options.multirun, options.cfg, options.info, options.shell_completion]
    if sum(bool(option) for option in shown) > 1:
        raise UserError("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    if options.resolve and not options.cfg:
        raise UserError("--resolve: works together with --cfg only")


def _refuse(problems: Sequence[str]) -> int:
    for problem in problems:
        print_error(problem)
    print(f"nothing was started; every key and choice: {program_name()} --help", file=sys.stderr)
    return WRONG_CONFIG


def _show_help(composer: Composer, words: list[str]) -> int:
    read = read_words(words, composer.loader)
    single = {group: override for group, override in read.choices.items() if not override.is_sweep_override()}
    choices, _, wrong_choices = resolve_choices(composer, single)
    problems = [*read.problems, *sweep_problems(read), *wrong_choices]
    if problems:
        return _refuse(problems)
    print(help_text(composer, choices, {command.usage: command.description for command in COMMANDS}))
    return SUCCESS


def _show_hydra(composer: Composer, options: Namespace) -> int:
    """What Hydra shows about itself and the composition, of a command line whose words are sound."""
    app, name = composer.hydra_app, composer.config_name
    if options.hydra_help:
        app.hydra_help(config_name=name, args_parser=get_args_parser(), args=options)
        return SUCCESS
    if options.shell_completion:
        app.shell_completion(config_name=name, overrides=options.overrides)
        return SUCCESS
    request = read_request(composer, options.overrides, multirun=False)
    if request.hydra_words is None:
        return _refuse(request.problems)
    words = list(request.hydra_words)
    if options.info:
        app.show_info(options.info, config_name=name, overrides=words)
    else:
        app.show_cfg(
            config_name=name, overrides=words, cfg_type=options.cfg, package=options.package, resolve=options.resolve
        )
    # What was composed is shown in any case: seeing it helps to understand the problems.
    return _refuse(request.problems) if request.problems else SUCCESS


def _start(composer: Composer, request: Request) -> int:
    start = composer.hydra_app.multirun if request.multirun else composer.hydra_app.run
    mode = "MULTIRUN" if request.multirun else "RUN"
    returned = start(
        config_name=composer.config_name,
        task_function=run_job,
        overrides=[*(request.hydra_words or ()), f"hydra.mode={mode}"],
    )
    return max(_exit_codes(returned), default=SUCCESS)


def _exit_codes(returned: Any) -> list[int]:
    """Exit codes of all jobs; a sweeper returns lists of lists of them, or nothing that can be read."""
    if isinstance(returned, (list, tuple)):
        return [code for one in returned for code in _exit_codes(one)]
    code = getattr(returned, "return_value", SUCCESS)
    return [code if isinstance(code, int) else FAILURE]
