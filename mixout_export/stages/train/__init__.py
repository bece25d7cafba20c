"""`train`: finetune a prepared checkpoint."""

from mixout_export.stages.train.advice import advice_for, notes_for
from mixout_export.stages.train.data import DataOptions
from mixout_export.stages.train.record import TrainResult, recorded_options
from mixout_export.stages.train.run import train_checkpoint
from mixout_export.stages.train.shared_data import SharedData

__all__ = [
    "DataOptions",
    "SharedData",
    "TrainResult",
    "advice_for",
    "notes_for",
    "recorded_options",
    "train_checkpoint",
]
