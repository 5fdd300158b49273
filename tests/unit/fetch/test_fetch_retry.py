# SPDX-License-Identifier: Apache-2.0
"""When a fetch is tried again: every kind of error, and the pauses of a source that is down."""

from __future__ import annotations

import errno

import pytest

from firstread.errors import (
    AuthError,
    FirstreadError,
    ImageError,
    NodeError,
    SourceError,
    TransportError,
    UsageError,
    from_os_error,
)
from firstread.fetch.retry import (
    FINAL_RETRIES,
    LAST_RETRY_S,
    LONGEST_ASKED_S,
    Outage,
    asked_s,
    is_hopeless,
    may_pass,
)

PASSING = [TransportError("busy"), AuthError("denied"), UsageError("no such CA")]
FINAL = [SourceError("not found"), ImageError("wrong bytes")]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_may_pass_is_never_hopeless(error: FirstreadError) -> None:
    assert may_pass(error)
    assert not is_hopeless(error, 1000, "fail")


@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
def test_what_will_not_pass_is_tried_so_often(error: FirstreadError) -> None:
    assert not may_pass(error)
    assert not is_hopeless(error, FINAL_RETRIES, "refetch")
    assert is_hopeless(error, FINAL_RETRIES + 1, "refetch")
    assert is_hopeless(error, 1, "fail") == isinstance(error, ImageError)


def test_a_fault_of_this_machine_is_hopeless_at_once() -> None:
    assert is_hopeless(NodeError("no space"), 1, "refetch")
    passing = from_os_error(OSError(errno.EMFILE, "Too many open files"), "cannot open it")
    assert not is_hopeless(passing, 9, "fail")


def test_pauses_double_with_jitter_up_to_a_limit() -> None:
    outage = Outage(0.1)
    for failures, least in ((1, 0.1), (3, 0.4), (5, 1.6), (6, 2.5), (1000, 2.5)):
        pauses = [outage.pause_s(failures) for _ in range(100)]
        assert least <= min(pauses) < max(pauses) <= min(2 * least, LAST_RETRY_S)


def test_an_outage_is_on_after_two_failures_and_over_with_the_first_byte() -> None:
    outage = Outage(1.0)
    assert (outage.is_on, outage.left_s(100.0)) == (False, 0.0)
    outage.fail(100.0)
    assert not outage.is_on
    assert 1.0 <= outage.left_s(100.0) <= 2.0
    assert outage.left_s(102.0) == 0.0
    outage.fail(102.0)
    assert outage.is_on
    outage.end()
    assert (outage.is_on, outage.left_s(102.0)) == (False, 0.0)


def test_a_source_may_ask_for_a_pause_but_not_for_ever() -> None:
    error = TransportError("busy")
    for asked, granted in ((0.0, 0.0), (7.0, 7.0), (1e9, LONGEST_ASKED_S)):
        error.retry_after = asked
        assert asked_s(error) == granted
    assert asked_s(ImageError("wrong bytes")) == 0.0
