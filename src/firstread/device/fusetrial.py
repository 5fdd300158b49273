# SPDX-License-Identifier: Apache-2.0
"""Whether FUSE works on this host, found by doing it on a tiny image.

Owns the trial. Absent bytes are never zeros: every byte that a reader gets is an answer of ours.
Invariant: it does not wait longer than `TIMEOUT_S` and `END_S`, and all that is made lies in the
scratch directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from firstread.device import syscalls
from firstread.device.base import Read
from firstread.device.fusedevice import FuseDevice
from firstread.erofs.tree import Device, Node, chunk_address, directory
from firstread.erofs.writer import write_erofs
from firstread.errors import NodeError, from_os_error
from firstread.sectors.sectorstore import SectorStore

TIMEOUT_S = 30
END_S = 5  # for a reader to be gone
_BLOCK = 4096
_CONTENT = b"firstread doctor".ljust(_BLOCK, b"\n")
_READ = "import os, sys; os.write(1, os.read(os.open(sys.argv[1], os.O_RDONLY), 1 << 20))"
_KERNEL = "use Linux 5.4 or later"


def prove_fuse(scratch: Path) -> str:
    """Mount an image of one absent file by FUSE, and read it.

    Args:
        scratch: an empty directory, which keeps what was made.

    Returns:
        what was seen.

    Raises:
        NodeError: that does not work.
    """
    try:
        _try(scratch)
    except OSError as exc:
        raise from_os_error(exc, "cannot try FUSE") from exc
    return "the first read was asked for, and got the right bytes"


def _try(scratch: Path) -> None:
    sector_id = hashlib.sha256(_CONTENT).digest()
    metadata, mountpoint = scratch / "metadata", scratch / "mnt"
    root = directory()
    root.children = {
        b"0": Node(0o100644, size=_BLOCK, chunk_size=_BLOCK, chunks=[chunk_address(0, 0)])
    }
    with metadata.open("wb") as out:
        write_erofs(out, root, [Device(sector_id, 1)])
    mountpoint.mkdir()
    with SectorStore(scratch / "store", filesystems=None) as store:
        store.ensure([sector_id])
        device = FuseDevice(store)

        def fill(read: Read) -> None:
            os.pwrite(read.fd, _CONTENT, 0)
            os.close(read.fd)
            device.answer(read.number)

        device.ask = fill
        device.attach(metadata, [sector_id], mountpoint)
        got = _read(mountpoint)
    if got != _CONTENT:
        raise NodeError("a read by FUSE gave wrong bytes", hint=_KERNEL)


def _read(mountpoint: Path) -> bytes:
    """Return what another process reads, and unmount."""
    command = [sys.executable, "-I", "-S", "-c", _READ, str(mountpoint / "0")]
    with open(os.devnull, "r+b") as null:
        reader = subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null)
    try:
        return reader.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired as exc:
        raise NodeError("a read by FUSE did not return", hint=_KERNEL) from exc
    finally:
        # By force, which fails all requests: a reader that waits for an answer cannot be killed.
        with contextlib.suppress(OSError):
            syscalls.umount2(os.fsencode(mountpoint), syscalls.MNT_FORCE | syscalls.MNT_DETACH)
        reader.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.communicate(timeout=END_S)
