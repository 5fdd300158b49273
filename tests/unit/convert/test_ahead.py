# SPDX-License-Identifier: Apache-2.0
"""Reading ahead: order, errors, and that no thread and no generator stays behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from firstread.convert.ahead import DEPTH, ReadAhead
from firstread.errors import ImageError


class Numbers:
    """Yields numbers and remembers what became of it."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.given = 0
        self.closed_in = ""
        self._count = count
        self._error = error

    def items(self) -> Iterator[int]:
        try:
            for number in range(self._count):
                self.given += 1
                yield number
            if self._error is not None:
                raise self._error
        finally:
            self.closed_in = threading.current_thread().name


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("count", [0, 1, DEPTH, DEPTH + 1, 1000])
def test_gives_all_items_in_order(count: int) -> None:
    with ReadAhead(Numbers(count).items()) as ahead:
        assert list(ahead) == list(range(count))


def test_an_error_comes_where_its_item_would_have() -> None:
    with ReadAhead(Numbers(3, ImageError("damaged")).items()) as ahead:
        items = iter(ahead)
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ImageError, match="damaged"):
            next(items)


def test_stops_soon_when_the_consumer_does() -> None:
    numbers = Numbers(1_000_000)
    with ReadAhead(numbers.items()) as ahead:
        assert next(iter(ahead)) == 0
    assert numbers.given <= DEPTH + 4
    assert numbers.closed_in == "readahead"  # where it ran: a registry's answer is given back there


def test_an_error_of_the_consumer_is_not_hidden() -> None:
    numbers = Numbers(2, ImageError("late"))
    with pytest.raises(KeyError, match="mine"), ReadAhead(numbers.items()):
        raise KeyError("mine")


def test_no_item_is_taken_far_ahead() -> None:
    numbers = Numbers(1000)
    with ReadAhead(numbers.items(), depth=2) as ahead:
        for position, _ in enumerate(ahead):
            assert numbers.given <= position + 5
