# SPDX-License-Identifier: Apache-2.0
"""Sees to it that there is an anchor, and that it is this supervisor's.

The anchor's own process, and what it is for: `firstread.daemon.anchor`.
"""

from __future__ import annotations

import logging
import time

from firstread.daemon import anchor
from firstread.daemon.handover import Settings

log = logging.getLogger("supervisor")

LOOK_S = 10.0  # between two looks for the anchor


class AnchorKeeper:
    """The anchor of a supervisor.

    Args:
        settings: of the daemon.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pid = 0
        self._due = 0.0

    def keep(self) -> None:
        """Make one if there is none. The first time, end those of supervisors before."""
        if time.monotonic() < self._due:
            return
        settings, first = self._settings, not self._due
        try:
            if settings.anchor_s and not self.is_there():
                self._pid = anchor.cast(settings.root, settings.anchor_s)
        except (OSError, ValueError) as exc:
            log.warning("there is no anchor: reads fail if all processes die now: %s", exc)
        self._due = time.monotonic() + LOOK_S  # from now on: that may have taken long
        if first:
            # Also if there is none of ours: one before would deny what waits when its time is up.
            try:
                anchor.retire(settings.root, but=self._pid)
            except OSError as exc:
                log.warning("an anchor of before may still be there: %s", exc)

    def is_there(self) -> bool:
        """Return whether the anchor lives."""
        return anchor.is_anchor(self._pid)

    def end(self) -> None:
        """End all anchors of the store."""
        anchor.retire(self._settings.root)
