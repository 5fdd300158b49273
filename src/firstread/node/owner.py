# SPDX-License-Identifier: Apache-2.0
"""What `firstread.node.cache` has to know of images and lanes, and whom it tells what it does.

Interfaces: the fetcher implements `Owner`, `firstread.node.stock` implements `Idle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from firstread.node.filling import Waiter
from firstread.node.room import Room


class Idle(Protocol):
    """What no mount needs, and can go. Called without the cache's lock, but for `room`."""

    @property
    def room(self) -> Room:
        """What all images take beside their sectors. Waits for nobody."""

    def cold(self) -> list[bytes | str]:
        """Return sectors (their ids) and images (their digests) in the order to go."""

    def remove(self, digest: str) -> Room:
        """Remove an image unless it is used; return the room that became free."""


class NothingIdle:
    """A node without images."""

    room = Room()

    def cold(self) -> list[bytes | str]:
        return []

    def remove(self, digest: str) -> Room:
        return Room()


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
        """Return the bytes of a sector of a mounted image, the most if they differ; or 0."""

    def let_go(self, sector_id: bytes) -> bool:
        """Forget what lanes know of a sector's file; False if one is at it. With or without it."""

    def again(self, waiters: Sequence[Waiter]) -> None:
        """Take events anew. Without the lock."""
