# SPDX-License-Identifier: Apache-2.0
"""The action for a read: every combination of what can be seen. No kernel, no files."""

from __future__ import annotations

import itertools

import pytest

from firstread.cache.clock import Verdict
from firstread.errors import AuthError, FirstreadError, NodeError, TransportError
from firstread.fetch.router import Action, Seen, Step, after, route

SECTOR = bytes(range(32))

EVERYTHING = [
    (Seen(verdict, unverified, disputed), expecting)
    for verdict, unverified, disputed, expecting in itertools.product(
        Verdict, (False, True), (False, True), (False, True)
    )
]


def expected(seen: Seen) -> Step:
    """The table of the module, read from the top."""
    if seen.verdict is Verdict.WAIT:
        return Step.AWAIT_EMPTYING
    if seen.verdict is Verdict.ALLOW:
        return Step.ALLOW
    if seen.verdict is Verdict.CHECK:
        return Step.CHECK
    if seen.is_disputed:
        return Step.DECIDE
    return Step.CHECK if seen.has_unverified else Step.FETCH


@pytest.mark.parametrize(("seen", "expecting"), EVERYTHING)
def test_a_read_of_a_sector_that_an_image_has(seen: Seen, expecting: bool) -> None:
    assert route(SECTOR, seen, is_expecting=expecting) == Action(expected(seen))


@pytest.mark.parametrize(("seen", "expecting"), EVERYTHING)
def test_a_read_goes_on_only_if_presence_says_so(seen: Seen, expecting: bool) -> None:
    action = route(SECTOR, seen, is_expecting=expecting)
    assert (action.step is Step.ALLOW) == (seen.verdict is Verdict.ALLOW)
    assert action.error is None


def test_a_read_of_a_sector_that_no_image_has() -> None:
    assert route(SECTOR, None, is_expecting=True) == Action(Step.AWAIT_MOUNT)
    step, error = route(SECTOR, None, is_expecting=False)
    assert step is Step.DENY
    assert isinstance(error, NodeError)
    assert SECTOR.hex() in str(error)


def _short() -> NodeError:
    error = NodeError("too many open files")
    error.retryable = True
    return error


@pytest.mark.parametrize(
    ("error", "waited_s", "step"),
    [
        (_short(), 0.0, Step.RETRY),
        (_short(), 60.0, Step.RETRY),
        (_short(), 60.1, Step.DENY),
        (TransportError("it hung up"), 1.0, Step.RETRY),
        (NodeError("not a sector file"), 0.0, Step.DENY),
        (AuthError("no"), 0.0, Step.DENY),
    ],
)
def test_a_read_that_could_not_be_looked_at(
    error: FirstreadError, waited_s: float, step: Step
) -> None:
    action = after(error, waited_s, 60.0)
    assert action.step is step
    assert action.error is (error if step is Step.DENY else None)
