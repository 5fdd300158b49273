# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import warnings
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# How long something takes is measured in benchmarks/, never asserted: the machine has other work.
settings.register_profile(
    "firstread", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
if settings.get_current_profile_name() == "default":  # elsewhere than in CI, which has its own
    settings.load_profile("firstread")


def pytest_configure(config: pytest.Config) -> None:
    """Let signals end processes again.

    What a shell starts in the background ignores SIGINT, what nohup starts SIGHUP, and so do its
    children. Tests that interrupt a command would each wait for it until their time is over.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect what a failed test leaves open, so that no test after it is charged with that.

    Its traceback holds its files and processes; whenever those are collected, there is a warning,
    which is an error, in whatever test runs then.
    """
    before = item.session.testsfailed
    result = yield
    if item.session.testsfailed > before:
        for name in ("last_exc", "last_traceback", "last_type", "last_value"):
            with contextlib.suppress(AttributeError):
                delattr(sys, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return result
