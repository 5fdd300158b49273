# SPDX-License-Identifier: Apache-2.0
"""When a fetcher starts, retires, is killed or replaced. Pure: no process, no clock.

Owns the stages of a fetcher's life and the rules; `firstread.daemon.fetchers` carries them out.

===========  ===========================================================================
``LOADS``    standby: loads all that it will need
``LOADED``   standby: waits for its turn
``STARTS``   has the reads, and has sent no heartbeat yet
``SERVES``   has the reads, and sends heartbeats
``RETIRES``  has been told to end; finishes its commands
===========  ===========================================================================
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

START_S = 120.0  # for the first word: it may have thousands of mounts to look at
RETIRE_S = 40.0  # for a fetcher to answer the commands that it has; see `serve`
MIN_LIFE_S = 2.0  # a fetcher that lives shorter is started again only after a pause
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 5.0
MAX_PAUSE_READY_S = 0.2  # after one that has worked: reads may wait for the next
MAX_FAILURES = 5  # of a daemon that never had a fetcher that was ready; then it ends


class Stage(enum.Enum):
    """How far a fetcher is in its life."""

    LOADS = "loads"
    LOADED = "loaded"
    STARTS = "starts"
    SERVES = "serves"
    RETIRES = "retires"


class Step(enum.Enum):
    """The next thing to do."""

    BURY = "bury"  # the fetcher has ended
    KILL = "kill"  # the fetcher does not answer
    PROMOTE = "promote"  # the standby takes over
    START = "start"  # a fetcher
    GIVE_UP = "give up"  # none starts
    DISMISS = "dismiss"  # the standby has ended
    KILL_STANDBY = "kill standby"  # the standby does not load
    RETIRE = "retire"  # the standby has loaded: the fetcher is told to end


@dataclass
class Life:
    """What the supervisor knows of a fetcher.

    Args:
        stage: how far it is.
        since: when it got that far (monotonic seconds, as all times here).
        beat: when its last message came.
        until: deadline for a fetcher that retires.
        ended: its process has ended.
    """

    stage: Stage
    since: float
    beat: float
    until: float = math.inf
    ended: bool = False

    @classmethod
    def begin(cls, stage: Stage, now: float) -> Life:
        """Return the life of a fetcher that is in a stage from now on."""
        return cls(stage, now, now)

    def speak(self, now: float) -> bool:
        """Note a message; return whether it ends a stage."""
        self.beat = now
        after = {Stage.LOADS: Stage.LOADED, Stage.STARTS: Stage.SERVES}.get(self.stage)
        if after is not None:
            self.stage = after
        return after is not None

    def retire(self, until: float) -> None:
        """Note that it was told to end before a deadline."""
        self.stage, self.until = Stage.RETIRES, until

    def note_kill(self, now: float) -> None:
        """Note that it was killed, and give it time to end."""
        self.beat, self.until = now, math.inf

    def promote(self, now: float) -> None:
        """Note that it takes over from another."""
        self.stage, self.since, self.beat = Stage.STARTS, now, now

    def is_overdue(self, now: float, health_s: float) -> bool:
        """Return whether a message, or its end, is overdue."""
        if self.stage is Stage.LOADS:
            return now - self.since > START_S
        patience = START_S if self.stage is Stage.STARTS else health_s
        return now - self.beat > patience or now > self.until


class Starts:
    """How often fetchers were started, and when the next may be.

    Args:
        restarts: so far; -1 before the first one.
    """

    def __init__(self, restarts: int) -> None:
        self.restarts = restarts
        self.pause_s = 0.0
        self._last = -math.inf
        self._failures = 0.0  # before any fetcher was ready

    @property
    def are_hopeless(self) -> bool:
        """Whether no fetcher will ever start."""
        return self._failures >= MAX_FAILURES

    def may_start(self, now: float) -> bool:
        """Return whether a fetcher may be started now."""
        return now - self._last >= self.pause_s

    def note_start(self, now: float) -> None:
        self.restarts += 1
        self._last = now

    def note_promotion(self, now: float) -> None:
        self._last = now

    def note_ready(self) -> None:
        """Note that a fetcher works, so that another one can."""
        self._failures = -math.inf

    def note_impossible(self) -> None:
        """Note that no process could be made."""
        self.pause_s = MAX_PAUSE_S

    def note_end(self, life: Life, now: float) -> None:
        """Note that a fetcher has ended unasked."""
        was_ready = life.stage is Stage.SERVES
        if now - life.since > MIN_LIFE_S:
            self.pause_s = 0.0
        else:
            longest = MAX_PAUSE_READY_S if was_ready else MAX_PAUSE_S
            self.pause_s = min(max(self.pause_s * 2, FIRST_PAUSE_S), longest)
        self._failures += 1


def next_step(
    now: float, current: Life | None, standby: Life | None, starts: Starts, health_s: float
) -> Step | None:
    """Return the next step; None if nothing is due.

    Args:
        now: monotonic seconds.
        current: the fetcher that has the reads.
        standby: the fetcher that is to take over.
        starts: of fetchers so far.
        health_s: longest silence of a fetcher that serves.
    """
    if current is not None and current.ended:
        return Step.BURY
    if standby is not None and standby.ended:
        return Step.DISMISS
    if current is None:
        return Step.PROMOTE if standby is not None else _start_step(now, starts)
    if current.is_overdue(now, health_s):
        return Step.KILL
    if standby is None or current.stage is Stage.RETIRES:
        return None
    if standby.stage is Stage.LOADED:
        return Step.RETIRE
    return Step.KILL_STANDBY if standby.is_overdue(now, health_s) else None


def _start_step(now: float, starts: Starts) -> Step | None:
    if starts.are_hopeless:
        return Step.GIVE_UP
    return Step.START if starts.may_start(now) else None
