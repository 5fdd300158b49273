# SPDX-License-Identifier: Apache-2.0
"""What a mount has borrowed that nobody has adopted yet."""

from __future__ import annotations

import os
from pathlib import Path

from firstread.device.mixeddevice import MixedDevice
from firstread.device.watches import Watches, make_watches
from firstread.sectors.sectorstore import SectorStore

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
