# SPDX-License-Identifier: Apache-2.0
"""What `firstread.node.cache` has to know of images and lanes, and whom it tells what it does.

An interface: the fetcher implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from firstread.node.filling import Waiter


class Owner(Protocol):
    """Who knows images and lanes. Called with the cache's lock held, unless it says otherwise."""

    def is_mounted(self, sector_id: bytes) -> bool:
        """Return whether a mounted image has the sector."""

    def is_exempt(self, sector_id: bytes) -> bool:
        """Return whether the sector must stay: its image is pinned."""

    def is_complete(self, sector_id: bytes) -> bool:
        """Return whether a mounted image that is all here has the sector: such go last."""

    def emptied(self, sector_id: bytes) -> None:
        """Note that the sector is absent now."""

    def whole(self, sector_id: bytes) -> None:
        """Note that the sector is present now."""

    def whole_size(self, sector_id: bytes) -> int:
        """Return the bytes of a sector of a mounted image; 0 if there is none."""

    def let_go(self, sector_id: bytes) -> bool:
        """Forget what lanes know of a sector's file; False if one is at it. With or without it."""

    def cold(self) -> list[bytes]:
        """Return the sectors of no mounted image, in the order to go. Without the lock."""

    def again(self, waiters: Sequence[Waiter]) -> None:
        """Take events anew. Without the lock."""
