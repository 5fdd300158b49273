# SPDX-License-Identifier: Apache-2.0
"""Runs pytest, and records the failed tests of this process and its workers.

Pytest's own record (``--last-failed``) omits tests that killed their worker, and with workers its
exit code is the same for a failed test and for a file that cannot be loaded.

    python tools/recorded.py RECORD [pytest options]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


class _Record:
    """A plugin of the process that calls pytest."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        self.is_loaded = True

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
