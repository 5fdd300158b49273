# SPDX-License-Identifier: Apache-2.0
"""Policies of mounts: what a user asked for, and what holds for a sector of several mounts. Pure.

The configuration decides what a user did not; see `firstread.config.PolicyTable`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from firstread.config import PolicyTable
from firstread.units import MAX_SECONDS

_MILDER = ("fail", "refetch", "quarantine")  # each does more for a read than the one before


class Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user asked for a mount; None: as configured.

    Args:
        stall_s: how long a read waits for a source that fails, in seconds.
        on_corruption: what happens when a source gives wrong bytes.
        require: ``lazy``: not mounted in any other way.
        prefetch: what is fetched though nobody reads it; not part of a `PolicyTable`.
    """

    stall_s: float | None = None
    on_corruption: Literal["refetch", "quarantine", "fail"] | None = None
    require: Literal["lazy"] | None = None
    prefetch: Literal["none", "hot", "all"] | None = None

    def __post_init__(self) -> None:
        if self.stall_s is not None and not 0 <= self.stall_s < MAX_SECONDS:
            raise ValueError(f"stall_s must be 0 at least, and below {MAX_SECONDS:,.0f}")

    def over(self, defaults: PolicyTable) -> PolicyTable:
        """Return what holds."""
        return PolicyTable(
            defaults.stall_s if self.stall_s is None else self.stall_s,
            self.on_corruption or defaults.on_corruption,
            self.require or defaults.require,
        )


AS_CONFIGURED = Asked()


def most_patient(policies: Iterable[PolicyTable], otherwise: PolicyTable) -> PolicyTable:
    """Return what holds for all of `policies` together.

    An event names the file of a sector, not the mount that somebody reads. So where several mounts
    have the sector, no read fails that one of them would let wait.

    Args:
        policies: of the mounts.
        otherwise: if there are none.
    """
    found = list(policies)
    if not found:
        return otherwise
    return PolicyTable(
        max(policy.stall_s for policy in found),
        max((policy.on_corruption for policy in found), key=_MILDER.index),
        max((policy.require for policy in found), key=bool),
    )
