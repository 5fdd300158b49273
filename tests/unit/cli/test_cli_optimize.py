# SPDX-License-Identifier: Apache-2.0
"""``firstread optimize``, and ``convert --trace``."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.unit.cli.test_cli_attach import push
from tests.unit.cli.test_cli_output import documented

from firstread.oci.platform import host_platform
from firstread.testing.command import firstread
from firstread.testing.images import File, Image, Layer, write_layout
from firstread.testing.registry import ScriptedRegistry
from firstread.testing.starts import put_trace, trace_of

IMAGE = Image(
    [Layer([File("a", random.Random(1).randbytes(200_000)), File("b", b"b" * 9000)])],
    {},
    str(host_platform()),
)
SMALL = ("--sector-size=64KiB", "--frame-size=16KiB")
TRACE = trace_of(("a", 5, 2), ("gone", 0, 1), ("b", 0, 1), ("a", 600, 1))


@pytest.fixture(autouse=True)
def image(scratch: Path) -> None:
    write_layout(IMAGE, "in", "1")
    put_trace(scratch / "start.jsonl", TRACE)


def test_it_says_what_is_hot_and_what_was_left_out() -> None:
    assert firstread("convert", *SMALL, "oci:in:1", "oci:out:1").code == 0
    ran = firstread("optimize", "oci:out:1", "--trace=start.jsonl")
    assert ran.code == 0
    lines = ran.stdout.splitlines()
    assert lines[0] == "oci:out:1"
    assert "  left out  2 reads of 1 missing file or beyond a file's end" in lines
    (hot,) = [line for line in lines if line.startswith("  hot ")]
    assert hot.endswith("for 12.0 KiB in 1 sector: 2 reads of 2 files")
    assert "1 sector, hot" in firstread("inspect", "oci:out:1").stdout
    assert firstread("verify", "oci:out:1", "--source=oci:in:1").code == 0
    assert firstread("extract", "oci:out:1", "tree").code == 0
    assert (Path("tree/a").read_bytes(), Path("tree/b").read_bytes()) == tuple(
        item.content for item in IMAGE.layers[0].items if isinstance(item, File)
    )


def test_the_documents_name_every_field() -> None:
    converted = firstread("convert", *SMALL, "oci:in:1", "oci:out:1", "--trace=.", "--json")
    done = firstread("optimize", "oci:out:1", "--trace=.", "--json")
    fields = {field for field in documented("optimize") if "." not in field}
    assert set(done.json) == fields
    hot = {f.removeprefix("hot.") for f in documented("optimize") if f.startswith("hot.")}
    assert set(done.json["hot"]) == set(converted.json["hot"]) == hot
    assert done.json["digest"] == converted.json["digest"]
    assert done.json["unchanged"]


@pytest.mark.parametrize("api", [False, True])
def test_an_attached_image_is_optimized_by_the_name_of_its_original(api: bool) -> None:
    with ScriptedRegistry(referrers=api) as registry:
        push(registry, "1", IMAGE)
        name = f"docker://{registry.host}/app:1"
        assert firstread("convert", "--attach", *SMALL, name).code == 0
        before = registry.manifests["1"]
        first = firstread("optimize", name, "--trace=start.jsonl", "--json")
        assert first.code == 0, first
        assert first.json["chosen"] == first.json["digest"]
        assert registry.manifests["1"] == before
        put_trace(Path("other.jsonl"), trace_of(("b", 1, 1)))
        second = firstread("optimize", name, "--trace=other.jsonl", "--json").json["digest"]
        assert firstread("inspect", name, "--json").json["digest"] == second
        third = firstread("convert", "--attach", *SMALL, name)
        assert f"nodes take another conversion attached to it: {second}" in third.stdout


def test_nothing_is_lost_to_a_trace_of_another_image() -> None:
    assert firstread("convert", *SMALL, "oci:in:1", "oci:out:1", "--trace=start.jsonl").code == 0
    before = firstread("inspect", "oci:out:1").stdout
    put_trace(Path("other.jsonl"), trace_of(("elsewhere", 0, 1)))
    ran = firstread("optimize", "oci:out:1", "--trace=other.jsonl")
    assert ran.code == 2
    assert "nothing in the trace fits the image" in ran.stderr
    assert firstread("inspect", "oci:out:1").stdout == before
    ran = firstread("convert", *SMALL, "oci:in:1", "oci:new:1", "--trace=other.jsonl")
    assert ran.code == 0
    assert "  hot       nothing: no read of the trace fits the image" in ran.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is not a trace"),
        (b'{"firstread_trace":9}\n', "format version 9"),
        (b'{"firstread_trace":1}\n[0,0,4096,"x"]\n', "line 2"),
    ],
)
def test_a_damaged_trace_is_an_error_that_names_it(content: bytes, message: str) -> None:
    assert firstread("convert", *SMALL, "oci:in:1", "oci:out:1").code == 0
    Path("bad.jsonl").write_bytes(content)
    for command in (("optimize", "oci:out:1"), ("convert", "oci:in:1", "oci:new:1")):
        ran = firstread(*command, "--trace=start.jsonl", "--trace=bad.jsonl")
        assert ran.code == 3
        assert "bad.jsonl: " in ran.stderr
        assert message in ran.stderr
    assert not Path("new").exists()


def test_a_directory_stands_for_its_traces() -> None:
    os.mkdir("traces")
    put_trace(Path("traces/1.jsonl"), trace_of(("a", 0, 1)))
    put_trace(Path("traces/2.jsonl"), trace_of(("a", 9, 1)))
    Path("traces/notes.txt").write_text("nothing")
    ran = firstread("convert", *SMALL, "oci:in:1", "oci:out:1", "--trace=traces", "--json")
    assert ran.json["hot"]["reads"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("oci:out:1",), "no trace is attached to the image"),
        (("oci:out:1", "--trace=missing"), "does not exist"),
        (("oci:in:1", "oci:out:1", "--trace=start.jsonl"), "ordinary image"),
        (("oci:missing:1", "--trace=start.jsonl"), "missing"),
        (("oci:out:1", "--trace=empty"), "there is no trace"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str) -> None:
    os.mkdir("empty")
    assert firstread("convert", *SMALL, "oci:in:1", "oci:out:1").code == 0
    ran = firstread("optimize", *arguments)
    assert ran.code in (2, 3, 4)
    assert message in ran.stderr
