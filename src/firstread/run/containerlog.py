# SPDX-License-Identifier: Apache-2.0
"""The log of a detached container: its output, on disk.

Owns the file format, its bound, and following a log. Invariant: output of any bytes comes back as
written, split at the same places between the two streams.

Each line is ``TIME STREAM TAG CONTENT``: RFC 3339 in UTC, ``stdout`` or ``stderr``, ``F`` for a
full line or ``P`` for a part whose line continues. This is the log format of the Kubernetes
container runtime interface, which unlike JSON can hold bytes that are not text. A file of 16 MiB
becomes ``NAME.1``, and a new one begins.
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
    """Appends to a log; safe for threads.

    A full or broken disk drops output rather than stop the container; `dropped_bytes` counts it.
    """

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self.dropped_bytes = 0
        self._path = path
        self._file_bytes = file_bytes
        self._lock = threading.Lock()
        self._open()

    def write(self, stream: str, content: bytes) -> None:
        """Append the output of one read from `stream`."""
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
            with contextlib.suppress(FileNotFoundError):  # the last attempt got no further
                os.replace(self._path, rotated(self._path))
            before = self._descriptor
            self._open()
            os.close(before)  # last: if there is no new file, nobody else has this number
        written = os.write(self._descriptor, record)
        if written < len(record):
            os.ftruncate(self._descriptor, self._size)  # a half record would end every reader
            raise OSError
        self._size += written


def rotated(path: Path) -> Path:
    """Return the path of a log's older half."""
    return path.with_name(f"{path.name}.1")


def read_log(
    path: Path,
    *,
    tail: int | None = None,
    follow: bool = False,
    is_running: Callable[[], bool] = lambda: False,
) -> Iterator[LogEntry]:
    """Yield the entries of a log, oldest first.

    A follower that falls two files behind misses the entries in between.

    Args:
        path: as given to `LogWriter`.
        tail: so many lines of the existing log; None for all.
        follow: continue with new entries.
        is_running: asked at the end of the log while following; False stops it.

    Raises:
        OSError: the log cannot be read. A missing log is empty, or awaited.
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
            # Asked before the read, which then still sees the output before the end.
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
    """Yield the entries of the last `count` lines of both streams, by where lines begin.

    A line in several parts is one line, whatever the other stream wrote in between.
    """
    kept: deque[tuple[int, LogEntry]] = deque()  # each with the number of its line
    begun: dict[str, int] = {}  # by stream, the line that continues
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
    """Open a log; None if it is missing, and no longer awaited."""
    awaited = True
    while True:
        with contextlib.suppress(FileNotFoundError):
            return open(path, "rb")
        if not awaited:
            return None
        awaited = is_awaited()  # one more look: it may appear just before the end
        if awaited:
            time.sleep(_POLL_SECONDS)


def _newer(path: Path, file: BinaryIO) -> BufferedReader | None:
    """Open the successor of `file` at `path`; None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return open(path, "rb")
    return None


def _entries(file: BinaryIO) -> Iterator[LogEntry]:
    """Yield the complete records from the file's position on, and stop before a partial one."""
    for line in file:
        fields = line.split(b" ", 3)
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        if len(fields) == 4:
            content = fields[3] if fields[2] == b"F" else fields[3][:-1]
            yield LogEntry(fields[0].decode(), fields[1].decode(), content)


def log_time(seconds: float) -> str:
    """Return a time, in seconds since 1970, in the logs' form, whose order is that of time."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
