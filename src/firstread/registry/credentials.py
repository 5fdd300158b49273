# SPDX-License-Identifier: Apache-2.0
"""What a registry wants to see, as a value. Invariant: no repr has a secret."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Self

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

    def given(self) -> tuple[str, str]:
        """Return the user name and the secret that `of` takes."""
        if self.identity_token:
            return TOKEN_USER, self.identity_token
        return self.username, self.password
