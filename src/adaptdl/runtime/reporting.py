"""``tune.report``, ``tune.get_checkpoint`` and ``tune.get_context`` inside a replica.

Tune finds its session in one module variable. A replica is no Tune trial, so it puts an object there that answers what
these functions ask and passes results to the elastic session.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train._internal.session as train_session
from ray.tune import Checkpoint
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.result import RESULT_DUPLICATE

from adaptdl.errors import UsageError
from adaptdl.runtime.messages import ReplicaSpec

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["ReportingSession", "installed", "read_files", "write_files"]

_PREFIX = "adaptdl-checkpoint-"


class ReportingSession:
    """What Tune's functions need of a session, for one replica.

    Args:
        session: where results go.
        spec: the replica's.
        files: the user's own checkpoint, which the function goes on from.
    """

    world_rank = None
    world_size = None
    local_rank = None
    local_world_size = None
    node_rank = None
    metadata = None
    dataset_shard = None
    run_id = None

    def __init__(self, session: ElasticSession, spec: ReplicaSpec, files: Mapping[str, bytes] | None) -> None:
        self._session = session
        self.trial_id = spec.job.job_id
        self.trial_name = spec.job.name
        self.experiment_name = spec.job.experiment
        self.trial_resources = PlacementGroupFactory([dict(spec.resources)])
        self.trial_dir = spec.job.directory or os.getcwd()
        self._files = files
        self._loaded: Checkpoint | None = None
        self._directory: Path | None = None

    @property
    def loaded_checkpoint(self) -> Any:
        """The user's last checkpoint. Its files are written when it is asked for, and stay until the function ends or there is
        a newer one."""
        if self._files and self._loaded is None:
            self.close()
            self._directory = _make_directory(self.trial_id)
            write_files(self._files, self._directory)
            self._loaded = Checkpoint.from_directory(str(self._directory))  # type: ignore[assignment]
        return self._loaded

    def close(self) -> None:
        """Removes what was written."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def report(self, metrics: dict[str, Any], checkpoint: Any = None, **_: Any) -> None:
        """One result. Only rank 0's goes on; on other replicas this does nothing.

        Raises:
            UsageError: the metrics are no dict, or hold tensors.
        """
        if not isinstance(metrics, dict):
            raise UsageError(f'tune.report takes a dict such as {{"mean_accuracy": acc}}, but got {metrics!r}')
        if RESULT_DUPLICATE in metrics:  # Tune's own sign for the end of a function; the outcome says that here
            return
        _refuse_tensors(metrics)
        files = None if checkpoint is None else read_files(checkpoint)
        if files is not None:
            self._files, self._loaded = files, None
        self._session.report(dict(metrics), files)


@contextlib.contextmanager
def installed(session: ReportingSession) -> Iterator[None]:
    """While it lasts, `session` is Tune's session of this process; then it is closed."""
    before = train_session._session
    train_session._session = session  # type: ignore[assignment]
    try:
        yield
    finally:
        train_session._session = before
        session.close()


def _refuse_tensors(metrics: dict[str, Any]) -> None:
    if "torch" not in sys.modules:
        return
    from ray.air._internal.torch_utils import contains_tensor

    if contains_tensor(metrics):
        names = [name for name, value in metrics.items() if contains_tensor(value)]
        raise UsageError(f"metrics must be plain numbers, but {names} hold tensors of torch: report `value.item()`")


def read_files(checkpoint: Any) -> dict[str, bytes]:
    """The files of a checkpoint: path relative to its directory → content."""
    with checkpoint.as_directory() as directory:
        root = Path(directory)
        return {
            path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
        }


def write_files(files: Mapping[str, bytes], directory: Path) -> None:
    """Writes what `read_files` gave."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _make_directory(trial_id: str) -> Path:
    """A directory of this process. Those that processes which were killed have left of the same trial are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{glob.escape(trial_id)}-*-*"):
        pid = left.name.split("-")[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{trial_id}-{os.getpid()}-"))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
