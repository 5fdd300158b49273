# SPDX-License-Identifier: Apache-2.0
"""Chooses the sector size of an image, if its user leaves it to us. Pure.

Owns the rule for ``--sector-size auto``. Images share layers only if their sectors have one size,
so nearly all get the default. The choice depends on the manifest, the content and the frame size
alone, so everybody who converts an image gets the same bytes. Invariant: a size only grows.
"""

from __future__ import annotations

from collections.abc import Iterable

from firstread.errors import SectorCountError
from firstread.oci.model import Descriptor
from firstread.sectors.format import DEFAULT_SECTOR_SIZE, MAX_SECTORS
from firstread.units import MiB

GROWTH = 4  # of a compressed layer when it is unpacked; the benchmark images have 2.1 to 3.2
LARGEST = 64 * MiB  # three of them are in memory for each layer that is being packed


def choose_sector_size(layers: Iterable[Descriptor], frame_size: int) -> int:
    """Return the sector size to begin with, in bytes.

    Args:
        layers: of the source; one that occurs twice counts once.
        frame_size: bytes; a sector has at least one frame.
    """
    content = GROWTH * sum({layer.digest: layer.size for layer in layers}.values())
    size = max(DEFAULT_SECTOR_SIZE, frame_size)
    while content > size * MAX_SECTORS and size < LARGEST:
        size *= 2
    return size


def larger_sector_size(size: int, error: SectorCountError) -> int | None:
    """Return the size that avoids `error`, which sectors of `size` bytes led to; None for none."""
    larger = 2 * size
    while larger < size * error.excess and larger <= LARGEST:
        larger *= 2
    return larger if larger <= LARGEST else None
