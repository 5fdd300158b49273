# SPDX-License-Identifier: Apache-2.0
"""A sector file while a worker writes to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from typing import Self

from firstread.sectors.source import Decoding


@dataclass(slots=True)
class Target:
    """Where a sector is written to, and what is known of it.

    Args:
        file: the sector file.
        decoder: what is known of the sector.
        leave: called once, when the file is closed.
    """

    file: FileIO
    decoder: Decoding
    leave: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.file.closed:
            self.file.close()
            self.leave()
