"""Weight files of a backbone: states that do not fit, headers and bytes of safetensors, pickles and JAX archives."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzzed_saved_runs import laid_out, taken_apart
from harness import Target, Violation
from hypothesis import strategies as st
from mutations import hostile_bytes, spoilt_trees
from safetensors.torch import save
from test_checkpoints import jax_arrays
from tiny_vits import make_model

from cl_prompts.backbones import load_checkpoint


@cache
def model() -> Any:
    """A tiny Vision Transformer."""
    return make_model("plain", seed=5)


@cache
def weights() -> dict[str, torch.Tensor]:
    """Its weights."""
    return {key: value.clone() for key, value in model().state_dict().items()}


def pickled(state: Any, zipped: bool = True) -> bytes:
    """A file of torch."""
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@cache
def valid() -> dict[str, tuple[bytes, ...]]:
    """Suffix -> contents that load."""
    jax = io.BytesIO()
    np.savez(jax, **jax_arrays(model(), "older"))
    return {
        ".safetensors": (save(weights()),),
        ".pth": (pickled(weights()), pickled({"state_dict": weights(), "epoch": 3}), pickled(weights(), zipped=False)),
        ".npz": (jax.getvalue(),),
    }


_TENSORS = st.sampled_from(
    (
        *(
            torch.zeros(()),
            torch.zeros(0),
            torch.zeros(24),
            torch.zeros(1, 17, 24),
            torch.zeros(2, 17, 24),
            torch.zeros(17, 24),
        ),
        *(
            torch.zeros(1, 18, 24),
            torch.zeros(24, 3, 8, 8),
            torch.zeros(24, 48),
            torch.zeros(72, 24),
            torch.zeros(1, 0, 24),
        ),
        *(torch.full((24,), torch.nan), torch.zeros(24, dtype=torch.int64), torch.zeros(24, dtype=torch.complex64)),
        *(torch.zeros(24, 24).to_sparse(), torch.empty(24, device="meta"), torch.zeros(24, dtype=torch.bfloat16)),
        *(torch.zeros(24).expand(96, 24), torch.nn.Parameter(torch.zeros(24))),
    )
)
_KEYS = st.sampled_from(
    (
        *(
            "pos_embed",
            "cls_token",
            "patch_embed.proj.weight",
            "patch_embed.proj.bias",
            "norm.weight",
            "head.weight",
            "model",
            "x",
        ),
        *(
            "state_dict",
            "teacher",
            "backbone.patch_embed.proj.weight",
            "base_encoder.patch_embed.proj.weight",
            "module.x",
            3,
        ),
        *(
            "blocks.0.attn.qkv.weight",
            "blocks.0.ls1.gamma",
            "blocks.0.gamma_1",
            "visual.class_embedding",
            "cls_token_x",
            "",
        ),
        *(
            "visual.positional_embedding",
            "visual.trunk.x",
            "model_ema",
            "state_dict_ema",
            "image_encoder.x",
            "mask_token",
            None,
        ),
        *(
            "reg_token",
            "register_tokens",
            "embeddings.x",
            "encoder.x",
            "trunk.x",
            "blocks.0.attn.q_bias",
            "storage_tokens",
        ),
        *("blocks.999999999.norm1.weight", "pos_embed.x", "a\nb", "é", ("a", 1), True),
    )
)


@st.composite
def _states(draw: st.DrawFn) -> Any:
    state: dict[Any, Any] = dict(weights())
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.integers(0, 4))
        key = draw(st.sampled_from(sorted(weights())))
        if kind == 0:
            state.pop(key, None)
        elif kind == 1:
            state[key] = draw(_TENSORS)
        elif kind == 2:
            state[draw(_KEYS)] = draw(_TENSORS | st.sampled_from((None, 3, "x", [], {}, [1], {"a": 1}, b"x", 1.5)))
        elif kind == 3:
            state[draw(_KEYS)] = state.pop(key, torch.zeros(1))
        else:
            state = {draw(_KEYS): state}
    whole = draw(st.integers(0, 9))
    if whole == 0:
        return draw(st.sampled_from((None, [], 3, "x", (), {}, [state], torch.zeros(3), {3: 4}, {"state_dict": None})))
    return state | {"args": argparse.Namespace(lr=0.1)} if whole == 1 else state


@st.composite
def _files(draw: st.DrawFn) -> tuple[str, bytes]:
    kind = draw(st.integers(0, 3))
    if kind < 2:
        state = draw(_states())
        try:
            return ".pth", pickled(state, zipped=draw(st.booleans()))
        except Exception:
            return ".pth", pickled({})
    if kind == 2:
        header, body = taken_apart(valid()[".safetensors"][0])
        return ".safetensors", laid_out(draw(spoilt_trees([header])), body)
    arrays: dict[str, Any] = dict(jax_arrays(model(), draw(st.sampled_from(("older", "big_vision")))))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(arrays)))
        change = draw(st.integers(0, 4))
        if change == 0:
            arrays.pop(key)
        elif change == 1:
            arrays[key + "x"] = arrays.pop(key)
        elif change == 2:
            arrays[key] = draw(st.sampled_from((np.zeros(0), np.zeros(24, "float32"), np.zeros((1, 17, 24)))))
        elif change == 3 and arrays[key].dtype.kind == "f":
            arrays[key] = arrays[key].astype(
                draw(st.sampled_from(("float16", "int8", "S4", "complex64", ">f4", "bool")))
            )
        elif arrays[key].dtype.kind == "f":
            arrays[key] = arrays[key] * np.float32(draw(st.sampled_from((np.nan, np.inf, 0.0, 1e38))))
    file = io.BytesIO()
    np.savez(file, **arrays)
    return ".npz", file.getvalue()


@st.composite
def _bytes(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix = draw(st.sampled_from(sorted(valid())))
    other = draw(st.sampled_from((suffix, suffix, suffix, *sorted(valid()))))
    return suffix, draw(hostile_bytes(valid()[other]))


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[Any], None]]:
    """All of the file fits, or nothing of it is taken."""
    own = make_model("plain", seed=7)
    before = {key: value.clone() for key, value in own.state_dict().items()}

    def attempt(file: tuple[str, bytes]) -> None:
        suffix, content = file
        path = folder / f"weights{suffix}"
        path.write_bytes(content)
        with torch.no_grad():
            for key, value in own.state_dict().items():
                value.copy_(before[key])
        load_checkpoint(own, path)
        if not all(bool(value.isfinite().all()) for value in own.state_dict().values()):
            raise Violation("broken numbers were taken")

    yield attempt


def _named(file: Any) -> tuple[str, ...]:
    return (f"weights{file[0]}",)


def _found_states() -> tuple[tuple[str, bytes], ...]:
    # RuntimeError: a tensor without values.
    return ((".pth", pickled(weights() | {"norm.bias": torch.empty(24, device="meta")})),)


TARGETS = (
    Target("weight files: states", st.deferred(_files), opened, _named, 50, _found_states),
    Target("weight files: bytes", st.deferred(_bytes), opened, _named, 60, lambda: ((".pth", b"\x80\x02"),)),
)
