# SPDX-License-Identifier: Apache-2.0
"""What a node has done since its fetcher began: pulls, mounts, starts.

Owns numbers only, and they never fall. Reads and fetches are `firstread.fetch.stats`'s. Safe to use
from several threads.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Final

from msgspec import structs

from firstread.errors import ImageError, NodeError, SourceError, UsageError
from firstread.fetch.durations import Durations
from firstread.fetch.stats import ImageStats
from firstread.mounts.nodestatus import StepTimes, Totals
from firstread.mounts.pulls import GoneError

FAULTS: Final = {UsageError: "usage", ImageError: "image", SourceError: "source", NodeError: "node"}
_BUG: Final = "firstread"


class NodeCounts:
    """Counts what a node does."""

    def __init__(self) -> None:
        self._mounts = self._found = self._missing = 0
        self._failed = Counter[str](dict.fromkeys((*FAULTS.values(), _BUG), 0))
        self._resolve, self._metadata = Durations(), Durations()
        self._mount, self._starts = Durations(), Durations()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def failures(self, policy: str) -> Iterator[None]:
        """Count the error of a pull or a mount in the block, unless its client has gone.

        Args:
            policy: see `Puller.pull`; ``never`` asks whether an image is here, and no is an answer.
        """
        try:
            yield
        except GoneError:
            raise
        except Exception as exc:
            if policy != "never":
                with self._lock:
                    self._failed[fault_of(exc)] += 1
            raise

    def pulled(self, resolve_s: float, metadata_s: float) -> None:
        """Count a pull that has asked a registry."""
        self._resolve.add(resolve_s)
        self._metadata.add(metadata_s)

    def mounted(self, mount_s: float, found: int, missing: int) -> None:
        """Count a mount.

        Args:
            mount_s: seconds that its last step took.
            found: sectors of the image that were on the node.
            missing: the others.
        """
        self._mount.add(mount_s)
        with self._lock:
            self._mounts += 1
            self._found += found
            self._missing += missing

    def started(self, seconds: float) -> None:
        """Count a start that is over."""
        self._starts.add(seconds)

    def document(self, images: ImageStats) -> Totals:
        """Return all of it.

        Args:
            images: counters of all images.
        """
        with self._lock:
            return Totals(
                **structs.asdict(images.figures()),
                first_reads=images.first_reads.document(),
                mounts=self._mounts,
                failed_requests=dict(self._failed),
                found=self._found,
                missing=self._missing,
                steps=StepTimes(
                    self._resolve.document(), self._metadata.document(), self._mount.document()
                ),
                starts=self._starts.document(),
            )


def fault_of(error: Exception) -> str:
    """Return whose fault an error is, by the tree of `firstread.errors`."""
    found = (name for kind, name in FAULTS.items() if isinstance(error, kind))
    return next(found, _BUG)
