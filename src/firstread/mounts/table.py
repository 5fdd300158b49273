# SPDX-License-Identifier: Apache-2.0
"""The mount table: which image is mounted where, on disk, so that a new daemon finds its mounts.

Owns the records and the question whether a mount still stands; does not mount. Invariant: a record
is written before its mount is made and removed after it is gone, so no mount is ever unknown.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from firstread.device.flatdevice import FLAT
from firstread.device.superblock import FileSystem
from firstread.errors import from_os_error
from firstread.fetch.policy import Asked
from firstread.mountinfo import MountLine, read_mountinfo
from firstread.nesting import is_deep
from firstread.registry.access import Access
from firstread.structs import completed
from firstread.wholefile import replace_file

log = logging.getLogger("mounts")

_KINDS = (b"erofs", b"fuse")  # of what devices mount


class Mount(msgspec.Struct):
    """One mount.

    Args:
        mountpoint: absolute path.
        image: reference as the user wrote it.
        digest: of the image's manifest.
        access: to its registry.
        pinned: all of it is to be on this node.
        holders: who shares it; empty for one that a user asked for by path.
        policies: what each of `holders` has asked for, or, under "", who has mounted it.
        file_system: which one stands there, once it does.
        detached: it was unmounted while somebody used it, and is used on.
        command: which one has asked for it; "" if that cannot be repeated.
        starting: what runs in it has not started yet, see `firstread.mounts.starting`.
        device: that has made it, see `device_of`; "" if an older version has.
    """

    mountpoint: str
    image: str
    digest: str
    access: Access = Access()
    pinned: bool = False
    holders: list[str] = []
    policies: dict[str, Asked] = {}
    file_system: FileSystem | None = None
    detached: bool = False
    command: str = ""
    starting: bool = False
    device: str = ""

    def taken_away(self) -> Mount:
        """Return the record of it for when it is not at its place any more."""
        # Holders have nothing to release then.
        return msgspec.structs.replace(self, holders=[], detached=True)

    def is_used(self) -> bool:
        """Return whether anyone uses it, though it may not be at its place any more."""
        return self.file_system is not None and self.file_system.lives(unmounted=self.detached)


class MountTable:
    """The records below ``root/mounts``, one file each."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "mounts"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self, *, tidy: bool = True) -> list[Mount]:
        """Return all records; see `read`.

        Raises:
            NodeError: one of them cannot be read now.
        """
        found = [self.read(path, tidy=tidy) for path in self.paths()]
        return [mount for mount in found if mount is not None]

    def paths(self) -> list[Path]:
        """Return where the records are."""
        return sorted(self._directory.glob("*.json"))

    def read(self, path: Path, *, tidy: bool = True) -> Mount | None:
        """Return one record; None if there is none. One that was never complete goes, if `tidy`.

        One that makes no sense here is left alone: another version may have written it.

        Raises:
            NodeError: it cannot be read now. Its mount may stand.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            log.warning("%s is no record of a mount", path)
            return None
        except OSError as exc:
            raise from_os_error(exc, "cannot read the record of a mount") from exc
        try:
            return msgspec.json.decode(data, type=completed(Mount))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            if _is_whole(data):
                log.warning("the record %s of a mount makes no sense: %s", path, exc)
            elif tidy:
                with contextlib.suppress(OSError):  # it says nothing, and goes another time
                    path.unlink()
        return None

    def save(self, mount: Mount, *, sync: bool = True) -> None:
        """Write a record, so that it survives a crash of everything.

        Args:
            mount: what to write.
            sync: wait for the disk. A record that no reboot outlives need not.
        """
        try:
            replace_file(self.path(mount), msgspec.json.encode(mount), sync=sync)
        except OSError as exc:
            raise from_os_error(exc, "cannot write the mount table") from exc

    def remove(self, mount: Mount) -> None:
        """Remove a record. Raises NodeError if it stays."""
        try:
            self.path(mount).unlink(missing_ok=True)
        except OSError as exc:
            raise from_os_error(exc, "cannot remove the record of a mount") from exc

    def path(self, mount: Mount) -> Path:
        """Return where the record of a mount is."""
        key = f"\0{mount.file_system}" if mount.detached else mount.mountpoint
        name = hashlib.sha256(os.fsencode(key)).hexdigest()[:32]
        return self._directory / f"{name}.json"


def _is_whole(data: bytes) -> bool:
    try:
        return not is_deep(data.decode()) and isinstance(msgspec.json.decode(data), dict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def seen_mounts() -> dict[str, MountLine]:
    """Return what this process sees at each mount point.

    The kernel writes the list anew for each look, and a node can have thousands of mounts: look
    once for all of them.

    Raises:
        NodeError: that cannot be read now.
    """
    try:
        return {os.fsdecode(mount.place): mount for mount in read_mountinfo()}  # the upper is later
    except OSError as exc:
        raise from_os_error(exc, "cannot read the list of mounts") from exc


def mounted_erofs() -> dict[str, str]:
    """Return mount point to source of every EROFS or FUSE mount that this process sees.

    Raises:
        NodeError: that cannot be read now.
    """
    return erofs_in(seen_mounts().values())


def file_system_of(mount: Mount, seen: Mapping[str, MountLine]) -> tuple[int, str]:
    """Return device number and type of a mount's file system, as far as they are known.

    Args:
        mount: its record.
        seen: as of `seen_mounts`.
    """
    known, line = mount.file_system, None if mount.detached else seen.get(mount.mountpoint)
    number = known.device if known else line.device if line else 0
    return number, os.fsdecode(line.kind) if line else known.kind if known else ""


def device_of(mount: Mount, kind: str) -> str:
    """Return the device that has made a mount; "" if that is not known.

    Args:
        mount: its record.
        kind: type of its file system.
    """
    return mount.device or {"erofs": "fanotify"}.get(kind, kind)


def standing(root: Path) -> dict[str, str]:
    """Return where mounts of a store stand, or stood that are used on: one place of each device.

    Args:
        root: of the store.

    Raises:
        NodeError: that cannot be told now.
    """
    found: dict[str, str] = {}
    mounts = MountTable(root).load(tidy=False)
    seen = seen_mounts() if mounts else {}
    for mount in mounts:
        line = None if mount.detached else seen.get(mount.mountpoint)
        known = mount.file_system
        if line and (known is None or known.device == line.device):
            found.setdefault(device_of(mount, os.fsdecode(line.kind)), mount.mountpoint)
        elif known and known.lives(unmounted=True):
            found.setdefault(device_of(mount, known.kind), mount.mountpoint)
    return found


def erofs_in(mounts: Iterable[MountLine]) -> dict[str, str]:
    """Return mount point to source of each such mount that is not hidden by another mount."""
    found = {os.fsdecode(mount.place): source_of(mount) for mount in mounts}
    return {place: source for place, source in found.items() if source is not None}


def source_of(mount: MountLine) -> str | None:
    """Return the metadata of a mount, also if its source is the flat form; None of other kinds."""
    source = os.fsdecode(mount.source).removesuffix(FLAT)
    return source if mount.kind in _KINDS else None
