# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import warnings
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# benchmarks/ measures durations; tests never assert them: the machine has other work.
settings.register_profile(
    "firstread", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("emulated", settings.get_profile("firstread"), max_examples=10)
if settings.get_current_profile_name() == "default":  # elsewhere than in CI, which has its own
    settings.load_profile("firstread")


def pytest_configure(config: pytest.Config) -> None:
    """Undo what the environment of this process would do to those that tests start.

    A shell's background process ignores SIGINT, and one under nohup SIGHUP; so do their children.
    Tests that interrupt a command would each wait until their time is over. And without bytecode
    on disk each of a thousand processes compiles what it imports, which takes half of its start.
    gRPC must not hear of forks: where no file can be opened, its handlers abort the process.
    """
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect the open files of a failed test, so that no later test is charged with them.

    Its traceback holds its files and processes. Collecting them warns, and a warning is an error in
    the test that runs at that moment.
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
