# SPDX-License-Identifier: Apache-2.0
"""The device of a node: the first that works, or the one that the configuration names.

Owns the table of devices, the best first, and the choice, which a daemon makes once, when it makes
its descriptors; a mount that stands keeps its device. The descriptor of the group shows the choice
to every process: where the device needs no group, a sealed file without a name takes its place,
which says what was chosen, and why no better device was.
"""

from __future__ import annotations

import enum
import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from firstread.config import Config
from firstread.control.devicestatus import DeviceStatus, PassedOver
from firstread.daemon.protocol import GROUP_FD
from firstread.device.base import Device, Pair
from firstread.device.fanotify import Group, is_group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.device.flatdevice import FlatDevice, LoopDevice
from firstread.device.fusedevice import FuseDevice
from firstread.device.fusetrial import prove_flat, prove_fuse, prove_loop, prove_mixed, prove_nbd
from firstread.device.mixeddevice import MixedDevice
from firstread.device.nbddevice import NbdDevice
from firstread.device.probe import prove
from firstread.errors import NodeError
from firstread.idmaps import owner
from firstread.mounts.kernelproof import KernelProof
from firstread.mounts.table import standing
from firstread.sectors.sectorstore import PRE_CONTENT_FILESYSTEMS, SectorStore

log = logging.getLogger("daemon")

_NAME = "device"  # of the file that takes the place of a group
_MOST_BYTES = 64 * 1024  # of it
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Served(NamedTuple):
    """What a fetcher gives a device whose requests it reads itself, in the order of `FuseDevice`.

    Args:
        given: descriptors of mounts that a fetcher before has made.
        keep: has the supervisor hold the descriptors of a mount, too.
        drop: has that end.
        most: reads that may wait.
    """

    given: Mapping[int, Pair]
    keep: Callable[[int, Pair], None]
    drop: Callable[[int], None]
    most: int


class Unheld(enum.Enum):
    """What a mount is while no process holds it."""

    READABLE = enum.auto()  # present data can be read, and the next daemon serves the rest
    WAITING = enum.auto()  # reads fail until the next daemon serves it
    LOST = enum.auto()  # it is dead


class Kind(NamedTuple):
    """A device that a node can have.

    Args:
        name: in the configuration.
        prove: tries it in an empty directory, which keeps what was made; says what was seen, or
            raises NodeError.
        make: makes it in a fetcher.
        filesystems: of its store; None for all.
        for_all: ordinary users can have it, too, in a user namespace.
        unheld: what a mount of it is when all processes have ended.
    """

    name: str
    prove: Callable[[Path], str]
    make: Callable[[SectorStore, Served], Device]
    filesystems: frozenset[str] | None = None
    for_all: bool = False
    unheld: Unheld = Unheld.LOST


def _fanotify(store: SectorStore, _: Served) -> Device:
    group = Group(GROUP_FD)
    try:
        store.open_below(group.mark_mount(store.directory, ignore=True))
    except NodeError as exc:
        log.info("what the fetcher itself writes and reads raises events: %s", exc)
    return FanotifyDevice(store, group)


DEVICES = (
    Kind("fanotify", prove, _fanotify, PRE_CONTENT_FILESYSTEMS, unheld=Unheld.READABLE),
    Kind("flat", prove_flat, lambda store, served: FlatDevice(store, *served)),
    Kind(
        "loop", prove_loop, lambda store, served: LoopDevice(store, *served), unheld=Unheld.WAITING
    ),
    Kind("mixed", prove_mixed, lambda store, served: MixedDevice(store, *served)),
    Kind("nbd", prove_nbd, lambda store, served: NbdDevice(store, *served), unheld=Unheld.WAITING),
    Kind("fuse", prove_fuse, lambda store, served: FuseDevice(store, *served), for_all=True),
)
"""All of them, the best first: ``auto`` takes the first that works, and that no mount rules out."""


def kind_of(name: str) -> Kind:
    """Return the device of a name."""
    return next(kind for kind in DEVICES if kind.name == name)


def choose(root: Path, config: Config) -> int:
    """Return the descriptor of a group, or of what takes its place: see `chosen`.

    Args:
        root: of the store; its lock is held.
        config: of the node.

    Raises:
        NodeError: the device that the configuration names does not work, or none does.
    """
    wanted, passed = config.node.device, list[PassedOver]()
    kept = kept_by(root) if wanted == "auto" else None
    for kind in order(kept):
        if wanted not in ("auto", kind.name):
            passed.append(PassedOver(kind.name, f"the configuration asks for {wanted}", None))
            continue
        try:
            require_rights(kind)
            SectorStore(root, filesystems=kind.filesystems).close()
            proof_of(kind, root).require_unless_full()
            if kind.name == "fanotify":
                return Group.open().fileno()
            return _written(kind, [*_untried(kind, kept), *passed])
        except NodeError as exc:
            if wanted != "auto":
                exc.message = f"the device {wanted} does not work here: {exc.message}"
                raise
            log.warning("the device %s does not work here: %s", kind.name, exc)
            passed.append(PassedOver(kind.name, exc.message, exc.hint))
            if kept is not None and kept.kind is kind and kind.unheld is Unheld.READABLE:
                raise _needed(kept, exc) from exc
    reasons = "; ".join(f"{each.device}: {each.reason}" for each in passed)
    best = passed[-1 if owner() else 0]  # an ordinary user can have the last one alone
    raise NodeError(f"no device works here: {reasons}", hint=best.fix)


def require_rights(kind: Kind) -> None:
    """Check that this user may have a device.

    Raises:
        NodeError: the user may not.
    """
    if owner() and not kind.for_all:
        raise NodeError("the kernel gives it to root alone", hint="run as root")


class Kept(NamedTuple):
    """A device that a mount is waiting for: no other could serve it.

    Args:
        kind: of the device.
        place: where the mount stands.
    """

    kind: Kind
    place: str


def kept_by(root: Path) -> Kept | None:
    """Return the device that a standing mount keeps, the best if there are several.

    Args:
        root: of the store.

    Raises:
        NodeError: the list of mounts cannot be read now.
    """
    places = standing(root)
    kept = (kind for kind in DEVICES if kind.unheld is not Unheld.LOST and kind.name in places)
    return next((Kept(kind, places[kind.name]) for kind in kept), None)


def order(kept: Kept | None) -> list[Kind]:
    """Return the devices in the order in which ``auto`` tries them."""
    return sorted(DEVICES, key=lambda kind: kept is None or kind is not kept.kind)


def _untried(kind: Kind, kept: Kept | None) -> list[PassedOver]:
    """Return the better devices that were not tried, since a mount keeps this one."""
    if kept is None or kept.kind is not kind:
        return []
    reason = f"the mount at {kept.place} can be served by {kind.name} only"
    hint = f"unmount {kept.place}, and restart the daemon"
    better = DEVICES[: DEVICES.index(kind)]
    return [PassedOver(each.name, reason, hint) for each in better]


def _needed(kept: Kept, reason: NodeError) -> NodeError:
    """Return the error for a device that does not work now, and has a mount with present data."""
    return NodeError(
        f"{reason.message}; and the mount at {kept.place} can be served by {kept.kind.name} only",
        hint=f"{reason.hint or 'make it work'}; or unmount {kept.place}",
    )


def _written(kind: Kind, passed: list[PassedOver]) -> int:
    """Return the descriptor of a file that says what was chosen."""
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, msgspec.json.encode(DeviceStatus(kind.name, passed)))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)  # whoever answers an event must not change it
    return fd


def proof_of(kind: Kind, root: Path) -> KernelProof:
    """Return the proof that a device works for a store."""
    return KernelProof(root, kind.prove, kind.name)


def chosen(fd: int = GROUP_FD) -> DeviceStatus:
    """Return the device that this daemon has chosen.

    Args:
        fd: as `choose` gave it.
    """
    if is_group(fd):
        return DeviceStatus("fanotify", [])
    return msgspec.json.decode(os.pread(fd, _MOST_BYTES, 0), type=DeviceStatus)
