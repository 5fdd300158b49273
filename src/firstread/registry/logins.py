# SPDX-License-Identifier: Apache-2.0
"""Credentials as values, and those that a process keeps in its memory.

Owns nothing on a disk. Invariant: a secret is in no repr, and leaves the process only through
`Logins.dump`.
"""

from __future__ import annotations

import base64
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

MAX_REFUSED = 64  # credentials whose secrets are still taken out of messages
TOKEN_USER = "<token>"  # noqa: S105  (how docker's helpers say that a secret is an identity token)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What to show a registry: a user and password, or an identity token."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """Return the value of an ``Authorization`` header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    @classmethod
    def of(cls, username: str, secret: str) -> Self:
        """Return what a user name and a secret mean, `TOKEN_USER` included."""
        if username == TOKEN_USER:
            return cls("", identity_token=secret)
        return cls(username, secret)


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
