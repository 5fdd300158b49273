# SPDX-License-Identifier: Apache-2.0
"""Runs an iterator in its own thread, a few items ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")

DEPTH = 4  # items ahead, each 1 MiB in a layer's pipeline


class ReadAhead(Generic[T]):
    """Iterates over `items` in another thread; a context manager, so that the thread always ends.

    An exception of the iterator takes the place of its item.
    """

    def __init__(self, items: Iterable[T], depth: int = DEPTH) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for item in self._items:
                self._queue.put((item,))
                if self._stop.is_set():
                    break
            if isinstance(self._items, Generator):
                self._items.close()  # in its own thread, not where the collector runs
        except BaseException as exc:  # noqa: BLE001 - handed to the consumer
            end = exc
        self._queue.put(end)
