# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/tune.md, and the week that one of them replays."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from benchmarks.answers import (
    DAYS,
    HELD,
    STARTS_A_DAY,
    UNITS,
    Packed,
    Subject,
    packed_table,
    put,
    unit_name,
    unit_table,
    week,
)

from firstread.tune.hits import Held
from firstread.tune.replay import Replayed
from firstread.tune.settings import Setting


class Named:
    """What a week asks of a workload."""

    def __init__(self, name: str) -> None:
        self.base, self._name = "sha256:base", name

    def needs(self, _setting: Setting) -> list[Held]:
        return [Held(b"sha256:base 0 8", 8), Held(f"sha256:{self._name} 0 4".encode(), 4)]


def test_a_week_starts_the_first_workloads_most_and_shares_their_base() -> None:
    found = cast("list[Subject]", [Named("one"), Named("two"), Named("three")])
    starts = week(found, HELD[0])
    assert len(starts) == DAYS * STARTS_A_DAY
    assert starts == week(found, HELD[0]), "it is the same week each time"
    assert {start[0].id for start in starts} == {b"sha256:base 0 8"}
    tops = [start[1].id.split(b" ", 1) for start in starts]
    counts = [sum(top == f"sha256:{n} 0 4".encode() for _, top in tops) for n in ("one", "three")]
    assert counts[0] > 2 * counts[1] > 0
    assert len({version for version, top in tops if top.startswith(b"sha256:one")}) == 4


def test_rows_are_in_the_order_of_the_units_and_compared_with_the_best() -> None:
    starts = {
        setting: {"app": Replayed(float(number), [], 2e6, 3)}
        for number, setting in enumerate(UNITS, 1)
    }
    head, _, first, second, *_ = unit_table(starts, ["app"])
    assert head.startswith("| 100Mbit/20ms: s to ready, MB | app |")
    assert first == "| whole files | 1.00, 2.0 | 1.00x |"
    assert second == "| chunks of files, 4 MiB | 2.00, 2.0 | 2.00x |"
    assert len({unit_name(setting) for setting in UNITS}) == len(UNITS)


def test_hot_blobs_are_compared_with_the_trace() -> None:
    sizes = dict.fromkeys((4096, 8192, 16384, 32768, 65536), 3_000_000)
    made = Packed(
        9_000_000, sizes, dict.fromkeys(sizes, 1_000_000), dict.fromkeys((3, 9, 15, 19), 2_000_000)
    )
    _, _, read, granule, *_ = packed_table({"app": made})
    assert read == "| read by the trace, uncompressed | 9.00 | 4.50x |"
    assert granule == "| granule 4 KiB, level 15 | 4.00 | 2.00x |"


def test_tables_replace_those_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n")
    put(page, {"two": ["x", "y"], "one": ["new"]})
    assert page.read_text() == (
        "a\n<!-- one -->\nnew\n<!-- end -->\nb\n<!-- two -->\nx\ny\n<!-- end -->\n"
    )
    with pytest.raises(RuntimeError, match="no place for the table 'three'"):
        put(page, {"three": []})
