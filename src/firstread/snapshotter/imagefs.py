# SPDX-License-Identifier: Apache-2.0
"""Where containerd says that our images lie, so that the kubelet can measure that file system.

Owns the name of the directory, and a link of it where containerd takes no other. Without one that
exists the kubelet has no statistics of any pod, and evicts none for what it writes.

Facts about containerd: the CRI plugin names the ``root`` that a snapshotter exports, from 1.6.32,
1.7.16 and 2.0 on (`imageFSPath` in pkg/cri/server/service.go, `snapshotRoot` in
plugins/cri/images/plugin.go). Before, and if there is none, it names a directory below its own
root, which it makes for snapshotters of its own only.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from firstread.errors import from_os_error
from firstread.snapshotter.configfile import NAME

ROOT = "/var/lib/containerd"  # of containerd, if its configuration does not say
_DIRECTORY: Final = f"io.containerd.snapshotter.v1.{NAME}"


def home(root: Path) -> Path:
    """Return the directory of the snapshotter of a daemon's root."""
    return root / "snapshotter"


def link(config: str, target: Path) -> Path | None:
    """Have the directory that containerd names by itself lead to `target`.

    Args:
        config: containerd's configuration.
        target: `home` of the snapshotter.

    Returns:
        The link; None if containerd has no root yet, or something else is there.

    Raises:
        NodeError: the disk refuses.
    """
    place = _place(config)
    try:
        if place.is_symlink():
            place.unlink()
        elif place.exists() or not place.parent.is_dir():
            return None
        place.symlink_to(target)
    except OSError as exc:
        raise from_os_error(exc, "cannot link the directory of the snapshotter") from exc
    return place


def unlink(config: str) -> None:
    """Remove the link. Raises NodeError if the disk refuses."""
    place = _place(config)
    try:
        if place.is_symlink():
            place.unlink()
    except OSError as exc:
        raise from_os_error(exc, "cannot remove the link of the snapshotter") from exc


def _place(config: str) -> Path:
    root = tomllib.loads(config).get("root")
    return Path(root if isinstance(root, str) and root else ROOT) / _DIRECTORY
