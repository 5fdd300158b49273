# SPDX-License-Identifier: Apache-2.0
"""FUSE mounts that come and go while their readers wait, read on, and die."""

from __future__ import annotations

import hashlib
import os
import queue
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.device.base import Read
from firstread.device.fusedevice import FuseDevice
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.devicebench import output, start_reader, summary
from firstread.testing.lazymount import write_metadata
from firstread.testing.patience import PATIENCE_S
from firstread.units import KiB

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(120)]

SECTORS, SECTOR_BYTES, CYCLES = 8, 64 * KiB, 6
HOWS = ("random", "read", "mmap", "direct", "pages", "splice", "random", "direct")
DATA = [random.Random(slot).randbytes(SECTOR_BYTES) for slot in range(SECTORS)]
IDS = [hashlib.sha256(data).digest() for data in DATA]
NOTHING = ("", "errno 5", "errno 2")  # killed, denied, or too late for its mount


class Fetcher:
    """Answers reads in a thread as chance says: it fills, denies, or lets them wait for a while."""

    def __init__(self, store: SectorStore) -> None:
        self.kept: dict[int, tuple[int, int]] = {}
        self.device = FuseDevice(store, keep=self._keep, drop=self._drop)
        self._asked: queue.SimpleQueue[Read | None] = queue.SimpleQueue()
        self.device.ask = self._asked.put
        self._chance = random.Random(1)
        self._late: list[Read] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _keep(self, number: int, pair: tuple[int, int]) -> None:
        self.kept[number] = pair

    def _drop(self, number: int) -> None:
        del self.kept[number]

    def _serve(self) -> None:
        while True:
            try:
                read = self._asked.get(timeout=0.02)
            except queue.Empty:
                read = self._late.pop() if self._late else self._asked.get()
            if read is None:
                return
            what = self._chance.random()
            if what < 0.2:
                self._late.append(read)
            else:
                self._answer(read, allow=what < 0.9)

    def _answer(self, read: Read, *, allow: bool) -> None:
        if allow:
            os.pwrite(read.fd, DATA[IDS.index(read.sector_id)], 0)
        os.close(read.fd)
        self.device.answer(read.number, allow=allow)

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()
        for read in self._late:
            self._answer(read, allow=False)


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[Fetcher]:
    write_metadata(tmp_path / "metadata", IDS, SECTOR_BYTES)
    with SectorStore(tmp_path / "store", filesystems=None) as store:
        store.ensure(IDS)
        made = Fetcher(store)
        yield made
        made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_right(slot: int, said: str) -> bool:
    """Return whether a reader has printed the beginning of a sector: a read may be short."""
    return said == summary(DATA[slot][: int(said.split(maxsplit=1)[0])])


def fuse_threads() -> int:
    return sum(thread.name.startswith("fuse") for thread in threading.enumerate())


def test_mounts_come_and_go_under_readers_that_die(fetcher: Fetcher, tmp_path: Path) -> None:
    chance, device = random.Random(2), fetcher.device
    opened, ended = len(os.listdir("/proc/self/fd")), list[tuple[int, subprocess.Popen[str]]]()
    for cycle in range(CYCLES):
        place = tmp_path / f"mnt{cycle}"
        place.mkdir()
        device.attach(tmp_path / "metadata", IDS, place)
        readers = [
            (slot, start_reader(place / str(slot), 0, SECTOR_BYTES, how))
            for slot, how in enumerate(HOWS)
        ]
        if cycle % 2:
            readers[-1][1].wait(timeout=PATIENCE_S)
        for _, reader in chance.sample(readers, 3):
            reader.kill()
        device.detach(place, lazy=True)
        device.watch(IDS)
        ended += readers
    said = [(slot, output(reader)) for slot, reader in ended]
    data_read = [(slot, text) for slot, text in said if text not in NOTHING]
    assert len(data_read) > len(said) // 4
    assert [one for one in data_read if not is_right(*one)] == []
    until(lambda: not fetcher.kept and not fuse_threads())
    assert device.pairs() == {}
    until(lambda: len(os.listdir("/proc/self/fd")) <= opened)
