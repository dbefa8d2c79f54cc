"""A coordinator, without Ray, that lets the survivors of killed replicas go on: what `ReplicaGroup` does, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptdl.plan import Advance, Place, Plan
from tests.faults.scripted import training_function
from tests.torch.processes import Replica, Trial

__all__ = ["EPOCHS", "STEPS", "SurvivingTrial", "check", "run", "train"]

EPOCHS = 3
STEPS = 8
"""Steps per epoch."""


class SurvivingTrial(Trial):
    """As `Trial`; `finish` regroups those that are left as often as that is needed."""

    num_recoveries = 0
    ended: list[Any]
    results: list[dict[str, Any]]

    def finish(self) -> list[Any]:
        """Waits until the members that are left have returned; what they returned, in rank order."""
        while True:
            self.wait_for("the end, or a broken group", self._settled)
            self._bury()
            if self.members and all(replica.has("done") for replica in self.members):
                return [replica.take("done") for replica in self.members]
            self.regroup()

    def _bury(self) -> None:
        self.members = [r for r in self.members if r.has("done") or r.process.is_alive()]

    def _settled(self) -> bool:
        self._bury()
        assert self.members, "all replicas are dead"
        return all(replica.has("done") or replica.has("broken") for replica in self.members)

    def regroup(self) -> None:
        """All that are left stand: makes them a generation."""
        self.num_recoveries += 1
        places: dict[Replica, Place] = {replica: replica.take("broken") for replica in self.members}
        source = max(self.members, key=lambda replica: places[replica].order)
        for replica in self.members:
            while not places[replica].meets(places[source]):
                replica.call("advance", Advance(place=places[source]))
                self.wait_for("a replica behind the others", lambda r=replica: r.has("ready") or r.has("broken"))
                if replica.take("ready") is not None:
                    break
                places[replica] = replica.take("broken")
        self.members = [source, *(replica for replica in self.members if replica is not source)]
        self.generation += 1
        plan = Plan(
            generation=self.generation,
            members=tuple(replica.member for replica in self.members),
            source=source.member.replica_id,
            newcomers=frozenset(replica.member.replica_id for replica in self.members[1:]),
            store=source.call("open_store"),
            target=places[source].position,
            reason="test",
        )
        for replica in [*self.members[1:], source]:
            replica.call("join", plan)
        self.wait_for(
            f"generation {self.generation}",
            lambda: source.has("switched") or any(r.has("broken") or not r.process.is_alive() for r in self.members),
        )
        switched = source.take("switched")
        if switched is not None:
            self.switches.append(switched)
            self.members = [r for r in self.members if r.member.replica_id not in switched.dropped]


def train(config: dict[str, Any]) -> dict[str, Any]:
    return training_function()(config)


def run(
    num_replicas: int,
    flags: Path,
    fail_at: list[tuple[int, int, str]],
    *,
    trial: type[SurvivingTrial] = SurvivingTrial,
    **config: Any,
) -> SurvivingTrial:
    """The trial after its end, with what its members returned in `ended`."""
    with trial(train, {"epochs": EPOCHS, "fail_at": fail_at, "flags": str(flags), **config}) as running:
        running.reallocate(num_replicas)
        running.ended = running.finish()
        running.results = sorted(
            (report[0] for report in running.messages("report")), key=lambda result: result["epoch"]
        )
    return running


def check(trial: SurvivingTrial, undisturbed: SurvivingTrial) -> None:
    """The same end state, every sample of each pass used once, a result for each epoch."""
    assert trial.ended[0]["steps"] == EPOCHS * STEPS
    assert trial.ended[0]["lr"] == pytest.approx(undisturbed.ended[0]["lr"])
    for ended in trial.ended:
        assert ended["weights"] == pytest.approx(undisturbed.ended[0]["weights"], rel=1e-10)
    results: dict[int, dict[str, Any]] = {}
    for result in trial.results:
        results.setdefault(result["epoch"], result)  # one that was handed in again has the number of the first
    assert sorted(results) == list(range(EPOCHS))
    for epoch, expected in enumerate(undisturbed.results):
        assert (results[epoch]["validated"], results[epoch]["total"]) == (expected["validated"], expected["total"])
        assert results[epoch]["weights"] == pytest.approx(expected["weights"], rel=1e-10)
