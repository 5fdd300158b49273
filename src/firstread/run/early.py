# SPDX-License-Identifier: Apache-2.0
"""Preflight checks: finds what would fail, before anybody asks for an image.

Owns no rule: each belongs to another module, which applies it again when it creates the container.
Invariant: nothing is created here, and no daemon is needed.
"""

from __future__ import annotations

from pathlib import Path

from firstread.run import capabilities
from firstread.run.cgroups import read_cgroups
from firstread.run.devices import find_devices
from firstread.run.options import RunOptions
from firstread.run.runtime import find_runtime
from firstread.run.streams import check_terminal


def check_early(options: RunOptions, state_dir: Path) -> None:
    """Check that this host has what the options of a run need.

    Args:
        options: of the user.
        state_dir: of the containers.

    Raises:
        UsageError: a terminal, a device or a capability is missing.
        NodeError: there is no OCI runtime.
    """
    if not options.detach:
        check_terminal(interactive=options.interactive, tty=options.tty)
    find_runtime(options.runtime, state_dir, read_cgroups())
    capabilities.granted(
        options.cap_add,
        options.cap_drop,
        privileged=options.privileged,
        available=capabilities.available(),
    )
    for device in options.devices:
        find_devices(device)
