# SPDX-License-Identifier: Apache-2.0
"""Writes present sectors to the disk in the background, so that they survive a power loss.

A sector that is not flushed is unverified when its store is opened after a reboot; flushing it
makes the disk work. So one thread does it late, in batches, when no sector has come for a while.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from firstread.errors import FirstreadError
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("flush")


class Flusher:
    """Flushes the sectors of `store` that it is told of.

    Args:
        store: where they are.
        holding: keeps a sector from being emptied meanwhile; gives False if it is.
        calm_s: without a new sector, before the disk is asked to write.
        patience_s: after which it is asked anyhow.
    """

    def __init__(
        self,
        store: SectorStore,
        holding: Callable[[bytes], AbstractContextManager[bool]],
        *,
        calm_s: float = 5.0,
        patience_s: float = 60.0,
    ) -> None:
        self._store = store
        self._holding = holding
        self._calm_s = calm_s
        self._patience_s = patience_s
        self._todo: queue.SimpleQueue[tuple[bytes, int]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="flush", daemon=True).start()

    def add(self, sector_id: bytes, size: int) -> None:
        """Remember a sector of `size` bytes that has become present."""
        self._todo.put((sector_id, size))

    def _run(self) -> None:
        while True:
            batch = dict([self._todo.get()])  # each once, though many mounts have it
            until = time.monotonic() + self._patience_s
            with contextlib.suppress(queue.Empty):
                while time.monotonic() < until:
                    batch.update([self._todo.get(timeout=self._calm_s)])
            for sector_id, size in batch.items():
                try:
                    with self._holding(sector_id) as held:
                        if held and self._store.size(sector_id) == size:  # not evicted
                            self._store.flush(sector_id)
                except FirstreadError as exc:
                    log.warning("cannot flush sector %s: %s", sector_id.hex(), exc)
