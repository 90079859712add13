"""`execute`: one checked configuration -> one run directory, whatever happens in between."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import avalanche  # noqa: F401 -- before Matplotlib: one line about a home folder that cannot be written is enough
import torch

from cl_prompts.errors import NotFiniteError, UserError
from cl_prompts.evaluation import MultiLabelEvaluator
from cl_prompts.logging import TensorBoardLog, TerminalProgress, print_header, print_summary
from cl_prompts.logging.image_choice import pictured_images
from cl_prompts.metrics.records import Point
from cl_prompts.metrics.tables import Tables
from cl_prompts.runs.backbone_guard import BackboneGuard
from cl_prompts.runs.backbone_rows import backbone_rows
from cl_prompts.runs.build import Data, Learner, check_device
from cl_prompts.runs.checkpoints import CheckpointStore
from cl_prompts.runs.continuing import same_runs, saved_status
from cl_prompts.runs.directory import RunDirectory, RunSummary, Status
from cl_prompts.runs.export import exported
from cl_prompts.runs.failures import INTERRUPTED, SUCCESS, TERMINATED, failure_text, no_news_of_workers
from cl_prompts.runs.features import keep_features
from cl_prompts.runs.manifest import peak_memory_bytes
from cl_prompts.runs.memory_advice import memory_error
from cl_prompts.runs.predictions import write_predictions
from cl_prompts.runs.prepared import manifest_of, prepare
from cl_prompts.runs.saving import Saving, alone_in, content_of, resumed, saved_points
from cl_prompts.runs.schema import RunConfig
from cl_prompts.runs.termination import StopRequest, Terminated, stop_requests
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.multi_label_settings import MultiLabelEvaluationSettings
from scenarios.plans import Plan


def execute(config: RunConfig) -> int:
    """Run one configuration and write its directory.

    Returns:
        Exit code: 0, or 130 after Ctrl-C and 143 after SIGTERM, which leave a summary of what was measured so far.

    Raises:
        UserError: anything a user can put right; the summary then says `failed` and why.
    """
    started = datetime.now().astimezone()
    device = check_device(config.device)
    directory, status = _directory(config, started)
    if status == "finished":
        print(f"{directory.path}: finished already, nothing is left to do")
        return SUCCESS
    with alone_in(directory.path):
        return _execute(config, device, _Record(directory, device, time.perf_counter()), started)


def _directory(config: RunConfig, started: datetime) -> tuple[RunDirectory, str | None]:
    """The folder of the run and, where one is gone on with, what its summary says."""
    if config.resume is not None:
        return RunDirectory(Path(config.resume)), saved_status(Path(config.resume))
    for folder, status in same_runs(config) if config.autoresume else ():
        print(f"autoresume: {folder} has the same keys and is {status}", file=sys.stderr)
        return RunDirectory(folder), status
    return RunDirectory.create(config.output_path, config.name, started, label=config.label), None


def _execute(config: RunConfig, device: torch.device, record: _Record, started: datetime) -> int:
    if device.type == "cuda":
        # Another run of this process, in a sweep, may have needed more.
        torch.cuda.reset_peak_memory_stats(device)
    record.directory.forget_leftovers()
    if not (record.directory.path / "config.yaml").is_file():
        record.directory.write_config(config.to_yaml())
    record.write("running")
    with stop_requests() as request:
        try:
            _run(config, device, record, started, request)
        except KeyboardInterrupt as interrupt:
            record.finish("interrupted")
            print_summary(record.summary("interrupted").to_dict(), record.directory.path, tables=record.tables)
            return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
        except Exception as error:
            with no_news_of_workers():
                known = _explained(error, config, record)
                record.finish("failed", failure_text(known))
            if known is error:
                raise
            raise known from error
    print_summary(record.summary("finished").to_dict(), record.directory.path, tables=record.tables)
    return SUCCESS


def _explained(error: Exception, config: RunConfig, record: _Record) -> Exception:
    """An error with what this run knows about it."""
    if isinstance(error, NotFiniteError):
        with suppress(UserError):
            place = record.directory.write_not_finite(error.details)
            return NotFiniteError(f"{error}; all samples of the batch are in {place}", error.details)
    backbone = None if record.learner is None else record.learner.backbone
    return memory_error(error, config, backbone) or error


class _Record:
    """What a run directory holds while the run goes on: rewritten as a whole at every evaluation."""

    def __init__(self, directory: RunDirectory, device: torch.device, clock: float) -> None:
        self.directory = directory
        self.device = device
        self.clock = clock
        self.seconds_before = 0.0
        self.saving: Saving | None = None
        self.learner: Learner | None = None
        self.data: Data | None = None
        self.tables: Tables | None = None

    def watch(self, learner: Learner, data: Data) -> None:
        """Follow the evaluations of a learner."""
        self.learner, self.data = learner, data
        self.tables = learner.tables
        # Behind a closure: a strategy that looks through its plugins by their attributes must not find the plan.
        learner.evaluation.subscribe(lambda strategy, point: self._on_evaluation(strategy, point))

    def summary(self, status: Status, error: str | None = None) -> RunSummary:
        """What is known by now."""
        measured: dict[str, Any] = {}
        if self.learner is not None and self.data is not None and self.tables is not None:
            strategy, evaluation, plan = self.learner.strategy, self.learner.evaluation, self.data.plan
            sessions = len(plan.sessions)
            measured = {
                "metrics": self.tables.summarise(evaluation.points, evaluation.sessions, sessions_planned=sessions),
                "samples_seen": strategy.samples_seen,
                "samples_planned": len(plan.order) * strategy.train_epochs,
                "sessions_planned": sessions,
                "updates": strategy.updates,
                "trainable_parameters": sum(tensor.numel() for _, tensor in strategy.model.named_trainables()),
                "deviations": strategy.model.settings.deviations(),
            }
        on_gpu = self.device.type == "cuda"
        return RunSummary(
            status=status,
            seconds=self.seconds(),
            saving_seconds=0.0 if self.saving is None else self.saving.seconds_spent,
            peak_memory_bytes=peak_memory_bytes(),
            peak_gpu_memory_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else None,
            error=error,
            **measured,
        )

    def seconds(self) -> float:
        """Wall time of the run, with that before it was interrupted."""
        return self.seconds_before + time.perf_counter() - self.clock

    def write(self, status: Status, error: str | None = None) -> None:
        """Rewrite `summary.json`."""
        self.directory.write_summary(self.summary(status, error))

    def finish(self, status: Status, error: str | None = None) -> None:
        """Write the last state of a run that did not finish; what ended it is the error to report, not this."""
        if not self.directory.path.is_dir():
            return
        with suppress(UserError):
            # An interrupt may have come between a measurement and its row.
            self._write_curves()
        try:
            self.directory.write_last_summary(self.summary(status, error))
        except Exception as failure:
            print(f"warning: {failure_text(failure)}", file=sys.stderr)

    def _on_evaluation(self, strategy: Any, point: Point) -> None:
        self._write_curves()
        usage = strategy.model.prompt_usage()
        # Sessions that are measured later left no counts of their time.
        if usage is not None and point.session is not None and point.samples_seen == strategy.samples_seen:
            self.directory.write_usage(point.session, point.samples_seen, usage.long().tolist())
        self.write("running")

    def _write_curves(self) -> None:
        if self.learner is None or self.data is None or self.tables is None:
            return
        evaluation = self.learner.evaluation
        self.directory.write_curves(self.tables, evaluation.points, evaluation.sessions)
        if evaluation.sessions:
            self.directory.write_class_table(self.tables, evaluation.sessions, self.data.train.class_names)


def _run(config: RunConfig, device: torch.device, record: _Record, started: datetime, request: StopRequest) -> None:
    prepared = prepare(config, device)
    keep_features(config, prepared)
    data, learner, notices = prepared.data, prepared.learner, prepared.notices
    directory, plan, strategy = record.directory, data.plan, learner.strategy
    store = CheckpointStore(directory.checkpoints)
    left, state = resumed(store, config, prepared, lambda text: print_header({}, warnings=[text]))
    previous: list[Point] = []
    if state is None:
        directory.forget_events()
        directory.write_plan(plan)
        directory.write_manifest(manifest_of(config, prepared, started))
    else:
        record.seconds_before = state["seconds"]
        previous = saved_points(state["strategy"])
        notices = [f"going on after {strategy.samples_seen:,} samples", *notices]
    if config.progress == "none":
        # Silence is asked of the progress, not of what makes the results doubtful.
        print_header({}, warnings=[*notices, *plan.warnings])
    else:
        # The plan describes itself with its warnings.
        print_header(header_rows(config, data, learner), warnings=notices)
    record.watch(learner, data)
    with ExitStack() as stack:
        total = len(plan.order) * config.protocol.epochs
        terminal = stack.enter_context(TerminalProgress(total, mode=config.progress, previous=previous))
        observers: list[Any] = [terminal]
        if config.tensorboard:
            every = max(1, total // 100)
            observers.append(
                stack.enter_context(
                    TensorBoardLog(
                        directory.tensorboard,
                        every_samples=every,
                        plan=plan,
                        config_text=config.to_yaml(),
                        class_names=data.train.class_names,
                        resumed_at=strategy.samples_seen if state else None,
                        previous=previous,
                        **_pictures(learner, data),
                    )
                )
            )
        _attach(learner, observers)
        saving = record.saving = Saving(store, config, prepared, request, record.seconds)
        strategy.batch_listeners.append(saving)
        saving.start(strategy.samples_seen)
        guard = BackboneGuard(learner.backbone)
        for experience in left:
            strategy.train(experience, num_workers=config.num_workers)
            guard.look()
        guard.compare()
        request.waits = False
        saving.save(strategy)
        # Inside the block: a curve that cannot be closed is a failed run, not a finished one.
    directory.write_model(exported(strategy, content_of(prepared), config.strategy_name))
    _write_predictions(config, directory, plan, learner)
    record.write("finished")


def _write_predictions(config: RunConfig, directory: RunDirectory, plan: Plan, learner: Learner) -> None:
    evaluator, scenario = learner.evaluation.evaluator, config.scenario
    if not isinstance(evaluator, MultiLabelEvaluator):
        return
    if evaluator.latest is None:
        # The run went on after its last evaluation: what that was computed from is computed again.
        evaluator(learner.strategy.model, learner.strategy.exposed)
    if evaluator.latest is None:
        return
    assert isinstance(plan, MultiLabelPlan)
    assert isinstance(scenario, MultiLabelEvaluationSettings)
    # By the plan itself: a saved one says more than the scenario it is used in.
    returns = bool((plan.session_columns.sum(axis=0) > 1).any())
    final = learner.strategy.model.columns_are_final and not returns
    write_predictions(directory, evaluator.latest, plan, scenario, columns_are_final=final)


def _pictures(learner: Learner, data: Data) -> dict[str, Any]:
    """What the pictures of several labels an image are drawn from; nothing where an image has one."""
    evaluator = learner.evaluation.evaluator
    if not isinstance(evaluator, MultiLabelEvaluator):
        return {}
    return {
        "evaluated": lambda: evaluator.latest,
        "pictured": pictured_images(data.test, learner.eval_transform),
    }


def _attach(learner: Learner, observers: Sequence[Any]) -> None:
    """Let observers see the loop and every evaluation; they come before Avalanche's clock, which has to be last."""
    for observer in observers:
        learner.strategy.plugins.insert(0, observer)
        learner.evaluation.subscribe(observer.on_evaluation)


def header_rows(config: RunConfig, data: Data, learner: Learner) -> dict[str, str | Sequence[str]]:
    """What runs, in lines that fit a terminal of 80 columns; only what has an effect."""
    train, protocol = data.train, config.protocol
    trained = sum(tensor.numel() for _, tensor in learner.strategy.model.named_trainables())
    rows: dict[str, str | Sequence[str]] = {
        **backbone_rows(config.backbone, learner.backbone.identity, data.train),
        "data": f"{train.name}: {len(train):,} train, {len(data.test):,} test images, {train.num_classes} classes",
        "stream": data.plan.describe(),
        "strategy": f"{config.strategy_name}, {trained:,} trainable parameters",
        "protocol": f"{protocol.name}: batches of {protocol.stream_batch}"
        + (
            f", {protocol.epochs} epochs{' in fresh orders' if protocol.shuffle else ''}" if protocol.epochs > 1 else ""
        ),
    }
    if learner.strategy.needs.gradient:
        rows["updates"] = f"{protocol.updates_per_batch:g} for each batch, augmentation {protocol.augmentation}"
        rate = f"lr {protocol.lr:g}" + (" with a cosine to 0" if protocol.lr_schedule == "cosine" else "")
        mask = "visible labels" if config.scenario.multi_label else f"mask {protocol.train_mask}"
        rows["optimizer"] = f"{protocol.optimizer}, {rate}, one a {protocol.optimizer_scope}, {mask}"
    if protocol.memory_size:
        rows["memory"] = f"{protocol.memory_size} past samples, {protocol.replay_batch} added to each batch"
    every = f"every {protocol.eval_every} samples and " if protocol.eval_every else ""
    what = (
        f"on images: {config.scenario.eval_images}"
        if isinstance(config.scenario, MultiLabelEvaluationSettings)
        else f"mask {protocol.eval_mask}"
    )
    rows["evaluated"] = f"{every}at session ends, {what}"
    rows["device"] = f"{config.device}, {torch.get_num_threads()} threads, {protocol.precision}"
    return rows
