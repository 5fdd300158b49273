# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can run containers: an OCI runtime, control groups."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from firstread.doctor.finding import Finding, failed, passed, warned
from firstread.errors import NodeError
from firstread.run.cgroups import Cgroups, read_cgroups
from firstread.run.runtime import find_runtime

_WANTED = ("cpu", "memory", "pids")


def check_engines() -> Iterator[Finding]:
    """Yield whether a runtime is installed and works, and which limits it can set."""
    cgroups = read_cgroups()
    yield _runtime(cgroups)
    yield _controllers(cgroups)


def _runtime(cgroups: Cgroups) -> Finding:
    name = "container runtime"
    try:
        program = find_runtime(None, Path("/nonexistent"), cgroups).program
    except NodeError as exc:
        detail = f"{exc.message}: images can be mounted, but not run"
        return warned(name, detail, exc.hint)
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        detail = f"{program} does not run: {type(exc).__name__}"
        return failed(name, detail, "install Debian's package crun or runc")
    version = (said.splitlines() or ["unknown version"])[0].strip()
    return passed(name, f"{program}: {version}")


def _controllers(cgroups: Cgroups) -> Finding:
    name = "control groups"
    if not cgroups.usable:
        return warned(
            name,
            "none can be made: containers have no limits",
            "mount cgroup2 at /sys/fs/cgroup, writable",
        )
    missing = [controller for controller in _WANTED if controller not in cgroups.able]
    if missing:
        return warned(
            name,
            f"no limits of {', '.join(missing)}",
            "boot with systemd.unified_cgroup_hierarchy=1, and cgroup_enable=memory for memory",
        )
    return passed(name, f"limits of {', '.join(_WANTED)}")
