# SPDX-License-Identifier: Apache-2.0
"""Whether the device works on this host, found by doing it on a tiny image.

Owns the trial: the steps that ``firstread doctor`` shows one by one, and that a daemon has to
prove before its first mount. Invariant: no step waits longer than `TIMEOUT_S`, none reads through
the mount from this process, and all that is made lies in the scratch directory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from firstread.device.erofsmount import mount_erofs, unmount
from firstread.device.fanotify import Group
from firstread.erofs.tree import Device, Node, chunk_address, directory
from firstread.erofs.writer import write_erofs
from firstread.errors import NodeError, from_os_error
from firstread.mountinfo import filesystem_of

_BLOCK = 4096
_CONTENT = b"firstread doctor".ljust(2 * _BLOCK, b"\n")
TIMEOUT_S = 30
_KERNEL = "use Linux 6.14 or later"
_READ = "import os, sys; os.write(1, os.read(os.open(sys.argv[1], os.O_RDONLY), 1 << 20))"


def prove(scratch: Path) -> str:
    """Try all that the fanotify device needs in an empty directory, which keeps what was made.

    Returns:
        what was seen.

    Raises:
        NodeError: something does not work, such as: EROFS reads zeros where a sector file ends.
    """
    with contextlib.closing(Trial(scratch)) as trial:
        return ", ".join([step() for _, step in trial.steps()][1:])


class Trial:
    """A lazy mount of two files with two blocks each, and what is tried on it.

    Args:
        scratch: an empty directory, which keeps what was made.
    """

    def __init__(self, scratch: Path) -> None:
        self._metadata = scratch / "metadata"
        self._sectors = [scratch / "sector0", scratch / "sector1"]
        self._mountpoint = scratch / "mnt"
        self._open = contextlib.ExitStack()

    def close(self) -> None:
        self._open.close()

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield what is tried, in order; a step returns what was seen, or raises NodeError."""
        for name, step in {
            "fanotify group": self._make_group,
            "events on the sector store": self._mark,
            "EROFS over sector files": self._mount,
            "data comes on its first read": self._first_read,
            "missing data is an error": self._fail_closed,
        }.items():
            yield name, functools.partial(_done, step)

    def _make_group(self) -> str:
        self._group = self._open.enter_context(Group.open())
        return f"Linux {os.uname().release}"

    def _mark(self) -> str:
        for sector in self._sectors:
            with sector.open("wb") as file:
                self._group.mark(file.fileno())
        return filesystem_of(self._sectors[0])

    def _mount(self) -> str:
        root = directory()
        root.children = {
            name: Node(
                0o100644,
                size=len(_CONTENT),
                chunk_size=len(_CONTENT),
                chunks=[chunk_address(slot, 0)],
            )
            for slot, name in enumerate((b"0", b"1"))
        }
        blocks = len(_CONTENT) // _BLOCK
        with self._metadata.open("wb") as out:
            write_erofs(out, root, [Device(bytes([slot]) * 32, blocks) for slot in range(2)])
        self._mountpoint.mkdir()
        mount_erofs(self._metadata, self._sectors, self._mountpoint)
        self._open.callback(unmount, self._mountpoint, lazy=True)
        return "mounted file-backed"

    def _first_read(self) -> str:
        with self._reader("0") as reader:
            ready, _, _ = select.select([self._group], [], [], TIMEOUT_S)
            events = self._group.read(memoryview(bytearray(_BLOCK)))
            if not ready or not events:
                raise NodeError("the first read of a sector raised no event", hint=_KERNEL)
            for event in events:
                os.pwrite(event.fd, _CONTENT, 0)
                self._group.unmark(event.fd)
            self._group.finish([event.fd for event in events])
            if _output(reader) != _CONTENT:
                raise NodeError("the first read of a sector gave wrong bytes", hint=_KERNEL)
        return f"{len(events)} event, then the right bytes"

    def _fail_closed(self) -> str:
        """Read across the end of a sector that is half here and that nobody serves."""
        self._group.close()
        self._sectors[1].write_bytes(_CONTENT[:_BLOCK])
        with self._reader("1") as reader:
            got = _output(reader)
        if len(got) > _BLOCK or not _CONTENT.startswith(got):
            raise NodeError(
                "EROFS reads zeros where a sector file ends",
                hint="use Linux 7.0 or later, or a stable kernel that has the commit "
                '"erofs: set fileio bio failed in short read case"',
            )
        return "no zeros behind the end of a sector file"

    @contextlib.contextmanager
    def _reader(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Give a child that reads a file of the mount; it is gone afterwards."""
        command = [sys.executable, "-I", "-S", "-c", _READ, str(self._mountpoint / name)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as reader:
            try:
                yield reader
            finally:
                reader.kill()


def _done(step: Callable[[], str]) -> str:
    try:
        return step()
    except OSError as exc:
        raise from_os_error(exc, "cannot try the device") from exc


def _output(reader: subprocess.Popen[bytes]) -> bytes:
    """Return what the reader got until its first error.

    Raises:
        NodeError: it waits for ever.
    """
    try:
        return reader.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired as exc:
        raise NodeError("a read of a sector did not return", hint=_KERNEL) from exc
