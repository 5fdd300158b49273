# SPDX-License-Identifier: Apache-2.0
"""When present sectors are written to the disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from firstread.cache.flush import Flusher
from firstread.sectors.sectorstore import SectorStore

IDS = [bytes([number]) * 32 for number in range(4)]
FLUSHED = 0o400
SIZE = len(b"content")


def stored(tmp_path: Path) -> SectorStore:
    store = SectorStore(tmp_path / "store")
    store.ensure(IDS)
    for sector_id in IDS:
        store.path(sector_id).write_bytes(b"content")
    return store


@contextlib.contextmanager
def held(sector_id: bytes) -> Iterator[bool]:
    yield True


def flushed(store: SectorStore) -> list[bool]:
    return [store.path(i).stat().st_mode & 0o777 == FLUSHED for i in IDS]


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_sectors_are_flushed_when_no_more_come(tmp_path: Path) -> None:
    with stored(tmp_path) as store:
        flusher = Flusher(store, held, calm_s=0.2)
        flusher.add(IDS[0], SIZE)
        time.sleep(0.1)
        flusher.add(IDS[1], SIZE)
        time.sleep(0.15)
        assert not any(flushed(store))
        wait(lambda: flushed(store) == [True, True, False, False])
        flusher.add(IDS[2], SIZE)
        wait(lambda: flushed(store) == [True, True, True, False])


def test_sectors_that_never_stop_coming_are_flushed_too(tmp_path: Path) -> None:
    with stored(tmp_path) as store:
        flusher = Flusher(store, held, calm_s=10, patience_s=0.2)
        deadline = time.monotonic() + 5
        while not flushed(store)[0]:
            flusher.add(IDS[0], SIZE)
            time.sleep(0.01)
            assert time.monotonic() < deadline


def test_a_sector_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    with stored(tmp_path) as store:
        flusher = Flusher(store, held, calm_s=0.01)
        store.remove(IDS[:1])
        flusher.add(IDS[0], SIZE)
        flusher.add(IDS[1], SIZE)
        wait(lambda: store.path(IDS[1]).stat().st_mode & 0o777 == FLUSHED)


def test_a_sector_of_many_mounts_is_flushed_once(tmp_path: Path) -> None:
    noted = []

    @contextlib.contextmanager
    def note(sector_id: bytes) -> Iterator[bool]:
        noted.append(sector_id)
        yield True

    with stored(tmp_path) as store:
        flusher = Flusher(store, note, calm_s=0.05)
        for sector_id in IDS[:2] * 3:
            flusher.add(sector_id, SIZE)
        wait(lambda: all(flushed(store)[:2]))
    assert noted == IDS[:2]
