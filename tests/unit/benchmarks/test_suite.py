# SPDX-License-Identifier: Apache-2.0
"""The rules of the cold-start suite: its options, its proof of laziness, and its verdicts."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import pytest
from benchmarks.images.recipes import IMAGES, LARGE_IMAGES
from benchmarks.link import Measured
from benchmarks.recordings import until
from benchmarks.report import Figure
from benchmarks.suite import __main__ as suite
from benchmarks.suite import chart
from benchmarks.suite.judge import judge
from benchmarks.suite.links import LINKS, Speed, parse_link
from benchmarks.suite.modes import Mode, by_devices
from benchmarks.suite.nodes import said
from benchmarks.suite.publish import fill, hot_bytes, write_lists
from benchmarks.suite.runs import Run, cells, table, write_csv
from benchmarks.suite.starts import FEW_BYTES, prove_lazy
from benchmarks.suite.workloads import WORKLOADS

from firstread.convert import hotplan
from firstread.convert.hotblob import recorded_start
from firstread.testing.images import File, Image, Layer
from firstread.testing.packed import SMALL, converted
from firstread.testing.starts import trace_of

pytestmark = pytest.mark.benchmarks

LAZY = suite.MODES["lazy"]
MBIT_100 = Measured(0.020, 0.020, 12.5e6)


def run(mode: str, *ready_s: float, link: str = "none", workload: str = "python") -> list[Run]:
    return [
        Run(link, workload, mode, number, 0.1, seconds, 10_000_000, 12)
        for number, seconds in enumerate(ready_s)
    ]


def figure(figures: list[Figure], part: str) -> Figure:
    (found,) = [each for each in figures if part in each.name]
    return found


@pytest.mark.parametrize(
    ("name", "speed"),
    [
        ("none", None),
        ("1Gbit/1ms", Speed(1000, 0.001)),
        ("100Mbit/20ms", Speed(100, 0.020)),
        ("25Mbit/80ms", Speed(25, 0.080)),
        ("2.5Gbit/0.5ms", Speed(2500, 0.0005)),
    ],
)
def test_links_have_a_rate_and_a_round_trip(name: str, speed: Speed | None) -> None:
    assert parse_link(name) == speed


@pytest.mark.parametrize("name", ["", "100Mbit", "20ms", "100Mbit/20ms/1", "1Tbit/1ms", "fast"])
def test_other_links_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a link such as none, 1Gbit/1ms"):
        parse_link(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "redis,nothing"], "there is no image 'nothing'"),
        (["--modes", "lazy,fast"], "there is no mode 'fast'"),
        (["--links", "slow"], "'slow' is not a link"),
        (["--devices", "fuse,fast"], "there is no device 'fast'"),
    ],
)
def test_unknown_names_end_the_command(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["suite", *options])
    with pytest.raises(SystemExit):
        suite.main()
    assert message in capsys.readouterr().err


def test_every_image_is_a_workload() -> None:
    assert WORKLOADS.keys() >= IMAGES.keys() | LARGE_IMAGES.keys()
    assert WORKLOADS["python-server"].image == "python"


def test_templates_of_modes_name_only_known_words() -> None:
    one = {"SOURCE", "LAZY", "TARGET", "SOCKET", "WORK", "LIST", "TRACE"}
    several = {"FIRSTREAD", "NODE", "WORKLOAD", "UNTIL", "COMMAND"}
    for mode in suite.MODES.values():
        for command in mode.convert:
            assert set(Template(" ".join(command)).get_identifiers()) <= one | several
        texts = [*mode.daemon, *(text for _, text in mode.files)]
        names = set(Template(" ".join(texts)).get_identifiers())
        assert names <= {"ADDRESS", "ROOT", "FILES", "SOCKET"}


def test_words_of_templates_are_replaced_by_none_one_or_several() -> None:
    template = ("$PROGRAM", "-o", "$LIST.json", "$UNTIL", "$COMMAND")
    words = {"$PROGRAM": ["python", "-m", "it"], "$UNTIL": [], "$COMMAND": ["echo", "$HOME"]}
    filled = fill(template, {"LIST": "/tmp/list"}, words)
    assert filled == ["python", "-m", "it", "-o", "/tmp/list.json", "echo", "$HOME"]


def test_a_trace_ends_when_the_client_of_the_benchmark_has_its_answer() -> None:
    assert until(WORKLOADS["debian"]) == ["--until-line", "^ready$"]
    assert until(WORKLOADS["nginx"]) == ["--until", "http://127.0.0.1:8082/"]
    option, command = until(WORKLOADS["redis"])
    assert (option, command.split()[1:]) == (
        "--until-command",
        ["-m", "benchmarks.ask", "redis"],
    )


def test_a_record_of_a_workload_becomes_the_lists_of_peers(tmp_path: Path) -> None:
    record = tmp_path / "list"
    record.write_text('{"path": "bin/sh", "layer": 1}\n{"path": "/lib/x"}\n{"path": "bin/sh"}\n')
    write_lists(record)
    assert json.loads((tmp_path / "list.json").read_text()) == ["/bin/sh", "/lib/x"]
    assert (tmp_path / "list.txt").read_text() == "/bin/sh\n/lib/x\n"


def test_a_mode_says_what_it_misses() -> None:
    absent = replace(LAZY, programs=("no-such-program",))
    assert absent.missing() == "no-such-program is not in PATH"
    assert replace(LAZY, client="run", lacks=lambda: "a reason").missing() == "a reason"


@pytest.mark.parametrize(
    ("mode", "seen", "whole_bytes", "lazy"),
    [
        (LAZY, {"present": 3, "sectors": 33}, 50_000_000, True),
        (LAZY, {"present": 33, "sectors": 33}, 50_000_000, False),
        (LAZY, {"present": 3, "sectors": 33}, 10_000_000, False),
        (LAZY, {"present": 3, "sectors": 33, "wire_bytes": 60_000_000}, 50_000_000, False),
        (LAZY, {"present": 3, "sectors": 3}, FEW_BYTES, True),  # too small to be partly there
        (LAZY, {"present": 3, "sectors": 3}, FEW_BYTES + 1, False),
        (suite.MODES["stargz"], {}, 10_000_000, False),
        (suite.MODES["nydus"], {}, 10_000_000, True),  # it fetches all, and says so
        (suite.MODES["overlayfs"], {}, 10_000_000, True),
    ],
)
def test_a_lazy_mode_that_fetched_everything_fails(
    mode: Mode, seen: dict[str, Any], whole_bytes: int, lazy: bool
) -> None:
    (one,) = run(mode.name, 1.0)
    if lazy:
        prove_lazy(mode, replace(one, **seen), whole_bytes)
    else:
        with pytest.raises(RuntimeError, match="was not lazy"):
            prove_lazy(mode, replace(one, **seen), whole_bytes)


def test_a_cell_is_the_median_between_the_fastest_and_the_95th_percentile() -> None:
    (cell,) = cells(run("lazy", 5.0, 1.0, 3.0, 2.0, 4.0)).values()
    assert cell.ready_s == 3.0
    assert cell.spread == (1.0, 5.0)
    assert cell.middle.number == 2
    assert str(cell) == "3.00 s (1.00 to 5.00), pull 0.10, 10.0 MB, 12 requests"


def test_the_csv_has_a_line_for_each_run(tmp_path: Path) -> None:
    write_csv(run("lazy", 1.0, 2.5), tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["ready_s"] for row in rows] == ["1.0000", "2.5000"]
    assert rows[0]["mode"] == "lazy"
    assert rows[0]["requests"] == "12"


def test_the_page_has_a_table_for_each_link() -> None:
    lines = table(cells([*run("lazy", 1.0), *run("lazy", 2.0, link="100Mbit/20ms")]))
    assert [line for line in lines if line.startswith("**")] == [
        "**Link: none**",
        "**Link: 100Mbit/20ms**",
    ]
    assert "| python | lazy | 2.00 | 2.00 | 2.00 | 0.10 | 10.0 | 12 |" in lines


def test_a_winning_peer_is_named() -> None:
    found = cells([*run("lazy", 2.0), *run("stargz", 4.0), *run("soci", 1.0)])
    verdict = figure(list(judge(found, {"none": None})), "best peer")
    assert verdict.name == "python at none: best peer, soci wins over lazy"
    assert verdict.value == 0.5


def test_a_peer_is_compared_with_our_best_mode() -> None:
    found = cells([*run("lazy", 2.0), *run("hot", 1.0), *run("stargz", 4.0)])
    verdict = figure(list(judge(found, {"none": None})), "best peer")
    assert verdict.name.endswith("stargz takes longer than hot")
    assert verdict.value == 4.0


def test_the_distant_link_has_strict_goals() -> None:
    link = "100Mbit/20ms"
    ready = {"lazy": 12.0, "hot": 3.0, "overlayfs": 60.0, "stargz": 4.0}
    runs = [one for mode, seconds in ready.items() for one in run(mode, seconds, link=link)]
    figures = list(judge(cells(runs), {link: MBIT_100}))
    assert figure(figures, "overlayfs takes longer than hot").met is False  # 20, not 22
    assert figure(figures, "overlayfs takes longer than lazy").goal is None
    assert figure(figures, "best peer").met is False  # 1.33, not 1.5
    assert figure(figures, "hot is ready").met is True


def test_a_hot_start_is_compared_with_its_physical_limit() -> None:
    link = "100Mbit/20ms"
    hot = [replace(one, hot_bytes=12_500_000, wire_bytes=14_000_000) for one in run("hot", 2.0)]
    runs = [replace(one, link=link) for one in [*hot, *run("local", 0.75)]]
    figures = list(judge(cells(runs), {link: MBIT_100}))
    limit = figure(figures, "physical limit")  # 0.75 + 1.15 * 1 + 5 * 0.02
    assert limit.value == pytest.approx(1.0)
    assert figure(figures, "bytes to ready, of its trace").value == pytest.approx(1.12)
    logged = [replace(one, link=link, sent_bytes=13_500_000) for one in hot]
    figures = list(judge(cells(logged), {link: MBIT_100}))
    assert figure(figures, "bytes to ready, of its trace").value == pytest.approx(1.08)


def test_weights_that_stay_in_their_layer_count_as_hot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplan, "BULK_SIZE", 4 * SMALL.sector_size)
    weights = random.Random(1).randbytes(4 * SMALL.sector_size)
    image = Image([Layer([File("weights", weights), File("code", b"import torch\n" * 400)])])
    read = trace_of(("code", 0, 2), *(("weights", 16 * number, 16) for number in range(4)))
    place, manifest = converted(image, SMALL, recorded_start(read))
    copied = manifest.layers[-1].size
    assert len(weights) < hot_bytes(place) < len(weights) + copied + 4096
    assert hot_bytes(converted(image)[0]) == 0


@pytest.mark.parametrize(
    ("modes", "part", "met"),
    [
        ({"classic": 1.0, "run-lazy": 1.1}, "classic takes longer than run-lazy", False),
        ({"classic": 1.0, "run-hot": 0.5}, "classic takes longer than run-hot", True),
        ({"static": 1.0, "lazy": 1.0}, "static, bytes to ready, of lazy", True),
    ],
)
def test_no_mode_may_lose_to_the_classic_way(modes: dict[str, float], part: str, met: bool) -> None:
    runs = [one for mode, seconds in modes.items() for one in run(mode, seconds)]
    assert figure(list(judge(cells(runs), {"none": None})), part).met is met


def test_on_the_slow_link_hot_is_three_times_faster_than_lazy() -> None:
    link = "25Mbit/80ms"
    runs = [*run("lazy", 29.0, link=link), *run("hot", 10.0, link=link)]
    figures = list(judge(cells(runs), {link: MBIT_100}))
    assert figure(figures, "lazy takes longer than hot").met is False


def test_a_mode_of_ours_is_tried_by_each_device() -> None:
    modes = [suite.MODES[name] for name in ("classic", "overlayfs", "run-lazy", "stargz")]
    named = [each.name for mode in modes for each in by_devices(mode, ["fanotify", "fuse"])]
    assert named == ["classic", "overlayfs", "run-lazy@fanotify", "run-lazy@fuse", "stargz"]
    assert by_devices(LAZY, ["fuse"])[0].device == "fuse"
    assert by_devices(LAZY, []) == [LAZY]


def test_each_device_is_judged_beside_fanotify() -> None:
    times = {"classic": 4.0, "run-lazy@fanotify": 2.0, "run-lazy@fuse": 2.5, "stargz-best": 3.0}
    times |= {"lazy@fanotify": 2.0, "lazy@fuse": 1.0}
    runs = [one for mode, seconds in times.items() for one in run(mode, seconds)]
    figures = list(judge(cells(runs), {"none": None}))
    assert figure(figures, "run-lazy by fuse, of fanotify").met is False  # 1.25
    assert figure(figures, ": lazy by fuse, of fanotify").value == 0.5
    assert figure(figures, "fuse: classic takes longer than run-lazy").value == 1.6
    assert figure(figures, "fanotify: classic takes longer than run-lazy").value == 2.0
    assert figure(figures, "fuse: best peer, stargz-best takes longer than lazy").value == 3.0


def test_the_log_of_a_pod_says_when_a_line_came(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "2026-01-01T00:00:00.5Z stdout F not ready\n2026-01-01T00:00:01.25Z stdout F ready\n"
    )
    first, second = said(log, "not ready"), said(log, "ready")
    assert first
    assert second
    assert second - first == pytest.approx(0.75)
    assert said(log, "never") is None


@pytest.mark.skipif(chart.missing() is not None, reason="matplotlib is not installed")
@pytest.mark.parametrize("links", [LINKS[:1], LINKS])
def test_a_chart_depends_on_its_figures_alone(tmp_path: Path, links: tuple[str, ...]) -> None:
    runs = [one for link in links for one in run("lazy", 1.0, 2.0, link=link)]
    for name in ("one.svg", "two.svg"):
        chart.draw(cells(runs), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "<svg" in (tmp_path / "one.svg").read_text()
