# SPDX-License-Identifier: Apache-2.0
"""Every device, and the one suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from firstread.device.loopdevice import CONTROL
from firstread.mountinfo import filesystem_of
from firstread.sectors.sectorstore import PRE_CONTENT_FILESYSTEMS
from firstread.testing.devicebench import DeviceBench
from firstread.testing.flatmount import FlatMount
from firstread.testing.fusemount import FuseMount
from firstread.testing.lazymount import LazyMount
from firstread.testing.nbdmount import HAS_NBD, WITHOUT_NBD, NbdMount
from firstread.testing.suites.device import DeviceSuite

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    if os.geteuid():
        pytest.skip("mounts: needs root")
    if filesystem_of(tmp_path) not in PRE_CONTENT_FILESYSTEMS:
        pytest.skip("needs a temporary directory on ext4, xfs or btrfs")
    return tmp_path


class TestFanotify(DeviceSuite):
    """fanotify over sector files."""

    def bench(self, scratch: Path, **image: Any) -> DeviceBench:
        return LazyMount(scratch, **image)


class TestFanotifyOfWholeSectors(DeviceSuite):
    """The same, with events as Linux 6.12 has them."""

    def bench(self, scratch: Path, **image: Any) -> DeviceBench:
        return LazyMount(scratch, whole=True, **image)


class TestFuse(DeviceSuite):
    """The file system itself, over FUSE."""

    def bench(self, scratch: Path, **image: Any) -> DeviceBench:
        return FuseMount(scratch, **image)


class TestFlat(DeviceSuite):
    """EROFS on one file over FUSE."""

    def bench(self, scratch: Path, **image: Any) -> DeviceBench:
        return FlatMount(scratch, "flat", **image)


class TestLoop(DeviceSuite):
    """EROFS on a loop device of one file over FUSE."""

    def bench(self, scratch: Path, **image: Any) -> DeviceBench:
        if not os.path.exists(CONTROL):
            pytest.skip("there are no loop devices")
        return FlatMount(scratch, "loop", **image)


class TestMixed(DeviceSuite):
    """EROFS on a file over FUSE for each sector, as none is present when it is mounted."""

    def bench(self, scratch: Path, **image: Any) -> DeviceBench:
        return FlatMount(scratch, "mixed", **image)


class TestNbd(DeviceSuite):
    """EROFS on an NBD device."""

    def bench(self, scratch: Path, **image: Any) -> DeviceBench:
        if not HAS_NBD:
            pytest.skip(WITHOUT_NBD)
        return NbdMount(scratch, **image)
