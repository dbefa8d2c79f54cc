"""A line for every batch that a loader hands out, written by the replica that gets it.

All processes are on one machine, whose monotonic clock they share. The lines say which samples were handed out, in which
step of which pass, so that what was redone, lost or repeated can be told afterwards without asking the library.

=========================================================================  ==============================
``began <pid> <node> <time>``                                              the training function begins
``batch <generation> <rank> <replicas> <step> <epoch> <padding> <time> <numbers>``  a batch is handed out
``ended <time>``                                                           the function returns or leaves
=========================================================================  ==============================
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

__all__ = ["Batch", "BatchWriter", "ReplicaLog", "TrialLog"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one replica was handed out for one step."""

    replica_id: str
    generation: int
    """Set of replicas that forms one process group; later ones have higher numbers."""
    rank: int
    num_replicas: int
    step: int
    """Optimizer steps before this one, as the trainer counts them."""
    epoch: int
    padding: bool
    """It has weight 0: the step has fewer samples than replicas."""
    handed_s: float
    """Monotonic seconds."""
    samples: tuple[int, ...]
    """Their numbers in the data set."""


class BatchWriter:
    """Appends the lines of one replica to its own file in `directory`.

    Args:
        directory: of the trial; made if it is not there.
        replica_id: of this replica; no other has the same.
        node_id: where it runs.
    """

    def __init__(self, directory: Path, replica_id: str, node_id: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(directory / f"{replica_id}.batches", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._write("began", os.getpid(), node_id, time.monotonic())

    def handed_out(
        self,
        *,
        generation: int,
        rank: int,
        num_replicas: int,
        step: int,
        epoch: int,
        samples: Iterable[int],
        padding: bool = False,
    ) -> None:
        """A batch was handed out just now."""
        now_s = time.monotonic()
        numbers = ",".join(map(str, samples))
        self._write("batch", generation, rank, num_replicas, step, epoch, int(padding), now_s, numbers)

    def ended(self) -> None:
        self._write("ended", time.monotonic())
        os.close(self._file)

    def _write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())  # at once: what is killed leaves no half line


@dataclass(kw_only=True)
class ReplicaLog:
    """All that one replica has written."""

    replica_id: str
    pid: int = 0
    node_id: str = ""
    began_s: float = float("nan")
    ended_s: float | None = None
    batches: list[Batch] = field(default_factory=list)

    def take(self, line: str) -> None:
        kind, *words = line.split()
        if kind == "began":
            self.pid, self.node_id, self.began_s = int(words[0]), words[1], float(words[2])
        elif kind == "ended":
            self.ended_s = float(words[0])
        else:
            generation, rank, num_replicas, step, epoch, padding = map(int, words[:6])
            self.batches.append(
                Batch(
                    replica_id=self.replica_id,
                    generation=generation,
                    rank=rank,
                    num_replicas=num_replicas,
                    step=step,
                    epoch=epoch,
                    padding=bool(padding),
                    handed_s=float(words[6]),
                    samples=tuple(map(int, words[7].split(","))),
                )
            )


class TrialLog:
    """Reads the files of all replicas of one trial, as they grow.

    Args:
        directory: of the trial; need not be there yet.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[Path, TextIO] = {}
        self._unfinished: dict[Path, str] = {}
        self._replicas: dict[Path, ReplicaLog] = {}

    def read(self) -> None:
        """Takes the lines that have come since the last time."""
        for path in sorted(self._directory.glob("*.batches")):
            if path not in self._files:
                self._files[path] = path.open()
                self._replicas[path] = ReplicaLog(replica_id=path.stem)
            *lines, self._unfinished[path] = (self._unfinished.get(path, "") + self._files[path].read()).split("\n")
            for line in lines:
                self._replicas[path].take(line)

    @property
    def replicas(self) -> Sequence[ReplicaLog]:
        """In the order in which they began."""
        return sorted((replica for replica in self._replicas.values() if replica.pid), key=lambda one: one.began_s)

    @property
    def batches(self) -> list[Batch]:
        """Of all replicas, in the order in which they were handed out."""
        return sorted((batch for one in self.replicas for batch in one.batches), key=lambda batch: batch.handed_s)

    @property
    def newest(self) -> Batch | None:
        """The last batch that was handed out."""
        last = [one.batches[-1] for one in self.replicas if one.batches]
        return max(last, key=lambda batch: batch.handed_s, default=None)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
