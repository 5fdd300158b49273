# SPDX-License-Identifier: Apache-2.0
"""Whether this process sees what the daemon mounts: both can be in mount namespaces of their own.

Facts about mount namespaces: a mount is seen in another one only where it propagates to, so equal
names of namespaces are enough, but not needed (a pod with Bidirectional propagation has its own).
Wherever a file system is seen, it has the same device number.
"""

from __future__ import annotations

import os
from typing import Any

from firstread.errors import NodeError
from firstread.idmaps import owner

ANEW = "end that daemon (firstread daemon --stop), and the next command starts one here"


def mount_namespace() -> str:
    """Return the name of this process's mount namespace; "" if it cannot be told."""
    try:
        return os.readlink("/proc/self/ns/mnt")
    except OSError:
        return ""


def is_seen(place: str, device: int) -> bool:
    """Return whether the file system with this number is what this process sees at `place`."""
    return device_at(place) == device


def device_at(place: str) -> int | None:
    """Return the number of the file system at `place`; None if there is no such place."""
    try:
        return os.stat(place).st_dev
    except OSError:
        return None


def is_mount_point(place: str) -> bool:
    """Return whether something else is at `place` than in the directory above it."""
    return device_at(place) != device_at(f"{place}/..")


def apart(what: str, status: dict[str, Any]) -> NodeError:
    """Return the error of one who does not see what the daemon sees.

    Args:
        what: has come of it.
        status: of the daemon.
    """
    theirs, ours = status.get("namespace", ""), mount_namespace()
    pid = status["fetcher"]["pid"]
    if theirs == ours:
        why = "this command has another root directory than the daemon"
    else:
        why = f"the daemon is in the mount namespace {theirs}, this command in {ours}"
    return NodeError(f"{what}: {why}", hint=way_to(pid))


def way_to(pid: int) -> str:
    """Return what helps who is in another mount namespace than process `pid` of a daemon."""
    if owner():  # nsenter takes more rights than an ordinary user may have there
        return f"run it outside of other namespaces, where firstread joins its own; or {ANEW}"
    return (
        f"run it where the daemon is (nsenter --target {pid} --mount --root --wd=/"
        " firstread …), or have a daemon here: another --root and --run-dir, or end that one"
    )
