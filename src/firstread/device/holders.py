# SPDX-License-Identifier: Apache-2.0
"""The users of a mount: the processes to name when it cannot be unmounted.

Owns the reading of /proc. Reads nothing of the mounted file system but the attributes of its
root. Invariant: a process that ends while it is looked at is left out, never an error.

Facts about holders: the working and root directory, open files and mapped files of a process
keep a mount busy, also after a mapped file was closed. An overlayfs on top does not, yet a
container there uses the mount all the same; it is known by the overlay's device number.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from firstread.errors import from_os_error
from firstread.mountinfo import parse_mountinfo, unescaped

_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})  # says nothing of the process


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that uses a mount: its number, its name, and in which ways."""

    pid: int
    name: str
    uses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}: {', '.join(self.uses)})"


def holders(mountpoint: Path) -> list[Holder]:
    """Return the processes that use the file system mounted at `mountpoint`, lowest pid first.

    Raises:
        NodeError: `mountpoint` or /proc cannot be looked at.
    """
    try:
        return _holders(mountpoint)
    except OSError as exc:
        raise from_os_error(exc, "cannot look who uses the mount") from exc


def _holders(mountpoint: Path) -> list[Holder]:
    devices = {os.stat(mountpoint).st_dev}
    processes = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    devices |= _overlays(mountpoint, processes)
    found = []
    for pid in processes:
        uses = tuple(_uses(f"/proc/{pid}", devices))
        if uses:
            found.append(
                Holder(pid, _read(f"/proc/{pid}/comm").strip().decode(errors="replace"), uses)
            )
    return found


def is_used(device: int) -> bool:
    """Return whether any process uses the file system of this device number, mounted or not.

    Raises:
        OSError: this process is short of descriptors or memory.
    """
    processes = (name for name in os.listdir("/proc") if name.isdecimal())
    return any(True for name in processes for _ in _uses(f"/proc/{name}", {device}))


def _uses(process: str, devices: set[int]) -> Iterator[str]:
    """Yield the ways in which the process at this /proc directory uses one of `devices`."""
    for link, use in (("cwd", "working directory"), ("root", "root directory")):
        if _device(f"{process}/{link}") in devices:
            yield use
    try:
        fds = os.listdir(f"{process}/fd")
    except OSError as exc:
        if exc.errno in _SHORT:
            raise
        return
    opened = sum(_device(f"{process}/fd/{fd}") in devices for fd in fds)
    if opened:
        yield f"{opened} open file{'s' if opened > 1 else ''}"
    maps = _read(f"{process}/maps").split(b"\n")[:-1]
    mapped = {_device_number(line.split()[3]) for line in maps}
    if mapped & devices:
        yield "mapped files"


def _overlays(mountpoint: Path, processes: list[int]) -> set[int]:
    """Return the device numbers of overlays, in any mount namespace, that have it as a layer."""
    wanted = os.fsencode(mountpoint.absolute())
    devices: set[int] = set()
    seen: set[str] = set()
    for pid in processes:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            continue
        if namespace in seen:
            continue
        seen.add(namespace)
        for mount in parse_mountinfo(_read(f"/proc/{pid}/mountinfo")):
            if mount.kind == b"overlay" and wanted in _layers(mount.options):
                devices.add(mount.device)
    return devices


def _layers(options: bytes) -> list[bytes]:
    """Return the lower layers named in the options of an overlay."""
    layers: list[bytes] = []
    for option in options.split(b","):
        key, _, value = option.partition(b"=")
        if key in {b"lowerdir", b"lowerdir+"}:
            layers += map(unescaped, value.split(b":"))
    return layers


def _device(path: str) -> int:
    """Return the device number that a link of /proc leads to; -1 if it leads nowhere."""
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _device_number(text: bytes) -> int:
    """Return the device number written as ``major:minor``, as /proc/PID/maps does."""
    major, minor = text.split(b":")
    return os.makedev(int(major, 16), int(minor, 16))


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        if exc.errno in _SHORT:
            raise
        return b""
