"""What a run tells its model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixout_export.card.document import read_card, write_card
from mixout_export.card.facts import TrainingFacts
from mixout_export.card.results import Evaluation
from mixout_export.card.steps import strategy_name, trained_card
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata
from mixout_export.files.layout import LAYOUT
from mixout_export.stages.train.data import DataOptions, TrainingData
from mixout_export.training.loop import Outcome
from mixout_export.training.options import TrainOptions


@dataclass(frozen=True)
class RunDescription:
    """A run that has ended.

    Attributes:
        metadata: The trained checkpoint's mixout metadata.
        options: Settings of the run.
        sources: Where its data lie.
        data: The data.
        outcome: What came of it.
    """

    metadata: MixoutMetadata
    options: TrainOptions
    sources: DataOptions
    data: TrainingData
    outcome: Outcome

    def write_card(self, prepared: Path, folder: Path) -> None:
        """Write the trained checkpoint's card.

        Args:
            prepared: The checkpoint that the run started from.
            folder: Where to write it.
        """
        facts = TrainingFacts(
            strategy=self._strategy(),
            settings=self._settings(),
            evaluation=self._evaluation(),
            dataset=self._hub_dataset()[0],
            curves=LAYOUT.curves,
        )
        card = trained_card(self.metadata, facts, read_card(prepared / LAYOUT.card))
        write_card(card, folder / LAYOUT.card)

    def _strategy(self) -> str:
        options = self.options
        return strategy_name(
            self.metadata, decay_toward=options.decay_toward, weight_decay=options.weight_decay
        )

    def _hub_dataset(self) -> tuple[str | None, str | None]:
        """Return the data set's name on the hub and its configuration; None for none."""
        name = self.sources.dataset
        if name is None or Path(name).exists():
            return None, None
        path, _, configuration = name.partition(":")
        return path, configuration or None

    def _evaluation(self) -> Evaluation | None:
        """Return the result's metrics, with the name of what they were measured on."""
        if not self.outcome.metrics:
            return None
        hub_id, configuration = self._hub_dataset()
        file = self.sources.eval_file
        _, _, split = self.data.evaluated_on.rpartition("[")
        return Evaluation(
            data=self.data.evaluated_on if file is None else file.name,
            metrics=self.outcome.metrics,
            before=self.outcome.metrics_before,
            hub_id=hub_id,
            configuration=configuration,
            split=split.rstrip("]") if hub_id else None,
        )

    def _settings(self) -> dict[str, Any]:
        base, options, outcome = self.metadata.base, self.options, self.outcome
        file, evaluation = self.sources.train_file, self._evaluation()
        return {
            "base": f"{base.name} (SHA-256 {base.sha256})",
            "strategy": self._strategy(),
            "head": self.metadata.head.treatment,
            "training data": self.sources.dataset if file is None else file.name,
            "training examples": self.data.rows,
            "evaluation data": "none" if evaluation is None else evaluation.data,
            "steps": f"{outcome.steps}, the model is that of step {outcome.chosen_step}",
            "batch size": options.batch_size * options.gradient_accumulation,
            "peak learning rate": f"{options.lr:g}",
            "schedule": f"{options.scheduler}, {options.warmup_ratio:.0%} of the steps are warm-up",
            "maximum length": f"{options.max_length} tokens",
            "precision": options.precision,
            "seed": options.seed,
        }
