"""What must be equal before two runs may stand in one table, and what makes them one row of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cl_prompts.errors import UserError
from cl_prompts.reports.saved_run import SavedRun
from cl_prompts.strategies.declaration import Needs, StrategySettings, read_settings

DecidingKeys = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A configuration as its file has it -> every key that decides a number, dotted, those of later versions at their
defaults."""

NAMES = frozenset({"scenario.name", "protocol.name", "dataset.name"})
"""Words on the command line: the keys that they stand for are compared, not the words."""

SEEDS = frozenset({"scenario.seed"})

OF_GRADIENTS = frozenset(
    f"protocol.{key}"
    for key in (
        "train_mask",
        "updates_per_batch",
        "augmentation",
        "augment_per",
        "optimizer",
        "optimizer_scope",
        "lr",
        "lr_schedule",
        "weight_decay",
        "momentum",
        "clip_norm",
    )
)
"""Keys of the protocol that nothing reads where no gradient is taken: closed forms see images as evaluation does."""

OF_REPLAY = frozenset(f"protocol.{key}" for key in ("memory_size", "replay_batch", "reservoir"))
"""Keys of the protocol that nothing reads where no memory is used."""


@dataclass(frozen=True)
class Method:
    """The method of a run: its settings, what it declares, and how it may be named in few words.

    Attributes:
        name: the word after `strategy=`.
        settings: all of them; nulls filled in as the variant has them where the run's manifest says so.
        changed: those that are not the method's defaults.
        needs: what it declares; None of a method that is not installed here and left no record of it.
        deviations: where it leaves the protocol or its paper; None where nothing is known of it.
    """

    name: str
    settings: Mapping[str, Any]
    changed: Mapping[str, Any]
    needs: Needs | None
    deviations: tuple[str, ...] | None

    @property
    def key(self) -> str:
        """Equal for runs of one row."""
        return f"{self.name} {_canonical(self.settings)}"

    @property
    def shown(self) -> dict[str, Any]:
        """Settings that its row names: variant and head always, the rest where it is no default."""
        always = {key: self.settings[key] for key in ("variant", "head") if self.settings.get(key) is not None}
        return always | {key: value for key, value in self.changed.items() if key not in always}

    @property
    def untouched(self) -> frozenset[str]:
        """Keys of the protocol that have no effect on it."""
        if self.needs is None or self.needs.gradient:
            return frozenset()
        return OF_GRADIENTS | (OF_REPLAY if self.needs.replay == "none" else frozenset())


def method_of(run: SavedRun) -> Method:
    """The method of a run, as its folder records it and, of older runs, as its file declares it."""
    given = {key: value for key, value in run.config["strategy"].items() if key != "name"}
    known = _known_settings(run.strategy, given)
    typed = given if known is None else known.model_dump(mode="json")
    defaults = {} if known is None else _defaults(type(known))
    recorded = {key: value for key, value in _mapping(run.manifest.get("strategy")).items() if key in typed}
    settings = typed | {key: value for key, value in recorded.items() if typed[key] is None}
    return Method(
        name=run.strategy,
        settings=settings,
        changed={key: value for key, value in typed.items() if known is None or value != defaults.get(key)},
        needs=_needs(run, known),
        deviations=_deviations(run, known),
    )


def _known_settings(name: str, given: Mapping[str, Any]) -> StrategySettings | None:
    try:
        return read_settings(name).model_validate(dict(given))
    except (KeyError, ValueError, UserError):
        return None  # a method of another package or version: its folder has to tell


def _defaults(settings: type[StrategySettings]) -> dict[str, Any]:
    fields = {key: field for key, field in settings.model_fields.items() if not field.is_required()}
    plain = settings.model_construct(
        **{key: field.get_default(call_default_factory=True) for key, field in fields.items()}
    )
    return json.loads(plain.model_dump_json())


def _needs(run: SavedRun, known: StrategySettings | None) -> Needs | None:
    if known is not None:
        return known.declared_needs()
    try:
        return Needs.model_validate(_mapping(run.manifest.get("needs"))) if run.manifest.get("needs") else None
    except ValueError:
        return None


def _deviations(run: SavedRun, known: StrategySettings | None) -> tuple[str, ...] | None:
    recorded = run.manifest.get("deviations")
    if isinstance(recorded, list):
        return tuple(str(text) for text in recorded)
    return None if known is None else tuple(known.deviations())


def block_identity(run: SavedRun, deciding_keys: DecidingKeys) -> dict[str, Any]:
    """Everything that runs of one table have in common, by dotted key: stream, data, backbone, input, protocol.

    Seeds are left out. A saved stream is what its hash says, wherever it lies.
    """
    groups = ("scenario.", "dataset.", "protocol.")
    values = {key: value for key, value in deciding_keys(run.config).items() if key.startswith(groups)}
    found = {key: value for key, value in values.items() if key not in NAMES and key not in SEEDS}
    found["scenario.stream_seed"] = "the run's" if values.get("scenario.seed") is None else values["scenario.seed"]
    found["scenario.plan"] = None if run.config["scenario"].get("plan") is None else run.plan_hash[:12]
    hashes = run.manifest["hashes"]
    for part in ("train", "test"):
        found[f"dataset.{part}_sha256"] = hashes[part].get("sha256") or _canonical(hashes[part])
    return found | _backbone(hashes["backbone"], run.config["backbone"])


def _backbone(identity: Mapping[str, Any], configured: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by their hash, and how images enter; of random weights their architecture."""
    constants = identity.get("normalisation") or {
        "rule": configured.get("normalisation"),
        "mean": identity.get("mean"),
        "std": identity.get("std"),
    }
    weights = identity.get("sha256") or identity.get("checkpoint") or configured.get("checkpoint")
    sizes = {key: identity.get(key) for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    return {
        "backbone.weights": weights,
        "backbone.interpolation": identity.get("interpolation"),
        **{f"backbone.{key}": value for key, value in sizes.items()},
        **{f"backbone.input_{key}": constants.get(key) for key in ("mean", "std")},
    }


def value_text(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(value_text(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
