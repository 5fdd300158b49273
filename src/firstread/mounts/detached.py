# SPDX-License-Identifier: Apache-2.0
"""Mounts that are not at their place any more, and used on.

By processes after a lazy unmount, by an overlayfs, by another mount namespace. Owns the waiting for
their ends; reads of them are served like any other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from firstread.fetch.served import Served
from firstread.mounts.table import Mount

SWEEP_S = 1.0  # between looks at them, if there are any


class DetachedMounts:
    """Images that are mounted nowhere and still served.

    Args:
        lock: that protects the mount table; held while `on_end` runs.
        on_end: is called with one that nobody uses any more.
    """

    def __init__(self, lock: threading.RLock, on_end: Callable[[Mount, Served], None]) -> None:
        self._lock, self._on_end = lock, on_end
        self._pairs: list[tuple[Mount, Served]] = []
        self._are_any = threading.Event()
        threading.Thread(target=self._run, name="detached", daemon=True).start()

    def __iter__(self) -> Iterator[tuple[Mount, Served]]:
        return iter(list(self._pairs))

    def add(self, mount: Mount, served: Served) -> None:
        """Await the end of a mount."""
        with self._lock:
            self._pairs.append((mount, served))
            self._are_any.set()

    def _run(self) -> None:
        while self._are_any.wait():
            time.sleep(SWEEP_S)
            self._sweep()  # in a frame of its own: a waiting thread would keep the last image

    def _sweep(self) -> None:
        ended = [pair for pair in self if not pair[0].is_used()]
        with self._lock:
            for pair in ended:
                self._pairs.remove(pair)
                self._on_end(*pair)
            if not self._pairs:
                self._are_any.clear()
