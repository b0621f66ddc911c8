"""Training of any plan that can be differentiated: parameters, optimizers, schedules, data, snapshots and the loop."""

from pumice.train.loop import Fit, History, Trainer
from pumice.train.parameters import Parameters

__all__ = ["Fit", "History", "Parameters", "Trainer"]
