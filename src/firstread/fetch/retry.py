# SPDX-License-Identifier: Apache-2.0
"""When a lane tries a sector again, for the reads that wait for it, and when it gives up. Pure.

Owns the pauses and what they depend on. `firstread.registry.attempts` has tried every endpoint
before a failure gets here; this policy decides how long *reads* wait for them to recover. The
caller gives the time, in monotonic seconds.
"""

from __future__ import annotations

import random
from typing import Final

from firstread.errors import (
    AuthError,
    FirstreadError,
    ImageError,
    NodeError,
    TransportError,
    UsageError,
)

LAST_RETRY_S: Final = 5.0
LONGEST_ASKED_S: Final = 300.0  # that a source may ask a lane to wait, at a time
FINAL_RETRIES: Final = 3  # of an error that does not look transient, before the readers fail


class Outage:
    """The failures of one source.

    Args:
        first_s: pause after a first failure; it doubles with each further one.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._failures = 0  # transient ones since something came last
        self._until = 0.0

    def fail(self, now: float) -> None:
        """Note a failure that may pass."""
        self._failures += 1
        self._until = now + self.pause_s(self._failures)

    def end(self) -> None:
        """Note that something came."""
        self._failures, self._until = 0, 0.0

    @property
    def is_on(self) -> bool:
        """Whether it has failed more than once since something came last."""
        return self._failures > 1

    def left_s(self, now: float) -> float:
        """Return the seconds for which only reads on demand should be tried."""
        return max(0.0, self._until - now)

    def pause_s(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        pause = min(self._first_s * float(1 << min(failures, 10)), LAST_RETRY_S)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def may_pass(error: FirstreadError) -> bool:
    """Return whether reads should wait for `error` to pass: somebody can put it right meanwhile.

    That is so for a transient error, and for a login: its rotation must not fail a read.
    """
    return error.retryable or isinstance(error, AuthError | UsageError)


def is_hopeless(error: FirstreadError, failures: int, on_corruption: str) -> bool:
    """Return whether reads should fail now.

    Args:
        error: the last one.
        failures: of this sector in a row, with this one.
        on_corruption: what the mount's policy says of wrong bytes.
    """
    if isinstance(error, NodeError):
        return not error.retryable  # this machine's fault: no source can help
    fails = isinstance(error, ImageError) and on_corruption == "fail"
    return not may_pass(error) and (fails or failures > FINAL_RETRIES)


def asked_s(error: FirstreadError) -> float:
    """Return for how long the source wants to be left alone, in seconds."""
    return min(error.retry_after, LONGEST_ASKED_S) if isinstance(error, TransportError) else 0.0
