"""Training: settings, data, loss, moving average, checkpoints that resume exactly."""

from fastddpm.train.config import TrainConfig
from fastddpm.train.loop import Outcome, Progress, train
from fastddpm.train.trainer import Trainer

__all__ = ["Outcome", "Progress", "TrainConfig", "Trainer", "train"]
