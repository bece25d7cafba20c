"""The training loop, on top of accelerate."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.checkpoint.model import load_weights
from mixout_export.data.examples import Examples
from mixout_export.data.metrics import is_better
from mixout_export.errors import TrainingError, TrainingStoppedError
from mixout_export.fast_linear import from_host
from mixout_export.surgery.forward_watch import ForwardWatch
from mixout_export.training.batches import (
    evaluation_batches,
    grouped,
    share_of,
    training_batches,
)
from mixout_export.training.optimizer import (
    PretrainedDecay,
    build_optimizer,
    build_pretrained_decay,
    build_scheduler,
    ceil_of,
)
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import LossWindow, MetricsLog, Observer
from mixout_export.training.snapshots import Snapshots, restore_rng, rng_state

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is: everything that a resumed run must know.

    Attributes:
        step: Updates done.
        best_step: Update of the best evaluation, None before there is one.
        best_value: Its metric.
        stale: Evaluations since the best one.
        records: Records written to `metrics.jsonl`.
        window: Losses since the last record.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0
    records: int = 0
    window: LossWindow = field(default_factory=LossWindow)

    def state(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**vars(self), "window": self.window.state()}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Progress":
        """Rebuild it from `state()`."""
        return cls(**{**state, "window": LossWindow(**state["window"])})


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        steps: Updates done.
        chosen_step: Update whose model is the result.
        metrics: The chosen model's evaluation, empty without evaluation data.
        metrics_before: The untrained model's evaluation, empty without evaluation data.
        stopped_early: Whether early stopping ended it.
    """

    steps: int
    chosen_step: int
    metrics: dict[str, float]
    metrics_before: dict[str, float]
    stopped_early: bool


class Finetuning:
    """One run: a model, its data and its settings.

    Args:
        accelerator: The device, its precision and its fellow processes.
        model: A model with mixout, its weights in float32.
        train: Training examples.
        evaluation: Evaluation examples, None without.
        metric: Name of the metric that ranks checkpoints.
        options: Settings.
        fresh: Names of the parameters that did not come from the base.
        pretrained: Parameter name → pretrained value, where decay toward them needs it.
        snapshots: Where checkpoints go.
        log: Where records go.
        write_model: Writes the mixout checkpoint of the present model into a folder.
        observer: Who watches.
        must_stop: Asked after each step whether to save a checkpoint and stop.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        train: Examples,
        evaluation: Examples | None,
        metric: str,
        options: TrainOptions,
        *,
        fresh: frozenset[str],
        pretrained: dict[str, Tensor],
        snapshots: Snapshots,
        log: MetricsLog,
        write_model: Callable[[Path], None],
        observer: Observer,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.accelerator, self.options, self.metric = accelerator, options, metric
        self.train, self.evaluation, self.targets = train, evaluation, train.targets
        self.snapshots, self.log, self.write_model = snapshots, log, write_model
        self.observer, self.must_stop = observer, must_stop
        toward_pretrained = options.decay_toward == "pretrained"
        self.model = model.to(accelerator.device)
        optimizer = build_optimizer(
            self.model, options, fresh=fresh, toward_pretrained=toward_pretrained
        )
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.updates_per_epoch = math.ceil(
            len(self._epoch_batches(0)[0]) / options.gradient_accumulation
        )
        self.updates = options.max_steps or ceil_of(options.epochs * self.updates_per_epoch)
        self.scheduler = build_scheduler(optimizer, options, updates=self.updates)
        self.decay = (
            build_pretrained_decay(self.model, pretrained, rate=options.weight_decay, fresh=fresh)
            if toward_pretrained
            else PretrainedDecay([], [], 0.0)
        )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.progress = Progress()
        self._warned = False

    def run(self) -> Outcome:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            TrainingError: The loss or a gradient is not finite.
            TrainingStoppedError: `must_stop` said so.
        """
        options, progress = self.options, self._resume()
        self.observer.started(updates=self.updates, done=progress.step, examples=len(self.train))
        if progress.step == 0:
            torch.manual_seed(options.seed + self.accelerator.process_index)
            self._evaluate_and_record()
        stopped = self._is_stale()
        self.wrapped.train()
        watch = ForwardWatch(self.model)
        while progress.step < self.updates and not stopped:
            epoch, done = divmod(progress.step, self.updates_per_epoch)
            for index, (group, targets) in enumerate(self._epoch_updates(epoch)):
                if index < done:
                    continue  # done before the run was resumed
                self._update(group, epoch=epoch, targets=targets)
                progress.step += 1
                self._warn_of_bypassed(watch)
                last = progress.step == self.updates
                epoch_ends = last or index + 1 == self.updates_per_epoch
                self._report(sum(len(batch) for batch in group), last=last)
                if _is_due(progress.step, options.eval_every, epoch_ends, last):
                    self._evaluate_and_record()
                    stopped = self._is_stale()
                asked = not (last or stopped) and self._is_asked_to_stop()
                if _is_due(progress.step, options.save_every, epoch_ends, last) or stopped or asked:
                    self._save()
                if asked:
                    raise TrainingStoppedError(
                        f"stopped after step {progress.step} of {self.updates}"
                    )
                if last or stopped:
                    break
        self.observer.finished()
        return self._outcome(stopped=stopped and progress.step < self.updates)

    def _is_asked_to_stop(self) -> bool:
        """Ask whether to stop, in all processes together.

        Several processes must agree on the step, which costs them a wait: they ask each other only
        at the steps whose loss is recorded.
        """
        if self.accelerator.num_processes == 1:
            return self.must_stop()
        if self.progress.step % self.options.log_every:
            return False
        return any(gather_object([self.must_stop()]))

    def _epoch_batches(self, epoch: int) -> list[list[list[int]]]:
        """Return an epoch's batches of each process."""
        batches = training_batches(
            self.train.lengths,
            batch_size=self.options.batch_size,
            seed=self.options.seed,
            epoch=epoch,
        )
        ranks = self.accelerator.num_processes
        return [share_of(batches, rank=rank, ranks=ranks) for rank in range(ranks)]

    def _epoch_updates(self, epoch: int) -> Iterator[tuple[list[list[int]], float]]:
        """Yield the batches of each update, and the targets of a process's batches on average."""
        shares = self._epoch_batches(epoch)
        size = self.options.gradient_accumulation
        for groups in zip(*(grouped(share, size) for share in shares), strict=True):
            counts = [self._count_targets(batch) for group in groups for batch in group]
            yield groups[self.accelerator.process_index], sum(counts) / len(shares)

    def _count_targets(self, indices: list[int]) -> int:
        """Return of how many terms a batch's loss is the mean."""
        return int(self.targets[indices].sum())

    def _update(self, group: list[list[int]], *, epoch: int, targets: float) -> None:
        """Do one update from one or more batches, each with masks of its own.

        Batches count by their targets, which padding and what is not to be predicted are not, so
        that the update is the one of a single large batch.
        """
        counts = [self._count_targets(indices) for indices in group]
        total: Tensor | float = 0.0
        for position, (indices, count) in enumerate(zip(group, counts, strict=True)):
            batch = self._to_device(self.train.collate(indices, epoch=epoch))
            synchronised = position + 1 == len(group)
            context = (
                contextlib.nullcontext() if synchronised else self.accelerator.no_sync(self.wrapped)
            )
            with context:
                loss = self.wrapped(**batch).loss
                self.accelerator.backward(loss * (count / targets))
            total = total + loss.detach() * (count / sum(counts))
        limit = self.options.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        overflow = self.options.precision == "fp16" and not math.isfinite(float(norm))
        if not overflow:  # the scaler skips such an update and lowers its scale
            self.decay.apply(float(self.scheduler.get_last_lr()[0]))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.progress.window.add(
            self.progress.step + 1, total, 0.0 if norm is None or overflow else norm
        )

    def _warn_of_bypassed(self, watch: ForwardWatch) -> None:
        """Name the mixed layers that the first update did not call."""
        if self._warned:
            return
        self._warned = True
        bypassed = watch.stop()
        if bypassed:
            logger.warning(
                "mixout has no effect in %d layers whose forward never ran, %s first; leave them "
                "out with --exclude-modules",
                len(bypassed),
                bypassed[0],
            )

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.accelerator.device
        return {name: from_host(value, device) for name, value in batch.items()}

    def _advice(self) -> str:
        saved = self.snapshots.paths()
        kept = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved"
        return f"{kept}; lower --lr, or train in fp32 if this was another precision"

    def _report(self, examples: int, *, last: bool) -> None:
        """Tell the observer of an update, and record the mean loss every so often."""
        progress, window = self.progress, self.progress.window
        due = last or progress.step % self.options.log_every == 0
        loss = None
        if due or self.accelerator.device.type == "cpu":
            window.check(self._advice())
            loss = window.losses[-1]
        self.observer.updated(
            step=progress.step,
            examples=examples * self.accelerator.num_processes,
            loss=loss,
        )
        if due:
            self._record(
                {
                    **window.summary(self.options.max_grad_norm),
                    "lr": float(self.scheduler.get_last_lr()[0]),
                }
            )

    def _record(self, values: dict[str, Any]) -> None:
        progress = self.progress
        epoch = round(progress.step / self.updates_per_epoch, 4)
        record = {"step": progress.step, "epoch": epoch, **values}
        progress.records += 1
        if self.accelerator.is_main_process:
            self.log.append(record)
        self.accelerator.log(
            {k: v for k, v in values.items() if isinstance(v, (int, float))}, step=progress.step
        )

    def _is_stale(self) -> bool:
        return self.options.early_stopping and self.progress.stale >= self.options.patience

    @torch.no_grad()
    def _evaluate(self, examples: Examples) -> dict[str, float]:
        """Return loss and metrics over the evaluation examples."""
        self.model.eval()
        batches = share_of(
            evaluation_batches(
                examples.lengths,
                batch_size=examples.evaluation_scale * self.options.batch_size,
            ),
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
        )
        parts = []
        for indices in batches:
            batch = self._to_device(examples.collate(indices))
            with self.accelerator.autocast():
                output = self.model(**batch)
            parts.append((indices, examples.predict(indices, output), float(output.loss)))
        if self.accelerator.num_processes > 1:
            parts = gather_object(parts)
        self.model.train()
        return _metrics(examples, parts)

    def _evaluate_and_record(self) -> None:
        """Evaluate, and keep the model if it is the best so far.

        Raises:
            TrainingError: The loss is not finite, so that this model must not become a checkpoint.
        """
        if self.evaluation is None:
            return
        progress = self.progress
        metrics = self._evaluate(self.evaluation)
        if not math.isfinite(metrics["loss"]):
            raise TrainingError(
                f"the evaluation loss became {metrics['loss']} at step {progress.step}; "
                f"{self._advice()}"
            )
        self._record({f"eval_{name}": value for name, value in metrics.items()})
        self.observer.evaluated(step=progress.step, metrics=metrics)
        if progress.step == 0:
            return
        value = metrics[self.metric]
        if is_better(self.metric, value, progress.best_value):
            progress.best_step, progress.best_value, progress.stale = progress.step, value, 0
            if self.options.select != "last" and self.accelerator.is_main_process:
                self.snapshots.write_best(self.write_model)
        else:
            progress.stale += 1
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        progress = self.progress
        progress.window.check(self._advice())
        generators = gather_object([rng_state(self.accelerator.device)])
        state = {
            "progress": progress.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None
            if self.accelerator.scaler is None
            else self.accelerator.scaler.state_dict(),
            "generators": generators,
        }
        if self.accelerator.is_main_process:
            path = self.snapshots.write(progress.step, self.write_model, state)
            self.observer.saved(step=progress.step, path=path)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> Progress:
        """Take over the newest checkpoint, if there is one, exactly."""
        found = self.snapshots.latest()
        if found is None:
            if self.accelerator.is_main_process:
                self.log.truncate(0)
            return self.progress
        path, state = found
        if self.accelerator.is_main_process:
            self.snapshots.recover()
        load_weights(self.model, path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        generators = state["generators"][self.accelerator.process_index]
        restore_rng(generators, self.accelerator.device)
        self.progress = Progress.restored(state["progress"])
        if self.accelerator.is_main_process:
            self.log.truncate(self.progress.records)
        return self.progress

    def _outcome(self, *, stopped: bool) -> Outcome:
        records = self.log.records()
        chosen = self.progress.step
        if self.options.select != "last" and self.progress.best_step is not None:
            chosen = self.progress.best_step
        return Outcome(
            steps=self.progress.step,
            chosen_step=chosen,
            metrics=_evaluation_at(records, chosen),
            metrics_before=_evaluation_at(records, 0),
            stopped_early=stopped,
        )


def _metrics(
    examples: Examples, parts: list[tuple[list[int], list[Any], float]]
) -> dict[str, float]:
    """Return loss and metrics of batches: their examples, predictions and mean losses."""
    predictions: list[Any] = [None] * len(examples)
    losses: dict[int, float] = {}
    targets = examples.targets
    for indices, predicted, loss in parts:  # batches that two processes did count once
        for index, prediction in zip(indices, predicted, strict=True):
            predictions[index] = prediction
        losses[indices[0]] = loss * int(targets[indices].sum())
    loss = sum(losses.values()) / int(targets.sum())
    return {"loss": loss, **examples.metrics(predictions)}


def _is_due(step: int, every: int | None, epoch_ends: bool, last: bool) -> bool:
    if every is None:
        return epoch_ends
    return last or step % every == 0


def _evaluation_at(records: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Return the evaluation recorded at a step, names without their prefix."""
    for record in records:
        if record["step"] == step and "eval_loss" in record:
            return {
                name.removeprefix("eval_"): math.nan if value is None else value
                for name, value in record.items()
                if name.startswith("eval_")
            }
    return {}
