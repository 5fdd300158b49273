# SPDX-License-Identifier: Apache-2.0
"""The rules of a fetcher's life: what a supervisor does next, without a process or a clock."""

from __future__ import annotations

import dataclasses

import pytest

from firstread.daemon.life import (
    MAX_FAILURES,
    MAX_PAUSE_READY_S,
    MAX_PAUSE_S,
    START_S,
    Life,
    Stage,
    Starts,
    Step,
    next_step,
)

HEALTH_S = 3.0


def step(
    current: Life | None,
    standby: Life | None = None,
    *,
    now: float = 0.0,
    starts: Starts | None = None,
) -> Step | None:
    return next_step(now, current, standby, starts or Starts(-1), HEALTH_S)


def life(stage: Stage, **changes: float | bool) -> Life:
    return dataclasses.replace(Life.begin(stage, 0.0), **changes)  # type: ignore[arg-type]


def test_a_fetcher_is_started_where_there_is_none() -> None:
    assert step(None) is Step.START


@pytest.mark.parametrize(
    ("stage", "patience_s"),
    [(Stage.STARTS, START_S), (Stage.SERVES, HEALTH_S), (Stage.RETIRES, HEALTH_S)],
)
def test_a_fetcher_that_says_nothing_for_too_long_is_killed(
    stage: Stage, patience_s: float
) -> None:
    assert step(life(stage), now=patience_s) is None
    assert step(life(stage), now=patience_s + 0.1) is Step.KILL


def test_a_fetcher_that_was_killed_is_given_time_to_end() -> None:
    late = life(Stage.RETIRES, until=-1.0)
    assert step(late) is Step.KILL
    late.note_kill(0.0)
    assert step(late) is None
    late.ended = True
    assert step(late) is Step.BURY


def test_the_first_word_ends_a_stage_and_later_ones_do_not() -> None:
    for before, after in ((Stage.STARTS, Stage.SERVES), (Stage.LOADS, Stage.LOADED)):
        fetcher = life(before)
        assert fetcher.speak(7.0)
        assert (fetcher.stage, fetcher.beat) == (after, 7.0)
        assert not fetcher.speak(8.0)
        assert (fetcher.stage, fetcher.beat) == (after, 8.0)


def test_a_fetcher_retires_once_the_next_one_has_loaded_and_that_one_is_promoted_then() -> None:
    current, standby = life(Stage.SERVES), life(Stage.LOADS)
    assert step(current, standby) is None
    standby.speak(0.0)
    assert step(current, standby) is Step.RETIRE
    current.retire(until=40.0)
    assert step(current, standby) is None
    current.ended = True
    assert step(current, standby) is Step.BURY
    assert step(None, standby) is Step.PROMOTE
    standby.promote(1.0)
    assert standby.stage is Stage.STARTS


def test_a_fetcher_that_does_not_retire_in_time_is_killed() -> None:
    current = life(Stage.SERVES)
    current.retire(until=1.0)
    assert step(current, life(Stage.LOADED), now=1.1) is Step.KILL


def test_one_that_stands_by_takes_the_place_of_one_that_dies_before_it_has_loaded() -> None:
    assert step(None, life(Stage.LOADS)) is Step.PROMOTE


def test_one_that_stands_by_and_does_not_load_is_killed_and_dismissed() -> None:
    standby = life(Stage.LOADS)
    current = life(Stage.SERVES, beat=START_S)
    assert step(current, standby, now=START_S) is None
    assert step(current, standby, now=START_S + 1) is Step.KILL_STANDBY
    standby.ended = True
    assert step(current, standby, now=START_S + 1) is Step.DISMISS
    assert step(None, standby, now=START_S + 1) is Step.DISMISS


def test_pauses_grow_while_fetchers_die_at_once() -> None:
    starts, pauses = Starts(-1), []
    for _ in range(12):
        starts.note_end(life(Stage.STARTS), 0.1)
        pauses.append(starts.pause_s)
    assert pauses[:3] == [0.05, 0.1, 0.2]
    assert pauses[-1] == MAX_PAUSE_S
    starts.note_end(life(Stage.SERVES), 0.1)
    assert starts.pause_s == MAX_PAUSE_READY_S
    starts.note_end(life(Stage.SERVES), 10.0)
    assert starts.pause_s == 0.0


def test_a_fetcher_is_started_again_only_after_the_pause() -> None:
    starts = Starts(-1)
    starts.note_start(0.0)
    starts.note_end(life(Stage.STARTS), 0.1)
    assert step(None, now=0.04, starts=starts) is None
    assert step(None, now=0.06, starts=starts) is Step.START
    assert starts.restarts == 0


def test_a_daemon_gives_up_only_if_no_fetcher_ever_worked() -> None:
    starts = Starts(-1)
    for _ in range(MAX_FAILURES):
        assert step(None, now=100.0, starts=starts) is Step.START
        starts.note_end(life(Stage.STARTS), 0.1)
    assert step(None, now=100.0, starts=starts) is Step.GIVE_UP
    starts.note_ready()
    for _ in range(2 * MAX_FAILURES):
        starts.note_end(life(Stage.STARTS), 0.1)
    assert step(None, now=100.0, starts=starts) is Step.START
