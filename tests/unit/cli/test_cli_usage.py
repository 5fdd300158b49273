# SPDX-License-Identifier: Apache-2.0
"""The command line itself: help, flags, references, and wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from firstread.cli.main import VERBS
from firstread.cli.output import table
from firstread.errors import NodeError
from firstread.testing.command import firstread
from firstread.testing.images import File, Image, Layer, write_layout

HOW = (
    "write it like docker://host:5000/repository:tag, oci:DIR:TAG, oci-archive:FILE or"
    " docker-archive:FILE"
)
HELP = "see 'firstread {} --help'"
DIGEST = "sha256:" + "0" * 64
HEAVY = {"asyncio", "isal", "msgspec", "prometheus_client", "rich", "ssl", "urllib3", "zstandard"}


@pytest.fixture(autouse=True)
def image() -> None:
    write_layout(Image([Layer([File("a", b"a")])]), "in")


WRONG = {
    "no such command": (["push"], "No such command 'push'", "see 'firstread --help'"),
    "no such option": (["-x"], "No such option '-x'", "see 'firstread --help'"),
    "no source": (["convert"], "Missing argument 'SOURCE'", HELP.format("convert")),
    "no destination": (
        ["convert", "oci:in"],
        "there is no DEST for the result",
        "firstread convert SOURCE DEST, or firstread convert --attach SOURCE",
    ),
    "too many": (
        ["inspect", "oci:in", "oci:out"],
        "Got unexpected extra argument (oci:out)",
        HELP.format("inspect"),
    ),
    "unknown transport": (["inspect", "dir:in"], "'dir:in': this transport is not supported", HOW),
    "no path": (["inspect", "oci:"], "'oci:' names no path", HOW),
    "no name": (["inspect", ""], "'' is not the name of an image", HOW),
    "upper case": (
        ["inspect", "docker://host.example/Image"],
        "'docker://host.example/Image' is not the name of an image",
        "a repository is written in lower case",
    ),
    "bad tag": (["inspect", "image:a b"], "'image:a b': 'a b' is not a tag", HOW),
    "bad digest": (
        ["inspect", "image@sha256:12"],
        "'image@sha256:12': 'sha256:12' is not a digest",
        "write @sha256:<64 digits>",
    ),
    "not a size": (
        ["convert", "oci:in", "oci:out", "--sector-size", "big"],
        "Invalid value for '--sector-size': 'big' is not a size: write it like 256KiB, 4MiB or"
        " 4096",
        HELP.format("convert"),
    ),
    "no power of two": (
        ["convert", "oci:in", "oci:out", "--sector-size", "3MiB"],
        "sector size 3145728 is not a power of two of at least 4 KiB",
        "use for example --sector-size 4MiB",
    ),
    "level": (
        ["convert", "oci:in", "oci:out", "--level", "99"],
        "Invalid value for '--level': 99 is not in the range 1<=x<=19",
        HELP.format("convert"),
    ),
    "jobs": (
        ["convert", "oci:in", "oci:out", "--jobs", "0"],
        "Invalid value for '--jobs': 0 is not in the range x>=1",
        HELP.format("convert"),
    ),
    "platform": (
        ["convert", "oci:in", "oci:out", "--platform", "a/b/c/d"],
        "'a/b/c/d' is not a platform",
        "write it like linux/amd64 or linux/arm64/v8",
    ),
    "no such file": (
        ["inspect", "oci:in", "--authfile", "nowhere"],
        "Invalid value for '--authfile': File 'nowhere' does not exist",
        HELP.format("inspect"),
    ),
}


@pytest.mark.parametrize(("arguments", "message", "hint"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_line(arguments: list[str], message: str, hint: str) -> None:
    ran = firstread(*arguments)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr == f"firstread: {message}\n  {hint}\n"
    if arguments[0] in VERBS:
        ran = firstread(*arguments, "--json")
        assert (ran.code, ran.stderr) == (2, "")
        assert (ran.json["error"], ran.json["message"]) == ("UsageError", message)
        assert (ran.json["hint"], ran.json["exit_code"]) == (hint, 2)
    assert not Path("out").exists()


LONG = "x" * 256
CONTRADICTIONS = {
    "there is no such layout": (
        ["inspect", "oci:nowhere:latest"],
        4,
        "oci:nowhere:latest: there is no directory 'nowhere'",
        "check the path; one whose last part has a colon needs another at its end",
    ),
    "there is no such tag": (
        ["inspect", "oci:in:other"],
        4,
        "oci:in:other: there is no image 'other' here",
        "there are: latest",
    ),
    "another platform": (
        ["convert", "oci:in:latest", "oci:out", "--platform", "linux/s390x"],
        3,
        "oci:in:latest: there is no image for linux/s390x",
        "this image is for linux/amd64 only",
    ),
    "onto itself": (
        ["convert", "oci:in:latest", "oci:../work/in:latest"],
        2,
        "oci:in:latest: source and destination are the same image",
        "give the destination another tag, or the original image would lose its own",
    ),
    "onto its archive": (
        ["convert", "docker-archive:in", "oci-archive:in:new"],
        2,
        "docker-archive:in: source and destination are the same file",
        "name another file: an archive is written anew, and the original would be lost",
    ),
    "to a digest": (
        ["convert", "oci:in:latest", f"oci:out@{DIGEST}"],
        2,
        f"oci:out@{DIGEST}: a destination cannot be named by a digest",
        "give it a tag, or no name at all",
    ),
    "to a docker archive": (
        ["convert", "oci:in:latest", "docker-archive:out"],
        2,
        "docker-archive:out: docker-archive: can only be read",
        "write to docker://, oci: or oci-archive:",
    ),
    "to a directory of something else": (
        ["convert", "oci:in:latest", "oci:/etc:1"],
        2,
        "oci:/etc:1: the directory is not empty and no OCI layout",
        "name a new or empty directory, or an OCI layout",
    ),
    "a name that no file can have": (
        ["export", f"--raw={LONG}", "oci:in"],
        5,
        f"cannot use '{LONG}': File name too long",
        None,
    ),
    "frames larger than sectors": (
        ["convert", "oci:in", "oci:out", "--sector-size=4KiB", "--frame-size=8KiB"],
        2,
        "the frame size is larger than the sector size",
        None,
    ),
    **{
        f"{verb} an ordinary image": (
            [verb, "oci:in:latest", *rest],
            3,
            "oci:in:latest: this is an ordinary image, not one that firstread converted",
            "convert it first: firstread convert --attach SOURCE keeps its name, and"
            " firstread convert SOURCE DEST gives it another",
        )
        for verb, *rest in (["inspect"], ["verify"], ["extract", "out"])
    },
}


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys()
)
def test_impossible_requests(arguments: list[str], code: int, message: str, hint: str) -> None:
    ran = firstread(*arguments)
    assert ran.stderr == f"firstread: {message}\n" + (f"  {hint}\n" if hint else "")
    assert (ran.code, ran.stdout) == (code, "")
    assert not Path("out").exists()


def test_converting_a_converted_image() -> None:
    firstread("convert", "oci:in:latest", "oci:out:1")
    ran = firstread("convert", "oci:out:1", "oci:out:2")
    assert (ran.code, ran.stdout) == (3, "")
    assert ran.stderr == (
        "firstread: oci:out:1: this image is converted already\n"
        "  name the original image as the source\n"
    )


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_and_a_line_in_the_list(verb: str) -> None:
    ran = firstread(verb, "--help")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"Usage: firstread {verb} ")
    assert f"\n  {verb} " in firstread("--help").stdout


def test_no_arguments_ask_for_help() -> None:
    ran = firstread()
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr == firstread("--help").stdout


def test_version() -> None:
    ran = firstread("--version")
    assert (ran.code, ran.stdout, ran.stderr) == (0, "firstread, version 0.1.0\n", "")


def test_help_imports_nothing_heavy() -> None:
    """It takes 45 ms; each of these would double that, and the rest of firstread imports them."""
    script = "import sys; from firstread.cli.main import run; run(['--help'])"
    script += "; import json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    modules = set(json.loads(ran.stderr))
    assert not modules & HEAVY
    ours = {name for name in modules if name.startswith("firstread.") and name.count(".") > 1}
    assert ours == {"firstread.cli.main", "firstread.cli.output"}


def test_answers_of_a_daemon_are_read_without_its_parts() -> None:
    """Status takes 65 ms; what a fetcher works with would add 40."""
    script = "import firstread.control.daemonstatus"
    script += "; import json, sys; print(json.dumps(list(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    rooms = {name.split(".")[1] for name in json.loads(ran.stdout) if name.startswith("firstread.")}
    assert not rooms & {"sectors", "erofs", "oci", "registry", "device", "traces", "layouts"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "oci:a\nb\x1b[2J:latest"],
        ["inspect", "a\nb\x1b[2J"],
        ["logs", "--root", "root", "--run-dir", "run", "a\nb\x1b[2J"],
        ["stop", "--root", "root", "--run-dir", "run", "a\nb\x1b[2J"],
        ["run", "--root", "root", "--run-dir", "run", "--name", "a\nb\x1b[2J", "oci:in:latest"],
    ],
)
def test_a_message_has_one_line_whatever_it_quotes(arguments: list[str]) -> None:
    ran = firstread(*arguments)
    message, *hint = ran.stderr.splitlines()
    assert message.startswith("firstread: ")
    assert r"a\nb\x1b[2J" in message
    assert len(hint) <= 1
    assert ran.code != 1
    assert ran.stdout == ""


def test_a_table_keeps_its_columns_whatever_is_in_a_cell() -> None:
    rows = [("a\nb", "image"), ("c", "\u202eother")]
    assert table(("NAME", "IMAGE"), rows) == [
        "NAME   IMAGE",
        r"a\nb   image",
        r"c      \u202eother",
    ]


def test_a_machine_without_threads_is_no_defect() -> None:
    script = """if True:
        from firstread.cli.main import run
        from firstread.testing.shortage import no_threads
        with no_threads():
            code = run(["convert", "--no-cache", "oci:in:latest", "oci:out:latest"])
        raise SystemExit(code)
    """
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == NodeError.exit_code
    message, hint = ran.stderr.splitlines()
    assert message == "firstread: this process can have no more threads"
    assert "pids.max" in hint
