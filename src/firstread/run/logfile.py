# SPDX-License-Identifier: Apache-2.0
"""The output of a detached container, kept on disk.

Owns the file format, its bound and following it. Invariant: output of any bytes comes back as it
was written, split at the same places between the two streams.

Each line is ``TIME STREAM TAG CONTENT``: RFC 3339 in UTC, ``stdout`` or ``stderr``, ``F`` for a
whole line or ``P`` for a piece whose line goes on. That is the log format of the Kubernetes
container runtime interface, which unlike JSON can carry bytes that are not text. A file is at most
16 MiB; then it becomes ``NAME.1``, and a new one begins.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from firstread.units import MiB

FILE_BYTES = 16 * MiB
_POLL_SECONDS = 0.1


class LogEntry(NamedTuple):
    """One piece of output; `content` ends with a newline if its line does."""

    time: str
    stream: str
    content: bytes


class LogWriter:
    """Appends to a log; may be used from several threads.

    When the disk is full or fails, output is dropped and not the container stopped: `dropped_bytes`
    counts it.
    """

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self.dropped_bytes = 0
        self._path = path
        self._file_bytes = file_bytes
        self._lock = threading.Lock()
        self._open()

    def write(self, stream: str, content: bytes) -> None:
        """Append what was read at once from `stream`."""
        prefix = f"{log_time(time.time())} {stream} ".encode()
        *lines, rest = content.split(b"\n")
        records = [prefix + b"F " + line + b"\n" for line in lines]
        if rest:
            records.append(prefix + b"P " + rest + b"\n")
        with self._lock:
            try:
                self._append(b"".join(records))
            except OSError:
                self.dropped_bytes += len(content)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _append(self, record: bytes) -> None:
        if self._size and self._size + len(record) > self._file_bytes:
            os.replace(self._path, rotated(self._path))
            os.close(self._descriptor)
            self._open()
        written = os.write(self._descriptor, record)
        if written < len(record):
            os.ftruncate(self._descriptor, self._size)  # no half record, or nothing reads on
            raise OSError
        self._size += written


def rotated(path: Path) -> Path:
    """Return where the older half of a log is."""
    return path.with_name(f"{path.name}.1")


def read_log(
    path: Path,
    *,
    tail: int | None = None,
    follow: bool = False,
    is_running: Callable[[], bool] = lambda: False,
) -> Iterator[LogEntry]:
    """Yield what a log holds, oldest first.

    A follower that falls two files behind misses what lay between.

    Args:
        path: as given to `LogWriter`.
        tail: of what is there already, so many lines; None for all.
        follow: go on with what is appended.
        is_running: asked when the end is reached while following; False ends it.

    Raises:
        OSError: the log cannot be read. One that does not exist is empty, or waited for.
    """
    with contextlib.ExitStack() as stack:
        first = _first(path, lambda: follow and is_running())
        if first is None:
            return
        file: BinaryIO = stack.enter_context(first)
        there = _entries(file)
        with contextlib.suppress(FileNotFoundError):
            old = stack.enter_context(open(rotated(path), "rb"))
            if not os.path.sameopenfile(old.fileno(), file.fileno()):
                there = itertools.chain(_entries(old), there)
        yield from there if tail is None else last_lines(there, tail)
        while True:
            # Asked before the read: what is written before the end is then still seen.
            running = follow and is_running()
            newer = _newer(path, file)
            yield from _entries(file)
            if newer:
                file = stack.enter_context(newer)
            elif not running:
                return
            else:
                time.sleep(_POLL_SECONDS)


def last_lines(entries: Iterable[LogEntry], count: int) -> Iterator[LogEntry]:
    """Yield the entries of the last `count` lines, by where they begin, of both streams together.

    A line that was written in pieces is one line, whatever the other stream got between them.
    """
    kept: deque[tuple[int, LogEntry]] = deque()  # with the number of its line
    begun: dict[str, int] = {}  # lines that go on, by stream
    lines = 0
    for entry in entries:
        number = begun.pop(entry.stream, lines)
        lines = max(lines, number + 1)
        if not entry.content.endswith(b"\n"):
            begun[entry.stream] = number
        kept.append((number, entry))
        while kept and kept[0][0] < lines - count:
            kept.popleft()
    yield from (entry for number, entry in kept if number >= lines - count)


def _first(path: Path, is_awaited: Callable[[], bool]) -> BufferedReader | None:
    """Open a log; None if it is not there, nor awaited any more."""
    awaited = True
    while True:
        with contextlib.suppress(FileNotFoundError):
            return open(path, "rb")
        if not awaited:
            return None
        awaited = is_awaited()  # and one more look: it may have been made before the end
        if awaited:
            time.sleep(_POLL_SECONDS)


def _newer(path: Path, file: BinaryIO) -> BufferedReader | None:
    """Open what has taken the place of `file` at `path`; None if it is there, or is deleted."""
    with contextlib.suppress(FileNotFoundError):
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return open(path, "rb")
    return None


def _entries(file: BinaryIO) -> Iterator[LogEntry]:
    """Yield the whole records from the file's position on; leave it before a half one."""
    for line in file:
        fields = line.split(b" ", 3)
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        if len(fields) == 4:
            content = fields[3] if fields[2] == b"F" else fields[3][:-1]
            yield LogEntry(fields[0].decode(), fields[1].decode(), content)


def log_time(seconds: float) -> str:
    """Return a time, in seconds since 1970, as it is in logs: earlier ones are smaller texts."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
