# SPDX-License-Identifier: Apache-2.0
"""Whether the device works on this host, found by doing it on a tiny image.

Owns the trial that a daemon has to pass before its first mount, and ``firstread doctor`` repeats.
Invariant: no step waits longer than `TIMEOUT_S`, none reads through the mount from this process,
and all that is made lies in the scratch directory.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
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
_KERNEL = "use Linux 6.12 or later"
_READ = "import os, sys; os.write(1, os.read(os.open(sys.argv[1], os.O_RDONLY), 1 << 20))"


def prove(scratch: Path, *, whole: bool | None = None) -> str:
    """Try all that the fanotify device needs in an empty directory, which keeps what was made.

    Args:
        scratch: the directory.
        whole: events are to say no range, as on Linux 6.12; if None, as the kernel has it.

    Returns:
        what was seen.

    Raises:
        NodeError: something does not work, such as: EROFS reads zeros where a sector file ends.
    """
    try:
        with contextlib.closing(_Trial(scratch, whole)) as trial:
            return trial.run()
    except OSError as exc:
        raise from_os_error(exc, "cannot try the device") from exc


class _Trial:
    """A lazy mount of two files with two blocks each, and what is tried on it.

    Args:
        scratch: an empty directory, which keeps what was made.
        whole: see `prove`.
    """

    def __init__(self, scratch: Path, whole: bool | None) -> None:
        self._metadata = scratch / "metadata"
        self._sectors = [scratch / "sector0", scratch / "sector1"]
        self._mountpoint = scratch / "mnt"
        self._open = contextlib.ExitStack()
        self._group = self._open.enter_context(Group.open(whole=whole))

    def close(self) -> None:
        self._open.close()

    def run(self) -> str:
        """Try it; return what was seen."""
        for sector in self._sectors:
            with sector.open("wb") as file:
                self._group.mark(file.fileno())
        self._mount()
        self._first_read()
        part = "of whole sectors" if self._group.asks_for_sectors else "of ranges"
        self._fail_closed()
        return f"EROFS over files on {filesystem_of(self._metadata)}, events {part}, no zeros"

    def _mount(self) -> None:
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

    def _first_read(self) -> None:
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

    def _fail_closed(self) -> None:
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


def _output(reader: subprocess.Popen[bytes]) -> bytes:
    """Return what the reader got until its first error.

    Raises:
        NodeError: it waits for ever.
    """
    try:
        return reader.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired as exc:
        raise NodeError("a read of a sector did not return", hint=_KERNEL) from exc
