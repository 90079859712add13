"""Settings of MISA's warm-up. Light: neither torch nor timm is imported."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cl_prompts.errors import StrategyError
from scenarios.settings import LayerIndices, Settings
from scenarios.words import help_of, settings_of_words

COMMAND = "python -m cl_prompts.strategies.misa_warm_up"


class WarmUpSettings(Settings):
    """Keys of `python -m cl_prompts.strategies.misa_warm_up key=value ...`."""

    images: str = Field(description="folder with one folder of images a class; all of them are trained on")
    output: str = Field(description="file of the prompts, .safetensors")
    backbone: str = Field("vit_nano", description="a name of configs/backbone: the backbone of the later runs")
    checkpoint: str | None = Field(None, description="its weights: a path, hub, bundled or untrained; null: as there")

    pool_size: int = Field(10, ge=1, description="as strategy.pool_size of the later runs, like the next five")
    general_length: int = Field(10, ge=0, description="tokens of the general prompt in each of its blocks")
    general_layers: LayerIndices = Field((0, 1), description="blocks that get the general prompt")
    expert_length: int = Field(20, ge=1, description="tokens of an expert prompt in each of its blocks")
    expert_layers: LayerIndices = Field((2, 3, 4), description="blocks that get the chosen expert prompt")
    insertion: Literal["prompt_tuning", "prefix_tuning"] = Field("prompt_tuning", description="form of the prompts")

    held_out_pct: int = Field(10, ge=1, le=90, description="per cent of the classes that make the second source")
    classes_at_once: int = Field(10, ge=1, description="classes of the second source that are drawn together")
    sessions: int = Field(5, ge=1, description="groups in which the classes of the stream come (our reading)")
    epochs: int = Field(3, ge=1, description="passes over each of these groups")
    batch: int = Field(256, ge=1, description="images of each source in an update")
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False, description="learning rate of Adam")
    rho: float = Field(0.1, gt=0, allow_inf_nan=False, description="length of the climb along the second source")
    reduction: int = Field(8, ge=1, description="width of the backbone over that of the bottleneck")
    augmentation: str = Field("crop_flip", description="of both sources, as protocol.augmentation")
    seed: int = Field(0, ge=0, lt=2**63, description="root of every random draw")

    device: str = Field("cpu", description="cpu, cuda or cuda:N")
    progress: Literal["plain", "none"] = Field("plain", description="what the terminal shows")

    @model_validator(mode="after")
    def _check(self) -> WarmUpSettings:
        if not self.output.endswith(".safetensors"):
            raise ValueError(f"output={self.output}: give a file that ends in .safetensors")
        return self

    def recipe(self) -> dict[str, object]:
        """The keys that decide the prompts, JSON-ready."""
        return self.model_dump(mode="json", exclude={"images", "output", "device", "progress"})


def read_words(words: list[str]) -> WarmUpSettings:
    """Settings from words `key=value`.

    Raises:
        StrategyError: a word that is none, an unknown key, a wrong value; all problems, one line each.
    """
    return settings_of_words(words, WarmUpSettings, COMMAND, StrategyError)


def help_text() -> str:
    """Every key with its default and meaning."""
    return help_of(WarmUpSettings, COMMAND)
