# SPDX-License-Identifier: Apache-2.0
"""The record of an image's reads, requests and sectors."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from firstread.cache.nodeimage import NodeImage, SectorMap
from firstread.fetch import history as module
from firstread.fetch import tracelog
from firstread.fetch.history import History
from firstread.fetch.queue import Cause, Filling
from firstread.fetch.stats import Feed, ImageStats, LaneCounts
from firstread.fetch.tracelog import LAST, TraceLog
from firstread.oci.model import Descriptor
from firstread.sectors.format import Geometry, SectorEntry
from firstread.sectors.image import BlockImage
from firstread.units import KiB

IDS = [bytes([number]) * 32 for number in range(4)]


class Noted:
    """An image of four sectors, and what is noted of it."""

    def __init__(self) -> None:
        blob = Descriptor(media_type="x", digest="sha256:b", size=64 * KiB)
        entries = [SectorEntry(i, 16 * KiB, 0, n * KiB, KiB) for n, i in enumerate(IDS)]
        index = SimpleNamespace(sectors=entries, geometry=Geometry(16 * KiB, 4 * KiB))
        block = cast(BlockImage, SimpleNamespace(index=index, blobs=[blob]))
        self.sectors = SectorMap(NodeImage("sha256:a", Path("/"), block, {}))
        self.log = TraceLog(time.monotonic())
        self.stats, self.history = ImageStats(), History(self.sectors, self.log)
        self.counts = LaneCounts(Feed(), lambda _: [self])

    def filling(self, slot: int, cause: Cause, *, demanded: bool = False) -> Filling:
        wanted = self.sectors.find(IDS[slot])
        assert wanted is not None
        return Filling(wanted, cause=cause, demanded=demanded)

    def wait(self, slot: int, seconds: float, offset: int = 0) -> float:
        came = time.monotonic()
        self.log.note(came, slot, offset, 4096, seconds)
        return came


@pytest.fixture
def noted() -> Noted:
    return Noted()


def test_a_new_record_says_what_is_on_the_node(noted: Noted) -> None:
    document = noted.history.document([16 * KiB, 0, 4 * KiB, 0])
    assert (document.steps, document.reads, document.requests) == ([], [], [])
    assert [sector.filled for sector in document.sectors] == [16 * KiB, 0, 4 * KiB, 0]
    assert {(s.size, s.compressed, s.cause, s.at) for s in document.sectors} == {
        (16 * KiB, KiB, None, None)
    }
    assert abs(document.began - time.time()) < 60


def test_times_count_from_the_order_to_mount(noted: Noted) -> None:
    began = time.monotonic() - 5
    noted.history.mounted(began, {"resolve": 1.0, "metadata": 2.5, "mount": 1.0})
    noted.history.mounted(began + 4, {"resolve": 9.0, "metadata": 9.0, "mount": 9.0})
    came = noted.wait(2, 0.25, offset=8192)
    document = noted.history.document([0] * 4)
    assert [(step.name, step.at, step.seconds) for step in document.steps] == [
        ("resolve", 0.0, 1.0),
        ("metadata", 1.0, 2.5),
        ("mount", 3.5, 1.0),
    ]
    (read,) = document.reads
    assert read.at == pytest.approx(came - began, abs=1e-5)
    assert (read.seconds, read.sector, read.offset, read.bytes) == (0.25, 2, 8192, 4096)
    assert document.elapsed >= read.at > 4


def test_a_mount_of_an_image_that_is_served_already_does_not_change_its_begin(noted: Noted) -> None:
    noted.history.mounted(time.monotonic(), {"resolve": 1.0})
    assert noted.history.document([0] * 4).steps == []


def test_a_request_lasts_until_its_last_bytes(noted: Noted) -> None:
    noted.counts.requested(noted.filling(1, Cause.PREFETCH), 2 * KiB)
    (sent,) = noted.history.document([0] * 4).requests
    assert (sent.sector, sent.cause, sent.bytes, sent.received) == (1, "prefetch", 2 * KiB, 0)
    noted.counts.received(noted.filling(1, Cause.PREFETCH), KiB)
    noted.counts.received(noted.filling(2, Cause.PREFETCH), KiB)
    noted.counts.requested(noted.filling(0, Cause.DEMAND), KiB)
    first, second = noted.history.document([0] * 4).requests
    assert (first.received, second.received) == (2 * KiB, 0)
    assert first.at + first.seconds <= second.at


@pytest.mark.parametrize(
    ("cause", "demanded", "told"),
    [
        (Cause.DEMAND, True, "demand"),
        (Cause.PREFETCH, False, "prefetch"),
        (Cause.COMPLETION, False, "completion"),
        (Cause.COMPLETION, True, "demand"),  # the rest of what a read has asked for
    ],
)
def test_a_sector_says_why_it_came(noted: Noted, cause: Cause, demanded: bool, told: str) -> None:
    noted.history.present(noted.filling(3, cause, demanded=demanded))
    document = noted.history.document([0, 0, 0, 16 * KiB])
    assert [sector.cause for sector in document.sectors] == [None, None, None, told]
    assert document.sectors[3].at is not None
    assert noted.history.came() == {told: 1}


def test_a_full_record_keeps_the_first_and_counts_the_rest(
    noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    monkeypatch.setattr(tracelog, "MOST_READS", 3)
    for number in range(2 * LAST):
        noted.wait(0, number)
        noted.counts.requested(noted.filling(0, Cause.DEMAND), 1)
        noted.counts.received(noted.filling(0, Cause.DEMAND), 1)
    document = noted.history.document([0] * 4)
    assert [read.seconds for read in document.reads] == [0, 1, 2]
    assert [request.received for request in document.requests] == [1, 1, 1]
    assert document.lost == 2 * (2 * LAST - 3)
    assert list(noted.log.last) == list(range(LAST, 2 * LAST))
