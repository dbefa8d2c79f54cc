"""AdaptDL in Ray Tune: the scheduler, and the trainable made of a training function."""

from adaptdl.tune.creator import DistributedTrainableCreator, report
from adaptdl.tune.scheduler import AdaptDLScheduler
from adaptdl.tune.trainable import AdaptDLTrainable

__all__ = ["AdaptDLScheduler", "AdaptDLTrainable", "DistributedTrainableCreator", "report"]
