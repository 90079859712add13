"""The check of a composed configuration: every wrong key, value and combination at once, one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cl_prompts.runs.fields import close_match, field_texts, value_text
from cl_prompts.runs.keys import unknown_key_text
from cl_prompts.runs.problems import Problem, Rule
from cl_prompts.runs.rules import RULES
from cl_prompts.runs.schema import (
    GROUPS,
    PublishedValue,
    PublishedValues,
    RunConfig,
    RunSettings,
    group_schema,
    known_names,
    schema_key,
    schema_name,
)
from scenarios.settings import Settings

_ABOUT_A_KEY = re.compile(r"(\w+)=.+?: ")
_OF_RECIPES = ("experiment", "published")
"""Keys that are recorded and change nothing."""
_PUBLISHED = TypeAdapter(PublishedValues)
_NOT_GIVEN = "???"
"""How a YAML file says that a value must be given."""


def check_config(
    raw: Mapping[str, Any],
    origins: Mapping[str, str] | None = None,
    unsure: frozenset[str] = frozenset(),
    rules: Sequence[Rule] = RULES,
) -> tuple[RunConfig | None, list[Problem]]:
    """Check a composed configuration.

    Args:
        raw: plain data: top-level keys, one dictionary for each group, and perhaps `experiment`.
        origins: dotted key -> where its value comes from, added to the line about it; None adds nothing.
        unsure: dotted keys and groups that stand for words that could not be read, or were guessed. Nothing is said
            about such a key, nor about a combination that it or a key of such a group is part of.
        rules: combinations to look for; none of a run that is only to be loaded, whose data may be elsewhere.

    Returns:
        The typed configuration and no problem, or None and all problems.
    """
    return _Check(raw, origins or {}, unsure, rules).result()


class _Check:
    """One pass over one configuration; collects problems and the records that stand without the wrong keys."""

    def __init__(
        self, raw: Mapping[str, Any], origins: Mapping[str, str], unsure: frozenset[str], rules: Sequence[Rule]
    ) -> None:
        self.rules = rules
        self.raw = raw
        self.origins = origins
        self.unsure = unsure
        self.problems: list[Problem] = []
        self.names: dict[str, str] = {}
        self.records: dict[str, Settings] = {}

    def result(self) -> tuple[RunConfig | None, list[Problem]]:
        schemas = {group: schema for group in GROUPS if (schema := self._schema(group)) is not None}
        top = {key: value for key, value in self.raw.items() if key not in (*GROUPS, *_OF_RECIPES)}
        run_record = self._record("", RunSettings, top)
        for group, schema in schemas.items():
            self.records[group] = self._record(group, schema, self.raw[group])
        recipe = {"experiment": self.raw.get("experiment"), "published": self._published()}
        fields = dict(run_record) | self.records | recipe
        if not isinstance(recipe["experiment"], str | None):
            text = value_text(recipe["experiment"])
            self._add("experiment", f"experiment={text}: must be the name of a recipe, or null")
        draft = RunConfig.model_construct(**fields)
        self._combinations(draft, available={*fields})
        if self.problems or self.unsure:
            return None, self.problems
        return RunConfig(**fields), []

    def _published(self) -> tuple[PublishedValue, ...]:
        """What the recipe says that papers report; nothing where some of it is wrong."""
        try:
            return _PUBLISHED.validate_python(self.raw.get("published") or ())
        except ValidationError as error:
            details = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in details["loc"])
            self._add(
                "published",
                f"published.{place}: {details['msg'].lower()}; an entry has {', '.join(PublishedValue.model_fields)}",
            )
        return ()

    def _schema(self, group: str) -> type[Settings] | None:
        record = self.raw.get(group)
        if not isinstance(record, Mapping):
            self._add(group, f"{group}={value_text(record)}: choose a file of configs/{group}")
            return None
        key = schema_key(group)
        name = value_text(schema_name(group, record))
        self.names[group] = name
        known = known_names(group)
        if known and name not in known:
            close = close_match(name, known)
            self._add(
                f"{group}.{key}",
                f"{group}.{key}={name}: {f'did you mean {close}? ' if close else ''}choose one of {', '.join(known)}",
            )
            return None
        return group_schema(group, name)

    def _record(self, group: str, schema: type[Settings], values: Mapping[str, Any]) -> Settings:
        """The record of a group; if some of its keys are wrong, one without them that only the rules may read."""
        given = {str(key): value for key, value in values.items() if value != _NOT_GIVEN}
        try:
            return schema.model_validate(given)
        except ValidationError as error:
            wrong = self._add_errors(group, schema, given, error)
        right = {key: value for key, value in given.items() if key not in wrong}
        try:
            return schema.model_validate(right)
        except ValidationError:
            # Combinations of what is left: without the wrong keys they say nothing about what was meant.
            return schema.model_construct(**right)

    def _add_errors(
        self,
        group: str,
        schema: type[Settings],
        values: Mapping[str, Any],
        error: ValidationError,
    ) -> frozenset[str]:
        wrong: dict[str, str] = {}
        for details in error.errors(include_url=False):
            if details["loc"]:
                leaf = str(details["loc"][0])
                wrong.setdefault(leaf, self._line(group, leaf, schema, values, details))
            elif not self._is_unsure(group):
                wrong |= self._combination_lines(group, schema, details)
        for leaf, line in wrong.items():
            self._add(".".join(part for part in (group, leaf) if part), line)
        return frozenset(wrong)

    def _line(
        self, group: str, leaf: str, schema: type[Settings], values: Mapping[str, Any], details: ErrorDetails
    ) -> str:
        key = ".".join(part for part in (group, leaf) if part)
        if leaf in values and details["type"] == "extra_forbidden":
            return f"{key}={value_text(values[leaf])}: {unknown_key_text(key, self.names)}"
        return key_line(key, leaf, schema, values, details)

    def _combination_lines(self, group: str, schema: type[Settings], details: ErrorDetails) -> dict[str, str]:
        """Lines about values of one group that exclude each other, by key; an empty key where no single one is named.

        A line `key=value: advice` of a settings class is about that key.
        """
        lines: dict[str, str] = {}
        for reason in _reason(details).splitlines():
            named = _ABOUT_A_KEY.match(reason)
            if named and named.group(1) in schema.model_fields:
                lines.setdefault(named.group(1), f"{group}.{reason}")
            else:
                lines.setdefault("", f"{group}={self.names.get(group, '')}: {reason}")
        return lines

    def _combinations(self, draft: RunConfig, available: set[str]) -> None:
        if draft.mode == "check-data":
            return  # it looks at the files of a data set, whatever stream or method they would be used with
        wrong = {problem.key for problem in self.problems} | self.unsure
        found = [
            problem
            for rule in self.rules
            if self._applies(rule, draft, available, wrong)
            for problem in _found(rule, draft)
        ]
        self.problems += [problem for problem in found if problem.key not in wrong]

    def _applies(self, rule: Rule, draft: RunConfig, available: set[str], wrong: set[str]) -> bool:
        for key in rule.reads:
            group, _, leaf = key.partition(".")
            if group not in available or key in wrong or group in wrong:
                return False
            if key == group and group in GROUPS and self._is_unsure(group):
                return False
            if leaf and not hasattr(getattr(draft, group), leaf):
                return False
        return True

    def _is_unsure(self, group: str) -> bool:
        """The group was guessed, or one of its keys could not be read."""
        return any(key.partition(".")[0] == group for key in self.unsure)

    def _add(self, key: str, line: str) -> None:
        if key in self.unsure and key not in GROUPS:
            return
        origin = self.origins.get(key, "")
        self.problems.append(Problem(key, line + origin))


def _found(rule: Rule, draft: RunConfig) -> Iterator[Problem]:
    """What a rule finds; a path that no file system holds is a wrong value, too."""
    try:
        yield from rule.check(draft)
    except OSError as error:
        yield Problem(rule.reads[0], f"{rule.reads[0]}: {error.filename}: {error.strerror}; give another path")


def key_line(key: str, leaf: str, schema: type[Settings], values: Mapping[str, Any], details: ErrorDetails) -> str:
    """The line about one wrong value: the key as it is typed, the value, what is allowed.

    Args:
        key: dotted name.
        leaf: its name in the schema.
        schema: which has this key.
        values: as given.
        details: what pydantic says.
    """
    text = field_texts(schema)[leaf]
    if leaf not in values:
        return f"{key}: must be given, {text.allowed}"
    start = f"{key}={value_text(values[leaf])}: "
    if details["type"] == "value_error":
        return start + _reason(details)
    close = None
    if details["type"] == "literal_error" and isinstance(values[leaf], str):
        close = close_match(values[leaf], text.choices)
    hint = f"did you mean {close}? " if close else ""
    default = f" (default {text.default})" if text.default else ""
    allowed = text.allowed
    if details["type"] == "finite_number":
        allowed = allowed.replace("a number", "a finite number", 1)
    return f"{start}{hint}must be {allowed}{default}"


def _reason(details: ErrorDetails) -> str:
    cause = details.get("ctx", {}).get("error")
    return str(cause) if cause is not None else details["msg"]
