# SPDX-License-Identifier: Apache-2.0
"""Whether a device that we serve works on this host, found by doing it on a tiny image.

Owns the trial. Over FUSE alone absent bytes are never zeros: every byte that a reader gets is an
answer of ours. EROFS above it may make zeros of what it does not get.
Invariant: it does not wait longer than `TIMEOUT_S` and `END_S`, and all that is made lies in the
scratch directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from firstread.device import syscalls
from firstread.device.base import Read
from firstread.device.flatdevice import FlatDevice, LoopDevice
from firstread.device.fusedevice import FuseDevice
from firstread.device.mixeddevice import MixedDevice
from firstread.device.nbddevice import NbdDevice
from firstread.erofs.tree import Device, Node, chunk_address, directory
from firstread.erofs.writer import write_erofs
from firstread.errors import NodeError, from_os_error
from firstread.sectors.sectorstore import SectorStore

TIMEOUT_S = 30
END_S = 5  # for a reader to be gone
_BLOCK = 4096
_CONTENT = b"firstread doctor".ljust(_BLOCK, b"\n")
_READ = "import os, sys; os.write(1, os.read(os.open(sys.argv[1], os.O_RDONLY), 1 << 20))"


def prove_fuse(scratch: Path) -> str:
    """Mount an image whose data is absent, and read it; half of it comes, the rest is denied.

    Args:
        scratch: an empty directory, which keeps what was made.

    Returns:
        what was seen.

    Raises:
        NodeError: that does not work.
    """
    _prove(scratch, FuseDevice, "use Linux 5.4 or later")
    return "the first read was asked for, and got the right bytes"


def prove_flat(scratch: Path, device: type[FlatDevice] = FlatDevice) -> str:
    """`prove_fuse` for EROFS on a file over FUSE."""
    _prove(scratch, device, "use Linux 5.15 or later with EROFS")
    return "EROFS on a file over FUSE asked for absent data, and got the right bytes"


def prove_loop(scratch: Path) -> str:
    """`prove_flat`, with a loop device."""
    return prove_flat(scratch, LoopDevice)


def prove_mixed(scratch: Path) -> str:
    """`prove_fuse` for EROFS on a FUSE file for each absent sector."""
    _prove(scratch, MixedDevice, "use Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE")
    return "EROFS on files over FUSE asked for absent data, and got the right bytes"


def prove_nbd(scratch: Path) -> str:
    """`prove_fuse` for EROFS on an NBD device."""
    _prove(scratch, NbdDevice, "use Linux 5.15 or later with EROFS")
    return "EROFS on an NBD device asked for absent data, and got the right bytes"


def _prove(scratch: Path, make: Callable[[SectorStore], FuseDevice], hint: str) -> None:
    try:
        first, second = _try(scratch, make)
    except OSError as exc:
        raise from_os_error(exc, "cannot try the device") from exc
    except NodeError as exc:
        exc.hint = exc.hint or hint
        raise
    if first != _CONTENT:
        raise NodeError("a read gave wrong bytes", hint=hint)
    if len(second) > _BLOCK or not _CONTENT.startswith(second):
        raise NodeError(
            "EROFS reads zeros where data is absent",
            hint="use Linux 7.0 or later, or a stable kernel that has the commit "
            '"erofs: set fileio bio failed in short read case"',
        )


def _try(scratch: Path, make: Callable[[SectorStore], FuseDevice]) -> list[bytes]:
    """Return what was read of a block that comes, and then of it and one that is denied.

    The first read leaves its block in the page cache of the file over FUSE. So the second, of
    another file, finds a part of what it wants: a kernel may take the rest for zeros.
    """
    sector_id = hashlib.sha256(_CONTENT).digest()
    metadata, mountpoint = scratch / "metadata", scratch / "mnt"
    root = directory()
    root.children = {
        name: Node(0o100644, size=size, chunk_size=size, chunks=[chunk_address(0, 0)])
        for name, size in ((b"0", _BLOCK), (b"1", 2 * _BLOCK))
    }
    with metadata.open("wb") as out:
        write_erofs(out, root, [Device(sector_id, 2)])
    mountpoint.mkdir()
    with SectorStore(scratch / "store", filesystems=None) as store:
        store.ensure([sector_id])
        device = make(store)

        def answer(read: Read) -> None:
            comes = read.offset + read.length <= _BLOCK
            if comes:
                os.pwrite(read.fd, _CONTENT, 0)
            os.close(read.fd)
            device.answer(read.number, allow=comes)

        device.ask = answer
        device.attach(metadata, [sector_id], mountpoint)
        return _read(mountpoint)


def _read(mountpoint: Path) -> list[bytes]:
    """Return what another process reads of each file, and unmount."""
    try:
        return [_read_one(mountpoint / name) for name in "01"]
    finally:
        _end(mountpoint)


def _read_one(path: Path) -> bytes:
    command = [sys.executable, "-I", "-S", "-c", _READ, str(path)]
    with open(os.devnull, "r+b") as null:
        reader = subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null)
    try:
        return reader.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired as exc:
        _end(path.parent)
        reader.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.communicate(timeout=END_S)
        raise NodeError("a read did not return") from exc


def _end(mountpoint: Path) -> None:
    # By force, which fails all requests: a reader that waits for an answer cannot be killed.
    with contextlib.suppress(OSError):
        syscalls.umount2(os.fsencode(mountpoint), syscalls.MNT_FORCE | syscalls.MNT_DETACH)
