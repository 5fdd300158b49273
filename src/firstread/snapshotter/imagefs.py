# SPDX-License-Identifier: Apache-2.0
"""The directory that containerd reports for our images, so that the kubelet can measure it.

Owns the directory's name, and a link to it for versions of containerd that report a fixed one. If
the reported directory does not exist, the kubelet has no statistics of any pod, and evicts none for
what it writes.

Facts about containerd: the CRI plugin reports the ``root`` that a snapshotter exports, from 1.6.32,
1.7.16 and 2.0 on (`imageFSPath` in pkg/cri/server/service.go, `snapshotRoot` in
plugins/cri/images/plugin.go). Earlier versions, and later ones without an exported root, report a
directory below containerd's own root, which exists only for containerd's own snapshotters.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from firstread.errors import from_os_error
from firstread.snapshotter.configfile import NAME

ROOT = "/var/lib/containerd"  # of containerd, by default
_DIRECTORY: Final = f"io.containerd.snapshotter.v1.{NAME}"


def home(root: Path) -> Path:
    """Return the snapshotter's directory below a daemon's root."""
    return root / "snapshotter"


def link(config: str, target: Path) -> Path | None:
    """Link the directory that containerd reports by default to `target`.

    Args:
        config: containerd's configuration.
        target: `home` of the snapshotter.

    Returns:
        The link; None if containerd has no root yet, or has a directory of that name.

    Raises:
        NodeError: the disk refuses.
    """
    link_path = _default(config)
    try:
        if link_path.is_symlink():
            link_path.unlink()
        elif link_path.exists() or not link_path.parent.is_dir():
            return None
        link_path.symlink_to(target)
    except OSError as exc:
        raise from_os_error(exc, "cannot link the directory of the snapshotter") from exc
    return link_path


def unlink(config: str) -> None:
    """Remove the link. Raises NodeError if the disk refuses."""
    link_path = _default(config)
    try:
        if link_path.is_symlink():
            link_path.unlink()
    except OSError as exc:
        raise from_os_error(exc, "cannot remove the link of the snapshotter") from exc


def _default(config: str) -> Path:
    root = tomllib.loads(config).get("root")
    return Path(root if isinstance(root, str) and root else ROOT) / _DIRECTORY
