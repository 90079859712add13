"""Blocks: runs that may be compared, in rows of one method and settings each; everything else stays apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cl_prompts.reports.formulas import MetricNames, metric_names
from cl_prompts.reports.identity import DecidingKeys, Method, block_identity, method_of, value_text
from cl_prompts.reports.notes import block_notes
from cl_prompts.reports.rows import Row, choose_reference, compared, make_rows
from cl_prompts.reports.saved_run import LeftOut, SavedRun


@dataclass(frozen=True)
class Block:
    """Runs with everything equal but method and seed.

    Attributes:
        number: from 1.
        family: scenario, data set and backbone by their names.
        identity: what is equal, by dotted key; keys that touch none of its methods are not among them.
        differing: of those, what tells it from the other blocks of its family.
        names: its metrics.
        metrics: those of them that some row has, in order.
        rows: best first.
        reference: number of the row that the others are compared with; None with a single row.
        reference_reason: why that one.
        notes: sentences a reader of its numbers must know.
    """

    number: int
    family: str
    identity: Mapping[str, Any]
    differing: Mapping[str, Any]
    names: MetricNames
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    reference: int | None
    reference_reason: str
    notes: tuple[str, ...]

    @property
    def condition(self) -> str:
        """`key=value` of what tells it from the other blocks of its family."""
        return " ".join(f"{key}={value_text(value)}" for key, value in self.differing.items())

    @property
    def title(self) -> str:
        """Family and condition."""
        return f"{self.family}: {self.condition}" if self.differing else self.family

    @property
    def reference_row(self) -> Row | None:
        """The row that the others are compared with."""
        return None if self.reference is None else self.rows[self.reference - 1]


@dataclass
class _Draft:
    """A block in the making: identity, and runs by the key of their method."""

    family: str
    identity: dict[str, Any]
    runs: dict[str, list[SavedRun]] = field(default_factory=lambda: defaultdict(list))


def make_blocks(
    runs: Sequence[SavedRun], deciding_keys: DecidingKeys, reference: str | None = None
) -> tuple[list[Block], list[LeftOut]]:
    """Group finished runs; also says which of them repeat another one and are not counted.

    Args:
        runs: in any order.
        deciding_keys: see `identity.DecidingKeys`.
        reference: a row, as `strategy` or `strategy key=value ...`; None: the linear probe, else the best row.
    """
    methods = {run.name: method_of(run) for run in runs}
    drafts = _drafts(runs, methods, deciding_keys)
    left_out: dict[str, LeftOut] = {}
    blocks = []
    for number, (draft, differing) in enumerate(zip(drafts, _differing(drafts), strict=True), start=1):
        groups = []
        for found in draft.runs.values():
            kept, repeated = _once(found)
            groups.append(kept)
            left_out |= {one.name: one for one in repeated}
        blocks.append(_block(number, draft, differing, groups, methods, reference))
    return blocks, list(left_out.values())


def _drafts(runs: Sequence[SavedRun], methods: Mapping[str, Method], deciding_keys: DecidingKeys) -> list[_Draft]:
    drafts: dict[str, _Draft] = {}
    untouched: list[tuple[SavedRun, dict[str, Any]]] = []
    for run in runs:
        method = methods[run.name]
        whole = block_identity(run, deciding_keys)
        identity = {key: value for key, value in whole.items() if key not in method.untouched}
        if method.untouched:
            untouched.append((run, identity))
        else:
            drafts.setdefault(_text(identity), _Draft(_family(run), identity)).runs[method.key].append(run)
    touched = list(drafts.values())
    for run, identity in untouched:
        fitting = [draft for draft in touched if all(draft.identity.get(key) == identity[key] for key in identity)]
        for draft in fitting or [drafts.setdefault(_text(identity), _Draft(_family(run), identity))]:
            draft.runs[methods[run.name].key].append(run)
    return sorted(drafts.values(), key=lambda draft: (draft.family, _text(draft.identity)))


def _family(run: SavedRun) -> str:
    return ", ".join(str(run.config[group]["name"]) for group in ("scenario", "dataset", "backbone"))


def _text(identity: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value_text(identity[key])}" for key in sorted(identity))


def _once(runs: Sequence[SavedRun]) -> tuple[list[SavedRun], list[LeftOut]]:
    """Each stream and seed once, the newest run of it, by seed; and the others."""
    newest: dict[tuple[str, int], SavedRun] = {}
    older: list[SavedRun] = []
    for run in sorted(runs, key=lambda run: (run.started, run.name)):
        if run.stream in newest:
            older.append(newest[run.stream])
        newest[run.stream] = run
    left_out = [
        LeftOut(old.name, "duplicate", _repeats(old, newest[old.stream]), f"{old.strategy}, seed {old.seed}")
        for old in older
    ]
    return sorted(newest.values(), key=lambda run: (run.seed, run.plan_hash)), left_out


def _repeats(old: SavedRun, new: SavedRun) -> str:
    same = all(old.metric(name) == new.metric(name) for name in {*old.metrics, *new.metrics})
    return f"same settings and seed as {new.name}, which counts; its metrics are {'equal' if same else 'others'}"


def _differing(drafts: Sequence[_Draft]) -> list[dict[str, Any]]:
    """For each draft, the keys in which those of its family differ, at its values; hashes only if nothing else does."""
    found = []
    for draft in drafts:
        family = [other.identity for other in drafts if other.family == draft.family]
        texts = {
            key: {value_text(identity.get(key)) for identity in family if key in identity} for key in draft.identity
        }
        differing = sorted(key for key, values in texts.items() if len(values) > 1)
        named = [key for key in differing if not key.endswith("sha256")] or differing
        found.append({key: _short(draft.identity[key]) for key in named})
    return found


def _short(value: Any) -> Any:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else value


def _block(
    number: int,
    draft: _Draft,
    differing: dict[str, Any],
    groups: Sequence[Sequence[SavedRun]],
    methods: Mapping[str, Method],
    wanted: str | None,
) -> Block:
    names = metric_names(groups[0][0].metrics)
    rows = make_rows(groups, [methods[runs[0].name] for runs in groups], names)
    reference, reason = choose_reference(rows, wanted)
    if reference is not None:
        rows = compared(rows, rows[reference - 1], names)
    return Block(
        number=number,
        family=draft.family,
        identity=draft.identity,
        differing=differing,
        names=names,
        metrics=_shown(rows, names),
        rows=tuple(rows),
        reference=reference,
        reference_reason=reason,
        notes=tuple(block_notes(rows)),
    )


def _shown(rows: Sequence[Row], names: MetricNames) -> tuple[str, ...]:
    """Metrics that some row has; not those on one kind of classes where the stream has no other kind."""
    shown = [name for name in names.meanings if any(name in row.metrics for row in rows)]
    kinds = [name for name in shown if name.endswith(("_disjoint", "_blurry"))]
    return tuple(name for name in shown if len(kinds) > 1 or name not in kinds)
