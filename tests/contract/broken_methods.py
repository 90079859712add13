"""Learners that each break one promise, all made of the linear probe or the nearest class mean."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from cl_prompts.contract.toys import CLASSES
from cl_prompts.heads import apply_head
from cl_prompts.strategies import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.linear_probe import LinearProbeMethod, LinearProbeSettings
from cl_prompts.strategies.ncm import NCMMethod


def strategy_of(method: type) -> type[ContinualStrategy]:
    """The Avalanche strategy of a method."""
    return type(method.__name__, (ContinualStrategy,), {"method_class": method})


class LeaksTheBatch(LinearProbeMethod):
    """Centres features by the mean of their batch."""

    def forward(self, images, query=None):
        features = self.query(images) if query is None else query
        return apply_head(self.head, features - 0.5 * features.mean(0))


class KnowsTheBatchSize(LinearProbeMethod):
    """Scales logits of images that come alone."""

    def forward(self, images, query=None):
        logits = super().forward(images, query)
        return logits * (2 if len(logits) == 1 else 1)


class ReadsLabels(LinearProbeMethod):
    """Predicts the labels of the last training batch, as if they were those of the test."""

    answers = torch.zeros(0, dtype=torch.int64)

    def training_outputs(self, batch):
        self.answers = batch.targets
        return super().training_outputs(batch)

    def forward(self, images, query=None):
        logits = super().forward(images, query)
        known = self.answers[: len(logits)]
        logits[torch.arange(len(known)), known] += 5
        return logits


class TakesLabels(LinearProbeMethod):
    """Prediction has a third argument."""

    def forward(self, images, query=None, targets=None):
        return super().forward(images, query)


class MovesTheBackbone(LinearProbeMethod):
    """Each step shifts a weight of the backbone."""

    def after_step(self):
        with torch.no_grad():
            self.backbone.model.norm.bias.add_(1e-3)


class UnfreezesTheBackbone(LinearProbeMethod):
    """Puts the backbone into training mode."""

    def training_outputs(self, batch):
        self.backbone.model.blocks[0].training = True
        return super().training_outputs(batch)


class ForgetsState(LinearProbeMethod):
    """Keeps a sum of features where nothing saves it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.drift = torch.zeros(self.backbone.width)

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        self.drift = self.drift + outputs.features.detach().mean(0)
        return outputs

    def forward(self, images, query=None):
        return apply_head(self.head, (self.query(images) if query is None else query) + 0.1 * self.drift)


class DrawsGlobally(LinearProbeMethod):
    """Drops features by torch's global generator."""

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        outputs.losses["noise"] = outputs.losses["classification"] * torch.rand(())
        return outputs


class StartsGlobally(LinearProbeMethod):
    """Initial values from torch's global generator."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        nn.init.normal_(self.head.weight)


class KeepsATensorStill(LinearProbeMethod):
    """Trains a tensor that no loss depends on."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.idle = nn.Parameter(torch.zeros(3))


class CountsPredictions(LinearProbeMethod):
    """Prediction moves a buffer."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("predictions", torch.zeros(()))

    def forward(self, images, query=None):
        self.predictions += len(images if query is None else query)
        return super().forward(images, query)


class AsksForAValue(LinearProbeMethod):
    """Waits for the device in each step."""

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        if outputs.losses["classification"].item() > 1e9:
            outputs.losses.clear()
        return outputs


class LearnsBackwards(LinearProbeMethod):
    """Maximises the loss it reports."""

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        outputs.losses["against"] = -2 * outputs.losses["classification"]
        return outputs


class SumsTheLoss(LinearProbeMethod):
    """A loss that grows with the batch."""

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        outputs.losses["classification"] = outputs.losses["classification"] * len(batch)
        return outputs


class IgnoresTheMask(LinearProbeMethod):
    """Lets all classes compete, whatever the protocol says."""

    def training_outputs(self, batch):
        from dataclasses import replace

        return super().training_outputs(replace(batch, allowed=torch.ones_like(batch.allowed)))


class SettingsWithoutReplay(LinearProbeSettings):
    """Declares that no sample is remembered."""

    needs: ClassVar[Needs] = Needs(trains="head")


class ReadsReplay(LinearProbeMethod):
    """Looks for remembered samples without declaring any."""

    settings_class = SettingsWithoutReplay

    def training_outputs(self, batch):
        assert not batch.remembered
        return super().training_outputs(batch)


class ReadsBoundaries(LinearProbeMethod):
    """Starts its head anew for the classes of a task, without declaring boundaries."""

    def begin_session(self, classes):
        if classes is not None and len(classes):
            with torch.no_grad():
                self.head.weight.mul_(0.5)


class PassesTwice(LinearProbeMethod):
    """Runs the backbone three times in each step."""

    def training_outputs(self, batch):
        for _ in range(2):
            self.backbone.query(batch.images)
        return super().training_outputs(batch)


class CountsClasses(LinearProbeMethod):
    """Takes the first columns for the classes seen, as if they came in numeric order."""

    def forward(self, images, query=None):
        logits = super().forward(images, query)
        return logits.index_fill(1, torch.arange(3, CLASSES), -1e4)


class RoundsTheHead(LinearProbeMethod):
    """Its head becomes bfloat16 under autocast."""

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        if torch.is_autocast_enabled("cpu"):
            self.head.bfloat16()
        return outputs


class TrainsPrompts(LinearProbeMethod):
    """Declares that it trains a head alone, and trains more."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.prompt = nn.Parameter(torch.zeros(1))

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        outputs.losses["prompt"] = (self.prompt - 1).square().sum()
        return outputs


class GivesWideLogits(LinearProbeMethod):
    """Logits of a class that does not exist."""

    def forward(self, images, query=None):
        return nn.functional.pad(super().forward(images, query), (0, 1))


class FreezesItsQuery(LinearProbeMethod):
    """The query changes with training."""

    def query(self, images):
        return super().query(images) * (1 + float(self.head.bias.detach().abs().sum()))


class CopiesShareTensors(LinearProbeMethod):
    """Its copies are itself."""

    def __deepcopy__(self, memo):
        return self


class OverwritesMeans(NCMMethod):
    """A class that returns replaces its mean, so that the order decides."""

    def fit(self, batch):
        for target in batch.targets.unique():
            self.sums[target], self.counts[target] = 0, 0
        super().fit(batch)


class SkipsAFit(NCMMethod):
    """Never takes up anything."""

    def fit(self, batch):
        return


class LooseSettings(LinearProbeSettings):
    """Accepts keys that it does not have."""

    model_config: ClassVar = LinearProbeSettings.model_config | {"extra": "ignore"}


class AcceptsAnyKey(LinearProbeMethod):
    """A misspelt key is ignored."""

    settings_class = LooseSettings


class UndescribedSettings(StrategySettings):
    """A key that nobody explains."""

    needs: ClassVar[Needs] = LinearProbeSettings.needs
    head: str = "linear"
    temperature: float = Field(0.1, description="divisor of the cosine logits")


class SaysNothing(LinearProbeMethod):
    """A key without a description."""

    settings_class = UndescribedSettings


class MultiLabelSettings(LinearProbeSettings):
    """Declares several labels an image."""


class ReadsHiddenLabels(LinearProbeMethod):
    """Takes a hidden label for a number."""

    settings_class = MultiLabelSettings

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        if batch.targets.ndim == 2:
            outputs.losses["peek"] = (outputs.features.mean(-1, keepdim=True) - batch.targets).square().mean()
        return outputs


BROKEN = {
    LeaksTheBatch: "neighbours_in_the_batch_change_nothing",
    KnowsTheBatchSize: "the_batch_size_changes_nothing",
    ReadsLabels: "neighbours_in_the_batch_change_nothing",
    TakesLabels: "prediction_takes_images_alone",
    MovesTheBackbone: "backbone_stays_as_it_is",
    UnfreezesTheBackbone: "backbone_stays_as_it_is",
    ForgetsState: "a_saved_method_predicts_the_same",
    DrawsGlobally: "global_generators_are_left_alone",
    StartsGlobally: "the_seed_decides_initial_values",
    KeepsATensorStill: "every_trained_tensor_moves",
    CountsPredictions: "prediction_changes_nothing",
    AsksForAValue: "no_step_asks_the_device_for_a_value",
    LearnsBackwards: "steps_lower_the_loss",
    SumsTheLoss: "a_batch_twice_has_the_same_loss",
    IgnoresTheMask: "one_class_under_the_batch_mask_costs_nothing",
    ReadsReplay: "undeclared_replay_is_not_read",
    ReadsBoundaries: "undeclared_boundaries_are_not_read",
    PassesTwice: "declared_passes_are_not_exceeded",
    CountsClasses: "new_classes_are_learned_in_any_order",
    RoundsTheHead: "bf16_is_near_full_precision",
    TrainsPrompts: "only_the_declared_part_is_trained",
    GivesWideLogits: "logits_have_one_column_a_class",
    FreezesItsQuery: "the_query_is_of_the_frozen_backbone",
    CopiesShareTensors: "copies_go_their_own_way",
    OverwritesMeans: "the_order_of_the_stream_changes_nothing",
    SkipsAFit: "something_is_learned",
    AcceptsAnyKey: "an_unknown_key_is_refused",
    SaysNothing: "every_setting_is_described",
    ReadsHiddenLabels: "several_labels_are_learned",
}
"""Method -> the check that finds what is wrong with it."""

ALSO_BROKEN = {
    ForgetsState: "a_run_goes_on_inside_a_session",
    DrawsGlobally: "evaluation_leaves_the_weights_alone",
    IgnoresTheMask: "outputs_have_the_declared_shapes",
    KeepsATensorStill: "gradients_reach_what_is_trained_alone",
    ReadsBoundaries: "merged_sessions_are_the_same_stream",
    LearnsBackwards: "memorised_stream_is_predicted",
}
"""The same for a second check."""
