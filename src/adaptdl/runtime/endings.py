"""What it means that the user's function, or a replica's process, has ended. Pure: values in, a verdict out."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adaptdl.runtime.messages import Ending, Outcome

__all__ = ["Circumstances", "Recoveries", "Verdict", "judge_death", "judge_outcome"]


class Verdict(enum.Enum):
    """What the end of one replica means for its job."""

    NOTHING = "nothing"
    """It was expected, or the plan that is being carried out tells."""
    FORGET = "forget"
    """The replica is gone, the job goes on."""
    TRY_AGAIN = "try again"
    """The replica could not become a member; another one may, after a while."""
    FINISH = "finish"
    """The job is done."""
    FAIL = "fail"
    """The job has failed: the user's function raised."""
    BLAME = "blame"
    """The function raised as a peer could not be reached: somebody else's end is behind it."""
    LOST = "lost"
    """A member is gone: those that are left go on, or, if there are none, all start again from the newest snapshot."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Who ended, and when."""

    is_newcomer: bool = False
    """It had not joined."""
    is_member: bool = False
    stands: bool = False
    """It was a member until its group broke."""
    is_parked: bool = False
    launched: bool = True
    """It was told to run the user's function."""
    job_has_state: bool = False
    """Some replica holds the state of the job."""
    joins: bool = False
    """The plan that is being carried out makes it a member."""
    leaves: bool = False
    """The plan that is being carried out is without it."""


def judge_outcome(outcome: Outcome, who: Circumstances) -> Verdict:
    """The user's function has ended in a replica."""
    if who.is_parked and not who.joins and not who.leaves:
        return Verdict.FORGET
    if not (who.is_newcomer or who.is_member or who.is_parked):
        return Verdict.NOTHING
    if outcome.ending is Ending.RAISED:
        if who.is_newcomer and who.job_has_state and not who.joins:
            return Verdict.TRY_AGAIN
        return Verdict.BLAME if outcome.about_communication else Verdict.FAIL
    if who.is_newcomer and not who.joins:
        # Of a first generation: the function has no data loop, or none that is left. Later: the job is about to end.
        return Verdict.FORGET if who.job_has_state else Verdict.FINISH
    if outcome.ending is Ending.RETURNED:
        # Only it knows that it led: the generation may have changed unheard of, or may never change as is planned.
        return Verdict.FINISH if outcome.led else Verdict.NOTHING
    return Verdict.NOTHING if who.leaves else Verdict.LOST


def judge_death(who: Circumstances) -> Verdict:
    """A replica's process has ended, or could not be started."""
    if who.is_newcomer or (who.is_member and not who.launched):
        return Verdict.TRY_AGAIN
    return Verdict.LOST if who.is_member or who.stands else Verdict.FORGET


class Recoveries:
    """Counts restarts that were not followed by a step."""

    def __init__(self) -> None:
        self._count = 0
        self._at_steps = -1

    def count(self, steps: int) -> int:
        """One more, when the job had made so many steps; how many there were in a row."""
        self._count = 1 if steps > self._at_steps else self._count + 1
        self._at_steps = steps
        return self._count
