# SPDX-License-Identifier: Apache-2.0
"""The wait for requests: awake where the next one comes at once, asleep otherwise."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from firstread.device import vigil as module
from firstread.device.vigil import AWAKE_S, Vigil


class World:
    """A clock that each look moves on by 10 us, and what there is to read from some time on."""

    def __init__(self) -> None:
        self.now, self.looks, self.ready_at = 1000.0, 0, float("inf")

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now

    def register(self, fd: int, events: int) -> None:
        pass

    def poll(self, timeout: float | None = None) -> list[int]:
        assert timeout == 0, "sleeping is what the read is for"
        self.looks += 1
        self.now += 10e-6
        return [1] if self.now >= self.ready_at else []


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    select = SimpleNamespace(poll=lambda: world, POLLIN=1)
    monkeypatch.setattr(module, "select", select)
    monkeypatch.setattr(module, "time", world)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return world


def _serve(vigil: Vigil, world: World, pause_s: float) -> None:
    """Have a request come so long after the last answer, and answer it."""
    world.now += pause_s
    vigil.came()
    vigil.answered()


def _brisk(world: World) -> Vigil:
    """Return a vigil behind two requests, of which the second came soon."""
    vigil = Vigil(0)
    _serve(vigil, world, 1.0)
    _serve(vigil, world, AWAKE_S / 2)
    return vigil


def test_it_sleeps_until_somebody_asks_soon_after_an_answer(world: World) -> None:
    vigil = Vigil(0)
    vigil.keep()
    _serve(vigil, world, 1.0)
    vigil.keep()
    assert world.looks == 0


def test_it_looks_until_the_next_request_is_there(world: World) -> None:
    vigil = _brisk(world)
    world.ready_at = world.now + 35e-6
    vigil.keep()
    assert world.looks == 4


def test_it_gives_up_behind_an_answer_that_nobody_follows_up(world: World) -> None:
    vigil = _brisk(world)
    began = world.now
    vigil.keep()
    assert AWAKE_S <= world.now - began < 1.5 * AWAKE_S
    _serve(vigil, world, 1.0)
    looks = world.looks
    vigil.keep()
    assert world.looks == looks, "a reader that takes its time costs nothing"


def test_it_never_takes_the_only_cpu(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    _brisk(world).keep()
    assert world.looks == 0
