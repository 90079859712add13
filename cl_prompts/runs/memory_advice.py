"""Which setting helps most when memory ran out, and about how much it saves."""

from __future__ import annotations

import traceback
from pathlib import Path

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import UserError
from cl_prompts.runs.failures import is_out_of_memory
from cl_prompts.runs.schema import RunConfig

_KEPT_IN_TRAINING = 17
"""Numbers of a token's width that a block keeps for the backward pass: two norms, queries, keys and values, attention
and its projection, the hidden layer before and after its activation (four each), two sums."""

_LIVE_IN_EVALUATION = 10
"""The same of the one block that an evaluation computes at a time."""

_BYTES = {"fp32": 4, "bf16": 2}


def memory_error(error: Exception, config: RunConfig, backbone: FrozenViT | None) -> UserError | None:
    """The line about an error that is one of memory; None where it is another one.

    Args:
        error: as it was raised.
        config: of the run.
        backbone: None where memory ran out before there was one.
    """
    if not is_out_of_memory(error):
        return None
    where = "the GPU" if "cuda" in str(error).lower() else "this machine"
    return UserError(f"out of memory on {where} {_phase(error, config, backbone)}")


def _phase(error: Exception, config: RunConfig, backbone: FrozenViT | None) -> str:
    protocol = config.protocol
    places = [Path(frame.filename).parts[-3:] for frame in traceback.extract_tb(error.__traceback__)]
    smaller = "or take a smaller backbone"
    if protocol.precision == "fp32":
        smaller = f"protocol.precision=bf16, which about halves it, {smaller}"
    if str(error).startswith("Caught ") or any(part[:2] == ("scenarios", "datasets") for part in places):
        workers = f"lower num_workers (now {config.num_workers})" if config.num_workers else "use num_workers=0"
        return f"while images were read; set dataset.cache=mmap or none where the data set has it, {workers}"
    if backbone is None:
        return "before training began; take a smaller backbone, or free memory"
    if any("evaluation" in part for part in places):
        freed = _saved(protocol.eval_batch, _LIVE_IN_EVALUATION, backbone, protocol.precision)
        return f"during an evaluation; {_halved('eval_batch', protocol.eval_batch, freed)} {smaller}"
    freed = _saved(protocol.stream_batch, _KEPT_IN_TRAINING * backbone.depth, backbone, protocol.precision)
    replay = f" and protocol.replay_batch (now {protocol.replay_batch})" if protocol.memory_size else ""
    return f"in training; {_halved('stream_batch', protocol.stream_batch, freed, replay)} {smaller}"


def _halved(key: str, batch: int, freed: float, more: str = "") -> str:
    if batch == 1:
        return f"protocol.{key} is 1 already{more and f', lower{more[4:]}'}: set"
    note = "; results change with it" if key == "stream_batch" else ""
    return f"halve protocol.{key} ({batch} -> {batch // 2}: about {freed:,.2g} GB less{note}){more}, or set"


def _saved(batch: int, numbers: int, backbone: FrozenViT, precision: str) -> float:
    """Thousand million bytes that half the images of a batch take, of what grows with the batch."""
    tokens = backbone.model.patch_embed.num_patches + backbone.num_prefix_tokens
    return (batch - batch // 2) * tokens * backbone.width * numbers * _BYTES[precision] / 1e9
