# SPDX-License-Identifier: Apache-2.0
"""A process that reads each file of a tree, checks its digest, and records the result.

Imports nothing of the project, so that it starts fast and can be killed at any moment.
Invariant: each read is in the log exactly once, with its begin and end (monotonic seconds).

``reader.py EXPECTED PLACE LOG SEED PAUSE_S PASSES``; `EXPECTED` is a pickle of path to (size,
SHA-256). Lines of the log::

    {"from": t, "to": t, "reads": n, "seconds": [...]}   what went well, and what each file took
    {"bad": "failed", "path": …, "from": t, "to": t, "errno": n}
    {"bad": "wrong", "path": …, "from": t, "to": t}
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import sys
import time
from typing import TextIO

READ_BYTES = 128 * 1024
BATCH_S = 0.2


def read_file(path: bytes, size: int) -> tuple[int, str]:
    """Return how many reads a file took, and its digest. Raises: OSError."""
    digest, position, reads = hashlib.sha256(), 0, 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while position < size:
            reads += 1
            data = os.pread(fd, READ_BYTES, position)
            if not data:
                break
            digest.update(data)
            position += len(data)
        # The next pass must ask the sector file again, which may be empty by then.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return reads, digest.hexdigest()


class Log:
    """Lines, written at least every `BATCH_S` seconds."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._reads = 0
        self._seconds: list[float] = []
        self._since = time.monotonic()

    def good(self, reads: int, started: float) -> None:
        """Note a file that was right."""
        now = time.monotonic()
        self._reads += reads
        self._seconds.append(round(now - started, 6))
        if now - self._since >= BATCH_S:
            self.flush()

    def bad(self, kind: str, path: bytes, started: float, number: int = 0) -> None:
        """Note a read that failed, or a file whose bytes are wrong."""
        self.flush()
        self._write(
            bad=kind, path=os.fsdecode(path), **{"from": started}, to=time.monotonic(), errno=number
        )

    def flush(self) -> None:
        """Write pending lines."""
        now = time.monotonic()
        if self._reads:
            self._write(**{"from": self._since}, to=now, reads=self._reads, seconds=self._seconds)
        self._reads, self._seconds, self._since = 0, [], now

    def _write(self, **fields: object) -> None:
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()


def main(expected: str, place: str, log_path: str, seed: str, pause_s: str, passes: str) -> None:
    """Read the tree, in another order each time."""
    with open(expected, "rb") as file:
        tree: dict[bytes, tuple[int, str]] = pickle.load(file)
    numbers = random.Random(seed)
    with open(log_path, "a") as file_out:
        log = Log(file_out)
        for _ in range(int(passes)):
            names = sorted(tree)
            numbers.shuffle(names)
            for name in names:
                size, wanted = tree[name]
                started = time.monotonic()
                try:
                    reads, got = read_file(os.fsencode(place) + b"/" + name, size)
                except OSError as exc:
                    log.bad("failed", name, started, exc.errno or 0)
                else:
                    if got == wanted:
                        log.good(reads, started)
                    else:
                        log.bad("wrong", name, started)
                time.sleep(float(pause_s))
        log.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
