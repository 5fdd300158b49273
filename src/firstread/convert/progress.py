# SPDX-License-Identifier: Apache-2.0
"""The progress of a conversion: the interface, and one that shows nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Shows the progress of a conversion; called from several threads."""

    def layers(self, layers: list[tuple[str, int]]) -> None:
        """Announce all layers: (digest, compressed bytes)."""

    def advance(self, layer: str, count: int) -> None:
        """Count compressed bytes read of a layer."""

    def sent(self, layer: str, total: int) -> None:
        """Report the bytes of a layer's sector blob in the destination."""

    def done(self, layer: str, how: str) -> None:
        """Report a finished layer: ``packed`` or ``known``."""


class NoProgress:
    """Shows nothing."""

    def layers(self, layers: list[tuple[str, int]]) -> None:
        pass

    def advance(self, layer: str, count: int) -> None:
        pass

    def sent(self, layer: str, total: int) -> None:
        pass

    def done(self, layer: str, how: str) -> None:
        pass
