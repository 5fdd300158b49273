# SPDX-License-Identifier: Apache-2.0
"""Clients that leave while something is done for them."""

from __future__ import annotations

import pytest

from firstread.errors import TransportError
from firstread.snapshotter.caller import Caller, current, serving
from firstread.snapshotter.refusal import RefusalError


def test_what_it_waits_for_is_stopped_and_its_error_is_that_it_has_gone() -> None:
    caller, stopped = Caller(), []

    def wait() -> None:
        with caller.waiting(lambda: stopped.append(1)):
            caller.leave()
            raise TransportError("we hung up")

    with pytest.raises(RefusalError, match="has gone"):
        wait()
    assert stopped == [1]
    with pytest.raises(RefusalError), caller.waiting(lambda: stopped.append(2)):
        pytest.fail("it waits for one who has gone")
    assert stopped == [1]


def test_an_error_of_one_who_waits_is_itself() -> None:
    with pytest.raises(TransportError), Caller().waiting(lambda: None):
        raise TransportError("it is down")


def test_an_ended_process_is_not_stopped() -> None:
    caller, stopped = Caller(), []
    with caller.waiting(lambda: stopped.append(1)):
        pass
    caller.leave()
    assert stopped == []


def test_a_thread_works_for_one_caller_at_a_time() -> None:
    caller = Caller()
    with serving(caller):
        assert current() is caller
    assert current() is not caller
