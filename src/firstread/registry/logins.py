# SPDX-License-Identifier: Apache-2.0
"""The credentials that a process keeps in its memory.

Owns nothing on a disk. Invariant: a secret leaves the process only through `Logins.dump`.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Self

from firstread.registry.credentials import Credentials

MAX_REFUSED = 64  # credentials whose secrets are still taken out of messages


class Logins:
    """Credentials by registry, or by a part of one: ``HOST``, ``HOST/REPOSITORY``.

    Safe for threads. A copy in another process has none: secrets do not travel with options.
    """

    def __init__(self) -> None:
        self._known: dict[str, Credentials] = {}
        self._refused: deque[Credentials] = deque(maxlen=MAX_REFUSED)
        self._lock = threading.Lock()

    def put(self, scope: str, credentials: Credentials | None) -> Credentials | None:
        """Keep credentials, or none, in place of those that `scope` had, and return those."""
        with self._lock:
            before = self._known.pop(scope, None)
            if credentials is not None:
                self._known[scope] = credentials
            return before

    def note_refused(self, credentials: Credentials) -> None:
        """Keep refused credentials out of messages: the registry that saw them may repeat them."""
        with self._lock:
            self._refused.append(credentials)

    def exactly(self, scope: str) -> Credentials | None:
        """Return the credentials of just this scope."""
        with self._lock:
            return self._known.get(scope)

    def find(self, host: str, repository: str) -> Credentials | None:
        """Return the credentials for a repository: of the most specific scope."""
        parts = [host, *repository.split("/")] if repository else [host]
        with self._lock:
            for count in range(len(parts), 0, -1):
                if (found := self._known.get("/".join(parts[:count]))) is not None:
                    return found
        return None

    def secrets(self) -> list[str]:
        """Return all secrets, to be taken out of messages."""
        with self._lock:
            known = [*self._known.values(), *self._refused]
        forms = [(c.password, c.identity_token, c.basic().partition(" ")[2]) for c in known]
        return [secret for each in forms for secret in each if secret]

    def dump(self) -> dict[str, Any]:
        """Return all of it as JSON types, secrets included."""
        with self._lock:
            return {
                scope: [c.username, c.password, c.identity_token]
                for scope, c in self._known.items()
            }

    def load(self, document: dict[str, Any]) -> None:
        """Take what `dump` gave."""
        with self._lock:
            self._known = {scope: Credentials(*fields[:3]) for scope, fields in document.items()}

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()
