# SPDX-License-Identifier: Apache-2.0
"""Sectors for a server of whole disks, on a machine without a thread for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from firstread.errors import BusyError
from firstread.export.sectorfeed import SectorFeed
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.features import content
from firstread.testing.images import File, Image, Layer
from firstread.testing.packed import converted, opened
from firstread.testing.shortage import no_threads


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[SectorFeed]:
    place, manifest = converted(Image([Layer([File("a", content("a", 90_000))])]))
    with SectorStore(tmp_path) as store:
        store.claim()
        feed = SectorFeed(place, opened(place, manifest), store, stall_s=1.0)
        yield feed
        feed.close()


def test_a_read_is_told_that_there_is_no_thread(feed: SectorFeed) -> None:
    with no_threads(), pytest.raises(BusyError, match="no more threads") as caught:
        feed.ask("a client", 0, 1, lambda _: None)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_another_error_of_a_thread_is_not_its_own_cause(
    feed: SectorFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't create new thread at interpreter shutdown")  # of Python 3.12

    monkeypatch.setattr(threading.Thread, "start", end)
    with pytest.raises(RuntimeError, match="shutdown") as caught:
        feed.ask("a client", 0, 1, lambda _: None)
    assert caught.value.__cause__ is None
