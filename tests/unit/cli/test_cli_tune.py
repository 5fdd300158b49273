# SPDX-License-Identifier: Apache-2.0
"""``firstread tune``: a table, its JSON, its picture, and what is wrong with a command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from firstread.testing.command import firstread
from firstread.testing.images import write_layout
from firstread.testing.tuning import IMAGE, LARGE, trace
from firstread.traces.tracefile import write_trace

READS = [("bin/3", 0, 4096), ("large", 0, LARGE)]
FEW = ("--layout", "plain,hot", "--sector-size", "64KiB", "--frame-size", "16KiB")


@pytest.fixture(autouse=True)
def _image(scratch: Path) -> None:
    """Make ``oci:out:1``, converted, and ``start.trace``."""
    write_layout(IMAGE, "in")
    sizes = ("--sector-size", "64KiB", "--frame-size", "16KiB")
    assert firstread("convert", *sizes, "oci:in:latest", "oci:out:1", "--json").code == 0
    with Path("start.trace").open("wb") as file:
        write_trace(trace(READS, ready_us=5000), file)


def test_a_table_for_people() -> None:
    ran = firstread("tune", "oci:out:1", "--trace", "start.trace", *FEW, "--link", "1Mbit/20ms")
    assert (ran.code, ran.stderr) == (0, "")
    first, blank, head, plain, hot, _, choice = ran.stdout.splitlines()
    assert first == "oci:out:1: 1 trace, 2 reads; 0.01 s with all data local"
    assert blank == ""
    assert head.split() == [
        "1Mbit/20ms", "ready", "p50", "p99", "p99.9", "fetched", "requests", "image"
    ]  # fmt: skip
    assert plain.startswith("  64 KiB sectors, 16 KiB frames  ")
    assert hot.startswith("  64 KiB sectors, 16 KiB frames, hot by 4 KiB streamed  ")
    assert choice.startswith("choose 64 KiB sectors, 16 KiB frames")


def test_a_document_for_programs() -> None:
    ran = firstread("tune", "oci:out:1", "--trace", "start.trace", "--cache", "1MiB", "--json")
    assert (ran.code, ran.stderr) == (0, "")
    found = ran.json
    assert {row["link"] for row in found["settings"]} == {
        "25Mbit/80ms",
        "100Mbit/20ms",
        "1Gbit/1ms",
    }
    assert {row["layout"] for row in found["settings"]} == {"plain", "hot", "files", "chunks"}
    assert found["settings"][found["chosen"]]["layout"] in ("plain", "hot")
    assert (found["traces"], found["reads"], found["local"]) == (1, 2, 0.005)
    (store,) = found["stores"]
    assert store["starts"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--link", "fast"], "'fast' is not a link"),
        (["--link", "0Mbit/1ms"], "the rate must be between"),
        (["--link", "-1Mbit/1ms"], "is not a link"),
        (["--link", "9999Tbit/1ms"], "the rate must be between"),
        (["--link", "1Mbit/1000s"], "the round trip time must be at most"),
        (["--link", ","], "give 1 to 16 values"),
        (["--layout", "round"], "'round' is not one of plain, hot, files, chunks"),
        (["--prefetch", "some"], "is not one of none, hot, all"),
        (["--sector-size", "3MiB"], "is not a power of two"),
        (["--granule", "8MiB"], "granule 8388608 is not a power of two from 4 KiB"),
        (["--workers", "0"], "workers"),
        (["--plot", "table.pdf"], "is neither .svg nor .png"),
        (["--plot", "none/table.svg"], "none/table.svg cannot be written"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    ran = firstread("tune", "oci:out:1", "--trace", "start.trace", *arguments)
    assert ran.code == 2
    assert message in ran.stderr
    assert ran.stdout == ""


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", 3, "this is not a trace"),
        (b"{}\n", 3, "this is not a trace"),
        (b'{"firstread_trace":1}\n', 2, "the trace has no reads"),
        (b'{"firstread_trace":1}\n[1,0,4096,"/other"]\n', 2, "none of the 1 reads"),
        (b'{"firstread_trace":9}\n', 3, "format version 9"),
    ],
)
def test_wrong_traces(content: bytes, code: int, message: str) -> None:
    Path("wrong.trace").write_bytes(content)
    ran = firstread("tune", "oci:out:1", "--trace", "wrong.trace", *FEW)
    assert ran.code == code
    assert message in ran.stderr


def test_an_image_that_is_not_converted() -> None:
    ran = firstread("tune", "oci:in:latest", "--trace", "start.trace")
    assert ran.code == 3
    assert "convert it first" in ran.stderr


@pytest.mark.parametrize(("name", "begins"), [("table.svg", b"<?xml"), ("table.png", b"\x89PNG")])
def test_a_picture(name: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    ran = firstread("tune", "oci:out:1", "--trace", "start.trace", "--plot", name, "--json")
    assert (ran.code, ran.stderr) == (0, "")
    assert Path(name).read_bytes().startswith(begins)


def test_the_title_of_a_picture_has_room_above_one_link() -> None:
    pytest.importorskip("matplotlib")
    Path("long").symlink_to("out")
    name = "oci:" + "./" * 60 + "long:1"
    ran = firstread("tune", name, "--trace", "start.trace", "--link=loopback", "--plot=one.svg")
    assert (ran.code, ran.stderr) == (0, "")
    texts = re.findall("<!-- (.*) -->", Path("one.svg").read_text())
    assert 30 < max(map(len, texts)) <= 55


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ran = firstread("tune", "oci:out:1", "--trace", "start.trace", "--plot", "table.svg")
    assert ran.code == 5
    assert "pip install 'firstread[plots]'" in ran.stderr
