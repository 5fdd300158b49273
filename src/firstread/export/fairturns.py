# SPDX-License-Identifier: Apache-2.0
"""The order in which sectors are fetched: clients take turns, however much each asks for. Pure.

Invariant: a client with something left waits for at most one sector of each other client.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class FairTurns:
    """Sectors by the clients that want them, each client's in the order in which it asked."""

    def __init__(self) -> None:
        self._wanted: OrderedDict[Hashable, dict[bytes, None]] = OrderedDict()  # next turn first

    def __len__(self) -> int:
        return len(self._wanted)

    def add(self, client: Hashable, key: bytes) -> None:
        """Note that a client wants a sector; once."""
        self._wanted.setdefault(client, {})[key] = None

    def drop(self, client: Hashable) -> None:
        """Forget all that a client wants."""
        self._wanted.pop(client, None)

    def take(self) -> bytes | None:
        """Return the next sector of the client whose turn it is; None if nobody wants any.

        Other clients may have had it already.
        """
        if not self._wanted:
            return None
        client, keys = self._wanted.popitem(last=False)
        key = next(iter(keys))
        del keys[key]
        if keys:
            self._wanted[client] = keys
        return key
