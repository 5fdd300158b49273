# SPDX-License-Identifier: Apache-2.0
"""The output of the verbs on success; docs/json.md describes all of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.testing.command import firstread, program
from firstread.testing.entries import Block, Char, Entry
from firstread.testing.features import content
from firstread.testing.images import (
    Dir,
    File,
    Hardlink,
    Image,
    Layer,
    Symlink,
    digest_of,
    write_index,
    write_layout,
)
from firstread.testing.patience import PATIENCE_S

DOCUMENT = Path(__file__).parents[3] / "docs" / "json.md"
HOSTILE = "etc/\x1b[31mred\nname"
IMAGE = Image(
    [
        Layer([
            Dir("etc/"),
            File(HOSTILE, b"x", xattrs={"odd.name": b"1"}),
            File(b"\xff", content("large", 5_000_000)),
            Hardlink("link", target=b"\xff"),
        ]),
        Layer([Symlink("second", "etc")]),
        Layer([File("third", b"3")]),
    ]
)  # fmt: skip


SIZE = ("--sector-size", "4MiB")


@pytest.fixture(autouse=True)
def converted(scratch: Path) -> dict[str, Any]:
    """The output of the conversion of ``oci:in:latest`` to ``oci:out:1``."""
    write_layout(IMAGE, "in")
    ran = firstread("convert", "oci:in:latest", "oci:out:1", "--json", *SIZE)
    assert (ran.code, ran.stderr) == (0, "")
    result: dict[str, Any] = ran.json
    return result


def test_convert_reports_its_result(converted: dict[str, Any]) -> None:
    ran = firstread("convert", "oci:in:latest", "oci:new:1", "--no-cache", *SIZE)
    assert (ran.code, ran.stderr) == (0, "")
    *lines, took = ran.stdout.splitlines()
    assert lines == [
        "oci:new:1",
        f"  digest    {converted['digest']}",
        "  layers    3, 0 of them packed before",
        "  content   4.8 MiB, 6 inodes, 3 sectors of 4.0 MiB",
        "  size      4.8 MiB, 1.00 of the source's 4.8 MiB",
        f"  metadata  {converted['metadata_size']} B, fetched before a mount",
        "  left out  extended attributes that an image cannot have: odd.name",
    ]
    assert re.fullmatch(r"  took      \d+\.\d s, \d+\.\d [MG]iB/s of content", took)


def test_convert_again_changes_nothing(converted: dict[str, Any]) -> None:
    ran = firstread("convert", "oci:in:latest", "oci:out:1", *SIZE)
    _, digest, layers, *_, took = ran.stdout.splitlines()
    assert digest == f"  digest    {converted['digest']}  (as before)"
    assert layers == "  layers    3, 3 of them packed before"
    assert re.fullmatch(r"  took      \d+\.\d s", took), "nothing was read, so there is no rate"


def test_convert_as_json(converted: dict[str, Any]) -> None:
    layers = converted["layers"]
    assert [layer["digest"] for layer in layers] == [digest_of(one.blob) for one in IMAGE.layers]
    assert [layer["diff_id"] for layer in layers] == [one.diff_id for one in IMAGE.layers]
    assert [layer["how"] for layer in layers] == ["packed"] * 3
    assert [layer["sectors"] for layer in layers] == [2, 0, 1]
    assert layers[0]["dropped_xattrs"] == ["odd.name"]
    assert converted["source_digest"] == digest_of(IMAGE.manifest())
    assert not converted["unchanged"]
    assert converted["uploaded_blobs"] == 5  # one for each layer, metadata, config


def test_inspect_names_files_and_moves_no_cursor(converted: dict[str, Any]) -> None:
    facts = firstread("inspect", "oci:out:1", "--json").json
    first, second, third = (blob["digest"][:19] for blob in facts["blobs"])
    ids = [sector["id"][:12] for sector in facts["sectors"]]
    offset = facts["sectors"][0]["offset"]
    ran = firstread("inspect", "oci:out:1", "--files")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "oci:out:1",
        f"  digest    {converted['digest']}",
        f"  source    {converted['source_digest']}",
        "  size      4.8 MiB for 4.8 MiB in 3 sectors of 4.0 MiB",
        f"  metadata  {converted['metadata_size']} B (8.0 KiB uncompressed), 6 inodes",
        f"  blob 0    {first}     4.8 MiB  2 sectors",
        f"  blob 1    {second}  {facts['blobs'][1]['size']:>8} B  0 sectors",
        f"  blob 2    {third}  {facts['blobs'][2]['size']:>8} B  1 sector",
        f"  sector 0  {ids[0]}  blob 0 at {offset}, 787.1 KiB for 792.0 KiB",
        r"    /etc/\x1b[31mred\nname",
        "    /link",
        r"    /\xff",
        f"  sector 1  {ids[1]}  blob 0 at 0, 4.0 MiB for 4.0 MiB",
        "    /link",
        r"    /\xff",
        f"  sector 2  {ids[2]}  blob 2 at 0, 71 B for 4.0 KiB",
        "    /third",
    ]


def test_verify_reports_what_it_read() -> None:
    ran = firstread("verify", "oci:out:1", "--source", "oci:in:latest")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout == (
        "oci:out:1: 4.8 MiB in 3 sectors and 21 frames match their digests\n"
        "its tree equals that of oci:in:latest\n"
    )


def test_verify_lists_differences_from_the_source() -> None:
    other = [File("third", b"4"), Dir("etc/", mode=0o700), File("new", b""), Symlink("second", "x")]
    write_layout(Image([Layer(other)]), "other")
    ran = firstread("verify", "oci:out:1", "--source", "oci:other:latest")
    assert (ran.code, ran.stdout) == (3, "")
    seals = re.findall("content ([0-9a-f]{12})", ran.stderr)
    assert len(set(seals)) == 2
    assert ran.stderr == (
        "firstread: oci:out:1: its tree is not that of oci:other:latest:\n"
        "  /etc: mode 40755, in the source mode 40700\n"
        "  /etc/\\x1b[31mred\\nname: not in the source\n"
        "  /link: not in the source\n"
        "  /new: missing in the converted image\n"
        "  /second: target b'etc', in the source target b'x'\n"
        f"  /third: content {seals[0]}, in the source content {seals[1]}\n"
        "  /\\xff: not in the source\n"
        "  if it was made from this source, convert it again with --no-cache\n"
    )


def test_verify_blames_a_bad_source_on_the_source() -> None:
    write_layout(Image([Layer(b"no tar" * 1000)]), "bad")
    ran = firstread("verify", "oci:out:1", "--source", "oci:bad:latest", "--json")
    assert (ran.code, ran.json["image"]) == (3, "oci:bad:latest")


def test_verify_misses_a_config_that_nodes_do_not_need() -> None:
    """The manifest contains it, but other tools ask the registry for it."""
    manifest = Path("out/blobs", *digest_in_index("out").split(":"))
    config = json.loads(manifest.read_bytes())["config"]["digest"]
    Path("out/blobs", *config.split(":")).unlink()
    assert firstread("inspect", "oci:out:1").code == 0
    ran = firstread("verify", "oci:out:1")
    assert (ran.code, ran.stdout) == (4, "")
    assert ran.stderr.startswith(f"firstread: oci:out:1: blob {config} is missing\n")


def digest_in_index(layout: str) -> str:
    index = json.loads(Path(layout, "index.json").read_bytes())
    return str(index["manifests"][0]["digest"])


@pytest.mark.parametrize("verb", [["verify"], ["extract", "x"]], ids=["verify", "extract"])
def test_a_damaged_blob_is_named(verb: list[str]) -> None:
    digest = firstread("inspect", "oci:out:1", "--json").json["blobs"][0]["digest"]
    path = Path("out/blobs", *digest.split(":"))
    data = bytearray(path.read_bytes())
    data[100_000] ^= 1
    path.write_bytes(data)
    ran = firstread(verb[0], "oci:out:1", *verb[1:])
    assert (ran.code, ran.stdout) == (3, "")
    message, hint = ran.stderr.splitlines()
    assert message.startswith(f"firstread: oci:out:1: layer {digest}: frame 0 ")
    assert message.endswith(" does not match its digest")
    assert hint == "  the image is damaged: build or push it again"


def test_extract_counts_names() -> None:
    ran = firstread("extract", "oci:out:1", "x")
    assert (ran.code, ran.stdout, ran.stderr) == (0, "x: 7 names from oci:out:1\n", "")
    assert Path("x/third").read_bytes() == b"3"
    ran = firstread("extract", "oci:out:1", "x")
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr == ("firstread: oci:out:1: x is not empty\n  name a new or empty directory\n")
    write_layout(Image([]), "none")
    assert firstread("convert", "oci:none:latest", "oci:out:none").code == 0
    assert firstread("extract", "oci:out:none", "y").stdout == "y: 1 name from oci:out:none\n"
    ran = firstread("export", "oci:out:none", "--tar", "y.tar")
    assert ran.stdout == "y.tar: 1 name from oci:out:none\n"


def test_convert_names_the_platforms_that_it_leaves_out() -> None:
    platforms = ["linux/amd64", "linux/arm64", "linux/arm/v7", "windows/amd64"]
    layer = Layer([File("a", b"a")])
    write_index({name: Image([layer], platform=name) for name in platforms}, "index")
    ran = firstread("convert", "oci:index:latest", "oci:lazy:1", "--platform", "linux/arm64")
    assert (ran.code, ran.stderr) == (0, "")
    named = [line for line in ran.stdout.splitlines() if "left out" in line]
    assert named == [
        "  left out  linux/amd64, linux/arm/v7, windows/amd64, also in the index:"
        " --platform chooses one, or all"
    ]
    ran = firstread("convert", "oci:index:latest", "oci:lazy:2", "--json")
    assert ran.json["other_platforms"] == ["linux/arm/v7", "linux/arm64", "windows/amd64"]
    assert (
        firstread("convert", "oci:in:latest", "oci:lazy:3", "--json").json["other_platforms"] == []
    )


def test_a_line_names_a_few_platforms_only() -> None:
    names = ["linux/amd64", *(f"linux/{'x' * 100}{number:03}" for number in range(40))]
    layer = Layer([File("a", b"a")])
    write_index({name: Image([layer], platform=name) for name in names}, "index")
    ran = firstread("convert", "oci:index:latest", "oci:lazy:1", "--platform", "linux/amd64")
    assert ran.code == 0
    (named,) = [line for line in ran.stdout.splitlines() if "left out" in line]
    assert "and 24 more" in named
    assert len(named) < 17 * 70


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([File("a", mode=0o4755)], "set-id bits of 1 program"),
        ([Char("a", 1, 3), Char("b", 1, 5)], "2 devices"),
        ([File("a", mode=0o2755), Block("b", 8, 0)], "set-id bits of 1 program, 1 device"),
    ],
)
def test_extract_reports_omissions(entries: list[Entry], words: str) -> None:
    write_layout(Image([Layer(entries)]), Path("rights"))
    assert firstread("convert", "oci:rights:latest", "oci:lazy:1").code == 0
    ran = firstread("extract", "oci:lazy:1", "y")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[1:] == [f"  left out  {words}: --privileged makes them"]
    ran = firstread("extract", "--privileged", "oci:lazy:1", "z")
    assert (ran.code, len(ran.stdout.splitlines())) == (0, 1)


def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(
        program("inspect", "oci:out:1", "--files"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["human", "json"])
def test_output_that_cannot_be_written_is_an_error(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            program("inspect", "oci:out:1", *arguments),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 5
    if not arguments:
        assert ran.stderr == (
            "firstread: cannot write the output: No space left on device\n"
            "  free some space or choose another directory\n"
        )


@pytest.mark.parametrize("arguments", [("ps", "--help"), ("--version",), ("completion", "bash")])
def test_help_that_cannot_be_written_is_an_error(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            program(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ran.returncode == 5
    assert ran.stderr.startswith("firstread: cannot write the output: No space left on device\n")


def test_help_that_nobody_reads() -> None:
    with subprocess.Popen(
        program("run", "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


# -- docs/json.md ------------------------------------------------------------------------------

EXAMPLES = {
    "convert": ["convert", "oci:in:latest", "oci:out:1", "--json"],
    "inspect": ["inspect", "oci:out:1", "--files", "--json"],
    "verify": ["verify", "oci:out:1", "--json"],
    "extract": ["extract", "oci:out:1", "x", "--json"],
    "errors": ["inspect", "oci:nowhere:1", "--json"],
}


@pytest.mark.parametrize("section", EXAMPLES)
def test_the_document_names_every_field(section: str) -> None:
    ran = firstread(*EXAMPLES[section])
    assert (ran.stdout.count("\n"), ran.stderr) == (1, "")
    assert set(fields(json.loads(ran.stdout))) == documented(section)


def fields(value: object, name: str = "") -> Iterator[str]:
    """Yield the names of all fields in `value`, in the document's notation."""
    if isinstance(value, dict):
        for key, inner in value.items():
            path = f"{name}.{key}" if name else key
            yield path
            yield from fields(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, f"{name}[]")


def documented(section: str) -> set[str]:
    """Return the fields in the tables of a section."""
    text = DOCUMENT.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream(closed: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *program("--version")]
    assert subprocess.run(shell, timeout=PATIENCE_S, check=False).returncode == 0
