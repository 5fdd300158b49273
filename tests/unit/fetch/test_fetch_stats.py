# SPDX-License-Identifier: Apache-2.0
"""Listeners to what happens."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from firstread.fetch.stats import Feed
from firstread.testing.patience import PATIENCE_S

THREADS, TURNS, STANDING = 4, 500, 20


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_listeners_that_come_and_go_at_once_lose_nobody(hasty: None) -> None:
    feed, lost = Feed(), list[int]()
    standing = [feed.listen() for _ in range(STANDING)]

    def come_and_go() -> None:
        for turn in range(TURNS):
            mine = feed.listen()
            feed.tell("endpoint", endpoint="x", registry="y", state="healthy", error=None)
            if mine.empty():
                lost.append(turn)
            feed.leave(mine)

    threads = [threading.Thread(target=come_and_go) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not lost
    assert all(each.qsize() == THREADS * TURNS for each in standing)
    for each in standing:
        feed.leave(each)
    assert feed._listeners == []
