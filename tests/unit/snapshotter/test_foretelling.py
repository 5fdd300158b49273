# SPDX-License-Identifier: Apache-2.0
"""Which pulls the daemon is told of in advance, and what becomes of that."""

from __future__ import annotations

import threading

import pytest

from firstread.errors import FirstreadError, NodeError, UnsupportedError
from firstread.snapshotter import foretelling
from firstread.snapshotter.caller import current
from firstread.snapshotter.foretelling import Foretelling
from firstread.testing.patience import PATIENCE_S

IMAGE = "r.example/team/app:1"


class Daemon:
    """Pulls until the caller goes; then ends as it is told."""

    def __init__(self, error: FirstreadError | None = None) -> None:
        self.error = error
        self.asked: list[str] = []
        self.begun, self.ended = threading.Event(), threading.Event()

    def pull(self, image: str) -> None:
        self.asked.append(image)
        gone = threading.Event()
        with current().waiting(gone.set):
            self.begun.set()
            assert gone.wait(PATIENCE_S)
        self.ended.set()
        if self.error is not None:
            raise self.error


def foretold(told: Foretelling, image: str = IMAGE) -> None:
    """Pull an image, and wait until what was begun for it has ended."""
    with told.of(image):
        pass
    for thread in threading.enumerate():
        if thread.name == "foretell":
            thread.join(PATIENCE_S)


def test_the_daemon_pulls_beside_a_pull_and_ends_with_it() -> None:
    daemon = Daemon()
    with Foretelling(daemon.pull).of(IMAGE):
        assert daemon.begun.wait(PATIENCE_S)
        assert daemon.asked == [IMAGE]
        assert not daemon.ended.is_set()
    assert daemon.ended.wait(PATIENCE_S)


@pytest.mark.parametrize("image", ["", "app", "docker.io/me/app:1"])
def test_wrong_names_and_registries_that_count_are_left_out(image: str) -> None:
    daemon = Daemon()
    foretold(Foretelling(daemon.pull), image)
    assert daemon.asked == []


def test_an_ordinary_image_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foretelling, "REMEMBERED", 2)
    asked: list[str] = []

    def pull(image: str) -> None:
        asked.append(image)
        raise UnsupportedError("it is an ordinary image")

    told = Foretelling(pull)
    for image in (IMAGE, IMAGE, "r.example/b", "r.example/c", "r.example/c", IMAGE):
        foretold(told, image)
    assert asked == [IMAGE, "r.example/b", "r.example/c", IMAGE], "the oldest is forgotten"


def test_a_daemon_that_fails_is_asked_again() -> None:
    asked: list[str] = []

    def pull(image: str) -> None:
        asked.append(image)
        raise NodeError("no daemon answers")

    told = Foretelling(pull)
    foretold(told)
    foretold(told)
    assert asked == [IMAGE, IMAGE]


def test_a_pull_goes_on_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    daemon = Daemon()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    foretold(Foretelling(daemon.pull))
    assert daemon.asked == []
