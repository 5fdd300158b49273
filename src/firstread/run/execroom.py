# SPDX-License-Identifier: Apache-2.0
"""How much execve(2) takes: bytes of arguments and variables together, and of each.

Owns that check, ahead of the runtime. A runtime sets the variables one by one, in a time that grows
with the square of their number, and hears of execve(2) only then that they are too many: half a
minute later for 8 MiB.

Source: Linux, fs/exec.c (bprm_stack_limits), include/uapi/linux/binfmts.h (MAX_ARG_STRLEN).
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import Any, Final

from firstread.run.runtime import CommandError
from firstread.units import KiB, MiB, format_size

MAX_EACH: Final = 128 * KiB  # with the zero behind it
MAX_ALL: Final = 6 * MiB  # and a quarter of the stack's limit, but always 128 KiB
_POINTER_BYTES: Final = 8


def check_room(process: Mapping[str, Any]) -> None:
    """Check that a process can have its arguments and variables.

    Args:
        process: of an OCI runtime specification; it inherits a limit of the stack from us.

    Raises:
        CommandError: it cannot, on any kernel.
    """
    own, _ = resource.getrlimit(resource.RLIMIT_STACK)
    given = {limit["type"]: limit["soft"] for limit in process["rlimits"]}
    stack = given.get("RLIMIT_STACK", own) % 2**64  # -1 is unlimited
    most = max(MAX_EACH, min(MAX_ALL, stack // 4))
    sizes = [len(text.encode()) + 1 for text in (*process["args"], *process["env"])]
    if max(sizes) > MAX_EACH:
        problem = f"an argument or a variable is longer than {format_size(MAX_EACH)}"
        hint = "Linux takes no longer ones"
    elif sum(sizes) + _POINTER_BYTES * len(sizes) > most:
        problem = f"the arguments and variables take more than {format_size(most)}"
        hint = f"Linux takes a quarter of --ulimit stack, and {format_size(MAX_ALL)} at most"
    else:
        return
    raise CommandError(f'exec: "{process["args"][0]}": {problem}', hint=hint)
