"""The one loop: `ContinualStrategy`, Avalanche's supervised template for online streams and frozen backbones.

What it adds to Avalanche: samples in exactly the planned order, several updates on one stream batch (each with fresh
augmentation), one label or several an image, classes counted as exposed from the labels alone, named losses, an
optimizer that holds the trained tensors and nothing else, and closed-form learners in the same loop. Every hook is
called where plugins expect it: `before/after_training_iteration` once around a stream batch, the inner hooks once for
each update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import Any, ClassVar

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor
from torch.utils.data import DataLoader

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.labels import check_labels_of_batch, label_kind
from cl_prompts.masks import EVAL_MASKS, FINITE_FILL, MASK_POLICIES, ClassTracker, mask_logits
from cl_prompts.strategies.argument_checks import (
    check_experience_labels,
    check_loop,
    check_mask_fits,
    check_optimizer,
    check_parts,
    check_single_process,
    task_classes,
)
from cl_prompts.strategies.declaration import StrategySettings
from cl_prompts.strategies.images import EvalTransform, ImagePreparation, TrainTransform
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs
from cl_prompts.strategies.optimization import OPTIMIZER_SCOPES, SCHEDULES, MakeOptimizer, Optimization
from cl_prompts.strategies.passes import EpochOrder, Place, batches_of
from cl_prompts.strategies.state import prepare_plugins, restore_strategy, strategy_state
from cl_prompts.strategies.watch import TrainingWatch, Update

AUTOCAST: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
"""Precision named in a configuration -> autocast dtype; None computes as the weights are."""


class ContinualStrategy(SupervisedTemplate):
    """Base of every method's Avalanche strategy; a method adds `method_class` and nothing else.

    Args:
        backbone: the frozen features.
        num_classes: columns of the head; labels are data-set class ids below it.
        settings: the method's typed settings; its defaults if None.
        seed: of the initial prompts, keys and head.
        updates_per_batch: optimizer steps on each stream batch; fractions carry over (0.5: every second batch).
        train_mask: classes that compete in the loss: none, exposed, task, batch or session.
        eval_mask: the same at evaluation: exposed or none.
        train_transform: (uint8 images (batch, 3, h, w), sample ids (batch,), passes (batch,)) -> float images; None if
            the benchmark's own transforms already give float images.
        eval_transform: uint8 images -> float images, as above.
        optimizer: trained tensors -> optimizer; Adam with learning rate 5e-3 as in the Si-Blurry scripts if None.
        optimizer_scope: `stream`: one optimizer, unless the method's trained tensors change; `session`: a fresh one for
            each experience.
        lr_schedule: over the epochs of an experience: `constant`, or `cosine` down to 0.
        clip_norm: largest Euclidean norm of all gradients together; 0 leaves them as they are.
        epochs: passes over each experience.
        shuffle_seed: of a fresh order in every epoch; None keeps the planned order.
        precision: fp32, or bf16 for autocast.
        train_mb_size: stream batch.
        eval_mb_size: batch of `eval`.
        device: where to compute.
        plugins: Avalanche plugins.
        evaluator: Avalanche's evaluation plugin; None logs nothing.

    Attributes:
        samples_seen: stream samples presented, each once an epoch whatever the updates; the x axis of every curve.
        updates: optimizer steps (or closed-form fits) done.
        classes: the `ClassTracker`; `exposed` is its vector of classes seen so far.
        place: where in the stream the strategy is.
        batch_listeners: called with the strategy at the end of every stream batch, after all plugins.
        watch: running accuracy, latest losses and the guard against losses that are not finite.
        mb_sample_ids: (batch,) data-set indices of the current mini-batch, replay included.
        stream_size: how many of the mini-batch's rows come from the stream; the rest is replay.
        mb_to_remember: what the method wants kept beside the stream rows, by name; empty without an update.
        mb_remembered: what was kept beside the replayed rows, by name.
        known_features: (images, width) by data-set index, what the backbone gives for the training images as evaluation
            prepares them; None: each batch passes it. Only for methods that predict from the query, which then get
            closed-form batches with the images as the stream has them.
        mb_output: logits (batch, classes) of the current mini-batch, finite, and in training with the graph behind
            them, so that penalties of other plugins reach the weights.

    Raises:
        StrategyError: an argument out of range or of the wrong kind, or settings that the method or the backbone
            excludes.
    """

    method_class: ClassVar[type[Method]]

    def __init__(
        self,
        *,
        backbone: FrozenViT,
        num_classes: int,
        settings: StrategySettings | None = None,
        seed: int = 0,
        updates_per_batch: float = 3,
        train_mask: str = "exposed",
        eval_mask: str = "exposed",
        train_transform: TrainTransform | None = None,
        eval_transform: EvalTransform | None = None,
        optimizer: MakeOptimizer | None = None,
        optimizer_scope: str = "stream",
        lr_schedule: str = "constant",
        clip_norm: float = 0.0,
        epochs: int = 1,
        shuffle_seed: int | None = None,
        precision: str = "fp32",
        train_mb_size: int = 64,
        eval_mb_size: int = 128,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | None = None,
    ) -> None:
        check_single_process()
        check_loop(
            updates_per_batch,
            epochs,
            precision=(precision, AUTOCAST),
            optimizer_scope=(optimizer_scope, OPTIMIZER_SCOPES),
            lr_schedule=(lr_schedule, SCHEDULES),
            train_mask=(train_mask, MASK_POLICIES),
            eval_mask=(eval_mask, EVAL_MASKS),
        )
        settings_class = self.method_class.settings_class
        settings = settings_class() if settings is None else settings
        check_parts(type(self).__name__, backbone, settings, settings_class, optimizer)
        generator = torch.Generator().manual_seed(seed)
        method = self.method_class(backbone, num_classes, settings, generator).to(device)
        self.needs = settings.declared_needs()
        trained = [tensor for _, tensor in method.named_trainables()]
        self.optimization = Optimization(optimizer, optimizer_scope, lr_schedule, epochs)
        super().__init__(
            model=method,
            optimizer=self.optimization.begin(trained) if self.needs.gradient else None,
            train_mb_size=train_mb_size,
            train_epochs=epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
        )
        self.model: Method
        self._stop_training: bool
        self.optimizer: torch.optim.Optimizer | None
        self.num_classes = num_classes
        self.updates_per_batch = Fraction(updates_per_batch).limit_denominator(10**6)
        self.train_mask = train_mask
        self.eval_mask = eval_mask
        self.preparation = ImagePreparation(train_transform, eval_transform, updates_per_batch)
        self.precision = precision
        self.clip_norm = clip_norm
        self.classes = ClassTracker(num_classes, self.device)
        self.samples_seen = 0
        self.updates = 0
        self.watch = TrainingWatch(self.device)
        self.mb_sample_ids = torch.empty(0, dtype=torch.int64)
        self.stream_size = 0
        self.mb_to_remember: dict[str, Tensor] = {}
        self.mb_remembered: dict[str, Tensor] = {}
        self._carry = Fraction(0)
        self._own_loader: DataLoader | None = None
        self._pass_number = 0
        self._shuffle_seed = shuffle_seed
        self._order = EpochOrder(0, shuffle_seed)
        self.place = Place()
        self.known_features: Tensor | None = None
        self.batch_listeners: list[Callable[[Any], None]] = []
        self._to_restore: Mapping[str, Any] | None = None
        self._outputs: TrainingOutputs | None = None
        self._fixed_query: Tensor | None = None
        # Iterating a loader draws a base seed; a generator of its own keeps the global one untouched.
        self._loader_seed, self._loader_generator = seed, torch.Generator()

    @property
    def shuffles(self) -> bool:
        """Every epoch has an order of its own, so that places in the stream mean nothing."""
        return self._shuffle_seed is not None

    # --- what loggers read ------------------------------------------------------------------------------------------

    @property
    def exposed(self) -> Tensor:
        """Classes seen so far in the stream, bool (classes,)."""
        return self.classes.exposed

    @property
    def running_accuracy(self) -> float:
        """Share of correct training predictions of late, each before its update; NaN with several labels an image."""
        return self.watch.running_score("accuracy")

    @property
    def running_f1(self) -> float:
        """Micro F1 of late at probability 0.5 over the visible labels; NaN where an image has one label."""
        return self.watch.running_score("F1")

    @property
    def last_losses(self) -> dict[str, Tensor]:
        """Named detached losses and diagnostics of the last update, on the device."""
        return self.watch.last_losses

    def stop_if_not_finite(self) -> None:
        """Raise a `NotFiniteError` if losses, logits or trained tensors are NaN or infinite; waits for the device."""
        self.watch.stop_if_not_finite([tensor for _, tensor in self.model.named_trainables()])

    # --- the loop ---------------------------------------------------------------------------------------------------

    def training_epoch(self, **kwargs: Any) -> None:
        """One epoch over the experience: for each stream batch, the updates that are due."""
        if self.dataloader is not self._own_loader:
            advice = "for replay use cl_prompts.plugins.Reservoir instead of Avalanche's ReplayPlugin"
            if self.needs.replay == "none":
                advice = f"leave it out, {type(self).__name__} uses no replay"
            raise StrategyError(f"a plugin replaced the loader of the stream, whose order is planned; {advice}")
        place = self.place
        if self._to_restore is not None:
            state, self._to_restore = self._to_restore, None
            restore_strategy(self, state)
            self._order.epoch = place.order_epoch
        else:
            place.position, place.order_epoch = 0, self._order.epoch
        sample_ids = self._sample_ids_of_experience()[self._order.begin_epoch()]
        self._order.skip(place.position)
        # Of the pass alone, so that a resumed one gives the workers of a loader the same seeds.
        self._loader_generator.manual_seed((self._loader_seed + place.order_epoch) % 2**63)
        with batches_of(self.dataloader) as batches:
            for batch in batches:
                if self._stop_training:
                    break
                self.mbatch = batch
                self.stream_size = len(batch[1])
                stream_ids = sample_ids[place.position : place.position + self.stream_size]
                # Where the loader left them: on a GPU a look at labels would wait for it.
                check_labels_of_batch(batch[1], self.num_classes, stream_ids)
                self._unpack_minibatch()
                stream = list(self.mbatch)
                self.classes.observe(stream[1])
                self.model.observe(self.classes.exposed)
                self._fixed_query = None
                self.mb_to_remember = {}
                self.mb_sample_ids = stream_ids
                self._before_training_iteration(**kwargs)
                due = self._updates_due()
                for number in range(due):
                    self.mbatch, self.mb_sample_ids, self.mb_remembered = list(stream), stream_ids, {}
                    self._pass_number = number
                    self._update(**kwargs)
                self._carry += self.updates_per_batch - due if self.needs.gradient else 0
                self.samples_seen += self.stream_size
                place.position += self.stream_size
                self.preparation.presented.add(stream_ids)
                if due == 0:
                    self._predict_without_update()
                self._after_training_iteration(**kwargs)
                for listener in self.batch_listeners:
                    listener(self)
        self.stop_if_not_finite()

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """The epochs over one experience that are left; evaluation is a matter of `AnytimeEvaluation`."""
        for epoch in range(0 if self._to_restore is None else self._to_restore["place"]["epoch"], self.train_epochs):
            self.place.epoch = epoch
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)

    # --- saving and going on ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state at the end of a stream batch, plain containers and tensors; read it in a `batch_listeners` call."""
        return strategy_state(self)

    def resume(self, state: Mapping[str, Any], experiences: Sequence[Any]) -> Sequence[Any]:
        """Go on where `state_dict` was taken; returns the experiences to call `train` with, in order.

        Args:
            state: of a strategy built with the same arguments and plugins.
            experiences: the whole training stream.

        Raises:
            StrategyError: this strategy has trained already, or the stream has fewer experiences.
        """
        number = prepare_plugins(self, state, experiences)
        self.place.experience = number - 1
        self._to_restore = state
        # Known to whoever watches before the first batch.
        self.samples_seen = state["samples_seen"]
        return experiences[number:]

    def _updates_due(self) -> int:
        if not self.needs.gradient:
            return 1
        return int(self._carry + self.updates_per_batch)

    def _update(self, **kwargs: Any) -> None:
        self.loss = self._make_empty_loss()
        self._before_forward(**kwargs)
        if self.needs.replay == "none" and len(self.mb_y) > self.stream_size:
            raise StrategyError(f"{type(self).__name__} declares no replay, but a plugin added samples to its batch")
        check_labels_of_batch(self.mb_y[self.stream_size :], self.num_classes, self.mb_sample_ids[self.stream_size :])
        self.mb_output = self.forward()
        update = Update(self.mb_sample_ids, self.stream_size, self.samples_seen, self.updates)
        self.watch.predicted(self.mb_output, self.mb_y, update)
        self._after_forward(**kwargs)
        if self.needs.gradient:
            assert self.optimizer is not None
            assert self._outputs is not None
            self.optimizer.zero_grad(set_to_none=True)
            self.loss = self.loss + self.criterion()
            self._before_backward(**kwargs)
            self.watch.lost(self._outputs.losses | self._outputs.diagnostics, self.loss)
            self._look_for_faults(every=50)
            self.backward()
            self._after_backward(**kwargs)
            if self.clip_norm:
                torch.nn.utils.clip_grad_norm_([one for _, one in self.model.named_trainables()], self.clip_norm)
            self._before_update(**kwargs)
            self.optimizer_step()
            self.model.after_step()
        else:
            self._look_for_faults(every=1000)
        self.updates += 1
        if self.needs.gradient:
            self._after_update(**kwargs)

    def _look_for_faults(self, every: int) -> None:
        """Stop if an update gave no number. To ask waits for the device: free on a CPU, a stall in a step on a GPU."""
        if self.device.type == "cpu" or self.watch.unchecked >= every:
            self.watch.stop_if_not_finite()

    def forward(self) -> Tensor:
        """Logits of the current mini-batch (batch, classes); in training also prepares the named losses."""
        if self.is_eval:
            return self._predict(self.preparation.for_evaluation(self.mb_x))
        query = self._known_query()
        images = self.mb_x if query is not None and not self.needs.gradient else self._transformed_for_training()
        self.mbatch[0] = images
        if not self.needs.gradient:
            with torch.no_grad(), self._autocast():
                query = self.model.query(images) if query is None else query
                logits = self._masked(self.model.logits_before_fit(images, query))
                self.model.fit(self._batch(images, query))
            return logits
        with self._autocast():
            query = self._query_of_fixed(images) if query is None else query
            self._outputs = self.model.training_outputs(self._batch(images, query))
        if self._pass_number == 0:
            self.mb_to_remember = {name: rows[: self.stream_size] for name, rows in self._outputs.remember.items()}
        # Other plugins read the logits too: infinity times a teacher's zero probability would be NaN.
        return self._outputs.logits.float().clamp(min=FINITE_FILL)

    def criterion(self) -> Tensor:
        """Sum of the method's named losses in training; the loss of the competing classes in evaluation."""
        if self.is_eval:
            return self._evaluation_loss()
        assert self._outputs is not None
        return torch.stack(list(self._outputs.losses.values())).sum()

    def _batch(self, images: Tensor, query: Tensor | None) -> TrainingBatch:
        return TrainingBatch(
            images,
            self.mb_y,
            self.classes.allowed(self.train_mask, self.mb_y) if self.needs.gradient else self.exposed,
            self.exposed,
            query,
            self.stream_size,
            self.mb_remembered,
        )

    def _transformed_for_training(self) -> Tensor:
        if not self.needs.gradient:
            return self.preparation.for_evaluation(self.mb_x)
        return self.preparation.for_training(
            self.mb_x, self.mb_sample_ids, self.stream_size, pass_number=self._pass_number, updates=self.updates
        )

    def _known_query(self) -> Tensor | None:
        """Features of the stream rows, where they are known and the images of this batch are those of evaluation."""
        fixed = not self.needs.gradient or self.preparation.are_fixed
        if self.known_features is None or not fixed or len(self.mb_x) != self.stream_size:
            return None
        return self.known_features[self.mb_sample_ids.to(self.known_features.device)]

    def _query_of_fixed(self, images: Tensor) -> Tensor | None:
        """Query of the stream rows, computed once for all updates of the batch where their pixels stay the same."""
        if not self.preparation.are_fixed or len(images) != self.stream_size:
            return None
        if self._fixed_query is None:
            self._fixed_query = self.model.query(images)
        return self._fixed_query

    # --- prediction -------------------------------------------------------------------------------------------------

    def _predict(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        with self._autocast():
            return self._masked(self.model(images, query))

    def _masked(self, logits: Tensor) -> Tensor:
        return mask_logits(logits.float(), self.exposed, FINITE_FILL) if self.eval_mask == "exposed" else logits.float()

    @torch.no_grad()
    def _predict_without_update(self) -> None:
        """Give Avalanche's mini-batch metrics something to read on a batch that gets no update."""
        was_training = self.model.training
        self.model.eval()
        self.mb_output = self._predict(self.preparation.for_evaluation(self.mb_x))
        self.loss = self._evaluation_loss()
        self.model.train(was_training)

    def _evaluation_loss(self) -> Tensor:
        return label_kind(self.mb_y).evaluation_loss(self.mb_output, self.mb_y, self.exposed)

    def _autocast(self) -> AbstractContextManager:
        dtype = AUTOCAST[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    # --- Avalanche's template ---------------------------------------------------------------------------------------

    def _before_training_exp(self, **kwargs: Any) -> None:
        check_experience_labels(self.experience, self.num_classes, type(self).__name__, self.needs)
        announced = getattr(self.experience, "classes_in_this_experience", None)
        check_mask_fits(self.train_mask, announced, self.exposed)
        classes = None if announced is None else torch.tensor(sorted(announced), dtype=torch.int64)
        self.classes.begin_session(classes)
        self.model.begin_session(task_classes(self.experience, self.exposed))
        if self.optimizer is not None:
            trained = [tensor for _, tensor in self.model.named_trainables()]
            self.optimizer = self.optimization.begin_session(self.optimizer, trained, is_first=self.updates == 0)
        check_optimizer(self.optimizer, self.model)
        self.place.experience += 1
        super()._before_training_exp(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        if self.needs.boundaries != "none":
            self.model.end_session(self._session_images)
        super()._after_training_exp(**kwargs)

    @torch.no_grad()
    def _session_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the current session in the order of the plan, as evaluation prepares its images."""
        loader = DataLoader(
            self.adapted_dataset,
            batch_size=self.eval_mb_size,
            collate_fn=getattr(self.adapted_dataset, "collate_fn", None),
            generator=torch.Generator().manual_seed(0),
        )
        for images, targets, *_ in loader:
            yield self.preparation.for_evaluation(images.to(self.device)), targets.to(self.device)

    def _after_training_epoch(self, **kwargs: Any) -> None:
        self.optimization.end_epoch()
        super()._after_training_epoch(**kwargs)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Nothing to do: the optimizer holds what the method trains, decided at the start of each experience."""

    def model_adaptation(self, model: torch.nn.Module | None = None) -> torch.nn.Module:
        """The model as it is: heads have all columns from the start, and masks decide which compete."""
        return self.model if model is None else model

    def make_optimizer(self, **kwargs: Any) -> None:
        """Keep the optimizer; Avalanche would rebuild it over every tensor, the frozen backbone included."""

    def make_train_dataloader(self, num_workers: int = 0, shuffle: bool = False, **kwargs: Any) -> None:
        """A loader in exactly the order of the experience, or in the seeded one of each epoch.

        Raises:
            StrategyError: `shuffle=True`, or several task labels in the experience.
        """
        if shuffle:
            raise StrategyError("train(shuffle=True): the stream has a planned order; call train(experience)")
        labels = set(getattr(self.experience, "task_labels", None) or [0])
        if len(labels) > 1:
            raise StrategyError(f"the experience carries task labels {sorted(labels)}; a stream may have one at most")
        self._order = EpochOrder(len(self.adapted_dataset), self._shuffle_seed, self._order.epoch)
        self._own_loader = self.dataloader = DataLoader(
            self.adapted_dataset,
            batch_size=self.train_mb_size,
            sampler=self._order,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
            collate_fn=getattr(self.adapted_dataset, "collate_fn", None),
            generator=self._loader_generator,
        )

    def _sample_ids_of_experience(self) -> Tensor:
        """Data-set indices in stream order; stream positions where the data set does not carry them."""
        ids = getattr(self.adapted_dataset, "sample_ids", None)
        if ids is None:
            start = self.samples_seen - self.place.position
            return torch.arange(start, start + len(self.adapted_dataset))
        return torch.as_tensor(list(ids), dtype=torch.int64)
