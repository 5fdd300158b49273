# SPDX-License-Identifier: Apache-2.0
"""The action for each read. Pure.

Owns the one decision that each event needs, from what presence says of the file and what mounted
images say of the sector. `firstread.fetch.fetcher` looks first and acts afterwards.

====================  ==============================================================
no image has it       wait for a mount that is not served yet, else deny
it is being emptied   wait for the end of that
the file covers all   allow; check first if the content is in doubt
images disagree       let the content decide, once, which size is right
anything else         check an unverified copy if there is one, else fetch
====================  ==============================================================
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from firstread.cache.clock import Verdict
from firstread.errors import FirstreadError, NodeError


class Step(enum.Enum):
    """An action on a read."""

    ALLOW = "allow"
    FETCH = "fetch"  # from the first who has the sector
    CHECK = "check"  # the sector, or an unverified copy of it
    DECIDE = "decide"  # which size is right
    AWAIT_EMPTYING = "await emptying"
    AWAIT_MOUNT = "await mount"
    DENY = "deny"
    RETRY = "retry"  # in a moment


class Action(NamedTuple):
    """A step, and the reason if it is ``DENY``."""

    step: Step
    error: FirstreadError | None = None


class Seen(NamedTuple):
    """What presence says.

    Args:
        verdict: whether the file covers the read, and may be read.
        has_unverified: an unverified copy of the sector lies aside, and can be looked at.
        is_disputed: the file has just as many bytes as the image that would be asked says, others
            say more, and its content was not asked yet.
    """

    verdict: Verdict
    has_unverified: bool = False
    is_disputed: bool = False


ALLOW, FETCH = Action(Step.ALLOW), Action(Step.FETCH)
CHECK, DECIDE = Action(Step.CHECK), Action(Step.DECIDE)
AWAIT_EMPTYING, AWAIT_MOUNT = Action(Step.AWAIT_EMPTYING), Action(Step.AWAIT_MOUNT)
RETRY = Action(Step.RETRY)

_AT_ONCE = {
    Verdict.ALLOW: ALLOW,
    Verdict.CHECK: CHECK,
    Verdict.WAIT: AWAIT_EMPTYING,
}


def route(sector_id: bytes, seen: Seen | None, *, is_expecting: bool) -> Action:
    """Return what is to be done with a read of a sector.

    Args:
        sector_id: of the file.
        seen: what presence says; None if no mounted image has the sector.
        is_expecting: mounts stand that are not served yet, and may have it.
    """
    if seen is None:
        if is_expecting:
            return AWAIT_MOUNT
        error = NodeError(f"no mounted image has the sector {sector_id.hex()}")
        return Action(Step.DENY, error)
    at_once = _AT_ONCE.get(seen.verdict)
    if at_once is not None:
        return at_once
    if seen.is_disputed:
        return DECIDE
    return CHECK if seen.has_unverified else FETCH


def after(error: FirstreadError, waited_s: float, stall_s: float) -> Action:
    """Return what is to be done with a read that could not be looked at.

    Args:
        error: why.
        waited_s: by the read.
        stall_s: that a read waits at most.
    """
    if error.retryable and waited_s <= stall_s:
        return RETRY
    return Action(Step.DENY, error)
