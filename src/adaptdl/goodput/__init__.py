"""What training is worth: throughput, statistical efficiency, their fit, the best batch size. numpy and scipy only."""

from adaptdl.goodput.batch_size import BatchSizeBounds, BatchSizeChoice, GoodputModel
from adaptdl.goodput.efficiency import GradParams, efficiency, gain, noise_scale
from adaptdl.goodput.fit import Fit, Observation, Profile, ProfileKey, fit_perf_params
from adaptdl.goodput.report import JobReport
from adaptdl.goodput.throughput import PerfParams, grad_time_s, step_time_s, sync_time_s, throughput

__all__ = [
    "BatchSizeBounds",
    "BatchSizeChoice",
    "Fit",
    "GoodputModel",
    "GradParams",
    "JobReport",
    "Observation",
    "PerfParams",
    "Profile",
    "ProfileKey",
    "efficiency",
    "fit_perf_params",
    "gain",
    "grad_time_s",
    "noise_scale",
    "step_time_s",
    "sync_time_s",
    "throughput",
]
