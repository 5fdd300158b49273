# SPDX-License-Identifier: Apache-2.0
"""The metrics of a snapshotter."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from firstread.control.metricfamily import COUNTER, Family, by, one
from firstread.snapshotter.fallbacks import Fallbacks


class CallCounts:
    """Counts calls of the snapshots API. Safe for threads."""

    def __init__(self) -> None:
        self._counts = Counter[tuple[str, str]]()
        self._lock = threading.Lock()

    def add(self, method: str, code: str) -> None:
        """Count a call that ended with a status code of gRPC."""
        with self._lock:
            self._counts[method, code] += 1

    def all(self) -> dict[tuple[str, str], int]:
        """Return the calls by method and code."""
        with self._lock:
            return dict(self._counts)


@dataclass(frozen=True)
class SnapshotterFacts:
    """Where the numbers come from.

    Args:
        fallbacks: counts images.
        calls: counts calls.
    """

    fallbacks: Fallbacks
    calls: CallCounts = field(default_factory=CallCounts)


FAMILIES: Final[list[Family[SnapshotterFacts]]] = [
    Family(
        "lazy_pulls",
        COUNTER,
        "images",
        "Images pulled without their data",
        lambda facts: one(facts.fallbacks.lazy_pulls),
    ),
    Family(
        "ordinary_pulls",
        COUNTER,
        "images",
        "Images pulled as a whole, by cause",
        lambda facts: by(facts.fallbacks.ordinary_pulls),
        ("cause",),
    ),
    Family(
        "snapshotter_calls",
        COUNTER,
        "calls",
        "Calls of containerd; a lazy layer ends one with `ALREADY_EXISTS`",
        lambda facts: facts.calls.all().items(),
        ("method", "code"),
    ),
]
