"""`train`: a prepared checkpoint becomes a trained one."""

from mixout_export.stages.train.data import DataOptions
from mixout_export.stages.train.run import TrainResult, train_checkpoint

__all__ = ["DataOptions", "TrainResult", "train_checkpoint"]
