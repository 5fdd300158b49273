# SPDX-License-Identifier: Apache-2.0
"""A terminal with a command in it, as a user sits before it; a context manager."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Self

from firstread.testing.patience import PATIENCE_S


class Terminal:
    """A new terminal of 33 rows and 77 columns.

    Args:
        argv: the command; killed when the context ends.
        env: its environment; None for ours.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._argv, self._env = argv, env
        self.seen = b""

    def __enter__(self) -> Self:
        self._master, self.slave = pty.openpty()
        self.resize(33, 77)
        self.before = termios.tcgetattr(self.slave)
        tty = self.slave
        self.process = subprocess.Popen(
            self._argv, stdin=tty, stdout=tty, stderr=tty, start_new_session=True, env=self._env
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=PATIENCE_S)
        os.close(self._master)
        os.close(self.slave)

    def resize(self, rows: int, columns: int) -> None:
        """Change the terminal's size, as dragging its window does."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: str | bytes) -> None:
        """Press keys."""
        os.write(self._master, text.encode() if isinstance(text, str) else text)

    def expect(self, text: str | bytes, seconds: float = 15) -> None:
        """Read until `text` is seen, and forget what is before it.

        Raises:
            AssertionError: it is not seen in time.
        """
        wanted = text.encode() if isinstance(text, str) else text
        deadline = time.monotonic() + seconds
        while wanted not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} not in {self.seen!r}"
            if select.select([self._master], [], [], left)[0]:
                self.seen += os.read(self._master, 4096)
        self.seen = self.seen.partition(wanted)[2]

    def restored(self) -> bool:
        """Return whether the terminal's settings are what they were at the start."""
        return termios.tcgetattr(self.slave) == self.before
