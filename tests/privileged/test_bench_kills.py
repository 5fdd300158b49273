# SPDX-License-Identifier: Apache-2.0
"""The benchmark of kills under load, run for some of them by each device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from benchmarks.kills import chapter, measure

from firstread.config import DEVICES
from firstread.testing.nbdmount import NBD

pytestmark = [pytest.mark.privileged, pytest.mark.benchmarks]


@pytest.mark.parametrize("device", [NBD if name == "nbd" else name for name in DEVICES])
def test_kills_under_load_fail_no_read(tmp_path: Path, device: str) -> None:
    outcome = measure(tmp_path / "node", device, 6.0, every_s=1.5)
    assert outcome.is_good(3), outcome
    assert not outcome.is_good(outcome.kills + 1)
    replace = dataclasses.replace
    for load in (
        replace(outcome.load, failed=1),
        replace(outcome.load, wrong=1),
        replace(outcome.load, requests=1),
    ):
        assert not replace(outcome, load=load).is_good(3)
    text = chapter([outcome, outcome], {}, 6.0).text()
    assert f"**{2 * outcome.kills} kills under {2 * len(outcome.load.reads)} reads: 0" in text
