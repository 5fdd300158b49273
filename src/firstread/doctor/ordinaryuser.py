# SPDX-License-Identifier: Apache-2.0
"""The user namespace that an ordinary user's node needs.

`check_user` leaves this process in one, as the daemon would be, if the host gives any. Invariant:
it makes no process that stays.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from firstread.control.usernamespace import join, make, require_none
from firstread.doctor.finding import Finding, failed, passed, warned
from firstread.errors import NodeError
from firstread.idmaps import MORE_IDS, count_of, owner, read_map

_NAME = "user namespace"


def check_user(run_dir: Path) -> list[Finding]:
    """Say whether this user gets a namespace; nothing for root.

    Args:
        run_dir: of the control socket; need not exist.
    """
    if not owner():
        return []
    try:
        if os.geteuid() and not join(run_dir):
            require_none(run_dir)
            make()
    except NodeError as exc:
        if os.geteuid():
            with contextlib.suppress(NodeError):  # devices can be tried all the same
                make()
        return [failed(_NAME, exc.message, exc.hint)]
    return [_ids()]


def _ids() -> Finding:
    ids = count_of(read_map("uid"))
    detail = f"user {owner()} is root of it, with {ids:,} user id{'s' if ids > 1 else ''}"
    if ids > 1:
        return passed(_NAME, detail)
    detail += ": other owners of an image's files show as nobody, and none can run a container"
    return warned(_NAME, detail, MORE_IDS)
