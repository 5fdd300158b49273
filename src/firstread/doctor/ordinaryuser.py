# SPDX-License-Identifier: Apache-2.0
"""The user namespace that an ordinary user's node needs.

`check_user` leaves this process in one, as the daemon would be. Invariant: it makes no process that
stays.
"""

from __future__ import annotations

import os
from pathlib import Path

from firstread.control.usernamespace import join, make
from firstread.doctor.finding import Finding, failed, passed, warned
from firstread.errors import NodeError
from firstread.idmaps import MORE_IDS, count_of, owner, read_map


def check_user(run_dir: Path) -> list[Finding]:
    """Say whether this user gets a namespace; nothing for root.

    Args:
        run_dir: of the control socket; need not exist.
    """
    name, user = "user namespace", owner()
    if not user:
        return []
    try:
        if os.geteuid() and not join(run_dir):
            make()
    except NodeError as exc:
        return [failed(name, exc.message, exc.hint)]
    ids = count_of(read_map("uid"))
    detail = f"user {user} is root of it, with {ids:,} user id{'s' if ids > 1 else ''}"
    if ids > 1:
        return [passed(name, detail)]
    detail += ": other owners of an image's files show as nobody, and none can run a container"
    return [warned(name, detail, MORE_IDS)]
