# SPDX-License-Identifier: Apache-2.0
"""Which sector is emptied next, and when that is safe. Pure: no I/O, no locks, no clock.

Owns the states of sectors that have bytes on this node. A sector that is present raises no events,
so nobody sees it being read; its fanotify mark is the reference bit of a CLOCK. What goes round is
a queue: the sector at its head is marked and drains. If it is read within the grace it is in use
and goes to the end; if not, it may be emptied. If all that drains is in use, and there must be
room, one of them goes nevertheless: its reads wait out the grace and the emptying.

===========  ==========================================================================
``KEPT``     marked if it is not whole, or doubted: an event asks for the rest, or for a check
``DRAINS``   marked: an event means that it is in use; it is kept again, and the read goes on
``EMPTIES``  marked: an event waits until the file is empty, and then asks for the sector
===========  ==========================================================================

Why no read sees a file become shorter. A read either raises an event, or had passed the place where
it would have before the mark was there. The first is let go only with a `touch`, which makes the
sector kept again; from there to the emptying lies a whole grace. The second is let alone for the
grace as well, and is over by then; `firstread.cache.disposal` looks whether one still holds pages
the file.

Invariants: a sector that somebody uses (`hold`) is not emptied, and what is being emptied cannot be
held; one is `EMPTIES` only after it drained for the whole grace, or was condemned.

Source: Corbató, A paging experiment with the Multics system, 1968.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class State(enum.Enum):
    """An action on a sector."""

    KEPT = "kept"
    DRAINS = "drains"
    EMPTIES = "empties"


class Verdict(enum.Enum):
    """What becomes of an event, or of a read that was to be let go."""

    ALLOW = "allow"  # and watch the sector no longer
    FETCH = "fetch"  # it is not whole
    CHECK = "check"  # it is whole, and not checked since it was mounted
    WAIT = "wait"  # until it is emptied, or not


class Turn(NamedTuple):
    """Actions on sectors, each by its id.

    Args:
        mark: to be marked: they drain now. Those that cannot be: `Clock.touch` them.
        unmark: that are kept after all; those that are whole need their mark no longer.
        empty: to be emptied; then say so with `Clock.emptied` or `Clock.spared`.
    """

    mark: list[bytes]
    unmark: list[bytes]
    empty: list[bytes]


@dataclass(slots=True)
class _Sector:
    bytes: int = 0
    state: State = State.KEPT
    users: int = 0
    doubted: bool = False
    since: float = 0.0  # when it began to drain


class Clock:
    """The sectors that have bytes on this node, in the order in which they are looked at.

    Args:
        grace_s: that a sector drains; longer than a read takes once it was let go.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._sectors: dict[bytes, _Sector] = {}
        self._kept: OrderedDict[bytes, None] = OrderedDict()
        self._draining: OrderedDict[bytes, None] = OrderedDict()
        self.bytes = 0  # of all sectors
        self.draining_bytes = 0
        self.emptying_bytes = 0
        self._holds = 0
        self._forced: dict[bytes, float] = {}  # that empty after a grace, and when it began

    def __contains__(self, sector_id: bytes) -> bool:
        return sector_id in self._sectors

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._sectors)

    def size(self, sector_id: bytes) -> int:
        """Return the bytes that a sector is known to have."""
        found = self._sectors.get(sector_id)
        return found.bytes if found else 0

    def state(self, sector_id: bytes) -> State:
        """Return the state of a sector; one that is not known is `KEPT`."""
        found = self._sectors.get(sector_id)
        return found.state if found else State.KEPT

    def users(self, sector_id: bytes) -> int:
        """Return how often a sector is held."""
        found = self._sectors.get(sector_id)
        return found.users if found else 0

    @property
    def count(self) -> int:
        """How many sectors there are that have bytes, or somebody who holds them."""
        return len(self._sectors)

    @property
    def holds(self) -> int:
        """How many holds there are, of all sectors."""
        return self._holds

    # -- what happens to a sector --------------------------------------------------------------

    def add(self, sector_id: bytes, size: int) -> None:
        """Note that a sector has `size` bytes."""
        sector = self._sectors.get(sector_id)
        if sector is None:
            if not size:
                return
            sector = self._new(sector_id)
        self._resize(sector, size)
        if not size and not sector.users and sector.state is not State.EMPTIES:
            self._forget(sector_id)

    def touch(self, sector_id: bytes) -> Verdict:
        """Note that a sector is read, or about to be used.

        Returns:
            ``WAIT`` if it is being emptied. ``ALLOW`` if it was draining: what is whole needs its
            mark no longer. Else ``FETCH``: there is nothing to do.
        """
        sector = self._sectors.get(sector_id)
        if sector is None:
            return Verdict.FETCH
        if sector.state is State.EMPTIES:
            return Verdict.WAIT
        drained = sector.state is State.DRAINS
        self._keep(sector_id, sector)
        return Verdict.ALLOW if drained and not sector.doubted else Verdict.FETCH

    def event(self, sector_id: bytes, *, whole: bool) -> Verdict:
        """Take a read of a marked sector; `whole`: its file has all bytes."""
        if self.touch(sector_id) is Verdict.WAIT:
            return Verdict.WAIT
        if not whole:
            return Verdict.FETCH
        return Verdict.CHECK if self.is_doubted(sector_id) else Verdict.ALLOW

    def hold(self, sector_id: bytes) -> Verdict:
        """Keep a sector from being emptied: it is filled, checked or written to the disk.

        Returns:
            as `touch`; it is held unless that is ``WAIT``.
        """
        sector = self._sectors.get(sector_id) or self._new(sector_id)
        verdict = self.touch(sector_id)
        if verdict is not Verdict.WAIT:
            sector.users += 1
            self._holds += 1
        return verdict

    def release(self, sector_id: bytes, size: int) -> None:
        """End a `hold` of a sector that has `size` bytes now."""
        self._sectors[sector_id].users -= 1
        self._holds -= 1
        self.add(sector_id, size)

    # -- doubt ---------------------------------------------------------------------------------

    def doubt(self, sector_id: bytes) -> bool:
        """Have a whole, marked sector checked when it is read next; False if it has no bytes."""
        sector = self._sectors.get(sector_id)
        if sector is not None:
            sector.doubted = True
        return sector is not None

    def is_doubted(self, sector_id: bytes) -> bool:
        sector = self._sectors.get(sector_id)
        return sector is not None and sector.doubted

    def trust(self, sector_id: bytes) -> None:
        """Note that a sector was checked, or that its bytes were verified as they came."""
        sector = self._sectors.get(sector_id)
        if sector is not None:
            sector.doubted = False

    def condemn(self, sector_id: bytes) -> bool:
        """Empty a damaged sector, which the caller holds and has had marked for the grace.

        Returns:
            False if somebody else holds it too: try again later.
        """
        sector = self._sectors[sector_id]
        if sector.users > 1 or sector.state is State.EMPTIES:
            return False
        self._keep(sector_id, sector)
        self._start_emptying(sector_id, sector)
        return True

    # -- eviction ------------------------------------------------------------------------------

    def turn(
        self,
        now: float,
        wanted: int,
        ready: int,
        is_exempt: Callable[[bytes], bool],
        *,
        force: bool = False,
    ) -> Turn:
        """Choose what to empty, and what to watch so that it can be emptied later.

        Args:
            now: monotonic seconds.
            wanted: bytes that are to become free.
            ready: bytes that should be draining in advance.
            is_exempt: whether a sector must stay, whatever it is needed for.
            force: if nothing can go because all is in use, choose one whose reads will wait.
        """
        turn = Turn([], [], [])
        for sector_id in [s for s in self._forced if now - self._forced[s] >= self._grace_s]:
            del self._forced[sector_id]
            turn.empty.append(sector_id)
            wanted -= self._sectors[sector_id].bytes
        for sector_id in list(self._draining):
            sector = self._sectors[sector_id]
            if is_exempt(sector_id):
                self._keep(sector_id, sector)
                turn.unmark.append(sector_id)
            elif wanted > 0 and now - sector.since >= self._grace_s:
                self._start_emptying(sector_id, sector)
                turn.empty.append(sector_id)
                wanted -= sector.bytes
        if force and wanted > 0 and self._draining and not self._forced:
            sector_id = next(iter(self._draining))  # since an earlier turn, so it is marked
            self._start_emptying(sector_id, self._sectors[sector_id])
            self._forced[sector_id] = now
        self._drain(turn.mark, now, max(ready, wanted), is_exempt)
        return turn

    def _drain(
        self, mark: list[bytes], now: float, goal: int, is_exempt: Callable[[bytes], bool]
    ) -> None:
        """Let sectors drain until those that do have `goal` bytes; add them to `mark`."""
        for _ in range(len(self._kept)):
            if self.draining_bytes >= goal:
                break
            sector_id, _ = self._kept.popitem(last=False)
            sector = self._sectors[sector_id]
            if sector.users or not sector.bytes or is_exempt(sector_id):
                self._kept[sector_id] = None
                continue
            self._draining[sector_id] = None
            sector.state, sector.since = State.DRAINS, now
            self.draining_bytes += sector.bytes
            mark.append(sector_id)

    def drain_from(self, ids: Iterable[bytes], now: float) -> None:
        """Begin the grace of those of these sectors that drain: they are marked only now."""
        for sector_id in ids:
            if sector_id in self._draining:
                self._sectors[sector_id].since = now

    def emptied(self, sector_id: bytes) -> None:
        """Note that a file is empty now; its sector is absent."""
        sector = self._sectors[sector_id]
        self._resize(sector, 0)
        sector.doubted = False
        self.spared(sector_id)
        if not sector.users:
            self._forget(sector_id)

    def spared(self, sector_id: bytes) -> None:
        """Note that a file could not be emptied; what is whole needs its mark no longer."""
        sector = self._sectors[sector_id]
        self.emptying_bytes -= sector.bytes
        sector.state = State.KEPT
        self._kept[sector_id] = None

    def drop(self, sector_id: bytes) -> None:
        """Forget a sector whose file was removed; nobody holds it."""
        if sector_id in self._sectors:
            self._keep(sector_id, self._sectors[sector_id])
            self._resize(self._sectors[sector_id], 0)
            self._forget(sector_id)

    def _new(self, sector_id: bytes) -> _Sector:
        sector = self._sectors[sector_id] = _Sector()
        self._kept[sector_id] = None
        return sector

    def _keep(self, sector_id: bytes, sector: _Sector) -> None:
        """Put a sector to the end of the queue."""
        if sector.state is State.DRAINS:
            del self._draining[sector_id]
            self.draining_bytes -= sector.bytes
            sector.state = State.KEPT
            self._kept[sector_id] = None
        else:
            self._kept.move_to_end(sector_id)

    def _start_emptying(self, sector_id: bytes, sector: _Sector) -> None:
        if sector.state is State.DRAINS:
            del self._draining[sector_id]
            self.draining_bytes -= sector.bytes
        else:
            del self._kept[sector_id]
        sector.state = State.EMPTIES
        self.emptying_bytes += sector.bytes

    def _resize(self, sector: _Sector, size: int) -> None:
        grown = size - sector.bytes
        sector.bytes = size
        self.bytes += grown
        if sector.state is State.DRAINS:
            self.draining_bytes += grown
        elif sector.state is State.EMPTIES:
            self.emptying_bytes += grown

    def _forget(self, sector_id: bytes) -> None:
        del self._sectors[sector_id]
        self._kept.pop(sector_id, None)
        if sector_id in self._draining:
            del self._draining[sector_id]
