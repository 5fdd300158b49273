# SPDX-License-Identifier: Apache-2.0
"""Which reads fail so that others need not wait. A list is the kernel, one set is all lanes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.cache.pending import PendingRead
from firstread.cache.presence import Presence
from firstread.cache.quarantine import Quarantine
from firstread.config import PolicyTable
from firstread.device.base import Read
from firstread.device.fanotify import Group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.fetch import fairness
from firstread.fetch.answers import Answers
from firstread.fetch.denials import Denials
from firstread.fetch.fairness import CROWDING_S, SCANNER_S, Fairness
from firstread.fetch.outcomes import Outcomes
from firstread.fetch.providers import Providers
from firstread.fetch.reads import LEAST, Reads
from firstread.fetch.stats import Feed
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.memorysource import make_sectors
from firstread.testing.patience import PATIENCE_S

SECTOR = make_sectors(1).wanted[0]
MOST = 4 * LEAST
ME = os.getpid()


class Bench:
    """The fairness of a node whose reads all wait for a lane."""

    def __init__(self, store: SectorStore) -> None:
        presence = Presence(store, FanotifyDevice(store, Group(-1)))
        self.reads, self.denials = Reads(MOST), Denials(lambda *_: False)
        self.answered: list[tuple[int, bool]] = []
        self.waiting: set[PendingRead] = set()
        answers = Answers(self.reads, self, lambda _: None)
        providers = Providers(presence, PolicyTable())
        quarantine = Quarantine(store.root)
        outcomes = Outcomes(answers, providers, self.denials, Feed(), quarantine, presence)
        self.fairness = Fairness(self.reads, self.denials, outcomes, answers, self.cancel)
        self.number = 0

    def answer(self, number: int, *, allow: bool = True) -> bool:
        self.answered.append((number, allow))
        return True

    def cancel(self, lost: set[PendingRead]) -> list[PendingRead]:
        found = [read for read in self.waiting if read in lost]
        self.waiting -= lost
        return found

    def comes(
        self, image: str = "a", *, pid: int = 0, age_s: float = 0.0, offset: int = 0, fd: int = -1
    ) -> bool:
        """Take a read; return whether it may wait."""
        self.number += 1
        event = Read(self.number, pid, offset, 4096, fd)
        read = self.reads.take(event, time.monotonic() - age_s)
        read.sector = SECTOR
        if self.fairness.admit(read, image):
            self.waiting.add(read)
            return True
        return False


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with SectorStore(tmp_path / "root", filesystems=None) as store:
        yield Bench(store)


def test_the_newest_reads_of_an_image_go_when_it_crowds_for_long(bench: Bench) -> None:
    for _ in range(MOST - 4):
        assert bench.comes(age_s=CROWDING_S - 1)
    bench.fairness.expire()
    assert bench.answered == []  # many begin at once
    for read in bench.waiting:
        read.came -= 2.0
    bench.fairness.expire()
    kept = bench.reads.waiting("a")
    assert kept == MOST // 2
    failed = [number for number, allow in bench.answered if not allow]
    assert sorted(failed) == list(range(kept + 1, MOST - 3))


def test_a_read_of_an_image_that_crowds_fails_at_once(bench: Bench) -> None:
    for _ in range(MOST):
        bench.comes(age_s=CROWDING_S + 1)
    bench.fairness.expire()
    room = bench.reads.waiting("a")
    while bench.comes(age_s=CROWDING_S + 1):
        assert bench.number < 2 * MOST
    assert bench.reads.waiting("a") == room
    assert bench.answered[-1] == (bench.number, False)
    assert bench.comes("b")


def test_a_read_that_was_denied_a_moment_ago_is_denied_again(bench: Bench) -> None:
    before = PendingRead(99, ME, 0, 4096, -1, time.monotonic() - 1)
    bench.denials.note(before, SECTOR.entry.id, SECTOR.entry.size, time.monotonic())
    empty = os.memfd_create("sector")
    assert not bench.comes(pid=ME, fd=empty)
    assert bench.answered == [(1, False)]
    assert bench.reads.waiting("a") == 0
    whole = os.memfd_create("sector")
    os.truncate(whole, SECTOR.entry.size)
    assert bench.comes(pid=ME, fd=whole)  # it came meanwhile
    assert bench.comes(pid=ME, offset=8192, fd=os.memfd_create("sector"))  # another read


def test_reads_of_a_reader_that_is_gone_are_answered(bench: Bench) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(timeout=PATIENCE_S)
    assert bench.comes(pid=gone.pid)
    assert bench.comes()
    bench.fairness.expire()
    assert bench.answered == [(1, False)]
    assert len(bench.denials) == 0  # nobody asks again


def test_a_scanner_waits_only_for_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "is_scanner", lambda pid: pid == ME)
    monkeypatch.setattr(fairness, "gone", lambda _: set())
    assert bench.comes(pid=ME, age_s=SCANNER_S + 1)
    assert bench.comes(pid=ME)
    assert bench.comes(pid=1, age_s=SCANNER_S + 1)
    bench.fairness.expire()
    assert bench.answered == [(1, False)]
