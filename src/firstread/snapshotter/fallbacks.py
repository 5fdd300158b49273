# SPDX-License-Identifier: Apache-2.0
"""Counts lazy and ordinary images, and logs why an image is not lazy."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict

from prometheus_client import CollectorRegistry, Counter

log = logging.getLogger("snapshotter")

_REMEMBERED = 1024  # images whose reason was logged


class Fallbacks:
    """The counters of a snapshotter, in a `registry` of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lazy = Counter(
            "firstread_lazy_pulls", "Images pulled without their data", registry=self.registry
        )
        self._ordinary = Counter(
            "firstread_ordinary_pulls",
            "Images pulled as a whole, by the reason",
            ["cause"],
            registry=self.registry,
        )
        self._told: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def lazy(self, image: str) -> None:
        """Count an image whose last layer is lazy."""
        self._lazy.inc()
        log.info("%s is lazy", image)

    def ordinary(self, image: str, cause: str, why: str) -> None:
        """Count an unpacked image, once for all its layers.

        Args:
            image: identifies it.
            cause: one of few, for the metric.
            why: for people.
        """
        with self._lock:
            if image in self._told:
                return
            self._told[image] = None
            if len(self._told) > _REMEMBERED:
                self._told.popitem(last=False)
        self._ordinary.labels(cause).inc()
        log.warning("%s is not lazy: %s", image, why)
