"""NCM: nearest class mean on frozen features, running sums, no gradient (SimpleCIL when cosine)."""

from __future__ import annotations

from cl_prompts.strategies.declaration import ClassVar, Field, Literal, Needs, StrategySettings


class NCMSettings(StrategySettings):
    """Settings of the nearest-class-mean learner."""

    needs: ClassVar[Needs] = Needs(gradient=False, order_invariant=True)

    similarity: Literal["cosine", "euclidean"] = Field("cosine", description="how an image is compared with the means")
