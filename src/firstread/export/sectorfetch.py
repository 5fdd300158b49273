# SPDX-License-Identifier: Apache-2.0
"""Fetches one sector into its file, in the calling thread, through failures that pass.

Invariant: the file only grows, by verified bytes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from firstread.errors import FirstreadError, from_os_error
from firstread.fetch.retry import Outage, asked_s, is_hopeless, may_pass
from firstread.sectors.native import NativeSource
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted

log = logging.getLogger("export")

FIRST_PAUSE_S = 0.5  # after a failure; see `Outage`


class Means(NamedTuple):
    """What every fetch of a server shares.

    Args:
        source: of the sectors.
        store: claimed.
        stall_s: how long a fetch goes on while the source fails.
        closing: set when no fetch should be tried again.
    """

    source: NativeSource
    store: SectorStore
    stall_s: float
    closing: threading.Event


def fetch_sector(
    sector: Wanted,
    verified: int,
    means: Means,
    since: Callable[[], float | None],
    on_growth: Callable[[int], None],
) -> None:
    """Fetch what is missing of a sector, and flush its file; a failure ends it if nobody waits.

    Args:
        sector: which.
        verified: bytes that its file has.
        means: of the server.
        since: returns since when somebody waits for it, by the monotonic clock; None for nobody.
        on_growth: told how many bytes it has, after each frame.

    Raises:
        FirstreadError: the rest cannot be had.
    """
    name, outage, failures = sector.entry.id.hex(), Outage(FIRST_PAUSE_S), 0
    while verified < sector.entry.size:
        try:
            verified = _frames(sector, verified, means, on_growth)
        except _BrokenError as exc:
            error = exc.error.about(layer=sector.blob.digest)
            failures = 1 if exc.verified > verified else failures + 1
            verified = exc.verified
            asked = since()
            if asked is None:
                return
            left = asked + means.stall_s - time.monotonic()
            if is_hopeless(error, failures, "refetch") or (may_pass(error) and left <= 0):
                log.warning("cannot read sector %s: %s", name, error)
                raise error from exc
            log.warning("sector %s: %s; trying again", name, error)
            pause = max(0.0, min(left, max(outage.pause_s(failures), asked_s(error))))
            if means.closing.wait(pause):
                raise error from exc
    means.store.flush(sector.entry.id)


class _BrokenError(Exception):
    """A fetch broke off.

    Args:
        error: why.
        verified: bytes that the file has.
    """

    def __init__(self, error: FirstreadError, verified: int) -> None:
        super().__init__(error)
        self.error, self.verified = error, verified


def _frames(sector: Wanted, verified: int, means: Means, on_growth: Callable[[int], None]) -> int:
    """Write the frames from byte `verified` on; return the bytes of the file."""
    wanted = means.source.covering(sector, verified, sector.entry.size)
    try:
        fd = means.store.open(sector.entry.id, os.O_WRONLY)
        try:
            for frame in means.source.frames(sector, wanted):
                data = frame.data[max(0, verified - frame.offset) :]
                while data:
                    count = os.pwrite(fd, data, verified)
                    verified, data = verified + count, data[count:]
                on_growth(verified)
        finally:
            os.close(fd)
    except FirstreadError as exc:
        raise _BrokenError(exc, verified) from exc
    except OSError as exc:
        raise _BrokenError(from_os_error(exc, "cannot write a sector file"), verified) from exc
    return verified
