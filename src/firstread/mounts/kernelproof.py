# SPDX-License-Identifier: Apache-2.0
"""The proof that this kernel fails closed: missing data is an error, never zeros.

Owns the record of the kernels that a store was proved on. EROFS of Linux 6.12 and later reads zeros
where a sector file ends, unless it has "erofs: set fileio bio failed in short read case"; versions
do not tell, because distributions take that commit or leave it out. So the daemon tries it on its
own store before the first mount, whatever its device. Invariant: no mount is made on a kernel that
was not proved.

The record, ``kernel.json`` below the root, names the kernel and the file system of the last proof.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from firstread.device.erofsmount import unmount
from firstread.device.probe import prove
from firstread.errors import FirstreadError, from_os_error, is_disk_full
from firstread.mountinfo import filesystem_of

RECORD = "kernel.json"
SCRATCH = "trial"  # below the root; of the one who holds the lock of the store


class KernelProof:
    """The proof for one store.

    Args:
        root: of the store; its lock is held.
        attempt: tries the device in an empty directory, and raises NodeError if it fails; what it
            returns does not matter.
        device: its name; a proof of one holds for no other.
    """

    def __init__(
        self, root: Path, attempt: Callable[[Path], object] = prove, device: str = "fanotify"
    ) -> None:
        self._root, self._attempt, self._device = root, attempt, device
        self._given = False

    def require(self) -> None:
        """Return once this kernel is proved; tries it if no daemon has done so before.

        Raises:
            NodeError: it is not safe to mount here, or it cannot be tried; says why.
        """
        if self._given or self._subject() == self._recorded():
            self._given = True
            return
        self._try()
        self._given = True
        with contextlib.suppress(OSError):  # then the next daemon tries it again
            record = self._root / RECORD
            record.write_text(json.dumps(self._subject()))

    def require_unless_full(self) -> None:
        """`require`, but leave it to the first mount, which makes room, if the disk is full."""
        try:
            self.require()
        except FirstreadError as exc:
            if not is_disk_full(exc.__cause__):
                raise

    def _try(self) -> None:
        scratch = self._root / SCRATCH
        try:
            _clear(scratch)  # a process that was killed has left it
            scratch.mkdir(mode=0o700)
        except OSError as exc:
            raise from_os_error(exc, "cannot try the device") from exc
        try:
            self._attempt(scratch)
        finally:
            _clear(scratch)

    def _subject(self) -> dict[str, str]:
        """Return what a proof holds for.

        Raises:
            NodeError: it cannot be told now.
        """
        system = os.uname()
        try:
            filesystem = filesystem_of(self._root)
        except OSError as exc:
            raise from_os_error(exc, "cannot look at the file system of the store") from exc
        return {
            "release": system.release,
            "version": system.version,
            "filesystem": filesystem,
            "device": self._device,
        }

    def _recorded(self) -> object:
        try:
            found = json.loads((self._root / RECORD).read_bytes()[:4096])
        except (OSError, ValueError, RecursionError):
            return None
        return {"device": "fanotify", **found} if isinstance(found, dict) else None


def _clear(scratch: Path) -> None:
    with contextlib.suppress(FirstreadError):
        unmount(scratch / "mnt", lazy=True)
    shutil.rmtree(scratch, ignore_errors=True)
