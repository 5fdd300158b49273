# SPDX-License-Identifier: Apache-2.0
"""A reader that a test paces: it reads one stretch at each command.

Owns one process. A test that breaks something several times during a read lets the reader continue
before each time, so that the speed of the machine does not change the test.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

from firstread.testing.patience import PATIENCE_S

_READ = """
import concurrent.futures, hashlib, sys, time
place, count, stretches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def one(number):
    time.sleep(float(sys.argv[4]))
    with open(f"{place}/f{number}", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for stretch in range(stretches):
        sys.stdin.readline()
        part = range(count * stretch // stretches, count * (stretch + 1) // stretches)
        print(*pool.map(one, part))
"""


class PacedReader:
    """A context manager: a process that reads the files ``f0``, ``f1`` … of a `PlainImage`.

    Args:
        place: mount point of the image.
        count: number of files.
        stretches: number of parts.
        pause_s: seconds before each file; two threads take turns.
    """

    def __init__(self, place: Path, count: int, stretches: int, pause_s: float = 0.03) -> None:
        arguments = [str(place), str(count), str(stretches), str(pause_s)]
        self._left = stretches
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _READ, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE_S)

    def go_on(self) -> None:
        """Let it read the next stretch."""
        assert self._left, "there are no more stretches"
        self._left -= 1
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def digests(self) -> list[str]:
        """Return the SHA-256 of each file, after the last stretch."""
        assert not self._left, "some stretches are unread"
        text, _ = self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, text
        return text.split()
