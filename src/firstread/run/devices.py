# SPDX-License-Identifier: Apache-2.0
"""Device nodes of the host for a container, from ``--device`` or ``--privileged``.

Owns the lookup. Invariant: a `Device` describes a node that the host had.

Source: OCI runtime specification 1.0.2, config-linux.md, "Devices" and "Allowed Device list".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from firstread.errors import UsageError
from firstread.run.parse import DeviceFlag

_NOT_SHARED = frozenset({"console", "fd", "mqueue", "pts", "shm"})
"""Entries of /dev of which a container has its own."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device node as the container sees it."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str = "rwm"

    def node(self) -> dict[str, Any]:
        """Return the entry of ``linux.devices``."""
        return {
            "path": self.path,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        }

    def rule(self) -> dict[str, Any]:
        """Return the entry of ``linux.resources.devices``."""
        return {
            "allow": True,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "access": self.access,
        }


def find_devices(flag: DeviceFlag) -> list[Device]:
    """Return the device nodes that ``--device`` names: one, or all of a directory.

    Raises:
        UsageError: there is no device node.
    """
    try:
        status = os.stat(flag.source)
        if stat.S_ISDIR(status.st_mode):
            found = [
                replace(
                    device,
                    path=os.path.join(flag.destination, os.path.relpath(device.path, flag.source)),
                    access=flag.access,
                )
                for device in host_devices(flag.source)
            ]
        else:
            device = _device(flag.destination, status, flag.access)
            found = [device] if device else []
    except OSError as exc:
        message = f"error gathering device information: {flag.source!r}: {exc.strerror}"
        raise UsageError(message) from exc
    if not found:
        raise UsageError(f"not a device node: {flag.source!r}")
    return found


def host_devices(directory: str = "/dev") -> Iterator[Device]:
    """Yield the nodes of the host, except those of which a container has its own."""
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name in _NOT_SHARED:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from host_devices(entry.path)
            elif found := _device(entry.path, entry.stat(follow_symlinks=False), "rwm"):
                yield found


def _device(path: str, status: os.stat_result, access: str) -> Device | None:
    kinds = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
    kind = kinds.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    numbers = os.major(status.st_rdev), os.minor(status.st_rdev)
    mode = stat.S_IMODE(status.st_mode)
    return Device(path, kind, *numbers, mode, status.st_uid, status.st_gid, access)
