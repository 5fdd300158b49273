# SPDX-License-Identifier: Apache-2.0
"""What a check found, and what the user can do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried.

    Args:
        name: what has to work, a few words.
        ok: whether it does.
        detail: what was seen.
        fix: what the user can do, if not `ok` or if `warning`.
        warning: it works, but may not for long, or not under load.
    """

    name: str
    ok: bool
    detail: str
    fix: str | None = None
    warning: bool = False

    @property
    def status(self) -> str:
        """``ok``, ``warn`` or ``fail``."""
        if not self.ok:
            return "fail"
        return "warn" if self.warning else "ok"


def passed(name: str, detail: str) -> Finding:
    """Return that something works."""
    return Finding(name, ok=True, detail=detail)


def warned(name: str, detail: str, fix: str | None = None) -> Finding:
    """Return that something works for now."""
    return Finding(name, ok=True, detail=detail, fix=fix, warning=True)


def failed(name: str, detail: str, fix: str | None = None) -> Finding:
    """Return that something does not work."""
    return Finding(name, ok=False, detail=detail, fix=fix)
