# SPDX-License-Identifier: Apache-2.0
"""Makes room, round by round, under mounts that are being read.

Owns the thread, and the order of what goes: what is idle (images that are not mounted, the one
that was used longest ago first); unverified files; then, by CLOCK, sectors of mounted images, but
not of pinned ones. Of images that are all here they go only if nothing else is left, and hot
sectors go last. Emptying those of mounted images gives no file back.
"""

from __future__ import annotations

import logging
import threading
import time

from firstread.cache.admission import Admission, Call
from firstread.cache.clock import Turn
from firstread.cache.disposal import Disposal
from firstread.cache.presence import Presence
from firstread.cache.reclaim import Reclaim
from firstread.errors import FirstreadError

log = logging.getLogger("cache")

TICK_S = 0.02  # between rounds, while bytes are to become free
IDLE_S = 1.0  # else: others write to the same disk
MOST_SPARED = 2  # hot sectors, and images that are all here; 1: hot sectors; 0: nothing
FORCE_S = 0.5  # without a byte that became free, before a sector goes though it is in use


class Evictor:
    """Enforces the limits of a store.

    Args:
        presence: what is known of sectors.
        disposal: empties them.
        admission: knows how much room is to be made.
        reclaim: takes back what is idle.
    """

    def __init__(
        self, presence: Presence, disposal: Disposal, admission: Admission, reclaim: Reclaim
    ) -> None:
        self._presence, self._disposal = presence, disposal
        self._admission, self._reclaim = admission, reclaim
        self._since = time.monotonic()  # when bytes became free last, or were not wanted
        self._freed_before = 0
        self._spared = MOST_SPARED

    def start(self) -> None:
        """Enforce the limits from now on."""
        threading.Thread(target=self._run, name="cache", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                pause = self.round()
            except Exception:
                log.exception("cannot make room in the sector store")
                pause = IDLE_S
            if pause == TICK_S:
                time.sleep(pause)
                continue
            with self._presence.changed:
                self._admission.await_kick(pause)

    def round(self) -> float:
        """Make room once; return how long to wait before the next round."""
        presence, admission = self._presence, self._admission
        with presence.changed:
            call = admission.call()
        freed = self._reclaim.take(call.room)
        wanted = call.bytes - freed.bytes
        wanted -= self._disposal.remove_unverified(wanted)
        with presence.changed:
            if freed.files < call.room.files and not self._reclaim.is_held_up:
                admission.give_up_files(call)
            turn = self._turn(wanted, call.ready)
        self._disposal.evict(turn.empty)
        if turn.mark:
            self._begin_grace(turn.mark)
        with presence.changed:
            self._conclude(call, wanted, turn)
            presence.changed.notify_all()
            return TICK_S if wanted > 0 and not admission.has_given_up(call) else IDLE_S

    def _turn(self, wanted: int, ready: int) -> Turn:
        """Choose what goes, and have what may go next watched."""
        presence, now = self._presence, time.monotonic()
        if wanted <= 0 or presence.freed.bytes > self._freed_before:
            self._since, self._freed_before = now, presence.freed.bytes
        force = now - self._since > FORCE_S
        turn = presence.clock.turn(now, wanted, ready, self._stays, force=force)
        for sector_id in turn.mark:
            try:
                presence.drain(sector_id)
            except FirstreadError as exc:
                log.warning("cannot watch sector %s: %s", sector_id.hex(), exc)
                presence.clock.touch(sector_id)
                presence.publish(sector_id)
        for sector_id in turn.unmark:
            presence.keep(sector_id)
        return turn

    def _begin_grace(self, ids: list[bytes]) -> None:
        """Begin the grace of sectors that drain, or keep them: an answer may rest on old sizes."""
        presence = self._presence
        settled = presence.sizes.is_settled()
        with presence.changed:
            if settled:
                presence.clock.drain_from(ids, time.monotonic())
                return
            for sector_id in ids:
                presence.clock.touch(sector_id)
                presence.keep(sector_id)

    def _stays(self, sector_id: bytes) -> bool:
        members = self._presence.members
        if not members.having(sector_id) or members.is_pinned(sector_id):
            return True
        if self._presence.device.borrows(sector_id):
            return True
        if self._spared and members.is_hot(sector_id):
            return True
        return self._spared == MOST_SPARED and members.is_complete(sector_id)

    def _conclude(self, call: Call, wanted: int, turn: Turn) -> None:
        """Say whether a later round can find more; if not, less is spared."""
        clock = self._presence.clock
        hopeful = clock.draining_bytes or clock.emptying_bytes or self._reclaim.is_held_up
        hopeful = hopeful or clock.holds > self._admission.blocked
        if wanted <= 0:
            self._spared = MOST_SPARED
        elif not turn.empty and not hopeful:
            if not self._spared:
                self._admission.give_up_bytes(call)
            self._spared = max(0, self._spared - 1)
