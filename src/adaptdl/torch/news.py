"""What a replica tells of itself: the columns of results, and rank 0's updates for whoever gives it replicas."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from adaptdl.goodput import JobReport, ProfileKey, efficiency
from adaptdl.plan import Switched, Update
from adaptdl.torch.tuning import Batch

if TYPE_CHECKING:
    from adaptdl.torch.reallocation import Pause
    from adaptdl.torch.session import ElasticSession

__all__ = ["metrics", "profile_key", "send_update", "tell_switched"]


def profile_key(session: ElasticSession, batch: Batch) -> ProfileKey:
    """Where a step with `batch` belongs in the profile."""
    return _profile_key(session.num_nodes, session.num_replicas, batch.atomic_batch_size, batch.accum_steps)


@functools.lru_cache
def _profile_key(num_nodes: int, num_replicas: int, atomic_batch_size: int, accum_steps: int) -> ProfileKey:
    return ProfileKey(
        num_nodes=num_nodes, num_replicas=num_replicas, atomic_batch_size=atomic_batch_size, accum_steps=accum_steps
    )


def metrics(session: ElasticSession) -> dict[str, float]:
    """The columns this replica adds to results."""
    values: dict[str, float] = {
        "adaptdl/num_replicas": session.num_replicas,
        "adaptdl/num_nodes": session.num_nodes,
        "adaptdl/progress": session.progress,
        "adaptdl/pause_s": session.pause_total_s,
        "adaptdl/num_skipped_steps": session.num_skipped_steps,
    }
    loader = session.main_loader
    if loader is not None:
        batch, grad_params = loader.batch, session.grad_params
        values["adaptdl/batch_size"] = batch.batch_size
        values["adaptdl/efficiency"] = (
            1.0 if grad_params is None else float(efficiency(grad_params, loader.init_batch_size, batch.batch_size))
        )
        step_time_s = session.tuner.step_time_s(profile_key(session, batch))
        if step_time_s:
            values["adaptdl/goodput"] = batch.batch_size / step_time_s * values["adaptdl/efficiency"]
    return values


def send_update(session: ElasticSession) -> None:
    """From rank 0: how the job stands."""
    session.updated_at = time.monotonic()
    session.tuner.refit(session.background())
    session.host.update(
        Update(
            generation=session.generation, place=session.place(), report=_job_report(session), metrics=metrics(session)
        )
    )


def _job_report(session: ElasticSession) -> JobReport | None:
    loader = session.main_loader
    if loader is None:
        return None
    remaining = None
    if session.total_epochs is not None:
        steps = session.total_epochs * loader.num_samples / loader.init_batch_size
        remaining = max(0.0, steps - session.progress)
    return JobReport(
        bounds=loader.bounds,
        perf_params=session.tuner.perf_params,
        grad_params=session.grad_params,
        max_profiled_replicas=session.tuner.max_profiled_replicas,
        progress=session.progress,
        remaining_progress=remaining,
        pause_s=None,
        batch_size=loader.batch.batch_size,
        num_replicas=session.num_replicas,
    )


def tell_switched(session: ElasticSession, pause: Pause) -> None:
    """A generation goes on with its first batch, after `pause`."""
    session.pause = None
    pause_s = time.monotonic() - pause.since if pause.counts else 0.0
    session.pause_total_s += pause_s
    if session.rank == 0:
        session.host.switched(
            Switched(
                generation=session.generation,
                num_replicas=session.num_replicas,
                num_nodes=session.num_nodes,
                position=session.position,
                steps=session.num_steps,
                pause_s=pause_s,
                dropped=pause.dropped,
            )
        )
        send_update(session)
