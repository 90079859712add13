"""Linear probe: a trained head on frozen features, the least a prompt has to beat."""

from __future__ import annotations

from cl_prompts.strategies.declaration import ClassVar, Field, Literal, Needs, StrategySettings


class LinearProbeSettings(StrategySettings):
    """Settings of the linear probe."""

    needs: ClassVar[Needs] = Needs(replay="optional")

    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits; unused by the linear head")
