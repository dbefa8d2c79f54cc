"""A process of its own that is connected to the cluster as a driver, does one piece of work, and says what came of it.

It is not the process that makes the storm, so that its memory is its own, and so that it can be ended if it hangs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Generic, TypeVar

import ray

__all__ = ["Driver"]

T = TypeVar("T")

_FAREWELL_S = 60.0
"""How long the process waits to be told that it may go, and how long it is waited for."""
_TAIL_LINES = 30


class Driver(Generic[T]):
    """The process, from outside.

    Args:
        work: what it does; pickled, as is what it returns.
        address: of the cluster.
        log: the file its output goes to.
    """

    def __init__(self, work: Callable[[], T], address: str, log: Path) -> None:
        self._log = log
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_run, args=(work, address, theirs, log), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_over(self) -> bool:
        """The work is done, or the process has ended."""
        return self._connection.poll() or not self._process.is_alive()

    def outcome(self) -> T:
        """What came of the work; waits for it. The process stays connected to the cluster.

        Raises:
            RuntimeError: the process has ended without an outcome; the message has the end of its log.
        """
        try:
            outcome: T = self._connection.recv()
        except EOFError as error:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
            raise RuntimeError(f"a driver ended without an outcome; its log {self._log} ends with\n{tail}") from error
        return outcome

    def dismiss(self, *, wait: bool) -> None:
        """The process may leave the cluster; if it does not, or is not waited for, it is killed."""
        if wait and self._process.is_alive():
            self._connection.send(None)
            self._process.join(_FAREWELL_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def end(self) -> None:
        """After the work was told to come to its end: gives it some time for that, and ends the process anyway."""
        deadline = time.monotonic() + _FAREWELL_S
        while not self.is_over and time.monotonic() < deadline:
            time.sleep(0.1)
        self.dismiss(wait=self.is_over)


def _run(work: Callable[[], T], address: str, connection: Connection, log: Path) -> None:
    """The process."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("adaptdl").setLevel(logging.INFO)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the one of Tune's outputs that can be turned off
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    try:
        connection.send(work())
        connection.poll(_FAREWELL_S)
    finally:
        ray.shutdown()
