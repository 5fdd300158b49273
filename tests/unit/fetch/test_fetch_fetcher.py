# SPDX-License-Identifier: Apache-2.0
"""What becomes of events, and what the supervisor is told. A pipe or a file is the kernel."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from firstread.cache.integrity import Checks
from firstread.cache.nodecache import Cache
from firstread.cache.pending import PendingRead
from firstread.cache.presence import Presence
from firstread.config import CacheTable, PolicyTable
from firstread.daemon.protocol import receive_answered, send_answered
from firstread.device.base import Read
from firstread.device.fanotify import Group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.errors import NodeError
from firstread.fetch import fairness
from firstread.fetch.fetcher import Fetcher
from firstread.opener import Opener
from firstread.sectors.sectorstore import SectorStore
from firstread.sectors.source import Wanted
from firstread.sectors.unverified import UnverifiedFiles
from firstread.testing.memorysource import make_sectors
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import no_threads

DENY = 2
COUNT = 500


def _numbers(channel: socket.socket) -> list[int]:
    numbers = receive_answered(channel)
    assert isinstance(numbers, list)
    return numbers


def test_a_supervisor_that_does_not_read_for_a_while_is_told_later(tmp_path: Path) -> None:
    """What it is never told of it would keep open for ever."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel takes its least
    ours.settimeout(0.0)
    theirs.setblocking(False)
    answers, kernel = os.pipe()
    with ours, theirs, SectorStore(tmp_path / "root", filesystems=None) as store:
        fetcher = Fetcher(
            store,
            FanotifyDevice(store, Group(kernel)),
            partial(send_answered, ours),
            workers=1,
            policy=PolicyTable(),
            limits=CacheTable(),
        )

        def read(number: int) -> None:
            """Take an event of a file that is no sector: it is denied at once."""
            fetcher.handle(Read(number, 1, 0, 4096, os.open(os.devnull, os.O_RDONLY)))

        for number in range(COUNT):
            read(number)
        told: list[int] = []
        while True:
            try:
                told += _numbers(theirs)
            except BlockingIOError:
                break
        assert 0 < len(told) < COUNT, "it could be told at once"
        read(COUNT)
        told += _numbers(theirs)
        assert told == list(range(COUNT + 1))
        assert fetcher.waiting() == 0
    said = [struct.unpack("=iI", os.read(answers, 8)) for _ in range(COUNT + 1)]
    assert said == [(number, DENY) for number in range(COUNT + 1)]
    os.close(answers)
    os.close(kernel)


def test_however_much_is_told_later_arrives(tmp_path: Path) -> None:
    count = 18_000  # more than a message could carry
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0.0)
    theirs.settimeout(0.0)
    with (
        (tmp_path / "kernel").open("wb") as kernel,
        ours,
        theirs,
        SectorStore(tmp_path / "root", filesystems=None) as store,
    ):
        fetcher = Fetcher(
            store,
            FanotifyDevice(store, Group(kernel.fileno())),
            partial(send_answered, ours),
            workers=1,
            policy=PolicyTable(),
            limits=CacheTable(),
        )
        for number in range(count):
            fetcher.handle(Read(number, 1, 0, 4096, -1))
        told: list[int] = []
        while len(told) < count:
            try:
                told += _numbers(theirs)
            except BlockingIOError:
                fetcher.handle(Read(count, 1, 0, 4096, -1))
        assert told[:count] == list(range(count))


def test_reads_of_a_sector_that_cannot_be_checked_fail(tmp_path: Path) -> None:
    """They must not come back again and again: a disk that has failed does not get better."""

    class Broken(Presence):
        @contextlib.contextmanager
        def holding(self, sector_id: bytes) -> Iterator[bool]:
            raise NodeError("cannot empty a sector file: Read-only file system")
            yield

    denied: queue.Queue[tuple[list[int], str]] = queue.Queue()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def deny(reads: Sequence[PendingRead], error: Exception, _: Wanted) -> None:
        if reads:
            denied.put(([read.number for read in reads], str(error)))

    with (
        (tmp_path / "kernel").open("wb") as kernel,
        ours,
        theirs,
        SectorStore(tmp_path / "root", filesystems=None) as store,
    ):
        device, limits = FanotifyDevice(store, Group(kernel.fileno())), CacheTable()
        again: list[PendingRead] = []
        cache = Cache(Broken(store, device), store, limits)
        checks = Checks(store, cache, again.extend, again.extend, deny)
        read = PendingRead(5, 1, 0, 4096, kernel.fileno(), 0.0)
        with no_threads():  # the one that there is does the check
            checks.read(read, make_sectors(1).wanted[0])
        numbers, error = denied.get(timeout=PATIENCE_S)
        assert numbers == [5]
        assert "Read-only" in error
        assert again == []


def test_a_doubtful_file_that_cannot_be_opened_for_a_moment_stays(tmp_path: Path) -> None:
    """Meanwhile its sector is fetched; if its source is away, the file is all there is."""
    may = threading.Event()

    class Scanned(UnverifiedFiles):
        def open(self, sector_id: bytes) -> int:
            assert may.wait(PATIENCE_S)
            return super().open(sector_id)

    again: queue.Queue[Sequence[PendingRead]] = queue.Queue()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wanted = make_sectors(1).wanted[0]
    sector_id = wanted.entry.id
    with (
        (tmp_path / "kernel").open("wb") as kernel,
        ours,
        theirs,
        SectorStore(tmp_path / "root", filesystems=None) as store,
    ):
        store.ensure([sector_id])
        store.unverified = Scanned(store.root)
        (store.root / "aside" / sector_id.hex()).write_bytes(b"some bytes")
        device, limits = FanotifyDevice(store, Group(kernel.fileno())), CacheTable()
        owner = Fetcher(
            store,
            device,
            partial(send_answered, ours),
            workers=1,
            policy=PolicyTable(),
            limits=limits,
        )
        checks = Checks(store, owner.cache, lambda _: None, again.put, lambda *_: None)
        checks._opener = Opener("aside", 0.01, 0.01)
        assert checks.has_unverified(sector_id)
        checks.read(PendingRead(5, 1, 0, 4096, kernel.fileno(), 0.0), wanted)
        assert [read.number for read in again.get(timeout=PATIENCE_S)] == [5]
        assert not checks.has_unverified(sector_id)  # reads go elsewhere meanwhile
        may.set()
        while checks._opener.is_held_up:
            pass
        assert checks.has_unverified(sector_id)
        assert sector_id in store.unverified.sizes()
        device._opening = frozenset([sector_id])  # there are no marks here
        owner.presence.present(sector_id, kernel.fileno())  # it came whole
        assert not store.unverified.sizes()


def test_reads_of_mounts_that_are_not_served_yet_have_a_quota_and_need_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "CROWDING_S", 0.0)
    gone = subprocess.Popen(["true"])
    gone.wait(timeout=PATIENCE_S)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        (tmp_path / "kernel").open("wb") as kernel,
        ours,
        theirs,
        SectorStore(tmp_path / "root", filesystems=None) as store,
    ):
        sector_id = make_sectors(1).wanted[0].entry.id
        store.ensure([sector_id])
        fetcher = Fetcher(
            store,
            FanotifyDevice(store, Group(kernel.fileno())),
            partial(send_answered, ours),
            workers=1,
            policy=PolicyTable(),
            limits=CacheTable(),
            most_waiting=64,
        )
        fetcher.expect(reads=True, guarded=True)
        for number in range(60):
            fetcher.handle(Read(number, 0, 0, 4096, store.open(sector_id)))
        fetcher.handle(Read(100, gone.pid, 0, 4096, store.open(sector_id)))
        assert fetcher.waiting() == 61
        fetcher.expire()
        assert fetcher.waiting() == 32
        fetcher.expect(reads=False, guarded=False)  # nobody has the sector
        assert fetcher.waiting() == 0
