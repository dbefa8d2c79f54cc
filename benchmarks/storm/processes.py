"""The processes of a benchmark: found, measured, and all ended. By way of ``/proc``, so on Linux."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["adopt_orphans", "descendants", "end_all", "is_alive", "kill", "owned_processes", "rss_bytes", "title"]

_PR_SET_CHILD_SUBREAPER = 36
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_END_S = 10.0
"""How long processes that were killed may take to be gone."""


def adopt_orphans() -> None:
    """From now on processes that this one has started stay its descendants when their parents end.

    Raises:
        OSError: the system does not know how.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "a process that adopts orphans is needed (Linux)")


def descendants(pid: int) -> list[int]:
    """All living processes that `pid` has started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (more := children.get(waiting.pop(), []))
        found += more
    return sorted(found)


def is_alive(pid: int) -> bool:
    """Whether the process is there, and not only its exit status."""
    return (fields := _stat(pid)) is not None and fields[0] != "Z"


def title(pid: int) -> str:
    """How the process calls itself: ``ray::Replica.run`` for instance. Empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def rss_bytes(pid: int) -> int | None:
    """Its resident memory; None if it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return None


def kill(pids: Iterable[int]) -> None:
    """Kills without notice; those that are gone already do not matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end_all() -> list[str]:
    """Kills every descendant of this process that is left; returns their titles, or raises TimeoutError."""
    left = [pid for pid in descendants(os.getpid()) if "multiprocessing.resource_tracker" not in title(pid)]
    titles = [title(pid) for pid in left]
    deadline = time.monotonic() + _END_S
    while left:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_END_S:g} s for processes that were killed to be gone: {left}")
        kill(left)
        time.sleep(0.05)
        left = [pid for pid in left if is_alive(pid)]
    return titles


@contextlib.contextmanager
def owned_processes() -> Iterator[None]:
    """Within it orphans are adopted; afterwards no descendant of this process is left, whatever happens."""
    adopt_orphans()
    try:
        yield
    finally:
        end_all()


def _stat(pid: int) -> list[str] | None:
    """State, parent, ...: what stands behind the name, which may hold anything."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return None
