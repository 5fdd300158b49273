# SPDX-License-Identifier: Apache-2.0
"""The benchmark of streams: what it compares happens."""

from __future__ import annotations

import pytest
from benchmarks import stream
from benchmarks.scratch import scratch_directory

pytestmark = [pytest.mark.privileged, pytest.mark.benchmarks]


def test_hot_files_come_by_few_requests_and_without_prefetch_by_many() -> None:
    with scratch_directory() as scratch:
        stream.publish(scratch / "registry", hot=20)
        without, hot = stream.measure(scratch, 100, 0.020, hot=20)
    assert (without.mode, hot.mode) == ("none", "hot")
    assert hot.requests.keys() == {"hot"}
    assert hot.requests["hot"] < sum(without.requests.values())
    assert hot.share > 0.5
