# SPDX-License-Identifier: Apache-2.0
"""Which file system is where; one of EROFS is followed to its end where it is mounted."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from firstread.device.superblock import FileSystem
from firstread.errors import NodeError


def test_one_that_the_kernel_does_not_name_lives_while_a_process_uses_it(tmp_path: Path) -> None:
    found = FileSystem.at(Path("/proc"))
    assert (found.device, found.name) == (os.stat("/proc").st_dev, "")
    fd = os.open("/proc", os.O_RDONLY)
    assert found.lives(unmounted=True)
    assert not found.lives(unmounted=False)
    assert not dataclasses.replace(found, device=1 << 30).lives(unmounted=True)
    os.close(fd)


def test_none_outlives_its_boot() -> None:
    found = FileSystem.at(Path("/proc"))
    named = dataclasses.replace(found, name="..")  # which is there
    assert named.lives(unmounted=False)
    assert not dataclasses.replace(named, boot_id="another").lives(unmounted=True)


def test_one_with_a_backing_device_is_told_from_the_next_of_its_number() -> None:
    """As those of FUSE are; here any that has one stands for them."""
    directories = [path for path in Path("/sys/class/bdi").iterdir() if ":" in path.name]
    if not directories:
        pytest.skip("nothing here has one")
    major, minor = map(int, directories[0].name.split(":"))
    inode = directories[0].stat().st_ino
    found = FileSystem(FileSystem.at(Path("/")).boot_id, os.makedev(major, minor), f"bdi/{inode}")
    assert found.kind == "fuse"
    assert found.lives(unmounted=False)
    assert not dataclasses.replace(found, name=f"bdi/{inode + 1}").lives(unmounted=True)
    assert not dataclasses.replace(found, device=1 << 30).lives(unmounted=True)
    assert dataclasses.replace(found, name="erofs/erofs-7").kind == "erofs"
    assert dataclasses.replace(found, name="").kind == ""


def test_one_on_a_block_device_is_told_from_the_next_there() -> None:
    """Here nothing is mounted on it; tests/privileged/test_device_flat.py has one that is."""
    found = FileSystem(FileSystem.at(Path("/")).boot_id, os.makedev(7, 0), "erofs/loop0#7")
    assert found.kind == "erofs"
    assert not found.lives(unmounted=False)
    assert not dataclasses.replace(found, device=1 << 30).lives(unmounted=True)


def test_missing_things_are_errors() -> None:
    with pytest.raises(NodeError, match="cannot look at the mount point"):
        FileSystem.at(Path("/nowhere"))
