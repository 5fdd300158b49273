# SPDX-License-Identifier: Apache-2.0
"""The mounts of a snapshot, as data: the client makes them. Pure.

They equal those of containerd's overlayfs snapshotter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firstread.snapshotter.asked import GID_MAPPING, UID_MAPPING
from firstread.snapshotter.directories import Directories
from firstread.snapshotter.messages import Kind, Mount
from firstread.snapshotter.nodepolicy import Policy
from firstread.snapshotter.records import Record


def mounts_of(
    record: Record, lower: Sequence[Path], directories: Directories, policy: Policy
) -> list[Mount]:
    """Return the mounts of an active snapshot or a view.

    Args:
        record: of the snapshot.
        lower: the trees below it, highest first.
        directories: of all snapshots.
        policy: of the node.
    """
    options = _mapping(record) if policy.remap_ids else []
    upper = directories.upper(record.id)
    if not lower:
        access = "ro" if record.kind is Kind.VIEW else "rw"
        return [Mount("bind", str(upper), options=[*options, access, "rbind"])]
    if record.kind is Kind.VIEW and len(lower) == 1:
        return [Mount("bind", str(lower[0]), options=[*options, "ro", "rbind"])]
    if record.kind is Kind.ACTIVE:
        options += [f"workdir={directories.work(record.id)}", f"upperdir={upper}"]
    options.append("lowerdir=" + ":".join(map(str, lower)))
    return [Mount("overlay", "overlay", options=[*options, *policy.options])]


def _mapping(record: Record) -> list[str]:
    """Return the options that map owners, which containerd 2 understands."""
    names = {"uidmap": UID_MAPPING, "gidmap": GID_MAPPING}
    return [f"{k}={record.labels[v]}" for k, v in names.items() if v in record.labels]
