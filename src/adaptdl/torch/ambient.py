"""The one ambient value: the session that loaders, models and epochs of this context belong to."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from adaptdl.errors import SnapshotError
from adaptdl.plan import Member
from adaptdl.torch.environment import read_launch
from adaptdl.torch.group import Group
from adaptdl.torch.local import LocalHost, interruptible
from adaptdl.torch.session import ElasticSession
from adaptdl.torch.warm_up import warm_up

__all__ = ["current_session", "open_session", "report", "use_session"]

logger = logging.getLogger(__name__)

_SESSION: ContextVar[ElasticSession | None] = ContextVar("adaptdl_session", default=None)


def current_session() -> ElasticSession:
    """The session of this context. If there is none, one is made for a process that nobody launched, or that torchrun
    launched; it is resumed from ``ADAPTDL_CHECKPOINT_DIR`` if that is set."""
    session = _SESSION.get()
    if session is None:
        checkpoint_dir = read_launch().checkpoint_dir
        session = _local_session(checkpoint_dir, 30.0)
        if checkpoint_dir is not None:
            interruptible(session.mailbox).__enter__()
        atexit.register(session.close)  # a process group that is still there when a peer goes aborts the process
        _SESSION.set(session)
    return session


def close_local_session() -> None:
    """Ends the session of this context, if there is one; `current_session` makes a new one."""
    if (session := _SESSION.get()) is not None:
        atexit.unregister(session.close)
        session.close()
        _SESSION.set(None)


def _local_session(checkpoint_dir: str | None, snapshot_interval_s: float) -> ElasticSession:
    launch = read_launch()
    host = LocalHost(checkpoint_dir)
    if launch.under_torchrun:
        warm_up()  # before there is a group that must end in order
        group = Group.from_environment()
    else:
        group = Group.form(None, "local", 0, 1, timeout_s=30.0)
    member = Member(replica_id=f"replica-{launch.rank}", node_id="local")
    try:
        return ElasticSession(
            replica=member,
            host=host,
            snapshot=host.read(),
            snapshot_interval_s=snapshot_interval_s if host.keeps_snapshots else None,
            group=group,
            num_nodes=launch.num_nodes,
        )
    except SnapshotError as error:
        group.close()
        raise SnapshotError(
            f"{host.path} cannot be resumed: {error}; move it away to start from the beginning"
        ) from error


_NO_GRADIENTS_YET = (
    "AdaptDL: if this is about a gradient, there are none between the parts of a step: skip what has `.grad` None, as "
    "torch.nn.utils.clip_grad_norm_ does"
)


@contextmanager
def use_session(session: ElasticSession) -> Iterator[ElasticSession]:
    """Within it `session` is the current one."""
    token = _SESSION.set(session)
    try:
        yield session
    except (AttributeError, TypeError) as error:
        if session.left_between_parts and "NoneType" in str(error):
            error.add_note(_NO_GRADIENTS_YET)
        raise
    finally:
        _SESSION.reset(token)


@contextmanager
def open_session(*, checkpoint_dir: str | None = None, snapshot_interval_s: float = 30.0) -> Iterator[ElasticSession]:
    """A session for a script of its own: one replica, or torchrun's. Within a launched session it changes nothing.

    Args:
        checkpoint_dir: where snapshots are kept (by rank 0; all replicas must see it). If there is one, training goes
            on from it, in mid-epoch. The first Ctrl-C ends training at the next step, with a snapshot. None, and no
            ``ADAPTDL_CHECKPOINT_DIR``: no snapshots.
        snapshot_interval_s: time between two snapshots.

    Raises:
        SnapshotError: the snapshot in the directory cannot be read.
    """
    if (running := _SESSION.get()) is not None:
        yield running
        return
    session = _local_session(checkpoint_dir or read_launch().checkpoint_dir, snapshot_interval_s)
    try:
        with use_session(session):
            if session.snapshot_interval_s is None:
                yield session
            else:
                with interruptible(session.mailbox):
                    yield session
            session.flush_report()
    finally:
        session.close()


def report(metrics: dict[str, Any]) -> None:
    """Reports a result: to Tune on Ray, elsewhere to the log (rank 0, level INFO). Every replica calls it.

    Args:
        metrics: numbers and strings by name.
    """
    current_session().report(metrics)
