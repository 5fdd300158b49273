# SPDX-License-Identifier: Apache-2.0
"""The credentials that a process keeps in its memory.

Owns nothing on a disk. Invariant: a secret leaves the process only through `Logins.dump`.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import astuple
from typing import Any, Final, Self

from firstread.registry.credentials import Credentials
from firstread.registry.pullsecrets import PullSecrets

MAX_REFUSED: Final = 64  # credentials whose secrets are still taken out of messages
_PULLED: Final = "of pulls"  # in a document; to an earlier version a login without a secret


class Logins:
    """Credentials by registry, or by a part of one: ``HOST``, ``HOST/REPOSITORY``.

    Safe for threads. A copy in another process has none: secrets do not travel with options.

    Attributes:
        pulled: those that pulls were given.
    """

    def __init__(self) -> None:
        self._known: dict[str, Credentials] = {}
        self._refused: deque[Credentials] = deque(maxlen=MAX_REFUSED)
        self._lock = threading.Lock()
        self.pulled = PullSecrets()

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
        """Return the credentials of the most specific scope, then those of the newest pull."""
        parts = [host, *repository.split("/")] if repository else [host]
        with self._lock:
            for count in range(len(parts), 0, -1):
                if (found := self._known.get("/".join(parts[:count]))) is not None:
                    return found
        return self.pulled.find(f"{host}/{repository}")

    def secrets(self) -> list[str]:
        """Return all secrets, to be taken out of messages."""
        with self._lock:
            known = [*self._known.values(), *self._refused, *self.pulled.all()]
        forms = [(c.password, c.identity_token, c.basic().partition(" ")[2]) for c in known]
        return [secret for each in forms for secret in each if secret]

    def dump(self) -> dict[str, Any]:
        """Return all of it as JSON types, secrets included."""
        with self._lock:
            known: dict[str, Any] = {scope: astuple(c) for scope, c in self._known.items()}
            return known | {_PULLED: ["", "", "", *self.pulled.dump()]}

    def load(self, document: dict[str, Any]) -> None:
        """Take what `dump` gave."""
        with self._lock:
            _, _, _, *pulled = document.pop(_PULLED, ["", "", ""])
            self._known = {scope: Credentials(*fields[:3]) for scope, fields in document.items()}
            self.pulled.load(*pulled or ([], []))

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()
