# SPDX-License-Identifier: Apache-2.0
"""Records of starts that never happened, for tests of what is shown of them."""

from __future__ import annotations

from firstread.fetch.imagehistory import ReadWaited, RequestMade, SectorCame, Step
from firstread.report.startrecord import FileRead, StartRecord
from firstread.units import KiB, MiB


def start_record(sectors: int = 8, files: int = 4, name: str = "/usr/lib/f{}") -> StartRecord:
    """Return a record of a start that lasted 2 s.

    Its first half of sectors came, one after the other, each by a request for a read; the others
    are absent.

    Args:
        sectors: of the image, at least 2.
        files: that were read.
        name: of a file; ``{}`` stands for its number.
    """
    came, pace = sectors // 2, 1.5 / (sectors // 2)
    at = [0.5 + number * pace for number in range(came)]
    return StartRecord(
        began=1_700_000_000.0,
        elapsed=3.0,
        steps=[
            Step("resolve", 0.0, 0.125),
            Step("metadata", 0.125, 0.25),
            Step("mount", 0.375, 0.125),
            Step("first output", 0.5, 1.5),
        ],
        reads=[ReadWaited(time, pace / 2, n, 0, 4096) for n, time in enumerate(at)],
        requests=[RequestMade(time, pace / 2, n, "demand", MiB, MiB) for n, time in enumerate(at)],
        sectors=[
            SectorCame(4 * MiB, MiB, 4 * MiB, "demand", at[n] + pace / 2)
            if n < came
            else SectorCame(4 * MiB, MiB, 0, None, None)
            for n in range(sectors)
        ],
        lost=0,
        mountpoint="/mnt",
        image="registry.example/app:1",
        digest="sha256:" + "0" * 64,
        repository="registry.example/app",
        files=[FileRead(name.format(n), 1, 4096, 0.5, pace / 2, 64 * KiB) for n in range(files)],
        used=[MiB] * sectors,
    )
