# SPDX-License-Identifier: Apache-2.0
"""The abilities of this host's control groups.

Owns the look at ``/sys/fs/cgroup``, and the names of groups: ``/firstread/ID`` in every hierarchy,
without systemd, which need not run. The runtime creates and removes them; `remove_groups` removes
those of a runtime that died first.

Facts about control groups:

* *unified*: cgroup2 at /sys/fs/cgroup. *legacy*: a tmpfs there, one directory for each version 1
  controller. *hybrid*: legacy, and cgroup2 at /sys/fs/cgroup/unified.
* systemd's hybrid layout leaves cgroup2 without controllers. If some remain (hugetlb does, unless
  somebody mounts it), ``create`` of crun up to at least 1.8 refuses to work, even with
  ``--cgroup-manager=disabled``; runc does not mind. In a mount namespace without
  /sys/fs/cgroup/unified, crun sees a legacy host and works, limits included. Its ``start`` and
  ``delete`` work anyway. An ordinary user cannot unmount it, but can cover it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")

_HIDE_UNIFIED = (
    *("unshare", "--mount", "--propagation", "slave", "sh", "-c"),
    'mount -t tmpfs none "$0" && exec "$@"',
)


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Abilities of the host.

    Args:
        usable: groups can be created.
        controllers: that can limit something.
        swap: the host accounts swap.
        stray: the cgroup2 directory of a hybrid host that has controllers, or None.
    """

    usable: bool
    controllers: frozenset[str]
    swap: bool
    stray: Path | None = None

    @property
    def able(self) -> frozenset[str]:
        """The controllers whose limits a runtime can apply."""
        return self.controllers if self.usable else frozenset()

    @property
    def prefix(self) -> tuple[str, ...]:
        """Prefix of the command line of a runtime that refuses hybrid hosts."""
        return (*_HIDE_UNIFIED, str(self.stray)) if self.stray else ()


def read_cgroups(root: Path = _ROOT) -> Cgroups:
    """Look at the host."""
    usable = os.access(root, os.W_OK) and not os.statvfs(root).f_flag & os.ST_RDONLY
    unified = _words(root / "cgroup.controllers")
    if unified is not None:
        return Cgroups(usable, unified, swap="memory" in unified)
    legacy = frozenset(name for name in ("cpu", "memory", "pids") if (root / name).is_dir())
    swap = (root / "memory/memory.memsw.limit_in_bytes").exists()
    stray = root / "unified" if _words(root / "unified/cgroup.controllers") else None
    return Cgroups(usable and bool(legacy), legacy, swap, stray)


def group_of(container_id: str) -> str:
    """Return the path of a container's group in each hierarchy."""
    return f"/firstread/{container_id}"


def remove_groups(container_id: str) -> None:
    """Remove the groups of a container, if they have no process."""
    for hierarchy in (_ROOT, *_ROOT.glob("*/")):
        with contextlib.suppress(OSError):
            os.rmdir(f"{hierarchy}{group_of(container_id)}")


def _words(path: Path) -> frozenset[str] | None:
    try:
        return frozenset(path.read_text().split())
    except OSError:
        return None
