# SPDX-License-Identifier: Apache-2.0
"""Two requests of which the first answer counts, where no thread can be had."""

from __future__ import annotations

import pytest

from firstread.errors import TransportError
from firstread.registry.calls import Call
from firstread.registry.hedge import Race
from firstread.testing.shortage import no_threads


def test_without_a_thread_who_waits_asks() -> None:
    race = Race[str, str](lambda asked, _: asked.upper(), lambda _: None)
    with no_threads():
        assert race.run("first", 0.0, lambda: pytest.fail("it is not late")) == ("first", "FIRST")


def test_without_a_thread_an_error_is_one_of_who_was_asked() -> None:
    def ask(asked: str, _: Call) -> str:
        raise TransportError(asked)

    race = Race[str, str](ask, lambda _: None)
    with no_threads():
        assert race.run("first", 0.0, lambda: "second") is None
    assert [asked for asked, _ in race.failed] == ["first"]
