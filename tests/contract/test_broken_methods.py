"""The contract finds what is wrong: each broken learner fails the check that is about its fault, in one line."""

from __future__ import annotations

import pytest
from broken_methods import ALSO_BROKEN, BROKEN, strategy_of

from cl_prompts.contract import check_strategy
from cl_prompts.strategies.ncm import NCMMethod


def found(method, check_id: str) -> str:
    """What the check with this id says of a method; nothing if its promise is kept."""
    settings = {} if issubclass(method, NCMMethod) else {"head": "linear"}
    checks = {check.id: check for check in check_strategy(strategy_of(method), settings)}
    try:
        checks[check_id].run()
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "method, check_id",
    [pytest.param(*case, id="-".join((case[0].__name__, case[1]))) for case in [*BROKEN.items(), *ALSO_BROKEN.items()]],
)
def test_a_broken_method_fails_the_check_about_its_fault(method, check_id):
    # That the same check passes for the learner it is made of is tested with all strategies.
    line = found(method, check_id)
    assert line.startswith(f"{method.__name__}, {check_id}: ")
    assert "\n" not in line


def test_an_error_of_the_method_itself_is_a_broken_promise(monkeypatch):
    method = next(iter(BROKEN))
    monkeypatch.setattr(method, "forward", lambda *arguments: 1 / 0)
    assert found(method, "prediction_changes_nothing").endswith(
        "prediction_changes_nothing: ZeroDivisionError: division by zero"
    )


def test_a_class_is_checked_without_what_its_file_promises():
    ids = {check.id for check in check_strategy(strategy_of(NCMMethod))}
    assert "prediction_changes_nothing" in ids
    assert not ids & {"the_file_names_its_source", "the_config_file_matches_the_settings"}
