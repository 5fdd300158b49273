# SPDX-License-Identifier: Apache-2.0
"""Repositories that a pull has just used, with their connections, for the reads that follow.

A new connection costs a start up to five round trips: TCP, TLS, a token, and the growth of its
window. The pull of the metadata has paid for them. Owns what is kept until a lane takes it.

Invariant: a repository has one owner: the pull, this, or the lane that took it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from firstread.oci.repository import Repository

MOST = 8  # each holds a connection, until its registry ends it


class WarmRepositories:
    """Repositories by what has to be the same for another to use them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Repository] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, key: Hashable, repository: Repository) -> None:
        """Keep a repository; the one that was kept for the same, and the oldest, are closed."""
        with self._lock:
            gone = [self._kept.pop(key)] if key in self._kept else []
            self._kept[key] = repository
            if len(self._kept) > MOST:
                gone.append(self._kept.popitem(last=False)[1])
        for other in gone:
            other.close()

    def take(self, key: Hashable) -> Repository | None:
        """Return a repository that was kept; the caller closes it."""
        with self._lock:
            return self._kept.pop(key, None)
