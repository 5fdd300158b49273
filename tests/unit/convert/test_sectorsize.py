# SPDX-License-Identifier: Apache-2.0
"""The choice of a sector size. The value of the default does not matter here."""

from __future__ import annotations

import pytest

from firstread.convert.sectorsize import (
    GROWTH,
    LARGEST,
    choose_sector_size,
    larger_sector_size,
)
from firstread.errors import SectorCountError
from firstread.oci.model import Descriptor, sha256_digest
from firstread.sectors.format import DEFAULT_SECTOR_SIZE, MAX_SECTORS
from firstread.units import GiB, KiB

FRAME = 256 * KiB
MOST = MAX_SECTORS * DEFAULT_SECTOR_SIZE // GROWTH  # compressed bytes of an image with the default


def layers(*sizes: int) -> list[Descriptor]:
    named = ((sha256_digest(b"%d" % size), size) for size in sizes)
    return [Descriptor(media_type="layer", digest=digest, size=size) for digest, size in named]


def test_usual_images_have_one_size() -> None:
    for sizes in ((), (1,), (GiB, 2 * GiB), (MOST,)):
        assert choose_sector_size(layers(*sizes), FRAME) == DEFAULT_SECTOR_SIZE


def test_very_large_images_have_larger_sectors() -> None:
    assert choose_sector_size(layers(MOST - 1, 2), FRAME) == 2 * DEFAULT_SECTOR_SIZE
    assert choose_sector_size(layers(7 * MOST), FRAME) == 8 * DEFAULT_SECTOR_SIZE
    assert choose_sector_size(layers(1000 * MOST), FRAME) == LARGEST


def test_a_layer_that_occurs_twice_counts_once() -> None:
    assert choose_sector_size(layers(MOST, MOST), FRAME) == DEFAULT_SECTOR_SIZE


def test_a_sector_has_room_for_a_frame() -> None:
    assert choose_sector_size(layers(1), 2 * DEFAULT_SECTOR_SIZE) == 2 * DEFAULT_SECTOR_SIZE


@pytest.mark.parametrize(
    ("excess", "factor"), [(1.0, 2), (1.001, 2), (2.0, 2), (2.1, 4), (8.0, 8), (1e6, None)]
)
def test_a_second_try_is_the_last(excess: float, factor: int | None) -> None:
    larger = larger_sector_size(DEFAULT_SECTOR_SIZE, SectorCountError("many", excess=excess))
    assert larger == (factor and factor * DEFAULT_SECTOR_SIZE)


def test_sectors_do_not_grow_without_end() -> None:
    error = SectorCountError("many", excess=1.1)
    assert larger_sector_size(LARGEST // 2, error) == LARGEST
    assert larger_sector_size(LARGEST, error) is None
