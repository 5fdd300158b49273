# SPDX-License-Identifier: Apache-2.0
"""Opening files by name, which can wait for another process, with a bound on how long.

Owns a thread, in which nothing else waits. Invariant: who asks is held up for the patience at most,
and what was opened too late is closed.

Facts about opening (Linux 6.18): a fanotify group with FAN_OPEN_PERM, such as a virus scanner, lets
an open(2) wait until it has decided. A scanner with one thread that just reads a file of a lazy
mount waits for us meanwhile; if we waited for it, nobody would ever go on. Not concerned: stat,
chmod, truncate, mknod, rename, unlink and fanotify_mark, O_PATH, and descriptors that came with
events or are duplicated.

Source: fs/open.c (do_dentry_open), include/linux/fsnotify.h (fsnotify_open_perm_and_set_mode).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from firstread.errors import NodeError

PATIENCE_S = 0.05  # an open takes 10 us

T = TypeVar("T")


class HeldUpError(NodeError):
    """Another process does not let a file be opened. It may, in a moment."""

    def __init__(self) -> None:
        super().__init__(
            "another process does not let a file be opened",
            hint="exclude the sector store and the mounts of firstread from scanning"
            " (firstread doctor names who scans)",
        )


@dataclass(slots=True, eq=False)
class _Errand(Generic[T]):
    act: Callable[[], T]
    undo: Callable[[T], object]
    done: threading.Event = field(default_factory=threading.Event)
    result: T | None = None
    error: BaseException | None = None
    given_up: bool = False


class Opener:
    """A thread that opens files for others.

    Args:
        name: of the thread.
        patience_s: how long an opening may take.
    """

    def __init__(self, name: str, patience_s: float = PATIENCE_S) -> None:
        self._name, self._patience_s = name, patience_s
        self._todo: queue.SimpleQueue[_Errand[object]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._began: float | None = None  # when the one began that is under way
        self._started = False

    @property
    def is_held_up(self) -> bool:
        """Whether an opening takes too long just now."""
        began = self._began
        return began is not None and time.monotonic() - began > self._patience_s

    def do(self, act: Callable[[], T], undo: Callable[[T], object] = lambda _: None) -> T:
        """Return what `act` does.

        Args:
            act: opens something.
            undo: gets what `act` gave, if nobody waits for it any more.

        Raises:
            HeldUpError: it takes too long.
        """
        if self.is_held_up:
            raise HeldUpError
        errand: _Errand[T] = _Errand(act, undo)
        with self._lock:
            if not self._started:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._started = True
        self._todo.put(cast(_Errand[object], errand))
        if not errand.done.wait(self._patience_s):
            with self._lock:
                if not errand.done.is_set():
                    errand.given_up = True
                    raise HeldUpError
        if errand.error is not None:
            raise errand.error
        return cast(T, errand.result)

    def _run(self) -> None:
        while True:
            errand = self._todo.get()
            if errand.given_up:
                continue
            self._began = time.monotonic()
            try:
                errand.result = errand.act()
            except Exception as exc:  # noqa: BLE001 - it is raised where it was asked for
                errand.error = exc
            self._began = None
            with self._lock:
                late = errand.given_up
                errand.done.set()
            if late and errand.error is None:
                errand.undo(errand.result)
