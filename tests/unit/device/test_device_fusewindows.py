# SPDX-License-Identifier: Apache-2.0
"""Windows of read-ahead that may fail, and how often."""

from __future__ import annotations

import mmap

import pytest

from firstread.device.fusewindows import MOST_PAGES, MOST_REFUSED, Windows

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize(
    ("offset", "size", "may_fail"),
    [
        (0, PAGE, False),  # somebody waits for this page
        (0, PAGE - 1, False),
        (0, 2 * PAGE, True),
        (5 * PAGE, 2 * PAGE, True),
        (0, MOST_PAGES * PAGE, True),
        (0, MOST_PAGES * PAGE + 1, False),  # a sequential reader wants all of it
        (0, 1 << 20, False),
        (0, 0, False),
    ],
)
def test_only_a_few_pages_together_are_a_window(offset: int, size: int, may_fail: bool) -> None:
    assert Windows().refuse(7, offset, size) is may_fail


def test_no_page_is_refused_twice() -> None:
    windows = Windows()
    assert windows.refuse(7, 4 * PAGE, 2 * PAGE)
    assert not windows.refuse(7, 4 * PAGE, 2 * PAGE)
    assert not windows.refuse(7, 3 * PAGE, 2 * PAGE)
    assert not windows.refuse(7, 5 * PAGE, 4 * PAGE)
    assert windows.refuse(7, 6 * PAGE, 2 * PAGE)
    assert windows.refuse(8, 4 * PAGE, 2 * PAGE)


def test_nothing_is_refused_any_more_once_it_could_not_be_remembered() -> None:
    windows = Windows()
    refused = [windows.refuse(node, 0, 2 * PAGE) for node in range(MOST_REFUSED)]
    assert refused.count(True) == refused.index(False) == MOST_REFUSED // 2
