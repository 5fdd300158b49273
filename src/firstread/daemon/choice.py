# SPDX-License-Identifier: Apache-2.0
"""The device of a node: the first that works, or the one that the configuration names.

Owns the choice, which a daemon makes once, when it makes its descriptors; what it has chosen shows
in the descriptor of the group. A node with FUSE has no group: a descriptor that never says anything
takes its place, so that supervisors of every device are alike.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from firstread.config import Config
from firstread.daemon.protocol import GROUP_FD
from firstread.device.fanotify import Group
from firstread.device.fusetrial import prove_fuse
from firstread.device.probe import prove
from firstread.errors import NodeError
from firstread.mounts.kernelproof import KernelProof
from firstread.mounts.table import standing
from firstread.sectors.sectorstore import PRE_CONTENT_FILESYSTEMS, SectorStore

log = logging.getLogger("daemon")

_GROUP = "anon_inode:[fanotify]"


def choose(root: Path, config: Config) -> int:
    """Return the descriptor of a group for the device that this node is to have.

    Args:
        root: of the store; its lock is held.
        config: of the node.

    Raises:
        NodeError: the device that the configuration names does not work, or none does.
    """
    wanted = config.node.device
    if wanted != "fuse":
        try:
            SectorStore(root).close()  # on a file system that raises events
            proof_of("fanotify", root).require_unless_full()
            return Group.open().fileno()
        except NodeError as exc:
            if wanted == "fanotify":
                raise
            reason = exc
    if wanted == "auto" and (place := standing(root, "erofs")):
        raise NodeError(
            f"{reason.message}; and fuse does not serve the mount at {place}, which is EROFS",
            hint=reason.hint,
        )
    try:
        proof_of("fuse", root).require_unless_full()
    except NodeError as exc:
        if wanted == "auto":
            exc.message = f"{reason.message}; {exc.message}"
        raise
    if wanted == "auto":
        log.warning("the device is fuse, because fanotify does not work: %s", reason)
    return os.eventfd(0)


def proof_of(device: str, root: Path) -> KernelProof:
    """Return the proof that a device works for a store."""
    return KernelProof(root, prove if device == "fanotify" else prove_fuse, device)


def chosen() -> str:
    """Return the device that this daemon has chosen."""
    is_group = os.readlink(f"/proc/self/fd/{GROUP_FD}") == _GROUP
    return "fanotify" if is_group else "fuse"


def filesystems(device: str) -> frozenset[str] | None:
    """Return the file systems that a device takes for its store; None for all."""
    return PRE_CONTENT_FILESYSTEMS if device == "fanotify" else None
