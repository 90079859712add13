"""SinglePrompt: one prefix in each early block, cosine head, no pool and no query (arXiv 2604.04420)."""

from __future__ import annotations

from cl_prompts.strategies.declaration import ClassVar, Field, Literal, Needs, StrategySettings


class SinglePromptSettings(StrategySettings):
    """Settings of SinglePrompt."""

    needs: ClassVar[Needs] = Needs(replay="optional")

    prompt_layers: int = Field(5, ge=1, description="the first blocks, which get a prefix")
    prompt_length: int = Field(20, ge=1, description="keys and values added in each of them")
    position_code: bool = Field(True, description="add the class token's position code to the prefix, as released")
    head: Literal["cosine", "linear"] = Field("cosine", description="cosine over temperature, or a linear layer")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")
