# SPDX-License-Identifier: Apache-2.0
"""A sector file while a worker writes to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from typing import Self

from firstread.sectors.decode import SectorDecoder


@dataclass(slots=True)
class Target:
    """Where a sector is written to, and what makes it of the bytes that come.

    Args:
        file: the sector file.
        decoder: of the sector.
        leave: to be called once, when the file is closed.
    """

    file: FileIO
    decoder: SectorDecoder
    leave: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.file.closed:
            self.file.close()
            self.leave()
