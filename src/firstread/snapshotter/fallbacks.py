# SPDX-License-Identifier: Apache-2.0
"""Counts lazy and ordinary images, and logs why an image is not lazy."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from typing import Final

log = logging.getLogger("snapshotter")

CAUSES: Final = ("not-converted", "failed", "derived", "client")
_REMEMBERED = 1024  # images whose reason was logged


class Fallbacks:
    """Counts images that were pulled.

    Attributes:
        lazy_pulls: images pulled without their data.
        ordinary_pulls: images pulled as a whole, by cause.
    """

    def __init__(self) -> None:
        self.lazy_pulls = 0
        self.ordinary_pulls = Counter[str](dict.fromkeys(CAUSES, 0))
        self._told: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def lazy(self, image: str) -> None:
        """Count an image whose last layer is lazy."""
        with self._lock:
            self.lazy_pulls += 1
        log.info("%s is lazy", image)

    def ordinary(self, image: str, cause: str, why: str) -> None:
        """Count an unpacked image, once for all its layers.

        Args:
            image: identifies it.
            cause: one of `CAUSES`.
            why: for people.
        """
        with self._lock:
            if image in self._told:
                return
            self._told[image] = None
            if len(self._told) > _REMEMBERED:
                self._told.popitem(last=False)
            self.ordinary_pulls[cause] += 1
        log.warning("%s is not lazy: %s", image, why)
