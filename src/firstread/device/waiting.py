# SPDX-License-Identifier: Apache-2.0
"""A READ of a mount that we serve, which may have to wait for absent bytes.

Owns what is known of it, and the rule how often it is tried again. Answers nothing.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from firstread.device.fusejournal import Unanswered
from firstread.device.fusereads import SectorReader
from firstread.erofs.extents import Extent

ATTEMPTS = 8  # to read what was allowed, while nobody fills it or empties it anew


@dataclass(slots=True, eq=False)
class Waiting:
    """A READ.

    Args:
        request: it.
        parts: of the file.
        slots: that were asked for.
        left: parts that are not answered yet.
        in_vain: attempts to read what was allowed, since its files were as they are.
        written: when these files were written, and how long they are.
        failed: a part was denied.
        parked: this process lacked a resource for it.
        since: when it came, by the monotonic clock.
    """

    request: Unanswered
    parts: Sequence[Extent]
    slots: set[int] = field(default_factory=set)
    left: int = 0
    in_vain: int = 0
    written: Sequence[tuple[int, int]] = ()
    failed: bool = False
    parked: bool = False
    since: float = field(default_factory=time.monotonic)

    def note_vain(self, missing: Iterable[Extent], reader: SectorReader) -> None:
        """Note that parts are missing, of which some may have been allowed.

        Those were emptied meanwhile, and come anew. One that neither comes nor goes is a lie.

        Args:
            missing: parts.
            reader: knows their files.

        Raises:
            OSError: there is a lie.
            NodeError: a file cannot be opened.
        """
        slots = [part.slot for part in missing if part.slot in self.slots]
        if not slots:
            return
        written = reader.written(slots)
        self.in_vain = self.in_vain + 1 if written == self.written else 1
        self.written = written
        if self.in_vain >= ATTEMPTS:
            raise OSError(errno.EIO, "what was allowed is absent")
