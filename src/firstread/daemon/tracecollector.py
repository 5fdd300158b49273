# SPDX-License-Identifier: Apache-2.0
"""Keeps a trace of every cold start of a node: ``[trace] collect``.

Owns when a record becomes a file, and which files stay. `firstread.fetch.tracelog` has the records.
Invariant: a read never waits for it. One thread looks once a second, and a process of its own with
the lowest priority maps a record to files: that takes seconds of computing for a large image.

A directory has `MOST_FILES` traces and `MOST_BYTES` at most; the oldest go. Names come from the
digest of the image and the time.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from firstread.cache.imagestore import ImageStore
from firstread.documents import decode, encode
from firstread.errors import FirstreadError
from firstread.fetch.fetcher import Fetcher
from firstread.fetch.tracelog import SeenReads, TraceLog
from firstread.traces.savedtrace import save_trace
from firstread.traces.sectorreads import trace_of, unpack_reads
from firstread.units import MiB

log = logging.getLogger("trace")

QUIET_S = 10.0  # without a read that asks, until a start counts as over
MOST_FILES = 256
MOST_BYTES = 256 * MiB
_MOST_ENDED = 16  # records that wait to be written
_LOOK_S = 1.0
_WRITE_S = 600.0
_LOWEST = 19  # nice(2)


class Collector:
    """Writes traces for one fetcher.

    Args:
        fetcher: that has the records.
        root: of the node.
        directory: of the traces.
    """

    def __init__(self, fetcher: Fetcher, root: Path, directory: Path) -> None:
        self._fetcher, self._root, self._directory = fetcher, root, directory
        fetcher.ended_logs = deque(maxlen=_MOST_ENDED)

    def start(self) -> None:
        """Look from now on."""
        threading.Thread(target=self._run, name="collector", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            for digest, record in self._due(time.monotonic()):
                try:
                    self._write(record.document(digest, 0))
                except (OSError, subprocess.SubprocessError) as exc:
                    log.warning("no trace of %s: %s", digest, exc)

    def _due(self, now: float) -> Iterator[tuple[str, TraceLog]]:
        """Yield each record that is to be written, with the digest of its image; once."""
        ended = self._fetcher.ended_logs
        while ended:
            digest, record = ended.popleft()
            if is_due(record, now, ended=True):
                record.collected = True
                yield digest, record
        for served in self._fetcher.served():
            if is_due(served.log, now, ended=False):
                served.log.collected = True
                yield served.image.digest, served.log

    def _write(self, seen: SeenReads) -> None:
        command = [sys.executable, "-m", __name__, str(self._root), str(self._directory)]
        done = subprocess.run(
            command,
            input=encode(seen).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_WRITE_S,
            check=False,
        )
        if done.returncode:
            words = done.stderr[-1000:].decode(errors="replace").strip()
            log.warning("no trace of %s: %s", seen.digest, words)


def is_due(record: TraceLog, now: float, *, ended: bool) -> bool:
    """Return whether a record is that of a cold start which is over.

    Args:
        record: of an image.
        now: monotonic seconds.
        ended: nobody uses the image any more.
    """
    if record.collected or not record.cold or not len(record):
        return False
    return ended or record.has_ended(now) or record.quiet_s(now) >= QUIET_S


def write(seen: SeenReads, root: Path, directory: Path) -> Path:
    """Write a record as a trace; return its file.

    Args:
        seen: the record.
        root: of the node, which still has the image.
        directory: of the traces; made if it is missing.

    Raises:
        FirstreadError: the image is gone, or the file cannot be written.
        OSError: the directory cannot be made or read.
    """
    image = ImageStore(root, tidy=False).load(seen.digest).block_image
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{seen.digest.replace(':', '-')}.{time.time_ns() // 1_000_000}.jsonl"
    trace = trace_of(image, unpack_reads(seen.reads), read_ahead_kib=seen.read_ahead_kib)
    save_trace(directory / name, trace)
    prune(directory)
    return directory / name


def prune(directory: Path) -> None:
    """Remove the oldest traces that are too many, or too large together, and torn ones."""
    for path in directory.glob(".sha256-*"):
        if time.time() - path.stat().st_mtime > _WRITE_S:
            path.unlink(missing_ok=True)
    found = sorted((p.stat().st_mtime_ns, p) for p in directory.glob("sha256-*.jsonl"))
    count, size = 0, 0
    for _, path in reversed(found):
        count, size = count + 1, size + path.stat().st_size
        if count > MOST_FILES or size > MOST_BYTES:
            path.unlink(missing_ok=True)


def main(root: str, directory: str) -> int:
    """Write the record on stdin; return the exit code."""
    os.nice(_LOWEST)
    try:
        write(decode(json.load(sys.stdin), SeenReads), Path(root), Path(directory))
    except (FirstreadError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
