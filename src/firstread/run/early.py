# SPDX-License-Identifier: Apache-2.0
"""What is known to fail before an image is asked for.

Owns no rule: each is asked of the module that has it, and is asked again when the container is
made. Invariant: nothing is made here, no daemon is needed.
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
    """See whether this host has what the options of a run ask for.

    Args:
        options: of the user.
        state_dir: where containers are kept.

    Raises:
        UsageError: there is no terminal, device or capability that is asked for.
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
