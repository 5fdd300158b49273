# SPDX-License-Identifier: Apache-2.0
"""What a conversion tells about its progress: the interface, and nobody who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What shows the progress of a conversion; called from several threads."""

    def layers(self, layers: list[tuple[str, int]]) -> None:
        """Announce all layers: (digest, compressed bytes)."""

    def advance(self, layer: str, count: int) -> None:
        """Count compressed bytes read of a layer."""

    def sent(self, layer: str, total: int) -> None:
        """Tell how many bytes of a layer's sector blob are in the destination."""

    def done(self, layer: str, how: str) -> None:
        """Tell that a layer is finished: ``packed`` or ``known``."""


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
