# SPDX-License-Identifier: Apache-2.0
"""What a mount has borrowed that nobody has adopted yet."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from firstread.device.mixeddevice import MixedDevice
from firstread.device.watches import Watches, make_watches
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.shortage import few_descriptors

IDS = [bytes([number]) * 32 for number in range(3)]


def test_a_mount_that_is_not_adopted_keeps_what_it_has_borrowed_and_no_more(tmp_path: Path) -> None:
    watches = make_watches(IDS)
    Watches(watches, IDS).lend([IDS[1]])
    connection, other = os.pipe()
    with SectorStore(tmp_path, filesystems=None) as store:
        device = MixedDevice(store, {48: (connection, watches)})
        assert [device.borrows(sector_id) for sector_id in IDS] == [False, True, False]
        device.offer([IDS[2]])
        assert [device.borrows(sector_id) for sector_id in IDS] == [False, True, True]
    for fd in (watches, connection, other):
        os.close(fd)


def test_a_mount_without_room_for_both_descriptors_takes_none(tmp_path: Path) -> None:
    pipes = [os.pipe() for _ in range(2)]
    with SectorStore(tmp_path, filesystems=None) as store:
        device = MixedDevice(store, dict(enumerate(pipes, start=48)))

        def take() -> None:
            with few_descriptors(os.getpid(), spare=3):
                copies = device.pairs()
                spare = os.dup(pipes[0][0])
                with pytest.raises(OSError, match="Too many open files"):
                    os.dup(spare)
            assert list(copies) == [48]

        run_alone(take)
    for fd in (*pipes[0], *pipes[1]):
        os.close(fd)


def run_alone(act: Callable[[], None]) -> None:
    """Run in a child, where no other thread takes descriptors."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        except BaseException:  # noqa: BLE001 - the child ends here
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
