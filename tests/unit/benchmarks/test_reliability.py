# SPDX-License-Identifier: Apache-2.0
"""The page of what was shown: chapters are written one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.reliability import TITLES, Chapter, columns, write

pytestmark = pytest.mark.benchmarks

CELLS = [("what", "times", "fine"), ("a|b", "12", "yes")]


def chapter(name: str, summary: str) -> Chapter:
    return Chapter(name, f"make {name}", {"host": "a machine"}, CELLS, summary)


def test_a_chapter_replaces_itself_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    write(chapter("soak", "first"), path)
    write(chapter("flip", "second"), path)
    write(chapter("soak", "third"), path)
    text = path.read_text()
    assert "first" not in text
    assert text.index("**third**") < text.index("**second**")
    assert text.count("Not measured yet.") == len(TITLES) - 2
    assert "| what | times | fine |\n| --- | --: | --- |\n| a\\|b | 12 | yes |" in text
    assert "`make soak`\n\n- host: a machine\n" in text


def test_a_table_for_a_terminal() -> None:
    assert columns(CELLS) == "what  times  fine\na|b      12  yes\n"
