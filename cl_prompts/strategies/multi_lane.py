"""MULTI-LANE: one lane a session beside a frozen stream, for several labels an image (De Min et al., CoLLAs 2024).

A lane owns selectors, which summarise the image in every block, prompts of the first blocks, a class token that reads
both, and the head rows of its classes. Nobody selects a lane at test: each class is read from its own lane.

`variant=released` computes what the published code computes; `form=fast`, the default, gives the same numbers without
the tokens whose results are dropped (`cl_prompts.lanes`). The published text could not be read, only its abstract, so
`variant=paper` is refused. Finished lanes are frozen and their head rows pinned; several lanes learn at once only where
classes return in later sessions (`lane_policy`). On streams of one label an image the loss is the cross-entropy over
the competing classes of the lanes that learn.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.heads import PinnedHead
from cl_prompts.labels import visible_cross_entropy, visible_labels
from cl_prompts.lanes import (
    LaneDesign,
    LaneInputs,
    LaneSet,
    fast_class_tokens,
    selector_path,
    selector_weights,
    token_class_tokens,
)
from cl_prompts.masks import mask_logits
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings, model_validator
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class MultiLaneSettings(StrategySettings):
    """Settings of MULTI-LANE."""

    needs: ClassVar[Needs] = Needs(boundaries="required", multi_label=True, grows_by_parts=True)

    variant: Literal["released", "paper"] = Field(
        "released", description="the published code; paper is refused: its text could not be read, only its abstract"
    )
    num_selectors: int = Field(20, ge=0, description="selectors of a lane, each summarising the image in every block")
    num_prompts: int = Field(20, ge=1, description="keys and values of a lane in each of its prompted blocks")
    prompt_layers: int = Field(5, ge=0, description="the first blocks, which get prompts")
    prompt_init: Literal["orthogonal", "uniform"] = Field(
        "orthogonal", description="first selectors and prompts: slices of orthogonal matrices, or uniform in -1..1"
    )
    init_tasks: int = Field(10, ge=1, description="tasks the orthogonal scale is made for; released: all of the run")
    lane_init: Literal["copy", "fresh"] = Field("copy", description="a new lane starts as a copy of the last, or anew")
    dandr: Literal["released", "off", "reset"] = Field(
        "released",
        description="drop-and-replace: as released; off: summaries of the first block go on as tokens; "
        "reset: the same selectors in every block (unverified reading)",
    )
    tome: int = Field(0, ge=0, description="merge the stream's tokens to at most so many in place of selectors; 0: off")
    normalize: Literal["pre-head", "none"] = Field("pre-head", description="unit norm of what the head reads")
    head_mode: Literal["concat", "key"] = Field(
        "concat", description="each class from its own lane, or all classes from the lane whose key is nearest"
    )
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="divisor of the logits inside the loss")
    loss_norm: Literal["all", "active"] = Field(
        "all", description="sigmoid loss as mean over all labels, hidden ones at ln 2 (released), or over visible ones"
    )
    form: Literal["fast", "token"] = Field("fast", description="exact fast form, or every token as defined")
    lane_policy: Literal["owner", "current"] = Field(
        "owner", description="where classes return: the lane that saw a class first learns it on, or is left alone"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "MultiLaneSettings":  # noqa: UP037 -- also evaluated without this file's imports
        """Refuse values that exclude each other: one line `key=value: advice` for each."""
        problems = []
        if self.variant == "paper":
            problems.append(
                "variant=paper: the publication's text could not be read, so nothing could be checked against it; "
                "use variant=released, with strategy.dandr or strategy.loss_norm for its open points"
            )
        if self.tome == 1:
            problems.append("tome=1: one token is the class token alone; give at least 2, or 0 for no merging")
        elif self.tome and self.num_selectors:
            problems.append(
                f"tome={self.tome}: merged tokens take the place of summaries; set strategy.num_selectors=0"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


FORMS = {"fast": fast_class_tokens, "token": token_class_tokens}


class MultiLaneMethod(Method):
    """The learner: `lanes`, one more each session, and `head`, a row a class.

    Raises:
        StrategyError: more prompted blocks than the backbone has, or a backbone without a class token.
    """

    settings_class = MultiLaneSettings
    settings: MultiLaneSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: MultiLaneSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        if settings.prompt_layers > backbone.depth:
            raise StrategyError(
                f"strategy.prompt_layers={settings.prompt_layers}: the backbone has {backbone.depth} blocks"
            )
        if backbone.model.cls_token is None:
            raise StrategyError("MULTI-LANE starts each lane at the backbone's class token; this backbone has none")
        self.head = PinnedHead(backbone.width, num_classes, generator)
        self.lanes = LaneSet(backbone, num_classes, _design(settings), generator)
        self._path: tuple[Hashable, list[Tensor]] | None = None

    @property
    def owner(self) -> Tensor:
        """Lane of each class, int64 (classes,); -1 before it was seen."""
        return self.lanes.owner

    def begin_session(self, classes: Tensor | None) -> None:
        """Open a lane for the session's new classes; lanes without an announced class are frozen."""
        self.lanes.begin_session(classes, self.head)

    def observe(self, exposed: Tensor) -> None:
        """Classes that were not announced belong to the lane of the session in which they were first seen."""
        self.lanes.observe(exposed, self.head)

    # --- forward passes ---------------------------------------------------------------------------------------------

    def query(self, images: Tensor) -> Tensor | None:
        """With `head_mode=key` the frozen class token after the final norm, (batch, width); else nothing."""
        return self.backbone.query(images) if self.settings.head_mode == "key" else None

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes); 0 for a class that no lane owns."""
        numbers = range(len(self.lanes))
        features, stream_query = self._features(images, numbers, needs_query=query is None)
        outputs = [self._part_output(features[:, number], number) for number in numbers]
        return self.combine(outputs, stream_query if query is None else query)

    @property
    def columns_are_final(self) -> bool:
        """True where each class is read from its own lane; with keys, the lane of an image may change."""
        return self.settings.head_mode == "concat"

    def parts(self) -> list[Hashable]:
        """One part a lane; a frozen lane's state never changes."""
        return self.lanes.states(self.head if self.settings.head_mode == "concat" else None)

    @torch.no_grad()
    def part_outputs(self, images: Tensor, parts: Sequence[int]) -> list[Tensor]:
        """Of each lane: the logits of its own classes, or with `head_mode=key` what the head reads."""
        features, _ = self._features(images, parts, needs_query=False)
        return [self._part_output(features[:, index], number) for index, number in enumerate(parts)]

    def combine(self, outputs: Sequence[Tensor], query: Tensor | None) -> Tensor:
        """Logits (batch, classes) from the outputs of all lanes."""
        return COMBINE[self.settings.head_mode](self, outputs, query)

    def _part_output(self, features: Tensor, lane: int) -> Tensor:
        return self.head(features, self.lanes.columns(lane)) if self.settings.head_mode == "concat" else features

    def _gathered(self, outputs: Sequence[Tensor], query: Tensor | None) -> Tensor:
        logits = outputs[0].new_zeros(len(outputs[0]), self.num_classes)
        for lane, own in enumerate(outputs):
            columns = self.lanes.columns(lane)
            # Columns of a lane that were added after its output was stored would not fit: states differ then.
            logits[:, columns] = own
        return logits

    def _selected(self, outputs: Sequence[Tensor], query: Tensor | None) -> Tensor:
        assert query is not None
        used = torch.tensor([number for number in range(len(outputs)) if len(self.lanes.columns(number))] or [0])
        keys = torch.stack(self.lanes.keys)[used]
        nearest = used.to(keys.device)[_cosine(query, keys).argmax(-1)]
        features = torch.stack(list(outputs), dim=1)
        chosen = features[torch.arange(len(query), device=query.device), nearest]
        logits = self.head(chosen, torch.arange(self.num_classes, device=query.device))
        return logits.masked_fill(self.owner < 0, 0.0)

    def _features(self, images: Tensor, numbers: Sequence[int], *, needs_query: bool) -> tuple[Tensor, Tensor | None]:
        """What the head reads of these lanes, (batch, lanes, width), and the stream's own class token if asked for."""
        inputs = self.lanes.inputs(numbers, self._class_token)
        stream = self.backbone.normed_stream(images)
        blocks = self.backbone.blocks
        reuses_path = self.settings.form == "fast" and not torch.is_grad_enabled() and _has_path(inputs)
        path = (self._known_path(inputs, numbers),) if reuses_path else ()
        states = FORMS[self.settings.form](blocks, stream, inputs, *path)
        # Not through the model's pooling: a lane has no other token.
        features = self.backbone.model.fc_norm(self.backbone.model.norm(states))
        if self.settings.normalize == "pre-head":
            features = F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)
        needs_query = needs_query and self.settings.head_mode == "key"
        return features, stream.query() if needs_query else None

    @property
    def _class_token(self) -> Tensor:
        token = self.backbone.model.cls_token
        assert token is not None
        return token[0, 0]

    def _known_path(self, inputs: LaneInputs, numbers: Sequence[int]) -> list[Tensor]:
        """The selectors' path, computed once for an evaluation: no image is in it."""
        # Kept for these very tensors and this arithmetic; inference tensors serve no other mode.
        first = inputs.selectors
        modes = (torch.is_inference_mode_enabled(), torch.is_autocast_enabled(first.device.type))
        versions = tuple((number, self.lanes[number].version()) for number in numbers)
        state = (modes, first.dtype, first.device, versions)
        if self._path is None or self._path[0] != state:
            self._path = state, selector_path(self.backbone.blocks, inputs)
        return self._path[1]

    # --- training ---------------------------------------------------------------------------------------------------

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's losses: `classification`, and `key` (minus the cosine) with `head_mode=key`."""
        targets, query = batch.targets, batch.query
        owned = ~self.head.pinned
        numbers = self.lanes.learning_from(targets)
        features, stream_query = self._features(batch.images, numbers, needs_query=query is None)
        everything = torch.arange(self.num_classes, device=features.device)
        logits = features.new_zeros(len(features), self.num_classes)
        for index, number in enumerate(numbers):
            columns = (
                everything if self.settings.head_mode == "key" and len(numbers) == 1 else self.lanes.columns(number)
            )
            logits = logits.index_copy(1, columns, self.head(features[:, index], columns).to(logits.dtype))
        allowed = batch.allowed & owned
        losses = {"classification": self._classification(logits, targets, allowed)}
        if self.settings.head_mode == "key":
            query = stream_query if query is None else query
            assert query is not None
            # Each key is drawn to the images its lane learns from.
            losses["key"] = -_cosine(query, torch.stack([self.lanes.keys[number] for number in numbers])).mean()
        for number in numbers:
            self.lanes.updates[number] += 1
        return TrainingOutputs(losses, mask_logits(logits, allowed), features[:, -1])

    def _classification(self, logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
        logits = logits / self.settings.temperature
        if targets.ndim == 1:
            return _cross_entropy_of_competing(logits, targets, allowed)
        visible = visible_labels(targets) & allowed
        total = visible_cross_entropy(logits, targets, visible).sum()
        return LOSS_NORMS[self.settings.loss_norm](total, visible)

    def notices(self) -> list[str]:
        """A lane without selectors and merged tokens sees no image."""
        if self.settings.num_selectors or self.settings.tome:
            return []
        return ["strategy.num_selectors=0 without tome: lanes never see the image, every image gets the same logits"]

    # --- what pictures read -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def selector_attention(self, images: Tensor) -> Tensor:
        """What each selector looks at in the last block that reads the image, (batch, lanes, selectors, tokens)."""
        inputs = self.lanes.inputs(range(len(self.lanes)), self._class_token)
        states = [seen.normed for seen in self.backbone.normed_stream(images)]
        if self.settings.dandr == "off":
            return selector_weights(self.backbone.blocks[0].norm1(inputs.selectors), states[0])
        return selector_weights(selector_path(self.backbone.blocks, inputs)[-1], states[-1])


def _design(settings: MultiLaneSettings) -> LaneDesign:
    return LaneDesign(
        num_selectors=settings.num_selectors,
        num_prompts=settings.num_prompts,
        prompt_layers=settings.prompt_layers,
        prompt_init=settings.prompt_init,
        init_tasks=settings.init_tasks,
        lane_init=settings.lane_init,
        has_keys=settings.head_mode == "key",
        lane_policy=settings.lane_policy,
        drop_and_replace=settings.dandr,
        merged_tokens=settings.tome,
    )


def _cosine(query: Tensor, keys: Tensor) -> Tensor:
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T


def _has_path(inputs: LaneInputs) -> bool:
    return inputs.num_selectors > 0 and inputs.drop_and_replace != "off" and not inputs.merged_tokens


def _cross_entropy_of_competing(logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
    """Mean cross-entropy of the images whose class competes; others belong to lanes that do not learn."""
    competing = allowed[targets]
    masked = mask_logits(logits, allowed)
    total = F.cross_entropy(masked, targets.masked_fill(~competing, -100), ignore_index=-100, reduction="sum")
    return total / competing.sum().clamp(min=1)


def _over_all(total: Tensor, visible: Tensor) -> Tensor:
    hidden = (~visible).sum()
    return (total + hidden * torch.log(total.new_tensor(2.0))) / visible.numel()


def _over_visible(total: Tensor, visible: Tensor) -> Tensor:
    return total / visible.sum().clamp(min=1)


LOSS_NORMS = {"all": _over_all, "active": _over_visible}
COMBINE: dict[str, Any] = {"concat": MultiLaneMethod._gathered, "key": MultiLaneMethod._selected}


class MultiLane(ContinualStrategy):
    """MULTI-LANE as an Avalanche strategy; `settings` is a `MultiLaneSettings`."""

    method_class = MultiLaneMethod
