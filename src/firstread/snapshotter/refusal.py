# SPDX-License-Identifier: Apache-2.0
"""The errors that containerd tells apart; its clients act on them."""

from __future__ import annotations

from enum import Enum

from firstread.errors import FirstreadError


class Kind(Enum):
    """Kinds of github.com/containerd/errdefs, by their names in gRPC."""

    NOT_FOUND = "not found"
    ALREADY_EXISTS = "already exists"
    INVALID_ARGUMENT = "invalid argument"
    FAILED_PRECONDITION = "failed precondition"
    CANCELLED = "canceled"


class RefusalError(FirstreadError):
    """A call of the snapshots API that is refused.

    Args:
        kind: which containerd knows.
        message: what is wrong; containerd adds the kind.
        hint: what can be done.
    """

    def __init__(self, kind: Kind, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
