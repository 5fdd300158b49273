# SPDX-License-Identifier: Apache-2.0
"""What the snapshotter is told of attached images, and how often it asks."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from firstread.errors import (
    BusyError,
    DerivedImageError,
    FirstreadError,
    TransportError,
    UnsupportedError,
)
from firstread.snapshotter import attachedimages
from firstread.snapshotter.attachedimages import ABSENT_S, AttachedImages
from firstread.snapshotter.refusal import Refusal, RefusalError

ORIGINAL, CONVERTED = (f"sha256:{digit * 64}" for digit in "ab")


@dataclass
class Daemon:
    """Answers with a digest, or with an error."""

    answer: str | FirstreadError = CONVERTED
    asked: list[str] = field(default_factory=list)
    now: float = 0.0
    takes_s: float = 0.0

    def pull(self, reference: str) -> str:
        self.asked.append(reference)
        self.now += self.takes_s
        if isinstance(self.answer, FirstreadError):
            raise self.answer
        return self.answer

    def images(self) -> AttachedImages:
        return AttachedImages(self.pull, lambda: self.now)


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("registry.example/team/app:1", "docker://registry.example/team/app"),
        ("localhost:5000/app", "docker://localhost:5000/app"),
        ("docker.io/library/nginx:1", "docker://docker.io/library/nginx"),
        (f"registry.example/app:1@{ORIGINAL}", "docker://registry.example/app"),
    ],
)
def test_it_is_named_by_digest_beside_its_original(image: str, place: str) -> None:
    daemon = Daemon()
    assert daemon.images()(image, ORIGINAL) == f"{place}@{CONVERTED}"
    assert daemon.asked == [f"{place}@{ORIGINAL}"]


def test_that_there_is_none_counts_for_a_while() -> None:
    daemon = Daemon(UnsupportedError("an ordinary image"))
    images = daemon.images()
    assert [images("r.example/a:1", ORIGINAL) for _ in range(5)] == [None] * 5
    assert len(daemon.asked) == 1
    assert images("r.example/b:1", ORIGINAL) is None
    assert len(daemon.asked) == 2
    daemon.answer = CONVERTED
    assert images("r.example/a:1", ORIGINAL) is None
    daemon.now = ABSENT_S
    assert images("r.example/a:1", ORIGINAL) == f"docker://r.example/a@{CONVERTED}"


def test_a_derived_image_is_no_ordinary_one() -> None:
    images = Daemon(DerivedImageError("it was built FROM a converted image")).images()
    with pytest.raises(DerivedImageError):
        images("r.example/a:1", ORIGINAL)


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (TransportError("it does not answer"), 1),
        (BusyError("200 requests wait"), 5),
        (RefusalError(Refusal.CANCELLED, "the client has gone"), 5),
    ],
)
def test_a_failure_that_took_long_counts_for_all_layers(error: FirstreadError, times: int) -> None:
    daemon = Daemon(error, takes_s=30.0)
    images = daemon.images()
    for _ in range(5):
        daemon.now = 0.0
        with pytest.raises(type(error), match=error.message):
            images("r.example/a:1", ORIGINAL)
    assert len(daemon.asked) == times
    daemon.now, daemon.answer = 30.0 + ABSENT_S, CONVERTED
    assert images("r.example/a:1", ORIGINAL) is not None


def test_a_failure_is_not_remembered() -> None:
    daemon = Daemon(TransportError("it does not answer"))
    images = daemon.images()
    for _ in range(2):
        with pytest.raises(TransportError):
            images("r.example/a:1", ORIGINAL)
    assert len(daemon.asked) == 2


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachedimages, "MAX_ABSENT", 4)
    daemon = Daemon(UnsupportedError("an ordinary image"))
    images = daemon.images()
    for number in range(10):
        assert images(f"r.example/{number}", ORIGINAL) is None
    assert len(images._absent) == 4
    daemon.now = 2 * ABSENT_S
    assert images("r.example/new", ORIGINAL) is None
    assert list(images._absent) == [f"docker://r.example/new@{ORIGINAL}"]
