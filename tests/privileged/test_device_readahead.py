# SPDX-License-Identifier: Apache-2.0
"""The facts about read-ahead that firstread/device/readahead.py states."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.device.erofsmount import mount_erofs, unmount
from firstread.device.readahead import (
    read_ahead,
    read_ahead_of,
    set_read_ahead,
    set_read_ahead_of,
)
from firstread.device.superblock import FileSystem
from firstread.errors import NodeError
from firstread.mountinfo import filesystem_of
from firstread.sectors.sectorstore import PRE_CONTENT_FILESYSTEMS
from firstread.testing.lazymount import LazyMount, write_metadata
from firstread.units import KiB, MiB

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    if os.geteuid():
        pytest.skip("mounts: needs root")
    if filesystem_of(tmp_path) not in PRE_CONTENT_FILESYSTEMS:
        pytest.skip("needs a temporary directory on ext4, xfs or btrfs")
    return tmp_path


@pytest.fixture
def two(scratch: Path) -> Iterator[tuple[Path, Path]]:
    """Two mounts of the same metadata."""
    write_metadata(scratch / "metadata", [b"\0" * 32], 4 * KiB)
    (scratch / "sector").write_bytes(b"0" * 4 * KiB)
    places = scratch / "one", scratch / "other"
    for place in places:
        place.mkdir()
        mount_erofs(scratch / "metadata", [scratch / "sector"], place)
    yield places
    for place in places:
        unmount(place, lazy=True)


def test_each_mount_has_its_own(two: tuple[Path, Path]) -> None:
    one, other = two
    assert read_ahead(other) == 128
    set_read_ahead(one, 16)
    assert (read_ahead(one), read_ahead(other)) == (16, 128)


def test_a_mount_that_has_left_its_place_still_has_one(two: tuple[Path, Path]) -> None:
    file_system, user = FileSystem.at(two[0]), os.open(two[0], os.O_RDONLY)
    try:
        unmount(two[0], lazy=True)
        set_read_ahead_of(file_system, 32)
        assert read_ahead_of(file_system) == 32
    finally:
        os.close(user)
        mount_erofs(two[0].parent / "metadata", [two[0].parent / "sector"], two[0])


def test_another_kind_of_file_system_is_refused(scratch: Path) -> None:
    with pytest.raises(NodeError, match="whose read-ahead"):
        set_read_ahead(scratch, 16)


@pytest.mark.parametrize("name", ["", "erofs/", "ext4/vda", "erofs/../../../tmp"])
def test_a_name_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(NodeError, match="whose read-ahead"):
        read_ahead_of(FileSystem("boot", 1, name))


def test_an_open_file_keeps_what_it_was_opened_with(scratch: Path) -> None:
    look = "import mmap; print(mmap.mmap(0, 0, prot=mmap.PROT_READ)[1 << 19])"
    with LazyMount(scratch, sectors=1, sector_bytes=MiB) as bench:
        set_read_ahead(bench.mountpoint, 16)
        with (bench.mountpoint / "0").open("rb") as file:
            set_read_ahead(bench.mountpoint, 512)
            command = [sys.executable, "-c", look]
            child = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, text=True)
            _, asked = bench.serve(bench.started(child), bench.fill)
    assert [length for _, _, length in asked] == [16 * KiB]
