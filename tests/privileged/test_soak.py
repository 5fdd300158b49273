# SPDX-License-Identifier: Apache-2.0
"""The soak as a test: ``pytest -m soak``, for ``SOAK_S`` seconds. Its rules have other tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks import reliability
from benchmarks.soak.__main__ import Soak
from benchmarks.soak.judge import exit_code, last_line, table

pytestmark = [pytest.mark.privileged, pytest.mark.soak, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("SOAK_S") or 60)
SEED = 1


def test_no_read_is_lost_while_everything_fails(tmp_path: Path) -> None:
    rows = Soak(tmp_path, SECONDS, SEED).run()
    report = reliability.columns(table(rows)) + last_line(rows)
    assert sum(row.reads for row in rows) > 0
    assert exit_code(rows) == 0, report
