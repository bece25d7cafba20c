"""`train`: finetune a prepared checkpoint."""

from mixout_export.stages.train.data import DataOptions
from mixout_export.stages.train.record import TrainResult, recorded_options
from mixout_export.stages.train.run import train_checkpoint
from mixout_export.stages.train.shared_data import SharedData

__all__ = ["DataOptions", "SharedData", "TrainResult", "recorded_options", "train_checkpoint"]
