# SPDX-License-Identifier: Apache-2.0
"""The table, and the setting that it leads to."""

from __future__ import annotations

import pytest

from firstread.errors import UsageError
from firstread.oci.resolve import resolve
from firstread.testing.tuning import LARGE, convert, trace
from firstread.tune.comparison import Question, choose, tune
from firstread.tune.link import parse_link
from firstread.tune.settings import MAX_SETTINGS, Setting, settings
from firstread.tune.tuned import SettingTuned, lines
from firstread.units import KiB, MiB

LINKS = [parse_link("10Mbit/50ms"), parse_link("1Gbit/1ms")]
KINDS = ("plain", "hot", "files", "chunks")
READS = [("bin/3", 0, 4096), ("large", 0, LARGE), ("bin/9", 0, 4096)]


def row(ready: float, size: int = 1) -> SettingTuned:
    return SettingTuned("", "", 0, 0, 0, "", ready, 0, 0, 0, size, 0, 0)


def question(*kinds: str, links: int = 1) -> Question:
    return Question([Setting(kind, number) for number, kind in enumerate(kinds)], LINKS[:links])


def test_each_combination_comes_once() -> None:
    found = settings(KINDS, [256 * KiB, 1 * MiB], [256 * KiB, 1 * MiB], [4096], ["none", "hot"])
    assert len(found) == len(set(found))
    kinds = [setting.kind for setting in found]
    # 256 KiB sectors have no larger frames.
    assert {kind: kinds.count(kind) for kind in KINDS} == {
        "plain": 3, "hot": 6, "files": 1, "chunks": 2
    }  # fmt: skip
    assert len({str(setting) for setting in found}) == len(found)


@pytest.mark.parametrize(
    ("sizes", "granules"),
    [([3 * MiB], [4096]), ([2048], [4096]), ([1 * MiB], [1024]), ([64 * KiB], [128 * KiB])],
)
def test_impossible_sizes(sizes: list[int], granules: list[int]) -> None:
    with pytest.raises(UsageError):
        settings(KINDS, sizes, [4096], granules, ["hot"])


def test_too_many_settings() -> None:
    sizes = [1 << bits for bits in range(12, 28)]
    granules = [1 << bits for bits in range(12, 13)]
    with pytest.raises(UsageError, match=f"{MAX_SETTINGS} at most"):
        settings(KINDS, sizes, sizes[:11], granules * 1, ["none", "hot"])


def test_the_soonest_is_chosen() -> None:
    number, why = choose(question("plain", "hot"), [row(2), row(1)])
    assert (number, why) == (1, "of 2 settings it is soonest ready over 1 link")


def test_all_links_count() -> None:
    asked = question("plain", "hot", links=2)
    assert choose(asked, [row(1), row(4), row(1.5), row(1)])[0] == 1


def test_among_close_ones_the_fewest_bytes_are_chosen() -> None:
    number, why = choose(question("plain", "hot"), [row(1.0, 100), row(1.01, 50)])
    assert number == 1
    assert why.startswith("2 settings are within 2% of the soonest ready")


def test_layouts_of_others_are_chosen_only_among_themselves() -> None:
    assert choose(question("files", "plain"), [row(1), row(2)])[0] == 1
    assert choose(question("files", "chunks"), [row(2), row(1)])[0] == 1


def test_a_table_of_everything() -> None:
    found = convert()
    compared = settings(KINDS, [64 * KiB, 1 * MiB], [16 * KiB], [4096], ["none", "hot"])
    asked = Question(compared, LINKS, stores=[1 << 30], repeat=4)
    traces = [trace([*READS, ("gone", 0, 4096)], step_us=1000, ready_us=9000), trace(READS)]
    tuned = tune(found.place, resolve(found.place), found.image, traces, asked)
    assert (tuned.traces, tuned.reads, tuned.left_out, tuned.later) == (2, 6, 1, 0)
    assert tuned.local == pytest.approx((0.009 + 0.003) / 2)
    assert len(tuned.settings) == len(compared) * len(LINKS)
    for each in tuned.settings:
        assert each.ready > tuned.local
        assert 0 <= each.wait_p50 <= each.wait_p99 <= each.wait_p999 < each.ready
        assert 0 < each.bytes <= each.image_size * 1.01
    assert tuned.settings[tuned.chosen].layout == "hot"
    assert [store.hit_ratio for store in tuned.stores] == [pytest.approx(7 / 8)]
    shown = lines(tuned, compared, LINKS)
    assert len(shown) == 2 + len(LINKS) * (2 + len(compared)) + 2 + 3
    assert shown[1] == "  left out  1 read of files not in this image"
    chosen = compared[tuned.chosen // len(LINKS)]
    assert shown[-4] == f"choose {chosen}: {tuned.why}"
