# SPDX-License-Identifier: Apache-2.0
"""Anonymous volumes, from ``Volumes`` of the image or from ``-v DST``.

Owns their creation. They live in the container's directory and die with it. Invariant: a volume
starts with the image's content at that path, without reading any of it.

Docker copies the image's content into the new volume, which here would fetch all of it before the
start. Where the image has an empty directory (nearly always, as for a database) the volume is a
plain directory with the same owner and mode; elsewhere it is an overlay over the image's. Either
way it is writable under ``--read-only``, as docker's is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from firstread.errors import ImageError, from_os_error
from firstread.run.overlay import mount_overlay
from firstread.run.parse import Mount
from firstread.run.users import open_in_root

_BIND = ("rbind", "rprivate", "rw")


def make_volumes(
    lower: Path, destinations: Iterable[str], directory: Path, *, volatile: bool
) -> list[Mount]:
    """Create a volume below `directory` for each of `destinations`; return the binds.

    Args:
        lower: root of the image.
        destinations: absolute paths in the container.
        directory: does not exist yet.
        volatile: as for `mount_overlay`.

    Raises:
        ImageError: the image has no directory at a destination.
        NodeError: a directory or mount cannot be created.
    """
    mounts = []
    try:
        for number, destination in enumerate(sorted(set(destinations))):
            place = directory / str(number)
            place.mkdir(parents=True)
            content = _make_volume(lower, destination, place, volatile=volatile)
            mounts.append(Mount(destination, "bind", str(content), _BIND))
    except OSError as exc:
        raise from_os_error(exc, "cannot make a volume") from exc
    return mounts


def _make_volume(lower: Path, destination: str, place: Path, *, volatile: bool) -> Path:
    content = place / "content"
    content.mkdir()
    try:
        handle = open_in_root(lower, destination, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return content
    except NotADirectoryError as exc:
        raise ImageError(f"cannot mount a volume over {destination}: not a directory") from exc
    try:
        origin = Path(f"/proc/self/fd/{handle}")
        if any(origin.iterdir()):
            mount_overlay(origin, place, content, volatile=volatile)
        else:
            status = os.fstat(handle)
            os.chown(content, status.st_uid, status.st_gid)
            content.chmod(status.st_mode & 0o7777)
    finally:
        os.close(handle)
    return content
