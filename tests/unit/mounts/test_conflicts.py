# SPDX-License-Identifier: Apache-2.0
"""A frame table proves what an image says of a sector, or does not."""

from __future__ import annotations

import dataclasses

import pytest

from firstread.errors import ImageError, NotFoundError
from firstread.mounts.conflicts import Conflict, prove_size
from firstread.sectors.format import Geometry
from firstread.sectors.source import Wanted
from firstread.testing.faultsource import FaultSource
from firstread.testing.memorysource import MemorySource, make_sectors
from firstread.units import KiB

SECTORS = make_sectors(3)
RIGHT = SECTORS.wanted[1]

WRONG: dict[str, Wanted] = {
    "half of it": RIGHT._replace(entry=dataclasses.replace(RIGHT.entry, size=32 * KiB)),
    "twice of it": RIGHT._replace(
        entry=dataclasses.replace(RIGHT.entry, size=128 * KiB),
        geometry=Geometry(128 * KiB, 4 * KiB),
    ),
    "another place": RIGHT._replace(entry=dataclasses.replace(RIGHT.entry, offset=0)),
    "other frames": RIGHT._replace(geometry=Geometry(64 * KiB, 8 * KiB)),
    "another length": RIGHT._replace(
        entry=dataclasses.replace(RIGHT.entry, length=RIGHT.entry.length - 1)
    ),
}


def prove(sector: Wanted, script: str = "") -> FaultSource:
    with FaultSource(MemorySource(SECTORS), script) as source:
        prove_size(Conflict(sector, 4096, frozenset()), source)
        return source


def test_a_proof_takes_one_small_request() -> None:
    ((offset, length),) = prove(RIGHT).requests
    assert offset == RIGHT.entry.offset
    assert length == RIGHT.geometry.table_size(RIGHT.entry.size) < RIGHT.entry.length / 10


def test_a_table_damaged_on_its_way_is_asked_for_again() -> None:
    assert len(prove(RIGHT, "ff").requests) == 3
    with pytest.raises(ImageError):
        prove(RIGHT, "f*")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_size_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ImageError, match=r"has \d+ bytes, but it has 4096") as caught:
        prove(WRONG[name])
    assert RIGHT.entry.id.hex() in str(caught.value)


def test_a_source_without_the_blob_proves_nothing() -> None:
    with pytest.raises(NotFoundError):
        prove(RIGHT, "n*")
