# SPDX-License-Identifier: Apache-2.0
"""``firstread report`` on files, and what is wrong with some of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from firstread.documents import encode
from firstread.testing.command import firstread
from firstread.testing.startrecords import start_record

TRACE = '{"firstread_trace":1,"command":["app"]}\n[5,0,4096,"/bin/app"]\n'


@pytest.fixture(autouse=True)
def files() -> None:
    Path("run.json").write_text(encode(start_record()) + "\n")
    Path("app.trace").write_text(TRACE)


def test_a_record_becomes_a_page() -> None:
    ran = firstread("report", "run.json", "-o", "page.html")
    assert (ran.code, ran.stdout, ran.stderr) == (0, "page.html: a page about run\n", "")
    assert "first output 1.5 s" in Path("page.html").read_text()
    assert Path("page.html").stat().st_mode & 0o777 == 0o644


def test_files_of_both_kinds_are_compared() -> None:
    ran = firstread("report", "run.json", "app.trace", "-o", "page.html")
    assert ran.stdout == "page.html: a page about run, app\n"
    assert "2 starts compared" in Path("page.html").read_text()


def test_a_page_goes_where_the_link_leads() -> None:
    Path("there").mkdir()
    Path("page").symlink_to("there/page")
    assert firstread("report", "app.trace", "-o", "page").code == 0
    assert Path("page").is_symlink()
    assert Path("there/page").read_text().startswith("<!doctype html>")


def test_a_page_goes_to_a_pipe() -> None:
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    ran = firstread("report", "app.trace", "-o", "pipe")
    assert ran.code == 0
    assert reader.communicate()[0].startswith("<!doctype html>")


WRONG = {
    "no output": (["run.json"], 2, "say where the page goes"),
    "a directory as output": (["run.json", "-o", "."], 2, ". cannot be written"),
    "no directory": (["run.json", "-o", "no/page"], 2, "no/page cannot be written"),
    "too many": (["run.json"] * 13 + ["-o", "page"], 2, "a page compares 1 to 12 starts, not 13"),
    "a record of a file": (["run.json", "--json"], 2, "--json prints the record of one mount"),
    "json to a file": (["/mnt", "--json", "-o", "x"], 2, "--json prints the record of one mount"),
    "no daemon": (["/mnt", "-o", "page", "--run-dir", "none"], 5, "no daemon answers"),
    "a long name": (["x" * 5000, "-o", "page", "--run-dir", "none"], 5, "no daemon answers"),
    "no daemon, no name": (["-o", "page", "--run-dir", "none"], 5, "no daemon answers"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command(arguments: list[str], code: int, message: str) -> None:
    ran = firstread("report", *arguments)
    shown = ran.json["message"] if "--json" in arguments else ran.stderr
    assert (ran.code, message in shown) == (code, True), ran
    assert not Path("page").exists()


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", 2, "is neither a record of a start nor a trace"),
        ('{"began":', 2, "is neither a record of a start nor a trace"),
        ('{"firstread_trace":1}\n[5,0,4096]\n', 3, "line 2 of the trace is damaged"),
        ('{"firstread_trace":2}\n', 3, "the trace has format version 2, not 1"),
    ],
)
def test_a_damaged_file(text: str, code: int, message: str) -> None:
    Path("bad").write_text(text)
    Path("page").write_text("old")
    ran = firstread("report", "run.json", "bad", "-o", "page")
    assert (ran.code, ran.stdout) == (code, "")
    assert message in ran.stderr
    assert ran.stderr.count("bad ") + ran.stderr.count("bad:") == 1
    assert "the image is damaged" not in ran.stderr
    assert Path("page").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == [
        "app.trace",
        "bad",
        "page",
        "run.json",
    ]
