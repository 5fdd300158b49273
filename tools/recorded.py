# SPDX-License-Identifier: Apache-2.0
"""Runs pytest, and records the failed tests of this process and its workers.

Pytest's own record (``--last-failed``) omits tests that killed their worker, and with workers its
exit code is the same for a failed test and for a file that cannot be loaded.

    python tools/recorded.py RECORD [pytest options]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest


class _Record:
    """A plugin of the process that calls pytest."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        self.is_loaded = True

    @pytest.hookimpl(wrapper=True, optionalhook=True)
    def pytest_xdist_make_scheduler(self) -> Generator[None, Any, Any]:
        """Let no worker wait for ever that takes the place of another.

        A worker runs a test once it has the next one or the word that there is none. xdist gives a
        new worker one file, which can have one test left: the one that killed its worker before.
        And it distributes all files of that worker again, also those of which nothing is left:
        who gets such a file has no test to end, and so asks for nothing more.
        """
        scheduler = yield
        once, remove = scheduler.schedule, scheduler.remove_node

        def remove_node(node: Any) -> Any:
            files = scheduler.assigned_work[node]
            for file in [file for file, tests in files.items() if all(tests.values())]:
                del files[file]
            return remove(node)

        scheduler.schedule, scheduler.remove_node = (lambda: (once(), once())), remove_node
        return scheduler

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.is_loaded &= not report.failed


def main(path: Path, options: Sequence[str]) -> int:
    """Run pytest, write a JSON list of the failed tests to `path`, return the exit code."""
    record = _Record()
    code = int(pytest.main([*options], plugins=[record]))
    path.write_text(json.dumps(sorted(record.failed)))
    if code == pytest.ExitCode.TESTS_FAILED and not record.is_loaded:
        return int(pytest.ExitCode.INTERRUPTED)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
