"""The order of data: one permutation per pass, whatever the replicas.

=====  =====================================================================
n      samples in the data set
p      global position: samples of the pass that are done (or under way)
M      samples of one optimizer step, K replicas, s + 1 parts per replica
m_r    replica r's share of a step: M // K, and one more for the first M % K
=====  =====================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

__all__ = ["ElasticSampler", "Step"]


class Step(NamedTuple):
    """This replica's part of one optimizer step.

    Attributes:
        begin: position in the pass of this replica's first sample.
        batch_size: samples of the step over all replicas; less than M only in the last step of a pass.
        share: how many of them are this replica's, m_r.
        num_shares: replicas that have any.
        parts: indices per part, s + 1 lists at most; a list is empty if there is nothing for this replica.
    """

    begin: int
    batch_size: int
    share: int
    num_shares: int
    parts: tuple[list[int], ...]


class ElasticSampler(Sampler[int]):
    """A position in the permutation of the running pass.

    Args:
        num_samples: n, > 0.
        shuffle: False keeps the order of the data set.
        seed: of the permutations; every pass has its own.
        drop_last: leave out a last step of less than M samples.
    """

    def __init__(self, num_samples: int, *, shuffle: bool, seed: int = 0, drop_last: bool = False) -> None:
        self.num_samples = num_samples
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.num_passes = 0
        """Passes begun before the one that runs."""
        self.position = 0
        self._permutation: tuple[int, list[int]] | None = None

    def permutation(self) -> list[int]:
        """The order of all n samples in the running pass."""
        if self._permutation is None or self._permutation[0] != self.num_passes:
            if self.shuffle:
                generator = torch.Generator()
                generator.manual_seed(self.seed * 1_000_003 + self.num_passes)
                order = torch.randperm(self.num_samples, generator=generator, device="cpu").tolist()
            else:
                order = list(range(self.num_samples))
            self._permutation = (self.num_passes, order)
        return self._permutation[1]

    def begin_pass(self) -> None:
        """Ends the running pass, wherever it is; the next one begins."""
        self.num_passes += 1
        self.position = 0

    def num_left(self, batch_size: int) -> int:
        """Steps of `batch_size` samples left in the pass."""
        left = self.num_samples - self.position
        return max(0, left // batch_size if self.drop_last else -(-left // batch_size))

    def step(self, position: int, rank: int, num_replicas: int, batch_size: int, num_parts: int) -> Step | None:
        """One replica's part of the step that begins at `position` of the running pass, None after the last one; moves nothing.

        Args:
            batch_size: M.
            num_parts: to make of it, as far as every replica has a sample for each.
        """
        size = min(batch_size, self.num_samples - position)
        if size < (batch_size if self.drop_last else 1):
            return None
        base, more = divmod(size, num_replicas)
        share = base + (rank < more)
        begin = position + rank * base + min(rank, more)
        return Step(
            begin=begin,
            batch_size=size,
            share=share,
            num_shares=min(size, num_replicas),
            # Every replica makes the same number of parts, and none with samples has a part without.
            parts=tuple(_split(self.permutation()[begin : begin + share], max(1, min(num_parts, base)))),
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self.permutation()[self.position :])

    def __len__(self) -> int:
        return self.num_samples - self.position

    def state_dict(self) -> dict[str, int]:
        return {"num_passes": self.num_passes, "position": self.position, "num_samples": self.num_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ValueError if the state is that of a data set of another size."""
        if state["num_samples"] != self.num_samples:
            raise ValueError(
                f"the data set must have the {state['num_samples']} samples it had when its position was saved, "
                f"but has {self.num_samples}"
            )
        self.num_passes, self.position = state["num_passes"], state["position"]


def _split(indices: list[int], num_parts: int) -> list[list[int]]:
    """Divides into parts that differ by at most one, larger ones first."""
    if num_parts == 1:
        return [indices]
    base, more = divmod(len(indices), num_parts)
    bounds = [i * base + min(i, more) for i in range(num_parts + 1)]
    return [indices[begin:end] for begin, end in itertools.pairwise(bounds)]
