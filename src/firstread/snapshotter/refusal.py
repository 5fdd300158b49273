# SPDX-License-Identifier: Apache-2.0
"""The errors that containerd distinguishes; its clients act on them."""

from __future__ import annotations

from enum import Enum

from firstread.errors import FirstreadError


class Refusal(Enum):
    """Kinds of errors in github.com/containerd/errdefs, by their names in gRPC."""

    NOT_FOUND = "not found"
    ALREADY_EXISTS = "already exists"
    INVALID_ARGUMENT = "invalid argument"
    FAILED_PRECONDITION = "failed precondition"
    CANCELLED = "canceled"


class RefusalError(FirstreadError):
    """Refuses a call of the snapshots API.

    Args:
        kind: that containerd knows.
        message: what is wrong; containerd adds the kind.
        hint: what the user can do.
    """

    def __init__(self, kind: Refusal, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
