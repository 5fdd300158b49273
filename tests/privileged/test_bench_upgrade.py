# SPDX-License-Identifier: Apache-2.0
"""The benchmark of upgrades, run for two of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from benchmarks.upgrade import chapter, measure

from firstread.config import DEVICES

pytestmark = [pytest.mark.privileged, pytest.mark.benchmarks]


@pytest.mark.parametrize("device", DEVICES)
def test_two_upgrades_fail_no_read(tmp_path: Path, device: str) -> None:
    outcome = measure(tmp_path, 2, files=200, device=device)
    assert len(outcome.reads) == 200
    assert len(outcome.upgrades) == 2
    assert (outcome.failed, outcome.wrong) == (0, 0)
    assert chapter(outcome, {}).summary == "2 upgrades under 200 first reads: 0 failed, 0 wrong"
    good = dataclasses.replace(outcome, during=2)
    assert good.is_good
    for spoilt in ({"failed": 1}, {"wrong": 1}, {"during": 1}, {"descriptors": (20, 30)}):
        assert not dataclasses.replace(good, **spoilt).is_good
