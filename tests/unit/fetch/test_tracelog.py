# SPDX-License-Identifier: Apache-2.0
"""The record of a start in the fetcher: bounded, and of the first mount."""

from __future__ import annotations

import pytest

from firstread.documents import decode, encode
from firstread.fetch import tracelog
from firstread.fetch.tracelog import MOST_S, SeenReads, TraceLog
from firstread.traces.sectorreads import SectorRead, pack_read, unpack_reads


def reads(log: TraceLog) -> list[SectorRead]:
    return unpack_reads(log.document("sha256:0", 16).reads)


def test_a_read_is_noted_with_its_time() -> None:
    log = TraceLog(100.0)
    log.note(100.25, 3, 4096, 8192)
    log.note(99.0, 4, 0, 4096)  # it came while the record was made
    assert reads(log) == [SectorRead(250_000, 3, 4096, 8192), SectorRead(0, 4, 0, 4096)]
    assert len(log) == 2
    assert log.quiet_s(101.0) == 0.75


def test_the_first_mount_begins_it() -> None:
    log = TraceLog(100.0)
    log.note(100.0, 1, 0, 4096)
    assert not log.since_mount
    log.begin(200.0, cold=True)
    log.note(201.0, 2, 0, 4096)
    log.begin(300.0, cold=False)
    assert reads(log) == [SectorRead(1_000_000, 2, 0, 4096)]
    assert (log.since_mount, log.cold) == (True, True)


def test_a_read_from_before_the_mount_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    log = TraceLog(100.0)

    def pack(read: SectorRead, waited_us: int) -> bytes:
        log.begin(200.0, cold=True)  # by the thread that mounts
        return pack_read(read, waited_us)

    monkeypatch.setattr(tracelog, "pack_read", pack)
    log.note(100.0, 1, 0, 4096)
    assert reads(log) == []


def test_it_ends_with_its_time_or_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracelog, "MOST_READS", 2)
    log = TraceLog(0.0)
    log.note(MOST_S, 1, 0, 4096)
    assert (len(log), log.has_ended(MOST_S), log.has_ended(1.0)) == (0, True, False)
    for time_s in (1.0, 2.0, 3.0):
        log.note(time_s, 1, 0, 4096)
    assert (len(log), log.has_ended(3.0)) == (2, True)


@pytest.mark.parametrize(("offset", "length"), [(1 << 62, 4096), (0, 1 << 32)])
def test_a_read_behind_any_sector_is_left_out(offset: int, length: int) -> None:
    log = TraceLog(0.0)
    log.note(1.0, 1, offset, length)
    assert len(log) == 0


def test_a_record_crosses_the_socket() -> None:
    import json

    log = TraceLog(0.0)
    log.note(1.0, 65_535, (1 << 32) - 8192, 4096)
    document = log.document("sha256:0", 16)
    assert decode(json.loads(encode(document)), SeenReads) == document
    assert unpack_reads(pack_read(SectorRead(1, 2, 3, 4)) + b"torn") == [SectorRead(1, 2, 3, 4)]


def test_a_read_is_noted_with_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracelog, "MOST_READS", 2)
    log = TraceLog(100.0)
    for number in range(4):
        log.note(101.0, number, 0, 4096, 0.5 * number)
    assert list(log.reads()) == [
        (101.0, 0.0, SectorRead(1_000_000, 0, 0, 4096)),
        (101.0, 0.5, SectorRead(1_000_000, 1, 0, 4096)),
    ]
    assert log.lost == 2
    assert list(log.last) == [0.0, 0.5, 1.0, 1.5]
    assert unpack_reads(pack_read(SectorRead(1, 2, 3, 4), 1 << 40)) == [SectorRead(1, 2, 3, 4)]
