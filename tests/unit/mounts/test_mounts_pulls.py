# SPDX-License-Identifier: Apache-2.0
"""Pulls that several wait for, or nobody, and how many there may be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from firstread.errors import BusyError, NotFoundError, TransportError
from firstread.mounts.pulls import GoneError, Pulls, Seats
from firstread.testing.patience import PATIENCE_S


class Leaving:
    """A client that waits until it is told to go."""

    def __init__(self) -> None:
        self.gone = False

    def check(self) -> None:
        if self.gone:
            raise GoneError("gone")


class Work:
    """A pull that waits for the test, or for its own end."""

    def __init__(self, *digests: str) -> None:
        self.digests = digests  # that the name turns out to mean
        self.begun = 0
        self.may_end = threading.Event()
        self.error: Exception | None = None

    def __call__(self, on_resolved: Callable[..., None]) -> str:
        self.begun += 1
        on_resolved(*self.digests)
        assert self.may_end.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return "image"


def pulls(waiting: int = 100, running: int = 100, linger_s: float = 0.0) -> Pulls[str]:
    return Pulls(Seats(waiting, waiting), Seats(running, running), linger_s)


def until(condition: Callable[[], object]) -> None:
    for _ in range(int(PATIENCE_S * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it does not happen")


def waiters(of: Pulls[str], key: str = "a") -> int:
    pull = of._pulls.get(key)
    return pull.waiters if pull else 0


def test_a_question_for_a_digest_joins_the_pull_of_its_name() -> None:
    shared, work, other = pulls(), Work("d", "e"), Work()
    other.may_end.set()
    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(shared.wait, "a", "r", work)]
        until(lambda: waiters(shared, "e"))
        asking += [pool.submit(shared.wait, key, "r", other) for key in ("d", "e")]
        until(lambda: waiters(shared) == 3)
        work.may_end.set()
        assert {future.result(PATIENCE_S)[0] for future in asking} == {"image"}
    assert (work.begun, other.begun) == (1, 0)
    shared.wait("d", "r", other)
    assert other.begun == 1, "it has ended, under all its names"


def test_a_pull_that_is_given_up_gets_no_more_names() -> None:
    shared, work = pulls(), Work("d")
    resolve = threading.Event()

    def slow(on_resolved: Callable[..., None]) -> str:
        assert resolve.wait(PATIENCE_S)
        return work(on_resolved)

    client = Leaving()
    client.gone = True
    with pytest.raises(GoneError):
        shared.wait("a", "r", slow, client)
    resolve.set()
    until(lambda: work.begun)
    assert not waiters(shared, "d")
    work.may_end.set()


def test_all_who_want_an_image_wait_for_one_pull() -> None:
    shared, work = pulls(), Work()
    with ThreadPoolExecutor(20) as pool:
        asking = [pool.submit(shared.wait, "a", "r", work) for _ in range(20)]
        until(lambda: waiters(shared) == 20)
        work.may_end.set()
        answers = [future.result(PATIENCE_S) for future in asking]
    assert work.begun == 1
    assert len(set(answers)) == 1
    assert answers[0][0] == "image"
    assert answers[0][1] > 0
    assert shared.wait("a", "r", work)[0] == "image"  # and then anew
    assert work.begun == 2


def test_an_error_is_everyones_own() -> None:
    shared, work = pulls(), Work()
    work.error = NotFoundError("there is none")
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(shared.wait, "a", "r", work) for _ in range(2)]
        until(lambda: waiters(shared) == 2)
        work.may_end.set()
        errors = [future.exception(PATIENCE_S) for future in asking]
    assert [type(error) for error in errors] == [NotFoundError] * 2
    assert errors[0] is not errors[1]


def test_a_pull_ends_with_the_last_who_waits_for_it() -> None:
    shared, work, one, other = pulls(), Work(), Leaving(), Leaving()
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(shared.wait, "a", "r", work, who) for who in (one, other)]
        until(lambda: waiters(shared) == 2)
        pull = shared._pulls["a"]
        one.gone = True
        with pytest.raises(GoneError):
            asking[0].result(PATIENCE_S)
        assert not pull.call.cancelled
        other.gone = True
        with pytest.raises(GoneError):
            asking[1].result(PATIENCE_S)
        assert pull.call.cancelled
        assert not shared._pulls  # who comes now begins anew
        work.may_end.set()


def test_a_pull_that_may_linger_goes_on_without_anybody_and_is_joined_again() -> None:
    shared, work, one = pulls(linger_s=PATIENCE_S), Work(), Leaving()
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(shared.wait, "a", "r", work, one)
        until(lambda: waiters(shared) == 1)
        one.gone = True
        with pytest.raises(GoneError):
            asking.result(PATIENCE_S)
        again = pool.submit(shared.wait, "a", "r", work)
        until(lambda: waiters(shared) == 1)
        work.may_end.set()
        assert again.result(PATIENCE_S)[0] == "image"
    assert work.begun == 1


def test_a_pull_that_lingers_is_cancelled_in_the_end() -> None:
    shared, work, one = pulls(linger_s=0.01), Work(), Leaving()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(shared.wait, "a", "r", work, one)
        until(lambda: waiters(shared) == 1)
        pull = shared._pulls["a"]
        one.gone = True
        assert isinstance(asking.exception(PATIENCE_S), GoneError)
        until(lambda: pull.call.cancelled)
        work.may_end.set()


def test_one_registry_has_a_part_of_the_seats() -> None:
    seats = Seats(4, 2)
    with seats.taken("a"), seats.taken("a"):
        with pytest.raises(BusyError, match="2 requests wait for a already"):
            seats.take("a")
        with seats.taken("b"), seats.taken("c"), pytest.raises(BusyError, match="for registries"):
            seats.take("d")
    with seats.taken("a"):
        pass
    assert not seats._taken


def test_a_pull_that_does_not_end_keeps_its_seat_though_nobody_waits() -> None:
    shared, work, one = pulls(running=1), Work(), Leaving()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(shared.wait, "a", "r", work, one)
        until(lambda: waiters(shared) == 1)
        one.gone = True
        assert isinstance(asking.exception(PATIENCE_S), GoneError)
        with pytest.raises(BusyError):
            shared.wait("b", "r", work)
        work.may_end.set()
        until(lambda: not shared._running._taken)
        assert shared.wait("b", "r", work)[0] == "image"


def test_a_pull_that_has_no_thread_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    shared, work = pulls(running=1), Work()
    work.may_end.set()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            shared.wait("a", "r", work)
    assert shared.wait("a", "r", work)[0] == "image"


def test_a_failure_of_another_kind_is_raised_too() -> None:
    shared, work = pulls(), Work()
    work.may_end.set()
    for error in (TransportError("it hung up"), ZeroDivisionError("a defect")):
        work.error = error
        with pytest.raises(type(error)):
            shared.wait("a", "r", work)
