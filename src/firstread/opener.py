# SPDX-License-Identifier: Apache-2.0
"""Opening files by name, which can wait for another process, with a bound on how long.

Owns a thread in which nothing else waits. Invariant: a caller waits for the patience at most, and a
file opened too late is closed.

Facts about opening (Linux 6.18): a fanotify group with FAN_OPEN_PERM, such as a virus scanner,
makes an open(2) wait for its decision. A scanner with one thread that reads a file of a lazy mount
waits for us; if we waited for it, neither would ever continue. Not affected: stat, chmod, truncate,
mknod, rename, unlink and fanotify_mark, O_PATH, and descriptors that came with events or are
duplicated. A thread that waits in this way is in the kernel's ``fanotify_…`` (proc_pid_wchan(5)),
which tells a scanner from a slow disk or a busy machine.

Source: fs/open.c (do_dentry_open), include/linux/fsnotify.h (fsnotify_open_perm_and_set_mode).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from firstread.errors import NodeError, from_shortage

PATIENCE_S = 0.05  # an open takes 10 us
BUSY_S = 1.0  # while no other process is known to block it

T = TypeVar("T")


class HeldUpError(NodeError):
    """Another process blocks the opening of a file. It may soon allow it."""

    def __init__(self) -> None:
        super().__init__(
            "another process blocks the opening of a file",
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
        busy_s: the same while no other process is known to block it.

    Attributes:
        is_held_up: whether an abandoned opening is still under way.
    """

    def __init__(self, name: str, patience_s: float = PATIENCE_S, busy_s: float = BUSY_S) -> None:
        self.is_held_up = False
        self._name, self._patience_s = name, patience_s
        self._looks = max(1, int(busy_s / patience_s))
        self._todo: queue.SimpleQueue[_Errand[object]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = 0  # number that the kernel gives it
        self._started = False

    def do(self, act: Callable[[], T], undo: Callable[[T], object] = lambda _: None) -> T:
        """Return the result of `act`.

        Args:
            act: opens something.
            undo: gets the result of `act` if nobody waits for it any more.

        Raises:
            HeldUpError: it takes too long.
            BusyError: this process can have no more threads.
        """
        if self.is_held_up:
            raise HeldUpError
        errand: _Errand[T] = _Errand(act, undo)
        with self._lock:
            if not self._started:
                try:
                    threading.Thread(target=self._run, name=self._name, daemon=True).start()
                except RuntimeError as exc:
                    raise from_shortage(exc) or exc from exc
                self._started = True
        self._todo.put(cast(_Errand[object], errand))
        if not self._comes(errand.done):
            with self._lock:
                if not errand.done.is_set():
                    errand.given_up = self.is_held_up = True
                    raise HeldUpError
        if errand.error is not None:
            raise errand.error
        return cast(T, errand.result)

    def _comes(self, done: threading.Event) -> bool:
        # Counted, so that a time in which the whole process was stopped is one look.
        for _ in range(self._looks):
            if done.wait(self._patience_s):
                return True
            if self._waits_for_another():
                return False
        return False

    def _waits_for_another(self) -> bool:
        """Return whether the thread is known to wait for another process's decision."""
        try:
            with open(f"/proc/self/task/{self._thread}/wchan", "rb") as file:
                return b"fanotify" in file.read(256)
        except OSError:
            return False

    def _run(self) -> None:
        self._thread = threading.get_native_id()
        while True:
            errand = self._todo.get()
            begun = not errand.given_up
            if begun:
                try:
                    errand.result = errand.act()
                except Exception as exc:  # noqa: BLE001 - it is raised where it was asked for
                    errand.error = exc
            with self._lock:
                late = errand.given_up
                errand.done.set()
                self.is_held_up = False
            if begun and late and errand.error is None:
                errand.undo(errand.result)
