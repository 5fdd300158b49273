# SPDX-License-Identifier: Apache-2.0
"""The table, and the setting that it leads to."""

from __future__ import annotations

import pytest

from firstread.errors import LimitError, UsageError
from firstread.oci.resolve import resolve
from firstread.testing.tuning import LARGE, convert, trace
from firstread.tune.comparison import Question, choose, tune
from firstread.tune.link import parse_link
from firstread.tune.settings import MAX_SETTINGS, settings
from firstread.tune.tuned import SettingTuned, Tuned, lines
from firstread.units import KiB, MiB

LINKS = [parse_link("10Mbit/50ms"), parse_link("1Gbit/1ms")]
KINDS = ("plain", "hot", "files", "chunks")
READS = [("bin/3", 0, 4096), ("large", 0, LARGE), ("bin/9", 0, 4096)]


def row(ready: float, size: int = 1, kind: str = "plain") -> SettingTuned:
    return SettingTuned("", kind, 0, 0, 0, "none", ready, 0, 0, 0, size, 0, 0)


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
    chosen = choose([row(2), row(1)], 1)
    assert chosen == (1, "of 2 settings it is soonest ready over 1 link")


def test_all_links_count() -> None:
    assert choose([row(1), row(4), row(1.5), row(1)], 2)[0] == 2


def test_among_close_ones_the_fewest_bytes_are_chosen() -> None:
    number, why = choose([row(1.0, 100), row(1.01, 50)], 1)
    assert number == 1
    assert why.startswith("2 settings are within 2% of the soonest ready")


def test_layouts_of_others_are_chosen_only_among_themselves() -> None:
    assert choose([row(1, kind="files"), row(2)], 1)[0] == 1
    assert choose([row(2, kind="files"), row(1, kind="chunks")], 1)[0] == 1


def test_settings_that_the_image_cannot_have_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("firstread.tune.layout.MAX_SECTORS", 10)
    monkeypatch.setattr("firstread.tune.layout.MAX_UNITS", 50)
    found = convert()

    def ask(*sizes: int) -> Tuned:
        compared = settings(KINDS, sizes, [4 * KiB], [4096], ["none"])
        asked = Question(compared, LINKS[:1])
        return tune(found.place, resolve(found.place), found.image, [trace(READS)], asked)

    tuned = ask(4 * KiB, 1 * MiB)
    assert [each.setting.kind for each in tuned.settings] == ["plain", "hot", "files", "chunks"]
    assert [wrong.partition(":")[0] for wrong in tuned.impossible] == [
        "4 KiB sectors, 4 KiB frames",
        "4 KiB sectors, 4 KiB frames, hot by 4 KiB on demand",
        "4 KiB of files",
    ]
    assert lines(tuned)[1].startswith("  left out  4 KiB sectors, 4 KiB frames: ")
    monkeypatch.setattr("firstread.tune.layout.MAX_UNITS", 1)
    with pytest.raises(LimitError, match="10 are the limit"):
        ask(4 * KiB)


def test_too_much_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.tune.comparison.MAX_REPLAYED", 5)
    found = convert()
    asked = Question(settings(["files"], [], [], [], []), LINKS)
    with pytest.raises(UsageError, match="would replay 6 reads"):
        tune(found.place, resolve(found.place), found.image, [trace(READS)], asked)


def test_files_that_are_read_after_ready_alone_are_placed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server is ready, and loads its weights then."""
    monkeypatch.setattr("firstread.convert.hotplan.BULK_SIZE", 4096)
    found = convert()
    compared = settings(["hot"], [64 * KiB], [16 * KiB], [4096], ["hot"])
    asked = Question(compared, LINKS[:1])
    start = trace(READS, step_us=1000, ready_us=1000)
    tuned = tune(found.place, resolve(found.place), found.image, [start], asked)
    assert tuned.later


def test_the_trace_that_does_not_fit_is_named() -> None:
    found = convert()
    asked = Question(settings(["files"], [], [], [], []), LINKS[:1])
    traces = [trace(READS), trace([("gone", 0, 4096)])]
    with pytest.raises(UsageError, match="trace 2 of 2: none of the 1 reads"):
        tune(found.place, resolve(found.place), found.image, traces, asked)


def test_a_slow_trace_is_paced_by_a_local_start() -> None:
    found = convert()
    compared = settings(["hot"], [1 * MiB], [16 * KiB], [4096], ["hot"])

    def ask(step_us: int, local_s: float | None) -> Tuned:
        asked = Question(compared, LINKS[:1], local_s=local_s)
        slow = [trace(READS, step_us=step_us)]
        return tune(found.place, resolve(found.place), found.image, slow, asked)

    paced = ask(100_000, 0.003)
    assert paced.local == pytest.approx(0.003)
    assert paced.settings[0].ready == pytest.approx(ask(1_000_000, 0.003).settings[0].ready)
    assert paced.settings[0].ready < ask(100_000, None).settings[0].ready


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
    shown = lines(tuned)
    assert len(shown) == 2 + len(LINKS) * (2 + len(compared)) + 2 + 3
    assert shown[1] == "  left out  1 read of files not in this image"
    assert tuned.settings[tuned.chosen].setting in compared
    assert shown[-4] == f"choose {tuned.settings[tuned.chosen].setting}: {tuned.why}"
