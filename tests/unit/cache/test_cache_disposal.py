# SPDX-License-Identifier: Apache-2.0
"""What becomes of sectors that cannot be emptied."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import cast

import pytest

from firstread.cache.disposal import Disposal
from firstread.cache.presence import Presence
from firstread.errors import NodeError
from firstread.sectors.sectorstore import SectorStore


@pytest.mark.parametrize("error", [NodeError("read-only"), RuntimeError("whatever it is")])
def test_reads_of_a_sector_that_cannot_be_emptied_go_on_and_of_those_that_follow(
    error: Exception,
) -> None:
    ids = [bytes([number]) * 32 for number in range(3)]
    spared: list[bytes] = []
    again: list[bytes] = []

    def empty(_: bytes) -> None:
        raise error

    presence = SimpleNamespace(
        changed=threading.Condition(),
        clock=SimpleNamespace(size=lambda _: 1, spared=spared.append),
        forget=lambda _: True,
        keep=lambda _: None,
        unpark=lambda sector_id: [sector_id],
        again=again.extend,
    )
    store = SimpleNamespace(open=empty, empty=empty)
    disposal = Disposal(cast(Presence, presence), cast(SectorStore, store))
    disposal.evict(ids)
    assert spared == again == ids
    assert not disposal.evictions
