# SPDX-License-Identifier: Apache-2.0
"""Which layers somebody is packing, where several images are converted at a time.

Owns nothing but the names. Invariant: of conversions that share claims, one at a time deals with a
layer, and none waits for another while it holds a claim. So whoever gets a claim later finds the
layer packed, or packs it because the earlier one failed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator
from typing import NamedTuple


class Claim(NamedTuple):
    """A layer on its way into a registry, or into another place.

    Args:
        diff_id: of the source layer.
        parameters: the key of those that it is packed with.
        place: where it goes.
    """

    diff_id: str
    parameters: str
    place: str


class LayerClaims:
    """The claims of conversions at the same time. Safe for threads."""

    def __init__(self) -> None:
        self._taken: set[Claim] = set()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def claiming(self, wanted: Collection[Claim]) -> Iterator[list[Claim]]:
        """Claim for the block what nobody else has of `wanted`; wait until there is some.

        Yields:
            What it got, from which `release` takes; the end of the block releases the rest.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._taken.issuperset(wanted))
            mine = [claim for claim in wanted if claim not in self._taken]
            self._taken.update(mine)
        try:
            yield mine
        finally:
            for claim in list(mine):
                self.release(mine, claim)

    def release(self, mine: list[Claim], claim: Claim) -> None:
        """Give a claim back, one of `mine`."""
        with self._changed:
            mine.remove(claim)
            self._taken.remove(claim)
            self._changed.notify_all()
