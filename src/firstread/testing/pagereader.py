# SPDX-License-Identifier: Apache-2.0
"""A process that has very many reads waiting: one thread for each page of a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from firstread.testing.patience import PATIENCE_S

# Reads pages of a file, each in a thread; prints how many were right when all have ended.
_READ_PAGES = """
import os, sys, threading
path, expected, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fd = os.open(path, os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
data = open(expected, "rb").read()
found = []
def read(page):
    try:
        found.append(os.pread(fd, 4096, page * 4096) == data[page * 4096 : (page + 1) * 4096])
    except OSError as exc:
        found.append(exc.errno)
threading.stack_size(65536)
threads = [threading.Thread(target=read, args=(first + n,)) for n in range(count)]
for thread in threads:
    thread.start()
print("begun", flush=True)
for thread in threads:
    thread.join()
print(found.count(True), found.count(5), len(found))
"""


class Pages:
    """A process that reads many pages of a file at once.

    Args:
        path: of the file.
        expected: path of a file with the same content.
        first: page.
        count: pages.
    """

    def __init__(self, path: Path, expected: Path, first: int, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _READ_PAGES, path, expected, str(first), str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def outcome(self) -> tuple[int, int, int]:
        """Return how many reads were right, were EIO, and were done."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        right, failed, done = map(int, out.split())
        return right, failed, done

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)
