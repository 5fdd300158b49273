# SPDX-License-Identifier: Apache-2.0
"""Figures, goals, and what is printed and kept of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.measure import hidden_bytes, median, percentile, run
from benchmarks.report import Figure, Goal, Section, number, save, write
from benchmarks.setting import busy_share, describe

pytestmark = pytest.mark.benchmarks


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [(Goal("<=", 5), 5, True), (Goal("<=", 5), 5.1, False), (Goal(">=", 1), 0.99, False)],
)
def test_a_goal_is_met_at_its_limit(goal: Goal, value: float, met: bool) -> None:
    assert goal.met_by(value) is met


@pytest.mark.parametrize(
    ("value", "text"), [(0.123, "0.12"), (3.0, "3"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_line_says_what_was_missed() -> None:
    line = Figure("mount", 400.0, "ms", Goal("<=", 300), "of 6").line()
    assert line.split() == ["mount", "400", "ms", "goal", "<=", "300:", "NO", "of", "6"]


def test_the_page_has_the_last_figures_of_each_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    for name, value in (("suite-b", 1.0), ("other", 4.0), ("node", 2.0), ("suite-b", 3.0)):
        section = Section(name, f"Title {name}", {"link": "loopback"})
        section.add("speed", value, "x", Goal(">=", 2), "a | b")
        save(section, tmp_path / "results.json")
        write(section, page)
    text = page.read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Title node", "## Title suite-b", "## Title other"]
    assert text.count("- link: loopback") == 3
    assert "| speed | 3 x | >= 2 | yes | a \\| b |" in text
    assert "| speed | 1 x" not in text
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["suite-b", "other", "node"]
    assert "speed" in capsys.readouterr().out


def test_percentiles_are_values_that_occurred() -> None:
    values = [3.0, 1.0, 2.0]
    assert median(values) == 2.0
    assert percentile(values, 0.99) == 3.0
    assert percentile(values, 0.0) == 1.0


def test_a_run_is_measured_with_its_children_and_hidden_files() -> None:
    script = (
        "import os, tempfile, time\n"
        "file = tempfile.TemporaryFile(); file.write(bytes(3 << 20)); file.flush()\n"
        "end = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\n"
        "print('done')"
    )
    usage = run(("sh", "-c", f'python3 -c "{script}"; true'))
    assert usage.output == "done\n"
    assert usage.wall_s >= 0.3
    assert usage.cpu_s >= 0.3
    assert usage.temporary_bytes >= 3 << 20
    assert usage.peak_rss > 4 << 20


def test_a_failed_run_says_why() -> None:
    with pytest.raises(RuntimeError, match="failed with 3: sorry"):
        run(("sh", "-c", "echo sorry; exit 3"))


def test_processes_that_ended_hide_nothing() -> None:
    assert hidden_bytes([2**22 + 1], "") == 0


def test_the_setting_names_kernel_cores_and_disk(tmp_path: Path) -> None:
    setting = describe(tmp_path)
    assert setting["host"].startswith("Linux ")
    assert " on " in setting["disk"]
    assert "of the cores" in setting["others"]
    assert 0 <= busy_share(0.05) <= 1
