# SPDX-License-Identifier: Apache-2.0
"""The benchmark of kills, run for two of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from benchmarks.death import ABSENT_FILES, FILES_A_KILL, READERS, chapter, measure

from firstread.config import DEVICES

pytestmark = [pytest.mark.privileged, pytest.mark.benchmarks]


@pytest.mark.parametrize("device", DEVICES)
def test_two_kills_and_a_second_without_a_daemon_fail_no_read(tmp_path: Path, device: str) -> None:
    outcome = measure(tmp_path, 2, 1.0, device)
    assert len(outcome.reads) == 2 * READERS * FILES_A_KILL
    assert outcome.is_good
    assert chapter(outcome, {}).summary == (
        "2 kills of everything under 48 first reads: 0 failed, 0 wrong;"
        " 8 of 8 reads waited 1 s and went on"
    )
    replace = dataclasses.replace
    assert not replace(outcome, failed=1).is_good
    assert not replace(outcome, wrong=1).is_good
    assert not replace(outcome, waited=0).is_good
    assert not replace(outcome, right=ABSENT_FILES - 1).is_good
