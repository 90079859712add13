"""What a run has trained as one safetensors file: prompts, head, statistics; what they belong to is metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save

from cl_prompts.runs.state_file import in_one_order
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.state import method_state

FORMAT = "cl_prompts model 1"


def exported(strategy: ContinualStrategy, content: Mapping[str, Any], name: str) -> bytes:
    """The content of `model.safetensors`: every tensor of the method but the backbone's, under its name there.

    The metadata are text: `format`, `strategy`, `samples_seen`, `backbone` (tag, else name) and `backbone_sha256`
    (empty of an untrained one), and as JSON `settings` of the method, `classes` (names by class id), `exposed` (class
    ids), `input` (mean, std, size, interpolation, crop).

    Args:
        strategy: at the end of its stream.
        content: a `SavedContent` as plain containers.
        name: the word after `strategy=`.
    """
    identity = strategy.model.backbone.identity
    metadata = {
        "format": FORMAT,
        "strategy": name,
        "settings": json.dumps(strategy.model.effective_settings()),
        "samples_seen": str(strategy.samples_seen),
        "backbone": str(identity["timm_name"] or identity["name"]),
        "backbone_sha256": identity["sha256"] or "",
        "classes": json.dumps(content["classes"], ensure_ascii=False),
        "exposed": json.dumps(strategy.exposed.nonzero().flatten().tolist()),
        "input": json.dumps(content["input"]),
    }
    tensors = method_state(strategy.model)["tensors"]
    return in_one_order(save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, metadata=metadata))
