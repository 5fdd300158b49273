# SPDX-License-Identifier: Apache-2.0
"""What a signal does to a command that has to undo something."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from firstread import signals
from firstread.signals import ending_on_signals, unwinding_on_signals
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


@pytest.mark.parametrize("number", KINDS)
def test_a_signal_before_the_wait_ends_it(number: signal.Signals) -> None:
    with ending_on_signals() as await_end:
        signal.raise_signal(number)
        await_end()


def test_a_signal_to_another_thread_ends_the_wait() -> None:
    """The kernel may choose any thread, but Python calls handlers in the first one only."""
    taken: list[int] = []
    with (
        signals.handling({signal.SIGUSR1: lambda number, _: taken.append(number)}),
        ending_on_signals() as await_end,
    ):
        signal.raise_signal(signal.SIGUSR1)  # ends nothing
        thread = threading.Timer(0.02, signal.raise_signal, (signal.SIGTERM,))
        thread.start()
        await_end()
        thread.join()
        assert taken == [signal.SIGUSR1]


def test_ignored_signals_stay_ignored() -> None:
    with signals.handling({signal.SIGHUP: lambda *_: None}):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with ending_on_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_signal_to_another_thread_interrupts_what_waits_for_threads() -> None:
    before = signal.getsignal(signal.SIGURG)
    thread = threading.Timer(0.02, signal.raise_signal, (signal.SIGTERM,))
    with unwinding_on_signals(threads=True):
        thread.start()
        with pytest.raises(SystemExit):
            threading.Event().wait()
        thread.join()
    assert signal.getsignal(signal.SIGURG) == before
    assert not [each for each in threading.enumerate() if each.name == "signals"]


def test_a_command_hears_of_its_children_whatever_its_caller_ignores() -> None:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "import firstread.cli.main as command\n"
        "command.main = lambda: print(signal.getsignal(signal.SIGCHLD).name)\n"
        "from firstread.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "SIG_DFL\n"
