# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can run containers: a runtime, control groups.

Owns what ``firstread doctor`` says of both; see `firstread.node.checks` for the rest.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from firstread.device.probe import Check
from firstread.errors import NodeError
from firstread.run.cgroups import Cgroups, read_cgroups
from firstread.run.runtime import find_runtime

_WANTED = ("cpu", "memory", "pids")


def check_containers() -> Iterator[Check]:
    """Yield whether a runtime is installed and works, and which limits it can set."""
    cgroups = read_cgroups()
    yield _runtime(cgroups)
    yield _controllers(cgroups)


def _runtime(cgroups: Cgroups) -> Check:
    name = "container runtime"
    try:
        program = find_runtime(None, Path("/nonexistent"), cgroups).program
    except NodeError as exc:
        detail = f"{exc.message}: images can be mounted, but not run"
        return Check(name, ok=True, detail=detail, fix=exc.hint, warning=True)
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        detail = f"{program} does not run: {type(exc).__name__}"
        return Check(name, ok=False, detail=detail, fix="install Debian's package crun or runc")
    version = (said.splitlines() or ["unknown version"])[0].strip()
    return Check(name, ok=True, detail=f"{program}: {version}")


def _controllers(cgroups: Cgroups) -> Check:
    name = "control groups"
    if not cgroups.usable:
        return Check(
            name,
            ok=True,
            detail="none can be made: containers have no limits",
            fix="mount cgroup2 at /sys/fs/cgroup, writable",
            warning=True,
        )
    missing = [controller for controller in _WANTED if controller not in cgroups.able]
    if missing:
        return Check(
            name,
            ok=True,
            detail=f"no limits of {', '.join(missing)}",
            fix="boot with systemd.unified_cgroup_hierarchy=1, and cgroup_enable=memory for memory",
            warning=True,
        )
    return Check(name, ok=True, detail=f"limits of {', '.join(_WANTED)}")
