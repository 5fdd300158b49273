# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests."""

from __future__ import annotations

import signal

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
