"""The training loop, built on accelerate."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from mixout_export.adamw import MixoutAdamW
from mixout_export.checkpoint.loading import load_weights
from mixout_export.data.examples import Examples
from mixout_export.data.metrics import is_better
from mixout_export.errors import ArgumentError, TrainingError, TrainingStoppedError
from mixout_export.mask_schedule import MaskSchedule
from mixout_export.surgery.forward_watch import ForwardWatch
from mixout_export.training.attention import step_attention
from mixout_export.training.batches import StepBatches, StepPlan
from mixout_export.training.criterion import Criterion
from mixout_export.training.device import to_device
from mixout_export.training.estimate import estimate_run
from mixout_export.training.evaluation import evaluate
from mixout_export.training.optimizer import (
    build_optimizer,
    build_pretrained_decay,
    build_scheduler,
    ceil_of,
    peak_rate,
)
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import LABELS, MetricsLog, Observer, Progress
from mixout_export.training.snapshots import Snapshots, TrainerState

logger = logging.getLogger(__name__)

#: Labels up to which the figures of each are recorded.
_MOST_LABELS = 100


@dataclass(eq=False)
class Finetuning:
    """The training steps of one run, with evaluations and checkpoints in between.

    Attributes:
        accelerator: The device, its precision, and the other processes.
        model: A model with mixout, its weights in float32.
        train: Training examples.
        evaluation: Evaluation examples, None without.
        options: The run's options.
        metric: Name of the metric that ranks checkpoints.
        criterion: Computes the training loss; None takes the model's own.
        fresh: Names of the parameters that did not come from the base.
        pretrained: Parameter name → pretrained value, empty unless weights decay toward them.
        snapshots: Where checkpoints are saved.
        log: Where losses and metrics are recorded.
        write_model: Writes the current model as a mixout checkpoint into a folder.
        observer: Is told how the run goes.
        must_stop: Called after each step; True saves a checkpoint and stops the run.
        progress: How far the run is.
    """

    accelerator: Accelerator
    model: PreTrainedModel
    train: Examples
    evaluation: Examples | None
    options: TrainOptions
    metric: str
    criterion: Criterion | None
    fresh: frozenset[str]
    pretrained: Mapping[str, Tensor]
    snapshots: Snapshots
    log: MetricsLog
    write_model: Callable[[Path], object]
    observer: Observer
    must_stop: Callable[[], bool]
    progress: Progress = field(default_factory=Progress, init=False)

    def __post_init__(self) -> None:
        accelerator, options, fresh = self.accelerator, self.options, self.fresh
        if options.optimizer_scope == "active" and accelerator.num_processes > 1:
            raise ArgumentError(
                "optimizer-scope: got active with several processes, whose masks differ; use all, "
                "or one process"
            )
        self.plan = StepPlan(
            self.train.lengths,
            self.criterion.targets(self.train) if self.criterion else self.train.targets,
            options,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.steps = options.max_steps or ceil_of(options.epochs * self.plan.steps_per_epoch)
        self.model = self.model.to(accelerator.device)
        optimizer = build_optimizer(self.model, options, fresh=fresh)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.clip = _clipping(accelerator, optimizer, self.parameters, options)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.scheduler = build_scheduler(optimizer, options, steps=self.steps)
        self.decay = build_pretrained_decay(self.model, self.pretrained, options, fresh=fresh)
        self.masks = None
        if options.resample_every is not None:
            self.masks = MaskSchedule(
                self.model,
                resample_every=options.resample_every,
                anchor_decay=options.anchor_decay,
            )
        self.state = TrainerState(accelerator, self.optimizer, self.scheduler, self.masks)

    def run(self) -> bool:
        """Train to the end, from the newest checkpoint if there is one.

        Returns:
            Whether early stopping ended the run.

        Raises:
            TrainingError: A loss or a gradient is not finite.
            TrainingStoppedError: `must_stop` returned True.
        """
        options = self.options
        self._resume()
        progress = self.progress
        self.observer.started(steps=self.steps, done=progress.step, examples=len(self.train))
        if progress.step == 0:
            torch.manual_seed(options.seed + self.accelerator.process_index)
            self._evaluate()
        self._estimate()
        self.wrapped.train()
        watch: ForwardWatch | None = ForwardWatch(self.model)
        for batches in self.plan.steps(progress.step, self.steps):
            if self._is_stale():
                break
            self._step(batches)
            progress.step += 1
            if watch is not None:
                _warn_of_bypassed(watch.stop())
                watch = None
            last = progress.step == self.steps
            epoch_ends = last or batches.ends_epoch
            self._report(batches, last=last)
            if _is_due(progress.step, options.eval_every, epoch_ends, last):
                self._evaluate()
            ends = last or self._is_stale()
            asked = not ends and self._is_asked_to_stop()
            if _is_due(progress.step, options.save_every, epoch_ends, last) or ends or asked:
                self._save()
            if asked:
                raise TrainingStoppedError(f"stopped after step {progress.step} of {self.steps}")
        return self._is_stale() and progress.step < self.steps

    def _estimate(self) -> None:
        """Tell an observer that asks for it how long the run will take and what memory it needs.

        A model that several processes share cannot be run by one of them.
        """
        left = self.steps - self.progress.step
        if not self.observer.wants_estimate or self.accelerator.num_processes > 1 or left < 1:
            return
        found = estimate_run(
            self.accelerator,
            self.model,
            self.train,
            self.evaluation,
            self.options,
            steps=left,
            evaluations=ceil_of(left / (self.options.eval_every or self.plan.steps_per_epoch)),
        )
        self.observer.estimated(seconds=found.seconds, memory=found.memory)

    def _step(self, batches: StepBatches) -> None:
        """Do one training step from one or more batches.

        Each batch has masks of its own, unless these are held for whole steps.

        A batch's loss is a mean over its targets, and batches differ in how many they have. Each
        loss is weighted accordingly, so that the step equals that of a single large batch.
        """
        if self.masks is not None:
            self.masks.step()
        total: Tensor | float = 0.0
        last = len(batches.batches) - 1
        for position, indices in enumerate(batches.batches):
            count = batches.targets[position]
            batch = to_device(
                self.train.collate(indices, epoch=batches.epoch), self.accelerator.device
            )
            synchronizes = (
                contextlib.nullcontext()
                if position == last
                else self.accelerator.no_sync(self.wrapped)
            )
            half = self.options.precision != "fp32"
            with synchronizes, step_attention(batch, self.accelerator.device, half=half):
                loss = self._loss(batch)
                self.accelerator.backward(loss * (count / batches.mean_targets))
            total = total + loss.detach() * (count / sum(batches.targets))
        norm = self.clip(self.options.max_grad_norm or math.inf)
        overflow = self.options.precision == "fp16" and not math.isfinite(float(norm or 0.0))
        if not overflow:  # else the scaler skips this step and lowers its scale
            self.decay.apply(peak_rate(self.scheduler, self.options))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.progress.window.add(
            self.progress.step + 1, total, 0.0 if norm is None or overflow else norm
        )

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the training loss of a batch, a mean over its targets."""
        if self.criterion is None:
            return self.wrapped(**batch).loss  # type: ignore[no-any-return]
        labels = batch.pop("labels")
        return self.criterion(self.wrapped(**batch).logits, labels)

    def _report(self, batches: StepBatches, *, last: bool) -> None:
        """Tell the observer of a step, and record the mean loss every `log_every` steps."""
        progress, window = self.progress, self.progress.window
        due = last or progress.step % self.options.log_every == 0
        loss = None
        if due or self.accelerator.device.type == "cpu":
            window.check(self._advice())
            loss = window.losses[-1]
        examples = sum(map(len, batches.batches)) * self.accelerator.num_processes
        self.observer.stepped(step=progress.step, examples=examples, loss=loss)
        if due:
            means = window.summary(self.options.max_grad_norm)
            self._record({**means, "lr": peak_rate(self.scheduler, self.options)})

    def _record(self, values: dict[str, Any]) -> None:
        """Add a record to `metrics.jsonl` and to the tracker."""
        progress = self.progress
        progress.records += 1
        if self.accelerator.is_main_process:
            epoch = round(progress.step / self.plan.steps_per_epoch, 4)
            self.log.append({"step": progress.step, "epoch": epoch, **values})
        self.accelerator.log(
            {k: v for k, v in values.items() if isinstance(v, (int, float))}, step=progress.step
        )

    def _evaluate(self) -> None:
        """Evaluate if there are evaluation data, and keep the model if it is the best so far.

        Raises:
            TrainingError: The loss is not finite. Such a model must not become a checkpoint.
        """
        if self.evaluation is None:
            return
        progress = self.progress
        found = evaluate(
            self.accelerator, self.model, self.evaluation, batch_size=self.options.batch_size
        )
        metrics = found.metrics
        if not math.isfinite(metrics["loss"]):
            raise TrainingError(
                f"the evaluation loss became {metrics['loss']} at step {progress.step}; "
                f"{self._advice()}"
            )
        record: dict[str, Any] = {f"eval_{name}": value for name, value in metrics.items()}
        if found.labels is not None and len(found.labels.labels) <= _MOST_LABELS:
            record[LABELS] = asdict(found.labels)
        self._record(record)
        self.observer.evaluated(step=progress.step, metrics=metrics)
        if progress.step == 0:
            return  # the untrained model is never the best
        value = metrics[self.metric]
        if is_better(self.metric, value, progress.best_value):
            progress.best_step, progress.best_value, progress.stale = progress.step, value, 0
            if self.options.select != "last" and self.accelerator.is_main_process:
                self.snapshots.write_best(self.write_model)
        else:
            progress.stale += 1
        self.accelerator.wait_for_everyone()

    def _is_stale(self) -> bool:
        """Return whether early stopping ends the run now."""
        return self.options.early_stopping and self.progress.stale >= self.options.patience

    def _is_asked_to_stop(self) -> bool:
        """Return whether to stop now, the same answer in all processes.

        Agreeing makes processes wait for each other, so several processes agree only at the steps
        whose loss is recorded.
        """
        if self.accelerator.num_processes == 1:
            return self.must_stop()
        if self.progress.step % self.options.log_every:
            return False
        return any(gather_object([self.must_stop()]))

    def _save(self) -> None:
        """Save a checkpoint."""
        progress = self.progress
        progress.window.check(self._advice())
        state = {"progress": asdict(progress), **self.state.take()}
        if self.accelerator.is_main_process:
            path = self.snapshots.write(progress.step, self.write_model, state)
            self.observer.saved(step=progress.step, path=path)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Restore the newest checkpoint, if there is one."""
        found = self.snapshots.latest()
        if found is not None:
            path, state = found
            if self.accelerator.is_main_process:
                self.snapshots.recover()
            load_weights(self.model, path)
            self.state.restore(state)
            self.progress = Progress.restored(state["progress"])
        if self.accelerator.is_main_process:
            self.log.truncate(self.progress.records)

    def _advice(self) -> str:
        """Return what to do about a loss that is not finite, the end of an error message."""
        saved = self.snapshots.paths()
        kept = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved"
        return f"{kept}; lower --lr, or use --precision fp32 if you used another one"


def _clipping(
    accelerator: Accelerator,
    optimizer: MixoutAdamW,
    parameters: list[nn.Parameter],
    options: TrainOptions,
) -> Callable[[float], Tensor | None]:
    """Return what clips the gradients to a norm and returns the norm they had.

    In fp16 it is accelerate, which knows the loss scaler; all gradients are dense then.
    """
    if options.precision == "fp16":
        return lambda limit: accelerator.clip_grad_norm_(parameters, limit)
    return optimizer.clip_grad_norm_


def _warn_of_bypassed(layers: tuple[str, ...]) -> None:
    """Warn of mixed layers whose forward did not run in the first step."""
    if layers:
        logger.warning(
            "mixout has no effect in %d layers because their forward never ran, for example %s; "
            "exclude them with --exclude-modules",
            len(layers),
            layers[0],
        )


def _is_due(step: int, every: int | None, epoch_ends: bool, last: bool) -> bool:
    """Return whether something is done after a step: every so many, or after each epoch."""
    if every is None:
        return epoch_ends
    return last or step % every == 0
