# SPDX-License-Identifier: Apache-2.0
"""What containerd's snapshots API is about, apart from its messages: kinds and mounts.

Owns the two values that rules and records are made of. The messages themselves are generated from
``containerd.proto``; `firstread.snapshotter.service` translates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from operator import methodcaller

SERVICE = "containerd.services.snapshots.v1.Snapshots"
encode = methodcaller("SerializeToString")  # any message


class Kind(IntEnum):
    """What a snapshot is: read-only above its parent, writable, or finished."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass
class Mount:
    """One call of mount(8) that the client is to make."""

    type: str
    source: str
    options: list[str] = field(default_factory=list)
