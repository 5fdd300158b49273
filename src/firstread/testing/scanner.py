# SPDX-License-Identifier: Apache-2.0
"""A virus scanner: one thread that reads each file to its end before somebody may open it.

Owns a process of its own, which is all that a test has to do with it: whoever scans must not wait
for itself. Invariant: it ends with its last `Scanner`, and then nothing waits for it any more.

Source: fanotify(7), FAN_OPEN_PERM; what clamonacc and others do.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Self

from firstread.device import syscalls
from firstread.device.fanotify import parse_events
from firstread.testing.patience import PATIENCE_S

_CLASS_CONTENT = 0x04
_CLOEXEC = 0x01
_OPEN_PERM = 0x00010000
_ONDIR = 0x40000000
_MARK_MOUNT = 0x10
_MARK_FILESYSTEM = 0x100
_ALLOW = (0x01).to_bytes(4, sys.byteorder)


class Scanner:
    """A scanner of file systems; a context manager.

    Args:
        log: is given the path of each file that was scanned, one a line; not where it scans.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "firstread.testing.scanner"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
            )

    def watch(self, path: Path, *, mount: bool = False) -> None:
        """Scan the file system of `path` from now on, or the mount alone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d %s\n" % (mount, os.fsencode(path)))
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        assert ready, self._log.read_text()
        assert os.read(self._process.stdout.fileno(), 16) == b"ok\n", self._log.read_text()

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self._process.pid

    def scanned(self) -> list[str]:
        """Return the paths of the files that were scanned."""
        return self._log.read_text().splitlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _scan(group: int, fd: int) -> None:
    path = os.readlink(f"/proc/self/fd/{fd}")
    try:
        while os.read(fd, 1 << 16):
            pass
    except OSError:
        pass  # a directory, or a read that failed: it may be opened all the same
    os.write(group, fd.to_bytes(4, sys.byteorder) + _ALLOW)
    os.close(fd)
    os.write(2, os.fsencode(path) + b"\n")


def main() -> None:
    """Take what to watch from stdin, and scan."""
    group = syscalls.fanotify_init(_CLASS_CONTENT | _CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
    buffer = bytearray(4096)
    while True:
        ready, _, _ = select.select([0, group], [], [])
        if group in ready:
            size = os.readv(group, [memoryview(buffer)[:64]])
            for event in parse_events(bytes(buffer[:size])):
                _scan(group, event.fd)
        elif not (line := os.read(0, 4096)):
            return
        else:
            mount, _, path = line.strip().partition(b" ")
            kind = _MARK_MOUNT if mount == b"1" else _MARK_FILESYSTEM
            flags = syscalls.FAN_MARK_ADD | kind
            syscalls.fanotify_mark(group, flags, _OPEN_PERM | _ONDIR, syscalls.AT_FDCWD, path)
            os.write(1, b"ok\n")


if __name__ == "__main__":
    main()
