# SPDX-License-Identifier: Apache-2.0
"""A node with each device, and the one suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstread.device.flattree import NEAR_KIB
from firstread.testing.daemon import Daemon
from firstread.testing.nbdmount import HAS_NBD, WITHOUT_NBD
from firstread.testing.suites.node import SECTOR, NodeSuite
from firstread.units import KiB

SOON_S = "30"  # the least that reads wait in the kernel
# EROFS takes files since Linux 6.12; before, `flat` has a loop device, which takes another file.
ON_LOOP = tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12)

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(120)]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path


class TestFanotifyNode(NodeSuite):
    """fanotify over sector files."""

    outlives_processes = True
    reads_alone = True

    def node(self, scratch: Path, *options: str) -> Daemon:
        return Daemon(scratch, "--device", "fanotify", *options)


class TestFuseNode(NodeSuite):
    """The file system itself, over FUSE."""

    outlives_processes = False

    def node(self, scratch: Path, *options: str) -> Daemon:
        return Daemon(scratch, "--device", "fuse", *options)


class TestFlatNode(NodeSuite):
    """EROFS on one file over FUSE."""

    outlives_processes = ON_LOOP
    beyond_sectors = NEAR_KIB * KiB // SECTOR

    def node(self, scratch: Path, *options: str) -> Daemon:
        return Daemon(scratch, "--device", "flat", *options)


class TestNbdNode(NodeSuite):
    """EROFS on an NBD device."""

    outlives_processes = True

    def node(self, scratch: Path, *options: str) -> Daemon:
        if not HAS_NBD:
            pytest.skip(WITHOUT_NBD)
        return Daemon(scratch, "--device", "nbd", "--anchor", SOON_S, *options)
