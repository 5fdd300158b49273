# SPDX-License-Identifier: Apache-2.0
"""What a signal does to a command that has to undo something."""

from __future__ import annotations

import signal

import pytest

from firstread import signals
from firstread.signals import unwinding_on_signals
from firstread.testing.patience import PATIENCE_S

KINDS = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: SystemExit,
    signal.SIGHUP: SystemExit,
}


def undo(number: signal.Signals, again: signal.Signals) -> str:
    """Return how far a command comes whose work and whose undoing are interrupted."""
    reached = "nothing"
    with unwinding_on_signals():
        try:
            signal.raise_signal(number)
        except KINDS[number]:
            reached = "undoing"
            signal.raise_signal(again)
            reached = "undone"
    return reached


@pytest.mark.parametrize("number", KINDS)
@pytest.mark.parametrize("again", KINDS)
def test_two_signals_at_once_are_one(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, again: signal.Signals
) -> None:
    """As timeout(1) sends it: to the process, and to its group."""
    monkeypatch.setattr(signals, "TWICE_S", PATIENCE_S)
    assert undo(number, again) == "undone"


@pytest.mark.parametrize("again", KINDS)
def test_a_later_signal_counts_again(
    monkeypatch: pytest.MonkeyPatch, again: signal.Signals
) -> None:
    monkeypatch.setattr(signals, "TWICE_S", 0.0)
    with pytest.raises(KINDS[again]):
        undo(signal.SIGTERM, again)
