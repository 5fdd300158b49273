# SPDX-License-Identifier: Apache-2.0
"""The pulls in flight of a kubelet, and the credentials that each was given.

Owns them from the request to the answer: containerd, which asks for layers meanwhile, says what
image they are of, but not what its client has shown for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from firstread.oci.reference import parse_reference
from firstread.registry.credentials import Credentials
from firstread.registry.pullsecrets import MAX_EACH


class PullsInFlight:
    """The credentials of pulls in flight. Safe for threads."""

    def __init__(self) -> None:
        self._pulls: list[tuple[str, Credentials]] = []
        self._lock = threading.Lock()

    @contextmanager
    def pulling(self, image: str, credentials: Credentials) -> Iterator[None]:
        """Have the credentials in the block. Raises UsageError if `image` names none."""
        pull = _repository(image), credentials
        with self._lock:
            self._pulls.append(pull)
        try:
            yield
        finally:
            with self._lock:
                self._pulls.remove(pull)

    def secrets(self, image: str) -> list[Credentials]:
        """Return what the latest pulls from the repository of an image were given."""
        repository = _repository(image)
        with self._lock:
            found = dict.fromkeys(c for place, c in self._pulls if place == repository)
        return list(found)[-MAX_EACH:]


def _repository(image: str) -> str:
    reference = parse_reference(image)
    return f"{reference.host}/{reference.repository}"
