# SPDX-License-Identifier: Apache-2.0
"""Mounts that a fetcher before has left and that this one does not serve yet.

Owns the records that are still to be taken over, and tries each again until it is, or its mount is
gone: a process that is short of descriptors or memory for a moment must not lose a mount.
Invariant: what may belong to one of them counts as used meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from firstread.errors import FirstreadError, ImageError, NodeError, NotFoundError
from firstread.mountinfo import MountLine
from firstread.mounts.table import Mount, MountTable, seen_mounts

log = logging.getLogger("node")

RETRY_S = 1.0
LONGEST_RETRY_S = 60.0  # while it does not look like it: files that are damaged or missing


class LeftAloneError(NodeError):
    """The mount is of another device: this daemon will not serve it.

    Args:
        record: of the mount, as the table has it now.
        message: why.
        hint: what to do.
    """

    def __init__(self, record: Mount, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.record = record


class Orphans:
    """Records of mounts that wait for being taken over.

    Args:
        table: of the node.
        take_over: serves a mount of it, given what stands where (`seen_mounts`); raises
            FirstreadError if that is not possible now.
        lock: that is held while mounts change.
        changed: called after attempts, with the lock held.
        retry_s: between attempts, while what is in the way may pass.
    """

    def __init__(
        self,
        table: MountTable,
        take_over: Callable[[Mount, Mapping[str, MountLine]], None],
        lock: threading.RLock,
        changed: Callable[[], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self._table, self._take_over = table, take_over
        self._lock, self._changed, self._retry_s = lock, changed, retry_s
        self._records: dict[Path, Mount | None] = {}  # None: not read yet
        self._problems: dict[Path, FirstreadError] = {}

    def __iter__(self) -> Iterator[Mount]:
        return (mount for mount in list(self._records.values()) if mount is not None)

    def adopt_all(self) -> None:
        """Take over all mounts of the table; those that cannot be are tried again later."""
        with self._lock:
            self._records = dict.fromkeys(self._table.paths())
            self._attempt()
        if self._records:
            threading.Thread(target=self._run, name="orphans", daemon=True).start()

    @property
    def may_pass(self) -> bool:
        """Whether one of them is only in the way of something that passes. Takes no lock."""
        return any(not _lasts(error) for error in list(self._problems.values()))

    @property
    def exist(self) -> bool:
        """Whether there are any. Takes no lock."""
        return bool(self._records)

    def left_alone(self) -> set[str]:
        """Return the digests of images whose mounts no daemon of this device will serve."""
        problems = self._problems.values()
        return {exc.record.digest for exc in problems if isinstance(exc, LeftAloneError)}

    def claims(self, digest: str) -> bool:
        """Return whether one of them is of this image, or may be. Takes no lock."""
        records = list(self._records.values())
        return any(mount is None or mount.digest == digest for mount in records)

    def refuse(self, place: str) -> None:
        """Leave alone what is at a mount point. With the lock held.

        Raises:
            NodeError: one of them stands there, and cannot be taken over now either.
        """
        if self._at(place):
            self._attempt()
        for path in self._at(place):
            problem = self._problems.get(path)
            if isinstance(problem, LeftAloneError):
                message, hint = f"is left alone: {problem.message}", problem.hint
            else:
                message, hint = "could not be taken over yet", "the log says why"
            raise NodeError(f"the mount at {place} {message}", hint=hint)

    def _run(self) -> None:
        pause = self._retry_s
        while self._records:
            time.sleep(pause)
            with self._lock:
                self._attempt()
            pause = self._retry_s if self.may_pass else min(2 * pause, LONGEST_RETRY_S)

    def _attempt(self) -> None:
        seen: Mapping[str, MountLine] | None = None
        for path in list(self._records):
            try:
                seen = seen_mounts() if seen is None else seen
                mount = self._records[path] = self._table.read(path)
                if mount is not None:
                    self._take_over(mount, seen)
            except LeftAloneError as exc:
                self._note(self._moved(path, exc.record), exc)
            except FirstreadError as exc:
                self._note(path, exc)
            else:
                self._forget(path)
        self._changed()

    def _at(self, place: str) -> list[Path]:
        """Return the records of mounts that are, or were, at a mount point."""
        return [
            path
            for path, mount in self._records.items()
            if mount is not None and mount.mountpoint == place and not mount.detached
        ]

    def _moved(self, path: Path, record: Mount) -> Path:
        """Return where a record is by now: that of a mount changes when it leaves its place."""
        now = self._table.path(record)
        if now != path:
            self._forget(path)
            self._records[now] = record
        return now

    def _forget(self, path: Path) -> None:
        self._records.pop(path, None)
        self._problems.pop(path, None)

    def _note(self, path: Path, error: FirstreadError) -> None:
        known = self._problems.get(path)
        if known is None or str(known) != str(error):
            mount = self._records[path]
            words = (
                "is left alone" if isinstance(error, LeftAloneError) else "cannot be taken over yet"
            )
            log.warning("mount %s %s: %s", mount and mount.mountpoint, words, error)
        self._problems[path] = error


def _lasts(error: FirstreadError) -> bool:
    return isinstance(error, ImageError | NotFoundError | LeftAloneError)
