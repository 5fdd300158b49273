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
from pathlib import Path

import pytest

from firstread.config import CacheTable, PolicyTable
from firstread.device.fanotify import Group
from firstread.errors import NodeError
from firstread.node import fetcher as fetcher_module
from firstread.node.cache import Cache
from firstread.node.check import Checks
from firstread.node.fetcher import Fetcher
from firstread.node.filling import Waiter, Wanted
from firstread.node.opener import Opener
from firstread.node.wire import Request, receive_answered
from firstread.sectors.store import SectorStore
from firstread.testing.memorysource import make_sectors
from firstread.testing.patience import PATIENCE_S

DENY = 2
COUNT = 500


def test_a_supervisor_that_does_not_read_for_a_while_is_told_later(tmp_path: Path) -> None:
    """What it is never told of it would keep open for ever."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel takes its least
    ours.settimeout(0.0)
    theirs.setblocking(False)
    answers, kernel = os.pipe()
    with ours, theirs, SectorStore(tmp_path / "root", filesystems=None) as store:
        fetcher = Fetcher(
            store, Group(kernel), ours, workers=1, policy=PolicyTable(), limits=CacheTable()
        )

        def read(number: int) -> None:
            """Take an event of a file that is no sector: it is denied at once."""
            fetcher.handle(Request(number, 1, 0, 4096, os.open(os.devnull, os.O_RDONLY)))

        for number in range(COUNT):
            read(number)
        told = []
        while True:
            try:
                told += receive_answered(theirs) or []
            except BlockingIOError:
                break
        assert 0 < len(told) < COUNT, "it could be told at once"
        read(COUNT)
        told += receive_answered(theirs) or []
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
            Group(kernel.fileno()),
            ours,
            workers=1,
            policy=PolicyTable(),
            limits=CacheTable(),
        )
        for number in range(count):
            fetcher.handle(Request(number, 1, 0, 4096, -1))
        told: list[int] = []
        while len(told) < count:
            try:
                told += receive_answered(theirs) or []
            except BlockingIOError:
                fetcher.handle(Request(count, 1, 0, 4096, -1))
        assert told[:count] == list(range(count))


def test_reads_of_a_sector_that_cannot_be_checked_fail(tmp_path: Path) -> None:
    """They must not come back again and again: a disk that has failed does not get better."""

    class Broken(Cache):
        @contextlib.contextmanager
        def holding(self, sector_id: bytes) -> Iterator[bool]:
            raise NodeError("cannot empty a sector file: Read-only file system")
            yield

    denied: queue.Queue[tuple[list[int], str]] = queue.Queue()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def deny(waiters: Sequence[Waiter], error: Exception, _: Wanted) -> None:
        if waiters:
            denied.put(([request.number for request, _ in waiters], str(error)))

    with (
        (tmp_path / "kernel").open("wb") as kernel,
        ours,
        theirs,
        SectorStore(tmp_path / "root", filesystems=None) as store,
    ):
        group, limits = Group(kernel.fileno()), CacheTable()
        owner = Fetcher(store, group, ours, workers=1, policy=PolicyTable(), limits=limits)
        again: list[Waiter] = []
        cache = Broken(store, group, limits, owner)
        checks = Checks(store, cache, again.extend, again.extend, deny)
        waiter = Request(5, 1, 0, 4096, kernel.fileno()), 0.0
        checks.read(waiter, make_sectors(1).wanted[0])
        numbers, error = denied.get(timeout=PATIENCE_S)
        assert numbers == [5]
        assert "Read-only" in error
        assert again == []


def test_a_doubtful_file_that_cannot_be_opened_for_a_moment_stays(tmp_path: Path) -> None:
    """Meanwhile its sector is fetched; if its source is away, the file is all there is."""
    may = threading.Event()

    class Scanned(SectorStore):
        def open_aside(self, sector_id: bytes) -> int:
            assert may.wait(PATIENCE_S)
            return super().open_aside(sector_id)

    again: queue.Queue[Sequence[Waiter]] = queue.Queue()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wanted = make_sectors(1).wanted[0]
    sector_id = wanted.entry.id
    with (
        (tmp_path / "kernel").open("wb") as kernel,
        ours,
        theirs,
        Scanned(tmp_path / "root", filesystems=None) as store,
    ):
        store.ensure([sector_id])
        (store.root / "aside" / sector_id.hex()).write_bytes(b"some bytes")
        group, limits = Group(kernel.fileno()), CacheTable()
        owner = Fetcher(store, group, ours, workers=1, policy=PolicyTable(), limits=limits)
        checks = Checks(store, owner.cache, lambda _: None, again.put, lambda *_: None)
        checks._opener = Opener("aside", 0.01, 0.01)
        assert checks.is_aside(sector_id)
        checks.read((Request(5, 1, 0, 4096, kernel.fileno()), 0.0), wanted)
        assert [request.number for request, _ in again.get(timeout=PATIENCE_S)] == [5]
        assert not checks.is_aside(sector_id)  # reads do not come back here while it is held up
        may.set()
        while checks._opener.is_held_up:
            pass
        assert checks.is_aside(sector_id)
        assert sector_id in store.aside()
        checks.trust(sector_id, kernel.fileno())  # it came whole
        assert not store.aside()


def test_reads_of_mounts_that_are_not_served_yet_have_a_quota_and_need_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "CROWDING_S", 0.0)
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
            Group(kernel.fileno()),
            ours,
            workers=1,
            policy=PolicyTable(),
            limits=CacheTable(),
            most_waiting=64,
        )
        fetcher.expect(reads=True, guarded=True)
        for number in range(60):
            fetcher.handle(Request(number, 0, 0, 4096, store.open(sector_id)))
        fetcher.handle(Request(100, gone.pid, 0, 4096, store.open(sector_id)))
        assert fetcher.waiting() == 61
        fetcher.expire()
        assert fetcher.waiting() == 32
        fetcher.expect(reads=False, guarded=False)  # nobody has the sector
        assert fetcher.waiting() == 0
