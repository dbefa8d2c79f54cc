"""Training side of AdaptDL: loops, data and models that follow their replicas. Works alone, under torchrun, and on Ray."""

from adaptdl.torch.accumulator import Accumulator
from adaptdl.torch.ambient import current_session, open_session, report
from adaptdl.torch.data_parallel import AdaptiveDataParallel
from adaptdl.torch.epoch import current_epoch, finished_epochs, remaining_epochs_until
from adaptdl.torch.loader import AdaptiveDataLoader
from adaptdl.torch.registry import State
from adaptdl.torch.sampler import ElasticSampler
from adaptdl.torch.scaling_rules import AdaScale, LEGWScale, LinearScale, ScalingRule, SqrtScale
from adaptdl.torch.session import ElasticSession
from adaptdl.torch.tuning import Batch

__all__ = [
    "Accumulator",
    "AdaScale",
    "AdaptiveDataLoader",
    "AdaptiveDataParallel",
    "Batch",
    "ElasticSampler",
    "ElasticSession",
    "LEGWScale",
    "LinearScale",
    "ScalingRule",
    "SqrtScale",
    "State",
    "current_epoch",
    "current_session",
    "finished_epochs",
    "open_session",
    "remaining_epochs_until",
    "report",
]
