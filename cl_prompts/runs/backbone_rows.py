"""The backbone of a run in the words that open its header, and in its manifest. Light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_prompts.backbones.settings import BackboneSettings, normalisation
from scenarios.datasets import ImageDataset

_SHOWN_DIGITS = 12


def input_record(settings: BackboneSettings, train: ImageDataset) -> dict[str, Any]:
    """The normalisation in force: which rule, and the constants it gives for this data set."""
    mean, std = normalisation(settings, train.normalisation)
    return {"rule": settings.normalisation, "mean": list(mean), "std": list(std)}


def backbone_rows(settings: BackboneSettings, identity: Mapping[str, Any], train: ImageDataset) -> dict[str, str]:
    """The first rows of a header: whose weights, which bytes, which input."""
    name = identity["timm_name"] or identity["name"]
    sha256 = identity["sha256"]
    constants = input_record(settings, train)
    rows = {"weights": f"{name}, {identity['checkpoint']}"}
    if sha256 is not None:
        rows["weights"] = f"{name}, sha256 {sha256[:_SHOWN_DIGITS]}"
        rows["file"] = f"{identity['checkpoint']}, {identity['trust']}"
    rows["input"] = (
        f"{identity['img_size']} px, mean {_channels(constants['mean'])}, std {_channels(constants['std'])} "
        f"({settings.normalisation})"
    )
    return rows


def _channels(values: Sequence[float]) -> str:
    """Three numbers, or one where they are equal."""
    return " ".join(f"{value:.3g}" for value in (values[:1] if len(set(values)) == 1 else values))
