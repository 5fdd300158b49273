# SPDX-License-Identifier: Apache-2.0
"""Linux capabilities of a container: docker's default set, changed by the flags.

Owns names and rules. `available` reads what this host can grant; the rest is pure.

Source: capabilities(7), ``include/uapi/linux/capability.h``; docker's run reference, "Runtime
privilege and Linux capabilities".
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from firstread.errors import UsageError

_IN_ORDER = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
_OF_DOCKER = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP "
    "SETGID SETPCAP SETUID SYS_CHROOT"
)

NAMES = tuple(f"CAP_{name}" for name in _IN_ORDER.split())
"""Every capability, at the index of its number."""

DEFAULT = frozenset(f"CAP_{name}" for name in _OF_DOCKER.split())
"""The capabilities of root in a container of docker."""


def available() -> frozenset[str]:
    """Return the capabilities that this process can grant: its bounding set."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        line = next(line for line in status if line.startswith("CapBnd:"))
    bits = int(line.split()[1], 16)
    return frozenset(name for number, name in enumerate(NAMES) if bits >> number & 1)


def normalize(name: str) -> str:
    """Return ``CAP_NET_ADMIN`` for ``net_admin`` and the like, and ``ALL`` for ``all``.

    Raises:
        UsageError: there is no such capability.
    """
    upper = name.strip().upper()
    full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in {"ALL", *NAMES}:
        raise UsageError(f"unknown capability: {name!r}")
    return full


def granted(
    add: Sequence[str], drop: Sequence[str], *, privileged: bool, available: Set[str]
) -> list[str]:
    """Return the container's capabilities, in the order of their numbers.

    Args:
        add: normalized names, or ``ALL``. A name in one list wins over ``ALL`` in the other.
        drop: likewise.
        privileged: grant everything available, whatever the flags.
        available: what the host can grant.

    Raises:
        UsageError: `add` names a capability that the host cannot grant.
    """
    missing = [name for name in add if name != "ALL" and name not in available]
    if missing and not privileged:
        raise UsageError(f"capability not available in this environment: {missing[0]}")
    if privileged:
        wanted: Set[str] = available
    elif "ALL" in add:
        wanted = available - set(drop)
    elif "ALL" in drop:
        wanted = set(add)
    else:
        wanted = (DEFAULT - set(drop)) | set(add)
    return [name for name in NAMES if name in wanted and name in available]
